"""Which GPUs a compiled library has code for, read from device code that is laid out as nvcc does."""

import struct
import subprocess
from pathlib import Path

import pytest

from smoke_tests.machine import fatbin, ops
from smoke_tests.machine.gpus import Gpu
from smoke_tests.machine.software import Software

PTX, BINARY = 1, 2


def container(*codes: tuple[int, int]) -> bytes:
    """Return a container of device code: of each piece its kind and its compute capability, such as 90."""
    pieces = b""
    for kind, architecture in codes:
        body = b"code" * 8
        header = struct.pack("<HHIQIIHHI", kind, 0x101, 64, len(body), 0, 64, 0, 0, architecture).ljust(64, b"\0")
        pieces += header + body
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(pieces)) + pieces


def library(folder: Path, name: str, *containers: bytes) -> Path:
    """Compile a library whose section .nv_fatbin has these containers, eight bytes apart, as a linker joins them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.bin").write_bytes(b"".join(one + bytes(8 - len(one) % 8 + 8) for one in containers))
    source = f'.section .nv_fatbin,"a"\n.incbin "{folder / name}.bin"\n' if containers else ""
    command = ["gcc", "-shared", "-nostdlib", "-x", "assembler", "-", "-o", str(folder / name)]
    subprocess.run(command, input=source, text=True, check=True, capture_output=True, timeout=60)
    return folder / name


def test_all_codes_of_all_containers_are_found(tmp_path: Path) -> None:
    made = library(tmp_path, "a.so", container((BINARY, 80), (BINARY, 90)), container((BINARY, 120), (PTX, 90)))
    assert fatbin.architectures(made) == ("sm_80", "compute_90", "sm_90", "sm_120")


def test_what_is_no_library_with_device_code_has_none(tmp_path: Path) -> None:
    assert fatbin.architectures(library(tmp_path, "plain.so")) == ()
    assert fatbin.architectures(tmp_path / "missing.so") == ()
    for name, data in {"empty": b"", "text": b"not a library", "elf": b"\x7fELF\x02\x01" + bytes(10)}.items():
        (tmp_path / name).write_bytes(data)
        assert fatbin.architectures(tmp_path / name) == ()


@pytest.mark.parametrize("kept", [64, 200, 700])
def test_a_library_that_is_cut_off_or_damaged_ends_the_search_and_nothing_else(tmp_path: Path, kept: int) -> None:
    made = library(tmp_path, "a.so", container((BINARY, 80), (BINARY, 90)))
    cut = tmp_path / "cut.so"
    cut.write_bytes(made.read_bytes()[:kept])
    assert fatbin.architectures(cut) == ()
    whole = bytearray(made.read_bytes())
    at = whole.index(struct.pack("<I", 0xBA55ED50))
    whole[at + 16 : at + 40] = b"\xff" * 24  # lengths that lead out of the file
    cut.write_bytes(whole)
    assert fatbin.architectures(cut) == ()


def test_ops_without_code_for_a_gpu_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In packages that are installed, and in what an earlier run compiled on another GPU."""
    site = tmp_path / "site"
    library(site, "flash_attn_2_cuda.so", container((BINARY, 80), (BINARY, 90)))
    library(site / "bitsandbytes", "libbitsandbytes_cuda124.so", container((BINARY, 80), (PTX, 90)))
    library(site / "bitsandbytes", "libbitsandbytes_cuda118.so", container((BINARY, 50)))  # of another CUDA, never loaded
    for package in ("flash_attn", "bitsandbytes"):
        (site / package).mkdir(exist_ok=True)
        (site / package / "__init__.py").touch()
    monkeypatch.syspath_prepend(site)
    cache = tmp_path / "extensions"
    library(cache / "py311_cu124" / "fused_adam", "fused_adam.so", container((BINARY, 90)))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(cache))
    software = Software("2.6.0", (12, 4), None, None)
    hopper, blackwell, ampere = Gpu((9, 0)), Gpu((12, 0)), Gpu((8, 0))
    [fine] = ops.check(software, [hopper])
    assert (fine.level, fine.what) == ("ok", "flash-attn, bitsandbytes, TORCH_EXTENSIONS_DIR: code for sm_90")
    wrong = {one.where: one for one in ops.check(software, [blackwell, hopper]) if one.level == "warn"}
    assert set(wrong) == {"flash-attn", "TORCH_EXTENSIONS_DIR"}  # the PTX of bitsandbytes runs on any later GPU
    assert "code for sm_80, sm_90, none of which runs on sm_120" in wrong["flash-attn"].what
    [stale] = [one for one in ops.check(software, [ampere]) if one.level == "warn"]
    assert stale.fix == f"delete {cache / 'py311_cu124' / 'fused_adam'}, so that DeepSpeed compiles it again"
    assert list(ops.check(software, [])) == []
