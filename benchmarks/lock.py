"""How long `nox -s lock` takes against conda-lock 4 on the same inputs.

Both ask one mirror of the real index on this machine, which leaves out what is younger than the cut-off: conda-lock's pip
solver knows no such date. No conda executable is at hand, so conda-lock gets one that solves with py-rattler, as we do: what
is compared is the pip solver and all that happens around both. The tools run in turn; the table shows medians.
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
from importlib import metadata
from pathlib import Path
from time import perf_counter

import yaml
from mirror import Mirror, running, upstream

from smokehouse.checkout import Checkout
from smokehouse.environments import definition as environment
from smokehouse.environments.definition import Environment
from smokehouse.locks import model
from smokehouse.storage import files

ENVIRONMENT = "qwen2.5-vl"
PACKAGES = 250
COPIES = (1, 2, 4, 8)
DEADLINE = 900.0  # seconds

# Timed inside the process, after the imports.
SOLVING = """
import sys, time
from pathlib import Path
from smokehouse.environments import definition
from smokehouse.checkout import Checkout
from smokehouse.locks.solvers import conda
environment = definition.read(Checkout(Path.cwd()), sys.argv[1])
began = time.perf_counter()
conda.solve(environment.conda, sys.argv[2])
print(time.perf_counter() - began, flush=True)
import os
os._exit(0)  # py-rattler crashes in a fifth of the orderly exits
"""
READING = """
import sys, time
from pathlib import Path
from smokehouse.locks import model
began = time.perf_counter()
model.read(Path(sys.argv[1]), "lock.json", "")
print(time.perf_counter() - began)
"""
READING_THEIRS = """
import sys, time
from pathlib import Path
from conda_lock.lockfile import parse_conda_lock_file
began = time.perf_counter()
parse_conda_lock_file(Path(sys.argv[1]))
print(time.perf_counter() - began)
"""
# A process starts out with the peak of the one that it was forked from, and this one holds the whole mirror.
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
    """A command that succeeded: wall seconds, the peak memory of its largest process in bytes, and what it printed."""

    seconds: float
    peak: int
    stdout: str


def run(command: Sequence[str | Path], environ: dict[str, str], cwd: Path) -> Ran:
    """Run a command that has to succeed. Raises RuntimeError with what it said where it does not."""
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
    """Both tools on a checkout of their own, with caches of their own, so that warm means what this run made warm."""

    def __init__(self, checkout: Checkout, folder: Path, channel: Path, mirror: Mirror) -> None:
        self.source = checkout
        self.checkout = Checkout(folder / "checkout")
        self.channel = channel
        self.asked: Environment = environment.read(checkout, ENVIRONMENT)
        self.mirror = mirror
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "PYTHON", "CONDA_"))}
        self.environ = kept | {
            "PYTHONPATH": str(checkout.root / "src"),
            "UV_CACHE_DIR": str(folder / "uv"),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "SMOKEHOUSE_CHANNEL": str(channel),
            "SMOKEHOUSE_CUTOFF": str(self.asked.stack.packages.cutoff),
        }
        self.conda = folder / "conda"
        self.conda.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).with_name("stand_in_conda.py")}" "$@"\n')
        self.conda.chmod(0o755)
        # conda-lock would download this map of pip names to conda names; ours asks for nothing that differs.
        self.mapping = folder / "mapping.json"
        self.mapping.write_text("{}")
        shutil.copytree(checkout.environment(ENVIRONMENT), self.checkout.root / "environments" / ENVIRONMENT)

    def ours(self, *arguments: str, freshness: str = "fresh") -> Ran:
        """Run our lock."""
        environ = self.environ | {"UV_DEFAULT_INDEX": self.mirror.address(freshness)}
        return run([sys.executable, "-m", "smokehouse", "lock", *arguments], environ, self.checkout.root)

    def whole(self, freshness: str, *names: str) -> Ran:
        """Our whole lock of `names`."""
        return self.ours(*(names or [ENVIRONMENT]), "--channel", str(self.channel), freshness=freshness)

    def theirs(self, freshness: str, *options: str) -> Ran:
        """Run conda-lock's whole lock."""
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
        asked = self.checkout.environment(ENVIRONMENT) / "environment.yml"
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
        command += ["--with-cuda", self.asked.stack.cuda.version, "--pypi_to_conda_lookup_file", self.mapping]
        command += ["--file", asked, "--file", index, "--lockfile", self.answer(freshness)]
        return run(command, self.environ, self.mapping.parent)

    def answer(self, freshness: str) -> Path:
        """Where conda-lock's lock lies."""
        return self.mapping.with_name(f"conda-lock-{freshness}.yml")

    def differing(self) -> list[str]:
        """Return each package that the two tools did not lock at one version."""
        mine = model.read(self.checkout.lock(ENVIRONMENT) / model.LOCK_JSON, "lock.json", "")
        versions = {package.name: package.version for package in (*mine.conda, *mine.pip)}
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        locked = yaml.load(self.answer("fresh").read_text(), loader)["package"]
        found = {package["name"]: package["version"] for package in locked}
        names = sorted(versions.keys() | found.keys())
        return [f"{name} {versions.get(name)} / {found.get(name)}" for name in names if versions.get(name) != found.get(name)]

    def larger(self) -> Path:
        """Return our lock with as many packages as `PACKAGES`."""
        folder = self.mapping.with_name("larger")
        shutil.copytree(self.checkout.lock(ENVIRONMENT), folder)
        path = folder / model.LOCK_JSON
        read = json.loads(path.read_text())
        extra = PACKAGES - len(read["pip"]) - len(read["conda"])
        read["pip"] += [read["pip"][-1] | {"name": f"more-{number}"} for number in range(extra)]
        files.write(path, json.dumps(read, indent=1))
        return path

    def copies(self, number: int) -> list[str]:
        """Return the names of `number` environments that ask for the same."""
        names = [f"copy-{index}" for index in range(number)]
        for name in names:
            folder = self.checkout.root / "environments" / name
            if not folder.exists():
                shutil.copytree(self.checkout.environment(ENVIRONMENT), folder)
                file = folder / "environment.yml"
                file.write_text(re.sub(r"(?m)^name: .*$", f"name: {name}", file.read_text()))
        return names


