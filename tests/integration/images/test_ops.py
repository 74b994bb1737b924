"""The step that compiles DeepSpeed's ops refuses what it should not have made; test_real has what it makes."""

import importlib.util
import subprocess
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from .. import toolkit

FUSED = "deepspeed/ops/adam/fused_adam_op.cpython-311-x86_64-linux-gnu.so"
CPU = "deepspeed/ops/adam/cpu_adam_op.cpython-311-x86_64-linux-gnu.so"


@pytest.fixture
def step(root: Path, programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The step that builds, with the real cuobjdump and no other part of the toolkit."""
    spec = importlib.util.spec_from_file_location("build", root / "docker" / "steps" / "build.py")
    assert spec
    assert spec.loader
    step = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(step)
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "bin").symlink_to(toolkit.unpacked(programs) / "bin")
    monkeypatch.setattr(step.tree, "PREFIX", str(tmp_path / "env").removeprefix("/"))
    return step


def wheel(folder: Path, programs: Path, *architectures: str, ops: tuple[str, ...] = (FUSED, CPU)) -> Path:
    """A wheel with `ops`, of which each has an empty kernel for `architectures`."""
    tools = toolkit.unpacked(programs) / "bin"
    images = []
    for architecture in architectures:
        kernel = f".version 8.4\n.target {architecture}\n.address_size 64\n.visible .entry kernel() {{ ret; }}\n"
        (folder / "kernel.ptx").write_text(kernel)
        cubin = folder / f"{architecture}.cubin"
        command: list[str | Path] = [tools / "ptxas", f"-arch={architecture}", folder / "kernel.ptx", "-o", cubin]
        subprocess.run(command, check=True, timeout=60)
        images.append(f"--image3=kind=elf,sm={architecture.removeprefix('sm_')},file={cubin}")
    subprocess.run([tools / "fatbinary", "-64", f"--create={folder / 'op.so'}", *images], check=True, timeout=60)
    made = folder / "deepspeed-0.15.4-cp311-cp311-linux_x86_64.whl"
    with zipfile.ZipFile(made, "w") as archive:
        for op in ops:
            archive.write(folder / "op.so", op)
    return made


def test_a_wheel_whose_op_lacks_a_gpu_is_refused(step: ModuleType, programs: Path, tmp_path: Path) -> None:
    said = "g++ -march=x86-64-v3 -D__AVX256__ cpu_adam.cpp"
    step._check_ops(wheel(tmp_path, programs, "sm_80", "sm_90"), said)
    for there, lacking in (("sm_80", "sm_90"), ("sm_90", "sm_80")):
        with pytest.raises(SystemExit, match=f"expected fused_adam for {lacking}, found ELF file 1: .*{there}.cubin"):
            step._check_ops(wheel(tmp_path, programs, there), said)


@pytest.mark.parametrize(("there", "lacking"), [(FUSED, "cpu_adam"), (CPU, "fused_adam")])
def test_a_wheel_without_an_op_is_refused(step: ModuleType, programs: Path, tmp_path: Path, there: str, lacking: str) -> None:
    with pytest.raises(SystemExit, match=f"expected one {lacking} op, found 0; check the toolkit"):
        step._check_ops(wheel(tmp_path, programs, "sm_80", "sm_90", ops=(there,)), "g++ -march=x86-64-v3")


def test_a_toolkit_that_cannot_say_for_which_gpus_an_op_is_is_refused(step: ModuleType, programs: Path, tmp_path: Path) -> None:
    step.tree.PREFIX = str(tmp_path).removeprefix("/")
    with pytest.raises(SystemExit, match="add cuda-cuobjdump to \\[conda\\] devel"):
        step._check_ops(wheel(tmp_path, programs, "sm_80", "sm_90"), "g++ -march=x86-64-v3")
