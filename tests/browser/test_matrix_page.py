"""The page of a compatibility matrix in a real browser, opened from a file: sorted, filtered, linked, and without colours."""

from pathlib import Path

import pytest

from smokehouse.checkout import Checkout
from smokehouse.matrix import grid, store
from smokehouse.pages import matrix

from ..unit.matrix.made import HOSTILE, make
from .devtools import Browser, Page
from .test_report_page import CONTRASTS

VISIBLE = "[...document.querySelectorAll('#table > tbody > tr')].filter(row => row.checkVisibility()).map(row => row.id)"


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkout = make(tmp_path_factory.mktemp("matrix"))
    for path, text in matrix.texts(checkout).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert store.load(checkout, grid.read(Checkout(checkout.root), "tiny-vl")).cells
    return checkout.root / "docs" / "matrix" / "tiny-vl.html"


def test_the_matrix_is_sorted_filtered_and_linked_without_a_server(browser: Browser, page_file: Path) -> None:
    page = Page(browser, 500)
    page.open(page_file)
    everything = page.run(VISIBLE)
    assert len(everything) == 8
    # Versions sort as versions: 4.9.0 comes before 4.49.0.
    page.click("thead th:nth-child(2) button")
    column = "[...document.querySelectorAll('#table > tbody > tr')].map(row => row.cells[1].textContent)"
    ascending = page.run(column)
    assert ascending[0] == "4.9.0"
    page.click("thead th:nth-child(2) button")
    assert page.run(column)[-1] == "4.9.0"
    page.run("verdict.value = 'hangs', verdict.dispatchEvent(new Event('change'))")
    [hanging] = page.run(VISIBLE)
    assert "deepspeed-0.18.9" in hanging
    assert page.run("document.getElementById('status').textContent") == "1 of 8 cells"
    # The square of a cell that the filter hides leads to it all the same, and opens what was measured.
    square = "svg a[href$='transformers-4.9.0_deepspeed-0.15.4']"
    page.run("globalThis.moved = new Promise(kept => addEventListener('hashchange', () => kept(true))), 0")
    page.click(square)
    assert page.run("moved")
    assert page.run("location.hash").endswith("transformers-4.9.0_deepspeed-0.15.4")
    assert len(page.run(VISIBLE)) == 8
    assert page.run("document.querySelector(':target details').open") is True
    page.run("text.value = '0.19.8 NOT', text.dispatchEvent(new Event('input'))")
    assert {"0.19.8" in found for found in page.run(VISIBLE)} == {True}
    assert {url.partition("#")[0] for url in page.requests() if url != "data:,"} == {page_file.as_uri()}
    assert page.complaints() == []


def test_everything_is_readable_and_hostile_text_is_text(browser: Browser, page_file: Path) -> None:
    for dark in (False, True):
        page = Page(browser, 400, dark=dark)
        page.open(page_file)
        page.run("document.querySelectorAll('details').forEach(one => { one.open = true; })")
        assert [found for found in page.run(CONTRASTS) if found[0] < 4.5 and "svg" not in found[1]] == []
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        assert page.run("document.querySelectorAll('img, main script').length") == 0
        assert HOSTILE in page.run("document.getElementById('table').textContent")
        assert page.run("document.title").startswith("Tiny-VL")
    # Each verdict has a sign of its own, which colours only repeat.
    signs = page.run("[...document.querySelectorAll('svg path')].map(path => path.getAttribute('d'))")
    assert len({*signs}) == 6
