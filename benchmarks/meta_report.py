"""The results of the meta-evaluation as files: JSON for code, CSV of every score, a table and a picture for people."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Final

from ml.digests import canonical_json
from ml.files import write_atomically
from ml.trust import FEWEST_PAIRS, LOWEST_FAITHFULNESS, AttackTrust, KindVerdicts, MetaEvaluation

NAME: Final = "meta_evaluation"
_COLUMNS: Final = ("job", "learned", "attack", "position", "rank", "raw", "reason")
_RESULTS: Final = ("PASS", "FAIL", "INCONCLUSIVE")
_WIDTH, _LEFT, _ROW, _TOP = 720, 200, 26, 34


def write_results(directory: Path, results: MetaEvaluation, table: Sequence[Mapping[str, str | float]]) -> None:
    """Write all four files below `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    contents = {
        "json": canonical_json(results.to_document()) + b"\n",
        "csv": scores_csv(table).encode("utf-8"),
        "md": results_table(results).encode("utf-8"),
        "svg": faithfulness_svg(results.attacks).encode("utf-8"),
    }
    for ending, data in contents.items():
        write_atomically(directory / f"{NAME}.{ending}", data)


def scores_csv(table: Sequence[Mapping[str, str | float]]) -> str:
    """Every score: one line per job and attack."""
    out = io.StringIO()
    writer = csv.DictWriter(out, _COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in table)
    return out.getvalue()


def results_table(results: MetaEvaluation) -> str:
    """The results in Markdown: what was counted, every attack, every kind of candidate, the attacks kind by kind."""
    counts = results.attacks[0]
    lines = ["# Which attacks deserve to gate", ""]
    lines += [f"- {name}: {value}" for name, value in results.pool.items() if not name.endswith("sha256")]
    lines += [
        f"- counted: {counts.learned} (person, model) pairs where the model learned the person and "
        f"{counts.not_learned} where it did not, from {counts.models} distinct models; bounds draw whole models",
        f"- CPU minutes: {results.cpu_seconds / 60:.1f}",
        "",
        f"An attack may gate when the 95 % lower bound of its faithfulness is at least {LOWEST_FAITHFULNESS:.2f}, over "
        f"{FEWEST_PAIRS} or more pairs of each kind. A bootstrap cannot see what no model of the pool showed.",
        "",
        "Faithfulness reads the person's position among the twins, in twin standard deviations. R and Q are robustness "
        "to relearning and to rounding (8 and 4 bits, of people learned), in the symmetric / one-sided form.",
        "",
        "| attack | faithfulness (lower bound) | by rank | by raw score | R | Q | harmonic mean | may gate |",
        "|---|---|---|---|---|---|---|---|",
        *map(_attack_line, results.attacks),
        "",
        "The decision rule's verdicts, of all gates that were asked and of the attack families alone:",
        "",
        "| candidate | verdicts | attack families | reasons |",
        "|---|---|---|---|",
        *map(_kind_line, results.kinds),
        "",
        "Mean position of the person among the twins, in twin standard deviations:",
        "",
        *_positions(results.kinds),
        "",
    ]
    return "\n".join(lines)


def _attack_line(row: AttackTrust) -> str:
    numbers = row.numbers
    if row.faithfulness is None or row.lower is None:
        return f"| {row.attack} | not measured: {row.reason} | | | | | | no |"
    cells = [
        row.attack,
        f"{row.faithfulness:.3f} ({row.lower:.3f})",
        *(f"{numbers[f'{scale}_mean']:.3f} ({numbers[f'{scale}_lower']:.3f})" for scale in ("rank", "raw")),
        *(_two_forms(numbers, name) for name in ("relearning", "quantisation", "harmonic_mean")),
        "yes" if row.may_gate else "**no**",
    ]
    return f"| {' | '.join(cells)} |"


def _two_forms(numbers: Mapping[str, float], name: str) -> str:
    shown = [f"{numbers[key]:.2f}" if key in numbers else "-" for key in (name, f"{name}_one_sided")]
    return " / ".join(shown)


def _kind_line(row: KindVerdicts) -> str:
    verdicts, families = (
        ", ".join(f"{counts[result]} {result}" for result in _RESULTS if result in counts)
        for counts in (row.results, row.families)
    )
    return f"| {row.kind} | {verdicts} | {families} | {', '.join(row.reasons) or 'none'} |"


def _positions(kinds: Sequence[KindVerdicts]) -> list[str]:
    attacks = sorted({attack for row in kinds for attack in row.positions})
    lines = [f"| attack | {' | '.join(row.kind for row in kinds)} |", "|---" * (1 + len(kinds)) + "|"]
    for attack in attacks:
        cells = [f"{row.positions[attack]:.1f}" if attack in row.positions else "-" for row in kinds]
        lines.append(f"| {attack} | {' | '.join(cells)} |")
    return lines


def faithfulness_svg(rows: Sequence[AttackTrust]) -> str:
    """Each attack's faithfulness as a dot, its lower bound as a line, and the bound that lets it gate."""
    shown = sorted((row for row in rows if row.faithfulness is not None), key=lambda row: -(row.lower or 0.0))
    height = _TOP + len(shown) * _ROW + 30
    limit = _place(LOWEST_FAITHFULNESS)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" font-size="13" '
        'font-family="sans-serif">',
        "<title>Faithfulness of each attack with its 95 % lower bound</title>",
        f'<line x1="{limit:.1f}" x2="{limit:.1f}" y1="{_TOP - 8}" y2="{height - 26}" stroke="#d55e00" '
        'stroke-dasharray="5 4"/>',
        f'<text x="{limit:.1f}" y="{_TOP - 14}" text-anchor="middle" fill="currentColor">needed to gate</text>',
    ]
    for index, row in enumerate(shown):
        parts.append(_svg_row(row, _TOP + index * _ROW + _ROW / 2))
    for tick in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        parts.append(
            f'<text x="{_place(tick):.1f}" y="{height - 8}" text-anchor="middle" fill="currentColor">{tick:.1f}</text>'
        )
    return "".join([*parts, "</svg>\n"])


def _svg_row(row: AttackTrust, y: float) -> str:
    area, lower = row.faithfulness or 0.0, row.lower or 0.0
    colour = "#0072b2" if row.may_gate else "#6b6b6b"
    return (
        f'<text x="{_LEFT - 12}" y="{y + 4:.1f}" text-anchor="end" fill="currentColor">{escape(row.attack)}</text>'
        f'<line x1="{_place(lower):.1f}" x2="{_place(area):.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="{colour}" '
        f'stroke-width="3"/><circle cx="{_place(area):.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>'
    )


def _place(area: float) -> float:
    """Horizontal place of an area between 0.4 and 1; a smaller one lands on the edge."""
    return _LEFT + (max(0.4, area) - 0.4) / 0.6 * (_WIDTH - _LEFT - 20)
