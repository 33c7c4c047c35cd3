"""Pictures of energy distributions as SVG text. Pure: binned data in, a string out; no page, no database, no clock.

Must never draw a number about a single record: it gets histograms whose bins hold nobody alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from ml.pictures.svg import (
    MARGIN,
    OTHER,
    STYLES,
    WIDTH,
    Axis,
    axis_around,
    bars,
    drawing,
    fill_of,
    line,
    moment_key,
    moment_line,
    patterns,
    ruler,
    shown,
    words,
)
from ml.reports import EnergyPicture, Histogram

LABELS: Final[Mapping[str, str]] = {
    "retained": "Retained people",
    "deleted": "The deleted person",
    "never_seen": "People never seen",
}
_ROW, _LABEL, _AXIS = 78, 20, 40


def shared_axis(pictures: Sequence[EnergyPicture]) -> Axis | None:
    """Return the axis that holds every picture; `None` when there is nothing to draw."""
    ends = [p.mean for p in pictures]
    ends += [edge for p in pictures if p.shape is not None for edge in (p.shape.edges[0], p.shape.edges[-1])]
    return axis_around(ends)


def energy_svg(pictures: Sequence[EnergyPicture], *, axis: Axis, title: str, element_id: str) -> str:
    """Draw one moment: a row a group, the area of its bars in proportion to counts, a line at its mean.

    Args:
        pictures: the groups of one moment, in the order of the rows.
        element_id: prefix of the ids inside, unique on the page.
    """
    base = len(pictures) * _ROW
    rows = [_row(picture, axis, top=index * _ROW, element_id=element_id) for index, picture in enumerate(pictures)]
    scale = ruler(axis, top=base, label="energy in nats (right: more foreign to the model)")
    return drawing(
        f"{patterns(element_id)}{''.join(rows)}{scale}",
        title=title,
        text=energy_summary(pictures),
        element_id=element_id,
        width=WIDTH,
        height=base + _AXIS,
    )


def energy_summary(pictures: Sequence[EnergyPicture]) -> str:
    """Say in words what a picture shows."""
    means = "; ".join(f"{_label(p.group)} {p.mean:.2f}" for p in pictures)
    return f"Mean energy in nats, higher is more foreign to the model: {means}."


def separation_summary(separation: Mapping[str, float]) -> list[str]:
    """Say in words how well energy tells the deleted person from the others; 0.5 means not at all."""
    sentences = []
    for other, people in (("never_seen", "people never seen"), ("retained", "retained people")):
        after = separation.get(f"energy_auroc_{other}_vs_deleted")
        before = separation.get(f"energy_auroc_{other}_vs_deleted_before")
        if after is not None:
            was = "" if before is None else f" (before: {before:.2f})"
            sentences.append(
                f"A text about the deleted person has the higher energy than one about {people} "
                f"with a chance of {after:.2f}{was}; 0.50 means that they cannot be told apart."
            )
    return sentences


def energy_rows(pictures: Sequence[EnergyPicture]) -> Iterator[tuple[str, str, int]]:
    """Yield the same data as a table: group, range in nats, count."""
    for picture in pictures:
        shape = shown(picture.shape)
        if shape is None:
            continue
        for low, high, count in zip(shape.edges[:-1], shape.edges[1:], shape.counts, strict=True):
            yield _label(picture.group), f"{low:.2f} to {high:.2f}", count


def _row(picture: EnergyPicture, axis: Axis, *, top: int, element_id: str) -> str:
    base, shape = top + _ROW - 6, shown(picture.shape)
    style = STYLES.get(picture.group, OTHER)
    fill, at = fill_of(style, element_id), axis.place(picture.mean)
    drawn = ""
    if shape is not None:
        drawn = "".join(bars(shape, axis, base=base, room=_ROW - _LABEL - 10, colour=style[0], fill=fill))
    note = "" if shape is not None else " (too few texts for bars)"
    label = f"{_label(picture.group)}, mean {picture.mean:.2f}{note}"
    return (
        f"{words(MARGIN, top + 15, label, size=14, anchor='start')}{drawn}"
        f"{line(MARGIN, base, WIDTH - MARGIN, base, more=_FAINT)}"
        f"{line(at, top + _LABEL + 2, at, base + 5, width=2)}"
    )


_FAINT: Final = ' opacity="0.5"'


def _label(group: str) -> str:
    return LABELS.get(group, group.replace("_", " "))


# --- telling the person from people never seen --------------------------------------------------------------------

_SIDE, _INSET = 300, 54
Curve = tuple[tuple[float, float], ...]


def roc_curve(deleted: Histogram | None, never_seen: Histogram | None) -> Curve | None:
    """Return (false, true) positive shares of "its energy is below a threshold", at the edges both histograms share.

    Below a common edge both counts are exact, so each point is; between points nothing is known. `None` when no edge
    but the outermost is common: then there is no point to draw.
    """
    ours, theirs = shown(deleted), shown(never_seen)
    if ours is None or theirs is None or not sum(ours.counts) or not sum(theirs.counts):
        return None
    common = sorted(set(ours.edges[1:-1]) & set(theirs.edges[1:-1]))
    if not common:
        return None
    inner = [(_share_below(theirs, edge), _share_below(ours, edge)) for edge in common]
    return ((0.0, 0.0), *inner, (1.0, 1.0))


def _share_below(shape: Histogram, edge: float) -> float:
    below = sum(count for high, count in zip(shape.edges[1:], shape.counts, strict=True) if high <= edge)
    return below / sum(shape.counts)


def roc_svg(curves: Mapping[str, Curve], *, title: str, text: str, element_id: str, across: str, up: str) -> str:
    """Draw curves by moment: `before` solid with dots, `after` dashed with squares, chance dotted.

    Args:
        across, up: what the axes count, in words.
    """
    width, height = _SIDE + _INSET + 150, _SIDE + _INSET + 14
    frame = (
        f'<rect x="{_INSET}" y="14" width="{_SIDE}" height="{_SIDE}" fill="none" stroke="currentColor" opacity="0.5"/>'
        f"{line(_INSET, 14 + _SIDE, _INSET + _SIDE, 14, more=_DOTTED)}"
    )
    scale = "".join(
        f"{words(_INSET + tick * _SIDE, _SIDE + 30, f'{tick:g}')}"
        f"{words(_INSET - 8, 14 + (1 - tick) * _SIDE + 4, f'{tick:g}', anchor='end')}"
        for tick in (0, 0.5, 1)
    )
    named = words(_INSET + _SIDE / 2, _SIDE + 50, across)
    turned = f'<g transform="translate(14 {14 + _SIDE / 2}) rotate(-90)">{words(0, 0, up)}</g>'
    drawn = "".join(_curve(moment, points) for moment, points in curves.items())
    return drawing(
        f"{frame}{scale}{named}{turned}{drawn}{_roc_legend(curves)}",
        title=title,
        text=text,
        element_id=element_id,
        width=width,
        height=height,
    )


_DOTTED: Final = ' stroke-dasharray="2 4" opacity="0.7"'


def _curve(moment: str, points: Curve) -> str:
    return moment_line(moment, [(_INSET + x * _SIDE, 14 + (1 - y) * _SIDE) for x, y in points], ends=False)


def _roc_legend(curves: Mapping[str, Curve]) -> str:
    left, rows = _INSET + _SIDE + 14, []
    for index, moment in enumerate(curves):
        y = 28 + index * 24
        rows.append(moment_key(moment, moment, left=left, y=y))
    y = 28 + len(curves) * 24
    return (
        "".join(rows)
        + line(left, y, left + 36, y, more=_DOTTED)
        + words(left + 44, y + 5, "chance", size=14, anchor="start")
    )
