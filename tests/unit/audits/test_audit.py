"""`smokehouse audit`: the known vulnerabilities of a lock, from a folder and over HTTP, with decisions, as users get them."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from smokehouse.audits import service
from smokehouse.audits.audit import targets
from smokehouse.checkout import Checkout
from smokehouse.storage.transfer import Limits

from . import records

NAME = "qwen2.5-vl"
ZERO = {"introduced": "0"}
TORCH_BAD = records.osv(
    "GHSA-torch", "Torch", ZERO, {"fixed": "2.7.0"}, aliases=["CVE-2026-1"], database_specific={"severity": "HIGH"}
)
LINUX_BAD = records.tracker("util-linux", "CVE-2026-2", status="open", urgency="low")


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Path:
    """A checkout with one environment and the lock of the Debian base."""
    for place in (f"environments/{NAME}", "environments/stacks", f"lockfiles/{NAME}"):
        shutil.copytree(root / place, tmp_path / "checkout" / place)
    (tmp_path / "checkout" / "docker").mkdir()
    for name in ("base.lock", "base.toml"):
        shutil.copy(root / "docker" / name, tmp_path / "checkout" / "docker")
    return tmp_path / "checkout"


@pytest.fixture
def known(tmp_path: Path) -> Path:
    """A database that knows of one vulnerability of torch and one of util-linux."""
    return records.database(tmp_path / "known", [TORCH_BAD], LINUX_BAD)


def run(checkout: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run audit in a checkout."""
    command = [sys.executable, "-m", "smokehouse", "audit", *arguments]
    environ = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    environ.pop("SMOKEHOUSE_STARTED_BY", None)
    ended = subprocess.run(command, cwd=checkout, env=environ, capture_output=True, text=True, timeout=120)
    assert ended.returncode == code, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    return ended


def refused(checkout: Path, *arguments: str) -> str:
    """Run audit, which refuses, and return what it says: one line."""
    lines = [line for line in run(checkout, *arguments, code=2).stderr.splitlines() if "asking" not in line]
    assert len(lines) == 1, lines
    return lines[0].removeprefix("smokehouse: ")


def found(checkout: Path, known: Path, *arguments: str) -> dict[str, Any]:
    """Return an audit as JSON."""
    result: dict[str, Any] = json.loads(run(checkout, "--database", str(known), "--format", "json", *arguments).stdout)
    return result


