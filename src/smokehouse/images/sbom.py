"""The software bill of materials (SBOM) of an image or an environment, which depends on its locks and wheels alone.

See: https://spdx.github.io/spdx-spec/v2.3/ and https://cyclonedx.org/docs/1.6/json/
"""

import json
import re
import uuid
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser
from importlib import metadata
from pathlib import Path
from urllib.parse import quote

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.utils import canonicalize_name

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


@dataclass(frozen=True)
class Component:
    """One artefact; `licence` is what it states itself, None where that is not known."""

    kind: str  # deb | conda | pypi
    name: str
    version: str
    file: str
    sha256: str
    licence: str | None

    @property
    def expression(self) -> str | None:
        """The licence as an SPDX expression, None where it is not one."""
        return _expression(self.licence) if self.licence else None

    @property
    def comment(self) -> str:
        """The beginning of a licence that is not an SPDX expression; empty where it is one, or unknown."""
        return " ".join(self.licence.split())[:_MAX_COMMENT] if self.licence and not self.expression else ""

    @property
    def reference(self) -> str:
        """A name that is unique in the document. conda-forge has both typing-extensions and typing_extensions."""
        return f"{self.kind}-{re.sub(r'[^A-Za-z0-9-]', lambda found: f'.{ord(found[0]):x}.', self.name)}"

    @property
    def purl(self) -> str:
        """The package URL.

        See: https://github.com/package-url/purl-spec
        """
        name = f"debian/{self.name}" if self.kind == "deb" else self.name
        return f"pkg:{self.kind}/{quote(name)}@{quote(self.version, safe='')}"


def components(
    lock: Lock, conda: Sequence[CondaPackage], debian: Sequence[DebianPackage], licences: Mapping[str, str]
) -> list[Component]:
    """Return the given conda and Debian packages and the PyPI packages of `lock`, sorted; `licences` by file name."""
    found = [
        *(Component("deb", p.name, p.version, Path(p.path).name, p.sha256, None) for p in debian),
        *(Component("conda", p.name, p.version, p.file, p.sha256, p.license) for p in conda),
        *(Component("pypi", p.name, p.version, p.file, p.sha256, licences.get(p.file)) for p in lock.pip),
    ]
    return sorted(found, key=lambda component: component.reference)


def text(lock: Lock, conda: Sequence[CondaPackage], debian: Sequence[DebianPackage], licences: Mapping[str, str]) -> str:
    """Return the SBOM of an image as SPDX JSON: every package with its hash, and its licence if it is known.

    `conda` and `debian` are the packages in the image, `licences` those of wheels by file name. A licence that is not an SPDX
    expression becomes a comment.

    See: https://spdx.github.io/spdx-spec/v2.3/package-information/#715-declared-license-field
    """
    return spdx(lock, components(lock, conda, debian, licences), "image")


def spdx(lock: Lock, contained: Sequence[Component], whole: str = "environment") -> str:
    """Return an SBOM as SPDX JSON; `whole` says what contains the components: an environment or an image."""
    root = f"SPDXRef-{whole}"
    packages = [_spdx_package(component) for component in contained]
    name = {"SPDXID": root, "name": lock.environment, "downloadLocation": "NOASSERTION", "filesAnalyzed": False}
    digest = files.sha256(json.dumps(packages))
    document = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": lock.environment,
        "documentNamespace": f"https://spdx.org/spdxdocs/smokehouse-{lock.environment}-{digest}",
        "creationInfo": {"created": _created(lock), "creators": ["Tool: smokehouse"]},
        "packages": [name, *packages],
        "relationships": [
            _relation("SPDXRef-DOCUMENT", "DESCRIBES", root),
            *(_relation(root, "CONTAINS", str(package["SPDXID"])) for package in packages),
        ],
    }
    return json.dumps(document, indent=1) + "\n"


def cyclonedx(lock: Lock, contained: Sequence[Component]) -> str:
    """Return the SBOM of an environment as CycloneDX 1.6 JSON; the same components give the same document."""
    listed = [_cyclonedx_component(component) for component in contained]
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'smokehouse:{lock.environment}:{json.dumps(listed)}')}",
        "version": 1,
        "metadata": {
            "timestamp": _created(lock),
            "tools": {"components": [{"type": "application", "name": "smokehouse"}]},
            "component": {"type": "platform", "bom-ref": "environment", "name": lock.environment},
        },
        "components": listed,
        "dependencies": [{"ref": "environment", "dependsOn": [component.reference for component in contained]}],
    }
    return json.dumps(document, indent=1) + "\n"


