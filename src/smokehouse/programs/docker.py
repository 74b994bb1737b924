"""Docker, which builds and runs images; DOCKER_HOST says where."""

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from smokehouse.errors import UserError
from smokehouse.programs.process import Ended, run

_ASKING = 120.0  # seconds
_BUILDING = 7200.0
_SAVING = 1800.0
_HERE = "start it, or set DOCKER_HOST"


@dataclass(frozen=True)
class EngineImage:
    """An image that the engine has. `digest` is that of its manifest, `id` what the engine calls it."""

    reference: str
    id: str
    digest: str
    labels: Mapping[str, str]


def bake(root: Path, bake_files: Sequence[Path], target: str, output: str, *, builder: str | None, no_cache: bool) -> str:
    """Build `target` of the bake files `given`, whose paths are from `root`, to `output`; return the image's digest.

    `builder` is one of buildx, or a context of docker, which is another engine. Raises UserError with what the failing
    step said.
    """
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder, "metadata.json")
        # buildx takes the engine of a context only where docker as a whole does.
        command = ["--context", builder] if builder and _is_context(builder, root) else []
        command += ["buildx", "bake", *(part for path in bake_files for part in ("-f", str(path))), target]
        command += ["--set", f"{target}.output={output}", "--metadata-file", str(said), "--provenance=false", "--sbom=false"]
        command += ["--builder", builder] if builder else []
        command += ["--no-cache"] if no_cache else []
        ended = _docker(command, _BUILDING, root, progress=True)
        if ended.code:
            raise UserError(f"{target} cannot be built: {explain(ended.stderr)}")
        return str(json.loads(said.read_text())[target]["containerimage.digest"])


def bake_target(name: str) -> str:
    """Return what bake calls the target of the environment `name`, whose dots it takes on the command line only."""
    return name.replace(".", "_")


def tag(reference: str, names: Sequence[str], root: Path) -> None:
    """Give the image `reference` further names; raises UserError."""
    for name in names:
        ended = _docker(["tag", reference, name], _ASKING, root)
        if ended.code:
            raise UserError(f"{reference} cannot be called {name}: {explain(ended.stderr)}")


def inspect(reference: str, root: Path) -> EngineImage:
    """Return the image that the engine has as `reference`; raises UserError where it has none."""
    ended = _docker(["image", "inspect", reference], _ASKING, root)
    if ended.code:
        absent = "No such image" in ended.stderr or "not found" in ended.stderr
        cure = "build or docker pull it first" if absent else explain(ended.stderr)
        raise UserError(f"{reference}: {'the engine has no such image' if absent else 'cannot be looked at'}; {cure}")
    [found] = json.loads(ended.stdout)
    # Only the containerd store knows an image by its manifest; the older one knows that of pulled and pushed images.
    named = [entry.rpartition("@")[2] for entry in found.get("RepoDigests") or []]
    digest = named[0] if named else found["Id"]
    return EngineImage(reference, found["Id"], digest, (found.get("Config") or {}).get("Labels") or {})


def load(archive: Path, root: Path) -> None:
    """Give the engine the image in the tar file `archive`, with the names that it has there; raises UserError."""
    ended = _docker(["load", "--input", str(archive)], _SAVING, root)
    if ended.code:
        raise UserError(f"{archive.name} cannot be loaded: {explain(ended.stderr)}")


def save(reference: str, archive: Path, root: Path) -> None:
    """Write the image `reference` to the tar file `archive`; raises UserError."""
    inspect(reference, root)
    ended = _docker(["save", "--output", str(archive), reference], _SAVING, root)
    if ended.code:
        raise UserError(f"{reference}: cannot be saved; {explain(ended.stderr)}")


def exec_container(image: EngineImage, command: Sequence[str], options: Sequence[str], root: Path) -> NoReturn:
    """Become a container of `image` that runs `command` and goes afterwards; its exit code is then that of this process.

    An exec leaves one process, so that Ctrl-C and a supervisor's signals reach the container. Raises UserError.
    """
    program = _program()
    sys.stdout.flush()
    os.chdir(root)
    os.execv(program, [program, "run", "--rm", *options, image.id, *command])


def explain(stderr: str) -> str:
    """Return why Docker failed, and what to do, in one line."""
    if re.search(r"Cannot connect to the Docker daemon|error during connect", stderr):
        return f"the engine does not answer; {_HERE}"
    if "unknown command: docker buildx" in stderr or "'buildx' is not a docker command" in stderr:
        return "docker has no buildx; install docker-buildx, or Docker 24 or later"
    if re.search(r"no space left on device", stderr, re.IGNORECASE):
        return "the engine's disk is full; docker builder prune makes room"
    if lacking := re.search(r'exec: "/bin/(sh)"|/opt/env/bin/(python): not found', stderr):
        lacks = "shell" if lacking[1] else "glibc"
        return f"the base has no {lacks}; name one that has a shell, tar and glibc, such as Debian"
    if ours := re.findall(r"smokehouse: (.*)", stderr):
        return str(ours[-1]).strip()
    # BuildKit repeats the output of the step that failed, with the seconds before each line.
    if step := re.findall(r"^------\n > \[.*?:\n(.*?)^------$", stderr, re.MULTILINE | re.DOTALL):
        lines = [re.sub(r"^[\d.]+ ", "", line).strip() for line in str(step[-1]).splitlines()]
        if any(lines):
            return f"a step says: {next(line for line in reversed(lines) if line)}"
    said = re.findall(r"^(?:ERROR|error): (.*)", stderr, re.MULTILINE) or stderr.strip().splitlines()[-1:]
    return " ".join(said[-1].split()) if said else "docker gave no reason; run it again"


def _is_context(name: str, root: Path) -> bool:
    return not _docker(["context", "inspect", name], _ASKING, root).code


def _program() -> str:
    found = shutil.which("docker")
    if not found:
        raise UserError("docker is not here; install Docker Engine 24 or later, or use nox -s install, which needs none")
    return found


def _docker(arguments: Sequence[str], deadline: float, root: Path, progress: bool = False) -> Ended:
    # Buildx would send the default provenance and the git state of the checkout along.
    environ = {**os.environ, "BUILDX_NO_DEFAULT_ATTESTATIONS": "1", "BUILDX_GIT_INFO": "0"}
    return run([_program(), *arguments], deadline=deadline, environ=environ, cwd=root, progress=progress)
