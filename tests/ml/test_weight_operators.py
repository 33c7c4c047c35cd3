"""What acts on gradients and weights instead of losses: projection, attribution, dampening, one step, sparsity."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ml.data.collate import EncodedText, encode_records, label_log_probs
from ml.data.records import read_records, write_records
from ml.documents import Json, read
from ml.errors import EmptySetError, NonFiniteError, RunStoppedError, SpecError
from ml.loop import Backward, LoopSettings, train
from ml.methods import METHODS
from ml.methods.attribution import attributed_layers, attribution_scores, highest
from ml.methods.forgetting import RetainTerm, forgetting_plan, run_rows
from ml.methods.ga import ga_loss
from ml.methods.gs_lora import adapter_groups, bounded_ascent_loss, drop_small, group_norm
from ml.methods.iau import influence_step
from ml.methods.method import Plan, Training, UnlearningTask, back_propagate
from ml.methods.projection import flat_gradients, projected, without_components
from ml.methods.ssd import dampened
from ml.methods.sweeps import mean_gradients, mean_squared_gradients
from ml.models.adapters import attach_adapter, base_parameters, trained_parameters
from ml.models.layers import linear_layer_names
from ml.models.load import LoadedModel, load_model, model_ref
from ml.specs import Record, UnlearningSpec
from ml.unlearn import run_unlearning
from tests.ml.fixture_z import FORGET, FORGET_LABELS, as_batch
from tests.ml.specs import unlearning_spec
from tests.tiny import TinyWorld

TRAINING = Training(steps=2, learning_rate=1e-3, forget_rows=8, retain_rows=4, neighbour_rows=0)
LOOP = LoopSettings(steps=6, learning_rate=0.05, clip_norm=1e9)


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


# --- projection (GU) ----------------------------------------------------------------------------------------------


def vector(*numbers: float) -> Tensor:
    return torch.tensor(numbers)


@pytest.mark.parametrize(
    ("forget", "retain", "denominator", "expected"),
    [
        ((3.0, 4.0), (1.0, 1.0), None, (-0.5, 0.5)),
        ((3.0, 4.0), (1.0, 0.0), None, (0.0, 4.0)),
        # <3 * 1 / 2 + 4 * 1 / 1> / <1 / 2 + 1> = 5.5 / 1.5
        ((3.0, 4.0), (1.0, 1.0), (2.0, 1.0), (-0.6666667, 0.3333333)),
        ((3.0, 4.0), (0.0, 0.0), None, (3.0, 4.0)),
    ],
)
def test_the_component_along_the_retained_gradient_is_taken_out(
    forget: tuple[float, ...],
    retain: tuple[float, ...],
    denominator: tuple[float, ...] | None,
    expected: tuple[float, ...],
) -> None:
    metric = None if denominator is None else vector(*denominator)
    found = without_components(vector(*forget), vector(*retain)[None], metric)
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    update = found if metric is None else found / metric
    assert float(update @ vector(*retain)) == pytest.approx(0.0, abs=1e-6)


@given(st.integers(0, 2**31 - 1), st.integers(1, 5), st.booleans())
def test_a_projected_update_never_meets_a_retained_gradient_and_projecting_twice_changes_nothing(
    seed: int, directions: int, weighed: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    forget, *retain = torch.randn(1 + directions, 12, generator=generator, dtype=torch.float64)
    metric = torch.rand(12, generator=generator, dtype=torch.float64) + 0.1 if weighed else None
    once = without_components(forget, torch.stack(retain), metric)
    update = once if metric is None else once / metric
    for direction in retain:
        assert float(update @ direction) == pytest.approx(0.0, abs=1e-8)
    assert torch.allclose(without_components(once, torch.stack(retain), metric), once, atol=1e-8)


def test_several_directions_take_more_out_than_their_sum_and_a_dependent_one_takes_nothing_more() -> None:
    first, second, forget = vector(1.0, 0.0, 0.0), vector(0.0, 1.0, 0.0), vector(3.0, 4.0, 5.0)
    assert without_components(forget, torch.stack([first, second])).tolist() == pytest.approx([0, 0, 5])
    # of the sum (1, 1, 0) alone: (3, 4, 5) - 7 / 2 * (1, 1, 0)
    assert without_components(forget, (first + second)[None]).tolist() == pytest.approx([-0.5, 0.5, 5])
    again = torch.stack([first, 2 * first, first + 1e-9 * second])
    assert without_components(forget, again).tolist() == pytest.approx([0, 4, 5], abs=1e-8)


class Pair(nn.Module):
    """Two weights; what forgets and what retains are linear in them, so that gradients do not move."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros(1))
        self.second = nn.Parameter(torch.zeros(1))


