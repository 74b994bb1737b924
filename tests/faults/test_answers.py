"""What clusters, engines, registries and services answer is as hostile as it can be: each ends in a sentence, soon.

Beside each answer is what has to come of it, written down before it was tried.
"""

import gzip
import hashlib
import io
import json
import os
import resource
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from smokehouse import console
from smokehouse.audits import debian_tracker, osv, service
from smokehouse.audits.model import Package
from smokehouse.errors import UserError
from smokehouse.oci import Descriptor, Layout, Reference, Registry
from smokehouse.oci.model import INDEX, MANIFEST
from smokehouse.programs import docker, slurm
from smokehouse.programs.kubectl import Cluster, KubectlError
from smokehouse.proofs import referrers
from smokehouse.proofs.signing import BUNDLE
from smokehouse.runs import kubernetes_job
from smokehouse.storage.download import Download, fetch

from ..integration.tiny_images import image
from .answers import CONTENT, PATIENT
from .server import Exchange, Hostile

RECORD = Callable[[str, object], None]
SOON = 30.0  # seconds, on a busy machine
DEEP = "[" * 100_000
DIGITS = "9" * 5000
DIGEST = f"sha256:{'a' * 64}"


@pytest.fixture(autouse=True)
def _soon() -> Iterator[None]:
    """Whatever is answered, the end comes soon."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < SOON


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put a program into PATH that runs a script of the shell."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")

    def put(name: str, script: str) -> None:
        program = tmp_path / "bin" / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    return put


def says(text: str, place: Path) -> str:
    """Return a script that prints a text, which may be longer than an argument can be."""
    place.write_text(text)
    return f"cat {place}"


# Kubernetes

POD = {"metadata": {"name": "pod"}}
NO_PODS = {
    "nothing": "",
    "a list": "[]",
    "null": "null",
    "text": '"pods"',
    "nested": DEEP,
    "5000 digits": f'{{"items": {DIGITS}}}',
    "no items": "{}",
    "null items": '{"items": null}',
    "items of numbers": '{"items": [1]}',
    "a pod without a name": '{"items": [{}]}',
    "a pod of another kind": json.dumps({"items": [POD | {"status": "fine"}]}),
    "a name of an object": '{"items": [{"metadata": {"name": {}}}]}',
    "conditions of words": json.dumps({"items": [POD | {"status": {"conditions": ["fine"]}}]}),
    "a condition without a type": json.dumps({"items": [POD | {"status": {"conditions": [{}]}}]}),
    "an exit code of words": json.dumps(
        {"items": [POD | {"status": {"containerStatuses": [{"state": {"terminated": {"exitCode": "many"}}}]}}]}
    ),
    "a large exit code": json.dumps(
        {"items": [POD | {"status": {"containerStatuses": [{"state": {"terminated": {"exitCode": 1 << 99}}}]}}]}
    ),
}


@pytest.mark.parametrize("kind", NO_PODS)
def test_pods_that_are_none(kind: str, answers: Callable[[str, str], None], tmp_path: Path, record_property: RECORD) -> None:
    record_property("fault", "Kubernetes")
    answers("kubectl", says(NO_PODS[kind], tmp_path / "answer"))
    with pytest.raises(KubectlError, match=r"^expected (JSON of kubectl, found something else|objects of Kubernetes, found)"):
        Cluster().pods("a=b")


def test_a_pod_of_nulls_is_one(answers: Callable[[str, str], None], tmp_path: Path, record_property: RECORD) -> None:
    """Kubernetes leaves out what is empty, and other servers write null."""
    record_property("fault", "Kubernetes")
    status = {"conditions": None, "containerStatuses": [{"state": {"terminated": None}}], "initContainerStatuses": None}
    pod = {"metadata": {"name": "pod", "annotations": None}, "spec": {"nodeName": None}, "status": status}
    answers("kubectl", says(json.dumps({"items": [pod]}), tmp_path / "answer"))
    [found] = Cluster().pods("a=b")
    assert (kubernetes_job._index(found), kubernetes_job._exit_code(found)) == (sys.maxsize, 0)
    assert kubernetes_job._machine(found) == "an unknown node"
    assert not kubernetes_job._failed_preflight(found)


def test_the_number_of_a_node_is_small(record_property: RECORD) -> None:
    record_property("fault", "Kubernetes")
    for text in (DIGITS, "\u0663" * 5000, "-1", "1.5"):
        pod = {"metadata": {"annotations": {"batch.kubernetes.io/job-completion-index": text}}}
        assert kubernetes_job._index(pod) == sys.maxsize


def test_a_line_of_a_log_without_end(answers: Callable[[str, str], None], record_property: RECORD) -> None:
    """It comes in pieces, and is not kept."""
    record_property("fault", "Kubernetes")
    answers("kubectl", "head -c 300000000 /dev/zero")
    sizes: list[int] = []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    Cluster().follow("pod", "node", lambda line: sizes.append(len(line)), 60.0)
    assert sum(sizes) == 300_000_000
    assert max(sizes) <= 1 << 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_what_a_cluster_says_does_not_steer_a_terminal(capsys: pytest.CaptureFixture[str], record_property: RECORD) -> None:
    record_property("fault", "terminal")
    console.status("waiting for \x1b]0;title\x07\x9b2J\nsmokehouse: VERIFIED\u202e")
    assert capsys.readouterr().err == "smokehouse: waiting for ?]0;title??2J?smokehouse: VERIFIED?\n"


# programs that never stop talking

ENDLESS: dict[str, Callable[[], object]] = {
    "kubectl": lambda: Cluster().pods("a=b"),
    "scontrol": lambda: slurm.nodes("a[1-2]"),
}


@pytest.mark.parametrize("stream", ["", ">&2"])
@pytest.mark.parametrize("program", ENDLESS)
def test_a_program_that_talks_without_end(
    program: str, stream: str, answers: Callable[[str, str], None], record_property: RECORD
) -> None:
    record_property("fault", "endless output")
    answers(program, f"exec cat /dev/zero {stream}")
    with pytest.raises(UserError, match=rf"^{program}: expected at most 256 MiB of output, found more; check what it runs$"):
        ENDLESS[program]()


# Slurm

STATES = {"": "", "JobState=": "", "JobState=A=B": "A=B", "xJobState=RUNNING": "", "JobState=OLD JobState=NEW": "OLD"}


@pytest.mark.parametrize("said", STATES)
def test_states_of_slurm(said: str, answers: Callable[[str, str], None], tmp_path: Path, record_property: RECORD) -> None:
    record_property("fault", "Slurm")
    answers("scontrol", says(said, tmp_path / "answer"))
    assert slurm.state("1") == STATES[said]


@pytest.mark.parametrize("said", ["", " \n\n", "\0"])
def test_nodes_that_are_none(said: str, answers: Callable[[str, str], None], tmp_path: Path, record_property: RECORD) -> None:
    record_property("fault", "Slurm")
    answers("scontrol", says(said, tmp_path / "answer"))
    if said == "\0":
        assert slurm.nodes("a") == ["\0"]  # a name that ends in a sentence wherever it is used
    else:
        with pytest.raises(UserError, match=r"^scontrol: expected the nodes of 'a', found none: ; run it in a job of Slurm$"):
            slurm.nodes("a")


# Docker Engine

NO_IMAGES = {
    "a list": "[]",
    "null": "null",
    "text": '"image"',
    "no JSON": "<html>",
    "nested": DEEP,
    "no ID": "{}",
    "5000 digits": f'{{"Id": {DIGITS}}}',
    "digests of a number": '{"Id": "a", "RepoDigests": 5}',
    "a configuration of a list": '{"Id": "a", "Config": [1]}',
    "labels of a list": '{"Id": "a", "Config": {"Labels": [1]}}',
}


def engine(got: Exchange, path: str, body: str) -> None:
    """Answer as an engine does, and `body` to a request for `path`."""
    answer = json.dumps({"ApiVersion": "1.45", "MinAPIVersion": "1.24"}) if "/version" in got.line else body
    assert "/version" in got.line or path in got.line
    # The server closes each connection; without a word of it, the client may use it again meanwhile.
    got.answer("200 OK", answer.encode(), f"Content-Length: {len(answer.encode())}", "Connection: close")


@pytest.mark.parametrize("kind", NO_IMAGES)
def test_images_that_are_none(kind: str, monkeypatch: pytest.MonkeyPatch, record_property: RECORD) -> None:
    record_property("fault", "Docker")
    with Hostile(lambda got: engine(got, "/images/", NO_IMAGES[kind])) as server:
        monkeypatch.setenv("DOCKER_HOST", f"tcp://{server.host}")
        with pytest.raises(UserError, match=r"^tiny: cannot be inspected: "):
            docker.inspect("tiny")


@pytest.mark.parametrize("version", ["[]", "{}", '{"ApiVersion": 5}', '{"ApiVersion": "many"}', "", DEEP])
def test_engines_that_are_none(version: str, monkeypatch: pytest.MonkeyPatch, record_property: RECORD) -> None:
    record_property("fault", "Docker")
    with Hostile(lambda got: got.answer("200 OK", version.encode())) as server:
        monkeypatch.setenv("DOCKER_HOST", f"tcp://{server.host}")
        with pytest.raises(UserError, match=r"^the engine(:| cannot be reached)"):
            docker.require()


def test_an_answer_of_an_engine_without_end(monkeypatch: pytest.MonkeyPatch, record_property: RECORD) -> None:
    record_property("fault", "Docker")
    monkeypatch.setattr(docker, "_MOST", 1 << 20)

    def endless(got: Exchange) -> None:
        if "/version" in got.line:
            engine(got, "", "")
        else:
            got.send(b"HTTP/1.1 200 OK\r\n\r\n")
            got.repeat(bytes(1 << 16))

    with Hostile(endless) as server:
        monkeypatch.setenv("DOCKER_HOST", f"tcp://{server.host}")
        with pytest.raises(UserError, match=r"^tiny: cannot be inspected: the engine's answer has more than 1 MiB"):
            docker.inspect("tiny")


HELD_UP = {
    "a head without end": (b"HTTP/1.1 200 OK\r\n", b"A: b\r\n"),
    "a body byte by byte": (b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n", b" "),
    "chunks byte by byte": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
}


def drip(got: Exchange, kind: str) -> None:
    """Send an answer so slowly that it does not end."""
    begin, again = HELD_UP[kind]
    got.send(begin)
    got.repeat(again, 0.05)


@pytest.mark.parametrize("kind", HELD_UP)
def test_an_answer_of_an_engine_that_drips(kind: str, monkeypatch: pytest.MonkeyPatch, record_property: RECORD) -> None:
    """Each byte comes in time, the answer does not."""
    record_property("fault", "Docker")
    monkeypatch.setattr(docker, "_QUERY_DEADLINE", 1.0)
    with Hostile(lambda got: engine(got, "", "") if "/version" in got.line else drip(got, kind)) as server:
        monkeypatch.setenv("DOCKER_HOST", f"tcp://{server.host}")
        with pytest.raises(UserError, match=r"^tiny: cannot be inspected: the engine timed out after 1 s; try again$"):
            docker.inspect("tiny")


def saved(body: Callable[[Exchange], object], size: object, monkeypatch: pytest.MonkeyPatch, place: Path) -> str:
    """Save an image from an engine that sends `body` for it, and return what is said of it."""

    def serve(got: Exchange) -> None:
        if got.line.split()[1].endswith("/get"):
            body(got)
        else:
            engine(got, "/images/", json.dumps({"Id": "a", "Size": size}))

    with Hostile(serve) as server:
        monkeypatch.setenv("DOCKER_HOST", f"tcp://{server.host}")
        with pytest.raises(UserError) as refused:
            docker.save("tiny", place)
    return str(refused.value)


@pytest.mark.parametrize("head", ["", "Content-Length: 99999999999\r\n"])
def test_an_image_of_an_engine_without_end(
    head: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, record_property: RECORD
) -> None:
    record_property("fault", "Docker")
    monkeypatch.setattr(docker, "_MORE", 1 << 20)

    def endless(got: Exchange) -> None:
        got.send(f"HTTP/1.1 200 OK\r\n{head}\r\n".encode())
        got.repeat(bytes(1 << 16))

    said = saved(endless, 100, monkeypatch, tmp_path / "image.tar")
    assert said == "tiny: cannot be saved: expected at most 1048776 bytes, found more; remove that image"
    assert (tmp_path / "image.tar").stat().st_size <= 1048776


def test_an_image_of_an_engine_that_drips(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, record_property: RECORD) -> None:
    record_property("fault", "Docker")
    monkeypatch.setattr(docker, "_WINDOW", 1.0)
    said = saved(lambda got: drip(got, "a body byte by byte"), 100, monkeypatch, tmp_path / "image.tar")
    assert said == "tiny: cannot be saved: expected 10 MiB in 1 s, found fewer; try again"


MESSAGES: dict[str, bytes] = {
    "one without end": b'{"stream": "' + b"a" * 65000,
    "many": b'{"stream": "a"}\n' * 4000,
    "empty ones": b"\n" * 65000,
    "brackets": b"[" * 65000,
}


@pytest.mark.parametrize("kind", MESSAGES)
def test_messages_of_an_engine_without_end(kind: str, monkeypatch: pytest.MonkeyPatch, record_property: RECORD) -> None:
    record_property("fault", "Docker")
    monkeypatch.setattr(docker, "_MOST_MESSAGES", 1 << 20)

    def serve(got: Exchange) -> None:
        if "/version" in got.line:
            engine(got, "", "")
        else:
            got.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            got.repeat(b"%x\r\n%b\r\n" % (len(MESSAGES[kind]), MESSAGES[kind]))

    with Hostile(serve) as server:
        monkeypatch.setenv("DOCKER_HOST", f"tcp://{server.host}")
        with pytest.raises(
            UserError, match=r"^tiny cannot be loaded: (the engine's messages are longer than|expected an answer)"
        ):
            docker.load(io.BytesIO(b"image"), "tiny")


@pytest.mark.parametrize("answer", ["[1]", "5", '"text"', "null", "{", DEEP, '{"error": "bad\\u001b[2J"}'])
def test_messages_of_an_engine_that_are_none(answer: str, monkeypatch: pytest.MonkeyPatch, record_property: RECORD) -> None:
    record_property("fault", "Docker")
    with Hostile(lambda got: engine(got, "/images/load", answer)) as server:
        monkeypatch.setenv("DOCKER_HOST", f"tcp://{server.host}")
        with pytest.raises(UserError, match=r"^tiny cannot be loaded: ") as refused:
            docker.load(io.BytesIO(b"image"), "tiny")
    assert str(refused.value).isprintable()


def test_frames_of_an_engine_come_in_pieces(record_property: RECORD) -> None:
    """Four bytes announce up to 4 GiB, which are not collected first."""
    record_property("fault", "Docker")

    class Attached:
        data = bytes([1, 0, 0, 0, 255, 255, 255, 255])

        def read(self, count: int) -> bytes:
            part, self.data = self.data[:count], self.data[count:]
            return part or bytes(min(count, 1000))

    frames = docker._frames(Attached())
    assert [next(frames) for _ in range(3)] == [(1, bytes(1000))] * 3


def test_output_of_a_container_is_bounded(monkeypatch: pytest.MonkeyPatch, record_property: RECORD) -> None:
    record_property("fault", "Docker")
    monkeypatch.setattr(docker, "_MOST", 1 << 20)
    kept = docker._Buffer()
    kept.write(bytes(1 << 20))
    with pytest.raises(UserError, match=r"^the container: expected at most 1 MiB of output, found more; it was stopped$"):
        kept.write(b"x")


# registries


def registry(host: str, *, push: bool = False) -> Registry:
    """Open a repository."""
    return Registry(Reference.parse(f"{host}/a/b:tag"), push=push, limits=PATIENT, downloads=PATIENT)


LETTERS = "a" * 60_000
CHALLENGES = {
    "a word of 60 kB": [f"Bearer {LETTERS}"],
    "50 words of 60 kB": [f"Bearer {LETTERS}"] * 50,
    "commas": ["Bearer " + "," * 60_000],
    "quotes": ["Bearer " + 'a="' * 20_000],
    "a realm of a file": ['Bearer realm="file:///etc/passwd"'],
    "a realm that is no URL": ['Bearer realm="https://["'],
    "a realm elsewhere, not encrypted": ['Bearer realm="http://192.0.2.1/token"'],
    "no realm": ['Bearer service="x"'],
}


@pytest.mark.parametrize("kind", CHALLENGES)
def test_challenges(kind: str, tmp_path: Path, record_property: RECORD, monkeypatch: pytest.MonkeyPatch) -> None:
    record_property("fault", "challenge")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    headers = [f"WWW-Authenticate: {text}" for text in CHALLENGES[kind]]
    with Hostile(lambda got: got.answer("401 Who", b"", *headers, "Content-Length: 0")) as server:
        with pytest.raises(UserError, match=rf"^{server.host}: .*; "):
            registry(server.host).manifest("tag")
        assert len(server.requests) <= 4


TOKENS = {
    "with a line break": '{"token": "a\\r\\nX-Evil: 1"}',
    "of another script": '{"token": "\\u7a0b"}',
    "a number": '{"token": 5}',
    "of 3 MB": json.dumps({"token": "a" * 3_000_000}),
    "with an end before time": '{"token": "a", "expires_in": -1}',
    "with an end of 40 digits": f'{{"token": "a", "expires_in": {"9" * 40}}}',
    "with an end that is no number": '{"token": "a", "expires_in": NaN}',
    "empty": "{}",
}


@pytest.mark.parametrize("kind", TOKENS)
def test_tokens(kind: str, tmp_path: Path, record_property: RECORD, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry never takes one, and a sentence says so, or what is wrong with it."""
    record_property("fault", "token")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))

    def serve(got: Exchange) -> None:
        if "/token" in got.line:
            got.answer("200 OK", TOKENS[kind].encode())
        else:
            got.answer("401 Who", b"", f'WWW-Authenticate: Bearer realm="http://{server.host}/token"', "Content-Length: 0")

    with Hostile(serve) as server:
        with pytest.raises(UserError, match=rf"^{server.host}: .*; "):
            registry(server.host).manifest("tag")
        assert len(server.requests) <= 12
        assert not any("X-Evil" in got.headers for got in server.requests)


