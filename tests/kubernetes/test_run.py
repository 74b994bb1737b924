"""`smokehouse smoke --on kubernetes` with the real kubectl, and an API that runs what it is given as pods on this machine."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from smokehouse.checkout import Checkout
from smokehouse.errors import UserError
from smokehouse.programs import kubectl
from smokehouse.runs import kubernetes, manifests
from smokehouse.runs.kubernetes_job import Job
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


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Yield an API server that kubectl finds, with a JobSet `run` of two pods; what becomes of them is the test's."""
    cluster = Cluster(tmp_path)
    cluster.objects["jobsets", "run"] = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": "run", "namespace": "default"},
    }
    for index in range(2):
        metadata = {
            "name": f"run-{index}",
            "namespace": "default",
            "labels": {"jobset.sigs.k8s.io/jobset-name": "run"},
            "annotations": {"batch.kubernetes.io/job-completion-index": str(index)},
        }
        spec = {"nodeName": f"machine-{index}", "containers": [{"name": "node"}]}
        cluster.objects["pods", f"run-{index}"] = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    with Server(cluster) as found:
        monkeypatch.setenv("KUBECONFIG", str(found.kubeconfig))
        yield found


def run_of(*, deadline: int = 300) -> Job:
    """Return the job that `server` has."""
    return Job(kubectl.Cluster(), "jobset", "run", deadline, keep=False)


def terminated(code: int, reason: str) -> dict[str, Any]:
    """Return the status of a container that has ended."""
    return {"containerStatuses": [{"name": "node", "state": {"terminated": {"exitCode": code, "reason": reason}}}]}


def test_what_kubernetes_did_to_a_pod_is_named(server: Server) -> None:
    cluster = server.cluster
    cluster.set_status("jobsets", "run", {"conditions": [{"type": "Failed", "status": "True", "message": "a job failed"}]})
    assert run_of().failure() == "failed: a job failed"
    cluster.set_status("pods", "run-0", {"phase": "Failed", **terminated(2, "Error")})
    cluster.set_status("pods", "run-1", {"phase": "Failed", **terminated(137, "OOMKilled")})
    assert run_of().failure() == "exit code 2 of run-0 on machine-0; exit code 137, OOMKilled of run-1 on machine-1"
    evicted = {
        "phase": "Failed",
        "reason": "Evicted",
        "message": "The node was low on resource: memory.",
        "containerStatuses": [],
    }
    cluster.set_status("pods", "run-0", {"phase": "Succeeded", **terminated(0, "Completed")})
    cluster.set_status("pods", "run-1", evicted)
    assert run_of().failure() == "Evicted (The node was low on resource: memory.) of run-1 on machine-1"
    disrupted = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}
    cluster.set_status("pods", "run-1", {"reason": None, "message": None, "conditions": [disrupted]})
    assert run_of().failure() == "PreemptionByScheduler of run-1 on machine-1"


def test_an_api_server_that_restarts_ends_no_run(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.cluster.set_status("pods", "run-0", {"phase": "Running"})
    server.cluster.refusals = 2
    assert run_of().wait() == "run-0"
    assert server.cluster.refusals == 0
    assert capsys.readouterr().err.count("waiting for the cluster, which does not answer") == 1


def test_a_job_that_somebody_deleted(server: Server) -> None:
    del server.cluster.objects["jobsets", "run"]
    with pytest.raises(
        UserError, match=r"^jobset run: expected it in the cluster, found it deleted \(.*not found\); start it again"
    ):
        run_of().wait()


def test_a_node_that_keeps_the_first_one_waiting_is_named(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.cluster.set_status("pods", "run-0", {"phase": "Running"})
    waits = {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}}
    server.cluster.set_status("pods", "run-1", {"phase": "Pending", "containerStatuses": [{"name": "node", "state": waits}]})
    assert run_of().wait() == "run-0"
    assert "the first node waits for run-1: ImagePullBackOff: Back-off pulling image" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("log", "found"),
    [
        ("smokehouse-report: H4sIAAAA\n", "found a part of one; see /cache/reports/run of the claim smokehouse, or start with"),
        ("Killed\n", "found none (exit code 137, OOMKilled of run-0 on machine-0); see the log above, or start with --keep"),
    ],
)
def test_a_report_that_is_not_in_the_log(server: Server, tmp_path: Path, log: str, found: str) -> None:
    (tmp_path / "log").write_text(log)
    server.cluster.pods["run-0"] = cast("pods.Pod", SimpleNamespace(log=lambda _: tmp_path / "log", end=lambda: None))
    server.cluster.set_status("pods", "run-0", {"phase": "Failed", **terminated(137, "OOMKilled")})
    if "none" in found:
        server.cluster.set_status("jobsets", "run", {"conditions": [{"type": "Failed", "status": "True"}]})
    request = kubernetes._read(Checkout(ROOT), NAME, ["--image", IMAGE, "--report", str(tmp_path / "report")])
    with pytest.raises(UserError) as error:
        kubernetes._collect(Checkout(ROOT), request, run_of(), "run-0")
    assert found in str(error.value)


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
