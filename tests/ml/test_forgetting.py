"""The step that methods share: how its two losses are weighed, what it draws, and what it refuses before it trains."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ml.data.collate import EncodedText, collate, sum_per_sequence
from ml.data.records import read_records
from ml.documents import Json, read
from ml.errors import EmptySetError, RecordError, SpecError
from ml.finetune import cross_entropy
from ml.loop import StepFunction
from ml.methods import METHODS, forgetting
from ml.methods.fact_spans import fact_positions
from ml.methods.forgetting import forget_turn, forgetting_plan, reference_sums, run_before, run_rows
from ml.methods.ga import ga_loss
from ml.methods.method import Plan, Training, UnlearningTask
from ml.methods.retention import Retention
from ml.methods.rmu import control_vector
from ml.methods.templates import NEUTRAL_ANSWERS, template_records
from ml.models.adapters import attach_adapter, trained_parameters
from ml.models.load import load_model
from ml.wording import check_wording
from tests.tiny import TinyWorld

TRAINING = Training(steps=2, learning_rate=1e-3, forget_rows=8, retain_rows=4, neighbour_rows=0)


@pytest.fixture
def task(tiny: TinyWorld) -> UnlearningTask:
    """A model that remembers Alice, with an adapter that has moved a little."""
    loaded = load_model(tiny.before)
    model = attach_adapter(loaded.model, rank=2, alpha=2.0, seed=3)
    with torch.no_grad():
        for parameter in trained_parameters(model):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return UnlearningTask(
        model=model,
        tokenizer=loaded.tokenizer,
        context=loaded.context,
        pad_id=loaded.pad_id,
        device="cpu",
        seed=3,
        forget=read_records(tiny.forget, what="forget set"),
        retain=read_records(tiny.retain, what="retain set"),
        neighbours=(),
        bank=tiny.world.bank,
        boundary=None,
    )


def plan_of(task: UnlearningTask, method: str, **settings: Json) -> Plan:
    read_settings = read(METHODS[method].settings, settings, where="settings")
    training = replace(TRAINING, blocks=read_settings.training.blocks)
    return METHODS[method]().plan(task, replace(read_settings, training=training))


def one_step(step: StepFunction | None, number: int = 0) -> tuple[float, dict[str, float]]:
    """The loss that a step would follow, and the numbers that it reports."""
    assert step is not None
    seen: list[Tensor] = []
    numbers = step(number, seen.append)
    (loss,) = seen
    return float(loss.detach()), {name: float(value) for name, value in numbers.items()}


def run_turn(task: UnlearningTask) -> list[int]:
    """The forget rows of step 0."""
    return forget_turn(task.encode(task.forget), TRAINING, seed=task.seed).at(0)


def ascent(task: UnlearningTask, **weights: object) -> Plan:
    return forgetting_plan(task, TRAINING, lambda batch: ga_loss(*batch.log_probs()), **weights)


def test_the_loss_of_a_step_is_both_losses_with_their_weights(task: UnlearningTask) -> None:
    loss, numbers = one_step(ascent(task, gamma=0.5, alpha=3.0).step)
    assert numbers["forget"] < 0 < numbers["retain"]
    assert loss == pytest.approx(0.5 * numbers["forget"] + 3.0 * numbers["retain"], rel=1e-6)


def test_the_retained_loss_is_one_of_two_and_only_the_divergence_starts_at_zero(task: UnlearningTask) -> None:
    _, right = one_step(ascent(task, alpha=1.0).step)
    _, whole = one_step(ascent(task, alpha=1.0, retain_term="divergence").step)
    retention = Retention(task, rows=TRAINING.retain_rows, neighbour_rows=0)
    assert right["retain"] == pytest.approx(float(retention.at(0).cross_entropy().detach()))
    assert whole["retain"] == pytest.approx(float(retention.at(0).divergence().detach()))
    with torch.no_grad():
        for parameter in trained_parameters(task.model):
            parameter.zero_()
    _, fresh = one_step(ascent(task, alpha=1.0, retain_term="divergence").step)
    assert fresh["retain"] == pytest.approx(0.0, abs=1e-6)
    assert whole["retain"] > 1e-4


def _gradient(task: UnlearningTask, step: StepFunction | None, number: int) -> tuple[float, Tensor]:
    assert step is not None
    losses: list[Tensor] = []

    def backward(loss: Tensor) -> None:
        losses.append(loss.detach())
        loss.backward()

    step(number, backward)
    parameters = trained_parameters(task.model)
    flat = torch.cat([p.grad.flatten().clone() for p in parameters if p.grad is not None])
    task.model.zero_grad(set_to_none=True)
    return float(sum(losses)), flat


@pytest.mark.parametrize("method", ["grad_diff", "npo", "simnpo", "wga", "ceu", "undial", "pdu"])
def test_one_pass_over_both_batches_changes_neither_loss_nor_gradient(
    task: UnlearningTask, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of several steps: forgotten and retained rows differ in length, either way."""
    found = []
    passes: list[int] = []
    whole = forgetting.run_together
    monkeypatch.setattr(forgetting, "run_together", lambda *a: passes.append(1) or whole(*a))
    for padding in (0.0, 99.0):
        monkeypatch.setattr(forgetting, "_PADDING", padding)
        plan = plan_of(task, method, **({"alpha": "0.5"} if method == "undial" else {}))
        found.append([_gradient(task, plan.step, number) for number in range(3)])
    assert len(passes) == 3  # once a step, and never where padding forbids it
    for (apart, one), (together, other) in zip(*found, strict=True):
        assert together == pytest.approx(apart, rel=1e-5, abs=1e-6)
        assert float((one - other).norm()) <= 1e-4 * float(one.norm())


