"""Real Celery workers on a real Redis run the same stages; the broker may lose all it has, and knows nothing."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis

from deletion_service.dispatch import CONTROL, RECONCILE, RUN_NEXT_JOB
from ml.digests import file_sha256
from tests.flow.conftest import Played
from tests.flow.stand import Stand, database_of_its_own, deployed, missing, until
from tests.flow.test_nothing_is_left import found_in, told_by_files
from tests.tiny import TinyWorld

pytestmark = pytest.mark.slow
_QUEUE = "cpu"
_ID = re.compile(rb"\b[a-z]{2,4}_[0-9a-z]{26}\b")


@pytest.fixture
def broker() -> Iterator[redis.Redis]:
    """An empty database of the Redis server of the environment, or of this machine; emptied again afterwards."""
    address = (os.environ.get("REDIS_URL") or "redis://127.0.0.1:6379").rstrip("/")
    server = address.rsplit("/", 1)[0] if address.count("/") > 2 else address
    client = redis.Redis.from_url(f"{server}/13", socket_connect_timeout=3)
    try:
        client.flushdb()
    except redis.ConnectionError:
        missing("no Redis answers; set REDIS_URL")
    client.url = f"{server}/13"  # type: ignore[attr-defined]
    yield client
    client.flushdb()
    client.close()


@pytest.fixture
def stand(broker: Any, tiny: TinyWorld, tmp_path: Path) -> Iterator[Stand]:
    """A deployment as in production: PostgreSQL, and services that ring through Redis."""
    with (
        database_of_its_own("postgres") as url,
        deployed(tmp_path, tiny, database_url=url, REDIS_URL=broker.url) as made,
    ):
        (made.out / "candidate").write_text(tiny.gold.path)
        yield made


def begin_worker(stand: Stand) -> None:
    queues = f"{_QUEUE},{CONTROL}"
    stand.begin("runner", "-m", "celery", "-A", "tests.workers.celery_app", "worker", "-Q", queues, "-c", "1")


def begin_training_worker(stand: Stand) -> None:
    """Nothing was made beforehand: it trains."""
    queues = f"{_QUEUE},{CONTROL}"
    stand.begin("runner", "-m", "celery", "-A", "tests.workers.patient_app", "worker", "-Q", queues, "-c", "1")


def begin_beat(stand: Stand) -> None:
    schedule = str(stand.out / "beat-schedule")
    stand.begin("beat", "-m", "celery", "-A", "tests.workers.celery_app", "beat", "--schedule", schedule)


def everything_in(broker: Any) -> bytes:
    """Every key of the broker's database with its content, and the bodies of its messages decoded."""
    parts = []
    for key in broker.keys("*"):
        kind = broker.type(key)
        readers = {
            b"list": lambda k: broker.lrange(k, 0, -1),
            b"set": lambda k: list(broker.smembers(k)),
            b"zset": lambda k: broker.zrange(k, 0, -1),
            b"hash": lambda k: [*broker.hgetall(k).keys(), *broker.hgetall(k).values()],
            b"string": lambda k: [broker.get(k)],
        }
        parts += [key, *readers[kind](key)]
    return b"\n".join(parts) + b"\n".join(body_of(json.loads(m)) for m in broker.lrange(_QUEUE, 0, -1))


def body_of(message: dict[str, Any]) -> bytes:
    return base64.b64decode(message["body"])


def test_a_message_says_which_queue_has_work_and_nothing_else(
    stand: Stand,
    broker: Any,
    tiny: TinyWorld,
) -> None:
    with ThreadPoolExecutor(1) as people:
        asking = people.submit(stand.ask, tiny)
        until(lambda: broker.llen(_QUEUE) > 0 or asking.done(), what="a message")
        messages = [json.loads(message) for message in broker.lrange(_QUEUE, 0, -1)]
        content = everything_in(broker)
        begin_worker(stand)
        asking.result()
    assert [message["headers"]["task"] for message in messages] == [RUN_NEXT_JOB]
    assert [json.loads(body_of(message))[:2] for message in messages] == [[[_QUEUE], {}]]
    assert found_in(content, tiny) == []
    assert _ID.findall(content) == []


