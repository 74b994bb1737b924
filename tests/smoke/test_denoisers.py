"""Denoisers: what their checks are about is broken and found, and the loader loads and saves them as diffusers alone does."""

import json
import re
from typing import Any

import pytest

from smoke_tests import families

from .conftest import ByFamily, Ended, Starter
from .test_sabotage import assert_failed, assert_failures

DENOISERS = [name for name in families.names() if families.get(name).denoiser]
SOME = r"differs in 1 of the \d+ elements held here$"


@pytest.fixture(scope="module")
def broken(at_home: ByFamily[Starter]) -> Ended:
    """Return a run in which loading, initialising and saving a denoiser are broken, and nothing else."""
    faults = ("initialize_changes_an_element", "loaded_part_of_another", "loaded_in_other_precision")
    return at_home[DENOISERS[0]].run(sabotage=(*faults, "ungathered_save", "stale_save"))


def test_exactly_what_was_broken_fails(broken: Ended) -> None:
    """The others pass, among them every control of a denoiser."""
    checks: set[tuple[str, int | None]] = {
        (name, stage) for name in ("initialize", "load_model", "save_model") for stage in (2, 3)
    }
    assert_failures(broken, checks=checks, controls=set())
    controls = {(check["name"], check["zero_stage"]) for check in broken.report["checks"] if check["kind"] == "control"}
    for name in ("missing key", "flipped bit", "truncated shard", "wrong shape"):
        assert {(name, 2), (name, 3)} <= controls
    for name in ("denoiser inside zero.Init", "saved partitioned", "seed failure: load_state_dict"):
        assert (name, 3) in controls


def test_what_was_broken_is_named(broken: Ended) -> None:
    for stage in (2, 3):
        assert_failed(broken, "initialize", stage, (1,), SOME)
    assert_failed(broken, "load_model", 3, (1,), SOME)
    assert_failed(broken, "load_model", 2, (0,), r" is in torch\.bfloat16")
    assert_failed(broken, "save_model", 2, (0,), r"^(rank 0: )?\S+ differs$")
    assert_failed(broken, "save_model", 3, (0,), r"\d+ of \d+ tensors have shape \[0\] .*\[saved-partitioned\]$")


def test_the_report_says_what_a_denoiser_cannot_show(broken: Ended) -> None:
    """Each check that other families have and that is not in the report, with its reason."""
    said = {entry["name"]: entry["reason"] for entry in broken.report["not_run"]}
    absent = {"generate", "auto classes", "mixed modality", "kernels", "trainer", "LoRA", "control: seed failure: zero.Init"}
    assert absent <= said.keys()
    run = {check["name"] for check in broken.report["checks"]}
    assert run.isdisjoint(said)
    assert not {"generate", "auto classes", "mixed modality"} & run


LOADER = """
import json, os, pathlib, sys
import torch
import diffusers, transformers
from smoke_tests import families, runtime
from smoke_tests.checks.loading import transformers_zero
from smokehouse_loader import LoadError, check_checkpoint, denoisers, load_model, save_model, zero
from safetensors.torch import load_file, save_file

runtime.choose_accelerator("cpu")
runtime.import_deepspeed("cpu")
import deepspeed

folder = pathlib.Path(sys.argv[1])
store = f"file://{folder.parent.parent}/store-{folder.name}"
os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
family = families.get(folder.name)
diffusers.utils.logging.disable_progress_bar()
kind = getattr(diffusers, family.model_class)
config = runtime.config(3, 1, torch.float32, "cpu")

def refused(work, error):
    try:
        work()
    except error as refusal:
        return str(refusal)
    return ""

def buffers(model):
    found = dict(model.named_buffers())
    return {name: found[name] for name in found}

plain = kind.from_pretrained(folder)
found = load_model(folder, verify="bits")
said = {"class": type(found).__name__, "fit": [str(one) for one in check_checkpoint(folder).problems]}
denoisers._PART = 50_000  # bytes: several parts
for dtype in (torch.float32, torch.bfloat16):
    with transformers_zero(config):
        parts, info = load_model(folder, verify="bits", torch_dtype=dtype, output_loading_info=True)
    expected = buffers(plain)
    said[str(dtype)] = {
        "partitioned": all(map(zero.is_partitioned, parts.parameters())),
        "dtypes": sorted({str(one.dtype) for one in parts.parameters()}),
        "buffers": [name for name, one in buffers(parts).items() if not torch.equal(one, expected[name])],
        "info": {name: list(keys) for name, keys in info.items()},
        "parts": len(list(denoisers._parts(plain, denoisers.keys.plan(plain, plain.state_dict()), dtype))),
        "training": parts.training,
    }
snapshot = folder.parent.parent / f"hub-{folder.name}" / "models--some--pipeline" / "snapshots" / ("0" * 40)
snapshot.mkdir(parents=True)
(snapshot / "transformer").symlink_to(folder)
(snapshot.parent.parent / "refs").mkdir()
(snapshot.parent.parent / "refs" / "main").write_text(snapshot.name)
on_hub = {"subfolder": "transformer", "cache_dir": snapshot.parents[2], "local_files_only": True}
fetched = load_model("some/pipeline", verify="bits", **on_hub)
said["hub"] = [name for name, one in plain.state_dict().items() if not torch.equal(one, fetched.state_dict()[name])]
with transformers_zero(config):
    fetched = load_model("some/pipeline", verify="bits", **on_hub)
said["hub"] += [name for name, one in fetched.named_parameters() if not zero.is_partitioned(one)]
with transformers_zero(config):
    said["argument"] = refused(lambda: load_model(folder, max_memory={0: "1GB"}), LoadError)
    parts = load_model(folder)
saved = folder.with_name("saved")
save_model(parts, saved, max_shard_size="100KB")
again = kind.from_pretrained(saved)
said["saved"] = [name for name, one in plain.state_dict().items() if not torch.equal(one, again.state_dict()[name])]
said["shards"] = len(list(saved.glob("*.safetensors"))) > 1
said["left"] = sorted(path.name for path in folder.parent.iterdir())
said["state"] = len(parts.state_dict()) == len(plain.state_dict())  # which saving replaces for a moment
said["exists"] = refused(lambda: save_model(parts, saved), LoadError)
said["nowhere"] = refused(lambda: save_model(parts, folder / "config.json" / "other"), LoadError)
said["other"] = refused(lambda: save_model(torch.nn.Linear(1, 1), saved), ValueError)
said["foreign"] = refused(lambda: load_model(folder, model_class=transformers.LlamaForCausalLM), LoadError)
text = json.loads((folder / "config.json").read_text())
broken = folder.with_name("broken")
broken.mkdir()
def write(**changed):
    (broken / "config.json").write_text(json.dumps(text | changed))
tensors = {name: one for file in folder.glob("*.safetensors") for name, one in load_file(file).items()}
save_file(tensors, broken / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
write(_class_name="NoSuchModel")
said["unknown"] = refused(lambda: load_model(broken), LoadError)
write(num_layers=10**9)
said["endless"] = refused(lambda: load_model(broken), LoadError)
write(num_layers=1)
said["extra"] = refused(lambda: load_model(broken), LoadError)
write(num_layers=3)
said["missing"] = refused(lambda: load_model(broken), LoadError)
print(json.dumps(said))
"""


