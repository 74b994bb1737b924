"""Run a smoke test as a job of Kubernetes: with Kubeflow Trainer (a TrainJob), or as a JobSet alone.

The manifests are those of cluster/kubernetes, so that what is proven is what people copy. The job's nodes share a volume, which
has the report; it comes back through the log of the first node, because nothing else of a pod that has ended can be read.

See: https://www.kubeflow.org/docs/components/trainer/, https://jobset.sigs.k8s.io/, https://kueue.sigs.k8s.io/
"""

import base64
import binascii
import gzip
import hashlib
import io
import json
import re
import secrets
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smokehouse import locks
from smokehouse.checkout import Checkout
from smokehouse.console import as_typed, status
from smokehouse.errors import UserError
from smokehouse.installs.machine import Finding, parse_findings
from smokehouse.oci import Reference
from smokehouse.programs.kubectl import Cluster
from smokehouse.runs import jobs, local, manifests, report, targets
from smokehouse.runs.kubernetes_job import Job
from smokehouse.runs.manifests import Document
from smokehouse.runs.options import pop_option, report_name
from smokehouse.storage import files

FABRICS = ("ethernet", "infiniband", "efa")
# As NCCL's log calls the network of a fabric.
_NETWORKS = {"infiniband": "IB", "efa": "AWS Libfabric"}
KINDS = ("trainjob", "jobset")
_PORT = 29400  # at which the nodes report; torchrun has 29500
# Names of Kubernetes: of namespaces, and of most other objects, which may have dots.
_LABEL = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_NAMES = {"--namespace": _LABEL, "--claim": rf"{_LABEL}(\.{_LABEL})*", "--queue": rf"{_LABEL}(\.{_LABEL})*"}
_MARK = "smokehouse-report: "
_REPORT_FILES = ("report.json", "report.html", "junit.xml")
_MOST_REPORT = 64 << 20  # bytes, unpacked
_PACKED_LINE = 4000  # characters; longer lines are split by container runtimes
# What a node runs: the smoke test, then, on the first one, its report as lines of the log. Where a pod fails, Kubernetes ends
# the others: so another node that fails waits until the first has written why, and its pod has ended. Nothing here is expanded
# by Kubernetes, which takes a name in $() for one of its own variables.
_MOST_WAIT = 180  # seconds; the first node notices a lost one within a minute
_SCRIPT = f"""
report="$1"; shift
"$@"; code=$?
if [ "${{JOB_COMPLETION_INDEX:-0}}" != 0 ]; then
    [ $code = 0 ] || timeout {_MOST_WAIT} sh -c 'until [ -e "$0" ]; do sleep 1; done; sleep 10' "$report.ended"
    exit $code
fi
if [ -f "$report/report.json" ] && cd "$report"; then
    tar -cz report.json report.html junit.xml | base64 -w {_PACKED_LINE} | sed "s/^/{_MARK}/"
fi
touch "$report.ended" 2> /dev/null
exit $code
""".strip()


@dataclass(frozen=True)
class Request:
    """What was requested: the image, how many nodes with how many GPUs each, and where they run."""

    environment: str
    image: Reference
    nodes: int
    gpus: int
    fabric: str
    kind: str
    claim: str
    queue: str | None
    cluster: Cluster
    deadline: int
    keep: bool
    dry_run: bool
    folder: Path
    options: tuple[str, ...]  # of the smoke test


def smoke(checkout: Checkout, name: str, options: Sequence[str]) -> int:
    """Run the smoke test of `name` in a cluster, and return its exit code; raises UserError.

    Ends with 0 if the smoke test passed, with 1 if it or the job failed.
    """
    request = _read(checkout, name, options)
    _validate(checkout, request)
    job = f"smoke-{re.sub(r'[^a-z0-9]+', '-', name)[:32].strip('-')}-{secrets.token_hex(3)}"
    documents = render(checkout, request, job, secrets.token_hex(32))
    if request.dry_run:
        print(manifests.as_yaml(documents, _comment), end="")
        return 0
    return _run(checkout, request, job, documents)


def doctor(checkout: Checkout, name: str, options: Sequence[str]) -> dict[str, list[Finding]] | None:
    """Run the preflight on each of the machines that a cluster gives to a job, and return its findings by machine.

    Returns None after `--dry-run`, which prints the job. Raises UserError.
    """
    measure = ["--measure"] if "--measure" in options else []
    request = _read(checkout, name, [option for option in options if option != "--measure"])
    if request.options:
        raise UserError(f"doctor: expected options of --on kubernetes, found {request.options[0]}; see --help")
    job = f"doctor-{secrets.token_hex(3)}"
    documents = _of_doctor(render(checkout, request, job, secrets.token_hex(32)), measure)
    if request.dry_run:
        print(manifests.as_yaml(documents, _comment), end="")
        return None
    return _examine(request, job, documents)


