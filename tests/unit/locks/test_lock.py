"""Locks: reproducible bytes, the file that an installer takes, and every way to be out of date."""

import hashlib
import json
import re
import resource
import shutil
import subprocess
import sys
import zipfile
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from uv import find_uv_bin

from smokehouse import locks
from smokehouse.checkout import Checkout
from smokehouse.environments.inputs import Inputs
from smokehouse.errors import UserError
from smokehouse.locks import tools
from smokehouse.locks.solvers import pip as pip_solver
from smokehouse.locks.solvers.sdist import build_requirements
from smokehouse.locks.wheel_tags import Artefact
from smokehouse.locks.writing import writing
from smokehouse.programs import uv

from ... import recorded_index
from ..committed import by_inputs
from ..conftest import Index, TestCheckout, sdist

# A build backend of a few lines, so that a build requires no network.
BACKEND = """\
import pathlib, zipfile
def build_wheel(folder, config_settings=None, metadata_directory=None):
    metadata = pathlib.Path("PKG-INFO").read_text()
    fields = dict(line.split(": ") for line in metadata.splitlines())
    stem = f"{fields['Name']}-{fields['Version']}"
    module = pathlib.Path(f"{fields['Name']}.py")
    with zipfile.ZipFile(pathlib.Path(folder, f"{stem}-py3-none-any.whl"), "w") as wheel:
        wheel.writestr(module.name, module.read_text() if module.exists() else "built_with = 'backend'")
        wheel.writestr(f"{stem}.dist-info/METADATA", metadata)
        wheel.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{stem}.dist-info/RECORD", "")
    return f"{stem}-py3-none-any.whl"
"""
PYPROJECT = '[build-system]\nrequires = ["backend>=1"]\nbuild-backend = "backend"\n'


def add_sdist(checkout: TestCheckout, index: Index) -> None:
    """Make `tiny` require delta, which has a source distribution only."""
    index.add("backend", "1.0", code=BACKEND)
    index.add("backend", "1.1", code=BACKEND).uploaded = "2025-03-16T00:00:00Z"
    index.put("delta-1.0.tar.gz", sdist("delta", "1.0", {"pyproject.toml": PYPROJECT}))
    checkout.edit(checkout.environment, "- beta", "- beta\n      - delta")


def lock_files(checkout: TestCheckout) -> dict[str, bytes]:
    """Every file of the lock by name."""
    return {path.name: path.read_bytes() for path in sorted(checkout.pins.parent.iterdir())}


