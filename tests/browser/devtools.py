"""A headless Chromium, driven over its pipe by the DevTools protocol.

See: https://chromedevtools.github.io/devtools-protocol/
"""

import fcntl
import json
import os
import platform
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..integration import debian

_DEADLINE = 60.0  # seconds for an answer, on a busy machine too
_PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
_OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--no-default-browser-check"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
    *("--remote-debugging-pipe", "about:blank"),
)


def find(folder: Path) -> tuple[Path, dict[str, str]]:
    """Return Chromium and the environment variables that it requires: this machine's, or Debian's, unpacked in `folder`."""
    for program in _PROGRAMS:
        if path := shutil.which(program):
            return Path(path), {}
    suite = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    usr = debian.unpack([f"chromium-headless-shell/{suite}"], folder, dependencies=True)
    libraries = usr / "lib" / f"{platform.machine()}-linux-gnu"
    # libpulse looks for its own library in a folder of the machine.
    own = [libraries, libraries / "pulseaudio", folder / "lib" / libraries.name]
    paths = [*map(str, own), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    return usr / "lib" / "chromium" / "chromium-headless-shell", {"LD_LIBRARY_PATH": os.pathsep.join(paths)}


class Browser:
    """A running browser: commands are answered in order, and events are kept until someone reads them."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read = write, read
        self._buffer = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Run a command of the protocol and return its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + _DEADLINE
        while (answer := self._receive(deadline)).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: dict[str, Any] = answer["result"]
        return result

    def wait_for(self, method: str, session: str, since: int) -> dict[str, Any]:
        """Return the first event `method` of a session after `since` events; waits for it."""
        deadline = time.monotonic() + _DEADLINE
        while True:
            for event in self.events[since:]:
                if (event.get("method"), event.get("sessionId")) == (method, session):
                    return event
            self.events.append(self._receive(deadline))

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"the browser gave no answer within {_DEADLINE:.0f} s"
            data = os.read(self._read, 1 << 16)
            assert data, "the browser ended"
            self._buffer += data
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message


@contextmanager
def start(program: Path, environ: dict[str, str], home: Path) -> Iterator[Browser]:
    """Start a browser with an empty profile in `home`, and end it with all its processes."""
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for pair in (os.pipe(), os.pipe()) for end in pair]
    commands, write, read, answers = ends
    # The browser reads from descriptor 3 and writes to descriptor 4.
    shell = ["bash", "-c", f'exec "$@" 3<&{commands} 4>&{answers}', "-", str(program), *_OPTIONS]
    environ = {**os.environ, **environ, "HOME": str(home), "XDG_CONFIG_HOME": str(home), "XDG_CACHE_HOME": str(home)}
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [*shell, f"--user-data-dir={home / 'profile'}"],
            env=environ,
            pass_fds=(commands, answers),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    for end in (commands, answers):
        os.close(end)
    try:
        browser = Browser(write, read)
        yield browser
        browser.call("Browser.close")
    finally:
        for end in (write, read):
            os.close(end)  # without them, the browser ends
        try:
            process.wait(_DEADLINE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()


class Page:
    """A page of a browser, in a window of `width` pixels. Every request, console message and error is kept."""

    def __init__(self, browser: Browser, width: int = 1000, *, script: str = "", dark: bool = False) -> None:
        self.browser = browser
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 500)
        self.media("screen", dark=dark)
        if script:
            self.call("Page.addScriptToEvaluateOnNewDocument", source=script)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Run a command of the protocol for this page."""
        return self.browser.call(method, self._session, **parameters)

    def media(self, media: str, *, dark: bool = False) -> None:
        """Show the page on a screen or as it is printed, in light or dark colours."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", media=media, features=scheme)

    def open(self, file: Path) -> None:
        """Load a file and wait until all of it is loaded."""
        since = len(self.browser.events)
        self.call("Page.navigate", url=file.as_uri())
        self.browser.wait_for("Page.loadEventFired", self._session, since)

    def run(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, of a promise once it is kept, as JSON."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def click(self, selector: str) -> None:
        """Click on the middle of an element with the mouse."""
        where = f"document.querySelector({json.dumps(selector)})"
        x, y = self.run(
            f"{where}.scrollIntoView({{block: 'center'}}), (r => [r.x + r.width / 2, r.y + r.height / 2])"
            f"({where}.getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def requests(self) -> list[str]:
        """Return the URL of each request so far."""
        return [event["params"]["request"]["url"] for event in self._of("Network.requestWillBeSent")]

    def complaints(self) -> list[str]:
        """Return each error and console message so far."""
        found = [event["params"]["entry"]["text"] for event in self._of("Log.entryAdded")]
        found += [str(event["params"]["exceptionDetails"]) for event in self._of("Runtime.exceptionThrown")]
        return found + [str(event["params"]["args"]) for event in self._of("Runtime.consoleAPICalled")]

    def _of(self, method: str) -> list[dict[str, Any]]:
        self.run("1")  # the answer follows all events before it
        return [e for e in self.browser.events if (e.get("method"), e.get("sessionId")) == (method, self._session)]
