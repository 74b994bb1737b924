"""What is installed for the Python that runs, and what compiles for it: torch, DeepSpeed, nvcc, a C compiler."""

import ast
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from smoke_tests.machine.finding import Finding, ok

# The first DeepSpeed whose import does not ask for nvcc (its PR 8216); the same releases import no triton kernels.
IMPORTS_WITHOUT_NVCC = "0.19.8"
LIGER = "liger_kernel"
# Of liger_kernel.transformers.monkey_patch: model_type of a config -> the function that patches the classes of transformers.
_LIGER_TABLE = "MODEL_TYPE_TO_APPLY_LIGER_FN"
_COMPILE_DEADLINE = 30.0  # seconds
_NVCC_DEADLINE = 10.0


@dataclass(frozen=True)
class Software:
    """The versions of what the environment has, None for what it has not; CUDA's and ROCm's (`hip`) are torch's."""

    torch: str | None
    cuda: tuple[int, int] | None
    deepspeed: str | None
    triton: str | None
    hip: str | None = None

    @property
    def asks_for_nvcc(self) -> bool:
        """Whether importing DeepSpeed on a GPU machine runs nvcc, and compiles C with triton."""
        return self.deepspeed is not None and numbers(self.deepspeed) < numbers(IMPORTS_WITHOUT_NVCC)


def installed() -> Software:
    """Return what the Python that runs has, from metadata; imports none of it."""
    torch, cuda, hip = None, None, None
    if found := importlib.util.find_spec("torch"):
        file = Path(str(found.origin)).with_name("version.py")
        text = file.read_text() if file.is_file() else ""
        versions = dict(re.findall(r"^(__version__|cuda|hip)\b[^=\n]*= '([^']*)'", text, re.MULTILINE))
        torch = versions.get("__version__")
        cuda, hip = release(versions.get("cuda", "")), versions.get("hip")
    return Software(torch, cuda, _version("deepspeed"), _version("triton"), hip)


