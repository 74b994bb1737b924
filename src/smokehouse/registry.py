"""Registries of images, over HTTP (https://github.com/opencontainers/distribution-spec)."""

import json
import os
import re
import shutil
import time
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import IO, Any
from urllib.parse import urljoin, urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from smokehouse import files
from smokehouse.download import Wanted, fetch, is_whole
from smokehouse.errors import UserError
from smokehouse.oci import (
    DOCUMENT,
    INDEX,
    INDEXES,
    MANIFESTS,
    Descriptor,
    Index,
    Layout,
    Manifest,
    Reference,
    choose,
    document,
    parse,
)
from smokehouse.programs import run

_PATIENCE = (30.0, 300.0)  # seconds to connect in, and without a byte: a registry hashes a large layer before it answers
_ASKING = 60.0
_FRESH = 60.0  # seconds that a token is used for; registries give them for at least as many
_AGAIN = "run it again, it goes on where it stopped"


class Registry:
    """One repository in a registry. With `push`, the right to write is asked for."""

    def __init__(self, reference: Reference, *, push: bool = False) -> None:
        self.reference = reference
        self.host = "registry-1.docker.io" if reference.host == "docker.io" else reference.host
        self.base = f"{'http' if _is_here(self.host) else 'https'}://{self.host}/v2/{reference.repository}"
        self._rights = "pull,push" if push else "pull"
        self._authorization, self._until = "", 0.0
        self._challenge: dict[str, str] = {}
        self._session = requests.Session()
        self._session.trust_env = not _is_here(self.host)
        self._session.headers["User-Agent"] = "smokehouse"
        again = Retry(
            3,
            backoff_factor=0.25,
            status_forcelist=(429, 502, 503, 504),
            allowed_methods=("GET", "HEAD"),
            raise_on_status=False,
        )
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=again))

    def manifest(self, name: str) -> tuple[bytes, Descriptor] | None:
        """Return the manifest or index of a tag or digest and what it is, None where there is none; raises UserError."""
        accept = ", ".join((*MANIFESTS, *INDEXES))
        with self._asked("GET", f"manifests/{name}", {200, 404}, headers={"Accept": accept}) as answer:
            if answer.status_code == 404:
                return None
            data = self._body(answer)
            media_type = answer.headers.get("Content-Type", "").partition(";")[0]
        digest = f"sha256:{files.sha256(data)}"
        if ":" in name and digest != name:
            raise UserError(f"{self.reference.name}@{name}: {self.host} serves another manifest, {digest}; do not trust it")
        return data, Descriptor(media_type=media_type, digest=digest, size=len(data))

    def has(self, blob: Descriptor) -> bool:
        """Return whether the registry has a blob of this digest and size; raises UserError."""
        with self._asked("HEAD", f"blobs/{blob.digest}", {200, 404}) as answer:
            return answer.status_code == 200 and int(answer.headers.get("Content-Length", blob.size)) == blob.size

    def fetch(self, blobs: tuple[Descriptor, ...], layout: Layout) -> None:
        """Put `blobs` into `layout`, each seen to have its digest; a cut download is resumed. Raises UserError."""
        wanted = [
            Wanted(layout.blob(blob.digest), f"{self.base}/blobs/{blob.digest}", blob.digest.removeprefix("sha256:"), blob.size)
            for blob in {blob.digest: blob for blob in blobs}.values()
        ]
        lacking = [file for file in wanted if not is_whole(file.path, file.sha256)]
        if lacking:
            self.has(blobs[0])  # to be asked who we are, here and not in each thread
            fetch(lacking, cure="fetch it from a registry that has the image whole", authorize=self._token)

    def upload(self, place: Path, blob: Descriptor) -> None:
        """Give the registry the blob in the file `place`, unless it has it; raises UserError."""
        if self.has(blob):
            return
        with self._asked("POST", "blobs/uploads/", {202}) as answer:
            where = urljoin(answer.url, answer.headers.get("Location", ""))
        url = f"{where}{'&' if urlsplit(where).query else '?'}digest={blob.digest}"
        with place.open("rb") as data:
            self._write("PUT", url, data, "application/octet-stream", {201}, blob)

    def put(self, data: bytes, media_type: str, name: str = "") -> bool:
        """Give the registry a manifest, under a tag where one is given; return whether it keeps referrers itself.

        Raises UserError.
        """
        digest = f"sha256:{files.sha256(data)}"
        blob = Descriptor(media_type=media_type, digest=digest, size=len(data))
        answer = self._write("PUT", f"{self.base}/manifests/{name or digest}", data, media_type, {201}, blob)
        kept = answer.headers.get("Docker-Content-Digest", digest)
        if kept != digest:
            raise UserError(f"{self.reference.name}: {self.host} keeps {kept} for {digest}; do not use this registry")
        return bool(answer.headers.get("OCI-Subject"))

    def referrers(self, digest: str) -> tuple[Descriptor, ...]:
        """Return what the registry has that refers to `digest`: by its own list, or by the tag in its stead.

        Raises UserError.
        """
        with self._asked("GET", f"referrers/{digest}", {200, 404}, headers={"Accept": INDEX}) as answer:
            if answer.status_code == 200:
                return parse(Index, self._body(answer), f"{self.host}'s referrers of {digest}").manifests
        found = self.manifest(_stead(digest))
        return parse(Index, found[0], _stead(digest)).manifests if found else ()

    def refer(self, artefact: Descriptor, subject: str) -> None:
        """Add `artefact` to the tag that stands for the list of referrers, in a registry that keeps none.

        Raises UserError.
        """
        known = self.referrers(subject)
        if artefact.digest not in {entry.digest for entry in known}:
            self.put(document(Index(schema_version=2, manifests=(*known, artefact))), INDEX, _stead(subject))

    def pull(self, layout: Layout) -> Descriptor:
        """Put the image that is referred to into `layout`, whole, and return its manifest; raises UserError."""
        reference = self.reference
        name = reference.digest or reference.tag
        if not name:
            raise UserError(f"{reference}: names no image; add its tag or its digest, @sha256:…")
        for _ in range(2):
            found = self.manifest(name)
            if not found:
                raise UserError(f"{reference}: {self.host} has none; look at its name, or publish it")
            data, manifest = found
            if manifest.media_type not in INDEXES:
                break
            name = choose(parse(Index, data, str(reference)), str(reference)).digest
        layout.put(data, manifest.media_type)
        parsed = parse(Manifest, data, str(reference))
        self.fetch((parsed.config, *parsed.layers), layout)
        layout.name(manifest)
        return manifest

    def _token(self) -> str:
        """Return what to send as Authorization; asks for a new token where the last one grows old."""
        if self._challenge and time.monotonic() > self._until:
            self._authorize()
        return self._authorization

    def _authorize(self) -> None:
        secret = _credentials(self.reference.host)
        basic = f"Basic {b64encode(':'.join(secret).encode()).decode()}" if secret else ""
        self._until = time.monotonic() + _FRESH
        realm = self._challenge.get("realm", "")
        if self._challenge["scheme"] == "basic":
            self._authorization = basic
            return
        if urlsplit(realm).scheme != "https" and not _is_here(urlsplit(realm).netloc):
            raise UserError(f"{self.host}: wants a password to be sent to {realm!r} in the clear; do not trust it")
        asked = {"service": self._challenge.get("service", ""), "scope": self._scope}
        try:
            headers = {"Authorization": basic} if basic else {}
            with self._session.get(realm, params=asked, headers=headers, timeout=_PATIENCE, stream=True) as answer:
                if answer.status_code != 200:
                    raise UserError(f"{self.host}: {_said(answer)}; log in: docker login {self.reference.host}")
                given = json.loads(self._body(answer))
            token = given.get("token") or given["access_token"]
        except (requests.RequestException, ValueError, KeyError, AttributeError) as broken:
            raise UserError(f"{self.host}: no token from {urlsplit(realm).netloc} ({_why(broken)}); {_AGAIN}") from None
        self._authorization = f"Bearer {token}"

    @property
    def _scope(self) -> str:
        return f"repository:{self.reference.repository}:{self._rights}"

    @contextmanager
    def _asked(
        self, method: str, path: str, expected: set[int], *, headers: dict[str, str] | None = None
    ) -> Iterator[requests.Response]:
        """Yield the answer to a request, its body unread."""
        url = f"{self.base}/{path}"
        try:
            answer = self._request(method, url, headers or {}, None)
            with answer:
                if answer.status_code not in expected:
                    raise self._refused(method, path, answer)
                yield answer
        except requests.RequestException as broken:
            raise self._lost(f"at {path}", broken) from None

    def _write(
        self, method: str, url: str, data: bytes | IO[bytes], media_type: str, expected: set[int], blob: Descriptor
    ) -> requests.Response:
        headers = {"Content-Type": media_type, "Content-Length": str(blob.size)}
        try:
            answer = self._request(method, url, headers, data)
        except requests.RequestException as broken:
            raise self._lost(f"while {blob.digest} was sent", broken) from None
        with answer:
            if answer.status_code not in expected:
                raise self._refused(method, blob.digest, answer)
        return answer

    def _request(self, method: str, url: str, headers: dict[str, str], data: bytes | IO[bytes] | None) -> requests.Response:
        for attempt in range(2):
            ours = urlsplit(url).netloc == self.host
            sent = headers | ({"Authorization": token} if ours and (token := self._token()) else {})
            answer = self._session.request(method, url, headers=sent, data=data, timeout=_PATIENCE, stream=True)
            if answer.status_code != 401 or attempt or not ours or not self._challenged(answer):
                break
            answer.close()
            if data is not None and not isinstance(data, bytes):
                data.seek(0)
        return answer

    def _challenged(self, answer: requests.Response) -> bool:
        """Take up what a 401 says of how to ask; return whether to ask again."""
        scheme, _, rest = answer.headers.get("WWW-Authenticate", "").partition(" ")
        if scheme.lower() not in ("bearer", "basic"):
            return False
        self._challenge = dict(re.findall(r'([a-z_]+)="([^"]*)"', rest)) | {"scheme": scheme.lower()}
        self._authorize()
        return bool(self._authorization)

    def _lost(self, when: str, broken: requests.RequestException) -> UserError:
        why = _why(broken)
        if "Failed to establish" in why or "resolve" in why:
            return UserError(f"{self.host}: cannot be reached ({why}); look at its name and the network, then {_AGAIN}")
        return UserError(f"{self.host}: the connection was lost {when} ({why}); {_AGAIN}")

    def _refused(self, method: str, what: str, answer: requests.Response) -> UserError:
        cure = _AGAIN
        if answer.status_code in (401, 403):
            cure = f"log in with the right to do this: docker login {self.reference.host}"
        elif "no space left" in (said := _said(answer)):
            return UserError(f"{self.host}: the registry's disk is full, at {what}; make room there, then {_AGAIN} ({said})")
        return UserError(f"{self.host}: {method} {what}: {_said(answer)}; {cure}")

    def _body(self, answer: requests.Response) -> bytes:
        body = answer.raw.read(DOCUMENT + 1, decode_content=True)
        if len(body) > DOCUMENT:
            raise UserError(f"{self.host}: answers with more than {DOCUMENT} bytes where a document is; do not trust it")
        return bytes(body)


