"""Classes and configurations: which model, processor and tokenizer a directory is for."""

from smokehouse_loader.failures.model import MEASURED, Failure, Sign

_LLAVA = (
    "has model type `llava_qwen` || has model type `llava_llama` || has model type `llava_mistral` || "
    "has model type `llava_mpt`"
)
_OF_LOADING = " || ".join(
    f"unexpected keyword argument '{name}'"
    for name in (
        "dtype",
        "torch_dtype",
        "load_in_4bit",
        "load_in_8bit",
        "use_flash_attention_2",
        "attn_implementation",
        "use_cache",
        "low_cpu_mem_usage",
    )
)
_NEWER = "install a transformers release that has it"

FAILURES = (
    Failure(
        name="wrong-auto-class",
        cause=(
            "The auto class has no entry for this config: AutoModelForCausalLM has none for most models with vision, "
            "AutoModelForImageTextToText none for those of text alone."
        ),
        cure="use smokehouse_loader.load_model without model_class, or the class that architectures in config.json lists",
        source=f"{MEASURED}: every version, for qwen2_5_vl",
        reproduction="wrong_auto_class",
        signs=(Sign("Unrecognized configuration class {} for this kind of AutoModel"),),
    ),
    Failure(
        name="model-type-of-other-code",
        cause=(
            "config.json has a model type of another project's code (llava_qwen and its like belong to LLaVA's "
            "repository), which no "
            "release of transformers will ever know."
        ),
        cure=(
            "load it with that project's own package, such as llava.model.builder.load_pretrained_model, or get the checkpoint "
            "converted for transformers (llava-hf, model type llava_onevision or llava)"
        ),
        source="the repository's own classes register llava_qwen",
        reproduction="model_type_of_other_code",
        signs=(
            Sign(
                "The checkpoint you are trying to load has model type `llava_",
                unless=("`llava_next` || `llava_onevision` || `llava_next_video`",),
            ),
            Sign("The checkpoint you are trying to load has model type `vila"),
            Sign("The checkpoint you are trying to load has model type `bunny-"),
            Sign("The checkpoint you are trying to load has model type `TinyLlava"),
            Sign("The checkpoint you are trying to load has model type `tinyllava"),
            Sign("The checkpoint you are trying to load has model type `mplug_owl"),
            Sign(
                "KeyError: 'llava_",
                needs=("CONFIG_MAPPING || configuration_auto || config_class || AutoConfig",),
                unless=("'llava_next' || 'llava_onevision' || 'llava_next_video'",),
            ),
        ),
        excludes=("unknown-model-type",),
    ),
    Failure(
        name="unknown-model-type",
        cause="The installed transformers has no model of the type that config.json specifies.",
        cure=_NEWER,
        source="the models that releases of transformers list",
        reproduction="unknown_model_type",
        signs=(
            Sign("but Transformers does not recognize this architecture"),
            Sign("KeyError: '", needs=("CONFIG_MAPPING[config_dict[ || config_class = CONFIG_MAPPING[",)),
        ),
        question=(
            "Does a later release of transformers list this model type, or does the type belong to another project's code?"
        ),
    ),
    Failure(
        name="no-model-type",
        cause="config.json has no model_type, so transformers cannot tell which model this is.",
        cure=(
            "get the config.json that belongs to the weights (the one of the base model that was trained), or, "
            "where the directory has "
            "adapter_config.json, load its base model and then the adapter"
        ),
        source="transformers/models/auto/configuration_auto.py",
        reproduction="config_without_model_type",
        signs=(Sign("Unrecognized model in {}. Should have a `model_type` key"),),
        question="Which files does the directory have: adapter_config.json, only global_step folders, or none that say config?",
    ),
    Failure(
        name="no-model-class",
        cause="No class of the installed transformers loads the whole checkpoint.",
        cure="pass model_class=, or register one with smokehouse_loader.register",
        source=MEASURED,
        reproduction="no_model_class",
    ),
    Failure(
        name="contradicting-architectures",
        cause="architectures in config.json lists a class for another model type than the one it has.",
        cure="set architectures to the class that the weights fit",
        source=f"{MEASURED}: from_pretrained loads it without a word; other programs choose the class by it",
        reproduction="contradicting_architectures",
    ),
    Failure(
        name="remote-code",
        cause="The checkpoint has Python code of its own, which transformers runs only when it is told to.",
        cure="review the .py files in it, pin the revision, and pass trust_remote_code=True",
        source="transformers/dynamic_module_utils.py, resolve_trust_remote_code",
        reproduction="missing_remote_code",
        signs=(
            Sign("contains custom code which must be executed to correctly load the model. You can inspect"),
            Sign("requires you to execute the configuration file in that repo on your local machine"),
            Sign("Please pass the argument `trust_remote_code=True` to allow custom code to be run"),
        ),
    ),
    Failure(
        name="remote-code-imports",
        cause="The checkpoint's own Python code imports a package that is not installed.",
        cure="install the packages that the message names, or use a transformers release that has the model itself",
        source="transformers/dynamic_module_utils.py, check_imports",
        signs=(Sign("This modeling file requires the following packages that were not found in your environment: "),),
    ),
    Failure(
        name="class-not-in-transformers",
        cause=(
            "The class or function is not in the installed transformers: it came with a later release, or left with an "
            "earlier one."
        ),
        cure=(
            "install a release that has the class (Qwen2_5_VL* came with 4.49.0, Qwen3VL* with 4.57.0; "
            "AutoModelForVision2Seq left with 5.0), or the one that the code's requirements name"
        ),
        source="transformers/utils/import_utils.py",
        signs=(
            Sign("cannot import name '{w}' from 'transformers'"),
            Sign("cannot import name '{w}' from 'transformers.{w}'"),
            Sign("module 'transformers' has no attribute"),
            Sign("module transformers has no attribute"),
            Sign("module transformers.{w} has no attribute"),
            Sign("No module named 'transformers.models."),
        ),
        excludes=(),
    ),
    Failure(
        name="image-processor-unknown",
        cause=(
            "preprocessor_config.json names an image processor that the installed transformers does not have, such as "
            "Qwen2_5_VLImageProcessor, which only some checkpoints name."
        ),
        cure=(
            "set image_processor_type to Qwen2VLImageProcessor (or Qwen2VLImageProcessorFast) in "
            "preprocessor_config.json, or use the "
            "transformers that saved it"
        ),
        source="transformers/models/auto/image_processing_auto.py",
        reproduction="unknown_image_processor",
        signs=(
            Sign("Unrecognized image processor in {}. Should have a `image_processor_type` key"),
            Sign("Unrecognized video processor in"),
            Sign("AttributeError: module transformers has no attribute {w}ImageProcessor"),
            Sign("module transformers has no attribute {w}ImageProcessor"),
            Sign("module transformers has no attribute {w}VideoProcessor"),
            Sign("module 'transformers' has no attribute '{w}ImageProcessor"),
            Sign("module 'transformers.models.{w}' has no attribute '{w}ImageProcessor"),
        ),
        excludes=("class-not-in-transformers",),
    ),
    Failure(
        name="processor-files-missing",
        cause="The directory has no files of a processor or tokenizer: only the model was saved into it.",
        cure=(
            "copy preprocessor_config.json, the tokenizer's files and the chat template from the base model, or "
            "save the processor too"
        ),
        source="transformers/models/auto/processing_auto.py",
        signs=(
            Sign("Unrecognized processing class in"),
            Sign("does not appear to have a file named preprocessor_config.json"),
            Sign("Can't load image processor for"),
            Sign("Can't load feature extractor for"),
            Sign("Can't load tokenizer for"),
            Sign("Can't load processor for"),
        ),
        excludes=("hub-file-missing",),
    ),
    Failure(
        name="tokenizer-class-missing",
        cause=(
            "tokenizer_config.json names a tokenizer that the installed transformers does not have, or whose "
            "package is missing."
        ),
        cure=(
            "use the transformers that saved it, install sentencepiece or tiktoken if the message names it, or "
            "copy the base model's tokenizer"
        ),
        source="transformers/models/auto/tokenization_auto.py",
        reproduction="unknown_tokenizer_class",
        signs=(
            Sign("Tokenizer class {w} does not exist or is not currently imported"),
            Sign("ValueError: Tokenizer class {w} is not currently imported"),
            Sign("Couldn't instantiate the backend tokenizer from one of"),
            Sign("Converting from SentencePiece and Tiktoken failed"),
            Sign("Converting from Tiktoken failed"),
        ),
    ),
    Failure(
        name="tokenizer-file-newer",
        cause="tokenizer.json has a form that the installed tokenizers cannot read: nearly always, a newer release wrote it.",
        cure=(
            "install transformers, and with it tokenizers, at least as new as those that wrote the file (from 4.45 and 0.20 on "
            "merges are pairs); if they are, copy the base model's tokenizer.json"
        ),
        source="tokenizers' Rust code; allenai/open-instruct issue #738",
        signs=(Sign("data did not match any variant of untagged enum"),),
    ),
    Failure(
        name="processor-not-made",
        cause="LLaMA-Factory could not make the model's processor, and went on with its tokenizer alone.",
        cure=(
            "run AutoProcessor.from_pretrained(MODEL) to see the error that it swallowed: files that are missing "
            "(preprocessor_config.json), or a transformers that is older than the model"
        ),
        source="llamafactory/data/mm_plugin.py; hiyouga/LLaMA-Factory issue #7582",
        signs=(
            Sign("Processor was not found, please check and update your"),
            Sign("'NoneType' object has no attribute 'image_processor'", needs=("mm_plugin.py",)),
        ),
    ),
    Failure(
        name="template-of-another-model",
        cause="The template that LLaMA-Factory was told to use is of a model without images (or videos or audio).",
        cure="pass the template of this model (qwen2_vl, qwen3_vl, llava, intern_vl, gemma3, …)",
        source="llamafactory/data/mm_plugin.py; hiyouga/LLaMA-Factory issue #8825",
        signs=(Sign("This model does not support {w} input. Please check whether the correct `template` is used"),),
    ),
    Failure(
        name="chat-template-missing",
        cause="The tokenizer or processor has no chat template: it is a base model's, or chat_template.json was not copied.",
        cure="copy chat_template.json (or .jinja) from the model that was trained, or set processor.chat_template",
        source="transformers/processing_utils.py and tokenization_utils_base.py",
        signs=(
            Sign("Cannot use chat template functions because tokenizer.chat_template is not set"),
            Sign("Cannot use apply_chat_template because this processor does not have a chat template"),
            Sign("No chat template is set for this processor"),
        ),
    ),
    Failure(
        name="sizes-in-text-config",
        cause=(
            "The code reads config.hidden_size or vocab_size, and the configuration of a vision-language model has them in "
            "text_config."
        ),
        cure=(
            "give numbers instead of 'auto' in zero_optimization (reduce_bucket_size, stage3_prefetch_bucket_size, "
            "stage3_param_persistence_threshold), read config.get_text_config().hidden_size in own code, and take releases of "
            "trl and accelerate that know this transformers"
        ),
        source="transformers/integrations/deepspeed.py, trainer_config_finalize",
        signs=(
            Sign("entry, therefore it's not possible to automatically fill out the following `auto` entries"),
            *(
                Sign(
                    f"object has no attribute '{name}'",
                    needs=("VLConfig || VLMoeConfig || LlavaConfig || InternVLConfig || Gemma3Config || Idefics || Mllama",),
                )
                for name in ("hidden_size", "vocab_size")
            ),
        ),
    ),
    Failure(
        name="modules-moved",
        cause=(
            "The code reads a module by a path of another transformers: in 4.52 the vision tower and the language model moved "
            "below model.model."
        ),
        cure=(
            "read model.model.visual and model.model.language_model (get_submodule by the names that named_modules lists), or "
            "install the transformers that the code was written for"
        ),
        source="transformers/models/qwen2_5_vl/modeling_qwen2_5_vl.py",
        signs=(
            Sign("ForConditionalGeneration' object has no attribute 'visual'"),
            Sign("ForConditionalGeneration' object has no attribute 'language_model'"),
            Sign("ForConditionalGeneration' object has no attribute 'vision_tower'"),
            Sign("VLModel' object has no attribute 'embed_tokens'"),
            Sign("VLModel' object has no attribute 'layers'"),
        ),
    ),
    Failure(
        name="cache-of-another-release",
        cause=(
            "The model's code uses the cache of keys and values as another transformers had it: get_usable_length, "
            "seen_tokens, get_max_length and indexing by layer left it one after the other. Mostly it is remote code of the "
            "checkpoint."
        ),
        cure=(
            "load the class that transformers has itself, without trust_remote_code, or install the release in config.json's "
            "transformers_version; in code of your own call get_seq_length() and get_max_cache_shape()"
        ),
        source="transformers/cache_utils.py; hiyouga/LLaMA-Factory issue #7597",
        signs=(
            Sign("'DynamicCache' object has no attribute '"),
            Sign("'DynamicCache' object is not subscriptable"),
            Sign("'StaticCache' object has no attribute '"),
            Sign("'HybridCache' object has no attribute '"),
        ),
    ),
    Failure(
        name="rope-type-unknown",
        cause=(
            "The model asks for rotary positions of a type that this transformers has no function for: transformers 5 took "
            "'default' out of the table, which remote code still asks for, and 'mrope' is only known to the classes of "
            "Qwen2-VL and later."
        ),
        cure=(
            "for 'default' install transformers before 5, or newer code of the checkpoint; for 'mrope' load it with the class "
            "that architectures in config.json lists, and do not copy rope_scaling to a model of text"
        ),
        source="transformers/modeling_rope_utils.py, ROPE_INIT_FUNCTIONS; allenai/molmo2 issue #22",
        signs=(Sign("ROPE_INIT_FUNCTIONS[self.rope_type]", needs=("KeyError: '",)),),
        excludes=("unknown-model-type",),
    ),
    Failure(
        name="rope-section-missing",
        cause=(
            "config.json does not say how positions are divided among time, height and width (mrope_section): rope_scaling is "
            "null, or another release wrote it; transformers 5 writes rope_parameters, which 4.x does not read."
        ),
        cure=(
            'copy rope_scaling from the config.json of the base model ({"type": "mrope", "mrope_section": [16, 24, 24]} for '
            "Qwen2.5-VL), or load with the transformers that wrote it"
        ),
        source="transformers/models/qwen2_5_vl/modeling_qwen2_5_vl.py",
        signs=(
            Sign(
                'self.rope_scaling["mrope_section"]',
                needs=("'NoneType' object is not subscriptable || KeyError: 'mrope_section'",),
            ),
            Sign("KeyError: 'mrope_section'"),
        ),
        excludes=("unknown-model-type",),
    ),
    Failure(
        name="image-token-not-set",
        cause="InternVL's own code finds images in a text by img_context_token_id, which only its chat function sets.",
        cure=(
            "set model.img_context_token_id = tokenizer.convert_tokens_to_ids('<IMG_CONTEXT>') after loading (on the wrapped "
            "model below PEFT and DeepSpeed), or take the checkpoint that is converted for transformers (OpenGVLab's -hf)"
        ),
        source="the checkpoint's modeling_internvl_chat.py; om-ai-lab/VLM-R1 issue #264",
        signs=(Sign("assert self.img_context_token_id is not None"),),
    ),
    Failure(
        name="accelerate-of-another-release",
        cause="transformers calls accelerate as a newer (or older) release of it than the installed one.",
        cure=(
            "upgrade accelerate to a release of the same months as transformers (0.34 for 4.45, 1.4 for 4.49, 1.10 for 4.56); "
            "`pip check` cannot see it, since transformers names only a lower bound"
        ),
        source="transformers/trainer.py and accelerate/optimizer.py; huggingface/transformers issue #33620",
        signs=(
            Sign("AttributeError: 'AdamW' object has no attribute 'train'"),
            Sign("Accelerator.unwrap_model() got an unexpected keyword argument"),
            Sign("Accelerator.__init__() got an unexpected keyword argument"),
        ),
    ),
    Failure(
        name="model-argument-unknown",
        cause=(
            "from_pretrained passes an argument that it does not know to the class of the model, which does not know it, "
            "either: it is of another release of transformers."
        ),
        cure=(
            "dtype came with 4.56 (torch_dtype before); for load_in_4bit and load_in_8bit pass "
            "quantization_config=BitsAndBytesConfig(...), for use_flash_attention_2 attn_implementation='flash_attention_2', "
            "and set use_cache and others of the configuration on model.config"
        ),
        source="transformers/modeling_utils.py, from_pretrained",
        signs=(
            Sign("ForConditionalGeneration.__init__() got an unexpected keyword argument '", needs=(_OF_LOADING,)),
            Sign("ForCausalLM.__init__() got an unexpected keyword argument '", needs=(_OF_LOADING,)),
        ),
    ),
    Failure(
        name="hub-client-of-another-release",
        cause="A package imports a name that the installed huggingface_hub does not have: it is too new for it, or too old.",
        cure=(
            "install the huggingface_hub that transformers names (below 1.0 for transformers 4): cached_download left it with"
            " 0.26 and HfFolder with 1.0, split_torch_state_dict_into_shards came with 0.23; then upgrade the package that "
            "imports"
        ),
        source="huggingface_hub/__init__.py; huggingface/transformers PR #41973",
        signs=(
            Sign("cannot import name '{w}' from 'huggingface_hub'"),
            Sign("cannot import name '{w}' from 'huggingface_hub.{w}'"),
        ),
    ),
    Failure(
        name="argument-of-another-release",
        cause=(
            "A Trainer, its arguments or a function do not have this parameter: it was renamed, or is of another release of "
            "the library."
        ),
        cure=(
            "read the signature in the installed release (tokenizer became processing_class, evaluation_strategy "
            "eval_strategy, max_seq_length max_length; image_patch_size needs qwen-vl-utils 0.0.14; a compute_loss of one's "
            "own needs num_items_in_batch=None since 4.46), or install the release that the script was written for"
        ),
        source="transformers/trainer.py and trl's trainers, which raise Python's own TypeError",
        signs=(
            *(
                Sign(f"TypeError: {name}Trainer.__init__() got an unexpected keyword argument")
                for name in ("", "Seq2Seq", "SFT", "GRPO", "DPO", "KTO", "PPO", "Reward", "ORPO", "RLOO")
            ),
            Sign("TrainingArguments.__init__() got an unexpected keyword argument"),
            *(
                Sign(f"{name}Config.__init__() got an unexpected keyword argument")
                for name in ("SFT", "GRPO", "DPO", "KTO", "PPO", "Reward")
            ),
            Sign("process_vision_info() got an unexpected keyword argument"),
            Sign("compute_loss() got an unexpected keyword argument 'num_items_in_batch'"),
            Sign("PreTrainedTokenizerFast._batch_encode_plus() got an unexpected keyword argument"),
        ),
    ),
    Failure(
        name="config-not-json",
        cause="config.json is not valid JSON: it was cut off, merged by hand, or is an error page.",
        cure="get the file again, or validate it with python -m json.tool",
        source="transformers/configuration_utils.py",
        signs=(
            Sign("It looks like the config file at {} is not a valid JSON file"),
            Sign(
                "JSONDecodeError",
                needs=("_dict_from_json_file || from_json_file || /config.json || configuration_utils.py",),
                unless=("hf_raise_for_status || requests/models.py",),
            ),
        ),
    ),
    Failure(
        name="attention-not-supported",
        cause=(
            "The class does not have the attention that was asked for: this release of the model has no flash or SDPA version."
        ),
        cure='pass attn_implementation="sdpa" or "eager", or use a release of transformers whose model has it',
        source="transformers/modeling_utils.py",
        signs=(
            Sign("does not support Flash Attention {} yet. Please request to add support"),
            Sign("does not support an attention implementation through torch.nn.functional.scaled_dot_product_attention yet"),
            Sign("Specified `attn_implementation={}` is not supported"),
        ),
    ),
)
