"""Make programs of this machine print the texts of the table that no package prints: CPython, glibc, gcc, OpenSSL."""

import datetime
import errno
import os
import pickle
import re
import ssl
import subprocess
import sys
import traceback
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from types import ModuleType

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from smokehouse_loader.failures.machine import OF_SCRIPTS

DEADLINE = 60.0  # seconds
Raise = Callable[[Path], object]


def printed(call: Raise, folder: Path) -> str:
    """Return how Python prints what `call` raises, or what it returns."""
    try:
        returned = call(folder)
    except Exception as error:  # noqa: BLE001 - whatever it raises is what it prints
        return "".join(traceback.format_exception_only(error))
    return str(returned)


def _absent(name: str) -> Raise:
    """Import a module that the standard library lacks, without any other."""
    return lambda folder: _python(f"import {name}", folder, "-I", "-S")


def _within(package: str, name: str) -> Raise:
    """Import a module that a package lacks."""

    def call(folder: Path) -> str:
        inside = folder.joinpath(*package.split("."))
        inside.mkdir(parents=True)
        return _python(f"import {package}.{name}", folder)

    return call


def _attribute(module: str, name: str) -> Raise:
    return lambda _: getattr(ModuleType(module), name)


def _from(module: str, name: str) -> Raise:
    """Import a name that a module lacks."""

    def call(folder: Path) -> str:
        *above, last = module.split(".")
        package = folder.joinpath(*above)
        package.mkdir(parents=True, exist_ok=True)
        (package / f"{last}.py").touch()
        return _python(f"from {module} import {name}", folder)

    return call


def _python(code: str, folder: Path, *options: str) -> str:
    ended = subprocess.run([sys.executable, *options, "-c", code], cwd=folder, capture_output=True, text=True, timeout=DEADLINE)
    return ended.stderr


def _system(number: int, *arguments: str) -> Raise:
    def call(_: Path) -> None:
        raise OSError(number, os.strerror(number), *arguments)

    return call


def _open(name: str) -> Raise:
    return lambda folder: open(name)  # noqa: PTH123 - there is no such file


def _ended(code: int, *command: str) -> Raise:
    def call(_: Path) -> None:
        raise subprocess.CalledProcessError(code, list(command))

    return call


def _tool(command: str, source: str) -> Raise:
    """Compile a source with gcc."""

    def call(folder: Path) -> str:
        (folder / "main.c").write_text(source)
        ended = subprocess.run(
            [*command.split(), "main.c"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            env={**os.environ, "LC_ALL": "C"},
        )
        return ended.stderr

    return call


def _load(symbol: str) -> Raise:
    """Load a library that needs a symbol that nobody has."""

    def call(folder: Path) -> str:
        (folder / "needs.c").write_text(f"extern int {symbol}(void); int call(void) {{ return {symbol}(); }}\n")
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-Wl,-z,now", "-o", "needs.so", "needs.c"],
            cwd=folder,
            check=True,
            timeout=DEADLINE,
            capture_output=True,
        )
        return _python("import ctypes; ctypes.CDLL('./needs.so')", folder)

    return call


def _library(name: str) -> Raise:
    return lambda folder: _python(f"import ctypes; ctypes.CDLL('{name}')", folder)


def _extension(needed: str) -> Raise:
    """Import an extension that needs a library that is not installed."""

    def call(folder: Path) -> str:
        (folder / "lib.c").write_text("int one(void) { return 1; }\n")
        (folder / "extension.c").write_text("int one(void); int PyInit_extension(void) { return one(); }\n")
        for command in (
            f"gcc -shared -fPIC -Wl,-soname,{needed} -o {needed} lib.c",
            f"gcc -shared -fPIC -o extension.so extension.c ./{needed}",
        ):
            subprocess.run(command.split(), cwd=folder, check=True, timeout=DEADLINE, capture_output=True)
        (folder / needed).unlink()
        return _python("import extension", folder)

    return call


