"""Tell apart what belongs to the builder and what to the smoke test in a command line."""

from collections.abc import Sequence

from smokehouse.errors import UserError

# Every other option of a smoke test has one value.
# A family after --here is taken as the name.
FLAGS = ("-h", "--help", "--validate", "--here")


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
        if argument not in FLAGS and "=" not in argument and (value := next(remaining, None)) is not None:
            options.append(value)
    if len(names) > 1:
        raise UserError(f"smoke: expected the name of one environment, found {', '.join(names)}; run it once for each")
    return names[0] if names else None, options


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
