"""Every way to write an environment wrongly, and the line that says so."""

import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smokehouse.checkout import Checkout
from smokehouse.environments import definition as environment
from smokehouse.environments.documents import read_toml, read_yaml
from smokehouse.errors import UserError

from ..conftest import TestCheckout

# file, what is there, what stands there instead, line, what the message says
WRONG = [
    (
        "environment.yml",
        "name: tiny",
        "name: small",
        1,
        r"name is 'small' but the folder is 'tiny'; make them the same",
    ),
    ("environment.yml", "name: tiny", "nme: tiny", 1, r"unknown key 'nme'; did you mean name\? known here: name, .*"),
    ("environment.yml", "name: tiny", "name: tiny\nname: tiny", 2, r"not YAML: duplicate key 'name'; mend the line"),
    ("environment.yml", "name: tiny", "name: 3.10", 1, r"3\.10 is not text; put it in quotes"),
    ("environment.yml", "name: tiny", "name:", 1, r"a value is missing; add it"),
    ("environment.yml", "name: tiny\n", "", 1, r"name is missing; add it"),
    ("environment.yml", "name: tiny", "name: [tiny", 2, r"not YAML: .*; mend the line"),
    ("environment.yml", "name: tiny", "name: &a tiny\nprefix: *a", 2, r"not YAML: aliases are refused; mend the line"),
    ("environment.yml", "name: tiny", "name: tiny\x07", 1, r"not YAML: .*; write it as plain text"),
    ("environment.yml", "name: tiny", "name: " + "[" * 3000, 1, r"nested too deeply; .*"),
    ("environment.yml", "name: tiny", "? [a]\n: b", 1, r"not YAML: a key must be text; mend the line"),
    ("environment.yml", "- conda-forge", "- defaults", 3, r"channels\.0 is 'defaults'; use 'conda-forge'"),
    ("environment.yml", "- python=3.11", "- python>=3.8", 5, r"'python>=3.8': say which Python, .*: python=3\.11"),
    ("environment.yml", "- python=3.11", "- python=2.7", 5, r"'python=2.7': say which Python, .*"),
    ("environment.yml", "- python=3.11", "- gcc", 4, r"python is missing; add - python=3\.11"),
    (
        "environment.yml",
        "- python=3.11",
        "- python=3.11\n  - gcc=@",
        6,
        r"'gcc=@' is no conda package; write it like .*",
    ),
    ("environment.yml", "- pip:", "- pap:", 7, r"unknown key 'pap'; did you mean pip\? known here: pip"),
    (
        "environment.yml",
        "- pip:",
        "- pip:\n      - einops\n  - pip:",
        9,
        r"2 pip lists under dependencies; make them one",
    ),
    (
        "environment.yml",
        "  - pip:\n      - alpha==1.0\n      - beta\n",
        "",
        4,
        r"0 pip lists under dependencies; add .*",
    ),
    ("environment.yml", "      - alpha==1.0\n      - beta\n", "      []\n", 7, r"the pip list is empty; .*"),
    ("environment.yml", "- beta", "- beta==1..0", 9, r"'beta==1\.\.0' is no requirement: .*; write it like .*"),
    ("environment.yml", "- beta", "- beta=1.0", 9, r"'beta=1\.0' is no requirement: .*; write it like .*"),
    ("environment.yml", "- beta", "- Alpha", 9, r"alpha stands twice, first in line 8; keep one"),
    (
        "environment.yml",
        "- beta",
        "- beta==2.0.dev1",
        9,
        r"'beta==2\.0\.dev1' asks for a development version, .*; name a .*",
    ),
    ("environment.yml", "- beta", "- beta===2", 9, r"'beta===2' compares text, not versions; use =="),
    (
        "environment.yml",
        "- beta",
        "- beta @ git+https://example.org/b",
        9,
        r".* is a URL or a path, .*; name a release, .*",
    ),
    ("environment.yml", "- beta", "- https://example.org/b.whl", 9, r".* is a URL or a path, .*; name a release, .*"),
    ("environment.yml", "- beta", "- ./beta", 9, r"'\./beta' is a URL or a path, .*; name a release, .*"),
    ("environment.yml", "- beta", "- -e .", 9, r"'-e \.' is an option of pip, .*; list packages only"),
    ("environment.yml", "- beta", '- "--extra-index-url=x"', 9, r"'--extra-index-url=x' is an option of pip, .*"),
    ("environment.yml", "- beta", "- beta; sys_platform == 'linux'", 9, r".* has a marker, .*; drop what follows ';'"),
    ("environment.yml", "- beta", "- beta: 2", 9, r"2 is not text; put it in quotes"),
    ("environment.yml", "- beta", "- beta: two", 9, r"\{'beta': 'two'\} is no requirement; write it like .*"),
    (
        "environment.yml",
        "- beta",
        "- vllm",
        None,
        r"vllm is left out here but asked for in environment\.yml; drop one .*",
    ),
    (
        "stack.toml",
        'family = "qwen2_5_vl"',
        'famly = "qwen2_5_vl"',
        2,
        r"unknown key 'famly'; did you mean family\? .*",
    ),
    ("stack.toml", 'family = "qwen2_5_vl"', "family = 3", 2, r"model\.family: input should be a valid string; mend it"),
    (
        "stack.toml",
        'family = "qwen2_5_vl"',
        'family = "a b"',
        2,
        r"model\.family: string should match pattern .*; mend it",
    ),
    ("stack.toml", 'family = "qwen2_5_vl"\n', "", 1, r"model\.family is missing; add it"),
    ("stack.toml", 'family = "qwen2_5_vl"', 'family = "qwen', 2, r"not TOML: .*; mend the line"),
    ("stack.toml", 'class = "Qwen', 'class = "2Qwen', 3, r"model\.class: string should match pattern .*; mend it"),
    (
        "stack.toml",
        "cutoff = 2025-03-15",
        "cutoff = 2999-01-01",
        6,
        r"cutoff 2999-01-01 is not over yet, .*; use an .*",
    ),
    ("stack.toml", "cutoff = 2025-03-15", "cutoff = 2025-13-15", 6, r"not TOML: .*; mend the line"),
    ("stack.toml", "cutoff = 2025-03-15", 'cutoff = "soon"', 6, r"packages\.cutoff: .*; mend it"),
    ("stack.toml", "x86_64-manylinux_2_28", "win", 7, r"packages\.platform is 'win'; use 'x86_64-manylinux_2_17', .*"),
    ("stack.toml", 'version = "12.4"', "version = 12.4", 10, r"cuda\.version: input should be a valid string; mend it"),
    ("stack.toml", 'version = "12.4"', 'version = "twelve"', 10, r"cuda\.version: string should match pattern .*"),
    ("stack.toml", "[cuda]", "[cude]", 9, r"unknown key 'cude'; did you mean cuda\? .*"),
    ("stack.toml", '"needs another torch"', '" "', 14, r"a reason is missing; say why, .*"),
    ("stack.toml", 'AutoModel = "part"', 'AutoModel = "partly"', 17, r".*AutoModel is 'partly'; use 'whole', .*"),
    ("stack.toml", "[expectations.auto_classes]", "[expectations.key_layout]", 16, r"unknown key 'key_layout'; .*"),
    ("stack.toml", 'AutoModel = "part"', "AutoModel = " + "[" * 3000, 1, r"nested too deeply; .*"),
]


