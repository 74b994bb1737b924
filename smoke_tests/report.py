"""The evidence that a run leaves: report.json, junit.xml and the table."""

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

SYMBOLS = {"passed": "ok", "failed": "FAIL", "known-issue": "known"}
COLOURS = {"passed": "\033[32m", "failed": "\033[1;31m", "known-issue": "\033[33m"}


@dataclass(frozen=True)
class RankVerdict:
    """One rank's verdict on one check."""

    rank: int
    verdict: str
    detail: str


@dataclass(frozen=True)
class Result:
    """One check or control, over all ranks.

    `seconds` is the slowest rank's. `diagnosis` is what the loader's table says about a failed check or a known issue. `leg` is
    empty where the run has one leg, and for what runs once.
    """

    name: str
    zero_stage: int | None
    kind: str
    verdict: str
    seconds: float
    ranks: list[RankVerdict]
    detail: str
    diagnosis: str = ""
    leg: str = ""

    @property
    def fields(self) -> dict[str, Any]:
        """The result as in report.json."""
        return {name: value for name, value in asdict(self).items() if name != "leg" or value}


def overall(ranks: list[RankVerdict]) -> tuple[str, str]:
    """Return the verdict and detail of a check: those of its worst rank."""
    for verdict in ("failed", "known-issue"):
        of_kind = [rank for rank in ranks if rank.verdict == verdict]
        if of_kind:
            # Where ranks lost each other, the one that a signal killed is the cause and the others are victims.
            telling = next(
                (rank for rank in of_kind if "killed by signal" in rank.detail and not rank.detail.startswith("ended ")),
                of_kind[0],
            )
            return verdict, f"rank {telling.rank}: {telling.detail}" if len(ranks) > 1 else telling.detail
    detected = next((rank.detail for rank in ranks if rank.detail.startswith("detected")), ranks[0].detail)
    return "passed", detected


def lock_digests(lock: Path) -> dict[str, str]:
    """Return file name -> SHA-256 of every file of a lock."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(lock.iterdir()) if file.is_file()}


def write(folder: Path, report: dict[str, Any], results: list[Result]) -> None:
    """Write report.json and junit.xml to `folder`, each atomically. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_whole(
        folder / "report.json", json.dumps(report | {"checks": [result.fields for result in results]}, indent=2) + "\n"
    )
    _write_whole(folder / "junit.xml", _junit(report, results))


