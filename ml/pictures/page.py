"""Evidence on one page that needs no server, no script and no other file."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Final

from ml.command_line import finding_line
from ml.decision import Verdict
from ml.pictures.evidence import Section, bounds_section, sections
from ml.reports import VerificationReport
from ml.specs import VerdictPolicy

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


def page(title: str, parts: Iterable[str]) -> str:
    """Return a whole page of parts that are HTML already; the title is escaped here."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(title)}</h1>{''.join(parts)}</body></html>\n"
    )


def section_html(section: Section) -> str:
    """A section of pictures with its heading."""
    return f'<section class="{section.id}"><h2>{escape(section.title)}</h2>{section.html}</section>'


def gates_html(verdict: Verdict) -> str:
    """The gate table: every family, rule and check with its result."""
    rows = "".join(
        f"<tr><td>{escape(gate.gate)}</td><td>{escape(str(gate.kind))}</td><td>{escape(str(gate.result))}</td></tr>"
        for gate in verdict.gates
    )
    return (
        "<h2>Gates</h2><table><thead><tr><th>Gate</th><th>Kind</th><th>Result</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )


def evidence_page(
    report: VerificationReport, verdict: Verdict, policy: VerdictPolicy, *, gold: VerificationReport | None = None
) -> str:
    """Lay out one verification: verdict, why it is not a PASS, pictures, gates, and the numbers as plain text.

    Args:
        gold: the same measured on a model that never learned from the person, where there is one.
    """
    why = "".join(f"<li>{escape(finding_line(f))}: {escape(f.remedy)}</li>" for f in verdict.findings)
    flags = f"<p>{escape(', '.join(verdict.flags))}</p>" if verdict.flags else ""
    parts = [f"<p>Policy “{escape(policy.name)}”, attempt {report.attempt}.</p>{flags}"]
    parts += [f"<h2>Why not PASS</h2><ul>{why}</ul>"] if why else []
    parts += [section_html(bounds_section(report, policy, gold)), gates_html(verdict)]
    parts += [section_html(section) for section in sections(report, policy)]
    return page(f"Verdict {verdict.result}", parts)
