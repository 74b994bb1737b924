"""ZeRO at run time: engines that train, and models that ZeRO-3 has partitioned."""

from smokehouse_loader.failures.adapters import QUANTISED
from smokehouse_loader.failures.model import MEASURED, Failure, Sign

_ZERO = ("deepspeed || zero3 || ZeRO || zero_stage || ds_config",)
_REFERENCE = "ref_model || reference_model || ref_policy || deepcopy || ref_per_token || ref_log || in reference"
_GENERATION = "in generate || generation/utils.py || .generate("
_OF_A_MODEL = f"{_GENERATION} || transformers/models || modeling_"
# Of torch's FSDP, or before the model is there.
_ELSEWHERE = 'FSDP || fsdp || fully_shard || sparse.py", line {n}, in __init__ || sparse.py:{n} in __init__'
_OUTPUT_VIEWS = "a function that returns multiple views. Such functions do not allow the output views to be modified inplace"
_EMPTY_WEIGHT = (
    "'weight' must be 2-D",
    "size mismatch, got input ({n}), mat ({}), vec (0)",
    "Padding_idx must be within num_embeddings",
)

FAILURES = (
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
        name="development-version",
        cause="Development versions of transformers share one version number, and some of them cannot load under ZeRO-3.",
        cure="install a release of transformers",
        source="transformers PR #36335, fixed by PR #36455; both are 4.50.0.dev0",
        reproduction="development_version",
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
        name="generate-before-initialize",
        cause=(
            "A model that ZeRO-3 has partitioned was called before deepspeed.initialize installed the hooks that gather its "
            "weights."
        ),
        cure="call deepspeed.initialize first, and engine.module.generate(..., synced_gpus=True)",
        source=MEASURED,
        reproduction="generate_before_initialize",
        signs=(
            *(Sign(text, needs=(_OF_A_MODEL,), unless=(_REFERENCE, _ELSEWHERE)) for text in _EMPTY_WEIGHT),
            *(Sign(text, log=_ZERO, unless=(_REFERENCE, _ELSEWHERE)) for text in _EMPTY_WEIGHT),
        ),
        excludes=("padding-index",),
        apart="the model itself was called, not a copy of it",
        question="Was it the trained model before deepspeed.initialize, or a second one that was copied from it?",
    ),
    Failure(
        name="deepcopied-model",
        cause=(
            "copy.deepcopy of a model that ZeRO-3 has partitioned returns a copy in which every tensor is "
            "unusable; it says nothing "
            "until the copy is called: 'weight' must be 2-D."
        ),
        cure="load the checkpoint a second time with load_model instead of copying the model",
        source=f"{MEASURED}",
        reproduction="deepcopy_partitioned_model",
        signs=(
            *(Sign(text, needs=(_REFERENCE,), unless=(_ELSEWHERE,)) for text in _EMPTY_WEIGHT),
            *(Sign(text, needs=(_OF_A_MODEL,), unless=(_GENERATION, _ELSEWHERE)) for text in _EMPTY_WEIGHT),
            Sign("DeepSpeed ZeRO-3 is enabled and is not compatible with `create_reference_model()`"),
        ),
        excludes=("padding-index",),
        apart="the call came from a reference model that was copied, not loaded",
    ),
    Failure(
        name="inflight-parameters",
        cause=(
            "ZeRO-3 prefetches the modules that ran in the first steps, and a later step ran others: modules "
            "depend on data (images, "
            "experts), a forward was interrupted, or a model was called outside the engine."
        ),
        cure=(
            "run the same modules in every step and on every rank (a dummy image where there is none), set "
            "stage3_prefetch_bucket_size and stage3_max_live_parameters to 0 to confirm it, and for mixtures of experts call "
            "deepspeed.utils.set_z3_leaf_modules"
        ),
        source="DeepSpeed issues #5828 and #3156: parameters selected by the data, DeepSpeed 0.9 to 0.14",
        signs=(Sign("still have inflight params"),),
        question="Do all ranks run the vision tower in every step?",
    ),
    Failure(
        name="parameter-not-available",
        cause=(
            "ZeRO-3 released or had not gathered a parameter that a module used: activation checkpointing that "
            "recomputes in another "
            "order, a module whose parameters another one uses, or modules that depend on data."
        ),
        cure=(
            "use gradient_checkpointing_kwargs={'use_reentrant': True} under ZeRO-3 with this release of "
            "DeepSpeed, register external "
            "parameters (deepspeed.zero.register_external_parameter), and give every rank the same modules to run"
        ),
        source="deepspeed/runtime/zero/partitioned_param_coordinator.py, fetch_sub_module",
        signs=(
            Sign("assert param.ds_status == ZeroParamStatus.AVAILABLE"),
            Sign("'status': 'NOT_AVAILABLE'", needs=("AssertionError || RuntimeError", "ds_numel || ds_shape || deepspeed")),
            Sign("'status': 'INFLIGHT'", needs=("AssertionError || RuntimeError", "ds_numel || ds_shape || deepspeed")),
            Sign("expected there to be only one unique element in", needs=("deepspeed || zero",)),
        ),
        question="Does it go away without gradient checkpointing, or with images in every batch?",
    ),
    Failure(
        name="partitioned-parameter-used",
        cause=(
            "Under ZeRO-3 a parameter was used outside of the forward of the module that owns it, when this rank has [0] of "
            "it: code of one's own, a fused kernel that reads the weight instead of calling the module, or linear attention, "
            "such as Qwen3.5's, which reads conv1d.weight. DeepSpeed up to 0.16.4 gathers such weights in the engine's forward "
            "alone: training works, generate before the first step does not."
        ),
        cure=(
            "call the module, or gather the parameter around its use (deepspeed.zero.GatheredParameters), or call "
            "deepspeed.zero.register_external_parameter(layer, layer.conv1d.weight) for the layer that reads it, before "
            "deepspeed.initialize; switch the fused kernel off; for generate use DeepSpeed 0.16.5 or later"
        ),
        source=(
            f"{MEASURED}; LlamaFactory issue #7588: liger's kernels under ZeRO-3; deepspeed/runtime/engine.py, where "
            "_module_forward_pre_hook begins with 0.16.5"
        ),
        reproduction="read_weight_of_another_module",
        signs=(
            Sign("The size of tensor a ({n}) must match the size of tensor b (0) at non-singleton", log=("deepspeed || zero",)),
            Sign("The size of tensor a (0) must match the size of tensor b ({n}) at non-singleton", log=("deepspeed || zero",)),
            Sign(
                "IndexError: Dimension out of range (expected to be in range of [-1, 0], but got 1)",
                needs=(".conv1d.weight.squeeze(1)",),
                log=("deepspeed || DeepSpeed || zero || ZeRO",),
                unless=(_ELSEWHERE,),
            ),
        ),
        question="Does it go away under ZeRO-2?",
    ),
    Failure(
        name="parameter-freed-in-use",
        cause=(
            "A GatheredParameters context ended, or a parameter was released, while a module still counts as using it: a "
            "forward before it was never finished (an exception that was caught, a model called outside of its engine, a "
            "forward in generation), or parameters were changed in it without modifier_rank. trl's GRPOTrainer met it where "
            "it moves weights to vLLM."
        ),
        cure=(
            "let every forward of the model end before weights are gathered, pass modifier_rank=0 where they are changed, and "
            "install newer trl and DeepSpeed; to go on, call param.ds_active_sub_modules.clear() for every parameter before "
            "the weights are moved"
        ),
        source="deepspeed/runtime/zero/partition_parameters.py, free_param; huggingface/trl issue #2840",
        signs=(
            Sign("assert not param.ds_active_sub_modules, param.ds_summary()"),
            Sign("Cannot free a ZeRO-3 parameter while it is still active in submodules"),
        ),
        excludes=("parameter-not-available",),
    ),
    Failure(
        name="hooks-of-wrapped-module",
        cause=(
            "DeepSpeed 0.16.5 to 0.19.2 gives each module a function that counts its gradients, and takes a wrapper that "
            "passes on attributes (PEFT's for modules_to_save) for one that has it: the wrapped module is counted before it "
            "ran."
        ),
        cure=(
            "use DeepSpeed 0.19.3 or later, or 0.16.4 or earlier; or leave lm_head and embed_tokens out of modules_to_save "
            "(as target_modules they are trained by LoRA), or train under ZeRO-2"
        ),
        source=f"{MEASURED}; DeepSpeed issues #7203 and #7615; deepspeed/runtime/zero/parameter_offload.py",
        reproduction="wrapper_that_passes_on_attributes",
        signs=(
            Sign("object has no attribute 'ds_grads_remaining'"),
            Sign("KeyError: 'ds_grads_remaining'"),
        ),
        excludes=("unknown-model-type",),
    ),
    Failure(
        name="gradients-counted-without-graph",
        cause=(
            "DeepSpeed 0.18.3 to 0.18.6 counts the parameters of a backward by a function of torch that in torch up to 2.4 "
            "fails where gradients are off, as they are in its hook."
        ),
        cure="use DeepSpeed 0.18.7 or later, or torch 2.5 or later",
        source="deepspeed/runtime/utils.py, count_used_parameters_in_backward; DeepSpeed issue #7830, fixed by its PR #7841",
        signs=(
            Sign(
                "'NoneType' object has no attribute 'next_functions'",
                needs=("deepspeed || count_used_parameters_in_backward || _get_grad_fn_or_grad_acc",),
            ),
        ),
    ),
    Failure(
        name="backward-without-engine",
        cause=(
            "loss.backward() was called on a model of DeepSpeed, whose optimizer prepares its buffers in engine.backward(loss)."
        ),
        cure="call engine.backward(loss) and engine.step(), or accelerator.backward(loss) with accelerate",
        source="deepspeed/runtime/zero/stage_1_and_2.py; DeepSpeed issue #6995",
        signs=(Sign("'DeepSpeedZeroOptimizer' object has no attribute 'ipg_"),),
    ),
    Failure(
        name="engine-without-optimizer",
        cause=(
            "deepspeed.initialize got no optimizer, so under ZeRO-3 it built an engine for inference, which cannot go backward."
        ),
        cure=(
            "pass optimizer=, or give the DeepSpeed configuration an optimizer; with accelerate prepare model and optimizer in "
            "one call, and prepare reference models apart"
        ),
        source="deepspeed/runtime/zero/parameter_offload.py; DeepSpeed issues #3024 and #3516",
        signs=(
            Sign("'DeepSpeedZeRoOffload' object has no attribute 'backward'"),
            Sign("'DeepSpeedZeRoOffload' object has no attribute 'step'"),
        ),
    ),
    Failure(
        name="sequence-parallel-heads",
        cause="Sequence parallelism divides attention heads among ranks, and the model has not a multiple of their number.",
        cure=(
            "choose a sequence parallel size that divides num_attention_heads (28 of Qwen2.5-VL-7B: 2, 4, 7) and divides, or "
            "is a multiple of, num_key_value_heads (4)"
        ),
        source="deepspeed/runtime/sequence_parallel/ulysses_sp.py and deepspeed/sequence/layer.py",
        signs=(
            Sign("is not divisible by SP size"),
            Sign("must be divisible by the sequence parallel size"),
        ),
    ),
    Failure(
        name="hooks-renamed",
        cause="DeepSpeed 0.16.4 renamed a function that trl before 0.16 calls when it puts hooks back after generating.",
        cure="use trl 0.16.0 or later, or DeepSpeed 0.16.3 or earlier",
        source="trl/models/utils.py, add_hooks; DeepSpeed PR #6847; om-ai-lab/VLM-R1 issue #32",
        signs=(
            Sign("'DeepSpeedZeRoOffload' object has no attribute '_register_hooks_recursively'"),
            Sign("'DeepSpeedZeRoOffload' object has no attribute '_register_deepspeed_module'"),
        ),
    ),
    Failure(
        name="several-models-one-accelerator",
        cause="accelerate was asked to prepare a second model for DeepSpeed, whose plugin configures one.",
        cure=(
            "prepare the second with a plugin of its own (Accelerator(deepspeed_plugins={...}) and select_deepspeed_plugin), "
            "or give a model that is not trained to deepspeed.initialize yourself, without an optimizer"
        ),
        source="accelerate/accelerator.py",
        signs=(Sign("You can't use same `Accelerator()` instance with multiple models when using DeepSpeed"),),
    ),
    Failure(
        name="batch-size-not-known",
        cause="accelerate fills in DeepSpeed's batch size from the data loader that it prepares, and got none with one.",
        cure="prepare the data loader in the same call, or set train_micro_batch_size_per_gpu to a number",
        source="accelerate/accelerator.py, _prepare_deepspeed",
        signs=(Sign("`accelerate.prepare()` requires you to pass at least one of training or evaluation dataloaders"),),
    ),
    Failure(
        name="checkpoint-recomputation",
        cause=(
            "Activation checkpointing recomputed other tensors than the forward had saved: under ZeRO-3 "
            "parameters are empty (shape [0]) "
            "in one of the two, or the forward depends on state."
        ),
        cure=(
            "under ZeRO-3 pass gradient_checkpointing_kwargs={'use_reentrant': True}; without it look for caches "
            "(use_cache=False) and "
            "dropout that change between the two"
        ),
        source="torch/utils/checkpoint.py",
        signs=(
            Sign("torch.utils.checkpoint: Recomputed values for the following tensors have different metadata"),
            Sign(
                "torch.utils.checkpoint: A different number of tensors was saved during the original forward and recomputation"
            ),
            Sign(
                "torch.utils.checkpoint: trying to save more tensors during recomputation than during the original forward pass"
            ),
        ),
        excludes=(),
    ),
    Failure(
        name="gradient-reduced-twice",
        cause=(
            "A parameter's gradient was computed twice in one backward: reentrant activation checkpointing with "
            "shared or unused "
            "modules, or two backwards without a step, under ZeRO-1 or 2."
        ),
        cure=(
            "pass gradient_checkpointing_kwargs={'use_reentrant': False}, run each module once per backward, and "
            "call engine.backward "
            "once per engine.step or gradient accumulation step"
        ),
        source="deepspeed/runtime/zero/stage_1_and_2.py",
        signs=(Sign("has already been reduced. {} Gradient computed twice for this partition"),),
    ),
    Failure(
        name="ready-twice",
        cause=(
            "DistributedDataParallel saw a parameter's gradient twice: reentrant checkpointing, or parameters "
            "shared by two forwards."
        ),
        cure=(
            "pass gradient_checkpointing_kwargs={'use_reentrant': False}; set find_unused_parameters=False if "
            "every parameter is used"
        ),
        source="torch/nn/parallel/distributed.py and reducer.cpp",
        signs=(Sign("Expected to mark a variable ready only once"),),
    ),
    Failure(
        name="unused-parameters",
        cause=(
            "DistributedDataParallel waits for gradients of parameters that took no part in the loss, such as a "
            "vision tower without images."
        ),
        cure=(
            "give every rank an image (or add 0 * visual(dummy).sum()), freeze what is not trained, or set "
            "find_unused_parameters=True"
        ),
        source="torch's reducer.cpp",
        signs=(Sign("Expected to have finished reduction in the prior iteration before starting a new one"),),
    ),
    Failure(
        name="flat-parameters-keep-their-graph",
        cause=(
            "DeepSpeed 0.18.7 to 0.18.9 flattens parameters for ZeRO-1 and ZeRO-2 without detaching them from autograd, which "
            "then refuses the first step's update in place."
        ),
        cure=(
            "use DeepSpeed 0.19.0 or later, or 0.18.6 or earlier; with this version, call engine.step() under torch.no_grad(), "
            "or train under ZeRO-3"
        ),
        source=(
            f"{MEASURED} on gloo; deepspeed/runtime/zero/stage_1_and_2.py has .detach() from 0.19.0 on; "
            "TeenLucifer/grpo_reproduce issue #11 reports it from a GPU"
        ),
        signs=(
            Sign(_OUTPUT_VIEWS, needs=("stage_1_and_2.py || all_gather_dp_groups || all_gather_into_tensor_dp_groups",)),
            Sign(
                _OUTPUT_VIEWS,
                log=(" || ".join(f"DeepSpeed info: version=0.18.{patch}{{/}}" for patch in (7, 8, 9)),),
                unless=("in forward || modeling_",),
            ),
        ),
    ),
    Failure(
        name="loss-scale-at-minimum",
        cause=(
            "fp16 overflowed in every step until DeepSpeed's loss scale reached its minimum: the loss or "
            "gradients are not finite."
        ),
        cure=(
            "train in bf16 (models trained in bf16 overflow in fp16), and check that weights were loaded and "
            "labels are not all -100"
        ),
        source="deepspeed/runtime/fp16/loss_scaler.py",
        signs=(Sign("Current loss scale already at minimum - cannot decrease scale anymore"),),
    ),
    Failure(
        name="batch-size-contradiction",
        cause="train_batch_size is not micro batch times accumulation steps times ranks, in the DeepSpeed configuration.",
        cure='set all three to "auto" with the Trainer, or omit train_batch_size',
        source="deepspeed/runtime/config.py",
        signs=(Sign("Check batch related parameters. train_batch_size is not equal to micro_batch_per_gpu"),),
    ),
    Failure(
        name="offload-optimizer",
        cause="ZeRO-Offload runs the optimizer on the CPU, and this one is not made for it.",
        cure='use DeepSpeedCPUAdam (optim="adamw_torch" in the Trainer and none in the DeepSpeed configuration), or set '
        "zero_force_ds_cpu_optimizer to false",
        source="deepspeed/runtime/engine.py",
        signs=(Sign("You are using ZeRO-Offload with a client provided optimizer"),),
    ),
    Failure(
        name="no-sync-under-zero",
        cause="no_sync was entered under ZeRO-2 or 3, which partition gradients and cannot keep them for later.",
        cure=(
            "accumulate with gradient_accumulation_steps of the DeepSpeed configuration, and upgrade accelerate to 1.3 or later"
        ),
        source="deepspeed/runtime/engine.py",
        signs=(Sign("no_sync context manager is incompatible with gradient partitioning logic of ZeRO stage"),),
    ),
    Failure(
        name="deepspeed-config-differs",
        cause="The DeepSpeed configuration has numbers or types other than the Trainer's arguments.",
        cure=(
            'set what the message lists to "auto" in the DeepSpeed configuration (bf16.enabled, '
            "train_micro_batch_size_per_gpu, optimizer.params.lr, …), or make both the same"
        ),
        source="transformers/integrations/deepspeed.py, trainer_config_finalize",
        signs=(Sign("Please correct the following DeepSpeed config values that mismatch TrainingArguments values"),),
    ),
    Failure(
        name="hooks-of-plain-model",
        cause=(
            "trl before 0.15 takes DeepSpeed's hooks off a model that has no optimizer (of a reference model, or before the "
            "first step)."
        ),
        cure="install trl 0.15.0 or newer, which leaves such a model alone",
        source="trl/models/utils.py, remove_hooks; huggingface/open-r1 issue #146",
        signs=(
            Sign("ForConditionalGeneration' object has no attribute 'optimizer'", needs=("remove_hooks || add_hooks",)),
            Sign("ForCausalLM' object has no attribute 'optimizer'", needs=("remove_hooks || add_hooks",)),
        ),
    ),
    Failure(
        name="fsdp-dtypes",
        cause=(
            "FSDP joins the parameters of a module into one tensor, and they have several dtypes: a part of the model, an "
            "added layer or the adapter was left in float32."
        ),
        cure=(
            "load every part in one dtype (torch_dtype=torch.bfloat16, in composite configurations too), and cast what was "
            "added later with model.to(torch.bfloat16)"
        ),
        source="torch/distributed/fsdp/_flat_param.py; hiyouga/LLaMA-Factory issue #7993",
        signs=(Sign("Must flatten tensors with uniform dtype but got", unless_log=(QUANTISED,)),),
    ),
    Failure(
        name="fsdp-frozen-parameters",
        cause="FSDP joins the frozen and trained parameters of a module into one tensor, not allowed by use_orig_params=False.",
        cure=(
            "set fsdp_use_orig_params: true, or wrap frozen and trained modules apart (peft.utils.other.fsdp_auto_wrap_policy "
            "for adapters)"
        ),
        source="torch/distributed/fsdp/_flat_param.py; huggingface/peft issue #1702",
        signs=(Sign("Must flatten tensors with uniform `requires_grad` when `use_orig_params=False`"),),
    ),
    Failure(
        name="fsdp-layer-class",
        cause="fsdp_transformer_layer_cls_to_wrap names a class that no module of the model has.",
        cure=(
            "print({type(one).__name__ for one in model.modules()}) and name its decoder's layer and its vision tower's "
            "block, or leave the setting out for the model's own _no_split_modules"
        ),
        source="accelerate/utils/dataclasses.py, set_auto_wrap_policy",
        signs=(Sign("Could not find the transformer layer class"),),
    ),
)
