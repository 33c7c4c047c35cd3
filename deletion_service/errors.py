"""Errors a person or machine may see: a stable `code`, and a message that names the object and the next step.

No message may carry a payload value, name, address or prompt; `api/errors.py` alone turns one into an HTTP status.
"""

from __future__ import annotations

from typing import ClassVar, Literal

Kind = Literal["invalid", "forbidden", "not_found", "conflict", "unavailable", "gone"]


class DomainError(Exception):
    """Base of every expected refusal. `kind` groups codes for the doors; `pointer` names the field at fault."""

    code: ClassVar[str] = "domain_error"
    kind: ClassVar[Kind] = "invalid"

    def __init__(self, message: str, *, pointer: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.pointer = pointer


class InvalidInputError(DomainError):
    """A field is missing, malformed, too large or unknown."""

    code = "invalid_input"


class IllegalTransitionError(DomainError):
    """The object cannot go from its status to the one asked for."""

    code = "illegal_transition"
    kind: ClassVar[Kind] = "conflict"


class StaleStateError(DomainError):
    """Somebody else moved the object first; nothing was written."""

    code = "stale_state"
    kind: ClassVar[Kind] = "conflict"


class GuardError(DomainError):
    """A condition of the move is not met; the message says which."""

    code = "guard_not_met"
    kind: ClassVar[Kind] = "conflict"


class FourEyesError(DomainError):
    """The same person may not take both decisions."""

    code = "second_person_required"
    kind: ClassVar[Kind] = "forbidden"


class SecondFactorError(DomainError):
    """The session was opened without a second factor; deciding needs one."""

    code = "second_factor_required"
    kind: ClassVar[Kind] = "forbidden"


class NotAllowedError(DomainError):
    """The principal lacks the permission."""

    code = "not_allowed"
    kind: ClassVar[Kind] = "forbidden"


class NotFoundError(DomainError):
    """No such object, or none that this principal may see."""

    code = "not_found"
    kind: ClassVar[Kind] = "not_found"


class UnknownModelError(DomainError):
    """A model name or id is not registered."""

    code = "model_unknown"


class AlreadyReceivedError(DomainError):
    """The same request was received before; nothing was opened a second time."""

    code = "already_received"
    kind: ClassVar[Kind] = "conflict"


class LinkError(DomainError):
    """A mailed link is wrong, used or expired."""

    code = "link_invalid"
    kind: ClassVar[Kind] = "gone"


class PayloadDestroyedError(DomainError):
    """The key of a sealed payload no longer exists."""

    code = "payload_destroyed"
    kind: ClassVar[Kind] = "gone"


class KeyStoreError(DomainError):
    """The key store cannot be read or written."""

    code = "key_store_unavailable"
    kind: ClassVar[Kind] = "unavailable"


class SourceError(DomainError):
    """A training source is unreadable or malformed; the message names the file and line."""

    code = "training_source_invalid"


class SourceUnavailableError(SourceError):
    """A training source cannot be read or written now; the message names the file."""

    code = "training_source_unavailable"
    kind: ClassVar[Kind] = "unavailable"


class SameFilesError(DomainError):
    """A version would have the very same files as another one; nothing was registered."""

    code = "same_files"


class RegistryError(DomainError):
    """A model registry refused, or is not what its record says."""

    code = "registry_error"
    kind: ClassVar[Kind] = "unavailable"


class StoreUnavailableError(DomainError):
    """A store of adapters is in use, or not on the host that needs it."""

    code = "exact_store_unavailable"
    kind: ClassVar[Kind] = "unavailable"


class AliasConflictError(RegistryError):
    """The alias does not point where promotion expected; somebody moved it."""

    code = "promotion_conflict"
    kind: ClassVar[Kind] = "conflict"


class TestOnlyError(DomainError):
    """A policy or candidate made for tests was used outside tests."""

    code = "test_only"
    kind: ClassVar[Kind] = "forbidden"
    __test__ = False  # pytest: not a test class


class EvidenceMissingError(DomainError):
    """Evidence that the step needs does not exist, or is not the evidence that was judged."""

    code = "evidence_missing"
    kind: ClassVar[Kind] = "conflict"


class ResurfacedError(DomainError):
    """The version brings an earlier deletion back; it cannot be released. The message names the earlier request."""

    code = "earlier_deletion_resurfaced"
    kind: ClassVar[Kind] = "conflict"


class ErasureIncompleteError(DomainError):
    """Something that was erased can be read again; nothing is destroyed or stated until it is gone."""

    code = "erasure_incomplete"
    kind: ClassVar[Kind] = "conflict"


class WorkspaceError(DomainError):
    """What a run left in the work directory cannot be removed."""

    code = "work_directory_not_wiped"
    kind: ClassVar[Kind] = "unavailable"


class SigningError(DomainError):
    """A signing key is missing, unsafe or of the wrong role."""

    code = "signing_unavailable"
    kind: ClassVar[Kind] = "unavailable"


class LeaseLostError(DomainError):
    """Another worker took the job over; this one must write nothing more."""

    code = "lease_lost"
    kind: ClassVar[Kind] = "conflict"
