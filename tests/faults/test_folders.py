"""What others have in a folder that is given to Smokehouse is neither deleted nor replaced."""

import hashlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from smoke_tests import report_folder
from smoke_tests.options import InputError
from smokehouse.environments import documents
from smokehouse.errors import UserError
from smokehouse.installs import bundler, owners, state, target
from smokehouse.locks import LockedFile
from smokehouse.oci.layout import Layout
from smokehouse.storage import exclusive, files

RECORD = Callable[[str, object], None]


# --report


def test_report_folder_is_used_again(tmp_path: Path) -> None:
    for _ in range(2):
        with report_folder.report_folder(tmp_path, "") as work:
            (tmp_path / "report.json").touch()
            (tmp_path / "notes.txt").write_text("mine")
            assert json.loads((tmp_path / ".lock").read_text())["process"] == os.getpid()
        assert not work.exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_report_folder_of_a_killed_run(tmp_path: Path) -> None:
    """Only the work folder that the lock file names is deleted."""
    with report_folder.report_folder(tmp_path, "") as work:
        text = (tmp_path / ".lock").read_text()
    (tmp_path / ".lock").write_text(text)
    work.mkdir()
    (tmp_path / "work-mine").mkdir()
    with report_folder.report_folder(tmp_path, ""):
        assert not work.exists()
    assert (tmp_path / "work-mine").is_dir()


LOCKS: dict[str, Callable[[Path], object]] = {
    "none": lambda lock: None,
    "empty": lambda lock: lock.touch(),
    "of another program": lambda lock: lock.write_text("{}"),
    "a FIFO": os.mkfifo,
    "a folder": lambda lock: lock.mkdir(),
    "a link": lambda lock: lock.symlink_to("logs"),
    "zeros": lambda lock: lock.write_bytes(bytes(10_000)),
}


