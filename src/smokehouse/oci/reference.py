"""References to images in registries."""

import re
from dataclasses import dataclass

from smokehouse.errors import UserError
from smokehouse.oci.model import DIGEST


@dataclass(frozen=True)
class Reference:
    """The name of an image in a registry, with a `tag`, a `digest`, both or neither."""

    host: str
    repository: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> "Reference":
        """Parse `text` as docker does; raises UserError."""
        found = cls._match(text)
        if not found:
            if cls._match(lower := _in_lower_case(text)):
                raise UserError(f"{text}: expected the name of an image in lower case, found capitals; write {lower}")
            raise UserError(
                f"{text}: not an image reference; expected oci:DIR, docker:NAME, HOST/NAME:TAG or HOST/NAME@sha256:…"
            )
        where, name, label, digest = found.groups(default="")
        if not where:
            where, name = "docker.io", name if "/" in name else f"library/{name}"
        return cls(where, name, label, digest)

    @staticmethod
    def _match(text: str) -> re.Match[str] | None:
        """Return host, repository, tag and digest of `text` as groups."""
        part, tag = r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*", r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"
        # Docker's rule: a first component without a dot or a port is part of the repository.
        host = r"(?:localhost|[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+|(?:[A-Za-z0-9-]+|\[[0-9a-fA-F:]+\])(?=:))(?::\d{1,5})?"
        return re.fullmatch(rf"(?:({host})/)?({part}(?:/{part})*)(?::({tag}))?(?:@({DIGEST}))?", text)

    @property
    def name(self) -> str:
        """The repository with its host."""
        return f"{self.host}/{self.repository}"

    def __str__(self) -> str:
        """Return the reference in its canonical form."""
        return f"{self.name}{f':{self.tag}' if self.tag else ''}{f'@{self.digest}' if self.digest else ''}"


def _in_lower_case(text: str) -> str:
    """Return `text` with the part in lower case that has to be: the repository, not its tag."""
    path, slash, last = text.rpartition("/")
    name, separator, rest = re.match(r"([^:@]*)([:@]?)(.*)", last, re.DOTALL).groups()  # type: ignore[union-attr]
    return f"{path.lower()}{slash}{name.lower()}{separator}{rest}"
