"""Measure how long an image takes to build, change and start, and its size: assembled, by BuildKit, and with one RUN.

All use the same base, conda packages, lock and package index, and begin with empty caches; the engine is that of the tests.
The conda packages are those of the tests' channel: the Python of this machine and little else. What is assembled is written to
an OCI layout, what BuildKit builds stays in its store. With --reduced, a stack without torch takes the place of the real one;
with --assembled, nothing but the assembler is measured, without an engine.
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

from smokehouse import locks
from smokehouse.checkout import Checkout
from smokehouse.images import base as bases
from smokehouse.images import build as building
from smokehouse.installs import virtualenv
from smokehouse.oci import Layout
from tests.integration import real
from tests.integration.debian import unpack
from tests.integration.engine import Engine, present, started
from tests.unit import channel as channels

SECOND = "qwen2-vl"
CHANGED = ("transformers==4.49.0", "transformers==4.48.3")
# Without a GPU driver DeepSpeed 0.15.4 cannot be imported beside triton; the smoke test hides it too.
IMPORTS = "import sys; sys.modules['triton'] = None; import torch, transformers, deepspeed"
# Timed in a process that already runs, so that the start of a container is not counted.
TIMED = """
import subprocess, sys, time
def seconds():
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", {imports!r}], check=True, capture_output=True)
    return time.perf_counter() - began
seconds()
print(seconds())
"""
# The stack without torch: what users change is there, and much to compile, but none of the gigabytes of NVIDIA.
REDUCED = """\
name: {name}
channels:
  - conda-forge
dependencies:
  - python=3.11
  - cuda-nvcc=12.4
  - pip:
      - transformers==4.49.0
      - datasets==3.3.2
      - matplotlib
      - qwen-vl-utils
"""
PLAIN = """\
FROM base
ADD prefix.tar /
ENV PATH=/opt/env/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
COPY pip.whl requirements.txt /
RUN --mount=type=secret,id=certificates,target=/certificates --mount=type=secret,id=pip,target=/etc/pip.conf \\
    python /pip.whl/pip install --no-cache-dir --break-system-packages --require-hashes --requirement /requirements.txt
