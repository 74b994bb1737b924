"""Every parser of what others write returns something or says what is wrong with it: no other exception, and no end of time.

Inputs are valid documents with something changed, and bytes. SMOKEHOUSE_FUZZ is the number of inputs for each parser: weekly
runs take more than pull requests, and other ones each time.
"""

import copy
import gzip
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from requests.structures import CaseInsensitiveDict

from smoke_tests.ranks.channel import ProtocolError, Receiver
from smokehouse.environments.documents import read_json, read_toml, read_yaml
from smokehouse.errors import UserError
from smokehouse.installs.bundle import BundleManifest
from smokehouse.locks import model, pins
from smokehouse.locks.pins import PinFile
from smokehouse.locks.solvers import sdist
from smokehouse.oci import Reference
from smokehouse.oci.auth import Authorization
from smokehouse.oci.filesystem import Limits, entries
from smokehouse.oci.model import Config, Index, Manifest, parse
from smokehouse.storage import strict_json, transfer
from smokehouse.storage.transfer import Answer, Client, InvalidAnswerError

from ..integration.tiny_images import packed

MORE = int(os.environ.get("SMOKEHOUSE_FUZZ", "0"))
FUZZ = settings(
    max_examples=MORE or 150,
    derandomize=not MORE,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)
RECORD = Callable[[str, object], None]
DIGEST = "sha256:" + "0" * 64
LEAVES = (
    some.none()
    | some.booleans()
    | some.integers()
    | some.floats()
    | some.text(max_size=20)
    | some.sampled_from(["", "../x", DIGEST])
)
VALUES = some.recursive(
    LEAVES, lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(max_size=5), inner, max_size=3)
)


