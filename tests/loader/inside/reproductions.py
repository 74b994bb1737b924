"""Reproduce every known failure: the table lists these functions, and no entry exists without one.

Each first does what a user did and checks the result, then does the same with the loader. It returns the messages of libraries
and of the loader, each of which must be explained as the failure. It raises UnaffectedError on a stack that does not have the
failure, after it has checked that.
"""

import contextlib
import copy
import ctypes
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lab
import pytest
import torch

import smokehouse_loader
from smokehouse_loader import LoadError, compare, loading, zero
from tests import stubs

DEADLINE = 120.0  # seconds


class UnaffectedError(Exception):
    """The stack does not have the failure."""


@dataclass(frozen=True)
class Context:
    """The checkpoints and the directory that a reproduction works with."""

    slim: Path
    real: Path
    work: Path

    @property
    def root(self) -> Path:
        """The checkout."""
        return Path(__file__).parents[3]

    def damaged(self, damage: Callable[[Path], None]) -> Path:
        """Return a damaged copy of the slim checkpoint."""
        return lab.damaged(self.slim, self.work / damage.__name__, damage)


def raised_by(work: Callable[[], Any]) -> str:
    """Return what `work` raises, with its traceback, as in a log."""
    with pytest.raises(Exception) as raised:  # noqa: PT011 - explain has to recognise it
        work()
    return "".join(traceback.format_exception(raised.type, raised.value, raised.tb))


def refused(path: Path, **options: Any) -> str:
    """Return the message of the LoadError that load_model must raise."""
    with pytest.raises(LoadError) as raised:
        smokehouse_loader.load_model(path, **options)
    return f"LoadError: {raised.value}"


def unready(model: Any) -> str:
    """Return the message of the LoadError that assert_ready must raise."""
    with pytest.raises(LoadError) as raised:
        smokehouse_loader.assert_ready(model)
    return f"LoadError: {raised.value}"


def naive(path: Path, **options: Any) -> Any:
    """Return the model as transformers loads it, in fp32."""
    return model_class().from_pretrained(path, torch_dtype=torch.float32, **options)


def model_class() -> Any:
    """Return the class of the synthetic checkpoint."""
    import transformers

    return transformers.Qwen2_5_VLForConditionalGeneration


@contextlib.contextmanager
def messages_of(name: str) -> Iterator[list[str]]:
    """Collect the messages of a logger."""
    found: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    logger, listener = logging.getLogger(name), Listener()
    level = logger.level
    logger.addHandler(listener)
    logger.setLevel(logging.INFO)
    try:
        yield found
    finally:
        logger.removeHandler(listener)
        logger.setLevel(level)


def warned(path: Path) -> list[str]:
    """Return what transformers logs while it loads `path`; it does not raise."""
    with messages_of("transformers.modeling_utils") as found:
        naive(path)
    return ["\n".join(found)]


def logged_and_raised(work: Callable[[], Any]) -> list[str]:
    """Return what transformers logs during `work`, tensors and shapes in version 5, and what `work` raises."""
    with messages_of("transformers.modeling_utils") as found:
        text = raised_by(work)
    return ["\n".join(found), text]


# ZeRO-3


def load_into_partitioned_parameters(context: Context) -> list[str]:
    def by_init(rank: int) -> list[str]:
        import deepspeed

        with deepspeed.zero.Init(dtype=torch.float32):
            texts = [refused(context.real)]
            if lab.version("transformers") < (4, 51) or lab.version("transformers") >= (5,):
                texts.append("\n".join(logged_and_raised(lambda: naive(context.real))))
        return texts

    def by_state_dict(rank: int) -> list[str]:
        live = lab.request_zero(3)
        model = smokehouse_loader.load_model(context.real, torch_dtype=torch.float32)
        del live
        stored = lab.stored_tensors(context.real)
        return [raised_by(lambda: model.load_state_dict({name: stored[lab.old_layout(name)] for name in model.state_dict()}))]

    texts = [text for work in (by_state_dict, by_init) for texts in lab.values(lab.ranks(work)) for text in texts]
    seed = [text for text in texts if "copying a param with shape torch.Size([1280, 3, 2, 14, 14]) from checkpoint" in text]
    assert seed, texts
    return texts


def save_partitioned_model(context: Context) -> list[str]:
    saved = context.work / "saved"

    def save(rank: int) -> None:
        live = lab.request_zero(3)
        model = smokehouse_loader.load_model(context.slim, torch_dtype=torch.float32)
        del live
        if rank == 0:
            model.save_pretrained(saved)

    lab.values(lab.ranks(save))
    return [refused(saved)]


