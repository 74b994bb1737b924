# ruff: noqa: E501, S108 - texts as they are printed
"""The programs that print the texts of the table: each with its versions, and its files in site-packages.

tests/data/printed.json records which releases have which texts, from the oldest release that is read on, and the ranges are exact in it: where one begins or ends, the release before and the one after were read. A text that the program has as a whole is in PRINTED; one that it puts together is in COMPOSED, with the parts that it has. RAISED are the texts of programs of the machine, which a test makes raise them. What can be neither read nor raised is in ELSEWHERE, with its public source.
"""

PRINTED: dict[str, tuple[str, ...]] = {
    "size mismatch for {}: copying a param with shape {shape} from checkpoint, the shape in current model is {0}": (
        "torch>=2.4.1 torch/nn/modules/module.py",
    ),
    "Trying to set a tensor of shape {shape} in {} (which has shape {0}": ("accelerate>=0.34.2 accelerate/utils/modeling.py",),
    "copying a param with shape {0} from checkpoint": ("torch>=2.4.1 torch/nn/modules/module.py",),
    "Trying to set a tensor of shape {0} in {} (which has shape": ("accelerate>=0.34.2 accelerate/utils/modeling.py",),
    "Cannot copy out of meta tensor; no data!": ("torch>=2.4.1 torch/nn/modules/module.py",),
    "copying from a non-meta parameter in the checkpoint to a meta parameter in the current model": (
        "torch>=2.4.1 torch/nn/modules/module.py",
    ),
    "newly initialized because the shapes did not match": ("transformers<5.0.0 transformers/modeling_utils.py",),
    "DeepSpeed Zero-3 is not compatible with `low_cpu_mem_usage=True` or with passing a `device_map`": (
        "transformers<4.51.0 transformers/modeling_utils.py",
    ),
    "DeepSpeed Zero-3 is not compatible with passing a `device_map`": (
        "transformers>=4.51.0 transformers/integrations/accelerate.py transformers/modeling_utils.py",
    ),
    "You can't train a model that has been loaded with `device_map='auto'` in any distributed mode": (
        "accelerate>=0.34.2 accelerate/accelerator.py",
    ),
    "You can't train a model that has been loaded in 8-bit or 4-bit precision on a different device than the one": (
        "accelerate>=1.0.0 accelerate/accelerator.py",
    ),
    "newly initialized: ": ("transformers<5.0.0 transformers/modeling_utils.py",),
    "Some weights of the model checkpoint at {} were not used when initializing {}: ": (
        "transformers<5.0.0 transformers/modeling_utils.py",
    ),
    "Unexpected key(s) in state_dict: ": ("torch>=2.4.1 torch/nn/modules/module.py",),
    "Missing key(s) in state_dict: ": ("torch>=2.4.1 torch/nn/modules/module.py",),
    "were not initialized from the model checkpoint at {} and are newly initialized: ": (
        "transformers<5.0.0 transformers/modeling_utils.py",
    ),
    "You are using a model of type {} to instantiate a model of type {}. This": (
        "transformers>=4.45.2 transformers/configuration_utils.py",
    ),
    "size mismatch for {}: copying a param with shape {shape} from checkpoint, the shape in current model is {shape}": (
        "torch>=2.4.1 torch/nn/modules/module.py",
    ),
    "Trying to set a tensor of shape {shape} in {} (which has shape {shape}": (
        "accelerate>=0.34.2 accelerate/utils/modeling.py",
    ),
    "expected shape {shape}, but got {shape}. If you want to instead overwrite randomly initialized weights": (
        "diffusers>=0.33.0 diffusers/models/model_loading_utils.py",
    ),
    "expected shape {shape}, but got {0}. If you want to instead overwrite randomly initialized weights": (
        "diffusers>=0.33.0 diffusers/models/model_loading_utils.py",
    ),
    "found shape {shape} in the checkpoint and {shape} in the model instantiated": (
        "transformers<5.0.0 transformers/modeling_utils.py",
    ),
    "You set `ignore_mismatched_sizes` to `False`, thus raising an error": (
        "transformers>=5.0.0 transformers/utils/loading_report.py",
    ),
    "Only Tensors of floating point and complex dtype can require gradients": ("torch>=2.4.1 torch/lib/libtorch_cpu.so",),
    "Unrecognized model in {w}sft{}. Should have a `model_type` key": (
        "transformers>=4.45.2 transformers/models/auto/configuration_auto.py",
    ),
    "Unrecognized model in ": ("transformers>=4.45.2 transformers/models/auto/configuration_auto.py",),
    "no file named {} found in directory": ("transformers>=4.45.2 transformers/modeling_utils.py",),
    "Target modules {} not found in the base model. Please check the target modules and try again.": (
        "peft>=0.13.2 peft/tuners/tuners_utils.py",
    ),
    "Please specify `target_modules` in `peft_config`": ("peft>=0.13.2 peft/tuners/ia3/model.py",),
    "is not supported. Currently, only the following modules are supported: `torch.nn.Linear`": (
        "peft>=0.13.2 peft/tuners/poly/model.py",
    ),
    "You cannot perform fine-tuning on purely quantized models. Please attach trainable adapters": (
        "transformers>=4.45.2 transformers/trainer.py transformers/trainer_utils.py",
    ),
    "Must flatten tensors with uniform dtype but got": ("torch>=2.4.1 torch/distributed/fsdp/_flat_param.py",),
    "output tensor must have the same type as input tensor": ("torch>=2.4.1 torch/lib/libtorch_cuda.so",),
    "Unrecognized configuration class {} for this kind of AutoModel": (
        "transformers>=4.45.2 transformers/models/auto/auto_factory.py",
    ),
    "but Transformers does not recognize this architecture": (
        "transformers>=4.45.2 transformers/models/auto/configuration_auto.py",
    ),
    "Unrecognized model in {}. Should have a `model_type` key": (
        "transformers>=4.45.2 transformers/models/auto/configuration_auto.py",
    ),
    "contains custom code which must be executed to correctly load the model. You can inspect": (
        "transformers<4.52.1 transformers/dynamic_module_utils.py",
        "transformers>=4.53.0 transformers/dynamic_module_utils.py",
    ),
    "requires you to execute the configuration file in that repo on your local machine": (
        "transformers<4.52.1 transformers/dynamic_module_utils.py",
    ),
    "Please pass the argument `trust_remote_code=True` to allow custom code to be run": (
        "transformers>=4.45.2 transformers/dynamic_module_utils.py",
    ),
    "This modeling file requires the following packages that were not found in your environment: ": (
        "transformers>=4.45.2 transformers/dynamic_module_utils.py",
    ),
    "Unrecognized image processor in {}. Should have a `image_processor_type` key": (
        "transformers>=4.45.2 transformers/models/auto/image_processing_auto.py",
    ),
    "Unrecognized video processor in": ("transformers>=4.52.1 transformers/models/auto/video_processing_auto.py",),
    "Unrecognized processing class in": ("transformers>=4.45.2 transformers/models/auto/processing_auto.py",),
    "Can't load image processor for": ("transformers>=4.45.2 transformers/image_processing_base.py",),
    "Can't load feature extractor for": ("transformers>=4.45.2 transformers/feature_extraction_utils.py",),
    "Can't load tokenizer for": ("transformers>=4.45.2 transformers/tokenization_utils_base.py",),
    "Can't load processor for": ("transformers>=4.45.2 transformers/processing_utils.py",),
    "Tokenizer class {w} does not exist or is not currently imported": (
        "transformers<5.0.0 transformers/models/auto/tokenization_auto.py",
    ),
    "Couldn't instantiate the backend tokenizer from one of": (
        "transformers>=4.45.2 transformers/tokenization_utils_fast.py transformers/tokenization_utils_tokenizers.py",
    ),
    "data did not match any variant of untagged enum": ("tokenizers>=0.21.0 tokenizers/tokenizers.abi3.so",),
    "Cannot use chat template functions because tokenizer.chat_template is not set": (
        "transformers>=4.45.2 transformers/tokenization_utils_base.py",
    ),
    "Cannot use apply_chat_template because this processor does not have a chat template": (
        "transformers>=4.52.1 transformers/processing_utils.py",
    ),
    "No chat template is set for this processor": ("transformers<4.52.1 transformers/processing_utils.py",),
    "It looks like the config file at {} is not a valid JSON file": ("transformers>=4.45.2 transformers/processing_utils.py",),
    "JSONDecodeError": ("transformers>=4.45.2 transformers/processing_utils.py",),
    "does not support Flash Attention {} yet. Please request to add support": (
        "transformers>=4.45.2 transformers/modeling_utils.py",
    ),
    "does not support an attention implementation through torch.nn.functional.scaled_dot_product_attention yet": (
        "transformers>=4.45.2 transformers/modeling_utils.py",
    ),
    "Specified `attn_implementation={}` is not supported": ("transformers>=4.45.2 transformers/modeling_utils.py",),
    "MetadataIncompleteBuffer": ("safetensors>=0.5.0,<0.6.1 safetensors/_safetensors_rust.abi3.so",),
    "invalid header or archive is corrupted": ("torch>=2.4.1 torch/lib/libtorch_cpu.so",),
    "You seem to have cloned a repository without having git-lfs installed": (
        "transformers<5.0.0 transformers/modeling_utils.py",
    ),
    "does not appear to have a file named pytorch_model.bin": ("transformers>=5.0.0 transformers/safetensors_conversion.py",),
    "No such file or directory: '{w}.safetensors": (
        "huggingface-hub>=0.25.2 huggingface_hub/cli/upload.py huggingface_hub/commands/upload.py",
    ),
    "File does not contain tensor": ("safetensors>=0.5.0 safetensors/_safetensors_rust.abi3.so",),
    "does not contain the valid metadata. Make sure you save your model with the `save_pretrained` method": (
        "transformers<5.0.0 transformers/modeling_utils.py",
    ),
    "Due to a serious vulnerability issue in `torch.load`, even with `weights_only=True`": (
        "transformers>=4.52.1 transformers/utils/import_utils.py",
    ),
    "Weights only load failed.": ("torch>=2.4.1 torch/serialization.py",),
    "Did not save the model {} because `stage3_gather_16bit_weights_on_model_save` is False": (
        "deepspeed<0.16.5 deepspeed/runtime/engine.py",
    ),
    "Did not save the model {} because stage3_gather_16bit_weights_on_model_save is False": (
        "deepspeed>=0.16.5 deepspeed/runtime/engine.py",
    ),
    "Cannot get 16bit model weights because `stage3_gather_16bit_weights_on_model_save`": (
        "accelerate>=0.34.2 accelerate/accelerator.py",
    ),
    "stage3_gather_16bit_weights_on_model_save=false. Saving the full checkpoint instead, use zero_to_fp32.py": (
        "transformers>=4.45.2 transformers/trainer.py",
    ),
    "zero_pp_rank_{n}_mp_rank_{n}_optim_states.pt": ("deepspeed>=0.13.5 deepspeed/runtime/engine.py",),
    "zero_pp_rank_{n}_mp_rank_{n}_model_states.pt": ("deepspeed>=0.13.5 deepspeed/runtime/engine.py",),
    "Expected {n} of '*_optim_states.pt' under": ("deepspeed>=0.13.5 deepspeed/utils/zero_to_fp32.py",),
    "Required {} state is missing in checkpoint. Verify that client creates this state": (
        "deepspeed>=0.13.5 deepspeed/checkpoint/ds_to_universal.py",
    ),
    "Unable to find latest file at": ("deepspeed>=0.13.5 deepspeed/runtime/engine.py",),
    "Unable to find 'latest' file at": ("deepspeed>=0.13.5 deepspeed/utils/zero_to_fp32.py",),
    "Can't find a valid checkpoint at": ("transformers>=4.45.2 transformers/trainer.py",),
    "No valid checkpoint found in output directory": ("transformers>=4.45.2 transformers/trainer.py",),
    "[deepspeed] failed to resume from checkpoint": ("transformers>=4.45.2 transformers/integrations/deepspeed.py",),
    "loaded state dict contains a parameter group that doesn't match the size of optimizer's group": (
        "torch>=2.4.1 torch/optim/optimizer.py",
    ),
    "loaded state dict has a different number of parameter groups": ("torch>=2.4.1 torch/optim/optimizer.py",),
    "Some tensors share memory, this will lead to duplicate memory on disk": ("safetensors>=0.4.5 safetensors/torch.py",),
    "The weights trying to be saved contained shared tensors": ("transformers>=4.45.2 transformers/modeling_utils.py",),
    "You are trying to save a non contiguous tensor": ("safetensors>=0.4.5 safetensors/torch.py",),
    "unexpected pos {n} vs": ("torch>=2.4.1 torch/lib/libtorch_cpu.so",),
    "The generation config instance is invalid -- `.validate()` throws warnings and/or exceptions": (
        "transformers<4.52.1 transformers/generation/configuration_utils.py",
    ),
    "GenerationConfig is invalid": ("transformers>=4.52.1 transformers/generation/configuration_utils.py",),
    "Padding_idx must be within num_embeddings": ("torch>=2.4.1 torch/nn/functional.py",),
    "DeepSpeed ZeRO-3 is enabled and is not compatible with `create_reference_model()`": (
        "trl<0.27.0 trl/experimental/utils.py trl/models/modeling_base.py",
        "trl>=0.29.0 trl/experimental/utils.py trl/models/modeling_base.py",
    ),
    "assert param.ds_status == ZeroParamStatus.AVAILABLE": (
        "deepspeed>=0.13.5 deepspeed/runtime/zero/partitioned_param_coordinator.py",
    ),
    "expected there to be only one unique element in": ("deepspeed>=0.13.5 deepspeed/runtime/utils.py",),
    "torch.utils.checkpoint: Recomputed values for the following tensors have different metadata": (
        "torch>=2.4.1 torch/utils/checkpoint.py",
    ),
    "torch.utils.checkpoint: A different number of tensors was saved during the original forward and recomputation": (
        "torch>=2.4.1 torch/utils/checkpoint.py",
    ),
    "torch.utils.checkpoint: trying to save more tensors during recomputation than during the original forward pass": (
        "torch>=2.4.1 torch/utils/checkpoint.py",
    ),
    "has already been reduced. {} Gradient computed twice for this partition": (
        "deepspeed>=0.13.5 deepspeed/runtime/zero/stage_1_and_2.py",
    ),
    "a function that returns multiple views. Such functions do not allow the output views to be modified inplace": (
        "torch>=2.4.1 torch/lib/libtorch_cpu.so",
    ),
    "Expected to mark a variable ready only once": ("torch>=2.4.1 torch/lib/libtorch_cpu.so",),
    "Expected to have finished reduction in the prior iteration before starting a new one": (
        "torch>=2.4.1 torch/lib/libtorch_cpu.so",
    ),
    "Current loss scale already at minimum - cannot decrease scale anymore": (
        "deepspeed>=0.13.5 deepspeed/runtime/fp16/loss_scaler.py",
    ),
    "Check batch related parameters. train_batch_size is not equal to micro_batch_per_gpu": (
        "deepspeed>=0.13.5 deepspeed/runtime/config.py",
    ),
    "Please correct the following DeepSpeed config values that mismatch TrainingArguments values": (
        "transformers>=4.45.2 transformers/integrations/deepspeed.py",
    ),
    "You are using ZeRO-Offload with a client provided optimizer": ("deepspeed>=0.13.5 deepspeed/runtime/engine.py",),
    "no_sync context manager is incompatible with gradient partitioning logic of ZeRO stage": (
        "deepspeed>=0.16.0 deepspeed/runtime/engine.py",
    ),
    "StopIteration": ("transformers>=4.46.1 transformers/trainer.py",),
    "Image features and image tokens do not match": ("transformers>=4.46.1 transformers/models/llava/modeling_llava.py",),
    "Video features and video tokens do not match": (
        "transformers>=4.46.1,<4.55.0 transformers/models/qwen2_vl/modeling_qwen2_vl.py",
        "transformers>=5.0.0 transformers/models/qwen2_vl/modeling_qwen2_vl.py",
    ),
    "Videos features and video tokens do not match": (
        "transformers>=4.55.0,<5.0.0 transformers/models/qwen2_vl/modeling_qwen2_vl.py",
    ),
    "absolute aspect ratio must be smaller than": (
        "transformers>=4.45.2 transformers/models/qwen2_vl/image_processing_qwen2_vl.py",
    ),
    "height:{n} or width:{n} must be larger than factor:{n}": (
        "transformers<4.51.0 transformers/models/qwen2_vl/image_processing_qwen2_vl.py",
    ),
    "Unable to infer channel dimension format": ("transformers>=4.45.2 transformers/image_utils.py",),
    "mean must have {n} elements if it is an iterable, got {n}": ("transformers>=4.45.2 transformers/image_transforms.py",),
    "The channel dimension is ambiguous. Got image shape": ("transformers>=4.45.2 transformers/image_utils.py",),
    "Asking to pad but the tokenizer does not have a padding token": (
        "transformers>=4.45.2 transformers/tokenization_utils_base.py",
    ),
    "Cannot handle batch sizes > 1 if no padding token is defined": (
        "transformers>=4.45.2 transformers/modeling_layers.py transformers/models/qwen2/modeling_qwen2.py",
    ),
    "CUDA error: device-side assert triggered": ("transformers>=4.47.0 transformers/testing_utils.py",),
    "probability tensor contains either `inf`, `nan` or element < 0": ("torch>=2.4.1 torch/lib/libtorch_cpu.so",),
    "Attempting to unscale FP16 gradients": ("torch>=2.4.1 torch/amp/grad_scaler.py",),
    "expected mat1 and mat2 to have the same dtype, but got: ": ("torch>=2.4.1 torch/lib/libtorch_cuda.so",),
    "mat1 and mat2 must have the same dtype, but got": ("torch>=2.4.1 torch/lib/libtorch_cpu.so",),
    "expected scalar type {w} but found {w}": ("torch>=2.4.1 torch/_numpy/_binary_ufuncs_impl.py",),
    "Input type ({w}) and bias type ({w}) should be the same": ("torch>=2.4.1 torch/lib/libtorch_cpu.so",),
    "Input type ({w}) and weight type ({w}) should be the same": ("torch>=2.4.1 torch/lib/libtorch_cpu.so",),
    "Expected query, key, and value to have the same dtype, but got": ("torch>=2.4.1 torch/nn/attention/_utils.py",),
    "Index put requires the source and destination dtypes match": ("torch>=2.4.1 torch/lib/libtorch_cpu.so",),
    "masked_scatter_: expected self and source to have same dtypes but got": ("torch>=2.4.1 torch/lib/libtorch_cuda.so",),
    "Expected all tensors to be on the same device, but found at least two devices": (
        "torch>=2.4.1 torch/lib/libtorch_cpu.so",
    ),
    "Expected all tensors to be on the same device, but got": ("torch>=2.8.0 torch/lib/libtorch_cpu.so",),
    "You are attempting to perform batched generation with padding_side='right": (
        "transformers>=4.49.0,<4.53.0 transformers/models/qwen2/modeling_qwen2.py",
    ),
    "Unable to create tensor, you should probably activate truncation and/or padding": (
        "transformers>=4.45.2 transformers/tokenization_utils_base.py",
    ),
    "stack expects each tensor to be equal size, but got": ("torch>=2.4.1 torch/_refs/__init__.py",),
    "default_collate: batch must contain tensors, numpy arrays, numbers, dicts or lists": (
        "torch>=2.4.1 torch/utils/data/_utils/collate.py",
    ),
    "No columns in the dataset match the model's forward method signature": ("transformers>=4.45.2 transformers/trainer.py",),
    "CUDA_HOME environment variable is not set. Please set it to your CUDA install root": (
        "torch>=2.4.1 torch/utils/cpp_extension.py",
    ),
    "CUDA_HOME environment variable is not set": ("torch>=2.4.1 torch/utils/cpp_extension.py",),
    "does not match the version torch was compiled with": ("deepspeed>=0.13.5 deepspeed/ops/op_builder/builder.py",),
    "The detected CUDA version ({}) mismatches the version that was used to compile PyTorch": (
        "torch>=2.4.1 torch/utils/cpp_extension.py",
    ),
    "Failed to find C compiler. Please specify via CC": ("triton>=3.0.0 triton/runtime/build.py",),
    "libcuda.so cannot found!": ("triton>=3.0.0 triton/backends/nvidia/driver.py",),
    "Ninja is required to load C++ extensions": ("torch>=2.4.1 torch/utils/cpp_extension.py",),
    "Unable to JIT load the {w} op due to": ("deepspeed>=0.13.5 deepspeed/ops/op_builder/builder.py",),
    "FlashAttention2 has been toggled on, but it cannot be used due to the following error": (
        "transformers<5.4.0 transformers/modeling_utils.py",
    ),
    "FlashAttention only supports Ampere GPUs or newer": ("torch>=2.4.1 torch/lib/libtorch_cuda.so",),
    "The NVIDIA driver on your system is too old (found version {n}": ("torch>=2.4.1 torch/lib/libc10_cuda.so",),
    "CUDA driver version is insufficient for CUDA runtime version": ("nvidia-nccl-cu12>=2.20.5 nvidia/nccl/lib/libnccl.so.2",),
    "the provided PTX was compiled with an unsupported toolchain": ("nvidia-nccl-cu12>=2.20.5 nvidia/nccl/lib/libnccl.so.2",),
    "system has unsupported display driver / cuda driver combination": (
        "nvidia-nccl-cu12>=2.20.5 nvidia/nccl/lib/libnccl.so.2",
    ),
    "system not yet initialized": ("nvidia-nccl-cu12>=2.20.5 nvidia/nccl/lib/libnccl.so.2",),
    "Found no NVIDIA driver on your system": ("torch>=2.4.1 torch/lib/libc10_cuda.so",),
    "No CUDA GPUs are available": ("torch>=2.4.1 torch/lib/libc10_cuda.so",),
    "Distributed package doesn't have NCCL built in": ("torch>=2.4.1 torch/distributed/distributed_c10d.py",),
    "no kernel image is available for execution on the device": ("nvidia-nccl-cu12>=2.20.5 nvidia/nccl/lib/libnccl.so.2",),
    "with CUDA capability sm_{w} is not compatible with the current PyTorch installation": (
        "torch>=2.4.1 torch/cuda/__init__.py",
    ),
    "This might be caused by insufficient shared memory (shm)": ("torch>=2.4.1 torch/lib/libtorch_python.so",),
    "unable to allocate shared memory(shm) for file": ("torch>=2.10.0 torch/lib/libtorch_cpu.so",),
    "received 0 items of ancdata": ("torch>=2.4.1 torch/utils/data/dataloader.py",),
    "Too many open files. Communication with the workers is no longer possible": (
        "torch>=2.4.1 torch/utils/data/dataloader.py",
    ),
    "CUDA out of memory. Tried to allocate": ("torch>=2.4.1 torch/lib/libc10_cuda.so",),
    "Failed to CUDA calloc": ("nvidia-nccl-cu12>=2.20.5 nvidia/nccl/lib/libnccl.so.2",),
    "Failed to CUDA malloc": ("nvidia-nccl-cu12>=2.20.5 nvidia/nccl/lib/libnccl.so.2",),
    "DefaultCPUAllocator: can't allocate memory": ("accelerate>=0.34.2 accelerate/utils/memory.py",),
    "Unable to allocate {} for an array with shape": ("numpy>=2.0.0 numpy/_core/_exceptions.py",),
    "Cannot re-initialize CUDA in forked subprocess": ("torch>=2.4.1 torch/cuda/__init__.py",),
    "Duplicate GPU detected": ("nvidia-nccl-cu12<2.30.7 nvidia/nccl/lib/libnccl.so.2",),
    "INTERNAL ASSERT FAILED": ("torch>=2.4.1 torch/lib/libc10.so",),
    "uncorrectable ECC error encountered": ("nvidia-nccl-cu12>=2.20.5 nvidia/nccl/lib/libnccl.so.2",),
    "uncorrectable NVLink error detected": ("nvidia-nccl-cu12>=2.20.5 nvidia/nccl/lib/libnccl.so.2",),
    "an illegal memory access was encountered": ("torch>=2.4.1 torch/sparse/_triton_ops.py",),
    "cuDNN version incompatibility: PyTorch was compiled against": ("torch>=2.4.1 torch/backends/cudnn/__init__.py",),
    "The installed version of bitsandbytes was compiled without GPU support": (
        "bitsandbytes<0.47.0 bitsandbytes/cextension.py",
    ),
    "Attempted to use bitsandbytes native library functionality but it's not available": (
        "bitsandbytes>=0.46.0 bitsandbytes/cextension.py",
    ),
    "Using `bitsandbytes` {w}-bit quantization requires": (
        "transformers>=4.45.2 transformers/quantizers/quantizer_bnb_4bit.py",
    ),
    "Using `low_cpu_mem_usage=True`{} requires Accelerate": ("transformers<4.51.0 transformers/modeling_utils.py",),
    "requires `accelerate>=": ("transformers>=4.45.2 transformers/training_args.py",),
    "is required for a normal functioning of this module, but found": ("transformers>=4.45.2 transformers/utils/versions.py",),
    "A module that was compiled using NumPy 1.x cannot be run in NumPy": ("numpy>=2.0.0 numpy/core/_multiarray_umath.py",),
    "You are trying to access a gated repo": ("transformers>=4.45.2 transformers/utils/hub.py",),
    "Access to model {} is restricted": ("huggingface-hub>=0.25.2 huggingface_hub/errors.py",),
    "GatedRepoError": ("transformers>=4.45.2 transformers/utils/hub.py",),
    "Cannot access gated repo for url": ("huggingface-hub>=0.25.2 huggingface_hub/errors.py",),
    "is not a local folder and is not a valid model identifier listed on": ("transformers>=4.45.2 transformers/utils/hub.py",),
    "RepositoryNotFoundError: {n} Client Error": ("huggingface-hub>=0.25.2 huggingface_hub/errors.py",),
    "RepositoryNotFoundError: 40{n}": ("huggingface-hub>=0.25.2 huggingface_hub/errors.py",),
    "Repo id must be in the form 'repo_name' or 'namespace/repo_name'": (
        "huggingface-hub>=0.25.2 huggingface_hub/utils/_validators.py",
    ),
    "Repo id must use alphanumeric chars": ("huggingface-hub>=0.25.2 huggingface_hub/utils/_validators.py",),
    "Incorrect path_or_model_id": ("transformers<4.50.0 transformers/utils/hub.py",),
    "OfflineModeIsEnabled": ("transformers>=4.45.2 transformers/utils/hub.py",),
    "outgoing traffic has been disabled. To enable repo look-ups and downloads online": (
        "huggingface-hub>=0.25.2 huggingface_hub/_snapshot_download.py",
    ),
    "Cannot find the requested files in the disk cache and outgoing traffic has been disabled": (
        "huggingface-hub>=0.25.2 huggingface_hub/errors.py",
    ),
    "ProxyError(": ("requests>=2.32.5 requests/adapters.py",),
    "Tunnel connection failed: {n}": ("urllib3>=2.2.3 urllib3/connection.py",),
    "429 Too Many Requests": ("huggingface-hub>=1.2.0 huggingface_hub/utils/_http.py",),
    "We couldn't connect to '": ("transformers>=4.45.2 transformers/utils/hub.py",),
    "LocalEntryNotFoundError": ("transformers>=4.45.2 transformers/utils/hub.py",),
    "Max retries exceeded with url": ("urllib3>=2.0.7 urllib3/exceptions.py",),
    "does not appear to have a file named": ("transformers>=4.45.2 transformers/utils/hub.py",),
    "EntryNotFoundError: 404 Client Error": ("huggingface-hub>=0.25.2 huggingface_hub/errors.py",),
    "RevisionNotFoundError": ("transformers>=4.45.2 transformers/utils/hub.py",),
    "op.preamble.length <= op.nbytes": ("torch>=2.4.1 torch/lib/libtorch_cpu.so",),
    "Detected mismatch between collectives on ranks": ("torch>=2.4.1 torch/lib/libtorch_cpu.so",),
    "watchdog thread terminated with exception": ("torch>=2.4.1 torch/lib/libtorch_cuda.so",),
    "peer access is not supported between these two devices": ("nvidia-nccl-cu12>=2.20.5 nvidia/nccl/lib/libnccl.so.2",),
    "peer mapping resources exhausted": ("nvidia-nccl-cu12>=2.20.5 nvidia/nccl/lib/libnccl.so.2",),
    "Using RTX 40{} doesn't support faster communication broadband via P2P or IB": ("accelerate>=0.34.2 accelerate/state.py",),
    "ProcessGroupNCCL's watchdog got stuck for": ("torch>=2.4.1 torch/lib/libtorch_cuda.so",),
    "Duplicate GPU detected : rank {n} and rank {n} both on CUDA device": (
        "nvidia-nccl-cu12<2.30.7 nvidia/nccl/lib/libnccl.so.2",
    ),
    "Mismatched NCCL version detected : rank {n} version {n} rank {n} version {n}": (
        "nvidia-nccl-cu12>=2.23.4 nvidia/nccl/lib/libnccl.so.2",
    ),
    "Bootstrap : no socket interface found": ("nvidia-nccl-cu12>=2.20.5 nvidia/nccl/lib/libnccl.so.2",),
    "NET/Socket : No usable listening interface found": ("nvidia-nccl-cu12>=2.20.5 nvidia/nccl/lib/libnccl.so.2",),
    "socketStartConnect: Connect to {} failed : ": ("nvidia-nccl-cu12<2.25.1 nvidia/nccl/lib/libnccl.so.2",),
    "socketPollConnect: {} returned": ("nvidia-nccl-cu12<2.25.1 nvidia/nccl/lib/libnccl.so.2",),
    "ncclSystemError: System call (e.g. socket, malloc) or external library call failed": (
        "torch>=2.4.1 torch/lib/libtorch_cuda.so",
    ),
    "Call to ibv_reg_mr": ("nvidia-nccl-cu12>=2.20.5 nvidia/nccl/lib/libnccl.so.2",),
    "Call to ibv_create_qp failed": ("nvidia-nccl-cu12>=2.20.5 nvidia/nccl/lib/libnccl.so.2",),
    "Call to ibv_modify_qp failed": ("nvidia-nccl-cu12>=2.20.5 nvidia/nccl/lib/libnccl.so.2",),
    "Got completion from peer {} with status=": ("nvidia-nccl-cu12>=2.20.5 nvidia/nccl/lib/libnccl.so.2",),
    "Got completion from peer {} with error": ("nvidia-nccl-cu12>=2.20.5 nvidia/nccl/lib/libnccl.so.2",),
    "output tensor size must be equal to world_size times input tensor size": ("torch>=2.4.1 torch/lib/libtorch_cuda.so",),
    "Unable to find address for": ("torch>=2.4.1 torch/lib/libtorch_cpu.so",),
    "Unable to find interface for: ": ("torch>=2.4.1 torch/lib/libtorch_cpu.so",),
    "Unable to resolve hostname to a (local) address": ("torch>=2.4.1 torch/lib/libtorch_cpu.so",),
    "Gloo connectFullMesh failed with": ("torch>=2.4.1 torch/lib/libtorch_cpu.so",),
    "Timed out waiting {n}ms for recv operation to complete": ("torch>=2.4.1 torch/lib/libtorch_cpu.so",),
    "Timed out waiting {n}ms for send operation to complete": ("torch>=2.4.1 torch/lib/libtorch_cpu.so",),
    "failed to pass monitoredBarrier in": ("torch>=2.4.1 torch/lib/libtorch_cpu.so",),
    "The server socket has failed to listen on any local network address": ("torch>=2.4.1 torch/lib/libtorch_cpu.so",),
    "Timed out after {n} seconds waiting for clients. {n}/{n} clients joined": ("torch>=2.4.1 torch/lib/libtorch_cpu.so",),
    "The client socket has timed out after {} while trying to connect to": ("torch>=2.4.1 torch/lib/libtorch_cpu.so",),
    "RendezvousTimeoutError": ("torch>=2.4.1 torch/distributed/elastic/rendezvous/api.py",),
    "The client socket has failed to connect to any network address of": ("torch>=2.4.1 torch/lib/libtorch_cpu.so",),
    "environment variable {w} expected, but not set": ("torch>=2.4.1 torch/distributed/rendezvous.py",),
    "Default process group has not been initialized, please make sure to call init_process_group": (
        "torch>=2.4.1 torch/distributed/distributed_c10d.py",
    ),
    "Connection closed by peer": ("torch>=2.4.1 torch/lib/libtorch_cpu.so",),
    "remote process exited or there was a network error": ("nvidia-nccl-cu12>=2.20.5 nvidia/nccl/lib/libnccl.so.2",),
    "recvValue failed on": ("torch>=2.6.0 torch/lib/libtorch_cpu.so",),
    "sendBytes failed on": ("torch>=2.6.0 torch/lib/libtorch_cpu.so",),
    "socketProgress: Connection closed by remote peer": ("nvidia-nccl-cu12>=2.20.5 nvidia/nccl/lib/libnccl.so.2",),
    "NCCL communicator was aborted on rank": ("torch>=2.4.1 torch/lib/libtorch_cuda.so",),
    "Failed to recv, got 0 bytes. Connection was likely closed": ("torch>=2.8.0 torch/lib/libtorch_cpu.so",),
    "Root Cause (first observed failure):": ("torch>=2.4.1 torch/distributed/elastic/multiprocessing/errors/__init__.py",),
    "exits with return code = {n}": ("deepspeed>=0.13.5 deepspeed/launcher/launch.py",),
    "The checkpoint being loaded used a DP world size of": ("deepspeed>=0.13.5 deepspeed/runtime/engine.py",),
    "'weight' must be 2-D": ("torch>=2.4.1 torch/lib/libtorch_cpu.so",),
    "still have inflight params": ("deepspeed<0.15.3 deepspeed/runtime/zero/partitioned_param_coordinator.py",),
    "cannot identify image file": ("pillow>=10.4.0 PIL/Image.py",),
    "Image size ({n} pixels) exceeds limit of {n} pixels, could be decompression bomb DOS attack": (
        "pillow>=10.4.0 PIL/Image.py",
    ),
    "image file is truncated ({n} bytes not processed)": ("pillow>=10.4.0 PIL/ImageFile.py",),
    "FlashAttention only support fp16 and bf16 data type": (
        "flash-attn>=2.6.3 csrc/flash_attn/flash_api.cpp",
        "torch>=2.4.1 torch/lib/libtorch_cuda.so",
    ),
    "CUDA-capable device(s) is/are busy or unavailable": (
        "nvidia-cuda-runtime-cu12>=12.1.105 nvidia/cuda_runtime/lib/libcudart.so.12",
    ),
    "CUDNN_STATUS_SUBLIBRARY_VERSION_MISMATCH": ("nvidia-cudnn-cu12>=9.1.0.70 nvidia/cudnn/lib/libcudnn_graph.so.9",),
    "CUDNN_STATUS_SUBLIBRARY_LOADING_FAILED": ("nvidia-cudnn-cu12>=9.5.1.17 nvidia/cudnn/lib/libcudnn_graph.so.9",),
    "CUDNN_STATUS_NOT_INITIALIZED": ("nvidia-cudnn-cu12>=9.1.0.70 nvidia/cudnn/lib/libcudnn_graph.so.9",),
    "CUDA Setup failed despite CUDA being available": ("bitsandbytes<0.46.0 bitsandbytes/cextension.py",),
    "Configured CUDA binary not found at": ("bitsandbytes>=0.46.0,<0.47.0 bitsandbytes/cextension.py",),
    "Cannot find the requested files in the cached path and outgoing traffic has been disabled": (
        "huggingface-hub<0.26.0 huggingface_hub/file_download.py",
    ),
    "Tensors must have identical type": ("torch>=2.4.1 torch/lib/libtorch_cuda.so",),
    "entry, therefore it's not possible to automatically fill out the following `auto` entries": (
        "transformers>=4.45.2 transformers/integrations/deepspeed.py",
    ),
    "Cannot flatten integer dtype tensors": ("torch>=2.4.1 torch/distributed/fsdp/_flat_param.py",),
    "`.to` is not supported for": ("transformers<5.0.0 transformers/modeling_utils.py",),
    "exited unexpectedly": ("torch>=2.4.1 torch/utils/data/dataloader.py",),
    "The model did not return a loss from the inputs, only the following keys": (
        "transformers>=4.45.2 transformers/trainer.py",
    ),
    "must be evenly divisible by the number of generations per prompt": (
        "trl>=0.15.0,<0.20.0 trl/trainer/grpo_trainer.py trl/trainer/grpo_config.py",
    ),
    "must be divisible by num_generations": ("trl>=0.20.0 trl/trainer/grpo_trainer.py trl/trainer/grpo_config.py",),
    "CUDA unknown error - this may be due to an incorrectly set up environment": ("torch>=2.4.1 torch/lib/libc10_cuda.so",),
    "was not reachable via ssh. If you are running with a single node": ("deepspeed>=0.13.5 deepspeed/launcher/runner.py",),
    "The connection to the C10d store has failed": (
        "torch>=2.4.1 torch/distributed/elastic/rendezvous/c10d_rendezvous_backend.py",
    ),
    "Could not find the transformer layer class": ("accelerate>=0.34.2 accelerate/utils/dataclasses.py",),
    "Must flatten tensors with uniform `requires_grad` when `use_orig_params=False`": (
        "torch>=2.4.1 torch/distributed/fsdp/_flat_param.py",
    ),
    "Tried to launch distributed communication on port `": ("accelerate>=0.34.2 accelerate/utils/launch.py",),
    "Multimodal data was passed (via `image_grid_thw` or `video_grid_thw`) but `mm_token_type_ids` is missing": (
        "transformers>=5.4.0 transformers/models/qwen3_vl/modeling_qwen3_vl.py",
    ),
    "The following `model_kwargs` are not used by the model: ": ("transformers>=4.45.2 transformers/generation/utils.py",),
    "Your setup doesn't support bf16/gpu": ("transformers>=4.45.2 transformers/training_args.py",),
    "The specified `eos_token` ('{}') is not found in the vocabulary of the given `processing_class`": (
        "trl>=0.17.0 trl/trainer/sft_trainer.py",
    ),
    "The specified `pad_token` ('{}') is not found in the vocabulary of the given `processing_class`": (
        "trl>=0.16.1 trl/trainer/sft_trainer.py",
    ),
    "rewards.view({}self.num_generations)": ("trl>=0.14.0,<0.26.0 trl/trainer/grpo_trainer.py",),
    "rewards.view(-1, num_generations)": ("trl>=0.26.0 trl/trainer/grpo_trainer.py",),
    "Processor was not found, please check and update your": ("llamafactory>=0.9.2 llamafactory/data/mm_plugin.py",),
    "This model does not support {w} input. Please check whether the correct `template` is used": (
        "llamafactory>=0.9.0 llamafactory/data/mm_plugin.py",
    ),
    "api_key not configured (no-tty). call ": ("wandb<0.23.1 wandb/sdk/wandb_login.py",),
    "The shape of the mask {} at index {n} does not match the shape of the indexed tensor": (
        "torch>=2.4.1 torch/_meta_registrations.py",
    ),
    "Attempted to load weight ({0}) into parameter": ("vllm>=0.7.3 vllm/model_executor/model_loader/weight_utils.py",),
    "No available memory for the cache blocks. Try increasing `gpu_memory_utilization`": (
        "vllm>=0.7.3 vllm/v1/core/kv_cache_utils.py vllm/v1/core/kv_cache_planning.py vllm/worker/worker.py",
    ),
    "is less than desired GPU memory utilization": ("vllm>=0.9.2 vllm/v1/worker/gpu_worker.py vllm/v1/worker/utils.py",),
    "is larger than the maximum number of tokens that can be stored in KV cache": ("vllm<0.11 vllm/worker/worker.py",),
    "To serve at least one request with the models's max seq len": ("vllm>=0.7.3,<0.26.0 vllm/v1/core/kv_cache_utils.py",),
    "To serve at least one request with the model's max seq len": (
        "vllm>=0.26.0 vllm/v1/core/kv_cache_planning.py vllm/v1/core/kv_cache_utils.py",
    ),
    "Expandable segments are not compatible with memory pool": ("vllm>=0.8.5,<0.20.2 vllm/device_allocator/cumem.py",),
    "is longer than the maximum model length of": (
        "vllm>=0.7.3 vllm/v1/engine/processor.py vllm/v1/engine/input_processor.py",
    ),
    "Engine core initialization failed. See root cause above": (
        "vllm>=0.8.5 vllm/v1/engine/utils.py vllm/v1/engine/core_client.py",
    ),
    "The number of images does not match the number of {} tokens in": ("llamafactory>=0.9.0 llamafactory/data/mm_plugin.py",),
    "The number of videos does not match the number of {} tokens in": ("llamafactory>=0.9.0 llamafactory/data/mm_plugin.py",),
    "Unable to handle EOF because": ("decord>=0.6.0 decord/libdecord.so",),
    "nframes should in interval [": ("qwen-vl-utils>=0.0.4 qwen_vl_utils/vision_process.py",),
    "frames per second but no video metadata was provided which is required when sampling": (
        "transformers>=4.53.0 transformers/video_processing_utils.py transformers/models/qwen3_vl/video_processing_qwen3_vl.py",
    ),
    "Converting from SentencePiece and Tiktoken failed": (
        "transformers>=4.51.0,<5.24.0 transformers/convert_slow_tokenizer.py",
    ),
    "Converting from Tiktoken failed": ("transformers<4.51.0 transformers/convert_slow_tokenizer.py",),
    "ROPE_INIT_FUNCTIONS[self.rope_type]": ("transformers>=4.45.2 transformers/models/llama/modeling_llama.py",),
    'self.rope_scaling["mrope_section"]': ("transformers<5.0.0 transformers/models/qwen2_vl/modeling_qwen2_vl.py",),
    "assert not param.ds_active_sub_modules, param.ds_summary()": (
        "deepspeed>=0.13.5,<0.18.5 deepspeed/runtime/zero/partition_parameters.py",
    ),
    "Cannot free a ZeRO-3 parameter while it is still active in submodules": (
        "deepspeed>=0.18.5 deepspeed/runtime/zero/partition_parameters.py",
    ),
    "is not divisible by SP size": ("deepspeed>=0.17.0 deepspeed/runtime/sequence_parallel/ulysses_sp.py",),
    "must be divisible by the sequence parallel size": ("deepspeed>=0.14.5 deepspeed/sequence/layer.py",),
    "requires the SentencePiece library but it was not found in your environment": (
        "transformers>=4.45.2 transformers/utils/import_utils.py",
    ),
    "requires the protobuf library but it was not found in your environment": (
        "transformers>=4.45.2 transformers/utils/import_utils.py",
    ),
    "your generated code is out of date and must be regenerated with protoc": (
        "protobuf>=4.21.0 google/_upb/_message.abi3.so",
    ),
    "Hardware limit: {n}. Reducing block sizes or `num_stages` may help": ("triton>=3.0.0 triton/runtime/errors.py",),
    "Internal Triton PTX codegen error": ("triton>=3.0.0 triton/backends/nvidia/compiler.py",),
    "PTXAS error: ": ("triton>=3.3.0 triton/runtime/errors.py",),
    "Could not load libtorchcodec": (
        "torchcodec>=0.1.0 torchcodec/_core/ops.py torchcodec/decoders/_core/video_decoder_ops.py torchcodec/_internally_replaced_utils.py",
    ),
    "Data processing error: ": ("hf-xet<1.5.0 hf_xet/hf_xet.abi3.so",),
    "CAS service error : ": ("hf-xet<1.4.1 hf_xet/hf_xet.abi3.so",),
    "GET was unable to find an engine to execute this computation": ("torch>=2.4.1 torch/lib/libtorch_cuda.so",),
    "The vLLM server can't be reached at": ("trl>=0.16.0 trl/extras/vllm_client.py trl/generation/vllm_client.py",),
    "vLLM is not available and `use_vllm` is set to True": (
        "trl>=0.14.0 trl/trainer/grpo_trainer.py trl/generation/vllm_generation.py",
    ),
    "You can't use same `Accelerator()` instance with multiple models when using DeepSpeed": (
        "accelerate>=0.34.2 accelerate/accelerator.py",
    ),
    "`accelerate.prepare()` requires you to pass at least one of training or evaluation dataloaders": (
        "accelerate>=0.34.2 accelerate/accelerator.py",
    ),
    "DistributedDataParallel device_ids and output_device arguments only work with single-device/multiple-device GPU modules or CPU modules": (
        "torch>=2.4.1 torch/nn/parallel/distributed.py",
    ),
    "if v not in ALL_PARALLEL_STYLES:": (
        "transformers>=4.52.2,<5.16.0 transformers/modeling_utils.py transformers/integrations/tensor_parallel.py",
    ),
    "was a deprecated alias for the builtin": ("numpy>=1.26.4 numpy/__init__.py",),
    "was removed in the NumPy 2.0 release": ("numpy>=2.0.0 numpy/__init__.py",),
    "We need an `offload_dir` to dispatch this model according to this `device_map`": (
        "accelerate>=0.34.2 accelerate/big_modeling.py",
    ),
    "The current `device_map` had weights offloaded to the disk. Please provide an `offload_folder`": (
        "transformers<5.0.0 transformers/modeling_utils.py",
    ),
}

