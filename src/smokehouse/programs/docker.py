"""Docker Engine, through its API: the engine that DOCKER_HOST specifies, or else the current Docker context.

See: https://docs.docker.com/reference/api/engine/
"""

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import quote

from smokehouse import clock
from smokehouse.console import as_typed
from smokehouse.errors import UserError
from smokehouse.programs.process import Ended

if TYPE_CHECKING:
    from docker import APIClient

# Seconds in which the engine has to send or take something. It says nothing while it unpacks an image.
_QUERY_DEADLINE = 120.0
_TRANSFER_DEADLINE = 1800.0

# Of an image that it sends: in so many seconds it sends at least so many bytes, and in all at most twice its size and so many.
_WINDOW, _LEAST, _MORE = 300.0, 10 << 20, 1 << 30

_CHUNK = 1 << 20
_LONGEST_MESSAGE, _MOST_MESSAGES = 1 << 20, 64 << 20  # bytes of an event or of a step of progress, and of all in one answer
_MOST = 256 << 20  # bytes of a container's output that are kept, and of an answer
_STDERR = 2  # the number of a stream in the frames of an attached container
_HEADER = 8  # bytes of a frame
_Result = TypeVar("_Result")
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True)
class EngineImage:
    """An image in the engine: the `digest` of its manifest, the engine's own `id` of it, and its size in bytes."""

    reference: str
    id: str
    digest: str
    labels: Mapping[str, str]
    size: int = 0


@dataclass(frozen=True)
class Mount:
    """A folder of this machine that a container has at `target`."""

    source: Path
    target: str
    read_only: bool = True


@dataclass(frozen=True)
class Container:
    """A container to run: without a network, with a root that is read-only, and with nothing left of it afterwards.

    `user` is UID:GID. `entrypoint` and `workdir` are the image's where empty.
    """

    image: EngineImage
    command: tuple[str, ...]
    user: str
    mounts: tuple[Mount, ...]
    gpus: bool = False
    entrypoint: str = ""
    workdir: str = ""
    environ: Mapping[str, str] | None = None

    def create(self, client: "APIClient") -> str:
        """Create this on an engine, and return its ID; raises docker.errors.APIError."""
        from docker.types import DeviceRequest
        from docker.types import Mount as EngineMount

        mounts = [EngineMount(m.target, str(m.source), type="bind", read_only=m.read_only) for m in self.mounts]
        host = client.create_host_config(
            auto_remove=True,
            read_only=True,
            network_mode="none",
            shm_size="2g",
            init=False,
            tmpfs={"/tmp": "rw,exec,mode=1777"},  # noqa: S108 - in the container
            mounts=mounts,
            device_requests=[DeviceRequest(count=-1, capabilities=[["gpu"]])] if self.gpus else None,
        )
        made = client.create_container(
            self.image.id,
            list(self.command),
            user=self.user,
            entrypoint=[self.entrypoint] if self.entrypoint else None,
            working_dir=self.workdir or None,
            environment=dict(self.environ or {}),
            host_config=host,
        )
        return str(made["Id"])


def require() -> None:
    """Raise UserError where the engine cannot be reached."""
    with _engine("the engine"):
        pass


def inspect(reference: str) -> EngineImage:
    """Return the image `reference` in the engine; raises UserError where it is not found."""
    from docker.errors import ImageNotFound

    with _engine(f"{reference}: cannot be inspected") as client:
        try:
            found = client.inspect_image(reference)  # type: ignore[no-untyped-call]
        except ImageNotFound:
            raise UserError(f"{reference}: image not found in the engine; build it, or docker pull it first") from None
        # The containerd image store identifies images by manifest; the older one has that of pulled and pushed images only.
        digests = [str(entry).rpartition("@")[2] for entry in found.get("RepoDigests") or []]
        labels = {str(name): str(value) for name, value in ((found.get("Config") or {}).get("Labels") or {}).items()}
        digest = digests[0] if digests else str(found["Id"])
        return EngineImage(reference, str(found["Id"]), digest, labels, int(found.get("Size") or 0))


