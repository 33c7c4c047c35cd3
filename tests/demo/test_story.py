"""The demonstration's story on a world memorised in seconds: processes, doors, mail and command line are real."""

from __future__ import annotations

import io
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deletion_service.targets.statuses import JobKind
from demo.__main__ import play
from demo.deployment import DemoError, Deployment
from demo.progress import Screen
from demo.story import STAGES
from ml.data.people import email_of
from ml.data.records import write_records
from ml.reference import PRESETS, ReferencePaths, write_newcomers, write_training_source
from tests.tiny import tiny_memorised

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> ReferencePaths:
    """A reference model of the smallest kind, laid out as `python -m ml.reference` does."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("reference")
    tiny = tiny_memorised(root)
    world, paths = tiny.world, ReferencePaths(root)
    write_training_source(paths.training, world)
    paths.snapshots.mkdir()
    alice, bob = world.alice, world.bob
    others = [person for person in (*world.base, *world.customers) if person.person != alice.person]
    write_records(paths.snapshots / "forget.jsonl", world.corpus([alice]))
    write_records(paths.snapshots / "retain.jsonl", world.corpus(others))
    write_records(paths.snapshots / "neighbours.jsonl", world.corpus([bob]))
    newcomers = replace(PRESETS["demo"], newcomers=4)
    write_newcomers(paths, world, seed=1, sizes=newcomers)
    (root / "bank.json").rename(paths.bank)
    people = {"alice": alice, "bob": bob}
    who = {name: {"person": p.person, "name": p.name, "email": email_of(p)} for name, p in people.items()}
    paths.world.write_text(json.dumps(who))
    return paths


@pytest.fixture(scope="module")
def played(reference: ReferencePaths, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """The story with a method that deletes nothing, under the short policy of the tests."""
    out, told = tmp_path_factory.mktemp("out"), io.StringIO()
    settings = {
        "LETHE_METHOD": "none",
        "LETHE_FIXED_SEED": "3",
        "LETHE_POLICY": "unit-1",
        "LETHE_TORCH_THREADS": "1",
        "LETHE_COMPUTE_PROCESSES": "2",
        "LETHE_TESTING": "true",
    }
    summary = play(out, reference, settings, screen=Screen(told), gold=True, started=time.monotonic())
    return out, summary, told.getvalue()


def test_a_model_that_forgot_nothing_ends_not_erased_with_a_reason_and_a_signed_report(
    played: tuple[Path, dict[str, Any], str],
) -> None:
    out, summary, told = played
    assert (summary["outcome"], summary["verdict"]) == ("not_erased", "FAIL")
    assert any("F1" in finding for finding in summary["findings"])
    assert "Erasure attempt report, FAIL" in told
    for name in ("certificate.dsse.json", "certificate.log.json", "issuer.json", "evidence.json", "report.html"):
        assert (out / name).stat().st_size > 0
    assert json.loads((out / "summary.json").read_text())["stages"].keys() >= {"locate", "unlearn", "verify", "certify"}


def test_an_outsider_is_told_that_a_policy_made_for_tests_proves_nothing(
    played: tuple[Path, dict[str, Any], str],
) -> None:
    _, summary, told = played
    assert summary["certificate_verifies"] is False
    assert "checks failed, first policy" in told


def test_the_summary_has_what_readers_count_on(played: tuple[Path, dict[str, Any], str]) -> None:
    _, summary, _ = played
    for group in ("forget", "retain", "controls"):
        for moment in ("before", "after"):
            assert summary[group][moment].keys() >= {"value_hit", "extraction_strength", "mean_loss", "mean_energy"}
    assert summary.keys() >= {
        "energy_auroc_retained_vs_deleted",
        "energy_auroc_never_seen_vs_deleted",
        "model_dir",
        "model_sha256",
        "bob",
        "gold",
    }
    assert Path(summary["model_dir"]).is_dir()


def test_gold_passes_under_the_policy_that_fails_the_unchanged_model(
    played: tuple[Path, dict[str, Any], str],
) -> None:
    _, summary, told = played
    assert summary["gold"]["verdict"] == "PASS", summary["gold"]["findings"]
    assert "gold under the same policy: PASS" in told


def test_no_process_of_the_story_wrote_who_alice_is(
    played: tuple[Path, dict[str, Any], str], reference: ReferencePaths
) -> None:
    out, _, told = played
    alice = json.loads(reference.world.read_text())["alice"]
    logs = "".join(path.read_text() for path in (out / "logs").glob("*.log"))
    for secret in (alice["name"], alice["email"]):
        assert secret not in logs
        assert secret not in told


def test_a_directory_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    from demo.__main__ import main

    (tmp_path / "thesis.txt").write_text("three years")
    assert main(["--out", str(tmp_path)]) == 2
    assert (tmp_path / "thesis.txt").read_text() == "three years"


def test_a_command_that_fails_says_which_and_why(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match="create_staff"):
        Deployment(tmp_path, 1).manage("create_staff", "rhea", "--role", "emperor")


def test_every_kind_of_job_has_a_word_for_its_progress_bar() -> None:
    assert set(STAGES) == set(JobKind.values)
