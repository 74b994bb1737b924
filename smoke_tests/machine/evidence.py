"""The GPUs of a run as a report has them: driver, cards, and what connects them. Nothing here starts CUDA."""

import hashlib
from dataclasses import asdict
from typing import Any

from smoke_tests.machine import nvml
from smoke_tests.machine.gpus import Gpu, Visible
from smoke_tests.machine.nvml import Card, NvmlError

_UUID_DIGITS = 16  # of its SHA-256: enough to tell two cards apart, and no name of a machine


def of_gpus(visible: Visible) -> dict[str, Any]:
    """Return driver, cards and links of the GPUs that a program sees; what NVML does not say is null or absent."""
    cards = [(gpu, gpu.card) for gpu in visible.gpus if gpu.card]
    described = [_card(gpu, card) for gpu, card in cards]
    found: dict[str, Any] = {"driver": None, "driver_cuda": None, "cards": described, "links": []}
    try:
        driver = nvml.read()
        found |= {"driver": driver.version, "driver_cuda": "{}.{}".format(*driver.cuda)}
        indices = sorted({card.index for _, card in cards})
        found["links"] = [asdict(link) | {"between": list(link.between)} for link in nvml.links(indices)]
    except NvmlError as error:
        found["problem"] = str(error)
    return found


def _card(gpu: Gpu, card: Card) -> dict[str, Any]:
    return {
        "index": card.index,
        "name": card.name,
        "uuid_sha256": hashlib.sha256(card.uuid.encode()).hexdigest()[:_UUID_DIGITS],
        "capability": "{}.{}".format(*card.capability),
        "memory_bytes": gpu.total if card.mig else card.total,
        "mig": card.mig,
    }
