"""Run a smoke test as a job of Slurm over several nodes; on a machine without Slurm, as a process of this one.

submitit submits a job that starts the smoke test on each of its nodes with srun, in an installed environment or in a container.
The nodes, this machine and the report's folder share a file system, as usual on clusters with Slurm.

See: https://github.com/facebookincubator/submitit
"""

import os
import re
import secrets
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from smokehouse import locks
from smokehouse.checkout import Checkout
from smokehouse.console import as_typed, status
from smokehouse.errors import UserError
from smokehouse.installs import virtualenv
from smokehouse.installs.machine import Finding, parse_findings
from smokehouse.programs import slurm as program
from smokehouse.runs import jobs, local, report, slurm_job, targets
from smokehouse.runs.options import pop_option, report_name
from smokehouse.runs.slurm_job import Job
from smokehouse.runs.slurm_queue import PASSED, Allocation, Submitted, submitted

CONTAINERS = ("none", "pyxis", "apptainer")
_FULL = 1 << 20  # bytes; with less, a disk is full
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
    with _folder(_parent(request.folder)) as folder:
        job = replace(job, reserve=slurm_job.reserve(folder), token=_token(folder) if request.nodes > 1 else None)
        before = _report_time(request.folder)
        with submitted(folder, _allocation(f"smoke-{name}", request), [job], on_slurm=on_slurm) as [run]:
            run.follow(print)
            return _conclude(checkout, request, run, before)


def doctor(checkout: Checkout, name: str, options: Sequence[str]) -> dict[str, list[Finding]] | None:
    """Run the preflight on each node of a job, and return its findings by node; None after `--dry-run`. Raises UserError."""
    measure = ["--measure"] if "--measure" in options else []
    given, rest = targets.split(targets.TARGETS["slurm"], [option for option in options if option != "--measure"])
    if rest:
        raise UserError(f"doctor: expected options of --on slurm, found {rest[0]}; see {as_typed('smoke', '--help')}")
    if "--dry-run" not in given and not program.is_here():
        raise UserError("--on slurm: expected sbatch and scontrol, found none; run it on a login node of the cluster")
    request = replace(_read(checkout, name, given, rest), folder=(checkout.build / "doctor" / f"{name}-slurm").absolute())
    device = ["--device", "cuda", "--gpus", str(request.gpus)] if request.gpus else ["--device", "cpu"]
    job = replace(_preflight(checkout, request, given.get("--prefix"), [*device, *measure, "--json"]), keep=True)
    if "--dry-run" in given:
        print(shlex.join([*job.launcher, *job.command]))
        return None
    with (
        _folder(_parent(request.folder)) as folder,
        submitted(folder, _allocation(f"doctor-{name}", request), [job], on_slurm=True) as [run],
    ):
        run.follow(print)
        result = run.result()
        if result is None or not result.printed:
            raise UserError(f"job {run.number}: expected findings, found {run.cause()}; {run.remedy()}")
        ends = {end.node: end for end in result.ends}
        none = "" if ends else result.refused
        return {
            node: _findings(node, text, ends[node].words if node in ends else none or f"node {node} was lost")
            for node, text in result.printed.items()
        }


def _findings(node: str, text: str, how: str) -> list[Finding]:
    """Return the findings of a node's preflight; where it printed none, that is one."""
    try:
        return parse_findings(text.strip().rpartition("\n")[2])
    except ValueError:
        return [Finding("fail", f"expected findings, found that {how}", node, f"give --exclude {node}, or see its slurmd")]


