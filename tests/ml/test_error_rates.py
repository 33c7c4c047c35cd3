"""The error-rate benchmark: what it asks of the rule, what it counts, and that a killed run repeats nothing."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import error_rates
from benchmarks.error_rates import FAMILIES, Judged, by_facts, judged, may_pass, primaries_of, rate, rates
from benchmarks.error_report import write_results
from benchmarks.graded_models import Place, Scores, Way
from ml.policies import load_policy

TWINS = 239
POLICY = primaries_of(load_policy("reference-2"), twins=TWINS)


def scores(*, shift: float, seed: int, customers: int = 2, facts: int = 30) -> Scores:
    """One number a fact: customers stand `shift` above the twins, whose spread is 1."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(customers + TWINS, facts, generator=generator)
    drawn[:customers] += shift
    return {attack: drawn.clone() for attack in FAMILIES.values()}


def test_a_person_of_whom_nothing_remains_passes_and_an_unchanged_model_fails() -> None:
    before = scores(shift=8.0, seed=1)
    assert set(judged(before, scores(shift=0.0, seed=2), 0, 2, POLICY)["results"].values()) == {"PASS"}
    assert set(judged(before, before, 1, 2, POLICY)["results"].values()) == {"FAIL"}


def test_where_twice_the_allowed_fraction_remains_nothing_passes() -> None:
    before = scores(shift=8.0, seed=1)
    assert "PASS" not in judged(before, scores(shift=3.2, seed=2), 0, 2, POLICY)["results"].values()


def test_an_attack_that_never_saw_the_person_shows_nothing() -> None:
    blank = scores(shift=0.0, seed=1)
    assert "PASS" not in judged(blank, scores(shift=0.0, seed=2), 0, 2, POLICY)["results"].values()


def test_holm_counts_the_families_that_are_not_measured_here() -> None:
    assert len(POLICY.families) == 6
    weak = primaries_of(load_policy("reference-2"), twins=99)
    before = {a: s[:102] for a, s in scores(shift=8.0, seed=1).items()}
    assert "FAIL" not in judged(before, before, 0, 2, weak)["results"].values()


@given(st.integers(0, 2**31 - 1), st.floats(-1.0, 3.0))
def test_whoever_may_not_pass_with_the_first_twins_does_not_pass_with_all(seed: int, shift: float) -> None:
    before, after = (scores(shift=s, seed=seed + i) for i, s in enumerate((8.0, shift)))
    rule, twins = POLICY.families[0], 65
    attack = FAMILIES[rule.id]
    old, new = ({attack: side[attack][: 2 + twins]} for side in (before, after))
    first = {attack: new[attack][: 2 + error_rates.FEW_TWINS]}
    for customer in (0, 1):
        passes = judged(old, new, customer, 2, POLICY)["results"]["F1"] == "PASS"
        open_yet = may_pass(old[attack], first[attack], customer, 2, rule, twins=twins, alpha=POLICY.alpha)
        assert open_yet or not passes
        assert judged(old, first, customer, 2, POLICY)["results"].keys() == {"F1"}


def test_a_person_asked_by_one_family_alone_does_not_pass() -> None:
    assert Judged("w-0", None, {"F1": 9.0}, {"F1": "PASS"}).overall == "INCONCLUSIVE"
    assert Judged("w-0", None, {"F1": 9.0}, {"F1": "FAIL"}).overall == "FAIL"


def test_a_place_has_what_is_wanted_and_hardly_more_or_is_not_used() -> None:
    def straight(place: Place) -> float:
        return 0.1 * (place.first + place.share * (place.second - place.first))

    stops = [straight(Place(stop)) for stop in range(6)]
    assert error_rates._place(stops, 0.2, straight) == Place(2)
    # stop 3 has .3, too much for .25; half way between stops 2 and 3 it is met
    assert error_rates._place(stops, 0.25, straight) == Place(2, 3, 0.5)
    place = error_rates._place(stops, 0.333, straight)
    assert place is not None
    assert 0.333 <= straight(place) <= 0.333 + error_rates.OVERSHOOT
    assert error_rates._place(stops, 0.9, straight) is None
    # what jumps past it on every way is not used
    assert error_rates._place([0.0, 0.5], 0.2, lambda place: 0.5 if place.share > 0.3 else 0.0) is None
    # nor is a model of which more is known than wanted from the start
    assert error_rates._place([0.5, 0.6], 0.2, straight) is None


def test_where_neighbours_jump_past_it_a_later_crossing_or_a_mixture_with_gold_is_looked_at() -> None:
    def back(place: Place) -> float:
        if (place.first, place.second) == (1, 2):
            return 0.4 * (1 - place.share)
        return 0.4 * (place.share > 0.3)

    assert error_rates._place([0.0, 0.4, 0.0], 0.2, back) == Place(1, 2, 0.5)

    def detour(place: Place) -> float:
        return 0.4 * place.share if (place.first, place.second) == (0, 3) else 0.4 * (place.share > 0.3)

    assert error_rates._place([0.0, 0.0, 0.4, 0.4], 0.2, detour) == Place(0, 3, 0.5)


