"""The image of qwen2.5-vl with its real PyPI packages: published, verified, pulled into another engine, proven there."""

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from smokehouse.oci.reference import Reference
from smokehouse.oci.registry import Registry

from ... import stubs
from ...unit.channel import copy
from ...unit.conftest import TestCheckout
from .. import registries, toolkit
from ..buildkit import Expected, Parts, build_in_parts
from ..conftest import STRANGER, key_pair
from ..engine import Engine, started
from ..real import NAME, furnish, locked_bytes, run
from .test_ops import CPU, FUSED

MOST = 0.90  # of the sizes of what is locked
SITE = "/opt/env/lib/python3.11/site-packages"

# Without a GPU, deepspeed uses its CUDA ops only if DS_ACCELERATOR says so, and triton finds no driver.
LOADED = f"""
import os, sys, torch
sys.modules["triton"] = None
os.environ["DS_ACCELERATOR"] = "cuda"
from deepspeed.git_version_info import installed_ops
from deepspeed.ops.adam import DeepSpeedCPUAdam
from deepspeed.ops.op_builder import CPUAdamBuilder, FusedAdamBuilder
assert [name for name, there in installed_ops.items() if there] == ["fused_adam", "cpu_adam"], installed_ops
assert FusedAdamBuilder().load().__file__ == "{SITE}/{FUSED}"
assert FusedAdamBuilder().load().multi_tensor_adam
assert CPUAdamBuilder().load().__file__ == "{SITE}/{CPU}"
torch.manual_seed(0)
start = torch.randn(10007)
ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
options = dict(lr=1e-2, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
optimizers = DeepSpeedCPUAdam([ours], **options), torch.optim.AdamW([theirs], **options)
for _ in range(3):
    ours.grad = torch.randn(10007)
    theirs.grad = ours.grad.clone()
    for optimizer in optimizers:
        optimizer.step()
torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
assert not torch.allclose(ours, start, atol=1e-3)
"""


@dataclass(frozen=True)
class Real:
    """The image, published by one command and built nowhere else, and the public key of its statement."""

    checkout: TestCheckout
    engine: Engine
    repository: str
    tags: list[str]
    digest: str
    key: Path

    @property
    def reference(self) -> str:
        """The image by its digest."""
        return f"{self.repository}@{self.digest}"


def environment_of(engine: Engine, *programs: str) -> dict[str, str]:
    """The environment variables for `engine`, with `programs` on PATH and the password of keys."""
    path = ":".join([*programs, engine.environ["PATH"]])
    return {**engine.environ, "PATH": path, "COSIGN_PASSWORD": "a password"}


def forget(engine: Engine) -> None:
    """Remove the image from the engine, with all that was built for it."""
    label = f"label=io.smokehouse.environment={NAME}"
    listed = engine.docker("images", "--format", "{{.ID}}", "--filter", label).stdout.split()
    if listed:  # not where the build itself failed
        engine.docker("rmi", "--force", *{*listed})
    if engine.store:
        engine.docker("builder", "prune", "--all", "--force")


def free(checkout: TestCheckout) -> None:
    """Remove what the image was made from and of, 10 GB, which nothing needs once it is in the registry."""
    for name in ("images", "layers", "publish"):
        shutil.rmtree(checkout.root / "build" / name, ignore_errors=True)


@pytest.fixture(scope="module")
def real(
    root: Path,
    engine: Engine,
    mmdebstrap: str,
    cosign: Path,
    packages: Path,
    programs: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Real]:
    """Locked, then built with a real toolkit, proven inside, verified, signed and pushed by `publish`; then forgotten."""
    # At no time there is more on the disk than needed, and at the end nothing: see `free`.
    place = tmp_path_factory.mktemp("real")
    environ = environment_of(engine, mmdebstrap, str(cosign)) | {"SMOKEHOUSE_LAYERS_GB": "1"}
    channel = copy(packages, place / "channel")
    toolkit.fill(channel, programs)
    checkout = furnish(place / "checkout", root, channel.folder, environ)
    key_pair(place, environ, "ours")
    store = place / "store"
    try:
        with registries.started(programs / "registry", store, place / "registry") as port:
            repository = f"127.0.0.1:{port}/checkout/{NAME}"
            try:
                published = run(checkout, "publish", NAME, repository, "--key", str(place / "ours.key"), "--record")
            finally:
                forget(engine)
            tags = [line.removeprefix(f"{repository}:") for line in published.stdout.split()]
            there = Registry(Reference.parse(repository)).manifest(tags[0])
            assert there
            yield Real(checkout, engine, repository, tags, there[1].digest, place / "ours.pub")
    finally:
        free(checkout)
        shutil.rmtree(store, ignore_errors=True)


