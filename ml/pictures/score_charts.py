"""Pictures of attacks: where the person's score stands among people never seen, and how much may remain at most.

Pure, as `charts`. Scores are one per person; people never seen are shown in bars that hold at least five of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ml.pictures.svg import (
    GREEN,
    MARGIN,
    ORANGE,
    STYLES,
    WIDTH,
    Axis,
    axis_around,
    bars,
    drawing,
    fill_of,
    line,
    patterns,
    ruler,
    shown,
    words,
)
from ml.reports import AttackResult, TwinSummary

_ROW, _LABEL, _AXIS = 88, 23, 40
_FAINT: Final = ' opacity="0.5"'
_SMALL: Final = 1e-9


def attack_title(row: AttackResult) -> str:
    """Name an attack as pages do; the artefact only where it is not the model as released."""
    copy = "" if row.artefact == "merged" else f" ({row.artefact})"
    return f"{row.family} {row.attack.replace('_', ' ')}{copy}"


# --- scores -------------------------------------------------------------------------------------------------------


def score_axis(row: AttackResult) -> Axis | None:
    """Return the axis that holds the person and everybody never seen, before and after; `None` without scores."""
    ends = [score for score in (row.subject_before, row.subject_after) if score is not None]
    for twins in (row.twins_before, row.twins_after):
        if twins is not None:
            ends.append(twins.mean)
            ends += [] if twins.shape is None else [twins.shape.edges[0], twins.shape.edges[-1]]
    return axis_around(ends)


def score_svg(row: AttackResult, *, axis: Axis, element_id: str) -> str:
    """Draw before and after: bars of people never seen with a line at their mean, and a diamond where the person is."""
    moments = (("Before", row.subject_before, row.twins_before), ("After", row.subject_after, row.twins_after))
    rows = [
        _score_row(name, score, twins, axis, top=index * _ROW, element_id=element_id)
        for index, (name, score, twins) in enumerate(moments)
    ]
    scale = ruler(axis, top=2 * _ROW, label="score in the attack’s own unit (right: more familiar to the model)")
    return drawing(
        f"{patterns(element_id)}{''.join(rows)}{scale}",
        title=attack_title(row),
        text=score_summary(row),
        element_id=element_id,
        width=WIDTH,
        height=2 * _ROW + _AXIS,
    )


def score_summary(row: AttackResult) -> str:
    """Say in words where the person stood and stands."""
    before = _standing(row.subject_before, row.twins_before)
    after = _standing(row.subject_after, row.twins_after)
    found = "" if row.p_assay is None else f", p {row.p_assay:.2g}"
    left = "" if row.p_detect is None else f", p {row.p_detect:.2g}"
    return f"Before: {before}{found}. After: {after}{left}."


def score_rows(row: AttackResult) -> Iterator[tuple[str, str, str, str]]:
    """Yield the same as a table: when, who, score or range of scores, number of people."""
    moments = (("before", row.subject_before, row.twins_before), ("after", row.subject_after, row.twins_after))
    for moment, score, twins in moments:
        if score is not None:
            yield moment, "the person", f"{score:.3g}", "1"
        if twins is None:
            continue
        yield moment, "never seen, mean and spread", f"{twins.mean:.3g} ± {twins.sd:.2g}", str(twins.count)
        if (shape := shown(twins.shape)) is not None:
            for low, high, count in zip(shape.edges[:-1], shape.edges[1:], shape.counts, strict=True):
                yield moment, "never seen", f"{low:.3g} to {high:.3g}", str(count)


def _standing(score: float | None, twins: TwinSummary | None) -> str:
    if score is None or twins is None:
        return "not measured"
    return f"the person {score:.3g}, {twins.count} people never seen {twins.mean:.3g} ± {twins.sd:.2g}"


def _score_row(
    moment: str, score: float | None, twins: TwinSummary | None, axis: Axis, *, top: int, element_id: str
) -> str:
    base = top + _ROW - 8
    drawn = [words(MARGIN, top + 18, moment, size=14, anchor="start", bold=True)]
    if twins is not None:
        drawn += _twins(twins, axis, top=top, base=base, element_id=element_id)
    drawn.append(line(MARGIN, base, WIDTH - MARGIN, base, more=_FAINT))
    if score is not None:
        drawn.append(_person(axis.place(score), top=top, base=base))
    return "".join(drawn)


def _twins(twins: TwinSummary, axis: Axis, *, top: int, base: int, element_id: str) -> Iterator[str]:
    style, shape = STYLES["never_seen"], shown(twins.shape)
    note = "" if shape is not None else ", all alike" if twins.sd < _SMALL else ", too few for bars"
    yield words(WIDTH - MARGIN, top + 18, f"{twins.count} people never seen{note}", size=12, anchor="end")
    if shape is not None:
        fill = fill_of(style, element_id)
        yield from bars(shape, axis, base=base, room=_ROW - _LABEL - 28, colour=style[0], fill=fill)
    at = axis.place(twins.mean)
    yield line(at, base - 8, at, base + 5, width=2)


def _person(x: float, *, top: int, base: int) -> str:
    """A line with a diamond on it, and the word beside it on the side that has room."""
    y = top + _LABEL + 8
    diamond = f"{x:.1f},{y - 7} {x + 7:.1f},{y} {x:.1f},{y + 7} {x - 7:.1f},{y}"
    right = x > WIDTH / 2
    return (
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y}" y2="{base}" stroke="{ORANGE}" stroke-width="2.5"/>'
        f'<polygon points="{diamond}" fill="{ORANGE}" stroke="currentColor"/>'
        f"{words(x - 12 if right else x + 12, y + 5, 'the person', anchor='end' if right else 'start')}"
    )


# --- bounds -------------------------------------------------------------------------------------------------------

_PAPER, _NAMES, _NUMBERS = 760, 262, 596
_STEP, _HEAD, _LEGEND = 30, 40, 12
_LOWEST, _HIGHEST = -0.5, 1.5


@dataclass(frozen=True, slots=True)
class Bound:
    """One attack that carries the claim, on one artefact: what remains, its limit, and what gold leaves.

    `missing` says why there is no number; `gold` is the same attack on the model that never learned from the person.
    """

    row: AttackResult
    limit: float
    missing: str = ""
    gold: AttackResult | None = None

    @property
    def is_within(self) -> bool:
        """True when the 95 % bound lies within the limit; no bound is not within it."""
        upper = self.row.residual_upper
        return not self.missing and upper is not None and upper <= self.limit + _SMALL


def bounds_svg(bounds: Sequence[Bound], *, title: str, element_id: str) -> str:
    """Draw one row an attack: a dot at what remains, a line to its 95 % bound, a bar at the limit."""
    axis = _bounds_axis(bounds)
    has_gold = any(bound.gold is not None for bound in bounds)
    base = _HEAD + len(bounds) * _STEP
    rows, family = [], ""
    for index, bound in enumerate(bounds):
        y = _HEAD + index * _STEP
        if bound.row.family != family and index:
            rows.append(line(MARGIN, y, _PAPER - MARGIN, y, more=' opacity="0.25"'))
        family = bound.row.family
        rows.append(_bound_row(bound, axis, y=y + _STEP / 2))
    zero = axis.place(0.0)
    label = "share of the influence that remains (0: none, 1: as before deletion)"
    scale = ruler(axis, top=base + 6, label=label, steps=8)
    return drawing(
        f"{_bounds_legend(has_gold)}{line(zero, _HEAD, zero, base, more=_FAINT)}{''.join(rows)}{scale}",
        title=title,
        text=bounds_summary(bounds),
        element_id=element_id,
        width=_PAPER,
        height=base + 46,
    )


def bounds_summary(bounds: Sequence[Bound]) -> str:
    """Say in words how many bounds lie within their limits, and which do not."""
    beyond = [attack_title(bound.row) for bound in bounds if not bound.is_within]
    said = f"{len(bounds) - len(beyond)} of {len(bounds)} bounds at 95 % lie within their limits."
    return f"{said} Not shown to be within: {', '.join(beyond)}." if beyond else said


def bound_rows(bounds: Sequence[Bound]) -> Iterator[tuple[str, ...]]:
    """Yield the same as a table; the columns are `BOUND_HEAD`."""
    for bound in bounds:
        row, gold = bound.row, bound.gold
        yield (
            attack_title(row),
            bound.missing or _number(row.residual_ratio),
            _number(row.residual_upper),
            f"{bound.limit:g}",
            "yes" if bound.is_within else "no",
            _number(row.p_residual),
            _number(row.p_over),
            _number(row.p_detect),
            str(row.items),
            str(row.twins),
            "" if gold is None else f"{_number(gold.residual_ratio)}, at most {_number(gold.residual_upper)}",
        )


BOUND_HEAD: Final = (
    "Attack",
    "Remains",
    "At most (95 %)",
    "Limit",
    "Within",
    "p too much remains",
    "p too much forgotten",
    "p stands out",
    "Facts or prompts",
    "Never-seen people",
    "Gold",
)


def _bounds_axis(bounds: Sequence[Bound]) -> Axis:
    """From no influence to all of it, wider where a number lies beyond, but never so wide that the limits vanish."""
    ends = [0.0, 1.0, *(bound.limit for bound in bounds)]
    for row in [bound.row for bound in bounds] + [bound.gold for bound in bounds if bound.gold is not None]:
        ends += [end for end in (row.residual_ratio, row.residual_upper) if end is not None]
    low, high = max(_LOWEST, min(ends)), min(_HIGHEST, max(ends))
    return Axis(low - 0.04, high + 0.04, left=_NAMES, right=_NUMBERS - 16)


def _bound_row(bound: Bound, axis: Axis, *, y: float) -> str:
    row, limit = bound.row, axis.place(bound.limit)
    drawn = [
        words(MARGIN, y + 4, attack_title(row), size=13, anchor="start"),
        f'<rect x="{axis.left:.1f}" y="{y - 11:.1f}" width="{limit - axis.left:.1f}" height="22" '
        'fill="currentColor" opacity="0.07"/>',
        line(limit, y - 11, limit, y + 11, width=3),
    ]
    if bound.missing:
        drawn.append(words(_NUMBERS, y + 4, bound.missing, size=13, anchor="start", bold=True))
        return "".join(drawn)
    upper = row.residual_upper
    end = axis.place(axis.high if upper is None else upper)
    start = end if row.residual_ratio is None else axis.place(row.residual_ratio)
    colour = GREEN if bound.is_within else ORANGE
    drawn.append(f'<line x1="{start:.1f}" x2="{end:.1f}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="3"/>')
    if row.residual_ratio is not None:
        drawn.append(f'<circle cx="{start:.1f}" cy="{y}" r="5" fill="{colour}" stroke="currentColor"/>')
    drawn.append(_end(end, y, colour, within=bound.is_within))
    if bound.gold is not None and bound.gold.residual_ratio is not None:
        drawn.append(_gold(axis.place(bound.gold.residual_ratio), y))
    drawn.append(words(_NUMBERS, y + 4, _said(bound), size=13, anchor="start", bold=not bound.is_within))
    return "".join(drawn)


def _end(x: float, y: float, colour: str, *, within: bool) -> str:
    """The bound: an upright end within the limit, a cross beyond it."""
    stroke = f'stroke="{colour}" stroke-width="3"'
    if within:
        return f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y - 6}" y2="{y + 6}" {stroke}/>'
    return (
        f'<path d="M{x - 5:.1f} {y - 5} L{x + 5:.1f} {y + 5} M{x - 5:.1f} {y + 5} L{x + 5:.1f} {y - 5}" '
        f'fill="none" {stroke}/>'
    )


def _gold(x: float, y: float) -> str:
    return f'<rect x="{x - 5:.1f}" y="{y - 5}" width="10" height="10" fill="none" stroke="currentColor"/>'


def _said(bound: Bound) -> str:
    upper = bound.row.residual_upper
    most = "no bound" if upper is None else f"at most {upper:.2f}"
    return f"{_number(bound.row.residual_ratio)}, {most}"


def _bounds_legend(has_gold: bool) -> str:
    y, x = _LEGEND + 4, float(MARGIN)
    parts = []
    samples = [
        (f'<circle cx="{{x}}" cy="{y}" r="5" fill="{GREEN}" stroke="currentColor"/>', "remains"),
        (f'<line x1="{{x}}" x2="{{x}}" y1="{y - 6}" y2="{y + 6}" stroke="{GREEN}" stroke-width="3"/>', "95 % bound"),
        ("cross", "bound beyond the limit"),
        (f'<line x1="{{x}}" x2="{{x}}" y1="{y - 9}" y2="{y + 9}" stroke="currentColor" stroke-width="3"/>', "limit"),
    ]
    samples += [("gold", "gold: never learned from the person")] if has_gold else []
    for sample, text in samples:
        at = x + 8
        mark = sample.replace("{x}", f"{at:.1f}")
        if sample == "cross":
            mark = _end(at, y, ORANGE, within=False)
        if sample == "gold":
            mark = _gold(at, y)
        parts.append(mark + words(at + 12, y + 4, text, anchor="start"))
        x += 44 + 6.4 * len(text)
    return "".join(parts)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}" if 0 < abs(value) < 0.01 else f"{value:.2f}"