def release(text: str) -> tuple[int, int] | None:
    """Return a CUDA release such as 12.4 as (major, minor), None where it is none."""
    match = re.match(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else None


def numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, without its local part, to compare it with another."""
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0]))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except (importlib.metadata.PackageNotFoundError, KeyError, OSError, ValueError):  # not installed, or unreadable metadata
        return None


def built_for(software: Software, gpus: int, *, required: bool) -> Iterator[Finding]:
    """Yield whether torch is built for something else than the `gpus` that are there, or that are `required`."""
    if not software.torch or software.cuda or not (gpus or required):
        return
    build = f"for ROCm {software.hip}, and not for CUDA" if software.hip else "without CUDA"
    so = f", so that it uses none of {gpus} GPUs" if gpus else ""
    fix = "install a build of torch for CUDA"
    yield Finding("fail" if required else "warn", f"torch {software.torch} is built {build}{so}", "torch", fix)


def compiled_kernels() -> tuple[str, ...]:
    """Import torch, and return the architectures that it has kernels for, such as sm_90 and compute_90."""
    import torch

    flags = torch._C._cuda_getArchFlags()  # get_arch_list() is empty unless torch sees a GPU
    return tuple(str(flags).split()) if flags else ()


def toolkit(software: Software) -> Iterator[Finding]:
    """Yield whether nvcc is there for what asks for it: the import of older DeepSpeeds, and compiling ops."""
    home = _cuda_home()
    nvcc = home / "bin" / "nvcc" if home else None
    answered = _nvcc_release(nvcc) if nvcc else None
    if software.asks_for_nvcc and not answered:
        found = f"{nvcc} does not answer" if nvcc else "nvcc not found"
        yield Finding(
            "fail",
            f"{found}; DeepSpeed {software.deepspeed} runs it when it is imported on a machine with GPUs",
            "CUDA_HOME",
            f"install a CUDA toolkit and set CUDA_HOME, use DeepSpeed {IMPORTS_WITHOUT_NVCC} or later, or install the "
            "environment with Smokehouse, which brings an answer",
        )
    elif answered and software.cuda and answered[0] != software.cuda[0]:
        yield Finding(
            "warn",
            "{} is of CUDA {}.{}, torch of {}.{}: no op can be compiled".format(nvcc, *answered, *software.cuda),
            "CUDA_HOME",
            f"set CUDA_HOME to a toolkit of CUDA {software.cuda[0]}",
        )
    elif answered:
        yield ok("CUDA_HOME", f"{home}, of CUDA {answered[0]}.{answered[1]}")


def _cuda_home() -> Path | None:
    """Return the toolkit that torch finds. See: torch.utils.cpp_extension._find_cuda_home."""
    if given := os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        return Path(given)
    if found := shutil.which("nvcc"):
        return Path(found).parents[1]
    standard = Path("/usr/local/cuda")
    return standard if standard.exists() else None


def _nvcc_release(nvcc: Path) -> tuple[int, int] | None:
    try:
        said = subprocess.run([str(nvcc), "-V"], capture_output=True, text=True, timeout=_NVCC_DEADLINE).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"release (\d+)\.(\d+)", said)
    return (int(match[1]), int(match[2])) if match else None


def c_compiler(software: Software, *, gpu: bool, container: bool) -> Iterator[Finding]:
    """Yield whether triton can compile its launchers: with a C compiler, Python.h and libcuda.so.

    On a GPU it does so while older DeepSpeeds are imported. See: triton/runtime/build.py, triton/backends/nvidia/driver.py.
    """
    level = "fail" if gpu and software.asks_for_nvcc else "warn"
    when = f"while DeepSpeed {software.deepspeed} is imported" if software.asks_for_nvcc else "for its kernels"
    needs = f"triton {software.triton or ''}".rstrip() + f" compiles C {when}"
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")
    include = Path(sysconfig.get_path("include"))
    if not compiler:
        fix = "use a base with gcc" if container else "install gcc, or an environment with --devel and set CC"
        yield _compiles(level, f"not found, and {needs}", "C compiler", fix)
        return
    if not (include / "Python.h").is_file():
        yield _compiles(level, f"not found, and {needs}", str(include / "Python.h"), "install python3-dev for this Python")
        return
    libraries = os.environ.get("TRITON_LIBCUDA_PATH") if gpu else None
    problem = _compile(compiler, include, ["-lcuda", *([f"-L{libraries}"] if libraries else _libcuda())] if gpu else [])
    if problem:
        fix = "link libcuda.so to libcuda.so.1 and set TRITON_LIBCUDA_PATH to its folder" if "cuda" in problem else "fix it"
        yield _compiles(level, f"{needs}, which fails here ({problem})", compiler, fix)
    else:
        yield ok("C compiler", f"{compiler}, which triton needs")


def _compiles(level: str, what: str, where: str, fix: str) -> Finding:
    return Finding("fail" if level == "fail" else "warn", what, where, fix)


def _compile(compiler: str, include: Path, options: list[str]) -> str:
    """Compile and link a module of Python as triton does, into nothing; return the compiler's error, empty for none."""
    command = [*compiler.split(), "-x", "c", "-", "-shared", "-fPIC", f"-I{include}", *options, "-o", os.devnull]
    try:
        ended = subprocess.run(
            command, input="#include <Python.h>\n", capture_output=True, text=True, timeout=_COMPILE_DEADLINE
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    lines = [line for line in ended.stderr.splitlines() if "error" in line or "cannot find" in line]
    return "" if ended.returncode == 0 else (lines or ended.stderr.splitlines() or ["no message"])[0]


def _libcuda() -> list[str]:
    """Return the linker's options for the folders in which triton finds libcuda, other than the linker's own."""
    folders: list[str] = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    ldconfig = shutil.which("ldconfig", path="/sbin:/usr/sbin:/bin:/usr/bin")
    if ldconfig:
        listed = subprocess.run([ldconfig, "-p"], capture_output=True, text=True, timeout=_NVCC_DEADLINE).stdout
        folders += [str(Path(line.split()[-1]).parent) for line in listed.splitlines() if "libcuda.so.1" in line]
    return [f"-L{folder}" for folder in dict.fromkeys(folders) if folder]


def ahead_of_time(op: str) -> bool:
    """Whether DeepSpeed was installed with `op`, such as fused_adam, compiled; does not import it."""
    found = importlib.util.find_spec("deepspeed")
    return bool(found and found.origin and list(Path(found.origin).parent.glob(f"ops/adam/{op}_op*.so")))


# For a configuration of DeepSpeed with an optimizer of type Adam or AdamW, where the op is not there.
OWN_ADAM = (
    'run install or build with --ops aot, install a CUDA toolkit with nvcc, or set "torch_adam": true in optimizer.params'
)


def own_adam(software: Software) -> Iterator[Finding]:
    """Yield whether training with `"optimizer": {"type": "AdamW"}` in DeepSpeed's configuration starts without compiling."""
    if software.deepspeed and ahead_of_time("fused_adam"):
        yield ok("fused_adam", "compiled ahead of time")
    elif software.deepspeed:
        what = f"not compiled; DeepSpeed {software.deepspeed} does it with nvcc when training with AdamW of its own starts"
        yield Finding("ok", what, "fused_adam", OWN_ADAM)


def op_builder(software: Software) -> Iterator[Finding]:
    """Yield whether DeepSpeed's op builders, which import setuptools, can run."""
    if software.deepspeed and not importlib.util.find_spec("setuptools"):
        yield Finding(
            "warn", f"not found, and DeepSpeed {software.deepspeed} imports it to compile an op", "setuptools", "install it"
        )


def missing_for_ops() -> list[str]:
    """Return what is missing here to compile DeepSpeed's ops for the CPU."""
    compiler = os.environ.get("CXX", "c++")
    missing = [] if shutil.which(compiler) else [f"a C++ compiler ({compiler})"]
    return missing + [name for name in ("ninja", "setuptools") if importlib.util.find_spec(name) is None]


def _liger_model_types() -> list[str]:
    """Return the model types that the installed package has kernels for; none without it. Imports none of it."""
    found = importlib.util.find_spec(LIGER)
    file = Path(str(found.origin)).parent / "transformers" / "monkey_patch.py" if found and found.origin else None
    if not file or not file.is_file():
        return []
    for node in ast.parse(file.read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            if names == [_LIGER_TABLE]:
                return [key.value for key in node.value.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]
    return []


def no_liger(model_type: str) -> str:
    """Return why there is nothing to check for models of this type, "" where there is."""
    if importlib.util.find_spec(LIGER) is None:
        return "liger-kernel is not installed"
    if model_type not in _liger_model_types():
        return f"liger-kernel {importlib.metadata.version('liger-kernel')} has no kernels for {model_type}"
    return ""