def _write_whole(file: Path, text: str) -> None:
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    partial = Path(name)
    try:
        with os.fdopen(descriptor, "w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        partial.chmod(0o644)
        partial.replace(file)
    except BaseException:
        partial.unlink()
        raise


def _junit(report: dict[str, Any], results: list[Result]) -> str:
    bad = [result for result in results if result.verdict == "failed"]
    suite = ElementTree.Element(
        "testsuite",
        name=f"smoke {report['environment']} {report['device']} {report['backend']}",
        tests=str(len(results)),
        failures=str(len(bad)),
        time=f"{report['seconds']:.3f}",
        timestamp=report["started"],
    )
    for result in results:
        stage = f"zero-{result.zero_stage}" if result.zero_stage else "all"
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=".".join(filter(None, [result.kind, stage, result.leg])),
            name=result.name,
            time=f"{result.seconds:.3f}",
        )
        said = [f"rank {rank.rank}: {rank.verdict}: {rank.detail}" for rank in result.ranks]
        text = _printable("\n".join([*said, *filter(None, [result.diagnosis])]))
        if result.verdict == "failed":
            ElementTree.SubElement(case, "failure", message=_printable(result.detail)).text = text
        else:
            ElementTree.SubElement(case, "system-out").text = text
    if report.get("failure"):
        case = ElementTree.SubElement(suite, "testcase", classname="run", name="run", time="0")
        ElementTree.SubElement(case, "failure", message=_printable(report["failure"]))
        suite.set("tests", str(len(results) + 1))
        suite.set("failures", str(len(bad) + 1))
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _printable(text: str) -> str:
    """Replace control characters, which XML 1.0 does not allow."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def line(result: Result, *, colour: bool) -> str:
    """Return one check as a line of progress, and below it what is known about its failure."""
    stage = f"zero-{result.zero_stage}" if result.zero_stage else "-"
    mark = _paint(f"{SYMBOLS[result.verdict]:<5}", result.verdict, colour=colour)
    stage += f" {result.leg}" if result.leg else ""
    kind = "control: " if result.kind == "control" else ""
    detail = result.detail if result.verdict == "failed" or len(result.detail) <= 100 else f"{result.detail[:99]}…"
    known = f"\n{'':15}{result.diagnosis}" if result.diagnosis else ""
    return f"  {mark} {stage:<6} {kind + result.name:<39} {result.seconds:5.2f} s  {detail}{known}"


def _unreached(result: Result) -> bool:
    return all(rank.detail.startswith("not reached") for rank in result.ranks)


def _mark(result: Result | None, width: int, *, colour: bool) -> str:
    if result is None:
        return f"{'-':<{width}}"
    text = "not run" if _unreached(result) else SYMBOLS[result.verdict]
    return _paint(f"{text:<{width}}", result.verdict, colour=colour)


def _paint(text: str, verdict: str, *, colour: bool) -> str:
    return f"{COLOURS[verdict]}{text}\033[0m" if colour else text


def table(report: dict[str, Any], results: list[Result], *, colour: bool) -> str:
    """Return all verdicts on one screen: a row per check, a column per stage."""
    columns = sorted({(result.leg, result.zero_stage) for result in results if result.zero_stage}, key=_column_order(report))
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
        rows += [f"{title:<{width}}{head}" if kind == "check" else title, rule]
        for name in of_kind:
            row = [cells.get((kind, name, *column)) for column in columns]
            once = plain.get((kind, name))
            marks = [once] if once else row
            texts = [_mark(cell, 10, colour=colour) for cell in marks]
            known = next((cell.detail for cell in marks if cell and cell.verdict != "passed" and not _unreached(cell)), "")
            rows.append(f"{name:<{width}}{''.join(texts)}{known[:110]}".rstrip())
        rows.append("")
    rows += [f"not run: {entry['name']} ({entry['reason']})" for entry in report["not_run"]]
    versions = report["versions"]
    stack = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "deepspeed") if name in versions)
    counts = {kind: sum(result.kind == kind for result in results) for kind in ("check", "control")}
    verdict = _paint(report["verdict"].upper(), report["verdict"], colour=colour)
    rows.append(f"{verdict}  {report['environment']}: {stack} on {_where(report)}")
    rows.append(f"{counts['check']} checks and {counts['control']} controls in {report['seconds']:.1f} s")
    return "\n".join(rows)


def _column_order(report: dict[str, Any]) -> Callable[[tuple[str, int | None]], tuple[int, int]]:
    """Return the sort key of columns (leg, stage): legs in the report's order."""
    order = [leg["name"] for leg in report.get("legs", [])]
    return lambda column: (order.index(column[0]) if column[0] in order else -1, column[1] or 0)


def _where(report: dict[str, Any]) -> str:
    """Return the device, precision, backends and world sizes of a run."""
    legs = report.get("legs", [])
    if len(legs) < 2:
        return f"{report['device']}, {report['backend']}, {report['precision']}, {report['world_size']} ranks"
    return f"{report['device']}, {report['precision']}, {' and '.join(map(_leg, legs))}"


def _leg(leg: dict[str, Any]) -> str:
    """Return a leg in words."""
    ranks, gpus = leg["world_size"], leg["gpus"]
    shared = f" on {gpus} GPU{'s' if gpus > 1 else ''}" if 0 < gpus < ranks else ""
    return f"{leg['backend']} with {ranks} rank{'s' if ranks > 1 else ''}{shared}"


def main() -> None:
    """Print the table of the report.json that the command line specifies."""
    written = json.loads(Path(sys.argv[1]).read_text())
    results = [Result(**check | {"ranks": [RankVerdict(**rank) for rank in check["ranks"]]}) for check in written["checks"]]
    print(table(written, results, colour=False))


if __name__ == "__main__":
    main()
