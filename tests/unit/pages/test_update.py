"""The pages: each fact is there, changes with its source, is missed by --check, and never claims what no report shows."""

import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from markdown_it import MarkdownIt

from smoke_tests import report
from smokehouse.checkout import Checkout
from smokehouse.errors import UserError
from smokehouse.locks.model import Channel, CondaPackage, Lock, LockedFile
from smokehouse.pages import update as docs
from smokehouse.pages.markdown import between, code, plain, table
from smokehouse.storage.files import sha256

from ..conftest import ENVIRONMENT, STACK

README = """\
# A checkout

<!-- environments -->
<!-- /environments -->

Seen:

<!-- run tiny -->
an old run
<!-- /run tiny -->
"""
LOCK_FILES = {"requirements.txt": "alpha==1.0\n", "build-requirements.txt": "", "conda-lock.yml": "version: 1\n"}
GITHUB = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def packaged(name: str, version: str, size: int) -> dict[str, Any]:
    return {"name": name, "version": version, "file": f"{name}-{version}.whl", "size": size, "sha256": "0" * 64}


MANIFEST = Lock(
    environment="tiny",
    python="3.11",
    platform="x86_64-manylinux_2_28",
    cutoff=date(2025, 3, 15),
    inputs="1" * 64,
    virtual_packages={"__cuda": "12.4", "__glibc": "2.28"},
    channel=Channel(name="conda-forge", snapshot="2" * 64),
    tools={"uv": "0"},
    files={name: sha256(text) for name, text in LOCK_FILES.items()},
    conda=(
        CondaPackage(**packaged("python", "3.11.9", 30_900_000), build="h0", subdir="linux-64", category="main", license="PSF"),
        CondaPackage(**packaged("gcc", "12.4.0", 60_000_000), build="h1", subdir="linux-64", category="devel", license="GPL"),
    ),
    pip=(LockedFile(**packaged("torch", "2.6.0", 766_700_000)), LockedFile(**packaged("alpha", "1.0", 1_234))),
    build=(LockedFile(**packaged("setuptools", "76.0.0", 0)),),
)


class Docs:
    """A checkout with one environment `tiny`, a lock of it, and reports to take in."""

    def __init__(self, place: Path, root: Path) -> None:
        self.checkout = Checkout(place)
        self.environment = place / "environments" / "tiny"
        self.lock = place / "lockfiles" / "tiny"
        self.page = place / "docs" / "environments" / "tiny.md"
        self.evidence = self.page.with_suffix(".json")
        self.readme = place / "README.md"
        self.run = place / "build" / "report.json"
        for folder in (self.environment, self.lock, place / "smoke_tests"):
            folder.mkdir(parents=True)
        (self.environment / "environment.yml").write_text(ENVIRONMENT)
        (self.environment / "stack.toml").write_text(STACK)
        self.readme.write_text(README)
        for name in ("__init__.py", "page.html", "page.py", "report.py", "report.schema.json"):
            shutil.copy(root / "smoke_tests" / name, place / "smoke_tests")
        self.write_lock(MANIFEST)

    def write_lock(self, manifest: Lock) -> None:
        for name, text in LOCK_FILES.items():
            (self.lock / name).write_text(text)
        (self.lock / "lock.json").write_text(manifest.text())

    def other_environment(self, name: str) -> None:
        """Add an environment like `tiny`."""
        shutil.copytree(self.environment, self.environment.with_name(name))
        file = self.environment.with_name(name) / "environment.yml"
        file.write_text(file.read_text().replace("name: tiny", f"name: {name}"))
        shutil.copytree(self.lock, self.lock.with_name(name))

    def ran(self, **changed: Any) -> Path:
        """Write the report of a run of this lock, with some fields `changed`."""
        ranks = [report.RankVerdict(0, "passed", "all well"), report.RankVerdict(1, "passed", "all well")]
        broken = [report.RankVerdict(0, "known-issue", "dies: killed by signal 6")]
        results = [
            report.Result("load", 2, "check", "passed", 0.5, ranks, "all well"),
            report.Result("mixed modality", 2, "check", "known-issue", 0.5, broken, "dies: killed by signal 6"),
            report.Result("mixed modality", 3, "check", "known-issue", 0.5, broken, "dies: killed by signal 6"),
        ]
        fields = {
            "environment": "tiny",
            "lock": report.lock_digests(self.lock),
            "device": "cpu",
            "backend": "gloo",
            "precision": "fp32",
            "world_size": 2,
            "versions": {"python": "3.11.9", "torch": "2.6.0+cu124", "cuda": None},
            "machine": {"architecture": "x86_64", "cpu": "Imaginary 9000", "cpus": 2, "memory_bytes": 24 << 30},
            "checkpoint": "made",
            "started": "2026-11-22T03:52:48+00:00",
            "seconds": 13.3,
            "verdict": "passed",
            "failure": "",
            "not_run": [],
        }
        report.write(self.run.parent, fields | changed, results)
        return self.run

    def make(self, *names: str, report: Path | None = None) -> str:
        """Write the pages and return that of `tiny`."""
        assert docs.make(self.checkout, names, report) == 0
        return self.page.read_text()

    def adopt(self, **changed: Any) -> str:
        """Take in the report of a run of this lock and return the page."""
        return self.make("tiny", report=self.ran(**changed))


