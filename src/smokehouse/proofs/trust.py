"""Decide what the statements that are attached to an image prove to those who trust a signer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from smokehouse.checkout import Checkout
from smokehouse.errors import UserError
from smokehouse.locks import LockedEnvironment
from smokehouse.proofs import attestation
from smokehouse.proofs.attestation import TrustedStatement
from smokehouse.proofs.signing import ForeignError, Requirements, SignedStatement, Signer
from smokehouse.runs.report import Report

_MOST = 100  # statements whose signature is verified, each by a program that takes about 0.1 s


@dataclass(frozen=True)
class Proof:
    """What statements prove, as a sentence; whether that is `valid`, None where no signer was specified; and the report."""

    text: str
    valid: bool | None
    report: Mapping[str, Any] | None = None


def judge(
    checkout: Checkout, locked: LockedEnvironment, digest: str, statements: Sequence[SignedStatement], signer: Signer | None
) -> Proof:
    """Return what the newest statement by `signer` proves of the image `digest`.

    Newest is what it says itself: the registry that lists statements is not trusted, and may give them in any order.
    """
    if not statements:
        return Proof("nothing: no statement is attached to this image", False if signer else None)
    if not signer:
        count = f"{len(statements)} signed statements are attached"
        return Proof(f"not verified: {count}; specify a trusted key with --key FILE", None)
    try:
        newest = _newest(digest, statements, signer)
        started = newest[0].started
        report = [statement.check(checkout, locked) for statement in newest][-1]  # of several, each has to be a proof
        _require(signer.requirements, report, started, digest)
    except UserError as refused:
        return Proof(f"nothing: {refused}", False)
    days = (datetime.now(UTC) - started).days
    age = "today" if not days else "yesterday" if days == 1 else f"{days} days ago"
    return Proof(f"{report.summary}, {age}", True, report.fields)


def _newest(digest: str, statements: Sequence[SignedStatement], signer: Signer) -> list[TrustedStatement]:
    """Return the newest statements by `signer`, which began at the same time; raises UserError where there are none.

    They are verified from the newest on, as they say themselves, until one is by `signer`: none that is left can be newer, and
    none is passed over. Whoever can write to the registry can attach any number.
    """
    refusals: list[str] = []
    claimed: list[tuple[datetime, SignedStatement]] = []
    for signed in dict.fromkeys(statements):
        try:
            if started := attestation.claimed_start(signed, digest):
                claimed.append((started, signed))
        except ForeignError as foreign:
            refusals.append(str(foreign))
    claimed.sort(key=lambda one: one[0], reverse=True)
    trusted: list[TrustedStatement] = []
    for number, (started, signed) in enumerate(claimed):
        if trusted and started < trusted[0].started:
            break
        if number == _MOST:
            raise UserError(
                f"{digest}: expected the newest statement by {signer} among {_MOST}, found {len(claimed)} of which more say "
                "that they are as new; remove those of others from the registry, or verify another copy of the image"
            )
        try:
            if found := attestation.open_statement(signed, signer, digest):
                trusted.append(found)
        except ForeignError as foreign:
            refusals.append(str(foreign))
    if not trusted:
        raise UserError(refusals[0] if refusals else "no statement of a smoke test is attached")
    return trusted


def _require(requirements: Requirements, report: Report, started: datetime, digest: str) -> None:
    """Raise UserError where a report does not show what is required of it."""
    if requirements.gpu and not report.on_gpu:
        raise UserError(f"{digest}: expected a run on GPUs with NCCL, found one on {report.where}; prove it on GPUs")
    age = datetime.now(UTC) - started
    if requirements.max_days is not None and age > timedelta(days=requirements.max_days):
        limit = f"{requirements.max_days} days"
        raise UserError(f"{digest}: expected a run of at most {limit} ago, found one of {age.days} days ago; prove it again")
