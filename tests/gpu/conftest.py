"""Environments on a machine with GPUs, as far as stub libraries of NVML and CUDA can show it."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from .. import stubs
from ..smoke.conftest import LATEST, NAME, ROOT, python

DEADLINE = 240.0  # seconds, on a busy machine


@dataclass(frozen=True)
class Inside:
    """The Python of an environment, run under the stubs in `libraries`."""

    name: str
    libraries: Path
    home: Path

    @property
    def python(self) -> Path:
        """The environment's Python."""
        return python(ROOT, self.name)

    @property
    def cuda_home(self) -> Path:
        """The folder that answers DeepSpeed's question for nvcc."""
        return next(self.python.parents[1].glob("lib/python3.*/site-packages/_smokehouse_cuda"))

    def environ(self, **given: object) -> dict[str, str]:
        """Return the variables of a user with nothing but these; those in capitals are set, the others are of the stubs."""
        own = {name: str(value) for name, value in given.items() if name.isupper()}
        of_stubs = {name: value for name, value in given.items() if not name.isupper()}
        user = {"PATH": os.defpath, "HOME": str(self.home), "CUDA_HOME": str(self.cuda_home), "PYTHONNOUSERSITE": "1"}
        return {**user, **stubs.environ(self.libraries, **of_stubs), **own}  # type: ignore[arg-type]

    def run(self, *arguments: str, code: int = 0, **given: object) -> subprocess.CompletedProcess[str]:
        """Run Python, which must end with `code`; see `environ`."""
        ended = subprocess.run(
            [str(self.python), *arguments],
            cwd=ROOT,
            env=self.environ(**given),
            capture_output=True,
            text=True,
            timeout=DEADLINE,
        )
        assert ended.returncode == code, ended.stdout + ended.stderr
        return ended


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the stubs."""
    return stubs.build(tmp_path_factory.mktemp("stubs"))


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a home folder, with the caches of triton and others."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session", params=[NAME, LATEST])
def each(request: pytest.FixtureRequest, libraries: Path, home: Path) -> Inside:
    """Return an old and a new stack: what is tested depends on packages, and other environments have those of one of them."""
    return Inside(request.param, libraries, home)


@pytest.fixture(scope="session")
def inside(libraries: Path, home: Path) -> Inside:
    """Return the environment whose DeepSpeed asks for nvcc, and whose torch has no kernels for Blackwell."""
    return Inside("qwen2.5-vl", libraries, home)


@pytest.fixture(scope="session")
def latest(libraries: Path, home: Path) -> Inside:
    """Return the environment of today."""
    return Inside("qwen2.5-vl-latest", libraries, home)


@pytest.fixture
def devices(tmp_path: Path) -> Path:
    """Return a folder in place of /dev, with the driver's device."""
    folder = tmp_path / "dev"
    folder.mkdir()
    (folder / "nvidiactl").touch()
    return folder
