"""Plain averages and energy pictures for people to read: binned, five to a bin, and never a gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from ml.attacks.extraction import extraction_strength
from ml.attacks.fused import TokenStatistics
from ml.attacks.mean_loss import mean_energy, mean_loss, value_log_probability
from ml.attacks.relearning import watched_epochs
from ml.energy import auroc
from ml.metrics.percentile import percentile_test, value_percentiles
from ml.reports import EnergyPicture, GroupSummary, RelearningCurve, histogram
from ml.verification.bench import MOMENTS, Bench, Moment
from ml.verification.parts import Failure, Part

ENERGY_BINS: Final = 40


def group_summaries(bench: Bench) -> list[GroupSummary]:
    """Averages of the forget set, the twins, retained people and neighbours, before and after."""
    rows = []
    for moment, role in MOMENTS.items():
        rows += _dossier_groups(bench, moment, role)
        rows += _kept_groups(bench, moment, role)
    return rows


def _dossier_groups(bench: Bench, moment: Moment, role: str) -> list[GroupSummary]:
    tokens = bench.tokens(role)
    if isinstance(tokens, Failure):
        return []
    answers = bench.answers(role) if "answers" in bench.wanted else None
    facts = len(bench.plan.facts)
    everybody = torch.arange(bench.persons * facts).reshape(bench.persons, facts)
    groups = {"forget": everybody[0], "controls": everybody[1:].flatten()}
    asked = {"forget": slice(0, 1), "controls": slice(1, None)}
    return [
        GroupSummary(
            group=name,
            moment=moment,
            persons=1 if name == "forget" else bench.persons - 1,
            items=len(rows),
            numbers=_text_numbers(tokens, rows)
            | _swap_numbers(bench, role, asked[name])
            | _hits(bench, answers, asked[name]),
        )
        for name, rows in groups.items()
    ]


def _text_numbers(tokens: Part, rows: Tensor) -> dict[str, float]:
    statistics = TokenStatistics(**tokens.tensors).rows(rows)
    return {
        "extraction_strength": float(extraction_strength(statistics).mean()),
        "mean_loss": float(mean_loss(statistics).mean()),
        "entity_log_probability": float(value_log_probability(statistics).mean()),
        "mean_energy": float(mean_energy(statistics).mean()),
    }


def _swap_numbers(bench: Bench, role: str, persons: slice) -> dict[str, float]:
    """Where true values stand among their swaps: 1/2 on average where nobody was learned, 1 where every value wins.

    For one person also the one-sided p-value of a mean as high; facts of many twins share their swaps.
    """
    swaps = bench.swaps(role) if "swaps" in bench.wanted else None
    if not isinstance(swaps, Part):
        return {}
    log_probs = swaps.tensors["log_probs"]
    rows = log_probs.reshape(bench.persons, -1, log_probs.shape[-1])[persons]
    shown = percentile_test(value_percentiles(rows.flatten(0, 1)).tolist())
    alone = {"value_percentile_p": shown.p_value} if len(rows) == 1 else {}
    return {"value_percentile": shown.mean, **alone}


def _hits(bench: Bench, answers: Part | Failure | None, persons: slice) -> dict[str, float]:
    if not isinstance(answers, Part):
        return {}
    hits = answers.tensors["hits"].reshape(-1, len(bench.plan.questions))[persons]
    if not len(hits):
        # No family asks twins anything; the mean of nothing is no number.
        return {}
    kinds = [q.kind for q in bench.plan.questions]
    names = {"direct": "value_hit", "reworded": "value_hit_paraphrased", "prefilled": "value_hit_prefilled"}
    columns = {name: [i for i, kind in enumerate(kinds) if kind == wanted] for wanted, name in names.items()}
    return {name: float(hits[:, chosen].mean()) for name, chosen in columns.items() if chosen}


def _kept_groups(bench: Bench, moment: Moment, role: str) -> list[GroupSummary]:
    if "kept" not in bench.wanted:
        return []
    tokens = bench.kept_tokens(role)
    if isinstance(tokens, Failure):
        return []
    answers = bench.kept_answers(role) if "answers" in bench.wanted else None
    kept = bench.plan.kept
    groups = {
        "retain": list(range(len(kept))),
        "neighbours": [i for i, text in enumerate(kept) if text.neighbour],
    }
    rows = []
    for name, members in groups.items():
        trained = [i for i in members if kept[i].trained]
        other = [i for i in members if not kept[i].trained]
        if not trained:
            continue
        hits = {"value_hit": trained, "value_hit_paraphrased": other}
        numbers = _text_numbers(tokens, torch.tensor(trained))
        if isinstance(answers, Part):
            numbers |= {key: float(answers.tensors["hits"][chosen].mean()) for key, chosen in hits.items() if chosen}
        persons = len({kept[i].record.person for i in members})
        rows.append(GroupSummary(name, moment, persons, len(trained), numbers))
    return rows


# --- relearning ---------------------------------------------------------------------------------------------------


def relearning_curves(bench: Bench) -> list[RelearningCurve]:
    """How what is not taught comes back while the rest is taught again, before and after; none where T1 is not run."""
    if "relearned" not in bench.wanted:
        return []
    epochs = watched_epochs(bench.spec.policy.relearning.epochs)
    curves = []
    for moment, role in MOMENTS.items():
        part = bench.relearned(role)
        if isinstance(part, Part) and bool(torch.isfinite(part.tensors["curve"]).all()):
            own, twins = part.tensors["curve"][0].tolist(), part.tensors["curve"][1:].double()
            spread = (twins - twins.mean(dim=0)).square().sum(dim=0) / max(1, len(twins) - 1)
            mean = tuple(twins.mean(dim=0).tolist())
            curves.append(RelearningCurve(moment, epochs, tuple(own), mean, tuple(spread.sqrt().tolist()), len(twins)))
    return curves


# --- energies -----------------------------------------------------------------------------------------------------


def energies(bench: Bench) -> tuple[list[EnergyPicture], dict[str, float]]:
    """Energies of retained, deleted and never-seen texts, before and after, in common bins, and how they separate."""
    measured = {moment: _text_energies(bench, role) for moment, role in MOMENTS.items()}
    shown = {(m, group): values for m, groups in measured.items() for group, values in groups.items()}
    if not shown:
        return [], {}
    everything = torch.cat(list(shown.values()))
    edges = torch.linspace(float(everything.min()), float(everything.max()), ENERGY_BINS + 1).tolist()
    pictures = [_picture(group, moment, values, edges) for (moment, group), values in shown.items()]
    return pictures, _separation(measured)


def _text_energies(bench: Bench, role: str) -> dict[str, Tensor]:
    if "kept" not in bench.wanted:
        return {}
    tokens, kept = bench.tokens(role), bench.kept_tokens(role)
    if isinstance(tokens, Failure) or isinstance(kept, Failure):
        return {}
    facts = len(bench.plan.facts)
    asked = mean_energy(TokenStatistics(**tokens.tensors))
    on_file = torch.tensor([i for i, text in enumerate(bench.plan.kept) if text.trained], dtype=torch.long)
    retained = mean_energy(TokenStatistics(**kept.tensors).rows(on_file))
    return {"retained": retained, "deleted": asked[:facts], "never_seen": asked[facts:]}


def _picture(group: str, moment: Moment, values: Tensor, edges: Sequence[float]) -> EnergyPicture:
    return EnergyPicture(group, moment, histogram(values.tolist(), edges=edges), float(values.mean()))


def _separation(measured: Mapping[Moment, Mapping[str, Tensor]]) -> dict[str, float]:
    """Chance that a deleted text has the higher energy than a retained, or a never-seen, one."""
    numbers = {}
    for moment, groups in measured.items():
        suffix = "" if moment == "after" else "_before"
        for other in ("retained", "never_seen"):
            if groups:
                name = f"energy_auroc_{other}_vs_deleted{suffix}"
                numbers[name] = auroc(groups["deleted"], groups[other])
    return numbers
