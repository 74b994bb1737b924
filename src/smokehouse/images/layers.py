"""Layers made here: a step of docker/Dockerfile runs in a namespace, and what it writes to /out becomes a layer.

A layer is kept under a hash of what it is made from, so environments share it, and only what has changed is made again. What
was edited since is made again, too. Where there is too much, what was not used for longest is removed, and then, of layers
that were packed, the trees: they are made again if a step needs them.
"""

import fcntl
import gzip
import hashlib
import json
import os
import re
import shutil
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import zstandard

from smokehouse.checkout import Checkout
from smokehouse.errors import UserError
from smokehouse.oci.blobs import decompress
from smokehouse.oci.changeset import write_layer
from smokehouse.oci.layout import Image
from smokehouse.oci.model import Descriptor
from smokehouse.programs import namespace
from smokehouse.programs.process import run
from smokehouse.storage import files
from smokehouse.storage.folder_lock import exclusive

NO_PROGRAMS = "the base image has no {}; use one that has a shell, tar and glibc, such as Debian"

Compression = Literal["zstd", "gzip"]

_FORMAT = 3  # raised whenever the same inputs make another layer
_DEADLINE = 7200.0  # seconds of one step
_CHUNK = 1 << 20
# The most that is kept, in GB, and the seconds for which all that was used is kept: an image is written from it.
_MOST, _MOST_VARIABLE = 50.0, "SMOKEHOUSE_LAYERS_GB"
_KEPT = 3600.0
_LEVELS: dict[Compression, int] = {"zstd": 3, "gzip": 6}
# Of zstd, for one layer. It cuts a stream into jobs of a fixed size, so that any number but 0 gives the same bytes; each takes
# about 15 MB of memory, and AT_ONCE layers are compressed at once.
THREADS, AT_ONCE = 4, 8
# The files of a layer: its tree, by what a change of that is noticed, its bytes, and what it was made from.
_TREE, _FINGERPRINT, _SIZE, _ABOUT = "tree", "tree.sha256", "size", "made-from.json"
_REMOVED = "removed"  # in place of the fingerprint where only what was packed of the tree is kept
_EARLIER = "/earlier"
_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"
# Of a step; those that are compiled set their own.
_ENVIRON = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}


@dataclass(frozen=True)
class Made:
    """What a step has written, in `tree`, with the `key` of what it was made from."""

    key: str
    folder: Path

    @property
    def tree(self) -> Path:
        """The folder that was /out of the step."""
        return self.folder / _TREE


@dataclass(frozen=True)
class Packed:
    """A layer as a file: digest and size in bytes of its tar stream, and the compressed `blob`, which is at `path`."""

    diff_id: str
    unpacked: int
    blob: Descriptor
    path: Path


@dataclass(frozen=True)
class Step:
    """A step: `program` runs with `scripts` of docker/steps in the file systems `below`, the topmost first.

    It reads `inputs`, folders by their absolute path; each has a text that its content depends on, and nothing else. `alike`
    are names of what the layer is made of: a step with some reads what it made of earlier versions of these, if that is there,
    from a folder given with --earlier, which saves time and changes nothing of what it makes.
    """

    name: str
    program: tuple[str, ...]
    scripts: tuple[str, ...]
    below: tuple[Made, ...]
    inputs: Mapping[str, tuple[Path, str]]
    alike: frozenset[str] = frozenset()


