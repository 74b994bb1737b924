"""Building images: everything that enters is fetched and checked here, then handed to BuildKit as named contexts."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from smokehouse.checkout import Checkout
from smokehouse.console import status
from smokehouse.errors import UserError
from smokehouse.images import base as bases
from smokehouse.images import dockerfile, extra_wheels
from smokehouse.images import labels as labels_module
from smokehouse.images import plan as image
from smokehouse.images.contexts import conda_context, sdist_context, smokehouse_files, wheel_context
from smokehouse.images.extra_wheels import ExtraWheel
from smokehouse.images.labels import Flavour, Ops
from smokehouse.installs import bundle as bundles
from smokehouse.installs import bundler as bundling
from smokehouse.installs.bundle import Bundle
from smokehouse.locks.check import LockedEnvironment
from smokehouse.locks.model import Lock
from smokehouse.programs import docker as engine
from smokehouse.programs.process import run
from smokehouse.storage import files
from smokehouse.storage.folder_lock import exclusive

_TOOLKIT = {"cuda-nvcc", "cuda-cuobjdump"}  # in conda-forge, the first does not bring the second

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
    locked_environment: LockedEnvironment,
    *,
    flavour: Flavour = "runtime",
    base: str | None = None,
    bundled: Path | None = None,
    channel: str | None = None,
    source: str | None = None,
    ops: Ops | None = None,
    added: Sequence[ExtraWheel] = (),
) -> Prepared:
    """Fetch and check everything that the image of an environment is made of; raises UserError.

    `base` is REF@sha256:…, Debian from docker/base.lock if None; `bundled` is the bundle to take all from, `channel` the
    copy or mirror of conda-forge otherwise; `source` is the URL of the checkout for the labels. If `ops` is None, those of
    DeepSpeed are compiled ahead of time where lock and bundle have a toolkit. Wheels that no lock names are `added`.
    """
    name, locked, digest = locked_environment.name, locked_environment.lock, locked_environment.digest
    promise = locked_environment.environment
    labels_module.driver(locked_environment.cuda)
    wheels = extra_wheels.fetch_wheels(checkout, added, promise, locked)
    under = bases.parse(base) if base else bases.make(checkout)
    bundle = bundle_for(checkout, locked_environment, flavour, bundled, channel)
    extra_wheels.require_torch_abi(added, locked, bundle.wheels)
    able = bundle.has_devel and _wants_ops(locked)
    if ops == "aot" and not able:
        tools = " and ".join(sorted(_TOOLKIT))
        raise UserError(f"--ops aot: it takes deepspeed as source and {tools} in [conda] devel, in lock and bundle; add them")
    ops = ops or ("aot" if able else "none")
    dockerfile.update(checkout)
    folder = checkout.root / "build" / "images" / f"{name}-{flavour}"
    folder.mkdir(parents=True, exist_ok=True)
    libraries, above = image.layers(locked, [one.file for one in wheels])
    numbered = [*libraries, *above[:-1]]
    elsewhere = {one.file: one.path.parent for one in wheels}
    with exclusive(folder / ".lock", f"preparing the image of {name}"):
        contexts = {"base": under.context}
        wanted = locked.conda if flavour == "devel" else locked.main
        contexts["conda"] = conda_context(folder / "conda", wanted, locked, bundle)
        if ops == "aot":
            contexts["toolkit"] = conda_context(folder / "toolkit", locked.conda, locked, bundle)
        for number, layer in enumerate(numbered, 1):
            contexts[f"layer-{number:02}"] = wheel_context(
                folder / f"layer-{number:02}", layer, locked, elsewhere.get(layer.files[0], bundle.wheels)
            )
        contexts["model"] = wheel_context(folder / "model", above[-1], locked, bundle.wheels)
        contexts["sources"] = sdist_context(folder / "sources", above[-1], locked, bundle, ops)
        origin = _origin(checkout, name, source)
        labels = labels_module.labels(locked, locked_environment.cuda, digest, flavour, under, ops, origin, added)
        contexts["ours"] = smokehouse_files(checkout, locked_environment, folder, bundle, flavour, ops, under.packages, wheels)
        target = {
            "contexts": contexts,
            "args": {
                "LAYERS": f"{len(numbered):02}",
                "LIBRARIES": f"{len(libraries):02}",
                "OPS": ops,
                "SOURCE_DATE_EPOCH": str(int(labels_module.created(locked).timestamp())),
            },
            "labels": labels,
            # Relative to the checkout, which is where bake is run.
            "context": "docker",
            "dockerfile": "Dockerfile",
            "target": "image",
        }
        bake = folder / "bake.json"
        files.write(bake, json.dumps({"target": {engine.bake_target(name): target}}, indent=1) + "\n")
    tags = labels_module.tags(locked, locked_environment.cuda, digest, flavour, added)
    return Prepared(bake, engine.bake_target(name), tags, labels)


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
        status(f"building {prepared.tags[0]}")
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


def bundle_for(
    checkout: Checkout, locked: LockedEnvironment, flavour: Flavour, given: Path | None, channel: str | None
) -> Bundle:
    """Return the bundle to build from, every file in it seen to have its hash."""
    if given:
        bundle = bundles.read(given, locked)
        bundle.require_conda(devel=flavour == "devel")
        bundle.verify()
        return bundle
    folder = checkout.root / "build" / "bundles" / locked.name
    return bundling.make(locked, folder, channel=channel, devel=True, reuse_siblings=True)


def _wants_ops(locked: Lock) -> bool:
    """Whether DeepSpeed is built here, and the lock has what its ops are compiled with."""
    there = {package.name for package in locked.conda if package.category == "devel"}
    return there >= _TOOLKIT and any(file.name == "deepspeed" and not file.file.endswith(".whl") for file in locked.pip)


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
