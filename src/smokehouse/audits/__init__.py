"""Audits: which known vulnerabilities the packages of a lock have, and what was decided about each.

    >>> from smokehouse.audits import Database, audit_targets, read_decisions, targets
    >>> audit_targets(targets(checkout, ["qwen2.5-vl"]), Database.read(folder), read_decisions(checkout))

PyPI packages are matched with OSV records, the Debian packages of docker/base.lock with the records of Debian's security
tracker: `osv` and `debian_tracker` parse them, `database` reads them from a folder, `service` asks for them over the network.
`vex` has the decisions, `result` and `sarif` write what was found.
"""

from typing import TYPE_CHECKING

from smokehouse.lazy import names_of

if TYPE_CHECKING:
    from smokehouse.audits.audit import audit_targets, targets
    from smokehouse.audits.database import Database
    from smokehouse.audits.result import Audit
    from smokehouse.audits.vex import read_decisions

__all__ = ["Audit", "Database", "audit_targets", "read_decisions", "targets"]

# The module of each name, imported when it is first used: pydantic and requests would slow every command down.
__getattr__ = names_of(
    __name__,
    {
        "Audit": "result",
        "Database": "database",
        "audit_targets": "audit",
        "read_decisions": "vex",
        "targets": "audit",
    },
)