def test_it_is_what_the_lock_builds_and_says_what_was_proven(real: Real) -> None:
    """For anyone with the checkout and the public key, from the registry alone."""
    verdict = json.loads(run(real.checkout, "verify", real.reference, "--key", str(real.key), "--json").stdout)
    assert verdict["passed"]
    assert verdict["differences"] == []
    lock = (real.checkout.root / "lockfiles" / NAME / "lock.json").read_bytes()
    report = verdict["report"]
    assert (report["verdict"], report["image"]) == ("passed", real.digest)
    assert report["versions"]["deepspeed_ops_ahead_of_time"] == "cpu_adam, fused_adam"
    assert report["lock"]["lock.json"] == hashlib.sha256(lock).hexdigest()
    assert {"load", "weights", "train", "resume"} <= {check["name"] for check in report["checks"]}
    assert [layer["content"] for layer in verdict["layers"]][-1] == "files of Smokehouse"


def test_it_is_smaller_than_what_it_is_made_of(real: Real) -> None:
    there = Registry(Reference.parse(real.reference)).manifest(real.digest)
    assert there
    packed = sum(layer["size"] for layer in json.loads(there[0])["layers"])
    locked = locked_bytes(real.checkout)
    print(f"{packed} bytes packed, {locked} bytes locked, {packed / locked:.3f}")
    assert packed <= MOST * locked


def test_buildkit_makes_the_same_image(real: Real, tmp_path: Path) -> None:
    """Of docker/Dockerfile, from the same bundle: the layers, the configuration and the image ID that image.json has."""
    free(real.checkout)
    recorded = json.loads((real.checkout.root / "lockfiles" / NAME / "image.json").read_text())["flavours"]["runtime"]
    there = Registry(Reference.parse(real.reference)).manifest(real.digest)
    assert there
    expected = Expected(recorded["config"], json.loads(there[0]), real.repository)
    try:
        image, layers, lower = build_in_parts(Parts(real.checkout, NAME, real.engine, tmp_path), expected)
    finally:
        free(real.checkout)
    assert layers == expected.diff_ids == [layer["diff_id"] for layer in recorded["layers"]]
    assert lower == layers[:-2]  # the rest is that of the model, and the files of Smokehouse
    assert image == expected.manifest["config"]["digest"] == recorded["id"]


@pytest.fixture(scope="module")
def pulled(real: Real, programs: Path) -> Iterator[Engine]:
    """An engine with empty stores that pulled the image by its digest: that of another machine."""
    free(real.checkout)
    with started(programs / "engine") as other:
        other.docker("pull", "--quiet", real.reference)
        yield other


def test_pulled_elsewhere_it_passes_its_whole_smoke_test(real: Real, pulled: Engine) -> None:
    """Without a network, a name for the user and a writable folder but /tmp, as `smoke --image` runs it."""
    checkout = TestCheckout(real.checkout.root, real.checkout.environ | {"DOCKER_HOST": pulled.environ["DOCKER_HOST"]})
    assert "PASSED" in run(checkout, "smoke", "--image", real.reference).stdout
    report = json.loads((checkout.root / "build" / "smoke" / f"{NAME}-image" / "report.json").read_text())
    assert (report["verdict"], report["image"]) == ("passed", real.digest)
    assert "--nonsense" in run(checkout, "smoke", "--image", real.reference, "--nonsense", code=2).stderr


