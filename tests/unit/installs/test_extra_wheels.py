"""An extra wheel is downloaded by its hash, and refused in one line where it does not fit the stack."""

import hashlib
import io
import zipfile
from pathlib import Path

import pytest

from smokehouse import locks
from smokehouse.checkout import Checkout
from smokehouse.errors import UserError
from smokehouse.images.labelled_wheels import compare_wheels
from smokehouse.images.labels import ImageLabels
from smokehouse.images.plan import Layer, plan_layers
from smokehouse.images.spec import tags
from smokehouse.installs import extra_wheels
from smokehouse.installs.extra_wheels import ExtraWheel, FetchedWheel
from smokehouse.locks import LockedEnvironment

from ..channel import Channel
from ..conftest import Index, TestCheckout, wheel

# As the releases of flash-attn are named; inside, they have no local version.
FLASH = "flash_attn-2.7.4.post1+cu12torch2.6cxx11abiFALSE-cp311-cp311-linux_x86_64.whl"
SHA256 = "0" * 64


def flash(*requires: str) -> bytes:
    """The bytes of that wheel."""
    return wheel("flash_attn", "2.7.4.post1", requires=requires, code="answer = 42\n", tag="cp311-cp311-linux_x86_64")


def torch(abi: str) -> bytes:
    """A wheel of torch that says, where torch's wheels do, that it was compiled with the C++ ABI `abi`, 0 or 1."""
    config = f'set(TORCH_CXX_FLAGS "-D_GLIBCXX_USE_CXX11_ABI={abi}")\n'
    buffer = io.BytesIO(wheel("torch", "2.6.0"))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("torch/share/cmake/Torch/TorchConfig.cmake", config)
    return buffer.getvalue()