@pytest.mark.parametrize("lock", LOCKS)
def test_report_folder_of_others(lock: str, tmp_path: Path, record_property: RECORD) -> None:
    record_property("fault", "folder")
    for name in ("logs", "ops", "work-abc"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("mine")
    LOCKS[lock](tmp_path / ".lock")
    with pytest.raises(InputError, match=f"{tmp_path}: .*give --report a"), report_folder.report_folder(tmp_path, ""):
        pytest.fail("it was taken for a report folder")
    assert all((tmp_path / name / "file").read_text() == "mine" for name in ("logs", "ops", "work-abc"))


def test_report_folder_whose_name_is_not_utf8(tmp_path: Path, record_property: RECORD) -> None:
    record_property("fault", "folder")
    folder = tmp_path / os.fsdecode(b"report\n\xff")
    refused = pytest.raises(InputError, match=r"^--report '.*/report\\n\\udcff': expected UTF-8, .*; give another folder$")
    with refused, report_folder.report_folder(folder, ""):
        pytest.fail("it was taken")
    assert not folder.exists()


def test_report_folder_in_use(tmp_path: Path, record_property: RECORD) -> None:
    record_property("fault", "folder")
    with (
        report_folder.report_folder(tmp_path, ""),
        pytest.raises(InputError, match=rf"in use by process {os.getpid()} on \S+; wait for it"),
        report_folder.report_folder(tmp_path, ""),
    ):
        pytest.fail("two runs have it")


# bundles


def locked(data: bytes) -> LockedFile:
    """Return a locked file with this content."""
    return LockedFile(
        name="a", version="1", file="a-1-py3-none-any.whl", size=len(data), sha256=hashlib.sha256(data).hexdigest()
    )


@pytest.mark.parametrize("linked", [True, False])
def test_only_recorded_files_of_a_bundle_are_removed(linked: bool, tmp_path: Path, record_property: RECORD) -> None:
    record_property("fault", "folder")
    wheelhouse, folder = tmp_path / "wheelhouse", tmp_path / "bundle"
    wheelhouse.mkdir()
    folder.mkdir()
    (folder / "wheels").symlink_to(wheelhouse) if linked else (folder / "wheels").mkdir()
    for name in ("old.whl", "foreign.whl"):
        (folder / "wheels" / name).touch()
    paths = ["wheels/old.whl", "wheels/../../escaped", "/etc/passwd", "manifest.json", "wheels", 5]
    (folder / "manifest.json").write_text(json.dumps({"files": dict.fromkeys(map(str, paths), "")}))
    recorded = bundler._recorded(folder)
    assert recorded == {"wheels/old.whl"}
    for path in recorded:
        bundler._remove(folder, path)
    assert {path.name for path in (folder / "wheels").iterdir()} == {"foreign.whl", *(["old.whl"] if linked else [])}


@pytest.mark.parametrize("record", ["[]", "{}", '{"files": 5}', "[[]]", "null", "[" * 100_000, "\0", '{"files": {"a": 1}}'])
def test_record_of_a_bundle_that_is_none(record: str, tmp_path: Path, record_property: RECORD) -> None:
    record_property("fault", "record")
    for name in ("manifest.json", ".files.json"):
        (tmp_path / name).write_text(record)
    assert bundler._recorded(tmp_path) == set()


def test_file_in_a_linked_wheelhouse_is_not_replaced(tmp_path: Path, record_property: RECORD) -> None:
    record_property("fault", "folder")
    (tmp_path / "wheelhouse").mkdir()
    (tmp_path / "wheels").symlink_to(tmp_path / "wheelhouse")
    file = locked(b"ours")
    (tmp_path / "wheels" / file.file).write_bytes(b"ours")
    bundler._require_own_names(tmp_path, {f"wheels/{file.file}": file})
    (tmp_path / "wheels" / file.file).write_bytes(b"theirs")
    with pytest.raises(UserError, match=rf"expected SHA-256 {file.sha256}, found another file in a linked folder; remove"):
        bundler._require_own_names(tmp_path, {f"wheels/{file.file}": file})


# prefixes


def test_files_of_others_in_a_prefix_are_carried_over(tmp_path: Path, record_property: RECORD) -> None:
    record_property("fault", "folder")
    old, new = tmp_path / "old", tmp_path / "new"
    for path in ("bin/python", "lib/python3.11/site-packages/a.py"):
        for folder in (old, new):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text("ours")
    target.write_record(old, set())
    (old / "data").mkdir()
    mine = {os.fsencode(old) + b"/data/na\xefve", os.fsencode(old / "data" / "two\nlines"), os.fsencode(old / "bin" / "mine")}
    for name in mine:
        Path(os.fsdecode(name)).write_text("mine")
    (old / "data" / "link").symlink_to("/nowhere")
    (old / "lib/python3.11/site-packages/b.py").write_text("a package that somebody added")
    target.carry_over(old, new, "3.11")
    assert {path.read_text() for path in new.rglob("*") if path.is_file()} == {"ours", "mine"}
    assert sum(path.is_file() and path.read_text() == "mine" for path in new.rglob("*")) == 3
    assert (new / "data" / "link").is_symlink()
    assert not (new / "lib/python3.11/site-packages/b.py").exists()


@pytest.mark.parametrize(
    "place", ["/", "/tmp/..", "/tmp/two\nlines", "/tmp/\udcff", "/tmp/\x1b[31m", "/dev/null", "/proc/self/cwd"]
)
def test_places_where_no_environment_can_be(place: str, record_property: RECORD) -> None:
    """What is installed has its path in scripts; all of it would be fetched before the first one fails."""
    record_property("fault", "prefix")
    with pytest.raises(UserError, match=r": expected a (folder|path)\b.*; specify an(other| empty)") as refused:
        target.require_place(Path(place))
    assert str(refused.value).isprintable()


def test_nothing_is_carried_through_a_link(tmp_path: Path, record_property: RECORD) -> None:
    record_property("fault", "folder")
    old, new = tmp_path / "old", tmp_path / "new"
    (old / "data").mkdir(parents=True)
    target.write_record(old, set())
    (old / "data" / "file").write_text("mine")
    new.mkdir()
    (new / "data").symlink_to(tmp_path)
    target.carry_over(old, new, "3.11")
    assert not (tmp_path / "file").exists()


# images


INDEXES: dict[str, Callable[[Path], object]] = {
    "a device": lambda index: index.symlink_to("/dev/zero"),
    "a FIFO": os.mkfifo,
    "a folder": lambda index: index.mkdir(),
    "a loop": lambda index: index.symlink_to("index.json"),
    "large": lambda index: index.write_bytes(bytes(5 << 20)),
    "nothing": lambda index: None,
    "empty": lambda index: index.touch(),
    "nested": lambda index: index.write_bytes(b"[" * 1_000_000),
}


@pytest.mark.parametrize("kind", INDEXES)
def test_index_that_is_none(kind: str, tmp_path: Path, record_property: RECORD) -> None:
    record_property("fault", "layout")
    INDEXES[kind](tmp_path / "index.json")
    with pytest.raises(UserError, match=rf"{tmp_path}.*; (specify|do not trust)"):
        Layout(tmp_path).image()


def test_two_at_once_wait_for_each_other(tmp_path: Path) -> None:
    """Both verifications of a reference work in one folder, so the second one begins when the first one ended."""
    inside, leave, order = threading.Event(), threading.Event(), []

    def first() -> None:
        with exclusive(tmp_path / ".lock", "verifying x"):
            inside.set()
            assert leave.wait(30)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(30)
    timer = threading.Timer(0.2, leave.set)
    timer.start()
    with exclusive(tmp_path / ".lock", "verifying x"):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]


