"""What carries the rank channel: a listener for the supervisor, and `connect` for ranks, launchers and agents.

A transport is a stream of bytes in each direction that ends when either process dies, so that the death of a rank is known
without a message. An address is `SCHEME:REST`; ranks get it as a string. On one machine ranks use Unix sockets, which only
this user can enter, and the kernel says which process connects. Over nodes they use TCP, where anybody can connect: both ends
prove that they know the key of a role before anything else is sent, and it never crosses the network itself:

    listener   NONCE                                      32 random bytes; every value in hexadecimal, one line each
    other end  NONCE HMAC(key, "connect", both nonces) ROLE
    listener   HMAC(key, "listen", both nonces)

ROLE is `agent`, `launcher` or `rank`, and the number of a node; its key is HMAC(token, ROLE). Agents and launchers know the
token of the run and so each key; a launcher leaves its ranks the key of their role alone, and so they are nobody else.

The token is in the file that SMOKEHOUSE_TOKEN_FILE specifies, or in SMOKEHOUSE_TOKEN; never on a command line, which every
user of a machine can read.
"""

import contextlib
import hmac
import ipaddress
import os
import re
import secrets
import socket
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

# A Unix socket's path may have 107 bytes, and TMPDIR is long on some clusters.
_LONGEST_FOLDER = 80
_SHORT_FOLDER = str(Path("/", "tmp"))  # in which TemporaryDirectory makes one that only this user can enter
_BACKLOG = 4096  # all ranks of a large run connect at once; the kernel takes less where somaxconn says so
TOKEN, TOKEN_FILE = "SMOKEHOUSE_TOKEN", "SMOKEHOUSE_TOKEN_FILE"
_RANK_KEY = "SMOKEHOUSE_RANK_KEY"  # what a launcher leaves its ranks
AGENT, LAUNCHER, RANK = "agent", "launcher", "rank"
_ROLE = re.compile(f"({AGENT}|{LAUNCHER}|{RANK}) [0-9]{{1,9}}")
_SHORTEST_TOKEN = 32
# Bytes that a peer may send before it has proven the token, and the longest line of the handshake.
LONGEST_PROOF = 256
# Seconds that the listener waits for the other end, which has nothing else to do; it may itself be busy ending processes.
HANDSHAKE_DEADLINE = 10.0
_CONNECT_DEADLINE = 60.0
# A peer whose network is gone is lost after about 20 s: the kernel asks after 5 silent ones, then three times.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3), (socket.TCP_USER_TIMEOUT, 20_000))


class HandshakeError(OSError):
    """A peer that does not prove that it knows the token of the run."""


class Gate(Protocol):
    """What a new connection has to pass before its messages are heard; then `role` is what its peer has proven to be."""

    role: str

    def enter(self, line: bytes) -> None:
        """Take the first line of the peer. Raises HandshakeError."""


class Listener(Protocol):
    """The supervisor's end: where ranks connect."""

    @property
    def address(self) -> str:
        """The address to pass to `connect`."""

    def fileno(self) -> int:
        """Return the descriptor that is readable when a rank connects."""

    def accept(self) -> tuple[socket.socket, Gate | None]:
        """Return the next connection, and its gate where it has one. Raises OSError where the peer is gone already."""

    def close(self) -> None:
        """Stop listening, and remove what the listener made."""

    def forget(self) -> None:
        """Close what a process has inherited of the listener, which stays open in others."""


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

    def accept(self) -> tuple[socket.socket, Gate | None]:
        """Return the next connection."""
        return self._socket.accept()[0], None

    def close(self) -> None:
        """Stop listening, and remove the folder."""
        self._socket.close()
        self._folder.cleanup()

    def forget(self) -> None:
        """Close what a process has inherited of the listener, which stays open in others."""
        close(self._socket)


class TcpListener:
    """Listens on a port for whoever knows the token of the run."""

    def __init__(self, host: str, port: int, token: str) -> None:
        """Listen on the port, on the loopback interface alone where `host` is on it; port 0 is any. Raises OSError.

        `host` is what other nodes call this machine. On this machine it may mean another address, so all are listened on.
        """
        self._token, self._host = token, host
        place = host if _is_loopback(host) else ""
        family = socket.AF_INET6 if ":" in place else socket.AF_INET
        self._socket = socket.create_server((place, port), family=family, backlog=_BACKLOG)
        self._socket.setblocking(False)  # who connects and leaves at once must not hold the supervisor up

    @property
    def address(self) -> str:
        """The address to pass to `connect`."""
        return f"tcp:{self._host}:{self._socket.getsockname()[1]}"

    def fileno(self) -> int:
        """Return the descriptor that is readable when a rank connects."""
        return self._socket.fileno()

    def accept(self) -> tuple[socket.socket, Gate | None]:
        """Return the next connection, whose peer has yet to prove the token. Raises OSError where it is gone already."""
        connection, _ = self._socket.accept()
        try:
            connection.setblocking(True)
            _keep_alive(connection)
            return connection, TokenGate(connection, self._token)
        except OSError:
            connection.close()
            raise

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()

    def forget(self) -> None:
        """Close what a process has inherited of the listener, which stays open in others."""
        close(self._socket)


