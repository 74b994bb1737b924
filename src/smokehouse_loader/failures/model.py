"""What the table of known failures is made of."""

from dataclasses import dataclass

MEASURED = "measured by Smokehouse"


@dataclass(frozen=True)
class Sign:
    """A text of a log by which a failure is recognised, and what must come with it.

    `text` is literal, and whitespace in it means nothing, since consoles wrap lines anywhere. `{}` stands for up to 400 other
    characters, `{n}` for a number, `{w}` for a word or path, `{0}` for the shape [0], `{shape}` for a shape of numbers other
    than 0, `{/}` for no further digit. The same holds for the texts of the other fields, of which each may be alternatives,
    joined by ` || `.
    """

    text: str
    needs: tuple[str, ...] = ()  # each in the same traceback, or in the lines around the text
    unless: tuple[str, ...] = ()  # none in the same traceback, or in the lines around the text
    log: tuple[str, ...] = ()  # each anywhere in the log
    unless_log: tuple[str, ...] = ()  # none anywhere in the log
    any_name: str = ""  # a regular expression that one of the keys listed after the text matches
    all_names: str = ""  # one that all of them match
    no_name: str = ""  # one that none of them matches


@dataclass(frozen=True)
class Failure:
    """A known failure.

    `signs` recognise it in a log; empty if it is silent, when only its `reproduction` shows it, a test of that name. A `victim`
    is a symptom of what happened elsewhere: to another rank or before. A `harmless` one is a message that worries and need not.
    One without a reproduction names its source, a public thread or the program, and a test finds its text in the libraries.
    """

    name: str
    cause: str  # one sentence
    cure: str  # how to fix it, a clause without a full stop
    source: str
    reproduction: str = ""
    signs: tuple[Sign, ...] = ()
    victim: bool = False
    harmless: bool = False
    may_follow: bool = False  # the cause, unless an exception of another kind came first
    only_on_gpu: bool = False
    ends_as: tuple[str, ...] = ()  # failures whose texts the same mistake has with other versions of a package
    excludes: tuple[str, ...] = ()  # failures that the same text would fit as well, and that it is not
    apart: str = ""  # what tells it apart from others that fit the same text, a sentence
    question: str = ""  # what to find out if several fit
