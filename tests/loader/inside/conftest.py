"""Fixtures of the tests inside a stack. One process imports torch, transformers and DeepSpeed; ranks are forked from it."""

import gc
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import lab
import pytest

# No deadline, because the machine may be busy; the same examples on every run of a commit.
hypothesis.settings.register_profile("stack", deadline=None, max_examples=40, derandomize=True, database=None)
hypothesis.settings.load_profile("stack")


@pytest.fixture(autouse=True, scope="session")
def _imported() -> None:
    """Import everything before the first fork."""
    lab.import_stack()
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _forget_deepspeed() -> Iterator[None]:
    """Keep a test's HfDeepSpeedConfig from reaching the next test."""
    yield
    from transformers.integrations import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()


@pytest.fixture(scope="session")
def slim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny Qwen2.5-VL checkpoint with a narrow vision tower, in three shards."""
    return lab.write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "slim", vision_width=32)


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the same with a patch embedding of the real shape, [1280, 3, 2, 14, 14]."""
    return lab.write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "real", vision_width=1280)
