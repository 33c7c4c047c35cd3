"""What an answer may say in place of one that is withheld. Standard library only."""

from __future__ import annotations

import re
from typing import Final

from ml.errors import SpecError

_TELLING: Final = re.compile(
    r"delet|forg[eo]t|eras|remov|unlearn|purg|wip(e|ing)|scrub|redact|withdr[ae]w"
    r"|longer|any ?more|privacy|request|allowed",
    re.I,
)


def check_wording(text: str) -> str:
    """Return `text`, or refuse it: a refusal that speaks of deletion tells who was deleted.

    The list of words is English; whoever words a refusal in another language reads it with the same question.

    Raises:
        SpecError: it is empty, or holds a word about deletion.
    """
    if not text.strip():
        raise SpecError("a refusal needs words; an empty answer says nothing")
    if found := _TELLING.search(text):
        raise SpecError(f"a refusal must not say {found.group().lower()!r}: it would tell who was deleted")
    return text
