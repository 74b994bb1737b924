"""The solvers behind a lock: uv for PyPI packages, py-rattler for conda packages. Slow to import, so imported when used."""

from smokehouse.errors import UserError


class UnsolvableError(UserError):
    """Requirements without a solution, or a package that cannot be locked; the message contains the packages' names."""
