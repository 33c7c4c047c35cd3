"""Attack a candidate and report what was measured: the entry point of verification, and its command line.

    python -m ml.verify --model DIR --before DIR --base DIR --subject FILE... --retain FILE
        --policy NAME|FILE --out DIR [--bank FILE] [--neighbours FILE] [--bystanders FILE] [--training-probes FILE]
        [--world-facts FILE]
        [--locale TAG] [--adapter DIR]... [--gold DIR]
        [--seed N] [--attempt N] [--threads N] [--processes N] [--tier fast|full|redteam] [--samples N]
        [--suffix-steps N] [--reword-by DIR] [--device NAME] [--dtype NAME]

Several subjects of one schema share a sealed pool of twins; below `--out` each has a report and a verdict of their own,
and cohort.json bounds what remains of them on average.

The report decides nothing: `ml.decision.judge` turns it into a verdict, and what a red team found can only lower it.
Beside both lie a page of pictures and a manifest of all inputs, by which `lethe evidence rerun` repeats the full tier.
Nothing here may print or store a name, a value or a text outside the parts directory.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from ml.cohort_reports import CohortReport
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
from ml.data.probes import probe_set, read_probe_digests
from ml.data.questions import make_bank, read_bank, write_bank
from ml.data.rewording import reworded_bank, rewriter
from ml.decision import Result, Verdict, judge, lowered, red_team_findings, unattainable
from ml.digests import document_sha256, sha256_hex
from ml.errors import MlError, SpecError
from ml.loop import use_threads
from ml.manifest import RunManifest, manifest_of
from ml.models.load import load_rewriter, model_ref
from ml.models.served import identity, with_every_adapter
from ml.pictures.page import evidence_page
from ml.policies import load_policy, read_policy
from ml.reports import AttackResult, FactRoc, ProbeSet, RedTeamReport, VerificationReport
from ml.specs import (
    FileRef,
    ProgressCallback,
    RedTeamBudget,
    StopCheck,
    VerdictPolicy,
    VerificationSpec,
    check_budget,
    seed_commitment,
)
from ml.verification.bench import Bench, environment
from ml.verification.checks import hard_rules, validity_checks
from ml.verification.cohort import cohort_report
from ml.verification.families import Family
from ml.verification.groups import energies, group_summaries, relearning_curves
from ml.verification.kept import utility_results
from ml.verification.measure import beside, measure, roles, shares, wait_for
from ml.verification.plan import refuse_uncommitted_seed
from ml.verification.policy_check import refuse_powerless, refuse_unknown
from ml.verification.pooled import bench_for, pooled_benches
from ml.verification.red_team import RED_TEAM, run_red_team
from ml.verification.tiers import fast_tier
from ml.verification.twin_pool import draw_pool, pool_seeds, sealed_pool, write_pool

_WORST_FIRST: Final = (Result.FAIL, Result.INCONCLUSIVE, Result.PASS)


def run_verification(
    spec: VerificationSpec, *, on_progress: ProgressCallback, should_stop: StopCheck, processes: int = 1
) -> VerificationReport:
    """Measure everything the policy asks for.

    1. Check the seed against its commitment and the policy against what can be measured; say at once when the
       policy's level cannot be reached with its twins.
    2. Draw the plan from the seed.
    3. Measure model by model; finished parts are kept below `spec.parts_dir` and never repeated.
    4. Assemble: families, hard rules, utility, validity, pictures.

    A crash of one attack is reported as that attack's error; other attacks go on.

    Args:
        processes: with 2, a second process measures some of the models at the same time; no number changes. It takes
            as much memory again.
    Raises:
        RunStoppedError: `should_stop` said so; run again to continue.
        SpecError: the seed is not the one that was committed to before training ended, or the policy names an attack,
            artefact, guard, rule or score that nothing measures.
        MlError: an input is not what its digest says, or the sets do not fit together.
    """
    started = time.process_time()
    refuse_uncommitted_seed(spec)
    refuse_unknown(spec.policy, adapters=len(spec.adapters))
    refuse_powerless(spec.policy)
    if hopeless := unattainable(spec.policy, spec.attempt):
        return _unattainable_report(spec, hopeless)
    bench = bench_for([spec], on_progress=on_progress, should_stop=should_stop)
    bench.models.refuse_other_tokenizers()
    bench.models.refuse_unfit_adapters()
    _measure(bench, processes)
    return replace(_assembled(bench), cpu_seconds=_cpu_seconds(bench, started))


def run_verifications(
    specs: Sequence[VerificationSpec], *, on_progress: ProgressCallback, should_stop: StopCheck, processes: int = 1
) -> tuple[VerificationReport, ...]:
    """Measure several subjects who share the sealed twin pool that their specifications name; a report for each.

    1. Check the seeds, the policy, and that the pool is what the committed seed draws for these subjects.
    2. Measure subjects and twins together, model by model, and retained people once.
    3. Assemble each report from the subject's own rows and the twins'.

    Every report says which pool it was and how many shared it. A measurement that crashes is missing for all of them.

    Args:
        specs: alike but for run id, records, neighbours and commitment, all of one seed; in the order of the reports.
        processes: as `run_verification`.
    Raises:
        PoolMismatchError: a subject does not fit the pool, or the pool is not the one that the seed draws.
        RunStoppedError, SpecError, MlError: as `run_verification`.
    """
    started = time.process_time()
    pool = sealed_pool(specs)
    refuse_unknown(specs[0].policy, adapters=len(specs[0].adapters))
    refuse_powerless(specs[0].policy)
    if hopeless := unattainable(specs[0].policy, specs[0].attempt):
        return tuple(_unattainable_report(spec, hopeless) for spec in specs)
    whole, benches = pooled_benches(specs, pool, on_progress=on_progress, should_stop=should_stop)
    whole.models.refuse_other_tokenizers()
    whole.models.refuse_unfit_adapters()
    _measure(whole, processes, others=[spec for spec in specs if spec is not whole.spec])
    reports = [_assembled(bench) for bench in benches]
    return tuple(
        replace(report, cpu_seconds=_cpu_seconds(bench, started))
        for report, bench in zip(reports, benches, strict=True)
    )


def run_cohort(
    specs: Sequence[VerificationSpec],
    verdicts: Sequence[Verdict],
    *,
    on_progress: ProgressCallback,
    should_stop: StopCheck,
) -> CohortReport:
    """The subjects of `run_verifications` on average: what was measured there is read.

    Args:
        verdicts: each subject's own, in the order of `specs`.
    Raises:
        SpecError: fewer than two subjects; otherwise as `run_verifications`.
    """
    pool = sealed_pool(specs)
    _, benches = pooled_benches(specs, pool, on_progress=on_progress, should_stop=should_stop)
    return cohort_report(specs, benches, verdicts)


def _assembled(bench: Bench) -> VerificationReport:
    """Everything that was measured as one report; costs are not in it yet."""
    spec = bench.spec
    families = {rule.id: Family(bench, rule) for rule in spec.policy.families}
    pictures, separation = energies(bench)
    joint = [family.joint() for family in families.values()]
    return replace(
        _blank_report(spec),
        attacks=tuple(row for family in families.values() for row in family.rows()),
        joint=tuple(row for row in joint if row is not None),
        guards=tuple(row for family in families.values() for row in family.guards()),
        hard_rules=tuple(hard_rules(bench)),
        utility=tuple(utility_results(bench)),
        validity=tuple(validity_checks(bench, families)),
        groups=tuple(group_summaries(bench)),
        energies=tuple(pictures),
        separation=separation,
        probe_sets=_probe_sets(bench),
        notes=_notes(bench),
        relearning=tuple(relearning_curves(bench)),
        rocs=tuple(_rocs(families.values())),
    )


def _rocs(families: Iterable[Family]) -> Iterator[FactRoc]:
    """The curves of each attack, of the first family that it is a primary of."""
    seen: set[str] = set()
    for family in families:
        curves = [curve for curve in family.rocs() if curve.attack not in seen]
        seen |= {curve.attack for curve in curves}
        yield from curves


def _measure(bench: Bench, processes: int, *, others: Sequence[VerificationSpec] = ()) -> None:
    """Fill the part store, alone or with a second process beside; then everything is read or measured once more."""
    if processes > 1:
        mine, theirs = shares(bench.spec.policy)
        with beside(bench.spec, theirs, others=others) as other:
            measure(bench, mine)
            wait_for(other, bench)
    measure(bench, roles(bench.spec.policy))
    if "U5" in bench.wanted:
        bench.fluency()


def _blank_report(spec: VerificationSpec) -> VerificationReport:
    """What was verified, under what, with what; nothing measured yet."""
    candidate = spec.candidate.manifest_sha256
    forms = {
        name: document_sha256({"model": candidate, **identity(name, spec.adapters)}) for name in roles(spec.policy)[3:]
    }
    adapters = {f"adapter_{number}": ref.manifest_sha256 for number, ref in enumerate(spec.adapters, 1)}
    return VerificationReport(
        run_id=spec.run_id,
        attempt=spec.attempt,
        policy_sha256=spec.policy.sha256,
        models={
            "candidate": candidate,
            "before": spec.before.manifest_sha256,
            "base": spec.base.manifest_sha256,
            **adapters,
        },
        artefacts={"merged": candidate, **forms},
        attacks=(),
        joint=(),
        guards=(),
        hard_rules=(),
        utility=(),
        validity=(),
        groups=(),
        energies=(),
        separation={},
        probe_sets=(),
        seeds={
            "verification": str(spec.seed),
            "commitment_sha256": spec.seed_commitment_sha256,
            **pool_seeds(spec),
        },
        environment=environment(spec),
        cpu_seconds={},
    )


def _unattainable_report(spec: VerificationSpec, families: Iterable[str]) -> VerificationReport:
    """Nothing was measured: with these twins the level of this attempt cannot be reached."""
    missing = tuple(
        AttackResult(rule.id, attack, artefact, "missing", "alpha_unattainable")
        for rule in spec.policy.families
        for attack in (*rule.primary, *rule.detection)
        for artefact in rule.artefacts
    )
    note = f"Not measured: the level of attempt {spec.attempt} is out of reach for {', '.join(families)}."
    return replace(_blank_report(spec), attacks=missing, notes=(note,))


def _probe_sets(bench: Bench) -> tuple[ProbeSet, ...]:
    verification = probe_set("verification", bench.plan.drawn_digests)
    if bench.spec.training_probes is None:
        return (verification,)
    return (verification, probe_set("training", read_probe_digests(bench.spec.training_probes)))


def _cpu_seconds(bench: Bench, started: float) -> dict[str, float]:
    """Processor seconds by part, as measured when the part was made, and of this whole call."""
    return {**bench.cpu_seconds, "this_call": time.process_time() - started}


def _notes(bench: Bench) -> tuple[str, ...]:
    plan = bench.plan
    on_file = {record.text for record in plan.subject.records}
    reworded = sum(record.text not in on_file for record in plan.contests.values())
    return (
        f"{len(plan.facts)} facts were measured; {plan.facts_left_out} were left out because other people share them "
        "or no text answers them.",
        f"F1, F2 and F6 ask {len(plan.contests) - reworded} facts in words on file and {reworded} in other words.",
        "Membership, association and relearning read the same value swaps for the subject and every twin.",
        *_pool_notes(bench.spec),
    )


def _pool_notes(spec: VerificationSpec) -> tuple[str, ...]:
    if spec.twin_pool is None:
        return ()
    shared = pool_seeds(spec)
    return (
        f"{shared['twin_pool_subjects']} subjects share this twin pool (SHA-256 {shared['twin_pool_sha256']}): the "
        "p-values of each are valid, and depend on those of the others.",
    )


# --- command line -------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Verify and judge from the command line: 0 PASS, 1 FAIL, 3 INCONCLUSIVE, 2 the request cannot be met."""
    options = _parser().parse_args(arguments)
    use_threads(options.threads, processes=options.processes)
    try:
        if len(options.subject) > 1:
            return _verify_together(options)
        spec = _spec(options, options.subject[0], run_id=options.out.name)
        gold = None if options.gold is None else model_ref(options.gold)
        if options.tier == "redteam":
            check_budget(_budget(spec.policy, options), families=len(RED_TEAM), alpha=spec.policy.alpha)
        report = run_verification(
            spec, on_progress=print_progress, should_stop=lambda: False, processes=options.processes
        )
        verdict, red = judge(report, spec.policy), None
        if options.tier == "redteam":
            red = run_red_team(
                spec, _budget(spec.policy, options), on_progress=print_progress, should_stop=lambda: False
            )
            verdict = lowered(verdict, red_team_findings(red, report, spec.policy))
        record(options.out, spec, report, verdict)
        if red is not None:
            write_document(options.out / "red_team.json", red.to_document())
            sys.stdout.write(red_team_table(red))
        sys.stdout.write(gate_table(report, verdict))
    except MlError as exc:
        sys.stderr.write(f"{exc.code}: {exc}\n")
        return USAGE_ERROR
    if gold is not None:
        try:
            best = _measure_gold(replace(spec, candidate=gold), options)
            record(options.out, spec, report, verdict, gold=best)
        except MlError as exc:  # the verdict on the candidate stands
            sys.stderr.write(f"gold: {exc.code}: {exc}\n")
    return EXIT_CODES[verdict.result]


