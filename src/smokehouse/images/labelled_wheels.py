"""The extra wheels that the labels of an image list, compared with those that whoever verifies it allows."""

from collections.abc import Sequence
from dataclasses import replace

from smokehouse.errors import UserError
from smokehouse.images.labels import ImageLabels
from smokehouse.installs.extra_wheels import ExtraWheel, parse

_MOST = 100  # wheels in a label; whoever made it can list a million


def compare_wheels(labels: ImageLabels, allowed: Sequence[ExtraWheel]) -> tuple[tuple[ExtraWheel, ...], list[str]]:
    """Return the `allowed` wheels that `labels` list, and what is wrong, each with the option that would allow it.

    A wheel is recognised by its SHA-256 and fetched from where its option says; the URL in a label is only a text.
    """
    if (count := len(labels.extra_wheels)) > _MOST:
        return (), [f"expected at most {_MOST} wheels, found {count}; do not trust this image"]
    missing = {wheel.sha256: wheel for wheel in allowed}
    found, problems = [], []
    for text in labels.extra_wheels:
        try:
            wheel = parse(text)
        except UserError as error:
            problems.append(f"{error}; do not trust this image")
            continue
        match = missing.pop(wheel.sha256, None)
        if match is None:
            option = f"--with {wheel.name}#sha256={wheel.sha256}"
            problems.append(f"expected wheels of the lock alone, found {wheel.name}; if you trust it, allow it with {option}")
        elif match.name != wheel.name:
            problems.append(f"expected {match.name}, found {wheel.name} with the same SHA-256; do not trust this image")
        else:
            found.append(replace(match, url=wheel.url))
    none = "which --with specifies, found none with its SHA-256; drop the option"
    problems += [f"expected {wheel.name}, {none}" for wheel in missing.values()]
    return tuple(found), problems
