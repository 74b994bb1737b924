"""The steps of a build, run without a container engine: they require nothing but Python."""

import hashlib
import importlib.util
import json
import marshal
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ..conftest import sdist, wheel

SITE = f"opt/env/lib/python3.{sys.version_info.minor}/site-packages"
PYTHON = f"3.{sys.version_info.minor}"

# Builds a wheel that contains its environment and its builder.py, and prints how it would compile.
BACKEND = """\
import json, os, zipfile
from op_builder.builder import OpBuilder
def build_wheel(folder, *_):
    with zipfile.ZipFile(os.path.join(folder, "deepspeed-1.0-py3-none-any.whl"), "w") as archive:
        archive.writestr("environ.json", json.dumps(dict(os.environ)))
        archive.writestr("builder.py", open("op_builder/builder.py").read())
        for op in os.listdir("ops") if os.path.isdir("ops") else ():
            archive.writestr(f"deepspeed/ops/{op}", "")
    print("g++", OpBuilder().cpu_flags(), "cpu_adam.cpp")
    return "deepspeed-1.0-py3-none-any.whl"
"""
BUILDER = """\
class OpBuilder:
    def cpu_arch(self):
        return "-march=native"
    def simd_width(self):
        return "-D__AVX512__"
    def cpu_flags(self):
        return f"{self.cpu_arch()} {self.simd_width()}"
"""
PYPROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'


