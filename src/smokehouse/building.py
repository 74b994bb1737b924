"""Building images: everything that enters is fetched and checked here, then handed to BuildKit as named contexts."""

import json
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from packaging.utils import canonicalize_name

from smokehouse import additions, image, sbom
from smokehouse import base as bases
from smokehouse.additions import Added, Asked
from smokehouse.base import EPOCH, DebianPackage
from smokehouse.checkout import Checkout
from smokehouse.console import tell
from smokehouse.environments.definition import Environment
from smokehouse.errors import UserError
from smokehouse.image import Flavour, Layer, Ops
from smokehouse.installs import bundle as bundles
from smokehouse.installs import bundler as bundling
from smokehouse.installs import conda_packages as prefix
from smokehouse.installs.bundle import Bundle
from smokehouse.installs.prefix import refuse_partial
from smokehouse.locks import check as lock
from smokehouse.locks.model import MANIFEST, CondaPackage, LockedFile, Manifest
from smokehouse.programs import docker as engine
from smokehouse.programs.process import run
from smokehouse.storage import files
from smokehouse.storage.disk import refuse_small_disk
from smokehouse.storage.folder_lock import held

PREFIX = Path("/opt/env")
PROGRAMS = ("describe", "doctor", "entrypoint", "smoke", "tini")
_TOOLKIT = {"cuda-nvcc", "cuda-cuobjdump"}  # in conda-forge, the first does not bring the second

# The conda half unpacked and compiled, by the size of its archives, and what more it may take.
_CONDA_GROWTH = 8
_CONDA_REST = 256 << 20  # bytes
_OURS = 64 << 20

Compression = Literal["zstd", "gzip"]


@dataclass(frozen=True)
class Prepared:
    """An image that is ready to be built: `bake` is the file that goes with docker/docker-bake.hcl."""

    bake: Path
    target: str
    tags: Sequence[str]
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Built:
    """An image that was built: the `digest` of its manifest, and where it is."""

    digest: str
    place: str
    labels: Mapping[str, str]


def prepare(
    checkout: Checkout,
    name: str,
    *,
    flavour: Flavour = "runtime",
    base: str | None = None,
    bundled: Path | None = None,
    channel: str | None = None,
    source: str | None = None,
    ops: Ops | None = None,
    added: Sequence[Asked] = (),
) -> Prepared:
    """Fetch and check everything that the image of the environment `name` is made of; raises UserError.

    `base` is REF@sha256:…, Debian from docker/base.lock if None; `bundled` is the bundle to take all from, `channel` the
    copy or mirror of conda-forge otherwise; `source` is the URL of the checkout for the labels. If `ops` is None, those of
    DeepSpeed are compiled ahead of time where lock and bundle have a toolkit. Wheels that no lock names are `added`.
    """
    promise, locked, digest = lock.locked(checkout, name)
    image.driver(promise.stack.cuda.version)
    wheels = additions.take(checkout, added, promise, locked)
    under = bases.given(base) if base else bases.make(checkout)
    bundle = bundle_for(checkout, name, flavour, bundled, channel)
    additions.refuse_other_abi(added, locked, bundle.wheels)
    able = bundle.contents.devel and _wants_ops(locked)
    if ops == "aot" and not able:
        tools = " and ".join(sorted(_TOOLKIT))
        raise UserError(f"--ops aot: it takes deepspeed as source and {tools} in [conda] devel, in lock and bundle; add them")
    ops = ops or ("aot" if able else "none")
    folder = checkout.root / "build" / "images" / f"{name}-{flavour}"
    folder.mkdir(parents=True, exist_ok=True)
    libraries, above = image.layers(locked, [one.file for one in wheels])
    numbered = [*libraries, *above[:-1]]
    elsewhere = {one.file: one.path.parent for one in wheels}
    with held(folder / ".lock", f"preparing the image of {name}"):
        contexts = {"base": under.context}
        wanted = locked.conda if flavour == "devel" else locked.main
        contexts["conda"] = conda_context(folder / "conda", wanted, locked, bundle)
        if ops == "aot":
            contexts["toolkit"] = conda_context(folder / "toolkit", locked.conda, locked, bundle)
        for number, layer in enumerate(numbered, 1):
            contexts[f"layer-{number:02}"] = _wheels(
                folder / f"layer-{number:02}", layer, locked, elsewhere.get(layer.files[0], bundle.wheels)
            )
        contexts["model"] = _wheels(folder / "model", above[-1], locked, bundle.wheels)
        contexts["sources"] = _sources(folder / "sources", above[-1], locked, bundle, ops)
        origin = _origin(checkout, name, source)
        labels = image.labels(locked, promise.stack.cuda.version, digest, flavour, under, ops, origin, added)
        contexts["ours"] = ours(checkout, promise, folder, locked, bundle, flavour, ops, under.packages, wheels)
        target = {
            "contexts": contexts,
            "args": {
                "LAYERS": f"{len(numbered):02}",
                "LIBRARIES": f"{len(libraries):02}",
                "OPS": ops,
                "SOURCE_DATE_EPOCH": str(int(image.created(locked).timestamp())),
            },
            "labels": labels,
            # Relative to the checkout, which is where bake is run.
            "context": "docker",
            "dockerfile": "Dockerfile",
            "target": "image",
        }
        bake = folder / "bake.json"
        files.write(bake, json.dumps({"target": {engine.target_of(name): target}}, indent=1) + "\n")
    tags = image.tags(locked, promise.stack.cuda.version, digest, flavour, added)
    return Prepared(bake, engine.target_of(name), tags, labels)