@pytest.mark.parametrize("kind", ["a FIFO", "a folder", "a link"])
def test_lock_file_that_is_none(kind: str, tmp_path: Path, record_property: RECORD) -> None:
    record_property("fault", "lock file")
    LOCKS[kind](tmp_path / ".lock")
    with pytest.raises(UserError, match="expected a lock file or nothing"), exclusive(tmp_path / ".lock", "testing"):
        pytest.fail("it was locked")


def test_a_file_that_many_write_is_always_whole(tmp_path: Path) -> None:
    """Each reads what one of them wrote, and nothing else stays."""
    place = tmp_path / "folder" / "file"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / ".file.new").write_text("of a call that was killed, and longer than what is written now")
    seen: set[bytes] = set()

    def write(number: int) -> None:
        for _ in range(20):
            files.write(place, bytes([number]) * 1000)
            seen.add(place.read_bytes())

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen <= {bytes([number]) * 1000 for number in range(8)}
    assert [path.name for path in place.parent.iterdir()] == ["file"]


def test_a_file_whose_disk_is_full_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: RECORD
) -> None:
    record_property("fault", "folder")
    files.write(tmp_path / "file", "earlier")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write(tmp_path / "file", "later")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "earlier")]


# what should be a file, wherever it is read

NO_FILES: dict[str, Callable[[Path], object]] = {
    "a FIFO": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": lambda path: path.mkdir(),
    "a loop": lambda path: path.symlink_to(path.name),
    "nested": lambda path: path.write_bytes(b"[" * 1_000_000),
    "no UTF-8": lambda path: path.write_bytes(b"\xff\xfe"),
}


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_should_be_a_file_blocks_nobody(kind: str, tmp_path: Path, record_property: RECORD) -> None:
    """Each would wait for a writer of the FIFO, or read the device, until it is killed."""
    record_property("fault", "no file")
    info = tmp_path / "lib/python3.11/site-packages/a-1.dist-info"
    for place in (info / "METADATA", info / "RECORD", info / "entry_points.txt", tmp_path / "conda-meta/b.json"):
        place.parent.mkdir(parents=True, exist_ok=True)
        NO_FILES[kind](place)
    for name in (".smokehouse.json", "manifest.json", "stack.toml"):
        NO_FILES[kind](tmp_path / name)
    assert target.read_marker(tmp_path) is None
    [distribution] = state.distributions(tmp_path, "3.11")
    assert not distribution.is_removable
    assert {one.path.name for one in state.damage(tmp_path, "3.11", contents=True)} == {"RECORD"}
    assert owners.problems(tmp_path, "3.11", set()) == []
    with pytest.raises(UserError, match=r"^it: .*; make it again$"):
        documents.read_json(tmp_path / "manifest.json", "it", LockedFile, "make it again")
    with pytest.raises(UserError, match=r"^it(:1)?: .*; (make it a readable file|fix the line|save it as UTF-8)$"):
        documents.read_toml(tmp_path / "stack.toml", "it")
    if kind not in ("nested", "no UTF-8"):
        with pytest.raises(OSError, match=r"regular file|Is a directory|symbolic links"):
            files.hashed(tmp_path / "manifest.json")
