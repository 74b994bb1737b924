"""cosign, which signs and verifies files.

See: https://docs.sigstore.dev/cosign/signing/signing_with_blobs/
"""

import os
import re
import shutil
import tempfile
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from smokehouse.errors import UserError
from smokehouse.programs.process import Ended, run

_DEADLINE = 300.0  # seconds; a keyless signature takes requests to three services


class CosignError(Exception):
    """A failure of cosign; its text is the reason that cosign gave, in one line."""


@dataclass(frozen=True)
class BlobSignature:
    """A signature, and for one made without a key, the bundle with its certificate and transparency log entry."""

    signature: bytes
    bundle: bytes | None = None


def sign_blob(blob: bytes, key: Path | None) -> BlobSignature:
    """Sign `blob` with the private key in the file `key`, without one as the identity that cosign finds.

    The password of a key is COSIGN_PASSWORD. Raises CosignError, and UserError where cosign is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        payload, signature, bundle = (Path(folder, name) for name in ("blob", "signature", "bundle"))
        payload.write_bytes(blob)
        command = ["sign-blob", "--yes", "--output-signature", str(signature)]
        # With a key there is no need to publish what was signed, and without a network no way to.
        command += ["--key", str(key.absolute()), "--tlog-upload=false"] if key else ["--bundle", str(bundle)]
        ended = _run([*command, str(payload)])
        if ended.code or not signature.is_file():
            raise CosignError(_explain(ended))
        return BlobSignature(b64decode(signature.read_text()), bundle.read_bytes() if bundle.is_file() else None)


def verify_blob(blob: bytes, signature: bytes, key: Path) -> None:
    """Verify `signature` of `blob` with the public key in the file `key`.

    Raises CosignError, and UserError where cosign is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        payload, file = Path(folder, "blob"), Path(folder, "signature")
        payload.write_bytes(blob)
        file.write_text(b64encode(signature).decode())
        _verify(["--key", str(key.absolute()), "--signature", str(file), "--insecure-ignore-tlog=true", str(payload)])


def verify_blob_bundle(blob: bytes, bundle: bytes, identity: str, issuer: str) -> None:
    """Verify that the keyless signature in `bundle` is of `blob`, made as `identity` according to the OIDC `issuer`.

    Raises CosignError, and UserError where cosign is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        payload, file = Path(folder, "blob"), Path(folder, "bundle")
        payload.write_bytes(blob)
        file.write_bytes(bundle)
        command = ["--bundle", str(file), "--certificate-identity", identity, "--certificate-oidc-issuer", issuer]
        _verify([*command, str(payload)])


def _verify(arguments: Sequence[str]) -> None:
    ended = _run(["verify-blob", *arguments])
    # The exit code alone could be that of another program with this name.
    if ended.code or "Verified OK" not in ended.stderr + ended.stdout:
        raise CosignError(_explain(ended))


def _run(arguments: Sequence[str]) -> Ended:
    program = shutil.which("cosign")
    if not program:
        raise UserError("cosign not found; it signs and verifies statements; install it, for instance from Debian 13")
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
