"""Bundles: everything that a machine without a network needs, verified by hashes."""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import tomllib
from pathlib import Path

import pytest
from packaging.pylock import Pylock

from smokehouse.errors import UserError
from smokehouse.storage.download import _run_all
from smokehouse.storage.files import hashed

from ..channel import Channel
from ..conftest import Index, TestCheckout, wheel
from ..edited_locks import read
from ..locks.test_lock import add_sdist
from .test_prefix import install, run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the bundle."""
    return tmp_path / "stick" / "bundle"


@pytest.fixture
def command(folder: Path, channel: Channel, checkout: TestCheckout) -> list[str]:
    """The command that bundles `checkout`, after locking it."""
    checkout.lock("--channel", str(channel.folder))
    return ["bundle", "tiny", str(folder), "--channel", channel.url]


def bundle(checkout: TestCheckout, command: list[str], **environ: str) -> None:
    """Run `command`, which must succeed."""
    ended = checkout.run(*command, **environ)
    assert ended.returncode == 0, ended.stderr


def without_network(checkout: TestCheckout, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line without any network, not even loopback."""
    unshare = ["unshare", "--net", "--map-root-user"]
    if (tried := subprocess.run([*unshare, "true"], capture_output=True, text=True, timeout=10)).returncode:
        pytest.skip(f"unshare --net failed: {tried.stderr.strip()}")
    return subprocess.run(
        [*unshare, *checkout.command(*arguments)],
        cwd=checkout.root,
        env=checkout.environ,
        capture_output=True,
        text=True,
        timeout=120,
    )