def linear_plan(pair: Pair, forget: tuple[float, float], retain: tuple[float, float]) -> Plan:
    def slope(of: tuple[float, float]) -> Tensor:
        return (of[0] * pair.first + of[1] * pair.second).sum()

    def step(_number: int, backward: Backward) -> Mapping[str, Tensor]:
        back_propagate(backward, forget=slope(forget), retain=[slope(retain)])
        return {}

    return Plan(step=step, loop=LOOP)


def test_a_projected_step_follows_the_rest_of_forgetting_and_all_of_retention() -> None:
    pair = Pair()
    parameters = list(pair.parameters())
    plan = projected(linear_plan(pair, (3.0, 4.0), (1.0, 1.0)), parameters, "euclidean")
    assert plan.step is not None
    plan.step(0, Tensor.backward)
    assert flat_gradients(parameters).tolist() == pytest.approx([0.5, 1.5])


def test_without_a_wrapper_both_gradients_are_simply_added() -> None:
    pair = Pair()
    plan = linear_plan(pair, (3.0, 4.0), (1.0, 1.0))
    assert plan.step is not None
    plan.step(0, Tensor.backward)
    assert flat_gradients(list(pair.parameters())).tolist() == [4.0, 5.0]


def test_the_adam_product_divides_by_what_the_optimiser_will_divide_by() -> None:
    pair = Pair()
    parameters = list(pair.parameters())
    plan = projected(linear_plan(pair, (3.0, 4.0), (1.0, 1.0)), parameters, "adam")
    assert plan.step is not None
    assert plan.loop is not None
    assert plan.loop.betas == (0.0, LOOP.betas[1])
    train(pair, plan.step, replace(plan.loop, steps=1), phase="projecting", state=plan.state)
    # the first step has no denominator yet: [-0.5, 0.5] + [1, 1]; its squares are the second moment
    second = plan.state["second_moment"] / (1 - LOOP.betas[1])
    assert second.tolist() == pytest.approx([0.25, 2.25])
    for parameter in parameters:
        parameter.grad = None
    plan.step(1, Tensor.backward)
    retain = vector(1.0, 1.0)
    expected = without_components(vector(3.0, 4.0), retain[None], vector(0.5, 1.5)) + retain
    assert flat_gradients(parameters).tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_the_second_moment_kept_beside_the_optimiser_is_the_optimisers_own() -> None:
    pair = Pair()
    unwrapped = linear_plan(pair, (3.0, 4.0), (1.0, -2.0))
    plan = projected(replace(unwrapped, loop=replace(LOOP, clip_norm=0.5)), list(pair.parameters()), "adam")
    assert plan.loop is not None
    # what the loop does to gradients, with an optimiser that can be looked into
    optimiser = torch.optim.AdamW(pair.parameters(), lr=0.05, betas=plan.loop.betas)
    for number in range(6):
        optimiser.zero_grad()
        assert plan.step is not None
        plan.step(number, Tensor.backward)
        torch.nn.utils.clip_grad_norm_(pair.parameters(), plan.loop.clip_norm)
        optimiser.step()
    own = torch.cat([optimiser.state[parameter]["exp_avg_sq"] for parameter in pair.parameters()])
    assert plan.state["second_moment"].tolist() == pytest.approx(own.tolist(), rel=1e-5)


def test_projection_refuses_a_step_that_retains_nothing_and_a_method_that_takes_none(task: UnlearningTask) -> None:
    parameters = trained_parameters(task.model)
    alone = forgetting_plan(task, TRAINING, lambda batch: ga_loss(*batch.log_probs()))
    step = projected(alone, parameters, "euclidean").step
    assert step is not None
    with pytest.raises(SpecError, match="retained loss"):
        step(0, Tensor.backward)
    with pytest.raises(SpecError, match="trains in steps"):
        projected(Plan(step=None, loop=None), parameters, "euclidean")


