"""`smokehouse smoke --on kubernetes` with the real kubectl, and an API that runs what it is given as pods on this machine."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from smokehouse.runs import manifests
from tests.kubernetes import pods
from tests.kubernetes.api import Cluster, Server
from tests.smoke.conftest import NAME, ROOT, python
from tests.unit.test_cluster_pages import TORCHRUN

IMAGE = f"ghcr.io/owner/{NAME}@sha256:{'a' * 64}"
DEADLINE = 300.0
pytestmark = [
    pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed"),
    pytest.mark.skipif(os.getuid() != 0, reason="namespaces of pods require root"),
]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> pods.Image:
    """Return the environment that is installed here, as an image."""
    prefix = python(ROOT, NAME).parents[1]
    return pods.image_of(ROOT, NAME, prefix, tmp_path_factory.mktemp("image") / "smokehouse")


@pytest.fixture
def cluster(tmp_path: Path, image: pods.Image) -> Cluster:
    """Return a cluster with a claim that all pods share."""
    (tmp_path / "claim").mkdir()
    return Cluster(tmp_path, image, {"smokehouse": tmp_path / "claim"})


def environ(server: Server) -> dict[str, str]:
    """Return the variables with which kubectl finds the cluster."""
    return {**os.environ, "KUBECONFIG": str(server.kubeconfig), "PYTHONPATH": str(ROOT / "src")}


def command(server: Server, *options: str) -> tuple[list[str], dict[str, str]]:
    """Return the command line of a run in a cluster, and its environment."""
    line = [sys.executable, "-m", "smokehouse", "smoke", NAME, "--on", "kubernetes", "--image", IMAGE, "--gpus", "0", *options]
    return line, environ(server)


def smoke(server: Server, *options: str) -> subprocess.CompletedProcess[str]:
    """Run to the end."""
    line, variables = command(server, *options)
    return subprocess.run(line, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=DEADLINE)


def test_what_is_rendered_runs_and_its_report_comes_back(cluster: Cluster, tmp_path: Path) -> None:
    with Server(cluster) as server:
        options = ("--nodes", "2", "--nproc", "1", "--zero", "3", "--only", "nodes,collectives")
        ended = smoke(server, "--report", str(tmp_path / "report"), *options)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["verdict"] == "passed"
    assert report["image"] == f"sha256:{'a' * 64}"
    assert {file.name for file in (tmp_path / "report").iterdir()} >= {"report.html", "junit.xml"}
    assert "smokehouse-report" not in ended.stdout
    assert [node["host"] for node in report["nodes"]] == [pod.name for pod in cluster.pods.values()]
    preflights = [file.read_text() for file in cluster.folder.glob("pods/*/preflight.log")]
    assert ["ok    TRITON_CACHE_DIR: /tmp/triton" in text for text in preflights] == [True, True]
    # Its objects are gone; the runtime, which others may use, stays.
    assert {kind for kind, _ in cluster.objects} == {"pods", "clustertrainingruntimes"}


def test_a_machine_that_is_not_as_promised_is_named(cluster: Cluster) -> None:
    """This one has no GPU: the preflight of the rendered pod fails, and the smoke test does not start."""
    with Server(cluster) as server:
        ended = smoke(server, "--gpus", "8")
    assert ended.returncode == 2
    assert "machine-0: expected a preflight that passes, found NVIDIA driver: not found" in ended.stderr
    assert "request nvidia.com/gpu in resources.limits" in ended.stderr
    assert not list(cluster.folder.glob("pods/*/node.log"))
    assert {kind for kind, _ in cluster.objects} == {"pods", "clustertrainingruntimes"}


def test_the_doctor_examines_each_machine_of_a_job(cluster: Cluster) -> None:
    """None of them has a GPU: all are listed, where a smoke test ends with the first."""
    with Server(cluster) as server:
        options = f"--image {IMAGE} --nodes 2 --kind jobset"
        line = [sys.executable, "-m", "smokehouse", "doctor", NAME, "--json", "--on", "kubernetes", "--options", options]
        ended = subprocess.run(line, cwd=ROOT, env=environ(server), capture_output=True, text=True, timeout=DEADLINE)
    assert ended.returncode == 1, ended.stderr
    machines = json.loads(ended.stdout)["machines"]
    assert list(machines) == ["machine-0", "machine-1"]
    for findings in machines.values():
        failures = {one["where"]: one["what"] for one in findings if one["level"] == "fail"}
        assert failures["GPUs"] == "8 were promised (--gpus), 0 are visible"
        assert {"/dev/shm", "NCCL interface", "HF_HOME"} <= {one["where"] for one in findings}
    assert {kind for kind, _ in cluster.objects} == {"pods"}


def test_a_run_without_a_report_says_so(cluster: Cluster) -> None:
    """A checkpoint that the cluster does not have, which only its nodes can see."""
    with Server(cluster) as server:
        ended = smoke(server, "--nodes", "2", "--kind", "jobset", "--checkpoint", "/cache/missing")
    assert ended.returncode == 2
    assert "expected a report at the end of its log, found none" in ended.stderr
    assert "/cache/missing: folder not found" in ended.stdout


def test_a_job_that_never_starts_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    with Server(cluster) as server:
        line, variables = command(server, "--nodes", "2", "--kind", "jobset")
        process = subprocess.Popen(line, cwd=ROOT, env=variables, stderr=subprocess.PIPE, text=True)
        assert process.stderr
        said = [process.stderr.readline() for _ in range(2)]
        assert "pods of the job, or its admission to a queue" in said[1], said
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=DEADLINE)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in rest
    assert {one["kind"] for one in cluster.created} == {"Secret", "JobSet"}
    assert cluster.objects == {}


@pytest.mark.parametrize(
    ("known", "forbidden", "message"),
    [
        ({"jobsets"}, (), "ClusterTrainingRuntime: expected a cluster that knows it, found none"),
        ({"jobsets", "trainjobs", "clustertrainingruntimes"}, ("clustertrainingruntimes",), "have an administrator apply"),
        ({"jobsets", "trainjobs", "clustertrainingruntimes"}, ("trainjobs",), "kubectl: (Forbidden)"),
    ],
)
def test_what_a_cluster_lacks_is_named(tmp_path: Path, known: set[str], forbidden: tuple[str, ...], message: str) -> None:
    cluster = Cluster(tmp_path, known=frozenset(known), forbidden=frozenset(forbidden))
    with Server(cluster) as server:
        ended = smoke(server)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert {kind for kind, _ in cluster.objects} <= {"clustertrainingruntimes"}


def test_a_cluster_that_does_not_answer(tmp_path: Path) -> None:
    with Server(Cluster(tmp_path)) as server:
        pass
    ended = smoke(server)
    assert ended.returncode == 2
    assert "refused" in ended.stderr


def test_the_files_train_over_two_pods(cluster: Cluster) -> None:
    """As people apply them, but for GPUs: the pods find each other by name, and torchrun by the variables of the file."""
    shutil.copy(ROOT / "cluster/train.py", cluster.volumes["smokehouse"])
    [document] = manifests.build(ROOT / "cluster/kubernetes/jobset/base")
    on_cpu(document)
    with Server(cluster) as server:
        create = ["kubectl", "create", "-f", "-"]
        subprocess.run(
            create, input=json.dumps(document), text=True, check=True, env=environ(server), timeout=60, capture_output=True
        )
        with cluster.changed:
            ended = cluster.changed.wait_for(lambda: conditions(cluster), timeout=DEADLINE)
        assert ended
    logs = {log.parent.name[-1]: log.read_text() for log in cluster.folder.glob("pods/*/node.log")}
    assert [one["type"] for one in conditions(cluster)] == ["Completed"], logs
    assert set(logs) == {"0", "1"}
    assert "2 ranks on 2 nodes: loss" in logs["0"]


def conditions(cluster: Cluster) -> list[dict[str, str]]:
    """Return how the job ended; nothing while it runs."""
    jobs = [one for (plural, _), one in cluster.objects.items() if plural in ("trainjobs", "jobsets")]
    found: list[dict[str, str]] = jobs[0].get("status", {}).get("conditions", []) if jobs else []
    return found


def on_cpu(document: dict[str, Any]) -> None:
    """Leave out what this machine has not: GPUs, and so many processes on each node."""
    pod = manifests.pod_of(document)
    pod["initContainers"][0]["args"] = ["--device", "cpu"]
    manifests.set_variable(pod["containers"][0], "PET_NPROC_PER_NODE", "1")


def test_torchrun_knows_the_options_of_pages_and_tasks() -> None:
    """Those that tests/unit/test_cluster_pages.py finds in them."""
    code = "import sys; from torch.distributed.run import parse_args; print(parse_args(sys.argv[1:]).node_rank)"
    values = dict.fromkeys(sorted(TORCHRUN), "1")
    options = [word for pair in values.items() for word in pair]
    ended = subprocess.run([python(ROOT, NAME), "-c", code, *options, "train.py"], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (0, "1\n"), ended.stderr
