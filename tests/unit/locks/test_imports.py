"""The packages of environments, locks and installs: the names that they offer, and what importing them imports."""

import importlib
import subprocess
import sys

import pytest

PACKAGES = ("environments", "locks", "installs")
SOLVERS = {"conda_lock", "rattler", "uv"}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_offered_name_exists(package: str) -> None:
    face = importlib.import_module(f"smokehouse.{package}")
    for name in face.__all__:
        if not hasattr(face, name):  # a module that is not imported yet
            importlib.import_module(f"smokehouse.{package}.{name}")
        assert getattr(face, name) is not None


@pytest.mark.parametrize("package", PACKAGES)
def test_package_imports_no_solver_and_no_network(package: str) -> None:
    slow = SOLVERS | {"asyncio", "requests", "rich", "ssl", "urllib.request"}
    code = f"import sys, smokehouse.{package}; print(*({slow} & {{*sys.modules}}))"
    ended = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout.split(), ended.stderr) == (0, [], "")


@pytest.mark.parametrize("module", ["bundle", "bundler", "prefix", "virtualenv"])
def test_installs_import_no_solver(module: str) -> None:
    code = f"import sys, smokehouse.installs.{module}; print(*({SOLVERS} & {{*sys.modules}}))"
    ended = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout.split(), ended.stderr) == (0, [], "")
