"""What carries the rank channel: a listener for the supervisor, and `connect` for ranks and launchers.

A transport is a stream of bytes in each direction that ends when either process dies, so that the death of a rank is known
without a message. An address is `SCHEME:REST`; ranks get it as a string and need nothing else to connect. Ranks on this
machine use Unix sockets. For ranks on other nodes, add a `Listener` with its own scheme, and its connect function to `SCHEMES`.
"""

import os
import socket
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

# A Unix socket's path may have 107 bytes, and TMPDIR is long on some clusters.
_LONGEST_FOLDER = 80
_SHORT_FOLDER = str(Path("/", "tmp"))  # in which TemporaryDirectory makes one that only this user can enter
_BACKLOG = 64


class Listener(Protocol):
    """The supervisor's end: where ranks connect."""

    @property
    def address(self) -> str:
        """The address to pass to `connect`."""

    def fileno(self) -> int:
        """Return the descriptor that is readable when a rank connects."""

    def accept(self) -> socket.socket:
        """Return the next connection."""

    def close(self) -> None:
        """Stop listening, and remove what the listener made."""


class UnixListener:
    """Listens on a socket in a temporary folder that only this user can enter."""

    def __init__(self) -> None:
        """Create the folder and listen in it. Raises OSError."""
        usual = tempfile.gettempdir()
        short = usual if len(os.fsencode(usual)) < _LONGEST_FOLDER else _SHORT_FOLDER
        self._folder = tempfile.TemporaryDirectory(prefix="smokehouse-", dir=short)
        self._path = Path(self._folder.name) / "events"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(self._path))
        self._socket.listen(_BACKLOG)

    @property
    def address(self) -> str:
        """The address to pass to `connect`."""
        return f"unix:{self._path}"

    def fileno(self) -> int:
        """Return the descriptor that is readable when a rank connects."""
        return self._socket.fileno()

    def accept(self) -> socket.socket:
        """Return the next connection."""
        connection, _ = self._socket.accept()
        return connection

    def close(self) -> None:
        """Stop listening, and remove the folder."""
        self._socket.close()
        self._folder.cleanup()


def _connect_unix(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(path)
    return connection


# Scheme -> function that connects to the rest of an address.
SCHEMES: dict[str, Callable[[str], socket.socket]] = {"unix": _connect_unix}


def peer(connection: socket.socket) -> int | None:
    """Return the process at the other end of a connection, as the kernel says it; None where it is not on this machine."""
    if connection.family != socket.AF_UNIX:
        return None
    pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return int(pid)


def connect(address: str) -> socket.socket:
    """Connect to a listener's address.

    Raises:
        OSError: Nobody listens there.
        ValueError: The scheme is unknown.
    """
    scheme, _, rest = address.partition(":")
    if scheme not in SCHEMES:
        raise ValueError(f"rank channel: expected an address of {', '.join(SCHEMES)}, found {address!r}")
    return SCHEMES[scheme](rest)
