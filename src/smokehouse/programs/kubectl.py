"""kubectl, which talks to a cluster of Kubernetes; tried with 1.32.

See: https://kubernetes.io/docs/reference/kubectl/
"""

import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from smokehouse import clock
from smokehouse.errors import UserError, first_of
from smokehouse.programs.process import Ended, run

_DEADLINE = 60.0  # seconds; a cluster that does not answer is not worth waiting for
_LOG_DEADLINE = 300.0
_MOST_LOG = 64 << 20  # bytes of a log that are read back
_GRACE = 5.0  # seconds
# What kubectl says while an API server restarts, is replaced, or has too much to do.
_PASSES = re.compile(
    r"\((ServiceUnavailable|InternalError|TooManyRequests|Timeout|ServerTimeout)\)|onnect(ion)? to the server|"
    r"connection (refused|reset)|TLS handshake timeout|unexpected EOF|i/o timeout|etcdserver: "
)
_LONGEST_LINE = 1 << 20  # bytes; the rest of a longer one is another line


class KubectlError(Exception):
    """A failure of kubectl; its text is the reason that the cluster gave, in one line."""


class NoSuchObjectError(KubectlError):
    """The cluster has no such object."""


class UnreachableError(KubectlError):
    """The cluster did not answer, or not yet: a later try may succeed."""


class NoSuchKindError(KubectlError):
    """The cluster does not know objects of this kind."""


class _Part(BaseModel):
    """A part of an object, of which fields that nobody reads here are kept as they are."""

    model_config = ConfigDict(extra="allow")


class _Metadata(_Part):
    name: str
    annotations: dict[str, str] | None = None


class _Spec(_Part):
    nodeName: str | None = None  # noqa: N815 - as Kubernetes calls it


class _Condition(_Part):
    type: str
    status: str
    message: str | None = None
    reason: str | None = None


class _Terminated(_Part):
    exitCode: int = Field(ge=-(1 << 31), lt=1 << 31)  # noqa: N815 - as Kubernetes calls it
    reason: str | None = None


class _Waiting(_Part):
    reason: str | None = None
    message: str | None = None


class _State(_Part):
    terminated: _Terminated | None = None
    waiting: _Waiting | None = None


class _Container(_Part):
    state: _State = _State()


class _Status(_Part):
    phase: str | None = None
    reason: str | None = None
    message: str | None = None
    conditions: list[_Condition] | None = None
    initContainerStatuses: list[_Container] | None = None  # noqa: N815 - as Kubernetes calls it
    containerStatuses: list[_Container] | None = None  # noqa: N815 - as Kubernetes calls it


class _Object(_Part):
    """An object of Kubernetes, as far as it is read here."""

    metadata: _Metadata
    spec: _Spec = _Spec()
    status: _Status = _Status()


class _Pods(_Part):
    items: list[Any]


def _object(found: Any) -> dict[str, Any]:
    """Return an object without what is null in it; raises ValidationError."""
    return _Object.model_validate(found).model_dump(exclude_none=True)


def _unlike(invalid: ValidationError) -> str:
    return f"expected objects of Kubernetes, found another answer ({first_of(invalid, 'answer')})"


@dataclass(frozen=True)
class Cluster:
    """A cluster and a namespace as kubectl's configuration, KUBECONFIG, specifies them; None for its current ones."""

    context: str | None = None
    namespace: str | None = None

    def create(self, document: Mapping[str, Any]) -> None:
        """Create one object. Raises KubectlError, and UserError where kubectl is not found or the cluster does not answer."""
        _check(self._run(["create", "--filename", "-", "--output", "name"], stdin=json.dumps(document)))

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """Return one object. Raises KubectlError and UserError."""
        try:
            return _object(self._read(["get", kind, name]))
        except ValidationError as invalid:
            raise KubectlError(_unlike(invalid)) from None

    def pods(self, selector: str) -> list[dict[str, Any]]:
        """Return the pods with these labels. Raises KubectlError and UserError."""
        try:
            return [_object(item) for item in _Pods.model_validate(self._read(["get", "pods", "--selector", selector])).items]
        except ValidationError as invalid:
            raise KubectlError(_unlike(invalid)) from None

    def delete(self, kind: str, name: str) -> None:
        """Delete an object, without waiting until it is gone, and without an error where it is. Raises KubectlError."""
        _check(self._run(["delete", kind, name, "--ignore-not-found", "--wait=false"]))

    def log(self, pod: str, container: str) -> str:
        """Return the log of a container, its first 64 MiB. Raises KubectlError and UserError."""
        command = ["logs", pod, "--container", container, f"--limit-bytes={_MOST_LOG}"]
        ended = self._run(command, deadline=_LOG_DEADLINE)
        _check(ended)
        return ended.stdout

    def follow(self, pod: str, container: str, write: Callable[[str], None], deadline: float) -> None:
        """Pass each line of a container's log to `write`, until the container ends or after `deadline` seconds."""
        command = self._command(["logs", pod, "--container", container, "--follow"])
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
        ended, until = threading.Event(), clock.now() + deadline

        def end_in_time() -> None:
            while (left := until - clock.now()) > 0:
                if ended.wait(left):
                    return
            process.terminate()

        threading.Thread(target=end_in_time, daemon=True).start()
        try:
            assert process.stdout
            for line in iter(partial(process.stdout.readline, _LONGEST_LINE), b""):
                write(line.decode(errors="replace").rstrip("\n"))
        finally:
            ended.set()
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=_GRACE)
            process.kill()
            process.wait()

    def _read(self, arguments: Sequence[str]) -> Any:
        ended = self._run([*arguments, "--output", "json"])
        _check(ended)
        try:
            return json.loads(ended.stdout)
        except (ValueError, RecursionError) as error:
            raise KubectlError(f"expected JSON of kubectl, found something else ({error})") from None

    def _run(self, arguments: Sequence[str], *, stdin: str = "", deadline: float = _DEADLINE) -> Ended:
        return run(self._command(arguments), deadline=deadline, environ=os.environ, cwd=Path.cwd(), stdin=stdin)

    def _command(self, arguments: Sequence[str]) -> list[str]:
        program = shutil.which("kubectl")
        if not program:
            raise UserError(
                "kubectl: not found; install it and give it access to the cluster, or give --dry-run, which prints the job"
            )
        chosen = [f"--context={self.context}"] if self.context else []
        chosen += [f"--namespace={self.namespace}"] if self.namespace else []
        limit = [] if "--follow" in arguments else [f"--request-timeout={_DEADLINE:.0f}s"]
        return [program, *chosen, *limit, *arguments]


def _check(ended: Ended) -> None:
    """Raise KubectlError where kubectl failed."""
    if ended.code == 0:
        return
    lines = [line for line in ended.stderr.splitlines() if line.strip() and not re.match(r"[EWI]\d{4} ", line)]
    reason = (lines or ["no message"])[-1].removeprefix("error: ").removeprefix("Error from server ")
    if "no matches for kind" in reason or "doesn't have a resource type" in reason:
        raise NoSuchKindError(reason)
    if "(NotFound)" in reason:
        raise NoSuchObjectError(reason)
    raise (UnreachableError if _PASSES.search(reason) else KubectlError)(reason)
