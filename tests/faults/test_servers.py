"""Hostile servers end a download, a pull, an upload and a token in a sentence, soon, and with nothing kept."""

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from smokehouse.audits import service
from smokehouse.cli.main import share_certificates
from smokehouse.errors import UserError
from smokehouse.locks.solvers import sdist
from smokehouse.locks.wheel_tags import Artefact
from smokehouse.oci import Descriptor, Layout, Reference, Registry
from smokehouse.storage import download
from smokehouse.storage.download import Download
from smokehouse.storage.transfer import Client, Limits

from .answers import CONTENT, HURRIED, PATIENT, Fault, faults
from .server import Exchange, Hostile

RECORD = Callable[[str, object], None]
HASH = hashlib.sha256(CONTENT).hexdigest()
FAULTS = list(faults())
SOON = 30.0  # seconds in which everything here ends, on a busy machine
REMEDY = "use another mirror"


def case(fault: Fault) -> str:
    """Return the id of a fault in the table."""
    return f"{fault.kind}: {fault.name}"


def fetch(place: Path, source: str, *, known: bool = True, limits: Limits = PATIENT) -> None:
    """Download a file as the table specifies."""
    file = Download(place / "file", source, HASH, len(CONTENT) if known else 0, "the test")
    download.fetch([file], remedy=REMEDY, limits=limits)


def sentence(says: str, host: str) -> str:
    """Return the regular expression of what must be said."""
    return says.replace("HOST", re.escape(host)).replace("REMEDY", REMEDY)


@pytest.mark.parametrize(
    ("fault", "known"),
    [
        pytest.param(fault, known, id=f"{case(fault)}, {'known' if known else 'unknown'} size")
        for fault in FAULTS
        for known in (True, False)
        if fault.known_size in (None, known)
    ],
)
def test_download(fault: Fault, known: bool, tmp_path: Path, record_property: RECORD) -> None:
    record_property("fault", fault.kind)
    began = time.monotonic()
    with Hostile(fault.script) as server:
        with pytest.raises(UserError) as raised:
            fetch(tmp_path, f"{server.url}/file", known=known, limits=fault.limits)
        assert re.match(rf"(file: )?{sentence(fault.says, server.host)}", str(raised.value))
        assert len(server.requests) <= 2 * fault.limits.attempts + 11
    assert time.monotonic() - began < SOON
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize("fault", FAULTS, ids=case)
@pytest.mark.parametrize("kept", [100, len(CONTENT) + 5])
def test_download_that_goes_on(fault: Fault, kept: int, tmp_path: Path, record_property: RECORD) -> None:
    record_property("fault", fault.kind)
    (tmp_path / "file.part").write_bytes(CONTENT[:100])
    began = time.monotonic()
    with Hostile(fault.script) as server:
        with pytest.raises(UserError, match=r"; (use another mirror|run it again to resume|try later)|a web page"):
            fetch(tmp_path, f"{server.url}/file", known=False, limits=fault.limits)
        assert len(server.requests) <= 4 * fault.limits.attempts + 22
    assert time.monotonic() - began < SOON
    assert not (tmp_path / "file").exists()


def serve(got: Exchange) -> None:
    """Answer as a good server does."""
    if got.start == 0:
        got.answer("200 OK", CONTENT)
        return
    extent = f"Content-Range: bytes {got.start}-{len(CONTENT) - 1}/{len(CONTENT)}"
    got.answer("206 Partial Content", CONTENT[got.start :], extent, f"Content-Length: {len(CONTENT) - got.start}")


def first(fault: Callable[[Exchange], None], times: int = 1) -> Callable[[Exchange], None]:
    """Return a script that has a fault for the first requests, and then serves."""
    return lambda got: fault(got) if got.number < times else serve(got)


@pytest.mark.parametrize("known", [True, False], ids=["known size", "unknown size"])
@pytest.mark.parametrize("times", [1, 2])
def test_download_after_a_fault_that_passes(times: int, known: bool, tmp_path: Path) -> None:
    def cut(got: Exchange) -> None:
        got.answer("200 OK", CONTENT[:1000], f"Content-Length: {len(CONTENT)}")

    with Hostile(first(cut, times)) as server:
        fetch(tmp_path, f"{server.url}/file", known=known)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert [got.start for got in server.requests] == [0, *[1000] * times]


def test_download_waits_as_long_as_it_is_asked_to(tmp_path: Path) -> None:
    busy = first(lambda got: got.answer("503 Busy", b"", "Retry-After: 1", "Content-Length: 0"))
    with Hostile(busy) as server:
        began = time.monotonic()
        fetch(tmp_path, f"{server.url}/file", limits=replace(PATIENT, retry_after=1.0))
        assert time.monotonic() - began >= 1.0
    assert len(server.requests) == 2