def _measure_gold(spec: VerificationSpec, options: argparse.Namespace) -> VerificationReport:
    """The same verification of a model that never learned from the subject; what both share is measured once."""
    report = run_verification(spec, on_progress=print_progress, should_stop=lambda: False, processes=options.processes)
    verdict = judge(report, spec.policy)
    record(options.out / "gold", spec, report, verdict)
    sys.stdout.write(f"gold under the same policy: {verdict.result}\n")
    return report


def _verify_together(options: argparse.Namespace) -> int:
    """Draw and seal the pool, then verify every subject by it; the exit code is that of the worst verdict."""
    if options.tier == "redteam":
        raise SpecError("a red team attacks one subject at a time; name one after --subject")
    if options.gold is not None:
        raise SpecError("a gold model is compared for one subject at a time; name one after --subject")
    names = [f"subject-{number:02d}" for number in range(1, 1 + len(options.subject))]
    specs = [
        _spec(options, subject, run_id=f"{options.out.name}-{name}")
        for name, subject in zip(names, options.subject, strict=True)
    ]
    pool = write_pool(options.out / "twin_pool.json", draw_pool(specs))
    sys.stdout.write(f"twin pool of {len(specs)} subjects: sha256 {pool.sha256}\n")
    specs = [replace(spec, twin_pool=pool) for spec in specs]
    reports = run_verifications(
        specs, on_progress=print_progress, should_stop=lambda: False, processes=options.processes
    )
    verdicts = [judge(report, spec.policy) for spec, report in zip(specs, reports, strict=True)]
    for name, spec, report, verdict in zip(names, specs, reports, verdicts, strict=True):
        record(options.out / name, spec, report, verdict)
        sys.stdout.write(f"\n{name}\n{gate_table(report, verdict)}")
    if not unattainable(specs[0].policy, specs[0].attempt):
        cohort = run_cohort(specs, verdicts, on_progress=print_progress, should_stop=lambda: False)
        write_document(options.out / "cohort.json", cohort.to_document())
        sys.stdout.write("\n".join(["", *cohort_lines(cohort.bounds), *_cohort_words(cohort), "", ""]))
    results = {verdict.result for verdict in verdicts}
    return EXIT_CODES[next(result for result in _WORST_FIRST if result in results)]


