"""The software bill of materials (SBOM) of an image, which depends on its locks and wheels alone.

See: https://spdx.github.io/spdx-spec/v2.3/
"""

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
from smokehouse.locks import CondaPackage, Lock, LockedFile
from smokehouse.storage import files

_MAX_COMMENT = 200  # characters

# SPDX licences by the words in wheels. A name without a version, such as BSD, is not an SPDX licence.
_BY_WORDS = {
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


def text(lock: Lock, conda: Sequence[CondaPackage], debian: Sequence[DebianPackage], licences: Mapping[str, str]) -> str:
    """Return the SBOM as JSON: every package of the image with its hash, and its licence if it is known.

    `conda` and `debian` are the packages in the image, `licences` those of wheels by file name. A licence that is not an SPDX
    expression becomes a comment.

    See: https://spdx.github.io/spdx-spec/v2.3/package-information/#715-declared-license-field
    """
    packages = [
        *(_package("deb", f"debian/{p.name}", p.version, Path(p.path).name, p.sha256, None) for p in debian),
        *(_package("conda", p.name, p.version, p.file, p.sha256, p.license) for p in conda),
        *(_package("pypi", p.name, p.version, p.file, p.sha256, licences.get(p.file)) for p in lock.pip),
    ]
    packages.sort(key=lambda package: str(package["SPDXID"]))
    name = {"SPDXID": "SPDXRef-image", "name": lock.environment, "downloadLocation": "NOASSERTION", "filesAnalyzed": False}
    digest = files.sha256(json.dumps(packages))
    document = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": lock.environment,
        "documentNamespace": f"https://spdx.org/spdxdocs/smokehouse-{lock.environment}-{digest}",
        "creationInfo": {"created": created(lock).strftime("%Y-%m-%dT%H:%M:%SZ"), "creators": ["Tool: smokehouse"]},
        "packages": [name, *packages],
        "relationships": [
            _relation("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-image"),
            *(_relation("SPDXRef-image", "CONTAINS", str(package["SPDXID"])) for package in packages),
        ],
    }
    return json.dumps(document, indent=1) + "\n"


def licences(wheels: Path, locked: Sequence[LockedFile]) -> dict[str, str]:
    """Return the licence in the metadata of each wheel in the folder `wheels`, by file name; wheels without one are omitted."""
    found = {}
    for file in locked:
        if file.file.endswith(".whl"):
            with zipfile.ZipFile(wheels / file.file) as wheel:
                name = next((name for name in wheel.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)), None)
                metadata = wheel.read(name).decode("utf-8", "replace") if name else ""
            headers = HeaderParser().parsestr(metadata)
            classifiers = [text for text in headers.get_all("Classifier", []) if text.startswith("License :: ")]
            # Two classifiers can be alternatives or both apply, so they are not made an expression.
            names = "; ".join(text.rpartition(" :: ")[2] for text in classifiers)
            stated = [str(text) for text in (headers.get("License-Expression"), headers.get("License"), names) if text]
            if stated:
                # Many projects put the whole text of a licence in License, and its name in a classifier.
                found[file.file] = next((text for text in stated if _expression(text)), stated[0])
    return found


def _expression(stated: str) -> str | None:
    """Return the SPDX expression of the licence `stated`, None where it is not the name of one."""
    words = frozenset(re.findall(r"[a-z]+|\d+(?:\.\d+)?", stated.lower())) - {"license", "software", "the", "version"}
    try:
        expression = canonicalize_license_expression(_BY_WORDS.get(words, stated))
    except InvalidLicenseExpression:
        return None
    # A LicenseRef is defined in the document that uses it, and the wheel does not give its text.
    return None if "LicenseRef-" in expression else expression


def _package(kind: str, name: str, version: str, file: str, sha256: str, licence: str | None) -> dict[str, object]:
    declared = _expression(licence) if licence else None
    short = name.removeprefix("debian/")
    return {
        # conda-forge has both typing-extensions and typing_extensions.
        "SPDXID": f"SPDXRef-{kind}-{re.sub(r'[^A-Za-z0-9-]', lambda found: f'.{ord(found[0]):x}.', short)}",
        "name": short,
        "versionInfo": version,
        "packageFileName": file,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "checksums": [{"algorithm": "SHA256", "checksumValue": sha256}],
        "licenseDeclared": declared or "NOASSERTION",
        **({"licenseComments": " ".join(licence.split())[:_MAX_COMMENT]} if licence and not declared else {}),
        "externalRefs": [
            {
                "referenceCategory": "PACKAGE-MANAGER",
                "referenceType": "purl",
                "referenceLocator": f"pkg:{kind}/{quote(name)}@{quote(version, safe='')}",
            }
        ],
    }


def _relation(element: str, kind: str, related: str) -> dict[str, str]:
    return {"spdxElementId": element, "relationshipType": kind, "relatedSpdxElement": related}
