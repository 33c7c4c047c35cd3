"""What all pictures are drawn with: an axis, words, patterns. Pure text; no style, no script, no colour of its own.

Text and lines take the colour of the page, so that print and dark pages work. Groups are told apart by pattern and
label, not by colour.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final, Literal

from ml.reports import MINIMUM_BIN, Histogram

# Okabe and Ito's palette: told apart with every common kind of colour blindness, and in grey by the patterns.
BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#6b6b6b"
STYLES: Final[Mapping[str, tuple[str, str]]] = {
    "retained": (BLUE, "solid"),
    "deleted": (ORANGE, "hatched"),
    "never_seen": (GREEN, "dotted"),
}
OTHER: Final = (GREY, "solid")
WIDTH, MARGIN = 520, 12
Anchor = Literal["start", "middle", "end"]


@dataclass(frozen=True, slots=True)
class Axis:
    """The range that all rows of a picture share, and where it lies on the paper."""

    low: float
    high: float
    left: float = MARGIN
    right: float = WIDTH - MARGIN

    def place(self, value: float) -> float:
        """Return the horizontal place of a value; one beyond the range lands on its edge."""
        share = (value - self.low) / (self.high - self.low)
        return self.left + min(1.0, max(0.0, share)) * (self.right - self.left)

    def ticks(self, steps: int = 5) -> list[float]:
        """Return round numbers within the range, `steps` or fewer between its ends."""
        rough = (self.high - self.low) / steps
        power = 10 ** math.floor(math.log10(rough))
        step = power * min((m for m in (1, 2, 5, 10) if m * power >= rough), default=10)
        first = math.ceil(self.low / step)
        return [round(n * step, 10) for n in range(first, math.floor(self.high / step) + 1)]


def axis_around(values: Sequence[float]) -> Axis | None:
    """Return an axis that holds all values with some room; `None` when there are none."""
    if not values:
        return None
    low, high = min(values), max(values)
    pad = (high - low) * 0.02 or 0.5
    return Axis(low - pad, high + pad)


def drawing(body: str, *, title: str, text: str, element_id: str, width: float, height: float) -> str:
    """Wrap a picture's body: read aloud it is an image with a title and a text."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-labelledby="{element_id}-title {element_id}-text" class="chart">'
        f'<title id="{element_id}-title">{escape(title)}</title>'
        f'<desc id="{element_id}-text">{escape(text)}</desc>{body}</svg>'
    )


def words(x: float, y: float, text: str, *, size: int = 12, anchor: Anchor = "middle", bold: bool = False) -> str:
    """Return one line of text."""
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:g}" fill="currentColor" font-size="{size}" text-anchor="{anchor}"{weight}>'
        f"{escape(text)}</text>"
    )


def line(x1: float, y1: float, x2: float, y2: float, *, width: float = 1, more: str = "") -> str:
    """Return a line in the colour of the page."""
    return (
        f'<line x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}" stroke="currentColor" '
        f'stroke-width="{width:g}"{more}/>'
    )


def ruler(axis: Axis, *, top: float, label: str, steps: int = 5) -> str:
    """Return ticks with their numbers, and what they mean."""
    marks = "".join(
        f"{line(x, top - 6, x, top)}{words(x, top + 13, f'{tick:g}')}"
        for tick, x in ((tick, axis.place(tick)) for tick in axis.ticks(steps))
    )
    return marks + words((axis.left + axis.right) / 2, top + 32, label)


def patterns(element_id: str) -> str:
    """Return the patterns that bars refer to, under ids of this picture."""
    return (
        f'<defs><pattern id="{element_id}-hatched" width="6" height="6" patternUnits="userSpaceOnUse" '
        f'patternTransform="rotate(45)"><rect width="3" height="6" fill="{ORANGE}"/></pattern>'
        f'<pattern id="{element_id}-dotted" width="6" height="6" patternUnits="userSpaceOnUse">'
        f'<circle cx="3" cy="3" r="2" fill="{GREEN}"/></pattern></defs>'
    )


def fill_of(style: tuple[str, str], element_id: str) -> str:
    """Return the fill of a group's bars."""
    colour, pattern = style
    return colour if pattern == "solid" else f"url(#{element_id}-{pattern})"


def shown(shape: Histogram | None) -> Histogram | None:
    """Return a shape that may be drawn: none whose bars would hold fewer than `MINIMUM_BIN`."""
    if shape is None or any(0 < count < MINIMUM_BIN for count in shape.counts):
        return None
    return shape


def bars(shape: Histogram, axis: Axis, *, base: float, room: float, colour: str, fill: str) -> Iterator[str]:
    """Bars whose area stands for counts, since bins differ in width; scaled to the highest of them."""
    spans = list(zip(shape.edges[:-1], shape.edges[1:], shape.counts, strict=True))
    density = [count / max(high - low, 1e-12) for low, high, count in spans]
    highest = max(density, default=0.0) or 1.0
    for (low, high, _), height in zip(spans, density, strict=True):
        left, right, tall = axis.place(low), axis.place(high), height / highest * room
        yield (
            f'<rect x="{left:.1f}" y="{base - tall:.1f}" width="{max(right - left, 0.5):.1f}" height="{tall:.1f}" '
            f'fill="{fill}" stroke="{colour}"/>'
        )


# Before deletion solid with dots, after it dashed with squares.
_MOMENTS: Final[Mapping[str, tuple[str, str]]] = {"before": (ORANGE, ""), "after": (GREEN, ' stroke-dasharray="7 4"')}


def moment_line(moment: str, places: Sequence[tuple[float, float]], *, ends: bool = True) -> str:
    """Return a line through places in the look of `before` or `after`, with a mark at each, or at all but its ends."""
    colour, dashes = _MOMENTS[moment]
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    marks = "".join(_mark(moment, x, y) for x, y in (places if ends else places[1:-1]))
    return f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="2.5"{dashes}/>{marks}'


def moment_key(moment: str, text: str, *, left: float, y: float) -> str:
    """Return what a line of `moment_line` means: a piece of it and words behind."""
    colour, dashes = _MOMENTS[moment]
    return (
        f'<line x1="{left}" x2="{left + 36}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="2.5"{dashes}/>'
        f"{_mark(moment, left + 18, y)}{words(left + 44, y + 5, text, size=14, anchor='start')}"
    )


def _mark(moment: str, x: float, y: float) -> str:
    colour = _MOMENTS[moment][0]
    if moment == "before":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>'
    return f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" fill="{colour}"/>'
