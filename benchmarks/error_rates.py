"""How often is the decision rule wrong on real small models, and what can it show about a person with few facts?

    python -m benchmarks.error_rates --out DIR [--worlds N] [--quick] [--seed N]

Each world trains its own models (`benchmarks.graded_models`). Per customer and statistic the rule of `reference-2` is
asked four things: the gold model must PASS, the unchanged model must FAIL, and a model in which the fraction rho, or
twice rho, of the influence remains must not PASS. How much remains is known from gold: the customer's own score there
is where nothing remains.

Judged are the primaries of F1, F2 and F3; the other families of the policy count in Holm's correction as not measured
(p = 1). The policy's least number of facts is left out, so that the curve shows why there is one. Of each half of a
world two parts are kept, one of models that know everything or nothing and one of graded ones: a run that was killed
takes up after the last one finished.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch
from torch import Tensor

from benchmarks.error_report import VERDICTS, ByFacts, Rate, shown, write_results
from benchmarks.graded_models import HALVES, STATISTICS, Place, Scale, Scores, Sizes, Trial, quick, value_statistics
from ml.data.synthetic import Stranger
from ml.decision import judge
from ml.digests import document_sha256
from ml.documents import plain_object
from ml.errors import SpecError
from ml.files import write_atomically
from ml.metrics.intervals import clopper_pearson_lower, clopper_pearson_upper
from ml.models.load import LoadedModel
from ml.policies import load_policy
from ml.rank_tests import TOLERANCE, attempt_alpha, min_p, residual_p
from ml.reports import AttackResult, JointDetection, VerificationReport
from ml.specs import FamilyRule, VerdictPolicy
from ml.verification.families import attack_result

FAMILIES: Final = {"F1": "same_context_difference", "F2": "exposure", "F3": "extraction_strength"}
LEVELS: Final = (1, 2)
# A model counts as "this fraction remains" when what remains lies above it by no more than this.
OVERSHOOT: Final = 0.01
FEW_TWINS: Final = 19
_HALVINGS: Final = 8
_DETOURS: Final = 10
FEWER_FACTS: Final = (5, 10, 15, 20, 28)


@dataclass(frozen=True, slots=True)
class Judged:
    """One customer under one model: how much remained, and the strength d- and the result of each family asked."""

    half: str
    remains: float | None
    strength: Mapping[str, float | None]
    results: Mapping[str, str]

    @property
    def overall(self) -> str:
        """The worst of the families: one FAIL fails, all must have been asked and pass."""
        found = set(self.results.values()) | ({"INCONCLUSIVE"} if len(self.results) < len(FAMILIES) else set())
        return next((name for name in ("FAIL", "INCONCLUSIVE") if name in found), "PASS")


def primaries_of(policy: VerdictPolicy, *, twins: int) -> VerdictPolicy:
    """`policy` with the three families judged here on their primaries alone; the others stay and are not measured."""
    cut = [
        replace(rule, detection=(), guards=(), twins=min(twins, rule.twins)) if rule.id in FAMILIES else rule
        for rule in policy.families
    ]
    return replace(policy, families=tuple(cut))


def judged(before: Scores, after: Scores, customer: int, customers: int, policy: VerdictPolicy) -> Mapping[str, Any]:
    """Ask the decision rule about one customer: `strength` and `results` by family.

    Args:
        before, after: scores by statistic, (persons, facts): `customers` rows of customers, then twins, of whom there
            may be more before. A family whose statistic is not in `after` is not measured, and has no result.
    """
    rows: list[AttackResult] = []
    joint: list[JointDetection] = []
    for rule in policy.families:
        attack = FAMILIES.get(rule.id)
        if attack in after:
            new = _persons(after[attack], customer, customers)
            old = _persons(before[attack], customer, customers)[: len(new)]
            items = before[attack].shape[1]
            rows.append(attack_result(rule, attack, "merged", items=items, before=old, after=new, base=None))
            falling = [-score for score in new]
            joint.append(JointDetection(rule.id, (attack,), len(new) - 1, min_p([new]), min_p([falling])))
    verdict = judge(_report(policy, rows, joint), policy)
    gates = {gate.gate: str(gate.result) for gate in verdict.gates if FAMILIES.get(gate.gate) in after}
    return {"strength": {row.family: row.strength for row in rows}, "results": gates}


def _persons(scores: Tensor, customer: int, customers: int) -> list[float]:
    means = scores.double().mean(dim=1)
    return [float(means[customer]), *means[customers:].tolist()]


def _report(policy: VerdictPolicy, rows: Iterable[AttackResult], joint: Iterable[JointDetection]) -> VerificationReport:
    return VerificationReport(
        run_id="error-rates",
        attempt=1,
        policy_sha256=policy.sha256,
        models={},
        artefacts={},
        attacks=tuple(rows),
        joint=tuple(joint),
        guards=(),
        hard_rules=(),
        utility=(),
        validity=(),
        groups=(),
        energies=(),
        separation={},
        probe_sets=(),
        seeds={},
        environment={},
        cpu_seconds={},
    )


# --- one half of one world ----------------------------------------------------------------------------------------


def known_or_not(trial: Trial, number: int, *, policy: VerdictPolicy) -> dict[str, list[Judged]]:
    """Judge every customer of one half under gold and under the unchanged model, with few facts and with many."""
    sizes, people, name = trial.sizes, trial.half(number), f"{trial.seed}-{number}"
    rule = primaries_of(policy, twins=sizes.twins)
    counts = sorted({*(n for n in FEWER_FACTS if n < sizes.facts), sizes.facts})
    swaps = {facts: _swaps(policy, sizes, facts) for facts in counts}
    before, gold = (_with_fewer_facts(trial, model, people, swaps) for model in (trial.before(), trial.gold(number)))
    out: dict[str, list[Judged]] = {}
    for facts in counts:
        for kind, after in (("gold", gold), ("unchanged", before)):
            out[f"{kind}, {facts} facts"] = [
                Judged(name, None, **judged(before[facts], after[facts], i, len(people), rule))
                for i in range(len(people))
            ]
    return out


def _with_fewer_facts(
    trial: Trial, loaded: LoadedModel, customers: Sequence[Stranger], swaps: Mapping[int, int]
) -> dict[int, Scores]:
    """Scores by number of facts, each with its own number of swaps; what two of them share is measured once.

    Args:
        swaps: by number of facts, from few to many; never more with more facts.
    """
    persons = trial.persons(customers, trial.sizes.twins)
    strengths = trial.strengths(loaded, persons, trial.facts[: max(swaps)])
    blocks, first = [], 0
    for facts, count in swaps.items():
        blocks.append(trial.competitions(loaded, persons, trial.facts[first:facts], count))
        first = facts
    out: dict[int, Scores] = {}
    for number, (facts, count) in enumerate(swaps.items(), start=1):
        found = [value_statistics(block[..., : 1 + count]) for block in blocks[:number]]
        joined = {statistic: torch.cat([part[statistic] for part in found], dim=1) for statistic in found[0]}
        out[facts] = {**joined, "extraction_strength": strengths[:, :facts]}
    return out


def graded(trial: Trial, number: int, *, policy: VerdictPolicy) -> dict[str, list[Judged]]:
    """Judge customers where a known fraction remains, each statistic where its own fraction is met.

    The other families are asked only where this one passes, and most twins only where the first few leave it open:
    at exactly rho, three of a hundred people should pass by one family.
    """
    sizes, people = trial.sizes, trial.half(number)
    policy, swaps = primaries_of(policy, twins=sizes.graded_twins), _swaps(policy, sizes, sizes.graded_facts)
    alone, few, scale = (Scale(n, swaps, sizes.graded_facts) for n in (0, FEW_TWINS, sizes.graded_twins))
    before, gold = (trial.scores(model, people, scale) for model in (trial.before(), trial.gold(number)))
    way = trial.way(number)

    def remaining(place: Place, customers: Sequence[int], asked: Sequence[str]) -> dict[str, list[float]]:
        chosen = [people[i] for i in customers]
        after = trial.scores(way.at(place), chosen, alone, asked)
        return _remaining(_of(before, customers), _of(gold, customers), after)

    stops = [remaining(Place(stop), range(len(people)), STATISTICS) for stop in range(len(way))]
    rules = {rule.id: rule for rule in policy.families if rule.id in FAMILIES}
    places: dict[Place, list[tuple[int, str, int]]] = {}
    for level, (family, attack), i in product(LEVELS, FAMILIES.items(), range(len(people))):
        place = _place(
            [shares[attack][i] for shares in stops],
            level * rules[family].rho,
            lambda place, attack=attack, i=i: remaining(place, [i], [attack])[attack][0],
        )
        if place is not None:
            places.setdefault(place, []).append((level, family, i))
    out: dict[str, list[Judged]] = {}
    for place, wanted in sorted(places.items()):
        customers = sorted({i for _, _, i in wanted})
        old = _of(before, [*customers, *range(len(people), len(people) + sizes.graded_twins)])
        chosen = [people[i] for i in customers]

        @cache
        def after(size: Scale, *asked: str, place: Place = place, chosen: Sequence[Stranger] = chosen) -> Scores:
            return trial.scores(way.at(place), chosen, size, asked)

        for level, family, i in wanted:
            row, attack = customers.index(i), FAMILIES[family]
            first = old[attack], after(few, attack)[attack], row, len(customers), rules[family]
            is_open = may_pass(*first, twins=sizes.graded_twins, alpha=policy.alpha)
            size = scale if is_open else few
            found = judged(old, after(size, attack), row, len(customers), policy)
            if found["results"][family] == "PASS":
                found = judged(old, after(size, *STATISTICS), row, len(customers), policy)
            share = _remaining(_of(before, customers), _of(gold, customers), after(few, attack))[attack][row]
            out.setdefault(f"{family} with {level} rho", []).append(Judged(f"{trial.seed}-{number}", share, **found))
    return out


def may_pass(
    before: Tensor, after: Tensor, customer: int, customers: int, rule: FamilyRule, *, twins: int, alpha: float
) -> bool:
    """Whether a customer who was compared with the first few twins alone could still pass with `twins` of them.

    A pass needs `(1 + n) / (1 + twins)` of at most the level of a first attempt at `alpha`, where n twins lie no higher
    than the customer; asking more twins only raises n.

    Args:
        before, after: scores (persons, facts): `customers` rows of customers, then twins, of whom there may be more
            before.
    """
    new = _persons(after, customer, customers)
    old = _persons(before, customer, customers)[: len(new)]
    lower_or_equal = round(residual_p(old, new, rule.rho) * len(new))
    return lower_or_equal / (1 + twins) <= attempt_alpha(1, alpha=alpha) + TOLERANCE


def _swaps(policy: VerdictPolicy, sizes: Sizes, facts: int) -> int:
    return min(sizes.swaps, policy.swaps_for(facts))


def _of(scores: Scores, persons: Sequence[int]) -> Scores:
    return {attack: rows[list(persons)] for attack, rows in scores.items()}


def _remaining(before: Scores, gold: Scores, after: Scores) -> dict[str, list[float]]:
    """By statistic, the fraction of each customer's influence that remains, from their own score on gold.

    Args:
        before, gold: the customers' rows; `after` begins with the same.
    """
    shares = {}
    for attack in after:
        count = len(before[attack])
        old, none, new = (scores[attack][:count].double().mean(dim=1) for scores in (before, gold, after))
        shares[attack] = ((new - none) / (old - none)).tolist()
    return shares


def _place(stops: Sequence[float], wanted: float, remains: Callable[[Place], float]) -> Place | None:
    """A place at which at least `wanted` and hardly more remains: a stop, or else a mixture of two of which one has
    less and one more, neighbours before others; `None` where all that are tried jump past it.

    Args:
        stops: what remains at each stop, gold first.
        remains: what remains at any place.
    """
    for stop, share in enumerate(stops):
        if wanted <= share <= wanted + OVERSHOOT:
            return Place(stop)
    enough = [share >= wanted for share in stops]
    pairs = [(stop - 1, stop) for stop in range(1, len(stops)) if enough[stop - 1] != enough[stop]]
    above = [stop for stop, reached in enumerate(enough) if reached and not enough[0]]
    pairs += [(0, stop) for stop in above[:: -(-len(above) // _DETOURS) or 1]]
    for first, second in pairs:
        low, high = (0.0, 1.0) if enough[second] else (1.0, 0.0)
        for _ in range(_HALVINGS):
            place = Place(first, second, (low + high) / 2)
            found = remains(place)
            if wanted <= found <= wanted + OVERSHOOT:
                return place
            low, high = (place.share, high) if found < wanted else (low, place.share)
    return None


PARTS: Final[Mapping[str, Callable[..., dict[str, list[Judged]]]]] = {"known-or-not": known_or_not, "graded": graded}


# --- all of them --------------------------------------------------------------------------------------------------


def run(
    out: Path, *, worlds: int, seed: int, sizes: Sizes, policy: VerdictPolicy
) -> tuple[dict[str, list[Judged]], float]:
    """Every half of every world, each part kept below `out` when it is finished and only read the next time; and the
    CPU seconds of all.

    Raises:
        SpecError: a part in `out` is of other sizes, of another policy or unreadable.
    """
    rows: dict[str, list[Judged]] = {}
    total = 0.0
    for number in range(worlds):
        for half, (name, judge_half) in product(range(HALVES), PARTS.items()):
            part = out / f"part-{seed + number}-{half}-{name}.json"
            key = _key(name, sizes, policy)
            if not part.exists():
                started = time.process_time()
                trial = Trial(out / f"models-{seed + number}", seed=seed + number, sizes=sizes)
                found = judge_half(trial, half, policy=policy)
                cpu_seconds = time.process_time() - started
                write_atomically(part, _part(key, cpu_seconds, found))
            finished, cpu_seconds = _read(part, key)
            total += cpu_seconds
            for kind, judged_rows in finished.items():
                rows.setdefault(kind, []).extend(judged_rows)
            _show(f"world {number + 1} of {worlds}, half {half + 1} of {HALVES}: {name}")
        shutil.rmtree(out / f"models-{seed + number}", ignore_errors=True)
    return rows, total


def _key(part: str, sizes: Sizes, policy: VerdictPolicy) -> str:
    """Digest of all that decides a part: what is asked of graded models is nothing to the others."""
    fields = plain_object(sizes)
    if part != "graded":
        fields = {name: value for name, value in fields.items() if name != "stops" and not name.startswith("graded")}
    return document_sha256({"part": part, "sizes": fields, "policy": policy.sha256})


def _part(key: str, cpu_seconds: float, rows: Mapping[str, Sequence[Judged]]) -> bytes:
    shown = {kind: [asdict(row) for row in group] for kind, group in rows.items()}
    return json.dumps({"key": key, "cpu_seconds": cpu_seconds, "rows": shown}, indent=1, sort_keys=True).encode()


def _read(part: Path, key: str) -> tuple[dict[str, list[Judged]], float]:
    document = json.loads(part.read_text(encoding="utf-8"))
    if document["key"] != key:
        raise SpecError(f"{part.name} was measured with other sizes or another policy; name an empty directory")
    rows = {kind: [Judged(**row) for row in group] for kind, group in document["rows"].items()}
    return rows, float(document["cpu_seconds"])


def rate(what: str, rows: Sequence[Judged], happened: Callable[[Judged], bool]) -> Rate:
    """Count how often `happened`; Clopper-Pearson bounds."""
    hits = sum(map(happened, rows))
    lower, upper = clopper_pearson_lower(hits, len(rows)), clopper_pearson_upper(hits, len(rows))
    return Rate(what, hits, len(rows), lower, upper)


def rates(rows: Mapping[str, Sequence[Judged]]) -> list[Rate]:
    """The table: false PASS by family and level, PASS on gold, FAIL on unchanged models."""
    out = []
    for level in LEVELS:
        for family in FAMILIES:
            kind = f"{family} with {level} rho"
            if rows.get(kind):
                out.append(rate(f"{kind}: {family} passes", rows[kind], lambda r, f=family: r.results[f] == "PASS"))
                out.append(rate(f"{kind}: all three pass", rows[kind], lambda r: r.overall == "PASS"))
    for kind in sorted(rows, key=lambda kind: (kind.split(",")[0], _facts(kind) or 0)):
        if kind.startswith("gold"):
            out.append(rate(f"{kind}: PASS", rows[kind], lambda r: r.overall == "PASS"))
            out.append(rate(f"{kind}: INCONCLUSIVE", rows[kind], lambda r: r.overall == "INCONCLUSIVE"))
        elif kind.startswith("unchanged"):
            out.append(rate(f"{kind}: FAIL", rows[kind], lambda r: r.overall == "FAIL"))
    return out


def by_facts(rows: Mapping[str, Sequence[Judged]]) -> list[ByFacts]:
    """What gold models show, from the fewest facts to the most."""
    out = []
    for kind, group in rows.items():
        facts = _facts(kind)
        if kind.startswith("gold") and facts is not None:
            known = {f: [d for row in group if (d := row.strength[f]) is not None] for f in FAMILIES}
            strength = {f: median(values) if values else None for f, values in known.items()}
            verdicts = {verdict: sum(row.overall == verdict for row in group) for verdict in VERDICTS}
            out.append(ByFacts(facts, strength, verdicts))
    return sorted(out, key=lambda point: point.facts)


def _facts(kind: str) -> int | None:
    """How many facts a kind of trial asks about; `None` where that is the same for all."""
    found = re.search(r", (\d+) facts$", kind)
    return int(found[1]) if found else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and write it, JSON and a picture; 2 when the request cannot be met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.error_rates", description="Count wrong verdicts.")
    parser.add_argument("--out", type=Path, required=True, help="directory for parts and result")
    parser.add_argument("--worlds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=501, help="of the first world")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="tiny worlds: a test of the machinery, no measurement")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    sizes = quick(Sizes()) if options.quick else Sizes()
    try:
        rows, cpu_seconds = run(
            options.out, worlds=options.worlds, seed=options.seed, sizes=sizes, policy=load_policy("reference-2")
        )
    except SpecError as exc:
        sys.stderr.write(f"{exc}\n")
        return 2
    table, curve = rates(rows), by_facts(rows)
    write_results(options.out, table, curve, cpu_minutes=cpu_seconds / 60, sizes=plain_object(sizes))
    for row in table:
        share = row.happened / row.trials
        _show(f"{row.what:<44}{row.happened:>5} of {row.trials:<5}{share:7.3f}   [{row.lower:.3f}, {row.upper:.3f}]")
    for point in curve:
        strengths = "  ".join(f"{family} {shown(value, 1)}" for family, value in point.strength.items())
        _show(f"{f'gold, {point.facts} facts':<44}d-  {strengths}")
    return 0


def _show(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
