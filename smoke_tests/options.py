"""The options of a smoke run, read and checked before anything expensive happens. Imports nothing but the standard library."""

import argparse
import json
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from . import families

STAGES = (2, 3)
# Of one rank's interpreter with torch, transformers and deepspeed; measured 0.6 GiB, mostly shared when ranks are forked.
BASE_BYTES = 700 * 2**20
# Bytes a parameter costs one rank in fp32 training: weight, gradient, the two Adam moments, and the reduction buffer.
BYTES_PER_PARAMETER = 20
# What a run writes for each stage and parameter: engine checkpoint (weights, master weights, moments), two consolidations.
DISK_BYTES_PER_PARAMETER = 28
MADE_PARAMETERS = 13_200_000  # of the largest family
MADE_DISK_BYTES = 200 * 2**20
# What stack.toml promises of faults that some versions have: a control has to see the fault, or a check proves that it is gone.
PROMISES = {"gloo_race": ("present", "fixed"), "later_key_layout": ("random", "whole")}


class BadInput(Exception):
    """Something the user gave is wrong: one line that says what, where and what to do."""


@dataclass(frozen=True)
class Options:
    """What a smoke run was asked to do."""

    environment: str
    stack: dict[str, Any]
    lock: Path
    stages: tuple[int, ...]
    processes: int | None
    device: str
    checkpoint: str | None
    timeout: float
    report: Path
    port: int
    start: str
    image: str | None
    validate: bool


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadInput(f"smoke: {message}; see --help")


def _stages(text: str) -> tuple[int, ...]:
    try:
        stages = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        stages = ()
    if not stages or not set(stages) <= set(STAGES):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of ZeRO stages; give 2, 3 or 2,3")
    return stages


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of 1 or more")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds between 1 and 86400")
    return seconds


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; give 0 for any free one")
    return int(text)


