"""Errors of the machine-learning library: a stable `code`, and a message that names the object and the next step.

This module must never put training text, prompts, values or names into a message: messages reach logs and pages.
Standard library only.
"""

from __future__ import annotations


class MlError(Exception):
    """Base of every expected failure in `ml`; `code` is stable and safe to show."""

    code = "ml_error"


class UnknownMemberError(MlError):
    """A registry was asked for a name it does not have; the message lists the names it has."""

    code = "unknown_member"


class DuplicateMemberError(MlError):
    """Two members were registered under one name."""

    code = "duplicate_member"


class SpecError(MlError):
    """A spec, policy or report document is malformed; the message names the field."""

    code = "invalid_spec"


class StoreInUseError(SpecError):
    """Another command is at work in a store of adapters; it can be tried again."""

    code = "store_in_use"


class UnattainableError(MlError):
    """A test was asked for at a level that its number of twins cannot reach; it would only cost time."""

    code = "alpha_unattainable"


class LoaderMissingError(MlError):
    """A model is served by a library that is not installed here; the message says what to install."""

    code = "loader_missing"


class DigestMismatchError(MlError):
    """A file or directory does not have the digest it was announced with."""

    code = "digest_mismatch"


class InputsMissingError(MlError):
    """A run cannot be repeated: what its manifest names by digest is not at hand; the message says what."""

    code = "inputs_missing"


class ManifestMismatchError(MlError):
    """A manifest and a report are about different runs; the message names what differs."""

    code = "manifest_mismatch"


class PoolMismatchError(MlError):
    """A person cannot share a twin pool: the message names what differs by attribute, never by value or name."""

    code = "pool_mismatch"


class ModelDirectoryError(MlError):
    """A model directory is unsafe or incomplete: pickle, symlink, `auto_map`, missing file or missing tensor."""

    code = "model_directory_invalid"


class TokenizerMismatchError(ModelDirectoryError):
    """The tokenizer does not fit the model it lies beside."""

    code = "tokenizer_mismatch"


class RecordError(MlError):
    """A training record is malformed; the message names the file and line, never the content."""

    code = "record_invalid"


class UnknownRecordError(MlError):
    """A record is to be deleted that nothing here was trained on."""

    code = "record_unknown"


class ExactImpossibleError(MlError):
    """A store of adapters cannot make an exact candidate for this model and these records; nothing was changed."""

    code = "exact_impossible"


class DeletionIncompleteError(MlError):
    """Files that a deletion had to remove are still there, or may be; nothing says that it was done."""

    code = "deletion_incomplete"


class EmptySetError(MlError):
    """A set that the run cannot do without (forget, retain, never-seen) is empty."""

    code = "empty_set"


class OverlapError(MlError):
    """Two sets that must be disjoint share records."""

    code = "sets_overlap"


class EmptySequenceError(MlError):
    """A row has no position that counts; the mean of nothing is not 0."""

    code = "empty_sequence"


class ContextLengthError(MlError):
    """A text does not fit into the model's context window."""

    code = "context_too_long"


class NonFiniteError(MlError):
    """A loss, score or weight is NaN or infinite."""

    code = "non_finite"


class EnergyNotSeparatingError(MlError):
    """Energy does not tell known from unknown on this model, so no boundary can be set."""

    code = "energy_does_not_separate"


class GuardNotCalibratedError(MlError):
    """The guard must stay off: it has no valid threshold for this model; calibrate it on the model that serves."""

    code = "guard_not_calibrated"


class GuardUnsupportedError(MlError):
    """A way of generating that the guard cannot watch; the message names it."""

    code = "guard_unsupported"


class CheckpointError(MlError):
    """A checkpoint is unreadable or belongs to another run."""

    code = "checkpoint_invalid"


class RunStoppedError(MlError):
    """The caller asked the run to stop; its checkpoint is on disk and the run can be resumed."""

    code = "run_stopped"
