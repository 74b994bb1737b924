"""Measure how long `nox -s lock` takes against conda-lock 4 on the same inputs.

Both request one mirror of the real index, on this machine, which leaves out files younger than the cut-off: conda-lock has no
such option for PyPI packages. It also needs a conda executable, and gets one that solves with py-rattler, as Smokehouse does:
what is compared is the resolution of PyPI packages and all that happens around both. The tools run in turn; tables show
medians.
"""

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from time import perf_counter

import yaml

from benchmarks.mirror import Mirror, running, upstream
from smokehouse.checkout import Checkout
from smokehouse.environments import Environment
from smokehouse.environments import definition as environment
from smokehouse.locks import model
from smokehouse.storage import files

ENVIRONMENT = "qwen2.5-vl"
PACKAGES = 250
COPIES = (1, 2, 4, 8)
# How many copies of an environment of each stack are locked in one run; the third has packages of its own.
STACKS = {ENVIRONMENT: 4, "qwen2.5-vl-latest": 6, "vlm-r1": 1}
DEADLINE = 900.0  # seconds

# Timed inside the process, after the imports.
SOLVING = """
import sys, time
from pathlib import Path
from smokehouse.checkout import Checkout
from smokehouse import environments
from smokehouse.locks.solvers import conda
environment = environments.read(Checkout(Path.cwd()), sys.argv[1])
began = time.perf_counter()
conda.solve(environment.conda, sys.argv[2])
print(time.perf_counter() - began, flush=True)
import os
os._exit(0)  # py-rattler crashes one in five interpreters that exit normally
"""
READING = """
import sys, time
from pathlib import Path
from smokehouse.locks import model
began = time.perf_counter()
model.read(Path(sys.argv[1]), "lock.json", "")
print(time.perf_counter() - began)
"""
READING_CONDA_LOCK = """
import sys, time
from pathlib import Path
from conda_lock.lockfile import parse_conda_lock_file
began = time.perf_counter()
parse_conda_lock_file(Path(sys.argv[1]))
print(time.perf_counter() - began)
"""
# A process inherits the peak of the one that it was forked from, and this one has the whole mirror in memory.
LAUNCHING = """
import os, sys
child = os.spawnvp(os.P_NOWAIT, sys.argv[2], sys.argv[2:])
_, status, usage = os.wait4(child, 0)
with open(sys.argv[1], "w") as file:
    file.write(str(usage.ru_maxrss << 10))
sys.exit(os.waitstatus_to_exitcode(status))
"""


@dataclass(frozen=True)
class Ran:
    """A command that succeeded: wall seconds, peak memory of its largest process in bytes, and its output."""

    seconds: float
    peak: int
    stdout: str


def run(command: Sequence[str | Path], environ: dict[str, str], cwd: Path) -> Ran:
    """Run a command; raise RuntimeError with its error output if it fails."""
    with tempfile.NamedTemporaryFile("r") as peak:
        launcher = [sys.executable, "-ISc", LAUNCHING, peak.name]
        began = perf_counter()
        ended = subprocess.run(
            [*launcher, "timeout", str(DEADLINE), *command], env=environ, cwd=cwd, capture_output=True, text=True
        )
        seconds = perf_counter() - began
        if ended.returncode:
            raise RuntimeError(f"{' '.join(map(str, command))}: exit code {ended.returncode}: {ended.stderr[-2000:]}")
        return Ran(seconds, int(peak.read()), ended.stdout)


