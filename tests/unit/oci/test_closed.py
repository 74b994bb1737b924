"""Documents that all programs read alike, and no others."""

import json

import pytest

from smokehouse.errors import UserError
from smokehouse.oci import closed


def test_the_history_of_a_base_may_have_tabs_and_newlines() -> None:
    """As most Dockerfiles give it; refused, `--base` could not take those images."""
    document = {"history": [{"created_by": "RUN /bin/sh -c set -eux; \tapt-get update;\n\tapt-get install curl # buildkit"}]}
    assert closed.read(json.dumps(document).encode(), "base") == document


@pytest.mark.parametrize("text", ["\x1b[2J", "\0", "\r", "\b", "\x7f", "\x85", "\u202e", "\u2028", "\ud800", "\u200b"])
def test_what_could_paint_a_terminal_is_refused(text: str) -> None:
    for document in ({"a": f"x{text}"}, {f"x{text}": "a"}, [[f"x{text}"]]):
        with pytest.raises(UserError, match=r"^base: expected JSON with one meaning, found control characters in "):
            closed.read(json.dumps(document).encode(), "base")