def load(archive: IO[bytes] | Iterator[bytes], name: str) -> None:
    """Load the image `name`, a tar file or the parts of one, none empty, into the engine, with its tags; raises UserError."""
    problem = f"{name} cannot be loaded"
    with _engine(problem, _TRANSFER_DEADLINE) as client:
        for message in client.load_image(archive):  # type: ignore[no-untyped-call]
            if error := message.get("error") or message.get("message"):
                raise UserError(f"{problem}: {_explain(str(error))}")


def save(reference: str, archive: Path) -> None:
    """Write the image `reference` to the tar file `archive`; raises UserError."""
    from requests.exceptions import Timeout

    most = 2 * inspect(reference).size + _MORE  # older engines write layers as they are, newer ones compressed
    problem = f"{reference}: cannot be saved"
    with _engine(problem, _TRANSFER_DEADLINE) as client, archive.open("wb") as file:
        # client.get_image has no deadline.
        place = f"{client.base_url}/v{client.api_version}/images/{quote(reference, safe='/:')}/get"
        response, written = client.get(place, stream=True, timeout=_TRANSFER_DEADLINE), 0
        response.raise_for_status()

        def copy() -> None:
            nonlocal written
            with response:  # here, as to close it would wait for a part that does not come
                for chunk in response.iter_content(_CHUNK):
                    written += len(chunk)
                    if written > most:
                        raise UserError(f"{problem}: expected at most {most} bytes, found more; remove that image")
                    file.write(chunk)

        try:
            _within(_WINDOW, copy, lambda: written)
        except Timeout:
            raise UserError(f"{problem}: expected {_LEAST >> 20} MiB in {_WINDOW:.0f} s, found fewer; try again") from None


def tag(reference: str, names: Sequence[str]) -> None:
    """Tag the image `reference` with `names`; raises UserError."""
    for name in names:
        with _engine(f"{reference} cannot be tagged as {name}") as client:
            repository, _, word = name.rpartition(":")
            client.tag(reference, repository, word)


def run(container: Container) -> int:
    """Run a container to its end as if it were this process, and return its exit code; raises UserError.

    What it writes goes to the standard streams, and the signals of users and supervisors go to it.
    """
    replaced: dict[signal.Signals, Any] = {}
    with _engine(f"{container.image.reference} cannot be run") as client:
        running = _Running(client, container, (sys.stdout.buffer, sys.stderr.buffer))
        try:
            for number in _FORWARDED:
                if (handler := signal.getsignal(number)) is not signal.SIG_IGN:
                    signal.signal(number, lambda found, _: running.forward(found))
                    replaced[number] = handler
            sys.stdout.flush()
            return running.end(None)
        finally:
            for number, handler in replaced.items():
                signal.signal(number, handler)


def run_to_end(container: Container, *, deadline: float) -> Ended:
    """Run a container to its end, and return its exit code and output; raises UserError after `deadline` seconds."""
    streams = _Buffer(), _Buffer()
    with _engine(f"{container.image.reference} cannot be run") as client:
        code = _Running(client, container, streams).end(deadline)
    return Ended(code, *(stream.text for stream in streams))


class _Buffer:
    """A stream in memory, of which a part can be written to without being flushed."""

    def __init__(self) -> None:
        self._data = bytearray()

    def write(self, data: bytes) -> None:
        """Write `data`; raises UserError where it is too much to keep."""
        if len(self._data) + len(data) > _MOST:
            raise UserError(f"the container: expected at most {_MOST >> 20} MiB of output, found more; it was stopped")
        self._data += data

    def flush(self) -> None:
        """Do nothing."""

    @property
    def text(self) -> str:
        """All that was written."""
        return self._data.decode(errors="replace")


