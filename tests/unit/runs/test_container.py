"""The smoke test of an image: proven in a function, or from the command line, in the same container."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smokehouse import runs
from smokehouse.checkout import Checkout
from smokehouse.errors import UserError

from ...integration import reports
from .. import engine_api

DIGEST = f"sha256:{'d' * 64}"
LOCK = "a" * 64
ENVIRONMENT = "io.smokehouse.environment"


class Engine:
    """A stand-in for an engine, which has the image `name`, and whose containers write its report."""

    def __init__(self, api: engine_api.Engine) -> None:
        self.api, self._report = api, ""
        api.program = self._run
        self.label("tiny")

    def label(self, environment: str) -> None:
        image = {"Id": "sha256:1", "RepoDigests": [f"tiny@{DIGEST}"], "Config": {"Labels": {ENVIRONMENT: environment}}}
        self.api.images = {"tiny:tag": image, "theirs": image}

    def report(self, **changes: Any) -> None:
        self._report = json.dumps(reports.report(DIGEST, LOCK, **changes))

    def runs(self) -> list[dict[str, Any]]:
        """Each container that was requested."""
        return self.api.created

    def _run(self, api: engine_api.Engine, write: engine_api.Write) -> int:
        if not self._report:
            write(2, b"smokehouse: rank 1 died\n")
            return 1
        [place] = [mount["Source"] for mount in api.created[-1]["HostConfig"]["Mounts"] if mount["Target"] == "/report"]
        Path(place, "report.json").write_text(self._report)
        write(1, b"PASSED\n")
        return 0


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    with engine_api.started() as api:
        monkeypatch.setenv("DOCKER_HOST", api.host)
        yield Engine(api)


def test_prove_returns_the_report(root: Path, engine: Engine, tmp_path: Path) -> None:
    engine.report()
    report = runs.prove(Checkout(root), "tiny:tag", tmp_path / "smoke")
    assert report.fields == reports.report(DIGEST, LOCK)
    assert json.loads((tmp_path / "smoke" / "report.json").read_text()) == report.fields
    report.refuse_other_image(DIGEST, LOCK)
    [made] = engine.runs()
    assert made["Cmd"] == ["smoke", "--report", "/report", "--image", DIGEST]
    host = made["HostConfig"]
    assert (host["AutoRemove"], host["ReadonlyRootfs"], host["NetworkMode"]) == (True, True, "none")
    user, group = made["User"].split(":")
    assert "0" not in (user, group)
    assert (tmp_path / "smoke").stat().st_uid == int(user)


def test_a_failed_smoke_test_is_named(root: Path, engine: Engine, tmp_path: Path) -> None:
    folder = tmp_path / "smoke"
    with pytest.raises(UserError) as raised:
        runs.prove(Checkout(root), "tiny:tag", folder)
    assert str(raised.value) == f"tiny:tag: smoke test failed (smokehouse: rank 1 died); see {folder}"


def test_a_report_that_proves_nothing_is_refused(root: Path, engine: Engine, tmp_path: Path) -> None:
    engine.report(environment="other")
    with pytest.raises(UserError, match=r"expected a report of environment 'tiny', found one of 'other'; run smokehouse smoke"):
        runs.prove(Checkout(root), "tiny:tag", tmp_path / "smoke")


@pytest.mark.parametrize("name", ["", "../evil", "Tiny"])
def test_an_image_of_somebody_else_is_not_started(root: Path, engine: Engine, tmp_path: Path, name: str) -> None:
    engine.label(name)
    with pytest.raises(UserError, match="tiny:tag: not an image of Smokehouse, by its labels; build one: smokehouse build"):
        runs.prove(Checkout(root), "tiny:tag", tmp_path / "smoke")
    assert engine.runs() == []


def test_the_command_line_runs_the_same_container(root: Path, engine: Engine, tmp_path: Path) -> None:
    """With the user's options and the checkpoint that they specify; its exit code and output are the command's."""
    engine.report()
    runs.prove(Checkout(root), "tiny:tag", tmp_path / "smoke")
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    command = [sys.executable, "-m", "smokehouse", "smoke", "--image", "tiny:tag", "--report", str(tmp_path / "smoke")]
    (tmp_path / "smoke" / ".lock").touch()
    environ = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    ended = subprocess.run([*command, "--checkpoint", str(checkpoint)], env=environ, cwd=root, capture_output=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, b"PASSED\n"), ended.stderr
    proven, executed = engine.runs()
    proven["HostConfig"]["Mounts"].append(
        {"Target": str(checkpoint), "Source": str(checkpoint), "Type": "bind", "ReadOnly": True}
    )
    proven["Cmd"] += ["--checkpoint", str(checkpoint)]
    assert executed == proven


def test_a_folder_with_other_files_is_refused(root: Path, engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "thesis").touch()
    with pytest.raises(UserError, match="expected an empty folder or one of reports, found other files; give --report"):
        runs.prove(Checkout(root), "tiny:tag", tmp_path)


def here(root: Path, engine: Engine, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run `smoke --here --image` with the stand-in for docker."""
    command = [sys.executable, "-m", "smokehouse", "smoke", "--here", "--image", "theirs", "--report", str(folder), *options]
    environ = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    return subprocess.run(command, env=environ, cwd=root, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("options", "python"),
    [
        ((), "python3"),
        (("--python", "/opt/conda/bin/python"), "/opt/conda/bin/python"),
        (("--prefix=/env",), "/env/bin/python"),
    ],
)
def test_an_image_of_somebody_else_is_proven_without_a_lock(
    root: Path, engine: Engine, tmp_path: Path, options: tuple[str, ...], python: str
) -> None:
    """With the smoke test and the loader of this checkout, which the image does not have, and a home that it cannot have."""
    engine.label("")
    engine.report()
    ended = here(root, engine, tmp_path / "report", *options, "--zero", "3", "qwen2_vl")
    assert ended.returncode == 0, ended.stderr
    [made] = engine.runs()
    assert made["Cmd"] == ["-m", "smoke_tests", "--here=qwen2_vl", "--report", "/report", "--image", DIGEST, "--zero", "3"]
    assert made["Entrypoint"] == [python]
    place, mounts = made["WorkingDir"], made["HostConfig"]["Mounts"]
    for name, source in (("smoke_tests", root / "smoke_tests"), ("smokehouse_loader", root / "src" / "smokehouse_loader")):
        assert {"Target": f"{place}/{name}", "Source": str(source), "Type": "bind", "ReadOnly": True} in mounts
        assert (source / "__init__.py").is_file()
    assert {"HOME=/tmp", "PYTHONDONTWRITEBYTECODE=1"} <= {*made["Env"]}
    assert (made["HostConfig"]["ReadonlyRootfs"], made["HostConfig"]["NetworkMode"]) == (True, "none")


def test_what_the_smoke_test_refuses_starts_no_container(root: Path, engine: Engine, tmp_path: Path) -> None:
    for options, expected in (
        (("--nonsense", "1"), "--nonsense"),
        (("--zero", "9"), "'9' is an invalid list of ZeRO stages"),
        (("llava",), "--here llava: expected one of "),
        (("--python", "/p", "--prefix", "/q"), "expected --python or --prefix, found both"),
    ):
        ended = here(root, engine, tmp_path / "report", *options)
        assert (ended.returncode, expected in ended.stderr) == (2, True), ended.stderr
    assert engine.runs() == []
