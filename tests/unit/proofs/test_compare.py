"""No edit of an image is accepted: not of a member of its documents, of a field of a tar header, nor of any byte at random."""

import copy
import hashlib
import io
import json
import os
import random
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import zstandard

from smokehouse.errors import UserError
from smokehouse.images.assemble import Assembled
from smokehouse.images.layers import Packed
from smokehouse.oci.changeset import write_layer
from smokehouse.oci.layout import Layout, unpack_layout
from smokehouse.oci.model import CONFIG, INDEX, MANIFEST, Descriptor, encode
from smokehouse.proofs import Difference, Verification
from smokehouse.proofs.compare import compare

TAR = "application/vnd.oci.image.layer.v1.tar"
SKIPPED = b"\x50\x2a\x4d\x18\x04\0\0\0evil"  # a frame that zstd skips
EDITS = 1000
ADDED = {"evil", "OnBuild", "Healthcheck", "Volumes", "urls", "subject", "artifactType", "annotations", "platform"}
# Fields of a tar header by their place.
FIELDS = {
    "name": (0, 100),
    "mode": (100, 108),
    "uid": (108, 116),
    "gid": (116, 124),
    "size": (124, 136),
    "mtime": (136, 148),
    "checksum": (148, 156),
    "type": (156, 157),
    "link": (157, 257),
    "magic": (257, 263),
    "version": (263, 265),
    "uname": (265, 297),
    "gname": (297, 329),
    "major": (329, 337),
    "minor": (337, 345),
    "prefix": (345, 500),
    "padding": (500, 512),
}


def digest(data: bytes) -> str:
    """The digest of `data`."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def dumped(value: object) -> bytes:
    """A document with the white space of a configuration, so that nothing but an edit differs."""
    return json.dumps(value, separators=(",", ":")).encode()


def layer(folder: Path, place: Path) -> tuple[Packed, bytes]:
    """The layer of a folder, stored at `place`, and its stream."""
    out = io.BytesIO()
    write_layer(folder, out)
    place.write_bytes(zstandard.compress(out.getvalue()))
    packed = place.read_bytes()
    blob = Descriptor(media_type=f"{TAR}+zstd", digest=digest(packed), size=len(packed))
    return Packed(digest(out.getvalue()), len(out.getvalue()), blob, place), out.getvalue()


@dataclass
class Case:
    """An expected image, and a layout that can be edited."""

    expected: Assembled
    streams: list[bytes]
    layout: Layout

    @property
    def config(self) -> dict[str, Any]:
        """Its configuration."""
        found: dict[str, Any] = json.loads(self.expected.recorded.config_text)
        return found

    @property
    def manifest(self) -> dict[str, Any]:
        """Its manifest."""
        found: dict[str, Any] = json.loads(self.expected.manifest)
        return found

    def problems(self) -> list[str]:
        """What is wrong with the image in the layout, by its verification."""
        try:
            differences = compare(self.layout.only_image(), self.expected.recorded, self.expected.layers)
            return [f"{found.layer} {found.path}: {found.problem}" for found in differences]
        except UserError as refused:
            return [str(refused)]

    def write(
        self, config: bytes | None = None, manifest: bytes | None = None, edit: Callable[[dict[str, Any]], None] | None = None
    ) -> None:
        """Write the image, with a configuration and a manifest whose digests are those that the others state."""
        if config is not None:
            described = self.manifest
            described["config"] = {"mediaType": CONFIG, "digest": digest(config), "size": len(config)}
            if edit:
                edit(described)
            manifest = encode(described)
        written = self.expected.manifest if manifest is None else manifest
        self.layout.put(self.expected.recorded.config_text if config is None else config, CONFIG)
        self.layout.write_index(self.layout.put(written, MANIFEST))

    def write_layers(self, blobs: Mapping[int, bytes], diff_ids: Mapping[int, str], kind: str = "+zstd") -> None:
        """Write the image with other layers by their number; an attacker renews every digest."""
        config = self.config
        for number, diff_id in diff_ids.items():
            config["rootfs"]["diff_ids"][number] = diff_id

        def edit(manifest: dict[str, Any]) -> None:
            for number, data in blobs.items():
                described = self.layout.put(data, f"{TAR}{kind}")
                manifest["layers"][number] = described.model_dump(by_alias=True, exclude_none=True)

        self.write(dumped(config) if diff_ids else self.expected.recorded.config_text, edit=edit)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: thousands of images are written."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as name:
        yield Path(name)


@pytest.fixture
def case(folder: Path) -> Case:
    """An image of two layers."""
    layers, streams = [], []
    for number in range(2):
        files = folder / f"files{number}"
        (files / "opt" / "env").mkdir(parents=True)
        (files / "opt" / "env" / f"run{number}").write_bytes(b"#!/bin/sh\n" * 60)
        (files / "opt" / "env" / f"link{number}").symlink_to("run")
        packed, stream = layer(files, folder / f"layer{number}")
        layers.append((packed, f"layer {number}"))
        streams.append(stream)
    settings = {"Env": ["PATH=/bin", "LANG=C.UTF-8"], "Entrypoint": ["/init", "--"], "WorkingDir": "/", "Labels": {"a": "b"}}
    config = {
        "architecture": "amd64",
        "config": settings | {"ArgsEscaped": True},
        "created": "2025-03-15T00:00:00Z",
        "history": [{"created": "2025-03-15T00:00:00Z", "created_by": "CMD", "empty_layer": True}],
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [entry.diff_id for entry, _ in layers]},
    }
    found = Case(Assembled.of(layers, dumped(config)), streams, Layout(folder / "layout"))
    found.expected.write(found.layout, "tiny:1")
    return found


def members(document: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every member of a document, and of the document."""
    yield path
    inside = document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    for key, value in inside:
        yield from members(value, (*path, key))


