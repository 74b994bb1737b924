"""What a run needs: estimates against published figures, and what they refuse."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from smoke_tests import legs, needs, plan
from smoke_tests.legs import Leg
from smoke_tests.ranks.brief import Brief
from smoke_tests.ranks.supervisor import Supervisor
from smoke_tests.workspace import Workspace

# Qwen2.5-VL: https://huggingface.co/Qwen/Qwen2.5-VL-3B-Instruct and -7B-Instruct, metadata.total_parameters.
B3, B7 = 3_754_622_976, 8_292_166_656
GIB = 2**30


def test_model_states_are_those_of_the_zero_paper() -> None:
    # Figure 1 of https://arxiv.org/abs/1910.02054: 7.5 billion parameters on 64 GPUs with Adam. The paper counts fp32 gradients
    # in none of its 16 bytes; DeepSpeed holds them for the partition that a rank steps.
    parameters, ranks = 7_500_000_000, 64
    fp32_gradients = 4 * parameters / ranks
    assert (needs.training_bytes(parameters, ranks, 2) - fp32_gradients) / 1e9 == pytest.approx(16.6, abs=0.1)
    assert (needs.training_bytes(parameters, ranks, 3) - fp32_gradients) / 1e9 == pytest.approx(1.9, abs=0.1)


@pytest.mark.parametrize(("parameters", "stages", "most"), [(B3, (2,), 24), (B3, (3,), 24), (B7, (2, 3), 80)])
def test_eight_ranks_need_no_more_than_cards_have(parameters: int, stages: tuple[int, ...], most: int) -> None:
    assert needs.needs(parameters, Leg("nccl", 8, 8), stages).device < most * GIB


def test_no_device_has_to_hold_the_whole_optimizer_of_a_large_model() -> None:
    one = needs.needs(B7, Leg("nccl", 1, 1), (2, 3)).device
    eight = needs.needs(B7, Leg("nccl", 8, 8), (3,))
    assert one > 140 * GIB > 80 * GIB > eight.device
    assert eight.device_phase.startswith("training under ZeRO-3")


def test_ranks_that_share_a_device_need_it_together() -> None:
    shared, alone = (needs.needs(B3, Leg("gloo", 2, gpus), (3,)).device for gpus in (1, 2))
    assert shared == 2 * alone


def test_memory_of_the_host_is_for_whole_copies() -> None:
    found = needs.needs(B3, Leg("nccl", 16, 16), (2, 3))
    assert found.host_phase == "loading on 16 ranks under ZeRO-2"
    assert found.host > 16 * 2 * B3
    assert needs.needs(B3, Leg("nccl", 2, 2), (3,)).host_phase == "consolidating a checkpoint"


def test_the_deadline_follows_the_bytes() -> None:
    tiny, large = needs.deadline(2_000_000), needs.deadline(B7)
    assert tiny == pytest.approx(needs.DEADLINE, abs=1)
    assert large - needs.DEADLINE >= 16 * B7 / 1e9  # seconds at a gigabyte a second, which few shared file systems reach


@pytest.mark.parametrize(
    ("timeout", "requested", "compilation", "load"),
    [(120, False, needs.COMPILATION, 120), (5000, False, 5000, 5000), (30, True, 30, 30)],
)
def test_a_compiler_has_its_own_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timeout: float, requested: bool, compilation: float, load: float
) -> None:
    """Whatever the model, unless the user sets one; the supervisor ends no rank before it."""
    monkeypatch.setattr(plan, "_compiles_ops", lambda device: device == "cpu")
    expectations = {"gloo_race": "present", "later_key_layout": "random"}
    jobs = {job.name: job for job in plan.make((2,), legs.choose("cpu", 0, None, 2), "cpu", expectations).jobs}
    found = {}
    for name, step in (("cpu ops", jobs["ops"].steps[0]), ("load", jobs["zero2"].steps[2])):
        assert step.name == name
        job = jobs["ops"]
        work = Workspace(tmp_path)
        brief = Brief(job, "", "cpu", "fp32", timeout, 0, tmp_path, work, tmp_path, None, {}, requested_timeout=requested)
        running = SimpleNamespace(ending=None, step=lambda _, step=step: step)
        rank = SimpleNamespace(done=False, closed=False, since=time.monotonic())
        deadline = Supervisor._deadline(cast(Any, SimpleNamespace(_brief=brief)), cast(Any, running), cast(Any, rank))
        found[name] = deadline - rank.since
    assert found == pytest.approx({"cpu ops": compilation, "load": load})
