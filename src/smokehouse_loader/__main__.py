"""The command line: `python -m smokehouse_loader check PATH`, `explain LOGFILE`, `failures`."""

import argparse
import contextlib
import dataclasses
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smokehouse_loader.errors import LoadError
from smokehouse_loader.failures import FAMILIES, PRINTED, Failure

NOTHING_FOUND = 3  # exit code of `explain`


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code: 0 success, 1 problems found, 2 usage error, 3 no explanation."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "check":
            with _quiet():
                return _check(options.path, options.model_class, options.trust_remote_code, options.json)
        if options.command == "explain":
            return _explain(options.log, options.json)
        return _failures(options.check)
    except OSError as broken:
        return _usage_error(f"{broken.filename or ''}: {broken.strerror or broken}")


def _parser() -> argparse.ArgumentParser:
    description = "Check checkpoints and explain why loading fails."
    parser = argparse.ArgumentParser(prog="python -m smokehouse_loader", description=description)
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="Check that a checkpoint is intact and fits its model class; needs no GPU.")
    check.add_argument("path", type=Path, metavar="PATH", help="Directory of the checkpoint.")
    check.add_argument(
        "--class", dest="model_class", metavar="NAME", help="Class of transformers (default: the one config.json specifies)."
    )
    check.add_argument("--trust-remote-code", action="store_true", help="Run Python code from the checkpoint.")
    explain = commands.add_parser("explain", help="Explain the errors in a training log; exit with 3 if none is known.")
    explain.add_argument("log", type=Path, metavar="LOGFILE", help="Log to search for known failures.")
    table = commands.add_parser("failures", help="Print the known failures as Markdown.")
    table.add_argument("--check", type=Path, metavar="FILE", help="Report whether FILE is up to date; print nothing else.")
    for command in (check, explain):
        command.add_argument("--json", action="store_true", help="Print JSON.")
    return parser


def _usage_error(message: str) -> int:
    print(f"smokehouse_loader: {message}", file=sys.stderr)
    return 2


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' warnings about what it reads, which would mix with the result."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _check(path: Path, model_class: str | None, trust: bool, as_json: bool) -> int:
    if not path.is_dir():
        return _usage_error(f"{path}: not a directory; pass the directory of a checkpoint")
    if not trust and _has_code(path):
        return _usage_error(f"{path}: requires Python code of its own; review it, then add --trust-remote-code")
    result = _result(path, model_class, trust)
    if as_json:
        result["problems"] = [dataclasses.asdict(problem) for problem in result["problems"]]
        print(json.dumps(result, indent=1))
    elif result["ok"]:
        print(f"{path}: {result['tensors']} tensors, {result['elements']} elements, fits {result['class']}")
    else:
        print(*result["problems"], sep="\n")
    return 0 if result["ok"] else 1


def _result(path: Path, model_class: str | None, trust: bool) -> dict[str, Any]:
    """Return what `check --json` prints, with findings as `problems`."""
    from smokehouse_loader.checkpoint import inspect_checkpoint

    checkpoint = inspect_checkpoint(path)
    result: dict[str, Any] = {"path": str(path), "layout": checkpoint.layout, "tensors": len(checkpoint.tensors)}
    result |= {"elements": checkpoint.elements, "files": [file.name for file in checkpoint.files]}
    try:
        from smokehouse_loader.fit import check_checkpoint
        from smokehouse_loader.model_class import read_config

        config = None if checkpoint.problems else read_config(path, trust_remote_code=trust)
        fit = check_checkpoint(checkpoint, model_class, config=config)
        problems = fit.problems
        result |= {"class": fit.class_name, "fits_class": fit.fits_class, "layout_of": fit.layout}
        result |= {"missing": fit.missing, "unexpected": fit.unexpected}
        result["mismatched"] = [dataclasses.asdict(mismatch) for mismatch in fit.mismatched]
    except LoadError as refused:
        problems = refused.findings
    return result | {"ok": not problems, "problems": problems}


def _has_code(path: Path) -> bool:
    try:
        with (path / "config.json").open("rb") as file:
            config = json.loads(file.read(2**20))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and bool(config.get("auto_map"))


def _explain(log: Path, as_json: bool) -> int:
    from smokehouse_loader.diagnosis import ATTACH, explain_log

    explanation = explain_log(log)
    if as_json:
        document = dataclasses.asdict(explanation) | ({} if explanation.found else {"attach": ATTACH})
        print(json.dumps(document, indent=1))
    else:
        print(
            explanation
            if explanation.found
            else f"{log}: no known failure found; docs/known-failures.md lists them\n{explanation}"
        )
    return 0 if explanation.found else NOTHING_FOUND


def _failures(file: Path | None) -> int:
    if file is None:
        print(page(), end="")
        return 0
    if file.read_text("utf-8") == page():
        return 0
    run = f"python -m smokehouse_loader failures > {file}"
    print(f"smokehouse_loader: {file}: out of date; run {run}", file=sys.stderr)
    return 1


def page() -> str:
    """Return the documentation of all known failures, as Markdown."""
    lines = [
        "# Known failures",
        "",
        (
            "Generated from `src/smokehouse_loader/failures/` by `python -m smokehouse_loader failures`; do not "
            "edit. Each is reproduced"
        ),
        (
            "by the named function in `tests/loader/inside/reproductions.py`, or has a public source; a test "
            "finds the texts in the"
        ),
        "programs that print them. To explain a log: `python -m smokehouse_loader explain LOGFILE`.",
        "",
    ]
    for family, failures in FAMILIES.items():
        lines += [f"## {family}", ""]
        for failure in failures:
            lines += _section(failure)
    return "\n".join(lines)


ONLY_ON_GPU = "none: only a GPU shows it, and nobody has seen it here; the source is the public thread"
NOT_REPRODUCED = "none: the source is the public thread, and the text is in the program"


def _section(failure: Failure) -> list[str]:
    """Return the part of the page about one failure."""
    none = ONLY_ON_GPU if failure.only_on_gpu else NOT_REPRODUCED
    texts = dict.fromkeys(sign.text for sign in failure.signs)
    kinds = [" Follows from a failure elsewhere."] * failure.victim + [" Harmless by itself."] * failure.harmless
    optional = {"Told apart by": failure.apart, "Ask": failure.question}
    return [
        f"### {failure.name}",
        "",
        f"{failure.cause}{''.join(kinds)}",
        "",
        f"- **Fix:** {failure.cure[0].upper()}{failure.cure[1:]}.",
        *(
            [f"- **Log:** one of these, where it stands in the context that this failure has ({_PLACEHOLDERS}):"]
            if texts
            else []
        ),
        *(f"    - `` {text} ``{_printers(text)}" for text in texts),
        *([] if texts else ["- **Log:** No message; the loader detects it."]),
        *(f"- **{title}:** {text[0].upper()}{text[1:].rstrip('.')}." for title, text in optional.items() if text),
        f"- **Source:** {failure.source}.",
        f"- **Reproduction:** {f'`{failure.reproduction}`' if failure.reproduction else none}",
        "",
    ]


_PLACEHOLDERS = "`{}` is any text, `{n}` a number, `{w}` a word, `{0}` the shape [0], `{shape}` another"


def _printers(text: str) -> str:
    return f": {', '.join(dict.fromkeys(one.split()[0] for one in PRINTED.get(text, ())))}" if text in PRINTED else ""


if __name__ == "__main__":
    sys.exit(main())
