"""A new environment, written like one that exists: definition, model family and lock, complete and to be edited.

Its packages are those of the environment that it is like, so its lock has the same files, and no solver and no network is
needed. What it is for, its reasons and the description of its model are then a person's to change.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from smokehouse.checkout import Checkout, is_environment_name
from smokehouse.environments import definition
from smokehouse.environments.definition import Environment
from smokehouse.errors import UserError
from smokehouse.locks import check, conda_lock_yml, constraints, pins
from smokehouse.locks.check import LockedEnvironment
from smokehouse.locks.model import LOCK_JSON
from smokehouse.locks.pins import LockFiles
from smokehouse.locks.writing import writing
from smokehouse.storage import files as storage

_FAMILY = re.compile(r"[a-z][a-z0-9_-]*")
_CLASS = re.compile(r"[A-Za-z_]\w*")
_FILES = ("environment.yml", "stack.toml")


@dataclass(frozen=True)
class Model:
    """The model of a new environment: its family, which is `model_type` in config.json, and its class in transformers."""

    family: str
    class_: str


def create(checkout: Checkout, name: str, like: str, family: str | None = None, class_: str | None = None) -> list[Path]:
    """Write the environment `name` like the one called `like`, for the model of a `family`; return what was written.

    A family that does not exist is written like that of the other environment, and `class_` is its class in transformers.
    Nothing that exists is changed; raises UserError where something of that name does. Where writing fails, what was written
    is removed; what a killed call has written is completed.
    """
    checkout.require_own("new")
    _require_new(checkout, name)
    other = check.load(checkout, like)
    model = _model(checkout, other.environment, family, class_)
    with writing(checkout, name):
        _require_new(checkout, name)  # again, as another process may have written it meanwhile
        return _write(checkout, name, other, model)


def _write(checkout: Checkout, name: str, other: LockedEnvironment, model: Model) -> list[Path]:
    """Write the environment `name` and return its files; raises UserError, after removing what was written."""
    written: list[Path] = []
    try:
        for path, text in _definition(checkout, name, other, model):
            _write_new(path, text, written)
        environment = definition.read(checkout, name)
        found = environment.stack.model
        if (found.family, found.class_) != (model.family, model.class_):
            raise UserError(
                f"environments/{other.name}/stack.toml: expected [model] with family and class in lines of their own; "
                f"write it so"
            )
        files = LockFiles.of(checkout, name)
        for one, place, old in (
            *zip(environment.others, map(files.on, environment.stack.packages.platforms), check.others(other), strict=True),
            (environment, files, other),
        ):
            for path, text in lock_texts(one, place, old).items():
                _write_new(path, text, written)
        check.check_environment(environment, files)
    except BaseException:
        for path in reversed(written):
            path.unlink(missing_ok=True)
        for folder in sorted({path.parent for path in written}, reverse=True):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise
    return written


def _require_new(checkout: Checkout, name: str) -> None:
    """Raise UserError where `name` is invalid, or something of that name exists."""
    if not is_environment_name(name):
        raise UserError(f"invalid environment name {name!r}: use lower-case letters, digits, '.', '_' and '-'")
    if _is_unfinished(checkout, name):
        return
    if name in checkout.environments():
        raise UserError(f"environments/{name}: already exists; choose another name")
    for path in (
        checkout.root / "environments" / name,
        checkout.root / "lockfiles" / name,
        checkout.root / f"docs/environments/{name}.md",
    ):
        if path.exists() or path.is_symlink():
            raise UserError(f"{checkout.relative(path)}: already exists; choose another name, or remove it")


def _is_unfinished(checkout: Checkout, name: str) -> bool:
    """Return whether there is what a call leaves that is killed: files of an environment alone, without lock.json, the last."""
    folder, lock = checkout.root / "environments" / name, checkout.root / "lockfiles" / name
    if not folder.is_dir() or folder.is_symlink() or (lock / LOCK_JSON).exists():
        return False
    own = {f"{before}{file}{after}" for file in _FILES for before, after in (("", ""), (".", ".new"))}
    return folder != checkout.stacks(name) and {path.name for path in folder.iterdir()} <= own


def _model(checkout: Checkout, other: Environment, family: str | None, class_: str | None) -> Model:
    """Return the model of the new environment; raises UserError where the options do not say it."""
    if family is None:
        if class_:
            raise UserError("--class: expected --family with it, found none; specify the family too")
        return Model(other.stack.model.family, other.stack.model.class_)
    if not _FAMILY.fullmatch(family):
        raise UserError(f"--family {family!r}: expected model_type of a config.json, such as qwen3_vl; use it as it is there")
    if class_ and not _CLASS.fullmatch(class_):
        raise UserError(
            f"--class {class_!r}: expected the name of a class of transformers; use architectures of the config.json"
        )
    known = _family_file(checkout, family)
    if known.is_file():
        name = checkout.relative(known)
        found = _described(known.read_text("utf-8"), name)
        if family != found.family:
            raise UserError(f"--family {family}: expected {found.family}, as in {name}; use that")
        if class_ and class_ != found.class_:
            raise UserError(f"--class {class_}: expected {found.class_}, as in {name}; drop --class")
        return found
    if not class_:
        raise UserError(
            f"--family {family}: expected --class with a new family, found none; use architectures of its config.json"
        )
    if not (checkout.root / "smoke_tests" / "families").is_dir():
        raise UserError(
            f"--family {family}: expected smoke_tests/families/ in {checkout.root} for a new family, not found; run this in a "
            f"checkout of Smokehouse"
        )
    return Model(family, class_)


def _module(family: str) -> str:
    """Return the name of a family's module, which has no hyphens."""
    return family.replace("-", "_")


