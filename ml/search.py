"""Try a few settings of a deletion method, and keep the candidate that lies closest to never having learned.

Looked at is the training side alone: the forgotten people's own records, retained records, and people invented from
the run's seed, all of whose texts are listed as training probes, so that verification asks none of them. How near a
candidate is to gold, or what an attack finds, is not known here, and must not be.
"""

from __future__ import annotations

import json
import random
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, Final, TypeAlias

from torch import Tensor

from ml.attacks.fused import fused_pass
from ml.attacks.mean_loss import mean_energy, mean_loss, value_log_probability
from ml.data.collate import encode_records
from ml.data.probes import probe_digests, probe_set, read_probe_digests, write_probe_digests
from ml.data.questions import read_bank
from ml.data.records import read_records
from ml.digests import canonical_json, computing_code_sha256, document_sha256, file_sha256
from ml.documents import Json, plain_object, read
from ml.errors import DeletionIncompleteError, NonFiniteError, SpecError
from ml.files import write_atomically
from ml.loop import ignore_progress, never_stop
from ml.methods import METHODS
from ml.methods.calibration import CALIBRATION_TEXTS, never_seen, telling
from ml.methods.strangers import Topic, topic
from ml.models.load import LoadedModel, load_model
from ml.models.save import publish
from ml.reports import UnlearningReport
from ml.specs import FileRef, ModelRef, Progress, ProgressCallback, Record, StopCheck, UnlearningSpec
from ml.unlearn import CHECKPOINT, REPORT, TRAINING_PROBES, run_unlearning

FACTORS: Final = (0.5, 1.0, 2.0)
"""By how much each setting is varied."""

_KEPT_WEIGHT: Final = 10.0
_DRAWS_A_TRIAL: Final = 100
_KEY: Final = "search.key"

Facts: TypeAlias = Mapping[tuple[str, Topic], float]
"""A mean score by person and what the texts state."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of the search.

    `numbers`, in nats: "value_gap", how far the forgotten people's values lie in log-probability from where strangers'
    values lay before, fact by fact, in the mean over the facts of the person for whom that is farthest; "energy_gap",
    the same of their answers' energies; "retained_rise", by how much the loss of retained texts grew. They are empty,
    and `score` is `None`, where training or the candidate left finite numbers; `cpu_seconds` is `None` where no
    candidate was made.
    """

    number: int
    settings: Mapping[str, Json]
    numbers: Mapping[str, float]
    score: float | None
    cpu_seconds: float | None


@dataclass(frozen=True, slots=True)
class Search:
    """All trials, in order, the first with the settings as they were given; and the number of the best."""

    trials: tuple[Trial, ...]
    best: int


def score_of(numbers: Mapping[str, float]) -> float:
    """How far a candidate is from where it should be, in nats: less is better, and keeping better is no merit."""
    return numbers["value_gap"] + numbers["energy_gap"] + _KEPT_WEIGHT * max(0.0, numbers["retained_rise"])


def farthest(own: Facts, strangers: Facts) -> float:
    """The distance of the person who lies farthest from strangers: the mean over their facts, in nats.

    Each fact counts by its distance, whichever way: what is still remembered is not made up for by what was pushed
    beyond a stranger's, of another fact or of another person. A fact that no stranger was asked about is held to what
    strangers have on average.
    """
    asked = defaultdict(list)
    for (_, about), score in strangers.items():
        asked[about].append(score)
    usual = fmean(strangers.values())
    gaps = defaultdict(list)
    for (person, about), score in own.items():
        gaps[person].append(abs(score - fmean(asked.get(about, [usual]))))
    return max(map(fmean, gaps.values()))


def proposals(method: str, settings: Mapping[str, Json], *, budget: int, seed: int) -> list[dict[str, Json]]:
    """Settings to try: those given, then draws in which learning rate, steps and the method's own numbers (not 0) are
    varied; what the method refuses is not drawn.

    Raises:
        SpecError: no budget, or settings that are not the method's.
    """
    if budget < 1:
        raise SpecError("a search needs a budget of at least one run")
    given = read(METHODS[method].settings, settings, where=f"settings of method {method}")
    rng = random.Random(f"search:{seed}")  # noqa: S311 - to be reproduced, not secret
    found = [plain_object(given)]
    for _ in range(_DRAWS_A_TRIAL * budget):
        if len(found) == budget:
            break
        drawn = _varied(given, rng)
        if drawn is not None and plain_object(drawn) not in found:
            found.append(plain_object(drawn))
    return found


