"""A cluster as kubectl sees it: an API server that validates with the vendored schemas, and controllers that run pods.

It has what `smokehouse smoke --on kubernetes` uses, and answers 404 to the rest. Controllers do what those of Kubeflow Trainer
(pkg/runtime/framework/plugins/torch/torch.go), JobSet and Job document; pods run as `tests.kubernetes.pods` says, where the
standard `restricted` admits them.
"""

import base64
import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.kubernetes import schemas, security
from tests.kubernetes.pods import Image, Network, Pod

Object = dict[str, Any]
RESOURCES = {resource.plural: resource for resource in schemas.resources()}
_CORE = {"pods": "Pod", "secrets": "Secret"}
_PORT = "29500"  # ContainerTrainerPort of Kubeflow Trainer


@dataclass
class Cluster:
    """The state of a cluster. `image` and `volumes` are what pods run; None for a cluster on which no pod ever starts."""

    folder: Path
    image: Image | None = None
    volumes: dict[str, Path] = field(default_factory=dict)
    known: frozenset[str] = frozenset(RESOURCES)  # the custom resources that are installed
    forbidden: frozenset[str] = frozenset()  # those that this user may not create
    objects: dict[tuple[str, str], Object] = field(default_factory=dict)
    created: list[Object] = field(default_factory=list)  # everything that ever was
    pods: dict[str, Pod] = field(default_factory=dict)
    refusals: int = 0  # requests that are answered as by a server that restarts
    changed: threading.Condition = field(default_factory=threading.Condition)
    threads: list[threading.Thread] = field(default_factory=list)

    def create(self, plural: str, document: Object) -> tuple[int, Object]:
        """Store an object, and return the status and the answer of the API."""
        name = document["metadata"]["name"]
        if plural in self.forbidden:
            return 403, _status(403, "Forbidden", f'{plural} is forbidden: User "someone" cannot create resource "{plural}"')
        if problems := RESOURCES[plural].problems(document) if plural in RESOURCES else []:
            return 422, _status(422, "Invalid", f"{name} is invalid: {'; '.join(problems)}")
        with self.changed:
            if (plural, name) in self.objects:
                return 409, _status(409, "AlreadyExists", f'{plural} "{name}" already exists')
            stored = self.objects[plural, name] = deepcopy(document)
            stored["metadata"] |= {"namespace": "default", "uid": f"uid-{len(self.created)}"}
            self.created.append(stored)
            self.changed.notify_all()
        if plural in ("trainjobs", "jobsets"):
            thread = threading.Thread(target=self._control, args=(plural, name), daemon=True)
            self.threads.append(thread)
            thread.start()
        return 201, stored

    def delete(self, plural: str, name: str) -> tuple[int, Object]:
        """Delete an object, and end the pods of a job."""
        with self.changed:
            if not self.objects.pop((plural, name), None):
                return 404, _status(404, "NotFound", f'{plural} "{name}" not found')
            for pod in list(self.pods.values()) if plural in ("trainjobs", "jobsets") else ():
                pod.end()
            self.changed.notify_all()
        return 200, _status(200, "Success", "")

    def set_status(self, plural: str, name: str, status: Object) -> None:
        """Change the status of an object that may be gone."""
        with self.changed:
            if found := self.objects.get((plural, name)):
                found.setdefault("status", {}).update(status)
            self.changed.notify_all()

    # controllers

    def _control(self, plural: str, name: str) -> None:
        job = self.objects[plural, name]
        if self.image is None:
            return
        ended, why = True, ""
        try:
            spec, env = self._jobset(job)
            with Network() as network:
                ended = self._run(name, spec, env, network)
        except Exception as error:  # noqa: BLE001 - a mistake of the test is the job's failure, or nobody would see it
            ended, why = False, repr(error)
        kind = {"trainjobs": "Complete", "jobsets": "Completed"}[plural] if ended else "Failed"
        self.set_status(plural, name, {"conditions": [{"type": kind, "status": "True", "message": why or "jobs have ended"}]})

    def _jobset(self, job: Object) -> tuple[Object, dict[str, Any]]:
        """Return the specification of a JobSet, and the variables that Kubeflow Trainer adds to the container of a node."""
        if job["kind"] == "JobSet":
            return deepcopy(job["spec"]), {}
        runtime = self.objects["clustertrainingruntimes", job["spec"]["runtimeRef"]["name"]]
        spec, trainer, name = deepcopy(runtime["spec"]["template"]["spec"]), job["spec"]["trainer"], job["metadata"]["name"]
        [replicated] = spec["replicatedJobs"]
        assert replicated["template"]["metadata"]["labels"]["trainer.kubeflow.org/trainjob-ancestor-step"] == "trainer"
        replicated["template"]["spec"] |= {"parallelism": trainer["numNodes"], "completions": trainer["numNodes"]}
        [node] = [c for c in replicated["template"]["spec"]["template"]["spec"]["containers"] if c["name"] == "node"]
        node |= {key: trainer[key] for key in ("image", "command", "args") if key in trainer}
        added: Object = {one["name"]: one for one in trainer.get("env", [])}
        address = f"{name}-node-0-0.{name}"
        values = {"PET_NNODES": str(trainer["numNodes"]), "PET_NPROC_PER_NODE": "1"}
        values |= {"PET_MASTER_ADDR": address, "PET_MASTER_PORT": _PORT}
        index = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
        added |= {key: {"name": key, "value": value} for key, value in values.items()}
        added["PET_NODE_RANK"] = {"name": "PET_NODE_RANK", "valueFrom": index}
        return spec, added

    def _run(self, name: str, spec: Object, env: dict[str, Any], network: Network) -> bool:
        """Run the pods of a JobSet to their end; whether all of them succeeded."""
        [replicated] = spec["replicatedJobs"]
        job = replicated["template"]["spec"]
        pods = []
        for index in range(job.get("completions", 1)):
            pod_spec = deepcopy(job["template"]["spec"])
            for container in pod_spec["containers"]:
                container["env"] = [*({one["name"]: one for one in container["env"]} | env).values()]
            assert self.image
            if wrong := security.violations(pod_spec, job["template"].get("metadata", {}).get("annotations", {})):
                raise PermissionError(f'pods of {name} are forbidden: violates PodSecurity "restricted": {"; ".join(wrong)}')
            pod = Pod(f"{name}-{replicated['name']}-0-{index}", index, pod_spec, self.image, self.folder / "pods", self.volumes)
            pod.secrets = {key[1]: value["stringData"] for key, value in self.objects.items() if key[0] == "secrets"}
            pod.namespace, pod.address = network.add(index)
            pods.append(pod)
        hosts = {f"{pod.name}.{name}": pod.address for pod in pods}
        results: dict[int, bool] = {}
        threads = [threading.Thread(target=self._run_pod, args=(name, pod, hosts, results)) for pod in pods]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(results) == len(pods) and all(results.values())

    def _run_pod(self, name: str, pod: Pod, hosts: dict[str, str], results: dict[int, bool]) -> None:
        self.pods[pod.name] = pod
        metadata = {
            "name": pod.name,
            "namespace": "default",
            "labels": {"jobset.sigs.k8s.io/jobset-name": name},
            "annotations": {"batch.kubernetes.io/job-completion-index": str(pod.index)},
        }
        spec = pod.spec | {"nodeName": f"machine-{pod.index}"}
        with self.changed:
            self.objects["pods", pod.name] = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        self.set_status("pods", pod.name, {"phase": "Pending"})
        for container, key in (*((one, "init") for one in pod.spec.get("initContainers", [])), (pod.spec["containers"][0], "")):
            which = "initContainerStatuses" if key else "containerStatuses"
            running = [{"name": container["name"], "state": {"running": {}}}]
            self.set_status("pods", pod.name, {which: running} | ({} if key else {"phase": "Running"}))
            code = pod.run(container, hosts)
            ended = [{"name": container["name"], "state": {"terminated": {"exitCode": code}}}]
            self.set_status("pods", pod.name, {which: ended} | ({"phase": "Failed"} if code else {}))
            if code:
                results[pod.index] = False
                for other in list(self.pods.values()):  # backoffLimit 0: the Job fails, and its pods are ended
                    if other is not pod:
                        other.end()
                return
        results[pod.index] = True
        self.set_status("pods", pod.name, {"phase": "Succeeded"})


