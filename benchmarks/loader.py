"""What the loader costs, as ratios. Becomes a process of an environment's own Python, unless it was started by one with torch.

Each figure is taken beside its floor, in turn, so that what slows the machine slows both; the tables show medians. Checkpoints
for headers are sparse files: they have the size of the real thing, and no content.
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
    """How long `work` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def against(
    work: Callable[[], Any], floor: Callable[[], Any], rounds: int, before: Callable[[], Any] = lambda: None
) -> tuple[float, float, float]:
    """Medians of `work`, of `floor` and of their ratio, run in turn, each after `before`."""
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
    """A checkpoint of `tensors` bf16 tensors in 40 shards that claims `size` bytes and takes none."""
    rows = size // tensors // 2 // 1024
    weight_map = {}
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
    """The floor of an inspection: the index parsed, and each shard's header read and parsed."""
    index = json.loads((path / "model.safetensors.index.json").read_bytes())
    for name in set(index["weight_map"].values()):
        with (path / name).open("rb") as file:
            json.loads(file.read(int.from_bytes(file.read(8), "little")))


def inspection(rounds: int) -> None:
    """inspect_checkpoint against the parsing of its headers alone."""
    from smokehouse_loader import inspect_checkpoint

    print("\n| `inspect_checkpoint`, 70 GB in 40 shards | ms | times parsing the headers |\n|---|---|---|")
    for tensors in (250, 500, 1000, 2000, 4000):
        with tempfile.TemporaryDirectory() as folder:
            sparse(Path(folder), tensors, 70 * 10**9)
            assert not inspect_checkpoint(folder).problems
            spent, _, ratio = against(lambda: inspect_checkpoint(folder), lambda: read_index(Path(folder)), rounds)
        print(f"| {tensors} tensors | {spent * 1e3:.1f} | {ratio:.1f} |")


def language_model(layers: int, width: int) -> Any:
    """A config of a language model with 12 tensors a layer."""
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


def guard(rounds: int) -> None:
    """check_checkpoint against the construction of the model on the meta device."""
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
    """Bytes of this process's own memory, without what is mapped from files."""
    text = Path("/proc/self/status").read_text()
    return int(text.split("RssAnon:")[1].split()[0]) * 1024


class Peak:
    """The most anonymous memory above what there was at first, seen at each call."""

    def __init__(self) -> None:
        """Take the measure of now."""
        self.first = self.most = anonymous()

    def look(self) -> None:
        """Look again."""
        self.most = max(self.most, anonymous())


def forget(path: Path) -> None:
    """Have the kernel drop what it keeps of a checkpoint's files in memory."""
    for file in path.glob("*.safetensors"):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_once(path: Path, buffer: bytearray, part: int, parts: int) -> None:
    """The floor of a comparison: the `part`th of `parts` of each file of the checkpoint, read into memory."""
    for file in path.glob("*.safetensors"):
        share = -(-file.stat().st_size // parts)
        with file.open("rb", buffering=0) as opened:
            opened.seek(part * share)
            left = share
            while left > 0 and (got := opened.readinto(memoryview(buffer)[: min(len(buffer), left)])):
                left -= got


def comparison(rounds: int) -> None:
    """verify="bits" against one reading of the checkpoint, in one process."""
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

            def seen(self: Any, wanted: Any, stream: Any = stream, peak: Peak = peak) -> Any:
                for piece in stream(self, wanted):
                    peak.look()
                    yield piece

            compare.Reader.stream = seen  # type: ignore[method-assign]
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
    """One rank of a ZeRO-3 run; tells medians of loading, comparing and reading its own part, and what it holds."""
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
    held = sum(zero.local_partition(parameter)[0].numel() for parameter in model.parameters())
    compared = statistics.median(compares)
    ratio = statistics.median(one / other for one, other in zip(compares, reads, strict=True))
    pipe.send((loaded, compared, ratio, held / fit.checkpoint.elements))
    del live
    dist.barrier()
    os._exit(0)


def partitions(rounds: int) -> None:
    """The same under ZeRO-3, where each rank compares what it holds."""
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
                ours, theirs = fork.Pipe(duplex=False)
                arguments = (number, world, f"{folder}/store{world}", path, rounds, theirs)
                processes.append(fork.Process(target=rank, args=arguments))
                processes[-1].start()
                pipes.append(ours)
            told = []
            for pipe in pipes:
                if not pipe.poll(DEADLINE):
                    raise SystemExit(f"{world} ranks did not end in {DEADLINE:.0f} s")
                told.append(pipe.recv())
            for process in processes:
                process.join(DEADLINE)
            loaded, compare, held = (max(one[part] for one in told) for part in (0, 1, 3))
            middle = statistics.median(one[2] for one in told)
            print(
                f"| {world} ranks | {loaded:.1f} | {compare * 1e3:.0f} | {middle:.2f} | {compare / loaded:.2f} | {held:.3f} |"
            )


def environment_python(name: str) -> Path:
    """The Python of an environment; installs it where it is not."""
    from smokehouse import environment, installation
    from smokehouse.house import House

    house = House.find(Path.cwd())
    return installation.ensure(house, environment.read(house, name))


def main() -> int:
    """Measure and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="how often each is measured")
    parser.add_argument("--environment", default="qwen2.5-vl", help="whose Python to measure with (default: qwen2.5-vl)")
    asked = parser.parse_args()
    if importlib.util.find_spec("torch") is None:
        python = environment_python(asked.environment)
        os.execv(python, [str(python), *sys.argv])
    rounds = asked.rounds
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
    guard(rounds)
    comparison(rounds)
    print(f"\ntorch {torch.__version__}, transformers {transformers.__version__}, {len(os.sched_getaffinity(0))} CPUs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
