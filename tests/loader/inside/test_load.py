"""Test `load_model` in plain, ZeRO-2 and ZeRO-3 runs: correct to the bit, or the same error on every rank."""

import os
import signal
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import lab
import pytest
import torch

import smokehouse_loader
from smokehouse_loader import LoadError, load_model, zero

Verify = Literal["shapes", "bits", "none"]


def loaded(rank: int, path: Path, stage: int, bf16: bool, verify: Verify) -> dict[str, Any]:
    """Return shape and local bytes of each parameter after `load_model`."""
    live = lab.request_zero(stage, bf16=bf16)
    model = load_model(path, verify=verify, torch_dtype=torch.bfloat16 if bf16 else torch.float32)
    smokehouse_loader.assert_ready(model)
    del live
    return {
        name: (tuple(getattr(parameter, "ds_shape", parameter.shape)), _bytes(getattr(parameter, "ds_tensor", parameter)))
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }


def _bytes(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().view(torch.uint8).view(-1).numpy())


@pytest.mark.parametrize("verify", ["shapes", "bits", "none"])
@pytest.mark.parametrize(("stage", "world", "bf16"), [(2, 2, False), (3, 2, False), (3, 3, False), (3, 2, True)])
def test_every_bit_is_that_of_the_file(real: Path, slim: Path, stage: int, world: int, bf16: bool, verify: str) -> None:
    path = real if (stage, world, bf16, verify) == (3, 2, False, "shapes") else slim
    results = lab.values(lab.ranks(loaded, path, stage, bf16, verify, world=world))
    truth = lab.stored_tensors(path)
    assert {lab.old_layout(name) for name in results[0]} == truth.keys()
    for name, (shape, _) in results[0].items():
        stored = truth[lab.old_layout(name)].to(torch.bfloat16 if bf16 else torch.float32)
        assert shape == tuple(stored.shape)
        size = stored.numel() * stored.element_size()
        parts = [one[name][1] for one in results]
        if stage == 3:
            # No rank has more than its partition, which is padded at the end.
            assert all(len(part) == -(-stored.numel() // world) * stored.element_size() for part in parts)
            assert b"".join(parts)[:size] == _bytes(stored), name
        else:
            assert all(part == _bytes(stored) for part in parts), name


def test_copies_of_each_node_have_what_was_loaded(slim: Path) -> None:
    """Under hpZ a forward pass reads them, and a load of DeepSpeed 0.15.4 leaves them with the weights of before."""

    def work(rank: int) -> list[str]:
        from transformers.integrations import HfDeepSpeedConfig

        config = lab.zero_config(3)
        config["zero_optimization"]["zero_hpz_partition_size"] = 2
        live = HfDeepSpeedConfig(config)
        model = load_model(slim, torch_dtype=torch.float32)
        del live
        truth, wrong = lab.stored_tensors(slim), []
        for name, parameter in model.named_parameters():
            with zero.safe_gathers():
                parameter.all_gather_coalesced([parameter]).wait()
            if _bytes(parameter) != _bytes(truth[lab.old_layout(name)]):
                wrong.append(name)
            parameter.partition()
        return wrong

    assert lab.values(lab.ranks(work)) == [[], []]


@pytest.mark.parametrize("verify", ["shapes", "bits"])
def test_plain(slim: Path, verify: Any) -> None:
    model, info = load_model(slim, verify=verify, torch_dtype=torch.float32, output_loading_info=True)
    smokehouse_loader.assert_ready(model)
    assert not info["missing_keys"]
    truth = lab.stored_tensors(slim)
    assert all(_bytes(parameter) == _bytes(truth[lab.old_layout(name)]) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("stage", [2, 3])
def test_tied(tmp_path: Path, stage: int) -> None:
    path = lab.write_checkpoint(tmp_path / "tied", vision_width=32, tie_word_embeddings=True)

    def work(rank: int) -> bool:
        live = lab.request_zero(stage)
        model = load_model(path, verify="bits", torch_dtype=torch.float32)
        smokehouse_loader.assert_ready(model)
        del live
        return model.get_output_embeddings().weight is model.get_input_embeddings().weight

    assert lab.values(lab.ranks(work)) == [True, True]


def test_from_torch_save(slim: Path, tmp_path: Path) -> None:
    path = tmp_path / "bin"
    path.mkdir()
    (path / "config.json").write_text((slim / "config.json").read_text())
    torch.save(lab.stored_tensors(slim), path / "pytorch_model.bin")

    def work(rank: int) -> None:
        live = lab.request_zero(3)
        load_model(path, verify="bits", torch_dtype=torch.float32)
        del live

    lab.values(lab.ranks(work))


def cached(folder: Path, checkpoint: Path) -> Path:
    """Write a cache as the hub's client does, with `checkpoint` as `some/model`."""
    revision = "0" * 40
    home = folder / "models--some--model"
    snapshot = home / "snapshots" / revision
    (home / "blobs").mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(revision)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(checkpoint.iterdir())):
        (home / "blobs" / str(number)).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    return folder


def test_name_on_a_hub(slim: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"cache_dir": cached(tmp_path, slim), "local_files_only": True, "torch_dtype": torch.float32}
    model = load_model("some/model", verify="bits", **options)
    assert _bytes(model.lm_head.weight) == _bytes(lab.stored_tensors(slim)["lm_head.weight"])
    with pytest.raises(LoadError, match="not a directory, and fetching it from the hub failed: ") as refused:
        load_model("some/other", **options)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("options", [{"verify": "all"}, {"state_dict": {"a": 1}}, {"gguf_file": "x"}])
def test_what_cannot_be_verified_is_refused(slim: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"use "):
        load_model(slim, **options)


def refuse(rank: int, paths: list[Path], stage: int, verify: Verify) -> str:
    """Return the message of the LoadError that this rank raises for its own of `paths`."""
    live = lab.request_zero(stage)
    with pytest.raises(LoadError) as refused:
        load_model(paths[rank], verify=verify, torch_dtype=torch.float32)
    del live
    assert "\n" not in str(refused.value)
    return str(refused.value)


DAMAGE = {
    lab.wrong_shape: ("wrong-shape", "[32, 3, 2, 14, 7]"),
    lab.missing_key: ("missing-key", lab.MISSING_KEY.rpartition(".")[2]),
    lab.truncated: ("truncated-shard", "(64 missing)"),
}


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("hit", [(0,), (1,), (0, 1)])
def test_all_ranks_raise_the_same(slim: Path, tmp_path: Path, stage: int, damage: Any, hit: tuple[int, ...]) -> None:
    bad = lab.damaged(slim, tmp_path / "bad", damage)
    messages = lab.values(lab.ranks(refuse, [bad if rank in hit else slim for rank in (0, 1)], stage, "shapes"))
    name, detail = DAMAGE[damage]
    assert messages[0] == messages[1]
    assert messages[0].startswith(f"rank {hit[0]}: ")
    assert f"[{name}]" in messages[0]
    assert detail in messages[0]


@pytest.mark.parametrize("owner", [0, 1])
def test_flipped_bit_is_found_by_the_rank_that_has_it(slim: Path, owner: int) -> None:
    def work(rank: int) -> str:
        from smokehouse_loader import loading

        live = lab.request_zero(3)
        original = loading._verify

        def flipped(model: Any, *rest: Any) -> Any:
            if rank == owner:
                dict(model.named_parameters())["lm_head.weight"].ds_tensor.view(torch.int32)[-1] ^= 1
            return original(model, *rest)

        with patch.object(loading, "_verify", flipped), pytest.raises(LoadError) as refused:
            load_model(slim, verify="bits", torch_dtype=torch.float32)
        del live
        return str(refused.value)

    messages = lab.values(lab.ranks(work))
    assert messages[0] == messages[1]
    assert messages[0].startswith(f"rank {owner}: lm_head.weight: differs in 1 of the ")


def failing(rank: int, path: Path, victim: int, how: str) -> None:
    """Let rank `victim` fail in the middle of the load, between two gathers of ZeRO-3."""
    import deepspeed

    live = lab.request_zero(3)
    original = deepspeed.zero.GatheredParameters.__enter__
    count = 0

    def enter(self: Any) -> Any:
        nonlocal count
        count += 1
        if rank == victim and count == 5:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError("the disk is broken")
        return original(self)

    with patch.object(deepspeed.zero.GatheredParameters, "__enter__", enter):
        load_model(path, torch_dtype=torch.float32)
    del live


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("victim", [0, 1])
def test_failure_in_the_middle(slim: Path, world: int, victim: int) -> None:
    messages = lab.errors(lab.ranks(failing, slim, victim, "raises", world=world))
    assert len(set(messages)) == 1, messages
    assert messages[0].startswith(f"LoadError: rank {victim}: ")
    assert "the disk is broken" in messages[0]


@pytest.mark.parametrize("victim", [0, 1])
def test_rank_that_dies(slim: Path, victim: int) -> None:
    results = lab.ranks(failing, slim, victim, "killed", world=3)
    assert results[victim].died == -signal.SIGKILL
    messages = {one.error for rank, one in enumerate(results) if rank != victim}
    assert len(messages) == 1, messages
    assert "[lost-peer]" in str(messages)


def test_rank_that_dies_before_the_ranks_agree(slim: Path) -> None:
    def work(rank: int) -> None:
        from smokehouse_loader import loading

        def dies(*_: Any) -> Any:
            os.kill(os.getpid(), signal.SIGKILL)

        with patch.object(loading, "_prepare", dies if rank == 1 else loading._prepare):
            load_model(slim, torch_dtype=torch.float32)

    results = lab.ranks(work)
    assert results[1].died == -signal.SIGKILL
    assert "[lost-peer]" in str(results[0].error)
