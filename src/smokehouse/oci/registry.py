"""Registries of images.

See: https://github.com/opencontainers/distribution-spec/blob/main/spec.md
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from smokehouse.errors import UserError
from smokehouse.oci import closed
from smokehouse.oci._http import RESUME, describe, private_url, read_document
from smokehouse.oci.auth import Authorization
from smokehouse.oci.layout import Layout
from smokehouse.oci.model import INDEX, INDEXES, MANIFESTS, Descriptor, Index, Manifest, choose_image, encode, parse
from smokehouse.oci.reference import Reference
from smokehouse.storage import files
from smokehouse.storage.disk import require_free_space
from smokehouse.storage.download import Download, fetch
from smokehouse.storage.transfer import (
    DOWNLOAD,
    REGISTRY,
    Answer,
    Client,
    InvalidAnswerError,
    Limits,
    TransferError,
    UnreachableError,
    UntrustedError,
    is_loopback,
)


class Registry:
    """A repository in a registry."""

    def __init__(
        self, reference: Reference, *, push: bool = False, limits: Limits = REGISTRY, downloads: Limits = DOWNLOAD
    ) -> None:
        """Open the repository of `reference`, for reading and, with `push`, for writing; sends no request."""
        self.reference = reference
        self.host = "registry-1.docker.io" if reference.host == "docker.io" else reference.host
        self.base = f"{'http' if is_loopback(self.host) else 'https'}://{self.host}/v2/{reference.repository}"
        self._client, self._downloads = Client(limits), downloads
        scope = f"repository:{reference.repository}:{'pull,push' if push else 'pull'}"
        self._authorization = Authorization(self.host, reference.host, scope, self._client)

    def manifest(self, name: str) -> tuple[bytes, Descriptor] | None:
        """Return the manifest or index of a tag or digest with its descriptor, None if not found; raises UserError."""
        accept = ", ".join((*MANIFESTS, *INDEXES))
        with self._open("GET", f"manifests/{name}", {200, 404}, headers={"Accept": accept}) as answer:
            if answer.status == 404:
                return None
            data = read_document(answer, self.host)
            media_type = answer.headers.get("Content-Type", "").partition(";")[0]
        found = Descriptor.of(data, media_type)
        if ":" in name and found.digest != name:
            raise UserError(
                f"{self.reference.name}: expected {name}, {self.host} serves {found.digest}; do not trust this registry"
            )
        return data, found

    def has(self, blob: Descriptor) -> bool:
        """Return whether the registry has a blob of this digest and size; raises UserError."""
        with self._open("HEAD", f"blobs/{blob.digest}", {200, 404}) as answer:
            return answer.status == 200 and answer.headers.get("Content-Length", str(blob.size)) == str(blob.size)

    def fetch(self, blobs: tuple[Descriptor, ...], layout: Layout) -> None:
        """Download `blobs` to `layout` and verify their digests; resumes partial downloads. Raises UserError."""
        downloads = [
            Download(
                layout.blob(blob.digest), f"{self.base}/blobs/{blob.digest}", blob.digest.removeprefix("sha256:"), blob.size
            )
            for blob in {blob.digest: blob for blob in blobs}.values()
        ]
        missing = [file for file in downloads if not files.is_whole(file.path, file.sha256)]
        if missing:
            self.has(blobs[0])  # to meet the challenge of the registry once, not in each thread
            remedy = "fetch it from a registry with an intact copy"
            fetch(missing, remedy=remedy, authorize=self._authorization.header, limits=self._downloads)

    def upload(self, path: Path, blob: Descriptor) -> None:
        """Upload the blob in the file `path`, unless the registry has it; raises UserError."""
        if self.has(blob):
            return
        with self._open("POST", "blobs/uploads/", {202}) as answer:
            url = private_url(self.host, answer.headers.get("Location", ""), answer.url, blob.digest)
        url += f"{'&' if urlsplit(url).query else '?'}digest={blob.digest}"
        with path.open("rb") as data:
            self._write("PUT", url, data, "application/octet-stream", {201}, blob)

    def put(self, data: bytes, media_type: str, name: str = "") -> bool:
        """Upload a manifest, with the tag `name` if not empty; return whether the registry lists referrers itself.

        Raises UserError.
        """
        blob = Descriptor.of(data, media_type)
        digest = blob.digest
        headers = self._write("PUT", f"{self.base}/manifests/{name or digest}", data, media_type, {201}, blob)
        stored = headers.get("Docker-Content-Digest", digest)
        if stored != digest:
            raise UserError(f"{self.reference.name}: expected {digest}, {self.host} stored {stored}; use another registry")
        kept = self.manifest(name or digest)  # a proxy can answer 201 and keep nothing
        if not kept or kept[1].digest != digest:
            found = kept[1].digest if kept else "nothing"
            raise UserError(
                f"{self.reference.name}: expected {digest} at {name or 'its digest'} after it was stored, {self.host} serves "
                f"{found}; use another registry"
            )
        return bool(headers.get("OCI-Subject"))

    def referrers(self, digest: str) -> tuple[Descriptor, ...]:
        """Return the manifests whose subject is `digest`, from the referrers API or the referrers tag.

        Raises UserError.
        """
        with self._open("GET", f"referrers/{digest}", {200, 404}, headers={"Accept": INDEX}) as answer:
            if answer.status == 200:
                return parse(Index, read_document(answer, self.host), f"{self.host}'s referrers of {digest}").manifests
        found = self.manifest(_referrers_tag(digest))
        return parse(Index, found[0], _referrers_tag(digest)).manifests if found else ()

    def add_referrer(self, artefact: Descriptor, subject: str) -> None:
        """Add `artefact` to the referrers tag of `subject`, for a registry without the referrers API.

        Raises UserError.
        """
        known = self.referrers(subject)
        if artefact.digest not in {entry.digest for entry in known}:
            self.put(encode(Index(schema_version=2, manifests=(*known, artefact))), INDEX, _referrers_tag(subject))

    def pull(self, layout: Layout, *, only: bool = False) -> Descriptor:
        """Download the image of the reference to `layout` and return its manifest; raises UserError.

        With `only`, an index that lists anything else is refused.
        """
        reference = self.reference
        name = reference.digest or reference.tag
        if not name:
            raise UserError(f"{reference}: expected a tag or digest, found none; add :TAG or @sha256:…")
        listed: Descriptor | None = None
        for _ in range(2):
            found = self.manifest(listed.digest if listed else name)
            if not found:
                raise UserError(f"{reference}: not found at {self.host}; check the name, or publish it")
            data, manifest = found
            if listed:
                self._require_served(manifest, listed.media_type, listed.size)
            if manifest.media_type not in INDEXES:
                break
            listed = (closed.check_index if only else choose_image)(data, str(reference))
        parsed = parse(Manifest, data, str(reference))
        self._require_served(manifest, parsed.media_type, len(data))
        layout.put(data, manifest.media_type)
        self._require_space(layout, parsed)
        self.fetch((parsed.config, *parsed.layers), layout)
        layout.write_index(manifest)
        return manifest

    def _require_served(self, found: Descriptor, media_type: str, size: int) -> None:
        """Raise UserError where the manifest `found` is not of the type and size that an index, or it itself, says."""
        if (found.media_type, found.size) != (media_type, size):
            raise UserError(
                f"{self.reference}: expected {media_type} of {size} bytes, {self.host} serves {found.media_type[:100]!r} of "
                f"{found.size}; do not trust it"
            )

    def _require_space(self, layout: Layout, manifest: Manifest) -> None:
        """Raise UserError where the disk has no room for what `manifest` announces, before a server sends it."""
        blobs = {blob.digest: blob.size for blob in (manifest.config, *manifest.layers)}
        present = sum(path.stat().st_size for digest in blobs if (path := layout.blob(digest)).is_file())
        require_free_space(layout.folder, max(0, sum(blobs.values()) - present), f"download {self.reference}")

    @contextmanager
    def _open(self, method: str, path: str, expected: set[int], *, headers: dict[str, str] | None = None) -> Iterator[Answer]:
        """Yield the answer to a request, its body unread; raises UserError where its status is not `expected`."""
        try:
            with self._request(method, f"{self.base}/{path}", headers or {}, None) as answer:
                if answer.status not in expected:
                    raise self._refused(method, path, answer)
                yield answer
        except TransferError as broken:
            raise self._lost(f"during {method} {path}", broken) from None

    def _write(
        self, method: str, url: str, data: bytes | IO[bytes], media_type: str, expected: set[int], blob: Descriptor
    ) -> Mapping[str, str]:
        """Send `blob` and return the headers of the answer; raises UserError."""
        headers = {"Content-Type": media_type, "Content-Length": str(blob.size)}
        try:
            with self._request(method, url, headers, data) as answer:
                if answer.status not in expected:
                    raise self._refused(method, blob.digest, answer)
                return answer.headers
        except TransferError as broken:
            raise self._lost(f"while sending {blob.digest}", broken) from None

    @contextmanager
    def _request(self, method: str, url: str, headers: dict[str, str], data: bytes | IO[bytes] | None) -> Iterator[Answer]:
        """Yield the answer to a request, which is sent again after the challenge of the registry; raises TransferError."""
        own = urlsplit(url)[:2] == urlsplit(self.base)[:2]
        for attempt in range(2):
            sent = headers | ({"Authorization": value} if own and (value := self._authorization.header()) else {})
            repeated = method in ("GET", "HEAD")
            client = self._client
            with (
                client.ask(method, url, headers=sent) if repeated else client.open(method, url, headers=sent, data=data) as got
            ):
                if got.status == 401 and not attempt and own and self._authorization.challenge(got):
                    continue
                yield got
                return

    def _lost(self, when: str, broken: TransferError) -> UserError:
        if isinstance(broken, UnreachableError):
            return UserError(f"{self.host}: cannot be reached ({broken}); check its name and the network, then {RESUME}")
        if isinstance(broken, UntrustedError):
            return UserError(f"{self.host}: certificate not trusted ({broken}); set SSL_CERT_FILE or REQUESTS_CA_BUNDLE")
        if isinstance(broken, InvalidAnswerError):
            return UserError(f"{self.host}: invalid answer {when} ({broken}); do not trust this registry")
        return UserError(f"{self.host}: connection lost {when} ({broken}); {RESUME}")

    def _refused(self, method: str, what: str, answer: Answer) -> UserError:
        description = describe(answer)
        remedy = RESUME
        if answer.status in (401, 403):
            remedy = f"log in with sufficient rights: docker login {self.reference.host}"
        elif "no space left" in description:
            return UserError(f"{self.host}: registry disk full at {what}; free disk space there, then {RESUME} ({description})")
        return UserError(f"{self.host}: {method} {what}: {description}; {remedy}")


def _referrers_tag(digest: str) -> str:
    """Return the tag that lists the referrers of `digest` where the registry has no API for them.

    See: https://github.com/opencontainers/distribution-spec/blob/main/spec.md#referrers-tag-schema
    """
    return digest.replace(":", "-")
