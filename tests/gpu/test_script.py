"""`benchmarks/gpu.sh` with a stand-in for the environment's Python: which steps run, and what is said of those that do not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..smoke.conftest import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu.sh"
# Prints reports with the real Python, and otherwise does what the test wants of this step.
PYTHON = """\
#!/bin/sh
case "$*" in
    *smoke_tests.report*) exec {python} "$@" ;;
    *preflight*) kind=preflight ;;
    *--only*) kind=more ;;
    *) kind=proof ;;
esac
echo "$*" >> {folder}/calls
echo "this is $kind"
[ ! -e {folder}/$kind.sh ] || . {folder}/$kind.sh
for folder; do :; done
[ $kind = preflight ] || (mkdir -p "$folder" && cp {report} "$folder/report.json")
"""


class Machine:
    """A folder in place of /dev, and a Python that stands for an environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "dev").mkdir()
        (folder / "dev" / "nvidia0").touch()
        self.python = folder / "python"
        report = ROOT / "docs" / "environments" / "qwen2.5-vl.json"
        self.python.write_text(PYTHON.format(python=sys.executable, folder=folder, report=report))
        self.python.chmod(0o755)
        self.out = folder / "out"

    def run(self, *options: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run the script."""
        given = {**os.environ, "SMOKEHOUSE_DEV": str(self.folder / "dev"), **environ}
        command = [str(SCRIPT), "--out", str(self.out), *options]
        return subprocess.run(command, cwd=self.folder, env=given, capture_output=True, text=True, timeout=120)

    def steps(self) -> dict[str, str]:
        """Return the verdict of each step in the summary."""
        rows = [line.split("|") for line in (self.out / "summary.md").read_text().splitlines() if line.startswith("| ")]
        return {row[1].strip(): row[2].strip() for row in rows[1:]}

    def calls(self) -> list[str]:
        """Return the arguments of each start of Python."""
        return (self.folder / "calls").read_text().splitlines()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Return a machine with one GPU."""
    return Machine(tmp_path)


def test_every_step_runs_and_its_report_is_shown(machine: Machine) -> None:
    ended = machine.run("--python", str(machine.python))
    assert ended.returncode == 0, ended.stderr
    assert machine.steps() == {"preflight": "passed", "proof": "passed", "more": "passed"}
    proof, more = machine.out / "proof", machine.out / "more"
    assert machine.calls()[:2] == [
        "-m smoke_tests preflight --device cuda --measure",
        f"-m smoke_tests --here --device cuda --report {proof}",
    ]
    assert machine.calls()[2].startswith("-m smoke_tests --here --only trainer,")
    assert machine.calls()[2].endswith(f"throughput,liger --device cuda --report {more}")
    assert "this is proof" in (machine.out / "proof.log").read_text()
    summary = (machine.out / "summary.md").read_text()
    assert summary.startswith("# GPU run\n")
    assert f"what {machine.python} has installed, without a lock" in summary
    report = json.loads((proof / "report.json").read_text())
    for entry in report["not_run"]:
        assert f"not run: {entry['name']} ({entry['reason']})" in summary
    assert "## Never run by this script" in summary
    assert (machine.out / "machine.log").read_text().startswith("commit: ")


def test_a_failed_step_does_not_end_the_others(machine: Machine) -> None:
    (machine.folder / "proof.sh").write_text("exit 1\n")
    ended = machine.run("--python", str(machine.python))
    assert ended.returncode == 1
    assert machine.steps() == {"preflight": "passed", "proof": "failed, exit code 1", "more": "passed"}


def test_what_the_budget_does_not_allow_is_named(machine: Machine) -> None:
    """The first smoke test hangs, is interrupted as Ctrl-C does it, and leaves nothing for the second one."""
    (machine.folder / "proof.sh").write_text("exec sleep 600\n")
    ended = machine.run("--python", str(machine.python), GPU_BUDGET="2")
    assert ended.returncode == 1
    steps = machine.steps()
    assert steps["proof"].startswith("interrupted after ")
    assert steps["more"] == "not run: the budget of 2 s was used up"


def test_a_trial_on_a_cpu_says_that_it_is_one(machine: Machine) -> None:
    (machine.folder / "dev" / "nvidia0").unlink()
    assert machine.run("--cpu", "--python", str(machine.python)).returncode == 0
    assert (machine.out / "summary.md").read_text().startswith("# Trial on a CPU: it proves nothing about GPUs\n")
    assert all("--device cpu" in call for call in machine.calls())


def test_an_environment_of_ours_is_proven_by_nox(machine: Machine) -> None:
    nox = machine.folder / "bin" / "nox"
    nox.parent.mkdir()
    nox.write_text(f'#!/bin/sh\necho "$*" >> {machine.folder}/calls\n')
    nox.chmod(0o755)
    ended = machine.run("--environment", "qwen2-vl", PATH=f"{nox.parent}:{os.environ['PATH']}")
    assert ended.returncode == 0, ended.stderr
    doctor, proof, more = machine.calls()
    assert doctor == "-s doctor -- qwen2-vl"
    assert proof == f"-s smoke -- qwen2-vl --device cuda --report {machine.out}/proof"
    assert more.startswith("-s smoke -- qwen2-vl --only trainer,")


def test_what_cannot_start_is_refused_in_one_line(machine: Machine) -> None:
    python = ("--python", str(machine.python))
    full = machine.folder / "full"
    full.mkdir()
    (full / "thesis").touch()
    cases = {
        ("--nonsense",): "gpu.sh: --nonsense: unknown option; see --help",
        ("--out",): "gpu.sh: --out: expected a value, found none; see --help",
        ("--python", "/nowhere"): "gpu.sh: --python: expected an interpreter, found none; give its path",
        (*python, "--out", str(full)): f"gpu.sh: {full}: expected a new or empty folder, found files; give another --out",
    }
    for options, expected in cases.items():
        ended = machine.run(*options)
        assert (ended.returncode, ended.stderr) == (2, f"{expected}\n")
    assert "GPU_BUDGET: expected seconds" in machine.run(*python, GPU_BUDGET="soon").stderr
    (machine.folder / "dev" / "nvidia0").unlink()
    ended = machine.run(*python)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "no GPU: expected /dev/nvidia0, found none" in ended.stderr
    assert not machine.out.exists()


def test_windows_has_another_device_for_its_gpus(machine: Machine) -> None:
    (machine.folder / "dev" / "nvidia0").rename(machine.folder / "dev" / "dxg")
    assert machine.run("--python", str(machine.python)).returncode == 0


def test_the_names_that_it_chooses_are_those_of_checks() -> None:
    """A renamed check would otherwise be refused only on a GPU machine."""
    line = next(line for line in SCRIPT.read_text().splitlines() if line.startswith("MORE="))
    names = line.removeprefix('MORE="').removesuffix('"')
    command = [sys.executable, "-m", "smoke_tests", "--here", "--only", names, "--validate"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
