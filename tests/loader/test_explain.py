"""Test explanations and the command line without torch: a log can be explained on any machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smokehouse_loader import FAILURES, Finding, LoadError, explain
from smokehouse_loader.diagnosis import ATTACH

SEED = (
    "RuntimeError: Error(s) in loading state_dict for Qwen2_5_VLForConditionalGeneration:\n"
    "\tsize mismatch for visual.patch_embed.proj.weight: copying a param with shape torch.Size([1280, 3, 2, 14, 14]) from "
    "checkpoint, the shape in current model is torch.Size([0]).\n"
)
VICTIM = "RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1\n"
UNKNOWN = "Traceback (most recent call last):\n[rank0]:   File \"loop.py\", line 7, in step\n[rank0]: KeyError: 'pixels'\n"
DEADLINE = 60.0  # seconds


def command(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line from the checkout."""
    run = [sys.executable, "-m", "smokehouse_loader", *arguments]
    return subprocess.run(run, cwd=root / "src", capture_output=True, text=True, timeout=DEADLINE)


def test_seed_failure() -> None:
    [found] = explain(f"[rank0]: Traceback\n{SEED}")
    assert (found.failure.name, found.line) == ("partitioned-before-load", 3)
    assert "torch.Size([0])" in found.text


def test_causes_come_before_victims() -> None:
    names = [found.failure.name for found in explain(VICTIM * 50 + SEED + VICTIM)]
    assert names == ["partitioned-before-load", "lost-peer"]


def test_exception_is_explained_with_its_causes() -> None:
    try:
        try:
            raise RuntimeError(SEED)
        except RuntimeError as cause:
            raise ValueError("the trainer failed") from cause
    except ValueError as error:
        [found] = explain(error)
    assert found.failure.name == "partitioned-before-load"
    group = ExceptionGroup("all", [ValueError("x"), RuntimeError(VICTIM), RuntimeError(SEED)])
    assert [one.failure.name for one in explain(group)] == ["partitioned-before-load", "lost-peer"]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.name)
def test_messages_of_the_loader_are_explained(failure: object) -> None:
    error = LoadError([Finding(failure.name, "x.weight", "is wrong", failure.cure, 1)])  # type: ignore[attr-defined]
    assert [one.failure for one in explain(error)] == [failure]
    assert [one.failure for one in explain(f"\x1b[31msmokehouse_loader.errors.LoadError: {error}\x1b[0m")] == [failure]


@pytest.mark.parametrize("text", ["", "loss 2.3\n" * 1000, "Epoch 1 [0/10]", "size mismatch for nothing", "[lost-peer]"])
def test_unknown_text_is_not_explained(text: str) -> None:
    assert explain(text) == ()


@given(st.text(), st.text())
def test_surrounding_text_changes_nothing(before: str, after: str) -> None:
    assert "partitioned-before-load" in {one.failure.name for one in explain(f"{before}\n{SEED}\n{after}")}


def test_command(root: Path, tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    log.write_bytes(b"\xff\xfe\0" * 100 + f"\n{SEED}".encode())
    ended = command(root, "explain", str(log))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "partitioned-before-load" in ended.stdout
    assert "line 3" in ended.stdout
    [found] = json.loads(command(root, "explain", "--json", str(log)).stdout)["found"]
    assert found["failure"]["name"] == "partitioned-before-load"


@pytest.mark.parametrize(("text", "code"), [(SEED, 0), (UNKNOWN, 3)])
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_what_nobody_reads_changes_no_exit_code(root: Path, tmp_path: Path, text: str, code: int, options: list[str]) -> None:
    log = tmp_path / "train.log"
    log.write_text(f"\u2713 {text}")
    run = [sys.executable, "-m", "smokehouse_loader", "explain", *options, str(log)]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        ended = subprocess.run(run, cwd=root / "src", stdout=pipe, stderr=subprocess.PIPE, timeout=DEADLINE)
    assert (ended.returncode, ended.stderr) == (code, b"")
    closed = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *run], cwd=root / "src", stderr=subprocess.PIPE, timeout=DEADLINE
    )
    assert (closed.returncode, closed.stderr) == (code, b"")


@pytest.mark.parametrize("arguments", [["explain"], ["explain", "--json"], ["failures"]])
def test_output_on_a_full_disk(root: Path, tmp_path: Path, arguments: list[str]) -> None:
    log = tmp_path / "train.log"
    log.write_text(SEED)
    run = [sys.executable, "-m", "smokehouse_loader", *arguments, *([str(log)] if arguments[0] == "explain" else [])]
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(run, cwd=root / "src", stdout=full, stderr=subprocess.PIPE, timeout=DEADLINE)
    said = b"smokehouse_loader: standard output: No space left on device; fix it and run it again\n"
    assert (ended.returncode, ended.stderr) == (2, said)


def test_command_without_an_explanation(root: Path, tmp_path: Path) -> None:
    """It names the exception that ended the first rank, not its echo, and what to attach to an issue."""
    log = tmp_path / "train.log"
    log.write_text(f"[rank1]: {VICTIM}[rank0]: {UNKNOWN}")
    ended = command(root, "explain", str(log))
    assert (ended.returncode, ended.stderr) == (3, "")
    assert "no known failure found" in ended.stdout
    assert "rank 0, which failed first, ended with, in line 4: KeyError: 'pixels' (raised in step, loop.py:7)" in ended.stdout
    assert "what followed: lost-peer (line 1)" in ended.stdout
    assert ATTACH in ended.stdout
    document = json.loads(command(root, "explain", "--json", str(log)).stdout)
    assert (document["found"], document["first"]["type"], document["attach"]) == ([], "KeyError", ATTACH)
    log.write_text("all is well\n")
    assert command(root, "explain", str(log)).returncode == 3


@pytest.mark.parametrize(
    "arguments", [(), ("check",), ("explain", "nowhere.log"), ("check", "nowhere"), ("check", "--colour", ".")]
)
def test_usage_error(root: Path, arguments: tuple[str, ...]) -> None:
    ended = command(root, *arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "Traceback" not in ended.stderr


def test_errors_survive_pickling_and_stay_one_line() -> None:
    import pickle

    findings = [Finding("wrong-shape", f"layer.{number}", "is\nwrong", "fix it", number % 2) for number in range(9)]
    error = pickle.loads(pickle.dumps(LoadError(findings)))
    assert (error.findings, error.rank) == (tuple(findings), 0)
    assert "\n" not in str(error)
    assert str(error).startswith("rank 0: layer.0: is wrong; fix it [wrong-shape]")
    assert "and 8 more" in str(error)


def test_check_without_torch_says_whose_python_to_use(root: Path, tmp_path: Path) -> None:
    run = (
        f"import sys; sys.path.insert(0, {str(root / 'src')!r}); from smokehouse_loader.__main__ import main; sys.exit(main())"
    )
    command = [sys.executable, "-I", "-S", "-c", run, "check", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert ended.stderr == (
        f"smokehouse_loader: {sys.executable}: check requires torch, transformers and safetensors, found no torch or "
        "transformers or safetensors; run it with the Python of the environment that loads the checkpoint\n"
    )
