"""Saving and resuming: checkpoints of engines and trainers."""

from smokehouse_loader.failures.model import MEASURED, Failure, Sign

_REFUSED = "Weights only load failed."
_DEEPSPEED = (
    "GLOBAL deepspeed. || deepspeed.runtime.fp16.loss_scaler || deepspeed.runtime.zero.config || "
    "deepspeed.utils.tensor_fragment "
    "|| load_checkpoint || global_step || zero_pp_rank"
)
_RANDOM = "rng_state || numpy.core.multiarray || numpy._core.multiarray || _load_rng_state"

FAILURES = (
    Failure(
        name="rng-state-unpickled",
        cause=(
            "torch 2.6 loads only plain tensors by default, and rng_state of a Trainer's checkpoint has numpy's "
            "and Python's state: "
            "transformers before 4.50 does not allow them."
        ),
        cure=(
            "allow what the message names before resuming: "
            "torch.serialization.add_safe_globals([numpy.core.multiarray._reconstruct, "
            "numpy.ndarray, numpy.dtype, type(numpy.dtype('uint32'))]), or use a later transformers; without the "
            "file (rng_state*.pth "
            "removed) the run resumes with other random numbers"
        ),
        source="fixed by ; torch 2.6 made weights_only the default",
        signs=(
            Sign(_REFUSED, needs=(_RANDOM,), unless=("GLOBAL deepspeed.",)),
            Sign("Unsupported global: GLOBAL numpy.", unless=("GLOBAL deepspeed.",)),
        ),
        excludes=("unpicklable-engine-checkpoint", "weights-only", "unsafe-pickle"),
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
        signs=(
            Sign(_REFUSED, needs=(_DEEPSPEED,)),
            Sign("Unsupported global: GLOBAL deepspeed"),
        ),
        excludes=("weights-only",),
    ),
    Failure(
        name="weights-only",
        cause="torch 2.6 loads only plain tensors by default, and this file has other objects in it, which the message names.",
        cure=(
            "if the file is your own, allow what the message names with "
            "torch.serialization.add_safe_globals([...]); else get the "
            "checkpoint as safetensors"
        ),
        source="torch/serialization.py",
        signs=(
            Sign(
                _REFUSED,
                needs=("Unsupported global: || GLOBAL || add_safe_globals || WeightsUnpickler error",),
                unless=(_RANDOM, _DEEPSPEED),
            ),
        ),
        excludes=("unsafe-pickle",),
        question="Which file was it, and who wrote it?",
    ),
    Failure(
        name="engine-checkpoint",
        cause="The directory is a DeepSpeed engine's own checkpoint, which from_pretrained cannot read.",
        cure="convert it with the zero_to_fp32.py inside it, or load it with engine.load_checkpoint",
        source="the documentation of DeepSpeed checkpoints",
        reproduction="load_engine_checkpoint",
        signs=(Sign("no file named {} found in directory {w}global_step"),),
        excludes=("no-weights",),
    ),
    Failure(
        name="consolidation-off",
        cause="Under ZeRO-3 no whole weights are written unless gathering them at a save is enabled.",
        cure=(
            "set zero_optimization.stage3_gather_16bit_weights_on_model_save to true; weights that were saved "
            "without it are in the "
            "engine's checkpoint: run the zero_to_fp32.py in it"
        ),
        source=f"{MEASURED}: save_16bit_model returns False and only logs it; accelerate/accelerator.py, get_state_dict",
        reproduction="save_without_gathering",
        signs=(
            Sign("Did not save the model {} because `stage3_gather_16bit_weights_on_model_save` is False"),
            Sign("Did not save the model {} because stage3_gather_16bit_weights_on_model_save is False"),
            Sign("Cannot get 16bit model weights because `stage3_gather_16bit_weights_on_model_save`"),
            Sign("Cannot get 16bit model weights because stage3_gather_16bit_weights_on_model_save"),
            Sign("stage3_gather_16bit_weights_on_model_save=false. Saving the full checkpoint instead, use zero_to_fp32.py"),
        ),
    ),
    Failure(
        name="other-world-size",
        cause="The checkpoint was saved by another number of ranks, and ZeRO's optimizer state is divided among them.",
        cure=(
            "resume with as many ranks as before, convert it to a universal checkpoint (ds_to_universal.py, "
            "load_universal), or start "
            "from the consolidated weights without optimizer state"
        ),
        source="deepspeed/runtime/engine.py",
        signs=(
            Sign("The checkpoint being loaded used a DP world size of"),
            Sign("zero_pp_rank_{n}_mp_rank_{n}_optim_states.pt", needs=("No such file or directory || does not exist",)),
            Sign(
                "zero_pp_rank_{n}_mp_rank_{n}_model_states.pt",
                needs=("No such file or directory || does not exist || FileNotFoundError",),
            ),
            Sign("Expected {n} of '*_optim_states.pt' under"),
        ),
    ),
    Failure(
        name="universal-version-missing",
        cause="Under ZeRO-1 and ZeRO-2 an engine checkpoint lacks the version of the universal format, unless the program "
        "saved it in client_state; ZeRO-3 needs none.",
        cure="convert it with ds_to_universal.py --inject_missing_state, or save universal_checkpoint_info in client_state",
        source="deepspeed/checkpoint/ds_to_universal.py",
        signs=(Sign("Required {} state is missing in checkpoint. Verify that client creates this state"),),
    ),
    Failure(
        name="latest-missing",
        cause="The directory has no DeepSpeed checkpoint: the file latest, or the tag that it names, is missing.",
        cure="pass the folder that contains latest and global_stepN, or a tag; of a Trainer, checkpoint-N",
        source="deepspeed/runtime/engine.py, load_checkpoint",
        signs=(
            Sign("Unable to find latest file at"),
            Sign("Unable to find 'latest' file at"),
        ),
    ),
    Failure(
        name="resume-nothing",
        cause="The folder to resume from has no checkpoint of a Trainer.",
        cure=(
            "pass a folder that has trainer_state.json and weights, such as out/checkpoint-500, or resume_from_checkpoint=None"
        ),
        source="transformers/trainer.py",
        signs=(
            Sign("Can't find a valid checkpoint at"),
            Sign("No valid checkpoint found in output directory"),
        ),
    ),
    Failure(
        name="resume-without-engine-state",
        cause="A Trainer with DeepSpeed was told to resume from a folder without the engine's checkpoint (global_stepN).",
        cure=(
            "resume from a checkpoint that was saved with save_only_model=False, or load its weights with "
            "from_pretrained and start anew"
        ),
        source="transformers/integrations/deepspeed.py, deepspeed_load_checkpoint",
        signs=(
            Sign("[deepspeed] failed to resume from checkpoint"),
            Sign("[deepspeed] Can't find a valid checkpoint at"),
            Sign("Can't find a valid checkpoint at", needs=("deepspeed_load_checkpoint",)),
        ),
        excludes=("resume-nothing",),
    ),
    Failure(
        name="optimizer-groups-differ",
        cause="The optimizer was saved for other parameters than it now has: other layers are frozen, or an adapter was added.",
        cure="freeze and adapt the same parameters as in the first run, or start the optimizer anew from the weights",
        source="torch/optim/optimizer.py, load_state_dict",
        signs=(
            Sign("loaded state dict contains a parameter group that doesn't match the size of optimizer's group"),
            Sign("loaded state dict has a different number of parameter groups"),
        ),
    ),
    Failure(
        name="tensors-share-memory",
        cause="Two tensors of the model share memory (tied or sliced), which safetensors does not store.",
        cure=(
            "call model.tie_weights() and save with save_pretrained, which drops the tied one, or use "
            "safetensors.torch.save_model; "
            "with adapters do not tie what modules_to_save has"
        ),
        source="transformers/modeling_utils.py; safetensors' page on shared tensors",
        signs=(
            Sign("Some tensors share memory, this will lead to duplicate memory on disk"),
            Sign("The weights trying to be saved contained shared tensors"),
            Sign("You are trying to save a non contiguous tensor"),
        ),
    ),
    Failure(
        name="stale-file-handle",
        cause=(
            "A shared file system (NFS, or a mounted bucket) lost a file that was open: another node replaced or deleted it, "
            "the server moved, the mount's own process ended, or the disk below it fails."
        ),
        cure=(
            "write checkpoints to a local or parallel file system, delete old ones on rank 0 only, mount it again where the "
            "transport endpoint is not connected, and resume from the last; dmesg shows a disk that fails"
        ),
        source="Linux, ESTALE, ENOTCONN and EIO",
        signs=(
            Sign("[Errno 116] Stale file handle"),
            Sign("[Errno 107] Transport endpoint is not connected: '"),
            Sign("[Errno 5] Input/output error: '"),
        ),
    ),
    Failure(
        name="disk-full",
        cause=(
            "The disk, or the user's quota, was full while a file was written; the file that was being written is incomplete."
        ),
        cure=(
            "free space, keep fewer checkpoints (save_total_limit) or fewer states (save_only_model), and delete "
            "the incomplete one"
        ),
        source="Linux, ENOSPC and EDQUOT",
        signs=(
            Sign("OSError: [Errno 28] No space left on device", unless=("/dev/shm",)),  # noqa: S108 - matched, not opened
            Sign("Disk quota exceeded"),
            Sign("Error while serializing: IoError(Os { code: 28, kind: StorageFull"),
            Sign("I/O error: No space left on device (os error 28)"),
            Sign("No space left on device (os error 28)"),
            Sign("PytorchStreamWriter failed writing file"),
            Sign(
                "unexpected pos {n} vs", needs=("inline_container.cc || torch.save || PyTorchFileWriter || serialization.py",)
            ),
        ),
    ),
    Failure(
        name="generation-config-invalid",
        cause=(
            "save_pretrained refuses a generation configuration that contradicts itself, such as temperature without do_sample."
        ),
        cure="set model.generation_config.do_sample = True, or remove temperature and top_p from it, before saving",
        source="transformers/generation/configuration_utils.py",
        signs=(
            Sign("The generation config instance is invalid -- `.validate()` throws warnings and/or exceptions"),
            Sign("GenerationConfig is invalid"),
        ),
    ),
)
