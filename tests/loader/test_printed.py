"""Find each text of the table in the programs that print it, in every version that is named."""

import json
import re
import subprocess
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import pytest

from smokehouse import locks
from smokehouse_loader.failures import FAILURES, PRINTED
from smokehouse_loader.failures.printed import COMPOSED, ELSEWHERE, RAISED
from smokehouse_loader.signs import pattern
from tests.loader import stacks
from tests.loader.raised import RAISES, printed
from tests.loader.record_texts import RECORD, recorded_as
from tests.loader.texts import Place, missing, places

DEADLINE = 300.0  # seconds
_RECORD = json.loads(RECORD.read_text())
_AGAIN = "run `python -m tests.loader.record_texts {}`"


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
def content(stack: str, name: str) -> bytes | None:
    """Return a file of a stack, of a compiled one only what the table looks for in it; None where the stack lacks it."""
    file = site(stack) / name
    if not file.exists() or file.suffix == ".py":
        return file.read_bytes() if file.exists() else None
    parts = sorted({part for place in places() if name in place.files for part in place.parts})
    # One pass for all of them: libraries have a gigabyte.
    command = ["grep", "-aoF", *(f"-e{part}" for part in parts), str(file)]
    return subprocess.run(command, capture_output=True, timeout=DEADLINE, env={"LC_ALL": "C"}).stdout


def test_every_text_has_a_program() -> None:
    texts = {sign.text for failure in FAILURES for sign in failure.signs}
    assert texts == PRINTED.keys() | COMPOSED.keys() | RAISED.keys() | ELSEWHERE.keys()
    assert len(texts) == len(PRINTED) + len(COMPOSED) + len(RAISED) + len(ELSEWHERE)
    assert len(ELSEWHERE) < 25


def test_parts_of_a_text_say_what_it_says() -> None:
    """Each place of a text that is put together has a word of it; the holes of the program's format are its own."""
    for text, composed in COMPOSED.items():
        said = set(re.findall(r"[A-Za-z0-9_]{3,}", re.sub(r"\{[\w/]*\}", " ", text)))
        for place, parts in composed.items():
            assert said & set(re.findall(r"[A-Za-z0-9_]{3,}", " ".join(parts))), (text, place)


@pytest.mark.parametrize("package", sorted(_RECORD))
def test_a_range_of_versions_is_what_was_recorded(package: str) -> None:
    """Every release that was read has a text where the range of its place says so, and no other has it."""
    recorded = _RECORD[package]
    releases = list(recorded["releases"])
    ranges: dict[tuple[str, str], list[Place]] = {}
    for place in places():
        if recorded_as(place) == package:
            ranges.setdefault((place.key, place.text), []).append(place)
    assert ranges.keys() == {(key, text) for key, texts in recorded["texts"].items() for text in texts}, _AGAIN.format(package)
    wrong = []
    for (key, text), found in ranges.items():
        has = recorded["texts"][key][text]
        said = "".join(str(int(any(place.required.specifier.contains(one) for place in found))) for one in releases)
        assert len(has) == len(releases)
        if said != has:
            wrong.append(
                f"{text}: {key}: {[str(place.required) for place in found]}, found in {dict(zip(releases, has, strict=True))}"
            )
    assert not wrong, "\n".join(wrong)


def test_every_package_is_recorded() -> None:
    assert {recorded_as(place) for place in places()} == _RECORD.keys()


@pytest.mark.parametrize("stack", stacks.STACKS)
def test_programs_of_a_stack_have_their_texts(stack: str) -> None:
    """What was recorded from wheels holds for the programs that are installed."""
    pinned = versions(stack)
    checked, wrong = 0, []
    for place in places():
        version = pinned.get(place.required.name)
        if version and place.required.specifier.contains(version):
            checked += 1
            if parts := missing(place, partial(content, stack)):
                wrong.append(f"{place.name} ({version}): {place.text}: {parts}")
    assert not wrong, "\n".join(wrong)
    assert checked > 150


def test_a_text_that_no_program_prints_is_missed() -> None:
    place = next(one for one in places() if one.required.name == "transformers")
    other = replace(place, parts=("no such text of", "any program"))
    assert missing(other, partial(content, next(iter(stacks.STACKS)))) == list(other.parts)


def test_programs_of_the_machine_print_their_texts(tmp_path: Path) -> None:
    assert RAISES.keys() == RAISED.keys()
    wrong = []
    for index, (text, call) in enumerate(RAISES.items()):
        folder = tmp_path / str(index)
        folder.mkdir()
        said = "".join(printed(call, folder).split())
        if not next(pattern(text).matches(said), None):
            wrong.append(f"{text}: {said}")
    assert not wrong, "\n".join(wrong)


def test_what_cannot_be_read_has_a_public_source() -> None:
    for text, source in ELSEWHERE.items():
        assert re.search(r": [\w.-]+/[\w.-]+ (\S+ at [0-9a-f]{12}|issue #\d+)$", source), text
