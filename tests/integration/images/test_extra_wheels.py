"""An image with an extra wheel, such as flash-attn, says so, and is verified like any other."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from smokehouse.oci.layout import Layout

from ...faults.test_owners import BACKEND, OWN_BACKEND, STATIC, evil
from ...unit.channel import Channel
from ...unit.conftest import Index, TestCheckout, sdist, wheel
from ...unit.installs.test_extra_wheels import FLASH, flash, hashed, with_torch
from .. import reports
from ..conftest import STRANGER, Made, add_planner, built, locked_tiny, tags
from ..engine import Engine
from ..real import run
from .test_verify import SITE, altered, verified

DELTA = "delta-1.0-py3-none-any.whl"


@dataclass(frozen=True)
class Extra:
    """Wheels to add to tiny, which has torch: one served at a URL, one in a file."""

    tiny: TestCheckout
    flash: str
    delta: str

    @property
    def labelled(self) -> list[str]:
        """The label of an image with both."""
        return [f"{DELTA}#{self.delta.partition('#')[2]}", self.flash]

    @property
    def lock(self) -> str:
        """The SHA-256 of lock.json."""
        return hashed(self.tiny.lock_json.read_bytes())

    def made(self, layout: Path) -> Made:
        """The image in `layout`."""
        return Made(self.tiny, layout, self.lock)


@pytest.fixture
def extra(
    checkout: TestCheckout, index: Index, channel: Channel, root: Path, engine: Engine, mmdebstrap: str, tmp_path: Path
) -> Extra:
    with_torch(checkout, index)
    data, other = flash("torch\nLicense-Expression: BSD-3-Clause"), wheel("delta", "1.0", requires=("flash-attn",))
    (channel.folder / "noarch" / FLASH).write_bytes(data)
    (tmp_path / DELTA).write_bytes(other)
    tiny = locked_tiny(checkout, root, engine, mmdebstrap)
    url = f"{channel.url}/noarch/{FLASH}#sha256={hashed(data)}"
    return Extra(tiny, url, f"{tmp_path / DELTA}#sha256={hashed(other)}")


def test_an_image_with_an_extra_wheel_says_so_everywhere(extra: Extra, engine: Engine) -> None:
    found = built(extra.tiny, "--with", extra.flash)
    name = found["place"]
    try:
        code = "import flash_attn; print(flash_attn.answer, flash_attn.__cached__ is not None)"
        assert engine.docker("run", "--rm", *STRANGER, name, "python", "-c", code).stdout == "42 True\n"
        assert "flash-attn 2.7.4.post1\n" in engine.docker("run", "--rm", *STRANGER, name).stdout

        def read(file: str) -> str:
            return engine.docker("run", "--rm", *STRANGER, name, "cat", f"/opt/smokehouse/{file}").stdout

        assert "flash-attn==2.7.4.post1" in read("constraints.txt").splitlines()
        digest = extra.flash.rpartition("=")[2]
        assert json.loads(read("about.json"))["with"] == {FLASH: digest}
        assert read("lock/added.txt") == f"flash-attn==2.7.4.post1 --hash=sha256:{digest}\n"
        [entry] = [entry for entry in json.loads(read("sbom.spdx.json"))["packages"] if entry["name"] == "flash-attn"]
        assert (entry["packageFileName"], entry["checksums"][0]["checksumValue"]) == (FLASH, digest)
        assert "BSD-3-Clause" in entry.values()
        labels = json.loads(engine.docker("image", "inspect", "--format", "{{json .Config.Labels}}", name).stdout)
        assert labels["io.smokehouse.with"] == extra.flash
        listed = {name.partition(":")[2] for name in tags(engine)}
        suffix = f"-with-{hashlib.sha256(digest.encode()).hexdigest()[:8]}"
        assert listed >= {f"cu124-torch2.6.0-{extra.lock[:12]}{suffix}", f"20250315-{extra.lock[:12]}{suffix}"}
        assert labels["org.opencontainers.image.version"].endswith(suffix)
    finally:
        engine.docker("rmi", "--force", *tags(engine))


def test_a_wheel_for_another_abi_than_that_of_torch_is_refused(extra: Extra, tmp_path: Path) -> None:
    other = tmp_path / FLASH.replace("FALSE", "TRUE")
    other.write_bytes(flash())
    said = extra.tiny.refused("build", "tiny", "--with", f"{other}#sha256={hashed(flash())}")
    assert f"--with {other.name}: requires cxx11abi TRUE, that of torch-2.6.0-py3-none-any.whl is FALSE; specify" in said


def test_an_extra_wheel_is_one_layer_below_the_model(extra: Extra, tmp_path: Path) -> None:
    for place, options in {
        "plain": [],
        "one": ["--with", extra.flash],
        "two": ["--with", extra.flash, "--with", extra.delta],
        "turned": ["--with", extra.delta, "--with", extra.flash],
    }.items():
        built(extra.tiny, "--output", f"oci:{tmp_path / place}", *options)
    plain, one, two = (Layout(tmp_path / place).image() for place in ("plain", "one", "two"))
    assert "io.smokehouse.with" not in plain.labels
    assert two.labels["io.smokehouse.with"].split() == extra.labelled
    layers = [found.config.rootfs.diff_ids for found in (plain, one, two)]
    *libraries, model, _ = layers[0]
    assert [*layers[1][:-1]] == [*libraries, layers[1][-3], model]
    assert [*layers[2][:-1]] == [*libraries, layers[2][-4], layers[1][-3], model]
    assert Layout(tmp_path / "turned").image().digest == two.digest


def test_an_image_with_extra_wheels_is_verified(extra: Extra, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    digest = built(extra.tiny, "--with", extra.flash, "--with", extra.delta, "--output", f"oci:{layout}")["digest"]
    reference = f"oci:{layout}"
    problems = [entry["problem"] for entry in verified(extra.tiny, reference, code=1)["differences"]]
    allow = [f"--with {text.rpartition('/')[2]}" for text in extra.labelled]
    assert [problem.rpartition("allow it with ")[2] for problem in problems] == allow
    [problem] = [entry["problem"] for entry in verified(extra.tiny, reference, "--with", extra.delta, code=1)["differences"]]
    assert problem.endswith(f"found {FLASH}; if you trust it, allow it {allow[1].replace('--with', 'with --with')}")
    # Another copy of the same wheel will do; the URL in the label is a claim then.
    copy = tmp_path / FLASH
    copy.write_bytes(flash("torch\nLicense-Expression: BSD-3-Clause"))
    allowed = ["--with", extra.delta, "--with", f"{copy}#{extra.flash.partition('#')[2]}"]
    verdict = verified(extra.tiny, reference, *allowed)
    assert (verdict["passed"], verdict["digest"]) == (True, digest)
    assert verdict["added"] == [text.rpartition("/")[2] for text in extra.labelled]
    [claim] = verdict["claims"]
    assert claim.startswith(f"{FLASH} from {extra.flash.partition('#')[0]}, as the image says")
    allowed[-1] = extra.flash
    said = run(extra.tiny, "verify", reference, *allowed).stdout
    assert f"with     {extra.flash.rpartition('/')[2]}, which is not in the lock\n" in said
    assert "claim    " not in said
    assert said.endswith("VERIFIED  this is what the lock builds with the wheels above\n")
    changed = altered(extra.made(layout), tmp_path / "changed", {f"{SITE}/flash_attn.py": b"print('evil')\n"})
    differences = verified(extra.tiny, changed, *allowed, code=1)["differences"]
    layers = len(Layout(tmp_path / "changed").image().manifest.layers)
    assert {"layer": layers, "path": f"{SITE}/flash_attn.py", "problem": "unexpected file"} in differences
    # A wheel that the label does not list is a layer too many.
    hidden = altered(
        extra.made(layout), tmp_path / "hidden", edit=lambda config: config["config"]["Labels"].pop("io.smokehouse.with")
    )
    differences = verified(extra.tiny, hidden, code=1)["differences"]
    assert f"{SITE}/flash_attn.py" in {entry["path"] for entry in differences if entry["problem"] == "unexpected file"}


def test_an_image_with_an_extra_wheel_never_takes_the_tags_of_one_without(
    extra: Extra, keys: Path, registry_port: int, cosign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(extra.tiny.environ, "PATH", f"{cosign}:{extra.tiny.environ['PATH']}")
    monkeypatch.setitem(extra.tiny.environ, "COSIGN_PASSWORD", "a password")
    root = Path(__file__).parents[3]
    add_planner(root, extra.tiny)
    layout = tmp_path / "layout"
    digest = built(extra.tiny, "--with", extra.flash, "--output", f"oci:{layout}")["digest"]
    report = tmp_path / "report.json"
    report.write_text(json.dumps(reports.complete(root, extra.tiny.root, digest)))
    where = f"127.0.0.1:{registry_port}/checkout/added"
    options = ["--image", str(layout), "--report", str(report), "--key", str(keys / "ours.key")]
    version = Layout(layout).image().labels["org.opencontainers.image.version"]
    said = run(extra.tiny, "publish", "tiny", where, *options, code=2).stderr
    plain = f"cu124-torch2.6.0-{extra.lock[:12]}"
    assert f"{layout}: expected version {plain} in its labels, found {version}; specify the same --with options as" in said
    said = run(extra.tiny, "publish", "tiny", where, *options, "--with", extra.flash).stdout
    assert said.splitlines()[0] == f"{where}:{version}"
    assert verified(extra.tiny, f"{where}:{version}", "--key", str(keys / "ours.pub"), "--with", extra.flash)["passed"]


def test_no_package_of_an_image_takes_the_place_of_another(
    checkout: TestCheckout, index: Index, root: Path, mmdebstrap: str, tmp_path: Path
) -> None:
    """Neither an added wheel with a file of a locked one, nor what a source distribution is built to."""
    file = tmp_path / "extra-1.0-py3-none-any.whl"
    file.write_bytes(evil("alpha.py", name="extra"))
    files = {"pyproject.toml": OWN_BACKEND, "own.py": BACKEND.format(members=["evil-1.0.data/scripts/nvidia-smi"])}
    index.put("evil-1.0.tar.gz", sdist("evil", "1.0", files | {"PKG-INFO": STATIC.format(name="evil")}))
    checkout.edit(checkout.environment, "      - beta\n", "      - beta\n      - evil\n")
    tiny = locked_tiny(checkout, root, None, mmdebstrap)
    for options, said in (
        ([], "bin/nvidia-smi: built from source by evil, expected its own modules and scripts alone; remove that package"),
        (["--with", f"{file}#sha256={hashed(file.read_bytes())}"], "alpha.py: expected one owner, found different files of"),
    ):
        ended = tiny.run("build", "tiny", "--output", f"oci:{tmp_path / 'layout'}", *options)
        assert ended.returncode == 2
        assert said in ended.stderr.splitlines()[-1]
        assert not (tmp_path / "layout").exists()
