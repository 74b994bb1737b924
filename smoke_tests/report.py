"""The evidence that a run leaves: report.json, report.html, junit.xml and the table."""

import errno
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from smoke_tests import page

# What a run writes beside its logs.
FILES = ("report.json", "report.html", "junit.xml")
# report.html shows so many logs, and so many bytes at the end of each.
MAX_LOGS, LOG_BYTES = 32, 16384
SEARCHED = 64  # ranks, among which the cause of a failure is looked for
# Writes a flat object with a line for each field, two levels deep in a check.
_LINES = json.JSONEncoder(separators=(",\n      ", ": "))
COLOURS = {"passed": "\033[32m", "failed": "\033[1;31m", "known-issue": "\033[33m", "observed": "\033[33m"}


@dataclass(frozen=True, slots=True)  # a run over nodes has hundreds of thousands
class RankVerdict:
    """One rank's verdict on one check."""

    rank: int
    verdict: str
    detail: str
    node: int | None = None  # in a run over several

    @property
    def fields(self) -> dict[str, Any]:
        """The verdict as in report.json."""
        fields = {"rank": self.rank, "verdict": self.verdict, "detail": self.detail}
        return fields if self.node is None else {**fields, "node": self.node}

    @property
    def where(self) -> str:
        """The rank and its node in words."""
        return f"rank {self.rank}" if self.node is None else f"rank {self.rank} on node {self.node}"


@dataclass(frozen=True)
class Result:
    """One check or control, over all ranks.

    `seconds` is the slowest rank's. `diagnosis` is what the loader's table says about a failed check or a known issue,
    `proves` what is shown when it passes. `leg` is empty where the run has one leg, and for what runs once.
    """

    name: str
    zero_stage: int | None
    kind: str
    verdict: str
    seconds: float
    ranks: list[RankVerdict]
    detail: str
    diagnosis: str = ""
    proves: str = ""
    leg: str = ""

    @property
    def fields(self) -> dict[str, Any]:
        """The result as in report.json."""
        return self._fields([rank.fields for rank in self.ranks])

    def _fields(self, ranks: list[dict[str, Any]]) -> dict[str, Any]:
        found = {field.name: getattr(self, field.name) for field in fields(self)} | {"ranks": ranks}
        return {name: value for name, value in found.items() if name != "leg" or value}

    @property
    def told(self) -> dict[str, Any]:
        """The result as report.html shows it: with so many of the ranks that were alike, and the others in words."""
        shown, more = page.told(self.ranks)
        return {**self._fields([rank.fields for rank in shown]), "more": more}

    @property
    def json(self) -> str:
        """The result as `json.dumps` writes it with an indent of 2, in a fraction of the time."""
        # Quotes within a text are escaped: only the key is written so, and each line break is one of the layout.
        before, empty, after = json.dumps(self._fields([]), indent=2).partition('"ranks": []')
        ranks = ",\n    ".join(f"{{\n      {_LINES.encode(rank.fields)[1:-1]}\n    }}" for rank in self.ranks)
        return f"{before}{empty[:-1]}\n    {ranks}\n  ]{after}" if ranks else f"{before}{empty}{after}"


def is_victim(detail: str) -> bool:
    """Return whether a rank's detail only says that it lost another one, which is the cause."""
    from smokehouse_loader import explain  # only where something failed

    known = explain(detail)
    return bool(known) and known[0].failure.victim


def overall(ranks: list[RankVerdict]) -> tuple[str, str]:
    """Return the verdict and detail of a check: those of its worst rank."""
    for verdict in ("failed", "observed", "known-issue"):
        of_kind = [rank for rank in ranks if rank.verdict == verdict]
        if of_kind:
            # Where ranks lost each other, the one that a signal killed is the cause and the others are victims.
            killed = (rank for rank in of_kind if "killed by signal" in rank.detail and not rank.detail.startswith("ended "))
            causes = (rank for rank in of_kind[:SEARCHED] if not is_victim(rank.detail))
            telling = next(killed, None) or next(causes, of_kind[0])
            return verdict, f"{telling.where}: {telling.detail}" if len(ranks) > 1 else telling.detail
    detected = next((rank.detail for rank in ranks if rank.detail.startswith("detected")), ranks[0].detail)
    return "passed", detected


