"""A headless Chromium for tests of pages: the fixture `browser`, skipped where there is none.

Debian has it as `chromium` and `chromium-driver`. Nothing of it reaches another host: names are
not looked up, and a test can ask what a page has asked for.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

WAIT_S = 60.0  # ends what hangs; nothing is as slow on a busy machine
# The names of this machine alone: what else a page asks for fails, and is seen.
_ONLY_HERE = "MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1"
_OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # which root, as in containers, cannot have
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--hide-scrollbars",
    f"--host-resolver-rules={_ONLY_HERE}",
)


class Browser:
    """A window of a headless Chromium.

    Attributes:
        driver: Selenium's, for all that is not here.
    """

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self._console: list[dict[str, Any]] = []
        self._events: list[dict[str, Any]] = []

    def open(self, url: str | Path, *, width: int = 1280, height: int = 900) -> None:
        """Show a page (a file by its path), and forget what the last one said and asked for."""
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )
        self.driver.get("about:blank")
        self._collect()
        self._console.clear()
        self._events.clear()
        self.driver.get(url.resolve().as_uri() if isinstance(url, Path) else url)

    def js(self, code: str, *arguments: object) -> Any:
        """Run JavaScript in the page: `return …` gives its value."""
        return self.driver.execute_script(code, *arguments)

    def until(self, code: str, *arguments: object) -> Any:
        """Wait until an expression of the page is true; return its value."""
        return self.wait(lambda: self.js(f"return ({code});", *arguments), code)

    def wait(self, ask: Callable[[], Any], what: str) -> Any:
        """Wait until a function returns something true; return that."""
        end = time.monotonic() + WAIT_S
        while not (answer := ask()):
            if time.monotonic() > end:
                raise AssertionError(f"not within {WAIT_S:g} s: {what}")
            time.sleep(0.02)
        return answer

    def find(self, selector: str) -> Any:
        """Return the first element of a CSS selector."""
        return self.driver.find_element("css selector", selector)

    def find_all(self, selector: str) -> list[Any]:
        """Return all elements of a CSS selector."""
        elements: list[Any] = self.driver.find_elements("css selector", selector)
        return elements

    def keys(self, *keys: str) -> None:
        """Press keys, one after the other, wherever the focus is."""
        from selenium.webdriver.common.action_chains import ActionChains

        chain = ActionChains(self.driver)
        for key in keys:
            chain.send_keys(key)
        chain.perform()

    def point_at(self, selector: str, x: float, y: float) -> None:
        """Move the mouse to a point of an element, CSS pixels from its corner."""
        box = self.js(
            "const b = document.querySelector(arguments[0]).getBoundingClientRect();"
            "return [b.left, b.top];",
            selector,
        )
        self.mouse("mouseMoved", box[0] + x, box[1] + y)

    def mouse(self, kind: str, x: float, y: float, **more: object) -> None:
        """Send a mouse event (`mouseMoved`, `mousePressed`, `mouseWheel`, …) in window pixels."""
        event = {"type": kind, "x": x, "y": y, **more}
        self.driver.execute_cdp_cmd("Input.dispatchMouseEvent", event)

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Write a PNG of the window, or of the whole page."""
        import base64

        asked = {"format": "png", "captureBeyondViewport": whole}
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", asked)
        path.write_bytes(base64.b64decode(shot["data"]))

    def console_errors(self) -> list[str]:
        """List what the page has complained of since it was opened, warnings too."""
        self._collect()
        return [line["message"] for line in self._console if line["level"] in _BAD]

    def hosts(self) -> set[str]:
        """Return the hosts (`127.0.0.1:8080`) that the page has asked for anything."""
        self._collect()
        urls = [e["params"]["request"]["url"] for e in self._events if e["method"] == _REQUEST]
        return {urlsplit(url).netloc for url in urls if urlsplit(url).scheme in _NETWORK}

    def _collect(self) -> None:
        self._console += self.driver.get_log("browser")
        events = [json.loads(line["message"]) for line in self.driver.get_log("performance")]
        self._events += [event["message"] for event in events]


_BAD = ("SEVERE", "WARNING")
_REQUEST = "Network.requestWillBeSent"
_NETWORK = ("http", "https", "ws", "wss")


def programs() -> tuple[str, str] | None:
    """Return the paths of Chromium and of its driver; None where one is missing."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next((path for name in names if (path := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


def start() -> Any:
    """Start a headless Chromium; return Selenium's driver of it, to be ended with `quit()`."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    found = programs()
    assert found is not None, "asked for after `programs`"
    options = webdriver.ChromeOptions()
    options.binary_location = found[0]
    for option in _OPTIONS:
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=Service(found[1]))


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Return a headless Chromium: `browser.open(url)`, `.js(…)`, `.console_errors()`, …"""
    pytest.importorskip("selenium", reason="selenium is not installed")
    if programs() is None:
        pytest.skip("no chromium with chromedriver: apt-get install chromium chromium-driver")
    driver = start()
    try:
        yield Browser(driver)
    finally:
        driver.quit()
