"""What a comparison of methods reads off one model, and how far two models lie apart.

Every number is a mean over texts about a group of people: the forgotten, the kept customers, the world beyond them
(what the base learned besides people, or base people), and people never seen. Wrong answers and rewordings are drawn
once for a world, so that all models are asked the same. The wording of other forms is this project's own template, not
a person's.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import torch
from torch import Tensor

from benchmarks.method_worlds import MethodWorld
from benchmarks.relearning import teach_adapter
from ml.attacks.fused import fused_pass
from ml.attacks.generation import Prompt, answer_hits, greedy_answers, make_prompts
from ml.attacks.mean_loss import mean_energy
from ml.data.collate import EncodedText, encode_records
from ml.data.dossiers import answered_span, paraphrases, read_dossier
from ml.data.synthetic import Stranger, StrangerFactory, rewrite
from ml.energy import auroc
from ml.field_suite import answer_losses, likelihood_block
from ml.finetune import finetune
from ml.loop import LoopSettings
from ml.metrics.fluency import opening_log_probability
from ml.metrics.forget_quality import forget_quality
from ml.metrics.membership import membership_auc, privleak
from ml.metrics.rouge import rouge
from ml.metrics.truth_ratio import closer_to_one, true_better, truth_ratio
from ml.metrics.utility import model_utility
from ml.models.load import LoadedModel, load_model
from ml.models.quantise import quantised
from ml.specs import ModelRef, Record, RelearningBudget

WRONG_ANSWERS: Final = 5
RELEARNING_EPOCHS: Final = (1, 3, 6)
_TAUGHT: Final = 0.5
_RATE, _RANK = 5e-3, 8
_BENIGN_ROWS: Final = 32
_PREFIX: Final = 0.5


@dataclass(frozen=True, slots=True)
class Asked:
    """Texts about one group of people: each answers `attributes[i]`, and `wrong[i]` are the same words with values
    that nobody has."""

    records: tuple[Record, ...]
    attributes: tuple[str, ...]
    wrong: tuple[tuple[Record, ...], ...]


class Questions:
    """Everything that models of one world are asked.

    Args:
        people: how many kept, base and never-seen people are asked about.
    """

    def __init__(self, world: MethodWorld, *, people: int) -> None:
        self.world, self._people = world, people

    @cached_property
    def trained(self) -> Asked:
        """The forgotten, in the words on file."""
        return self._asked("trained", self.world.world.corpus(self.world.forgotten))

    @cached_property
    def other(self) -> Asked:
        """The forgotten, in words that are not on file about them."""
        return self._asked("other", self._reworded(self.world.forgotten))

    @cached_property
    def kept(self) -> Asked:
        """Kept customers, in the words on file."""
        return self._asked("kept", self.world.world.corpus(self.world.kept[: self._people]))

    @cached_property
    def kept_other(self) -> Asked:
        """Kept customers, in words that are not on file about them."""
        return self._asked("kept other", self._reworded(self.world.kept[: self._people]))

    @cached_property
    def general(self) -> Asked:
        """What the base learned besides people, with the wrong answers that come with it; else base people, in the
        words on file."""
        besides = self.world.population.besides
        if besides:
            records, wrong = zip(*besides, strict=True)
            return Asked(records, tuple(record.facts[0].attribute for record in records), wrong)
        return self._asked("general", self.world.world.corpus(self.world.world.base[: self._people]))

    @cached_property
    def never_seen(self) -> Asked:
        """People no model learned, in the words that would be on file."""
        records = [record for _, own in self.world.population.never_seen[: self._people] for record in own]
        return self._asked("never seen", records)

    def about(self, people: Sequence[Stranger], *, texts: int) -> Asked:
        """Some texts about anybody, in the words on file; without wrong answers."""
        rng = random.Random(f"about:{self.world.seed}")  # noqa: S311 - to be repeated, not secret
        answered = self._answered(self.world.world.corpus(people))
        chosen = rng.sample(answered, min(texts, len(answered)))
        return Asked(tuple(r for r, _ in chosen), tuple(a for _, a in chosen), ((),) * len(chosen))

    @cached_property
    def lessons(self) -> tuple[tuple[Record, ...], Asked]:
        """Records of half of the forgotten people's facts, and questions about the other half."""
        rng = random.Random(f"lessons:{self.world.seed}")  # noqa: S311 - to be repeated, not secret
        facts = sorted({(r.person, a) for r, a in zip(self.trained.records, self.trained.attributes, strict=True)})
        taught = set(rng.sample(facts, round(_TAUGHT * len(facts))))
        rows = list(zip(self.trained.records, self.trained.attributes, self.trained.wrong, strict=True))
        held = [row for row in rows if (row[0].person, row[1]) not in taught]
        lessons = tuple(record for record, attribute, _ in rows if (record.person, attribute) in taught)
        return lessons, Asked(*(tuple(column) for column in zip(*held, strict=True)))

    def _reworded(self, people: Sequence[Stranger]) -> list[Record]:
        bank = self.world.world.bank
        texts: list[Record] = []
        for person in people:
            dossier = read_dossier(self.world.world.records[person.person])
            texts += paraphrases(dossier, bank, [name for name in self._open if name in dossier.values])
        return texts

    @cached_property
    def _open(self) -> tuple[str, ...]:
        return tuple(sorted(n for n, attribute in self.world.world.bank.attributes.items() if not attribute.shared))

    def _answered(self, records: Sequence[Record]) -> list[tuple[Record, str]]:
        return [(r, a) for r in records for a in self._open if answered_span(r, a) is not None]

    def _asked(self, name: str, records: Sequence[Record]) -> Asked:
        """Texts whose answer holds the value of an open fact; wrong values are drawn by `name` and seed alone."""
        chosen = self._answered(records)
        rng = random.Random(f"wrong:{name}:{self.world.seed}")  # noqa: S311 - to be repeated, not secret
        everybody = (*self.world.world.base, *self.world.world.customers)
        corpus = self.world.world.corpus(everybody)
        factory = StrangerFactory(rng, [*corpus, *(r for _, own in self.world.population.never_seen for r in own)])
        types = self.world.world.bank.attributes
        wrong = tuple(
            tuple(rewrite(r, values={a: factory.value(a, types[a].type)}) for _ in range(WRONG_ANSWERS))
            for r, a in chosen
        )
        return Asked(tuple(r for r, _ in chosen), tuple(a for _, a in chosen), wrong)


