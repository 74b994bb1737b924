"""What is installed, by metadata alone: duplicates, shadows, editable installs, other origins, edited files."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from smoke_tests import distributions


def add(site: Path, name: str, version: str, *, direct: Any = None, installer: str = "pip", code: str = "") -> Path:
    """Install a distribution with one module as installers do, and return the module's file."""
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    module = site / name / "__init__.py"
    module.parent.mkdir(exist_ok=True)
    module.write_text(code)
    digest = base64.urlsafe_b64encode(hashlib.sha256(code.encode()).digest()).rstrip(b"=").decode()
    (info / "RECORD").write_text(f"{name}/__init__.py,sha256={digest},{len(code)}\n{name}-{version}.dist-info/RECORD,,\n")
    (info / "INSTALLER").write_text(f"{installer}\n")
    if direct is not None:
        (info / "direct_url.json").write_text(direct if isinstance(direct, str) else json.dumps(direct))
    return module


def test_versions_are_sorted_by_canonical_name(tmp_path: Path) -> None:
    add(tmp_path, "Zope_Interface", "7.0")
    add(tmp_path, "alpha", "1.0+cu124")
    (tmp_path / "old-2.0-py3.11.egg-info").touch()
    found = distributions.find([str(tmp_path)])
    assert found.versions == {"alpha": "1.0+cu124", "old": "2.0", "zope-interface": "7.0"}
    assert list(found.versions) == sorted(found.versions)
    assert (found.problems, found.notes) == ([], [])


def test_two_of_one_name_in_one_folder_are_a_problem(tmp_path: Path) -> None:
    add(tmp_path, "alpha", "1.0")
    add(tmp_path, "Alpha", "2.0")
    assert distributions.find([str(tmp_path)]).problems == [f"alpha is installed twice in {tmp_path} (2.0 and 1.0)"]


def test_the_first_folder_shadows_the_others(tmp_path: Path) -> None:
    add(tmp_path / "user", "alpha", "1.0")
    add(tmp_path / "system", "alpha", "2.0")
    found = distributions.find([str(tmp_path / "user"), str(tmp_path / "system"), str(tmp_path / "none"), ""])
    assert found.versions == {"alpha": "1.0"}
    assert found.notes == [f"alpha 2.0 in {tmp_path / 'system'} is shadowed by 1.0 in {tmp_path / 'user'}"]
    assert found.problems == []


def test_one_folder_that_is_listed_twice_is_read_once(tmp_path: Path) -> None:
    add(tmp_path / "lib", "alpha", "1.0")
    (tmp_path / "lib64").symlink_to("lib")
    found = distributions.find([str(tmp_path / "lib"), str(tmp_path / "lib64")])
    assert (found.problems, found.notes) == ([], [])


@pytest.mark.parametrize(
    ("direct", "installer", "notes"),
    [
        ({"url": "file:///src", "dir_info": {"editable": True}}, "pip", ["alpha 1.0 is editable, from file:///src"]),
        ({"url": "file:///src", "dir_info": {}}, "uv", ["alpha 1.0 is installed from file:///src"]),
        (
            {"url": "https://example.org/a.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            "pip",
            ["alpha 1.0 is installed from https://example.org/a.git at abc"],
        ),
        ({"url": "file:///home/conda/work", "dir_info": {}}, "conda", []),
        ("[]", "pip", ["alpha 1.0 is installed from an unknown place: direct_url.json is invalid"]),
        ("{", "pip", ["alpha 1.0 is installed from an unknown place: direct_url.json is invalid"]),
    ],
)
def test_what_came_from_no_index_is_named(tmp_path: Path, direct: Any, installer: str, notes: list[str]) -> None:
    add(tmp_path, "alpha", "1.0", direct=direct, installer=installer)
    found = distributions.find([str(tmp_path)])
    assert found.notes == notes
    assert found.distributions["alpha"].editable == ("editable" in "".join(notes))


def test_development_and_invalid_versions_are_named(tmp_path: Path) -> None:
    add(tmp_path, "alpha", "1.0.dev0")
    (tmp_path / "broken-new!.dist-info").mkdir()
    notes = distributions.find([str(tmp_path)]).notes
    assert notes[0].startswith(f"{tmp_path}/broken-new!.dist-info: expected a name and a version")
    assert notes[1:] == ["alpha 1.0.dev0 is a development version"]


def test_an_edited_file_differs_from_record(tmp_path: Path) -> None:
    module = add(tmp_path, "alpha", "1.0", code="one = 1\n")
    alpha = distributions.find([str(tmp_path)]).distributions["alpha"]
    assert alpha.edited([str(module)]) == []
    module.write_text("one = 2\n")
    assert alpha.edited([str(module)]) == [str(module)]
    assert alpha.edited([]) == []
    (alpha.info / "RECORD").unlink()
    with pytest.raises(OSError, match="RECORD"):
        alpha.edited([str(module)])