def deepcopy_partitioned_model(context: Context) -> list[str]:
    def work(rank: int) -> str:
        live = lab.request_zero(3)
        model = smokehouse_loader.load_model(context.slim, torch_dtype=torch.float32)
        return unready(copy.deepcopy(model)) if live else ""

    return lab.values(lab.ranks(work))


def train_model_on_meta(context: Context) -> list[str]:
    from smokehouse_loader.fit import build_on_meta
    from smokehouse_loader.model_class import read_config

    model = build_on_meta(model_class(), read_config(context.slim))
    return [raised_by(lambda: model.to("cpu")), unready(model)]


def drop_deepspeed_config(context: Context) -> list[str]:
    def work(rank: int) -> str:
        lab.request_zero(3)  # and keep no reference
        model = naive(context.slim)
        assert not any(zero.is_partitioned(parameter) for parameter in model.parameters())
        return refused(context.slim)

    return lab.values(lab.ranks(work))


def fill_fresh_memory() -> None:
    """Make glibc fill the memory that it allocates, so that a tensor into which nothing is loaded is certain to be wrong.

    Otherwise memory of the process that made the checkpoint, from which ranks are forked, may still have the right values.
    """
    perturb = -6  # M_PERTURB of mallopt(3)
    assert ctypes.CDLL(None).mallopt(perturb, 0xA5) == 1


def ignore_mismatched_sizes(context: Context) -> list[str]:
    def work(rank: int) -> tuple[str, int]:
        live = lab.request_zero(3)
        text = refused(context.slim, ignore_mismatched_sizes=True)
        fill_fresh_memory()
        with zero.safe_gathers():
            model = naive(context.slim, ignore_mismatched_sizes=True)
        fit = smokehouse_loader.check_checkpoint(context.slim)
        wrong = compare.wrong_tensors(model, fit.checkpoint, fit.plan)
        del live
        return text, len(wrong)

    def padded(rank: int, path: Path) -> str:
        live = lab.request_zero(3)
        text = raised_by(lambda: naive(path, ignore_mismatched_sizes=True))
        del live
        return text

    results = lab.values(lab.ranks(work))
    if lab.version("transformers") < (5,):
        assert all(wrong == 45 for _, wrong in results), results
    texts = [text for text, _ in results]
    if (4, 57) <= lab.version("transformers") < (5,):
        texts += lab.values(lab.ranks(padded, _with_config(context, "padded", pad_token_id=7)))
    return texts


def device_map_under_zero3(context: Context) -> list[str]:
    def work(rank: int) -> list[str]:
        live = lab.request_zero(3)
        texts = [refused(context.slim, device_map="cpu"), raised_by(lambda: naive(context.slim, device_map="cpu"))]
        del live
        return texts

    return [text for texts in lab.values(lab.ranks(work)) for text in texts]


def saved_experts_under_zero3(context: Context) -> list[str]:
    """Save a mixture of experts with transformers alone, and load it again under ZeRO-3."""
    import transformers

    if not hasattr(transformers, "Qwen3VLMoeForConditionalGeneration"):
        raise UnaffectedError("transformers before 4.57 does not have the model")
    language: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 64,
        "intermediate_size": 32,
        "moe_intermediate_size": 24,
        "num_experts": 4,
    }
    language |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    language |= {"num_experts_per_tok": 2, "rope_theta": 10000.0}
    language["rope_scaling"] = {"rope_type": "default", "mrope_section": [2, 3, 3]}
    vision: dict[str, Any] = {
        "depth": 1,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": 64,
        "patch_size": 4,
    }
    vision |= {
        "spatial_merge_size": 1,
        "temporal_patch_size": 1,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    config = transformers.Qwen3VLMoeConfig(text_config=language, vision_config=vision, tie_word_embeddings=False)
    model_class = transformers.Qwen3VLMoeForConditionalGeneration
    path = context.work / "saved"
    model_class(config).save_pretrained(path)

    def with_loader(rank: int) -> None:
        live = lab.request_zero(3)
        smokehouse_loader.load_model(path, verify="bits", torch_dtype=torch.float32)
        del live

    def without(rank: int) -> str:
        live = lab.request_zero(3)
        text = raised_by(lambda: model_class.from_pretrained(path, torch_dtype=torch.float32))
        del live
        return text

    lab.values(lab.ranks(with_loader))
    if lab.version("transformers") < (5,):
        raise UnaffectedError("transformers 4 saves what it loads")
    # With one rank, which reads the file: the others would lose their peer.
    [text] = lab.values(lab.ranks(without, world=1))
    assert "torch.Size([4, 64, 48]) from checkpoint, the shape in current model is torch.Size([4, 48, 64])" in text
    return [text]


def _with_buffers() -> Any:
    """Return a tiny model that stores buffers: a router's bias, or in old versions what normalisations of batches count."""
    import transformers

    if not hasattr(transformers, "DeepseekV3ForCausalLM"):
        sizes: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}
        return transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes))
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 16, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1}
    sizes |= {"topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1, "kv_lora_rank": 8, "q_lora_rank": 8}
    sizes |= {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    return transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**sizes))


