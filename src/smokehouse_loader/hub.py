"""Checkpoints that go by a name on a hub: their files, fetched to where transformers keeps them."""

import json
from pathlib import Path
from typing import Any

from smokehouse_loader.errors import Finding, LoadError, first_line

# The arguments of from_pretrained that say where files come from.
PLACE = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def folder(path: str | Path, variant: str | None, options: dict[str, Any]) -> Path:
    """The folder with the files of the checkpoint `path`, a folder or a name on a hub; `options` are those of `PLACE`.

    Raises LoadError where it is neither.
    """
    subfolder = options.get("subfolder") or ""
    if Path(path).is_dir():
        return Path(path, subfolder)
    from transformers.utils import cached_file

    given = {name: value for name, value in options.items() if name in PLACE and value is not None}

    def fetch(name: str, *, needed: bool = False) -> Path | None:
        found = cached_file(str(path), name, _raise_exceptions_for_missing_entries=needed, **given)
        return Path(found) if found else None

    suffix = f".{variant}" if variant else ""
    try:
        config = fetch("config.json", needed=True)
        assert config is not None
        for single, index in (
            (f"model{suffix}.safetensors", f"model.safetensors.index{suffix}.json"),
            (f"pytorch_model{suffix}.bin", f"pytorch_model.bin.index{suffix}.json"),
        ):
            if fetch(single):
                break
            if found := fetch(index):
                for name in sorted(set(json.loads(found.read_bytes())["weight_map"].values())):
                    fetch(name, needed=True)
                break
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as wrong:
        cure = "give the folder of a checkpoint, or a name that the hub has"
        raise LoadError(
            [Finding("not-a-checkpoint", str(path), f"is no folder, and cannot be fetched: {first_line(wrong)}", cure)]
        ) from wrong
    return config.parent
