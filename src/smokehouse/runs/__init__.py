"""Runs: start smoke tests, in an environment or in a container of an image, and read their reports.

    >>> from smokehouse import runs
    >>> report = runs.prove(checkout, "qwen2.5-vl:cu124-torch2.6.0-0123456789ab", folder)
    >>> report.refuse_other_image(digest, lock_digest)
    >>> report.summary

For the command line, `smoke` replaces this process with the smoke test, and `smoke_image` passes signals to its container;
`prove` waits for its report.
"""

from typing import TYPE_CHECKING

from smokehouse.lazy import names_of

if TYPE_CHECKING:
    from smokehouse.runs.container import prove, smoke_image, smoke_image_here
    from smokehouse.runs.here import smoke_here
    from smokehouse.runs.local import help_text, smoke
    from smokehouse.runs.options import pop_option, split_name
    from smokehouse.runs.report import Report, read_any
    from smokehouse.runs.targets import doctor as doctor_on
    from smokehouse.runs.targets import smoke as smoke_on

__all__ = [
    "Report",
    "doctor_on",
    "help_text",
    "pop_option",
    "prove",
    "read_any",
    "smoke",
    "smoke_here",
    "smoke_image",
    "smoke_image_here",
    "smoke_on",
    "split_name",
]

# The module of each name, imported when it is first used: pages read reports, and need neither installers nor an engine.
__getattr__ = names_of(
    __name__,
    {
        "Report": "report",
        "help_text": "local",
        "pop_option": "options",
        "prove": "container",
        "read_any": "report",
        "smoke": "local",
        "smoke_here": "here",
        "smoke_image": "container",
        "smoke_image_here": "container",
        "doctor_on": "targets:doctor",
        "smoke_on": "targets:smoke",
        "split_name": "options",
    },
)
