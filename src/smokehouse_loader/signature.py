"""Verify that a checkpoint's files are the ones that somebody signed: OpenSSF model signing, with the library model-signing.

The library is an optional dependency: `pip install "smokehouse-loader[signing]"`. It is imported only here, on first use.
See: https://github.com/sigstore/model-transparency
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smokehouse_loader.errors import Finding, clipped, first_line
from smokehouse_loader.failures import fix_for

# The name that the library's own command gives a signature, in the directory that is signed.
DEFAULT_NAME = "model.sig"


@dataclass(frozen=True)
class Signer:
    """Whose signature is trusted: the holder of a public key, an identity of an OIDC issuer, or of certificates of a chain.

    Exactly one of the three is set: `public_key` (a PEM file of an elliptic-curve key), `identity` and `oidc_issuer`, or
    `certificate_chain` (PEM files). `signature` is the file with the signature, by default model.sig in the checkpoint.
    """

    public_key: str | Path | None = None
    identity: str | None = None
    oidc_issuer: str | None = None
    certificate_chain: tuple[str | Path, ...] = ()
    signature: str | Path | None = None

    def __post_init__(self) -> None:
        """Raise ValueError unless exactly one way to trust a signature is given."""
        if bool(self.identity) != bool(self.oidc_issuer):
            given, lacking = ("identity", "oidc_issuer") if self.identity else ("oidc_issuer", "identity")
            raise ValueError(f"{lacking}: expected one beside {given}, found none; an identity is one only at its issuer")
        ways = [bool(self.public_key), bool(self.identity), bool(self.certificate_chain)]
        if sum(ways) != 1:
            raise ValueError(
                f"signer: expected one of public_key, identity with oidc_issuer, and certificate_chain, found {sum(ways)}; "
                "say whose signature is trusted"
            )

    def __str__(self) -> str:
        """Return who it is, for messages."""
        if self.identity:
            return f"{self.identity} of {self.oidc_issuer}"
        return str(self.public_key or ", ".join(map(str, self.certificate_chain)))


def problems(folder: Path, signer: Signer) -> Iterator[Finding]:
    """Yield why the files in `folder` are not the ones that `signer` signed; nothing if they are. Reads all of them.

    Raises ValueError if the library is not installed.
    """
    file = Path(signer.signature) if signer.signature else folder / DEFAULT_NAME
    fix = fix_for("signature-mismatch")
    if not file.is_file():
        yield Finding("signature-mismatch", str(file), "signature not found", "get the signature, or verify with another one")
        return
    for path in (signer.public_key, *signer.certificate_chain):
        if path and not Path(path).is_file():
            yield Finding(
                "signature-mismatch", str(path), "trusted key or certificate not found", "pass the file of the signer"
            )
            return
    verifier = _verifier(signer)
    try:
        verifier().verify(folder, file)
    except Exception as wrong:  # noqa: BLE001 - the library lets errors of JSON, protobuf and cryptography through
        text = first_line(wrong)
        if "symlink" in text:
            fix = "verify a copy without links, such as a download into a directory of its own"
        yield Finding("signature-mismatch", str(folder), f"not what {signer} signed in {file}: {clipped(text)}", fix)


def _verifier(signer: Signer) -> Any:
    """Return a function that returns the library's verifier for `signer`: it reads the trusted key."""
    try:
        from model_signing import verifying
    except ImportError as missing:
        raise ValueError(
            f"verify: signatures require model-signing, which cannot be imported ({missing}); "
            'run pip install "smokehouse-loader[signing]"'
        ) from missing

    def configured() -> Any:
        config: Any = verifying.Config()  # type: ignore[no-untyped-call]
        if signer.public_key:
            return config.use_elliptic_key_verifier(public_key=Path(signer.public_key))
        if signer.identity and signer.oidc_issuer:
            return config.use_sigstore_verifier(identity=signer.identity, oidc_issuer=signer.oidc_issuer)
        return config.use_certificate_verifier(certificate_chain=[Path(path) for path in signer.certificate_chain])

    return configured


def reads_here() -> bool:
    """Return whether this process is the one of its machine that reads all files; the others wait for its answer."""
    return os.environ.get("LOCAL_RANK", "0") == "0"
