"""Options of the builder among those of a smoke test."""

import pytest

from smokehouse.errors import UserError
from smokehouse.runs import pop_option


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
