"""What is known of each environment: its definition, its lock and the evidence for the lock."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from smokehouse.audits.result import Audit
from smokehouse.checkout import Checkout
from smokehouse.console import as_typed
from smokehouse.environments import definition
from smokehouse.environments.documents import read_json
from smokehouse.images import debian_lock, record
from smokehouse.installs import activation
from smokehouse.installs.activation import Installation
from smokehouse.locks import LockedEnvironment
from smokehouse.locks.check import read_lock
from smokehouse.locks.pins import LockFiles
from smokehouse.pages.environment import Documented
from smokehouse.runs import report as reports
from smokehouse.runs.report import Report
from smokehouse.storage import files


def read(checkout: Checkout, name: str, adopted: Report | None = None) -> Documented:
    """Return what is known of an environment, with the report `adopted` as evidence or the committed one.

    Raises UserError where definition, lock or report is missing or invalid. A report of another lock is no evidence.
    """
    lock_files = LockFiles.of(checkout, name)
    lock = read_lock(lock_files)
    report = checkout.report(name)
    found = adopted or (read_report(checkout, name, report) if report.exists() else None)
    digest = files.hashed(lock_files.lock_json)
    proves = found and found.proves(lock, digest)
    evidence, audits = found if proves else None, tuple(_audits(checkout, name, digest))
    recorded = record.read(lock_files)
    images = {str(name): image.id for name, image in recorded.flavours.items()} if recorded and recorded.lock == digest else {}
    return Documented(definition.read(checkout, name), lock, evidence, audits, images)


def _audits(checkout: Checkout, name: str, digest: str) -> Iterator[Audit]:
    """Yield the recorded audits of an environment's lock, whose SHA-256 is `digest`, and of the Debian base's lock.

    Raises UserError where one is invalid. An audit of another lock says nothing of this one.
    """
    base = checkout.file(debian_lock.LOCK)
    for target, lock in ((name, digest), ("", files.hashed(base) if base.is_file() else "")):
        path = checkout.audit(target)
        if path.is_file():
            audit, _ = read_json(path, checkout.relative(path), Audit, f"run {as_typed('audit', name, '--record')}")
            if [(found.name, found.lock) for found in audit.targets] == [(target, lock)]:
                yield audit


def read_report(checkout: Checkout, name: str, path: Path) -> Report:
    """Return the report of an environment in the file `path`; raises UserError."""
    return reports.read(checkout, path, name, f"run {as_typed('smoke', name)} and pass its report.json with --report")


def installation(checkout: Checkout, shown: Documented) -> Installation | None:
    """Return the installation of an environment that `smoke` made, None without one."""
    lock_files = LockFiles.of(checkout, shown.name)
    locked = LockedEnvironment(shown.environment, shown.lock, lock_files, files.hashed(lock_files.lock_json))
    return activation.find(checkout, locked)


def row(shown: Documented) -> dict[str, Any]:
    """Return an environment as `list --json` prints it."""
    return {
        "name": shown.name,
        "stack": shown.stack,
        "cuda": shown.environment.stack.cuda.version,
        "cutoff": str(shown.lock.cutoff),
        "proven_on": shown.proven_on if shown.evidence else None,
    }


def details(checkout: Checkout, shown: Documented) -> dict[str, Any]:
    """Return an environment as `show --json` prints it: what is in it, and where its files are; None for what is not there."""
    stack, lock = shown.environment.stack, shown.lock
    last = checkout.build / "smoke" / shown.name / "report.json"
    installed = installation(checkout, shown)
    return row(shown) | {
        "model": {"class": stack.model.class_, "family": stack.model.family},
        "inherits": stack.stack,
        "python": lock.python,
        "platform": lock.platform,
        "also_locked_for": stack.packages.platforms,
        "download_bytes": lock.download,
        "left_out": {left_out.package: left_out.reason for left_out in stack.left_out},
        "pypi": _versions(lock.pip),
        "conda": _versions(lock.main),
        "devel": _versions(tuple(package for package in lock.conda if package.category == "devel")),
        "files": {
            "definition": str(checkout.environment(shown.name)),
            "inherited": str(checkout.stacks(shown.name) / stack.stack) if stack.stack else None,
            "lock": str(checkout.lock(shown.name)),
            "page": _existing(checkout.page(shown.name)),
            "evidence": str(checkout.report(shown.name)) if shown.evidence else None,
            "report": _existing(last),
            "installation": str(installed.folder) if installed else None,
        },
        "installation_current": installed.current if installed else None,
    }


def _versions(packages: "tuple[Any, ...]") -> Mapping[str, str]:
    return {package.name: package.version for package in packages}


def _existing(path: Path) -> str | None:
    return str(path) if path.exists() else None