def _version(name: str, version: str) -> Raise:
    """Load a library that needs a version of a symbol that the installed library lacks."""

    def call(folder: Path) -> str:
        (folder / "old.c").write_text("int one(void) { return 1; }\n")
        (folder / "needs.c").write_text("int one(void); int call(void) { return one(); }\n")
        (folder / "map").write_text(f"{version} {{ global: one; }};\n")
        (folder / "none").write_text("OTHER_1 { global: one; };\n")
        build = f"gcc -shared -fPIC -Wl,-soname,{name} -o {name} old.c -Wl,--version-script="
        for command in (f"{build}map", f"gcc -shared -fPIC -o needs.so needs.c ./{name}", f"{build}none"):
            subprocess.run(command.split(), cwd=folder, check=True, timeout=DEADLINE, capture_output=True)
        return _python(f"import ctypes; ctypes.CDLL('./{name}'); ctypes.CDLL('./needs.so')", folder)

    return call


def _certificate(
    name: str, issuer: x509.Name | None, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey
) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer or subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(signer, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM)


def _handshake(*, with_root: bool) -> Raise:
    """Shake hands with a server whose root certificate is not trusted, and which sends it or does not."""

    def call(folder: Path) -> None:
        root, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "proxy.example")])
        chain = _certificate("hub.example", issuer, key, root)
        if with_root:
            chain += _certificate("proxy.example", None, root, root)
        private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (folder / "chain.pem").write_bytes(chain + private)
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(folder / "chain.pem")
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        theirs = server.wrap_bio(to_server, to_client, server_side=True)
        ours = client.wrap_bio(to_client, to_server, server_hostname="hub.example")
        for one in (ours, theirs, ours, theirs, ours):
            try:
                one.do_handshake()
            except ssl.SSLWantReadError:
                continue

    return call


def _tunnel(_: Path) -> str:
    status = HTTPStatus.PROXY_AUTHENTICATION_REQUIRED
    return f"{status.value} {status.phrase}"


def _stand_in(folder: Path) -> str:
    nvcc = Path(__file__).parents[2] / "src/smokehouse/installs/site/_smokehouse_cuda/bin/nvcc"
    return subprocess.run([str(nvcc), "op.cu"], cwd=folder, capture_output=True, text=True, timeout=DEADLINE).stderr


def _differing(_: Path) -> str:
    """Return the loader's message on a tensor, by the format in its source, which imports torch."""
    source = (Path(__file__).parents[2] / "src/smokehouse_loader/compare.py").read_text("utf-8")
    [text] = re.findall(r'f"(differs in [^"]+)"', source)
    return f"model.layers.1.mlp.gate.e_score_correction_bias {re.sub(r'{[^}]*}', '4', text)}"


def _keyword(name: str) -> Raise:
    """Call a class without parameters, of a given name, with one."""

    def __init__(self: object) -> None:  # noqa: N807 - its name is in the message
        """Take none."""

    __init__.__qualname__ = f"{name}.__init__"
    return lambda _: type(name, (), {"__init__": __init__})(parameter=1)


def _function(name: str) -> Raise:
    """Call a function without parameters, of a given qualified name, with one."""

    def function() -> None:
        """Take none."""

    function.__qualname__ = name
    return lambda _: function(parameter=1)  # type: ignore[call-arg]


def _lacks(name: str, attribute: str) -> Raise:
    """Read an attribute that an instance of a class of a given name lacks."""
    return lambda _: getattr(type(name, (), {})(), attribute)


def _required(name: str) -> Raise:
    """Call a class that requires an argument, of a given name, without it."""

    def __init__(self: object, total_num_frames: int) -> None:  # noqa: N807 - its name is in the message
        """Take one."""

    __init__.__qualname__ = f"{name}.__init__"
    return lambda _: type(name, (), {"__init__": __init__})()


class _old_trainer:  # noqa: N801 - its name is not in the message that is looked for
    """A trainer of before transformers 4.46."""

    @staticmethod
    def compute_loss() -> None:
        """Take no number of items."""