class _Running:
    """A container that runs: a thread copies its output, and says how it ended; signals are sent to it meanwhile."""

    def __init__(self, client: "APIClient", container: Container, streams: Sequence[Any]) -> None:
        self._client, self._container, self._streams = client, container, streams
        self._reference = container.image.reference
        # SimpleQueue, because a handler of signals may put something into it at any time.
        self._news: queue.SimpleQueue[signal.Signals | int | Exception] = queue.SimpleQueue()
        self._id = ""

    def forward(self, number: int) -> None:
        """Send the container a signal, soon."""
        self._news.put(signal.Signals(number))

    def end(self, deadline: float | None) -> int:
        """Start it, wait for its end, and return its exit code; raises UserError, and removes what has not ended."""
        from docker.errors import APIError

        try:
            self._id = self._container.create(self._client)
            # Both before the start, so that nothing is missed. Events of the past are for an engine that is slow to listen.
            events = self._client.events(since=1, filters={"container": self._id, "event": ["die", "destroy"]}, decode=True)
            output = self._client.attach_socket(self._id, {"stdout": 1, "stderr": 1, "stream": 1})
            # A container may be silent for longer than an answer of the engine takes; the package's own streams have no limit.
            getattr(output, "_sock", output).settimeout(None)
            self._client.start(self._id)
            threading.Thread(target=self._follow, args=(output, events), daemon=True).start()
            return self._wait(deadline)
        finally:
            with suppress(APIError, OSError):  # it removes itself once it has ended
                if self._id:
                    self._client.remove_container(self._id, force=True)

    def _wait(self, deadline: float | None) -> int:
        from docker.errors import APIError

        until = None if deadline is None else clock.now() + deadline
        while True:
            try:
                news = self._news.get(timeout=None if until is None else max(0.0, until - clock.now()))
            except queue.Empty:
                if until is None or clock.now() < until:
                    continue
                raise UserError(f"{self._reference} timed out after {deadline:.0f} s and was stopped; try again") from None
            if isinstance(news, signal.Signals):
                with suppress(APIError):  # it has just ended
                    self._client.kill(self._id, news.value)
            elif isinstance(news, Exception):
                raise news
            else:
                return news

    def _follow(self, output: Any, events: Any) -> None:
        try:
            for stream, data in _frames(output):
                with suppress(BrokenPipeError):  # nobody reads on, but how it ends counts
                    self._streams[stream == _STDERR].write(data)
                    self._streams[stream == _STDERR].flush()
            code = None
            for event in events:
                if event["Action"] == "die":
                    code = int(event["Actor"]["Attributes"]["exitCode"])
                if event["Action"] == "destroy":
                    break
            if code is None:
                raise UserError(f"{self._reference}: the engine ended before the container did; start it, and try again")
            self._news.put(code)
        except Exception as failed:  # noqa: BLE001 - raised again by the thread that waits
            self._news.put(failed)


def _frames(output: Any) -> Iterator[tuple[int, bytes]]:
    """Yield what an attached container writes: the number of the stream, and a part of it.

    The package waits for more on the socket than TLS has already read from it.
    """
    receive: Callable[[int], bytes] = output.recv if hasattr(output, "recv") else output.read

    def read(size: int) -> bytes:
        data = b""
        while len(data) < size and (part := receive(size - len(data))):
            data += part
        return data

    while len(header := read(_HEADER)) == _HEADER:
        left = int.from_bytes(header[4:], "big")  # up to 4 GiB
        while left and (part := receive(min(left, _CHUNK))):
            left -= len(part)
            yield header[0], part


@contextmanager
def _engine(problem: str, deadline: float | None = None) -> Iterator["APIClient"]:
    """Yield a connection to the engine; raises UserError, which begins with `problem` where the engine gives an error."""
    deadline = deadline or _QUERY_DEADLINE
    from docker.errors import APIError, DockerException
    from requests.exceptions import RequestException, Timeout

    try:
        client = _client()(version="auto", timeout=deadline, **_endpoint())  # type: ignore[arg-type]
    except (DockerException, RequestException, OSError, ValueError):
        without = as_typed("install")
        raise UserError(
            f"the engine cannot be reached; start it, or set DOCKER_HOST; or use {without}, which needs no engine"
        ) from None
    try:
        yield client
    except APIError as error:
        raise UserError(f"{problem}: {_explain(error.explanation or str(error))}") from None
    except Timeout:
        raise UserError(f"{problem}: the engine timed out after {deadline:.0f} s; try again") from None
    except (DockerException, RequestException) as broken:
        raise UserError(f"{problem}: {_explain(str(broken))}") from None
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as broken:  # of what reads its JSON
        raise UserError(
            f"{problem}: expected an answer of Docker Engine, found another "
            f"({type(broken).__name__}: {str(broken)[:100]}); check DOCKER_HOST and the Docker context"
        ) from broken
    finally:
        client.close()


