"""The files in which the steps of a run meet: what one step writes and another reads, named in one place."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Workspace:
    """The folder that a run deletes when it ends, and the paths below it. Each leg has a folder of its own for what it writes.

    Per ZeRO stage: `save` writes the engine checkpoint and its digests, `train_on` the losses, `resume` reads both, and
    `consolidated` reads the checkpoint and the 16-bit weights. Within a process group only rank 0 writes JSON files.
    """

    root: Path
    leg: str = ""  # the folder of the leg, `root` itself where it is empty

    @property
    def of_leg(self) -> Path:
        """The folder of what differs between legs. Every rank creates it."""
        return self.root / self.leg

    @property
    def synthetic(self) -> Path:
        """The synthetic checkpoint, which is under test where the user gives none."""
        return self.root / "synthetic"

    @property
    def full_width(self) -> Path:
        """A synthetic checkpoint whose first tensor has the shape of real ones, for what depends on that."""
        return self.root / "full-width"

    @property
    def slim(self) -> Path:
        """A synthetic checkpoint with a narrow vision tower, of which most damaged copies are made."""
        return self.root / "slim"

    def damaged(self, damage: str) -> Path:
        """The copy on which `damage`, a name in `damage.DAMAGES`, was done."""
        return self.root / f"damaged-{damage}"

    @property
    def mixed_gradients(self) -> Path:
        """The gradients of the plain run on the mixed-modality batch, as safetensors."""
        return self.of_leg / "mixed-gradients.safetensors"

    def engine_checkpoints(self, stage: int) -> Path:
        """The folder of the stage's engine checkpoints; DeepSpeed writes a folder per tag into it."""
        return self.of_leg / f"zero{stage}"

    def digests(self, stage: int) -> Path:
        """Name -> SHA-256 of each weight in the stage's engine checkpoint, as JSON."""
        return self.engine_checkpoints(stage) / "digests.json"

    def losses(self, stage: int) -> Path:
        """The losses of the steps that follow the engine checkpoint, as a JSON list."""
        return self.engine_checkpoints(stage) / "losses.json"

    @property
    def plain_losses(self) -> Path:
        """The losses of the plain run, as a JSON list."""
        return self.root / "plain-losses.json"

    @property
    def trainer_reference(self) -> Path:
        """What a plain loop with the trainer's settings gives, as a JSON object: losses, and the norm of the moments."""
        return self.root / "trainer-reference.json"

    def trainer(self, stage: int) -> Path:
        """The output folder of the stage's trainer."""
        return self.root / f"zero{stage}-trainer"

    def adapter(self, stage: int) -> Path:
        """The folder of the adapter that was trained under the stage."""
        return self.root / f"zero{stage}-adapter"

    @property
    def real_sizes(self) -> Path:
        """A synthetic checkpoint that merges patches and attends in windows, for images and texts of usual sizes."""
        return self.root / "real-sizes"

    @property
    def kernels(self) -> Path:
        """A synthetic checkpoint of the same kind, whose kernels are compared in two precisions."""
        return self.root / "kernels"

    @property
    def real_losses(self) -> Path:
        """The loss of each sample of usual size in a plain run, as a JSON list."""
        return self.root / "real-losses.json"

    @property
    def ops(self) -> Path:
        """The folder of DeepSpeed ops compiled here. It stays with the report's folder, for later runs."""
        return self.root.parent / "ops"

    def weights_32bit(self, stage: int) -> Path:
        """The folder of the weights consolidated from the stage's engine checkpoint."""
        return self.of_leg / f"zero{stage}-32bit"

    def weights_16bit(self, stage: int) -> Path:
        """The folder of the 16-bit weights that the stage's bf16 engine saved."""
        return self.of_leg / f"zero{stage}-16bit"

    def saved(self, stage: int) -> Path:
        """The folder of the model that the stage's engine trained, as the loader saves it."""
        return self.of_leg / f"zero{stage}-saved"

    def digests_16bit(self, stage: int) -> Path:
        """Name -> SHA-256 of each of those weights, as JSON."""
        return self.weights_16bit(stage) / "digests.json"

    def brief(self, job: str) -> Path:
        """What a launcher that begins with an exec is told, as a pickle."""
        return self.root / f"{job}.brief"

    def collectives(self, job: str, rank: int) -> Path:
        """Which collectives a rank entered last; see `smoke_tests.ranks.recorder`."""
        return self.root / f"{job}-{rank}.collectives"

    def flight(self, job: str) -> Path:
        """What the dumps of torch's flight recorder and the pipes that request them begin with, before the rank's number."""
        return self.root / f"{job}-flight-"

    @property
    def agent_logs(self) -> Path:
        """The folder of the logs of torchrun's agent."""
        return self.root / "agent"
