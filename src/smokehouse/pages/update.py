"""Write the pages of all environments, or report which are out of date."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from smokehouse import locks
from smokehouse.checkout import Checkout
from smokehouse.console import as_typed, status
from smokehouse.errors import UserError
from smokehouse.pages import catalog, matrix
from smokehouse.pages import environment as page
from smokehouse.pages.markdown import between, code
from smokehouse.runs.complete import MAX_AGE, require_complete
from smokehouse.runs.report import Report
from smokehouse.storage import exclusive, files

_README = "README.md"
_PLACE = Path("docs", "environments")


def make(checkout: Checkout, names: Sequence[str], report: Path | None) -> int:
    """Write the pages of `names`, or all, and the README's generated parts; returns 0 or raises UserError.

    A `report` becomes the evidence of the one environment named. Pages without an environment are removed.
    """
    checkout.require_own("docs")
    checkout.build.mkdir(parents=True, exist_ok=True)
    with exclusive(checkout.build / ".docs.lock", "writing the pages"):  # each is made of what is on disk
        _make(checkout, names, report)
    return 0


def _make(checkout: Checkout, names: Sequence[str], report: Path | None) -> None:
    adopted: dict[str, Report] = {}
    if report:
        if len(names) != 1:
            raise UserError("--report: expected the name of one environment; add it")
        checkout.environment(names[0])
        adopted[names[0]] = catalog.read_report(checkout, names[0], report.absolute())
    shown = _documented(checkout, adopted)
    for name in adopted:
        if shown[name].evidence is None:
            raise UserError(
                f"{report}: expected a report of the lock in lockfiles/{name}, found one of another lock; "
                f"run {as_typed('smoke', name)}"
            )
    texts = _texts(checkout, shown, names)  # first, because a report that cannot be printed is not adopted
    for name, found in adopted.items():
        files.write(checkout.report(name), found.text)
    for path, text in texts.items():
        if _differs(path, text):
            files.write(path, text)
            print(f"{checkout.relative(path)}: written")
    for path, missing in _stale(checkout).items():
        path.unlink()
        print(f"{checkout.relative(path)}: removed, {missing} not found")


def require_proof(checkout: Checkout, name: str, path: Path) -> None:
    """Raise UserError where the report in the file `path` is not a complete and recent one of the lock of `name`."""
    checkout.environment(name)
    found = catalog.read_report(checkout, name, path.absolute())
    require_complete(checkout, found, locks.load(checkout, name), max_age=MAX_AGE)


def check(checkout: Checkout, names: Sequence[str]) -> int:
    """Print which pages of `names`, or of all, are out of date; returns 1 if one is, else 0."""
    texts = _texts(checkout, _documented(checkout, {}), names)
    problems = [f"{checkout.relative(path)}: out of date; run {as_typed('docs')}" for path, text in texts.items()
                if _differs(path, text)]  # fmt: skip
    problems += [f"{checkout.relative(path)}: {missing} not found; run {as_typed('docs')}"
                 for path, missing in _stale(checkout).items()]  # fmt: skip
    for problem in problems:
        status(problem)
    return 1 if problems else 0


def _documented(checkout: Checkout, adopted: dict[str, Report]) -> dict[str, page.Documented]:
    """Return what the pages are made of, by name."""
    return {name: catalog.read(checkout, name, adopted.get(name)) for name in checkout.own_environments()}


def _texts(checkout: Checkout, shown: dict[str, page.Documented], names: Sequence[str]) -> dict[Path, str]:
    """Return the expected text of each file: the pages of `names`, or all with those of matrices, and the README."""
    for name in names:
        _require_shown(checkout, shown, name)
    texts = {checkout.page(name): page.render(shown[name]) for name in names or shown}
    texts |= {} if names else matrix.texts(checkout)
    readme = checkout.root / _README
    if readme.exists() or not checkout.packaged:  # a folder with nothing but environments needs none
        texts[readme] = _readme(checkout, files.read(readme).decode(), shown)
    return texts


def _readme(checkout: Checkout, text: str, shown: dict[str, page.Documented]) -> str:
    """Return the README with its table of environments and each run that it shows, up to date."""
    parts = {"environments": page.overview(shown.values())}
    for name in re.findall(r"^<!-- run (\S+) -->$", text, re.MULTILINE):
        _require_shown(checkout, shown, name)
        found = shown[name].evidence
        parts[f"run {name}"] = code(found.table) if found else "(Not proven: no report of this lock.)\n"
    for marker, inner in parts.items():
        try:
            text = between(text, f"<!-- {marker} -->", f"<!-- /{marker} -->", inner)
        except ValueError as wrong:
            raise UserError(f"{_README}: {wrong}") from None
    return text


def _require_shown(checkout: Checkout, shown: Mapping[str, page.Documented], name: str) -> None:
    """Raise UserError where `name` is not an environment, or one whose page belongs to the installed package."""
    checkout.environment(name)
    if name not in shown:
        checkout.require_own(f"docs {name}", f"environments/{name}")


def _differs(path: Path, text: str) -> bool:
    return not path.is_file() or path.read_bytes() != text.encode()


def _stale(checkout: Checkout) -> dict[Path, str]:
    """Return the pages and reports that have no environment, and the pages that have no grid, with what each lacks."""
    known = checkout.own_environments()
    found = [*(checkout.root / _PLACE).glob("*.md"), *(checkout.root / _PLACE).glob("*.json")]
    stale = {path: "environment" for path in sorted(found) if path.stem not in known}
    return stale | dict.fromkeys(matrix.stale(checkout), "grid")
