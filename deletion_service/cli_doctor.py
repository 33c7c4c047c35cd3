"""`lethe doctor`: whether this host can run the service, check by check, each with the next step.

Must never print a secret. Django is loaded inside: the offline commands need none.
"""

from __future__ import annotations

import argparse
import os
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from deletion_service.terminal import FAILED_CHECK, OK, print_json

Outcome = Literal["ok", "failed", "warning"]
_SMTP: Final = "django.core.mail.backends.smtp.EmailBackend"
_TIMEOUT_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what was looked at, what came of it, and the next step where one is needed."""

    name: str
    outcome: Outcome
    sentence: str
    next_step: str = ""


def doctor_arguments(parser: argparse.ArgumentParser) -> None:
    """None: everything is read from the settings."""


def doctor(options: argparse.Namespace) -> int:
    """Run every check; 1 if one failed."""
    findings = list(_findings())
    failed = any(finding.outcome == "failed" for finding in findings)
    if options.json:
        rows = [{"name": f.name, "outcome": f.outcome, "sentence": f.sentence, "next": f.next_step} for f in findings]
        print_json({"ok": not failed, "checks": rows})
    else:
        sys.stdout.write("\n".join(_lines(findings)) + "\n")
    return FAILED_CHECK if failed else OK


def _lines(findings: list[Finding]) -> Iterator[str]:
    for finding in findings:
        yield f"  {finding.outcome:<8} {finding.name}: {finding.sentence}"
        if finding.next_step:
            yield f"           next: {finding.next_step}"


def _findings() -> Iterator[Finding]:
    yield _python()
    settings = _settings()
    if isinstance(settings, Finding):
        yield settings
        return
    for check in _CHECKS:
        try:
            yield from check(settings)
        except Exception as exc:  # noqa: BLE001 - a process boundary: one broken check must not hide the others
            yield Finding(check.__name__.strip("_"), "failed", f"the check itself failed with {type(exc).__name__}")


def _python() -> Finding:
    version = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info < (3, 11):  # noqa: UP036 - a checkout can be run by any Python
        return Finding("python", "failed", f"Python {version}", "use Python 3.11 or newer")
    return Finding("python", "ok", f"Python {version}")


def _settings() -> Any:
    """Return the Django settings, or the finding that says why they cannot be read."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "deletion_service.settings")
    try:
        import django
        from django.conf import settings
        from django.core.exceptions import ImproperlyConfigured
    except ImportError:
        return Finding("settings", "failed", "Django is not installed", "pip install 'lethe[web]'")
    try:
        django.setup()
    except ImproperlyConfigured as exc:
        return Finding("settings", "failed", str(exc), "correct the setting named, then run lethe doctor again")
    return settings


def _database(settings: Any) -> Iterator[Finding]:
    from django.db import DatabaseError, connection
    from django.db.migrations.executor import MigrationExecutor

    try:
        connection.ensure_connection()
    except DatabaseError as exc:
        yield Finding(
            "database", "failed", f"not reachable ({type(exc).__name__})", "check DATABASE_URL and the server"
        )
        return
    yield Finding("database", "ok", f"{connection.vendor} answers")
    if connection.vendor == "sqlite":
        yield _journal(connection)
    executor = MigrationExecutor(connection)
    missing = len(executor.migration_plan(executor.loader.graph.leaf_nodes()))
    if missing:
        yield Finding("migrations", "failed", f"{missing} not applied", "python manage.py migrate")
    else:
        yield Finding("migrations", "ok", "all applied")


def _journal(connection: Any) -> Finding:
    with connection.cursor() as cursor:
        mode = cursor.execute("PRAGMA journal_mode").fetchone()[0]
    if mode in {"wal", "memory"}:
        return Finding("journal mode", "ok", mode)
    return Finding("journal mode", "failed", mode, "put the database file on a local disk, where WAL works")


def _keys(settings: Any) -> Iterator[Finding]:
    yield _key_file("key encryption key", settings.KEY_ENCRYPTION_KEY_FILE)
    signing = {
        "issuer key": settings.ISSUER_KEY_FILE,
        "approver key": settings.APPROVER_KEY_FILE,
        "log key": settings.LOG_KEY_FILE,
    }
    held = {name: path for name, path in signing.items() if path.is_file()}
    # Web hosts hold the approver's key alone, workers the other two; a host with one half of a pair holds too little.
    whole = set(held) in ({"approver key"}, {"issuer key", "log key"})
    for name, path in (held if whole else signing).items():
        yield _key_file(name, path)
    if settings.ISSUER_DOCUMENT_FILE.is_file():
        yield Finding("issuer document", "ok", "present")
    else:
        yield Finding("issuer document", "failed", "missing", "python manage.py create_keys")
    if settings.ISSUER_KEY_FILE.is_file() and settings.APPROVER_KEY_FILE.is_file():
        next_step = "give the issuer key to workers only and the approver key to the web process only"
        yield Finding("key custody", "warning", "this host holds the issuer's and the approver's key", next_step)


def _key_file(name: str, path: Path) -> Finding:
    if not path.is_file():
        return Finding(name, "failed", "missing", "python manage.py create_keys, or mount the file on this host")
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        return Finding(name, "failed", f"readable by others (mode {mode:o})", f"chmod 600 {path.name}")
    return Finding(name, "ok", f"mode {mode:o}")