@pytest.mark.parametrize(("file", "old", "new", "line", "message"), WRONG, ids=[repr(row[2][:30]) for row in WRONG])
def test_mistake_is_named_with_file_line_and_cure(
    checkout: TestCheckout, file: str, old: str, new: str, line: int | None, message: str
) -> None:
    checkout.edit(checkout.folder / file, old, new)
    with pytest.raises(UserError) as refusal:
        environment.read(Checkout(checkout.root), "tiny")
    where = f"environments/tiny/{file}:{line}: " if line else "environments/tiny/stack.toml:13: "
    said = str(refusal.value)
    assert said.startswith(where)
    assert re.fullmatch(message, said.removeprefix(where)), said


@pytest.mark.parametrize("row", [WRONG[0], WRONG[7], WRONG[20], WRONG[38]], ids=lambda row: row[2])
def test_mistake_ends_the_command_line_with_code_2(checkout: TestCheckout, row: tuple[str, str, str, int, str]) -> None:
    file, old, new, line, _ = row
    checkout.edit(checkout.folder / file, old, new)
    for command in (["lock", "tiny"], ["lock", "--check"], ["smoke", "tiny"]):
        assert checkout.refused(*command).startswith(f"smokehouse: environments/tiny/{file}:{line}: ")
    assert not checkout.pins.exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "tidy",
            r"environments/tidy: environment not found; did you mean tiny\? known: tiny; to add one, create the folder .*",
        ),
        ("elephant", r"environments/elephant: environment not found; known: tiny; to add one, create the folder .*"),
        ("../tiny", r"invalid environment name '\.\./tiny': use lower-case letters, .*; known: tiny"),
        ("/etc", r"invalid environment name '/etc': use .*"),
        ("..", r"invalid environment name '\.\.': use .*"),
        ("Tiny", r"invalid environment name 'Tiny': use .*"),
        ("", r"invalid environment name '': use .*"),
    ],
)
def test_unknown_name(checkout: TestCheckout, name: str, message: str) -> None:
    for verb in ("lock", "smoke"):
        assert re.fullmatch(f"smokehouse: {message}", checkout.refused(verb, name))


