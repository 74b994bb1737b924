"""No check passes because there was nothing to check: empty, missing, killed, silent, of another kind or another time."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from smokehouse.audits import audit
from smokehouse.audits.database import Database
from smokehouse.audits.model import Target
from smokehouse.audits.result import Audit
from smokehouse.checkout import Checkout
from smokehouse.errors import UserError
from smokehouse.images import debian_lock
from smokehouse.installs import activation, conda_packages, machine, state
from smokehouse.locks import lock_all
from smokehouse.matrix import grid, store
from smokehouse.pages import catalog
from smokehouse.programs import cosign as cosign_program
from smokehouse.proofs import signing
from smokehouse.proofs.signing import ForeignError, Signer
from smokehouse.runs import complete, kubernetes, slurm
from smokehouse.runs.kubernetes_job import Job
from smokehouse.runs.slurm_job import Result
from smokehouse.runs.slurm_queue import Allocation, Submitted
from smokehouse.storage import files

from ..unit.audits import records
from ..unit.matrix import made
from . import complete_reports

RECORD = Callable[[str, object], None]
ZERO = {"introduced": "0"}

# audits

OTHER_EXPORT = records.osv("GHSA-1", "left-pad", ZERO)
OTHER_EXPORT["affected"][0]["package"]["ecosystem"] = "npm"
RESOLVED = records.tracker("util-linux", "CVE-1", status="resolved", fixed_version="0")
EMPTY_DATABASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any], str]] = {
    "an export of another ecosystem": ([OTHER_EXPORT], RESOLVED, "PyPI"),
    "an empty tracker": ([records.osv("A", "x", ZERO)], {}, "Debian"),
    "a tracker of another release": (
        [records.osv("A", "x", ZERO)],
        json.loads(json.dumps(RESOLVED).replace("bookworm", "sid")),
        "Debian",
    ),
    "a tracker without releases": ([records.osv("A", "x", ZERO)], {"zlib": {"CVE-2": {"releases": {}}}}, "Debian"),
    "a tracker of lists": ([records.osv("A", "x", ZERO)], {"zlib": [], "acl": {"CVE-2": []}}, "Debian"),
}


def audited(folder: Path) -> Audit:
    """Audit a PyPI package and a Debian one with the database in a folder."""
    packages = (records.TORCH, records.BSDUTILS)
    target = Target("x", "x", "0" * 64, packages)
    return audit.audit_targets([target], Database.read(folder, packages), [], "bookworm", date.today(), whole=True)


@pytest.mark.parametrize("kind", EMPTY_DATABASES)
def test_a_database_that_knows_nothing_audits_nothing(kind: str, tmp_path: Path, record_property: RECORD) -> None:
    record_property("fault", "a database that knows nothing")
    of_pypi, tracker, ecosystem = EMPTY_DATABASES[kind]
    [target] = audited(records.database(tmp_path, of_pypi, tracker)).targets
    assert target.unaudited == 1, ecosystem
    [whole] = audited(records.database(tmp_path / "whole", [records.osv("A", "x", ZERO)], RESOLVED)).targets
    assert whole.unaudited == 0


LATER = (datetime.now(UTC) + timedelta(days=400)).isoformat()
UNSURE: dict[str, dict[str, Any]] = {
    "withdrawn in a year": records.osv("A", "torch", ZERO, withdrawn=LATER),
    "withdrawn at no time": records.osv("A", "torch", ZERO, withdrawn="yes"),
    "neither versions nor ranges": records.osv("A", "torch"),
}


@pytest.mark.parametrize("kind", UNSURE)
def test_what_cannot_be_excluded_is_reported(kind: str, tmp_path: Path, record_property: RECORD) -> None:
    record_property("fault", "a record that excludes nothing")
    found = audited(records.database(tmp_path, [UNSURE[kind]], RESOLVED))
    assert [one.id for one in found.targets[0].found] == ["A"]


def test_resolved_in_no_version_is_not_resolved(tmp_path: Path, record_property: RECORD) -> None:
    record_property("fault", "a record that excludes nothing")
    found = audited(records.database(tmp_path, [OTHER_EXPORT], records.tracker("util-linux", "CVE-1", status="resolved")))
    assert [(one.id, one.note) for one in found.targets[0].found] == [
        ("CVE-1", "Debian does not say which version resolved it, so it cannot be excluded")
    ]


def test_a_database_is_as_old_as_its_older_half(tmp_path: Path, record_property: RECORD) -> None:
    record_property("fault", "a database that knows nothing")
    folder = records.database(tmp_path, [records.osv("A", "x", ZERO)], RESOLVED)
    os.utime(folder / "debian.json", (10**9, 10**9))
    assert audited(folder).asked == "2001-09-09T01:46:40Z"


def test_an_audit_of_nothing_is_on_no_page(root: Path, tmp_path: Path, record_property: RECORD) -> None:
    record_property("fault", "an audit of nothing")
    checkout = made_checkout(root, tmp_path)
    whole = audited(records.database(tmp_path / "known", [records.osv("A", "x", ZERO)], RESOLVED))
    digest = files.hashed(checkout.lock(complete_reports.NAME) / "lock.json")
    right = whole.targets[0].model_copy(update={"name": complete_reports.NAME, "lock": digest})
    for targets, count in (([right], 1), ([], 0), ([right, right], 0)):
        files.write(checkout.audit(complete_reports.NAME), whole.model_copy(update={"targets": targets}).text())
        assert len(catalog.read(checkout, complete_reports.NAME).audits) == count


def made_checkout(root: Path, place: Path) -> Checkout:
    """Return a checkout of the committed environment alone."""
    for part in (f"environments/{complete_reports.NAME}", "environments/stacks", f"lockfiles/{complete_reports.NAME}"):
        target = place / part
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(root / part, target)
    for part in ("docker", "smoke_tests", "packages"):
        (place / part).symlink_to(root / part, target_is_directory=True)
    return Checkout(place)


# locks


def without(name: str) -> Callable[[list[str]], list[str]]:
    """Take a package away."""
    return lambda lines: [line for line in lines if not line.startswith(f"{name} ")]


BASE: dict[str, Callable[[list[str]], list[str]]] = {
    "no packages": lambda lines: [],
    "without libc": without("libc6"),
    "without dpkg": without("dpkg"),
    "a package twice": lambda lines: [*lines[:5], *lines[4:]],
    "another order": lambda lines: lines[::-1],
    "a file of another version": lambda lines: [lines[0].replace(lines[0].split()[1], "0.1", 1), *lines[1:]],
    "a file of another machine": lambda lines: [line.replace("_amd64.deb", "_arm64.deb") for line in lines],
    "a file of another package": lambda lines: [lines[1].replace(lines[1].split()[4], lines[0].split()[4]), *lines[2:]],
    "no size": lambda lines: [" ".join([*lines[0].split()[:3], "0", *lines[0].split()[4:]]), *lines[1:]],
}


@pytest.mark.parametrize("kind", BASE)
def test_a_lock_of_the_base_has_what_every_base_has(kind: str, root: Path, tmp_path: Path, record_property: RECORD) -> None:
    record_property("fault", "an edited lock of the base")
    checkout = made_checkout(root, tmp_path)
    (tmp_path / "docker").unlink()
    (tmp_path / "docker").mkdir()
    for name in ("base.toml", "README.md"):
        (tmp_path / "docker" / name).write_bytes((root / "docker" / name).read_bytes())
    lines = (root / "docker" / "base.lock").read_text().splitlines()
    head, packages = [line for line in lines if line.startswith("#")], [line for line in lines if not line.startswith("#")]
    (tmp_path / "docker" / "base.lock").write_text("\n".join([*head, *packages]) + "\n")
    assert len(debian_lock.read(checkout)) == len(packages)
    changed = BASE[kind](packages)
    assert changed != packages
    (tmp_path / "docker" / "base.lock").write_text("\n".join([*head, *changed]) + "\n")
    with pytest.raises(UserError, match=r"^docker/base\.lock:.*expected .*(restore it with git|run )"):
        debian_lock.read(checkout)


def test_lock_check_reads_the_lock_of_the_base(root: Path, tmp_path: Path, record_property: RECORD) -> None:
    record_property("fault", "an edited lock of the base")
    made_checkout(root, tmp_path)
    (tmp_path / "docker").unlink()
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / "base.toml").write_bytes((root / "docker" / "base.toml").read_bytes())
    for name in ("pyproject.toml", "lockfiles/tools.txt"):
        (tmp_path / name).write_bytes((root / name).read_bytes())
    command = [sys.executable, "-m", "smokehouse", "lock", "--check"]
    environ = {**os.environ, "PYTHONPATH": str(root / "src")}
    ended = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1, ended.stderr
    assert ended.stderr.startswith("smokehouse: docker/base.lock: not found; run "), ended.stderr
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize("call", ["check", "drift"])
def test_no_environment_is_nothing_to_check(call: str, tmp_path: Path, record_property: RECORD) -> None:
    record_property("fault", "nothing to check")
    (tmp_path / "environments").mkdir()
    checkout = Checkout(tmp_path, tmp_path / "packaged")
    with pytest.raises(UserError, match="environments: expected an environment, found none"):
        (lock_all.check_all if call == "check" else lock_all.drift)(checkout, [])


def test_no_tools_are_nothing_to_check(tmp_path: Path, record_property: RECORD) -> None:
    record_property("fault", "nothing to check")
    with pytest.raises(UserError, match=r"--tools: expected lockfiles/tools\.txt, found none"):
        lock_all.check_all(Checkout(tmp_path, tmp_path / "packaged"), [], only_tools=True)


# doctor

GOOD = {"level": "ok", "what": "x", "where": "y", "fix": ""}
FINDINGS = ["", "null", "0", "{}", "[]", '""', "[[]]", "[null]", "[{}]", json.dumps(GOOD), "[" + json.dumps(GOOD)]
FINDINGS += [json.dumps([GOOD | changed]) for changed in ({"level": "fine"}, {"level": "FAIL"}, {"what": None}, {"more": "z"})]
FINDINGS += [json.dumps([{name: text for name, text in GOOD.items() if name != key}]) for key in ("level", "what", "where")]


@pytest.mark.parametrize("text", FINDINGS)
def test_what_are_no_findings_find_nothing_right(text: str, record_property: RECORD) -> None:
    record_property("fault", "findings that are none")
    assert machine.parse_findings(json.dumps([GOOD]))
    with pytest.raises(ValueError, match=r"Expecting|finding"):
        machine.parse_findings(text)


PROGRAMS = {
    "killed": "import os; os.kill(os.getpid(), 9)",
    "silent": "",
    "garbage": "print('all is well')",
    "nothing found": "print('[]')",
    "an object": "print('{}')",
    "good, and a failure": f"print({json.dumps([GOOD])!r}); raise SystemExit(1)",
    "good, and killed": f"import os; print({json.dumps([GOOD])!r}, flush=True); os.kill(os.getpid(), 9)",
    "bad, and no failure": f"print({json.dumps([GOOD | {'level': 'fail'}])!r})",
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A checkout whose smoke test is to be written."""
    for part in ("environments", "smoke_tests"):
        (tmp_path / part).mkdir()
    (tmp_path / "smoke_tests" / "__init__.py").touch()
    return tmp_path


