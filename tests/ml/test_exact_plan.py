"""Plans of the exact tier: orders, what survives a deletion, layers by exact number, slices by person."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.errors import EmptySetError, SpecError, UnknownRecordError
from ml.exact.orders import cyclic_orders, matched_orders
from ml.exact.plan import (
    Order,
    Slice,
    layer_groups,
    longest,
    person_slice,
    separate_plan,
    slices_by_person,
    surviving_prefix,
)
from ml.specs import Record
from tests.ml.exact_stores import STACKED

ORACLE = ((0, 1, 2), (2, 0, 1), (1, 2, 0))

orders_and_dropped = st.integers(1, 7).flatmap(
    lambda slices: st.tuples(
        st.lists(st.permutations(range(slices)).map(tuple), min_size=1, max_size=5),
        st.frozensets(st.integers(0, slices - 1)),
    )
)
probabilities = st.lists(st.floats(0, 1), min_size=1, max_size=6)


def of_person(person: str, number: int = 0) -> Record:
    return Record(f"{person}-{number}", person, "Who?\nSomebody.", 5, (), ())


def survivors(orders: tuple[Order, ...], dropped: set[int]) -> list[Order]:
    return [surviving_prefix(order, dropped) for order in orders]


# --- what survives ------------------------------------------------------------------------------------------------


def test_the_oracle_three_slices_in_cyclic_orders() -> None:
    assert cyclic_orders(3, 3) == ORACLE
    assert survivors(ORACLE, {2}) == [(0, 1), (), (1,)]
    assert longest(survivors(ORACLE, {2})) == 0  # serve [0, 1]
    assert survivors(ORACLE, {2, 0}) == [(), (), (1,)]
    assert longest(survivors(ORACLE, {2, 0})) == 2  # [1] survives from the third order only
    assert survivors(ORACLE, {0, 1, 2}) == [(), (), ()]


@given(orders_and_dropped)
def test_a_surviving_prefix_holds_nothing_dropped_and_nothing_trained_after_it(
    drawn: tuple[list[Order], frozenset[int]],
) -> None:
    orders, dropped = drawn
    for order in orders:
        prefix = surviving_prefix(order, dropped)
        assert order[: len(prefix)] == prefix
        assert not dropped & set(prefix)
        assert len(prefix) == len(order) or order[len(prefix)] in dropped


@given(orders_and_dropped)
def test_every_deletion_set_leaves_the_longest_surviving_prefix_over_all_orders_the_first_of_several(
    drawn: tuple[list[Order], frozenset[int]],
) -> None:
    orders, dropped = drawn
    prefixes = [surviving_prefix(order, dropped) for order in orders]
    chosen = longest(prefixes)
    assert all(len(prefix) <= len(prefixes[chosen]) for prefix in prefixes)
    assert all(len(prefix) < len(prefixes[chosen]) for prefix in prefixes[:chosen])


@given(orders_and_dropped, st.integers(0, 6))
def test_a_further_deletion_never_brings_anything_back(drawn: tuple[list[Order], frozenset[int]], further: int) -> None:
    orders, dropped = drawn
    for order in orders:
        before, after = surviving_prefix(order, dropped), surviving_prefix(order, dropped | {further})
        assert before[: len(after)] == after


# --- orders -------------------------------------------------------------------------------------------------------


@given(st.integers(1, 9).flatmap(lambda slices: st.tuples(st.just(slices), st.integers(1, slices))))
def test_cyclic_orders_hold_every_slice_once_and_never_two_the_same_in_one_place(counts: tuple[int, int]) -> None:
    slices, orders = counts
    found = cyclic_orders(slices, orders)
    assert len(found) == orders
    assert all(sorted(order) == list(range(slices)) for order in found)
    assert all(len(set(place)) == orders for place in zip(*found, strict=True))


def test_fewer_cyclic_orders_than_slices_lie_evenly_apart() -> None:
    # after one deletion, drawn evenly, 10/4 slices survive; neighbouring rotations would leave 9/4
    found = cyclic_orders(4, 2)
    assert found == ((0, 1, 2, 3), (2, 3, 0, 1))
    assert sum(max(map(len, survivors(found, {gone}))) for gone in range(4)) == 10


@given(probabilities, st.data())
def test_matched_orders_hold_every_slice_once_and_begin_with_different_ones(
    probability: list[float], data: st.DataObject
) -> None:
    orders = data.draw(st.integers(1, len(probability)))
    found = matched_orders(probability, orders)
    assert len(found) == orders
    assert all(sorted(order) == list(range(len(probability))) for order in found)
    assert len({order[0] for order in found}) == orders


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_as_many_matched_orders_as_slices_never_have_one_slice_twice_in_one_place(probability: list[float]) -> None:
    found = matched_orders(probability, len(probability))
    assert all(len(set(place)) == len(probability) for place in zip(*found, strict=True))


@given(st.lists(st.integers(0, 100), min_size=1, max_size=6, unique=True))
def test_a_single_matched_order_trains_what_is_deleted_least_first(percent: list[int]) -> None:
    probability = [p / 100 for p in percent]
    (order,) = matched_orders(probability, 1)
    kept = [number for number in order if probability[number] < 1]
    assert kept == sorted(kept, key=lambda number: probability[number])


def test_knowing_the_probabilities_keeps_more_than_cyclic_orders_do() -> None:
    probability = [0.9, 0.1, 0.9, 0.1]

    def expected_longest(orders: tuple[Order, ...]) -> float:
        total = 0.0
        for gone in product([False, True], repeat=4):
            chance = 1.0
            for number, is_gone in enumerate(gone):
                chance *= probability[number] if is_gone else 1 - probability[number]
            dropped = {number for number, is_gone in enumerate(gone) if is_gone}
            total += chance * max(map(len, survivors(orders, dropped)))
        return total

    matched = matched_orders(probability, 2)
    assert [set(order[:2]) for order in matched] == [{1, 3}, {1, 3}]
    assert expected_longest(matched) > 1.8 > expected_longest(cyclic_orders(4, 2))


@pytest.mark.parametrize(("slices", "orders"), [(0, 0), (0, 1), (3, 0), (3, 4)])
def test_impossible_numbers_of_orders_are_refused(slices: int, orders: int) -> None:
    with pytest.raises(SpecError, match="different first slices"):
        cyclic_orders(slices, orders)
    with pytest.raises(SpecError, match="different first slices"):
        matched_orders([0.5] * slices, orders)


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan")])
def test_a_probability_is_a_number_from_0_to_1(wrong: float) -> None:
    with pytest.raises(SpecError, match="from 0 to 1"):
        matched_orders([0.5, wrong], 1)


# --- layers -------------------------------------------------------------------------------------------------------


def test_layers_are_counted_from_the_top() -> None:
    assert layer_groups(32, 4) == (
        tuple(range(24, 32)),
        tuple(range(16, 24)),
        tuple(range(8, 16)),
        tuple(range(8)),
    )
    assert layer_groups(32, 3, per_position=4) == ((28, 29, 30, 31), (24, 25, 26, 27), (20, 21, 22, 23))
    assert layer_groups(7, 3) == ((5, 6), (3, 4), (1, 2))


@pytest.mark.parametrize(("layers", "positions", "size"), [(2, 3, None), (8, 3, 3), (8, 0, None), (8, 2, 0)])
def test_groups_that_do_not_fit_the_model_are_refused(layers: int, positions: int, size: int | None) -> None:
    with pytest.raises(SpecError, match="do not fit"):
        layer_groups(layers, positions, per_position=size)


# --- plans --------------------------------------------------------------------------------------------------------


def test_a_plan_without_records_keeps_its_numbers_and_trains_no_empty_slice() -> None:
    left = STACKED.without(["3"])
    assert [part.records for part in left.slices] == [("1", "2"), (), ("4",)]
    assert left.orders == ((0, 2), (2, 0), (2, 0))
    assert STACKED.without(["2"]).orders == ORACLE
    assert STACKED.without(["1", "2", "3", "4"]).orders == ((), (), ())


def test_records_are_found_in_their_slices_and_an_unknown_one_is_an_error_that_names_none() -> None:
    assert STACKED.slices_of(["2", "4", "1"]) == {0, 2}
    with pytest.raises(UnknownRecordError, match="1 of 2 records") as caught:
        STACKED.slices_of(["1", "mallory-7"])
    assert "mallory" not in str(caught.value)
    with pytest.raises(UnknownRecordError):
        STACKED.without(["1"]).slices_of(["1"])
    twice = replace(STACKED, slices=(*STACKED.slices[:2], Slice("c", ("1",))))
    assert twice.slices_of(["1"]) == {0, 2}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"slices": (*STACKED.slices[:2], Slice("c", ("1",)))}, "in two slices"),
        ({"slices": (*STACKED.slices[:2], Slice("a", ("4",)))}, "one name"),
        ({"orders": ((0, 1, 0),)}, "twice"),
        ({"orders": ((0, 3),)}, "does not exist"),
        ({"groups": ((2,), (1,))}, "longer than"),
        ({"groups": ((2,), (1,), (1,))}, "disjoint"),
        ({"groups": ((3,), (1,), (0,))}, "within the model"),
        ({"groups": ((2,), (1,), (-1,))}, "counted from 0"),
        ({"groups": ((2,), (1,), ())}, "not empty"),
    ],
)
def test_a_plan_that_does_not_hold_together_is_refused(changed: dict[str, object], message: str) -> None:
    STACKED.check(3)
    with pytest.raises(SpecError, match=message):
        replace(STACKED, **changed).check(3)


people = st.lists(st.text("abcdefgh", min_size=1, max_size=3), min_size=1, max_size=30, unique=True)


@given(people, st.integers(1, 3), st.integers(0, 3))
def test_whose_records_lie_in_which_slice_does_not_depend_on_anybody_else(
    persons: list[str], count: int, seed: int
) -> None:
    records = [of_person(person, number) for person in persons for number in range(2)]
    try:
        slices = slices_by_person(records, count=count, seed=seed)
        fewer = slices_by_person(records[2:], count=count, seed=seed) if persons[1:] else ()
    except EmptySetError:
        return
    assert sorted(record for part in slices for record in part.records) == sorted(r.record_id for r in records)
    for part in slices:
        held = {record.rpartition("-")[0] for record in part.records}
        assert len(part.records) == 2 * len(held)  # a person is never split
    for old, new in zip(slices, fewer, strict=False):
        assert set(old.records) - set(new.records) <= {r.record_id for r in records[:2]}


def test_a_slice_that_got_nobody_is_an_error() -> None:
    with pytest.raises(EmptySetError, match="1 of 2 slices"):
        slices_by_person([of_person("alice")], count=2, seed=0)
    with pytest.raises(SpecError, match="at least one slice"):
        slices_by_person([of_person("alice")], count=0, seed=0)


def test_separate_adapters_are_one_order_each_on_all_layers_and_names_show_nobody() -> None:
    plan = separate_plan([of_person("alice"), of_person("bob"), of_person("alice", 1)], layers=2)
    plan.check(2)
    assert plan.groups == ((0, 1),)
    assert plan.orders == ((0,), (1,))
    held = {part.name: part.records for part in plan.slices}
    assert held == {person_slice("alice"): ("alice-0", "alice-1"), person_slice("bob"): ("bob-0",)}
    assert not any("alice" in name for name in held)


def test_persons_who_come_later_change_nobodys_number_and_who_left_may_come_back() -> None:
    first = separate_plan([of_person("alice"), of_person("bob")], layers=2)
    left = first.without(["alice-0"])
    later = separate_plan([of_person("bob"), of_person("rhea"), of_person("alice", 9)], layers=2, earlier=left)
    assert [part.name for part in later.slices[:2]] == [part.name for part in first.slices]
    assert later.extends(left)
    assert not later.extends(first)  # alice's records are others
    assert not first.extends(later)
    assert not replace(STACKED, kind="separate").extends(STACKED)
    assert STACKED.extends(STACKED)
    with pytest.raises(EmptySetError):
        separate_plan([], layers=2)
