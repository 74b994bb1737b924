"""uv, which resolves and installs PyPI packages."""

import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from smokehouse.console import as_typed, heartbeat
from smokehouse.errors import UserError
from smokehouse.programs.process import Ended, run

RESOLVE_DEADLINE = 900.0  # seconds
_INSTALL_DEADLINE = 3600.0
_BUILD_STEP_DEADLINE = 300.0

# The variables of uv that choose where packages come from and how they are transferred. Every other one could change what
# is resolved or verified, and is removed.
_ALLOWED = (
    "UV_CACHE_DIR UV_CONCURRENT_ UV_CONFIG_FILE UV_DEFAULT_INDEX UV_EXTRA_INDEX_URL UV_FIND_LINKS UV_HTTP_ UV_INDEX "
    "UV_INSECURE_HOST UV_KEYRING_PROVIDER UV_LINK_MODE UV_NATIVE_TLS UV_NO_CACHE UV_NO_INDEX UV_OFFLINE UV_PYTHON_ "
    "UV_REQUEST_TIMEOUT UV_SYSTEM_CERTS"
)

# DS_BUILD_OPS selects the ops that deepspeed compiles; a lock must build to the same files everywhere. DS_ACCELERATOR, which
# people set on machines without a GPU, is removed: with it deepspeed's setup.py imports torch, which a build does not have.
_BUILD_VARIABLES = {"DS_BUILD_OPS": "0", "SOURCE_DATE_EPOCH": "315532800"}

# With version and platform given, the interpreter does not matter; searching for one would take most of uv's time.
ANY_PYTHON = ("--python", sys.executable)

# The variables by which uv wraps or colours what it says, which is read here.
_OF_OUTPUT = ("COLUMNS", "FORCE_COLOR", "CLICOLOR_FORCE")


@dataclass(frozen=True)
class Offline:
    """The only sources of an installation without a network: a folder of `wheels`, and an empty `cache`."""

    wheels: Path
    cache: Path


def list_files(pins: Sequence[str], python: str, platform: str) -> str:
    """Return a pylock.toml of every file in the index for `pins`, such as einops==0.8.1; raises UserError."""
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder, "requirements.in")
        requirements.write_text("".join(f"{pin}\n" for pin in pins))
        command = ["pip", "compile", str(requirements), "--python-version", python, *ANY_PYTHON]
        command += ["--python-platform", platform, "--no-deps", "--prerelease", "allow", "--no-header", "--quiet"]
        command += ["--format", "pylock.toml"]
        # uv writes the paths of local files relative to its working directory.
        return run_uv(command, "the files of the lock cannot be located in the index", RESOLVE_DEADLINE, cwd=Path("/"))


def index_urls() -> list[str]:
    """Return the URLs of the indexes in the environment variables of uv, with user and password."""
    urls = []
    for variable in ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL"):
        for entry in os.environ.get(variable, "").split():
            named = re.fullmatch(r"([\w.-]+)=(.*)", entry)
            url = urlsplit(named[2] if named else entry)
            variables = f"UV_INDEX_{re.sub(r'[^A-Z0-9]', '_', named[1].upper())}_" if named else ""
            if variables and (user := os.environ.get(f"{variables}USERNAME")) and not url.username:
                password = os.environ.get(f"{variables}PASSWORD", "")
                url = url._replace(netloc=f"{quote(user, safe='')}:{quote(password, safe='')}@{url.netloc}")
            urls.append(url.geturl())
    return urls


def find_python(version: str) -> Path | None:
    """Return the interpreter that an environment of Python `version` (such as 3.11) would use, None where uv finds none."""
    try:
        return Path(run_uv(["python", "find", "--no-project", version], "", RESOLVE_DEADLINE, cwd=Path("/")).strip())
    except UserError:
        return None


