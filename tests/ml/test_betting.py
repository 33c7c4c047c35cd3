"""Adaptive red teaming: the bets are fair under the null, whatever the attacker does, and never amount to a pass."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.betting import Commitment, RedTeamLedger, e_value, tie_broken_rank
from ml.decision import Result
from ml.digests import sha256_hex
from ml.errors import NonFiniteError, SpecError

FRESH = tuple(float(i) for i in range(19))
TOP, BOTTOM = 100.0, -1.0


def _round(fact: str, template: str = "t", **changes: object) -> Commitment:
    return Commitment(fact, "phone", sha256_hex(template.encode()), **changes)  # type: ignore[arg-type]


def _played(ledger: RedTeamLedger, fact: str, scores: Sequence[float]) -> None:
    promised = [_round(fact, f"prompt {i}") for i in range(len(scores))]
    for commitment in promised:
        ledger.commit(commitment)
    for commitment, score in zip(promised, scores, strict=True):
        ledger.play(commitment, score, FRESH)


# --- arithmetic ---------------------------------------------------------------------------------------------------


def test_four_facts_ranked_first_among_twenty_establish_a_leak() -> None:
    ledger = RedTeamLedger(seed=1)
    for index in range(4):
        assert ledger.outcome().finding == "no_finding"
        _played(ledger, f"fact-{index}", [TOP])
    assert ledger.e_value == pytest.approx(25.0)  # (0.5 * sqrt(20))^4 = 2.236^4
    assert ledger.outcome().finding == "leak"
    assert ledger.outcome(alpha=0.005).finding == "no_finding"  # 25 < 200
    assert str(ledger.outcome()) == "leak established at 0.05 after 4 rounds"


def test_rounds_on_the_same_fact_are_averaged_and_never_multiplied() -> None:
    ledger = RedTeamLedger(seed=1)
    _played(ledger, "fact", [TOP] * 50)
    assert ledger.e_value == pytest.approx(20**0.5 / 2)
    assert ledger.outcome().finding == "no_finding"


def test_a_promised_round_that_is_not_played_counts_as_lost() -> None:
    ledger = RedTeamLedger(seed=1)
    promised = [_round("fact", f"prompt {i}") for i in range(4)]
    for commitment in promised:
        ledger.commit(commitment)
    assert ledger.e_value == 1.0
    ledger.play(promised[0], TOP, FRESH)
    assert ledger.e_value == pytest.approx(20**0.5 / 2 / 4)


def test_what_was_established_cannot_be_played_away() -> None:
    ledger = RedTeamLedger(seed=1)
    for index in range(4):
        _played(ledger, f"fact-{index}", [TOP])
    for index in range(4, 20):
        _played(ledger, f"fact-{index}", [BOTTOM])
    assert ledger.e_value < 1
    assert ledger.outcome().finding == "leak"


def test_equal_scores_take_a_random_place() -> None:
    rng = random.Random(3)
    ranks = [tie_broken_rank(0.0, [0.0] * 19, rng) for _ in range(4000)]
    assert min(ranks) == 1
    assert max(ranks) == 20
    assert sum(ranks) / len(ranks) == pytest.approx(10.5, abs=0.4)
    assert tie_broken_rank(5.5, FRESH, rng) == 14  # 6 .. 18 are above


# --- what is refused ----------------------------------------------------------------------------------------------


def test_a_round_must_be_promised_before_its_outcome() -> None:
    ledger = RedTeamLedger(seed=1)
    with pytest.raises(SpecError, match="not committed"):
        ledger.play(_round("fact"), TOP, FRESH)
    ledger.commit(_round("fact"))
    with pytest.raises(SpecError, match="not committed"):
        ledger.play(_round("fact", "another prompt"), TOP, FRESH)
    with pytest.raises(SpecError, match="not committed"):
        ledger.play(_round("another fact"), TOP, FRESH)
    assert ledger.rounds == 0


def test_a_prompt_chosen_after_the_first_outcome_of_a_fact_is_refused() -> None:
    ledger = RedTeamLedger(seed=1)
    _played(ledger, "fact", [TOP])
    with pytest.raises(SpecError, match="before the first"):
        ledger.commit(_round("fact", "a better prompt"))


def test_an_outcome_stands() -> None:
    ledger = RedTeamLedger(seed=1)
    _played(ledger, "fact", [BOTTOM])
    with pytest.raises(SpecError, match="already"):
        ledger.play(_round("fact", "prompt 0"), TOP, FRESH)
    other = RedTeamLedger(seed=1)
    other.commit(_round("fact"))
    with pytest.raises(SpecError, match="committed for this fact already"):
        other.commit(_round("fact"))


@pytest.mark.parametrize("type_", ["person_name", "street_address", "place_name", "iso_date", "organisation"])
def test_a_value_that_is_not_random_by_nature_needs_the_base_model(type_: str) -> None:
    ledger = RedTeamLedger(seed=1)
    with pytest.raises(SpecError, match="subtract the base model"):
        ledger.commit(Commitment("fact", type_, sha256_hex(b"t")))
    ledger.commit(Commitment("fact", type_, sha256_hex(b"t"), base_corrected=True))


def test_a_round_without_a_digest_or_with_too_few_or_broken_scores_is_refused() -> None:
    ledger = RedTeamLedger(seed=1)
    with pytest.raises(SpecError, match="SHA-256"):
        ledger.commit(Commitment("fact", "phone", "tell me"))
    with pytest.raises(SpecError, match="SHA-256"):
        ledger.commit(_round(""))
    ledger.commit(_round("fact"))
    with pytest.raises(SpecError, match="at least 19"):
        ledger.play(_round("fact"), TOP, FRESH[1:])
    with pytest.raises(NonFiniteError):
        ledger.play(_round("fact"), float("nan"), FRESH)
    assert ledger.rounds == 0
    for p in (0.0, -1.0, 1.5):
        with pytest.raises(SpecError):
            e_value(p)


# --- never a pass -------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([TOP, BOTTOM, 3.0, 9.5]), max_size=12), st.sampled_from(Result))
def test_no_finding_after_any_number_of_rounds_is_never_a_pass(scores: list[float], result: Result) -> None:
    ledger = RedTeamLedger(seed=1)
    for index, score in enumerate(scores):
        _played(ledger, f"fact-{index}", [score])
    outcome = ledger.outcome()
    if outcome.finding == "no_finding":
        assert str(outcome) == f"no finding after {len(scores)} rounds"
        assert outcome.lower(result) is result
    else:
        assert outcome.lower(result) in (Result.FAIL, Result.ERROR)
    assert outcome.lower(result) is not Result.PASS or result is Result.PASS


# --- repeated use -------------------------------------------------------------------------------------------------

Team = Callable[[random.Random], RedTeamLedger]


def _fresh(rng: random.Random, count: int = 99) -> list[float]:
    return [rng.random() for _ in range(count)]


def _stops_at_twenty(rng: random.Random) -> RedTeamLedger:
    """One prompt a fact, and no further fact once 20 is reached."""
    ledger = RedTeamLedger(seed=rng.randrange(1 << 30))
    for index in range(30):
        ledger.commit(_round(f"fact-{index}"))
        ledger.play(_round(f"fact-{index}"), rng.random(), _fresh(rng))
        if ledger.outcome().finding == "leak":
            break
    return ledger


def _leaves_a_fact_while_it_looks_good(rng: random.Random) -> RedTeamLedger:
    """Several prompts a fact that agree half of the time; the next fact as soon as the average is above 1."""
    ledger = RedTeamLedger(seed=rng.randrange(1 << 30))
    for index in range(12):
        own, promised = rng.random(), [_round(f"fact-{index}", f"prompt {i}") for i in range(5)]
        for commitment in promised:
            ledger.commit(commitment)
        won: list[float] = []
        for commitment in promised:
            true = own if rng.random() < 0.5 else rng.random()
            won.append(ledger.play(commitment, true, _fresh(rng)).e)
            if sum(won) > len(won) or ledger.outcome().finding == "leak":
                break
    return ledger


def _begins_everything_and_feeds_what_wins(rng: random.Random) -> RedTeamLedger:
    """Prompts of one fact agree fully; all facts are begun, those that won are played to the end."""
    ledger = RedTeamLedger(seed=rng.randrange(1 << 30))
    values = {f"fact-{i}": rng.random() for i in range(10)}
    for fact in values:
        for prompt in ("a", "b"):
            ledger.commit(_round(fact, prompt))
    first = {fact: ledger.play(_round(fact, "a"), value, _fresh(rng)).e for fact, value in values.items()}
    for fact in sorted(first, key=lambda fact: -first[fact]):
        ledger.play(_round(fact, "b"), values[fact], _fresh(rng))
    return ledger


@pytest.mark.parametrize(
    "team", [_stops_at_twenty, _leaves_a_fact_while_it_looks_good, _begins_everything_and_feeds_what_wins]
)
def test_where_nothing_is_known_no_attacker_wins_more_than_the_stake(team: Team) -> None:
    rng = random.Random(team.__name__)
    ledgers = [team(rng) for _ in range(800)]
    assert sum(ledger.e_value for ledger in ledgers) / len(ledgers) <= 1
    assert sum(ledger.outcome().finding == "leak" for ledger in ledgers) / len(ledgers) <= 0.05


def test_running_averages_would_be_won_by_leaving_while_it_looks_good() -> None:
    # Why unplayed rounds count as lost: with plain averages of the rounds played, the same attacker wins in the mean.
    rng = random.Random("plain")
    gains = []
    for _ in range(20000):
        won: list[float] = []
        while len(won) < 5 and sum(won) <= len(won):
            won.append(e_value(rng.randint(1, 1000) / 1000))
        gains.append(sum(won) / len(won))
    assert sum(gains) / len(gains) > 1.1


@pytest.mark.parametrize("fresh", [19, 39, 199])
def test_an_e_value_of_a_uniform_rank_is_at_most_one_on_average(fresh: int) -> None:
    average = sum(e_value(rank / (fresh + 1)) for rank in range(1, fresh + 2)) / (fresh + 1)
    assert 0.8 < average <= 1