def _row(**row: object) -> Raise:
    """Print a row of a log as trainers do, which is Python's own text of a dictionary."""
    return lambda _: row


def _indexed(name: str) -> Raise:
    """Index an instance of a class of a given name that cannot be."""
    return lambda _: type(name, (), {})()[0]


def _no_thread(folder: Path) -> str:
    """Start a thread where the kernel refuses memory for its stack."""
    limited = "import resource, threading; threading.stack_size(1 << 30)"
    room = "resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29)); threading.Thread(target=print).start()"
    return _python(f"{limited}; {room}", folder)


RAISES: dict[str, Raise] = {
    "ForConditionalGeneration.__init__() got an unexpected keyword argument '": _keyword("LlavaForConditionalGeneration"),
    "ForCausalLM.__init__() got an unexpected keyword argument '": _keyword("LlamaForCausalLM"),
    "compute_loss() got an unexpected keyword argument 'num_items_in_batch'": lambda _: _old_trainer.compute_loss(
        num_items_in_batch=1
    ),  # type: ignore[call-arg]
    "cannot import name '{w}' from 'huggingface_hub'": _from("huggingface_hub", "HfFolder"),
    "cannot import name '{w}' from 'huggingface_hub.{w}'": _from("huggingface_hub.utils", "OfflineMode"),
    "module 'torch' has no attribute 'float8_": _attribute("torch", "float8_e8m0fnu"),
    "module 'torch' has no attribute 'uint": _attribute("torch", "uint64"),
    "module 'torch.compiler' has no attribute '": _attribute("torch.compiler", "is_compiling"),
    "module 'torch.distributed' has no attribute '": _attribute("torch.distributed", "tensor"),
    "cannot import name '{w}' from 'torch.distributed.tensor'": _from("torch.distributed.tensor", "DTensor"),
    "cannot import name '{w}' from 'torch.distributed.tensor.{w}'": _from("torch.distributed.tensor.device_mesh", "one"),
    "No module named 'torch.distributed.tensor": _within("torch.distributed", "tensor"),
    "No module named 'torch.nn.attention": _within("torch.nn", "attention"),
    "cannot import name 'log' from 'torch.distributed.elastic.agent.server.api'": _from(
        "torch.distributed.elastic.agent.server.api", "log"
    ),
    "No module named 'torch._six'": _within("torch", "_six"),
    "cannot import name 'BUFSIZE' from 'numpy'": _from("numpy", "BUFSIZE"),
    "[Errno 107] Transport endpoint is not connected: '": _system(errno.ENOTCONN, "/mnt/data"),
    "[Errno 5] Input/output error: '": _system(errno.EIO, "/mnt/data"),
    "VideoMetadata.__init__() missing {n} required positional argument": _required("VideoMetadata"),
    "'loss': 0.0, 'grad_norm': nan": _row(loss=0.0, grad_norm=float("nan")),
    "'loss': '0', 'grad_norm': 'nan'": _row(loss="0", grad_norm="nan"),
    "'loss': nan, 'grad_norm': ": _row(loss=float("nan"), grad_norm=1.0),
    "'loss': 'nan', 'grad_norm': ": _row(loss="nan", grad_norm="1"),
    "'DynamicCache' object is not subscriptable": _indexed("DynamicCache"),
    "KeyError: 'mrope_section'": lambda _: dict[str, str]()["mrope_section"],
    "KeyError: 'ds_grads_remaining'": lambda _: dict[str, str]()["ds_grads_remaining"],
    "object has no attribute 'ds_grads_remaining'": _lacks("Linear", "ds_grads_remaining"),
    "'NoneType' object has no attribute 'next_functions'": lambda _: getattr(None, "next_functions"),  # noqa: B009
    "'DeepSpeedZeroOptimizer' object has no attribute 'ipg_": _lacks("DeepSpeedZeroOptimizer", "ipg_index"),
    "cannot import name 'triton_key' from 'triton.compiler.compiler'": _from("triton.compiler.compiler", "triton_key"),
    "cannot import name '{w}' from 'triton.": _from("triton.runtime", "driver"),
    "RuntimeError: can't start new thread": _no_thread,
    "Fatal Python error: Segmentation fault": lambda folder: _python(
        "import faulthandler as one; one.enable(); one._sigsegv()", folder
    ),
    "Fatal Python error: Aborted": lambda folder: _python("import faulthandler as one; one.enable(); one._sigabrt()", folder),
    "module 'torchvision.io' has no attribute 'read_video'": _attribute("torchvision.io", "read_video"),
    "Resource temporarily unavailable": lambda _: os.strerror(errno.EAGAIN),
    "PermissionError: [Errno 13] Permission denied: '{w}": _system(errno.EACCES, "/models/config.json"),
    "No such file or directory: '{w}pytorch_model{w}.bin": _open("out/pytorch_model-00001-of-00002.bin"),
    "No such file or directory: 'pytorch_model{w}bin": _open("pytorch_model.bin"),
    "invalid load key, 'v'.": lambda _: pickle.loads(b"version https"),
    "invalid load key, '<'.": lambda _: pickle.loads(b"<!doctype"),
    "'NoneType' object has no attribute 'get'": lambda _: getattr(None, "get"),  # noqa: B009
    "object has no attribute 'hidden_size'": _lacks("Qwen2_5_VLConfig", "hidden_size"),
    "object has no attribute 'vocab_size'": _lacks("Qwen2_5_VLConfig", "vocab_size"),
    "'NoneType' object has no attribute 'image_processor'": lambda _: getattr(None, "image_processor"),  # noqa: B009
    "AttributeError: 'AdamW' object has no attribute 'train'": _lacks("AdamW", "train"),
    "'DeepSpeedCPUAdam' object has no attribute 'ds_opt_adam'": _lacks("DeepSpeedCPUAdam", "ds_opt_adam"),
    "[Errno 116] Stale file handle": _system(errno.ESTALE),
    "KeyError: 'llava_": lambda _: dict[str, str]()["llava_qwen"],
    "KeyError: '": lambda _: dict[str, str]()["qwen9_vl"],
    "cannot import name '{w}' from 'transformers'": _from("transformers", "Qwen9"),
    "cannot import name '{w}' from 'transformers.{w}'": _from("transformers.models", "Qwen9"),
    "module 'transformers' has no attribute": _attribute("transformers", "Qwen9"),
    "module 'transformers' has no attribute '{w}ImageProcessor": _attribute("transformers", "Qwen9ImageProcessor"),
    "module 'transformers.models.{w}' has no attribute '{w}ImageProcessor": _attribute(
        "transformers.models.auto", "Qwen9ImageProcessor"
    ),
    "No module named 'transformers.models.": _within("transformers.models", "qwen9"),
    "OSError: [Errno 28] No space left on device": _system(errno.ENOSPC),
    "Disk quota exceeded": lambda _: os.strerror(errno.EDQUOT),
    "IndexError: list index out of range": lambda _: [][0],
    "[Errno 24] Too many open files": _system(errno.EMFILE),
    "OSError: [Errno 12] Cannot allocate memory": _system(errno.ENOMEM),
    "OSError: [Errno 98] Address already in use": _system(errno.EADDRINUSE),
    "Connection reset by peer": lambda _: os.strerror(errno.ECONNRESET),
    "Too many open files": lambda _: os.strerror(errno.EMFILE),
    "Broken pipe": lambda _: os.strerror(errno.EPIPE),
    "died with <Signals.SIGKILL: 9>": _ended(-9, "train"),
    "returned non-zero exit status {n}": _ended(1, "train"),
    "fatal error: Python.h: No such file or directory": _tool("gcc -c", "#include <Python.h>\n"),
    "cannot find -lcuda": _tool("gcc -nostdlib -lcuda -L.", "int main(void) { return 0; }\n"),
    "libcuda.so.1: cannot open shared object file": _library("libcuda.so.1"),
    "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed": _handshake(with_root=False),
    "certificate verify failed: self-signed certificate in certificate chain": _handshake(with_root=True),
    "certificate verify failed: unable to get local issuer certificate": _handshake(with_root=False),
    "nvcc: no CUDA toolkit in this environment": _stand_in,
    "e_score_correction_bias differs in {n} of the {n} elements held here": _differing,
    "407 Proxy Authentication Required": _tunnel,
    "ImportError: lib{w}.so{}cannot open shared object file": _extension("libcudnn.so.99"),
    "OSError: lib{w}.so{}cannot open shared object file": _library("libcudart.so.99"),
}
for _one in ("backward", "step", "_register_hooks_recursively", "_register_deepspeed_module"):
    RAISES[f"'DeepSpeedZeRoOffload' object has no attribute '{_one}'"] = _lacks("DeepSpeedZeRoOffload", _one)
