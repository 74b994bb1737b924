"""Processes that start with slow libraries already imported: forked from a server that imported them once.

Importing typer, pydantic, rattler and others takes nine tenths of a short command. A command that a test runs is still a
process of its own, which reads the command line, the environment and the sources anew: only libraries are shared.

    parent                          server                     command
    Server.run  -- request, fds ->  fork  ------------------>  chdir, environment, `python -m smokehouse`
                <- exit code -----  wait  <------------------
"""

import array
import importlib
import io
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn, cast

# What the builder imports, and imports slowly. Nothing of Smokehouse: its modules may read the environment when imported.
LIBRARIES = (
    "conda_lock.lockfile.v1.models",
    "email.parser",
    "http.server",
    "importlib.metadata",
    "jsonschema",
    "packaging.requirements",
    "packaging.tags",
    "pydantic",
    "rattler",
    "requests",
    "rich",
    "typer",
    "uv",
    "yaml",
)
HEADER = 8  # bytes of a request's length


class Server:
    """A process that forks commands. It ends with the process that started it, which closes the connection."""

    def __init__(self) -> None:
        self.connection, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, __file__, str(theirs.fileno())]
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)

    def run(
        self, arguments: list[str], *, folder: Path, environ: dict[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """Run `python -m smokehouse` with `arguments` to its end, as `subprocess.run` with `capture_output` and `text` does.

        Raises:
            subprocess.TimeoutExpired: It ran longer than `timeout` seconds; its process is killed.
        """
        request = json.dumps({"arguments": arguments, "folder": str(folder), "environ": environ}).encode()
        with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
            files = array.array("i", [stdout.fileno(), stderr.fileno()])
            self.connection.sendmsg([len(request).to_bytes(HEADER)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
            self.connection.sendall(request)
            self.connection.settimeout(timeout)
            pid = int(self._answer())
            try:
                code = int(self._answer())
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
                self.connection.settimeout(None)
                self._answer()
                raise subprocess.TimeoutExpired(arguments, timeout) from None
            stdout.seek(0)
            stderr.seek(0)
            return subprocess.CompletedProcess(arguments, code, stdout.read(), stderr.read())

    def _answer(self) -> bytes:
        answer = self.connection.recv(HEADER, socket.MSG_WAITALL)
        if not answer:
            raise EOFError(f"the server of commands ended with code {self.process.wait(10)}")
        return answer

    def close(self) -> None:
        """End the server."""
        self.connection.close()
        self.process.wait(30)


def _serve(connection: socket.socket) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for pytest, which closes the connection
    sys.path.pop(0)  # the folder of this file
    for library in LIBRARIES:
        importlib.import_module(library)
    while True:
        files = array.array("i")
        data, ancillary, _, _ = connection.recvmsg(HEADER, socket.CMSG_SPACE(2 * files.itemsize))
        if not data:
            return
        files.frombytes(ancillary[0][2])
        request = json.loads(connection.recv(int.from_bytes(data), socket.MSG_WAITALL))
        pid = os.fork()
        if pid == 0:
            connection.close()
            _command(request, files)
        for file in files:
            os.close(file)
        connection.sendall(str(pid).encode().rjust(HEADER))
        _, status = os.waitpid(pid, 0)
        connection.sendall(str(os.waitstatus_to_exitcode(status)).encode().rjust(HEADER))


def _command(request: dict[str, Any], files: "array.array[int]") -> NoReturn:
    """Become `python -m smokehouse`, as far as a process without an exec can."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, file in enumerate(files, start=1):
            os.dup2(file, number)
            os.close(file)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environ"])
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), "utf-8", write_through=True)
        sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), "utf-8", "backslashreplace", write_through=True)
        sys.path[:0] = ["", *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        sys.argv[1:] = request["arguments"]
        runpy.run_module("smokehouse", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001 - as Python itself ends
        sys.excepthook(*cast(Any, sys.exc_info()))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