def test_a_projected_forget_gradient_leaves_the_retained_loss_of_a_real_model_where_it_is(
    task: UnlearningTask,
) -> None:
    parameters = trained_parameters(task.model)
    plan = forgetting_plan(task, TRAINING, lambda batch: ga_loss(*batch.log_probs()), alpha=1.0)
    assert plan.step is not None
    sides: list[Tensor] = []
    for only in ("forget", "retain"):
        for parameter in parameters:
            parameter.grad = None
        plan.step(0, _Only(only))
        sides.append(flat_gradients(parameters))
    forget, retain = sides
    for parameter in parameters:
        parameter.grad = None
    wrapped = projected(plan, parameters, "euclidean")
    assert wrapped.step is not None
    wrapped.step(0, Tensor.backward)
    followed = flat_gradients(parameters) - retain
    cosine = torch.nn.functional.cosine_similarity
    assert abs(float(cosine(forget, retain, dim=0))) > 1e-3
    assert float(cosine(followed, retain, dim=0)) == pytest.approx(0.0, abs=1e-4)
    assert float(cosine(followed, forget, dim=0)) > 0


@pytest.mark.parametrize("term", ["cross_entropy", "divergence"])
def test_the_parts_of_a_retained_loss_add_up_to_it_and_forgetting_keeps_off_every_one(
    task: UnlearningTask, term: RetainTerm
) -> None:
    parameters = trained_parameters(task.model)
    plan = forgetting_plan(
        task, TRAINING, lambda batch: ga_loss(*batch.log_probs()), alpha=lambda number, loss: 0.5, retain_term=term
    )
    assert plan.step is not None

    def gradient(directions: int) -> tuple[Tensor, float]:
        for parameter in parameters:
            parameter.grad = None
        watched = plan.step(0, _Only("retain", directions))
        return flat_gradients(parameters), float(watched["retain"])

    whole, loss = gradient(1)
    for directions in (2, 4, 99):
        found, same = gradient(directions)
        assert same == pytest.approx(loss, rel=1e-5)
        assert torch.allclose(found, whole, atol=1e-5 + 1e-4 * float(whole.abs().max()))
    followed = {}
    for directions in (1, 4):
        for parameter in parameters:
            parameter.grad = None
        wrapped = projected(plan, parameters, "euclidean", directions=directions)
        wrapped.step(0, Tensor.backward)
        followed[directions] = float((flat_gradients(parameters) - whole).norm())
    assert 0 < followed[4] < followed[1]


def test_a_short_direction_counts_as_much_as_a_long_one() -> None:
    long, short = vector(1e6, 0.0, 0.0), vector(0.0, 1e-6, 0.0)
    assert without_components(vector(3.0, 4.0, 5.0), torch.stack([long, short])).tolist() == pytest.approx([0, 0, 5])
    assert without_components(vector(3.0, 4.0), torch.zeros(2, 2)).tolist() == [3.0, 4.0]


def test_a_retained_gradient_that_is_not_finite_ends_the_run_with_its_reason() -> None:
    pair = Pair()
    plan = projected(linear_plan(pair, (3.0, 4.0), (math.nan, 1.0)), list(pair.parameters()), "euclidean")
    with pytest.raises(NonFiniteError, match="step 3"):
        plan.step(3, Tensor.backward)


def test_a_method_that_retains_in_one_part_refuses_several_directions() -> None:
    pair = Pair()
    plan = linear_plan(pair, (3.0, 4.0), (1.0, 1.0))
    step = projected(plan, list(pair.parameters()), "euclidean", directions=2).step
    with pytest.raises(SpecError, match=r"training\.directions"):
        step(0, Tensor.backward)


def test_directions_without_a_projection_are_refused() -> None:
    assert replace(TRAINING, projection="adam", directions=4).directions == 4
    for wrong in ({"directions": 2}, {"directions": 0, "projection": "euclidean"}):
        with pytest.raises(SpecError, match="directions"):
            replace(TRAINING, **wrong)


class _Only:
    """A `Backward` that follows one of the two losses."""

    def __init__(self, side: str, directions: int = 1) -> None:
        self.side, self.directions = side, directions

    def __call__(self, loss: Tensor) -> None:
        if self.side == "retain":
            loss.backward()

    def forget(self, loss: Tensor) -> None:
        if self.side == "forget":
            loss.backward()


# --- attribution (WAGLE) ------------------------------------------------------------------------------------------


