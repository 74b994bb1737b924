"""The steps of a build, run here without an engine: they need nothing but Python."""

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ..conftest import sdist, wheel

SITE = f"opt/env/lib/python3.{sys.version_info.minor}/site-packages"
PYTHON = f"3.{sys.version_info.minor}"

# Builds a wheel that holds what it was built with, and says how it would compile.
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


def run(root: Path, step: str, given: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Run a step as the Dockerfile does."""
    program = root / "docker" / "steps" / f"{step}.py"
    command = [sys.executable, "-I", "-B", str(program), str(given), str(out)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def plan(folder: Path, files: dict[str, bytes], **more: object) -> None:
    """Write a step's context."""
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    named = [{"file": name, "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()]
    text = {"python": PYTHON, "epoch": 315532800, "budget": 1 << 20, "files": named, "build": [], "ops": "none"}
    (folder / "plan.json").write_text(json.dumps(text | more))


def hostile(member: str) -> bytes:
    """A wheel with one more member."""
    path = Path("made.whl")
    data = wheel("alpha", "1.0")
    path.write_bytes(data)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(member, "x")
    return path.read_bytes()


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if os.getuid():
        pytest.skip("steps give their files to root, so only root can run them here")


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


@pytest.mark.parametrize("member", ["../../escaped.py", "/etc/escaped", "alpha-1.0.data/data/../../../escaped"])
def test_a_wheel_that_reaches_outside_is_refused(root: Path, tmp_path: Path, member: str) -> None:
    plan(tmp_path / "in", {"alpha-1.0-py3-none-any.whl": hostile(member)})
    ended = run(root, "unpack", tmp_path / "in", tmp_path / "out")
    assert "which lies outside it" in ended.stderr
    assert ended.returncode == 1
    assert not list(tmp_path.rglob("escaped*"))


def test_a_wheel_that_replaces_a_file_of_another_is_refused(root: Path, tmp_path: Path) -> None:
    other = {"alpha-1.0-py3-none-any.whl": wheel("alpha", "1.0"), "torch-9-py3-none-any.whl": hostile("torch.py")}
    other["alpha-1.0-py3-none-any.whl"] = wheel("torch", "1.0", code="the real one")
    plan(tmp_path / "in", other)
    assert "torch.py is another package's too, and differs" in run(root, "unpack", tmp_path / "in", tmp_path / "out").stderr


def test_a_file_with_another_hash_is_refused(root: Path, tmp_path: Path) -> None:
    plan(tmp_path / "in", {"alpha-1.0-py3-none-any.whl": wheel("alpha", "1.0")})
    (tmp_path / "in" / "alpha-1.0-py3-none-any.whl").write_bytes(wheel("alpha", "1.0", code="other"))
    assert "not the file that the lock names" in run(root, "unpack", tmp_path / "in", tmp_path / "out").stderr


def test_ops_are_built_for_gpus_and_for_any_cpu(root: Path, tmp_path: Path) -> None:
    """What a build with a toolkit is told; that it built no ops is then refused."""
    files = {"pyproject.toml": PYPROJECT, "backend.py": BACKEND, "op_builder/builder.py": BUILDER}
    plan(tmp_path / "in", {"deepspeed-1.0.tar.gz": sdist("deepspeed", "1.0", files)}, ops="aot")
    ended = run(root, "build", tmp_path / "in", tmp_path / "out")
    assert "cpu_adam was not built; look at the toolkit" in ended.stderr
    with zipfile.ZipFile(tmp_path / "out" / "deepspeed-1.0-py3-none-any.whl") as made:
        environ = json.loads(made.read("environ.json"))
        assert made.read("builder.py").decode() == BUILDER  # whoever compiles another op in the image does it for that machine
    assert (environ["DS_ACCELERATOR"], environ["TORCH_CUDA_ARCH_LIST"]) == ("cuda", "8.0;9.0")
    assert (environ["DS_BUILD_FUSED_ADAM"], environ["DS_BUILD_CPU_ADAM"], environ["DS_BUILD_OPS"]) == ("1", "1", "0")


def test_without_a_toolkit_no_op_is_asked_for(root: Path, tmp_path: Path) -> None:
    files = {"pyproject.toml": PYPROJECT, "backend.py": BACKEND, "op_builder/builder.py": BUILDER}
    plan(tmp_path / "in", {"deepspeed-1.0.tar.gz": sdist("deepspeed", "1.0", files)})
    ended = run(root, "build", tmp_path / "in", tmp_path / "out")
    assert ended.returncode == 0, ended.stderr
    with zipfile.ZipFile(tmp_path / "out" / "deepspeed-1.0-py3-none-any.whl") as made:
        environ = json.loads(made.read("environ.json"))
    assert environ["DS_BUILD_OPS"] == "0"
    assert not {"DS_BUILD_FUSED_ADAM", "DS_ACCELERATOR"} & environ.keys()


@pytest.mark.parametrize(("old", "new"), [("self.cpu_arch()", "-march=native"), ("self.simd_width()", "-D__AVX512__")])
def test_ops_for_the_cpu_of_this_machine_are_refused(root: Path, tmp_path: Path, old: str, new: str) -> None:
    """As a deepspeed would build them that chooses the CPU in another place."""
    builder = BUILDER.replace(f"{{{old}}}", new)
    ops = {f"ops/{op}_op.so": "" for op in ("fused_adam", "cpu_adam")}
    files = {"pyproject.toml": PYPROJECT, "backend.py": BACKEND, "op_builder/builder.py": builder, **ops}
    plan(tmp_path / "in", {"deepspeed-1.0.tar.gz": sdist("deepspeed", "1.0", files)}, ops="aot")
    said = run(root, "build", tmp_path / "in", tmp_path / "out").stderr
    assert "cpu_adam is for" in said
    assert new in said
