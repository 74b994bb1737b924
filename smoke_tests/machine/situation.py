"""What is asked of a machine, and the one list of findings that answers it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from smoke_tests.machine import (
    cgroup,
    clock,
    driver,
    fabric,
    floors,
    gpus,
    health,
    host,
    ops,
    promises,
    remedies,
    software,
    storage,
)
from smoke_tests.machine.finding import Finding
from smoke_tests.machine.gpus import Visible


@dataclass(frozen=True)
class Situation:
    """What will run: on which `device`, with how many `ranks` (None: one on each GPU), in a `container` (None: find out).

    `cuda` is the CUDA release to require where the Python that runs has no torch. `training` also checks what only training
    needs, across machines for example. `kernels` imports torch and returns its architectures. `promised` is how many GPUs the
    machine is to have, `fabric` what connects it to others (one of fabric.KINDS). `measure` starts CUDA in another process.
    """

    device: str = "auto"  # auto | cpu | cuda
    ranks: int | None = None
    container: bool | None = None
    cuda: tuple[int, int] | None = None
    training: bool = True
    kernels: Callable[[], tuple[str, ...]] = software.compiled_kernels
    promised: int | None = None
    fabric: str | None = None
    measure: bool = False

    @property
    def in_container(self) -> bool:
        """Whether remedies are those of a container."""
        if self.container is not None:
            return self.container
        marks = ("/.dockerenv", "/run/.containerenv")
        return remedies.in_pod() or any(Path(mark).exists() for mark in marks)


def findings(situation: Situation, visible: Visible | None = None) -> list[Finding]:
    """Return everything found, in the order in which it should be fixed. `visible` are the GPUs, where they are known."""
    container, found = situation.in_container, software.installed()
    visible = Visible(()) if situation.device == "cpu" else visible or gpus.visible_gpus()
    on_gpu = bool(visible.gpus)
    listed: list[Finding] = []
    if situation.device != "cpu":
        what = f"torch {found.torch}" if found.torch else "the environment"
        cuda, required = found.cuda or situation.cuda, situation.device == "cuda"
        listed += software.built_for(found, len(visible.gpus), required=required)
        listed += driver.check(cuda, what, visible, required=required, container=container)
        listed += gpus.check(visible, situation.ranks)
        listed += promises.check(len(visible.gpus), situation.promised)
        listed += health.check(visible.gpus)
    if on_gpu and found.torch and found.cuda:
        listed += gpus.check_kernels(visible.gpus, situation.kernels(), found.torch, found.cuda)
    if on_gpu:
        listed += software.toolkit(found)
        listed += software.own_adam(found)
        listed += ops.check(found, visible.gpus)
    if on_gpu and found.torch and situation.measure:
        listed += floors.check()
    if situation.training or on_gpu:
        listed += software.c_compiler(found, gpu=on_gpu, container=container)
        listed += software.op_builder(found)
    ranks = (situation.ranks or min(len(visible.gpus), 8)) if on_gpu else None
    listed.append(host.shared_memory(ranks, container=container, training=situation.training))
    listed.append(host.loopback())
    listed.append(host.processes())
    listed += host.limits(container=container, training=situation.training)
    listed.append(host.temporary(container=container))
    if situation.training:
        listed += fabric.check(situation.fabric, container=container)
        listed.append(fabric.interface(fabric.interfaces()))
        listed += storage.check(gpu=on_gpu, container=container)
        listed += cgroup.check(ranks, container=container)
        listed.append(clock.judge(clock.read()))
    return [remedies.of_pod(finding) for finding in listed] if container and remedies.in_pod() else listed