def test_scores_and_the_mask_of_the_highest_are_the_hand_worked_ones() -> None:
    scores = attribution_scores(vector(1, -2, 0.5), vector(0.1, 0.2, -0.4), vector(0.3, 0, 0.1), mu=1.0)
    assert scores.tolist() == pytest.approx([0.07, -0.4, -0.16])
    assert highest(scores, 2 / 3).tolist() == [False, True, True]
    assert highest(scores, 0.4).tolist() == [False, True, True]
    assert highest(scores, 1.0).tolist() == [True] * 3


def test_attribution_chooses_its_share_of_the_layers_and_leaves_the_model_alone(tiny: TinyWorld) -> None:
    loaded = load_model(tiny.before)
    names = linear_layer_names(loaded.model, None, "all")
    before = {name: parameter.clone() for name, parameter in loaded.model.named_parameters()}
    requiring = {name: parameter.requires_grad for name, parameter in loaded.model.named_parameters()}
    forget = read_records(tiny.forget, what="forget set")
    retain = read_records(tiny.retain, what="retain set")
    encode = encoder(loaded)

    def choose(share: float) -> list[str]:
        return attributed_layers(
            loaded.model,
            names,
            share,
            forget=encode(forget),
            retain=encode(retain),
            pad_id=loaded.pad_id,
            device="cpu",
        )

    few = choose(0.3)
    assert len(few) == -(-len(names) * 3 // 10)
    assert [name for name in names if name in few] == few
    assert choose(0.3) == few
    assert choose(1.0) == names
    assert all(torch.equal(before[name], parameter) for name, parameter in loaded.model.named_parameters())
    assert requiring == {name: parameter.requires_grad for name, parameter in loaded.model.named_parameters()}
    with pytest.raises(EmptySetError, match="retain set"):
        attributed_layers(
            loaded.model, names, 0.3, forget=encode(forget), retain=[], pad_id=loaded.pad_id, device="cpu"
        )


def encoder(loaded: LoadedModel) -> Callable[[Sequence[Record]], list[EncodedText]]:
    return lambda records: encode_records(loaded.tokenizer, records, context=loaded.context)


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5])
def test_a_share_of_layers_outside_of_zero_to_one_is_refused(share: float) -> None:
    with pytest.raises(SpecError, match="layer_share"):
        Training(steps=1, learning_rate=1e-3, layer_share=share)


# --- gradients of whole sets --------------------------------------------------------------------------------------


def test_the_gradient_of_a_set_is_that_of_its_mean_loss_however_it_is_batched(task: UnlearningTask) -> None:
    rows = task.encode(task.forget)[:5]
    parameters = base_parameters(task.model)[-3:]
    together = mean_gradients(task.model, rows, parameters, pad_id=task.pad_id, device="cpu")
    tokens = [len(row.ids) - row.first_label for row in rows]
    alone = [mean_gradients(task.model, [row], parameters, pad_id=task.pad_id, device="cpu") for row in rows]
    for number, gradient in enumerate(together):
        expected = sum(count * one[number] for count, one in zip(tokens, alone, strict=True)) / sum(tokens)
        assert torch.allclose(gradient, expected, atol=1e-6)
        assert gradient.any()


def test_squares_are_taken_text_by_text_and_not_of_their_mean(task: UnlearningTask) -> None:
    rows = task.encode(task.forget)[:4]
    parameters = base_parameters(task.model)[-2:]
    squares = mean_squared_gradients(task.model, rows, parameters, pad_id=task.pad_id, device="cpu")
    alone = [mean_gradients(task.model, [row], parameters, pad_id=task.pad_id, device="cpu") for row in rows]
    for number, found in enumerate(squares):
        assert torch.allclose(found, torch.stack([one[number].square() for one in alone]).mean(dim=0), atol=1e-8)
        assert not torch.allclose(found, torch.stack([one[number] for one in alone]).mean(dim=0).square(), atol=1e-10)


def test_gradients_of_nothing_are_refused(task: UnlearningTask) -> None:
    for sweep in (mean_gradients, mean_squared_gradients):
        with pytest.raises(EmptySetError):
            sweep(task.model, [], base_parameters(task.model), pad_id=task.pad_id, device="cpu")


# --- one edit (SSD, IAU) ------------------------------------------------------------------------------------------


def test_only_a_weight_that_matters_far_more_to_the_forgotten_is_dampened() -> None:
    found = dampened(vector(1, 2, 3), vector(1, 1, 1), vector(20, 5, 0.5), threshold=10.0, constant=1.0)
    assert found.tolist() == pytest.approx([0.05, 2.0, 3.0])


