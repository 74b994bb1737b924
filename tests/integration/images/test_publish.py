"""An image is published with its SBOM and its statement, or gets no tag; a second call completes an interrupted one."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smokehouse.images import config
from smokehouse.images.labels import SOURCE
from smokehouse.oci.layout import Layout
from smokehouse.oci.reference import Reference
from smokehouse.oci.registry import Registry
from smokehouse.proofs.referrers import SBOM
from smokehouse.proofs.signing import BUNDLE
from smokehouse.storage import files

from .. import registries, reports
from ..conftest import Made
from ..real import run
from ..registries import Proxy
from .test_verify import labelled, verified


class Publisher:
    """Publishes the image of tiny, built before, to a repository of its own, with a report that was never run."""

    def __init__(self, root: Path, made: Made, proxy: Proxy, keys: Path, folder: Path, repository: str) -> None:
        self.made, self.proxy, self.keys = made, proxy, keys
        self.digest = Layout(made.layout).image().digest
        self.report = folder / "report.json"
        self.complete = reports.complete(root, made.checkout.root, self.digest)
        self.report.write_text(json.dumps(self.complete))
        self.where = f"{proxy.host}/{repository}"
        self.tag = f"cu124-torchnone-{made.lock[:12]}"
        self.tags = [self.tag, f"20250315-{made.lock[:12]}"]

    def __call__(self, *options: str, code: int = 0) -> str:
        """Publish; return what was said: the last line of the complaint, or the tags."""
        given = ["--image", str(self.made.layout), "--report", str(self.report), "--key", str(self.keys / "ours.key")]
        ended = run(self.made.checkout, "publish", "tiny", self.where, *given, *options, code=code)
        if code == 2:
            progress = r"smokehouse: (verifying|assembling|sending|bundl|preparing)"
            lines = [line for line in ended.stderr.splitlines() if not re.match(progress, line)]
            assert len(lines) == 1, ended.stderr
            return lines[0]
        return ended.stdout

    def there(self) -> list[str]:
        """Which of the tags are in the registry."""
        registry = Registry(Reference.parse(self.where))
        return [tag for tag in self.tags if registry.manifest(tag)]

    def sent(self) -> list[str]:
        """Every request that writes."""
        return self.proxy.requests(r"^(POST|PUT|PATCH) ")


@pytest.fixture
def publisher(
    root: Path,
    made: Made,
    registry: Proxy,
    keys: Path,
    cosign: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Publisher:
    """For a repository of the test's own."""
    monkeypatch.setitem(made.checkout.environ, "PATH", f"{cosign}:{made.checkout.environ['PATH']}")
    monkeypatch.setitem(made.checkout.environ, "COSIGN_PASSWORD", "a password")
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")
    return Publisher(root, made, registry, keys, tmp_path, f"checkout/{name}")


def test_what_is_published_is_verified_by_whoever_has_the_key(publisher: Publisher) -> None:
    assert publisher().split() == [f"{publisher.where}:{tag}" for tag in publisher.tags]
    assert publisher.there() == publisher.tags
    key = str(publisher.keys / "ours.pub")
    verdict = verified(publisher.made.checkout, f"{publisher.where}:{publisher.tag}", "--key", key)
    assert verdict["passed"]
    assert verdict["digest"] == publisher.digest
    assert verdict["report"] == json.loads(publisher.report.read_text())
    assert re.match(r"\d+ checks and \d+ controls passed under ZeRO-2, ZeRO-3 ", verdict["proof"])
    said = run(publisher.made.checkout, "verify", f"{publisher.where}@{publisher.digest}").stdout
    assert "proven   not verified: 1 signed statements are attached; specify a trusted key with --key FILE" in said
    other = str(publisher.keys / "other.pub")
    refused = run(publisher.made.checkout, "verify", f"{publisher.where}:{publisher.tag}", "--key", other, code=1).stdout
    assert f"proven   nothing: {publisher.digest}: its statement is not signed by the key {other}" in refused
    assert "\nNOT PROVEN  this is what the lock builds, but no valid statement by the trusted signer proves it\n" in refused
    in_layout = verified(publisher.made.checkout, f"oci:{publisher.made.layout}", "--key", key, code=1)
    assert (in_layout["proven"], in_layout["differences"]) == (False, [])
    assert in_layout["proof"] == "nothing: OCI layouts and engines have no statements"
    attached = Registry(Reference.parse(publisher.where)).referrers(publisher.digest)
    assert [entry.artifact_type for entry in attached] == [SBOM, *[BUNDLE] * 4]
    # The tags go last, the one by stack and lock after the date; none is ever `latest`.
    written = [line for line in publisher.sent() if "/manifests/" in line]
    assert [line.rpartition("/")[2] for line in written[-2:]] == publisher.tags[::-1]
    listed = Registry(Reference.parse(publisher.where))
    assert listed.manifest("latest") is None


