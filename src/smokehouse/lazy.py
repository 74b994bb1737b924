"""Packages whose names are imported when they are first used, so that no command waits for libraries that it does not need."""

from collections.abc import Callable, Mapping
from importlib import import_module


def names_of(package: str, modules: Mapping[str, str]) -> Callable[[str], object]:
    """Return the `__getattr__` of `package` whose names are in `modules`: by name the module, or `module:name` for another.

    See: https://peps.python.org/pep-0562/
    """

    def find(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, other = modules[name].partition(":")
        return getattr(import_module(f"{package}.{module}"), other or name)

    return find
