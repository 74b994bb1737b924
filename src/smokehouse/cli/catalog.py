"""The verbs that say which environments there are, and what is in one."""

import json
from pathlib import Path
from typing import Any

from smokehouse import console
from smokehouse.checkout import Checkout
from smokehouse.cli.options import JsonOption, NameArgument
from smokehouse.errors import UserError


def list_environments(as_json: JsonOption = False) -> int:
    """List the environments: name, stack, CUDA, cut-off of its packages, and what it was proven on."""
    from smokehouse.pages import catalog

    checkout = Checkout.find(Path.cwd())
    rows: list[dict[str, Any]] = []
    for name in checkout.environments():
        try:
            rows.append(catalog.row(catalog.read(checkout, name)))
        except UserError as problem:  # one without a lock is listed, too, with what to do
            rows.append({"name": name, "problem": str(problem)})
    if as_json:
        print(json.dumps(rows, indent=1))
        return 0
    table = [("NAME", "STACK", "CUDA", "CUT-OFF", "PROVEN ON")]
    table += [_cells(row) for row in rows if "problem" not in row]
    widths = [max(len(cells[column]) for cells in table) for column in range(4)]
    for cells in table:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(cells, widths, strict=False)), cells[4]]))
    for row in rows:
        if "problem" in row:
            print(f"{row['name'].ljust(widths[0])}  {row['problem']}")
    return 0


def show(name: NameArgument, as_json: JsonOption = False) -> int:
    """Show what is in an environment, what it was proven on, and where its files are."""
    from smokehouse.installs import activation
    from smokehouse.pages import catalog

    checkout = Checkout.find(Path.cwd())
    checkout.environment(name)
    found = catalog.details(checkout, catalog.read(checkout, name))
    if as_json:
        print(json.dumps(found, indent=1))
        return 0
    counts = ", ".join(f"{len(found[kind])} {title}" for kind, title in _KINDS if found[kind])
    stack = ", ".join(f"{package} {version}" for package, version in found["stack"].items())
    lines = {
        "name": name,
        "model": f"{found['model']['class']} (family {found['model']['family']})",
        "stack": stack,
        "Python": f"{found['python']}, {found['platform']}",
        "CUDA": found["cuda"],
        "cut-off": found["cutoff"],
        "packages": f"{counts}; download {console.size(found['download_bytes'])}",
        "left out": ", ".join(found["left_out"]),
        "proven on": found["proven_on"] or "not proven",
        **{title: found["files"][key] for key, title in _FILES},
    }
    for title, text in lines.items():
        if text:
            print(f"{title:<13}{text}")
    if place := found["files"]["installation"]:
        current = "" if found["installation_current"] else f" (of an older lock; run {console.as_typed('smoke', name)})"
        print(f"{'installed in':<13}{place}{current}\n\n{activation.hint(Path(place), name)}")
    else:
        print(f"{'installed in':<13}not installed; run {console.as_typed('smoke', name)}")
    return 0


_KINDS = (("pypi", "PyPI packages"), ("conda", "conda packages"), ("devel", "conda packages with --devel"))
_FILES = (("definition", "definition"), ("lock", "lock"), ("page", "page"), ("evidence", "evidence"), ("report", "last report"))


def _cells(row: dict[str, Any]) -> tuple[str, str, str, str, str]:
    stack = ", ".join(f"{package} {version}" for package, version in row["stack"].items())
    return row["name"], stack, row["cuda"], row["cutoff"], row["proven_on"] or "not proven"