def buffers_under_zero3(context: Context) -> list[str]:
    """Load buffers with values that no initialisation gives, and compare them with the file's on every rank."""
    model, path = _with_buffers(), context.work / "saved"
    expected = {name: value for name, value in model.named_buffers() if name in model.state_dict()}
    assert expected
    with torch.no_grad():
        for number, name in enumerate(sorted(expected)):
            expected[name].add_(number + 3)
    model.save_pretrained(path)

    def right(rank: int, load: Callable[[], Any]) -> bool:
        live = lab.request_zero(3)
        found = dict(load().named_buffers())
        del live
        return all(torch.equal(found[name], value) for name, value in expected.items())

    def with_loader(verify: Any) -> Callable[[], Any]:
        options = {"model_class": type(model), "torch_dtype": torch.float32}
        return lambda: smokehouse_loader.load_model(path, verify=verify, **options)

    def without() -> Any:
        with zero.waited_gathers():
            return type(model).from_pretrained(path, torch_dtype=torch.float32)

    for verify in ("bits", "none"):
        assert lab.values(lab.ranks(right, with_loader(verify))) == [True, True], verify
    found = lab.values(lab.ranks(right, without))
    if lab.version("transformers") >= (5, 6):
        assert found == [True, True]
        raise UnaffectedError("transformers loads buffers from 5.6 on")
    assert not found[1]
    return []


def partition_without_request(context: Context) -> list[str]:
    def work(rank: int) -> str:
        import deepspeed

        with deepspeed.zero.Init():
            model = torch.nn.Linear(8, 8)
        return unready(model)

    def whole(rank: int) -> str:
        live = lab.request_zero(3)
        text = unready(torch.nn.Linear(8, 8))
        del live
        return text

    return [*lab.values(lab.ranks(work)), *lab.values(lab.ranks(whole))]


def gloo_race(context: Context) -> list[str]:
    def work(rank: int, safe: bool) -> int:
        live = lab.request_zero(3)
        fit = smokehouse_loader.check_checkpoint(context.real)
        with zero.waited_gathers() if safe else contextlib.nullcontext():
            model = naive(context.real)
        del live
        return len(compare.wrong_tensors(model, fit.checkpoint, fit.plan))

    tries = 1 if lab.version("deepspeed") >= zero.RACE_FIXED_IN else 10
    affected = any(sum(lab.values(lab.ranks(work, False))) for _ in range(tries))
    assert lab.values(lab.ranks(work, True)) == [0, 0]
    if not affected:
        assert lab.version("deepspeed") >= zero.RACE_FIXED_IN, f"not reproduced in {tries} tries"
        raise UnaffectedError("DeepSpeed waits for every gather")
    return []


def generate_before_initialize(context: Context) -> list[str]:
    def work(rank: int, path: Path) -> str:
        live = lab.request_zero(3)
        model = smokehouse_loader.load_model(path, torch_dtype=torch.float32)
        del live
        return raised_by(lambda: model(input_ids=torch.tensor([[8, 9, 10]])))

    padded = _with_config(context, "padded", pad_token_id=7)
    return [*lab.values(lab.ranks(work, context.slim)), *lab.values(lab.ranks(work, padded))]


