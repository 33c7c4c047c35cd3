"""A picture of earlier deletions over versions: what remains of each, on every version that was tested. Pure text.

Must never name anybody: a deletion is its number in the ledger.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ml.pictures.svg import BLUE, MARGIN, ORANGE, Axis, drawing, line, words

_PAPER, _LEFT, _TOP, _TALL, _STEP = 760, 62, 30, 220, 64
_LOWEST, _HIGHEST = -0.5, 1.5
_FAINT: Final = ' opacity="0.35"'
LEDGER_HEAD: Final = ("Deletion", "Request", "Version", "Tested by", "Remains at most", "p stands out", "Result")


@dataclass(frozen=True, slots=True)
class Retested:
    """One deletion on one version; `remains` is the highest residual share over attacks, absent without a number."""

    number: int
    request_id: str
    version: int
    by: str
    remains: float | None
    p: float | None
    result: str


def remains_svg(points: Sequence[Retested], *, limit: float, title: str, element_id: str) -> str:
    """Draw a line a deletion: versions from left to right, what remains from bottom to top, a line at the limit."""
    versions = sorted({point.version for point in points})
    shown = [point for point in points if point.remains is not None]
    ends = [0.0, limit, *(point.remains for point in shown if point.remains is not None)]
    low, high = max(_LOWEST, min(ends)) - 0.05, min(_HIGHEST, max(1.0, *ends)) + 0.05
    up = Axis(low, high, left=_TOP + _TALL, right=_TOP)
    width = max(_PAPER, _LEFT + _STEP * len(versions) + 2 * MARGIN)
    across = {version: _LEFT + _STEP / 2 + index * _STEP for index, version in enumerate(versions)}
    body = [*_scale(up, width), *_limit(up.place(limit), limit, width)]
    body += [words(x, _TOP + _TALL + 18, str(version)) for version, x in across.items()]
    body.append(words(_LEFT + _STEP * len(versions) / 2, _TOP + _TALL + 38, "version of the model"))
    for series in _series(shown):
        body += _line(series, across, up, limit)
    return drawing(
        "".join(body),
        title=title,
        text=remains_summary(points, limit=limit),
        element_id=element_id,
        width=width,
        height=_TOP + _TALL + 48,
    )


def remains_summary(points: Sequence[Retested], *, limit: float) -> str:
    """Say in words how many deletions were tested on how many versions, and which lie beyond the limit."""
    versions = {point.version for point in points}
    numbers = {point.number for point in points}
    said = f"{len(numbers)} earlier deletions on {len(versions)} versions."
    beyond = sorted({(p.number, p.version) for p in points if p.remains is not None and p.remains > limit})
    if not beyond:
        return f"{said} Wherever there is a number, at most {limit:g} of the influence remains."
    named = ", ".join(f"deletion {number} on version {version}" for number, version in beyond)
    return f"{said} More than {limit:g} of the influence remains of {named}."


def remains_rows(points: Sequence[Retested]) -> Iterator[tuple[str, ...]]:
    """Yield the same as a table; the columns are `LEDGER_HEAD`."""
    for point in sorted(points, key=lambda p: (p.number, p.version, p.by)):
        yield (
            str(point.number),
            point.request_id,
            str(point.version),
            point.by,
            "" if point.remains is None else f"{point.remains:.2f}",
            "" if point.p is None else f"{point.p:.2g}",
            point.result,
        )


def _series(points: Sequence[Retested]) -> list[list[Retested]]:
    keys = sorted({(point.number, point.by) for point in points})
    rows = [[point for point in points if (point.number, point.by) == key] for key in keys]
    return [sorted(row, key=lambda point: point.version) for row in rows]


def _scale(up: Axis, width: float) -> Iterator[str]:
    for tick in up.ticks():
        y = up.place(tick)
        yield line(_LEFT, y, width - MARGIN, y, more=_FAINT if tick else ' opacity="0.8"')
        yield words(_LEFT - 8, y + 4, f"{tick:g}", anchor="end")
    yield words(
        MARGIN, _TOP - 12, "share of the influence that remains (0: none, 1: as before deletion)", anchor="start"
    )


def _limit(y: float, limit: float, width: float) -> Iterator[str]:
    yield line(_LEFT, y, width - MARGIN, y, width=2, more=' stroke-dasharray="6 4"')
    yield words(width - MARGIN, y - 6, f"limit {limit:g}", anchor="end")


def _line(series: Sequence[Retested], across: dict[int, float], up: Axis, limit: float) -> Iterator[str]:
    places = [(across[p.version], up.place(p.remains), p) for p in series if p.remains is not None]
    for (x1, y1, _), (x2, y2, _) in zip(places, places[1:], strict=False):
        yield line(x1, y1, x2, y2, more=_FAINT)
    for x, y, point in places:
        yield _mark(x, y, point, limit)
    if places:
        x, y, point = places[-1]
        yield words(x + 10, y + 4, str(point.number), anchor="start")


def _mark(x: float, y: float, point: Retested, limit: float) -> str:
    """A cross beyond the limit; else a disc for a spike-in, a square for sealed probes."""
    if point.remains is not None and point.remains > limit:
        return (
            f'<path d="M{x - 5:.1f} {y - 5:.1f} L{x + 5:.1f} {y + 5:.1f} M{x - 5:.1f} {y + 5:.1f} '
            f'L{x + 5:.1f} {y - 5:.1f}" fill="none" stroke="{ORANGE}" stroke-width="3"/>'
        )
    if point.by == "vault":
        return f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" fill="{BLUE}" stroke="currentColor"/>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{BLUE}" stroke="currentColor"/>'
