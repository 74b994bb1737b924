"""The engine that the tests of images run on, and the engine's API as the builder uses it."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from smokehouse.errors import UserError
from smokehouse.oci.layout import Layout, unpack_layout
from smokehouse.programs import docker
from smokehouse.programs.docker import Container, EngineImage, Mount

from ..debian import unpack
from ..engine import Engine, started
from ..tiny_images import Member, image

RUN = """
import sys
from smokehouse.programs import docker
from smokehouse.programs.docker import Container
sys.exit(docker.run(Container(docker.inspect(sys.argv[1]), tuple(sys.argv[2:]), "5:6", ())))
"""


def test_the_tests_own_engine_leaves_nothing(programs: Path) -> None:
    with started(programs / "engine") as engine:
        assert engine.store
        assert engine.docker("info", "--format", "{{.DriverStatus}}").stdout == "[[driver-type io.containerd.snapshotter.v1]]\n"
        daemon = int((engine.store / "docker.pid").read_text())
        assert Path(f"/proc/{daemon}").exists()
    assert not engine.store.exists()
    assert not Path(f"/proc/{daemon}").exists()
    assert f"{engine.store}/" not in Path("/proc/mounts").read_text()


@pytest.fixture
def loaded(engine: Engine, programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineImage:
    """An image of busybox, loaded from an archive through the API; no program `docker` is on PATH."""
    busybox = (unpack(("busybox-static/bookworm",), programs / "busybox").parent / "bin" / "busybox").read_bytes()
    for name in ("DOCKER_HOST", "DOCKER_CONFIG"):
        if name in engine.environ:
            monkeypatch.setenv(name, engine.environ[name])
    monkeypatch.setenv("PATH", "/nowhere")
    made = image(tmp_path / "layout", [{"bin/busybox": Member(busybox, 0o755)}], labels={"a": "b"})
    Layout(tmp_path / "layout").write_index(made, "smokehouse-test:one")
    docker.load(Layout(tmp_path / "layout").archive(), "smokehouse-test:one")
    found = docker.inspect("smokehouse-test:one")
    assert (found.labels, found.digest) == ({"a": "b"}, made.digest)
    return found


def sh(image: EngineImage, code: str, *mounts: Mount) -> Container:
    return Container(image, ("/bin/busybox", "sh", "-c", code), "5:6", mounts, environ={"A": "b"}, workdir="/bin")


def test_silent_containers_run_on(loaded: EngineImage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline of the engine's answers is none for what a container writes: importing torch can be silent for long."""
    monkeypatch.setattr(docker, "_QUERY_DEADLINE", 3.0)
    ended = docker.run_to_end(sh(loaded, "/bin/busybox sleep 5; echo said"), deadline=60)
    assert (ended.code, ended.stdout) == (0, "said\n")


def test_images_and_containers_go_through_the_api(engine: Engine, loaded: EngineImage, tmp_path: Path) -> None:
    docker.require()
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o777)
    shared.chmod(0o777)
    code = "B=/bin/busybox; echo out $A $PWD; echo err >&2; $B id -u; $B touch /tmp/x; $B touch /shared/x; $B touch /x; exit 7"
    ended = docker.run_to_end(sh(loaded, code, Mount(shared, "/shared", read_only=False)), deadline=60)
    assert (ended.code, ended.stdout) == (7, "out b /bin\n5\n")
    assert ended.stderr.startswith("err\n")
    assert "Read-only file system" in ended.stderr
    assert (shared / "x").stat().st_uid == 5
    assert engine.docker("ps", "--all", "--quiet", "--filter", "ancestor=smokehouse-test:one").stdout == ""
    # Much output at once arrives whole, from both streams.
    code = "/bin/busybox seq 100000; /bin/busybox seq 100000 >&2"
    ended = docker.run_to_end(sh(loaded, code), deadline=60)
    assert ended.stdout == ended.stderr == "".join(f"{number}\n" for number in range(1, 100001))
    docker.tag("smokehouse-test:one", ["smokehouse-test:two"])
    docker.save("smokehouse-test:two", tmp_path / "saved.tar")
    assert unpack_layout(tmp_path / "saved.tar", tmp_path / "saved").only_image().digest == loaded.digest
    engine.docker("rmi", "smokehouse-test:one", "smokehouse-test:two")
    with pytest.raises(UserError, match="smokehouse-test:two: image not found in the engine"):
        docker.inspect("smokehouse-test:two")


def test_nothing_runs_on_after_a_signal_or_a_deadline(engine: Engine, loaded: EngineImage, root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^smokehouse-test:one timed out after 1 s and was stopped; try again$"):
        docker.run_to_end(sh(loaded, "/bin/busybox sleep 100"), deadline=1)
    code = "trap 'echo told; exit 9' TERM; echo ready; while :; do /bin/busybox sleep 0.1; done"
    command = [sys.executable, "-c", RUN, "smokehouse-test:one", "/bin/busybox", "sh", "-c", code]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": ":".join(sys.path)}, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[0] == "told\n"
    assert process.returncode == 9
    with pytest.raises(UserError, match=r"^bad:one cannot be loaded: "):
        docker.load(iter([hashlib.sha256().digest() * 64]), "bad:one")
    with pytest.raises(UserError, match=r"smokehouse-test:one cannot be run: .*no such file"):
        docker.run_to_end(Container(loaded, ("/none",), "5:6", ()), deadline=60)
    assert engine.docker("ps", "--all", "--quiet", "--filter", "ancestor=smokehouse-test:one").stdout == ""
    engine.docker("rmi", "smokehouse-test:one")