def _preflight(checkout: Checkout, request: Request, prefix: str | None, options: Sequence[str]) -> Job:
    """Return the job that runs the preflight on each node; raises UserError."""
    if request.container != "none":
        return _in_image(checkout, request, ("doctor", *options), on_slurm=True)
    place = local.place_of_smoke_test(checkout)
    python = _python(checkout, request, prefix)
    return Job((str(python), "-m", "smoke_tests", "preflight", *options), slurm_job.srun(request.nodes), place)


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
        slurm={option[2:]: given[option] for option in PASSED if option in given},
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
    given += jobs.JOIN if request.container != "none" and request.nodes > 1 else ()
    given += local.absolute_paths(request.options, local.place_of_smoke_test(checkout))
    place = local.place_of_smoke_test(checkout)
    local.validate(["-m", "smoke_tests", *proven, *given], request.environment, place)
    given += ["--nodes", str(request.nodes)] if request.nodes > 1 else []
    if request.container != "none":
        return _in_image(checkout, request, ("smoke", *given), on_slurm=on_slurm)
    launcher = slurm_job.srun(request.nodes) if on_slurm else ()
    return Job((str(_python(checkout, request, prefix)), "-m", "smoke_tests", *proven, *given), launcher, place)


def _python(checkout: Checkout, request: Request, prefix: str | None) -> Path:
    """Return the Python of the environment in `prefix`, or of the one that is installed if necessary; raises UserError."""
    locked = locks.load(checkout, request.environment)
    return local.installed_in(checkout, Path(prefix), locked) if prefix else virtualenv.ensure(checkout, locked)


def _in_image(checkout: Checkout, request: Request, command: Sequence[str], *, on_slurm: bool) -> Job:
    """Return the job that runs a command of an image in it on each node; raises UserError."""
    image, mount, place = str(request.image), str(_parent(request.folder)), local.place_of_smoke_test(checkout)
    if request.container == "pyxis":
        # Its entrypoint is called by its path: pyxis ignores it, or not, as the site has configured it.
        container = (f"--container-image={image}", f"--container-mounts={mount}:{mount}", "--no-container-entrypoint")
        return Job((_ENTRYPOINT, *command), slurm_job.srun(request.nodes, *container), place)
    apptainer = ("apptainer", "exec", *(["--nv"] if request.gpus else []), "--bind", f"{mount}:{mount}", image)
    return Job((*apptainer, _ENTRYPOINT, *command), slurm_job.srun(request.nodes) if on_slurm else (), place)


def _allocation(name: str, request: Request) -> Allocation:
    return Allocation(name, request.nodes, request.gpus, request.minutes, request.slurm)


@contextmanager
def _folder(parent: Path) -> Iterator[Path]:
    """Yield a folder for what one job needs, on the disk that all nodes share; raises UserError."""
    try:
        with tempfile.TemporaryDirectory(prefix=".smokehouse-slurm-", dir=parent, ignore_cleanup_errors=True) as folder:
            yield Path(folder)
    except OSError as error:
        raise UserError(f"{error.filename or parent}: {error.strerror}; free disk space, or fix permissions") from error


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


def _report_time(folder: Path) -> int:
    try:
        return (folder / "report.json").stat().st_mtime_ns
    except OSError:
        return 0


def _conclude(checkout: Checkout, request: Request, run: Submitted, before: int) -> int:
    """Return the exit code of a job that has ended; raises UserError where it has left no report."""
    result = run.result()
    code = result.code if result else None
    if _report_time(request.folder) == before:
        full = shutil.disk_usage(_parent(request.folder)).free < _FULL
        remedy = "free disk space, or give --report another folder" if full else run.remedy()
        found = f"a full disk: {run.cause()}" if full else run.cause()
        raise UserError(f"job {run.number}: expected a report in {request.folder}, found {found}; {remedy}")
    fields = report.read_any(checkout, request.folder).fields
    if fields["environment"] != request.environment:
        raise UserError(
            f"job {run.number}: expected a report of {request.environment}, found one of {fields['environment']}; give "
            "another --report"
        )
    if code != 0 and (run.ended_by_slurm() or fields["verdict"] == "passed"):
        status(f"job {run.number}: {run.cause()}; {run.remedy()}")
    return int(fields["verdict"] != "passed" or code != 0)  # a job that failed after its report failed
