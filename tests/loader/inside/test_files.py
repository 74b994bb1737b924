"""Test the inspection of checkpoints: it finds every tensor and accepts no damaged file (property tests)."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lab
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from smokehouse_loader import check_checkpoint, compare, inspect_checkpoint, keys, load_model

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]
NAMES = st.text("abcdefg.01_é", min_size=1, max_size=12).filter(lambda name: name != "__metadata__")
# No shape [0]: a partitioned model saves that, so it is a problem.
SHAPES = st.lists(st.integers(1, 5), max_size=4).map(tuple)


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """Draw random tensors with random names."""
    found = {}
    for name in draw(st.lists(NAMES, min_size=1, max_size=8, unique=True)):
        shape = draw(SHAPES)
        values = torch.randint(0, 100, shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
        found[name] = values.to(draw(st.sampled_from(DTYPES)))
    return found


@st.composite
def sharded(draw: st.DrawFn) -> list[dict[str, torch.Tensor]]:
    """Draw random tensors in one to three shards, none of them empty."""
    shards: list[dict[str, torch.Tensor]] = [{} for _ in range(draw(st.integers(1, 3)))]
    for name, tensor in draw(tensors()).items():
        shards[draw(st.integers(0, len(shards) - 1))][name] = tensor
    return [shard for shard in shards if shard]


@given(sharded(), st.booleans())
def test_every_tensor_is_found(shards: list[dict[str, torch.Tensor]], single: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        if single:
            shards = [{name: tensor for shard in shards for name, tensor in shard.items()}]
            save_file(shards[0], path / "model.safetensors")
        else:
            lab.write_shards(path, shards)
        found = inspect_checkpoint(path)
        assert found.problems == ()
        actual = {tensor.name: (tensor.shape, tensor.dtype, tensor.file.name) for tensor in found.tensors.values()}
        expected = {}
        for file in path.glob("*.safetensors"):
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - safe_open is not a mapping
                    part = opened.get_slice(name)
                    expected[name] = (tuple(part.get_shape()), part.get_dtype(), file.name)
        assert actual == expected
        with compare.Reader(found) as reader:
            for shard in shards:
                for name, tensor in shard.items():
                    assert compare.same_bits(reader.whole(name), tensor)


@given(sharded(), st.data())
def test_truncated_or_padded_file_is_refused(shards: list[dict[str, torch.Tensor]], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        lab.write_shards(path, shards)
        file = data.draw(st.sampled_from(sorted(path.glob("*.safetensors"))))
        content = file.read_bytes()
        if data.draw(st.booleans()):
            file.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
        else:
            file.write_bytes(content + data.draw(st.binary(min_size=1, max_size=9)))
        assert inspect_checkpoint(path).problems


@given(st.binary(max_size=200), st.booleans())
def test_arbitrary_bytes_raise_nothing(content: bytes, framed: bool) -> None:
    """Invalid files give problems, never an exception; safetensors opens every file without problems."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        file = path / "model.safetensors"
        file.write_bytes(len(content).to_bytes(8, "little") + content if framed else content)
        if not inspect_checkpoint(path).problems:
            with safe_open(file, framework="pt") as opened:
                assert opened.keys()


HEADERS = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**65) | st.text(max_size=5) | st.sampled_from(["F32", "BF16"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "a"]), inner)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["__metadata__", "a", "b"]), HEADERS), st.integers(0, 64))
def test_arbitrary_header_raises_nothing(header: dict[str, Any], size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        text = json.dumps(header).encode()
        Path(folder, "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"\1" * size)
        found = inspect_checkpoint(folder)
        assert found.problems or sum(tensor.elements for tensor in found.tensors.values())


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/../../b", "", 7, "a\0b", "..\\b"])
def test_index_may_not_list_files_outside_its_directory(slim: Path, tmp_path: Path, name: Any) -> None:
    path = lab.damaged(
        slim, tmp_path / "bad", lambda path: lab.reindex(path, lambda names: names.update({lab.PATCH_EMBED: name}))
    )
    [problem] = inspect_checkpoint(path).problems
    assert problem.failure == "inconsistent-index"
    assert "outside the checkpoint's directory" in problem.what


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "[" * 100_000, "<html>", "\xff"])
def test_invalid_index(slim: Path, tmp_path: Path, text: str) -> None:
    path = lab.damaged(slim, tmp_path / "bad", lambda path: (path / lab.INDEX).write_text(text, "latin-1"))
    [problem] = inspect_checkpoint(path).problems
    assert lab.INDEX in problem.where


