"""White-box and tampering attacks on a bench: one score per person and item, larger = more familiar.

Every attack here takes a bench, the role of the model it attacks, how many persons to score (the subject first, then
twins) and by how much to cut its batches when memory runs out; it returns (persons, items). What an attack learns
(which layers tell, a probe, a direction, a tuned adapter) it learns from retained people, never from the subject or a
twin, so that scores stay exchangeable; what it trains on persons themselves, it trains on all alike.

One model is in memory at a time, and the copy that is tampered with; attacks with the old version in hand hold two and
a copy.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from ml.attacks.benign_tuning import tuned_log_probs
from ml.attacks.checkpoint_difference import AMPLIFICATIONS, amplified
from ml.attacks.exposure import DEFAULT_ROWS, ValueContest, exposure, same_context_difference, value_log_probs
from ml.attacks.fused import DEFAULT_BUDGET
from ml.attacks.linear_probe import fit_probe, see_contests
from ml.attacks.logit_lens import Decoder, best_layer, fixed_decoder, lens_scores, telling_layers
from ml.attacks.optimised_suffix import SuffixTask, best_suffix_log_probs
from ml.attacks.relearning import relearn
from ml.attacks.soft_prompt import SoftPromptBudget, prompted_scores, soft_prompts
from ml.attacks.steering import STRENGTHS, mean_state, shaken, steered
from ml.attacks.value_states import mean_value_states
from ml.data.collate import EncodedText
from ml.errors import EmptySetError, SpecError
from ml.metrics.cka import linear_cka
from ml.models.layers import middle_block
from ml.models.load import LoadedModel
from ml.models.tampering import SCALINGS, noised_weights, pruned_weights, scaled_change, truncated_change
from ml.verification.bench import PERSONS_AT_ONCE, Bench
from ml.verification.parts import Failure
from ml.verification.plan import Question
from ml.verification.studies import ordinary_tokens

WhiteBoxAttack = Callable[[Bench, str, int, int], Tensor]

# Texts of retained people from which an attack learns what it needs.
RETAINED_TEXTS: Final = 512
ALTERNATIVES: Final = 19
NOISE_DRAWS: Final = 3
SOFT_PROMPT: Final = SoftPromptBudget()


# --- probes (verification section 5) ------------------------------------------------------------------------------


def logit_lens(bench: Bench, role: str, persons: int, share: int) -> Tensor:
    """W1: what the decoder of the model before deletion reads from the layer that tells most about each person.

    The decoder learned the subject's tokens too: through it even a model that never saw the person likes their values.
    The base model's states, read by the same decoder, are subtracted; what is left is in the states alone.
    """
    return _lens(bench, role, persons, share, fixed_decoder(bench.model("before")))


def own_lens(bench: Bench, role: str, persons: int, share: int) -> Tensor:
    """W1 by a holder of nothing but the model: its own decoder reads its layers, less what the base model's reads."""
    return _lens(bench, role, persons, share, None)


def _lens(bench: Bench, role: str, persons: int, share: int, decoder: Decoder | None) -> Tensor:
    asked, retained = _texts(bench, persons), [encoded for _, encoded in _retained(bench)]
    base, own = (_readings(bench, name, decoder, [*asked, *retained], share) for name in ("base", role))
    telling = telling_layers((own - base)[:, len(asked) :])
    return best_layer((own - base)[telling, : len(asked)].reshape(-1, persons, len(bench.plan.facts)))


def _readings(bench: Bench, role: str, decoder: Decoder | None, texts: Sequence[EncodedText], share: int) -> Tensor:
    loaded, count = bench.model(role), _counter(bench, f"logit lens {role}", len(texts))
    budget = DEFAULT_BUDGET // share
    return lens_scores(loaded, decoder or fixed_decoder(loaded), texts, budget=budget, after_batch=count)


def output_layer(bench: Bench, role: str, persons: int, share: int) -> Tensor:
    """What a model's output layer alone learned: it reads the base model's last states, less what the base's reads.

    A deletion that leaves the output layer as it was leaves there what training wrote; no prompt shows it.
    """
    decoder = fixed_decoder(bench.model(role))
    own, base = (_readings(bench, "base", by, _texts(bench, persons), share)[-1] for by in (decoder, None))
    return (own - base).reshape(persons, -1)


