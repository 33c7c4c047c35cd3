"""Earlier deletions on later versions: each is tested again, what comes back is blocked, only requests are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils import timezone

from deletion_service.audit.models import AuditEvent
from deletion_service.certificates.issuing import issue_certificate
from deletion_service.certificates.models import Certificate, Sweep
from deletion_service.certificates.policies import current_plan
from deletion_service.certificates.promotion import check_choice, decide_evidence
from deletion_service.certificates.sweeps import alarms, check_swept, latest_sweep, open_sweep
from deletion_service.errors import EvidenceMissingError, PayloadDestroyedError, ResurfacedError
from deletion_service.requests.codes import DataClass
from deletion_service.requests.keystore import key_store
from deletion_service.requests.models import DisposalEvent, ErasureRequest, SealedItem
from deletion_service.requests.payload import open_sealed
from deletion_service.targets.batching import check_another_attempt
from deletion_service.targets.catalogue import register_version
from deletion_service.targets.jobs import retry_job
from deletion_service.targets.ledger import open_probes, vault_item
from deletion_service.targets.models import Job, LedgerEntry, ModelVersion, Sentinel, TrainedModel
from deletion_service.targets.registries import open_registry
from deletion_service.targets.sources import open_source
from ml.specs import SweepSpec, UnlearningSpec, VerificationSpec
from tests.cast import ALICE, ALICE_NAME, BOB, rhea, second_reviewer
from tests.flow.conftest import release, run_all_jobs, twins_enough
from tests.simulator import Simulator
from tests.triggers import lifted_triggers
from tests.world import ALICE_SECRET, make_model, spike_in, weights
from workers.reconcile import destroy_expired_vaults, dispose_owed_classes, reconcile, watch_resurfaced

pytestmark = [pytest.mark.slow, pytest.mark.django_db]
Case = Callable[..., ErasureRequest]


@pytest.fixture
def alice(case: Case) -> ErasureRequest:
    """Alice was deleted, and a spike-in with her; another is left for Bob."""
    make_model(spike_ins=2)
    return release(case(model=False))


def candidate(request: ErasureRequest) -> ModelVersion:
    run = request.targets.get().batch.runs.latest("attempt")  # type: ignore[union-attr]
    assert run.candidate is not None
    return run.candidate


def sweep_of(request: ErasureRequest) -> Sweep:
    sweep = latest_sweep(candidate(request))
    assert sweep is not None
    return sweep


def sweeps_seen(simulator: Simulator) -> list[SweepSpec]:
    return [spec for spec in simulator.seen if isinstance(spec, SweepSpec)]


def decline(request: ErasureRequest) -> None:
    soon = timezone.localdate() + timedelta(days=9)
    decide_evidence(request, choice="decline", reason="retrain_planned", reviewer=rhea(), retrain_on=soon)
    run_all_jobs()


# --- the ledger ---------------------------------------------------------------------------------------------------


def test_the_first_deletion_is_tested_for_nobody_and_says_so(case: Case, simulator: Simulator) -> None:
    request = case()
    sweep = sweep_of(request)
    assert (sweep.result, sweep.reason, sweep.earlier) == ("NOT_RUN", "no_earlier_deletions", 0)
    assert sweeps_seen(simulator) == []
    assert (request.status, request.targets.get().verdict) == ("evidence_review", "PASS")


def test_a_deletion_stands_in_the_ledger_once_it_is_released_and_not_before(case: Case) -> None:
    request = case()
    assert not LedgerEntry.objects.exists()
    release(request)
    entry = LedgerEntry.objects.get()
    assert (entry.target.request_id, entry.number) == (request.pk, 1)


def test_a_declined_deletion_never_enters_the_ledger_and_leaves_its_spike_in_for_others(case: Case) -> None:
    make_model(spike_ins=1)
    decline(case(model=False))
    assert not LedgerEntry.objects.exists()
    assert marks_on_file() == {"spike-0"}
    bob = case(BOB, model=False)
    assert [row.mark for row in bob.targets.get().sentinels.all()] == ["spike-0"]


# --- spike-ins ----------------------------------------------------------------------------------------------------


def marks_on_file() -> set[str]:
    source = open_source(TrainedModel.objects.get().sources[0])
    return {found.spike_in for found in source.records() if found.spike_in}


def test_a_spike_in_is_forgotten_along_and_stands_for_the_deletion_from_then_on(
    alice: ErasureRequest, simulator: Simulator
) -> None:
    kept = Sentinel.objects.get()
    assert kept.mark in {"spike-0", "spike-1"}
    record_ids = {json.loads(line)["record_id"] for line in bytes(kept.probes or b"").splitlines()}
    assert record_ids == {f"spike{kept.mark[-1]}-1", f"spike{kept.mark[-1]}-2"}
    assert set(kept.scores) == {"same_context_difference", "exposure", "extraction_strength"}
    assert marks_on_file() == {"spike-0", "spike-1"} - {kept.mark}
    digests = candidate(alice).training_manifest.entries.count()
    assert digests == 4 - 2 + 4 - 2  # of four people's rows and two spike-ins', Alice's and one spike-in's are gone


def test_the_spike_in_is_no_part_of_what_is_verified_or_counted(case: Case, simulator: Simulator) -> None:
    make_model(spike_ins=1)
    texts: dict[str, str] = {}
    unlearn, verify = simulator.unlearn, simulator.verify

    def watched(spec: Any, **options: Any) -> Any:
        texts[type(spec).__name__] = Path(spec.forget.path).read_text()
        texts[f"{type(spec).__name__}.retain"] = Path(spec.retain.path).read_text()
        return (unlearn if isinstance(spec, UnlearningSpec) else verify)(spec, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workers.stages.unlearn.run_unlearning", watched)
        patch.setattr("workers.stages.verify.run_verification", watched)
        request = case(model=False)
    assert "spike0-1" in texts[UnlearningSpec.__name__]
    assert "alice-1" in texts[UnlearningSpec.__name__]
    assert "spike0" not in texts[VerificationSpec.__name__]
    assert all("spike0" not in texts[f"{spec.__name__}.retain"] for spec in (UnlearningSpec, VerificationSpec))
    assert request.targets.get().record_count == 2


def test_a_spike_in_that_the_model_never_learned_stands_for_nobody(case: Case) -> None:
    make_model()
    folder = Path(settings.SOURCE_ROOT) / "customers"
    late = "".join(f"{json.dumps(row)}\n" for row in spike_in(7))
    (folder / "records-9.jsonl").write_text(late)
    release(case(model=False))
    assert not Sentinel.objects.exists()
    assert LedgerEntry.objects.exists()
    assert marks_on_file() == {"spike-7"}


# --- what later versions show -------------------------------------------------------------------------------------


def test_every_earlier_deletion_is_tested_on_the_next_candidate(alice: ErasureRequest, case: Case) -> None:
    bob = case(BOB, model=False)
    sweep = sweep_of(bob)
    document = open_sweep(sweep)
    assert document is not None
    assert (sweep.result, sweep.earlier) == ("PASS", 1)
    assert [(row.id, row.kind, row.status) for row in document.report.entries] == [(alice.pk, "spike_in", "measured")]
    assert (document.coverage.by_spike_in, document.coverage.not_tested) == (1, 0)
    assert release(bob).status != "evidence_review"
    assert list(LedgerEntry.objects.values_list("number", flat=True)) == [1, 2]


def test_a_deletion_that_nothing_stands_for_is_no_pass_and_blocks_nobody(case: Case) -> None:
    first = release(case())
    bob = case(BOB, model=False)
    sweep = sweep_of(bob)
    document = open_sweep(sweep)
    assert document is not None
    findings = document.judged_again().findings
    assert sweep.result == "INCONCLUSIVE"
    assert ("coverage", first.pk) in {(f.code, f.gate) for f in findings}
    assert all(f.remedy for f in findings)
    assert document.coverage.not_tested == 1
    assert release(bob).status != "evidence_review"


def test_a_version_that_brings_a_deletion_back_is_blocked_and_names_the_request(
    alice: ErasureRequest, case: Case, simulator: Simulator
) -> None:
    simulator.back.add(alice.pk)
    bob = case(BOB, model=False)
    target = bob.targets.get()
    assert (bob.status, target.verdict, sweep_of(bob).result) == ("evidence_review", "FAIL", "FAIL")
    for reason in ("all_gates_passed", "passed_targets_only"):
        with pytest.raises(ResurfacedError, match=alice.pk), transaction.atomic():
            decide_evidence(bob, choice="release", reason=reason, reviewer=rhea())
    with pytest.raises(IntegrityError), transaction.atomic():
        type(target).objects.filter(pk=target.pk).update(status="releasing")
    with twins_enough():
        assert check_another_attempt(bob, current_plan()) == [target]
    check_choice(bob, "decline", "evidence_failed")
    assert [row.version for row in alarms()] == [candidate(bob)]
    alarm = AuditEvent.objects.get(action="sweep.resurfaced")
    assert (alarm.request_id, alarm.object_id, alarm.reason) == (alice.pk, candidate(bob).pk, sweep_of(bob).pk)


def test_painting_the_verdict_over_releases_nothing(alice: ErasureRequest, case: Case, simulator: Simulator) -> None:
    simulator.back.add(alice.pk)
    bob = case(BOB, model=False)
    type(bob.targets.get()).objects.filter(request=bob).update(verdict="PASS")
    with pytest.raises(ResurfacedError, match=alice.pk), transaction.atomic():
        decide_evidence(bob, choice="release", reason="all_gates_passed", reviewer=rhea())
    with pytest.raises(ResurfacedError):
        check_swept(candidate(bob))


def test_no_row_says_who_came_back(
    alice: ErasureRequest, case: Case, simulator: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    simulator.back.add(alice.pk)
    case(BOB, model=False)
    rows = [
        str(list(model._default_manager.values())) + "".join(_binaries(model))
        for model in apps.get_models()
        if model._meta.app_label in ("targets", "certificates", "audit", "notices")
    ]
    said = "".join(rows) + caplog.text
    assert alice.pk in said
    for personal in (ALICE.value, ALICE_NAME.value, ALICE_SECRET, "Alice", "Korvel", "Brackenfell", "alice-1"):
        assert personal not in said


def _binaries(model: Any) -> list[str]:
    names = [f.name for f in model._meta.concrete_fields if f.get_internal_type() == "BinaryField"]
    return [bytes(row[name] or b"").decode("latin1") for row in model._default_manager.values() for name in names]


def test_a_sealed_sweep_that_was_altered_releases_nothing(alice: ErasureRequest, case: Case) -> None:
    bob = case(BOB, model=False)
    sweep = sweep_of(bob)
    altered = bytes(sweep.document or b"").replace(b'"flagged":false', b'"flagged":true ', 1)
    with lifted_triggers():
        Sweep.objects.filter(pk=sweep.pk).update(document=altered)
    with pytest.raises(EvidenceMissingError, match="digest"), transaction.atomic():
        decide_evidence(bob, choice="release", reason="all_gates_passed", reviewer=rhea())


# --- a sweep that fails -------------------------------------------------------------------------------------------


def test_a_sweep_that_failed_for_good_blocks_the_release_until_it_is_tried_again(
    alice: ErasureRequest, case: Case, monkeypatch: pytest.MonkeyPatch, settings: Any, simulator: Simulator
) -> None:
    settings.JOB_MAX_ATTEMPTS = 1

    def crash(*_: object, **__: object) -> None:
        raise ArithmeticError("Alice's number is 012")

    with monkeypatch.context() as broken:
        broken.setattr("workers.stages.sweep.run_sweep", crash)
        bob = case(BOB, model=False)
    assert bob.status == "working"
    reconcile()
    bob.refresh_from_db()
    assert (bob.status, sweep_of(bob).reason) == ("evidence_review", "error")
    with pytest.raises(EvidenceMissingError, match="try its sweep again"), transaction.atomic():
        decide_evidence(bob, choice="release", reason="all_gates_passed", reviewer=rhea())
    retry_job(Job.objects.get(kind="sweep", state="failed"), actor="staff:rhea")
    run_all_jobs()
    assert (sweep_of(bob).result, sweep_of(bob).attempt) == ("PASS", 2)
    assert release(bob).status != "evidence_review"


# --- versions from outside ----------------------------------------------------------------------------------------


def from_outside(content: str) -> ModelVersion:
    model = TrainedModel.objects.get()
    base = model.versions.get(kind="base")
    made = weights(Path(settings.HOME_DIR) / "scratch-models" / content.replace(" ", "-"), content)
    published = open_registry(model.registry).publish(made, parent=None, tags={})
    return register_version(model, number=published.number, kind="finetune", actor="test", parent=None, base=base)


def test_a_version_from_outside_is_tested_once_somebody_was_deleted(alice: ErasureRequest) -> None:
    version = from_outside("trained elsewhere")
    job = Job.objects.get(version=version)
    assert (job.kind, job.request) == ("sweep", None)
    run_all_jobs()
    sweep = latest_sweep(version)
    assert sweep is not None
    assert (sweep.result, sweep.target) == ("PASS", None)
    check_swept(version)


def test_before_anybody_was_deleted_a_version_from_outside_owes_nothing(simulator: Simulator) -> None:
    make_model()
    version = from_outside("trained elsewhere")
    assert not Job.objects.exists()
    assert latest_sweep(version) is None


def test_a_version_from_outside_that_brings_a_deletion_back_raises_an_alarm(
    alice: ErasureRequest, simulator: Simulator
) -> None:
    simulator.back.add(alice.pk)
    version = from_outside("trained on a backup")
    run_all_jobs()
    with pytest.raises(ResurfacedError, match=alice.pk):
        check_swept(version)
    assert [row.version for row in alarms()] == [version]
    assert AuditEvent.objects.get(action="sweep.resurfaced").request_id == alice.pk

    assert watch_resurfaced() == 0
    registry = open_registry(version.model.registry)
    serving = registry.resolve("champion")
    assert serving is not None
    registry.move_alias("champion", expected=serving.number, to=version.number, epoch=99)
    assert watch_resurfaced() == 1


def test_a_job_is_about_a_request_or_about_a_version_and_never_both_or_neither(alice: ErasureRequest) -> None:
    job = Job.objects.filter(kind="locate").latest("pk")
    for changes in ({"version": TrainedModel.objects.get().versions.first()}, {"request": None}):
        with pytest.raises(IntegrityError), transaction.atomic():
            Job.objects.filter(pk=job.pk).update(**changes)


# --- the vault ----------------------------------------------------------------------------------------------------


@pytest.fixture
def vault(settings: Any) -> None:
    """This deployment keeps probes for thirty days."""
    settings.VAULT_DAYS, settings.VAULT_BASIS = 30, "Article 6(1)(c) GDPR"


def test_by_default_nothing_of_the_person_is_kept(alice: ErasureRequest) -> None:
    assert not Sentinel.objects.filter(kind="vault").exists()
    assert not SealedItem.objects.filter(data_class=DataClass.VAULT).exists()


def test_a_vault_outlives_the_payload_and_both_are_tested(vault: None, alice: ErasureRequest, case: Case) -> None:
    kept = Sentinel.objects.get(kind="vault")
    assert (kept.basis, kept.expires_on) == ("Article 6(1)(c) GDPR", timezone.localdate() + timedelta(days=30))
    assert kept.probes is None
    assert ALICE_SECRET.encode() in (open_probes(kept) or b"")
    assert ALICE_SECRET not in str(list(Sentinel.objects.values()))
    bob = case(BOB, model=False)
    document = open_sweep(sweep_of(bob))
    assert document is not None
    assert [(row.id, row.kind) for row in document.report.entries] == [
        (alice.pk, "spike_in"),
        (f"{alice.pk}-vault", "vault"),
    ]
    coverage = document.coverage
    assert (coverage.earlier, coverage.by_spike_in, coverage.by_vault, coverage.not_tested) == (1, 1, 1, 0)


def test_an_expired_vault_is_destroyed_and_the_spike_in_stands_alone(
    vault: None, alice: ErasureRequest, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = SealedItem.objects.get(data_class=DataClass.VAULT)
    backup = {f.attname: getattr(item, f.attname) for f in SealedItem._meta.concrete_fields}
    assert destroy_expired_vaults() == 0
    later = timezone.localdate() + timedelta(days=30)
    monkeypatch.setattr("workers.reconcile.timezone.localdate", lambda *_: later)
    assert (destroy_expired_vaults(), destroy_expired_vaults()) == (1, 0)

    event = DisposalEvent.objects.get(data_class=DataClass.VAULT)
    assert (event.request_id, event.key_ids, event.method) == (alice.pk, [item.key_id], "dek_destroyed")
    assert event.signature
    assert AuditEvent.objects.filter(action="payload.disposed", reason="class_V", request_id=alice.pk).exists()
    nothing_opens(alice, backup)
    document = open_sweep(sweep_of(case(BOB, model=False)))
    assert document is not None
    assert [(row.id, row.kind, row.status) for row in document.report.entries] == [(alice.pk, "spike_in", "measured")]


def nothing_opens(request: ErasureRequest, backup: dict[str, Any]) -> None:
    """Not the row, not a row restored from a backup, not by the key store."""
    target = request.targets.get()
    kept = Sentinel.objects.get(kind="vault")
    assert open_probes(kept) is None
    with pytest.raises(PayloadDestroyedError):
        key_store().get(backup["key_id"])
    SealedItem.objects.create(**backup)
    with pytest.raises(PayloadDestroyedError):
        open_sealed(request, DataClass.VAULT, vault_item(target))
    assert open_probes(kept) is None
    assert ALICE_SECRET.encode() not in bytes(backup["ciphertext"])
    SealedItem.objects.filter(pk=backup["id"]).delete()


def test_an_expired_vault_is_not_opened_even_where_its_key_is_still_there(
    vault: None, alice: ErasureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Sentinel.objects.get(kind="vault")
    later = timezone.localdate() + timedelta(days=30)
    monkeypatch.setattr("deletion_service.targets.ledger.timezone.localdate", lambda *_: later)
    assert open_probes(kept) is None


def test_without_a_spike_in_an_expired_vault_leaves_the_deletion_uncovered(
    vault: None, case: Case, monkeypatch: pytest.MonkeyPatch, simulator: Simulator
) -> None:
    alice = release(case())
    later = timezone.localdate() + timedelta(days=30)
    monkeypatch.setattr("deletion_service.targets.ledger.timezone.localdate", lambda *_: later)
    sweep = sweep_of(case(BOB, model=False))
    document = open_sweep(sweep)
    assert document is not None
    assert sweep.result == "INCONCLUSIVE"
    assert [(row.id, row.status) for row in document.report.entries] == [(alice.pk, "untested")]


def test_the_vault_of_a_deletion_that_was_not_released_goes_when_its_case_closes(vault: None, case: Case) -> None:
    request = case()
    assert SealedItem.objects.filter(data_class=DataClass.VAULT).exists()
    decline(request)
    issue_certificate(Certificate.objects.get(), member=second_reviewer())
    run_all_jobs()
    dispose_owed_classes()
    assert SealedItem.objects.filter(data_class=DataClass.VAULT).exists()
    assert destroy_expired_vaults() == 1


UNSOUND: tuple[dict[str, Any], ...] = (
    {"basis": ""},
    {"expires_on": None},
    {"vault_days": 91},
    {"vault_days": None},
    {"probes": b"a person's own records"},
    {"kind": "none"},
)


def test_the_database_refuses_a_vault_without_basis_end_or_seal(alice: ErasureRequest) -> None:
    sound: dict[str, Any] = {
        "target": alice.targets.get(),
        "kind": "vault",
        "probes_sha256": "0" * 64,
        "basis": "Article 6(1)(c) GDPR",
        "vault_days": 90,
        "expires_on": timezone.localdate(),
    }
    for changes in UNSOUND:
        with pytest.raises(IntegrityError), transaction.atomic():
            Sentinel.objects.create(**{**sound, **changes})
    Sentinel.objects.create(**sound)