def files(folder: Path) -> set[str]:
    """Return the paths of all files in `folder`."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_bundle_has_everything_with_its_hash(checkout: TestCheckout, folder: Path, command: list[str]) -> None:
    bundle(checkout, command)
    lock = read(checkout)
    contents = json.loads((folder / "manifest.json").read_text())
    assert (contents["environment"], contents["halves"], contents["devel"]) == ("tiny", ["conda", "pip"], False)
    assert {*contents["files"]} == files(folder) - {"manifest.json"}
    assert {*contents["files"]} == {
        "pylock.toml",
        *(f"lock/{name}" for name in ("lock.json", "conda-lock.yml", "requirements.txt", "build-requirements.txt")),
        *(f"wheels/{file.file}" for file in lock.pip),
        *(f"conda/{package.subdir}/{package.file}" for package in lock.main),
    }
    assert all(hashed(folder / path) == digest for path, digest in contents["files"].items())
    assert all((checkout.pins.parent / name).read_bytes() == (folder / "lock" / name).read_bytes() for name in lock.files)


def test_bundle_with_the_toolkit(checkout: TestCheckout, folder: Path, command: list[str], tmp_path: Path) -> None:
    bundle(checkout, command)
    target = tmp_path / "target"
    said = checkout.refused("install", "tiny", str(target), "--bundle", str(folder), "--devel")
    assert said.startswith(
        f"smokehouse: {folder}: expected compilers and CUDA toolkit, found none; run smokehouse bundle tiny {folder} --devel"
    )
    bundle(checkout, [*command, "--devel"])
    assert list((folder / "conda").rglob("cuda-nvcc-*"))
    install(checkout, ["install", "tiny", str(target), "--bundle", str(folder), "--devel"])
    assert run(target / "bin" / "nvcc") == f"{target}\n"
    # A bundle with more packages than required is accepted.
    install(checkout, ["install", "tiny", str(tmp_path / "small"), "--bundle", str(folder)])
    assert not (tmp_path / "small" / "bin" / "nvcc").exists()


def test_standard_lock_in_a_bundle_installs(checkout: TestCheckout, folder: Path, command: list[str], tmp_path: Path) -> None:
    bundle(checkout, command)
    text = (folder / "pylock.toml").read_text()
    pylock = Pylock.from_dict(tomllib.loads(text))
    assert [(package.name, str(package.version)) for package in pylock.packages] == [
        ("alpha", "1.0"),
        ("beta", "2.0"),
        ("gamma", "1.5"),
    ]
    moved = shutil.copytree(folder, tmp_path / "moved")
    shutil.rmtree(folder)
    uv = [str(Path(sys.executable).with_name("uv")), "pip", "install", "--offline", "--no-index", "--no-cache"]
    environ = {name: text for name, text in checkout.environ.items() if not name.startswith("UV_")}
    subprocess.run(
        [*uv, "--python", sys.executable, "--target", tmp_path / "site", "-r", moved / "pylock.toml"],
        env=environ,
        cwd=tmp_path,
        check=True,
        capture_output=True,
        timeout=60,
    )
    assert (tmp_path / "site" / "gamma.py").is_file()


def test_installation_without_a_network(
    checkout: TestCheckout, folder: Path, command: list[str], index: Index, channel: Channel, tmp_path: Path
) -> None:
    add_sdist(checkout, index)
    checkout.lock("--channel", str(channel.folder))
    bundle(checkout, command)
    target = tmp_path / "target"
    ended = without_network(checkout, "install", "tiny", str(target), "--bundle", str(folder))
    assert ended.returncode == 0, ended.stderr
    assert run(target / "bin" / "alpha") == "hello\n"
    assert run(target / "bin" / "python", "-c", "import delta; print(delta.__name__)") == "delta\n"


@pytest.mark.parametrize("with_conda", [True, False])
def test_smoke_from_a_bundle_requests_nothing(
    checkout: TestCheckout, folder: Path, command: list[str], index: Index, channel: Channel, tmp_path: Path, with_conda: bool
) -> None:
    bundle(checkout, command if with_conda else [*command, "--only", "pip"])
    requests = index.requests
    channel.requests.clear()
    fresh = str(tmp_path / "fresh")
    ended = checkout.run("smoke", "tiny", "--zero", "2", "--bundle", str(folder), UV_CACHE_DIR=fresh)
    assert ended.returncode == 0, ended.stderr
    assert (index.requests, channel.requests) == (requests, [])
    said = json.loads(ended.stdout)
    installed = checkout.root / "build" / "bundled" / "tiny"
    assert said["python"] == str(installed / "bin" / "python")
    assert Path(said["alpha"]).is_relative_to(installed)
    assert said["argv"][-2:] == ["--zero", "2"]
    assert (installed / "etc" / "libtiny.conf").exists() == with_conda
    again = checkout.run("smoke", "tiny", f"--bundle={folder}")
    assert (again.returncode, again.stderr) == (0, "")


def test_bundle_of_pypi_packages_only(
    checkout: TestCheckout, folder: Path, command: list[str], channel: Channel, tmp_path: Path
) -> None:
    bundle(checkout, [*command, "--only", "pip"])
    assert json.loads((folder / "manifest.json").read_text())["halves"] == ["pip"]
    assert not (folder / "conda").exists()
    assert not channel.requests
    said = checkout.refused("install", "tiny", str(tmp_path / "target"), "--bundle", str(folder))
    assert said.startswith(
        f"smokehouse: {folder}: expected conda packages, found PyPI packages only; run smokehouse bundle tiny {folder}"
    )


def test_interrupted_bundle_is_resumed(checkout: TestCheckout, folder: Path, command: list[str], channel: Channel) -> None:
    archive = channel.archive("python").name
    channel.faults.cut[archive] = 5_000_000
    channel.faults.lost.add(archive)
    assert f"{archive}: " in checkout.refused(*command)
    assert not (folder / "manifest.json").exists()
    said = checkout.refused("install", "tiny", str(folder.parent / "target"), "--bundle", str(folder))
    assert said.startswith(f"smokehouse: {folder}: expected a complete bundle, manifest.json not found; run smokehouse bundle")
    channel.faults.gone.clear()
    channel.requests.clear()
    # The PyPI packages are complete, so the index is not used again.
    bundle(checkout, command, UV_DEFAULT_INDEX="http://127.0.0.1:9")
    assert channel.ranges(archive) == ["bytes=5000000-"]


def test_complete_bundle_is_verified_and_unchanged(
    checkout: TestCheckout, folder: Path, command: list[str], channel: Channel
) -> None:
    bundle(checkout, command)
    before = (folder / "manifest.json").read_bytes()
    channel.requests.clear()
    bundle(checkout, command, UV_DEFAULT_INDEX="http://127.0.0.1:9")
    assert not channel.requests
    archive = next((folder / "conda" / "linux-64").glob("libtiny-*"))
    archive.write_bytes(b"edited")
    bundle(checkout, command, UV_DEFAULT_INDEX="http://127.0.0.1:9")
    assert [path for path, _ in channel.requests] == [f"linux-64/{archive.name}"]
    assert (folder / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("hard_links", [True, False])
def test_bundle_takes_files_from_another_one(
    checkout: TestCheckout, folder: Path, command: list[str], channel: Channel, index: Index, tmp_path: Path, hard_links: bool
) -> None:
    bundle(checkout, command)
    if hard_links:
        _take_from(checkout, folder, tmp_path, channel, index, command)
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:  # another file system, to which no hard link is possible
        assert Path(place).stat().st_dev != tmp_path.stat().st_dev
        earlier = Path(shutil.move(folder, Path(place, "bundle")))
        _take_from(checkout, earlier, tmp_path, channel, index, command)


def _take_from(
    checkout: TestCheckout, earlier: Path, tmp_path: Path, channel: Channel, index: Index, command: list[str]
) -> None:
    """Check that a second bundle is made of the files of `earlier`, except for one that is damaged."""
    before = (earlier / "manifest.json").read_bytes()
    archive = next((earlier / "conda" / "linux-64").glob("libtiny-*"))
    damaged = bytes(archive.stat().st_size)
    archive.write_bytes(damaged)
    channel.requests.clear()
    requests = index.requests
    second = tmp_path / "second"
    bundle(checkout, [*command[:2], str(second), *command[3:], "--from", str(earlier)])
    assert [path for path, _ in channel.requests] == [f"linux-64/{archive.name}"]
    assert index.requests == requests
    assert (second / "manifest.json").read_bytes() == before
    assert archive.read_bytes() == damaged
    for path, digest in json.loads(before)["files"].items():
        assert hashed(second / path) == digest


def test_bundle_from_what_is_none(checkout: TestCheckout, command: list[str], tmp_path: Path) -> None:
    assert checkout.refused(*command, "--from", str(tmp_path)) == (
        f"smokehouse: --from {tmp_path}: expected a bundle, found none; specify the folder of another bundle"
    )


def test_bundle_of_an_older_lock_is_updated(checkout: TestCheckout, folder: Path, command: list[str], channel: Channel) -> None:
    bundle(checkout, command)
    assert (folder / "wheels" / "beta-2.0-py3-none-any.whl").exists()
    checkout.edit(checkout.environment, "      - beta\n", "")
    checkout.lock("--channel", str(channel.folder))
    said = checkout.refused("smoke", "tiny", "--bundle", str(folder))
    assert said.startswith(
        f"smokehouse: {folder}: expected a bundle of lockfiles/tiny, found one of another lock; check that one out, or"
    )
    bundle(checkout, command)
    assert [path.name for path in (folder / "wheels").iterdir()] == ["alpha-1.0-py3-none-any.whl"]


@pytest.mark.parametrize("path", ["wheels/gamma-1.5-py3-none-any.whl", "conda/noarch/certificates-1.0-0.conda", "pylock.toml"])
@pytest.mark.parametrize("edit", ["edited", "removed"])
def test_edited_bundle(checkout: TestCheckout, folder: Path, command: list[str], tmp_path: Path, path: str, edit: str) -> None:
    bundle(checkout, command)
    file = folder / path
    file.unlink()
    if edit == "edited":
        file.write_bytes(wheel("gamma", "1.5", code="evil = True\n"))
    target = tmp_path / "target"
    expected = json.loads((folder / "manifest.json").read_text())["files"][path]
    problem = f"expected SHA-256 {expected}, found {hashed(file)}" if edit == "edited" else "not found"
    for arguments in (["install", "tiny", str(target)], ["smoke", "tiny"]):
        said = checkout.refused(*arguments, "--bundle", str(folder))
        assert said == f"smokehouse: {file}: {problem}; copy or make the bundle again"
    assert not target.exists()
    assert not (checkout.root / "build" / "bundled" / "tiny").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"the file: Invalid JSON"),
        ('{"format": 2, "environment": "tiny", "halves": [], "devel": false, "files": {}}', "format: Input should be 1"),
        (
            '{"environment": "tiny", "halves": [], "devel": false, "files": {"../../secret": "%s"}}' % ("0" * 64),
            r"files\.\S+: String should match pattern",
        ),
        (
            '{"environment": "large", "halves": [], "devel": false, "files": {}}',
            "expected a bundle of tiny, found one of large",
        ),
    ],
)
def test_invalid_manifest(checkout: TestCheckout, folder: Path, command: list[str], text: str, message: str) -> None:
    bundle(checkout, command)
    (folder / "manifest.json").write_text(text)
    said = checkout.refused("smoke", "tiny", "--bundle", str(folder))
    assert re.match(rf"smokehouse: {folder}\S*: {message}.*; run smokehouse bundle tiny {folder}$", said)


def test_folder_with_other_files(checkout: TestCheckout, folder: Path, command: list[str]) -> None:
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("precious")
    said = checkout.refused(*command)
    assert said == f"smokehouse: {folder}: expected a bundle or an empty folder, found other files; specify another folder"
    assert files(folder) == {"thesis.tex"}


def test_index_with_a_password(checkout: TestCheckout, folder: Path, command: list[str], index: Index, tmp_path: Path) -> None:
    index.secret = ("us er", "hunt/er2")
    url = f"{index.base}/simple".replace("://", "://us%20er:hunt%2Fer2@")
    fresh = str(tmp_path / "fresh")
    wrong = checkout.run(*command, UV_DEFAULT_INDEX=url.replace("er2", "er3"), UV_CACHE_DIR=fresh)
    assert wrong.returncode == 2
    assert "hunt" not in wrong.stderr + wrong.stdout
    ended = checkout.run(*command, UV_DEFAULT_INDEX=url, UV_CACHE_DIR=fresh)
    assert ended.returncode == 0, ended.stderr
    assert "hunt" not in ended.stderr + ended.stdout
    assert not [path for path in folder.rglob("*") if path.is_file() and b"hunt" in path.read_bytes()]


@pytest.mark.parametrize("fault", ["truncated", "tampered", "other"])
def test_index_that_serves_another_file(
    checkout: TestCheckout, folder: Path, command: list[str], index: Index, fault: str
) -> None:
    name = "gamma-1.5-py3-none-any.whl"
    file = index.files[name]
    if fault == "truncated":
        file.sent = file.data[:100]
    elif fault == "tampered":
        file.sent = file.data[:-1] + b"?"
    else:
        file.data = wheel("gamma", "1.5", code="evil = True\n")
    message = {
        "other": "file with this name and hash not found in the index",
    }.get(fault, r"SHA-256 mismatch, 127\.0\.0\.1:\d+ serves another file than the lock specifies")
    remedy = "; set UV_DEFAULT_INDEX to an index that has it"
    assert re.match(rf"smokehouse: {re.escape(name)}: {message}{remedy}", checkout.refused(*command))
    assert not (folder / "manifest.json").exists()
    assert not (folder / "wheels" / name).exists()


def test_wheels_in_a_folder(checkout: TestCheckout, folder: Path, command: list[str], index: Index, tmp_path: Path) -> None:
    found = tmp_path / "my wheels"
    found.mkdir()
    for name, file in index.files.items():
        (found / name).write_bytes(file.data)
    requests = index.requests
    config = tmp_path / "uv.toml"
    config.write_text(f'[pip]\nno-index = true\nfind-links = ["{found}"]\n')
    bundle(checkout, command, UV_CONFIG_FILE=str(config))
    assert index.requests == requests
    assert (folder / "wheels" / "gamma-1.5-py3-none-any.whl").is_file()


def test_disk_too_small_for_a_bundle(checkout: TestCheckout, command: list[str], full_disk: Path) -> None:
    command[2] = str(full_disk / "bundle")
    said = checkout.refused(*command)
    assert re.match(
        rf"smokehouse: {full_disk}/bundle: expected 19\.\d MB of free disk space to bundle tiny, found 16\.\d MB; free some",
        said,
    )
    assert {path.name for path in (full_disk / "bundle").iterdir()} == {"lock", ".files.json"}


def test_bundle_option_without_a_folder(checkout: TestCheckout, command: list[str]) -> None:
    assert "--bundle requires a folder, made by smokehouse bundle NAME DIR" in checkout.refused("smoke", "tiny", "--bundle")
    assert command


def test_no_download_continues_after_another_failed() -> None:
    """Assert that threads end with the call that started them, before a second call writes the same files."""
    failed = threading.Event()
    ended = []

    def refused() -> None:
        raise UserError("it is another file")

    def under_way() -> None:
        assert failed.wait(60)
        ended.append("in order")

    with pytest.raises(UserError, match="it is another file"):
        _run_all([refused, under_way], failed)
    assert ended == ["in order"]
