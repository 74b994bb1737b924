"""Measure the cost of the loader, as ratios. Runs in the Python of an environment unless it is started by one with torch.

Each figure is measured in turns with its lower bound, so that a slow machine slows down both; the tables show medians. The
checkpoints for headers are sparse files of realistic size.
"""

import argparse
import importlib
import importlib.util
import json
import logging
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
os.environ.update(DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
sys.modules["triton"] = None  # type: ignore[assignment]

DEADLINE = 600.0  # seconds
SHARDS = 40
CHUNK = 2**24


def seconds(work: Callable[[], Any]) -> float:
    """Return the seconds that `work` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def against(
    work: Callable[[], Any], floor: Callable[[], Any], rounds: int, before: Callable[[], Any] = lambda: None
) -> tuple[float, float, float]:
    """Return the median seconds of `work` and of `floor`, run in turns, each after `before`, and of their ratio."""
    work()
    floor()
    pairs = []
    for _ in range(rounds):
        before()
        spent = seconds(work)
        before()
        pairs.append((spent, seconds(floor)))
    return (
        statistics.median(one for one, _ in pairs),
        statistics.median(other for _, other in pairs),
        statistics.median(one / other for one, other in pairs),
    )


def sparse(path: Path, tensors: int, size: int) -> None:
    """Write a sparse checkpoint of `tensors` bf16 tensors with `size` bytes in 40 shards."""
    rows = size // tensors // 2 // 1024
    weight_map: dict[str, str] = {}
    for shard in range(SHARDS):
        name = f"model-{shard + 1:05d}-of-{SHARDS:05d}.safetensors"
        keys = [f"model.layers.{number}.mlp.down_proj.weight" for number in range(shard, tensors, SHARDS)]
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        for number, key in enumerate(keys):
            start = number * rows * 2048
            header[key] = {"dtype": "BF16", "shape": [rows, 1024], "data_offsets": [start, start + rows * 2048]}
        text = json.dumps(header).encode()
        with (path / name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + len(keys) * rows * 2048)
        weight_map |= dict.fromkeys(keys, name)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def read_index(path: Path) -> None:
    """Read and parse the index and the header of each shard, the lower bound of an inspection."""
    index = json.loads((path / "model.safetensors.index.json").read_bytes())
    for name in set(index["weight_map"].values()):
        with (path / name).open("rb") as file:
            json.loads(file.read(int.from_bytes(file.read(8), "little")))


def inspection(rounds: int) -> None:
    """Compare inspect_checkpoint with parsing the headers alone."""
    from smokehouse_loader import inspect_checkpoint

    print("\n| `inspect_checkpoint`, 70 GB in 40 shards | ms | times parsing the headers |\n|---|---|---|")
    for tensors in (250, 500, 1000, 2000, 4000):
        with tempfile.TemporaryDirectory() as folder:
            sparse(Path(folder), tensors, 70 * 10**9)
            assert not inspect_checkpoint(folder).problems
            spent, _, ratio = against(lambda: inspect_checkpoint(folder), lambda: read_index(Path(folder)), rounds)
        print(f"| {tensors} tensors | {spent * 1e3:.1f} | {ratio:.1f} |")


def language_model(layers: int, width: int) -> Any:
    """Return the config of a language model with 12 tensors per layer."""
    from transformers import Qwen2Config

    return Qwen2Config(
        architectures=["Qwen2ForCausalLM"],
        vocab_size=1024,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
    )


def fit(rounds: int) -> None:
    """Compare check_checkpoint with building the model on the meta device."""
    import torch
    from transformers import Qwen2ForCausalLM

    from smokehouse_loader import check_checkpoint

    print("\n| `check_checkpoint` | ms | times building on meta |\n|---|---|---|")
    for layers in (20, 40, 80, 160):
        config = language_model(layers, 64)
        with tempfile.TemporaryDirectory() as folder:
            Qwen2ForCausalLM(config).save_pretrained(folder, max_shard_size="2MB")

            def build(config: Any = config) -> None:
                with torch.device("meta"):
                    Qwen2ForCausalLM(config)

            assert check_checkpoint(folder, config=config).ok
            spent, _, ratio = against(lambda: check_checkpoint(folder, config=config), build, rounds)  # noqa: B023 - called here
        print(f"| {12 * layers + 3} tensors | {spent * 1e3:.0f} | {ratio:.2f} |")


def anonymous() -> int:
    """Return the bytes of this process's memory that are not mapped from files."""
    text = Path("/proc/self/status").read_text()
    return int(text.split("RssAnon:")[1].split()[0]) * 1024


class Peak:
    """The highest anonymous memory, in bytes, of all calls."""

    def __init__(self) -> None:
        """Measure once."""
        self.first = self.most = anonymous()

    def measure(self) -> None:
        """Measure again."""
        self.most = max(self.most, anonymous())


def forget(path: Path) -> None:
    """Drop a checkpoint's files from the page cache."""
    for file in path.glob("*.safetensors"):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_once(path: Path, buffer: bytearray, part: int, parts: int) -> None:
    """Read part `part` of `parts` of each file of the checkpoint, the lower bound of a comparison."""
    for file in path.glob("*.safetensors"):
        share = -(-file.stat().st_size // parts)
        with file.open("rb", buffering=0) as opened:
            opened.seek(part * share)
            left = share
            while left > 0 and (got := opened.readinto(memoryview(buffer)[: min(len(buffer), left)])):
                left -= got


def comparison(rounds: int) -> None:
    """Compare verify="bits" with reading the checkpoint once, in one process."""
    import torch
    from transformers import Qwen2ForCausalLM

    from smokehouse_loader import check_checkpoint, compare, load_model

    print(
        '\n| the comparison of `verify="bits"`, 1 process | MB | ms | times reading once | from disk, ms | times | memory, MB |'
    )
    print("|---|---|---|---|---|---|---|")
    buffer = bytearray(CHUNK)
    for layers, width in ((4, 512), (4, 1024), (8, 1024), (16, 1024)):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder)
            Qwen2ForCausalLM(language_model(layers, width)).save_pretrained(path, max_shard_size="100MB")
            model = load_model(path, torch_dtype=torch.float32)
            fit = check_checkpoint(path)
            assert not compare.wrong_tensors(model, fit.checkpoint, fit.plan)
            peak = Peak()
            stream = compare.Reader.stream

            def measured(self: Any, parts: Any, stream: Any = stream, peak: Peak = peak) -> Any:
                for piece in stream(self, parts):
                    peak.measure()
                    yield piece

            compare.Reader.stream = measured  # type: ignore[method-assign]
            compare.wrong_tensors(model, fit.checkpoint, fit.plan)
            compare.Reader.stream = stream  # type: ignore[method-assign]
            again = lambda: compare.wrong_tensors(model, fit.checkpoint, fit.plan)  # noqa: B023, E731 - called here
            read = lambda: read_once(path, buffer, 0, 1)  # noqa: B023, E731 - called here
            spent, _, ratio = against(again, read, rounds)
            slow, _, cold = against(again, read, rounds, lambda: forget(path))  # noqa: B023 - called here
            size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
        grown, tensors = max(0, peak.most - peak.first), len(fit.checkpoint.tensors)
        print(
            f"| {tensors} tensors | {size / 1e6:.0f} | {spent * 1e3:.0f} | {ratio:.2f} | {slow * 1e3:.0f} | {cold:.2f} "
            f"| {grown / 1e6:.1f} |"
        )


def rank(number: int, world: int, store: str, path: Path, rounds: int, pipe: Any) -> None:
    """Run one rank under ZeRO-3; send seconds of loading and comparing, the ratio to reading, and its part of the model."""
    import deepspeed
    import torch
    import torch.distributed as dist
    from transformers.integrations import HfDeepSpeedConfig

    import smokehouse_loader
    from smokehouse_loader import compare, zero

    os.environ.update(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE=str(world), LOCAL_SIZE=str(world))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=world)
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
    live = HfDeepSpeedConfig({"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}})
    began = time.perf_counter()
    model = smokehouse_loader.load_model(path, torch_dtype=torch.float32)
    loaded = time.perf_counter() - began
    fit = smokehouse_loader.check_checkpoint(path)
    buffer = bytearray(CHUNK)
    compares, reads = [], []
    for _ in range(rounds):
        dist.barrier()
        compares.append(seconds(lambda: compare.wrong_tensors(model, fit.checkpoint, fit.plan)))
        dist.barrier()
        reads.append(seconds(lambda: read_once(path, buffer, number, world)))
    elements = sum(zero.local_partition(parameter)[0].numel() for parameter in model.parameters())
    compared = statistics.median(compares)
    ratio = statistics.median(one / other for one, other in zip(compares, reads, strict=True))
    pipe.send((loaded, compared, ratio, elements / fit.checkpoint.elements))
    del live
    dist.barrier()
    os._exit(0)


def partitions(rounds: int) -> None:
    """Compare the same under ZeRO-3, where each rank compares its partition."""
    from transformers import Qwen2ForCausalLM

    fork = multiprocessing.get_context("fork")
    print("\n| ZeRO-3, gloo | load, s | comparing, ms | times reading its part | comparing / load | part of the model |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "checkpoint")
        Qwen2ForCausalLM(language_model(8, 1024)).save_pretrained(path, max_shard_size="100MB")
        for world in (2, 4, 8):
            pipes, processes = [], []
            for number in range(world):
                receiver, sender = fork.Pipe(duplex=False)
                arguments = (number, world, f"{folder}/store{world}", path, rounds, sender)
                processes.append(fork.Process(target=rank, args=arguments))
                processes[-1].start()
                pipes.append(receiver)
            results = []
            for pipe in pipes:
                if not pipe.poll(DEADLINE):
                    raise SystemExit(f"{world} ranks timed out after {DEADLINE:.0f} s")
                results.append(pipe.recv())
            for process in processes:
                process.join(DEADLINE)
            loaded, compared, part = (max(one[index] for one in results) for index in (0, 1, 3))
            ratio = statistics.median(one[2] for one in results)
            print(
                f"| {world} ranks | {loaded:.1f} | {compared * 1e3:.0f} | {ratio:.2f} | {compared / loaded:.2f} | {part:.3f} |"
            )


def environment_python(name: str) -> Path:
    """Return the Python of an environment; install the environment if needed."""
    from smokehouse import locks
    from smokehouse.checkout import Checkout
    from smokehouse.installs import virtualenv

    checkout = Checkout.find(Path.cwd())
    return virtualenv.ensure(checkout, locks.load(checkout, name))


def main() -> int:
    """Measure and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="Number of measurements of each figure (default: 7).")
    parser.add_argument("--environment", default="qwen2.5-vl", help="Environment to measure in (default: qwen2.5-vl).")
    options = parser.parse_args()
    if importlib.util.find_spec("torch") is None:
        python = environment_python(options.environment)
        os.execv(python, [str(python), *sys.argv])
    rounds = options.rounds
    inspection(rounds)
    logging.disable(logging.INFO)
    import torch

    torch.set_num_threads(1)
    importlib.import_module("deepspeed")
    importlib.import_module("deepspeed.ops").__compatible_ops__["deepspeed_shm_comm"] = False
    transformers = importlib.import_module("transformers")
    importlib.import_module("transformers.integrations.deepspeed")
    importlib.import_module("transformers.utils.logging").disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    partitions(rounds)
    fit(rounds)
    comparison(rounds)
    print(f"\ntorch {torch.__version__}, transformers {transformers.__version__}, {len(os.sched_getaffinity(0))} CPUs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
