"""What came after the search counts as well: rows of the person, versions that learned from them, copies of weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings

from deletion_service.certificates.envelope import read_envelope
from deletion_service.certificates.issuing import issue_certificate
from deletion_service.certificates.models import Certificate
from deletion_service.certificates.promotion import decide_evidence
from deletion_service.errors import GuardError
from deletion_service.requests.models import ErasureRequest
from deletion_service.targets import catalogue
from deletion_service.targets.catalogue import record_sha256, register_version
from deletion_service.targets.models import ErasureTarget, ModelVersion, TrainedModel
from deletion_service.targets.registries import ModelRegistry, open_registry
from deletion_service.targets.statuses import TargetStatus
from tests.cast import ALICE, ALICE_NAME, BOB, Identifier, rhea, second_reviewer
from tests.flow.conftest import release, run_all_jobs
from tests.simulator import Simulator
from tests.world import record, weights
from workers import bridge
from workers.reconcile import reconcile

pytestmark = [pytest.mark.django_db, pytest.mark.slow]
Case = Callable[..., ErasureRequest]
NEW_ROW = record("Alice Korvel", 9, "99 New Street", ALICE, ALICE_NAME)
ROW_OF_BOB = record("Bob Tamsin", 9, "3 New Street", BOB, Identifier("name", "Bob Tamsin"))


def source_file() -> Path:
    return Path(settings.SOURCE_ROOT) / "customers" / "records-0.jsonl"


def import_row(row: dict[str, object]) -> None:
    source_file().write_text(source_file().read_text() + json.dumps(row) + "\n")


def registry_of(request: ErasureRequest) -> ModelRegistry:
    return open_registry(request.targets.get().model.registry)


def finish(request: ErasureRequest) -> Certificate:
    release(request)
    certificate = Certificate.objects.get(target__request=request)
    issue_certificate(certificate, member=second_reviewer())
    run_all_jobs()
    request.refresh_from_db()
    return certificate


def predicate_of(certificate: Certificate) -> dict[str, Any]:
    predicate: dict[str, Any] = json.loads(read_envelope(bytes(certificate.envelope)).payload)["predicate"]
    return predicate


def fine_tune(model: TrainedModel, *, parent: int, manifest: bool = True) -> ModelVersion:
    """Somebody trains on from `parent`, on Alice's first record, and registers what came out."""
    made = weights(Path(settings.HOME_DIR) / "fine-tuned", "weights that were trained on")
    published = open_registry(model.registry).publish(made, parent=parent, tags={})
    base = model.versions.get(number=1)
    version = register_version(
        model, number=published.number, kind="finetune", actor="test", parent=model.versions.get(number=2), base=base
    )
    if manifest:
        catalogue.record_training_manifest(
            version,
            dataset_name="customers",
            dataset_sha256="0" * 64,
            record_digests=[record_sha256("alice-1")],
            trained_on=date(2026, 11, 2),
            actor="test",
        )
    return version


def test_a_row_of_the_person_that_came_after_the_search_goes_too(case: Case) -> None:
    request = case()
    import_row(NEW_ROW)
    certificate = finish(request)
    assert "alice-9" not in source_file().read_text()
    assert request.outcome == "erased"
    assert [(row["action"], row["probe"]) for row in predicate_of(certificate)["sources"]] == [("deleted", "gone")]
    assert request.targets.get().record_count == 3


