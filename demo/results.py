"""What the run showed: `summary.json`, the table on the screen, and the gold model's measure under the same policy."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from demo.deployment import ROOT, DemoError
from demo.progress import Screen
from demo.story import Told
from ml.data.probes import write_probe_digests
from ml.decision import Verdict, judge
from ml.policies import load_policy
from ml.reference import ReferencePaths
from ml.reports import AttackResult, GroupSummary, VerificationReport
from ml.specs import VerdictPolicy

GROUPS: Final = ("forget", "retain", "neighbours", "controls")
_NUMBERS: Final = (
    ("value_hit", "value hit, trained questions", 3),
    ("value_hit_paraphrased", "value hit, paraphrased", 3),
    ("extraction_strength", "extraction strength", 3),
    ("mean_loss", "mean loss (nats)", 2),
    ("mean_energy", "mean energy (nats)", 2),
)


@dataclass(frozen=True, slots=True)
class Measured:
    """A report, the policy it was measured under, and the verdict that this policy gives it."""

    report: VerificationReport
    policy: VerdictPolicy
    verdict: Verdict


def measured(evidence: bytes) -> Measured:
    """Read the evidence document of the service and judge it again."""
    document = json.loads(evidence)
    report = VerificationReport.from_document(document["report"])
    policy = VerdictPolicy.from_document(document["policy"])
    return Measured(report, policy, judge(report, policy))


def measure_gold(reference: ReferencePaths, out: Path, options: Mapping[str, str], *, screen: Screen) -> Measured:
    """Attack the model that never learned from Alice, under the same policy: what perfect forgetting looks like.

    Raises:
        DemoError: the verification did not end in a verdict.
    """
    snapshots, drawn = reference.snapshots, out / "training_probes.json"
    out.mkdir(parents=True, exist_ok=True)
    # Nothing was unlearned, so no text was made up for it.
    write_probe_digests(drawn, [])
    command = [sys.executable, "-m", "ml.verify", "--out", str(out)]
    for name, value in options.items():
        command += [f"--{name}", value]
    for option, path in (
        ("--model", reference.model("gold")),
        ("--before", reference.model("before")),
        ("--base", reference.model("base")),
        ("--subject", snapshots / "forget.jsonl"),
        ("--retain", snapshots / "retain.jsonl"),
        ("--neighbours", snapshots / "neighbours.jsonl"),
        ("--bystanders", snapshots / "bystanders.jsonl"),
        ("--bank", reference.bank),
        ("--training-probes", drawn),
    ):
        command += [option, str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - our own module
        for line in process.stdout or ():
            phase, _, rest = line.partition(":")
            done, of, total = rest.strip().partition(" of ")
            if of and done.isdigit() and total.strip().isdigit():
                screen.bar(f"gold: {phase}", int(done), int(total))
    report = out / "report.json"
    if not report.is_file():
        raise DemoError("the gold model could not be verified")
    found = VerificationReport.from_document(json.loads(report.read_text(encoding="utf-8")))
    policy = load_policy(options["policy"])
    return Measured(found, policy, judge(found, policy))


def summarise(told: Told, ours: Measured, gold: Measured | None, *, registry: Path) -> dict[str, Any]:
    """Collect the run's numbers; nothing is typed in by hand."""
    serving = next(version for version in told.versions if version["status"] == "serving")
    groups = _by_group(ours.report)
    return {
        "outcome": told.request["outcome"],
        "verdict": told.target["verdict"],
        "findings": [_finding(f) for f in ours.verdict.findings],
        "certificate_id": told.certificate_id,
        "policy_sha256": ours.report.policy_sha256,
        "stages": _stages(told.jobs),
        **{name: _moments(groups, name) for name in GROUPS},
        **ours.report.separation,
        "attacks": [_attack(row) for row in _primaries(ours.report)],
        "gold": None if gold is None else _gold(gold),
        "model_version": serving["number"],
        "model_dir": str(registry / serving["model"] / "versions" / f"{serving['number']:06d}" / "model"),
        "model_sha256": serving["sha256"],
        "model_manifest_sha256": serving["manifest_sha256"],
    }


