"""Write the pages of all environments, or report which are out of date."""

import re
from collections.abc import Sequence
from pathlib import Path

from smokehouse import environments
from smokehouse.checkout import Checkout
from smokehouse.console import status
from smokehouse.errors import UserError
from smokehouse.locks import LockFiles
from smokehouse.locks.check import read_lock
from smokehouse.pages import environment as page
from smokehouse.pages.markdown import between, code
from smokehouse.runs import report as reports
from smokehouse.runs.report import Report
from smokehouse.storage import files

_README = "README.md"
_PLACE = Path("docs", "environments")


def make(checkout: Checkout, names: Sequence[str], report: Path | None) -> int:
    """Write the pages of `names`, or all, and the README's generated parts; returns 0 or raises UserError.

    A `report` becomes the evidence of the one environment named. Pages without an environment are removed.
    """
    adopted: dict[str, Report] = {}
    if report:
        if len(names) != 1:
            raise UserError("--report: expected the name of one environment; add it")
        checkout.environment(names[0])
        adopted[names[0]] = _read_report(checkout, names[0], report.absolute())
    shown = _documented(checkout, adopted)
    for name in adopted:
        if shown[name].evidence is None:
            raise UserError(
                f"{report}: expected a report of the lock in lockfiles/{name}, found one of another lock; "
                f"run nox -s smoke -- {name}"
            )
    texts = _texts(checkout, shown, names)  # first, because a report that cannot be printed is not adopted
    for name, found in adopted.items():
        files.write(_report(checkout, name), found.text)
    for path, text in texts.items():
        if _differs(path, text):
            files.write(path, text)
            print(f"{checkout.relative(path)}: written")
    for path in _stale(checkout):
        path.unlink()
        print(f"{checkout.relative(path)}: removed, environment not found")
    return 0


def check(checkout: Checkout, names: Sequence[str]) -> int:
    """Print which pages of `names`, or of all, are out of date; returns 1 if one is, else 0."""
    texts = _texts(checkout, _documented(checkout, {}), names)
    problems = [f"{checkout.relative(path)}: out of date; run nox -s docs" for path, text in texts.items()
                if _differs(path, text)]  # fmt: skip
    problems += [f"{checkout.relative(path)}: environment not found; run nox -s docs" for path in _stale(checkout)]
    for problem in problems:
        status(problem)
    return 1 if problems else 0


def _report(checkout: Checkout, name: str) -> Path:
    return checkout.root / _PLACE / f"{name}.json"


def _read_report(checkout: Checkout, name: str, path: Path) -> Report:
    return reports.read(checkout, path, name, f"run nox -s smoke -- {name} and pass its report.json with --report")


def _documented(checkout: Checkout, adopted: dict[str, Report]) -> dict[str, page.Documented]:
    """Return what the pages are made of, by name."""
    shown = {}
    for name in checkout.environments():
        lock_files = LockFiles.of(checkout, name)
        lock = read_lock(lock_files)
        report = _report(checkout, name)
        found = adopted.get(name) or (_read_report(checkout, name, report) if report.exists() else None)
        proves = found and found.proves(lock, files.hashed(lock_files.lock_json))
        shown[name] = page.Documented(environments.read(checkout, name), lock, found if proves else None)
    return shown


def _texts(checkout: Checkout, shown: dict[str, page.Documented], names: Sequence[str]) -> dict[Path, str]:
    """Return the expected text of each file: the pages of `names`, or all, and the README."""
    for name in names:
        checkout.environment(name)
    texts = {checkout.root / _PLACE / f"{name}.md": page.render(shown[name]) for name in names or shown}
    readme = checkout.root / _README
    texts[readme] = _readme(checkout, readme.read_text("utf-8"), shown)
    return texts


def _readme(checkout: Checkout, text: str, shown: dict[str, page.Documented]) -> str:
    """Return the README with its table of environments and each run that it shows, up to date."""
    parts = {"environments": page.overview(shown.values())}
    for name in re.findall(r"^<!-- run (\S+) -->$", text, re.MULTILINE):
        checkout.environment(name)
        found = shown[name].evidence
        parts[f"run {name}"] = code(found.table) if found else "(Not proven: no report of this lock.)\n"
    for marker, inner in parts.items():
        try:
            text = between(text, f"<!-- {marker} -->", f"<!-- /{marker} -->", inner)
        except ValueError as wrong:
            raise UserError(f"{_README}: {wrong}") from None
    return text


def _differs(path: Path, text: str) -> bool:
    return not path.is_file() or path.read_bytes() != text.encode()


def _stale(checkout: Checkout) -> list[Path]:
    """Return the pages and reports that have no environment."""
    known = checkout.environments()
    found = [*(checkout.root / _PLACE).glob("*.md"), *(checkout.root / _PLACE).glob("*.json")]
    return sorted(path for path in found if path.stem not in known)
