"""Job files of Kubernetes: what is in cluster/, what a run renders of it, and what kubectl and the resources' schemas say."""

import base64
import copy
import gzip
import io
import os
import shutil
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from smokehouse.checkout import Checkout
from smokehouse.errors import UserError
from smokehouse.oci import Reference
from smokehouse.programs.kubectl import Cluster
from smokehouse.runs import kubernetes, manifests, targets
from smokehouse.runs.kubernetes import Request
from tests.kubernetes import security
from tests.kubernetes.pods import expand
from tests.kubernetes.schemas import compiled, resources, rules

ROOT = Path(__file__).parents[3]
FILES = ROOT / "cluster" / "kubernetes"
FOLDERS = sorted(file.parent.relative_to(FILES) for file in FILES.rglob("kustomization.yaml"))
DIGEST = f"sha256:{'a' * 64}"
IMAGE = f"ghcr.io/owner/qwen2.5-vl@{DIGEST}"
SCHEMAS = {resource.kind: resource for resource in resources()}
needs_kubectl = pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")


def request(**changes: Any) -> Request:
    """Return a request for two nodes with eight GPUs each."""
    given: dict[str, Any] = {
        "environment": "qwen2.5-vl",
        "image": Reference.parse(IMAGE),
        "nodes": 2,
        "gpus": 8,
        "fabric": "ethernet",
        "kind": "trainjob",
        "claim": "shared",
        "queue": None,
        "cluster": Cluster(),
        "deadline": 600,
        "keep": False,
        "dry_run": False,
        "folder": Path("/nowhere"),
        "options": (),
    }
    return Request(**given | changes)


def rendered(**changes: Any) -> list[dict[str, Any]]:
    """Return what a run creates."""
    return kubernetes.render(Checkout(ROOT), request(**changes), "smoke-it", "0" * 64)