def test_broken_ranges_are_not_requested_again(tmp_path: Path) -> None:
    def broken(got: Exchange) -> None:
        if got.start:
            got.answer("206 Partial Content", CONTENT, "Content-Range: bytes 0-9/10")
        else:
            serve(got)

    (tmp_path / "file.part").write_bytes(CONTENT[:100])
    with Hostile(broken) as server:
        fetch(tmp_path, f"{server.url}/file")
    assert [got.start for got in server.requests] == [100, 0]


def test_large_gains_are_not_counted_as_failures(tmp_path: Path) -> None:
    def crumbs(got: Exchange) -> None:
        end = got.start + 2048
        extent = f"Content-Range: bytes {got.start}-{len(CONTENT) - 1}/{len(CONTENT)}"
        got.answer("206 Partial Content", CONTENT[got.start : end], extent, f"Content-Length: {len(CONTENT) - got.start}")

    with Hostile(crumbs) as server:
        fetch(tmp_path, f"{server.url}/file", limits=replace(PATIENT, gain=2048))
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert len(server.requests) == len(CONTENT) // 2048


def test_attempts_that_gain_much_are_counted_too(tmp_path: Path) -> None:
    def cut(got: Exchange) -> None:
        got.answer("200 OK", CONTENT[: 100 + got.number], f"Content-Length: {len(CONTENT)}")

    with Hostile(cut) as server:
        with pytest.raises(UserError, match=r"lost 7 times; run it again to resume"):
            fetch(tmp_path, f"{server.url}/file", limits=replace(PATIENT, gain=-(1 << 20), most=7))
        assert len(server.requests) == 7


@pytest.mark.parametrize("path", ["/b\xe4r", "/\u7a0b", "/a b", "/%zz", "/x?y=\u20ac"])
def test_url_that_is_not_ascii(path: str, tmp_path: Path) -> None:
    with Hostile(serve) as server:
        fetch(tmp_path, f"{server.url}{path}")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.requests[0].line.isascii()


@pytest.mark.parametrize("url", ["http://[", "http://h:many/x", "http://\ud800/x", "http://", "http://..../x", "http://a\0b/x"])
def test_url_that_is_none(url: str, tmp_path: Path, record_property: RECORD) -> None:
    record_property("fault", "URL")
    with pytest.raises(UserError, match=f"; {REMEDY}|run it again"):
        fetch(tmp_path, url)


PARTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a folder": (lambda part: part.mkdir(), "a folder"),
    "a FIFO": (lambda part: os.mkfifo(part), "a FIFO or device"),
    "a link elsewhere": (lambda part: part.symlink_to(part.with_name("other")), "a symbolic link"),
    "a link to nothing": (lambda part: part.symlink_to(part.with_name("nothing")), "a symbolic link"),
    "another file's name": (lambda part: part.hardlink_to(part.with_name("other")), "a file with another name"),
    "a socket": (lambda part: socket.socket(socket.AF_UNIX).bind(str(part)), "a socket"),
}