def _varied(given: Any, rng: random.Random) -> Any:
    training = replace(
        given.training,
        learning_rate=given.training.learning_rate * rng.choice(FACTORS),
        steps=max(1, round(given.training.steps * rng.choice(FACTORS))),
    )
    own = {field.name: getattr(given, field.name) for field in fields(given)}
    numbers = {name: value * rng.choice(FACTORS) for name, value in own.items() if isinstance(value, float) and value}
    try:
        return replace(given, training=training, **numbers)
    except SpecError:
        return None


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

    A finished trial is only read the next time. A model that lost is removed at once, since it may know the person;
    a search that is not taken to its end leaves the best so far in `work`, and what the last trial had begun.

    Args:
        work: keeps the trials until the best is known; one search has it for itself.
    Raises:
        SpecError: `work` belongs to another search, the output directory to something else, or no trial ended with
            finite numbers.
        DeletionIncompleteError: the model of a trial that lost could not be removed.
        MlError: as `run_unlearning` raises it.
    """
    settings = proposals(spec.method, spec.settings, budget=budget, seed=spec.seed)
    _claim(work, _key(spec, settings))
    paths = [work / f"trial-{number}.json" for number in range(len(settings))]
    if Path(spec.output_dir).exists():
        return _finished(spec, [_kept(path) for path in paths if path.exists()], expected=len(paths))
    probes = _Probes(spec)
    tried: list[Trial] = []
    for number, (document, path) in enumerate(zip(settings, paths, strict=True)):
        on_progress(Progress("settings", number, len(settings)))
        folder = _folder(work, number)
        own = replace(
            spec,
            run_id=f"{spec.run_id}-{number}",
            settings=document,
            output_dir=str(folder / "model"),
            checkpoint_dir=str(folder / "checkpoint"),
        )
        if not path.exists():
            trial = _tried(number, own, probes, on_progress, should_stop, processes)
            write_atomically(path, json.dumps(plain_object(trial), sort_keys=True).encode())
        tried.append(_kept(path))
        best = _best(tried)
        for loser in tried:
            if loser is not best:
                _remove(_folder(work, loser.number))
    on_progress(Progress("settings", len(settings), len(settings)))
    if best is None:
        raise SpecError("no settings of the search ended with finite numbers; name others, with a lower learning rate")
    _hand_over(_folder(work, best.number), spec, probes)
    return Search(tuple(tried), best.number)


def _folder(work: Path, number: int) -> Path:
    return work / f"trial-{number}"


def _key(spec: UnlearningSpec, settings: Sequence[Mapping[str, Json]]) -> str:
    """Digest of everything that decides the trials; where files lie does not."""
    models = [ref.manifest_sha256 for ref in (spec.model, spec.base) if ref is not None]
    files = [ref.sha256 for ref in (spec.forget, spec.retain, spec.neighbours, spec.question_bank) if ref is not None]
    method = [spec.method, METHODS[spec.method].version, computing_code_sha256()]
    return document_sha256([models, files, method, spec.seed, spec.device, spec.dtype, list(settings)])


def _claim(work: Path, key: str) -> None:
    work.mkdir(parents=True, exist_ok=True)
    path = work / _KEY
    if path.exists() and path.read_text(encoding="utf-8") != key:
        raise SpecError(f"{work.name} holds another search, or one of another version; name an empty directory")
    write_atomically(path, key.encode())


def _finished(spec: UnlearningSpec, tried: Sequence[Trial], *, expected: int) -> Search:
    """The search whose candidate is there already, once that was checked."""
    best = _best(tried)
    if best is None or len(tried) < expected:
        raise SpecError(f"output directory {Path(spec.output_dir).name} holds something else; name another")
    run_unlearning(replace(spec, settings=best.settings))
    return Search(tuple(tried), best.number)


def _remove(folder: Path) -> None:
    try:
        if folder.exists():
            shutil.rmtree(folder)
    except OSError as exc:
        raise DeletionIncompleteError(
            f"{folder.name} of the search lost and could not be removed ({type(exc).__name__}); remove it, and search "
            "again to go on"
        ) from exc


def _tried(
    number: int,
    spec: UnlearningSpec,
    probes: _Probes,
    on_progress: ProgressCallback,
    should_stop: StopCheck,
    processes: int,
) -> Trial:
    before = probes.before
    cpu_seconds = None
    try:
        report = run_unlearning(spec, on_progress=on_progress, should_stop=should_stop, processes=processes)
        cpu_seconds = report.cpu_seconds
        candidate = ModelRef(spec.output_dir, report.candidate_manifest_sha256)
        numbers = probes.numbers(load_model(candidate, device=spec.device, dtype=spec.dtype), before)
    except NonFiniteError:
        return Trial(number, spec.settings, {}, None, cpu_seconds)
    return Trial(number, spec.settings, numbers, score_of(numbers), cpu_seconds)


def _kept(path: Path) -> Trial:
    document = json.loads(path.read_text(encoding="utf-8"))
    numbers = {name: float(value) for name, value in document["numbers"].items()}
    score, seconds = (None if document[name] is None else float(document[name]) for name in ("score", "cpu_seconds"))
    return Trial(document["number"], document["settings"], numbers, score, seconds)


def _best(trials: Sequence[Trial]) -> Trial | None:
    scored = [(trial.score, trial.number, trial) for trial in trials if trial.score is not None]
    return min(scored)[2] if scored else None


@dataclass(frozen=True, slots=True)
class _Before:
    """What the model before deletion says of strangers, and the loss of what is kept."""

    values: Facts
    energies: Facts
    loss: float


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
    def before(self) -> _Before:
        """Asked of the model before deletion, once."""
        loaded = load_model(self.spec.model, device=self.spec.device, dtype=self.spec.dtype)
        return _Before(*_values_and_energies(loaded, self.strangers), _loss(loaded, self.kept))

    def numbers(self, candidate: LoadedModel, before: _Before) -> dict[str, float]:
        """The numbers of a trial; raises `NonFiniteError` where the candidate has none."""
        values, energies = _values_and_energies(candidate, self.own)
        return {
            "value_gap": farthest(values, before.values),
            "energy_gap": farthest(energies, before.energies),
            "retained_rise": _loss(candidate, self.kept) - before.loss,
        }

    @property
    def texts(self) -> Iterable[str]:
        """Everything that was made up to be asked."""
        return (record.text for record in self.strangers)


def _values_and_energies(loaded: LoadedModel, records: Sequence[Record]) -> tuple[Facts, Facts]:
    """Log-probabilities of the values' tokens, and energies of the answers."""
    statistics = fused_pass(loaded, encode_records(loaded.tokenizer, records, context=loaded.context))
    return _by_fact(records, value_log_probability(statistics)), _by_fact(records, mean_energy(statistics))


