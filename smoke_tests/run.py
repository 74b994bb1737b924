"""One smoke run from its options to its report: preflight, plan, verdicts."""

import dataclasses
import datetime
import gc
import os
import shutil
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smoke_tests import additions, deferred, distributions, legs, page, preflight, report, selection
from smoke_tests.options import InputError, Options
from smoke_tests.preflight import Resources
from smoke_tests.report import Result
from smoke_tests.report_folder import report_folder
from smoke_tests.workspace import Workspace

NEVER_MEASURED = "never measured with this version: what controls find is observed, not judged"

if TYPE_CHECKING:  # imports torch, which reads the environment that `preflight.prepare_process` sets
    from smoke_tests.plan import Job
    from smoke_tests.ranks.nodes import RemoteNode
    from smoke_tests.ranks.transport import TcpListener
    from smoke_tests.verdicts import Verdicts


def smoke(options: Options, began: float) -> int:
    """Run all checks and controls, print the verdicts and write the report; return the exit code.

    `began` is the start of the process by `time.monotonic`. Raises InputError.
    """
    digests = report.lock_digests(options.lock) if options.lock else None
    started = datetime.datetime.now(datetime.timezone.utc)
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    gc.disable()  # what imports allocate stays; collecting over it again and again takes a tenth of their time
    with report_folder(options.report, options.partial) as work:
        found = preflight.prepare_process(offline=_offline(options), several_nodes=options.nodes > 1)
        gathered = _gather(options, work) if options.nodes > 1 else None
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
            logs=options.report / "logs",
        )
        fatal = _supervise(options, resources, Workspace(work), jobs, verdicts, gathered)
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
            "legs": [_leg(leg) for leg in resources.legs],
            **({"nodes": gathered.report} if gathered else {}),
            "versions": verdicts.versions(),
            "machine": preflight.machine(),
            **({"variables": found} if any(found.values()) else {}),
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


def serve(options: Options) -> int:
    """Run this node's agent, which the supervisor on node 0 tells what to do, and return the exit code. Raises InputError."""
    from smoke_tests.ranks.agent import Agent

    gc.disable()
    preflight.prepare_process(offline=_offline(options), several_nodes=True)
    print(
        f"smoke: {options.environment}, node {options.node_rank} of {options.nodes}: {options.endpoint} supervises", flush=True
    )
    return Agent(options).run()


def _offline(options: Options) -> bool:
    return options.checkpoint is None or Path(options.checkpoint).exists()


def _leg(leg: legs.Leg) -> dict[str, Any]:
    """Return a leg as the report has it."""
    fields = {"name": leg.name, **dataclasses.asdict(leg)}
    return fields if leg.nodes > 1 else {name: value for name, value in fields.items() if name != "nodes"}


def _proven(digests: dict[str, str] | None) -> dict[str, Any]:
    """Return what the report is a proof of: a lock by the `digests` of its files, or, without one, what is installed."""
    if digests is not None:
        found = [{"name": one.name, "version": str(one.version), "by": one.by} for one in additions.find().values()]
        return {"lock": digests, **({"added": found} if found else {})}
    installed = distributions.find()
    notes = [*installed.problems.values(), *installed.notes]
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
    verdicts: "Verdicts",
    gathered: "_Gathered | None",
) -> str:
    """Run the jobs, and return what ended the run early; empty when nothing did."""
    from smoke_tests.ranks.brief import Brief
    from smoke_tests.ranks.supervisor import Supervisor

    trainer = "trainer" in selection.names_in(jobs)
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
        image=options.image,
        nodes=options.nodes,
        host=gathered.own["address"] if gathered else "127.0.0.1",
        network=options.network,
        requested_timeout=options.timeout is not None,
    )
    # CUDA does not survive a fork, and libraries may start it without being asked: on GPUs every process begins with an exec.
    start = "spawn" if resources.device == "cuda" else options.start
    listener, others = (gathered.listener, gathered.others) if gathered else (None, [])
    with Supervisor(brief, start, verdicts.add, listener, others) as supervisor:
        verdicts.places = supervisor.places
        if gathered:
            preflight.use_network(brief.host)
            supervisor.prepare(resources.device, trainer=trainer)
        gc.freeze()  # a collection in a rank would touch, and so copy, every page it shares with this process
        supervisor.start(jobs[0])  # requires no DeepSpeed: it runs while this process imports it
        if start == "fork":
            preflight.import_for_ranks(resources.device, trainer=trainer)
        gc.freeze()
        # Two groups at a time fill the gaps in which one waits for a rank; GPU memory and a fixed port are for one.
        supervisor.run(jobs, slots=1 if resources.device == "cuda" or options.port else 2)
        return supervisor.fatal


@dataclasses.dataclass(frozen=True)
class _Gathered:
    """The nodes of a run: where node 0 listens, its facts, and the others."""

    listener: "TcpListener"
    own: dict[str, Any]
    others: "list[RemoteNode]"

    @property
    def report(self) -> list[dict[str, Any]]:
        """The nodes as in report.json."""
        return [{name: facts[name] for name in ("host", "machine")} for facts in (self.own, *(n.facts for n in self.others))]


def _gather(options: Options, work: Path) -> _Gathered:
    """Wait for the other nodes of the run. Raises InputError where one is missing or does not fit."""
    from smoke_tests.ranks.agent import facts
    from smoke_tests.ranks.gathering import Gathering

    print(
        f"smoke: {options.environment}, node 0 of {options.nodes}: waiting at {options.endpoint} for the others …", flush=True
    )
    listener = _listen(options)
    own = facts(options, _own_address(options.endpoint), 0)
    own["gpus"] = min(own["gpus"], options.processes or legs.MAX_RANKS)
    try:
        return _Gathered(listener, own, Gathering(listener, options.nodes, options.join_timeout).gather(own, work))
    except BaseException:
        listener.close()
        raise


def _listen(options: Options) -> "TcpListener":
    """Listen at the endpoint of a run over nodes. Raises InputError."""
    from smoke_tests.ranks import transport

    host, port = transport.split_endpoint(options.endpoint)
    try:
        return transport.TcpListener(host, port, transport.read_token())
    except OSError as error:
        raise InputError(
            f"--endpoint {options.endpoint}: expected a free port of this node, node 0, found {error.strerror}; give another"
        ) from error


def _own_address(endpoint: str) -> str:
    """Return this node's address as its name in the endpoint means it. Raises InputError."""
    from smoke_tests.ranks import transport

    host, port = transport.split_endpoint(endpoint)
    try:
        return str(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise InputError(f"--endpoint {endpoint}: {error.strerror}; give the name or the address of node 0") from error


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
