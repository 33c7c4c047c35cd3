"""Whoever can lift the triggers can rewrite rows. The chain of seals then says that somebody did."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.db import IntegrityError, transaction
from django.db.models import F

from deletion_service.audit import trail
from deletion_service.audit.models import AuditEvent, AuditSeal, AuditSealEntry
from deletion_service.audit.trail import newest_seal, seal_events, verify_chain
from tests.triggers import lifted_triggers

pytestmark = pytest.mark.django_db


@pytest.fixture
def chain() -> list[AuditSeal]:
    """Three seals over three events each."""
    seals = []
    for number in range(3):
        for act in ("one", "two", "three"):
            trail.record(actor="staff:rhea", action=f"test.{act}", obj=AuditSeal(pk=number), request_id=f"req_{number}")
        seal = seal_events()
        assert seal is not None
        seals.append(seal)
    assert verify_chain() == []
    return seals


def events_of(seal: AuditSeal) -> list[AuditEvent]:
    return list(AuditEvent.objects.filter(seal_entry__seal=seal).order_by("pk"))


def change_a_field(chain: list[AuditSeal]) -> None:
    AuditEvent.objects.filter(pk=events_of(chain[1])[0].pk).update(actor="staff:nobody")


def change_a_time(chain: list[AuditSeal]) -> None:
    AuditEvent.objects.filter(pk=events_of(chain[1])[0].pk).update(at=F("at") + timedelta(microseconds=1))


def remove_an_event(chain: list[AuditSeal]) -> None:
    gone = events_of(chain[1])[2]
    AuditSealEntry.objects.filter(event=gone).delete()
    AuditEvent.objects.filter(pk=gone.pk).delete()


def remove_an_event_and_lower_the_count(chain: list[AuditSeal]) -> None:
    remove_an_event(chain)
    AuditSeal.objects.filter(pk=chain[1].pk).update(count=2)


def remove_an_event_from_its_seal(chain: list[AuditSeal]) -> None:
    AuditSealEntry.objects.filter(event=events_of(chain[1])[0]).delete()


def remove_a_seal_with_its_events(chain: list[AuditSeal]) -> None:
    gone = [event.pk for event in events_of(chain[1])]
    AuditSealEntry.objects.filter(seal=chain[1]).delete()
    AuditEvent.objects.filter(pk__in=gone).delete()
    AuditSeal.objects.filter(pk=chain[1].pk).delete()


def remove_the_first_seal(chain: list[AuditSeal]) -> None:
    AuditSealEntry.objects.filter(seal=chain[0]).delete()
    AuditSeal.objects.filter(pk=chain[0].pk).delete()


def insert_an_event(chain: list[AuditSeal]) -> None:
    added = trail.record(actor="staff:rhea", action="test.added", obj=chain[0])
    AuditSealEntry.objects.create(seal=chain[1], event=added)


def insert_a_seal(chain: list[AuditSeal]) -> None:
    added = trail.record(actor="staff:rhea", action="test.added", obj=chain[0])
    seal = seal_events()
    assert seal is not None
    AuditSealEntry.objects.filter(event=added).update(seal=chain[0])


def swap_two_events(chain: list[AuditSeal]) -> None:
    first, second, _ = events_of(chain[1])
    AuditEvent.objects.filter(pk=first.pk).update(action=second.action)
    AuditEvent.objects.filter(pk=second.pk).update(action=first.action)


def move_an_event_to_another_seal(chain: list[AuditSeal]) -> None:
    here, there = events_of(chain[0])[0], events_of(chain[2])[0]
    AuditSealEntry.objects.filter(event=here).update(seal=chain[2])
    AuditSealEntry.objects.filter(event=there).update(seal=chain[0])


def swap_two_seals(chain: list[AuditSeal]) -> None:
    last = AuditSeal(
        count=chain[0].count,
        events_sha256=chain[0].events_sha256,
        previous_sha256="f" * 64,
        seal_sha256="e" * 64,
    )
    last.save(force_insert=True)
    AuditSealEntry.objects.filter(seal=chain[0]).update(seal=last)
    AuditSeal.objects.filter(pk=chain[0].pk).delete()


def rewrite_one_seal_over_what_was_changed(chain: list[AuditSeal]) -> None:
    """The forger computes the seal again, but not the seals that follow."""
    change_a_field(chain)
    seal = AuditSeal.objects.get(pk=chain[1].pk)
    seal.events_sha256 = trail._events_sha256(events_of(seal))
    seal.seal_sha256 = trail._seal_sha256(seal)
    seal.save()


TAMPERING: tuple[Callable[[list[AuditSeal]], None], ...] = (
    change_a_field,
    change_a_time,
    remove_an_event,
    remove_an_event_and_lower_the_count,
    remove_an_event_from_its_seal,
    remove_a_seal_with_its_events,
    remove_the_first_seal,
    insert_an_event,
    insert_a_seal,
    swap_two_events,
    move_an_event_to_another_seal,
    swap_two_seals,
    rewrite_one_seal_over_what_was_changed,
)


@pytest.mark.parametrize("tamper", TAMPERING, ids=lambda act: act.__name__)
def test_the_chain_notices_that_somebody_did(tamper: Callable[[list[AuditSeal]], None], chain: list[AuditSeal]) -> None:
    with lifted_triggers():
        tamper(chain)
    assert verify_chain()
    with pytest.raises(CommandError, match="seal"):
        call_command("audit_verify", stdout=io.StringIO())


def test_a_chain_cut_off_at_its_end_is_noticed_by_whoever_noted_its_end(chain: list[AuditSeal]) -> None:
    out = io.StringIO()
    call_command("audit_verify", stdout=out)
    noted = newest_seal()
    assert out.getvalue().strip().endswith(noted)
    with lifted_triggers():
        gone = [event.pk for event in events_of(chain[2])]
        AuditSealEntry.objects.filter(seal=chain[2]).delete()
        AuditEvent.objects.filter(pk__in=gone).delete()
        AuditSeal.objects.filter(pk=chain[2].pk).delete()
    assert verify_chain() == []
    assert "end was removed" in " ".join(verify_chain(noted=noted))
    with pytest.raises(CommandError, match="end was removed"):
        call_command("audit_verify", noted=noted, stdout=io.StringIO())


def test_a_chain_that_grew_still_holds_what_was_noted(chain: list[AuditSeal]) -> None:
    noted = newest_seal()
    trail.record(actor="staff:rhea", action="test.later", obj=chain[0])
    assert seal_events() is not None
    assert verify_chain(noted=noted) == []


def test_of_two_sealers_at_once_one_loses_and_the_chain_does_not_fork(chain: list[AuditSeal]) -> None:
    fork = AuditSeal(count=0, events_sha256="0" * 64, previous_sha256=chain[1].seal_sha256, seal_sha256="1" * 64)
    with pytest.raises(IntegrityError), transaction.atomic():
        fork.save(force_insert=True)


def test_an_event_is_sealed_once(chain: list[AuditSeal]) -> None:
    with pytest.raises(IntegrityError), transaction.atomic():
        AuditSealEntry.objects.create(seal=chain[2], event=events_of(chain[0])[0])
    assert seal_events() is None
