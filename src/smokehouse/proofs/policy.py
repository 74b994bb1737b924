"""A policy for `verify`: whose signature is trusted, on what hardware a smoke test has to have run, and how old it may be.

A YAML file, whose paths are relative to it:

    signed-by:
      key: cosign.pub
      # or: identity: URL of a workflow, and issuer: URL
    gpu: required
    max-age: 30 days
"""

import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from smokehouse.environments.documents import read_yaml
from smokehouse.proofs.signing import Requirements, Signer


class _SignedBy(BaseModel, extra="forbid", frozen=True):
    key: str = ""
    identity: str = ""
    issuer: str = ""

    @model_validator(mode="after")
    def _is_one(self) -> "_SignedBy":
        """Refuse none and both: they say whom to trust."""
        if bool(self.key) == bool(self.identity):
            raise ValueError("signed-by: expected key or identity, found both or none; specify who has to have signed")
        if bool(self.identity) != bool(self.issuer):
            raise ValueError("signed-by.issuer: expected an OIDC issuer for an identity, and none for a key; add or remove it")
        return self


class Policy(BaseModel, extra="forbid", frozen=True):
    """What an image has to have to be accepted."""

    signed_by: _SignedBy = Field(alias="signed-by")
    gpu: Literal["required", "optional"] = "optional"
    max_age: str | None = Field(default=None, alias="max-age")

    @field_validator("max_age")
    @classmethod
    def _is_in_days(cls, text: str | None) -> str | None:
        if text is not None and not re.fullmatch(r"[1-9][0-9]{0,4} days?", text):
            raise ValueError(f"max-age: expected a number of days such as 30 days, found {text!r}; fix it")
        return text


def read(path: Path) -> Signer:
    """Return the signer that the policy in the file `path` trusts, and what it requires of reports; raises UserError."""
    policy = read_yaml(path, str(path)).validate(Policy)
    days = int(policy.max_age.split()[0]) if policy.max_age else None
    by = policy.signed_by
    key = path.parent / by.key if by.key else None
    return Signer(key, by.identity, by.issuer if by.identity else "", Requirements(policy.gpu == "required", days))
