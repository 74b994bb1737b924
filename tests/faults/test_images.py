"""An image does not choose what it is compared with: what it names beside the lock is refused, and nothing of it is fetched."""

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from smokehouse.storage.files import hashed

from ..integration.tiny_images import image
from ..unit.conftest import TestCheckout
from .server import Exchange, Hostile

SHA = "5" * 64
DIGEST = f"sha256:{SHA}"
WHEEL = "mine-1.0-py3-none-any.whl"
BASE = "org.opencontainers.image.base"


@pytest.fixture
def lured() -> Iterator[Hostile]:
    """A server that an image names; whoever believes the image comes here."""
    with Hostile(lambda exchange: Exchange.answer(exchange, "200 OK", b"evil")) as server:
        yield server


@pytest.fixture
def locked(checkout: TestCheckout, root: Path) -> TestCheckout:
    """Tiny, locked, with the files that images are made from."""
    shutil.copytree(root / "docker", checkout.root / "docker", ignore=shutil.ignore_patterns("__pycache__"))
    checkout.lock()
    return checkout


def labels(locked: TestCheckout, **changed: str) -> dict[str, str]:
    """The labels of an image of the lock; names in `changed` have _ for what is no letter."""
    found = {
        "io.smokehouse.environment": "tiny",
        "io.smokehouse.flavour": "runtime",
        "io.smokehouse.ops": "none",
        "io.smokehouse.lock": hashed(locked.lock_json),
        f"{BASE}.name": "debian-bookworm",
        f"{BASE}.digest": DIGEST,
    }
    return found | changed


def wheels_that_are_named(host: str) -> Iterator[tuple[str, str]]:
    """Yield labels with wheels that nobody allowed, and what is said of the first."""
    urls = [f"http://{host}/{WHEEL}", f"https://{host}/a/../{WHEEL}", WHEEL, f"/etc/{WHEEL}", f"http://[::1]:1/{WHEEL}"]
    allow = f"expected wheels of the lock alone, found {WHEEL}; if you trust it, allow it with --with {WHEEL}#sha256={SHA}"
    for url in urls:
        yield f"{url}#sha256={SHA}", allow
    yield f"{urls[0]}#sha256={SHA} {urls[2]}#sha256={'6' * 64}", allow
    locked_name = "alpha-1.0-py3-none-any.whl"
    yield f"http://{host}/{locked_name}#sha256={SHA}", f"found {locked_name}; if you trust it, allow it with --with"
    for invalid in (f"file:///etc/{WHEEL}#sha256={SHA}", f"http://{host}/{WHEEL}", f"ftp://{host}/{WHEEL}#sha256={SHA}"):
        yield invalid, "do not trust this image"


def bases_that_are_named(host: str) -> Iterator[tuple[str, str, str]]:
    """Yield names and digests of bases that nobody allowed, and what is said."""
    expected = "expected debian-bookworm, found "
    names = [f"{host}/base", f"{host}/base:1", "docker.io/library/debian", "debian", "debian-trixie", "debian-bookworm-evil"]
    for name in names:
        yield name, DIGEST, f"{expected}{name}@{DIGEST}; if you trust that base, allow it with --base {name}@{DIGEST}"
    for name, digest in (
        (f"http://{host}/base", DIGEST),
        (f"{host}/base", "sha256:5"),
        (f"{host}/../base", DIGEST),
        ("", ""),
    ):
        yield name, digest, "; do not trust this image"


def refusals(locked: TestCheckout, place: Path, changed: dict[str, str], *options: str) -> list[str]:
    """Verify an image with `changed` labels, which must end with 1, before anything is made; return what differs."""
    shutil.rmtree(place, ignore_errors=True)
    image(place, [{"a": b""}], labels=labels(locked, **changed))
    ended = locked.run("verify", f"oci:{place}", *options, "--json")
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "verifying: making" not in ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    assert (found["passed"], found["base"], found["layers"]) == (False, "not compared", [])
    return [f"{entry['path']}: {entry['problem']}" for entry in found["differences"]]