def test_a_place_between_two_stops_is_a_mixture_of_their_weights() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    states = [{"weight": torch.tensor([[value]])} for value in (1.0, 3.0, 7.0)]
    way = Way(SimpleNamespace(model=model), states)
    found = []
    for place in (Place(0), Place(0, 1, 0.5), Place(1), Place(1, 2, 0.25), Place(0, 2, 0.5), Place(2)):
        way.at(place)
        found.append(model.weight.item())
    # 1, half way to 3, 3, 3 + (7 - 3) / 4, half way from 1 to 7, 7
    assert found == [1.0, 2.0, 3.0, 4.0, 4.0, 7.0]


def test_what_remains_is_read_from_the_same_person_on_gold() -> None:
    def of(*values: float) -> Scores:
        return {"exposure": torch.tensor([[value] for value in values])}

    shares = error_rates._remaining(of(9.0, 5.0), of(1.0, -3.0), of(3.0, 1.0, 2.0))
    assert shares["exposure"] == pytest.approx([0.25, 0.5])


def test_rates_carry_their_bounds() -> None:
    row = Judged("w-0", None, {"F1": 9.0}, {"F1": "INCONCLUSIVE"})
    none = rate("false PASS", [row] * 59, lambda r: r.overall == "PASS")
    assert (none.happened, none.lower) == (0, 0.0)
    assert none.upper == pytest.approx(0.04950761, abs=1e-8)


def _people(facts: int, **verdicts: int) -> list[Judged]:
    return [
        Judged(
            "w-0",
            None,
            {"F1": 1.0 * facts, "F2": 2.0 * facts, "F3": None if number else 3.0},
            dict.fromkeys(FAMILIES, verdict),
        )
        for verdict, count in verdicts.items()
        for number in range(count)
    ]


def test_the_curve_goes_from_few_facts_to_many_and_counts_every_verdict(tmp_path: Path) -> None:
    rows = {
        "gold, 36 facts": _people(36, PASS=9, INCONCLUSIVE=1),
        "gold, 5 facts": _people(5, PASS=1, INCONCLUSIVE=2, FAIL=1),
        "unchanged, 5 facts": _people(5, FAIL=4),
        "F1 with 1 rho": _people(20, INCONCLUSIVE=3),
        "F3 with 1 rho": _people(20, PASS=1, INCONCLUSIVE=1),
    }
    curve = by_facts(rows)
    assert [(point.facts, point.share("PASS"), point.share("FAIL")) for point in curve] == [
        (5, 0.25, 0.25),
        (36, 0.9, 0),
    ]
    assert curve[0].strength == {"F1": 5.0, "F2": 10.0, "F3": 3.0}
    table = rates(rows)
    assert [row.what for row in table if row.what.startswith("gold")][0] == "gold, 5 facts: PASS"
    counted = {row.what: (row.happened, row.trials) for row in table}
    assert counted["F3 with 1 rho: all three pass"] == (1, 2)
    assert counted["F1 with 1 rho: all three pass"] == (0, 3)
    write_results(tmp_path, table, curve, cpu_minutes=1.5, sizes={"twins": 239})
    ElementTree.fromstring((tmp_path / "error_rates.svg").read_text())
    assert "| 36 | 36.0 | 72.0 | 3.0 | 0.900 | 0.100 | 0.000 |" in (tmp_path / "error_rates.md").read_text()
    document = json.loads((tmp_path / "error_rates.json").read_text())
    assert document["by_facts"][1]["verdicts"] == {"PASS": 9, "INCONCLUSIVE": 1, "FAIL": 0}


@pytest.mark.parametrize(
    ("results", "overall"),
    [
        (("PASS", "PASS", "PASS"), "PASS"),
        (("PASS", "INCONCLUSIVE", "PASS"), "INCONCLUSIVE"),
        (("INCONCLUSIVE", "FAIL", "PASS"), "FAIL"),
    ],
)
def test_one_family_that_fails_fails_and_all_must_pass(results: tuple[str, ...], overall: str) -> None:
    assert Judged("w-0", None, {}, dict(zip(FAMILIES, results, strict=True))).overall == overall


@pytest.mark.slow
def test_a_run_counts_every_customer_once_and_reads_finished_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--out", str(tmp_path), "--worlds", "1", "--quick"]
    assert error_rates.main(arguments) == 0
    first = capsys.readouterr().out
    assert "gold, 6 facts: PASS" in first
    assert "of 4 " in first
    assert not list(tmp_path.glob("models-*"))
    monkeypatch.setattr(error_rates, "Trial", None)
    assert error_rates.main(arguments) == 0
    assert capsys.readouterr().out == first
    (tmp_path / "part-501-0-graded.json").write_text('{"key": "another", "rows": {}}')
    assert error_rates.main(arguments) == 2
