"""Grids and the file of cells: what is read, what is refused, and that nothing is lost."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from smokehouse.checkout import Checkout
from smokehouse.errors import UserError
from smokehouse.matrix import grid, store
from smokehouse.matrix.cell import empty
from smokehouse.matrix.model import DECISIVE, STAGES, Cell, Check, Stage, Versions

from .conftest import GRID

BLOCKS = """
[[grid]]
torch = ["2.10.0"]
transformers = ["5.0.0"]
deepspeed = ["0.19.8"]
"""


@pytest.fixture
def small(tmp_path: Path) -> Checkout:
    for folder in ("environments", "matrix"):
        (tmp_path / folder).mkdir()
    (tmp_path / "matrix" / "tiny-vl.toml").write_text(GRID + BLOCKS)
    return Checkout(tmp_path)


def cell(transformers: str, **changes: object) -> Cell:
    versions = Versions(torch="2.6.0", transformers=transformers, deepspeed="0.15.4")
    stage, lock = Stage(verdict="works"), versions.model_dump()
    checks = [Check(name=name, zero_stage=n, verdict="passed", detail="", seconds=1.0) for name in DECISIVE for n in STAGES]
    shown = {"zero2": stage, "zero3": stage, "checks": checks, "lock": lock, "ranks": 2, "backend": "gloo", "precision": "fp32"}
    return empty(versions, "3.11", "cpu").model_copy(update=shown | changes)


def chosen(checkout: Checkout, **axes: list[str]) -> list[str]:
    return [f"{one.torch} {one.transformers} {one.deepspeed}" for one in grid.read(checkout, "tiny-vl", axes).cells]


def test_options_leave_a_part_of_the_grid_and_add_what_it_lacks(small: Checkout) -> None:
    assert chosen(small) == ["2.6.0 4.49.0 0.15.4", "2.6.0 4.51.3 0.15.4", "2.10.0 5.0.0 0.19.8"]
    assert chosen(small, transformers=["5.0.0"]) == ["2.10.0 5.0.0 0.19.8"]
    assert chosen(small, transformers=["4.52.4"], torch=["2.6.0"]) == ["2.6.0 4.52.4 0.15.4"]
    with pytest.raises(UserError, match="expected versions of one block of the grid, found none that has all"):
        chosen(small, torch=["2.6.0"], deepspeed=["0.19.8"])


@pytest.mark.parametrize("name", ["tiny-vl", "Tiny-VL", "tiny_vl", "Owner/Tiny-VL-7B-Instruct"])
def test_a_model_has_several_names(small: Checkout, name: str) -> None:
    assert grid.find(small, name) == "tiny-vl"


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ('"2.10.0"', '"2.10.dev0"', 14, "expected a release"),
        ('["alpha"]', '["../alpha"]', 6, "expected a package of an index"),
        ("cutoff = 2025-03-15", 'cutoff = "soon"', 5, "cutoff"),
        ('python = "3.11"', 'pyton = "3.11"', 3, "did you mean python"),
    ],
)
def test_mistakes_in_a_grid_have_a_line(small: Checkout, old: str, new: str, line: int, said: str) -> None:
    file = small.root / "matrix" / "tiny-vl.toml"
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(UserError) as wrong:
        grid.read(small, "tiny-vl")
    assert f"matrix/tiny-vl.toml:{line}: " in str(wrong.value)
    assert said in str(wrong.value)


def test_cells_that_are_recorded_at_once_are_all_kept_and_sorted(small: Checkout) -> None:
    read = grid.read(small, "tiny-vl")
    versions = [f"4.{minor}.0" for minor in range(20)]
    with ThreadPoolExecutor(8) as pool:
        [*pool.map(lambda version: store.append(small, read, cell(version)), versions)]
    assert [one.versions.transformers for one in store.load(small, read).cells] == versions
    store.append(small, read, cell("4.7.0", run_seconds=5.0))
    found = store.load(small, read)
    assert [one.run_seconds for one in found.cells if one.versions.transformers == "4.7.0"] == [5.0]
    assert len(found.cells) == 20
    file = store.path_of(small, "tiny-vl")
    assert len(file.read_text().splitlines()) == 22  # a line for each cell
    assert json.loads(file.read_text())["model"] == "Tiny-VL"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace('"format": 1', '"format": 1, "format": 1'), "occurs twice"),
        (lambda text: text.replace('"works"', '"great"'), "zero2.verdict"),
        (lambda text: text.replace('"run_seconds": 0.0', '"run_seconds": NaN'), "NaN"),
        (lambda text: text.replace('"error": ""', '"error": "\\u001b[2J"', 1), "zero2.error"),
        (lambda text: text.replace('"4.49.0"', '"4.49.0; rm"', 1), "versions.transformers"),
        (lambda text: text[:-40], "tiny-vl.json"),
    ],
)
def test_a_file_that_others_changed_is_refused(small: Checkout, change: object, said: str) -> None:
    read = grid.read(small, "tiny-vl")
    store.append(small, read, cell("4.49.0"))
    file = store.path_of(small, "tiny-vl")
    changed = change(file.read_text())  # type: ignore[operator]
    assert changed != file.read_text()
    file.write_text(changed)
    with pytest.raises(UserError, match="restore it with git") as wrong:
        store.load(small, read)
    assert said in str(wrong.value)


def test_the_grids_of_this_checkout_are_valid_and_their_cells_are_of_them(root: Path) -> None:
    checkout = Checkout(root)
    for name in grid.names(checkout):
        read = grid.read(checkout, name)
        measured = store.load(checkout, read)
        assert (measured.model, measured.family) == (read.definition.model, read.definition.family)
        file = store.path_of(checkout, name)
        assert not measured.cells or file.read_text() == store.text(measured)
        assert (root / "smoke_tests" / "families" / f"{read.definition.family}.py").is_file()