def test_without_its_labels_it_passes_as_an_image_of_somebody_else(real: Real, pulled: Engine) -> None:
    """`--here`: the smoke test of the checkout in a container of an image that has another entrypoint and no label of ours."""
    container = pulled.docker("create", real.reference).stdout.strip()
    changes = ("--change", 'LABEL io.smokehouse.environment=""', "--change", "ENTRYPOINT []")
    pulled.docker("commit", *changes, container, "theirs:real")
    pulled.docker("rm", container)
    checkout = TestCheckout(real.checkout.root, real.checkout.environ | {"DOCKER_HOST": pulled.environ["DOCKER_HOST"]})
    assert "not an image of Smokehouse" in run(checkout, "smoke", "--image", "theirs:real", code=2).stderr
    said = run(checkout, "smoke", "--here", "--image", "theirs:real", "--python", "/opt/env/bin/python").stdout
    assert said.splitlines()[-1].startswith("no lock: this is about /opt/env ")
    report = json.loads((checkout.root / "build" / "smoke" / "here-image" / "report.json").read_text())
    assert (report["verdict"], report["lock"]) == ("passed", None)
    assert report["installed"]["packages"]["deepspeed"] == report["versions"]["deepspeed"]


def test_the_stack_is_there_without_the_entrypoint_and_the_driver_is_not(real: Real, pulled: Engine) -> None:
    code = "import sys, torch, transformers; print(torch.__file__); assert 'smokehouse' not in sys.modules"
    said = pulled.docker("run", "--rm", *STRANGER, "--entrypoint", "", real.reference, "python", "-c", code).stdout
    assert "/opt/env/lib/python3.11/site-packages/torch/__init__.py" in said
    driver = pulled.docker(
        "run", "--rm", *STRANGER, real.reference, "sh", "-c", "ldconfig -p | grep -c libcuda.so", check=False
    )
    assert driver.stdout == "0\n"


def test_ops_are_there_for_whoever_has_no_compiler(real: Real, pulled: Engine) -> None:
    """And they compute what torch computes."""
    pulled.docker("run", "--rm", *STRANGER, real.reference, "python", "-c", LOADED)
    # Debian's gcc is there for triton, which compiles C; ops are C++.
    compilers = "for name in nvcc g++ c++ cuobjdump x86_64-conda-linux-gnu-gcc; do command -v $name; done"
    assert pulled.docker("run", "--rm", *STRANGER, real.reference, "sh", "-c", compilers, check=False).stdout == ""
    said = pulled.docker("run", "--rm", *STRANGER, real.reference).stdout
    assert "DeepSpeed's fused_adam and cpu_adam are compiled, for sm_80, sm_90 and x86-64-v3" in said


def test_deepspeed_is_imported_where_gpus_are_and_nvcc_is_not(real: Real, pulled: Engine, tmp_path: Path) -> None:
    """With stub libraries for the driver's; the image answers DeepSpeed's question for nvcc, and refuses to compile."""
    libraries = stubs.build(tmp_path / "stubs")
    (libraries / "nvidiactl").touch()
    variables = stubs.environ(Path("/stubs"), gpus=2, made=libraries) | {"SMOKEHOUSE_DEV": "/stubs"}
    options = [word for name, value in variables.items() for word in ("--env", f"{name}={value}")]
    options += ["--mount", f"type=bind,source={libraries},target=/stubs,readonly"]
    code = "import os, torch, deepspeed; print(torch.cuda.device_count(), os.environ['CUDA_HOME'])"
    said = pulled.docker("run", "--rm", *STRANGER, *options, real.reference, "python", "-c", code).stdout
    assert said.splitlines()[-1] == f"2 {SITE}/_smokehouse_cuda"
    without = f"import torch.utils.cpp_extension as extension; extension.CUDA_HOME = None; {code}"
    failed = pulled.docker("run", "--rm", *STRANGER, *options, real.reference, "python", "-c", without, check=False)
    assert "MissingCUDAException" in failed.stderr
    compiled = pulled.docker("run", "--rm", real.reference, f"{SITE}/_smokehouse_cuda/bin/nvcc", "-c", "x.cu", check=False)
    assert "devel flavour" in compiled.stderr


def test_the_op_for_gpus_is_for_those_that_the_image_names(real: Real, pulled: Engine, programs: Path, tmp_path: Path) -> None:
    made = pulled.docker("create", real.reference).stdout.strip()
    pulled.docker("cp", f"{made}:{SITE}/{FUSED}", str(tmp_path / "fused.so"))
    pulled.docker("rm", made)
    command: list[str | Path] = [toolkit.unpacked(programs) / "bin" / "cuobjdump", "--list-elf", tmp_path / "fused.so"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert set(re.findall(r"\.(sm_\d+)\.cubin", listed)) == {"sm_80", "sm_90"}
    # The ID of the process that compiled it would make two builds differ.
    assert b"tmpxft_" not in (tmp_path / "fused.so").read_bytes()
