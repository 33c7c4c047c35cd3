"""What the pages show of earlier deletions: by the ids of requests, on each version that was tested."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from deletion_service.certificates.models import Sweep
from deletion_service.certificates.sweep_document import SweepDocument, request_of
from deletion_service.certificates.sweeps import open_sweep
from deletion_service.console import ledger_charts
from deletion_service.console.ledger_charts import Retested
from deletion_service.targets.ledger import vault_until
from deletion_service.targets.models import LedgerEntry, Sentinel, TrainedModel
from ml.cohorts import swept_rules
from ml.decision import Finding
from ml.pictures.evidence import Picture, Section
from ml.sweep_reports import SweepEntry

_HEADING: Final = "What remains over versions"
REASONS: Final = {
    Sweep.Reason.NO_EARLIER_DELETIONS: "no earlier deletions",
    Sweep.Reason.ERROR: "the job failed; try it again",
}


@dataclass(frozen=True, slots=True)
class SweepLine:
    """One sweep for a page: its result, what was tested, and what was found, with what to do about it."""

    sweep: Sweep
    said: str
    findings: tuple[Finding, ...]
    brought_back: tuple[str, ...]
    alarms: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EntryLine:
    """One deletion for a page: what stands for it, and how the newest version that was tested for it came out."""

    entry: LedgerEntry
    stands: str
    newest: Retested | None


def sweep_line(sweep: Sweep) -> SweepLine:
    """Lay out a sweep; it is opened and judged again."""
    document = open_sweep(sweep)
    if document is None:
        return SweepLine(sweep, REASONS[Sweep.Reason(sweep.reason)], (), (), ())
    shown, verdict = document.coverage, document.judged_again()
    said = (
        f"{shown.earlier - shown.not_tested} of {shown.earlier} earlier deletions tested again: {shown.by_spike_in} by "
        f"spike-ins, {shown.by_vault} by sealed probes; {shown.not_tested} could not be"
    )
    return SweepLine(sweep, said, verdict.findings, document.brought_back, verdict.alarms)


def entry_lines(model: TrainedModel, points: Sequence[Retested]) -> list[EntryLine]:
    """Lay out the ledger of a model, oldest deletion first."""
    newest = {point.number: point for point in sorted(points, key=lambda point: point.version)}
    rows = model.ledger.select_related("target__request").prefetch_related("target__sentinels").order_by("number")
    return [EntryLine(row, _stands(row), newest.get(row.number)) for row in rows]


def tested_points(sweeps: Sequence[Sweep]) -> list[Retested]:
    """Return what the newest sweep of each version measured of each deletion."""
    newest = {sweep.version_id: sweep for sweep in sorted(sweeps, key=lambda sweep: sweep.attempt)}
    points: list[Retested] = []
    for sweep in newest.values():
        document = open_sweep(sweep)
        points += [] if document is None else _points(sweep.version.number, document)
    return points


def ledger_section(sweeps: Sequence[Sweep], points: Sequence[Retested]) -> Section:
    """The picture of what remains over versions, with its table; a note where there is nothing to draw."""
    if not points:
        return Section("remains", _HEADING, (), ("No version was tested for earlier deletions yet.",))
    title = "What remains of each deletion, version by version"
    limit = min(_limits(sweeps), default=1.0)
    picture = Picture(
        title,
        ledger_charts.remains_svg(points, limit=limit, title=title, element_id="remains-over-versions"),
        ledger_charts.remains_summary(points, limit=limit),
        ledger_charts.LEDGER_HEAD,
        tuple(ledger_charts.remains_rows(points)),
    )
    note = (
        "Each line is one deletion, by its number; discs are spike-ins, squares sealed probes, crosses lie beyond the "
        "limit. The highest share over the attacks is drawn. A deletion without scores from before has no share."
    )
    return Section("remains", _HEADING, (picture,), (note,), wide=True)


def _limits(sweeps: Sequence[Sweep]) -> Iterator[float]:
    for sweep in sweeps:
        document = open_sweep(sweep)
        if document is not None:
            yield from (rule.rho for rule in swept_rules(document.policy))


def _points(version: int, document: SweepDocument) -> Iterator[Retested]:
    back = set(document.brought_back)
    for row in document.report.entries:
        yield Retested(
            number=row.deletions_so_far,
            request_id=request_of(row.id),
            version=version,
            by=row.kind,
            remains=max(row.residual_ratios.values(), default=None),
            p=None if row.draws is None else row.draws.p,
            result=_result(row, came_back=request_of(row.id) in back),
        )


def _result(row: SweepEntry, *, came_back: bool) -> str:
    if row.status != "measured":
        return f"not tested: {row.reason}".replace("_", " ")
    return "back" if came_back else "flagged, not confirmed" if row.flagged else "not back"


def _stands(entry: LedgerEntry) -> str:
    kinds = {row.kind: row for row in entry.target.sentinels.all()}
    said = []
    if Sentinel.Kind.SPIKE_IN in kinds:
        said.append(f"spike-in {kinds[Sentinel.Kind.SPIKE_IN].mark}")
    if Sentinel.Kind.VAULT in kinds:
        until = vault_until(entry.target)
        said.append("probes destroyed" if until is None else f"sealed probes until {until.isoformat()}")
    return ", ".join(said) or "nothing: it cannot be tested again"
