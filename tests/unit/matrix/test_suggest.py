"""Suggestions come from what was measured and proven, and say what is known of what was asked."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from smokehouse.checkout import Checkout
from smokehouse.matrix import grid, store
from smokehouse.matrix.model import Cell, Check, Measured, Versions
from smokehouse.matrix.suggest import Checkpoint, Stack, answer

from ..conftest import TestCheckout
from .made import KNOWN, WORKS, cell, make

LATER = Checkpoint("qwen2_5_vl", later_layout=True, problems=())


def measured(*cells: Cell) -> Measured:
    return Measured(model="Tiny-VL", family="qwen2_5_vl", cells=[*cells])


def stack(name: str, transformers: str, deepspeed: str, *, cuda: str = "12.4", on_gpu: bool = False) -> Stack:
    versions = Versions(torch="2.6.0", transformers=transformers, deepspeed=deepspeed)
    return Stack(name, "qwen2_5_vl", versions, cuda, "cpu", on_gpu)


def nearest(found: Measured, stacks: list[Stack], **wanted: str) -> tuple[str, str, int]:
    suggestion = answer(found, stacks, wanted).suggestion
    assert suggestion
    return suggestion.versions.transformers, suggestion.versions.deepspeed, suggestion.distance


def test_the_nearest_by_releases_that_works_is_suggested() -> None:
    versions = ("4.49.0", "4.51.3", "4.52.4", "4.57.6", "5.0.0")
    cells = [cell(one, "0.15.4", (WORKS, KNOWN if one in ("4.51.3", "4.52.4") else WORKS)) for one in versions]
    assert nearest(measured(*cells), [], transformers="4.57") == ("4.57.6", "0.15.4", 0)
    assert nearest(measured(*cells), [], transformers="4.51.3") == ("4.49.0", "0.15.4", 1)
    assert nearest(measured(*cells), [], transformers="4.52.4") == ("4.57.6", "0.15.4", 1)
    # 4.56 lies between 4.52.4 and 4.57.6, of which only the later one works.
    assert nearest(measured(*cells), [], transformers="4.56") == ("4.57.6", "0.15.4", 1)
    known = answer(measured(*cells), [], {"transformers": "4.51"}).known
    assert [one.zero3.failure for one in known] == ["gloo-race"]


def test_of_equal_ones_an_environment_then_gpus_then_the_newest_counts() -> None:
    cells = [cell("4.49.0", deepspeed, (WORKS, WORKS)) for deepspeed in ("0.15.4", "0.18.9", "0.16.9")]
    assert nearest(measured(*cells), [], transformers="4.49") == ("4.49.0", "0.18.9", 0)
    on_gpu = cell("4.49.0", "0.16.9", (WORKS, WORKS), device="cuda", backend="nccl")
    assert nearest(measured(*cells[:2], on_gpu), [], transformers="4.49") == ("4.49.0", "0.16.9", 0)
    found = answer(measured(*cells), [stack("tiny", "4.49.0", "0.15.4")], {"transformers": "4.49"}).suggestion
    assert found
    assert (found.environment, found.versions.deepspeed) == ("tiny", "0.15.4")
    # A newer stack for CUDA 13 comes first where its versions are asked for, or where it was seen on GPUs.
    newer = stack("newer", "4.51.3", "0.19.8", cuda="13.2")
    assert nearest(measured(), [stack("tiny", "4.49.0", "0.15.4"), newer])[0] == "4.49.0"
    assert nearest(measured(), [stack("tiny", "4.49.0", "0.15.4"), newer], transformers="4.51")[0] == "4.51.3"
    on_gpus = stack("newer", "4.51.3", "0.19.8", cuda="13.2", on_gpu=True)
    assert nearest(measured(), [stack("tiny", "4.49.0", "0.15.4"), on_gpus])[0] == "4.51.3"
    # What was asked for comes before where it is.
    assert nearest(measured(*cells), [stack("tiny", "4.49.0", "0.15.4")], deepspeed="0.16") == ("4.49.0", "0.16.9", 0)


def test_a_checkpoint_of_later_keys_gets_only_what_loads_them_under_both_stages() -> None:
    def both(stages: tuple[int, ...]) -> list[Check]:
        return [
            Check(name="both key layouts", zero_stage=2 if stage == 2 else 3, verdict="passed", detail="whole", seconds=1)
            for stage in stages
        ]

    old = cell("4.51.3", "0.19.8", (WORKS, WORKS))
    half = cell("4.53.3", "0.19.8", (WORKS, WORKS), checks=both((3,)))
    new = cell("4.57.6", "0.19.8", (WORKS, WORKS), checks=both((2, 3)))
    found = answer(measured(old, half, new), [stack("old", "4.51.3", "0.15.4")], {"transformers": "4.51"}, LATER).suggestion
    assert found
    assert (found.versions.transformers, found.environment) == ("4.57.6", "")
    assert answer(measured(old), [stack("old", "4.51.3", "0.15.4")], {}, LATER).suggestion is None


@pytest.fixture
def with_cells(checkout: TestCheckout, root: Path, tmp_path: Path) -> TestCheckout:
    """Return the checkout with the measured cells of `make`."""
    made = make(tmp_path / "made")
    (made.root / "matrix").rename(checkout.root / "matrix")
    (checkout.root / "packages").symlink_to(root / "packages")
    return checkout


def checkpoint(folder: Path, model_type: str, *names: str) -> Path:
    """Write a checkpoint of tensors with one element each."""
    folder.mkdir()
    tensors = {name: {"dtype": "F32", "shape": [1], "data_offsets": [4 * n, 4 * n + 4]} for n, name in enumerate(names)}
    header = json.dumps(tensors).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4 * len(names)))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


def test_the_command_line_answers_in_words_and_as_json(with_cells: TestCheckout, tmp_path: Path) -> None:
    ended = with_cells.run("suggest", "--model", "Owner/Tiny-VL-3B", "--transformers", "4.49", "--deepspeed", "0.15")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [
        "Tiny-VL with transformers 4.49, deepspeed 0.15: measured",
        "  torch 2.6.0, transformers 4.49.0, deepspeed 0.15.4: ZeRO-2 works, ZeRO-3 fails (gloo-race)",
        "nearest that works, 1 measured version away: torch 2.6.0, transformers 4.9.0, deepspeed 0.15.4",
        ended.stdout.splitlines()[3],
        "  make it: smokehouse matrix --model tiny-vl --torch 2.6.0 --transformers 4.9.0 --deepspeed 0.15.4 --again --keep 1",
    ]
    published = checkpoint(tmp_path / "published", "qwen2_5_vl", "visual.x", "model.layers.0.x")
    document = json.loads(with_cells.run("suggest", "--checkpoint", str(published), "--json").stdout)
    assert document["checkpoint"] == {"later_layout": False, "problems": []}
    assert document["suggestion"]["transformers"] == "4.9.0"
    later = checkpoint(tmp_path / "later", "qwen2_5_vl", "model.visual.x", "model.language_model.layers.0.x")
    ended = with_cells.run("suggest", "--checkpoint", str(later))
    assert (ended.returncode, "no stack that works is known" in ended.stdout) == (1, True)


def test_what_cannot_be_answered_is_refused(with_cells: TestCheckout, tmp_path: Path) -> None:
    other = checkpoint(tmp_path / "other", "llama", "x")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("[1")
    for arguments, said in (
        ([], "suggest: expected --model or --checkpoint, found neither; add one"),
        (["--model", "nothing"], "--model nothing: expected one of tiny-vl; add matrix/NAME.toml to measure another"),
        (["--model", "tiny-vl", "--torch", "x"], "--torch: expected a version, found 'x'; write it like 4.51.3"),
        (["--model", "tiny-vl", "--checkpoint", str(other)], f"--checkpoint {other}: expected model_type 'qwen2_5_vl'"),
        (["--checkpoint", str(tmp_path / "broken")], "config.json: expected JSON with model_type, found none"),
        (["--checkpoint", str(tmp_path / "none")], "config.json: No such file or directory"),
    ):
        ended = with_cells.run("suggest", *arguments)
        assert ended.returncode == 2, (arguments, ended.stdout)
        assert said in ended.stderr.splitlines()[-1]


def test_versions_are_taken_as_programs_print_them(with_cells: TestCheckout) -> None:
    def known(version: str) -> list[str]:
        ended = with_cells.run("suggest", "--model", "tiny-vl", "--transformers", version, "--torch", "2.6.0+cu124", "--json")
        assert ended.returncode == 0, ended.stderr
        return [one["deepspeed"] for one in json.loads(ended.stdout)["known"]]

    assert known("v4.49.0") == ["0.15.4", "0.16.9", "0.18.9"]
    # A development version is none that was measured, but there is a nearest one.
    assert known("4.49.0.dev0") == []


def test_a_model_is_known_by_its_environments_too(checkout: TestCheckout, root: Path) -> None:
    shipped = replace(checkout, root=root)
    for name, model, environment in (
        ("VLM-R1", "Qwen2.5-VL", "qwen2.5-vl-latest"),
        ("01-ai/Yi-Coder-9B", "Llama", "yi-coder"),
        ("microsoft/trocr-base-printed", "vision-encoder-decoder", "trocr"),
    ):
        ended = shipped.run("suggest", "--model", name, "--json")
        assert ended.returncode == 0, ended.stderr
        found = json.loads(ended.stdout)
        assert (found["model"], found["suggestion"]["environment"]) == (model, environment), name


def test_the_data_of_this_checkout_answers(root: Path) -> None:
    checkout = Checkout(root)
    for name in grid.names(checkout):
        found = store.load(checkout, grid.read(checkout, name))
        assert answer(found, [], {}).suggestion or not any(one.works for one in found.cells)
