"""Inspect a checkpoint on disk: where its tensors are and what is wrong with it, without reading weights."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from smokehouse_loader.errors import Finding, clipped, shortened
from smokehouse_loader.failures import fix_for
from smokehouse_loader.safetensors_header import BadFileError, Tensor, parse_json, read, refuse_foreign

# Bytes; the index of a 70 GB checkpoint has 0.1 MB.
_LARGEST_INDEX = 64 * 2**20
# The checkpoint with the most of them that is known here has 140,000 tensors in 163 shards.
_MOST_TENSORS = 2_000_000
_MOST_SHARDS = 20_000
_MOST_PROBLEMS = 100
_BROKEN_LINK = " (broken link: the cache it points into was cleaned)"

# safetensors' names of torch dtypes.
DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "C64": "complex64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a checkpoint.

    `layout` is `safetensors`, `bin`, `adapter` (PEFT's), `deepspeed` (an engine's own checkpoint), `consolidated` (the model
    publisher's own format) or `none`; from_pretrained reads the first two. `tensors` are by name; `problems` is empty if it is
    intact.
    """

    path: Path
    layout: str
    files: tuple[Path, ...]
    tensors: Mapping[str, Tensor]
    problems: tuple[Finding, ...]

    @property
    def elements(self) -> int:
        """The number of elements of all tensors."""
        return sum(tensor.elements for tensor in self.tensors.values())


def inspect_checkpoint(path: str | Path, *, variant: str | None = None) -> Checkpoint:
    """Return names, shapes, dtypes and shards of the checkpoint in the directory `path`, and its problems; read no weights.

    Selects files as from_pretrained does: safetensors before .bin, a single file before shards; `variant` is its argument of
    that name. Reads the headers of safetensors files; torch reads .bin files, with `weights_only` and onto the meta device.
    Does not raise for an invalid checkpoint: see `problems`.
    """
    folder = Path(path)
    suffix = f".{variant}" if variant else ""
    for layout, name, load in (
        ("safetensors", f"model{suffix}.safetensors", read),
        ("safetensors", f"model.safetensors.index{suffix}.json", read),
        ("bin", f"pytorch_model{suffix}.bin", _read_bin),
        ("bin", f"pytorch_model.bin.index{suffix}.json", _read_bin),
        # Those of a denoiser, which diffusers reads.
        ("safetensors", f"diffusion_pytorch_model{suffix}.safetensors", read),
        ("safetensors", f"diffusion_pytorch_model.safetensors.index{suffix}.json", read),
        ("bin", f"diffusion_pytorch_model{suffix}.bin", _read_bin),
        ("bin", f"diffusion_pytorch_model.bin.index{suffix}.json", _read_bin),
    ):
        file = folder / name
        if file.is_file() or file.is_symlink():
            if name.endswith(".json"):
                return _sharded(folder, layout, file, load)
            return _gathered(folder, layout, [file], load, {})
    return _foreign(folder)


def _finding(failure: str, where: Path | str, what: str) -> Finding:
    return Finding(failure, str(where), what, fix_for(failure))