def pod_of(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the specification of the pods in what a run creates."""
    [document] = [one for one in documents if one["kind"] in ("JobSet", "ClusterTrainingRuntime")]
    return manifests.pod_of(document)


# files in cluster/


@needs_kubectl
@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_we_build_what_kustomize_builds(folder: Path) -> None:
    command = ["kubectl", "kustomize", str(FILES / folder)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert manifests.build(FILES / folder) == list(yaml.safe_load_all(built))


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_files_follow_the_schemas(folder: Path) -> None:
    [document] = manifests.build(FILES / folder)
    assert SCHEMAS[document["kind"]].problems(document) == []


@pytest.mark.parametrize("fabric", ["base", "overlays/infiniband", "overlays/efa"])
def test_both_kinds_have_the_same_pods(fabric: str) -> None:
    """But for the variables that Kubeflow Trainer sets for one of them."""
    pods = [manifests.pod_of(manifests.build(FILES / kind / fabric)[0]) for kind in ("runtime", "jobset")]
    for pod in pods:
        [node] = pod["containers"]
        node["env"] = [one for one in node["env"] if not one["name"].startswith("PET_")]
    assert pods[0] == pods[1]


@pytest.mark.parametrize("kind", ["runtime", "jobset"])
@pytest.mark.parametrize("fabric", ["base", "overlays/infiniband", "overlays/efa"])
def test_pods_have_what_training_needs(kind: str, fabric: str) -> None:
    [document] = manifests.build(FILES / kind / fabric)
    pod = manifests.pod_of(document)
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
    for container in manifests.containers_of(pod):
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert "@sha256:" in container["image"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert mounts == {"/dev/shm": "shm", "/tmp": "tmp", "/cache": "cache"}
        places = {one["name"]: one["value"] for one in container["env"] if "value" in one}
        for name in ("HOME", "HF_HOME", "TRITON_CACHE_DIR", "TORCH_EXTENSIONS_DIR"):
            assert any(places[name].startswith(f"{place}/") or places[name] == place for place in mounts)
    text = yaml.safe_dump(document)
    assert "sshd" not in text


def with_user(pod: dict[str, Any], user: int | None) -> dict[str, Any]:
    """Return a pod as a namespace makes it that has users of its own, or none."""
    changed = copy.deepcopy(pod)
    for name in ("runAsUser", "runAsGroup", "fsGroup"):
        del changed["securityContext"][name]
    changed["securityContext"] |= {} if user is None else {"runAsUser": user}
    return changed


@pytest.mark.parametrize("kind", ["runtime", "jobset"])
@pytest.mark.parametrize("fabric", ["base", "overlays/infiniband", "overlays/efa"])
def test_restricted_namespaces_admit_the_pods_in_files(kind: str, fabric: str) -> None:
    pod = manifests.pod_of(manifests.build(FILES / kind / fabric)[0])
    for one in (pod, with_user(pod, None), with_user(pod, 1000730000)):
        assert security.violations(one, {}) == []


@pytest.mark.parametrize("kind", kubernetes.KINDS)
@pytest.mark.parametrize("fabric", kubernetes.FABRICS)
def test_restricted_namespaces_admit_what_a_run_creates(kind: str, fabric: str) -> None:
    """Also what the doctor makes of it. Nothing that a TrainJob lays over its runtime is about security."""
    smoke = rendered(kind=kind, fabric=fabric)
    doctor = kubernetes._of_doctor(rendered(kind=kind, fabric=fabric), ())
    assert [security.violations(pod_of(documents), {}) for documents in (smoke, doctor)] == [[], []]
    trainers = [document["spec"]["trainer"] for document in (*smoke, *doctor) if document["kind"] == "TrainJob"]
    assert all(trainer.keys() <= {"numNodes", "image", "command", "args", "env", "resourcesPerNode"} for trainer in trainers)


def test_nvsentinels_check_is_admitted_wherever_the_pod_is() -> None:
    """It is injected into pods of others: it inherits nothing."""
    values = yaml.safe_load((FILES / "nvsentinel" / "values.yaml").read_text())
    assert security.violations(values["preflight"], {}) == []


CAPABILITIES = {"drop": ["ALL"], "add": ["IPC_LOCK"]}
FORBIDDEN: list[tuple[str, Any, str]] = [
    ("", {"hostNetwork": True}, "hostNetwork: true"),
    ("", {"hostIPC": True}, "hostIPC: true"),
    ("", {"volumes": [{"name": "x", "hostPath": {"path": "/"}}]}, "volumes[x]: hostPath"),
    ("", {"volumes": [{"name": "x", "nfs": {"path": "/"}}]}, "volumes[x]: nfs"),
    ("pod", {"runAsUser": 0}, "securityContext.runAsUser: 0"),
    ("pod", {"runAsNonRoot": None}, "containers[node].securityContext.runAsNonRoot: undefined"),
    ("pod", {"seccompProfile": None}, "containers[node].securityContext.seccompProfile: undefined"),
    ("pod", {"seccompProfile": {"type": "Unconfined"}}, "securityContext.seccompProfile.type: Unconfined"),
    ("pod", {"appArmorProfile": {"type": "Unconfined"}}, "securityContext.appArmorProfile.type: Unconfined"),
    ("pod", {"seLinuxOptions": {"type": "spc_t"}}, "securityContext.seLinuxOptions.type: spc_t"),
    ("pod", {"seLinuxOptions": {"user": "x"}}, "securityContext.seLinuxOptions.user: x"),
    ("pod", {"sysctls": [{"name": "net.core.somaxconn"}]}, "securityContext.sysctls: net.core.somaxconn"),
    ("node", {"runAsNonRoot": False}, "containers[node].securityContext.runAsNonRoot: false"),
    ("node", {"privileged": True}, "containers[node].securityContext.privileged: true"),
    ("node", {"allowPrivilegeEscalation": None}, "containers[node].securityContext.allowPrivilegeEscalation: None"),
    ("node", {"procMount": "Unmasked"}, "containers[node].securityContext.procMount: Unmasked"),
    ("node", {"capabilities": {}}, "containers[node].securityContext.capabilities.drop: None"),
    ("node", {"capabilities": CAPABILITIES}, "containers[node].securityContext.capabilities.add: IPC_LOCK"),
    ("container", {"ports": [{"hostPort": 29500}]}, "containers[node].ports.hostPort: set"),
    ("container", {"livenessProbe": {"httpGet": {"host": "other"}}}, "containers[node].livenessProbe.host: set"),
]


@pytest.mark.parametrize(("where", "change", "expected"), FORBIDDEN, ids=[said for _, _, said in FORBIDDEN])
def test_what_restricted_namespaces_refuse(where: str, change: dict[str, Any], expected: str) -> None:
    """A control of each kind: a check that finds nothing would prove nothing."""
    pod = copy.deepcopy(pod_of(rendered()))
    [node] = pod["containers"]
    {"": pod, "pod": pod["securityContext"], "container": node, "node": node["securityContext"]}[where].update(change)
    assert expected in security.violations(pod, {})


def test_a_file_that_kustomize_would_build_otherwise_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: []\nnamePrefix: x-\n")
    with pytest.raises(UserError, match="found namePrefix"):
        manifests.build(tmp_path)
    (tmp_path / "kustomization.yaml").write_text("resources: [missing.yaml]\n")
    with pytest.raises(UserError, match=r"missing\.yaml: expected a manifest"):
        manifests.build(tmp_path)
    (tmp_path / "a.yaml").write_text("kind: A\nmetadata: {name: a}\nspec: [1]\n")
    (tmp_path / "patch.yaml").write_text("- {op: replace, path: /spec/5, value: 2}\n")
    recipe = "resources: [a.yaml]\npatches:\n  - {path: patch.yaml, target: {kind: A}}\n"
    (tmp_path / "kustomization.yaml").write_text(recipe)
    with pytest.raises(UserError, match="/spec/5: expected it in the manifest"):
        manifests.build(tmp_path)


# what a run creates


@pytest.mark.parametrize("kind", kubernetes.KINDS)
@pytest.mark.parametrize("fabric", kubernetes.FABRICS)
@pytest.mark.parametrize(("nodes", "gpus"), [(1, 0), (1, 8), (64, 4)])
def test_what_is_rendered_follows_the_schemas(kind: str, fabric: str, nodes: int, gpus: int) -> None:
    documents = rendered(kind=kind, fabric=fabric, nodes=nodes, gpus=gpus, queue="team-a")
    for document in documents:
        if document["kind"] != "Secret":
            assert SCHEMAS[document["kind"]].problems(document) == []
    assert ("Secret" in {one["kind"] for one in documents}) == (nodes > 1)
    [job] = [one for one in documents if one["kind"] in ("TrainJob", "JobSet")]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    pod = pod_of(documents)
    for container in manifests.containers_of(pod):
        assert container["image"] == IMAGE
        limits = container["resources"]["limits"]
        assert limits.get("nvidia.com/gpu", 0) == gpus
        assert ("rdma/rdma_shared_device_a" in limits) == (fabric == "infiniband")
        assert ("vpc.amazonaws.com/efa" in limits) == (fabric == "efa")
    preflight = pod["initContainers"][0]
    assert preflight["args"][-2:] == ["--fabric", fabric]


def test_a_schema_refuses_what_an_api_server_refuses() -> None:
    """A control: without it, a schema that allows everything would prove nothing."""
    [runtime, _, job] = rendered()
    job["spec"]["trainer"]["numNodes"] = "two"
    job["spec"]["nodes"] = 2
    assert len(SCHEMAS["TrainJob"].problems(job)) == 2
    del manifests.pod_of(runtime)["containers"][0]["name"]
    manifests.pod_of(runtime)["containers"][0]["imagee"] = "x"
    assert len(SCHEMAS["ClusterTrainingRuntime"].problems(runtime)) == 2


def test_rules_of_the_schemas_are_evaluated() -> None:
    """A control of each kind, where an API server refuses what the schema alone would take; and all rules are valid."""
    for resource in SCHEMAS.values():
        assert all(compiled(rule) for rule in rules(resource.schema))
    [runtime, _, job] = rendered()
    job["metadata"]["name"] = "1-begins-with-a-digit"
    job["spec"]["trainer"]["env"] = [{"name": "A", "value": "b"}]
    job["spec"]["managedBy"] = "nobody"
    runtime["spec"]["mlPolicy"] |= {"torch": {}, "mpi": {}}
    jobset = rendered(kind="jobset")[-1]
    jobset["spec"]["startupPolicy"] = {"startupPolicyOrder": "InOrder"}
    jobset["spec"]["replicatedJobs"][0]["dependsOn"] = [{"name": "other", "status": "Ready"}]
    for document, paths in ((job, {"", "spec.managedBy"}), (runtime, {"spec.mlPolicy"}), (jobset, {"spec"})):
        found = SCHEMAS[document["kind"]].problems(document)
        assert {problem.partition(":")[0] for problem in found} == paths, found


def test_claims_and_queues_may_have_dots(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--image", IMAGE, "--claim", "data.team-a", "--queue", "a.b", "--dry-run"]
    assert targets.smoke(Checkout(ROOT), "kubernetes", "qwen2.5-vl", options) == 0
    said = capsys.readouterr().out
    assert "claimName: data.team-a" in said
    assert "kueue.x-k8s.io/queue-name: a.b" in said


def test_the_token_is_in_no_command_and_differs_between_runs() -> None:
    token = "secret" * 8
    for kind in kubernetes.KINDS:
        documents = kubernetes.render(Checkout(ROOT), request(kind=kind), "smoke-it", token)
        holders = [one["kind"] for one in documents if token in yaml.safe_dump(one)]
        assert holders == ["Secret"]


def test_a_name_of_a_runtime_is_one_runtime() -> None:
    """A user may not change one that exists, and must not get another than was rendered."""
    names = {rendered(**changes)[0]["metadata"]["name"] for changes in ({}, {"gpus": 4}, {"claim": "other"}, {"deadline": 700})}
    assert len(names) == 4
    assert rendered()[0] == rendered(queue="other", options=("--zero", "3"))[0]


def test_options_reach_the_smoke_test_as_they_were_given() -> None:
    options = ("--checkpoint", "/cache/$(PET_MASTER_ADDR) $x 'y'", "--zero", "3")
    job = rendered(options=options)[-1]
    args = job["spec"]["trainer"]["args"]
    assert [expand(part, {"PET_MASTER_ADDR": "first"}) for part in args][-4:] == [*options]
    assert args[args.index("--endpoint") + 1] == "$(PET_MASTER_ADDR):29400"
    jobset = rendered(kind="jobset")[-1]
    assert "smoke-it-node-0-0.smoke-it:29400" in manifests.pod_of(jobset)["containers"][0]["args"]


def test_rendering_takes_less_than_half_a_second() -> None:
    began = time.process_time()
    manifests.as_yaml(rendered(fabric="efa", nodes=512))
    assert time.process_time() - began < 0.5


# options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "expected --image HOST/NAME@sha256:DIGEST, found none"),
        (["--image", "ghcr.io/owner/x:latest"], "expected a digest"),
        (["--image", IMAGE, "--nodes", "0"], "--nodes 0: expected a number from 1"),
        (["--image", IMAGE, "--nodes", "٣"], "expected a number"),
        (["--image", IMAGE, "--gpus"], "--gpus: expected M, found nothing"),
        (["--image", IMAGE, "--fabric", "token-ring"], "expected ethernet, infiniband, efa, found another"),
        (["--image", IMAGE, "--kind=Pod"], "expected trainjob, jobset"),
        (["--image", IMAGE, "--namespace", "a b"], "--namespace a b: expected a name"),
        (["--image", IMAGE, "--namespace", "a.b"], "--namespace a.b: expected a name of Kubernetes (a-z, 0-9 and -)"),
        (["--image", IMAGE, "--queue", "a..b"], "--queue a..b: expected a name of Kubernetes (a-z, 0-9, - and .)"),
        (["--image", IMAGE, "--dry-run=yes"], "--dry-run: expected no value"),
        (["--image", IMAGE, "--bundle", "x"], "expected no --bundle with --on kubernetes"),
        (["--image", IMAGE, "--dry-run", "--zero", "9"], "invalid list of ZeRO stages"),
    ],
)
def test_wrong_options_are_refused(options: list[str], message: str) -> None:
    with pytest.raises(UserError) as refused:
        targets.smoke(Checkout(ROOT), "kubernetes", "qwen2.5-vl", options)
    assert message in str(refused.value)


@pytest.mark.parametrize("kind", kubernetes.KINDS)
def test_what_the_doctor_creates_follows_the_schemas(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--image", IMAGE, "--nodes", "3", "--kind", kind, "--measure", "--dry-run"]
    assert targets.doctor(Checkout(ROOT), "kubernetes", "qwen2.5-vl", options) is None
    documents = list(yaml.safe_load_all(capsys.readouterr().out))
    for document in documents:
        assert SCHEMAS[document["kind"]].problems(document) == []
    assert "initContainers" not in pod_of(documents)
    text = yaml.safe_dump(documents)
    assert "--measure" in text
    assert "/opt/smokehouse/smoke" not in text
    assert "SMOKEHOUSE_TOKEN" not in text


def test_wrong_options_of_the_doctor_are_refused() -> None:
    with pytest.raises(UserError, match=r"doctor: expected options of --on kubernetes, found --zero; see --help"):
        targets.doctor(Checkout(ROOT), "kubernetes", "qwen2.5-vl", ["--image", IMAGE, "--zero", "3"])
    with pytest.raises(UserError, match=r"--on lsf: expected kubernetes or slurm, found another engine"):
        targets.doctor(Checkout(ROOT), "lsf", "qwen2.5-vl", [])


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(UserError, match=r"--on lsf: expected .*kubernetes.*, found another engine"):
        targets.smoke(Checkout(ROOT), "lsf", "qwen2.5-vl", [])


def test_every_engine_has_a_module_and_a_folder() -> None:
    for name, target in targets.TARGETS.items():
        assert (ROOT / "src/smokehouse/runs" / f"{name}.py").is_file()
        assert (ROOT / "cluster" / name).is_dir()
        assert target.program in "\n".join(targets.help_lines())


def test_a_dry_run_needs_no_cluster(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    options = ["--image", IMAGE, "--gpus", "8", "--dry-run", "--checkpoint", "/cache/not-on-this-machine"]
    assert targets.smoke(Checkout(ROOT), "kubernetes", "qwen2.5-vl", options) == 0
    kinds = [document["kind"] for document in yaml.safe_load_all(capsys.readouterr().out)]
    assert kinds == ["ClusterTrainingRuntime", "TrainJob"]
    with pytest.raises(UserError, match=r"kubectl: not found; install it .* or give --dry-run"):
        targets.smoke(Checkout(ROOT), "kubernetes", "qwen2.5-vl", ["--image", IMAGE])


# the report, in a log that anything may have written to


def packed(files: dict[str, bytes], width: int = 4000) -> list[str]:
    """Return files as a node prints them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    text = base64.b64encode(gzip.compress(buffer.getvalue())).decode()
    return [f"smokehouse-report: {text[at : at + width]}" for at in range(0, len(text), width)]


def test_a_report_comes_out_of_a_log() -> None:
    lines = packed({"report.json": b"{}" * 5000, "report.html": b"<p>", "junit.xml": b"<x/>"}, width=40)
    found = kubernetes.unpack("\n".join(["NCCL INFO", *lines[:1], "from another process", *lines[1:], "end"]))
    assert found == {"report.json": b"{}" * 5000, "report.html": b"<p>", "junit.xml": b"<x/>"}


@pytest.mark.parametrize("case", [("0", "true", 0), ("0", "false", 1), ("1", "true", 0)])
def test_the_first_node_prints_the_report(tmp_path: Path, case: tuple[str, str, int]) -> None:
    index, program, code = case
    for name in ("report.json", "report.html", "junit.xml"):
        (tmp_path / name).write_text(name)
    command = [*rendered()[-1]["spec"]["trainer"]["command"], str(tmp_path), program]
    environ = {"PATH": os.environ["PATH"], "JOB_COMPLETION_INDEX": index}
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (code, "")
    assert set(kubernetes.unpack(ended.stdout)) == ({"report.json", "report.html", "junit.xml"} if index == "0" else set())


def test_another_node_that_fails_waits_for_the_report_of_the_first(tmp_path: Path) -> None:
    """It fails for the job's status, but not before: Kubernetes would end the first node, which is about to write why."""
    report, clock, slept = tmp_path / "report", tmp_path / "bin" / "sleep", tmp_path / "slept"
    report.mkdir()
    clock.parent.mkdir()
    clock.write_text(f'#!/bin/sh\necho "$1" >> {slept}\n{shutil.which("sleep")} 0.02\n')
    clock.chmod(0o755)
    command = [*rendered()[-1]["spec"]["trainer"]["command"], str(report), "sh", "-c", "exit 7"]
    environ = {"PATH": f"{clock.parent}:{os.environ['PATH']}"}
    other = subprocess.Popen(command, env=environ | {"JOB_COMPLETION_INDEX": "1"})
    while not slept.exists():
        assert other.poll() is None
    first = subprocess.run(command, env=environ | {"JOB_COMPLETION_INDEX": "0"}, capture_output=True, timeout=60, check=False)
    assert (first.returncode, other.wait(60)) == (7, 7)
    assert set(slept.read_text().split()) == {"1", "10"}  # the last for Kubernetes, which has to see the first pod's end, too


def test_only_files_of_a_report_are_taken() -> None:
    hostile = {"../report.json": b"1", "/etc/passwd": b"2", "report.json": b"3", "other": b"4"}
    assert kubernetes.unpack("\n".join(packed(hostile))) == {"report.json": b"3"}


def test_a_report_that_is_not_whole_is_none() -> None:
    lines = packed({"report.json": bytes(range(256)) * 400}, width=100)
    for broken in (lines[:-1], lines[1:], [lines[0], *lines[2:]], [*lines[:-1], lines[-1][:-3]], ["smokehouse-report: !"], []):
        assert kubernetes.unpack("\n".join(broken)) == {}
    bomb = base64.b64encode(gzip.compress(bytes(65 << 20))).decode()
    assert kubernetes.unpack(f"smokehouse-report: {bomb}") == {}
