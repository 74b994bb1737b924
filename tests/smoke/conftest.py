"""Smoke runs as a user starts them: processes of the environment's own Python, observed from outside."""

import contextlib
import functools
import json
import os
import select
import shutil
import signal
import subprocess
import time
import tomllib
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import hypothesis
import pytest
from packaging.version import Version

from smoke_tests import families, measured
from smokehouse.checkout import Checkout
from smokehouse.installs import virtualenv
from smokehouse.locks import Lock, check

# A machine that runs smoke tests is busy: the duration of an example means nothing.
hypothesis.settings.register_profile("busy", deadline=None)
hypothesis.settings.load_profile("busy")

NAME, LATEST = "qwen2.5-vl", "qwen2.5-vl-latest"
ROOT = Path(__file__).parents[2]
NAMES = Checkout(ROOT).environments()
# Seconds; a run takes 25, and a test must end on a busy machine too.
DEADLINE = 240.0
T = TypeVar("T")
MARK = "SMOKE_TEST_MARK"


INSPECTION = """
import functools, json, math, sys, types
from pathlib import Path
from safetensors import safe_open
import torch, transformers
from smoke_tests import families
from smoke_tests.checks import RankContext, generation
from smoke_tests.fixtures import samples, tiny_checkpoint

def trained_sizes(family, folder):
    # Of the checkpoint that most checks train: the elements of each tensor in its files.
    tiny_checkpoint.write(folder, family, samples.corpus(), width=family.trained_width or None)
    found = []
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as shard:
            found += [math.prod(shard.get_slice(name).get_shape()) for name in shard.keys()]
    return found

def choices(family, folder, processor):
    # By how much the logits of the first two greedy tokens lead in each precision, and how many tokens are different.
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        context = types.SimpleNamespace(family=family, processor=processor, dtype=dtype, torch_device="cpu")
        context.on_device = functools.partial(RankContext.on_device, context)
        model = getattr(transformers, family.model_class).from_pretrained(folder, torch_dtype=dtype)
        tokens, gaps = generation.greedy(context, model)
        found[str(dtype)] = {"gaps": gaps[:2], "different": len({*tokens})}
    return found

def inspect(folder):
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as shard:
            for name in shard.keys():
                tensor = shard.get_tensor(name)
                found[name] = {"shape": list(tensor.shape), "shard": file.name, "zeros": int((tensor == 0).sum()),
                               "ones": int((tensor == 1).sum()), "different": tensor.unique().numel()}
    family = families.get(folder.name)
    trained = trained_sizes(family, folder.with_name(f"{folder.name}-trained"))
    if family.denoiser:
        return {"tensors": found, "trained": trained}
    processor = getattr(transformers, family.processor_class).from_pretrained(folder)
    tokenizer = getattr(processor, "tokenizer", processor)
    captions = [scene.caption for scene in samples.scenes(48)]
    texts = [tokenizer.decode(tokenizer(caption)["input_ids"]) for caption in captions]
    inputs = samples.sample(family, processor, samples.scenes(1)[0])
    pixels = inputs.get("pixel_values")
    clear = choices(family, folder.with_name(f"{folder.name}-trained"), processor)
    return {"tensors": found, "trained": trained, "choices": clear, "captions": captions, "texts": texts,
            "values": 0 if pixels is None else pixels.numel(),
            "spread": 0 if pixels is None else pixels.unique().numel(), "labels": inputs["labels"].tolist()[0]}

print(json.dumps({folder.name: inspect(folder) for folder in map(Path, sys.argv[1:])}))
"""
WRITING = """
import pathlib, sys
from smoke_tests import families
from smoke_tests.fixtures import samples, tiny_checkpoint

for folder in map(pathlib.Path, sys.argv[1:]):
    tiny_checkpoint.write(folder, families.get(folder.name), samples.corpus())
"""


