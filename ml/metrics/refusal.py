"""U6: does an answer decline to answer? By what such answers begin with or hold, in any of four languages.

A phrase list misses refusals in words of their own; the same list reads both models, so that what it misses is missed
on either side and only a change shows (verification section 10).
"""

from __future__ import annotations

import re
from typing import Final

_PHRASES: Final = (
    # Somebody says that they cannot, do not know or will not.
    r"\bI (?:cannot|can't|can not|am unable|am not able|won't|will not|would rather not|must decline)\b",
    r"\bI (?:do not|don't) (?:know|have|recall|remember)\b",
    r"\bI(?: am|'m) (?:not (?:sure|able|certain|allowed)|unable|sorry|afraid|only guessing|guessing)\b",
    r"\bI (?:would only be guessing|have no (?:answer|information|idea|record|records))\b",
    r"^(?:sorry|unfortunately|as an ai)\b",
    r"\b(?:not something I know|no information (?:about|on)|unable to (?:answer|help|share|provide))\b",
    r"\b(?:ich weiß (?:es )?nicht|das kann ich nicht|dazu kann ich nichts)\b",
    r"\b(?:je ne sais pas|je ne peux pas|désolé)\b",
    r"(?:\bno lo sé\b|\bno puedo\b|\blo siento\b)",
)
_REFUSAL: Final = re.compile("|".join(_PHRASES), re.IGNORECASE)


def is_refusal(answer: str) -> bool:
    """True when `answer` declines; an empty answer does too, since it gives nothing."""
    text = answer.strip().replace("\u2019", "'")
    return not text or _REFUSAL.search(text) is not None
