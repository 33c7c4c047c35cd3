"""Try a few settings of a deletion method, and keep the candidate that lies closest to never having learned.

Looked at is the training side alone: the forgotten people's own records, retained records, and people invented from
the run's seed, all of whose texts are listed as training probes, so that verification asks none of them. How near a
candidate is to gold, or what an attack finds, is not known here, and must not be.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from ml.attacks.fused import fused_pass
from ml.attacks.mean_loss import mean_energy, mean_loss, value_log_probability
from ml.data.collate import encode_records
from ml.data.probes import probe_digests, probe_set, read_probe_digests, write_probe_digests
from ml.data.questions import read_bank
from ml.data.records import read_records
from ml.digests import canonical_json, document_sha256, file_sha256
from ml.documents import Json, plain_object, read
from ml.errors import NonFiniteError, SpecError
from ml.files import write_atomically
from ml.loop import ignore_progress, never_stop
from ml.methods import METHODS
from ml.methods.calibration import CALIBRATION_TEXTS, never_seen, telling
from ml.models.load import LoadedModel, load_model
from ml.models.save import publish
from ml.reports import UnlearningReport
from ml.specs import FileRef, ModelRef, Progress, ProgressCallback, Record, StopCheck, UnlearningSpec
from ml.unlearn import REPORT, TRAINING_PROBES, run_unlearning

FACTORS: Final = (0.5, 1.0, 2.0)
"""By how much each setting is varied."""

_WEIGHED: Final = ("alpha", "beta", "gamma")
_KEPT_WEIGHT: Final = 10.0
_DRAWS_A_TRIAL: Final = 100


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of the search.

    `numbers`, in nats: "value_gap", how much less likely the forgotten people's values are than strangers' values were
    before (below 0: remembered); "energy_gap", how much higher the energy of their answers; "retained_rise", by how
    much the loss of retained texts grew. All are 0 where nothing was ever learned. They are empty, and `score` is
    `None`, where training left finite numbers.
    """

    number: int
    settings: Mapping[str, Json]
    numbers: Mapping[str, float]
    score: float | None
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class Search:
    """All trials, in order, the first with the settings as they were given; and the number of the best."""

    trials: tuple[Trial, ...]
    best: int


def score_of(numbers: Mapping[str, float]) -> float:
    """How far a candidate is from where it should be, in nats: 0 is best; a gap counts in both directions."""
    kept = max(0.0, numbers["retained_rise"])
    return abs(numbers["value_gap"]) + abs(numbers["energy_gap"]) + _KEPT_WEIGHT * kept


def proposals(method: str, settings: Mapping[str, Json], *, budget: int, seed: int) -> list[dict[str, Json]]:
    """Settings to try: those given, then draws in which learning rate, steps and every weight are varied.

    Raises:
        SpecError: no budget, or settings that are not the method's.
    """
    if budget < 1:
        raise SpecError("a search needs a budget of at least one run")
    given = read(METHODS[method].settings, settings, where=f"settings of method {method}")
    rng = random.Random(f"search:{seed}")  # noqa: S311 - to be reproduced, not secret
    found = [_document(given)]
    for _ in range(_DRAWS_A_TRIAL * budget):
        if len(found) == budget:
            break
        drawn = _document(_varied(given, rng))
        if drawn not in found:
            found.append(drawn)
    return found


def _document(settings: Any) -> dict[str, Json]:
    document: dict[str, Json] = plain_object(settings)
    return document


def _varied(given: Any, rng: random.Random) -> Any:
    training = replace(
        given.training,
        learning_rate=given.training.learning_rate * rng.choice(FACTORS),
        steps=max(1, round(given.training.steps * rng.choice(FACTORS))),
    )
    weights = {
        field.name: getattr(given, field.name) * rng.choice(FACTORS)
        for field in fields(given)
        if (field.name.endswith("_weight") or field.name in _WEIGHED) and isinstance(getattr(given, field.name), float)
    }
    return replace(given, training=training, **weights)


def search(
    spec: UnlearningSpec,
    *,
    budget: int,
    work: Path,
    on_progress: ProgressCallback = ignore_progress,
    should_stop: StopCheck = never_stop,
    processes: int = 1,
) -> Search:
    """Run `budget` deletions at most and leave the best candidate where `spec` wants it, as `run_unlearning` would.

    A finished trial is only read the next time; a model that lost is removed at once, since it may know the person.

    Args:
        work: keeps the trials until the best is known; one search has it for itself.
    Raises:
        SpecError: `work` belongs to another search, or no trial ended with finite numbers.
        MlError: as `run_unlearning` raises it.
    """
    tried: list[Trial] = []
    settings = proposals(spec.method, spec.settings, budget=budget, seed=spec.seed)
    _claim(work, _key(spec, settings))
    probes = _Probes(spec)
    for number, document in enumerate(settings):
        on_progress(Progress("settings", number, len(settings)))
        own = replace(
            spec,
            run_id=f"{spec.run_id}-{number}",
            settings=document,
            output_dir=str(work / f"trial-{number}" / "model"),
            checkpoint_dir=str(work / f"trial-{number}" / "checkpoint"),
        )
        path = work / f"trial-{number}.json"
        if not path.exists():
            trial = _tried(number, own, probes, on_progress, should_stop, processes)
            write_atomically(path, json.dumps(plain_object(trial), sort_keys=True).encode())
        tried.append(_kept(path))
        best = _best(tried)
        for loser in tried:
            if loser is not best:
                shutil.rmtree(work / f"trial-{loser.number}", ignore_errors=True)
    on_progress(Progress("settings", len(settings), len(settings)))
    if best is None:
        raise SpecError("no settings of the search ended with finite numbers; name others, with a lower learning rate")
    _hand_over(work / f"trial-{best.number}", spec, probes)
    return Search(tuple(tried), best.number)


