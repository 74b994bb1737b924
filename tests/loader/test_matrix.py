"""The cell of the matrix that fits installed versions, without torch: exact, nearest, and which model a log is about."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from smokehouse_loader import matrix
from smokehouse_loader.failures import BY_NAME, FAILURES
from smokehouse_loader.signs import lines_with

CELLS = {
    "models": {
        "qwen2_5_vl": {
            "model": "Qwen2.5-VL",
            "cells": [
                ["2.6.0", "4.49.0", "0.15.4", "cpu", "works", "", "", "works", "", ""],
                ["2.6.0", "4.49.0", "0.18.9", "cpu", "fails", "", "train: \x1b[31mRuntimeError: a view", "works", "", ""],
                ["2.10.0", "5.0.0", "0.19.8", "cpu", "works", "", "", "fails", "gloo-race", "weights: wrong"],
            ],
        },
        "qwen2_vl": {"model": "Qwen2-VL", "cells": [["2.6.0", "4.49.0", "0.15.4", "cpu", "works", "", "", "works", "", ""]]},
    }
}
EXACT = {"torch": "2.6.0", "transformers": "4.49.0", "deepspeed": "0.18.9"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "matrix.json"
    path.write_text(json.dumps(CELLS))
    return path


def test_the_exact_cell_is_named_else_the_nearest(file: Path) -> None:
    cells = matrix.read(file)
    found = matrix.fit(cells, "qwen2_5_vl", EXACT)
    assert str(found) == (
        "matrix: Qwen2.5-VL with torch 2.6.0, transformers 4.49.0, deepspeed 0.18.9: "
        "ZeRO-2 fails (train: ?[31mRuntimeError: a view), ZeRO-3 works; measured on cpu"
    )
    near = matrix.fit(cells, "qwen2_5_vl", EXACT | {"transformers": "4.57.6", "torch": "2.9.0", "deepspeed": "0.19.8"})
    assert near is not None
    assert (near.exact, near.cell.versions["transformers"], near.fields["cell"]["zero3"]["failure"]) == (
        False,
        "5.0.0",
        "gloo-race",
    )
    assert "deepspeed 0.19.8: not measured; the nearest, torch 2.10.0, " in str(near)
    assert matrix.fit(cells, "llama", EXACT) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Error(s) in loading state_dict for Qwen2_5_VLForConditionalGeneration", ["qwen2_5_vl"]),
        ("File transformers/models/qwen2_vl/modeling_qwen2_vl.py", ["qwen2_vl"]),
        ("Qwen2VLModel and Qwen2_5_VLModel", ["qwen2_5_vl", "qwen2_vl"]),
        ("KeyError: 'pixels'", ["qwen2_5_vl", "qwen2_vl"]),
    ],
)
def test_a_log_says_which_model_it_is_about(file: Path, text: str, expected: list[str]) -> None:
    assert matrix.models_in(matrix.read(file), text) == expected


def test_a_cell_of_another_python_says_so(file: Path) -> None:
    own, rows = ".".join(map(str, sys.version_info[:2])), CELLS["models"]["qwen2_vl"]["cells"]
    for python, said in ((own, "measured on cpu"), ("3.9", f"measured on cpu with Python 3.9, not {own}")):
        cells = [[*row, python] for row in rows]
        file.write_text(json.dumps({"models": {"qwen2_vl": {"model": "Qwen2-VL", "cells": cells}}}))
        found = matrix.fit(matrix.read(file), "qwen2_vl", EXACT)
        assert found is not None
        assert str(found).endswith(said)
        assert found.fields["cell"]["python"] == python


def run(root: Path, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line where these versions are installed, as far as their metadata say."""
    for name, version in EXACT.items():
        info = tmp_path / "site" / f"{name}-{version}.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}+cu124\n")
    command = [sys.executable, "-m", "smokehouse_loader", *arguments]
    environ = os.environ | {"PYTHONPATH": f"{root / 'src'}:{tmp_path / 'site'}"}
    return subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60)


def test_explain_names_the_cell_of_the_installed_versions(root: Path, tmp_path: Path, file: Path) -> None:
    log = tmp_path / "train.log"
    log.write_text("Traceback\nRuntimeError: in Qwen2_5_VLForConditionalGeneration\n")
    ended = run(root, tmp_path, "explain", str(log), "--matrix", str(file))
    assert (ended.returncode, ended.stderr) == (3, "")
    [line] = [line for line in ended.stdout.splitlines() if line.startswith("matrix: ")]
    assert "deepspeed 0.18.9: ZeRO-2 fails (train: " in line
    document = json.loads(run(root, tmp_path, "explain", str(log), "--json").stdout)
    assert document["matrix"][0]["installed"] == EXACT


def test_a_log_that_names_no_model_is_told_what_does_not_work(root: Path, tmp_path: Path) -> None:
    works = ["2.6.0", "4.49.0", "0.18.9", "cpu", *["works", "", ""] * 2]
    fails = [*works[:4], "works", "", "", "fails", "gloo-race", "weights: wrong"]
    for count, shown in ((3, 3), (4, 1)):
        models = {f"m{n}": {"model": f"M{n}", "cells": [works if n else fails]} for n in range(count)}
        (tmp_path / "matrix.json").write_text(json.dumps({"models": models}))
        (tmp_path / "train.log").write_text("KeyError: 'pixels'\n")
        ended = run(root, tmp_path, "explain", "train.log", "--matrix", "matrix.json")
        lines = [line for line in ended.stdout.splitlines() if line.startswith("matrix: ")]
        assert len(lines) == shown, ended.stdout
        assert "M0 with" in lines[0]


def test_a_file_that_is_none_is_refused_in_a_line(root: Path, tmp_path: Path) -> None:
    log, file = tmp_path / "train.log", tmp_path / "other.json"
    log.write_text("")
    bad = CELLS["models"]["qwen2_vl"] | {"cells": [["2.6.0; rm", *["x"] * 9]]}
    for content in (
        "[1",
        "[]",
        '{"models": {"x": {"model": 1, "cells": [[]]}}}',
        json.dumps({"models": {"x": bad}}),
        "[" * 9999,
    ):
        file.write_text(content)
        ended = run(root, tmp_path, "explain", str(log), "--matrix", str(file))
        assert ended.returncode == 2, content
        assert ended.stderr.startswith(
            f"smokehouse_loader: --matrix {file}: expected the format of smokehouse_loader/matrix.json"
        )
        assert len(ended.stderr.splitlines()) == 1


def test_the_packaged_cells_are_read() -> None:
    assert {cell.model_type for cell in matrix.read()} >= {"qwen2_5_vl"}


def test_a_measured_cell_names_the_known_failure_that_its_error_shows(root: Path) -> None:
    """The text of a known failure, or a buffer that ZeRO-3 left out, is named where a stage does not work."""
    signs = [sign for failure in FAILURES if not failure.victim for sign in failure.signs]
    named, wrong = set(), []
    for file in sorted((root / "matrix").glob("*.json")):
        for cell in json.loads(file.read_text("utf-8"))["cells"]:
            for stage in (cell["zero2"], cell["zero3"]):
                known = lines_with(signs, stage["error"]) or "e_score_correction_bias differs" in stage["error"]
                if stage["failure"]:
                    named.add(stage["failure"])
                elif known:
                    wrong.append(f"{file.name}: {cell['versions']}: {stage['error']}")
    assert not wrong, "\n".join(wrong)
    assert named <= BY_NAME.keys()
    assert "flat-parameters-keep-their-graph" in named
