"""report.html: a report as one page, which loads nothing from elsewhere and trusts no text in the report.

`page.html` is the template. The page's policy allows the template's own style and script, by their hashes, and nothing else.
"""

import base64
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any, Protocol, TypeVar

SYMBOLS = {"passed": "ok", "failed": "FAIL", "known-issue": "known", "observed": "obs"}
_SIGNS = {"passed": "✔", "failed": "✘", "known-issue": "▲", "observed": "●"}
_TEMPLATE = Path(__file__).with_name("page.html")
# Of ranks that fared alike in a check the page and junit.xml list so many; nobody reads thousands, and report.json has all.
MOST_ALIKE = 64
_MOST_RANGES = 8
_CORE = ("torch", "transformers", "deepspeed")
# Fields of a report that have a place of their own; all others are facts of the run.
_ELSEWHERE = {"checks", "versions", "machine", "lock", "not_run", "verdict", "failure", "partial", "installed", "added"}
_KINDS = {
    "check": ("Checks", "What was verified on every rank."),
    "control": ("Controls", "Failures injected on purpose: ok means that the failure was detected."),
}


def unreached(details: Iterable[str]) -> bool:
    """Return whether a check whose ranks gave these details was never run, because the run ended before."""
    return all(detail.startswith("not reached") for detail in details)


def printable(text: str) -> str:
    """Leave out colours, and replace control characters, which XML 1.0 does not allow, and which a terminal would obey."""
    if text.isprintable():
        return text
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in plain)


def where(document: Mapping[str, Any]) -> str:
    """Return the device, precision, and the backend and ranks of each leg of a report."""
    legs = document.get("legs", [])
    if len(legs) < 2:
        ranks = _ranks_in_words(document["world_size"])
        over = f" on {len(document['nodes'])} nodes" if "nodes" in document else ""
        return f"{document['device']}, {document['backend']}, {document['precision']}, {ranks}{over}"
    return f"{document['device']}, {document['precision']}, {' and '.join(map(leg_in_words, legs))}"


def leg_in_words(leg: Mapping[str, Any]) -> str:
    """Return a leg in words; ranks that share a GPU are named as such."""
    ranks, gpus = leg["world_size"], leg["gpus"]
    shared = f" on {gpus} GPU{'s' if gpus > 1 else ''}" if 0 < gpus < ranks else ""
    return f"{leg['backend']} with {_ranks_in_words(ranks)}{shared}"


def _ranks_in_words(ranks: int) -> str:
    return f"{ranks} rank{'s' if ranks != 1 else ''}"


def columns(places: Iterable[tuple[str, int | None]]) -> list[tuple[str, int]]:
    """Return the columns of a table, each a leg and a ZeRO stage: legs as they come, stages in order."""
    order = list(dict.fromkeys(leg for leg, _ in places))
    return sorted({(leg, stage) for leg, stage in places if stage}, key=lambda place: (order.index(place[0]), place[1]))


def render(document: Mapping[str, Any], table: str, logs: Mapping[str, str]) -> str:
    """Return the page of a report: `table` are its verdicts as text, `logs` name -> text.

    `document` is the parsed report.json, in which a check may have only some ranks, and what to say of the others as `more`.
    """
    template = _TEMPLATE.read_text("utf-8")
    checks = document["checks"]
    others = {name: value for name, value in document.items() if name not in _ELSEWHERE}
    kinds = dict.fromkeys([*_KINDS, *(check["kind"] for check in checks)])
    sections = [
        *_failures([check for check in checks if check["verdict"] == "failed"], logs),
        *(part for kind in kinds for part in _table(kind, [check for check in checks if check["kind"] == kind])),
        *_not_run(document["not_run"]),
        *_facts("Run", {name: value for name, value in others.items() if not _is_nested(value)}),
        *_facts("Hardware", document["machine"]),
        *(part for name, value in others.items() if _is_nested(value) for part in _facts(_words(name).capitalize(), value)),
        *_facts("Versions", document["versions"]),
        *_facts("Lock", document["lock"] or {}, "SHA-256 of each file of the lock that was proven."),
        *_facts("Installed", document.get("installed") or {}, "Every distribution that imports can find."),
    ]
    return Template(template).substitute(
        policy=_policy(template),
        title=_text(f"{document['verdict'].upper()} {document['environment']} - Smokehouse"),
        verdict=_text(document["verdict"]),
        symbol=_text(document["verdict"].upper()),
        environment=_text(document["environment"]),
        summary=_text(_summary(document)),
        notices="\n".join(_notices(document)),
        sections="\n".join(sections),
        markdown=_text(_markdown(document, table)),
    )


