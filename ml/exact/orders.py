"""In which orders the slices are trained, so that after deletions a long prefix of one of them survives.

Pure functions. Source: arXiv:2406.16257 (S3T), cyclic orders and score-based bipartite matching; the score is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from scipy.optimize import linear_sum_assignment

from ml.errors import SpecError
from ml.exact.plan import Order

_ALREADY_THERE: Final = 1e9
"""Cost of a slice that the order has; above any sum of the other costs."""


def cyclic_orders(slices: int, orders: int) -> tuple[Order, ...]:
    """Rotations of 0, 1, ...: each slice comes first in at most one, and first slices lie evenly apart.

    Raises:
        SpecError: there are no slices, no orders, or fewer rotations than orders.
    """
    _refuse_impossible(slices, orders)
    shifts = [number * slices // orders for number in range(orders)]
    return tuple(tuple((place - shift) % slices for place in range(slices)) for shift in shifts)


def matched_orders(probabilities: Sequence[float], orders: int) -> tuple[Order, ...]:
    """Orders for slices that are deleted with different probabilities, built position by position.

    Score of giving slice s to an order next: the probability that everything the order holds so far survives, times
    (1 - p_s). It is what the position adds to the order's expected surviving length if slices are deleted
    independently. At each position a bipartite matching of orders and slices takes the greatest sum of scores among
    those in which as few orders as possible have the same slice at that position, so that one deletion seldom cuts
    two orders in one place. Position by position is greedy: the best whole plan is not promised.

    Args:
        probabilities: of each slice, that one of its records is deleted; in [0, 1].
    Raises:
        SpecError: a probability is out of range, or as for `cyclic_orders`.
    """
    slices = len(probabilities)
    _refuse_impossible(slices, orders)
    if not all(0 <= p <= 1 for p in probabilities):
        raise SpecError("a deletion probability is a number from 0 to 1")
    survives = 1 - np.array(probabilities, dtype=np.float64)
    built: list[list[int]] = [[] for _ in range(orders)]
    for _ in range(slices):
        for order, number in zip(built, _matching(built, survives), strict=True):
            order.append(number)
    return tuple(tuple(order) for order in built)


def _matching(built: Sequence[Sequence[int]], survives: np.ndarray) -> list[int]:
    """The slice that each order gets next.

    Column `use * slices + s` is slice s given to its `use`-th order at this position. Each use beyond the first costs
    more than all scores together can win, and more the higher it is.
    """
    orders, slices = len(built), len(survives)
    cost = np.empty((orders, orders * slices))
    for row, order in enumerate(built):
        score = float(np.prod(survives[list(order)])) * survives
        score[list(order)] = -_ALREADY_THERE
        cost[row] = np.concatenate([2 * orders * use - score for use in range(orders)])
    _, columns = linear_sum_assignment(cost)
    return [int(column) % slices for column in columns]


def _refuse_impossible(slices: int, orders: int) -> None:
    if not 1 <= orders <= slices:
        raise SpecError(f"{slices} slices have 1 to {slices} orders with different first slices, not {orders}")
