"""Test what `check` says of folders that people really have: it names the one thing that is wrong, and what to do."""

import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lab
import pytest
import torch
from safetensors.torch import save_file

from smokehouse_loader import LoadError, check_checkpoint, load_model
from smokehouse_loader.__main__ import main

Change = Callable[[Path], object]


def said(folder: Path, capfd: pytest.CaptureFixture[str], *options: str) -> list[str]:
    """Return the lines that `check` prints about `folder`, which it must refuse."""
    code = main(["check", str(folder), *options])
    out, err = capfd.readouterr()
    assert (code, err) == (1, ""), out
    return [line for line in out.splitlines() if not line.startswith("matrix: ")]


def edit_json(path: Path, name: str, **changes: Any) -> None:
    """Change values in a JSON file of a checkpoint; None removes one."""
    file = path / name
    found = json.loads(file.read_text()) if file.is_file() else {}
    found = {key: value for key, value in (found | changes).items() if value is not None}
    file.write_text(json.dumps(found))


def configured(**changes: Any) -> Change:
    return lambda path: edit_json(path, "config.json", **changes)


def described(name: str, **contents: Any) -> Change:
    return lambda path: edit_json(path, name, **contents)


def tensors_named(rename: Callable[[str], str]) -> Change:
    """Return a damage that writes the checkpoint again with other names."""

    def change(path: Path) -> None:
        tensors = {rename(name): tensor for name, tensor in lab.stored_tensors(path).items()}
        for file in path.glob("model-*"):
            file.unlink()
        lab.write_shards(path, [tensors])

    return change


def tensors_cast(dtype: torch.dtype) -> Change:
    """Return a damage that stores the weights of one tensor in another dtype."""

    def change(path: Path) -> None:
        lab.edit(path, lab.MISSING_KEY, lambda tensors: tensors.update({lab.MISSING_KEY: tensors[lab.MISSING_KEY].to(dtype)}))

    return change


def tensors_added(**more: torch.Tensor) -> Change:
    def change(path: Path) -> None:
        lab.edit(path, lab.MISSING_KEY, lambda tensors: tensors.update(more))
        lab.reindex(path, lambda names: names.update(dict.fromkeys(more, names[lab.MISSING_KEY])))

    return change


def tensors_lost(*names: str) -> Change:
    """Return a damage that removes tensors from shards and index."""

    def change(path: Path) -> None:
        for name in names:
            lab.edit(path, name, lambda tensors, name=name: tensors.pop(name))  # type: ignore[misc]
            lab.reindex(path, lambda weight_map, name=name: weight_map.pop(name))  # type: ignore[misc]

    return change


def bom(path: Path) -> None:
    (path / "config.json").write_bytes(b"\xef\xbb\xbf" + (path / "config.json").read_bytes())


def utf16(path: Path) -> None:
    (path / "config.json").write_bytes((path / "config.json").read_text().encode("utf-16"))


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n"

