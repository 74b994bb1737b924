"""The known failures: the one table that explanations, the docs page, the tests and the controls are made from."""

from dataclasses import dataclass

FACTS = "measured by Smokehouse"


@dataclass(frozen=True)
class Failure:
    """One known failure.

    `patterns` are regular expressions of what it says in a traceback or a log, across versions; none where it says nothing,
    and only its `reproduction`, a test by that name, shows it. A `victim` is what ranks say that suffer from another's failure.
    """

    name: str
    cause: str  # one sentence
    cure: str  # a clause, as findings end in it
    source: str
    reproduction: str
    patterns: tuple[str, ...] = ()
    victim: bool = False


def cure_of(name: str) -> str:
    """The cure of the failure `name`. Raises KeyError for a name that is not in the table."""
    return BY_NAME[name].cure


_ZERO = r"(?:torch\.Size\(\[0\]\)|\[0\]|Size\(\[0\]\))"

# Those that say most about the cause come first: an explanation is given in this order.
FAILURES = (
    Failure(
        "partitioned-before-load",
        "The parameters were partitioned by ZeRO-3 (shape [0]) before their weights were copied into them by code that knows "
        "nothing of partitions.",
        "create the HfDeepSpeedConfig first, keep it alive, do not enter deepspeed.zero.Init yourself, and load with "
        "smokehouse_loader.load_model (or from_pretrained) before deepspeed.initialize",
        "transformers between PR #36335 and PR #36455 (4.50.0.dev0) did it by itself; on releases it is zero.Init around "
        "from_pretrained with no HfDeepSpeedConfig, or load_state_dict on a partitioned model",
        "load_into_partitioned_parameters",
        (
            rf"size mismatch for \S+: copying a param with shape (?:torch\.Size\()?\[\d[\d, ]*\]\)? from checkpoint, "
            rf"the shape in current model is {_ZERO}",
            r"size mismatch for \S+: .{0,200}the shape in current model is torch\.Size\(\[0\]\)",
            rf"\|\s*MISMATCH\b.*ckpt: torch\.Size\(\[\d[\d, ]*\]\) vs model: ?{_ZERO}",
        ),
    ),
    Failure(
        "saved-partitioned",
        "The checkpoint was saved from a model that ZeRO-3 had partitioned, so its tensors have shape [0].",
        "save with engine.save_16bit_model, or Trainer.save_model with stage3_gather_16bit_weights_on_model_save, or "
        "convert the "
        "engine's own checkpoint with zero_to_fp32.py",
        FACTS + ": save_pretrained on a partitioned model",
        "save_partitioned_model",
        (rf"copying a param with shape {_ZERO} from checkpoint",),
    ),
    Failure(
        "deepcopied-model",
        "copy.deepcopy of a model that ZeRO-3 has partitioned leaves every tensor of the copy unusable, without an error.",
        "load the checkpoint a second time with load_model instead of copying the model",
        FACTS,
        "deepcopy_partitioned_model",
    ),
    Failure(
        "left-on-meta",
        "A parameter is still on the meta device: nothing was ever loaded into it.",
        "load with load_model and pass no device_map; from_pretrained in a zero.Init of your own, or low_cpu_mem_usage, "
        "leaves such",
        FACTS + ": from transformers 4.51.3 the mistakes behind the seed's failure end so",
        "train_model_on_meta",
        (
            r"Cannot copy out of meta tensor",
            r"Tensor on device meta is not on the expected device",
            r"copying from a non-meta parameter",
        ),
    ),
    Failure(
        "dropped-config",
        "The HfDeepSpeedConfig object was not kept, so transformers forgot it and loads the model whole: ZeRO-3 is "
        "silently not in use.",
        "keep a reference, as in dschf = HfDeepSpeedConfig(config), until deepspeed.initialize has returned; for a plain "
        "load call "
        "transformers.integrations.unset_hf_deepspeed_config() first",
        FACTS + "; transformers documents that it holds only a weak reference",
        "drop_deepspeed_config",
    ),
    Failure(
        "ignore-mismatched-sizes",
        "Under ZeRO-3 every parameter seems to have shape [0], so ignore_mismatched_sizes=True ignores, and loads, nothing.",
        "remove ignore_mismatched_sizes=True; load_model names the tensors that really differ",
        FACTS + ": 57 of 57 tensors wrong without an error, transformers 4.49.0 to 4.57.6",
        "ignore_mismatched_sizes",
        (r"IndexError: index \d+ is out of bounds for dimension 0 with size 0",),
    ),
    Failure(
        "device-map",
        "device_map places whole parameters, ZeRO-3 partitions them: only one of the two can decide where weights lie.",
        "remove device_map and low_cpu_mem_usage; DeepSpeed places the weights",
        "transformers refuses the pair",
        "device_map_under_zero3",
        (r"DeepSpeed Zero-3 is not compatible with .*device_map",),
    ),
    Failure(
        "development-version",
        "A development version of transformers cannot be told from another by its number, and some cannot load under ZeRO-3.",
        "install a release of transformers",
        "transformers PR #36335, mended by PR #36455; both are 4.50.0.dev0",
        "development_version",
    ),
    Failure(
        "wrong-auto-class",
        "AutoModelForCausalLM has no entry for a vision-language config.",
        "use smokehouse_loader.load_model, AutoModelForImageTextToText, or the class that architectures in config.json names",
        FACTS + ": every version, for qwen2_5_vl",
        "wrong_auto_class",
        (r"Unrecognized configuration class .* for this kind of AutoModel",),
    ),
    Failure(
        "unknown-model-type",
        "This transformers has no model of the type that config.json names.",
        "install a transformers that knows it",
        "models that transformers' releases list",
        "unknown_model_type",
        (r"but Transformers does not recognize this architecture", r"Unrecognized model in .*model_type"),
    ),
    Failure(
        "no-model-class",
        "No class of this transformers loads the whole checkpoint.",
        "pass model_class=, or register it with smokehouse_loader.register",
        FACTS,
        "no_model_class",
    ),
    Failure(
        "key-layout",
        "The checkpoint's keys are in the layout of another transformers: 4.52 moved visual.* and model.* to "
        "model.visual.* and "
        "model.language_model.*.",
        "use transformers 4.52 or later, which loads both, or save the checkpoint again with the version that is installed",
        FACTS + ": 56 of 57 tensors are left random on 4.49.0, without an error",
        "later_key_layout",
        (r"were not initialized from the model checkpoint at .* newly initialized: .*'visual\.patch_embed",),
    ),
    Failure(
        "dropped-weights",
        "The class has no place for part of the checkpoint: AutoModel up to transformers 4.51 drops the vision tower of "
        "Qwen2.5-VL.",
        "let load_model choose the class, or use the one that architectures in config.json names",
        FACTS + ": 31 unexpected keys, none missing, no error",
        "drop_vision_tower",
        (
            r"Some weights of the model checkpoint at .* were not used when initializing",
            r"\|\s*UNEXPECTED\b",
        ),
    ),
    Failure(
        "missing-key",
        "The model has tensors that the checkpoint does not hold; they stay random, or zero under ZeRO-3, and nothing raises.",
        "get the whole checkpoint, or the class that it was saved from",
        FACTS,
        "missing_key",
        (r"were not initialized from the model checkpoint at .* and are newly initialized: ", r"\|\s*MISSING\b"),
    ),
    Failure(
        "wrong-shape",
        "A tensor has another shape in the checkpoint than in the model: config.json is not the one it was trained with.",
        "use the config.json that belongs to the weights, and the transformers that wrote it",
        FACTS + ": under ZeRO-3 only rank 0 raises; the others hang or lose their peer",
        "wrong_shape",
        (
            r"size mismatch for \S+: copying a param with shape torch\.Size\(\[[1-9][\d, ]*\]\) from checkpoint, "
            r"the shape in current model is torch\.Size\(\[[1-9]",
            r"You set `ignore_mismatched_sizes` to `False`, thus raising an error",
            r"\|\s*MISMATCH\b.*ckpt: torch\.Size\(\[[\d, ]*\]\) vs model: ?torch\.Size\(\[[1-9]",
            r"Trying to set a tensor of shape torch\.Size\(\[[\d, ]*\]\) in .* which has shape torch\.Size\(\[[\d, ]*\]\)",
        ),
    ),
    Failure(
        "wrong-type",
        "A tensor of the checkpoint holds integers where the model has floating-point weights, which copying would turn "
        "into nonsense.",
        "get the checkpoint again, or dequantise it",
        FACTS,
        "wrong_type",
        (r"Only Tensors of floating point and complex dtype can require gradients",),
    ),
    Failure(
        "quantised",
        "The checkpoint is quantised: what is in memory is not what is in the file, so neither shapes nor bits can be "
        "compared.",
        "load it with verify='none', or load the checkpoint that it was made from",
        "transformers' quantisers rewrite tensors while loading",
        "quantised_checkpoint",
    ),
    Failure(
        "wrong-bits",
        "A tensor in memory is not, bit for bit, the one in the file.",
        "load again; if it comes back the memory, the disk or the collectives of this machine corrupt data",
        FACTS,
        "flipped_bit",
    ),
    Failure(
        "gloo-race",
        "Up to DeepSpeed 0.19.7, ZeRO-3 waits for the last gather only; on gloo it reads parameters before they have "
        "arrived, and "
        "loading silently corrupts weights.",
        "load with load_model, which waits for each gather on gloo, or use DeepSpeed 0.19.8 or later",
        "DeepSpeed PR #8539, released in 0.19.8",
        "gloo_race",
    ),
    Failure(
        "not-loaded",
        "A parameter holds nothing of what the checkpoint holds for it: it was left at its default initialisation.",
        "call load_model, and nothing that initialises weights after it, before deepspeed.initialize",
        FACTS,
        "reinitialised_weights",
    ),
    Failure(
        "untied-weights",
        "config.json ties the output embedding to the input embedding, and in this model they are two parameters.",
        "call model.tie_weights() after anything that replaces embeddings, and before deepspeed.initialize",
        FACTS,
        "untie_weights",
    ),
    Failure(
        "not-partitioned",
        "ZeRO-3 is asked for and the model is whole, or the reverse.",
        "build the model with load_model after the HfDeepSpeedConfig of the run, and not inside a deepspeed.zero.Init of "
        "your own",
        FACTS,
        "partition_unasked",
    ),
    Failure(
        "truncated-shard",
        "A weight file ends before its end: the download or the copy was cut.",
        "download or copy the file again",
        "safetensors refuses such a file on every rank",
        "truncated_shard",
        (
            r"SafetensorError.*(?:MetadataIncompleteBuffer|incomplete metadata, file not fully covered)",
            r"SafetensorError.*(?:InvalidHeaderLength|invalid header length|HeaderTooSmall|header too small)",
            r"PytorchStreamReader failed (?:reading zip archive|finding central directory)",
            r"invalid header or archive is corrupted",
        ),
    ),
    Failure(
        "not-a-checkpoint",
        "A file has the name of weights and is something else, such as a Git LFS pointer or an error page.",
        "fetch the real file: git lfs pull, or download it again",
        "safetensors reads the first 8 bytes as a length",
        "git_lfs_pointer",
        (
            r"SafetensorError.*(?:HeaderTooLarge|header too large)",
            r"no file named .*(?:pytorch_model\.bin|model\.safetensors).* found in directory",
        ),
    ),
    Failure(
        "broken-header",
        "The header of a safetensors file does not describe the file.",
        "download or save the file again",
        "the format's specification",
        "broken_header",
        (
            r"SafetensorError.*(?:InvalidHeaderDeserialization|InvalidHeaderStart|InvalidOffset|TensorInvalidInfo|ValidationOverflow)",
            r"SafetensorError.*invalid (?:JSON in header|UTF-8 in header|offset)",
        ),
    ),
    Failure(
        "missing-shard",
        "The checkpoint names a weight file that is not there or cannot be read.",
        "download the rest of the checkpoint",
        FACTS,
        "missing_shard",
        (r"(?:FileNotFoundError|OSError|SafetensorError).*No such file or directory.*(?:safetensors|pytorch_model)",),
    ),
    Failure(
        "inconsistent-index",
        "The index and the shards do not tell the same: files of two checkpoints are mixed, or a save was interrupted.",
        "download or save the checkpoint again, into an empty folder",
        FACTS,
        "shard_outside_index",
    ),
    Failure(
        "unsafe-pickle",
        "A .bin file is a pickle that holds more than tensors, and could run code when it is loaded.",
        "get the checkpoint as safetensors, or save it again as tensors alone",
        "torch.load with weights_only, the default since torch 2.6",
        "unsafe_pickle",
    ),
    Failure(
        "unpicklable-engine-checkpoint",
        "torch 2.6 loads plain tensors only, and DeepSpeed's own checkpoints hold classes of DeepSpeed.",
        "call torch.serialization.add_safe_globals with LossScaler (deepspeed.runtime.fp16.loss_scaler), ZeroStageEnum "
        "(deepspeed.runtime.zero.config) and fragment_address (deepspeed.utils.tensor_fragment)",
        "torch 2.6 made weights_only the default; " + FACTS,
        "resume_engine_checkpoint",
        (
            r"UnpicklingError: Weights only load failed",
            r"Weights only load failed\. .*deepspeed",
            r"Unsupported global: GLOBAL deepspeed",
        ),
    ),
    Failure(
        "engine-checkpoint",
        "The folder is a DeepSpeed engine's own checkpoint, which from_pretrained does not read.",
        "convert it with the zero_to_fp32.py that lies in it, or load it with engine.load_checkpoint",
        "DeepSpeed's documentation of checkpoints",
        "load_engine_checkpoint",
    ),
    Failure(
        "consolidation-off",
        "save_16bit_model writes nothing under ZeRO-3 unless it may gather the weights.",
        "set zero_optimization.stage3_gather_16bit_weights_on_model_save to true",
        FACTS + ": it returns False and only logs it",
        "save_without_gathering",
        (r"Did not save the model .* because `?stage3_gather_16bit_weights_on_model_save`? is False",),
    ),
    Failure(
        "generate-before-initialize",
        "A model that ZeRO-3 has partitioned was called before deepspeed.initialize gave it the hooks that gather its weights.",
        "call deepspeed.initialize first, and engine.module.generate(..., synced_gpus=True)",
        FACTS,
        "generate_before_initialize",
        (
            r"'weight' must be 2-D",
            r"Padding_idx must be within num_embeddings",
            r"size mismatch, got input \(\d+\), mat .*, vec \(0\)",
        ),
    ),
    Failure(
        "mixed-modality",
        "The ranks ran different collectives: under ZeRO an image on one rank and only text on another makes them part ways.",
        "give every rank an image: zero pixels with their labels at -100, or add 0 * visual(dummy).sum() in forward",
        FACTS + ": gloo dies, NCCL with ZeRO-3 is reported to hang",
        "mixed_modality",
        (r"op\.preamble\.length <= op\.nbytes", r"gloo::EnforceNotMet"),
    ),
    Failure(
        "triton-without-driver",
        "DeepSpeed's kernels ask triton for a GPU driver when they are imported, and there is none.",
        'for a run on CPUs put sys.modules["triton"] = None before the import; to install, build with isolation',
        FACTS + ": DeepSpeed 0.15.4 with triton 3.2.0",
        "triton_without_driver",
        (r"\d+ active drivers \(\[.*\]\)\. There should only be one",),
    ),
    Failure(
        "unmeasured",
        "Something failed in the middle of the load that no check foresaw.",
        "see the error itself; smokehouse_loader.explain may know it",
        FACTS,
        "failure_in_the_middle",
    ),
    Failure(
        "lost-peer",
        "Another rank died or raised; this one only noticed that its connection closed.",
        "look for the first error in the logs of the other ranks",
        FACTS + ": under ZeRO-3 errors can hit one rank only",
        "dead_rank",
        (
            r"Connection closed by peer",
            r"Connection reset by peer",
            r"(?:Socket|Broken pipe).{0,80}(?:Broken pipe|errno: 32)",
            r"remote process exited or there was a network error",
        ),
        victim=True,
    ),
)

BY_NAME = {failure.name: failure for failure in FAILURES}


def page() -> str:
    """The documentation of the table, as Markdown."""
    lines = [
        "# Known failures",
        "",
        "Generated from `src/smokehouse_loader/failures.py` by `python -m smokehouse_loader failures`; never edited. "
        "Each has a",
        "reproduction of its name in `tests/loader/inside/reproductions.py`. To have a log explained:",
        "`python -m smokehouse_loader explain LOGFILE`.",
        "",
    ]
    for failure in FAILURES:
        says = [f"`{pattern}`" for pattern in failure.patterns]
        lines += [
            f"## {failure.name}",
            "",
            failure.cause,
            "",
            f"- **Cure:** {failure.cure[0].upper()}{failure.cure[1:]}.",
            f"- **Says:** {'nothing; the loader sees it' if not says else 'what matches ' + ' or '.join(says)}",
            f"- **Source:** {failure.source}.",
            f"- **Reproduction:** `{failure.reproduction}`",
            "",
        ]
    return "\n".join(lines)
