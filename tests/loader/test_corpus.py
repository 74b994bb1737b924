"""Explain the texts of the corpus, as they are and as launchers and consoles print them."""

import json
import textwrap
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from smokehouse_loader.diagnosis import explain_text
from smokehouse_loader.failures import FAILURES

CORPUS = Path(__file__).parent / "corpus"


@dataclass(frozen=True)
class Case:
    """A text, the failure that it is ("" for none that is known), those that must follow, and what ended the first rank."""

    name: str
    answer: str
    text: str
    then: tuple[str, ...]
    first: str


def _cases() -> list[Case]:
    read = [case for file in sorted(CORPUS.glob("*.toml")) for case in tomllib.loads(file.read_text("utf-8"))["case"]]
    return [
        Case(one["name"], one["answer"], one["text"].removeprefix("\n"), tuple(one.get("then", ())), one.get("first", ""))
        for one in read
    ]


CASES = _cases()
# Innocent lines of another rank, or of the same one.
INNOCENT = (
    "{'loss': 1.4312, 'grad_norm': 0.88, 'learning_rate': 9.5e-06, 'epoch': 0.31}",
    " 12%|█▏        | 120/1000 [03:11<23:25,  1.60s/it]",
    "[2025-06-01 10:00:00,000] [INFO] [logging.py:128:log_dist] [Rank 0] step=120, skipped=0, lr=[1e-05], mom=[(0.9, 0.999)]",
    "Saving model checkpoint to out/checkpoint-100",
    "tokenizer config file saved in out/checkpoint-100/tokenizer_config.json",
)


def prefixed(prefix: str) -> Callable[[str], str]:
    """Return what puts `prefix` before each line."""
    return lambda text: "".join(f"{prefix}{line}\n" for line in text.splitlines())


def boxed(text: str) -> str:
    """Return a text as rich prints it in a box of 80 columns."""
    lines = [part for line in text.splitlines() for part in (textwrap.wrap(line, 76, drop_whitespace=False) or [""])]
    return "".join(["╭", "─" * 78, "╮\n", *(f"│ {line:<76} │\n" for line in lines), "╰", "─" * 78, "╯\n"])


def wrapped(text: str) -> str:
    """Return a text as a terminal of 80 columns records it."""
    return "".join(f"{line[at : at + 80]}\n" for line in text.splitlines() for at in range(0, max(len(line), 1), 80))


def interleaved(text: str) -> str:
    """Return a text of rank 1 among lines of rank 0."""
    lines = text.splitlines()
    return "".join(f"[rank1]: {line}\n[rank0]: {INNOCENT[number % len(INNOCENT)]}\n" for number, line in enumerate(lines))


def progress(text: str) -> str:
    """Return a text after a progress bar that returned its carriage."""
    bar = "\r".join(f"Loading: {number:3}%|{'█' * (number // 10)}" for number in range(0, 100, 7))
    return f"{bar}\r{text}"


def records(text: str) -> str:
    """Return a text as JSON records of a container's log."""
    return "".join(
        json.dumps({"log": f"{line}\n", "stream": "stderr", "time": "2025-06-01T10:00:00Z"}) + "\n"
        for line in text.splitlines()
    )


def one_record(text: str) -> str:
    """Return a text as the message of one JSON record."""
    return json.dumps({"level": "ERROR", "rank": 3, "message": text}) + "\n"


FORMS: dict[str, Callable[[str], str]] = {
    "as it is": lambda text: text,
    "torchrun": prefixed("[rank3]: "),
    "torchrun --tee": prefixed("[default3]:"),
    "torchrun, both": prefixed("[default3]:[rank3]: "),
    "srun -l": prefixed("3: "),
    "mpirun": prefixed("[1,3]<stderr>: "),
    "ray": prefixed("(pid=4711) "),
    "ray train": prefixed("(RayTrainWorker pid=4711, ip=10.0.0.4) "),
    "docker compose": prefixed("trainer-1  | "),
    "kubectl": prefixed("[pod/train-0/main] "),
    "kubernetes": prefixed("2025-06-01T10:00:00.123456789Z stderr F "),
    "time and rank": prefixed("2025-06-01T10:00:00.123Z [rank3]: "),
    "colours": prefixed("\x1b[31m\x1b[1m"),
    "Windows": lambda text: text.replace("\n", "\r\n"),
    "an issue": lambda text: (
        f"### Reproduction\n\n```shell\npython train.py\n```\n\noutputs:\n\n```\n{text}```\n\n- [x] I read it\n"
    ),
    "quoted": prefixed("> "),
    "box": boxed,
    "80 columns": wrapped,
    "two ranks": interleaved,
    "progress bar": progress,
    "JSON records": records,
    "one JSON record": one_record,
    "in a long log": lambda text: "\n".join(INNOCENT * 40) + f"\n{text}" + "\n".join(INNOCENT * 5),
    "no line ends": lambda text: text.rstrip("\n"),
}


def test_corpus_is_large_and_its_names_are_unique() -> None:
    assert len(CASES) >= 150
    assert len({case.name for case in CASES}) == len(CASES)
    assert sum(not case.answer for case in CASES) >= 25
    assert {case.answer for case in CASES if case.answer} <= {failure.name for failure in FAILURES}


def test_every_failure_that_a_log_shows_has_a_text() -> None:
    shown = {failure.name for failure in FAILURES if failure.signs}
    assert shown - {name for case in CASES for name in (case.answer, *case.then)} == set()


@pytest.mark.parametrize("form", FORMS)
def test_each_text_has_its_answer(form: str) -> None:
    wrong = []
    for case in CASES:
        explanation = explain_text(FORMS[form](case.text))
        names = [one.failure.name for one in explanation.found]
        if names[:1] != [case.answer] * bool(case.answer):
            wrong.append(f"{case.name}: expected {case.answer or 'nothing'}, found {names}")
        elif not set(case.then) <= set(names):
            wrong.append(f"{case.name}: expected {case.then} too, found {names}")
        elif case.first and (explanation.first is None or explanation.first.type != case.first):
            wrong.append(f"{case.name}: expected {case.first} as the end of the first rank, found {explanation.first}")
    assert not wrong, "\n".join(wrong)
