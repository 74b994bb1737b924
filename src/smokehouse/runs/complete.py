"""Decide whether a report is complete: the evidence that the smoke test of an environment leaves when nothing was left out.

The smoke test's own plan says which checks and controls there have to be, for the report's device and legs. Verdicts are
derived again from those of the ranks, and digests, versions and dates are compared with the lock.
"""

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from smokehouse.checkout import Checkout
from smokehouse.errors import UserError
from smokehouse.locks import LOCK_JSON, LockedEnvironment
from smokehouse.programs.process import run
from smokehouse.runs.report import Report
from smokehouse.storage import files, strict_json

# A report is published soon after its run: drivers and kernels move on, and the proof with them.
MAX_AGE = timedelta(days=90)
_CLOCK_ERROR = timedelta(minutes=10)  # by which the clocks of two machines may differ
_PLAN_DEADLINE = 60.0  # seconds
# Python reads more, such as any character between date and time, and pages print it.
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]+)?([+-][0-9]{2}:[0-9]{2}|Z)")
_PACKAGES = ("torch", "transformers", "deepspeed")  # whose versions a report has as they were imported
# From the worst: the verdict of a check is that of its worst rank.
_ORDER = ("failed", "observed", "known-issue", "passed")
_SHOWN = 4  # names in a message
_MOST_LEGS = 4


@dataclass(frozen=True)
class _Leg:
    """A leg of a run, as the smoke test's plan takes it."""

    backend: str
    world_size: int
    gpus: int
    nodes: int = 1


def require_complete(checkout: Checkout, report: Report, locked: LockedEnvironment, *, max_age: timedelta | None) -> None:
    """Raise UserError where `report` is not complete, or not of `locked`; with `max_age`, also where it is older."""
    problems = (
        _wrong_lock(report.fields, locked),
        _wrong_version(report.fields, locked),
        _wrong_date(report.fields, locked, max_age),
        _wrong_leg(report.fields),
    )
    problem = next(filter(None, problems), "") or _wrong_check(report.fields, _plan(checkout, report, locked))
    if problem:
        raise UserError(f"{report.source}: {problem}; {report.remedy}")


def _wrong_lock(fields: Mapping[str, Any], locked: LockedEnvironment) -> str:
    if fields["environment"] != locked.name:
        return f"expected a report of environment {locked.name!r}, found one of {fields['environment']!r}"
    expected = {**locked.lock.files, LOCK_JSON: locked.digest}
    if locked.files.constraints.is_file():  # derived from the lock, which has no digest of it
        expected[locked.files.constraints.name] = files.hashed(locked.files.constraints)
    optional = {locked.files.constraints.name}
    for name in sorted(expected.keys() | fields["lock"].keys()):
        found, digest = fields["lock"].get(name), expected.get(name)
        if found != digest and (found or name not in optional):
            return f"expected a report of {name} {digest or '(not in this lock)'}, found one of {found or 'none'}"
    return ""


def _wrong_version(fields: Mapping[str, Any], locked: LockedEnvironment) -> str:
    versions: Mapping[str, str | None] = fields["versions"]
    of_lock = {package.name: package.version for package in locked.lock.pip}
    for name in _PACKAGES:
        build = f"cu{locked.cuda.replace('.', '')}" if name == "torch" else ""
        if not _is_same(versions.get(name), of_lock.get(name), build):
            found, expected = versions.get(name) or "none", of_lock.get(name) or "none"
            return f"expected a report of {name} {expected}, as locked, found one of {found}"
    python, found = locked.lock.python, versions.get("python") or "none"
    if "image" in fields:  # outside an image the machine's own Python of that release may run
        python = next((package.version for package in locked.lock.conda if package.name == "python"), python)
    if found != python and not ("image" not in fields and found.startswith(f"{python}.")):
        return f"expected a report of Python {python}, as locked, found one of {found}"
    if "torch" in of_lock and versions.get("cuda") != locked.cuda:
        return f"expected a report of torch for CUDA {locked.cuda}, found one for {versions.get('cuda') or 'none'}"
    return ""


