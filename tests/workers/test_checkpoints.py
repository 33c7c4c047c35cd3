"""A run goes on from the checkpoint that its job's row names by digest, from no other, and a zombie changes neither."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import IntegrityError, transaction
from django.utils import timezone

from deletion_service.errors import LeaseLostError
from deletion_service.targets.models import Job, UnlearningRun
from ml.digests import file_sha256
from ml.errors import CheckpointError
from ml.unlearn import CHECKPOINT
from tests.workers.test_leasing_a_job import owed
from workers.checkpoints import Checkpoints
from workers.jobs import Lease, claim
from workers.stages import unlearn as stage
from workers.workspace import run_directory

pytestmark = pytest.mark.django_db
RUN = UnlearningRun(pk="run_of_this_test")


@pytest.fixture(autouse=True)
def work(tmp_path: Path, settings: Any) -> Path:
    settings.WORK_DIR = tmp_path
    return run_directory(RUN)


def leased() -> Lease:
    """The next token of the one job; what held it before has run out."""
    if not Job.objects.exists():
        owed()
    Job.objects.filter(state="leased").update(lease_until=timezone.now() - timedelta(seconds=1))
    lease = claim(["cpu"], owner="test")
    assert lease is not None
    return lease


def begun() -> Checkpoints:
    lease = leased()
    checkpoints = Checkpoints(lease, RUN)
    checkpoints.take_up(Job.objects.get())
    return checkpoints


def written(checkpoints: Checkpoints, content: str) -> Path:
    path = checkpoints.folder / CHECKPOINT
    path.write_text(content)
    return path


def found(checkpoints: Checkpoints) -> str | None:
    path = checkpoints.folder / CHECKPOINT
    return path.read_text() if path.exists() else None


def kept(work: Path) -> list[Path]:
    return sorted(work.glob("*/kept-*"))


def test_the_row_names_the_newest_checkpoint_with_its_digest_and_the_one_before_is_gone(work: Path) -> None:
    checkpoints = begun()
    for content in ("after step 25", "after step 50"):
        checkpoints.keep(written(checkpoints, content))
    job = Job.objects.get()
    assert [file.read_text() for file in kept(work)] == ["after step 50"]
    assert work / job.checkpoint == kept(work)[0]
    assert job.checkpoint_sha256 == file_sha256(kept(work)[0])


def test_the_next_token_finds_it_in_a_folder_of_its_own(work: Path) -> None:
    first = begun()
    first.keep(written(first, "after step 25"))
    second = begun()
    assert second.folder != first.folder
    assert found(second) == "after step 25"


@pytest.mark.parametrize("harm", ["flipped", "gone"])
def test_a_checkpoint_that_is_not_what_was_written_is_not_taken_up(work: Path, harm: str) -> None:
    first = begun()
    first.keep(written(first, "after step 25"))
    (file,) = kept(work)
    if harm == "gone":
        file.unlink()
    else:
        file.write_text("after step 26")
    assert found(begun()) is None


def test_a_file_that_was_written_and_not_recorded_leaves_the_one_before(work: Path) -> None:
    first = begun()
    first.keep(written(first, "after step 25"))
    written(first, "after step 50")
    assert found(begun()) == "after step 25"


def test_a_worker_that_was_replaced_records_nothing_and_removes_nothing_of_its_successor(work: Path) -> None:
    first = begun()
    first.keep(written(first, "after step 25"))
    second = begun()
    second.keep(written(second, "after step 50"))
    with pytest.raises(LeaseLostError):
        first.keep(written(first, "a zombie's"))
    assert "a zombie's" not in [file.read_text() for file in kept(work)]
    assert found(begun()) == "after step 50"


def test_a_worker_frozen_between_its_record_and_the_removal_leaves_what_came_after(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = begun()
    first.keep(written(first, "after step 25"))
    record = Lease.record

    def record_and_freeze(self: Lease, **changes: Any) -> None:
        record(self, **changes)
        monkeypatch.setattr(Lease, "record", record)
        second = begun()
        second.keep(written(second, "its successor's"))

    monkeypatch.setattr(Lease, "record", record_and_freeze)
    first.keep(written(first, "after step 50"))
    assert found(begun()) == "its successor's"


def test_the_last_effect_of_a_run_takes_its_checkpoints_along_when_it_is_committed(
    work: Path, django_capture_on_commit_callbacks: Any
) -> None:
    checkpoints = begun()
    checkpoints.keep(written(checkpoints, "after step 25"))
    with django_capture_on_commit_callbacks(execute=True):
        checkpoints.end()
        assert len(kept(work)) == 1
    assert (kept(work), Job.objects.get().checkpoint) == ([], "")


def test_nothing_that_was_trained_stays_behind(work: Path, django_capture_on_commit_callbacks: Any) -> None:
    """What was taken up and never kept again, and the half of a file that a killed worker was writing."""
    first = begun()
    first.keep(written(first, "after step 25"))
    (first.folder / f"{CHECKPOINT}.tmp").write_text("half of")
    second = begun()
    assert found(second) == "after step 25"
    with django_capture_on_commit_callbacks(execute=True):
        second.end()
    assert [path for path in work.rglob("*") if path.is_file()] == []


def test_a_version_that_cannot_go_on_from_a_checkpoint_begins_again(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = begun()
    first.keep(written(first, "of the version before"))
    second = begun()

    def unlearns_from_nothing_else(*_: Any, **__: Any) -> str:
        if found(second) is not None:
            raise CheckpointError("belongs to a run of another configuration")
        return "report"

    monkeypatch.setattr(stage, "run_unlearning", unlearns_from_nothing_else)
    assert stage._unlearn_as_planned(second._lease, None, second) == "report"  # type: ignore[arg-type,comparison-overlap]
    assert Job.objects.get().checkpoint == ""


def test_the_database_knows_no_checkpoint_without_its_digest() -> None:
    job = owed()
    for changes in ({"checkpoint": "checkpoints-1/kept"}, {"checkpoint_sha256": "0" * 64}):
        with pytest.raises(IntegrityError, match="job_checkpoint_has_a_digest"), transaction.atomic():
            Job.objects.filter(pk=job.pk).update(**changes)
