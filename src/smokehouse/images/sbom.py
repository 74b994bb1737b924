"""The bill of materials of an image: SPDX 2.3, written from locks and nothing else, so the same for the same ones."""

import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from email.parser import HeaderParser
from pathlib import Path
from urllib.parse import quote

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from smokehouse.images.debian_lock import DebianPackage
from smokehouse.images.spec import created
from smokehouse.locks.model import CondaPackage, Lock, LockedFile
from smokehouse.storage import files

_COMMENT = 200  # characters

# Licences by the words that wheels call them by; what names no version, such as BSD, is none of SPDX's.
_CALLED = {
    frozenset(words.split()): licence
    for words, licence in {
        "apache 2": "Apache-2.0",
        "apache 2.0": "Apache-2.0",
        "bsd 2 clause": "BSD-2-Clause",
        "bsd 3 clause": "BSD-3-Clause",
        "isc": "ISC",
        "isc iscl": "ISC",
        "mit": "MIT",
        "mozilla public 2.0 mpl": "MPL-2.0",
    }.items()
}


def text(manifest: Lock, conda: Sequence[CondaPackage], debian: Sequence[DebianPackage], licences: Mapping[str, str]) -> str:
    """Return the SBOM as JSON: every package of the image with its hash, and its licence where it is known.

    `conda` is the part of the conda half that is in the image, `licences` has those of wheels by file name. A licence that
    is no expression of SPDX's is told in a comment (https://spdx.github.io/spdx-spec/v2.3/package-information/#715-declared-license-field).
    """
    packages = [
        *(_package("deb", f"debian/{p.name}", p.version, Path(p.path).name, p.sha256, None) for p in debian),
        *(_package("conda", p.name, p.version, p.file, p.sha256, p.license) for p in conda),
        *(_package("pypi", p.name, p.version, p.file, p.sha256, licences.get(p.file)) for p in manifest.pip),
    ]
    packages.sort(key=lambda package: str(package["SPDXID"]))
    name = {"SPDXID": "SPDXRef-image", "name": manifest.environment, "downloadLocation": "NOASSERTION", "filesAnalyzed": False}
    digest = files.sha256(json.dumps(packages))
    document = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": manifest.environment,
        "documentNamespace": f"https://spdx.org/spdxdocs/smokehouse-{manifest.environment}-{digest}",
        "creationInfo": {"created": created(manifest).strftime("%Y-%m-%dT%H:%M:%SZ"), "creators": ["Tool: smokehouse"]},
        "packages": [name, *packages],
        "relationships": [
            _relation("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-image"),
            *(_relation("SPDXRef-image", "CONTAINS", str(package["SPDXID"])) for package in packages),
        ],
    }
    return json.dumps(document, indent=1) + "\n"


def licences(wheels: Path, locked: Sequence[LockedFile]) -> dict[str, str]:
    """Return the licence that each wheel in the folder `wheels` states in its metadata, by file name, where it states one."""
    found = {}
    for file in locked:
        if file.file.endswith(".whl"):
            with zipfile.ZipFile(wheels / file.file) as wheel:
                name = next((name for name in wheel.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)), None)
                metadata = wheel.read(name).decode("utf-8", "replace") if name else ""
            headers = HeaderParser().parsestr(metadata)
            classifiers = [text for text in headers.get_all("Classifier", []) if text.startswith("License :: ")]
            # Of two classifiers, nothing says whether they are alternatives, so they make no expression.
            names = "; ".join(text.rpartition(" :: ")[2] for text in classifiers)
            stated = [str(text) for text in (headers.get("License-Expression"), headers.get("License"), names) if text]
            if stated:
                # What many state as their licence is the whole text of it, where the classifier has the name.
                found[file.file] = next((text for text in stated if _expression(text)), stated[0])
    return found


def _expression(stated: str) -> str | None:
    """Return what SPDX calls the licence that is `stated`, None where that is no name of one."""
    words = frozenset(re.findall(r"[a-z]+|\d+(?:\.\d+)?", stated.lower())) - {"license", "software", "the", "version"}
    try:
        expression = canonicalize_license_expression(_CALLED.get(words, stated))
    except InvalidLicenseExpression:
        return None
    # A name that only its author knows would take the text of the licence beside it.
    return None if "LicenseRef-" in expression else expression


def _package(kind: str, name: str, version: str, file: str, sha256: str, licence: str | None) -> dict[str, object]:
    declared = _expression(licence) if licence else None
    short = name.removeprefix("debian/")
    return {
        # Both of typing-extensions and typing_extensions are packages of conda-forge.
        "SPDXID": f"SPDXRef-{kind}-{re.sub(r'[^A-Za-z0-9-]', lambda found: f'.{ord(found[0]):x}.', short)}",
        "name": short,
        "versionInfo": version,
        "packageFileName": file,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "checksums": [{"algorithm": "SHA256", "checksumValue": sha256}],
        "licenseDeclared": declared or "NOASSERTION",
        **({"licenseComments": " ".join(licence.split())[:_COMMENT]} if licence and not declared else {}),
        "externalRefs": [
            {
                "referenceCategory": "PACKAGE-MANAGER",
                "referenceType": "purl",
                "referenceLocator": f"pkg:{kind}/{quote(name)}@{quote(version, safe='')}",
            }
        ],
    }


def _relation(this: str, kind: str, other: str) -> dict[str, str]:
    return {"spdxElementId": this, "relationshipType": kind, "relatedSpdxElement": other}