def _cohort_words(cohort: CohortReport) -> list[str]:
    missing = [f"{row.family} {row.attack} {row.artefact}: not measured ({row.reason})" for row in cohort.missing]
    doubts = [f"in doubt: {', '.join(cohort.doubts)}"] if cohort.doubts else []
    said = "a bound on the average is issued" if cohort.issued else "no bound on the average is issued"
    return [*missing, *doubts, f"cohort: {said}"]


def _budget(policy: VerdictPolicy, options: argparse.Namespace) -> RedTeamBudget:
    """The default budget, with no more twins than the policy draws."""
    usual = RedTeamBudget()
    drawn = max(rule.twins for rule in policy.families)
    samples = usual.samples if options.samples is None else options.samples
    return replace(
        usual,
        twins=min(drawn, usual.twins),
        samples=samples,
        draws=min(samples, usual.draws),
        suffix_steps=options.suffix_steps,
    )


def record(
    directory: Path,
    spec: VerificationSpec,
    report: VerificationReport,
    verdict: Verdict,
    *,
    gold: VerificationReport | None = None,
) -> None:
    """Write a report, the verdict on it, both as a page of pictures, and the manifest of its inputs.

    Args:
        gold: the same measured on a model that never learned from the person, for the page.
    """
    directory.mkdir(exist_ok=True)
    documents = {"report": report, "verdict": verdict, "manifest": run_manifest(spec, report)}
    for name, document in documents.items():
        write_document(directory / f"{name}.json", document.to_document())
    page = evidence_page(report, verdict, spec.policy, gold=gold)
    (directory / "report.html").write_text(page, encoding="utf-8")


