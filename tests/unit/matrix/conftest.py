"""A checkout with a small grid, packages to install, and a program in the smoke test's place that ends as it is told."""

import json
from pathlib import Path
from typing import Any

import pytest

from ..conftest import Index, TestCheckout, sdist

GRID = """\
model = "Tiny-VL"
family = "qwen2_5_vl"
python = "3.11"
platform = "x86_64-manylinux_2_28"
cutoff = 2025-03-15
packages = ["alpha"]

[[grid]]
torch = ["2.6.0"]
transformers = ["4.49.0", "4.51.3"]
deepspeed = ["0.15.4"]
"""
# How it ends depends on the version of deepspeed that is installed where it runs.
PROGRAM = """\
import json, os, signal, subprocess, sys, time
from importlib.metadata import version
from pathlib import Path

arguments = sys.argv[1:]
folder = Path(arguments[arguments.index("--report") + 1])
zero = arguments[arguments.index("--zero") + 1] if "--zero" in arguments else "2,3"
behaviour = json.loads(Path("behaviour.json").read_text()).get(version("deepspeed"), "works")
with open("runs.log", "a") as log:
    log.write(f"{version('transformers')} {version('deepspeed')} {zero}\\n")
if behaviour == "refused":
    sys.exit(print(f"{sys.prefix}: deepspeed cannot be imported (RuntimeError); upgrade it", file=sys.stderr) or 2)
if behaviour == "no memory":
    sys.exit(print("--nproc 2: loading requires about 9 GiB of memory, found 1 GiB free", file=sys.stderr) or 2)
if behaviour == "crashes":
    os.kill(os.getpid(), signal.SIGABRT)
if behaviour == "hangs":
    child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.pthread_sigmask(0, [15]); time.sleep(999)"])
    Path("child.pid").write_text(str(child.pid))
    if Path("started").exists():  # a FIFO, from which a test reads
        with open("started", "w") as started:
            started.write(f"{child.pid}\\n")
    time.sleep(999)
report = json.loads(Path("report.json").read_text())
stages = [int(stage) for stage in zero.split(",")]
report["checks"] = [check for check in report["checks"] if check["zero_stage"] in (None, *stages)]
for check in report["checks"]:
    if behaviour == "zero3 dies" and check["zero_stage"] == 3 and check["name"] == "train":
        check |= {"verdict": "failed", "detail": "rank 0: rank 0 was killed by signal 9 (SIGKILL) in zero3 / train"}
    elif behaviour == "zero3 dies" and zero == "2,3" and check["name"] in ("train", "parity", "resume"):
        check |= {"verdict": "failed", "detail": "rank 1: ended because rank 0 was killed by signal 9 (SIGKILL) in zero3"}
    elif behaviour == "known" and check["name"] == "weights":
        check |= {"verdict": "failed", "detail": "rank 0: 3 tensors wrong", "diagnosis": "gloo-race: Reads early. Fix: wait."}
report["verdict"] = "failed" if any(check["verdict"] == "failed" for check in report["checks"]) else "passed"
other = {"transformers": "4.0.0"} if behaviour == "other versions" else {}
report["versions"] |= {name: version(name) for name in ("torch", "transformers", "deepspeed")} | other
report["installed"]["packages"] = {name: version(name) for name in ("torch", "transformers", "deepspeed", "alpha")}
folder.mkdir(parents=True, exist_ok=True)
(folder / "report.json").write_text(json.dumps(report))
sys.exit(report["verdict"] == "failed" or behaviour == "ends badly")
"""
CHECKS = ("checkpoint", "plain run", "auto classes", "load", "weights", "generate", "train", "parity", "resume")


def real_report(root: Path) -> dict[str, Any]:
    """Return the committed report of a real run, as one without a lock of the checks that a cell has."""
    found: dict[str, Any] = json.loads((root / "docs" / "environments" / "qwen2.5-vl.json").read_text())
    found["checks"] = [check for check in found["checks"] if check["name"] in CHECKS]
    installed = {"prefix": "/env", "packages": {}, "notes": []}
    return found | {"environment": "here", "lock": None, "installed": installed, "partial": "--only load"}


def tell(checkout: TestCheckout, **behaviour: str) -> None:
    """Say how the program ends, by the version of deepspeed."""
    (checkout.root / "behaviour.json").write_text(json.dumps({name.strip("_"): text for name, text in behaviour.items()}))


def runs(checkout: TestCheckout) -> list[str]:
    """Return what was run since the last call."""
    log = checkout.root / "runs.log"
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return lines


def cells(checkout: TestCheckout) -> dict[str, Any]:
    """Return the recorded cells by their versions of transformers and deepspeed."""
    document = json.loads((checkout.root / "matrix" / "tiny-vl.json").read_text())
    return {f"{cell['versions']['transformers']} {cell['versions']['deepspeed']}": cell for cell in document["cells"]}


@pytest.fixture
def with_grid(checkout: TestCheckout, index: Index, root: Path) -> TestCheckout:
    """Return the checkout with a grid; transformers 9.0 fits no torch, and deepspeed 0.16.9 cannot be built."""
    for name, versions in {"torch": ["2.6.0"], "deepspeed": ["0.15.4"], "setuptools": ["75.0.0"], "wheel": ["0.45.0"]}.items():
        for version in versions:
            index.add(name, version)
    for version in ("4.49.0", "4.51.3"):
        index.add("transformers", version)
    index.add("transformers", "9.0", requires=("torch>=7",))
    setup = {
        "setup.py": "raise SystemExit('no compiler')",
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "x"\n',
    }
    index.put("deepspeed-0.16.9.tar.gz", sdist("deepspeed", "0.16.9", setup | {"PKG-INFO": METADATA}))
    (checkout.root / "matrix").mkdir()
    (checkout.root / "matrix" / "tiny-vl.toml").write_text(GRID)
    (checkout.root / "smoke_tests" / "__main__.py").write_text(PROGRAM)
    (checkout.root / "smoke_tests" / "report.schema.json").symlink_to(root / "smoke_tests" / "report.schema.json")
    (checkout.root / "packages").symlink_to(root / "packages")
    (checkout.root / "report.json").write_text(json.dumps(real_report(root)))
    tell(checkout)
    return checkout


# From metadata 2.2 on, uv takes the requirements of a source distribution from it, and builds nothing to resolve.
METADATA = "Metadata-Version: 2.2\nName: deepspeed\nVersion: 0.16.9\n"
