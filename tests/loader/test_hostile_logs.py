"""Explain logs that are long or made to be slow: the time grows linearly with the length, and no cut hides evidence."""

import time

import pytest

from smokehouse_loader.diagnosis import explain_text

MIB = 2**20
HOSTILE = {
    "one line": "a ",
    "spaces": " ",
    "a box": "│ ",
    "an open list": "newly initialized: ['a', ",
    "lists": "newly initialized: [\n",
    "rows": "a.b | MISSING | \n",
    "half a message": "size mismatch for a: copying a param with shape ",
    "tracebacks": 'Traceback (most recent call last):\n  File "x.py", line 3, in f\nValueError: foo\n',
    "a chain": "ValueError: foo\n\nDuring handling of the above exception, another exception occurred:\n\n",
    "messages without context": "UnpicklingError: Weights only load failed.\nRuntimeError: 'weight' must be 2-D\n",
    "frames": '  File "x.py", line 3, in f\n',
    "escapes": "\x1b]\x1b[",
    "JSON": '{"message": "x", "rank": 1}\n',
    "nested JSON": '{"a":',
    "a dotted name": "a.",
    "prefixes": "[rank1]: [rank1]: ",
    "progress": " 12%|█▏        | 120/1000 [03:11<23:25,  1.60s/it]\r",
}


def seconds(text: str) -> float:
    """Return the CPU time that an explanation takes."""
    begin = time.process_time()
    explain_text(text)
    return time.process_time() - begin


@pytest.mark.parametrize("piece", HOSTILE.values(), ids=HOSTILE.keys())
def test_time_is_linear(piece: str) -> None:
    """Eight times the text takes less than sixteen times as long, where it takes long enough to be measured."""
    small, large = piece * (MIB // 8 // len(piece)), piece * (MIB // len(piece))
    before = seconds(small)
    assert seconds(large) < max(16 * before, 2.0)


def test_long_log() -> None:
    line = "[rank%d]: {'loss': 1.4312, 'grad_norm': 0.88, 'learning_rate': 9.5e-06, 'epoch': %d}\n"
    text = "".join(line % (number % 8, number) for number in range(50 * MIB // 80))
    assert len(text) >= 45 * MIB
    begin = time.process_time()
    found = explain_text(text + "[rank3]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.19 GiB.\n").found
    assert time.process_time() - begin < 60
    assert [(one.failure.name, one.rank) for one in found] == [("cuda-out-of-memory", "3")]
    assert found[0].line == text.count("\n") + 1


@pytest.mark.parametrize("names", [2, 900])
def test_evidence_at_the_end_of_a_long_line_counts(names: int) -> None:
    keys = ", ".join(f"'model.layers.{number}.mlp.down_proj.weight'" for number in range(names))
    line = f"newly initialized: [{keys}, 'visual.patch_embed.proj.weight']"
    assert names == 2 or len(line) > 30_000
    assert [one.failure.name for one in explain_text(line).found] == ["key-layout"]


def test_line_numbers_are_those_of_an_editor() -> None:
    bar = "\r".join(f"{number}%" for number in range(9))
    found = explain_text(f"a\x0bb\x0cc\u2028d\n{bar}\r\nCUDA error: out of memory\r\n").found
    assert [one.line for one in found] == [3]
