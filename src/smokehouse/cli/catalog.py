"""The verbs that say which environments there are, and what is in one."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from smokehouse import console
from smokehouse.checkout import Checkout
from smokehouse.cli.options import DevelOption, JsonOption, NameArgument
from smokehouse.errors import UserError

if TYPE_CHECKING:
    from smokehouse.locks import LockedEnvironment


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
        "also locked": ", ".join(f"{platform} (never installed or run)" for platform in found["also_locked_for"]),
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


def sbom(
    name: NameArgument,
    *,
    kind: Annotated[
        Literal["spdx", "cyclonedx"], typer.Option("--format", help="SPDX 2.3 or CycloneDX 1.6, as JSON.")
    ] = "spdx",
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="File to write.  [default: standard output]")] = None,
    devel: DevelOption = False,
    bundle: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Bundle whose wheels state licences.  [default: the environment that smoke installed]"
        ),
    ] = None,
) -> int:
    """Print the software bill of materials of an environment's lock: each package with its hash, and its licence if known."""
    from smokehouse import locks
    from smokehouse.images import components
    from smokehouse.images import sbom as documents
    from smokehouse.storage import files

    checkout = Checkout.find(Path.cwd())
    locked = locks.load(checkout, name)
    conda = locked.lock.conda if devel else locked.lock.main
    licences = _licences(checkout, locked, bundle)
    contained = components.components(locked.lock, conda, (), licences)
    write = documents.cyclonedx if kind == "cyclonedx" else documents.spdx
    text = write(locked.lock, contained, components.dependencies(locked))
    if output:
        files.write(output, text)
    else:
        print(text, end="")
    if unknown := [component for component in contained if not component.licence]:
        run = console.as_typed("smoke", name)
        why = "their metadata state none" if licences else f"wheels state theirs: give --bundle DIR, or run {run} first"
        console.status(f"{name}: licence unknown of {len(unknown)} of {len(contained)} packages ({unknown[0].name}, …); {why}")
    return 0


def _licences(checkout: Checkout, locked: "LockedEnvironment", folder: Path | None) -> dict[str, str]:
    """Return what the wheels in a bundle, or the installed packages, state as their licences, by file name."""
    from smokehouse.images import components
    from smokehouse.installs import activation
    from smokehouse.installs import bundle as bundles

    if folder:
        return components.licences(bundles.read(folder, locked).wheels, locked.lock.pip)
    installed = activation.find(checkout, locked)
    return components.installed_licences(installed.folder, locked.lock.pip) if installed else {}


_KINDS = (("pypi", "PyPI packages"), ("conda", "conda packages"), ("devel", "conda packages with --devel"))
_FILES = (
    ("definition", "definition"),
    ("inherited", "inherited"),
    ("lock", "lock"),
    ("page", "page"),
    ("evidence", "evidence"),
    ("report", "last report"),
)


def _cells(row: dict[str, Any]) -> tuple[str, str, str, str, str]:
    stack = ", ".join(f"{package} {version}" for package, version in row["stack"].items())
    return row["name"], stack, row["cuda"], row["cutoff"], row["proven_on"] or "not proven"
