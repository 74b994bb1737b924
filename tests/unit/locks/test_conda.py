"""Conda packages: solved from a channel, written for conda-lock, compatible with the PyPI packages."""

import hashlib
import itertools
import json
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import yaml

from smokehouse import environments, locks
from smokehouse.checkout import Checkout
from smokehouse.console import size as human_size
from smokehouse.locks import Lock

from ..channel import YOUNG, Channel
from ..committed import by_inputs
from ..conftest import Index, TestCheckout

SNAPSHOT = Path(__file__).parents[2] / "data" / "conda-forge"


def read_lock(checkout: TestCheckout) -> Lock:
    """Return the lock.json of `tiny`."""
    return Lock.model_validate_json(checkout.lock_json.read_bytes())


def categories(checkout: TestCheckout) -> dict[str, str]:
    """Return the category of each conda package."""
    return {package.name: package.category for package in read_lock(checkout).conda}


def conda_lock(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the real conda-lock, with a program that does nothing in place of conda: nothing is solved."""
    program = Path(sys.executable).with_name("conda-lock")
    return subprocess.run([program, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120)


def test_lock_lists_every_artefact_once_and_no_mirror(checkout: TestCheckout, channel: Channel, index: Index) -> None:
    checkout.lock("--channel", channel.url)
    found = read_lock(checkout)
    assert {package.name: package.category for package in found.conda} == {
        "certificates": "main",
        "cuda-nvcc": "devel",
        "cuda-version": "devel",
        "gxx-tiny": "devel",
        "libtiny": "main",
        "python": "main",
    }
    for package in found.conda:
        archive = channel.archive(package.name) if package.name not in ("cuda-nvcc", "cuda-version", "libtiny") else None
        assert archive is None or package.sha256 == hashlib.sha256(archive.read_bytes()).hexdigest()
        assert (channel.folder / package.subdir / package.file).stat().st_size == package.size
    assert {file.file: file.sha256 for file in found.pip} == {
        name: hashlib.sha256(index.files[name].data).hexdigest()
        for name in ("alpha-1.0-py3-none-any.whl", "beta-2.0-py3-none-any.whl", "gamma-1.5-py3-none-any.whl")
    }
    assert found.virtual_packages["__cuda"] == "12.4"
    for path in checkout.pins.parent.iterdir():
        text = path.read_text()
        assert "127.0.0.1" not in text
        assert {*re.findall(r"https?://([^/]+)/", text)} <= {"conda.anaconda.org"}


def test_folder_and_server_give_the_same_lock(checkout: TestCheckout, channel: Channel) -> None:
    checkout.lock("--channel", str(channel.folder))
    from_folder = {path.name: path.read_bytes() for path in checkout.pins.parent.iterdir()}
    shutil.rmtree(checkout.pins.parent)
    checkout.lock("--channel", channel.url)
    assert {path.name: path.read_bytes() for path in checkout.pins.parent.iterdir()} == from_folder


def test_cutoff_and_snapshot(checkout: TestCheckout, channel: Channel) -> None:
    checkout.lock("--channel", str(channel.folder))
    before = read_lock(checkout)
    channel.add("libtiny", "3.0", subdir="linux-64", timestamp=YOUNG)
    channel.add("unrelated")
    checkout.lock("--channel", str(channel.folder))
    assert read_lock(checkout) == before
    channel.add("libtiny", "1.5", subdir="linux-64", timestamp=None)
    checkout.lock("--channel", str(channel.folder))
    after = read_lock(checkout)
    assert {package.name: package.version for package in after.conda}["libtiny"] == "1.5"
    assert after.channel.snapshot != before.channel.snapshot


# old text of environment.yml, new text, record to add to the channel, message
UNSOLVABLE = [
    ("cuda-nvcc=12.4", "cuda-nvcc=12.8", (), r"cuda-version 12\.8 would constrain: __cuda >=12\.8"),
    (
        "cuda-nvcc=12.4",
        "cuda-nvcc=12.4\n  - other",
        ("other", "cuda-version >=12.8"),
        r"other \*: other 1\.0 would require: cuda-version >=12\.8: cuda-version 12\.8 would constrain: __cuda >=12\.8",
    ),
    (
        "cuda-nvcc=12.4",
        "cuda-nvcc=12.4\n  - newer",
        ("newer", "__glibc >=2.34"),
        r"newer \*: newer 1\.0 would require: __glibc >=2\.34",
    ),
]


@pytest.mark.parametrize(("old", "new", "record", "message"), UNSOLVABLE, ids=[row[1].split()[-1] for row in UNSOLVABLE])
def test_conflict_lists_the_requirements(
    checkout: TestCheckout, channel: Channel, old: str, new: str, record: tuple[str, str], message: str
) -> None:
    if record:
        channel.add(record[0], depends=(record[1],))
    checkout.edit(checkout.environment, old, new)
    said = checkout.refused("lock", "--channel", str(channel.folder))
    assert re.search(f"environment\\.yml:\\d+: cannot be solved from .*: .*({message})", said), said
    assert not checkout.pins.parent.exists()


def test_servers_with_other_data_than_a_channel(checkout: TestCheckout, channel: Channel) -> None:
    channel.faults.html.add("repodata.json")
    said = checkout.refused("lock", "--channel", channel.url)
    assert "expected the records of a channel, found truncated or other data, as from a captive proxy" in said
    assert said.endswith("; check the network, or specify a mirror or a folder with --channel")
    channel.faults.html.clear()
    repodata = channel.folder / "linux-64" / "repodata.json"
    channel.faults.sent["repodata.json"] = repodata.read_bytes()[:-100]
    assert channel.url.removeprefix("http://") in checkout.refused("lock", "--channel", channel.url)
    channel.faults.sent.clear()
    channel.faults.gone.add("repodata.json")
    assert "cannot be read (" in checkout.refused("lock", "--channel", channel.url)
    assert "127.0.0.1:9" in checkout.refused("lock", "--channel", "http://user:secret@127.0.0.1:9/x")
    assert "secret" not in checkout.refused("lock", "--channel", "http://user:secret@127.0.0.1:9/x")
    assert not checkout.pins.parent.exists()


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("nowhere", r"--channel nowhere: folder not found; specify one with linux-64/repodata\.json and noarch/repodata\.json"),
        ("environments", r"environments/linux-64/repodata\.json: not found; a channel has .*"),
        ("ftp://127.0.0.1/x", r"--channel ftp://127\.0\.0\.1/x: expected a folder or an http URL, found another URL; use .*"),
    ],
)
def test_invalid_channels(checkout: TestCheckout, where: str, message: str) -> None:
    assert re.fullmatch(f"smokehouse: tiny: lock unchanged: {message}", checkout.refused("lock", "--channel", where))


def test_truncated_repodata(checkout: TestCheckout, channel: Channel) -> None:
    repodata = channel.folder / "noarch" / "repodata.json"
    repodata.write_bytes(repodata.read_bytes()[:-40])
    assert re.search(
        r"channel: expected the records of a channel, found truncated or other data",
        checkout.refused("lock", "--channel", str(channel.folder)),
    )


def test_upgrade_changes_one_package_and_the_dependencies_that_must_change(
    checkout: TestCheckout, channel: Channel, index: Index
) -> None:
    del index.files["beta-3.0-py3-none-any.whl"]
    index.add("delta", "1.0")
    for name, version, requires in (("beta", "2.1", ("gamma>=1.6", "alpha")), ("gamma", "1.6", ()), ("delta", "1.1", ())):
        index.add(name, version, requires=requires).uploaded = YOUNG
    checkout.edit(checkout.environment, "- beta", "- beta\n      - delta")
    channel.add("certificates", "2.0", timestamp=YOUNG)
    where = str(channel.folder)
    checkout.lock("--channel", where)
    checkout.edit(checkout.stack, "2025-03-15", "2025-03-20")
    ended = checkout.run("lock", "tiny", "--upgrade", "beta", "--channel", where, "--json")
    moved = {(c["half"], c["package"]): (c["old"], c["new"]) for c in json.loads(ended.stdout)[0]["changes"]}
    assert moved == {("pip", "beta"): ("2.0", "2.1"), ("pip", "gamma"): ("1.5", "1.6")}
    checkout.lock("--upgrade", "libtiny", "--channel", where)
    versions = {package.name: package.version for package in (*read_lock(checkout).conda, *read_lock(checkout).pip)}
    assert (versions["libtiny"], versions["certificates"], versions["delta"]) == ("2.0", "1.0", "1.0")
    checkout.lock("--channel", where)
    versions = {package.name: package.version for package in (*read_lock(checkout).conda, *read_lock(checkout).pip)}
    assert (versions["certificates"], versions["delta"]) == ("2.0", "1.1")
    said = checkout.refused("lock", "tiny", "--upgrade", "libtony", "--channel", where)
    assert said.endswith("--upgrade libtony: not found in the lock of tiny; did you mean libtiny?")


def test_diff_prints_changes_and_writes_nothing(checkout: TestCheckout, channel: Channel, index: Index) -> None:
    where = str(channel.folder)
    checkout.lock("--channel", where)
    before = {path.name: path.read_bytes() for path in checkout.pins.parent.iterdir()}
    checkout.edit(checkout.stack, "2025-03-15", "2025-03-20")
    checkout.edit(checkout.environment, "      - alpha==1.0\n", "")
    ended = checkout.run("lock", "--diff", "--channel", where)
    size = (channel.folder / "linux-64" / "libtiny-2.0-0.conda").stat().st_size
    wheel = len(index.files["beta-3.0-py3-none-any.whl"].data)
    lines = [line.split() for line in ended.stdout.splitlines()]
    assert lines[0] == ["lockfiles/tiny:", "7", "packages,", "would", "change"]
    assert lines[2:5] == [
        ["conda", "libtiny", "1.0", "2.0", *human_size(size).split()],
        ["pip", "alpha", "1.0", "-", "-"],
        ["pip", "beta", "2.0", "3.0", *human_size(wheel).split()],
    ]
    assert lines[-1] == ["4", "changes,", *human_size(size + wheel).split(), "to", "download"]
    assert {path.name: path.read_bytes() for path in checkout.pins.parent.iterdir()} == before
    checkout.lock("--channel", where)
    assert checkout.run("lock", "--diff", "--channel", where).stdout == "lockfiles/tiny: 7 packages, unchanged\n"


# file, old text, new text, wheels to add, message
INCOMPATIBLE = [
    (
        "version",
        '"12.4"',
        '"12.8"',
        [("nvidia-cuda-runtime-cu12", "12.8.1", ())],
        r"cuda-nvcc 12\.4\.131 from conda: expected CUDA 12\.8, .*, found CUDA 12\.4; use one release",
    ),
    (
        "",
        "",
        "",
        [("nvidia-cuda-runtime-cu12", "12.8.1", ())],
        r"runtime-cu12 12\.8\.1: expected CUDA 12\.4, .* and of cuda-.*, found CUDA 12\.8; use one release",
    ),
    (
        "",
        "",
        "",
        [("torch", "2.6.0+cu118", ())],
        r"torch 2\.6\.0\+cu118: expected CUDA 12\.4, .*, found CUDA 11\.8; use one release",
    ),
    (
        "",
        "",
        "",
        [("nvidia-nccl-cu12", "2.21", ()), ("nvidia-nccl-cu11", "2.20", ())],
        r"two copies of one library: nvidia-nccl-cu11 2\.20 \(required by environment\.yml\) and nvidia-nccl-cu12 2\.21",
    ),
    (
        "",
        "",
        "",
        [("opencv-python", "1.0", ()), ("opencv-python-headless", "1.0", ())],
        r"opencv-python 1\.0 .* and opencv-python-headless 1\.0 .* install the same module; keep one",
    ),
]


@pytest.mark.parametrize(("file", "old", "new", "wheels", "message"), INCOMPATIBLE, ids=[row[3][0][0] for row in INCOMPATIBLE])
def test_incompatible_conda_and_pypi_packages(
    checkout: TestCheckout,
    channel: Channel,
    index: Index,
    file: str,
    old: str,
    new: str,
    wheels: list[tuple[str, str, tuple[str]]],
    message: str,
) -> None:
    for name, version, requires in wheels:
        index.add(name.replace("-", "_"), version, requires=requires)
        text = checkout.environment.read_text()
        checkout.environment.write_text(f"{text}      - {name}\n")
    if file:
        checkout.edit(checkout.stack, old, new)
    said = checkout.refused("lock", "--channel", str(channel.folder))
    assert said.startswith("smokehouse: tiny: lock unchanged: ")
    assert re.search(message, said), said


def test_package_from_conda_and_from_pypi(checkout: TestCheckout, channel: Channel, index: Index) -> None:
    where = str(channel.folder)
    channel.add("alpha", "9.0", depends=("python",))
    checkout.edit(checkout.environment, "  - cuda", "  - alpha\n  - cuda")
    found = "expected in the conda or the PyPI packages, found in both:"
    said = checkout.refused("lock", "--channel", where)
    assert f"alpha: {found} conda 9.0 and PyPI 1.0 (required by beta, environment.yml); remove it from the conda" in said
    checkout.edit(checkout.environment, "      - alpha==1.0\n      - beta", "      - gamma")
    said = checkout.refused("lock", "--channel", where)
    assert "expected no Python packages from conda, found alpha 9.0; move what requires it to the pip list" in said
    # The same name for another thing: the conda package has no module.
    channel.add("alpha", "9.0")
    checkout.lock("--channel", where)
    channel.add("ninja", "1.11")
    index.add("ninja", "1.12")
    checkout.edit(checkout.environment, "  - alpha\n", "  - ninja\n")
    checkout.edit(checkout.environment, "- gamma", "- ninja")
    assert f"ninja: {found} conda 1.11 and PyPI 1.12 (" in checkout.refused("lock", "--channel", where)


def test_library_from_conda_and_from_pypi_at_run_time(checkout: TestCheckout, channel: Channel, index: Index) -> None:
    channel.add("nccl", "2.22")
    index.add("nvidia_nccl_cu12", "2.21")
    checkout.edit(checkout.environment, "- cuda-nvcc=12.4", "- cuda-nvcc=12.4\n  - nccl")
    checkout.edit(checkout.environment, "- beta", "- nvidia-nccl-cu12")
    said = checkout.refused("lock", "--channel", str(channel.folder))
    assert "two copies of one library at run time: conda nccl 2.22 and PyPI nvidia-nccl-cu12 2.21" in said
    checkout.edit(checkout.stack, '["cuda-nvcc"]', '["cuda-nvcc", "nccl"]')
    checkout.lock("--channel", str(channel.folder))


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        (
            ("cp312-cp312-manylinux_2_28_x86_64", "cp310-cp310-manylinux2014_x86_64"),
            r"expected wheels for Python 3\.11, found cp310, cp312",
        ),
        (
            ("cp311-cp311-manylinux_2_34_x86_64", "cp312-cp312-manylinux_2_28_x86_64"),
            r"expected wheels for glibc 2\.28 or older, found glibc 2\.34",
        ),
        (("cp311-cp311-win_amd64",), r"expected a file for Python 3\.11 on x86_64-manylinux_2_28, found none"),
    ],
)
def test_incompatible_wheels(checkout: TestCheckout, index: Index, tags: tuple[str, ...], message: str) -> None:
    for tag in tags:
        index.add("zeta", tag=tag)
    checkout.edit(checkout.environment, "- beta", "- zeta")
    said = checkout.refused("lock")
    assert re.search(rf"zeta==1\.0: {message}; pin|zeta.*(glibc|Python 3|Python ABI|platform)", said), said


# One requirement in each form that environment.yml may have.
FORMS = """\
  - certificates>=1,<2
  - cuda-version==12.4
  - libtiny!=1.7
"""
PIP_FORMS = """\
      - gamma>=1,<2
      - delta[b,a]~=1.0
      - Epsilon.Zeta
"""


@pytest.mark.parametrize("forms", [False, True])
def test_conda_lock_accepts_the_lock(checkout: TestCheckout, index: Index, tmp_path: Path, forms: bool) -> None:
    index.add("delta", "1.0")
    index.add("epsilon_zeta", "1.0")
    if forms:
        checkout.edit(checkout.environment, "  - cuda", FORMS + "  - cuda")
        checkout.environment.write_text(checkout.environment.read_text() + PIP_FORMS)
    checkout.lock()
    before = checkout.conda_lock.read_bytes()
    assert_locked(checkout.root, "tiny", "12.4", tmp_path)
    assert checkout.conda_lock.read_bytes() == before


def assert_locked(root: Path, name: str, cuda: str, work: Path) -> None:
    """Assert that the real conda-lock accepts the lock of `name` as its own for environment.yml."""
    (work / "names.json").write_text("{}")
    checked = conda_lock(
        "lock",
        *("--check-input-hash", "--conda", "/bin/true", "-p", "linux-64", "--with-cuda", cuda),
        *("--pypi_to_conda_lookup_file", str(work / "names.json")),
        *(option for file in environments.read(Checkout(root), name).files for option in ("-f", str(file))),
        *("--lockfile", str(root / "lockfiles" / name / "conda-lock.yml")),
        cwd=work,
    )
    assert "Spec hash already locked for ['linux-64']. Skipping solve." in checked.stderr, checked.stderr


def rendered(path: Path, work: Path, *options: str) -> list[str]:
    """Return the URLs of the packages that conda-lock would install."""
    ended = conda_lock("render", "-k", "explicit", "-p", "linux-64", *options, str(path), cwd=work)
    assert ended.returncode == 0, ended.stderr
    return [line for line in (work / "conda-linux-64.lock").read_text().splitlines() if line.startswith("https")]


@pytest.mark.parametrize("name", by_inputs())
def test_committed_lock_is_read_by_conda_lock_and_rattler(root: Path, tmp_path: Path, name: str) -> None:
    locked = locks.load(Checkout(root), name)
    found, conda_lock_yml = locked.lock, locked.files.conda_lock
    assert_locked(root, name, locked.cuda, tmp_path)
    for options, packages in (((), found.main), (("-e", "devel"), found.conda)):
        names = [address.rsplit("/", 1)[1].split("#")[0] for address in rendered(conda_lock_yml, tmp_path, *options)]
        assert sorted(names) == sorted(package.file for package in packages)
    script = """
import json, os, sys
from pathlib import Path
import rattler
[(_, environment)] = rattler.LockFile.from_path(Path(sys.argv[1])).environments()
[platform] = environment.platforms()
print(json.dumps(sorted(str(package.location) for package in environment.packages(platform))), flush=True)
os._exit(0)
"""
    read = subprocess.run(
        [sys.executable, "-c", script, conda_lock_yml], capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(read.stdout) == sorted(
        f"https://conda.anaconda.org/conda-forge/{package.subdir}/{package.file}" for package in found.conda
    )
    assert all("=" not in package.version for package in found.conda)


@pytest.mark.parametrize("name", by_inputs())
def test_committed_environment_solves_to_its_lock(root: Path, name: str, tmp_path: Path) -> None:
    from smokehouse.locks.solvers import conda

    locked = locks.load(Checkout(root), name)
    found = locked.lock
    solution = conda.solve(locked.environment.conda, str(SNAPSHOT))
    assert tuple(solved.package for solved in solution.packages) == found.conda
    assert found.channel.snapshot == solution.snapshot
    # What a runtime image has: no compiler and nothing of CUDA.
    assert not [package.name for package in found.main if re.search("cuda|gcc_impl|gxx|cublas|nvcc", package.name)]
    assert sum(package.size for package in found.main) < 100e6


def test_environments_of_one_stack_differ_in_what_they_add(root: Path) -> None:
    """A package that two environments of a stack have is one file, so that images share it; the rest is counted."""
    checkout = Checkout(root)
    by_stack = defaultdict(list)
    for name in checkout.environments():
        locked = locks.load(checkout, name)
        if stack := locked.environment.stack.stack:
            files = {("conda", package.name): package.file for package in locked.lock.conda}
            files |= {("pip", package.name): package.file for package in locked.lock.pip}
            by_stack[stack].append((name, locked.environment.own, files))
    pairs = [pair for group in by_stack.values() for pair in itertools.combinations(group, 2)]
    assert pairs
    assert {path.name for path in (root / "environments" / "stacks").iterdir()} == {*by_stack}
    other_files = [
        f"{key}: {one[key]} in {first}, {other[key]} in {second}"
        for (first, _, one), (second, _, other) in pairs
        for key in one.keys() & other.keys()
        if one[key] != other[key]
    ]
    assert other_files == []
    for (first, own, one), (second, also, other) in pairs:
        differing = one.keys() ^ other.keys()
        assert bool(differing) == bool(own ^ also), (first, second)
        assert len(differing) <= 20 * len(own | also), (first, second, differing)  # what each brings along


def test_lock_file_is_plain_yaml(checkout: TestCheckout) -> None:
    checkout.lock()
    content = yaml.safe_load(checkout.conda_lock.read_text())
    assert content["version"] == 1
    assert content["metadata"]["sources"] == ["../../environments/tiny/environment.yml"]
    assert {package["name"]: package["optional"] for package in content["package"]} == {
        name: category == "devel" for name, category in categories(checkout).items()
    }