def _key_store(settings: Any) -> Iterator[Finding]:
    from deletion_service.errors import DomainError
    from deletion_service.requests.keystore import key_store

    try:
        store = key_store()
        key_id = store.create()
        store.destroy(key_id)
    except (DomainError, OSError) as exc:
        yield Finding("key store", "failed", f"not writable ({type(exc).__name__})", "check LETHE_KEY_STORE_DIR")
        return
    yield Finding("key store", "ok", "a key can be made and destroyed")
    database = Path(str(settings.DATABASES["default"]["NAME"]))
    if not settings.DATABASE_URL and settings.KEY_STORE_DIR.is_relative_to(database.parent):
        next_step = "put LETHE_KEY_STORE_DIR where no long backup of the database reaches"
        yield Finding("key store", "warning", "it lies beside the database, so one backup may hold both", next_step)


def _directories(settings: Any) -> Iterator[Finding]:
    for name, setting in (("work directory", "WORK_DIR"), ("registry", "REGISTRY_ROOT"), ("sources", "SOURCE_ROOT")):
        path: Path = getattr(settings, setting)
        if not path.is_dir():
            yield Finding(name, "warning", "does not exist yet", f"create it or set LETHE_{setting}")
        elif not os.access(path, os.W_OK):
            yield Finding(name, "failed", "not writable", f"give this user the directory of LETHE_{setting}")
        else:
            yield Finding(name, "ok", "writable")


def _stores(settings: Any) -> Iterator[Finding]:
    """Whether this host sees every store of adapters that a training manifest names; only workers need to."""
    from deletion_service.targets.models import TrainingManifest

    named = TrainingManifest.objects.exclude(exact_store="").values_list("exact_store", flat=True).distinct()
    for name in sorted(named):
        store = Path(settings.EXACT_STORES) / name
        if store.is_dir() and os.access(store, os.W_OK):
            yield Finding(f"store {name}", "ok", "writable")
        elif store.is_dir():
            yield Finding(f"store {name}", "failed", "not writable", "give it to this user; a deletion changes it")
        else:
            next_step = "mount it below LETHE_EXACT_STORES on the one host that runs all jobs of its model"
            yield Finding(f"store {name}", "warning", "not on this host", next_step)


def _queue(settings: Any) -> Iterator[Finding]:
    if not settings.REDIS_URL:
        yield Finding("queue", "ok", "embedded runner: python manage.py run_jobs")
        return
    import redis

    try:
        redis.Redis.from_url(settings.REDIS_URL, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S).ping()
    except (redis.RedisError, OSError) as exc:
        sentence = f"Redis does not answer ({type(exc).__name__}); work waits for the sweep instead of a hint"
        yield Finding("queue", "failed", sentence, "check REDIS_URL and the server")
        return
    yield Finding("queue", "ok", "Redis answers")


def _mail(settings: Any) -> Iterator[Finding]:
    if settings.EMAIL_BACKEND != _SMTP:
        next_step = "set LETHE_EMAIL_BACKEND to the SMTP backend before real people ask"
        yield Finding("mail", "warning", f"{settings.EMAIL_BACKEND.split('.')[-2]}: nobody gets mail", next_step)
        return
    from django.core.mail import get_connection

    try:
        connection = get_connection(timeout=_TIMEOUT_S)
        connection.open()
        connection.close()
    except OSError as exc:
        yield Finding("mail", "failed", f"no SMTP server ({type(exc).__name__})", "check LETHE_EMAIL_HOST and _PORT")
        return
    yield Finding("mail", "ok", "the SMTP server answers")


def _policy(settings: Any) -> Iterator[Finding]:
    from deletion_service.certificates.policies import current_plan
    from deletion_service.errors import DomainError
    from ml.errors import MlError

    try:
        plan = current_plan()
    except (DomainError, MlError) as exc:
        yield Finding("verdict policy", "failed", str(exc), "set LETHE_POLICY to a policy whose purpose is release")
        return
    if settings.TESTING:
        yield Finding("verdict policy", "warning", "LETHE_TESTING is on: policies made for tests count", "turn it off")
    else:
        yield Finding("verdict policy", "ok", f"{plan.policy_name}, made for release")


def _clock(settings: Any) -> Iterator[Finding]:
    from django.utils import timezone

    today = timezone.localdate().isoformat()
    holidays = settings.HOLIDAY_COUNTRY or "no public holidays"
    yield Finding("clock", "ok", f"{today} in {settings.TIME_ZONE}, {holidays}")


def _second_factor(settings: Any) -> Iterator[Finding]:
    if settings.REQUIRE_SECOND_FACTOR:
        yield Finding("second factor", "ok", "needed to decide")
    else:
        yield Finding("second factor", "warning", "not needed to decide", "set LETHE_REQUIRE_SECOND_FACTOR=true")


_CHECKS: Final[tuple[Callable[[Any], Iterator[Finding]], ...]] = (
    _database,
    _keys,
    _key_store,
    _directories,
    _stores,
    _queue,
    _mail,
    _policy,
    _second_factor,
    _clock,
)