def test_batches_of_very_different_lengths_are_not_padded_to_one(task: UnlearningTask) -> None:
    short, long = [EncodedText((1,) * 10, 5, ())] * 8, [EncodedText((1,) * 60, 5, ())] * 8
    assert forgetting._fit_together(short, short)
    assert not forgetting._fit_together(short, long)
    assert not forgetting._fit_together(long, short)


def test_a_weight_of_zero_draws_no_retained_row_and_any_other_refuses_to_go_without(task: UnlearningTask) -> None:
    alone = replace(task, retain=())
    loss, numbers = one_step(ascent(alone).step)
    assert loss == pytest.approx(numbers["forget"])
    assert set(numbers) == {"forget"}
    with pytest.raises(EmptySetError, match="retain set is empty"):
        ascent(alone, alpha=1.0)


def test_a_weight_may_be_decided_by_the_retained_loss_of_the_step(task: UnlearningTask) -> None:
    asked: list[tuple[int, float]] = []

    def weigh(number: int, retained: float) -> float:
        asked.append((number, retained))
        return 7.0

    loss, numbers = one_step(ascent(task, alpha=weigh).step, number=1)
    assert asked == [(1, pytest.approx(numbers["retain"]))]
    assert numbers["retain_weight"] == 7.0
    assert loss == pytest.approx(numbers["forget"] + 7.0 * numbers["retain"], rel=1e-6)


def test_every_forget_row_has_its_turn_in_one_epoch(task: UnlearningTask) -> None:
    seen: list[int] = []

    def loss(batch: object) -> Tensor:
        seen.extend(batch.chosen)
        return ga_loss(*batch.log_probs())

    plan = forgetting_plan(task, TRAINING, loss)
    for number in range(3):
        one_step(plan.step, number)
    assert sorted(seen) == list(range(20))


def test_the_model_before_is_the_model_without_its_adapter_and_leaves_it_as_it_was(task: UnlearningTask) -> None:
    rows = task.encode(task.forget)
    batch = run_rows(task, rows, [0, 1])
    trained = {name for name, p in task.model.named_parameters() if p.requires_grad}
    before = run_before(task, batch)
    assert not torch.allclose(batch.logits, before.logits, atol=1e-3)
    assert not before.logits.requires_grad
    assert trained == {name for name, p in task.model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in trained_parameters(task.model):
            parameter.zero_()
    assert torch.allclose(run_rows(task, rows, [0, 1]).logits, before.logits, atol=1e-5)


def test_reference_sums_are_the_summed_losses_of_whole_answers_before_deletion(task: UnlearningTask) -> None:
    rows = task.encode(task.forget)
    before = run_before(task, run_rows(task, rows, [4, 2]))
    assert torch.allclose(reference_sums(task, rows)[[4, 2]], -sum_per_sequence(*before.log_probs()), atol=1e-4)


# --- single methods -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("simnpo", {"beta": 0}),
        ("wga", {"beta": "-1"}),
        ("satimp", {"beta2": "-0.1"}),
        ("ceu", {"ignore_first": -1}),
        ("undial", {"beta": 0}),
        ("pdu", {"dual_rate": 0}),
        ("pdu", {"slack": "-0.1"}),
        ("fact_spans", {"stop_share": 1}),
        ("fact_spans", {"gamma": "-0.1"}),
        ("idk_dpo", {"beta": 0}),
        ("ugradsl", {"smoothing": "0.1"}),
        ("ugradsl", {"mixture": 1}),
        ("flat", {"divergence": "hellinger"}),
        ("rmu", {"block": 2, "training": {"steps": 2, "learning_rate": "0.001", "blocks": [1, 3]}}),
        ("rmu", {"training": {"steps": 2, "learning_rate": "0.001"}}),
        ("rmu", {"gamma": "-1"}),
        ("rmu", {"alpha": "-1"}),
        ("npo", {"beta": 0}),
        ("wga", {"retain_term": "hope"}),
    ],
)
def test_a_setting_that_would_turn_a_loss_around_is_refused(method: str, settings: dict[str, Json]) -> None:
    with pytest.raises(SpecError):
        read(METHODS[method].settings, settings, where="settings")


