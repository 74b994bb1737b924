"""The engine, through its API: what it answers, errors in one line, and containers that end with this process."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from smokehouse.errors import UserError
from smokehouse.programs import docker
from smokehouse.programs.docker import Container, EngineImage, Mount
from smokehouse.programs.process import Ended

from .. import engine_api
from ..engine_api import Engine, Write

IMAGE = EngineImage("tiny:tag", "sha256:1", f"sha256:{'d' * 64}", {})


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    with engine_api.started() as engine:
        monkeypatch.setenv("DOCKER_HOST", engine.host)
        yield engine


def container(**changes: object) -> Container:
    return Container(IMAGE, ("smoke", "--all"), "5:6", (Mount(Path("/here"), "/there"),), **changes)  # type: ignore[arg-type]


def test_a_container_is_restricted_and_its_output_kept_apart(engine: Engine) -> None:
    def program(engine: Engine, write: Write) -> int:
        for stream, part in ((1, b"one "), (2, b"two\n"), (1, "drei \u20ac\n".encode())):
            write(stream, part)
        return 3

    engine.program = program
    assert docker.run_to_end(container(gpus=True, entrypoint="/p", workdir="/w"), deadline=60) == Ended(
        3, "one drei €\n", "two\n"
    )
    [made] = engine.created
    assert (made["Image"], made["Cmd"], made["User"]) == ("sha256:1", ["smoke", "--all"], "5:6")
    assert (made["Entrypoint"], made["WorkingDir"]) == (["/p"], "/w")
    host = made["HostConfig"]
    assert (host["AutoRemove"], host["ReadonlyRootfs"], host["NetworkMode"], host["ShmSize"]) == (True, True, "none", 2 << 30)
    assert host["Tmpfs"] == {"/tmp": "rw,exec,mode=1777"}
    assert host["Mounts"] == [{"Target": "/there", "Source": "/here", "Type": "bind", "ReadOnly": True}]
    [gpus] = host["DeviceRequests"]
    assert (gpus["Count"], gpus["Capabilities"]) == (-1, [["gpu"]])
    assert engine.removed == []  # it removed itself


def test_a_container_that_hangs_is_removed(engine: Engine) -> None:
    def program(engine: Engine, write: Write) -> int:
        engine.ended.wait(60)
        return 137

    engine.program = program
    with pytest.raises(UserError, match=r"^tiny:tag timed out after 0 s and was stopped; try again$"):
        docker.run_to_end(container(), deadline=0.2)
    assert engine.removed == [True]


def test_signals_reach_the_container_and_its_exit_code_is_ours(engine: Engine, root: Path) -> None:
    def program(engine: Engine, write: Write) -> int:
        write(1, b"ready\n")
        found = engine.signals.get(timeout=60)
        write(2, f"got {found}\n".encode())
        return 128 + int(found)

    engine.program = program
    code = (
        "import sys; from smokehouse.programs import docker as d; from smokehouse.programs.docker import *; "
        "sys.exit(d.run(Container(EngineImage('x', 'y', 'z', {}), (), '1:1', ())))"
    )
    environ = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=root, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60) == ("", "got 15\n")
    assert process.returncode == 143


def test_images_are_inspected_saved_loaded_and_tagged(engine: Engine, tmp_path: Path) -> None:
    labels = {"io.smokehouse.environment": "tiny"}
    engine.images["127.0.0.1:5/a/tiny@sha256:0"] = {
        "Id": "sha256:1",
        "RepoDigests": ["x@sha256:2"],
        "Config": {"Labels": labels},
    }
    engine.images["bare"] = {"Id": "sha256:3", "RepoDigests": None, "Config": None}
    found = docker.inspect("127.0.0.1:5/a/tiny@sha256:0")
    assert (found.id, found.digest, found.labels) == ("sha256:1", "sha256:2", labels)
    assert (docker.inspect("bare").digest, docker.inspect("bare").labels) == ("sha256:3", {})
    docker.save("127.0.0.1:5/a/tiny@sha256:0", tmp_path / "saved")
    assert (tmp_path / "saved").read_text() == "127.0.0.1:5/a/tiny@sha256:0"
    with (tmp_path / "saved").open("rb") as file:
        docker.load(file, "tiny:one")
    docker.load(iter([b"in ", b"parts"]), "tiny:one")
    assert engine.loaded == [b"127.0.0.1:5/a/tiny@sha256:0", b"in parts"]
    docker.tag("bare", ["127.0.0.1:5/a/tiny:one", "two:three"])
    assert engine.tags == [("bare", "127.0.0.1:5/a/tiny", "one"), ("bare", "two", "three")]


def test_errors_of_the_engine_are_one_line_with_a_remedy(engine: Engine, tmp_path: Path) -> None:
    for error, expected in (
        ("write /x: no space left on device", "the engine's disk is full; free disk space with docker builder prune"),
        ("archive/tar:\ninvalid header", "archive/tar: invalid header"),
    ):
        engine.load_error = error
        with pytest.raises(UserError, match=rf"^tiny:one cannot be loaded: {expected}$"):
            docker.load(iter([b"x"]), "tiny:one")
    with pytest.raises(UserError, match=r"^none: image not found in the engine; build it, or docker pull it first$"):
        docker.save("none", tmp_path / "saved")


def test_an_engine_that_cannot_be_reached_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for host in (f"unix://{tmp_path}/none.sock", "nonsense://x", "tcp://127.0.0.1:1"):
        monkeypatch.setenv("DOCKER_HOST", host)
        with pytest.raises(UserError, match="the engine cannot be reached; start it, or set DOCKER_HOST"):
            docker.require()


def test_the_current_context_is_used_and_must_exist(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "contexts" / "meta" / hashlib.sha256(b"other").hexdigest() / "meta.json"
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps({"Name": "other", "Metadata": {}, "Endpoints": {"docker": {"Host": engine.host}}}))
    (tmp_path / "config.json").write_text('{"currentContext": "other"}')
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.delenv("DOCKER_HOST")
    docker.require()
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setenv("DOCKER_CONTEXT", "other")
    docker.require()
    monkeypatch.setenv("DOCKER_CONTEXT", "none")
    with pytest.raises(UserError, match=r"^DOCKER_CONTEXT: none: expected a context in .*, found none; create one, or set"):
        docker.require()
