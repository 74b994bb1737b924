"""An audit as SARIF, which code scanning shows beside the lines that pin the packages.

See: https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html
"""

import json
from collections.abc import Mapping
from typing import Any

from smokehouse import __version__
from smokehouse.audits.result import Audit, Audited, Found

_LEVELS = {"critical": "error", "high": "error", "moderate": "warning", "unknown": "warning"}


def text(audit: Audit, lines: Mapping[str, Mapping[str, int]]) -> str:
    """Return an audit as SARIF 2.1.0; `lines` has the line of each package in each file that pins packages.

    What was decided about is a result with a suppression.
    """
    found = [(target, one) for target in audit.targets for one in target.found]
    rules = {one.id: one for _, one in sorted(found, key=lambda pair: pair[1].id, reverse=True)}
    names = sorted(rules)
    document = {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "smokehouse",
                        "semanticVersion": __version__,
                        "rules": [_rule(rules[name]) for name in names],
                    }
                },
                "results": [_result(target, one, names.index(one.id), lines) for target, one in found],
                "properties": {"database": audit.database, "asked": audit.asked},
            }
        ],
    }
    return json.dumps(document, indent=1) + "\n"


def _rule(one: Found) -> dict[str, Any]:
    return {
        "id": one.id,
        "shortDescription": {"text": one.summary or f"Known vulnerability {one.id}"},
        "properties": {"tags": ["security", "vulnerability"], "aliases": one.aliases},
    }


def _result(target: Audited, one: Found, rule: int, lines: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    remedy = f"fixed in {one.fixed}" if one.fixed else "no fixed version is known"
    found: dict[str, Any] = {
        "ruleId": one.id,
        "ruleIndex": rule,
        "level": _LEVELS.get(one.severity, "note"),
        "message": {"text": f"{target.title}: {one.package} {one.version} has {one.id} ({one.severity}); {remedy}"},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": target.file, "uriBaseId": "%SRCROOT%"},
                    "region": {"startLine": lines.get(target.file, {}).get(one.package, 1)},
                }
            }
        ],
        "partialFingerprints": {"package/v1": f"{target.name}:{one.purl}:{one.id}"},
    }
    if one.decided:
        reason = f"{one.decided.status} until {one.decided.expires}: {one.decided.reason}"
        found["suppressions"] = [{"kind": "external", "justification": reason}]
    return found
