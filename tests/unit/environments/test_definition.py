"""Invalid environments, each reported with file, line and what to do."""

import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smokehouse import environments
from smokehouse.checkout import Checkout
from smokehouse.environments.documents import read_toml, read_yaml
from smokehouse.errors import UserError

from ..conftest import TestCheckout

# file, valid text, invalid text, line, message
INVALID = [
    (
        "environment.yml",
        "name: tiny",
        "name: small",
        1,
        r"expected the folder's name 'tiny', found 'small'; make them the same",
    ),
    ("environment.yml", "name: tiny", "nme: tiny", 1, r"unknown key 'nme'; did you mean name\? known keys: name, .*"),
    ("environment.yml", "name: tiny", "name: tiny\nname: tiny", 2, r"invalid YAML: duplicate key 'name'; fix the line"),
    ("environment.yml", "name: tiny", "name: 3.10", 1, r"expected text, found 3\.10; put it in quotes"),
    ("environment.yml", "name: tiny", "name:", 1, r"expected a value, found none; add it"),
    ("environment.yml", "name: tiny\n", "", 1, r"name not found; add it"),
    ("environment.yml", "name: tiny", "name: [tiny", 2, r"invalid YAML: .*; fix the line"),
    ("environment.yml", "name: tiny", "name: &a tiny\nprefix: *a", 2, r"invalid YAML: aliases are refused; fix the line"),
    ("environment.yml", "name: tiny", "name: tiny\x07", 1, r"invalid YAML: .*; save it as plain text"),
    ("environment.yml", "name: tiny", "name: " + "[" * 3000, 1, r"nested too deeply; .*"),
    ("environment.yml", "name: tiny", "? [a]\n: b", 1, r"invalid YAML: expected text as key; fix the line"),
    ("environment.yml", "- conda-forge", "- defaults", 3, r"channels\.0: found 'defaults'; use 'conda-forge'"),
    (
        "environment.yml",
        "- python=3.11",
        "- python>=3.8",
        5,
        r"expected one Python version .*, found 'python>=3\.8'; write it like python=3\.11",
    ),
    ("environment.yml", "- python=3.11", "- python=2.7", 5, r"expected one Python version .*, found 'python=2\.7'; .*"),
    ("environment.yml", "- python=3.11", "- gcc", 4, r"python not found; add - python=3\.11"),
    (
        "environment.yml",
        "- python=3.11",
        "- python=3.11\n  - gcc=@",
        6,
        r"invalid conda package 'gcc=@'; write it like .*",
    ),
    ("environment.yml", "- pip:", "- pap:", 7, r"unknown key 'pap'; did you mean pip\? known keys: pip"),
    (
        "environment.yml",
        "- pip:",
        "- pip:\n      - einops\n  - pip:",
        9,
        r"expected one pip list under dependencies, found 2; merge them",
    ),
    (
        "environment.yml",
        "  - pip:\n      - alpha==1.0\n      - beta\n",
        "",
        4,
        r"expected one pip list under dependencies, found 0; add .*",
    ),
    (
        "environment.yml",
        "      - alpha==1.0\n      - beta\n",
        "      []\n",
        7,
        r"expected packages in the pip list, found none; add one",
    ),
    ("environment.yml", "- beta", "- beta==1..0", 9, r"invalid requirement 'beta==1\.\.0': .*; write it like .*"),
    ("environment.yml", "- beta", "- beta=1.0", 9, r"invalid requirement 'beta=1\.0': .*; write it like .*"),
    ("environment.yml", "- beta", "- Alpha", 9, r"duplicate package alpha, first in line 8; keep one"),
    (
        "environment.yml",
        "- beta",
        "- beta==2.0.dev1",
        9,
        r"expected a release, found the development version 'beta==2\.0\.dev1'; specify a release",
    ),
    ("environment.yml", "- beta", "- beta===2", 9, r"'beta===2' compares text, not versions; use =="),
    (
        "environment.yml",
        "- beta",
        "- beta @ git+https://example.org/b",
        9,
        r"expected a package .*, found the URL or path .*; specify a release: .*",
    ),
    (
        "environment.yml",
        "- beta",
        "- https://example.org/b.whl",
        9,
        r"expected a package .*, found the URL or path .*; specify a release: .*",
    ),
    (
        "environment.yml",
        "- beta",
        "- ./beta",
        9,
        r"expected a package .*, found the URL or path '\./beta'; specify a release: .*",
    ),
    ("environment.yml", "- beta", "- -e .", 9, r"expected a package, found the pip option '-e \.'; list packages only"),
    (
        "environment.yml",
        "- beta",
        '- "--extra-index-url=x"',
        9,
        r"expected a package, found the pip option '--extra-index-url=x'; .*",
    ),
    ("environment.yml", "- beta", "- beta; sys_platform == 'linux'", 9, r"expected no marker, found .*; remove it: .*"),
    ("environment.yml", "- beta", "- beta: 2", 9, r"expected text, found 2; put it in quotes"),
    ("environment.yml", "- beta", "- beta: two", 9, r"invalid requirement \{'beta': 'two'\}; write it like .*"),
    (
        "environment.yml",
        "- beta",
        "- vllm",
        None,
        r"vllm is left out here, but environment\.yml requires it; remove one .*",
    ),
    (
        "stack.toml",
        'family = "qwen2_5_vl"',
        'famly = "qwen2_5_vl"',
        2,
        r"unknown key 'famly'; did you mean family\? .*",
    ),
    ("stack.toml", 'family = "qwen2_5_vl"', "family = 3", 2, r"model\.family: input should be a valid string; fix it"),
    (
        "stack.toml",
        'family = "qwen2_5_vl"',
        'family = "a b"',
        2,
        r"model\.family: string should match pattern .*; fix it",
    ),
    ("stack.toml", 'family = "qwen2_5_vl"\n', "", 1, r"model\.family not found; add it"),
    ("stack.toml", 'family = "qwen2_5_vl"', 'family = "qwen', 2, r"invalid TOML: .*; fix the line"),
    ("stack.toml", 'class = "Qwen', 'class = "2Qwen', 3, r"model\.class: string should match pattern .*; fix it"),
    (
        "stack.toml",
        "cutoff = 2025-03-15",
        "cutoff = 2999-01-01",
        6,
        r"expected a cutoff before today, found 2999-01-01; use an .*",
    ),
    ("stack.toml", "cutoff = 2025-03-15", "cutoff = 2025-13-15", 6, r"invalid TOML: .*; fix the line"),
    ("stack.toml", "cutoff = 2025-03-15", 'cutoff = "soon"', 6, r"packages\.cutoff: .*; fix it"),
    ("stack.toml", "x86_64-manylinux_2_28", "win", 7, r"packages\.platform: found 'win'; use 'x86_64-manylinux_2_17', .*"),
    ("stack.toml", 'version = "12.4"', "version = 12.4", 10, r"cuda\.version: input should be a valid string; fix it"),
    ("stack.toml", 'version = "12.4"', 'version = "twelve"', 10, r"cuda\.version: string should match pattern .*"),
    ("stack.toml", "[cuda]", "[cude]", 9, r"unknown key 'cude'; did you mean cuda\? .*"),
    ("stack.toml", '"needs another torch"', '" "', 14, r"expected a reason, found none; add it .*"),
    ("stack.toml", 'AutoModel = "part"', 'AutoModel = "partly"', 17, r".*AutoModel: found 'partly'; use 'whole', .*"),
    ("stack.toml", "[expectations.auto_classes]", "[expectations.auto_clases]", 16, r"unknown key 'auto_clases'; did .*"),
    ("stack.toml", 'AutoModel = "part"', "AutoModel = " + "[" * 3000, 1, r"nested too deeply; .*"),
    ("environment.yml", "- cuda-nvcc=12.4", "- cuda-nvcc=12.4\n  - cuda-nvcc", 7, r"duplicate package cuda-nvcc; keep one"),
    ("environment.yml", "- cuda-nvcc=12.4", "- cuda-nvcc=12.4\n  - pip", 7, r"expected no pip among the conda packages; .*"),
    ("stack.toml", '["cuda-nvcc"]', '["gcc"]', 20, r"gcc is devel here, but environment\.yml does not require it; add .*"),
]


