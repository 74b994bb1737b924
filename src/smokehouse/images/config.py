"""The configuration of an image, as BuildKit writes it for docker/Dockerfile, byte for byte."""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from smokehouse.checkout import Checkout
from smokehouse.errors import UserError
from smokehouse.oci import closed
from smokehouse.oci.layout import Image

# Members of `config` in the order of the Go structures DockerOCIImageConfig and, in it, ImageConfig.
# See: https://github.com/moby/docker-image-spec/blob/main/specs-go/v1/image.go
_MEMBERS = (
    *("User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "Labels", "StopSignal", "ArgsEscaped"),
    *("Healthcheck", "OnBuild", "Shell"),
)
# What an image takes over from its base, beside members of `config` and the history.
_INHERITED = ("architecture", "author", "os", "os.features", "os.version", "variant")
_COMMENT = "buildkit.dockerfile.v0"
# encoding/json of Go escapes these, so that JSON can be part of a web page.
_ESCAPED = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def image_config(checkout: Checkout, base: Image, labels: Mapping[str, str], created: str, diff_ids: Sequence[str]) -> bytes:
    """Return the configuration of an image on `base` whose layers, the base's included, are `diff_ids`.

    `created` is an RFC 3339 time. Raises UserError where docker/Dockerfile or the base cannot be read.
    """
    below = closed.read(base.layout.read(base.manifest.config), f"configuration of the base {base.digest}")
    if (below.get("config") or {}).get("OnBuild"):
        raise UserError(f"base {base.digest}: expected no ONBUILD, found one; use a base that runs nothing in its children")
    instructions = _instructions(checkout)
    history = [*(below.get("history") or ())]
    layers = len(diff_ids) - len(base.config.rootfs.diff_ids)
    history += [{"created": created, "created_by": "COPY /out/ / # buildkit", "comment": _COMMENT}] * layers
    for word, rest in instructions:
        history.append({"created": created, "created_by": _shown(word, rest), "comment": _COMMENT, "empty_layer": True})
    config = {
        **{key: below[key] for key in _INHERITED if key in below},
        "config": _settings(below.get("config") or {}, instructions, labels),
        "created": created,
        "history": history,
        "rootfs": {"type": "layers", "diff_ids": [*diff_ids]},
    }
    return encode({key: config[key] for key in sorted(config)})


def encode(config: Mapping[str, Any]) -> bytes:
    """Return a configuration as Go writes it, with members in the order that they have."""
    text = json.dumps(config, ensure_ascii=False, separators=(",", ":"))
    for character, escape in _ESCAPED.items():
        text = text.replace(character, escape)
    return text.encode()


def _instructions(checkout: Checkout) -> list[tuple[str, str]]:
    """Return the instructions of the last stage of docker/Dockerfile that make no layer, each with what follows it."""
    text = checkout.file("docker/Dockerfile").read_text("utf-8")
    lines = text.rpartition("\nFROM ")[2].replace("\\\n", " ").splitlines()[1:]
    words = [line.partition(" ")[::2] for line in lines if line and not line.startswith(("#", "COPY "))]
    for word, _ in words:
        if word not in ("ENV", "WORKDIR", "ENTRYPOINT", "CMD"):
            raise UserError(f"docker/Dockerfile: expected ENV, WORKDIR, ENTRYPOINT or CMD in the last stage, found {word}")
    return words


def _shown(word: str, rest: str) -> str:
    """Return an instruction as BuildKit writes it into the history: Go prints lists without commas."""
    if word == "ENV":
        return f"ENV {' '.join(shlex.split(rest))}"
    if word in ("ENTRYPOINT", "CMD"):
        return f"{word} [{' '.join(json.dumps(argument) for argument in json.loads(rest))}]"
    return f"{word} {rest}"


def _settings(base: Mapping[str, Any], instructions: Sequence[tuple[str, str]], labels: Mapping[str, str]) -> dict[str, Any]:
    """Return `config`: that of the base, as the instructions change it, with our labels."""
    found = dict(base)
    for word, rest in instructions:
        if word == "ENV":
            variables = dict(entry.partition("=")[::2] for entry in (*(found.get("Env") or ()), *shlex.split(rest)))
            found["Env"] = [f"{name}={value}" for name, value in variables.items()]
        elif word == "WORKDIR":
            found["WorkingDir"] = rest
        else:
            found["Entrypoint" if word == "ENTRYPOINT" else "Cmd"] = json.loads(rest)
            found["ArgsEscaped"] = True
    found["Labels"] = dict(sorted({**(base.get("Labels") or {}), **labels}.items()))
    return {key: found[key] for key in _MEMBERS if found.get(key)}
