"""Authorization at a registry: what docker login stored, and tokens that are requested with it.

See: https://distribution.github.io/distribution/spec/auth/token/
"""

import json
import math
import os
import re
import shutil
import threading
import time
from base64 import b64decode, b64encode
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.parse import urlencode, urlsplit

from pydantic import BaseModel, Field, model_validator

from smokehouse.errors import UserError, first_of
from smokehouse.oci._http import RESUME, describe, private_url, read_document
from smokehouse.programs.process import run
from smokehouse.storage import strict_json
from smokehouse.storage.transfer import Answer, Client, TransferError

_LONGEST_CHALLENGE = 4096  # characters that are read of it
_HELPER_TIMEOUT = 60.0  # seconds
_LIFETIME = 60.0  # seconds that a token is valid where its server does not say
_IDENTITY = "<token>"  # the user whose password is an identity token, as credential helpers call it


class _Token(BaseModel):
    """The response of a token server; `expires_in` is in seconds."""

    token: str | None = Field(default=None, pattern=r"^[!-~]*$")
    access_token: str | None = Field(default=None, pattern=r"^[!-~]*$")
    expires_in: float | None = None

    @model_validator(mode="after")
    def _refuse_none(self) -> "_Token":
        if not self.token and not self.access_token:
            raise ValueError("it has no token")
        return self


class Authorization:
    """The Authorization header for one registry: none until a challenge, then a password or a token that is renewed.

    Threads may share it.
    """

    def __init__(self, host: str, login: str, scope: str, client: Client) -> None:
        """Authorize for `scope` at the registry `host`, with what docker login stored for the host `login`."""
        self._host, self._login, self._scope, self._client = host, login, scope, client
        self._header, self._expires = "", 0.0
        self._challenge: dict[str, str] = {}
        self._lock = threading.RLock()

    def header(self) -> str:
        """Return the value of the header, empty for none; requests a new token before the last one expires."""
        with self._lock:
            if self._challenge and time.monotonic() > self._expires:
                self._renew()
            return self._header

    def challenge(self, answer: Answer) -> bool:
        """Read the challenge of the 401 `answer`; return whether to repeat the request. Raises UserError."""
        # Several challenges can stand in one header or in several, which requests joins.
        header = answer.headers.get("WWW-Authenticate", "")[:_LONGEST_CHALLENGE]
        parts = re.split(r"(?:^|,)\s*(bearer|basic)\b", header, flags=re.IGNORECASE)
        challenges = {scheme.lower(): rest for scheme, rest in zip(parts[1::2], parts[2::2], strict=True)}
        scheme = "bearer" if "bearer" in challenges else "basic"
        if scheme not in challenges:
            return False
        found = re.findall(r'([a-z_]+)=(?:"([^"]*)"|([^\s",]+))', challenges[scheme], re.IGNORECASE)
        with self._lock:
            self._challenge = {name.lower(): quoted or plain for name, quoted, plain in found} | {"scheme": scheme}
            self._renew()
            return bool(self._header)

    def _renew(self) -> None:
        """Read the stored credentials again, and request a token with them where the registry requires one."""
        user, password = credentials(self._login) or ("", "")
        if self._challenge["scheme"] == "basic":
            self._header, self._expires = _basic(user, password), math.inf
            return
        realm = private_url(self._host, self._challenge.get("realm", ""), "", "a password")
        requested = time.monotonic()
        token = self._request_token(realm, user, password)
        self._header = f"Bearer {token.token or token.access_token}"
        # A request that is on its way when its token expires is lost, so tokens are renewed early.
        self._expires = requested + (token.expires_in or _LIFETIME) * 0.75

    def _request_token(self, realm: str, user: str, password: str) -> _Token:
        server = urlsplit(realm).netloc
        try:
            with self._send(realm, user, password) as answer:
                if answer.status != 200:
                    subject = "anonymous access" if not user else "this identity" if user == _IDENTITY else user
                    remedy = RESUME if answer.status >= 500 else f"log in: docker login {self._login}"
                    raise UserError(f"{self._host}: {server} issued no token for {subject}: {describe(answer)}; {remedy}")
                return _Token.model_validate(strict_json.parse(read_document(answer, self._host)))
        except TransferError as broken:
            raise UserError(f"{self._host}: no token from {server} ({broken}); {RESUME}") from None
        except ValueError as invalid:
            raise UserError(f"{self._host}: invalid token from {server} ({first_of(invalid, 'response')}); {RESUME}") from None

    def _send(self, realm: str, user: str, password: str) -> AbstractContextManager[Answer]:
        fields = {"service": self._challenge.get("service", ""), "scope": self._scope}
        if user == _IDENTITY:
            form = urlencode(fields | {"grant_type": "refresh_token", "client_id": "smokehouse", "refresh_token": password})
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            # A redirect would take the body, and with it the identity token, along.
            return self._client.open("POST", realm, data=form.encode(), headers=headers, redirect=False)
        headers = {"Authorization": _basic(user, password)} if user else {}
        return self._client.ask("GET", f"{realm}{'&' if urlsplit(realm).query else '?'}{urlencode(fields)}", headers=headers)


def _basic(user: str, password: str) -> str:
    return f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}" if user else ""


def credentials(host: str) -> tuple[str, str] | None:
    """Return the user and password that docker login stored for `host`, None where it stored none; raises UserError.

    The user "<token>" has an identity token instead of a password. As with docker, the credential helper of the host, or
    else of all hosts, is used first.

    See: https://docs.docker.com/reference/cli/docker/login/#credential-helpers
    """
    path = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker", "config.json")
    try:
        config = json.loads(path.read_text("utf-8"))
        auths, helpers, store = config.get("auths") or {}, config.get("credHelpers") or {}, config.get("credsStore") or ""
        known = {_host_of(name): entry for name, entry in auths.items()}
        helper = str(helpers.get(host) or store)
        entry = known.get(host) or {}
        identity, login = entry.get("identitytoken"), b64decode(entry.get("auth") or "", validate=True).decode()
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError, TypeError) as broken:
        raise UserError(f"{path}: cannot be read ({broken}); fix it, or log in again") from None
    if helper:
        for name in ("https://index.docker.io/v1/",) if host == "docker.io" else (host, f"https://{host}"):
            if secret := _run_helper(helper, name, path):
                return secret
    user, _, password = login.partition(":")
    if identity:
        return _IDENTITY, str(identity)
    return (user, password) if user else None


def _host_of(name: str) -> str:
    """Return the host of a key of docker's config.json, which can be a URL."""
    host = re.sub(r"^https?://|/.*", "", name)
    return "docker.io" if host == "index.docker.io" else host


def _run_helper(helper: str, host: str, config: Path) -> tuple[str, str] | None:
    """Return the user and secret that the credential helper `helper` has for `host`; raises UserError.

    `config` is the file that lists the helper.
    """
    program = f"docker-credential-{helper}"
    if not re.fullmatch(r"[\w.-]+", helper) or not shutil.which(program):
        raise UserError(f"{program}: listed in {config}, but not found; install it, or remove it there and log in again")
    ended = run([program, "get"], deadline=_HELPER_TIMEOUT, environ=os.environ, cwd=Path("/"), stdin=host)
    if ended.code:
        output = " ".join(f"{ended.stdout} {ended.stderr}".split())[:300]
        if "credentials not found" in output:  # the text that the protocol specifies
            return None
        raise UserError(f"{program}: no password for {host} ({output or 'no reason given'}); fix it, or log in again")
    try:
        answer = json.loads(ended.stdout)
        return str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{program}: expected JSON with Username and Secret for {host}, found other output; fix it, or log in again"
        ) from None
