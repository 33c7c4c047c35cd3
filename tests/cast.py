"""The cast: Alice asks, Bob must stay remembered, Rhea and a second reviewer decide, Mallory tries."""

from __future__ import annotations

from django.contrib.auth import get_user_model

from deletion_service.access.models import Role, StaffMember
from deletion_service.requests.codes import Capacity, Regime
from deletion_service.requests.intake import Application, Identifier

ALICE = Identifier("email", "alice.korvel@mail.example")
ALICE_NAME = Identifier("name", "Alice Korvel")
BOB = Identifier("email", "bob.tamsin@mail.example")
MALLORY = Identifier("email", "mallory@evil.example")


def rhea() -> StaffMember:
    """Rhea, privacy reviewer."""
    return _member("rhea", Role.PRIVACY)


def second_reviewer() -> StaffMember:
    """The second reviewer, for machine learning."""
    return _member("reviewer-2", Role.ML)


def application(who: Identifier = ALICE, *, also: tuple[Identifier, ...] = (), statement: str = "") -> Application:
    """A person's request in controller capacity, from their own mailbox."""
    return Application(
        capacity=Capacity.CONTROLLER,
        regime=Regime.GDPR,
        identifiers=(who, *also),
        contact_email=who.value,
        statement=statement,
    )


def _member(handle: str, role: str) -> StaffMember:
    user, _ = get_user_model().objects.get_or_create(username=handle)
    member, _ = StaffMember.objects.get_or_create(user=user, defaults={"role": role, "handle": handle})
    return member