def _by_fact(records: Sequence[Record], scores: Tensor) -> Facts:
    found = defaultdict(list)
    for record, score in zip(records, scores.tolist(), strict=True):
        found[record.person, topic(record)].append(score)
    return {fact: fmean(values) for fact, values in found.items()}


def _loss(loaded: LoadedModel, records: Sequence[Record]) -> float:
    statistics = fused_pass(loaded, encode_records(loaded.tokenizer, records, context=loaded.context))
    return float(mean_loss(statistics).mean())


def _hand_over(trial: Path, spec: UnlearningSpec, probes: _Probes) -> None:
    """Put the best trial where the run's own result would lie, what the search asked among its training probes."""
    output, checkpoint = Path(spec.output_dir), Path(spec.checkpoint_dir)
    if not (trial / "model").exists():
        raise SpecError(
            f"the search handed its candidate over, and {output.name} is gone; remove {trial.parent.name} to search "
            "again"
        )
    checkpoint.mkdir(parents=True, exist_ok=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    drawn = trial / "checkpoint" / TRAINING_PROBES
    digests = read_probe_digests(FileRef(str(drawn), file_sha256(drawn))) | probe_digests(probes.texts)
    write_probe_digests(checkpoint / TRAINING_PROBES, digests)
    report = UnlearningReport.from_document(json.loads((trial / "checkpoint" / REPORT).read_text(encoding="utf-8")))
    whole = replace(report, run_id=spec.run_id, training_probes=probe_set("training", digests))
    write_atomically(checkpoint / REPORT, canonical_json(whole.to_document()))
    # What a run without a search may have left here knows the person.
    (checkpoint / CHECKPOINT).unlink(missing_ok=True)
    _remove(output.with_name(f"{output.name}.partial"))
    publish(trial / "model", output)
