"""`kill -9`, anywhere: the case ends the same, nothing twice, nothing lost."""

from __future__ import annotations

from collections import Counter
from email import message_from_bytes
from pathlib import Path

import pytest

from deletion_service.targets.statuses import JobKind
from tests.flow.conftest import Played
from tests.flow.stand import deployed, until
from tests.tiny import TinyWorld

pytestmark = pytest.mark.slow


def message_ids(mailbox: Path) -> Counter[str]:
    """How often each letter was mailed."""
    letters = [part for path in mailbox.glob("*") for part in path.read_bytes().split(b"-" * 79 + b"\n")]
    return Counter(str(message_from_bytes(letter)["Message-ID"]) for letter in letters if letter.strip())


def test_the_runner_died_at_the_start_at_each_write_and_at_the_end_of_every_stage(killed: Played) -> None:
    deaths = killed.stand.deaths
    assert max(Counter(deaths).values()) == 1
    for kind in JobKind.values:
        points = {where for stage, _, where in (death.partition(":") for death in deaths) if stage == kind}
        assert points >= {"start", "fence-1", "fence-2", "commit"}, kind
    assert sum(":sent-letter" in death for death in deaths) == 3


@pytest.mark.parametrize("fact", ["outcome", "moves", "target_moves", "jobs"])
def test_the_case_takes_the_same_way_to_the_same_end(killed: Played, undisturbed: Played, fact: str) -> None:
    assert undisturbed.facts["outcome"] == ["completed", "erased", "released", "PASS", "published"]
    assert killed.facts[fact] == undisturbed.facts[fact]


def test_the_evidence_has_the_same_numbers(killed: Played, undisturbed: Played) -> None:
    assert killed.facts["measured"] == undisturbed.facts["measured"]


def test_the_same_weights_are_promoted_once_and_the_contaminated_ones_are_gone(
    killed: Played, undisturbed: Played
) -> None:
    for fact in ("versions", "promotions", "alias", "contaminated", "sources"):
        assert killed.facts[fact] == undisturbed.facts[fact], fact
    assert [row[-1] for row in killed.facts["contaminated"]] == ["gone"]
    assert len(killed.facts["alias"]) == 2


def test_there_is_one_certificate_in_the_log_and_it_verifies_offline(killed: Played) -> None:
    assert killed.facts["log"] == [[0, "certificate"]]
    assert killed.facts["not_verified"] == []


def test_every_act_is_recorded_once_and_the_chain_holds(killed: Played, undisturbed: Played) -> None:
    assert killed.facts["audit"] == undisturbed.facts["audit"]
    assert killed.facts["disposals"] == undisturbed.facts["disposals"]
    assert killed.facts["chain"] == []


def test_each_letter_is_written_once_and_a_mail_sent_again_is_known_by_its_message_id(
    killed: Played, undisturbed: Played
) -> None:
    assert killed.facts["letters"] == undisturbed.facts["letters"] == ["COM-01", "COM-05", "COM-06"]
    assert set(message_ids(undisturbed.stand.mailbox).values()) == {1}
    assert len(message_ids(killed.stand.mailbox)) == 3


def test_no_death_leaves_a_file_behind(killed: Played, undisturbed: Played) -> None:
    assert killed.facts["left"] == undisturbed.facts["left"]


def test_unlearning_that_was_killed_goes_on_from_its_checkpoint_to_the_same_weights(
    tiny: TinyWorld, tmp_path: Path
) -> None:
    results = []
    for name, die in (("whole", ()), ("killed", ("unlearn:unlearning-40",))):
        with deployed(tmp_path / name, tiny, LETHE_METHOD="grad_diff") as stand:
            stand.begin_runner(tiny, *die)
            stand.ask(tiny)
            results.append(stand.people("candidate"))
            assert stand.deaths == list(die)
    whole, resumed = results
    assert (whole["resumed_from_step"], resumed["resumed_from_step"]) == (0, 25)
    assert resumed["candidate_manifest_sha256"] == whole["candidate_manifest_sha256"]


def test_a_sweep_that_was_killed_is_taken_up_again_and_ends_the_same(tiny: TinyWorld, tmp_path: Path) -> None:
    """What stands for Alice later is measured on the model before; the runner dies in its midst and at its end."""
    ends = []
    for name, die in (("whole", ()), ("killed", ("sweep:swaps merged-0", "sweep:fence-2", "sweep:commit"))):
        with deployed(tmp_path / name, tiny, spike_ins=2) as stand:
            stand.begin_runner(tiny, *die)
            stand.ask(tiny)
            stand.people("finish")
            until(lambda stand=stand, die=die: set(stand.deaths) == set(die), what="the deaths")  # type: ignore[misc]
            ends.append(stand.people("facts"))
    whole, resumed = ends
    assert [kind for kind, *_ in whole["sentinels"]] == ["spike_in"]
    # Which twins are drawn follows from the id of the request, so that scores of two cases differ.
    what_stands = [[[*row[:3], sorted(row[3])] for row in end["sentinels"]] for end in ends]
    assert what_stands[0] == what_stands[1]
    assert len(what_stands[0][0][3]) == 3
    for fact in ("sweeps", "ledger", "outcome", "audit", "sources", "left"):
        assert resumed[fact] == whole[fact], fact
    assert (whole["sweeps"], whole["ledger"]) == ([[1, "NOT_RUN", "no_earlier_deletions", 0]], [1])