@pytest.mark.parametrize(("file", "old", "new", "line", "message"), INVALID, ids=[repr(row[2][:30]) for row in INVALID])
def test_invalid_definition_is_reported_with_file_line_and_remedy(
    checkout: TestCheckout, file: str, old: str, new: str, line: int | None, message: str
) -> None:
    checkout.edit(checkout.folder / file, old, new)
    with pytest.raises(UserError) as refusal:
        environments.read(Checkout(checkout.root), "tiny")
    where = f"environments/tiny/{file}:{line}: " if line else "environments/tiny/stack.toml:13: "
    said = str(refusal.value)
    assert said.startswith(where)
    assert re.fullmatch(message, said.removeprefix(where)), said


@pytest.mark.parametrize("row", [INVALID[0], INVALID[7], INVALID[20], INVALID[38]], ids=lambda row: row[2])
def test_invalid_definition_ends_the_command_line_with_code_2(
    checkout: TestCheckout, row: tuple[str, str, str, int, str]
) -> None:
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
def test_unreadable_file(checkout: TestCheckout, file: str) -> None:
    path = checkout.folder / file
    path.write_bytes(b"name: tiny\n# \xff\n")
    assert checkout.refused("lock").endswith(f"{file}:2: invalid UTF-8; save it as UTF-8")
    path.write_bytes(b"#" * (1 << 20) + b"\n")
    assert "expected at most 1 MiB, found more; shorten it" in checkout.refused("lock")
    path.unlink()
    assert f"{file}: not found; create it, or restore it with git" in checkout.refused("lock")
    path.mkdir()
    assert "cannot be read (Is a directory); make it a readable file" in checkout.refused("lock")


