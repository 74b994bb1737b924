"""The nodes of a run are alike, agree about the time, and reach each other over the network that was promised."""

import hashlib
import importlib.metadata
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from smoke_tests import report
from smoke_tests.checks.context import RankContext, TrainingState
from smoke_tests.machine import nccl_log
from smoke_tests.machine.host import node_name
from smoke_tests.outcome import Outcome, failed, judged, passed

# Seconds by which clocks may differ: more confuses file times on a shared disk, and with them builds and checkpoints.
MOST_SKEW = 5.0
_ROUNDS = 3
_SAME = ("lock", "image", "python", "packages", "nccl", "kernel's architecture", "environment variables of NCCL")


def nodes(context: RankContext, _: TrainingState) -> Outcome:
    """Check that all nodes have the same lock, image, packages and NCCL settings, and clocks that agree."""
    import torch.distributed as dist

    found: list[dict[str, Any]] = [{} for _ in range(context.world_size)]
    dist.all_gather_object(found, facts(context))
    skew = min(_spread(context) for _ in range(_ROUNDS))
    problems = differences(found)
    if skew > MOST_SKEW:
        problems.append(f"clocks: expected a difference of {MOST_SKEW:.0f} s at most, found {skew:.1f} s; run chrony or ntpd")
    hosts = len({one["node"] for one in found})
    return judged(problems, f"{hosts} nodes alike, clocks within {skew:.3f} s", skew=skew, host=node_name())


def facts(context: RankContext) -> dict[str, Any]:
    """Return what has to be the same for every rank, under the names of `_SAME`, and where it is."""
    packages = sorted(f"{one.metadata['Name']} {one.version}".lower() for one in importlib.metadata.distributions())
    digests = report.lock_digests(context.lock) if context.lock else {}
    variables = {name: value for name, value in os.environ.items() if name.startswith("NCCL_") and name not in _OWN}
    return {
        "node": context.node,
        "host": node_name(),
        "lock": _short("\n".join(f"{name} {digest}" for name, digest in digests.items())),
        "image": context.image or "none",
        "python": platform.python_version(),
        "packages": _short("\n".join(packages)),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if context.device == "cuda" else "none",
        "kernel's architecture": platform.machine(),
        "environment variables of NCCL": " ".join(f"{name}={value}" for name, value in sorted(variables.items())) or "none",
    }


# Those that differ from node to node for a reason: its own address and log.
_OWN = ("NCCL_SOCKET_IFNAME", "NCCL_DEBUG_FILE", "NCCL_HOSTID", "NCCL_TOPO_FILE")


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def differences(found: Sequence[dict[str, Any]]) -> list[str]:
    """Return how ranks differ from the first one, each node once."""
    problems: dict[tuple[int, str], str] = {}
    for one in found:
        for name in _SAME:
            if one[name] != found[0][name]:
                where = f"node {one['node']} ({one['host']})"
                problems.setdefault(
                    (one["node"], name),
                    f"{where}: {name}: expected {found[0][name]} as on node {found[0]['node']}, found {one[name]}; "
                    "start all nodes alike",
                )
    return [*problems.values()]


def _spread(context: RankContext) -> float:
    """Return by how many seconds the ranks' clocks differ when they leave a barrier, which takes a moment itself."""
    import torch.distributed as dist

    dist.barrier()
    times = [0.0] * context.world_size
    dist.all_gather_object(times, time.time())
    return max(times) - min(times)


def network(context: RankContext, _: TrainingState) -> Outcome:
    """Check that data goes from node to node over the network that was promised, as NCCL's log says it."""
    import deepspeed.comm as comm

    if context.leg.backend != "nccl":
        if context.network:
            return failed(
                f"expected NCCL over NET/{context.network}, found {context.leg.backend}; give --device cuda, or no --network"
            )
        return passed(f"{context.leg.backend} over {os.environ.get('GLOO_SOCKET_IFNAME', 'the interface of the host name')}")
    comm.all_reduce(torch.ones(1 << 20, device=context.torch_device))
    torch.cuda.synchronize()
    log = Path(os.environ["NCCL_DEBUG_FILE"])
    try:
        found = nccl_log.parse(log.read_text(errors="replace"))
    except OSError as error:
        return failed(f"{log}: {error.strerror}; expected NCCL's log there, so that its network is known")
    devices = nccl_log.devices()
    if problem := nccl_log.problem(found, context.network, devices):
        return failed(problem)
    unused = f"; unused: {', '.join(devices[:4])}" if devices and nccl_log.SOCKET in found.names else ""
    return passed(f"{found}{unused}", networks=found.names)
