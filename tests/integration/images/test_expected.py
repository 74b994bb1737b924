"""The files that a lock puts into an image; of those built from source, only what a build makes. Licences are SPDX's."""

import hashlib
import json
import re
import zipfile
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from smokehouse.checkout import Checkout
from smokehouse.images import components, sbom
from smokehouse.images.debian_lock import DebianPackage
from smokehouse.locks import CondaPackage, Lock, LockedFile
from smokehouse.locks.model import Channel
from smokehouse.oci.filesystem import Entry, Tree
from smokehouse.proofs.expected import ExpectedFiles

from ...unit.conftest import sdist

SITE = "opt/env/lib/python3.11/site-packages"

CHANNEL = Channel(name="conda-forge", snapshot="0" * 64)


def part_of_lock(**fields: Any) -> Lock:
    """A lock with nothing but the `fields` that a test is about."""
    return Lock.model_construct(**fields)


def test_only_what_a_build_can_make_counts_as_built(root: Path, tmp_path: Path) -> None:
    source = "def train(): ...\n"
    archive = tmp_path / "deep-1.0.tar.gz"
    archive.write_bytes(sdist("deep", "1.0", {"deep/train.py": source, "deep/ops/op.cpp": ""}))
    files = {
        f"{SITE}/deep/train.py": source,
        f"{SITE}/deep/edited.py": "import evil\n",
        f"{SITE}/deep/ops/op.so": "made",
        f"{SITE}/deep/git_version_info_installed.py": "version='1.0'\n",
        f"{SITE}/other/evil.so": "evil",
        f"{SITE}/evil.pth": "import evil\n",
        f"{SITE}/deep-1.0.dist-info/METADATA": "Name: deep\n",
        f"{SITE}/deep-1.0.dist-info/evil": "",
        "opt/env/bin/deep": "#!/opt/env/bin/python\n",
        "etc/evil": "",
    }
    record = "".join(f"../../../../../{path},,\n" for path in files)
    files[f"{SITE}/deep-1.0.dist-info/RECORD"] = record
    digests = {path: hashlib.sha256(text.encode()).hexdigest() for path, text in files.items()}
    tree = Tree(
        entries={path: Entry("file", 3, 0o644, (0, 0), sha256=digest) for path, digest in digests.items()},
        kept={path: text.encode() for path, text in files.items()},
    )
    contents = ExpectedFiles(Checkout(root), part_of_lock(python="3.11"))
    locked = LockedFile(name="deep", version="1.0", file=archive.name, size=0, sha256="0" * 64)
    built = contents.add_built(locked, archive, tree)
    assert set(built) == {
        f"{SITE}/deep/ops/op.so",
        f"{SITE}/deep/git_version_info_installed.py",
        f"{SITE}/deep-1.0.dist-info/METADATA",
        "opt/env/bin/deep",
    }
    assert contents.files.keys() - set(built) == {f"{SITE}/deep/train.py"}
    assert contents.sources.keys() == {f"{SITE}/deep/train.py", f"{SITE}/deep/git_version_info_installed.py"}


def test_a_wheel_that_is_wrong_about_itself_is_read_as_it_is(root: Path, tmp_path: Path) -> None:
    place = tmp_path / "odd-1.0-py3-none-any.whl"
    with zipfile.ZipFile(place, "w") as archive:
        archive.writestr("odd.py", "x = 1\n")
        archive.writestr("odd-1.0.data/scripts/run", "#!python\nimport odd\n")
        archive.writestr("odd-1.0.data/data/share/odd.txt", "odd\n")
        archive.writestr("odd-1.0.dist-info/RECORD", "odd.py,sha256=AAAA,6\n")
    contents = ExpectedFiles(Checkout(root), part_of_lock(python="3.11"))
    contents.add_wheel(place)

    def fits(path: str, content: bytes) -> bool:
        return contents.files[path].fits(Entry("file", 0, 0o644, (0, 0), sha256=hashlib.sha256(content).hexdigest()))

    assert fits(f"{SITE}/odd.py", b"x = 1\n")
    assert not fits(f"{SITE}/odd.py", b"x = 2\n")
    assert fits("opt/env/bin/run", b"#!/opt/env/bin/python3.11\nimport odd\n")
    assert fits("opt/env/share/odd.txt", b"odd\n")
    assert fits(f"{SITE}/odd-1.0.dist-info/INSTALLER", b"smokehouse\n")


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
