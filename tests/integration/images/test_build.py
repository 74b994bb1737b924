"""Building images: from a small lock, on a real base, by a real engine."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import zstandard

from smokehouse.checkout import Checkout
from smokehouse.images.plan import plan_layers
from smokehouse.installs import loader
from smokehouse.locks import model
from smokehouse.oci import Layout
from smokehouse.storage import files

from ... import stubs
from ...unit.conftest import TestCheckout
from ..conftest import STRANGER, UID, Baked, as_builder, built, locked_tiny
from ..debian import unpack
from ..engine import Engine
from ..tiny_images import tree


def blob(layout: Path, digest: str) -> bytes:
    """A blob of an OCI layout."""
    return (layout / "blobs" / digest.replace(":", "/")).read_bytes()


def manifest(layout: Path) -> dict[str, Any]:
    """The manifest of an OCI layout's only image."""
    [entry] = json.loads((layout / "index.json").read_text())["manifests"]
    found: dict[str, Any] = json.loads(blob(layout, entry["digest"]))
    return found


@pytest.mark.parametrize("name", Checkout(Path(__file__).parents[3]).environments())
def test_what_is_changed_alone_is_a_layer_alone(root: Path, name: str) -> None:
    """Each large wheel and transformers, which is above what DeepSpeed's ops are compiled on; every file is in one layer."""
    lock = model.read(root / "lockfiles" / name / "lock.json", "lock.json", "")
    plan = plan_layers(lock)
    files = [file for layer in (*plan.numbered, plan.model) for file in layer.files]
    assert sorted(file.name for file in files) == sorted(file.name for file in lock.pip)
    assert all(len(layer.files) == 1 for layer in plan.libraries if any(file.size > 100_000_000 for file in layer.files))
    assert [[file.name for file in layer.files] for layer in plan.single] == [["transformers"]]
    assert "deepspeed" in [file.name for file in plan.model.files]