def _is_same(found: str | None, locked: str | None, build: str) -> bool:
    """Return whether a version is the locked one; to what an index calls it, torch adds the `build` as a local part."""
    try:
        one, other = (Version(version) if version else None for version in (found, locked))
    except InvalidVersion:
        return False
    return one == other or bool(one and other and one == Version(f"{other.public}+{build}" if build else other.public))


def _wrong_date(fields: Mapping[str, Any], locked: LockedEnvironment, max_age: timedelta | None) -> str:
    text = fields["started"]
    try:
        started = datetime.fromisoformat(text) if _DATE.fullmatch(text) else None
    except ValueError:
        started = None
    if started is None:
        return f"started: expected a date and time with its zone, found {text!r}"
    now = datetime.now(UTC)
    slowest = max((check["seconds"] for check in fields["checks"]), default=0.0)
    if slowest > fields["seconds"] + 1:
        return f"seconds: expected at least the {slowest} of its slowest check, found {fields['seconds']}"
    if fields["seconds"] > MAX_AGE.total_seconds() or started - now + timedelta(seconds=fields["seconds"]) > _CLOCK_ERROR:
        return f"started: expected a run in the past, found {text}; set this machine's clock, or do not trust the report"
    if started < locked.environment.inputs.before:
        return f"started: expected a run after the lock's cut-off {locked.lock.cutoff}, found {text}"
    if max_age and now - started > max_age:
        return f"started: expected a run of the last {max_age.days} days, found {text}"
    return ""


def _legs(fields: Mapping[str, Any]) -> list[_Leg]:
    """Return the legs of a run; a report from before 2026 has one, and does not list it."""
    if "legs" in fields:
        return [_Leg(leg["backend"], leg["world_size"], leg["gpus"], leg.get("nodes", 1)) for leg in fields["legs"]]
    gpus = fields["world_size"] if fields["device"] == "cuda" else 0
    return [_Leg(fields["backend"], fields["world_size"], gpus)]


def _wrong_leg(fields: Mapping[str, Any]) -> str:
    """Return why no run has these legs, or why they show nothing; empty where they are right."""
    legs, device = _legs(fields), fields["device"]
    first = _Leg(fields["backend"], fields["world_size"], legs[0].gpus, legs[0].nodes)
    if legs[0] != first or len({*legs}) != len(legs) or len(legs) > _MOST_LEGS:
        return f"legs: expected {first.backend} with {first.world_size} ranks first and each once, found others"
    if max(leg.world_size for leg in legs) < 2:
        return "expected a report of two ranks or more, found one of one rank, which partitions and reduces nothing"
    cards = len((fields.get("gpu") or {}).get("cards", [])) if device == "cuda" else 0
    if device == "cuda" and not cards:
        return "gpu: expected the GPUs that the run was on, found none"
    for leg in legs:
        if leg.nodes != len(fields.get("nodes", [None])) or leg.world_size % leg.nodes:
            return (
                f"legs: expected the nodes of the report, each with as many ranks, found {leg.nodes} in {leg.world_size} ranks"
            )
        if leg.backend == "nccl" and leg.gpus != leg.world_size:
            return f"legs: expected a GPU for each of {leg.world_size} ranks with NCCL, found {leg.gpus}"
        if bool(leg.gpus) != (device == "cuda") or leg.gpus > leg.world_size or leg.gpus > cards * leg.nodes:
            return f"legs: expected what {device} with {cards} GPUs can run, found {leg.world_size} ranks on {leg.gpus} GPUs"
    return ""


def _plan(checkout: Checkout, report: Report, locked: LockedEnvironment) -> Mapping[str, Any]:
    """Return what the smoke test's plan says of a complete report; raises UserError.

    The builder never imports the smoke test; its planner needs nothing but Python and the loader.
    """
    stack, fields = locked.environment.stack, report.fields
    request = {
        "device": fields["device"],
        "legs": [vars(leg) for leg in _legs(fields)],
        "expectations": stack.expectations.model_dump(exclude_unset=True),
        "family": stack.model.family,
        "versions": {package.name: package.version for package in locked.lock.pip if package.name in _PACKAGES},
    }
    return _ask_planner(checkout.file("smoke_tests").parent, checkout.loader(), json.dumps(request))