@pytest.mark.parametrize("kind", PROGRAMS)
def test_a_preflight_that_fails_finds_nothing_right(kind: str, root: Path, place: Path, record_property: RECORD) -> None:
    record_property("fault", "a program that fails")
    (place / "smoke_tests" / "machine.py").write_text(PROGRAMS[kind])
    with pytest.raises(UserError, match=r"^smoke_tests\.machine: expected JSON"):
        list(machine._machine(Checkout(place), complete_reports.locked(root), None))


# reports

PLANNERS = ("killed", "silent", "garbage", "nothing found", "an object")
PLANS = {kind: PROGRAMS[kind] for kind in PLANNERS} | {
    "no checks": 'print(\'{"checks": [], "names": ["load"]}\')',
    "no names": 'print(\'{"checks": [{}], "names": []}\')',
    "a key twice": 'print(\'{"checks": [1], "checks": [], "names": [1]}\')',
}


@pytest.mark.parametrize("kind", PLANS)
def test_a_plan_of_nothing_is_met_by_no_report(kind: str, place: Path, record_property: RECORD) -> None:
    record_property("fault", "a program that fails")
    (place / "smoke_tests" / "expected.py").write_text(PLANS[kind])
    with pytest.raises(UserError, match="cannot plan the smoke test: "):
        complete._ask_planner(place, place, kind)


