"""Images that were doctored by kind: what readers take for different things is refused, and each in one printable line."""

import gzip
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from smokehouse.oci.model import CONFIG, INDEX, MANIFEST, encode
from smokehouse.proofs.compare import compare

from .test_compare import TAR, Case, case, digest, dumped, folder, replaced

__all__ = ["case", "folder"]

Doctor = Callable[[Case], None]


def text(edit: Callable[[bytes], bytes]) -> Doctor:
    """Edit the bytes of the configuration; every digest that refers to it is renewed."""

    def doctor(case: Case) -> None:
        data = edit(case.expected.recorded.config_text)
        assert data != case.expected.recorded.config_text
        case.write(data)

    return doctor


def config(edit: Callable[[dict[str, Any]], object]) -> Doctor:
    """Edit the configuration."""

    def doctor(case: Case) -> None:
        document = case.config
        edit(document)
        case.write(dumped(document))

    return doctor


def manifest(edit: Callable[[dict[str, Any]], object]) -> Doctor:
    """Edit the manifest."""

    def doctor(case: Case) -> None:
        document = case.manifest
        edit(document)
        case.write(manifest=encode(document))

    return doctor


def member(path: tuple[str | int, ...], value: object) -> Doctor:
    """Replace a member of the manifest."""
    return lambda case: case.write(manifest=encode(replaced(case.manifest, path, value)))


def index(edit: Callable[[dict[str, Any]], object]) -> Doctor:
    """Edit the index."""

    def doctor(case: Case) -> None:
        place = case.layout.folder / "index.json"
        document = json.loads(place.read_text())
        edit(document)
        place.write_text(json.dumps(document))

    return doctor


def nested(case: Case) -> None:
    """An index of an index of an index, and so on: more than docker save writes."""
    entry = json.loads((case.layout.folder / "index.json").read_text())
    for _ in range(3):
        described = case.layout.put(encode(entry), INDEX)
        entry = {"schemaVersion": 2, "manifests": [described.model_dump(by_alias=True, exclude_none=True)]}
    (case.layout.folder / "index.json").write_bytes(encode(entry))


def blob(kind: str, data: Callable[[bytes], bytes]) -> Doctor:
    """Compress the upper layer otherwise; its stream, and so its diff_id, stays what it was."""
    return lambda case: case.write_layers({1: data(case.streams[1])}, {}, kind)


def place(make: Callable[[os.PathLike[str]], object]) -> Doctor:
    """Put something else than a file where the upper layer is."""

    def doctor(case: Case) -> None:
        found = case.layout.blob(case.expected.layers[1].blob.digest)
        found.unlink()
        make(found)

    return doctor


def with_dictionary(stream: bytes) -> bytes:
    """A frame that states the number of a dictionary, which readers would have to have."""
    frame = zstandard.ZstdCompressor(write_content_size=False, write_checksum=False).compress(stream)
    return frame[:4] + bytes([frame[4] & ~3 | 1]) + frame[5:6] + b"\x07" + frame[6:]


def gzip_flag(flag: int, extra: bytes) -> Callable[[bytes], bytes]:
    """A header of gzip that announces more, with what it announces."""

    def compress(stream: bytes) -> bytes:
        data = gzip.compress(stream, mtime=0)
        return data[:3] + bytes([flag]) + data[4:10] + extra + data[10:]

    return compress


