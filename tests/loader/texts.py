"""Find the texts of the table of known failures in the files of the programs that print them."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from packaging.requirements import Requirement

from smokehouse_loader.failures import PRINTED
from smokehouse_loader.failures.printed import COMPOSED
from smokehouse_loader.signs import fragments

# Quotes between the parts of one text, in Python.
_JOINTS = re.compile(r"""(?<!\()["'](?:\+)?[fFrRbBuU]{0,2}["']""")
_SHORTEST = 4  # characters of a fragment that means something


@dataclass(frozen=True)
class Place:
    """Files of a package, in a range of its versions, and the constant parts of a text that they have."""

    text: str
    name: str  # as the table has it
    required: Requirement
    files: tuple[str, ...]  # in site-packages
    parts: tuple[str, ...]

    @property
    def is_source(self) -> bool:
        """Whether the files are Python's, and not compiled."""
        return self.files[0].endswith(".py")

    @property
    def key(self) -> str:
        """The files and, if the program does not have the text as a whole, its parts."""
        return " ".join(self.files) + "".join(f" | {part}" for part in COMPOSED.get(self.text, {}).get(self.name, ()))


def places() -> Iterator[Place]:
    """Yield every place of every text of PRINTED and COMPOSED."""
    for text, names in PRINTED.items():
        for name in names:
            yield _place(text, name, tuple(_constant(text, name)))
    for text, composed in COMPOSED.items():
        for name, parts in composed.items():
            yield _place(text, name, parts)


def _place(text: str, name: str, parts: tuple[str, ...]) -> Place:
    required, *files = name.split(" ")
    return Place(text, name, Requirement(required), tuple(files), parts)


def _constant(text: str, name: str) -> list[str]:
    if name.endswith(".py"):
        return [part for part in fragments(text) if len(squeezed(part)) >= _SHORTEST]
    return [part.strip() for part in re.split(r"\{[\w/]*\}", text) if len(part.strip()) >= _SHORTEST]


def squeezed(source: str) -> str:
    """Return a source or a text without whitespace, escapes and the quotes between parts of one string."""
    source = re.sub(r"\\\n|\\[nt]", "", source).replace('\\"', '"').replace("\\'", "'")
    return _JOINTS.sub("", "".join(source.split()))


@lru_cache(maxsize=64)
def _squeezed_file(content: bytes) -> str:
    return squeezed(content.decode("utf-8", errors="replace"))


def missing(place: Place, read: Callable[[str], bytes | None]) -> list[str]:
    """Return the parts of a text that its files do not have; `read` returns a file, None where the version lacks it."""
    contents = [content for name in place.files if (content := read(name)) is not None]
    if place.is_source:
        whole = "\n".join(map(_squeezed_file, contents))
        return [part for part in place.parts if squeezed(part) not in whole]
    return [part for part in place.parts if not any(part.encode() in content for content in contents)]
