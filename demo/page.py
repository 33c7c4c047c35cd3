"""`report.html`: the run on one page that needs no server, no script and no other file."""

from __future__ import annotations

from html import escape
from typing import Any

from demo.results import Measured, table
from ml.pictures.evidence import bounds_section, sections
from ml.pictures.page import gates_html, page, section_html


def report_page(summary: dict[str, Any], ours: Measured, gold: Measured | None, *, checked: str) -> str:
    """Lay out outcome, pictures, table, gates, what the offline check said, and stage times."""
    rows = "".join(
        f"<tr><td>{escape(kind)}</td><td>{seconds} s</td></tr>" for kind, seconds in summary["stages"].items()
    )
    numbers = "\n".join(table(ours, gold, summary["bob"]))
    found = "".join(f"<li>{escape(text)}</li>" for text in summary["findings"])
    return page(
        f"Alice: {summary['outcome']}, verdict {summary['verdict']}",
        [
            f"<p>Method “{escape(summary['method'])}”, seed {summary['seed']}.</p>",
            f"<h2>Why not PASS</h2><ul>{found}</ul>" if found else "",
            section_html(bounds_section(ours.report, ours.policy, None if gold is None else gold.report)),
            f"<h2>Before, after, controls, gold</h2><pre>{escape(numbers)}</pre>",
            gates_html(ours.verdict),
            *map(section_html, sections(ours.report, ours.policy)),
            f"<h2>What anybody’s offline check says</h2><pre>{escape(checked)}</pre>",
            f"<h2>Seconds by stage</h2><table>{rows}</table>",
        ],
    )