@dataclass(frozen=True)
class Ended:
    """A finished run."""

    name: str
    code: int
    stdout: str
    stderr: str
    folder: Path
    seconds: float

    @property
    def stack(self) -> dict[str, Any]:
        """The environment's stack.toml, parsed."""
        return tomllib.loads((ROOT / "environments" / self.name / "stack.toml").read_text())

    @property
    def family(self) -> families.Family:
        """The family of the environment's model."""
        return families.get(self.stack["model"]["family"])

    @property
    def expectations(self) -> dict[str, Any]:
        """What is expected of the locked versions, and what stack.toml has in its place."""
        pins = measured.pinned((ROOT / "lockfiles" / self.name / "requirements.txt").read_text())
        return measured.overridden(self.family, pins, self.stack.get("expectations", {}))

    @property
    def report(self) -> dict[str, Any]:
        """report.json, parsed."""
        report: dict[str, Any] = json.loads((self.folder / "report.json").read_text())
        return report

    def found(self, name: str, stage: int | None = None, kind: str = "check") -> dict[str, Any]:
        """Return the report's only entry for a check or control."""
        entry: dict[str, Any]
        [entry] = [c for c in self.report["checks"] if (c["name"], c["zero_stage"], c["kind"]) == (name, stage, kind)]
        return entry

    def failures(self) -> set[tuple[str, str, int | None]]:
        """Return kind, name and stage of all that failed."""
        return {(c["kind"], c["name"], c["zero_stage"]) for c in self.report["checks"] if c["verdict"] == "failed"}


