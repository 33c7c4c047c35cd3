"""One panel of a benchmark's picture: a frame with two axes that begin at zero, and what is drawn in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from ml.pictures.svg import Axis, line, ruler, words

DASHES: Final = ("", ' stroke-dasharray="6 4"', ' stroke-dasharray="2 3"')
"""How several curves of one panel differ for those who see no colours."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """Where a panel's frame lies and how far its axes reach.

    Args:
        size: width and height.
        inside: left, top, right and bottom of the frame, as distances from the panel's edges.
        reach: the largest values across and up.
    """

    size: tuple[int, int]
    inside: tuple[int, int, int, int]
    reach: tuple[float, float]

    @cached_property
    def across(self) -> Axis:
        """The horizontal axis."""
        left, _, right, _ = self.inside
        return Axis(0.0, self.reach[0], left, self.size[0] - right)

    @cached_property
    def up(self) -> Axis:
        """The vertical axis, as heights above the frame's floor."""
        _, top, _, bottom = self.inside
        return Axis(0.0, self.reach[1], 0.0, self.size[1] - top - bottom)

    @property
    def floor(self) -> float:
        """Where the frame ends below."""
        return float(self.size[1] - self.inside[3])

    def frame(self, title: str, *, below: str, beside: str) -> str:
        """Return title, axes and their labels."""
        width, _ = self.size
        left, top, right, _ = self.inside
        parts = [
            words(left, 22, title, size=14, anchor="start", bold=True),
            ruler(self.across, top=self.floor + 6, label=below),
            line(left, self.floor, width - right, self.floor),
            line(left, top, left, self.floor),
        ]
        for tick in self.up.ticks():
            _, y = self.place(0.0, tick)
            parts += [line(left - 5, y, left, y), words(left - 8, y + 4, f"{tick:g}", anchor="end")]
        parts.append(words(left + 4, top - 4, beside, size=11, anchor="start"))
        return "".join(parts)

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Return where a point lies."""
        return self.across.place(x), self.floor - self.up.place(y)

    def curve(self, points: Points, colour: str, *, dashes: str = "", dots: bool = False, name: str = "") -> str:
        """Return a line through `points`, with a dot on each and its name at the end where asked."""
        placed = [self.place(x, y) for x, y in points]
        way = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        drawn = f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>'
        if dots:
            drawn += "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in placed)
        if name:
            drawn += words(placed[-1][0] + 6, placed[-1][1] + 4, name, size=11, anchor="start")
        return drawn

    def key(self, number: int, name: str, colour: str, *, dashes: str = "", indent: float = 96) -> str:
        """Return one line of a legend, `indent` to the right of the frame's left edge."""
        x, y = self.inside[0] + indent, self.inside[1] + 8 + 16 * number
        stroke = f'fill="none" stroke="{colour}" stroke-width="2"{dashes}'
        return f'<polyline points="{x:g},{y:g} {x + 28:g},{y:g}" {stroke}/>' + words(
            x + 34, y + 4, name, anchor="start"
        )