def findings(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return where, package and ID of each finding."""
    return [(target["name"], one["package"], one["id"]) for target in result["targets"] for one in target["found"]]


def from_util_linux(checkout: Path) -> set[str]:
    """The packages of the base that are built from util-linux."""
    lines = (checkout / "docker" / "base.lock").read_text().splitlines()
    return {line.split()[0] for line in lines if line[0] != "#" and line.split()[5] == "util-linux"}


def test_every_package_of_the_lock_and_of_the_base_is_audited(root: Path) -> None:
    lock = json.loads((root / "lockfiles" / NAME / "lock.json").read_text())
    environment, base = targets(Checkout(root), [NAME])
    assert {(p.name, p.version) for p in environment.packages} == {
        (p["name"], p["version"]) for p in lock["pip"] + lock["build"]
    }
    assert len(base.packages) == sum(line[0] != "#" for line in (root / "docker" / "base.lock").read_text().splitlines())
    assert {package.name for package in base.packages} == base.lines.keys()


def test_what_is_known_is_listed_with_its_fix(copy: Path, known: Path) -> None:
    ended = run(copy, NAME, "--database", str(known))
    head, *rows = ended.stdout.splitlines()
    assert head.split() == ["WHERE", "PACKAGE", "VERSION", "VULNERABILITY", "SEVERITY", "FIXED", "IN", "DECISION"]
    cells = [re.split(r"\s{2,}", row) for row in rows]
    assert cells[0] == [NAME, "torch", "2.6.0", "CVE-2026-1", "high", "2.7.0"]
    assert {(row[0], row[1], row[3]) for row in cells[1:]} == {("Debian base", n, "CVE-2026-2") for n in from_util_linux(copy)}
    assert f"{1 + len(from_util_linux(copy))} known vulnerabilities in " in ended.stderr
    assert "there are no records of conda packages" in ended.stderr


def test_json_says_what_was_asked_of_which_lock(copy: Path, known: Path) -> None:
    result = found(copy, known)
    time = datetime.fromtimestamp(max(path.stat().st_mtime for path in known.rglob("*.json")), UTC)
    assert result["asked"] == time.strftime("%Y-%m-%dT%H:%M:%SZ")
    environment, base = targets(Checkout(copy), [])
    assert [target["lock"] for target in result["targets"]] == [environment.digest, base.digest]
    [torch] = result["targets"][0]["found"]
    assert torch["purl"] == "pkg:pypi/torch@2.6.0"
    assert torch["aliases"] == ["GHSA-torch"]
    assert torch["decided"] is None


def test_an_export_is_read_as_it_is_published(copy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "exports"
    folder.mkdir()
    with zipfile.ZipFile(folder / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("GHSA-torch.json", json.dumps(TORCH_BAD))
        archive.writestr("README", "not a record")
    result = found(copy, folder)
    assert findings(result) == [(NAME, "torch", "CVE-2026-1")]
    assert result["targets"][1]["unaudited"] == result["targets"][1]["packages"]


def bomb(folder: Path) -> None:
    with zipfile.ZipFile(folder / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.json", b"[" + b" " * (64 << 20) + b"]")


def broken(folder: Path) -> None:
    bomb(folder)
    data = (folder / "all.zip").read_bytes()
    (folder / "all.zip").write_bytes(data[: len(data) // 3] + b"x" * 20 + data[len(data) // 3 + 20 :])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (bomb, r"all\.zip: bomb\.json: invalid record \(more than 16 MiB\); download the database again"),
        (broken, r"all\.zip.*(cannot be read|invalid record) \(.*\); download the database again"),
        (lambda folder: (folder / "all.zip").write_bytes(b"PK"), r"all\.zip: cannot be read \(File is not a zip file\)"),
        (lambda folder: (folder / "a.json").write_text('{"id": 1}'), r"a\.json: invalid record \(not an OSV record: id: "),
        (lambda folder: (folder / "debian.json").write_text("[]"), r"debian\.json: invalid record \(not an object\)"),
        (
            lambda folder: (folder / "debian.json").write_text('{"pam": 1}'),
            r"invalid record \(not records of Debian's tracker: pam",
        ),
        (lambda folder: None, r"expected an OSV export .* or debian\.json, found neither"),
        (lambda folder: folder.rmdir(), "database not found"),
    ],
    ids=["bomb", "damaged", "no archive", "no record", "no object", "no issues", "empty", "missing"],
)
def test_a_database_that_is_damaged_or_hostile_is_refused(
    copy: Path, tmp_path: Path, damage: Callable[[Path], object], said: str
) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    damage(folder)
    assert re.search(said, refused(copy, "--database", str(folder)))


def test_what_a_terminal_would_obey_is_not_printed(copy: Path, tmp_path: Path) -> None:
    hostile = records.osv("T-1", "torch", ZERO, {"fixed": "99"}, {"introduced": "\x1b[2Jx"}, summary="\x1b]0;owned\x07")
    folder = records.database(tmp_path / "hostile", [hostile])
    ended = run(copy, "--database", str(folder))
    assert "\x1b" not in ended.stdout + ended.stderr
    assert "T-1" in ended.stdout


# Decisions


def decide(checkout: Path, expires: date, *, name: str = "statements", **changes: Any) -> None:
    """Write a decision about torch, which holds until a day."""
    statement = {
        "vulnerability": {"name": "CVE-2026-1"},
        "products": [{"@id": "pkg:pypi/torch@2.6.0"}],
        "status": "not_affected",
        "justification": "vulnerable_code_not_in_execute_path",
        "impact_statement": "Training never calls it.",
        "status_notes": f"expires {expires}",
        **changes,
    }
    document = {
        "@context": "https://openvex.dev/ns/v0.2.0",
        "@id": "https://example.org/vex/1",
        "author": "a test",
        "timestamp": "2026-11-01T00:00:00Z",
        "version": 1,
        "statements": [{key: value for key, value in statement.items() if value is not None}],
    }
    (checkout / "vex").mkdir(exist_ok=True)
    (checkout / "vex" / f"{name}.json").write_text(json.dumps(document))


TODAY = date.today()
SOON, PAST = TODAY + timedelta(days=30), TODAY - timedelta(days=1)


@pytest.fixture
def torch_only(tmp_path: Path) -> Path:
    """A database with all kinds of records that knows of one vulnerability: of torch."""
    return records.database(tmp_path / "torch", [TORCH_BAD], records.OF_OTHERS)


def test_check_fails_without_a_decision_and_passes_with_one(copy: Path, torch_only: Path) -> None:
    check = ("--check", "--database", str(torch_only))
    assert "1 without a decision" in run(copy, *check, code=1).stderr
    decide(copy, SOON)
    ended = run(copy, *check)
    assert f"not_affected until {SOON}: Training never calls it." in ended.stdout
    assert "0 without a decision" in ended.stderr


@pytest.mark.parametrize(
    "changes",
    [
        {"vulnerability": {"name": "GHSA-torch"}},
        {"vulnerability": {"name": "OTHER-1", "aliases": ["CVE-2026-1"]}},
        {"products": [{"@id": "pkg:pypi/torch"}]},
        {"products": [{"@id": "pkg:pypi/torch@2.6.0?file_name=torch.whl#sub"}]},
        {"status": "affected", "justification": None, "impact_statement": None, "action_statement": "Upgrade in January."},
        {
            "status": "fixed",
            "justification": None,
            "impact_statement": None,
            "status_notes": f"expires {SOON}: patched in ours",
        },
    ],
    ids=["alias", "own alias", "any version", "qualifiers", "accepted", "backported"],
)
def test_a_decision_applies_by_any_name_of_both(copy: Path, torch_only: Path, changes: dict[str, Any]) -> None:
    decide(copy, SOON, **changes)
    run(copy, "--check", "--database", str(torch_only))


def test_a_decision_that_expired_fails_the_check(copy: Path, torch_only: Path) -> None:
    decide(copy, PAST)
    said = run(copy, "--check", "--database", str(torch_only), code=1).stderr
    assert f"vex/statements.json: statement 1: expired on {PAST}; decide again" in said
    assert "1 without a decision" in said
    decide(copy, TODAY)
    run(copy, "--check", "--database", str(torch_only))


@pytest.mark.parametrize(
    "changes",
    [{"products": [{"@id": "pkg:pypi/torch@2.5.0"}]}, {"vulnerability": {"name": "CVE-2026-99"}}],
    ids=["another version", "another vulnerability"],
)
def test_a_decision_that_matches_nothing_fails_the_check(copy: Path, torch_only: Path, changes: dict[str, Any]) -> None:
    decide(copy, SOON, name="right")
    run(copy, "--check", "--database", str(torch_only))
    decide(copy, SOON, name="wrong", **changes)
    assert re.search(
        r"vex/wrong\.json: statement 1: expected a finding of \S+ in pkg:pypi/torch@\S+, found none; remove it",
        run(copy, "--check", "--database", str(torch_only), code=1).stderr,
    )


def test_a_decision_about_another_environment_is_not_missed(copy: Path, torch_only: Path) -> None:
    decide(copy, SOON)
    decide(copy, SOON, name="other", products=[{"@id": "pkg:pypi/vllm@1.0"}])
    run(copy, NAME, "--check", "--database", str(torch_only))
    run(copy, "--check", "--database", str(torch_only), code=1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"status_notes": None}, "status_notes: Field required"),
        ({"status_notes": "until further notice"}, "status_notes: String should match pattern"),
        ({"status_notes": "expires 2026-13-40"}, "month must be in 1..12"),
        ({"impact_statement": None}, "status not_affected requires justification and impact_statement"),
        ({"justification": "trust me"}, "justification: Input should be "),
        ({"status": "affected", "justification": None}, "status affected requires action_statement"),
        (
            {"status": "under_investigation", "justification": None, "impact_statement": None},
            "status under_investigation requires a reason",
        ),
        ({"impact_statement": " \u200b. "}, "status not_affected requires a reason"),
        ({"status": "harmless"}, "status: Input should be "),
        ({"products": []}, "products: List should have at least 1 item"),
        ({"products": [{"@id": "torch"}]}, "products.0.@id: String should match pattern"),
        ({"until": "2026-01-01"}, "until: Extra inputs are not permitted"),
    ],
)
def test_a_decision_without_reason_or_date_is_refused(copy: Path, torch_only: Path, changes: dict[str, Any], said: str) -> None:
    decide(copy, SOON, **changes)
    line = refused(copy, "--database", str(torch_only))
    assert line.startswith("vex/statements.json: invalid OpenVEX document (statements.0")
    assert said in line


@pytest.mark.parametrize("kind", ["FIFO", "device", "folder"])
def test_a_decision_that_is_no_file_is_refused(copy: Path, torch_only: Path, kind: str) -> None:
    decide(copy, SOON)
    place = copy / "vex" / "other.json"
    if kind == "device":
        place.symlink_to("/dev/zero")
    else:
        (os.mkfifo if kind == "FIFO" else Path.mkdir)(place)
    assert "vex/other.json: " in refused(copy, "--database", str(torch_only))


def test_a_check_against_half_a_database_is_refused(copy: Path, tmp_path: Path) -> None:
    folder = records.database(tmp_path / "half", [TORCH_BAD])
    assert refused(copy, "--check", "--database", str(folder)).endswith(
        "expected records of all packages, found none for Debian base; add them"
    )


# SARIF


@pytest.fixture(scope="module")
def sarif(root: Path) -> jsonschema.Draft7Validator:
    schema = json.loads((root / "tests" / "data" / "sarif" / "sarif-2.1.0.schema.json").read_text())
    return jsonschema.Draft7Validator({**schema, "$schema": "http://json-schema.org/draft-07/schema#"})


def test_sarif_follows_its_schema_and_points_to_the_pinned_line(
    copy: Path, known: Path, tmp_path: Path, sarif: jsonschema.Draft7Validator
) -> None:
    decide(copy, SOON)
    run(copy, "--database", str(known), "--format", "sarif", "--output", str(tmp_path / "audit.sarif"))
    document = json.loads((tmp_path / "audit.sarif").read_text())
    assert [error.message for error in sarif.iter_errors(document)] == []
    [part] = document["runs"]
    results = part["results"]
    assert len(results) == 1 + len(from_util_linux(copy))
    for one in results:
        place = one["locations"][0]["physicalLocation"]
        line = (copy / place["artifactLocation"]["uri"]).read_text().splitlines()[place["region"]["startLine"] - 1]
        assert line.replace("==", " ").split()[0] == one["message"]["text"].split(": ", 1)[1].split()[0]
        assert part["tool"]["driver"]["rules"][one["ruleIndex"]]["id"] == one["ruleId"]
    assert (results[0]["level"], results[0]["ruleId"]) == ("error", "CVE-2026-1")
    assert results[0]["suppressions"][0]["justification"] == f"not_affected until {SOON}: Training never calls it."
    assert "suppressions" not in results[1]


@pytest.mark.parametrize(("key", "value"), [("level", "bad"), ("message", "text"), ("suppressions", [{"kind": "mine"}])])
def test_the_schema_refuses_what_is_wrong(
    copy: Path, known: Path, sarif: jsonschema.Draft7Validator, key: str, value: object
) -> None:
    document = json.loads(run(copy, "--database", str(known), "--format", "sarif").stdout)
    document["runs"][0]["results"][0][key] = value
    assert not sarif.is_valid(document)


# Services


class Service:
    """A vulnerability service on this machine: OSV's API with pages of one record, and the tracker's records."""

    def __init__(self, known: list[dict[str, Any]], issues: dict[str, Any]) -> None:
        self.known = {record["id"]: record for record in known}
        self.issues = issues
        self.asked: list[dict[str, Any]] = []
        self.answers: dict[str, list[tuple[int, bytes]]] = {}
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                service.answer(self, b"")

            def do_POST(self) -> None:
                service.answer(self, self.rfile.read(int(self.headers["Content-Length"])))

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    @property
    def options(self) -> list[str]:
        """The options of audit that ask this service."""
        return ["--service", self.url, "--tracker", f"{self.url}/tracker"]

    def answer(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        """Reply as was set for the path, else as the service does."""
        waiting = self.answers.get(request.path, [])
        code, reply = waiting.pop(0) if waiting else (200, json.dumps(self.reply(request.path, body)).encode())
        request.send_response(code)
        request.send_header("Content-Length", str(len(reply)))
        request.end_headers()
        with contextlib.suppress(OSError):  # a client that has had enough
            request.wfile.write(reply)

    def reply(self, path: str, body: bytes) -> Any:
        """Reply as the service does."""
        if path == "/tracker":
            return self.issues
        if path.startswith("/v1/vulns/"):
            return self.known[path.rpartition("/")[2]]
        queries = json.loads(body)["queries"]
        self.asked += queries
        return {"results": [self.result(query) for query in queries]}

    def result(self, query: dict[str, Any]) -> dict[str, Any]:
        """One record of the package for each page."""
        names = [
            n for n, one in self.known.items() if one["affected"][0]["package"]["name"].lower() == query["package"]["name"]
        ]
        page = int(query.get("page_token", 0))
        more = {"next_page_token": str(page + 1)} if page + 1 < len(names) else {}
        return {"vulns": [{"id": names[page], "modified": "2026-11-01T00:00:00Z"}], **more} if names else {}


@pytest.fixture
def osv() -> Iterator[Service]:
    other = records.osv("PYSEC-2", "torch", ZERO, {"last_affected": "2.6.0"})
    made = Service([TORCH_BAD, other, records.osv("PYSEC-3", "torch", ZERO, {"fixed": "1.0"})], LINUX_BAD)
    thread = threading.Thread(target=made.server.serve_forever, args=(0.02,))
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def test_services_are_asked_about_each_package_and_give_what_a_folder_gives(copy: Path, osv: Service, tmp_path: Path) -> None:
    result = json.loads(run(copy, *osv.options, "--format", "json").stdout)
    first = [query for query in osv.asked if "page_token" not in query]
    environment, _ = targets(Checkout(copy), [])
    assert {(query["package"]["name"], query["version"]) for query in first} == {
        (package.name, package.version.partition("+")[0]) for package in environment.packages
    }
    folder = records.database(tmp_path / "same", list(osv.known.values()), LINUX_BAD)
    assert findings(result) == findings(found(copy, folder))
    assert ("qwen2.5-vl", "torch", "PYSEC-2") in findings(result)


def test_a_service_that_fails_for_a_moment_is_asked_again(copy: Path, osv: Service) -> None:
    osv.answers = {"/v1/querybatch": [(503, b""), (429, b"")], "/v1/vulns/PYSEC-2": [(500, b"")]}
    result = json.loads(run(copy, *osv.options, "--format", "json").stdout)
    assert ("qwen2.5-vl", "torch", "PYSEC-2") in findings(result)
    assert not any(osv.answers.values())


@pytest.mark.parametrize(
    ("path", "answer", "said"),
    [
        (
            "/v1/querybatch",
            (404, b""),
            "expected an answer, found status 404 Not Found; try again later, or use --database DIR",
        ),
        ("/v1/querybatch", (302, b""), "found status 302 Found"),
        ("/v1/querybatch", (200, b"<html>"), "invalid reply (not JSON"),
        ("/v1/querybatch", (200, b'{"results": []}'), "results, found another reply"),
        ("/v1/querybatch", (200, b'{"results": {}}'), "results, found another reply"),
        ("/v1/vulns/PYSEC-2", (200, json.dumps(TORCH_BAD).encode()), "expected the record PYSEC-2, found GHSA-torch"),
        ("/v1/vulns/PYSEC-2", (200, b'{"id": "A", "id": "PYSEC-2"}'), "key 'id' occurs twice"),
        ("/v1/vulns/PYSEC-2", (200, b'{"id": []}'), "not an OSV record"),
        ("/tracker", (200, b"[]"), "invalid record (not an object)"),
        ("/tracker", (403, b""), "found status 403 Forbidden"),
    ],
)
def test_a_reply_that_is_not_the_services_is_refused(
    copy: Path, osv: Service, path: str, answer: tuple[int, bytes], said: str
) -> None:
    osv.answers = {path: [answer]}
    assert said in refused(copy, *osv.options)


def test_an_id_that_is_none_is_never_put_into_a_url(copy: Path, osv: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    environment, _ = targets(Checkout(copy), [])
    results = [{"vulns": [{"id": "../../secret"}]}] * len(environment.packages)
    osv.answers = {"/v1/querybatch": [(200, json.dumps({"results": results}).encode())]}
    assert "expected the ID of a record, found '../../secret'" in refused(copy, *osv.options)


def test_a_reply_is_bounded(osv: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    osv.answers = {"/x": [(200, b"a" * 3_000_000)]}
    with pytest.raises(Exception, match="expected a reply of at most 1 MiB, found more"):
        service._Client().request(f"{osv.url}/x", limit=1 << 20)


def test_all_requests_together_have_a_deadline(osv: Service) -> None:
    osv.answers = {"/x": [(200, b"a")]}
    with pytest.raises(Exception, match="timed out after 0 s; try again later, or use --database DIR"):
        service._Client(Limits(deadline=0.0)).request(f"{osv.url}/x")


@pytest.mark.parametrize("url", ["http://api.example.org", "ftp://127.0.0.1", "api.example.org"])
def test_a_service_is_asked_only_where_nobody_can_change_the_answer(copy: Path, url: str) -> None:
    assert "expected an https URL" in refused(copy, "--service", url)


def test_a_service_that_is_not_reached_is_named(copy: Path, osv: Service) -> None:
    osv.server.server_close()
    said = refused(copy, "--service", osv.url, "--tracker", f"{osv.url}/tracker")
    assert re.search(r"^127\.0\.0\.1:\d+: expected an answer, found .*refused.*; try again later, or use --database DIR$", said)


def test_a_database_asks_no_service(copy: Path, known: Path) -> None:
    assert refused(copy, "--database", str(known), "--service", "https://x").startswith("--database: expected no --service")


# Pages


def test_a_recorded_audit_is_on_the_page_until_the_lock_changes(copy: Path, known: Path) -> None:
    def page() -> str:
        command = [sys.executable, "-m", "smokehouse", "docs"]
        environ = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
        subprocess.run(command, cwd=copy, env=environ, check=True, capture_output=True, timeout=120)
        return (copy / "docs" / "environments" / f"{NAME}.md").read_text()

    (copy / "README.md").write_text("<!-- environments -->\n<!-- /environments -->\n")
    assert "No audit of this lock is recorded. `nox -s audit -- qwen2.5-vl` asks OSV" in page()
    decide(copy, SOON)
    run(copy, "--database", str(known), "--record")
    text = page()
    assert f"**{NAME}**: 1 known in " in text
    assert f"| torch 2.6.0 | CVE-2026-1 | high | 2.7.0 | not_affected until {SOON}: Training never calls it. |" in text
    assert f"**Debian base**: {len(from_util_linux(copy))} known in " in text
    recorded = json.loads((copy / "docs" / "audits" / f"{NAME}.json").read_text())
    recorded["targets"][0]["lock"] = "0" * 64
    (copy / "docs" / "audits" / f"{NAME}.json").write_text(json.dumps(recorded))
    lock = copy / "docker" / "base.lock"
    lock.write_text(lock.read_text() + "# changed\n")
    assert "No audit of this lock is recorded" in page()
