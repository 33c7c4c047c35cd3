"""The jobs of the meta-evaluation, and what their results add up to.

A job trains a model, scores one person on one model (a cell), or lets the decision rule judge a candidate. A person's
twins, swaps and questions are the same on every model, so that what differs is what the model learned.
"""

from __future__ import annotations

import platform
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from filelock import FileLock

from benchmarks.pool import FineTune, Pool, PoolSizes, made_once, written_once
from benchmarks.relearning import teach_adapter
from benchmarks.suppressed import (
    OutputFilteredBench,
    adapter_hidden,
    edited,
    over_forgotten,
    refusing,
    scrambled_name,
    shifted_logits,
)
from ml.attacks import ATTACKS
from ml.data.collate import encode_records
from ml.data.dossiers import answered_span, open_facts, read_dossier
from ml.data.probes import probe_digests, write_probe_digests
from ml.data.records import write_records
from ml.data.synthetic import Stranger, StrangerFactory, rewrite
from ml.decision import Result, judge
from ml.digests import file_sha256, model_manifest
from ml.documents import Json
from ml.errors import EmptySetError
from ml.loop import ignore_progress, never_stop
from ml.metrics.meta import (
    faithfulness,
    harmonic_mean,
    quantisation_robustness,
    quantisation_robustness_one_sided,
    relearning_robustness,
    relearning_robustness_one_sided,
    twin_position,
    twin_rank,
)
from ml.models.load import LoadedModel
from ml.models.quantise import ROUNDINGS
from ml.policies import written_policy
from ml.specs import (
    FamilyRule,
    FileRef,
    ModelRef,
    Record,
    UnlearningSpec,
    VerdictPolicy,
    VerificationSpec,
    seed_commitment,
)
from ml.trust import AttackTrust, KindVerdicts, MetaEvaluation
from ml.unlearn import TRAINING_PROBES, code_sha256, run_unlearning
from ml.verification.bench import Bench
from ml.verification.families import Family
from ml.verification.parts import Failure
from ml.verification.plan import make_plan
from ml.verification.tiers import fast_tier
from ml.verify import run_verification

SCALES: Final = ("position", "rank", "raw")
"""Twin standard deviations above the twins, share of twins below, and the attack's own score."""

Found = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TrialSizes:
    """The pool, the policy tried, what a cell asks, and on how many pairs the dearer questions are asked.

    Dearer ones are asked of pairs of the last recipe, which teaches most. `methods` are the deletions tried, with
    their settings; `kinds` are the candidates judged, every kind if none is named.
    """

    pool: PoolSizes
    policy: str
    twins: int
    swaps: int
    prompts: int
    rounded_pairs: int
    relearned_pairs: int
    judged_pairs: int
    methods: Mapping[str, Mapping[str, Json]]
    kinds: tuple[str, ...] = ()


def cell_policy(policy: VerdictPolicy, *, twins: int, swaps: int, prompts: int) -> VerdictPolicy:
    """Every attack of the registry in a family of its own: a primary where `policy` has it as one, otherwise not."""
    primaries = {attack for rule in policy.families for attack in rule.primary}

    def rule(attack: str) -> FamilyRule:
        alone, none = (attack,), ()
        first, second = (alone, none) if attack in primaries else (none, alone)
        return FamilyRule(attack, first, second, ("merged",), rho=0.2, rho_over=None, twins=twins)

    families = tuple(map(rule, ATTACKS))
    return replace(
        policy,
        name=f"{policy.name}-cells",
        purpose="test",
        swaps=swaps,
        value_contests=None,
        generation_prompts=prompts,
        families=families,
        utility=(),
        hard_rules=(),
    )


def statistical_part(policy: VerdictPolicy) -> VerdictPolicy:
    """The fast tier of `policy` and its relearning families: what judges pretenders here, limits unchanged."""
    fast = fast_tier(policy)
    attacks = {rule.id: {ATTACKS[a].reads for a in (*rule.primary, *rule.detection)} for rule in policy.families}
    relearning = tuple(rule for rule in policy.families if attacks[rule.id] == {"relearned"})
    return replace(fast, name=f"{policy.name}-statistics", families=(*fast.families, *relearning))


