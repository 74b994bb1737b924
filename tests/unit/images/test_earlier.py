"""A step takes bytecode from a layer that it made of other wheels: only from one that was made alike, and is as it was made."""

import hashlib
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from smokehouse.checkout import Checkout
from smokehouse.images import layers
from smokehouse.images.layers import LayerStore, Made, Step
from smokehouse.oci import Layout

from ...integration.tiny_images import image
from ..conftest import wheel

PYTHON = f"python3.{sys.version_info.minor}"
SITE = Path("opt", "env", "lib", PYTHON, "site-packages")
# The interpreter of the tests stands in for the locked one.
MACHINE = {place: place for place in ("/bin", "/usr", "/lib", "/lib64", sys.base_prefix) if Path(place).exists()}
PROGRAM = (f"{sys.base_prefix}/bin/{PYTHON}", *("-I", "-S", "-B"), "/steps/unpack.py", "/in", "/out")
TAKEN = b"taken from the earlier layer"


def compiled(name: str) -> Path:
    """The path of a module's bytecode in a layer."""
    return Path(importlib.util.cache_from_source(str(SITE / f"{name}.py")))


@dataclass(frozen=True)
class Shop:
    """A store, and what makes layers of the wheels alpha and beta in it; each has one module."""

    checkout: Checkout
    folder: Path

    @property
    def store(self) -> LayerStore:
        """The store of the checkout."""
        return LayerStore(self.checkout)

    def base(self, name: str, store: LayerStore) -> Made:
        """A file system to run steps in, whose only content is its name."""
        folder = self.folder / name
        if not folder.exists():
            image(folder, [{"name": name.encode()}])
        return store.unpack(Layout(folder).image())

    def make(self, alpha: str, *, base: str = "base", names: tuple[str, ...] = ("alpha", "beta"), store: str = "") -> Made:
        """A layer of alpha with the code `alpha`, and of beta, whose code is always the same."""
        wheels = {"alpha-1-py3-none-any.whl": wheel("alpha", "1", code=alpha), "beta-1-py3-none-any.whl": wheel("beta", "1")}
        context = self.folder / f"in-{hashlib.sha256(alpha.encode()).hexdigest()[:8]}"
        context.mkdir(exist_ok=True)
        for name, data in wheels.items():
            (context / name).write_bytes(data)
        listed = [{"file": name, "sha256": hashlib.sha256(data).hexdigest()} for name, data in wheels.items()]
        plan = {"python": PYTHON.removeprefix("python"), "epoch": 315532800, "budget": 1 << 20, "files": listed}
        (context / "plan.json").write_text(json.dumps(plan))
        inputs = {place: (Path(folder), "machine") for place, folder in MACHINE.items()}
        inputs["/in"] = (context, json.dumps(plan))
        chosen = LayerStore(self.checkout, self.folder / store) if store else self.store
        below = (self.base(base, chosen),)
        return chosen.make(Step("wheels", PROGRAM, ("tree.py", "unpack.py"), below, inputs, frozenset(names)))


@pytest.fixture
def shop(root: Path, tmp_path: Path) -> Shop:
    """A store without layers."""
    shutil.copytree(root / "docker", tmp_path / "checkout" / "docker", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "checkout" / "environments").mkdir()
    return Shop(Checkout(tmp_path / "checkout"), tmp_path)


def mark(made: Made) -> None:
    """Write other bytecode to a layer, and record that it was made so: what is taken from it can be seen."""
    for name in ("alpha", "beta"):
        (made.tree / compiled(name)).write_bytes(TAKEN)
    layers._pass_tick(made.folder / "clock")
    (made.folder / "tree.sha256").write_text(layers._fingerprint(made.tree))


def taken(made: Made) -> list[str]:
    """The modules of a layer whose bytecode is from a layer that was marked."""
    return [name for name in ("alpha", "beta") if (made.tree / compiled(name)).read_bytes() == TAKEN]


def test_only_files_that_changed_are_compiled(shop: Shop) -> None:
    mark(shop.make("x = 1"))
    assert taken(shop.make("x = 2")) == ["beta"]  # as long as before, and with the same time


def test_the_layer_is_the_same_as_without_an_earlier_one(shop: Shop) -> None:
    shop.make("x = 1")
    found = [shop.store.pack(made, "zstd").diff_id for made in (shop.make("x = 2"), shop.make("x = 2", store="empty"))]
    assert found[0] == found[1]


def test_the_layer_that_was_used_last_is_taken(shop: Shop) -> None:
    shop.make("x = 1")
    mark(shop.make("x = 2"))
    assert taken(shop.make("x = 3")) == ["beta"]


def spoil(made: Made, _: Shop) -> None:
    """Edit a file after the layer was made."""
    (made.tree / compiled("beta")).write_bytes(b"damaged")


def relabel(made: Made, shop: Shop) -> None:
    """Let a layer say that it was made in another file system."""
    record = made.folder / "made-from.json"
    found = json.loads(record.read_text())
    found["content"]["below"] = [shop.base("other", shop.store).key]
    record.write_text(json.dumps(found))


def edit_steps(_: Made, shop: Shop) -> None:
    """Edit what compiles."""
    with (shop.checkout.root / "docker" / "steps" / "tree.py").open("a") as file:
        file.write("# edited\n")


@pytest.mark.parametrize(
    ("change", "base", "names"),
    [
        (spoil, "base", ("alpha", "beta")),
        (relabel, "other", ("alpha", "beta")),
        (edit_steps, "base", ("alpha", "beta")),
        (lambda *_: None, "other", ("alpha", "beta")),  # has another interpreter
        (lambda *_: None, "base", ("gamma",)),
        (lambda made, _: (made.folder / "made-from.json").write_text("[]"), "base", ("alpha", "beta")),
        (lambda made, _: (made.folder / "made-from.json").write_text("{"), "base", ("alpha", "beta")),
        (lambda made, _: (made.folder / "tree.sha256").unlink(), "base", ("alpha", "beta")),
    ],
)
def test_nothing_is_taken_from_a_layer_that_was_edited_or_made_otherwise(
    shop: Shop, change: Callable[[Made, Shop], object], base: str, names: tuple[str, ...]
) -> None:
    first = shop.make("x = 1")
    mark(first)
    change(first, shop)
    second = shop.make("x = 2", base=base, names=names)
    sound = shop.make("x = 2", base=base, names=names, store="empty")
    for name in ("alpha", "beta"):
        assert (second.tree / compiled(name)).read_bytes() == (sound.tree / compiled(name)).read_bytes()
