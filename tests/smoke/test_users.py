"""--all: the checks of what users train with hold, and each fails when what it tests is broken."""

import json
import shutil
from pathlib import Path

import pytest

from smoke_tests.selection import EXTRA

from .conftest import Ended, Starter
from .test_sabotage import assert_failed

BOTH = (0, 1)
UNLIKE_PLAIN = r"(^|rank 0: )losses: expected .* \(single process\), .*; gradients: off by \S+ of .*, at most \S+ allowed"
STAGED = {"trainer", "real sizes", "LoRA", "frozen vision tower", "offload", "overlap_comm"}
ALONE = {"trainer: plain run", "real sizes: plain run", "attention", "cpu ops", "kernels"}
DEADLINE = 600.0  # seconds of a run; the compilation of two ops takes a busy machine minutes
SLOW = ("--timeout", "300")  # seconds; compilers share this machine with other tests


@pytest.fixture(scope="module")
def good(lasting: Starter) -> Ended:
    """Return a run of all checks that only --all has and that run on a CPU."""
    return lasting.start("--only", ",".join(sorted(STAGED | ALONE)), *SLOW, report=lasting.folder / "users").finish(DEADLINE)


@pytest.fixture(scope="module")
def broken(lasting: Starter) -> Ended:
    """Return a run in which what they test is broken, on a machine whose compiler fails."""
    started = lasting.start(
        *("--only", ",".join(sorted(STAGED | ALONE)), *SLOW),
        report=lasting.folder / "broken-users",
        sabotage=(
            *("other_rate", "forgotten_moments", "moved_base", "unscaled_merge", "partitioned_adapter", "thawed_vision"),
            *("unmasked_attention", "unmasked_kernels", "unreduced_bucket", "longer_steps", "late_nan", "undecayed"),
            "unrecomputed",
            *("lost_adapter_gradient", "lost_language_gradient"),
        ),
        CXX="false",
    )
    return started.finish(DEADLINE)


@pytest.fixture(scope="module")
def decayed(lasting: Starter, good: Ended) -> Ended:
    """Return a run with the ops that the good run compiled: DeepSpeedCPUAdam is not AdamW, and ZeRO-3 offloads nothing."""
    return with_ops(lasting, good, "decayed", "offload", "other_decay", "not_offloaded")


@pytest.fixture(scope="module")
def forgetful(lasting: Starter, good: Ended) -> Ended:
    """Return a run with those ops in which the Trainer resumes without optimizer states."""
    return with_ops(lasting, good, "forgetful", "trainer", "forgotten_moments")


def with_ops(lasting: Starter, good: Ended, name: str, check: str, *sabotage: str) -> Ended:
    """Run one check with the ops that the good run compiled, and sabotages."""
    folder = lasting.folder / name
    (folder / "logs").mkdir(parents=True)
    shutil.copy(good.folder / ".lock", folder)
    shutil.copytree(good.folder / "ops", folder / "ops")
    return lasting.run("--only", check, *SLOW, report=folder, sabotage=sabotage)


def test_every_check_of_users_is_tested_here() -> None:
    assert {*EXTRA} == STAGED | ALONE | {"throughput", "liger"}


def test_good_run_passes(good: Ended) -> None:
    assert good.code == 0, good.stdout
    found = {(check["name"], check["zero_stage"]): check["verdict"] for check in good.report["checks"]}
    wanted = {(name, stage) for name in STAGED for stage in (2, 3)} | {(name, None) for name in ALONE}
    assert wanted <= found.keys()
    assert {*found.values()} == {"passed"}


@pytest.mark.parametrize("stage", [2, 3])
def test_good_run_used_deepspeed_s_own_adamw(good: Ended, stage: int) -> None:
    """The op that was compiled for it, as a configuration with an optimizer of type AdamW does."""
    assert good.found("trainer", stage)["detail"].endswith("; DeepSpeed's AdamW")


