"""The table of expectations by version: what stack.toml files have, and what lies beyond it."""

import dataclasses
import json
import re
import tomllib
from pathlib import Path

import pytest
from packaging.version import Version

from smoke_tests import families, measured
from smokehouse.checkout import Checkout
from smokehouse.locks import check

from .conftest import NAMES, Starter

FAMILY = families.get(families.DEFAULT)


def versions(**changed: str) -> dict[str, Version]:
    """Return versions of qwen2.5-vl, some of them changed."""
    return {
        name: Version(number)
        for name, number in ({"torch": "2.6.0", "transformers": "4.49.0", "deepspeed": "0.15.4"} | changed).items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_no_stack_file_repeats_the_table(root: Path, name: str) -> None:
    stack = tomllib.loads((root / "environments" / name / "stack.toml").read_text())
    lock = check.load(Checkout(root), name).lock
    locked = {file.name: Version(file.version) for file in lock.pip}
    family = families.get(stack["model"]["family"])
    versions = {package: locked[package] for package in measured.RANGES}
    usual = measured.stack(family, versions)
    assert usual["model"] == stack["model"]
    assert measured.pinned((root / "lockfiles" / name / "requirements.txt").read_text()) == versions
    # What it says in place of the table is something else.
    overrides = stack.get("expectations", {})
    for key, value in (overrides | overrides.get("auto_classes", {})).items():
        assert key == "auto_classes" or value != (usual["expectations"] | usual["expectations"]["auto_classes"])[key]
    assert measured.beyond(locked) == []


def test_an_override_takes_the_place_of_one_expectation() -> None:
    usual = measured.expectations(FAMILY, versions())
    overrides = {"gloo_race": "fixed", "auto_classes": {"AutoModelForCausalLM": "whole"}}
    found = measured.overridden(FAMILY, versions(), overrides)
    assert found == usual | {"gloo_race": "fixed", "auto_classes": usual["auto_classes"] | overrides["auto_classes"]}
    with pytest.raises(KeyError, match="transformers"):
        measured.overridden(FAMILY, {"deepspeed": Version("0.15.4")}, overrides)


@pytest.mark.parametrize(
    ("package", "version", "expectation", "value"),
    [
        ("deepspeed", "0.19.7", "gloo_race", "present"),
        ("deepspeed", "0.19.8", "gloo_race", "fixed"),
        ("deepspeed", "0.20.0", "gloo_race", "fixed"),
        ("transformers", "4.51.3", "later_key_layout", "random"),
        ("transformers", "4.52.4", "later_key_layout", "whole"),
    ],
)
def test_an_expectation_changes_with_the_version_that_fixed_it(
    package: str, version: str, expectation: str, value: str
) -> None:
    assert measured.expectations(FAMILY, versions(**{package: version}))[expectation] == value


@pytest.mark.parametrize(("version", "value"), [("4.52.4", "random"), ("5.8.1", "random"), ("5.9.0", "whole")])
def test_a_family_may_have_its_later_keys_since_another_version(version: str, value: str) -> None:
    family = dataclasses.replace(FAMILY, layouts_since="5.9")
    assert measured.expectations(family, versions(transformers=version))["later_key_layout"] == value


@pytest.mark.parametrize(("version", "value"), [("4.57.6", "whole"), ("5.0.0", "absent")])
def test_auto_classes_follow_transformers(version: str, value: str) -> None:
    found = measured.expectations(FAMILY, versions(transformers=version))["auto_classes"]
    assert found["AutoModelForVision2Seq"] == value


def test_auto_classes_follow_the_family() -> None:
    """Each family has one that loads its checkpoints whole; what differs from most of them is the family's own."""
    seeing = dataclasses.replace(FAMILY, auto_classes=(("AutoModelForCausalLM", "part"),))
    text = dataclasses.replace(FAMILY, vision=None, auto_class="AutoModelForCausalLM")
    names = ("AutoModelForImageTextToText", "AutoModelForVision2Seq", "AutoModelForCausalLM", "AutoModel")
    expected = {
        ("4.49.0", seeing): ("whole", "whole", "part", "part"),
        ("4.49.0", text): ("refused", "refused", "whole", "part"),
        ("5.0.0", text): ("refused", "absent", "whole", "part"),
    }
    for (version, family), how in expected.items():
        found = measured.expectations(family, versions(transformers=version))["auto_classes"]
        assert found == dict(zip(names, how, strict=True))


@pytest.mark.parametrize(
    ("package", "version"),
    [
        ("transformers", "99.0"),
        ("transformers", "4.48.3"),
        ("transformers", "4.50.0.dev0"),
        ("deepspeed", "99.0"),
        ("torch", "99.0+cu999"),
    ],
)
def test_a_version_that_was_never_measured_is_named(package: str, version: str) -> None:
    [found] = measured.beyond(versions(**{package: version}))
    assert re.fullmatch(rf"{package} {re.escape(version)} \(measured: [\d.]+ to [\d.]+\)", found)


@pytest.mark.parametrize("version", ["2.6.0+cu124", "2.6.0a0+ecf3bae40a.nv25.1", "2.10.0"])
def test_builds_of_a_measured_release_are_judged(version: str) -> None:
    assert measured.beyond(versions(torch=version)) == []


VERSIONS_OF_CUDNN = """
import json
from smoke_tests import runtime
print(json.dumps([runtime.cudnn_version(number) for number in (8902, 90100, 91002, None)]))
"""


def test_the_version_of_cudnn_is_read_from_its_number(lasting: Starter) -> None:
    """See: cudnn_version.h, CUDNN_VERSION of 8 and of 9."""
    assert json.loads(lasting.inside("-c", VERSIONS_OF_CUDNN)) == ["8.9.2", "9.1.0", "9.10.2", None]
