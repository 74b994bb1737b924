"""Begin to build source distributions with their locked build requirements, as each installation of a lock will.

Reading an sdist does not tell whether its build works: setup.py can import anything. uv does not tell either, for an sdist
with static metadata, which it never builds while it resolves. So its backend is asked for its metadata, in an environment of
its own that has what pyproject.toml lists, at the locked versions, and nothing else. That is where setup.py runs; what only a
later step of the build needs is not detected.
"""

import json
import platform
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from packaging.requirements import Requirement

from smokehouse.console import status
from smokehouse.environments.inputs import Inputs
from smokehouse.errors import UserError
from smokehouse.locks.solvers import sdist
from smokehouse.locks.solvers.pip import Resolved
from smokehouse.programs import uv
from smokehouse.storage import files

# The hooks of PEP 517, in the order of a frontend; the second only where the first requests nothing more.
_HOOKS = """\
import functools, importlib, json, sys
module, _, name = sys.argv[1].partition(":")
given, result, folder, sys.path[:0] = json.loads(sys.argv[2]), sys.argv[3], sys.argv[4], json.loads(sys.argv[5])
backend = functools.reduce(getattr, filter(None, name.split(".")), importlib.import_module(module))
requests = getattr(backend, "get_requires_for_build_wheel", lambda settings: [])({})
with open(result, "w") as file:
    json.dump(requests, file)
if set(requests) <= {*given}:
    getattr(backend, "prepare_metadata_for_build_wheel", lambda folder, settings: None)(folder, {})
"""


def further_requirements(
    inputs: Inputs, packages: Sequence[Resolved], builds: Sequence[Resolved], known: Mapping[str, Sequence[Requirement]]
) -> dict[str, list[Requirement]]:
    """Return by name what the builds of source distributions request beyond pyproject.toml and what is `known`.

    `packages` are those of a lock, `builds` what builds the source distributions among them. Raises UnsolvableError for one
    that cannot be built, UserError where its file or its build requirements cannot be had.
    """
    found = {}
    for package in (*packages, *builds):
        if package.sdist and (more := _requests(inputs, package, builds, known.get(package.name, ()))):
            found[package.name] = more
    return found


def _requests(inputs: Inputs, package: Resolved, builds: Sequence[Resolved], known: Sequence[Requirement]) -> list[Requirement]:
    """Return what the build of one source distribution requests, from the cache where the same build was tried before."""
    artefact = package.files[0]
    tried = [artefact.sha256, inputs.python, *(str(text) for text in known), *(build.files[0].sha256 for build in builds)]
    cached = files.cache() / "trial-builds" / f"{files.sha256(json.dumps(tried))}.json"
    try:
        requests = json.loads(cached.read_text())
    except (OSError, ValueError):
        if problem := _impossible(inputs):
            status(f"{package.name}=={package.version}: not built on trial: {problem}")
            return []
        requests = _try(inputs, package, builds, known)
        with suppress(OSError):  # without a cache, the next call tries again
            files.write(cached, json.dumps(requests))
    parsed = [sdist.parse_build_requirement(text, artefact.name) for text in requests]
    return [requirement for requirement in parsed if requirement not in known]


def _impossible(inputs: Inputs) -> str:
    """Return why this machine cannot build for the environment, "" where it can."""
    machine = str(inputs.platform).partition("-")[0]
    if platform.machine() != machine:
        return f"it is for {machine}, this machine is {platform.machine()}"
    if uv.find_python(inputs.python) is None:
        return f"Python {inputs.python} not found"
    return ""


def _try(inputs: Inputs, package: Resolved, builds: Sequence[Resolved], known: Sequence[Requirement]) -> list[str]:
    """Return what the backend requests; raises UnsolvableError where it fails."""
    pin = f"{package.name}=={package.version}"
    artefact = package.files[0]
    status(f"building {pin} on trial")
    data = sdist.download(artefact)
    system = sdist.build_system(data, artefact.name)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        (folder / "source").mkdir()
        source = sdist.unpack(data, artefact.name, folder / "source")
        backend_path = [str((source / part).resolve()) for part in system.backend_path]
        if not all(Path(part).is_relative_to(source) for part in backend_path):
            raise UserError(f"{artefact.name}: build-system.backend-path: expected folders in it; pin another version")
        (folder / "pins.txt").write_text("".join(_pin(build) for build in builds))
        environment = folder / "environment"
        uv.create_environment(environment, inputs.python)
        uv.install_for_build(environment, [*system.requires, *(str(text) for text in known)], folder / "pins.txt")
        (folder / "metadata").mkdir()
        result = folder / "requests.json"
        given = json.dumps([*system.requires, *(str(text) for text in known)])
        arguments = [system.backend, given, str(result), str(folder / "metadata"), json.dumps(backend_path)]
        ended = uv.run_build_step(environment, ["-c", _HOOKS, *arguments], cwd=source)
        if ended.code:
            output = (ended.stderr.strip() or ended.stdout.strip()).splitlines()
            raise sdist.unbuildable(pin, output[-1] if output else "")
        return _read_requests(result, artefact.name)


def _read_requests(result: Path, name: str) -> list[str]:
    """Return the requirements that a backend, which can be hostile, has written."""
    with result.open() as file:
        text = file.read(1 << 20)
    try:
        requests = json.loads(text)
    except ValueError:
        requests = None
    if not isinstance(requests, list) or not all(isinstance(request, str) for request in requests):
        raise UserError(f"{name}: expected a list of text from its build backend, found other data; pin another version")
    return requests


def _pin(build: Resolved) -> str:
    return f"{build.name}=={build.version} --hash=sha256:{build.files[0].sha256}\n"