class _Convolution(torch.nn.Module):  # type: ignore[misc] # torch is Any to mypy
    """A module that reads the weight of another one, as the linear attention of Qwen3.5 does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1d = torch.nn.Conv1d(4, 4, 3, groups=4, bias=False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        weight = self.conv1d.weight.squeeze(1)
        return torch.nn.functional.conv1d(states, weight.unsqueeze(1), groups=4)


def read_weight_of_another_module(context: Context) -> list[str]:
    def work(rank: int) -> tuple[str, list[bool]]:
        import deepspeed

        config = lab.zero_config(3)
        states = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0))

        def engine_of(*, registered: bool) -> Any:
            with deepspeed.zero.Init(config_dict_or_path=config):
                model = torch.nn.Sequential(_Convolution())
            if registered:
                deepspeed.zero.register_external_parameter(model[0], model[0].conv1d.weight)
            return deepspeed.initialize(model=model, optimizer=torch.optim.SGD(model.parameters()), config=config)[0]

        def is_right(run: Any, engine: Any) -> bool:
            with torch.no_grad():
                found = run(states)
                with deepspeed.zero.GatheredParameters(list(engine.parameters())):
                    return bool(
                        torch.equal(found, torch.nn.functional.conv1d(states, engine.module[0].conv1d.weight, groups=4))
                    )

        gathers = lab.version("deepspeed") >= (0, 16, 5)
        called, trained, registered = (engine_of(registered=number == 2) for number in range(3))
        text = "" if gathers else raised_by(lambda: called.module(states))
        runs = ((called.module, called), (trained, trained), (registered.module, registered))
        return text, [is_right(run, engine) for run, engine in runs if gathers or engine is not called]

    found = lab.values(lab.ranks(work))
    assert all(all(right) for _, right in found), found
    if not found[0][0]:
        raise UnaffectedError("DeepSpeed gathers a weight that another module reads")
    return [f"ZeRO-3\n{text}" for text, _ in found]


class _Wrapper(torch.nn.Module):  # type: ignore[misc] # torch is Any to mypy
    """Pass on the attributes of the module that it wraps, as PEFT's wrapper for modules_to_save does."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "inner":
                raise
            return getattr(self.inner, name)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.inner(states)


def wrapper_that_passes_on_attributes(context: Context) -> list[str]:
    def work(rank: int) -> tuple[str, bool]:
        import deepspeed

        def train(last: torch.nn.Module) -> bool:
            """Train one step of SGD and return whether the weights moved."""
            model = torch.nn.Sequential(torch.nn.Linear(8, 8), last)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            engine = deepspeed.initialize(model=model, optimizer=optimizer, config=lab.zero_config(3))[0]
            weights = list(engine.parameters())
            with deepspeed.zero.GatheredParameters(weights):
                before = [weight.detach().clone() for weight in weights]
            engine.backward(engine(torch.ones(1, 8)).sum())
            engine.step()
            with deepspeed.zero.GatheredParameters(weights):
                return all(not torch.equal(old, new) for old, new in zip(before, weights, strict=True))

        affected = (0, 16, 5) <= lab.version("deepspeed") < (0, 19, 3)
        text = raised_by(lambda: train(_Wrapper(torch.nn.Linear(8, 8)))) if affected else ""
        return text, affected or train(_Wrapper(torch.nn.Linear(8, 8)))

    found = lab.values(lab.ranks(work))
    assert all(moved for _, moved in found), found
    if not found[0][0]:
        raise UnaffectedError("DeepSpeed looks for its function in the module itself")
    return [text for text, _ in found]


