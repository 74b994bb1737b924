"""What Smokehouse adds to site-packages: a CUDA_HOME with an answer for DeepSpeed where no toolkit is."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from smokehouse.installs import site_files

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
DEADLINE = 60  # seconds


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Return the site-packages of a prefix with the files."""
    site_files.add(tmp_path / "env", PYTHON, "12.4")
    return tmp_path / "env" / "lib" / f"python{PYTHON}" / "site-packages"


@pytest.fixture
def hook(site: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the module, imported on a machine without a GPU."""
    monkeypatch.setenv("SMOKEHOUSE_DEV", str(site))
    spec = importlib.util.spec_from_file_location("_smokehouse_cuda", site / "_smokehouse_cuda" / "__init__.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def toolkit(folder: Path) -> Path:
    """Make `folder` a CUDA toolkit."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "nvcc").write_text("#!/bin/sh\n")
    (folder / "bin" / "nvcc").chmod(0o755)
    return folder


def nvcc(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the stand-in for nvcc."""
    command = [str(site / "_smokehouse_cuda" / "bin" / "nvcc"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, env={"PATH": os.defpath})


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_nvcc_answers_with_the_release_of_the_lock(site: Path, option: str) -> None:
    ended = nvcc(site, option)
    assert ended.returncode == 0
    # As torch and DeepSpeed read it.
    found = re.search(r"release (\d+[.]\d+)", ended.stdout)
    assert found
    assert found[1] == "12.4"
    words = ended.stdout.split()
    assert words[words.index("release") + 1].replace(",", "") == "12.4"


@pytest.mark.parametrize("arguments", [(), ("-c", "x.cu"), ("-V", "x.cu")])
def test_nvcc_refuses_to_compile_in_one_line(site: Path, arguments: tuple[str, ...]) -> None:
    ended = nvcc(site, *arguments)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.count("\n") == 1
    assert "devel flavour" in ended.stderr
    assert "CUDA 12.4" in ended.stderr


def test_a_toolkit_comes_before_the_answer(hook: ModuleType, tmp_path: Path) -> None:
    own = str(Path(str(hook.__file__)).parent)
    nowhere, libraries = str(tmp_path / "nowhere"), tmp_path / "libraries"
    (libraries / "lib64").mkdir(parents=True)
    module, standard, prefix = (str(toolkit(tmp_path / name)) for name in ("module", "standard", "prefix"))
    on_path = {"PATH": f"/bin:{module}/bin"}
    only_libraries = {"CUDA_HOME": str(libraries)}
    cases = [
        # variables, prefix, standard -> CUDA_HOME to set; None: torch finds the toolkit
        ({}, nowhere, nowhere, own),
        (only_libraries, nowhere, nowhere, own),
        ({"CUDA_HOME": module}, prefix, standard, None),
        ({"CUDA_PATH": module}, prefix, standard, None),
        (on_path, prefix, standard, prefix),
        (only_libraries, prefix, standard, prefix),
        (on_path, nowhere, standard, None),
        (on_path | only_libraries, nowhere, standard, module),
        ({}, nowhere, standard, None),
        (only_libraries, nowhere, standard, standard),
    ]
    assert [hook.choose(*given) for *given, _ in cases] == [expected for *_, expected in cases]


def started(site: Path, devices: Path, **environ: str) -> str | None:
    """Return CUDA_HOME as a Python with these site-packages has it."""
    code = f"import site, os; site.addsitedir({str(site)!r}); print(os.environ.get('CUDA_HOME', ''))"
    environ = {"PATH": str(devices), "CUDA_HOME": "/nowhere", "SMOKEHOUSE_DEV": str(devices), **environ}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ, timeout=DEADLINE)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout.strip()


def test_it_is_set_where_a_gpu_is(site: Path, tmp_path: Path) -> None:
    devices = tmp_path / "dev"
    devices.mkdir()
    assert started(site, devices) == "/nowhere"
    (devices / "nvidiactl").touch()
    found = started(site, devices)
    assert found
    assert found != "/nowhere"
    assert os.access(Path(found) / "bin" / "nvcc", os.X_OK)


def test_adding_again_repairs_and_changes_nothing_else(site: Path) -> None:
    program, release = site / site_files.EXECUTABLE, site / "_smokehouse_cuda" / "release"
    before = release.stat().st_ino
    program.write_text("broken")
    program.chmod(0o644)
    site_files.add(site.parents[2], PYTHON, "12.4")
    assert nvcc(site, "-V").returncode == 0
    assert release.stat().st_ino == before