LOCATIONS = {
    "no URL": "http://[",
    "another scheme": "ftp://127.0.0.1/x",
    "another host": "//192.0.2.1/x",
    "60 kB": "/" + "a" * 60_000,
    "none": "",
}


@pytest.mark.parametrize("kind", LOCATIONS)
def test_places_to_upload_to(kind: str, tmp_path: Path, record_property: RECORD) -> None:
    record_property("fault", "upload")

    def serve(got: Exchange) -> None:
        if got.line.startswith("POST"):
            got.answer("202 Accepted", b"", f"Location: {LOCATIONS[kind]}", "Content-Length: 0")
        else:
            got.answer("404 Not Found")

    layout = Layout(tmp_path / "layout")
    blob = layout.put(b"content", "application/octet-stream")
    with Hostile(serve) as server, pytest.raises(UserError, match=rf"^{server.host}: .*; "):
        registry(server.host, push=True).upload(layout.blob(blob.digest), blob)


def test_an_image_larger_than_the_disk_is_not_downloaded(tmp_path: Path, record_property: RECORD) -> None:
    """Its manifest announces terabytes, and its server would send them until the disk is full."""
    record_property("fault", "image")
    layers = [{"mediaType": "x", "digest": f"sha256:{number:064x}", "size": 64 << 30} for number in range(500)]
    config = {"mediaType": "x", "digest": DIGEST, "size": 2}
    manifest = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}).encode()

    def serve(got: Exchange) -> None:
        if "/blobs/" in got.line:
            got.send(b"HTTP/1.1 200 OK\r\n\r\n")
            got.repeat(bytes(1 << 16))
        else:
            got.answer("200 OK", manifest, f"Content-Type: {MANIFEST}", f"Content-Length: {len(manifest)}")

    said = r"/layout: expected 34359\.7 GB of free disk space to download .*/a/b:tag, found .*; free some"
    with Hostile(serve) as server:
        with pytest.raises(UserError, match=said):
            registry(server.host).pull(Layout(tmp_path / "layout"))
        assert not any("/blobs/" in got.line for got in server.requests)


