"""uv, the resolver and installer of the pip half."""

import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from smokehouse.errors import UserError
from smokehouse.programs.process import run

RESOLVING = 900.0  # seconds
_INSTALLING = 3600.0

# Where packages come from and how they travel is the user's choice. Everything else that uv reads from the environment
# could change what is resolved or checked, and is kept from it.
_CHOICES = (
    "UV_CACHE_DIR UV_CONCURRENT_ UV_CONFIG_FILE UV_DEFAULT_INDEX UV_EXTRA_INDEX_URL UV_FIND_LINKS UV_HTTP_ UV_INDEX "
    "UV_INSECURE_HOST UV_KEYRING_PROVIDER UV_LINK_MODE UV_NATIVE_TLS UV_NO_CACHE UV_NO_INDEX UV_OFFLINE UV_PYTHON_ "
    "UV_REQUEST_TIMEOUT UV_SYSTEM_CERTS"
)

# deepspeed compiles whichever of its ops these name; a lock must build to the same thing everywhere.
_BUILDING = {"DS_BUILD_OPS": "0", "SOURCE_DATE_EPOCH": "315532800"}

# Which Python runs it says nothing where version and platform are given; looking for one takes most of uv's time.
ANY_PYTHON = ("--python", sys.executable)


@dataclass(frozen=True)
class Offline:
    """All that there is to install from: a folder of `wheels`, and an empty `cache`."""

    wheels: Path
    cache: Path


def list_files(pins: Sequence[str], python: str, platform: str) -> str:
    """Return a pylock.toml of every file that the index has of `pins`, such as einops==0.8.1; raises UserError."""
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder, "asked.in")
        asked.write_text("".join(f"{pin}\n" for pin in pins))
        command = ["pip", "compile", str(asked), "--python-version", python, *ANY_PYTHON]
        command += [
            "--python-platform",
            platform,
            "--no-deps",
            "--prerelease",
            "allow",
            "--no-header",
            "--quiet",
            "--format",
            "pylock.toml",
        ]
        # Paths of files in local folders are told from here.
        return run_uv(command, "the index cannot say where the files of the lock lie", RESOLVING, cwd=Path("/"))


def index_urls() -> list[str]:
    """Return the URLs of the indexes that uv is configured with in the environment, with user and password."""
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


def create_environment(folder: Path, python: str) -> None:
    """Create an empty virtual environment of `python` (such as 3.11) in `folder`; raises UserError."""
    command = ["venv", "--quiet", "--no-project", "--python", python, str(folder)]
    run_uv(command, f"no Python {python} to build an environment with", RESOLVING, cwd=folder.parent)


def install(
    folder: Path,
    pins: Path,
    build_pins: Path,
    built: Sequence[str],
    *,
    offline: Offline | None = None,
    pass_fds: Sequence[int] = (),
) -> None:
    """Install exactly the files that `pins` names into the environment in `folder`, compiled to bytecode.

    The source distributions `built` are built here, with exactly what `build_pins` names. With `offline` there is no index
    and no network. uv holds the descriptors in `pass_fds` until it ends, even where this process does not live to see it.
    Raises UserError.
    """
    python = str(folder / "bin" / "python")
    # A conda Python says that only conda may install into it. This folder is ours.
    command = ["pip", "install", "--python", python, "--break-system-packages", "--compile-bytecode", "--no-deps"]
    command += ["--require-hashes", "--requirements", str(pins)]
    command += ["--require-build-hashes", "--preview-features", "build-dependency-hashes"]
    if built:
        command += ["--build-constraints", str(build_pins)]
    if offline:
        command += ["--offline", "--no-config", "--no-index", "--find-links", str(offline.wheels)]
        command += ["--cache-dir", str(offline.cache)]
    else:
        # uv's cache does not tell what a source distribution was built with.
        command += [f"--refresh-package={name}" for name in built]
    trouble = f"{folder.name} cannot be installed"
    run_uv(command, trouble, _INSTALLING, cwd=folder, progress=True, pass_fds=pass_fds, offline=offline is not None)
    run_uv(["pip", "check", "--python", python], f"{folder.name} does not fit together", RESOLVING, cwd=folder)


def run_uv(
    arguments: Sequence[str],
    trouble: str,
    deadline: float,
    *,
    cwd: Path,
    progress: bool = False,
    pass_fds: Sequence[int] = (),
    offline: bool = False,
) -> str:
    from uv import find_uv_bin

    environ = _environ(offline)
    ended = run([find_uv_bin(), *arguments], deadline=deadline, environ=environ, cwd=cwd, progress=progress, pass_fds=pass_fds)
    if ended.code:
        raise UserError(f"{trouble}: {explain(ended.stderr or ended.stdout)}")
    return ended.stdout


def _environ(offline: bool) -> Mapping[str, str]:
    """Return the environment for uv; `offline` without anything that names a place to take packages from."""
    choices = ("UV_CONCURRENT_", "UV_LINK_MODE", "UV_PYTHON_") if offline else tuple(_CHOICES.split())
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("UV_", "DS_BUILD_", "PYTHON", "VIRTUAL_ENV", "CONDA_")) or name.startswith(choices)
    }
    return kept | _BUILDING


def explain(stderr: str) -> str:
    """Return the cause that uv names in `stderr`, and the cure, in one line."""
    if re.search(r"No space left on device|os error 28\b", stderr):
        return "the disk is full; free some space (uv cache prune helps) and run it again"
    if re.search(r"error sending request|dns error|Could not connect|network was disabled", stderr):
        host = re.search(r"https?://(?:[^@/\s]*@)?([^/\s)]+)", stderr)
        where = f" at {host[1]}" if host else ""
        return f"the package index{where} cannot be reached; check the network, or set UV_DEFAULT_INDEX to a mirror"
    if "Hash mismatch" in stderr:
        package = re.search(r"Hash mismatch for `([^`]+)`", stderr)
        return (
            f"the index serves {package[1] if package else 'a file'} with another hash than the lock names; nothing of "
            f"it was installed; use an index that serves the original file"
        )
    said = re.search(r"^error: (.*?)(?=^\S|\Z)", stderr, re.DOTALL | re.MULTILINE)
    text = (said[1] if said else stderr).replace("\n  cause: ", ": ")
    # A build that fails shows all its output; its last line says why.
    text, *output = re.split(r"\[std(?:out|err)\]", text.partition("\n\n         hint:")[0])
    text += output[-1].rstrip().rpartition("\n")[2] if output else ""
    if young := re.search(r"`([^`]+)` was filtered by `exclude-newer`(?:.*?published at (\d{4}-\d\d-\d\d))?", stderr):
        since = f"was published on {young[2]}" if young[2] else "has no file that the index dates before it"
        text += f" The cut-off hides {young[1]}, which {since}; ask for an older version, or move the cut-off."
    return " ".join(text.split()) or "uv gave no reason; run it again"