def test_folder_with_an_invalid_environment_name(checkout: TestCheckout) -> None:
    shutil.copytree(checkout.folder, checkout.folder.with_name("Tiny"))
    for verb in ("lock", "smoke"):
        said = checkout.refused(verb, "Tiny")
        assert re.fullmatch(r"smokehouse: invalid environment name 'Tiny': use lower-case letters, .*; known: Tiny, tiny", said)


@pytest.mark.parametrize("file", ["environment.yml", "stack.toml"])
def test_file_that_cannot_be_read(checkout: TestCheckout, file: str) -> None:
    path = checkout.folder / file
    path.write_bytes(b"name: tiny\n# \xff\n")
    assert checkout.refused("lock").endswith(f"{file}:2: not UTF-8; save it as UTF-8")
    path.write_bytes(b"#" * (1 << 20) + b"\n")
    assert "larger than 1 MiB" in checkout.refused("lock")
    path.unlink()
    assert f"{file}: no such file" in checkout.refused("lock")
    path.mkdir()
    assert "cannot be read (Is a directory); make it a readable file" in checkout.refused("lock")


def test_outside_a_checkout(checkout: TestCheckout) -> None:
    shutil.rmtree(checkout.root / "environments")
    assert "environments/ not found here or in a parent folder" in checkout.refused("lock")


@given(st.text())
def test_no_text_makes_a_reader_raise_anything_else(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    for read in (read_yaml, read_toml):
        said = "any:1: nothing"
        try:
            read(path, "any")
        except UserError as refusal:
            said = str(refusal)
        assert re.match(r"any:\d+: ", said)


def test_ours_is_valid(root: Path) -> None:
    ours = environment.read(Checkout(root), "qwen2.5-vl")
    pinned = {str(requirement) for requirement in ours.inputs.requirements}
    stack = {"torch==2.6.0", "torchvision==0.21.0", "transformers==4.49.0", "deepspeed==0.15.4", "accelerate==1.4.0"}
    assert stack <= pinned
    assert {left_out.package for left_out in ours.stack.left_out} == {"vllm", "flash-attn"}
