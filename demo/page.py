"""`report.html`: the run on one page that needs no server, no script and no other file."""

from __future__ import annotations

from html import escape
from typing import Any, Final

from demo.results import Measured, table
from ml.pictures.evidence import Section, bounds_section, sections

_STYLE: Final = (
    ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;"
    "padding:0 1rem}h1{line-height:1.2}h2{margin:2.5rem 0 .75rem}pre{overflow-x:auto;font-size:.85rem;padding:.75rem;"
    "border:1px solid #8886}.pictures{display:grid;gap:1.5rem;"
    "grid-template-columns:repeat(auto-fill,minmax(min(100%,26rem),1fr))}"
    "figure{margin:0;min-width:0}figcaption{font-weight:600;margin:0 0 .4rem}"
    "svg.chart{display:block;width:100%;height:auto;border:1px solid #8884;border-radius:8px}"
    ".roc svg.chart{max-width:34rem}.small{font-size:.9rem;margin:.4rem 0}"
    ".soft{opacity:.8}details{margin:.25rem 0 1rem}summary{cursor:pointer}.scroll{overflow-x:auto}"
    ".out-of-sight{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}"
    ".verdict{font-weight:700}table{border-collapse:collapse}td,th{padding:.2rem .8rem .2rem 0;text-align:left}"
    "@media(max-width:40rem){td,th{overflow-wrap:anywhere}.scroll td,.scroll th{overflow-wrap:normal}}"
)


def report_page(summary: dict[str, Any], ours: Measured, gold: Measured | None, *, checked: str) -> str:
    """Lay out outcome, pictures, table, gates, what the offline check said, and stage times."""
    title, policy = f"Alice: {summary['outcome']}, verdict {summary['verdict']}", ours.policy
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
        + _section(bounds_section(ours.report, policy, None if gold is None else gold.report))
        + f"<h2>Before, after, controls, gold</h2><pre>{escape(chr(10).join(table(ours, gold, summary['bob'])))}</pre>"
        + f"<h2>Gates</h2>{_gates(ours)}"
        + "".join(map(_section, sections(ours.report, policy)))
        + f"<h2>What anybody’s offline check says</h2><pre>{escape(checked)}</pre>"
        + f"<h2>Seconds by stage</h2><table>{rows}</table></body></html>\n"
    )


def _section(section: Section) -> str:
    return f'<section class="{section.id}"><h2>{escape(section.title)}</h2>{section.html}</section>'


def _gates(ours: Measured) -> str:
    rows = "".join(
        f"<tr><td>{escape(gate.gate)}</td><td>{escape(str(gate.kind))}</td><td>{escape(str(gate.result))}</td></tr>"
        for gate in ours.verdict.gates
    )
    return f"<table><thead><tr><th>Gate</th><th>Kind</th><th>Result</th></tr></thead><tbody>{rows}</tbody></table>"
