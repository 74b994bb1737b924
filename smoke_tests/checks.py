"""The checks: what has to be true of an environment, each as a function that one rank runs and answers for.

A check takes the rank's `Bench` and returns an `Outcome`. It raises only what it did not expect, which ends the rank.
"""

import base64
import contextlib
import csv
import functools
import gc
import hashlib
import itertools
import json
import math
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from packaging.utils import canonicalize_name
from packaging.version import Version
from safetensors import safe_open

from smokehouse_loader import Failure, assert_ready, compare, explain, inspect_checkpoint, load_model, ready, zero
from smokehouse_loader.errors import shortened
from smokehouse_loader.keys import Plan

from . import families, stack
from .fixtures import samples
from .outcome import Outcome, failed, judged, known_issue, passed

RESUME_STEPS = 2
TRAIN_STEPS = 1 + RESUME_STEPS
NEW_TOKENS = 8
# Absolute, of a loss near 7. Measured over 1 to 4 ranks: at most 3e-6 in fp32 (two ranks under ZeRO-2 equal a single process to
# the bit) and 0.03 in bf16, with its 8 bits of mantissa.
PARITY = {torch.float32: 1e-5, torch.bfloat16: 0.1}
# Of a tensor's largest gradient: the same sums in another order. Measured below 1e-3 in fp32 and at most 0.073 in bf16; a rank
# whose gradient is lost gives 0.5 and more.
GRADIENT_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.15}
# Above this size only the two probe gradients are compared, since each comparison gathers a whole tensor on every rank.
SMALL_MODEL = 100_000_000


@dataclass
class Bench:
    """All that one rank works on: where it stands, what it was given, and the model and engine it has built so far."""

    rank: int
    world_size: int
    processes: int  # the world size of the ZeRO runs, which a plain run of one process stands in for
    device: str
    dtype: torch.dtype
    stage: int | None
    source: Path  # the checkpoint under test
    made: Path  # the made checkpoint, which the controls damage
    work: Path
    lock: Path
    stack: dict[str, Any]
    failure: Failure | None = None  # the known failure that the step is about
    model: Any = None
    engine: Any = None
    loading_info: dict[str, Any] = field(default_factory=dict)
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)

    @property
    def place(self) -> torch.device:
        return torch.device(self.device, torch.cuda.current_device()) if self.device == "cuda" else torch.device("cpu")

    def model_class(self) -> Any:
        """The class that stack.toml promises for this checkpoint."""
        import transformers

        return getattr(transformers, self.stack["model"]["class"])

    @functools.cached_property
    def family(self) -> families.Family:
        return families.get(self.stack["model"]["family"])

    @functools.cached_property
    def processor(self) -> Any:
        from transformers import AutoProcessor

        return AutoProcessor.from_pretrained(self.source)

    def on_device(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor.to(self.place) for name, tensor in inputs.items()}

    def optimizer(self, parameters: Any) -> torch.optim.Optimizer:
        """AdamW with a learning rate of a fine-tuning, or a larger one for the made checkpoint, whose random weights want it.

        Adam moves a weight by about the learning rate a step, even where the gradient is nearly 0 and its sign hangs on the
        order of a sum. The large eps is for those: with 1e-8, at 3e-4, three ranks were 1.5e-5 off after three steps.
        """
        return torch.optim.AdamW(parameters, lr=5e-5 if self.source == self.made else 2e-5, eps=1e-5, fused=True)

    def config(self) -> dict[str, Any]:
        """The DeepSpeed configuration of this rank's engine."""
        return stack.config(self.stage or 0, self.world_size, self.dtype, self.device)

    def drop(self) -> None:
        """Let go of model and engine, so that the next load starts clean."""
        self.model = self.engine = None
        self.gradients = {}
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()


def dtype_of(precision: str) -> torch.dtype:
    """The torch type that `fp32` or `bf16` is short for."""
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


# versions


def read_lock(lock: Path) -> dict[str, Version]:
    """Canonical name -> version of every package in `requirements.txt` of the lock folder `lock`.

    In an image, `added.txt` beside it has what was added by its hash.
    """
    text = "\n".join(path.read_text() for path in (lock / "requirements.txt", lock / "added.txt") if path.exists())
    pins = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", text, re.MULTILINE)
    return {canonicalize_name(name): Version(version) for name, version in pins}