def test_a_case_whose_worker_is_killed_and_whose_broker_loses_everything_ends_as_if_nothing_had_happened(
    stand: Stand,
    broker: Any,
    tiny: TinyWorld,
    undisturbed: Played,
) -> None:
    begin_worker(stand)
    stand.ask(tiny)
    with ThreadPoolExecutor(1) as people:
        finishing = people.submit(stand.people, "finish")
        until(lambda: is_leased(stand, "verify") or finishing.done(), what="the verification")
        stand.kill("runner")
        assert is_leased(stand, "verify")
        broker.flushdb()
        begin_beat(stand)
        begin_worker(stand)
        finishing.result()
    facts = stand.people("facts")
    assert attempts(stand, "verify") == 2
    assert {name for name in facts if facts[name] != undisturbed.facts[name]} == set()
    assert found_in(everything_in(broker), tiny) == []
    assert told_by_files(stand, tiny) == {}
    assert RECONCILE.encode() in (stand.out / "logs" / "beat.log").read_bytes()


@pytest.fixture(scope="module")
def trained_whole(tiny: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the unlearning comes to when nobody disturbs it."""
    with deployed(tmp_path_factory.mktemp("whole"), tiny, LETHE_METHOD="npo") as stand:
        stand.begin_runner(tiny)
        stand.ask(tiny)
        return dict(stand.people("candidate"))


def test_a_worker_told_to_end_hands_its_job_back_and_the_next_one_goes_on_from_its_checkpoint(
    broker: Any, tiny: TinyWorld, trained_whole: dict[str, Any], tmp_path: Path
) -> None:
    with (
        database_of_its_own("postgres") as url,
        deployed(tmp_path, tiny, database_url=url, REDIS_URL=broker.url, LETHE_METHOD="npo") as stand,
    ):
        # A warm and a cold shutdown, and a service manager that signals every process at once.
        for token, told, group in ((1, signal.SIGTERM, False), (2, signal.SIGQUIT, False), (3, signal.SIGTERM, True)):
            begin_training_worker(stand)
            if token == 1:
                stand.ask(tiny)
            until(
                lambda step=20 * token - 10: unlearning(stand, "progress_done") >= step, what="a step", patience_s=120.0
            )  # type: ignore[misc]
            stand.tell("runner", told, group=group)
            row = [unlearning(stand, name) for name in ("token", "state", "attempts", "lease_until")]
            assert row == [token, "ready", 0, None]
            checkpoint = next((stand.home / "work" / "runs").iterdir()) / unlearning(stand, "checkpoint")
            assert file_sha256(checkpoint) == unlearning(stand, "checkpoint_sha256")
        begin_training_worker(stand)
        resumed = stand.people("candidate")
        assert unlearning(stand, "attempts") == 1
    assert resumed["resumed_from_step"] >= 50
    assert resumed["candidate_manifest_sha256"] == trained_whole["candidate_manifest_sha256"]


def unlearning(stand: Stand, column: str) -> Any:
    with stand.database() as connection:
        found = connection.execute(f"SELECT {column} FROM targets_job WHERE kind = 'unlearn'").fetchone()
    return found[0] if found else 0


def is_leased(stand: Stand, kind: str) -> bool:
    with stand.database() as connection:
        found = connection.execute(f"SELECT state FROM targets_job WHERE kind = '{kind}'").fetchone()
    return found is not None and found[0] == "leased"


def attempts(stand: Stand, kind: str) -> int:
    with stand.database() as connection:
        return int(connection.execute(f"SELECT attempts FROM targets_job WHERE kind = '{kind}'").fetchone()[0])