"""
BUILDKIT = ("--builder", "default")
DEADLINE = 3600.0  # seconds


@dataclass(frozen=True)
class Setting:
    """What is measured: the environment `name`, the `second` one, and what programs in them import."""

    name: str
    second: str
    imports: str
    shown: str


REAL = Setting(real.NAME, SECOND, IMPORTS, "import torch, transformers, deepspeed")
SMALL = Setting("reduced", "reduced-2", "import transformers, datasets, pandas", "import transformers, datasets, pandas")


@dataclass(frozen=True)
class Image:
    """An image.

    Attributes:
        reference: its name in the engine, or the layout that has it.
        id: the image ID, empty where it was not compared.
        seconds: how long the build took.
        busy: seconds of CPU that the command and what it started took, without those of the engine.
        layers: size in bytes by digest, compressed.
        memory: bytes of the largest process of the build, of what the command started itself.
    """

    reference: str
    id: str
    seconds: float
    busy: float
    layers: Mapping[str, int]
    memory: int

    @property
    def size(self) -> int:
        """Compressed size in bytes."""
        return sum(self.layers.values())

    def new_bytes(self, older: "Image") -> int:
        """Return the size of the layers that `older` does not have."""
        return sum(size for digest, size in self.layers.items() if digest not in older.layers)


@dataclass(frozen=True)
class Way:
    """A way to build: with empty caches, after a package changed, with the bytes new in that, and again after the downloads."""

    cold: Image | None
    changed: Image
    new: int
    again: Image | None


class Contest:
    """A checkout, an engine with empty stores, and both ways to build an image there."""

    def __init__(self, root: Path, engine: Engine, mmdebstrap: Path, folder: Path, setting: Setting) -> None:
        self.root, self.engine, self.folder, self.setting = root, engine, folder, setting
        channel = channels.Channel(folder / "channel")
        channels.fill(channel)
        environ = {**engine.environ, "PATH": f"{mmdebstrap}:{engine.environ['PATH']}"}
        names = (setting.name, setting.second) if setting is REAL else ()
        self.checkout = real.furnish(folder / "checkout", root, channel.folder, environ, names=names, shared=("base",))
        for name in (SMALL.name, SMALL.second) if setting is SMALL else ():
            reduce(self.checkout.root / "environments" / name)
            real.run(self.checkout, "lock", name)
        # A cache of its own, so that what the lock downloaded does not speed up the build.
        self.checkout.environ["UV_CACHE_DIR"] = str(folder / "uv")
        os.environ["PATH"] = environ["PATH"]
        self.base = building.base_context(bases.make(Checkout(self.checkout.root)))

    @property
    def requirements(self) -> Path:
        """The lock of the PyPI packages."""
        return self.checkout.root / "lockfiles" / self.setting.name / "requirements.txt"

    def build(self, name: str, *options: str) -> Image:
        """Build the image of `name` as `nox -s build` does, to a layout, or with BuildKit into the engine."""
        output = "docker" if BUILDKIT[0] in options else f"oci:{self.folder / 'layouts' / name}"
        command = ["build", name, "--ops", "none", "--json", "--output", output, *options]
        out = self.folder / "printed.json"
        with out.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "smokehouse", *command], cwd=self.checkout.root, env=self.checkout.environ, stdout=file
            )
            began = perf_counter()
            _, status, used = os.wait4(process.pid, 0)
            seconds = perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0, f"smokehouse {' '.join(command)} failed"
        printed = json.loads(out.read_text())
        place, busy = str(printed["place"]), used.ru_utime + used.ru_stime
        print(f"{name}: {seconds:.1f} s, {busy:.1f} s of CPU", file=sys.stderr)
        if output == "docker":
            layers = self.layers_of(place, printed["digest"])
        else:
            layers = {layer.digest: layer.size for layer in Layout(Path(place)).only_image().manifest.layers}
        return Image(place, printed["id"], seconds, busy, layers, used.ru_maxrss * 1024)

    def build_plain(self) -> Image:
        """Build an image of the same packages with one RUN."""
        context = self.folder / "plain"
        context.mkdir(exist_ok=True)
        (context / "Dockerfile").write_text(PLAIN)
        shutil.copyfile(self.requirements, context / "requirements.txt")
        prefix = self.checkout.root / "build" / "images" / f"{self.setting.name}-runtime" / "conda" / "prefix.tar"
        if not (context / "prefix.tar").exists():
            shutil.copyfile(prefix, context / "prefix.tar")
        [pip] = Path(sys.base_prefix).glob("lib/python*/ensurepip/_bundled/pip-*.whl")
        shutil.copyfile(pip, context / "pip.whl")
        # Index and certificates of this machine are secrets of the build: neither belongs in an image.
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
        seconds = timed(lambda: self.engine.docker(*command, timeout=DEADLINE))
        print(f"plain: {seconds:.1f} s", file=sys.stderr)
        digest = json.loads(metadata.read_text())["containerimage.digest"]
        return Image("plain:bench", "", seconds, 0, self.layers_of("plain:bench", digest), 0)

    @property
    def timed(self) -> str:
        """The program that times the imports."""
        return TIMED.format(imports=self.setting.imports)

    def build_base(self) -> str:
        """Build an image of nothing but the base; return its name."""
        context = self.folder / "base"
        context.mkdir()
        (context / "Dockerfile").write_text("FROM base\n")
        command = ["buildx", "build", "--provenance=false", "--build-context", f"base={self.base}"]
        self.engine.docker(*command, "--output", "type=image,name=base:bench", str(context))
        return "base:bench"

    def forget_layers(self) -> None:
        """Remove what was made, but not what was downloaded."""
        shutil.rmtree(self.checkout.root / "build" / "layers")

    def change(self) -> None:
        """Edit the version of a package, where it is written."""
        part = "stacks/cu124-2025-03" if self.setting is REAL else self.setting.name
        self.checkout.edit(self.checkout.root / "environments" / part / "environment.yml", *CHANGED)

    def fetch(self) -> None:
        """Download what a build needs, so that it downloads nothing."""
        real.run(self.checkout, "build", self.setting.name, "--ops", "none", "--prepare", timeout=DEADLINE)

    def layers_of(self, reference: str, digest: str) -> Mapping[str, int]:
        """Return the sizes of the layers of the image `reference`, whose manifest has the digest `digest`, by their digests."""
        docker = shutil.which("docker", path=self.engine.environ["PATH"])
        saving = ["sh", "-c", '"$1" save "$2" | tar -x --to-stdout "blobs/sha256/$3"', "sh"]
        command = [*saving, str(docker), reference, digest.removeprefix("sha256:")]
        ended = subprocess.run(command, env=self.engine.environ, capture_output=True, check=True, timeout=DEADLINE)
        return {layer["digest"]: layer["size"] for layer in json.loads(ended.stdout)["layers"]}

    def time_start(self, reference: str) -> float:
        """Return the seconds that a container runs whose program ends at once."""
        return timed(lambda: self.engine.docker("run", "--rm", "--network", "none", reference, "true"))

    def time_imports(self, reference: str) -> float:
        """Return the seconds that the imports take in a container, the second time."""
        container = ["--read-only", "--network", "none", "--tmpfs", "/tmp:rw,exec", "--env", "DS_ACCELERATOR=cpu"]
        return float(self.engine.docker("run", "--rm", *container, reference, "python", "-c", self.timed).stdout)

    def change_and_fetch(self) -> None:
        """Change the version of a package, lock it, and download it."""
        self.change()
        real.run(self.checkout, "lock", self.setting.name)
        self.fetch()

    def remove(self, reference: str) -> None:
        """Remove an image and the cache of its build."""
        self.engine.docker("rmi", "--force", reference)
        self.engine.docker("builder", "prune", "--all", "--force")


@dataclass(frozen=True)
class Starts:
    """Medians in seconds: the imports in a container, on the host and their ratio; a start, and a start less the base's."""

    inside: float
    host: float
    ratio: float
    start: float
    over_base: float


