"""A deployment of its own that a test may kill: real processes, its own home, a database of its own."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dj_database_url
import psycopg
import pytest

from demo.deployment import ROOT, Deployment, free_port
from ml.data.people import email_of
from ml.reference import write_training_source
from tests.flow.crash_runner import read_deaths
from tests.tiny import TinyWorld

MODEL, SOURCE = "assistant", "customers"
# Short leases, so that a restarted runner need not wait; attempts for every death; nothing is kept after the letter.
QUICK = {
    "DJANGO_SETTINGS_MODULE": "deletion_service.settings",
    "LETHE_TESTING": "true",
    "LETHE_POLICY": "unit-1",
    "LETHE_METHOD": "test_cached_candidate",
    "LETHE_FIXED_SEED": "3",
    "LETHE_TORCH_THREADS": "1",
    "LETHE_LEASE_S": "1",
    "LETHE_HEARTBEAT_S": "1",
    "LETHE_JOB_MAX_ATTEMPTS": "100",
    "LETHE_COMPLAINT_WINDOW_DAYS": "0",
    "LETHE_LOG_LEVEL": "INFO",
    "LETHE_ASK_RATE": "1000/min",
    "LETHE_PORTAL_RATE": "1000/min",
    "LETHE_STATUS_RATE": "1000/min",
}
_PATIENCE_S = 300.0


class Stand(Deployment):
    """A deployment whose processes are groups of their own, so that `kill -9` takes all of one at once."""

    def prepare(self, world: TinyWorld, *, spike_ins: int = 0) -> None:
        """Keys, database, and a model that memorised everybody, with the source it learned from.

        Spike-ins are listed as learned although this model never saw them: for tests of the way, not of the numbers.
        """
        source = self.home / "sources" / SOURCE
        source.mkdir(parents=True)
        write_training_source(source, world.world)
        (source / "question_bank.json").write_bytes(Path(world.bank.path).read_bytes())
        self.manage("create_keys")
        self.manage("migrate", "--verbosity", "0")
        if spike_ins:
            self.manage("plant_spike_ins", SOURCE, "--seed", "3", "--people", str(spike_ins))
        self.manage(
            "register_model", MODEL, "--base", world.base.path, "--model", world.before.path, "--source", SOURCE
        )

    def begin(self, name: str, *arguments: str) -> None:
        """Start a process of this deployment; its log is kept."""
        log = self._log(name).open("ab")
        self._logs.append(log)
        self._running[name] = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=self.environment(),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def begin_runner(self, world: TinyWorld, *die: str) -> None:
        """Start a runner that dies where it is told; gold is what it unlearns to, unless it trains."""
        made = [] if self.settings["LETHE_METHOD"] != QUICK["LETHE_METHOD"] else ["--candidate", world.gold.path]
        points = [word for point in die for word in ("--die", point)]
        self.begin("runner", "-m", "tests.flow.crash_runner", "--deaths", str(self.deaths_file), *made, *points)

    def begin_web(self) -> None:
        """Start the web process and wait until its doors are open."""
        bind = f"127.0.0.1:{self.port}"
        web = [
            "-m",
            "gunicorn",
            "tests.flow.crash_web",
            "--bind",
            bind,
            "--threads",
            "4",
            "--workers",
            "1",
            "--preload",
        ]
        self.begin("web", *web, "--worker-tmp-dir", str(self.home))
        self._wait_for_doors()

    def kill(self, name: str) -> None:
        """`kill -9`, the process and whatever it started."""
        process = self._running.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def tell(self, name: str, number: signal.Signals, *, group: bool = False) -> None:
        """Signal the process, or all of its group as a service manager does, and wait until it has ended."""
        process = self._running.pop(name)
        if group:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        process.wait(_PATIENCE_S)

    def stop(self) -> None:
        """Ask every process to end, and wait for it."""
        for process in self._running.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        super().stop()

    @property
    def deaths_file(self) -> Path:
        """Where the processes note their deaths."""
        return self.out / "deaths"

    @property
    def deaths(self) -> list[str]:
        """Where processes died, in order."""
        return read_deaths(self.deaths_file)

    def people(self, *arguments: str) -> Any:
        """Let the people of a case act, in a process of their own; returns what they report."""
        result = subprocess.run(
            [sys.executable, "-m", "tests.flow.people", *arguments],
            cwd=ROOT,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            check=False,
        )
        assert result.returncode == 0, result.stderr[-3000:] + self._log("runner").read_text()[-3000:]
        return json.loads(result.stdout.strip().splitlines()[-1])

    def ask(self, world: TinyWorld) -> None:
        """Alice's case up to the start of the work: she says who she is and what she wants forgotten."""
        alice = world.world.alice
        statement = f"Forget me: {'; '.join(alice.values.values())}"
        self.people("start", "--email", email_of(alice), "--name", alice.name, "--statement", statement)

    def back_up(self) -> Path:
        """Back the database up as an operator would; returns the file."""
        file = self.out / "backup"
        url = self.settings.get("DATABASE_URL")
        if url:
            subprocess.run(["pg_dump", "--file", str(file), _dsn(url)], check=True)
            return file
        with self.database() as connection, sqlite3.connect(file) as copy:
            connection.backup(copy)
        return file

    @contextmanager
    def restored(self, backup: Path) -> Iterator[Stand]:
        """This deployment as it is, with the database of a backup."""
        url = self.settings.get("DATABASE_URL")
        if not url:
            yield Stand(self.out, self.port, {**self.settings, "LETHE_SQLITE_FILE": str(backup)})
            return
        with database_of_its_own("postgres") as other:
            command = ["psql", "--quiet", "--no-psqlrc", "--set", "ON_ERROR_STOP=1", "--file", str(backup), _dsn(other)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            yield Stand(self.out, self.port, {**self.settings, "DATABASE_URL": other})

    @contextmanager
    def database(self) -> Iterator[Any]:
        """A connection past the service; every statement commits."""
        if url := self.settings.get("DATABASE_URL"):
            with psycopg.connect(_dsn(url), autocommit=True) as connection:
                yield connection
            return
        connection = sqlite3.connect(self.home / "lethe.sqlite3", timeout=20, isolation_level=None)
        try:
            yield connection
        finally:
            connection.close()


def until(claim: Any, *, what: str, patience_s: float = 60.0) -> None:
    """Wait until `claim()` holds."""
    deadline = time.monotonic() + patience_s
    while not claim():
        assert time.monotonic() < deadline, f"waited {patience_s:.0f} s for {what}"
        time.sleep(0.1)


@contextmanager
def deployed(
    out: Path, world: TinyWorld, *, database_url: str = "", spike_ins: int = 0, **changes: str
) -> Iterator[Stand]:
    """A prepared deployment, whose processes are ended afterwards."""
    settings = {**QUICK, **changes, **({"DATABASE_URL": database_url} if database_url else {})}
    made = Stand(out, free_port(), settings)
    try:
        made.prepare(world, spike_ins=spike_ins)
        yield made
    finally:
        made.stop()


def databases() -> Sequence[str]:
    """Which databases the kill loops are run on: both, unless LETHE_TEST_DATABASES names fewer."""
    return os.environ.get("LETHE_TEST_DATABASES", "sqlite,postgres").split(",")


@contextmanager
def database_of_its_own(kind: str) -> Iterator[str]:
    """The address of a database made for this purpose and dropped afterwards; empty for a file in the home."""
    if kind not in databases():
        pytest.skip(f"LETHE_TEST_DATABASES leaves {kind} out")
    if kind == "sqlite":
        yield ""
        return
    server = _server()
    name = f"lethe_test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(_dsn(server), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    try:
        yield f"{server.rsplit('/', 1)[0]}/{name}"
    finally:
        with psycopg.connect(_dsn(server), autocommit=True) as connection:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def _server() -> str:
    """The PostgreSQL server of the environment, or the one on this machine."""
    url = os.environ.get("DATABASE_URL") or "postgres://postgres@127.0.0.1:5432/postgres"
    try:
        psycopg.connect(_dsn(url), connect_timeout=3).close()
    except psycopg.OperationalError:
        missing("no PostgreSQL answers; set DATABASE_URL, or LETHE_TEST_DATABASES=sqlite to go without")
    return url


def missing(reason: str) -> None:
    """Skip, where a service is missing; in continuous checks that is a failure."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def _dsn(url: str) -> str:
    parts = dj_database_url.parse(url)
    named = {"host": "HOST", "port": "PORT", "user": "USER", "password": "PASSWORD", "dbname": "NAME"}
    return psycopg.conninfo.make_conninfo("", **{key: parts[name] for key, name in named.items() if parts.get(name)})