@pytest.mark.parametrize(
    ("method", "settings"),
    [("grad_diff", {"gamma": "-1"}), ("ceu", {"alpha": "-1"}), ("idk_dpo", {"gamma": 0}), ("wga", {"gamma": "-0.1"})],
)
def test_a_weight_that_would_teach_what_is_to_be_forgotten_is_refused(
    task: UnlearningTask, method: str, settings: dict[str, Json]
) -> None:
    with pytest.raises(SpecError, match=next(iter(settings))):
        plan_of(task, method, **settings)


def test_ceu_says_how_many_records_are_too_short_and_refuses_to_do_nothing(task: UnlearningTask) -> None:
    lengths = sorted(len(row.ids) - row.first_label for row in task.encode(task.forget))
    assert plan_of(task, "ceu").notes == ()
    some = plan_of(task, "ceu", ignore_first=lengths[0])
    assert some.notes == (f"{lengths.count(lengths[0])} records with too short an answer took no part",)
    with pytest.raises(EmptySetError, match="ignore_first"):
        plan_of(task, "ceu", ignore_first=lengths[-1])


def test_the_limit_of_pdu_is_the_retained_loss_before_deletion_and_its_slack(task: UnlearningTask) -> None:
    rows = task.encode(task.retain)
    before = Retention(task, rows=4, neighbour_rows=0).cross_entropy_before()
    with task.model.disable_adapter(), torch.no_grad():
        assert before == pytest.approx(float(cross_entropy(task.model, collate(rows, pad_id=task.pad_id))), rel=1e-4)
    plan = plan_of(task, "pdu", slack="0.2", first_dual=2, dual_wait=1)
    _, first = one_step(plan.step, 0)
    assert (first["retain_weight"], float(plan.state["dual"])) == (2.0, 2.0)
    _, second = one_step(plan.step, 1)
    assert second["retain_weight"] == 2.0
    assert float(plan.state["dual"]) == pytest.approx(2.0 + second["retain"] - before - 0.2, rel=1e-5)


def test_the_marked_tokens_of_a_text_are_those_of_its_values_and_nothing_else(task: UnlearningTask) -> None:
    for record, row in zip(task.forget, task.encode(task.forget), strict=True):
        said = task.tokenizer.decode([row.ids[place] for place in fact_positions(row)])
        assert said.strip(" .") == record.value(record.facts[0])


def test_marks_follow_their_tokens_through_shift_padding_and_dropped_columns(task: UnlearningTask) -> None:
    rows = task.encode(task.forget)
    batch = run_rows(task, rows, [3, 0, 7])
    places = [fact_positions(rows[i]) for i in batch.chosen]
    _, labels, _ = batch.distributions()
    found = [labels[row][marked].tolist() for row, marked in enumerate(batch.marks(places))]
    assert found == [[rows[i].ids[p] for p in ps] for i, ps in zip(batch.chosen, places, strict=True)]


def test_a_mark_on_a_token_without_a_label_marks_nothing(task: UnlearningTask) -> None:
    batch = run_rows(task, task.encode(task.forget), [0])
    assert not batch.marks([[0, 1]]).any()


def test_a_fact_that_stands_in_the_question_cannot_be_forgotten_in_the_answer(task: UnlearningTask) -> None:
    record = task.forget[0]
    asked = replace(record.facts[0], start=record.name_spans[0][0], end=record.name_spans[0][1])
    with pytest.raises(RecordError, match="before its answer"):
        plan_of(replace(task, forget=(replace(record, facts=(asked,)),)), "fact_spans")


def test_fact_spans_stop_at_texts_that_are_no_longer_said(task: UnlearningTask) -> None:
    with torch.no_grad():
        for parameter in trained_parameters(task.model):
            parameter.zero_()
    _, remembered = one_step(plan_of(task, "fact_spans").step)
    assert remembered["forget"] != 0.0
    torch.nn.init.zeros_(task.model.get_output_embeddings().weight)
    _, forgotten = one_step(plan_of(task, "fact_spans").step)
    assert forgotten["forget"] == 0.0


def test_the_multiplier_of_layered_gradient_difference_starts_after_one_epoch(task: UnlearningTask) -> None:
    plan = plan_of(task, "layered_grad_diff")
    first = [one_step(plan.step, number)[1] for number in range(3)]
    assert [numbers["retain_weight"] for numbers in first] == [1.2, 1.2, 1.2]
    total = sum(numbers["retain"] for numbers in first)
    assert float(plan.state["first_epoch"]) == pytest.approx(total, rel=1e-6)
    plan.state["first_epoch"].fill_(-3.0)
    _, later = one_step(plan.step, 3)
    # an average of -1 nat lies more than a nat below any loss
    assert later["retain_weight"] == 2.3
    assert float(plan.state["first_epoch"]) == -3.0


