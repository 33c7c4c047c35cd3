"""Pictures of relearning: how facts that are not taught come back while an attacker teaches the others again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from ml.pictures.svg import GREY, WIDTH, Axis, axis_around, drawing, line, moment_key, moment_line, words
from ml.reports import RelearningCurve

CURVE_HEAD: Final = ("When", "Epochs taught", "The person", "People never seen, mean", "Standard deviation")
_LEFT, _TOP, _ROOM, _LEGEND = 54, 14, 240, 76


def curve_svg(curves: Sequence[RelearningCurve], *, title: str, element_id: str) -> str:
    """Draw the person before (solid, dots) and after (dashed, squares), and people never seen as a band of two
    standard deviations around their mean after deletion."""
    across = Axis(0, max(max(curve.epochs) for curve in curves) or 1, left=_LEFT, right=WIDTH - 14)
    up = axis_around([end for curve in curves for end in _ends(curve)]) or Axis(0, 1)
    up = Axis(up.low, up.high, left=_TOP + _ROOM, right=_TOP)
    frame = f'<rect x="{_LEFT}" y="{_TOP}" width="{WIDTH - 14 - _LEFT}" height="{_ROOM}" {_FRAME}/>'
    epochs = sorted({epoch for curve in curves for epoch in curve.epochs})
    scale = "".join(words(across.place(epoch), _TOP + _ROOM + 16, f"{epoch}") for epoch in epochs)
    scale += "".join(words(_LEFT - 8, up.place(tick) + 4, f"{tick:g}", anchor="end") for tick in up.ticks())
    named = words(_LEFT + (WIDTH - 14 - _LEFT) / 2, _TOP + _ROOM + 34, "epochs of teaching the other facts again")
    turned = f'<g transform="translate(14 {_TOP + _ROOM / 2}) rotate(-90)">{words(0, 0, "nats above other values")}</g>'
    last = [curve for curve in curves if curve.moment == "after"] or list(curves)
    drawn = _band(last[-1], across, up) + "".join(_line(curve, across, up) for curve in curves)
    return drawing(
        f"{frame}{scale}{named}{turned}{drawn}{_legend([curve.moment for curve in curves])}",
        title=title,
        text=curve_summary(curves),
        element_id=element_id,
        width=WIDTH,
        height=_TOP + _ROOM + 44 + _LEGEND,
    )


def curve_summary(curves: Sequence[RelearningCurve]) -> str:
    """Say in words where the person and people never seen begin and end."""
    said = [
        f"{curve.moment} deletion the person goes from {curve.subject[0]:.2f} to {curve.subject[-1]:.2f} nats, people "
        f"never seen from {curve.twins_mean[0]:.2f} to {curve.twins_mean[-1]:.2f}"
        for curve in curves
    ]
    return f"Over {curves[0].epochs[-1]} epochs, {'; '.join(said)}."


def curve_rows(curves: Sequence[RelearningCurve]) -> Iterator[tuple[str, ...]]:
    """Yield the same as a table; the columns are `CURVE_HEAD`."""
    for curve in curves:
        points = zip(curve.epochs, curve.subject, curve.twins_mean, curve.twins_sd, strict=True)
        for epoch, own, mean, sd in points:
            yield curve.moment, str(epoch), f"{own:.3f}", f"{mean:.3f}", f"{sd:.3f}"


_FRAME: Final = 'fill="none" stroke="currentColor" opacity="0.5"'


def _ends(curve: RelearningCurve) -> Iterator[float]:
    yield from curve.subject
    for mean, sd in zip(curve.twins_mean, curve.twins_sd, strict=True):
        yield from (mean - 2 * sd, mean + 2 * sd)


def _band(curve: RelearningCurve, across: Axis, up: Axis) -> str:
    over = [(e, m + 2 * s) for e, m, s in zip(curve.epochs, curve.twins_mean, curve.twins_sd, strict=True)]
    under = [(e, m - 2 * s) for e, m, s in zip(curve.epochs, curve.twins_mean, curve.twins_sd, strict=True)]
    around = " ".join(f"{across.place(x):.1f},{up.place(y):.1f}" for x, y in (*over, *reversed(under)))
    middle = " ".join(
        f"{across.place(x):.1f},{up.place(y):.1f}" for x, y in zip(curve.epochs, curve.twins_mean, strict=True)
    )
    return (
        f'<polygon points="{around}" fill="{GREY}" opacity="0.25"/>'
        f'<polyline points="{middle}" fill="none" stroke="{GREY}" stroke-width="1.5"/>'
    )


def _line(curve: RelearningCurve, across: Axis, up: Axis) -> str:
    places = [(across.place(x), up.place(y)) for x, y in zip(curve.epochs, curve.subject, strict=True)]
    return moment_line(curve.moment, places)


def _legend(moments: Sequence[str]) -> str:
    top = _TOP + _ROOM + 52
    rows = [
        moment_key(moment, f"the person, {moment}", left=_LEFT, y=top + index * 22)
        for index, moment in enumerate(moments)
    ]
    y = top + len(moments) * 22
    rows.append(f'<rect x="{_LEFT}" y="{y - 6}" width="36" height="12" fill="{GREY}" opacity="0.25"/>')
    rows.append(line(_LEFT, y, _LEFT + 36, y))
    rows.append(words(_LEFT + 46, y + 5, "people never seen, two standard deviations", size=14, anchor="start"))
    return "".join(rows)
