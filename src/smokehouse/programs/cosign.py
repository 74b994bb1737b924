"""cosign 3, which signs and verifies statements; tried with 3.1.1.

See: https://docs.sigstore.dev/cosign/verifying/attestation/
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from smokehouse.errors import UserError
from smokehouse.programs.process import Ended, run

_DEADLINE = 300.0  # seconds; a keyless signature takes requests to three services
# What `cosign signing-config create` writes without options: neither a transparency log nor a time-stamp authority.
NO_SERVICES = {"mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json", "rekorTlogConfig": {}, "tsaConfig": {}}


class CosignError(Exception):
    """A failure of cosign; its text is the reason that cosign gave, in one line."""


def attest(statement: bytes, key: Path | None) -> bytes:
    """Sign an in-toto statement and return the Sigstore bundle, which has both.

    It is signed with the private key in the file `key`, without one as the identity that cosign finds. The password of a key
    is COSIGN_PASSWORD. Raises CosignError, and UserError where cosign is not installed or too old.
    """
    with tempfile.TemporaryDirectory() as folder:
        signed, bundle, services = (Path(folder, name) for name in ("statement.json", "bundle.json", "services.json"))
        signed.write_bytes(statement)
        command = ["attest-blob", "--yes", "--statement", str(signed), "--bundle", str(bundle)]
        if key:
            # With a key there is no need to publish what was signed, and without a network no way to.
            services.write_text(json.dumps(NO_SERVICES))
            command += ["--key", str(key.absolute()), "--signing-config", str(services)]
        _check(_run(command))
        if not bundle.is_file():
            raise CosignError("cosign wrote no bundle")
        return bundle.read_bytes()


def verify_attestation(bundle: bytes, digest: str, predicate_type: str, trusted: Sequence[str]) -> None:
    """Verify that the statement in a Sigstore bundle is signed as `trusted` says, for the SHA-256 `digest` in hex.

    `trusted` is the result of `trust_key` or `trust_identity`. Raises CosignError, and UserError where cosign is not installed
    or too old.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "bundle.json")
        file.write_bytes(bundle)
        subject = ["--digest", digest, "--digestAlg", "sha256", "--type", predicate_type]
        ended = _run(["verify-blob-attestation", "--bundle", str(file), *subject, *trusted])
        _check(ended)
        # The exit code alone could be that of another program with this name.
        if "Verified OK" not in ended.stderr + ended.stdout:
            raise UserError(f"cosign: expected Verified OK or a reason, found {_explain(ended)}; install cosign 3")


def trust_key(key: Path) -> list[str]:
    """Return the options that trust the public key in the file `key`: its signatures are in no transparency log."""
    return ["--key", str(key.absolute()), "--insecure-ignore-tlog=true"]


def trust_identity(identity: str, issuer: str) -> list[str]:
    """Return the options that trust keyless signatures made as `identity` according to the OIDC `issuer`."""
    return ["--certificate-identity", identity, "--certificate-oidc-issuer", issuer]


def _check(ended: Ended) -> None:
    """Raise CosignError where cosign failed, and UserError where it does not know an option of version 3."""
    if not ended.code:
        return
    if ended.code < 0 or not ended.stderr.strip():  # it judged nothing
        how = f"was killed by signal {-ended.code}" if ended.code < 0 else f"ended with {ended.code} and said nothing"
        raise UserError(f"cosign: expected a verdict, found that it {how}; see whether there is enough memory, and try again")
    if "unknown flag" in ended.stderr:
        raise UserError("cosign: expected version 3 or later, found an older one; install 3, for instance from Debian 14")
    raise CosignError(_explain(ended))


def _run(arguments: Sequence[str]) -> Ended:
    program = shutil.which("cosign")
    if not program:
        raise UserError("cosign not found; it signs and verifies statements; install version 3, for instance from Debian 14")
    # Without a terminal, cosign would wait for a password that nobody types.
    environ = {"COSIGN_PASSWORD": "", **os.environ}
    with tempfile.TemporaryDirectory() as folder:
        return run([program, *arguments], deadline=_DEADLINE, environ=environ, cwd=Path(folder))


def _explain(ended: Ended) -> str:
    """Return the reason that cosign gave for a failure, in one line."""
    lines = [line for line in ended.stderr.splitlines() if line and not line.startswith(("WARNING", "Using payload"))]
    reason = next((line for line in reversed(lines) if "rror" in line), lines[-1] if lines else "cosign gave no reason")
    if "decrypt" in reason:
        return "the key's password is not COSIGN_PASSWORD"
    return " ".join(re.sub(r"^(?:Error: |error during command execution: |signing /\S+: )+", "", reason).split())[:300]
