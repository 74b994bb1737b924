"""A container engine for the tests, from Debian packages, whose storage is removed when it ends."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from .debian import unpack

# Debian 12 has Docker 20.10, without named contexts and OCI layouts. Debian 13's works on Debian 12, except for its runc.
PACKAGES = ("docker.io/trixie", "docker-cli/trixie", "docker-buildx/trixie", "containerd/trixie", "runc/bookworm")
_STARTING = 60  # seconds


@dataclass(frozen=True)
class Engine:
    """A running engine. `docker` uses it with the variables `environ`; `store` is None for the engine of this machine."""

    environ: dict[str, str]
    store: Path | None

    def docker(self, *arguments: str, timeout: float = 600, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run docker and return its result."""
        ended = subprocess.run(
            [shutil.which("docker", path=self.environ["PATH"]) or "docker", *arguments],
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        free = shutil.disk_usage(self.store or "/").free / 1e9
        said = f"{ended.stdout}{ended.stderr}"[-2000:]
        assert not check or ended.returncode == 0, f"docker {' '.join(arguments)} ({free:.1f} GB of disk free): {said}"
        return ended


def present() -> Engine | None:
    """Return the engine of this machine, None where it has none."""
    with suppress(FileNotFoundError):
        for command in (["docker", "info"], ["docker", "buildx", "version"]):
            if subprocess.run(command, capture_output=True, timeout=60).returncode:
                return None
        return Engine(dict(os.environ), None)
    return None


@contextmanager
def started(programs: Path) -> Iterator[Engine]:
    """Run an engine with empty storage, which is removed at the end; its programs are unpacked to `programs`."""
    usr = unpack(PACKAGES, programs)
    # Short, because the path of a socket has at most 107 bytes; and outside of pytest's folders, which outlive the run.
    folder = Path(tempfile.mkdtemp(prefix="smokehouse-engine-", dir="/tmp"))
    plugins = folder / "config" / "cli-plugins"
    plugins.mkdir(parents=True)
    plugin = next(usr.glob("lib*/docker/cli-plugins/docker-buildx"))
    (plugins / "docker-buildx").symlink_to(plugin)
    (folder / "daemon.json").write_text('{"features": {"containerd-snapshotter": true}}')
    environ = os.environ | {
        "PATH": f"{usr}/bin:{usr}/sbin:{os.environ['PATH']}",
        "DOCKER_HOST": f"unix://{folder}/docker.sock",
        "DOCKER_CONFIG": str(folder / "config"),
    }
    command = ["dockerd", "--config-file", f"{folder}/daemon.json", "--data-root", f"{folder}/data"]
    command += ["--exec-root", f"{folder}/exec", "-p", f"{folder}/docker.pid", "-H", environ["DOCKER_HOST"]]
    command += ["--bridge=none", "--iptables=false", "--ip6tables=false"]
    with (folder / "log").open("wb") as log:
        # A session of its own keeps Ctrl-C from it: the tests end it in order. If they are killed, so is the engine.
        daemon = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", *command], env=environ, stdout=log, stderr=log, start_new_session=True
        )
    try:
        _await(daemon, folder, environ)
        yield Engine(environ, folder)
    finally:
        _end(daemon, folder)


def _await(daemon: subprocess.Popen[bytes], folder: Path, environ: dict[str, str]) -> None:
    """Return when the engine responds."""
    socket = folder / "docker.sock"
    # curl retries until there is a response, so nothing here guesses how long that takes.
    command = ["curl", "--silent", "--fail", "--unix-socket", str(socket), "--retry", str(_STARTING), "--retry-delay", "1"]
    command += ["--retry-all-errors", "--retry-max-time", str(_STARTING), "http://engine/_ping"]
    answered = subprocess.run(command, env=environ, capture_output=True, timeout=2 * _STARTING)
    assert answered.returncode == 0, (folder / "log").read_text(errors="replace")[-4000:]
    assert daemon.poll() is None


def _end(daemon: subprocess.Popen[bytes], folder: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(daemon.pid, number)
        with suppress(subprocess.TimeoutExpired):
            daemon.wait(60)
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in sorted((mount for mount in mounts if mount.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "--lazy", mount], timeout=60)
    shutil.rmtree(folder)