def test_links_into_a_cache(slim: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    for number, file in enumerate(sorted(slim.iterdir())):
        (blobs / str(number)).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../blobs/{number}")
    assert inspect_checkpoint(snapshot).problems == ()
    gone = next(snapshot.glob("model-00002*"))
    gone.resolve().unlink()
    [problem] = inspect_checkpoint(snapshot).problems
    assert (problem.failure, problem.where) == ("missing-shard", str(gone))


def test_fifo_is_not_waited_for(slim: Path, tmp_path: Path) -> None:
    def fifo(path: Path) -> None:
        (path / "model-00002-of-00003.safetensors").unlink()
        os.mkfifo(path / "model-00002-of-00003.safetensors")

    [problem] = inspect_checkpoint(lab.damaged(slim, tmp_path / "bad", fifo)).problems
    assert problem.failure == "missing-shard"


# Random small models that transformers itself saved, and damage to them.


@st.composite
def models(draw: st.DrawFn) -> Any:
    """Draw the config of a language model of random size, with tied embeddings or not."""
    from transformers import Qwen2Config

    heads = draw(st.integers(1, 2))
    return Qwen2Config(
        architectures=["Qwen2ForCausalLM"],
        vocab_size=draw(st.integers(9, 40)),
        hidden_size=heads * 4 * draw(st.integers(1, 2)),
        intermediate_size=draw(st.integers(3, 9)),
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=heads,
        num_key_value_heads=1,
        tie_word_embeddings=draw(st.booleans()),
    )


def save(config: Any, folder: Path, shard_bytes: int) -> None:
    from transformers import Qwen2ForCausalLM

    Qwen2ForCausalLM(config).save_pretrained(folder, max_shard_size=shard_bytes)


@given(models(), st.integers(2000, 20_000))
def test_no_intact_checkpoint_is_refused(config: Any, shard_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save(config, Path(folder), shard_bytes)
        fit = check_checkpoint(folder)
        assert fit.problems == ()
        assert fit.class_name == "Qwen2ForCausalLM"
        model = load_model(folder, verify="bits", torch_dtype=torch.bfloat16)
        assert all(parameter.dtype == torch.bfloat16 for parameter in model.parameters())


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Save the checkpoint again as one file, with changed tensors."""
    found: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            found |= {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118 - safe_open is not a mapping
        file.unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    change(found)
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})


def damage(data: st.DataObject, config: Any) -> Callable[[dict[str, torch.Tensor]], None]:
    """Draw damage that shows in the names, shapes or dtypes of a checkpoint."""
    kind = data.draw(st.sampled_from(["lost", "added", "renamed", "reshaped", "cut", "emptied", "integers"]))

    def change(tensors: dict[str, torch.Tensor]) -> None:
        name = data.draw(st.sampled_from(sorted(tensors)))
        tensor = tensors[name]
        if kind == "lost":
            del tensors[name]
        elif kind == "added":
            tensors[f"{name}.more"] = torch.ones(3)
        elif kind == "renamed":
            tensors[name.replace("weight", "wait").replace("bias", "buyers")] = tensors.pop(name)
        elif kind == "reshaped":
            tensors[name] = tensor.reshape(1, *tensor.shape)
        elif kind == "cut":
            tensors[name] = tensor[:-1].clone()
        elif kind == "emptied":
            tensors[name] = torch.empty(0)
        else:
            tensors[name] = tensor.to(torch.int32)

    return change


@given(models(), st.data())
def test_no_damage_is_accepted(config: Any, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save(config, Path(folder), 10**9)
        rewrite(Path(folder), damage(data, config))
        fit = check_checkpoint(folder)
        assert fit.problems
        assert all(str(problem).count("\n") == 0 and problem.cure for problem in fit.problems)


@given(models(), st.data())
def test_every_bit_counts(config: Any, data: st.DataObject) -> None:
    """A bit that flips in memory is found, wherever it is, and nothing else is."""
    with tempfile.TemporaryDirectory() as folder:
        save(config, Path(folder), 5000)
        model = load_model(folder, torch_dtype=torch.float32)
        checkpoint = inspect_checkpoint(folder)
        plan: keys.Plan = keys.plan(model, checkpoint.tensors)
        assert compare.wrong_tensors(model, checkpoint, plan) == {}
        name = data.draw(st.sampled_from(sorted(plan.renamed)))
        values = compare.state_of(model)[name].detach().view(-1).view(torch.int32)
        at = data.draw(st.integers(0, len(values) - 1))
        values[at] ^= 1 << data.draw(st.integers(0, 30))
        assert compare.wrong_tensors(model, checkpoint, plan) == {name: f"differs in 1 of the {len(values)} elements held here"}