def run(root: Path, step: str, context: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Run a step as the Dockerfile does."""
    program = root / "docker" / "steps" / f"{step}.py"
    command = [sys.executable, "-I", "-B", str(program), str(context), str(out)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def plan(folder: Path, files: dict[str, bytes], **more: object) -> None:
    """Write the build context of a step."""
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    listed = [{"file": name, "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()]
    text = {"python": PYTHON, "epoch": 315532800, "budget": 1 << 20, "files": listed, "build": [], "ops": "none"}
    (folder / "plan.json").write_text(json.dumps(text | more))


def wheel_with(member: str) -> bytes:
    """Return a wheel with one more member."""
    path = Path("edited.whl")
    data = wheel("alpha", "1.0")
    path.write_bytes(data)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(member, "x")
    return path.read_bytes()


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if os.getuid():
        pytest.skip("requires root, because steps change the owner of their files to root")


def test_a_wheel_is_unpacked_with_its_script_and_its_record(root: Path, tmp_path: Path) -> None:
    plan(tmp_path / "in", {"alpha-1.0-py3-none-any.whl": wheel("alpha", "1.0", code="x = 1\n", script="alpha:x")})
    ended = run(root, "unpack", tmp_path / "in", tmp_path / "out")
    assert ended.returncode == 0, ended.stderr
    script = tmp_path / "out" / "opt" / "env" / "bin" / "alpha"
    assert script.read_text().startswith(f"#!/opt/env/bin/python{PYTHON}\n")
    record = (tmp_path / "out" / SITE / "alpha-1.0.dist-info" / "RECORD").read_text()
    assert "../../../bin/alpha,sha256=" in record
    times = {path.lstat().st_mtime for path in (tmp_path / "out").rglob("*")}
    assert times == {315532800.0}
    assert list((tmp_path / "out" / SITE).glob("__pycache__/alpha.*.pyc"))


@pytest.mark.parametrize(
    "member",
    ["../../escaped.py", "/etc/escaped", "alpha-1.0.data/data/../../../escaped", "alpha-1.0.data/purelib//etc/escaped"],
)
def test_a_wheel_with_a_path_outside_it_is_refused(root: Path, tmp_path: Path, member: str) -> None:
    plan(tmp_path / "in", {"alpha-1.0-py3-none-any.whl": wheel_with(member)})
    ended = run(root, "unpack", tmp_path / "in", tmp_path / "out")
    assert f"alpha-1.0-py3-none-any.whl: expected paths inside it, found {member!r}; do not trust this wheel" in ended.stderr
    assert ended.returncode == 1
    assert not list(tmp_path.rglob("escaped*"))


def test_a_wheel_that_replaces_a_file_of_another_package_is_refused(root: Path, tmp_path: Path) -> None:
    wheels = {
        "alpha-1.0-py3-none-any.whl": wheel("torch", "1.0", code="the real one"),
        "torch-9-py3-none-any.whl": wheel_with("torch.py"),
    }
    plan(tmp_path / "in", wheels)
    stderr = run(root, "unpack", tmp_path / "in", tmp_path / "out").stderr
    assert f"torch-9-py3-none-any.whl: {SITE.removeprefix('opt/env/')}/torch.py differs from the same file of another" in stderr


def test_a_file_with_another_hash_is_refused(root: Path, tmp_path: Path) -> None:
    plan(tmp_path / "in", {"alpha-1.0-py3-none-any.whl": wheel("alpha", "1.0", code="locked")})
    expected, found = (hashlib.sha256(wheel("alpha", "1.0", code=code)).hexdigest() for code in ("locked", "other"))
    (tmp_path / "in" / "alpha-1.0-py3-none-any.whl").write_bytes(wheel("alpha", "1.0", code="other"))
    stderr = run(root, "unpack", tmp_path / "in", tmp_path / "out").stderr
    assert f"alpha-1.0-py3-none-any.whl: expected SHA-256 {expected} as locked, found {found}; run nox -s build again" in stderr


@pytest.mark.parametrize("limit", ["size=14m", "nr_inodes=INODES"])
def test_bytecode_that_a_full_disk_cuts_or_has_no_room_for_is_refused(
    root: Path, tmp_path: Path, full_disk: Path, limit: str
) -> None:
    """The layer would have other files than on a larger disk."""

    def unpack(options: str) -> subprocess.CompletedProcess[str]:
        shutil.rmtree(full_disk / "out", ignore_errors=True)
        subprocess.run(["mount", "-o", f"remount,{options}", str(full_disk)], check=True, timeout=10)
        return run(root, "unpack", tmp_path / "in", full_disk / "out")

    code = f"text = {'#' * (9 << 20)!r}\n"  # as long when it is compiled
    plan(tmp_path / "in", {"alpha-1.0-py3-none-any.whl": wheel("alpha", "1.0", code=code)}, budget=1 << 30)
    assert unpack("size=64m").returncode == 0
    inodes = len([*full_disk.rglob("*")])  # and one for the root; so one too few for the last file, which is compiled
    ended = unpack(limit.replace("INODES", str(inodes)))
    said = f"smokehouse: /{SITE}/alpha.py: cannot be compiled (No space left on device); free disk space and build again\n"
    assert (ended.stderr, ended.returncode) == (said, 1)


# What leaves something in the process that compiles it: names that a module then has, a codec, a letter that is now a name.
NEIGHBOURS = {
    "name.py": "ﬁrst = 1\n",
    "letter.py": "é = 1\n",
    "star.py": "from x import *\n",
    "codec.py": "# coding: cp1251\nx = 1\n",
    "invalid.py": "x = (\n",
    "warned.py": "x = '\\d' is 1\n",
}
VICTIM = """\
import x
x.bidirectional, x.is_normalized, x.ucd_3_2_0, x.decoding_table
y = ['é', '*', 'ü', (1, ('a b', 2.5)), {'z'}]
def f(a, c=1): return [a for b in a if c]
"""


# In one process; where asked to, as if something else there knew some of what is in the code.
COMPILING = """\
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import tree
def compiling(*arguments, **options):
    code = compile(*arguments, **options)
    known.extend([code.co_consts, *code.co_consts, code.co_linetable] if sys.argv[3] == "True" else [])
    return code
known, tree.compile, os.cpu_count = [], compiling, lambda: 1
out = Path(sys.argv[2]).absolute()
tree.compile_python(out, [out])
"""


def test_the_bytecode_of_a_file_depends_on_no_other(root: Path, tmp_path: Path) -> None:
    """Whether it is compiled first or last, alone or after what changes the process; invalid files have none."""
    large = {name: f"{text}#{' ' * 1000}\n" for name, text in NEIGHBOURS.items()}  # which come first
    found = {}
    for case, neighbours in {"alone": {}, "last": large, "first": NEIGHBOURS, "known": {}}.items():
        folder = tmp_path / case
        folder.mkdir()
        for name, text in {"victim.py": VICTIM, **neighbours}.items():
            (folder / name).write_text(text)
        known = str(case == "known")
        command = [sys.executable, "-I", "-S", "-B", "-c", COMPILING, str(root / "docker" / "steps"), str(folder), known]
        subprocess.run(command, check=True, timeout=60)
        found[case] = {path.name.partition(".")[0]: path.read_bytes() for path in folder.glob("__pycache__/*")}
    assert found["alone"].keys() == {"victim"}
    assert found["last"].keys() == {"victim", "name", "letter", "star", "codec", "warned"}
    assert len({compiled["victim"] for compiled in found.values()}) == 1
    header, code = found["alone"]["victim"][:16], marshal.loads(found["alone"]["victim"][16:])
    assert header == importlib.util.MAGIC_NUMBER + b"\1\0\0\0" + importlib.util.source_hash(VICTIM.encode())
    assert (code, code.co_filename) == (compile(VICTIM, "/victim.py", "exec", dont_inherit=True), "/victim.py")


def test_ops_are_built_for_gpus_and_for_any_cpu(root: Path, tmp_path: Path) -> None:
    """The environment of a build with a toolkit; that this backend builds no ops is then refused."""
    files = {"pyproject.toml": PYPROJECT, "backend.py": BACKEND, "op_builder/builder.py": BUILDER}
    plan(tmp_path / "in", {"deepspeed-1.0.tar.gz": sdist("deepspeed", "1.0", files)}, ops="aot")
    ended = run(root, "build", tmp_path / "in", tmp_path / "out")
    assert ".whl: expected one cpu_adam op, found 0; check the toolkit in [conda] devel" in ended.stderr
    with zipfile.ZipFile(tmp_path / "out" / "deepspeed-1.0-py3-none-any.whl") as built:
        environ = json.loads(built.read("environ.json"))
        assert built.read("builder.py").decode() == BUILDER  # ops that users compile later are for their machine
    assert (environ["DS_ACCELERATOR"], environ["TORCH_CUDA_ARCH_LIST"]) == ("cuda", "8.0;9.0")
    assert (environ["DS_BUILD_FUSED_ADAM"], environ["DS_BUILD_CPU_ADAM"], environ["DS_BUILD_OPS"]) == ("1", "1", "0")


def test_without_a_toolkit_no_op_is_requested(root: Path, tmp_path: Path) -> None:
    files = {"pyproject.toml": PYPROJECT, "backend.py": BACKEND, "op_builder/builder.py": BUILDER}
    plan(tmp_path / "in", {"deepspeed-1.0.tar.gz": sdist("deepspeed", "1.0", files)})
    ended = run(root, "build", tmp_path / "in", tmp_path / "out")
    assert ended.returncode == 0, ended.stderr
    with zipfile.ZipFile(tmp_path / "out" / "deepspeed-1.0-py3-none-any.whl") as built:
        environ = json.loads(built.read("environ.json"))
    assert environ["DS_BUILD_OPS"] == "0"
    assert not {"DS_BUILD_FUSED_ADAM", "DS_ACCELERATOR"} & environ.keys()


@pytest.mark.parametrize(("old", "new"), [("self.cpu_arch()", "-march=native"), ("self.simd_width()", "-D__AVX512__")])
def test_ops_for_the_cpu_of_this_machine_are_refused(root: Path, tmp_path: Path, old: str, new: str) -> None:
    """Ops as a DeepSpeed would build them that chooses the CPU in another function."""
    builder = BUILDER.replace(f"{{{old}}}", new)
    ops = {f"ops/{op}_op.so": "" for op in ("fused_adam", "cpu_adam")}
    files = {"pyproject.toml": PYPROJECT, "backend.py": BACKEND, "op_builder/builder.py": builder, **ops}
    plan(tmp_path / "in", {"deepspeed-1.0.tar.gz": sdist("deepspeed", "1.0", files)}, ops="aot")
    stderr = run(root, "build", tmp_path / "in", tmp_path / "out").stderr
    assert ".whl: expected cpu_adam to be compiled with -march=x86-64-v3, found " in stderr
    assert new in stderr.partition(", found ")[2]
