"""A folder becomes the tar stream that Go writes of it; an integration test compares the bytes with those of BuildKit."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from smokehouse.oci.changeset import END, Member, header, padding, write_layer

EPOCH = 315532800
LONG = f"{'a' * 60}/{'b' * 60}"
UNSPLIT = "c" * 120


def layer(folder: Path) -> bytes:
    """The layer of a folder."""
    out = io.BytesIO()
    write_layer(folder, out)
    return out.getvalue()


def fill(folder: Path) -> None:
    """Write entries of every kind to `folder`, in another order than that of a layer."""
    for name, content in (("z", b""), ("b-c/x", b"1" * 513), ("b/run", b"#!"), (LONG, b"2"), (UNSPLIT, b"3"), ("ä/ö", b"4")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "b" / "run").chmod(0o755)
    (folder / "link").symlink_to("./b//run")
    (folder / "far").symlink_to("d" * 101)
    for path in folder.rglob("*"):
        os.utime(path, (EPOCH, EPOCH), follow_symlinks=False)


def test_other_programs_read_what_is_written(tmp_path: Path) -> None:
    fill(tmp_path)
    with tarfile.open(fileobj=io.BytesIO(layer(tmp_path))) as tar:
        members = tar.getmembers()
        read = {entry.name: tar.extractfile(entry) for entry in members if entry.isfile()}
        contents = {name: file.read() for name, file in read.items() if file}
    assert [entry.name for entry in members] == sorted(
        (str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")), key=lambda name: os.fsencode(name).split(b"/")
    )
    assert contents == {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if is_file(path)}
    assert {(entry.uid, entry.gid, entry.uname, entry.gname, entry.mtime) for entry in members} == {(0, 0, "", "", EPOCH)}
    modes = {entry.name: entry.mode for entry in members}
    assert (modes["b/run"], modes["z"], modes["link"]) == (0o755, tmp_path.joinpath("z").stat().st_mode & 0o777, 0o777)
    assert {entry.name: entry.linkname for entry in members if entry.issym()} == {"link": "./b//run", "far": "d" * 101}


def is_file(path: Path) -> bool:
    """Whether `path` is a file and not a link to one."""
    return path.is_file() and not path.is_symlink()


def test_a_layer_depends_on_nothing_but_the_folder(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        fill(folder)
    assert layer(one) == layer(two)
    (two / "z").chmod(0o600)
    assert layer(one) != layer(two)


def test_the_headers_are_those_of_go() -> None:
    """Field by field as writer.go has them."""
    block = header(Member("file", b"opt/env/x", 0o644, EPOCH, size=5))
    assert len(block) == 512
    fields = {
        (0, 100): b"opt/env/x".ljust(100, b"\0"),
        (100, 108): b"0000644\0",
        (108, 124): b"0000000\0" * 2,
        (124, 136): b"00000000005\0",
        (136, 148): b"02263523000\0",
        (156, 157): b"0",
        (157, 257): bytes(100),
        (257, 265): b"ustar" + b"\x00" + b"00",
        (265, 329): bytes(64),
        (329, 345): b"0000000\0" * 2,
        (345, 512): bytes(167),
    }
    assert {place: block[slice(*place)] for place in fields} == fields
    assert header(Member("link", b"a", 0o777, EPOCH, target=b"b"))[156:159] == b"2b\0"
    assert header(Member("folder", b"a", 0o755, EPOCH))[:3] == b"a/\0"


def test_a_long_name_is_split_and_other_names_have_a_pax_header() -> None:
    split = header(Member("file", LONG.encode(), 0o644, EPOCH))
    assert len(split) == 512
    assert (split[:61], split[345:406]) == (b"b" * 60 + b"\0", b"a" * 60 + b"\0")
    extended = header(Member("file", b"d/" + UNSPLIT.encode(), 0o644, EPOCH))
    assert len(extended) == 3 * 512
    assert extended[:17] == b"d/PaxHeaders.0/cc"
    assert extended[100:108] == b"0000000\0"
    assert extended[136:148] == b"00000000000\0"  # the time of the extension, which is none
    assert (extended[156:157], extended[329:345]) == (b"x", bytes(16))
    assert extended[512:1024].rstrip(b"\0") == b"132 path=d/" + UNSPLIT.encode() + b"\n"
    assert extended[1024:1124] == b"d/" + b"c" * 98
    other = header(Member("link", "ä".encode(), 0o777, EPOCH, target="ö".encode()))
    assert other[512:1024].rstrip(b"\0") == "15 linkpath=ö\n11 path=ä\n".encode()
    assert other[1024:1025] == b"\0"  # what is not ASCII is left out


@pytest.mark.parametrize("value", [{"mode": 1 << 21}, {"size": 1 << 33}, {"mtime": -1}, {"mtime": 1 << 33}])
def test_what_does_not_fit_is_refused(value: dict[str, int]) -> None:
    member = {"kind": "file", "name": b"x", "mode": 0o644, "mtime": 0} | value
    with pytest.raises(ValueError, match="does not fit"):
        header(Member(**member))  # type: ignore[arg-type]


def test_other_kinds_of_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe: expected a file, a link or a folder"):
        layer(tmp_path)


def test_a_stream_ends_with_two_blocks(tmp_path: Path) -> None:
    assert layer(tmp_path) == END == bytes(1024)
    assert (padding(0), padding(1), padding(512)) == (b"", bytes(511), b"")