def pins(text: str) -> dict[str, list[str]]:
    """The hashes of each package of a requirements file."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if "==" in line and not line.startswith("#"):
            found[line.split("==")[0]] = hashes = []
        elif "--hash" in line:
            hashes.append(line.split("sha256:")[1].rstrip(" \\"))
    return found


def test_two_runs_give_the_same_bytes(checkout: TestCheckout, index: Index) -> None:
    add_sdist(checkout, index)
    checkout.lock()
    first = lock_files(checkout)
    shutil.rmtree(checkout.pins.parent)
    checkout.edit(
        checkout.environment, "- alpha==1.0\n      - beta\n      - delta", "- delta\n      - beta\n      - Alpha == 1.0"
    )
    ended = checkout.run("lock")
    assert ended.stdout.startswith("lockfiles/tiny: 10 packages, written\n")
    assert lock_files(checkout) == first
    assert checkout.run("lock").stdout == "lockfiles/tiny: 10 packages, unchanged\n"


def test_lock_lists_files_and_dependents_and_no_host(checkout: TestCheckout, index: Index) -> None:
    add_sdist(checkout, index)
    checkout.lock()
    text, build_text = checkout.pins.read_text(), checkout.build_pins.read_text()
    listed = {name: hashlib.sha256(file.data).hexdigest() for name, file in index.files.items()}
    assert pins(text) == {
        "alpha": [listed["alpha-1.0-py3-none-any.whl"]],
        "beta": [listed["beta-2.0-py3-none-any.whl"]],
        "delta": [listed["delta-1.0.tar.gz"]],
        "gamma": [listed["gamma-1.5-py3-none-any.whl"]],
    }
    assert pins(build_text) == {"backend": [listed["backend-1.0-py3-none-any.whl"]]}
    assert re.findall("# via (.*)", text) == ["beta, environment.yml", "environment.yml", "environment.yml", "beta"]
    assert re.findall("# via (.*)", build_text) == ["delta"]
    for written in (text, build_text):
        assert "://" not in written
        assert "127.0.0.1" not in written


def test_build_requirements_of_build_requirements(checkout: TestCheckout, index: Index) -> None:
    add_sdist(checkout, index)
    del index.files["backend-1.0-py3-none-any.whl"]
    del index.files["backend-1.1-py3-none-any.whl"]
    index.add("bootstrap", code=BACKEND)
    needs = '[build-system]\nrequires = ["bootstrap"]\nbuild-backend = "bootstrap"\n'
    index.put("backend-1.0.tar.gz", sdist("backend", "1.0", {"pyproject.toml": needs, "backend.py": BACKEND}))
    checkout.lock()
    assert [*pins(checkout.build_pins.read_text())] == ["backend", "bootstrap"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (sdist("delta", "1.0", {"pyproject.toml": "[build-system"}), r"invalid source distribution \(.*\)"),
        (sdist("delta", "1.0", {"pyproject.toml": "[build-system]\n"}), r"invalid source distribution \(.*\)"),
        (
            sdist("delta", "1.0", {"pyproject.toml": "[build-system]\nrequires = 1"}),
            "requires: expected a list of text",
        ),
        (
            sdist("delta", "1.0", {"pyproject.toml": '[build-system]\nrequires = ["a @ file:///a"]'}),
            "expected a package of an index, found the URL or path",
        ),
        (
            sdist("delta", "1.0", {"pyproject.toml": "#" * (1 << 20) + "\n"}),
            r"\.toml: expected at most 1 MiB, found more",
        ),
        (b"no archive", r"invalid source distribution \(.*\)"),
    ],
)
def test_broken_sdist(index: Index, content: bytes, message: str) -> None:
    index.put("delta-1.0.tar.gz", content)
    url = f"{index.base}/files/delta-1.0.tar.gz"
    with pytest.raises(UserError, match=rf"^delta-1\.0\.tar\.gz: .*{message}"):
        build_requirements(Artefact("delta-1.0.tar.gz", url, hashlib.sha256(content).hexdigest(), 0))


def test_sdist_with_another_hash(index: Index) -> None:
    index.put("delta-1.0.tar.gz", sdist("delta", "1.0", {}))
    url = f"{index.base}/files/delta-1.0.tar.gz"
    with pytest.raises(UserError, match=f"expected SHA-256 {'0' * 64}, the index serves another file; use another index"):
        build_requirements(Artefact("delta-1.0.tar.gz", url, "0" * 64, 0))
    with pytest.raises(UserError, match=r"cannot be downloaded \(.*\); check the network"):
        build_requirements(Artefact("delta-1.0.tar.gz", "http://127.0.0.1:9/delta-1.0.tar.gz", "0" * 64, 0))


def test_build_requirements_of_other_sdists(tmp_path: Path) -> None:
    old, zipped = tmp_path / "delta-1.0.tar.gz", tmp_path / "delta-1.0.zip"
    old.write_bytes(sdist("delta", "1.0", {"setup.py": ""}))
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("delta-1.0/tests/pyproject.toml", "[build-system")
        archive.writestr("delta-1.0/pyproject.toml", PYPROJECT)
    for path, expected in ((old, "setuptools>=40.8.0"), (zipped, "backend>=1")):
        file = Artefact(path.name, path.as_uri(), hashlib.sha256(path.read_bytes()).hexdigest(), 0)
        assert [str(requirement) for requirement in build_requirements(file)] == [expected]


def test_selected_file_is_what_uv_installs(checkout: TestCheckout, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the selected file, over and over, until only the source distribution is left."""
    for name, value in checkout.environ.items():
        monkeypatch.setenv(name, value)
    for tag in (
        "cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64",
        "cp311-cp311-manylinux_2_28_x86_64",
        "cp311-cp311-manylinux_2_36_x86_64",
        "cp311-cp311-manylinux1_x86_64",
        "cp311-cp311-linux_x86_64",
        "cp311-cp311-musllinux_1_2_x86_64",
        "cp311-cp311-manylinux_2_28_aarch64",
        "cp311-cp311-win_amd64",
        "cp312-cp312-manylinux_2_28_x86_64",
        "cp38-abi3-manylinux_2_17_x86_64",
        "cp311-abi3-manylinux_2_17_x86_64",
        "cp311-none-manylinux_2_17_x86_64",
        "cp311-none-any",
        "py311-none-any",
        "py310-none-any",
        "py38-none-any",
        "py3-none-any",
        "2-py3-none-any",
        "10-py3-none-any",
        "py3-none-manylinux_2_17_x86_64",
        "py312-none-any",
    ):
        index.add("zeta", tag=tag, code=f"{tag = }\n")
    index.add("backend", code=BACKEND)
    index.put("zeta-1.0.tar.gz", sdist("zeta", "1.0", {"pyproject.toml": PYPROJECT}))
    inputs = Inputs("test", (Requirement("zeta"),), "3.11", "x86_64-manylinux_2_28", date(2025, 3, 15))
    selected = ""
    order: list[str] = []
    while not selected.endswith(".tar.gz"):
        [package] = pip_solver.resolve(inputs)
        [file] = package.files
        selected = file.name
        target = checkout.root / str(len(order))
        subprocess.run(
            [find_uv_bin(), "pip", "install", "--quiet", "--target", str(target), "zeta"]
            + [f"--python-version={inputs.python}", f"--python-platform={inputs.platform}"],
            env=checkout.environ,
            check=True,
            timeout=60,
        )
        installed = (target / "zeta.py").read_text()
        expected = selected.removeprefix("zeta-1.0-").removesuffix(".whl")
        assert installed == ("built_with = 'backend'" if selected.endswith(".tar.gz") else f"tag = {expected!r}\n")
        order.append(selected)
        del index.files[selected]
    assert len(order) > 10
    assert {name for name in index.files if name.startswith("zeta")}.isdisjoint(order)


