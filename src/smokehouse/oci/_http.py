"""HTTP as registries and token servers speak it: URLs that are safe to send to, and the words of errors."""

import json
from urllib.parse import urljoin, urlsplit

from smokehouse.errors import UserError
from smokehouse.oci.model import MAX_DOCUMENT
from smokehouse.storage.transfer import Answer, TransferError, is_loopback

RESUME = "run it again to resume"
_LONGEST_ERROR = 65536  # bytes of the errors in a response


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


def read_document(answer: Answer, host: str) -> bytes:
    """Return the body of an answer that is a small document; raises UserError where it is larger, or TransferError."""
    body = answer.read(MAX_DOCUMENT)
    if len(body) > MAX_DOCUMENT:
        raise UserError(f"{host}: expected a document of at most {MAX_DOCUMENT} bytes, found more; do not trust this registry")
    return body


def describe(answer: Answer) -> str:
    """Return the status of an answer, and the errors in its body, in one line; the body must be unread.

    See: https://github.com/opencontainers/distribution-spec/blob/main/spec.md#error-codes
    """
    status = f"status {answer.status} {answer.reason}"
    try:
        listed = json.loads(answer.read(_LONGEST_ERROR))["errors"]
        errors = [f"{error.get('message', '')} {error.get('detail') or ''}" for error in listed]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, TransferError):
        return status
    return f"{status} ({' '.join(' '.join(errors)[:300].split())})"
