"""Find each text of the table in the programs that print it, in every version of the stacks that is named."""

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from smokehouse import locks
from smokehouse_loader.failures import FAILURES, PRINTED
from smokehouse_loader.failures.printed import ELSEWHERE
from smokehouse_loader.signs import fragments
from tests.loader import stacks

DEADLINE = 300.0  # seconds
# Quotes between the parts of one text, in Python.
_JOINTS = re.compile(r"""(?<!\()["'](?:\+)?[fFrRbBuU]{0,2}["']""")
_SHORTEST = 4  # characters of a fragment that means something


def squeezed(source: str) -> str:
    """Return a source or a text without whitespace, escapes and the quotes between parts of one string."""
    source = re.sub(r"\\\n|\\[nt]", "", source).replace('\\"', '"').replace("\\'", "'")
    return _JOINTS.sub("", "".join(source.split()))


@cache
def versions(stack: str) -> dict[str, str]:
    """Return the PyPI packages of a stack, name -> version."""
    checkout, name = stacks.STACKS[stack]
    return {pinned.name: pinned.version for pinned in locks.load(checkout, name).lock.pip}


@cache
def site(stack: str) -> Path:
    """Return the site-packages of an installed stack."""
    return next(stacks.python(stack).parents[1].glob("lib/python3.*/site-packages"))


@cache
def source(file: Path) -> str:
    """Return a squeezed source, empty where the version has no such file."""
    return squeezed(file.read_text("utf-8", errors="replace")) if file.exists() else ""


@cache
def library(file: Path) -> set[str]:
    """Return the lines of a compiled library that have a part of a text of the table, one pass for all of them."""
    if not file.exists():
        return set()
    parts = {
        part for text, places in PRINTED.items() if any(place.endswith(file.name) for place in places) for part in raw(text)
    }
    command = ["grep", "-aoF", *(f"-e{part}" for part in sorted(parts)), str(file)]
    ended = subprocess.run(command, capture_output=True, timeout=DEADLINE, env={"LC_ALL": "C"})
    return set(ended.stdout.decode("utf-8", errors="replace").split("\n"))


def raw(text: str) -> list[str]:
    """Return the constant parts of a text with their whitespace, as a library has them."""
    return [part.strip() for part in re.split(r"\{[\w/]*\}", text) if len(part.strip()) >= _SHORTEST]


def missing(text: str, place: str, stack: str) -> list[str]:
    """Return the parts of a text that are not in the files of a place, in a stack."""
    files = [site(stack) / name for name in place.split(" ")[1:]]
    if files[0].suffix == ".py":
        whole = "\n".join(map(source, files))
        parts = [squeezed(part) for part in fragments(text)]
        return [part for part in parts if len(part) >= _SHORTEST and part not in whole]
    found = set[str]().union(*map(library, files))
    return [part for part in raw(text) if not any(part in line for line in found)]


def test_every_text_has_a_program() -> None:
    texts = {sign.text for failure in FAILURES for sign in failure.signs}
    assert texts == PRINTED.keys() | ELSEWHERE.keys()
    assert not PRINTED.keys() & ELSEWHERE.keys()
    assert len(PRINTED) > 200


@pytest.mark.parametrize("stack", stacks.STACKS)
def test_programs_of_a_stack_have_their_texts(stack: str) -> None:
    pinned = versions(stack)
    checked, wrong = 0, []
    for text, places in PRINTED.items():
        for place in places:
            required = Requirement(place.split(" ")[0])
            if required.name in pinned and required.specifier.contains(pinned[required.name]):
                checked += 1
                if parts := missing(text, place, stack):
                    wrong.append(f"{place} ({pinned[required.name]}): {text}: {parts}")
    assert not wrong, "\n".join(wrong)
    assert checked > 100


def test_every_range_of_versions_is_checked_on_some_stack() -> None:
    required = {place.split(" ")[0] for places in PRINTED.values() for place in places}
    unchecked = {
        one
        for one in required
        if not any(
            Requirement(one).name in versions(stack)
            and Requirement(one).specifier.contains(versions(stack)[Requirement(one).name])
            for stack in stacks.STACKS
        )
    }
    assert not unchecked


def test_a_text_that_no_program_prints_is_missed() -> None:
    place = "transformers>=4.49 transformers/modeling_utils.py"
    assert missing("no such text in {} of it", place, next(iter(stacks.STACKS)))
