"""`new`: an environment like another, complete at once, and nothing that exists is changed."""

import ast
import shutil
from pathlib import Path

import pytest

from smokehouse import environments
from smokehouse.checkout import Checkout

from ..conftest import TestCheckout


@pytest.fixture
def locked(checkout: TestCheckout, root: Path) -> TestCheckout:
    """A checkout whose `tiny` is locked, with the real families."""
    shutil.copytree(root / "smoke_tests" / "families", checkout.root / "smoke_tests" / "families")
    checkout.lock()
    return checkout


def files(folder: Path) -> dict[str, bytes]:
    """Return the content of all files by path, but for caches and what is in build/."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not {"__pycache__", "build"} & {*path.relative_to(folder).parts}
    }


def test_a_new_environment_is_whole_and_its_lock_is_that_of_a_resolution(locked: TestCheckout) -> None:
    before = files(locked.root)
    # Neither an index nor a channel is there.
    ended = locked.run("new", "other", "--like", "tiny", UV_OFFLINE="1", SMOKEHOUSE_CHANNEL="/nowhere")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines() == [
        *(f"environments/other/{name}: written" for name in ("environment.yml", "stack.toml")),
        *(
            f"lockfiles/other/{name}: written"
            for name in ("requirements.txt", "build-requirements.txt", "conda-lock.yml", "constraints.txt", "lock.json")
        ),
        "Edit them, then run smokehouse lock other and smokehouse smoke other",
    ]
    after = files(locked.root)
    assert {name: after[name] for name in before} == before
    assert locked.run("lock", "--check").returncode == 0
    assert locked.run("lock", "other").stdout.endswith(" packages, unchanged\n")
    assert files(locked.root) == after
    one, other = (environments.read(Checkout(locked.root), name) for name in ("tiny", "other"))
    assert (one.digest(), one.stack) == (other.digest(), other.stack)
    assert locked.run("list", "--json").returncode == 0


def test_a_stack_is_inherited_and_not_copied(locked: TestCheckout) -> None:
    shared = locked.root / "environments" / "stacks" / "base"
    shutil.copytree(locked.folder, shared)
    locked.edit(shared / "environment.yml", "name: tiny", "name: base")
    text = (shared / "stack.toml").read_text()
    model, rest = text[: text.index("[packages]")], text[text.index("[packages]") :]
    (shared / "stack.toml").write_text(rest.partition("[expectations")[0] + '[conda]\ndevel = ["cuda-nvcc"]\n')
    locked.stack.write_text(f'stack = "base"\n{model}[expectations.auto_classes]\nAutoModel = "part"\n')
    locked.environment.write_text("name: tiny\nchannels:\n  - conda-forge\ndependencies: []\n")
    locked.lock()
    assert locked.run("new", "other", "--like", "tiny").returncode == 0
    assert [path.name for path in shared.parent.iterdir()] == ["base"]
    assert environments.read(Checkout(locked.root), "other").stack.stack == "base"
    assert locked.run("lock", "other").stdout.endswith("unchanged\n")


@pytest.mark.parametrize(
    ("like", "family", "class_", "module"),
    [
        (("llama", "LlamaForCausalLM"), "mistral", "MistralForCausalLM", "mistral"),
        (("llama", "LlamaForCausalLM"), "nemotron-nas", "DeciLMForCausalLM", "nemotron_nas"),
        (("vision-encoder-decoder", "VisionEncoderDecoderModel"), "a-b", "ABModel", "a_b"),
    ],
)
def test_a_new_family_is_written_like_another(
    locked: TestCheckout, like: tuple[str, str], family: str, class_: str, module: str
) -> None:
    locked.edit(locked.stack, "qwen2_5_vl", like[0])
    locked.edit(locked.stack, "Qwen2_5_VLForConditionalGeneration", like[1])
    ended = locked.run("new", "other", "--like", "tiny", "--family", family, "--class", class_)
    assert ended.returncode == 0, ended.stderr
    model = environments.read(Checkout(locked.root), "other").stack.model
    assert (model.family, model.class_) == (family, class_)
    # A name that Python can import, whatever the model type has in it.
    text = (locked.root / "smoke_tests" / "families" / f"{module}.py").read_text()
    tree = ast.parse(text)
    assert (ast.get_docstring(tree) or "").startswith(f"{class_}: written like {like[0]}. ")
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert {family, class_, f"transformers.models.{module}.modeling_{module}"} <= texts
    code = text.split('"""', 2)[2]
    for name in (*like, like[0].replace("-", "_")):
        assert name not in code
    # The family is found by its name from now on, and is written once.
    before = files(locked.root / "smoke_tests")
    assert locked.run("new", "another", "--like", "tiny", "--family", family).returncode == 0
    assert files(locked.root / "smoke_tests") == before


