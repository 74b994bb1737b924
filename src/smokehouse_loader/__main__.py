"""The command line: `python -m smokehouse_loader check PATH`, `explain LOGFILE`, `failures`."""

import argparse
import contextlib
import dataclasses
import errno
import importlib.util
import io
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smokehouse_loader import config_files
from smokehouse_loader.errors import Finding, LoadError
from smokehouse_loader.failures import FAMILIES, PRINTED, Failure
from smokehouse_loader.failures.model import MEASURED
from smokehouse_loader.failures.printed import COMPOSED, RAISED
from smokehouse_loader.safetensors_header import BadFileError

if TYPE_CHECKING:
    from smokehouse_loader.matrix import Cell, Fit

NOTHING_FOUND = 3  # exit code of `explain`
_SHOWN_FITS = 3  # models of which `explain` says what works, too


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code: 0 success, 1 problems found, 2 usage error, 3 no explanation."""
    with contextlib.suppress(ValueError):  # of a thread other than the main one, which cannot set it
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where a parent ignores it, no exit status of a child can be read
    options = _parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may not have the letters of a log
    try:
        if options.command == "check":
            with _quiet():
                return _check(options)
        if options.command == "explain":
            return _explain(options.log, options.matrix, options.json)
        return _failures(options.check)
    except OSError as broken:
        where = f"{broken.filename}: " if broken.filename else ""
        return _usage_error(f"{where}{broken.strerror or broken}; fix it and run it again")


def _parser() -> argparse.ArgumentParser:
    description = "Check checkpoints and explain why loading fails."
    parser = argparse.ArgumentParser(prog="python -m smokehouse_loader", description=description)
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="Check that a checkpoint is intact and fits its model class; needs no GPU.")
    check.add_argument("path", type=Path, metavar="PATH", help="Directory of the checkpoint.")
    check.add_argument(
        "--class", dest="model_class", metavar="NAME", help="Class of transformers (default: the one config.json specifies)."
    )
    check.add_argument("--variant", metavar="NAME", help="Check the files of this variant, such as fp16 (default: none).")
    check.add_argument("--trust-remote-code", action="store_true", help="Run Python code from the checkpoint.")
    _add_signature_options(check)
    explain = commands.add_parser("explain", help="Explain the errors in a training log; exit with 3 if none is known.")
    explain.add_argument("log", type=Path, metavar="LOGFILE", help="Log to search for known failures.")
    table = commands.add_parser("failures", help="Print the known failures as Markdown.")
    table.add_argument("--check", type=Path, metavar="FILE", help="Report whether FILE is up to date; print nothing else.")
    for command in (check, explain):
        command.add_argument(
            "--matrix",
            type=Path,
            metavar="FILE",
            help="Look up the installed versions in these cells (default: the package's).",
        )
        command.add_argument("--json", action="store_true", help="Print JSON.")
    return parser


def _add_signature_options(check: argparse.ArgumentParser) -> None:
    group = check.add_argument_group("signatures", "Requires one of --public-key, --identity and --certificate-chain.")
    group.add_argument(
        "--signature", nargs="?", const="", metavar="FILE", help="Verify this signature first (default: model.sig in PATH)."
    )
    group.add_argument("--public-key", type=Path, metavar="FILE", help="Trusted public key, an elliptic-curve key as PEM.")
    group.add_argument("--identity", metavar="NAME", help="Trusted identity, with --oidc-issuer.")
    group.add_argument("--oidc-issuer", metavar="URL", help="OIDC issuer of the identity.")
    group.add_argument(
        "--certificate-chain", type=Path, nargs="+", default=[], metavar="FILE", help="Certificates that the signer's ends at."
    )


def _usage_error(message: str) -> int:
    print(f"smokehouse_loader: {message}", file=sys.stderr)
    return 2


def _say(text: object, end: str = "\n") -> None:
    """Print a result as far as someone reads it: the exit code is the same if nobody does."""
    if sys.stdout is None:
        return
    try:
        print(text, end=end, flush=True)
    except OSError as broken:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python's own last flush fails
        if broken.errno != errno.EPIPE:
            broken.filename = "standard output"
            raise


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' warnings about what it reads, which would mix with the result."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _check(options: argparse.Namespace) -> int:
    path, trust = options.path, options.trust_remote_code
    if not path.is_dir():
        return _usage_error(f"{path}: not a directory; pass the directory of a checkpoint")
    if absent := [name for name in ("torch", "transformers", "safetensors") if importlib.util.find_spec(name) is None]:
        return _usage_error(
            f"{sys.executable}: check requires torch, transformers and safetensors, found no {' or '.join(absent)}; "
            "run it with the Python of the environment that loads the checkpoint"
        )
    try:
        unsigned = _unsigned(options)
        cells = _cells(options.matrix)
    except ValueError as wrong:
        return _usage_error(str(wrong))
    if not unsigned and not trust and _has_code(path):
        return _usage_error(f"{path}: requires Python code of its own; review it, then add --trust-remote-code")
    if unsigned:
        result: dict[str, Any] = {"path": str(path), "ok": False, "problems": unsigned}
    else:
        result = _result(path, options.model_class, trust, options.variant)
    if options.signature is not None:
        result["signed"] = not unsigned
    fits = [] if unsigned else _fits(cells, [_model_type(path)])  # no file counts before the signature does
    if options.json:
        result |= {"matrix": [fit.fields for fit in fits]}
        result["problems"] = [dataclasses.asdict(problem) for problem in result["problems"]]
        _say(json.dumps(result, indent=1))
    elif result["ok"]:
        signed = ", signature verified" if options.signature is not None else ""
        _say(f"{path}: {result['tensors']} tensors, {result['elements']} elements, fits {result['class']}{signed}")
    else:
        _say("\n".join(map(str, result["problems"])))
    if not options.json and fits:
        _say("\n".join(map(str, fits)))
    return 0 if result["ok"] else 1


def _cells(file: Path | None) -> "list[Cell]":
    """Return the measured cells in `file`, or those of this package. Raises ValueError and OSError."""
    from smokehouse_loader import matrix

    try:
        return matrix.read(file)
    except ValueError as wrong:
        raise ValueError(f"--matrix {file}: {wrong}; pass a file that nox -s docs wrote") from None


def _fits(cells: "list[Cell]", model_types: list[str]) -> "list[Fit]":
    """Return what was measured of models with the installed versions; nothing where the packages are not installed."""
    from smokehouse_loader import matrix

    versions = matrix.installed()
    found = [matrix.fit(cells, name, versions) for name in model_types] if versions else []
    return [fit for fit in found if fit is not None]


def _model_type(path: Path) -> str:
    """Return the model type of a checkpoint, empty where its config.json has none."""
    try:
        return str(config_files.read_object(path / "config.json").get("model_type", ""))
    except BadFileError:
        return ""


def _unsigned(options: argparse.Namespace) -> list[Finding]:
    """Return why the signature does not verify, where one is to be verified. Raises ValueError for a usage error."""
    trusted: dict[str, Any] = {name: getattr(options, name) for name in ("public_key", "identity", "oidc_issuer")}
    trusted["certificate_chain"] = tuple(options.certificate_chain)
    if options.signature is None:
        if given := next((name for name, value in trusted.items() if value), None):
            raise ValueError(f"--{given.replace('_', '-')}: expected --signature beside it; add it")
        return []
    from smokehouse_loader import signature

    return [*signature.problems(options.path, signature.Signer(**trusted, signature=options.signature or None))]


def _result(path: Path, model_class: str | None, trust: bool, variant: str | None) -> dict[str, Any]:
    """Return what `check --json` prints, with findings as `problems`."""
    from smokehouse_loader.checkpoint import inspect_checkpoint

    checkpoint = inspect_checkpoint(path, variant=variant)
    result: dict[str, Any] = {"path": str(path), "layout": checkpoint.layout, "tensors": len(checkpoint.tensors)}
    result |= {"elements": checkpoint.elements, "files": [file.name for file in checkpoint.files]}
    try:
        from smokehouse_loader.fit import check_checkpoint, refuse_unreadable
        from smokehouse_loader.model_class import read_config

        refuse_unreadable(checkpoint)
        config = read_config(path, trust_remote_code=trust)
        fit = check_checkpoint(checkpoint, model_class, config=config)
        problems = (*fit.problems, *config_files.processor_problems(path))
        result |= {"class": fit.class_name, "fits_class": fit.fits_class, "layout_of": fit.layout}
        result |= {"missing": fit.missing, "unexpected": fit.unexpected}
        result["mismatched"] = [dataclasses.asdict(mismatch) for mismatch in fit.mismatched]
    except LoadError as refused:
        problems = refused.findings
    return result | {"ok": not problems, "problems": problems}


def _has_code(path: Path) -> bool:
    """Return whether the checkpoint has code that has to run; without its files there is something else to say first."""
    try:
        config = config_files.read_object(path / "config.json")
        return config_files.needs_code(config) and config_files.config_problem(path) is None
    except BadFileError:
        return False


def _explain(log: Path, matrix: Path | None, as_json: bool) -> int:
    from smokehouse_loader.diagnosis import ATTACH, explain_log, read_log
    from smokehouse_loader.matrix import models_in

    try:
        cells = _cells(matrix)
    except ValueError as wrong:
        return _usage_error(str(wrong))
    explanation = explain_log(log)
    fits = _fits(cells, models_in(cells, read_log(log)))
    if as_json:
        document = dataclasses.asdict(explanation) | ({} if explanation.found else {"attach": ATTACH})
        _say(json.dumps(document | {"matrix": [fit.fields for fit in fits]}, indent=1))
    else:
        _say(
            explanation
            if explanation.found
            else f"{log}: no known failure found; docs/known-failures.md lists them\n{explanation}"
        )
        if len(fits) > _SHOWN_FITS:  # a log that names no model: what works with each of them is no help
            fits = [fit for fit in fits if not fit.cell.works]
        if fits:
            _say("\n" + "\n".join(map(str, fits)))
    return 0 if explanation.found else NOTHING_FOUND


def _failures(file: Path | None) -> int:
    if file is None:
        _say(page(), end="")
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
MEASURED_ELSEWHERE = "none there: its source says where it was measured"


def _section(failure: Failure) -> list[str]:
    """Return the part of the page about one failure."""
    unseen = MEASURED_ELSEWHERE if failure.source.startswith(MEASURED) else NOT_REPRODUCED
    none = ONLY_ON_GPU if failure.only_on_gpu else unseen
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
    places = PRINTED.get(text, ()) or COMPOSED.get(text, {})
    programs = [place.split()[0] for place in places] or ([RAISED[text]] if text in RAISED else [])
    return f": {', '.join(dict.fromkeys(programs))}" if programs else ""


if __name__ == "__main__":
    sys.exit(main())
