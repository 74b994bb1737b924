"""Run a smoke test as a job of Slurm over several nodes; on a machine without Slurm, as a process of this one.

submitit submits a job that starts the smoke test on each of its nodes with srun, in an installed environment or in a container.
The nodes, this machine and the report's folder share a file system, as usual on clusters with Slurm.

See: https://github.com/facebookincubator/submitit
"""

import os
import re
import secrets
import shlex
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smokehouse import locks
from smokehouse.checkout import Checkout
from smokehouse.console import status
from smokehouse.errors import UserError
from smokehouse.installs import virtualenv
from smokehouse.programs import slurm as program
from smokehouse.runs import jobs, local, report, targets
from smokehouse.runs.options import pop_option, report_name

CONTAINERS = ("none", "pyxis", "apptainer")
# Options of sbatch that are passed on.
_PASSED = ("--partition", "--account", "--qos", "--exclude")
_FIRST_PORT, _PORTS = 20_000, 30_000
_POLL = 1.0  # seconds
_PATIENCE = 30.0  # seconds in which the result of a job appears on a network file system
_MOST_ENDED = 3  # times that Slurm does not know a job before it is taken for ended
_SRUN = ("srun", "--ntasks-per-node=1")
_ENTRYPOINT = "/opt/smokehouse/entrypoint"


@dataclass(frozen=True)
class Request:
    """What was requested: where the smoke test runs, and on what."""

    environment: str
    nodes: int
    gpus: int
    container: str
    image: str | None
    digest: str | None  # of the image
    minutes: int
    slurm: dict[str, str]  # options of sbatch
    folder: Path  # of the report
    options: tuple[str, ...]  # of the smoke test


@dataclass(frozen=True)
class Job:
    """What the job runs on each node; pickled by submitit."""

    command: tuple[str, ...]
    launcher: tuple[str, ...]  # srun with its options; empty on one machine without Slurm
    place: Path
    token: Path | None

    def __call__(self) -> int:
        """Run it, as a job of Slurm, and return its exit code."""
        environ = local.variables()
        command = [*self.launcher, *self.command]
        if self.token:
            number = int(re.sub(r"\D", "", os.environ["SLURM_JOB_ID"]))
            endpoint = f"{program.first_address(os.environ['SLURM_JOB_NODELIST'])}:{_FIRST_PORT + number % _PORTS}"
            command += ["--endpoint", endpoint]
            environ["SMOKEHOUSE_TOKEN_FILE"] = str(self.token)
        return subprocess.run(command, cwd=self.place, env=environ, check=False).returncode


def smoke(checkout: Checkout, name: str, options: Sequence[str]) -> int:
    """Run the smoke test of `name` as a job, and return its exit code; raises UserError.

    Ends with 0 if the smoke test passed, with 1 if it or the job failed.
    """
    given, rest = targets.split(targets.TARGETS["slurm"], options)
    request = _read(checkout, name, given, rest)
    on_slurm = program.is_here()
    if not on_slurm and (request.nodes > 1 or request.container == "pyxis"):
        raise UserError("--on slurm: expected sbatch and scontrol, found none; run it on a login node of the cluster")
    job = _job(checkout, request, given.get("--prefix"), on_slurm=on_slurm)
    if "--dry-run" in given:
        print(shlex.join([*job.launcher, *job.command]))
        return 0
    with tempfile.TemporaryDirectory(prefix=".smokehouse-slurm-", dir=_parent(request.folder)) as folder:
        if request.nodes > 1:
            job = replace(job, token=_token(Path(folder)))
        return _run(checkout, request, job, Path(folder), on_slurm=on_slurm)


# options


