"""The gate table as a page shows it: what a policy asked, where, and what came of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from deletion_service.certificates.evaluation import GateRow
from ml.reports import AttackResult

KINDS: Final = {
    "integrity": "Integrity",
    "validity": "Validity of the controls",
    "family": "Attack family",
    "hard_rule": "Hard rule",
    "utility": "Utility",
}


@dataclass(frozen=True, slots=True)
class GateLine:
    """One line: a gate itself (`heading`), or the numbers of one attack, bound or score below it."""

    heading: bool
    kind: str
    gate: str
    attack: str
    artefact: str
    before: str
    after: str
    controls: str
    bound: str
    interval: str
    accepted: str
    p_values: str
    n: str
    result: str


def gate_lines(rows: Iterable[GateRow], attacks: Iterable[AttackResult]) -> list[GateLine]:
    """Lay out gate rows; an attack's row is matched with its report by family, attack and artefact."""
    known = {f"{a.family}.{a.attack}.{a.artefact}": a for a in attacks}
    return [_line(row, known.get(row.id)) for row in rows]


def _line(row: GateRow, attack: AttackResult | None) -> GateLine:
    return GateLine(
        heading=row.kind in KINDS,
        kind=KINDS.get(row.kind, row.kind),
        gate=row.gate.replace("_", " "),
        attack=_attack(row, attack),
        artefact=attack.artefact if attack else "",
        before=_short(row.before),
        after=_short(row.after),
        controls=_controls(row),
        bound=_short(row.value),
        interval=_span(row.ci95),
        accepted=_span(row.interval),
        p_values=_p_values(attack),
        n=row.n or "",
        result=row.result,
    )


def _attack(row: GateRow, attack: AttackResult | None) -> str:
    name = attack.attack if attack else row.id.removeprefix(f"{row.gate}.")
    return name.replace("_", " ")


def _p_values(attack: AttackResult | None) -> str:
    shown = (attack.p_residual, attack.p_detect) if attack else ()
    return ", ".join("-" if p is None else f"{p:.2g}" for p in shown)


def _controls(row: GateRow) -> str:
    if row.reference_value is None:
        return ""
    return f"{_short(row.reference_value)} (of {row.controls})" if row.controls else _short(row.reference_value)


def _span(ends: tuple[str | None, str | None] | None) -> str:
    if ends is None or ends == (None, None):
        return ""
    low, high = (_short(end) for end in ends)
    if not low:
        return f"at most {high}"
    return f"{low} to {high}" if high else f"at least {low}"


def _short(number: str | None) -> str:
    return "" if number is None else f"{float(number):.3g}"