class LayerStore:
    """A folder of layers that were made in a checkout, which later builds use again."""

    def __init__(self, checkout: Checkout, folder: Path | None = None) -> None:
        """Open the store of `checkout`, or that in `folder`; raises UserError where others could have written to it."""
        self._folder = folder or checkout.build / "layers"
        self._steps = checkout.file("docker/steps")
        self._used: set[Path] = set()
        self._makers: dict[str, Callable[[], None]] = {}
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        found = self._folder.stat()
        if found.st_mode & 0o022 or found.st_uid not in (0, os.geteuid(), checkout.root.stat().st_uid):
            raise UserError(
                f"{self._folder}: expected a folder that nobody else can write to, since images are made of it, found mode "
                f"{found.st_mode & 0o777:o} and owner {found.st_uid}; remove it"
            )

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep others from removing layers; at the end, remove what was not used for longest, if there is too much."""
        try:
            most = float(os.environ.get(_MOST_VARIABLE) or _MOST) * 1e9
        except ValueError:
            raise UserError(f"{_MOST_VARIABLE}: expected a number of GB, found {os.environ[_MOST_VARIABLE]}") from None
        with (self._folder / ".use").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            yield
            for folder in self._used:
                os.utime(folder)
            with suppress(BlockingIOError):  # another build uses them, and will do this
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._prune(most)

    def _prune(self, most: float) -> None:
        """Remove layers until `most` bytes are left, in the order of their last use, but of those just used only trees."""
        entries = [path for path in self._folder.iterdir() if re.fullmatch(files.SHA256, path.name)]
        by_use = sorted(entries, key=lambda path: path.stat().st_mtime)
        sizes = {path: _kept_bytes(path) for path in by_use}  # as recorded: walking all trees took a fifth of a build
        total = sum(sizes.values())
        for path in by_use:
            if total <= most:
                break
            if path.stat().st_mtime <= time.time() - _KEPT:
                _discard(path)
                total -= sizes[path]
            elif _remove_tree(path):
                total -= sizes[path] - _kept_bytes(path)

    def make(self, step: Step) -> Made:
        """Run `step` unless what it makes is there, if only packed; raises UserError with the reason that the step gives."""
        content = {
            "program": [*step.program],
            "scripts": {name: files.hashed(self._steps / name) for name in step.scripts},
            "below": [lower.key for lower in step.below],
            "inputs": {place: text for place, (_, text) in step.inputs.items()},
        }
        made = self._place(content)

        def write(tree: Path) -> None:
            self._run(step, tree, self._earlier(step, content))
            if step.alike:
                files.write(made.folder / _ABOUT, json.dumps({"content": content, "alike": sorted(step.alike)}))

        self._makers[made.key] = lambda: self._once(made, step.name, write)
        if not _is_packed_alone(made.folder):
            self._makers[made.key]()
        return made

    def _restore(self, made: Made) -> None:
        """Make the tree of a layer again of which only what was packed of it is kept."""
        if not made.tree.is_dir() and (maker := self._makers.get(made.key)):  # or wait for another thread that does
            maker()

    def _earlier(self, step: Step, content: Mapping[str, object]) -> Path | None:
        """Return the tree of the layer that has most of what `step` makes, and was used last; None without one.

        The same programs have made it in the same file systems, of other inputs. Nothing says so but the key of the layer, a
        hash of all that it was made from, and it is still as it was made.
        """
        candidates = []
        for record in self._folder.glob(f"*/{_ABOUT}") if step.alike else ():
            with suppress(OSError, ValueError, TypeError, KeyError):
                found = json.loads(record.read_text())
                common = len(step.alike.intersection(found["alike"]))
                same = {**content, "inputs": found["content"]["inputs"]} == found["content"]
                if common and same and _key(found["content"]) == record.parent.name:
                    candidates.append((common, record.parent.stat().st_mtime, record.parent))
        folders = (folder for *_, folder in sorted(candidates, reverse=True))
        return next((folder / _TREE for folder in folders if _is_whole(folder)), None)

    def unpack(self, image: Image) -> Made:
        """Unpack the base `image`, for steps to run on; raises UserError."""
        made = self._place({"base": image.config.rootfs.diff_ids})

        def extract(tree: Path) -> None:
            for number, (layer, diff_id) in enumerate(zip(image.manifest.layers, image.config.rootfs.diff_ids, strict=True), 1):
                image.layout.verify_blob(layer)
                with image.layout.blob(layer.digest).open("rb") as file:
                    stream = _Hashed(decompress(file, layer.media_type, f"layer {number}"))
                    _extract(stream, tree)
                    while stream.read(_CHUNK):  # what tar does not read
                        pass
                    _require_diff_id(number, diff_id, stream.digest)  # by which it is kept

        self._once(made, "base", extract)
        return made

    def pack(self, made: Made, compression: Compression) -> Packed:
        """Write what a step has made as a layer, unless it is there."""
        if _is_packed_alone(made.folder):
            if (packed := _recorded(made.folder, compression)) is not None:
                return packed
            self._restore(made)
        return self._pack(made, compression, lambda out: write_layer(made.tree, out))

    def repack(self, image: Image, compression: Compression) -> tuple[Packed, ...]:
        """Write the layers of the base `image` again, so that they are compressed as all others are."""
        return tuple(self._repack(image, number, compression) for number in range(len(image.manifest.layers)))

    def _repack(self, image: Image, number: int, compression: Compression) -> Packed:
        layer, diff_id = image.manifest.layers[number], image.config.rootfs.diff_ids[number]

        def copy(out: _Hashed) -> None:
            image.layout.verify_blob(layer)
            with image.layout.blob(layer.digest).open("rb") as file:
                source = decompress(file, layer.media_type, diff_id)
                while chunk := source.read(_CHUNK):
                    out.write(chunk)

        packed = self._pack(self._place({"layer": diff_id}), compression, copy)
        _require_diff_id(number + 1, diff_id, packed.diff_id)
        return packed

    def _place(self, content: Mapping[str, object]) -> Made:
        key = _key(content)
        made = Made(key, self._folder / key)
        self._used.add(made.folder)
        return made

    def _once(self, made: Made, name: str, write: Callable[[Path], None]) -> None:
        made.folder.mkdir(parents=True, exist_ok=True)
        with exclusive(made.folder / ".lock", f"making {name}"):
            if _is_whole(made.folder):
                return
            # The layer that was packed of it, too: it may have been edited before, unless its tree was removed here.
            kept = ("layer.", "zstd.", "gzip.") if _is_packed_alone(made.folder) else ()
            for path in made.folder.iterdir():
                if path.name != ".lock" and not path.name.startswith(kept):
                    _discard(path)
            partial = made.folder / "partial"
            partial.mkdir()
            try:
                write(partial)
                _pass_tick(made.folder / "clock")
                files.write(made.folder / _FINGERPRINT, _fingerprint(partial))
                files.write(made.folder / _SIZE, str(_tree_bytes(partial)))
                partial.rename(made.tree)
            finally:
                _discard(partial)

    def _run(self, step: Step, tree: Path, earlier: Path | None) -> None:
        with TemporaryDirectory(dir=tree.parent) as name:
            work, build = Path(name, "work"), Path(name, "build")
            work.mkdir()
            build.mkdir()
            for lower in step.below:
                self._restore(lower)
            mounts = {place: str(folder) for place, (folder, _) in step.inputs.items()}
            mounts |= {f"/steps/{script}": str(self._steps / script) for script in step.scripts}
            mounts |= {"/out": str(tree), "/build": str(build)}
            mounts |= {_EARLIER: str(earlier)} if earlier else {}
            root = namespace.Root([str(lower.tree) for lower in step.below], mounts, ["/out", "/build"], str(work))
            program = (*step.program, *(("--earlier", _EARLIER) if earlier else ()))
            command = namespace.command(root, program, _ENVIRON)
            ended = run(command, deadline=_DEADLINE, environ=_ENVIRON, cwd=tree.parent)
        if ended.code == namespace.FAILED:
            raise UserError(
                f"{step.name}: requires a user namespace to run without an engine, cannot create one "
                f"({ended.stderr.strip() or 'no reason given'}); allow them on this machine, or build with --builder"
            )
        if ended.code == namespace.NOT_STARTED:  # which is also what a shell returns
            what = "shell" if ended.stderr.startswith("/bin/sh:") and "python" not in ended.stderr else "glibc"
            raise UserError(f"{step.name} cannot be built: {NO_PROGRAMS.format(what)}")
        if ended.code:
            reasons = re.findall(r"smokehouse: (.*)", ended.stderr) or ended.stderr.split("\n")[-2:-1] or ["no reason given"]
            raise UserError(f"{step.name} cannot be built: {reasons[-1]}")

    def _pack(self, made: Made, compression: Compression, write: "Callable[[_Hashed], None]") -> Packed:
        record, path = made.folder / f"{compression}.json", made.folder / f"layer.{compression}"
        made.folder.mkdir(parents=True, exist_ok=True)
        with exclusive(made.folder / ".lock", "writing a layer"):
            if (packed := _recorded(made.folder, compression)) is not None:
                return packed
            partial = made.folder / "layer.partial"
            with partial.open("wb") as file:
                blob = _Hashed(file)
                with _compressor(compression, blob) as compressed:
                    out = _Hashed(compressed)
                    write(out)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            content = {"diff_id": out.digest, "unpacked": out.size, "digest": blob.digest, "size": blob.size}
            files.write(record, json.dumps(content))
            return Packed(out.digest, out.size, _descriptor(compression, blob.digest, blob.size), path)


def _recorded(folder: Path, compression: Compression) -> Packed | None:
    """Return the packed layer in `folder`, None where there is none or where it has been edited."""
    record, path = folder / f"{compression}.json", folder / f"layer.{compression}"
    if not record.is_file() or not path.is_file():
        return None
    try:
        content = json.loads(record.read_text())
        blob = _descriptor(compression, content["digest"], content["size"])
        packed = Packed(str(content["diff_id"]), int(content["unpacked"]), blob, path)
    except (ValueError, TypeError, KeyError):
        return None
    whole = path.stat().st_size == blob.size and f"sha256:{files.hashed(path)}" == blob.digest
    return packed if whole else None


def _descriptor(compression: Compression, digest: str, size: int) -> Descriptor:
    return Descriptor(media_type=f"application/vnd.oci.image.layer.v1.tar+{compression}", digest=digest, size=size)


def _key(content: Mapping[str, object]) -> str:
    return files.sha256(json.dumps({"format": _FORMAT, **content}, sort_keys=True))


def _is_whole(folder: Path) -> bool:
    """Return whether the layer in `folder` has a tree that is still as it was made."""
    tree, record = folder / _TREE, folder / _FINGERPRINT
    return tree.is_dir() and record.is_file() and record.read_text() == _fingerprint(tree)


def _is_packed_alone(folder: Path) -> bool:
    """Return whether `_remove_tree` removed the tree of the layer in `folder`."""
    record = folder / _FINGERPRINT
    return not (folder / _TREE).exists() and record.is_file() and record.read_text() == _REMOVED


def _remove_tree(folder: Path) -> bool:
    """Remove the tree of a layer, if it was packed and the tree is still what it was packed from."""
    if not any((folder / f"{kind}.json").is_file() for kind in _LEVELS) or not _is_whole(folder):
        return False
    files.write(folder / _FINGERPRINT, _REMOVED)
    _discard(folder / _TREE)
    return True


def _pass_tick(probe: Path) -> None:
    """Wait until the kernel's clock for inodes, which moves every few milliseconds, has moved; `probe` is a file to ask it.

    A change in the tick in which a file was made would leave its times as they are.
    """
    probe.touch()
    now = probe.stat().st_ctime_ns
    while probe.stat().st_ctime_ns == now:
        time.sleep(0.001)
        os.utime(probe)
    probe.unlink()


def _fingerprint(tree: Path) -> str:
    """Return a hash by which any change in a tree is noticed without reading its files.

    The kernel sets the time of change (ctime) of each inode, and no program can set it back.
    """
    digest, top = hashlib.sha256(), len(str(tree))
    folders = [str(tree)]
    while folders:
        with os.scandir(folders.pop()) as scanned:
            entries = sorted(scanned, key=lambda entry: entry.name)
        for entry in entries:
            found = entry.stat(follow_symlinks=False)
            text = f"{entry.path[top:]}\0{found.st_mode}\0{found.st_size}\0{found.st_mtime_ns}\0{found.st_ctime_ns}\n"
            digest.update(text.encode("utf-8", "surrogateescape"))
        folders += [entry.path for entry in reversed(entries) if entry.is_dir(follow_symlinks=False)]
    return digest.hexdigest()


def _kept_bytes(folder: Path) -> int:
    """Return about how many bytes a layer takes, with what it was packed from, by what was recorded when it was made."""
    unpacked = 0
    if (folder / _TREE).is_dir():  # a layer of a base has none
        try:
            unpacked = max(0, int((folder / _SIZE).read_text()))
        except (OSError, ValueError):
            unpacked = _tree_bytes(folder / _TREE)
    return unpacked + sum(path.stat().st_size for path in folder.glob("layer.*"))


def _tree_bytes(tree: Path) -> int:
    return sum(os.lstat(f"{place}/{name}").st_size for place, _, names in os.walk(tree) for name in names)


def _discard(path: Path) -> None:
    """Remove a file or a folder, whatever modes the folders in it have."""
    if path.is_dir() and not path.is_symlink():
        for folder, _, _ in os.walk(path):
            Path(folder).chmod(0o755)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _require_diff_id(number: int, expected: str, found: str) -> None:
    """Raise UserError for a base that is not what its configuration says; what is made on it is kept by what that says."""
    if found != expected:
        raise UserError(f"layer {number} of the base: expected {expected}, found {found}; do not trust it")


class _Hashed:
    """A stream that hashes and counts what is read from it or written to it."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._digest, self.size = stream, hashlib.sha256(), 0

    def read(self, size: int) -> bytes:
        """Read at most `size` bytes."""
        data: bytes = self._stream.read(size)
        self._count(data)
        return data

    def write(self, data: bytes) -> int:
        """Write `data`."""
        self._count(data)
        self._stream.write(data)
        return len(data)

    def flush(self) -> None:
        """Do nothing: a file is flushed once it is whole."""

    def _count(self, data: bytes) -> None:
        self._digest.update(data)
        self.size += len(data)

    @property
    def digest(self) -> str:
        """The digest of what was read or written."""
        return f"sha256:{self._digest.hexdigest()}"


