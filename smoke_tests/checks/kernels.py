"""The kernels that training uses, in bf16 on this run's device, give what the plain formulas give in fp32 on a CPU.

Every other check compares a device with itself, so a kernel that is wrong everywhere would pass them all. Such kernels exist:
cuDNN 9.8 to 9.14 computed Conv3d in bf16 wrongly at large shapes (https://github.com/pytorch/pytorch/issues/163539).
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from smoke_tests.checks import loading, memory
from smoke_tests.checks.context import RankContext, TrainingState
from smoke_tests.fixtures import samples, tiny_checkpoint
from smoke_tests.outcome import Outcome, judged

# Pixels of the picture: 1,024 patches and 256 tokens at a usual size. A CPU's bf16 is slow, and needs only run the same code.
SIZE = {"cuda": (448, 448), "cpu": (224, 224)}
TOKENS = 256  # of a sample without a picture
# Of the largest element of an output or a gradient. Measured with two stacks in bf16 on a CPU at 224 and 448 pixels, with heads
# of the real models' sizes: at most 0.003, 0.005, 0.03 and, of TrOCR's decoder, 0.01. A lost channel gives 0.5, attention
# without its mask 0.3 and 7.
TOLERANCE = {"patch embedding": 0.02, "vision attention": 0.05, "language attention": 0.1, "cross attention": 0.1}
# The arguments that a part computes with: cross attention has the encoder's output, too.
OPERANDS = ("hidden_states", "key_value_states")
# Of a part's largest gradient: one with less is measured against this. The bias of a key has none but noise, since softmax
# takes it away again: measured 0.002 in bf16.
FLOOR = 0.05
LOSS_TOLERANCE = 0.05  # absolute, of a loss near 7; measured 0.008


@dataclass
class _Seen:
    """What a model's parts were given and gave in one forward pass: name of a module -> tensors."""

    inputs: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)  # each by its argument's name
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)


def _parts(context: RankContext, model: Any) -> dict[str, list[tuple[str, Any]]]:
    """Return part -> name and module of each of its layers. Raises ValueError where a part is not found."""
    family = context.family
    wanted: dict[str, Callable[[str], bool]] = {
        "language attention": lambda name: not family.is_vision(name) and name.endswith(family.language_attention)
    }
    if family.cross_attention:
        wanted["cross attention"] = lambda name: not family.is_vision(name) and name.endswith(family.cross_attention)
    if (vision := family.vision) is not None:
        attention = vision.attention
        wanted = {
            "patch embedding": lambda name: family.published(f"{name}.weight") == family.first_tensor,
            "vision attention": lambda name: family.is_vision(name) and name.endswith(attention),
        } | wanted
    modules = list(model.named_modules())
    found = {part: _outermost([(name, module) for name, module in modules if is_of(name)]) for part, is_of in wanted.items()}
    if missing := [part for part, layers in found.items() if not layers]:
        raise ValueError(f"{family.file}: expected modules of {', '.join(missing)} in the model, found none; fix the family")
    return found


def _outermost(layers: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Return the modules that are in no other: transformers before 5.9 has a ViT's attention in one of that name."""
    names = {name for name, _ in layers}
    return [layer for layer in layers if not any(layer[0].startswith(f"{name}.") for name in names)]


def _run(model: Any, parts: dict[str, list[tuple[str, Any]]], sample: dict[str, Any], given: _Seen | None = None) -> _Seen:
    """Do a forward pass and return what each part saw; where `given`, each gets the inputs of that pass in place of its own.

    So one wrong kernel is seen in its own part only. Inputs are rounded to bf16 for both, which is no error of a kernel.
    """
    seen = _Seen()
    began: dict[str, float] = {}

    def before(name: str) -> Any:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            own = {name: kwargs[name] for name in OPERANDS if kwargs.get(name) is not None}
            own |= {OPERANDS[0]: args[0]} if args else {}
            values = own if given is None else given.inputs[name]
            rounded = {key: values[key].detach().to(own[key].device, torch.bfloat16).to(own[key].dtype) for key in own}
            seen.inputs[name] = dict(rounded)
            _reset(own[OPERANDS[0]].device)
            began[name] = time.perf_counter()
            if not args:
                return args, kwargs | rounded
            first = rounded.pop(OPERANDS[0])
            return (first, *args[1:]), kwargs | rounded

        return hook

    def after(name: str) -> Any:
        def hook(module: Any, args: tuple[Any, ...], output: Any) -> None:
            value = output[0] if isinstance(output, tuple) else output
            seen.outputs[name] = value
            seen.bytes[name] = _peak(value.device)  # waits for the device first
            seen.seconds[name] = time.perf_counter() - began[name]

        return hook

    layers = [layer for of_part in parts.values() for layer in of_part]
    hooks = [module.register_forward_pre_hook(before(name), with_kwargs=True) for name, module in layers]
    hooks += [module.register_forward_hook(after(name)) for name, module in layers]
    try:
        model(**sample)
    finally:
        for handle in hooks:
            handle.remove()
    return seen


def _reset(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> int:
    """Return the most bytes that torch had on a GPU since `_reset`, or that this process ever had on a CPU."""
    if device.type != "cuda":
        return memory.peak_rss()
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device))


