"""Submit jobs to Slurm, follow them, and say why they ended: what Slurm did to them first, then what their nodes said.

See: https://github.com/facebookincubator/submitit
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smokehouse import clock
from smokehouse.console import status
from smokehouse.errors import UserError
from smokehouse.programs import slurm as program
from smokehouse.runs import jobs

# Options of sbatch that are passed on.
PASSED = ("--partition", "--account", "--qos", "--exclude")
_POLL = 1.0  # seconds
_PATIENCE = 30.0  # seconds in which the result of a job appears on a network file system, and Slurm knows its last state
_MOST_ENDED = 3  # times that Slurm does not know a job before it is taken for ended
# Why Slurm ends a job, and what to do; of a job that has ended by itself, its nodes say it.
_BY_SLURM = {
    "TIMEOUT": ("its time limit of {minutes} minutes was reached", "give a longer --time"),
    "DEADLINE": ("its deadline was reached", "give a longer --time"),
    "CANCELLED": ("it was cancelled", "submit it again"),
    "NODE_FAIL": ("Slurm lost {nodes}", "see slurmd there, or give --exclude {nodes}"),
    "BOOT_FAIL": ("Slurm could not start {nodes}", "give --exclude {nodes}"),
    "OUT_OF_MEMORY": ("it took more memory than it was given", "give fewer --nproc, or another --partition"),
    "PREEMPTED": ("another job preempted it", "submit it again, or give another --qos"),
}
# Reasons of Slurm why a job waits that do not pass by themselves.
_NEVER = re.compile("Partition(NodeLimit|TimeLimit|Config)|BadConstraints|Invalid.*|.*Max.*PerJob.*")
_RETURNED = ("Slurm lost one of {nodes}, which runs again", "see why in the log of slurmctld, and submit it again")


@dataclass(frozen=True)
class Allocation:
    """What a job is given: so many nodes with so many GPUs each, for so many minutes; `slurm` are more options of sbatch."""

    name: str
    nodes: int
    gpus: int
    minutes: int
    slurm: Mapping[str, str]


class Submitted:
    """A job that was submitted."""

    def __init__(self, job: Any, allocation: Allocation, *, on_slurm: bool) -> None:
        self._job, self._allocation, self._on_slurm = job, allocation, on_slurm
        self._shown, self._pending, self._unknown, self._state, self._result = 0, "", 0, "", None

    @property
    def number(self) -> str:
        """The number of the job."""
        return str(self._job.job_id)

    def cancel(self) -> None:
        """End the job, wherever it is."""
        self._job.cancel(check=False)

    def follow(self, show: Callable[[str], None]) -> None:
        """Pass on what the job says, line by line, until it has ended."""
        while True:
            ended = self.has_ended()
            self._show(show)
            if ended:
                return
            time.sleep(_POLL)

    def has_ended(self, *, quiet: bool = False) -> bool:
        """Whether the job has ended; says why it does not start yet, unless `quiet`."""
        if self._job.paths.result_pickle.exists():
            return True
        if not self._on_slurm:
            return bool(self._job.done())
        self._state = program.state(self.number)
        self._unknown = 0 if self._state else self._unknown + 1
        if not quiet and self._state == "PENDING" and (why := program.why_pending(self.number)) not in ("None", self._pending):
            self._pending = why
            status(f"job {self.number}: waits ({why}){_advice(why, self.number)}")
        return self._unknown >= _MOST_ENDED or bool(self._state and program.has_ended(self._state))

    def _show(self, show: Callable[[str], None]) -> None:
        """Pass on the whole lines of the log that have not been."""
        try:
            with self._job.paths.stdout.open("rb") as log:
                log.seek(self._shown)
                text = log.read()
        except OSError:
            return
        whole = text[: text.rfind(b"\n") + 1]
        self._shown += len(whole)
        for line in whole.decode(errors="replace").splitlines():
            if not line.startswith("submitit "):
                show(line)

    def result(self) -> Any:
        """Return what the job returned, None where it was ended before it; raises UserError where it raised."""
        until = clock.now() + (_PATIENCE if self._state in ("", "COMPLETED") else 0.0)
        while not self._job.paths.result_pickle.exists():
            if clock.now() > until:
                return None
            time.sleep(_POLL)
        # Of the first task alone: submitit expects one on each node, and waits for results that they do not write.
        first = self._job.task(0)
        if (error := first.exception()) is not None:
            raise UserError(f"job {self.number}: {' '.join(str(error).split())[-400:]}; see what it said above")
        self._result = first.result()
        return self._result

    def ended_by_slurm(self) -> bool:
        """Whether Slurm ended the job: at its time limit, for scancel, with a node that it lost, and so on."""
        return self._settled() in _BY_SLURM

    def cause(self) -> str:
        """Return why the job failed, in one line: what Slurm did to it, or else how the first of its nodes failed."""
        if by_slurm := self._by_slurm(0):
            return by_slurm
        state, said = self._state, getattr(self._result, "cause", "")
        return str(said) or (f"that it ended in state {state}" if state else "that it ended without a result")

    def remedy(self) -> str:
        """Return what to do about it."""
        return self._by_slurm(1) or "see what it said above"

    def _filled(self, text: str) -> str:
        lost = ",".join(program.nodes_down(self.number)) if "{nodes}" in text else ""
        return text.format(minutes=self._allocation.minutes, nodes=lost or "a node")

    def _by_slurm(self, part: int) -> str:
        """Return what Slurm did to the job, with `part` 0, or what to do about it, with 1; empty where it did nothing."""
        state = self._settled()
        if state not in _BY_SLURM:
            return ""
        if state == "NODE_FAIL" and not program.nodes_down(self.number):  # it was started again meanwhile
            return _RETURNED[part].format(nodes=program.nodes_of(self.number) or "its nodes")
        return self._filled(_BY_SLURM[state][part])

    def _settled(self) -> str:
        """Return the last state of a job that has ended, for which Slurm may still be cleaning up."""
        until = clock.now() + _PATIENCE
        while self._on_slurm and not (self._state and program.has_ended(self._state)) and clock.now() < until:
            self._state = program.state(self.number)
            if not self._state:
                break
            time.sleep(_POLL)
        return self._state


def _advice(why: str, job: str) -> str:
    """Return what a person can do about a job that waits; empty where time does it."""
    if why.startswith("JobHeld"):
        return f"; scontrol release {job} starts it"
    return "; it does not start as it is: Ctrl-C cancels it, see scontrol show partition" if _NEVER.fullmatch(why) else ""


@contextmanager
def submitted(
    folder: Path, allocation: Allocation, work: Sequence[Callable[[], Any]], *, on_slurm: bool, at_once: int = 1
) -> Iterator[list[Submitted]]:
    """Submit a job for each piece of work, `at_once` of which run at a time, and cancel what is left of them in the end.

    submitit keeps in `folder`, which all nodes share, what it needs. Raises UserError.
    """
    import submitit

    try:
        executor = submitit.AutoExecutor(folder, cluster="slurm" if on_slurm else "local")
        # The job itself starts srun, so that only its first node needs this program. A smoke test that was begun again would
        # find the report folder of its first half; and SIGUSR2, which submitit requests before the time limit, kills ranks.
        # Slurm sends SIGTERM at the limit anyhow.
        more: dict[str, Any] = {f"slurm_{name}": value for name, value in allocation.slurm.items()}
        if on_slurm:
            # SIGTERM is for the job, which ends what it has started; its shell waits for that.
            more |= {"slurm_use_srun": False, "slurm_array_parallelism": at_once, "slurm_setup": ["trap : TERM"]}
            more |= {"slurm_additional_parameters": {"no-requeue": True, "signal": "B:CONT@1"}}
        more |= {"gpus_per_node": allocation.gpus} if allocation.gpus and on_slurm else {}
        executor.update_parameters(
            name=allocation.name,
            nodes=allocation.nodes,
            tasks_per_node=1,
            timeout_min=allocation.minutes,
            stderr_to_stdout=True,
            **more,
        )
        with program.submitting([*allocation.slurm]), executor.batch():
            found = [executor.submit(one) for one in work]
    except submitit.core.utils.FailedJobError as error:
        said = "; ".join(line.removeprefix("sbatch: ").removeprefix("error: ") for line in str(error).splitlines() if line)
        raise UserError(f"sbatch: {said[:400]}; see sinfo for partitions and limits") from error
    runs = [Submitted(job, allocation, on_slurm=on_slurm) for job in found]
    numbers = f"job {runs[0].number}" if len(runs) == 1 else f"jobs {runs[0].number} to {runs[-1].number}"
    status(f"{numbers}: {'submitted' if on_slurm else 'started on this machine, which has no Slurm'}")
    with jobs.ended_in_order():
        try:
            yield runs
        except BaseException:
            for run in runs:
                run.cancel()
            raise