@pytest.mark.parametrize("kind", PARTS)
def test_partial_download_that_is_none(
    kind: str, tmp_path: Path, record_property: RECORD, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_property("fault", "partial download")
    make, found = PARTS[kind]
    (tmp_path / "other").write_text("mine")
    part = tmp_path / "file.part"
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    make(Path("file.part"))
    with Hostile(serve) as server, pytest.raises(UserError, match=rf"{part}: expected a partial .*, found {found}; remove it"):
        fetch(tmp_path, f"{server.url}/file")
    assert (tmp_path / "other").read_text() == "mine"
    assert os.path.lexists(part)


@pytest.mark.parametrize("kind", ["FIFO", "device", "folder", "missing", "socket"])
@pytest.mark.parametrize("scheme", ["file:", ""])
def test_source_that_is_no_file(
    kind: str, scheme: str, tmp_path: Path, record_property: RECORD, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_property("fault", "source")
    source = tmp_path / "source"
    monkeypatch.chdir(tmp_path)
    if kind == "FIFO":
        os.mkfifo(source)
    elif kind == "folder":
        source.mkdir()
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind("source")
    path = Path("/dev/zero") if kind == "device" else source
    with pytest.raises(UserError, match=rf"{path}: cannot be read \(.*\); {REMEDY}"):
        fetch(tmp_path / "to", f"{scheme}{path}")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that nobody trusts, and its key, in one file."""
    folder = tmp_path_factory.mktemp("pair")
    files = [str(folder / "key"), str(folder / "certificate")]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", files[0], "-out", files[1], "-days", "2"]
    subprocess.run(
        [*command, "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True,
        capture_output=True,
        timeout=60,
    )
    (folder / "pair").write_bytes(Path(files[0]).read_bytes() + Path(files[1]).read_bytes())
    return folder / "pair"


def test_server_without_encryption(tmp_path: Path, record_property: RECORD) -> None:
    record_property("fault", "certificate")
    with (
        Hostile(serve) as server,
        pytest.raises(UserError, match=r"file: connection to .* lost \(.*\); run it again to resume"),
    ):
        fetch(tmp_path, f"https://{server.host}/file", limits=HURRIED)


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE"])
def test_certificates_of_the_environment(pair: Path, tmp_path: Path, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each variable counts for downloads and registries; where it is not set, the certificate is not trusted."""
    for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    with Hostile(serve, pair) as server:
        with pytest.raises(UserError, match=r"certificate not trusted \(.*\); set SSL_CERT_FILE or REQUESTS_CA_BUNDLE, or"):
            fetch(tmp_path, f"https://{server.host}/file")
        monkeypatch.setenv(variable, str(pair))
        fetch(tmp_path, f"https://{server.host}/file")
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_certificates_that_are_none(variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for content in (None, "no certificate"):
        place = tmp_path / "certificates"
        if content:
            place.write_text(content)
        monkeypatch.setenv(variable, str(place))
        with pytest.raises(
            UserError, match=rf"{variable}: expected a file or folder of certificates, found {place} \(.*\); fix"
        ):
            Client()


@pytest.mark.parametrize("given", ["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE"])
def test_programs_get_the_same_certificates(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE")
    (tmp_path / "certificates").touch()
    monkeypatch.setattr(os, "environ", {given: str(tmp_path / "certificates")})
    share_certificates()
    assert os.environ == dict.fromkeys(names, str(tmp_path / "certificates"))


# How a registry is used, by name.
USES: dict[str, Callable[[Registry, Path], object]] = {
    "pull": lambda registry, place: registry.pull(Layout(place)),
    "blob": lambda registry, _: registry.has(blob()),
    "referrers": lambda registry, _: registry.referrers(blob().digest),
    "put": lambda registry, _: registry.put(CONTENT, "application/vnd.oci.image.manifest.v1+json", "tag"),
    "upload": lambda registry, place: registry.upload(written(place), blob()),
}


def blob() -> Descriptor:
    """Return the descriptor of the content."""
    return Descriptor(media_type="application/octet-stream", digest=f"sha256:{HASH}", size=len(CONTENT))


def written(place: Path) -> Path:
    """Return a file with the content."""
    place.mkdir(exist_ok=True)
    (place / "blob").write_bytes(CONTENT)
    return place / "blob"


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("fault", FAULTS, ids=case)
def test_registry(fault: Fault, use: str, tmp_path: Path, record_property: RECORD) -> None:
    """It fails with a sentence, or has an answer where the fault is none for it, such as a 404; and soon."""
    record_property("fault", f"registry, {use}")
    began = time.monotonic()
    with Hostile(fault.script) as server:
        registry = Registry(Reference.parse(f"{server.host}/a/b:tag"), push=True, limits=fault.limits, downloads=fault.limits)
        answered = use in ("blob", "referrers", "upload")  # a 404 is an answer, and of what is there nothing is uploaded
        with suppress(UserError) if answered else pytest.raises(UserError, match=rf"{server.host}.*: .*; "):
            USES[use](registry, tmp_path / "layout")
        assert len(server.requests) <= 60
    assert time.monotonic() - began < SOON


def test_upload_to_a_good_registry(tmp_path: Path) -> None:
    """The body has a length, and is sent again from its beginning after a challenge."""

    def accept(got: Exchange) -> None:
        if got.line.startswith("HEAD "):
            got.answer("404 Not Found")
        elif got.line.startswith("POST "):
            got.answer("202 Accepted", b"", "Location: /v2/a/b/blobs/uploads/1", "Content-Length: 0")
        elif "Authorization" not in got.headers:
            got.answer("401 Who", b"", "WWW-Authenticate: Basic", "Content-Length: 0")
        else:
            got.answer("201 Created")

    with Hostile(accept) as server:
        (tmp_path / "config.json").write_text(json.dumps({"auths": {server.host: {"auth": "YTpi"}}}))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DOCKER_CONFIG", str(tmp_path))
            USES["upload"](Registry(Reference.parse(f"{server.host}/a/b:tag"), push=True, limits=PATIENT), tmp_path)
    sent = [got for got in server.requests if got.line.startswith("PUT ")]
    assert [(got.headers["Content-Length"], got.headers.get("Transfer-Encoding"), got.body) for got in sent] == [
        (str(len(CONTENT)), None, CONTENT)
    ] * 2


@pytest.mark.parametrize("fault", FAULTS, ids=case)
def test_advisories_and_source_distributions(fault: Fault, record_property: RECORD) -> None:
    """Both end soon: in a sentence, or for an answer that is one, with its bytes."""
    record_property("fault", "advisories")
    began = time.monotonic()
    with Hostile(fault.script) as server:
        try:
            assert len(service._Client(fault.limits).request(f"{server.url}/x", limit=1 << 20)) <= 1 << 20
        except UserError as refused:
            assert_sentence(str(refused), server.host, "try again later, or use --database DIR")
        with pytest.raises(UserError, match=r"^a-1\.tar\.gz: .*; (check the network|use another index|add it to left_out)"):
            sdist.download(Artefact("a-1.tar.gz", f"{server.url}/x", "0" * 64, 0), replace(fault.limits, deadline=2.0))
    assert time.monotonic() - began < SOON


def assert_sentence(said: str, host: str, remedy: str) -> None:
    """Check for one line that begins with the host and ends with what to do."""
    assert re.fullmatch(rf"{re.escape(host)}: .*; {re.escape(remedy)}", said), said


@pytest.mark.parametrize("served", ["nothing", "another"])
def test_registry_that_keeps_nothing(served: str, record_property: RECORD) -> None:
    record_property("fault", "registry, put")

    def accept(got: Exchange) -> None:
        if got.line.startswith("PUT "):
            got.answer("201 Created")
        elif served == "nothing":
            got.answer("404 Not Found")
        else:
            got.answer("200 OK", b"{}")

    with Hostile(accept) as server:
        found = "nothing" if served == "nothing" else f"sha256:{hashlib.sha256(b'{}').hexdigest()}"
        with pytest.raises(
            UserError, match=f"expected sha256:{HASH} at tag after it was stored, {server.host} serves {found}; use"
        ):
            USES["put"](Registry(Reference.parse(f"{server.host}/a/b:tag"), push=True, limits=PATIENT), Path())


# Reads the records of a channel, and prints what is said; rattler's threads can crash an interpreter that ends in order.
CONDA = """
import os, sys
from datetime import date
from smokehouse.environments.inputs import CondaInputs
from smokehouse.errors import UserError
from smokehouse.locks.solvers import conda
conda._TIMEOUT, conda._MOST = float(sys.argv[2]), int(sys.argv[3])
inputs = CondaInputs("environment.yml", ("python=3.11",), frozenset(), "conda-forge", "linux-64", (), date(2025, 1, 1))
try:
    source = conda._open("conda-forge", "linux-64", sys.argv[1])
    print(len(conda._read(source.candidates(inputs), source.name)), flush=True)
except UserError as refused:
    print(refused, flush=True)
os._exit(0)
"""
# Of those that send without end and without pause, which are stopped at a size.
CHANNELS = [fault for fault in FAULTS if fault.name in (
    "a word", "no HTTP", "nothing", "a line of 1 MB", "404 Not Found", "a web page", "around", "cut each time", "another file",
    "of words", "no answer", "a header each moment", "a byte each moment", "stops",
)]  # fmt: skip


ENDLESS = [fault for fault in FAULTS if fault.name == "endless" and fault.kind in ("body", "chunks")]


@pytest.mark.parametrize("fault", CHANNELS, ids=case)
def test_conda_channels(fault: Fault, root: Path, tmp_path: Path, record_property: RECORD) -> None:
    record_property("fault", "conda channel")
    said = "(timed out after 3 s|cannot be read|found truncated or other data).*; check the network, or specify"
    refuse_records(fault, root, tmp_path, 3, said)


@pytest.mark.parametrize("fault", ENDLESS, ids=case)
def test_conda_channels_without_end(fault: Fault, root: Path, tmp_path: Path, record_property: RECORD) -> None:
    """They are stopped by the limit of size, long before the deadline."""
    record_property("fault", "conda channel")
    said = r"expected at most 268\.4 MB of records, found more; specify a mirror or a folder with --channel"
    refuse_records(fault, root, tmp_path, SOON, said)


def refuse_records(fault: Fault, root: Path, folder: Path, seconds: float, said: str) -> None:
    """Read a channel within `seconds` and 268.4 MB; what is said must be this, in one line."""
    command = [sys.executable, "-c", CONDA]
    variables = {**os.environ, "PYTHONPATH": str(root / "src"), "XDG_CACHE_HOME": str(folder), "HOME": str(folder)}
    with Hostile(fault.script) as server:
        command += [server.url, str(seconds), str(256 << 20)]
        ended = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=2 * SOON)
    assert re.match(f"{server.url}.*{said}", ended.stdout), ended.stdout + ended.stderr
    assert ended.returncode == 0
    assert ended.stdout.count("\n") == 1