def kinds() -> Iterator[tuple[str, Doctor, str]]:
    """Yield each doctored image by name, and what is said of it."""
    ambiguous, differs = "expected JSON with one meaning", "(config) "
    # What is before, behind and between the tokens of a configuration.
    yield "byte-order mark", text(lambda data: b"\xef\xbb\xbf" + data), "byte-order mark"
    yield "NUL at the end", text(lambda data: data + b"\0"), "Extra data"
    yield "two documents", text(lambda data: data + data), "Extra data"
    yield "UTF-16", text(lambda data: data.decode().encode("utf-16")), "invalid UTF-8"
    yield "comment", text(lambda data: data.replace(b"{", b"{/* */", 1)), "property name"
    yield "newline at the end", text(lambda data: data + b"\n"), "other white space or another order"
    yield "escaped slash", text(lambda data: data.replace(b'"/init"', b'"\\/init"')), "other white space or another order"
    yield "escaped key twice", text(lambda data: data.replace(b'"Env":', b'"\\u0045nv":["x"],"Env":', 1)), "'Env' occurs twice"
    yield "65 levels", text(lambda data: data.replace(b'"/init"', b"[" * 65 + b"]" * 65)), "nested more than 64 levels"
    yield "number out of range", text(lambda data: data.replace(b'"/init"', b"1e999")), "out of range"
    yield "half of a character", text(lambda data: data.replace(b'"/init"', b'"\\ud800"')), f"{ambiguous}, found control"
    # Go compares keys in any case, also by these two letters, which are no ASCII.
    yield "Kelvin sign", config(lambda document: document["config"].update({"Wor\u212aingDir": "/evil"})), "unexpected"
    yield "long s", config(lambda document: document["config"].update({"U\u017fer": "0"})), "config.U\\u017fer: unexpected"
    yield "key with a space", config(lambda document: document["config"].update({"Entrypoint ": ["/evil"]})), "unexpected"
    yield "platform of a variant", config(lambda document: document.update({"variant": "v3", "os.version": "1"})), differs
    # Descriptors: what they embed, and what they name.
    data = {"data": "ZXZpbA=="}
    yield "embedded configuration", manifest(lambda document: document["config"].update(data)), "config.data: unexpected"
    yield "embedded layer", manifest(lambda document: document["layers"][0].update(data)), "layers[0].data: unexpected"
    yield "manifest and index", manifest(lambda document: document.update(manifests=[])), "manifests: unexpected"
    yield (
        "another name",
        manifest(lambda document: document.update(schema_version=document.pop("schemaVersion"))),
        ("invalid OCI document (schemaVersion"),
    )
    yield "null layers", manifest(lambda document: document.update(layers=None)), "invalid OCI document (layers"
    for name, value in (
        ("SHA-512", f"sha512:{'0' * 128}"),
        ("capitals", f"SHA256:{'A' * 64}"),
        ("path", "sha256:../../../etc/passwd"),
        ("newline", f"sha256:{'0' * 64}\n"),
    ):
        yield f"digest: {name}", member(("config", "digest"), value), "invalid OCI document (config.digest"
    for size in (-1, 0, 1 << 62):
        said = "invalid OCI document (config.size" if size else "does not match its digest"
        yield f"size {size}", member(("config", "size"), size), said
    foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    for kind in (
        foreign,
        f"{TAR}+zstd; charset=utf-8",
        f"{TAR}+ZSTD",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
    ):
        yield f"layer of {kind}", member(("layers", 1, "mediaType"), kind), "layers[1].mediaType: expected "
    docker = "application/vnd.docker.distribution.manifest.v2+json"
    yield "Docker's manifest", manifest(lambda document: document.update(mediaType=docker)), "mediaType: expected "
    # The index, and what its entry leads to.
    yield "index of three levels", nested, "expected at most two nested indexes"
    yield (
        "subject of an index",
        index(lambda document: document.update(subject=document["manifests"][0])),
        "subject: unexpected",
    )
    yield "embedded manifest", index(lambda document: document["manifests"][0].update(data)), "data: unexpected"
    yield "Docker's list", index(lambda document: document["manifests"][0].update(mediaType=f"{docker}.list")), "mediaType: exp"
    yield (
        "configuration in place of a manifest",
        lambda case: case.layout.write_index(case.layout.put(case.expected.recorded.config_text, MANIFEST)),
        "invalid OCI document",
    )
    yield (
        "manifest in place of a configuration",
        lambda case: case.write(manifest=encode(case.manifest | {"config": described(case)})),
        "invalid OCI document",
    )
    # Blobs: what a reader needs beside them, and what is no file.
    yield "dictionary", blob("+zstd", with_dictionary), "expected one stream of tar+zstd, found "
    yield "window of a gigabyte", blob("+zstd", wide), "expected one stream of tar+zstd, found "
    yield "name in gzip", blob("+gzip", gzip_flag(8, b"evil\0")), "a header with more than it needs"
    yield "extra field in gzip", blob("+gzip", gzip_flag(4, b"\4\0evil")), "a header with more than it needs"
    yield "comment in gzip", blob("+gzip", gzip_flag(16, b"evil\0")), "a header with more than it needs"
    yield "pipe", place(os.mkfifo), "blob sha256:"
    yield "folder", place(os.mkdir), "blob sha256:"
    for name, make in (("pipe", os.mkfifo), ("folder", os.mkdir), ("nothing", lambda found: None)):
        yield f"another layer that is a {name}", another_layer(make), "layer 3: cannot be read to explain it"
    yield "link to a device", place(lambda found: Path(found).symlink_to("/dev/zero")), "blob sha256:"


def another_layer(make: Callable[[Path], object]) -> Doctor:
    """Add a layer whose blob is no file; the configuration and the manifest agree on it."""

    def doctor(case: Case) -> None:
        found = digest(b"another")
        make(case.layout.blob(found))
        document = case.config
        document["rootfs"]["diff_ids"].append(found)
        entry = {"mediaType": f"{TAR}+zstd", "digest": found, "size": 100}
        case.write(dumped(document), edit=lambda manifest: manifest["layers"].append(entry))

    return doctor


def described(case: Case) -> dict[str, Any]:
    """The manifest, as the descriptor of a configuration."""
    return case.layout.put(case.expected.manifest, CONFIG).model_dump(by_alias=True, exclude_none=True)


def wide(stream: bytes) -> bytes:
    """A frame whose reader has to reserve a gigabyte."""
    parameters = zstandard.ZstdCompressionParameters(window_log=30, enable_ldm=False)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return compressor.compress(stream) + compressor.flush()


DOCTORED = {name: (doctor, said) for name, doctor, said in kinds()}


@pytest.mark.parametrize("name", DOCTORED)
def test_a_doctored_image_is_refused_in_a_line(case: Case, name: str) -> None:
    doctor, said = DOCTORED[name]
    doctor(case)
    found = case.problems()
    assert [problem for problem in found if said in problem], found
    assert all(problem.isprintable() and problem.isascii() for problem in found)


def test_the_same_stream_compressed_otherwise_is_the_same_image(case: Case) -> None:
    """The control of the cases above: nothing but the way in which they are doctored makes them refused."""
    case.write_layers({1: zstandard.ZstdCompressor(write_content_size=False).compress(case.streams[1])}, {})
    assert case.problems() == []
    case.write_layers({1: gzip_flag(0, b"")(case.streams[1])}, {}, "+gzip")
    assert case.problems() == []
    assert digest(case.streams[1]) == case.expected.layers[1].diff_id


@pytest.mark.parametrize("change", [-1, 1, 1 << 60])
def test_a_recorded_size_is_that_of_the_stream(case: Case, change: int) -> None:
    """It bounds what is unpacked, and image.json could state any."""
    expected = case.expected.recorded
    layer = expected.layers[1].model_copy(update={"size": expected.layers[1].size + change})
    doctored = expected.model_copy(update={"layers": (expected.layers[0], layer)})
    [found] = compare(case.layout.only_image(), doctored)
    said = "found more bytes than that has" if change < 0 else f"expected {layer.size} bytes, found {expected.layers[1].size}"
    assert (found.layer, said in found.problem) == (2, True)