def at(document: Any, path: tuple[str | int, ...]) -> Any:
    """The member of a document at a path."""
    for key in path:
        document = document[key]
    return document


def edits(document: Any) -> Iterator[tuple[str, bytes]]:
    """Every edit of one member of a document: taken away, of another value or type, twice, in another case, and added."""
    for path in members(document):
        value = at(document, path)
        if isinstance(value, dict):
            for key in sorted(ADDED - value.keys()):
                other = copy.deepcopy(document)
                at(other, path)[key] = ["evil"]
                yield f"{path} and {key}", dumped(other)
            for key in value:
                other = copy.deepcopy(document)
                at(other, path)[str(key).swapcase()] = "evil"
                yield f"{path} and {key} in another case", dumped(other)
                # A key twice, first or last with another value.
                text = json.dumps(at(document, path))
                twice = [f'{{{json.dumps(key)}: "evil", {text[1:]}', f'{text[:-1]}, {json.dumps(key)}: "evil"}}']
                other = copy.deepcopy(document)
                marked = json.dumps(replaced(other, path, "MARK"))
                yield from ((f"{path} and {key} twice", marked.replace('"MARK"', version).encode()) for version in twice)
        if isinstance(value, list):
            for other_value in ([*value, "evil"], [*value, *value], value[::-1] if len(value) > 1 else []):
                yield f"{path} longer", dumped(replaced(document, path, other_value))
        others: tuple[object, ...] = (
            None,
            1.5,
            2,
            "evil",
            True,
            [],
            {},
            [value],
            {"x": value},
            f"{value}\n",
            f"{value}\u202e",
            f" {value}",
        )
        for another in others:
            if type(another) is not type(value) or another != value:
                yield f"{path} = {another!r}", dumped(replaced(document, path, another))
        if path:
            other = copy.deepcopy(document)
            del at(other, path[:-1])[path[-1]]
            yield f"{path} taken away", dumped(other)