def _compressor(compression: Compression, out: Any) -> AbstractContextManager[Any]:
    """Return a stream that compresses to `out`, which stays open, what is written to it."""
    if compression == "gzip":
        return gzip.GzipFile("", "wb", _LEVELS["gzip"], out, mtime=0)
    how = zstandard.ZstdCompressionParameters.from_level(_LEVELS["zstd"], threads=THREADS, write_checksum=True)
    return zstandard.ZstdCompressor(compression_params=how).stream_writer(out, closefd=False)


def _extract(stream: object, tree: Path) -> None:
    """Unpack a layer of a base on top of `tree`, as far as programs need it: no devices, and all of it this user's."""

    def fit(member: tarfile.TarInfo, destination: str) -> tarfile.TarInfo | None:
        kept = tarfile.tar_filter(member, destination)  # refuses what is outside, before anything is removed
        path = Path(destination, kept.name)
        if path.name.startswith(_WHITEOUT):
            _hide(path)
            return None
        if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
            return None
        if os.path.lexists(path) and not (member.isdir() and path.is_dir() and not path.is_symlink()):
            _discard(path)
        mode = member.mode & 0o777 | (0o700 if member.isdir() else 0o400)
        return kept.replace(uid=None, gid=None, uname=None, gname=None, mode=mode, deep=False)  # type: ignore[arg-type]

    try:
        with tarfile.open(fileobj=stream, mode="r|") as tar:  # type: ignore[call-overload]
            tar.extractall(tree, filter=fit)  # noqa: S202 - the filter refuses what is outside
    except (tarfile.TarError, EOFError, OSError, zlib.error, zstandard.ZstdError, ValueError) as broken:
        raise UserError(f"base: a layer cannot be unpacked ({broken}); use another base") from None


def _hide(whiteout: Path) -> None:
    """Remove what a `whiteout` of an upper layer hides."""
    hidden = whiteout.name.removeprefix(_WHITEOUT)
    if whiteout.name == _OPAQUE:
        for inside in whiteout.parent.iterdir():
            _discard(inside)
    elif hidden not in ("", ".", ".."):
        _discard(whiteout.with_name(hidden))
