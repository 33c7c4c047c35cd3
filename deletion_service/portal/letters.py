"""Letters as the status page shows them: a title, a day, paragraphs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Final

from django.utils import timezone

from deletion_service.notices.models import Letter

_TITLES: Final = {
    "COM-01": "We received your request",
    "COM-02": "A reminder",
    "COM-03": "A question",
    "COM-04": "We need more time",
    "COM-05": "Your request was accepted",
    "COM-06": "Your request is finished",
    "COM-07": "We found nothing",
    "COM-08": "We do not carry out your request",
    "COM-09": "Your request expired",
    "COM-10": "Your request was withdrawn",
}


@dataclass(frozen=True, slots=True)
class ShownLetter:
    """One letter, without the line breaks of its template."""

    title: str
    written_on: date
    paragraphs: tuple[str, ...]


def shown_letter(letter: Letter) -> ShownLetter:
    """Lay out the text of a letter."""
    paragraphs = (" ".join(part.split()) for part in letter.text.split("\n\n"))
    return ShownLetter(
        _TITLES.get(letter.kind, "A letter"), timezone.localdate(letter.owed_at), tuple(p for p in paragraphs if p)
    )
