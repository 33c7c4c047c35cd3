"""The seed of a verification is fixed before there is anything to verify: sealed, committed to, never exchanged."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from django.db import DatabaseError, transaction

from deletion_service.audit.models import AuditEvent
from deletion_service.certificates.envelope import read_envelope
from deletion_service.certificates.models import Certificate, Evidence
from deletion_service.errors import PayloadDestroyedError
from deletion_service.requests.codes import DataClass
from deletion_service.requests.models import ErasureRequest, SealedItem
from deletion_service.requests.payload import seal
from deletion_service.targets.batching import verification_seed
from deletion_service.targets.models import Job, UnlearningRun
from ml.specs import seed_commitment
from ml.verify import run_verification
from tests.cast import BOB, application
from tests.flow.conftest import begin_work, release, run_all_jobs, search_owed
from tests.simulator import Simulator
from tests.world import make_model
from workers.jobs import run_next_job
from workers.reconcile import reconcile
from workers.stages import STAGES

pytestmark = pytest.mark.django_db


@pytest.fixture
def planned(simulator: Simulator) -> ErasureRequest:
    """A case whose run is planned and not begun."""
    make_model()
    request = search_owed(application())
    run_all_jobs()
    begin_work(request)
    return request


def item_of(run: UnlearningRun) -> SealedItem:
    return SealedItem.objects.get(name=f"verification-seed-{run.pk}")


def test_the_commitment_stands_before_any_weights_do(planned: ErasureRequest) -> None:
    run = UnlearningRun.objects.get()
    assert (run.status, run.candidate, Job.objects.get(kind="unlearn").state) == ("planned", None, "ready")
    assert run.verification_seed_sha256 == seed_commitment(run.pk, verification_seed(run, planned))
    run_all_jobs()
    acts = list(AuditEvent.objects.order_by("pk").values_list("action", "object_type"))
    assert acts.index(("run.planned", "unlearningrun")) < acts.index(("evidence.sealed", "evidence"))


def test_no_column_tells_the_seed_that_verification_will_use(planned: ErasureRequest) -> None:
    run = UnlearningRun.objects.get()
    hidden = str(verification_seed(run, planned))
    stored = [str(UnlearningRun.objects.values().get()), bytes(item_of(run).ciphertext).decode("latin-1")]
    assert all(hidden not in text for text in stored)
    assert run.seed != hidden


def alice_and_bob(case: Callable[..., ErasureRequest]) -> tuple[ErasureRequest, ErasureRequest]:
    """Two cases on one model, one after the other."""
    alice, bob = case(), case(BOB, model=False)
    release(alice)
    reconcile()
    run_all_jobs()
    return alice, bob


def test_two_runs_draw_two_seeds(case: Callable[..., ErasureRequest], simulator: Simulator) -> None:
    alice_and_bob(case)
    seeds = [spec.seed for spec in simulator.seen]
    assert len(set(seeds)) == len(seeds) == 5  # Bob's candidate was tested for Alice's deletion as well


def test_the_commitment_of_a_planned_run_cannot_be_rewritten(planned: ErasureRequest) -> None:
    run = UnlearningRun.objects.get()
    kinder = seed_commitment(run.pk, 1)
    for change in ({"verification_seed_sha256": kinder}, {"seed": "1"}, {"seed_fixed": True}, {"method": "none"}):
        with pytest.raises(DatabaseError, match="append-only"), transaction.atomic():
            UnlearningRun.objects.filter(pk=run.pk).update(**change)


def exchange(run: UnlearningRun, request: ErasureRequest) -> None:
    """Seal another seed in place of the one that was committed to, as somebody with the keys could."""
    seal(request, DataClass.PAYLOAD, f"verification-seed-{run.pk}", b"1")


def tamper(run: UnlearningRun, request: ErasureRequest) -> None:
    item = item_of(run)
    item.ciphertext = bytes(item.ciphertext[:-1]) + b"x"
    item.save()


def put_another_item_there(run: UnlearningRun, request: ErasureRequest) -> None:
    other = SealedItem.objects.get(name="proven")
    SealedItem.objects.filter(pk=item_of(run).pk).update(ciphertext=other.ciphertext)


@pytest.mark.parametrize(
    ("act", "code"),
    [(exchange, "invalid_spec"), (tamper, "payload_destroyed"), (put_another_item_there, "payload_destroyed")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_seed_that_was_exchanged_after_the_weights_existed_measures_nothing(
    act: Callable[[UnlearningRun, ErasureRequest], None],
    code: str,
    planned: ErasureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert run_next_job(["cpu"], stages=STAGES, owner="test")
    run = UnlearningRun.objects.get()
    assert run.candidate is not None
    act(run, planned)
    monkeypatch.setattr("workers.stages.verify.run_verification", run_verification)
    run_all_jobs()
    job = Job.objects.get(kind="verify")
    assert (job.state, job.last_error) == ("failed", code)
    assert not Evidence.objects.exists()


def test_a_sealed_seed_opens_for_its_own_request_only(case: Callable[..., ErasureRequest]) -> None:
    alice, bob = case(), case(BOB, model=False)
    run = UnlearningRun.objects.get(batch__targets__request=alice)
    assert verification_seed(run, alice)
    with pytest.raises(PayloadDestroyedError):
        verification_seed(run, bob)


def test_the_statement_names_the_commitment_and_the_evidence_opens_it(
    case: Callable[..., ErasureRequest],
) -> None:
    release(case())
    certificate = Certificate.objects.get()
    predicate: dict[str, Any] = json.loads(read_envelope(bytes(certificate.envelope)).payload)["predicate"]
    run = certificate.evidence.run
    assert predicate["verificationSeedCommitment"] == f"sha256:{run.verification_seed_sha256}"
    shown = json.loads(bytes(certificate.evidence.document))["report"]["seeds"]
    assert seed_commitment(run.pk, int(shown["verification"])) == run.verification_seed_sha256
