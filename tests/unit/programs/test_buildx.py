"""A build whose snapshot the engine lost is made again, once; any other failure is reported."""

import json
import sys
from pathlib import Path

import pytest

from smokehouse.errors import UserError
from smokehouse.programs import buildx

LOST = f"ERROR: failed to solve: failed to prepare: parent snapshot sha256:{'a' * 64} does not exist: not found"
ID = f"sha256:{'e' * 64}"
DIGEST = f"sha256:{'d' * 64}"
# A stand-in for docker, which fails as often as it has lines to say.
DOCKER = """\
#!{python}
import json, sys
from pathlib import Path
said = Path(__file__).with_name("said.json")
if sys.argv[1] == "context":
    sys.exit(1)
lines = json.loads(said.read_text())
if lines:
    said.write_text(json.dumps(lines[1:]))
    sys.exit(lines[0])
metadata = sys.argv[sys.argv.index("--metadata-file") + 1]
image = {{"containerimage.digest": "{digest}", "containerimage.config.digest": "{id}"}}
Path(metadata).write_text(json.dumps({{"tiny": image}}))
"""


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "docker"
    program.write_text(DOCKER.format(python=sys.executable, digest=DIGEST, id=ID))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return tmp_path


def bake(folder: Path, *failures: str) -> buildx.Baked:
    """Build with an engine that fails so before it succeeds."""
    (folder / "said.json").write_text(json.dumps(failures))
    return buildx.bake(folder, [Path("bake.json")], "tiny", "type=docker", builder="default", no_cache=False)


def test_a_lost_snapshot_is_built_again(engine: Path) -> None:
    assert bake(engine, LOST) == buildx.Baked(DIGEST, ID)


@pytest.mark.parametrize("failures", [(LOST, LOST), ("ERROR: failed to solve: no space left on device",)])
def test_other_failures_are_reported(engine: Path, failures: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="tiny cannot be built: "):
        bake(engine, *failures)
