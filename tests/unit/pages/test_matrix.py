"""The generated files about matrices: every cell is in each of them, with what was measured or that it was not run."""

import csv
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from smokehouse.checkout import Checkout
from smokehouse.matrix import grid, store
from smokehouse.matrix.model import Check, Stage
from smokehouse.pages import matrix, picture

from ..matrix.made import HOSTILE, STAGES, cell, make

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, str]:
    return {path.name: text for path, text in matrix.texts(make(tmp_path)).items()}


def test_every_square_is_a_link_to_the_row_with_its_evidence(texts: dict[str, str]) -> None:
    drawn = ElementTree.fromstring(texts["tiny-vl.svg"])
    squares = {a.attrib["href"]: a for a in drawn.iter(f"{SVG}a")}
    assert len(squares) == 8
    rows = re.findall(r'<tr id="([^"]+)"', texts["tiny-vl.html"])
    assert {*squares} == {f"tiny-vl.html#{row}" for row in rows}
    signs = {key: [path.attrib["d"] for path in square.iter(f"{SVG}path")] for key, square in squares.items()}
    half = "tiny-vl.html#cell-torch-2.6.0_transformers-4.49.0_deepspeed-"
    works, known = picture.SIGNS["works"].path, picture.SIGNS["known"].path
    assert signs[f"{half}0.15.4"] == [works, known]
    assert signs[f"{half}0.19.8"] == []
    title = squares[f"{half}0.15.4"].findtext(f"{SVG}title")
    assert title == "torch 2.6.0, transformers 4.49.0, deepspeed 0.15.4: ZeRO-2 works; ZeRO-3 fails (gloo-race)"
    assert "ZeRO-2 not run" in str(squares[f"{half}0.19.8"].findtext(f"{SVG}title"))


def test_signs_differ_without_colours_and_are_visible(texts: dict[str, str]) -> None:
    paths = [sign.path for sign in picture.SIGNS.values()]
    assert len({*paths}) == len(paths)
    for key, sign in picture.SIGNS.items():
        channels = [int(sign.colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        luminance = sum(weight * one for weight, one in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
        assert key == "not run" or 1.05 / (luminance + 0.05) >= 4.5


def test_the_csv_has_all_cells(texts: dict[str, str]) -> None:
    rows = {(row["transformers"], row["deepspeed"]): row for row in csv.DictReader(texts["matrix.csv"].splitlines())}
    assert len(rows) == 8
    for versions, row in rows.items():
        stages = STAGES.get(versions)
        assert (row["zero2"], row["zero3"]) == tuple(s.verdict for s in stages) if stages else ("not run", "not run")
    assert rows["4.49.0", "0.16.9"]["zero2_error"] == f"train: {HOSTILE}"


def test_the_page_and_the_index_say_how_many_and_what_happens(texts: dict[str, str]) -> None:
    counts = "8 combinations of versions: 1 work, 2 work with one ZeRO stage only, 2 do not work, 3 not run."
    assert counts in texts["tiny-vl.html"]
    assert counts in texts["README.md"]
    assert "Nothing here was measured on GPUs with NCCL." in texts["README.md"]
    known = "[gloo-race](../known-failures.md#gloo-race)"
    assert f"| ZeRO-3 fails: {known} | 1 | torch 2.6.0, transformers 4.49.0, deepspeed 0.15.4 |" in texts["README.md"]
    assert "<p>In 1 of them ZeRO-3 fails: gloo-race.</p>" in texts["tiny-vl.html"]
    assert HOSTILE not in texts["tiny-vl.html"]
    assert "<img" not in texts["README.md"].replace("\\<img", "")


def test_what_a_failure_left_unmeasured_is_no_failure_of_its_own(tmp_path: Path) -> None:
    """Where generation ends a job, nothing is known of training."""
    checkout = make(tmp_path)
    read = grid.read(checkout, "tiny-vl")
    said = {"generate": "rank 0: IndexError: out of range", "train": "rank 0: not reached: an earlier step of its job failed"}
    checks = [Check(name=name, zero_stage=3, verdict="failed", detail=text, seconds=1) for name, text in said.items()]
    fails = Stage(verdict="fails", error=f"generate: {said['generate']}")
    store.append(checkout, read, cell("4.49.0", "0.19.8", (fails, fails), checks=checks))
    texts = {path.name: text for path, text in matrix.texts(checkout).items()}
    row = "".join(re.findall(r'<tr id="cell-torch-2.6.0_transformers-4.49.0_deepspeed-0.19.8".*', texts["tiny-vl.html"]))
    assert "ZeRO-3: generate: rank 0: IndexError: out of range; not measured after generate: train" in row
    assert "<td>train</td><td>ZeRO-3</td><td>not reached</td>" in row
    assert "<td>generate</td><td>ZeRO-3</td><td>failed</td>" in row
    assert "; not measured after generate: train | 1 |" in texts["README.md"]


def test_a_place_without_a_square_is_explained(tmp_path: Path, texts: dict[str, str]) -> None:
    said = "No square: not in the grid, so never run."
    assert said not in texts["tiny-vl.svg"] + texts["tiny-vl.html"]
    checkout = make(tmp_path / "more")
    definition = checkout.root / "matrix" / "tiny-vl.toml"
    block = '\n[[grid]]\ntorch = ["2.10.0"]\ntransformers = ["4.49.0"]\ndeepspeed = ["0.19.8"]\n'
    definition.write_text(definition.read_text() + block)
    with_gaps = {path.name: text for path, text in matrix.texts(checkout).items()}
    assert said in with_gaps["tiny-vl.svg"]
    assert f"right half: ZeRO-3. {said} Select" in with_gaps["tiny-vl.html"]


def test_files_without_a_grid_are_stale(tmp_path: Path) -> None:
    checkout = make(tmp_path)
    for path, text in matrix.texts(checkout).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert matrix.stale(checkout) == []
    (tmp_path / "matrix" / "tiny-vl.toml").unlink()
    assert {path.name for path in matrix.stale(checkout)} == {"README.md", "matrix.csv", "tiny-vl.html", "tiny-vl.svg"}


def test_a_folder_without_grids_has_no_such_pages(tmp_path: Path) -> None:
    (tmp_path / "environments").mkdir()
    assert matrix.texts(Checkout(tmp_path)) == {}