def create_environment(folder: Path, python: str, interpreter: str | None = None) -> None:
    """Create an empty virtual environment of `python` (such as 3.11) in `folder`; raises UserError.

    `interpreter` is the absolute path, name or version of the Python to use; it must be of that version.
    """
    chosen = interpreter or python
    command = ["venv", "--quiet", "--no-project", "--allow-existing", "--python", chosen, str(folder.absolute())]
    # In any other working directory, uv's messages have relative paths.
    ended = _run(command, RESOLVE_DEADLINE, cwd=Path("/"))
    if ended.code and re.search(r"Failed to (download|fetch)|error sending request|interpreter", ended.stderr):
        raise UserError(_without_python(chosen, ended.stderr))
    if ended.code:
        raise UserError(f"{folder}: no environment of Python {chosen} can be created: {_explain(ended.stderr)}")
    if not (folder / "lib" / f"python{python}").is_dir():
        found = ", ".join(path.name for path in (folder / "lib").glob("python*"))
        raise UserError(f"--python {chosen}: expected Python {python}, found {found}; specify one of the version of the lock")


def _without_python(version: str, stderr: str) -> str:
    """Return that Python `version` is missing: what is installed instead, why uv, which said `stderr`, did not get it."""
    listed = _run(
        ["python", "list", "--only-installed", "--offline", "--output-format", "json"], RESOLVE_DEADLINE, cwd=Path("/")
    )
    try:
        found = {entry["version"]: entry["path"] for entry in json.loads(listed.stdout)}
    except (ValueError, TypeError, KeyError):
        found = {}
    others = ", ".join(f"{other} ({path})" for other, path in found.items()) or "none"
    host = re.search(r"https?://(?:[^@/\s]*@)?([^/\s)`]+)", stderr)
    broken = re.search(r"Failed to inspect Python interpreter from .* at `([^`]+)`", stderr)
    why = ""
    if host:
        why = f", and uv cannot download it from {host[1]}"
    elif broken:
        why = f", and {broken[1]} does not run"
    bring = as_typed("install", "NAME", "PREFIX")
    return (
        f"Python {version} not found: the machine has {others}{why}; install it and put it on PATH, or use {bring}, "
        f"which brings it"
    )


def install_for_build(folder: Path, requirements: Sequence[str], build_pins: Path) -> None:
    """Install build `requirements` into the environment in `folder`, as uv does to build a source distribution.

    Takes only files that `build_pins` lists; raises UserError.
    """
    python = str(folder / "bin" / "python")
    listed = folder / "requirements.in"
    listed.write_text("".join(f"{requirement}\n" for requirement in requirements))
    command = ["pip", "install", "--quiet", "--python", python, "--break-system-packages", "--requirements", str(listed)]
    command += ["--constraints", str(build_pins), "--build-constraints", str(build_pins)]
    run_uv(command, "build requirements cannot be installed", _INSTALL_DEADLINE, cwd=folder)


def run_build_step(folder: Path, arguments: Sequence[str], *, cwd: Path) -> Ended:
    """Run the Python of the environment in `folder` with `arguments` and the variables that builds get; raises UserError."""
    path = os.pathsep.join([str(folder / "bin"), os.environ.get("PATH", os.defpath)])
    environ = {**_environ(offline=False), "PATH": path, "VIRTUAL_ENV": str(folder)}
    return run([folder / "bin" / "python", *arguments], deadline=_BUILD_STEP_DEADLINE, environ=environ, cwd=cwd)