def _read(checkout: Checkout, name: str, given: Mapping[str, str], rest: Sequence[str]) -> Request:
    """Return the request in a command line; raises UserError."""
    options, folder = pop_option(rest, "--report", "a folder")
    for option in ("--bundle", "--python", "--port", "--here"):
        if any(word.split("=")[0] == option for word in options):
            raise UserError(f"{option}: expected no {option} with --on slurm; leave it out")
    container = jobs.one_of("--container", given.get("--container", "none"), CONTAINERS)
    if (container == "none") == ("--image" in given):
        needed = "no --image without --container pyxis or apptainer" if container == "none" else f"--image with {container}"
        raise UserError(f"--container {container}: expected {needed}, found the opposite; give both or neither")
    if container != "none" and "--prefix" in given:
        raise UserError(f"--prefix: expected none with --container {container}, which has its own environment; leave it out")
    digest = re.search(r"sha256:[0-9a-f]{64}$", given.get("--image", ""))
    return Request(
        environment=name,
        nodes=jobs.number("--nodes", given.get("--nodes", "1"), 1, 10_000),
        gpus=jobs.number("--gpus", given.get("--gpus", "8"), 0, 64),
        container=container,
        image=given.get("--image"),
        digest=digest[0] if digest else None,
        minutes=jobs.number("--time", given.get("--time", "60"), 1, 30 * 24 * 60),
        slurm={option[2:]: given[option] for option in _PASSED if option in given},
        folder=Path(folder or checkout.build / "smoke" / report_name(f"{name}-slurm", options)).absolute(),
        options=tuple(options),
    )


def _job(checkout: Checkout, request: Request, prefix: str | None, *, on_slurm: bool) -> Job:
    """Return what each node runs, of an environment that is installed if necessary; raises UserError."""
    locked = locks.load(checkout, request.environment)
    stack = checkout.environment(request.environment) / "stack.toml"
    proven = ["--environment", request.environment, "--stack", str(stack), "--lock", str(locked.files.folder)]
    given = ["--report", str(request.folder)]
    given += ["--device", "cuda", "--nproc", str(request.gpus)] if request.gpus else ["--device", "cpu"]
    given += ["--image", request.digest] if request.digest else []
    given += local.absolute_paths(request.options, local.place_of_smoke_test(checkout))
    place = local.place_of_smoke_test(checkout)
    local.validate(["-m", "smoke_tests", *proven, *given], request.environment, place)
    over = ["--nodes", str(request.nodes)] if request.nodes > 1 else []
    srun = [*_SRUN, f"--nodes={request.nodes}", "--kill-on-bad-exit=1"] if on_slurm else []
    if request.container == "none":
        python = local.installed_in(checkout, Path(prefix), locked) if prefix else virtualenv.ensure(checkout, locked)
        return Job((str(python), "-m", "smoke_tests", *proven, *given, *over), tuple(srun), place, None)
    image, mount = str(request.image), str(_parent(request.folder))
    in_image = (_ENTRYPOINT, "smoke", *given, *over)
    if request.container == "pyxis":
        # Its entrypoint is called by its path: pyxis ignores it, or not, as the site has configured it.
        srun += [f"--container-image={image}", f"--container-mounts={mount}:{mount}", "--no-container-entrypoint"]
        return Job(in_image, tuple(srun), place, None)
    nv = ["--nv"] if request.gpus else []
    return Job(("apptainer", "exec", *nv, "--bind", f"{mount}:{mount}", image, *in_image), tuple(srun), place, None)