for _one in ("pad_token_id", "eos_token_id", "pad_token", "eos_token", "pad", "padding_side"):
    RAISES[f"Processor' object has no attribute '{_one}'"] = _lacks("Qwen2VLProcessor", _one)
for _one in ("DynamicCache", "StaticCache", "HybridCache"):
    RAISES[f"'{_one}' object has no attribute '"] = _lacks(_one, "get_usable_length")
for _one in ("Accelerator.unwrap_model", "process_vision_info", "PreTrainedTokenizerFast._batch_encode_plus"):
    RAISES[f"{_one}() got an unexpected keyword argument"] = _function(_one)
for _class in (
    "Accelerator",
    "LoraConfig",
    "TrainingArguments",
    *(f"{_one}Config" for _one in ("SFT", "GRPO", "DPO", "KTO", "PPO", "Reward")),
):
    RAISES[f"{_class}.__init__() got an unexpected keyword argument"] = _keyword(_class)
for _one in ("", "Seq2Seq", "SFT", "GRPO", "DPO", "KTO", "PPO", "Reward", "ORPO", "RLOO"):
    RAISES[f"TypeError: {_one}Trainer.__init__() got an unexpected keyword argument"] = _keyword(f"{_one}Trainer")
for _library_name in ("libGL.so", "libgthread-2.0.so", "libSM.so"):
    RAISES[f"ImportError: {_library_name}{{}}cannot open shared object file"] = _extension(f"{_library_name}.99")