def _key(spec: UnlearningSpec, settings: Sequence[Mapping[str, Json]]) -> str:
    """Digest of everything that decides the trials; where files lie does not."""
    models = [ref.manifest_sha256 for ref in (spec.model, spec.base) if ref is not None]
    files = [ref.sha256 for ref in (spec.forget, spec.retain, spec.neighbours, spec.question_bank) if ref is not None]
    return document_sha256([models, files, spec.method, spec.seed, spec.device, spec.dtype, list(settings)])


def _claim(work: Path, key: str) -> None:
    work.mkdir(parents=True, exist_ok=True)
    path = work / "search.key"
    if path.exists() and path.read_text(encoding="utf-8") != key:
        raise SpecError(f"{work.name} holds another search; name an empty directory")
    write_atomically(path, key.encode())


def _tried(
    number: int,
    spec: UnlearningSpec,
    probes: _Probes,
    on_progress: ProgressCallback,
    should_stop: StopCheck,
    processes: int,
) -> Trial:
    try:
        report = run_unlearning(spec, on_progress=on_progress, should_stop=should_stop, processes=processes)
    except NonFiniteError:
        return Trial(number, spec.settings, {}, None, 0.0)
    candidate = ModelRef(spec.output_dir, report.candidate_manifest_sha256)
    numbers = probes.numbers(load_model(candidate, device=spec.device, dtype=spec.dtype))
    return Trial(number, spec.settings, numbers, score_of(numbers), report.cpu_seconds)


def _kept(path: Path) -> Trial:
    document = json.loads(path.read_text(encoding="utf-8"))
    numbers = {name: float(value) for name, value in document["numbers"].items()}
    score = None if document["score"] is None else float(document["score"])
    return Trial(document["number"], document["settings"], numbers, score, float(document["cpu_seconds"]))


def _best(trials: Sequence[Trial]) -> Trial | None:
    scored = [(trial.score, trial.number, trial) for trial in trials if trial.score is not None]
    return min(scored)[2] if scored else None


class _Probes:
    """What candidates are asked, and what the model before says: once for a search."""

    def __init__(self, spec: UnlearningSpec) -> None:
        self.spec = spec
        forget = read_records(spec.forget, what="forget set")
        retain = read_records(spec.retain, what="retain set")
        bank = read_bank(spec.question_bank)
        rng = random.Random(f"searched:{spec.seed}")  # noqa: S311 - to be reproduced, not secret
        self.own = [r for r in telling(forget, bank) if any(fact.start >= r.answer_start for fact in r.facts)]
        if not self.own:
            raise SpecError("no record of the forget set answers with a value; a search has nothing to look at")
        self.strangers = never_seen(self.own, retain, bank, rng)
        self.kept = rng.sample(retain, min(CALIBRATION_TEXTS, len(retain)))

    @cached_property
    def _before(self) -> tuple[float, float, float]:
        loaded = load_model(self.spec.model, device=self.spec.device, dtype=self.spec.dtype)
        return (*_values_and_energy(loaded, self.strangers), _loss(loaded, self.kept))

    def numbers(self, candidate: LoadedModel) -> dict[str, float]:
        """The numbers of a trial."""
        value, energy, kept = self._before
        own_value, own_energy = _values_and_energy(candidate, self.own)
        return {
            "value_gap": value - own_value,
            "energy_gap": own_energy - energy,
            "retained_rise": _loss(candidate, self.kept) - kept,
        }

    @property
    def texts(self) -> Iterator[str]:
        """Everything that was made up to be asked."""
        return (record.text for record in self.strangers)


def _values_and_energy(loaded: LoadedModel, records: Sequence[Record]) -> tuple[float, float]:
    """Mean log-probability of the values' tokens, and mean energy of the answers."""
    statistics = fused_pass(loaded, encode_records(loaded.tokenizer, records, context=loaded.context))
    return float(value_log_probability(statistics).mean()), float(mean_energy(statistics).mean())


def _loss(loaded: LoadedModel, records: Sequence[Record]) -> float:
    return float(
        mean_loss(fused_pass(loaded, encode_records(loaded.tokenizer, records, context=loaded.context))).mean()
    )


def _hand_over(trial: Path, spec: UnlearningSpec, probes: _Probes) -> None:
    """Put the best trial where the run's own result would lie, what the search asked among its training probes."""
    output, checkpoint = Path(spec.output_dir), Path(spec.checkpoint_dir)
    if output.exists():
        if (trial / "model").exists():
            raise SpecError(f"output directory {output.name} holds something this run did not make; name another")
        return
    checkpoint.mkdir(parents=True, exist_ok=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    drawn = trial / "checkpoint" / TRAINING_PROBES
    digests = read_probe_digests(FileRef(str(drawn), file_sha256(drawn))) | probe_digests(probes.texts)
    write_probe_digests(checkpoint / TRAINING_PROBES, digests)
    report = UnlearningReport.from_document(json.loads((trial / "checkpoint" / REPORT).read_text(encoding="utf-8")))
    whole = replace(report, run_id=spec.run_id, training_probes=probe_set("training", digests))
    write_atomically(checkpoint / REPORT, canonical_json(whole.to_document()))
    publish(trial / "model", output)
