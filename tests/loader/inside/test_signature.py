"""Test signatures of checkpoints, made and verified with the real library, and digests of what ranks hold."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lab
import pytest
import torch

from smokehouse_loader import LoadError, Signer, check_digests, load_model, save_digests
from smokehouse_loader.__main__ import main


@pytest.fixture
def signed(slim: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Return a signed copy of the checkpoint, and the signer's public key."""
    folder = lab.damaged(slim, tmp_path / "signed", lambda path: None)
    return folder, lab.signed(folder, tmp_path / "keys")


def flip(path: Path) -> None:
    """Flip a bit of the last byte of a shard: headers and shapes stay as they are."""
    file = next(path.glob("model-00003*"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_signature_verifies(signed: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
    folder, key = signed
    assert main(["check", str(folder), "--signature", "--public-key", str(key)]) == 0
    assert "fits Qwen2_5_VLForConditionalGeneration, signature verified\n" in capfd.readouterr().out
    moved = (folder / "model.sig").rename(key.parent / "elsewhere.sig")
    assert main(["check", str(folder), "--signature", str(moved), "--public-key", str(key), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["signed"] is True
    model = load_model(folder, verify="signature", signer=Signer(public_key=key, signature=moved), torch_dtype=torch.float32)
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (flip, "Hash mismatch for 'model-00003-of-00003.safetensors'"),
    "an added file": (lambda path: (path / "extra.py").write_text("import os"), "Extra files found"),
    "a missing file": (lambda path: (path / lab.INDEX).unlink(), "Missing files"),
    "a signature of something else": (lambda path: (path / "model.sig").write_text("{}"), "not what"),
    "no signature": (lambda path: (path / "model.sig").unlink(), "signature not found"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_change_after_signing_is_refused(name: str, signed: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
    folder, key = signed
    change, words = CHANGES[name]
    change(folder)
    assert main(["check", str(folder), "--signature", "--public-key", str(key)]) == 1
    out = capfd.readouterr().out
    assert words in out
    assert out.endswith("[signature-mismatch]\n")
    with pytest.raises(LoadError, match="signature-mismatch"):
        load_model(folder, verify="signature", signer=Signer(public_key=key))


def test_signature_of_another_key_is_refused(signed: tuple[Path, Path], slim: Path, tmp_path: Path) -> None:
    folder, key = signed
    other = lab.signed(lab.damaged(slim, tmp_path / "other", lambda path: None), tmp_path / "others")
    assert other != key
    with pytest.raises(LoadError, match="signature-mismatch"):
        load_model(folder, verify="signature", signer=Signer(public_key=other))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--signature"], "found 0; say whose signature is trusted"),
        (["--public-key", "key.pem"], "--public-key: expected --signature"),
        (["--signature", "--identity", "me"], "oidc_issuer: expected one beside identity"),
        (["--signature", "--public-key", "a", "--certificate-chain", "b"], "found 2"),
    ],
)
def test_usage(options: list[str], words: str, slim: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(slim), *options]) == 2
    assert words in capfd.readouterr().err


def test_library_is_optional(
    signed: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, key = signed
    monkeypatch.setitem(sys.modules, "model_signing", None)
    assert main(["check", str(folder)]) == 0
    capfd.readouterr()
    assert main(["check", str(folder), "--signature", "--public-key", str(key)]) == 2
    assert 'pip install "smokehouse-loader[signing]"' in capfd.readouterr().err


@pytest.mark.parametrize("options", [{"verify": "signature"}, {"signer": Signer(public_key="x")}])
def test_signer_and_verify_go_together(slim: Path, options: Any) -> None:
    with pytest.raises(ValueError, match="pass both, or neither"):
        load_model(slim, **options)


def test_all_ranks_refuse_what_one_read(signed: tuple[Path, Path]) -> None:
    folder, key = signed
    flip(folder)

    def work(rank: int) -> None:
        load_model(folder, verify="signature", signer=Signer(public_key=key))

    first, second = lab.errors(lab.ranks(work))
    assert first == second
    assert "rank 0" in first
    assert "rank 1" not in first


# Digests


def partitioned(slim: Path, stage: int) -> tuple[Any, Any]:
    live = lab.request_zero(stage)
    return load_model(slim, torch_dtype=torch.float32), live


@pytest.mark.parametrize("stage", [2, 3])
def test_digests_of_ranks(slim: Path, tmp_path: Path, stage: int) -> None:
    def save(rank: int) -> str:
        model, live = partitioned(slim, stage)
        assert live
        return save_digests(model, tmp_path).name

    assert lab.values(lab.ranks(save)) == [f"tensor-digests-rank0000{rank}-of-00002.json" for rank in range(2)]

    def resume(rank: int, damaged: bool) -> None:
        model, live = partitioned(slim, stage)
        assert live
        if damaged and rank == 1:
            parameter = dict(model.named_parameters())["lm_head.weight"]
            held = parameter.ds_tensor if stage == 3 else parameter
            held.data.view(-1)[3:4].view(torch.int32).bitwise_xor_(1)
        check_digests(model, tmp_path)

    lab.values(lab.ranks(resume, False))
    errors = lab.errors(lab.ranks(resume, True))
    assert errors[0] == errors[1]
    assert re.search(r"rank 1: lm_head\.weight: 1 of \d+ tensors differ", errors[0])
    with pytest.raises(LoadError, match="as many ranks as saved them"):
        check_digests(load_model(slim, torch_dtype=torch.float32), tmp_path)


def test_digests_of_one_process(slim: Path, tmp_path: Path) -> None:
    model = load_model(slim, torch_dtype=torch.bfloat16)
    file = save_digests(model, tmp_path)
    assert [*tmp_path.iterdir()] == [file]
    check_digests(model, tmp_path)
    with pytest.raises(LoadError, match="differ from what was saved"):
        check_digests(load_model(slim, torch_dtype=torch.float32), tmp_path)  # another dtype, other bits
    file.write_text("[1]")
    with pytest.raises(LoadError, match="JSON object"):
        check_digests(model, tmp_path)
    file.unlink()
    with pytest.raises(LoadError, match="call save_digests"):
        check_digests(model, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(LoadError, match="cannot be written"):
        save_digests(model, tmp_path / "file")
