"""Named build contexts: folders with every input of a build, verified by hash."""

import json
import os
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from packaging.utils import canonicalize_name

from smokehouse.checkout import Checkout
from smokehouse.console import status
from smokehouse.images import components, sbom
from smokehouse.images.base import EPOCH, tini
from smokehouse.images.labels import Ops
from smokehouse.images.plan import Layer
from smokehouse.images.spec import ImageSpec, oldest_driver, stack
from smokehouse.installs import Bundle, conda_packages, loader, owners, site_files
from smokehouse.installs.extra_wheels import extend_lock
from smokehouse.locks import LOCK_JSON, CondaPackage, Lock, LockedFile, constraints
from smokehouse.storage import files
from smokehouse.storage.disk import require_free_space

# Inside an image: the environment, the folder of Smokehouse's files whose content goes to site-packages, and those files that
# are programs.
_PREFIX = Path("/opt/env")
_SITE_FILES = "site"
_PROGRAMS = ("describe", "doctor", "entrypoint", "smoke", "tini", f"{_SITE_FILES}/{site_files.EXECUTABLE}")

# The size of the conda packages unpacked and compiled: at most this many times that of their archives, and so many bytes.
_CONDA_GROWTH = 8
_CONDA_REST = 256 << 20
_SMOKEHOUSE_BUDGET = 64 << 20  # bytes

# Context and folder of the files of Smokehouse, as docker/ reads them.
_SMOKEHOUSE_FILES = "ours"
SPDX, CYCLONEDX = f"{_SMOKEHOUSE_FILES}/sbom.spdx.json", "sbom.cdx.json"  # in that context

_OPS = {
    "none": "DeepSpeed's compile when they are first used (no toolkit was there when the image was built)",
    "aot": "DeepSpeed's fused_adam and cpu_adam are compiled, for sm_80, sm_90 and x86-64-v3",
}


@dataclass(frozen=True)
class LoaderWheel:
    """The wheel of the loader in `folder`, `built` in the background."""

    built: Future[LockedFile]
    folder: Path


@contextmanager
def loader_wheel(checkout: Checkout) -> Iterator[LoaderWheel]:
    """Build the wheel of the loader for `make_contexts` while the rest is fetched; another program builds it."""
    with ThreadPoolExecutor(1) as worker, TemporaryDirectory() as folder:
        built = worker.submit(loader.build, checkout, Path(folder))
        try:
            yield LoaderWheel(built, Path(folder))
        finally:
            wait([built])  # before its folder is removed


def make_contexts(checkout: Checkout, spec: ImageSpec, bundle: Bundle, folder: Path, wheel: LoaderWheel) -> dict[str, Path]:
    """Make all contexts but that of the base in `folder`, and return the folder of each by its name; raises UserError."""
    lock, plan = spec.locked.lock, spec.plan
    prefixes = {"conda": spec.conda} | ({"toolkit": lock.conda} if spec.ops == "aot" else {})
    with ThreadPoolExecutor(1) as worker:  # it mostly waits for the build of the loader
        own = worker.submit(smokehouse_files, checkout, spec, bundle, folder, wheel)
        contexts = {name: conda_context(folder / name, packages, lock, bundle) for name, packages in prefixes.items()}
        contexts[_SMOKEHOUSE_FILES] = own.result()
    folders = {wheel.file: wheel.path.parent for wheel in spec.extra_wheels}
    for number, layer in enumerate(plan.numbered, 1):
        name = f"layer-{number:02}"
        contexts[name] = wheel_context(folder / name, layer, lock, folders.get(layer.files[0], bundle.wheels))
    contexts["model"] = wheel_context(folder / "model", plan.model, lock, bundle.wheels)
    contexts["sources"] = sdist_context(folder / "sources", plan.model, lock, bundle, spec.ops)
    return contexts