class TokenGate:
    """The listener's end of a handshake. Its lines are so short that the kernel takes them without waiting for the peer."""

    def __init__(self, connection: socket.socket, token: str) -> None:
        """Send the nonce. Raises OSError where the peer is gone."""
        self._connection, self._token = connection, token
        self.role = ""
        self._nonce = secrets.token_hex(32)
        connection.sendall(f"{self._nonce}\n".encode())

    def enter(self, line: bytes) -> None:
        """Take the peer's nonce and proof, and send the own proof. Raises HandshakeError."""
        nonce, proof, role = [*line.decode("ascii", "replace").split(" ", 2), "", ""][:3]
        key = _key(self._token, role)
        expected = _proof(key, "connect", self._nonce, nonce)
        well = re.fullmatch(r"[0-9a-f]{64}", nonce) and _ROLE.fullmatch(role)
        if not well or not hmac.compare_digest(proof.encode(), expected.encode()):
            raise HandshakeError("rank channel: expected a peer that knows the token of the run, found another")
        try:
            self._connection.sendall(f"{_proof(key, 'listen', self._nonce, nonce)}\n".encode())
            self.role = role
        except OSError as error:
            raise HandshakeError(f"rank channel: expected a peer, found {error.strerror}") from error


def _key(token: str, role: str) -> str:
    return hmac.new(token.encode(), role.encode(), "sha256").hexdigest()


def _proof(key: str, end: str, of_listener: str, of_other: str) -> str:
    return hmac.new(key.encode(), f"{end} {of_listener} {of_other}".encode(), "sha256").hexdigest()


def leave_to_ranks(node: int) -> None:
    """Replace the token among this process's variables, where there is one, by the key of the ranks of `node`."""
    if TOKEN in os.environ or TOKEN_FILE in os.environ:
        os.environ[_RANK_KEY] = _key(read_token(), f"{RANK} {node}")
    for name in (TOKEN, TOKEN_FILE):
        os.environ.pop(name, None)


def close(connection: socket.socket) -> None:
    """Close a socket in this process alone; its object, which may be collected later, then closes no other descriptor."""
    with contextlib.suppress(OSError):
        os.close(connection.detach())


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for option, value in _KEEPALIVE:
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


def read_token() -> str:
    """Return the token of the run, from the file or the variable that has it.

    Raises:
        ValueError: There is none, it is too short to be a secret, or other users can read its file.
    """
    name = os.environ.get(TOKEN_FILE)
    try:
        if name and Path(name).stat().st_mode & 0o077:
            raise ValueError(f"{name}: expected a file that only its owner can read, found others may; run: chmod 600 {name}")
        token = Path(name).read_text().strip() if name else os.environ.get(TOKEN, "").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not text"
        raise ValueError(f"{TOKEN_FILE}={name}: {why}; give the file with the token of the run") from error
    if len(token) < _SHORTEST_TOKEN:
        raise ValueError(
            f"{name or TOKEN}: expected a token of {_SHORTEST_TOKEN} characters or more, found {len(token)}; "
            f"make one for each run (openssl rand -hex 32) and give it to all its nodes in {TOKEN_FILE} or {TOKEN}"
        )
    return token


def split_endpoint(text: str) -> tuple[str, int]:
    """Return host and port of `HOST:PORT`; an IPv6 address is in brackets. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not re.fullmatch(r"[A-Za-z0-9_.:-]+", host) or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"expected HOST:PORT, found {text!r}")
    return host, int(port)


def _connect_unix(path: str, _role: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(path)
    return connection


def _connect_tcp(endpoint: str, role: str) -> socket.socket:
    """Connect, and pass both ways of the handshake. Raises OSError, HandshakeError where the listener has another token."""
    left = os.environ.get(_RANK_KEY)
    key = left if left and role.startswith(f"{RANK} ") else _key(read_token(), role)
    host, _, port = endpoint.rpartition(":")
    connection = socket.create_connection((host.strip("[]"), int(port)), _CONNECT_DEADLINE)
    try:
        _keep_alive(connection)
        theirs, ours = _line(connection), secrets.token_hex(32)
        connection.sendall(f"{ours} {_proof(key, 'connect', theirs, ours)} {role}\n".encode())
        if not hmac.compare_digest(_line(connection).encode(), _proof(key, "listen", theirs, ours).encode()):
            raise HandshakeError(f"{endpoint}: expected the supervisor of this run, found who does not know its token")
        connection.settimeout(None)
    except BaseException:
        connection.close()
        raise
    return connection


def _line(connection: socket.socket) -> str:
    """Return a line of the handshake, and take no byte after it. Raises OSError."""
    line = b""
    while not line.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte or len(line) > LONGEST_PROOF:
            raise HandshakeError(
                "rank channel: expected the supervisor of this run, found another end, or a token that differs"
            )
        line += byte
    return line.decode("ascii", "replace").rstrip("\n")


# Scheme -> function that connects to the rest of an address.
SCHEMES: dict[str, Callable[[str, str], socket.socket]] = {"unix": _connect_unix, "tcp": _connect_tcp}


def peer(connection: socket.socket) -> int | None:
    """Return the process at the other end of a connection, as the kernel says it; None where it is not on this machine."""
    if connection.family != socket.AF_UNIX:
        return None
    pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return int(pid)


def connect(address: str, role: str = f"{RANK} 0") -> socket.socket:
    """Connect to a listener's address as `role`: `AGENT`, `LAUNCHER` or `RANK`, and the number of a node.

    Raises:
        OSError: Nobody listens there, or somebody who does not know the token of the run.
        ValueError: The scheme is unknown, or there is no token.
    """
    scheme, _, rest = address.partition(":")
    if scheme not in SCHEMES:
        raise ValueError(f"rank channel: expected an address of {', '.join(SCHEMES)}, found {address!r}")
    return SCHEMES[scheme](rest, role)


def interface_of(address: str) -> str:
    """Return the network interface that has an IPv4 address, empty where none has it. See: netdevice(7)."""
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                request = struct.pack("256s", name.encode()[:15])
                found = fcntl.ioctl(probe.fileno(), 0x8915, request)  # SIOCGIFADDR
                if socket.inet_ntoa(found[20:24]) == address:
                    return name
    return "lo" if _is_loopback(address) else ""