def served(descriptor: Descriptor, **changed: object) -> dict[str, object]:
    """Return an entry of an index of linux/amd64, with changed members."""
    platform = {"platform": {"os": "linux", "architecture": "amd64"}}
    return {**descriptor.model_dump(by_alias=True, exclude_none=True), **platform, **changed}


def test_what_an_index_says_of_an_image_that_is_another(tmp_path: Path, record_property: RECORD) -> None:
    """Engines disagree on an image whose index or server lies about its manifest; the sound one is pulled."""
    made = Layout(tmp_path / "made")
    described = image(made.folder, [{"a": b"a"}])
    manifest = made.read(described)
    docker_type = "application/vnd.docker.distribution.manifest.v2+json"
    cases: list[tuple[str, dict[str, object], str]] = [
        ("", {}, MANIFEST),
        ("a byte less", {"size": described.size - 1}, MANIFEST),
        ("a byte more", {"size": described.size + 1}, MANIFEST),
        ("nothing", {"size": 0}, MANIFEST),
        ("an index", {"mediaType": INDEX}, MANIFEST),
        ("served as Docker's", {}, docker_type),
        ("served as Docker's, as the index says", {"mediaType": docker_type}, docker_type),
    ]
    for name, changed, kind in cases:
        index = json.dumps({"schemaVersion": 2, "manifests": [served(described, **changed)]}).encode()

        def serve(got: Exchange, index: bytes = index, kind: str = kind) -> None:
            path = got.line.split()[1]
            if "/blobs/" in path:
                got.answer("200 OK", made.blob(path.rpartition("/")[2]).read_bytes())
            elif path.endswith("/tag"):
                got.answer("200 OK", index, f"Content-Type: {INDEX}", f"Content-Length: {len(index)}")
            else:
                got.answer("200 OK", manifest, f"Content-Type: {kind}", f"Content-Length: {len(manifest)}")

        with Hostile(serve) as server:
            there, layout = registry(server.host), Layout(tmp_path / f"pulled {name}")
            if not name:
                assert there.pull(layout, only=True) == described
                continue
            record_property("fault", "an index that lies")
            with pytest.raises(UserError, match=r"^127.*: expected application/vnd.* bytes, .* serves .*; do not trust it"):
                there.pull(layout)