def linear_probe(bench: Bench, role: str, persons: int, share: int) -> Tensor:
    """W2: exposure in bits of the true value by a probe that was trained on the same model's retained people."""
    loaded, budget = bench.model(role), DEFAULT_BUDGET // share
    people, lessons = _probe_lessons(bench)
    probe = fit_probe(see_contests(loaded, lessons, budget=budget), people, seed=bench.spec.seed)
    contests = _contests(bench, persons)
    count = _counter(bench, "linear probe", len(contests))
    return exposure(probe.scores(see_contests(loaded, contests, budget=budget, after_batch=count))).reshape(persons, -1)


def _probe_lessons(bench: Bench) -> tuple[list[str], list[ValueContest]]:
    """Retained people's values, each against values of the same type that other retained people have."""
    told = _retained(bench)
    spans = [(encoded.ids, *encoded.values[0]) for _, encoded in told]
    own = [ids[start:end] for ids, start, end in spans]
    types = [_value_type(bench, i) for i, _ in told]
    people, lessons = [], []
    rng = _rng(bench, "probe")
    for place, (index, _) in enumerate(told):
        others = sorted({v for v, t in zip(own, types, strict=True) if t == types[place]} - {own[place]})
        if len(others) >= ALTERNATIVES:
            ids, start, _ = spans[place]
            people.append(bench.plan.kept[index].record.person)
            lessons.append(ValueContest(ids[:start], (own[place], *rng.sample(others, ALTERNATIVES))))
    if not lessons:
        raise EmptySetError("too few retained people have values of one type; the probe has nothing to learn from")
    return people, lessons


def _value_type(bench: Bench, index: int) -> str:
    kept = bench.plan.kept[index]
    return next(fact.type for fact in kept.record.facts if fact.attribute == kept.attribute)


def steering(bench: Bench, role: str, persons: int, share: int) -> Tensor:
    """W5: the best same-context difference per fact while the middle layer is pushed back along one direction.

    The direction is the mean state before deletion minus the candidate's, on retained people.
    """
    retained = [encoded for _, encoded in _retained(bench)]
    means = [_mean_middle(bench.model(other), retained, share) for other in ("before", "merged")]
    loaded = bench.model(role)
    block, scores = middle_block(loaded.model), []
    for strength in STRENGTHS:
        with steered(loaded, block, strength * (means[0] - means[1])):
            scores.append(_difference(bench, loaded, persons, share, "steering"))
    return torch.stack(scores).amax(dim=0)


