"""A real checkout and a real package index on this machine, new for each test."""

import base64
import hashlib
import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import uuid
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from .channel import EARLY, Channel, copy, fill
from .preloaded import Server

ENVIRONMENT = """\
name: tiny
channels:
  - conda-forge
dependencies:
  - python=3.11
  - cuda-nvcc=12.4
  - pip:
      - alpha==1.0
      - beta
"""

STACK = """\
[model]
family = "qwen2_5_vl"
class = "Qwen2_5_VLForConditionalGeneration"

[packages]
cutoff = 2025-03-15
platform = "x86_64-manylinux_2_28"

[cuda]
version = "12.4"

[[left_out]]
package = "vllm"
reason = "needs another torch"

[expectations.auto_classes]
AutoModel = "part"

[conda]
devel = ["cuda-nvcc"]

[expectations]
gloo_race = "present"
later_key_layout = "random"
"""

# Replaces the real smoke tests: refuses one option, and otherwise prints how it was started.
SMOKE_TESTS = """\
import json, os, sys
if "--nonsense" in sys.argv:
    sys.exit("smoke_tests: --nonsense is no option; see --help")
if "--validate" not in sys.argv:
    import alpha
    print(json.dumps({"argv": sys.argv[1:], "python": sys.executable, "cwd": os.getcwd(), "pid": os.getpid(),
                      "site": sys.flags.no_user_site, "path": os.environ.get("PYTHONPATH"), "alpha": alpha.__file__}))
"""


