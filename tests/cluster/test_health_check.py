"""cluster/slurm/health-check.sh as a prolog of a real slurmd: a node that fails it takes no more jobs."""

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .slurm_cluster import NODES, Cluster

Check = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def check(root: Path, cluster: Cluster, tmp_path: Path) -> Check:
    """Return what runs the script for node n1, with a configuration."""

    def run(conf: str) -> subprocess.CompletedProcess[str]:
        file = tmp_path / "health-check.conf"
        file.write_text(conf)
        environ = cluster.environ | {"HEALTH_CHECK_CONF": str(file), "SLURMD_NODENAME": "n1"}
        script = root / "cluster/slurm/health-check.sh"
        return subprocess.run([str(script)], env=environ, capture_output=True, text=True, timeout=60, check=False)

    return run


def reason(cluster: Cluster, node: str = "n1") -> str:
    """Return why a node is drained; empty where it is not."""
    return cluster.run("sinfo", "-h", "-n", node, "-t", "drain", "-o", "%E").strip()


def test_healthy_node_stays(cluster: Cluster, check: Check) -> None:
    assert check("PREFLIGHT=true").returncode == 0
    assert reason(cluster) == ""


@pytest.mark.parametrize(
    ("preflight", "expected"),
    [
        ("printf '  ok    GPUs: 8\\n  fail  /dev/shm: 64 MiB\\n'; exit 1", "health check: fail /dev/shm: 64 MiB"),
        ("exit 3", "health check:"),
        ("/nonexistent/doctor", "health check cannot run: bash: line 1: /nonexistent/doctor: No such file or directory"),
        ("read -r -t 60 < <(tail -f /dev/null)", "health check took more than 1 s"),
    ],
)
def test_sick_node_is_drained_with_a_reason(cluster: Cluster, check: Check, preflight: str, expected: str) -> None:
    ended = check(f'PREFLIGHT="{preflight}"\nDEADLINE=1')
    assert ended.returncode == 1
    assert ended.stderr.strip() == expected
    assert reason(cluster) == expected


def test_mistake_in_the_configuration_drains_nothing(cluster: Cluster, check: Check) -> None:
    ended = check("")
    assert (ended.returncode, "expected PREFLIGHT, found none" in ended.stderr) == (0, True)
    assert reason(cluster) == ""


@contextlib.contextmanager
def configured(root: Path, cluster: Cluster, folder: Path, conf: str, *lines: str) -> Iterator[None]:
    """Have `lines` in slurm.conf, where SCRIPT is what runs the script with the configuration `conf`."""
    file, script, own = cluster.folder / "slurm.conf", folder / "check", folder / "health-check.conf"
    own.write_text(conf)
    script.write_text(f"#!/bin/sh\nSLURM_CONF={file} HEALTH_CHECK_CONF={own} exec {root / 'cluster/slurm/health-check.sh'}\n")
    script.chmod(0o755)
    before = file.read_text()
    file.write_text("\n".join([before, *lines, ""]).replace("SCRIPT", str(script)))
    try:
        cluster.run("scontrol", "reconfigure")
        yield
    finally:
        file.write_text(before)
        cluster.run("scontrol", "reconfigure")


def test_as_a_prolog_it_keeps_jobs_off_the_node(root: Path, cluster: Cluster, tmp_path: Path) -> None:
    """The job that met the sick node, here the first that it was given, is requeued, and runs on another."""
    sick = tmp_path / "sick"
    conf = f'PREFLIGHT="(set -C; echo $SLURMD_NODENAME > {sick}) 2> /dev/null; test $SLURMD_NODENAME != \\$(cat {sick})"\n'
    with configured(root, cluster, tmp_path, conf, "Prolog=SCRIPT", "PrologFlags=Alloc"):
        job = cluster.run("sbatch", "--parsable", f"--output={os.devnull}", "--wrap=true").strip()
        cluster.wait_until(lambda: cluster.state(job) == "COMPLETED", "the job has run elsewhere")
        node = sick.read_text().strip()
        assert cluster.field(job, "NodeList") != node
        assert "health check:" in reason(cluster, node)


def test_as_a_health_check_it_drains_idle_nodes(root: Path, cluster: Cluster, tmp_path: Path) -> None:
    """Those that fail it alone, before any job meets them."""
    conf = 'PREFLIGHT="echo fail  GPUs: 7; test $SLURMD_NODENAME != n2"\n'
    lines = ("HealthCheckProgram=SCRIPT", "HealthCheckInterval=1", "HealthCheckNodeState=IDLE")
    with configured(root, cluster, tmp_path, conf, *lines):
        cluster.wait_until(lambda: reason(cluster, "n2"), "node n2 is drained")
    assert [reason(cluster, node) for node in NODES] == ["", "health check: fail GPUs: 7", ""]