def mixed_modality(context: Context) -> list[str]:
    def work(rank: int) -> str:
        import deepspeed

        log = os.open(context.work / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(log, 2)  # it crashes in C++, which writes there
        live = lab.request_zero(3)
        model = smokehouse_loader.load_model(context.slim, torch_dtype=torch.float32)
        engine, *_ = deepspeed.initialize(model=model, config=live.config)
        inputs: dict[str, Any] = {"input_ids": torch.tensor([[8, 9, 10, *[5] * 16, 11]])}
        if rank == 0:
            inputs |= {"pixel_values": torch.randn(16, 1176), "image_grid_thw": torch.tensor([[1, 4, 4]])}
        else:
            inputs["input_ids"] = torch.tensor([[8, 9, 10, 11]])
        return raised_by(lambda: engine(**inputs, labels=inputs["input_ids"]).loss.backward())

    results = lab.ranks(work)
    logs = [(context.work / f"rank{rank}.log").read_text(errors="replace") for rank in (0, 1)]
    texts = [*logs, *(str(one.value or one.error) for one in results)]
    assert any(one.died for one in results) or any(one.value for one in results), results
    text = "\n".join(texts)
    assert "preamble" in text or "EnforceNotMet" in text, texts
    return [text]


# The class and its keys


def wrong_auto_class(context: Context) -> list[str]:
    from transformers import AutoModelForCausalLM

    texts = [
        raised_by(lambda: AutoModelForCausalLM.from_pretrained(context.slim)),
        refused(context.slim, model_class=AutoModelForCausalLM),
    ]
    assert "Unrecognized configuration class" in texts[0]
    return texts


def _with_config(context: Context, name: str, **more: Any) -> Path:
    def change(path: Path) -> None:
        (path / "config.json").write_text(json.dumps(lab.config(32, **more)))

    return lab.damaged(context.slim, context.work / name, change)


def unknown_model_type(context: Context) -> list[str]:
    path = _with_config(context, "unknown", model_type="qwen99_vl")
    return [raised_by(lambda: naive_auto(path)), refused(path)]


def naive_auto(path: Path) -> Any:
    """Load as a script does that accepts any model."""
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(path)


def no_model_class(context: Context) -> list[str]:
    from transformers import PretrainedConfig

    class Nobodys(PretrainedConfig):  # type: ignore[misc]
        model_type = "nobodys"

    return [raised_by(lambda: smokehouse_loader.resolve_model_class(Nobodys()))]


def later_key_layout(context: Context) -> list[str]:
    path = context.damaged(lab.later_layout)
    if lab.version("transformers") >= (4, 52):
        smokehouse_loader.load_model(path, verify="bits", torch_dtype=torch.float32)
        raise UnaffectedError("transformers 4.52 and later load both layouts")
    text = refused(path)
    assert "4.52 and later" in text
    return [text, *warned(path)]


def drop_vision_tower(context: Context) -> list[str]:
    from transformers import AutoModel

    model, info = AutoModel.from_pretrained(context.slim, output_loading_info=True)
    if lab.version("transformers") < (4, 52):
        assert not info["missing_keys"]
        assert len(info["unexpected_keys"]) == 19
        assert not any("visual" in name for name, _ in model.named_parameters())

    def extra(path: Path) -> None:
        lab.edit(path, lab.PATCH_EMBED, lambda tensors: tensors.update({"visual.second.weight": torch.ones(3)}))
        lab.reindex(path, lambda weight_map: weight_map.update({"visual.second.weight": weight_map[lab.PATCH_EMBED]}))

    path = context.damaged(extra)
    return [refused(context.slim, model_class=AutoModel), refused(path), *warned(path)]


def missing_key(context: Context) -> list[str]:
    path = context.damaged(lab.missing_key)
    return [refused(path), *warned(path)]


def wrong_shape(context: Context) -> list[str]:
    path = context.damaged(lab.wrong_shape)
    logged, raised = logged_and_raised(lambda: naive(path))
    return [refused(path), raised, *([logged] if lab.version("transformers") >= (5,) else [])]


def wrong_type(context: Context) -> list[str]:
    def integers(path: Path) -> None:
        lab.edit(path, lab.MISSING_KEY, lambda tensors: tensors.update({lab.MISSING_KEY: torch.ones(64, dtype=torch.int32)}))

    path = context.damaged(integers)
    if lab.version("transformers") < (5,):
        return [refused(path), raised_by(lambda: naive(path))]
    naive(path)  # without an error
    return [refused(path)]


def quantised_checkpoint(context: Context) -> list[str]:
    more = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
    return [refused(_with_config(context, "quantised", **more))]


def development_version(context: Context) -> list[str]:
    import transformers

    with patch.object(transformers, "__version__", "4.50.0.dev0"):
        return [refused(context.slim)]


# Values


def flipped_bit(context: Context) -> list[str]:
    verify = loading._verify

    def flipped(model: Any, *rest: Any) -> Any:
        model.lm_head.weight.data.view(torch.int32).view(-1)[7] ^= 1
        return verify(model, *rest)

    with patch.object(loading, "_verify", flipped):
        return [refused(context.slim, verify="bits", torch_dtype=torch.float32)]


def reinitialised_weights(context: Context) -> list[str]:
    texts = []
    for initialise in (torch.nn.init.zeros_, torch.nn.init.normal_):
        model = smokehouse_loader.load_model(context.slim, torch_dtype=torch.float32)
        initialise(model.lm_head.weight)
        texts.append(unready(model))
    return texts


def differing_tied_weights(context: Context) -> list[str]:
    path = lab.write_checkpoint(context.work / "differing", vision_width=32)
    (path / "config.json").write_text(json.dumps(lab.config(32, tie_word_embeddings=True)))
    if lab.version("transformers") >= (5,):
        model = smokehouse_loader.load_model(path, verify="bits", torch_dtype=torch.float32)
        assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
        raise UnaffectedError("transformers 5 keeps the two apart")
    text = refused(path, verify="bits", torch_dtype=torch.float32)
    assert "set tie_word_embeddings in config.json" in text
    assert "memory, disk" not in text
    return [text]


def untie_weights(context: Context) -> list[str]:
    path = lab.write_checkpoint(context.work / "tied", vision_width=32, tie_word_embeddings=True)
    model = smokehouse_loader.load_model(path, torch_dtype=torch.float32)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    return [unready(model)]


# Descriptions: what the files beside the weights say


def checked(path: Path) -> str:
    """Return what `check` prints of a checkpoint that it must refuse, as load_model raises it."""
    from smokehouse_loader.__main__ import main

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["check", str(path)]) == 1
    lines = [line for line in printed.getvalue().splitlines(keepends=True) if not line.startswith("matrix: ")]
    return f"LoadError: {''.join(lines)}"