_OPS = {
    "none": "DeepSpeed's compile when they are first used (no toolkit was there when the image was built)",
    "aot": "DeepSpeed's fused_adam and cpu_adam are compiled, for sm_80, sm_90 and x86-64-v3",
}


def ours(
    checkout: Checkout,
    promise: Environment,
    folder: Path,
    locked: Manifest,
    bundle: Bundle,
    flavour: Flavour,
    ops: Ops,
    debian: Sequence[DebianPackage],
    added: Sequence[Added] = (),
) -> str:
    """Make folder/ours the context of what is in /opt/smokehouse, and return it; raises UserError."""
    licences = sbom.licences(bundle.wheels, locked.pip)
    for one in added:
        licences |= sbom.licences(one.path.parent, [one.file])
    locked = additions.grown(locked, added)
    name, cuda = promise.name, promise.stack.cuda.version
    wanted = locked.conda if flavour == "devel" else locked.main
    about = {
        "environment": name,
        "flavour": flavour,
        "lock": files.hashed(checkout.lock(name) / MANIFEST),
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


def build(
    checkout: Checkout,
    prepared: Prepared,
    output: str,
    *,
    compression: Compression = "zstd",
    builder: str | None = None,
    no_cache: bool = False,
) -> Built:
    """Build a prepared image to `output`: oci:DIR, docker or push:REF. Raises UserError.

    What cannot be built leaves nothing at the output.
    """
    kind, _, where = output.partition(":")
    if kind not in ("oci", "docker", "push") or bool(where) == (kind == "docker"):
        raise UserError(f"--output {output}: it is oci:DIR, docker or push:REF")
    how = f"compression={compression},force-compression=true,oci-mediatypes=true"
    how += ",compression-level=3" if compression == "zstd" else ""
    given = [Path("docker/docker-bake.hcl"), prepared.bake]

    def bake(to: str) -> str:
        tell(f"building {prepared.tags[0]}")
        return engine.bake(checkout.root, given, prepared.target, f"{to},{how}", builder=builder, no_cache=no_cache)

    if kind == "push":
        digest = bake(f"type=image,name={where},push=true")
        return Built(digest, f"{where}@{digest}", prepared.labels)
    if kind == "docker":
        if builder:
            # One that is another engine would keep the image.
            with tempfile.TemporaryDirectory(dir=prepared.bake.parent) as room:
                archive = Path(room, "image.tar")
                digest = bake(f"type=docker,dest={archive},name={prepared.tags[0]}")
                engine.load(archive, checkout.root)
        else:
            digest = bake(f"type=image,name={prepared.tags[0]}")
        engine.tag(prepared.tags[0], prepared.tags[1:], checkout.root)
        return Built(digest, prepared.tags[0], prepared.labels)
    folder = Path(where).absolute()
    if folder.exists() and not (folder / "oci-layout").is_file() and any(folder.iterdir()):
        raise UserError(f"{folder}: holds other things than an image; name an empty or a new folder")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        digest = bake(f"type=oci,dest={partial},tar=false,name={prepared.tags[0]}")
        if folder.exists():
            folder.rename(partial / "replaced")
            shutil.rmtree(partial / "replaced")
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Built(digest, str(folder), prepared.labels)


def bundle_for(checkout: Checkout, name: str, flavour: Flavour, given: Path | None, channel: str | None) -> Bundle:
    """Return the bundle to build from, every file in it seen to have its hash."""
    if given:
        bundle = bundles.read(given, name, checkout.lock(name))
        refuse_partial(bundle, flavour == "devel")
        bundle.refuse_edited()
        return bundle
    folder = checkout.root / "build" / "bundles" / name
    bundling.make(checkout, name, folder, channel=channel, only_pip=False, devel=True, near=True)
    return bundles.read(folder, name, checkout.lock(name))


def _wants_ops(locked: Manifest) -> bool:
    """Whether DeepSpeed is built here, and the lock has what its ops are compiled with."""
    there = {package.name for package in locked.conda if package.category == "devel"}
    return there >= _TOOLKIT and any(file.name == "deepspeed" and not file.file.endswith(".whl") for file in locked.pip)


def conda_context(folder: Path, packages: Sequence[CondaPackage], locked: Manifest, bundle: Bundle) -> str:
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
    refuse_small_disk(folder, 2 * _CONDA_GROWTH * sum(package.size for package in packages), "prepare the conda half")
    origins = {f"{locked.home}/{package.path}": bundle.conda / package.path for package in packages}
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


def _wheels(folder: Path, layer: Layer, locked: Manifest, place: Path) -> str:
    """Make `folder` the context of a layer of wheels, which lie in the folder `place`."""
    wheels = [file for file in layer.files if file.file.endswith(".whl")]
    return _context(folder, wheels, place, python=locked.python, budget=layer.budget, files=_named(wheels))


def _sources(folder: Path, layer: Layer, locked: Manifest, bundle: Bundle, ops: Ops) -> str:
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
        files.bring(place / file.file, folder / file.file)
    (folder / "plan.json").write_text(json.dumps({"epoch": EPOCH, **plan}, indent=1) + "\n")
    return str(folder)


def _ours(checkout: Checkout, folder: Path, name: str, texts: Mapping[str, str], locked: Manifest, tini: bytes) -> str:
    """Make `folder` the context of what is in /opt/smokehouse."""
    shutil.rmtree(folder, ignore_errors=True)
    ours = folder / "ours"
    ours.mkdir(parents=True)
    for path in sorted((checkout.root / "docker" / "inside").iterdir()):
        shutil.copyfile(path, ours / path.name)
    unwanted = shutil.ignore_patterns("__pycache__", ".*")
    shutil.copytree(checkout.root / "smoke_tests", ours / "smoke_tests", ignore=unwanted)
    loader = Path(__file__).parent.with_name("smokehouse_loader")  # the smoke tests load with it
    shutil.copytree(loader, ours / loader.name, ignore=unwanted)
    (ours / "lock").mkdir()
    for other in (MANIFEST, *locked.files):
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


def _origin(checkout: Checkout, name: str, source: str | None) -> dict[str, str]:
    """Return where the image's definition is from: a commit only where nothing that enters differs from it."""
    found = {"source": source} if source else {}
    if shutil.which("git"):
        paths = ["docker", "smoke_tests", "src/smokehouse_loader", f"environments/{name}", f"lockfiles/{name}"]
        there = [path for path in paths if (checkout.root / path).exists()]

        def git(*arguments: str) -> str | None:
            ended = run(["git", *arguments, "--", *there], deadline=60, environ=os.environ, cwd=checkout.root)
            return None if ended.code else ended.stdout.strip()

        revision = git("log", "-1", "--format=%H")
        if revision and re.fullmatch(r"[0-9a-f]{40}", revision) and git("status", "--porcelain") == "":
            found["revision"] = revision
    return found
