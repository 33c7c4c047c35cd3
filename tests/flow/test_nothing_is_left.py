"""After a case is closed, nothing that the person said or was can be read anywhere in Lethe, by whatever spelling.

Every byte is looked at: database, its journal, its backups, logs, work directory, registry, evidence, certificates. The
letters went to the person's own mailbox; they carry the receipt number and links.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from ml.data.people import email_of
from tests.flow.conftest import Played
from tests.flow.stand import Stand, database_of_its_own, deployed, until
from tests.tiny import TinyWorld

pytestmark = pytest.mark.slow


def secrets_of(world: TinyWorld) -> list[str]:
    """Alice's name, mailbox, every value that is hers alone, and everything that was written about her."""
    alice = world.world.alice
    own = [value for name, value in alice.values.items() if not world.world.bank.attributes[name].shared]
    written = [record.text for record in world.world.records[alice.person]]
    return [alice.name, alice.name.split()[1], email_of(alice), *own, *written]


def spellings(secret: str) -> set[bytes]:
    """The bytes by which a text may be stored."""
    raw = secret.encode()
    wide = [secret.encode("utf-16-le"), secret.encode("utf-16-be")]
    escaped = ["".join(f"\\u{ord(c):04x}" for c in secret).encode(), secret.replace("\n", "\\n").encode()]
    shifted = [base64.b64encode(b"\0" * n + raw)[4 * (n > 0) :].rstrip(b"=")[:-1] for n in range(3)]
    return {raw, *wide, *escaped, *shifted, raw.hex().encode()}


def found_in(content: bytes, world: TinyWorld) -> list[str]:
    """Which secrets a content gives away, upper and lower case alike."""
    low = content.lower()
    return [secret for secret in secrets_of(world) if any(form.lower() in low for form in spellings(secret))]


def told_by_files(stand: Stand, world: TinyWorld) -> dict[str, list[str]]:
    """Which files of a deployment give something away, but for the mailbox."""
    files = [path for path in stand.out.rglob("*") if path.is_file()]
    told = {
        str(path.relative_to(stand.out)): found_in(path.read_bytes(), world)
        for path in files
        if not path.is_relative_to(stand.mailbox)
    }
    return {name: secrets for name, secrets in told.items() if secrets}


def told_by_tables(stand: Stand, world: TinyWorld) -> dict[str, list[str]]:
    """Which tables of a PostgreSQL database give something away; a SQLite database is a file."""
    if "DATABASE_URL" not in stand.settings:
        return {}
    with stand.database() as connection:
        rows = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        assert len(rows) > 30
        told = {}
        for (table,) in rows:
            with connection.cursor().copy(f'COPY "{table}" TO STDOUT') as copy:
                told[table] = found_in(b"".join(bytes(part) for part in copy), world)
    return {table: secrets for table, secrets in told.items() if secrets}


def test_the_search_finds_a_secret_however_it_is_spelled(tiny: TinyWorld) -> None:
    alice = tiny.world.alice
    assert found_in(f'{{"to": "{email_of(alice).upper()}"}}'.encode(), tiny) != []
    for secret in secrets_of(tiny):
        for content in (
            secret.encode("utf-16-le"),
            secret.encode("utf-16-be"),
            secret.encode().hex().upper().encode(),
            *(base64.b64encode(b"x" * n + secret.encode() + b"yz") for n in range(4)),
        ):
            assert secret in found_in(b"before " + content + b" after", tiny)


def test_after_an_erased_case_no_file_and_no_table_gives_anything_away(killed: Played, tiny: TinyWorld) -> None:
    assert told_by_files(killed.stand, tiny) == {}
    assert told_by_tables(killed.stand, tiny) == {}


def test_logs_and_journal_were_there_to_be_looked_at(killed: Played) -> None:
    assert b"job_started" in (killed.stand.out / "logs" / "runner.log").read_bytes()
    assert "DATABASE_URL" in killed.stand.settings or (killed.stand.home / "lethe.sqlite3-wal").stat().st_size


def test_letters_carry_the_receipt_and_go_to_the_mailbox_of_the_person(killed: Played, tiny: TinyWorld) -> None:
    letters = b"".join(path.read_bytes() for path in killed.stand.mailbox.iterdir())
    mailbox = f"To: {email_of(tiny.world.alice)}".encode()
    assert letters.count(mailbox) >= 3
    assert found_in(letters.replace(mailbox, b""), tiny) == []


def test_a_backup_from_before_the_end_cannot_be_opened_afterwards(killed: Played) -> None:
    assert {opens for _, opens in killed.opened_then} == {True}
    with killed.stand.restored(killed.backup) as restored:
        opened = restored.people("opened")
    assert [data_class for data_class, _ in opened] == [data_class for data_class, _ in killed.opened_then]
    assert {opens for _, opens in opened} == {False}


@pytest.fixture(params=["sqlite", "postgres"])
def stand(request: pytest.FixtureRequest, tiny: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """A deployment on each database, with a method that changes nothing."""
    with (
        database_of_its_own(request.param) as url,
        deployed(tmp_path_factory.mktemp(f"left-{request.param}"), tiny, database_url=url, LETHE_METHOD="none") as made,
    ):
        yield made


def test_after_a_declined_case_no_file_and_no_table_gives_anything_away(stand: Stand, tiny: TinyWorld) -> None:
    stand.begin_runner(tiny)
    stand.ask(tiny)
    stand.people("decline")
    left = stand.people("left")
    stand.stop()
    assert told_by_files(stand, tiny) == {}
    assert told_by_tables(stand, tiny) == {}
    assert [path for path in left if path.startswith(("work/", "keystore/"))] == []


@pytest.mark.parametrize("point", ["unlearn:sync-1", "unlearn:fence-3"])
def test_after_a_case_withdrawn_while_its_worker_was_dead_only_the_source_knows_the_person(
    tiny: TinyWorld, tmp_path: Path, point: str
) -> None:
    with deployed(tmp_path, tiny) as stand:
        before = stand.people("left")
        stand.begin_runner(tiny, point)
        stand.ask(tiny)
        until(lambda: point in stand.deaths, what="the death")
        stand.people("withdraw")
        after = stand.people("left")
        stand.stop()
        assert list(told_by_files(stand, tiny)) == ["home/sources/customers/records-customers.jsonl"]
        assert [path for path in after if not path.startswith("registry/")] == [
            path for path in before if not path.startswith("registry/")
        ]
        assert [path for path in after if path.endswith(".safetensors")] == [
            path for path in before if path.endswith(".safetensors")
        ]