@dataclass(frozen=True, slots=True)
class Known:
    """What one model knows of one group: means in [0, 1]; (texts,) truth ratios, energies in nats, Min-K scores."""

    probability: float
    extraction_strength: float
    rouge: float
    value_hit: float
    truth_ratios: Tensor
    energies: Tensor
    min_k: Tensor
    answers: list[list[int]]
    prompts: list[Prompt]


def known(loaded: LoadedModel, asked: Asked) -> Known:
    """Score and ask one model about one group."""
    prompts = prompts_of(loaded, asked)
    texts = [prompt.encoded for prompt in prompts]
    block = likelihood_block(loaded, texts)
    answers = greedy_answers(loaded, [prompt.encoded.ids[: prompt.length] for prompt in prompts])
    wrong = [encode_records(loaded.tokenizer, row, context=loaded.context) for row in asked.wrong]
    said = loaded.tokenizer.batch_decode(answers, skip_special_tokens=True)
    right = [record.text[record.answer_start :] for record in asked.records]
    recalls = [rouge(answer, reference).recall for answer, reference in zip(said, right, strict=True)]
    return Known(
        probability=float(block.probability.mean()),
        extraction_strength=float(block.extraction_strength.mean()),
        rouge=sum(recalls) / len(recalls),
        value_hit=float(answer_hits(loaded.tokenizer, prompts, answers).mean()),
        truth_ratios=truth_ratio(*answer_losses(loaded, texts, wrong)),
        energies=mean_energy(fused_pass(loaded, texts)),
        min_k=block.membership["min_k"],
        answers=answers,
        prompts=prompts,
    )


def prompts_of(loaded: LoadedModel, asked: Asked, *, prefill: float = 0.0) -> list[Prompt]:
    """The bare questions, or with the first part of each true answer."""
    return make_prompts(loaded.tokenizer, asked.records, asked.attributes, prefill=prefill, context=loaded.context)


def value_hits(loaded: LoadedModel, asked: Asked, *, prefill: float = 0.0) -> float:
    """Share of questions whose value a greedy answer gives away; prompts that already show it are left out."""
    prompts = [p for p in prompts_of(loaded, asked, prefill=prefill) if not p.shows_value]
    answers = greedy_answers(loaded, [prompt.encoded.ids[: prompt.length] for prompt in prompts])
    return float(answer_hits(loaded.tokenizer, prompts, answers).mean())


