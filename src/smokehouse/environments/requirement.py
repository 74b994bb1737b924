"""Requirements that a lock can hold: a package of an index by name, and by version where there is a reason."""

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name


def parse(text: str) -> Requirement:
    """Return `text` as a requirement with a canonical name; raises ValueError saying what is wrong and what to do."""
    if text.startswith("-"):
        raise ValueError(f"expected a package, found the pip option {text!r}; list packages only")
    if "://" in text or " @ " in text or text.startswith((".", "/", "~")) or "/" in text.split(";")[0]:
        raise ValueError(f"expected a package of an index, found the URL or path {text!r}; specify a release: einops==0.8.1")
    try:
        requirement = Requirement(text)
    except InvalidRequirement as broken:
        said = str(broken).splitlines()[0].rstrip(".").replace("Expected", "expected")
        raise ValueError(f"invalid requirement {text!r}: {said}; write it like einops==0.8.1") from None
    for specifier in requirement.specifier:
        if specifier.operator == "===":
            raise ValueError(f"{text!r} compares text, not versions; use ==")
        if ".dev" in specifier.version:
            raise ValueError(f"expected a release, found the development version {text!r}; specify a release")
    requirement.name = canonicalize_name(requirement.name)
    return requirement
