"""report.html in a real browser, opened from a file as people open it."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from smoke_tests import report
from smoke_tests.report import RankVerdict, Result

from .devtools import Browser, Page

HOSTILE = '</textarea></pre><script>document.title = "owned"</script><img src=https://example.com/x onerror="document.title=1">'
# Contrast of each element with text of its own, by the formula of WCAG 2. See: https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio
CONTRASTS = """
(() => {
  const colour = text => text.match(/[\\d.]+/g).map(Number);
  const light = rgb => { const [r, g, b] = rgb.slice(0, 3).map(v => v / 255).map(v =>
    v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = e => { for (; e; e = e.parentElement) { const c = colour(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
  return [...document.body.querySelectorAll("*")]
    .filter(e => e.checkVisibility() && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()))
    .map(e => { const [a, b] = [light(colour(getComputedStyle(e).color)), light(behind(e))];
      return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.outerHTML.slice(0, 80)]; });
})()
"""
# Elements in which text would be cut off or run over.
WIDE = """[...document.querySelectorAll("body *")].filter(e => !e.closest(".hidden, [hidden]") && e.checkVisibility()
  && e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.outerHTML.slice(0, 80))"""


@pytest.fixture(scope="module")
def proven(root: Path) -> dict[str, Any]:
    """Return the report of a real run that passed, with hardware that it did not have."""
    found: dict[str, Any] = json.loads((root / "docs" / "environments" / "qwen2.5-vl.json").read_text())
    found["machine"]["gpus"] = [{"name": "NVIDIA H200", "memory_bytes": 150_754_820_096, "links": ["NV18", "NV18"]}]
    for check in found["checks"]:
        check["proves"] = f"Check that {check['name']} is as it has to be, which takes a sentence."
    return found


@pytest.fixture(scope="module")
def page_file(proven: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("passed"), proven)


@pytest.fixture(scope="module")
def failed_file(proven: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the page of a run that failed, in which every text is hostile or long."""
    checks = [check | {"diagnosis": HOSTILE, "detail": HOSTILE} for check in proven["checks"]]
    checks[4] |= {
        "verdict": "failed",
        "name": HOSTILE,
        "ranks": [{"rank": 0, "verdict": "failed", "detail": HOSTILE + "x" * 500}],
    }
    changed = {
        "environment": HOSTILE,
        "versions": {HOSTILE: HOSTILE, "torch": "2.6.0"},
        "machine": {HOSTILE: [{HOSTILE: HOSTILE}]},
        "failure": HOSTILE,
        "verdict": "failed",
        "partial": "--zero 3",
        "not_run": [{"name": HOSTILE, "reason": "\x1b[31m\x00" + HOSTILE}],
    }
    logs = {"zero3/rank0.log": f"Traceback\n{HOSTILE}\n{'y' * 3000}\n"}
    return write(tmp_path_factory.mktemp("failed"), proven | changed | {"checks": checks}, logs)


def write(folder: Path, document: dict[str, Any], logs: dict[str, str] | None = None) -> Path:
    """Write a report as a run does, and return its page."""
    results = [Result(**c | {"ranks": [RankVerdict(**rank) for rank in c["ranks"]]}) for c in document["checks"]]
    report.write(folder, document, results, logs)
    return folder / "report.html"


def opened(browser: Browser, file: Path, width: int = 1000, **options: Any) -> Page:
    page = Page(browser, width, **options)
    page.open(file)
    return page


@pytest.mark.parametrize("name", ["page_file", "failed_file"])
def test_nothing_is_loaded_and_nothing_is_complained_of(browser: Browser, name: str, request: pytest.FixtureRequest) -> None:
    file: Path = request.getfixturevalue(name)
    page = opened(browser, file)
    for control in ("#copy", "#expand", "#filter"):
        page.click(control)
    assert {url for url in page.requests() if url != "data:,"} == {file.as_uri()}
    assert page.complaints() == []
    assert page.run("document.title").startswith(("PASSED ", "FAILED "))


def test_hostile_text_is_shown_and_not_obeyed(browser: Browser, failed_file: Path) -> None:
    page = opened(browser, failed_file)
    assert page.run("document.querySelector('h1').textContent") == f"FAILED {HOSTILE}"
    assert page.run("document.querySelectorAll('img, main script, header script').length") == 0
    assert HOSTILE in page.run("document.querySelector('pre').textContent")
    assert HOSTILE in page.run("document.getElementById('markdown').value")
    assert "\x1b" not in page.run("document.documentElement.textContent")


def test_the_policy_refuses_what_is_not_of_the_page(browser: Browser, page_file: Path) -> None:
    """The second line of defence: a script, style, image or request that got in all the same."""
    page = opened(browser, page_file)
    page.run(
        "globalThis.refused = [], document.addEventListener('securitypolicyviolation', e => refused.push(e.effectiveDirective))"
    )
    page.run(
        """(async () => {
          for (const [tag, attribute, text] of [["script", "textContent", "document.title = 'owned'"],
              ["style", "textContent", "body { display: none }"], ["img", "src", "https://example.com/x"]]) {
            const element = document.createElement(tag); element[attribute] = text; document.body.append(element); }
          await fetch("https://example.com/").catch(() => 0);
          await new Promise(kept => { setTimeout(kept); });
        })()"""
    )
    assert {*page.run("refused")} >= {"script-src-elem", "style-src-elem", "img-src", "connect-src"}
    assert page.run("document.title") != "owned"
    assert page.run("document.body.checkVisibility()")


@pytest.mark.parametrize("width", [360, 768])
@pytest.mark.parametrize("name", ["page_file", "failed_file"])
def test_no_horizontal_scrolling(browser: Browser, name: str, width: int, request: pytest.FixtureRequest) -> None:
    page = opened(browser, request.getfixturevalue(name), width)
    page.click("#expand")
    assert page.run("innerWidth") == width
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.run(WIDE) == []


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ["page_file", "failed_file"])
def test_text_is_readable_in_both_schemes(browser: Browser, name: str, dark: bool, request: pytest.FixtureRequest) -> None:
    page = opened(browser, request.getfixturevalue(name), dark=dark)
    page.click("#expand")
    measured = page.run(CONTRASTS)
    assert len(measured) > 100
    assert [element for ratio, element in measured if ratio < 4.5] == []
    assert (page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)") is not dark


def clipboard(page: Page) -> str:
    """Return what a person would paste, read by a page that may."""
    page.call("Page.bringToFront")
    return str(page.run("navigator.clipboard.readText()"))


def test_the_copy_button_copies_the_summary(browser: Browser, page_file: Path, proven: dict[str, Any]) -> None:
    page = opened(browser, page_file)
    page.call("Page.bringToFront")
    page.click("#copy")
    wait_for_status(page, "Copied")
    copied = clipboard(page)
    assert copied == page.run("document.getElementById('markdown').value")
    assert copied.startswith("### Smokehouse: smoke test passed\n\n```text\n")
    for text in (
        "PASSED  qwen2.5-vl: torch 2.6.0",
        "gpus 0: name NVIDIA H200, memory 140.4 GiB, links NV18, NV18",
        f"lock.json: {proven['lock']['lock.json']}",
    ):
        assert text in copied


def wait_for_status(page: Page, text: str) -> None:
    """Wait until the page announces `text`."""
    status = "document.getElementById('status')"
    page.run(
        f"new Promise(kept => {{ const seen = () => {status}.textContent === {json.dumps(text)} && kept(); seen();"
        f" new MutationObserver(seen).observe({status}, {{childList: true, characterData: true, subtree: true}}); }})"
    )


@pytest.mark.parametrize(
    ("clipboard_api", "command", "said"),
    [
        ("undefined", "", "Copied"),
        ("{writeText: () => Promise.reject(new Error('denied'))}", "", "Copied"),
        ("undefined", "document.execCommand = () => false;", "Press Ctrl+C to copy the selected text"),
    ],
)
def test_copying_without_the_clipboard_api(
    browser: Browser, page_file: Path, clipboard_api: str, command: str, said: str
) -> None:
    script = f"Object.defineProperty(navigator, 'clipboard', {{value: {clipboard_api}}}); {command}"
    reader, page = opened(browser, page_file), opened(browser, page_file, script=script)
    reader.call("Page.bringToFront")
    reader.run("navigator.clipboard.writeText('nothing yet')")
    page.call("Page.bringToFront")
    page.click("#copy")
    wait_for_status(page, said)
    text = page.run("document.getElementById('markdown').value")
    selected = "(e => e.value.slice(e.selectionStart, e.selectionEnd))(document.activeElement)"
    assert page.run(selected) == text  # so that Ctrl+C copies it
    assert page.run("document.getElementById('markdown').checkVisibility()")
    assert clipboard(reader) == (text if said == "Copied" else "nothing yet")


def test_filter_and_details(browser: Browser, page_file: Path, proven: dict[str, Any]) -> None:
    page = opened(browser, page_file)
    shown = "[...document.querySelectorAll('tbody:not(.facts tbody)')].filter(e => e.checkVisibility()).length"
    names = {(check["kind"], check["name"]) for check in proven["checks"]}
    known = {(check["kind"], check["name"]) for check in proven["checks"] if check["verdict"] != "passed"}
    assert page.run(shown) == len(names)
    page.click("#filter")
    assert page.run(shown) == len(known) > 0
    page.click("#filter")
    assert page.run(shown) == len(names)
    count = "document.querySelectorAll('tbody details[open]').length"
    assert page.run(count) == len(known)
    page.click("#expand")
    assert page.run(count) == len(names)
    page.click("#expand")
    assert page.run(count) == 0


def test_print_shows_all_details_and_no_controls(browser: Browser, page_file: Path) -> None:
    page = opened(browser, page_file, dark=True)
    page.run("addEventListener('afterprint', () => { globalThis.printed = 1 })")
    page.run(
        "addEventListener('beforeprint', () => { globalThis.open = document.querySelectorAll('main details[open]').length })"
    )
    before = page.run("document.querySelectorAll('main details[open]').length")
    page.call("Page.printToPDF")
    assert page.run("globalThis.printed") == 1
    assert page.run("globalThis.open") == page.run("document.querySelectorAll('main details').length") > before
    assert page.run("document.querySelectorAll('main details[open]').length") == before
    page.media("print", dark=True)
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.run("[...document.querySelectorAll('button, input, textarea')].some(e => e.checkVisibility())")
    assert [element for ratio, element in page.run(CONTRASTS) if ratio < 4.5] == []


@pytest.mark.parametrize("name", ["page_file", "failed_file"])
def test_structure_is_accessible(browser: Browser, name: str, request: pytest.FixtureRequest) -> None:
    page = opened(browser, request.getfixturevalue(name))
    levels = page.run("[...document.querySelectorAll('h1, h2, h3')].map(e => +e.tagName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert page.run("[...document.querySelectorAll('th')].every(e => ['row', 'col'].includes(e.scope))")
    assert page.run("document.documentElement.lang") == "en"
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    for role in ("button", "checkbox", "textbox", "DisclosureTriangle"):
        named = [node["name"]["value"] for node in tree if node.get("role", {}).get("value") == role]
        assert all(named), role
        assert role == "textbox" or named
    # Verdicts are words, and not colours alone.
    assert {
        re.sub(r"^\W+", "", text) for text in page.run("[...document.querySelectorAll('.mark')].map(e => e.textContent)")
    } <= {*("ok", "FAIL", "known", "not run")}
