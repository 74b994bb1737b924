"""The order of Debian versions.

See: https://www.debian.org/doc/debian-policy/ch-controlfields.html#version
"""

import re

# The part of a version that a comparison reads at once: what is not a digit, then a number.
_Part = tuple[tuple[int, ...], int]
_END: _Part = ((0,), 0)
_VALID = re.compile(r"(?:\d+:)?[A-Za-z0-9.+~:-]+")

Key = tuple[int, tuple[_Part, ...], tuple[_Part, ...]]


def sort_key(version: str) -> Key:
    """Return a key that orders `version` as dpkg does: by epoch, upstream version and revision.

    Raises ValueError where it is not a Debian version.
    """
    if not _VALID.fullmatch(version):
        raise ValueError(f"invalid Debian version {version!r}")
    epoch, colon, rest = version.partition(":")
    if not colon:
        epoch, rest = "0", version
    if not epoch.isdecimal() or not rest:
        raise ValueError(f"invalid Debian version {version!r}")
    upstream, _, revision = rest.rpartition("-") if "-" in rest else (rest, "", "")
    return int(epoch), _parts(upstream), _parts(revision)


def _parts(text: str) -> tuple[_Part, ...]:
    """Return the parts of an upstream version or a revision, and an end that sorts after a tilde and before anything else.

    Only the first part may equal the end, as that of `0` does: an empty text has one too, since dpkg takes it for `0`.
    """
    found = [
        ((*(_order(character) for character in other), 0), int(number or 0))
        for other, number in re.findall(r"([^0-9]*)([0-9]*)", text)
        if other or number
    ]
    return (*(found or [_END]), _END)


def _order(character: str) -> int:
    """Return the order of a character: a tilde before the end, letters before all else."""
    return -1 if character == "~" else ord(character) + (0 if character.isalpha() else 256)
