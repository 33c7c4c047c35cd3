"""A picture of Holm's correction: each family in both directions, its joint p-value, and what is left of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

from ml.decision import HolmStep
from ml.pictures.svg import GREEN, MARGIN, ORANGE, Axis, drawing, line, ruler, words

HOLM_HEAD: Final = ("Step", "Family", "Direction", "Joint p", "Times", "After Holm", "Shown")
DIRECTIONS: Final = {"residual": "stands out", "over_forgetting": "lies below"}
_PAPER, _NAMES, _NUMBERS = 760, 200, 640
_STEP, _HEAD = 24, 30


def holm_svg(steps: Sequence[HolmStep], *, alpha: float, title: str, element_id: str) -> str:
    """Draw one row a step: a dot at the joint p-value, a ring after the correction, an upright line at `alpha`."""
    lowest = min([alpha, *(step.p for step in steps if step.p)])
    axis = Axis(math.floor(math.log10(lowest)) - 0.1, 0.1, left=_NAMES, right=_NUMBERS - 16)
    base = _HEAD + len(steps) * _STEP
    level = axis.place(math.log10(alpha))
    rows = "".join(_row(step, axis, alpha, y=_HEAD + (i + 0.5) * _STEP) for i, step in enumerate(steps))
    scale = ruler(axis, top=base + 6, label="power of ten of the p-value (left: less likely by chance)")
    return drawing(
        f"{line(level, _HEAD, level, base, width=2)}{words(level, _HEAD - 8, f'{alpha:g}')}{rows}{scale}",
        title=title,
        text=holm_summary(steps, alpha=alpha),
        element_id=element_id,
        width=_PAPER,
        height=base + 46,
    )


def holm_summary(steps: Sequence[HolmStep], *, alpha: float) -> str:
    """Say in words which families stand out after the correction."""
    shown = [f"{step.family} {DIRECTIONS[step.direction]}" for step in steps if _is_shown(step, alpha)]
    return f"After Holm at {alpha:g}: {', '.join(shown)}." if shown else f"After Holm at {alpha:g} nothing stands out."


def holm_rows(steps: Sequence[HolmStep], *, alpha: float) -> Iterator[tuple[str, ...]]:
    """Yield the same as a table; the columns are `HOLM_HEAD`."""
    for number, step in enumerate(steps):
        p = "missing, counts as 1" if step.p is None else f"{step.p:.3g}"
        times, verdict = str(len(steps) - number), "yes" if _is_shown(step, alpha) else "no"
        yield (str(number + 1), step.family, DIRECTIONS[step.direction], p, times, f"{step.adjusted:.3g}", verdict)


def _is_shown(step: HolmStep, alpha: float) -> bool:
    return step.adjusted <= alpha


def _row(step: HolmStep, axis: Axis, alpha: float, *, y: float) -> str:
    name = words(MARGIN, y + 4, f"{step.family} {DIRECTIONS[step.direction]}", size=13, anchor="start")
    if step.p is None:
        return name + words(_NUMBERS, y + 4, "missing", size=13, anchor="start", bold=True)
    colour = ORANGE if _is_shown(step, alpha) else GREEN
    start, end = (axis.place(math.log10(max(p, 1e-12))) for p in (step.p, step.adjusted))
    said = f"{step.p:.2g} → {step.adjusted:.2g}"
    return (
        f"{name}{line(start, y, end, y)}"
        f'<circle cx="{start:.1f}" cy="{y:.1f}" r="5" fill="{colour}" stroke="currentColor"/>'
        f'<circle cx="{end:.1f}" cy="{y:.1f}" r="5" fill="none" stroke="{colour}" stroke-width="2.5"/>'
        f"{words(_NUMBERS, y + 4, said, size=13, anchor='start', bold=_is_shown(step, alpha))}"
    )
