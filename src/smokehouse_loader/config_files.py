"""Read the files beside the weights, which say what they are: config.json, and those of processors and tokenizers.

They are read as transformers reads them: as UTF-8 without a byte-order mark, and strict about nothing else.
"""

import importlib.metadata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from smokehouse_loader.errors import Finding, clipped
from smokehouse_loader.failures import fix_for
from smokehouse_loader.safetensors_header import BadFileError, Tensor, parse_json, refuse_foreign

# Bytes; a config.json has a few thousand, one that maps each module to its quantisation 0.3 million.
_LARGEST_CONFIG = 16 * 2**20

# Prefixes of model types that no release of transformers has, of checkpoints without code -> what can load them.
_OWN_CODE = {
    "llava_": "the code of LLaVA or LLaVA-NeXT (llava.model.builder.load_pretrained_model)",
    "tinyllava": "the code of TinyLLaVA",
    "bunny": "the code of Bunny",
    "mplug_owl": "the code of mPLUG-Owl",
}
# Names of a transformers that was never released, or that a later one took back -> the one that releases have.
_RENAMED = {"Qwen2_5_VLImageProcessor": "Qwen2VLImageProcessor"}

# File -> the keys in it that have the name of a class.
_CLASSES = {
    "preprocessor_config.json": ("image_processor_type", "feature_extractor_type", "processor_class"),
    "video_preprocessor_config.json": ("video_processor_type", "processor_class"),
    "processor_config.json": ("processor_class",),
    "tokenizer_config.json": ("tokenizer_class", "processor_class"),
}
# transformers looks for a processor of a video in newer versions only, and otherwise ignores the file.
_OPTIONAL = {"video_preprocessor_config.json": "AutoVideoProcessor"}
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "special_tokens_map.json",
)


def read_object(file: Path) -> dict[str, Any]:
    """Return the JSON object in `file`. Raises BadFileError, of the failure that it shows, if there is none."""
    try:
        with file.open("rb") as opened:
            text = opened.read(_LARGEST_CONFIG + 1)
    except OSError as error:
        raise BadFileError("not-a-checkpoint", f"cannot be read: {error.strerror or error}") from None
    if len(text) > _LARGEST_CONFIG:
        raise BadFileError("not-a-checkpoint", f"expected at most {_LARGEST_CONFIG} bytes, found more")
    refuse_foreign(text[:512])
    if text.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise BadFileError("not-a-checkpoint", "expected UTF-8 without a byte-order mark, found one; transformers refuses it")
    try:
        found = parse_json(text, unique=False, strict=False)
    except ValueError as wrong:
        raise BadFileError("not-a-checkpoint", f"invalid JSON: {clipped(str(wrong))}") from None
    if not isinstance(found, dict):
        raise BadFileError("not-a-checkpoint", "expected a JSON object, found other JSON")
    return found


CLASS_NAME = "_class_name"  # what the config.json of a model of diffusers has in place of a model_type


def is_of_denoiser(config: Mapping[str, Any]) -> bool:
    """Return whether the content of a config.json is that of a model of diffusers."""
    return isinstance(config.get(CLASS_NAME), str) and "model_type" not in config


def config_problem(folder: Path) -> Finding | None:
    """Return why neither transformers nor diffusers could take config.json in `folder` for a model's; None if one may.

    Needs no torch.
    """
    file = folder / "config.json"
    if not file.is_file():
        fix = "copy config.json from the checkpoint that it was trained from"
        return Finding("not-a-checkpoint", str(file), "not found beside the weights", fix)
    try:
        config = read_object(file)
    except BadFileError as bad:
        fix = (
            "save it again as UTF-8"
            if "byte-order" in str(bad)
            else "copy config.json from the checkpoint that it was trained from"
        )
        return Finding(bad.failure, str(file), str(bad), fix_for(bad.failure) if "LFS" in str(bad) else fix)
    if is_of_denoiser(config):
        endless = _endless(config)
        return Finding("wrong-shape", str(file), endless, fix_for("wrong-shape")) if endless else None
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        return Finding("no-model-type", str(file), "has no model_type, which says what class to load", _model_type(config))
    if endless := _endless(config):
        return Finding("wrong-shape", str(file), endless, fix_for("wrong-shape"))
    return _missing_code(folder, config)


# Numbers of layers and the like: a config class or a model with a billion of them would fill the memory before it is refused.
_COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "depth", "encoder_layers", "decoder_layers", "num_experts")
_MOST = 10_000


def _endless(config: Mapping[str, Any]) -> str | None:
    """Return which count of a config, or of a part of it, no model has; None if none does."""
    for part in (config, *(value for value in config.values() if isinstance(value, Mapping))):
        for name in _COUNTS:
            count = part.get(name)
            if isinstance(count, (int, float)) and count > _MOST:
                return f"{name}: expected at most {_MOST}, found {clipped(str(count))}"
    return None


def _model_type(config: Mapping[str, Any]) -> str:
    """Return what to do about a config without a model type: the type of its first architecture, if transformers has that."""
    import transformers

    for name in config.get("architectures") or ():
        found = getattr(getattr(transformers, name, None) if isinstance(name, str) else None, "config_class", None)
        if found is not None:
            return f'add "model_type": "{found.model_type}" to it, the type of {name}, which its architectures list'
    return "copy config.json from the checkpoint that it was trained from"


def _missing_code(folder: Path, config: Mapping[str, Any]) -> Finding | None:
    """Return the module that `auto_map` specifies and that is not in `folder`, where the config needs it."""
    if not needs_code(config):
        return None
    for reference in config["auto_map"].values():
        module = reference.partition(".")[0] if isinstance(reference, str) and "--" not in reference else None
        if module and not (folder / f"{module}.py").is_file():
            fix = f"copy {module}.py from the checkpoint that it was trained from"
            return Finding(
                "remote-code", str(folder), f"auto_map lists {clipped(str(reference))}, {module}.py was not found", fix
            )
    return None