@cache
def _client() -> type["APIClient"]:
    """Return the class of a client whose answers have an end, in bytes and in time; importing the package takes long."""
    from docker import APIClient
    from requests import PreparedRequest, Response
    from requests.exceptions import ContentDecodingError

    class Client(APIClient):
        """A client that reads what is no stream itself, and messages in a stream one by one."""

        def send(self, request: PreparedRequest, **options: Any) -> Response:
            """Send a request, and read the answer; of a stream, read its head."""
            sent, limit = super().send, options.get("timeout") or _TRANSFER_DEADLINE  # it is None of events

            def receive() -> Response:
                response = sent(request, **options | {"stream": True})
                if options.get("stream") and response.ok:
                    return response
                body = bytearray()
                for data in response.iter_content(_CHUNK):
                    body += data
                    if len(body) > _MOST:
                        raise ContentDecodingError(f"the engine's answer has more than {_MOST >> 20} MiB")
                response._content = bytes(body)  # as Response.content keeps it
                return response

            if request.body is None or isinstance(request.body, bytes | str):
                return _within(limit, receive)
            return receive()  # of what is streamed to it, the engine has to take each part in time

        def _stream_helper(self, response: Response, decode: bool = False) -> Iterator[Any]:
            """Yield the messages in an answer, such as events: a line each."""
            self._raise_for_status(response)  # type: ignore[attr-defined]
            line, total = bytearray(), 0
            for data in response.raw.stream(_CHUNK):
                total += len(data)
                *ended, rest = data.split(b"\n")
                for part in ended:
                    yield from _message(line + part)
                    line.clear()
                line += rest
                if len(line) > _LONGEST_MESSAGE or total > _MOST_MESSAGES:
                    raise ContentDecodingError("the engine's messages are longer than an engine's")
            yield from _message(line)

    return Client


def _message(line: bytes | bytearray) -> Iterator[Any]:
    """Yield the message in a line, none of an empty one; raises ValueError where it is not JSON."""
    if line.strip():
        yield json.loads(line)


def _within(seconds: float, function: Callable[[], _Result], moved: Callable[[], int] = lambda: 0) -> _Result:
    """Return the result of a function that a server may hold up, byte by byte; raises requests' Timeout.

    It has so many seconds, again and again where `moved`, a number of bytes, grew enough meanwhile.
    """
    from requests.exceptions import Timeout

    ended: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def call() -> None:
        try:
            ended.put((function(), None))
        except BaseException as failed:  # noqa: BLE001 - raised again by the thread that waits
            ended.put((None, failed))

    threading.Thread(target=call, daemon=True).start()
    until, before = clock.now() + seconds, 0
    while True:
        try:
            result, failed = ended.get(timeout=max(0.0, until - clock.now()))
            break
        except queue.Empty:
            if clock.now() < until:
                continue
            if (now := moved()) < before + _LEAST:
                raise Timeout from None
            until, before = clock.now() + seconds, now
    if failed:
        raise failed
    return cast(_Result, result)


def _endpoint() -> dict[str, Any]:
    """Return the arguments of a connection to the engine: that of DOCKER_HOST, or of the current context, as docker has it."""
    from docker.context import ContextAPI
    from docker.utils import kwargs_from_env

    if os.environ.get("DOCKER_HOST"):
        return dict(kwargs_from_env())
    name = os.environ.get("DOCKER_CONTEXT")
    if ContextAPI.get_context(name) is None:
        folder = os.environ.get("DOCKER_CONFIG") or "~/.docker"
        raise UserError(
            f"{f'DOCKER_CONTEXT: {name}' if name else 'docker context'}: expected a context in {folder}/contexts, beside a "
            "config.json, found none; create one, or set DOCKER_HOST"
        )
    return dict(ContextAPI.kwargs_from_context(name))


def _explain(reason: str) -> str:
    """Return an error of the engine in one line, with a remedy where one is known."""
    if "no space left on device" in reason.lower():
        return "the engine's disk is full; free disk space with docker builder prune"
    return " ".join(reason.split()) or "the engine gave no reason; run it again"
