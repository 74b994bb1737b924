"""Evidence: a smoke test's report, taken only where it holds for the lock as it lies there."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from smokehouse.checkout import Checkout
from smokehouse.errors import UserError
from smokehouse.locks.model import LOCK_JSON, Lock
from smokehouse.programs.process import run
from smokehouse.storage.files import sha256

_LARGEST = 8 << 20  # bytes; a run of eight ranks reports 0.1 MB
_RENDERING = 60.0  # seconds


@dataclass(frozen=True)
class Report:
    """A report of a passed run: as it was read, its fields, and its table as the smoke test prints it."""

    text: str
    fields: dict[str, Any]
    table: str

    @property
    def where(self) -> str:
        """What the run was on: device, backend, precision and ranks."""
        fields = self.fields
        return f"{fields['device']}, {fields['backend']}, {fields['precision']}, {fields['world_size']} ranks"

    @property
    def on_gpu(self) -> bool:
        """Whether GPUs and NCCL took part."""
        return (self.fields["device"], self.fields["backend"]) == ("cuda", "nccl")

    @property
    def known(self) -> list[tuple[str, str, list[str]]]:
        """The known failures of this stack that the run met: check, detail, and the ZeRO stages where it has any."""
        found: dict[tuple[str, str], list[str]] = {}
        for check in self.fields["checks"]:
            if check["verdict"] == "known-issue":
                stages = found.setdefault((check["name"], check["detail"]), [])
                stages += [f"ZeRO-{check['zero_stage']}"] if check["zero_stage"] else []
        return [(name, detail, sorted(stages)) for (name, detail), stages in found.items()]


def read(checkout: Checkout, name: str, path: Path) -> Report:
    """Read the report `path` of the environment `name`.

    Raises UserError where it is no valid report, of another environment, or of a run that did not pass.
    """
    where = checkout.relative(path)
    cure = f"run nox -s smoke -- {name} and give its report.json with --report"
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
    except OSError as broken:
        raise UserError(f"{where}: cannot be read ({broken.strerror}); {cure}") from None
    if len(data) > _LARGEST:
        raise UserError(f"{where}: larger than {_LARGEST >> 20} MiB and no report; {cure}")
    try:
        text = data.decode()
        fields = json.loads(text)
    except (ValueError, RecursionError) as broken:
        raise UserError(f"{where}: not JSON ({broken}); {cure}") from None
    schema = json.loads((checkout.root / "smoke_tests" / "report.schema.json").read_text())
    if wrong := best_match(Draft202012Validator(schema).iter_errors(fields)):
        raise UserError(f"{where}: no report by its schema: {wrong.json_path}: {wrong.message[:200]}; {cure}")
    if fields["environment"] != name:
        raise UserError(f"{where}: of the environment {fields['environment']!r}, not {name!r}; {cure}")
    if fields["verdict"] != "passed":
        raise UserError(f"{where}: its run failed, so it proves nothing; mend what failed, then {cure}")
    # The one renderer is the smoke test's. It needs nothing that is not here, but is no library of ours to import.
    command = [sys.executable, "-m", "smoke_tests.report", str(path.absolute())]
    rendered = run(command, deadline=_RENDERING, environ={"PYTHONUTF8": "1"}, cwd=checkout.root)
    if rendered.code:
        raise UserError(f"{where}: cannot be shown: {rendered.stderr.splitlines()[-1:]}; {cure}")
    return Report(text, fields, rendered.stdout)


def holds_for(evidence: Report, manifest: Lock, folder: Path) -> bool:
    """Return whether the run was one of the lock in `folder`, every file of it as it lies there now.

    `manifest` has been read from that folder, so that its digests are those of the files beside it.
    """
    wanted = {**manifest.files, LOCK_JSON: sha256((folder / LOCK_JSON).read_bytes())}
    proven = evidence.fields["lock"]
    return all(proven.get(file) == digest for file, digest in wanted.items())


SCHEMA = "smoke_tests/report.schema.json"
_AGAIN = "nox -s smoke -- --image makes one"


def read_report(checkout: Checkout, place: Path, digest: str, lock: str) -> dict[str, Any]:
    """Return the report in the file `place`, seen to be of the image `digest` and the lock.json `lock`, and to have passed.

    Raises UserError.
    """
    try:
        report = json.loads(place.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{place}: there is no report of this image; {_AGAIN}") from None
    except (OSError, ValueError, RecursionError) as broken:
        raise UserError(f"{place}: no report ({broken}); {_AGAIN}") from None
    refuse_report(checkout, report, digest, lock, str(place))
    return dict(report)


def refuse_report(checkout: Checkout, report: Any, digest: str, lock: str, name: str) -> None:
    """Raise UserError where `report`, called `name`, is no report, did not pass, or is of another image or lock."""
    schema = json.loads((checkout.root / SCHEMA).read_text("utf-8"))
    if wrong := next(iter(Draft202012Validator(schema).iter_errors(report)), None):
        where = ".".join(str(part) for part in wrong.absolute_path) or "the report"
        raise UserError(f"{name}: {where}: {wrong.message[:200]}; it is not by {SCHEMA}; {_AGAIN}")
    of = report.get("image")
    if of is None:
        raise UserError(f"{name}: names no image: the smoke test was not run in one; {_AGAIN}")
    if of != digest:
        raise UserError(f"{name}: of the image {of}, not of {digest}; {_AGAIN}")
    if report["lock"].get(LOCK_JSON) != lock:
        raise UserError(f"{name}: of another lock.json than the image's; {_AGAIN}")
    if report["verdict"] != "passed":
        failed = report["failure"] or ", ".join(check["name"] for check in report["checks"] if check["verdict"] == "failed")
        raise UserError(f"{name}: the smoke test of {digest} failed ({failed}); mend that first")


def summary(report: Mapping[str, Any]) -> str:
    """Return what a report proves, where it was seen and when, in one line."""
    kinds = {kind: sum(check["kind"] == kind for check in report["checks"]) for kind in ("check", "control")}
    versions = ", ".join(
        f"{name} {report['versions'][name]}" for name in ("torch", "transformers", "deepspeed") if report["versions"].get(name)
    )
    stages = ", ".join(f"ZeRO-{stage}" for stage in sorted({c["zero_stage"] for c in report["checks"] if c["zero_stage"]}))
    machine = report["machine"]
    return (
        f"{kinds['check']} checks and {kinds['control']} controls passed{f' under {stages}' if stages else ''}"
        f"{f' with {versions}' if versions else ''} on {report['world_size']} ranks, {report['device']}, {report['backend']}, "
        f"{report['precision']}; {machine['cpu']} ({machine['cpus']} CPUs, {machine['memory_bytes'] / 1e9:.0f} GB), "
        f"{report['started']}"
    )
