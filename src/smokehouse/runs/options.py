"""Tell apart what belongs to the builder and what to the smoke test in a command line."""

import re
from collections.abc import Sequence

from smokehouse.errors import UserError

# Every other option of a smoke test has one value.
# A family after --here is taken as the name.
FLAGS = ("-h", "--help", "--validate", "--all", "--here")
ENGINE_FLAGS = ("--dry-run", "--keep")  # of the engines that a smoke test can be handed to
# Options that leave out a part of a smoke test, and the values with which they do not.
_PARTIAL = {"--zero": ({"2", "3"},), "--only": (), "--skip": ()}
_MAX_NAME = 80  # characters


def split_name(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the environment's name in the arguments of a smoke test, None without one, and the options on both sides of it.

    Raises UserError where there are several names.
    """
    names: list[str] = []
    options: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        if not argument.startswith("-"):
            names.append(argument)
            continue
        options.append(argument)
        if argument not in (*FLAGS, *ENGINE_FLAGS) and "=" not in argument and (value := next(remaining, None)) is not None:
            options.append(value)
    if len(names) > 1:
        raise UserError(f"smoke: expected the name of one environment, found {', '.join(names)}; run it once for each")
    return names[0] if names else None, options


def report_name(name: str, options: Sequence[str]) -> str:
    """Return the name of the folder for the report of `name` run with `options`: NAME, or NAME-zero3 with `--zero 3`.

    A run of a part has its own, because its report must not replace that of a whole one.
    """
    parts = [name]
    for option, whole in _PARTIAL.items():
        _, value = pop_option(options, option, "a value")
        if value is not None and {*value.split(",")} not in whole:
            slug = re.sub(r"[^a-z0-9]+", "-", ",".join(dict.fromkeys(value.lower().split(",")))).strip("-")
            parts.append(f"{option[2:]}{slug}" if slug.isdecimal() else f"{option[2:]}-{slug}")
    return "-".join(parts)[:_MAX_NAME]


def pop_option(options: Sequence[str], name: str, value: str) -> tuple[list[str], str | None]:
    """Return `options` without the option `name`, and its value, None where it is not among them.

    `value` describes what the option requires. Raises UserError where it has no value.
    """
    rest: list[str] = []
    found = None
    remaining = iter(options)
    for option in remaining:
        if option.split("=")[0] != name:
            rest.append(option)
        elif not (found := option.removeprefix(name).removeprefix("=") or next(remaining, "")):
            raise UserError(f"{name} requires {value}")
    return rest, found
