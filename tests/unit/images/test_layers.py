"""The base that steps run on is unpacked as a runtime would show it; the configuration is that of BuildKit on any base."""

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from smokehouse.checkout import Checkout
from smokehouse.errors import UserError
from smokehouse.images import layers
from smokehouse.images.config import image_config
from smokehouse.images.layers import LayerStore
from smokehouse.oci import Image, Layout

from ...integration.tiny_images import FOLDER, Member, image, link, packed, tar

CREATED = "2025-03-15T00:00:00Z"


@pytest.fixture
def checkout(root: Path, tmp_path: Path) -> Checkout:
    """A checkout with nothing but docker/."""
    shutil.copytree(root / "docker", tmp_path / "checkout" / "docker")
    (tmp_path / "checkout" / "environments").mkdir()
    return Checkout(tmp_path / "checkout")


def base(folder: Path, *layers: dict[str, Member | bytes]) -> Image:
    """A base of `layers`."""
    image(folder, list(layers))
    return Layout(folder).image()


def test_a_base_is_unpacked_with_what_its_layers_take_away(checkout: Checkout, tmp_path: Path) -> None:
    found = base(
        tmp_path / "base",
        {
            "bin": FOLDER,
            "bin/sh": Member(b"#!", 0o755),
            "etc": FOLDER,
            "etc/old": b"",
            "etc/x": b"1",
            "srv/a": b"",
            "srv/b": b"",
        },
        {
            "etc/.wh.old": b"",
            "etc/x": link("/bin/sh"),
            "srv/.wh..wh..opq": b"",
            "srv/c": b"",
            "bin": Member(type=b"5", mode=0o0),
        },
    )
    tree = LayerStore(checkout).unpack(found).tree
    assert sorted(str(path.relative_to(tree)) for path in tree.rglob("*")) == [
        *("bin", "bin/sh", "etc", "etc/x", "srv", "srv/c"),
    ]
    assert (tree / "etc" / "x").readlink() == Path("/bin/sh")
    assert (tree / "bin" / "sh").stat().st_mode & 0o777 == 0o755
    assert (tree / "bin").stat().st_mode & 0o700 == 0o700


@pytest.mark.parametrize("path", ["../out", "srv/../../out", "../.wh.kept", ".wh...", "escape/out", "escape/.wh.kept"])
def test_a_base_writes_and_removes_nothing_outside(checkout: Checkout, tmp_path: Path, path: str) -> None:
    store = LayerStore(checkout, tmp_path / "store")
    kept = tmp_path / "store" / "kept"
    kept.touch()
    found = base(tmp_path / "base", {"escape": link("../.."), path: b"evil"})
    with suppress(UserError):
        assert [path.name for path in store.unpack(found).tree.iterdir()] == ["escape"]
    assert kept.exists()
    assert not [*tmp_path.rglob("out")]


def test_a_layer_is_packed_anew_when_it_was_edited_or_is_not_what_it_says(checkout: Checkout, tmp_path: Path) -> None:
    found = base(tmp_path / "base", {"etc/x": b"1"})
    store = LayerStore(checkout)
    [first] = store.repack(found, "zstd")
    assert first.diff_id == found.config.rootfs.diff_ids[0]
    assert first.unpacked == len(tar({"etc/x": b"1"}))
    first.path.write_bytes(b"edited")
    assert store.repack(found, "zstd") == (first,)
    assert first.path.read_bytes() != b"edited"
    [zipped] = store.repack(found, "gzip")
    assert (zipped.diff_id, zipped.blob.media_type) == (first.diff_id, "application/vnd.oci.image.layer.v1.tar+gzip")
    other = tar({"etc/y": b"2"})
    image(tmp_path / "lies", [other], diff_ids=[f"sha256:{'0' * 64}"])
    with pytest.raises(UserError, match=f"layer 1 of the base: expected sha256:{'0' * 64}, found sha256:"):
        store.repack(Layout(tmp_path / "lies").image(), "zstd")
    assert packed(other, "")


def test_a_layer_that_was_packed_of_an_edited_tree_is_made_again(checkout: Checkout, tmp_path: Path) -> None:
    # A folder that a layer does not have itself would get the time at which it is unpacked.
    found = base(tmp_path / "base", {"etc": FOLDER, "etc/x": b"good"})
    made = LayerStore(checkout).unpack(found)
    sound = LayerStore(checkout).pack(made, "zstd").diff_id
    for path in made.folder.glob("*zstd*"):
        path.unlink()
    (made.tree / "etc" / "x").write_bytes(b"evil")
    assert LayerStore(checkout).pack(made, "zstd").diff_id != sound
    assert LayerStore(checkout).pack(LayerStore(checkout).unpack(found), "zstd").diff_id == sound