def _status(code: int, reason: str, message: str) -> Object:
    state = "Success" if code < 300 else "Failure"
    return {"kind": "Status", "apiVersion": "v1", "status": state, "reason": reason, "message": message, "code": code}


def _group(group: str, version: str) -> Object:
    found = {"groupVersion": f"{group}/{version}", "version": version}
    return {"name": group, "versions": [found], "preferredVersion": found}


def _validates_fields(place: list[str]) -> Object:
    """Return the OpenAPI document of a group by which kubectl knows that the server validates fields, and leaves it to it."""
    group = place[1] if place[0] == "apis" else ""
    kinds = [one.kind for one in RESOURCES.values() if one.group == group] if group else [*_CORE.values()]
    paths = {
        f"/{kind}": {
            "patch": {
                "x-kubernetes-group-version-kind": {"group": group, "version": place[-1], "kind": kind},
                "parameters": [{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}],
                "responses": {"200": {"description": "OK"}},
            }
        }
        for kind in kinds
    }
    return {"openapi": "3.0.0", "info": {"title": "stub", "version": "1"}, "paths": paths}


def _resource(plural: str, kind: str, *, namespaced: bool) -> Object:
    verbs = ["create", "delete", "get", "list"]
    return {"name": plural, "singularName": kind.lower(), "namespaced": namespaced, "kind": kind, "verbs": verbs}