def _same(locked: Version, found: Version) -> bool:
    """Whether `found` is `locked`; a lock that names no local part (`+cu124`) leaves it open, as installers do."""
    return Version(found.public) == locked if locked.local is None else found == locked


def versions(bench: Bench) -> Outcome:
    """What is installed is exactly the lock, and what was imported is what is installed, unedited."""
    locked = read_lock(bench.lock)
    installed: dict[str, Version] = {}
    problems = []
    for folder in sorted({Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")}):
        # The folders' names, not their METADATA: parsing that of a hundred packages takes a second.
        for info in sorted([*folder.glob("*.dist-info"), *folder.glob("*.egg-info"), *folder.glob("*.egg-link")]):
            name, _, number = info.stem.partition("-")
            name, version = canonicalize_name(name), Version(number.partition("-")[0] or "0")
            if name in installed:
                problems.append(f"{name} is installed twice ({installed[name]} and {version})")
            installed[name] = version
            if (info / "direct_url.json").exists() or info.suffix == ".egg-link":
                problems.append(f"{name} was not installed from the lock but from a path or an address")
            if version.is_devrelease:
                problems.append(f"{name} {version} is a development version")
    problems += [f"{name} {locked[name]} is in the lock and not installed" for name in sorted(locked.keys() - installed.keys())]
    problems += [
        f"{name} {installed[name]} is installed and not in the lock" for name in sorted(installed.keys() - locked.keys())
    ]
    problems += [
        f"{name} is {installed[name]}, the lock says {locked[name]}"
        for name in sorted(locked.keys() & installed.keys())
        if not _same(locked[name], installed[name])
    ]
    problems += _imported(locked)
    return judged(problems, f"{len(locked)} packages as locked", versions=stack.versions(bench.device))


def _imported(locked: dict[str, Version]) -> list[str]:
    """Problems with the modules in memory: another version, another place, or a file that was edited after it was installed."""
    problems = []
    files = {str(getattr(module, "__file__", None)) for module in list(sys.modules.values())}
    for name in ("torch", "transformers", "deepspeed"):
        module = sys.modules[name]
        if name not in locked or not _same(locked[name], Version(module.__version__)):
            problems.append(f"imported {name} is {module.__version__}, the lock says {locked.get(name, 'nothing')}")
        site = Path(str(module.__file__)).parent.parent
        if not site.is_relative_to(sys.prefix):
            problems.append(f"{name} was imported from {module.__file__}, outside the environment {sys.prefix}")
            continue
        record = site / f"{name}-{Version(module.__version__).public}.dist-info" / "RECORD"
        if not record.exists():
            problems.append(f"{record} is missing: the files of {name} cannot be compared with what was installed")
            continue
        for file, digest, _ in csv.reader(record.read_text().splitlines()):
            path = f"{site}/{file}"
            if path in files and file.endswith(".py") and digest != f"sha256={_urlsafe_sha256(Path(path))}":
                problems.append(f"{path} was edited after it was installed")
    return problems


def _urlsafe_sha256(file: Path) -> str:
    """A file's SHA-256 as a wheel's RECORD writes it (PEP 427)."""
    return base64.urlsafe_b64encode(hashlib.sha256(file.read_bytes()).digest()).rstrip(b"=").decode()


# collectives


def collectives(bench: Bench) -> Outcome:
    """all_reduce, all_gather, reduce_scatter and broadcast give the numbers that arithmetic gives."""
    import deepspeed.comm as comm

    ranks, me, place = bench.world_size, bench.rank, bench.place
    size = 100_003  # no multiple of any buffer
    ramp = torch.arange(size, dtype=torch.float32, device=place)
    total = ranks * (ranks + 1) // 2
    problems = []

    def expect(what: str, found: torch.Tensor, wanted: torch.Tensor) -> None:
        wrong = int((found != wanted).sum())
        if wrong:
            problems.append(f"{what}: {wrong} of {found.numel()} numbers are wrong")

    # Integers below 2^24 are exact in fp32, in whatever order they are added.
    scale = torch.arange(size, device=place).remainder(1000).to(torch.float32)
    reduced = scale * (me + 1)
    comm.all_reduce(reduced)
    expect("all_reduce", reduced, scale * total)

    gathered = torch.empty(ranks * size, device=place)
    comm.all_gather_into_tensor(gathered, ramp + me)
    expect("all_gather", gathered, torch.cat([ramp + rank for rank in range(ranks)]))

    scattered = torch.empty(size, device=place)
    comm.reduce_scatter_tensor(scattered, torch.cat([(scale + rank) * (me + 1) for rank in range(ranks)]))
    expect("reduce_scatter", scattered, (scale + me) * total)

    for source in range(ranks):
        sent = ramp + 7 if me == source else torch.zeros(size, device=place)
        comm.broadcast(sent, src=source)
        expect(f"broadcast from rank {source}", sent, ramp + 7)
    return judged(problems, f"4 collectives over {ranks} ranks, {stack.backend(bench.device)}")


# load and weights


@contextlib.contextmanager
def transformers_zero(config: dict[str, Any]) -> Iterator[Any]:
    """A live `HfDeepSpeedConfig`: transformers partitions under ZeRO-3 only while one is referenced."""
    from transformers.integrations import HfDeepSpeedConfig, unset_hf_deepspeed_config

    live = HfDeepSpeedConfig(config)
    try:
        yield live
    finally:
        unset_hf_deepspeed_config()


def read_model(bench: Bench, path: Path) -> tuple[Any, dict[str, Any]]:
    """The model of the checkpoint in `path` as the stack alone loads it, and transformers' loading info."""
    return load_with(bench.model_class(), path, bench.dtype)


def ready_model(bench: Bench, path: Path) -> Any:
    """The same loaded by the loader, seen to be the file's to the bit: where not the loading is what is proven."""
    model = load_model(path, model_class=bench.model_class(), verify="bits", **stack.in_precision(bench.dtype))
    assert_ready(model)
    return model


def load_with(loader: Any, path: Path, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """What the class `loader` makes of the checkpoint in `path`, and transformers' loading info."""
    model, info = loader.from_pretrained(path, **stack.in_precision(dtype), output_loading_info=True)
    return model, info


def key_problems(info: dict[str, Any]) -> list[str]:
    """What transformers' loading info complains of, in words."""
    problems = []
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = [key if isinstance(key, str) else f"{key[0]} {list(key[1])} != {list(key[2])}" for key in sorted(info[kind])]
        if keys:
            problems.append(f"{len(keys)} {kind.replace('_', ' ')} ({shortened(keys, 2)})")
    return problems


def partition_problems(bench: Bench) -> list[str]:
    """How the model's parameters differ from a partitioned (ZeRO-3) or whole (otherwise) model, or are both."""
    both = [p for p in bench.model.named_parameters() if zero.is_partitioned(p[1]) and p[1].numel()]
    return [
        *map(str, ready.partitioning(bench.model, asked=bench.stage == 3)),
        *(f"{name} holds {p.numel()} + {p.ds_tensor.numel()} of {p.ds_numel} elements" for name, p in both),
    ]


def load(bench: Bench) -> Outcome:
    """`from_pretrained` under a live `HfDeepSpeedConfig`; under ZeRO-3 every parameter is partitioned, under ZeRO-2 none."""
    bench.model, bench.loading_info = read_model(bench, bench.source)
    parameters = list(bench.model.parameters())
    how = "partitioned" if bench.stage == 3 else "whole"
    workaround = ", gloo gathers waited for" if bench.stage == 3 and zero.has_gloo_race() else ""
    return judged(partition_problems(bench), f"{len(parameters)} parameters {how}, {_dtype(bench)}{workaround}")


def _dtype(bench: Bench) -> str:
    return str(bench.dtype).removeprefix("torch.")


def wrong_tensors(bench: Bench, truth: Path) -> dict[str, str]:
    """Published name -> what is wrong, for every tensor of the model that is not bit for bit the one in the checkpoint `truth`.

    Model and file may have different key layouts. Which tensor is which is the family's own knowledge, not transformers', as
    the loader asks it: a tensor that transformers puts in another's place has to show.
    """
    stored = inspect_checkpoint(truth)
    state = compare.state_of(bench.model)
    names = {bench.family.published(name): name for name in state}
    plan = Plan()
    for key in stored.tensors:
        name = bench.family.published(key)
        plan.take(names.get(name, name), key)
    wrong = compare.wrong_tensors(bench.model, stored, plan)
    wrong |= {key: f"is in the file as {other} too" for key, other in plan.doubled}
    wrong |= dict.fromkeys(state.keys() - compare.filled(bench.model, plan), "is in the model and not in the file")
    return {bench.family.published(name): what for name, what in wrong.items()}


def weights(bench: Bench) -> Outcome:
    """Every tensor bit-equal to the file; no key missing, unexpected or mismatched."""
    wrong = wrong_tensors(bench, bench.source)
    problems = key_problems(bench.loading_info) + [f"{name} {what}" for name, what in wrong.items()]
    count = len(inspect_checkpoint(bench.source).tensors)
    return judged(problems, f"{count} tensors bit-equal, 0 keys missing, unexpected or mismatched", wrong=sorted(wrong))


# train


def start_engine(bench: Bench) -> None:
    """Hand the loaded model to DeepSpeed."""
    import deepspeed

    optimizer = bench.optimizer(bench.model.parameters())
    bench.engine, *_ = deepspeed.initialize(model=bench.model, optimizer=optimizer, config=bench.config())
    bench.engine.train()


def own_sample(bench: Bench, rank: int | None = None) -> dict[str, torch.Tensor]:
    """The sample that `rank` (this one, if none is given) trains on."""
    number = bench.rank if rank is None else rank
    return bench.on_device(samples.sample(bench.family, bench.processor, samples.scenes(number + 1)[number]))


def world_mean(bench: Bench, value: float) -> float:
    """The mean over all ranks, in double precision."""
    total = torch.tensor([value], dtype=torch.float64, device=bench.place)
    dist.all_reduce(total)
    return total.item() / bench.world_size


def probes(family: families.Family, names: Iterable[str]) -> list[str]:
    """One weight at the very bottom of the vision tower and one in the last layer of the language model."""
    vision = [name for name in names if family.published(name) == family.patch_embedding]
    language = [name for name in names if name.endswith(family.language_probe) and not family.is_vision(name)]
    return [vision[0], language[-1]]


def engine_probes(bench: Bench) -> list[str]:
    """The probes, as the engine's model calls them."""
    return probes(bench.family, [name for name, _ in bench.engine.module.named_parameters()])


def full_gradients(bench: Bench, names: list[str]) -> dict[str, torch.Tensor]:
    """Name -> gradient averaged over the ranks, whole on every rank; between backward and step only."""
    from deepspeed.utils import safe_get_full_grad

    parameters = dict(bench.engine.module.named_parameters())
    gradients = {name: safe_get_full_grad(parameters[name]) for name in names}
    return {name: gradient.detach().float().cpu() for name, gradient in gradients.items() if gradient is not None}


def engine_steps(bench: Bench, sample: dict[str, torch.Tensor], count: int, *, keep_gradients: bool = False) -> list[float]:
    """`count` optimizer steps; the global loss of each. Keeps the first step's probe gradients if asked."""
    losses = []
    names = engine_probes(bench)
    for step in range(count):
        loss = bench.engine(**sample).loss
        bench.engine.backward(loss)
        if keep_gradients and step == 0:
            bench.gradients = full_gradients(bench, names)
        bench.engine.step()
        losses.append(world_mean(bench, loss.item()))
    return losses


def loss_problems(losses: list[float]) -> list[str]:
    """Losses that are not finite or do not fall."""
    if not all(map(math.isfinite, losses)):
        return [f"the loss is not finite: {_numbers(losses)}"]
    if not all(later < earlier for earlier, later in itertools.pairwise(losses)):
        return [f"the loss does not fall: {_numbers(losses)}"]
    return []


def gradient_problems(gradients: dict[str, torch.Tensor], names: list[str]) -> list[str]:
    """Where the vision tower or the language model got no gradient, by their probes `names`."""
    problems = []
    for tower, name in zip(("vision tower", "language model"), names, strict=True):
        size = gradients[name].norm().item() if name in gradients else 0.0
        if not (math.isfinite(size) and size > 0):
            problems.append(f"no gradient reaches the {tower}: the norm for {name} is {size}")
    return problems


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:.6g}" for value in values)


def train(bench: Bench) -> Outcome:
    """The first optimizer step on image and text: gradients in both towers."""
    bench.losses = engine_steps(bench, own_sample(bench), 1, keep_gradients=True)
    return judged(gradient_problems(bench.gradients, engine_probes(bench)), "gradients in both towers")


def train_on(bench: Bench) -> Outcome:
    """The two steps after the engine checkpoint was saved: loss finite and falling. `resume` has to repeat them."""
    following = engine_steps(bench, own_sample(bench), RESUME_STEPS)
    if bench.rank == 0:
        (bench.work / f"zero{bench.stage}" / "losses.json").write_text(json.dumps(following))
    losses = bench.losses + following
    return judged(loss_problems(losses), f"loss {_numbers(losses)}", losses=losses)


def memory(bench: Bench) -> Outcome:
    """Peak memory of this rank; under ZeRO-3 the number of parameter elements it holds is exactly its share."""
    problems = partition_problems(bench)
    held = sum(
        getattr(p, "ds_tensor", p).numel() + (p.numel() if hasattr(p, "ds_tensor") else 0) for p in bench.model.parameters()
    )
    peak = torch.cuda.max_memory_allocated() if bench.device == "cuda" else peak_rss()
    kind = "VRAM" if bench.device == "cuda" else "RSS"
    detail = f"{held:,} parameter elements held, peak {kind} {peak / 2**30:.2f} GiB"
    return judged(problems, detail, peak_bytes=peak, elements=held)


def peak_rss() -> int:
    """This process's high-water mark in bytes, pages shared with its parent included (proc(5), VmHWM)."""
    match = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


# generate


def greedy(bench: Bench, model: Any, **kwargs: Any) -> list[int]:
    """The tokens that `model` appends to an image prompt, always taking the likeliest."""
    inputs = bench.on_device(samples.prompt(bench.processor, samples.scenes(1)[0]))
    model.eval()
    with torch.no_grad():
        tokens = model.generate(**inputs, do_sample=False, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS, **kwargs)
    model.train()
    return tokens[0, inputs["input_ids"].shape[1] :].tolist()


def generate(bench: Bench) -> Outcome:
    """Greedy tokens of the engine's model, before any training. The supervisor compares them with the unpartitioned model's."""
    start_engine(bench)
    tokens = greedy(bench, bench.engine.module, synced_gpus=bench.stage == 3)
    return passed(f"tokens {' '.join(map(str, tokens))}", tokens=tokens)


# resume


def digests(bench: Bench) -> dict[str, str]:
    """Name -> SHA-256 of each whole tensor of the engine's model. Every rank must call it; only rank 0 gets an answer."""
    import deepspeed

    found = {}
    for name, parameter in bench.engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=bench.stage == 3):
            if bench.rank == 0:
                found[name] = digest(parameter)
    return found


def digest(tensor: torch.Tensor) -> str:
    """SHA-256 of a tensor's bytes."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy()).hexdigest()  # type: ignore[arg-type]


def save(bench: Bench) -> Outcome:
    """An engine checkpoint after the first step, and the digest of every tensor in it."""
    folder = bench.work / f"zero{bench.stage}"
    bench.engine.save_checkpoint(folder, tag="smoke")
    found = digests(bench)
    if bench.rank == 0:
        (folder / "digests.json").write_text(json.dumps(found))
    # Where bf16 is the main precision there is no bf16 run of its own to leave the 16-bit weights.
    problems = save_half(bench) if bench.dtype == torch.bfloat16 else []
    return judged(problems, "saved")


def resume(bench: Bench) -> Outcome:
    """In fresh processes: the engine checkpoint loads into a new engine, whose next two losses are the ones seen before.

    That engine has gone a step of its own, so that no weight, moment or counter that is not restored is right by chance.
    """
    folder = bench.work / f"zero{bench.stage}"
    bench.engine.step()
    loaded, _ = bench.engine.load_checkpoint(folder, tag="smoke")
    if loaded is None:
        return failed(f"DeepSpeed found nothing to load in {folder}")
    losses = engine_steps(bench, own_sample(bench), RESUME_STEPS)
    wanted = json.loads((folder / "losses.json").read_text())
    # Bit for bit on a CPU. CUDA's scatter kernels add in no fixed order, so there the last bits may differ.
    tolerance = 0.0 if bench.device == "cpu" else PARITY[bench.dtype] / 10
    off = [i for i, (found, want) in enumerate(zip(losses, wanted, strict=True)) if abs(found - want) > tolerance]
    problems = [f"loss {i + 1} after the resume is {losses[i]!r}, without it {wanted[i]!r}" for i in off]
    return judged(problems, f"next losses {_numbers(losses)}, equal", losses=losses)


def consolidated(bench: Bench) -> Outcome:
    """The consolidated weights of stage `bench.stage` reload in plain transformers, bit-equal to what the engine held.

    32-bit from the fp32 engine checkpoint, 16-bit as `save_16bit_model` of the bf16 run wrote it.
    """
    from deepspeed.utils.zero_to_fp32 import convert_zero_checkpoint_to_fp32_state_dict

    folder = bench.work / f"zero{bench.stage}"
    problems = []
    written = []
    if (folder / "smoke").is_dir():
        target = bench.work / f"zero{bench.stage}-32bit"
        target.mkdir()  # the converter does not create it
        convert_zero_checkpoint_to_fp32_state_dict(str(folder), str(target), tag="smoke")
        # The converter gives fp32 master weights; a bf16 engine's own weights are these, rounded.
        problems += _reload(bench, target, bench.dtype, folder / "digests.json")
        written.append("32-bit")
    half = bench.work / f"zero{bench.stage}-16bit"
    if half.is_dir():
        problems += _reload(bench, half, torch.bfloat16, half / "digests.json")
        written.append("16-bit")
    return judged(problems, f"{' and '.join(written)} weights reload bit-equal in plain transformers")


def _reload(bench: Bench, folder: Path, dtype: torch.dtype, truth: Path) -> list[str]:
    """Problems on loading the state dict that was written to `folder` with nothing but transformers."""
    (folder / "config.json").write_text((bench.source / "config.json").read_text())
    model, info = load_with(bench.model_class(), folder, dtype)
    wanted = json.loads(truth.read_text())
    found = {name: digest(parameter) for name, parameter in model.named_parameters()}
    differing = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    return [f"{folder.name}: {what}" for what in key_problems(info) + [f"{name} differs" for name in differing]]


# bf16


def half_precision(bench: Bench) -> Outcome:
    """bf16: loads bit-equal to the file's numbers rounded to bf16, then three steps; leaves 16-bit weights behind."""
    bench.model, info = read_model(bench, bench.source)
    problems = key_problems(info) + partition_problems(bench)
    problems += [f"{name} {what}" for name, what in wrong_tensors(bench, bench.source).items()]
    start_engine(bench)
    losses = engine_steps(bench, own_sample(bench), TRAIN_STEPS, keep_gradients=True)
    problems += loss_problems(losses) + gradient_problems(bench.gradients, engine_probes(bench))
    problems += save_half(bench)
    return judged(problems, f"loss {_numbers(losses)}, 16-bit weights saved", losses=losses)


def save_half(bench: Bench) -> list[str]:
    """Write the engine's 16-bit weights and their digests for `consolidated`; problems in words."""
    folder = bench.work / f"zero{bench.stage}-16bit"
    saved = bench.engine.save_16bit_model(str(folder))
    found = digests(bench)
    if bench.rank == 0:
        (folder / "digests.json").write_text(json.dumps(found))
    return [] if saved else ["save_16bit_model wrote nothing and returned False"]


# mixed modality


def mixed_sample(bench: Bench, rank: int) -> dict[str, torch.Tensor]:
    """Rank 0 has an image, every other rank text only."""
    return samples.sample(bench.family, bench.processor, samples.scenes(rank + 1)[rank], with_image=rank == 0)


def _plain_gradients(bench: Bench) -> dict[str, torch.Tensor]:
    with safe_open(bench.work / "mixed-gradients.safetensors", framework="pt") as stored:
        return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - safe_open is no mapping


def _mixed_gradient_problems(bench: Bench, sample: dict[str, torch.Tensor]) -> list[str]:
    """How the gradients of one backward pass differ from those of a single process on the same global batch."""
    bench.model = ready_model(bench, bench.source)
    start_engine(bench)
    bench.engine.backward(bench.engine(**bench.on_device(sample)).loss)
    reference = _plain_gradients(bench)
    found = full_gradients(bench, list(reference))
    problems = []
    for name, wanted in reference.items():
        gradient = found.get(name)
        if gradient is None:
            problems.append(f"{name} got no gradient")
            continue
        error = (gradient - wanted).abs().max().item() / max(wanted.abs().max().item(), 1e-12)
        if not error <= GRADIENT_TOLERANCE[bench.dtype]:
            problems.append(f"the gradient of {name} is off by {error:.2g} of its largest element")
    return problems


def mixed_modality(bench: Bench) -> Outcome:
    """One rank with an image, the others with text alone, as a naive data loader gives them."""
    problems = _mixed_gradient_problems(bench, mixed_sample(bench, bench.rank))
    if problems:
        return known_issue(f"completes with wrong gradients: {problems[0]}")
    return passed("completes with the gradients of a plain run")


def mixed_modality_cure(bench: Bench) -> Outcome:
    """The same batch with a dummy image, labels -100, on each text-only rank."""
    sample = mixed_sample(bench, bench.rank)
    if bench.rank != 0:
        sample = samples.with_dummy_image(bench.family, bench.processor, sample)
    problems = _mixed_gradient_problems(bench, sample)
    return judged(problems, "a dummy image with labels -100 gives the gradients of a plain run")


# the plain run, and what is compared with it


def compare_losses(reference: Outcome, train: Outcome, dtype: torch.dtype) -> Outcome:
    """Parity of a ZeRO run's global losses with those of a single process on the same global batch."""
    wanted, found = reference.data["losses"], train.data["losses"]
    worst = max(abs(a - b) for a, b in zip(wanted, found, strict=True))
    if not worst <= PARITY[dtype]:
        return failed(f"losses {_numbers(found)}, a single process has {_numbers(wanted)}: off by {worst:.2g}")
    return passed(f"within {worst:.1g} of a single process")


def compare_tokens(reference: Outcome, generated: Outcome) -> Outcome:
    """Greedy tokens of a ZeRO engine against those of the unpartitioned model."""
    wanted, found = reference.data["tokens"], generated.data["tokens"]
    if found != wanted:
        return failed(f"tokens {found}, the unpartitioned model gives {wanted}")
    return passed(f"{len(found)} tokens equal those of the unpartitioned model")


def plain(bench: Bench) -> Outcome:
    """One process, no DeepSpeed: the losses, the greedy tokens and the mixed-modality gradients that the ranks are held to."""
    from safetensors.torch import save_file

    model = ready_model(bench, bench.source)
    model.to(bench.place).train()
    tokens = greedy(bench, model)
    ranks = range(bench.processes)

    for rank in ranks:
        (model(**bench.on_device(mixed_sample(bench, rank))).loss / len(ranks)).backward()
    gradients = {name: p.grad.float().cpu().contiguous() for name, p in model.named_parameters() if p.grad is not None}
    if sum(p.numel() for p in model.parameters()) >= SMALL_MODEL:
        gradients = {name: gradients[name] for name in probes(bench.family, gradients)}
    save_file(gradients, bench.work / "mixed-gradients.safetensors")
    model.zero_grad()

    # As DeepSpeed does: the optimizer works on fp32 masters, whatever the model is in.
    masters = [parameter.detach().clone().float() for parameter in model.parameters()]
    optimizer = bench.optimizer(masters)
    batch = [own_sample(bench, rank) for rank in ranks]
    losses = []
    for _ in range(TRAIN_STEPS):
        parts = [model(**sample).loss for sample in batch]
        losses.append(sum(part.item() for part in parts) / len(parts))
        (torch.stack(parts).sum() / len(parts)).backward()
        for master, parameter in zip(masters, model.parameters(), strict=True):
            master.grad = None if parameter.grad is None else parameter.grad.to(master.dtype)
        optimizer.step()
        for master, parameter in zip(masters, model.parameters(), strict=True):
            parameter.data.copy_(master)
        model.zero_grad()
    problems = loss_problems(losses)
    if len(set(tokens)) < 3:
        problems.append(f"the greedy tokens {tokens} are too much alike to tell two models apart")
    return judged(problems, f"loss {_numbers(losses)}", losses=losses, tokens=tokens)


def auto_classes(bench: Bench) -> Outcome:
    """Which auto classes load the checkpoint whole, which refuse it and which load it in part, against stack.toml."""
    import transformers

    expected = bench.stack["expectations"]["auto_classes"]
    found = {}
    for name in expected:
        auto = getattr(transformers, name, None)
        if auto is None:
            found[name] = "absent"
            continue
        try:
            model, info = load_with(auto, bench.source, bench.dtype)
        except ValueError as error:
            if "wrong-auto-class" not in [known.failure.name for known in explain(error)]:
                raise
            found[name] = "refused"
            continue
        found[name] = "part" if key_problems(info) else "whole"
        del model
    problems = [
        f"{name}: {found[name]}, stack.toml expects {expected[name]}" for name in expected if found[name] != expected[name]
    ]
    return judged(problems, ", ".join(f"{name} {how}" for name, how in found.items()), found=found)
