"""What a machine needs to install an environment and train in it, as far as one can tell without torch."""

import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from smokehouse.checkout import Checkout
from smokehouse.console import as_typed, size
from smokehouse.errors import UserError
from smokehouse.installs import activation
from smokehouse.installs.activation import Installation
from smokehouse.installs.target import PYPI_GROWTH, require_platform
from smokehouse.locks import LockedEnvironment
from smokehouse.programs import uv
from smokehouse.programs.process import run

_DEADLINE = 60.0  # seconds


_Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One finding: `what` was found `where`, and how to fix it. Training or the installation fails after `fail`.

    See: smoke_tests/machine/finding.py, whose JSON this reads.
    """

    level: _Level
    what: str
    where: str
    fix: str = ""

    def __str__(self) -> str:
        """Return it as one line, without the level."""
        return f"{self.where}: {self.what}{f'; {self.fix}' if self.fix else ''}"


def findings(checkout: Checkout, locked: LockedEnvironment, prefix: Path | None = None) -> list[Finding]:
    """Check this machine for an environment, and its installation in `prefix`, by default that of `smoke`; raises UserError."""
    installation = activation.read_prefix(prefix, locked) if prefix else activation.find(checkout, locked)
    return [
        *_machine(checkout, locked, installation),
        _platform(locked),
        _python(locked),
        *_compilers(),
        _disk(checkout, locked, installation),
        _installation(locked, installation),
        *(_drift(locked, installation) if installation else ()),
    ]


def _machine(checkout: Checkout, locked: LockedEnvironment, installation: Installation | None) -> Iterator[Finding]:
    """Yield what the preflight of the smoke tests finds here, run by the environment's Python if it is installed."""
    python = str(installation.folder / "bin" / "python") if installation else sys.executable
    command = [python, "-m", "smoke_tests.machine", "--remedies", "host", "--json", "--cuda", locked.cuda]
    place = checkout.file("smoke_tests").parent
    ended = run(command, deadline=_DEADLINE, environ=activation.without_foreign(os.environ), cwd=place)
    try:
        found = parse_findings(ended.stdout)
        if ended.code != int(any(finding.level == "fail" for finding in found)):
            raise ValueError("another exit code than its findings have")
        yield from found
    except ValueError:
        said = (ended.stderr or ended.stdout).strip().rpartition("\n")[2]
        raise UserError(f"smoke_tests.machine: expected JSON, found {said or 'nothing'}; install Smokehouse again") from None


def parse_findings(text: str) -> list[Finding]:
    """Return the findings in the JSON `text`; raises ValueError where it has none, or other than findings."""
    content = json.loads(text)
    if not isinstance(content, list) or not content:
        raise ValueError("no findings")
    for one in content:
        if not isinstance(one, dict) or not {"level", "what", "where"} <= one.keys() <= {"level", "what", "where", "fix"}:
            raise ValueError("not a finding")
        if one["level"] not in get_args(_Level) or not all(isinstance(value, str) for value in one.values()):
            raise ValueError("not a finding")
    return [Finding(**one) for one in content]


def markdown(checkout: Checkout, title: str, found: Sequence[Finding]) -> str:
    """Return findings as the preflight of the smoke tests writes them for an issue; raises UserError."""
    command = [sys.executable, "-m", "smoke_tests.machine.shown", title]
    place = checkout.file("smoke_tests").parent
    text = json.dumps([asdict(finding) for finding in found])
    ended = run(command, deadline=_DEADLINE, environ={"PYTHONUTF8": "1"}, cwd=place, stdin=text)
    if ended.code:
        said = ended.stderr.strip().rpartition("\n")[2]
        raise UserError(f"smoke_tests.machine.shown: expected Markdown, found {said}; install Smokehouse again")
    return ended.stdout.rstrip()


def _platform(locked: LockedEnvironment) -> Finding:
    try:
        require_platform(locked.lock.platform, locked.name)
    except UserError as problem:
        return Finding("fail", str(problem).partition(": ")[2], locked.name)
    return Finding("ok", locked.lock.platform, "platform")


def _python(locked: LockedEnvironment) -> Finding:
    version = locked.lock.python
    if found := uv.find_python(version):
        return Finding("ok", str(found), f"Python {version}")
    prefix = as_typed("install", locked.name, "PREFIX")
    return Finding("warn", "not found", f"Python {version}", f"uv downloads one where it may, and {prefix} brings one")


def _compilers() -> Iterator[Finding]:
    for program, needed_for in (("g++", "DeepSpeed compiles CPU ops"), ("nvcc", "DeepSpeed and flash-attn compile CUDA ops")):
        if found := shutil.which(program):
            yield Finding("ok", found, program)
        else:
            yield Finding("warn", f"not found, with which {needed_for}", program, "an environment with --devel has it")


def _disk(checkout: Checkout, locked: LockedEnvironment, installation: Installation | None) -> Finding:
    folder = checkout.build
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    needed = sum(file.size for file in (*locked.lock.pip, *locked.lock.build)) * PYPI_GROWTH
    what = f"{size(free)} free, {locked.name} needs {size(needed)}"
    if free < needed and not installation:
        return Finding("fail", what, str(folder), "free disk space")
    return Finding("ok", what, str(folder))


def _installation(locked: LockedEnvironment, found: Installation | None) -> Finding:
    if found is None:
        return Finding("warn", "not installed", locked.name, f"run {as_typed('smoke', locked.name)}")
    if not found.current:
        return Finding("warn", "installed from an older lock", str(found.folder), f"run {activation.remedy(found, locked)}")
    return Finding("ok", f"installed in {found.folder}", locked.name)


def _drift(locked: LockedEnvironment, found: Installation) -> Iterator[Finding]:
    """Yield how an installation differs from its lock; what is recorded as added is in order."""
    for where, what, in_order in activation.drift(found, locked):
        yield (
            Finding("ok", what, where) if in_order else Finding("fail", what, where, f"run {activation.remedy(found, locked)}")
        )
