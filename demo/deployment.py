"""One machine's deployment below one directory: SQLite, keys, the web process and the embedded runner."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

import httpx

ROOT: Final = Path(__file__).resolve().parent.parent
_START_S: Final = 60.0
_STOP_S: Final = 20.0


class DemoError(Exception):
    """The demonstration cannot go on; the message says what to do."""


@dataclass
class Deployment:
    """Directories, environment and processes of one deployment."""

    out: Path
    port: int
    settings: Mapping[str, str] = field(default_factory=dict)
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _logs: list[IO[bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where the pages are."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def home(self) -> Path:
        """Database, keys and work directory."""
        return self.out / "home"

    @property
    def registry(self) -> Path:
        """The model registry, which serves the weights."""
        return self.out / "registry"

    @property
    def mailbox(self) -> Path:
        """Where mail is caught instead of being sent."""
        return self.out / "mailbox"

    def environment(self) -> dict[str, str]:
        """Return the environment of every process of this deployment; nothing is inherited that would aim elsewhere."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("LETHE_", "DJANGO_"))}
        for name in ("DATABASE_URL", "REDIS_URL"):
            kept.pop(name, None)
        return {
            **kept,
            "LETHE_HOME": str(self.home),
            "LETHE_REGISTRY_ROOT": str(self.registry),
            "LETHE_EMAIL_BACKEND": "django.core.mail.backends.filebased.EmailBackend",
            "LETHE_EMAIL_FILE_PATH": str(self.mailbox),
            "LETHE_PUBLIC_URL": self.url,
            "LETHE_CONTROLLER_NAME": "Example Controller",
            "LETHE_LOG_LEVEL": "WARNING",
            "PYTHONUNBUFFERED": "1",
            **self.settings,
        }

    def manage(self, *arguments: str) -> str:
        """Run one management command to its end and return what it printed.

        Raises:
            DemoError: the command failed.
        """
        result = subprocess.run(  # noqa: S603 - our own interpreter and our own command
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            raise DemoError(f"manage.py {arguments[0]} failed:\n{result.stderr.strip()[-2000:]}")
        return result.stdout

    def start(self) -> None:
        """Start the web process and the runner, and wait until the doors are open."""
        bind = f"127.0.0.1:{self.port}"
        web = ["-m", "gunicorn", "deletion_service.wsgi", "--bind", bind, "--threads", "4", "--workers", "1"]
        self._start("web", *web, "--worker-tmp-dir", str(self.home))
        self._start("runner", "manage.py", "run_jobs")
        self._wait_for_doors()

    def stop(self) -> None:
        """Stop what was started; a runner finishes or gives up its lease first."""
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for log in self._logs:
            log.close()
        self._running.clear()

    def check(self) -> None:
        """Raise when a process has ended by itself."""
        for name, process in self._running.items():
            if process.poll() is not None:
                raise DemoError(f"the {name} process ended with {process.returncode}; see {self._log(name)}")

    def _start(self, name: str, *arguments: str) -> None:
        log = self._log(name).open("ab")
        self._logs.append(log)
        self._running[name] = subprocess.Popen(  # noqa: S603 - our own interpreter and our own programs
            [sys.executable, *arguments], cwd=ROOT, env=self.environment(), stdout=log, stderr=log
        )

    def _log(self, name: str) -> Path:
        folder = self.out / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name}.log"

    def _wait_for_doors(self) -> None:
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            self.check()
            try:
                if httpx.get(f"{self.url}/readyz", timeout=2).status_code == httpx.codes.OK:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
        raise DemoError(f"the service did not open its doors; see {self._log('web')}")


def free_port() -> int:
    """Return a port of the loopback interface that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def from_json(text: str) -> dict[str, Any]:
    """Read the JSON a management command printed as its last line."""
    document: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
    return document