def reduce(folder: Path) -> None:
    """Make `folder` an environment of the stack without torch."""
    folder.mkdir()
    (folder / "environment.yml").write_text(REDUCED.format(name=folder.name))
    environments = folder.parent
    inherited = (environments / SECOND / "stack.toml").read_text().partition("[model]")[2].partition("\n[expectations]")[0]
    stack = (environments / "stacks" / "cu124-2025-03" / "stack.toml").read_text().partition("[[left_out]]")[0]
    stack = re.sub(r"^devel = \[.*?^\]", 'devel = ["cuda-nvcc"]', stack, flags=re.MULTILINE | re.DOTALL)
    (folder / "stack.toml").write_text(f"{stack}\n[model]{inherited}\n")


@contextmanager
def contest(root: Path, setting: Setting, *, assembled: bool) -> Iterator[Contest]:
    """Start an engine of its own, unless only what is `assembled` is measured, and remove it and all files afterwards."""
    programs = root / "build" / "programs"
    mmdebstrap = unpack(("mmdebstrap/bookworm",), programs / "mmdebstrap") / "bin"
    with tempfile.TemporaryDirectory(dir=root / "build") as folder:
        if assembled:
            yield Contest(root, Engine(dict(os.environ), None), mmdebstrap, Path(folder), setting)
            return
        if found := present():
            engine_name = found.environ.get("DOCKER_HOST", "Docker")
            raise SystemExit(f"{engine_name}: expected no running engine, whose caches would be counted; stop it")
        with started(programs / "engine") as engine:
            yield Contest(root, engine, mmdebstrap, Path(folder), setting)


def timed(work: Callable[[], object]) -> float:
    """Return the wall seconds that `work` takes."""
    began = perf_counter()
    work()
    return perf_counter() - began


