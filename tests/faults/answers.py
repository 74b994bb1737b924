"""What hostile servers answer, by kind; with the sentence that a download must end in."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from smokehouse.storage.transfer import Limits

from .server import Exchange, Script

CONTENT = bytes(range(256)) * 64
# For faults that end at once: time is not what ends them, however busy this machine is.
PATIENT = Limits(connect=20, answer=20, window=20, deadline=60, attempts=3, pause=0.001, retry_after=0.5, largest=1 << 20)
# For faults that only time ends.
HURRIED = replace(PATIENT, answer=0.3, window=0.3, attempts=2)
BRIEF = replace(PATIENT, deadline=0.5)
DIGITS = "9" * 5000
LOST = r"connection to HOST lost .*; run it again to resume"
INVALID = r"invalid answer from HOST: .*; REMEDY"


@dataclass(frozen=True)
class Fault:
    """An answer, its kind and name, and what is said about a file that is downloaded from there."""

    kind: str
    name: str
    script: Script
    says: str
    limits: Limits = PATIENT
    known_size: bool | None = None  # whether the size of the file is known; None: either


def faults() -> Iterator[Fault]:
    """Yield every fault."""
    yield from _headers()
    yield from _heads()
    yield from _statuses()
    yield from _redirects()
    yield from _bodies()
    yield from _slow()


def _headers() -> Iterator[Fault]:
    # fmt: off
    numbers = {"a word": "many", "5000 digits": DIGITS, "negative": "-1", "signed": "+5", "empty": "", "a fraction": "1.5",
               "two": "5, 6", "superscript": "\xb2", "spaced": "1 2", "hexadecimal": "0x10", "underscored": "1_000"}
    # fmt: on
    for name, number in numbers.items():
        yield Fault("Content-Length", name, _with("200 OK", f"Content-Length: {number}"), INVALID)
    yield Fault("Content-Length", "twice", _with("200 OK", "Content-Length: 5", "Content-Length: 6"), INVALID)
    for name, extent in _EXTENTS.items():
        ranges = (f"Content-Range: {extent}",) if extent is not None else ()
        yield Fault("Content-Range", name, _with("206 Partial Content", *ranges, f"Content-Length: {len(CONTENT)}"), INVALID)


_EXTENTS = {
    "missing": None,
    "5000 digits": f"bytes 0-{DIGITS}/{DIGITS}",
    "a word": "bytes some",
    "another unit": "lines 0-9/10",
    "backwards": "bytes 9-0/10",
    "behind the end": "bytes 0-10/10",
    "elsewhere": "bytes 5-9/10",
    "negative": "bytes -5-9/10",
}


def _heads() -> Iterator[Fault]:
    ended = rf"({LOST}|{INVALID})"
    heads = {
        "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
        "nothing": b"",
        "zeros": bytes(100_000),
        "HTTP/9": b"HTTP/9.9 200 OK\r\n\r\n",
        "status of words": b"HTTP/1.1 fine OK\r\n\r\n",
        "status of 5000 digits": b"HTTP/1.1 " + DIGITS.encode() + b" OK\r\n\r\n",
        "a line of 1 MB": b"HTTP/1.1 200 OK\r\nX: " + b"x" * (1 << 20) + b"\r\n\r\n",
        "10,000 headers": b"HTTP/1.1 200 OK\r\n" + b"X: x\r\n" * 10_000 + b"\r\n",
    }
    other = "SHA-256 mismatch"  # a head without an end has a body without a byte
    yield Fault("head", "cut", _sends(b"HTTP/1.1 200 OK\r\nContent-Le"), rf"({LOST}|{INVALID}|{other})")
    for name, head in heads.items():
        yield Fault("head", name, _sends(head), ended)
    yield Fault("head", "endless", _endless(b"HTTP/1.1 200 OK\r\n", b"X: x\r\n" * 1000), ended)
    yield Fault("head", "endless line", _endless(b"HTTP/1.1 200 ", b"x" * 10_000), ended)


def _statuses() -> Iterator[Fault]:
    for status in ("500 Broken", "502 Bad Gateway", "503 Busy", "429 Slow Down", "408 Timeout", "599 Odd"):
        yield Fault("status", status, _with(status, "Content-Length: 0"), rf"HOST returned {status}; run it again to resume")
    for status in (
        "400 Bad",
        "401 Who",
        "403 No",
        "404 Not Found",
        "410 Gone",
        "416 Range",
        "204 Nothing",
        "304 Same",
        "299 Odd",
    ):
        yield Fault("status", status, _with(status, "Content-Length: 0"), rf"HOST returned {status}; REMEDY")
    waits = {
        "an hour": "3600",
        "long enough to be no number": "9" * 9,
        "a day of next century": "Fri, 01 Jan 2100 00:00:00 GMT",
    }
    for name, wait in waits.items():
        script = _with("503 Busy", f"Retry-After: {wait}", "Content-Length: 0")
        yield Fault("Retry-After", name, script, r"HOST returned 503 Busy and asks to wait for more than 0\.5 s; try later")
    for wait in ("0", "-1", DIGITS, "soon", "Mon, 01 Jan 2001 00:00:00 GMT", "Mon, 99 Jan 99999 00:00:00 GMT"):
        script = _with("503 Busy", f"Retry-After: {wait}", "Content-Length: 0")
        yield Fault("Retry-After", wait[:30], script, r"HOST returned 503 Busy; run it again to resume")
    page = b"<html>sign in</html>"
    headers = ("Content-Type: text/html; charset=utf-8", f"Content-Length: {len(page)}")
    yield Fault(
        "status", "a web page", lambda got: got.answer("200 OK", page, *headers), "expected a file, HOST returned a web page"
    )


def _redirects() -> Iterator[Fault]:
    targets = {
        "a file": "file:///etc/passwd",
        "no URL": "http://[",
        "no bytes of UTF-8": "/\xff\xfe",
        "a port of words": "http://127.0.0.1:many/",
        "an empty host": "http:///x",
        "ftp": "ftp://127.0.0.1/x",
    }
    for name, target in targets.items():
        script = _with("302 Found", f"Location: {target}", "Content-Length: 0")
        yield Fault("redirect", f"to {name}", script, rf"({INVALID}|{LOST}|HOST returned 302)")
    around = _with("302 Found", "Location: /around", "Content-Length: 0")
    yield Fault("redirect", "around", around, "invalid answer from HOST: expected at most 10 redirects, found more")

    def endless(got: Exchange) -> None:
        got.answer("302 Found", b"", "Location: /around")
        got.repeat(bytes(1 << 16))

    yield Fault("redirect", "with an endless body", endless, "invalid answer from HOST: expected at most 10 redirects")


def _bodies() -> Iterator[Fault]:
    whole = f"Content-Length: {len(CONTENT)}"

    def cut(got: Exchange) -> None:
        got.answer("200 OK", CONTENT[: len(CONTENT) // 2], whole)

    def crumbs(got: Exchange) -> None:
        extent = f"Content-Range: bytes {got.start}-{len(CONTENT) - 1}/{len(CONTENT)}"
        length = f"Content-Length: {len(CONTENT) - got.start}"
        got.answer("206 Partial Content", CONTENT[got.start : got.start + 1], extent, length)

    def changing(got: Exchange) -> None:
        sent = bytes([got.number % 256]) * len(CONTENT)
        extent = f"Content-Range: bytes {got.start}-{len(CONTENT) - 1}/{len(CONTENT)}"
        cut = len(CONTENT) // 2 if got.start == 0 else None
        got.answer("206 Partial Content", sent[got.start : cut], extent, f"Content-Length: {len(CONTENT) - got.start}")

    other = r"SHA-256 mismatch, HOST serves another file than the test specifies; REMEDY"
    yield Fault("body", "cut each time", cut, LOST)
    yield Fault("body", "a byte each time", crumbs, LOST)
    yield Fault("body", "changed between ranges", changing, rf"({other}|{LOST})")
    yield Fault("body", "another file", lambda got: got.answer("200 OK", bytes(len(CONTENT))), other)
    yield Fault("body", "longer", lambda got: got.answer("200 OK", CONTENT + b"x"), other)
    yield Fault("body", "empty", lambda got: got.answer("200 OK"), rf"({other}|{LOST})")
    huge = _with("200 OK", "Content-Length: 999999999999999")
    yield Fault(
        "body", "announced as huge", huge, r"expected at most 1048576 bytes, HOST announces 9{15}; REMEDY", known_size=False
    )
    yield Fault("body", "endless", _endless(b"HTTP/1.1 200 OK\r\n\r\n", bytes(1 << 16)), other)
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    sizes = {
        "words": b"many",
        "negative": b"-5",
        "5000 digits": DIGITS.encode(),
        "empty": b"",
        "a line of 1 MB": b"1" * (1 << 20),
    }
    for name, length in sizes.items():
        yield Fault("chunks", f"of {name}", _sends(chunked + length + b"\r\nabc\r\n"), rf"({LOST}|{INVALID}|{other})")
    yield Fault("chunks", "endless", _endless(chunked, (b"400\r\n" + bytes(1024) + b"\r\n") * 64), other)
    yield Fault("chunks", "cut", _sends(chunked + b"ffff\r\nabc"), LOST)


def _slow() -> Iterator[Fault]:
    head = b"HTTP/1.1 200 OK\r\n"
    late = r"(HOST|connection to HOST) .*no answer within 0\.3 s.*; run it again to resume"
    slow = r"connection to HOST lost at \d+ of \w+ bytes \(slower than 1\.0 kB a second for 0\.3 s\); run it again to resume"
    timed = r"connection to HOST lost .*\(timed out after 0\.5 s\); run it again to resume"
    yield Fault("slow", "no answer", lambda got: got.hold(), late, HURRIED)
    yield Fault("slow", "a header each moment", _endless(head, b"X: x\r\n", 0.02), late, HURRIED)
    yield Fault("slow", "a byte of a header each moment", _endless(head + b"X: ", b"x", 0.02), late, HURRIED)
    yield Fault("slow", "100 Continue for ever", _endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.02), late, HURRIED)
    yield Fault("slow", "a byte each moment", _endless(head + b"\r\n", b"x", 0.02), slow, HURRIED)
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n"
    yield Fault("slow", "a chunk each moment", _endless(chunked, b"1\r\nx\r\n", 0.02), slow, HURRIED)
    yield Fault("slow", "a digit of a chunk each moment", _endless(chunked + b"1\r\nx\r\n", b"0", 0.02), slow, HURRIED)
    yield Fault("slow", "trailers for ever", _endless(chunked + b"1\r\nx\r\n0\r\n", b"X: x\r\n", 0.02), slow, HURRIED)

    def stops(got: Exchange) -> None:
        got.answer("200 OK", CONTENT[:100], f"Content-Length: {len(CONTENT)}")
        got.hold()

    yield Fault("slow", "stops", stops, slow, HURRIED)
    steady = _endless(head + b"\r\n", b"x" * 100, 0.02)  # faster than the rate, and without an end
    yield Fault("slow", "longer than the deadline", steady, timed, BRIEF)


def _with(status: str, *headers: str) -> Script:
    return lambda got: got.answer(status, CONTENT if "Content-Length: 0" not in headers else b"", *headers)


def _sends(data: bytes) -> Script:
    return lambda got: got.send(data)


def _endless(first: bytes, rest: bytes, pause: float = 0.0) -> Callable[[Exchange], None]:
    def script(got: Exchange) -> None:
        got.send(first)
        got.repeat(rest, pause)

    return script