def _text(text: object) -> str:
    return escape(printable(str(text)))


def _policy(template: str) -> str:
    """Return the content security policy: the style and the script of the template, and nothing from anywhere."""

    def source(tag: str) -> str:
        inner = re.findall(rf"<{tag}>(.*?)</{tag}>", template, re.DOTALL)[0]
        return f"'sha256-{base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()}'"

    own = f"style-src {source('style')}; script-src {source('script')}; img-src data:"
    return f"default-src 'none'; {own}; base-uri 'none'; form-action 'none'"


def _summary(document: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {document['versions'][name]}" for name in _CORE if document["versions"].get(name))
    counts = [f"{sum(c['kind'] == kind for c in document['checks'])} {title.lower()}" for kind, (title, _) in _KINDS.items()]
    stack = f"{versions} on " if versions else ""
    return f"{stack}{where(document)}; {' and '.join(counts)} in {document['seconds']:.1f} s, {document['started']}"


def _notices(document: Mapping[str, Any]) -> Iterator[str]:
    if document["failure"]:
        yield f'<p class="notice failed"><strong>The run ended early:</strong> {_text(document["failure"])}</p>'
    if without := _no_lock(document):
        yield f'<p class="notice"><strong>No lock:</strong> {_text(without)}.</p>'
    if added := document.get("added"):
        packages = ", ".join(f"{one['name']} {one['version']} by {one['by']}" for one in added)
        yield f'<p class="notice"><strong>Beside the lock:</strong> {_text(packages)}.</p>'
    if document.get("partial"):
        part = _text(document["partial"])
        yield f'<p class="notice"><strong>Partial run</strong> with {part}: what it left out is not proven.</p>'


def _no_lock(document: Mapping[str, Any]) -> str:
    """Return that a run proved no lock, and what it was about instead; empty where it proved one."""
    if document["lock"] is not None:
        return ""
    return f"this is about {document['installed']['prefix']} as it was then, not about what can be installed again"


def _stage(check: Mapping[str, Any]) -> str:
    return " ".join(filter(None, [f"ZeRO-{check['zero_stage']}" if check["zero_stage"] else "", check.get("leg")]))


def _failures(failed: Sequence[Mapping[str, Any]], logs: Mapping[str, str]) -> Iterator[str]:
    ran = [check for check in failed if not unreached(rank["detail"] for rank in check["ranks"])]
    if not ran and not logs:
        return
    yield "<section>\n<h2>Failures</h2>"
    for check in ran:
        stage = f", {_stage(check)}" if _stage(check) else ""
        yield f"<h3>{_text(check['name'])} ({_text(check['kind'])}{stage})</h3>"
        yield from _ranks([check])
        yield from _diagnosis(check)
    for name, text in logs.items():
        yield f"<details open><summary>Log {_text(name)}</summary>\n<pre>{_text(text)}</pre></details>"
    yield "</section>"


class Rank(Protocol):
    """One rank's verdict on one check."""

    @property
    def rank(self) -> int:
        """Its number."""

    @property
    def verdict(self) -> str:
        """Its verdict."""

    @property
    def detail(self) -> str:
        """What it said."""


R = TypeVar("R", bound=Rank)


def told(ranks: Sequence[R]) -> tuple[list[R], list[str]]:
    """Return the ranks of a check that pages show, and what to say of the others; report.json has all.

    Of those that passed, and of those that failed with the same text but for its numbers, the first are shown.
    """
    groups: dict[tuple[str, str], list[R]] = {}
    shapes: dict[str, str] = {}
    for rank in ranks:
        detail = "" if rank.verdict == "passed" else rank.detail
        shape = shapes.get(detail)
        if shape is None:
            shape = shapes[detail] = re.sub("[0-9]+", "0", detail)
        groups.setdefault((rank.verdict, shape), []).append(rank)
    left = [(verdict, group) for (verdict, _), group in groups.items() if len(group) > MOST_ALIKE]
    if not left:
        return [*ranks], []
    shown = sorted((rank for group in groups.values() for rank in group[:MOST_ALIKE]), key=lambda rank: rank.rank)
    shown.sort(key=lambda rank: rank.verdict == "passed")
    left.sort(key=lambda each: each[0] == "passed")
    return shown, [_more(verdict, group) for verdict, group in left]


def _more(verdict: str, group: Sequence[Rank]) -> str:
    """Return what to say of the ranks of a group that are not shown."""
    more = [rank.rank for rank in group[MOST_ALIKE:]]
    if verdict == "passed":
        return f"{len(more)} more ranks passed; see report.json"
    ranges: list[list[int]] = []
    for number in more:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    places = [str(first) if first == last else f"{first}-{last}" for first, last in ranges[:_MOST_RANGES]]
    places += ["…"] * (len(ranges) > _MOST_RANGES)
    said = f"{SYMBOLS.get(verdict, verdict)}: as rank {group[0].rank}"
    return f"{len(more)} more ranks ({', '.join(places)}): {said}; see report.json"


def _ranks(checks: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    yield "<ul>"
    for check in checks:
        for rank in check["ranks"]:
            node = f"node {rank['node']}" if "node" in rank else ""
            where = ", ".join(filter(None, [_stage(check), node, f"rank {rank['rank']}"]))
            yield f"<li>{_text(where)}: {_text(SYMBOLS.get(rank['verdict'], rank['verdict']))}: {_text(rank['detail'])}</li>"
        yield from (f"<li>{_text(_stage(check))} {_text(more)}</li>" for more in check.get("more", ()))
    yield "</ul>"


def _diagnosis(check: Mapping[str, Any]) -> Iterator[str]:
    if check.get("diagnosis"):
        yield f'<p class="notice">{_text(check["diagnosis"])}</p>'


def _table(kind: str, checks: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the table of one kind of checks: a body per check with its verdicts by stage, and all ranks' details."""
    if not checks:
        return
    title, caption = _KINDS.get(kind, (kind.capitalize(), ""))
    places = columns([(check.get("leg", ""), check["zero_stage"]) for check in checks])
    heads = [f"ZeRO-{stage} {leg}".rstrip() for leg, stage in places] or ["Verdict"]
    yield f"<section>\n<h2>{_text(title)}</h2>\n<table>\n<caption>{_text(caption)}</caption>\n<thead><tr>"
    yield f'<th scope="col">{_text(kind.capitalize())}</th>'
    yield from (f'<th scope="col">{_text(head)}</th>' for head in heads)
    yield "</tr></thead>"
    for name in dict.fromkeys(check["name"] for check in checks):
        yield from _body([check for check in checks if check["name"] == name], places)
    yield "</table>\n</section>"


def _body(checks: Sequence[Mapping[str, Any]], places: Sequence[tuple[str, int]]) -> Iterator[str]:
    """Yield what the table shows of one check or control in its legs and stages."""
    verdict = _worst(checks)["verdict"]
    proves = next((check["proves"] for check in checks if check.get("proves")), "")
    yield f'<tbody class="{verdict}">\n<tr><th scope="row">{_text(checks[0]["name"])}'
    yield f'<p class="proves">{_text(proves)}</p></th>' if proves else "</th>"
    if once := [check for check in checks if check["zero_stage"] is None]:
        yield _cell(_worst(once), max(1, len(places)))
    else:
        of_place = {(check.get("leg", ""), check["zero_stage"]): check for check in checks}
        yield from (_cell(of_place.get(place), 1) for place in places)
    opened = "" if verdict == "passed" else " open"
    yield f'</tr>\n<tr class="more"><td colspan="{1 + max(1, len(places))}"><details{opened}>'
    yield f'<summary>Details<span class="hidden"> of {_text(checks[0]["name"])}</span></summary>'
    yield from _ranks(checks)
    for check in {check.get("diagnosis"): check for check in checks}.values():
        yield from _diagnosis(check)
    slowest = ", ".join(f"{_stage(check) or 'all'} {check['seconds']:.2f} s" for check in checks)
    yield f'<p class="muted">Slowest rank: {_text(slowest)}</p></details></td></tr>\n</tbody>'


def _worst(checks: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the check that decides: one that failed, else a known issue, else the first."""
    return next((c for verdict in ("failed", "observed", "known-issue") for c in checks if c["verdict"] == verdict), checks[0])


def _cell(check: Mapping[str, Any] | None, span: int) -> str:
    spanned = f' colspan="{span}"' if span > 1 else ""
    if check is None:
        return f'<td{spanned}>-<span class="hidden"> not part of this stage</span></td>'
    verdict, said = check["verdict"], SYMBOLS.get(check["verdict"], check["verdict"])
    if unreached(rank["detail"] for rank in check["ranks"]):
        said = "not run"
    sign = f'<span aria-hidden="true">{_SIGNS.get(verdict, "?")}</span>'
    return f'<td{spanned} class="{_text(verdict)}"><span class="mark">{sign} {_text(said)}</span></td>'


def _not_run(entries: Sequence[Mapping[str, str]]) -> Iterator[str]:
    if entries:
        yield "<section>\n<h2>Not run</h2>\n<p>What this device and stack cannot show.</p>\n<ul>"
        yield from (f"<li>{_text(entry['name'])}: {_text(entry['reason'])}</li>" for entry in entries)
        yield "</ul>\n</section>"


def _facts(title: str, facts: object, caption: str = "") -> Iterator[str]:
    rows = [*_flat(facts)]
    if rows:
        yield f'<section>\n<h2>{_text(title)}</h2>\n<table class="facts">'
        yield f"<caption>{_text(caption)}</caption>\n<tbody>" if caption else "<tbody>"
        yield from (f'<tr><th scope="row">{_text(name)}</th><td>{_text(value)}</td></tr>' for name, value in rows)
        yield "</tbody>\n</table>\n</section>"


def _is_nested(value: object) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list) and any(isinstance(inner, Mapping | list) for inner in value))


def _words(name: str) -> str:
    """Return the name of a field as words. Names of files and packages stay as they are."""
    return name.replace("_", " ") if re.fullmatch(r"[a-z][a-z0-9_]*", name) else name


def _flat(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield name and text of each fact in nested mappings and lists, however deep; an element of a list is one fact."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name} {_words(str(key))}".strip())
    elif isinstance(value, list):
        if not _is_nested(value):
            yield name, ", ".join(map(str, value)) or "none"
        else:
            for number, inner in enumerate(value):
                yield f"{name} {number}".strip(), ", ".join(" ".join(part).strip() for part in _flat(inner))
    elif name.endswith(" bytes") and isinstance(value, int):
        yield name.removesuffix(" bytes"), f"{value / 2**30:.1f} GiB"
    else:
        yield name, "none" if value is None else str(value)


def _markdown(document: Mapping[str, Any], table: str) -> str:
    """Return the report for an issue: literal text in a fence that nothing in it can close."""
    details = [
        " ".join(filter(None, ["failed:", check["name"], _stage(check), check["detail"], check.get("diagnosis")]))
        for check in document["checks"]
        if check["verdict"] == "failed" and not unreached(rank["detail"] for rank in check["ranks"])
    ]
    shown = [document.get(title) or {} for title in ("machine", "gpu", "versions", "lock")]
    facts = [f"{name}: {value}" for each in shown for name, value in _flat(each)]
    ended = [f"failure: {document['failure']}"] if document["failure"] else []
    ended += [f"no lock: {without}"] if (without := _no_lock(document)) else []
    lines = printable("\n".join([table, "", *ended, *details, *facts, f"started: {document['started']}"]))
    fence = "`" * (1 + max([2, *(len(run) for run in re.findall("`+", lines))]))
    return f"### Smokehouse: smoke test {document['verdict']}\n\n{fence}text\n{lines}\n{fence}\n"
