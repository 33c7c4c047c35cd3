"""What is sealed can be read until its key is destroyed, and never again: not from the row, not from a backup."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.conf import settings
from django.db import DatabaseError, connection, transaction

from deletion_service.errors import InvalidInputError, KeyStoreError, PayloadDestroyedError
from deletion_service.requests import payload
from deletion_service.requests.codes import DataClass
from deletion_service.requests.keystore import key_store
from deletion_service.requests.models import DisposalEvent, SealedItem
from deletion_service.requests.payload import destroy_class, open_file, open_sealed, seal, seal_file
from tests.requests.test_moving_a_request import request_in

pytestmark = pytest.mark.django_db
SECRET = b"Alice lives at 48 Brackenfell Lane"


def sign(content: bytes) -> tuple[str, str]:
    return "key", content.hex()[:8]


def test_a_sealed_item_opens_again_and_its_row_is_noise() -> None:
    request = request_in("received")
    item = seal(request, DataClass.PAYLOAD, "application", SECRET)
    assert open_sealed(request, DataClass.PAYLOAD, "application") == SECRET
    assert SECRET not in bytes(item.ciphertext)
    assert item.key_id in {p.name for p in Path(settings.KEY_STORE_DIR).iterdir()}


def test_classes_have_keys_of_their_own_and_one_key_each() -> None:
    request = request_in("received")
    a1 = seal(request, DataClass.PAYLOAD, "application", SECRET)
    a2 = seal(request, DataClass.PAYLOAD, "proven", SECRET)
    c = seal(request, DataClass.CONTACT, "contact", SECRET)
    assert a1.key_id == a2.key_id != c.key_id


def test_after_destruction_neither_a_restored_row_nor_a_sealed_file_can_be_read(tmp_path: Path) -> None:
    request = request_in("received")
    item = seal(request, DataClass.PAYLOAD, "application", SECRET)
    seal_file(request, DataClass.PAYLOAD, tmp_path / "forget.sealed", SECRET)
    backup = {f.attname: getattr(item, f.attname) for f in SealedItem._meta.concrete_fields}
    destroy_class(request, DataClass.PAYLOAD, actor="worker", sign=sign)
    SealedItem.objects.create(**backup)
    with pytest.raises(PayloadDestroyedError):
        open_sealed(request, DataClass.PAYLOAD, "application")
    with pytest.raises(PayloadDestroyedError):
        open_file(request, DataClass.PAYLOAD, tmp_path / "forget.sealed")


def test_destroying_one_class_leaves_the_others_and_is_recorded_once() -> None:
    request = request_in("received")
    seal(request, DataClass.PAYLOAD, "application", SECRET)
    seal(request, DataClass.CONTACT, "contact", SECRET)
    first = destroy_class(request, DataClass.PAYLOAD, actor="worker", sign=sign)
    again = destroy_class(request, DataClass.PAYLOAD, actor="worker", sign=sign)
    assert (first.pk, DisposalEvent.objects.filter(request=request).count()) == (again.pk, 1)
    assert open_sealed(request, DataClass.CONTACT, "contact") == SECRET
    assert first.signature


def test_a_crash_between_key_and_record_is_repaired_by_repeating(monkeypatch: pytest.MonkeyPatch) -> None:
    request = request_in("received")
    item = seal(request, DataClass.PAYLOAD, "application", SECRET)
    with monkeypatch.context() as broken:
        broken.setattr(payload, "_record_disposal", lambda *_, **__: (_ for _ in ()).throw(OSError("power cut")))
        with pytest.raises(OSError, match="power cut"):
            destroy_class(request, DataClass.PAYLOAD, actor="worker", sign=sign)
    event = destroy_class(request, DataClass.PAYLOAD, actor="worker", sign=sign)
    assert event.key_ids == [item.key_id]
    assert not SealedItem.objects.filter(request=request).exists()


def test_nothing_can_be_added_to_a_destroyed_class() -> None:
    request = request_in("received")
    destroy_class(request, DataClass.PAYLOAD, actor="worker", sign=sign)
    with pytest.raises(PayloadDestroyedError):
        seal(request, DataClass.PAYLOAD, "application", SECRET)


def test_a_ciphertext_moved_to_another_request_name_or_class_does_not_open() -> None:
    alice, mallory = request_in("received"), request_in("received")
    item = seal(alice, DataClass.PAYLOAD, "application", SECRET)
    seal(mallory, DataClass.PAYLOAD, "application", b"mine")
    SealedItem.objects.filter(request=mallory).update(ciphertext=item.ciphertext, key_id=item.key_id)
    with pytest.raises(PayloadDestroyedError, match="changed or moved"):
        open_sealed(mallory, DataClass.PAYLOAD, "application")


def test_a_wrong_key_encryption_key_opens_nothing(tmp_path: Path, settings) -> None:  # type: ignore[no-untyped-def]
    request = request_in("received")
    seal(request, DataClass.PAYLOAD, "application", SECRET)
    other = tmp_path / "kek"
    other.write_text("11" * 32)
    settings.KEY_ENCRYPTION_KEY_FILE = other
    with pytest.raises(KeyStoreError, match="does not open"):
        open_sealed(request, DataClass.PAYLOAD, "application")


@pytest.mark.parametrize("key_id", ["../../etc/passwd", "dek_", "", "dek_UPPERCASEUPPERCASEUPPERCA"])
def test_a_key_id_is_never_a_path(key_id: str) -> None:
    with pytest.raises(KeyStoreError):
        key_store().get(key_id)


def test_a_payload_beyond_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload, "MAX_SEALED_BYTES", 10)
    with pytest.raises(InvalidInputError, match="too large"):
        seal(request_in("received"), DataClass.PAYLOAD, "application", SECRET)


@pytest.mark.parametrize(
    "statement", ["UPDATE requests_disposalevent SET method = 'none'", "DELETE FROM requests_disposalevent"]
)
def test_a_disposal_cannot_be_rewritten(statement: str) -> None:
    request = request_in("received")
    destroy_class(request, DataClass.PAYLOAD, actor="worker", sign=sign)
    with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement)


def test_a_key_that_was_overwritten_and_not_yet_removed_is_destroyed_already() -> None:
    request = request_in("received")
    item = seal(request, DataClass.PAYLOAD, "application", SECRET)
    file = Path(settings.KEY_STORE_DIR) / item.key_id
    file.write_bytes(b"\0" * file.stat().st_size)
    with pytest.raises(PayloadDestroyedError):
        open_sealed(request, DataClass.PAYLOAD, "application")
    destroy_class(request, DataClass.PAYLOAD, actor="worker", sign=sign)
    assert not file.exists()
