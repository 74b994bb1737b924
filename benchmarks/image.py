"""How long an image takes to build, to change and to start, and how large it is, against a Dockerfile with one RUN.

Both have one base, one conda half and one lock, ask the index of packages that this machine uses, and begin with nothing
fetched; the engine is the tests'. The conda half is that of the tests' channel: the machine's own Python and little else.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from tests.images.debian import unpack
from tests.images.engine import Engine, present, started

from smokehouse.checkout import Checkout
from smokehouse.images import base as bases
from smokehouse.installs import virtualenv
from smokehouse.locks import check
from tests.builder import channel as channels
from tests.images import real

SECOND = "qwen2-vl"
CHANGED = ("transformers==4.49.0", "transformers==4.48.3")
# Without a GPU driver DeepSpeed 0.15.4 cannot be imported beside triton; the smoke test hides it too.
IMPORTS = "import sys; sys.modules['triton'] = None; import torch, transformers, deepspeed"
# In a process that is there already, so that the start of a container is not counted.
TIMED = f"""
import subprocess, sys, time
def seconds():
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", {IMPORTS!r}], check=True, capture_output=True)
    return time.perf_counter() - began
seconds()
print(seconds())
"""
PLAIN = """\
FROM base
ADD prefix.tar /
ENV PATH=/opt/env/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
COPY pip.whl requirements.txt /
RUN --mount=type=secret,id=certificates,target=/certificates --mount=type=secret,id=pip,target=/etc/pip.conf \\
    python /pip.whl/pip install --no-cache-dir --break-system-packages --require-hashes --requirement /requirements.txt