def _adapter(path: Path, base: str, width: int) -> Path:
    from safetensors.torch import save_file

    path.mkdir()
    config = {"peft_type": "LORA", "r": 2, "base_model_name_or_path": base}
    (path / "adapter_config.json").write_text(json.dumps(config))
    at = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file(
        {f"{at}.lora_A.weight": torch.ones(2, width), f"{at}.lora_B.weight": torch.ones(width, 2)},
        path / "adapter_model.safetensors",
    )
    return path


def load_adapter_folder(context: Context) -> list[str]:
    path = _adapter(context.work / "lora", "some/base", 64)
    raised_by(lambda: naive(path))
    text = refused(path)
    assert "an adapter of some/base" in text
    return [text, checked(path)]


def load_adapter_of_another_base(context: Context) -> list[str]:
    return [checked(_adapter(context.work / "lora", str(context.slim), 48))]


def config_without_model_type(context: Context) -> list[str]:
    def forget(path: Path) -> None:
        config = json.loads((path / "config.json").read_text())
        del config["model_type"]
        (path / "config.json").write_text(json.dumps(config))

    path = context.damaged(forget)
    assert "Unrecognized model" in raised_by(lambda: naive_auto(path))
    return [refused(path)]


def model_type_of_other_code(context: Context) -> list[str]:
    path = _with_config(context, "llava", model_type="llava_qwen")
    assert "llava_qwen" in raised_by(lambda: naive_auto(path))
    return [refused(path)]


def missing_remote_code(context: Context) -> list[str]:
    path = _with_config(context, "code", model_type="nobodys", auto_map={"AutoConfig": "configuration_nobodys.Config"})
    raised_by(lambda: naive_auto(path))
    return [refused(path)]


def unknown_image_processor(context: Context) -> list[str]:
    from transformers import AutoImageProcessor

    path = lab.damaged(
        context.slim, context.work / "processor", lambda path: _describe(path, "preprocessor", "image_processor_type")
    )
    assert "NobodysThing" in checked(path)
    raised_by(lambda: AutoImageProcessor.from_pretrained(path))
    return [checked(path)]


def unknown_tokenizer_class(context: Context) -> list[str]:
    return [
        checked(
            lab.damaged(context.slim, context.work / "tokenizer", lambda path: _describe(path, "tokenizer", "tokenizer_class"))
        )
    ]


def _describe(path: Path, name: str, key: str) -> None:
    (path / f"{name}_config.json").write_text(json.dumps({key: "NobodysThing"}))


def contradicting_architectures(context: Context) -> list[str]:
    path = _with_config(context, "contradiction", architectures=["Qwen2VLForConditionalGeneration"])
    naive_auto(path)  # without a word
    return [refused(path)]


def load_wrapped_keys(context: Context) -> list[str]:
    def wrap(path: Path) -> None:
        tensors = {f"module.{name}": tensor for name, tensor in lab.stored_tensors(path).items()}
        for file in path.glob("model-*"):
            file.unlink()
        lab.write_shards(path, [tensors])

    return [refused(context.damaged(wrap))]


def load_changed_after_signing(context: Context) -> list[str]:
    path = context.damaged(lab.flipped_bit)
    key = lab.signed(path, context.work / "keys")
    loaded = smokehouse_loader.load_model(path, verify="signature", signer=smokehouse_loader.Signer(public_key=key))
    assert loaded is not None
    lab.flipped_bit(path)
    return [refused(path, verify="signature", signer=smokehouse_loader.Signer(public_key=key))]


# Files


def truncated_shard(context: Context) -> list[str]:
    path = context.damaged(lab.truncated)

    def cut(folder: Path) -> None:
        torch.save(lab.stored_tensors(folder), folder / "pytorch_model.bin")
        for file in folder.glob("model*"):
            file.unlink()
        file = folder / "pytorch_model.bin"
        file.write_bytes(file.read_bytes()[:-5000])

    return [refused(path), raised_by(lambda: naive(path)), refused(context.damaged(cut))]


