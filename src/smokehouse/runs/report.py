"""Read reports of smoke tests.

A report says what one run verified, where it ran and with which versions. It proves something only of the lock and the
image whose digests it contains.

See: smoke_tests/report.schema.json
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from jsonschema.validators import extend

from smokehouse.checkout import Checkout
from smokehouse.console import as_typed
from smokehouse.errors import UserError, single_line
from smokehouse.locks import LOCK_JSON, Lock
from smokehouse.programs.process import run
from smokehouse.storage import files, strict_json

SCHEMA = "smoke_tests/report.schema.json"
_MAX_SIZE = 8 << 20  # bytes; a run of eight ranks reports 0.1 MB
# Schemas call 2.0 an integer, which is equal to 2 in all that compares reports, and another text where they are printed.
_INTEGERS = Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
_Validator = extend(Draft202012Validator, type_checker=_INTEGERS)  # type: ignore[no-untyped-call]
_RENDER_DEADLINE = 60.0  # seconds


@dataclass(frozen=True)
class Report:
    """A valid report: its text as read, and its fields. It is of a passed run of the whole smoke test, but for `read_any`.

    Messages call it `source` and end in `remedy`.
    """

    checkout: Checkout
    source: str
    remedy: str
    text: str
    fields: Mapping[str, Any]

    @property
    def where(self) -> str:
        """The device, precision, and the backend and number of ranks of each leg of the run."""
        fields = self.fields
        if len(self.legs) == 1:
            return f"{fields['device']}, {fields['backend']}, {fields['precision']}, {_ranks(fields)}"
        return f"{fields['device']}, {fields['precision']}, {' and '.join(map(_leg, self.legs))}"

    @property
    def legs(self) -> list[Mapping[str, Any]]:
        """What the ZeRO jobs ran on: backend, world size, and where the report has them, GPUs."""
        return [*self.fields.get("legs", [self.fields])]

    @property
    def on_gpu(self) -> bool:
        """Whether two or more ranks ran on GPUs with NCCL: one rank partitions, reduces and gathers nothing."""
        return self._nccl_ranks > 1

    @property
    def limits(self) -> list[str]:
        """What the run did not prove of a GPU machine, in a few words each."""
        kept = self.fields.get("variables", {}).get("kept", [])
        found = [f"with {', '.join(kept)} set, which may change the outcome"] if kept else []
        if self.on_gpu:
            return found
        nccl = "NCCL with one rank only, which partitions nothing" if self._nccl_ranks else "not on GPUs with NCCL"
        return [nccl, *found]

    @property
    def _nccl_ranks(self) -> int:
        """The largest number of ranks that ran on GPUs with NCCL."""
        of_nccl = [leg["world_size"] for leg in self.legs if leg["backend"] == "nccl" and self.fields["device"] == "cuda"]
        return max(of_nccl, default=0)

    @property
    def known(self) -> list[tuple[str, str, list[str]]]:
        """The known failures of this stack that occurred: check, detail, and the ZeRO stages where it has any."""
        found: dict[tuple[str, str], list[str]] = {}
        for check in self.fields["checks"]:
            if check["verdict"] == "known-issue":
                stages = found.setdefault((check["name"], check["detail"]), [])
                stages += [f"ZeRO-{check['zero_stage']}"] if check["zero_stage"] else []
        return [(name, detail, sorted(stages)) for (name, detail), stages in found.items()]

    @property
    def summary(self) -> str:
        """What the run verified, where and when, in one line."""
        fields = self.fields
        kinds = {kind: sum(check["kind"] == kind for check in fields["checks"]) for kind in ("check", "control")}
        versions = ", ".join(
            f"{name} {fields['versions'][name]}"
            for name in ("torch", "transformers", "deepspeed")
            if fields["versions"].get(name)
        )
        stages = ", ".join(f"ZeRO-{stage}" for stage in sorted({c["zero_stage"] for c in fields["checks"] if c["zero_stage"]}))
        machine, kept = fields["machine"], fields.get("variables", {}).get("kept")
        variables = f", with {', '.join(kept)} set" if kept else ""
        return single_line(
            f"{kinds['check']} checks and {kinds['control']} controls passed{f' under {stages}' if stages else ''}"
            f"{f' with {versions}' if versions else ''} on {self.where}; {machine['cpu']} ({machine['cpus']} CPUs, "
            f"{machine['memory_bytes'] / 1e9:.0f} GB){variables}, {fields['started']}"
        )

    @cached_property
    def table(self) -> str:
        """The report as the smoke test prints it; raises UserError where that fails."""
        # The builder never imports the smoke test, which has the only renderer; its report module needs nothing but Python.
        command = [sys.executable, "-m", "smoke_tests.report", "/dev/stdin"]
        environ, place = {"PYTHONUTF8": "1"}, self.checkout.file("smoke_tests").parent
        ended = run(command, deadline=_RENDER_DEADLINE, environ=environ, cwd=place, stdin=self.text)
        if ended.code:
            raise UserError(f"{self.source}: cannot print the report: {ended.stderr.splitlines()[-1:]}; {self.remedy}")
        return ended.stdout

    def proves(self, lock: Lock, lock_digest: str) -> bool:
        """Return whether the run used `lock`, whose lock.json has the SHA-256 `lock_digest`, with every file of it."""
        digests = self.fields["lock"]
        return all(digests.get(file) == digest for file, digest in {**lock.files, LOCK_JSON: lock_digest}.items())

    def refuse_other_image(self, digest: str, lock_digest: str) -> None:
        """Raise UserError where the run was not in the image `digest`, or that has another lock.json."""
        image, lock = self.fields.get("image"), self.fields["lock"].get(LOCK_JSON)
        if image != digest:
            found = f"one of image {image}" if image else "one of an environment outside an image"
            raise UserError(f"{self.source}: expected a report of image {digest}, found {found}; {self.remedy}")
        if lock != lock_digest:
            raise UserError(
                f"{self.source}: expected a report of {LOCK_JSON} {lock_digest}, found one of {lock}; {self.remedy}"
            )


def _ranks(leg: Mapping[str, Any]) -> str:
    return f"{leg['world_size']} rank{'s' if leg['world_size'] > 1 else ''}"


def _leg(leg: Mapping[str, Any]) -> str:
    """Return a leg in words; ranks that share a GPU are named as such."""
    shared = 0 < leg["gpus"] < leg["world_size"]
    return f"{leg['backend']} with {_ranks(leg)}" + (f" on {leg['gpus']} GPU{'s' if leg['gpus'] > 1 else ''}" if shared else "")


def read(checkout: Checkout, path: Path, environment: str, remedy: str) -> Report:
    """Read the report of `environment` in the file `path`; `remedy` says how to get one.

    Raises UserError where it is not a valid report, of another environment, or of a run that failed or left out checks.
    """
    source = checkout.relative(path)
    report = parse(checkout, _read(path, source, remedy), source, remedy)
    if (found := report.fields["environment"]) != environment:
        raise UserError(f"{source}: expected a report of environment {environment!r}, found one of {found!r}; {remedy}")
    return report


def read_any(checkout: Checkout, path: Path) -> Report:
    """Read the report in the file or folder `path`, whatever its verdict; raises UserError where it is not a valid one."""
    try:
        file = path / "report.json" if path.is_dir() else path
    except OSError:  # a name that is too long
        file = path
    source, remedy = str(file), f"give the report.json of a smoke test, or run {as_typed('smoke')}"
    return _validate(checkout, _read(file, source, remedy), source, remedy)


def parse(checkout: Checkout, data: bytes, source: str, remedy: str) -> Report:
    """Return the report that is `data`; messages call it `source` and end in `remedy`.

    Raises UserError where it is not a valid report, or of a run that had no lock, failed or left out checks.
    """
    report = _validate(checkout, data, source, remedy)
    fields = report.fields
    if fields["lock"] is None:
        prefix = fields["installed"]["prefix"]
        raise UserError(
            f"{source}: expected a report of a lock, found one of {prefix} without a lock, as --here makes; {remedy}"
        )
    if added := fields.get("added"):
        found = ", ".join(f"{one['name']} {one['version']}" for one in added)
        raise UserError(f"{source}: expected a report of a lock alone, found one with {found} added; {remedy}")
    if fields["verdict"] != "passed":
        reason = fields["failure"] or ", ".join(check["name"] for check in fields["checks"] if check["verdict"] == "failed")
        where = fields.get("image") or fields["environment"]
        raise UserError(f"{source}: smoke test of {where} failed ({reason}), so it proves nothing; fix it, then {remedy}")
    if part := _partial(fields):
        fix = f"{remedy}, without --zero, --only and --skip"
        raise UserError(f"{source}: expected a report of all checks, found a partial one, {part}; {fix}")
    return report


def _partial(fields: Mapping[str, Any]) -> str:
    """Return what a partial run left out or was restricted to; empty for a run of all checks."""
    if missing := fields.get("not_requested"):
        return f"without {', '.join(missing)}"
    if options := fields.get("partial"):
        return f"with {options}"
    # Reports of earlier versions do not say so.
    stages = {check["zero_stage"] for check in fields["checks"] if check["zero_stage"]}
    return f"of ZeRO-{min(stages)} alone" if len(stages) == 1 else ""


def _read(path: Path, source: str, remedy: str) -> bytes:
    try:
        with files.open_regular(path) as file:
            return file.read(_MAX_SIZE + 1)
    except FileNotFoundError:
        raise UserError(f"{source}: report not found; {remedy}") from None
    except OSError as error:
        raise UserError(f"{source}: cannot read the report ({error.strerror}); {remedy}") from None


def _validate(checkout: Checkout, data: bytes, source: str, remedy: str) -> Report:
    """Return the report that is `data`; raises UserError where it does not follow the schema."""
    if len(data) > _MAX_SIZE:
        raise UserError(f"{source}: expected a report of at most {_MAX_SIZE >> 20} MiB, found a larger file; {remedy}")
    try:
        fields, text = strict_json.parse(data), data.decode()
    except ValueError as error:
        raise UserError(f"{source}: invalid report: not JSON ({error}); {remedy}") from None
    schema = json.loads(checkout.file(SCHEMA).read_text("utf-8"))
    if wrong := best_match(_Validator(schema).iter_errors(fields)):
        field = ".".join(map(str, wrong.absolute_path)) or "the report"
        raise UserError(f"{source}: invalid report: {field}: {wrong.message[:200]} (see {SCHEMA}); {remedy}")
    return Report(checkout, source, remedy, text, fields)