def main() -> int:
    """Measure and print Markdown tables."""
    checkout = Checkout.find(Path.cwd())
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often each is run")
    parser.add_argument(
        "--channel", type=Path, default=checkout.root / "tests" / "data" / "conda-forge", help="conda-forge's records"
    )
    given = parser.parse_args()
    asked = environment.read(checkout, ENVIRONMENT)
    with tempfile.TemporaryDirectory() as place, running(upstream(), asked.inputs.before) as mirror:
        measure(Rivals(checkout, Path(place), given.channel.resolve(), mirror), given.rounds)
    return 0


def measure(rivals: Rivals, rounds: int) -> None:
    """Run both tools in turn and print what came of it."""
    rows: dict[str, list[tuple[float, float]]] = {}
    peaks: list[tuple[int, int]] = []
    requests: dict[str, tuple[int, int]] = {}
    for freshness in ("fresh", "stale"):
        say(f"warming both tools up on {freshness} pages")
        rivals.whole(freshness)
        rivals.theirs(freshness)
    larger = rivals.larger()
    for number in range(rounds):
        for freshness, title in (
            ("fresh", "whole lock, every page of the index fresh in the cache"),
            ("stale", "whole lock, every page asked about again (304)"),
        ):
            before = rivals.mirror.asked
            mine = rivals.whole(freshness)
            between = rivals.mirror.asked
            their = rivals.theirs(freshness)
            rows.setdefault(title, []).append((mine.seconds, their.seconds))
            requests[freshness] = (between - before, rivals.mirror.asked - between)
            peaks.append((mine.peak, their.peak))
        checked = rivals.ours(ENVIRONMENT, "--check"), rivals.theirs("fresh", "--check-input-hash")
        rows.setdefault("is the lock what is asked for: `--check` / `--check-input-hash`", []).append(
            (checked[0].seconds, checked[1].seconds)
        )
        reading = [
            float(run([sys.executable, "-c", script, path], rivals.environ, rivals.checkout.root).stdout)
            for script, path in ((READING, larger), (READING_THEIRS, rivals.answer("fresh")))
        ]
        rows.setdefault(f"reading a lock (of {PACKAGES} packages / its own), imports apart", []).append(
            (reading[0], reading[1])
        )
        solving = run([sys.executable, "-c", SOLVING, ENVIRONMENT, rivals.channel], rivals.environ, rivals.checkout.root)
        rows.setdefault("the conda half alone, imports apart", []).append((float(solving.stdout), float("nan")))
        say(f"round {number + 1}: " + ", ".join(f"{runs[-1][0]:.2f} / {runs[-1][1]:.2f} s" for runs in rows.values()))
    growth = [(number, [rivals.whole("fresh", *rivals.copies(number)) for _ in range(rounds)]) for number in COPIES]
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
    print(f"| {ENVIRONMENT} | ours | conda-lock {metadata.version('conda-lock')} | times faster |\n|---|---:|---:|---:|")
    for title, runs in rows.items():
        mine, their = (statistics.median(run[side] for run in runs) for side in (0, 1))
        # In one round both tools meet the same machine.
        times = statistics.median(other / one for one, other in runs)
        print(f"| {title} | {mine:.3f} s | " + ("- | - |" if their != their else f"{their:.3f} s | {times:.1f} |"))
    mine_peak, their_peak = (max(peak[side] for peak in peaks) / 1e6 for side in (0, 1))
    print(f"| peak memory of the largest process | {mine_peak:.0f} MB | {their_peak:.0f} MB | {their_peak / mine_peak:.1f} |")
    print("\n| environments of one cut-off | seconds | times one |\n|---|---:|---:|")
    one = statistics.median(run.seconds for run in growth[0][1])
    for number, grown in growth:
        seconds = statistics.median(run.seconds for run in grown)
        print(f"| {number} | {seconds:.2f} | {seconds / one:.1f} |")
    for freshness, (mine_asked, their_asked) in requests.items():
        print(f"\nPages asked for when {freshness}: ours {mine_asked}, conda-lock {their_asked}.", end="")
    differing = rivals.differing()
    print(f"\nPackages that the two lock at different versions: {len(differing)} ({', '.join(differing) or 'none'}).")
    print(
        "conda-lock's conda executable is a stand-in that solves with py-rattler as we do, and its index is cut off at "
        f"{rivals.asked.stack.packages.cutoff} for it, which it cannot do itself."
    )


def say(message: str) -> None:
    """Report progress."""
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