def _instead(context: Context, name: str, content: bytes) -> Path:
    def replace(path: Path) -> None:
        (path / "model-00002-of-00003.safetensors").write_bytes(content)

    return lab.damaged(context.slim, context.work / name, replace)


def git_lfs_pointer(context: Context) -> list[str]:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 123456\n".encode()
    path = _instead(context, "pointer", pointer)
    page = _instead(context, "page", b"<!DOCTYPE html>\n<html><body>Please log in</body></html>")
    return [refused(path), raised_by(lambda: naive(path)), refused(page), raised_by(lambda: naive(page))]


def broken_header(context: Context) -> list[str]:
    path = _instead(context, "header", (40).to_bytes(8, "little") + b"{" * 40)
    return [refused(path), raised_by(lambda: naive(path))]


def missing_shard(context: Context) -> list[str]:
    def remove(path: Path) -> None:
        (path / "model-00002-of-00003.safetensors").unlink()

    path = context.damaged(remove)
    return [refused(path), raised_by(lambda: naive(path))]


def shard_outside_index(context: Context) -> list[str]:
    def forget(path: Path) -> None:
        lab.reindex(path, lambda weight_map: [weight_map.pop(name) for name in list(weight_map) if "00002" in weight_map[name]])

    return [refused(context.damaged(forget))]


class Harmless:
    """Something that is not a tensor."""


def unsafe_pickle(context: Context) -> list[str]:
    def pickled(path: Path) -> None:
        for file in path.glob("model*"):
            file.unlink()
        torch.save({"weight": Harmless()}, path / "pytorch_model.bin")

    return [refused(context.damaged(pickled))]


# Engines


