"""Registries of images, over HTTP (https://github.com/opencontainers/distribution-spec)."""

import json
import math
import re
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import IO, Any
from urllib.parse import urljoin, urlsplit

import requests
from pydantic import ValidationError
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from smokehouse.errors import UserError, first_of
from smokehouse.oci.auth import IDENTITY, LIFETIME, Session, Token, credentials
from smokehouse.oci.layout import Layout
from smokehouse.oci.model import (
    INDEX,
    INDEXES,
    MANIFESTS,
    MAX_DOCUMENT,
    Descriptor,
    Index,
    Manifest,
    choose_image,
    encode,
    parse,
)
from smokehouse.oci.reference import Reference
from smokehouse.storage import files
from smokehouse.storage.download import Download, fetch, is_whole

_PATIENCE = (30.0, 300.0)  # seconds to connect in, and without a byte: a registry hashes a large layer before it answers
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
        self._asking = threading.RLock()
        self._session = Session()
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
            return answer.status_code == 200 and answer.headers.get("Content-Length", str(blob.size)) == str(blob.size)

    def fetch(self, blobs: tuple[Descriptor, ...], layout: Layout) -> None:
        """Put `blobs` into `layout`, each seen to have its digest; a cut download is resumed. Raises UserError."""
        wanted = [
            Download(
                layout.blob(blob.digest), f"{self.base}/blobs/{blob.digest}", blob.digest.removeprefix("sha256:"), blob.size
            )
            for blob in {blob.digest: blob for blob in blobs}.values()
        ]
        lacking = [file for file in wanted if not is_whole(file.path, file.sha256)]
        if lacking:
            self.has(blobs[0])  # to be asked who we are, here and not in each thread
            fetch(lacking, remedy="fetch it from a registry that has the image whole", authorize=self._token)

    def upload(self, place: Path, blob: Descriptor) -> None:
        """Give the registry the blob in the file `place`, unless it has it; raises UserError."""
        if self.has(blob):
            return
        with self._asked("POST", "blobs/uploads/", {202}) as answer:
            url = self._private(answer.headers.get("Location", ""), answer.url, blob.digest)
        url += f"{'&' if urlsplit(url).query else '?'}digest={blob.digest}"
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

    def add_referrer(self, artefact: Descriptor, subject: str) -> None:
        """Add `artefact` to the tag that stands for the list of referrers, in a registry that keeps none.

        Raises UserError.
        """
        known = self.referrers(subject)
        if artefact.digest not in {entry.digest for entry in known}:
            self.put(encode(Index(schema_version=2, manifests=(*known, artefact))), INDEX, _stead(subject))

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
            name = choose_image(parse(Index, data, str(reference)), str(reference)).digest
        layout.put(data, manifest.media_type)
        parsed = parse(Manifest, data, str(reference))
        self.fetch((parsed.config, *parsed.layers), layout)
        layout.write_index(manifest)
        return manifest

    def _token(self) -> str:
        """Return what to send as Authorization; asks for a new token where the last one grows old."""
        with self._asking:
            if self._challenge and time.monotonic() > self._until:
                self._authorize()
            return self._authorization

    def _authorize(self) -> None:
        """Ask who we are where docker login left it, and for a token with that where the registry wants one."""
        user, password = secret = credentials(self.reference.host) or ("", "")
        basic = f"Basic {b64encode(':'.join(secret).encode()).decode()}" if user else ""
        if self._challenge["scheme"] == "basic":
            self._authorization, self._until = basic, math.inf
            return
        realm = self._private(self._challenge.get("realm", ""), "", "a password")
        where = urlsplit(realm)
        asked = {"service": self._challenge.get("service", ""), "scope": self._scope}
        asked_at = time.monotonic()
        try:
            if user == IDENTITY:
                more = {"grant_type": "refresh_token", "client_id": "smokehouse", "refresh_token": password}
                # A redirect would take the body, and with it the password, along.
                sent = self._session.post(realm, data=asked | more, allow_redirects=False, timeout=_PATIENCE, stream=True)
            else:
                headers = {"Authorization": basic} if basic else {}
                sent = self._session.get(realm, params=asked, headers=headers, timeout=_PATIENCE, stream=True)
            with sent as answer:
                if answer.status_code != 200:
                    whom = "who has not logged in" if not user else "this identity" if user == IDENTITY else user
                    cure = _AGAIN if answer.status_code >= 500 else f"log in: docker login {self.reference.host}"
                    raise UserError(f"{self.host}: {where.netloc} gives {whom} no token: {_said(answer)}; {cure}")
                token = Token.model_validate_json(self._body(answer))
        except ValidationError as invalid:
            raise UserError(
                f"{self.host}: no token from {where.netloc} ({first_of(invalid, 'its answer')}); {_AGAIN}"
            ) from None
        except requests.RequestException as broken:
            raise UserError(f"{self.host}: no token from {where.netloc} ({_why(broken)}); {_AGAIN}") from None
        self._authorization = f"Bearer {token.token or token.access_token}"
        # What is on its way when a token ends is lost, so it ends early here.
        self._until = asked_at + (token.expires_in or LIFETIME) * 0.75

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
            ours = urlsplit(url)[:2] == urlsplit(self.base)[:2]
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
        # More than one way to ask can stand there, in one line or several, which are joined.
        parts = re.split(r"(?:^|,)\s*(bearer|basic)\b", answer.headers.get("WWW-Authenticate", ""), flags=re.IGNORECASE)
        ways = {scheme.lower(): rest for scheme, rest in zip(parts[1::2], parts[2::2], strict=True)}
        scheme = "bearer" if "bearer" in ways else "basic"
        if scheme not in ways:
            return False
        said = re.findall(r'([a-z_]+)=(?:"([^"]*)"|([^\s",]+))', ways[scheme], re.IGNORECASE)
        with self._asking:
            self._challenge = {name.lower(): quoted or plain for name, quoted, plain in said} | {"scheme": scheme}
            self._authorize()
            return bool(self._authorization)

    def _private(self, url: str, base: str, what: str) -> str:
        """Return `url` from `base`, where `what` can be sent without others reading along; raises UserError."""
        try:
            whole = urljoin(base, url)
            where = urlsplit(whole)
        except ValueError:
            raise UserError(f"{self.host}: wants {what} to be sent to {url!r}, which is no URL; do not trust it") from None
        if where.scheme == "https" or (where.scheme == "http" and _is_here(where.netloc) and _is_here(self.host)):
            return whole
        raise UserError(f"{self.host}: wants {what} to be sent to {whole!r} in the clear; do not trust it")

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
        body = answer.raw.read(MAX_DOCUMENT + 1, decode_content=True)
        if len(body) > MAX_DOCUMENT:
            raise UserError(f"{self.host}: answers with more than {MAX_DOCUMENT} bytes where a document is; do not trust it")
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
