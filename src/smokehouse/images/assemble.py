"""Assemble an image from its build contexts: the same layers and configuration as docker/Dockerfile, without an engine."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from smokehouse.checkout import Checkout
from smokehouse.console import status
from smokehouse.images import base as bases
from smokehouse.images.config import image_config
from smokehouse.images.layers import AT_ONCE, Compression, LayerStore, Made, Packed, Step
from smokehouse.images.plan import Layer
from smokehouse.images.record import RecordedImage, RecordedLayer
from smokehouse.images.spec import ImageSpec
from smokehouse.oci.layout import Image, Layout
from smokehouse.oci.model import CONFIG, MANIFEST, Descriptor, Manifest, encode
from smokehouse.storage import files

_PYTHON = "/opt/env/bin/python"


@dataclass(frozen=True)
class Assembled:
    """An image: what image.json has of it, its layers as files, bottom first, and its manifest as it is written."""

    recorded: RecordedImage
    layers: tuple[Packed, ...]
    manifest: bytes

    @classmethod
    def of(cls, layers: Sequence[tuple[Packed, str]], config: bytes) -> "Assembled":
        """Return the image of `layers`, bottom first, each with what is in it, and of a configuration."""
        packed = tuple(layer for layer, _ in layers)
        described = Descriptor.of(config, CONFIG)
        manifest = encode(Manifest(schema_version=2, config=described, layers=tuple(layer.blob for layer in packed)))
        listed = tuple(RecordedLayer(diff_id=layer.diff_id, size=layer.unpacked, content=content) for layer, content in layers)
        digest = f"sha256:{files.sha256(manifest)}"
        return cls(
            RecordedImage(id=described.digest, digest=digest, layers=listed, config=json.loads(config)), packed, manifest
        )

    def write(self, layout: Layout, name: str) -> Descriptor:
        """Make this, called `name`, the only image of `layout`, and return the descriptor of its manifest."""
        for layer in self.layers:
            if not layout.blob(layer.blob.digest).exists():
                files.link_or_copy(layer.path, layout.blob(layer.blob.digest))
        layout.put(self.recorded.config_text, CONFIG)
        manifest = layout.put(self.manifest, MANIFEST)
        layout.write_index(manifest, name)
        return manifest

    def archive(self, layout: Layout, name: str) -> Iterator[bytes]:
        """Yield the tar file that `docker load` reads, with an OCI layout and the older manifest.json; `layout` is empty.

        The file is never written: it would have every layer once more.
        """
        self.write(layout, name)
        digests = [layer.blob.digest for layer in self.layers]
        config, *layers = [f"blobs/{digest.replace(':', '/')}" for digest in (self.recorded.id, *digests)]
        files.write(layout.folder / "manifest.json", encode([{"Config": config, "RepoTags": [name], "Layers": layers}]))
        yield from layout.archive()


def assemble(
    checkout: Checkout, spec: ImageSpec, contexts: Mapping[str, Path], compression: Compression, store: Path | None = None
) -> Assembled:
    """Make the layers of an image, those that `store`, by default the checkout's, lacks, and describe them.

    `contexts` has the folder of each build context but the base's by name. Raises UserError.
    """
    status(f"assembling {spec.tags[0]}")
    layer_store, base = LayerStore(checkout, store), bases.image(checkout, spec.base)
    with layer_store.in_use(), ThreadPoolExecutor(os.cpu_count()) as workers, ThreadPoolExecutor(AT_ONCE) as packers:
        layers = _Assembly(layer_store, spec, contexts, base, compression, workers, packers).layers()
    labels = spec.labels
    config = image_config(checkout, base, labels.as_dict(), labels.created, [layer.diff_id for layer, _ in layers])
    return Assembled.of(layers, config)


@dataclass(frozen=True)
class _Assembly:
    """The steps of an image, as docker/Dockerfile has them; `workers` run them, and `packers` compress what they made."""

    store: LayerStore
    spec: ImageSpec
    contexts: Mapping[str, Path]
    base: Image
    compression: Compression
    workers: ThreadPoolExecutor
    packers: ThreadPoolExecutor

    def layers(self) -> list[tuple[Packed, str]]:
        """Return the layers, bottom first, each with what is in it; raises UserError."""
        plan, store = self.spec.plan, self.store
        packed = self.packers.submit(store.repack, self.base, self.compression)
        base = store.unpack(self.base)
        conda = self._conda(base)
        layers = enumerate(plan.numbered, 1)
        numbered = [self.workers.submit(self._wheels, f"layer-{n:02}", layer, conda, base) for n, layer in layers]
        libraries = numbered[: len(plan.libraries)]
        model = self.workers.submit(self._model, base, conda, libraries)  # it waits for earlier ones only
        unpacked, packs = [conda], [self._packing(conda)]
        for future in (*numbered, model):
            unpacked.append(future.result())
            packs.append(self._packing(unpacked[-1]))
        own = self._own_files([*reversed(unpacked), base])
        packs.append(self._packing(own))
        rest = [future.result() for future in packs]
        names = [f"conda packages ({len(self.spec.conda)})"]
        names += [", ".join(file.file for file in layer.files) for layer in (*plan.numbered, plan.model)]
        names += ["files of Smokehouse"]
        return [*((layer, self.spec.base.name) for layer in packed.result()), *zip(rest, names, strict=True)]

    def _packing(self, made: Made) -> "Future[Packed]":
        return self.packers.submit(self.store.pack, made, self.compression)

    def _conda(self, base: Made) -> Made:
        script = "tar -xf /in/prefix.tar -C /out && exec /out/opt/env/bin/python -I -S -B /steps/conda.py /in /out"
        program = ("/bin/sh", "-c", script)
        return self._make("conda packages", program, ("conda.py", "tree.py"), (base,), {"/in": self._context("conda")})

    def _wheels(self, name: str, layer: Layer, conda: Made, base: Made) -> Made:
        program = _program("unpack.py", "/in", "/out")
        return self._make(name, program, ("tree.py", "unpack.py"), (conda, base), {"/in": self._context(name)}, _names(layer))

    def _model(self, base: Made, conda: Made, libraries: Sequence[Future[Made]]) -> Made:
        built = self._built(base, conda, libraries)
        program = _program("unpack.py", "/in", "/out", "--built", "/built")
        inputs = {"/in": self._context("model"), "/built": (built.tree, built.key)}
        return self._make("model", program, ("tree.py", "unpack.py"), (conda, base), inputs, _names(self.spec.plan.model))

    def _built(self, base: Made, conda: Made, libraries: Sequence[Future[Made]]) -> Made:
        """Build the wheels of the source distributions; ops are compiled with the toolkit, on top of the libraries."""
        below = [conda, base]
        if self.spec.ops == "aot":
            unpacking = ("/bin/sh", "-c", "tar -xf /in/prefix.tar -C /out")
            toolkit = self._make("toolkit", unpacking, (), (base,), {"/in": self._context("toolkit")})
            below = [toolkit, *(future.result() for future in reversed(libraries)), conda, base]
        program = (_PYTHON, "-I", "-B", "/steps/build.py", "/in", "/out")  # with -S it would not find the libraries
        return self._make("sources", program, ("build.py", "tree.py"), tuple(below), {"/in": self._context("sources")})

    def _own_files(self, below: Sequence[Made]) -> Made:
        folder = self.contexts["ours"]
        content = {str(path.relative_to(folder)): files.hashed(path) for path in folder.rglob("*") if path.is_file()}
        text = files.sha256(encode(content))
        program, scripts = _program("own_files.py", "/in", "/out"), ("own_files.py", "tree.py", "unpack.py")
        return self._make("files of Smokehouse", program, scripts, tuple(below), {"/in": (folder, text)}, ["smokehouse"])

    def _context(self, name: str) -> tuple[Path, str]:
        """Return a context, whose plan has the hash of each file in it."""
        folder = self.contexts[name]
        return folder, (folder / "plan.json").read_text()

    def _make(
        self,
        name: str,
        program: tuple[str, ...],
        scripts: tuple[str, ...],
        below: tuple[Made, ...],
        inputs: Mapping[str, tuple[Path, str]],
        alike: Iterable[str] = (),
    ) -> Made:
        return self.store.make(Step(name, program, scripts, below, inputs, frozenset(alike)))


def _names(layer: Layer) -> list[str]:
    return [file.name for file in layer.files]


def _program(script: str, *arguments: str) -> tuple[str, ...]:
    return (_PYTHON, "-I", "-S", "-B", f"/steps/{script}", *arguments)
