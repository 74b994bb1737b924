"""A real browser, and reports to open in it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from .devtools import Browser, find, start


@pytest.fixture(scope="session")
def browser(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Yield a browser with an empty profile, which may use the clipboard."""
    program, environ = find(root / "build" / "programs" / "browser")
    with start(program, environ, tmp_path_factory.mktemp("browser")) as browser:
        browser.call("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
        yield browser
