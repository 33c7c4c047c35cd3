"""What every `lethe` command shares: exit statuses, errors that end it, plain output. Standard library only."""

from __future__ import annotations

import json
import sys
from typing import Any, Final

# Compliance section 9.4.
OK: Final = 0
FAILED_CHECK: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3
REFUSED: Final = 4


class CommandError(Exception):
    """The command ends here, with `status` and a sentence that names the next step."""

    status = FAILED_CHECK


class UsageError(CommandError):
    """The command cannot start: a file or setting is missing, unreadable or of another kind."""

    status = USAGE


class UnreachableError(CommandError):
    """The service did not answer."""

    status = UNREACHABLE


class RefusedError(CommandError):
    """The service answered, and refused."""

    status = REFUSED


def print_json(document: Any) -> None:
    """Write a document for machines."""
    sys.stdout.write(json.dumps(document, indent=2, sort_keys=True) + "\n")


def visible(text: str) -> str:
    """Escape what a terminal would act on instead of showing."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
