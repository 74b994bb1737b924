"""One smoke run from its options to its report: preflight, plan, verdicts."""

import dataclasses
import datetime
import gc
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smoke_tests import additions, deferred, distributions, legs, page, preflight, report, selection
from smoke_tests.options import InputError, Options
from smoke_tests.outcome import Outcome
from smoke_tests.preflight import Resources
from smoke_tests.report import Result
from smoke_tests.report_folder import report_folder
from smoke_tests.workspace import Workspace

NEVER_MEASURED = "never measured with this version: what controls find is observed, not judged"

if TYPE_CHECKING:  # imports torch, which reads the environment that `preflight.prepare_process` sets
    from smoke_tests.plan import Job


def smoke(options: Options, began: float) -> int:
    """Run all checks and controls, print the verdicts and write the report; return the exit code.

    `began` is the start of the process by `time.monotonic`. Raises InputError.
    """
    digests = report.lock_digests(options.lock) if options.lock else None
    started = datetime.datetime.now(datetime.timezone.utc)
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    gc.disable()  # what imports allocate stays; collecting over it again and again takes a tenth of their time
    with report_folder(options.report, options.partial) as work:
        preflight.prepare_process(offline=options.checkpoint is None or Path(options.checkpoint).exists())
        resources = preflight.check(options, work)

        from smoke_tests import plan
        from smoke_tests.verdicts import Verdicts

        expectations, family = options.stack["expectations"], options.stack["model"]["family"]
        wants_liger = bool(options.selection.requested(["liger"], resources.device))
        planned = plan.make(options.stages, resources.legs, resources.device, expectations, family, apply_liger=wants_liger)
        jobs = _chosen(options, resources, planned.jobs)
        deferred.import_all(step.run for job in jobs for step in job.steps)
        missing = selection.not_requested(planned.jobs, jobs, resources.device)
        precision = legs.PRECISION[resources.device]
        verdicts = Verdicts(
            jobs,
            planned,
            precision,
            lambda result: print(report.line(result, colour=colour), flush=True),
            observe=bool(options.beyond),
        )
        fatal = _supervise(options, resources, Workspace(work), jobs, verdicts.add)
        results = verdicts.finish(f"not reached: {fatal or 'an earlier step of its job failed'}")
        if shutil.disk_usage(work).free < 2**20:
            full = f"{options.report}: disk is full; free disk space or give --report another folder"
            fatal = f"{full} ({fatal})" if fatal else full
        if options.lock and digests and (changed := report.changed_lock(options.lock, digests)):
            fatal = f"{changed} ({fatal})" if fatal else changed
        shutil.rmtree(work, ignore_errors=True)  # a full disk must have space for the report
        content = {
            "environment": options.environment,
            **_proven(digests),
            **({"image": options.image} if options.image else {}),
            **({"partial": options.partial} if options.partial else {}),
            "device": resources.device,
            "backend": verdicts.backend() or resources.legs[0].backend,
            "precision": precision,
            "world_size": resources.legs[0].world_size,
            "legs": [{"name": leg.name, **dataclasses.asdict(leg)} for leg in resources.legs],
            "versions": verdicts.versions(),
            "machine": preflight.machine(),
            "gpu": preflight.gpus() if resources.device == "cuda" else None,
            "memory": verdicts.memory(),
            "checkpoint": options.checkpoint or "made",
            "started": started.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - began, 3),
            "verdict": "failed" if fatal or any(result.verdict == "failed" for result in results) else "passed",
            "failure": fatal,
            "not_run": verdicts.not_run()
            + [{"name": f"expectations of {name}", "reason": NEVER_MEASURED} for name in options.beyond],
            **({"not_requested": missing} if missing else {}),
        }
        logs = report.read_logs(options.report / "logs", verdicts.failed_jobs())
        return _publish(options.report, content, results, logs, colour=colour)


