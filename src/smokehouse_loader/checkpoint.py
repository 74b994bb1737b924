"""A checkpoint as it lies on disk: which tensors are where, and what is broken, with no weights read."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from smokehouse_loader.errors import Finding, shortened
from smokehouse_loader.failures import cure_of
from smokehouse_loader.safetensors_header import BadFileError, Tensor, read, refuse_foreign

# An index of a 70 GB checkpoint has 0.1 MB.
_LARGEST_INDEX = 64 * 2**20
_INDEX = ".index.json"

# Words of safetensors for the types of torch.
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
    """What a checkpoint holds.

    `layout` is `safetensors`, `bin`, `deepspeed` (an engine's own checkpoint), `consolidated` (the model's maker's own) or
    `none`; from_pretrained reads the first two. `tensors` go by name; `problems` is empty for a sound one.
    """

    path: Path
    layout: str
    files: tuple[Path, ...]
    tensors: Mapping[str, Tensor]
    problems: tuple[Finding, ...]

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return sum(tensor.elements for tensor in self.tensors.values())


def inspect_checkpoint(path: str | Path, *, variant: str | None = None) -> Checkpoint:
    """Look at the checkpoint in the folder `path` and read no weights: names, shapes, types, shards, and what is broken.

    Takes the files that from_pretrained takes, in its order: safetensors before .bin, a single file before shards; `variant`
    is its argument of that name. Headers of safetensors are read here, .bin files by torch with `weights_only` and onto the
    meta device. Raises nothing for a broken checkpoint: that is in `problems`.
    """
    folder = Path(path)
    suffix = f".{variant}" if variant else ""
    for layout, name, load in (
        ("safetensors", f"model{suffix}.safetensors", read),
        ("safetensors", f"model.safetensors.index{suffix}.json", read),
        ("bin", f"pytorch_model{suffix}.bin", _read_bin),
        ("bin", f"pytorch_model.bin.index{suffix}.json", _read_bin),
    ):
        file = folder / name
        if file.is_file() or file.is_symlink():
            if name.endswith(".json"):
                return _sharded(folder, layout, file, load)
            return _gathered(folder, layout, [file], load, {})
    return _foreign(folder)


def _finding(failure: str, where: Path | str, what: str) -> Finding:
    return Finding(failure, str(where), what, cure_of(failure))


def _gathered(
    folder: Path,
    layout: str,
    files: Iterable[Path],
    load: Callable[[Path], list[Tensor]],
    weight_map: Mapping[str, str],
    problems: Iterable[Finding] = (),
) -> Checkpoint:
    """The checkpoint that `files` make up; `weight_map` is what an index says of it, empty where there is none."""
    found: dict[str, Tensor] = {}
    wrong = [*problems]
    unread = set()
    files = tuple(files)
    for file in files:
        try:
            if not file.is_file():
                broken = " (a link to nothing: the cache that held it was cleaned)" if file.is_symlink() else ""
                raise BadFileError("missing-shard", f"is not there{broken}")
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
                wrong.append(_finding("inconsistent-index", file, f"holds {tensor.name!r}, which {other} holds too"))
            found[tensor.name] = tensor
    empty = sorted(name for name, tensor in found.items() if tensor.shape == (0,))
    if empty:
        what = f"{len(empty)} of {len(found)} tensors have shape [0] ({shortened(empty)})"
        wrong.append(_finding("saved-partitioned", found[empty[0]].file, what))
    wrong += _unlike_index(folder, found, weight_map, unread)
    if not found and not wrong:
        wrong.append(_finding("not-a-checkpoint", folder, "its weight files hold no tensor at all"))
    return Checkpoint(folder, layout, files, found, tuple(wrong))


def _unlike_index(
    folder: Path, found: Mapping[str, Tensor], weight_map: Mapping[str, str], unread: set[str]
) -> Iterable[Finding]:
    """How the tensors that were `found` are not where `weight_map` says; a file that is `unread` has been complained of."""
    if not weight_map:
        return
    lost = sorted(name for name, file in weight_map.items() if name not in found and Path(file).name not in unread)
    if lost:
        yield _finding(
            "inconsistent-index", folder, f"its index names {len(lost)} tensors that no shard holds ({shortened(lost)})"
        )
    extra = sorted(name for name in found if name not in weight_map)
    if extra:
        yield _finding(
            "inconsistent-index", folder, f"its shards hold {len(extra)} tensors not in the index ({shortened(extra)})"
        )
    moved = sorted(
        name for name, tensor in found.items() if Path(weight_map.get(name, tensor.file.name)).name != tensor.file.name
    )
    if moved:
        what = f"its index names another shard than the one that holds them, for {len(moved)} tensors ({shortened(moved)})"
        yield _finding("inconsistent-index", folder, what)


def _sharded(folder: Path, layout: str, index: Path, load: Callable[[Path], list[Tensor]]) -> Checkpoint:
    try:
        weight_map = _weight_map(index)
    except BadFileError as bad:
        return Checkpoint(folder, layout, (), {}, (_finding(bad.failure, index, str(bad)),))
    names = sorted(set(weight_map.values()))
    # What a download that was begun twice, or a save into a folder in use, leaves behind.
    pattern = re.compile(re.sub(r"\d+-of-\d+", r"\\d+-of-\\d+", re.escape(names[0]).replace(r"\-", "-")))
    strays = sorted(file.name for file in folder.iterdir() if pattern.fullmatch(file.name) and file.name not in names)
    problems = [
        _finding("inconsistent-index", folder / stray, f"is a shard that {index.name} does not name") for stray in strays
    ]
    return _gathered(folder, layout, [folder / name for name in names], load, weight_map, problems)


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> file name, from an index. Raises BadFileError."""
    try:
        if not index.is_file():
            raise BadFileError("missing-shard", "is a link to nothing: the cache that held it was cleaned")
        if index.stat().st_size > _LARGEST_INDEX:
            raise BadFileError("inconsistent-index", f"is larger than {_LARGEST_INDEX} bytes: no index of a checkpoint")
        weight_map = json.loads(index.read_bytes())["weight_map"]
    except OSError as error:
        raise BadFileError("missing-shard", f"cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError, KeyError, TypeError) as wrong:
        _refuse_foreign_index(index)
        raise BadFileError("inconsistent-index", f"is no index with a weight_map: {type(wrong).__name__} {wrong}") from None
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadFileError("inconsistent-index", "its weight_map is no table of names, or empty")
    for name in weight_map.values():
        inside = isinstance(name, str) and name and "\0" not in name and "\\" not in name
        if not inside or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise BadFileError("inconsistent-index", f"names the file {name!r}, which is not inside the checkpoint's folder")
    return weight_map


def _refuse_foreign_index(index: Path) -> None:
    with index.open("rb") as file:
        refuse_foreign(file.read(512))


def _read_bin(file: Path) -> list[Tensor]:
    """The tensors of a file that torch.save wrote. Raises BadFileError."""
    import torch

    return [
        Tensor(name, tuple(value.shape), _dtype(value.dtype), file)
        for name, value in load_bin(file, torch.device("meta")).items()
    ]


def load_bin(file: Path, device: Any) -> dict[str, Any]:
    """Tensor name -> tensor of a file that torch.save wrote; onto the meta device no weights are read, onto cpu they are
    mapped.

    Raises BadFileError where it is not a table of tensors, or is anything but plain data.
    """
    import torch

    with file.open("rb") as opened:
        start = opened.read(512)
    refuse_foreign(start)
    zipped = start.startswith(b"PK\x03\x04")
    try:
        state = torch.load(file, map_location=device, weights_only=True, mmap=zipped)
    except Exception as wrong:  # noqa: BLE001 - torch, pickle and zipfile each have errors of their own for a broken file
        text = str(wrong)
        failure = "unsafe-pickle" if "weights_only" in text or "Weights only" in text else "truncated-shard"
        raise BadFileError(
            failure, f"cannot be read as weights: {text.splitlines()[0] if text else type(wrong).__name__}"
        ) from None
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise BadFileError("not-a-checkpoint", "holds something else than a table of tensors")
    return state


def _dtype(dtype: Any) -> str:
    name = str(dtype).removeprefix("torch.")
    return next((word for word, torch_name in DTYPES.items() if torch_name == name), name)


def _foreign(folder: Path) -> Checkpoint:
    """What lies in a folder that from_pretrained reads nothing from."""
    if not folder.is_dir():
        problem = _finding("not-a-checkpoint", folder, "is no folder")
        return Checkpoint(folder, "none", (), {}, (problem,))
    engine = _engine_files(folder)
    if engine:
        return _engine(folder, engine)
    if consolidated := sorted(folder.glob("consolidated*.safetensors")):
        return _gathered(folder, "consolidated", consolidated, read, {})
    if consolidated := sorted([*folder.glob("consolidated*.pth"), *folder.glob("consolidated*.pt")]):
        return _gathered(folder, "consolidated", consolidated, _read_bin, {})
    loose = sorted(file.name for file in folder.glob("*.safetensors"))
    what = f"shards but no index ({shortened(loose)})" if loose else "no weights that from_pretrained reads"
    return Checkpoint(
        folder, "none", (), {}, (_finding("missing-shard" if loose else "not-a-checkpoint", folder, f"has {what}"),)
    )


def _engine_files(folder: Path) -> list[Path]:
    """The files with model states of a DeepSpeed engine's checkpoint: in `folder`, or in the step that `latest` names."""
    places = [folder]
    latest = folder / "latest"
    if latest.is_file():
        tag = latest.read_text(errors="replace")[:200].strip()
        if tag and PurePosixPath(tag).name == tag:
            places.append(folder / tag)
    return sorted(file for place in places for file in place.glob("*_model_states.pt"))


class _Opaque:
    """Stands for the classes of DeepSpeed in a checkpoint: what is read here is not in them."""

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


def _engine(folder: Path, files: list[Path]) -> Checkpoint:
    """What an engine's checkpoint holds, from the shapes that it notes of all parameters."""
    import torch

    found: dict[str, Tensor] = {}
    problems = []
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
    except Exception as wrong:  # noqa: BLE001 - torch, pickle and zipfile each have errors of their own for a broken file
        problems.append(
            _finding("truncated-shard", files[0], f"cannot be read: {(str(wrong) or type(wrong).__name__).splitlines()[0]}")
        )
    return Checkpoint(folder, "deepspeed", tuple(files), found, tuple(problems))
