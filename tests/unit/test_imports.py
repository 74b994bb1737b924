"""Who may import whom: the floors of the builder, the walls between builder, loader and smoke tests (docs/architecture.md)."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

# From the top. A package imports only packages of floors below its own.
FLOORS = (
    {"cli"},
    {"proofs", "pages"},
    {"audits", "matrix"},
    {"images", "runs"},
    {"installs"},
    {"locks"},
    {"oci", "environments"},
    {"storage", "programs", "checkout"},
    {"clock", "console", "errors", "lazy"},
)
# The package's own door, which has nothing but the call of `cli.main`.
DOORS = {"__init__", "__main__"}


def imports(file: Path, package: str) -> Iterator[str]:
    """Every module that a file imports, at its top or later, with its line; relative imports are of `package`."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield f"{package}.{node.module or ''}"
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_package_has_a_floor(root: Path) -> None:
    source = root / "src" / "smokehouse"
    found = {path.stem for path in source.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert found - DOORS == set().union(*FLOORS)


def test_no_package_imports_one_above_or_beside_it(root: Path) -> None:
    source = root / "src" / "smokehouse"
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    wrong = []
    for file in sorted(source.rglob("*.py")):
        own = file.relative_to(source).parts[0].removesuffix(".py")
        if own in DOORS:
            continue
        for name in imports(file, "smokehouse"):
            top, _, rest = name.partition(".")
            other = rest.partition(".")[0]
            if top == "smokehouse" and other not in (own, "__version__") and floor.get(other, -1) <= floor[own]:
                wrong.append(f"{file.relative_to(source)} imports {name}")
    assert not wrong


def test_modules_of_a_package_form_no_circle(root: Path) -> None:
    source = root / "src" / "smokehouse"
    modules = {".".join(file.relative_to(source.parent).with_suffix("").parts): file for file in source.rglob("*.py")}
    edges = {
        module: {
            next((name for name in (found, found.rpartition(".")[0]) if name in modules), "")
            for found in imports(file, "smokehouse")
        }
        - {"", module}
        for module, file in modules.items()
    }
    left = dict(edges)
    while free := [module for module, needs in left.items() if not needs & left.keys()]:
        for module in free:
            del left[module]
    assert not left


@pytest.mark.parametrize(
    ("place", "foreign"),
    [
        ("src/smokehouse", {"torch", "transformers", "deepspeed", "smoke_tests", "smokehouse_loader"}),
        ("src/smokehouse_loader", {"smokehouse", "smoke_tests"}),
        ("smoke_tests", {"smokehouse"}),
        ("docker", {"smokehouse", "smoke_tests", "smokehouse_loader"}),
    ],
)
def test_walls_between_builder_loader_and_smoke_tests(root: Path, place: str, foreign: set[str]) -> None:
    found = {
        f"{file.relative_to(root)} imports {name}"
        for file in (root / place).rglob("*.py")
        for name in imports(file, place.rpartition("/")[2])
        if name.partition(".")[0] in foreign
    }
    assert not found
