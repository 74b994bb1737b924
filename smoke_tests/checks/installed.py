"""What is imported is what is installed, unedited; and that is exactly what the lock specifies, where there is one."""

import csv
import os
import re
import sys
import sysconfig
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch.distributed as dist
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from smoke_tests import additions, distributions, runtime
from smoke_tests.additions import Addition
from smoke_tests.checks.context import RankContext, TrainingState
from smoke_tests.distributions import Distribution, Installed
from smoke_tests.outcome import Outcome, judged

# Distributions whose files a run depends on -> their module. The first three are always imported.
MODULES = {
    "torch": "torch",
    "transformers": "transformers",
    "deepspeed": "deepspeed",
    "accelerate": "accelerate",
    "huggingface-hub": "huggingface_hub",
    "numpy": "numpy",
    "pillow": "PIL",
    "safetensors": "safetensors",
    "tokenizers": "tokenizers",
    "torchvision": "torchvision",
}
# Every environment with a lock has it beside what the lock specifies.
_LOADER = "smokehouse-loader"


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


def versions(context: RankContext, _: TrainingState) -> Outcome:
    """Check that what was imported is what is installed, unedited, and what is installed exactly lock and loader, if locked."""
    found = runtime.versions(context.device)
    asked = str(dist.get_backend())
    expected = context.leg.backend
    wrong = [] if asked == expected else [f"process group: expected {expected}, torch says {asked}"]
    if context.lock is None:
        installed = distributions.find()
        problems, notes = _imported(installed)
        # Of a package that no check imports, it is for people to know.
        twice = [text for name, text in installed.problems.items() if name in MODULES]
        notes += [text for text in installed.problems.values() if text not in twice]
        more = "".join(f"; {note}" for note in [*installed.notes, *notes])
        detail = f"{len(installed.distributions)} packages by their own metadata, no lock{more}"
        return judged(wrong + twice + problems, detail, versions=found, backend=asked)
    locked, added = read_lock(context.lock), additions.find()
    installed = distributions.find([sysconfig.get_path(kind) for kind in ("purelib", "platlib")])
    problems = wrong + _unlike_lock(locked, installed, added) + _imported(installed)[0] + _loader(installed)
    beside = f", {len(added)} added beside them" if added else ""
    return judged(problems, f"{len(locked)} packages as locked{beside}", versions=found, backend=asked)


def _unlike_lock(locked: dict[str, Version], installed: Installed, added: Mapping[str, Addition]) -> list[str]:
    """Return how what is installed differs from the lock, or is what no lock can specify.

    What is recorded as added is as it is recorded: a project may be a source tree, but never replaces what is locked.
    """
    extra = {name: one.version for name, one in added.items() if name not in locked}
    locked = locked | extra
    present = {name: found.version for name, found in installed.distributions.items() if name != _LOADER}
    problems = [*installed.problems.values()]
    for name, found in installed.distributions.items():
        if found.origin and name not in extra:
            problems.append(f"{name} was installed from a path or a URL, not from the lock")
        if found.version.is_devrelease and name not in extra:
            problems.append(f"{name} {found.version} is a development version")
    problems += [f"{name}: expected {locked[name]}, not installed" for name in sorted(locked.keys() - present.keys())]
    problems += [f"{name}: not in the lock, found {present[name]}" for name in sorted(present.keys() - locked.keys())]
    problems += [
        f"{name}: expected {locked[name]}, found {present[name]}"
        for name in sorted(locked.keys() & present.keys())
        if not _same(locked[name], present[name])
    ]
    return problems


def _imported(installed: Installed) -> tuple[list[str], list[str]]:
    """Return what is wrong with the imported modules: version, place, or a file edited after its installation; and notes."""
    real = _imported_files()
    problems, notes = [], []
    for name, module in MODULES.items():
        if not (file := getattr(sys.modules.get(module), "__file__", None)):
            continue
        place = _in_real_folder(file)
        distribution = installed.distributions.get(name)
        if distribution is None:
            problems.append(f"{name}: imported from {place}, expected an installed distribution, found none")
            continue
        problems += _other_version(name, module, distribution)
        if distribution.editable:
            continue  # among the notes on what is installed
        if place.parent.parent != distribution.site:
            problems.append(f"{name} was imported from {place}, outside {distribution.site}, where its metadata is")
            continue
        try:
            folder = f"{place.parent}/"
            own = [file for file in real if file.startswith(folder)]
            edited, unlisted = distribution.edited(own)
            problems += [f"{file} was edited after it was installed" for file in edited]
            if unlisted:
                notes.append(f"RECORD of {name} lacks {unlisted} of {len(own)} imported files, which cannot be verified")
        except (OSError, csv.Error):
            notes.append(f"{name} has no readable RECORD, so its files cannot be verified")
    return problems, notes


def _imported_files() -> set[str]:
    """Return the files of all imported modules in their real folders, each of which is resolved once: there are thousands."""
    files = [str(getattr(module, "__file__", None)) for module in list(sys.modules.values())]
    split = [os.path.split(file) for file in files if file.endswith((".py", ".so"))]
    return {f"{_real(folder)}/{name}" for folder, name in split}


@cache
def _real(folder: str) -> str:
    """Return a folder without links; each folder above it is looked at once."""
    above, name = os.path.split(folder)
    return os.path.realpath(folder) if not name or Path(folder).is_symlink() else os.path.join(_real(above), name)  # noqa: PTH118 - of thousands of texts


def _loader(installed: Installed) -> list[str]:
    """Return what is wrong with the installed loader: it is missing, edited, or not that of the checkout."""
    again = "install the environment again"
    distribution = installed.distributions.get(_LOADER)
    if distribution is None:
        return [f"{_LOADER}: expected in every environment, not installed; {again}"]
    place = _in_real_folder(str(sys.modules["smokehouse_loader"].__file__)).parent
    if place.parent != distribution.site:  # smoke_tests prefers that of the checkout where the installed one differs
        return [f"{_LOADER}: expected the same files in {distribution.site} as in {place}, found others; {again}"]
    try:
        edited, _ = distribution.edited([str(file) for file in place.glob("*.*")])
    except (OSError, csv.Error):
        return [f"{_LOADER}: expected a RECORD in {distribution.info}, found none; {again}"]
    return [f"{file} was edited after it was installed" for file in edited]


def _in_real_folder(file: str) -> Path:
    """Return `file` in the folder that it really is in; the file itself may be a link, as some installers make them."""
    return Path(file).parent.resolve() / Path(file).name


def _other_version(name: str, module: str, distribution: Distribution) -> list[str]:
    """Return in words where a module has another version than its metadata."""
    imported = getattr(sys.modules[module], "__version__", None)
    try:
        same = imported is None or Version(str(imported)).public == distribution.version.public
    except InvalidVersion:
        same = False
    return [] if same else [f"{name}: expected {distribution.version}, as its metadata says, imported {imported}"]
