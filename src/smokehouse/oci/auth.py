"""How to log in to a registry."""

import json
import os
import re
import shutil
from base64 import b64decode
from pathlib import Path
from urllib.parse import urlsplit

import requests
from pydantic import BaseModel, Field, model_validator

from smokehouse.errors import UserError
from smokehouse.programs.process import run

_ASKING = 60.0
# https://distribution.github.io/distribution/spec/auth/token/
LIFETIME = 60.0  # seconds that a token is good for where its server does not say
IDENTITY = "<token>"  # the user whose password is an identity token, as credential helpers call it


class Token(BaseModel):
    """What a token server answers; `expires_in` is in seconds."""

    token: str | None = Field(default=None, pattern=r"^[!-~]*$")
    access_token: str | None = Field(default=None, pattern=r"^[!-~]*$")
    expires_in: float | None = None

    @model_validator(mode="after")
    def _refuse_none(self) -> "Token":
        if not self.token and not self.access_token:
            raise ValueError("no token in it")
        return self


class Session(requests.Session):
    """A session that sends no password but the one it is given: ~/.netrc would replace it, or go with a redirect."""

    def __init__(self) -> None:
        super().__init__()
        self.auth = lambda request: request

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        if urlsplit(response.url)[:2] != urlsplit(str(prepared_request.url))[:2]:
            prepared_request.headers.pop("Authorization", None)


def credentials(host: str) -> tuple[str, str] | None:
    """Return the user and password that docker login left for `host`, None where it left none; raises UserError.

    A user `IDENTITY` has no password, but what an identity provider gave in its stead. As with docker, the helper of a
    host, or of all, is asked (https://docs.docker.com/reference/cli/docker/login/#credential-helpers).
    """
    place = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker", "config.json")
    try:
        config = json.loads(place.read_text("utf-8"))
        auths, helpers, store = config.get("auths") or {}, config.get("credHelpers") or {}, config.get("credsStore") or ""
        known = {_host_of(name): entry for name, entry in auths.items()}
        helper = str(helpers.get(host) or store)
        entry = known.get(host) or {}
        identity, login = entry.get("identitytoken"), b64decode(entry.get("auth") or "", validate=True).decode()
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError, TypeError) as broken:
        raise UserError(f"{place}: cannot be read ({broken}); mend it, or log in again") from None
    if helper:
        for name in ("https://index.docker.io/v1/",) if host == "docker.io" else (host, f"https://{host}"):
            if secret := _helped(helper, name, place):
                return secret
    user, _, password = login.partition(":")
    if identity:
        return IDENTITY, str(identity)
    return (user, password) if user else None


def _host_of(name: str) -> str:
    """Return the host that a key of docker's config.json is of, which can be a URL."""
    host = re.sub(r"^https?://|/.*", "", name)
    return "docker.io" if host == "index.docker.io" else host


def _helped(helper: str, host: str, place: Path) -> tuple[str, str] | None:
    """Return what the program `helper` of docker's configuration `place` knows of `host`; raises UserError."""
    program = f"docker-credential-{helper}"
    if not re.fullmatch(r"[\w.-]+", helper) or not shutil.which(program):
        raise UserError(f"{program}: named in {place} and not here; install it, or take it out there and log in again")
    ended = run([program, "get"], deadline=_ASKING, environ=os.environ, cwd=Path("/"), stdin=host)
    if ended.code:
        said = " ".join(f"{ended.stdout} {ended.stderr}".split())[:300]
        if "credentials not found" in said:  # the words that the protocol has for it
            return None
        raise UserError(f"{program}: has no password for {host} ({said or 'it gives no reason'}); see to it, or log in again")
    try:
        given = json.loads(ended.stdout)
        return str(given["Username"]), str(given["Secret"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{program}: answers for {host} with no user and secret in JSON; see to it, or log in again") from None