def conda_context(folder: Path, packages: Sequence[CondaPackage], lock: Lock, bundle: Bundle) -> Path:
    """Make `folder` the context of a conda prefix, one tar file that depends on `packages` alone, and return it.

    A folder that is complete already is kept, if its archive is still what was made from these packages: plan.json, by which
    layers are kept, has the hash of it. Raises UserError.
    """
    size = sum(package.size for package in packages)
    plan = {
        "python": lock.python,
        "epoch": EPOCH,
        "budget": size * _CONDA_GROWTH + _CONDA_REST,
        "packages": {package.path: package.sha256 for package in packages},
    }
    done, archive = folder / "plan.json", folder / "prefix.tar"
    if _is_made(folder, plan):
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    for other in folder.parent.parent.glob(f"*/{folder.name}"):  # of an environment that has the same packages
        if (text := _plan_of(other)).startswith(json.dumps(plan, indent=1).removesuffix("\n}")):
            with suppress(OSError):  # it is just made again
                files.link_or_copy(other / archive.name, archive)
                files.write(done, text)
                if _is_made(folder, plan):
                    return folder
            shutil.rmtree(folder, ignore_errors=True)
    work = folder / "work"
    work.mkdir(parents=True)
    require_free_space(folder, 2 * _CONDA_GROWTH * size, "prepare the conda packages")
    status(f"preparing {len(packages)} conda packages of {lock.environment}")
    archives = {f"{lock.channel_url}/{package.path}": bundle.conda / package.path for package in packages}
    conda_packages.link(archives, work / "prefix", _PREFIX, work / "cache")
    # It keeps a folder out of backups, and would keep the environment out of copies of the image's files.
    (work / "prefix" / "CACHEDIR.TAG").unlink(missing_ok=True)
    _pack_prefix(work / "prefix", archive)
    shutil.rmtree(work)
    files.write(done, json.dumps(plan | {"prefix": files.hashed(archive)}, indent=1))
    return folder


def _is_made(folder: Path, plan: Mapping[str, object]) -> bool:
    """Return whether the context of a conda prefix in `folder` is complete and still what was made by `plan`."""
    archive = folder / "prefix.tar"
    return archive.is_file() and _plan_of(folder) == json.dumps({**plan, "prefix": files.hashed(archive)}, indent=1)


def _plan_of(folder: Path) -> str:
    try:
        return (folder / "plan.json").read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def wheel_context(folder: Path, layer: Layer, lock: Lock, wheels: Path) -> Path:
    """Make `folder` the context of the wheels of `layer`, from the folder `wheels`, and return it."""
    chosen = [file for file in layer.files if file.file.endswith(".whl")]
    return _context(folder, chosen, wheels, python=lock.python, budget=layer.budget, files=_entries(chosen))


def sdist_context(folder: Path, layer: Layer, lock: Lock, bundle: Bundle, ops: Ops) -> Path:
    """Make `folder` the context of the source distributions of `layer` and what builds them, and return it."""
    sdists = [file for file in layer.files if not file.file.endswith(".whl")]
    build = lock.build if sdists else ()
    return _context(folder, [*sdists, *build], bundle.wheels, ops=ops, files=_entries(sdists), build=_entries(build))


def smokehouse_files(checkout: Checkout, spec: ImageSpec, bundle: Bundle, folder: Path, loader_wheel: LoaderWheel) -> Path:
    """Make the context of the files of Smokehouse in `folder`, and return it; a folder in it has those in /opt/smokehouse.

    `loader_wheel` lies beside that folder, with the program that compares who owns which file, and the SBOM in the format that
    the image does not have.

    Raises:
        UserError: tini cannot be fetched, or the loader cannot be built.
    """
    lock = extend_lock(spec.locked.lock, spec.extra_wheels)
    context = folder / _SMOKEHOUSE_FILES
    shutil.rmtree(context, ignore_errors=True)
    inside = context / _SMOKEHOUSE_FILES
    inside.mkdir(parents=True)
    _copy_checkout(checkout, spec, inside)
    licences = _licences(spec, bundle)
    wheel = loader_wheel.built.result()
    shutil.move(loader_wheel.folder / wheel.file, context)
    licences |= components.licences(context, [wheel])
    whole = lock.model_copy(update={"pip": (*lock.pip, wheel)})
    contained = components.components(whole, spec.conda, spec.base.packages, licences)
    depends = components.dependencies(spec.locked)
    (context / SPDX).write_text(sbom.spdx(whole, contained, depends, "image"))
    (context / CYCLONEDX).write_text(sbom.cyclonedx(whole, contained, depends, "image"))
    for name, text in _texts(checkout, spec, whole, wheel).items():
        (inside / name).write_text(text)
    (inside / "tini").write_bytes(tini(checkout, folder.parent / "packages"))
    shutil.copyfile(owners.__file__, context / "owners.py")
    plan = {
        "python": lock.python,
        "epoch": EPOCH,
        "budget": _SMOKEHOUSE_BUDGET,
        "programs": _PROGRAMS,
        "loader": {"file": wheel.file, "sha256": wheel.sha256},
        "pip": [{"name": canonicalize_name(file.name), "version": file.version, "file": file.file} for file in lock.pip],
    }
    (context / "plan.json").write_text(json.dumps(plan, indent=1) + "\n")
    return context