def wheel(
    name: str,
    version: str,
    *,
    requires: tuple[str, ...] = (),
    code: str = "",
    script: str = "",
    tag: str = "py3-none-any",
    headers: tuple[str, ...] = (),
) -> bytes:
    """Return the bytes of a wheel with one module, reproducibly.

    `script` is a console script, as module:function; `headers` are further lines of its metadata.
    """
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + "".join(f"{line}\n" for line in headers)
    members = {
        f"{name}.py": code,
        f"{info}/METADATA": metadata + "".join(f"Requires-Dist: {text}\n" for text in requires),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    if script:
        members[f"{info}/entry_points.txt"] = f"[console_scripts]\n{name} = {script}\n"
    record = "".join(f"{path},sha256={_record_hash(text)},{len(text)}\n" for path, text in members.items())
    members[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, text in members.items():
            archive.writestr(zipfile.ZipInfo(path), text, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _record_hash(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


def _metadata(data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("/METADATA")))


def sdist(name: str, version: str, files: dict[str, str]) -> bytes:
    """Return the bytes of a source distribution with `files`."""
    files = {"PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", **files}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for path, text in files.items():
            member = tarfile.TarInfo(f"{name}-{version}/{path}")
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


@dataclass
class File:
    """A file in the index. The index can send other bytes, wait, or list another size."""

    data: bytes
    uploaded: str | None = EARLY
    sent: bytes | None = None
    size: int | None = None
    requested: threading.Event = field(default_factory=threading.Event)
    gate: threading.Event | None = None


class Index:
    """A package index over HTTP (the JSON simple API), public or with a `secret`: user and password."""

    def __init__(self) -> None:
        self.files: dict[str, File] = {}
        self.downloads: Counter[str] = Counter()
        self.requests = 0
        self.secret: tuple[str, str] | None = None
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index._answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        # uv caches by address, and a port can come back.
        self.base = f"http://127.0.0.1:{self.server.server_port}/{uuid.uuid4()}"

    def add(self, name: str, version: str = "1.0", *, tag: str = "py3-none-any", **content: object) -> File:
        """List a wheel; `content` is as for `wheel`."""
        data = wheel(name, version, tag=tag.split("-", 1)[1] if tag[0].isdigit() else tag, **content)  # type: ignore[arg-type]
        return self.put(f"{name}-{version}-{tag}.whl", data)

    def put(self, name: str, data: bytes) -> File:
        """List a file."""
        self.files[name] = File(data)
        return self.files[name]

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        self.requests += 1
        if self.secret:
            token = base64.b64encode(":".join(self.secret).encode()).decode()
            if request.headers["Authorization"] != f"Basic {token}":
                request.send_response(401)
                request.send_header("WWW-Authenticate", "Basic")
                request.send_header("Content-Length", "0")
                request.end_headers()
                return
        _, kind, name = request.path.strip("/").split("/")
        if kind == "simple":
            listed = [self._entry(file) for file in self.files if file.split("-")[0].replace("_", "-") == name]
            body = json.dumps({"meta": {"api-version": "1.1"}, "name": name, "versions": [], "files": listed}).encode()
            self._send(request, body if listed else None, "application/vnd.pypi.simple.v1+json")
        elif name.endswith(".whl.metadata"):
            self._send(request, _metadata(self.files[name.removesuffix(".metadata")].data), "text/plain")
        else:
            file = self.files[name]
            self.downloads[name] += 1
            file.requested.set()
            if file.gate:
                file.gate.wait(60)
            self._send(request, file.data if file.sent is None else file.sent, "application/octet-stream")

    def _entry(self, name: str) -> dict[str, object]:
        file = self.files[name]
        entry: dict[str, object] = {
            "filename": name,
            "url": f"{self.base}/files/{name}",
            "hashes": {"sha256": hashlib.sha256(file.data).hexdigest()},
            "size": len(file.data) if file.size is None else file.size,
        }
        if file.uploaded:
            entry["upload-time"] = file.uploaded
        if name.endswith(".whl"):
            entry["core-metadata"] = {"sha256": hashlib.sha256(_metadata(file.data)).hexdigest()}
        return entry

    @staticmethod
    def _send(request: BaseHTTPRequestHandler, body: bytes | None, kind: str) -> None:
        request.send_response(404 if body is None else 200)
        request.send_header("Content-Type", kind)
        request.send_header("Cache-Control", "max-age=0")
        request.send_header("Content-Length", str(len(body or b"")))
        request.end_headers()
        with suppress(OSError):  # from a client that the test killed
            request.wfile.write(body or b"")


@pytest.fixture
def index() -> Iterator[Index]:
    """An index with alpha 1.0, beta 2.0 and 3.0 (too young), and gamma 1.5, which beta needs."""
    index = Index()
    index.add("alpha", code="def hello(): return 'hello'\ndef main(): print('hello')\n", script="alpha:main")
    index.add("beta", "2.0", requires=("gamma>=1", "alpha"))
    index.add("beta", "3.0").uploaded = "2025-03-16T00:00:00Z"
    index.add("gamma", "1.5")
    thread = threading.Thread(target=index.server.serve_forever, args=(0.02,))
    thread.start()
    yield index
    for file in index.files.values():
        if file.gate:
            file.gate.set()
    index.server.shutdown()
    thread.join()
    index.server.server_close()


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a conda channel, made once and never changed."""
    channel = Channel(tmp_path_factory.mktemp("packages"))
    fill(channel)
    return channel.folder


@pytest.fixture
def channel(packages: Path, tmp_path: Path) -> Iterator[Channel]:
    """A conda channel with the packages of `fill`, which a test can change."""
    channel = copy(packages, tmp_path / "channel")
    channel.start()
    yield channel
    channel.stop()


# Variables that Python reads only when it starts, and that coverage sets for the programs that it measures.
_READ_AT_START = ("PYTHON", "LANG", "LC_")
_MEASURED = any(name.startswith("COV_") or name == "COVERAGE_PROCESS_CONFIG" for name in os.environ)


@dataclass(frozen=True)
class TestCheckout:
    """A checkout with one environment, `tiny`, and its own index and caches."""

    __test__ = False
    root: Path
    environ: dict[str, str]
    server: Server | None = None  # starts commands faster

    @property
    def folder(self) -> Path:
        return self.root / "environments" / "tiny"

    @property
    def environment(self) -> Path:
        return self.folder / "environment.yml"

    @property
    def stack(self) -> Path:
        return self.folder / "stack.toml"

    @property
    def pins(self) -> Path:
        return self.root / "lockfiles" / "tiny" / "requirements.txt"

    @property
    def build_pins(self) -> Path:
        return self.pins.with_name("build-requirements.txt")

    @property
    def conda_lock(self) -> Path:
        return self.pins.with_name("conda-lock.yml")

    @property
    def lock_json(self) -> Path:
        return self.pins.with_name("lock.json")

    @property
    def installed(self) -> Path:
        return self.root / "build" / "environments" / "tiny"

    @property
    def marker(self) -> Path:
        return self.installed / ".smokehouse.json"

    def edit(self, file: Path, old: str, new: str) -> None:
        """Replace `old`, which must occur once, by `new`."""
        text = file.read_text()
        assert text.count(old) == 1
        file.write_text(text.replace(old, new))

    def run(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run the command line to its end."""
        return self.run_for(300, arguments, environ)

    def run_for(
        self, timeout: float, arguments: Sequence[str], environ: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the command line to its end, in `timeout` seconds at most, with more variables."""
        environ = environ or {}
        if self.server is None or _MEASURED or any(name.startswith(_READ_AT_START) for name in environ):
            return subprocess.run(
                self.command(*arguments),
                cwd=self.root,
                env={**self.environ, **environ},
                capture_output=True,
                text=True,
                timeout=timeout,
            )
        return self.server.run(list(arguments), folder=self.root, environ={**self.environ, **environ}, timeout=timeout)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the command line in the background."""
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.root,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def at_terminal(self, *arguments: str) -> tuple[int, str]:
        """Run the command line at a terminal; return its exit code and the text on it."""
        child, master = pty.fork()
        if child == 0:
            os.chdir(self.root)
            os.execve(sys.executable, self.command(*arguments), self.environ)
        output = b""
        with suppress(OSError):  # Linux raises EIO where the other end is closed
            while chunk := os.read(master, 65536):
                output += chunk
        _, status = os.waitpid(child, 0)
        os.close(master)
        return os.waitstatus_to_exitcode(status), re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.decode())

    def command(self, *arguments: str) -> list[str]:
        """Return the command line as a list."""
        return [sys.executable, "-m", "smokehouse", *arguments]

    def refused(self, *arguments: str, **environ: str) -> str:
        """Run the command line, which must print one error and exit with code 2; return the error."""
        ended = self.run(*arguments, **environ)
        assert ended.returncode == 2, ended.stderr
        lines = [
            line
            for line in ended.stderr.splitlines()
            if not re.match("smokehouse: (installing|fetching|linking|bundl(ing|ed)|building|preparing|assembling) ", line)
        ]
        assert len(lines) == 1, ended.stderr
        assert lines[0].startswith("smokehouse: ")
        return lines[0]

    def lock(self, *arguments: str, **environ: str) -> None:
        """Lock `tiny`, which must succeed."""
        ended = self.run("lock", "tiny", *arguments, **environ)
        assert ended.returncode == 0, ended.stderr


@pytest.fixture(scope="session")
def uv_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty cache, shared because uv without one inspects every Python on the machine."""
    return tmp_path_factory.mktemp("uv-cache")


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The process that forks what `TestCheckout.run` runs."""
    server = Server()
    yield server
    server.close()


@pytest.fixture
def checkout(root: Path, tmp_path: Path, index: Index, uv_cache: Path, packages: Path, server: Server) -> TestCheckout:
    """A checkout that uses `index` and the records in `packages`."""
    root_folder = tmp_path / "checkout"
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "PYTHON"))}
    environ |= {
        "PYTHONPATH": str(root / "src"),
        "UV_DEFAULT_INDEX": f"{index.base}/simple",
        "UV_CACHE_DIR": str(uv_cache),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "SMOKEHOUSE_CHANNEL": str(packages),
        "UV_HTTP_RETRIES": "0",
        "UV_PYTHON_DOWNLOADS": "never",
    }
    found = TestCheckout(root_folder, environ, server)
    found.folder.mkdir(parents=True)
    found.environment.write_text(ENVIRONMENT)
    found.stack.write_text(STACK)
    (root_folder / "smoke_tests").mkdir()
    (root_folder / "smoke_tests" / "__main__.py").write_text(SMOKE_TESTS)
    shutil.copytree(
        root / "smoke_tests" / "machine", root_folder / "smoke_tests" / "machine", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(root / "pyproject.toml", root_folder)
    (root_folder / "lockfiles").mkdir()
    shutil.copy(root / "lockfiles" / "tools.txt", root_folder / "lockfiles")
    return found


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB, which a test can fill."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(folder)], capture_output=True, text=True, timeout=10
    )
    if mounted.returncode:
        pytest.skip(f"mounting a small file system failed: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True, timeout=10)