def _gathered(
    folder: Path,
    layout: str,
    files: Iterable[Path],
    load: Callable[[Path], list[Tensor]],
    weight_map: Mapping[str, str],
    problems: Iterable[Finding] = (),
) -> Checkpoint:
    """Return the checkpoint that consists of `files`; `weight_map` is that of its index, empty if it has none."""
    found: dict[str, Tensor] = {}
    wrong = [*problems]
    unread: set[str] = set()
    doubled: dict[tuple[Path, str], list[str]] = {}
    files = tuple(files)
    for file in files:
        if len(found) > _MOST_TENSORS or len(wrong) > _MOST_PROBLEMS:
            what = f"not all of its {len(files)} files were read, after {len(found)} tensors and {len(wrong)} problems"
            wrong.append(_finding("inconsistent-index", folder, what))
            unread |= {file.name for file in files}
            break
        try:
            if not file.is_file():
                raise BadFileError("missing-shard", f"not found{_BROKEN_LINK if file.is_symlink() else ''}")
            if file.with_name(f"{file.name}.aria2").exists():  # it gives a file its whole size at once
                raise BadFileError("truncated-shard", f"its download did not end: {file.name}.aria2 is beside it")
            tensors = load(file)
        except BadFileError as bad:
            unread.add(file.name)
            wrong.append(_finding(bad.failure, file, str(bad)))
            continue
        except OSError as error:
            unread.add(file.name)
            wrong.append(_finding("missing-shard", file, f"cannot be read: {error.strerror or error}"))
            continue
        for tensor in tensors:
            if tensor.name in found:
                other = found[tensor.name].file.name
                doubled.setdefault((file, other), []).append(tensor.name)
            found[tensor.name] = tensor
    for (file, other), names in doubled.items():
        wrong.append(_finding("inconsistent-index", file, f"has {shortened(names)}, which {other} has too"))
    empty = sorted(name for name, tensor in found.items() if tensor.shape == (0,))
    if empty:
        what = f"{len(empty)} of {len(found)} tensors have shape [0] ({shortened(empty)})"
        failure = "adapter-partitioned" if layout == "adapter" else "saved-partitioned"
        wrong.append(_finding(failure, found[empty[0]].file, what))
    wrong += _unlike_index(folder, found, weight_map, unread)
    if not found and not wrong:
        wrong.append(_finding("not-a-checkpoint", folder, "expected tensors, found none in its weight files"))
    return Checkpoint(folder, layout, files, found, tuple(wrong))


def _unlike_index(
    folder: Path, found: Mapping[str, Tensor], weight_map: Mapping[str, str], unread: set[str]
) -> Iterable[Finding]:
    """Yield how `found` differs from `weight_map`; files in `unread` have been reported already."""
    if not weight_map:
        return
    lost = sorted(name for name, file in weight_map.items() if name not in found and Path(file).name not in unread)
    if lost:
        what = f"its index lists {len(lost)} tensors that no shard has ({shortened(lost)})"
        yield _finding("inconsistent-index", folder, what)
    extra = sorted(name for name in found if name not in weight_map)
    if extra:
        what = f"its shards have {len(extra)} tensors that the index does not list ({shortened(extra)})"
        yield _finding("inconsistent-index", folder, what)
    moved = sorted(
        name for name, tensor in found.items() if Path(weight_map.get(name, tensor.file.name)).name != tensor.file.name
    )
    if moved:
        what = f"its index lists {len(moved)} tensors under another shard than the one that has them ({shortened(moved)})"
        yield _finding("inconsistent-index", folder, what)


def _sharded(folder: Path, layout: str, index: Path, load: Callable[[Path], list[Tensor]]) -> Checkpoint:
    try:
        content = _index(index)
    except BadFileError as bad:
        return Checkpoint(folder, layout, (), {}, (_finding(bad.failure, index, str(bad)),))
    weight_map: dict[str, str] = content["weight_map"]
    names = sorted(set(weight_map.values()))
    # A repeated download, or a save into a directory in use, leaves shards of another split behind.
    pattern = re.compile(re.sub(r"\d+-of-\d+", r"\\d+-of-\\d+", re.escape(names[0]).replace(r"\-", "-")))
    strays = sorted(file.name for file in folder.iterdir() if pattern.fullmatch(file.name) and file.name not in names)
    what = f"a shard that {index.name} does not list"
    problems = [_finding("inconsistent-index", folder / stray, what) for stray in strays]
    if not isinstance(content.get("metadata"), dict):
        what = "expected an object metadata, without which from_pretrained raises KeyError, found none"
        problems.append(Finding("inconsistent-index", str(index), what, 'add "metadata": {} to it'))
    return _gathered(folder, layout, [folder / name for name in names], load, weight_map, problems)


