"""Runs without a lock, in an environment that somebody else installed: what they prove, name, refuse and leave alone."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

from smoke_tests import families
from smoke_tests import here as here_module
from smokehouse.matrix import outcome

from .conftest import Ended, Starter


class Here(Starter):
    """Starts runs without a lock in the environment of a `Starter`."""

    def arguments(self, report: Path) -> list[str]:
        """Return the arguments of every run."""
        return ["--here", "--report", str(report)]


@pytest.fixture(scope="module")
def here(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    """Yield a starter of runs without a lock."""
    starter = Here(root, tmp_path_factory.mktemp("here"))
    yield starter
    starter.close()


@pytest.fixture(scope="module")
def theirs(here: Here) -> tuple[Ended, set[tuple[str, int]]]:
    """Return a whole run, and the files of its environment that it made or changed."""
    prefix = here.python.parents[1]
    before = files(prefix)
    ended = here.run()
    return ended, before ^ files(prefix)


def files(folder: Path) -> set[tuple[str, int]]:
    """Return every file of a folder and when it was last changed."""
    return {(str(path), path.lstat().st_mtime_ns) for path in folder.rglob("*")}


def test_what_is_installed_passes_as_with_a_lock(theirs: tuple[Ended, set[tuple[str, int]]]) -> None:
    """The expectations of the table by version are those of the environment's stack.toml, so the same checks run."""
    ended, _ = theirs
    assert ended.code == 0, ended.stderr
    assert ended.report["verdict"] == "passed"
    assert {"gloo race", "later key layout"} <= {check["name"] for check in ended.report["checks"]}
    assert ended.found("auto classes")["verdict"] == "passed"
    assert re.match(r"\d+ packages by their own metadata, no lock", ended.found("versions", 3)["detail"])
    cell = outcome.checks([ended.report])
    assert [outcome.stage(cell, stage).verdict for stage in (2, 3)] == ["works", "works"]


def test_it_writes_nothing_into_the_environment(theirs: tuple[Ended, set[tuple[str, int]]]) -> None:
    assert theirs[1] == set()


def test_the_report_says_that_there_is_no_lock(here: Here, theirs: tuple[Ended, set[tuple[str, int]]]) -> None:
    ended, _ = theirs
    report = ended.report
    jsonschema.validate(report, json.loads((here.root / "smoke_tests" / "report.schema.json").read_text()))
    assert report["lock"] is None
    assert report["environment"] == "here"
    prefix = str(here.python.parents[1])
    assert report["installed"]["prefix"] == prefix
    listed = here.inside(
        "-c", "import importlib.metadata as m, json; print(json.dumps([d.metadata['Name'] for d in m.distributions()]))"
    )
    names = {re.sub(r"[-_.]+", "-", name).lower() for name in json.loads(listed)}
    assert set(report["installed"]["packages"]) == names
    assert report["installed"]["packages"]["deepspeed"] == report["versions"]["deepspeed"]
    assert ended.stdout.splitlines()[-1] == (
        f"no lock: this is about {prefix} as it is now, not about what can be installed again"
    )


def test_what_shadows_a_package_fails(here: Here, tmp_path: Path) -> None:
    """A folder in front of the environment, as on a PYTHONPATH that somebody left, with another numpy."""
    site = next(here.python.parents[1].glob("lib/python*/site-packages"))
    fake = tmp_path / "numpy"
    fake.mkdir()
    (fake / "__init__.py").write_text("__version__ = '9.0'\n")
    found = json.loads(here.inside("-c", SHADOWED, str(tmp_path)))
    assert f"numpy was imported from {fake}/__init__.py, outside {site}, where its metadata is" in found["problems"]
    assert any(re.fullmatch(r"numpy: expected \S+, as its metadata says, imported 9\.0", line) for line in found["problems"])


SHADOWED = """
import json, sys
import torch
from smoke_tests import distributions
from smoke_tests.checks import installed

sys.path.insert(0, sys.argv[1])
del sys.modules["numpy"]
import numpy

print(json.dumps({"problems": installed._imported(distributions.find())[0]}))
"""