FOLDERS: dict[str, tuple[Change, str, tuple[str, ...]]] = {
    "no config": (
        lambda path: (path / "config.json").unlink(),
        "not-a-checkpoint",
        ("config.json: not found", "copy config.json"),
    ),
    "a config that is a pointer": (lambda path: (path / "config.json").write_bytes(LFS), "not-a-checkpoint", ("git lfs pull",)),
    "a list as config": (lambda path: (path / "config.json").write_text("[1]"), "not-a-checkpoint", ("JSON object",)),
    "a config with a byte-order mark": (bom, "not-a-checkpoint", ("byte-order mark", "save it again as UTF-8")),
    "a config in UTF-16": (utf16, "not-a-checkpoint", ("byte-order mark", "save it again as UTF-8")),
    "a config of diffusers": (
        configured(model_type=None, _class_name="UNet2DConditionModel"),
        "not-a-checkpoint",
        ("found one of diffusers (UNet2DConditionModel), not installed; install diffusers",),
    ),
    "no model type": (
        configured(model_type=None),
        "no-model-type",
        ('add "model_type": "qwen2_5_vl"', "Qwen2_5_VLForConditionalGeneration"),
    ),
    "no model type, unknown class": (
        configured(model_type=None, architectures=["Nobodys"]),
        "no-model-type",
        ("copy config.json from the checkpoint that it was trained from",),
    ),
    "LLaVA's own code": (configured(model_type="llava_qwen"), "model-type-of-other-code", ("'llava_qwen'", "LLaVA-NeXT")),
    "a type that nobody has": (
        configured(model_type="nobodys"),
        "unknown-model-type",
        ("'nobodys'", "load it with the code that"),
    ),
    "code that was not copied": (
        configured(model_type="nobodys", auto_map={"AutoConfig": "configuration_nobodys.Config"}),
        "remote-code",
        ("copy configuration_nobodys.py",),
    ),
    "architectures of another type": (
        configured(architectures=["Qwen2VLForConditionalGeneration"]),
        "contradicting-architectures",
        ("for model_type 'qwen2_vl', found 'qwen2_5_vl'", 'set architectures to ["Qwen2_5_VLForConditionalGeneration"]'),
    ),
    "a model type of other architectures": (
        configured(model_type="qwen2_vl"),
        "contradicting-architectures",
        ('set model_type to "qwen2_5_vl"',),
    ),
    "an image processor that nobody has": (
        described("preprocessor_config.json", image_processor_type="NobodysImageProcessor"),
        "image-processor-unknown",
        ("image_processor_type is 'NobodysImageProcessor'", "install the transformers that saved it"),
    ),
    "a processor that nobody has": (
        described("processor_config.json", processor_class="NobodysProcessor"),
        "image-processor-unknown",
        ("processor_class is 'NobodysProcessor'",),
    ),
    "a tokenizer that nobody has": (
        described("tokenizer_config.json", tokenizer_class="NobodysTokenizer"),
        "tokenizer-class-missing",
        ("tokenizer_class is 'NobodysTokenizer'",),
    ),
    "a tokenizer that is a pointer": (
        lambda path: (path / "tokenizer.json").write_bytes(LFS),
        "not-a-checkpoint",
        ("tokenizer.json", "git lfs pull"),
    ),
    "GPTQ": (configured(quantization_config={"quant_method": "gptq", "bits": 4}), "quantised", ("(gptq, 4 bits)",)),
    "GPTQ without a word": (
        tensors_added(**{f"x.{part}": torch.ones(2) for part in ("qweight", "qzeros", "scales", "g_idx")}),
        "quantised",
        ("(gptq)", "copy config.json from the quantised checkpoint"),
    ),
    "AWQ without a word": (
        tensors_added(**{f"x.{part}": torch.ones(2) for part in ("qweight", "qzeros", "scales")}),
        "quantised",
        ("(awq)",),
    ),
    "bitsandbytes without a word": (tensors_added(**{"x.weight.absmax": torch.ones(2)}), "quantised", ("bitsandbytes",)),
    "FP8 without scales": (tensors_cast(torch.float8_e4m3fn), "quantised", ("(fp8, F8_E4M3)", "quantization_config")),
    "FP8 without a word": (tensors_added(**{"x.weight_scale_inv": torch.ones(2)}), "quantised", ("(fp8)",)),
    "a compiled model": (
        tensors_named(lambda name: f"_orig_mod.{name}"),
        "wrapped-keys",
        ("'_orig_mod.'", "torch.compile", "remove '_orig_mod.' from the keys"),
    ),
    "a model of DDP": (tensors_named(lambda name: f"module.{name}"), "wrapped-keys", ("'module.'", "unwrap_model")),
    "a merged PeftModel": (
        tensors_named(lambda name: f"base_model.model.{name}"),
        "wrapped-keys",
        ("'base_model.model.'", "merge_and_unload()"),
    ),
    "an adapter inside": (
        tensors_named(lambda name: name.replace("q_proj.weight", "q_proj.base_layer.weight")),
        "wrapped-keys",
        ("merge_and_unload()",),
    ),
    "endless layers": (configured(num_hidden_layers=10**9), "wrong-shape", ("num_hidden_layers", "1000000000")),
    "no output embedding": (
        tensors_lost("lm_head.weight"),
        "output-embedding-missing",
        ("if the model ties its embeddings", "otherwise get the complete checkpoint"),
    ),
    "another model's keys": (
        tensors_named(lambda name: name.replace("mlp", "ffn")),
        "missing-key",
        ("use the config.json and the class that the weights were saved with",),
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folder(name: str, slim: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    damage, failure, words = FOLDERS[name]
    folder = lab.damaged(slim, tmp_path / "folder", damage)
    lines = said(folder, capfd)
    assert lines[0].endswith(f"[{failure}]")
    assert all(word in lines[0] for word in words), lines[0]
    assert_one_cure(lines)
    assert main(["check", str(folder), "--json"]) == 1
    assert json.loads(capfd.readouterr().out)["problems"][0]["failure"] == failure


def assert_one_cure(lines: list[str]) -> None:
    """All lines of a problem of fit end alike: a second cure for the same cause would contradict the first."""
    fit = [line for line in lines if line.endswith(("[missing-key]", "[dropped-weights]", "[wrong-shape]"))]
    assert len({line.rpartition(" [")[0].rpartition("; ")[2] for line in fit}) <= 1, lines


def test_sound_neighbours_change_nothing(slim: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Files as they lie beside a sound checkpoint, and code that its model type does not need."""

    def neighbours(path: Path) -> None:
        edit_json(
            path, "preprocessor_config.json", image_processor_type="Qwen2VLImageProcessor", processor_class="Qwen2VLProcessor"
        )
        edit_json(path, "processor_config.json", processor_class="Qwen2_5_VLProcessor")
        edit_json(path, "tokenizer_config.json", tokenizer_class="Qwen2Tokenizer", processor_class="Qwen2_5_VLProcessor")
        edit_json(path, "config.json", auto_map={"AutoConfig": "configuration_old.Config"})
        (path / "generation_config.json").write_text("{}")
        (path / "training_args.bin").write_bytes(b"\x80\x02.")

    folder = lab.damaged(slim, tmp_path / "sound", neighbours)
    assert main(["check", str(folder)]) == 0, capfd.readouterr().out


def test_processor_as_transformers_5_saves_it(slim: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It has the image processor inside, for which older ones look in a file of its own."""
    inside = {"image_processor_type": "Qwen2VLImageProcessor"}
    change = described("processor_config.json", processor_class="Qwen2_5_VLProcessor", image_processor=inside)
    folder = lab.damaged(slim, tmp_path / "folder", change)
    if lab.version("transformers") >= (4, 57):
        assert main(["check", str(folder)]) == 0
        return
    [line] = said(folder, capfd)
    assert line.endswith("[processor-files-missing]")
    edit_json(folder, "preprocessor_config.json", **inside)
    assert main(["check", str(folder)]) == 0


@pytest.mark.parametrize(("sides", "failure"), [((8, 0), "embeddings-of-another-vocabulary"), ((0, 8), "wrong-shape")])
def test_embeddings_of_another_size(
    slim: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], sides: tuple[int, int], failure: str
) -> None:
    """Of more tokens it is the vocabulary; of other rows it is another model."""

    def padded(path: Path) -> None:
        tensors = lab.stored_tensors(path)
        for name in [name for name in tensors if name.endswith(("embed_tokens.weight", "lm_head.weight"))]:
            rows, columns = tensors[name].shape
            tensors[name] = torch.zeros(rows + sides[0], columns + sides[1], dtype=tensors[name].dtype)
        for file in path.glob("model-*"):
            file.unlink()
        lab.write_shards(path, [tensors])

    [line] = said(lab.damaged(slim, tmp_path / "folder", padded), capfd)
    assert line.endswith(f"[{failure}]"), line


def test_image_processor_that_no_release_has(slim: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import transformers

    change = described("preprocessor_config.json", image_processor_type="Qwen2_5_VLImageProcessor")
    folder = lab.damaged(slim, tmp_path / "folder", change)
    assert not hasattr(transformers, "Qwen2_5_VLImageProcessor")
    [line] = said(folder, capfd)
    assert 'set image_processor_type to "Qwen2VLImageProcessor"' in line
    edit_json(folder, "preprocessor_config.json", image_processor_type="Qwen2VLImageProcessor")
    assert main(["check", str(folder)]) == 0


def test_newer_layout_has_one_cure(slim: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = lab.damaged(slim, tmp_path / "later", lab.later_layout)
    if lab.version("transformers") >= (4, 52):
        assert main(["check", str(folder)]) == 0
        return
    [line] = said(folder, capfd)
    assert "use transformers 4.52 or later" in line
    assert line.endswith("[key-layout]")


def trocr(path: Path, rename: Callable[[str], str]) -> Path:
    """Write a tiny TrOCR with the keys that `rename` makes of those of transformers before 5.9."""
    import transformers

    encoder = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32
    )
    decoder = transformers.TrOCRConfig(
        vocab_size=32, d_model=16, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32, max_position_embeddings=16
    )
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    path.mkdir()
    config.architectures = ["VisionEncoderDecoderModel"]
    config.save_pretrained(path)
    state = transformers.VisionEncoderDecoderModel(config).state_dict()
    # Tied tensors are stored once, and published checkpoints have no pooler.
    stored = {id(tensor.untyped_storage()): name for name, tensor in reversed(state.items()) if "pooler" not in name}
    names = {vision_name(name, EARLIER_VIT): state[name] for name in stored.values()}
    save_file({rename(name): tensor.clone() for name, tensor in names.items()}, path / "model.safetensors", {"format": "pt"})
    return path


# Of names in ViT's layers: what transformers 5.9 and later have, and what those before had.
EARLIER_VIT = {
    "encoder.layers.": "encoder.encoder.layer.",
    "attention.q_proj.": "attention.attention.query.",
    "attention.k_proj.": "attention.attention.key.",
    "attention.v_proj.": "attention.attention.value.",
    "attention.o_proj.": "attention.output.dense.",
    "mlp.fc1.": "intermediate.dense.",
    "mlp.fc2.": "output.dense.",
}
LATER_VIT = {earlier: later for later, earlier in EARLIER_VIT.items()}


def vision_name(name: str, pieces: dict[str, str]) -> str:
    """Return the name of a tensor in the other layout of ViT, where it is in one of its layers."""
    if name.startswith(("encoder.layers.", "encoder.encoder.layer.")):
        for old, new in pieces.items():
            name = name.replace(old, new)
    return name


def test_later_layout_of_a_vision_encoder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    earlier = trocr(tmp_path / "earlier", lambda name: name)
    later = trocr(tmp_path / "later", lambda name: vision_name(name, LATER_VIT))
    assert len(check_checkpoint(later).checkpoint.tensors) > 40
    assert main(["check", str(earlier)]) == 0, capfd.readouterr()
    if lab.version("transformers") >= (5, 9):
        assert main(["check", str(later)]) == 0, capfd.readouterr()
        return
    capfd.readouterr()
    [line] = said(later, capfd)
    assert "found that of transformers 5.9 and later" in line
    assert "use transformers 5.9 or later, which loads both" in line
    assert line.endswith("[key-layout]")
    # A layer that neither layout has is another problem than the layout.
    tensors = {key.replace(".layers.1.", ".layers.7."): tensor for key, tensor in stored(later).items()}
    save_file(tensors, later / "model.safetensors", {"format": "pt"})
    assert "[key-layout]" not in "".join(said(later, capfd))


def stored(path: Path) -> dict[str, Any]:
    """Return the tensors of a checkpoint that is one file."""
    from safetensors.torch import load_file

    found: dict[str, Any] = load_file(path / "model.safetensors")
    return found


# Adapters


def adapter(path: Path, base: str | None, *, rows: int = 64, vocabulary: int | None = None, module: str = "q_proj") -> Path:
    """Write a LoRA adapter as PEFT does, for a model whose language model is `rows` wide."""
    path.mkdir()
    config = {
        "peft_type": "LORA",
        "r": 8,
        "base_model_name_or_path": base,
        "target_modules": [module],
        "task_type": "CAUSAL_LM",
    }
    (path / "adapter_config.json").write_text(json.dumps(config))
    at = f"base_model.model.model.layers.0.self_attn.{module}"
    tensors = {f"{at}.lora_A.weight": torch.ones(8, rows), f"{at}.lora_B.weight": torch.ones(rows, 8)}
    if vocabulary:
        tensors["base_model.model.model.embed_tokens.weight"] = torch.ones(vocabulary, rows)
    save_file(tensors, path / "adapter_model.safetensors")
    return path


def test_adapter(slim: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = adapter(tmp_path / "lora", "Qwen/Qwen2.5-VL-3B-Instruct")
    [line] = said(folder, capfd)
    assert "found an adapter of Qwen/Qwen2.5-VL-3B-Instruct (LORA, rank 8)" in line
    assert "load Qwen/Qwen2.5-VL-3B-Instruct with load_model, then peft.PeftModel.from_pretrained" in line
    with pytest.raises(LoadError, match="adapter of Qwen"):
        load_model(folder)
    [line] = said(adapter(tmp_path / "local", str(slim)), capfd)  # its base is here, and it fits
    assert line.endswith("[adapter-folder]")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rows": 32}, ("has shape [8, 32]", "other sizes")),
        ({"vocabulary": 322}, ("is for 322 tokens", "has 320", "resize_token_embeddings(322)")),
        ({"module": "query"}, ("does not have", "of another class")),
    ],
)
def test_adapter_of_another_base(
    slim: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], options: Any, words: tuple[str, ...]
) -> None:
    [line] = said(adapter(tmp_path / "lora", str(slim), **options), capfd)
    assert line.endswith("[adapter-of-another-base]")
    assert all(word in line for word in words), line


def test_adapter_names_modules_as_newer_versions_do(slim: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = adapter(tmp_path / "lora", str(slim))
    at = "base_model.model.model.language_model.layers.1.mlp.down_proj"
    save_file(
        {f"{at}.lora_A.weight": torch.ones(8, 128), f"{at}.lora_B.weight": torch.ones(64, 8)},
        folder / "adapter_model.safetensors",
    )
    [line] = said(folder, capfd)
    assert line.endswith("[adapter-folder]")


@pytest.mark.parametrize(
    ("base", "words"), [(None, "expected a model, found none"), ("/gone/base", "folder /gone/base not found")]
)
def test_adapter_without_base(tmp_path: Path, capfd: pytest.CaptureFixture[str], base: str | None, words: str) -> None:
    [line] = said(adapter(tmp_path / "lora", base), capfd)
    assert words in line


def test_damaged_adapter(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = adapter(tmp_path / "lora", "some/base")
    file = folder / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-8])
    assert said(folder, capfd)[0].endswith("[truncated-shard]")
    save_file({"base_model.model.a.lora_A.weight": torch.empty(0)}, file)
    [line] = said(folder, capfd)
    assert line.endswith("[adapter-partitioned]")
    assert "Trainer.save_model" in line
    file.write_bytes(whole)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", ')
    [line] = said(folder, capfd)
    assert "adapter_config.json: invalid JSON" in line
    assert "copy it again from where the adapter was saved" in line
    file.unlink()
    assert "no adapter_model.safetensors" in said(folder, capfd)[0]


def test_adapter_beside_a_whole_model(slim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With PEFT, from_pretrained loads the base that the adapter names, and not the weights beside it."""
    folder = lab.damaged(slim, tmp_path / "both", described("adapter_config.json", base_model_name_or_path="some/base"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert check_checkpoint(folder).ok
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "peft")
    [problem] = check_checkpoint(folder).problems
    assert problem.failure == "adapter-folder"
    assert "loads some/base and the adapter" in problem.what


# Folders of a Trainer


def trainers(path: Path, ranks: int = 2, lost: int | None = None) -> Path:
    """Write the folder of a Trainer under ZeRO-3 that gathered nothing, with files of DeepSpeed for each of `ranks`."""
    step = path / "global_step9"
    step.mkdir(parents=True)
    for rank in set(range(ranks)) - {lost}:
        state = {"module": {}, "param_shapes": [{"model.norm.weight": torch.Size([64])}]}
        torch.save(state, step / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        torch.save({}, step / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    (path / "latest").write_text("global_step9")
    (path / "zero_to_fp32.py").write_text("")
    (path / "trainer_state.json").write_text("{}")
    (path / "config.json").write_text(json.dumps(lab.config(32)))
    return path


def test_folder_of_a_trainer(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = trainers(tmp_path / "checkpoint-9")
    [line] = said(folder, capfd)
    assert "a Trainer's with ZeRO partitions that are not consolidated" in line
    assert "zero_to_fp32.py . ." in line
    (folder / "latest").unlink()
    [line] = said(folder, capfd)
    assert line.endswith("[engine-checkpoint]")
    (folder / "trainer_state.json").unlink()
    [line] = said(folder, capfd)
    assert "found a DeepSpeed engine's" in line


def test_folder_of_a_trainer_without_all_ranks(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines = said(trainers(tmp_path / "checkpoint-9", ranks=4, lost=2), capfd)
    assert "model states of 3 of at least 4 ranks (not of 2)" in lines[0]
    folder = trainers(tmp_path / "checkpoint-10")
    for file in folder.glob("global_step9/*"):
        file.unlink()
    [line] = said(folder, capfd)
    assert "copy the global_step folder" in line


def test_output_folder_of_a_trainer(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for step in (9, 10, 100):
        trainers(tmp_path / f"checkpoint-{step}")
    [line] = said(tmp_path, capfd)
    assert f"pass one of them, the last is {tmp_path / 'checkpoint-100'}" in line


def test_output_folder_of_adapters(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for step in (9, 10, 100):
        adapter(tmp_path / f"checkpoint-{step}", "some/base")
    [line] = said(tmp_path, capfd)
    assert f"pass one of them, the last is {tmp_path / 'checkpoint-100'}" in line


def test_variant_is_checked_where_it_is_named(slim: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(slim / "config.json", folder)
    save_file(lab.stored_tensors(slim), folder / "model.fp16.safetensors", metadata={"format": "pt"})
    assert "--variant fp16" in said(folder, capfd)[0]
    assert main(["check", str(folder), "--variant", "fp16"]) == 0


def test_output_embedding_that_the_class_does_not_need(slim: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Weights that a base model saved lack no output embedding; before 4.52 that class drops the vision tower instead."""

    def base(path: Path) -> None:
        tensors_lost("lm_head.weight")(path)
        edit_json(path, "config.json", architectures=["Qwen2_5_VLModel"])

    code = main(["check", str(lab.damaged(slim, tmp_path / "folder", base)), "--json"])
    problems = json.loads(capfd.readouterr().out)["problems"]
    assert (code, {one["failure"] for one in problems}) == (
        (0, set()) if lab.version("transformers") >= (4, 52) else (1, {"dropped-weights"})
    )


# Checkpoints of real sizes: what their publishers' configurations give, as sparse files


def sparse(path: Path, shapes: dict[str, tuple[int, ...]], shards: int) -> None:
    """Write a checkpoint in BF16 whose files have their size and no contents."""
    weight_map = {}
    names = list(shapes)
    for number in range(shards):
        name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        header, at = {}, 0
        for key in names[number::shards]:
            size = 2 * torch.Size(shapes[key]).numel()
            header[key] = {"dtype": "BF16", "shape": list(shapes[key]), "data_offsets": [at, at + size]}
            at += size
            weight_map[key] = name
        text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
        with (path / name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + at)
    (path / lab.INDEX).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))


def linear(name: str, out: int, into: int, *, bias: bool) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into)} | ({f"{name}.bias": (out,)} if bias else {})


