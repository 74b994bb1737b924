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

from smokehouse_loader import failures
from smokehouse_loader.errors import LoadError


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code: 0 when all is well, 1 when not, 2 for a mistake of the user's."""
    parser = argparse.ArgumentParser(prog="python -m smokehouse_loader", description="Checkpoints, loaded right or explained.")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="whether a checkpoint is sound and fits its class; no GPU is needed")
    check.add_argument("path", type=Path, help="the checkpoint's folder")
    check.add_argument("--class", dest="model_class", metavar="NAME", help="a class of transformers; found out where not given")
    check.add_argument("--trust-remote-code", action="store_true", help="run the code that lies in the checkpoint")
    explain = commands.add_parser("explain", help="what the errors in a training log mean")
    explain.add_argument("log", type=Path, metavar="LOGFILE")
    table = commands.add_parser("failures", help="print the table of known failures as Markdown")
    table.add_argument("--check", type=Path, metavar="FILE", help="only say whether FILE is that page")
    for command in (check, explain):
        command.add_argument("--json", action="store_true", help="print JSON")
    asked = parser.parse_args(arguments)
    try:
        if asked.command == "check":
            with _quiet():
                return _check(asked.path, asked.model_class, asked.trust_remote_code, asked.json)
        if asked.command == "explain":
            return _explain(asked.log, asked.json)
        return _failures(asked.check)
    except OSError as broken:
        print(f"smokehouse_loader: {broken.filename or ''}: {broken.strerror or broken}", file=sys.stderr)
        return 2


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers has warnings of its own about what it reads here; the verdict is what counts."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _check(path: Path, model_class: str | None, trust: bool, as_json: bool) -> int:
    if not path.is_dir():
        print(f"smokehouse_loader: {path} is no folder; give the folder of a checkpoint", file=sys.stderr)
        return 2
    if not trust and _has_code(path):
        cure = "read it, then add --trust-remote-code"
        print(f"smokehouse_loader: {path} brings code of its own, which is not run; {cure}", file=sys.stderr)
        return 2
    from smokehouse_loader.checkpoint import inspect_checkpoint

    checkpoint = inspect_checkpoint(path)
    said: dict[str, Any] = {"path": str(path), "layout": checkpoint.layout, "tensors": len(checkpoint.tensors)}
    said |= {"elements": checkpoint.elements, "files": [file.name for file in checkpoint.files]}
    try:
        from smokehouse_loader.fit import check_checkpoint
        from smokehouse_loader.model_class import read_config

        config = None if checkpoint.problems else read_config(path, trust_remote_code=trust)
        fit = check_checkpoint(checkpoint, model_class, config=config)
        problems = fit.problems
        said |= {"class": fit.class_name, "fits_class": fit.fits_class, "layout_of": fit.layout}
        said |= {"missing": fit.missing, "unexpected": fit.unexpected}
        said["mismatched"] = [dataclasses.asdict(mismatch) for mismatch in fit.mismatched]
    except LoadError as refused:
        problems = refused.findings
    said |= {"ok": not problems, "problems": [dataclasses.asdict(problem) for problem in problems]}
    if as_json:
        print(json.dumps(said, indent=1))
    else:
        for problem in problems:
            print(problem)
        if not problems:
            print(f"{path}: {len(checkpoint.tensors)} tensors, {checkpoint.elements} numbers, fits {said['class']}")
    return 1 if problems else 0


def _has_code(path: Path) -> bool:
    try:
        with (path / "config.json").open("rb") as file:
            config = json.loads(file.read(2**20))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and bool(config.get("auto_map"))


def _explain(log: Path, as_json: bool) -> int:
    from smokehouse_loader.diagnosis import explain_log

    found = explain_log(log)
    if as_json:
        print(json.dumps([dataclasses.asdict(diagnosis) for diagnosis in found], indent=1))
    elif found:
        print("\n\n".join(map(str, found)))
    else:
        print(f"{log}: nothing in it is a failure that is known here; see docs/known-failures.md for those that are")
    return 0 if found else 1


def _failures(file: Path | None) -> int:
    if file is None:
        print(failures.page(), end="")
        return 0
    if file.read_text("utf-8") == failures.page():
        return 0
    print(
        f"smokehouse_loader: {file} is not what is generated; run python -m smokehouse_loader failures > {file}",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