def test_ops_are_compiled_once(good: Ended, decayed: Ended) -> None:
    began = [(folder / "ops").rglob("*.so") for folder in (good.folder, decayed.folder)]
    first, second = ({file.name: file.stat().st_size for file in files} for files in began)
    assert first == second
    assert {*first} == {"cpu_adam.so", "fused_adam.so"}
    assert decayed.found("cpu ops")["seconds"] < good.found("cpu ops")["seconds"]


def test_only_what_was_broken_fails(broken: Ended) -> None:
    checks = {("trainer", 2), ("trainer", 3), ("LoRA", 2), ("LoRA", 3), ("frozen vision tower", 3), ("attention", None)}
    checks |= {("frozen vision tower", 2), ("real sizes", 2), ("real sizes", 3)}
    checks |= {("cpu ops", None), ("offload", 2), ("offload", 3)}
    checks |= {("kernels", None), ("overlap_comm", 2), ("overlap_comm", 3)}
    assert broken.failures() == {("check", *check) for check in checks}


def test_trainer(broken: Ended) -> None:
    assert_failed(
        broken, "trainer", 2, BOTH, r"losses: expected \S+ \S+ \S+ \(plain loop\), found \S+ \S+ \S+ \(Trainer\); off by "
    )
    assert_failed(broken, "trainer", 2, BOTH, r"weight_decay of the optimizer: expected 0\.01, .*, found \[0\.0\]")
    kept = r"gradient checkpointing: expected 12 forward passes of a layer, found 6"
    assert_failed(broken, "trainer", 2, BOTH, kept)
    assert_failed(broken, "trainer", 3, (0,), r" differs after the resume")


def test_trainer_with_deepspeed_s_own_adamw(forgetful: Ended) -> None:
    assert forgetful.failures() == {("check", "trainer", 3)}
    assert_failed(forgetful, "trainer", 3, (0,), r" differs after the resume")


def test_trainer_s_saved_model_and_persistence_threshold(saved: Ended) -> None:
    whole = r"persistence threshold: expected some parameters whole and some partitioned, found 0 of \d+ whole"
    assert_failed(saved, "trainer", 3, BOTH, rf"^(rank 0: )?{whole}(; save_model: \S+norm\.weight differs)?$")
    spoiled, _ = saved.found("trainer", 3)["ranks"]
    assert spoiled["detail"].endswith("norm.weight differs")


@pytest.fixture(scope="module")
def saved(lasting: Starter) -> Ended:
    """Return a run in which other faults are under ZeRO-3: in what the Trainer saves and keeps whole, in attention and LoRA."""
    options = ("--only", "trainer,attention,LoRA", "--zero", "3", *SLOW)
    broken = ("spoiled_save", "no_persistence", "unpadded_attention", "half_an_adapter")
    return lasting.run(*options, report=lasting.folder / "saved", sabotage=broken, CXX="false")


@pytest.fixture(scope="module")
def hidden(lasting: Starter) -> Ended:
    """Return a run with faults that three steps of Adam hide: no clipping, schedules that run or begin otherwise, a picture."""
    broken = ("unclipped", "scheduled_twice", "one_picture")
    return lasting.run("--only", "trainer,real sizes", *SLOW, report=lasting.folder / "hidden", sabotage=broken, CXX="false")


def test_trainer_that_does_not_clip(hidden: Ended) -> None:
    assert_failed(hidden, "trainer", 2, BOTH, r"gradients: \d\d times as large as in a plain loop, by Adam's moments: ")


def test_schedule_that_goes_two_steps_at_a_time(hidden: Ended) -> None:
    assert_failed(
        hidden, "trainer", 3, BOTH, r"losses: expected \S+ \S+ \S+ \(plain loop\), found \S+ \S+ \S+ \(Trainer\); off by "
    )


def test_schedule_that_a_resume_forgets(smoke: Starter) -> None:
    ended = smoke.run("--zero", "2", "--only", "trainer", *SLOW, sabotage=("forgotten_schedule",), CXX="false")
    assert_failed(ended, "trainer", 2, BOTH, r"lr of the optimizer: expected 0\.0, as the arguments say, found \[0\.00013")


