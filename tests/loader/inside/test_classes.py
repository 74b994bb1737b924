"""Test which class loads which config, and whether a checkpoint fits it."""

import json
import re
from pathlib import Path
from typing import Any

import lab
import pytest
import torch

from smokehouse_loader import LoadError, check_checkpoint, load_model, register, resolve_model_class
from smokehouse_loader.__main__ import main
from smokehouse_loader.model_class import concrete_class, known_versions, read_config

# Renames the keys of a Qwen2.5-VL checkpoint from the older layout to the newer.
KEY_MAPPING = {"^visual": "model.visual", r"^model(?!\.(language_model|visual))": "model.language_model"}


def test_config_with_vision_gets_its_architecture(slim: Path) -> None:
    assert resolve_model_class(read_config(slim)).__name__ == "Qwen2_5_VLForConditionalGeneration"


@pytest.mark.parametrize("architectures", [None, [], ["NobodysModel"], ["Qwen2ForCausalLM"], ["torch"], [7]])
def test_architecture_that_does_not_fit_is_skipped(slim: Path, architectures: Any) -> None:
    config = read_config(slim)
    config.architectures = architectures
    assert resolve_model_class(config).__name__ == "Qwen2_5_VLForConditionalGeneration"


def test_text_config_gets_causal_lm() -> None:
    from transformers import LlamaConfig, Qwen2Config

    assert resolve_model_class(Qwen2Config(architectures=["Qwen2Model"])).__name__ == "Qwen2ForCausalLM"
    assert resolve_model_class(LlamaConfig()).__name__ == "LlamaForCausalLM"


def test_remedy_for_an_auto_class_is_not_the_class_that_refused(slim: Path) -> None:
    import transformers

    configs = (transformers.LlamaConfig(), "AutoModelForImageTextToText"), (read_config(slim), "AutoModelForCausalLM")
    for config, auto in configs:
        with pytest.raises(LoadError) as refused:
            concrete_class(auto, config)
        [finding] = refused.value.findings
        assert finding.failure == "wrong-auto-class"
        assert auto not in finding.cure
        found = finding.cure.rpartition(" or ")[2]
        assert concrete_class(found, config) is getattr(transformers, found)  # the remedy is accepted
    with pytest.raises(LoadError, match="register one with smokehouse_loader"):
        concrete_class("AutoModelForCausalLM", transformers.CLIPConfig())


def test_error_lists_what_was_tried() -> None:
    from transformers import CLIPConfig

    config = CLIPConfig(architectures=["NobodysModel"])
    with pytest.raises(LoadError) as refused:
        resolve_model_class(config)
    for word in ("NobodysModel", "AutoModelForImageTextToText has no class", "AutoModelForCausalLM has no class", "registered"):
        assert word in str(refused.value)


def test_class_for_the_text_alone_is_skipped() -> None:
    import transformers

    # transformers has text classes for configs with a vision part too.
    mapping = transformers.AutoModelForCausalLM._model_mapping
    configs = [name for name in ("Gemma3Config", "MllamaConfig", "Llama4Config") if hasattr(transformers, name)]
    assert configs
    skipped = 0
    for name in configs:
        config = getattr(transformers, name)()
        found = resolve_model_class(config)
        assert "ConditionalGeneration" in found.__name__
        try:
            alone = mapping[type(config)]
        except KeyError:
            continue
        skipped += alone is not found
    assert skipped or lab.version("transformers") >= (4, 50)


def test_register(tmp_path: Path) -> None:
    import transformers

    class MineConfig(transformers.Qwen2Config):  # type: ignore[misc]
        model_type = "mine_qwen2"

    class MineModel(transformers.Qwen2ForCausalLM):  # type: ignore[misc]
        config_class = MineConfig

    register("mine_qwen2", MineConfig, MineModel)
    config = MineConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    config.num_key_value_heads = 1
    assert resolve_model_class(config) is MineModel
    MineModel(config).save_pretrained(tmp_path)
    assert type(load_model(tmp_path, verify="bits")) is MineModel
    assert type(transformers.AutoModelForCausalLM.from_pretrained(tmp_path)) is MineModel


def test_class_of_a_trainer(slim: Path) -> None:
    import transformers

    class Mine(transformers.Qwen2_5_VLForConditionalGeneration):  # type: ignore[misc]
        pass

    options: dict[str, Any] = {"model_class": Mine, "torch_dtype": torch.float32, "verify": "bits"}
    if (4, 52) <= lab.version("transformers") < (4, 53) or lab.version("transformers") >= (5, 15):
        # These rename keys only for classes of their own: this one would stay random, without an error.
        with pytest.raises(LoadError, match=re.escape(f"or pass key_mapping={KEY_MAPPING} to rename its keys for Mine")):
            load_model(slim, **options)
        options["key_mapping"] = KEY_MAPPING
    assert type(load_model(slim, **options)) is Mine


@pytest.mark.parametrize(("model_type", "since"), [("qwen3_vl", "4.57.6"), ("gemma3", "4.50.3"), ("internvl", "4.52.4")])
def test_first_version_that_knows_a_model(tmp_path: Path, model_type: str, since: str) -> None:
    assert known_versions(model_type) == (since, None)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    if lab.version("transformers") >= tuple(int(part) for part in since.split(".")):
        assert read_config(tmp_path).model_type == model_type
        return
    with pytest.raises(LoadError, match=f"install transformers {since} or later"):
        read_config(tmp_path)


