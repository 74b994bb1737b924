"""image.json has what an image of the lock is, byte for byte; a stale or edited one is refused, and its remedy named."""

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from smokehouse.checkout import Checkout
from smokehouse.errors import UserError
from smokehouse.images import config, record
from smokehouse.images.labels import ImageLabels
from smokehouse.images.record import RecordedImage, RecordedLayer
from smokehouse.locks import LockedEnvironment, load
from smokehouse.proofs.provenance import revision
from smokehouse.storage import files

NAME = "qwen2.5-vl"
DIFF_ID = f"sha256:{'1' * 64}"
MAKE = f"make it with smokehouse build {NAME} --record"


@pytest.fixture
def checkout(root: Path, tmp_path: Path) -> Checkout:
    """A checkout with one environment, and with what images have of it."""
    for part in ("docker", "smoke_tests", "environments", f"lockfiles/{NAME}", "packages"):
        shutil.copytree(root / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    return Checkout(tmp_path)


@pytest.fixture
def locked(checkout: Checkout) -> LockedEnvironment:
    return load(checkout, NAME)


def labels(locked: LockedEnvironment, **changes: Any) -> ImageLabels:
    made = {"environment": NAME, "flavour": "runtime", "lock": locked.digest, "ops": "none", "stack": {}, "version": "1"}
    return ImageLabels(**{**made, "created": "2025-03-15T00:00:00Z", "base_name": "b", "base_digest": "d", **changes})


def image(labels: ImageLabels) -> RecordedImage:
    """An image whose configuration has what Go escapes, and members in an order that is not sorted."""
    about = {"config": {"Env": ["A=<&>\u2028ü"], "Cmd": ["x"], "Labels": labels.as_dict()}, "rootfs": {"diff_ids": [DIFF_ID]}}
    made = RecordedLayer(diff_id=DIFF_ID, size=7, content="")  # as of a lock without a package above the libraries
    name = f"sha256:{files.sha256(config.encode(about))}"
    return RecordedImage(id=name, digest=f"sha256:{'2' * 64}", layers=(made,), config=about)


def edited(place: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(place.read_text())
    edit(content)
    place.write_text(json.dumps(content))


def test_what_is_written_is_read_and_gives_the_same_bytes(checkout: Checkout, locked: LockedEnvironment) -> None:
    assert record.read(locked.files) is None
    runtime, devel = image(labels(locked)), image(labels(locked, flavour="devel"))
    place = record.write(checkout, locked, "runtime", runtime)
    assert place == checkout.root / "lockfiles" / NAME / "image.json"
    record.write(checkout, locked, "devel", devel)
    found = record.read(locked.files)
    assert found
    assert (found.flavours, found.is_of(checkout, locked)) == ({"runtime": runtime, "devel": devel}, True)
    assert record.require(checkout, locked, "devel") == (devel, True)
    assert f"sha256:{files.sha256(found.flavours['devel'].config_text)}" == devel.id
    before = place.read_bytes()
    record.write(checkout, locked, "runtime", runtime)
    assert place.read_bytes() == before
    # The lock itself does not depend on it.
    assert load(checkout, NAME).digest == locked.digest


def test_the_source_is_up_to_whoever_builds(locked: LockedEnvironment) -> None:
    plain = image(labels(locked))
    assert plain.with_source("") == plain
    assert plain.with_source("https://example.org/x") == image(labels(locked, source="https://example.org/x"))
    assert plain.with_source("https://example.org/x").with_source("") == plain


def test_what_is_published_is_recorded_or_compared(checkout: Checkout, locked: LockedEnvironment) -> None:
    source = "https://example.org/x"
    made, other = image(labels(locked)), image(labels(locked, source=source))
    place = record.confirm(checkout, locked, "runtime", made)
    before = place.read_bytes()
    assert record.confirm(checkout, locked, "runtime", made) == place
    with pytest.raises(UserError) as refused:
        record.confirm(checkout, locked, "runtime", other)
    assert str(refused.value) == (
        f"lockfiles/{NAME}/image.json: expected the runtime image that was made of this lock ({other.id}), found another "
        f"({made.id}); make it with smokehouse build {NAME} --source {source} --record"
    )
    with pytest.raises(UserError, match="found another"):  # the compressed layers differ, and with them the digest
        record.confirm(checkout, locked, "runtime", made.model_copy(update={"digest": f"sha256:{'4' * 64}"}))
    assert place.read_bytes() == before
    record.confirm(checkout, locked, "devel", image(labels(locked, flavour="devel")))
    (checkout.root / "docker" / "inside" / "describe").write_text("other")
    record.confirm(checkout, locked, "runtime", other)  # it is of other files, so the record was out of date
    assert record.require(checkout, locked, "runtime") == (other, True)
    place.write_text("{}")
    with pytest.raises(UserError, match=r"image\.json: expected what smokehouse build"):
        record.confirm(checkout, locked, "runtime", made)


def test_what_is_missing_is_named_with_the_command_that_makes_it(checkout: Checkout, locked: LockedEnvironment) -> None:
    with pytest.raises(UserError) as refused:
        record.require(checkout, locked, "runtime")
    where = f"lockfiles/{NAME}/image.json"
    assert str(refused.value) == f"{where}: expected image.json with the runtime image of this lock, found none; {MAKE}"
    record.write(checkout, locked, "runtime", image(labels(locked)))
    with pytest.raises(UserError) as refused:
        record.require(checkout, locked, "devel")
    remedy = f"make it with smokehouse build {NAME} --flavour devel --record"
    assert str(refused.value) == f"{where}: expected the devel image of this lock, found none; {remedy}"


def test_another_lock_is_out_of_date_and_other_files_are_known(checkout: Checkout, locked: LockedEnvironment) -> None:
    record.write(checkout, locked, "runtime", image(labels(locked)))
    (checkout.root / "docker" / "inside" / "describe").write_text("other")
    found = record.read(locked.files)
    assert found
    assert not found.is_of(checkout, locked)
    record.write(checkout, locked, "devel", image(labels(locked, flavour="devel")))
    found = record.read(locked.files)
    assert found
    assert ([*found.flavours], found.is_of(checkout, locked)) == (["devel"], True)  # the other one was of other files
    other = replace(locked, digest="f" * 64)
    with pytest.raises(UserError, match=rf"image\.json: out of date: expected images of the lock .* \(f{{12}}\).*; {MAKE}"):
        record.require(checkout, other, "runtime")
    record.write(checkout, other, "runtime", image(labels(other)))
    found = record.read(other.files)
    assert found
    assert [*found.flavours] == ["runtime"]


@pytest.mark.parametrize(
    "edit",
    [
        lambda entry: entry.update(id=f"sha256:{'3' * 64}"),
        lambda entry: entry["config"]["config"].update(Entrypoint=["/evil"]),
        lambda entry: entry["config"]["config"].pop("Env"),
        lambda entry: entry["layers"].append(dict(entry["layers"][0])),
        lambda entry: entry["layers"][0].update(diff_id=f"sha256:{'3' * 64}"),
        lambda entry: entry["layers"][0].update(size=-1),
        lambda entry: entry["layers"][0].update(size="7"),
        lambda entry: entry["layers"][0].update(urls=[]),
        lambda entry: entry["layers"][0].update(content="\x1b[2JVERIFIED"),
        lambda entry: entry["layers"][0].update(content="all\n"),
        lambda entry: entry.update(digest=f"sha256:{'A' * 64}"),
        lambda entry: entry["config"]["rootfs"].update(diff_ids=[DIFF_ID, DIFF_ID]),
        lambda entry: entry["config"]["config"]["Labels"].update({"io.smokehouse.environment": "other"}),
        lambda entry: entry["config"]["config"]["Labels"].update({"io.smokehouse.with": "evil"}),
        lambda entry: entry.update(config={}),
        lambda entry: entry.update(config=[]),
        lambda entry: entry["config"].update(config=None),
        lambda entry: entry["config"]["config"]["Labels"].update({"io.smokehouse.lock": "0" * 64}),
        lambda entry: entry["config"]["config"]["Labels"].update({"io.smokehouse.flavour": "devel"}),
        lambda entry: entry.pop("digest"),
        lambda entry: entry.update(more=1),
    ],
)
def test_an_edited_entry_is_refused(
    checkout: Checkout, locked: LockedEnvironment, edit: Callable[[dict[str, Any]], object]
) -> None:
    place = record.write(checkout, locked, "runtime", image(labels(locked)))
    edited(place, lambda content: edit(content["flavours"]["runtime"]))
    with pytest.raises(UserError, match=rf"^lockfiles/{NAME}/image\.json: expected what smokehouse build .* found .*; {MAKE}$"):
        record.read(locked.files)


@pytest.mark.parametrize("text", ["", "[]", "null", '{"lock": 1, "lock": 2}', "{" * 200, '{"flavours": NaN}', "x" * 5_000_000])
def test_what_is_no_record_is_refused(checkout: Checkout, locked: LockedEnvironment, text: str) -> None:
    (locked.files.folder / "image.json").write_text(text)
    with pytest.raises(UserError, match=r"image\.json: expected what smokehouse build"):
        record.read(locked.files)


def test_a_commit_is_that_of_the_files_unless_one_differs(checkout: Checkout) -> None:
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@y", "-C", str(checkout.root)]
    assert revision(checkout, NAME) == ""
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "x"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert revision(checkout, NAME) == head
    (checkout.root / "lockfiles" / NAME / "image.json").touch()  # as a release writes it, before it says the commit
    assert revision(checkout, NAME) == head
    for command in (["add", "."], ["commit", "--quiet", "--message", "image.json"]):
        subprocess.run([*git, *command], check=True)
    assert revision(checkout, NAME) == head
    (checkout.root / "docker" / "new").touch()
    assert revision(checkout, NAME) == ""