# file, old text, new text, message of --check
OUT_OF_DATE = [
    ("environment.yml", "alpha==1.0", "alpha==1.1", r"lock out of date: environment\.yml requires alpha==1\.1, lock has 1\.0"),
    (
        "environment.yml",
        "- beta",
        "- beta\n      - delta>1",
        r"lock out of date: environment\.yml requires delta>1, lock has no such package",
    ),
    ("environment.yml", "      - beta\n", "", r"lock out of date: environment\.yml no longer requires beta, lock still has it"),
    (
        "environment.yml",
        "- beta",
        "- beta>=1",
        r"lock out of date: version ranges, extras or left_out changed, or an older version .*",
    ),
    (
        "environment.yml",
        "- beta",
        "- beta[x]",
        r"lock out of date: version ranges, extras or left_out changed, or an older version .*",
    ),
    ("environment.yml", "python=3.11", "python=3.12", r"lock out of date: Python: expected 3\.12, lock has 3\.11"),
    ("stack.toml", "2025-03-15", "2025-03-14", r"lock out of date: cut-off: expected 2025-03-14, lock has 2025-03-15"),
    ("stack.toml", "manylinux_2_28", "manylinux_2_17", r"lock out of date: platform: expected .*_2_17, lock has .*_2_28"),
    (
        "stack.toml",
        '"vllm"',
        '"flash-attn"',
        r"lock out of date: version ranges, extras or left_out changed, or an older version .*",
    ),
    (
        "requirements.txt",
        "alpha==1.0",
        "alpha==1.1",
        r"requirements\.txt was edited since the lock was made",
    ),
    ("requirements.txt", "# via beta\n", "# via alpha\n", r"requirements\.txt was edited since .*"),
    ("requirements.txt", "# platform: x86", "# platform: arm", r"requirements\.txt was edited since .*"),
    ("build-requirements.txt", "never", "always", r"build-requirements\.txt was edited since the lock was made"),
    ("conda-lock.yml", "never", "always", r"conda-lock\.yml was edited since the lock was made"),
    ("lock.json", '"format": 1', '"format": 2', r"format: Input should be 1"),
    ("lock.json", '"pip"', '"pipe"', r"pip: Field required"),
    (
        "environment.yml",
        "cuda-nvcc=12.4",
        "cuda-nvcc>=12.4",
        "lock out of date: the specs of conda packages changed, or an older version .*",
    ),
    (
        "environment.yml",
        "- cuda-nvcc",
        "- libtiny\n  - cuda-nvcc",
        "lock out of date: the specs of conda packages changed, or an older version .*",
    ),
    (
        "environment.yml",
        "- cuda-nvcc",
        "- tiny-gxx\n  - cuda-nvcc",
        r"lock out of date: environment\.yml requires tiny-gxx, lock has no such conda package",
    ),
    (
        "stack.toml",
        'devel = ["cuda-nvcc"]',
        "devel = []",
        r"lock out of date: cuda-nvcc: expected category main, lock has devel",
    ),
    ("stack.toml", 'version = "12.4"', 'version = "12.8"', r"lock out of date: __cuda: expected 12\.8, lock has 12\.4"),
]