def test_no_source_is_signed_that_only_the_image_claims(root: Path, publisher: Publisher, tmp_path: Path) -> None:
    layout, report = tmp_path / "layout", tmp_path / "claims.json"
    labelled(publisher.made, layout, {SOURCE: "https://example.org/evil"})
    report.write_text(json.dumps(reports.complete(root, publisher.made.checkout.root, Layout(layout).image().digest)))
    said = publisher("--image", str(layout), "--report", str(report), code=1)
    assert f"(config) label {SOURCE}: expected none, found https://example.org/evil" in said
    assert publisher.sent() == []


@pytest.mark.parametrize(
    ("fault", "pattern", "said"),
    [
        (
            "cut_up",
            r"PUT .*/blobs/uploads/",
            r"connection lost while sending sha256:[0-9a-f]{64} \(.*\); run it again",
        ),
        ("answers", r"PUT .*/blobs/uploads/", r"PUT sha256:[0-9a-f]{64}: status 500 Internal Server Error; run it again"),
        ("answers", r"PUT .*/manifests/sha256:", r"PUT sha256:[0-9a-f]{64}: status 500 Internal Server Error; run it again"),
        ("answers", r"PUT .*/manifests/sha256-", r"PUT sha256:[0-9a-f]{64}: status 500 Internal Server Error; run it again"),
        ("answers", r"PUT .*/manifests/20250315", r"PUT sha256:[0-9a-f]{64}: status 500 Internal Server Error; run it again"),
        ("answers", r"POST ", r"POST blobs/uploads/: status 500 Internal Server Error; run it again"),
    ],
    ids=["cut in a layer", "refused layer", "refused manifest", "refused list of referrers", "refused tag", "refused upload"],
)
def test_a_broken_push_leaves_no_tag_and_a_second_call_completes(
    publisher: Publisher, fault: str, pattern: str, said: str
) -> None:
    faults: dict[str, Any] = getattr(publisher.proxy.faults, fault)
    faults[pattern] = 1000 if fault == "cut_up" else (500, {})
    line = publisher(code=2)
    assert re.search(f"^smokehouse: {re.escape(publisher.proxy.host)}: {said} to resume$", line), line
    assert not faults
    assert publisher.there() == []
    publisher()
    assert publisher.there() == publisher.tags
    attached = Registry(Reference.parse(publisher.where)).referrers(publisher.digest)
    assert [entry.artifact_type for entry in attached] == [SBOM, *[BUNDLE] * 4]
    before = len(publisher.proxy.received)
    publisher()
    again = [line for line, _ in publisher.proxy.received[before:] if line.startswith("POST")]
    assert len(again) == 4  # statements signed anew; no layer is sent twice


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image": f"sha256:{'0' * 64}"}, "found one of image sha256:0"),
        ({"verdict": "failed", "failure": "rank 1 died"}, "failed (rank 1 died), so it proves nothing"),
        ({"image": None}, "found one of an environment outside an image"),
        ({"world_size": 0}, "invalid report: world_size: 0 is less than the minimum of 1"),
        ({"checks": [reports.check("load", "check", 3)]}, "of ZeRO-3 alone"),
        (
            {"checks": [reports.check("load", "check", stage) for stage in (2, 3)]},
            "checks and controls of the plan, found none of checkpoint, plain run",
        ),
        (None, "report.json: report not found"),
    ],
    ids=["another image", "failed", "no image", "schema", "one stage", "one check", "missing"],
)
def test_an_image_without_a_good_report_is_not_published(
    publisher: Publisher, changes: dict[str, Any] | None, said: str
) -> None:
    if changes is None:
        publisher.report.unlink()
    else:
        made = {name: value for name, value in (publisher.complete | changes).items() if value is not None}
        publisher.report.write_text(json.dumps(made))
    assert said in publisher(code=2)
    assert publisher.sent() == []


def test_a_tag_does_not_move_unless_it_is_told_to(publisher: Publisher) -> None:
    there = Registry(Reference.parse(publisher.where), push=True)
    other = b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}'
    there.put(other, "application/vnd.oci.image.index.v1+json", publisher.tag)
    publisher.proxy.received.clear()
    assert f"{publisher.where}:{publisher.tag}: already exists as sha256:" in publisher(code=2)
    assert publisher.sent() == []
    publisher("--move")
    found = there.manifest(publisher.tag)
    assert found
    assert found[1].digest == publisher.digest
    refused = run(publisher.made.checkout, "publish", "tiny", f"{publisher.where}:latest", code=2).stderr
    assert f"expected a repository, found a tag or digest; specify {publisher.where}: publish chooses the tags" in refused


@pytest.fixture
def small(full_disk: Path, programs: Path, tmp_path: Path) -> Iterator[str]:
    """The address of a registry whose disk has 16 MiB."""
    with registries.started(programs / "registry", full_disk / "store", tmp_path / "small") as port:
        yield f"127.0.0.1:{port}"


