"""The SBOM of a lock, made without building an image, and the audit of a lock."""

import importlib.resources
import json
import re
import shlex
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jsonschema
import packageurl
import pytest
import referencing
from packaging.licenses import canonicalize_license_expression

from smokehouse import __version__
from smokehouse.checkout import Checkout
from smokehouse.images import components as parts
from smokehouse.images import debian_lock, sbom
from smokehouse.locks import check

from ..committed import by_inputs
from ..conftest import Index, TestCheckout, wheel

NAMES = by_inputs()
FORMATS = ["spdx", "cyclonedx"]


@pytest.fixture(scope="module")
def validators(root: Path) -> dict[str, jsonschema.Draft7Validator]:
    """Return the validator of each format by its own schema."""
    folder = importlib.resources.files("cyclonedx.schema") / "_res"
    names = ("bom-1.6", "spdx", "jsf-0.82")
    schemas = {name: json.loads((folder / f"{name}.SNAPSHOT.schema.json").read_text()) for name in names}
    registry: referencing.Registry[Any] = referencing.Registry().with_resources(
        (schema["$id"], referencing.Resource.from_contents(schema)) for schema in schemas.values()
    )
    spdx = json.loads((root / "tests" / "data" / "sbom" / "spdx-2.3.schema.json").read_text())
    return {
        "spdx": jsonschema.Draft7Validator(spdx),
        "cyclonedx": jsonschema.Draft7Validator(schemas["bom-1.6"], registry=registry),
    }


def documents(root: Path, name: str, licences: dict[str, str]) -> dict[str, Any]:
    """Return both SBOMs of a lock of this repository, parsed."""
    locked = check.load(Checkout(root), name)
    contained = parts.components(locked.lock, locked.lock.conda, debian_lock.read(Checkout(root)), licences)
    depends = parts.dependencies(locked)
    written = {"spdx": sbom.spdx, "cyclonedx": sbom.cyclonedx}
    return {kind: json.loads(write(locked.lock, contained, depends, "image")) for kind, write in written.items()}


@pytest.mark.parametrize("name", NAMES)
def test_documents_follow_their_schemas(root: Path, name: str, validators: dict[str, jsonschema.Draft7Validator]) -> None:
    lock = check.load(Checkout(root), name).lock
    stated = ["MIT", "Apache-2.0 OR MIT", "the licence of Babel\n" + "x" * 900]
    licences = {file.file: stated[number % 3] for number, file in enumerate(lock.pip) if number % 4}
    for kind, document in documents(root, name, licences).items():
        assert [error.message for error in validators[kind].iter_errors(document)] == []


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("spdx", ("packages", 1, "checksums", 0, "algorithm"), "SHA-256"),
        ("spdx", ("relationships", 0, "relationshipType"), "INCLUDES"),
        ("cyclonedx", ("components", 0, "type"), "package"),
        ("cyclonedx", ("components", 0, "hashes", 0, "alg"), "SHA256"),
        ("cyclonedx", ("components", 0, "licenses"), [{"expression": "MIT"}, {"expression": "ISC"}]),
        ("cyclonedx", ("serialNumber",), "urn:uuid:none"),
    ],
)
def test_schemas_refuse_what_is_wrong(
    root: Path, validators: dict[str, jsonschema.Draft7Validator], kind: str, path: tuple[str | int, ...], value: object
) -> None:
    document = documents(root, NAMES[0], {})[kind]
    place = document
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    assert not validators[kind].is_valid(document)


def packages(document: dict[str, Any]) -> dict[str, str]:
    """Return package URL -> SHA-256 of either format."""
    if "components" in document:
        return {entry["purl"]: entry["hashes"][0]["content"] for entry in document["components"]}
    entries = document["packages"][1:]
    return {e["externalRefs"][0]["referenceLocator"]: e["checksums"][0]["checksumValue"] for e in entries}


def printed(checkout: TestCheckout, *arguments: str) -> tuple[dict[str, Any], str]:
    """Return the document that `sbom tiny` prints, and what it says."""
    ended = checkout.run("sbom", "tiny", *arguments)
    assert ended.returncode == 0, ended.stderr
    document: dict[str, Any] = json.loads(ended.stdout)
    return document, ended.stderr


@pytest.mark.parametrize("kind", FORMATS)
def test_each_package_of_the_lock_is_listed_with_its_hash(checkout: TestCheckout, kind: str) -> None:
    checkout.lock()
    lock = json.loads(checkout.lock_json.read_text())
    for devel in (False, True):
        document, said = printed(checkout, "--format", kind, *(["--devel"] if devel else []))
        conda = [entry for entry in lock["conda"] if devel or entry["category"] == "main"]
        assert len(conda) < len(lock["conda"]) or devel
        wanted = {
            f"pkg:conda/{e['name']}@{e['version']}?build={e['build']}&channel=conda-forge&subdir={e['subdir']}&type=conda": e[
                "sha256"
            ]
            for e in conda
        }
        wanted |= {f"pkg:pypi/{entry['name']}@{entry['version']}": entry["sha256"] for entry in lock["pip"]}
        assert packages(document) == wanted
    assert re.fullmatch(
        r"smokehouse: tiny: licence unknown of \d+ of \d+ packages \(\w+, …\); "
        r"wheels state theirs: give --bundle DIR, or run smokehouse smoke tiny first\n",
        said,
    )


