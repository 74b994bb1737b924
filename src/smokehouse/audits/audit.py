"""Audit the locks of environments and the lock of the Debian base."""

import re
from collections.abc import Sequence
from datetime import date

from smokehouse import locks
from smokehouse.audits import result
from smokehouse.audits.database import Database
from smokehouse.audits.model import Finding, Package, Target, merge
from smokehouse.audits.result import Audit, Audited
from smokehouse.audits.vex import Decision
from smokehouse.checkout import Checkout
from smokehouse.images import debian_lock
from smokehouse.storage import files


def targets(checkout: Checkout, names: Sequence[str]) -> list[Target]:
    """Return what to audit: the PyPI packages of the environments `names`, or of all, and the Debian base of images.

    Raises UserError where a lock is missing or invalid.
    """
    return [*(_environment(checkout, name) for name in names or checkout.environments()), _base(checkout)]


def suite(checkout: Checkout) -> str:
    """Return the release of Debian that the base is of; raises UserError."""
    return debian_lock.read_definition(checkout).suite


def audit_targets(
    audited: Sequence[Target], database: Database, decisions: Sequence[Decision], suite: str, today: date, *, whole: bool
) -> Audit:
    """Return which known vulnerabilities the targets have, with the decisions that hold `today`.

    `whole` says that the targets are all there are, so that a decision about none of their packages is out of date.
    """
    used: set[str] = set()
    found = []
    for target in audited:
        findings = [finding for package in target.packages for finding in merge(package, database.lookup(package, suite))]
        used |= {decision.place for decision in decisions for finding in findings if decision.applies_to(finding)}
        found.append(
            Audited(
                name=target.name,
                file=target.file,
                lock=target.digest,
                packages=len(target.packages),
                unaudited=sum(not database.covers(package, suite) for package in target.packages),
                found=[result.found(finding, _decision(finding, decisions, today)) for finding in findings],
            )
        )
    covered = {kind for kind, known in (("pypi", database.records), ("deb", database.issues)) if known is not None}
    packages = [package for target in audited for package in target.packages]
    problems = [f"{one.place}: expired on {one.expires}; decide again" for one in decisions if one.expires < today]
    for one in decisions:
        relevant = whole or any(one.is_about(package) for package in packages)
        asked = {re.split("[:/]", product)[1] for product in one.products} <= covered
        if relevant and asked and one.place not in used and one.expires >= today:
            names = ", ".join(sorted(one.names))
            problems.append(f"{one.place}: expected a finding of {names} in {', '.join(one.products)}, found none; remove it")
    return Audit(database=database.name, asked=database.asked, targets=found, problems=problems)


def _decision(finding: Finding, decisions: Sequence[Decision], today: date) -> Decision | None:
    """Return the first decision that applies to a finding and holds today."""
    return next((one for one in decisions if one.expires >= today and one.applies_to(finding)), None)


def _environment(checkout: Checkout, name: str) -> Target:
    locked = locks.load(checkout, name)
    pins = locked.files.pins
    packages = {
        file.name: Package("PyPI", file.name, file.version, file.name, file.version)
        for file in (*locked.lock.build, *locked.lock.pip)
    }
    return Target(name, pins.name, locked.digest, tuple(sorted(packages.values())), _lines(pins.path.read_text("utf-8"), "=="))


def _base(checkout: Checkout) -> Target:
    file = checkout.file(debian_lock.LOCK)
    packages = tuple(
        Package("Debian", package.name, package.version, package.source, package.source_version)
        for package in debian_lock.read(checkout)
    )
    return Target("", debian_lock.LOCK, files.hashed(file), packages, _lines(file.read_text("utf-8"), " "))


def _lines(text: str, separator: str) -> dict[str, int]:
    """Return the line, from 1, of each package in a file that pins them."""
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        if named := re.match(rf"([A-Za-z0-9][\w.+-]*){separator}", line):
            found[named[1]] = number
    return found
