"""Cells are installed and measured by real programs, and recorded whatever happens in them."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ...faults.test_at_once import at_once, waits_for
from ..conftest import Index, TestCheckout
from ..programs.test_process import ends
from ..test_killed import FEWER, Killer, kill_everywhere
from .conftest import cells, runs, tell


def verdicts(cell: dict[str, Any]) -> tuple[str, str]:
    return cell["zero2"]["verdict"], cell["zero3"]["verdict"]


def test_each_cell_is_measured_once_and_again_only_when_asked(with_grid: TestCheckout) -> None:
    ended = with_grid.run("matrix", "--model", "Tiny-VL", "--jobs", "2", "--keep", "1")
    assert ended.returncode == 0, ended.stderr
    assert sorted(runs(with_grid)) == ["4.49.0 0.15.4 2,3", "4.51.3 0.15.4 2,3"]
    found = cells(with_grid)
    assert {name: verdicts(cell) for name, cell in found.items()} == dict.fromkeys(found, ("works", "works"))
    one = found["4.49.0 0.15.4"]
    assert one["lock"] == {"torch": "2.6.0", "transformers": "4.49.0", "deepspeed": "0.15.4", "alpha": "1.0"}
    assert (one["device"], one["backend"], one["ranks"], one["python"]) == ("cpu", "gloo", 2, "3.11")
    assert len([*with_grid.root.glob("build/matrix/tiny-vl/*/env")]) == 1

    assert with_grid.run("matrix", "--model", "tiny-vl").returncode == 0
    assert runs(with_grid) == []
    tell(with_grid, **{"0.15.4": "known"})
    assert with_grid.run("matrix", "--model", "tiny_vl", "--transformers", "4.51.3", "--again").returncode == 0
    assert runs(with_grid) == ["4.51.3 0.15.4 2,3"]
    assert len(cells(with_grid)) == 2
    again = cells(with_grid)["4.51.3 0.15.4"]
    assert again["zero3"] == {"verdict": "fails", "error": "weights: rank 0: 3 tensors wrong", "failure": "gloo-race"}
    assert not [*with_grid.root.glob("build/matrix/tiny-vl/*/env")]


def test_what_goes_wrong_in_a_cell_is_its_result_and_stops_no_other(with_grid: TestCheckout, index: Index) -> None:
    behaviour = {"0.17.0": "refused", "0.17.1": "crashes", "0.17.2": "zero3 dies"}
    for version in behaviour:
        index.add("deepspeed", version)
    tell(with_grid, **behaviour)
    deepspeeds = ",".join(["0.16.9", *behaviour, "0.15.4"])
    ended = with_grid.run("matrix", "--model", "tiny-vl", "--transformers", "4.49.0", "--deepspeed", deepspeeds)
    assert ended.returncode == 0, ended.stderr
    found = {name.split()[1]: cell for name, cell in cells(with_grid).items()}
    assert verdicts(found["0.16.9"]) == ("not installable", "not installable")
    assert "deepspeed==0.16.9" in found["0.16.9"]["zero2"]["error"]
    assert verdicts(found["0.17.0"]) == ("fails", "fails")
    assert found["0.17.0"]["zero2"]["error"] == "deepspeed cannot be imported (RuntimeError); upgrade it"
    assert verdicts(found["0.17.1"]) == ("crashes", "crashes")
    assert "signal 6" in found["0.17.1"]["zero3"]["error"]
    # The end of ZeRO-3 ended the run, so ZeRO-2 was run by itself, and works.
    assert verdicts(found["0.17.2"]) == ("works", "crashes")
    assert found["0.17.2"]["zero3"]["error"].startswith("train: rank 0: rank 0 was killed by signal 9")
    assert verdicts(found["0.15.4"]) == ("works", "works")
    assert [run for run in runs(with_grid) if "0.17.2" in run] == ["4.49.0 0.17.2 2,3", "4.49.0 0.17.2 2"]


def test_what_a_report_does_not_show_of_a_cell_is_not_recorded(with_grid: TestCheckout) -> None:
    tell(with_grid, **{"0.15.4": "other versions"})
    ended = with_grid.run("matrix", "--model", "tiny-vl", "--transformers", "4.49.0")
    assert ended.returncode == 1
    assert "transformers: expected 4.49.0 in the report of its cell, found 4.0.0" in ended.stderr
    assert not (with_grid.root / "matrix" / "tiny-vl.json").exists()
    tell(with_grid, **{"0.15.4": "ends badly"})  # a report that says passed, of a program that says it did not
    assert with_grid.run("matrix", "--model", "tiny-vl", "--transformers", "4.49.0").returncode == 0
    assert verdicts(cells(with_grid)["4.49.0 0.15.4"]) == ("crashes", "crashes")


def test_a_machine_that_cannot_run_it_says_nothing_of_the_versions(with_grid: TestCheckout) -> None:
    tell(with_grid, **{"0.15.4": "no memory"})
    ended = with_grid.run("matrix", "--model", "tiny-vl", "--transformers", "4.49.0")
    assert ended.returncode == 1
    assert "not measured: --nproc 2: loading requires about 9 GiB of memory, found 1 GiB free" in ended.stderr
    assert not (with_grid.root / "matrix" / "tiny-vl.json").exists()


def test_a_cell_that_hangs_is_ended_with_all_its_processes(with_grid: TestCheckout) -> None:
    tell(with_grid, **{"0.15.4": "hangs"})
    ended = with_grid.run("matrix", "--model", "tiny-vl", "--transformers", "4.49.0", "--timeout", "1")
    assert ended.returncode == 0, ended.stderr
    [cell] = cells(with_grid).values()
    assert verdicts(cell) == ("hangs", "hangs")
    assert ends(int((with_grid.root / "child.pid").read_text()))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_all_jobs_with_what_they_started_and_records_nothing(
    with_grid: TestCheckout, number: signal.Signals
) -> None:
    tell(with_grid, **{"0.15.4": "hangs"})
    os.mkfifo(with_grid.root / "started")
    process = with_grid.start("matrix", "--model", "tiny-vl", "--jobs", "2")
    children: list[int] = []
    while len(children) < 2:
        with (with_grid.root / "started").open() as started:  # waits for one that has started
            children += map(int, started.read().split())
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == (-number if number is signal.SIGKILL else 128 + number)
    assert "Traceback" not in stderr
    assert all(map(ends, children))
    assert not (with_grid.root / "matrix" / "tiny-vl.json").exists()


def test_a_second_call_waits_for_what_a_killed_one_has_started(
    with_grid: TestCheckout, record_property: Callable[[str, object], None]
) -> None:
    """It would otherwise install and measure in a folder in which another program writes."""
    record_property("fault", "kill -9")
    tell(with_grid, **{"0.15.4": "hangs"})
    os.mkfifo(with_grid.root / "started")
    command = ("matrix", "--model", "tiny-vl", "--transformers", "4.49.0")
    first = with_grid.start(*command)
    with (with_grid.root / "started").open() as started:
        child = int(started.read())
    try:
        first.kill()
        first.communicate(timeout=60)
        tell(with_grid)
        second = with_grid.start(*command)
        waits_for(second, first)
    finally:
        os.killpg(os.getpgid(child), signal.SIGKILL)
    _, stderr = second.communicate(timeout=60)
    assert second.returncode == 0, stderr
    assert verdicts(cells(with_grid)["4.49.0 0.15.4"]) == ("works", "works")


def test_two_at_once_measure_a_cell_once(
    with_grid: TestCheckout, index: Index, record_property: Callable[[str, object], None]
) -> None:
    record_property("fault", "two at once")
    at_once(with_grid, index, "matrix", "--model", "tiny-vl", "--transformers", "4.49.0")
    assert runs(with_grid) == ["4.49.0 0.15.4 2,3"]
    assert verdicts(cells(with_grid)["4.49.0 0.15.4"]) == ("works", "works")


def test_requirements_without_a_solution_are_a_result_and_a_lost_index_is_none(with_grid: TestCheckout, index: Index) -> None:
    ended = with_grid.run("matrix", "--model", "tiny-vl", "--transformers", "9.0")
    assert ended.returncode == 0, ended.stderr
    assert verdicts(cells(with_grid)["9.0 0.15.4"]) == ("not installable", "not installable")
    assert "torch>=7" in cells(with_grid)["9.0 0.15.4"]["zero2"]["error"]
    ended = with_grid.run("matrix", "--model", "tiny-vl", UV_DEFAULT_INDEX="http://127.0.0.1:9/simple")
    assert ended.returncode == 1
    assert "4.49.0, deepspeed 0.15.4: not measured: " in ended.stderr
    assert "cannot be reached" in ended.stderr
    assert [*cells(with_grid)] == ["9.0 0.15.4"]


def test_what_is_installed_here_is_measured_without_a_change(with_grid: TestCheckout, tmp_path: Path) -> None:
    assert with_grid.run("matrix", "--model", "tiny-vl", "--transformers", "4.49.0", "--keep", "1").returncode == 0
    [environment] = with_grid.root.glob("build/matrix/tiny-vl/*/env")
    theirs = tmp_path / "theirs"
    environment.rename(theirs)
    (with_grid.root / "matrix" / "tiny-vl.json").unlink()
    before = {path: path.lstat().st_mtime_ns for path in theirs.rglob("*")}
    ended = with_grid.run("matrix", "--model", "tiny-vl", "--here", "--prefix", str(theirs))
    assert ended.returncode == 0, ended.stderr
    assert verdicts(cells(with_grid)["4.49.0 0.15.4"]) == ("works", "works")
    assert {path: path.lstat().st_mtime_ns for path in theirs.rglob("*")} == before
    said = with_grid.refused("matrix", "--model", "tiny-vl", "--here", "--python", sys.executable)
    assert said.startswith(f"smokehouse: {sys.executable}: expected releases of torch, transformers, deepspeed, found others")


def test_the_list_says_what_is_not_run(with_grid: TestCheckout) -> None:
    ended = with_grid.run("matrix", "--model", "tiny-vl", "--list", "--json", "--transformers", "4.51.3")
    row = {
        "torch": "2.6.0",
        "transformers": "4.51.3",
        "deepspeed": "0.15.4",
        "zero2": "not run",
        "zero3": "not run",
        "date": "",
    }
    assert json.loads(ended.stdout) == [row]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--transformers", "4.x"], "--transformers: expected a version, found '4.x'; write it like 4.51.3"),
        (["--model", "other"], "--model other: expected one of tiny-vl, found none"),
        (["--json"], "--json: expected --list with it; add it"),
        (["--on", "lsf"], "matrix: expected --on slurm, found --on lsf; correct it"),
        (["--options", "--gpus 1"], "matrix: expected --on slurm, found none with --options; correct it"),
        (["--on", "slurm", "--list"], "--on: expected no --list with it; leave one out"),
        (["--on", "slurm", "--here"], "--on: expected no --here with it; leave one out"),
        (["--on", "slurm", "--options", "--nodes 2"], "--gpus, --time of Slurm, found --nodes; leave it out"),
        (
            ["--on", "slurm", "--options", "'"],
            "--options ': expected options as a shell reads them, found No closing quotation",
        ),
        (["--prefix", "x"], "--prefix: expected --here with it, as a cell has its own; add --here"),
        (["--here", "--torch", "2.6.0"], "--here: expected no --torch, as it measures what is installed; drop one"),
        (["--torch", "2.6.0.dev1"], "--torch: expected a release, found '2.6.0.dev1'; specify a version of the index"),
    ],
)
def test_wrong_options_are_refused(with_grid: TestCheckout, arguments: list[str], expected: str) -> None:
    model = [] if "--model" in arguments else ["--model", "tiny-vl"]
    assert expected.partition(", found none")[0] in with_grid.refused("matrix", *model, *arguments)


def test_killed_matrix(with_grid: TestCheckout, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """A cell is recorded whole or not at all, and what a killed call left of it does not count."""
    record_property("fault", "kill -9")
    recorded, folder = with_grid.root / "matrix" / "tiny-vl.json", with_grid.root / "build" / "matrix"

    def check() -> object:
        assert not [*recorded.parent.glob(".*")]
        assert not [*folder.glob("tiny-vl/*/env")]
        found = cells(with_grid)
        return {name: (verdicts(cell), cell["lock"], len(cell["checks"])) for name, cell in found.items()}

    def remove() -> None:
        recorded.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)

    command = ["matrix", "--model", "tiny-vl", "--transformers", "4.49.0"]
    kill_everywhere(Killer(with_grid, command, tmp_path / "killer"), remove, check, FEWER)