def needs_code(config: Mapping[str, Any]) -> bool:
    """Return whether a model's class is in Python code of the checkpoint: transformers has none for its type."""
    if not isinstance(config.get("auto_map"), dict) or not config["auto_map"]:
        return False
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return config.get("model_type") not in CONFIG_MAPPING


def code_of(model_type: str) -> str | None:
    """Return whose code has a model type that no release of transformers has, None if it is not known to be anyone's."""
    if model_type in ("llava_next", "llava_next_video", "llava_onevision"):
        return None
    return next((code for prefix, code in _OWN_CODE.items() if model_type.lower().startswith(prefix)), None)


def quantisation(config: Mapping[str, Any]) -> str | None:
    """Return the quantisation that a config records, such as "gptq, 4 bits", None if it records none."""
    found = config.get("quantization_config")
    if not found:
        return None
    if not isinstance(found, Mapping):
        return "unknown method"
    method = str(found.get("quant_method") or "unknown method")
    bits = found.get("bits") or (4 if found.get("load_in_4bit") else 8 if found.get("load_in_8bit") else None)
    return clipped(f"{method}, {bits} bits" if bits else method)


# The ends of keys that a quantiser writes, all of which a file has -> its name.
_QUANTISED = (
    ((".qweight", ".qzeros", ".scales", ".g_idx"), "gptq"),
    ((".qweight", ".qzeros", ".scales"), "awq"),
    ((".weight.absmax",), "bitsandbytes, 4 bits"),
    ((".SCB",), "bitsandbytes, 8 bits"),
    ((".weight_scale_inv",), "fp8"),
    ((".weight_packed", ".weight_scale"), "compressed-tensors"),
    ((".weight_scale",), "fp8 or compressed-tensors"),
    (("_blocks", "_scales"), "mxfp4"),
)


def quantised_tensors(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the quantiser that wrote `tensors`, by their names and dtypes, None if none did."""
    for ends, method in _QUANTISED:
        if all(any(name.endswith(end) for name in tensors) for end in ends):
            return method
    # Scales under a name that transformers ignores, or dropped: weights of eight bits are the model's only with them.
    fp8 = sorted({tensor.dtype for tensor in tensors.values() if tensor.dtype.startswith("F8_")})
    return f"fp8, {fp8[0]}" if fp8 else None


def processor_problems(folder: Path) -> Iterator[Finding]:
    """Yield the files of processors and tokenizers in `folder` that the installed transformers cannot load."""
    for name in _TOKENIZER_FILES:
        file = folder / name
        if file.is_file():
            try:
                with file.open("rb") as opened:
                    start = opened.read(512)
                if start.startswith(b"version https://git-lfs"):
                    refuse_foreign(start)
            except BadFileError as bad:
                yield Finding(bad.failure, str(file), str(bad).replace("weights", "a tokenizer's file"), fix_for(bad.failure))
    reported = set()
    for name, keys in _CLASSES.items():
        file = folder / name
        if not file.is_file():
            continue
        try:
            found = read_object(file)
        except BadFileError as bad:
            yield Finding(bad.failure, str(file), str(bad), fix_for(bad.failure))
            continue
        for key, value in _class_names(found, keys):
            if (key, value) not in reported and (problem := _unknown_class(file, found, key, value)):
                reported.add((key, value))
                yield problem
        if isinstance(found.get("image_processor"), Mapping) and (problem := _nested_processor(file)):
            yield problem


def _nested_processor(file: Path) -> Finding | None:
    """Return a finding if transformers reads image processors from a file of their own alone, and that is not found."""
    from transformers import image_processing_base

    if hasattr(image_processing_base, "PROCESSOR_NAME") or file.with_name("preprocessor_config.json").is_file():
        return None
    version = importlib.metadata.version("transformers")
    what = (
        f"has the image processor, which transformers {version} reads from preprocessor_config.json alone; that was not found"
    )
    fix = (
        "install the transformers that saved it, or copy preprocessor_config.json from the checkpoint that it was trained from"
    )
    return Finding("processor-files-missing", str(file), what, fix)


def _class_names(found: Mapping[str, Any], keys: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield key and value of the classes in a processor's file; transformers 5 nests those of its parts."""
    for key in keys:
        if isinstance(value := found.get(key), str):
            yield key, value
    for part in ("image_processor", "video_processor", "feature_extractor"):
        inner = found.get(part)
        if isinstance(inner, Mapping) and isinstance(value := inner.get(f"{part}_type"), str):
            yield f"{part}_type", value


def _unknown_class(file: Path, found: Mapping[str, Any], key: str, value: str) -> Finding | None:
    """Return a finding if the installed transformers has no class `value`, with or without "Fast" at its end."""
    import transformers

    if found.get("auto_map") or (file.name in _OPTIONAL and not hasattr(transformers, _OPTIONAL[file.name])):
        return None
    base = value.removesuffix("Fast")
    if any(hasattr(transformers, name) for name in (value, base, f"{base}Fast")):
        return None
    if value in _RENAMED and hasattr(transformers, _RENAMED[value]):
        fix = f'set {key} to "{_RENAMED[value]}", which does the same'
    else:
        fix = "install the transformers that saved it, or copy this file from the checkpoint that it was trained from"
    what = f"{key} is {clipped(repr(value))}, which transformers {transformers.__version__} does not have"
    failure = "tokenizer-class-missing" if key == "tokenizer_class" else "image-processor-unknown"
    return Finding(failure, str(file), what, fix)