@pytest.fixture(scope="module", params=DENOISERS)
def loaded(request: pytest.FixtureRequest, at_home: ByFamily[Starter], synthetic: ByFamily[Any]) -> dict[str, Any]:
    """Return what the loader did with the synthetic checkpoint of each denoiser, in a group of one process."""
    starter = at_home[request.param]
    folder = starter.folder / "loader" / request.param / request.param
    folder.parent.mkdir(parents=True)
    folder.symlink_to(synthetic[request.param])
    *_, said = starter.inside("-c", LOADER, str(folder)).splitlines()
    found: dict[str, Any] = json.loads(said) | {"family": request.param}
    return found


def test_the_class_is_that_of_the_config(loaded: dict[str, Any]) -> None:
    assert loaded["class"] == families.get(loaded["family"]).model_class
    assert loaded["fit"] == []


@pytest.mark.parametrize("dtype", ["torch.float32", "torch.bfloat16"])
def test_parts_make_the_model_that_diffusers_loads(loaded: dict[str, Any], dtype: str) -> None:
    """Also what a model computes while it is built, which zero.Init would round: the frequencies of positions."""
    found = loaded[dtype]
    assert found["partitioned"]
    assert found["dtypes"] == [dtype]
    assert found["buffers"] == []
    assert found["parts"] > 2
    assert not any(found["info"].values())
    assert found["training"] is False


def test_a_denoiser_is_found_by_the_name_of_its_pipeline(loaded: dict[str, Any]) -> None:
    """In a cache as the hub's client writes it, in the folder that its pipeline has it in."""
    assert loaded["hub"] == []


def test_a_partitioned_denoiser_is_saved_whole(loaded: dict[str, Any]) -> None:
    assert loaded["saved"] == []
    assert loaded["shards"]
    assert loaded["state"]
    assert loaded["left"] == sorted([loaded["family"], "saved"])


def test_what_cannot_be_loaded_or_saved_is_refused(loaded: dict[str, Any]) -> None:
    assert "max_memory: expected arguments that a denoiser can be loaded with under ZeRO-3, found another" in loaded["argument"]
    assert "/saved: expected no such directory yet, found one; save to another, or remove it" in loaded["exists"]
    assert "/config.json/other: NotADirectoryError: " in loaded["nowhere"]
    assert loaded["other"] == (
        "model: expected a model of diffusers, found Linear; use Trainer.save_model, or engine.save_16bit_model"
    )
    name = families.get(loaded["family"]).model_class
    assert f"model_class: expected a model of diffusers for {name}, found 'LlamaForCausalLM'; " in loaded["foreign"]
    assert re.search(r"config\.json: diffusers \S+ has no class 'NoSuchModel'; ", loaded["unknown"])
    assert "num_layers: expected at most 10000, found 1000000000; " in loaded["endless"]
    assert re.search(rf"\d+ tensors would be dropped by {name} \(.*\[dropped-weights\]", loaded["extra"])
    assert re.search(rf"\d+ tensors of {name} not found \(.*\[missing-key\]", loaded["missing"])


def test_a_denoiser_is_told_from_other_models_by_its_class(at_home: ByFamily[Starter], synthetic: ByFamily[Any]) -> None:
    """Not by a model type, which its config.json lacks."""
    one, other = DENOISERS[:2]
    starter = at_home[one]
    said = starter.refused("--checkpoint", str(synthetic[other]))
    assert said.endswith(
        f"config.json: _class_name: expected {families.get(one).model_class!r}, "
        f"found {families.get(other).model_class!r}; give another checkpoint"
    )