class Rivals:
    """Both tools in a checkout and caches of their own, so that a warm cache is one that this run warmed."""

    def __init__(self, checkout: Checkout, folder: Path, channel: Path, mirror: Mirror) -> None:
        self.source = checkout
        self.checkout = Checkout(folder / "checkout")
        self.channel = channel
        self.environment: Environment = environment.read(checkout, ENVIRONMENT)
        self.mirror = mirror
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "PYTHON", "CONDA_"))}
        self.environ = kept | {
            "PYTHONPATH": str(checkout.root / "src"),
            "UV_CACHE_DIR": str(folder / "uv"),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "SMOKEHOUSE_CHANNEL": str(channel),
            "SMOKEHOUSE_CUTOFF": str(self.environment.stack.packages.cutoff),
        }
        self.conda = folder / "conda"
        self.conda.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).with_name("stand_in_conda.py")}" "$@"\n')
        self.conda.chmod(0o755)
        # conda-lock would download this map of PyPI names to conda names; these inputs need none of it.
        self.mapping = folder / "mapping.json"
        self.mapping.write_text("{}")
        shutil.copytree(checkout.environment(ENVIRONMENT), self.checkout.root / "environments" / ENVIRONMENT)
        shutil.copytree(checkout.stacks(ENVIRONMENT), self.checkout.stacks(ENVIRONMENT))

    def smokehouse(self, *arguments: str, freshness: str = "fresh") -> Ran:
        """Run `smokehouse lock`."""
        environ = self.environ | {"UV_DEFAULT_INDEX": self.mirror.address(freshness)}
        return run([sys.executable, "-m", "smokehouse", "lock", *arguments], environ, self.checkout.root)

    def smokehouse_lock(self, freshness: str, *names: str) -> Ran:
        """Lock the environments `names` with Smokehouse."""
        return self.smokehouse(*(names or [ENVIRONMENT]), "--channel", str(self.channel), freshness=freshness)

    def conda_lock(self, freshness: str, *options: str) -> Ran:
        """Lock the environment with conda-lock."""
        index = self.mapping.with_name(f"{freshness}.yml")
        index.write_text(
            yaml.safe_dump(
                {
                    "channels": ["conda-forge"],
                    "dependencies": [],
                    "pip-repositories": [self.mirror.address(freshness)],
                    "allow-pypi-requests": False,
                }
            )
        )
        definitions = [option for file in self.environment.files for option in ("--file", file)]
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "conda_lock",
            "lock",
            "--conda",
            self.conda,
            "--platform",
            "linux-64",
            *options,
        ]
        command += ["--with-cuda", self.environment.stack.cuda.version, "--pypi_to_conda_lookup_file", self.mapping]
        command += [*definitions, "--file", index, "--lockfile", self.lockfile(freshness)]
        return run(command, self.environ, self.mapping.parent)

    def lockfile(self, freshness: str) -> Path:
        """Return the path of conda-lock's lock."""
        return self.mapping.with_name(f"conda-lock-{freshness}.yml")

    def differing(self) -> list[str]:
        """Return each package that the two tools lock at different versions."""
        mine = model.read(self.checkout.lock(ENVIRONMENT) / model.LOCK_JSON, "lock.json", "")
        versions = {package.name: package.version for package in (*mine.conda, *mine.pip)}
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        locked = yaml.load(self.lockfile("fresh").read_text(), loader)["package"]
        found = {package["name"]: package["version"] for package in locked}
        names = sorted(versions.keys() | found.keys())
        return [f"{name} {versions.get(name)} / {found.get(name)}" for name in names if versions.get(name) != found.get(name)]

    def larger(self) -> Path:
        """Return a copy of Smokehouse's lock, extended to `PACKAGES` packages."""
        folder = self.mapping.with_name("larger")
        shutil.copytree(self.checkout.lock(ENVIRONMENT), folder)
        path = folder / model.LOCK_JSON
        read = json.loads(path.read_text())
        extra = PACKAGES - len(read["pip"]) - len(read["conda"])
        read["pip"] += [read["pip"][-1] | {"name": f"more-{number}"} for number in range(extra)]
        files.write(path, json.dumps(read, indent=1))
        return path

    def copies(self, number: int, like: str = ENVIRONMENT) -> list[str]:
        """Return the names of `number` environments with the requirements of one."""
        names = [f"{like}-{index}" for index in range(number)]
        for name in names:
            folder = self.checkout.root / "environments" / name
            if not folder.exists():
                shutil.copytree(self.source.environment(like), folder)
                file = folder / "environment.yml"
                file.write_text(re.sub(r"(?m)^name: .*$", f"name: {name}", file.read_text()))
        return names


def main() -> int:
    """Measure and print Markdown tables."""
    checkout = Checkout.find(Path.cwd())
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="Run each tool this many times.")
    parser.add_argument(
        "--channel",
        type=Path,
        default=checkout.root / "tests" / "data" / "conda-forge",
        help="Folder with the records of conda-forge.",
    )
    given = parser.parse_args()
    before = environment.read(checkout, ENVIRONMENT).inputs.before
    with tempfile.TemporaryDirectory() as place, running(upstream(), before) as mirror:
        measure(Rivals(checkout, Path(place), given.channel.resolve(), mirror), given.rounds)
    # Each environment has a cut-off of its own, and Smokehouse alone is measured, which has an option for it.
    with tempfile.TemporaryDirectory() as place, running(upstream(), datetime.now(UTC)) as mirror:
        measure_stacks(Rivals(checkout, Path(place), given.channel.resolve(), mirror), given.rounds)
    return 0


def measure_stacks(ours: Rivals, rounds: int) -> None:
    """Lock environments of several stacks in one run, and each stack's first alone, in turn; print a table."""
    by_stack = {like: ours.copies(number, like) for like, number in STACKS.items()}
    names = [name for stack in by_stack.values() for name in stack]
    report(f"warming the cache with the pages of {len(by_stack)} stacks")
    ours.smokehouse_lock("fresh", *names)
    runs: dict[str, list[float]] = {}
    for _ in range(rounds):
        for like, copies in by_stack.items():
            runs.setdefault(f"one, like {like}", []).append(ours.smokehouse_lock("fresh", copies[0]).seconds)
        runs.setdefault(f"{len(names)} of {len(by_stack)} stacks", []).append(ours.smokehouse_lock("fresh", *names).seconds)
    one, *_ = (statistics.median(seconds) for seconds in runs.values())
    print("\n\n| environments locked in one run | seconds | times the first |\n|---|---:|---:|")
    for title, seconds in runs.items():
        print(f"| {title} | {statistics.median(seconds):.2f} | {statistics.median(seconds) / one:.1f} |")