@pytest.fixture
def tiny(tmp_path: Path, root: Path) -> Docs:
    return Docs(tmp_path / "checkout", root)


def test_a_page_says_what_the_sources_say(tiny: Docs) -> None:
    page = tiny.make()
    for fact in (
        "Qwen2_5_VLForConditionalGeneration",
        "torch 2.6.0",
        "x86_64-manylinux_2_28",
        "2025-03-15",
        "| python | 3.11.9 | h0 | 30.9 MB | PSF |",
        "| gcc | 12.4.0 | h1 | 60.0 MB | GPL |",
        "| torch | 2.6.0 | 766.7 MB |",
        "| alpha | 1.0 | 1.2 kB |",
        "### Conda packages: 1 package, 30.9 MB",
        "### PyPI packages: 2 packages, 766.7 MB",
        "1 package, 1 of unknown size",
        "797.6 MB, with compilers and CUDA toolkit 857.6 MB",
        "- Left out, vllm: needs another torch",
    ):
        assert fact in page
    assert page.index("| python |") < page.index("compilers and CUDA toolkit: 1 package") < page.index("| gcc |")


def test_each_command_on_the_page_is_there(tiny: Docs, root: Path) -> None:
    page = tiny.make()
    sessions = re.findall(r"@nox\.session\ndef (\w+)", (root / "noxfile.py").read_text())
    assert {*re.findall(r"nox -s (\w+)", page)} <= {*sessions}
    for file in re.findall(r"lockfiles/tiny/([\w.-]+)", page):
        assert (tiny.lock / file).is_file()


def test_without_a_report_nothing_is_proven(tiny: Docs) -> None:
    page = tiny.make()
    assert "| proven on | not proven |" in page
    assert "## Not proven" in page
    assert "proven:" not in page.replace("Not proven:", "")
    assert "What was proven" not in page
    assert "| 2025-03-15 | not proven |" in tiny.readme.read_text()
    assert "(Not proven: no report of this lock.)" in tiny.readme.read_text()


def test_a_report_of_this_lock_is_the_evidence(tiny: Docs) -> None:
    page = tiny.adopt()
    assert tiny.evidence.read_bytes() == tiny.run.read_bytes()
    for fact in (
        "Imaginary 9000 (x86_64), 2 CPUs, 24 GiB",
        "2026-11-22T03:52:48+00:00",
        "| imported | python 3.11.9, torch 2.6.0+cu124 |",
        "PASSED  tiny: torch 2.6.0+cu124 on cpu, gloo, fp32, 2 ranks",
        "- Known failure, mixed modality, ZeRO-2, ZeRO-3: dies: killed by signal 6",
    ):
        assert fact in page
    assert "Not proven" not in page
    readme = tiny.readme.read_text()
    assert "| cpu, gloo, fp32, 2 ranks; not on GPUs with NCCL |" in readme
    assert "PASSED  tiny" in readme
    assert "an old run" not in readme


@pytest.mark.parametrize(("device", "backend"), [("cpu", "gloo"), ("cpu", "nccl"), ("cuda", "gloo")])
def test_only_gpus_with_nccl_read_as_such(tiny: Docs, device: str, backend: str) -> None:
    page = tiny.adopt(device=device, backend=backend)
    assert "Nothing is proven on GPUs with NCCL" in page
    assert "ran on GPUs" not in page
    page = tiny.adopt(device="cuda", backend="nccl", precision="bf16", world_size=8)
    assert "It ran on GPUs with NCCL, in bf16, 8 ranks." in page
    assert "nothing is proven" not in page
    assert "not on GPUs" not in tiny.readme.read_text()


