"""Fetch checkpoints by their name on a hub, into the cache of transformers."""

import json
from pathlib import Path
from typing import Any

from smokehouse_loader.errors import Finding, LoadError, first_line

# The arguments of from_pretrained that say where files come from.
SOURCE_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def folder(path: str | Path, variant: str | None, options: dict[str, Any]) -> Path:
    """Return the directory with the files of the checkpoint `path`, a directory or a name on a hub.

    `options` are from_pretrained's `SOURCE_OPTIONS`. Raises LoadError if there is no such directory and nothing can be
    fetched by that name.
    """
    subfolder = options.get("subfolder") or ""
    if Path(path).is_dir():
        return Path(path, subfolder)
    from transformers.utils import cached_file

    source = {name: value for name, value in options.items() if name in SOURCE_OPTIONS and value is not None}

    def fetch(name: str, *, required: bool = False) -> Path | None:
        found = cached_file(str(path), name, _raise_exceptions_for_missing_entries=required, **source)
        return Path(found) if found else None

    suffix = f".{variant}" if variant else ""
    try:
        config = Path(cached_file(str(path), "config.json", **source))
        for single, index in (
            (f"model{suffix}.safetensors", f"model.safetensors.index{suffix}.json"),
            (f"pytorch_model{suffix}.bin", f"pytorch_model.bin.index{suffix}.json"),
            (f"diffusion_pytorch_model{suffix}.safetensors", f"diffusion_pytorch_model.safetensors.index{suffix}.json"),
            (f"diffusion_pytorch_model{suffix}.bin", f"diffusion_pytorch_model.bin.index{suffix}.json"),
        ):
            if fetch(single):
                break
            if found := fetch(index):
                for name in sorted(set(json.loads(found.read_bytes())["weight_map"].values())):
                    fetch(name, required=True)
                break
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as wrong:
        what = f"not a directory, and fetching it from the hub failed: {first_line(wrong)}"
        fix = "pass the directory of a checkpoint, or a name that exists on the hub"
        raise LoadError([Finding("not-a-checkpoint", str(path), what, fix)]) from wrong
    return config.parent
