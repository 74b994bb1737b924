"""What uv says is explained by its cause."""

import pytest

from smokehouse.programs import uv

# As uv words a request that failed; the limit is that of `ulimit -n 12`.
FULL = """\
error: Request failed after 3 retries in 6.9s
  cause: Failed to fetch: `http://127.0.0.1:9/simple/einops/`
  cause: error sending request for url (http://127.0.0.1:9/simple/einops/)
  cause: client error (Connect)
  cause: {cause}
"""


@pytest.mark.parametrize(
    ("cause", "says"),
    [
        ("Too many open files (os error 24)", "Too many open files; raise the limit of open files (ulimit -n)"),
        (
            "tcp connect error: Connection refused (os error 111)",
            "the package index at 127.0.0.1:9 cannot be reached; check the network, or set UV_DEFAULT_INDEX to a mirror",
        ),
    ],
)
def test_an_index_is_not_blamed_for_a_limit_of_this_machine(cause: str, says: str) -> None:
    assert uv._explain(FULL.format(cause=cause)) == says
