"""The examples of docker/examples/, built with the command in their first lines."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ...unit.conftest import Index
from ..conftest import STRANGER
from ..engine import Engine


@pytest.fixture
def child(root: Path, tmp_path: Path) -> Path:
    """A copy of the example, and beside it uv as in the image of uv."""
    folder = shutil.copytree(root / "docker" / "examples" / "child", tmp_path / "child")
    (tmp_path / "uv").mkdir()
    shutil.copy(Path(sys.executable).with_name("uv"), tmp_path / "uv" / "uv")
    return folder


def build(child: Path, image: str, engine: Engine, index: Index) -> subprocess.CompletedProcess[str]:
    """Build the example on `image`, with `index` as the index of its packages."""
    command = ["buildx", "build", "--load", "--tag", "child:test", "--network", "host", "--allow", "network.host"]
    command += ["--build-arg", f"IMAGE={image}", "--build-arg", f"UV_DEFAULT_INDEX={index.base}/simple"]
    return engine.docker(*command, "--build-context", f"uv={child.parent / 'uv'}", str(child), check=False)


def test_a_child_adds_a_package_and_keeps_the_stack(
    child: Path,
    image: str,
    engine: Engine,
    index: Index,
) -> None:
    index.add("humanize", "4.12.1", code="import alpha\nsaid = alpha.hello()\n", requires=("alpha",))
    index.add("alpha", "2.0")
    ended = build(child, image, engine, index)
    assert ended.returncode == 0, ended.stderr
    code = "import humanize; from importlib.metadata import version; print(humanize.said, version('alpha'))"
    assert engine.docker("run", "--rm", *STRANGER, "child:test", "python", "-c", code).stdout == "hello 1.0\n"
    engine.docker("rmi", "--force", "child:test")


def test_a_child_that_would_move_the_stack_is_refused(child: Path, image: str, engine: Engine, index: Index) -> None:
    index.add("humanize", "4.12.1", requires=("alpha>=2",))
    index.add("alpha", "2.0")
    ended = build(child, image, engine, index)
    assert ended.returncode
    assert "alpha" in ended.stderr
    assert "unsatisfiable" in ended.stderr
