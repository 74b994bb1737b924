"""Slurm, which runs jobs on clusters: what submitit does not ask it. Tried with 22.05.

See: https://slurm.schedmd.com/scontrol.html
"""

import os
import re
import shutil
from pathlib import Path

from smokehouse.errors import UserError
from smokehouse.programs.process import Ended, run

_DEADLINE = 60.0  # seconds; a controller that does not answer is not worth waiting for
# States of a job that has not ended.
_ALIVE = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "RESIZING", "SIGNALING"}


def is_here() -> bool:
    """Whether this machine can submit jobs."""
    return shutil.which("sbatch") is not None and shutil.which("scontrol") is not None


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