def test_a_weight_without_importance_is_left_alone_and_none_is_enlarged() -> None:
    nothing = dampened(vector(1, 2), vector(0, 1), vector(0, 0), threshold=10.0, constant=1.0)
    assert nothing.tolist() == [1.0, 2.0]
    # 5 * 1 / 3 would enlarge
    assert dampened(vector(4), vector(1), vector(3), threshold=2.0, constant=5.0).tolist() == [4.0]
    # important to the forgotten alone: nothing is left of it
    assert dampened(vector(4), vector(0), vector(3), threshold=10.0, constant=1.0).tolist() == [0.0]


def test_one_influence_step_is_the_hand_worked_one() -> None:
    assert influence_step(vector(1.0), vector(2.0), vector(0.5), rate=0.1).tolist() == pytest.approx([1.15])


# By heart, a model's gradients are next to nothing: one step of plain descent goes the right way, and not far.
@pytest.mark.parametrize(("method", "rise"), [("ssd", 0.1), ("iau", 1e-5)])
def test_an_edit_raises_the_loss_of_the_forgotten_more_than_of_the_retained(
    task: UnlearningTask, method: str, rise: float
) -> None:
    with torch.no_grad():
        for name, parameter in task.model.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    plan = METHODS[method]().plan(task, METHODS[method].settings())
    assert plan.step is None
    assert plan.edit is not None
    before = [mean_loss(task, records) for records in (task.forget, task.retain)]
    plan.edit()
    after = [mean_loss(task, records) for records in (task.forget, task.retain)]
    assert after[0] - before[0] > rise
    assert after[0] - before[0] > 2 * (after[1] - before[1])


def mean_loss(task: UnlearningTask, records: Sequence[Record]) -> float:
    rows = task.encode(records)
    with torch.no_grad():
        log_probs, mask = run_rows(task, rows, list(range(len(rows)))).log_probs()
    return -float(log_probs[mask].mean())


@pytest.mark.parametrize("method", ["ssd", "iau"])
def test_an_edit_needs_retained_records(task: UnlearningTask, method: str) -> None:
    with pytest.raises(EmptySetError, match="retain set"):
        METHODS[method]().plan(replace(task, retain=()), METHODS[method].settings())


@pytest.mark.parametrize(
    ("method", "settings", "said"),
    [
        ("ssd", {"threshold": "0"}, "threshold"),
        ("ssd", {"constant": "-1"}, "constant"),
        ("gs_lora", {"bound": "0"}, "bound"),
        ("gs_lora", {"sparsity": "-1"}, "sparsity"),
        ("gs_lora", {"gamma": "0"}, "gamma"),
    ],
)
def test_settings_that_would_turn_an_operator_around_are_refused(
    method: str, settings: dict[str, Json], said: str
) -> None:
    with pytest.raises(SpecError, match=said):
        read(METHODS[method].settings, settings, where="settings")


# --- sparsity (GS-LoRA) -------------------------------------------------------------------------------------------


def test_the_norm_of_a_group_is_over_all_its_tensors_and_has_a_gradient_at_zero() -> None:
    assert float(group_norm([vector(3), vector(4)])) == pytest.approx(5.0)
    zeros = [torch.zeros(2, requires_grad=True), torch.zeros(3, requires_grad=True)]
    assert float(group_norm([vector(3), vector(4)]) + group_norm(zeros).detach()) == pytest.approx(5.0, abs=1e-5)
    assert all(not gradient.any() for gradient in torch.autograd.grad(group_norm(zeros), zeros))


def test_bounded_ascent_stops_at_its_bound() -> None:
    logits, labels = as_batch(FORGET, FORGET_LABELS)
    logits.requires_grad_(True)
    ascending = bounded_ascent_loss(*label_log_probs(logits, labels), bound=3.0)
    assert float(ascending.detach()) == pytest.approx(1.7410675, abs=1e-6)
    reached = bounded_ascent_loss(*label_log_probs(logits, labels), bound=1.0)
    assert float(reached.detach()) == 0.0
    assert not torch.autograd.grad(reached, logits)[0].any()