_COMPOSED: tuple[tuple[dict[str, tuple[str, ...]], tuple[str, ...]], ...] = (
    (
        {"torch>=2.4.1 torch/lib/libtorch_cuda.so": ("CUDA error: ", "CUBLAS_STATUS_NOT_INITIALIZED", " when calling ")},
        ("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling",),
    ),
    (
        {"torch>=2.4.1 torch/lib/libtorch_cuda.so": ("CUDA error: ", "CUBLAS_STATUS_EXECUTION_FAILED", " when calling ")},
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling",),
    ),
    (
        {"torch>=2.4.1 torch/lib/libtorch_cuda.so": ("CUDA error: ", "CUBLAS_STATUS_INTERNAL_ERROR", " when calling ")},
        ("CUDA error: CUBLAS_STATUS_INTERNAL_ERROR when calling",),
    ),
    (
        {"vllm>=0.7.3 csrc/cumem_allocator.cpp": ("CUDA Error: %s at %s:%d",)},
        ("CUDA Error: out of memory at {w}cumem_allocator.cpp",),
    ),
    (
        {"deepspeed>=0.13.5 deepspeed/launcher/launch.py": ("exits with return code = ",)},
        (
            "exits with return code = -4{/}",
            "exits with return code = -6{/}",
            "exits with return code = -7{/}",
            "exits with return code = -9{/}",
            "exits with return code = -11{/}",
            "exits with return code = -{n}",
        ),
    ),
    (
        {"torch>=2.4.1 torch/distributed/elastic/multiprocessing/errors/__init__.py": ("Signal ", " received by PID ")},
        (
            "Signal 4 (SIGILL) received by PID",
            "Signal 6 (SIGABRT) received by PID",
            "Signal 7 (SIGBUS) received by PID",
            "Signal 9 (SIGKILL) received by PID",
            "Signal 11 (SIGSEGV) received by PID",
        ),
    ),
    (
        {"torch>=2.4.1 torch/distributed/elastic/multiprocessing/api.py": ("failed (exitcode: ",)},
        (
            "failed (exitcode: -4)",
            "failed (exitcode: -6)",
            "failed (exitcode: -7)",
            "failed (exitcode: -9)",
            "failed (exitcode: -11)",
        ),
    ),
    (
        {"torch>=2.4.1 torch/distributed/elastic/multiprocessing/api.py": ("(exitcode: ", ") local_rank")},
        ("(exitcode: -9) local_rank",),
    ),
    (
        {
            "torch>=2.4.1 torch/distributed/elastic/multiprocessing/errors/__init__.py": (
                "exitcode  : ",
                "Signal ",
                " received by PID ",
            )
        },
        ("exitcode  : -9 {}Signal 9 (SIGKILL) received by PID",),
    ),
    (
        {"torch>=2.4.1 torch/distributed/elastic/multiprocessing/errors/__init__.py": ("ChildFailedError",)},
        ("torch.distributed.elastic.multiprocessing.errors.ChildFailedError",),
    ),
    (
        {"transformers>=5.0.0 transformers/utils/loading_report.py": ("MISMATCH", "ckpt:", "vs model:")},
        (
            "MISMATCH | {} ckpt: {shape} vs model:{0}",
            "MISMATCH | {} ckpt: {0} vs model:{shape}",
            "MISMATCH | {} ckpt: {shape} vs model:{shape}",
        ),
    ),
    ({"transformers>=5.0.0 transformers/utils/loading_report.py": ("MISSING",)}, ("| MISSING", "| MISSING |")),
    ({"transformers>=5.0.0 transformers/utils/loading_report.py": ("UNEXPECTED",)}, ("| UNEXPECTED", "| UNEXPECTED |")),
    (
        {"torch>=2.4.1 torch/_prims_common/__init__.py": ("Tensor on device ", " is not on the expected device ")},
        ("Tensor on device meta is not on the expected device",),
    ),
    (
        {"torch>=2.4.1 torch/lib/libtorch_cpu.so": (" is out of bounds for dimension 0 with size ",)},
        (
            "IndexError: index {n} is out of bounds for dimension 0 with size 0",
            "IndexError: index {n} is out of bounds for dimension 0 with size {n}",
        ),
    ),
    (
        {
            "torch>=2.4.1 torch/nn/modules/module.py": (
                "size mismatch for ",
                ": copying a param with shape ",
                " from checkpoint",
            )
        },
        (
            "size mismatch for {w}embed_tokens.weight: copying a param with shape {shape} from checkpoint, {} is {shape}",
            "size mismatch for {w}lm_head.weight: copying a param with shape {shape} from checkpoint, {} is {shape}",
            "size mismatch for lm_head.weight: copying a param with shape {shape} from checkpoint, {} is {shape}",
            "size mismatch for {w}embed_tokens.modules_to_save{w}weight: copying a param with shape {shape} from checkpoint",
            "size mismatch for {w}lm_head.modules_to_save{w}weight: copying a param with shape {shape} from checkpoint",
            "size mismatch for {w}wte.weight: copying a param with shape {shape} from checkpoint, {} is {shape}",
            "size mismatch for base_model.model.{}: copying a param with shape {0} from checkpoint",
            "size mismatch for {w}.lora_A.{}: copying a param with shape {0} from checkpoint",
            "size mismatch for {w}.lora_B.{}: copying a param with shape {0} from checkpoint",
            "size mismatch for base_model.model.{}: copying a param with shape {shape} from checkpoint, the shape in current model is {0}",
            "size mismatch for base_model.model.{}: copying a param with shape {shape} from checkpoint, the shape in current model is {shape}",
            "size mismatch for {w}.lora_A.{}: copying a param with shape {shape} from checkpoint, {} is {shape}",
            "size mismatch for {}.mlp.experts.gate_up_proj: copying a param with shape {shape} from checkpoint, the shape in current model is {shape}",
        ),
    ),
    (
        {
            "transformers>=4.45.2 transformers/models/auto/configuration_auto.py": (
                "Unrecognized model in ",
                ". Should have a `model_type` key",
            )
        },
        (
            "Unrecognized model in {w}lora{}. Should have a `model_type` key",
            "Unrecognized model in {w}adapter{}. Should have a `model_type` key",
            "Unrecognized model in {w}LoRA{}. Should have a `model_type` key",
        ),
    ),
    (
        {
            "transformers>=4.45.2 transformers/models/auto/configuration_auto.py": (
                "The checkpoint you are trying to load has model type `",
            )
        },
        (
            "The checkpoint you are trying to load has model type `llava_",
            "The checkpoint you are trying to load has model type `vila",
            "The checkpoint you are trying to load has model type `bunny-",
            "The checkpoint you are trying to load has model type `TinyLlava",
            "The checkpoint you are trying to load has model type `tinyllava",
            "The checkpoint you are trying to load has model type `mplug_owl",
        ),
    ),
    (
        {"transformers>=4.45.2 transformers/utils/hub.py": (" does not appear to have a file named ",)},
        (
            "does not appear to have a file named config.json",
            "does not appear to have a file named preprocessor_config.json",
            "does not appear to have a file named model-0",
            "does not appear to have a file named pytorch_model-0",
        ),
    ),
    (
        {"transformers>=4.45.2 transformers/modeling_utils.py": (" does not appear to have a file named ",)},
        ("does not appear to have a file named model.safetensors",),
    ),
    (
        {"transformers>=4.45.2 transformers/modeling_utils.py": ("no file named ", " found in directory ")},
        (
            "no file named {} found in directory {w}lora",
            "no file named {}pytorch_model.bin{} found in directory",
            "no file named {}model.safetensors{} found in directory",
            "no file named {} found in directory {w}global_step",
        ),
    ),
    ({"peft>=0.13.2 peft/config.py": ("Can't find '", "' at '")}, ("Can't find 'adapter_config.json' at",)),
    (
        {
            "peft>=0.13.2 peft/utils/save_and_load.py": (
                "Can't find weights for ",
                " or in the Hugging Face Hub. Please check that the file ",
            )
        },
        ("Can't find weights for {} in {} or in the Hugging Face Hub. Please check that the file adapter_model",),
    ),
    (
        {"peft>=0.14.0 peft/peft_model.py": ("Found missing adapter keys while loading the checkpoint: ",)},
        ("Found missing adapter keys while loading the checkpoint: [",),
    ),
    (
        {"torch>=2.4.1 torch/lib/libtorch_cpu.so": ("element ", " does not require grad and does not have a grad_fn")},
        ("element 0 of tensors does not require grad and does not have a grad_fn",),
    ),
    (
        {"transformers>=4.45.2 transformers/utils/import_utils.py": ("module ", " has no attribute ")},
        (
            "module transformers has no attribute",
            "module transformers.{w} has no attribute",
            "AttributeError: module transformers has no attribute {w}ImageProcessor",
            "module transformers has no attribute {w}ImageProcessor",
            "module transformers has no attribute {w}VideoProcessor",
        ),
    ),
    (
        {
            "transformers>=4.45.2 transformers/models/auto/tokenization_auto.py": (
                "Tokenizer class ",
                " is not currently imported",
            )
        },
        ("ValueError: Tokenizer class {w} is not currently imported",),
    ),
    (
        {
            "safetensors>=0.5.0,<0.6.1 safetensors/_safetensors_rust.abi3.so": (
                "Error while deserializing header: ",
                "InvalidHeaderLength",
            )
        },
        ("Error while deserializing header: InvalidHeaderLength",),
    ),
    (
        {
            "safetensors>=0.5.0,<0.6.1 safetensors/_safetensors_rust.abi3.so": (
                "Error while deserializing header: ",
                "HeaderTooSmall",
            )
        },
        ("Error while deserializing header: HeaderTooSmall",),
    ),
    (
        {
            "safetensors>=0.5.0,<0.6.1 safetensors/_safetensors_rust.abi3.so": (
                "Error while deserializing header: ",
                "HeaderTooLarge",
            )
        },
        ("Error while deserializing header: HeaderTooLarge",),
    ),
    (
        {
            "safetensors>=0.5.0,<0.6.1 safetensors/_safetensors_rust.abi3.so": (
                "Error while deserializing header: ",
                "InvalidHeaderDeserialization",
            )
        },
        ("Error while deserializing header: InvalidHeaderDeserialization",),
    ),
    (
        {
            "safetensors>=0.5.0,<0.6.1 safetensors/_safetensors_rust.abi3.so": (
                "Error while deserializing header: ",
                "InvalidHeaderStart",
            )
        },
        ("Error while deserializing header: InvalidHeaderStart",),
    ),
    (
        {
            "safetensors>=0.5.0,<0.6.1 safetensors/_safetensors_rust.abi3.so": (
                "Error while deserializing header: ",
                "InvalidOffset",
            )
        },
        ("Error while deserializing header: InvalidOffset",),
    ),
    (
        {
            "safetensors>=0.5.0,<0.6.1 safetensors/_safetensors_rust.abi3.so": (
                "Error while deserializing header: ",
                "TensorInvalidInfo",
            )
        },
        ("Error while deserializing header: TensorInvalidInfo",),
    ),
    (
        {
            "safetensors>=0.5.0,<0.6.1 safetensors/_safetensors_rust.abi3.so": (
                "Error while deserializing header: ",
                "ValidationOverflow",
            )
        },
        ("Error while deserializing header: ValidationOverflow",),
    ),
    (
        {
            "safetensors>=0.6.1 safetensors/_safetensors_rust.abi3.so": (
                "Error while deserializing header: ",
                "incomplete metadata, file not fully covered",
            )
        },
        ("Error while deserializing header: incomplete metadata, file not fully covered",),
    ),
    (
        {
            "safetensors>=0.6.1 safetensors/_safetensors_rust.abi3.so": (
                "Error while deserializing header: ",
                "invalid header length",
            )
        },
        ("Error while deserializing header: invalid header length",),
    ),
    (
        {
            "safetensors>=0.6.1 safetensors/_safetensors_rust.abi3.so": (
                "Error while deserializing header: ",
                "header too small",
            )
        },
        ("Error while deserializing header: header too small",),
    ),
    (
        {
            "safetensors>=0.6.1 safetensors/_safetensors_rust.abi3.so": (
                "Error while deserializing header: ",
                "header too large",
            )
        },
        ("Error while deserializing header: header too large",),
    ),
    (
        {
            "safetensors>=0.6.1 safetensors/_safetensors_rust.abi3.so": (
                "Error while deserializing header: ",
                "invalid JSON in header",
            )
        },
        ("Error while deserializing header: invalid JSON in header",),
    ),
    (
        {
            "safetensors>=0.6.1 safetensors/_safetensors_rust.abi3.so": (
                "Error while deserializing header: ",
                "invalid UTF-8 in header",
            )
        },
        ("Error while deserializing header: invalid UTF-8 in header",),
    ),
    (
        {"safetensors>=0.6.1 safetensors/_safetensors_rust.abi3.so": ("Error while deserializing header: ", "invalid offset")},
        ("Error while deserializing header: invalid offset",),
    ),
    (
        {"safetensors>=0.6.1 safetensors/_safetensors_rust.abi3.so": ("Error while deserializing header: ", "invalid shape")},
        ("Error while deserializing header: invalid shape",),
    ),
    (
        {
            "safetensors>=0.5.0,<0.6.1 safetensors/_safetensors_rust.abi3.so": (
                "Error while deserializing header: ",
                "InvalidHeader",
            )
        },
        ("Error while deserializing header: InvalidHeader{}",),
    ),
    (
        {"torch>=2.4.1 torch/lib/libtorch_cpu.so": ("PytorchStreamReader failed ",)},
        ("PytorchStreamReader failed reading zip archive",),
    ),
    (
        {"torch>=2.4.1 torch/lib/libtorch_cpu.so": ("PytorchStreamReader failed ", "failed finding central directory")},
        ("PytorchStreamReader failed finding central directory",),
    ),
    (
        {"torch>=2.4.1 torch/lib/libtorch_cpu.so": ("PytorchStreamWriter failed ",)},
        ("PytorchStreamWriter failed writing file",),
    ),
    (
        {
            "torch>=2.4.1 torch/lib/libtorch_python.so": (
                "unexpected EOF, expected ",
                " more bytes. The file might be corrupted",
            )
        },
        ("unexpected EOF, expected {n} more bytes. The file might be corrupted",),
    ),
    (
        {"safetensors>=0.5.0 safetensors/_safetensors_rust.abi3.so": ("No such file or directory: ",)},
        ("FileNotFoundError: No such file or directory: {w}.safetensors", 'No such file or directory: "{w}.safetensors'),
    ),
    (
        {"torch>=2.4.1 torch/_weights_only_unpickler.py": ("Unsupported global: GLOBAL ",)},
        ("Unsupported global: GLOBAL numpy.", "Unsupported global: GLOBAL deepspeed"),
    ),
    (
        {
            "accelerate>=0.34.2 accelerate/accelerator.py": (
                "Cannot get 16bit model weights because `stage3_gather_16bit_weights_on_model_save`",
            )
        },
        ("Cannot get 16bit model weights because stage3_gather_16bit_weights_on_model_save",),
    ),
    (
        {"transformers>=4.45.2 transformers/integrations/deepspeed.py": ("Can't find a valid checkpoint at ",)},
        ("[deepspeed] Can't find a valid checkpoint at",),
    ),
    (
        {"safetensors>=0.5.0 safetensors/_safetensors_rust.abi3.so": (" (os error ",)},
        ("I/O error: No space left on device (os error 28)", "No space left on device (os error 28)"),
    ),
    (
        {"torch>=2.4.1 torch/lib/libtorch_cpu.so": ("size mismatch, got input (",)},
        ("size mismatch, got input ({n}), mat ({}), vec (0)",),
    ),
    (
        {"deepspeed>=0.13.5 deepspeed/runtime/zero/partition_parameters.py": ('"status": ', "NOT_AVAILABLE")},
        ("'status': 'NOT_AVAILABLE'",),
    ),
    (
        {"deepspeed>=0.13.5 deepspeed/runtime/zero/partition_parameters.py": ('"status": ', "INFLIGHT")},
        ("'status': 'INFLIGHT'",),
    ),
    (
        {
            "transformers<4.49.0 transformers/models/llava/modeling_llava.py": (
                "The input provided to the model are wrong. The number of image tokens is ",
                " while the number of image given to the model is ",
            )
        },
        (
            "The number of image tokens is {n} while the number of image given to the model is",
            "The input provided to the model are wrong. The number of image tokens is",
        ),
    ),
    (
        {
            "transformers>=4.52.1 transformers/processing_utils.py": (
                "Mismatch in `",
                "` token count between text and `input_ids`",
            )
        },
        (
            "Mismatch in `image` token count between text and `input_ids`",
            "Mismatch in `video` token count between text and `input_ids`",
        ),
    ),
    ({"torch>=2.4.1 torch/lib/libtorch_cpu.so": ("index out of range in self",)}, ("IndexError: index out of range in self",)),
    (
        {"torch>=2.4.1 torch/lib/libtorch_cpu.so": ("Target ", " is out of bounds.")},
        ("IndexError: Target {n} is out of bounds",),
    ),
    (
        {"torch>=2.4.1 torch/optim/optimizer.py": ("optimizer got an empty parameter list",)},
        ("ValueError: optimizer got an empty parameter list",),
    ),
    (
        {
            "torch>=2.4.1 torch/lib/libtorch_cuda.so": (
                "_amp_foreach_non_finite_check_and_unscale_cuda",
                "\" not implemented for '",
            )
        },
        ("_amp_foreach_non_finite_check_and_unscale_cuda\" not implemented for 'BFloat16'",),
    ),
    (
        {"torch>=2.10.0 torch/lib/libtorch_python.so": ("killed by signal: ",)},
        ("is killed by signal: Killed", "is killed by signal: Segmentation fault", "is killed by signal: Bus error"),
    ),
    (
        {"triton>=3.0.0 triton/runtime/driver.py": (" active drivers (", "). There should only be one.")},
        ("active drivers ([{}]). There should only be one",),
    ),
    (
        {"deepspeed>=0.13.5 deepspeed/ops/op_builder/builder.py": ("MissingCUDAException", "CUDA_HOME does not exist")},
        ("MissingCUDAException: CUDA_HOME does not exist",),
    ),
    ({"deepspeed>=0.13.5 deepspeed/ops/op_builder/builder.py": ("/bin/nvcc",)}, ("No such file or directory: '{w}/bin/nvcc'",)),
    (
        {"torch>=2.4.1 torch/utils/cpp_extension.py": ("Error building extension '",)},
        ("RuntimeError: Error building extension '",),
    ),
    (
        {"torch>=2.4.1 torch/cuda/__init__.py": ("Torch not compiled with CUDA enabled",)},
        ("AssertionError: Torch not compiled with CUDA enabled",),
    ),
    (
        {"nvidia-nccl-cu12>=2.20.5 nvidia/nccl/lib/libnccl.so.2": ("Error while %s shared memory segment %s (size ",)},
        (
            "Error while creating shared memory segment {} (size {n}",
            "Error while attaching to shared memory segment {} (size {n}",
        ),
    ),
    (
        {"nvidia-nccl-cu12>=2.20.5 nvidia/nccl/lib/libnccl.so.2": ("/dev/shm/nccl-",)},
        ("/dev/shm/nccl-{}No space left on device", "No space left on device{}/dev/shm/nccl-"),
    ),
    ({"torch>=2.4.1 torch/lib/libtorch_cpu.so": ("unable to write to file <",)}, ("unable to write to file </torch_",)),
    (
        {
            "torch<2.12.1 torch/lib/libc10_cuda.so": ("CUDA error: ",),
            "nvidia-cuda-runtime-cu12>=12.1.105 nvidia/cuda_runtime/lib/libcudart.so.12": ("out of memory",),
        },
        ("CUDA error: out of memory",),
    ),
    (
        {
            "torch<2.12.1 torch/lib/libc10_cuda.so": ("CUDA error: ",),
            "nvidia-cuda-runtime-cu12>=12.1.105 nvidia/cuda_runtime/lib/libcudart.so.12": ("invalid device ordinal",),
        },
        ("CUDA error: invalid device ordinal",),
    ),
    (
        {
            "torch<2.12.1 torch/lib/libc10_cuda.so": ("CUDA error: ",),
            "nvidia-cuda-runtime-cu12>=12.1.105 nvidia/cuda_runtime/lib/libcudart.so.12": ("misaligned address",),
        },
        ("CUDA error: misaligned address",),
    ),
    (
        {"torch>=2.4.1 torch/lib/libtorch_cuda.so": ("CUDA error: ", "CUBLAS_STATUS_ALLOC_FAILED", " when calling ")},
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling",),
    ),
    ({"nvidia-nccl-cu12>=2.20.5 nvidia/nccl/lib/libnccl.so.2": ("Cuda failure %d '%s'",)}, ("Cuda failure 2 'out of memory'",)),
    ({"nvidia-nccl-cu12>=2.20.5 nvidia/nccl/lib/libnccl.so.2": ("Cuda failure '%s'",)}, ("Cuda failure 'out of memory'",)),
    (
        {"nvidia-cudnn-cu12>=9.1.0.70 nvidia/cudnn/lib/libcudnn_graph.so.9": ("Unable to load any of {", "libcudnn")},
        ("Unable to load any of {libcudnn",),
    ),
    (
        {"nvidia-cudnn-cu12<9.10.2.21 nvidia/cudnn/lib/libcudnn_graph.so.9": ("Could not load library ",)},
        ("Could not load library libcudnn", "Could not load library libnvrtc"),
    ),
    (
        {
            "transformers<4.51.0 transformers/modeling_utils.py transformers/integrations/accelerate.py": (
                "requires Accelerate: `pip install",
            )
        },
        ("requires `accelerate`: `pip install",),
    ),
    (
        {
            "numpy>=1.26.4 numpy/random/mtrand.cpython-311-x86_64-linux-gnu.so": (
                " size changed, may indicate binary incompatibility",
            )
        },
        ("numpy.dtype size changed, may indicate binary incompatibility",),
    ),
    ({"torch>=2.4.1 torch/lib/libtorch_python.so": ("Numpy is not available",)}, ("RuntimeError: Numpy is not available",)),
    (
        {"huggingface-hub>=0.25.2 huggingface_hub/utils/_http.py": ("offline mode is enabled. To disable it, please unset ",)},
        ("as offline mode is enabled. To disable it, please unset",),
    ),
    ({"requests>=2.32.5 requests/models.py": (" Client Error: ", " for url: ")}, ("429 Client Error: Too Many Requests",)),
    (
        {"urllib3>=2.0.7 urllib3/connectionpool.py": ("HTTPSConnectionPool", "(host=")},
        ("HTTPSConnectionPool(host='huggingface.co'", "HTTPSConnectionPool(host='cdn-lfs"),
    ),
    (
        {"torch>=2.4.1 torch/lib/libtorch_cuda.so": ("Watchdog caught collective operation timeout: ", "WorkNCCL(")},
        ("Watchdog caught collective operation timeout: WorkNCCL(",),
    ),
    (
        {
            "torch>=2.4.1 torch/lib/libtorch_cuda.so": (
                "Some NCCL operations have failed or timed out. Due to the",
                "asynchronous nature of CUDA kernels",
            )
        },
        ("Some NCCL operations have failed or timed out. Due to the asynchronous nature of CUDA kernels",),
    ),
    (
        {"nvidia-nccl-cu12<2.25.1 nvidia/nccl/lib/libnccl.so.2": ("Call to connect returned ",)},
        ("Call to connect returned Connection timed out", "Call to connect returned No route to host"),
    ),
    (
        {"nvidia-nccl-cu12>=2.20.5 nvidia/nccl/lib/libnccl.so.2": ("NET/IB : No device found",)},
        ("NCCL INFO NET/IB : No device found",),
    ),
    ({"nvidia-nccl-cu12>=2.20.5 nvidia/nccl/lib/libnccl.so.2": ("Using network ",)}, ("NCCL INFO Using network Socket",)),
    (
        {"nvidia-nccl-cu12<2.30.7 nvidia/nccl/lib/libnccl.so.2": ("Failed to open libibverbs.so",)},
        ("NCCL INFO Failed to open libibverbs.so",),
    ),
    (
        {"nvidia-nccl-cu12<2.23.4 nvidia/nccl/lib/libnccl.so.2": ("NET/IB : ", "Got async event : ")},
        ("NET/IB : Got async event : ",),
    ),
    (
        {
            "torch>=2.4.1 torch/lib/libtorch_cpu.so": (
                "/gloo/transport/tcp/device.cc",
                "ifa != nullptr",
                "Unable to find interface for",
            )
        },
        ("gloo/transport/tcp/device.cc:{n}] ifa != nullptr. Unable to find interface for",),
    ),
    ({"torch>=2.4.1 torch/lib/libtorch_cpu.so": ("Connect timeout ",)}, ("Connect timeout [",)),
    (
        {"torch>=2.4.1 torch/lib/libtorch_cpu.so": ("EADDRINUSE", "address already in use")},
        ("EADDRINUSE, message: address already in use",),
    ),
    (
        {
            "torch>=2.4.1 torch/lib/libtorch_cpu.so": ("Timed out after ",),
            "torch>=2.4.1 torch/lib/libtorch_python.so": ("DistStoreError",),
        },
        ("DistStoreError: Timed out after",),
    ),
    (
        {
            "torch>=2.4.1 torch/distributed/elastic/multiprocessing/api.py": (
                'raise SignalException(f"Process ',
                "got signal: ",
            )
        },
        ("SignalException: Process {n} got signal: {n}",),
    ),
    (
        {
            "torch>=2.4.1 torch/distributed/rendezvous.py": (
                "Error initializing torch.distributed using ",
                "env://",
                " rendezvous",
            )
        },
        ("Error initializing torch.distributed using env:// rendezvous",),
    ),
    (
        {"torch>=2.4.1 torch/nn/modules/module.py": ("' object has no attribute '",)},
        (
            "ForConditionalGeneration' object has no attribute 'visual'",
            "ForConditionalGeneration' object has no attribute 'language_model'",
            "ForConditionalGeneration' object has no attribute 'vision_tower'",
            "VLModel' object has no attribute 'embed_tokens'",
            "VLModel' object has no attribute 'layers'",
            "ForConditionalGeneration' object has no attribute 'optimizer'",
            "ForCausalLM' object has no attribute 'optimizer'",
        ),
    ),
    (
        {
            "transformers>=4.46.1,<5.0.0 transformers/models/llava/modeling_llava.py": (
                "Image features and image tokens do not match: tokens: ",
                ", features ",
            )
        },
        ("Image features and image tokens do not match: tokens: 0, features",),
    ),
    (
        {
            "transformers>=5.0.0 transformers/models/llava/modeling_llava.py": (
                "Image features and image tokens do not match, tokens: ",
                ", features: ",
            )
        },
        ("Image features and image tokens do not match, tokens: 0, features",),
    ),
    (
        {"safetensors>=0.5.0 safetensors/_safetensors_rust.abi3.so": ("Error while serializing: ", "StorageFull")},
        ("Error while serializing: IoError(Os { code: 28, kind: StorageFull",),
    ),
    (
        {
            "torch>=2.4.1 torch/lib/libtorch_cpu.so": (
                "shape mismatch: value tensor of shape ",
                " cannot be broadcast to indexing result of shape ",
            )
        },
        (
            "shape mismatch: value tensor of shape {shape} cannot be broadcast to indexing result of shape {shape}",
            "shape mismatch: value tensor of shape [3, {n}] cannot be broadcast to indexing result of shape [3, {n}]",
        ),
    ),
    (
        {
            "torch>=2.4.1 torch/lib/libtorch_cpu.so": (
                "The size of tensor a (",
                ") must match the size of tensor b (",
                ") at non-singleton dimension ",
            )
        },
        (
            "The size of tensor a ({n}) must match the size of tensor b (0) at non-singleton",
            "The size of tensor a (0) must match the size of tensor b ({n}) at non-singleton",
        ),
    ),
    (
        {
            "torch>=2.4.1 torch/_prims_common/__init__.py": (
                "Dimension out of range (expected to be in range of [",
                "], but got ",
            )
        },
        ("IndexError: Dimension out of range (expected to be in range of [-1, 0], but got 1)",),
    ),
    (
        {"torch>=2.4.1 torch/lib/libtorch_cpu.so": ("operator ", " does not exist")},
        ("operator torchvision::nms does not exist",),
    ),
    (
        {"deepspeed>=0.13.5 deepspeed/launcher/runner.py": ("launcher '", "' not installed.")},
        ("launcher 'pdsh' not installed",),
    ),
)

