"""smokehouse-loader, the distribution that each environment and image has beside what its lock specifies.

It is not in a lock, because it is not from an index: its wheel is built from the sources that belong to this builder, and has
the same bytes wherever the same sources are built.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from packaging.utils import parse_wheel_filename

from smokehouse.checkout import Checkout
from smokehouse.console import status
from smokehouse.locks import LockedFile
from smokehouse.programs import hatchling, uv
from smokehouse.storage import files

NAME = "smokehouse-loader"

# The file of an environment with the digest of the sources that the installed loader was built from.
_RECORD = ".smokehouse-loader"


def digest(checkout: Checkout) -> str:
    """Return the SHA-256 of all that the wheel is built from, by which an installation is up to date or not."""
    project = checkout.loader()
    # rglob does not enter a folder that is a link, as smokehouse_loader is in a checkout.
    sources = sorted(path for folder in (project, project / "smokehouse_loader") for path in folder.rglob("*"))
    listed = {str(path.relative_to(project)): files.hashed(path) for path in sources if _is_source(path, project)}
    return files.sha256("".join(f"{digest} {path}\n" for path, digest in sorted(listed.items())))


def build(checkout: Checkout, folder: Path) -> LockedFile:
    """Build the wheel in `folder`, and return its name, version, size and hash as a lock has them; raises UserError."""
    wheel = hatchling.build_wheel(checkout.loader(), folder)
    _, version, _, _ = parse_wheel_filename(wheel.name)
    size = wheel.stat().st_size
    return LockedFile(name=NAME, version=str(version), file=wheel.name, size=size, sha256=files.hashed(wheel))


def ensure(checkout: Checkout, target: Path, *, pass_fds: Sequence[int] = ()) -> bool:
    """Install it into the environment in `target` unless it is up to date, and return whether it was not.

    No network is used. Its dependencies are not installed: where the lock has none of them, neither has the environment.
    Raises UserError.
    """
    if is_current(checkout, target):
        return False
    found = digest(checkout)
    (target / _RECORD).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        wheel = build(checkout, Path(folder))
        status(f"installing {NAME} {wheel.version}")
        pins = Path(folder, "requirements.txt")
        pins.write_text(f"{NAME}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
        uv.install_wheel(target, NAME, pins, uv.Offline(Path(folder), Path(folder, "cache")), pass_fds=pass_fds)
    files.write(target / _RECORD, f"{found}\n")
    return True


def is_current(checkout: Checkout, target: Path) -> bool:
    """Return whether the environment in `target` has the loader as its sources are now."""
    try:
        recorded = files.read(target / _RECORD).decode().strip()
    except (OSError, ValueError):
        return False
    # Other programs that change the environment may have removed it.
    installed = any(target.glob(f"lib/python3*/site-packages/{NAME.replace('-', '_')}-*.dist-info/RECORD"))
    return installed and recorded == digest(checkout)


def _is_source(path: Path, project: Path) -> bool:
    """Return whether the wheel depends on a file: on none that begins with a dot, and on no bytecode."""
    parts = path.relative_to(project).parts
    return path.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in parts)