class Trial:
    """One meta-evaluation below `work`."""

    def __init__(self, work: Path, sizes: TrialSizes, *, seed: int) -> None:
        self.work, self.sizes, self.seed = work, sizes, seed
        self.pool = Pool(work / "pool", sizes.pool, seed=seed, on_progress=ignore_progress)
        self.policy = written_policy(sizes.policy)
        self.asked = cell_policy(self.policy, twins=sizes.twins, swaps=sizes.swaps, prompts=sizes.prompts)

    @property
    def tunes(self) -> tuple[FineTune, ...]:
        """Every fine-tuned model of the pool."""
        return self.pool.fine_tunes

    def _strongest(self, pairs: int) -> list[FineTune]:
        """The first models of the first `pairs` pairs of the last recipe."""
        last = self.sizes.pool.recipes[-1]
        return [tune for tune in self.tunes if tune.recipe == last and tune.number % 2 == 0][:pairs]

    def _other(self, tune: FineTune) -> FineTune:
        """The other model of a pair: it learned none of this one's people."""
        return self.tunes[tune.number ^ 1]

    # --- jobs ---

    def jobs(self) -> dict[str, Callable[[], Any]]:
        """Every job by name, in an order in which each finds what it needs; the first word of a name is its kind."""
        return dict(self._jobs())

    def _jobs(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        yield "base", lambda: self.pool.base().manifest_sha256
        for tune in self.tunes:
            yield f"train-{tune.name}", partial(self._trained, tune)
            for person in (*tune.scored, *tune.left_out):
                yield cell_name(tune, person), partial(self._cell, tune, person, "merged")
        for tune in self._strongest(self.sizes.rounded_pairs):
            for model in (tune, self._other(tune)):
                for person in (model.scored[0], model.left_out[0]):
                    for role in ROUNDINGS:
                        yield cell_name(model, person, role), partial(self._cell, model, person, role)
        for tune in self._strongest(self.sizes.relearned_pairs):
            yield from self._relearning_jobs(tune)
        # Turn by turn: who works beside finds a job of another person, whose parts nobody holds.
        judged = [list(self._judging_jobs(tune)) for tune in self._strongest(self.sizes.judged_pairs)]
        yield from chain.from_iterable(zip(*judged, strict=True))

    def _trained(self, tune: FineTune) -> str:
        return self.pool.model(tune).manifest_sha256

    def _cell(self, tune: FineTune, person: Stranger, role: str) -> Found:
        return self._scored(self.pool.model(tune), person, role)

    def _relearning_jobs(self, tune: FineTune) -> Iterator[tuple[str, Callable[[], Any]]]:
        """Teach half of one person's facts to a model that never learned them, and to one that unlearned them."""
        person = tune.scored[0]
        other = self._other(tune)
        yield f"relearned-{other.name}", lambda: self._relearned(self.pool.model(other), person, other.name)
        for method in self.sizes.methods:
            yield f"unlearned-{tune.name}-{method}", partial(self._unlearned_cell, tune, method)
            yield f"relearned-{tune.name}-{method}", partial(self._unlearned_relearned, tune, method)

    def _unlearned_cell(self, tune: FineTune, method: str) -> Found:
        return self._scored(self._unlearned(tune, method), tune.scored[0], "merged")

    def _unlearned_relearned(self, tune: FineTune, method: str) -> Found:
        return self._relearned(self._unlearned(tune, method), tune.scored[0], f"{tune.name}-{method}")

    def _judging_jobs(self, tune: FineTune) -> Iterator[tuple[str, Callable[[], Any]]]:
        for kind in self.kinds(tune):
            yield f"make-{tune.name}-{_slug(kind)}", partial(self._made_sha256, tune, kind)
            yield f"kind-{tune.name}-{_slug(kind)}", partial(self._kind_scored, tune, kind)
            yield f"judge-{tune.name}-{_slug(kind)}", partial(self._judged, tune, kind)

    # --- candidates ---

    def kinds(self, tune: FineTune) -> dict[str, Callable[[], ModelRef]]:
        """What the decision rule is asked to judge, by kind: two that may pass, deletions, and pretenders."""
        before, person, kept = self.pool.model, tune.scored[0], self._kept(tune)
        own = self.pool.records([person])
        everybody = [*own, *kept]
        deletions = {f"deleted by {name}": partial(self._unlearned, tune, name) for name in self.sizes.methods}
        every: dict[str, Callable[[], ModelRef]] = {
            "never learned (gold)": lambda: self.pool.without(tune, person),
            **deletions,
            "nothing done": lambda: before(tune),
            "output filtered": lambda: before(tune),
            "logits shifted": self._maker(tune, "shifted", lambda path: shifted_logits(before(tune), path)),
            "name scrambled": self._maker(
                tune, "scrambled", lambda path: scrambled_name(before(tune), path, person.name)
            ),
            "refuses everybody": self._maker(tune, "refusing", lambda path: refusing(before(tune), path, everybody)),
            "refuses this person": self._maker(
                tune, "refusing-one", lambda path: refusing(before(tune), path, own, kept)
            ),
            "adapter hidden": self._maker(
                tune, "hidden", lambda path: adapter_hidden(before(tune), path, self._untrue(tune), kept)
            ),
            "adapter hidden, half peeled": self._maker(
                tune, "peeled", lambda path: adapter_hidden(before(tune), path, self._untrue(tune), kept, scale=0.5)
            ),
            "over-forgotten": self._maker(tune, "ascended", lambda path: over_forgotten(before(tune), path, own, kept)),
        }
        return {kind: make for kind, make in every.items() if not self.sizes.kinds or kind in self.sizes.kinds}

    def _maker(self, tune: FineTune, name: str, make: Callable[[Path], ModelRef]) -> Callable[[], ModelRef]:
        return partial(made_once, self.work / "candidates" / f"{tune.name}-{name}", make)

    def _made_sha256(self, tune: FineTune, kind: str) -> str:
        return self.kinds(tune)[kind]().manifest_sha256

    def _kept(self, tune: FineTune) -> list[Record]:
        """What the model learned of everybody but the person who is to be forgotten."""
        return self.pool.records([*self.pool.world.base, *tune.learned[1:]])

    def _untrue(self, tune: FineTune) -> list[Record]:
        """The person's texts with values that nobody has."""
        world, person = self.pool.world, tune.scored[0]
        corpus = self.pool.records([*world.base, *world.customers])
        rng = random.Random(f"{self.seed}:untrue:{tune.number}")  # noqa: S311 - to be repeated, not secret
        factory = StrangerFactory(rng, corpus, shared_values=world.shared_values)
        values = {name: factory.value(name, world.bank.attributes[name].type) for name in sorted(person.values)}
        return [rewrite(record, values=values) for record in self.pool.records([person])]

    def _unlearned(self, tune: FineTune, method: str) -> ModelRef:
        """The model after a deletion of its first scored person by the product's own run."""
        run = self.work / "unlearned" / f"{tune.name}-{method}"
        run.mkdir(parents=True, exist_ok=True)
        spec = UnlearningSpec(
            run_id=run.name,
            model=self.pool.model(tune),
            forget=written_once(
                run / "forget.jsonl", lambda path: write_records(path, self.pool.records(tune.scored[:1]))
            ),
            retain=written_once(run / "retain.jsonl", lambda path: write_records(path, self._kept(tune))),
            neighbours=None,
            question_bank=self.pool.bank,
            method=method,
            settings=self.sizes.methods[method],
            seed=self.seed,
            output_dir=str(run / "model"),
            checkpoint_dir=str(run / "checkpoint"),
        )
        return made_once(Path(spec.output_dir), lambda _: run_unlearning(spec))

    def _relearned(self, start: ModelRef, person: Stranger, name: str) -> Found:
        """Teach `start` half of the person's facts as attack T1 would, and score the person on what comes of it."""
        budget = self.policy.relearning
        records = self.pool.records([person])
        facts = open_facts(
            read_dossier(records), self.pool.world.bank, self.pool.records(self.pool.everybody_but(person))
        )
        rng = random.Random(f"{self.seed}:relearned:{person.person}")  # noqa: S311 - to be repeated, not secret
        taught = sorted(rng.sample(list(facts), round(budget.share * len(facts))))
        lessons = [record for fact in taught for record in records if answered_span(record, fact) is not None]

        def teach(loaded: LoadedModel) -> Any:
            rows = encode_records(loaded.tokenizer, lessons, context=loaded.context)
            teach_adapter(loaded, rows, budget, seed=self.seed)
            return loaded.model

        ref = made_once(self.work / "candidates" / f"relearned-{name}", lambda path: edited(start, path, teach))
        return self._scored(ref, person, "merged")

    # --- measurements ---

    def _scored(
        self, candidate: ModelRef, person: Stranger, role: str, make_bench: Callable[..., Bench] = Bench
    ) -> Found:
        """Score one person on one model by every attack, against the same twins wherever this person is asked about.

        An attack that crashed has a reason in place of its scores.
        """
        spec = self._spec(candidate, person, self.pool.everybody_but(person), policy=self.asked)
        with _alone(spec):
            bench = make_bench(spec, make_plan(spec), on_progress=ignore_progress, should_stop=never_stop)
            return {rule.id: _attack_scores(Family(bench, rule), role) for rule in self.asked.families}

    def _kind_scored(self, tune: FineTune, kind: str) -> Found:
        make_bench = OutputFilteredBench if kind == "output filtered" else Bench
        return self._scored(self.kinds(tune)[kind](), tune.scored[0], "merged", make_bench)

    def _judged(self, tune: FineTune, kind: str) -> Found:
        """The verdict of the policy's statistical part on one candidate."""
        candidate = self.kinds(tune)[kind]()
        person = tune.scored[0]
        others = [*self.pool.world.base, *tune.learned[1:]]
        spec = self._spec(candidate, person, others, policy=statistical_part(self.policy), before=self.pool.model(tune))
        probes = self.work / "unlearned" / f"{tune.name}-{kind.removeprefix('deleted by ')}" / "checkpoint"
        if kind.startswith("deleted by "):
            path = probes / TRAINING_PROBES
            drawn = FileRef(str(path), file_sha256(path))
        else:
            told = probe_digests(record.text for record in self.pool.records([person]))
            own = self.work / f"training_probes-{person.person}.json"
            drawn = written_once(own, lambda path: write_probe_digests(path, told))
        with _alone(spec):
            report = run_verification(
                replace(spec, training_probes=drawn), on_progress=ignore_progress, should_stop=never_stop
            )
        verdict = judge(report, spec.policy)
        families = [Result(gate.result) for gate in verdict.gates if gate.kind == "family"]
        worst = next(r for r in (Result.ERROR, Result.FAIL, Result.INCONCLUSIVE, Result.PASS) if r in families)
        return {
            "result": str(verdict.result),
            "families": str(worst),
            "reasons": sorted({f"{finding.code} in {finding.gate}" for finding in verdict.findings}),
        }

    def _spec(
        self,
        candidate: ModelRef,
        person: Stranger,
        others: Sequence[Stranger],
        *,
        policy: VerdictPolicy,
        before: ModelRef | None = None,
    ) -> VerificationSpec:
        folder = self.work / "people" / f"{person.person}-{len(others)}"
        folder.mkdir(parents=True, exist_ok=True)
        return VerificationSpec(
            run_id="meta-evaluation",
            attempt=1,
            policy=policy,
            candidate=candidate,
            before=self.pool.base() if before is None else before,
            base=self.pool.base(),
            forget=written_once(folder / "forget.jsonl", lambda path: write_records(path, self.pool.records([person]))),
            retain=written_once(folder / "retain.jsonl", lambda path: write_records(path, self.pool.records(others))),
            neighbours=None,
            question_bank=self.pool.bank,
            seed=self.seed,
            seed_commitment_sha256=seed_commitment("meta-evaluation", self.seed),
            parts_dir=str(folder / "parts"),
            bystanders=self.pool.bystanders,
        )

    # --- results ---

    def results(self, found: Found, *, cpu_seconds: float) -> MetaEvaluation:
        """Put the results of all jobs together."""
        return MetaEvaluation(
            pool=self._described(),
            attacks=tuple(self._trust(attack, found) for attack in ATTACKS),
            kinds=tuple(self._kind_verdicts(found)),
            environment={
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "threads": str(torch.get_num_threads()),
                "code_sha256": code_sha256(),
                "base_manifest_sha256": model_manifest(self.pool.root / "models" / "base").manifest_sha256,
            },
            cpu_seconds=cpu_seconds,
        )

    def _described(self) -> dict[str, str]:
        pool = self.sizes.pool
        return {
            "seed": str(self.seed),
            "models": str(len(self.tunes)),
            "base people": str(pool.base_people),
            "people a model adds": str(len(self.tunes[0].learned)),
            "people scored": str(len({person.person for tune in self.tunes for person in tune.scored})),
            "facts a person": str(sum(not self.pool.world.bank.attributes[a].shared for a in pool.attributes)),
            "epochs by recipe": ", ".join(str(stage.epochs) for stage in pool.recipes),
            "twins": str(self.sizes.twins),
            "policy": self.sizes.policy,
            "policy_sha256": self.policy.sha256,
        }

    def _trust(self, attack: str, found: Found) -> AttackTrust:
        learned = [[found[cell_name(t, p)][attack] for p in t.scored] for t in self.tunes]
        left_out = [[found[cell_name(t, p)][attack] for p in t.left_out] for t in self.tunes]
        counts = {"learned": _measured(learned), "not_learned": _measured(left_out), "models": len(self.tunes)}
        missing = sorted({cell["reason"] for row in (*learned, *left_out) for cell in row if "reason" in cell})
        if missing:
            return AttackTrust(attack, **counts, faithfulness=None, lower=None, reason=", ".join(missing))
        bounds = {
            scale: faithfulness(_column(learned, scale), _column(left_out, scale), seed=self.seed) for scale in SCALES
        }
        numbers = {
            f"{scale}_{end}": getattr(bounds[scale], end) for scale in ("rank", "raw") for end in ("mean", "lower")
        }
        first = bounds["position"]
        robust = {**self._quantised(attack, found), **self._taught_again(attack, found)}
        for form in ("", "_one_sided"):
            if {f"relearning{form}", f"quantisation{form}"} <= set(robust):
                robust[f"harmonic_mean{form}"] = harmonic_mean(
                    robust[f"relearning{form}"], robust[f"quantisation{form}"]
                )
        return AttackTrust(attack, **counts, faithfulness=first.mean, lower=first.lower, numbers={**numbers, **robust})

    def _quantised(self, attack: str, found: Found) -> dict[str, float]:
        """Robustness to rounding on people whom the model learned, and how far rounding moves those it did not."""
        known, unknown = [], []
        for tune in self._strongest(self.sizes.rounded_pairs):
            for model in (tune, self._other(tune)):
                for rows, person in ((known, model.scored[0]), (unknown, model.left_out[0])):
                    before = found[cell_name(model, person)][attack]
                    after = [found[cell_name(model, person, role)][attack] for role in ROUNDINGS]
                    rows += [(before["position"], cell["position"]) for cell in after if "position" in cell]
        if not known or not unknown:
            return {}
        return {
            **_means("quantisation", quantisation_robustness, known),
            **_means("quantisation_one_sided", quantisation_robustness_one_sided, known),
            "quantisation_shift_not_learned": sum(abs(b - a) for a, b in unknown) / len(unknown),
        }

    def _taught_again(self, attack: str, found: Found) -> dict[str, float]:
        """Robustness to relearning: changes on models that unlearned a person and on one that never learned them.

        Over all deletions that were tried together, and for each alone.
        """
        changes = {method: self._changes(attack, method, found) for method in self.sizes.methods}
        pooled = [pair for pairs in changes.values() for pair in pairs]
        numbers = {
            **_means("relearning", relearning_robustness, pooled),
            **_means("relearning_one_sided", relearning_robustness_one_sided, pooled),
        }
        for method, pairs in changes.items():
            numbers |= _means(f"relearning_after_{method}", relearning_robustness, pairs)
        return numbers

    def _changes(self, attack: str, method: str, found: Found) -> list[tuple[float, float]]:
        """By how much relearning moves the position after one deletion, and where the person was never learned."""
        changes = []
        for tune in self._strongest(self.sizes.relearned_pairs):
            other = self._other(tune)
            cells = [
                found[f"unlearned-{tune.name}-{method}"][attack],
                found[f"relearned-{tune.name}-{method}"][attack],
                found[cell_name(other, tune.scored[0])][attack],
                found[f"relearned-{other.name}"][attack],
            ]
            if all("position" in cell for cell in cells):
                u0, u1, r0, r1 = (cell["position"] for cell in cells)
                changes.append((u1 - u0, r1 - r0))
        return changes

    def _kind_verdicts(self, found: Found) -> Iterator[KindVerdicts]:
        tunes = self._strongest(self.sizes.judged_pairs)
        for kind in self.kinds(tunes[0]):
            verdicts = [found[f"judge-{tune.name}-{_slug(kind)}"] for tune in tunes]
            cells = [found[f"kind-{tune.name}-{_slug(kind)}"] for tune in tunes]
            positions: defaultdict[str, list[float]] = defaultdict(list)
            for cell in cells:
                for attack, scores in cell.items():
                    if "position" in scores:
                        positions[attack].append(scores["position"])
            yield KindVerdicts(
                kind=kind,
                candidates=len(tunes),
                results=dict(Counter(verdict["result"] for verdict in verdicts)),
                families=dict(Counter(verdict["families"] for verdict in verdicts)),
                reasons=tuple(sorted({reason for verdict in verdicts for reason in verdict["reasons"]})),
                positions={attack: sum(values) / len(values) for attack, values in positions.items()},
            )

    def table(self, found: Found) -> list[dict[str, str | float]]:
        """One row per person, model, state and attack that was scored."""
        rows: list[dict[str, str | float]] = []
        for name, result in found.items():
            if isinstance(result, Mapping) and set(result) == set(ATTACKS):
                for attack, scores in result.items():
                    rows.append({"job": name, "learned": self._learned(name), "attack": attack, **scores})
        return rows

    @cached_property
    def _pairs_learned(self) -> frozenset[str]:
        return frozenset(cell_name(tune, person) for tune in self.tunes for person in tune.scored)

    def _learned(self, name: str) -> str:
        """Whether a plain cell's person was learned by its model; other states have no plain answer."""
        if not name.startswith("cell-"):
            return ""
        plain = name.removesuffix("-int8").removesuffix("-int4")
        return "yes" if plain in self._pairs_learned else "no"


def _alone(spec: VerificationSpec) -> FileLock:
    """Held while one person is measured: whoever works beside shares the finished parts, and writes none of them."""
    return FileLock(Path(spec.parts_dir).with_name("parts.lock"))


def cell_name(tune: FineTune, person: Stranger, role: str = "merged") -> str:
    """Name of the job that scores a person on a model as it is or rounded."""
    return f"cell-{tune.name}-{person.person}" + ("" if role == "merged" else f"-{role}")


def _slug(kind: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in kind)


def _attack_scores(family: Family, role: str) -> dict[str, float] | dict[str, str]:
    (attack,) = family.attacks
    items, scores = family.items(attack, role), family.scores(attack, role)
    if isinstance(items, Failure) or isinstance(scores, Failure):
        return {"reason": scores.reason if isinstance(scores, Failure) else "unknown"}
    return {
        "position": twin_position(scores, resolution=1 / items.shape[1]),
        "rank": twin_rank(scores),
        "raw": float(items[0].double().mean()),
    }


def _measured(rows: Sequence[Sequence[Mapping[str, Any]]]) -> int:
    return sum("position" in cell for row in rows for cell in row)


def _column(rows: Sequence[Sequence[Mapping[str, Any]]], scale: str) -> list[list[float]]:
    return [[float(cell[scale]) for cell in row] for row in rows]


def _means(
    name: str, measure: Callable[[float, float], float], pairs: Sequence[tuple[float, float]]
) -> dict[str, float]:
    """Mean over the pairs for which the measure is defined; absent when there is none."""
    values = []
    for first, second in pairs:
        try:
            values.append(measure(first, second))
        except EmptySetError:
            continue
    return {name: sum(values) / len(values)} if values else {}
