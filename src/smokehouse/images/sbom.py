"""The software bill of materials (SBOM) of an image or an environment, which depends on its locks and wheels alone.

See: https://spdx.github.io/spdx-spec/v2.3/ and https://cyclonedx.org/docs/1.6/json/
"""

import json
import uuid
from collections.abc import Mapping, Sequence

from smokehouse import __version__
from smokehouse.images.components import Component
from smokehouse.images.spec import created
from smokehouse.locks import Lock
from smokehouse.storage import files

# What each component depends on, by reference.
Dependencies = Mapping[str, Sequence[str]]


def spdx(lock: Lock, contained: Sequence[Component], depends: Dependencies, whole: str = "environment") -> str:
    """Return an SBOM as SPDX JSON; `whole` says what contains the components: an environment or an image.

    A licence that is not an SPDX expression is declared by a reference to its words, which are in the document.

    See: https://spdx.github.io/spdx-spec/v2.3/other-licensing-information-detected/
    """
    root = f"SPDXRef-{whole}"
    packages = [_spdx_package(component) for component in contained]
    name = {"SPDXID": root, "name": lock.environment, "downloadLocation": "NOASSERTION", "filesAnalyzed": False}
    relationships = [
        _relation("SPDXRef-DOCUMENT", "DESCRIBES", root),
        *(_relation(root, "CONTAINS", str(package["SPDXID"])) for package in packages),
        *(
            _relation(f"SPDXRef-{component}", "DEPENDS_ON", f"SPDXRef-{other}")
            for component, others in _among(contained, depends).items()
            for other in others
        ),
    ]
    stated = {_licence_reference(text): text for component in contained if (text := _words(component))}
    extracted = [
        {"licenseId": licence, "extractedText": text, "name": " ".join(text.split())[:80]}
        for licence, text in sorted(stated.items())
    ]
    content: dict[str, object] = {"packages": [name, *packages], "relationships": relationships}
    content |= {"hasExtractedLicensingInfos": extracted} if extracted else {}
    document = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": lock.environment,
        "documentNamespace": f"https://spdx.org/spdxdocs/smokehouse-{lock.environment}-{files.sha256(json.dumps(content))}",
        "creationInfo": {"created": created(lock), "creators": [f"Tool: smokehouse-{__version__}"]},
        **content,
    }
    return json.dumps(document, indent=1) + "\n"


def cyclonedx(lock: Lock, contained: Sequence[Component], depends: Dependencies, whole: str = "environment") -> str:
    """Return an SBOM as CycloneDX 1.6 JSON; the same components give the same document.

    `whole` says what contains the components: an environment or an image. The dependencies of Debian packages are not in
    their lock, which the compositions say.
    """
    listed = [_cyclonedx_component(component) for component in contained]
    among = _among(contained, depends)
    required = {other for others in among.values() for other in others}
    references = [component.reference for component in contained]
    edges = [{"ref": whole, "dependsOn": [name for name in references if name not in required]}]
    edges += [{"ref": name, "dependsOn": list(among.get(name, ()))} for name in references]
    debian = [component.reference for component in contained if component.kind == "deb"]
    serial = uuid.uuid5(uuid.NAMESPACE_URL, f"smokehouse:{lock.environment}:{json.dumps([listed, edges])}")
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {
            "timestamp": created(lock),
            "tools": {"components": [{"type": "application", "name": "smokehouse", "version": __version__}]},
            "component": {"type": "platform", "bom-ref": whole, "name": lock.environment},
        },
        "components": listed,
        "dependencies": edges,
        **({"compositions": [{"aggregate": "unknown", "dependencies": debian}]} if debian else {}),
    }
    return json.dumps(document, indent=1) + "\n"


def _among(contained: Sequence[Component], depends: Dependencies) -> dict[str, list[str]]:
    """Return the dependencies between the components that the document contains."""
    known = {component.reference for component in contained}
    among = {name: [other for other in depends[name] if other in known] for name in sorted(known & depends.keys())}
    return {name: others for name, others in among.items() if others}


def _words(component: Component) -> str:
    """Return the licence that a component states where it is not an SPDX expression, else nothing."""
    return component.licence.strip() if component.licence and not component.expression else ""


def _licence_reference(text: str) -> str:
    return f"LicenseRef-smokehouse-{files.sha256(text)[:16]}"


def _spdx_package(component: Component) -> dict[str, object]:
    declared = _licence_reference(words) if (words := _words(component)) else component.expression
    return {
        "SPDXID": f"SPDXRef-{component.reference}",
        "name": component.name,
        "versionInfo": component.version,
        "packageFileName": component.file,
        "supplier": f"Organization: {component.supplier}" if component.supplier else "NOASSERTION",
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "checksums": [{"algorithm": "SHA256", "checksumValue": component.sha256}],
        "licenseDeclared": declared or "NOASSERTION",
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
        **({"supplier": {"name": component.supplier}} if component.supplier else {}),
        "name": component.name,
        "version": component.version,
        "hashes": [{"alg": "SHA-256", "content": component.sha256}],
        **({"licenses": licence} if licence else {}),
        "purl": component.purl,
        "properties": [{"name": "smokehouse:file", "value": component.file}],
    }


def _relation(element: str, kind: str, related: str) -> dict[str, str]:
    return {"spdxElementId": element, "relationshipType": kind, "relatedSpdxElement": related}