@pytest.mark.parametrize(("file", "old", "new", "message"), OUT_OF_DATE, ids=[f"{row[0]}: {row[2]!r}" for row in OUT_OF_DATE])
def test_check_reports_what_differs(checkout: TestCheckout, file: str, old: str, new: str, message: str) -> None:
    checkout.lock()
    assert checkout.run("lock", "--check").returncode == 0
    checkout.edit((checkout.folder if (checkout.folder / file).exists() else checkout.pins.parent) / file, old, new)
    ended = checkout.run("lock", "--check", "tiny")
    assert ended.returncode == 1
    line = rf"smokehouse: (lockfiles/)?tiny(/\S+)?: {message}; run smokehouse lock tiny\n"
    assert re.fullmatch(line, ended.stderr), ended.stderr
    assert re.fullmatch(line, checkout.refused("smoke", "tiny") + "\n")


def test_check_reports_missing_files(checkout: TestCheckout) -> None:
    def check() -> str:
        ended = checkout.run("lock", "--check")
        assert ended.returncode == 1
        return ended.stderr.removeprefix("smokehouse: ")

    where = "lockfiles/tiny/lock.json"
    assert check() == f"{where}: not found; run smokehouse lock tiny\n"
    checkout.lock()
    checkout.build_pins.unlink()
    assert check() == f"{where}: build-requirements.txt not found; run smokehouse lock tiny\n"
    checkout.lock()
    (checkout.root / "lockfiles" / "old").mkdir()
    assert check() == "lockfiles/old: environment not found; remove the folder\n"


def test_lock_of_the_tools_has_one_writer_at_a_time(tmp_path: Path) -> None:
    """Its name is a path."""
    checkout = Checkout(tmp_path)
    with writing(checkout, tools.pin_file(checkout).name):
        assert [path.name for path in checkout.build.iterdir()] == [".lock-lockfiles-tools.txt.lock"]


def test_check_covers_the_tools(checkout: TestCheckout) -> None:
    checkout.lock()
    checkout.edit(checkout.root / "pyproject.toml", '"hypothesis",', '"hypothesis", "no-such-tool",')
    ended = checkout.run("lock", "--check")
    message = "lock out of date: pyproject.toml requires no-such-tool, lock has no such package; run smokehouse lock --tools"
    assert (ended.returncode, ended.stderr) == (1, f"smokehouse: lockfiles/tools.txt: {message}\n")


def test_check_imports_no_solver(checkout: TestCheckout) -> None:
    checkout.lock()
    code = "import sys; from smokehouse.cli import main; print(main(), *sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", code, "lock", "--check"],
        cwd=checkout.root,
        env=checkout.environ,
        capture_output=True,
        text=True,
        timeout=60,
    )
    result, *modules = ended.stdout.split()
    assert result == "0", ended.stderr
    assert "smokehouse.locks.check" in modules
    assert {"rattler", "conda_lock", "uv", "smokehouse.locks.draft", "smokehouse.locks.solvers"}.isdisjoint(modules)


