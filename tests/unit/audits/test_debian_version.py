"""Debian versions are ordered as dpkg orders them."""

import subprocess
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smokehouse.audits.debian_version import sort_key

PART = st.text(alphabet="0019aZ+.~", min_size=0, max_size=6)
VERSION = st.builds(
    lambda epoch, first, rest, revision: f"{epoch}{first}{rest}{revision}",
    st.sampled_from(["", "0:", "1:", "12:"]),
    st.sampled_from(["0", "1", "10", "2"]),
    PART,
    st.one_of(st.just(""), PART.filter(bool).map(lambda text: f"-{text}")),
)


def dpkg(one: str, relation: str, other: str) -> bool:
    """What dpkg says."""
    command = ["dpkg", "--compare-versions", one, relation, other]
    return subprocess.run(command, capture_output=True, timeout=30).returncode == 0


@settings(max_examples=250, deadline=None)
@given(VERSION, VERSION)
def test_any_two_versions_are_ordered_as_by_dpkg(one: str, other: str) -> None:
    assert (sort_key(one) < sort_key(other)) == dpkg(one, "lt", other)
    assert (sort_key(one) == sort_key(other)) == dpkg(one, "eq", other)


def test_what_policy_says_of_tildes_letters_and_numbers() -> None:
    ordered = ["1~~", "1~~a", "1~", "1", "1a", "1+", "1.0", "1.0-0+deb12u1", "1.0-1~bpo1", "1.0-1", "1.2", "1.10", "1:0"]
    for one, other in pairwise(ordered):
        assert sort_key(one) < sort_key(other), (one, other)
        assert dpkg(one, "lt", other), (one, other)
    assert sort_key("1.0") == sort_key("0:1.00") == sort_key("1.0-0")


@pytest.mark.parametrize("text", ["", "a:1", "1 2", ":1", "1:", "1/2", "1\n", "²"])
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="invalid Debian version"):
        sort_key(text)