def _engine(stage: int) -> Any:
    import deepspeed

    model = torch.nn.Linear(8, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    engine, *_ = deepspeed.initialize(model=model, config=lab.zero_config(stage), optimizer=optimizer)
    return engine


def resume_engine_checkpoint(context: Context) -> list[str]:
    def work(rank: int) -> str | None:
        engine = _engine(2)
        engine.save_checkpoint(context.work / "engine", tag="step")
        try:
            engine.load_checkpoint(context.work / "engine", tag="step")
        except Exception as error:  # noqa: BLE001 - explain has to recognise it
            return f"{type(error).__name__}: {error}"
        return None

    texts = [text for text in lab.values(lab.ranks(work)) if text]
    if not texts:
        raise UnaffectedError("this DeepSpeed loads its own checkpoints under torch 2.6")
    return texts


def load_engine_checkpoint(context: Context) -> list[str]:
    def work(rank: int) -> None:
        _engine(3 if rank >= 0 else 2).save_checkpoint(context.work / "engine", tag="step")

    lab.values(lab.ranks(work))
    found = smokehouse_loader.inspect_checkpoint(context.work / "engine")
    assert found.layout == "deepspeed"
    assert {name: tensor.shape for name, tensor in found.tensors.items()} == {"weight": (8, 8), "bias": (8,)}
    return [refused(context.work / "engine")]


def save_without_gathering(context: Context) -> list[str]:
    def work(rank: int) -> str:
        with messages_of("DeepSpeed") as found:
            written = _engine(3).save_16bit_model(context.work / "saved")
        assert not written
        return "\n".join(line for line in found if "Did not save" in line)

    return [text for text in lab.values(lab.ranks(work)) if text]


def triton_without_driver(context: Context) -> list[str]:
    environ = {**os.environ, "DS_ACCELERATOR": "cuda"}
    ended = subprocess.run(
        [sys.executable, "-c", "import deepspeed"], env=environ, capture_output=True, text=True, timeout=DEADLINE
    )
    if ended.returncode == 0:
        raise UnaffectedError("this DeepSpeed does not query triton when it is imported")
    return [ended.stderr]


# GPUs: stub libraries stand for the driver's, so that torch sees devices, which it cannot use


def on_gpus(code: str, *, isolated: bool = False, **given: Any) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process that sees GPUs; variables in capitals are set, the others are those of the stubs."""
    libraries = stubs.build(Path(tempfile.mkdtemp(prefix="stubs-")))
    try:
        own = {name: str(value) for name, value in given.items() if name.isupper()}
        of_stubs = {name: value for name, value in given.items() if not name.isupper()}
        user = {"PATH": os.defpath, "HOME": str(libraries), "PYTHONNOUSERSITE": "1"}
        environ = {**user, **stubs.environ(libraries, **of_stubs), **own}
        command = [sys.executable, *(["-S"] if isolated else []), "-c", code]
        return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=DEADLINE)
    finally:
        shutil.rmtree(libraries)


def failed_on_gpus(code: str, **given: Any) -> str:
    """Return what `code` prints before it fails, as it must."""
    ended = on_gpus(code, **given)
    assert ended.returncode, ended.stdout
    return ended.stdout + ended.stderr


def imports_ask_for_nvcc() -> None:
    """Raise UnaffectedError where importing DeepSpeed asks for nothing."""
    if lab.version("deepspeed") >= (0, 19, 8):
        raise UnaffectedError("this DeepSpeed asks for no nvcc and compiles nothing when it is imported")


def import_without_nvcc(context: Context) -> list[str]:
    imports_ask_for_nvcc()
    without = "import torch.utils.cpp_extension as extension; extension.CUDA_HOME = {}; import deepspeed"
    return [failed_on_gpus(without.format(home)) for home in ("None", repr(str(context.work)))]


def triton_without_compiler(context: Context) -> list[str]:
    return [failed_on_gpus("import triton; triton.runtime.driver.active.utils", PATH=context.work)]


def triton_cannot_compile(context: Context) -> list[str]:
    use = "import triton; triton.runtime.driver.active.utils"
    headers = "import sysconfig; paths = sysconfig.get_paths; "
    headers += (
        f"sysconfig.get_paths = lambda *given, **more: paths(*given, **more) | {{'include': {str(context.work)!r}}}; {use}"
    )
    return [failed_on_gpus(headers), failed_on_gpus(use, TRITON_LIBCUDA_PATH=context.work)]


def compile_op_without_setuptools(context: Context) -> list[str]:
    hidden = "import sys; sys.modules['setuptools'] = None; "
    text = failed_on_gpus(f"{hidden}from torch.utils.cpp_extension import load", CUDA_HOME=context.work)
    # As Python says it of a module that is not installed.
    return [text.replace("import of setuptools halted; None in sys.modules", "No module named 'setuptools'")]


def compile_with_the_answer_for_nvcc(context: Context) -> list[str]:
    nvcc = next((context.root / "src/smokehouse/installs/site").glob("*/bin/nvcc"))
    (context.work / "bin").mkdir()
    shutil.copy(nvcc, context.work / "bin")
    (context.work / "release").write_text("12.4\n")
    ended = subprocess.run([context.work / "bin" / "nvcc", "-c", "x.cu"], capture_output=True, text=True, timeout=DEADLINE)
    assert ended.returncode == 1
    return [ended.stderr]


def driver_too_old(context: Context) -> list[str]:
    return [failed_on_gpus("import torch; torch.zeros(1, device='cuda')", cuda=11040)]


def no_driver(context: Context) -> list[str]:
    return [failed_on_gpus("import torch; torch.zeros(1, device='cuda')", nvml=False, libcuda=False)]


def cuda_out_of_memory(context: Context) -> list[str]:
    return [failed_on_gpus("import torch; torch.empty(2**30, device='cuda')", full=1)]


def cuda_in_forked_process(context: Context) -> list[str]:
    code = """
import os, sys, torch
torch.cuda.device_count()
if os.fork() == 0:
    torch.zeros(1, device="cuda")
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    return [failed_on_gpus(code, nvml=False)]


def wrong_gpu_number(context: Context) -> list[str]:
    return [failed_on_gpus("import torch; torch.cuda.set_device(5)", gpus=2)]


def library_not_found(context: Context) -> list[str]:
    source, module = context.work / "needs.c", context.work / "needs.so"
    source.write_text("int needs(void) { return 0; }\n")
    other = context.work / "libcudnn_missing.so.9"
    for command in (
        ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{other.name}", "-o", other, source],
        ["gcc", "-shared", "-fPIC", "-Wl,--no-as-needed", "-o", module, source, other],
    ):
        subprocess.run(list(map(str, command)), check=True, timeout=DEADLINE)
    other.unlink()
    return [raised_by(lambda: ctypes.CDLL(str(module)))]


# Ranks


def failure_in_the_middle(context: Context) -> list[str]:
    def work(rank: int) -> str:
        live = lab.request_zero(2)
        with patch.object(model_class(), "from_pretrained", side_effect=MemoryError("out of memory")):
            text = refused(context.slim, model_class=model_class())
        del live
        return text

    return lab.values(lab.ranks(work))


def dead_rank(context: Context) -> list[str]:
    def work(rank: int) -> str:
        torch.distributed.barrier()
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return raised_by(lambda: torch.distributed.all_reduce(torch.ones(1000)))

    results = lab.ranks(work)
    assert results[1].died == -signal.SIGKILL
    return [str(results[0].value)]
