"""Test every earlier deletion again on a later version: the entry point of sweeps, and its command line.

    python -m ml.sweep --model DIR --base DIR --ledger FILE --bank FILE --retain FILE --out DIR [--policy NAME]
        [--artefacts NAME ...] [--window N] [--date YYYY-MM-DD] [--seed N] [--threads N] [--record]

The ledger is a JSON document (`ml.specs.DeletionLedger`) that names deletions by the opaque ids of their requests.
The report decides nothing: `ml.sweep_decision.judge_sweep` turns it into a verdict. Nothing here may print or store a
name, a value or a text outside the parts directory.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
import transformers
from scipy import stats

from ml.cohort_reports import CohortBound
from ml.cohorts import SlopeAlarm, cohort_certificate, sequential_limit, slope_alarm, version_level
from ml.command_line import (
    EXIT_CODES,
    USAGE_ERROR,
    cohort_lines,
    file_ref,
    finding_line,
    print_progress,
    shown_number,
    write_document,
)
from ml.data.questions import read_bank
from ml.data.records import read_records, refuse_overlap
from ml.digests import verify_file
from ml.errors import MlError, SpecError
from ml.loop import never_stop
from ml.metrics.intervals import clopper_pearson_upper
from ml.models.load import model_ref
from ml.models.served import copies, refuse_missing_loader
from ml.policies import load_policy
from ml.rank_tests import residual_ratio
from ml.reports import ValidityCheck
from ml.specs import (
    DeletionLedger,
    FileRef,
    LedgerEntry,
    ProgressCallback,
    StopCheck,
    SweepSpec,
    calendar_date,
    seed_commitment,
)
from ml.sweep_decision import SweepVerdict, flags, judge_sweep, spike_in_certificate
from ml.sweep_reports import SweepEntry, SweepReport
from ml.verification.bench import Models
from ml.verification.checks import at_least, at_most
from ml.verification.retest import Series, Stage, UntestedError, confirm


@dataclass(frozen=True, slots=True)
class _Tested:
    """An entry's row of the report, and the measurements behind it where there are any."""

    row: SweepEntry
    series: Series | None = None


def run_sweep(spec: SweepSpec, *, on_progress: ProgressCallback, should_stop: StopCheck) -> SweepReport:
    """Test every entry of the ledger on the candidate.

    1. Check the seed against its commitment; read the ledger, never a vault past its date.
    2. Each entry: the subject against 39 fresh twins, then further ones while the sequential rule asks for them.
    3. Flag by Benjamini-Hochberg over all entries; test flagged ones again in fresh words with fresh twins.
    4. Assemble: the cohort's bound, spike-ins, slope, validity.

    Finished parts are kept below `spec.parts_dir` and never repeated. An entry that cannot be tested is reported with
    its reason; the others go on.

    Raises:
        RunStoppedError: `should_stop` said so; run again to continue.
        SpecError: the seed is not the one committed to, or the ledger is malformed.
        MlError: an input is not what its digest says.
    """
    started = time.process_time()
    if seed_commitment(spec.run_id, spec.seed) != spec.seed_commitment_sha256:
        raise SpecError(f"the seed of sweep {spec.run_id} is not the one that was committed to")
    if not spec.artefacts or not {"merged", *copies(0)}.issuperset(spec.artefacts):
        raise SpecError(f"a sweep tests at least one artefact of merged, {', '.join(copies(0))}")
    refuse_missing_loader(spec.artefacts)
    ledger, stage = read_ledger(spec.ledger), _stage(spec, on_progress, should_stop)
    q = version_level(spec.window)
    limit = sequential_limit(len(ledger.entries), q)
    tested = [_test(stage, entry, limit) for entry in ledger.entries]
    rows = [
        replace(one.row, flagged=flagged)
        for one, flagged in zip(tested, flags([one.row for one in tested], q=q), strict=True)
    ]
    for index, entry in enumerate(ledger.entries):
        if rows[index].flagged:
            rows[index] = _confirmed(stage, entry, rows[index], limit)
    measured = [one for one in tested if one.series is not None]
    return SweepReport(
        run_id=spec.run_id,
        as_of=spec.as_of,
        policy_sha256=spec.policy.sha256,
        ledger_sha256=spec.ledger.sha256,
        models={"candidate": spec.candidate.manifest_sha256, "base": spec.base.manifest_sha256},
        artefacts=spec.artefacts,
        q=q,
        window=spec.window,
        entries=tuple(rows),
        cohort=tuple(_cohort(stage, measured)),
        spike_ins=spike_in_certificate(rows, spec.policy, clopper_pearson_upper),
        slope=_slope(rows, spec.seed),
        validity=tuple(_validity(stage, measured)),
        seeds={"sweep": str(spec.seed), "commitment_sha256": spec.seed_commitment_sha256},
        environment=_environment(spec),
        cpu_seconds=_cpu_seconds(measured, time.process_time() - started),
        notes=_notes(rows),
    )


