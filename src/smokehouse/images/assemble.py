"""Assemble an image from its build contexts: the same layers and configuration as docker/Dockerfile, without an engine."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from smokehouse.checkout import Checkout
from smokehouse.console import status
from smokehouse.images.config import image_config
from smokehouse.images.labels import ImageLabels
from smokehouse.images.layers import AT_ONCE, Compression, LayerStore, Made, Packed, Step
from smokehouse.images.plan import Layer
from smokehouse.images.record import RecordedImage, RecordedLayer
from smokehouse.images.spec import ImageSpec
from smokehouse.oci.layout import Image, Layout
from smokehouse.oci.model import CONFIG, MANIFEST, Descriptor, Manifest, encode
from smokehouse.storage import files

_PYTHON = "/opt/env/bin/python"


@dataclass(frozen=True)
class Inputs:
    """What an image is assembled from: `contexts` has the folder of each build context but the base's by name."""

    spec: ImageSpec
    contexts: Mapping[str, Path]
    base: Image
    labels: ImageLabels


@dataclass(frozen=True)
class AssembledLayer:
    """A layer of an image, and what is in it."""

    packed: Packed
    content: str


@dataclass(frozen=True)
class Assembled:
    """An image: its layers, bottom first, its configuration and its manifest, both as they are written."""

    layers: tuple[AssembledLayer, ...]
    config: bytes
    manifest: bytes

    @property
    def recorded(self) -> RecordedImage:
        """What image.json has of it."""
        layers = [
            RecordedLayer(diff_id=layer.packed.diff_id, size=layer.packed.unpacked, content=layer.content)
            for layer in self.layers
        ]
        return RecordedImage(id=self.id, digest=self.digest, layers=tuple(layers), config=json.loads(self.config))

    @property
    def id(self) -> str:
        """The image ID: the digest of the configuration."""
        return f"sha256:{files.sha256(self.config)}"

    @property
    def digest(self) -> str:
        """The digest of the manifest."""
        return f"sha256:{files.sha256(self.manifest)}"

    def write(self, layout: Layout, name: str) -> Descriptor:
        """Make this, called `name`, the only image of `layout`, and return the descriptor of its manifest."""
        for layer in self.layers:
            if not layout.blob(layer.packed.blob.digest).exists():
                files.link_or_copy(layer.packed.path, layout.blob(layer.packed.blob.digest))
        layout.put(self.config, CONFIG)
        manifest = layout.put(self.manifest, MANIFEST)
        layout.write_index(manifest, name)
        return manifest

    def archive(self, layout: Layout, name: str) -> Iterator[bytes]:
        """Yield the tar file that `docker load` reads, with an OCI layout and the older manifest.json; `layout` is empty.

        The file is never written: it would have every layer once more.
        """
        self.write(layout, name)
        digests = [layer.packed.blob.digest for layer in self.layers]
        config, *layers = [f"blobs/{digest.replace(':', '/')}" for digest in (self.id, *digests)]
        files.write(layout.folder / "manifest.json", encode([{"Config": config, "RepoTags": [name], "Layers": layers}]))
        yield from layout.archive()


def assemble(checkout: Checkout, inputs: Inputs, compression: Compression, store: Path | None = None) -> Assembled:
    """Make the layers of an image, those that `store`, by default the checkout's, lacks, and describe them.

    Raises UserError.
    """
    status(f"assembling {inputs.spec.tags[0]}")
    layer_store = LayerStore(checkout, store)
    with layer_store.in_use(), ThreadPoolExecutor(os.cpu_count()) as workers, ThreadPoolExecutor(AT_ONCE) as packers:
        layers = _Assembly(layer_store, inputs, compression, workers, packers).layers()
    labels = inputs.labels
    config = image_config(checkout, inputs.base, labels.as_dict(), labels.created, [layer.packed.diff_id for layer in layers])
    blobs = tuple(layer.packed.blob for layer in layers)
    return Assembled(layers, config, encode(Manifest(schema_version=2, config=Descriptor.of(config, CONFIG), layers=blobs)))


@dataclass(frozen=True)
class _Assembly:
    """The steps of an image, as docker/Dockerfile has them; `workers` run them, and `packers` compress what they made."""

    store: LayerStore
    inputs: Inputs
    compression: Compression
    workers: ThreadPoolExecutor
    packers: ThreadPoolExecutor

    def layers(self) -> tuple[AssembledLayer, ...]:
        """Return the layers, bottom first; raises UserError."""
        plan, store = self.inputs.spec.plan, self.store
        packed = self.packers.submit(store.repack, self.inputs.base, self.compression)
        base = store.unpack(self.inputs.base)
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
        names = [f"conda packages ({len(self.inputs.spec.conda)})"]
        names += [", ".join(file.file for file in layer.files) for layer in (*plan.numbered, plan.model)]
        names += ["files of Smokehouse"]
        below = [AssembledLayer(layer, self.inputs.spec.base.name) for layer in packed.result()]
        return (*below, *(AssembledLayer(layer, name) for layer, name in zip(rest, names, strict=True)))

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
        return self._make(
            "model", program, ("tree.py", "unpack.py"), (conda, base), inputs, _names(self.inputs.spec.plan.model)
        )

    def _built(self, base: Made, conda: Made, libraries: Sequence[Future[Made]]) -> Made:
        """Build the wheels of the source distributions; ops are compiled with the toolkit, on top of the libraries."""
        below = [conda, base]
        if self.inputs.spec.ops == "aot":
            unpacking = ("/bin/sh", "-c", "tar -xf /in/prefix.tar -C /out")
            toolkit = self._make("toolkit", unpacking, (), (base,), {"/in": self._context("toolkit")})
            below = [toolkit, *(future.result() for future in reversed(libraries)), conda, base]
        program = (_PYTHON, "-I", "-B", "/steps/build.py", "/in", "/out")  # with -S it would not find the libraries
        return self._make("sources", program, ("build.py", "tree.py"), tuple(below), {"/in": self._context("sources")})

    def _own_files(self, below: Sequence[Made]) -> Made:
        folder = self.inputs.contexts["ours"]
        content = {str(path.relative_to(folder)): files.hashed(path) for path in folder.rglob("*") if path.is_file()}
        text = files.sha256(encode(content))
        program, scripts = _program("own_files.py", "/in", "/out"), ("own_files.py", "tree.py", "unpack.py")
        return self._make("files of Smokehouse", program, scripts, tuple(below), {"/in": (folder, text)}, ["smokehouse"])

    def _context(self, name: str) -> tuple[Path, str]:
        """Return a context, whose plan has the hash of each file in it."""
        folder = self.inputs.contexts[name]
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
