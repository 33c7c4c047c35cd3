"""Error rates as files: JSON for code, a table and curves for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.panels import DASHES, Panel
from ml.digests import canonical_json
from ml.files import write_atomically
from ml.pictures.svg import BLUE, GREEN, ORANGE, drawing

NAME: Final = "error_rates"
VERDICTS: Final = ("PASS", "INCONCLUSIVE", "FAIL")
_PANEL: Final = (470, 320)
_INSIDE: Final = (58, 44, 18, 58)
_COLOURS: Final = (BLUE, ORANGE, GREEN)


@dataclass(frozen=True, slots=True)
class Rate:
    """How often something happened, with one-sided 95 % bounds; trials of one half share a model and its twins."""

    what: str
    happened: int
    trials: int
    lower: float
    upper: float


@dataclass(frozen=True, slots=True)
class ByFacts:
    """What gold models show about people with so many facts: the median strength d- of each family (`None`: nobody's
    was measurable), and verdicts."""

    facts: int
    strength: Mapping[str, float | None]
    verdicts: Mapping[str, int]

    def share(self, verdict: str) -> float:
        """The share of people who got this verdict."""
        return self.verdicts[verdict] / sum(self.verdicts.values())


def write_results(
    directory: Path, table: Sequence[Rate], curve: Sequence[ByFacts], *, cpu_minutes: float, sizes: Mapping[str, Any]
) -> None:
    """Write all three files below `directory`."""
    document = {
        "cpu_minutes": f"{cpu_minutes:.1f}",
        "sizes": dict(sizes),
        "rates": [asdict(row) | {"lower": f"{row.lower:.4f}", "upper": f"{row.upper:.4f}"} for row in table],
        "by_facts": [
            {
                "facts": row.facts,
                "verdicts": row.verdicts,
                "strength": {f: None if d is None else f"{d:.2f}" for f, d in row.strength.items()},
            }
            for row in curve
        ],
    }
    contents = {
        "json": canonical_json(document) + b"\n",
        "md": tables(table, curve, cpu_minutes=cpu_minutes).encode("utf-8"),
        "svg": picture(curve).encode("utf-8"),
    }
    for ending, data in contents.items():
        write_atomically(directory / f"{NAME}.{ending}", data)


def tables(table: Sequence[Rate], curve: Sequence[ByFacts], *, cpu_minutes: float) -> str:
    """How often each thing happened, and what the picture shows."""
    families = list(curve[0].strength)
    lines = ["# How often the rule is wrong", "", f"{cpu_minutes:.0f} CPU minutes.", ""]
    lines += ["| what happened | times | trials | share | 95 % bounds, one-sided |", "|---|---|---|---|---|"]
    for row in table:
        share = row.happened / row.trials
        bounds = f"{row.lower:.3f} to {row.upper:.3f}"
        lines.append(f"| {row.what} | {row.happened} | {row.trials} | {share:.3f} | {bounds} |")
    head = ("facts", *(f"d- of {family}" for family in families), *VERDICTS)
    lines += ["", "## Gold by number of facts", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for point in curve:
        strengths = (shown(point.strength[family], 1) for family in families)
        shares = (f"{point.share(verdict):.3f}" for verdict in VERDICTS)
        lines.append(f"| {' | '.join([str(point.facts), *strengths, *shares])} |")
    return "\n".join([*lines, ""])


def shown(value: float | None, places: int) -> str:
    """A number; a dash where there is none."""
    return "-" if value is None else f"{value:.{places}f}"


def picture(curve: Sequence[ByFacts]) -> str:
    """Two panels against the number of facts: the strength of each family, and the share of each verdict on gold."""
    width, height = _PANEL
    strengths = {
        family: [(point.facts, d) for point in curve if (d := point.strength[family]) is not None]
        for family in curve[0].strength
    }
    shares = {verdict: [(point.facts, point.share(verdict)) for point in curve] for verdict in VERDICTS}
    text = "; ".join(
        f"{point.facts} facts: {point.share('PASS'):.0%} pass, {point.share('INCONCLUSIVE'):.0%} are inconclusive"
        for point in curve
    )
    body = _panel("How strong each family is", "median d-", strengths, room=1.04) + (
        f'<g transform="translate({width} 0)">{_panel("Verdicts on gold models", "share", shares, room=1.3)}</g>'
    )
    return drawing(body, title="Strength and verdicts", text=text, element_id=NAME, width=2 * width, height=height)


def _panel(title: str, beside: str, curves: Mapping[str, Sequence[tuple[int, float]]], *, room: float) -> str:
    farthest, highest = (max((point[i] for points in curves.values() for point in points), default=1) for i in (0, 1))
    panel = Panel(_PANEL, _INSIDE, (farthest * 1.04, highest * room))
    parts = [panel.frame(title, below="facts", beside=beside)]
    for number, (name, points) in enumerate(curves.items()):
        colour, dashes = _COLOURS[number], DASHES[number]
        drawn = [(float(x), y) for x, y in points]
        if drawn:
            parts.append(panel.curve(drawn, colour, dashes=dashes, dots=True))
        parts += [panel.key(number, name, colour, dashes=dashes)]
    return "".join(parts)
