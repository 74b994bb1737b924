"""`load_model` in plain, ZeRO-2 and ZeRO-3 runs: right to the bit, or the same error on every rank."""

import os
import signal
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lab
import pytest
import torch

import smokehouse_loader
from smokehouse_loader import LoadError, load_model


def held(rank: int, path: Path, stage: int, bf16: bool, verify: str) -> dict[str, Any]:
    """What one rank holds of each parameter after `load_model`, as bytes: the truth is put together from all ranks."""
    live = lab.ask_for(stage, bf16=bf16)
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
def test_every_bit_is_the_files(real: Path, slim: Path, stage: int, world: int, bf16: bool, verify: str) -> None:
    path = real if (stage, world, bf16, verify) == (3, 2, False, "shapes") else slim
    told = lab.values(lab.ranks(held, path, stage, bf16, verify, world=world))
    truth = lab.truth(path)
    assert {lab.old_layout(name) for name in told[0]} == truth.keys()
    for name, (shape, _) in told[0].items():
        stored = truth[lab.old_layout(name)].to(torch.bfloat16 if bf16 else torch.float32)
        assert shape == tuple(stored.shape)
        size = stored.numel() * stored.element_size()
        parts = [one[name][1] for one in told]
        if stage == 3:
            # No rank holds more than its share, and its share is padded at the end.
            assert all(len(part) == -(-stored.numel() // world) * stored.element_size() for part in parts)
            assert b"".join(parts)[:size] == _bytes(stored), name
        else:
            assert all(part == _bytes(stored) for part in parts), name


@pytest.mark.parametrize("verify", ["shapes", "bits"])
def test_plain(slim: Path, verify: Any) -> None:
    model, info = load_model(slim, verify=verify, torch_dtype=torch.float32, output_loading_info=True)
    smokehouse_loader.assert_ready(model)
    assert not info["missing_keys"]
    truth = lab.truth(slim)
    assert all(_bytes(parameter) == _bytes(truth[lab.old_layout(name)]) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("stage", [2, 3])
def test_tied(tmp_path: Path, stage: int) -> None:
    path = lab.make(tmp_path / "tied", vision_width=32, tie_word_embeddings=True)

    def work(rank: int) -> bool:
        live = lab.ask_for(stage)
        model = load_model(path, verify="bits", torch_dtype=torch.float32)
        smokehouse_loader.assert_ready(model)
        del live
        return model.get_output_embeddings().weight is model.get_input_embeddings().weight

    assert lab.values(lab.ranks(work)) == [True, True]


def test_from_torch_save(slim: Path, tmp_path: Path) -> None:
    path = tmp_path / "bin"
    path.mkdir()
    (path / "config.json").write_text((slim / "config.json").read_text())
    torch.save(lab.truth(slim), path / "pytorch_model.bin")

    def work(rank: int) -> None:
        live = lab.ask_for(3)
        load_model(path, verify="bits", torch_dtype=torch.float32)
        del live

    lab.values(lab.ranks(work))


def cached(folder: Path, checkpoint: Path) -> Path:
    """A cache as the hub's client keeps it, which holds `checkpoint` as `some/model`."""
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


def test_a_name_on_a_hub(slim: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"cache_dir": cached(tmp_path, slim), "local_files_only": True, "torch_dtype": torch.float32}
    model = load_model("some/model", verify="bits", **options)
    assert _bytes(model.lm_head.weight) == _bytes(lab.truth(slim)["lm_head.weight"])
    with pytest.raises(LoadError, match="is no folder, and cannot be fetched") as refused:
        load_model("some/other", **options)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("options", [{"verify": "all"}, {"state_dict": {"a": 1}}, {"gguf_file": "x"}])
def test_what_cannot_be_checked_is_refused(slim: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"use "):
        load_model(slim, **options)


def refuse(rank: int, paths: list[Path], stage: int, verify: str) -> str:
    """What a rank is told when it loads its own of `paths`."""
    live = lab.ask_for(stage)
    with pytest.raises(LoadError) as refused:
        load_model(paths[rank], verify=verify, torch_dtype=torch.float32)
    del live
    assert "\n" not in str(refused.value)
    return str(refused.value)


DAMAGE = {
    lab.wrong_shape: ("wrong-shape", "[32, 3, 2, 14, 7]"),
    lab.missing_key: ("missing-key", lab.MISSING_KEY.rpartition(".")[2]),
    lab.truncated: ("truncated-shard", "64 fewer"),
}


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("hit", [(0,), (1,), (0, 1)])
def test_all_ranks_raise_the_same(slim: Path, tmp_path: Path, stage: int, damage: Any, hit: tuple[int, ...]) -> None:
    bad = lab.damaged(slim, tmp_path / "bad", damage)
    told = lab.values(lab.ranks(refuse, [bad if rank in hit else slim for rank in (0, 1)], stage, "shapes"))
    name, detail = DAMAGE[damage]
    assert told[0] == told[1]
    assert told[0].startswith(f"rank {hit[0]}: ")
    assert f"[{name}]" in told[0]
    assert detail in told[0]


@pytest.mark.parametrize("owner", [0, 1])
def test_a_flipped_bit_is_seen_by_the_rank_that_holds_it(slim: Path, owner: int) -> None:
    def work(rank: int) -> str:
        from smokehouse_loader import loading

        live = lab.ask_for(3)
        original = loading._verify

        def flipped(model: Any, *rest: Any) -> Any:
            if rank == owner:
                dict(model.named_parameters())["lm_head.weight"].ds_tensor.view(torch.int32)[-1] ^= 1
            return original(model, *rest)

        with patch.object(loading, "_verify", flipped), pytest.raises(LoadError) as refused:
            load_model(slim, verify="bits", torch_dtype=torch.float32)
        del live
        return str(refused.value)

    told = lab.values(lab.ranks(work))
    assert told[0] == told[1]
    assert told[0].startswith(f"rank {owner}: lm_head.weight: differs in 1 of the ")


def failing(rank: int, path: Path, victim: int, how: str) -> None:
    """Rank `victim` fails in the middle of the load, between two gathers of ZeRO-3."""
    import deepspeed

    live = lab.ask_for(3)
    original = deepspeed.zero.GatheredParameters.__enter__
    count = 0

    def enter(self: Any) -> Any:
        nonlocal count
        count += 1
        if rank == victim and count == 5:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError("the disk has had enough")
        return original(self)

    with patch.object(deepspeed.zero.GatheredParameters, "__enter__", enter):
        load_model(path, torch_dtype=torch.float32)
    del live


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_failure_in_the_middle(slim: Path, world: int, victim: int) -> None:
    told = lab.errors(lab.ranks(failing, slim, victim, "raises", world=world))
    assert len(set(told)) == 1, told
    assert told[0].startswith(f"LoadError: rank {victim}: ")
    assert "the disk has had enough" in told[0]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_dies(slim: Path, victim: int) -> None:
    told = lab.ranks(failing, slim, victim, "killed", world=3)
    assert told[victim].died == -signal.SIGKILL
    said = {one.error for rank, one in enumerate(told) if rank != victim}
    assert len(said) == 1, said
    assert "[lost-peer]" in str(said)


def test_a_rank_that_dies_before_the_verdict(slim: Path) -> None:
    def work(rank: int) -> None:
        from smokehouse_loader import loading

        def dies(*_: Any) -> Any:
            os.kill(os.getpid(), signal.SIGKILL)

        with patch.object(loading, "_prepare", dies if rank == 1 else loading._prepare):
            load_model(slim, torch_dtype=torch.float32)

    told = lab.ranks(work)
    assert told[1].died == -signal.SIGKILL
    assert "[lost-peer]" in str(told[0].error)
