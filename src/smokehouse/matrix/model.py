"""The cells of a compatibility matrix: three versions, and what was seen of a model with them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

# The packages whose versions make a cell, in the order in which they are shown.
CORE = ("torch", "transformers", "deepspeed")
STAGES: tuple[Literal[2], Literal[3]] = (2, 3)
# The checks of a smoke test that decide on a ZeRO stage. What these need is measured, too, and recorded.
DECISIVE = ("load", "weights", "train", "parity", "resume")
Verdict = Literal["works", "fails", "hangs", "crashes", "not installable"]
Version = Annotated[str, StringConstraints(pattern=r"^[0-9][0-9A-Za-z.!+_-]{0,63}$")]
_Line = Annotated[str, StringConstraints(max_length=2000, pattern=r"^[^\x00-\x1f\x7f]*$")]
_Name = Annotated[str, StringConstraints(max_length=100, pattern=r"^[^\x00-\x1f\x7f]*$")]
_Seconds = Annotated[float, Field(ge=0, lt=1e6)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Versions(_Model):
    """What a cell is of."""

    torch: Version
    transformers: Version
    deepspeed: Version

    def __str__(self) -> str:
        """Return them as one name, which is also that of the cell's folder."""
        return "_".join(f"{name}-{getattr(self, name)}" for name in CORE)

    @property
    def pins(self) -> list[str]:
        """The requirements that ask for exactly these."""
        return [f"{name}=={getattr(self, name)}" for name in CORE]

    @property
    def words(self) -> str:
        """The versions as people write them."""
        return ", ".join(f"{name} {getattr(self, name)}" for name in CORE)


class Check(_Model):
    """One check of the smoke test in a cell: its verdict, and the first line of what it says.

    `failure` is the name of the known failure that a check which did not pass matches, empty without one.
    """

    name: _Name
    zero_stage: Literal[2, 3] | None
    verdict: Literal["passed", "failed", "known-issue", "observed"]
    detail: _Line
    failure: _Name = ""
    seconds: _Seconds


class Stage(_Model):
    """What a ZeRO stage does in a cell: the verdict, the first line of the error, and the known failure that it matches."""

    verdict: Verdict
    error: _Line = ""
    failure: _Name = ""


class Machine(_Model):
    """The hardware that a cell was measured on."""

    architecture: _Name
    cpu: _Name
    cpus: int = Field(gt=0)
    memory_bytes: int = Field(gt=0)


class Cell(_Model):
    """What was measured of one combination of versions, where, when and with which further packages.

    `lock` has the exact version of every package, empty where no such environment can be installed. `disk_bytes` is what the
    environment has on disk that it shares with no other.
    """

    versions: Versions
    python: Version
    device: Literal["cpu", "cuda"]
    backend: Literal["gloo", "nccl", ""]
    precision: Literal["fp32", "bf16", ""]
    ranks: int = Field(ge=0, le=4096)
    zero2: Stage
    zero3: Stage
    checks: list[Check]
    install_seconds: _Seconds
    run_seconds: _Seconds
    disk_bytes: int = Field(ge=0)
    date: Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00$")]
    machine: Machine
    lock: dict[_Name, Version]

    @property
    def key(self) -> tuple[Versions, str, str]:
        """What is measured once: the versions, the Python and the device."""
        return self.versions, self.python, self.device

    @property
    def works(self) -> bool:
        """Whether both ZeRO stages work."""
        return self.zero2.verdict == self.zero3.verdict == "works"

    def stage(self, number: int) -> Stage:
        """Return what ZeRO stage 2 or 3 does."""
        return self.zero2 if number == 2 else self.zero3


class Measured(_Model):
    """The file `matrix/<model>.json`: the cells that were measured, in the order of their versions."""

    format: Literal[1] = 1
    model: _Name
    family: _Name
    cells: list[Cell] = []

    def find(self, versions: Versions, python: str | None = None, device: str | None = None) -> Cell | None:
        """Return the cell of exactly these versions, that of a GPU first; None where it was not measured."""
        found = [
            cell
            for cell in self.cells
            if cell.versions == versions and python in (None, cell.python) and device in (None, cell.device)
        ]
        return max(found, key=lambda cell: (cell.device == "cuda", cell.date), default=None)


def line(text: Any, limit: int = 400) -> str:
    """Return `text` as one printable line of at most `limit` characters."""
    joined = " ".join(str(text).split())
    shown = "".join(character if character.isprintable() else "?" for character in joined)
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"
