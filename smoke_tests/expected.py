"""What the report of a run has to have, by its plan: each check and control, with its ranks.

    python -m smoke_tests.expected < REQUEST

REQUEST is a JSON object with `device`, `legs` and `family`, as the arguments of `plan.make`, `versions` of the lock's packages,
and `expectations` as stack.toml has them; the answer is one with the checks that every complete report has. The builder, which
never imports this package, asks so. Imports no torch.
"""

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from packaging.version import Version

from smoke_tests import families, measured, plan, selection, variables
from smoke_tests.legs import PRECISION, Leg
from smoke_tests.options import STAGES

if TYPE_CHECKING:
    from smoke_tests.plan import Job, Step


class Key(NamedTuple):
    """A check or control, as in the report: the stage is None for what runs once, the leg empty where there is only one."""

    name: str
    stage: int | None
    leg: str = ""

    def of(self, name: str) -> "Key":
        """Return another check of the same stage and leg."""
        return self._replace(name=name)

    @property
    def plain(self) -> "Key":
        """The plain run of the same leg."""
        return Key("plain run", None, self.leg)


@dataclass(frozen=True)
class Planned:
    """What the plan says of one check: its kind, how many ranks run it, and how many outcomes each gives.

    `known_issue` is whether it may show a known issue of the stack: it lets its ranks end in any way.
    """

    kind: str
    ranks: int
    outcomes: int
    known_issue: bool = False


def key_of(job: "Job", step: "Step", *, several_legs: bool) -> Key:
    """Return what the report calls a step of a job."""
    return Key(step.name, job.stage if step.staged else None, job.leg.name if several_legs and step.of_leg else "")


def of_jobs(jobs: "Iterable[Job]", *, several_legs: bool) -> dict[Key, Planned]:
    """Return all that `jobs` report, in order. `parity` has no step: it compares `train` with the plain run."""
    planned: dict[Key, Planned] = {}
    for job in jobs:
        for step in job.steps:
            key = key_of(job, step, several_legs=several_legs)
            before = planned.get(key, Planned(step.kind, job.processes, 0))
            known = before.known_issue or step.may_show_known_issue
            planned[key] = Planned(before.kind, before.ranks, before.outcomes + 1, known)
            if step.name == "train":
                planned[key.of("parity")] = Planned("check", job.processes, 1)
    return planned


def complete(device: str, legs: tuple[Leg, ...], expectations: dict[str, Any], family: str) -> dict[Key, Planned]:
    """Return what a run without options on `legs` reports."""
    whole = plan.make(STAGES, legs, device, expectations, family).jobs
    requested = selection.Selection().requested(selection.names_in(whole), device)
    return of_jobs(selection.select(whole, requested), several_legs=len({job.leg for job in whole}) > 1)


def main() -> None:
    """Answer the request on standard input."""
    request = json.loads(sys.stdin.read())
    legs = tuple(Leg(leg["backend"], leg["world_size"], leg["gpus"], leg.get("nodes", 1)) for leg in request["legs"])
    # Of a package that a lock lacks, the newest version is expected, in which no failure is known.
    versions = {name: newest for name, (_, newest) in measured.RANGES.items()}
    versions |= {name: Version(version) for name, version in request["versions"].items()}
    expectations = measured.overridden(families.get(request["family"]), versions, request["expectations"])
    found = complete(request["device"], legs, expectations, request["family"])
    checks = [{"name": key.name, "zero_stage": key.stage, "leg": key.leg, **asdict(planned)} for key, planned in found.items()]
    names = {"names": selection.NAMES, "legs": [leg.name for leg in legs], "precision": PRECISION[request["device"]]}
    prefixes = {"cleared": variables.CLEARED, "kept": variables.NAMED}
    print(json.dumps({"checks": checks, **names, "variables": prefixes}))


if __name__ == "__main__":
    main()
