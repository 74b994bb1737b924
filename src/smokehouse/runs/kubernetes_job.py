"""A job of Kubernetes while it runs: create its objects, wait for its pods, say why they do not start, delete it again."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from smokehouse import clock
from smokehouse.console import status
from smokehouse.errors import UserError
from smokehouse.programs.kubectl import Cluster, KubectlError, NoSuchKindError, NoSuchObjectError, UnreachableError
from smokehouse.runs import jobs
from smokehouse.runs.manifests import Document

_DIGITS = 10  # of the number of a node, which has fewer
_POLL = 2.0  # seconds; a job waits for minutes
_PATIENCE = 300.0  # seconds in which an API server comes back
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Job:
    """A TrainJob or JobSet (`kind`) in a cluster, which ends after `deadline` seconds; with `keep` it is left there."""

    cluster: Cluster
    kind: str
    name: str
    deadline: int
    keep: bool

    @contextmanager
    def created(self, documents: Sequence[Document]) -> Iterator[None]:
        """Create the objects of the job, and delete them in the end, however it comes; raises UserError."""
        made: list[Document] = []
        with jobs.ended_in_order():
            try:
                for document in documents:
                    self._create(document, made)
                yield
            except KubectlError as error:
                raise UserError(f"kubectl: {error}; see kubectl auth can-i, and --dry-run for what is created") from error
            finally:
                self._clean(made)

    def pods(self) -> list[Document]:
        """Return the job's pods, in the order of their nodes. Raises KubectlError and UserError."""
        return sorted(self.cluster.pods(f"jobset.sigs.k8s.io/jobset-name={self.name}"), key=_index)

    def wait(self, *, ended: bool = False) -> str:
        """Return the first node's pod once it runs, or once the job has `ended`; raises UserError where it never will."""
        until = clock.now() + self.deadline
        said = ""
        while clock.now() < until:
            condition, pods = self.patiently(lambda: (self._condition(), self.pods()))
            failed = next((pod for pod in pods if _failed_preflight(pod)), None)
            if failed:
                raise UserError(self._preflight_of(failed))
            first = next((pod for pod in pods if _index(pod) == 0), None)
            phase = first["status"].get("phase") if first else ""
            if first and (condition if ended else phase in ("Running", "Succeeded", "Failed")):
                if others := _waits_for(pods) if not ended else "":
                    status(f"the first node waits for {others}")
                return str(first["metadata"]["name"])
            if condition:
                raise UserError(
                    f"{self.kind} {self.name}: expected it to run, found it {condition}; see kubectl describe, with --keep"
                )
            none = "pods of the job, or its admission to a queue; kubectl get events says why there are none"
            now = _waits_for(pods) or ("the end of the job" if ended else none)
            if now != said:
                status(f"waiting for {now}")
                said = now
            time.sleep(_POLL)
        raise UserError(f"{self.kind} {self.name}: expected it to end within {self.deadline} s, found it waiting; {said}")

    def patiently(self, ask: Callable[[], Answer]) -> Answer:
        """Return what the cluster answers; asks again while it does not. Raises KubectlError and UserError."""
        until, said = clock.now() + _PATIENCE, False
        while True:
            try:
                return ask()
            except NoSuchObjectError as error:
                raise UserError(
                    f"{self.kind} {self.name}: expected it in the cluster, found it deleted ({error}); start it again"
                ) from error
            except UnreachableError as error:
                if clock.now() > until:
                    raise
                if not said:
                    status(f"waiting for the cluster, which does not answer ({error})")
                    said = True
                time.sleep(_POLL)

    def failure(self) -> str:
        """Return how a job that has ended failed, and where; empty where it succeeded. Raises KubectlError and UserError."""
        condition, pods = self.patiently(lambda: (self._condition(), self.pods()))
        if not condition.startswith("failed"):
            return ""
        bad = [f"{end} of {pod['metadata']['name']} on {_machine(pod)}" for pod in pods if (end := _end_of(pod))]
        return "; ".join(bad) or condition

    def _create(self, document: Document, created: list[Document]) -> None:
        """Create an object, and remember it; a runtime that exists already is used. Raises UserError."""
        kind, name = document["kind"], document["metadata"]["name"]
        try:
            if kind == "ClusterTrainingRuntime" and self._exists(name):
                return
            self.cluster.create(document)
        except NoSuchKindError as error:
            fix = "install Kubeflow Trainer, or give --kind jobset" if self.kind == "trainjob" else "install JobSet"
            raise UserError(f"{kind}: expected a cluster that knows it, found none ({error}); {fix}") from error
        except KubectlError as error:
            if kind != "ClusterTrainingRuntime" or "orbidden" not in str(error):
                raise
            fix = "have an administrator apply what --dry-run prints of it, or give --kind jobset"
            raise UserError(f"{kind} {name}: expected the right to create it, found none ({error}); {fix}") from error
        if kind != "ClusterTrainingRuntime":
            created.append(document)

    def _exists(self, runtime: str) -> bool:
        try:
            self.cluster.get("clustertrainingruntimes.trainer.kubeflow.org", runtime)
        except NoSuchObjectError:
            return False
        return True

    def _clean(self, created: Sequence[Document]) -> None:
        for document in created if not self.keep else ():
            try:
                self.cluster.delete(document["kind"], document["metadata"]["name"])
            except (KubectlError, UserError) as error:
                status(f"{document['kind']} {document['metadata']['name']} is left in the cluster ({error}); delete it")

    def _condition(self) -> str:
        """Return how the job ended, with the reason; empty where it has not."""
        found = self.cluster.get(self.kind, self.name)
        for condition in found.get("status", {}).get("conditions", []):
            if condition["type"] in ("Complete", "Completed", "Failed") and condition["status"] == "True":
                return " ".join(f"{condition['type'].lower()}: {condition.get('message', '')}".split()).rstrip(": ")[:300]
        return ""

    def _preflight_of(self, pod: Document) -> str:
        """Return what the preflight of a pod found, with the machine that it ran on."""
        name, node = pod["metadata"]["name"], _machine(pod)
        try:
            lines = [line.strip() for line in self.cluster.log(name, "preflight").splitlines()]
        except KubectlError as error:
            lines = [f"its log cannot be read ({error})"]
        failures = [line.removeprefix("FAIL").strip() for line in lines if line.startswith("FAIL")]
        found = "; ".join(failures) or " ".join(lines[-1:]) or "nothing printed"
        return f"{node}: expected a preflight that passes, found {found[:1000]}; fix it, or run kubectl cordon {node}"


