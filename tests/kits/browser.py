"""A chromium without a window, driven over its own protocol through two pipes: no library, no port, no network."""

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PATIENCE_S = 120.0  # for any one answer; a busy machine is slow, a hanging browser is for ever
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_OPTIONS = """--headless=new --remote-debugging-pipe --disable-gpu --disable-dev-shm-usage --disable-extensions
--disable-background-networking --disable-component-update --no-first-run --no-default-browser-check"""
# The browser reads from file descriptor 3 and writes to 4; this puts the pipes there and becomes the browser.
_BECOME = """
import fcntl, os, sys
read, write = (fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3])
os.dup2(read, 3)
os.dup2(write, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class BrowserError(RuntimeError):
    """The browser said no, or nothing at all."""


def chromium() -> str | None:
    """Where a chromium is; None where there is none."""
    return next((path for path in map(shutil.which, _NAMES) if path), None)


@contextlib.contextmanager
def browser() -> Iterator["Browser"]:
    """A browser with a profile of its own, both gone at the end."""
    program = chromium()
    assert program is not None, "no chromium is installed"
    profile = tempfile.mkdtemp(prefix="browser-")
    to_read, our_write = os.pipe()
    our_read, to_write = os.pipe()
    options = [f"--user-data-dir={profile}", *_OPTIONS.split(), *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _BECOME, str(to_read), str(to_write), program, *options, "about:blank"],
        pass_fds=(to_read, to_write),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(to_read)
    os.close(to_write)
    fcntl.fcntl(our_read, fcntl.F_SETFL, os.O_NONBLOCK)
    try:
        yield Browser(our_read, our_write)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(PATIENCE_S)
        os.close(our_read)
        os.close(our_write)
        shutil.rmtree(profile, ignore_errors=True)


class Browser:
    """The protocol: calls with their answers, and the events that came meanwhile."""

    def __init__(self, read: int, write: int):
        """Talk through two file descriptors."""
        self._read, self._write, self._last, self._rest = read, write, 0, b""
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Call a method and wait for its answer."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + PATIENCE_S
        while True:
            answer = self._next(until, method)
            if answer.get("id") != self._last:
                self.events.append(answer)
            elif "error" in answer:
                raise BrowserError(f"{method}: {answer['error']['message']}")
            else:
                return answer["result"]

    def wait_for(self, event: str, session: str) -> dict[str, Any]:
        """The next such event of a session, one that has come already included."""
        until = time.monotonic() + PATIENCE_S
        seen = 0
        while True:
            for known in self.events[seen:]:
                seen += 1
                if known.get("method") == event and known.get("sessionId") == session:
                    return known["params"]
            self.events.append(self._next(until, event))

    def _next(self, until: float, what: str) -> dict[str, Any]:
        while b"\0" not in self._rest:
            if not select.select([self._read], [], [], max(0.0, until - time.monotonic()))[0]:
                raise BrowserError(f"{what}: no answer in {PATIENCE_S:g} s")
            received = os.read(self._read, 2**20)
            if not received:
                raise BrowserError(f"{what}: the browser has ended")
            self._rest += received
        message, self._rest = self._rest.split(b"\0", 1)
        return json.loads(message)


class Tab:
    """One open page."""

    def __init__(self, owner: Browser, path: Path, *, width: int = 1200, height: int = 900, dark: bool = False):
        """Open a file, and wait until it is loaded."""
        self._owner = owner
        target = owner.call("Target.createTarget", url="about:blank")["targetId"]
        self._target = target
        self._session = owner.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.resize(width, height)
        self.emulate(dark=dark)
        owner.events.clear()
        self.url = path.resolve().as_uri()
        self.call("Page.navigate", url=self.url)
        owner.wait_for("Page.loadEventFired", self._session)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of this page."""
        return self._owner.call(method, self._session, **params)

    def close(self) -> None:
        """Close the page."""
        self._owner.call("Target.closeTarget", targetId=self._target)

    def run(self, script: str) -> Any:
        """The value of an expression; a promise is waited for."""
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True)
        if "exceptionDetails" in done:
            raise BrowserError(str(done["exceptionDetails"].get("exception", done["exceptionDetails"])))
        return done["result"].get("value")

    def until(self, script: str) -> Any:
        """Wait until an expression is true, and give its value."""
        end = time.monotonic() + PATIENCE_S
        while not (value := self.run(script)):
            if time.monotonic() > end:
                raise BrowserError(f"never true: {script}")
            time.sleep(0.02)
        return value

    def resize(self, width: int, height: int = 900) -> None:
        """Make the window so many CSS pixels large."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def emulate(self, *, dark: bool = False, still: bool = False, media: str = "") -> None:
        """Prefer dark colours, prefer no motion, be ``"print"``."""
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if still else "no-preference"},
        ]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)

    def press(self, key: str, code: int) -> None:
        """Press and release a key, such as ``"ArrowRight"`` (39)."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def pdf(self) -> bytes:
        """The page as it is printed."""
        return base64.b64decode(
            self.call("Page.printToPDF", printBackground=True, paperWidth=8.27, paperHeight=11.69)["data"]
        )

    def complaints(self) -> list[str]:
        """What was said to the console as an error or a warning, and what was thrown."""
        self.run("0")  # what came before its answer has been read, too
        found = []
        for event in self._owner.events:
            if event.get("sessionId") != self._session:
                continue
            params = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                found.append(json.dumps(params["exceptionDetails"]))
            elif event["method"] == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                found.append(params["entry"]["text"])
            elif event["method"] == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
                found.append(json.dumps(params["args"]))
        return found

    def requests(self) -> list[str]:
        """The addresses that were asked for, the page's own left out."""
        self.run("0")
        asked = [
            event["params"]["request"]["url"]
            for event in self._owner.events
            if event.get("sessionId") == self._session and event["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in asked if url != self.url]