def test_a_family_that_exists_is_used(locked: TestCheckout) -> None:
    before = files(locked.root / "smoke_tests")
    assert locked.run("new", "other", "--like", "tiny", "--family", "qwen2_vl").returncode == 0
    model = environments.read(Checkout(locked.root), "other").stack.model
    assert (model.family, model.class_) == ("qwen2_vl", "Qwen2VLForConditionalGeneration")
    assert files(locked.root / "smoke_tests") == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny", "--like", "tiny"], "environments/tiny: already exists; choose another name"),
        (["Other", "--like", "tiny"], "invalid environment name 'Other': use lower-case letters, "),
        (["stacks", "--like", "tiny"], "environments/stacks: already exists; choose another name, or remove it"),
        (["stale", "--like", "tiny"], "lockfiles/stale: already exists; choose another name, or remove it"),
        (["other", "--like", "tidy"], "environments/tidy: environment not found; did you mean tiny? "),
        (["other", "--like", "tiny", "--class", "X"], "--class: expected --family with it, found none; "),
        (["other", "--like", "tiny", "--family", "x"], "--family x: expected --class with a new family, found none; "),
        (["other", "--like", "tiny", "--family", "../x", "--class", "X"], "--family '../x': expected model_type of a "),
        (["other", "--like", "tiny", "--family", "x", "--class", "a b"], "--class 'a b': expected the name of a class "),
        (
            ["other", "--like", "tiny", "--family", "vision_encoder_decoder"],
            "--family vision_encoder_decoder: expected vision-encoder-decoder, as in smoke_tests/families/",
        ),
        (
            ["other", "--like", "tiny", "--family", "qwen2_vl", "--class", "X"],
            "--class X: expected Qwen2VLForConditionalGeneration, as in smoke_tests/families/qwen2_vl.py; drop --class",
        ),
    ],
)
def test_nothing_is_written_where_the_command_is_wrong(locked: TestCheckout, arguments: list[str], message: str) -> None:
    for folder in ("environments/stacks", "lockfiles/stale"):
        (locked.root / folder).mkdir()
    before = files(locked.root)
    assert locked.refused("new", *arguments).startswith(f"smokehouse: {message}")
    assert files(locked.root) == before


def test_what_was_written_is_removed_where_the_rest_fails(locked: TestCheckout) -> None:
    text = locked.stack.read_text()
    tables = {'[model]\nfamily = "qwen2_5_vl"\nclass = "Qwen2_5_VLForConditionalGeneration"\n': ""}
    for old, new in tables.items():
        locked.edit(locked.stack, old, new)
    locked.stack.write_text(
        f'model = {{ family = "qwen2_5_vl", class = "{text.split(chr(34))[3]}" }}\n' + locked.stack.read_text()
    )
    before = files(locked.root)
    said = locked.refused("new", "other", "--like", "tiny", "--family", "x", "--class", "X")
    assert said == (
        "smokehouse: environments/tiny/stack.toml: expected [model] with family and class in lines of their own; write it so"
    )
    assert files(locked.root) == before
    assert not (locked.root / "environments" / "other").exists()


def test_an_environment_whose_lock_is_out_of_date_is_no_model(locked: TestCheckout) -> None:
    locked.edit(locked.environment, "alpha==1.0", "alpha>=1.0")
    assert "lock out of date" in locked.refused("new", "other", "--like", "tiny")
    assert not (locked.root / "environments" / "other").exists()