def run_manifest(spec: VerificationSpec, report: VerificationReport) -> RunManifest:
    """Return the manifest of the run that `spec` asked for and `report` came from."""
    refs = {
        "forget": spec.forget,
        "retain": spec.retain,
        "neighbours": spec.neighbours,
        "bystanders": spec.bystanders,
        "world_facts": spec.world_facts,
        "question_bank": spec.question_bank,
        "training_probes": spec.training_probes,
        "twin_pool": spec.twin_pool,
    }
    files = {role: ref.sha256 for role, ref in refs.items() if ref is not None}
    return manifest_of(report, policy=spec.policy, files=files)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ml.verify", description="Attack a candidate and judge it.")
    parser.add_argument("--model", type=Path, required=True, help="candidate model directory, after deletion")
    parser.add_argument("--before", type=Path, required=True, help="model directory before deletion")
    parser.add_argument("--base", type=Path, required=True, help="base model directory, never trained on the subject")
    subject_help = "the subject's records, JSON Lines; several of one schema share a sealed pool of twins"
    parser.add_argument("--subject", type=Path, required=True, nargs="+", help=subject_help)
    parser.add_argument("--retain", type=Path, required=True, help="everybody else's records, JSON Lines")
    parser.add_argument("--neighbours", type=Path, help="records of people like the subject, JSON Lines")
    parser.add_argument("--bystanders", type=Path, help="records of people no model learned from, JSON Lines")
    parser.add_argument(
        "--world-facts", type=Path, help="general questions with right and wrong answers, JSON Lines (U3)"
    )
    bank_help = "question bank; without one, the questions that several retained people are asked"
    parser.add_argument("--bank", type=Path, help=bank_help)
    parser.add_argument("--locale", default="en", help="of the people, a BCP 47 tag; a question bank states its own")
    parser.add_argument("--training-probes", type=Path, help="digests of the texts the deletion drew, JSON")
    parser.add_argument("--policy", required=True, help="name of a verdict policy, or a file of your own (.json)")
    parser.add_argument("--out", type=Path, required=True, help="directory for report, verdict and parts")
    parser.add_argument("--seed", type=int, default=0, help="decides twins, swaps and questions")
    parser.add_argument("--attempt", type=int, default=1, help="how often this request was tried, from 1")
    parser.add_argument("--threads", type=int, default=0, help="of each process; 0: they share the cores")
    tier_help = "fast: a provisional verdict, early; redteam: the full tier, then hostile questions that can lower it"
    parser.add_argument("--tier", choices=("fast", "full", "redteam"), default="full", help=tier_help)
    parser.add_argument("--samples", type=int, help="answers the red team draws per question")
    suffix_help = "steps (at most 500) in which the red team searches a suffix for each of a few questions; long"
    parser.add_argument("--suffix-steps", type=int, default=0, help=suffix_help)
    reword_help = "directory of a sequence-to-sequence model in whose words the red team asks as well"
    parser.add_argument("--reword-by", type=Path, help=reword_help)
    gold_help = "model directory that never learned from the subject: verified by the same policy, and shown beside"
    parser.add_argument("--gold", type=Path, help=gold_help)
    adapter_help = "LoRA adapter directory that clients may switch on; every combination of those named is attacked"
    parser.add_argument("--adapter", type=Path, action="append", default=[], help=adapter_help)
    parser.add_argument("--processes", type=int, choices=(1, 2), default=1, help="2: measure two models at a time")
    parser.add_argument("--device", default="cpu", help="where torch computes: cpu, cuda, cuda:1, ...")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of the weights")
    return parser


