"""Docker, which builds and runs images on the engine that DOCKER_HOST specifies."""

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

from smokehouse.console import as_typed
from smokehouse.errors import UserError
from smokehouse.programs.process import Ended, run

_QUERY_DEADLINE = 120.0  # seconds
_BUILD_DEADLINE = 7200.0
_TRANSFER_DEADLINE = 1800.0

# The engine removed what a build was about to continue from; a second build makes it again. Seen once, in one of the 178 tests
# of images on Docker Engine 26.1.5.
_LOST_SNAPSHOT = re.compile(r"parent snapshot sha256:[0-9a-f]{64} does not exist")


@dataclass(frozen=True)
class EngineImage:
    """An image in the engine: the `digest` of its manifest, and the engine's own `id` of it."""

    reference: str
    id: str
    digest: str
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Baked:
    """An image that BuildKit built: the `digest` of its manifest, and its `id`, that of its configuration."""

    digest: str
    id: str


def require(root: Path) -> None:
    """Raise UserError where the engine cannot be reached."""
    ended = _docker(["version", "--format", "{{.Server.Version}}"], _QUERY_DEADLINE, root)
    if ended.code:
        raise UserError(_explain(ended.stderr))


def bake(root: Path, bake_files: Sequence[Path], target: str, output: str, *, builder: str, no_cache: bool) -> Baked:
    """Build `target` of `bake_files`, whose paths are relative to `root`, to `output`.

    `builder` is a buildx builder, or a Docker context, which is another engine. Raises UserError with the error of the
    failed step.
    """
    with tempfile.TemporaryDirectory() as folder:
        metadata = Path(folder, "metadata.json")
        # buildx uses the engine of a context only if docker is started with that context.
        command = ["--context", builder] if _is_context(builder, root) else []
        command += ["buildx", "bake", *(part for path in bake_files for part in ("-f", str(path))), target]
        command += ["--set", f"{target}.output={output}", "--metadata-file", str(metadata)]
        command += ["--provenance=false", "--sbom=false", "--builder", builder]
        command += ["--no-cache"] if no_cache else []
        ended = _docker(command, _BUILD_DEADLINE, root, progress=True)
        if ended.code and _LOST_SNAPSHOT.search(ended.stderr):
            ended = _docker(command, _BUILD_DEADLINE, root, progress=True)
        if ended.code:
            raise UserError(f"{target} cannot be built: {_explain(ended.stderr)}")
        found = json.loads(metadata.read_text())[target]
        return Baked(found["containerimage.digest"], found["containerimage.config.digest"])


def bake_target(name: str) -> str:
    """Return the name of the bake target for the environment `name`: bake files allow no dots in it."""
    return name.replace(".", "_")


def tag(reference: str, names: Sequence[str], root: Path) -> None:
    """Tag the image `reference` with `names`; raises UserError."""
    for name in names:
        ended = _docker(["tag", reference, name], _QUERY_DEADLINE, root)
        if ended.code:
            raise UserError(f"{reference} cannot be tagged as {name}: {_explain(ended.stderr)}")


def inspect(reference: str, root: Path) -> EngineImage:
    """Return the image `reference` in the engine; raises UserError where it is not found."""
    ended = _docker(["image", "inspect", reference], _QUERY_DEADLINE, root)
    if ended.code:
        if "No such image" in ended.stderr or "not found" in ended.stderr:
            raise UserError(f"{reference}: image not found in the engine; build it, or docker pull it first")
        raise UserError(f"{reference}: cannot be inspected: {_explain(ended.stderr)}")
    [found] = json.loads(ended.stdout)
    # The containerd image store identifies images by manifest; the older one has the manifest of pulled and pushed images only.
    digests = [entry.rpartition("@")[2] for entry in found.get("RepoDigests") or []]
    digest = digests[0] if digests else found["Id"]
    return EngineImage(reference, found["Id"], digest, (found.get("Config") or {}).get("Labels") or {})