def install(
    folder: Path,
    pins: Path,
    build_pins: Path,
    built: Sequence[str],
    *,
    offline: Offline | None = None,
    reinstall: Sequence[str] = (),
    pass_fds: Sequence[int] = (),
    throwaway: bool = False,
) -> None:
    """Install exactly the files that `pins` lists into the environment in `folder`, compiled to bytecode.

    Packages that are there in the same version stay as they are, but those in `reinstall`.

    The source distributions `built` are built with exactly the files that `build_pins` lists. With `offline`, neither an
    index nor the network is used. uv keeps the file descriptors `pass_fds` open until it ends, even if it outlives this
    process. A `throwaway` environment, which is used once, is not compiled, and has what uv built before. Raises UserError.
    """
    python = str(folder / "bin" / "python")
    # A conda Python is marked as externally managed, which does not apply to a folder that Smokehouse creates.
    command = ["pip", "install", "--python", python, "--break-system-packages", "--no-deps"]
    command += [] if throwaway else ["--compile-bytecode"]
    command += ["--require-hashes", "--requirements", str(pins)]
    command += ["--require-build-hashes", "--preview-features", "build-dependency-hashes"]
    command += [f"--reinstall-package={name}" for name in reinstall]
    if built:
        command += ["--build-constraints", str(build_pins)]
    if offline:
        command += ["--offline", "--no-config", "--no-index", "--find-links", str(offline.wheels)]
        command += ["--cache-dir", str(offline.cache)]
    elif not throwaway:
        # uv's cache ignores the versions that a source distribution was built with.
        command += [f"--refresh-package={name}" for name in built]
    failure = f"{folder.name} cannot be installed"
    with heartbeat("installing PyPI packages and compiling them to bytecode"):
        run_uv(command, failure, _INSTALL_DEADLINE, cwd=folder, progress=True, pass_fds=pass_fds, offline=offline is not None)


def check(folder: Path) -> None:
    """Raise UserError where packages in the environment in `folder` are incompatible."""
    command = ["pip", "check", "--python", str(folder / "bin" / "python")]
    run_uv(command, f"{folder.name} has incompatible packages", RESOLVE_DEADLINE, cwd=folder)


def uninstall(folder: Path, names: Sequence[str]) -> None:
    """Remove the packages `names` from the environment in `folder`; raises UserError."""
    command = ["pip", "uninstall", "--quiet", "--python", str(folder / "bin" / "python"), "--break-system-packages", *names]
    run_uv(command, f"{folder.name}: {', '.join(names)} cannot be removed", RESOLVE_DEADLINE, cwd=folder)


def install_editable(project: Path, folder: Path, *, pass_fds: Sequence[int] = ()) -> None:
    """Install the folder `project` editable, and nothing that it requires, into the environment in `folder`.

    Its build backend runs in an environment of its own. Raises UserError.
    """
    command = ["pip", "install", "--python", str(folder / "bin" / "python"), "--break-system-packages", "--no-deps"]
    command += ["--no-config", "--reinstall", "--editable", str(project)]
    run_uv(command, f"{project}: cannot be installed", _INSTALL_DEADLINE, cwd=folder, pass_fds=pass_fds)


def read_metadata(project: Path, python: str) -> str:
    """Return the METADATA that the build backend of the folder `project` gives for Python `python`; raises UserError.

    It is that of an editable installation, for which no backend compiles more than it has to.
    """
    found = find_python(python)
    with tempfile.TemporaryDirectory() as folder:
        command = ["pip", "install", "--target", folder, "--no-deps", "--no-config", "--quiet", "--editable", str(project)]
        command += ["--python", str(found)] if found else [*ANY_PYTHON, "--python-version", python]
        run_uv(command, f"{project}: its metadata cannot be read", _INSTALL_DEADLINE, cwd=Path(folder))
        [metadata] = Path(folder).glob("*.dist-info/METADATA")
        return metadata.read_text("utf-8")


def install_wheel(folder: Path, name: str, pins: Path, offline: Offline, *, pass_fds: Sequence[int] = ()) -> None:
    """Install the wheel of the package `name` that `pins` lists into the environment in `folder`, in place of another one.

    Its dependencies are not looked at, and `offline` is the only source; `pass_fds` is as for `install`. Raises UserError.
    """
    command = ["pip", "install", "--python", str(folder / "bin" / "python"), "--break-system-packages", "--compile-bytecode"]
    command += ["--no-deps", "--reinstall-package", name, "--require-hashes", "--requirements", str(pins)]
    command += ["--offline", "--no-config", "--no-index", "--find-links", str(offline.wheels)]
    command += ["--cache-dir", str(offline.cache)]
    failure = f"{folder.name}: {name} cannot be installed"
    run_uv(command, failure, _INSTALL_DEADLINE, cwd=folder, pass_fds=pass_fds, offline=True)


