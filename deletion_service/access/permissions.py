"""Who may do what: one table, asked by every door."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from deletion_service.access.models import ApiKey, Role, StaffMember
from deletion_service.errors import NotAllowedError


class Action(StrEnum):
    """A thing that a principal may or may not do."""

    READ_CASES = "read_cases"
    REVIEW = "review"
    APPROVE_START = "approve_start"
    APPROVE_EVIDENCE = "approve_evidence"
    ISSUE = "issue"
    READ_EVIDENCE = "read_evidence"
    READ_AUDIT = "read_audit"
    READ_MODELS = "read_models"
    MANAGE_MODELS = "manage_models"
    READ_CERTIFICATES = "read_certificates"
    SEND_REQUESTS = "send_requests"
    READ_REQUESTS = "read_requests"
    READ_TARGETS = "read_targets"
    READ_JOBS = "read_jobs"
    MANAGE_JOBS = "manage_jobs"


_READING: Final = {
    Action.READ_CASES,
    Action.READ_EVIDENCE,
    Action.READ_AUDIT,
    Action.READ_CERTIFICATES,
    Action.READ_REQUESTS,
    Action.READ_TARGETS,
    Action.READ_JOBS,
    Action.READ_MODELS,
}
_DECIDING: Final = {
    Action.REVIEW,
    Action.APPROVE_START,
    Action.APPROVE_EVIDENCE,
    Action.ISSUE,
    Action.MANAGE_JOBS,
}

ROLE_ACTIONS: Final[dict[str, frozenset[Action]]] = {
    Role.PRIVACY: frozenset(_READING | _DECIDING),
    Role.ML: frozenset(_READING | _DECIDING),
    Role.AUDITOR: frozenset(_READING),
    Role.ADMINISTRATOR: frozenset(
        {Action.READ_MODELS, Action.MANAGE_MODELS, Action.READ_JOBS, Action.MANAGE_JOBS, Action.READ_TARGETS}
    ),
}
SCOPE_ACTIONS: Final[dict[str, frozenset[Action]]] = {
    # Whoever sends instructions must be able to name a model.
    "requests:write": frozenset({Action.SEND_REQUESTS, Action.READ_MODELS}),
    "requests:read": frozenset({Action.READ_REQUESTS}),
    "targets:read": frozenset({Action.READ_TARGETS, Action.READ_JOBS, Action.READ_MODELS}),
    "evidence:read": frozenset({Action.READ_EVIDENCE}),
    "approve": frozenset({Action.APPROVE_EVIDENCE, Action.ISSUE}),
    "certificates:read": frozenset({Action.READ_CERTIFICATES}),
    "registry:write": frozenset({Action.READ_MODELS, Action.MANAGE_MODELS}),
    "admin": frozenset(
        {Action.READ_MODELS, Action.MANAGE_MODELS, Action.READ_JOBS, Action.MANAGE_JOBS, Action.READ_AUDIT}
    ),
}
PERSONAL: Final = frozenset({Action.APPROVE_EVIDENCE, Action.ISSUE})
SECOND_FACTOR_ACTIONS: Final = PERSONAL | {Action.APPROVE_START}


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is acting: a member of staff, a machine key, or both (a key that acts for a person)."""

    label: str
    actions: frozenset[Action]
    staff: StaffMember | None = None
    key: ApiKey | None = None

    def may(self, action: Action) -> bool:
        """Whether the table allows `action`; deciding needs a person behind the key."""
        return action in self.actions and not (action in PERSONAL and self.staff is None)


def staff_principal(member: StaffMember) -> Principal:
    """Return the principal of a signed-in member of staff."""
    return Principal(f"staff:{member.handle}", ROLE_ACTIONS[member.role], staff=member)


def key_principal(key: ApiKey) -> Principal:
    """Return the principal of an API key: its scopes, and no more than its person's role allows."""
    actions = frozenset(a for scope in key.scopes for a in SCOPE_ACTIONS.get(scope, frozenset()))
    if key.staff_member is not None:
        actions = actions & (ROLE_ACTIONS[key.staff_member.role] | {Action.SEND_REQUESTS})
    return Principal(f"key:{key.prefix}", actions, staff=key.staff_member, key=key)


def require(principal: Principal, action: Action) -> None:
    """Raise `NotAllowedError` unless the table allows it."""
    if not principal.may(action):
        raise NotAllowedError(f"{principal.label} may not {action.value.replace('_', ' ')}; ask an administrator")
