"""The smoke test of an image: proven in a function, or as this process, in the same container."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from smokehouse import runs
from smokehouse.checkout import Checkout
from smokehouse.errors import UserError

from ...integration import reports

DIGEST = f"sha256:{'d' * 64}"
LOCK = "a" * 64
DOCKER = """\
#!{python}
import json, sys
from pathlib import Path
here = Path(__file__).parent
with (here / "calls").open("a") as calls:
    print(json.dumps(sys.argv[1:]), file=calls)
if sys.argv[1] == "image":
    labels = json.loads((here / "labels.json").read_text())
    print(json.dumps([{{"Id": "sha256:1", "RepoDigests": ["tiny@{digest}"], "Config": {{"Labels": labels}}}}]))
    sys.exit()
[report] = [part.split(",")[1].removeprefix("source=") for part in sys.argv if part.endswith("target=/report")]
made = here / "report.json"
if made.exists():
    Path(report, "report.json").write_text(made.read_text())
    sys.exit()
print("smokehouse: rank 1 died", file=sys.stderr)
sys.exit(1)
"""


class Engine:
    """A stand-in for docker, which has one image and writes its report."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        program = folder / "docker"
        program.write_text(DOCKER.format(python=sys.executable, digest=DIGEST))
        program.chmod(0o755)
        self.label("tiny")

    def label(self, environment: str) -> None:
        (self.folder / "labels.json").write_text(json.dumps({"io.smokehouse.environment": environment}))

    def report(self, **changes: Any) -> None:
        (self.folder / "report.json").write_text(json.dumps(reports.report(DIGEST, LOCK, **changes)))

    def runs(self) -> list[list[str]]:
        """The arguments of each docker run."""
        calls = [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]
        return [call for call in calls if call[0] == "run"]


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setenv("PATH", str(tmp_path / "engine"), prepend=":")
    return Engine(tmp_path / "engine")


def test_prove_returns_the_report(root: Path, engine: Engine, tmp_path: Path) -> None:
    engine.report()
    report = runs.prove(Checkout(root), "tiny:tag", tmp_path / "smoke")
    assert report.fields == reports.report(DIGEST, LOCK)
    assert json.loads((tmp_path / "smoke" / "report.json").read_text()) == report.fields
    report.refuse_other_image(DIGEST, LOCK)
    [arguments] = engine.runs()
    assert arguments[-5:] == ["smoke", "--report", "/report", "--image", DIGEST]
    assert {"--rm", "--read-only", "--network"} <= {*arguments}
    assert arguments[arguments.index("--network") + 1] == "none"
    user, group = arguments[arguments.index("--user") + 1].split(":")
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


def test_the_command_line_becomes_the_same_container(root: Path, engine: Engine, tmp_path: Path) -> None:
    """One process, so that signals reach it, with the user's options and the checkpoint that they specify."""
    engine.report()
    runs.prove(Checkout(root), "tiny:tag", tmp_path / "smoke")
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    command = [sys.executable, "-m", "smokehouse", "smoke", "--image", "tiny:tag", "--report", str(tmp_path / "smoke")]
    (tmp_path / "smoke" / ".lock").touch()
    environ = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    process = subprocess.Popen([*command, "--checkpoint", str(checkpoint)], env=environ, cwd=root)
    assert process.wait(timeout=60) == 0
    proven, executed = engine.runs()
    mount = ["--mount", f"type=bind,source={checkpoint},target={checkpoint},readonly"]
    image = proven.index("sha256:1")
    assert executed == [*proven[:image], *mount, *proven[image:], "--checkpoint", str(checkpoint)]


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
    [arguments] = engine.runs()
    image = arguments.index("sha256:1")
    command = ["-m", "smoke_tests", "--here=qwen2_vl", "--report", "/report", "--image", DIGEST, "--zero", "3"]
    assert arguments[image + 1 :] == command
    limits = arguments[:image]
    assert limits[limits.index("--entrypoint") + 1] == python
    place = limits[limits.index("--workdir") + 1]
    for name, source in (("smoke_tests", root / "smoke_tests"), ("smokehouse_loader", root / "src" / "smokehouse_loader")):
        assert f"type=bind,source={source},target={place}/{name},readonly" in limits
        assert (source / "__init__.py").is_file()
    assert {"--read-only", "--env=HOME=/tmp", "--env=PYTHONDONTWRITEBYTECODE=1"} <= {*limits}
    assert limits[limits.index("--network") + 1] == "none"


def test_what_the_smoke_test_refuses_starts_no_container(root: Path, engine: Engine, tmp_path: Path) -> None:
    for options, expected in (
        (("--nonsense", "1"), "--nonsense"),
        (("--zero", "9"), "'9' is an invalid list of ZeRO stages"),
        (("llava",), "--here llava: expected one of "),
        (("--python", "/p", "--prefix", "/q"), "expected --python or --prefix, found both"),
    ):
        ended = here(root, engine, tmp_path / "report", *options)
        assert (ended.returncode, expected in ended.stderr) == (2, True), ended.stderr
    assert all(call[0] == "image" for call in map(json.loads, (engine.folder / "calls").read_text().splitlines()))
