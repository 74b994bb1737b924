"""Stacks: what several environments inherit, and what is wrong with one or with an environment that inherits it."""

import json
import re
import shutil
from datetime import date
from pathlib import Path

import pytest
import yaml

from smokehouse import environments
from smokehouse.checkout import Checkout
from smokehouse.errors import UserError

from ..conftest import Index, TestCheckout

ADDS = "name: {name}\nchannels:\n  - conda-forge\ndependencies:\n{dependencies}"


@pytest.fixture
def stack(checkout: TestCheckout) -> Path:
    """The folder of the stack `base`, with the packages of `tiny`, which inherits it and adds nothing."""
    folder = checkout.root / "environments" / "stacks" / "base"
    folder.mkdir(parents=True)
    (folder / "environment.yml").write_text(checkout.environment.read_text().replace("name: tiny", "name: base"))
    text = checkout.stack.read_text()
    tables = {table.splitlines()[0]: table for table in re.split(r"(?m)^(?=\[)", text) if table}
    shared = [title for title in tables if title.strip("[]") in ("packages", "cuda", "conda", "left_out")]
    (folder / "stack.toml").write_text("".join(tables[title] for title in shared))
    checkout.stack.write_text('stack = "base"\n\n' + "".join(tables[title] for title in tables if title not in shared))
    checkout.environment.write_text(ADDS.format(name="tiny", dependencies="  []\n"))
    return folder


def add(checkout: TestCheckout, dependencies: str) -> None:
    """Have `tiny` add these lines to the stack."""
    checkout.environment.write_text(ADDS.format(name="tiny", dependencies=dependencies))


def test_an_environment_that_adds_nothing_has_the_inputs_of_its_stack(checkout: TestCheckout) -> None:
    before = environments.read(Checkout(checkout.root), "tiny")
    assert (before.own, before.files) == (frozenset({"python", "cuda-nvcc", "alpha", "beta"}), (checkout.environment,))


def test_it_inherits_everything_but_the_model(checkout: TestCheckout, request: pytest.FixtureRequest) -> None:
    before = environments.read(Checkout(checkout.root), "tiny")
    folder = request.getfixturevalue("stack")
    found = environments.read(Checkout(checkout.root), "tiny")
    assert found.digest() == before.digest()
    assert (found.stack.packages, found.stack.cuda, found.stack.conda) == (
        before.stack.packages,
        before.stack.cuda,
        before.stack.conda,
    )
    assert (found.stack.stack, found.own) == ("base", frozenset())
    assert found.files == (folder / "environment.yml", checkout.environment)
    assert found.places["beta"] == "environments/stacks/base/environment.yml:9"


def test_what_it_adds_or_changes_counts(checkout: TestCheckout, stack: Path) -> None:
    add(checkout, "  - python=3.12\n  - git\n  - pip:\n      - alpha==2.0\n      - gamma\n")
    left_out = "".join(
        f'[[left_out]]\npackage = "{name}"\nreason = "{why}"\n' for name, why in (("vllm", "own"), ("zeta", "no"))
    )
    checkout.stack.write_text(f'{checkout.stack.read_text()}\n[conda]\ndevel = ["git"]\n{left_out}')
    found = environments.read(Checkout(checkout.root), "tiny")
    assert {str(requirement) for requirement in found.inputs.requirements} == {"alpha==2.0", "beta", "gamma"}
    assert found.conda.specs == ("python=3.12", "cuda-nvcc=12.4", "git")
    assert found.conda.devel == {"cuda-nvcc", "git"}
    assert found.inputs.python == "3.12"
    assert found.inputs.left_out == ("vllm", "zeta")
    assert [excluded.reason for excluded in found.stack.left_out] == ["own", "no"]
    assert found.own == {"python", "git", "alpha", "gamma"}
    assert found.places["alpha"] == "environments/tiny/environment.yml:8"


def test_a_new_cutoff_is_one_edit(checkout: TestCheckout, stack: Path) -> None:
    shutil.copytree(checkout.folder, checkout.folder.with_name("other"))
    other = checkout.folder.with_name("other") / "environment.yml"
    checkout.edit(other, "name: tiny", "name: other")
    assert checkout.run("lock").returncode == 0
    assert checkout.run("lock", "--check").returncode == 0
    sources = yaml.safe_load(checkout.conda_lock.read_text())["metadata"]["sources"]
    assert sources == [f"../../environments/{part}/environment.yml" for part in ("stacks/base", "tiny")]
    checkout.edit(stack / "stack.toml", "2025-03-15", "2025-03-14")
    checked = checkout.run("lock", "--check")
    assert checked.returncode == 1
    assert [line.partition(":")[0] for line in re.findall("lockfiles/(.*): lock out of date", checked.stderr)] == [
        "other/requirements.txt",
        "tiny/requirements.txt",
    ]
    assert checkout.run("lock").returncode == 0
    assert {
        json.loads((checkout.root / "lockfiles" / name / "lock.json").read_text())["cutoff"] for name in ("tiny", "other")
    } == {str(date(2025, 3, 14))}


