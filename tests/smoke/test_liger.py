"""Liger: planned where the package has kernels for the model, applied to its class, and gone afterwards.

The kernels themselves run on a GPU alone.
"""

import json
import re
from pathlib import Path

import pytest

from .conftest import Starter

PLAN = """
import json, sys

sys.path[:0] = sys.argv[2:]
from smoke_tests import plan
from smoke_tests.legs import Leg

expectations = {"gloo_race": "fixed", "later_key_layout": "whole"}
made = plan.make((2, 3), (Leg("nccl", 2, 2),), sys.argv[1], expectations, "qwen2_5_vl", apply_liger=True)
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


def package(folder: Path, types: str, apply: str) -> Path:
    """Write a liger_kernel 9.9 that has kernels for the model types in `types`, and does `apply` to apply them."""
    patches = folder / "liger_kernel" / "transformers" / "monkey_patch.py"
    patches.parent.mkdir(parents=True)
    body = "\n    ".join(["from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl", apply])
    table = f"MODEL_TYPE_TO_APPLY_LIGER_FN = {{{types}}}"
    patches.write_text(f"{table}\ndef _apply_liger_kernel(model_type):\n    {body}\n")
    for init in (folder / "liger_kernel", patches.parent):
        (init / "__init__.py").write_text("")
    info = folder / "liger_kernel-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: liger-kernel\nVersion: 9.9\n")
    return folder


def test_it_is_planned_under_both_stages_on_gpus(lasting: Starter) -> None:
    assert planned(lasting, "cuda") == [[3, 2], []]
    assert planned(lasting, "cpu") == [[], []]


def test_without_the_package_it_is_not_run(lasting: Starter) -> None:
    assert planned(lasting, "cuda", before=WITHOUT) == [[], ["liger-kernel is not installed"]]


ALL = '"qwen2_vl": 1, "qwen2_5_vl": 2'
REPLACED = "modeling_qwen2_5_vl.Qwen2RMSNorm = dict"


@pytest.mark.parametrize(
    ("types", "apply", "reason"),
    [
        (ALL, REPLACED, ""),
        ('"qwen2_vl": 1', REPLACED, r"liger-kernel 9\.9 has no kernels for qwen2_5_vl"),
        # As 0.8.5 does for this model.
        (
            *(ALL, "from transformers import NeverThere"),
            r"liger-kernel 9\.9 does not work with transformers \S+: ImportError: cannot import name 'NeverThere' from .*",
        ),
        # As it does, with a warning, for versions of transformers that it does not know.
        (
            *(ALL, "return"),
            r"liger-kernel 9\.9 does not work with transformers \S+: RuntimeError: .*: expected kernels .*, found none applied",
        ),
        (ALL, "import os; os._exit(7)", r"liger-kernel 9\.9 does not work .*: Python ended with 7 when it was applied"),
    ],
)
def test_it_is_planned_where_its_kernels_can_be_applied(
    lasting: Starter, tmp_path: Path, types: str, apply: str, reason: str
) -> None:
    """Otherwise it is not run, with the reason that the package itself gives; it never fails for that."""
    stages, reasons = planned(lasting, "cuda", package(tmp_path, types, apply))
    assert stages == ([] if reason else [3, 2])
    assert len(reasons) == bool(reason)
    assert all(re.fullmatch(reason, str(said)) for said in reasons), reasons


def test_kernels_are_applied_and_gone_afterwards(lasting: Starter) -> None:
    found = json.loads(lasting.inside("-c", APPLY).splitlines()[-1])
    assert {"Qwen2RMSNorm", "Qwen2MLP"} <= {*found["inside"]}
    assert {"Qwen2RMSNorm", "Qwen2_5_VLForConditionalGeneration.forward"} <= {*found["replaced"]}
    assert (found["changed"], found["restored"], found["half"]) == (True, True, True)
    assert found["vain"].endswith(": expected kernels for qwen2_5_vl, found none applied")
