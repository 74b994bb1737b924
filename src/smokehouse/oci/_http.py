"""HTTP as registries and token servers speak it: a session, URLs that are safe to send to, and the words of errors."""

import json
import re
from ipaddress import ip_address
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from smokehouse.errors import UserError
from smokehouse.oci.model import MAX_DOCUMENT

TIMEOUT = (30.0, 300.0)  # seconds to connect, and without a byte: a registry hashes a large layer before it answers
RESUME = "run it again to resume"


class Session(requests.Session):
    """A session that sends only the Authorization of each request.

    requests would replace it by a password from ~/.netrc, or send one along with a redirect.
    """

    def __init__(self, host: str) -> None:
        """Prepare a session with the registry `host`; proxies do not apply to this machine."""
        super().__init__()
        self.auth = lambda request: request
        self.trust_env = not is_loopback(host)
        self.headers["User-Agent"] = "smokehouse"
        retry = Retry(
            3,
            backoff_factor=0.25,
            status_forcelist=(429, 502, 503, 504),
            allowed_methods=("GET", "HEAD"),
            raise_on_status=False,
        )
        for scheme in ("http://", "https://"):
            self.mount(scheme, HTTPAdapter(max_retries=retry))

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        """Remove the Authorization of a request that is redirected to another host."""
        if urlsplit(response.url)[:2] != urlsplit(str(prepared_request.url))[:2]:
            prepared_request.headers.pop("Authorization", None)


def is_loopback(host: str) -> bool:
    """Return whether `host`, with or without a port, is this machine: registries on it speak plain HTTP."""
    name = re.sub(r":\d+$", "", host).strip("[]")
    try:
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


def private_url(host: str, url: str, base: str, what: str) -> str:
    """Return `url`, which the registry `host` gave, relative to `base`, for sending `what` to it.

    Raises UserError where others could read it on its way.
    """
    try:
        whole = urljoin(base, url)
        parts = urlsplit(whole)
    except ValueError:
        raise UserError(
            f"{host}: requires {what} to be sent to {url!r}, which is not a URL; do not trust this registry"
        ) from None
    if parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.netloc) and is_loopback(host)):
        return whole
    raise UserError(f"{host}: requires {what} to be sent to {whole!r} without encryption; do not trust this registry")


def read_document(response: requests.Response, host: str) -> bytes:
    """Return the body of a response that is a small document; raises UserError where it is larger."""
    body = response.raw.read(MAX_DOCUMENT + 1, decode_content=True)
    if len(body) > MAX_DOCUMENT:
        raise UserError(f"{host}: expected a document of at most {MAX_DOCUMENT} bytes, found more; do not trust this registry")
    return bytes(body)


def describe(response: requests.Response) -> str:
    """Return the status of a response, and the errors in its body, in one line; the body must be unread.

    See: https://github.com/opencontainers/distribution-spec/blob/main/spec.md#error-codes
    """
    status = f"status {response.status_code} {response.reason}"
    try:
        body = response.raw.read(65536, decode_content=True)
        errors = [f"{error.get('message', '')} {error.get('detail') or ''}" for error in json.loads(body)["errors"]]
    except (ValueError, KeyError, TypeError, AttributeError, requests.RequestException, OSError):
        return status
    return f"{status} ({' '.join(' '.join(errors)[:300].split())})"


def root_cause(broken: Exception) -> str:
    """Return the innermost cause that requests and urllib3 report, without the addresses of their objects."""
    inner: Any = broken
    while nested := [part for part in inner.args if isinstance(part, Exception)]:
        inner = nested[-1]
    text = str(getattr(inner, "reason", None) or inner) or type(inner).__name__
    return " ".join(re.sub(r"<[^>]*>[:,]? ?|HTTPS?Connection\([^)]*\): ", "", text).split())[:200]
