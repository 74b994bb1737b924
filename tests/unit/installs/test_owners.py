"""No two packages own one path, and what is built from source owns nothing of others: rules of builds and installs."""

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smokehouse.installs import owners, state

SITE = "lib/python3.11/site-packages"
# Names that a package may take by declaring them, though a script of the machine has one of them, and names that it may not.
ENTRY_POINTS = b"""[console_scripts]
script = deepspeed:main
show-all = deepspeed:main
python3 = deepspeed:main
nvidia-smi = deepspeed:main
compiled = deepspeed:main
activate.fish = deepspeed:main
[gui_scripts]
Window = deepspeed:main [extra]
[other]
foreign = deepspeed:main
"""
DECLARED = ("python3", "nvidia-smi", "compiled", "activate.fish", "foreign", "window", "SCRIPT")
PROGRAMS = ("nvidia-smi", "nvidia-cuda-mps-control", "compiled", "python", "conda-tool", "other")


def add(prefix: Path, name: str, files: dict[str, bytes], *, lists: dict[str, bytes] | None = None) -> None:
    """Install a package with `files`, by their path in the environment; its RECORD lists these, or `lists`."""
    info = prefix / SITE / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    for path, data in files.items():
        (prefix / path).parent.mkdir(parents=True, exist_ok=True)
        (prefix / path).write_bytes(data)
    rows = []
    for path, data in (lists or files).items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        shown = path.removeprefix(f"{SITE}/") if path.startswith(SITE) else f"../../../{path}"
        rows.append(f"{shown},sha256={digest},{len(data)}\n")
    (info / "RECORD").write_text("".join(rows) + f"{info.name}/RECORD,,\n")


def add_conda(prefix: Path, name: str, files: dict[str, bytes]) -> None:
    """Install a conda package."""
    (prefix / "conda-meta").mkdir(parents=True, exist_ok=True)
    paths = [{"_path": path, "sha256": hashlib.sha256(data).hexdigest()} for path, data in files.items()]
    (prefix / "conda-meta" / f"{name}.json").write_text(json.dumps({"name": name, "paths_data": {"paths": paths}}))


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """An environment in which all is in order: two packages with a namespace and a licence in common, and conda's Python."""
    prefix = tmp_path / "env"
    add_conda(prefix, "python", {"bin/python": b"\x7fELF", "lib/python3.11/os.py": b"os", "bin/conda-tool": b"#!"})
    add_conda(prefix, "pip", {f"{SITE}/pip-1.0.dist-info/METADATA": b"", f"{SITE}/pip/a.py": b"built by conda"})
    add(prefix, "pip", {f"{SITE}/pip/a.py": b"as pip was published"})
    add(prefix, "torch", {f"{SITE}/torch/__init__.py": b"torch", "bin/other": b"#!", f"{SITE}/space/a.py": b"a"})
    add(prefix, "numpy", {f"{SITE}/numpy/__init__.py": b"numpy", f"{SITE}/LICENSE": b"MIT"})
    add(prefix, "mine", {f"{SITE}/mine/__init__.py": b"mine", f"{SITE}/LICENSE": b"MIT", f"{SITE}/space/b.py": b"b"})
    return prefix


def found(prefix: Path, tmp_path: Path, *built: str) -> list[str]:
    """Return what is wrong, on a machine with one compiled program and one script of its own."""
    system = tmp_path / "system"
    system.mkdir(exist_ok=True)
    (system / "compiled").write_bytes(b"\x7fELF...")
    (system / "script").write_bytes(b"#!/bin/sh\n")
    return owners.problems(prefix, "3.11", {*built}, [system, tmp_path / "none"])