def test_one_rank_on_nccl_is_no_proof_of_gpus(tiny: Docs) -> None:
    legs = [
        {"name": "nccl x1", "backend": "nccl", "world_size": 1, "gpus": 1},
        {"name": "gloo x2", "backend": "gloo", "world_size": 2, "gpus": 1},
    ]
    page = tiny.adopt(device="cuda", backend="nccl", precision="bf16", world_size=1, legs=legs)
    assert "It ran on cuda, bf16, nccl with 1 rank and gloo with 2 ranks on 1 GPU. " in page
    assert "**NCCL ran with one rank: nothing is proven of partitions, reductions and gathers over NCCL.**" in page
    assert "It ran on GPUs with NCCL" not in page
    limit = "NCCL with one rank only, which partitions nothing"
    assert f"| cuda, bf16, nccl with 1 rank and gloo with 2 ranks on 1 GPU; {limit}" in tiny.readme.read_text()
    # An older report has no legs.
    assert limit in tiny.adopt(device="cuda", backend="nccl", precision="bf16", world_size=1)
    legs = [{"name": "nccl x2", "backend": "nccl", "world_size": 2, "gpus": 2}]
    page = tiny.adopt(device="cuda", backend="nccl", precision="bf16", world_size=2, legs=legs)
    assert "It ran on GPUs with NCCL, in bf16, 2 ranks." in page


def test_a_run_on_another_python_proves_nothing_of_conda_packages(tiny: Docs) -> None:
    assert "without the conda packages" not in tiny.adopt()
    assert "It ran on Python 3.11.7, not 3.11.9, without the conda packages: nothing is proven of those." in tiny.adopt(
        versions={"python": "3.11.7"}
    )
    assert "; PyPI packages only |" in tiny.readme.read_text()


def test_a_report_of_an_older_lock_proves_nothing(tiny: Docs, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.adopt()
    tiny.write_lock(MANIFEST.model_copy(update={"tools": {"uv": "1"}}))
    assert docs.check(tiny.checkout, []) == 1
    assert "docs/environments/tiny.md: out of date; run smokehouse docs" in capsys.readouterr().err
    assert "## Not proven" in tiny.make()
    assert "not proven" in tiny.readme.read_text()


def _other_lock(tiny: Docs) -> Path:
    path = tiny.ran()
    tiny.write_lock(MANIFEST.model_copy(update={"inputs": "3" * 64}))
    return path


def _bound_to_the_pypi_packages_only(tiny: Docs) -> Path:
    return tiny.ran(lock={"requirements.txt": sha256(LOCK_FILES["requirements.txt"])})


def _failed(tiny: Docs) -> Path:
    return tiny.ran(verdict="failed", failure="the lights went out")


def _liar(tiny: Docs) -> Path:
    path = tiny.ran()
    fields = json.loads(path.read_text())
    fields["checks"][0]["verdict"] = "failed"
    path.write_text(json.dumps(fields))
    return path


def _no_json(tiny: Docs) -> Path:
    tiny.ran().write_text("{")
    return tiny.run


def _unprintable(tiny: Docs) -> Path:
    (tiny.checkout.root / "smoke_tests" / "report.py").write_text("raise SystemExit('out of ink')")
    return tiny.ran()


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (_other_lock, "expected a report of the lock in lockfiles/tiny, found one of another lock"),
        (_bound_to_the_pypi_packages_only, "expected a report of the lock in lockfiles/tiny, found one of another lock"),
        (
            lambda tiny: tiny.ran(not_requested=["train", "resume"]),
            "expected a report of all checks, found a partial one, without train, resume; ",
        ),
        (_failed, "smoke test of tiny failed (the lights went out), so it proves nothing"),
        (_liar, "invalid report: checks.0.verdict: "),
        (_no_json, "invalid report: not JSON"),
        (lambda tiny: tiny.ran(environment="other"), "expected a report of environment 'tiny', found one of 'other'"),
        (lambda tiny: tiny.run, "report not found"),
        (_unprintable, "cannot print the report: ['out of ink']"),
    ],
)
def test_what_is_no_evidence_is_refused(tiny: Docs, made: Callable[[Docs], Path], said: str) -> None:
    tiny.adopt()
    tiny.run.unlink()
    path = made(tiny)
    before = {file: file.read_bytes() for file in (tiny.page, tiny.evidence, tiny.readme)}
    with pytest.raises(UserError, match=re.escape(said)):
        tiny.make("tiny", report=path)
    assert before == {file: file.read_bytes() for file in before}