def test_two_clean_builds_are_the_same_image(
    checkout: TestCheckout, root: Path, programs: Path, mmdebstrap: str, uidmap: str, tmp_path: Path
) -> None:
    """The first of layers made in this run, from an empty store; the second with empty stores and caches, without an engine,
    by another user, with another clock, time zone, umask and folder."""
    first = locked_tiny(checkout, root, None, mmdebstrap)
    one = tmp_path / "one"
    digest = built(first, "--output", f"oci:{one}")["digest"]
    faketime = next(unpack(("libfaketime/bookworm",), programs / "faketime").glob("lib/*/faketime/libfaketimeMT.so.1"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        second = TestCheckout(folder / "elsewhere" / "deeper", dict(first.environ))
        environ = second.environ
        shutil.copytree(first.root, second.root, symlinks=True, ignore=shutil.ignore_patterns("build"))
        environ |= {"DOCKER_HOST": f"unix://{folder}/nothing.sock", "DOCKER_CONFIG": str(folder / "docker")}
        # libfaketime shares memory that only its user can read; in a user namespace, programs would end for lack of it.
        (folder / "mmdebstrap").write_text(f'#!/bin/sh\nexec env -u LD_PRELOAD {mmdebstrap}/mmdebstrap "$@"\n')
        (folder / "mmdebstrap").chmod(0o755)
        environ |= {"PATH": f"{folder}:{uidmap}:{os.environ['PATH']}", "TZ": "Pacific/Kiritimati"}
        environ |= {"UV_CACHE_DIR": str(folder / "uv"), "XDG_CACHE_HOME": str(folder / "cache")}
        environ |= {"HOME": name, "USER": "x", "LOGNAME": "x", "FAKETIME": "+400d"}
        two = folder / "two"
        command = second.command("build", "tiny", "--json", "--output", f"oci:{two}")
        command = ["sh", "-c", f'umask 077; LD_PRELOAD={faketime} exec "$@"', "sh", *command]
        ended = subprocess.run(
            as_builder(folder, command, [root, programs, Path(environ["SMOKEHOUSE_CHANNEL"])]),
            cwd=second.root,
            env=environ,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert ended.returncode == 0, ended.stderr
        # The base was built again, too, and not shared with other tests.
        assert not (second.root / "build" / "base").is_symlink()
        assert {path.stat().st_uid for path in second.root.glob("build/base/*/layout")} == {UID}
        assert manifest(two) == manifest(one)
    assert json.loads(ended.stdout)["digest"] == digest


def test_both_builders_make_the_same_image(tiny: TestCheckout, baked: Baked, tmp_path: Path) -> None:
    """What is assembled without an engine is, byte for byte, what BuildKit makes of docker/Dockerfile."""
    one, two = tmp_path / "one", baked.layout
    unreachable = {"DOCKER_HOST": f"unix://{tmp_path}/nothing.sock"}
    ended = tiny.run("build", "tiny", "--json", "--output", f"oci:{one}", **unreachable)
    assert ended.returncode == 0, ended.stderr
    assembled = json.loads(ended.stdout)
    configs = [blob(layout, manifest(layout)["config"]["digest"]) for layout in (one, two)]
    diff_ids = [json.loads(config)["rootfs"]["diff_ids"] for config in configs]
    assert diff_ids[0] == diff_ids[1]
    assert configs[0] == configs[1]
    assert assembled["id"] == baked.printed["id"] == f"sha256:{hashlib.sha256(configs[0]).hexdigest()}"
    # The compressors differ, and with them the digests of what is sent.
    assert assembled["digest"] != baked.printed["digest"]
    for layer, diff_id in zip(manifest(one)["layers"], diff_ids[0], strict=True):
        stream = zstandard.ZstdDecompressor().decompressobj().decompress(blob(one, layer["digest"]))
        assert f"sha256:{hashlib.sha256(stream).hexdigest()}" == diff_id


def test_an_edited_layer_is_made_again(tiny: TestCheckout, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    digest = built(tiny, "--output", f"oci:{one}")["digest"]
    used = {layer.digest for layer in Layout(one).image().manifest.layers}
    kept = {layer: f"sha256:{files.hashed(layer)}" for layer in (tiny.root / "build" / "layers").glob("*/layer.zstd")}
    assert used <= {*kept.values()}
    for layer, blob_digest in kept.items():
        if blob_digest in used:
            layer.unlink()  # the file is in layouts, too, those of other tests among them
            layer.write_bytes(b"edited")
    assert built(tiny, "--output", f"oci:{two}")["digest"] == digest
    tree(Layout(two).image())


def test_a_small_limit_leaves_what_was_packed_and_the_same_image(tiny: TestCheckout, tmp_path: Path) -> None:
    """No step runs for an image whose layers are packed; what a step needs that does run is made again."""
    layers = tiny.root / "build" / "layers"
    layers.unlink()  # those that tests share
    tiny.environ["SMOKEHOUSE_LAYERS_GB"] = "0"
    first = built(tiny, "--output", f"oci:{tmp_path / 'one'}")
    packed = {path.parent: path.stat().st_mtime_ns for path in layers.glob("*/zstd.json") if (path.parent / "size").exists()}
    assert len(packed) > 2
    assert not any((folder / "tree").exists() for folder in packed)
    assert built(tiny, "--output", f"oci:{tmp_path / 'two'}")["digest"] == first["digest"]
    assert {folder: (folder / "zstd.json").stat().st_mtime_ns for folder in packed} == packed
    # One that was edited is made again, on what it needs, and replaces no other.
    sizes = {folder: (folder / "layer.zstd").stat().st_size for folder in packed}
    edited = min(sizes, key=sizes.__getitem__)
    (edited / "layer.zstd").unlink()
    (edited / "layer.zstd").write_bytes(b"edited")
    assert built(tiny, "--output", f"oci:{tmp_path / 'three'}")["digest"] == first["digest"]
    made = {folder for folder, time in packed.items() if (folder / "zstd.json").stat().st_mtime_ns != time}
    assert made == {edited}
    # Other files of Smokehouse, in a layer that is made on top of all others.
    (tiny.root / "docker" / "inside" / "motd").write_text("other\n")
    other = built(tiny, "--output", f"oci:{tmp_path / 'four'}")
    blobs = [[layer["digest"] for layer in manifest(tmp_path / name)["layers"]] for name in ("one", "four")]
    assert (other["digest"] != first["digest"], blobs[0][:-1], blobs[0][-1] != blobs[1][-1]) == (True, blobs[1][:-1], True)
    assert not any((folder / "tree").exists() for folder in packed)


def test_another_environment_shares_layers_and_downloads(tiny: TestCheckout, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    built(tiny, "--output", f"oci:{one}")
    other = tiny.root / "environments" / "other"
    shutil.copytree(tiny.folder, other)
    tiny.edit(other / "environment.yml", "name: tiny", "name: other")
    assert tiny.run("lock", "other").returncode == 0
    nowhere = {"UV_OFFLINE": "1", "SMOKEHOUSE_CHANNEL": str(tmp_path / "none")}
    ended = tiny.run("build", "other", "--output", f"oci:{two}", **nowhere)
    assert ended.returncode == 0, ended.stderr
    layers = [[layer["digest"] for layer in manifest(layout)["layers"]] for layout in (one, two)]
    assert layers[0][:-1] == layers[1][:-1]
    assert layers[0][-1] != layers[1][-1]  # the files of Smokehouse, which name the environment


def test_who_is_not_root_is_told_what_builds_a_base(root: Path, mmdebstrap: str, uidmap: str, programs: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        checkout = TestCheckout(Path(name, "checkout"), {"PYTHONPATH": str(root / "src"), "HOME": name})
        shutil.copytree(root / "docker", checkout.root / "docker", ignore=shutil.ignore_patterns("__pycache__"))
        code = (
            "from pathlib import Path; from smokehouse.images.base import make; from smokehouse.checkout import Checkout; "
            "make(Checkout(Path()))"
        )
        for path, ids, said in (
            (mmdebstrap, "100000:65536", "cannot find newuidmap"),
            (f"{mmdebstrap}:{uidmap}", "", "/etc/subuid"),
        ):
            ended = subprocess.run(
                as_builder(Path(name), [sys.executable, "-c", code], [root, programs], ids),
                cwd=checkout.root,
                env=checkout.environ | {"PATH": f"{path}:{os.environ['PATH']}"},
                capture_output=True,
                text=True,
                timeout=120,
            )
            line = ended.stderr.splitlines()[-1]
            start = "smokehouse.errors.UserError: mmdebstrap: requires a user namespace to build the base image without root"
            assert line.startswith(f"{start}, cannot create one ("), line
            assert said in line
            assert "install uidmap and allocate IDs: usermod --add-subuids 100000-165535" in line


def test_a_layer_has_one_time_and_one_owner(tiny: TestCheckout, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    built(tiny, "--output", f"oci:{layout}")
    for layer in manifest(layout)["layers"]:
        stream = zstandard.ZstdDecompressor().decompressobj().decompress(blob(layout, layer["digest"]))
        command = ["tar", "-tv", "--numeric-owner", "--full-time", "--utc"]
        listed = subprocess.run(command, input=stream, capture_output=True, check=True, timeout=60).stdout.decode()
        lines = [line for line in listed.splitlines() if re.search(r" (\./)?opt/", line)]
        assert {line.split()[3] for line in lines} <= {"1980-01-01"}
        assert {line.split()[1] for line in lines} <= {"0/0"}


def test_labels_say_what_an_image_is_of(image: str, image_checkout: TestCheckout, engine: Engine) -> None:
    lock = json.loads(image_checkout.lock_json.read_text())
    labels = json.loads(engine.docker("image", "inspect", "--format", "{{json .Config.Labels}}", image).stdout)
    digest = subprocess.run(
        ["sha256sum", image_checkout.lock_json], capture_output=True, text=True, check=True, timeout=10
    ).stdout.split()[0]
    assert labels["io.smokehouse.lock"] == digest
    assert (labels["io.smokehouse.environment"], labels["io.smokehouse.flavour"]) == ("tiny", "runtime")
    assert (labels["io.smokehouse.python"], labels["io.smokehouse.cuda"]) == (lock["python"], "12.4")
    assert labels["org.opencontainers.image.created"] == f"{lock['cutoff']}T00:00:00Z"
    assert re.fullmatch("sha256:[0-9a-f]{64}", labels["org.opencontainers.image.base.digest"])
    assert digest[:12] in image
    names = engine.docker("images", "--format", "{{.Tag}}", "tiny").stdout.split()
    assert sorted(names) == sorted([f"cu124-torchnone-{digest[:12]}", f"20250315-{digest[:12]}"])


def test_an_image_says_what_it_is_to_anyone(image: str, engine: Engine) -> None:
    said = engine.docker("run", "--rm", *STRANGER, image).stdout
    assert said.startswith("Smokehouse tiny (runtime)\n")
    assert "docker run [--gpus all --shm-size 2g] IMAGE smoke" in said


def test_an_image_has_the_loader(image: str, engine: Engine, root: Path, tmp_path: Path) -> None:
    """As every environment: the distribution, its program and its files, which are those of the checkout."""

    def inside(*command: str) -> str:
        return str(engine.docker("run", "--rm", *STRANGER, image, *command).stdout)

    code = (
        "import hashlib, importlib.metadata, json, pathlib, smokehouse_loader.checkpoint as module\n"
        "files = pathlib.Path(module.__file__).parent.glob('*.*')\n"
        "found = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}\n"
        "print(json.dumps([importlib.metadata.version('smokehouse-loader'), module.__cached__ is not None, found]))"
    )
    sources = (root / "src" / "smokehouse_loader").glob("*.*")
    expected = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sources}
    assert json.loads(inside("python", "-c", code)) == ["0.1.0", True, expected]
    assert inside("smokehouse-loader", "failures") == inside("python", "-m", "smokehouse_loader", "failures")
    assert "smokehouse-loader 0.1.0\n" in inside("describe")
    assert "smokehouse-loader==0.1.0" in inside("cat", "/opt/smokehouse/constraints.txt").splitlines()
    wheel = loader.build(Checkout(root), tmp_path)
    packages = json.loads(inside("cat", "/opt/smokehouse/sbom.spdx.json"))["packages"]
    [entry] = [entry for entry in packages if entry["name"] == "smokehouse-loader"]
    assert (entry["packageFileName"], entry["checksums"][0]["checksumValue"]) == (wheel.file, wheel.sha256)
    assert entry["licenseDeclared"] == "Apache-2.0"


def test_a_command_is_run_as_it_is_with_tini_above_it(image: str, engine: Engine) -> None:
    ended = engine.docker("run", "--rm", *STRANGER, image, "sh", "-c", "cat /proc/1/comm; exit 7", check=False)
    assert (ended.returncode, ended.stdout) == (7, "tini\n")


@pytest.mark.parametrize("entrypoint", [[], ["--entrypoint", ""]], ids=["entrypoint", "bypassed"])
def test_any_uid_has_a_home_and_a_name(image: str, engine: Engine, entrypoint: list[str]) -> None:
    code = "import alpha, getpass, pathlib; home = pathlib.Path.home(); (home / 'x').touch(); "
    code += "print(alpha.hello(), getpass.getuser(), home)"
    said = engine.docker("run", "--rm", *STRANGER, *entrypoint, image, "python", "-c", code).stdout
    assert said == "hello uid54321 /tmp/smokehouse-54321\n"
    assert engine.docker("run", "--rm", *STRANGER, *entrypoint, image, "alpha").stdout == "hello\n"


def test_a_home_that_another_user_made_is_not_used(image: str, engine: Engine, tmp_path: Path) -> None:
    """As where the /tmp of a host that others use is mounted."""
    shared = tmp_path / "tmp"
    shared.mkdir()
    shared.chmod(0o1777)
    home = shared / "smokehouse-54321"
    options = ["--user", "54321:54321", "--read-only", "--network", "none"]
    options += ["--mount", f"type=bind,source={shared},target=/tmp"]
    code = "import os; home = os.environ['HOME']; open(f'{home}/x', 'w'); "
    code += "print(home, oct(os.stat(home).st_mode), os.listdir(home))"

    def said() -> list[str]:
        return engine.docker("run", "--rm", *options, image, "python", "-c", code).stdout.split(" ", 2)

    for _ in range(2):
        assert said() == [f"/tmp/{home.name}", "0o40700", "['x']\n"]
    home.chmod(0o777)
    assert said()[0].startswith(f"/tmp/{home.name}-")
    shutil.rmtree(home)
    theirs = shared / "theirs"
    theirs.mkdir(mode=0o777)
    theirs.chmod(0o777)
    os.chown(theirs, UID, UID)
    for make in (lambda: home.symlink_to("theirs"), lambda: home.mkdir(), lambda: home.write_text("")):
        make()
        found, mode, listed = said()
        assert re.fullmatch(rf"/tmp/{home.name}-\w+", found)
        assert (mode, listed) == ("0o40700", "['x']\n")
        shutil.rmtree(home) if home.is_dir() and not home.is_symlink() else home.unlink()
    assert [*theirs.iterdir()] == []


def test_a_home_that_is_there_is_kept(image: str, engine: Engine) -> None:
    options = [
        "--user",
        "54321:54321",
        "--read-only",
        "--network",
        "none",
        "--tmpfs",
        "/home/me:mode=1777",
        "--env",
        "HOME=/home/me",
    ]
    code = "import os; print(os.environ['HOME'], os.environ.get('HF_HOME'))"
    assert engine.docker("run", "--rm", *options, image, "python", "-c", code).stdout == "/home/me None\n"


def test_a_folder_with_other_files_is_not_given_to_a_container(
    image: str, image_checkout: TestCheckout, tmp_path: Path
) -> None:
    (tmp_path / "thesis").touch()
    refused = image_checkout.refused("smoke", "--image", image, "--report", str(tmp_path))
    assert f"{tmp_path}: expected an empty folder or one of reports, found other files; give --report a new one" in refused
    assert (tmp_path / "thesis").stat().st_uid == tmp_path.stat().st_uid == os.getuid()


def test_doctor_names_what_is_too_small_and_too_old(image: str, engine: Engine, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    version = tmp_path / "driver" / "nvidia" / "version"
    version.parent.mkdir(parents=True)
    version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.82.01  Wed Oct 27\nGCC version:  gcc\n")
    old = ["--mount", f"type=bind,source={tmp_path},target=/fake", "--env", "SMOKEHOUSE_PROC=/fake"]
    line = "this image needs NVIDIA driver 525.60.13 or later, this machine has 470.82.01; update it"
    hidden = "libcuda.so.1 is not found here, so only the CPU works; start with --gpus all"
    ended = engine.docker("run", "--rm", *STRANGER, *old, image, "doctor", check=False)
    assert ended.returncode == 1
    assert f"  warn  NVIDIA driver: version 470.82.01 is on this machine, but {hidden}\n" in ended.stdout
    assert "  FAIL  /dev/shm: 64 MiB, NCCL and data loaders need 1024 MiB; start with --shm-size 2g" in ended.stdout
    assert engine.docker("run", "--rm", *STRANGER, *old, image, "true").stderr == f"smokehouse: {line}\n"
    version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22\n")
    ended = engine.docker("run", "--rm", *STRANGER, *old, "--shm-size", "2g", image, "doctor")
    assert "  ok    /dev/shm: 2048 MiB" in ended.stdout
    # What the engine's --gpus all brings: the driver's libraries and devices.
    libraries = stubs.build(tmp_path / "stubs")
    (tmp_path / "nvidiactl").touch()
    (tmp_path / "nvidiactl").chmod(0o666)
    for cuda, code, expected in (
        (12040, 0, "  ok    NVIDIA driver: 550.54.14, supports CUDA 12.4, 525.60.13 or later is needed\n"),
        (11040, 1, "  FAIL  NVIDIA driver: the environment with CUDA 12.4 needs 525.60.13 or later"),
    ):
        variables = stubs.environ(Path("/fake/stubs"), made=libraries, cuda=cuda) | {"SMOKEHOUSE_DEV": "/fake"}
        brought = [*old, *(word for name, value in variables.items() for word in ("--env", f"{name}={value}"))]
        ended = engine.docker("run", "--rm", *STRANGER, *brought, "--shm-size", "2g", image, "doctor", check=False)
        assert expected in ended.stdout
        assert ended.returncode == code, ended.stdout
    assert engine.docker("run", "--rm", *STRANGER, *old, image, "true").stderr == ""


def test_every_file_is_locked_or_listed_in_files_json(image: str, engine: Engine) -> None:
    code = """
import csv, hashlib, json, pathlib
prefix = pathlib.Path("/opt/env")
listed = json.loads(pathlib.Path("/opt/smokehouse/files.json").read_text())["files"]
known = {entry["path"]: entry["sha256"] for entry in listed}
for record in prefix.glob("conda-meta/*.json"):
    for entry in json.loads(record.read_text())["paths_data"]["paths"]:
        known.setdefault(str(prefix / entry["_path"]), entry.get("sha256"))
site = prefix / "lib/python3.11/site-packages"
for record in site.glob("*.dist-info/RECORD"):
    for path, digest, _ in csv.reader(record.open()):
        known.setdefault(str((site / path).resolve()), None)
known["/opt/smokehouse/files.json"] = None
for top in (prefix, pathlib.Path("/opt/smokehouse")):
    for path in top.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert str(path) in known, path
            digest = known[str(path)]
            assert digest is None or hashlib.sha256(path.read_bytes()).hexdigest() == digest, path
print(len(known))
"""
    assert int(engine.docker("run", "--rm", *STRANGER, image, "python", "-c", code).stdout) > 1000


def test_the_sbom_has_every_package_with_its_hash(image: str, image_checkout: TestCheckout, engine: Engine) -> None:
    lock = json.loads(image_checkout.lock_json.read_text())
    document = json.loads(engine.docker("run", "--rm", *STRANGER, image, "cat", "/opt/smokehouse/sbom.spdx.json").stdout)
    listed = {entry["packageFileName"]: entry["checksums"][0]["checksumValue"] for entry in document["packages"][1:]}
    inside = [entry for entry in lock["conda"] if entry["category"] == "main"] + lock["pip"]
    assert {entry["file"]: entry["sha256"] for entry in inside}.items() <= listed.items()
    base = [line.split() for line in (image_checkout.root / "docker" / "base.lock").read_text().splitlines() if line[0] != "#"]
    assert {path.rpartition("/")[2]: digest for _, _, digest, _, path, *_ in base}.items() <= listed.items()
    assert len(listed) == len(inside) + len(base) + 1  # and the loader
    assert document["spdxVersion"] == "SPDX-2.3"


def test_a_wheel_that_is_not_the_locked_one_is_refused(tiny: TestCheckout) -> None:
    tiny.run("bundle", "tiny", str(tiny.root / "bundle"))
    [wheel] = (tiny.root / "bundle" / "wheels").glob("alpha-*.whl")
    locked = wheel.read_bytes()
    wheel.write_bytes(locked + b"more")
    digests = [hashlib.sha256(data).hexdigest() for data in (locked, locked + b"more")]
    assert tiny.refused("build", "tiny", "--bundle", str(tiny.root / "bundle")) == (
        f"smokehouse: {wheel}: expected SHA-256 {digests[0]}, found {digests[1]}; copy or make the bundle again"
    )


@pytest.mark.parametrize("base", ["debian:bookworm", "debian", "debian@sha256:123", "oci-layout:///x@sha256:" + "0" * 64])
def test_a_base_by_tag_is_refused(tiny: TestCheckout, base: str) -> None:
    assert tiny.refused("build", "tiny", "--base", base) == (
        f"smokehouse: --base: expected REF@sha256:…, found {base}; specify the digest, because a tag can move"
    )


def test_a_change_of_the_base_requires_a_new_lock(tiny: TestCheckout) -> None:
    tiny.edit(tiny.root / "docker" / "base.toml", "[include]", '[include]\nnano = "an editor"')
    assert "docker/base.lock: lock out of date: docker/base.toml has changed; run smokehouse lock --base" in tiny.refused(
        "build", "tiny"
    )


def test_an_argument_left_unset_ends_the_build(tiny: TestCheckout, engine: Engine) -> None:
    prepared = tiny.run("build", "tiny", "--prepare")
    bake = tiny.root / "build" / "images" / "tiny-runtime" / "bake.json"
    assert prepared.stdout == f"docker buildx bake -f docker/docker-bake.hcl -f {bake.relative_to(tiny.root)} tiny\n"
    for unset in ("LAYERS", "LIBRARIES", "OPS"):
        plan = json.loads(bake.read_text())
        if unset == "LIBRARIES":  # what is compiled is compiled on
            plan["target"]["tiny"]["args"]["OPS"] = "aot"
            plan["target"]["tiny"]["contexts"]["toolkit"] = plan["target"]["tiny"]["contexts"]["conda"]
        del plan["target"]["tiny"]["args"][unset]
        other = bake.with_name(f"{unset}.json")
        other.write_text(json.dumps(plan))
        ended = subprocess.run(
            ["docker", "buildx", "bake", "-f", "docker/docker-bake.hcl", "-f", str(other), "tiny"],
            cwd=tiny.root,
            env=tiny.environ,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert ended.returncode
        assert re.search(rf"{unset}( or LAYERS)? is not set; build with: nox -s build -- NAME", ended.stderr)


def test_a_layer_over_its_budget_is_refused(tiny: TestCheckout) -> None:
    layers = tiny.root / "docker" / "steps" / "unpack.py"
    tiny.edit(layers, 'plan["budget"]', "1")
    assert re.search(
        r"layer: expected at most 1 bytes, found \d+; find the files that are unexpectedly large", tiny.refused("build", "tiny")
    )


def test_a_wheel_that_replaces_another_is_refused(tiny: TestCheckout) -> None:
    steps = tiny.root / "docker" / "steps" / "unpack.py"
    renaming = "    [i.rename(site / 'alpha-9.dist-info') for i in site.glob('alpha-1*')]\n"
    tiny.edit(steps, "    tree.compile_python(", f"{renaming}    tree.compile_python(")
    said = tiny.refused("build", "tiny")
    assert "alpha-1.0.dist-info/" in said
    assert "metadata of another package, listed by alpha-9.dist-info; remove that package from the environment" in said


def test_a_file_outside_the_lock_is_refused(tiny: TestCheckout) -> None:
    steps = tiny.root / "docker" / "steps" / "unpack.py"
    tiny.edit(steps, "    tree.compile_python(", "    (site / 'extra.py').touch()\n    tree.compile_python(")
    assert "site-packages/extra.py: unexpected file, of no locked package" in tiny.refused("build", "tiny")


def test_a_folder_with_other_files_is_kept(tiny: TestCheckout, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "thesis").touch()
    said = f"{kept}: expected an OCI layout or an empty folder, found other files; specify another folder"
    assert tiny.refused("build", "tiny", "--output", f"oci:{kept}") == f"smokehouse: {said}"
    assert [path.name for path in kept.iterdir()] == ["thesis"]
    assert "--output: expected oci:DIR, docker or push:REF, found tar" in tiny.refused("build", "tiny", "--output", "tar")


def test_no_engine_is_one_line(tiny: TestCheckout, tmp_path: Path) -> None:
    refused = tiny.refused("build", "tiny", DOCKER_HOST=f"unix://{tmp_path}/nothing.sock")
    assert "the engine cannot be reached; start it, or set DOCKER_HOST" in refused