class Server(ThreadingHTTPServer):
    """The API server of a cluster, with the kubeconfig that leads to it."""

    daemon_threads = True

    def __init__(self, cluster: Cluster) -> None:
        """Listen on a free port."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.cluster = cluster
        self.kubeconfig = cluster.folder / "kubeconfig"
        self.kubeconfig.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.server_port}"}}],
                    "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                    "users": [{"name": "u", "user": {}}],
                    "current-context": "c",
                }
            )
        )

    def __enter__(self) -> "Server":
        """Serve in a thread."""
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the server, and every pod."""
        for pod in list(self.cluster.pods.values()):
            pod.end()
        for thread in self.cluster.threads:
            thread.join(60)
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        """Answer discovery, objects, lists of pods and logs."""
        url = urlsplit(self.path)
        parts, query = url.path.strip("/").split("/"), parse_qs(url.query)
        groups = {(one.group, one.version) for plural, one in RESOURCES.items() if plural in self.server.cluster.known}
        if parts == ["api"]:
            self._json(200, {"kind": "APIVersions", "versions": ["v1"]})
        elif parts == ["apis"]:
            listed = [_group(group, version) for group, version in sorted(groups)]
            self._json(200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed})
        elif parts == ["api", "v1"]:
            listed = [_resource(plural, kind, namespaced=True) for plural, kind in _CORE.items()]
            listed.append(_resource("pods/log", "Pod", namespaced=True))
            self._json(200, {"kind": "APIResourceList", "groupVersion": "v1", "resources": listed})
        elif parts[0] == "apis" and len(parts) == 3 and (parts[1], parts[2]) in groups:
            mine = [one for name, one in RESOURCES.items() if one.group == parts[1] and name in self.server.cluster.known]
            listed = [_resource(one.plural, one.kind, namespaced=one.namespaced) for one in mine]
            self._json(200, {"kind": "APIResourceList", "groupVersion": f"{parts[1]}/{parts[2]}", "resources": listed})
        elif parts == ["openapi", "v3"]:
            places = {f"apis/{group}/{version}" for group, version in groups} | {"api/v1"}
            self._json(200, {"paths": {place: {"serverRelativeURL": f"/openapi/v3/{place}"} for place in sorted(places)}})
        elif parts[:2] == ["openapi", "v3"]:
            self._json(200, _validates_fields(parts[2:]))
        elif parts[-1] == "log":
            self._log(parts[-2], query["container"][0], follow=query.get("follow") == ["true"])
        else:
            self._objects(parts, query)

    def do_POST(self) -> None:
        """Create an object."""
        document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._json(*self.server.cluster.create(urlsplit(self.path).path.rstrip("/").rpartition("/")[2], document))

    def do_DELETE(self) -> None:
        """Delete an object."""
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        plural, name = urlsplit(self.path).path.strip("/").split("/")[-2:]
        self._json(*self.server.cluster.delete(plural, name))

    def _objects(self, parts: list[str], query: dict[str, list[str]]) -> None:
        cluster = self.server.cluster
        if cluster.refusals:
            cluster.refusals -= 1
            self._json(503, _status(503, "ServiceUnavailable", "the server is currently unable to handle the request"))
            return
        if parts[-1] in (*RESOURCES, *_CORE):
            name, _, value = query.get("labelSelector", ["="])[0].partition("=")
            with cluster.changed:
                found = [one for (plural, _), one in cluster.objects.items() if plural == parts[-1]]
                chosen = [one for one in found if one["metadata"].get("labels", {}).get(name) == value or not name]
                self._json(200, {"kind": "List", "apiVersion": "v1", "metadata": {}, "items": chosen})
            return
        with cluster.changed:
            one = cluster.objects.get((parts[-2], parts[-1])) if len(parts) > 1 else None
        self._json(*((200, one) if one else (404, _status(404, "NotFound", f'{"/".join(parts)} "{parts[-1]}" not found'))))

    def _log(self, name: str, container: str, *, follow: bool) -> None:
        pod = self.server.cluster.pods[name]
        which = "initContainerStatuses" if container == "preflight" else "containerStatuses"

        def ended() -> bool:
            states = self.server.cluster.objects["pods", name].get("status", {}).get(which, [])
            return bool(states) and "terminated" in states[0]["state"]

        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with suppress(OSError), pod.log(container).open("rb") as log:
            for chunk in iter(lambda: self._next(log.read, ended, follow=follow), b""):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            self.wfile.write(b"0\r\n\r\n")

    @staticmethod
    def _next(read: Callable[[int], bytes], ended: Callable[[], bool], *, follow: bool) -> bytes:
        """Return what is next in a log, nothing at its end, which is when the container has ended if it is followed."""
        while True:
            last = not follow or ended()
            if (chunk := read(65536)) or last:
                return chunk
            time.sleep(0.05)  # a file says nothing when it grows

    def _json(self, code: int, document: Object) -> None:
        body = json.dumps(_encoded(document)).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _encoded(document: Object) -> Object:
    """Return an object as the API shows it: of a Secret, `stringData` becomes `data`."""
    if document.get("kind") != "Secret" or "stringData" not in document:
        return document
    data = {name: base64.b64encode(value.encode()).decode() for name, value in document["stringData"].items()}
    return {name: value for name, value in document.items() if name != "stringData"} | {"data": data}