def replaced(document: Any, path: tuple[str | int, ...], value: object) -> Any:
    """A copy of a document with another value at a path."""
    other = copy.deepcopy(document)
    if not path:
        return value
    at(other, path[:-1])[path[-1]] = value
    return other


def test_an_image_as_it_was_made_is_accepted(case: Case) -> None:
    assert case.problems() == []


def test_each_member_of_the_configuration_is_compared(case: Case) -> None:
    accepted = []
    count = 0
    for what, data in edits(case.config):
        case.write(data)
        count += 1
        if not case.problems():
            accepted.append(what)
    assert accepted == []
    assert count > 400
    case.write(json.dumps(case.config, indent=1).encode())  # another image ID
    assert case.problems() == [
        "0 (config) (document): expected other white space or another order, which the image ID depends on"
    ]


def test_what_differs_is_said_in_ascii(case: Case) -> None:
    """A terminal can be one that has nothing else, and a key can say VERIFIED from right to left."""
    config = case.config
    config["config"]["Labels"]["\u05e9\U0001f600"] = "\u05e9"
    case.write(json.dumps(config, ensure_ascii=False).encode())
    found = case.problems()
    assert '0 (config) config.Labels.\\u05e9\\ud83d\\ude00: unexpected, found "\\u05e9"' in found
    assert all(problem.isascii() for problem in found)


def test_each_member_of_the_manifest_is_compared(case: Case) -> None:
    accepted = []
    for what, data in edits(case.manifest):
        case.write(manifest=data)
        if not case.problems():
            accepted.append(what)
    assert accepted == []


def test_each_member_of_the_index_is_compared(case: Case) -> None:
    place = case.layout.folder / "index.json"
    index = json.loads(place.read_text())
    accepted = []
    for what, data in edits(index):
        place.write_bytes(data)
        if not case.problems():
            accepted.append(what)
    # What is allowed: names, in whatever words, and neither of them; BuildKit leaves the media type out.
    names = [what for what in accepted if "'annotations'" in what]
    rest = [what for what in accepted if what not in names]
    assert {*rest} == {"('mediaType',) taken away", "('manifests', 0, 'platform') taken away"}
    assert not [what for what in names if "evil" in what and "=" not in what]


@pytest.mark.parametrize("platform", [{"architecture": "x86_64", "os": "linux"}, {"architecture": "amd64", "os": "Linux"}, {}])
def test_an_index_of_a_second_image_is_refused(case: Case, platform: Mapping[str, str]) -> None:
    """Engines choose by their own rules, which know more names of a platform than ours."""
    place = case.layout.folder / "index.json"
    index = json.loads(place.read_text())
    entry = dict(index["manifests"][0])
    other = case.layout.put(b'{"schemaVersion":2}', MANIFEST).model_dump(by_alias=True, exclude_none=True) | {
        "platform": platform
    }
    for entries in ([other, entry], [entry, other], [entry, entry], []):
        place.write_text(json.dumps({**index, "manifests": entries}))
        assert "expected an index of exactly one image" in case.problems()[0]
    nested = case.layout.put(json.dumps({**index, "manifests": [other, entry]}).encode(), INDEX)
    case.layout.write_index(nested)
    assert "expected an index of exactly one image" in case.problems()[0]
    case.layout.write_index(case.layout.put(json.dumps(index).encode(), INDEX), "python:3")  # as docker save has it
    assert case.problems() == []
    # Engines name it by the outer index, so that one counts.
    assert (case.layout.only_image().descriptor.annotations or {})["org.opencontainers.image.ref.name"] == "python:3"


@pytest.mark.parametrize(
    "name", ["manifest.json", "repositories", "Index.json", "index.json.bak", "blobs2", "\x1b[2J", "ingest", "oci-layout~"]
)
def test_a_layout_has_nothing_beside_its_image(case: Case, name: str) -> None:
    """Engines with the classic store load what manifest.json lists, whatever the index does."""
    place = case.layout.folder / name
    place.mkdir()
    if name == "ingest":
        assert case.problems() == []  # BuildKit leaves it, empty
        (place / "data").touch()
    [problem] = case.problems()
    assert ": expected blobs, index.json, oci-layout alone, found " in problem
    assert problem.isprintable()
    shutil.rmtree(place)
    place.symlink_to("blobs")
    assert len(case.problems()) == 1


