"""The table of known failures, from which explanations, their documentation, tests and controls are generated."""

from dataclasses import dataclass

MEASURED = "measured by Smokehouse"


@dataclass(frozen=True)
class Failure:
    """A known failure.

    `patterns` are regular expressions that match its traceback or log in all versions; empty if it is silent, when only its
    `reproduction` shows it, a test of that name. A `victim` is a symptom on ranks that suffer from another rank's failure.
    """

    name: str
    cause: str  # one sentence
    cure: str  # how to fix it, a clause without a full stop
    source: str
    reproduction: str
    patterns: tuple[str, ...] = ()
    victim: bool = False


def fix_for(name: str) -> str:
    """Return how to fix the failure `name`. Raises KeyError if the table does not have it."""
    return BY_NAME[name].cure


_ZERO = r"(?:torch\.Size\(\[0\]\)|\[0\]|Size\(\[0\]\))"

# In the order in which explanations are given: the failures that say most about a cause come first.
FAILURES = (
    Failure(
        name="partitioned-before-load",
        cause=(
            "ZeRO-3 had partitioned the parameters (shape [0]) before weights were copied into them by code that does not "
            "gather them."
        ),
        cure=(
            "create the HfDeepSpeedConfig first, keep a reference to it, do not enter deepspeed.zero.Init yourself, and load "
            "with smokehouse_loader.load_model (or from_pretrained) before deepspeed.initialize"
        ),
        source=(
            "transformers between PR #36335 and PR #36455 (4.50.0.dev0) by itself; on releases zero.Init around "
            "from_pretrained without a HfDeepSpeedConfig, or load_state_dict on a partitioned model"
        ),
        reproduction="load_into_partitioned_parameters",
        patterns=(
            rf"size mismatch for \S+: copying a param with shape (?:torch\.Size\()?\[\d[\d, ]*\]\)? from checkpoint, "
            rf"the shape in current model is {_ZERO}",
            r"size mismatch for \S+: .{0,200}the shape in current model is torch\.Size\(\[0\]\)",
            rf"\|\s*MISMATCH\b.*ckpt: torch\.Size\(\[\d[\d, ]*\]\) vs model: ?{_ZERO}",
        ),
    ),
    Failure(
        name="saved-partitioned",
        cause="The checkpoint was saved from a model that ZeRO-3 had partitioned, so its tensors have shape [0].",
        cure=(
            "save with engine.save_16bit_model, or with Trainer.save_model and stage3_gather_16bit_weights_on_model_save, or "
            "convert the engine's own checkpoint with zero_to_fp32.py"
        ),
        source=f"{MEASURED}: save_pretrained on a partitioned model",
        reproduction="save_partitioned_model",
        patterns=(rf"copying a param with shape {_ZERO} from checkpoint",),
    ),
    Failure(
        name="deepcopied-model",
        cause=(
            "copy.deepcopy of a model that ZeRO-3 has partitioned returns a copy in which every tensor is unusable, without "
            "an error."
        ),
        cure="load the checkpoint a second time with load_model instead of copying the model",
        source=MEASURED,
        reproduction="deepcopy_partitioned_model",
    ),
    Failure(
        name="left-on-meta",
        cause="A parameter is still on the meta device: nothing was loaded into it.",
        cure=(
            "load with load_model and without device_map; from_pretrained inside your own zero.Init, or with "
            "low_cpu_mem_usage, leaves parameters there"
        ),
        source=f"{MEASURED}: from transformers 4.51.3 on, the mistakes behind partitioned-before-load end like this",
        reproduction="train_model_on_meta",
        patterns=(
            r"Cannot copy out of meta tensor",
            r"Tensor on device meta is not on the expected device",
            r"copying from a non-meta parameter",
        ),
    ),
    Failure(
        name="dropped-config",
        cause=(
            "Nothing refers to the HfDeepSpeedConfig any more, so transformers loads the whole model: ZeRO-3 is off, without "
            "an error."
        ),
        cure=(
            "keep a reference, as in dschf = HfDeepSpeedConfig(config), until deepspeed.initialize has returned; before a "
            "plain load call transformers.integrations.unset_hf_deepspeed_config()"
        ),
        source=f"{MEASURED}; transformers documents that it keeps only a weak reference",
        reproduction="drop_deepspeed_config",
    ),
    Failure(
        name="ignore-mismatched-sizes",
        cause=(
            "Under ZeRO-3 every parameter appears to have shape [0], so ignore_mismatched_sizes=True ignores every tensor "
            "and loads none."
        ),
        cure="remove ignore_mismatched_sizes=True; load_model reports the tensors that really differ",
        source=f"{MEASURED}: 57 of 57 tensors wrong without an error, transformers 4.49.0 to 4.57.6",
        reproduction="ignore_mismatched_sizes",
        patterns=(r"IndexError: index \d+ is out of bounds for dimension 0 with size 0",),
    ),
    Failure(
        name="device-map",
        cause="device_map places whole parameters and ZeRO-3 partitions them; they cannot be combined.",
        cure="remove device_map and low_cpu_mem_usage; DeepSpeed places the weights",
        source="transformers refuses the combination",
        reproduction="device_map_under_zero3",
        patterns=(r"DeepSpeed Zero-3 is not compatible with .*device_map",),
    ),
    Failure(
        name="development-version",
        cause="Development versions of transformers share one version number, and some of them cannot load under ZeRO-3.",
        cure="install a release of transformers",
        source="transformers PR #36335, fixed by PR #36455; both are 4.50.0.dev0",
        reproduction="development_version",
    ),
    Failure(
        name="wrong-auto-class",
        cause=(
            "The auto class has no entry for this config: AutoModelForCausalLM has none for most models with vision, "
            "AutoModelForImageTextToText none for those of text alone."
        ),
        cure="use smokehouse_loader.load_model without model_class, or the class that architectures in config.json lists",
        source=f"{MEASURED}: every version, for qwen2_5_vl",
        reproduction="wrong_auto_class",
        patterns=(r"Unrecognized configuration class .* for this kind of AutoModel",),
    ),
    Failure(
        name="unknown-model-type",
        cause="The installed transformers has no model of the type that config.json specifies.",
        cure="install a transformers release that has it",
        source="the models that releases of transformers list",
        reproduction="unknown_model_type",
        patterns=(r"but Transformers does not recognize this architecture", r"Unrecognized model in .*model_type"),
    ),
    Failure(
        name="no-model-class",
        cause="No class of the installed transformers loads the whole checkpoint.",
        cure="pass model_class=, or register one with smokehouse_loader.register",
        source=MEASURED,
        reproduction="no_model_class",
    ),
    Failure(
        name="key-layout",
        cause=(
            "The checkpoint's keys are in the layout of another transformers: 4.52 moved visual.* and model.* to "
            "model.visual.* and model.language_model.*."
        ),
        cure="use transformers 4.52 or later, which loads both, or save the checkpoint again with the installed version",
        source=f"{MEASURED}: 56 of 57 tensors stay random on 4.49.0, without an error",
        reproduction="later_key_layout",
        patterns=(r"were not initialized from the model checkpoint at .* newly initialized: .*'visual\.patch_embed",),
    ),
    Failure(
        name="dropped-weights",
        cause=(
            "The class has no parameters for part of the checkpoint: AutoModel up to transformers 4.51 drops the vision "
            "tower of Qwen2.5-VL."
        ),
        cure="let load_model choose the class, or use the one that architectures in config.json lists",
        source=f"{MEASURED}: 31 unexpected keys, none missing, no error",
        reproduction="drop_vision_tower",
        patterns=(
            r"Some weights of the model checkpoint at .* were not used when initializing",
            r"\|\s*UNEXPECTED\b",
        ),
    ),
    Failure(
        name="missing-key",
        cause=(
            "The model has tensors that the checkpoint does not have; they stay random, or zero under ZeRO-3, without an error."
        ),
        cure="get the complete checkpoint, or use the class that it was saved from",
        source=MEASURED,
        reproduction="missing_key",
        patterns=(r"were not initialized from the model checkpoint at .* and are newly initialized: ", r"\|\s*MISSING\b"),
    ),
    Failure(
        name="wrong-shape",
        cause="A tensor has another shape in the checkpoint than in the model: config.json does not belong to these weights.",
        cure="use the config.json that belongs to the weights, and the transformers version that wrote it",
        source=f"{MEASURED}: under ZeRO-3 only rank 0 raises; the others hang or lose the connection to it",
        reproduction="wrong_shape",
        patterns=(
            r"size mismatch for \S+: copying a param with shape torch\.Size\(\[[1-9][\d, ]*\]\) from checkpoint, "
            r"the shape in current model is torch\.Size\(\[[1-9]",
            r"You set `ignore_mismatched_sizes` to `False`, thus raising an error",
            r"\|\s*MISMATCH\b.*ckpt: torch\.Size\(\[[\d, ]*\]\) vs model: ?torch\.Size\(\[[1-9]",
            r"Trying to set a tensor of shape torch\.Size\(\[[\d, ]*\]\) in .* which has shape torch\.Size\(\[[\d, ]*\]\)",
        ),
    ),
    Failure(
        name="wrong-type",
        cause=(
            "A tensor has integers in the checkpoint and floating-point values in the model; copying would make them "
            "meaningless."
        ),
        cure="download the checkpoint again, or dequantise it",
        source=MEASURED,
        reproduction="wrong_type",
        patterns=(r"Only Tensors of floating point and complex dtype can require gradients",),
    ),
    Failure(
        name="quantised",
        cause=(
            "The checkpoint is quantised: weights in memory differ from those in the file, so neither shapes nor bits can be "
            "compared."
        ),
        cure="load it with verify='none', or load the checkpoint that it was quantised from",
        source="quantisers of transformers rewrite tensors while loading",
        reproduction="quantised_checkpoint",
    ),
    Failure(
        name="wrong-bits",
        cause="A tensor in memory differs from the one in the file.",
        cure="load again; if it happens again, memory, disk or collectives of this machine corrupt data",
        source=MEASURED,
        reproduction="flipped_bit",
    ),
    Failure(
        name="gloo-race",
        cause=(
            "Up to DeepSpeed 0.19.7, ZeRO-3 waits only for the last gather; on gloo it reads parameters before they have "
            "arrived, which can silently corrupt weights while they load."
        ),
        cure="load with load_model, which waits for each gather on gloo, or use DeepSpeed 0.19.8 or later",
        source="DeepSpeed PR #8539, released in 0.19.8",
        reproduction="gloo_race",
    ),
    Failure(
        name="not-loaded",
        cause="A parameter has no value of the checkpoint: it still has its default initialisation.",
        cure="call load_model, and nothing that initialises weights after it, before deepspeed.initialize",
        source=MEASURED,
        reproduction="reinitialised_weights",
    ),
    Failure(
        name="tied-weights-differ",
        cause=(
            "config.json ties two tensors, such as the output embedding to the input embedding, but the checkpoint has "
            "different values for them: transformers 4 keeps one of the two, without an error."
        ),
        cure=(
            "set tie_word_embeddings in config.json as the model was trained (false, if both are needed), or remove the tensor "
            "that is not needed from the checkpoint"
        ),
        source=MEASURED,
        reproduction="differing_tied_weights",
    ),
    Failure(
        name="untied-weights",
        cause="config.json ties the output embedding to the input embedding, but in this model they are two parameters.",
        cure="call model.tie_weights() after anything that replaces embeddings, and before deepspeed.initialize",
        source=MEASURED,
        reproduction="untie_weights",
    ),
    Failure(
        name="not-partitioned",
        cause="ZeRO-3 is requested but the model is not partitioned, or the reverse.",
        cure=(
            "create the model with load_model after the HfDeepSpeedConfig of the run, and not inside your own "
            "deepspeed.zero.Init"
        ),
        source=MEASURED,
        reproduction="partition_without_request",
    ),
    Failure(
        name="truncated-shard",
        cause="A weight file is truncated: the download or the copy was interrupted.",
        cure="download or copy the file again",
        source="safetensors refuses such a file on every rank",
        reproduction="truncated_shard",
        patterns=(
            r"SafetensorError.*(?:MetadataIncompleteBuffer|incomplete metadata, file not fully covered)",
            r"SafetensorError.*(?:InvalidHeaderLength|invalid header length|HeaderTooSmall|header too small)",
            r"PytorchStreamReader failed (?:reading zip archive|finding central directory)",
            r"invalid header or archive is corrupted",
        ),
    ),
    Failure(
        name="not-a-checkpoint",
        cause="A file or directory is named like weights but has other contents, such as a Git LFS pointer or an error page.",
        cure="get the real file: run git lfs pull, or download it again",
        source="safetensors reads the first 8 bytes as a length",
        reproduction="git_lfs_pointer",
        patterns=(
            r"SafetensorError.*(?:HeaderTooLarge|header too large)",
            r"no file named .*(?:pytorch_model\.bin|model\.safetensors).* found in directory",
        ),
    ),
    Failure(
        name="broken-header",
        cause="The header of a safetensors file does not match the file.",
        cure="download or save the file again",
        source="the specification of the format",
        reproduction="broken_header",
        patterns=(
            r"SafetensorError.*(?:InvalidHeaderDeserialization|InvalidHeaderStart|InvalidOffset|TensorInvalidInfo|ValidationOverflow)",
            r"SafetensorError.*invalid (?:JSON in header|UTF-8 in header|offset)",
        ),
    ),
    Failure(
        name="missing-shard",
        cause="A weight file of the checkpoint was not found or cannot be read.",
        cure="download the rest of the checkpoint",
        source=MEASURED,
        reproduction="missing_shard",
        patterns=(r"(?:FileNotFoundError|OSError|SafetensorError).*No such file or directory.*(?:safetensors|pytorch_model)",),
    ),
    Failure(
        name="inconsistent-index",
        cause="The index and the shards disagree: files of two checkpoints are mixed, or a save was interrupted.",
        cure="download or save the checkpoint again, into an empty directory",
        source=MEASURED,
        reproduction="shard_outside_index",
    ),
    Failure(
        name="unsafe-pickle",
        cause="A .bin file is a pickle with more than tensors in it, and could run code when it is loaded.",
        cure="get the checkpoint as safetensors, or save it again with tensors only",
        source="torch.load with weights_only, the default since torch 2.6",
        reproduction="unsafe_pickle",
    ),
    Failure(
        name="unpicklable-engine-checkpoint",
        cause="torch 2.6 loads only plain tensors by default, but DeepSpeed's own checkpoints contain classes of DeepSpeed.",
        cure=(
            "call torch.serialization.add_safe_globals with LossScaler (deepspeed.runtime.fp16.loss_scaler), ZeroStageEnum "
            "(deepspeed.runtime.zero.config) and fragment_address (deepspeed.utils.tensor_fragment)"
        ),
        source=f"torch 2.6 made weights_only the default; {MEASURED}",
        reproduction="resume_engine_checkpoint",
        patterns=(
            r"UnpicklingError: Weights only load failed",
            r"Weights only load failed\. .*deepspeed",
            r"Unsupported global: GLOBAL deepspeed",
        ),
    ),
    Failure(
        name="engine-checkpoint",
        cause="The directory is a DeepSpeed engine's own checkpoint, which from_pretrained cannot read.",
        cure="convert it with the zero_to_fp32.py inside it, or load it with engine.load_checkpoint",
        source="the documentation of DeepSpeed checkpoints",
        reproduction="load_engine_checkpoint",
    ),
    Failure(
        name="consolidation-off",
        cause="save_16bit_model writes nothing under ZeRO-3 unless gathering the weights is enabled.",
        cure="set zero_optimization.stage3_gather_16bit_weights_on_model_save to true",
        source=f"{MEASURED}: it returns False and only logs it",
        reproduction="save_without_gathering",
        patterns=(r"Did not save the model .* because `?stage3_gather_16bit_weights_on_model_save`? is False",),
    ),
    Failure(
        name="generate-before-initialize",
        cause=(
            "A model that ZeRO-3 has partitioned was called before deepspeed.initialize installed the hooks that gather its "
            "weights."
        ),
        cure="call deepspeed.initialize first, and engine.module.generate(..., synced_gpus=True)",
        source=MEASURED,
        reproduction="generate_before_initialize",
        patterns=(
            r"'weight' must be 2-D",
            r"Padding_idx must be within num_embeddings",
            r"size mismatch, got input \(\d+\), mat .*, vec \(0\)",
        ),
    ),
    Failure(
        name="mixed-modality",
        cause="The ranks ran different collectives: under ZeRO they diverge if one rank has an image and another only text.",
        cure="give every rank an image: zero pixels with their labels at -100, or add 0 * visual(dummy).sum() in forward",
        source=f"{MEASURED}: gloo crashes, NCCL with ZeRO-3 is reported to hang",
        reproduction="mixed_modality",
        patterns=(r"op\.preamble\.length <= op\.nbytes", r"gloo::EnforceNotMet"),
    ),
    Failure(
        name="triton-without-driver",
        cause="DeepSpeed's kernels query triton for a GPU driver when they are imported, and this machine has none.",
        cure='for a run on CPUs set sys.modules["triton"] = None before the import; to install, build with isolation',
        source=f"{MEASURED}: DeepSpeed 0.15.4 with triton 3.2.0",
        reproduction="triton_without_driver",
        patterns=(r"\d+ active drivers \(\[.*\]\)\. There should only be one",),
    ),
    Failure(
        name="unmeasured",
        cause="An unknown failure occurred during the load.",
        cure="read the original error; smokehouse_loader.explain may recognise it",
        source=MEASURED,
        reproduction="failure_in_the_middle",
    ),
    Failure(
        name="lost-peer",
        cause="Another rank died or raised an error; this one only noticed that the connection was closed.",
        cure="find the first error in the logs of the other ranks",
        source=f"{MEASURED}: under ZeRO-3 an error can occur on one rank only",
        reproduction="dead_rank",
        patterns=(
            r"Connection closed by peer",
            r"Connection reset by peer",
            r"(?:Socket|Broken pipe).{0,80}(?:Broken pipe|errno: 32)",
            r"remote process exited or there was a network error",
        ),
        victim=True,
    ),
)

BY_NAME = {failure.name: failure for failure in FAILURES}
