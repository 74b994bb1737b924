"""Compare an image with the same image made here: by hashes and closed documents, so that no difference can be overlooked.

A layer whose hash differs is read to explain it, never to excuse it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import zip_longest
from typing import Any, Literal

from smokehouse.errors import UserError
from smokehouse.images.layers import Packed
from smokehouse.images.record import RecordedImage, RecordedLayer
from smokehouse.oci import closed
from smokehouse.oci.blobs import largest_blob, unpacked_digest
from smokehouse.oci.filesystem import Entry, Limits, entries
from smokehouse.oci.layout import Image
from smokehouse.oci.model import Descriptor

_MOST = 1000  # entries of one layer that are listed as different
_SHOWN = 1000  # characters of a text from an image
_NAMES = {"mtime": "time", "sha256": "SHA-256", "records": "extended headers"}


@dataclass(frozen=True)
class Difference:
    """A difference: the number of the layer from 1 (0 for none), a path in the image, and what is wrong with it."""

    layer: int
    path: str
    problem: str


@dataclass(frozen=True)
class Verification:
    """The result of verifying an image.

    `method` is whether what it was compared with was made again here or is recorded in image.json. `id` is its image ID, `lock`
    the SHA-256 of lock.json. `expected` is the image that it was compared with, None where it was not, and `sbom` its SBOM, a
    file, empty where nothing was made; `added` lists the image's extra wheels, which are not in the lock.
    `base`, `proof` and `claims`, which nothing here can verify, are sentences; `report` is the report in a verified statement,
    and `proven` whether there is one by the trusted signer, None where none was specified.
    """

    image: str
    digest: str
    environment: str
    lock: str
    method: Literal["made again", "recorded"] = "made again"
    id: str = ""
    base: str = ""
    expected: RecordedImage | None = None
    claims: list[str] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    proof: str = ""
    proven: bool | None = None
    report: Mapping[str, Any] | None = None
    sbom: str = ""
    added: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether nothing differs, and a statement by the trusted signer, where one is specified, is a proof."""
        return not self.differences and self.proven is not False

    @property
    def layers(self) -> Sequence[Mapping[str, str]]:
        """The diff_id of each expected layer, bottom first, with what is in it."""
        made = self.expected.layers if self.expected else ()
        return [{"diff_id": layer.diff_id, "content": layer.content} for layer in made]

    def as_json(self) -> dict[str, Any]:
        """Return what `verify --json` prints."""
        found = asdict(replace(self, expected=None)) | {"layers": self.layers, "passed": self.passed}
        del found["expected"]
        return found


def compare(image: Image, expected: RecordedImage, made: Sequence[Packed] = ()) -> list[Difference]:
    """Return how `image` differs from what is `expected`; raises UserError where a part of it has more than one meaning.

    The files in which a layer differs are listed where the expected layers are `made`.
    """
    layout = image.layout
    config = layout.read(image.manifest.config)
    manifest, layers = layout.read(image.descriptor), image.manifest.layers
    found = closed.manifest_differences(manifest, f"manifest {image.digest}", config, layers, len(expected.layers))
    differences = [Difference(0, f"(manifest) {path}", problem) for path, problem in found]
    differences += [Difference(0, f"(config) {path}", problem) for path, problem in _compare_config(config, expected)]
    limits = Limits()  # of all layers together
    for number, (layer, wanted, packed) in enumerate(zip_longest(layers, expected.layers, made), 1):
        differences += _compare_layer(image, number, layer, wanted, packed, limits)
    return differences


def _compare_config(found: bytes, expected: RecordedImage) -> list[tuple[str, str]]:
    """Return how a configuration differs from the expected one; raises UserError where it is ambiguous."""
    if found == expected.config_text:
        return []
    differences = [*closed.differences(closed.read(found, "configuration"), expected.config)]
    return differences or [("(document)", "expected other white space or another order, which the image ID depends on")]


def _compare_layer(
    image: Image, number: int, layer: Descriptor | None, expected: RecordedLayer | None, packed: Packed | None, limits: Limits
) -> list[Difference]:
    if expected is None:
        return [
            Difference(number, "(the whole layer)", "unexpected, the lock builds no such layer"),
            *_explain(image, number, None, limits),
        ]
    if layer is None:
        return [Difference(number, "(the whole layer)", f"expected {expected.content}, found no such layer")]
    if layer.media_type not in closed.LAYERS:
        return []  # a difference of the manifest
    if layer.size > largest_blob(expected.size):  # a hole in a file takes no space, and hours to read
        problem = f"expected at most {largest_blob(expected.size)} bytes compressed, found {layer.size}"
        return [Difference(number, "(the whole layer)", problem)]
    name = f"layer {number} ({layer.short})"
    image.layout.verify_blob(layer)
    found, size = unpacked_digest(image.layout.blob(layer.digest), layer.media_type, expected.size, name)
    if found == expected.diff_id:
        problem = f"expected {expected.size} bytes, found {size}"
        return [Difference(number, "(the whole layer)", problem)] if size != expected.size else []
    problem = f"expected {expected.diff_id} ({expected.content}), found {found or 'more bytes than that has'}"
    return [Difference(number, "(the whole layer)", problem), *(_explain(image, number, packed, limits) if packed else ())]


def _explain(image: Image, number: int, packed: Packed | None, limits: Limits) -> Iterator[Difference]:
    """Yield the entries in which a layer differs from the expected one, as far as it can be read within `limits`."""
    layer, name = image.manifest.layers[number - 1], f"layer {number}"
    try:
        found = entries(image.layout.blob(layer.digest), layer.media_type, name, limits)
        expected = entries(packed.path, packed.blob.media_type, name, Limits()) if packed else {}
    except UserError as unreadable:
        yield Difference(number, "(the whole layer)", printable(str(unreadable)))
        return
    different = [path for path in sorted(found.keys() | expected.keys()) if found.get(path) != expected.get(path)]
    for path in different[:_MOST]:
        yield Difference(number, printable(path), _problem(found.get(path), expected.get(path)))
    if not different:
        yield Difference(number, "(the whole layer)", "the same entries with other headers, or in another order")


def _problem(found: Entry | None, expected: Entry | None) -> str:
    if found is None or expected is None:
        return f"unexpected {found.kind}" if found else "not found in the image"
    pairs = zip(Entry._fields, found, expected, strict=True)
    what, one, other = next((name, printable(one), printable(other)) for name, one, other in pairs if one != other)
    return f"expected {_NAMES.get(what, what)} {other or 'none'}, found {one or 'none'}"


def printable(text: str) -> str:
    """Return a text from an image, or its beginning, in ASCII, with an escape for what could paint a terminal."""
    return f"{text[:_SHOWN]}{'...' if len(text) > _SHOWN else ''}".encode("unicode_escape").decode("ascii")
