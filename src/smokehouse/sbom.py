"""The bill of materials of an image: SPDX 2.3, written from locks and nothing else, so the same for the same ones."""

import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from email.parser import HeaderParser
from pathlib import Path
from urllib.parse import quote

from smokehouse import files
from smokehouse.base import DebianPackage
from smokehouse.image import created
from smokehouse.manifest import CondaPackage, LockedFile, Manifest

_SPDX = re.compile(r"[A-Za-z0-9.+-]+(?: (?:AND|OR|WITH) [A-Za-z0-9.+-]+)*")


def text(
    manifest: Manifest, conda: Sequence[CondaPackage], debian: Sequence[DebianPackage], licences: Mapping[str, str]
) -> str:
    """Return the SBOM as JSON: every package of the image with its hash, and its licence where it is known.

    `conda` is the part of the conda half that is in the image, `licences` has those of wheels by file name.
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
            if stated := headers.get("License-Expression") or headers.get("License"):
                found[file.file] = str(stated)
    return found


def _package(kind: str, name: str, version: str, file: str, sha256: str, licence: str | None) -> dict[str, object]:
    # Only what is written as SPDX wants it can stand there; texts of whole licences are among the others.
    stated = licence if licence and _SPDX.fullmatch(licence) else None
    short = name.removeprefix("debian/")
    return {
        "SPDXID": f"SPDXRef-{kind}-{re.sub(r'[^A-Za-z0-9.-]', '-', short)}",
        "name": short,
        "versionInfo": version,
        "packageFileName": file,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "checksums": [{"algorithm": "SHA256", "checksumValue": sha256}],
        "licenseDeclared": "NOASSERTION",
        "licenseComments": stated or "NOASSERTION",
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