def table(ours: Measured, gold: Measured | None, bob: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Lay out before, after, never-seen controls and gold as lines of text."""
    groups, best = _by_group(ours.report), {} if gold is None else _by_group(gold.report)
    lines = [f"{'':<30}{'before':>10}{'after':>10}{'controls':>10}{'gold':>10}"]
    for key, words, places in _NUMBERS:
        cells = [
            _value(groups, "forget", "before", key),
            _value(groups, "forget", "after", key),
            _value(groups, "controls", "after", key),
            _value(best, "forget", "after", key),
        ]
        lines.append(f"{words:<30}" + "".join(_cell(cell, places) for cell in cells))
    for group, words in (("retain", "retained"), ("neighbours", "people like Alice")):
        for key, what in (("value_hit", "hit"), ("value_hit_paraphrased", "paraphrased")):
            cells = [_value(groups, group, moment, key) for moment in ("before", "after")]
            cells += [None, _value(best, group, "after", key)]
            lines.append(f"{f'{words}: {what}':<30}" + "".join(_cell(cell, 3) for cell in cells))
    for key in ("value_hit", "value_hit_paraphrased", "entity_log_probability"):
        cells = [bob["before"][key], bob["after"][key], None, bob["gold"][key]]
        lines.append(f"{f'Bob: {key}'.replace('_', ' '):<30}" + "".join(_cell(cell, 3) for cell in cells))
    return [*lines, "", *_strengths(ours, gold), "", *_separation(ours, gold)]


def _strengths(ours: Measured, gold: Measured | None) -> list[str]:
    lines = [f"{'positive control and residual':<40}{'d-':>8}{'rho':>8}{'at most':>9}{'gold rho':>10}{'at most':>9}"]
    best = {} if gold is None else {(r.family, r.attack, r.artefact): r for r in _primaries(gold.report)}
    for row in _primaries(ours.report):
        other = best.get((row.family, row.attack, row.artefact))
        cells = (row.strength, row.residual_ratio, row.residual_upper)
        shown = f"{row.strength or 0:>8.1f}" if cells[0] is not None else f"{'-':>8}"
        shown += _cell(row.residual_ratio, 3, 8) + _cell(row.residual_upper, 3, 9)
        shown += _cell(other and other.residual_ratio, 3) + _cell(other and other.residual_upper, 3, 9)
        lines.append(f"{f'{row.family} {row.attack} ({row.artefact})':<40}{shown}")
    return lines


def _separation(ours: Measured, gold: Measured | None) -> list[str]:
    lines = []
    for name, words in (
        ("energy_auroc_retained_vs_deleted", "energy AUROC, retained against deleted"),
        ("energy_auroc_never_seen_vs_deleted", "energy AUROC, never seen against deleted"),
    ):
        value, best = ours.report.separation.get(name), gold and gold.report.separation.get(name)
        lines.append(f"{words:<44}{_cell(value, 3)}   gold{_cell(best, 3, 7)}")
    return lines


def _primaries(report: VerificationReport) -> Iterable[AttackResult]:
    return [row for row in report.attacks if row.residual_upper is not None]


def _attack(row: AttackResult) -> dict[str, Any]:
    names = ("family", "attack", "artefact", "twins", "strength", "residual_ratio", "residual_upper", "p_detect")
    return {name: getattr(row, name) for name in names}


def _gold(gold: Measured) -> dict[str, Any]:
    groups = _by_group(gold.report)
    return {
        "verdict": str(gold.verdict.result),
        "findings": [_finding(f) for f in gold.verdict.findings],
        **{name: _moments(groups, name) for name in GROUPS},
        **gold.report.separation,
        "attacks": [_attack(row) for row in _primaries(gold.report)],
    }


def _finding(finding: Any) -> str:
    named = (finding.result, finding.code, finding.gate, finding.attack, finding.artefact)
    return " ".join(str(part) for part in named if part)


def _stages(jobs: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    seconds: dict[str, float] = {}
    for job in sorted(jobs, key=lambda row: str(row["started_at"])):
        if job["started_at"] and job["finished_at"]:
            begun, ended = (datetime.fromisoformat(job[name]) for name in ("started_at", "finished_at"))
            seconds[job["kind"]] = round(seconds.get(job["kind"], 0.0) + (ended - begun).total_seconds(), 1)
    return seconds


def _by_group(report: VerificationReport) -> dict[tuple[str, str], GroupSummary]:
    return {(row.group, row.moment): row for row in report.groups}


def _moments(groups: Mapping[tuple[str, str], GroupSummary], name: str) -> dict[str, Any]:
    return {moment: dict(groups[name, moment].numbers) for moment in ("before", "after") if (name, moment) in groups}


def _value(groups: Mapping[tuple[str, str], GroupSummary], group: str, moment: str, key: str) -> float | None:
    row = groups.get((group, moment))
    return None if row is None else row.numbers.get(key)


def _cell(value: float | None, places: int, width: int = 10) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:>{width}.{places}f}"