# Text -> place -> parts.
COMPOSED = {text: parts for parts, texts in _COMPOSED for text in texts}

# Text -> the program that prints it.
RAISED: dict[str, str] = {
    "'DeepSpeedZeRoOffload' object has no attribute '_register_hooks_recursively'": "CPython",
    "'DeepSpeedZeRoOffload' object has no attribute '_register_deepspeed_module'": "CPython",
    "Processor' object has no attribute 'pad_token_id'": "CPython",
    "Processor' object has no attribute 'eos_token_id'": "CPython",
    "Processor' object has no attribute 'pad_token'": "CPython",
    "Processor' object has no attribute 'eos_token'": "CPython",
    "Processor' object has no attribute 'pad'": "CPython",
    "Processor' object has no attribute 'padding_side'": "CPython",
    "ForConditionalGeneration.__init__() got an unexpected keyword argument '": "CPython",
    "ForCausalLM.__init__() got an unexpected keyword argument '": "CPython",
    "cannot import name '{w}' from 'huggingface_hub'": "CPython",
    "cannot import name '{w}' from 'huggingface_hub.{w}'": "CPython",
    "module 'torch' has no attribute 'float8_": "CPython",
    "module 'torch' has no attribute 'uint": "CPython",
    "module 'torch.compiler' has no attribute '": "CPython",
    "module 'torch.distributed' has no attribute '": "CPython",
    "cannot import name '{w}' from 'torch.distributed.tensor'": "CPython",
    "cannot import name '{w}' from 'torch.distributed.tensor.{w}'": "CPython",
    "No module named 'torch.distributed.tensor": "CPython",
    "No module named 'torch.nn.attention": "CPython",
    "cannot import name 'log' from 'torch.distributed.elastic.agent.server.api'": "CPython",
    "No module named 'torch._six'": "CPython",
    "cannot import name 'BUFSIZE' from 'numpy'": "CPython",
    "[Errno 107] Transport endpoint is not connected: '": "CPython",
    "[Errno 5] Input/output error: '": "CPython",
    "VideoMetadata.__init__() missing {n} required positional argument": "CPython",
    "'loss': 0.0, 'grad_norm': nan": "CPython",
    "'loss': '0', 'grad_norm': 'nan'": "CPython",
    "'loss': nan, 'grad_norm': ": "CPython",
    "'loss': 'nan', 'grad_norm': ": "CPython",
    "compute_loss() got an unexpected keyword argument 'num_items_in_batch'": "CPython",
    "'DynamicCache' object has no attribute '": "CPython",
    "'DynamicCache' object is not subscriptable": "CPython",
    "'StaticCache' object has no attribute '": "CPython",
    "'HybridCache' object has no attribute '": "CPython",
    "KeyError: 'mrope_section'": "CPython",
    "object has no attribute 'ds_grads_remaining'": "CPython",
    "KeyError: 'ds_grads_remaining'": "CPython",
    "'NoneType' object has no attribute 'next_functions'": "CPython",
    "'DeepSpeedZeroOptimizer' object has no attribute 'ipg_": "CPython",
    "'DeepSpeedZeRoOffload' object has no attribute 'backward'": "CPython",
    "'DeepSpeedZeRoOffload' object has no attribute 'step'": "CPython",
    "cannot import name 'triton_key' from 'triton.compiler.compiler'": "CPython",
    "cannot import name '{w}' from 'triton.": "CPython",
    "RuntimeError: can't start new thread": "CPython",
    "Fatal Python error: Segmentation fault": "CPython",
    "Fatal Python error: Aborted": "CPython",
    "module 'torchvision.io' has no attribute 'read_video'": "CPython",
    "Resource temporarily unavailable": "glibc",
    "object has no attribute 'hidden_size'": "CPython",
    "object has no attribute 'vocab_size'": "CPython",
    "'NoneType' object has no attribute 'image_processor'": "CPython",
    "AttributeError: 'AdamW' object has no attribute 'train'": "CPython",
    "Accelerator.unwrap_model() got an unexpected keyword argument": "CPython",
    "Accelerator.__init__() got an unexpected keyword argument": "CPython",
    "process_vision_info() got an unexpected keyword argument": "CPython",
    "PreTrainedTokenizerFast._batch_encode_plus() got an unexpected keyword argument": "CPython",
    "Too many open files": "glibc",
    "No module named 'mpi4py'": "CPython",
    "TypeError: Trainer.__init__() got an unexpected keyword argument": "CPython",
    "TypeError: Seq2SeqTrainer.__init__() got an unexpected keyword argument": "CPython",
    "TypeError: SFTTrainer.__init__() got an unexpected keyword argument": "CPython",
    "TypeError: GRPOTrainer.__init__() got an unexpected keyword argument": "CPython",
    "TypeError: DPOTrainer.__init__() got an unexpected keyword argument": "CPython",
    "TypeError: KTOTrainer.__init__() got an unexpected keyword argument": "CPython",
    "TypeError: PPOTrainer.__init__() got an unexpected keyword argument": "CPython",
    "TypeError: RewardTrainer.__init__() got an unexpected keyword argument": "CPython",
    "TypeError: ORPOTrainer.__init__() got an unexpected keyword argument": "CPython",
    "TypeError: RLOOTrainer.__init__() got an unexpected keyword argument": "CPython",
    "TrainingArguments.__init__() got an unexpected keyword argument": "CPython",
    "SFTConfig.__init__() got an unexpected keyword argument": "CPython",
    "GRPOConfig.__init__() got an unexpected keyword argument": "CPython",
    "DPOConfig.__init__() got an unexpected keyword argument": "CPython",
    "KTOConfig.__init__() got an unexpected keyword argument": "CPython",
    "PPOConfig.__init__() got an unexpected keyword argument": "CPython",
    "RewardConfig.__init__() got an unexpected keyword argument": "CPython",
    "'DeepSpeedCPUAdam' object has no attribute 'ds_opt_adam'": "CPython",
    "No module named 'qwen_vl_utils'": "CPython",
    "No module named 'decord'": "CPython",
    "No module named 'av'": "CPython",
    "No module named 'deepspeed'": "CPython",
    "No module named 'peft'": "CPython",
    "No module named 'trl'": "CPython",
    "No module named 'accelerate'": "CPython",
    "No module named 'bitsandbytes'": "CPython",
    "No module named 'liger_kernel'": "CPython",
    "No module named 'timm'": "CPython",
    "No module named 'wandb'": "CPython",
    "ImportError: libGL.so{}cannot open shared object file": "glibc",
    "ImportError: libgthread-2.0.so{}cannot open shared object file": "glibc",
    "ImportError: libSM.so{}cannot open shared object file": "glibc",
    "[Errno 116] Stale file handle": "CPython",
    "PermissionError: [Errno 13] Permission denied: '{w}": "CPython",
    "No such file or directory: '{w}pytorch_model{w}.bin": "CPython",
    "No such file or directory: 'pytorch_model{w}bin": "CPython",
    "invalid load key, 'v'.": "CPython",
    "invalid load key, '<'.": "CPython",
    "'NoneType' object has no attribute 'get'": "CPython",
    "LoraConfig.__init__() got an unexpected keyword argument": "CPython",
    "KeyError: 'llava_": "CPython",
    "KeyError: '": "CPython",
    "cannot import name '{w}' from 'transformers'": "CPython",
    "cannot import name '{w}' from 'transformers.{w}'": "CPython",
    "module 'transformers' has no attribute": "CPython",
    "module 'transformers' has no attribute '{w}ImageProcessor": "CPython",
    "module 'transformers.models.{w}' has no attribute '{w}ImageProcessor": "CPython",
    "No module named 'transformers.models.": "CPython",
    "OSError: [Errno 28] No space left on device": "CPython",
    "Disk quota exceeded": "glibc",
    "IndexError: list index out of range": "CPython",
    "CalledProcessError: Command '['{w}gcc', '{w}/main.c'": "CPython",
    "CalledProcessError: Command '['{w}gcc', '{w}/cuda_utils.c'": "CPython",
    "CalledProcessError: Command '['{w}gcc', '{w}/__triton_launcher.c'": "CPython",
    "CalledProcessError: Command '['{w}cc', '{w}/main.c'": "CPython",
    "CalledProcessError: Command '['{w}clang', '{w}/main.c'": "CPython",
    "ModuleNotFoundError: No module named 'setuptools'": "CPython",
    "ModuleNotFoundError: No module named 'pkg_resources'": "CPython",
    "ModuleNotFoundError: No module named 'torch'": "CPython",
    "ModuleNotFoundError: No module named 'flash_attn'": "CPython",
    "No module named 'flash_attn_2_cuda'": "CPython",
    "fatal error: Python.h: No such file or directory": "gcc",
    "cannot find -lcuda": "binutils",
    "libcuda.so.1: cannot open shared object file": "glibc",
    "ImportError: lib{w}.so{}cannot open shared object file": "glibc",
    "OSError: lib{w}.so{}cannot open shared object file": "glibc",
    "undefined symbol: _ZN": "glibc",
    "undefined symbol: _Z": "glibc",
    "undefined symbol: __nvJitLink": "glibc",
    "undefined symbol: ncclCommRegister": "glibc",
    "undefined symbol: nccl": "glibc",
    "undefined symbol: cublas": "glibc",
    "undefined symbol: iJIT_NotifyEvent": "glibc",
    "version `GLIBC_{w}' not found": "glibc",
    "version `GLIBCXX_{w}' not found": "glibc",
    "version `CXXABI_{w}' not found": "glibc",
    "[Errno 24] Too many open files": "CPython",
    "OSError: [Errno 12] Cannot allocate memory": "CPython",
    "died with <Signals.SIGKILL: 9>": "CPython",
    "returned non-zero exit status {n}": "CPython",
    "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed": "CPython",
    "certificate verify failed: self-signed certificate in certificate chain": "OpenSSL",
    "certificate verify failed: unable to get local issuer certificate": "OpenSSL",
    "OSError: [Errno 98] Address already in use": "CPython",
    "Connection reset by peer": "glibc",
    "Broken pipe": "glibc",
    "407 Proxy Authentication Required": "CPython",
    "nvcc: no CUDA toolkit in this environment": "Smokehouse",
    "e_score_correction_bias differs in {n} of the {n} elements held here": "Smokehouse",
}

