"""A layer is read to explain it: within bounds, whatever it has, and nothing of it is obeyed."""

import re
import tarfile
import time
from pathlib import Path

import pytest

from smokehouse.errors import UserError
from smokehouse.oci.filesystem import Entry, Limits, entries

from ...integration.tiny_images import FOLDER, Member, link, packed, tar

ZEROS = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # sha256sum of nothing

# Of extended headers: without a length, without an end, with lengths of another sign and size, and without a value.
RECORDS = (b"evil", b"9 path=a", b"-9 path=a\n", b"0 path=a\n", b"99 path=a\n", b"8 patha\n")


def read(folder: Path, data: bytes, limits: Limits | None = None, kind: str = "zstd") -> dict[str, Entry]:
    place = folder / "layer"
    place.write_bytes(packed(data, kind))
    return entries(place, f"application/vnd.oci.image.layer.v1.tar{f'+{kind}' if kind else ''}", "layer 1", limits or Limits())


def header(kind: bytes, size: int = 0, name: str = "x") -> bytes:
    """One header, with nothing behind it."""
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


def extended(content: bytes) -> bytes:
    """An extended header, and the file that it is of."""
    return header(b"x", len(content)) + content + bytes(-len(content) % 512) + header(tarfile.REGTYPE)


@pytest.mark.parametrize("kind", ["", "gzip", "zstd"])
def test_entries_are_as_their_headers_have_them(tmp_path: Path, kind: str) -> None:
    long, far = "d/" + "n" * 150, "t" * 150
    contents: list[tuple[str, Member | bytes]] = [
        ("d", FOLDER),
        (long, b"l" * 600),
        ("d/\u05e9", Member(headers={"SCHILY.xattr.user.a": "1", "comment": "2"})),
        ("s", link("../../anywhere")),
        ("far", link(far)),
        ("h", Member(type=tarfile.LNKTYPE, target="a")),
        ("dev/null", Member(type=tarfile.CHRTYPE, mode=0o666)),
        ("pipe", Member(type=tarfile.FIFOTYPE)),
        ("../etc/passwd", b""),
        ("d/.wh.x", b""),
    ]
    found = read(tmp_path, tar(contents), kind=kind)
    assert [*found] == [path for path, _ in contents]
    kinds = ["folder", "file", "file", "link", "link", "hard link", "device", "pipe", "file", "file"]
    assert [entry.kind for entry in found.values()] == kinds
    assert found["d"] == Entry("folder", "755", "0:0", "0", "", "", "")
    assert found["s"].target == "../../anywhere"
    assert found["far"].target == far
    assert found["dev/null"].target == "0:0"
    assert found["d/\u05e9"] == Entry("file", "644", "0:0", "0", "", ZEROS, "SCHILY.xattr.user.a, comment")
    assert len({entry.sha256 for entry in found.values()}) == 3  # of the long one, of nothing, and none


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (header(b"Q"), "a header of type b'Q' and size 0 for 'x'"),
        (header(tarfile.SYMTYPE, 512), "a header of type b'2' and size 512"),
        (header(tarfile.REGTYPE, -1), "size -1"),
        *((header(kind, 600) + bytes(1024), "a header of type") for kind in (b"g", b"L", b"K", b"S", b"X")),
        (header(tarfile.REGTYPE, 600) + bytes(512), "ends too early"),
        (header(tarfile.REGTYPE)[:-1], "ends too early"),
        (b"", "ends too early"),
        (b"evil" * 1000, "a header with an error"),
        (header(b"x", 70_000) + bytes(70_144), "a header of type b'x' and size 70000"),
        (header(b"x", 0), "a header of type b'x' and size 0"),
        (header(b"x", 8) + b"8 path=\n" + bytes(504) + extended(b""), "a header of type b'x'"),
        *((extended(content), "cannot be read to explain it") for content in RECORDS),
    ],
)
def test_what_programs_may_understand_otherwise_ends_the_reading(tmp_path: Path, data: bytes, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        read(tmp_path, data)


def test_what_is_read_is_within_bounds(tmp_path: Path) -> None:
    """Of bytes and of memory, and over all layers together: a few kB can be made of billions of zeros."""
    limits = Limits(unpacked=8 << 20)
    data = tar({"zeros": bytes(5 << 20)})
    assert [*read(tmp_path, data, limits)] == ["zeros"]
    with pytest.raises(UserError, match="more than is read to explain"):
        read(tmp_path, data, limits)
    with pytest.raises(UserError, match="more than is read to explain"):
        read(tmp_path, tar({f"f{number}": b"" for number in range(200)}), Limits(memory=100_000))
    for long in (extended(b"60007 path=" + b"n" * 59_995 + b"\n") * 9, extended(b"60010 comment=" + b"n" * 59_995 + b"\n") * 9):
        with pytest.raises(UserError, match="more than is read to explain"):
            read(tmp_path, long, Limits(memory=500_000))


def test_no_extended_header_takes_long(tmp_path: Path) -> None:
    """Python's tarfile takes about 4 s for each of these, and the square of that: some of its patterns are quadratic."""
    began = time.process_time()
    data = extended(b"60011 comment=" + b"1" * 59_996 + b"\n") * 20
    assert read(tmp_path, data + bytes(1024))["x"].records == "comment"
    assert time.process_time() - began < 10


def test_another_kind_of_layer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "layer").touch()
    with pytest.raises(UserError, match=r"^layer 1: expected a layer of type tar, tar\+gzip or tar\+zstd, found 'x'"):
        entries(tmp_path / "layer", "x", "layer 1", Limits())