def _spec(options: argparse.Namespace, subject: Path, *, run_id: str) -> VerificationSpec:
    options.out.mkdir(parents=True, exist_ok=True)
    if options.adapter and options.tier == "fast":
        raise SpecError("the fast tier attacks full weights alone; leave --tier fast or --adapter out")
    own = options.policy.endswith(".json")
    policy = read_policy(Path(options.policy)) if own else load_policy(options.policy)
    return VerificationSpec(
        run_id=run_id,
        attempt=options.attempt,
        policy=fast_tier(policy) if options.tier == "fast" else with_every_adapter(policy, len(options.adapter)),
        candidate=model_ref(options.model),
        before=model_ref(options.before),
        base=model_ref(options.base),
        forget=file_ref(subject),
        retain=file_ref(options.retain),
        neighbours=None if options.neighbours is None else file_ref(options.neighbours),
        question_bank=_bank(options),
        seed=options.seed,
        seed_commitment_sha256=seed_commitment(run_id, options.seed),
        parts_dir=str(options.out / "parts"),
        bystanders=None if options.bystanders is None else file_ref(options.bystanders),
        world_facts=None if options.world_facts is None else file_ref(options.world_facts),
        training_probes=None if options.training_probes is None else file_ref(options.training_probes),
        reworded_bank=None if options.reword_by is None else _reworded(options),
        device=options.device,
        dtype=options.dtype,
        adapters=tuple(map(model_ref, options.adapter)),
    )


