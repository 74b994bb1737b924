"""What packages import at run time without declaring it has to be locked."""

import subprocess
import sys
from pathlib import Path

import pytest

from smokehouse.errors import UserError
from smokehouse.locks import Lock, undeclared

from ..committed import by_inputs
from ..conftest import Index, TestCheckout

NAMES = by_inputs()
EARLIER = """
import sys
from smokehouse.cli import main
from smokehouse.locks import undeclared

undeclared._IMPORTS = ()
sys.exit(main())
"""
SAID = "expected setuptools, which deepspeed {} imports to compile its ops, lock has no such package; add it to the pip list"


@pytest.mark.parametrize("name", NAMES)
def test_committed_locks_have_it(root: Path, name: str) -> None:
    lock = Lock.model_validate_json((root / "lockfiles" / name / "lock.json").read_bytes())
    undeclared.check(name, lock.pip)
    [version] = [file.version for file in lock.pip if file.name == "deepspeed"]
    with pytest.raises(UserError) as refused:
        undeclared.check(name, [file for file in lock.pip if file.name != "setuptools"])
    assert SAID.format(version) in str(refused.value)


def test_lock_and_check_refuse_it(checkout: TestCheckout, index: Index) -> None:
    for name in ("deepspeed", "setuptools"):
        index.add(name)
    checkout.edit(checkout.environment, "- beta", "- beta\n      - deepspeed")
    assert SAID.format("1.0") in checkout.refused("lock")
    checkout.edit(checkout.environment, "- deepspeed", "- deepspeed\n      - setuptools")
    checkout.lock()
    assert checkout.run("lock", "--check").returncode == 0
    # A lock that an earlier release wrote.
    checkout.edit(checkout.environment, "      - setuptools\n", "")
    command = [sys.executable, "-c", EARLIER, "lock"]
    subprocess.run(command, cwd=checkout.root, env=checkout.environ, check=True, capture_output=True, timeout=120)
    ended = checkout.run("lock", "--check")
    assert ended.returncode == 1
    assert SAID.format("1.0") in ended.stderr