def _of_doctor(documents: Sequence[Document], more: Sequence[str]) -> list[Document]:
    """Return the objects of a smoke test's run without it: each node runs the preflight alone, and succeeds."""
    changed = [document for document in documents if document["kind"] != "Secret"]
    last = changed[-1]
    [node_holder] = [document for document in changed if document["kind"] in ("ClusterTrainingRuntime", "JobSet")]
    pod = manifests.pod_of(node_holder)
    [preflight] = pod.pop("initContainers")
    [node] = pod["containers"]
    command = {"command": ["/bin/sh", "-c", '"$@"; exit 0', "doctor"]}
    command["args"] = [*preflight["command"], *preflight["args"], *more, "--json"]
    if last["kind"] == "TrainJob":
        last["spec"]["trainer"] = {"numNodes": last["spec"]["trainer"]["numNodes"], "image": node["image"], **command}
        node_holder["metadata"]["name"] = last["spec"]["runtimeRef"]["name"] = _name_of(node_holder)
    else:
        node |= command
        node["env"] = [variable for variable in node["env"] if variable["name"] != "SMOKEHOUSE_TOKEN"]
    return changed


def _comment(document: Mapping[str, Any]) -> str:
    says = {
        "ClusterTrainingRuntime": "Cluster-wide: an administrator applies it once.",
        "Secret": "By it the nodes of this one run know each other.",
    }
    return says.get(str(document["kind"]), "")


# options


def _read(checkout: Checkout, name: str, options: Sequence[str]) -> Request:
    """Return the request in a command line; raises UserError."""
    given, rest = targets.split(targets.TARGETS["kubernetes"], options)
    rest, folder = pop_option(rest, "--report", "a folder")
    for option in ("--bundle", "--prefix", "--python", "--port"):
        if any(word.split("=")[0] == option for word in rest):
            raise UserError(f"{option}: expected no {option} with --on kubernetes, which runs an image; leave it out")
    chosen = {
        "fabric": jobs.one_of("--fabric", given.get("--fabric", "ethernet"), FABRICS),
        "kind": jobs.one_of("--kind", given.get("--kind", "trainjob"), KINDS),
    }
    for option, pattern in _NAMES.items():
        if option in given and not re.fullmatch(pattern, given[option]):
            allowed = "a-z, 0-9 and -" if pattern == _LABEL else "a-z, 0-9, - and ."
            raise UserError(f"{option} {given[option]}: expected a name of Kubernetes ({allowed}), found another; correct it")
    return Request(
        environment=name,
        image=_image(given.get("--image"), name),
        nodes=jobs.number("--nodes", given.get("--nodes", "1"), 1, 10_000),
        gpus=jobs.number("--gpus", given.get("--gpus", "8"), 0, 64),
        claim=given.get("--claim", "smokehouse"),
        queue=given.get("--queue"),
        cluster=Cluster(given.get("--context"), given.get("--namespace")),
        deadline=jobs.number("--deadline", given.get("--deadline", "7200"), 60, 30 * 86400),
        keep="--keep" in given,
        dry_run="--dry-run" in given,
        folder=Path(folder or checkout.build / "smoke" / report_name(f"{name}-kubernetes", rest)).absolute(),
        options=tuple(rest),
        **chosen,
    )


def _image(text: str | None, name: str) -> Reference:
    """Return the image, which has to be pinned: a tag may be another image on each node. Raises UserError."""
    publish = as_typed("publish", name, f"HOST/OWNER/{name}")
    if text is None:
        raise UserError(f"--on kubernetes: expected --image HOST/NAME@sha256:DIGEST, found none; publish one: {publish}")
    reference = Reference.parse(text)
    if not reference.digest:
        raise UserError(f"--image {text}: expected a digest (HOST/NAME@sha256:…), found none; see what {publish} printed")
    return reference


def _validate(checkout: Checkout, request: Request) -> None:
    """Have the smoke test check its own options here, before anything starts; raises UserError."""
    locked = locks.load(checkout, request.environment)
    # A checkpoint is a folder of the cluster, or an id of a hub.
    options, _ = pop_option(request.options, "--checkpoint", "a folder or an id")
    command = ["-m", "smoke_tests", "--environment", request.environment, "--image", request.image.digest]
    command += ["--stack", str(checkout.environment(request.environment) / "stack.toml")]
    command += ["--lock", str(locked.files.folder), "--report", str(request.folder), *options]
    local.validate(command, request.environment, local.place_of_smoke_test(checkout))