def test_each_member_of_the_layout_file_is_compared(case: Case) -> None:
    place = case.layout.folder / "oci-layout"
    accepted = []
    for what, data in edits(json.loads(place.read_text())):
        place.write_bytes(data)
        if not case.problems():
            accepted.append(what)
    assert accepted == []
    for name in ("oci-layout", "index.json"):
        case.write()
        (case.layout.folder / name).unlink()
        os.mkfifo(case.layout.folder / name)
        assert "cannot be read (expected a regular file)" in case.problems()[0]
        (case.layout.folder / name).unlink()
        assert f"not an OCI layout, {name} not found" in case.problems()[0]


def test_an_archive_of_no_image_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"evil" * 1000, bytes(10240)):
        (tmp_path / "image.tar").write_bytes(content)
        with pytest.raises(UserError, match=r"^image\.tar: (expected a tar file from the engine|no OCI layout in the output)"):
            unpack_layout(tmp_path / "image.tar", tmp_path / "layout")


@pytest.mark.parametrize("field", FIELDS)
def test_each_field_of_a_header_is_compared(case: Case, field: str) -> None:
    """With a checksum that is right, and every digest renewed."""
    start, end = FIELDS[field]
    headers = [at for at in range(0, len(case.streams[1]), 512) if case.streams[1][at + 257 : at + 262] == b"ustar"]
    assert len(headers) == 4
    for place in headers:
        for value in (b"\0", b"1", b"7", b"/", b"x", b"\x80", b"L"):
            for offset in {start, end - 1}:
                block = bytearray(case.streams[1][place : place + 512])
                if bytes(block[offset : offset + 1]) == value:
                    continue
                block[offset : offset + 1] = value
                if field != "checksum":
                    block[148:156] = b" " * 8
                    block[148:156] = b"%06o\0 " % sum(block)
                stream = case.streams[1][:place] + bytes(block) + case.streams[1][place + 512 :]
                assert_refused(case, stream)


def assert_refused(case: Case, stream: bytes) -> None:
    """An image whose upper layer is `stream` is not accepted, whatever its configuration says."""
    for diff_ids in ({1: digest(stream)}, {}):
        case.write_layers({1: zstandard.compress(stream)}, diff_ids)
        found = case.problems()
        assert [problem for problem in found if problem.startswith("2 (the whole layer): expected sha256:")], found


