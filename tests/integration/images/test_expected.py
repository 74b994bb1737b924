"""Licences in an SBOM are declared in the words of SPDX."""

import json
import re
import zipfile
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from smokehouse.images import components, sbom
from smokehouse.images.debian_lock import DebianPackage
from smokehouse.locks import CondaPackage, Lock, LockedFile
from smokehouse.locks.model import Channel

CHANNEL = Channel(name="conda-forge", snapshot="0" * 64)


def part_of_lock(**fields: Any) -> Lock:
    """A lock with nothing but the `fields` that a test is about."""
    return Lock.model_construct(**fields)


@pytest.mark.parametrize(
    ("stated", "declared", "words"),
    [
        ("License-Expression: mit or apache-2.0 WITH llvm-exception", "MIT OR Apache-2.0 WITH LLVM-exception", None),
        ("License: BSD-3-Clause", "BSD-3-Clause", None),
        ("License: Apache License, Version 2.0", "Apache-2.0", None),
        ("License: MIT License\n \n Copyright (c) x\nClassifier: License :: OSI Approved :: MIT License", "MIT", None),
        ("Classifier: License :: OSI Approved :: Mozilla Public License 2.0 (MPL 2.0)", "MPL-2.0", None),
        ("License: BSD 3-Clause License\n \n Copyright (c) x", "BSD-3-Clause", None),
        ("License: BSD\nClassifier: License :: OSI Approved :: BSD License", None, "BSD"),
        ("Classifier: License :: A :: MIT License\nClassifier: License :: A :: ISC", None, "MIT License; ISC"),
        ("License: a\n   b " + "c" * 300, None, "a\n   b " + "c" * 300),
        ("License-Expression: LicenseRef-Ours", None, "LicenseRef-Ours"),
        ("License-Expression: MIT AND", None, "MIT AND"),
        ("Name: x", "NOASSERTION", None),
    ],
    ids=[
        "expression",
        "name",
        "words",
        "text",
        "classifier",
        "title",
        "no version",
        "two",
        "long",
        "reference",
        "broken",
        "none",
    ],
)
def test_a_licence_is_declared_as_spdx_has_it_or_by_its_words(
    tmp_path: Path, stated: str, declared: str | None, words: str | None
) -> None:
    place = tmp_path / "odd-1.0-py3-none-any.whl"
    with zipfile.ZipFile(place, "w") as archive:
        archive.writestr("odd-1.0.dist-info/METADATA", f"Metadata-Version: 2.4\n{stated}\n")
    locked = LockedFile(name="odd", version="1.0", file=place.name, size=0, sha256="0" * 64)
    manifest = part_of_lock(environment="tiny", cutoff=date(2025, 3, 15), channel=CHANNEL, pip=(locked,))
    contained = components.components(manifest, (), (), components.licences(tmp_path, [locked]))
    document = json.loads(sbom.spdx(manifest, contained, {}))
    found = document["packages"][1]["licenseDeclared"]
    texts = {entry["licenseId"]: entry["extractedText"] for entry in document.get("hasExtractedLicensingInfos", [])}
    assert texts == ({found: words} if words else {})
    assert found == declared or (words and re.fullmatch("LicenseRef-smokehouse-[0-9a-f]{16}", found))


def test_an_sbom_names_each_package_once_and_by_what_spdx_allows() -> None:
    def conda(name: str) -> CondaPackage:
        told = {"version": "1", "file": f"{name}.conda", "size": 1, "sha256": "0" * 64, "build": "0", "subdir": "noarch"}
        return CondaPackage.model_validate({"name": name, "category": "main", "license": "LGPL-2.1-or-later", **told})

    manifest = part_of_lock(environment="tiny", cutoff=date(2025, 3, 15), channel=CHANNEL, pip=())
    debian = [
        DebianPackage(name, "1:2+3", "0" * 64, 1, f"pool/{name}_1_all.deb", name, "1") for name in ("libstdc++6", "libstdc--6")
    ]
    packages = [conda(name) for name in ("typing-extensions", "typing_extensions", "_libgcc_mutex")]
    text = sbom.spdx(manifest, components.components(manifest, packages, debian, {}), {}, "image")
    assert text == sbom.spdx(manifest, components.components(manifest, packages[::-1], debian[::-1], {}), {}, "image")
    names = [package["SPDXID"] for package in json.loads(text)["packages"]]
    assert len({*names}) == 6
    assert all(re.fullmatch(r"SPDXRef-[A-Za-z0-9.-]+", name) for name in names)
    assert {package.get("licenseDeclared") for package in json.loads(text)["packages"][1:]} == {
        "LGPL-2.1-or-later",
        "NOASSERTION",
    }
