"""A report is a proof only if it has all that the smoke test's plan makes, of this lock and of this time; else it says why."""

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from smoke_tests.report import changed_lock, lock_digests
from smokehouse.checkout import Checkout
from smokehouse.errors import UserError
from smokehouse.locks import LOCK_JSON
from smokehouse.runs import report as reports
from smokehouse.runs.complete import MAX_AGE, require_complete
from smokehouse.storage import strict_json

from . import complete_reports
from .complete_reports import NAME, ago, entry

Report = dict[str, Any]
Fault = Callable[[Report], object]


def judged(root: Path, text: str) -> None:
    """Read a report as publish does, and require that it is complete."""
    checkout = Checkout(root)
    found = reports.parse(checkout, text.encode("utf-8", "surrogatepass"), "report.json", "run it again")
    require_complete(checkout, found, complete_reports.locked(root), max_age=MAX_AGE)


def refusal(root: Path, made: Report) -> str:
    """Return why a report is refused; fails where it is not."""
    with pytest.raises(UserError) as refused:
        judged(root, json.dumps(made))
    said = str(refused.value)
    assert said.startswith("report.json: ")
    assert "run it again" in said
    return said


def test_a_complete_report_is_a_proof(root: Path) -> None:
    made = complete_reports.report(root)
    judged(root, json.dumps(made))
    # Earlier reports list no legs.
    judged(root, json.dumps({name: value for name, value in made.items() if name != "legs"}))


def test_each_check_and_control_of_the_plan_has_to_be_there(root: Path) -> None:
    made = complete_reports.report(root)
    assert len(made["checks"]) > 40
    for missing in made["checks"]:
        left = made | {"checks": [check for check in made["checks"] if check is not missing]}
        stage = f" (ZeRO-{missing['zero_stage']})" if missing["zero_stage"] else ""
        assert f"found none of {missing['name']}{stage};" in refusal(root, left)


def test_each_check_has_to_have_passed_on_each_rank(root: Path) -> None:
    made = complete_reports.report(root)
    for number, check in enumerate(made["checks"]):
        for verdict in ("known-issue", "observed", "failed"):
            if (check["name"], verdict) == ("mixed modality", "known-issue"):  # a known issue of this stack
                continue
            ranks = [rank | {"verdict": verdict} for rank in check["ranks"]]
            broken = [*made["checks"]]
            broken[number] = check | {"verdict": verdict, "ranks": ranks}
            said = refusal(root, made | {"checks": broken})
            assert "failed" in said if verdict == "failed" else f"a check that passed, found {verdict}" in said


def set_all(verdict: str) -> Fault:
    """Give every check that verdict, on every rank."""

    def fault(made: Report) -> None:
        for check in made["checks"]:
            check["verdict"] = verdict
            for rank in check["ranks"]:
                rank["verdict"] = verdict

    return fault


def in_check(name: str, stage: int | None, change: Callable[[Report], object]) -> Fault:
    """Change one check."""
    return lambda made: change(entry(made, name, stage))


def of_rank(number: int, **changes: Any) -> Callable[[Report], object]:
    """Change what a check says of a rank."""
    return lambda check: check["ranks"][number].update(changes)


def on(backend: str = "gloo", ranks: int = 2, gpus: int = 0) -> Report:
    """What a report says of a run on one such leg."""
    leg = {"name": f"{backend} x{ranks}", "backend": backend, "world_size": ranks, "gpus": gpus}
    return {"backend": backend, "world_size": ranks, "legs": [leg]}


def cards(count: int) -> Report:
    """What a report says of so many GPUs."""
    card = {"index": 0, "name": "a GPU", "capability": "9.0", "memory_bytes": 1 << 36, "mig": False}
    listed = [card | {"index": number, "uuid_sha256": f"{number:016x}"} for number in range(count)]
    return {"driver": "550.54", "driver_cuda": "12.4", "cards": listed, "links": []}