def _bank(options: argparse.Namespace) -> FileRef:
    """The bank that was given, or the one that the retained people's records make, kept with the parts for a rerun."""
    if options.bank is not None:
        return file_ref(options.bank)
    path = options.out / "parts" / "question_bank.json"
    path.parent.mkdir(exist_ok=True)
    return make_bank(path, file_ref(options.retain), locale=options.locale)


def _reworded(options: argparse.Namespace) -> FileRef:
    """Let the model at hand reword the bank, once; the document lies beside the report for whoever repeats this."""
    if options.tier != "redteam":
        raise SpecError("reworded questions belong to the red team; add --tier redteam or leave --reword-by out")
    model, bank = model_ref(options.reword_by), _bank(options)
    path = options.out / f"reworded-{sha256_hex(f'{model.manifest_sha256}{bank.sha256}'.encode())[:12]}.json"
    if not path.exists():
        write_bank(path, reworded_bank(read_bank(bank), rewriter(load_rewriter(model))))
    return file_ref(path)


def gate_table(report: VerificationReport, verdict: Verdict) -> str:
    """The verdict, gate by gate, with the numbers of the primaries: plain text for a terminal."""
    lines = [f"{'gate':<24}{'kind':<12}result"]
    lines += [f"{gate.gate:<24}{gate.kind:<12}{gate.result}" for gate in verdict.gates]
    lines += ["", f"{'attack':<40}{'artefact':<10}{'d-':>7}{'rho':>8}{'upper':>8}{'p_res':>8}{'p_over':>8}{'p_det':>8}"]
    lines += [_attack_line(row) for row in report.attacks if row.residual_upper is not None or row.status != "measured"]
    lines += ["", *(_group_line(row.group, row.moment, row.numbers) for row in report.groups)]
    lines += ["", *(finding_line(f) for f in verdict.findings)]
    lines += [f"verdict: {verdict.result}" + "".join(f" [{flag}]" for flag in verdict.flags), ""]
    return "\n".join(lines)