def lock_digests(lock: Path) -> dict[str, str]:
    """Return file name -> SHA-256 of every file of a lock."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(lock.iterdir()) if file.is_file()}


def changed_lock(lock: Path, before: dict[str, str]) -> str:
    """Return what changed in a lock since its digests were `before`, which a run of it does not prove; empty for nothing."""
    try:
        now = lock_digests(lock)
    except OSError as error:
        return f"{error.filename}: {error.strerror}, since the run began; run it again"
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    return f"{lock / changed[0]}: expected the file that the run began with, found another; run it again" if changed else ""


def is_full(document: Any) -> bool:
    """Return whether `document`, a parsed report.json, is of a run that left nothing out; an earlier version's, too."""
    if not isinstance(document, dict) or document.get("partial") or document.get("not_requested"):
        return False
    checks = document.get("checks")
    stages = {check.get("zero_stage") for check in checks if isinstance(check, dict)} if isinstance(checks, list) else set()
    return {2, 3} <= stages


def write(folder: Path, report: dict[str, Any], results: list[Result], logs: Mapping[str, str] | None = None) -> None:
    """Write report.json, report.html and junit.xml to `folder`, each atomically. Raises OSError.

    `logs` are the logs of what failed, by name, which report.html shows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    told = [result.told for result in results]
    # report.json comes last, since others take it as the proof that the run is whole: where it is, the rest is.
    texts = {
        folder / "report.html": [page.render(report | {"checks": told}, table(report, results, colour=False), logs or {})],
        folder / "junit.xml": [_junit(report, results, told)],
        folder / "report.json": _json(report, results),
    }
    for file in texts:
        if file.is_dir():  # no file replaces it, so that the others would be of another run
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
    for file, parts in texts.items():
        _write_whole(file, parts)


def _json(report: dict[str, Any], results: list[Result]) -> Iterator[str]:
    """Yield report.json a check at a time: with thousands of ranks the whole is a hundred megabytes."""
    run = {name: value for name, value in report.items() if name != "checks"}
    yield json.dumps(run | {"checks": []}, indent=2).removesuffix("]\n}")
    for number, result in enumerate(results):
        inner = result.json.replace("\n", "\n    ")
        yield f"{',' if number else ''}\n    {inner}"
    yield "\n  ]\n}\n" if results else "]\n}\n"


def read_logs(folder: Path, jobs: list[str]) -> dict[str, str]:
    """Return the end of each log of `jobs` in the folder of logs, by its path there; empty and unreadable ones are left out."""
    found: dict[str, str] = {}
    for file in sorted(file for job in jobs for file in (folder / job).glob("*.log")):
        try:
            with file.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(0, size - LOG_BYTES))
                text = log.read().decode("utf-8", "replace")
        except OSError:
            continue
        text = page.printable(re.sub(r"\r\n?", "\n", text).expandtabs())  # a progress bar becomes a line for each step
        if text.strip() and len(found) < MAX_LOGS:
            before = f"… {size - LOG_BYTES} bytes before …\n" if size > LOG_BYTES else ""
            found[str(file.relative_to(folder))] = before + text
    return found


def _write_whole(file: Path, parts: Iterable[str]) -> None:
    partial = file.with_name(f".{file.name}.new")  # one name, so that what a killed run left is used again
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as stream:
            stream.writelines(parts)
            stream.flush()
            os.fsync(stream.fileno())
        partial.chmod(0o644)
        partial.replace(file)
    except BaseException:
        partial.unlink()
        raise


def _junit(report: dict[str, Any], results: list[Result], told: list[dict[str, Any]]) -> str:
    bad = [result for result in results if result.verdict == "failed"]
    suite = ElementTree.Element(
        "testsuite",
        name=f"smoke {report['environment']} {report['device']} {report['backend']}",
        tests=str(len(results)),
        failures=str(len(bad)),
        time=f"{report['seconds']:.3f}",
        timestamp=report["started"],
    )
    for result, shown in zip(results, told, strict=True):
        stage = f"zero-{result.zero_stage}" if result.zero_stage else "all"
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=".".join(filter(None, [result.kind, stage, result.leg])),
            name=result.name,
            time=f"{result.seconds:.3f}",
        )
        ranks = [RankVerdict(**rank) for rank in shown["ranks"]]
        said = [f"{rank.where}: {rank.verdict}: {rank.detail}" for rank in ranks]
        text = page.printable("\n".join([*said, *shown["more"], *filter(None, [result.diagnosis])]))
        if result.verdict == "failed":
            ElementTree.SubElement(case, "failure", message=page.printable(result.detail)).text = text
        else:
            ElementTree.SubElement(case, "system-out").text = text
    if report.get("failure"):
        case = ElementTree.SubElement(suite, "testcase", classname="run", name="run", time="0")
        ElementTree.SubElement(case, "failure", message=page.printable(report["failure"]))
        suite.set("tests", str(len(results) + 1))
        suite.set("failures", str(len(bad) + 1))
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def line(result: Result, *, colour: bool) -> str:
    """Return one check as a line of progress, and below it what is known about its failure."""
    stage = f"zero-{result.zero_stage}" if result.zero_stage else "-"
    mark = _paint(f"{page.SYMBOLS[result.verdict]:<5}", result.verdict, colour=colour)
    stage += f" {result.leg}" if result.leg else ""
    kind = "control: " if result.kind == "control" else ""
    said = page.printable(result.detail)
    detail = said if result.verdict == "failed" or len(said) <= 100 else f"{said[:99]}…"
    known = f"\n{'':15}{result.diagnosis}" if result.diagnosis else ""
    return f"  {mark} {stage:<6} {kind + result.name:<39} {result.seconds:5.2f} s  {detail}{known}"


def _unreached(result: Result) -> bool:
    return page.unreached(rank.detail for rank in result.ranks)


def _mark(result: Result | None, width: int, *, colour: bool) -> str:
    if result is None:
        return f"{'-':<{width}}"
    text = "not run" if _unreached(result) else page.SYMBOLS[result.verdict]
    return _paint(f"{text:<{width}}", result.verdict, colour=colour)


def _paint(text: str, verdict: str, *, colour: bool) -> str:
    return f"{COLOURS[verdict]}{text}\033[0m" if colour else text


def table(report: dict[str, Any], results: list[Result], *, colour: bool) -> str:
    """Return all verdicts on one screen: a row per check, a column per stage."""
    columns = page.columns([(result.leg, result.zero_stage) for result in results])
    names = list(dict.fromkeys((result.kind, result.name) for result in results))
    cells = {(result.kind, result.name, result.leg, result.zero_stage): result for result in results}
    plain = {(result.kind, result.name): result for result in results if not result.zero_stage and result.verdict == "passed"}
    plain |= {(result.kind, result.name): result for result in results if not result.zero_stage and result.verdict != "passed"}
    width = max((len(name) for _, name in names), default=10) + 2
    rule = "-" * (width + 10 * len(columns) + 10)
    rows = []
    for kind, title in (("check", "check"), ("control", "control (an injected failure: ok = detected)")):
        of_kind = [name for found, name in names if found == kind]
        if not of_kind:
            continue
        head = "".join(f"{f'ZeRO-{stage}':<10}" for _, stage in columns)
        if any(leg for leg, _ in columns) and kind == "check":
            rows.append(f"{'':<{width}}{''.join(f'{leg:<10}' for leg, _ in columns)}".rstrip())
        rows += [f"{title:<{width}}{head}".rstrip() if kind == "check" else title, rule]
        for name in of_kind:
            row = [cells.get((kind, name, *column)) for column in columns]
            once = plain.get((kind, name))
            marks = [once] if once else row
            texts = [_mark(cell, 10, colour=colour) for cell in marks]
            known = next((cell.detail for cell in marks if cell and cell.verdict != "passed" and not _unreached(cell)), "")
            rows.append(f"{page.printable(name):<{width}}{''.join(texts)}{page.printable(known[:110])}".rstrip())
        rows.append("")
    rows += [page.printable(f"not run: {entry['name']} ({entry['reason']})") for entry in report["not_run"]]
    rows += [
        page.printable(f"variables that were {what}: {', '.join(names)}")
        for what, names in report.get("variables", {}).items()
        if names
    ]
    rows += [page.printable(f"added: {one['name']} {one['version']}, by {one['by']}") for one in report.get("added", [])]
    if report.get("partial"):
        rows.append(page.printable(f"partial run: {report['partial']}; it is no proof of an environment"))
    if missing := report.get("not_requested"):
        rows.append(page.printable(f"not requested: {', '.join(missing)}"))
    versions = report["versions"]
    stack = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "deepspeed") if name in versions)
    counts = {kind: sum(result.kind == kind for result in results) for kind in ("check", "control")}
    verdict = _paint(report["verdict"].upper(), report["verdict"], colour=colour)
    partial = " (partial)" if report.get("partial") or missing else ""
    where = f"{f' {stack}' if stack else ''} on {page.where(report)}"
    rows.append(f"{verdict}{partial}  " + page.printable(f"{report['environment']}:{where}"))
    rows.append(f"{counts['check']} checks and {counts['control']} controls in {report['seconds']:.1f} s")
    return "\n".join(rows)


def main() -> None:
    """Print the table of the report.json that the command line specifies."""
    written = json.loads(Path(sys.argv[1]).read_text())
    results = [Result(**check | {"ranks": [RankVerdict(**rank) for rank in check["ranks"]]}) for check in written["checks"]]
    print(table(written, results, colour=False))


if __name__ == "__main__":
    main()
