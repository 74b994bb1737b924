"""Rollouts: vLLM beside a trainer, and the weights that it is sent."""

from smokehouse_loader.failures.model import Failure, Sign

FAILURES = (
    Failure(
        name="partitioned-weights-sent",
        cause="vLLM was sent weights of shape [0]: under ZeRO-3 each rank has a part of them, and they were not gathered.",
        cure=(
            "gather each parameter before it is sent (deepspeed.zero.GatheredParameters, as trl's GRPOTrainer does for every "
            "parameter), or train under ZeRO-2"
        ),
        source="vllm/model_executor/model_loader/weight_utils.py; StarsfieldAI/R1-V issue #132",
        signs=(Sign("Attempted to load weight ({0}) into parameter"),),
    ),
    Failure(
        name="rollout-memory",
        cause=(
            "vLLM has not the memory that it wants of its GPU, since the trainer (or another process) holds part of it: "
            "gpu_memory_utilization is a share of the whole GPU, not of what is free."
        ),
        cure=(
            "lower gpu_memory_utilization (trl: vllm_gpu_memory_utilization; verl: rollout.gpu_memory_utilization) and "
            "max_model_len, offload the trainer's parameters and optimizer before vLLM wakes up, or give vLLM GPUs of its own; "
            "raise gpu_memory_utilization only if the GPU is empty"
        ),
        source="vllm/v1/worker/gpu_worker.py and csrc/cumem_allocator.cpp; vllm-project/vllm issue #13941",
        signs=(
            Sign("CUDA Error: out of memory at {w}cumem_allocator.cpp"),
            Sign("is less than desired GPU memory utilization"),
        ),
        question="What does nvidia-smi list on this GPU when vLLM starts, and is the model offloaded by then?",
    ),
    Failure(
        name="rollout-cache-memory",
        cause=(
            "vLLM's share of the GPU (gpu_memory_utilization of all its memory) is used up by weights and what else is in "
            "use, so that nothing, or too little for one prompt, is left for the cache of keys and values."
        ),
        cure=(
            "lower max_model_len (trl: vllm_max_model_length) and the images per prompt, raise gpu_memory_utilization as far "
            "as the trainer leaves the GPU free at that moment, or divide the model (tensor_parallel_size)"
        ),
        source="vllm/v1/core/kv_cache_utils.py and vllm/worker/worker.py",
        signs=(
            Sign("No available memory for the cache blocks. Try increasing `gpu_memory_utilization`"),
            Sign("is larger than the maximum number of tokens that can be stored in KV cache"),
            Sign("To serve at least one request with the models's max seq len"),
            Sign("To serve at least one request with the model's max seq len"),
        ),
    ),
    Failure(
        name="expandable-segments-in-pool",
        cause=(
            "vLLM's sleep mode keeps weights in a memory pool, and before 0.20.2 refuses expandable segments of torch's "
            "allocator."
        ),
        cure=(
            "remove expandable_segments:True from PYTORCH_CUDA_ALLOC_CONF of the processes that run vLLM, or turn sleep mode "
            "off (enable_sleep_mode=False), or upgrade vLLM"
        ),
        source="vllm/device_allocator/cumem.py; vllm-project/vllm PRs #14189 and #40812",
        signs=(Sign("Expandable segments are not compatible with memory pool"),),
    ),
    Failure(
        name="prompt-too-long-for-rollout",
        cause="A prompt with its image tokens is longer than the length that vLLM was started with.",
        cure=(
            "raise max_model_len, or lower the images' max_pixels or the number of images, and filter prompts that stay too "
            "long; truncating one in an image only moves the error"
        ),
        source="vllm/v1/engine/processor.py; hiyouga/EasyR1 issue #175",
        signs=(Sign("is longer than the maximum model length of"),),
    ),
    Failure(
        name="rollout-server-away",
        cause="trl sends prompts to a vLLM server that does not answer: it is not started, still loading, or elsewhere.",
        cure=(
            "start trl vllm-serve --model MODEL on GPUs of its own first, wait for its /health/, and set vllm_server_host and "
            "vllm_server_port (vllm_server_timeout for large models), or use vllm_mode='colocate'; no proxy may be between"
        ),
        source="trl's vllm_client.py",
        signs=(Sign("The vLLM server can't be reached at"),),
        excludes=("hub-unreachable",),
    ),
    Failure(
        name="rollout-engine-ended",
        cause="vLLM's engine is a process of its own, and it ended while it started; why is in what that process printed.",
        cure="read the lines of EngineCore or VllmWorker above, from the first traceback on (VLLM_LOGGING_LEVEL=DEBUG)",
        source="vllm/v1/engine/utils.py",
        signs=(Sign("Engine core initialization failed. See root cause above"),),
        victim=True,
    ),
)