def test_second_picture_that_the_model_ignores(hidden: Ended) -> None:
    alike = "^the loss of a sample with two pictures is the same without the second one$"
    assert_failed(hidden, "real sizes: plain run", None, (0,), alike)


def test_lora(broken: Ended) -> None:
    merged = r"merged \S+\.weight is off by 0\.5 of what the adapter adds, at most 0\.01 allowed"
    assert_failed(broken, "LoRA", 2, (0,), rf"embed_tokens\.weight of the base changed; .*{merged}")
    assert_failed(broken, "LoRA", 3, (0,), r"lora_[AB]\S* was saved with shape \[0\]")
    assert_failed(broken, "LoRA", 3, (0,), UNLIKE_PLAIN)


def test_lora_matrix_that_is_not_trained(saved: Ended) -> None:
    assert_failed(saved, "LoRA", 3, BOTH, r"q_proj\.lora_A\S* did not change")


def test_frozen_vision_tower(broken: Ended) -> None:
    assert_failed(broken, "frozen vision tower", 3, (0,), r"patch_embed\.proj\.weight is frozen and changed")
    assert_failed(broken, "frozen vision tower", 2, (0,), UNLIKE_PLAIN)


def test_attention(broken: Ended) -> None:
    assert_failed(broken, "attention", None, (0,), r"^sdpa: loss: expected \S+ \(eager\), found ")


def test_attention_to_padding(saved: Ended) -> None:
    assert_failed(saved, "attention", None, (0,), r"^sdpa: loss of a padded sample: expected \S+ \(eager\), found ")


def test_real_sizes(broken: Ended) -> None:
    assert_failed(broken, "real sizes", 3, BOTH, r"losses: expected \S+ \S+ \(single process\), found ")
    assert_failed(broken, "real sizes", 2, BOTH, r"\(single process\), found \S+ nan$")


def test_attention_kernel(broken: Ended) -> None:
    parts = ("vision attention: the gradient of ", "language attention: the ", r"loss: expected \S+ \(fp32 on a CPU\), found ")
    assert_failed(broken, "kernels", None, (0,), "^" + ".*; ".join(parts))


@pytest.mark.parametrize(("fault", "where"), [("scaled_convolution", r"(output|gradient)"), ("lost_channel", "output")])
def test_convolution_kernel(smoke: Starter, fault: str, where: str) -> None:
    """Seen in its own part only: each part gets the inputs of the reference."""
    ended = smoke.run("--only", "kernels", sabotage=(fault,))
    assert ended.failures() == {("check", "kernels", None)}
    wrong = rf"^patch embedding: the {where} of \S+ is off by \S+ of its largest element, at most 0\.02 allowed$"
    assert_failed(ended, "kernels", None, (0,), wrong)


def test_cross_attention_kernel(smoke: Starter) -> None:
    """Seen in its own part, although what follows it computes with what it gives."""
    ended = smoke.run("--here=vision-encoder-decoder", "--only", "kernels", sabotage=("blind_decoder",))
    assert ended.failures() == {("check", "kernels", None)}
    assert_failed(
        ended,
        "kernels",
        None,
        (0,),
        r"^cross attention: the (output|gradient) of \S+ is off by \S+ of its largest element, at most 0\.1 allowed",
    )
    assert "language attention: " not in ended.found("kernels", None, "check")["detail"]


@pytest.mark.parametrize("stage", [2, 3])
def test_bucket_that_is_read_too_early(broken: Ended, stage: int) -> None:
    assert_failed(
        broken, "overlap_comm", stage, BOTH, r"with overlap_comm the gradient of \S+ is off by \S+ of .*, at most 1e-05 allowed"
    )


def test_compiler_that_fails(broken: Ended) -> None:
    assert_failed(broken, "cpu ops", None, (0,), r"^cpu_adam: not compiled; ")
    for stage in (2, 3):
        assert_failed(broken, "offload", stage, BOTH, "cpu_adam: expected a compiled op, found none")