def test_what_packages_share_is_in_order(prefix: Path, tmp_path: Path) -> None:
    own = {
        f"{SITE}/deepspeed/__init__.py": b"",
        f"{SITE}/deepspeed/lib/__pycache__/a.cpython-311.pyc": b"",
        f"{SITE}/space/c.py": b"",
        "bin/ds": b"",
        "bin/ds_report": b"",
        "bin/deepspeed.pt": b"",
        "bin/zeroed": b"",
        f"{SITE}/deepspeed-1.0.dist-info/entry_points.txt": ENTRY_POINTS,
        "bin/script": b"",
        "bin/Window": b"",
        "bin/show-all": b"",
        f"{SITE}/zeroed.py": b"",
        "share/man/man1/ds.1": b"",
        "include/python3.11/deepspeed/a.h": b"",
        "include/site/python3.11/deepspeed/a.h": b"",
    }
    add(prefix, "deepspeed", own)
    assert found(prefix, tmp_path, "deepspeed", "mine") == []


def not_its_own() -> list[str]:
    """Paths that nothing built from source may have."""
    paths = [f"bin/{name}" for name in (*PROGRAMS, "unknown", "script", "dsx", "deepspeedx", "d", "ds/x", "pip3", "activate")]
    paths += ["etc/profile.d/a.sh", "etc/conda/activate.d/a.sh", "lib/libcuda.so.1", "lib/python3.11/os2.py", "ssl/cert.pem"]
    paths += ["sbin/ldconfig", "libexec/a", "include/python3.11/other/a.h", "conda-meta/a.json", "pyvenv.cfg"]
    inside = ["a.pth", "deepspeed.pth", "sitecustomize.py", "usercustomize.py", "torch/new.py", "torch/lib/libtorch.so"]
    return [*paths, *(f"{SITE}/{path}" for path in [*inside, "numpy/core/x.so", "numpy/__pycache__/a.cpython-311.pyc"])]


@pytest.mark.parametrize("path", not_its_own())
def test_what_is_built_keeps_to_its_own(
    prefix: Path, tmp_path: Path, path: str, record_property: Callable[[str, object], None]
) -> None:
    record_property("fault", "built from source, in the place of another")
    add(prefix, "deepspeed", {f"{SITE}/deepspeed/__init__.py": b"", path: b"evil"}, lists={path: b"evil"})
    said = found(prefix, tmp_path, "deepspeed")
    assert said[-1] == f"{path}: built from source by deepspeed, expected its own modules and scripts alone"
    # The same in a wheel of the index, whose hash says what is in it, is refused only where it replaces something.
    assert len(found(prefix, tmp_path)) == len(said) - 1


@pytest.mark.parametrize("name", DECLARED)
def test_a_declared_script_takes_no_name_of_others(
    prefix: Path, tmp_path: Path, name: str, record_property: Callable[[str, object], None]
) -> None:
    record_property("fault", "built from source, in the place of another")
    own = {f"{SITE}/deepspeed/__init__.py": b"", f"{SITE}/deepspeed-1.0.dist-info/entry_points.txt": ENTRY_POINTS}
    add(prefix, "deepspeed", own | {f"bin/{name}": b"evil"})
    assert found(prefix, tmp_path, "deepspeed") == [
        f"bin/{name}: built from source by deepspeed, expected its own modules and scripts alone"
    ]


@pytest.mark.parametrize(
    "text", [b"", b"\xff", b"no section = 1", b"[console_scripts]\nx = a\nx = b\n", b"[console_scripts]\n"]
)
def test_entry_points_that_are_none_declare_nothing(
    prefix: Path, tmp_path: Path, text: bytes, record_property: Callable[[str, object], None]
) -> None:
    record_property("fault", "built from source, in the place of another")
    info = f"{SITE}/deepspeed-1.0.dist-info"
    add(prefix, "deepspeed", {f"{SITE}/deepspeed/__init__.py": b"", f"{info}/entry_points.txt": text, "bin/x": b""})
    assert len(found(prefix, tmp_path, "deepspeed")) == 1


