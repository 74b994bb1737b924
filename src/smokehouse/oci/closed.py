"""Closed documents: JSON of an image that is compared with what is expected of it, member by member, in full.

Nothing is ignored: Docker reads JSON with Go, which takes the last of two equal keys, and keys in any case.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import ValidationError

from smokehouse.errors import UserError, first_of
from smokehouse.oci.model import CONFIG, INDEX, MANIFEST, Descriptor
from smokehouse.storage import files, strict_json

LAYERS = tuple(f"application/vnd.oci.image.layer.v1.tar{suffix}" for suffix in ("", "+gzip", "+zstd"))

# What engines and BuildKit write into the index of a layout: names and the time of the copy, which no runtime uses.
_INDEX_ANNOTATIONS = ("io.containerd.image.name", "org.opencontainers.image.created", "org.opencontainers.image.ref.name")
# Where the engine pulled an image from.
_SOURCE_ANNOTATIONS = "containerd.io/distribution.source."
_PLATFORM = {"architecture": "amd64", "os": "linux"}
_WHITE = str.maketrans("\t\n", "  ")
_MAX_SHOWN = 120  # characters of a value in a message


def read(data: bytes, name: str) -> Any:
    """Return a JSON document that all programs read alike, whose size is bounded already; raises UserError, calling it `name`.

    Refused are keys that occur twice, floats, NaN, control characters and what is not UTF-8.
    """
    try:
        document = strict_json.parse(data)
        _require_plain(document)
    except (ValueError, RecursionError) as invalid:
        reason = str(invalid) or type(invalid).__name__
        raise UserError(f"{name}: expected JSON with one meaning, found {reason}; do not trust this image") from None
    return document


def differences(found: object, expected: object, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path and the problem of each member of `found` that is not `expected`; 1 is not true, and {} is not none."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in sorted(found.keys() | expected.keys()):
            name = show(key)[1:-1]
            inside = f"{path}.{name}" if path else name
            if key not in expected:
                yield inside, f"unexpected, found {show(found[key])}"
            elif key not in found:
                yield inside, f"expected {show(expected[key])}, found none"
            else:
                yield from differences(found[key], expected[key], inside)
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        for number, pair in enumerate(zip(found, expected, strict=True)):
            yield from differences(*pair, f"{path}[{number}]")
    elif type(found) is not type(expected) or found != expected:
        yield path or "(document)", f"expected {show(expected)}, found {show(found)}"


def check_index(data: bytes, name: str) -> Descriptor:
    """Return the only entry of an index, an image for linux/amd64 or an index; raises UserError for all other members."""
    index = read(data, name)
    entries = index.get("manifests") if isinstance(index, dict) else None
    if not isinstance(entries, list) or len(entries) != 1 or not isinstance(entries[0], dict):
        count = len(entries) if isinstance(entries, list) else "no list"
        raise UserError(f"{name}: expected an index of exactly one image, found {count}; specify one image by its digest")
    entry = entries[0]
    try:
        described = Descriptor.model_validate(entry, by_alias=True, by_name=False)
    except ValidationError as invalid:
        raise UserError(f"{name}: invalid entry ({first_of(invalid, 'entry')}); do not trust this image") from None
    media_type = INDEX if described.media_type == INDEX else MANIFEST
    listed: dict[str, Any] = {"mediaType": media_type, "digest": described.digest, "size": described.size}
    if "platform" in entry:
        listed["platform"] = _PLATFORM
    if described.annotations is not None:
        listed["annotations"] = {key: text for key, text in described.annotations.items() if _is_name(key)}
    expected = {"schemaVersion": 2, "manifests": [listed], **({"mediaType": INDEX} if "mediaType" in index else {})}
    for path, problem in differences(index, expected):
        raise UserError(f"{name}: {path}: {problem}; do not trust this image")
    return described


def _is_name(key: str) -> bool:
    return key in _INDEX_ANNOTATIONS or key.startswith(_SOURCE_ANNOTATIONS)


def manifest_differences(
    data: bytes, name: str, config: bytes, layers: Sequence[Descriptor], expected_layers: int
) -> list[tuple[str, str]]:
    """Return how a manifest differs from that of an image of so many layers whose configuration is `config`.

    `layers` are those that the manifest was read to have: digest and size of compressed layers differ between compressors, so
    they are compared by what is in them. Raises UserError for what is not such a document at all.
    """
    known = [
        {
            "mediaType": layer.media_type if layer.media_type in LAYERS else LAYERS[-1],
            "digest": layer.digest,
            "size": layer.size,
        }
        for layer in layers[:expected_layers]
    ]
    expected = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": f"sha256:{files.sha256(config)}", "size": len(config)},
        "layers": [*known, *([{}] * (expected_layers - len(known)))],
    }
    return [*differences(read(data, name), expected)]


def show(value: object) -> str:
    """Return `value` for a message: short, in ASCII, so that it can neither paint a terminal nor be lost on one."""
    text = json.dumps(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


def _require_plain(value: object) -> None:
    """Raise ValueError where `value` has a float, control characters, or such as change the direction of others.

    Tabs and newlines are in the history of most images: Dockerfiles have them, and JSON and `show` escape them.
    """
    if isinstance(value, float):
        raise ValueError(f"the number {value}, which is not an integer")
    if isinstance(value, str) and not value.translate(_WHITE).isprintable():
        raise ValueError(f"control characters in {show(value)}")
    inside = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()
    for each in inside:
        _require_plain(each)
