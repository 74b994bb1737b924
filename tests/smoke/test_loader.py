"""What the smoke tests use of the loader: its code, and its table of known failures."""

import ast
import json
import shutil
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


def test_loader_is_that_of_the_checkout_and_the_builder_out_of_reach(lasting: Starter) -> None:
    src = ROOT / "src" / "smokehouse_loader"
    assert json.loads(lasting.inside("-c", WHERE)) == [str(src / "__init__.py"), str(src / "safetensors_header.py"), True]


def test_both_packages_side_by_side(lasting: Starter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are in an image."""
    for package in (ROOT / "smoke_tests", ROOT / "src" / "smokehouse_loader"):
        shutil.copytree(package, tmp_path / package.name)
    monkeypatch.setattr(lasting, "root", tmp_path)
    files = [str(tmp_path / "smokehouse_loader" / name) for name in ("__init__.py", "safetensors_header.py")]
    assert json.loads(lasting.inside("-c", WHERE)) == [*files, True]


def test_every_control_injects_a_known_failure(lasting: Starter) -> None:
    """So that what a control should detect, its cause and its fix come from the table alone."""
    steps = [tuple(step) for step in json.loads(lasting.inside("-c", PLANS))]
    controls = {name: failure for kind, name, failure in steps if kind == "control"}
    assert len(controls) == 8
    assert {*controls.values()} <= {failure.name for failure in FAILURES}
    # What is fixed upstream is the failure of the control whose place the check takes.
    fixes = {failure for kind, name, failure in steps if name in ("late gathers", "both key layouts")}
    assert fixes == {controls["gloo race"], controls["later key layout"]}
    assert ("check", "mixed modality", "mixed-modality") in steps