for _name in OF_SCRIPTS:
    RAISES[f"No module named '{_name}'"] = _absent(_name)
for _name in ("setuptools", "pkg_resources", "torch", "flash_attn"):
    RAISES[f"ModuleNotFoundError: No module named '{_name}'"] = _absent(_name)
for _name in ("flash_attn_2_cuda", "mpi4py"):
    RAISES[f"No module named '{_name}'"] = _absent(_name)
for _command, _source in (
    ("gcc", "main.c"),
    ("gcc", "cuda_utils.c"),
    ("gcc", "__triton_launcher.c"),
    ("cc", "main.c"),
    ("clang", "main.c"),
):
    RAISES[f"CalledProcessError: Command '['{{w}}{_command}', '{{w}}/{_source}'"] = _ended(
        1, f"/usr/bin/{_command}", f"/tmp/tmpa/{_source}", "-O3"
    )
for _text, _symbol in {
    "_ZN": "_ZN3c105ErrorC2E",
    "_Z": "_Z9flash_fwd",
    "__nvJitLink": "__nvJitLinkAddData_12_1",
    "ncclCommRegister": "ncclCommRegister",
    "nccl": "ncclGroupSimulateEnd",
    "cublas": "cublasLtGetVersion",
    "iJIT_NotifyEvent": "iJIT_NotifyEvent",
}.items():
    RAISES[f"undefined symbol: {_text}"] = _load(_symbol)
for _library_name, _needed in (
    ("libc.so.9", "GLIBC_2.99"),
    ("libstdc++.so.9", "GLIBCXX_3.4.99"),
    ("libstdc++.so.9", "CXXABI_1.3.99"),
):
    RAISES[f"version `{_needed.split('_')[0]}_{{w}}' not found"] = _version(_library_name, _needed)
