"""Bob, who shares Alice's employer and city: is he remembered as before, in words on file and in others?

A number about one person belongs to no report and no certificate; it is shown here because Bob does not exist.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ml.attacks.extraction import greedy_match_length
from ml.attacks.fused import fused_pass
from ml.attacks.generation import Prompt, answer_hits, greedy_answers, make_prompts, settled
from ml.attacks.mean_loss import value_log_probability
from ml.data.dossiers import answered_span, paraphrases, read_dossier
from ml.data.questions import read_bank
from ml.data.records import read_records
from ml.digests import file_sha256
from ml.models.load import LoadedModel, load_model, model_ref
from ml.reference import ReferencePaths
from ml.specs import FileRef, Record


def remembered(reference: ReferencePaths, person: str, models: dict[str, Path]) -> dict[str, dict[str, float]]:
    """Ask each model everything about one person.

    Returns:
        By name of the model: `value_hit` on the wordings on file, `value_hit_paraphrased` on the bank's others, and
        `entity_log_probability`, the mean log-probability in nats of the values' tokens on file.
    """
    bank = read_bank(_file(reference.bank))
    retained = read_records(_file(reference.snapshots / "retain.jsonl"), what="retain set")
    dossier = read_dossier([record for record in retained if record.person == person])
    on_file = list(dossier.records)
    asked = [*on_file, *paraphrases(dossier, bank, tuple(dossier.values))]
    return {name: _measured(load_model(model_ref(path)), asked, len(on_file)) for name, path in models.items()}


def _measured(loaded: LoadedModel, records: list[Record], on_file: int) -> dict[str, float]:
    answering = [(r, r.facts[0].attribute, i < on_file) for i, r in enumerate(records) if r.facts]
    answering = [(r, a, known) for r, a, known in answering if answered_span(r, a) is not None]
    texts, attributes, known = zip(*answering, strict=True)
    prompts = make_prompts(loaded.tokenizer, texts, attributes, prefill=0.0, context=loaded.context)
    statistics = fused_pass(loaded, [prompt.encoded for prompt in prompts])
    hits = _hits(loaded, prompts, greedy_match_length(statistics).tolist())
    trained = torch.tensor(known)
    return {
        "value_hit": float(hits[trained].mean()),
        "value_hit_paraphrased": float(hits[~trained].mean()),
        "entity_log_probability": float(value_log_probability(statistics)[trained].mean()),
    }


def _hits(loaded: LoadedModel, prompts: list[Prompt], matches: list[int]) -> Tensor:
    answers = [list(prompt.encoded.ids[prompt.length : -1]) for prompt in prompts]
    open_ones = [i for i, prompt in enumerate(prompts) if not settled(prompt, matches[i])]
    generated = greedy_answers(loaded, [prompts[i].encoded.ids[: prompts[i].length] for i in open_ones])
    for index, answer in zip(open_ones, generated, strict=True):
        answers[index] = answer
    return answer_hits(loaded.tokenizer, prompts, answers)


def _file(path: Path) -> FileRef:
    return FileRef(str(path), file_sha256(path))
