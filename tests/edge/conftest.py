"""A headless Chromium, spoken to through a pair of pipes, and the page in a folder of its own."""

import base64
import fcntl
import functools
import http.server
import itertools
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs/extra/edge"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
PATIENCE = 60  # seconds; the runtime's 14 MB are compiled on a busy core


class Browser:
    """A Chromium and its one tab, by the DevTools protocol."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        to_browser, from_browser = os.pipe(), os.pipe()
        # Chromium reads file 3 and writes file 4, so the ends it gets must not be these before.
        read, write = (
            fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_browser[0], from_browser[1])
        )
        arguments = [
            *(CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-background-networking", "--disable-dev-shm-usage"),
            *("--use-fake-device-for-media-stream", "--remote-debugging-pipe"),
            *(f"--user-data-dir={profile}", "about:blank"),
        ]
        self._process = os.posix_spawn(
            CHROMIUM,
            arguments,
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, read, 3),
                (os.POSIX_SPAWN_DUP2, write, 4),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
            ],
        )
        for end in (read, write, to_browser[0], from_browser[1]):
            os.close(end)
        self._out = os.fdopen(to_browser[1], "wb", buffering=0)
        self._in = os.fdopen(from_browser[0], "rb")
        self._numbers = itertools.count(1)
        self._session: dict[str, str] = {}
        targets = self.send("Target.getTargets")["targetInfos"]
        (tab,) = (target["targetId"] for target in targets if target["type"] == "page")
        attached = self.send("Target.attachToTarget", targetId=tab, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        self.send("Page.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters, **self._session}
        self._out.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = json.loads(self._message())
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def _message(self) -> bytes:
        found = bytearray()
        while (byte := self._in.read(1)) != b"\0":
            assert byte, "Chromium ended"
            found += byte
        return bytes(found)

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, awaited if it is a promise."""
        found = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def open(self, address: str) -> None:
        """Open a page and wait until its script has started or failed to."""
        self.send("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def wait(self, expression: str) -> Any:
        """Return the first value of an expression that is true."""
        end = time.monotonic() + PATIENCE
        while not (found := self.evaluate(expression)):
            assert time.monotonic() < end, f"{expression} is still {found}: {self.text('body')}"
            time.sleep(0.02)
        return found

    def text(self, selector: str) -> str:
        """Return the visible text of an element."""
        return self.evaluate(f"document.querySelector({selector!r}).innerText")

    def choose(self, selector: str, *files: Path) -> None:
        """Put files into a file input, as a user does who chooses them."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def click(self, selector: str) -> None:
        self.evaluate(f"document.querySelector({selector!r}).click()")

    def picture(self, width: int, height: int, *, dark: bool) -> bytes:
        """Return a PNG of the whole page in a window of that width."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", features=scheme)
        self.send(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
        )
        self.evaluate("new Promise(requestAnimationFrame)")
        shot = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])

    def close(self) -> None:
        self.send("Browser.close")
        self._out.close()
        self._in.close()
        os.waitpid(self._process, 0)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="session")
def page() -> Path:
    """The page's folder, where there is one."""
    if not PAGE.is_dir():
        pytest.skip("the page is in the checkout only")
    return PAGE


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless Chromium."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="session")
def runtime(page: Path) -> Path:
    """The local copy of ONNX Runtime Web."""
    if not (page / "ort").is_dir():
        pytest.skip(f"{page / 'ort'} is not there; docs/how_to/browser.md says how to make it")
    return page / "ort"


@pytest.fixture
def site(page: Path, tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A copy of the page without the runtime, to be changed, and its address."""
    folder = tmp_path / "edge"
    shutil.copytree(page, folder, ignore=shutil.ignore_patterns("ort"))
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