def _pack_prefix(prefix: Path, archive: Path) -> None:
    """Write the conda prefix to the tar file `archive`, with names as in an image and nothing of this machine."""
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in [prefix, *sorted(prefix.rglob("*"))]:
            member = tarfile.TarInfo(str(Path(*_PREFIX.parts[1:]) / path.relative_to(prefix)))
            member.mtime = EPOCH
            if path.is_symlink():
                # Path.readlink would normalize the target.
                member.type, member.linkname = tarfile.SYMTYPE, os.readlink(path)  # noqa: PTH115 - see above
                tar.addfile(member)
            elif path.is_dir():
                member.type, member.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(member)
            else:
                stat = path.stat()
                member.mode, member.size = 0o755 if stat.st_mode & 0o100 else 0o644, stat.st_size
                with path.open("rb") as file:
                    tar.addfile(member, file)


def _context(folder: Path, locked: Sequence[LockedFile], source: Path, **plan: Any) -> Path:
    """Make `folder` a context of files in the folder `source`, with `plan` for the build step that reads it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for file in locked:
        files.link_or_copy(source / file.file, folder / file.file)
    (folder / "plan.json").write_text(json.dumps({"epoch": EPOCH, **plan}, indent=1) + "\n")
    return folder


def _entries(locked: Sequence[LockedFile]) -> list[dict[str, str]]:
    return [{"file": file.file, "sha256": file.sha256} for file in sorted(locked, key=lambda file: file.file)]


def _copy_checkout(checkout: Checkout, spec: ImageSpec, inside: Path) -> None:
    """Copy to `inside` what an image has of the checkout: its programs, the smoke tests and the lock."""
    unwanted = shutil.ignore_patterns("__pycache__", ".*")
    shutil.copytree(checkout.file("docker/inside"), inside, ignore=unwanted, copy_function=shutil.copyfile, dirs_exist_ok=True)
    for name, data in site_files.contents(spec.locked.cuda).items():
        files.write(inside / _SITE_FILES / name, data)
    shutil.copytree(checkout.file("smoke_tests"), inside / "smoke_tests", ignore=unwanted)
    (inside / "lock").mkdir()
    for name in (LOCK_JSON, *spec.locked.lock.files):
        shutil.copyfile(spec.locked.files.folder / name, inside / "lock" / name)
    shutil.copyfile(checkout.environment(spec.locked.name) / "stack.toml", inside / "stack.toml")


def _licences(spec: ImageSpec, bundle: Bundle) -> dict[str, str]:
    """Return the licences that the image's wheels state, by file name."""
    licences = components.licences(bundle.wheels, spec.locked.lock.pip)
    for wheel in spec.extra_wheels:
        licences |= components.licences(wheel.path.parent, [wheel.file])
    return licences


def _texts(checkout: Checkout, spec: ImageSpec, whole: Lock, wheel: LockedFile) -> dict[str, str]:
    """Return the generated files in /opt/smokehouse by name, but the SBOM.

    `whole` is the environment's lock, extended with extra wheels and with `wheel`, that of the loader.
    """
    name, cuda = spec.locked.name, spec.locked.cuda
    extra = [wheel.file for wheel in spec.extra_wheels]
    about: dict[str, object] = {
        "environment": name,
        "flavour": spec.flavour,
        "lock": spec.locked.digest,
        "ops": _OPS[spec.ops],
        "stack": stack(whole, cuda) | {file.name: file.version for file in (wheel, *extra)},
    }
    texts = {
        "constraints.txt": constraints.pins(whole),
        "cuda": f"{cuda}\n",
        "driver": f"{oldest_driver(checkout, cuda)}\n",
        "environment": f"{name}\n",
    }
    if extra:
        about["with"] = {file.file: file.sha256 for file in extra}
        # The smoke test in the image reads it, and its report has its hash.
        texts["lock/added.txt"] = "".join(f"{file.name}=={file.version} --hash=sha256:{file.sha256}\n" for file in extra)
    texts["about.json"] = json.dumps(about, indent=1) + "\n"
    return texts