def test_history_matches_this_version() -> None:
    """The table of model types agrees with the installed transformers."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    here = lab.version("transformers")
    from smokehouse_loader.model_class import _history

    for version, types in _history()["known_from"].items():
        known = tuple(int(part) for part in version.split(".")) <= here
        gone = {name for names in _history()["known_until"].values() for name in names}
        assert all((name in CONFIG_MAPPING_NAMES) == known for name in types if name not in gone), version


def test_another_class_that_fits_is_suggested(slim: Path) -> None:
    fit = check_checkpoint(slim, "AutoModel")
    assert fit.fits_class == "Qwen2_5_VLForConditionalGeneration"
    assert not fit.ok
    assert "load it with Qwen2_5_VLForConditionalGeneration" in str(fit.problems[0])


def test_prefix_of_a_wrapper_is_not_a_layout(slim: Path, tmp_path: Path) -> None:
    def wrapped(path: Path) -> None:
        tensors = {f"model.{name}": tensor for name, tensor in lab.stored_tensors(path).items()}
        for file in path.glob("model-*"):
            file.unlink()
        lab.write_shards(path, [tensors])

    fit = check_checkpoint(lab.damaged(slim, tmp_path / "wrapped", wrapped))
    assert not fit.ok
    assert fit.layout is None


def test_lists(slim: Path, tmp_path: Path) -> None:
    bad = lab.damaged(lab.damaged(slim, tmp_path / "one", lab.missing_key), tmp_path / "two", lab.wrong_shape)
    fit = check_checkpoint(bad)
    assert [lab.old_layout(name) for name in fit.missing] == [lab.MISSING_KEY]
    assert fit.unexpected == ()
    [mismatch] = fit.mismatched
    assert lab.old_layout(mismatch.name) == lab.PATCH_EMBED
    assert (mismatch.in_file, mismatch.in_model) == ((32, 3, 2, 14, 7), (32, 3, 2, 14, 14))


def test_converted_experts(tmp_path: Path) -> None:
    """Transformers 5 merges the tensors of experts while it loads; before it, each has its own parameter."""
    from transformers import Qwen2MoeConfig

    sizes = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "moe_intermediate_size": 6, "shared_expert_intermediate_size": 6, "num_experts": 3}
    config = Qwen2MoeConfig(**sizes, architectures=["Qwen2MoeForCausalLM"], num_experts_per_tok=2, decoder_sparse_step=1)
    config.save_pretrained(tmp_path)
    width, inner = sizes["hidden_size"], sizes["moe_intermediate_size"]
    generator = torch.Generator().manual_seed(1)
    shapes = {"model.embed_tokens.weight": (16, width), "model.norm.weight": (width,), "lm_head.weight": (16, width)}
    for layer in range(2):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
        for name, rows in (("q", width), ("k", 4), ("v", 4)):
            shapes |= {f"{at}.self_attn.{name}_proj.weight": (rows, width), f"{at}.self_attn.{name}_proj.bias": (rows,)}
        shapes |= {f"{at}.self_attn.o_proj.weight": (width, width), f"{at}.mlp.gate.weight": (3, width)}
        shapes |= {f"{at}.mlp.shared_expert_gate.weight": (1, width)}
        for place in ("shared_expert", *(f"experts.{number}" for number in range(3))):
            shapes |= {f"{at}.mlp.{place}.{name}_proj.weight": (inner, width) for name in ("gate", "up")}
            shapes |= {f"{at}.mlp.{place}.down_proj.weight": (width, inner)}
    lab.write_shards(tmp_path, [{name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}])
    fit = check_checkpoint(tmp_path)
    assert fit.problems == ()
    assert bool(fit.plan.conversions) == (lab.version("transformers") >= (5,))
    load_model(tmp_path, verify="bits", torch_dtype=torch.float32)

    def work(rank: int) -> None:
        live = lab.request_zero(3)
        load_model(tmp_path, verify="bits", torch_dtype=torch.float32)
        del live

    lab.values(lab.ranks(work))
    lab.edit(
        tmp_path,
        "model.layers.1.mlp.experts.2.up_proj.weight",
        lambda tensors: tensors.update({"model.layers.1.mlp.experts.2.up_proj.weight": torch.ones(inner, width - 1)}),
    )
    assert check_checkpoint(tmp_path).problems[0].failure == "wrong-shape"


def test_check_command(slim: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    elements = sum(tensor.numel() for tensor in lab.stored_tensors(slim).values())
    assert main(["check", str(slim)]) == 0
    line = f"{slim}: 45 tensors, {elements} elements, fits Qwen2_5_VLForConditionalGeneration\n"
    out, err = capfd.readouterr()
    assert (out.startswith(line), err) == (True, "")
    # Each stack that these tests run in has a cell, or one that is near.
    assert out.removeprefix(line).startswith("matrix: Qwen2.5-VL with torch ")
    bad = lab.damaged(slim, tmp_path / "bad", lab.missing_key)
    assert main(["check", str(bad), "--json"]) == 1
    out, err = capfd.readouterr()
    found = json.loads(out)
    assert (err, found["ok"], found["class"]) == ("", False, "Qwen2_5_VLForConditionalGeneration")
    assert [lab.old_layout(name) for name in found["missing"]] == [lab.MISSING_KEY]
    assert main(["check", str(slim), "--class", "AutoModel"]) == 1
    out, err = capfd.readouterr()
    assert (out.count("[dropped-weights]"), err) == (1, "")
    assert main(["check", str(slim), "--class", "NobodysModel"]) == 1
    assert "has no class 'NobodysModel'" in capfd.readouterr().out


def test_code_of_a_checkpoint_is_not_run(slim: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def with_code(path: Path) -> None:
        (path / "config.json").write_text(json.dumps({"model_type": "x", "auto_map": {"AutoConfig": "evil.Config"}}))
        (path / "evil.py").write_text("raise SystemExit(9)")

    assert main(["check", str(lab.damaged(slim, tmp_path / "bad", with_code))]) == 2
    assert "--trust-remote-code" in capfd.readouterr().err