def test_wheels_that_an_image_names_are_not_allowed(
    locked: TestCheckout, lured: Hostile, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    for text, said in wheels_that_are_named(lured.host):
        record_property("fault", "the image names a wheel")
        first = refusals(locked, tmp_path / "layout", {"io.smokehouse.with": text})[0]
        assert first.startswith("(config) label io.smokehouse.with: ")
        assert said in first
    assert not lured.requests
    said = locked.run("verify", f"oci:{tmp_path / 'layout'}").stdout
    assert said.splitlines()[-1] == "DIFFERENT  this is not what the lock builds"


def test_a_label_of_a_megabyte_is_refused_in_short_lines(
    locked: TestCheckout, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    texts = {"letters": "a" * 1_000_000, "wheels": "a b " * 250_000, "a script": "\u20ac" * 300_000}
    for name, (kind, text) in itertools.product([*labels(locked), "io.smokehouse.with"], texts.items()):
        record_property("fault", f"a label of a megabyte: {kind}")
        place = tmp_path / "layout"
        shutil.rmtree(place, ignore_errors=True)
        image(place, [{"a": b""}], labels=labels(locked, **{name: text}))
        ended = locked.run("verify", f"oci:{place}")
        assert ended.returncode in (1, 2), ended.stderr[:1000]
        lines = (ended.stdout + ended.stderr).splitlines()
        assert max(map(len, lines)) < 10_000
        if (name, kind) == ("io.smokehouse.with", "wheels"):
            assert "expected at most 100 wheels, found 500000; do not trust this image" in lines[0]


def test_bases_that_an_image_names_are_not_allowed(
    locked: TestCheckout, lured: Hostile, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    for name, digest, said in bases_that_are_named(lured.host):
        record_property("fault", "the image names its base")
        [first] = refusals(locked, tmp_path / "layout", {f"{BASE}.name": name, f"{BASE}.digest": digest})
        assert first.startswith(f"(config) label {BASE}.name: expected debian-bookworm, found ")
        assert said in first
    assert not lured.requests


def test_what_is_allowed_is_what_the_image_has(
    locked: TestCheckout, lured: Hostile, packages: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """One allowed wheel or base allows no other: neither another hash, nor the same hash by another name, nor none."""
    place, host = tmp_path / "layout", lured.host
    mine = f"{tmp_path / WHEEL}#sha256={SHA}"
    other = WHEEL.replace("mine", "numpy")
    for text, said in (
        (f"http://{host}/{WHEEL}#sha256={'6' * 64}", f"found {WHEEL}; if you trust it"),
        (f"http://{host}/{other}#sha256={SHA}", f"expected {WHEEL}, found {other} with the same SHA-256; do not trust"),
        (f"http://{host}/{WHEEL}#sha256={SHA} {WHEEL}#sha256={SHA}", f"found {WHEEL}; if you trust it"),
        ("", f"expected {WHEEL}, which --with specifies, found none with its SHA-256; drop the option"),
    ):
        record_property("fault", "the image names another wheel")
        assert said in refusals(locked, place, {"io.smokehouse.with": text}, "--with", mine)[0]
    for given, said in (
        (f"{host}/base@{DIGEST}", f"expected {host}/base@{DIGEST}, as --base specifies, found debian-bookworm@{DIGEST}"),
        (f"debian-bookworm@sha256:{'6' * 64}", f"as --base specifies, found debian-bookworm@{DIGEST}; drop the option"),
    ):
        record_property("fault", "the image names another base")
        assert said in refusals(locked, place, {}, "--base", given)[0]
    assert not lured.requests
    assert "--base: expected REF@sha256:…, found debian" in locked.refused("verify", f"oci:{place}", "--base", "debian")
    # The layer of the image is that base by its digest or nothing.
    bundle = tmp_path / "bundle"
    assert locked.run("bundle", "tiny", str(bundle), "--channel", str(packages)).returncode == 0
    ended = locked.run("verify", f"oci:{place}", "--base", f"debian-bookworm@{DIGEST}", "--bundle", str(bundle))
    assert f"expected the base debian-bookworm@{DIGEST} as its lowest layer, found sha256:" in ended.stderr
    assert ended.returncode == 2
