"""Options of the builder among those of a smoke test."""

import pytest

from smoke_tests.options import _parser
from smokehouse.errors import UserError
from smokehouse.runs import pop_option, split_name
from smokehouse.runs.options import ENGINE_FLAGS, FLAGS
from smokehouse.runs.targets import TARGETS


@pytest.mark.parametrize(
    ("options", "rest", "value"),
    [
        (["--a", "1"], ["--a", "1"], None),
        (["--image", "x", "--a"], ["--a"], "x"),
        (["--a", "--image=x=y"], ["--a"], "x=y"),
        (["--images", "x"], ["--images", "x"], None),
        (["--image", "x", "--image", "y"], [], "y"),
    ],
)
def test_an_option_is_taken_out_with_its_value(options: list[str], rest: list[str], value: str | None) -> None:
    assert pop_option(options, "--image", "an image") == (rest, value)


@pytest.mark.parametrize("options", [["--image"], ["--a", "--image="]])
def test_an_option_without_a_value_is_refused(options: list[str]) -> None:
    with pytest.raises(UserError, match=r"^--image requires an image$"):
        pop_option(options, "--image", "an image")


@pytest.mark.parametrize(
    ("arguments", "name", "options"),
    [
        ("", None, ""),
        ("tiny", "tiny", ""),
        ("tiny --zero 3", "tiny", "--zero 3"),
        ("--zero 3 tiny", "tiny", "--zero 3"),
        ("--zero=3 tiny --nproc 2", "tiny", "--zero=3 --nproc 2"),
        ("--help tiny", "tiny", "--help"),
        ("--checkpoint tiny", None, "--checkpoint tiny"),
        ("tiny --zero", "tiny", "--zero"),
        ("--here tiny --zero 3", "tiny", "--here --zero 3"),
    ],
)
def test_options_stand_on_either_side_of_the_name(arguments: str, name: str | None, options: str) -> None:
    assert split_name(arguments.split()) == (name, options.split())


def test_two_names_are_refused() -> None:
    with pytest.raises(UserError, match=r"^smoke: expected the name of one environment, found tiny, 3; run it once for each$"):
        split_name(["tiny", "--zero", "2", "3"])


def test_each_option_of_the_smoke_test_but_flags_has_one_value() -> None:
    flags = {option for action in _parser()._actions if action.nargs in (0, "?") for option in action.option_strings}
    assert flags == {*FLAGS}
    assert all(action.nargs in (None, 0, "?") for action in _parser()._actions)


def test_each_flag_of_an_engine_is_known() -> None:
    flags = {option.name for target in TARGETS.values() for option in target.options if option.value is None}
    assert flags == {*ENGINE_FLAGS}
