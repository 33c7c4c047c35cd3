"""How the people of the demonstration come in: a browser without JavaScript, a mailbox, and a machine with a key."""

from __future__ import annotations

import base64
import re
import time
from email import message_from_bytes
from email.message import Message
from email.policy import default
from pathlib import Path
from typing import Any, Final

import httpx
from bs4 import BeautifulSoup, Tag
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.totp import TOTP

from demo.deployment import DemoError

_LINK: Final = re.compile(r"https?://[^/\s]+(/\S+)")
_TOTP_DIGITS, _TOTP_SECONDS = 6, 30


class Browser:
    """Somebody at a browser: opens pages, fills fields by their labels, presses buttons by their words."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, follow_redirects=True, timeout=60, headers={"Referer": url})
        self._page = BeautifulSoup("", "html.parser")
        self._path = "/"

    def open(self, path: str) -> BeautifulSoup:
        """Go to a page."""
        return self._show(self._http.get(path))

    def download(self, path: str) -> bytes:
        """Fetch a file."""
        return self._answer(self._http.get(path)).content

    def send(self, button: str, **fields: str) -> BeautifulSoup:
        """Fill the form that has a button of these words, and press it.

        Raises:
            DemoError: no such button, or the page that follows complains.
        """
        form = self._form(button)
        unknown = sorted(set(fields) - {str(tag.get("name")) for tag in form.find_all(["input", "select", "textarea"])})
        if unknown:
            raise DemoError(f"the form behind “{button}” has no field {', '.join(unknown)}")
        values = {str(tag["name"]): str(tag.get("value", "")) for tag in form.find_all("input", {"type": "hidden"})}
        action = str(form.get("action") or self._path)
        return self._show(self._http.post(action, data={**values, **fields}))

    @property
    def text(self) -> str:
        """What the page says."""
        return " ".join(self._page.get_text(" ").split())

    def links(self) -> dict[str, str]:
        """Return the page's links: words to paths."""
        return {" ".join(a.get_text(" ").split()): str(a["href"]) for a in self._page.find_all("a", href=True)}

    def sign_in(self, handle: str, password: str, totp_secret: str) -> None:
        """Sign in to the console with password and authenticator code."""
        self.open("/account/login/?next=/console/")
        self.send("Sign in", login=handle, password=password)
        self.send("Sign In", code=_totp(totp_secret))

    def _form(self, button: str) -> Tag:
        for form in self._page.find_all("form"):
            if any(button == " ".join(b.get_text(" ").split()) for b in form.find_all("button")):
                return form
        raise DemoError(f"the page {self._path} has no button “{button}”: {self.text[-400:]}")

    def _show(self, answer: httpx.Response) -> BeautifulSoup:
        self._page = BeautifulSoup(self._answer(answer).text, "html.parser")
        self._path = answer.url.raw_path.decode()
        return self._page

    def _answer(self, answer: httpx.Response) -> httpx.Response:
        if answer.is_error:
            said = " ".join(BeautifulSoup(answer.text, "html.parser").get_text(" ").split())
            raise DemoError(f"{answer.request.method} {answer.url.path} answered {answer.status_code}: {said[-600:]}")
        return answer


class Machine:
    """A program with an API key."""

    def __init__(self, url: str, key: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=60, headers={"Authorization": f"Bearer {key}"})

    def get(self, path: str) -> Any:
        """GET a JSON document."""
        return self._answer(path).json()

    def download(self, path: str) -> bytes:
        """GET a file."""
        return self._answer(path).content

    def _answer(self, path: str) -> httpx.Response:
        answer = self._http.get(path)
        if answer.is_error:
            raise DemoError(f"GET {path} answered {answer.status_code}: {answer.text[:600]}")
        return answer


def links_from_mailbox(mailbox: Path, to: str, *, patience_s: float = 60.0) -> list[str]:
    """Wait for a letter to `to`, and return the paths of the links in the newest one."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        letters = [letter for path in sorted(mailbox.glob("*")) for letter in _letters(path) if letter["To"] == to]
        for letter in reversed(letters):
            if links := _LINK.findall(_body(letter)):
                return links
        time.sleep(0.3)
    raise DemoError("the letter with the link did not come")


def _letters(path: Path) -> list[Message]:
    parts = path.read_bytes().split(b"-" * 79 + b"\n")
    return [message_from_bytes(part, policy=default) for part in parts if part.strip()]


def _body(letter: Message) -> str:
    payload = letter.get_payload(decode=True)
    return payload.decode("utf-8") if isinstance(payload, bytes) else ""


def _totp(secret: str) -> str:
    key = base64.b32decode(secret)
    # Authenticator apps use 20-byte keys and SHA-1 (RFC 6238).
    return TOTP(key, _TOTP_DIGITS, SHA1(), _TOTP_SECONDS).generate(int(time.time())).decode()  # noqa: S303 # nosec B303
