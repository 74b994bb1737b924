"""report.html and the table as text: whatever a report says, they stay what they are; a browser is in tests/browser."""

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from markdown_it import MarkdownIt

from smoke_tests import page, report
from smoke_tests.options import InputError, Options, read
from smoke_tests.report import RankVerdict, Result
from smokehouse.runs.options import report_name

from .conftest import NAME
from .test_options import given_options

VERDICTS = some.sampled_from(["passed", "failed", "known-issue", "observed"])
# Whatever a rank, a package or a checkpoint may be called, with what could leave an attribute, an element or a fence.
TEXTS = some.text(some.characters(exclude_categories=["Cs"]), max_size=40) | some.sampled_from(
    [
        "</textarea>",
        "</pre>",
        "<script>",
        "&lt;",
        "\"'><img src=x>",
        "```",
        "~~~~\n````",
        "$policy",
        "\x1b[2J",
        "\u202eevil",
        "]]>",
    ]
)


class Tags(HTMLParser):
    """The start tags of a page, the text in a tag, and whether every tag is closed."""

    VOID = ("meta", "link", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.attributes: set[str] = set()
        self.open: list[str] = []
        self.text: dict[str, str] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found[tag] += 1
        self.attributes |= {name for name, _ in attrs}
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.text[self.open[-1]] = self.text.get(self.open[-1], "") + data


@some.composite
def documents(draw: some.DrawFn) -> dict[str, Any]:
    """Return any report that the schema allows, and more."""
    checks = [
        {
            "name": draw(TEXTS.filter(bool)),
            "zero_stage": draw(some.sampled_from([None, 2, 3])),
            "kind": draw(some.sampled_from(["check", "control"])),
            "verdict": (verdict := draw(VERDICTS)),
            "seconds": draw(some.floats(0, 1e6)),
            "ranks": [{"rank": rank, "verdict": verdict, "detail": draw(TEXTS)} for rank in range(draw(some.integers(1, 3)))],
            "detail": draw(TEXTS),
            "diagnosis": draw(TEXTS),
            "proves": draw(TEXTS),
        }
        for _ in range(draw(some.integers(0, 4)))
    ]
    nested = some.recursive(
        TEXTS | some.integers() | some.booleans() | some.none() | some.floats(),
        lambda inner: some.lists(inner, max_size=3) | some.dictionaries(TEXTS, inner, max_size=3),
        max_leaves=8,
    )
    return {
        "environment": draw(TEXTS),
        "lock": draw(some.dictionaries(TEXTS, TEXTS, max_size=2)),
        "later": draw(nested),
        "device": "cpu",
        "backend": "gloo",
        "precision": "fp32",
        "world_size": 2,
        "versions": draw(some.dictionaries(TEXTS, TEXTS | some.none(), max_size=3)),
        "machine": draw(some.dictionaries(TEXTS, nested, max_size=3)),
        "checkpoint": draw(TEXTS),
        "started": draw(TEXTS),
        "seconds": 1.0,
        "verdict": draw(some.sampled_from(["passed", "failed"])),
        "failure": draw(TEXTS),
        "partial": draw(TEXTS),
        "not_run": [{"name": draw(TEXTS), "reason": draw(TEXTS)}],
        "checks": checks,
    }


def results_of(document: dict[str, Any]) -> list[Result]:
    return [Result(**check | {"ranks": [RankVerdict(**r) for r in check["ranks"]]}) for check in document["checks"]]


@given(documents(), some.dictionaries(TEXTS, TEXTS, max_size=2))
def test_no_text_of_a_report_becomes_a_part_of_the_page(document: dict[str, Any], logs: dict[str, str]) -> None:
    table = report.table(document, results_of(document), colour=False)
    text = page.render(document, table, logs)
    tags = Tags(text)
    assert tags.open == []
    assert {tag: tags.found[tag] for tag in ("script", "style", "textarea", "title", "main", "h1", "button")} == {
        **dict.fromkeys(("script", "style", "textarea", "title", "main", "h1"), 1),
        "button": 2,
    }
    assert not {*tags.found} & {"img", "iframe", "object", "a", "base", "form", "svg"}
    assert not {name for name in tags.attributes if name.startswith("on")} | ({"src", "style"} & tags.attributes)
    # Nothing is written that a terminal, an editor or a reader's eye would be led by.
    assert all(c.isprintable() or c == "\n" for c in text + table)


@given(documents())
def test_the_summary_is_one_heading_and_one_block_of_code(document: dict[str, Any]) -> None:
    table = report.table(document, results_of(document), colour=False)
    [markdown] = [Tags(page.render(document, table, {})).text["textarea"]]
    tokens = MarkdownIt("commonmark").parse(markdown)
    assert [token.type for token in tokens] == ["heading_open", "inline", "heading_close", "fence"]
    assert all(line in tokens[-1].content for line in table.splitlines())


def example(**changed: Any) -> dict[str, Any]:
    """Return a report of two checks, of which one failed, on a machine with two GPUs."""
    ranks = [{"rank": 0, "verdict": "passed", "detail": "4 numbers"}, {"rank": 1, "verdict": "failed", "detail": "3 <numbers"}]
    never = [{"rank": 0, "verdict": "failed", "detail": "not reached: rank 1 died"}]
    check = {"zero_stage": 3, "kind": "check", "verdict": "failed", "seconds": 1.0, "proves": "Check that 2 and 2 make 4."}
    return {
        "environment": "tiny",
        "lock": {"lock.json": "a" * 64},
        "device": "cuda",
        "backend": "nccl",
        "precision": "bf16",
        "world_size": 2,
        "versions": {"torch": "2.6.0", "cuda": None},
        "machine": {"memory_bytes": 3 << 30, "gpus": [{"name": "H200", "pcie_generation": 5}], "links": ["NV18", "NV18"]},
        "checkpoint": "made",
        "started": "2026-11-22T05:00:00+00:00",
        "seconds": 12.5,
        "verdict": "failed",
        "failure": "rank 1 died",
        "not_run": [],
        "checks": [
            check | {"name": "load", "ranks": ranks, "detail": "rank 1: 3 <numbers", "diagnosis": "race: known. Fix: wait."},
            check | {"name": "train", "ranks": never, "detail": never[0]["detail"]},
        ],
        **changed,
    }


def visible(document: dict[str, Any], logs: dict[str, str] | None = None) -> str:
    """Return the text of a page as it is read, in one line."""
    text = page.render(document, report.table(document, results_of(document), colour=False), logs or {})
    body = re.sub(r"<(style|script|textarea).*?</\1>", "", text, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


def test_page_says_what_failed_where_and_why() -> None:
    text = visible(example(), {"zero3/rank1.log": "Traceback of rank 1"})
    for part in (
        "FAILED tiny",
        "torch 2.6.0 on cuda, nccl, bf16, 2 ranks; 2 checks and 0 controls in 12.5 s",
        "The run ended early: rank 1 died",
        "load (check, ZeRO-3) ZeRO-3, rank 0: ok: 4 numbers ZeRO-3, rank 1: FAIL: 3 &lt;numbers race: known. Fix: wait.",
        "Log zero3/rank1.log Traceback of rank 1",
        "Check that 2 and 2 make 4.",
        "train Check that 2 and 2 make 4. ✘ not run",  # and no failure of its own
        "memory 3.0 GiB gpus 0 name H200, pcie generation 5 links NV18, NV18",
        "cuda none",
        f"lock.json {'a' * 64}",
    ):
        assert part in text
    assert "train (check" not in text


def test_fields_of_later_versions_are_shown() -> None:
    text = visible(example(fabric={"hosts": ["a", "b"]}))
    assert "Fabric hosts a, b" in text  # a section
    peaks = [{"zero_stage": 3, "rank": rank, "rss_bytes": (rank + 1) << 30} for rank in (0, 1)]
    assert "Memory 0 zero stage 3, rank 0, rss 1.0 GiB 1 zero stage 3, rank 1, rss 2.0 GiB" in visible(example(memory=peaks))
    assert "gpu none" in visible(example(gpu=None))


def test_a_run_without_a_lock_says_so() -> None:
    installed = {"prefix": "/env", "packages": {"torch": "2.6.0"}, "notes": ["torch: editable"]}
    text = visible(example(lock=None, installed=installed))
    assert "No lock: this is about /env as it was then, not about what can be installed again." in text
    assert "prefix /env packages torch 2.6.0 notes torch: editable" in text
    assert "SHA-256 of each file" not in text


def test_what_was_added_to_a_lock_is_named() -> None:
    added = [{"name": "open-r1", "version": "0.1.0", "by": "--with-project /work/r1"}]
    assert "Beside the lock: open-r1 0.1.0 by --with-project /work/r1." in visible(example(added=added))


def test_partial_runs_are_marked() -> None:
    text = visible(example(partial="--zero 3 --only load"))
    assert "Partial run with --zero 3 --only load: what it left out is not proven." in text
    assert "partial run: --zero 3 --only load; it is no proof of an environment\n" in report.table(
        example(partial="--zero 3 --only load"), results_of(example()), colour=False
    )


def test_logs_of_failed_jobs_are_cut_to_their_ends(tmp_path: Path) -> None:
    for name in ("zero2", "zero3"):
        (tmp_path / name).mkdir()
    (tmp_path / "zero2" / "rank0.log").write_text("of a job that passed")
    (tmp_path / "zero3" / "rank0.log").write_bytes(b"\x1b[31mred\x1b[0m\r10%\r20%\n\xff\tend\n")
    (tmp_path / "zero3" / "rank1.log").write_text("\n")
    (tmp_path / "zero3" / "rank2.log").write_text("a" * 20_000 + "z")
    found = report.read_logs(tmp_path, ["zero3", "never-started"])
    assert [*found] == ["zero3/rank0.log", "zero3/rank2.log"]
    assert found["zero3/rank0.log"] == "red\n10%\n20%\n\ufffd       end\n"
    before, _, end = found["zero3/rank2.log"].partition("\n")
    assert before == f"… {20_001 - report.LOG_BYTES} bytes before …"
    assert end == "a" * (report.LOG_BYTES - 1) + "z"


# partial runs


def options(root: Path, folder: Path, *arguments: str) -> Options:
    return read([*given_options(root), "--report", str(folder), *arguments])


def written(folder: Path, **changed: Any) -> None:
    """Write a report of both stages to a folder."""
    both = [check | {"zero_stage": stage} for stage in (2, 3) for check in example()["checks"]]
    document = example(checks=both) | changed
    report.write(folder, document, results_of(document))


@pytest.mark.parametrize("zero", ["3", "2"])
def test_a_partial_run_never_replaces_a_full_report(root: Path, tmp_path: Path, zero: str) -> None:
    written(tmp_path)
    with pytest.raises(InputError) as refused:
        options(root, tmp_path, "--zero", zero)
    assert str(refused.value) == (
        f"{tmp_path}: expected no report of a whole smoke test, found one, which that of --zero {zero} must not replace; "
        "give --report another folder"
    )
    assert options(root, tmp_path).partial == ""
    assert options(root, tmp_path, "--zero", "3,2").partial == ""


@pytest.mark.parametrize(
    "changed",
    [
        {"partial": "--zero 3"},
        {"not_requested": ["load"]},
        {"checks": example()["checks"]},  # of an earlier version, which did not say so
    ],
)
def test_a_partial_report_is_replaced(root: Path, tmp_path: Path, changed: dict[str, Any]) -> None:
    written(tmp_path, **changed)
    assert options(root, tmp_path, "--zero", "3").partial == "--zero 3"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"checks": 1}', '{"checks": [1]}', "[" * 100_000, "\udcff"])
def test_what_is_no_report_is_replaced(root: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "report.json").write_bytes(text.encode(errors="surrogateescape"))
    assert options(root, tmp_path, "--zero", "3").partial == "--zero 3"


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ([], NAME),
        (["--zero", "2,3"], NAME),
        (["--zero=3,2", "--nproc", "4"], NAME),
        (["--zero", "3"], f"{NAME}-zero3"),
        (["--zero=2"], f"{NAME}-zero2"),
        (["--zero", "3,3"], f"{NAME}-zero3"),
        (["--only", "weights"], f"{NAME}-only-weights"),
        (["--skip=Mixed modality,load", "--zero", "2"], f"{NAME}-zero2-skip-mixed-modality-load"),
    ],
)
def test_the_builder_gives_a_partial_run_a_folder_of_its_own(
    root: Path, tmp_path: Path, arguments: list[str], name: str
) -> None:
    assert report_name(NAME, arguments) == name
    assert bool(options(root, tmp_path, *arguments).partial) == (name != NAME)


def test_names_of_checks_become_the_name_of_a_folder() -> None:
    assert report_name("tiny", ["--only", "Mixed modality,../load", "--zero", "3"]) == "tiny-zero3-only-mixed-modality-load"


def test_an_interrupted_write_leaves_no_report_that_claims_to_be_whole(tmp_path: Path) -> None:
    """report.json comes last: where it is, the rest is."""
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OSError, match=r"report\.html"):
        written(tmp_path)
    assert not (tmp_path / "report.json").exists()