def _parent(folder: Path) -> Path:
    """Return the folder that a report's folder is in, made if necessary; raises UserError."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder.parent}: {error.strerror}; give --report a folder that can be written") from error
    return folder.parent


def _token(folder: Path) -> Path:
    """Write the token by which the nodes of this run know each other, for this user alone."""
    file = folder / "token"
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(secrets.token_hex(32))
    return file


# the job


def _run(checkout: Checkout, request: Request, job: Job, folder: Path, *, on_slurm: bool) -> int:
    """Submit the job, print what it says, and return the exit code that follows from its report; raises UserError."""
    import submitit

    before = _report_time(request.folder)
    try:
        executor = submitit.AutoExecutor(folder, cluster="slurm" if on_slurm else "local")
        # The job itself starts srun, so that only its first node needs this program.
        parameters: dict[str, Any] = {f"slurm_{name}": value for name, value in request.slurm.items()}
        parameters |= {"slurm_use_srun": False} if on_slurm else {}
        parameters |= {"gpus_per_node": request.gpus} if request.gpus and on_slurm else {}
        executor.update_parameters(
            name=f"smoke-{request.environment}",
            nodes=request.nodes,
            tasks_per_node=1,
            timeout_min=request.minutes,
            stderr_to_stdout=True,
            **parameters,
        )
        submitted = executor.submit(job)
    except submitit.core.utils.FailedJobError as error:
        said = " ".join(str(error).split())
        raise UserError(f"sbatch: {said[:400]}; see sinfo for partitions and limits") from error
    status(f"job {submitted.job_id}: {'submitted' if on_slurm else 'started on this machine, which has no Slurm'}")
    with jobs.ended_in_order():
        try:
            state = _follow(submitted, on_slurm=on_slurm)
        except BaseException:
            submitted.cancel(check=False)
            raise
    return _conclude(checkout, request, submitted, state, before)


def _report_time(folder: Path) -> int:
    try:
        return (folder / "report.json").stat().st_mtime_ns
    except OSError:
        return 0


def _follow(submitted: Any, *, on_slurm: bool) -> str:
    """Print what a job says until it has ended, and return its last state, empty where Slurm does not know it."""
    shown, pending, unknown, state = 0, "", 0, ""
    while True:
        ended = submitted.paths.result_pickle.exists()
        if on_slurm and not ended:
            state = program.state(submitted.job_id) or ""
            unknown = 0 if state else unknown + 1
            ended = unknown >= _MOST_ENDED or bool(state and program.has_ended(state))
            if state == "PENDING" and (why := program.why_pending(submitted.job_id)) not in ("None", pending):
                pending = why
                status(f"job {submitted.job_id}: waits ({why})")
        elif not ended:
            ended = submitted.done()
        shown = _print_from(submitted.paths.stdout, shown)
        if ended:
            return state
        time.sleep(_POLL)


def _print_from(file: Path, shown: int) -> int:
    """Print the whole lines of a log after the first `shown` bytes, and return how many bytes have been shown."""
    try:
        with file.open("rb") as log:
            log.seek(shown)
            text = log.read()
    except OSError:
        return shown
    whole = text[: text.rfind(b"\n") + 1]
    for line in whole.decode(errors="replace").splitlines():
        if not line.startswith("submitit "):
            print(line, flush=True)
    return shown + len(whole)


def _conclude(checkout: Checkout, request: Request, submitted: Any, state: str, before: int) -> int:
    """Return the exit code of a job that has ended; raises UserError where it has left no report."""
    code = _exit_code(submitted, state)
    if code not in (0, None) and _report_time(request.folder) == before:
        return code  # the smoke test said why: it was refused
    if _report_time(request.folder) == before:
        why = f"in state {state}" if state else "without a result"
        remedy = "give a longer --time" if state == "TIMEOUT" else "see what it said above"
        raise UserError(
            f"job {submitted.job_id}: expected a report in {request.folder}, found that the job ended {why}; {remedy}"
        )
    fields = report.read_any(checkout, request.folder).fields
    if fields["environment"] != request.environment:
        raise UserError(
            f"job {submitted.job_id}: expected a report of {request.environment}, found one of {fields['environment']}; give "
            "another --report"
        )
    return int(fields["verdict"] != "passed" or code not in (0, None))  # a job that failed after its report failed


def _exit_code(submitted: Any, state: str) -> int | None:
    """Return the exit code of the smoke test, None where the job was ended before it."""
    until = time.monotonic() + (_PATIENCE if state in ("", "COMPLETED") else 0.0)
    while not submitted.paths.result_pickle.exists():
        if time.monotonic() > until:
            return None
        time.sleep(_POLL)
    # Of the first task alone: submitit expects one on each node, and waits for results that they do not write.
    first = submitted.task(0)
    if (error := first.exception()) is not None:
        raise UserError(f"job {submitted.job_id}: {' '.join(str(error).split())[-400:]}; see what it said above")
    return int(first.result())
