"""The command line: one line and exit code 2 for each mistake."""

import pytest

from .conftest import TestHouse


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing command; see --help"),
        (["lcok"], "No such command 'lcok'"),
        (["lock", "--chek"], "No such option: --chek"),
        (["lock", "tiny", "--tools"], "--tools takes no names, and of the options --check; lock the environments"),
    ],
)
def test_usage(house: TestHouse, arguments: list[str], message: str) -> None:
    assert message in house.refused(*arguments)


def test_help(house: TestHouse) -> None:
    ended = house.run("lock", "--help")
    assert ended.returncode == 0
    assert "--check" in ended.stdout