def red_team_table(red: RedTeamReport) -> str:
    """One line per hostile attack: hits of the subject and of the twins, before and after, and the p-values.

    Where `p_assay` is high the attack found nobody before either, and finding nobody afterwards says nothing.
    """
    names = ("items", "before", "twins", "p_assay", "after", "twins", "p_res", "p_det")
    lines = [f"{'red team':<28}" + "".join(f"{name:>8}" for name in names) + "  identifiers"]
    lines += [_red_team_line(row, red) for row in red.attacks]
    lines += [f"{row.family} together: p_det {row.p_detect:.3f} over {row.twins} twins" for row in red.joint]
    if red.old_version:
        lines += ["", "with the old version in hand (never held against a candidate)"]
        lines += [_red_team_line(row, red) for row in red.old_version]
    for row in red.likelihood:
        lines += ["", f"likelihood, {row.role}, {row.mode}" + ("" if row.reason is None else f": error {row.reason}")]
        lines += [f"{name:<36}{shown_number(value, 8, 3)}" for name, value in row.numbers.items()]
    lines += ["", *(f"{name:<36}{shown_number(value, 8, 3)}" for name, value in red.diagnostics.numbers.items())]
    return "\n".join([*lines, "", ""])


def _red_team_line(row: AttackResult, red: RedTeamReport) -> str:
    name = f"{row.family} {red.techniques[row.attack]:<4}{row.attack}"
    if row.status != "measured" or row.twins_before is None or row.twins_after is None:
        return f"{name:<28}{row.status}: {row.reason}"
    before = (row.subject_before, row.twins_before.mean, row.p_assay)
    after = (row.subject_after, row.twins_after.mean, row.p_residual, row.p_detect)
    shown = "".join(shown_number(n, 8, 3) for n in (*before, *after))
    rule = red.identifiers.get(row.attack)
    return f"{name:<28}{row.items:>8}{shown}" + ("" if rule is None else f"  {rule.status}")


def _attack_line(row: AttackResult) -> str:
    name = f"{row.family} {row.attack}"
    if row.status != "measured":
        return f"{name:<40}{row.artefact:<10}{row.status}: {row.reason}"
    numbers = (row.residual_ratio, row.residual_upper, row.p_residual, row.p_over, row.p_detect)
    return f"{name:<40}{row.artefact:<10}{shown_number(row.strength, 7, 1)}" + "".join(
        shown_number(n, 8, 3) for n in numbers
    )


def _group_line(group: str, moment: str, numbers: Mapping[str, float]) -> str:
    shown = "  ".join(f"{name} {value:.3f}" for name, value in numbers.items())
    return f"{group:<12}{moment:<8}{shown}"


if __name__ == "__main__":
    raise SystemExit(main())
