"""What may be asked for: a package of an index by name, and by version where there is a reason."""

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name


def parse(text: str) -> Requirement:
    """Return `text` as a requirement with a canonical name; raises ValueError saying what is wrong and the cure."""
    if text.startswith("-"):
        raise ValueError(f"{text!r} is an option of pip, which no lock can hold; list packages only")
    if "://" in text or " @ " in text or text.startswith((".", "/", "~")) or "/" in text.split(";")[0]:
        raise ValueError(f"{text!r} is a URL or a path, not a package of an index; name a release, such as einops==0.8.1")
    try:
        requirement = Requirement(text)
    except InvalidRequirement as broken:
        said = str(broken).splitlines()[0].rstrip(".").replace("Expected", "expected")
        raise ValueError(f"{text!r} is no requirement: {said}; write it like einops==0.8.1") from None
    for specifier in requirement.specifier:
        if specifier.operator == "===":
            raise ValueError(f"{text!r} compares text, not versions; use ==")
        if ".dev" in specifier.version:
            raise ValueError(f"{text!r} asks for a development version, which says nothing certain; name a release")
    requirement.name = canonicalize_name(requirement.name)
    return requirement
