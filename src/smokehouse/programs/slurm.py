"""Slurm, which runs jobs on clusters: what submitit does not ask it. Tried with 22.05.

See: https://slurm.schedmd.com/scontrol.html
"""

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from smokehouse.errors import UserError
from smokehouse.programs.process import Ended, run

_DEADLINE = 60.0  # seconds; a controller that does not answer is not worth waiting for
# States of a job that has not ended.
_ALIVE = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "RESIZING", "SIGNALING"}
# What a job finds of the job that submitted it: srun would take sizes and places of that one for its own.
_OF_A_JOB = re.compile(
    "SLURM_(JOB|ARRAY|HET|STEP|TASK_PID|TASKS|NTASKS|NPROCS|NNODES|NODE|CPUS|MEM_PER|GPUS|SHARDS|GRES|TRES|RESTART|EXPORT_ENV|"
    "SUBMIT|PROCID|LOCALID|GTIDS|DIST|THREADS|UMASK|SRUN_COMM|LAUNCH_NODE|TOPOLOGY|PRIO|OVERCOMMIT|EXACT|EXCLUSIVE|OPEN_MODE).*"
)
# Options of sbatch that the jobs here depend on, and set in their script, which a variable of the user would override.
_SET = re.compile(
    "SBATCH_(ARRAY_INX|ERROR|EXPORT|GET_USER_ENV|GPUS|GPUS_PER_NODE|GPUS_PER_TASK|GRES|INPUT|JOB_NAME|NO_REQUEUE|OPEN_MODE|OUTPUT|"
    "REQUEUE|SIGNAL|TIMELIMIT|WAIT|WCKEY)"
)


def is_here() -> bool:
    """Whether this machine can submit jobs."""
    return shutil.which("sbatch") is not None and shutil.which("scontrol") is not None


@contextmanager
def submitting(options: Sequence[str] = ()) -> Iterator[None]:
    """Hide from sbatch what it or srun would take for options of the job: SLURM_* of another one, and SBATCH_* of `options`.

    What says where Slurm is and what a site wants, such as SLURM_CONF or SBATCH_RESERVATION, stays.
    """
    given = {f"SBATCH_{option.upper()}" for option in options}
    hidden = {
        name: value for name, value in os.environ.items() if name in given or _SET.fullmatch(name) or _OF_A_JOB.fullmatch(name)
    }
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


def state(job: str) -> str:
    """Return the state of a job, such as RUNNING or TIMEOUT; empty where Slurm does not know it any more."""
    ended = _scontrol("show", "job", job, "--oneliner")
    return "" if ended.code else _field(ended.stdout, "JobState")


def why_pending(job: str) -> str:
    """Return why a job does not run yet, in Slurm's word, such as Resources or PartitionTimeLimit."""
    return _field(_scontrol("show", "job", job, "--oneliner").stdout, "Reason")


def has_ended(state: str) -> bool:
    """Whether a job in that state does not go on."""
    return state not in _ALIVE


def nodes(listed: str) -> list[str]:
    """Return the names of the nodes that SLURM_JOB_NODELIST lists, in the order of their numbers; raises UserError."""
    names = _scontrol("show", "hostnames", listed)
    if names.code or not names.stdout.split():
        raise UserError(
            f"scontrol: expected the nodes of {listed!r}, found none: {names.stderr.strip()}; run it in a job of Slurm"
        )
    return names.stdout.split()


def nodes_of(job: str) -> str:
    """Return the nodes of a job as Slurm lists them, such as gpu[06-07]; empty where it has none."""
    listed = _field(_scontrol("show", "job", job, "--oneliner").stdout, "NodeList")
    return "" if listed == "(null)" else listed


def nodes_down(job: str) -> list[str]:
    """Return the nodes of a job that do not answer."""
    listed = nodes_of(job)
    shown = _scontrol("show", "node", listed, "--oneliner").stdout.splitlines() if listed else []
    return [_field(line, "NodeName") for line in shown if re.match("DOWN|.*[*]|FAIL", _field(line, "State"))]


def first_address(listed: str) -> str:
    """Return the address of the first of the nodes that SLURM_JOB_NODELIST lists; raises UserError."""
    first = nodes(listed)[0]
    address = _field(_scontrol("show", "node", first, "--oneliner").stdout, "NodeAddr")
    return address or first


def _scontrol(*arguments: str) -> Ended:
    return run(["scontrol", *arguments], deadline=_DEADLINE, environ=os.environ, cwd=Path("/"))


def _field(text: str, name: str) -> str:
    return next((word.partition("=")[2] for word in text.split() if word.startswith(f"{name}=")), "")