def _index(pod: Document) -> int:
    annotations = pod["metadata"].get("annotations", {})
    text = annotations.get("batch.kubernetes.io/job-completion-index", "")
    return int(text) if text.isdecimal() and len(text) < _DIGITS else sys.maxsize


def _states(pod: Document, which: str) -> list[Document]:
    return list(pod.get("status", {}).get(which, []))


def _failed_preflight(pod: Document) -> bool:
    ended = [state["state"].get("terminated", {}) for state in _states(pod, "initContainerStatuses")]
    return any(one.get("exitCode", 0) != 0 for one in ended)


def _exit_code(pod: Document) -> int:
    codes = [state["state"].get("terminated", {}).get("exitCode", 0) for state in _states(pod, "containerStatuses")]
    return next((int(code) for code in codes if code), 0)


def _end_of(pod: Document) -> str:
    """Return how a pod failed: its exit code, and what Kubernetes did to it; empty where it has not failed."""
    code, state = _exit_code(pod), pod.get("status", {})
    reasons = [one["state"].get("terminated", {}).get("reason", "") for one in _states(pod, "containerStatuses")]
    found = [f"exit code {code}" if code else "", *(reason for reason in reasons if reason not in ("Error", "Completed"))]
    found += [state.get("reason", "")] if state.get("phase") == "Failed" else []
    for one in _states(pod, "conditions"):
        if one["type"] == "DisruptionTarget" and one["status"] == "True":
            found.append(one.get("reason", ""))
    said = ", ".join(dict.fromkeys(part for part in found if part))
    message = " ".join(str(state.get("message", "")).split())[:300]
    return f"{said} ({message})" if said and message else said


def _machine(pod: Document) -> str:
    return str(pod.get("spec", {}).get("nodeName", "an unknown node"))


def _waits_for(pods: Sequence[Document]) -> str:
    """Return why pods do not start, as the cluster says it."""
    for pod in pods:
        for condition in _states(pod, "conditions"):
            if condition["type"] == "PodScheduled" and condition["status"] == "False":
                return f"a machine: {condition.get('message', condition.get('reason', ''))}"
        for state in (*_states(pod, "initContainerStatuses"), *_states(pod, "containerStatuses")):
            waiting = state["state"].get("waiting", {})
            if waiting.get("reason") not in (None, "PodInitializing", "ContainerCreating"):
                return f"{pod['metadata']['name']}: {waiting['reason']}: {waiting.get('message', '')}"
    return ""