def test_a_group_is_the_adapter_of_one_block_and_small_ones_are_dropped(task: UnlearningTask) -> None:
    groups = adapter_groups(task)
    assert sum(len(group) for group in groups) == len(trained_parameters(task.model))
    assert len(groups) == task.model.config.num_hidden_layers
    with torch.no_grad():
        for parameter in groups[0]:
            parameter.mul_(1e-5)
    drop_small(groups)
    assert not any(parameter.any() for parameter in groups[0])
    assert all(parameter.any() for parameter in groups[1])


def test_sparsity_sets_in_after_the_dense_steps(task: UnlearningTask) -> None:
    settings = read(METHODS["gs_lora"].settings, {"sparsity": "1000", "dense_steps": 1}, where="settings")
    plan = METHODS["gs_lora"]().plan(task, replace(settings, training=TRAINING))
    assert plan.step is not None
    parameters = trained_parameters(task.model)
    sizes = []
    for number in (0, 1):
        for parameter in parameters:
            parameter.grad = None
        plan.step(number, Tensor.backward)
        sizes.append(float(flat_gradients(parameters).norm()))
    # the gradient of a group's norm has length 1, and there are two groups
    assert sizes[1] == pytest.approx(1000 * 2**0.5, rel=0.1)
    assert sizes[0] < 100


# --- whole runs ---------------------------------------------------------------------------------------------------

SHORT: dict[str, Json] = {"steps": 2, "learning_rate": "0.001", "rank": 2, "retain_rows": 4, "checkpoint_every": 1}


def run_spec(tiny: TinyWorld, directory: Path, method: str, **training: Json) -> UnlearningSpec:
    settings: dict[str, Json] = {"training": {**SHORT, **training}}
    if method == "energy_boundary":
        settings |= {"draws": 1, "reworded_forms": 0, "relearning": {"steps": 1, "rows": 4}}
    return unlearning_spec(tiny, directory, method=method, settings=settings)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["grad_diff", "npo", "energy_boundary"])
@pytest.mark.parametrize("metric", ["euclidean", "adam"])
def test_projection_wraps_a_method_and_makes_another_candidate_that_resumes_to_the_same_bytes(
    tiny: TinyWorld, tmp_path: Path, method: str, metric: str
) -> None:
    plain = run_unlearning(run_spec(tiny, tmp_path / "plain", method))
    whole = run_unlearning(run_spec(tiny, tmp_path / "whole", method, projection=metric))
    assert whole.adapter_sha256 != plain.adapter_sha256
    spec = run_spec(tiny, tmp_path / "stopped", method, projection=metric)
    calls = iter(range(10))
    with pytest.raises(RunStoppedError):
        run_unlearning(spec, should_stop=lambda: next(calls) == 1)
    assert run_unlearning(spec).adapter_sha256 == whole.adapter_sha256


@pytest.mark.slow
def test_a_second_process_changes_no_byte_of_a_projected_run_on_chosen_layers(tiny: TinyWorld, tmp_path: Path) -> None:
    chosen: dict[str, Json] = {"projection": "adam", "layer_share": "0.5"}
    alone = run_unlearning(run_spec(tiny, tmp_path / "alone", "energy_boundary", **chosen))
    beside = run_unlearning(run_spec(tiny, tmp_path / "beside", "energy_boundary", **chosen), processes=2)
    assert alone.adapter_sha256 == beside.adapter_sha256


@pytest.mark.slow
def test_layers_that_attribution_did_not_choose_are_the_same_afterwards(tiny: TinyWorld, tmp_path: Path) -> None:
    spec = run_spec(tiny, tmp_path, "grad_diff", layer_share="0.3")
    run_unlearning(spec)
    before = dict(load_model(tiny.before).model.named_parameters())
    after = dict(load_model(model_ref(Path(spec.output_dir))).model.named_parameters())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    names = linear_layer_names(load_model(tiny.before).model, None, "all")
    assert 0 < len(changed) <= -(-len(names) * 3 // 10)
    assert changed <= {f"{name}.weight" for name in names}


def test_choosing_layers_or_projecting_without_what_it_needs_is_refused(tiny: TinyWorld, tmp_path: Path) -> None:
    empty = write_records(tmp_path / "empty.jsonl", [])
    for training in ({"layer_share": "0.5"}, {"projection": "euclidean"}):
        spec = replace(run_spec(tiny, tmp_path, "ga", **training), retain=empty, neighbours=None)
        with pytest.raises((EmptySetError, SpecError), match=r"retain set|retained loss"):
            run_unlearning(spec)
        assert not (tmp_path / "candidate").exists()
