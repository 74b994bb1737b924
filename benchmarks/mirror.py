"""A mirror of the package index on 127.0.0.1: the same pages for each tool, as of one day, fresh or stale at will.

conda-lock cannot cut off the index at a date, so the mirror leaves out younger files, and both tools resolve the same inputs.
Pages, metadata and source distributions come from the real index, each once. Files may be cached for ever, as the real index
says of its own; otherwise a proxy in between that sends no such header would be what is measured.
"""

import hashlib
import html
import inspect
import io
import json
import os
import threading
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urljoin

JSON = "application/vnd.pypi.simple.v1+json"
PATIENCE = 60.0  # seconds


class Mirror(ThreadingHTTPServer):
    """A server of `/fresh/simple/<name>/`, which caches may keep for a day, and `/stale/simple/<name>/`, which they revalidate.

    Files uploaded at `before` or later are left out. `requests` counts requests for pages.
    """

    daemon_threads = True

    def __init__(self, upstream: str, before: datetime) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream.rstrip("/")
        self.before = before
        self.requests = 0
        self.pages: dict[str, dict[str, Any] | None] = {}
        self.files: dict[str, str] = {}  # URL at the real index, by path on this server
        self.kept: dict[str, bytes] = {}
        self.lock = threading.Lock()

    def address(self, freshness: str) -> str:
        """Return the URL of the index whose pages are `fresh` or `stale`."""
        return f"http://127.0.0.1:{self.server_port}/{freshness}/simple"

    def page(self, name: str) -> dict[str, Any] | None:
        """Return the page of a package, or None if the index has none."""
        with self.lock:
            self.requests += 1
            if name in self.pages:
                return self.pages[name]
        request = urllib.request.Request(f"{self.upstream}/{name}/", headers={"Accept": JSON})
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as response:
                page = json.load(response)
        except urllib.error.HTTPError as missing:
            if missing.code != 404:
                raise
            page = None
        if page:
            page["files"] = [file for file in page["files"] if self._counts(file)]
            page["versions"] = []
            for file in page["files"]:
                path = f"/files/{file['hashes']['sha256']}/{file['filename']}"
                self.files[path] = urljoin(f"{self.upstream}/{name}/", file["url"])
                file["url"] = f"http://127.0.0.1:{self.server_port}{path}"
                # A proxy in between may serve metadata that its pages do not announce.
                file["core-metadata"] = file.get("core-metadata") or file["filename"].endswith(".whl")
        with self.lock:
            return self.pages.setdefault(name, page)

    def file(self, path: str) -> bytes:
        """Return the file at `path`, or its metadata if `path` ends in `.metadata`."""
        if path not in self.kept:
            where = self.files[path.removesuffix(".metadata")]
            try:
                with urllib.request.urlopen(where + ".metadata" * path.endswith(".metadata"), timeout=PATIENCE) as response:
                    self.kept[path] = response.read()
            except urllib.error.HTTPError:
                if not path.endswith(".metadata"):
                    raise
                with zipfile.ZipFile(io.BytesIO(self.file(path.removesuffix(".metadata")))) as wheel:
                    self.kept[path] = wheel.read(next(name for name in wheel.namelist() if name.endswith("/METADATA")))
        return self.kept[path]

    def _counts(self, file: dict[str, Any]) -> bool:
        return "upload-time" in file and datetime.fromisoformat(file["upload-time"]) < self.before


class _Handler(BaseHTTPRequestHandler):
    server: Mirror
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        _, freshness, _, name, *_ = self.path.split("/")
        if freshness == "files":
            self._answer(200, self.server.file(self.path), {"Cache-Control": "max-age=365000000, immutable"})
            return
        page = self.server.page(name)
        if page is None:
            self._answer(404, b"", {})
            return
        as_json = JSON in self.headers.get("Accept", "")
        body = (json.dumps(page) if as_json else _html(page)).encode()
        tag = f'"{hashlib.sha256(body).hexdigest()}"'
        same = self.headers.get("If-None-Match") == tag
        keep = "max-age=86400" if freshness == "fresh" else "max-age=0"
        headers = {"ETag": tag, "Cache-Control": keep, "Content-Type": JSON if as_json else "text/html"}
        self._answer(304 if same else 200, b"" if same else body, headers)

    def _answer(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, text in headers.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _html(page: dict[str, Any]) -> str:
    return "<!DOCTYPE html><html><body>" + "".join(_anchor(file) for file in page["files"]) + "</body></html>"


def _anchor(file: dict[str, Any]) -> str:
    attributes = {"href": f"{file['url']}#sha256={file['hashes']['sha256']}"}
    if file.get("requires-python"):
        attributes["data-requires-python"] = file["requires-python"]
    if metadata := file["core-metadata"]:
        attributes["data-core-metadata"] = f"sha256={metadata['sha256']}" if isinstance(metadata, dict) else "true"
    if yanked := file.get("yanked"):
        attributes["data-yanked"] = str(yanked)
    written = " ".join(f'{name}="{html.escape(text)}"' for name, text in attributes.items())
    return f"<a {written}>{html.escape(file['filename'])}</a><br>\n"


def upstream() -> str:
    """The index that uv is told of in the environment, or the one that installed clients ask by default."""
    if chosen := os.environ.get("UV_DEFAULT_INDEX"):
        return chosen
    from conda_lock._vendor.poetry.repositories.pypi_repository import PyPiRepository

    return f"{inspect.signature(PyPiRepository).parameters['url'].default}simple"


@contextmanager
def running(upstream: str, before: datetime) -> Iterator[Mirror]:
    """Run a mirror of `upstream`."""
    with Mirror(upstream, before) as mirror:
        thread = threading.Thread(target=mirror.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield mirror
        finally:
            mirror.shutdown()
            thread.join()