def _gradients(layers: list[tuple[str, Any]], seen: _Seen, given: _Seen) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the gradients of a part's weights for the output `given` as the gradient of its own."""
    for name, module in layers:
        weights = dict(module.named_parameters())
        output = seen.outputs[name]
        ahead = given.outputs[name].detach().to(output.device, output.dtype)
        found = torch.autograd.grad(output, list(weights.values()), ahead)
        yield from ((f"the gradient of {name}.{weight}", value) for weight, value in zip(weights, found, strict=True))


def _largest(tensor: torch.Tensor) -> float:
    return float(tensor.detach().abs().max())


def _off(expected: torch.Tensor, found: torch.Tensor, floor: float = 0.0) -> float:
    """Return the largest difference, relative to the largest expected element or, where that is less, to `floor`.

    It is infinite where one is not a number.
    """
    expected, found = expected.detach().float(), found.detach().float().cpu()
    worst = _largest(found - expected) / max(_largest(expected), floor, 1e-12)
    return worst if worst == worst else float("inf")


def kernels(context: RankContext, _: TrainingState) -> Outcome:
    """Check attention, loss and patch embedding in bf16 against fp32 on a CPU, forward and backward."""
    path, family = context.workspace.kernels, context.family
    width = family.width if family.vision and context.device == "cuda" else family.realistic_width
    tiny_checkpoint.write_realistic(path, family, samples.corpus(), width)
    processor = dataclasses.replace(context, source=path).processor
    sample = samples.large_sample(
        family, processor, samples.scenes(1)[0], (SIZE[context.device],), 0 if family.vision else TOKENS
    )
    # Both have the weights of the file rounded to bf16, which is no error of a kernel.
    plain, _info = loading.load_with(context.model_class, path, torch.bfloat16, attn_implementation="eager")
    plain.float()
    model, _info = loading.load_with(context.model_class, path, torch.bfloat16)
    model.to(context.torch_device)
    own = context.on_device(sample, torch.bfloat16)
    with torch.no_grad():
        losses = [float(one(**inputs).loss) for one, inputs in ((plain, sample), (model, own))]  # also warms the device up
    parts = _parts(context, plain)
    expected = _run(plain, parts, sample)
    found = _run(model, _parts(context, model), own, expected)
    problems, said, numbers = [], [], {}
    for part, layers in parts.items():
        pairs = [(f"the output of {name}", expected.outputs[name], found.outputs[name]) for name, _ in layers]
        wanted = dict(_gradients(layers, expected, expected))
        off = {what: _off(right, got) for what, right, got in pairs}
        floor = FLOOR * max(map(_largest, wanted.values()))
        off |= {what: _off(wanted[what], got, floor) for what, got in _gradients(_parts(context, model)[part], found, expected)}
        worst = max(off, key=off.__getitem__)
        if not off[worst] <= TOLERANCE[part]:
            limit = f"at most {TOLERANCE[part]:g} allowed"
            problems.append(f"{part}: {worst} is off by {off[worst]:.2g} of its largest element, {limit}")
        numbers[part] = {
            "off": off[worst],
            "seconds": sum(found.seconds[name] for name, _ in layers),
            "bytes": max(found.bytes[name] for name, _ in layers),
        }
        said.append(f"{part} within {off[worst]:.1g}")
    if not abs(losses[1] - losses[0]) <= LOSS_TOLERANCE:
        problems.append(f"loss: expected {losses[0]:.6g} (fp32 on a CPU), found {losses[1]:.6g} (bf16)")
    numbers["loss"] = {"off": abs(losses[1] - losses[0])}
    said.append(f"loss within {abs(losses[1] - losses[0]):.1g}")
    return judged(problems, f"bf16 on {context.device}: {', '.join(said)} of fp32 on a CPU", kernels=numbers)