@pytest.mark.parametrize(
    ("code", "environment", "said"), [(1, "", ""), (-9, "", ""), (0, "llama", "expected a report of llama")]
)
def test_a_job_that_failed_has_not_passed(
    root: Path, tmp_path: Path, code: int, environment: str, said: str, record_property: RECORD
) -> None:
    """The report says that it passed, and the job ended otherwise, or it is the report of another environment."""
    record_property("fault", "a job that fails")
    (tmp_path / "report.json").write_text(json.dumps(complete_reports.report(root)))
    (tmp_path / "result").touch()
    first = SimpleNamespace(exception=lambda: None, result=lambda: Result(code))
    job = SimpleNamespace(paths=SimpleNamespace(result_pickle=tmp_path / "result"), task=lambda _: first, job_id="7")
    run = Submitted(job, Allocation("smoke", 1, 0, 60, {}), on_slurm=False)
    request: Any = SimpleNamespace(folder=tmp_path, environment=environment or complete_reports.NAME)
    if said:
        with pytest.raises(UserError, match=said):
            slurm._conclude(Checkout(root), request, run, 0)
        return
    assert slurm._conclude(Checkout(root), request, run, 0) == 1


@pytest.mark.parametrize("pods", [0, 1])
def test_machines_that_were_not_examined_are_missed(
    pods: int, tmp_path: Path, record_property: RECORD, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_property("fault", "a job that fails")
    job = FakeJob([pod("n1") for _ in range(pods)])
    monkeypatch.setattr(kubernetes, "_job", lambda *_: job)
    with pytest.raises(UserError, match=f"expected 2 pods to have run, found {pods}"):
        kubernetes._examine(SimpleNamespace(kind="jobset", nodes=2), "x", [])  # type: ignore[arg-type]


def test_two_pods_on_one_machine_are_both_heard(record_property: RECORD, monkeypatch: pytest.MonkeyPatch) -> None:
    record_property("fault", "a job that fails")
    logs = iter([json.dumps([GOOD | {"level": "fail"}]), json.dumps([GOOD])])
    cluster = SimpleNamespace(log=lambda *_: next(logs))
    monkeypatch.setattr(kubernetes, "_job", lambda *_: FakeJob([pod("n1"), pod("n1")]))
    found = kubernetes._examine(SimpleNamespace(kind="jobset", nodes=2, cluster=cluster), "x", [])  # type: ignore[arg-type]
    assert [finding.level for finding in found["n1"]] == ["fail", "ok"]


@pytest.mark.parametrize("code", [0, 7])
def test_a_node_that_fails_beside_a_report_that_passed(code: int, record_property: RECORD) -> None:
    record_property("fault", "a job that fails")
    condition = {"type": "Failed" if code else "Complete", "status": "True", "message": "1 of 2 jobs"}
    pods = [pod(f"n{number}") for number in range(2)]
    pods[1]["status"] = {"containerStatuses": [{"name": "node", "state": {"terminated": {"exitCode": code}}}]}
    pods[0].setdefault("status", {})
    cluster: Any = SimpleNamespace(get=lambda *_: {"status": {"conditions": [condition]}}, pods=lambda _: pods)
    said = Job(cluster, "trainjob", "x", 60, keep=False).failure()
    assert said == (f"exit code 7 of {pods[1]['metadata']['name']} on n1" if code else "")


class FakeJob:
    """A job that has ended, with these pods."""

    def __init__(self, pods: list[dict[str, Any]]) -> None:
        self.pods = lambda: pods
        self.wait = lambda *, ended: ""

    def created(self, _: object) -> "FakeJob":
        """Return itself as a context manager."""
        return self

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def pod(node: str) -> dict[str, Any]:
    """Return a pod on a node."""
    return {"metadata": {"name": "p"}, "spec": {"nodeName": node}}


# statements

STUB = """\
#!/bin/sh
for word; do [ "$last" = --bundle ] && file="$word"; last="$word"; done
if [ "$1" = verify-blob-attestation ] && [ "$(sha256sum < "$file")" = "$BAD" ]; then
    {end}
fi
exec {cosign} "$@"
"""
ENDS = {
    "killed": "kill -9 $$",
    "silent": "exit 1",
    "nothing done": "exit 0",
    "garbage": "echo hello; exit 0",
    "unreachable": "echo 'Error: dial tcp 10.0.0.1: i/o timeout' >&2; exit 1",
}


@pytest.mark.parametrize("kind", [kind for kind in ENDS if kind != "unreachable"])
def test_a_statement_that_cannot_be_judged_is_no_reason_to_take_an_older_one(
    root: Path, keys: Path, cosign: Path, tmp_path: Path, kind: str, record_property: RECORD, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest says that the run failed, and cosign ends when it is to verify that one."""
    from .test_statements import Signing, fail

    record_property("fault", "a program that fails")
    by = Signing(root, keys)
    passed, failed = by.of(timedelta(days=3)), by.of(timedelta(days=1), fail)
    foreign = by.of(timedelta(hours=1), key="other")
    assert by.judge(passed, foreign).valid
    stub = tmp_path / "bin" / "cosign"
    stub.parent.mkdir()
    stub.write_text(STUB.format(end=ENDS[kind], cosign=cosign / "cosign"))
    stub.chmod(0o755)
    (tmp_path / "bad").write_bytes(failed.bundle)
    bad = subprocess.run(
        ["sha256sum"], stdin=(tmp_path / "bad").open(), capture_output=True, text=True, check=True
    ).stdout.strip()
    monkeypatch.setenv("BAD", bad)
    monkeypatch.setenv("PATH", f"{stub.parent}:{os.environ['PATH']}")
    assert by.judge(passed, foreign).valid  # the stub passes on what it is not about
    for given in ((passed, failed), (failed, passed)):
        found = by.judge(*given)
        assert found.valid is False, found.text
        assert found.text.startswith("nothing: cosign: expected "), found.text


def test_sigstore_that_is_not_reached_judges_nothing(
    keys: Path, tmp_path: Path, record_property: RECORD, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_property("fault", "a program that fails")
    signed = signing.sign(signing.statement("https://x/y", {}, "tiny", complete_reports.DIGEST), Signer(keys / "ours.key"))
    bundle = json.loads(signed.bundle)
    del bundle["verificationMaterial"]["publicKey"]
    stub = tmp_path / "bin" / "cosign"
    stub.parent.mkdir()
    stub.write_text(f"#!/bin/sh\n{ENDS['unreachable']}\n")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stub.parent}:{os.environ['PATH']}")
    statement = signing.SignedStatement(json.dumps(bundle).encode())
    with pytest.raises(UserError, match="cannot reach Sigstore") as refused:
        signing.open_signed(statement, Signer(identity="https://x", issuer="https://y"), complete_reports.DIGEST)
    assert not isinstance(refused.value, ForeignError)


@pytest.mark.parametrize("written", [b"", b"{}", b"\xff", b"null"])
def test_a_signature_is_that_of_the_statement(
    written: bytes, keys: Path, monkeypatch: pytest.MonkeyPatch, record_property: RECORD
) -> None:
    record_property("fault", "a program that fails")
    monkeypatch.setattr(cosign_program, "attest", lambda *_: written)
    payload = signing.statement("https://x/y", {}, "tiny", complete_reports.DIGEST)
    with pytest.raises(UserError, match="cosign: expected a bundle of the statement"):
        signing.sign(payload, Signer(keys / "ours.key"))


def test_a_signature_of_another_statement_is_refused(
    keys: Path, monkeypatch: pytest.MonkeyPatch, record_property: RECORD
) -> None:
    record_property("fault", "a program that fails")
    first, second = (signing.statement("https://x/y", {"n": n}, "tiny", complete_reports.DIGEST) for n in (1, 2))
    other = signing.sign(first, Signer(keys / "ours.key")).bundle
    monkeypatch.setattr(cosign_program, "attest", lambda *_: other)
    with pytest.raises(UserError, match="found another"):
        signing.sign(second, Signer(keys / "ours.key"))


# installations

ROWS = ["one.py,sha256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU,0", "one-1.dist-info/METADATA,,", "one-1.dist-info/RECORD,,"]
RECORDS = {
    "emptied": [],
    "cut": ROWS[:1],
    "of itself alone, under another name": ["two-1.dist-info/RECORD,,"],
    "another hash": ["one.py,sha512=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU,0", *ROWS[1:]],
    "a weak hash": ["one.py,md5=d41d8cd98f00b204e9800998ecf8427e,0", *ROWS[1:]],
    "a hash that is none": ["one.py,sha256=,0", *ROWS[1:]],
    "a hash without its kind": ["one.py,47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU,0", *ROWS[1:]],
}


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """An environment with one package and one conda package."""
    site = state.site_packages(tmp_path, "3.11")
    (site / "one-1.dist-info").mkdir(parents=True)
    (site / "one.py").touch()
    (site / "one-1.dist-info" / "METADATA").write_text("Version: 1\n")
    (site / "one-1.dist-info" / "RECORD").write_text("\n".join(ROWS) + "\n")
    (tmp_path / "conda-meta").mkdir()
    (tmp_path / "conda-meta" / "c.json").write_text(json.dumps(CONDA))
    return tmp_path


CONDA = {"name": "c", "version": "1", "build": "0", "paths_data": {"paths": []}}


@pytest.mark.parametrize("kind", RECORDS)
def test_a_list_of_files_that_lists_none_is_damage(kind: str, installed: Path, record_property: RECORD) -> None:
    record_property("fault", "an installation that lists nothing")
    assert state.damage(installed, "3.11", contents=True) == []
    record = state.site_packages(installed, "3.11") / "one-1.dist-info" / "RECORD"
    record.write_text("".join(f"{row}\n" for row in RECORDS[kind]))
    assert state.damage(installed, "3.11", contents=True)


CONDA_RECORDS = [
    {},
    {"paths_data": None},
    {"paths_data": {}},
    {"paths_data": {"paths": None}},
    {"paths_data": []},
    {"files": []},
]


@pytest.mark.parametrize("changed", CONDA_RECORDS, ids=str)
def test_a_record_of_conda_without_files_is_none(changed: dict[str, Any], installed: Path, record_property: RECORD) -> None:
    record_property("fault", "an installation that lists nothing")
    assert [record["version"] for _, record in state._conda_records(installed)] == ["1"]
    content = {name: value for name, value in CONDA.items() if name != "paths_data"} | changed
    (installed / "conda-meta" / "c.json").write_text(json.dumps(content))
    assert [record["version"] for _, record in state._conda_records(installed)] == ["?"]


@pytest.mark.parametrize("name", ["x.pth", "sitecustomize.py", "torch/evil.so", "one/__init__.py", ".hidden.pth", "ONE.py"])
def test_a_file_that_no_package_lists_is_found(name: str, installed: Path, record_property: RECORD) -> None:
    record_property("fault", "a file that nobody lists")
    site = state.site_packages(installed, "3.11")
    (site / "own").touch()
    assert state.unlisted(installed, "3.11", ["own"]) == []
    files.write(site / name, "import os\n")
    assert state.unlisted(installed, "3.11", ["own"]) == [f"lib/python3.11/site-packages/{name}"]


MARKERS: dict[str, dict[str, Any]] = {
    "no digests": {"environment": complete_reports.NAME},
    "a file of no lock": {"other.txt": "0" * 64},
    "a path": {"../../../etc/hosts.txt": "0" * 64},
    "an absolute path": {"/etc/passwd.json": "0" * 64},
    "a number": {"lock.json": 1},
    "none": {"lock.json": None},
}


@pytest.mark.parametrize("kind", MARKERS)
def test_a_marker_that_says_nothing_is_of_no_lock(kind: str, root: Path, record_property: RECORD) -> None:
    record_property("fault", "an installation that lists nothing")
    locked = complete_reports.locked(root)
    assert activation._is_of({"lock.json": locked.digest}, locked)
    assert not activation._is_of(MARKERS[kind], locked)


def test_a_machine_without_glibc_is_not_a_newer_one(record_property: RECORD, monkeypatch: pytest.MonkeyPatch) -> None:
    record_property("fault", "a machine that lacks it")
    conda_packages.require_compatible_machine({"__glibc": "2.17"}, "x")
    monkeypatch.setenv("CONDA_OVERRIDE_GLIBC", "")
    with pytest.raises(UserError, match=r"x: expected glibc 2\.17 or later, found none"):
        conda_packages.require_compatible_machine({"__glibc": "2.17"}, "x")


# matrices

Edit = Callable[[dict[str, Any]], object]


def first(content: dict[str, Any]) -> dict[str, Any]:
    """Return a cell in which one stage works."""
    return next(cell for cell in content["cells"] if cell["zero2"]["verdict"] == "works")


CELLS: dict[str, tuple[Edit, str]] = {
    "of another model": (lambda content: content.update(model="Other"), "expected cells of Tiny-VL"),
    "of another family": (lambda content: content.update(family="llama"), "expected cells of Tiny-VL"),
    "a cell twice": (lambda content: content["cells"].append(content["cells"][0]), "expected each cell once"),
    "no checks": (lambda content: first(content).update(checks=[]), "zero2: expected fails"),
    "a check that failed": (lambda content: first(content)["checks"][0].update(verdict="failed"), "zero2: expected fails"),
    "a check missing": (lambda content: first(content)["checks"].pop(0), "zero2: expected fails"),
    "another version": (
        lambda content: first(content)["lock"].update(torch="2.7.0"),
        "lock: expected torch 2.6.0, found 2.7.0",
    ),
    "no lock": (lambda content: first(content).update(lock={}), "lock: expected torch 2.6.0, found none"),
    "one rank": (lambda content: first(content).update(ranks=1), "ranks: expected two or more"),
    "in a year": (lambda content: first(content).update(date="2999-01-01T00:00:00+00:00"), "date: expected a time in the past"),
}


@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_says_what_its_checks_show(kind: str, tmp_path: Path, record_property: RECORD) -> None:
    record_property("fault", "an edited cell")
    checkout = made.make(tmp_path)
    read = grid.read(checkout, "tiny-vl")
    assert store.load(checkout, read).cells
    file = store.path_of(checkout, "tiny-vl")
    content = json.loads(file.read_text())
    edit, said = CELLS[kind]
    edit(content)
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"^matrix/tiny-vl\.json: .*; restore it with git") as refused:
        store.load(checkout, read)
    assert said in str(refused.value)


@pytest.mark.parametrize("written", [{}, {"x": "no tensor"}])
def test_a_checkpoint_without_tensors_suggests_nothing(
    written: dict[str, str], root: Path, tmp_path: Path, record_property: RECORD
) -> None:
    from smokehouse.matrix import suggest

    record_property("fault", "a checkpoint of nothing")
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    for name, text in written.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match="expected a checkpoint"):
        suggest.read_checkpoint(Checkout(root), tmp_path)
