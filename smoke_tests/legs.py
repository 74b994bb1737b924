"""The legs of a run: on which process groups it repeats the ZeRO jobs. Imports no torch."""

from dataclasses import dataclass

from smoke_tests.options import InputError

MAX_RANKS = 8  # by default
BACKENDS = ("gloo", "nccl")
# The usual precision for training on each device.
PRECISION = {"cpu": "fp32", "cuda": "bf16"}


@dataclass(frozen=True)
class Leg:
    """A backend and a world size that the ZeRO jobs run with."""

    backend: str  # gloo | nccl
    world_size: int
    gpus: int = 0  # that the ranks use, 0 on a CPU; fewer than ranks where they share them
    nodes: int = 1  # that the ranks are on, the same number on each

    @property
    def name(self) -> str:
        """The leg in a report and as a column of a table."""
        return f"{self.backend} x{self.world_size}"

    def over(self, nodes: int) -> "Leg":
        """Return the leg with the same ranks and GPUs on each of that many nodes."""
        return Leg(self.backend, self.world_size * nodes, self.gpus * nodes, nodes)


def choose(device: str, gpus: int, backend: str | None, processes: int | None) -> tuple[Leg, ...]:
    """Return the legs on one node of a run on `device` (cpu or cuda) with that many GPUs, the first of which is the report's.

    NCCL refuses two ranks on one GPU, and one rank partitions nothing: on one GPU the default is both NCCL with one rank, and
    gloo with two ranks that share the GPU. Raises InputError where the machine has no such leg.
    """
    if device == "cpu":
        if backend == "nccl":
            raise InputError("--backend nccl: requires GPUs, found --device cpu; give --backend gloo or --device cuda")
        return (Leg("gloo", processes or 2),)
    if backend == "gloo":
        ranks = processes or max(2, min(gpus, MAX_RANKS))
        return (Leg("gloo", ranks, min(ranks, gpus)),)
    ranks = processes or min(gpus, MAX_RANKS)
    if ranks > gpus:
        raise InputError(
            f"--nproc {ranks}: NCCL requires one GPU a rank, found {gpus}; give --nproc {gpus} or less, or --backend gloo, "
            "with which ranks share GPUs"
        )
    legs = (Leg("nccl", ranks, ranks),)
    return (*legs, Leg("gloo", 2, 1)) if gpus == 1 and processes is None and backend is None else legs