@pytest.mark.parametrize("kind", FORMATS)
def test_the_same_lock_gives_the_same_document_in_a_file_too(checkout: TestCheckout, tmp_path: Path, kind: str) -> None:
    checkout.lock()
    first = checkout.run("sbom", "tiny", "--format", kind).stdout
    ended = checkout.run("sbom", "tiny", f"--format={kind}", "--output", str(tmp_path / "sbom.json"))
    assert (ended.returncode, ended.stdout) == (0, "")
    assert (tmp_path / "sbom.json").read_text() == first
    nowhere = checkout.refused("sbom", "tiny", "--output", "/proc/nowhere/sbom.json")
    assert "/proc/nowhere" in nowhere


@pytest.fixture
def licensed(index: Index, checkout: TestCheckout) -> TestCheckout:
    """A locked checkout, in which alpha states a licence as SPDX has it, and gamma in words."""
    for name, version, licence in (("alpha", "1.0", "License-Expression: MIT"), ("gamma", "1.5", "License: as is, mostly")):
        index.put(f"{name}-{version}-py3-none-any.whl", wheel(name, version, headers=(licence,)))
    checkout.lock()
    return checkout


def of_wheels(document: dict[str, Any]) -> dict[str, object]:
    """Return what either format says of the licences of the PyPI packages."""
    if "components" in document:
        return {e["name"]: e.get("licenses") for e in document["components"] if e["purl"].startswith("pkg:pypi/")}
    texts = {e["licenseId"]: e["extractedText"] for e in document.get("hasExtractedLicensingInfos", [])}
    entries = [e for e in document["packages"][1:] if e["packageFileName"].endswith(".whl")]
    return {e["name"]: texts.get(e["licenseDeclared"], e["licenseDeclared"]) for e in entries}


LICENCES: dict[str, dict[str, object]] = {
    "spdx": {"alpha": "MIT", "beta": "NOASSERTION", "gamma": "as is, mostly"},
    "cyclonedx": {"alpha": [{"expression": "MIT"}], "beta": None, "gamma": [{"license": {"name": "as is, mostly"}}]},
}


@pytest.mark.parametrize("kind", FORMATS)
def test_licences_are_those_of_the_installed_packages(licensed: TestCheckout, kind: str) -> None:
    assert licensed.run("smoke", "tiny").returncode == 0
    document, said = printed(licensed, "--format", kind)
    assert of_wheels(document) == LICENCES[kind]
    assert said.endswith("(beta, …); their metadata state none\n")


@pytest.mark.parametrize("kind", FORMATS)
def test_licences_are_those_of_the_wheels_in_a_bundle(licensed: TestCheckout, tmp_path: Path, kind: str) -> None:
    assert licensed.run("bundle", "tiny", str(tmp_path / "bundle"), "--only", "pip").returncode == 0
    document, _ = printed(licensed, "--format", kind, "--bundle", str(tmp_path / "bundle"))
    assert of_wheels(document) == LICENCES[kind]


def test_a_package_of_another_version_states_nothing(licensed: TestCheckout) -> None:
    assert licensed.run("smoke", "tiny").returncode == 0
    [metadata] = licensed.installed.glob("lib/python3.*/site-packages/alpha-1.0.dist-info/METADATA")
    metadata.write_text(metadata.read_text().replace("Version: 1.0", "Version: 1.1"))
    document, _ = printed(licensed)
    assert of_wheels(document)["alpha"] == "NOASSERTION"


def test_conda_licences_that_are_expressions_are_declared_as_such(root: Path) -> None:
    document = documents(root, "qwen2.5-vl", {})["spdx"]
    declared = {e["licenseDeclared"] for e in document["packages"][1:]} - {"NOASSERTION"}
    declared -= {entry["licenseId"] for entry in document["hasExtractedLicensingInfos"]}
    assert len(declared) > 5
    assert all(canonicalize_license_expression(licence) == licence for licence in declared)


def test_debian_packages_have_the_qualifiers_by_which_scanners_match(root: Path) -> None:
    """Without distro, they know no advisories; without upstream, they miss those of the source package."""
    document = documents(root, "qwen2.5-vl", {})["spdx"]
    entries = [entry for entry in document["packages"][1:] if entry["SPDXID"].startswith("SPDXRef-deb-")]
    found = {entry["name"]: entry["externalRefs"][0]["referenceLocator"] for entry in entries}
    version = {package.name: package.version for package in debian_lock.read(Checkout(root))}
    assert len(found) == len(version)
    assert found["bsdutils"] == (
        f"pkg:deb/debian/bsdutils@{quote(version['bsdutils'], safe=':')}?arch=amd64&distro=debian-12"
        f"&upstream=util-linux%40{quote(version['libmount1'], safe=':')}"  # the source has no epoch
    )
    assert found["adduser"] == f"pkg:deb/debian/adduser@{version['adduser']}?arch=all&distro=debian-12"
    for text in found.values():
        parsed = packageurl.PackageURL.from_string(text)
        assert (parsed.type, parsed.namespace, parsed.to_string()) == ("deb", "debian", text)