TWICE = """
import json, sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch
import torch.distributed as dist
from smoke_tests import distributions, runtime
from smoke_tests.checks import installed

site, found = Path(sys.argv[1]), {}
sys.path.append(str(site))
context = SimpleNamespace(device="cpu", lock=None, leg=SimpleNamespace(backend="gloo"))
with patch.object(dist, "get_backend", lambda: "gloo"), patch.object(runtime, "versions", lambda device: {}):
    for name in ("tokenizers", "certifi"):
        for version in ("1.0", "2.0"):
            (site / f"{name}-{version}.dist-info").mkdir(parents=True)
        sys.path.insert(0, str(site))
        outcome = installed.versions(context, None)
        found[name] = [outcome.verdict, f"{name} is installed twice in {site} (1.0 and 2.0)" in outcome.detail]
        for version in ("1.0", "2.0"):
            (site / f"{name}-{version}.dist-info").rmdir()
print(json.dumps(found))
"""


def test_what_is_installed_twice_fails_where_a_check_imports_it(here: Here, tmp_path: Path) -> None:
    """Conda and pip leave such metadata of packages that no check imports: they are named."""
    found = json.loads(here.inside("-c", TWICE, str(tmp_path / "site")))
    assert found == {"tokenizers": ["failed", True], "certifi": ["passed", True]}


NEWER = """
import json
from smoke_tests import plan
from smoke_tests.legs import Leg
from smoke_tests.outcome import failed, passed
from smoke_tests.verdicts import Verdicts

made = plan.make((3,), (Leg("gloo", 1),), "cpu", {"gloo_race": "fixed", "later_key_layout": "whole"})
jobs = made.jobs
found = {}
for observe in (False, True):
    verdicts = Verdicts(jobs, made, "fp32", lambda result: None, observe=observe)
    for job in jobs:
        for number, step in enumerate(job.steps):
            wrong = step.name in ("flipped bit", "both key layouts", "auto classes", "weights")
            verdicts.add(job, number, 0, failed("wrong") if wrong else passed("right"), 0.0)
    found[observe] = {result.name: result.verdict for result in verdicts.finish("") if result.detail == "wrong"}
print(json.dumps(found))
"""


def test_controls_are_observed_where_nothing_was_measured(here: Here) -> None:
    """A check fails the run with any version; a control, or what the table by version expects, only with measured ones."""
    judged = json.loads(here.inside("-c", NEWER))
    names = ("flipped bit", "both key layouts", "auto classes")
    assert judged["false"] == dict.fromkeys((*names, "weights"), "failed")
    assert judged["true"] == {**dict.fromkeys(names, "observed"), "weights": "failed"}


FORGETTING = """
import json, weakref
from smoke_tests import plan
from smoke_tests.legs import Leg
from smoke_tests.outcome import Outcome, failed
from smoke_tests.verdicts import Verdicts

class Data(dict):
    pass

made = plan.make((3,), (Leg("gloo", 4),), "cpu", {"gloo_race": "fixed", "later_key_layout": "whole"})
verdicts = Verdicts(made.jobs, made, "fp32", lambda result: None)
sent = weakref.WeakKeyDictionary()
Data.__hash__ = object.__hash__
for job in made.jobs:
    for number, step in enumerate(job.steps):
        for rank in range(job.processes):
            data = Data(peaks={"host": rank}) if step.name == "memory" else Data()
            if step.name == "versions":
                data.update(versions={"torch": str(rank)}, backend="gloo")
            sent[data] = step.name
            verdicts.add(job, number, rank, Outcome("passed", "right", data), 0.0)
del data
before = sorted(sent.values())
for job in made.jobs:
    for number, step in enumerate(job.steps):
        verdicts.add(job, number, 0, failed("too late"), 0.0)
late = [result.name for result in verdicts.finish("") if "too late" in result.detail]
peaks = [one["host_bytes"] for one in verdicts.memory()]
print(json.dumps([before, late, peaks, verdicts.versions(), verdicts.backend()]))
"""


