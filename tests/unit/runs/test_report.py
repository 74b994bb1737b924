"""Reports that are read: what proves something, what is only printed, and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from smokehouse.checkout import Checkout
from smokehouse.errors import UserError
from smokehouse.runs import report as reports

from ...integration.reports import check, report

DIGEST, LOCK = f"sha256:{'d' * 64}", "a" * 64


def written(folder: Path, **changes: Any) -> Path:
    file = folder / "report.json"
    file.write_text(json.dumps(report(DIGEST, LOCK, **changes)))
    return file


def run(root: Path, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "smokehouse", "report", *arguments],
        cwd=cwd or root,
        env={**os.environ, "PYTHONPATH": str(root / "src")},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_table_is_printed_as_at_the_end_of_a_run(root: Path) -> None:
    shown = root / "docs" / "environments" / "qwen2.5-vl.json"
    readme = (root / "README.md").read_text()
    ended = run(root, str(shown))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert f"```\n{ended.stdout}```" in readme


@pytest.mark.parametrize("name", ["report.json", ""])
def test_a_failed_or_partial_report_is_printed(root: Path, tmp_path: Path, name: str) -> None:
    checks = [check("load", "check", 3, "failed")]
    written(tmp_path, verdict="failed", failure="rank 1 died", partial="--zero 3", checks=checks)
    ended = run(root, str(tmp_path / name))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "load  FAIL      seen\n" in ended.stdout
    assert "\npartial run: --zero 3; it is no proof of an environment\nFAILED (partial)  tiny: " in ended.stdout


def test_json_is_the_report(root: Path, tmp_path: Path) -> None:
    ended = run(root, str(written(tmp_path)), "--json")
    assert json.loads(ended.stdout) == report(DIGEST, LOCK)


def test_a_hostile_report_gives_no_command_to_the_terminal(root: Path, tmp_path: Path) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\u202e\ud800"
    checks = [check("load" + evil, "check", 3, "known-issue") | {"detail": evil}]
    file = written(tmp_path, environment="tiny" + evil, checks=checks, not_run=[{"name": evil, "reason": evil}], partial=evil)
    for arguments in ([str(file)], [str(file), "--json"]):
        ended = run(root, *arguments)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert all(character.isprintable() or character == "\n" for character in ended.stdout)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "invalid report: not JSON"),
        ("\x1b[2J", "invalid report: not JSON"),
        ("{}", "invalid report: the report: 'environment' is a required property"),
        ("[" * 100_000, "invalid report: not JSON"),
        (json.dumps({"\x1b[2J": 1}), "invalid report: the report: "),
        (json.dumps(report(DIGEST, LOCK, seconds=10**400)), "invalid report: not JSON (number of 401 digits)"),
        (" " * (9 << 20), "expected a report of at most 8 MiB, found a larger file"),
    ],
)
def test_a_file_that_is_no_report_is_refused_in_a_sentence(root: Path, tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "other.json"
    file.write_text(text)
    ended = run(root, str(file))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"smokehouse: {file}: {problem}")
    assert ended.stderr.endswith("; give the report.json of a smoke test, or run smokehouse smoke\n")
    assert ended.stderr.rstrip("\n").isprintable()


@pytest.mark.parametrize(("name", "problem"), [("none.json", "report not found"), ("a" * 300, "cannot read the report (File")])
def test_a_file_that_cannot_be_read_is_refused(root: Path, tmp_path: Path, name: str, problem: str) -> None:
    ended = run(root, name, cwd=root)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"smokehouse: {name}: {problem}")


def test_a_report_of_a_lock_with_more_beside_it_is_printed_and_proves_nothing(root: Path, tmp_path: Path) -> None:
    added = [{"name": "open-r1", "version": "0.1.0", "by": "--with-project /work/r1"}]
    file = written(tmp_path, added=added)
    assert "\nadded: open-r1 0.1.0, by --with-project /work/r1\n" in run(root, str(file)).stdout
    with pytest.raises(
        UserError, match=r"expected a report of a lock alone, found one with open-r1 0\.1\.0 added; run it again"
    ):
        reports.read(Checkout(root), file, "tiny", "run it again")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"partial": "--zero 3"}, "with --zero 3"),
        ({"partial": "--only load", "not_requested": ["train", "save"]}, "without train, save"),
        # An earlier version did not say so.
        ({"checks": [check("checkpoint", "check"), check("load", "check", 3)]}, "of ZeRO-3 alone"),
    ],
)
def test_a_partial_report_proves_nothing(root: Path, tmp_path: Path, changes: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError) as refused:
        reports.read(Checkout(root), written(tmp_path, **changes), "tiny", "run it again")
    assert str(refused.value) == (
        f"{tmp_path}/report.json: expected a report of all checks, found a partial one, {part}; run it again, "
        "without --zero, --only and --skip"
    )
