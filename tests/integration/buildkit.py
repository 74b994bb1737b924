"""An image built by BuildKit in three parts, on half of the disk that it takes at once: 19 GB for the image of qwen2.5-vl.

A build keeps its contexts, each step's output, each layer's copy of that and the packed layers until it ends. `COPY --link`
makes a layer independent of those below, so the numbered layers are built in two parts on the base alone. The last part builds
the image itself on top of them, as they are in a registry, whose layers were compared with these by `diff_id` before.
"""

import json
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smokehouse.oci.model import CONFIG, MANIFEST, Descriptor, encode
from smokehouse.oci.reference import Reference
from smokehouse.oci.registry import Registry
from smokehouse.programs.buildx import bake_target
from smokehouse.storage import files

from ..unit.conftest import TestCheckout
from .engine import Engine
from .real import free_disk, run

_MINUTES = 30


@dataclass(frozen=True)
class Expected:
    """What BuildKit has to build: the `config` of image.json, and the `manifest` of that image in `repository`."""

    config: Mapping[str, Any]
    manifest: Mapping[str, Any]
    repository: str

    @property
    def diff_ids(self) -> list[str]:
        """The layers, bottom first."""
        return list(self.config["rootfs"]["diff_ids"])

    def lower(self, layers: int, folder: Path) -> str:
        """Push an image of nothing but the lowest `layers`, as they are; return it as a build context."""
        steps = [entry for entry in self.config["history"] if not entry.get("empty_layer")]
        rootfs = {"type": "layers", "diff_ids": self.diff_ids[:layers]}
        config = encode({"architecture": "amd64", "history": steps[:layers], "os": "linux", "rootfs": rootfs})
        blob = Descriptor(media_type=CONFIG, digest=f"sha256:{files.sha256(config)}", size=len(config))
        (folder / "config.json").write_bytes(config)
        registry = Registry(Reference.parse(f"{self.repository}:lower-{layers}"), push=True)
        registry.upload(folder / "config.json", blob)
        entry = blob.model_dump(by_alias=True, exclude_none=True)
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": entry, "layers": self.manifest["layers"][:layers]}
        registry.put(encode(manifest), MANIFEST, f"lower-{layers}")
        return f"docker-image://{self.repository}:lower-{layers}@sha256:{files.sha256(encode(manifest))}"


class Parts:
    """An image of `name` that is built in parts on `engine`, whose build cache is removed after each."""

    def __init__(self, checkout: TestCheckout, name: str, engine: Engine, folder: Path, *options: str) -> None:
        self.engine, self.folder, self.target = engine, folder, bake_target(name)
        self.root = checkout.root
        command = shlex.split(run(checkout, "build", name, "--prepare", *options).stdout.splitlines()[-1])
        self.files = [command[place + 1] for place, word in enumerate(command) if word == "-f"]
        target = json.loads((self.root / self.files[-1]).read_text())["target"][self.target]
        self.contexts: dict[str, str] = target["contexts"]
        self.layers, self.libraries = int(target["args"]["LAYERS"]), int(target["args"]["LIBRARIES"])

    def split(self) -> int:
        """Return the number of the layer that ends the first half of the wheels."""
        sizes = [self._bytes(number) for number in range(1, self.layers + 1)]
        return min(range(1, self.layers + 1), key=lambda number: max(sum(sizes[:number]), sum(sizes[number:])))

    def _bytes(self, number: int) -> int:
        return sum(path.stat().st_size for path in Path(self.contexts[f"layer-{number:02}"]).iterdir())

    def build(self, stage: str, replaced: Mapping[str, str]) -> tuple[str, list[str]]:
        """Build `stage` on what replaces other stages; return the digest of its configuration, and its layers."""
        extra, metadata = self.folder / "part.json", self.folder / "metadata.json"
        extra.write_text(json.dumps({"target": {self.target: {"contexts": dict(replaced)}}}))
        options = [option for path in (*self.files, str(extra)) for option in ("-f", path)]
        output = "type=image,name=smokehouse-part:test,compression=zstd,oci-mediatypes=true,unpack=false"
        for setting in (f"target={stage}", f"output={output}"):
            options += ["--set", f"{self.target}.{setting}"]
        command = ["buildx", "bake", *options, "--metadata-file", str(metadata), "--provenance=false", "--sbom=false"]
        try:
            self._docker(*command, self.target)
            inspected = self._docker("image", "inspect", "--format", "{{json .RootFS.Layers}}", "smokehouse-part:test")
        finally:
            self.engine.docker("rmi", "--force", "smokehouse-part:test", check=False)
            self.engine.docker("builder", "prune", "--all", "--force")
        return json.loads(metadata.read_text())[self.target]["containerimage.config.digest"], json.loads(inspected)

    def _docker(self, *arguments: str) -> str:
        ended = subprocess.run(
            ["docker", *arguments],
            cwd=self.root,
            env={**self.engine.environ, "BUILDX_NO_DEFAULT_ATTESTATIONS": "1", "BUILDX_GIT_INFO": "0"},
            capture_output=True,
            text=True,
            timeout=60 * _MINUTES,
        )
        said = "\n".join(ended.stderr.splitlines()[-20:])
        assert ended.returncode == 0, f"docker {arguments[0]} {arguments[1]} failed; {free_disk(self.folder)}\n{said}"
        return ended.stdout


def build_in_parts(parts: Parts, expected: Expected) -> tuple[str, Sequence[str], Sequence[str]]:
    """Return the image ID of what BuildKit builds, its layers, and those that the first two parts built."""
    middle, last = f"upto-{parts.split():02}", f"upto-{parts.layers:02}"
    base = len(expected.diff_ids) - parts.layers - 3  # above it there are conda packages, numbered layers, model, own files
    first = parts.build(middle, {})[1]
    second = parts.build(last, {middle: parts.contexts["base"]})[1] if middle != last else []
    made = [*first, *second[base:]]
    assert made == expected.diff_ids[: len(made)]
    lower = {number: expected.lower(base + 1 + number, parts.folder) for number in {parts.layers, parts.libraries}}
    image, layers = parts.build("image", {f"upto-{number:02}": place for number, place in lower.items()})
    return image, layers, made
