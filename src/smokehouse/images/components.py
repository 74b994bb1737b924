"""The components of an image or an environment: each artefact, what it states as its licence, and what it depends on.

See: https://github.com/package-url/purl-spec
"""

import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser
from importlib import metadata
from pathlib import Path
from urllib.parse import quote

import yaml
from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.utils import canonicalize_name

from smokehouse.images.debian_lock import DebianPackage
from smokehouse.locks import CondaPackage, Lock, LockedEnvironment, LockedFile, pins

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
    """One artefact; `licence` is what it states itself, None where that is not known.

    `qualifiers` are those of its package URL, `supplier` the organization that built or distributes it, empty where that is
    not known.
    """

    kind: str  # deb | conda | pypi
    name: str
    version: str
    file: str
    sha256: str
    licence: str | None
    qualifiers: tuple[tuple[str, str], ...] = ()
    supplier: str = ""

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
        return reference(self.kind, self.name)

    @property
    def purl(self) -> str:
        """The package URL."""
        name = f"debian/{self.name}" if self.kind == "deb" else self.name
        qualifiers = "&".join(f"{key}={quote(value, safe=':')}" for key, value in sorted(self.qualifiers))
        return f"pkg:{self.kind}/{quote(name)}@{quote(self.version, safe=':')}{f'?{qualifiers}' if qualifiers else ''}"


def reference(kind: str, name: str) -> str:
    """Return the name of a component in a document, of characters that SPDX allows."""
    return f"{kind}-{re.sub(r'[^A-Za-z0-9-]', lambda found: f'.{ord(found[0]):x}.', name)}"


def components(
    lock: Lock, conda: Sequence[CondaPackage], debian: Sequence[DebianPackage], licences: Mapping[str, str]
) -> list[Component]:
    """Return the given conda and Debian packages and the PyPI packages of `lock`, sorted; `licences` by file name."""
    release = debian_release(debian)
    found = [
        *(_debian(package, release) for package in debian),
        *(_conda(package, lock.channel.name) for package in conda),
        *(Component("pypi", p.name, p.version, p.file, p.sha256, licences.get(p.file)) for p in lock.pip),
    ]
    return sorted(found, key=lambda component: component.reference)


def debian_release(packages: Iterable[DebianPackage]) -> str:
    """Return the number of the Debian release, such as 12, from the version of base-files; empty without it."""
    version = next((package.version for package in packages if package.name == "base-files"), "")
    return version.partition(".")[0].partition("+")[0]


def dependencies(locked: LockedEnvironment) -> dict[str, tuple[str, ...]]:
    """Return what each conda and PyPI package of a lock depends on, by reference, from the files of the lock.

    The lock of the Debian base has no dependencies. Raises UserError where a file is missing or was edited.
    """
    found: dict[str, set[str]] = {}
    conda = {package.name for package in locked.lock.conda}
    for package in yaml.load(locked.files.conda_lock.read_bytes(), Loader=yaml.CSafeLoader)["package"]:
        depends = conda & {*package["dependencies"]}
        found[reference("conda", package["name"])] = {reference("conda", name) for name in depends}
    names = {canonicalize_name(file.name): file.name for file in locked.lock.pip}
    for package, requirers in pins.read(locked.files.pins, locked.files.build_pins).via.items():
        for requirer in requirers:
            if canonicalize_name(requirer) in names and canonicalize_name(package) in names:
                ours = reference("pypi", names[canonicalize_name(requirer)])
                found.setdefault(ours, set()).add(reference("pypi", names[canonicalize_name(package)]))
    return {name: tuple(sorted(depends)) for name, depends in sorted(found.items()) if depends}


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


def _debian(package: DebianPackage, release: str) -> Component:
    """Return a Debian package, by whose qualifiers scanners find what Debian knows of its source package."""
    qualifiers = [("arch", package.architecture)]
    qualifiers += [("distro", f"debian-{release}")] if release else []
    if (package.source, package.source_version) != (package.name, package.version):
        other = f"@{package.source_version}" if package.source_version != package.version else ""
        qualifiers += [("upstream", f"{package.source}{other}")]
    file = Path(package.path).name
    return Component("deb", package.name, package.version, file, package.sha256, None, tuple(qualifiers), "Debian")


def _conda(package: CondaPackage, channel: str) -> Component:
    kind = "conda" if package.file.endswith(".conda") else "tar.bz2"
    qualifiers = (("build", package.build), ("channel", channel), ("subdir", package.subdir), ("type", kind))
    return Component("conda", package.name, package.version, package.file, package.sha256, package.license, qualifiers, channel)


def _stated(headers: Message) -> str | None:
    """Return the licence that a package's metadata state, None where they state none."""
    classifiers = [text for text in headers.get_all("Classifier", []) if text.startswith("License :: ")]
    # Two classifiers can be alternatives or both apply, so they are not made an expression.
    names = "; ".join(text.rpartition(" :: ")[2] for text in classifiers)
    stated = [str(text) for text in (headers.get("License-Expression"), headers.get("License"), names) if text]
    # Many projects put the whole text of a licence in License, and its name in a classifier.
    return next((text for text in stated if _expression(text)), stated[0] if stated else None)


def _expression(stated: str) -> str | None:
    """Return the SPDX expression of the licence `stated`, None where it is not the name of one.

    Of a whole text, the first line is its name.
    """
    stated = stated.strip().partition("\n")[0].strip()
    words = frozenset(re.findall(r"[a-z]+|\d+(?:\.\d+)?", stated.lower())) - {"license", "software", "the", "version"}
    try:
        expression = canonicalize_license_expression(_BY_WORDS.get(words, stated))
    except InvalidLicenseExpression:
        return None
    # A LicenseRef is defined in the document that uses it, and the wheel does not give its text.
    return None if "LicenseRef-" in expression else expression