@pytest.mark.parametrize("name", NAMES)
def test_dependencies_are_those_of_the_lock(root: Path, name: str) -> None:
    both = documents(root, name, {})
    pins = (root / "lockfiles" / name / "requirements.txt").read_text()
    lock = check.load(Checkout(root), name).lock
    locked = {file.name for file in lock.pip}
    expected = {
        (requirer, package)
        for package, via in re.findall(r"^([\w.-]+)==[^#]*# via (.*)$", pins, re.MULTILINE)
        for requirer in via.split(", ")
        if requirer in locked
    }
    assert ("peft", "accelerate") in expected
    related = both["spdx"]["relationships"]
    edges = {(e["spdxElementId"][8:], e["relatedSpdxElement"][8:]) for e in related if e["relationshipType"] == "DEPENDS_ON"}
    assert {edge for edge in edges if edge[0].startswith("pypi-")} == {(f"pypi-{a}", f"pypi-{b}") for a, b in expected}
    assert ("conda-python", "conda-openssl") in edges
    listed = {entry["ref"]: entry["dependsOn"] for entry in both["cyclonedx"]["dependencies"]}
    assert {(a, b) for a, others in listed.items() for b in others if a != "image"} == edges
    reached, queue = set[str](), ["image"]
    while queue:
        reached.add(queue[-1])
        queue += [other for other in listed[queue.pop()] if other not in reached]
    assert len(reached) == len(both["cyclonedx"]["components"]) + 1  # nothing that only a circle refers to


def test_the_tool_and_suppliers_are_named(root: Path) -> None:
    both = documents(root, NAMES[0], {})
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    assert __version__ == version
    assert both["spdx"]["creationInfo"]["creators"] == [f"Tool: smokehouse-{version}"]
    assert both["cyclonedx"]["metadata"]["tools"]["components"] == [
        {"type": "application", "name": "smokehouse", "version": version}
    ]
    suppliers = {(e["SPDXID"].split("-")[1], e["supplier"]) for e in both["spdx"]["packages"][1:]}
    assert suppliers == {("deb", "Organization: Debian"), ("conda", "Organization: conda-forge"), ("pypi", "NOASSERTION")}


# pip-audit


@pytest.fixture
def osv() -> Iterator[tuple[str, list[str]]]:
    """Yield the address of a vulnerability service that knows of one in pillow, and the packages that it was asked about."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(f"{query['package']['name']}=={query['version']}")
            fixed = {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.0"}]}
            affected = [{"package": {"name": "pillow", "ecosystem": "PyPI"}, "ranges": [fixed]}]
            known = {"vulns": [{"id": "TEST-2026-1", "summary": "a test", "affected": affected}]}
            body = json.dumps(known if query["package"]["name"] == "pillow" else {}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_osv_scanner_is_given_a_lock_by_a_name_that_it_knows(root: Path) -> None:
    """It takes the format from the file's name: https://google.github.io/osv-scanner/usage/."""
    page = (root / "docs" / "how-to" / "security.md").read_text()
    [command] = re.findall(r"^    (osv-scanner .*)$", page, re.MULTILINE)
    file = root / shlex.split(command.replace("NAME", "qwen2.5-vl"))[-1]
    assert (file.name, file.is_file()) == ("requirements.txt", True)


def test_pip_audit_reads_a_lock_with_the_documented_command(root: Path, osv: tuple[str, list[str]], tmp_path: Path) -> None:
    """The command of the page, asked of a service on this machine: every package is audited, and what is found is an error."""
    url, asked = osv
    page = (root / "docs" / "how-to" / "security.md").read_text()
    [command] = re.findall(r"^    (pip-audit .*)$", page, re.MULTILINE)
    words = [word.replace("NAME", "qwen2.5-vl") for word in shlex.split(command)]
    here = ["-s", "osv", "--osv-url", url, "--cache-dir", str(tmp_path), "--progress-spinner", "off"]
    audit = [sys.executable, "-m", "pip_audit", *words[1:], *here]
    ended = subprocess.run(audit, cwd=root, capture_output=True, text=True, timeout=120)
    lock = check.load(Checkout(root), "qwen2.5-vl").lock
    assert sorted(asked) == sorted(f"{file.name}=={file.version}" for file in lock.pip), ended.stderr
    assert ended.returncode == 1
    assert "Found 1 known vulnerability in 1 package" in ended.stderr
    assert re.search(r"^pillow +\S+ +TEST-2026-1 +99\.0", ended.stdout, re.MULTILINE)
