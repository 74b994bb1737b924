"""The options of a smoke run, read and checked before anything expensive. Imports no torch."""

import argparse
import importlib
import json
import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from smoke_tests import families, report
from smoke_tests.families import Family
from smoke_tests.ranks import transport
from smoke_tests.selection import EXTRA, Selection, canonical
from smokehouse_loader import inspect_checkpoint

STAGES = (2, 3)
HERE = "here"  # what reports of runs without a lock have as the name of the environment
# What stack.toml may say, in place of `smoke_tests.measured`, of failures that some versions have: a control has to detect it,
# or a check proves that it is fixed.
PROMISES = {"gloo_race": ("present", "fixed"), "later_key_layout": ("random", "whole")}


class InputError(Exception):
    """Invalid input from the user: one line that says where, what was expected and found, and what to do."""


@dataclass(frozen=True)
class Options:
    """The options of a smoke run."""

    environment: str
    stack: dict[str, Any]  # of a run without a lock only the family, until `here.complete` has read the installed versions
    lock: Path | None  # None for a run without one
    stages: tuple[int, ...]
    processes: int | None
    device: str
    backend: str | None
    checkpoint: str | None
    timeout: float | None  # seconds; None for what the size of the model requires
    report: Path
    port: int
    start: str
    image: str | None
    validate: bool
    selection: Selection
    nodes: int = 1
    node_rank: int = 0
    endpoint: str = ""  # HOST:PORT of node 0; empty on one node
    join_timeout: float = 55.0  # seconds in which every node has to join the run
    network: str = ""  # that NCCL is to take between nodes, as its log names it: IB, for example; empty for any
    beyond: tuple[str, ...] = ()  # packages in versions that expectations were never measured with

    @property
    def partial(self) -> str:
        """The options that leave out a part of the smoke test, as they are typed; empty where all of it runs."""
        chosen = {"--only": self.selection.only, "--skip": self.selection.skip}
        parts = [] if self.stages == STAGES else ["--zero", ",".join(map(str, self.stages))]
        for option, names in chosen.items():
            parts += [option, ",".join(names)] if names else []
        return shlex.join(parts)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"smoke: {message}; see --help")


def _stages(text: str) -> tuple[int, ...]:
    try:
        stages = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        stages = ()
    if not stages or not set(stages) <= set(STAGES):
        raise argparse.ArgumentTypeError(f"{text!r} is an invalid list of ZeRO stages; give 2, 3 or 2,3")
    return stages


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is invalid; give a number of 1 or more")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is invalid; give seconds between 1 and 86400")
    return seconds


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is an invalid port; give 1 to 65535, or 0 for any free port")
    return int(text)