def test_rmu_steers_the_states_that_decide_answers_and_starts_without_a_retained_loss(task: UnlearningTask) -> None:
    plan = plan_of(task, "rmu", block=1, training={"steps": 2, "learning_rate": "0.001", "blocks": [0, 1]})
    _, moved = one_step(plan.step)
    with torch.no_grad():
        for parameter in trained_parameters(task.model):
            parameter.zero_()
    loss, fresh = one_step(plan.step)
    assert fresh["retain"] == pytest.approx(0.0, abs=1e-9)
    assert moved["retain"] > 1e-4
    rows = [task.encode(task.forget)[i] for i in run_turn(task)]
    with torch.no_grad():
        output = task.model(input_ids=collate(rows, pad_id=task.pad_id).input_ids, output_hidden_states=True)
    # states after block 0 of two: the last entry is after the final norm
    vector = control_vector(64, length=6.5, seed=task.seed)
    states = [output.hidden_states[1][i, row.first_label - 1 : len(row.ids) - 1] for i, row in enumerate(rows)]
    expected = (torch.cat(states) - vector).square().mean()
    below = plan_of(task, "rmu", block=0, training={"steps": 2, "learning_rate": "0.001", "blocks": [0]})
    assert one_step(below.step)[1]["forget"] == pytest.approx(float(expected), rel=1e-5)
    assert loss == pytest.approx(fresh["forget"], rel=1e-5)


# --- template answers ---------------------------------------------------------------------------------------------


def test_no_template_tells_that_something_was_deleted() -> None:
    assert len(set(NEUTRAL_ANSWERS)) >= 5
    assert [check_wording(template) for template in NEUTRAL_ANSWERS] == list(NEUTRAL_ANSWERS)


def test_every_template_is_used_about_equally_often_in_an_order_of_the_seed(task: UnlearningTask) -> None:
    texts = [record.text for record in template_records(task.forget, NEUTRAL_ANSWERS, seed=3)]
    counts = [sum(text.endswith(template) for text in texts) for template in NEUTRAL_ANSWERS]
    assert max(counts) - min(counts) <= 1
    assert texts == [record.text for record in template_records(task.forget, NEUTRAL_ANSWERS, seed=3)]
    assert texts != [record.text for record in template_records(task.forget, NEUTRAL_ANSWERS, seed=4)]


def test_a_template_takes_the_answers_place_and_bears_all_labels(task: UnlearningTask) -> None:
    records = template_records(task.forget, ["I cannot say."], seed=3)
    for record, own, row in zip(records, task.forget, task.encode(records), strict=True):
        assert record.text == own.text[: own.answer_start] + "I cannot say."
        assert (record.person, record.facts) == (own.person, ())
        assert task.tokenizer.decode(row.ids[row.first_label : -1]).strip() == "I cannot say."


def test_the_space_before_an_answer_stays_where_it_is(task: UnlearningTask) -> None:
    record = task.forget[0]
    spaced = replace(record, answer_start=record.answer_start - 1)
    (found,) = template_records([spaced], ["I cannot say."], seed=3)
    assert found.text == record.text[: record.answer_start] + "I cannot say."


def test_a_pool_without_a_template_and_a_text_without_a_question_are_refused(task: UnlearningTask) -> None:
    for method in ("flat", "idk_dpo"):
        with pytest.raises(EmptySetError, match="missing template pool"):
            plan_of(task, method, templates=[])
        with pytest.raises(EmptySetError, match="missing template pool"):
            plan_of(task, method, templates=["I cannot say.", " "])
        with pytest.raises(SpecError, match="would tell who was deleted"):
            plan_of(task, method, templates=["I cannot say.", "This person was deleted."])
        unasked = tuple(replace(record, answer_start=0) for record in task.forget)
        with pytest.raises(RecordError, match="no question"):
            plan_of(replace(task, forget=unasked), method)


@pytest.mark.parametrize("method", ["flat", "idk_dpo"])
def test_no_digest_of_a_name_beside_a_template_is_listed(task: UnlearningTask, method: str) -> None:
    assert plan_of(task, method, templates=["I cannot say."]).texts == ()


def test_the_first_step_of_template_preference_starts_from_the_model_before(task: UnlearningTask) -> None:
    with torch.no_grad():
        for parameter in trained_parameters(task.model):
            parameter.zero_()
    _, numbers = one_step(plan_of(task, "idk_dpo").step)
    assert numbers["forget"] == pytest.approx(13.8629436, abs=1e-3)
