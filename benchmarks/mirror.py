"""A mirror of the package index on 127.0.0.1: the same pages to each tool, as of one day, and as fresh as one likes.

conda-lock's pip solver knows no cut-off date, so the mirror leaves out what is younger: both tools answer one question.
Pages come from the real index, each once; files and their metadata stay there.
"""

import hashlib
import html
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

JSON = "application/vnd.pypi.simple.v1+json"
PATIENCE = 60.0  # seconds


class Mirror(ThreadingHTTPServer):
    """Serves `/fresh/simple/<name>/`, which caches may keep for a day, and `/stale/simple/<name>/`, which they must ask about.

    `before` is the first moment that no longer counts. `asked` counts requests.
    """

    daemon_threads = True

    def __init__(self, upstream: str, before: datetime) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream.rstrip("/")
        self.before = before
        self.asked = 0
        self.pages: dict[str, dict[str, Any] | None] = {}
        self.lock = threading.Lock()

    def address(self, freshness: str) -> str:
        """The index whose pages are `fresh` or `stale`."""
        return f"http://127.0.0.1:{self.server_port}/{freshness}/simple"

    def page(self, name: str) -> dict[str, Any] | None:
        """The page of a package, None where there is none."""
        with self.lock:
            self.asked += 1
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
        with self.lock:
            return self.pages.setdefault(name, page)

    def _counts(self, file: dict[str, Any]) -> bool:
        return "upload-time" in file and datetime.fromisoformat(file["upload-time"]) < self.before


class _Handler(BaseHTTPRequestHandler):
    server: Mirror
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        _, freshness, _, name, *_ = self.path.split("/")
        page = self.server.page(name)
        if page is None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        as_json = JSON in self.headers.get("Accept", "")
        body = (json.dumps(page) if as_json else _html(page)).encode()
        tag = f'"{hashlib.sha256(body).hexdigest()}"'
        same = self.headers.get("If-None-Match") == tag
        self.send_response(304 if same else 200)
        self.send_header("ETag", tag)
        self.send_header("Cache-Control", "max-age=86400" if freshness == "fresh" else "max-age=0")
        self.send_header("Content-Type", JSON if as_json else "text/html")
        self.send_header("Content-Length", "0" if same else str(len(body)))
        self.end_headers()
        self.wfile.write(b"" if same else body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _html(page: dict[str, Any]) -> str:
    return "<!DOCTYPE html><html><body>" + "".join(_anchor(file) for file in page["files"]) + "</body></html>"


def _anchor(file: dict[str, Any]) -> str:
    attributes = {"href": f"{file['url']}#sha256={file['hashes']['sha256']}"}
    if file.get("requires-python"):
        attributes["data-requires-python"] = file["requires-python"]
    if isinstance(metadata := file.get("core-metadata"), dict):
        attributes["data-core-metadata"] = f"sha256={metadata['sha256']}"
    if yanked := file.get("yanked"):
        attributes["data-yanked"] = str(yanked)
    written = " ".join(f'{name}="{html.escape(text)}"' for name, text in attributes.items())
    return f"<a {written}>{html.escape(file['filename'])}</a><br>\n"


@contextmanager
def running(upstream: str, before: datetime) -> Iterator[Mirror]:
    """A mirror of `upstream`, running."""
    with Mirror(upstream, before) as mirror:
        thread = threading.Thread(target=mirror.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield mirror
        finally:
            mirror.shutdown()
            thread.join()