def hashed(data: bytes) -> str:
    """The SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def with_torch(checkout: TestCheckout, index: Index) -> None:
    """Let tiny require torch, and the index have it."""
    index.put("torch-2.6.0-py3-none-any.whl", torch("0"))
    checkout.edit(checkout.environment, "      - beta\n", "      - beta\n      - torch==2.6.0\n")


@pytest.fixture
def stacked(checkout: TestCheckout, index: Index) -> TestCheckout:
    """A checkout whose tiny is locked, with torch 2.6.0."""
    with_torch(checkout, index)
    checkout.lock()
    return checkout


def loaded(checkout: TestCheckout) -> LockedEnvironment:
    """Tiny and its lock."""
    return locks.load(Checkout(checkout.root), "tiny")


def fetched(checkout: TestCheckout, *requested: ExtraWheel) -> tuple[FetchedWheel, ...]:
    """The wheels `requested`, downloaded."""
    locked = loaded(checkout)
    return extra_wheels.fetch_wheels(Checkout(checkout.root), requested, locked.environment, locked.lock)


def labelled(text: str) -> ImageLabels:
    """The labels of an image whose label of extra wheels is `text`."""
    labels = {"environment": "tiny", "flavour": "runtime", "ops": "none", "with": text}
    return ImageLabels.parse({f"io.smokehouse.{name}": text for name, text in labels.items()}, "IMAGE")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (FLASH, "SHA-256 not found; write URL_OR_FILE#sha256=HEX, with HEX from a source you trust"),
        (f"{FLASH}#sha256=123", "SHA-256 not found; write URL_OR_FILE#sha256=HEX"),
        (f"{FLASH}#md5={'0' * 32}", "SHA-256 not found; write URL_OR_FILE#sha256=HEX"),
        (f"http://example.org/{FLASH}#sha256={SHA256}", "expected https, or http from this machine, found http; download it"),
        (f"file:///{FLASH}#sha256={SHA256}", "expected https, or http from this machine, found file; download it"),
        (
            f"https://me:secret@example.org/{FLASH}#sha256={SHA256}",
            "expected a URL without user, query and spaces, as the image's label will have it",
        ),
        (
            f"https://example.org/{FLASH}?token=secret#sha256={SHA256}",
            "expected a URL without user, query and spaces, as the image's label will have it",
        ),
        (f"https://[example/{FLASH}#sha256={SHA256}", "invalid URL ("),
        (f"flash_attn-2.7.4.post1.tar.gz#sha256={SHA256}", "expected a wheel, found a source distribution; build a wheel"),
        (f"flash_attn.whl#sha256={SHA256}", "invalid name of a wheel; specify a file NAME-VERSION-PYTHON-ABI-PLATFORM.whl"),
        (
            f"a b-1.0-py3-none-any.whl#sha256={SHA256}",
            "invalid name of a wheel; specify a file NAME-VERSION-PYTHON-ABI-PLATFORM.whl",
        ),
        (f"delta-1.0.dev1-py3-none-any.whl#sha256={SHA256}", "expected a release, found a development version"),
    ],
)
def test_what_is_not_a_wheel_with_its_hash_is_refused(stacked: TestCheckout, given: str, said: str) -> None:
    for verb in (["build", "tiny"], ["publish", "tiny", "127.0.0.1:1/checkout/tiny"], ["verify", "oci:nothing"]):
        assert said in stacked.refused(*verb, "--with", given)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            FLASH.replace("cp311", "cp312"),
            "expected a wheel for Python 3.11 on x86_64-manylinux_2_28, found cp312-cp312-linux_x86_64; specify another",
        ),
        ("delta-1.0-cp312-cp312-manylinux_2_28_x86_64.whl", "expected wheels for Python 3.11, found cp312"),
        ("delta-1.0-py3-none-manylinux_2_34_x86_64.whl", "expected wheels for glibc 2.28 or older, found glibc 2.34"),
        (FLASH.replace("x86_64", "aarch64"), "x86_64-manylinux_2_28, found cp311-cp311-linux_aarch64"),
        (FLASH.replace("torch2.6", "torch2.5"), "requires torch 2.5, lock has 2.6.0"),
        (FLASH.replace("cu12", "cu11"), "requires CUDA 11, environment has 12.4"),
        (FLASH.replace("cu12", "cu118"), "requires CUDA 11, environment has 12.4"),
        ("delta-1.0+cu130-py3-none-any.whl", "requires CUDA 13, environment has 12.4"),
        ("Alpha-9.0-py3-none-any.whl", "alpha 1.0 is locked already; drop the option, or lock that version"),
    ],
)
def test_a_name_that_does_not_fit_is_refused_before_anything_is_fetched(stacked: TestCheckout, name: str, said: str) -> None:
    line = stacked.refused("build", "tiny", "--with", f"https://127.0.0.1:1/{name}#sha256={SHA256}")
    assert line.startswith(f"smokehouse: --with {name}: ")
    assert said in line


@pytest.mark.parametrize("name", [FLASH, FLASH.replace("cu12", "cu124"), "delta-1.0+local.1-py3-none-any.whl"])
def test_a_name_that_fits_is_requested(stacked: TestCheckout, name: str) -> None:
    assert f"{name}: 127.0.0.1:1 cannot be reached" in stacked.refused(
        "build", "tiny", "--with", f"http://127.0.0.1:1/{name}#sha256={SHA256}"
    )


def test_two_wheels_of_one_project_are_refused(stacked: TestCheckout) -> None:
    given = [f"{name}-py3-none-any.whl#sha256={SHA256}" for name in ("my_delta-1.0", "My.Delta-2.0")]
    assert "--with: expected one wheel of my-delta, found 2; keep one" in stacked.refused(
        "build", "tiny", "--with", given[0], "--with", given[1]
    )


@pytest.mark.parametrize(
    ("requires", "said"),
    [
        (("torch", "einops"), "requires einops, lock has no such package; add a wheel of einops with --with"),
        (("torch>=2.7",), "requires torch>=2.7, found 2.6.0"),
        (('einops; python_version >= "3.11"',), "requires einops"),
        (("torch\nRequires-Python: >=3.12",), "requires Python >=3.12, lock has 3.11"),
        (("torch >>= 2",), "invalid dependency metadata ("),
    ],
)
def test_what_a_wheel_requires_has_to_be_locked(
    stacked: TestCheckout, tmp_path: Path, requires: tuple[str, ...], said: str
) -> None:
    data = flash(*requires)
    (tmp_path / FLASH).write_bytes(data)
    assert said in stacked.refused("build", "tiny", "--with", f"{tmp_path / FLASH}#sha256={hashed(data)}")


def test_what_a_wheel_requires_can_be_added_with_it(stacked: TestCheckout, tmp_path: Path) -> None:
    parts = {
        FLASH: flash("torch==2.6.*", "einops>=0.8", 'triton; sys_platform == "win32"', 'pytest; extra == "test"'),
        "einops-0.8.1-py3-none-any.whl": wheel("einops", "0.8.1"),
    }
    requested = []
    for name, data in parts.items():
        (tmp_path / name).write_bytes(data)
        requested.append(extra_wheels.parse(f"{tmp_path / name}#sha256={hashed(data).upper()}"))
    files = [wheel.file for wheel in fetched(stacked, *requested)]
    assert [(file.name, file.version) for file in files] == [("einops", "0.8.1"), ("flash-attn", "2.7.4.post1")]
    locked = loaded(stacked)
    without, plan = plan_layers(locked.lock), plan_layers(locked.lock, files)
    assert (plan.libraries, plan.model) == (without.libraries, without.model)
    assert plan.single == (*without.single, *(Layer((file,)) for file in files))
    assert tags(locked, "devel", requested) == tags(locked, "devel", requested[::-1])
    assert tags(locked, "devel", requested) != tags(locked, "devel", requested[:1])


def test_a_file_that_is_another_wheel_is_refused(stacked: TestCheckout, tmp_path: Path) -> None:
    for data, said in (
        (wheel("delta", "2.7.4.post1"), "found delta 2.7.4.post1; correct the file name"),
        (wheel("flash_attn", "2.7.3"), "found flash_attn 2.7.3; correct the file name"),
        (b"no archive", "invalid wheel ("),
    ):
        (tmp_path / FLASH).write_bytes(data)
        assert said in stacked.refused("build", "tiny", "--with", f"{tmp_path / FLASH}#sha256={hashed(data)}")


@pytest.mark.parametrize(("has", "said"), [("1", "TRUE"), ("x", "UNKNOWN")])
def test_another_abi_of_cpp_is_refused(stacked: TestCheckout, tmp_path: Path, has: str, said: str) -> None:
    requested = [extra_wheels.parse(f"{FLASH}#sha256={SHA256}")]
    lock = loaded(stacked).lock
    place = tmp_path / "torch-2.6.0-py3-none-any.whl"
    place.write_bytes(torch("0"))
    extra_wheels.require_torch_abi(requested, lock, tmp_path)
    place.write_bytes(torch(has))
    with pytest.raises(UserError, match=f"requires cxx11abi FALSE, that of {place.name} is {said}"):
        extra_wheels.require_torch_abi(requested, lock, tmp_path)


def test_a_download_that_is_cut_goes_on_and_is_kept(stacked: TestCheckout, channel: Channel) -> None:
    data = flash()
    quoted = FLASH.replace("+", "%2B")  # as a browser copies it
    (channel.folder / "noarch" / quoted).write_bytes(data)
    channel.faults.cut[quoted] = 300
    requested = extra_wheels.parse(f"{channel.url}/noarch/{quoted}#sha256={hashed(data)}")
    assert requested.name == FLASH
    [found] = fetched(stacked, requested)
    assert found.path.read_bytes() == data
    assert channel.ranges(quoted) == [None, "bytes=300-"]
    assert fetched(stacked, requested) == (found,)
    assert len(channel.ranges(quoted)) == 2


def test_a_server_that_lies_and_a_file_that_is_gone_are_named(stacked: TestCheckout, channel: Channel, tmp_path: Path) -> None:
    data = flash()
    (channel.folder / "noarch" / FLASH).write_bytes(data)
    channel.faults.sent[FLASH] = data[:-1] + b"x"
    given = f"{channel.url}/noarch/{FLASH}#sha256={hashed(data)}"
    host = channel.url.split("/")[2]
    assert (
        f"{FLASH}: SHA-256 mismatch, {host} serves another file than --with specifies; check the URL or path and the SHA-256"
        in stacked.refused("build", "tiny", "--with", given)
    )
    assert not [*(stacked.root / "build" / "with").rglob(f"{FLASH}*")]
    gone = tmp_path / FLASH
    assert f"{gone}: cannot be read (No such file or directory)" in stacked.refused(
        "build", "tiny", "--with", f"{gone}#sha256={hashed(data)}"
    )


def test_the_url_of_a_label_is_only_a_text() -> None:
    data = hashed(b"")
    url = f"https://example.org/{FLASH}#sha256={data}"
    mine = extra_wheels.parse(f"/mnt/{FLASH}#sha256={data}")
    [found], problems = compare_wheels(labelled(url), [mine])
    assert (found.text, found.source, problems) == (url, f"/mnt/{FLASH}", [])
    assert compare_wheels(labelled(url), [])[0] == ()