def _stead(digest: str) -> str:
    """Return the tag that stands for the list of referrers of `digest`."""
    return digest.replace(":", "-")


def _said(answer: requests.Response) -> str:
    """Return what an answer says: its status, and its errors as registries word them."""
    said = f"answers {answer.status_code} {answer.reason}"
    try:
        body = getattr(answer, "smokehouse_said", None) or answer.raw.read(65536, decode_content=True)
        answer.smokehouse_said = body  # type: ignore[attr-defined]
        errors = [f"{error.get('message', '')} {error.get('detail') or ''}" for error in json.loads(body)["errors"]]
    except (ValueError, KeyError, TypeError, AttributeError, requests.RequestException, OSError):
        return said
    return f"{said} ({' '.join(' '.join(errors)[:300].split())})"


def _why(broken: Exception) -> str:
    """Return the innermost cause that a library names, without the addresses of its objects."""
    inner: Any = broken
    while nested := [part for part in inner.args if isinstance(part, Exception)]:
        inner = nested[-1]
    text = str(getattr(inner, "reason", None) or inner) or type(inner).__name__
    return " ".join(re.sub(r"<[^>]*>[:,]? ?|HTTPS?Connection\([^)]*\): ", "", text).split())[:200]


def _is_here(host: str) -> bool:
    """Return whether `host` is this machine, which registries speak plain HTTP on."""
    name = re.sub(r":\d+$", "", host).strip("[]")
    try:
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


