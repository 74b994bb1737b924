"""Which versions a record of OSV or of Debian's tracker affects, and what is refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from smokehouse.audits import debian_tracker, osv
from smokehouse.audits.documents import InvalidError, parse_json
from smokehouse.audits.model import Package, Vulnerability, merge

from . import records
from .records import BSDUTILS, TORCH


def found(version: str, *events: dict[str, str], **changes: Any) -> Vulnerability | None:
    """What a record with `events` says of a version of torch."""
    record = osv.parse_record(records.osv("T-1", "Torch", *events, **changes))
    return osv.vulnerability_of(record, Package("PyPI", "torch", version, "torch", version))


ZERO = {"introduced": "0"}


@pytest.mark.parametrize(
    ("events", "affected", "safe"),
    [
        ([ZERO], ["0.0.0a1", "1", "9999"], []),
        ([ZERO, {"fixed": "2.6.0"}], ["2.5.9", "2.6.0rc1", "2.6.0.dev1"], ["2.6.0", "2.6.0+cu124", "3"]),
        ([ZERO, {"last_affected": "2.6.0"}], ["2.6.0", "2.6.0+cu124", "1"], ["2.6.0.post1", "2.6.1"]),
        ([{"introduced": "2.0"}, {"fixed": "2.1"}], ["2.0", "2.0.9"], ["1.9", "2.1"]),
        ([{"fixed": "1.2"}, {"introduced": "2.0"}, ZERO, {"fixed": "2.1"}], ["1.1", "2.0.5"], ["1.2", "1.9", "2.1"]),
        ([ZERO, {"limit": "2.0"}], ["1.9"], ["2.0", "2.1"]),
        ([ZERO, {"limit": "*"}], ["99"], []),
        ([{"introduced": "1!0"}], ["1!0.1"], ["99"]),
    ],
    ids=["all", "fixed", "last affected", "introduced", "two, unordered", "limit", "no limit", "epoch"],
)
def test_a_range_is_evaluated_as_osv_says(events: list[dict[str, str]], affected: list[str], safe: list[str]) -> None:
    assert [version for version in affected if not found(version, *events)] == []
    assert [version for version in safe if found(version, *events)] == []


RELEASES = st.integers(0, 30).map(lambda number: f"{number // 3}.{number % 3}")


@given(RELEASES, RELEASES, RELEASES)
def test_a_version_is_affected_between_introduced_and_fixed(version: str, introduced: str, fixed: str) -> None:
    expected = Version(introduced) <= Version(version) < Version(fixed)
    if Version(introduced) >= Version(fixed):
        return
    assert bool(found(version, {"introduced": introduced}, {"fixed": fixed})) == expected


def test_the_fix_is_the_next_one() -> None:
    hit = found("2.6.0+cu124", ZERO, {"fixed": "2.5"}, {"introduced": "2.6"}, {"fixed": "2.8"})
    assert hit
    assert hit.fixed == "2.8"


def test_a_version_in_the_list_is_affected_without_a_range() -> None:
    affected = [{"package": {"ecosystem": "PyPI", "name": "torch"}, "versions": ["2.6", "not a version"]}]
    assert found("2.6.0+cu124", affected=affected)
    assert not found("2.6.1", affected=affected)


@pytest.mark.parametrize("event", [{"introduced": "nonsense"}, {"fixed": "2.x"}, {"last_affected": ""}])
def test_what_cannot_be_compared_is_reported_with_a_note(event: dict[str, str]) -> None:
    hit = found("2.6.0", ZERO, event)
    assert hit
    assert "is not a version of PyPI, so it cannot be excluded" in hit.note


@pytest.mark.parametrize(
    "changes",
    [
        {"withdrawn": "2026-01-01T00:00:00Z"},
        {"affected": [{"package": {"ecosystem": "npm", "name": "torch"}, "versions": ["2.6.0"]}]},
        {"affected": [{"package": {"ecosystem": "PyPI", "name": "torchvision"}, "versions": ["2.6.0"]}]},
        {"affected": [{"package": {"ecosystem": "PyPI", "name": "torch"}, "ranges": [{"type": "GIT", "events": [ZERO]}]}]},
        {"affected": []},
    ],
    ids=["withdrawn", "another ecosystem", "another package", "commits", "nothing"],
)
def test_what_does_not_hold_is_not_reported(changes: dict[str, Any]) -> None:
    assert found("2.6.0", **changes) is None


@pytest.mark.parametrize(
    ("place", "word", "severity"),
    [
        ("database_specific", "CRITICAL", "critical"),
        ("database_specific", "MEDIUM", "moderate"),
        ("database_specific", 7, "unknown"),
    ],
)
def test_severity_is_that_of_the_database(place: str, word: object, severity: str) -> None:
    hit = found("2.6.0", ZERO, **{place: {"severity": word}})
    assert hit
    assert hit.severity == severity


def test_records_that_share_a_name_are_one_finding() -> None:
    known = [
        ("GHSA-1", ["CVE-2026-1"], "moderate", ""),
        ("PYSEC-9", ["CVE-2026-9"], "low", "3"),
        ("PYSEC-1", ["CVE-2026-1"], "unknown", "2.7"),
        ("CVE-2026-2", [], "high", ""),
        ("GHSA-2", ["CVE-2026-2", "PYSEC-9"], "unknown", ""),  # joins two that were apart
    ]
    merged = merge(TORCH, [Vulnerability(a, frozenset(b), "", c, d) for a, b, c, d in known])  # type: ignore[arg-type]
    assert [(one.id, one.aliases, one.severity, one.fixed) for one in merged] == [
        ("CVE-2026-2", ("CVE-2026-9", "GHSA-2", "PYSEC-9"), "high", "3"),
        ("CVE-2026-1", ("GHSA-1", "PYSEC-1"), "moderate", "2.7"),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"{", "not JSON"),
        (b'{"id": "A", "id": "B"}', "key 'id' occurs twice"),
        (b'{"id": "A", "affected": [{"x": {"y": 1, "y": 2}}]}', "key 'y' occurs twice"),
        (b'{"id": NaN}', "NaN is not a number of JSON"),
        (b'{"id": "\xff"}', "not JSON"),
        (b"[" * 100_000, "nested more than 64 levels deep"),
        (b'{"id": "' + b"a" * 2000 + b'"}', "more than 0 MiB"),
    ],
    ids=["no JSON", "duplicate", "duplicate below", "constant", "no UTF-8", "deep", "large"],
)
def test_json_that_is_ambiguous_or_too_large_is_refused(text: bytes, said: str) -> None:
    with pytest.raises(InvalidError, match=said):
        parse_json(text, 1000 if b"aaa" in text else 1_000_000)


@pytest.mark.parametrize(
    "changes",
    [
        {"id": 7},
        {"id": "../../etc/passwd"},
        {"id": "A\x1b[2J"},
        {"aliases": "CVE-1"},
        {"aliases": [{"x": 1}]},
        {"affected": {}},
        {"affected": [{"package": {"ecosystem": "PyPI", "name": 3}}]},
        {
            "affected": [
                {"package": {"ecosystem": "PyPI", "name": "x"}, "ranges": [{"type": "ECOSYSTEM", "events": [{"fixed": 2}]}]}
            ]
        },
        {"withdrawn": 1},
    ],
)
def test_a_record_of_wrong_types_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidError, match="not an OSV record"):
        osv.parse_record(records.osv("T-1", "torch", ZERO) | changes)


def tracked(**release: Any) -> list[Vulnerability]:
    """What the tracker says of bsdutils."""
    issues = debian_tracker.parse_source(records.tracker("util-linux", "CVE-2026-1", **release)["util-linux"], "util-linux")
    return debian_tracker.vulnerabilities_of(issues, BSDUTILS, "bookworm")


@pytest.mark.parametrize(
    ("release", "affected"),
    [
        ({"status": "open", "urgency": "low"}, True),
        ({"status": "undetermined"}, True),
        ({"status": "resolved", "fixed_version": "0"}, False),
        ({"status": "resolved", "fixed_version": "2.38.1-5+deb12u3"}, False),
        # By the binary's own version, which has an epoch, it would be fixed.
        ({"status": "resolved", "fixed_version": "2.38.1-5+deb12u4"}, True),
        ({"status": "resolved", "fixed_version": "not a version"}, True),
    ],
)
def test_the_tracker_is_read_by_source_package_and_its_version(release: dict[str, Any], affected: bool) -> None:
    assert bool(tracked(**release)) == affected


def test_what_debian_says_besides_is_a_note() -> None:
    [hit] = tracked(status="open", urgency="unimportant", nodsa="Minor issue", nodsa_reason="postponed")
    assert (hit.severity, hit.fixed, hit.note) == ("unimportant", "", "no Debian advisory (postponed: Minor issue)")


def test_another_release_is_not_ours() -> None:
    issues = debian_tracker.parse_source(records.tracker("util-linux", "CVE-1", status="open")["util-linux"], "util-linux")
    assert debian_tracker.vulnerabilities_of(issues, BSDUTILS, "trixie") == []


@pytest.mark.parametrize("data", [[], {"CVE-1": 1}, {"CVE-1": {"releases": {"bookworm": {"status": "fine"}}}}, {"a b": {}}])
def test_records_that_are_not_the_trackers_are_refused(data: Any) -> None:
    with pytest.raises(InvalidError, match=r"not records of Debian's tracker: util-linux\."):
        debian_tracker.parse_source(data, "util-linux")