# Text -> why it cannot be read here, and where it can be.
ELSEWHERE: dict[str, str] = {
    "assert self.img_context_token_id is not None": "code of InternVL's checkpoints on the hub: om-ai-lab/VLM-R1 issue #264",
    "The actor is dead because its worker process has died": "ray, 70 MB that no environment has: hiyouga/EasyR1 issue #324",
    "Assertion `srcIndex < srcSelectDimSize` failed": "device code, which torch's wheel has compressed: AkariAsai/self-rag issue #91",
    "Assertion `t >= 0 && t < n_classes` failed": "device code, which torch's wheel has compressed: pytorch/pytorch aten/src/ATen/native/cuda/NLLLoss2d.cu at 03318898a6e3",
    "Assertion `ind >= 0 && ind < ind_dim_size": "device code, which torch's wheel has compressed: inclusionAI/dInfer issue #22",
    'Assertion `-sizes[i] <= index && index < sizes[i] && "index out of bounds"` failed': "device code, which torch's wheel has compressed: ThetaCursed/clean-ui issue #4",
    "Assertion `probability tensor contains either `inf`, `nan` or element < 0` failed": "device code, which torch's wheel has compressed: zai-org/GLM-4 issue #637",
    "unsupported GNU version! gcc versions later than": "a header of the CUDA toolkit: NVIDIA/apex issue #1168",
    "Driver/library version mismatch": "NVIDIA's driver, not installed here: NVIDIA/nvidia-docker issue #270",
    'could not select device driver "" with capabilities: [[gpu]]': "Docker's daemon, in Go: moby/moby daemon/errors.go at b985e2313a86",
    "oom-kill event": "Slurm's cgroup plugin before oom_kill: ArjunaCluster/ArjunaUsers issue #52",
    "Detected {n} oom_kill event": "Slurm's cgroup plugin: SchedMD/slurm src/plugins/task/cgroup/task_cgroup_memory.c at 284c3b95f08a",
    "OOMKilled": "Kubernetes: sql-machine-learning/elasticdl issue #1574",
    "Out of memory: Killed process": "the kernel's log, which containers cannot read: docker/for-linux issue #1001",
    "Memory cgroup out of memory: Killed process": "the kernel's log, which containers cannot read: vmware/photon issue #1535",
    "ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory": "ray, 70 MB that no environment has: PRIME-RL/SimpleVLA-RL issue #30",
    "GPU has fallen off the bus": "NVIDIA's kernel module: NVIDIA/open-gpu-kernel-modules src/nvidia/arch/nvalloc/unix/src/osinit.c at df1c9a3de2be",
    "GPU is lost. Reboot the system to recover": "NVIDIA's nvidia-smi, not installed here: JosephKJ/OWOD issue #81",
    "NVRM: Xid": "NVIDIA's kernel module: NVIDIA/open-gpu-kernel-modules src/nvidia/src/kernel/gpu/rc/kernel_rc.c at df1c9a3de2be",
    "MKL_THREADING_LAYER=INTEL is incompatible with": "MKL's service layer of conda, which no wheel has: pytorch/pytorch issue #37377",
    "Host key verification failed": "OpenSSH, which need not be installed: alibaba/mpich2-yarn issue #33",
    "Permission denied (publickey": "OpenSSH, which need not be installed: awslabs/deeplearning-cfn issue #17",
    "DUE TO TIME LIMIT ***": "Slurm's slurmstepd: SchedMD/slurm src/slurmd/slurmstepd/req.c at 284c3b95f08a",
    "DUE TO PREEMPTION ***": "Slurm's slurmstepd: SchedMD/slurm src/slurmd/slurmstepd/req.c at 284c3b95f08a",
}
