"""What is known to hold from which version on: the one table that the expectations of every stack come from.

Tests compare each environment's stack.toml with it, and a run without a lock has nothing else. Sources: the loader's table of
known failures, and runs of these tests with the versions on both sides of each boundary.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from packaging.version import Version

from smoke_tests.families import Family


@dataclass(frozen=True)
class Change:
    """What `package` does: `before` up to a version, `after` from that version `since` on; None if it never changed."""

    package: str
    before: str
    since: Version | None = None
    after: str = ""

    def holds(self, version: Version) -> str:
        """Return what `version` does."""
        return self.before if self.since is None or version < self.since else self.after


# ZeRO-3 reads weights before gloo has delivered them. See: DeepSpeed PR 8539.
GLOO_RACE = Change("deepspeed", "present", Version("0.19.8"), "fixed")
# What a checkpoint with later keys is loaded as; most families have them since this release, and others say so.
LATER_KEY_LAYOUT = Change("transformers", "random", Version("4.52"), "whole")
# What an auto class makes of a checkpoint: whole, refused, part or absent. A family whose checkpoints another class loads whole
# has them refused, and what else differs is the family's own.
AUTO_CLASSES = {
    "AutoModelForImageTextToText": Change("transformers", "whole"),
    "AutoModelForVision2Seq": Change("transformers", "whole", Version("5"), "absent"),
    "AutoModelForCausalLM": Change("transformers", "refused"),
    "AutoModel": Change("transformers", "part"),  # up to 4.51 without the vision tower, later without lm_head
}
# The oldest and the newest version of each package that these tests were run with. Between them, what the table says is judged.
RANGES = {
    "torch": (Version("2.4.1"), Version("2.15.0")),
    "transformers": (Version("4.49.0"), Version("5.24.0")),
    "deepspeed": (Version("0.15.4"), Version("0.19.8")),
}


def expectations(family: Family, versions: Mapping[str, Version]) -> dict[str, Any]:
    """Return what is expected of the versions of transformers and deepspeed among `versions`, as stack.toml may say it too."""
    later_keys = replace(LATER_KEY_LAYOUT, since=Version(family.layouts_since))
    return {
        "gloo_race": GLOO_RACE.holds(versions[GLOO_RACE.package]),
        "later_key_layout": later_keys.holds(versions[later_keys.package]),
        "auto_classes": {name: _auto_class(family, name, change, versions) for name, change in AUTO_CLASSES.items()},
    }


def _auto_class(family: Family, name: str, change: Change, versions: Mapping[str, Version]) -> str:
    """Return what the auto class `name` makes of a checkpoint of a family."""
    usual = change.holds(versions[change.package])
    if usual == "absent":
        return usual
    if name in dict(family.auto_classes):
        return dict(family.auto_classes)[name]
    if name == family.auto_class:
        return "whole"
    seeing = AUTO_CLASSES[family.auto_class].before == "whole" if family.auto_class in AUTO_CLASSES else False
    return usual if seeing or usual == "part" else "refused"


def stack(family: Family, versions: Mapping[str, Version]) -> dict[str, Any]:
    """Return the model and expectations of an environment that has no stack.toml, as that file has them."""
    return {"model": {"family": family.name, "class": family.model_class}, "expectations": expectations(family, versions)}


def overridden(family: Family, versions: Mapping[str, Version], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the expectations of `versions` with those that stack.toml has in their place.

    Raises KeyError with the name of a package that they depend on and that `versions` lacks.
    """
    if {"gloo_race", "later_key_layout", "auto_classes"} <= overrides.keys() and AUTO_CLASSES.keys() <= overrides[
        "auto_classes"
    ].keys():
        return dict(overrides)
    usual = expectations(family, versions)
    return usual | {**overrides, "auto_classes": usual["auto_classes"] | overrides.get("auto_classes", {})}


def pinned(requirements: str) -> dict[str, Version]:
    """Return the versions of the packages of `RANGES` that a requirements.txt pins."""
    found = re.findall(r"^(\S+)==([^\s;]+)", requirements, re.MULTILINE)
    return {name: Version(version) for name, version in found if name in RANGES}


def beyond(versions: Mapping[str, Version]) -> list[str]:
    """Return the packages that these tests were never run with in this or a later and an earlier version, each in words.

    A development version has the number of a release that it may differ from.
    """
    return [
        f"{name} {versions[name]} (measured: {oldest} to {newest})"
        for name, (oldest, newest) in RANGES.items()
        if not oldest.release <= versions[name].release <= newest.release or versions[name].is_devrelease
    ]