def test_a_row_that_comes_back_after_it_was_erased_is_erased_before_the_keys_go(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = case()
    decide_evidence(request, choice="release", reason="all_gates_passed", reviewer=rhea())
    with monkeypatch.context() as later:
        later.setattr("workers.stages.dispose.wipe_orphans", lambda: import_row(NEW_ROW) or 0)
        later.setattr("workers.stages.dispose.destroy_class", lambda *_, **__: 1 / 0)
        run_all_jobs()
    assert "alice-9" in source_file().read_text()
    request.jobs.filter(kind="dispose").update(available_at=request.received_at)
    run_all_jobs()
    assert "alice-9" not in source_file().read_text()
    assert Certificate.objects.get().verdict == "PASS"


def test_rows_that_stay_stop_the_disposal_and_the_keys_are_kept(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    request = case()
    still = "deletion_service.targets.sources.jsonl_directory.JsonlDirectorySource.still_present"
    with monkeypatch.context() as stubborn:
        stubborn.setattr(
            still, lambda *_: int(ErasureTarget.objects.get(request=request).status == TargetStatus.RELEASED)
        )
        release(request)
    job = request.jobs.get(kind="dispose")
    assert (job.state, job.last_error) == ("ready", "erasure_incomplete")
    assert "source rows are still present" in job.last_error_detail
    assert not request.disposals.exists()
    assert not Certificate.objects.exists()


def test_a_row_of_the_person_that_came_after_the_search_is_forgotten_and_never_retained(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    real, search = bridge.split_records, "workers.stages.unlearn.search_again"
    monkeypatch.setattr(bridge, "split_records", lambda *a, **k: taken.append(real(*a, **k)) or taken[-1])
    monkeypatch.setattr(search, lambda target: import_row(NEW_ROW) or real_search(target))
    from deletion_service.targets.locate import search_again as real_search

    request = case()
    (split,) = taken
    assert [r.record_id for r in split.forget] == ["alice-1", "alice-2", "alice-9"]
    assert [r.record_id for r in split.retain] == ["bob-1", "carol-1"]
    assert request.targets.get().record_count == 3


def test_rows_of_others_that_the_model_never_learned_are_not_taught_to_it(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    real, search = bridge.split_records, "workers.stages.unlearn.search_again"
    monkeypatch.setattr(bridge, "split_records", lambda *a, **k: taken.append(real(*a, **k)) or taken[-1])
    monkeypatch.setattr(search, lambda target: import_row(ROW_OF_BOB) or real_search(target))
    from deletion_service.targets.locate import search_again as real_search

    request = case()
    (split,) = taken
    assert [r.record_id for r in split.retain] == ["bob-1", "carol-1"]
    assert [r.record_id for r in split.bystanders] == ["bob-9"]
    assert {r.person for r in split.bystanders} <= {r.person for r in split.retain}
    assert request.targets.get().record_count == 2


def test_a_version_rests_on_what_the_versions_before_it_learned(case: Case) -> None:
    request = case()
    later = fine_tune(request.targets.get().model, parent=2)
    learned = bridge.learned_records(later)
    assert learned is not None
    assert {record_sha256(name) for name in ("alice-1", "bob-1", "carol-1")} <= learned
    assert bridge.learned_records(later.parent.parent) is None


def test_a_version_fine_tuned_after_the_search_is_retired_and_stated_as_a_descendant(case: Case) -> None:
    request = case()
    later = fine_tune(request.targets.get().model, parent=2)
    certificate = finish(request)
    assert registry_of(request).probe_gone(later.number) == "gone"
    later.refresh_from_db()
    assert later.status == "retired"
    scope, retirement = predicate_of(certificate)["scope"], predicate_of(certificate)["retirement"]
    assert [(row["digest"]["sha256"], row["decision"]) for row in scope["descendants"]] == [
        (later.root_sha256, "retired")
    ]
    assert len(retirement) == 2


def test_a_descendant_without_a_manifest_stops_the_release_until_it_has_one(case: Case) -> None:
    request = case()
    later = fine_tune(request.targets.get().model, parent=2, manifest=False)
    with pytest.raises(GuardError, match=f"version {later.number} of assistant has no training manifest.*record"):
        release(request)
    request.refresh_from_db()
    assert request.status == "evidence_review"


def test_calling_a_version_unlearned_does_not_spare_it_the_question(case: Case) -> None:
    request = case()
    later = fine_tune(request.targets.get().model, parent=1, manifest=False)
    ModelVersion.objects.filter(pk=later.pk).update(kind="unlearned", parent=None)
    with pytest.raises(GuardError, match="no training manifest"):
        release(request)


def test_a_version_that_nobody_registered_stops_the_release(case: Case) -> None:
    request = case()
    made = weights(Path(settings.HOME_DIR) / "unknown", "weights of somebody")
    published = registry_of(request).publish(made, parent=2, tags={})
    with pytest.raises(GuardError, match=rf"version {published.number} lies in the registry of assistant.*register it"):
        release(request)


def test_a_version_registered_between_decision_and_retirement_sends_the_case_back(case: Case) -> None:
    request = case()
    decide_evidence(request, choice="release", reason="all_gates_passed", reviewer=rhea())
    fine_tune(request.targets.get().model, parent=2, manifest=False)
    run_all_jobs()
    request.refresh_from_db()
    assert (request.status, request.targets.get().status) == ("evidence_review", "judged")
    assert request.events.last().reason == "version_unaccounted"  # type: ignore[union-attr]
    assert not Certificate.objects.exists()


def test_the_version_unlearned_from_goes_even_if_nobody_said_what_it_learned(
    simulator: Simulator, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.world.record_training_manifest", lambda *_, **__: None)
    request = case()
    certificate = finish(request)
    assert registry_of(request).probe_gone(2) == "gone"
    assert [row["probe"] for row in predicate_of(certificate)["retirement"]] == ["gone"]


def test_two_people_on_one_model_are_erased_one_after_the_other(case: Case) -> None:
    alice, bob = case(), case(BOB, model=False)
    finish(alice)
    reconcile()
    run_all_jobs()
    bob.refresh_from_db()
    certificate = finish(bob)
    assert (alice.outcome, bob.outcome) == ("erased", "erased")
    assert [row["probe"] for row in predicate_of(certificate)["retirement"]] == ["gone", "gone"]
    registry = registry_of(bob)
    assert [registry.probe_gone(number) for number in (2, 3)] == ["gone", "gone"]
    assert registry.resolve("champion").number == 4  # type: ignore[union-attr]


def test_what_cannot_be_stated_is_noticed_before_the_keys_go(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    request = case()
    monkeypatch.setattr("deletion_service.certificates.drafting._retirements", lambda *_, **__: iter(()))
    release(request)
    job = request.jobs.get(kind="dispose")
    assert (job.state, job.last_error) == ("failed", "statement_invalid")
    assert not request.disposals.exists()
    assert request.sealed_items.filter(data_class="A").exists()


@pytest.mark.parametrize(
    "place", ["other/versions/000001", "assistant/versions/000009", "assistant/.incoming-dead", "left/behind"]
)
def test_a_copy_of_the_weights_anywhere_in_the_registries_stops_the_release(case: Case, place: str) -> None:
    request = case()
    root = Path(settings.REGISTRY_ROOT)
    shutil.copytree(root / "assistant" / "versions" / "000002" / "model", root / place / "model")
    release(request)
    assert (request.status, request.events.last().reason) == ("evidence_review", "still_readable")  # type: ignore[union-attr]
    assert not Certificate.objects.exists()


def test_a_work_directory_that_cannot_be_wiped_stops_the_disposal(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    request = case()
    decide_evidence(request, choice="release", reason="all_gates_passed", reviewer=rhea())
    with monkeypatch.context() as stubborn:
        stubborn.setattr("workers.workspace.wipe", lambda folder: None)
        run_all_jobs()
    job = request.jobs.get(kind="dispose")
    assert (job.state, job.last_error) == ("ready", "work_directory_not_wiped")
    assert not request.disposals.exists()
    job.available_at = request.received_at
    job.save()
    run_all_jobs()
    derived = request.disposals.get(data_class="F")
    assert (derived.method, derived.key_ids) == ("wiped", [run.pk for run in request.targets.get().batch.runs.all()])  # type: ignore[union-attr]
    assert predicate_of(Certificate.objects.get())["disposal"]["classes"] == ["A", "B", "F"]


def test_class_f_is_stated_only_where_somebody_looked(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    request = case()
    monkeypatch.setattr("workers.stages.dispose.record_wiped", lambda *_, **__: None)
    release(request)
    assert predicate_of(Certificate.objects.get())["disposal"]["classes"] == ["A", "B"]


def test_only_the_workers_own_user_may_read_what_a_run_computes(case: Case) -> None:
    case()
    (folder,) = (Path(settings.WORK_DIR) / "runs").glob("run_*")
    assert folder.stat().st_mode & 0o777 == 0o700