def test_an_environment_that_begins_or_ends_to_inherit_is_locked_again(
    checkout: TestCheckout, request: pytest.FixtureRequest
) -> None:
    """Its packages are the same, but conda-lock is told other files."""
    checkout.lock()
    before = json.loads(checkout.lock_json.read_text())
    request.getfixturevalue("stack")
    ended = checkout.run("lock", "--check")
    assert ended.returncode == 1
    assert "conda-lock.yml: metadata: expected what environment.yml gives, found other values" in ended.stderr
    checkout.lock()
    after = json.loads(checkout.lock_json.read_text())
    assert {key for key in before if before[key] != after[key]} == {"files"}
    assert checkout.run("lock", "--check").returncode == 0


def test_an_unsolvable_package_of_the_stack_is_told_at_its_line_there(
    checkout: TestCheckout, stack: Path, index: Index
) -> None:
    checkout.edit(stack / "environment.yml", "alpha==1.0", "alpha==7.0")
    assert checkout.refused("lock", "tiny").startswith(
        "smokehouse: tiny: lock unchanged: environments/stacks/base/environment.yml:8: cannot be resolved"
    )


# file, old text, new text, where, message
INVALID = [
    (
        "stack",
        'stack = "base"',
        'stack = "bass"',
        "environments/tiny/stack.toml:1",
        r"environments/stacks/bass: stack not found; did you mean base\? known: base",
    ),
    (
        "stack",
        'stack = "base"',
        "stack = 3",
        "environments/tiny/stack.toml:1",
        r"stack: input should be a valid string; fix it",
    ),
    (
        "stack",
        'stack = "base"',
        'stack = "../base"',
        "environments/tiny/stack.toml:1",
        r"stack: string should match pattern .*; fix it",
    ),
    (
        "stack",
        'stack = "base"\n',
        'stack = "base"\n[cuda]\nversion = "12.4"\n',
        "environments/tiny/stack.toml:2",
        r"\[cuda\] belongs to the stack base; remove it, or do not inherit",
    ),
    (
        "stack",
        'stack = "base"\n',
        "",
        "environments/tiny/environment.yml:4",
        r"expected one pip list under dependencies, found 0; add one '- pip:' list",
    ),
    (
        "environment",
        "  []\n",
        "  - pip:\n      - vllm\n",
        "environments/tiny/environment.yml:6",
        r"vllm is left out in the stack that is inherited; remove it from one of the two",
    ),
    (
        "base/stack.toml",
        "[cuda]",
        '[model]\nfamily = "x"\n[cuda]',
        "environments/stacks/base/stack.toml:5",
        r"unknown key 'model'; known keys: packages, cuda, conda, left_out",
    ),
    (
        "base/stack.toml",
        '["cuda-nvcc"]',
        '["gcc"]',
        "environments/stacks/base/stack.toml:13",
        r"gcc is devel here, but environment\.yml does not require it; .*",
    ),
    (
        "base/environment.yml",
        "name: base",
        "name: tiny",
        "environments/stacks/base/environment.yml:1",
        r"expected the folder's name 'base', found 'tiny'; make them the same",
    ),
    (
        "base/environment.yml",
        "  - python=3.11\n",
        "",
        "environments/stacks/base/environment.yml:4",
        r"python not found; add .*",
    ),
]


@pytest.mark.parametrize(
    ("file", "old", "new", "where", "message"), INVALID, ids=[f"{row[0]} {row[2][:20]!r}" for row in INVALID]
)
def test_invalid_stack_is_reported_with_file_line_and_remedy(
    checkout: TestCheckout, stack: Path, file: str, old: str, new: str, where: str, message: str
) -> None:
    own = {"stack": checkout.stack, "environment": checkout.environment}
    checkout.edit(own[file] if file in own else stack.parent / file, old, new)
    with pytest.raises(UserError) as refusal:
        environments.read(Checkout(checkout.root), "tiny")
    said = str(refusal.value.lines[0] if hasattr(refusal.value, "lines") else refusal.value)
    assert said.startswith(f"{where}: "), said
    assert re.fullmatch(message, said.removeprefix(f"{where}: ")), said


def test_stacks_is_no_environment(checkout: TestCheckout, stack: Path) -> None:
    assert Checkout(checkout.root).environments() == ["tiny"]
    assert "environments/stacks: environment not found" in checkout.refused("lock", "stacks")


def test_stack_of_the_package_is_copied_beside_an_environment_of_the_user(
    checkout: TestCheckout, stack: Path, tmp_path: Path
) -> None:
    """A lock holds the path of the stack's file, which must be the same on each machine."""
    own = tmp_path / "own"
    shutil.copytree(checkout.folder, own / "environments" / "tiny")
    found = Checkout(own, packaged=checkout.root)
    with pytest.raises(UserError, match=f"base: stack not found; known: none; copy {stack} to {own}/environments/stacks"):
        environments.read(found, "tiny")
    shutil.copytree(stack, own / "environments" / "stacks" / "base")
    assert environments.read(found, "tiny").stack.stack == "base"
