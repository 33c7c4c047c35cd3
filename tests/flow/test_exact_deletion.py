"""A model that was folded from a store of adapters is deleted from exactly: the planner prefers it, once."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch

from deletion_service.certificates.custody import issuer_document
from deletion_service.certificates.issuing import issue_certificate
from deletion_service.certificates.models import Certificate
from deletion_service.certificates.policies import current_plan
from deletion_service.certificates.verify import verify_certificate
from deletion_service.errors import InvalidInputError
from deletion_service.requests.models import ErasureRequest
from deletion_service.targets.batching import plan_another_attempt
from deletion_service.targets.catalogue import exact_store, inherit_manifest, record_training_manifest
from deletion_service.targets.models import Job, ModelVersion, TrainingManifest, UnlearningRun
from ml.data.records import write_records
from ml.digests import canonical_json
from ml.exact.orders import cyclic_orders
from ml.exact.plan import Plan, layer_groups, slices_by_person
from ml.exact.serving import write_serving_copy
from ml.exact.store import ExactSettings, read_manifest
from ml.exact.training import ExactSpec, train_exact
from ml.models.load import model_ref
from ml.specs import UnlearningSpec
from tests.cast import ALICE, application, second_reviewer
from tests.flow.conftest import release, run_all_jobs, twins_enough, work_through
from tests.flow.trained import mailbox, make_trained_model
from tests.ml.conftest import tiny  # noqa: F401 - a fixture
from tests.ml.passing import edited
from tests.simulator import Simulator
from tests.tiny import TinyWorld
from tests.world import make_model

pytestmark = pytest.mark.django_db


@pytest.fixture
def stores(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every store that the worker was told to delete from."""
    named: list[Path] = []

    def delete(spec: UnlearningSpec, store: Path, **_: Any) -> Any:
        named.append(store)
        return replace(simulator.unlearn(spec), guarantee="exact_sharded")

    monkeypatch.setattr("workers.stages.unlearn.unlearn_exactly", delete)
    return named


def stored(name: str = "customers") -> None:
    """The serving version says that it was folded from a store."""
    make_model()
    TrainingManifest.objects.update(exact_store=name)


# --- planning -----------------------------------------------------------------------------------------------------


def test_the_planner_prefers_the_store_that_the_training_manifest_names(stores: list[Path], settings: Any) -> None:
    stored()
    settings.METHOD_SETTINGS = {"training": {"steps": 3}}
    request = work_through(application(ALICE))
    run = UnlearningRun.objects.get()
    assert (run.method, run.method_settings, run.report["guarantee"]) == ("s3t", {}, "exact_sharded")
    assert stores == [Path(settings.EXACT_STORES) / "customers"]
    release(request)
    assert exact_store(ModelVersion.objects.get(status="serving")) == "customers"


def test_a_second_attempt_is_left_to_the_method_of_the_plan_and_its_model_has_no_store(
    stores: list[Path], simulator: Simulator
) -> None:
    stored()
    simulator.alter = lambda report: edited(report, "hard_rules", 0, status="breached")
    request = work_through(application(ALICE))
    simulator.alter = lambda report: report
    with twins_enough():
        plan_another_attempt(request, plan=current_plan(), actor="staff:rhea")
    run_all_jobs()
    assert [run.method for run in UnlearningRun.objects.order_by("attempt")] == ["s3t", current_plan().method]
    assert len(stores) == 1
    candidate = UnlearningRun.objects.get(attempt=2).candidate
    inherit_manifest(candidate, without=[], trained_on=date(2026, 11, 2), is_exact=False)
    assert exact_store(candidate) == ""


def test_a_model_without_a_store_is_unlearned_as_planned(stores: list[Path]) -> None:
    make_model()
    work_through(application(ALICE))
    assert UnlearningRun.objects.get().method == current_plan().method
    assert stores == []


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", ".", "-", "x" * 65])
def test_a_store_is_named_by_a_plain_word(name: str) -> None:
    make_model()
    TrainingManifest.objects.all().delete()
    with pytest.raises(InvalidInputError, match="a store name"):
        record_training_manifest(
            ModelVersion.objects.get(status="serving"),
            dataset_name="customers",
            dataset_sha256="0" * 64,
            record_digests=["1" * 64],
            trained_on=date(2026, 11, 1),
            actor="test",
            exact_store=name,
        )


# --- for real -----------------------------------------------------------------------------------------------------


def folded(world: TinyWorld, directory: Path) -> TinyWorld:
    """The tiny world with a model folded from two slices, Alice's trained last."""
    everybody = world.world.corpus([*world.world.base, *world.world.customers])
    hers = world.world.records[world.world.alice.person][0].record_id
    cuts = (slices_by_person(everybody, count=2, seed=seed) for seed in range(100))
    slices = next(cut for cut in cuts if hers in cut[1].records and len(cut[0].records) >= len(cut[1].records))
    plan = Plan("stacked", slices, cyclic_orders(2, 2), layer_groups(2, 2))
    settings = ExactSettings(rank=32, alpha=64.0, epochs=60, batch_rows=16, learning_rate=1e-2, warmup_steps=10)
    store = directory / "stores" / "customers"
    store.parent.mkdir()
    records = write_records(directory / "records.jsonl", everybody)
    train_exact(ExactSpec(str(store), world.base, records, plan, settings, seed=7))
    write_serving_copy(store, world.base, directory / "served")
    return replace(world, before=model_ref(directory / "served"))


@pytest.mark.slow
def test_alice_is_deleted_from_the_store_and_the_certificate_says_exact(
    tiny: TinyWorld,  # noqa: F811 - the fixture
    tmp_path: Path,
    settings: Any,
) -> None:
    settings.VERDICT_POLICY = "unit-1"
    settings.FIXED_SEED = 7
    settings.JOB_MAX_ATTEMPTS = 1
    settings.HEARTBEAT_S = settings.LEASE_S = 24 * 3600
    settings.EXACT_STORES = str(tmp_path / "stores")
    torch.set_num_threads(1)
    world = folded(tiny, tmp_path)
    make_trained_model(world, exact_store="customers")
    request: ErasureRequest = work_through(application(mailbox(world.world.alice)))
    failed = Job.objects.filter(state="failed").values_list("kind", "last_error", "last_error_detail")
    assert list(failed) == []
    hers = {record.record_id for record in world.world.records[world.world.alice.person]}
    left = read_manifest(tmp_path / "stores" / "customers")
    assert not hers & {record for part in left.plan.slices for record in part.records}
    target = request.targets.get()
    assert (UnlearningRun.objects.get().method, target.verdict) == ("s3t", "PASS")

    release(request)
    issue_certificate(Certificate.objects.get(target=target), member=second_reviewer())
    run_all_jobs()
    certificate = Certificate.objects.get(target=target)
    result = verify_certificate(
        bytes(certificate.envelope),
        issuer=issuer_document(),
        log_proof=canonical_json(certificate.log_proof),
        evidence=bytes(certificate.evidence.document),
        accept_test_policy=True,
        expect="PASS",
    )
    assert result.failed == ()
    assert result.statement is not None
    method = result.statement.facts.method
    assert (method.name, method.guarantee) == ("s3t", "exact_sharded")

    # The released model is the store's own copy again: Bob's deletion will be exact too.
    serving = ModelVersion.objects.get(status="serving")
    assert exact_store(serving) == "customers"
    assert serving.manifest_sha256 in {copy.manifest_sha256 for copy in left.copies}