# manifests


def render(checkout: Checkout, request: Request, job: str, token: str) -> list[Document]:
    """Return the objects of a run called `job`, in the order in which they have to be created; raises UserError."""
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": job}, "stringData": {"token": token}}
    secrets_of_run = [secret] if request.nodes > 1 else []
    folder = checkout.file("cluster") / "kubernetes"
    if request.kind == "jobset":
        return [*secrets_of_run, _jobset(folder, request, job)]
    runtime = _runtime(folder, request)
    return [runtime, *secrets_of_run, _trainjob(folder, request, job, runtime["metadata"]["name"])]


def _place(folder: Path, what: str, fabric: str) -> Path:
    return folder / what / "base" if fabric == "ethernet" else folder / what / "overlays" / fabric


def _runtime(folder: Path, request: Request) -> Document:
    """Return the training runtime. Its name contains a digest of it, so that one name is one runtime for ever."""
    [runtime] = manifests.build(_place(folder, "runtime", request.fabric))
    _fill_pod(manifests.pod_of(runtime), request)
    manifests.job_of(runtime)["activeDeadlineSeconds"] = request.deadline
    runtime["spec"]["mlPolicy"]["numNodes"] = request.nodes
    runtime["metadata"]["name"] = _name_of(runtime)
    return runtime


def _name_of(runtime: Document) -> str:
    digest = hashlib.sha256(json.dumps(runtime["spec"], sort_keys=True).encode()).hexdigest()
    return f"smokehouse-{digest[:16]}"


def _trainjob(folder: Path, request: Request, job: str, runtime: str) -> Document:
    [document] = manifests.build(folder / "train")
    _name(document, request, job)
    document["spec"]["runtimeRef"]["name"] = runtime
    trainer: Document = {
        "numNodes": request.nodes,
        "image": str(request.image),
        **_command(request, job, "$(PET_MASTER_ADDR)"),
    }
    if request.nodes > 1:
        trainer["env"] = [_token(job)]
    document["spec"]["trainer"] = trainer
    return document


def _jobset(folder: Path, request: Request, job: str) -> Document:
    [document] = manifests.build(_place(folder, "jobset", request.fabric))
    _name(document, request, job)
    spec, pod = manifests.job_of(document), manifests.pod_of(document)
    spec |= {"parallelism": request.nodes, "completions": request.nodes, "activeDeadlineSeconds": request.deadline}
    _fill_pod(pod, request)
    [node] = pod["containers"]
    address = f"{job}-node-0-0.{job}"
    for name, value in {"PET_NNODES": str(request.nodes), "PET_MASTER_ADDR": address}.items():
        manifests.set_variable(node, name, value)
    if request.nodes > 1:
        node["env"].append(_token(job))
    node |= _command(request, job, address)
    return document


def _name(document: Document, request: Request, job: str) -> None:
    labels = document["metadata"]["labels"]
    queue = "kueue.x-k8s.io/queue-name"
    del labels[queue]
    labels |= {"app.kubernetes.io/managed-by": "smokehouse", "app.kubernetes.io/name": request.environment[:63]}
    if request.queue:
        labels[queue] = request.queue
    document["metadata"]["name"] = job


def _fill_pod(pod: Document, request: Request) -> None:
    for container in manifests.containers_of(pod):
        container["image"] = str(request.image)
        if request.gpus:
            container["resources"]["limits"]["nvidia.com/gpu"] = request.gpus
        else:
            del container["resources"]["limits"]["nvidia.com/gpu"]
    [preflight] = pod["initContainers"]
    device = ["--device", "cuda", "--gpus", str(request.gpus)] if request.gpus else ["--device", "cpu"]
    preflight["args"] = [*device, "--fabric", request.fabric]
    for volume in pod["volumes"]:
        if volume["name"] == "cache":
            volume["persistentVolumeClaim"]["claimName"] = request.claim


def _token(job: str) -> Document:
    return {"name": "SMOKEHOUSE_TOKEN", "valueFrom": {"secretKeyRef": {"name": job, "key": "token"}}}