def entries(*members: tarfile.TarInfo) -> bytes:
    """A layer of `members`, whose content is zeros."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(bytes(member.size)))
    return out.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, **fields: Any) -> tarfile.TarInfo:
    """A member of a tar file."""
    made = tarfile.TarInfo(name)
    made.type = kind
    for field, value in fields.items():
        setattr(made, field, value)
    return made


@pytest.mark.parametrize(
    "added",
    [
        member("opt/.wh.env"),
        member("opt/env/.wh..wh..opq"),
        member(".wh..wh.plnk/1", size=5),
        member("etc/ld.so.preload", size=5),
        member("opt/env/hard", tarfile.LNKTYPE, linkname="opt/env/run1", mode=0o6755, uid=7),
        member("opt/env/contiguous", tarfile.CONTTYPE, size=5),
        member("opt/env/unknown", b"Q"),
        member("opt/env/x", pax_headers={"SCHILY.xattr.security.capability": "x"}),
        member("opt/env/x", pax_headers={"path": "etc/passwd"}),
        member("opt/env/x", pax_headers={"GNU.sparse.name": "etc/passwd"}),
        member("opt/env/x", tarfile.CHRTYPE),
        member("../../etc/cron.d/x"),
        member("opt/env/\x1b[2JVERIFIED"),
    ],
    ids=lambda added: repr(added.name),
)
def test_what_tar_can_hide_is_refused(case: Case, added: tarfile.TarInfo) -> None:
    extra = entries(added)
    for stream in (extra, extra[:-1024] + case.streams[1], case.streams[1] + extra, case.streams[1][:-1024] + extra):
        assert_refused(case, stream)
    # As a layer of its own: above, below, and beside those that the configuration lists.
    for at_front in (True, False):
        config = case.config
        config["rootfs"]["diff_ids"].insert(0 if at_front else 2, digest(extra))

        def edit(manifest: dict[str, Any], *, at_front: bool = at_front) -> None:
            described = case.layout.put(zstandard.compress(extra), f"{TAR}+zstd").model_dump(by_alias=True, exclude_none=True)
            manifest["layers"].insert(0 if at_front else 2, described)

        case.write(dumped(config), edit=edit)
        found = case.problems()
        assert "unexpected, the lock builds no such layer" in " ".join(found)
        assert all(problem.isprintable() for problem in found)


def test_a_blob_is_one_stream_of_its_kind(case: Case) -> None:
    good = zstandard.compress(case.streams[1])
    zipped = zstandard.compress(case.streams[0])
    for kind, blobs in {
        "+zstd": (good + SKIPPED, SKIPPED + good, good + good, good + zipped, good[:-1], good + b"\0", b"", case.streams[1]),
        "+gzip": (gzipped(case.streams[1]) * 2, gzipped(case.streams[1]) + b"\0", gzipped(case.streams[1])[:-1], good, b""),
        "": (good, case.streams[1] + bytes(512), case.streams[1][:-512], b""),
    }.items():
        for data in blobs:
            case.write_layers({1: data}, {}, kind)
            assert case.problems() != [], (kind, data[:20])
    # Compressed otherwise, it is the same image.
    for kind, data in (
        ("+gzip", gzipped(case.streams[1])),
        ("", case.streams[1]),
        ("+zstd", zstandard.compress(case.streams[1], 19)),
    ):
        case.write_layers({1: data}, {}, kind)
        assert case.problems() == []


def gzipped(data: bytes) -> bytes:
    """`data` as gzip writes it, without a name."""
    import gzip

    return gzip.compress(data, mtime=0)


def test_a_bomb_is_not_unpacked(case: Case) -> None:
    """What is longer than expected is given up at once: a million times the layer in a few kB."""
    case.write_layers({1: zstandard.compress(bytes(64 << 20))}, {})
    assert "found more bytes than that has" in " ".join(case.problems())
    case.write_layers({1: zstandard.compress(bytes(1 << 30))}, {})
    assert "bytes compressed, found " in " ".join(case.problems())


def test_a_file_with_a_hole_is_not_read(case: Case) -> None:
    """It takes no space, and reads as blocks of zstd that are empty: hours of them, until it is hashed and until its end."""
    place = case.layout.blob(case.manifest["layers"][1]["digest"])
    with place.open("r+b") as file:
        file.truncate(60 << 30)

    def edit(manifest: dict[str, Any]) -> None:
        manifest["layers"][1]["size"] = 60 << 30

    case.write(case.expected.recorded.config_text, edit=edit)
    assert case.problems()[-1].startswith("2 (the whole layer): expected at most ")
    empty = case.streams[1][:0]
    begin = zstandard.ZstdCompressor(write_content_size=False).compress(empty)[:6]
    case.write_layers({1: begin + bytes(3 * 2000)}, {})
    assert "found more than 100" in case.problems()[-1]


def test_layers_swapped_repeated_or_missing_are_refused(case: Case) -> None:
    blobs = [zstandard.compress(stream) for stream in case.streams]
    for numbers in ((1, 0), (0, 0), (1, 1), (0,), (0, 1, 1), (0, 1, 0)):
        config = case.config
        config["rootfs"]["diff_ids"] = [digest(case.streams[number]) for number in numbers]

        def edit(manifest: dict[str, Any], *, numbers: tuple[int, ...] = numbers) -> None:
            described = [case.layout.put(blobs[number], f"{TAR}+zstd") for number in numbers]
            manifest["layers"] = [blob.model_dump(by_alias=True, exclude_none=True) for blob in described]

        case.write(dumped(config), edit=edit)
        assert case.problems() != [], numbers


def test_the_files_that_differ_are_listed(case: Case, folder: Path) -> None:
    inside = folder / "files1" / "opt" / "env"
    (inside / "run1").write_bytes(b"evil")
    (inside / "link1").unlink()
    (inside / "evil\x1b.pth").touch()
    inside.chmod(0o777)
    packed, _ = layer(folder / "files1", folder / "other")
    case.write_layers({1: packed.path.read_bytes()}, {1: packed.diff_id})
    found = {problem.partition(": ")[0]: problem.partition(": ")[2] for problem in case.problems()[2:]}
    assert [*found] == ["2 opt/env", "2 opt/env/evil\\x1b.pth", "2 opt/env/link1", "2 opt/env/run1"]
    assert found["2 opt/env"] == "expected mode 755, found 777"
    assert found["2 opt/env/evil\\x1b.pth"] == "unexpected file"
    assert found["2 opt/env/link1"] == "not found in the image"
    assert found["2 opt/env/run1"].startswith("expected SHA-256 ")


def test_of_a_thousand_random_edits_none_is_accepted(case: Case) -> None:
    """Of any part of the image: an attacker renews the digests that refer to it, or does not."""
    rng = random.Random(16)
    parts = [
        case.expected.recorded.config_text,
        case.expected.manifest,
        *case.streams,
        *(zstandard.compress(s) for s in case.streams),
    ]
    accepted = []
    for number in range(EDITS):
        part = rng.randrange(len(parts))
        data = damaged(rng, parts[part])
        if data == parts[part]:
            continue
        if part == 0:
            case.write(data)
        elif part == 1:
            case.write(manifest=data)
        elif part < 4:
            case.write_layers({part - 2: zstandard.compress(data)}, {part - 2: digest(data)} if rng.random() < 0.5 else {})
        else:
            case.write_layers({part - 4: data}, {})
        if not case.problems() and not same_stream(part, data, case):
            accepted.append((number, part))
    assert accepted == []


def same_stream(part: int, data: bytes, case: Case) -> bool:
    """Whether damaged compressed bytes still are the same layer: zstd has bits without a meaning, which nothing reads."""
    if part < 4:
        return False
    return zstandard.ZstdDecompressor().decompress(data, max_output_size=1 << 20) == case.streams[part - 4]


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Bytes with one edit: replaced, taken away, inserted, repeated or moved."""
    place, length = rng.randrange(len(data)), rng.randrange(1, 20)
    kind = rng.randrange(5)
    if kind == 0:
        return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
    if kind == 1:
        return data[:place] + data[place + length :]
    if kind == 2:
        return data[:place] + rng.randbytes(length) + data[place:]
    if kind == 3:
        return data[: place + length] + data[place:]
    return data[place:] + data[:place]


def test_the_json_of_verify_keeps_its_keys() -> None:
    difference = Difference(2, "etc/passwd", "unexpected file")
    verification = Verification("oci:x", "sha256:1", "tiny", "2", differences=[difference])
    printed = verification.as_json()
    assert [*printed] == [
        *("image", "digest", "environment", "lock", "method", "id", "base", "claims", "differences"),
        *("proof", "proven", "report", "sbom", "added", "layers", "passed"),
    ]
    assert printed["differences"] == [{"layer": 2, "path": "etc/passwd", "problem": difference.problem}]
    assert printed["passed"] is False
    assert Verification("oci:x", "sha256:1", "tiny", "2").as_json()["passed"] is True