def record_scores(spec: SweepSpec, *, on_progress: ProgressCallback, should_stop: StopCheck) -> DeletionLedger:
    """Fill in what a sweep later needs of each entry, from the model before its deletion (`spec.candidate`).

    Raises:
        SpecError: an entry cannot be asked about; nothing would be on record for it.
        RunStoppedError, MlError: as `run_sweep`.
    """
    ledger = read_ledger(spec.ledger)
    stage = _stage(replace(spec, artefacts=("merged",)), on_progress, should_stop)
    try:
        entries = [replace(entry, before=_series(stage, entry, "sweep").record()) for entry in ledger.entries]
    except UntestedError as exc:
        raise SpecError(f"an entry of the ledger cannot be asked about: {exc.reason}") from exc
    return replace(ledger, entries=tuple(entries))


def read_ledger(ref: FileRef) -> DeletionLedger:
    """Read a ledger by digest; raises `SpecError` naming the place that does not fit."""
    verify_file(Path(ref.path), ref.sha256)
    try:
        document = json.loads(Path(ref.path).read_text(encoding="utf-8"))
    except ValueError as exc:
        raise SpecError("the deletion ledger is not JSON") from exc
    return DeletionLedger.from_document(document)


def _stage(spec: SweepSpec, on_progress: ProgressCallback, should_stop: StopCheck) -> Stage:
    # Every entry asks candidate and base in turn; loading them again each time would cost more than the questions.
    refs = {"merged": spec.candidate, "base": spec.base}
    models = Models(refs, device=spec.device, dtype=spec.dtype, keep=True)
    models.refuse_other_tokenizers()
    retain = read_records(spec.retain, what="retain set")
    return Stage(spec, retain, read_bank(spec.question_bank), models, on_progress, should_stop)


# --- entries ------------------------------------------------------------------------------------------------------


def _test(stage: Stage, entry: LedgerEntry, limit: int) -> _Tested:
    """One entry's first test; what cannot be tested says why."""
    kind = "expired" if _has_expired(entry, stage.spec.as_of) else entry.kind
    blank = SweepEntry(entry.id, kind, entry.deletions_so_far, "untested")
    try:
        series = _series(stage, entry, "sweep")
        draws = series.compare(limit)
    except UntestedError as exc:
        return _Tested(replace(blank, reason=exc.reason))
    ratios = _residual_ratios(stage, series)
    return _Tested(replace(blank, status="measured", items=series.items, draws=draws, residual_ratios=ratios), series)


def _has_expired(entry: LedgerEntry, as_of: str) -> bool:
    today = calendar_date(as_of, where="sweep")
    return entry.expires_on is not None and calendar_date(entry.expires_on, where="vault") <= today


def _series(stage: Stage, entry: LedgerEntry, purpose: str) -> Series:
    """Open an entry's probes; raises `UntestedError` where they may not be opened, are missing or of no use."""
    if _has_expired(entry, stage.spec.as_of):
        raise UntestedError("vault_expired")
    if entry.probes is None:
        raise UntestedError("coverage")
    try:
        records = read_records(entry.probes, what="probes")
        refuse_overlap(records, stage.retain)
        return Series(stage, entry, records, purpose)
    except MlError as exc:
        raise UntestedError(exc.code) from exc


