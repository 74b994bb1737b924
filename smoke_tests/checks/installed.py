"""What is installed is exactly what the lock specifies."""

import base64
import csv
import hashlib
import re
import sys
import sysconfig
from pathlib import Path

from packaging.utils import canonicalize_name
from packaging.version import Version

from smoke_tests import runtime
from smoke_tests.checks.context import RankContext, TrainingState
from smoke_tests.outcome import Outcome, judged

# Every environment has it beside what its lock specifies, built from the sources in this checkout.
_LOADER = "smokehouse-loader"
_LOADER_SOURCES = Path(__file__).parents[2] / "packages" / "smokehouse-loader" / "smokehouse_loader"


def read_lock(lock: Path) -> dict[str, Version]:
    """Return canonical name -> version of every package in `requirements.txt` of the lock folder `lock`.

    In an image, `added.txt` beside it lists the wheels that were added by their hashes.
    """
    text = "\n".join(path.read_text() for path in (lock / "requirements.txt", lock / "added.txt") if path.exists())
    pins = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", text, re.MULTILINE)
    return {canonicalize_name(name): Version(version) for name, version in pins}


def _same(locked: Version, found: Version) -> bool:
    """Whether `found` is `locked`. A lock without a local part (`+cu124`) accepts any, as installers do."""
    return Version(found.public) == locked if locked.local is None else found == locked


def _installed() -> tuple[dict[str, Version], list[str]]:
    """Return canonical name -> version of every installed package, and what no lock can specify."""
    installed: dict[str, Version] = {}
    problems = []
    for folder in sorted({Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")}):
        # The folders' names, not their METADATA: parsing that of a hundred packages takes a second.
        for info in sorted([*folder.glob("*.dist-info"), *folder.glob("*.egg-info"), *folder.glob("*.egg-link")]):
            stem, _, number = info.stem.partition("-")
            name, version = canonicalize_name(stem), Version(number.partition("-")[0] or "0")
            if name in installed:
                problems.append(f"{name} is installed twice ({installed[name]} and {version})")
            installed[name] = version
            if (info / "direct_url.json").exists() or info.suffix == ".egg-link":
                problems.append(f"{name} was installed from a path or a URL, not from the lock")
            if version.is_devrelease:
                problems.append(f"{name} {version} is a development version")
    return installed, problems


def versions(context: RankContext, _: TrainingState) -> Outcome:
    """Check that what is installed is exactly lock and loader, and what was imported is what is installed, unedited."""
    locked = read_lock(context.lock)
    installed, problems = _installed()
    loader = installed.pop(_LOADER, None)
    problems += [f"{name}: expected {locked[name]}, not installed" for name in sorted(locked.keys() - installed.keys())]
    problems += [f"{name}: not in the lock, found {installed[name]}" for name in sorted(installed.keys() - locked.keys())]
    problems += [
        f"{name}: expected {locked[name]}, found {installed[name]}"
        for name in sorted(locked.keys() & installed.keys())
        if not _same(locked[name], installed[name])
    ]
    problems += [*_imported(locked), *_loader(loader)]
    return judged(problems, f"{len(locked)} packages as locked", versions=runtime.versions(context.device))


def _imported(locked: dict[str, Version]) -> list[str]:
    """Return what is wrong with the imported modules: their version, their place, or a file edited after its installation."""
    problems = []
    for name in ("torch", "transformers", "deepspeed"):
        module = sys.modules[name]
        if name not in locked or not _same(locked[name], Version(module.__version__)):
            problems.append(f"{name}: expected {locked.get(name, 'nothing')}, imported {module.__version__}")
        problems += _edited(name, Version(module.__version__).public)
    return problems


def _loader(version: Version | None) -> list[str]:
    """Return what is wrong with the loader, installed as `version`: its place, or a file that is not the checkout's."""
    if version is None:
        return [f"{_LOADER}: expected in every environment, not installed; the loader of the checkout was tested"]
    problems = _edited("smokehouse_loader", str(version))
    place = Path(str(sys.modules["smokehouse_loader"].__file__)).parent
    # An image has no sources to compare with.
    sources = _LOADER_SOURCES.glob("[!.]*.*") if _LOADER_SOURCES.is_dir() else ()
    for source in sorted(sources):
        file = place / source.name
        if not file.is_file() or file.read_bytes() != source.read_bytes():
            problems.append(f"{file}: expected the same as {source}, found another; install the environment again")
    return problems


def _edited(name: str, version: str) -> list[str]:
    """Return what is wrong with the imported files of the package `name`: their place, or an edit after their installation."""
    module = sys.modules[name]
    site = Path(str(module.__file__)).parent.parent
    if not site.is_relative_to(sys.prefix):
        return [f"{name} was imported from {module.__file__}, outside the environment {sys.prefix}"]
    record = site / f"{name}-{version}.dist-info" / "RECORD"
    if not record.exists():
        return [f"{record}: not found; the files of {name} cannot be verified"]
    files = {str(getattr(module, "__file__", None)) for module in list(sys.modules.values())}
    problems = []
    for file, digest, _ in csv.reader(record.read_text().splitlines()):
        path = f"{site}/{file}"
        if path in files and file.endswith(".py") and digest != f"sha256={_urlsafe_sha256(Path(path))}":
            problems.append(f"{path} was edited after it was installed")
    return problems


def _urlsafe_sha256(file: Path) -> str:
    """Return a file's SHA-256 as a wheel's RECORD has it. See: PEP 427."""
    return base64.urlsafe_b64encode(hashlib.sha256(file.read_bytes()).digest()).rstrip(b"=").decode()