def _mean_middle(loaded: LoadedModel, texts: Sequence[EncodedText], share: int) -> Tensor:
    return mean_state(loaded, texts, middle_block(loaded.model), budget=DEFAULT_BUDGET // share)


def activation_noise(bench: Bench, role: str, persons: int, share: int) -> Tensor:
    """W5: the best same-context difference per fact over a few draws of noise on the middle layer."""
    loaded = bench.model(role)
    block, scores = middle_block(loaded.model), []
    for draw in range(NOISE_DRAWS):
        with shaken(loaded, block, seed=_rng(bench, f"noise {draw}").getrandbits(63)):
            scores.append(_difference(bench, loaded, persons, share, "noise"))
    return torch.stack(scores).amax(dim=0)


def soft_prompt(bench: Bench, role: str, persons: int, share: int) -> Tensor:
    """W6: minus the loss on each value behind a soft prompt trained on that person's own values.

    It elicits what was never learned as well: only a difference to twins means anything.
    """
    loaded, texts = bench.model(role), _texts(bench, persons)
    facts = len(bench.plan.facts)
    by_person = [texts[p * facts : (p + 1) * facts] for p in range(persons)]
    scores = []
    for group in _groups(persons, share):
        own = [by_person[p] for p in group]
        prompts = soft_prompts(
            loaded, own, SOFT_PROMPT, seed=bench.spec.seed, after_step=_two_counter(bench, "soft prompt")
        )
        scores.append(prompted_scores(loaded, prompts, own, budget=DEFAULT_BUDGET // share))
    return torch.cat(scores)


def optimised_suffix(
    bench: Bench, role: str, persons: int, share: int, *, facts: Sequence[int], length: int, steps: int
) -> Tensor:
    """G14: the highest log-probability of each value that a searched suffix behind its question reaches.

    Args:
        facts: places of the facts asked about; a suffix is searched for each, for everybody.
    """
    asked = [Question(bench.plan.texts[i], bench.plan.facts[i], "direct") for i in facts]
    tasks = []
    for place, prompt in enumerate(bench.asked(asked, range(persons))):
        ids, (start, end) = prompt.encoded.ids, prompt.encoded.values[0]
        question, opening = ids[: prompt.length], ids[prompt.length : start]
        tasks.append(SuffixTask(question, opening, ids[start:end], facts[place % len(facts)]))
    scores = best_suffix_log_probs(
        bench.model(role),
        tasks,
        length=length,
        steps=steps,
        tokens=ordinary_tokens(bench),
        seed=bench.spec.seed,
        batch_rows=DEFAULT_ROWS // share,
        after_step=_two_counter(bench, "suffix search"),
    )
    return scores.reshape(persons, -1)


# --- tampering (verification section 6) ---------------------------------------------------------------------------


def benign_tuning(bench: Bench, role: str, persons: int, share: int) -> Tensor:
    """T2: same-context difference of every fact after T1's budget was spent on retained people, neighbours first."""
    told = sorted(_retained(bench), key=lambda pair: not bench.plan.kept[pair[0]].neighbour)
    lessons = [encoded for _, encoded in told[: max(1, len(bench.plan.relearned))]]
    log_probs = tuned_log_probs(
        bench.model(role),
        lessons,
        _contests(bench, persons),
        bench.spec.policy.relearning,
        seed=bench.spec.seed,
        batch_rows=DEFAULT_ROWS // share,
        after_step=_two_counter(bench, "benign tuning"),
    )
    return same_context_difference(log_probs).reshape(persons, -1)


def direct_relearning(bench: Bench, role: str, persons: int, share: int) -> Tensor:
    """T3: same-context difference of every fact after relearning these very facts, each person with an own adapter.

    It teaches what was never learned as well: only a difference to twins means anything.
    """
    loaded, facts, scores = bench.model(role), len(bench.plan.facts), []
    for group in _groups(persons, share):
        rows = slice(group.start * facts, group.stop * facts)
        texts = bench.texts[rows]
        adapters = relearn(
            loaded,
            [texts[p * facts : (p + 1) * facts] for p in range(len(group))],
            bench.spec.policy.relearning,
            seed=bench.spec.seed,
            after_step=_two_counter(bench, "direct relearning"),
        )
        with adapters.attached():
            log_probs = value_log_probs(
                loaded,
                bench.contests[rows],
                batch_rows=DEFAULT_ROWS // share,
                before_rows=lambda contest, own=adapters: own.belong_to(contest // facts),
            )
        scores.append(same_context_difference(log_probs).reshape(len(group), -1))
    return torch.cat(scores)


def weight_noise(bench: Bench, role: str, persons: int, share: int) -> Tensor:
    """T6: the best same-context difference per fact over a few draws of noise on all weights."""
    seeds = [_rng(bench, f"weights {draw}").getrandbits(63) for draw in range(NOISE_DRAWS)]
    copies = (noised_weights(bench.model(role), seed=seed) for seed in seeds)
    return torch.stack([_difference(bench, copy, persons, share, "weight noise") for copy in copies]).amax(dim=0)


def pruning(bench: Bench, role: str, persons: int, share: int) -> Tensor:
    """T6: same-context difference with the smallest tenth of every linear layer set to 0."""
    return _difference(bench, pruned_weights(bench.model(role)), persons, share, "pruning")


# --- with the old version in hand (verification sections 4 and 6) -------------------------------------------------


def scaled_deletion(bench: Bench, role: str, persons: int, share: int) -> Tensor:
    """T5: the best same-context difference per fact over scalings of the change from the model before to `role`.

    Half way to the old weights half of what they knew is back, whoever made the new ones: a gold model shows it too.
    Scaling 0 is the model before deletion itself and left out.
    """
    before, after = bench.model("before"), bench.model(role)
    copies = (scaled_change(before, after, scaling) for scaling in SCALINGS if scaling)
    return torch.stack([_difference(bench, copy, persons, share, "scaling") for copy in copies]).amax(dim=0)


def lower_rank(bench: Bench, role: str, persons: int, share: int) -> Tensor:
    """T6: same-context difference with half of the directions of the change from the model before to `role` undone."""
    count = _two_counter(bench, "lower rank")
    copy = truncated_change(bench.model("before"), bench.model(role), after_layer=count)
    return _difference(bench, copy, persons, share, "lower rank")


def checkpoint_difference(bench: Bench, role: str, persons: int, share: int) -> Tensor:
    """G15: the best exposure per fact, in bits, from the version before deletion and `role` together.

    It informs what keeping the old version gives away, and blocks no deletion. `share` cuts nothing: parts are read.
    """
    before, after = _swaps(bench, "before", persons), _swaps(bench, role, persons)
    scores = [exposure(amplified(before, after, amplification)) for amplification in AMPLIFICATIONS]
    return torch.stack(scores).amax(dim=0).reshape(persons, -1)


def _swaps(bench: Bench, role: str, persons: int) -> Tensor:
    part = bench.swaps(role)
    if isinstance(part, Failure):
        raise SpecError(f"the value swaps of the {role} model could not be measured ({part.reason})")
    return part.tensors["log_probs"][: persons * len(bench.plan.facts)]


def state_alignment(bench: Bench, role: str, persons: int, share: int) -> Tensor:
    """W3: alignment of `role`'s states at each person's values with those of other models: (2, persons).

    Row 0 is the model before deletion, row 1 the base model; mean over blocks, 1 is alike up to rotation and scale.
    """
    texts, facts = _texts(bench, persons), len(bench.plan.facts)

    def states(of: str) -> Tensor:
        found = mean_value_states(bench.model(of), texts, budget=DEFAULT_BUDGET // share)
        return found.reshape(found.shape[0], persons, facts, -1)

    own, others = states(role), [states(of) for of in ("before", "base")]
    return torch.stack([linear_cka(own, other).mean(dim=0) for other in others])


WHITE_BOX_ATTACKS: Final[Mapping[str, WhiteBoxAttack]] = {
    "logit_lens": logit_lens,
    "own_lens": own_lens,
    "output_layer": output_layer,
    "linear_probe": linear_probe,
    "steering": steering,
    "activation_noise": activation_noise,
    "soft_prompt": soft_prompt,
    "benign_tuning": benign_tuning,
    "direct_relearning": direct_relearning,
    "weight_noise": weight_noise,
    "pruning": pruning,
}
"""Attacks on the model they are given: what can count for or against a candidate."""

TRAINED_BY_POLICY: Final = frozenset({"benign_tuning", "direct_relearning"})
"""Attacks that train at the policy's relearning budget, which therefore decides their scores."""

OLD_VERSION_ATTACKS: Final[Mapping[str, WhiteBoxAttack]] = {
    "scaled_deletion": scaled_deletion,
    "lower_rank": lower_rank,
    "checkpoint_difference": checkpoint_difference,
}
"""Attacks that hold the version before deletion as well: they recover the person from a gold model too, so they say
what keeping that version gives away and never count against a candidate."""


# --- what they share ----------------------------------------------------------------------------------------------


def _texts(bench: Bench, persons: int) -> list[EncodedText]:
    return bench.texts[: persons * len(bench.plan.facts)]


def _contests(bench: Bench, persons: int) -> list[ValueContest]:
    return bench.contests[: persons * len(bench.plan.facts)]


def _retained(bench: Bench) -> list[tuple[int, EncodedText]]:
    """Up to `RETAINED_TEXTS` texts on file about retained people, with their places in the plan."""
    trained = [i for i, kept in enumerate(bench.plan.kept) if kept.trained]
    if not trained:
        raise EmptySetError("no text of a retained person is on file; a white-box attack learns from them")
    chosen = sorted(_rng(bench, "retained").sample(trained, min(RETAINED_TEXTS, len(trained))))
    return [(i, bench.kept[i].encoded) for i in chosen]


def _difference(bench: Bench, loaded: LoadedModel, persons: int, share: int, name: str) -> Tensor:
    contests = _contests(bench, persons)
    count = _counter(bench, name, len(contests))
    log_probs = value_log_probs(loaded, contests, batch_rows=DEFAULT_ROWS // share, after_batch=count)
    return same_context_difference(log_probs).reshape(persons, -1)


def _groups(persons: int, share: int) -> Iterator[range]:
    size = max(1, PERSONS_AT_ONCE // share)
    return (range(start, min(start + size, persons)) for start in range(0, persons, size))


def _rng(bench: Bench, purpose: str) -> random.Random:
    return random.Random(f"{bench.spec.seed}:white box {purpose}")  # noqa: S311 - draws must be reproducible


def _counter(bench: Bench, name: str, total: int) -> Callable[[int], None]:
    return lambda done: bench.tick(name, done, total)


def _two_counter(bench: Bench, name: str) -> Callable[[int, int], None]:
    return lambda done, total: bench.tick(name, done, total)
