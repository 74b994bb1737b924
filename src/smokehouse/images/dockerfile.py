"""Generate docker/Dockerfile, which has two stages for each layer slot, from docker/Dockerfile.in."""

import filecmp
import re
from pathlib import Path

from smokehouse.checkout import Checkout
from smokehouse.console import status
from smokehouse.errors import UserError
from smokehouse.storage import files

SLOTS = 16  # layers of wheels that an image can have, without the topmost, which has a stage of its own

_TEMPLATE = "docker/Dockerfile.in"
_DOCKERFILE = "docker/Dockerfile"
_HEADER = f"# Generated from {_TEMPLATE} by nox -s build; edit that file instead.\n#\n"
_SLOT = re.compile(r"^# BEGIN SLOT\b.*\n((?:.*\n)*?)# END SLOT\n", re.MULTILINE)


def prepare_folder(checkout: Checkout) -> Path:
    """Return the folder that bake runs in: it has docker/, up to date, and everything that a build reads.

    An installed package is elsewhere, and bake reads nothing outside its folder, so the package's docker/ is copied.

    Raises:
        UserError: as `update`.
    """
    update(checkout)
    source = checkout.file("docker")
    if source.parent == checkout.root and checkout.is_own:
        return checkout.root
    for path in source.rglob("*"):
        copy = checkout.build / "docker" / path.relative_to(source)
        if not path.is_file() or "__pycache__" in path.parts:
            continue
        if not copy.is_file() or not filecmp.cmp(path, copy, shallow=False):
            copy.parent.mkdir(parents=True, exist_ok=True)
            files.write(copy, path.read_bytes())
    return checkout.build


def update(checkout: Checkout) -> None:
    """Rewrite docker/Dockerfile if it is not what docker/Dockerfile.in gives.

    Raises:
        UserError: the template is not found or invalid, or the Dockerfile cannot be written.
    """
    template, dockerfile = checkout.file(_TEMPLATE), checkout.file(_DOCKERFILE)
    try:
        text = render(template.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{_TEMPLATE}: not found; restore it with git checkout {_TEMPLATE}") from None
    if dockerfile.is_file() and dockerfile.read_bytes() == text.encode():
        return
    try:
        files.write(dockerfile, text)
    except OSError as error:
        raise UserError(f"{_DOCKERFILE}: out of date, and cannot be written ({error.strerror}); fix permissions") from None
    status(f"{_DOCKERFILE}: was out of date, generated from {_TEMPLATE}")


def render(template: str, slots: int = SLOTS) -> str:
    """Return the Dockerfile: `template` with its part from BEGIN SLOT to END SLOT repeated `slots` times.

    In each copy, @SLOT@ is its number, from 01, and @BELOW@ the number before.

    Raises:
        UserError: the template does not have exactly one such part.
    """
    parts = _SLOT.split(template)
    if len(parts) != 3:
        raise UserError(
            f"{_TEMPLATE}: expected one part from # BEGIN SLOT to # END SLOT, found {len(parts) // 2}; "
            f"restore it with git checkout {_TEMPLATE}"
        )
    before, slot, after = parts
    copies = (slot.replace("@SLOT@", f"{number:02}").replace("@BELOW@", f"{number - 1:02}") for number in range(1, slots + 1))
    return "".join([_HEADER, before, *copies, after])