def test_committed_evidence_is_held_to_the_same(tiny: Docs) -> None:
    tiny.adopt()
    tiny.evidence.write_text(tiny.evidence.read_text().replace('"passed"', '"gloriously passed"'))
    with pytest.raises(UserError, match=r"docs/environments/tiny\.json: invalid report: .*report\.schema\.json"):
        docs.check(tiny.checkout, [])


@pytest.mark.parametrize("names", [[], ["tiny", "other"]])
def test_a_report_is_of_one_environment(tiny: Docs, names: list[str]) -> None:
    with pytest.raises(UserError, match="--report: expected the name of one environment"):
        docs.make(tiny.checkout, names, tiny.ran())


def _edit(file: str, old: str, new: str) -> Callable[[Docs], None]:
    def edit(tiny: Docs) -> None:
        path = tiny.checkout.root / file
        assert path.read_text().count(old) == 1
        path.write_text(path.read_text().replace(old, new))

    return edit


def _relocked(**changed: Any) -> Callable[[Docs], None]:
    return lambda tiny: tiny.write_lock(MANIFEST.model_copy(update=changed))


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        (_edit("environments/tiny/stack.toml", "needs another torch", "sings too loud"), "sings too loud"),
        (_edit("environments/tiny/stack.toml", "qwen2_5_vl", "llava"), "family `llava`"),
        (_edit("environments/tiny/stack.toml", '"12.4"', '"12.8"'), "| CUDA | 12.8 |"),
        (_relocked(pip=(LockedFile(**packaged("torch", "2.7.0", 0)),)), "| torch | 2.7.0 | ? |"),
        (_relocked(conda=()), "| download | 767.9 MB"),
        (_relocked(virtual_packages={"__cuda": "13.0"}), r"\_\_cuda 13.0"),
        (lambda tiny: tiny.page.unlink(), "# tiny"),
        (lambda tiny: tiny.page.write_text("# edited\n"), "# tiny"),
    ],
)
def test_check_sees_each_source_change(
    tiny: Docs, change: Callable[[Docs], None], shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.make()
    assert docs.check(tiny.checkout, []) == 0
    change(tiny)
    assert docs.check(tiny.checkout, []) == 1
    assert "smokehouse: docs/environments/tiny.md: out of date; run smokehouse docs" in capsys.readouterr().err
    if shown == "| download | 767.9 MB":
        assert "### Conda packages" not in tiny.make()
    else:
        assert shown in tiny.make()
    assert docs.check(tiny.checkout, []) == 0


def test_check_sees_an_edited_readme(tiny: Docs, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.adopt()
    _edit("README.md", "PASSED  tiny", "PASSED  with glory")(tiny)
    assert docs.check(tiny.checkout, []) == 1
    assert capsys.readouterr().err == "smokehouse: README.md: out of date; run smokehouse docs\n"
    tiny.make()
    assert "PASSED  tiny" in tiny.readme.read_text()


def test_the_readme_keeps_what_is_not_generated(tiny: Docs) -> None:
    tiny.make()
    text = tiny.readme.read_text()
    assert text.startswith("# A checkout\n\n<!-- environments -->\n| name |")
    assert text.endswith("<!-- /run tiny -->\n")
    assert "\nSeen:\n" in text


@pytest.mark.parametrize("line", ["<!-- environments -->\n", "<!-- /environments -->\n", "<!-- /run tiny -->\n"])
def test_a_missing_marker_is_named(tiny: Docs, line: str) -> None:
    _edit("README.md", line, "")(tiny)
    with pytest.raises(UserError, match=r"README\.md: expected the lines") as said:
        tiny.make()
    assert line.strip() in str(said.value)
    assert not tiny.page.exists()


def test_pages_of_environments_that_are_gone(tiny: Docs, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.other_environment("other")
    tiny.make()
    assert "docs/environments/other.md" in tiny.readme.read_text()
    shutil.rmtree(tiny.environment.with_name("other"))
    other = tiny.page.with_name("other.md")
    assert docs.check(tiny.checkout, []) == 1
    assert "docs/environments/other.md: environment not found" in capsys.readouterr().err
    assert other.exists()
    tiny.make()
    assert not other.exists()
    assert docs.check(tiny.checkout, []) == 0


def test_one_page_by_name(tiny: Docs) -> None:
    tiny.other_environment("other")
    tiny.make("tiny")
    assert not tiny.page.with_name("other.md").exists()
    assert docs.check(tiny.checkout, ["tiny"]) == 0
    assert docs.check(tiny.checkout, []) == 1


def test_an_unknown_name_is_refused(tiny: Docs) -> None:
    verbs: tuple[Callable[[], int], ...] = (
        lambda: docs.make(tiny.checkout, ["tinny"], None),
        lambda: docs.make(tiny.checkout, ["tinny"], tiny.run),
        lambda: docs.check(tiny.checkout, ["tinny"]),
    )
    for verb in verbs:
        with pytest.raises(UserError, match=r"did you mean tiny\?"):
            verb()


def test_an_edited_lock_is_not_documented(tiny: Docs) -> None:
    (tiny.lock / "requirements.txt").write_text("alpha==2.0\n")
    with pytest.raises(UserError, match=r"requirements\.txt was edited"):
        tiny.make()


def test_the_command_line(tiny: Docs, root: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "smokehouse", "docs", *arguments],
            cwd=tiny.checkout.root,
            env={"PYTHONPATH": str(root / "src")},
            capture_output=True,
            text=True,
            timeout=120,
        )

    assert run("--check").returncode == 1
    tiny.evidence.parent.mkdir(parents=True)
    shutil.copy(tiny.ran(), tiny.evidence)
    written = run("tiny")
    assert (written.returncode, written.stdout) == (0, "docs/environments/tiny.md: written\nREADME.md: written\n")
    assert (run("--check").returncode, run().stdout) == (0, "")
    both = run("tiny", "--check", "--report", str(tiny.run))
    assert (both.returncode, both.stderr.count("\n")) == (2, 1)


def test_hostile_text_stays_text(tiny: Docs) -> None:
    hostile = "a|b <script>x</script> [c](https://d) `e` **f** ~~g~~ &amp; \\ _h_ \x1b[31m\n# i <!-- j"
    conda = MANIFEST.conda[0].model_copy(update={"license": hostile, "version": hostile, "build": "```"})
    tiny.write_lock(MANIFEST.model_copy(update={"conda": (conda,), "files": MANIFEST.files}))
    page = tiny.adopt(checkpoint=hostile, versions={"torch": "```\n# loose", hostile: hostile})
    tokens = GITHUB.parse(page)
    headings = [after.content for token, after in itertools.pairwise(tokens) if token.type == "heading_open"]
    assert not [heading for heading in headings if heading[0] in "i"]
    assert not any("loose" in heading for heading in headings)
    assert len(headings) == len([token for token in GITHUB.parse(tiny.adopt()) if token.type == "heading_open"])
    inline = [child for token in tokens for child in token.children or []]
    assert not [child for child in inline if child.type == "html_inline"]
    assert not [child for child in inline if child.type == "link_open" and child.attrs["href"] == "https://d"]
    assert len([token for token in tokens if token.type == "html_block"]) == 1  # the line that says who made the page
    shown = " ".join(hostile.split()).replace("\x1b", "?")
    assert any("".join(child.content for child in token.children or []) == shown for token in tokens)


@given(some.text())
def test_any_text_is_shown_as_it_is(text: str) -> None:
    rendered = GITHUB.parse(table(["one", "two"], [["a", plain(text)]]))
    cells = [after for token, after in itertools.pairwise(rendered) if token.type == "td_open"]
    expected = "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))
    assert len(cells) == 2
    assert {child.type for child in cells[1].children or []} <= {"text", "text_special"}
    assert "".join(child.content for child in cells[1].children or []).strip() == expected.strip()


@given(some.text(alphabet="`~a\n \x1b"))
def test_any_block_is_shown_as_it_is(text: str) -> None:
    (block,) = GITHUB.parse(code(text))
    assert block.type == "fence"
    assert block.content.split("\n")[:-1] == [line.replace("\x1b", "?").rstrip() for line in text.splitlines() or [""]]


@pytest.mark.parametrize("text", ["", "a\nb", "b\na", "a\na\nb", "a\nb\nb"])
def test_markers_stand_once_and_in_order(text: str) -> None:
    if text == "a\nb":
        assert between(text, "a", "b", "inner\n") == "a\ninner\nb"
    else:
        with pytest.raises(ValueError, match="expected the lines a and b once each"):
            between(text, "a", "b", "inner")