def _names(text: str) -> tuple[str, ...]:
    try:
        return tuple(dict.fromkeys(canonical(name) for name in text.split(",")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _digest(text: str) -> str:
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is an invalid image digest; give sha256: and 64 hexadecimal digits")
    return text


def _parser() -> argparse.ArgumentParser:
    # Builder and image fill in --environment, --stack, --lock, --image and --validate; help is for the user's own options.
    without_lock = "Prove what is installed, without a lock, with a model of this family"
    parser = _Parser(
        prog=os.environ.get("SMOKEHOUSE_PROG", "smoke"),
        allow_abbrev=False,  # the builder reads some of them, too
        description="Prove that this environment loads, trains, saves and resumes its model.",
    )
    add = parser.add_argument
    add("--environment", help=argparse.SUPPRESS)
    add("--stack", type=Path, help=argparse.SUPPRESS)
    add("--lock", type=Path, help=argparse.SUPPRESS)
    add("--zero", type=_stages, default=STAGES, metavar="2,3", help="Test these ZeRO stages (default: 2,3).")
    add(
        "--nproc",
        type=_positive,
        metavar="N",
        help="Run so many ranks on each node (default: 2 on a CPU, otherwise one per GPU, 8 at most; one GPU: see --backend).",
    )
    add(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="Run on cuda (NCCL, bf16) or cpu (gloo, fp32) (default: auto).",
    )
    add(
        "--backend",
        choices=("gloo", "nccl"),
        help="Connect ranks with this backend; with gloo they may share a GPU (default: nccl on cuda, gloo on cpu; on one GPU "
        "both, nccl with one rank and gloo with two).",
    )
    add(
        "--only",
        type=_names,
        default=(),
        metavar="NAME,...",
        help="Run only these checks and controls, and what they need; the report is partial (default: all but those of --all).",
    )
    add("--skip", type=_names, default=(), metavar="NAME,...", help="Run all but these, unless one that runs needs them.")
    add("--all", action="store_true", help=f"Run also these, on GPUs the last two always: {', '.join(EXTRA)}.")
    add("--checkpoint", metavar="PATH_OR_HUB_ID", help="Test with this checkpoint (default: a tiny synthetic one).")
    add(
        "--timeout",
        type=_seconds,
        metavar="S",
        help="Stop a check after this many seconds (default: 120, and more for a large checkpoint and where ops are compiled).",
    )
    add(
        "--report",
        type=Path,
        metavar="DIR",
        help="Write report.json, report.html and junit.xml to DIR (default: a folder with the environment's name; NAME-zero3, "
        "for example, for a part of the smoke test, which never replaces the report of a whole one).",
    )
    add(
        "--nodes",
        type=_positive,
        default=1,
        metavar="N",
        help="Run on this many nodes, the same command on each (default: 1).",
    )
    add(
        "--node-rank",
        type=int,
        default=_node_rank(),
        metavar="R",
        help="This node's number; 0 writes the report (default: SLURM_NODEID, JOB_COMPLETION_INDEX or GROUP_RANK, else 0).",
    )
    add(
        "--endpoint",
        metavar="HOST:PORT",
        help="Meet at this port of node 0; SMOKEHOUSE_TOKEN_FILE or SMOKEHOUSE_TOKEN has the run's token.",
    )
    add(
        "--join-timeout",
        type=_seconds,
        metavar="S",
        help="Wait so many seconds for all nodes: more where some pull an image first (default: 55).",
    )
    add(
        "--network",
        choices=("IB", "Socket", "AWS Libfabric"),
        help="Fail where NCCL takes another network than this between nodes (default: any).",
    )
    add("--port", type=_port, default=0, help="Use this rendezvous port on 127.0.0.1 (default: 0, any free port).")
    add(
        "--start",
        choices=("fork", "spawn"),
        default="fork",
        help="Start ranks by fork, which shares imports, or by spawn, as always on GPUs (default: fork on a CPU).",
    )
    add("--here", nargs="?", const=families.DEFAULT, metavar="FAMILY", help=f"{without_lock} (default: {families.DEFAULT}).")
    add("--image", type=_digest, metavar="DIGEST", help=argparse.SUPPRESS)
    add("--validate", action="store_true", help=argparse.SUPPRESS)
    return parser


def _node_rank() -> int:
    """Return this node's number as Slurm, Kubernetes or torchrun says it."""
    names = ("SLURM_NODEID", "JOB_COMPLETION_INDEX", "GROUP_RANK")
    found = next((os.environ[name] for name in names if os.environ.get(name, "").isdecimal()), "0")
    return int(found)


def _place(parsed: argparse.Namespace) -> tuple[int, str]:
    """Return this node's number and the endpoint of a run over nodes. Raises InputError."""
    if parsed.nodes == 1:
        return 0, ""
    if not 0 <= parsed.node_rank < parsed.nodes:
        raise InputError(f"--node-rank {parsed.node_rank}: expected 0 to {parsed.nodes - 1}, found another; see --nodes")
    try:
        host, port = transport.split_endpoint(parsed.endpoint or "")
        if not port:
            raise ValueError("expected a port of 1 to 65535, found 0")
        transport.read_token()
    except ValueError as error:
        raise InputError(f"smoke: --nodes {parsed.nodes}: --endpoint and the run's token: {error}; see --help") from error
    return parsed.node_rank, f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def read(arguments: list[str]) -> Options:
    """Return the options in `arguments`. Raises InputError."""
    parsed = _parser().parse_args(arguments)
    try:
        return _checked(parsed)
    except OSError as error:  # such as a name that is too long, for which Path.exists of Python 3.11 raises
        raise InputError(f"smoke: {error.filename}: {error.strerror}; give a readable path") from error


def _checked(parsed: argparse.Namespace) -> Options:
    if parsed.here is not None:
        return _options(parsed, HERE, _family_only(parsed.here), None)
    if missing := [f"--{name}" for name in ("environment", "stack", "lock") if getattr(parsed, name) is None]:
        raise InputError(f"smoke: expected --here, or {', '.join(missing)}; give --here to prove what is installed")
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", parsed.environment):
        raise InputError(f"smoke: {parsed.environment!r} is an invalid environment name; give a name in environments/")
    stack = _read_stack(parsed.stack)
    if not (parsed.lock / "requirements.txt").is_file():
        raise InputError(f"{parsed.lock}: requirements.txt not found; run: nox -s lock -- {parsed.environment}")
    return _options(parsed, parsed.environment, stack, parsed.lock)


def _family_only(name: str) -> dict[str, Any]:
    """Return what is known of the stack of a run without a lock before its versions are. Raises InputError."""
    if name not in families.names():
        raise InputError(f"--here {name}: expected one of {', '.join(families.names())}; give a model family")
    return {"model": {"family": name}}


def _options(parsed: argparse.Namespace, environment: str, stack: dict[str, Any], lock: Path | None) -> Options:
    if parsed.checkpoint is not None:
        _check_checkpoint(parsed.checkpoint, families.get(stack["model"]["family"]))
    node_rank, endpoint = _place(parsed)
    for option, value in (("--network", parsed.network), ("--join-timeout", parsed.join_timeout)):
        if value and parsed.nodes == 1 and not parsed.validate:  # an engine adds --nodes later
            raise InputError(f"{option} {value}: expected --nodes 2 or more with it, found one node; leave it out")
    options = Options(
        environment=environment,
        stack=stack,
        lock=lock,
        stages=parsed.zero,
        processes=parsed.nproc,
        device=parsed.device,
        backend=parsed.backend,
        checkpoint=parsed.checkpoint,
        timeout=parsed.timeout,
        report=(parsed.report or Path("build/smoke") / environment).absolute(),
        port=parsed.port,
        start=parsed.start,
        image=parsed.image,
        validate=parsed.validate,
        selection=Selection(parsed.only, parsed.skip, parsed.all),
        nodes=parsed.nodes,
        node_rank=node_rank,
        endpoint=endpoint,
        join_timeout=parsed.join_timeout or Options.join_timeout,
        network=parsed.network or "",
    )
    refuse_full_report(options.report, options.partial)
    return options


def refuse_full_report(folder: Path, partial: str) -> None:
    """Raise InputError where a run with the options `partial`, which leave something out, would replace a full report."""
    if not partial:
        return
    try:
        document = json.loads((folder / "report.json").read_bytes())
    except (OSError, ValueError, RecursionError):  # there is none, or nothing that anybody could use
        return
    if report.is_full(document):
        raise InputError(
            f"{folder}: expected no report of a whole smoke test, found one, which that of {partial} must not replace; "
            "give --report another folder"
        )


def _read_stack(file: Path) -> dict[str, Any]:
    if sys.version_info < (3, 11):
        raise InputError(
            f"{file}: expected Python 3.11 or later, found {sys.version.split()[0]}; give --here in place of a lock"
        )
    try:
        stack: dict[str, Any] = importlib.import_module("tomllib").loads(file.read_text())
        family, expectations = stack["model"]["family"], stack.setdefault("expectations", {})
        if not isinstance(stack["model"]["class"], str):
            raise KeyError("class")
        expectations.get("auto_classes", {}).items()
        for name, known in PROMISES.items():
            if name in expectations and expectations[name] not in known:
                raise InputError(
                    f"{file}: expectations.{name}: expected {' or '.join(known)}, found {expectations[name]!r}; fix it"
                )
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}; give --stack the environment's stack.toml") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: invalid TOML ({error}); fix it") from error
    except (KeyError, AttributeError, TypeError) as error:
        raise InputError(
            f"{file}: expected model.family, model.class and tables of expectations, found others; see CONTRIBUTING.md"
        ) from error
    if family not in families.names():
        present = ", ".join(families.names())
        raise InputError(
            f"{file}: model.family: expected one of {present}, found {family!r}; or add a module to smoke_tests/families"
        )
    return stack


def _check_checkpoint(checkpoint: str, family: Family) -> None:
    """Refuse a folder without a whole checkpoint of the family. A hub id can be checked only after its download."""
    folder = Path(checkpoint)
    if not folder.exists():
        if re.fullmatch(r"[\w.-]+/[\w.-]+", checkpoint) and not checkpoint.startswith("."):
            return
        raise InputError(f"--checkpoint {checkpoint}: folder not found; give a folder, or a hub id of the form owner/name")
    check_folder(folder, family)


def check_folder(folder: Path, family: Family) -> None:
    """Refuse a folder without a whole safetensors checkpoint of `family`, by its headers and small files. Raises InputError."""
    config = folder / "config.json"
    found = _read_json(config, "give --checkpoint a folder in Hugging Face format")
    marker, expected = family.marker
    if found.get(marker) != expected:
        raise InputError(f"{config}: {marker}: expected {expected!r}, found {found.get(marker)!r}; give another checkpoint")
    names = (family.index.removesuffix(".index.json"), family.index)
    if not any((folder / name).exists() for name in names):
        raise InputError(
            f"{folder}: expected {' or '.join(names)}, found neither; give --checkpoint a folder with safetensors files"
        )
    for problem in inspect_checkpoint(folder).problems:
        raise InputError(str(problem))
    for name in family.processor_files:
        _read_json(folder / name, "add it: the smoke tests use the checkpoint's own processor")


def _read_json(file: Path, fix: str) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}; {fix}") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{file}: invalid JSON; {fix}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file}: expected a JSON object, found {type(content).__name__}; {fix}")
    return content