def test_a_full_disk_of_the_registry_is_named(publisher: Publisher, small: str, full_disk: Path) -> None:
    publisher.where = f"{small}/checkout/full"
    line = publisher(code=2)
    assert re.search(r"registry disk full at sha256:[0-9a-f]{64}; free disk space there, then run it again", line), line
    assert publisher.there() == []
    subprocess.run(["mount", "-o", "remount,size=1g", str(full_disk)], check=True, timeout=10)
    publisher()
    assert publisher.there() == publisher.tags


def test_a_pull_from_a_broken_network_is_named_and_a_second_call_completes(publisher: Publisher) -> None:
    publisher()
    layer = Layout(publisher.made.layout).image().manifest.layers[0]
    reference = f"{publisher.where}@{publisher.digest}"
    publisher.proxy.faults.lies.add(f"/blobs/{layer.digest}")
    said = run(publisher.made.checkout, "verify", reference, code=2).stderr
    assert f"{layer.digest[7:]}: SHA-256 mismatch, {publisher.proxy.host} serves another file than the lock specifies" in said
    publisher.proxy.faults.lies.clear()
    publisher.proxy.faults.cut_down[f"GET .*/blobs/{layer.digest}"] = 1_000_000
    assert verified(publisher.made.checkout, reference)["passed"]


def test_a_release_publishes_all_environments_and_writes_their_table(publisher: Publisher, root: Path, tmp_path: Path) -> None:
    """The steps of the workflow `release`, against a registry on this machine."""
    record = publisher.made.checkout.lock_json.with_name("image.json")
    assert not record.exists()  # the checkout is shared, and other tests record its image themselves
    try:
        release(publisher, root, record, tmp_path / "release" / "table.md")
    finally:
        record.unlink(missing_ok=True)


def release(publisher: Publisher, root: Path, record: Path, table: Path) -> None:
    given = [
        "--image",
        str(publisher.made.layout),
        "--report",
        str(publisher.report),
        "--key",
        str(publisher.keys / "ours.key"),
    ]
    owner = publisher.where.rpartition("/")[0] + "/release"
    environ = publisher.made.checkout.environ | {"RELEASE_PUBLISH": f"{sys.executable} -m smokehouse publish"}
    command: list[str | Path] = [sys.executable, root / ".ci" / "release", owner, table, "--", *given]
    ended = subprocess.run(command, cwd=publisher.made.checkout.root, env=environ, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    image = Layout(publisher.made.layout).image()
    recorded = json.loads(record.read_text())["flavours"]["runtime"]
    assert (recorded["id"], recorded["digest"]) == (image.manifest.config.digest, image.digest)
    assert table.with_name("tiny.image.json").read_bytes() == record.read_bytes()
    quick = verified(publisher.made.checkout, f"{owner}/tiny@{image.digest}", "--quick")
    assert (quick["passed"], quick["method"], quick["claims"]) == (True, "recorded", [])
    head, _, row = table.read_text().splitlines()
    assert head == "| environment | tag | digest | image ID | report |"
    name, tags, digest, image_id, report = (cell.strip() for cell in row.strip("|").split("|"))
    assert (name, digest, image_id) == ("tiny", f"`{image.digest}`", f"`{image.manifest.config.digest}`")
    assert tags == "<br>".join(f"`{owner}/tiny:{tag}`" for tag in publisher.tags)
    assert " passed under ZeRO-" in report
    there = Registry(Reference.parse(f"{owner}/tiny"))
    assert [found[1].digest for tag in publisher.tags if (found := there.manifest(tag))] == [image.digest] * 2
    # What git has of this lock is another image, in one member: nothing is sent, and image.json stays.
    recorded["config"]["config"]["Labels"][SOURCE] = "https://example.org/x"
    recorded["id"] = f"sha256:{files.sha256(config.encode(recorded['config']))}"
    edited = json.dumps(json.loads(record.read_text()) | {"flavours": {"runtime": recorded}})
    record.write_text(edited)
    table.unlink()
    publisher.proxy.received.clear()
    failed = subprocess.run(command, cwd=publisher.made.checkout.root, env=environ, capture_output=True, text=True, timeout=600)
    assert failed.returncode == 2
    said = (
        f"lockfiles/tiny/image.json: expected the runtime image that was made of this lock ({image.manifest.config.digest}), "
    )
    assert f"{said}found another ({recorded['id']}); make it with " in failed.stderr
    assert (publisher.sent(), table.exists(), record.read_text()) == ([], False, edited)
    publisher.report.unlink()
    failed = subprocess.run(command, cwd=publisher.made.checkout.root, env=environ, capture_output=True, text=True, timeout=600)
    assert failed.returncode == 2
    assert "release: tiny not published; fix it, then run this again" in failed.stderr
    assert not table.exists()