def test_compiler_that_is_late(smoke: Starter) -> None:
    """The run goes on without the ops, and no compiler is left. What it has is more than other checks have."""
    ended = smoke.run("--only", "cpu ops", sabotage=("impatient",))
    assert ended.failures() == {("check", "cpu ops", None)}
    assert_failed(ended, "cpu ops", None, (0,), r"^cpu_adam: not compiled within 6 s; give --timeout more than 600$")
    assert not list((ended.folder / "ops").rglob("*.ready"))


CACHES = """
import json, os, pathlib, sys
from types import SimpleNamespace
import torch
from smoke_tests.checks import offload
from smoke_tests.workspace import Workspace

context = SimpleNamespace(workspace=Workspace(pathlib.Path(sys.argv[1]) / "work"), device="cpu")
cache = offload._cache(context)
cache.mkdir(parents=True)
(cache / "cpu_adam.ready").touch()
found = {"unchanged": offload.ready(context, "cpu_adam")}
other = pathlib.Path(sys.argv[1]) / "other-c++"
other.write_text("#!/bin/sh\\necho other c++ 1.0\\n")
other.chmod(0o755)
for name, owner, attribute, value in (
    ("torch's build", torch.version, "git_version", "0" * 40),
    ("torch's place", torch, "__file__", "/elsewhere/torch/__init__.py"),
    ("Python", sys, "version", "3.11.99"),
    ("prefix", sys, "prefix", "/elsewhere"),
):
    kept = getattr(owner, attribute)
    setattr(owner, attribute, value)
    found[name] = offload.ready(context, "cpu_adam")
    setattr(owner, attribute, kept)
for name, variable, value in (("compiler", "CXX", str(other)), ("options", "CXXFLAGS", "-O0")):
    os.environ[variable] = value
    found[name] = offload.ready(context, "cpu_adam")
    del os.environ[variable]
found["as before"] = offload.ready(context, "cpu_adam")
print(json.dumps(found))
"""


def test_ops_of_another_installation_are_not_used(lasting: Starter, tmp_path: Path) -> None:
    found = json.loads(lasting.inside("-c", CACHES, str(tmp_path)).splitlines()[-1])
    others = ("torch's build", "torch's place", "Python", "prefix", "compiler", "options")
    assert found == {"unchanged": True, "as before": True} | dict.fromkeys(others, False)


def test_offload(decayed: Ended) -> None:
    assert decayed.failures() == {("check", "offload", stage) for stage in (2, 3)}
    assert_failed(
        decayed, "offload", 2, BOTH, r"after 5 steps a weight is off by \S+ from torch's AdamW, at most 1e-05 allowed"
    )
    for what in ("the optimizer", "parameters"):
        assert_failed(decayed, "offload", 3, BOTH, rf"offload: expected {what} on cpu, the engine says None")


MEASURE = """
import json, sys
import torch, torch.distributed as dist
from smoke_tests.checks import throughput

dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
print(json.dumps(throughput.bandwidths(torch.device("cpu"), [4096, 8192])))
"""


def test_bandwidth_of_each_collective_and_size(lasting: Starter, tmp_path: Path) -> None:
    found = json.loads(lasting.inside("-c", MEASURE, str(tmp_path / "store")).splitlines()[-1])
    # One rank moves nothing over a link: what counts here is that each size of each collective was measured.
    assert found == {name: {"4096": 0.0, "8192": 0.0} for name in ("all_reduce", "all_gather")}


LINKS = """
import json
from types import SimpleNamespace
from smoke_tests.checks import throughput
from smoke_tests.legs import Leg

throughput.bandwidths = lambda device, sizes: {"all_reduce": {max(sizes): 1.0}}
legs = (Leg("nccl", 1, 1), Leg("nccl", 2, 2), Leg("gloo", 2, 1))
contexts = [SimpleNamespace(leg=leg, world_size=leg.world_size, torch_device=None) for leg in legs]
print(json.dumps([bool(throughput.of_links(context)) for context in contexts]))
"""


def test_bandwidth_is_that_of_links_between_gpus(lasting: Starter) -> None:
    """Of gloo, which copies to the host, a GiB would take minutes, and the check end at its deadline."""
    assert json.loads(lasting.inside("-c", LINKS)) == [False, True, False]
