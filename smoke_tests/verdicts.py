"""From the ranks' outcomes to verdicts: when a check is complete, how it is judged, and what a run could not show."""

import contextlib
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from smoke_tests import deferred, expected, report
from smoke_tests.checks import baseline, dtype_of, generation, training
from smoke_tests.expected import Key
from smoke_tests.outcome import Outcome, failed, observed, one_line
from smoke_tests.plan import Job, Plan, Step
from smoke_tests.report import RankVerdict, Result
from smoke_tests.selection import EXTRA, ON_GPUS
from smokehouse_loader.diagnosis import explain, read_log


def _banner() -> str:
    """Return the line in which DeepSpeed logs its version: some failures are those of one release."""
    return f"DeepSpeed info: version={importlib.metadata.version('deepspeed')}"


class Verdicts:
    """The verdicts of a run so far. `on_result(result)` is called for each check that the ranks complete."""

    def __init__(
        self,
        jobs: list[Job],
        plan: Plan,
        precision: str,
        on_result: Callable[[Result], None],
        *,
        observe: bool = False,
        logs: Path | None = None,
    ) -> None:
        """Expect what `jobs`, the chosen part of `plan`, have; the main runs have this `precision` (fp32 or bf16).

        With `observe`, this stack has versions that nothing was measured with: what depends on them is observed, not judged.
        `logs` is the folder of the ranks' logs, whose tracebacks say more than the line that a rank reports.
        """
        self._observe = observe
        self._logs = logs
        self._jobs = jobs
        self._plan = plan
        self._several_legs = len({job.leg for job in plan.jobs}) > 1
        self._dtype = dtype_of(precision)
        self._on_result = on_result
        self._planned = expected.of_jobs(jobs, several_legs=self._several_legs)
        self._outcomes: dict[Key, dict[int, list[tuple[Outcome, float]]]] = {}
        self._results: dict[Key, Result] = {}
        self._job_of: dict[Key, str] = {}
        self._complete: dict[Key, int] = {}  # ranks that gave all their outcomes
        self.places: Mapping[tuple[str, int], int] = {}  # job and rank -> node, of a run over several; the supervisor's

    def _key(self, job: Job, step: Step) -> Key:
        return expected.key_of(job, step, several_legs=self._several_legs)

    def add(self, job: Job, number: int, rank: int, outcome: Outcome, seconds: float) -> None:
        """Take one rank's outcome of a step, and conclude the checks that it completes."""
        key = self._key(job, job.steps[number])
        if key in self._results:
            return
        self._job_of[key] = job.name
        of_rank = self._outcomes.setdefault(key, {}).setdefault(rank, [])
        of_rank.append((outcome, seconds))
        if len(of_rank) == self._planned[key].outcomes:  # counted, as looking at all ranks each time takes their square
            self._complete[key] = self._complete.get(key, 0) + 1
        for candidate in self._affected(key):
            if candidate not in self._results and self._ready(candidate):
                self._conclude(candidate)

    def finish(self, missing: str) -> list[Result]:
        """Return all results, in the plan's order. Ranks that gave no outcome fail with `missing`."""
        for key in self._planned:
            if key not in self._results:
                self._conclude(key, missing)
        return [self._results[key] for key in self._planned]

    def versions(self) -> dict[str, Any]:
        """Return the versions that a rank imported; empty when none reported them."""
        reported = [outcomes.get(0) for key, outcomes in self._outcomes.items() if key.name == "versions"]
        found = next((found[0][0].data.get("versions") for found in reported if found), None)
        return found if isinstance(found, dict) else {}

    def backend(self) -> str | None:
        """Return the process group's backend as torch said it in a rank; None when none reported it."""
        reported = [outcomes.get(0) for key, outcomes in self._outcomes.items() if key.name == "versions"]
        named = (found[0][0].data.get("backend") for found in reported if found)
        return next((name for name in named if isinstance(name, str)), None)

    def memory(self) -> list[dict[str, Any]]:
        """Return the peaks in bytes of each ZeRO stage and rank that reported them."""
        return [
            {"zero_stage": key.stage, "rank": rank, **{f"{kind.lower()}_bytes": size for kind, size in peaks.items()}}
            | ({"leg": key.leg} if key.leg else {})
            for key, outcomes in self._outcomes.items()
            if key.name == "memory"
            for rank, given in sorted(outcomes.items())
            if isinstance(peaks := given[-1][0].data.get("peaks"), dict)
            and peaks
            and all(type(size) is int for size in peaks.values())
        ]

    def not_run(self) -> list[dict[str, str]]:
        """Return what this run does not show, and why; with the leg where there are several."""
        missing = [
            {"name": entry.name, "reason": entry.reason} | ({"leg": entry.leg.name} if entry.leg and self._several_legs else {})
            for entry in self._plan.not_run
        ]
        names = {step.name for job in self._plan.jobs for step in job.steps}
        absent = {
            "LoRA": "requires peft",
            "offload": "requires DeepSpeed's cpu_adam op ahead of time, or on a CPU a C++ compiler, ninja and setuptools",
            "throughput": "requires GPUs",
        }
        said = {entry["name"] for entry in missing}
        absent = {name: reason for name, reason in absent.items() if name not in said}
        run = {key.name for key in self._planned}
        if run & ({*EXTRA} - {*ON_GPUS}):
            missing += [{"name": name, "reason": reason} for name, reason in absent.items() if name not in names]
        if left := [name for name in EXTRA if name in names and name not in run]:
            missing.append({"name": ", ".join(left), "reason": "only with --all"})
        return missing

    def _affected(self, key: Key) -> Iterator[Key]:
        """Yield the checks that one more outcome of `key` may complete."""
        yield key
        if key == key.plain:
            yield from (
                planned
                for planned in self._planned
                if planned.name in ("parity", "generate", "train") and planned.leg == key.leg
            )
        if key.name == "train":
            yield key.of("parity")

    def _ready(self, key: Key) -> bool:
        if key.name == "parity":
            return self._ready(key.of("train")) and self._ready(key.plain)
        whole = self._complete.get(key, 0) == self._planned[key].ranks
        return whole and (key.name not in ("generate", "train") or self._ready(key.plain))

    def _conclude(self, key: Key, missing: str = "") -> None:
        """Judge one check over all its ranks. Ranks that gave no outcome fail with `missing`."""
        planned, plain = self._planned[key], self._last(key.plain, 0)
        judged = [self._judge(key, rank, missing, plain) for rank in range(planned.ranks)]
        if self._observe and any(step.by_version for job in self._jobs for step in job.steps if step.name == key.name):
            judged = [(observed(outcome), seconds) for outcome, seconds in judged]
        job = self._job_of.get(key.of("train") if key.name == "parity" else key, "")
        several = len({*self.places.values()}) > 1
        ranks = [
            RankVerdict(rank, outcome.verdict, outcome.detail, self.places.get((job, rank)) if several else None)
            for rank, (outcome, _) in enumerate(judged)
        ]
        verdict, detail = report.overall(ranks)
        seconds = round(max(seconds for _, seconds in judged), 3)
        diagnosis = self._diagnosis(key, ranks) if verdict != "passed" else ""
        proves = self._proves(key)
        result = Result(key.name, key.stage, planned.kind, verdict, seconds, ranks, detail, diagnosis, proves, key.leg)
        self._results[key] = result
        if not missing or any(self._outcomes.get(key, {}).values()):
            self._on_result(result)
        self._forget(key)

    def _forget(self, key: Key) -> None:
        """Drop what ranks sent for a check that is concluded, unless others are compared with it, or the report has it.

        Of thousands of ranks it would fill the memory of node 0.
        """
        if key.name == "versions":
            self._outcomes[key] = {rank: given for rank, given in self._outcomes.get(key, {}).items() if rank == 0}
        elif key.name == "parity":
            self._outcomes.pop(key.of("train"), None)
        elif key.name not in ("memory", "train") and key != key.plain:
            self._outcomes.pop(key, None)

    def _diagnosis(self, key: Key, ranks: list[RankVerdict]) -> str:
        """Return the known failure that a check is about, or that its ranks' details show; empty where there is none."""
        steps = [step for job in self._jobs for step in job.steps if step.name == key.name]
        known = [step.failure for step in steps if step.failure]
        bad = [rank for rank in ranks if rank.verdict != "passed"]
        causes = [rank for rank in bad[: report.SEARCHED] if not report.is_victim(rank.detail)] or bad
        details = dict.fromkeys(rank.detail for rank in causes)
        known += [found.failure for found in explain("\n".join([_banner(), *details]))]
        if not known and (log := self._log(self._job_of.get(key, ""), causes)):
            known += [found.failure for found in explain(f"{_banner()}\n{log}")]
        return f"{known[0].name}: {known[0].cause} Fix: {known[0].cure}." if known else ""

    def _log(self, job: str, ranks: list[RankVerdict]) -> str:
        """Return the log of the first rank that ended with an exception and has one on this node; empty without one."""
        for rank in ranks:
            log = (self._logs or Path()) / job / f"rank{rank.rank}.log"
            if f"(log: {log})" in rank.detail and log.is_file() and not log.is_symlink():
                with contextlib.suppress(OSError):
                    return read_log(log)
        return ""

    def failed_jobs(self) -> list[str]:
        """Return the names of the jobs in which a check failed, so that their logs are of interest."""
        bad = {key for key, result in self._results.items() if result.verdict == "failed"}
        bad |= {key.of("train") for key in bad if key.name == "parity"}
        return [job.name for job in self._jobs if any(self._key(job, step) in bad for step in job.steps)]

    def _proves(self, key: Key) -> str:
        """Return what a check shows: the first line of the docstring of each function that it consists of."""
        steps: list[Callable[..., Outcome]] = [
            step.run for job in self._jobs for step in job.steps if self._key(job, step) == key
        ]
        functions = dict.fromkeys(steps or [baseline.compare_losses])  # parity has no step
        lines = [deferred.docstring(function).partition("\n")[0] for function in functions]
        return " ".join(filter(None, lines))

    def _judge(self, key: Key, rank: int, missing: str, plain: Outcome) -> tuple[Outcome, float]:
        """Return a rank's outcome and seconds, as `_compared`; data of another form than its check sends is a failure."""
        try:
            return self._compared(key, rank, missing, plain)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as odd:
            return failed(f"expected data that can be compared, found other ({one_line(odd)}); see the rank's log"), 0.0

    def _compared(self, key: Key, rank: int, missing: str, plain: Outcome) -> tuple[Outcome, float]:
        """Return a rank's outcome and seconds: the worst of its steps', compared with the `plain` run where the check does."""
        if key.name == "parity":
            trained = self._last(key.of("train"), rank)
            if "losses" not in plain.data or "losses" not in trained.data:
                return failed(missing or "not reached: no losses to compare"), 0.0
            return baseline.compare_losses(plain, trained, self._dtype), 0.0
        found = self._outcomes.get(key, {}).get(rank, [])
        seconds = sum(seconds for _, seconds in found)
        bad = [outcome for outcome, _ in found if outcome.verdict != "passed"]
        if bad:
            return next((outcome for outcome in bad if outcome.verdict == "failed"), bad[0]), seconds
        if len(found) < self._planned[key].outcomes:
            return failed(missing), seconds
        if key.name == "train":
            return training.compare_gradients(plain, found[0][0], found[-1][0], self._dtype), seconds
        if key.name == "generate":
            if "tokens" not in plain.data:
                return failed("not reached: no plain run to compare with"), seconds
            return generation.compare_tokens(plain, found[-1][0]), seconds
        return found[-1][0], seconds

    def _last(self, key: Key, rank: int) -> Outcome:
        return self._outcomes.get(key, {}).get(rank, [(failed(""), 0.0)])[-1][0]