def licences(wheels: Path, locked: Sequence[LockedFile]) -> dict[str, str]:
    """Return the licence in the metadata of each wheel in the folder `wheels`, by file name; wheels without one are omitted."""
    found = {}
    for file in locked:
        if file.file.endswith(".whl"):
            with zipfile.ZipFile(wheels / file.file) as wheel:
                name = next((name for name in wheel.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)), None)
                text = wheel.read(name).decode("utf-8", "replace") if name else ""
            if stated := _stated(HeaderParser().parsestr(text)):
                found[file.file] = stated
    return found


def installed_licences(prefix: Path, locked: Sequence[LockedFile]) -> dict[str, str]:
    """Return the licence in the metadata of each locked package that is installed in `prefix` in its locked version."""
    sites = [str(site) for site in prefix.glob("lib/python3.*/site-packages")]
    files_of = {(canonicalize_name(file.name), file.version): file.file for file in locked}
    found = {}
    for distribution in metadata.distributions(path=sites):
        headers = HeaderParser().parsestr(distribution.read_text("METADATA") or "")
        file = files_of.get((canonicalize_name(headers.get("Name", "")), headers.get("Version", "")))
        if file and (stated := _stated(headers)):
            found[file] = stated
    return found


def _stated(headers: Message) -> str | None:
    """Return the licence that a package's metadata state, None where they state none."""
    classifiers = [text for text in headers.get_all("Classifier", []) if text.startswith("License :: ")]
    # Two classifiers can be alternatives or both apply, so they are not made an expression.
    names = "; ".join(text.rpartition(" :: ")[2] for text in classifiers)
    stated = [str(text) for text in (headers.get("License-Expression"), headers.get("License"), names) if text]
    # Many projects put the whole text of a licence in License, and its name in a classifier.
    return next((text for text in stated if _expression(text)), stated[0] if stated else None)


def _expression(stated: str) -> str | None:
    """Return the SPDX expression of the licence `stated`, None where it is not the name of one."""
    words = frozenset(re.findall(r"[a-z]+|\d+(?:\.\d+)?", stated.lower())) - {"license", "software", "the", "version"}
    try:
        expression = canonicalize_license_expression(_BY_WORDS.get(words, stated))
    except InvalidLicenseExpression:
        return None
    # A LicenseRef is defined in the document that uses it, and the wheel does not give its text.
    return None if "LicenseRef-" in expression else expression


def _created(lock: Lock) -> str:
    return created(lock).strftime("%Y-%m-%dT%H:%M:%SZ")


def _spdx_package(component: Component) -> dict[str, object]:
    return {
        "SPDXID": f"SPDXRef-{component.reference}",
        "name": component.name,
        "versionInfo": component.version,
        "packageFileName": component.file,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "checksums": [{"algorithm": "SHA256", "checksumValue": component.sha256}],
        "licenseDeclared": component.expression or "NOASSERTION",
        **({"licenseComments": component.comment} if component.comment else {}),
        "externalRefs": [
            {
                "referenceCategory": "PACKAGE-MANAGER",
                "referenceType": "purl",
                "referenceLocator": component.purl,
            }
        ],
    }


def _cyclonedx_component(component: Component) -> dict[str, object]:
    licence: list[dict[str, object]] = []
    if component.expression:
        licence = [{"expression": component.expression}]
    elif component.comment:
        licence = [{"license": {"name": component.comment}}]
    return {
        "type": "library",
        "bom-ref": component.reference,
        "name": component.name,
        "version": component.version,
        "hashes": [{"alg": "SHA-256", "content": component.sha256}],
        **({"licenses": licence} if licence else {}),
        "purl": component.purl,
        "properties": [{"name": "smokehouse:file", "value": component.file}],
    }


def _relation(element: str, kind: str, related: str) -> dict[str, str]:
    return {"spdxElementId": element, "relationshipType": kind, "relatedSpdxElement": related}