def test_check_needs_no_network_and_less_than_a_second(checkout: TestCheckout, index: Index) -> None:
    checkout.lock()
    index.server.server_close()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert checkout.run("lock", "--check", UV_DEFAULT_INDEX="http://127.0.0.1:9", PATH="").returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor time, which a busy machine does not stretch.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


# old text of environment.yml, new text, line, message
UNSOLVABLE = [
    ("- beta", "- no-such-package", 9, "no-such-package was not found in the package registry"),
    ("- beta", "- beta==9.9", 9, "there is no version of beta==9.9"),
    ("- beta", "- beta\n      - gamma<1", 9, "because you require gamma<1"),
    ("- alpha==1.0", "- alpha==7", 8, "there is no version of alpha==7"),
    ("- cuda-nvcc=12.4", "- cuda-nvcc=99", 6, "solved from"),
    ("- cuda-nvcc=12.4", "- cuda-nvcc=12.4\n  - nowhere", 7, "No candidates were found for nowhere"),
    (
        "- cuda-nvcc=12.4",
        "- cuda-nvcc=12.4\n  - libtiny=2.0",
        7,
        "libtiny 2.0 is excluded because the package is uploaded after the cutoff date",
    ),
    ("- beta", "- beta==3.0", 9, "The cut-off hides beta, which was published on 2025-03-16; request an older version"),
]


@pytest.mark.parametrize(("old", "new", "line", "message"), UNSOLVABLE, ids=[row[1] for row in UNSOLVABLE])
def test_unsolvable_environment_leaves_the_lock(checkout: TestCheckout, old: str, new: str, line: int, message: str) -> None:
    checkout.lock()
    before = lock_files(checkout)
    checkout.edit(checkout.environment, old, new)
    said = checkout.refused("lock")
    assert said.startswith(f"smokehouse: tiny: lock unchanged: environments/tiny/environment.yml:{line}: cannot be "), said
    assert message in said
    assert re.search("; (change a requirement of this conflict, .*|request an older version, or move the cut-off)$", said)
    assert lock_files(checkout) == before


def test_unreachable_index(checkout: TestCheckout) -> None:
    said = checkout.refused("lock", UV_DEFAULT_INDEX="http://user:secret@127.0.0.1:9/simple")
    assert "the package index at 127.0.0.1:9 cannot be reached; check the network, or set UV_DEFAULT_INDEX" in said
    assert "secret" not in said


def test_index_without_upload_times(checkout: TestCheckout, index: Index) -> None:
    for file in index.files.values():
        file.uploaded = None
    assert "alpha, which has no file that the index dates earlier; request an older version" in checkout.refused("lock")


def test_development_version_is_refused(checkout: TestCheckout, index: Index) -> None:
    index.files = {name: file for name, file in index.files.items() if not name.startswith("gamma")}
    index.add("gamma", "1.5.dev0")
    assert "gamma: expected a release, found the development version 1.5.dev0; pin a release" in checkout.refused("lock")


def test_excluded_package_is_refused(checkout: TestCheckout) -> None:
    checkout.edit(checkout.stack, '"vllm"', '"Gamma"')
    assert "gamma is left out in stack.toml, but a package requires it; find it with uv tree" in checkout.refused("lock")


def test_user_settings_of_uv_do_not_change_a_lock(checkout: TestCheckout, tmp_path: Path) -> None:
    checkout.lock()
    before = checkout.pins.read_bytes()
    constraint = tmp_path / "constraint.txt"
    constraint.write_text("gamma==0\n")
    shutil.rmtree(checkout.pins.parent)
    ended = checkout.run(
        "lock",
        UV_CONSTRAINT=str(constraint),
        UV_EXCLUDE_NEWER="2030-01-01",
        UV_RESOLUTION="lowest",
        UV_PRERELEASE="allow",
    )
    assert ended.returncode == 0, ended.stderr
    assert checkout.pins.read_bytes() == before


