"""Files: what lies in the directory of a checkpoint."""

from smokehouse_loader.failures.model import MEASURED, Failure, Sign

_HEADER = "Error while deserializing header: "

FAILURES = (
    Failure(
        name="truncated-shard",
        cause="A weight file is truncated: the download or the copy was interrupted.",
        cure="download or copy the file again",
        source="safetensors refuses such a file on every rank",
        reproduction="truncated_shard",
        signs=(
            Sign("MetadataIncompleteBuffer", needs=("SafetensorError || safetensors || deserializing header",)),
            Sign(f"{_HEADER}incomplete metadata, file not fully covered"),
            Sign(f"{_HEADER}InvalidHeaderLength"),
            Sign(f"{_HEADER}invalid header length"),
            Sign(f"{_HEADER}HeaderTooSmall"),
            Sign(f"{_HEADER}header too small"),
            Sign("PytorchStreamReader failed reading zip archive"),
            Sign("PytorchStreamReader failed finding central directory"),
            Sign("invalid header or archive is corrupted"),
            Sign("unexpected EOF, expected {n} more bytes. The file might be corrupted"),
        ),
    ),
    Failure(
        name="not-a-checkpoint",
        cause="A file or directory is named like weights but has other contents, such as a Git LFS pointer or an error page.",
        cure="get the real file: run git lfs pull, or download it again",
        source="safetensors reads the first 8 bytes as a length",
        reproduction="git_lfs_pointer",
        signs=(
            Sign(f"{_HEADER}HeaderTooLarge"),
            Sign(f"{_HEADER}header too large"),
            Sign("You seem to have cloned a repository without having git-lfs installed"),
            Sign("invalid load key, 'v'."),
            Sign("invalid load key, '<'."),
        ),
    ),
    Failure(
        name="no-weights",
        cause=(
            "The directory has no weights that transformers reads: it has an adapter, DeepSpeed's own checkpoint that was not "
            "consolidated, or only configuration."
        ),
        cure=(
            "see what it has: with adapter_config.json load the base model and then the adapter; with "
            "global_step folders run the "
            "zero_to_fp32.py in it; of a Trainer pass checkpoint-N; else download the weights"
        ),
        source="transformers/modeling_utils.py",
        signs=(
            Sign("no file named {}pytorch_model.bin{} found in directory"),
            Sign("no file named {}model.safetensors{} found in directory"),
            Sign("does not appear to have a file named pytorch_model.bin"),
            Sign("does not appear to have a file named model.safetensors"),
        ),
        excludes=("hub-file-missing",),
        question="Does the directory have adapter_config.json, a global_step folder, or a .git folder with LFS pointers?",
    ),
    Failure(
        name="broken-header",
        cause="The header of a safetensors file does not match the file.",
        cure="download or save the file again",
        source="the specification of the format",
        reproduction="broken_header",
        signs=(
            Sign(f"{_HEADER}InvalidHeaderDeserialization"),
            Sign(f"{_HEADER}InvalidHeaderStart"),
            Sign(f"{_HEADER}InvalidHeader{{}}", unless=("InvalidHeaderLength",)),
            Sign(f"{_HEADER}InvalidOffset"),
            Sign(f"{_HEADER}TensorInvalidInfo"),
            Sign(f"{_HEADER}ValidationOverflow"),
            Sign(f"{_HEADER}invalid JSON in header"),
            Sign(f"{_HEADER}invalid UTF-8 in header"),
            Sign(f"{_HEADER}invalid offset"),
            Sign(f"{_HEADER}invalid shape"),
        ),
    ),
    Failure(
        name="missing-shard",
        cause="A weight file of the checkpoint was not found or cannot be read.",
        cure="download the rest of the checkpoint",
        source=MEASURED,
        reproduction="missing_shard",
        signs=(
            Sign("FileNotFoundError: No such file or directory: {w}.safetensors"),
            Sign('No such file or directory: "{w}.safetensors'),
            Sign("No such file or directory: '{w}.safetensors", unless=("adapter_model.safetensors",)),
            Sign("No such file or directory: '{w}pytorch_model{w}.bin"),
            Sign("No such file or directory: 'pytorch_model{w}bin"),
            Sign("does not appear to have a file named model-0"),
            Sign("does not appear to have a file named pytorch_model-0"),
        ),
        excludes=("hub-file-missing",),
    ),
    Failure(
        name="inconsistent-index",
        cause="The index and the shards disagree: files of two checkpoints are mixed, or a save was interrupted.",
        cure="download or save the checkpoint again, into an empty directory",
        source=MEASURED,
        reproduction="shard_outside_index",
        signs=(Sign("File does not contain tensor"),),
    ),
    Failure(
        name="safetensors-metadata",
        cause="A safetensors file has no format in its metadata, which transformers before 4.51 requires.",
        cure="save it again with safetensors.torch.save_file(tensors, file, metadata={'format': 'pt'})",
        source="transformers/modeling_utils.py, load_state_dict",
        signs=(
            Sign("does not contain the valid metadata. Make sure you save your model with the `save_pretrained` method"),
            Sign(
                "'NoneType' object has no attribute 'get'",
                needs=("metadata.get(\"format\") || metadata = f.metadata() || metadata.get('format')",),
            ),
        ),
    ),
    Failure(
        name="unsafe-pickle",
        cause="A .bin file is a pickle with more than tensors in it, and could run code when it is loaded.",
        cure="get the checkpoint as safetensors, or save it again with tensors only",
        source="torch.load with weights_only, the default since torch 2.6",
        reproduction="unsafe_pickle",
        signs=(Sign("Due to a serious vulnerability issue in `torch.load`, even with `weights_only=True`"),),
    ),
    Failure(
        name="permission-denied",
        cause=(
            "A file or folder may not be read or written by this user: it belongs to another one, often to root of a container."
        ),
        cure="change its owner (chown), or run the container with --user and a writable HF_HOME and output folder",
        source="CPython's OSError for EACCES",
        signs=(Sign("PermissionError: [Errno 13] Permission denied: '{w}", unless=("docker.sock || '/dev/",)),),
    ),
)