def language(
    layers: int, width: int, inner: int, keys: int, vocabulary: int, prefix: str, *, qwen3: bool
) -> dict[str, tuple[int, ...]]:
    """Return the tensors of a Qwen2 or Qwen3 language model; `keys` is the width of its keys and values."""
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}embed_tokens.weight": (vocabulary, width), f"{prefix}norm.weight": (width,)}
    for layer in range(layers):
        at = f"{prefix}layers.{layer}"
        shapes |= {f"{at}.{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
        for name, out in (("q", width), ("k", keys), ("v", keys)):
            shapes |= linear(f"{at}.self_attn.{name}_proj", out, width, bias=not qwen3)
        shapes |= linear(f"{at}.self_attn.o_proj", width, width, bias=False)
        if qwen3:
            shapes |= {f"{at}.self_attn.{name}_norm.weight": (128,) for name in "qk"}
        shapes |= {f"{at}.mlp.{name}_proj.weight": (inner, width) for name in ("gate", "up")}
        shapes[f"{at}.mlp.down_proj.weight"] = (width, inner)
    return shapes


def qwen2_5_vl(layers: int, width: int, inner: int, keys: int, vocabulary: int, *, tied: bool) -> dict[str, tuple[int, ...]]:
    """Return the tensors of a published Qwen2.5-VL."""
    shapes: dict[str, tuple[int, ...]] = {
        "visual.patch_embed.proj.weight": (1280, 3, 2, 14, 14),
        "visual.merger.ln_q.weight": (1280,),
    }
    shapes |= linear("visual.merger.mlp.0", 5120, 5120, bias=True) | linear("visual.merger.mlp.2", width, 5120, bias=True)
    for block in range(32):
        at = f"visual.blocks.{block}"
        shapes |= {f"{at}.norm1.weight": (1280,), f"{at}.norm2.weight": (1280,)}
        shapes |= linear(f"{at}.attn.qkv", 3840, 1280, bias=True) | linear(f"{at}.attn.proj", 1280, 1280, bias=True)
        shapes |= linear(f"{at}.mlp.gate_proj", 3420, 1280, bias=True) | linear(f"{at}.mlp.up_proj", 3420, 1280, bias=True)
        shapes |= linear(f"{at}.mlp.down_proj", 1280, 3420, bias=True)
    shapes |= language(layers, width, inner, keys, vocabulary, "model.", qwen3=False)
    return shapes | ({} if tied else {"lm_head.weight": (vocabulary, width)})


def qwen2_5_vl_config(layers: int, width: int, inner: int, heads: int, vocabulary: int, *, tied: bool) -> dict[str, Any]:
    vision: dict[str, Any] = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "patch_size": 14,
    }
    vision |= {"out_hidden_size": width, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112}
    vision |= {"fullatt_block_indexes": [7, 15, 23, 31], "model_type": "qwen2_5_vl"}
    more: dict[str, Any] = {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }
    more |= {"vocab_size": vocabulary, "tie_word_embeddings": tied, "torch_dtype": "bfloat16", "vision_config": vision}
    more |= {"num_key_value_heads": 4 if width != 2048 else 2, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}
    return lab.config(1280, **more) | {"transformers_version": "4.41.2"}


