"""Registries are used with the credentials of docker login, and no credentials reach any other host."""

import json
import socket
import subprocess
import time
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from smokehouse.errors import UserError
from smokehouse.oci import Layout, Reference, Registry, auth
from smokehouse.oci.model import MANIFEST

from .. import registries
from ..registries import BIG, Request, Response, Server, Tokens, certificate, push_image
from ..tiny_images import image


@dataclass(frozen=True)
class Guarded:
    """A registry that requires tokens, and its token server."""

    host: str
    tokens: Tokens


@pytest.fixture(scope="module")
def running(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    with (
        Tokens(folder) as tokens,
        registries.started(programs / "registry", folder / "store", folder / "registry", tokens.auth) as port,
    ):
        yield Guarded(f"127.0.0.1:{port}", tokens)


@pytest.fixture
def guarded(running: Guarded) -> Guarded:
    tokens = running.tokens
    tokens.received.clear()
    tokens.users, tokens.identities = {"ann": "pass:word"}, {}
    tokens.valid = tokens.announced = 300.0
    return running


@pytest.fixture(autouse=True)
def _no_logins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the logins of the user who runs the tests."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def configure(tmp_path: Path, **config: object) -> Path:
    """Write the configuration of docker."""
    place = tmp_path / "docker" / "config.json"
    place.parent.mkdir(exist_ok=True)
    place.write_text(json.dumps(config))
    return place


def login(tmp_path: Path, host: str, user: str = "ann", password: str = "pass:word") -> None:
    """Write what docker login writes without a credential helper."""
    configure(tmp_path, auths={host: {"auth": b64encode(f"{user}:{password}".encode()).decode()}})


def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> str:
    """Put a credential helper on the path and return its name."""
    place = tmp_path / "bin" / "docker-credential-tests"
    place.parent.mkdir(exist_ok=True)
    place.write_text(f"#!/bin/sh\n{text}\n")
    place.chmod(0o755)
    monkeypatch.setenv("PATH", str(place.parent), prepend=":")
    return "tests"


def pulled(host: str, name: str, folder: Path) -> str:
    """Pull what was pushed; return its digest."""
    return Registry(Reference.parse(f"{host}/{name}:tag")).pull(Layout(folder)).digest


def test_pushing_requires_a_login_and_pulling_none(guarded: Guarded, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{guarded.host}: POST blobs/uploads/: status 401 .*docker login {guarded.host}$"):
        push_image(guarded.host, tmp_path / "a", "to/ken")
    login(tmp_path, guarded.host)
    guarded.tokens.received.clear()
    _, made = push_image(guarded.host, tmp_path / "a", "to/ken")
    [request] = guarded.tokens.received
    assert request.fields == {"service": "tests", "scope": "repository:to/ken:pull,push"}
    assert pulled(guarded.host, "to/ken", tmp_path / "b") == made.digest
    configure(tmp_path)
    assert pulled(guarded.host, "to/ken", tmp_path / "c") == made.digest
    request = guarded.tokens.received[-1]
    assert request.fields["scope"] == "repository:to/ken:pull"
    assert "Authorization" not in request.headers


def test_a_wrong_password_is_one_line(guarded: Guarded, tmp_path: Path) -> None:
    login(tmp_path, guarded.host, password="wrong")
    with pytest.raises(UserError) as raised:
        push_image(guarded.host, tmp_path / "a", "wrong/word")
    assert str(raised.value) == (
        f"{guarded.host}: {guarded.tokens.host} issued no token for ann: status 401 Unauthorized (wrong user or password); "
        f"log in: docker login {guarded.host}"
    )


def test_a_token_is_renewed_before_it_expires(guarded: Guarded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    login(tmp_path, guarded.host)
    image(tmp_path / "a", [{"big": BIG}, {"small": b"1"}], kind="")
    layout = Layout(tmp_path / "a")
    there = Registry(Reference.parse(f"{guarded.host}/short/lived"), push=True)
    refused, send = [], there._client._adapter.send

    def counted(*arguments: Any, **options: Any) -> requests.Response:
        response = send(*arguments, **options)
        refused.append(response.status_code == 401)
        return response

    monkeypatch.setattr(there._client._adapter, "send", counted)
    guarded.tokens.valid = guarded.tokens.announced = 2.0
    for blob in layout.image().blobs:
        there.upload(layout.blob(blob.digest), blob)
        _wait_until_expired(guarded.tokens)
    assert sum(refused) == 1  # the first, with the challenge
    assert len(guarded.tokens.received) == 3


def test_a_token_that_expires_during_an_upload_is_renewed(
    guarded: Guarded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry responds at once and reads no more, with most of the layer still to be sent."""
    login(tmp_path, guarded.host)
    image(tmp_path / "a", [{"large": BIG * 48}], kind="")
    layout = Layout(tmp_path / "a")
    [layer] = layout.image().manifest.layers
    there = Registry(Reference.parse(f"{guarded.host}/ends/early"), push=True)
    guarded.tokens.valid = 3.0  # though it is announced for 300
    write = there._write

    def late(*arguments: object) -> object:
        _wait_until_expired(guarded.tokens)
        guarded.tokens.valid = 300.0
        return write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(there, "_write", late)
    there.upload(layout.blob(layer.digest), layer)
    assert there.has(layer)
    assert len(guarded.tokens.received) == 2


def _wait_until_expired(tokens: Tokens) -> None:
    while time.time() <= tokens.expires:
        time.sleep(0.05)


def test_an_identity_token_is_exchanged(guarded: Guarded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guarded.tokens.identities["id-1"] = "ann"
    answer = '{"ServerURL": "x", "Username": "<token>", "Secret": "id-1"}'
    configure(tmp_path, credHelpers={guarded.host: helper(tmp_path, monkeypatch, f"cat >/dev/null; echo '{answer}'")})
    push_image(guarded.host, tmp_path / "a", "iden/tity")
    assert guarded.tokens.received[0].method == "POST"
    assert guarded.tokens.received[0].fields["grant_type"] == "refresh_token"
    configure(tmp_path, auths={guarded.host: {"identitytoken": "id-2"}})
    with pytest.raises(UserError, match="issued no token for this identity: status 401"):
        push_image(guarded.host, tmp_path / "a", "iden/tity")


def test_a_helper_is_used_for_its_host(guarded: Guarded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = '{"Username": "ann", "Secret": "pass:word"}'
    script = f"""
        [ "$1" = get ] && [ "$(cat)" = {guarded.host} ] && echo '{answer}' && exit
        echo "credentials not found in native keychain"; exit 1"""
    name = helper(tmp_path, monkeypatch, script)
    # A host whose credentials a helper stores has an empty entry; an entry of an earlier login does not count.
    old = {guarded.host: {"auth": b64encode(b"ann:old").decode()}}
    for config in ({"credHelpers": {guarded.host: name}}, {"credsStore": name, "auths": {guarded.host: {}}}):
        configure(tmp_path, **{"auths": old} | config)
        push_image(guarded.host, tmp_path / "a", f"help/{next(iter(config)).lower()}")
    configure(tmp_path, credHelpers={"other.example": "nowhere"})
    with pytest.raises(UserError, match="docker login"):
        push_image(guarded.host, tmp_path / "a", "help/other")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (None, "docker-credential-absent: listed in {config}, but not found; install it, or remove it there and log in again"),
        ("cat >/dev/null; echo locked >&2; exit 3", "docker-credential-tests: no password for {host} (locked); fix it"),
        ("exit 1", "docker-credential-tests: no password for {host} (no reason given)"),
        (
            "cat >/dev/null; echo '[]'",
            "docker-credential-tests: expected JSON with Username and Secret for {host}, found other output",
        ),
        ("exec sleep 60", "docker-credential-tests timed out after 1 s and was stopped"),
    ],
    ids=["missing", "failing", "silent", "no JSON", "hanging"],
)
def test_a_helper_that_fails_is_one_line(
    guarded: Guarded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, said: str
) -> None:
    name = "absent" if script is None else helper(tmp_path, monkeypatch, script)
    config = configure(tmp_path, credsStore=name)
    monkeypatch.setattr(auth, "_HELPER_TIMEOUT", 1.0)
    with pytest.raises(UserError) as raised:
        push_image(guarded.host, tmp_path / "a", "no/help")
    assert str(raised.value).startswith(said.format(config=config, host=guarded.host))


@pytest.mark.parametrize("text", ["{", "[]", '{"auths": [1]}', '{"auths": {"HOST": {"auth": "%"}}}', '{"auths": {"HOST": 1}}'])
def test_an_invalid_configuration_is_one_line(guarded: Guarded, tmp_path: Path, text: str) -> None:
    configure(tmp_path).write_text(text.replace("HOST", guarded.host))
    with pytest.raises(UserError, match=r"docker/config\.json: cannot be read \(.*\); fix it, or log in again"):
        push_image(guarded.host, tmp_path / "a", "no/config")


def test_a_password_without_tokens(programs: Path, tmp_path: Path) -> None:
    # docker-registry accepts bcrypt only, which Debian's crypt supports.
    crypt = ["perl", "-e", "print crypt($ARGV[0], '$2b$04$' . 'a' x 22)", "pass:word"]
    hashed = subprocess.run(crypt, check=True, capture_output=True, text=True, timeout=60).stdout
    (tmp_path / "users").write_text(f"ann:{hashed}\n")
    auth = {"htpasswd": {"realm": "tests", "path": str(tmp_path / "users")}}
    with registries.started(programs / "registry", tmp_path / "store", tmp_path / "registry", auth) as port:
        host = f"127.0.0.1:{port}"
        for user in ("", "bob"):
            if user:
                login(tmp_path, host, user)
            with pytest.raises(UserError, match=rf"{host}: HEAD .*: status 401 Unauthorized.*docker login {host}$"):
                push_image(host, tmp_path / "a", "ba/sic")
        login(tmp_path, f"https://{host}/v1/")
        _, made = push_image(host, tmp_path / "a", "ba/sic")
        assert pulled(host, "ba/sic", tmp_path / "b") == made.digest


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> str:
    """An address of this machine other than the loopback address, where registries use TLS."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        way.connect(("192.0.2.1", 9))  # sends nothing
        found = str(way.getsockname()[0])
    monkeypatch.setenv("NO_PROXY", found)
    return found


@pytest.fixture
def pair(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A certificate for that address, trusted by this process."""
    made = certificate(tmp_path, address)
    for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(name, str(tmp_path / "certificate.pem"))
    return made


def nothing(request: Request) -> Response:
    """Return an empty list of manifests for any request."""
    return 200, {"Content-Type": MANIFEST}, b"{}"


@pytest.mark.parametrize("elsewhere", ["address", "127.0.0.1"])
def test_a_password_is_not_sent_unencrypted(address: str, pair: Path, tmp_path: Path, elsewhere: str) -> None:
    with Server(nothing, address if elsewhere == "address" else elsewhere) as thief:

        def answer(request: Request) -> Response:
            return 401, {"WWW-Authenticate": f'Bearer realm="http://{thief.host}/token",service="s"'}, b""

        with Server(answer, address, pair) as registry:
            login(tmp_path, registry.host)
            with pytest.raises(
                UserError, match=f"{registry.host}: requires a password to be sent to 'http://{thief.host}/token' without"
            ):
                pulled(registry.host, "a/b", tmp_path / "a")
        assert thief.received == []


def test_passwords_and_tokens_reach_no_other_host(address: str, pair: Path, tmp_path: Path) -> None:
    """A host that the registry or its token server redirects to gets neither, nor its password in ~/.netrc."""
    data = b'{"schemaVersion": 2}'
    with Server(
        lambda request: (200, {"Content-Type": MANIFEST}, b'{"token": "t"}' if request.path == "/t" else data), address, pair
    ) as other:

        def answer(request: Request) -> Response:
            if request.path == "/token":
                return 307, {"Location": f"https://{other.host}/t"}, b""
            if "Authorization" not in request.headers:
                return (
                    401,
                    {"WWW-Authenticate": f'Basic realm="x", Bearer realm="https://{registry.host}/token",service=s'},
                    b"",
                )
            return 307, {"Location": f"https://{other.host}/there"}, b""

        (tmp_path / "netrc").write_text(f"machine {address} login ann password netrc\n")
        with Server(answer, address, pair) as registry:
            login(tmp_path, registry.host)
            assert Registry(Reference.parse(f"{registry.host}/a/b:tag")).manifest("tag")
            assert [request.headers.get("Authorization") for request in registry.received] == [
                None,
                f"Basic {b64encode(b'ann:pass:word').decode()}",
                "Bearer t",
            ]
        assert [request.path for request in other.received] == ["/t", "/there"]
        assert not any("Authorization" in request.headers for request in other.received)


def test_an_identity_token_is_not_redirected(address: str, pair: Path, tmp_path: Path) -> None:
    with Server(nothing, address, pair) as other:

        def answer(request: Request) -> Response:
            if request.path == "/token":
                return 307, {"Location": f"https://{other.host}/token"}, b""
            return 401, {"WWW-Authenticate": f'Bearer realm="https://{registry.host}/token"'}, b""

        with Server(answer, address, pair) as registry:
            configure(tmp_path, auths={registry.host: {"identitytoken": "id-1"}})
            with pytest.raises(UserError, match="issued no token for this identity: status 307"):
                pulled(registry.host, "a/b", tmp_path / "a")
        assert other.received == []


@pytest.mark.parametrize(
    ("where", "said"),
    [("http://HOST/upload", "without encryption"), ("https://[/upload", "which is not a URL")],
    ids=["unencrypted", "invalid URL"],
)
def test_a_layer_is_not_sent_unencrypted(address: str, pair: Path, tmp_path: Path, where: str, said: str) -> None:
    def answer(request: Request) -> Response:
        if request.method == "HEAD":
            return 404, {}, b""
        return 202, {"Location": where.replace("HOST", registry.host)}, b""

    with Server(answer, address, pair) as registry:
        image(tmp_path / "a", [{"small": b"1"}])
        layout = Layout(tmp_path / "a")
        blob = layout.image().manifest.config
        there = Registry(Reference.parse(f"{registry.host}/a/b"), push=True)
        with pytest.raises(UserError, match=f"{registry.host}: requires sha256:[0-9a-f]* to be sent to .* {said}"):
            there.upload(layout.blob(blob.digest), blob)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"token": 5}', b'{"token": "a\\nb"}', b'{"token": "", "expires_in": "x"}'], ids=repr
)
def test_an_invalid_token_is_one_line(tmp_path: Path, body: bytes) -> None:
    def answer(request: Request) -> Response:
        if request.path == "/token":
            return 200, {}, body
        return 401, {"WWW-Authenticate": f'Bearer realm="http://{registry.host}/token"'}, b""

    with Server(answer) as registry, pytest.raises(UserError, match=f"{registry.host}: invalid token from {registry.host} "):
        pulled(registry.host, "a/b", tmp_path / "a")
