"""Sign a checkpoint with a new key: `python sign.py CHECKPOINT KEYS`, in the Python of the tools.

Stacks have a pydantic that is too old for making signatures; verifying them works with it.
"""

import sys
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

if __name__ == "__main__":
    import model_signing

    hashing: Any = model_signing.hashing
    signing: Any = model_signing.signing
    path, keys = map(Path, sys.argv[1:])
    keys.mkdir(parents=True)
    key = ec.generate_private_key(ec.SECP256R1())
    pem, unencrypted = serialization.Encoding.PEM, serialization.NoEncryption()
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, unencrypted)
    (keys / "private.pem").write_bytes(private)
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    (keys / "public.pem").write_bytes(public)
    unhashed = hashing.Config().set_ignored_paths(paths=[path / "model.sig"])
    signer = signing.Config().use_elliptic_key_signer(private_key=keys / "private.pem")
    signer.set_hashing_config(unhashed).sign(path, path / "model.sig")
