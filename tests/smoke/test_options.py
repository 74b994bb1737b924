"""Options: any arguments give options or one line that says what is wrong."""

import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smoke_tests import families
from smoke_tests.options import InputError, Options, check_folder, read

from .conftest import NAME

T = TypeVar("T")
TINY = dataclasses.replace(families.get("qwen2_5_vl"), name="tiny")
FLAGS = ("--zero", "--nproc", "--device", "--checkpoint", "--timeout", "--report", "--port", "--start", "--validate")
# What people type, which a message repeats unchanged.
WORDS = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=300)
USUAL = st.sampled_from(["2", "3", "2,3", "0", "-1", "cpu", "cuda", "fork", "a/b", ".", "..", "/", "1e9", "nan", "²", "٣", ""])
ARGUMENTS = st.one_of(st.sampled_from(FLAGS), USUAL, WORDS).filter(lambda word: not word.startswith(("-h", "--h")))


def given_options(root: Path) -> list[str]:
    """Return the options that every run requires."""
    stack, lock = root / "environments" / NAME / "stack.toml", root / "lockfiles" / NAME
    return ["--environment", NAME, "--stack", str(stack), "--lock", str(lock)]


def outcome(call: Callable[[], T]) -> T | str:
    """Return the result of a call, or the message of its InputError; any other exception is an error."""
    try:
        return call()
    except InputError as error:
        return str(error)


@given(st.lists(ARGUMENTS, max_size=6))
@example(["--checkpoint", "a" * 300])
def test_any_arguments_give_options_or_one_line(root: Path, arguments: list[str]) -> None:
    found = outcome(lambda: read([*given_options(root), *arguments]))
    assert isinstance(found, Options) or len(found.splitlines()) == 1


@given(WORDS)
def test_refusal_is_one_line(root: Path, text: str) -> None:
    said = outcome(lambda: read([*given_options(root), "--zero", f"!{text}"]))
    assert isinstance(said, str)
    assert len(said.splitlines()) == 1


@given(st.binary(max_size=2000))
def test_any_stack_gives_options_or_one_line(root: Path, tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    stack = tmp_path_factory.getbasetemp() / "any-stack.toml"
    stack.write_bytes(content)
    said = outcome(lambda: read([*given_options(root), "--stack", str(stack)]))
    assert isinstance(said, str)
    assert said.startswith(f"{stack}: ")
    assert len(said.splitlines()) == 1


def test_stack_nested_without_end(root: Path, tmp_path: Path) -> None:
    stack = tmp_path / "stack.toml"
    stack.write_text("a = " + "[" * 100_000)
    with pytest.raises(InputError, match="invalid TOML"):
        read([*given_options(root), "--stack", str(stack)])


# Headers with the right names and any values, which random bytes never give.
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
OFFSETS = st.fixed_dictionaries({"data_offsets": st.one_of(st.lists(st.integers(0, 500), min_size=2, max_size=2), JSON)})
HEADERS = st.one_of(JSON, st.dictionaries(st.text(max_size=5) | st.just("__metadata__"), OFFSETS | JSON, max_size=3))
FILES = st.one_of(
    st.binary(max_size=300),
    st.tuples(HEADERS.map(lambda header: json.dumps(header).encode()), st.binary(max_size=20)).map(
        lambda parts: len(parts[0]).to_bytes(8, "little") + parts[0] + parts[1]
    ),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a sound checkpoint that still lacks its weights."""
    folder = tmp_path_factory.mktemp("checkpoint")
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        (folder / name).write_text('{"model_type": "tiny"}')
    return folder


@given(FILES)
@example((100_000).to_bytes(8, "little") + b"[" * 100_000)
@example((2**63).to_bytes(8, "little") + b"{}")
def test_any_shard_is_taken_or_refused_in_one_line(folder: Path, content: bytes) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(content)
    said = outcome(lambda: check_folder(folder, TINY))
    assert said is None or (said.startswith((f"{file}: ", f"{folder}: ")) and len(said.splitlines()) == 1)


@given(st.lists(st.integers(1, 200), min_size=1, max_size=4), st.data())
def test_shard_is_taken_whole_and_refused_at_any_other_length(folder: Path, sizes: list[int], data: st.DataObject) -> None:
    header: dict[str, object] = {}
    for number, end in enumerate(itertools.accumulate(sizes)):
        header[str(number)] = {"dtype": "U8", "shape": [sizes[number]], "data_offsets": [end - sizes[number], end]}
    text = json.dumps(header | {"__metadata__": {"format": "pt"}}).encode()
    whole = len(text).to_bytes(8, "little") + text + bytes(sum(sizes))
    file = folder / "model.safetensors"
    file.write_bytes(whole)
    check_folder(folder, TINY)
    length = data.draw(st.integers(0, len(whole) + 50).filter(lambda length: length != len(whole)))
    file.write_bytes((whole + bytes(50))[:length])
    with pytest.raises(InputError):
        check_folder(folder, TINY)
