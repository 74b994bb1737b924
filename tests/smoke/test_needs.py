"""What a run needs: estimates against published figures, and what they refuse."""

import pytest

from smoke_tests import needs
from smoke_tests.legs import Leg

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
