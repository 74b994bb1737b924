"""How far the jobs have come: what the supervisor knows of each rank and each process group."""

from dataclasses import dataclass, field

from smoke_tests.plan import Job, Step
from smoke_tests.ranks.nodes import Node


@dataclass
class RankProgress:
    """How far one rank has come. `step` is the step that it is in, or comes to next."""

    number: int
    since: float  # when it last sent something, monotonic
    pid: int | None = None
    key: str = ""  # that its connection for stacks has to have, too
    node: int = 0
    step: int = 0
    began: float | None = None  # when it began its current step, or the last
    begun: int = -1  # the last step that it began
    done: bool = False  # nothing more is expected of it
    error: str = ""
    closed: bool = False
    exit_code: int | None = None
    reaped: float = float("inf")  # when its launcher reported its exit code, by the launcher's clock
    stack: list[str] = field(default_factory=list)


@dataclass
class RunningJob:
    """A job with the nodes that it runs on, each with a launcher, and its ranks."""

    job: Job
    nodes: list[Node]
    ranks: list[RankProgress]
    failure: str = ""  # the launcher's error, when it could not go on
    cause: str = ""  # the first death, where ranks may die
    foreign: bool = False  # whether that was of a kind that no step expects
    ending: float | None = None  # when the remaining ranks are given up
    ends: dict[int, int] = field(default_factory=dict)  # step -> ranks that ended it

    def step(self, rank: RankProgress) -> Step | None:
        """Return the step that a rank is in, None before the first and after the last."""
        return None if rank.began is None else self.job.steps[rank.step] if 0 <= rank.step < len(self.job.steps) else None

    def where(self, rank: RankProgress) -> str:
        """Return where a rank is, as in `zero-3 / train`."""
        step = self.step(rank)
        stage = f"zero-{self.job.stage} / " if self.job.stage is not None else ""
        return f"{stage}{step.name if step else 'start' if rank.began is None else 'end'}"

    def may_end(self) -> bool:
        """Whether all ranks that are not done are in a step that may end them."""
        steps = [self.step(rank) for rank in self.ranks if not rank.done]
        return all(step is not None and step.may_end for step in steps)


def innermost_frames(lines: list[str]) -> str:
    """Return the innermost frames of the thread that runs the step, from a dump of `faulthandler`, in one line."""
    threads: list[list[str]] = [[]]
    for line in lines:
        if "most recent call first" in line:
            threads.append([])
        elif line.lstrip().startswith("File ") and "smoke_tests/ranks/recorder.py" not in line:  # in front of each collective
            threads[-1].append(line.strip().removeprefix("File ").replace('"', "").replace(", line ", ":"))
    own = next((frames for frames in threads if any("smoke_tests" in frame for frame in frames)), [])
    if not own:
        return ", no stack received"
    return ", at " + " < ".join("/".join(frame.split("/")[-3:]) for frame in own[:6])
