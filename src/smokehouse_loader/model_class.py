"""Find the model class that loads a config."""

import functools
import inspect
import json
from importlib import resources
from pathlib import Path
from typing import Any

from smokehouse_loader import config_files, denoisers
from smokehouse_loader.errors import Finding, LoadError, clipped, first_line
from smokehouse_loader.failures import fix_for
from smokehouse_loader.safetensors_header import BadFileError


def concrete_class(model_class: Any, config: Any) -> Any:
    """Return the class that `model_class` stands for with this config.

    `model_class` is a class, the name of one in transformers, or None for what `resolve_model_class` finds; an auto class
    stands for its entry. For the config of a denoiser it is one of diffusers. Raises LoadError if there is no such class.
    """
    if isinstance(config, denoisers.Config):
        return denoisers.class_of(model_class, config)
    import transformers

    if model_class is None:
        return resolve_model_class(config)
    if isinstance(model_class, str):
        found = getattr(transformers, model_class, None)
        if found is None:
            what = f"transformers {transformers.__version__} has no class {model_class!r}"
            raise LoadError([Finding("no-model-class", "model_class", what, fix_for("no-model-class"))])
        model_class = found
    if hasattr(model_class, "_model_mapping"):
        found = _entry(model_class, type(config))
        if found is None:
            what = f"{model_class.__name__} has no class for {type(config).__name__}"
            raise LoadError([Finding("wrong-auto-class", "model_class", what, _other_class(config))])
        return found
    return model_class


def _other_class(config: Any) -> str:
    """Return what to do about an auto class that has no entry for this config: the class that loads it, if there is one."""
    try:
        return f"use smokehouse_loader.load_model without model_class, or {resolve_model_class(config).__name__}"
    except LoadError:
        return fix_for("no-model-class")


_REGISTERED: dict[str, Any] = {}
_VISION = ("vision_config", "visual_config", "vision_tower", "mm_vision_tower", "vision")


def register(model_type: str, config_class: Any, model_class: Any) -> None:
    """Load checkpoints whose config has this `model_type` with `model_class`.

    Registers it with transformers too: AutoConfig reads `config_class`, and AutoModelForImageTextToText (for a config with a
    vision part) or AutoModelForCausalLM returns `model_class`. Raises ValueError if `config_class.model_type` differs.
    """
    import transformers

    transformers.AutoConfig.register(model_type, config_class, exist_ok=True)
    auto = transformers.AutoModelForImageTextToText if has_vision(config_class()) else transformers.AutoModelForCausalLM
    auto.register(config_class, model_class, exist_ok=True)
    _REGISTERED[model_type] = model_class


def has_vision(config: Any) -> bool:
    """Return whether a config describes a model with a vision part."""
    return any(getattr(config, name, None) is not None for name in _VISION)


def resolve_model_class(config: Any) -> Any:
    """Return the class that loads a checkpoint with this config completely.

    Tries, in this order: the registered class; for a config with a vision part, the class that its `architectures` lists;
    the entries of AutoModelForImageTextToText and AutoModelForCausalLM. An entry counts only if it is for this very config: a
    class for the text part alone would drop weights. A denoiser's config has the name of its class. Raises LoadError with what
    was tried, and why each was rejected.
    """
    if isinstance(config, denoisers.Config):
        return denoisers.class_of(None, config)
    import transformers

    model_type = getattr(config, "model_type", None)
    if model_type in _REGISTERED:
        return _REGISTERED[model_type]
    tried = ["no class is registered"]
    if has_vision(config):
        for name in getattr(config, "architectures", None) or ():
            found = getattr(transformers, name, None) if isinstance(name, str) else None
            if found is None:
                tried.append(f"architectures lists {name}, not found in transformers {transformers.__version__}")
            elif reason := _mismatch(found, config):
                tried.append(f"architectures lists {name}, which {reason}")
            else:
                return found
        if not getattr(config, "architectures", None):
            tried.append("no architectures in config.json")
    for name in ("AutoModelForImageTextToText", "AutoModelForCausalLM"):
        auto = getattr(transformers, name, None)
        found = None if auto is None else _entry(auto, type(config))
        if found is None:
            tried.append(f"{name} has no class for it")
        elif reason := _mismatch(found, config):
            tried.append(f"{name} has {found.__name__}, which {reason}")
        else:
            return found
    what = f"no class found for {type(config).__name__} (model_type {model_type!r}): {'; '.join(tried)}"
    raise LoadError([Finding("no-model-class", "config.json", what, fix_for("no-model-class"))])


def _entry(auto: Any, config_class: type) -> Any:
    """Return the entry of an auto class for a config class, None if it has none."""
    try:
        found = auto._model_mapping[config_class]
    except KeyError:
        return None
    return found[0] if isinstance(found, tuple) else found


