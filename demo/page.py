"""`report.html`: the run on one page that needs no server, no script and no other file."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any, Final

from deletion_service.console.charts import energy_summary, energy_svg, separation_summary, shared_axis
from demo.results import Measured, table
from ml.reports import EnergyPicture

_STYLE: Final = (
    ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;"
    "padding:0 1rem}h1{line-height:1.2}pre{overflow-x:auto;font-size:.85rem;padding:.75rem;border:1px solid #8886}"
    ".pictures{display:flex;flex-wrap:wrap;gap:1.5rem}.pictures figure{margin:0;flex:1 1 24rem}"
    "svg{width:100%;height:auto}.verdict{font-weight:700}table{border-collapse:collapse}"
    "td,th{padding:.2rem .8rem .2rem 0;text-align:left}"
)


def report_page(summary: dict[str, Any], ours: Measured, gold: Measured | None, *, checked: str) -> str:
    """Lay out outcome, pictures, table, gates, what the offline check said, and stage times."""
    title = f"Alice: {summary['outcome']}, verdict {summary['verdict']}"
    rows = "".join(
        f"<tr><td>{escape(kind)}</td><td>{seconds} s</td></tr>" for kind, seconds in summary["stages"].items()
    )
    found = "".join(f"<li>{escape(text)}</li>" for text in summary["findings"])
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(title)}</h1><p>Method “{escape(summary['method'])}”, seed {summary['seed']}.</p>"
        + (f"<h2>Why not PASS</h2><ul>{found}</ul>" if found else "")
        + f"<h2>Energies</h2>{_pictures(ours)}"
        + f"<h2>Before, after, controls, gold</h2><pre>{escape(chr(10).join(table(ours, gold, summary['bob'])))}</pre>"
        + f"<h2>Gates</h2>{_gates(ours)}"
        + f"<h2>What anybody’s offline check says</h2><pre>{escape(checked)}</pre>"
        + f"<h2>Seconds by stage</h2><table>{rows}</table></body></html>\n"
    )


def _pictures(ours: Measured) -> str:
    axis = shared_axis(ours.report.energies)
    if axis is None:
        return "<p>Nothing was measured, so there is nothing to draw.</p>"
    figures = "".join(
        f"<figure><h3>{words}</h3>"
        f"{energy_svg(_of(ours.report.energies, moment), axis=axis, title=words, element_id=moment)}"
        f"<figcaption>{escape(energy_summary(_of(ours.report.energies, moment)))}</figcaption></figure>"
        for moment, words in (("before", "Before unlearning"), ("after", "After unlearning"))
    )
    told = "".join(f"<p>{escape(text)}</p>" for text in separation_summary(ours.report.separation))
    return f'<div class="pictures">{figures}</div>{told}'


def _of(pictures: Sequence[EnergyPicture], moment: str) -> list[EnergyPicture]:
    return [picture for picture in pictures if picture.moment == moment]


def _gates(ours: Measured) -> str:
    rows = "".join(
        f"<tr><td>{escape(gate.gate)}</td><td>{escape(str(gate.kind))}</td><td>{escape(str(gate.result))}</td></tr>"
        for gate in ours.verdict.gates
    )
    return f"<table><thead><tr><th>Gate</th><th>Kind</th><th>Result</th></tr></thead><tbody>{rows}</tbody></table>"
