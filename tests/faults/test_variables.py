"""Variables of a cluster that change what a smoke test measures are cleared or named."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PREPARE = """
import json, os
from smoke_tests import preflight
found = preflight.prepare_process(offline=True)
print(json.dumps(found))
print(sorted(os.environ))
"""
CLEARED = (
    "ACCELERATE_USE_DEEPSPEED",
    "ACCELERATE_MIXED_PRECISION",
    "TRANSFORMERS_VERBOSITY",
    "TORCH_LOGS",
    "TORCHDYNAMO_DISABLE",
    "PYTHONWARNINGS",
)
KEPT = (
    "NCCL_P2P_DISABLE",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING",
    "GLOO_TIMEOUT",
    "NVIDIA_TF32_OVERRIDE",
    "PYTORCH_CUDA_ALLOC_CONF",
    "CUDA_LAUNCH_BLOCKING",
    "CUBLAS_WORKSPACE_CONFIG",
    "DS_BUILD_OPS",
    "LD_PRELOAD",
)
PLACES = ("TRANSFORMERS_CACHE", "TRANSFORMERS_OFFLINE", "HF_HOME", "GLOO_SOCKET_IFNAME")


def prepared(root: Path, *names: str) -> tuple[str, str]:
    """Return what the preparation of a run prints with these variables set, and the variables that it leaves."""
    environ = {name: text for name, text in os.environ.items() if not name.startswith((*CLEARED, *KEPT))}
    environ |= dict.fromkeys(names, "")
    ended = subprocess.run(
        [sys.executable, "-c", PREPARE], cwd=root, env=environ, capture_output=True, text=True, check=True, timeout=60
    )
    *said, found, left = ended.stdout.splitlines()
    expected = {what: sorted(name for name in names if name in of) for what, of in (("cleared", CLEARED), ("kept", KEPT))}
    assert json.loads(found) == expected
    return "\n".join(said), left


@pytest.mark.parametrize("name", CLEARED)
def test_what_changes_the_measurement_is_cleared_and_named(root: Path, name: str) -> None:
    said, left = prepared(root, name)
    assert f"warning: {name}: cleared, since they change what is measured" in said
    assert f"'{name}'" not in left


@pytest.mark.parametrize("name", KEPT)
def test_what_a_machine_may_need_is_kept_and_named(root: Path, name: str) -> None:
    said, left = prepared(root, name)
    assert f"warning: {name}: kept, and may change the outcome" in said
    assert f"'{name}'" in left


def test_places_are_kept_without_a_word(root: Path) -> None:
    said, left = prepared(root, *PLACES)
    assert not any(name in said for name in PLACES)
    assert all(f"'{name}'" in left for name in PLACES)


@pytest.mark.parametrize("option", [{"PYTHONWARNINGS": "error"}, {}], ids=["variable", "option"])
def test_warnings_of_libraries_are_no_errors(root: Path, option: dict[str, str]) -> None:
    """Here, and in the processes that multiprocessing starts fresh."""
    ask = (
        f"{PREPARE}import subprocess, warnings\n"
        "warnings.warn('old', DeprecationWarning)\n"
        "print(*subprocess._args_from_interpreter_flags())"
    )
    command = [sys.executable, *([] if option else ["-W", "error"]), "-c", ask]
    ended = subprocess.run(command, cwd=root, env=os.environ | option, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "-W" not in ended.stdout.splitlines()[-1]
