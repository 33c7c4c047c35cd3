"""A real browser against a live server. Debian's chromium and chromium-driver; nothing is downloaded.

Every page a test visits must be silent on the console, ask no other host, and pass axe's WCAG A and AA rules.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.core.cache import cache
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from tests.flow.conftest import simulator  # noqa: F401 - a fixture

_AXE = (Path(__file__).parent / "vendor" / "axe-4.10.3.min.js").read_text(encoding="utf-8")
_RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
_STICKS_OUT = (
    "return document.documentElement.scrollWidth <= arguments[0] ? [] : [...document.querySelectorAll('body *')]"
    ".filter(e => e.getBoundingClientRect().right > arguments[0]).map(e => e.outerHTML.slice(0, 120))"
)
DESK, PHONE = (1280, 900), (360, 780)


def _binaries() -> tuple[str, str]:
    found = shutil.which("chromium"), shutil.which("chromedriver")
    if all(found):
        return str(found[0]), str(found[1])
    reason = "chromium and chromium-driver are not installed: apt-get install -y chromium chromium-driver"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def _driver() -> Iterator[webdriver.Chrome]:
    browser, driver = _binaries()
    options = Options()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.add_argument("--force-prefers-reduced-motion")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    chrome.set_page_load_timeout(60)
    yield chrome
    chrome.quit()


def _is_gone(page: WebElement) -> bool:
    """Whether another document took a page's place; while it does, chromium answers with errors of several kinds."""
    try:
        page.is_enabled()
    except WebDriverException:
        return True
    return False


class Visitor:
    """Somebody at a browser: opens pages, fills fields, presses buttons, and checks every page on the way."""

    def __init__(self, driver: webdriver.Chrome, base: str, pictures: Path) -> None:
        self.driver, self.base, self.pictures = driver, base, pictures
        self.count = 0

    def open(self, path: str, *, ours: bool = True) -> None:
        """Go to a page of the live server; `ours` is False for a page whose widgets another project made."""
        self.driver.get(f"{self.base}{path}")
        self.check(ours=ours)

    def fill(self, label: str, value: str) -> None:
        """Type into the field that a label belongs to, as somebody who uses a screen reader finds it."""
        for candidate in self.driver.find_elements(By.TAG_NAME, "label"):
            if candidate.text.strip().startswith(label):
                field = self.driver.find_element(By.ID, str(candidate.get_attribute("for")))
                if field.tag_name != "select":
                    field.clear()
                field.send_keys(value)
                return
        raise AssertionError(f"no field is labelled {label}")

    def choose(self, label: str) -> None:
        """Pick a radio button by its label."""
        self._click(self._by_text("label", label), leads_on=False)

    def press(self, text: str) -> None:
        """Press the button or link that says `text`, and check the page it leads to."""
        for tag in ("button", "a"):
            if any(e.text.strip() == text for e in self.driver.find_elements(By.TAG_NAME, tag)):
                self._click(self._by_text(tag, text))
                break
        else:
            raise AssertionError(f"nothing to press says {text}")
        self.check()

    @property
    def text(self) -> str:
        """What the page says."""
        return str(self.driver.find_element(By.TAG_NAME, "body").text)

    def check(self, *, ours: bool = True) -> None:
        """Take pictures, and fail on console messages, foreign requests, overflow on a telephone, or axe's findings."""
        self.count += 1
        name = f"{self.count:02d}-{urlsplit(self.driver.current_url).path.strip('/').split('/')[0] or 'start'}"
        for label, size in (("desk", DESK), ("phone", PHONE)):
            self.driver.execute_cdp_cmd(
                "Emulation.setDeviceMetricsOverride",
                {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": label == "phone"},
            )
            self._picture(f"{name}-{label}.png")
            assert self.driver.execute_script(_STICKS_OUT, size[0]) == [], f"{name} on a {label}"
        self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        # The browser reports the status of the page itself; tests look at that in the text.
        own = f"{self.driver.current_url} - Failed to load resource"
        assert [m["message"] for m in self.driver.get_log("browser") if not m["message"].startswith(own)] == []
        assert self._foreign_requests() == []
        assert not ours or self._violations() == []

    def _picture(self, name: str) -> None:
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "format": "png"})
        (self.pictures / name).write_bytes(base64.b64decode(shot["data"]))

    def _foreign_requests(self) -> list[str]:
        urls = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                urls.append(message["params"]["request"]["url"])
        host = urlsplit(self.base).netloc
        return [url for url in urls if not url.startswith("data:") and urlsplit(url).netloc != host]

    def _violations(self) -> list[str]:
        self.driver.execute_script(_AXE)
        found = self.driver.execute_async_script(
            "const done = arguments[arguments.length - 1];"
            "axe.run({runOnly: {type: 'tag', values: arguments[0]}}).then("
            "r => done(r.violations.map(v => v.id + ': ' + v.nodes.map(n => n.html).join(' | '))));",
            _RULES,
        )
        return list(found)

    def _click(self, element: WebElement, *, leads_on: bool = True) -> None:
        """Click, and wait for the page that follows."""
        page = self.driver.find_element(By.TAG_NAME, "html")
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()
        if leads_on:
            WebDriverWait(self.driver, 20).until(lambda _: _is_gone(page))

    def _by_text(self, tag: str, text: str) -> WebElement:
        return next(e for e in self.driver.find_elements(By.TAG_NAME, tag) if e.text.strip().startswith(text))


@pytest.fixture
def visitor(_driver: webdriver.Chrome, live_server: Any, settings: Any, tmp_path: Path) -> Iterator[Visitor]:
    """A visitor without cookies; mails point to the live server; the pictures are in the test's temporary folder."""
    cache.clear()
    settings.PUBLIC_URL = live_server.url
    _driver.delete_all_cookies()
    pictures = Path(os.environ.get("LETHE_TEST_PICTURES", tmp_path))
    pictures.mkdir(parents=True, exist_ok=True)
    yield Visitor(_driver, live_server.url, pictures)
    _driver.get("about:blank")
    _driver.delete_all_cookies()
