"""The table of known failures, from which explanations, their documentation, tests and controls are generated."""

from dataclasses import dataclass

MEASURED = "measured by Smokehouse"


@dataclass(frozen=True)
class Failure:
    """A known failure.

    `patterns` are regular expressions that match its traceback or log in all versions; empty if it is silent, when only its
    `reproduction` shows it, a test of that name. A `victim` is a symptom on ranks that suffer from another rank's failure. One
    that shows `only_on_gpu` has no reproduction: its source is a public thread, and a test finds its text in the libraries.
    """

    name: str
    cause: str  # one sentence
    cure: str  # how to fix it, a clause without a full stop
    source: str
    reproduction: str = ""
    patterns: tuple[str, ...] = ()
    victim: bool = False
    only_on_gpu: bool = False


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
        name="adapter-folder",
        cause="The directory has an adapter (adapter_config.json), not a whole model.",
        cure="load base_model_name_or_path of its adapter_config.json with load_model, then peft.PeftModel.from_pretrained",
        source="the documentation of PEFT's files",
        reproduction="load_adapter_folder",
    ),
    Failure(
        name="adapter-of-another-base",
        cause="The adapter was trained on another base model, or on a vocabulary of another size, than the one that it names.",
        cure="load it into the model that it was trained on",
        source="PEFT copies lora_A and lora_B by name",
        reproduction="load_adapter_of_another_base",
    ),
    Failure(
        name="no-model-type",
        cause="config.json has no model_type, so transformers cannot tell which model this is.",
        cure="copy config.json from the checkpoint that it was trained from",
        source="transformers/models/auto/configuration_auto.py",
        reproduction="config_without_model_type",
    ),
    Failure(
        name="model-type-of-other-code",
        cause="The model type belongs to a project's own code, such as LLaVA's; no release of transformers has it.",
        cure="load it with that project's code, or get the checkpoint that was converted for transformers",
        source="the configurations that LLaVA-NeXT registers",
        reproduction="model_type_of_other_code",
    ),
    Failure(
        name="remote-code",
        cause="The checkpoint has Python code of its own, which transformers runs only when it is told to.",
        cure="review the .py files in it, pin the revision, and pass trust_remote_code=True",
        source="transformers/dynamic_module_utils.py",
        reproduction="missing_remote_code",
    ),
    Failure(
        name="image-processor-unknown",
        cause="preprocessor_config.json names a class that the installed transformers does not have.",
        cure="set it to a class of this transformers, or use the transformers that saved it",
        source="transformers/models/auto/image_processing_auto.py",
        reproduction="unknown_image_processor",
    ),
    Failure(
        name="tokenizer-class-missing",
        cause="tokenizer_config.json names a class that the installed transformers does not have.",
        cure="use the transformers that saved it, or copy the file from the checkpoint that it was trained from",
        source="transformers/models/auto/tokenization_auto.py",
        reproduction="unknown_tokenizer_class",
    ),
    Failure(
        name="contradicting-architectures",
        cause="architectures in config.json lists a class for another model type than the one it has.",
        cure="set architectures to the class that the weights fit",
        source=f"{MEASURED}: from_pretrained loads it without a word, vLLM and others choose the class by it",
        reproduction="contradicting_architectures",
    ),
    Failure(
        name="wrapped-keys",
        cause="The model was saved with what wraps it (DDP, torch.compile, an adapter), whose name is in every key.",
        cure="save the model inside, or remove the prefix from the keys",
        source=MEASURED,
        reproduction="load_wrapped_keys",
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
        name="signature-mismatch",
        cause="The files are not the ones that the trusted signer signed: one was changed, added or removed since.",
        cure="do not load it; get it again from who signed it, or find out who changed it",
        source="OpenSSF model signing, the library model-signing",
        reproduction="load_changed_after_signing",
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
        name="missing-nvcc",
        cause=(
            "DeepSpeed before 0.19.8 asks nvcc for its release when it is imported on a machine with GPUs, and found no "
            "toolkit, "
            "or one without nvcc."
        ),
        cure=(
            "use an environment of Smokehouse, which brings an answer, set CUDA_HOME to a CUDA toolkit with bin/nvcc, or use "
            "DeepSpeed 0.19.8 or later"
        ),
        source=f"DeepSpeed issue #7452, fixed by its PR #8216, released in 0.19.8; {MEASURED}",
        reproduction="import_without_nvcc",
        patterns=(
            r"MissingCUDAException: CUDA_HOME does not exist",
            r"FileNotFoundError: .*No such file or directory: '[^']*/bin/nvcc'",
        ),
    ),
    Failure(
        name="no-c-compiler",
        cause="triton compiles C when it first meets a GPU, for old DeepSpeeds during their import, and found no compiler.",
        cure="install gcc, or set CC to a C compiler",
        source=f"triton/runtime/build.py; {MEASURED}",
        reproduction="triton_without_compiler",
        patterns=(r"Failed to find C compiler\. Please specify via CC",),
    ),
    Failure(
        name="no-python-headers",
        cause="triton compiles a module of Python when it first meets a GPU, and Python.h or libcuda.so is not found.",
        cure=(
            "install the headers of this Python (python3-dev); where the linker cannot find -lcuda, link libcuda.so to "
            "libcuda.so.1 and set TRITON_LIBCUDA_PATH to its folder"
        ),
        source=f"triton/backends/nvidia/driver.py; {MEASURED}: every rank, while DeepSpeed 0.15.4 is imported",
        reproduction="triton_cannot_compile",
        patterns=(
            r"fatal error: Python\.h: No such file or directory",
            r"cannot find -lcuda\b",
            r"CalledProcessError: Command '\['[^']*(?:gcc|clang|cc)', '[^']*/(?:main|cuda_utils|__triton_launcher)\.c'",
            r"libcuda\.so cannot found!",
        ),
    ),
    Failure(
        name="setuptools-missing",
        cause="DeepSpeed's op builders import setuptools to compile an op, and declare it for no Python before 3.12.",
        cure="install setuptools, or use ops that were compiled ahead of time",
        source=f"deepspeed/ops/op_builder/builder.py by way of torch.utils.cpp_extension; {MEASURED}",
        reproduction="compile_op_without_setuptools",
        patterns=(r"ModuleNotFoundError: No module named 'setuptools'",),
    ),
    Failure(
        name="toolkit-refused",
        cause="An op or extension was to be compiled in an environment without a CUDA toolkit.",
        cure=(
            "install the environment with --devel, build the image with --flavour devel, or set CUDA_HOME to a toolkit of its "
            "CUDA release"
        ),
        source="the bin/nvcc that environments of Smokehouse bring in the place of a toolkit",
        reproduction="compile_with_the_answer_for_nvcc",
        patterns=(r"nvcc: no CUDA toolkit in this environment",),
    ),
    Failure(
        name="driver-too-old",
        cause="The NVIDIA driver is older than the CUDA release that torch was built for.",
        cure=(
            "update the driver, 525.60.13 or later for CUDA 12 and 580.65.06 for CUDA 13, use an environment for an older "
            "CUDA, "
            "or on data-centre GPUs put cuda-compat on LD_LIBRARY_PATH"
        ),
        source=f"NVIDIA's CUDA compatibility; {MEASURED}, with stub libraries for the driver's",
        reproduction="driver_too_old",
        patterns=(
            r"The NVIDIA driver on your system is too old \(found version \d+\)",
            r"CUDA driver version is insufficient for CUDA runtime version",
            r"the provided PTX was compiled with an unsupported toolchain",
        ),
    ),
    Failure(
        name="no-driver",
        cause="torch found no NVIDIA driver: there is none, or the container was started without its GPUs.",
        cure="start the container with --gpus all; on a host, check nvidia-smi",
        source=f"{MEASURED}, on a machine without a driver",
        reproduction="no_driver",
        patterns=(r"Found no NVIDIA driver on your system", r"libcuda\.so\.1: cannot open shared object file"),
    ),
    Failure(
        name="no-kernels-for-gpu",
        cause="This build of torch, or of an extension, has no kernels for this GPU's architecture.",
        cure="use an environment whose torch has them (CUDA 12.8 or later for Blackwell), such as qwen2.5-vl-latest",
        source="pytorch issues #149845 and #167244: RTX 50 and B200 with wheels of CUDA 12.4",
        only_on_gpu=True,
        patterns=(
            r"no kernel image is available for execution on the device",
            r"with CUDA capability sm_\d+\w? is not compatible with the current PyTorch installation",
        ),
    ),
    Failure(
        name="shared-memory-full",
        cause="NCCL could not create its segment in /dev/shm, which is 64 MiB in a container of Docker by default.",
        cure="start the container with --shm-size 2g or --ipc host; on Kubernetes mount an emptyDir with medium Memory there",
        source="torchtitan issue #853: 8 H100, NCCL 2.21.5",
        only_on_gpu=True,
        patterns=(
            r"Error while (?:creating|attaching to) shared memory segment \S+ \(size \d+\)",
            r"No space left on device.{0,40}/dev/shm/nccl-",
            r"/dev/shm/nccl-\S+.{0,80}No space left on device",  # noqa: S108 - matched, not opened
        ),
    ),
    Failure(
        name="data-loader-shared-memory",
        cause=(
            "Workers of a DataLoader pass tensors through /dev/shm, which is full: 64 MiB in a container of Docker by default."
        ),
        cure="start the container with --shm-size 16g or --ipc host, or set num_workers=0",
        source="torch/utils/data/_utils/signal_handling.py; PyTorch's README, on Docker and shared memory",
        only_on_gpu=True,
        patterns=(r"DataLoader worker.* is killed by signal: Bus error", r"insufficient shared memory \(shm\)"),
    ),
    Failure(
        name="cuda-out-of-memory",
        cause="The GPU's memory is full.",
        cure=(
            "use more GPUs, ZeRO-3 or CPU offload, gradient checkpointing, a smaller batch or smaller images; nvidia-smi shows "
            "whether another process has the memory"
        ),
        source=f"{MEASURED}, with stub libraries for the driver's",
        reproduction="cuda_out_of_memory",
        patterns=(r"CUDA out of memory\. Tried to allocate", r"CUDA error: out of memory", r"Failed to CUDA (?:calloc|malloc)"),
    ),
    Failure(
        name="cuda-in-forked-process",
        cause="A process was forked from one in which CUDA had started, and CUDA does not survive a fork.",
        cure=(
            "start processes by spawn; count GPUs without CUDA in the parent (PYTORCH_NVML_BASED_CUDA_CHECK=1, which needs "
            "NVML "
            "and no MIG)"
        ),
        source=f"torch/cuda/__init__.py; {MEASURED}: where NVML is missing, counting GPUs starts CUDA",
        reproduction="cuda_in_forked_process",
        patterns=(r"Cannot re-initialize CUDA in forked subprocess",),
    ),
    Failure(
        name="wrong-gpu-number",
        cause=(
            "A rank asked for a GPU that this process does not see: there are more ranks than GPUs, or MIG gives it one slice."
        ),
        cure="start one rank per visible GPU, and check CUDA_VISIBLE_DEVICES",
        source=f"{MEASURED}, with stub libraries for the driver's",
        reproduction="wrong_gpu_number",
        patterns=(r"CUDA error: invalid device ordinal",),
    ),
    Failure(
        name="gpu-not-available",
        cause="Another process has the GPU, in exclusive compute mode, or the mode is prohibited.",
        cure="end the other process, or have an administrator run nvidia-smi -c DEFAULT",
        source="cuda_runtime_api.h, cudaErrorDevicesUnavailable; pytorch issue #9930",
        only_on_gpu=True,
        patterns=(r"CUDA-capable device\(s\) is/are busy or unavailable", r"all CUDA-capable devices are busy or unavailable"),
    ),
    Failure(
        name="duplicate-gpu",
        cause=(
            "Two ranks use one GPU, which NCCL before 2.30 refuses: torch.cuda.set_device was not called, or there are too few."
        ),
        cure="call torch.cuda.set_device(LOCAL_RANK) before the first collective, and start one rank per GPU",
        source="nccl issue #418; the text is in NCCL 2.21.5 and 2.27.5",
        only_on_gpu=True,
        patterns=(r"Duplicate GPU detected ?: rank \d+ and rank \d+ both on CUDA device",),
    ),
    Failure(
        name="nccl-no-interface",
        cause="NCCL found no network interface to start with: NCCL_SOCKET_IFNAME names one that this machine does not have.",
        cure=(
            "unset NCCL_SOCKET_IFNAME, or set it to an interface that ip -br link lists; lo where all ranks are on one machine"
        ),
        source="nccl issue #1120; the text is in NCCL 2.21.5 and 2.27.5",
        only_on_gpu=True,
        patterns=(r"Bootstrap : no socket interface found", r"NET/Socket : No usable listening interface found"),
    ),
    Failure(
        name="nccl-peer-to-peer",
        cause=(
            "Direct copies between GPUs fail or never end on this machine: PCIe ACS or an IOMMU is on, or the cards do not "
            "support them."
        ),
        cure="set NCCL_P2P_DISABLE=1 to confirm it, then turn ACS and the IOMMU off in the BIOS",
        source="nccl-tests issue #117, nccl issue #1999: collectives hang with P2P and work without",
        only_on_gpu=True,
        patterns=(r"peer access is not supported between these two devices", r"peer mapping resources exhausted"),
    ),
    Failure(
        name="nccl-timeout",
        cause=(
            "A collective of NCCL did not end in time: ranks ran different collectives, one of them is stuck elsewhere, or "
            "GPUs cannot reach each other."
        ),
        cure=(
            "compare the SeqNum and OpType of all ranks: where they differ, give every rank the same work (see "
            "mixed-modality); "
            "where they agree, try NCCL_P2P_DISABLE=1"
        ),
        source="trl issue #3934, ms-swift issue #9104: text-only batches on some ranks; nccl-tests issue #117: peer to peer",
        only_on_gpu=True,
        patterns=(
            r"Watchdog caught collective operation timeout: WorkNCCL\(",
            r"NCCL watchdog thread terminated with exception",
        ),
    ),
    Failure(
        name="library-not-found",
        cause="A library that a package was built for is not found by the loader.",
        cure=(
            "install the package for this environment's CUDA release, and remove foreign folders from LD_LIBRARY_PATH; file "
            "permissions and free space play no part"
        ),
        source=f"{MEASURED}: an extension that needs a libcudnn or libcudart that is not installed",
        reproduction="library_not_found",
        patterns=(r"(?:ImportError|OSError): lib(?!cuda\.so)[\w+.-]+\.so[\w.]*: cannot open shared object file",),
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