@pytest.mark.parametrize("same", [True, False])
def test_statements_without_end(same: bool, tmp_path: Path, record_property: RECORD) -> None:
    """Whoever may push may attach any number; each costs requests and a verification."""
    record_property("fault", "statements")
    entries = [
        {"mediaType": MANIFEST, "digest": DIGEST if same else f"sha256:{number:064x}", "size": 2, "artifactType": BUNDLE}
        for number in range(10_000)
    ]
    index = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()

    def serve(got: Exchange) -> None:
        if "/referrers/" in got.line:
            got.answer("200 OK", index)
        else:
            got.answer("404 Not Found")

    with Hostile(serve) as server:
        if same:
            assert referrers.fetch_statements(registry(server.host), DIGEST, tmp_path) == []
        else:
            with pytest.raises(UserError, match=r"expected at most 1000 statements, found 10000; verify another copy"):
                referrers.fetch_statements(registry(server.host), DIGEST, tmp_path)
        assert len(server.requests) <= 2


# downloads


def reset(got: Exchange) -> None:
    """Send half of the file, then reset the connection."""
    got.answer("200 OK", CONTENT[: len(CONTENT) // 2], f"Content-Length: {len(CONTENT)}")
    got.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    got.connection.close()


def with_headers(status: str, body: bytes, *headers: str) -> Callable[[Exchange], None]:
    """Return a script that answers so, with the length of the body."""
    return lambda got: got.answer(status, body, *headers, f"Content-Length: {len(body)}")


OTHER = r"SHA-256 mismatch, HOST serves another file than the test specifies; elsewhere"
WRONG = r"invalid answer from HOST: .*; elsewhere"
GONE = r"connection to HOST lost .*; run it again to resume"
LONG = "/" + "a" * 60_000
DOWNLOADS: dict[str, tuple[Callable[[Exchange], None], str]] = {
    "compressed, which nobody asked for": (with_headers("200 OK", gzip.compress(CONTENT), "Content-Encoding: gzip"), OTHER),
    "a bomb": (with_headers("200 OK", gzip.compress(bytes(10 << 20)), "Content-Encoding: gzip"), OTHER),
    "parts": (with_headers("206 Partial Content", b"--x", "Content-Type: multipart/byteranges; boundary=x"), WRONG),
    "another protocol": (with_headers("101 Switching Protocols", b""), "HOST returned 101 Switching Protocols; elsewhere"),
    "early hints": (
        lambda got: got.send(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 10_000),
        "HOST returned 103 Early Hints; elsewhere",
    ),
    "a status of zeros": (with_headers("000 OK", b""), rf"({WRONG}|{GONE}|HOST returned 0 OK; elsewhere)"),
    "a reason that steers a terminal": (with_headers("404 \x1b[2Jx", b""), r"HOST returned 404 \?\[2Jx; elsewhere"),
    "a long way round": (with_headers("302 Found", b"", f"Location: {LONG}"), rf"({WRONG}|{GONE})"),
    "a way to another protocol": (with_headers("302 Found", b"", "Location: gopher://127.0.0.1/x"), WRONG),
    "reset": (reset, GONE),
}


@pytest.mark.parametrize("kind", DOWNLOADS)
def test_answers_to_a_download(kind: str, tmp_path: Path, record_property: RECORD) -> None:
    record_property("fault", "download")
    script, said = DOWNLOADS[kind]
    with Hostile(script) as server:
        file = Download(tmp_path / "file", f"{server.url}/file", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT), "the test")
        with pytest.raises(UserError, match=rf"^(file: )?{said.replace('HOST', server.host)}") as raised:
            fetch([file], remedy="elsewhere", limits=PATIENT)
        assert len(server.requests) <= 22
    assert str(raised.value).isprintable()
    assert not (tmp_path / "file").exists()


# services that know vulnerabilities

PACKAGE = Package("PyPI", "a", "1", "a", "1")


def asked(server: Hostile) -> Any:
    """Return what the services know of a package."""
    return service.ask([PACKAGE], server.url, server.url)


REPLIES = {
    "nested": DEEP,
    "null": "null",
    "results of numbers": '{"results": [5]}',
    "more results": '{"results": [{}, {}]}',
    "an ID of a path": '{"results": [{"vulns": [{"id": "../../x"}]}]}',
    "an ID of 1 MB": json.dumps({"results": [{"vulns": [{"id": "a" * (1 << 20)}]}]}),
    "another record": '{"results": [{"vulns": [{"id": "X-1"}]}]}',
    "pages without end": '{"results": [{"next_page_token": "again"}]}',
    "a token of an object": '{"results": [{"next_page_token": {"a": 1}}]}',
}


@pytest.mark.parametrize("kind", REPLIES)
def test_replies_of_services(kind: str, record_property: RECORD) -> None:
    record_property("fault", "advisories")
    with Hostile(lambda got: got.answer("200 OK", REPLIES[kind].encode())) as server:
        with pytest.raises(UserError, match=rf"{server.host}.*; try again( later)?, or use --database DIR$"):
            asked(server)
        assert len(server.requests) <= 101


def test_a_record_of_many_versions(record_property: RECORD) -> None:
    """Reading 30 MB of versions would take minutes; the largest record there is has less than 1 MB."""
    record_property("fault", "advisories")
    versions = [f"1.{number}.dev0+{'a' * 40}" for number in range(100_000)]
    affected = [{"package": {"ecosystem": "PyPI", "name": "a"}, "versions": versions}] * 5
    record = json.dumps({"id": "X-1", "affected": affected}).encode()
    first = json.dumps({"results": [{"vulns": [{"id": "X-1"}]}]}).encode()
    with (
        Hostile(lambda got: got.answer("200 OK", first if "querybatch" in got.line else record)) as server,
        pytest.raises(UserError, match=r"expected a reply of at most 8 MiB, found more; try again later"),
    ):
        asked(server)


@pytest.mark.parametrize("withdrawn", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", DIGITS, "\u0663"])
def test_times_that_withdraw(withdrawn: str, record_property: RECORD) -> None:
    record_property("fault", "advisories")
    assert osv.parse_record({"id": "X-1", "withdrawn": withdrawn}).is_withdrawn == withdrawn.startswith("0001")


def test_what_services_say_does_not_steer_a_terminal(record_property: RECORD) -> None:
    record_property("fault", "terminal")
    steering = "\x1b[2J\u202ea\nb\x9b1A"
    record = osv.parse_record({"id": "X-1", "summary": steering, "affected": [{"package": {"ecosystem": "PyPI", "name": "a"}}]})
    found = osv.vulnerability_of(record, PACKAGE)
    assert found
    release = {"status": "open", "fixed_version": steering, "nodsa": steering}
    issues = debian_tracker.parse_source({"X-1": {"description": steering, "releases": {"trixie": release}}}, "a")
    [known] = debian_tracker.vulnerabilities_of(issues, PACKAGE, "trixie")
    for text in (found.summary, known.summary, known.fixed, known.note):
        assert "?[2J?a b?1A" in text
        assert text.isprintable()


def test_versions_that_take_long_to_read(record_property: RECORD) -> None:
    record_property("fault", "advisories")
    texts = ["1" * 199, "1." * 99, "1a" * 99, "v" * 199, "1" + "." * 198, "1+" + "a." * 98, "\u0661.2", "1!" * 90]
    affected = [{"package": {"ecosystem": "PyPI", "name": "a"}, "versions": texts * 1000}]
    record = osv.parse_record({"id": "X-1", "affected": affected})
    assert osv.vulnerability_of(record, PACKAGE) is None
    assert Version("1") == Version(PACKAGE.version)


# a conda channel whose records are hostile

CHANNEL_SCRIPT = """
import os, sys
from datetime import date
from smokehouse.environments.inputs import CondaInputs
from smokehouse.errors import UserError
from smokehouse.locks.solvers import conda
inputs = CondaInputs("environment.yml", ("a",), frozenset(), "conda-forge", "linux-64", (), date(2025, 1, 1))
try:
    print("locked", conda.solve(inputs, sys.argv[1]), flush=True)
except (UserError, conda.UnsolvableError) as refused:
    print("refused", refused, flush=True)
os._exit(0)
"""
GOOD = {
    "name": "a",
    "version": "1",
    "build": "0",
    "build_number": 0,
    "depends": [],
    "sha256": "0" * 64,
    "size": 1,
    "timestamp": 1,
    "md5": "0" * 32,
}
RECORDS: dict[str, dict[str, Any]] = {
    "none, as a control": {"a-1-0.conda": GOOD},
    "a path": {"../../x.conda": GOOD},
    "another name": {"a-1-0.conda": GOOD | {"name": "../../x"}},
    "a negative size": {"a-1-0.conda": GOOD | {"size": -1}},
    "no hash": {"a-1-0.conda": {name: value for name, value in GOOD.items() if name != "sha256"}},
    "a hash of words": {"a-1-0.conda": GOOD | {"sha256": "many"}},
    "a date of next millennium": {"a-1-0.conda": GOOD | {"timestamp": 10**30}},
    "depends on itself": {"a-1-0.conda": GOOD | {"depends": ["a >1"]}},
    "depends on words": {"a-1-0.conda": GOOD | {"depends": ["a b c d e ==="] * 1000}},
}


@pytest.mark.parametrize("kind", RECORDS)
def test_records_of_a_channel(kind: str, root: Path, tmp_path: Path, record_property: RECORD) -> None:
    record_property("fault", "conda channel")
    for part in ("linux-64", "noarch"):
        (tmp_path / part).mkdir()
        packages = RECORDS[kind] if part == "noarch" else {}
        text = json.dumps({"info": {"subdir": part}, "packages": {}, "packages.conda": packages, "repodata_version": 1})
        (tmp_path / part / "repodata.json").write_text(text)
    environ = {**os.environ, "PYTHONPATH": str(root / "src"), "XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    command = [sys.executable, "-c", CHANNEL_SCRIPT, str(tmp_path)]
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    expected = "locked Solution(" if kind == "none, as a control" else "refused "
    assert ended.stdout.startswith(expected), ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