def _mismatch(found: Any, config: Any) -> str | None:
    """Return why `found` does not load everything that `config` describes, None if it does."""
    expected = getattr(found, "config_class", None)
    if not hasattr(found, "from_pretrained") or expected is None:
        return "is not a model"
    if not isinstance(config, expected):
        part = " alone and would drop the rest" if has_vision(config) else ""
        return f"is for {expected.__name__}{part}"
    return None


def read_config(path: Any, **options: Any) -> Any:
    """Return the config of the checkpoint `path`, of transformers or a `denoisers.Config`; `options` are AutoConfig's.

    Raises LoadError if it cannot be read, or if the installed transformers does not know its model type.
    """
    import transformers

    folder = Path(path, options.get("subfolder") or "")
    if folder.is_dir() and (problem := config_files.config_problem(folder)):
        raise LoadError([problem])
    if (denoiser := denoisers.read_config(folder)) is not None:
        return denoiser
    try:
        return transformers.AutoConfig.from_pretrained(path, **options)
    except (ValueError, KeyError, OSError, TypeError, AttributeError, ImportError) as wrong:
        raise _unreadable(path, folder, wrong) from wrong


def _unreadable(path: Any, folder: Path, wrong: Exception) -> LoadError:
    import transformers

    where = f"{path}/config.json"
    try:
        model_type = config_files.read_object(folder / "config.json").get("model_type")
    except BadFileError:  # a name on a hub
        return LoadError(
            [Finding("not-a-checkpoint", where, first_line(wrong), "pass a directory, or a name that the hub has")]
        )
    versions = known_versions(model_type) if isinstance(model_type, str) else None
    if isinstance(model_type, str) and (code := config_files.code_of(model_type)):
        what = f"model_type {clipped(repr(model_type))} belongs to a project's own code: no release of transformers has it"
        fix = f"load it with {code}, or get the checkpoint that was converted for transformers"
        return LoadError([Finding("model-type-of-other-code", where, what, fix)])
    if versions and "does not recognize" in str(wrong):
        since, until = versions
        what = f"model_type {model_type!r} is unknown to transformers {transformers.__version__}"
        fix = f"install transformers {since} or later" if since else f"install transformers {until}, the last that knows it"
        return LoadError([Finding("unknown-model-type", where, what, fix)])
    if isinstance(model_type, str) and "does not recognize" in str(wrong):
        what = f"model_type {clipped(repr(model_type))} is unknown to transformers {transformers.__version__}"
        fix = f"load it with the code that wrote it: no release up to {LAST_KNOWN} has this type"
        return LoadError([Finding("unknown-model-type", where, what, fix)])
    what = f"transformers {transformers.__version__} cannot read it: {first_line(wrong)}"
    return LoadError([Finding("unknown-model-type", where, what, "use the transformers that saved it, or correct it")])


def contradicting_architecture(config: Any, loaded: Any) -> Finding | None:
    """Return a finding if `architectures` lists a class of transformers for another model type than the config has.

    `loaded` is the class that the weights fit. A class for a part of the model, or for what has it as a part, does not
    contradict.
    """
    import transformers

    for name in getattr(config, "architectures", None) or ():
        found = getattr(transformers, name, None) if isinstance(name, str) else None
        expected: Any = getattr(found, "config_class", None)
        if not inspect.isclass(expected) or isinstance(config, expected) or issubclass(expected, type(config)):
            continue
        parts = {type(value) for value in vars(config).values() if hasattr(value, "model_type")}
        inner = set((getattr(expected, "sub_configs", None) or {}).values())
        if expected in parts or type(config) in inner:
            continue
        kind = getattr(expected, "model_type", "")
        what = f"architectures lists {name}, a class for model_type {kind!r}, found {config.model_type!r}"
        fix = f'set architectures to ["{loaded.__name__}"], which the weights fit'
        return Finding("contradicting-architectures", "config.json", what, fix)
    return None


# The last release whose model types are in model_types.json.
LAST_KNOWN = "5.23.0"


@functools.cache
def _history() -> dict[str, dict[str, list[str]]]:
    text = resources.files(__package__).joinpath("model_types.json").read_text("utf-8")
    history: dict[str, dict[str, list[str]]] = json.loads(text)
    return history


def known_versions(model_type: str) -> tuple[str | None, str | None] | None:
    """Return the first and the last release of transformers that know a model type.

    The first is None for types that 4.49.0 knew, the last None for types that 5.23.0 knows; None for a type that is both, or
    unknown. Source: the types in the last release of each 4.x line from 4.49.0 on, and in each 5.x.0 up to 5.23.0.
    """
    history = _history()
    since = next((version for version, types in history["known_from"].items() if model_type in types), None)
    until = next((version for version, types in history["known_until"].items() if model_type in types), None)
    return (since, until) if since or until else None
