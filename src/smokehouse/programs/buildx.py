"""Buildx, which builds images with BuildKit; it is a plugin of the command line of Docker."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from smokehouse.console import as_typed
from smokehouse.errors import UserError
from smokehouse.programs.process import Ended, run

_QUERY_DEADLINE = 120.0  # seconds
_BUILD_DEADLINE = 7200.0

# The engine removed what a build was about to continue from; a second build makes it again. Seen once, in one of the 178 tests
# of images on Docker Engine 26.1.5.
_LOST_SNAPSHOT = re.compile(r"parent snapshot sha256:[0-9a-f]{64} does not exist")


@dataclass(frozen=True)
class Baked:
    """An image that BuildKit built: the `digest` of its manifest, and its `id`, that of its configuration."""

    digest: str
    id: str


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