def run_uv(
    arguments: Sequence[str],
    failure: str,
    deadline: float,
    *,
    cwd: Path,
    progress: bool = False,
    pass_fds: Sequence[int] = (),
    offline: bool = False,
) -> str:
    """Run uv and return its standard output; raises UserError that begins with `failure`."""
    ended = _run(arguments, deadline, cwd=cwd, progress=progress, pass_fds=pass_fds, offline=offline)
    if ended.code:
        raise UserError(f"{failure}: {_explain(ended.stderr or ended.stdout)}")
    return ended.stdout


def _run(
    arguments: Sequence[str],
    deadline: float,
    *,
    cwd: Path,
    progress: bool = False,
    pass_fds: Sequence[int] = (),
    offline: bool = False,
) -> Ended:
    from uv import find_uv_bin

    command = [find_uv_bin(), *arguments]
    return run(command, deadline=deadline, environ=_environ(offline), cwd=cwd, progress=progress, pass_fds=pass_fds)


def _environ(offline: bool) -> Mapping[str, str]:
    """Return the environment variables for uv; if `offline`, without any that specifies a source of packages."""
    allowed = ("UV_CONCURRENT_", "UV_LINK_MODE", "UV_PYTHON_") if offline else tuple(_ALLOWED.split())
    foreign = ("UV_", "PIP_", "DS_BUILD_", "DS_ACCELERATOR", "PYTHON", "VIRTUAL_ENV", "CONDA_", *_OF_OUTPUT)
    variables = {name: value for name, value in os.environ.items() if not name.startswith(foreign) or name.startswith(allowed)}
    if variables.get("UV_LINK_MODE") == "symlink":  # an installation that ends with the cache
        del variables["UV_LINK_MODE"]
    return variables | _BUILD_VARIABLES


def _explain(stderr: str) -> str:
    """Return the cause that uv gives in `stderr`, and a remedy, in one line."""
    if re.search(r"No space left on device|os error 28\b", stderr):
        return "the disk is full; free some space (uv cache prune helps) and run it again"
    if re.search(r"Too many open files|os error 24\b", stderr):
        return "Too many open files; raise the limit of open files (ulimit -n)"
    if re.search(r"error sending request|dns error|Could not connect|network was disabled", stderr):
        host = re.search(r"https?://(?:[^@/\s]*@)?([^/\s)]+)", stderr)
        where = f" at {host[1]}" if host else ""
        return f"the package index{where} cannot be reached; check the network, or set UV_DEFAULT_INDEX to a mirror"
    if "Hash mismatch" in stderr:
        package = re.search(r"Hash mismatch for `([^`]+)`", stderr)
        return (
            f"hash mismatch, the index serves {package[1] if package else 'a file'} with another hash than the lock specifies; "
            f"it was not installed; use an index that serves the original file"
        )
    error = re.search(r"^error: (.*?)(?=^\S|\Z)", stderr, re.DOTALL | re.MULTILINE)
    text = (error[1] if error else stderr).replace("\n  cause: ", ": ")
    # For a failed build, uv shows all of its output; the last line has the reason.
    text, *output = re.split(r"\[std(?:out|err)\]", text.partition("\n\n         hint:")[0])
    text += output[-1].rstrip().rpartition("\n")[2] if output else ""
    if recent := re.search(r"`([^`]+)` was filtered by `exclude-newer`(?:.*?published at (\d{4}-\d\d-\d\d))?", stderr):
        since = f"was published on {recent[2]}" if recent[2] else "has no file that the index dates earlier"
        text += f" The cut-off hides {recent[1]}, which {since}; request an older version, or move the cut-off."
    return " ".join(text.split()) or "uv gave no reason; run it again"
