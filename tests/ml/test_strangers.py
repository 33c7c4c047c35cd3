"""Stranger distillation, the data side: alignment of texts, stand-ins, fresh values, targets of true values."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

import ml.methods.method as method_module
from ml.data.alignment import align
from ml.data.collate import chosen_log_probs
from ml.data.dossiers import Dossier, paraphrases, read_dossier, shared_values
from ml.data.probes import probe_digests
from ml.data.records import by_person, read_records
from ml.data.synthetic import Stranger, StrangerFactory, rewrite
from ml.errors import EmptySequenceError, RecordError
from ml.guard.reading import make_reading, prompt_scores
from ml.methods.calibration import calibrate
from ml.methods.energy_boundary import EnergyBoundarySettings, distillation_step, keeping_step
from ml.methods.method import UnlearningTask, answer_positions
from ml.methods.relearner import RelearningSettings
from ml.methods.retention import Retention, closeness
from ml.methods.strangers import STAND_IN_DOUBT, UNSURE, Cast, ForgetRows, Preference, forget_rows, topic
from ml.models.adapters import attach_adapter, trained_parameters
from ml.models.load import LoadedModel, load_model
from ml.specs import Record
from tests.tiny import TinyWorld


@pytest.fixture(scope="module")
def loaded(tiny: TinyWorld) -> LoadedModel:
    return load_model(tiny.before)


@pytest.fixture(scope="module")
def task(tiny: TinyWorld) -> UnlearningTask:
    return fresh_task(tiny)


def fresh_task(tiny: TinyWorld) -> UnlearningTask:
    loaded = load_model(tiny.before)
    forget = read_records(tiny.forget, what="forget set")
    retain = read_records(tiny.retain, what="retain set")
    calibration = calibrate(loaded, forget=forget, retain=retain, bank=tiny.world.bank, seed=3)
    return UnlearningTask(
        model=attach_adapter(loaded.model, rank=4, alpha=4.0, seed=3),
        tokenizer=loaded.tokenizer,
        context=loaded.context,
        pad_id=loaded.pad_id,
        device="cpu",
        seed=3,
        forget=forget,
        retain=retain,
        neighbours=read_records(tiny.neighbours, what="neighbours"),
        bank=tiny.world.bank,
        boundary=calibration.boundary,
    )


@pytest.fixture(scope="module")
def rows(task: UnlearningTask) -> ForgetRows:
    return forget_rows(task, draws=2)


def stranger_to(task: UnlearningTask, seed: int = 9) -> StrangerFactory:
    corpus = [*task.forget, *task.retain]
    return StrangerFactory(random.Random(seed), corpus, shared_values=shared_values(task.bank, task.retain))


def test_aligned_positions_say_the_same_outside_names(task: UnlearningTask) -> None:
    stranger = stranger_to(task).stranger("s", {})
    for record in task.forget:
        pair = align(task.tokenizer, record, rewrite(record, name=stranger.name, values={}), context=task.context)
        matched = dict(zip(pair.first_positions, pair.second_positions, strict=True))
        for mine, theirs in matched.items():
            assert (pair.first.ids[mine] == pair.second.ids[theirs]) or mine in pair.first_names
        assert set(matched) == set(range(pair.first.first_label, len(pair.first.ids)))


def test_name_tokens_meet_in_order_and_the_last_one_takes_what_is_left_over(task: UnlearningTask) -> None:
    record = next(r for r in task.forget if any(start >= r.answer_start for start, _ in r.name_spans))
    pair = align(task.tokenizer, record, rewrite(record, name="Bo Xu", values={}), context=task.context)
    assert list(pair.second_names) == sorted(pair.second_names)
    assert len(set(pair.second_names)) <= len(pair.first_names)
    assert pair.second_names[0] == pair.second.first_label


def test_a_text_aligned_with_itself_meets_itself(task: UnlearningTask) -> None:
    for record in task.forget:
        pair = align(task.tokenizer, record, record, context=task.context)
        assert pair.first_positions == pair.second_positions


def test_texts_without_a_common_answer_are_refused(task: UnlearningTask) -> None:
    first = Record("1", "p", "Who? Alice", 5, ((0, 3),), ())
    with pytest.raises(EmptySequenceError):
        align(task.tokenizer, first, replace(first, text="Who? Bob!", name_spans=((0, 3),)), context=task.context)


def test_contrast_rows_hold_no_true_values_and_name_the_person_on_one_side_alone(
    task: UnlearningTask, rows: ForgetRows
) -> None:
    dossier = read_dossier(task.forget)
    opened = {v for a, v in dossier.values.items() if not task.bank.attributes[a].shared}
    for row in rows.contrast:
        student, teacher = (task.tokenizer.decode(text.ids) for text in (row.pair.first, row.pair.second))
        assert dossier.name in student
        assert dossier.name not in teacher
        assert not any(value in student or value in teacher for value in opened)


def test_every_record_is_contrasted_as_often_as_asked(task: UnlearningTask, rows: ForgetRows) -> None:
    assert len(rows.contrast) == 2 * len(task.forget)
    assert len(rows.strangers) == len(task.forget)


def test_held_tokens_are_what_a_stranger_would_have(task: UnlearningTask, rows: ForgetRows) -> None:
    own = [row for row in rows.held if "Alice" in task.tokenizer.decode(row.text.ids)]
    assert len(own) == len(task.forget)
    assert len(rows.held) == 2 * len(task.forget)
    for row in own:
        assert len(row.targets) == len(row.energies) == len(row.positions)
        start, end = row.text.values[0]
        assert set(range(start, end)) <= set(row.positions)
    open_tokens = [target for row in own for target in row.targets]
    # The model before gives its own memory almost 0 nats a token; a random value gets several.
    assert sum(open_tokens) / len(open_tokens) < -2
    before = [
        row.targets[row.positions.index(p)] for row in rows.held if row not in own for p in (row.text.values[0][0],)
    ]
    assert len(before) == len(task.forget)


def test_a_true_value_is_never_held_to_its_own_memory(task: UnlearningTask, rows: ForgetRows) -> None:
    own = [row for row in rows.held if "Alice" in task.tokenizer.decode(row.text.ids)]
    kept = []
    for row in own:
        logits = task.reference_logits([row.text], [row.positions])
        labels = logits.new_tensor([row.text.ids[p] for p in row.positions]).long()
        kept.append(float((chosen_log_probs(logits, labels) - logits.new_tensor(row.targets)).mean()))
    # remembered minus held, in nats a token: above 0 for every text of the person
    assert min(kept) > 0.5


def test_name_tokens_of_the_answer_are_held_too(task: UnlearningTask, rows: ForgetRows) -> None:
    named = [r for r in task.forget if any(start >= r.answer_start for start, _ in r.name_spans)]
    texts = task.encode(named)
    held = {row.text.ids: row for row in rows.held}
    for text in texts:
        assert text.first_label in held[text.ids].positions


@pytest.mark.slow
def test_strangers_and_values_come_from_the_seed(task: UnlearningTask, rows: ForgetRows) -> None:
    assert forget_rows(task, draws=2).texts == rows.texts
    other = forget_rows(replace(task, seed=4), draws=2)
    on_file = probe_digests(record.text for record in (*task.forget, *task.retain))
    shared = (probe_digests(rows.texts) & probe_digests(other.texts)) - on_file
    # Only texts whose every value comes from a small shared pool may coincide.
    assert len(shared) < len(rows.texts) / 50


def test_no_stand_in_guesses_the_persons_employer(task: UnlearningTask) -> None:
    cast = Cast(task)
    (dossier,) = cast.dossiers
    stand_ins = cast.stand_ins(dossier)
    employer = next(r for r in dossier.records if r.facts[0].attribute == "employer")
    for stand_in in stand_ins.values():
        text = task.encode([rewrite(employer, name=stand_in.name, values={})])[0]
        start, end = text.values[0]
        guess = task.reference_logits([text], [range(start, end)]).argmax(-1).tolist()
        assert guess != list(text.ids[start:end])


def test_every_topic_has_a_stand_in_who_is_not_drawn_to_the_persons_value_of_it(task: UnlearningTask) -> None:
    cast = Cast(task)
    (dossier,) = cast.dossiers
    stand_ins = cast.stand_ins(dossier)
    assert set(stand_ins) == {topic(record) for record in dossier.records}
    preferences = Preference(cast, dossier).of(cast.candidates)
    opened = [about for about in stand_ins if not task.bank.attributes[about[0]].shared]
    for about in opened:
        drawn = sorted(abs(preferences[s.person][about[0]]) for s in cast.candidates)
        assert abs(preferences[stand_ins[about].person][about[0]]) < drawn[len(drawn) // 2]
    # The person begins their own answers as the model remembers them: several nats above any stranger.
    own = Preference(cast, dossier).of([Stranger(dossier.person, dossier.name, dossier.values)])[dossier.person]
    assert sum(own.values()) > max(sum(theirs.values()) for theirs in preferences.values())


def test_of_the_person_the_model_before_is_sure_and_of_strangers_it_is_not(task: UnlearningTask) -> None:
    cast = Cast(task)
    (dossier,) = cast.dossiers
    own, *others = cast.doubts(dossier, [Stranger(dossier.person, dossier.name, dossier.values), *cast.strangers])
    assert all(0.0 <= doubt <= 1.0 for doubt in (own, *others))
    assert own < sorted(others)[len(others) // 4]


def test_doubt_is_what_a_guard_reads_of_the_same_questions(task: UnlearningTask, loaded: LoadedModel) -> None:
    cast = Cast(task)
    (dossier,) = cast.dossiers
    stranger = cast.strangers[0]
    asked: dict[tuple[str, ...], str] = {}
    for record in dossier.records:
        told = rewrite(record, name=stranger.name, values=stranger.values)
        if any(not task.bank.attributes[fact.attribute].shared for fact in record.facts):
            asked.setdefault(topic(record), told.text[: told.answer_start])
    read = prompt_scores(loaded, list(asked.values()), make_reading(task.vocabulary))
    assert cast.doubts(dossier, [stranger]) == pytest.approx([float(read.clamp(max=UNSURE).mean() / UNSURE)], abs=1e-3)


def test_the_model_in_training_has_no_say_in_doubt_and_what_was_asked_is_remembered(tiny: TinyWorld) -> None:
    adapted = fresh_task(tiny)
    first, second = Cast(adapted), Cast(adapted)
    (dossier,) = first.dossiers
    drawn = first.candidates[:3]
    before = first.doubts(dossier, drawn)
    with torch.no_grad():
        for parameter in trained_parameters(adapted.model):
            parameter.add_(1.0)
    assert second.doubts(dossier, drawn) == before
    names = [stranger.name for stranger in drawn]
    assert len(second.texts) >= 3
    assert all(any(name in text for name in names) for text in second.texts)
    assert second.texts == first.texts


def test_stand_ins_have_ordinary_energy_and_ordinary_doubt_and_prefer_the_persons_values_least(
    task: UnlearningTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    cast = Cast(task)
    (dossier,) = cast.dossiers
    given: list[list[Stranger]] = []

    def doubts(_: Dossier, strangers: Sequence[Stranger]) -> list[float]:
        given.append(list(strangers))
        return [index**1.5 for index in range(len(strangers))]  # no two equally far from any other

    asked: list[dict[str, dict[str, float]]] = []
    of = Preference.of

    def remembered(preference: Preference, strangers: Sequence[Stranger]) -> dict[str, dict[str, float]]:
        asked.append(of(preference, strangers))
        return asked[-1]

    monkeypatch.setattr(cast, "doubts", doubts)
    monkeypatch.setattr(Preference, "of", remembered)
    stand_ins = cast.stand_ins(dossier)
    (blank,), (preferences,) = given, asked
    # A quarter of a half of them: those whose doubt is the nearest to the wanted one among those of ordinary energy.
    energies = cast._energies(dossier, blank)
    middle = sorted(energies)[(len(blank) - 1) // 2]
    half = sorted(range(len(blank)), key=lambda index: abs(energies[index] - middle))[: math.ceil(len(blank) / 2)]
    wanted = int(STAND_IN_DOUBT * (len(blank) - 1)) ** 1.5
    near = sorted(half, key=lambda index: abs(index**1.5 - wanted))
    quarter = [blank[index] for index in near][: math.ceil(len(half) / 4)]
    assert set(preferences) == {stranger.person for stranger in quarter}
    for about, chosen in stand_ins.items():
        if not task.bank.attributes[about[0]].shared:
            least = min(abs(theirs[about[0]]) for theirs in preferences.values())
            assert abs(preferences[chosen.person][about[0]]) == least


def test_a_person_who_is_asked_nothing_leaves_no_doubt_and_still_gets_a_stand_in(task: UnlearningTask) -> None:
    silent = tuple(
        replace(record, answer_start=0) if record.facts[0].attribute != "employer" else record for record in task.forget
    )
    cast = Cast(replace(task, forget=silent))
    (dossier,) = cast.dossiers
    assert cast.doubts(dossier, cast.strangers[:2]) == []
    assert all(stand_in in cast.candidates for stand_in in cast.stand_ins(dossier).values())


def test_candidates_have_names_of_their_own_and_no_value_of_anybody(task: UnlearningTask) -> None:
    cast = Cast(task)
    assert len({stranger.name for stranger in cast.candidates}) == len(cast.candidates) > len(cast.strangers)
    on_file = " ".join(record.text for record in (*task.forget, *task.retain))
    own = [a for a, attribute in task.bank.attributes.items() if not attribute.shared and a in cast.dossiers[0].values]
    assert own
    assert not any(stranger.values[a] in on_file for stranger in cast.candidates for a in own)


def test_one_form_at_least_stays_unused(task: UnlearningTask) -> None:
    everything = Retention(task, rows=8, neighbour_rows=2, reworded_forms=100)
    for person, own in by_person(task.retain).items():
        dossier = read_dossier(own)
        for attribute in dossier.values:
            other = {record.text for record in paraphrases(dossier, task.bank, (attribute,))}
            drawn = {record.text for record in everything.drawn if record.person == person}
            assert len(other - drawn) == min(1, len(other))
    # Another deletion leaves the same, whatever its seed and whoever else is kept by then.
    later = Retention(
        replace(task, seed=4, retain=task.retain[len(task.retain) // 2 :]), rows=8, neighbour_rows=2, reworded_forms=100
    )
    assert {record.text for record in later.drawn} <= {record.text for record in everything.drawn}


def test_a_forget_record_without_a_name_or_value_is_refused(task: UnlearningTask) -> None:
    nameless = (replace(task.forget[0], name_spans=()), *task.forget[1:])
    with pytest.raises(RecordError, match="marks no name"):
        forget_rows(replace(task, forget=nameless), draws=1)
    valueless = tuple(replace(record, facts=()) for record in task.forget)
    with pytest.raises(RecordError, match="marks a value"):
        forget_rows(replace(task, forget=valueless), draws=1)


def test_retained_people_are_also_asked_in_other_words(task: UnlearningTask) -> None:
    plain = Retention(task, rows=8, neighbour_rows=2)
    reworded = Retention(task, rows=8, neighbour_rows=2, reworded_forms=2)
    assert len(plain.rows) == len(task.retain)
    # 8 forms a fact, 2 of them on file: 2 of the other 6
    assert len(reworded.rows) == 2 * len(task.retain)
    assert len(reworded.chosen(0)) == 10
    assert not probe_digests(r.text for r in reworded.drawn) & probe_digests(r.text for r in task.retain)


def test_the_closer_a_neighbour_the_more_often_their_turn_comes(task: UnlearningTask) -> None:
    # Bob shares employer and city with Alice; in the tiny world the employer is the only shared attribute.
    assert closeness(task) == {task.neighbours[0].person: 1}
    (person,) = {record.person for record in task.forget}
    twice = tuple(replace(record, person="namesake") for record in task.forget[:4])
    alike = closeness(replace(task, neighbours=(*task.neighbours, *twice)))
    assert person not in alike
    assert alike["namesake"] == len({(f.attribute, r.value(f)) for r in twice for f in r.facts})
    batch = Retention(replace(task, neighbours=twice), rows=8, neighbour_rows=2)
    assert len(batch.near) == alike["namesake"] * len(twice)


def test_before_training_nothing_retained_has_moved(task: UnlearningTask) -> None:
    batch = Retention(task, rows=8, neighbour_rows=2).at(0)
    assert float(batch.divergence()) == pytest.approx(0.0, abs=1e-6)
    assert float(batch.cross_entropy()) < 0.2
    assert batch.mean_per_row(batch.labels.float()).shape == (10,)


def test_larger_logits_are_a_drift_that_divergence_hardly_sees_and_kept_energy_does(tiny: TinyWorld) -> None:
    task = fresh_task(tiny)
    keep = keeping_step(task, Retention(task, rows=8, neighbour_rows=2), EnergyBoundarySettings())
    sums: list[float] = []
    first = keep(0, lambda loss: sums.append(float(loss.detach())))
    assert float(first["kept_energy"]) == pytest.approx(0.0, abs=1e-5)
    # The model before deletion is the same object without its adapter, so it is asked before anything drifts.
    retention = Retention(task, rows=8, neighbour_rows=2)
    retention.prepare(0)
    hook = task.model.get_output_embeddings().register_forward_hook(lambda module, given, logits: logits * 1.05)
    second = keeping_step(task, retention, EnergyBoundarySettings())(0, lambda loss: sums.append(float(loss.detach())))
    hook.remove()
    assert float(second["divergence"].detach()) < 0.05
    assert float(second["kept_energy"].detach()) > 0.3
    assert sums[1] > sums[0]


def test_scores_come_back_in_the_order_of_the_texts_whichever_batch_they_were_in(
    task: UnlearningTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    cast = Cast(task)
    texts = task.encode(task.forget)[:8]
    positions = [tuple(answer_positions(text))[: number % 4] for number, text in enumerate(texts)]
    assert len({len(text.ids) for text in texts}) > 1
    monkeypatch.setattr(method_module, "_BATCH_TOKENS", 2 * max(len(text.ids) for text in texts))
    together = cast.scores(texts, positions)
    alone = [cast.scores([text], [own])[0] for text, own in zip(texts, positions, strict=True)]
    assert [len(row) for row in together] == [number % 4 for number in range(8)]
    for row, single in zip(together, alone, strict=True):
        assert [number for pair in row for number in pair] == pytest.approx(
            [n for pair in single for n in pair], abs=1e-4
        )


def test_a_step_adds_every_term_once_by_the_weight_that_is_called_after_it(tiny: TinyWorld) -> None:
    settings = EnergyBoundarySettings(
        relearning=RelearningSettings(steps=0),
        contrast_weight=2.0,
        stranger_weight=3.0,
        held_weight=5.0,
        held_energy_weight=7.0,
        energy_weight=11.0,
        kept_energy_weight=13.0,
        divergence_weight=17.0,
        cross_entropy_weight=19.0,
    )
    task = fresh_task(tiny)
    rows = forget_rows(task, draws=1)
    keep = keeping_step(task, Retention(task, rows=8, neighbour_rows=2), settings)
    given: list[float] = []

    def backward(loss: torch.Tensor) -> None:
        given.append(float(loss.detach()))

    found = {name: float(value) for name, value in distillation_step(task, rows, keep, settings)(0, backward).items()}
    weights = {
        "contrast": 2.0,
        "strangers": 3.0,
        "held": 5.0,
        "held_energy": 7.0,
        "energy_forget": 11.0,
        "kept_energy": 13.0,
        "divergence": 17.0,
        "cross_entropy": 19.0,
        "energy_retain": 11.0,
    }
    assert found.keys() == weights.keys()
    assert all(found[name] > 0 for name in ("contrast", "held", "held_energy", "cross_entropy"))
    assert sum(given) == pytest.approx(sum(weights[name] * value for name, value in found.items()), rel=1e-4)


def test_row_means_average_each_rows_own_tokens(task: UnlearningTask) -> None:
    batch = Retention(task, rows=4, neighbour_rows=0).at(0)
    counts = batch.counts.tolist()
    values = [float(i) for i, count in enumerate(counts) for _ in range(count)]
    means = batch.mean_per_row(batch.logits.new_tensor(values))
    assert means.tolist() == pytest.approx([0.0, 1.0, 2.0, 3.0])


def test_a_value_that_stands_in_the_question_is_not_held(task: UnlearningTask) -> None:
    record = next(r for r in task.forget if all(end <= r.answer_start for _, end in r.name_spans))
    told = replace(record, answer_start=len(record.text) - 1)
    altered = replace(task, forget=tuple(told if r is record else r for r in task.forget))
    assert len(forget_rows(altered, draws=1).held) == 2 * len(task.forget) - 2