def _family_file(checkout: Checkout, family: str) -> Path:
    return checkout.file("smoke_tests/families") / f"{_module(family)}.py"


def _described(text: str, name: str) -> Model:
    """Return the model that the source of a family describes, which the builder cannot import; raises UserError."""
    try:
        keywords = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.keyword)]
    except SyntaxError as broken:
        raise UserError(f"{name}:{broken.lineno}: invalid Python: {broken.msg}; fix the line") from None
    # What is further out comes first: the arguments of FAMILY are before those of its parts.
    said = {node.arg: node.value.value for node in reversed(keywords) if isinstance(node.value, ast.Constant)}
    for argument in ("name", "model_class"):
        if not isinstance(said.get(argument), str):
            raise UserError(f"{name}: expected {argument} with a text, found none; add it")
    return Model(str(said["name"]), str(said["model_class"]))


def _definition(checkout: Checkout, name: str, other: LockedEnvironment, model: Model) -> Iterator[tuple[Path, str]]:
    """Yield path and content of each file that a person edits; what exists and is right is not yielded."""
    source, folder = checkout.environment(other.name), checkout.root / "environments" / name
    if stack := other.environment.stack.stack:
        own = checkout.root / "environments" / "stacks" / stack
        for file in _FILES:
            if not (own / file).exists():
                yield own / file, (checkout.stacks(other.name) / stack / file).read_text("utf-8")
    yield folder / "environment.yml", _conda_file((source / "environment.yml").read_text("utf-8"), name, other.name)
    yield folder / "stack.toml", _stack_file((source / "stack.toml").read_text("utf-8"), model)
    like, known = other.environment.stack.model, _family_file(checkout, model.family)
    if model.family != like.family and not known.is_file():
        text = _family_file(checkout, like.family).read_text("utf-8")
        yield known, _family_module(text, Model(like.family, like.class_), model)


def _conda_file(text: str, name: str, like: str) -> str:
    """Return an environment.yml under another name, whose first comment is about the new environment."""
    body = re.sub(r"\A(#.*\n)*", "", text)
    head = f"# {name}: written like {like}. Say here what it is for, and give each package that you add or change its reason.\n"
    return head + re.sub(r"(?m)^name:.*$", f"name: {name}", body, count=1)


def _stack_file(text: str, model: Model) -> str:
    """Return a stack.toml for another model, with its comments."""
    for key, value in (("family", model.family), ("class", model.class_)):
        text = re.sub(rf'(?m)^{key}\s*=\s*(["\']).*?\1', f'{key} = "{value}"', text, count=1)
    return text


def _family_module(text: str, like: Model, model: Model) -> str:
    """Return the source of a family under other names of family and class."""
    docstring = f'"""{model.class_}: written like {like.family}. A run says where this description differs from the model."""'
    text = re.sub(r'\A"""(?:.|\n)*?"""', lambda _: docstring, text, count=1)
    text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(like.class_)}(?![A-Za-z0-9_])", model.class_, text)
    # As a name of its own or as a part of a module's, but not in the names of other families.
    old, module = re.escape(_module(like.family)), _module(model.family)
    text = re.sub(rf"(?<=[._]){old}(?![A-Za-z0-9_-])", module, text)
    text = re.sub(rf"(?<=models\.){old}(?=\.)", module, text)
    return re.sub(rf'(?<="){re.escape(like.family)}(?=")', model.family, text)


def lock_texts(environment: Environment, files: LockFiles, other: LockedEnvironment) -> dict[Path, str]:
    """Return the files of the lock of `environment`, whose inputs are those of `other`, in the order in which to write them."""
    lock, old = other.lock, other.files
    build_text = pins.build_header(files.pins) + pins.body(old.build_pins.read_text("utf-8"))
    body = pins.body(old.pins.path.read_text("utf-8"))
    content = yaml.load(old.conda_lock.read_text("utf-8"), yaml.CSafeLoader)
    head = conda_lock_yml.head(environment.conda, environment.inputs.requirements, files.sources(environment))
    texts = {
        files.pins.path: pins.bound(environment.inputs, files.pins, sum(file.size for file in lock.pip), body, build_text),
        files.build_pins: build_text,
        files.conda_lock: conda_lock_yml.dump(files.pins.title, head | {"package": content["package"]}),
    }
    digests = {path.name: storage.sha256(text) for path, text in sorted(texts.items())}
    made = lock.model_copy(update={"environment": environment.name, "inputs": environment.digest(), "files": digests})
    return texts | {files.constraints: constraints.text(files, made), files.lock_json: made.text()}


def _write_new(path: Path, text: str, written: list[Path]) -> None:
    """Write a file that does not exist; raises UserError where it does by now."""
    if path.is_file() and not path.is_symlink() and path.read_bytes() == text.encode():
        return  # of a call that was killed
    if path.exists() or path.is_symlink():
        raise UserError(f"{path}: already exists; choose another name, or remove it")
    written.append(path)
    storage.write(path, text)