def test_outside_a_checkout(checkout: TestCheckout) -> None:
    shutil.rmtree(checkout.root / "environments")
    assert "environments/ not found here or in a parent folder" in checkout.refused("lock")


@given(st.text())
def test_readers_raise_only_user_errors_for_any_text(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    for read in (read_yaml, read_toml):
        said = "any:1: nothing"
        try:
            read(path, "any")
        except UserError as refusal:
            said = str(refusal)
        assert re.match(r"any:\d+: ", said)


def test_committed_environment_is_valid(root: Path) -> None:
    committed = environments.read(Checkout(root), "qwen2.5-vl")
    pinned = {str(requirement) for requirement in committed.inputs.requirements}
    stack = {"torch==2.6.0", "torchvision==0.21.0", "transformers==4.49.0", "deepspeed==0.15.4", "accelerate==1.4.0"}
    assert stack <= pinned
    assert {left_out.package for left_out in committed.stack.left_out} == {"vllm", "flash-attn"}


def test_all_mistakes_are_reported_in_one_run(checkout: TestCheckout) -> None:
    checkout.edit(checkout.environment, "- beta", "- beta===2\n      - alpha\n      - gamma=1")
    checkout.edit(checkout.environment, "- conda-forge", "- defaults")
    checkout.edit(checkout.stack, 'version = "12.4"', "version = 12.4")
    checkout.edit(checkout.stack, "family", "familie")
    ended = checkout.run("lock")
    assert ended.returncode == 2
    found = [line.removeprefix("smokehouse: environments/tiny/").partition(": ") for line in ended.stderr.splitlines()]
    assert [where for where, _, _ in found] == [
        "environment.yml:3",
        "environment.yml:9",
        "environment.yml:11",
        "stack.toml:2",
        "stack.toml:10",
    ]
    # What only a valid list can have is found next, with its contradictions to the other file.
    checkout.edit(checkout.environment, "- defaults", "- conda-forge")
    checkout.edit(checkout.environment, "===2", "")
    checkout.edit(checkout.environment, "gamma=1", "vllm")
    checkout.edit(checkout.environment, "name: tiny", "name: small")
    checkout.edit(checkout.environment, "python=3.11", "python=3.10")
    for old, new in (("version = 12.4", 'version = "12.4"'), ("familie", "family"), ('["cuda-nvcc"]', '["gcc"]')):
        checkout.edit(checkout.stack, old, new)
    with pytest.raises(UserError) as refusal:
        environments.read(Checkout(checkout.root), "tiny")
    assert [line.split(": ")[0].removeprefix("environments/tiny/") for line in refusal.value.lines] == [
        "environment.yml:1",
        "environment.yml:10",
        "environment.yml:5",
    ]
    for old, new in (("name: small", "name: tiny"), ("python=3.10", "python=3.11"), ("      - alpha\n", "")):
        checkout.edit(checkout.environment, old, new)
    with pytest.raises(UserError) as refusal:
        environments.read(Checkout(checkout.root), "tiny")
    assert [line.split(": ")[0].removeprefix("environments/tiny/") for line in refusal.value.lines] == [
        "stack.toml:13",
        "stack.toml:20",
    ]


def test_mistakes_of_a_hostile_file_are_counted(checkout: TestCheckout) -> None:
    checkout.environment.write_text("dependencies:\n" + "  - 7\n" * 5000)
    with pytest.raises(UserError) as refusal:
        environments.read(Checkout(checkout.root), "tiny")
    assert len(refusal.value.lines) == 21
    assert refusal.value.lines[-1] == "and 4980 more mistakes"


@pytest.mark.parametrize("spec", ["git=2.40=h1_0", "git==2.40=h1_0", "python=3.11.9=hb806964_0_cpython", "libaio=0.3=0"])
def test_remedy_for_a_build_pin_is_accepted(checkout: TestCheckout, spec: str) -> None:
    old = "- python=3.11" if spec.startswith("python") else "- cuda-nvcc=12.4"
    checkout.edit(checkout.environment, old, f"- {spec}")
    checkout.edit(checkout.stack, '["cuda-nvcc"]', "[]")
    with pytest.raises(UserError, match=r"environment\.yml:\d: expected no build, found ") as refusal:
        environments.read(Checkout(checkout.root), "tiny")
    remedy = str(refusal.value).partition("write ")[2].partition(":")[0]
    checkout.edit(checkout.environment, f"- {spec}", f"- {remedy}")
    assert remedy in (*environments.read(Checkout(checkout.root), "tiny").conda.specs,)
