"""Statistics of many deletions: no average hides a person, no version is chosen, and levels hold in repeated use."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.cohorts import (
    Draws,
    SpikeInCertificate,
    cohort_average,
    cohort_certificate,
    sequential_limit,
    slope_alarm,
    version_level,
    window_e_value,
)
from ml.errors import NonFiniteError, SpecError
from ml.metrics.intervals import clopper_pearson_upper
from ml.rank_tests import benjamini_hochberg, residual_p

QUIET = Draws(exceedances=10, count=21)  # nobody looks again


def _people(seed: int, *, persons: int, twins: int, shift: float) -> list[list[float]]:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(persons, twins + 1))
    scores[:, 0] += shift
    return scores.tolist()


# --- drawing twins one after the other ----------------------------------------------------------------------------


def test_the_tenth_exceedance_ends_the_draws_and_gives_the_p_value() -> None:
    # O-25: the tenth exceedance at draw 40 gives 10 / 40; 199 draws with one exceedance give 2 / 200.
    draws = Draws().after([False] * 30 + [True] * 30)
    assert (draws.exceedances, draws.count, draws.p) == (10, 40, 0.25)
    assert not draws.needs_more(10_000)
    assert Draws().after([True] + [False] * 198).p == pytest.approx(0.01)


def test_draws_go_on_only_while_few_twins_stand_above_the_subject() -> None:
    for above in range(12):
        draws = Draws().after([True] * above + [False] * (39 - above))
        assert draws.needs_more(200) == (above < 4)
    assert Draws().needs_more(39)
    assert Draws(0, 38).needs_more(10)  # never fewer than 39
    assert Draws(5, 80).needs_more(200)  # few at first, more later: on to the tenth
    assert not Draws(0, 200).needs_more(200)


def test_the_last_draw_is_where_the_smallest_p_value_can_be_flagged() -> None:
    assert sequential_limit(10, 0.05) == 200  # L = 20 N
    assert sequential_limit(1, 0.05) == 39
    assert sequential_limit(10, 0.05 / 12) == 2400
    for persons in (2, 7, 10, 33):
        found = Draws(0, sequential_limit(persons, 0.05))
        assert benjamini_hochberg([found.p, *[1.0] * (persons - 1)], q=0.05)[0]
    with pytest.raises(SpecError):
        sequential_limit(0, 0.05)


def _sequential(rng: np.random.Generator, limit: int, shift: float = 0.0) -> Draws:
    own, draws = rng.normal() + shift, Draws()
    while draws.needs_more(limit):
        size = 39 if draws.count == 0 else 40
        draws = draws.after((rng.normal(size=min(size, limit - draws.count)) >= own).tolist())
    return draws


def test_sequential_p_values_keep_every_level_and_cost_little_where_nothing_is_left() -> None:
    rng = np.random.default_rng(11)
    found = [_sequential(rng, 200) for _ in range(4000)]
    for level in (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5):
        rate = sum(draws.p <= level for draws in found) / len(found)
        assert rate <= level + 3 * math.sqrt(level * (1 - level) / len(found))
    assert sum(draws.count for draws in found) / len(found) < 45


def test_flags_keep_the_false_discovery_rate_and_find_who_came_back() -> None:
    rng = np.random.default_rng(5)
    shares, found = [], 0
    for _ in range(300):
        draws = [_sequential(rng, 400, shift=6.0 if i < 2 else 0.0) for i in range(20)]
        flagged = benjamini_hochberg([d.p for d in draws], q=0.05)
        found += sum(flagged[:2])
        shares.append(sum(flagged[2:]) / max(1, sum(flagged)))
    assert sum(shares) / len(shares) <= 0.06
    assert found >= 0.98 * 600


# --- cohorts ------------------------------------------------------------------------------------------------------


def test_a_cohort_averages_subjects_and_the_kth_twin_of_each() -> None:
    assert cohort_average([[1.0, 2.0, 3.0], [3.0, 4.0, 5.0, 99.0]]) == [2.0, 3.0, 4.0]
    with pytest.raises(SpecError):
        cohort_average([])


def test_ten_weak_persons_together_are_bounded_as_often_as_planned() -> None:
    # Section 9.6: S = 10, d- = 4, rho = 0.2: the residual test passes with probability 0.87. Noise before and after
    # shares half of its variance there, as for twins that are the same at both moments.
    rng = np.random.default_rng(3)
    bounded = 0
    for _ in range(500):
        common = rng.normal(size=(10, 240))
        before, after = ((common + rng.normal(size=(10, 240))) / math.sqrt(2) for _ in range(2))
        before[:, 0] += 4.0
        bounded += residual_p(cohort_average(before.tolist()), cohort_average(after.tolist()), 0.2) <= 0.05
    assert 0.82 <= bounded / 500 <= 0.92


def test_an_average_cannot_hide_one_person() -> None:
    before = _people(1, persons=20, twins=39, shift=30.0)
    after = _people(2, persons=20, twins=39, shift=0.0)
    after[7][0] += 30.0  # everything about one of twenty is back: 5 % of the cohort's influence
    hidden = cohort_certificate(before, after, [QUIET] * 20, rho=0.2)
    assert hidden.issued  # the average alone would pass
    alone = [QUIET] * 20
    alone[7] = Draws(0, 400)
    shown = cohort_certificate(before, after, alone, rho=0.2)
    assert (shown.reason, shown.flagged) == ("detected", (7,))


def test_a_person_who_could_not_have_been_found_is_no_evidence() -> None:
    before = _people(1, persons=20, twins=39, shift=30.0)
    after = _people(2, persons=20, twins=39, shift=0.0)
    looked = [QUIET] * 19
    assert cohort_certificate(before, after, [*looked, Draws(0, 39)], rho=0.2).reason == "alpha_unattainable"
    assert cohort_certificate(before, after, [*looked, Draws(3, 39)], rho=0.2).reason == "alpha_unattainable"
    assert cohort_certificate(before, after, [*looked, Draws(4, 39)], rho=0.2).issued
    few = [row[:18] for row in after]
    assert cohort_certificate(before, few, [QUIET] * 20, rho=0.2).reason == "alpha_unattainable"


def test_a_cohort_that_was_never_learned_or_never_forgotten_is_not_bounded() -> None:
    nothing, much = (_people(s, persons=10, twins=39, shift=d) for s, d in ((4, 0.0), (2, 30.0)))
    for row in nothing:
        row[0] = 0.0
    assert cohort_certificate(nothing, nothing, [QUIET] * 10, rho=0.2).reason == "assay_insensitive"
    assert cohort_certificate(much, much, [QUIET] * 10, rho=0.2).reason == "power"
    flat = [[0.0] * 40] * 10
    assert cohort_certificate(flat, flat, [QUIET] * 10, rho=0.2).reason == "assay_insensitive"


@pytest.mark.parametrize("shared", [0.0, 0.5, 0.9])
def test_other_twins_than_at_the_deletion_do_not_make_the_bound_lax(shared: float) -> None:
    # At the boundary (exactly 20 % remain) the subject's noise before and after is shared in part, the twins' is not.
    rng = np.random.default_rng(8)
    bounded = 0
    for _ in range(10_000):
        before, after = rng.normal(size=40), rng.normal(size=40)
        after[0] = shared * before[0] + math.sqrt(1 - shared**2) * after[0] + 0.2 * 13
        before[0] += 13
        bounded += residual_p(before.tolist(), after.tolist(), 0.2) <= 0.05
    assert bounded / 10_000 <= 0.0565  # three standard errors above 0.05


def test_a_cohort_of_other_persons_or_broken_scores_is_refused() -> None:
    rows = _people(1, persons=2, twins=19, shift=1.0)
    for before, after, draws in ((rows[:1], rows, [QUIET] * 2), (rows, rows, [QUIET]), ([], [], [])):
        with pytest.raises(SpecError):
            cohort_certificate(before, after, draws, rho=0.2)
    broken = [[math.nan, *row[1:]] for row in rows]
    with pytest.raises(NonFiniteError):
        cohort_certificate(rows, broken, [QUIET] * 2, rho=0.2)


# --- spike-ins ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("failures", "trials"), [(0, 59), (1, 93), (2, 100), (0, 299), (5, 10), (3, 3)])
def test_the_bound_of_spike_ins_can_be_checked_without_a_statistics_library(failures: int, trials: int) -> None:
    upper = clopper_pearson_upper(failures, trials)
    assert SpikeInCertificate(failures, trials, upper).is_sound
    if upper < 1:
        assert not SpikeInCertificate(failures, trials, upper - 1e-4).is_sound
        assert not SpikeInCertificate(failures + 1, trials, upper).is_sound


def test_no_spike_in_bounds_nothing() -> None:
    assert not SpikeInCertificate(0, 0, 0.05).is_sound
    assert not SpikeInCertificate(-1, 59, 0.05).is_sound
    assert not SpikeInCertificate(0, 59, 0.0).is_sound


# --- versions over time -------------------------------------------------------------------------------------------


def test_a_claim_over_a_window_shares_its_level() -> None:
    assert version_level() == 0.05
    assert version_level(12) == pytest.approx(0.05 / 12)
    with pytest.raises(SpecError):
        version_level(0)


def test_evidence_of_a_window_is_the_mean_over_all_of_its_versions() -> None:
    assert window_e_value([0.01, 1.0, 0.25], window=3) == pytest.approx((5 + 0.5 + 1) / 3)
    for chosen in ([0.01], [0.01, 0.01], [0.01] * 4, []):
        with pytest.raises(SpecError, match="chosen"):
            window_e_value(chosen, window=3)
    with pytest.raises(SpecError):
        window_e_value([0.0, 1.0, 1.0], window=3)


def test_the_mean_over_dependent_versions_is_an_e_value_and_a_running_maximum_is_not() -> None:
    rng = np.random.default_rng(2)
    person = rng.normal(size=(20_000, 1))
    versions = 0.7 * person + math.sqrt(0.51) * rng.normal(size=(20_000, 12))
    p = (1 + np.argsort(np.argsort(-versions, axis=0), axis=0)) / 20_001
    means = [window_e_value(row.tolist(), window=12) for row in p[:4000]]
    assert sum(means) / len(means) <= 1.0
    running = (0.5 / np.sqrt(p)).max(axis=1)
    assert float(running.mean()) > 1.5


def test_an_alarm_sounds_when_later_deletions_leave_more_behind() -> None:
    rng = random.Random(4)
    deletions = list(range(1, 21))
    rising = [0.01 * d + rng.gauss(0, 0.03) for d in deletions]
    alarm = slope_alarm(deletions, rising, seed=1)
    assert alarm is not None
    assert alarm.sounds
    assert alarm.slope == pytest.approx(0.01, abs=0.003)
    falling = slope_alarm(deletions, rising[::-1], seed=1)
    assert falling is not None
    assert not falling.sounds
    assert slope_alarm(deletions, rising, seed=1) == alarm
    assert slope_alarm([3, 3, 3], [0.1, 0.2, 0.3], seed=1) is None
    assert slope_alarm([], [], seed=1) is None
    with pytest.raises(NonFiniteError):
        slope_alarm([1, 2], [0.1, math.nan], seed=1)
    with pytest.raises(SpecError):
        slope_alarm([1, 2], [0.1], seed=1)


def test_the_alarm_is_silent_where_there_is_no_slope() -> None:
    rng = random.Random(9)
    sounded = 0
    for turn in range(40):
        alarm = slope_alarm(list(range(10)), [rng.gauss(0, 1) for _ in range(10)], seed=turn)
        sounded += alarm is not None and alarm.sounds
    assert sounded <= 6  # 2 expected


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=3, max_size=3, unique=True))
def test_three_points_can_never_sound_the_alarm(ratios: list[float]) -> None:
    # The best of 3! orders has p = 1/6: few deletions show no trend.
    alarm = slope_alarm([1, 2, 3], ratios, seed=1)
    assert alarm is not None
    assert not alarm.sounds
