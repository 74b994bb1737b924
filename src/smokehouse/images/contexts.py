"""Named build contexts: everything that enters a build, verified by its hash."""

import json
import os
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from smokehouse.checkout import Checkout
from smokehouse.images import base as bases
from smokehouse.images import extra_wheels, sbom
from smokehouse.images import labels as image
from smokehouse.images.base import EPOCH
from smokehouse.images.debian_lock import DebianPackage
from smokehouse.images.extra_wheels import FetchedWheel
from smokehouse.images.labels import Flavour, Ops
from smokehouse.images.paths import PREFIX, PROGRAMS
from smokehouse.images.plan import Layer
from smokehouse.installs import conda_packages as prefix
from smokehouse.installs.bundle import Bundle
from smokehouse.locks.check import LockedEnvironment
from smokehouse.locks.model import LOCK_JSON, CondaPackage, Lock, LockedFile
from smokehouse.storage import files
from smokehouse.storage.disk import require_free_space

# The conda half unpacked and compiled, by the size of its archives, and what more it may take.
_CONDA_GROWTH = 8
_CONDA_REST = 256 << 20  # bytes
_OURS = 64 << 20


_OPS = {
    "none": "DeepSpeed's compile when they are first used (no toolkit was there when the image was built)",
    "aot": "DeepSpeed's fused_adam and cpu_adam are compiled, for sm_80, sm_90 and x86-64-v3",
}


def smokehouse_files(
    checkout: Checkout,
    locked_environment: LockedEnvironment,
    folder: Path,
    bundle: Bundle,
    flavour: Flavour,
    ops: Ops,
    debian: Sequence[DebianPackage],
    added: Sequence[FetchedWheel] = (),
) -> str:
    """Make folder/ours the context of what is in /opt/smokehouse, and return it; raises UserError."""
    name, cuda, locked = locked_environment.name, locked_environment.cuda, locked_environment.lock
    licences = sbom.licences(bundle.wheels, locked.pip)
    for one in added:
        licences |= sbom.licences(one.path.parent, [one.file])
    locked = extra_wheels.extend_lock(locked, added)
    wanted = locked.conda if flavour == "devel" else locked.main
    about = {
        "environment": name,
        "flavour": flavour,
        "lock": locked_environment.digest,
        "ops": _OPS[ops],
        "stack": image.stack(locked, cuda) | {one.file.name: one.file.version for one in added},
    }
    texts = {
        "constraints.txt": "".join(f"{file.name}=={file.version}\n" for file in locked.pip),
        "driver": f"{image.driver(cuda)}\n",
        "environment": f"{name}\n",
        "sbom.spdx.json": sbom.text(locked, wanted, debian, licences),
    }
    if added:
        about["with"] = {one.file.file: one.file.sha256 for one in added}
        pins = (f"{one.file.name}=={one.file.version} --hash=sha256:{one.file.sha256}\n" for one in added)
        texts["lock/added.txt"] = "".join(pins)  # the image's smoke test reads it, and its report names its hash
    texts["about.json"] = json.dumps(about, indent=1) + "\n"
    return _ours(checkout, folder / "ours", name, texts, locked, bases.tini(checkout, folder.parent / "packages"))


