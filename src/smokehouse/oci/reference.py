"""References to images in registries."""

import re
from dataclasses import dataclass

from smokehouse.errors import UserError
from smokehouse.oci.model import DIGEST


@dataclass(frozen=True)
class Reference:
    """Where an image lies in a registry: `tag` or `digest` is given, or both."""

    host: str
    repository: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> "Reference":
        """Return the reference that `text` is; raises UserError."""
        part, tag = r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*", r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"
        # Docker's rule: what has neither a dot nor a port is no host.
        host = r"(?:localhost|[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+|(?:[A-Za-z0-9-]+|\[[0-9a-fA-F:]+\])(?=:))(?::\d{1,5})?"
        found = re.fullmatch(rf"(?:({host})/)?({part}(?:/{part})*)(?::({tag}))?(?:@({DIGEST}))?", text)
        if not found:
            raise UserError(f"{text}: no image; give oci:DIR, docker:NAME, or a registry's HOST/NAME:TAG or HOST/NAME@sha256:…")
        where, name, label, digest = found.groups(default="")
        if not where:
            where, name = "docker.io", name if "/" in name else f"library/{name}"
        return cls(where, name, label, digest)

    @property
    def name(self) -> str:
        """The repository with its host."""
        return f"{self.host}/{self.repository}"

    def __str__(self) -> str:
        """Return the reference as it is written."""
        return f"{self.name}{f':{self.tag}' if self.tag else ''}{f'@{self.digest}' if self.digest else ''}"