def qwen3_vl() -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Return config.json and tensors of Qwen3-VL-8B."""
    text = {
        "model_type": "qwen3_vl_text",
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "head_dim": 128,
    }
    text |= {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 151936, "dtype": "bfloat16"}
    text |= {
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
        "rope_theta": 5000000,
    }
    vision = {
        "model_type": "qwen3_vl",
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_heads": 16,
        "in_channels": 3,
    }
    vision |= {"num_position_embeddings": 2304, "out_hidden_size": 4096, "patch_size": 16, "spatial_merge_size": 2}
    vision |= {"temporal_patch_size": 2, "deepstack_visual_indexes": [8, 16, 24]}
    config = {"architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl", "tie_word_embeddings": False}
    config |= {"text_config": text, "vision_config": vision, "transformers_version": "4.57.0.dev0"}
    shapes: dict[str, tuple[int, ...]] = {
        "model.visual.patch_embed.proj.weight": (1152, 3, 2, 16, 16),
        "model.visual.patch_embed.proj.bias": (1152,),
        "model.visual.pos_embed.weight": (2304, 1152),
    }
    for place, norm in (("merger", 1152), *((f"deepstack_merger_list.{number}", 4608) for number in range(3))):
        at = f"model.visual.{place}"
        shapes |= {f"{at}.norm.weight": (norm,), f"{at}.norm.bias": (norm,)}
        shapes |= linear(f"{at}.linear_fc1", 4608, 4608, bias=True) | linear(f"{at}.linear_fc2", 4096, 4608, bias=True)
    for block in range(27):
        at = f"model.visual.blocks.{block}"
        shapes |= {f"{at}.norm{number}.{part}": (1152,) for number in (1, 2) for part in ("weight", "bias")}
        shapes |= linear(f"{at}.attn.qkv", 3456, 1152, bias=True) | linear(f"{at}.attn.proj", 1152, 1152, bias=True)
        shapes |= linear(f"{at}.mlp.linear_fc1", 4304, 1152, bias=True) | linear(f"{at}.mlp.linear_fc2", 1152, 4304, bias=True)
    shapes |= language(36, 4096, 12288, 1024, 151936, "model.language_model.", qwen3=True)
    return config, shapes | {"lm_head.weight": (151936, 4096)}


def gemma3() -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Return config.json and tensors of Gemma 3 27B, as it was published for transformers 4.50."""
    text = {
        "model_type": "gemma3_text",
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "num_hidden_layers": 62,
        "head_dim": 128,
    }
    text |= {"num_attention_heads": 32, "num_key_value_heads": 16, "vocab_size": 262208}
    vision = {"model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27}
    vision |= {"num_attention_heads": 16, "patch_size": 14, "image_size": 896, "vision_use_head": False}
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "mm_tokens_per_image": 256}
    config |= {"text_config": text, "vision_config": vision, "transformers_version": "4.50.0.dev0"}
    at = "language_model.model."
    shapes: dict[str, tuple[int, ...]] = {f"{at}embed_tokens.weight": (262208, 5376), f"{at}norm.weight": (5376,)}
    for layer in range(62):
        one = f"{at}layers.{layer}."
        norms = ("input", "post_attention", "pre_feedforward", "post_feedforward")
        shapes |= {f"{one}{name}_layernorm.weight": (5376,) for name in norms}
        shapes |= {f"{one}self_attn.{name}_norm.weight": (128,) for name in "qk"}
        shapes |= {f"{one}self_attn.q_proj.weight": (4096, 5376), f"{one}self_attn.o_proj.weight": (5376, 4096)}
        shapes |= {f"{one}self_attn.{name}_proj.weight": (2048, 5376) for name in "kv"}
        shapes |= {f"{one}mlp.{name}_proj.weight": (21504, 5376) for name in ("gate", "up")}
        shapes[f"{one}mlp.down_proj.weight"] = (5376, 21504)
    at = "vision_tower.vision_model."
    shapes |= {f"{at}embeddings.patch_embedding.weight": (1152, 3, 14, 14), f"{at}embeddings.patch_embedding.bias": (1152,)}
    shapes[f"{at}embeddings.position_embedding.weight"] = (4096, 1152)
    shapes |= {f"{at}post_layernorm.{part}": (1152,) for part in ("weight", "bias")}
    for layer in range(27):
        one = f"{at}encoder.layers.{layer}."
        shapes |= {f"{one}layer_norm{number}.{part}": (1152,) for number in (1, 2) for part in ("weight", "bias")}
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear(f"{one}self_attn.{name}", 1152, 1152, bias=True)
        shapes |= linear(f"{one}mlp.fc1", 4304, 1152, bias=True) | linear(f"{one}mlp.fc2", 1152, 4304, bias=True)
    shapes |= {"multi_modal_projector.mm_input_projection_weight": (1152, 5376)}
    return config, shapes | {"multi_modal_projector.mm_soft_emb_norm.weight": (1152,)}