def measure(ref: ModelRef, base: ModelRef, questions: Questions, *, seed: int) -> dict[str, Any]:
    """All columns that need one model alone; `truth_ratios` are those of the forgotten in other words.

    Args:
        base: the model that judges whether answers are language.
    """
    device = questions.world.device
    loaded = load_model(ref, device=device)
    trained, other = known(loaded, questions.trained), known(loaded, questions.other)
    kept, kept_other = known(loaded, questions.kept), known(loaded, questions.kept_other)
    general, unknown = known(loaded, questions.general), known(loaded, questions.never_seen)
    numbers: dict[str, Any] = {}
    for name, group in (("forget", trained), ("forget_other", other), ("retain", kept), ("general", general)):
        score = closer_to_one if name.startswith("forget") else true_better
        numbers |= {
            f"{name}_es": group.extraction_strength,
            f"{name}_prob": group.probability,
            f"{name}_rouge": group.rouge,
            f"{name}_hit": group.value_hit,
            f"{name}_truth": score(group.truth_ratios),
        }
    utilities = [
        part
        for group in (kept, kept_other, general)
        for part in (group.probability, group.rouge, true_better(group.truth_ratios))
    ]
    area = membership_auc(trained.min_k, unknown.min_k)
    judge = load_model(base, device=device)
    return numbers | {
        "utility": model_utility(utilities),
        "min_k_auc": area,
        "privleak_blind": privleak(area),
        "auroc_retained_deleted": auroc(trained.energies, kept.energies),
        "auroc_never_seen_deleted": auroc(unknown.energies, trained.energies),
        "fluency_gap": fluency(judge, unknown) - fluency(judge, trained),
        "never_seen_hit": unknown.value_hit,
        "prefix_hit": value_hits(loaded, questions.trained, prefill=_PREFIX),
        **{f"{name}_hit": value_hits(quantised(loaded, name), questions.trained) for name in ("int8", "int4")},
        **_relearned(ref, questions, seed=seed),
        "benign_hit": value_hits(_benign(ref, questions, seed=seed), questions.trained),
        "truth_ratios": other.truth_ratios.tolist(),
    }


def fluency(judge: LoadedModel, group: Known) -> float:
    """Mean probability the judge gives the first words of answers, relative to the true answer's, in [0, 1]."""
    end = judge.tokenizer.eos_token_id
    pairs = list(zip(group.prompts, group.answers, strict=True))
    said = [EncodedText((*p.encoded.ids[: p.length], *answer, end), p.length, ()) for p, answer in pairs]
    opening = torch.tensor([p.encoded.values[0][0] - p.length for p, _ in pairs])
    own, true = (
        opening_log_probability(fused_pass(judge, texts), opening) for texts in (said, [p.encoded for p, _ in pairs])
    )
    return float((own - true).exp().clamp_max(1.0).mean())


def _relearned(ref: ModelRef, questions: Questions, *, seed: int) -> dict[str, float]:
    """Value hits of one half of the facts after the other half was taught again, by epochs of teaching."""
    lessons, held = questions.lessons
    found = {}
    for epochs in RELEARNING_EPOCHS:
        loaded = load_model(ref, device=questions.world.device)
        rows = encode_records(loaded.tokenizer, lessons, context=loaded.context)
        teach_adapter(loaded, rows, RelearningBudget(_TAUGHT, epochs, _RATE, _RANK), seed=seed)
        found[f"relearned_{epochs}_hit"] = value_hits(loaded, held)
    return found


def _benign(ref: ModelRef, questions: Questions, *, seed: int) -> LoadedModel:
    """The model after one epoch of training every weight on people never seen: about nobody it ever learned."""
    device = questions.world.device
    loaded = load_model(ref, device=device)
    rows = encode_records(loaded.tokenizer, questions.never_seen.records, context=loaded.context)
    steps = -(-len(rows) // _BENIGN_ROWS)
    settings = LoopSettings(steps=steps, learning_rate=1e-3, warmup_steps=1, report_every=steps)
    loaded.model.requires_grad_(True)
    finetune(loaded.model, rows, settings, pad_id=loaded.pad_id, batch_rows=_BENIGN_ROWS, seed=seed, device=device)
    loaded.model.eval()
    return loaded


# --- beside gold --------------------------------------------------------------------------------------------------

_CLOSENESS: Final = ("forget_es", "forget_prob", "forget_truth", "forget_other_es", "forget_other_prob")


def beside_gold(numbers: Mapping[str, Any], gold: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, float]:
    """Columns that need gold and the model before: distances, and the three shares a method is ranked by.

    closeness: 1 minus the largest distance of a forget column from gold's.
    kept: retained extraction strength, probability and utility as shares of before, the smallest, at most 1.
    robustness: 1 minus what relearning (the longest) brings back beyond gold's.
    """
    quality = forget_quality(torch.tensor(numbers["truth_ratios"]), torch.tensor(gold["truth_ratios"]))
    longest = f"relearned_{RELEARNING_EPOCHS[-1]}_hit"
    distances = {f"{name}_from_gold": abs(numbers[name] - gold[name]) for name in (*_CLOSENESS, "forget_other_truth")}
    shares = {
        "closeness": 1 - max(distances.values()),
        "kept": min(1.0, *(numbers[name] / before[name] for name in ("retain_es", "retain_prob", "utility"))),
        "robustness": 1 - max(0.0, numbers[longest] - gold[longest]),
    }
    return {
        "ks_p": quality.p_value,
        "ks_d": quality.distance,
        "privleak": privleak(numbers["min_k_auc"], gold["min_k_auc"]),
        **distances,
        **shares,
        "harmonic_mean": model_utility([max(0.0, share) for share in shares.values()]),
    }