def _index(index: Path) -> dict[str, Any]:
    """Return an index, of which `weight_map` is tensor name -> file name. Raises BadFileError if that is invalid."""
    try:
        if not index.is_file():
            raise BadFileError("missing-shard", f"not found{_BROKEN_LINK}")
        if index.stat().st_size > _LARGEST_INDEX:
            raise BadFileError("inconsistent-index", f"expected an index, found more than {_LARGEST_INDEX} bytes")
        # As transformers reads it: without a byte-order mark, and the last of two entries of a name counts.
        content = parse_json(index.read_bytes(), unique=False, strict=False)
        weight_map = content["weight_map"]
    except OSError as error:
        raise BadFileError("missing-shard", f"cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError) as wrong:
        _refuse_foreign_index(index)
        what = f"invalid index: {type(wrong).__name__}: {clipped(str(wrong))}"
        raise BadFileError("inconsistent-index", what) from None
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadFileError("inconsistent-index", "invalid index: weight_map is empty or not a map of names")
    for name in weight_map.values():
        inside = isinstance(name, str) and name and "\0" not in name and "\\" not in name
        if not inside or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            what = f"lists the file {clipped(repr(name))}, which is outside the checkpoint's directory"
            raise BadFileError("inconsistent-index", what)
    if (shards := len(set(weight_map.values()))) > _MOST_SHARDS:
        raise BadFileError("inconsistent-index", f"expected at most {_MOST_SHARDS} shards, found {shards}")
    found: dict[str, Any] = content
    return found


def _refuse_foreign_index(index: Path) -> None:
    with index.open("rb") as file:
        refuse_foreign(file.read(512))


def _read_bin(file: Path) -> list[Tensor]:
    """Return the tensors of a file that torch.save wrote. Raises BadFileError if it is invalid."""
    import torch

    return [
        Tensor(name, tuple(value.shape), _dtype(value.dtype), file)
        for name, value in load_bin(file, torch.device("meta")).items()
    ]


def load_bin(file: Path, device: Any) -> dict[str, Any]:
    """Return tensor name -> tensor of a file that torch.save wrote.

    On the meta device no weights are read; on cpu the file is memory-mapped. Raises BadFileError if it is not a map of
    tensors, or has anything but plain data in it.
    """
    import torch

    with file.open("rb") as opened:
        start = opened.read(512)
    refuse_foreign(start)
    zipped = start.startswith(b"PK\x03\x04")
    try:
        state = torch.load(file, map_location=device, weights_only=True, mmap=zipped)
    except Exception as wrong:  # noqa: BLE001 - torch, pickle and zipfile each raise other errors for an invalid file
        text = str(wrong)
        failure = "unsafe-pickle" if "weights_only" in text or "Weights only" in text else "truncated-shard"
        raise BadFileError(failure, f"cannot be read: {text.splitlines()[0] if text else type(wrong).__name__}") from None
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise BadFileError("not-a-checkpoint", "expected a map of tensors, found other data")
    return state


def _dtype(dtype: Any) -> str:
    name = str(dtype).removeprefix("torch.")
    return next((key for key, torch_name in DTYPES.items() if torch_name == name), name)


def _foreign(folder: Path) -> Checkpoint:
    """Return what is in a directory from which from_pretrained loads nothing."""
    if not folder.is_dir():
        return Checkpoint(folder, "none", (), {}, (_finding("not-a-checkpoint", folder, "not a directory"),))
    if (folder / "adapter_config.json").is_file():
        return _adapter(folder)
    if engine := _engine_files(folder):
        return _engine(folder, engine)
    if consolidated := sorted(folder.glob("consolidated*.safetensors")):
        return _gathered(folder, "consolidated", consolidated, read, {})
    if consolidated := sorted([*folder.glob("consolidated*.pth"), *folder.glob("consolidated*.pt")]):
        return _gathered(folder, "consolidated", consolidated, _read_bin, {})
    return Checkpoint(folder, "none", (), {}, (_no_weights(folder),))


# What browsers, aria2, wget and huggingface_hub name a file by while it is downloaded.
_UNFINISHED = ("*.aria2", "*.incomplete", "*.part", "*.crdownload", ".cache/huggingface/download/*.incomplete")
# A pattern, what has such files, and what to do.
_OF_OTHERS = (
    (
        "*/__*.distcp",
        "the sharded state of FSDP",
        "join it: accelerate merge-weights DIRECTORY OUTPUT, for the one with .distcp files",
    ),
    ("__*.distcp", "the sharded state of FSDP", "join it: accelerate merge-weights DIRECTORY OUTPUT"),
    ("latest_checkpointed_iteration.txt", "one of Megatron", "convert it with the tool of the project that wrote it"),
)
# Weights in directories below: a cache of huggingface_hub, or what a script saved under a name of its own.
_INSIDE = ("snapshots/*/*.safetensors", "snapshots/*/pytorch_model*.bin", "*/model*.safetensors", "*/pytorch_model*.bin")
# What every folder of a Trainer's step has, or one that was cleaned and holds an adapter.
_IN_STEPS = ("trainer_state.json", "adapter_config.json")
# Files of a variant, such as model.fp16.safetensors, which from_pretrained reads only where its name is passed.
_VARIANT = re.compile(r"(?:model|pytorch_model)\.([A-Za-z0-9_]{1,40})(?:-\d+-of-\d+)?\.(?:safetensors|bin)")


def _no_weights(folder: Path) -> Finding:
    """Return what a directory without weights has instead, and what to do."""
    if variants := sorted({match[1] for file in folder.iterdir() if (match := _VARIANT.fullmatch(file.name))}):
        what = f"has weights of {'the variant' if len(variants) == 1 else 'variants'} {shortened(variants)} only"
        return Finding(
            "not-a-checkpoint", str(folder), what, f"pass variant={variants[0]!r}, to check as --variant {variants[0]}"
        )
    if loose := sorted(file.name for file in folder.glob("*.safetensors")):
        return _finding("missing-shard", folder, f"has shards but no index ({shortened(loose)})")
    if unfinished := sorted(file.name for pattern in _UNFINISHED for file in folder.glob(pattern)):
        what = f"has downloads that did not end ({shortened(unfinished)})"
        return Finding("not-a-checkpoint", str(folder), what, "run the download again; it continues")
    of_trainer = (file.parent for name in _IN_STEPS for file in folder.glob(f"checkpoint-*/{name}"))
    if saved := sorted(set(of_trainer), key=_number):
        what = f"expected a checkpoint, found a Trainer's output folder with {len(saved)} of them"
        return Finding("not-a-checkpoint", str(folder), what, f"pass one of them, the last is {saved[-1]}")
    if ggufs := sorted(file.name for file in folder.glob("*.gguf")):
        what = f"expected a checkpoint of transformers, found GGUF files ({shortened(ggufs)})"
        return Finding("not-a-checkpoint", str(folder), what, "get the checkpoint that they were converted from")
    if others := [name for name in ("tf_model.h5", "flax_model.msgpack") if (folder / name).is_file()]:
        what = f"expected weights of PyTorch, found {others[0]}"
        return Finding("not-a-checkpoint", str(folder), what, "get the checkpoint as safetensors")
    if (folder / "zero_to_fp32.py").is_file() or any(folder.glob("global_step*")):
        what = "has the remains of a DeepSpeed engine's checkpoint without its model states"
        fix = "copy the global_step folder that the file latest specifies from the machine that saved it, all ranks' files"
        return Finding("engine-checkpoint", str(folder), what, fix)
    for pattern, kind, fix in _OF_OTHERS:
        if any(folder.glob(pattern)):
            return Finding("not-a-checkpoint", str(folder), f"expected a checkpoint of transformers, found {kind}", fix)
    if inside := sorted({file.parent for pattern in _INSIDE for file in folder.glob(pattern)}, key=_number):
        what = f"expected a checkpoint, found a directory with {len(inside)} of them"
        return Finding("not-a-checkpoint", str(folder), what, f"pass one of them, such as {inside[-1]}")
    what = "has no weights that from_pretrained reads"
    return Finding(
        "not-a-checkpoint", str(folder), what, "download or copy the weights too, or pass the directory that has them"
    )


def _adapter(folder: Path) -> Checkpoint:
    """Return the contents of an adapter's folder; it is a problem that it has not got its weights."""
    for name, load in (("adapter_model.safetensors", read), ("adapter_model.bin", _read_bin)):
        if (folder / name).exists() or (folder / name).is_symlink():
            return _gathered(folder, "adapter", [folder / name], load, {})
    fix = "save it again with save_pretrained, or copy adapter_model.safetensors from the machine of rank 0"
    problem = Finding("missing-shard", str(folder), "has adapter_config.json but no adapter_model.safetensors", fix)
    return Checkpoint(folder, "adapter", (), {}, (problem,))


def _number(folder: Path) -> int:
    """Return the number at the end of a folder's name: numbers, unlike names, are in the order of steps."""
    found = re.search(r"\d{1,18}$", folder.name)
    return int(found[0]) if found else -1


def _engine_files(folder: Path) -> list[Path]:
    """Return the model state files of a DeepSpeed engine's checkpoint.

    They are in `folder`, in the step that its file `latest` specifies, or, without that file, in the last of its steps.
    """
    places = [folder]
    latest = folder / "latest"
    if latest.is_file():
        with latest.open("rb") as file:
            tag = file.read(200).decode(errors="replace").strip()
        if tag and "\0" not in tag and PurePosixPath(tag).name == tag:
            places.append(folder / tag)
    else:
        places += sorted(folder.glob("global_step*"), key=_number)[-1:]
    return sorted(file for place in places for file in place.glob("*_model_states.pt"))


class _Opaque:
    """A placeholder for DeepSpeed's classes in a checkpoint, whose contents are not needed."""

    def __new__(cls, *_: Any) -> "_Opaque":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


_ENGINE_CLASSES = (
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
)


def _lost_ranks(folder: Path, files: list[Path]) -> Iterable[Finding]:
    """Yield the ranks whose files an engine's checkpoint lacks; each machine writes those of its own ranks."""
    for kind in ("model", "optim"):
        found = {int(number) for file in files for number in _ranks_in(file.parent, kind)}
        if found and len(found) <= max(found):
            lost = [str(rank) for rank in range(min(max(found), 10**6)) if rank not in found]
            what = f"has {kind} states of {len(found)} of at least {max(found) + 1} ranks (not of {shortened(lost)})"
            fix = "copy their files from the machines that saved them"
            yield Finding("missing-shard", str(folder), what, fix)


def _ranks_in(folder: Path, kind: str) -> set[str]:
    names = (re.search(rf"zero_pp_rank_(\d{{1,9}})_mp_rank_00_{kind}_states\.pt$", file.name) for file in folder.iterdir())
    return {name[1] for name in names if name}


def _engine(folder: Path, files: list[Path]) -> Checkpoint:
    """Return the contents of an engine's checkpoint, from the parameter shapes that it records."""
    import torch

    found: dict[str, Tensor] = {}
    problems = list(_lost_ranks(folder, files))
    allowed: Any = [(_Opaque, name) for name in _ENGINE_CLASSES]
    try:
        with torch.serialization.safe_globals(allowed):
            state = torch.load(files[0], map_location="meta", weights_only=True, mmap=True)
        for name, tensor in (state.get("module") or {}).items():
            if isinstance(tensor, torch.Tensor):
                found[name] = Tensor(name, tuple(tensor.shape), _dtype(tensor.dtype), files[0])
        for shapes in state.get("param_shapes") or []:
            for name, shape in shapes.items():
                found[name] = Tensor(name, tuple(shape), "F32", files[0])
    except Exception as wrong:  # noqa: BLE001 - torch, pickle and zipfile each raise other errors for an invalid file
        what = f"cannot be read: {(str(wrong) or type(wrong).__name__).splitlines()[0]}"
        problems.append(_finding("truncated-shard", files[0], what))
    return Checkpoint(folder, "deepspeed", tuple(files), found, tuple(problems))
