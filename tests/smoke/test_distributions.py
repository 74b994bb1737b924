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
    assert (found.problems, found.notes) == ({}, [])


def test_two_of_one_name_in_one_folder_are_a_problem(tmp_path: Path) -> None:
    add(tmp_path, "alpha", "1.0")
    add(tmp_path, "Alpha", "2.0")
    assert distributions.find([str(tmp_path)]).problems == {"alpha": f"alpha is installed twice in {tmp_path} (2.0 and 1.0)"}


def test_the_first_folder_shadows_the_others(tmp_path: Path) -> None:
    add(tmp_path / "user", "alpha", "1.0")
    add(tmp_path / "system", "alpha", "2.0")
    found = distributions.find([str(tmp_path / "user"), str(tmp_path / "system"), str(tmp_path / "none"), ""])
    assert found.versions == {"alpha": "1.0"}
    assert found.notes == [f"alpha 2.0 in {tmp_path / 'system'} is shadowed by 1.0 in {tmp_path / 'user'}"]
    assert found.problems == {}


def test_one_folder_that_is_listed_twice_is_read_once(tmp_path: Path) -> None:
    add(tmp_path / "lib", "alpha", "1.0")
    (tmp_path / "lib64").symlink_to("lib")
    found = distributions.find([str(tmp_path / "lib"), str(tmp_path / "lib64")])
    assert (found.problems, found.notes) == ({}, [])


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
    assert alpha.edited([str(module)]) == ([], 0)
    module.write_text("one = 2\n")
    assert alpha.edited([str(module)]) == ([str(module)], 0)
    assert alpha.edited([]) == ([], 0)
    (alpha.info / "RECORD").unlink()
    with pytest.raises(OSError, match="RECORD"):
        alpha.edited([str(module)])


@pytest.mark.parametrize("cut", ["", "alpha/__ini", "alpha/__init__.py", "\n\n", "\xf6,sha256=x,1\n"])
def test_files_that_a_cut_record_lacks_are_counted(tmp_path: Path, cut: str) -> None:
    """As a disk that was full leaves it, or what another program wrote."""
    module = add(tmp_path, "alpha", "1.0")
    (tmp_path / "alpha-1.0.dist-info" / "RECORD").write_bytes(cut.encode("latin-1"))
    assert distributions.find([str(tmp_path)]).distributions["alpha"].edited([str(module)]) == ([], 1)


def source_tree(folder: Path, version: str) -> Path:
    """Write the metadata that setuptools leaves beside the modules of a source tree, and return its folder."""
    info = folder / "alpha.egg-info"
    info.mkdir(parents=True)
    (info / "PKG-INFO").write_text(f"Metadata-Version: 2.1\nName: alpha\nVersion: {version}\n\nVersion: 9.9\n")
    return folder


def test_a_source_tree_on_the_path_has_the_version_of_its_metadata(tmp_path: Path) -> None:
    """As PYTHONPATH=src puts it there, before what is installed."""
    source_tree(tmp_path / "src", "2.0.dev0")
    add(tmp_path / "site", "alpha", "1.0")
    found = distributions.find([str(tmp_path / "src"), str(tmp_path / "site")])
    assert found.versions == {"alpha": "2.0.dev0"}
    assert f"alpha 1.0 in {tmp_path / 'site'} is shadowed by 2.0.dev0 in {tmp_path / 'src'}" in found.notes


def test_an_egg_link_is_the_source_tree_that_it_refers_to(tmp_path: Path) -> None:
    """As `setup.py develop` leaves it, with the tree behind it on the path."""
    tree = source_tree(tmp_path / "src", "2.0")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "alpha.egg-link").write_text(f"{tree}\n.")
    found = distributions.find([str(tmp_path / "site"), str(tree)])
    assert found.versions == {"alpha": "2.0"}
    assert found.distributions["alpha"].editable
    assert found.notes == [f"alpha 2.0 is editable, from {tree}"]


@pytest.mark.parametrize("text", [b"", b"\n", b"/nowhere\n.", b"\xf6\n"])
def test_an_egg_link_to_nothing_is_named(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "alpha.egg-link").write_bytes(text)
    [note] = distributions.find([str(tmp_path)]).notes
    assert note == f"{tmp_path}/alpha.egg-link: expected a name and a version, found an invalid one"