@pytest.mark.parametrize("path", ["torch/__init__.py", "space/a.py", "LICENSE"])
def test_no_package_replaces_a_file_of_another(
    prefix: Path, tmp_path: Path, path: str, record_property: Callable[[str, object], None]
) -> None:
    record_property("fault", "two packages own one path")
    add(prefix, "evil", {f"{SITE}/{path}": b"evil"})
    [said] = found(prefix, tmp_path)
    assert said.startswith(f"{SITE}/{path}: expected one owner, found different files of evil-1.0.dist-info and ")


@pytest.mark.parametrize("path", ["lib/python3.11/os.py", "bin/python", "bin/conda-tool"])
def test_no_package_replaces_a_file_of_conda(
    prefix: Path, tmp_path: Path, path: str, record_property: Callable[[str, object], None]
) -> None:
    record_property("fault", "two packages own one path")
    add(prefix, "evil", {path: b"evil"})
    said = f"{path}: expected one owner, found different files of conda package python and evil-1.0.dist-info"
    assert found(prefix, tmp_path) == [said]


@pytest.mark.parametrize("file", ["RECORD", "METADATA", "direct_url.json", "licenses/a"])
def test_no_package_writes_the_metadata_of_another(
    prefix: Path, tmp_path: Path, file: str, record_property: Callable[[str, object], None]
) -> None:
    record_property("fault", "metadata of another package")
    path = f"{SITE}/torch-1.0.dist-info/{file}"
    add(prefix, "evil", {}, lists={path: b"evil"})
    assert f"{path}: metadata of another package, listed by evil-1.0.dist-info" in found(prefix, tmp_path)


@pytest.mark.parametrize("path", ["../../../../evil", "/etc/profile.d/evil.sh", "x/../../../../../evil"])
def test_no_path_leads_out(prefix: Path, tmp_path: Path, path: str, record_property: Callable[[str, object], None]) -> None:
    record_property("fault", "a path out of the environment")
    add(prefix, "evil", {})
    (prefix / SITE / "evil-1.0.dist-info" / "RECORD").write_text(f"{path},sha256=,1\n")
    assert found(prefix, tmp_path) == [f"{path!r}: listed by evil-1.0.dist-info, expected a path in the environment"]


# Rows and entries as they should be but for one part.
_ROWS = st.lists(
    st.tuples(
        st.sampled_from(["a.py", "a\0.py", "a-1.dist-info/RECORD", "../../../bin/x", "/x", "", "é"]),
        st.sampled_from(["", "sha256=", "sha256=a", "sha256=é", "md5=x", f"sha256={'A' * 43}"]),
        st.sampled_from(["", "1", "²", "9" * 5000, "-1", "x"]),
    ).map(",".join),
    max_size=4,
).map(lambda rows: "\n".join(rows).encode())
_JSON = st.recursive(st.none() | st.integers() | st.text(max_size=3), lambda inner: st.lists(inner, max_size=2), max_leaves=4)
_ENTRY = st.dictionaries(st.sampled_from(["_path", "path_type", "sha256", "size_in_bytes", "prefix_placeholder"]), _JSON)
_META = st.fixed_dictionaries({"name": _JSON, "paths_data": st.fixed_dictionaries({"paths": st.lists(_ENTRY) | _JSON}) | _JSON})


@settings(max_examples=200, deadline=None)
@given(record=st.binary(max_size=200) | _ROWS, meta=st.binary(max_size=100) | _META.map(lambda meta: json.dumps(meta).encode()))
def test_any_record_is_read(tmp_path_factory: pytest.TempPathFactory, record: bytes, meta: bytes) -> None:
    folder = tmp_path_factory.mktemp("env", numbered=True)
    info = folder / SITE / "a-1.dist-info"
    info.mkdir(parents=True)
    (folder / "conda-meta").mkdir()
    (info / "RECORD").write_bytes(record)
    (folder / "conda-meta" / "a.json").write_bytes(meta)
    assert isinstance(owners.problems(folder, "3.11", {"a"}, []), list)
    assert isinstance(state.damage(folder, "3.11", contents=True), list)
