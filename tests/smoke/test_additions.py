"""What an installation's marker records as added to its lock."""

import json
from pathlib import Path

import pytest
from packaging.version import Version

from smoke_tests import additions
from smoke_tests.additions import Addition

FILE = {"name": "Flash_Attn", "version": "2.7.4", "file": "flash_attn-2.7.4.whl", "size": 1, "sha256": "0" * 64}
PROJECT = {"path": "/work/r1", "name": "open-r1", "version": "0.1.0.dev0", "extras": [], "commit": "", "added": [FILE]}


def test_wheels_and_a_project_with_what_it_needs(tmp_path: Path) -> None:
    marker = {"environment": "tiny", "with": [{**FILE, "name": "liger"}], "project": PROJECT}
    (tmp_path / additions.MARKER).write_text(json.dumps(marker))
    assert additions.find(tmp_path) == {
        "liger": Addition("liger", Version("2.7.4"), "--with"),
        "flash-attn": Addition("flash-attn", Version("2.7.4"), "--with-project /work/r1"),
        "open-r1": Addition("open-r1", Version("0.1.0.dev0"), "--with-project /work/r1"),
    }


@pytest.mark.parametrize("text", ["", "[]", '{"with": 1}', '{"with": [{}]}', '{"project": {"path": "/r1"}}', "\xff"])
def test_a_marker_that_cannot_be_read_adds_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / additions.MARKER).write_text(text, "latin-1")
    assert additions.find(tmp_path) == {}


def test_without_a_marker_nothing_is_added(tmp_path: Path) -> None:
    assert additions.find(tmp_path) == {}
