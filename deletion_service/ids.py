"""Prefixed identifiers: `req_01k...` sorts by time, names its kind, and says nothing about a person."""

from __future__ import annotations

import secrets
from functools import partial
from typing import Final

from ulid import ULID

# Letters and digits that are hard to mistake for one another, for numbers that people read out.
_READABLE: Final = "23456789ABCDEFGHJKMNPQRSTVWXYZ"
ID_LENGTH: Final = 30


def new_id(prefix: str) -> str:
    """Return `prefix_` and a fresh lower-case ULID."""
    return f"{prefix}_{str(ULID()).lower()}"


def new_receipt() -> str:
    """Return a receipt number a person can read over the telephone: `LT-XXXX-XXXX-XXXX`, 58 random bits."""
    groups = ("".join(secrets.choice(_READABLE) for _ in range(4)) for _ in range(3))
    return "-".join(["LT", *groups])


subject_id = partial(new_id, "sub")
request_id = partial(new_id, "req")
model_id = partial(new_id, "mdl")
version_id = partial(new_id, "ver")
target_id = partial(new_id, "tgt")
batch_id = partial(new_id, "bat")
run_id = partial(new_id, "run")
job_id = partial(new_id, "job")
evidence_id = partial(new_id, "evd")
promotion_id = partial(new_id, "prm")
sweep_id = partial(new_id, "swp")
certificate_id = partial(new_id, "crt")
