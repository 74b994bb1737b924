"""The machine: drivers, compilers, libraries and memory."""

from smokehouse_loader.failures.model import MEASURED, Failure, Sign

# Packages that training scripts of vision-language models import, and environments need not have.
OF_SCRIPTS = (
    "qwen_vl_utils",
    "decord",
    "av",
    "deepspeed",
    "peft",
    "trl",
    "accelerate",
    "bitsandbytes",
    "liger_kernel",
    "timm",
    "wandb",
)

FAILURES = (
    Failure(
        name="triton-without-driver",
        cause="DeepSpeed's kernels query triton for a GPU driver when they are imported, and this machine has none.",
        cure='for a run on CPUs set sys.modules["triton"] = None before the import; to install, build with isolation',
        source=f"{MEASURED}: DeepSpeed 0.15.4 with triton 3.2.0",
        reproduction="triton_without_driver",
        signs=(Sign("active drivers ([{}]). There should only be one"),),
    ),
    Failure(
        name="missing-nvcc",
        cause=(
            "DeepSpeed before 0.19.8 asks nvcc for its release when it is imported on a machine with GPUs, and found no "
            "toolkit, or one without nvcc."
        ),
        cure=(
            "use an environment of Smokehouse, which brings an answer, set CUDA_HOME to a CUDA toolkit with bin/nvcc, or use "
            "DeepSpeed 0.19.8 or later"
        ),
        source=f"DeepSpeed issue #7452, fixed by its PR #8216, released in 0.19.8; {MEASURED}",
        reproduction="import_without_nvcc",
        signs=(
            Sign("MissingCUDAException: CUDA_HOME does not exist"),
            Sign("No such file or directory: '{w}/bin/nvcc'"),
        ),
    ),
    Failure(
        name="no-toolkit",
        cause="An extension is to be compiled, and torch finds no CUDA toolkit: CUDA_HOME is not set and nvcc is not on PATH.",
        cure=(
            "install the toolkit of torch's CUDA release (torch.version.cuda) and set CUDA_HOME to it, use a "
            "devel image, or install a "
            "wheel that is compiled already (flash-attn's releases have them)"
        ),
        source="torch/utils/cpp_extension.py",
        signs=(
            Sign("CUDA_HOME environment variable is not set. Please set it to your CUDA install root"),
            Sign("CUDA_HOME environment variable is not set", needs=("OSError || EnvironmentError || error",)),
        ),
        apart="torch's cpp_extension says it, for any extension; missing-nvcc is said by DeepSpeed when it is imported",
    ),
    Failure(
        name="toolkit-of-another-release",
        cause="The CUDA toolkit that compiles an op is of another release than torch was built with.",
        cure=(
            "set CUDA_HOME to a toolkit of torch.version.cuda, or skip the check (DS_SKIP_CUDA_CHECK=1) where "
            "only the minor release differs"
        ),
        source="deepspeed/ops/op_builder/builder.py, torch/utils/cpp_extension.py",
        signs=(
            Sign("does not match the version torch was compiled with", needs=("Installed CUDA version",)),
            Sign("The detected CUDA version ({}) mismatches the version that was used to compile PyTorch"),
        ),
    ),
    Failure(
        name="no-c-compiler",
        cause="triton compiles C when it first meets a GPU, for old DeepSpeeds during their import, and found no compiler.",
        cure="install gcc, or set CC to a C compiler",
        source=f"triton/runtime/build.py; {MEASURED}",
        reproduction="triton_without_compiler",
        signs=(Sign("Failed to find C compiler. Please specify via CC"),),
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
        signs=(
            Sign("fatal error: Python.h: No such file or directory"),
            Sign("cannot find -lcuda", unless=("-lcudart || -lcudadevrt",)),
            Sign("CalledProcessError: Command '['{w}gcc', '{w}/main.c'"),
            Sign("CalledProcessError: Command '['{w}gcc', '{w}/cuda_utils.c'"),
            Sign("CalledProcessError: Command '['{w}gcc', '{w}/__triton_launcher.c'"),
            Sign("CalledProcessError: Command '['{w}cc', '{w}/main.c'"),
            Sign("CalledProcessError: Command '['{w}clang', '{w}/main.c'"),
            Sign("libcuda.so cannot found!"),
        ),
    ),
    Failure(
        name="op-build-failed",
        cause="DeepSpeed or torch compiled an op when it was first used, and the compiler refused; its own message is above.",
        cure=(
            "read the first 'error:' above; install ninja, a gcc that this CUDA release supports and a toolkit "
            "of torch's release, or "
            "use ops that were compiled ahead of time"
        ),
        source="torch/utils/cpp_extension.py",
        signs=(
            Sign("RuntimeError: Error building extension '"),
            Sign("Ninja is required to load C++ extensions"),
            Sign("Unable to JIT load the {w} op due to"),
            Sign("unsupported GNU version! gcc versions later than"),
            Sign("'DeepSpeedCPUAdam' object has no attribute 'ds_opt_adam'"),
        ),
        may_follow=True,
    ),
    Failure(
        name="setuptools-missing",
        cause="DeepSpeed's op builders import setuptools to compile an op, and declare it for no Python before 3.12.",
        cure="install setuptools, or use ops that were compiled ahead of time",
        source=f"deepspeed/ops/op_builder/builder.py by way of torch.utils.cpp_extension; {MEASURED}",
        reproduction="compile_op_without_setuptools",
        signs=(
            Sign("ModuleNotFoundError: No module named 'setuptools'"),
            Sign("ModuleNotFoundError: No module named 'pkg_resources'"),
        ),
    ),
    Failure(
        name="build-isolation",
        cause="A package imports torch to build itself, and pip builds it in an environment of its own that has none.",
        cure="install torch first, then pip install --no-build-isolation flash-attn, or a wheel that is compiled already",
        source="flash-attention's setup.py",
        signs=(
            Sign(
                "ModuleNotFoundError: No module named 'torch'",
                needs=("build_wheel || setup.py || build_meta || get_requires_for_build || metadata-generation-failed",),
            ),
        ),
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
        signs=(Sign("nvcc: no CUDA toolkit in this environment"),),
        excludes=("op-build-failed",),
    ),
    Failure(
        name="undefined-symbol",
        cause=(
            "A compiled extension (flash-attn and its like) was built for another torch than the installed one, "
            "or for another C++ ABI: "
            "the symbol that it needs is not found."
        ),
        cure=(
            "uninstall it and install the wheel for exactly this torch, CUDA, Python and ABI "
            "(torch._C._GLIBCXX_USE_CXX11_ABI), or build "
            "it here with --no-build-isolation --no-cache-dir"
        ),
        source="flash-attention issues #723 and #1832; glibc's dynamic loader",
        signs=(
            Sign("undefined symbol: _ZN", needs=("ImportError || OSError || RuntimeError || error",)),
            Sign("undefined symbol: _Z", needs=("ImportError || OSError || RuntimeError",)),
            Sign("undefined symbol: __nvJitLink"),
            Sign("undefined symbol: ncclCommRegister"),
            Sign("undefined symbol: nccl"),
            Sign("undefined symbol: cublas"),
            Sign("undefined symbol: iJIT_NotifyEvent"),
        ),
        excludes=("flash-attention-missing",),
    ),
    Failure(
        name="glibc-too-old",
        cause="A wheel or an extension was compiled for a newer system: its glibc or libstdc++ is newer than this machine's.",
        cure=(
            "use a container or a newer system, put conda's libstdc++ first (LD_LIBRARY_PATH=$CONDA_PREFIX/lib), "
            "or build it here"
        ),
        source="glibc's dynamic loader",
        signs=(
            Sign("version `GLIBC_{w}' not found"),
            Sign("version `GLIBCXX_{w}' not found"),
            Sign("version `CXXABI_{w}' not found"),
        ),
    ),
    Failure(
        name="flash-attention-missing",
        cause=(
            "attn_implementation='flash_attention_2' was asked for, and flash-attn is not installed or does not "
            "suit transformers."
        ),
        cure="install the flash-attn wheel for this torch, CUDA and Python, or pass attn_implementation='sdpa'",
        source="transformers/modeling_utils.py",
        signs=(
            Sign("FlashAttention2 has been toggled on, but it cannot be used due to the following error"),
            Sign("ModuleNotFoundError: No module named 'flash_attn'"),
            Sign("No module named 'flash_attn_2_cuda'"),
        ),
    ),
    Failure(
        name="flash-attention-gpu",
        cause="flash-attn 2 has kernels for Ampere and later only, and this GPU is older.",
        cure="pass attn_implementation='sdpa'",
        source="flash-attention's flash_api.cpp",
        signs=(Sign("FlashAttention only supports Ampere GPUs or newer"),),
    ),
    Failure(
        name="driver-too-old",
        cause="The NVIDIA driver is older than the CUDA release that torch was built for.",
        cure=(
            "update the driver, 525.60.13 or later for CUDA 12 and 580.65.06 for CUDA 13, use an environment for an older "
            "CUDA, or on data-centre GPUs put cuda-compat on LD_LIBRARY_PATH"
        ),
        source=f"NVIDIA's CUDA compatibility; {MEASURED}, with stub libraries for the driver's",
        reproduction="driver_too_old",
        signs=(
            Sign("The NVIDIA driver on your system is too old (found version {n}"),
            Sign("CUDA driver version is insufficient for CUDA runtime version"),
            Sign("the provided PTX was compiled with an unsupported toolchain"),
        ),
    ),
    Failure(
        name="driver-mismatch",
        cause="The driver's kernel module and its libraries are of different versions: it was updated without a restart.",
        cure="restart the machine (or reload the nvidia modules), and restart containers so that they get the new libraries",
        source="NVML and the CUDA runtime",
        signs=(
            Sign("Driver/library version mismatch"),
            Sign("system has unsupported display driver / cuda driver combination"),
        ),
    ),
    Failure(
        name="fabric-manager",
        cause="GPUs with NVSwitch are not initialised: the fabric manager does not run, or its version is not the driver's.",
        cure="start nvidia-fabricmanager in the driver's own version (systemctl status nvidia-fabricmanager), then start again",
        source="pytorch issue #35710; the CUDA runtime's error 802",
        signs=(Sign("system not yet initialized", needs=("802 || CUDA || cuda",)),),
    ),
    Failure(
        name="cuda-not-started",
        cause=(
            "CUDA does not start although a driver is there: nvidia_uvm is not loaded, the container lost its devices, or "
            "CUDA_VISIBLE_DEVICES was changed after torch was imported."
        ),
        cure=(
            "start the container again (or modprobe nvidia_uvm), see whether nvidia-smi works in it, and set "
            "CUDA_VISIBLE_DEVICES before Python starts"
        ),
        source="pytorch issue #49327; c10's CUDA functions",
        only_on_gpu=True,
        signs=(Sign("CUDA unknown error - this may be due to an incorrectly set up environment"),),
    ),
    Failure(
        name="no-driver",
        cause="torch found no NVIDIA driver: there is none, or the container was started without its GPUs.",
        cure="start the container with --gpus all; on a host, check nvidia-smi",
        source=f"{MEASURED}, on a machine without a driver",
        reproduction="no_driver",
        signs=(
            Sign("Found no NVIDIA driver on your system"),
            Sign("libcuda.so.1: cannot open shared object file"),
            Sign("No CUDA GPUs are available"),
            Sign('could not select device driver "" with capabilities: [[gpu]]'),
        ),
    ),
    Failure(
        name="torch-without-cuda",
        cause="The installed torch is a build for CPUs.",
        cure="install the build for the machine's CUDA; another package may have replaced it (pip show torch says +cpu)",
        source="torch/cuda/__init__.py",
        signs=(
            Sign("AssertionError: Torch not compiled with CUDA enabled"),
            Sign("Distributed package doesn't have NCCL built in"),
        ),
    ),
    Failure(
        name="no-kernels-for-gpu",
        cause="This build of torch, or of an extension, has no kernels for this GPU's architecture.",
        cure="use an environment whose torch has them (CUDA 12.8 or later for Blackwell), such as qwen2.5-vl-latest",
        source="pytorch issues #149845 and #167244: RTX 50 and B200 with wheels of CUDA 12.4",
        only_on_gpu=True,
        signs=(
            Sign("no kernel image is available for execution on the device"),
            Sign("with CUDA capability sm_{w} is not compatible with the current PyTorch installation"),
        ),
    ),
    Failure(
        name="shared-memory-full",
        cause="NCCL could not create its segment in /dev/shm, which is 64 MiB in a container of Docker by default.",
        cure="start the container with --shm-size 2g or --ipc host; on Kubernetes mount an emptyDir with medium Memory there",
        source="torchtitan issue #853: 8 H100, NCCL 2.21.5",
        only_on_gpu=True,
        signs=(
            Sign("Error while creating shared memory segment {} (size {n}"),
            Sign("Error while attaching to shared memory segment {} (size {n}"),
            Sign("/dev/shm/nccl-{}No space left on device"),  # noqa: S108 - matched, not opened
            Sign("No space left on device{}/dev/shm/nccl-"),
        ),
        excludes=("disk-full",),
    ),
    Failure(
        name="data-loader-shared-memory",
        cause=(
            "Workers of a DataLoader pass tensors through /dev/shm, which is full: 64 MiB in a container of Docker by default."
        ),
        cure="start the container with --shm-size 16g or --ipc host, or set num_workers=0",
        source="torch/utils/data/_utils/signal_handling.py; PyTorch's README, on Docker and shared memory",
        only_on_gpu=True,
        signs=(
            Sign("is killed by signal: Bus error", needs=("DataLoader worker",)),
            Sign("This might be caused by insufficient shared memory (shm)"),
            Sign("unable to write to file </torch_"),
            Sign("exits with return code = -7{/}"),
            Sign("Signal 7 (SIGBUS) received by PID"),
            Sign("failed (exitcode: -7)"),
            Sign("unable to allocate shared memory(shm) for file"),
        ),
        excludes=("disk-full",),
    ),
    Failure(
        name="too-many-open-files",
        cause="The process may open fewer files than it needs: workers share tensors by file descriptors.",
        cure='raise the limit (ulimit -n 65536), or call torch.multiprocessing.set_sharing_strategy("file_system")',
        source="Linux, EMFILE",
        signs=(
            Sign("[Errno 24] Too many open files"),
            Sign("received 0 items of ancdata"),
            Sign("Too many open files", needs=("unable to open shared memory object || unable to mmap || _share_fd_cpu_",)),
            Sign("Too many open files. Communication with the workers is no longer possible"),
        ),
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
        signs=(
            Sign("CUDA out of memory. Tried to allocate"),
            Sign("CUDA error: out of memory"),
            Sign("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"),
            Sign("Failed to CUDA calloc"),
            Sign("Failed to CUDA malloc"),
            Sign("Cuda failure 2 'out of memory'"),
            Sign("Cuda failure 'out of memory'"),
        ),
    ),
    Failure(
        name="killed-for-memory",
        cause=(
            "The kernel killed a process with signal 9, mostly because the host's or the container's memory was "
            "full: every rank loads "
            "the whole checkpoint, offloads optimizer states, or its data workers keep images."
        ),
        cure=(
            "give the job more host memory, load under ZeRO-3 (HfDeepSpeedConfig first), start fewer ranks or "
            "workers, and turn "
            "offload and pin_memory off; dmesg or the pod's status (OOMKilled) confirms it"
        ),
        source="Linux, the out-of-memory killer",
        signs=(
            Sign("exits with return code = -9{/}"),
            Sign("exitcode  : -9 {}Signal 9 (SIGKILL) received by PID"),
            Sign("(exitcode: -9) local_rank"),
            Sign("failed (exitcode: -9)"),
            Sign("Signal 9 (SIGKILL) received by PID"),
            Sign("died with <Signals.SIGKILL: 9>"),
            Sign("oom-kill event"),
            Sign("Detected {n} oom_kill event"),
            Sign("OOMKilled", unless=('OOMKilled": false || OOMKilled: false || OOMKilled=false',)),
            Sign("Out of memory: Killed process"),
            Sign("Memory cgroup out of memory: Killed process"),
            Sign("ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory"),
        ),
        may_follow=True,
        question=(
            "Does dmesg, sacct (OUT_OF_MEMORY) or kubectl describe pod (OOMKilled) show it, or did someone or a "
            "scheduler end the job?"
        ),
    ),
    Failure(
        name="host-memory",
        cause="The host has no memory left for an allocation, or for pinning pages for an offload.",
        cure="give the job more memory, set offload's pin_memory to false, raise ulimit -l, and start fewer workers",
        source="c10's CPU allocator",
        signs=(
            Sign("DefaultCPUAllocator: can't allocate memory"),
            Sign("OSError: [Errno 12] Cannot allocate memory"),
            Sign("Unable to allocate {} for an array with shape"),
        ),
    ),
    Failure(
        name="cuda-in-forked-process",
        cause="A process was forked from one in which CUDA had started, and CUDA does not survive a fork.",
        cure=(
            "start processes by spawn; count GPUs without CUDA in the parent (PYTORCH_NVML_BASED_CUDA_CHECK=1, which needs "
            "NVML and no MIG)"
        ),
        source=f"torch/cuda/__init__.py; {MEASURED}: where NVML is missing, counting GPUs starts CUDA",
        reproduction="cuda_in_forked_process",
        signs=(Sign("Cannot re-initialize CUDA in forked subprocess"),),
    ),
    Failure(
        name="mig-slices",
        cause="The GPU is divided by MIG: a process sees one slice only, and slices cannot talk to each other by NCCL.",
        cure="start one rank per job with CUDA_VISIBLE_DEVICES=MIG-UUID, or turn MIG off (nvidia-smi -mig 0) for several ranks",
        source="NVIDIA's guide to MIG",
        signs=(
            Sign("CUDA error: invalid device ordinal", log=("MIG",)),
            Sign("Duplicate GPU detected", log=("MIG",)),
            Sign("INTERNAL ASSERT FAILED", needs=("CUDACachingAllocator.cpp || NVML_SUCCESS",), log=("MIG || nvml",)),
        ),
        excludes=("wrong-gpu-number", "duplicate-gpu"),
        apart="nvidia-smi -L lists MIG devices",
    ),
    Failure(
        name="wrong-gpu-number",
        cause=(
            "A rank asked for a GPU that this process does not see: there are more ranks than GPUs, or MIG gives it one slice."
        ),
        cure="start one rank per visible GPU, and check CUDA_VISIBLE_DEVICES",
        source=f"{MEASURED}, with stub libraries for the driver's",
        reproduction="wrong_gpu_number",
        signs=(Sign("CUDA error: invalid device ordinal"),),
    ),
    Failure(
        name="gpu-not-available",
        cause="Another process has the GPU, in exclusive compute mode, or the mode is prohibited.",
        cure="end the other process, or have an administrator run nvidia-smi -c DEFAULT",
        source="cuda_runtime_api.h, cudaErrorDevicesUnavailable; pytorch issue #9930",
        only_on_gpu=True,
        signs=(Sign("CUDA-capable device(s) is/are busy or unavailable"),),
    ),
    Failure(
        name="gpu-memory-error",
        cause="The GPU's memory has an error that cannot be corrected, or the GPU left the bus.",
        cure="drain the machine, read dmesg for the Xid, reset or replace the GPU, and resume from the last checkpoint",
        source="NVIDIA's list of Xid errors",
        signs=(
            Sign("uncorrectable ECC error encountered"),
            Sign("uncorrectable NVLink error detected"),
            Sign("GPU has fallen off the bus"),
            Sign("GPU is lost. Reboot the system to recover"),
            Sign("NVRM: Xid", needs=(": 48, || : 79, || : 63, || : 64, || : 74, || : 94, || : 95, || : 119, || : 140,",)),
        ),
    ),
    Failure(
        name="illegal-memory-access",
        cause=(
            "A kernel read or wrote memory that is not its own: a defect of a kernel (flash-attn, triton, "
            "bitsandbytes) or a wrong index."
        ),
        cure=(
            "run once with CUDA_LAUNCH_BLOCKING=1 to see which call it is, then try attn_implementation='sdpa' "
            "and without liger or "
            "custom kernels, one at a time"
        ),
        source="the CUDA runtime's error 700",
        signs=(
            Sign("an illegal memory access was encountered"),
            Sign("CUDA error: misaligned address"),
        ),
        question="Which call raises it with CUDA_LAUNCH_BLOCKING=1?",
    ),
    Failure(
        name="library-of-the-system",
        cause="OpenCV (or another package) needs a library of a desktop, which servers and slim images do not have.",
        cure="replace opencv-python by opencv-python-headless, or install the library (Debian: libgl1, libglib2.0-0)",
        source="opencv-python's README, on headless environments",
        signs=(
            Sign("ImportError: libGL.so{}cannot open shared object file"),
            Sign("ImportError: libgthread-2.0.so{}cannot open shared object file"),
            Sign("ImportError: libSM.so{}cannot open shared object file"),
        ),
        excludes=("library-not-found",),
    ),
    Failure(
        name="torchvision-of-another-torch",
        cause="torchvision was built for another release of torch, which therefore does not know its operators.",
        cure="install the torchvision of this torch's release (0.21 with 2.6, 0.25 with 2.10), from the same index",
        source="torchvision/_meta_registrations.py",
        signs=(Sign("operator torchvision::nms does not exist"),),
    ),
    Failure(
        name="openmp-of-two-vendors",
        cause="MKL was told to use Intel's OpenMP after GNU's was loaded: numpy of conda and torch of PyPI in one process.",
        cure="import numpy before torch, or set MKL_THREADING_LAYER=GNU; install both from the same source",
        source="pytorch issue #37377",
        signs=(Sign("MKL_THREADING_LAYER=INTEL is incompatible with"),),
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
        signs=(
            Sign("ImportError: lib{w}.so{}cannot open shared object file"),
            Sign("OSError: lib{w}.so{}cannot open shared object file"),
            Sign("Unable to load any of {libcudnn"),
            Sign("Could not load library libcudnn"),
            Sign("Could not load library libnvrtc"),
        ),
    ),
    Failure(
        name="cudnn-mismatch",
        cause="torch loaded a cuDNN of another release than it was built with: LD_LIBRARY_PATH or another package brings one.",
        cure="remove cuDNN folders from LD_LIBRARY_PATH, uninstall other nvidia-cudnn wheels, and reinstall torch's own",
        source="torch/backends/cudnn/__init__.py",
        signs=(
            Sign("cuDNN version incompatibility: PyTorch was compiled against"),
            Sign("CUDNN_STATUS_SUBLIBRARY_VERSION_MISMATCH"),
            Sign("CUDNN_STATUS_SUBLIBRARY_LOADING_FAILED"),
            Sign("CUDNN_STATUS_NOT_INITIALIZED"),
        ),
    ),
    Failure(
        name="bitsandbytes-without-cuda",
        cause="bitsandbytes found no library for this CUDA release: it was built for others, or the CUDA runtime is not found.",
        cure=(
            "upgrade bitsandbytes, or set BNB_CUDA_VERSION to a release that it has; python -m bitsandbytes says what it found"
        ),
        source="bitsandbytes/cextension.py",
        signs=(
            Sign("The installed version of bitsandbytes was compiled without GPU support"),
            Sign("Attempted to use bitsandbytes native library functionality but it's not available"),
            Sign("CUDA Setup failed despite CUDA being available"),
            Sign("Configured CUDA binary not found at"),
        ),
    ),
    Failure(
        name="package-missing",
        cause="An option needs a package that is not installed, or another version of it than the installed one.",
        cure="install what the message names, in the version that it names, from the environment's constraints",
        source="transformers/utils/import_utils.py",
        signs=(
            Sign("Using `bitsandbytes` {w}-bit quantization requires"),
            Sign("Using `low_cpu_mem_usage=True`{} requires Accelerate"),
            Sign("requires `accelerate`: `pip install"),
            Sign("requires `accelerate>="),
            *(Sign(f"No module named '{name}'") for name in OF_SCRIPTS),
            Sign("is required for a normal functioning of this module, but found"),
            Sign("vLLM is not available and `use_vllm` is set to True"),
            Sign("requires the SentencePiece library but it was not found in your environment"),
            Sign("requires the protobuf library but it was not found in your environment"),
        ),
    ),
    Failure(
        name="torch-too-old",
        cause="A package uses what the installed torch does not have yet: it was made for a later release.",
        cure=(
            "install the torch that the package names (transformers 4.54 and later need 2.5 for most models), with torchvision "
            "of the same release, or an older release of the package"
        ),
        source="transformers/integrations/tensor_parallel.py",
        signs=(
            Sign("if v not in ALL_PARALLEL_STYLES:", needs=("argument of type 'NoneType' is not iterable",)),
            Sign("module 'torch' has no attribute 'float8_"),
            Sign("module 'torch' has no attribute 'uint"),
            Sign("module 'torch.compiler' has no attribute '"),
            Sign("module 'torch.distributed' has no attribute '", needs=("site-packages || dist-packages",)),
            Sign("cannot import name '{w}' from 'torch.distributed.tensor'"),
            Sign("cannot import name '{w}' from 'torch.distributed.tensor.{w}'"),
            Sign("No module named 'torch.distributed.tensor"),
            Sign("No module named 'torch.nn.attention"),
        ),
    ),
    Failure(
        name="deepspeed-too-old",
        cause="The installed DeepSpeed is older than the installed torch or NumPy, and imports what they no longer have.",
        cure="upgrade DeepSpeed (0.15.4 or later for torch 2.5 and NumPy 2), or install the torch and numpy of its time",
        source="deepspeed/elasticity/elastic_agent.py and deepspeed/autotuning",
        signs=(
            Sign("cannot import name 'log' from 'torch.distributed.elastic.agent.server.api'"),
            Sign("No module named 'torch._six'"),
            Sign("cannot import name 'BUFSIZE' from 'numpy'"),
        ),
    ),
    Failure(
        name="numpy-names-gone",
        cause="A package uses a name that the installed NumPy no longer has.",
        cure="upgrade the package (its frame is above), or install numpy<2 (numpy<1.24 for np.float, np.bool and np.int)",
        source="numpy/__init__.py",
        signs=(
            Sign("was a deprecated alias for the builtin"),
            Sign("was removed in the NumPy 2.0 release"),
        ),
    ),
    Failure(
        name="no-room-for-device-map",
        cause=(
            "device_map='auto' found too little free memory on GPUs and host together, and would put layers on the disk: the "
            "GPUs are occupied, not visible, or too small."
        ),
        cure=(
            "free the GPUs (nvidia-smi) or make them visible, load in bfloat16 or quantised, or pass offload_folder= to run "
            "from the disk, which is slow and cannot train"
        ),
        source="accelerate/big_modeling.py, dispatch_model",
        signs=(
            Sign("We need an `offload_dir` to dispatch this model according to this `device_map`"),
            Sign("The current `device_map` had weights offloaded to the disk. Please provide an `offload_folder`"),
        ),
    ),
    Failure(
        name="cuda-library-call-failed",
        cause=(
            "A call of cuBLAS or cuDNN failed: mostly the GPU's memory is full, or an index out of range before it broke the "
            "process's state (calls are asynchronous), less often a library of another CUDA release was loaded first."
        ),
        cure=(
            "look at nvidia-smi just before the failure and use a smaller batch; run once with CUDA_LAUNCH_BLOCKING=1 to see "
            "the call that really failed, empty LD_LIBRARY_PATH of CUDA's folders, and reinstall torch's nvidia wheels"
        ),
        source="torch's CUDABlas.cpp and cudnn/Exceptions.h",
        signs=(
            Sign("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling"),
            Sign("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling"),
            Sign("CUDA error: CUBLAS_STATUS_INTERNAL_ERROR when calling"),
            Sign("GET was unable to find an engine to execute this computation"),
        ),
        question="Is it the first step, is the GPU's memory nearly full, and what does it say with CUDA_LAUNCH_BLOCKING=1?",
    ),
    Failure(
        name="protobuf-of-another-release",
        cause="A package's generated code (*_pb2.py) is older than the installed protobuf accepts.",
        cure="upgrade that package (tensorboard, wandb, onnx, sentencepiece), or install protobuf<4 beside it",
        source="protobuf's descriptor_pool; its news of May 2022",
        signs=(Sign("your generated code is out of date and must be regenerated with protoc"),),
    ),
    Failure(
        name="triton-of-another-torch",
        cause="The installed triton is of another release than the one that this torch was made with.",
        cure=(
            "install the triton that pip show torch requires (3.2.0 for torch 2.6.0, 3.4.0 for 2.8.0), and what pulled in the "
            "other one in a release for this torch"
        ),
        source="torch/_inductor/codecache.py; modelscope/ms-swift issue #8296",
        signs=(
            Sign("cannot import name 'triton_key' from 'triton.compiler.compiler'"),
            Sign("cannot import name '{w}' from 'triton.", needs=("inductor || torch/_inductor || torch/_dynamo",)),
        ),
    ),
    Failure(
        name="kernel-too-large-for-gpu",
        cause="A kernel of triton needs more shared memory than this GPU has: it was tuned for a larger one.",
        cure=(
            "upgrade the package that brings the kernel (its frame is above), use attn_implementation='sdpa', or switch off "
            "the kernel (liger, torch.compile's max-autotune)"
        ),
        source="triton/runtime/errors.py",
        signs=(Sign("Hardware limit: {n}. Reducing block sizes or `num_stages` may help"),),
    ),
    Failure(
        name="compiler-older-than-gpu",
        cause="triton's ptxas does not know this GPU: the GPU is newer than the CUDA release that triton brings.",
        cure=(
            "install a torch and triton for this GPU (2.7 with CUDA 12.8 for Blackwell, sm_100 and sm_120), or set "
            "TRITON_PTXAS_PATH to the ptxas of a newer toolkit"
        ),
        source="triton/backends/nvidia/compiler.py",
        signs=(
            Sign("Internal Triton PTX codegen error", needs=("is not defined for option 'gpu-name'",)),
            Sign("PTXAS error: ", needs=("is not defined for option 'gpu-name'",)),
        ),
    ),
    Failure(
        name="no-more-threads",
        cause=(
            "A process could not start another thread: the limit of processes (ulimit -u, the container's pids) is reached, as "
            "each rank and data worker starts one thread per core in several libraries."
        ),
        cure=(
            "set OMP_NUM_THREADS, OPENBLAS_NUM_THREADS and MKL_NUM_THREADS to the cores per rank, start fewer workers, and "
            "raise the limit (ulimit -u, --pids-limit, the pod's pids)"
        ),
        source="Linux, EAGAIN of pthread_create",
        signs=(
            Sign(
                "Resource temporarily unavailable",
                needs=("Thread creation failed || blas_thread_init || pthread_create || fork: ",),
            ),
            Sign("RuntimeError: can't start new thread"),
        ),
    ),
    Failure(
        name="native-crash",
        cause=(
            "A process ended by a signal that compiled code causes (11 SIGSEGV, 6 SIGABRT, 4 SIGILL): Python could not say "
            "where. 6 follows a C++ exception or an assertion, which is printed above; 11 is mostly a package built for "
            "another torch, CUDA or CPU, or a decoder of images and videos in a data worker."
        ),
        cure=(
            "set PYTHONFAULTHANDLER=1 to see the last Python frames, read what was printed before the signal (terminate "
            "called, NCCL's watchdog), and leave out compiled extras one at a time (flash-attn, decord, data workers)"
        ),
        source="Linux, signal(7); torch/distributed/elastic/multiprocessing/errors",
        signs=(
            Sign("Signal 11 (SIGSEGV) received by PID"),
            Sign("Signal 6 (SIGABRT) received by PID"),
            Sign("Signal 4 (SIGILL) received by PID"),
            Sign("failed (exitcode: -11)"),
            Sign("failed (exitcode: -6)"),
            Sign("failed (exitcode: -4)"),
            Sign("exits with return code = -11{/}"),
            Sign("exits with return code = -6{/}"),
            Sign("exits with return code = -4{/}"),
            Sign("Fatal Python error: Segmentation fault"),
            Sign("Fatal Python error: Aborted"),
        ),
        victim=True,
        question="Which signal was it, and what is the last line that the rank printed before it?",
    ),
    Failure(
        name="worker-process-ended",
        cause=(
            "Ray lost the process of a worker: it was killed for memory, crashed in compiled code, or its node went away; Ray "
            "cannot know which."
        ),
        cure=(
            "look on that node: dmesg for the out-of-memory killer, the worker's own files in "
            "/tmp/ray/session_latest/logs (worker-*.err) for its last lines, and ray status for a lost node"
        ),
        source="ray's task errors; hiyouga/EasyR1 issue #324",
        signs=(Sign("The actor is dead because its worker process has died"),),
        victim=True,
        question="Does dmesg on that node show a killed process, and what are the last lines of the worker's .err file?",
    ),
    Failure(
        name="video-reader-not-usable",
        cause=(
            "The reader of videos does not work here: torchcodec finds no FFmpeg that it was built for or is of another torch, "
            "or torchvision is so new that it reads no videos any more."
        ),
        cure=(
            "install FFmpeg (4 to 8, with its shared libraries) and the torchcodec of this torch (0.2 for 2.6, 0.5 for 2.7, "
            "0.7 for 2.8), and set FORCE_QWENVL_VIDEO_READER=torchcodec; or install decord"
        ),
        source="torchcodec/_core/ops.py and its README; torchvision.io",
        signs=(
            Sign("Could not load libtorchcodec"),
            Sign("module 'torchvision.io' has no attribute 'read_video'"),
        ),
    ),
    Failure(
        name="numpy-abi",
        cause="A module was compiled for another major version of NumPy than the installed one.",
        cure="install numpy<2 for old modules, or upgrade the module; rebuild what was compiled here",
        source="numpy/core/_internal.py and its guide to 2.0",
        signs=(
            Sign("A module that was compiled using NumPy 1.x cannot be run in NumPy"),
            Sign("numpy.dtype size changed, may indicate binary incompatibility"),
            Sign("RuntimeError: Numpy is not available"),
        ),
    ),
    Failure(
        name="bf16-not-supported",
        cause="bf16 was asked for, and no GPU here has it: they are older than Ampere (V100, T4), or torch sees none.",
        cure=(
            "pass fp16 in place of bf16 on older GPUs (and attn_implementation='sdpa'); if the GPU is newer, "
            "python -c 'import torch; print(torch.cuda.is_available())' says whether torch sees it"
        ),
        source="transformers/training_args.py",
        signs=(Sign("Your setup doesn't support bf16/gpu"),),
    ),
    Failure(
        name="tracker-not-logged-in",
        cause="Weights & Biases was to record the run, and nobody is logged in on this machine.",
        cure="set WANDB_API_KEY, or WANDB_MODE=offline, or report_to='none'",
        source="wandb/sdk/wandb_login.py",
        signs=(Sign("api_key not configured (no-tty). call "),),
    ),
)