"""
DEADLINE = 3600.0  # seconds


@dataclass(frozen=True)
class Image:
    """An image that the engine has: the seconds that it took, and the layers by their digest, with sizes in bytes."""

    reference: str
    seconds: float
    layers: Mapping[str, int]

    @property
    def size(self) -> int:
        """Compressed, in bytes."""
        return sum(self.layers.values())

    def new_over(self, other: "Image") -> int:
        """The bytes of it that are not in `other`."""
        return sum(size for digest, size in self.layers.items() if digest not in other.layers)


class Bench:
    """A checkout of its own, an engine with empty stores, and both ways to build an image there."""

    def __init__(self, root: Path, engine: Engine, mmdebstrap: Path, folder: Path) -> None:
        self.engine, self.folder = engine, folder
        channel = channels.Channel(folder / "channel")
        channels.fill(channel)
        environ = {**engine.environ, "PATH": f"{mmdebstrap}:{engine.environ['PATH']}"}
        names = (real.NAME, SECOND)
        self.checkout = real.furnish(folder / "checkout", root, channel.folder, environ, names=names, shared=("base",))
        # What it took to lock is not to help with building.
        self.checkout.environ["UV_CACHE_DIR"] = str(folder / "uv")
        os.environ["PATH"] = environ["PATH"]
        self.base = bases.make(Checkout(self.checkout.root)).context

    def timed(self, work: Callable[[], object]) -> float:
        """The wall seconds of `work`."""
        began = perf_counter()
        work()
        return perf_counter() - began

    def ours(self, name: str) -> Image:
        """Build the image of `name` as `nox -s build` does."""
        said: list[dict[str, Any]] = []
        command = ("build", name, "--ops", "none", "--json")
        seconds = self.timed(lambda: said.append(json.loads(real.run(self.checkout, *command, timeout=DEADLINE).stdout)))
        return self.measured(said[0]["place"], said[0]["digest"], seconds)

    def plain(self, requirements: Path) -> Image:
        """Build an image of the same with one RUN."""
        context = self.folder / "plain"
        context.mkdir(exist_ok=True)
        (context / "Dockerfile").write_text(PLAIN)
        shutil.copyfile(requirements, context / "requirements.txt")
        prefix = self.checkout.root / "build" / "images" / f"{real.NAME}-runtime" / "conda" / "prefix.tar"
        if not (context / "prefix.tar").exists():
            shutil.copyfile(prefix, context / "prefix.tar")
        [pip] = Path(sys.base_prefix).glob("lib/python*/ensurepip/_bundled/pip-*.whl")
        shutil.copyfile(pip, context / "pip.whl")
        # Index and certificates of this machine; neither belongs into an image.
        index = os.environ.get("UV_DEFAULT_INDEX", "")
        (self.folder / "pip.conf").write_text(
            "[global]\n" + "cert = /certificates\n" + (f"index-url = {index}\n" if index else "")
        )
        certificates = os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt")
        metadata = self.folder / "metadata.json"
        command = ["buildx", "build", "--network", "host", "--allow", "network.host", "--provenance=false"]
        command += ["--build-context", f"base={self.base}", "--secret", f"id=certificates,src={certificates}"]
        command += ["--secret", f"id=pip,src={self.folder / 'pip.conf'}", "--metadata-file", str(metadata)]
        command += ["--output", "type=image,name=plain:bench", str(context)]
        seconds = self.timed(lambda: self.engine.docker(*command, timeout=DEADLINE))
        return self.measured("plain:bench", json.loads(metadata.read_text())["containerimage.digest"], seconds)

    def measured(self, reference: str, digest: str, seconds: float) -> Image:
        """The image `reference`, whose manifest has the digest `digest`."""
        print(f"{reference}: {seconds:.1f} s", file=sys.stderr)
        docker = shutil.which("docker", path=self.engine.environ["PATH"])
        saving = ["sh", "-c", '"$1" save "$2" | tar -x --to-stdout "blobs/sha256/$3"', "sh"]
        command = [*saving, str(docker), reference, digest.removeprefix("sha256:")]
        ended = subprocess.run(command, env=self.engine.environ, capture_output=True, check=True, timeout=DEADLINE)
        return Image(reference, seconds, {layer["digest"]: layer["size"] for layer in json.loads(ended.stdout)["layers"]})

    def started_in(self, reference: str) -> float:
        """The seconds that a container takes from nothing to its end."""
        return self.timed(lambda: self.engine.docker("run", "--rm", "--network", "none", reference, "true"))

    def imports_in(self, reference: str) -> float:
        """The seconds that the imports take in a container, for the second time."""
        container = ["--read-only", "--network", "none", "--tmpfs", "/tmp:rw,exec", "--env", "DS_ACCELERATOR=cpu"]
        return float(self.engine.docker("run", "--rm", *container, reference, "python", "-c", TIMED).stdout)

    def forget(self, reference: str) -> None:
        """Remove an image and all that was built for it."""
        self.engine.docker("rmi", "--force", reference)
        self.engine.docker("builder", "prune", "--all", "--force")


@contextmanager
def bench(root: Path) -> Iterator[Bench]:
    """Everything, which goes afterwards."""
    programs = root / "build" / "programs"
    mmdebstrap = unpack(("mmdebstrap/bookworm",), programs / "mmdebstrap") / "bin"
    with tempfile.TemporaryDirectory(dir=root / "build") as folder:
        if found := present():
            raise SystemExit(f"{found.environ.get('DOCKER_HOST', 'an engine')} is here; its caches would be counted. Stop it")
        with started(programs / "engine") as engine:
            yield Bench(root, engine, mmdebstrap, Path(folder))


def row(what: str, ours: str, plain: str, ratio: str) -> str:
    """A line of the table."""
    return f"| {what} | {ours} | {plain} | {ratio} |"


def median(measure: Callable[[], float], rounds: int) -> float:
    """The median of what `measure` returns."""
    return statistics.median(measure() for _ in range(rounds))


def measure(bench: Bench, root: Path, rounds: int) -> Sequence[str]:
    """Build, change and start images; the lines of the table."""
    # Prepared for both: the tar file of the conda half, which the plain one adds.
    requirements = bench.checkout.root / "lockfiles" / real.NAME / "requirements.txt"
    cold = bench.ours(real.NAME)
    second = bench.ours(SECOND)

    python = virtualenv.ensure(Checkout(root), check.load(Checkout(root), real.NAME))
    host = {**os.environ, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    host.pop("PYTHONPATH", None)
    here, inside = [], []
    for _ in range(rounds):
        said = subprocess.run([python, "-c", TIMED], env=host, capture_output=True, text=True, check=True, timeout=DEADLINE)
        here.append(float(said.stdout))
        inside.append(bench.imports_in(cold.reference))
    times = statistics.median(one / other for one, other in zip(inside, here, strict=True))
    base = [
        "buildx",
        "build",
        "--provenance=false",
        "--build-context",
        f"base={bench.base}",
        "--output",
        "type=image,name=base:bench",
    ]
    context = bench.folder / "base"
    context.mkdir()
    (context / "Dockerfile").write_text("FROM base\n")
    bench.engine.docker(*base, "--output", "type=image,name=base:bench", str(context))
    bare, start = [], []
    for _ in range(2 * rounds):
        bare.append(bench.started_in("base:bench"))
        start.append(bench.started_in(cold.reference))
    over = statistics.median(one - other for one, other in zip(start, bare, strict=True))

    asked = bench.checkout.root / "environments" / real.NAME / "environment.yml"
    bench.checkout.edit(asked, *CHANGED)
    before = requirements.read_bytes()
    real.run(bench.checkout, "lock", real.NAME)
    after = requirements.read_bytes()
    changed = bench.ours(real.NAME)
    bench.forget(cold.reference)

    requirements.write_bytes(before)
    plain = bench.plain(requirements)
    requirements.write_bytes(after)
    plain_changed = bench.plain(requirements)

    new, plain_new = changed.new_over(cold), plain_changed.new_over(plain)
    own = new - [*changed.layers.values()][-1]  # the last layer is ours, which has the lock
    added = second.new_over(cold)
    locked = real.locked_bytes(bench.checkout)
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    version = bench.engine.docker("version", "--format", "{{.Server.Version}}").stdout.strip()
    return [
        f"{found[1] if found else 'a CPU'}, {len(os.sched_getaffinity(0))} CPUs, Docker Engine {version}",
        "",
        f"| the image of {real.NAME} | ours | one `RUN pip install` | ratio |",
        "|---|---:|---:|---:|",
        row(
            "cold build, downloads included",
            f"{cold.seconds:.0f} s",
            f"{plain.seconds:.0f} s",
            f"{plain.seconds / cold.seconds:.1f}",
        ),
        row(
            f"build after {CHANGED[0]} became {CHANGED[1].partition('==')[2]}",
            f"{changed.seconds:.1f} s",
            f"{plain_changed.seconds:.0f} s",
            f"{plain_changed.seconds / changed.seconds:.0f}",
        ),
        row("new bytes for that", f"{new / 1e6:.1f} MB", f"{plain_new / 1e6:.0f} MB", f"{plain_new / new:.0f}"),
        row("compressed size", f"{cold.size / 1e6:.0f} MB", f"{plain.size / 1e6:.0f} MB", f"{plain.size / cold.size:.2f}"),
        "",
        f"Compressed size over that of all wheels, conda and Debian packages in it: {cold.size / locked:.3f}",
        f"New bytes over the layer that the changed package is in: {new / own:.2f}",
        f"A second environment of the same stack ({SECOND}): {added / 1e6:.2f} MB new, "
        f"{100 * added / second.size:.2f} % of it, in {second.seconds:.1f} s",
        f"`import torch, transformers, deepspeed` in the container {statistics.median(inside):.2f} s, on the host "
        f"{statistics.median(here):.2f} s, warm: {times:.2f} times",
        f"`docker run IMAGE true` {statistics.median(start):.2f} s, {over:.2f} s more than on the base alone",
    ]


def main() -> int:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often imports and starts are measured")
    rounds = parser.parse_args().rounds
    root = Checkout.find(Path.cwd()).root
    with bench(root) as made:
        print("\n".join(measure(made, root, rounds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