def _command(request: Request, job: str, first: str) -> Document:
    """Return command and arguments of a node; `first` is the address of the first one."""
    folder = f"/cache/reports/{job}"
    smoke_test = ["/opt/smokehouse/smoke", "--image", request.image.digest, "--report", folder]
    smoke_test += ["--device", "cuda", "--nproc", str(request.gpus)] if request.gpus else ["--device", "cpu"]
    if request.nodes > 1:
        smoke_test += ["--nodes", str(request.nodes), "--endpoint", f"{first}:{_PORT}", *jobs.JOIN]
        if network := _NETWORKS.get(request.fabric):
            smoke_test += ["--network", network]
    # Kubernetes would expand what looks like one of its variables.
    given = [option.replace("$(", "$$(") for option in request.options]
    return {"command": ["/bin/sh", "-c", _SCRIPT, "smoke"], "args": [folder, *smoke_test, *given]}


# the run


def _run(checkout: Checkout, request: Request, name: str, documents: Sequence[Document]) -> int:
    job = _job(request, name)
    with job.created(documents):
        status(f"{request.kind} {name}: created; its log follows when its first node has started")
        pod = job.wait()
        request.cluster.follow(pod, "node", _print, request.deadline)
        job.wait(ended=True)
        code = _collect(checkout, request, job, pod)
        if not code and (problem := job.failure()):
            status(f"{request.kind} {name}: expected all nodes to pass, found {problem}; see kubectl logs, with --keep")
            return 1
        return code


def _job(request: Request, name: str) -> Job:
    return Job(request.cluster, request.kind, name, request.deadline, request.keep)


def _examine(request: Request, name: str, documents: Sequence[Document]) -> dict[str, list[Finding]]:
    """Return what the doctor finds on each machine of a job; raises UserError."""
    job = _job(request, name)
    with job.created(documents):
        status(f"{request.kind} {name}: created")
        job.wait(ended=True)
        pods = job.pods()
        if len(pods) < request.nodes:
            raise UserError(f"{name}: expected {request.nodes} pods to have run, found {len(pods)}; start it again with --keep")
        said: dict[str, list[Finding]] = {}
        for pod in pods:  # of which one machine may have several
            said.setdefault(pod["spec"].get("nodeName", pod["metadata"]["name"]), []).extend(_said(request, pod))
        return said


def _said(request: Request, pod: Document) -> list[Finding]:
    """Return the findings in the log of a pod, a failure where there are none."""
    name = pod["metadata"]["name"]
    log = request.cluster.log(name, "node")
    try:
        return parse_findings(log.strip().rpartition("\n")[2])
    except ValueError:
        last = " ".join(log.split())[-200:] or "nothing"
        return [Finding("fail", f"expected findings, found {last}", name, "give --keep, and see kubectl describe pod")]


def _print(line: str) -> None:
    if not line.startswith(_MARK):
        print(line, flush=True)


def _collect(checkout: Checkout, request: Request, job: Job, pod: str) -> int:
    """Write the report of a run to the requested folder, and return the exit code that follows from it; raises UserError."""
    log = job.patiently(lambda: request.cluster.log(pod, "node"))
    found = unpack(log)
    if not found:
        part = "a part of one" if _MARK in log else "none"
        why = f" ({problem})" if (problem := job.failure()) else ""
        place = f"/cache/reports/{job.name} of the claim {request.claim}" if _MARK in log else "the log above"
        raise UserError(f"{pod}: expected a report at the end of its log, found {part}{why}; see {place}, or start with --keep")
    request.folder.mkdir(parents=True, exist_ok=True)
    for name, data in found.items():
        files.write(request.folder / name, data)
    read = report.read_any(checkout, request.folder)
    if (found_in := read.fields["environment"]) != request.environment:
        raise UserError(f"{pod}: expected a report of {request.environment}, found one of {found_in}; give its --image")
    print(f"\nReport: {request.folder / 'report.json'}")
    return int(read.fields["verdict"] != "passed")


def unpack(log: str) -> dict[str, bytes]:
    """Return the files of a report in the log of the first node, by name; nothing where there is no whole one."""
    packed = "".join(line.removeprefix(_MARK) for line in log.splitlines() if line.startswith(_MARK))
    try:
        with gzip.open(io.BytesIO(base64.b64decode(packed, validate=True))) as unpacked:
            data = unpacked.read(_MOST_REPORT + 1)
        if len(data) > _MOST_REPORT:
            return {}
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            members = {member.name: member for member in archive if member.isreg() and member.name in _REPORT_FILES}
            return {name: archive.extractfile(member).read() for name, member in members.items()}  # type: ignore[union-attr]
    except (binascii.Error, zlib.error, EOFError, OSError, ValueError, tarfile.TarError):
        return {}
