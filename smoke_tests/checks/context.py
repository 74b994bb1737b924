"""What a check runs with: what its rank was given, and what the rank has built so far."""

import functools
import gc
import importlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from smoke_tests import families, runtime
from smoke_tests.legs import Leg
from smoke_tests.machine.sampler import PeakMemory
from smoke_tests.workspace import Workspace
from smokehouse_loader import Failure


@dataclass(frozen=True)
class RankContext:
    """What a rank was given for a step."""

    rank: int
    world_size: int
    leg: Leg  # of the ZeRO runs, which a plain run of one process stands in for
    device: str  # cpu | cuda
    dtype: torch.dtype
    stage: int  # of ZeRO; 0 without DeepSpeed
    source: Path  # the checkpoint under test
    workspace: Workspace
    lock: Path | None  # None for a run without one
    image: str | None  # digest of the image that the rank is in
    node: int  # that the rank is on
    network: str  # that NCCL is to take between nodes; empty for any
    stack: dict[str, Any]  # stack.toml
    timeout: float  # seconds that a step may take
    failure: Failure | None = None  # the known failure that the step is about
    gpu_peak: PeakMemory | None = None  # of this rank's GPU; None on a CPU, and where torch does not know which one it is

    @property
    def torch_device(self) -> torch.device:
        """This rank's device."""
        return torch.device(self.device, torch.cuda.current_device()) if self.device == "cuda" else torch.device("cpu")

    @property
    def model_class(self) -> Any:
        """The class that stack.toml specifies for this checkpoint."""
        return getattr(importlib.import_module(self.family.package), self.stack["model"]["class"])

    @property
    def family(self) -> families.Family:
        """The family of the model."""
        return families.get(self.stack["model"]["family"])

    @property
    def loads_partitioned(self) -> bool:
        """Whether the stack alone partitions a model while it loads, and not only in `deepspeed.initialize`."""
        return self.stage == 3 and self.family.denoiser is None

    @property
    def processor(self) -> Any:
        """The processor of the checkpoint under test; the tokenizer, where the family has no vision tower."""
        return _processor(self.source, self.family.processor_class)

    def on_device(self, inputs: dict[str, Any], dtype: torch.dtype | None = None) -> dict[str, Any]:
        """Copy model inputs to this rank's device, and pictures in `dtype`, by default the rank's own, as the Trainer does.

        Some models, such as GOT-OCR 2.0, do not convert what they see.
        """
        moved = {
            name: value.to(self.torch_device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()
        }
        return moved | {name: value.to(dtype or self.dtype) for name, value in moved.items() if name == "pixel_values"}

    def optimizer(self, parameters: Iterable[torch.Tensor]) -> torch.optim.Optimizer:
        """Return AdamW with a learning rate for fine-tuning, or a larger one for the synthetic checkpoint's random weights.

        Adam moves a weight by about the learning rate a step, even where the gradient is nearly 0 and its sign depends on the
        order of a sum. The large eps is for those: with 1e-8, at 3e-4, three ranks were 1.5e-5 off after three steps.
        """
        rate = 5e-5 if self.source == self.workspace.synthetic else 2e-5
        return torch.optim.AdamW(parameters, lr=rate, eps=1e-5, fused=True)

    def engine_config(self) -> dict[str, Any]:
        """Return the DeepSpeed configuration of this rank's engine."""
        return runtime.config(self.stage, self.world_size, self.dtype, self.device)


@functools.cache
def _processor(source: Path, auto_class: str) -> Any:
    import transformers

    return getattr(transformers, auto_class).from_pretrained(source)


@dataclass
class TrainingState:
    """What a rank has built so far, which a step that continues another finds as that one left it."""

    model: Any = None
    loading_info: dict[str, Any] = field(default_factory=dict)  # transformers', of `model`
    engine: Any = None  # DeepSpeed's, of `model`
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)  # of the probes, in the first optimizer step
    gradient_elements: int = 0  # held by this rank before that step
    weights: dict[str, list[float]] = field(default_factory=dict)  # a sample of the probes' masters before it
    losses: list[float] = field(default_factory=list)  # global ones, of the optimizer steps so far

    def clear(self) -> None:
        """Drop everything and free its memory, so that the next load starts clean."""
        self.model = self.engine = None
        self.loading_info, self.gradients, self.gradient_elements, self.weights, self.losses = {}, {}, 0, {}, []
        gc.collect()
        torch.cuda.empty_cache()  # does nothing where CUDA was not initialised


def dtype_of(precision: str) -> torch.dtype:
    """Return the torch type that `fp32` or `bf16` stands for."""
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
