"""A transfer that is stopped, as by Ctrl-Z, and continued goes on, however long it was stopped."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

SOON = 60.0
SIZE = 64 << 20  # bytes, more than all buffers on the way
# The clocks of Python show an hour more once the transfer was stopped.
TRANSFER = """
import os, sys, time
from pathlib import Path
real = time.monotonic
time.monotonic = lambda: real() + (3600 if os.path.exists("stopped") else 0)
from smokehouse.storage.download import Download, fetch
from smokehouse.storage.transfer import Client, Limits
limits = Limits(connect=1.0, answer=20.0, window=20.0, deadline=100.0, attempts=1)
what, url, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
if what == "download":
    fetch([Download(Path("file"), url, sys.argv[4], size)], remedy="", limits=limits)
else:
    with open("file", "w+b") as file:
        file.truncate(size)
        headers = {"Content-Length": str(size)}
        with Client(limits).open("PUT", url, headers=headers, data=file) as answer:
            assert answer.status == 201
print("done")
"""
ZEROS = "3b6a07d0d404fab4e23b6d34bc6696a6a312dd92821332385e5af7c01c421351"  # SHA-256 of 64 MiB of them, as sha256sum prints it


def read(connection: socket.socket, count: int) -> None:
    """Read so many bytes."""
    while count > 0:
        count -= len(connection.recv(min(count, 1 << 20))) or count


def head(connection: socket.socket) -> int:
    """Read the head of a request; return how many bytes came after it."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(1 << 16)
    return len(received.partition(b"\r\n\r\n")[2])


def download(connection: socket.socket, halfway: Callable[[], None]) -> None:
    """Send a file, half of it late."""
    head(connection)
    connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n".encode() + bytes(SIZE // 2))
    halfway()
    connection.sendall(bytes(SIZE // 2))


def answer(connection: socket.socket, halfway: Callable[[], None]) -> None:
    """Answer late."""
    head(connection)
    halfway()
    connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n".encode() + bytes(SIZE))


def upload(connection: socket.socket, halfway: Callable[[], None]) -> None:
    """Receive a file, half of it late."""
    early = head(connection)
    read(connection, SIZE // 2 - early)
    halfway()
    read(connection, SIZE // 2)
    connection.sendall(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")


@pytest.mark.parametrize(("what", "serve"), [("download", download), ("download", answer), ("upload", upload)])
def test_a_transfer_that_was_stopped_goes_on(
    what: str,
    serve: Callable[[socket.socket, Callable[[], None]], None],
    root: Path,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    record_property("fault", "stopped")
    reached, goes_on = threading.Event(), threading.Event()

    def halfway() -> None:
        reached.set()
        goes_on.wait(SOON)

    def accept() -> None:
        with suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                serve(connection, halfway)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/file"
        command = [sys.executable, "-c", TRANSFER, what, url, str(SIZE), ZEROS]
        environ = {**os.environ, "PYTHONPATH": str(root / "src")}
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            assert reached.wait(SOON)
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            (tmp_path / "stopped").touch()
            time.sleep(1.5)  # for the clocks of sockets, which are the kernel's: longer than they get to connect
            process.send_signal(signal.SIGCONT)
            time.sleep(0.5)  # for its clocks to be judged
            goes_on.set()
            said, wrong = process.communicate(timeout=SOON)
            assert said == "done\n", wrong
        finally:
            goes_on.set()
            process.kill()
            process.wait()