def published(name: str) -> tuple[dict[str, Any], dict[str, tuple[int, ...]], int]:
    """Return config.json, tensors and number of shards of a published checkpoint."""
    if name == "qwen3-vl-8b":
        return *qwen3_vl(), 4
    if name == "gemma-3-27b":
        return *gemma3(), 12
    layers, width, inner, heads, keys, vocabulary, tied, shards = {
        "qwen2.5-vl-3b": (36, 2048, 11008, 16, 256, 151936, True, 2),
        "qwen2.5-vl-7b": (28, 3584, 18944, 28, 512, 152064, False, 5),
    }[name]
    config = qwen2_5_vl_config(layers, width, inner, heads, vocabulary, tied=tied)
    return config, qwen2_5_vl(layers, width, inner, keys, vocabulary, tied=tied), shards


@pytest.mark.parametrize(
    ("name", "tensors", "since"),
    [
        ("qwen2.5-vl-3b", 824, (4, 49)),
        ("qwen2.5-vl-7b", 729, (4, 49)),
        ("qwen3-vl-8b", 750, (4, 57)),
        ("gemma-3-27b", 1247, (4, 50)),
    ],
)
def test_published_checkpoint(
    name: str, tensors: int, since: tuple[int, int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A published checkpoint is accepted by every transformers that knows it, and by the others refused for that reason."""
    config, shapes, shards = published(name)
    assert len(shapes) == tensors
    (tmp_path / "config.json").write_text(json.dumps(config))
    sparse(tmp_path, shapes, shards)
    code = main(["check", str(tmp_path)])
    printed = capfd.readouterr().out.splitlines(keepends=True)
    out = "".join(line for line in printed if not line.startswith("matrix: "))
    if lab.version("transformers") < since:
        assert (code, out.count("\n")) == (1, 1)
        assert "install transformers 4.5" in out
        return
    assert code == 0, out[:2000]
    assert f"{tensors} tensors" in out
    os.truncate(tmp_path / f"model-00001-of-{shards:05d}.safetensors", 10**9)
    assert main(["check", str(tmp_path)]) == 1
