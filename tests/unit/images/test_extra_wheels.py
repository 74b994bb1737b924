"""A wheel that no lock names is fetched by its hash, and refused in one line where it does not fit the stack."""

import hashlib
import io
import re
import zipfile
from pathlib import Path

import pytest

from smokehouse.checkout import Checkout
from smokehouse.environments.definition import Environment
from smokehouse.errors import UserError
from smokehouse.images import extra_wheels, labels
from smokehouse.images import plan as image
from smokehouse.images.extra_wheels import ExtraWheel, FetchedWheel
from smokehouse.locks import check
from smokehouse.locks.model import Lock

from ..channel import Channel
from ..conftest import Index, TestCheckout, wheel

# As the releases of flash-attn are named; inside, they have no local version.
FLASH = "flash_attn-2.7.4.post1+cu12torch2.6cxx11abiFALSE-cp311-cp311-linux_x86_64.whl"
SHA256 = "0" * 64


def flash(*requires: str) -> bytes:
    """The bytes of that wheel."""
    return wheel("flash_attn", "2.7.4.post1", requires=requires, code="answer = 42\n", tag="cp311-cp311-linux_x86_64")


def torch(abi: str) -> bytes:
    """A wheel of torch that was compiled with the C++ ABI `abi`, 0 or 1, and says so where torch's do."""
    config = f'set(TORCH_CXX_FLAGS "-D_GLIBCXX_USE_CXX11_ABI={abi}")\n'
    buffer = io.BytesIO(wheel("torch", "2.6.0"))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("torch/share/cmake/Torch/TorchConfig.cmake", config)
    return buffer.getvalue()


