"""Liger: planned where the package has kernels for the model, applied to its class, and gone afterwards.

The kernels themselves run on a GPU alone.
"""

import json
from pathlib import Path

import pytest

from .conftest import Starter

PLAN = """
import json, sys

sys.path[:0] = sys.argv[2:]
from smoke_tests import plan
from smoke_tests.legs import Leg

expectations = {"gloo_race": "fixed", "later_key_layout": "whole"}
made = plan.make((2, 3), (Leg("nccl", 2, 2),), sys.argv[1], expectations, "qwen2_5_vl")
jobs = [job.stage for job in made.jobs for step in job.steps if step.name == "liger"]
print(json.dumps([jobs, [entry.reason for entry in made.not_run if entry.name == "liger"]]))
"""
# A finder before all others hides the installed package.
WITHOUT = """
import importlib.util, sys

find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "liger_kernel" else find(name, package)
"""
APPLY = """
import json, sys
from smoke_tests import families
from smoke_tests.checks import liger
import transformers

model_class = getattr(transformers, families.get("qwen2_5_vl").model_class)
module = sys.modules[model_class.__module__]
before, forward = dict(vars(module)), model_class.forward
with liger.applied(model_class) as replaced:
    inside = [name for name, value in before.items() if vars(module)[name] is not value]
    changed = model_class.forward is not forward
restored = {name: vars(module).get(name) for name in before} == before and model_class.forward is forward
found = {"replaced": replaced, "inside": inside, "changed": changed, "restored": restored}

from liger_kernel.transformers import monkey_patch
monkey_patch._apply_liger_kernel = lambda model_type: None
try:
    with liger.applied(model_class):
        pass
except RuntimeError as error:
    found["vain"] = str(error)


def broken(model_type):
    module.Qwen2MLP = None
    raise ImportError("of half")


monkey_patch._apply_liger_kernel = broken
try:
    with liger.applied(model_class):
        pass
except ImportError:
    found["half"] = module.Qwen2MLP is before["Qwen2MLP"]
print(json.dumps(found))
"""


def planned(lasting: Starter, device: str, *folders: Path, before: str = "") -> list[list[object]]:
    """Return the stages in which the check is planned, and the reasons why it is not."""
    found: list[list[object]] = json.loads(lasting.inside("-c", before + PLAN, device, *map(str, folders)))
    return found


def package(folder: Path, types: str) -> Path:
    """Write a liger_kernel 9.9 that has kernels for the model types in `types`, and fails when it is imported."""
    patches = folder / "liger_kernel" / "transformers" / "monkey_patch.py"
    patches.parent.mkdir(parents=True)
    patches.write_text(f"raise RuntimeError\nMODEL_TYPE_TO_APPLY_LIGER_FN = {{{types}}}\n")
    (folder / "liger_kernel" / "__init__.py").write_text("raise RuntimeError\n")
    info = folder / "liger_kernel-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: liger-kernel\nVersion: 9.9\n")
    return folder


def test_it_is_planned_under_both_stages_on_gpus(lasting: Starter) -> None:
    assert planned(lasting, "cuda") == [[3, 2], []]
    assert planned(lasting, "cpu") == [[], []]


def test_without_the_package_it_is_not_run(lasting: Starter) -> None:
    assert planned(lasting, "cuda", before=WITHOUT) == [[], ["liger-kernel is not installed"]]


@pytest.mark.parametrize(
    ("types", "found"),
    [
        ('"qwen2_vl": 1, "qwen2_5_vl": 2', [[3, 2], []]),
        ('"qwen2_vl": 1', [[], ["liger-kernel 9.9 has no kernels for qwen2_5_vl"]]),
    ],
)
def test_it_is_planned_for_models_that_the_package_has_kernels_for(
    lasting: Starter, tmp_path: Path, types: str, found: list[list[object]]
) -> None:
    assert planned(lasting, "cuda", package(tmp_path, types)) == found


def test_kernels_are_applied_and_gone_afterwards(lasting: Starter) -> None:
    found = json.loads(lasting.inside("-c", APPLY).splitlines()[-1])
    assert {"Qwen2RMSNorm", "Qwen2MLP"} <= {*found["inside"]}
    assert {"Qwen2RMSNorm", "Qwen2_5_VLForConditionalGeneration.forward"} <= {*found["replaced"]}
    assert (found["changed"], found["restored"], found["half"]) == (True, True, True)
    assert found["vain"].endswith(": expected kernels for qwen2_5_vl, found none applied")