def test_full_disk_leaves_the_lock(checkout: TestCheckout, full_disk: Path) -> None:
    checkout.lock()
    shutil.copytree(checkout.pins.parent, full_disk / "tiny")
    shutil.rmtree(checkout.pins.parent)
    checkout.pins.parent.symlink_to(full_disk / "tiny")
    before = lock_files(checkout)
    checkout.edit(checkout.stack, "2025-03-15", "2025-03-14")
    (full_disk / "filler").write_bytes(b"x" * shutil.disk_usage(full_disk).free)
    assert "No space left on device" in checkout.refused("lock")
    assert lock_files(checkout) == before


def test_unsettled_cutoff_is_refused(checkout: TestCheckout) -> None:
    settled = datetime.now(UTC).date() - timedelta(days=14)
    young = settled + timedelta(days=1)
    checkout.edit(checkout.stack, "2025-03-15", f"{young}")
    assert checkout.refused("lock") == (
        f"smokehouse: environments/tiny/stack.toml: expected a cutoff of {settled} or earlier, found {young}: "
        f"an index adds files for 14 days; use an earlier cutoff, or --unsettled"
    )
    assert not checkout.pins.exists()
    assert checkout.run("lock", "--unsettled").returncode == 0
    assert json.loads(checkout.lock_json.read_text())["unsettled"] is True
    checkout.edit(checkout.stack, f"{young}", f"{settled}")
    assert checkout.run("lock").returncode == 0
    assert "unsettled" not in json.loads(checkout.lock_json.read_text())


def test_drift_is_how_the_lock_would_change_today(checkout: TestCheckout, index: Index) -> None:
    checkout.lock()
    before = lock_files(checkout)
    assert checkout.run("lock", "--drift").returncode == 0
    index.add("beta", "2.5", requires=("gamma>=1",))  # uploaded before the cut-off, listed after the lock was made
    ended = checkout.run("lock", "--drift")
    assert ended.returncode == 1
    assert re.search(r"lockfiles/tiny: \d+ packages, would change\n.*\npip +beta +2\.0 +2\.5", ended.stdout)
    assert json.loads(checkout.run("lock", "--drift", "--json").stdout)[0]["changed"] is True
    assert lock_files(checkout) == before
    checkout.edit(checkout.environment, "alpha==1.0", "alpha>=1.0")
    assert "lock out of date" in checkout.refused("lock", "--drift")


@pytest.mark.parametrize("name", by_inputs())
def test_committed_environment_resolves_to_its_lock(root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = locks.load(Checkout(root), name)
    lock = locked.lock
    with recorded_index.serving(name) as environ:
        for variable, value in environ.items():
            monkeypatch.setenv(variable, value)
        packages, builds = recorded_index.resolved(name)
    assert [(file.name, file.version, file.file, file.sha256) for file in lock.pip] == [
        (package.name, package.version, package.files[0].name, package.files[0].sha256) for package in packages
    ]
    assert [(file.name, file.sha256) for file in lock.build] == [(p.name, p.files[0].sha256) for p in builds]
    found = pins(locked.files.pins.path.read_text())
    assert found == {file.name: [file.sha256] for file in lock.pip}


@pytest.mark.parametrize("wrong", ["hash", "nothing"])
def test_sdist_is_built_with_its_locked_requirements_or_not_at_all(
    checkout: TestCheckout, index: Index, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_sdist(checkout, index)
    checkout.lock()
    for name, value in checkout.environ.items():
        monkeypatch.setenv(name, value)
    checkout.installed.parent.mkdir(parents=True)
    uv.create_environment(checkout.installed, "3.11")
    digest = pins(checkout.build_pins.read_text())["backend"][0]
    other = checkout.root / "other.txt"
    other.write_text(checkout.build_pins.read_text().replace(digest, "0" * 64) if wrong == "hash" else "")
    with pytest.raises(UserError, match=r"backend.*(with another hash|no trusted hash)|(another hash|no trusted).*backend"):
        uv.install(checkout.installed, checkout.pins, other, ["delta"])
    uv.install(checkout.installed, checkout.pins, checkout.build_pins, ["delta"])
    # A wheel in the cache that was built with the locked backend is not used for another backend.
    shutil.rmtree(checkout.installed)
    uv.create_environment(checkout.installed, "3.11")
    with pytest.raises(UserError):
        uv.install(checkout.installed, checkout.pins, other, ["delta"])