class Smoke:
    """A smoke run in progress."""

    def __init__(self, name: str, command: list[str], root: Path, folder: Path, environ: dict[str, str]) -> None:
        self.name, self.folder = name, folder
        self.mark = uuid.uuid4().hex
        self.began = time.monotonic()
        self._said = [folder.with_name(f"{folder.name}.{name}") for name in ("stdout", "stderr")]
        folder.parent.mkdir(parents=True, exist_ok=True)
        with self._said[0].open("wb") as out, self._said[1].open("wb") as err:
            self.process = subprocess.Popen(
                command, cwd=root, env={**environ, MARK: self.mark}, stdout=out, stderr=err, start_new_session=True
            )

    def events(self) -> list[dict[str, Any]]:
        """Return the ranks' messages so far."""
        try:
            text = (self.folder / "logs" / "events.jsonl").read_text()
        except OSError:
            return []
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def wait_until(self, condition: Callable[[], T | None]) -> T:
        """Poll until `condition` returns something true, and return it; fail when the run ends before."""
        while True:
            over = self.process.poll() is not None
            if found := condition():
                return found
            assert not over, f"the run ended first: {self.said()}"
            assert time.monotonic() - self.began < DEADLINE, self.said()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.01)  # between two polls, unless the run ends first

    def wait_for(self, matches: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait for the first event that `matches`, and return it."""
        return self.wait_until(lambda: next(filter(matches, self.events()), None))

    def steps(self, job: str) -> list[str]:
        """Return the steps of a job, in order, from its ranks' hello."""
        return list(self.wait_for(lambda e: e["event"] == "hello" and e["job"] == job and "steps" in e)["steps"])

    def wait_for_step(self, job: str, rank: int, step: str) -> None:
        """Wait until `rank` of `job` begins `step`."""
        number = self.steps(job).index(step)
        self.wait_for(lambda e: (e["event"], e["job"], e["rank"], e.get("step")) == ("begin", job, rank, number))

    def reached(self, job: str, rank: int) -> str:
        """Return the step that `rank` of `job` reached: the first that it has not ended."""
        ends = sum((e["event"], e["job"], e["rank"]) == ("end", job, rank) for e in self.events())
        return self.steps(job)[ends]

    def pid(self, job: str, rank: int | None) -> int:
        """Return the process id of a rank, or of a job's launcher for None."""
        return int(self.wait_for(lambda e: (e["event"], e["job"], e["rank"]) == ("hello", job, rank))["pid"])

    def pids(self) -> set[int]:
        """Return the ids of all processes that ever sent hello."""
        return {int(event["pid"]) for event in self.events() if event["event"] == "hello"}

    def said(self) -> str:
        """Return standard output and standard error so far."""
        return "\n".join(file.read_text(errors="replace") for file in self._said)

    def finish(self, deadline: float = DEADLINE) -> Ended:
        """Wait for the end, and check that no process of the run is left, zombies included."""
        try:
            code = self.process.wait(deadline)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the run did not end within {deadline:.0f} s: {self.said()}")
        seconds = time.monotonic() - self.began
        assert self.living() == []
        # A zombie has no environment to recognise it by, so look up those that sent hello by their ids.
        assert [pid for pid in self.pids() if Path(f"/proc/{pid}").exists()] == []
        out, err = (file.read_text() for file in self._said)
        return Ended(self.name, code, out, err, self.folder, seconds)

    def living(self) -> list[int]:
        """Return every process on the machine that this run started, directly or not."""
        mark = f"{MARK}={self.mark}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdecimal() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        return found

    def kill(self) -> None:
        """Kill what is left of the run."""
        while living := self.living():
            for pid in living:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait(10)


def wait_until_dead(pids: list[int], deadline: float) -> None:
    """Wait until all processes have ended, children or not; fail when one has not by the deadline. See: pidfd_open(2)."""
    until = time.monotonic() + deadline
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            assert select.select([descriptor], [], [], max(0.0, until - time.monotonic()))[0], f"process {pid} still runs"
        finally:
            os.close(descriptor)


class Starter:
    """Starts smoke runs with the options that every run requires, and kills what a test leaves."""

    def __init__(self, root: Path, folder: Path, name: str = NAME) -> None:
        self.root, self.folder, self.name = root, folder, name
        self.python = python(root, name)
        self.started: list[Smoke] = []
        foreign = {"PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "PYTHONSTARTUP", "VIRTUAL_ENV"}
        self.environ = {name: value for name, value in os.environ.items() if name not in foreign} | {"PYTHONNOUSERSITE": "1"}

    def start(self, *options: str, sabotage: tuple[str, ...] = (), report: Path | None = None, **environ: str) -> Smoke:
        """Start a run under the named sabotages."""
        report = report or self.folder / f"report{len(self.started)}"
        script = ["-m", "smoke_tests"]
        if sabotage:
            script = ["tests/smoke/sabotage.py", *sabotage, "--"]
            environ |= {"PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "1"}
        command = [str(self.python), *script, *self.arguments(report), *options]
        self.started.append(Smoke(self.name, command, self.root, report, self.environ | environ))
        return self.started[-1]

    def arguments(self, report: Path) -> list[str]:
        """Return the arguments of every run; a repeated option replaces the earlier one."""
        stack, lock = self.root / "environments" / self.name / "stack.toml", self.root / "lockfiles" / self.name
        return ["--environment", self.name, "--stack", str(stack), "--lock", str(lock), "--report", str(report)]

    def run(self, *options: str, sabotage: tuple[str, ...] = (), report: Path | None = None, **environ: str) -> Ended:
        """Start a run and wait for its end."""
        return self.start(*options, sabotage=sabotage, report=report, **environ).finish()

    def inside(self, *arguments: str) -> str:
        """Run the environment's Python, which must succeed, and return its standard output."""
        ended = subprocess.run(
            [str(self.python), *arguments], cwd=self.root, env=self.environ, capture_output=True, text=True, timeout=DEADLINE
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def refused(self, *options: str, report: Path | None = None, **environ: str) -> str:
        """Start a run, which must refuse with one line, exit code 2 and no report; return the line."""
        ended = self.run(*options, sabotage=(), report=report, **environ)
        assert ended.code == 2, ended.stderr
        assert ended.stderr.count("\n") == 1, ended.stderr
        assert not (ended.folder / "report.json").exists()
        return ended.stderr.rstrip("\n")

    def close(self) -> None:
        """End all runs and delete their reports."""
        for smoke in self.started:
            smoke.kill()
            shutil.rmtree(smoke.folder, ignore_errors=True)


@functools.cache
def python(root: Path, name: str) -> Path:
    """Return the Python of an environment, which is installed first if necessary."""
    checkout = Checkout(root)
    return virtualenv.ensure(checkout, check.load(checkout, name))


@pytest.fixture
def smoke(root: Path, tmp_path: Path) -> Iterator[Starter]:
    """Yield a starter of smoke runs for one test."""
    starter = Starter(root, tmp_path)
    yield starter
    starter.close()


@pytest.fixture(scope="session")
def lasting(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    """Yield a starter of smoke runs that several tests share."""
    starter = Starter(root, tmp_path_factory.mktemp("smoke"))
    yield starter
    starter.close()


@pytest.fixture(scope="session")
def latest(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    """Yield the same for the environment whose stack has what upstream fixed."""
    starter = Starter(root, tmp_path_factory.mktemp("smoke"), LATEST)
    yield starter
    starter.close()


@pytest.fixture(scope="session", params=[NAME, LATEST])
def proven(root: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ended]:
    """Yield a whole good run of an old and a new stack: both stages, two ranks, the synthetic checkpoint.

    Those of all other environments are the committed reports.
    """
    starter = Starter(root, tmp_path_factory.mktemp("smoke"), request.param)
    yield starter.run()
    starter.close()


def environment_of(root: Path, family: families.Family) -> str:
    """Return the environment of the checkout `root` that tests of a model family run in: one whose packages have the model.

    Those of the other tests come first, so that the fewest are installed.
    """
    since = Version(family.since)
    suitable = [name for name in Checkout(root).environments() if locked(root, name, family.package) >= since]
    assert suitable, f"{family.file}: no environment has {family.package} {family.since}; add one"
    return min(suitable, key=[NAME, LATEST, *suitable].index)


@functools.cache
def locked(root: Path, name: str, package: str = "transformers") -> Version:
    """Return the version of a package in the lock of an environment; 0 where it has none."""
    lock = Lock.model_validate_json((root / "lockfiles" / name / "lock.json").read_bytes())
    return Version(next((file.version for file in lock.pip if file.name == package), "0"))


class ByFamily(dict[str, T]):
    """Family -> what a function makes of it, when it is first asked for: not every test needs every family's environment."""

    def __init__(self, make: Callable[[str], T]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, family: str) -> T:
        self[family] = self._make(family)
        return self[family]


@pytest.fixture(scope="session")
def at_home(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ByFamily[Starter]]:
    """Yield family -> a starter of smoke runs in the environment that can hold it."""
    of: dict[str, Starter] = ByFamily(lambda name: Starter(root, tmp_path_factory.mktemp("family"), name))
    yield ByFamily(lambda family: of[environment_of(root, families.get(family))])
    for starter in of.values():
        starter.close()


@pytest.fixture(scope="session")
def synthetic(at_home: ByFamily[Starter]) -> ByFamily[Path]:
    """Return family -> its synthetic checkpoint, as a smoke run writes it."""

    def write(family: str) -> Path:
        folder = at_home[family].folder / "synthetic" / family
        at_home[family].inside("-c", WRITING, str(folder))
        return folder

    return ByFamily(write)


@pytest.fixture(scope="session")
def inspection(at_home: ByFamily[Starter], synthetic: ByFamily[Path]) -> ByFamily[dict[str, Any]]:
    """Return family -> what its environment's own libraries find in its synthetic checkpoint."""

    def inspect(family: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(at_home[family].inside("-c", INSPECTION, str(synthetic[family])))[family]
        return found

    return ByFamily(inspect)


@pytest.fixture(params=[name for name in families.names() if not families.get(name).denoiser])
def reader(request: pytest.FixtureRequest) -> str:
    """Return each family that reads tokens."""
    return str(request.param)


@pytest.fixture(params=families.names())
def family(request: pytest.FixtureRequest) -> str:
    """Return each family."""
    return str(request.param)
