"""The checks and controls as a plan refers to them: by module and name, imported when they run.

    from smoke_tests.deferred import loading  # stands for smoke_tests.checks.loading

So a plan can be made without torch, by whoever asks what a complete report has.
"""

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Deferred:
    """A function, such as a check, by the name of its module and its own; it is called like the function."""

    module: str
    name: str

    @property
    def function(self) -> Any:
        """The function itself; imports its module."""
        return getattr(importlib.import_module(self.module), self.name)

    def __call__(self, *arguments: Any) -> Any:
        """Call the function; imports its module."""
        return self.function(*arguments)


class _Module:
    """A module whose functions are deferred."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Deferred:
        if name.startswith("_"):
            raise AttributeError(name)
        return Deferred(self._name, name)


def import_all(checks: Iterable[Any]) -> None:
    """Import the modules of `checks` that are deferred, so that ranks which are forked have them."""
    for name in dict.fromkeys(check.module for check in checks if isinstance(check, Deferred)):
        importlib.import_module(name)


def docstring(check: Any) -> str:
    """Return the docstring of a check, deferred or not; empty without one."""
    function = check.function if isinstance(check, Deferred) else check
    return function.__doc__ or ""


def __getattr__(name: str) -> _Module:
    """Return the module of checks or controls called `name`, not imported."""
    for package in ("checks", "controls"):
        if (Path(__file__).parent / package / f"{name}.py").is_file():
            return _Module(f"{__package__}.{package}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