def load(archive: Path, root: Path) -> None:
    """Load the image in the tar file `archive` into the engine, with its tags; raises UserError."""
    ended = _docker(["load", "--input", str(archive)], _TRANSFER_DEADLINE, root)
    if ended.code:
        raise UserError(f"{archive.name} cannot be loaded: {_explain(ended.stderr)}")


def save(reference: str, archive: Path, root: Path) -> None:
    """Write the image `reference` to the tar file `archive`; raises UserError."""
    inspect(reference, root)
    ended = _docker(["save", "--output", str(archive), reference], _TRANSFER_DEADLINE, root)
    if ended.code:
        raise UserError(f"{reference}: cannot be saved: {_explain(ended.stderr)}")


def exec_container(image: EngineImage, command: Sequence[str], options: Sequence[str], root: Path) -> NoReturn:
    """Replace this process by docker, running `command` in a container of `image` that is removed afterwards.

    Its exit code becomes that of this process, and Ctrl-C and the signals of a supervisor reach the container. Raises
    UserError.
    """
    program = _program()
    sys.stdout.flush()
    os.chdir(root)
    os.execv(program, [program, *_run_arguments(image, command, options)])


def run_container(image: EngineImage, command: Sequence[str], options: Sequence[str], root: Path, *, deadline: float) -> Ended:
    """Run `command` in a container of `image` to its end, and remove the container; raises UserError."""
    return _docker(_run_arguments(image, command, options), deadline, root)


def _explain(stderr: str) -> str:
    """Return the cause that Docker gives in `stderr`, and a remedy, in one line."""
    if re.search(r"Cannot connect to the Docker daemon|error during connect", stderr):
        return "the engine cannot be reached; start it, or set DOCKER_HOST"
    if "unknown command: docker buildx" in stderr or "'buildx' is not a docker command" in stderr:
        return "docker buildx not found; install docker-buildx, or Docker 24 or later"
    if re.search(r"no space left on device", stderr, re.IGNORECASE):
        return "the engine's disk is full; free disk space with docker builder prune"
    if missing := re.search(r'exec: "/bin/(sh)"|/opt/env/bin/(python): not found', stderr):
        what = "shell" if missing[1] else "glibc"
        return f"the base image has no {what}; use one that has a shell, tar and glibc, such as Debian"
    if own := re.findall(r"smokehouse: (.*)", stderr):  # an error of docker/steps
        return str(own[-1]).strip()
    # BuildKit repeats the output of the failed step, each line after a time in seconds.
    if step := re.findall(r"^------\n > \[.*?:\n(.*?)^------$", stderr, re.MULTILINE | re.DOTALL):
        lines = [re.sub(r"^[\d.]+ ", "", line).strip() for line in str(step[-1]).splitlines()]
        if any(lines):
            return f"a build step failed: {next(line for line in reversed(lines) if line)}"
    errors = re.findall(r"^(?:ERROR|error): (.*)", stderr, re.MULTILINE) or stderr.strip().splitlines()[-1:]
    return " ".join(errors[-1].split()) if errors else "docker gave no reason; run it again"


def _run_arguments(image: EngineImage, command: Sequence[str], options: Sequence[str]) -> list[str]:
    return ["run", "--rm", *options, image.id, *command]


def _is_context(name: str, root: Path) -> bool:
    return not _docker(["context", "inspect", name], _QUERY_DEADLINE, root).code


def _program() -> str:
    found = shutil.which("docker")
    if not found:
        without = as_typed("install")
        raise UserError(f"docker not found; install Docker Engine 24 or later, or use {without}, which needs no engine")
    return found


def _docker(arguments: Sequence[str], deadline: float, root: Path, progress: bool = False) -> Ended:
    # buildx would otherwise add its default provenance and the git state of the checkout.
    environ = {**os.environ, "BUILDX_NO_DEFAULT_ATTESTATIONS": "1", "BUILDX_GIT_INFO": "0"}
    return run([_program(), *arguments], deadline=deadline, environ=environ, cwd=root, progress=progress)