def conda_context(folder: Path, packages: Sequence[CondaPackage], locked: Lock, bundle: Bundle) -> str:
    """Make `folder` the context of a conda prefix: one tar file, the same for the same packages."""
    plan = json.dumps(
        {
            "python": locked.python,
            "epoch": EPOCH,
            "budget": sum(package.size for package in packages) * _CONDA_GROWTH + _CONDA_REST,
            "packages": {package.path: package.sha256 for package in packages},
        },
        indent=1,
    )
    done = folder / "plan.json"
    if done.is_file() and done.read_text() == plan:
        return str(folder)
    shutil.rmtree(folder, ignore_errors=True)
    work = folder / "work"
    work.mkdir(parents=True)
    require_free_space(folder, 2 * _CONDA_GROWTH * sum(package.size for package in packages), "prepare the conda half")
    origins = {f"{locked.channel_url}/{package.path}": bundle.conda / package.path for package in packages}
    prefix.link(origins, work / "prefix", PREFIX, work / "cache")
    # What keeps a folder out of backups would keep the environment out of copies of the image's files.
    (work / "prefix" / "CACHEDIR.TAG").unlink(missing_ok=True)
    with tarfile.open(folder / "prefix.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for path in [work / "prefix", *sorted((work / "prefix").rglob("*"))]:
            member = tarfile.TarInfo(str(Path(*PREFIX.parts[1:]) / path.relative_to(work / "prefix")))
            member.mtime = EPOCH
            if path.is_symlink():
                member.type, member.linkname = tarfile.SYMTYPE, os.readlink(path)
                archive.addfile(member)
            elif path.is_dir():
                member.type, member.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(member)
            else:
                status = path.stat()
                member.mode, member.size = 0o755 if status.st_mode & 0o100 else 0o644, status.st_size
                with path.open("rb") as file:
                    archive.addfile(member, file)
    shutil.rmtree(work)
    files.write(done, plan)
    return str(folder)


def wheel_context(folder: Path, layer: Layer, locked: Lock, place: Path) -> str:
    """Make `folder` the context of a layer of wheels, which lie in the folder `place`."""
    wheels = [file for file in layer.files if file.file.endswith(".whl")]
    return _context(folder, wheels, place, python=locked.python, budget=layer.budget, files=_named(wheels))


def sdist_context(folder: Path, layer: Layer, locked: Lock, bundle: Bundle, ops: Ops) -> str:
    """Make `folder` the context of what is built from source."""
    sdists = [file for file in layer.files if not file.file.endswith(".whl")]
    taken = [*sdists, *(file for file in locked.build if sdists)]
    return _context(folder, taken, bundle.wheels, ops=ops, files=_named(sdists), build=_named(locked.build if sdists else ()))


def _named(locked: Sequence[LockedFile]) -> list[dict[str, str]]:
    return [{"file": file.file, "sha256": file.sha256} for file in sorted(locked, key=lambda file: file.file)]


def _context(folder: Path, locked: Sequence[LockedFile], place: Path, **plan: Any) -> str:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for file in locked:
        files.link_or_copy(place / file.file, folder / file.file)
    (folder / "plan.json").write_text(json.dumps({"epoch": EPOCH, **plan}, indent=1) + "\n")
    return str(folder)


def _ours(checkout: Checkout, folder: Path, name: str, texts: Mapping[str, str], locked: Lock, tini: bytes) -> str:
    """Make `folder` the context of what is in /opt/smokehouse."""
    shutil.rmtree(folder, ignore_errors=True)
    ours = folder / "ours"
    ours.mkdir(parents=True)
    for path in sorted((checkout.root / "docker" / "inside").iterdir()):
        shutil.copyfile(path, ours / path.name)
    unwanted = shutil.ignore_patterns("__pycache__", ".*")
    shutil.copytree(checkout.root / "smoke_tests", ours / "smoke_tests", ignore=unwanted)
    loader = Path(__file__).parents[1].with_name("smokehouse_loader")  # the smoke tests load with it
    shutil.copytree(loader, ours / loader.name, ignore=unwanted)
    (ours / "lock").mkdir()
    for other in (LOCK_JSON, *locked.files):
        shutil.copyfile(checkout.lock(name) / other, ours / "lock" / other)
    shutil.copyfile(checkout.environment(name) / "stack.toml", ours / "stack.toml")
    for path_name, text in texts.items():
        (ours / path_name).write_text(text)
    (ours / "tini").write_bytes(tini)
    plan = {
        "python": locked.python,
        "epoch": EPOCH,
        "budget": _OURS,
        "programs": PROGRAMS,
        "pip": [{"name": canonicalize_name(file.name), "version": file.version, "file": file.file} for file in locked.pip],
    }
    (folder / "plan.json").write_text(json.dumps(plan, indent=1) + "\n")
    return str(folder)
