"""The verdict policies that come with the product: versioned JSON, fixed before any run they judge.

A policy is never edited in place: another number is another version. Whoever judges by one for releases reads it as
the meta-evaluation leaves it (`ml.trust`). Standard library only.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

from ml.errors import SpecError
from ml.specs import VerdictPolicy
from ml.trust import DEMOTED, trusted


def policy_names() -> tuple[str, ...]:
    """Names of the policies that come with the product, sorted."""
    files = resources.files(__name__).iterdir()
    return tuple(sorted(entry.name.removesuffix(".json") for entry in files if entry.name.endswith(".json")))


def load_policy(name: str) -> VerdictPolicy:
    """Read the policy called `name`, without primaries that were not shown to deserve to gate; such a one has a name of
    its own, by which it is found as well.

    Raises:
        SpecError: there is no such policy (the message lists the known ones), or its document is malformed.
    """
    written = name.partition(DEMOTED)[0]
    policy = trusted(written_policy(written))
    if name not in (written, policy.name):
        raise SpecError(f"verdict policy {name!r} is of other results than those of today, which give {policy.name!r}")
    return policy


def written_policy(name: str) -> VerdictPolicy:
    """Read the policy called `name` as it is written, whatever the meta-evaluation says of its attacks.

    Raises:
        SpecError: as `load_policy`.
    """
    if name not in policy_names():
        raise SpecError(f"there is no verdict policy {name!r}; known: {', '.join(policy_names())}")
    text = resources.files(__name__).joinpath(f"{name}.json").read_text(encoding="utf-8")
    return VerdictPolicy.from_document(json.loads(text))


def read_policy(path: Path) -> VerdictPolicy:
    """Read a policy of somebody's own from a JSON file, as `load_policy` does.

    Raises:
        SpecError: the file cannot be read, is not JSON, or its document is malformed.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise SpecError(f"the verdict policy {path.name} cannot be read as JSON") from exc
    return trusted(VerdictPolicy.from_document(document))
