"""Which class loads a config."""

import functools
import json
from importlib import resources
from typing import Any

from smokehouse_loader.errors import Finding, LoadError, first_line
from smokehouse_loader.failures import cure_of


def concrete_class(model_class: Any, config: Any) -> Any:
    """The model class that is meant. An auto class stands for its entry."""
    import transformers

    if model_class is None:
        return resolve_model_class(config)
    if isinstance(model_class, str):
        found = getattr(transformers, model_class, None)
        if found is None:
            what = f"transformers {transformers.__version__} has no class {model_class!r}"
            raise LoadError([Finding("no-model-class", "model_class", what, cure_of("no-model-class"))])
        model_class = found
    if hasattr(model_class, "_model_mapping"):
        try:
            entry = model_class._model_mapping[type(config)]
        except KeyError:
            what = f"{model_class.__name__} has no class for a {type(config).__name__}"
            raise LoadError([Finding("wrong-auto-class", "model_class", what, cure_of("wrong-auto-class"))]) from None
        return entry[0] if isinstance(entry, tuple) else entry
    return model_class


_REGISTERED: dict[str, Any] = {}
_VISION = ("vision_config", "visual_config", "vision_tower", "mm_vision_tower", "vision")


def register(model_type: str, config_class: Any, model_class: Any) -> None:
    """Have checkpoints whose config has this `model_type` loaded by `model_class`.

    transformers learns it too: AutoConfig reads `config_class`, and the auto class that fits (AutoModelForImageTextToText for a
    config with a vision part, AutoModelForCausalLM otherwise) gives `model_class`. Raises ValueError where the types differ.
    """
    import transformers

    transformers.AutoConfig.register(model_type, config_class, exist_ok=True)
    auto = transformers.AutoModelForImageTextToText if has_vision(config_class()) else transformers.AutoModelForCausalLM
    auto.register(config_class, model_class, exist_ok=True)
    _REGISTERED[model_type] = model_class


def has_vision(config: Any) -> bool:
    """Whether a config describes a model that sees."""
    return any(getattr(config, name, None) is not None for name in _VISION)


def resolve_model_class(config: Any) -> Any:
    """The class that loads a checkpoint with this config, whole.

    A registered class comes first. Then a config with a vision part takes the class that its `architectures` names, and a text
    config what AutoModelForCausalLM has for it. Then AutoModelForImageTextToText and AutoModelForCausalLM are asked, and what
    they have is taken where it was made for this very config: a class for the config's text part alone would drop weights.
    Raises LoadError saying what was tried, and why each was passed over.
    """
    import transformers

    model_type = getattr(config, "model_type", None)
    if model_type in _REGISTERED:
        return _REGISTERED[model_type]
    tried = ["no class is registered for it"]
    if has_vision(config):
        for name in getattr(config, "architectures", None) or ():
            found = getattr(transformers, name, None) if isinstance(name, str) else None
            if found is None:
                tried.append(f"architectures names {name}, which transformers {transformers.__version__} does not have")
            elif reason := _unfit(found, config):
                tried.append(f"architectures names {name}, which {reason}")
            else:
                return found
        if not getattr(config, "architectures", None):
            tried.append("it names no architectures")
    for name in ("AutoModelForImageTextToText", "AutoModelForCausalLM"):
        auto = getattr(transformers, name, None)
        found = None if auto is None else _entry(auto, type(config))
        if found is None:
            tried.append(f"{name} has no class for it")
        elif reason := _unfit(found, config):
            tried.append(f"{name} has {found.__name__}, which {reason}")
        else:
            return found
    what = f"no class loads a {type(config).__name__} (model_type {model_type!r}): {'; '.join(tried)}"
    raise LoadError([Finding("no-model-class", "config.json", what, cure_of("no-model-class"))])


def _entry(auto: Any, config_class: type) -> Any:
    """What an auto class has for a config class, None where it has nothing."""
    try:
        found = auto._model_mapping[config_class]
    except KeyError:
        return None
    return found[0] if isinstance(found, tuple) else found


def _unfit(found: Any, config: Any) -> str | None:
    """Why `found` does not load all that `config` describes, None where it does."""
    wanted = getattr(found, "config_class", None)
    if not hasattr(found, "from_pretrained") or wanted is None:
        return "is no model"
    if not isinstance(config, wanted):
        part = " alone and would drop the rest" if has_vision(config) else ""
        return f"is for a {wanted.__name__}{part}"
    return None


def read_config(path: Any, **options: Any) -> Any:
    """The config of the checkpoint in the folder `path`. Raises LoadError where this transformers does not know it."""
    import transformers

    try:
        return transformers.AutoConfig.from_pretrained(path, **options)
    except (ValueError, KeyError, OSError, TypeError, AttributeError) as wrong:
        raise _unknown(path, wrong) from wrong


def _unknown(path: Any, wrong: Exception) -> LoadError:
    import transformers

    where = f"{path}/config.json"
    try:
        with open(where, "rb") as file:
            model_type = json.loads(file.read(2**20)).get("model_type")
    except (OSError, ValueError, AttributeError, RecursionError) as unreadable:
        return LoadError([Finding("not-a-checkpoint", where, f"cannot be read: {unreadable}", cure_of("not-a-checkpoint"))])
    versions = known_versions(model_type) if isinstance(model_type, str) else None
    if versions and "does not recognize" in str(wrong):
        since, until = versions
        what = f"model_type {model_type!r} is not known to transformers {transformers.__version__}"
        cure = f"install transformers {since} or later" if since else f"install transformers {until}, the last that knows it"
        return LoadError([Finding("unknown-model-type", where, what, cure)])
    return LoadError([Finding("unknown-model-type", where, first_line(wrong), cure_of("unknown-model-type"))])


@functools.cache
def _history() -> dict[str, dict[str, list[str]]]:
    text = resources.files(__package__).joinpath("model_types.json").read_text("utf-8")
    history: dict[str, dict[str, list[str]]] = json.loads(text)
    return history


def known_versions(model_type: str) -> tuple[str | None, str | None] | None:
    """The release of transformers from which, and that until which, a model type is known; None for one that is in neither
    list.

    From the types in the last release of each 4.x line from 4.49.0 on, and in each 5.x.0 up to 5.23.0. Types that 4.49.0 knew
    have no first release here.
    """
    history = _history()
    since = next((version for version, types in history["known_from"].items() if model_type in types), None)
    until = next((version for version, types in history["known_until"].items() if model_type in types), None)
    return (since, until) if since or until else None