TWICE = {"name": "gloo x2", "backend": "gloo", "world_size": 2, "gpus": 0}
FAULTS: dict[str, tuple[Fault, str]] = {
    "one check alone": (lambda made: made.update(checks=made["checks"][:1]), "found none of "),
    "one check on one rank": (
        lambda made: made.update(on(ranks=1), checks=[made["checks"][0]]),
        "expected a report of two ranks or more, found one of one rank",
    ),
    "no controls": (
        lambda made: made.update(checks=[check for check in made["checks"] if check["kind"] == "check"]),
        "found none of missing key (ZeRO-3)",
    ),
    "controls as checks": (
        lambda made: [check.update(kind="check") for check in made["checks"]],
        "expected a control, found a check",
    ),
    "all known issues": (set_all("known-issue"), "expected a check that passed, found known-issue"),
    "all observed": (set_all("observed"), "expected a check that passed, found observed"),
    "not run at all": (
        lambda made: made.update(not_run=[{"name": check["name"], "reason": "-"} for check in made["checks"]], checks=[]),
        "invalid report: checks",
    ),
    "known issue over failed ranks": (
        in_check("mixed modality", 3, of_rank(1, verdict="failed")),
        "mixed modality (ZeRO-3): expected failed, the verdict of its worst rank, found known-issue",
    ),
    "passed over a known issue": (
        in_check("mixed modality", 3, lambda check: check.update(verdict="passed")),
        "invalid report: ",
    ),
    "a check twice": (lambda made: made["checks"].append(made["checks"][3]), "expected each check once"),
    "an unknown check": (
        lambda made: made["checks"].append(made["checks"][3] | {"name": "nonsense"}),
        "expected checks and controls of the smoke test, found nonsense",
    ),
    "a rank missing": (in_check("load", 2, lambda check: check["ranks"].pop()), "expected verdicts of ranks 0 to 1, found 0;"),
    "a rank twice": (in_check("load", 2, of_rank(1, rank=0)), "expected verdicts of ranks 0 to 1, found 0, 0;"),
    "a rank too many": (
        in_check("load", 2, lambda check: check["ranks"].append(check["ranks"][0] | {"rank": 2})),
        "expected verdicts of ranks 0 to 1, found 0, 1, 2;",
    ),
    "more ranks than it has": (lambda made: made.update(on(ranks=4)), "expected verdicts of ranks 0 to 3, found 0, 1;"),
    "another device": (
        lambda made: made.update(on(gpus=2), device="cuda", precision="bf16", gpu=cards(2)),
        "found none of kernels",
    ),
    "GPUs that nobody saw": (
        lambda made: made.update(on(gpus=2), device="cuda", precision="bf16"),
        "gpu: expected the GPUs that the run was on, found none",
    ),
    "fewer GPUs than it ran on": (
        lambda made: made.update(on(gpus=2), device="cuda", precision="bf16", gpu=cards(1)),
        "legs: expected what cuda with 1 GPUs can run, found 2 ranks on 2 GPUs",
    ),
    "GPUs that are not there": (
        lambda made: made.update(on(gpus=2), device="cuda", gpu=cards(0)),
        "gpu: expected the GPUs that the run was on, found none",
    ),
    "another precision": (lambda made: made.update(precision="bf16"), "expected fp32 on cpu, found bf16"),
    "another backend": (lambda made: made.update(on("nccl")), "legs: expected a GPU for each of 2 ranks with NCCL"),
    "another leg": (lambda made: made.update(legs=[TWICE | {"world_size": 3}]), "legs: expected gloo with 2 ranks first"),
    "a leg twice": (lambda made: made.update(legs=[TWICE, TWICE]), "legs: expected gloo with 2 ranks first and each once"),
    "a leg of another name": (
        lambda made: made.update(legs=[TWICE | {"name": "x"}]),
        "legs: expected gloo x2, found other names",
    ),
    "GPUs on a CPU": (lambda made: made.update(legs=[TWICE | {"gpus": 2}]), "legs: expected what cpu with 0 GPUs can run"),
    "another environment": (lambda made: made.update(environment="vlm-r1"), f"environment '{NAME}', found one of 'vlm-r1'"),
    "no requirements": (lambda made: made["lock"].pop("requirements.txt"), "invalid report: lock"),
    "a file more than the lock": (
        lambda made: made["lock"].update({"extra.txt": "0" * 64}),
        "expected a report of extra.txt (not in this lock), found one of 000",
    ),
    "no versions": (lambda made: made.update(versions={}), "expected a report of torch "),
    "another CUDA": (
        lambda made: made["versions"].update(cuda="11.8"),
        "expected a report of torch for CUDA 12.4, found one for 11.8",
    ),
    "another Python": (lambda made: made["versions"].update(python="3.11.1"), "expected a report of Python 3.11."),
    "1970": (lambda made: made.update(started="1970-01-01T00:00:00+00:00"), "expected a run after the lock's cut-off"),
    "the cut-off day": (
        lambda made: made.update(started="2025-03-15T12:00:00+00:00"),
        "expected a run after the lock's cut-off",
    ),
    "no date": (lambda made: made.update(started="yesterday"), "expected a date and time with its zone, found 'yesterday'"),
    "no zone": (lambda made: made.update(started=ago(timedelta(hours=1))[:19]), "expected a date and time with its zone"),
    "the future": (lambda made: made.update(started=ago(-timedelta(days=1))), "expected a run in the past"),
    "ends in the future": (lambda made: made.update(seconds=86400.0), "expected a run in the past"),
    "too old": (lambda made: made.update(started=ago(MAX_AGE + timedelta(hours=1))), "expected a run of the last 90 days"),
    "shorter than its checks": (
        lambda made: in_check("load", 2, lambda check: check.update(seconds=90.0))(made),
        "expected at least the ",
    ),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_report_that_proves_nothing_is_refused(root: Path, kind: str) -> None:
    fault, said = FAULTS[kind]
    made = complete_reports.report(root)
    fault(made)
    found = refusal(root, made)
    assert any(part in found for part in said.split("|")), found


@pytest.mark.parametrize("separator", ["\n", " ", "|", "\u2028", "`", "\u0e01"])
def test_a_date_has_one_form(root: Path, separator: str) -> None:
    """Python reads any character between date and time, and it is printed on pages."""
    made = complete_reports.report(root)
    assert "started" in refusal(root, made | {"started": made["started"].replace("T", separator)})


def whole_numbers(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of each whole number in a document."""
    if isinstance(value, dict | list):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from whole_numbers(one, (*place, key))
    elif type(value) is int:
        yield place


def test_whole_numbers_are_written_as_such(root: Path) -> None:
    """2.0 is equal to 2 in every comparison, and another word on a page."""
    made = complete_reports.report(root)
    places = [*whole_numbers(made)]
    assert {place[-1] for place in places} >= {"world_size", "rank", "zero_stage"}
    for place in {place[-1]: place for place in places}.values():
        changed = copy.deepcopy(made)
        holder: Any = changed
        for key in place[:-1]:
            holder = holder[key]
        holder[place[-1]] = float(holder[place[-1]])
        assert "is not of type 'integer'" in refusal(root, changed)


def test_each_digest_and_version_is_compared_with_the_lock(root: Path) -> None:
    made = complete_reports.report(root)
    for name in made["lock"]:
        changed = made | {"lock": made["lock"] | {name: "0" * 64}}
        assert f"expected a report of {name} " in refusal(root, changed)
        if name not in ("requirements.txt", LOCK_JSON):
            left = {other: digest for other, digest in made["lock"].items() if other != name}
            assert f"expected a report of {name} " in refusal(root, made | {"lock": left})
    for name in ("torch", "transformers", "deepspeed"):
        locked = made["versions"][name].partition("+")[0]
        for version in ("0.0.1", None, "nonsense", f"{locked}+cpu", f"{locked}+cu999", f"{locked}.dev1", f"{locked}.post1"):
            changed = made | {"versions": made["versions"] | {name: version}}
            assert f"expected a report of {name} " in refusal(root, changed)


BAD_JSON: dict[str, tuple[Callable[[str], str], str]] = {
    "a verdict twice": (
        lambda text: text.replace('"verdict"', '"verdict": "failed", "verdict"', 1),
        "key 'verdict' occurs twice",
    ),
    "a byte-order mark": (lambda text: "\ufeff" + text, "byte-order mark"),
    "NaN": (lambda text: text.replace('"seconds": ', '"seconds": NaN, "x": ', 1), "NaN is not a number of JSON"),
    "Infinity": (lambda text: text.replace('"seconds": ', '"seconds": -Infinity, "x": ', 1), "-Infinity is not a number"),
    "a float out of range": (lambda text: text.replace('"seconds": ', '"seconds": 1e999, "x": ', 1), "1e999 is out of range"),
    "5,000 digits": (lambda text: text.replace('"seconds": ', f'"seconds": {"9" * 5000}, "x": ', 1), "number of 5000 digits"),
    "depth": (
        lambda text: text.replace('"seconds": ', f'"x": {"[" * 65 + "]" * 65}, "seconds": ', 1),
        "more than 64 levels deep",
    ),
    "invalid UTF-8": (lambda text: text.replace("passed", "pass\udcffed", 1), "invalid UTF-8 at byte "),
    "two documents": (lambda text: text + "{}", "Extra data"),
    "cut": (lambda text: text[:-2], "not JSON"),
    "empty": (lambda text: "", "not JSON"),
}


@pytest.mark.parametrize("kind", BAD_JSON)
def test_what_readers_of_json_disagree_on_is_refused(root: Path, kind: str) -> None:
    fault, said = BAD_JSON[kind]
    with pytest.raises(UserError, match=f"^report.json: invalid report: not JSON .*{said if said != 'not JSON' else ''}"):
        judged(root, fault(json.dumps(complete_reports.report(root))))


VALUES = some.recursive(
    some.none()
    | some.booleans()
    | some.integers(-(2**53), 2**53)
    | some.floats(allow_nan=False, allow_infinity=False)
    | some.text(),
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(some.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(VALUES)
def test_strict_reader_reads_what_is_written(value: object) -> None:
    assert strict_json.parse(json.dumps(value, indent=1).encode()) == value


@settings(deadline=None)
@given(some.binary(max_size=200) | some.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_strict_reader_raises_nothing_but_a_sentence(data: bytes) -> None:
    with suppress(ValueError):
        strict_json.parse(data)


@pytest.mark.parametrize("edit", ["change", "add", "remove", "remove all"])
def test_a_lock_that_changes_during_a_run_is_not_what_was_tested(root: Path, tmp_path: Path, edit: str) -> None:
    lock = tmp_path / "lock"
    shutil.copytree(root / "lockfiles" / NAME, lock)
    before = lock_digests(lock)
    assert changed_lock(lock, before) == ""
    file = lock / ("requirements.txt" if edit != "add" else "added.txt")
    if edit == "remove all":
        shutil.rmtree(lock)
    elif edit == "remove":
        file.unlink()
    else:
        file.write_text("foreign")
    said = changed_lock(lock, before)
    assert said.startswith(str(lock if edit == "remove all" else file))
    assert said.endswith("; run it again")


@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("cleared", "NCCL_DEBUG"),
        ("cleared", "HOME"),
        ("kept", "ACCELERATE_MIXED_PRECISION"),
        ("kept", "PYTHONPATH"),
        ("kept", "TORCH_LOGS"),
    ],
)
def test_variables_are_those_that_a_run_clears_and_keeps(
    root: Path, what: str, name: str, record_property: Callable[[str, object], None]
) -> None:
    record_property("fault", "variables of a report")
    made = complete_reports.report(root)
    usual = {"cleared": ["ACCELERATE_USE_DEEPSPEED", "PYTHONWARNINGS"], "kept": ["LD_PRELOAD", "NCCL_P2P_DISABLE"]}
    judged(root, json.dumps(made | {"variables": usual}))
    said = refusal(root, made | {"variables": usual | {what: [*usual[what], name]}})
    assert f"variables: expected those that a run has {what}, found {name}" in said
    kept = reports.parse(Checkout(root), json.dumps(made | {"variables": usual}).encode(), "report.json", "x")
    assert kept.limits[-1] == "with LD_PRELOAD, NCCL_P2P_DISABLE set, which may change the outcome"
    assert ", with LD_PRELOAD, NCCL_P2P_DISABLE set, " in kept.summary
    assert "variables that were cleared: ACCELERATE_USE_DEEPSPEED, PYTHONWARNINGS\n" in kept.table


# A run whose ranks do nothing but change the lock: what it was bound to at its start is what counts. Without torch there are
# no verdicts, so one check is passed in their place.
WIRED = """
import sys, time, types
from pathlib import Path
from smoke_tests import deferred, options, plan, preflight, run
from smoke_tests.legs import Leg
from smoke_tests.report import RankVerdict, Result

class Verdicts:
    def __init__(self, *_, **__): pass
    def finish(self, missing):
        return [Result("load", 3, "check", "passed", 1.0, [RankVerdict(0, "passed", "")], "", "", "", "")]
    def backend(self): return "gloo"
    def versions(self): return {}
    def memory(self): return []
    def not_run(self): return []
    def failed_jobs(self): return []

sys.modules["smoke_tests.verdicts"] = types.SimpleNamespace(Verdicts=Verdicts)

folder, edit = Path(sys.argv[1]), sys.argv[2]
preflight.check = lambda options, work: preflight.Resources("cpu", (Leg("gloo", 2),), 60.0, None)
plan.make = lambda *_, **__: plan.Plan((), ())
run._chosen = lambda *_: []
deferred.import_all = lambda functions: None

def supervise(*_):
    if edit:
        (folder / edit).write_bytes(b"of another lock")
    return ""

run._supervise = supervise
given = ["--environment", "qwen2.5-vl", "--stack", sys.argv[3], "--lock", str(folder)]
given += ["--device", "cpu", "--report", sys.argv[4]]
sys.exit(run.smoke(options.read(given), time.monotonic()))
"""


@pytest.mark.parametrize("edit", ["", "lock.json", "requirements.txt", "added.txt"])
def test_a_run_is_bound_to_the_lock_that_it_began_with(
    root: Path, tmp_path: Path, edit: str, record_property: Callable[[str, object], None]
) -> None:
    record_property("fault", "a lock that changes during a run")
    lock, place = tmp_path / "lock", tmp_path / "report"
    shutil.copytree(root / "lockfiles" / NAME, lock)
    before = lock_digests(lock)
    stack = str(root / "environments" / NAME / "stack.toml")
    environ = {**os.environ, "PYTHONPATH": str(root / "src")}
    command = [sys.executable, "-c", WIRED, str(lock), edit, stack, str(place)]
    ended = subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True, timeout=120)
    assert ended.returncode == int(bool(edit)), ended.stderr
    found = json.loads((place / "report.json").read_text())
    assert (found["lock"], found["verdict"]) == (before, "failed" if edit else "passed")
    said = f"{lock / edit}: expected the file that the run began with, found another; run it again" if edit else ""
    assert found["failure"] == said


def test_a_report_that_is_a_pipe_is_refused(root: Path, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """As an image could leave one in the folder that its container writes to."""
    record_property("fault", "report that is no file")
    os.mkfifo(tmp_path / "report.json")
    with pytest.raises(UserError, match=r"report\.json: cannot read the report \(expected a regular file\); run it again"):
        reports.read(Checkout(root), tmp_path / "report.json", NAME, "run it again")


def test_pages_take_nothing_but_a_proof(root: Path, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """`docs --report` adopts a complete report; one with a single check, which `publish` refuses, is no evidence either."""
    for part in ("environments", "lockfiles", "smoke_tests", "docker"):
        shutil.copytree(root / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "README.md", tmp_path)
    (tmp_path / "src").symlink_to(root / "src")
    (tmp_path / "packages").symlink_to(root / "packages")
    command = [sys.executable, "-m", "smokehouse", "docs", NAME, "--report", "report.json"]
    environ = {**os.environ, "PYTHONPATH": str(root / "src")}

    def adopt(made: Report) -> subprocess.CompletedProcess[str]:
        (tmp_path / "report.json").write_text(json.dumps(made))
        return subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120)

    made = complete_reports.report(root)
    page = tmp_path / "docs" / "environments" / f"{NAME}.md"
    for fault in (made | {"checks": made["checks"][:1]}, made | {"started": ago(MAX_AGE + timedelta(days=1))}):
        record_property("fault", "a page of what proves nothing")
        ended = adopt(fault)
        assert (ended.returncode, ended.stderr.count("\n"), page.exists()) == (2, 1, False), ended.stderr
    ended = adopt(made)
    assert ended.returncode == 0, ended.stderr
    assert page.exists()


def test_a_lock_without_a_package_has_a_plan_too(root: Path) -> None:
    """As locks of a few small packages have, with which images are tested."""
    leg = {"backend": "gloo", "world_size": 2, "gpus": 0}
    request = {"device": "cpu", "legs": [leg], "expectations": {"gloo_race": "present"}, "versions": {}, "family": "qwen2_5_vl"}
    ended = subprocess.run(
        [sys.executable, "-m", "smoke_tests.expected"],
        input=json.dumps(request),
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root / "src")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    assert len(json.loads(ended.stdout)["checks"]) > 20
