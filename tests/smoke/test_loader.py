"""What the smoke tests use of the loader: its code, and its table of known failures."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from smokehouse_loader.failures import FAILURES

from .conftest import ROOT, Starter

# Every possible plan, in a process that has torch.
PLANS = """
import itertools, json
from smoke_tests import plan
from smoke_tests.legs import Leg
from smoke_tests.options import PROMISES

found = set()
for device, leg in (("cpu", Leg("gloo", 1)), ("cpu", Leg("gloo", 2)), ("cuda", Leg("nccl", 2, 2))):
    for values in itertools.product(*PROMISES.values()):
        for job in plan.make((2, 3), (leg,), device, dict(zip(PROMISES, values))).jobs:
            found |= {(step.kind, step.name, step.failure.name if step.failure else "") for step in job.steps}
print(json.dumps(sorted(found)))
"""
WHERE = """
import importlib.util, json, smoke_tests, smokehouse_loader.safetensors_header
files = smokehouse_loader.__file__, smokehouse_loader.safetensors_header.__file__
print(json.dumps([*files, importlib.util.find_spec("smokehouse") is None]))
"""


def test_no_module_imports_the_builder() -> None:
    modules = [*(ROOT / "smoke_tests").rglob("*.py"), *(ROOT / "src" / "smokehouse_loader").rglob("*.py")]
    assert len(modules) > 30
    for module in modules:
        for node in ast.walk(ast.parse(module.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert "smokehouse" not in {name.partition(".")[0] for name in names}, module


def test_loader_is_the_installed_one_and_the_builder_out_of_reach(lasting: Starter) -> None:
    [site] = lasting.python.parents[1].glob("lib/python3*/site-packages")
    package = site / "smokehouse_loader"
    assert json.loads(lasting.inside("-c", WHERE)) == [
        str(package / "__init__.py"),
        str(package / "safetensors_header.py"),
        True,
    ]
    assert all((package / file.name).read_bytes() == file.read_bytes() for file in (ROOT / "src" / package.name).glob("*.*"))


def test_loader_of_the_checkout_is_used_where_none_is_installed() -> None:
    """As where the builder validates options."""
    package = ROOT / "packages" / "smokehouse-loader" / "smokehouse_loader"
    environ = {"PATH": os.environ["PATH"]}
    ended = subprocess.run([sys.executable, "-c", WHERE], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60)
    assert json.loads(ended.stdout)[:2] == [str(package / "__init__.py"), str(package / "safetensors_header.py")], ended.stderr


@pytest.mark.parametrize("stale", [None, "zero.py", "failures/keys.py"])
def test_installed_loader_is_used_where_it_is_this_one(tmp_path: Path, stale: str | None) -> None:
    package = tmp_path / "smokehouse_loader"
    shutil.copytree(ROOT / "src" / package.name, package)
    if stale:
        (package / stale).write_text("")
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", WHERE], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60)
    expected = ROOT / "packages" / "smokehouse-loader" / package.name if stale else package
    assert json.loads(ended.stdout)[0] == str(expected / "__init__.py"), ended.stderr


def test_smoke_tests_without_a_checkout_use_the_installed_loader(lasting: Starter, tmp_path: Path) -> None:
    """As they are in an image."""
    shutil.copytree(ROOT / "smoke_tests", tmp_path / "smoke_tests")
    [site] = lasting.python.parents[1].glob("lib/python3*/site-packages")
    command = [str(lasting.python), "-c", WHERE]
    ended = subprocess.run(command, cwd=tmp_path, env=lasting.environ, capture_output=True, text=True, timeout=60)
    assert json.loads(ended.stdout)[0] == str(site / "smokehouse_loader" / "__init__.py"), ended.stderr


def test_every_control_injects_a_known_failure(lasting: Starter) -> None:
    """So that what a control should detect, its cause and its fix come from the table alone.

    But for those that run another ZeRO stage than was configured, which is no failure of the stack.
    """
    steps = [tuple(step) for step in json.loads(lasting.inside("-c", PLANS))]
    controls = {name: failure for kind, name, failure in steps if kind == "control"}
    assert {name for name, failure in controls.items() if not failure} == {"ZeRO-1 in place of ZeRO-2", "no ZeRO"}
    controls = {name: failure for name, failure in controls.items() if failure}
    assert len(controls) == 8
    assert {*controls.values()} <= {failure.name for failure in FAILURES}
    # What is fixed upstream is the failure of the control whose place the check takes.
    fixes = {failure for kind, name, failure in steps if name in ("late gathers", "both key layouts")}
    assert fixes == {controls["gloo race"], controls["later key layout"]}
    assert ("check", "mixed modality", "mixed-modality") in steps