def test_what_ranks_sent_is_dropped_once_it_is_judged(here: Here) -> None:
    """But for what the report has, and the plain run, with which others are compared; what comes later changes nothing."""
    kept, late, peaks, versions, backend = json.loads(here.inside("-c", FORGETTING))
    assert kept == ["memory"] * 4 + ["plain run", "versions"]
    assert (late, peaks, versions, backend) == ([], [0, 1, 2, 3], {"torch": "0"}, "gloo")


def refused(python: Path, root: Path, tmp_path: Path, *options: str, **environ: str) -> str:
    """Run `python -m smoke_tests`, which must refuse in one line with exit code 2, and return the line."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [str(python), "-m", "smoke_tests", *options, "--report", str(tmp_path / "report")]
    ended = subprocess.run(command, cwd=root, env=kept | environ, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert not (tmp_path / "report" / "report.json").exists()
    return ended.stderr.rstrip("\n")


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """Return the Python of a virtual environment with packages that have metadata and nothing else."""
    folder = tmp_path / "bare"
    base = Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}")
    subprocess.run([base, "-m", "venv", "--without-pip", folder], check=True, timeout=60)
    return folder / "bin" / "python"


def install(python: Path, **versions: str) -> None:
    """Give an environment the metadata of packages."""
    [site] = python.parents[1].glob("lib/python*/site-packages")
    for name, version in versions.items():
        info = site / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_packages_that_are_not_installed_are_listed(root: Path, bare: Path, tmp_path: Path) -> None:
    install(bare, torch="2.6.0", transformers="4.49.0", safetensors="0.5.3", tokenizers="0.21", numpy="2.2.3")
    said = refused(bare, root, tmp_path, "--here")
    assert said.startswith(f"{bare.parents[1]}: expected torch, transformers, deepspeed, ")
    assert "found no deepspeed, accelerate, pillow, packaging; install them there, or give another environment" in said


@pytest.mark.parametrize(
    "metadata",
    [None, b"", b"Name: deepspeed\n", b"Author: J\xf6rg\nVersion: 0.19.8\n"],
    ids=["none", "empty", "cut", "Latin-1"],
)
def test_metadata_without_a_version_is_refused(root: Path, bare: Path, tmp_path: Path, metadata: bytes | None) -> None:
    names = [name for name in here_module.REQUIRED if name != "packaging"]
    install(bare, **dict.fromkeys(names, "9.0"), packaging="26.0")
    [file] = bare.parents[1].glob("lib/python*/site-packages/deepspeed-9.0.dist-info/METADATA")
    file.unlink() if metadata is None else file.write_bytes(metadata)
    said = refused(bare, root, tmp_path, "--here")
    assert said == f"{bare.parents[1]}: expected a version in the metadata of deepspeed, found none; reinstall it"


def test_an_unknown_family_is_refused(root: Path, bare: Path, tmp_path: Path) -> None:
    said = refused(bare, root, tmp_path, "--here", "llava")
    assert said == f"--here llava: expected one of {', '.join(families.names())}; give a model family"


def test_neither_here_nor_a_lock_is_refused(root: Path, bare: Path, tmp_path: Path) -> None:
    said = refused(bare, root, tmp_path, "--zero", "3")
    assert said == "smoke: expected --here, or --environment, --stack, --lock; give --here to prove what is installed"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("here.TORCH = (99, 0)", r"expected torch 99\.0 or later, found 2\.6\.0\S*; upgrade it"),
        ("family.FAMILY = dataclasses.replace(family.FAMILY, model_class='NoSuchVL')", r"model family qwen2_5_vl: .*NoSuchVL"),
        ("sys.modules['torch'] = None", r"torch cannot be imported \(ModuleNotFoundError: .*\); reinstall torch"),
        ("sys.modules['transformers'] = None", r"transformers cannot be imported \(ModuleNotFoundError: .*\); reinstall"),
        ("sys.modules['deepspeed'] = None", r"deepspeed cannot be imported \(ModuleNotFoundError: .*\); reinstall deepspeed"),
    ],
)
def test_versions_that_cannot_run_are_refused(here: Here, tmp_path: Path, change: str, problem: str) -> None:
    script = tmp_path / "changed.py"
    script.write_text(CHANGED.format(change=change))
    ended = subprocess.run(
        [here.python, str(script), "--here", "--report", str(tmp_path / "report")],
        cwd=here.root,
        env=here.environ | {"PYTHONPATH": str(here.root)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 2, ended.stderr
    assert re.search(problem, ended.stderr)
    assert ended.stderr.count("\n") == 1


CHANGED = """
import dataclasses, sys
from smoke_tests import here
from smoke_tests.families import qwen2_5_vl as family
from smoke_tests.__main__ import main
{change}
sys.exit(main(sys.argv[1:]))
"""


KNOWN = """
import importlib.metadata, json, sys
from smoke_tests import plan
from smoke_tests.legs import Leg
from smoke_tests.outcome import failed, passed
from smoke_tests.verdicts import Verdicts