def hashed(data: bytes) -> str:
    """The SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def with_torch(checkout: TestCheckout, index: Index) -> None:
    """Let tiny ask for torch, and the index have it."""
    index.put("torch-2.6.0-py3-none-any.whl", torch("0"))
    checkout.edit(checkout.environment, "      - beta\n", "      - beta\n      - torch==2.6.0\n")


@pytest.fixture
def stacked(checkout: TestCheckout, index: Index) -> TestCheckout:
    """A checkout whose tiny is locked, with torch 2.6.0."""
    with_torch(checkout, index)
    checkout.lock()
    return checkout


def promised(checkout: TestCheckout) -> tuple[Checkout, Environment, Lock]:
    """What a build reads first."""
    found = Checkout(checkout.root)
    locked = check.load(found, "tiny")
    return found, locked.environment, locked.lock


def taken(checkout: TestCheckout, *asked: ExtraWheel) -> tuple[FetchedWheel, ...]:
    """What is fetched of `asked`."""
    found, promise, locked = promised(checkout)
    return extra_wheels.fetch_wheels(found, asked, promise, locked)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (FLASH, "has no SHA-256; write URL_OR_FILE#sha256=HEX"),
        (f"{FLASH}#sha256=123", "has no SHA-256"),
        (f"{FLASH}#md5={'0' * 32}", "has no SHA-256"),
        (f"http://example.org/{FLASH}#sha256={SHA256}", "neither https nor http from this machine"),
        (f"file:///{FLASH}#sha256={SHA256}", "neither https nor http from this machine"),
        (f"https://me:secret@example.org/{FLASH}#sha256={SHA256}", "name one without user, query and spaces"),
        (f"https://example.org/{FLASH}?token=secret#sha256={SHA256}", "name one without user, query and spaces"),
        (f"https://[example/{FLASH}#sha256={SHA256}", "no URL"),
        (f"flash_attn-2.7.4.post1.tar.gz#sha256={SHA256}", "a source distribution; build a wheel of it first"),
        (f"flash_attn.whl#sha256={SHA256}", "not the name of a wheel"),
        (f"a b-1.0-py3-none-any.whl#sha256={SHA256}", "not the name of a wheel"),
        (f"delta-1.0.dev1-py3-none-any.whl#sha256={SHA256}", "a development version"),
    ],
)
def test_what_is_no_wheel_with_its_hash_is_refused(stacked: TestCheckout, given: str, said: str) -> None:
    for verb in (["build", "tiny"], ["publish", "tiny", "127.0.0.1:1/checkout/tiny"], ["verify", "oci:nothing"]):
        assert said in stacked.refused(*verb, "--with", given)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            FLASH.replace("cp311", "cp312"),
            "it is for cp312-cp312-linux_x86_64, the environment for 3.11 on x86_64-manylinux_2_28",
        ),
        ("delta-1.0-cp312-cp312-manylinux_2_28_x86_64.whl", "expected wheels for Python 3.11, found cp312"),
        ("delta-1.0-py3-none-manylinux_2_34_x86_64.whl", "expected wheels for glibc 2.28 or older, found glibc 2.34"),
        (FLASH.replace("x86_64", "aarch64"), "it is for cp311-cp311-linux_aarch64"),
        (FLASH.replace("torch2.6", "torch2.5"), "compiled for torch 2.5, the lock has 2.6.0"),
        (FLASH.replace("cu12", "cu11"), "compiled for CUDA 11, the stack has 12.4"),
        (FLASH.replace("cu12", "cu118"), "compiled for CUDA 11, the stack has 12.4"),
        ("delta-1.0+cu130-py3-none-any.whl", "compiled for CUDA 13, the stack has 12.4"),
        ("Alpha-9.0-py3-none-any.whl", "would replace alpha 1.0 of the lock"),
    ],
)
def test_a_name_that_does_not_fit_is_refused_before_anything_is_fetched(stacked: TestCheckout, name: str, said: str) -> None:
    line = stacked.refused("build", "tiny", "--with", f"https://127.0.0.1:1/{name}#sha256={SHA256}")
    assert line.startswith(f"smokehouse: --with {name}: ")
    assert said in line


@pytest.mark.parametrize("name", [FLASH, FLASH.replace("cu12", "cu124"), "delta-1.0+local.1-py3-none-any.whl"])
def test_a_name_that_fits_is_asked_for(stacked: TestCheckout, name: str) -> None:
    assert f"{name}: 127.0.0.1:1 cannot be reached" in stacked.refused(
        "build", "tiny", "--with", f"http://127.0.0.1:1/{name}#sha256={SHA256}"
    )


def test_two_wheels_of_one_project_are_refused(stacked: TestCheckout) -> None:
    given = [f"{name}-py3-none-any.whl#sha256={SHA256}" for name in ("my_delta-1.0", "My.Delta-2.0")]
    assert "2 wheels are of my-delta; keep one" in stacked.refused("build", "tiny", "--with", given[0], "--with", given[1])


@pytest.mark.parametrize(
    ("requires", "said"),
    [
        (("torch", "einops"), "needs einops, which the lock has not; give a wheel of einops with --with, too"),
        (("torch>=2.7",), "needs torch>=2.7, there is 2.6.0"),
        (('einops; python_version >= "3.11"',), "needs einops"),
        (("torch\nRequires-Python: >=3.12",), "needs Python >=3.12, the lock has 3.11"),
        (("torch >>= 2",), "ask for what nobody can tell"),
    ],
)
def test_what_a_wheel_needs_has_to_be_there(
    stacked: TestCheckout, tmp_path: Path, requires: tuple[str, ...], said: str
) -> None:
    data = flash(*requires)
    (tmp_path / FLASH).write_bytes(data)
    assert said in stacked.refused("build", "tiny", "--with", f"{tmp_path / FLASH}#sha256={hashed(data)}")


def test_what_a_wheel_needs_can_be_given_with_it(stacked: TestCheckout, tmp_path: Path) -> None:
    parts = {
        FLASH: flash("torch==2.6.*", "einops>=0.8", 'triton; sys_platform == "win32"', 'pytest; extra == "test"'),
        "einops-0.8.1-py3-none-any.whl": wheel("einops", "0.8.1"),
    }
    asked = []
    for name, data in parts.items():
        (tmp_path / name).write_bytes(data)
        asked.append(extra_wheels.parse(f"{tmp_path / name}#sha256={hashed(data).upper()}"))
    files = [one.file for one in taken(stacked, *asked)]
    assert [(file.name, file.version) for file in files] == [("einops", "0.8.1"), ("flash-attn", "2.7.4.post1")]
    *_, locked = promised(stacked)
    libraries, (*above, model) = image.layers(locked)
    assert image.layers(locked, files) == (libraries, [*above, *(image.Layer((file,)) for file in files), model])
    assert labels.tags(locked, "12.4", "1" * 64, "devel", asked) == labels.tags(locked, "12.4", "1" * 64, "devel", asked[::-1])
    assert labels.tags(locked, "12.4", "1" * 64, "devel", asked) != labels.tags(locked, "12.4", "1" * 64, "devel", asked[:1])


def test_a_file_that_is_another_wheel_is_refused(stacked: TestCheckout, tmp_path: Path) -> None:
    for data, said in (
        (wheel("delta", "2.7.4.post1"), "is delta 2.7.4.post1 inside"),
        (wheel("flash_attn", "2.7.3"), "is flash_attn 2.7.3 inside"),
        (b"no archive", "not a whole wheel"),
    ):
        (tmp_path / FLASH).write_bytes(data)
        assert said in stacked.refused("build", "tiny", "--with", f"{tmp_path / FLASH}#sha256={hashed(data)}")


@pytest.mark.parametrize(("has", "said"), [("1", "is TRUE"), ("x", "is UNKNOWN")])
def test_another_abi_of_cpp_is_refused(stacked: TestCheckout, tmp_path: Path, has: str, said: str) -> None:
    asked = [extra_wheels.parse(f"{FLASH}#sha256={SHA256}")]
    *_, locked = promised(stacked)
    place = tmp_path / "torch-2.6.0-py3-none-any.whl"
    place.write_bytes(torch("0"))
    extra_wheels.require_torch_abi(asked, locked, tmp_path)
    place.write_bytes(torch(has))
    with pytest.raises(UserError, match=f"compiled with cxx11abi FALSE, and that of {place.name} {said}"):
        extra_wheels.require_torch_abi(asked, locked, tmp_path)


def test_a_download_that_is_cut_goes_on_and_is_kept(stacked: TestCheckout, channel: Channel) -> None:
    data = flash()
    quoted = FLASH.replace("+", "%2B")  # as a browser copies it
    (channel.folder / "noarch" / quoted).write_bytes(data)
    channel.faults.cut[quoted] = 300
    asked = extra_wheels.parse(f"{channel.url}/noarch/{quoted}#sha256={hashed(data)}")
    assert asked.name == FLASH
    [one] = taken(stacked, asked)
    assert one.path.read_bytes() == data
    assert channel.ranges(quoted) == [None, "bytes=300-"]
    assert taken(stacked, asked) == (one,)
    assert len(channel.ranges(quoted)) == 2


def test_a_server_that_lies_and_a_file_that_is_gone_are_named(stacked: TestCheckout, channel: Channel, tmp_path: Path) -> None:
    data = flash()
    (channel.folder / "noarch" / FLASH).write_bytes(data)
    channel.faults.sent[FLASH] = data[:-1] + b"x"
    given = f"{channel.url}/noarch/{FLASH}#sha256={hashed(data)}"
    host = channel.url.split("/")[2]
    assert (
        f"{FLASH}: SHA-256 mismatch, {host} serves another file than --with specifies; look at place and SHA-256"
        in stacked.refused("build", "tiny", "--with", given)
    )
    assert not [*(stacked.root / "build" / "with").rglob(f"{FLASH}*")]
    gone = tmp_path / FLASH
    assert f"{gone}: cannot be read (No such file or directory)" in stacked.refused(
        "build", "tiny", "--with", f"{gone}#sha256={hashed(data)}"
    )


def test_a_label_is_believed_no_more_than_a_user() -> None:
    data = hashed(b"")
    url = f"https://example.org/{FLASH}#sha256={data}"
    [found] = extra_wheels.from_label(url, [], "IMAGE")
    assert (found.text, found.source) == (url, f"https://example.org/{FLASH}")
    mine = extra_wheels.parse(f"/mnt/mine-1.0-py3-none-any.whl#sha256={data}")
    [found] = extra_wheels.from_label(url, [mine], "IMAGE")
    assert (found.text, found.source) == (url, "/mnt/mine-1.0-py3-none-any.whl")
    for label, given, said in (
        (f"/etc/{FLASH}#sha256={data}", [], f"IMAGE: has {FLASH} from a file; give it: --with FILE#sha256={data}"),
        (f"http://example.org/{FLASH}#sha256={data}", [], "IMAGE: its label io.smokehouse.with is none of ours"),
        ("", [mine], "IMAGE has no wheel with this SHA-256"),
    ):
        with pytest.raises(UserError, match=re.escape(said)):
            extra_wheels.from_label(label, given, "IMAGE")