@cache
def _ask_planner(place: Path, loader: Path, request: str) -> Mapping[str, Any]:
    environ = {"PATH": os.environ.get("PATH", os.defpath), "PYTHONUTF8": "1", "PYTHONPATH": str(loader)}
    command = [sys.executable, "-B", "-m", "smoke_tests.expected"]
    ended = run(command, deadline=_PLAN_DEADLINE, environ=environ, cwd=place, stdin=request)
    if ended.code:
        said = ended.stderr.splitlines()[-1:]
        raise UserError(f"{place}: cannot plan the smoke test: {' '.join(said)}; restore smoke_tests/")
    try:
        planned: Mapping[str, Any] = strict_json.parse(ended.stdout)
        if not planned["checks"] or not planned["names"]:  # of which every report would have all
            raise ValueError("no checks")
    except (ValueError, TypeError, KeyError) as wrong:
        raise UserError(f"{place}: cannot plan the smoke test: expected checks, found {wrong}; restore smoke_tests/") from None
    return planned


def _wrong_check(fields: Mapping[str, Any], planned: Mapping[str, Any]) -> str:
    """Return how the checks of a report differ from those of its plan; empty where they do not."""
    if fields["precision"] != planned["precision"]:
        return f"expected {planned['precision']} on {fields['device']}, found {fields['precision']}"
    if "legs" in fields and [leg["name"] for leg in fields["legs"]] != planned["legs"]:
        return f"legs: expected {', '.join(planned['legs'])}, found other names"
    for what, names in fields.get("variables", {}).items():
        if strange := [name for name in names if not name.startswith(tuple(planned["variables"][what]))]:
            return f"variables: expected those that a run has {what}, found {', '.join(strange[:_SHOWN])}"
    found = {_key(check): check for check in fields["checks"]}
    if len(found) != len(fields["checks"]):
        return "checks: expected each check once for each stage and leg, found one twice"
    expected = {_key(check): check for check in planned["checks"]}
    if missing := [key for key in expected if key not in found]:
        return f"expected all {len(expected)} checks and controls of the plan, found none of {_named(missing)}"
    if strangers := [key for key in found if key[0] not in planned["names"]]:
        return f"expected checks and controls of the smoke test, found {_named(strangers)}"
    return next(_problems(found, expected), "")


def _problems(
    found: Mapping[tuple[Any, ...], Mapping[str, Any]], expected: Mapping[tuple[Any, ...], Mapping[str, Any]]
) -> Iterator[str]:
    for key, check in found.items():
        plan, ranks = expected.get(key), check["ranks"]
        name = _named([key])
        if plan and check["kind"] != plan["kind"]:
            yield f"{name}: expected a {plan['kind']}, found a {check['kind']}"
        count = plan["ranks"] if plan else len(ranks)
        if not ranks or [rank["rank"] for rank in ranks] != [*range(count)]:
            yield f"{name}: expected verdicts of ranks 0 to {count - 1}, found {_ranks(ranks) or 'none'}"
            return
        verdict = min((rank["verdict"] for rank in ranks), key=_ORDER.index)
        if verdict != check["verdict"]:
            yield f"{name}: expected {verdict}, the verdict of its worst rank, found {check['verdict']}"
        if verdict != "passed" and not (plan and plan["known_issue"] and verdict == "known-issue"):
            yield f"{name}: expected a check that passed, found {verdict}"


def _ranks(ranks: Sequence[Mapping[str, Any]]) -> str:
    numbers = [str(rank["rank"]) for rank in ranks]
    return ", ".join(numbers[:_SHOWN]) + (f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else "")


def _key(check: Mapping[str, Any]) -> tuple[str, int | None, str]:
    return check["name"], check["zero_stage"], check.get("leg", "")


def _named(keys: Sequence[tuple[Any, ...]]) -> str:
    """Return checks in words, the first few of many."""
    names = [
        " ".join(filter(None, [str(name), f"(ZeRO-{stage})" if stage else "", f"on {leg}" if leg else ""]))
        for name, stage, leg in keys[:_SHOWN]
    ]
    return ", ".join(names) + (f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else "")