version = importlib.metadata.version
importlib.metadata.version = lambda name: sys.argv[1] if name == "deepspeed" else version(name)
texts = {
    "weights": "model.layers.1.mlp.gate.e_score_correction_bias differs in 4 of the 4 elements held here",
    "train": "RuntimeError: Output 0 of SplitBackward0 is a view and is being modified inplace. This view is the output of a "
    "function that returns multiple views. Such functions do not allow the output views to be modified inplace.",
}
made = plan.make((2,), (Leg("gloo", 1),), "cpu", {"gloo_race": "fixed", "later_key_layout": "whole"})
verdicts = Verdicts(made.jobs, made, "fp32", lambda result: None)
for job in made.jobs:
    for number, step in enumerate(job.steps):
        verdicts.add(job, number, 0, failed(texts[step.name]) if step.name in texts else passed("right"), 0.0)
print(json.dumps({result.name: result.diagnosis.partition(":")[0] for result in verdicts.finish("") if result.name in texts}))
"""


def test_a_failed_check_names_the_known_failure_of_this_release(here: Here) -> None:
    """The message of an exception alone does not tell: another release of DeepSpeed has not that failure."""
    wanted = {"weights": "buffers-not-loaded", "train": "flat-parameters-keep-their-graph"}
    assert json.loads(here.inside("-c", KNOWN, "0.18.9")) == wanted
    assert json.loads(here.inside("-c", KNOWN, "0.19.8")) == wanted | {"train": ""}


LOST = """
import json
from smoke_tests import plan
from smoke_tests.legs import Leg
from smoke_tests.outcome import failed, passed
from smoke_tests.verdicts import Verdicts

lost = failed("RuntimeError: [/pytorch/third_party/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:9")
made = plan.make((2,), (Leg("gloo", 2),), "cpu", {"gloo_race": "fixed", "later_key_layout": "whole"})
said = []
for other in (failed("RuntimeError: cannot reshape tensor of 0 elements"), lost, passed("right")):
    verdicts = Verdicts(made.jobs, made, "fp32", lambda result: None)
    for job in made.jobs:
        for number, step in enumerate(job.steps):
            for rank in range(job.leg.world_size if job.distributed else 1):
                verdicts.add(job, number, rank, (lost, other)[rank] if step.name == "load" else passed("right"), 0.0)
    [load] = [result for result in verdicts.finish("") if result.name == "load"]
    said.append([load.detail.partition(":")[0], load.diagnosis.partition(":")[0]])
print(json.dumps(said))
"""


def test_a_rank_that_lost_its_peer_does_not_hide_the_cause(here: Here) -> None:
    alone = ["rank 0", "lost-peer"]
    assert json.loads(here.inside("-c", LOST)) == [["rank 1", ""], alone, alone]