def _confirmed(stage: Stage, entry: LedgerEntry, row: SweepEntry, limit: int) -> SweepEntry:
    try:
        return replace(row, confirmation=confirm(_series(stage, entry, "confirm"), limit))
    except UntestedError:
        return row


def _residual_ratios(stage: Stage, series: Series) -> dict[str, float]:
    """rho-hat by primary attack, the highest over artefacts, where earlier scores are on record."""
    highest: dict[str, float] = {}
    for _, attack, artefact in stage.primaries:
        if attack in series.recorded:
            ratio = residual_ratio(*series.paired(attack, artefact))
            if ratio is not None:
                highest[attack] = max(ratio, highest.get(attack, ratio))
    return highest


# --- all together -------------------------------------------------------------------------------------------------


def _cohort(stage: Stage, measured: Sequence[_Tested]) -> list[CohortBound]:
    """The bound of each primary on everybody whose earlier scores are on record."""
    bounds = []
    for rule, attack, artefact in stage.primaries:
        known = [(one.row.draws, one.series) for one in measured if one.series and attack in one.series.recorded]
        paired = [series.paired(attack, artefact) for _, series in known]
        if paired:
            certificate = cohort_certificate(
                [before for before, _ in paired],
                [after for _, after in paired],
                [draws for draws, _ in known if draws is not None],
                rho=rule.rho,
                alpha=stage.spec.policy.alpha,
            )
            bounds.append(CohortBound(rule.id, attack, artefact, certificate))
    return bounds


def _slope(rows: Sequence[SweepEntry], seed: int) -> SlopeAlarm | None:
    """Each entry's mean rho-hat over primaries against the number of deletions when it was deleted."""
    known = [row for row in rows if row.residual_ratios]
    ratios = [sum(row.residual_ratios.values()) / len(row.residual_ratios) for row in known]
    return slope_alarm([row.deletions_so_far for row in known], ratios, seed=seed)


def _validity(stage: Stage, measured: Sequence[_Tested]) -> list[ValidityCheck]:
    series = [one.series for one in measured if one.series is not None]
    if not series:
        return []
    places = [one.placebo.place for one in series if one.placebo is not None]
    uniform = float(stats.kstest(places, "uniform").pvalue)
    return [
        series[0].determinism(),
        at_least("placebo", uniform, stage.spec.policy.placebo_alpha, reason="controls_not_exchangeable"),
        at_most("collisions", sum(one.collisions for one in series), 0, reason="controls_not_exchangeable"),
    ]


def _environment(spec: SweepSpec) -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": spec.device,
        "dtype": spec.dtype,
        "threads": str(torch.get_num_threads()),
    }


def _cpu_seconds(measured: Sequence[_Tested], total: float) -> dict[str, float]:
    """Processor seconds of the first tests by part, as measured when the parts were made, and of this call."""
    seconds: dict[str, float] = {}
    for one in measured:
        for part, spent in (one.series.cpu_seconds if one.series else {}).items():
            seconds[part] = seconds.get(part, 0.0) + spent
    return {**seconds, "this_call": total}


def _notes(rows: Sequence[SweepEntry]) -> tuple[str, ...]:
    kinds = [row.kind for row in rows if row.draws is not None]
    return (
        f"{kinds.count('spike_in')} entries were tested on spike-ins, {kinds.count('vault')} on a person's own sealed "
        f"probes; {len(rows) - len(kinds)} could not be tested.",
        "Utility is not part of a sweep; the version shows it at its own gate.",
    )