def test_a_layer_has_the_same_bytes_however_many_threads_compress_it(
    checkout: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a machine of any number of processors has the same number: without a thread of their own they would differ."""
    content = random.Random(0).randbytes(3 << 20) * 4  # more than one of its jobs, which have 8 MB
    found = base(tmp_path / "base", {"x": content})

    def packed_by(threads: int) -> str:
        monkeypatch.setattr(layers, "THREADS", threads)
        return LayerStore(checkout, tmp_path / f"store-{threads}").repack(found, "zstd")[0].blob.digest

    usual = LayerStore(checkout).repack(found, "zstd")[0].blob.digest
    assert [packed_by(threads) for threads in (1, 2, 7)] == [usual] * 3
    assert packed_by(0) != usual


def test_layers_that_others_could_have_written_are_refused(checkout: Checkout) -> None:
    folder = checkout.build / "layers"
    LayerStore(checkout)
    for mode in (0o775, 0o777, 0o757):
        folder.chmod(mode)
        with pytest.raises(UserError, match=rf"layers: expected a folder that nobody else can write to, .* mode {mode:o} "):
            LayerStore(checkout)
    if os.geteuid() == 0:
        folder.chmod(0o755)
        os.chown(folder, 54321, 54321)
        with pytest.raises(UserError, match="found mode 755 and owner 54321; remove it"):
            LayerStore(checkout)


def test_what_was_not_used_for_longest_is_removed(checkout: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Down to the limit, but nothing that was used within an hour, or while another build runs."""
    bases = [base(tmp_path / str(number), {"x": bytes(200_000), "y": str(number).encode()}) for number in range(4)]
    store = LayerStore(checkout)
    with store.in_use():
        made = [store.unpack(found) for found in bases]
    long_ago = time.time() - 7200
    for number in (2, 0, 1):  # the order of their use
        os.utime(made[number].folder, (long_ago, long_ago))
        long_ago += 60

    def kept() -> list[int]:
        return [number for number, each in enumerate(made) if each.tree.is_dir()]

    monkeypatch.setenv("SMOKEHOUSE_LAYERS_GB", "0.0005")
    other = LayerStore(checkout)
    with other.in_use():
        with LayerStore(checkout).in_use():
            pass
        assert kept() == [0, 1, 2, 3]
    with other.in_use():
        assert kept() == [1, 3]
        other.unpack(bases[1])  # used now
    monkeypatch.setenv("SMOKEHOUSE_LAYERS_GB", "0")
    with LayerStore(checkout).in_use():
        pass
    assert kept() == [1, 3]
    monkeypatch.setenv("SMOKEHOUSE_LAYERS_GB", "much")
    with pytest.raises(UserError, match="SMOKEHOUSE_LAYERS_GB: expected a number of GB, found much"), store.in_use():
        pass


def test_what_is_kept_is_used_only_as_it_was_made(checkout: Checkout, tmp_path: Path) -> None:
    """Each way to change a tree or a packed layer: it is made again, and the same."""
    found = base(tmp_path / "base", {"etc": FOLDER, "etc/x": b"1", "etc/y": link("x")})
    store = LayerStore(checkout)
    tree = store.unpack(found).tree

    def edit() -> None:
        before = (tree / "etc" / "x").stat()
        (tree / "etc" / "x").write_bytes(b"2")
        os.utime(tree / "etc" / "x", ns=(before.st_atime_ns, before.st_mtime_ns))

    def relink() -> None:
        (tree / "etc" / "y").unlink()
        (tree / "etc" / "y").symlink_to("z")

    poisons: list[Callable[[], object]] = [
        edit,
        relink,
        lambda: (tree / "etc" / "new").touch(),
        lambda: (tree / "etc" / "x").unlink(),
        lambda: (tree / "etc" / "x").chmod(0o777),
        lambda: (tree / "etc" / "x").replace(tree / "x"),
        lambda: (tree.parent / "tree.sha256").write_text("0" * 64),
        lambda: (tree.parent / "tree.sha256").unlink(),
        lambda: shutil.rmtree(tree),
    ]
    inode = tree.stat().st_ino
    assert store.unpack(found).tree.stat().st_ino == inode
    for poison in poisons:
        poison()
        assert store.unpack(found).tree == tree
        assert sorted(str(path.relative_to(tree)) for path in tree.rglob("*")) == ["etc", "etc/x", "etc/y"]
        assert ((tree / "etc" / "x").read_bytes(), str((tree / "etc" / "y").readlink())) == (b"1", "x")
        assert (tree / "etc" / "x").stat().st_mode & 0o777 == 0o644
    [first] = store.repack(found, "zstd")
    record = first.path.with_name("zstd.json")
    content = json.loads(record.read_text())
    for text in ("", "{}", "[]", json.dumps(content | {"digest": f"sha256:{'0' * 64}"}), json.dumps(content | {"size": 1})):
        record.write_text(text)
        assert store.repack(found, "zstd") == (first,)


def test_a_base_that_lies_about_its_layers_is_not_kept(checkout: Checkout, tmp_path: Path) -> None:
    """It would be in the place of the base that it pretends to be, for every later build."""
    good = base(tmp_path / "good", {"etc/x": b"good"})
    image(tmp_path / "evil", [tar({"etc/x": b"evil"})], diff_ids=good.config.rootfs.diff_ids)
    store = LayerStore(checkout)
    with pytest.raises(UserError, match=r"layer 1 of the base: expected sha256:\w+, found sha256:\w+; do not trust it"):
        store.unpack(Layout(tmp_path / "evil").image())
    assert (store.unpack(good).tree / "etc" / "x").read_bytes() == b"good"


def configured(folder: Path, **members: object) -> Image:
    """A base with these members in its configuration."""
    found = base(folder, {"etc/x": b"1"})
    config = json.loads(found.layout.read(found.manifest.config)) | members
    manifest = json.loads(found.layout.read(found.descriptor))
    blob = found.layout.put(json.dumps(config).encode(), found.manifest.config.media_type)
    manifest["config"] = blob.model_dump(by_alias=True, exclude_none=True)
    found.layout.write_index(found.layout.put(json.dumps(manifest).encode(), found.descriptor.media_type))
    return found.layout.image()


def test_a_base_gives_what_buildkit_takes_from_it(checkout: Checkout, tmp_path: Path) -> None:
    settings = {"Env": ["LANG=de", "SITE=a&b"], "User": "site", "Cmd": ["sh"], "Labels": {"theirs": "<x>"}, "Unknown": 1}
    history = [{"created": CREATED, "created_by": "theirs"}]
    found = configured(tmp_path / "base", config=settings, history=history, author="site", docker_version="1", created="2020")
    diff_ids = [*found.config.rootfs.diff_ids, f"sha256:{'1' * 64}"]
    data = image_config(checkout, found, {"ours": "y"}, CREATED, diff_ids)
    config = json.loads(data)
    assert [*config] == ["architecture", "author", "config", "created", "history", "os", "rootfs"]
    assert [*config["config"]] == ["User", "Env", "Entrypoint", "Cmd", "WorkingDir", "Labels", "ArgsEscaped"]
    env = dict(entry.split("=", 1) for entry in config["config"]["Env"])
    assert (env["LANG"], env["SITE"], [*env][:2]) == ("C.UTF-8", "a&b", ["LANG", "SITE"])
    assert (config["config"]["User"], config["config"]["Cmd"]) == ("site", ["describe"])
    assert config["config"]["Labels"] == {"ours": "y", "theirs": "<x>"}
    assert b"a\\u0026b" in data
    assert b"\\u003cx\\u003e" in data  # as encoding/json of Go writes it
    assert config["created"] == CREATED
    assert [entry["created_by"].split()[0] for entry in config["history"]] == [
        *("theirs", "COPY", "ENV", "WORKDIR", "ENTRYPOINT", "CMD"),
    ]
    assert [entry.get("empty_layer", False) for entry in config["history"]] == [False, False, True, True, True, True]
    assert config["rootfs"] == {"type": "layers", "diff_ids": diff_ids}


def test_a_base_that_runs_something_in_its_children_is_refused(checkout: Checkout, tmp_path: Path) -> None:
    found = configured(tmp_path / "base", config={"OnBuild": ["RUN theirs"]})
    with pytest.raises(UserError, match="expected no ONBUILD, found one; use a base that runs nothing in its children"):
        image_config(checkout, found, {}, CREATED, found.config.rootfs.diff_ids)


def test_another_instruction_in_the_last_stage_is_refused(checkout: Checkout, tmp_path: Path) -> None:
    dockerfile = checkout.root / "docker" / "Dockerfile"
    dockerfile.write_text(dockerfile.read_text() + "USER nobody\n")
    found = base(tmp_path / "base", {"etc/x": b"1"})
    with pytest.raises(UserError, match="expected ENV, WORKDIR, ENTRYPOINT or CMD in the last stage, found USER"):
        image_config(checkout, found, {}, CREATED, found.config.rootfs.diff_ids)