def _digest(text: str) -> str:
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no digest of an image, sha256:...")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="smoke", description="Prove that this environment loads, trains, saves and resumes its model.")
    add = parser.add_argument
    add("--environment", required=True, help="name of the environment")
    add("--stack", type=Path, required=True, help="the environment's stack.toml")
    add("--lock", type=Path, required=True, help="the environment's folder of lock files")
    add("--zero", type=_stages, default=STAGES, metavar="2,3", help="ZeRO stages to prove (default: 2,3)")
    add("--nproc", type=_positive, metavar="N", help="ranks (default: 2 on a CPU, all GPUs up to 8 otherwise)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="cuda runs NCCL and bf16, cpu gloo and fp32")
    add("--checkpoint", metavar="PATH_OR_HUB_ID", help="prove with this checkpoint (default: make a tiny one)")
    add(
        "--timeout",
        type=_seconds,
        default=120.0,
        metavar="S",
        help="seconds a rank may spend in one check (default: 120)",
    )
    add(
        "--report",
        type=Path,
        metavar="DIR",
        help="where report.json and junit.xml go (default: build/smoke/ENVIRONMENT)",
    )
    add("--port", type=_port, default=0, help="port of the rendezvous on 127.0.0.1 (default: 0, any free one)")
    add(
        "--start",
        choices=("fork", "spawn"),
        default="fork",
        help="how ranks start: fork shares one import, spawn repeats it",
    )
    add("--image", type=_digest, metavar="DIGEST", help="the image that this runs in, for the report to say")
    add("--validate", action="store_true", help="check these options and stop")
    return parser


def read(arguments: list[str]) -> Options:
    """The options in `arguments`. Raises BadInput."""
    given = _parser().parse_args(arguments)
    try:
        return _checked(given)
    except OSError as error:  # such as a name that is too long, which Python 3.11 does not take for a file that is not there
        raise BadInput(f"smoke: {error.filename}: {error.strerror}; give a path that can be read") from error


def _checked(given: argparse.Namespace) -> Options:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", given.environment):
        raise BadInput(f"smoke: {given.environment!r} is no name of an environment")
    stack = _read_stack(given.stack)
    if not (given.lock / "requirements.txt").is_file():
        raise BadInput(f"{given.lock}: no requirements.txt here; run: nox -s lock -- {given.environment}")
    if given.checkpoint is not None:
        _check_checkpoint(given.checkpoint, stack["model"]["family"])
    return Options(
        environment=given.environment,
        stack=stack,
        lock=given.lock,
        stages=given.zero,
        processes=given.nproc,
        device=given.device,
        checkpoint=given.checkpoint,
        timeout=given.timeout,
        report=(given.report or Path("build/smoke") / given.environment).absolute(),
        port=given.port,
        start=given.start,
        image=given.image,
        validate=given.validate,
    )


def _read_stack(file: Path) -> dict[str, Any]:
    try:
        stack = tomllib.loads(file.read_text())
        family, expectations = stack["model"]["family"], stack["expectations"]
        if not isinstance(stack["model"]["class"], str):
            raise KeyError("class")
        expectations["auto_classes"].items()
        for name, known in PROMISES.items():
            if expectations[name] not in known:
                raise BadInput(f"{file}: expectations.{name} is {expectations[name]!r}; give one of {', '.join(known)}")
    except OSError as error:
        raise BadInput(f"{file}: {error.strerror}; give --stack the environment's stack.toml") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(f"{file}: no TOML ({error}); mend it") from error
    except (KeyError, AttributeError, TypeError) as error:
        raise BadInput(
            f"{file}: model.family, model.class or one of expectations.auto_classes, {', '.join(PROMISES)} is missing; "
            "see CONTRIBUTING.md"
        ) from error
    if family not in families.names():
        there = ", ".join(families.names())
        raise BadInput(f"{file}: model.family is {family!r}; give one of {there}, or add a module to smoke_tests/families")
    return stack


def _check_checkpoint(checkpoint: str, family: str) -> None:
    """A hub id cannot be judged yet; a folder must hold a whole checkpoint of the right family."""
    folder = Path(checkpoint)
    if not folder.exists():
        if re.fullmatch(r"[\w.-]+/[\w.-]+", checkpoint) and not checkpoint.startswith("."):
            return
        raise BadInput(f"--checkpoint {checkpoint}: no such folder, and no id of the form owner/name")
    check_folder(folder, family)


def check_folder(folder: Path, family: str) -> None:
    """Refuse a folder that is no whole safetensors checkpoint of `family`, from its small files alone. Raises BadInput."""
    config = folder / "config.json"
    found = _read_json(config, "give --checkpoint a folder in Hugging Face format")
    if found.get("model_type") != family:
        raise BadInput(
            f"{config}: model_type is {found.get('model_type')!r}, this environment is for {family!r}; give another checkpoint"
        )
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = _read_json(index, "the checkpoint is damaged, fetch it again").get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise BadInput(f"{index}: no weight_map; the checkpoint is damaged, fetch it again")
        names = {str(name) for name in weight_map.values()}
    else:
        names = {"model.safetensors"}
    for name in sorted(names):
        if Path(name).name != name:
            raise BadInput(f"{index}: the shard {name!r} lies outside the checkpoint; do not trust it")
        _check_shard(folder / name)
    for name in ("tokenizer_config.json", "preprocessor_config.json"):
        _read_json(folder / name, "the smoke test puts images through the checkpoint's own processor, fetch it too")


def _read_json(file: Path, cure: str) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except OSError as error:
        raise BadInput(f"{file}: {error.strerror}; {cure}") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise BadInput(f"{file}: no JSON; {cure}") from error
    if not isinstance(content, dict):
        raise BadInput(f"{file}: no JSON object; {cure}")
    return content


def _check_shard(file: Path) -> None:
    """Compare a shard's length with its own header: a download that was cut, a Git LFS pointer and a web page all show here."""
    cure = "the download was cut or is a placeholder, fetch this file again"
    try:
        with open(file, "rb") as shard:
            size = os.fstat(shard.fileno()).st_size
            length = int.from_bytes(shard.read(8), "little")
            if size < 8 or length > min(size - 8, 100_000_000):
                raise BadInput(f"{file}: no safetensors file ({size} bytes); {cure}")
            header = json.loads(shard.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        whole = 8 + length + max(ends, default=0)
    except OSError as error:
        raise BadInput(f"{file}: {error.strerror}; {cure}") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise BadInput(f"{file}: its safetensors header cannot be read; {cure}") from error
    if size != whole:
        raise BadInput(f"{file}: {size} bytes, its header promises {whole}; {cure}")