def row(*cells: str) -> str:
    """Return a line of the table."""
    return f"| {' | '.join(cells)} |"


def measure_starts(contest: Contest, image: Image, rounds: int) -> Starts:
    """Start programs in `image` and beside it, in turn."""
    checkout = Checkout(contest.checkout.root)
    python = virtualenv.ensure(checkout, locks.load(checkout, contest.setting.name))
    environ = {**os.environ, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    environ.pop("PYTHONPATH", None)
    host, inside = [], []
    for _ in range(rounds):
        ended = subprocess.run(
            [python, "-c", contest.timed], env=environ, capture_output=True, text=True, check=True, timeout=DEADLINE
        )
        host.append(float(ended.stdout))
        inside.append(contest.time_imports(image.reference))
    base = contest.build_base()
    bare, start = [], []
    for _ in range(2 * rounds):
        bare.append(contest.time_start(base))
        start.append(contest.time_start(image.reference))
    return Starts(
        inside=statistics.median(inside),
        host=statistics.median(host),
        ratio=statistics.median(one / other for one, other in zip(inside, host, strict=True)),
        start=statistics.median(start),
        over_base=statistics.median(one - other for one, other in zip(start, bare, strict=True)),
    )


def measure(contest: Contest, rounds: int) -> Sequence[str]:
    """Build, change and start images; return the lines of the table."""
    # The tar file of the conda packages, which the plain image adds, is prepared for both.
    name = contest.setting.name
    cold, again, second = measure_assembling(contest)
    baked = contest.build(name, *BUILDKIT)
    assert baked.id == cold.id == again.id, "expected the same image from both builders"
    starts = measure_starts(contest, baked, rounds)

    before = contest.requirements.read_bytes()
    contest.change_and_fetch()
    after = contest.requirements.read_bytes()
    changed = contest.build(name)
    baked_changed = contest.build(name, *BUILDKIT)
    assert baked_changed.id == changed.id, "expected the same image from both builders"
    contest.remove(baked.reference)

    contest.requirements.write_bytes(before)
    plain = contest.build_plain()
    contest.requirements.write_bytes(after)
    plain_changed = contest.build_plain()

    new, plain_new = changed.new_bytes(cold), plain_changed.new_bytes(plain)
    return [
        *table(
            Way(cold, changed, new, again),
            Way(None, baked_changed, baked_changed.new_bytes(baked), baked),
            Way(plain, plain_changed, plain_new, None),
            hardware(contest.engine),
            name,
        ),
        "",
        f"Both builders made the image {baked.id[:19]}, and after the change {changed.id[:19]}",
        *describe(contest, (cold, again, second, changed)),
        f"`{contest.setting.shown}` in the container {starts.inside:.2f} s, on the host "
        f"{starts.host:.2f} s, warm: {starts.ratio:.2f} times",
        f"`docker run IMAGE true` {starts.start:.2f} s, {starts.over_base:.2f} s more than on the base alone",
    ]


def measure_assembling(contest: Contest) -> tuple[Image, Image, Image]:
    """Assemble with empty caches, and after the downloads, and then the second environment."""
    cold = contest.build(contest.setting.name)
    contest.forget_layers()
    return cold, contest.build(contest.setting.name), contest.build(contest.setting.second)


def measure_assembled(contest: Contest) -> Sequence[str]:
    """Assemble images alone; return the lines of the table."""
    cold, again, second = measure_assembling(contest)
    assert cold.id == again.id, "expected the same image twice"
    contest.change_and_fetch()
    changed = contest.build(contest.setting.name)
    return [
        hardware(None),
        "",
        f"| the image of {contest.setting.name} | assembled | CPU |",
        "|---|---:|---:|",
        row("cold build, downloads included", f"{cold.seconds:.0f} s", f"{cold.busy:.0f} s"),
        row("cold build, after the downloads", f"{again.seconds:.0f} s", f"{again.busy:.0f} s"),
        row(f"build after {' became '.join(CHANGED)}", f"{changed.seconds:.1f} s", f"{changed.busy:.1f} s"),
        row(f"second environment, {contest.setting.second}", f"{second.seconds:.1f} s", f"{second.busy:.1f} s"),
        "",
        f"New bytes after the change: {changed.new_bytes(cold) / 1e6:.1f} MB; compressed size: {cold.size / 1e6:.0f} MB",
        *describe(contest, (cold, again, second, changed)),
    ]


def describe(contest: Contest, assembled: tuple[Image, Image, Image, Image]) -> Sequence[str]:
    """Return what else is said of images that were assembled: cold, again, the second environment, after the change."""
    cold, again, second, changed = assembled
    new, added = changed.new_bytes(cold), second.new_bytes(cold)
    package_layer = new - [*changed.layers.values()][-1]  # the last layer has the lock
    return [
        f"CPU seconds that assembling took: {again.busy:.1f} after the downloads, {changed.busy:.1f} after the change, "
        f"{second.busy:.1f} for the second environment",
        f"Compressed size over that of all wheels, conda and Debian packages in it: "
        f"{cold.size / real.locked_bytes(contest.checkout, contest.setting.name):.3f}",
        f"New bytes over the layer that the changed package is in: {new / package_layer:.2f}",
        f"A second environment of the same stack ({contest.setting.second}): {added / 1e6:.2f} MB new, "
        f"{100 * added / second.size:.2f} % of it, in {second.seconds:.1f} s",
        f"Memory of the largest process that assembles: {max(image.memory for image in assembled) / 1e6:.0f} MB",
    ]


def hardware(engine: Engine | None) -> str:
    """Return what all was measured on."""
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    version = engine.docker("version", "--format", "{{.Server.Version}}").stdout.strip() if engine else ""
    engine_version = f", Docker Engine {version}" if engine else ""
    return f"{found[1] if found else 'a CPU'}, {len(os.sched_getaffinity(0))} CPUs{engine_version}"


def table(ours: Way, baked: Way, plain: Way, hardware: str, name: str) -> Sequence[str]:
    """Return the lines of the table; the ratio is that of one RUN to what is assembled."""

    def seconds(what: str, *images: Image | None, digits: int) -> str:
        taken = [f"{image.seconds:.{digits}f} s" if image else "-" for image in images]
        first, last = images[0], images[-1]
        return row(what, *taken, f"{last.seconds / first.seconds:.1f}" if first and last else "-")

    sizes = [way.changed for way in (ours, baked, plain)]
    return [
        hardware,
        "",
        f"| the image of {name} | assembled | its Dockerfile, by BuildKit | one `RUN pip install` | ratio |",
        "|---|---:|---:|---:|---:|",
        seconds("cold build, downloads included", ours.cold, baked.cold, plain.cold, digits=0),
        seconds("cold build, after the downloads", ours.again, baked.again, plain.again, digits=0),
        seconds(f"build after {CHANGED[0]} became {CHANGED[1].partition('==')[2]}", *sizes, digits=1),
        row(
            "new bytes for that",
            f"{ours.new / 1e6:.1f} MB",
            f"{baked.new / 1e6:.1f} MB",
            f"{plain.new / 1e6:.0f} MB",
            f"{plain.new / ours.new:.0f}",
        ),
        row(
            "compressed size",
            *(f"{image.size / 1e6:.0f} MB" for image in sizes),
            f"{sizes[-1].size / sizes[0].size:.2f}",
        ),
    ]


def main() -> int:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="Measure imports and starts this many times.")
    parser.add_argument("--reduced", action="store_true", help="Measure a stack without torch, of a tenth of the size.")
    parser.add_argument("--assembled", action="store_true", help="Measure what is assembled alone; no engine is needed.")
    arguments = parser.parse_args()
    setting = SMALL if arguments.reduced else REAL
    with contest(Checkout.find(Path.cwd()).root, setting, assembled=arguments.assembled) as prepared:
        lines = measure_assembled(prepared) if arguments.assembled else measure(prepared, arguments.rounds)
        print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