# --- command line -------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Sweep and judge from the command line: 0 PASS, 1 FAIL, 3 INCONCLUSIVE, 2 the request cannot be met."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        spec = _spec(options)
        if options.record:
            ledger = record_scores(spec, on_progress=print_progress, should_stop=never_stop)
            write_document(options.out / "ledger.json", ledger.to_document())
            return 0
        report = run_sweep(spec, on_progress=print_progress, should_stop=never_stop)
    except MlError as exc:
        sys.stderr.write(f"{exc.code}: {exc}\n")
        return USAGE_ERROR
    verdict = judge_sweep(report, spec.policy)
    write_document(options.out / "report.json", report.to_document())
    write_document(options.out / "verdict.json", verdict.to_document())
    sys.stdout.write(entry_table(report, verdict))
    return EXIT_CODES[verdict.result]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ml.sweep", description="Test earlier deletions on a version.")
    parser.add_argument("--model", type=Path, required=True, help="model directory of the version to be tested")
    parser.add_argument("--base", type=Path, required=True, help="base model directory, never trained on the subjects")
    parser.add_argument("--ledger", type=Path, required=True, help="earlier deletions, JSON")
    parser.add_argument("--bank", type=Path, required=True, help="question bank")
    parser.add_argument("--retain", type=Path, required=True, help="records of everybody who stays, JSON Lines")
    parser.add_argument("--out", type=Path, required=True, help="directory for report, verdict and parts")
    parser.add_argument("--policy", default="reference-2", help="name of the verdict policy whose limits hold")
    parser.add_argument("--artefacts", nargs="+", default=["merged"], choices=["merged", *copies(0)])
    parser.add_argument("--window", type=int, default=1, help="versions the claim is about, fixed before the first")
    parser.add_argument("--date", default=None, help="today as YYYY-MM-DD, against which vaults expire")
    parser.add_argument("--seed", type=int, default=0, help="decides words, twins and swaps")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--record", action="store_true", help="before a deletion: write the ledger with its scores")
    return parser


def _spec(options: argparse.Namespace) -> SweepSpec:
    options.out.mkdir(parents=True, exist_ok=True)
    return SweepSpec(
        run_id=options.out.name,
        policy=load_policy(options.policy),
        candidate=model_ref(options.model),
        base=model_ref(options.base),
        ledger=file_ref(options.ledger),
        retain=file_ref(options.retain),
        question_bank=file_ref(options.bank),
        seed=options.seed,
        seed_commitment_sha256=seed_commitment(options.out.name, options.seed),
        as_of=options.date or datetime.now(UTC).date().isoformat(),
        parts_dir=str(options.out / "parts"),
        artefacts=tuple(options.artefacts),
        window=options.window,
    )


def entry_table(report: SweepReport, verdict: SweepVerdict) -> str:
    """The verdict, entry by entry, by opaque id: plain text for a terminal."""
    lines = [f"{'entry':<34}{'kind':<10}{'twins':>7}{'above':>7}{'p':>9}{'rho':>8}  result"]
    lines += [_entry_line(row) for row in report.entries]
    lines += ["", *cohort_lines(report.cohort)]
    if report.spike_ins is not None:
        shown = report.spike_ins
        lines += ["", f"spike-ins: {shown.failures} of {shown.trials} failed, rate at most {shown.upper:.3f}"]
    if report.slope is not None:
        lines.append(f"slope of rho over deletions: {report.slope.slope:+.5f}, p {report.slope.p:.3f}")
    lines += ["", *(finding_line(f) for f in verdict.findings)]
    lines += [f"verdict: {verdict.result}" + "".join(f" [alarm: {alarm}]" for alarm in verdict.alarms), ""]
    return "\n".join(lines)


def _entry_line(row: SweepEntry) -> str:
    name = f"{row.id:<34}{row.kind:<10}"
    if row.draws is None:
        return f"{name}{'-':>7}{'-':>7}{'-':>9}{'-':>8}  untested: {row.reason}"
    highest = max(row.residual_ratios.values(), default=None)
    counts = f"{row.draws.count:>7}{row.draws.exceedances:>7}{shown_number(row.draws.p, 9, 4)}"
    return f"{name}{counts}{shown_number(highest, 8, 3)}  {'flagged' if row.flagged else 'not flagged'}"


if __name__ == "__main__":
    raise SystemExit(main())
