"""Pictures of energy distributions as SVG text. Pure: binned data in, a string out; no page, no database, no clock.

Must never draw a number about a single record: it gets histograms whose bins hold nobody alone. Rows are told apart by
label and pattern, not by colour; text and axes take the colour of the page, so that print and dark pages work.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from ml.reports import EnergyPicture, Histogram

# Okabe and Ito's palette: told apart with every common kind of colour blindness, and in grey by the patterns.
_STYLES: Final[Mapping[str, tuple[str, str]]] = {
    "retained": ("#0072b2", "solid"),
    "deleted": ("#d55e00", "hatched"),
    "never_seen": ("#009e73", "dotted"),
}
_OTHER: Final = ("#6b6b6b", "solid")
LABELS: Final[Mapping[str, str]] = {
    "retained": "Retained people",
    "deleted": "The deleted person",
    "never_seen": "People never seen",
}
_WIDTH, _MARGIN, _ROW, _LABEL, _AXIS = 520, 12, 78, 20, 40


@dataclass(frozen=True, slots=True)
class Axis:
    """The range of energies, in nats, that all pictures of one comparison share."""

    low: float
    high: float

    def place(self, energy: float) -> float:
        """Return the horizontal place of an energy; one beyond the range lands on its edge."""
        share = (energy - self.low) / (self.high - self.low)
        return _MARGIN + min(1.0, max(0.0, share)) * (_WIDTH - 2 * _MARGIN)

    def ticks(self) -> list[float]:
        """Return 4 to 9 round numbers within the range."""
        rough = (self.high - self.low) / 5
        power = 10 ** math.floor(math.log10(rough))
        step = power * min((m for m in (1, 2, 5, 10) if m * power >= rough), default=10)
        first = math.ceil(self.low / step)
        return [round(n * step, 10) for n in range(first, math.floor(self.high / step) + 1)]


def shared_axis(pictures: Sequence[EnergyPicture]) -> Axis | None:
    """Return the axis that holds every picture; `None` when there is nothing to draw."""
    ends = [p.mean for p in pictures]
    ends += [edge for p in pictures if p.shape is not None for edge in (p.shape.edges[0], p.shape.edges[-1])]
    if not ends:
        return None
    low, high = min(ends), max(ends)
    pad = (high - low) * 0.02 or 0.5
    return Axis(low - pad, high + pad)


def energy_svg(pictures: Sequence[EnergyPicture], *, axis: Axis, title: str, element_id: str) -> str:
    """Draw one moment: a row a group, the area of its bars in proportion to counts, a line at its mean.

    Args:
        pictures: the groups of one moment, in the order of the rows.
        element_id: prefix of the ids inside, unique on the page.
    """
    height = len(pictures) * _ROW + _AXIS
    rows = [_row(picture, axis, top=index * _ROW, element_id=element_id) for index, picture in enumerate(pictures)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-labelledby="{element_id}-title {element_id}-text" class="chart">'
        f'<title id="{element_id}-title">{escape(title)}</title>'
        f'<desc id="{element_id}-text">{escape(energy_summary(pictures))}</desc>'
        f"{_patterns(element_id)}{''.join(rows)}{_axis(axis, top=len(pictures) * _ROW)}</svg>"
    )


def energy_summary(pictures: Sequence[EnergyPicture]) -> str:
    """Say in words what a picture shows."""
    means = "; ".join(f"{_label(p.group)} {p.mean:.2f}" for p in pictures)
    return f"Mean energy in nats, higher is more foreign to the model: {means}."


def separation_summary(separation: Mapping[str, float]) -> list[str]:
    """Say in words how well energy tells the deleted person from the others; 0.5 means not at all."""
    sentences = []
    for other, words in (("never_seen", "people never seen"), ("retained", "retained people")):
        after = separation.get(f"energy_auroc_{other}_vs_deleted")
        before = separation.get(f"energy_auroc_{other}_vs_deleted_before")
        if after is not None:
            was = "" if before is None else f" (before: {before:.2f})"
            sentences.append(
                f"A text about the deleted person has the higher energy than one about {words} "
                f"with a chance of {after:.2f}{was}; 0.50 means that they cannot be told apart."
            )
    return sentences


def energy_rows(pictures: Sequence[EnergyPicture]) -> Iterator[tuple[str, str, int]]:
    """Yield the same data as a table: group, range in nats, count."""
    for picture in pictures:
        if picture.shape is None:
            continue
        edges = picture.shape.edges
        for low, high, count in zip(edges[:-1], edges[1:], picture.shape.counts, strict=True):
            yield _label(picture.group), f"{low:.2f} to {high:.2f}", count


def _row(picture: EnergyPicture, axis: Axis, *, top: int, element_id: str) -> str:
    base = top + _ROW - 6
    colour, pattern = _STYLES.get(picture.group, _OTHER)
    fill = colour if pattern == "solid" else f"url(#{element_id}-{pattern})"
    note = "" if picture.shape is not None else " (too few texts for bars)"
    label = f"{_label(picture.group)}, mean {picture.mean:.2f}{note}"
    bars = "" if picture.shape is None else "".join(_bars(picture.shape, axis, base, colour, fill))
    at = axis.place(picture.mean)
    return (
        f'<text x="{_MARGIN}" y="{top + 15}" fill="currentColor" font-size="14">{escape(label)}</text>{bars}'
        f'<line x1="{_MARGIN}" x2="{_WIDTH - _MARGIN}" y1="{base}" y2="{base}" stroke="currentColor" opacity="0.5"/>'
        f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{top + _LABEL + 2}" y2="{base + 5}" stroke="currentColor" '
        'stroke-width="2"/>'
    )


def _bars(shape: Histogram, axis: Axis, base: int, colour: str, fill: str) -> Iterator[str]:
    """Bars whose area stands for counts, since bins differ in width; each row is scaled to its own highest."""
    density = [
        count / max(high - low, 1e-12)
        for low, high, count in zip(shape.edges[:-1], shape.edges[1:], shape.counts, strict=True)
    ]
    highest = max(density, default=0.0) or 1.0
    room = _ROW - _LABEL - 10
    for low, high, height in zip(shape.edges[:-1], shape.edges[1:], density, strict=True):
        left, right, tall = axis.place(low), axis.place(high), height / highest * room
        yield (
            f'<rect x="{left:.1f}" y="{base - tall:.1f}" width="{max(right - left, 0.5):.1f}" height="{tall:.1f}" '
            f'fill="{fill}" stroke="{colour}"/>'
        )


def _axis(axis: Axis, *, top: int) -> str:
    ticks = "".join(
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top - 6}" y2="{top}" stroke="currentColor"/>'
        f"{_small_text(x, top + 13, f'{tick:g}')}"
        for tick, x in ((tick, axis.place(tick)) for tick in axis.ticks())
    )
    return ticks + _small_text(_WIDTH / 2, top + 32, "energy in nats (right: more foreign to the model)")


def _small_text(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y}" fill="currentColor" font-size="12" text-anchor="middle">{escape(text)}</text>'


def _patterns(element_id: str) -> str:
    hatch, dots = _STYLES["deleted"][0], _STYLES["never_seen"][0]
    return (
        f'<defs><pattern id="{element_id}-hatched" width="6" height="6" patternUnits="userSpaceOnUse" '
        f'patternTransform="rotate(45)"><rect width="3" height="6" fill="{hatch}"/></pattern>'
        f'<pattern id="{element_id}-dotted" width="6" height="6" patternUnits="userSpaceOnUse">'
        f'<circle cx="3" cy="3" r="2" fill="{dots}"/></pattern></defs>'
    )


def _label(group: str) -> str:
    return LABELS.get(group, group.replace("_", " "))