def _proven(digests: dict[str, str] | None) -> dict[str, Any]:
    """Return what the report is a proof of: a lock by the `digests` of its files, or, without one, what is installed."""
    if digests is not None:
        found = [{"name": one.name, "version": str(one.version), "by": one.by} for one in additions.find().values()]
        return {"lock": digests, **({"added": found} if found else {})}
    installed = distributions.find()
    notes = [*installed.problems, *installed.notes]
    return {"lock": None, "installed": {"prefix": sys.prefix, "packages": installed.versions, "notes": notes}}


def _chosen(options: Options, resources: Resources, possible: "Sequence[Job]") -> "list[Job]":
    """Return the part of a plan that the user requests. Raises InputError where nothing of it can run here."""
    requested = options.selection.requested(selection.names_in(possible), resources.device)
    if not requested:
        only, skip = (", ".join(names) for names in (options.selection.only, options.selection.skip))
        stages = ", ".join(f"ZeRO-{stage}" for stage in options.stages)
        legs = " and ".join(page.leg_in_words(dataclasses.asdict(leg)) for leg in resources.legs)
        found = (f" in {only}" if only else "") + (f" without {skip}" if skip else "")
        raise InputError(
            f"smoke: expected a check that runs on {resources.device}, {legs} under {stages}, "
            f"found none{found}; choose other names"
        )
    jobs = selection.select(possible, requested)
    if needed := [name for name in selection.names_in(jobs) if name in options.selection.skip]:
        print(f"smoke: not skipped, since others need it: {', '.join(needed)}", flush=True)
    return jobs


def _supervise(
    options: Options,
    resources: Resources,
    workspace: Workspace,
    jobs: "list[Job]",
    on_outcome: "Callable[[Job, int, int, Outcome, float], None]",
) -> str:
    """Run the jobs, and return what ended the run early; empty when nothing did."""
    from smoke_tests import runtime
    from smoke_tests.ranks.brief import Brief
    from smoke_tests.ranks.supervisor import Supervisor

    brief = Brief(
        job=jobs[0],
        address="",
        device=resources.device,
        precision=legs.PRECISION[resources.device],
        timeout=resources.timeout,
        port=options.port,
        source=resources.source or workspace.synthetic,
        workspace=workspace,
        logs=options.report / "logs",
        lock=options.lock,
        stack=options.stack,
    )
    # CUDA does not survive a fork, and libraries may start it without being asked: on GPUs every process begins with an exec.
    start = "spawn" if resources.device == "cuda" else options.start
    with Supervisor(brief, start, on_outcome) as supervisor:
        gc.freeze()  # a collection in a rank would touch, and so copy, every page it shares with this process
        supervisor.start(jobs[0])  # requires no DeepSpeed: it runs while this process imports it
        if start == "fork":
            with preflight.importing("deepspeed"):
                runtime.import_deepspeed(resources.device)
                runtime.import_engine_code()
                if "trainer" in selection.names_in(jobs):
                    runtime.import_trainer()
        gc.freeze()
        # Two groups at a time fill the gaps in which one waits for a rank; GPU memory and a fixed port are for one.
        supervisor.run(jobs, slots=1 if resources.device == "cuda" or options.port else 2)
        return supervisor.fatal


def _publish(folder: Path, content: dict[str, Any], results: list[Result], logs: dict[str, str], *, colour: bool) -> int:
    """Write the report, print the table, and return the exit code. Without a report nothing is proven."""
    where = f"report: {folder / 'report.json'}\npage: {folder / 'report.html'}"
    failure = content["failure"]
    try:
        report.write(folder, content, results, logs)
    except OSError as error:
        content["verdict"] = "failed"
        where = f"{folder}: no report written: {error.strerror}; free disk space or give --report another folder"
        failure = failure or where
    print(f"\n{report.table(content, results, colour=colour)}")
    print(where, flush=True)
    if content["lock"] is None:
        print(f"no lock: this is about {content['installed']['prefix']} as it is now, not about what can be installed again")
    if failure:
        print(f"smoke: {failure}", file=sys.stderr)
    return 0 if content["verdict"] == "passed" else 1