@some.composite
def changed(draw: some.DrawFn, documents: tuple[dict[str, Any], ...]) -> bytes:
    """Return a valid document with a few values replaced, taken away or added, as JSON, and sometimes with its text changed."""
    document: Any = copy.deepcopy(draw(some.sampled_from(documents)))
    for _ in range(draw(some.integers(0, 3))):
        place = document
        while isinstance(place, (dict, list)) and place:
            key = draw(some.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            if not isinstance(place[key], (dict, list)) or draw(some.booleans()):
                if draw(some.integers(0, 3)):
                    place[key] = draw(VALUES)
                else:
                    del place[key]
                break
            place = place[key]
    return draw(mutated(json.dumps(document).encode()))


@some.composite
def mutated(draw: some.DrawFn, data: bytes) -> bytes:
    """Return `data`, often with bytes replaced, repeated, taken away or cut off."""
    kind = draw(some.sampled_from(["same", "replaced", "repeated", "cut", "nested", "bytes"]))
    at = draw(some.integers(0, max(len(data) - 1, 0)))
    if kind == "replaced":
        return data[:at] + draw(some.binary(min_size=1, max_size=8)) + data[at + 1 :]
    if kind == "repeated":
        return data[:at] + data[at : at + 40] * draw(some.integers(2, 50)) + data[at:]
    if kind == "cut":
        return data[:at]
    if kind == "nested":
        return data[:at] + draw(some.sampled_from([b"[", b'{"a":', b"(", b"- "])) * 5000 + data[at:]
    return draw(some.binary(max_size=200)) if kind == "bytes" else data


def refused(call: Callable[[], object], *others: type[Exception]) -> None:
    """Call a parser, which may refuse its input in one line."""
    said = ""
    with suppress(*others):
        try:
            call()
        except UserError as refusal:
            said = str(refusal)
    assert "\n" not in said


ENTRY = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": DIGEST, "size": 5, "annotations": {"a": "b"}}
INDEX = {"schemaVersion": 2, "manifests": [ENTRY | {"platform": {"os": "linux", "architecture": "amd64"}}]}
MANIFEST = {"schemaVersion": 2, "config": ENTRY, "layers": [ENTRY, ENTRY], "subject": ENTRY}
CONFIG = {
    "architecture": "amd64",
    "os": "linux",
    "config": {"Labels": {"a": "b"}, "Env": ["A=b"], "User": "x"},
    "rootfs": {"diff_ids": [DIGEST]},
}


@FUZZ
@given(changed((INDEX, MANIFEST, CONFIG)))
def test_documents_of_images(data: bytes) -> None:
    for document in (Index, Manifest, Config):
        refused(lambda document=document: parse(document, data, "a document"))  # type: ignore[misc]


@FUZZ
@given(
    some.text(max_size=80)
    | some.from_regex(r"([a-z0-9.:/-]{0,20}){1,3}(:[\w.]{0,20})?(@sha256:[0-9a-f]{60,66})?", fullmatch=True)
)
def test_references(text: str) -> None:
    refused(lambda: Reference.parse(text))


def answer(**headers: str) -> Answer:
    """Return an answer with these headers, in which _ stands for a hyphen."""
    response = requests.Response()
    response.status_code, response.url = 206, "http://127.0.0.1/"
    response.headers = CaseInsensitiveDict({name.replace("_", "-"): text for name, text in headers.items()})
    return Answer(response, None)  # type: ignore[arg-type]


CLIENT = Client(transfer.Limits(attempts=1, connect=0.2, deadline=0.2))
NUMBERS = some.integers().map(str) | some.text(max_size=30) | some.from_regex(r"[0-9]{1,5000}", fullmatch=True)


@FUZZ
@given(
    NUMBERS, some.tuples(NUMBERS, NUMBERS, NUMBERS).map(lambda parts: "bytes {}-{}/{}".format(*parts)) | some.text(max_size=50)
)
def test_headers_and_ranges(number: str, extent: str) -> None:
    made = answer(Content_Length=number, Content_Range=extent, Retry_After=number)
    refused(lambda: made.length, InvalidAnswerError)
    refused(lambda: made.offset, InvalidAnswerError)
    seconds = transfer.retry_after(number)
    assert seconds is None or seconds >= 0
    with suppress(InvalidAnswerError):
        first, whole = made.offset
        assert 0 <= first < 10**15
        assert whole is None or first < whole < 10**15


@FUZZ
@given(
    some.text(max_size=100)
    | some.lists(some.sampled_from(['Bearer realm="', "Basic ", '"', ",", "=", "realm", "x"])).map("".join)
)
def test_challenges_of_registries(header: str) -> None:
    made = Authorization("127.0.0.1:1", "127.0.0.1:1", "scope", CLIENT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_CONFIG", "/nowhere")
        refused(lambda: made.challenge(answer(WWW_Authenticate=header)))


@FUZZ
@given(some.binary(max_size=300) | changed((INDEX,)))
def test_strict_json(data: bytes) -> None:
    refused(lambda: strict_json.parse(data), ValueError)


BUNDLE = {"format": 1, "environment": "tiny", "halves": ["pip"], "devel": False, "files": {"wheels/a.whl": "0" * 64}}


@FUZZ
@given(changed((BUNDLE,)))
def test_manifests_of_bundles(data: bytes) -> None:
    refused(lambda: read_json(written(data), "manifest.json", BundleManifest, "make it again"))


def written(data: bytes, name: str = "file") -> Path:
    """Return a file with `data`; the folder is deleted when the process ends."""
    path = Path(FOLDER.name, name)
    path.write_bytes(data)
    return path


FOLDER = tempfile.TemporaryDirectory()
ROOT = Path(__file__).parents[2]
LOCK = json.loads((ROOT / "lockfiles/qwen2.5-vl/lock.json").read_text())
SHORT_LOCK = {name: value[:2] if isinstance(value, list) else value for name, value in LOCK.items()}


@FUZZ
@given(changed((SHORT_LOCK,)))
def test_locks(data: bytes) -> None:
    refused(lambda: model.read(written(data, "lock.json"), "lock.json", "lock it again"))


PINS = b"".join((ROOT / "lockfiles/qwen2.5-vl/requirements.txt").read_bytes().splitlines(keepends=True)[:40])


@FUZZ
@given(mutated(PINS))
def test_requirements(data: bytes) -> None:
    refused(lambda: pins.read(PinFile(written(data, "requirements.txt"), "requirements.txt", "tiny")))


CONDA_LOCK = b"".join((ROOT / "lockfiles/qwen2.5-vl/conda-lock.yml").read_bytes().splitlines(keepends=True)[:40])
STACK = (ROOT / "environments/qwen2.5-vl/stack.toml").read_bytes()


@FUZZ
@given(mutated(CONDA_LOCK), mutated(STACK))
def test_files_that_people_write(yaml: bytes, toml: bytes) -> None:
    refused(lambda: read_yaml(written(yaml), "a.yml"))
    refused(lambda: read_toml(written(toml), "a.toml"))


def archive(*members: tuple[str, bytes, bytes]) -> bytes:
    """Return a tar file of members: name, type and content, or the target of a link."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind, content in members:
            member = tarfile.TarInfo(name)
            member.type = kind
            if kind == tarfile.REGTYPE:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            else:
                member.linkname = content.decode()
                tar.addfile(member)
    return buffer.getvalue()


LAYER = archive(("a", tarfile.DIRTYPE, b""), ("a/b.py", tarfile.REGTYPE, b"x = 1"), ("a/.wh.c", tarfile.REGTYPE, b""),
                ("d", tarfile.SYMTYPE, b"a"), ("e", tarfile.LNKTYPE, b"a/b.py"), ("f", tarfile.FIFOTYPE, b""))  # fmt: skip


@FUZZ
@given(mutated(LAYER), some.sampled_from(["", "+gzip", "+zstd"]))
def test_layers(data: bytes, kind: str) -> None:
    place = written(packed(data, kind[1:]), "layer")
    refused(lambda: entries(place, f"tar{kind}", "a layer", Limits(1 << 20, 1 << 16)))


SDIST = archive(("a-1/pyproject.toml", tarfile.REGTYPE, b'[build-system]\nrequires = ["setuptools"]\nbuild-backend = "a:b"\n'))


@FUZZ
@given(mutated(SDIST))
def test_source_distributions(data: bytes) -> None:
    refused(lambda: sdist.build_system(gzip.compress(data, 1), "a-1.tar.gz"))
    refused(lambda: sdist.build_system(data, "a-1.zip"))


HELLO = b'{"event": "hello", "time": 1.5, "job": "zero2", "rank": 0, "pid": 5, "steps": ["load"]}\n'
END = (
    b'{"event": "end", "time": 2.5, "step": 0, "seconds": 1, "cpu_seconds": 1, "verdict": "passed", "detail": "", "data": {}}\n'
)


@FUZZ
@given(some.lists(mutated(HELLO) | mutated(END) | some.just(HELLO), max_size=4))
def test_messages_of_ranks(chunks: list[bytes]) -> None:
    receiver = Receiver()
    refused(lambda: [[*receiver.feed(chunk)] for chunk in chunks], ProtocolError)


@pytest.fixture(autouse=True)
def counted(record_property: RECORD) -> None:
    """Count each parser."""
    record_property("fault", "parser")