def measure(rivals: Rivals, rounds: int) -> None:
    """Run both tools in turn and print the results."""
    rows: dict[str, list[tuple[float, float]]] = {}
    peaks: list[tuple[int, int]] = []
    requests: dict[str, tuple[int, int]] = {}
    for freshness in ("fresh", "stale"):
        report(f"warming the caches of both tools with {freshness} pages")
        rivals.smokehouse_lock(freshness)
        rivals.conda_lock(freshness)
    larger = rivals.larger()
    for number in range(rounds):
        for freshness, title in (
            ("fresh", "whole lock, every page of the index fresh in the cache"),
            ("stale", "whole lock, every page revalidated (304)"),
        ):
            before = rivals.mirror.requests
            mine = rivals.smokehouse_lock(freshness)
            between = rivals.mirror.requests
            their = rivals.conda_lock(freshness)
            rows.setdefault(title, []).append((mine.seconds, their.seconds))
            requests[freshness] = (between - before, rivals.mirror.requests - between)
            peaks.append((mine.peak, their.peak))
        checked = rivals.smokehouse(ENVIRONMENT, "--check"), rivals.conda_lock("fresh", "--check-input-hash")
        rows.setdefault("lock up to date: `--check` / `--check-input-hash`", []).append(
            (checked[0].seconds, checked[1].seconds)
        )
        reading = [
            float(run([sys.executable, "-c", script, path], rivals.environ, rivals.checkout.root).stdout)
            for script, path in ((READING, larger), (READING_CONDA_LOCK, rivals.lockfile("fresh")))
        ]
        rows.setdefault(f"reading a lock (of {PACKAGES} packages / its own), without imports", []).append(
            (reading[0], reading[1])
        )
        solving = run([sys.executable, "-c", SOLVING, ENVIRONMENT, rivals.channel], rivals.environ, rivals.checkout.root)
        rows.setdefault("solving the conda packages, without imports", []).append((float(solving.stdout), float("nan")))
        report(f"round {number + 1}: " + ", ".join(f"{runs[-1][0]:.2f} / {runs[-1][1]:.2f} s" for runs in rows.values()))
    growth = [(number, [rivals.smokehouse_lock("fresh", *rivals.copies(number)) for _ in range(rounds)]) for number in COPIES]
    show(rivals, rounds, rows, peaks, requests, growth)


def show(
    rivals: Rivals,
    rounds: int,
    rows: dict[str, list[tuple[float, float]]],
    peaks: list[tuple[int, int]],
    requests: dict[str, tuple[int, int]],
    growth: list[tuple[int, list[Ran]]],
) -> None:
    """Print the tables."""
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    print(f"{found[1] if found else platform.machine()}, {len(os.sched_getaffinity(0))} CPUs, median of {rounds} rounds\n")
    print(f"| {ENVIRONMENT} | Smokehouse | conda-lock {metadata.version('conda-lock')} | times faster |\n|---|---:|---:|---:|")
    for title, runs in rows.items():
        mine, their = (statistics.median(run[side] for run in runs) for side in (0, 1))
        # Compared within a round, in which the machine is the same for both.
        times = statistics.median(other / one for one, other in runs)
        print(f"| {title} | {mine:.3f} s | " + ("- | - |" if their != their else f"{their:.3f} s | {times:.1f} |"))
    mine_peak, their_peak = (max(peak[side] for peak in peaks) / 1e6 for side in (0, 1))
    print(f"| peak memory of the largest process | {mine_peak:.0f} MB | {their_peak:.0f} MB | {their_peak / mine_peak:.1f} |")
    print("\n| environments of one cut-off | seconds | times one |\n|---|---:|---:|")
    one = statistics.median(run.seconds for run in growth[0][1])
    for number, grown in growth:
        seconds = statistics.median(run.seconds for run in grown)
        print(f"| {number} | {seconds:.2f} | {seconds / one:.1f} |")
    for freshness, (mine_requests, their_requests) in requests.items():
        print(f"\nPages requested when {freshness}: Smokehouse {mine_requests}, conda-lock {their_requests}.", end="")
    differing = rivals.differing()
    print(f"\nPackages that the two lock at different versions: {len(differing)} ({', '.join(differing) or 'none'}).")
    print(
        "conda-lock uses a stand-in for conda that solves with py-rattler, as Smokehouse does, and a mirror of the index that "
        f"is cut off at {rivals.environment.stack.packages.cutoff}, as it has no such option."
    )


def report(message: str) -> None:
    """Print progress."""
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
