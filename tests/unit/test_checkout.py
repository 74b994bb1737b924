"""Where things lie: in a checkout, in a folder of the user, and in an installed package."""

from pathlib import Path

import pytest

from smokehouse.checkout import Checkout
from smokehouse.errors import UserError
from smokehouse.images import dockerfile


@pytest.fixture
def package(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of an installed package with the environments `a` and `b`."""
    package = tmp_path / "package"
    for name in ("a", "b"):
        (package / "environments" / name).mkdir(parents=True)
    for name in ("docker", "smoke_tests"):
        (package / name).symlink_to(root / name)
    monkeypatch.setattr("smokehouse.checkout._PACKAGED", package)
    monkeypatch.setenv("SMOKEHOUSE_HOME", str(tmp_path / "home"))
    return package


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder of the user with the environments `b` and `c`."""
    for name in ("b", "c"):
        (tmp_path / "own" / "environments" / name).mkdir(parents=True)
    return tmp_path / "own"


def test_the_package_is_used_where_there_is_nothing_else(package: Path, tmp_path: Path) -> None:
    found = Checkout.find(tmp_path)
    assert found.environments() == found.own_environments() == ["a", "b"]
    assert found.environment("a") == package / "environments" / "a"
    assert found.lock("a") == package / "lockfiles" / "a"
    assert found.installation("a") == tmp_path / "home" / "environments" / "a"
    assert found.file("docker/base.toml") == package / "docker" / "base.toml"


def test_the_folder_of_the_user_comes_first(package: Path, own: Path) -> None:
    (own / "docker").mkdir()  # not that of Smokehouse
    found = Checkout.find(own / "environments" / "c")
    assert (found.environments(), found.own_environments()) == (["a", "b", "c"], ["b", "c"])
    assert [found.environment(name).parents[1] for name in "abc"] == [package, own, own]
    assert [found.lock(name).parents[1] for name in "abc"] == [package, own, own]
    assert [found.page(name).parents[2] for name in "abc"] == [package, own, own]
    assert found.lock("new") == own / "lockfiles" / "new"
    assert found.installation("a") == own / "build" / "environments" / "a"
    assert found.file("docker/inside") == package / "docker" / "inside"
    (own / "docker" / "base.toml").touch()
    assert found.file("docker/inside") == own / "docker" / "inside"


def test_only_what_belongs_to_the_user_is_changed(package: Path, own: Path, tmp_path: Path) -> None:
    Checkout.find(own).require_own("lock")
    Checkout(own).require_own("lock --base", "docker/base.toml")  # a checkout of Smokehouse says itself what is missing
    for folder, path in ((tmp_path, "environments"), (own, "docker/base.toml")):
        with pytest.raises(
            UserError, match=f"^lock: expected {path} in this folder or a parent, found it only in the installed"
        ):
            Checkout.find(folder).require_own("lock", path)


def test_bake_finds_everything_below_its_folder(package: Path, own: Path, root: Path, tmp_path: Path) -> None:
    assert dockerfile.prepare_folder(Checkout(root)) == root
    for start, folder in ((tmp_path, tmp_path / "home"), (own, own / "build")):
        found = Checkout.find(start)
        copy = folder / "docker" / "Dockerfile"
        for _ in range(2):  # an older copy is replaced
            assert dockerfile.prepare_folder(found) == folder == found.build
            assert copy.read_bytes() == (root / "docker" / "Dockerfile").read_bytes()
            assert (folder / "docker" / "steps" / "unpack.py").is_file()
            copy.write_text("an older version")
