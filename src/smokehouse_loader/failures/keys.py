"""Loading and keys: the tensors of a checkpoint against the parameters of a model."""

from smokehouse_loader.failures.model import MEASURED, Failure, Sign

# Heads that a task adds to a pretrained model, and that no checkpoint of the base model has.
_NEW_HEADS = (
    r"^(?:\w+\.){0,2}(?:score|classifier|classification_head|rm_head|reward_head|value_head|v_head|regression_head|qa_outputs|pooler|"
    r"summary|cls|projector_head|action_head|(?!lm_|output_)\w+_head)\.(?:\w+\.){0,4}(?:weight|bias)$"
)
# Buffers that checkpoints store: of routers, of normalisations, and the ranges of clipped layers.
_BUFFERS = (
    r"\.(?:e_score_correction_bias|running_mean|running_var|num_batches_tracked|(?:input|output)_(?:min|max))(?:\.weight)?$"
)
# Buffers that older checkpoints store, and that models compute.
_RECOMPUTED = r"(?:rotary_emb\.inv_freq|\.position_ids|\.attn\.(?:masked_)?bias|\.masked_bias|rotary_pos_emb\.inv_freq)$"
_MISSING = "newly initialized: "
# LLaVA's own code wraps the tower of transformers in one of its own.
_TOWER_OF_LLAVA = r"^(?:model\.)?vision_tower\.vision_tower\."
_NOT_USED = "Some weights of the model checkpoint at {} were not used when initializing {}: "
_LORA = r"\.lora_[AB]\.|^base_model\.model\."
_WRAPPED = r"^(?:module|_orig_mod|_fsdp_wrapped_module|model\.module|module\.module)\."
_QUANTISED = (
    r"\.(?:qweight|qzeros|g_idx|absmax|quant_map|quant_state\.bitsandbytes\S*|SCB|weight_scale(?:_inv)?|weight_format)$"
)
_NOT_EMBEDDINGS = (
    "_proj.weight: copying || norm.weight: copying || .lora_A. || .lora_B. || qkv.weight: copying || .bias: copying",
)
# Of transformers, by its frames, the classes and tensors of its models, or modules that it loads one by one.
_OF_TRANSFORMERS = (
    "transformers/ || from_pretrained || modeling_ || state_dict for {w}For || state_dict for {w}Model || VLModel || "
    "state_dict for {w}Embedding || state_dict for Linear: || state_dict for {w}Norm: || state_dict for Conv || "
    "_proj.weight: copying || _proj.bias: copying || layernorm.weight: copying || embed_tokens || lm_head"
)
_VISION = r"(?:^|\.)(?:visual|vision_tower|vision_model)\."

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
        ends_as=("left-on-meta", "partitioned-parameter-used", "ignore-mismatched-sizes"),
        signs=(
            Sign(
                "size mismatch for {}: copying a param with shape {shape} from checkpoint, the shape in current model is {0}",
                unless=("size mismatch for base_model.model. || .lora_A. || .lora_B. || _flat_param || FullySharded",),
            ),
            Sign("MISMATCH | {} ckpt: {shape} vs model:{0}"),
            Sign("Trying to set a tensor of shape {shape} in {} (which has shape {0}"),
        ),
        excludes=("wrong-shape", "wrong-class-warned", "embeddings-of-another-vocabulary"),
    ),
    Failure(
        name="saved-partitioned",
        cause="The checkpoint was saved from a model that ZeRO-3 had partitioned, so its tensors have shape [0].",
        cure=(
            "save with engine.save_16bit_model, with smokehouse_loader.save_model if the model is of diffusers, or with "
            "Trainer.save_model and stage3_gather_16bit_weights_on_model_save, or convert the engine's own checkpoint with "
            "zero_to_fp32.py"
        ),
        source=f"{MEASURED}: save_pretrained on a partitioned model, of diffusers, too",
        reproduction="save_partitioned_model",
        signs=(
            Sign("copying a param with shape {0} from checkpoint", unless=("base_model.model. || .lora_A. || .lora_B.",)),
            Sign("MISMATCH | {} ckpt: {0} vs model:{shape}"),
            Sign("Trying to set a tensor of shape {0} in {} (which has shape"),
            Sign("expected shape {shape}, but got {0}. If you want to instead overwrite randomly initialized weights"),
        ),
        excludes=("wrong-shape", "partitioned-before-load"),
        question="Which file did the shape [0] come from: was it written by save_pretrained or torch.save under ZeRO-3?",
    ),
    Failure(
        name="experts-transposed",
        cause=(
            "Under ZeRO-3 transformers 5 compares a file's experts with the shape [0] of a partitioned parameter, and so "
            "transposes those that its own save_pretrained wrote, which need no transposing."
        ),
        cure=(
            "load with smokehouse_loader.load_model, which compares with the whole shape, or transpose the last two dimensions "
            "of mlp.experts.gate_up_proj and down_proj in the file, as published checkpoints have them"
        ),
        source=f"{MEASURED}: Qwen3-VL-MoE on transformers 5.23.0; core_model_loading.py, Transpose with check_dims",
        reproduction="saved_experts_under_zero3",
        signs=(
            Sign(
                "size mismatch for {}.mlp.experts.gate_up_proj: copying a param with shape {shape} from checkpoint, the shape "
                "in current model is {shape}"
            ),
        ),
        excludes=("wrong-shape",),
        apart="the two shapes are each other's with the last two dimensions exchanged",
        question="Are the two shapes the same but for the order of the last two dimensions?",
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
        signs=(
            Sign("Cannot copy out of meta tensor; no data!"),
            Sign("Tensor on device meta is not on the expected device"),
            Sign("copying from a non-meta parameter in the checkpoint to a meta parameter in the current model"),
        ),
    ),
    Failure(
        name="denoiser-inside-zero-init",
        cause=(
            "from_pretrained of diffusers builds the model on the meta device, where a zero.Init around it has no data to "
            "partition."
        ),
        cure=(
            "load with smokehouse_loader.load_model and a live HfDeepSpeedConfig of ZeRO-3, which fills each rank's partition, "
            "or with from_pretrained outside of zero.Init and before deepspeed.initialize, with memory for the whole model on "
            "every rank"
        ),
        source=f"{MEASURED}: diffusers 0.42.1, a control of the smoke tests of qwen-image-edit and wan2.2-s2v",
        signs=(
            Sign(
                "Cannot copy out of meta tensor; no data!",
                unless=("Please use torch.nn.Module.to_empty()",),
                log=("diffusers/models/modeling_utils.py", "_post_init_method"),
            ),
        ),
        excludes=("left-on-meta",),
    ),
    Failure(
        name="ignore-mismatched-sizes",
        cause=(
            "Under ZeRO-3 every parameter appears to have shape [0], so ignore_mismatched_sizes=True ignores every tensor "
            "and loads none. What it does not load is initialised, and an embedding then has no row for the padding token: so "
            "ends from_pretrained inside your own zero.Init, too."
        ),
        cure=(
            "remove ignore_mismatched_sizes=True and your own deepspeed.zero.Init around from_pretrained; load_model reports "
            "the tensors that really differ"
        ),
        source=f"{MEASURED}: 57 of 57 tensors wrong without an error, transformers 4.49.0 to 4.57.6",
        reproduction="ignore_mismatched_sizes",
        signs=(
            Sign(
                "IndexError: index {n} is out of bounds for dimension 0 with size 0",
                needs=(
                    "_load_state_dict || load_pretrained_model || _find_mismatched_keys || from_pretrained || _init_weights",
                ),
            ),
            Sign("newly initialized because the shapes did not match", needs=("and {0} in the model instantiated",)),
            Sign(
                "newly initialized because the shapes did not match", needs=("found shape {shape} in the checkpoint and {0}",)
            ),
        ),
        excludes=("wrong-shape",),
    ),
    Failure(
        name="device-map",
        cause="device_map places whole parameters and ZeRO-3 partitions them; they cannot be combined.",
        cure="remove device_map and low_cpu_mem_usage; DeepSpeed places the weights",
        source="transformers refuses the combination",
        reproduction="device_map_under_zero3",
        signs=(
            Sign("DeepSpeed Zero-3 is not compatible with `low_cpu_mem_usage=True` or with passing a `device_map`"),
            Sign("DeepSpeed Zero-3 is not compatible with passing a `device_map`"),
        ),
    ),
    Failure(
        name="device-map-distributed",
        cause="A model that device_map='auto' spread over several GPUs cannot be trained with one process per GPU.",
        cure="remove device_map, or pass device_map={'': LOCAL_RANK} so that each process has the whole model on its GPU",
        source="accelerate/accelerator.py, prepare_model",
        signs=(
            Sign("You can't train a model that has been loaded with `device_map='auto'` in any distributed mode"),
            Sign(
                "DistributedDataParallel device_ids and output_device arguments only work with single-device/multiple-device "
                "GPU modules or CPU modules"
            ),
            Sign("You can't train a model that has been loaded in 8-bit or 4-bit precision on a different device than the one"),
        ),
    ),
    Failure(
        name="key-layout",
        cause=(
            "The checkpoint's keys are in the layout of another transformers: 4.52 moved visual.* and model.* to "
            "model.visual.* and model.language_model.*, and 5.9 renamed the layers of ViT, which TrOCR's encoder is."
        ),
        cure="use transformers 4.52 or later, which loads both, or save the checkpoint again with the installed version",
        source=f"{MEASURED}: 56 of 57 tensors stay random on 4.49.0, without an error",
        reproduction="later_key_layout",
        signs=(
            Sign(_MISSING, any_name=r"^(?:model\.)?visual\.patch_embed"),
            Sign("| MISSING", any_name=r"^(?:model\.)?visual\.patch_embed"),
            Sign(_NOT_USED, any_name=r"^model\.language_model\."),  # a vision tower's alone may be what a class drops
            Sign(
                "| UNEXPECTED",
                any_name=r"^(?:model\.visual|model\.language_model)\.",
                log=("| MISSING",),
                unless_log=("lora_A",),
            ),
        ),
        excludes=("missing-key", "dropped-weights", "text-only-class"),
    ),
    Failure(
        name="adapter-as-checkpoint",
        cause="The checkpoint has the keys of an adapter (lora_A, base_model.model), which the plain model does not have.",
        cure="load the base model with load_model, then the adapter with peft.PeftModel.from_pretrained(model, DIRECTORY)",
        source="peft/utils/save_and_load.py writes these keys",
        signs=(
            Sign(_NOT_USED, any_name=_LORA),
            Sign("| UNEXPECTED", any_name=_LORA),
            Sign("Unexpected key(s) in state_dict: ", any_name=_LORA),
        ),
        excludes=("dropped-weights", "missing-key", "key-layout", "state-dict-keys", "wrapped-keys"),
    ),
    Failure(
        name="wrapped-keys",
        cause=(
            "The keys begin with what wrapped the model when it was saved: module. (DDP, DeepSpeed) or "
            "_orig_mod. (torch.compile)."
        ),
        cure="save the inner model (engine.module, model._orig_mod), or remove the prefix from every key and save again",
        source="torch/nn/parallel/distributed.py",
        reproduction="load_wrapped_keys",
        signs=(
            Sign(_NOT_USED, any_name=_WRAPPED),
            Sign("| UNEXPECTED", any_name=_WRAPPED),
            Sign("Unexpected key(s) in state_dict: ", any_name=_WRAPPED),
            Sign("Missing key(s) in state_dict: ", any_name=_WRAPPED),
        ),
        excludes=("dropped-weights", "missing-key", "key-layout", "state-dict-keys", "new-head"),
    ),
    Failure(
        name="quantised-keys",
        cause=(
            "The checkpoint is quantised (GPTQ, AWQ, bitsandbytes, FP8), but config.json or the installed "
            "packages do not say how."
        ),
        cure=(
            "restore quantization_config in config.json and install its package, or load the checkpoint that it "
            "was quantised from; "
            "quantised weights cannot be trained, only adapters on them"
        ),
        source="transformers/quantizers",
        signs=(
            Sign(_NOT_USED, any_name=_QUANTISED),
            Sign("| UNEXPECTED", any_name=_QUANTISED),
            Sign("Unexpected key(s) in state_dict: ", any_name=_QUANTISED),
        ),
        excludes=("dropped-weights", "missing-key", "state-dict-keys"),
    ),
    Failure(
        name="new-head",
        cause=(
            "The class adds a head that no checkpoint of the base model has, and that is to be trained: this "
            "message is expected."
        ),
        cure=(
            "train the head, and check that no other tensor is in the list; where the checkpoint should have the "
            "head, save it with "
            "modules_to_save and load it with the same class"
        ),
        source="transformers/modeling_utils.py: every key that the file lacks is listed",
        signs=(Sign(_MISSING, all_names=_NEW_HEADS), Sign("| MISSING", all_names=_NEW_HEADS)),
        harmless=True,
        excludes=("missing-key",),
    ),
    Failure(
        name="output-embedding-missing",
        cause=(
            "Only lm_head.weight is missing: the checkpoint was saved with tied embeddings, and config.json says "
            "that they are not tied."
        ),
        cure="set tie_word_embeddings to true in config.json (in text_config, too), and load again",
        source="transformers/modeling_utils.py, tie_weights; Qwen2.5-VL-3B ties its embeddings and the 7B does not",
        signs=(
            Sign(_MISSING, all_names=r"^(?:\w+\.)?lm_head\.(?:weight|bias)$"),
            Sign("| MISSING", all_names=r"^(?:\w+\.)?lm_head\.(?:weight|bias)$"),
        ),
        excludes=("missing-key", "new-head"),
    ),
    Failure(
        name="text-only-class",
        cause=(
            "The vision tower is missing as a whole: the checkpoint is of a model of text alone, or was saved "
            "without its tower."
        ),
        cure=(
            "load it with the class of text that architectures in config.json lists, or get the checkpoint of "
            "the model with vision"
        ),
        source="transformers/modeling_utils.py lists what the file lacks",
        signs=(
            Sign(_MISSING, all_names=_VISION, no_name=r"^(?:model\.)?visual\.patch_embed"),
            Sign("| MISSING", all_names=_VISION, no_name=r"^(?:model\.)?visual\.patch_embed"),
        ),
        excludes=("missing-key",),
    ),
    Failure(
        name="recomputed-buffers",
        cause=(
            "The checkpoint stores what the model computes itself (frequencies of rotary embeddings, position ids, causal "
            "masks); nothing is lost."
        ),
        cure="leave it; check only that no other tensor is in the list",
        source="transformers/modeling_utils.py, _keys_to_ignore_on_load_unexpected",
        signs=(Sign(_NOT_USED, all_names=_RECOMPUTED), Sign("| UNEXPECTED", all_names=_RECOMPUTED)),
        harmless=True,
        excludes=("dropped-weights", "text-only-class", "key-layout"),
    ),
    Failure(
        name="tower-loaded-later",
        cause=(
            "LLaVA's own classes build the vision tower after from_pretrained (delay_load), so that the checkpoint's keys of "
            "it have no place yet, and then load it from the tower's own repository."
        ),
        cure=(
            "nothing if the tower was frozen in training; if it was trained, set unfreeze_mm_vision_tower (LLaVA-NeXT: "
            "mm_tunable_parts with mm_vision_tower) in config.json, so that it is built at once and its weights are read"
        ),
        source="LLaVA-NeXT's llava/model/multimodal_encoder/clip_encoder.py; LLaVA-VL/LLaVA-NeXT issue #115",
        harmless=True,
        signs=(Sign(_NOT_USED, all_names=_TOWER_OF_LLAVA), Sign("| UNEXPECTED", all_names=_TOWER_OF_LLAVA)),
        excludes=("dropped-weights",),
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
        signs=(Sign(_NOT_USED), Sign("| UNEXPECTED |")),
    ),
    Failure(
        name="buffers-not-loaded",
        cause=(
            "Under ZeRO-3 transformers before 5.6 loads buffers on rank 0 alone (4.x) or nowhere (5.0 to 5.5), without "
            "an error: e_score_correction_bias of GLM-4.5 and DeepSeek-V3 stays 0, and their routers choose other experts."
        ),
        cure="load with load_model, which loads buffers on every rank, or use transformers 5.6 or later",
        source=f"{MEASURED} on 4.57.6, 5.0.0 and 5.12.1; transformers issue #45397, fixed by PR #45402, released in 5.6.0",
        reproduction="buffers_under_zero3",
        signs=(
            Sign("| MISSING", all_names=_BUFFERS, log=("deepspeed || zero3 || ZeRO || zero_stage || ds_config",)),
            Sign("e_score_correction_bias differs in {n} of the {n} elements held here"),
        ),
        excludes=("missing-key", "text-only-class"),
        question="Is transformers older than 5.6? From then on only buffers that the file lacks are reported as missing",
    ),
    Failure(
        name="missing-key",
        cause=(
            "The model has tensors that the checkpoint does not have; they stay random, or zero under ZeRO-3, without an error."
        ),
        cure="get the complete checkpoint, or use the class that it was saved from",
        source=MEASURED,
        reproduction="missing_key",
        signs=(Sign("were not initialized from the model checkpoint at {} and are newly initialized: "), Sign("| MISSING |")),
    ),
    Failure(
        name="state-dict-keys",
        cause=(
            "load_state_dict was given tensors of other names than the model has: another class, or another part of the model."
        ),
        cure=(
            "load with load_model, which translates keys, or compare both lists of names: a common prefix shows "
            "which part it is"
        ),
        source="torch/nn/modules/module.py, load_state_dict",
        signs=(
            Sign("Missing key(s) in state_dict: ", needs=("Error(s) in loading state_dict for",)),
            Sign("Unexpected key(s) in state_dict: ", needs=("Error(s) in loading state_dict for",)),
        ),
    ),
    Failure(
        name="wrong-class-warned",
        cause="config.json is of one type of model and the class of another: the weights do not fit, or only by chance.",
        cure="use the class that architectures in config.json lists, or let smokehouse_loader.load_model choose it",
        source="transformers/configuration_utils.py",
        signs=(
            Sign(
                "You are using a model of type {} to instantiate a model of type {}. This",
                log=(
                    (
                        "size mismatch for || MISMATCH || newly initialized || Trying to set a tensor of shape || | MISSING "
                        "|| | UNEXPECTED"
                    ),
                ),
            ),
        ),
        excludes=("wrong-shape", "missing-key", "dropped-weights", "text-only-class", "wrong-type-warned"),
    ),
    Failure(
        name="wrong-type-warned",
        cause="config.json is of one type of model and the class of another; nothing in this log shows that it did harm.",
        cure="use the class that architectures in config.json lists, or let smokehouse_loader.load_model choose it",
        source="transformers/configuration_utils.py",
        signs=(Sign("You are using a model of type {} to instantiate a model of type {}. This"),),
        harmless=True,
    ),
    Failure(
        name="embeddings-of-another-vocabulary",
        cause=(
            "Only embeddings differ in their first dimension: tokens were added to the tokenizer or the "
            "vocabulary was padded, in one "
            "of model and checkpoint."
        ),
        cure=(
            "call model.resize_token_embeddings(len(tokenizer)) before loading such a checkpoint or adapter, or "
            "use the tokenizer and "
            "config.json (vocab_size) that it was saved with"
        ),
        source="transformers/modeling_utils.py, resize_token_embeddings",
        signs=(
            Sign(
                "size mismatch for {w}embed_tokens.weight: copying a param with shape {shape} from checkpoint, {} is {shape}",
                unless=_NOT_EMBEDDINGS,
            ),
            Sign(
                "size mismatch for {w}lm_head.weight: copying a param with shape {shape} from checkpoint, {} is {shape}",
                unless=_NOT_EMBEDDINGS,
            ),
            Sign(
                "size mismatch for lm_head.weight: copying a param with shape {shape} from checkpoint, {} is {shape}",
                unless=_NOT_EMBEDDINGS,
            ),
            Sign(
                (
                    "size mismatch for {w}embed_tokens.modules_to_save{w}weight: copying a param with shape {shape} from "
                    "checkpoint"
                ),
                unless=_NOT_EMBEDDINGS,
            ),
            Sign(
                "size mismatch for {w}lm_head.modules_to_save{w}weight: copying a param with shape {shape} from checkpoint",
                unless=_NOT_EMBEDDINGS,
            ),
            Sign(
                "size mismatch for {w}wte.weight: copying a param with shape {shape} from checkpoint, {} is {shape}",
                unless=_NOT_EMBEDDINGS,
            ),
        ),
        excludes=("wrong-shape", "adapter-of-another-base"),
        apart="the vocabulary: only the first number of the two shapes differs, and only in embeddings and the output layer",
        question="Do other tensors than embed_tokens and lm_head differ?",
    ),
    Failure(
        name="wrong-shape",
        cause="A tensor has another shape in the checkpoint than in the model: config.json does not belong to these weights.",
        cure="use the config.json that belongs to the weights, and the transformers version that wrote it",
        source=f"{MEASURED}: under ZeRO-3 only rank 0 raises; the others hang or lose the connection to it",
        reproduction="wrong_shape",
        signs=(
            Sign(
                (
                    "size mismatch for {}: copying a param with shape {shape} from checkpoint, the shape in current "
                    "model is {shape}"
                ),
                needs=(_OF_TRANSFORMERS,),
                unless=("size mismatch for base_model.model. || .lora_A. || .lora_B.",),
            ),
            Sign("MISMATCH | {} ckpt: {shape} vs model:{shape}"),
            Sign("Trying to set a tensor of shape {shape} in {} (which has shape {shape}"),
            Sign("found shape {shape} in the checkpoint and {shape} in the model instantiated"),
            Sign("expected shape {shape}, but got {shape}. If you want to instead overwrite randomly initialized weights"),
            Sign("You set `ignore_mismatched_sizes` to `False`, thus raising an error"),
        ),
        apart="whole layers differ, not only embeddings",
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
        signs=(
            Sign(
                "Only Tensors of floating point and complex dtype can require gradients",
                unless=("bitsandbytes || Params4bit || Int8Params || quantizer",),
            ),
        ),
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
        name="signature-mismatch",
        cause="The files are not the ones that the trusted signer signed: one was changed, added or removed since.",
        cure="do not load it; get it again from who signed it, or find out who changed it",
        source="OpenSSF model signing, the library model-signing",
        reproduction="load_changed_after_signing",
    ),
    Failure(
        name="wrong-bits",
        cause="A tensor in memory differs from the one in the file.",
        cure="load again; if it happens again, memory, disk or collectives of this machine corrupt data",
        source=MEASURED,
        reproduction="flipped_bit",
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
        name="unmeasured",
        cause="An unknown failure occurred during the load.",
        cure="read the original error; smokehouse_loader.explain may recognise it",
        source=MEASURED,
        reproduction="failure_in_the_middle",
    ),
)