def _credentials(host: str) -> tuple[str, str] | None:
    """Return the user and password that docker login left for `host`; raises UserError."""
    place = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker", "config.json")
    try:
        config = json.loads(place.read_text("utf-8"))
        names = (host, f"https://{host}", *(("https://index.docker.io/v1/",) if host == "docker.io" else ()))
        auths, helpers = config.get("auths", {}), config.get("credHelpers", {})
        for name in names:
            if auth := auths.get(name, {}).get("auth"):
                user, _, password = b64decode(auth).decode().partition(":")
                return user, password
            if (helper := helpers.get(name) or config.get("credsStore")) and (secret := _helped(str(helper), name)):
                return secret
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError) as broken:
        raise UserError(f"{place}: cannot be read ({broken}); mend it, or log in again") from None
    return None


def _helped(helper: str, host: str) -> tuple[str, str] | None:
    program = f"docker-credential-{helper}"
    if not re.fullmatch(r"[\w.-]+", helper) or not shutil.which(program):
        raise UserError(f"{program}: named in docker's config.json and not here; install it, or log in without it")
    # A helper reads the host from its input.
    command = ["sh", "-c", 'printf %s "$2" | "$1" get', "sh", program, host]
    ended = run(command, deadline=_ASKING, environ=os.environ, cwd=Path("/"))
    if ended.code:
        return None
    given = json.loads(ended.stdout)
    return str(given["Username"]), str(given["Secret"])
