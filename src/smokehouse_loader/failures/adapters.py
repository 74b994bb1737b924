"""Adapters: LoRA and other small sets of weights on a base model."""

from smokehouse_loader.failures.model import Failure, Sign

QUANTISED = (
    "bitsandbytes || Params4bit || load_in_4bit || load_in_8bit || bnb_ || BitsAndBytes || torch.uint8 || QLoRA || qlora"
)

FAILURES = (
    Failure(
        name="adapter-partitioned",
        cause="The adapter was saved from a model that ZeRO-3 had partitioned, so its tensors have shape [0].",
        cure=(
            "save it with Trainer.save_model and stage3_gather_16bit_weights_on_model_save=true (or inside "
            "deepspeed.zero.GatheredParameters), or convert the engine's checkpoint with zero_to_fp32.py"
        ),
        source="peft/utils/save_and_load.py copies the state dict as it is",
        signs=(
            Sign("size mismatch for base_model.model.{}: copying a param with shape {0} from checkpoint"),
            Sign("size mismatch for {w}.lora_A.{}: copying a param with shape {0} from checkpoint"),
            Sign("size mismatch for {w}.lora_B.{}: copying a param with shape {0} from checkpoint"),
        ),
        excludes=("saved-partitioned", "adapter-of-another-base", "wrong-shape"),
    ),
    Failure(
        name="adapter-into-partitioned",
        cause=(
            "ZeRO-3 had partitioned the model (shape [0]) before the adapter was loaded into it by code that does not gather."
        ),
        cure=(
            "load base and adapter before deepspeed.initialize, outside zero.Init, or let the Trainer resume "
            "from the checkpoint"
        ),
        source="peft/utils/save_and_load.py, set_peft_model_state_dict",
        signs=(
            Sign(
                "size mismatch for base_model.model.{}: copying a param with shape {shape} from checkpoint, the "
                "shape in current model is {0}"
            ),
        ),
        excludes=("partitioned-before-load", "adapter-of-another-base", "wrong-shape"),
    ),
    Failure(
        name="adapter-of-another-base",
        cause="The adapter was trained on another base model, or with another rank r, than the one that it is loaded into.",
        cure="load it into base_model_name_or_path of adapter_config.json, with the r and modules_to_save that it has there",
        source="peft/utils/save_and_load.py",
        reproduction="load_adapter_of_another_base",
        signs=(
            Sign(
                "size mismatch for base_model.model.{}: copying a param with shape {shape} from checkpoint, the "
                "shape in current model is {shape}"
            ),
            Sign("size mismatch for {w}.lora_A.{}: copying a param with shape {shape} from checkpoint, {} is {shape}"),
        ),
        excludes=("wrong-shape",),
        apart="lora_A and lora_B differ; if only embed_tokens or lm_head do, the vocabulary was resized",
        question="What are base_model_name_or_path and r in adapter_config.json?",
    ),
    Failure(
        name="adapter-folder",
        cause="The directory has an adapter (adapter_config.json), not a model: it has no config.json with a model_type.",
        cure=(
            "load base_model_name_or_path of its adapter_config.json with load_model, then "
            "peft.PeftModel.from_pretrained(model, DIRECTORY)"
        ),
        source="transformers/models/auto/configuration_auto.py; peft documents the files of an adapter",
        reproduction="load_adapter_folder",
        signs=(
            Sign("Unrecognized model in {w}lora{}. Should have a `model_type` key"),
            Sign("Unrecognized model in {w}adapter{}. Should have a `model_type` key"),
            Sign("Unrecognized model in {w}LoRA{}. Should have a `model_type` key"),
            Sign("Unrecognized model in {w}sft{}. Should have a `model_type` key", log=("adapter_config.json || lora",)),
            Sign(
                "Unrecognized model in ", log=("adapter_config.json || adapter_model || PeftModel || LoraConfig || lora_alpha",)
            ),
            Sign(
                "does not appear to have a file named config.json",
                log=("adapter_config.json || adapter_model || PeftModel || lora",),
            ),
            Sign("no file named {} found in directory {w}lora"),
            Sign(
                "no file named {} found in directory",
                log=("adapter_config.json || adapter_model || PeftModel || LoraConfig || /lora || _lora || -lora",),
            ),
        ),
        excludes=("unknown-model-type", "no-model-type", "no-weights", "hub-file-missing"),
        question="Does the directory have adapter_config.json?",
    ),
    Failure(
        name="adapter-config-missing",
        cause="A directory was loaded as an adapter and has no adapter_config.json: it is a whole model, or its parent.",
        cure=(
            "pass the directory that has adapter_config.json (of a Trainer, checkpoint-N), or load a whole model "
            "with load_model"
        ),
        source="peft/config.py, from_pretrained",
        signs=(Sign("Can't find 'adapter_config.json' at"),),
    ),
    Failure(
        name="adapter-weights-missing",
        cause=(
            "A directory with adapter_config.json lacks adapter_model.safetensors: the save ended early, or only rank 0 has it."
        ),
        cure="save again, or copy adapter_model.safetensors from the machine of rank 0",
        source="peft/utils/save_and_load.py, load_peft_weights",
        signs=(Sign("Can't find weights for {} in {} or in the Hugging Face Hub. Please check that the file adapter_model"),),
    ),
    Failure(
        name="adapter-keys-missing",
        cause=(
            "The adapter's file lacks tensors that its configuration promises: they stay at their start, and the "
            "adapter does nothing."
        ),
        cure=(
            "load it with the peft and transformers that saved it (4.52 renamed the modules of vision-language "
            "models), or rename its "
            "keys; do not call get_peft_model before PeftModel.from_pretrained"
        ),
        source="peft/peft_model.py, load_adapter",
        signs=(Sign("Found missing adapter keys while loading the checkpoint: ["),),
    ),
    Failure(
        name="adapter-modules-not-found",
        cause="target_modules of the LoRA configuration are no modules of this model: it has other names, or is wrapped.",
        cure="list names with [name for name, _ in model.named_modules()] and use their ends, or target_modules='all-linear'",
        source="peft/tuners/tuners_utils.py, inject_adapter",
        signs=(
            Sign("Target modules {} not found in the base model. Please check the target modules and try again."),
            Sign("Please specify `target_modules` in `peft_config`"),
        ),
    ),
    Failure(
        name="adapter-module-unsupported",
        cause=(
            "target_modules matches a module that LoRA cannot adapt, such as a norm, a convolution of the vision "
            "tower or a container."
        ),
        cure=(
            "restrict target_modules to linear layers, as a regular expression: "
            "r'.*language_model.*\\.(q_proj|k_proj|v_proj|o_proj)'"
        ),
        source="peft/tuners/lora/model.py",
        signs=(
            Sign(
                "is not supported. Currently, only the following modules are supported: `torch.nn.Linear`",
                needs=("Target module",),
            ),
        ),
    ),
    Failure(
        name="adapter-version",
        cause="adapter_config.json was written by a newer peft: it has options that the installed one does not know.",
        cure="install the peft that saved it, or remove the options that the message names from adapter_config.json",
        source="peft/config.py",
        signs=(Sign("LoraConfig.__init__() got an unexpected keyword argument"),),
    ),
    Failure(
        name="quantised-fine-tuning",
        cause="A quantised model was given to the Trainer without an adapter; its weights cannot be trained.",
        cure=(
            "add an adapter with peft.get_peft_model after prepare_model_for_kbit_training, or train the model "
            "that is not quantised"
        ),
        source="transformers/trainer.py",
        signs=(Sign("You cannot perform fine-tuning on purely quantized models. Please attach trainable adapters"),),
    ),
    Failure(
        name="quantised-moved",
        cause="A quantised model was moved or cast with .to, .cuda or .half, which its weights do not allow.",
        cure=(
            "leave it where from_pretrained put it (device_map={'': LOCAL_RANK}), and take a release of accelerate that does "
            "not move it either"
        ),
        source="transformers/modeling_utils.py",
        signs=(Sign("`.to` is not supported for"),),
    ),
    Failure(
        name="qlora-storage-type",
        cause=(
            "ZeRO-3 (or FSDP) flattens parameters of one type, and bitsandbytes stores 4-bit weights as uint8 "
            "unless it is told otherwise."
        ),
        cure="set bnb_4bit_quant_storage to the dtype of the other weights (torch.bfloat16) in BitsAndBytesConfig",
        source="peft's guide to DeepSpeed and FSDP with QLoRA; pytorch's flat parameters",
        signs=(
            Sign("Must flatten tensors with uniform dtype but got", log=(QUANTISED,)),
            Sign("Cannot flatten integer dtype tensors"),
            Sign(
                "Only Tensors of floating point and complex dtype can require gradients",
                needs=("bitsandbytes || Params4bit || quantizer || 4bit",),
            ),
            Sign("output tensor must have the same type as input tensor", log=("bitsandbytes || Params4bit || 4bit || bnb_",)),
        ),
        excludes=("wrong-type", "collective-types"),
    ),
    Failure(
        name="adapter-no-inputs-grad",
        cause="Under gradient checkpointing with a frozen base no input requires a gradient, so none reaches the adapter.",
        cure=(
            "call model.enable_input_require_grads() before training, or pass "
            "gradient_checkpointing_kwargs={'use_reentrant': False}"
        ),
        source="torch/utils/checkpoint.py warns",
        signs=(
            Sign(
                "element 0 of tensors does not require grad and does not have a grad_fn",
                log=("None of the inputs have requires_grad=True || gradient_checkpointing || peft || lora || PeftModel",),
            ),
        ),
        excludes=("no-gradient",),
        apart="a frozen base with an adapter, under gradient checkpointing",
        question="Does print_trainable_parameters() show more than 0 parameters?",
    ),
)
