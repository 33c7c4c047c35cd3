"""A model that was folded from a store of adapters is deleted from exactly, once; the store loses the person when the
case is released, and nobody before."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch

import workers.exact as exact
import workers.stages.unlearn as unlearn_stage
import workers.stores as stores_in_cases
from deletion_service.audit.models import AuditEvent
from deletion_service.certificates.custody import issuer_document
from deletion_service.certificates.issuing import issue_certificate
from deletion_service.certificates.models import Certificate
from deletion_service.certificates.policies import current_plan
from deletion_service.certificates.verify import verify_certificate
from deletion_service.errors import InvalidInputError
from deletion_service.requests.models import ErasureRequest
from deletion_service.targets.batching import plan_another_attempt
from deletion_service.targets.catalogue import exact_store, record_training_manifest
from deletion_service.targets.models import (
    Job,
    ModelVersion,
    TrainedModel,
    TrainingManifest,
    TrainingManifestEntry,
    UnlearningRun,
)
from deletion_service.targets.registries import open_registry
from ml.data.records import write_records
from ml.digests import canonical_json
from ml.errors import ExactImpossibleError, MlError, NonFiniteError, RunStoppedError, StoreInUseError
from ml.exact.orders import cyclic_orders
from ml.exact.plan import Plan, layer_groups, slices_by_person
from ml.exact.serving import write_serving_copy
from ml.exact.store import ExactSettings, read_manifest
from ml.exact.training import ExactSpec, train_exact
from ml.models.load import model_ref
from ml.specs import EXACT_METHOD, UnlearningSpec
from tests.cast import ALICE, application, second_reviewer
from tests.flow.conftest import release, run_all_jobs, twins_enough, work_through
from tests.flow.trained import mailbox, make_trained_model
from tests.ml.conftest import tiny  # noqa: F401 - a fixture
from tests.ml.exact_stores import STACKED, filled
from tests.ml.passing import edited
from tests.simulator import Simulator
from tests.tiny import TinyWorld
from tests.world import make_model
from workers.stores import trials_of

pytestmark = pytest.mark.django_db


class Stores:
    """What the worker asked of stores; they exist as empty directories."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self.asked: list[tuple[Path, Path]] = []
        self.dropped: list[Path] = []
        self.raises: MlError | OSError | None = None

    def unlearn(self, spec: UnlearningSpec, store: Path, trial: Path, *, learned: list[str], **_: Any) -> Any:
        self.asked.append((store, trial))
        assert learned
        if not trial.exists():
            filled(trial, STACKED)
        if self.raises is not None:
            raise self.raises
        report = self.simulator.unlearn(spec)
        return replace(report, method=EXACT_METHOD, guarantee="exact_sharded", seed=5)

    def drop(self, store: Path, record_ids: list[str]) -> None:
        assert record_ids
        self.dropped.append(store)
        if self.raises is not None:
            raise self.raises


@pytest.fixture
def stores(simulator: Simulator, monkeypatch: pytest.MonkeyPatch, settings: Any, tmp_path: Path) -> Stores:
    settings.EXACT_STORES = str(tmp_path / "stores")
    (tmp_path / "stores" / "customers").mkdir(parents=True)
    found = Stores(simulator)
    monkeypatch.setattr(exact, "unlearn_exactly", found.unlearn)
    monkeypatch.setattr(stores_in_cases, "drop_records", found.drop)
    return found


def folded_model() -> None:
    """The serving version says that it was folded from a store."""
    make_model()
    TrainingManifest.objects.update(exact_store="customers")


def report_of(run: UnlearningRun) -> dict[str, Any]:
    assert run.report is not None
    return run.report


# --- preferring it ------------------------------------------------------------------------------------------------


def test_the_store_that_the_training_manifest_names_is_preferred_and_the_certificate_says_so(
    stores: Stores, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folded_model()
    request = work_through(application(ALICE))
    run = UnlearningRun.objects.get()
    assert (run.method, report_of(run)["method"]) == (current_plan().method, EXACT_METHOD)
    assert [store for store, _ in stores.asked] == [Path(settings.EXACT_STORES) / "customers"]
    assert stores.dropped == []  # nothing is lost before the release
    said: list[str] = []
    monkeypatch.setattr(stores_in_cases._log, "warning", lambda event, **_: said.append(event))
    release(request)
    assert len(stores.dropped) == 2  # at retirement, and once more before the keys go, when the trial is gone
    assert said == ["exact_store_not_adopted"]  # this trial names no copy: said at retirement, and not again
    assert set(stores.dropped) == {Path(settings.EXACT_STORES) / "customers"}
    assert exact_store(ModelVersion.objects.get(status="serving")) == "customers"
    certificate = Certificate.objects.get()
    issue_certificate(certificate, member=second_reviewer())
    result = verify_certificate(
        bytes(certificate.envelope),
        issuer=issuer_document(),
        evidence=bytes(certificate.evidence.document),
        accept_test_policy=True,
    )
    assert result.statement is not None
    method = result.statement.facts.method
    assert (method.name, method.guarantee, method.seeds) == (EXACT_METHOD, "exact_sharded", ("5",))


@pytest.mark.parametrize(
    "error", [ExactImpossibleError("12 records that the store learned are not retained"), NonFiniteError("NaN")]
)
def test_where_it_cannot_be_done_the_planned_method_is_used_and_the_report_says_why(
    stores: Stores, error: MlError
) -> None:
    folded_model()
    stores.raises = error
    request = work_through(application(ALICE))
    run = UnlearningRun.objects.get()
    assert trials_of(run) == []  # what is no use any more names everybody's records
    assert report_of(run)["method"] == run.method
    assert report_of(run)["notes"] == [f"exact deletion was not possible: {error}"]
    assert AuditEvent.objects.get(action="run.exact_refused").reason == error.code
    stores.raises = None
    release(request)
    # The person is dropped from the store all the same, and no store made the new version.
    assert stores.dropped
    assert exact_store(ModelVersion.objects.get(status="serving")) == ""


def test_what_the_base_learned_no_adapter_can_take_along(stores: Stores) -> None:
    folded_model()
    manifest = TrainingManifest.objects.get()
    base = TrainingManifest.objects.create(
        version=ModelVersion.objects.get(kind="base"),
        dataset_name="before",
        dataset_sha256="0" * 64,
        record_count=1,
        trained_on=date(2026, 10, 1),
    )
    for entry in manifest.entries.all():
        TrainingManifestEntry.objects.create(manifest=base, record_sha256=entry.record_sha256)
    work_through(application(ALICE))
    assert stores.asked == []
    assert AuditEvent.objects.get(action="run.exact_refused").reason == "learned_by_base"


def test_a_refusal_is_remembered_when_the_planned_method_is_stopped(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    folded_model()
    stores.raises = NonFiniteError("NaN")
    stops = iter([True, False])
    real = unlearn_stage.run_unlearning

    def once(*given: Any, **more: Any) -> Any:
        if next(stops):
            raise RunStoppedError("run it again")
        return real(*given, **more)

    monkeypatch.setattr(unlearn_stage, "run_unlearning", once)
    work_through(application(ALICE))
    assert len(stores.asked) == 1
    assert AuditEvent.objects.filter(action="run.exact_refused").count() == 1
    assert report_of(UnlearningRun.objects.get())["notes"] == ["exact deletion was not possible: NaN"]


def test_a_second_attempt_is_left_to_the_planned_method_for_the_store_would_make_the_same_again(
    stores: Stores, simulator: Simulator
) -> None:
    folded_model()
    simulator.alter = lambda report: edited(report, "hard_rules", 0, status="breached")
    request = work_through(application(ALICE))
    with twins_enough():
        plan_another_attempt(request, plan=current_plan(), actor="staff:rhea")
    run_all_jobs()
    assert len(stores.asked) == 1
    methods = [report_of(run)["method"] for run in UnlearningRun.objects.order_by("attempt")]
    assert methods == [EXACT_METHOD, current_plan().method]


def test_a_case_that_is_not_released_takes_nothing_from_the_store(stores: Stores, simulator: Simulator) -> None:
    folded_model()
    simulator.alter = lambda report: edited(report, "hard_rules", 0, status="breached")
    release(work_through(application(ALICE)), choice="decline", reason="evidence_failed")
    assert stores.dropped == []


def test_files_that_a_version_has_already_are_not_made_twice(stores: Stores, simulator: Simulator) -> None:
    folded_model()
    simulator.writes = lambda spec: "weights that know" if len(simulator.seen) == 1 else "others"
    work_through(application(ALICE))
    run = UnlearningRun.objects.get()
    assert report_of(run)["method"] == run.method
    assert "has a version with these files" in report_of(run)["notes"][0]


def test_a_model_without_a_store_is_unlearned_as_planned(stores: Stores) -> None:
    make_model()
    release(work_through(application(ALICE)))
    assert (stores.asked, stores.dropped) == ([], [])


# --- stores that cannot be reached --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (StoreInUseError("another command is at work in this store"), "another command"),
        (PermissionError(13, "lock"), "PermissionError"),
        (OSError(28, "full"), "mend access or space"),
    ],
)
def test_a_store_in_use_or_out_of_reach_is_waited_for_and_costs_no_attempt(
    stores: Stores, settings: Any, error: MlError | OSError, words: str
) -> None:
    folded_model()
    settings.STORE_WAIT_S = 3600
    settings.JOB_MAX_ATTEMPTS = 2
    stores.raises = error
    work_through(application(ALICE))
    for _ in range(4):
        job = Job.objects.get(kind="unlearn")
        assert (job.state, job.last_error, job.attempts) == ("ready", "exact_store_unavailable", 0)
        assert words in job.last_error_detail
        Job.objects.update(available_at=job.created_at)
        run_all_jobs()
    Job.objects.update(available_at=job.created_at)
    stores.raises = None
    run_all_jobs()
    assert report_of(UnlearningRun.objects.get())["method"] == EXACT_METHOD


def test_a_release_waits_for_a_host_that_sees_the_store(stores: Stores, settings: Any) -> None:
    folded_model()
    settings.JOB_MAX_ATTEMPTS = 1
    request = work_through(application(ALICE))
    there = Path(settings.EXACT_STORES) / "customers"
    there.rename(there.with_name("elsewhere"))
    release(request)
    job = Job.objects.get(kind="retire")
    assert (job.state, job.last_error) == ("ready", "exact_store_unavailable")
    target = request.targets.get()
    assert target.status == "releasing"
    # Weights do not wait with it.
    assert open_registry(target.model.registry).probe_gone(2) == "gone"
    there.with_name("elsewhere").rename(there)
    Job.objects.update(available_at=job.created_at)
    run_all_jobs()
    assert request.targets.get().status == "released"


def test_a_damaged_trial_holds_no_release_up(stores: Stores) -> None:
    folded_model()
    request = work_through(application(ALICE))
    (trial,) = trials_of(UnlearningRun.objects.get())
    (trial / "manifest.json").write_text("{")
    release(request)
    assert request.targets.get().status == "released"


# --- naming it ----------------------------------------------------------------------------------------------------


def state_store(version: ModelVersion, name: str) -> TrainingManifest:
    return record_training_manifest(
        version,
        dataset_name="customers",
        dataset_sha256="0" * 64,
        record_digests=["1" * 64],
        trained_on=date(2026, 11, 1),
        actor="test",
        exact_store=name,
    )


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", ".", "-", "x" * 65])
def test_a_store_is_named_by_a_plain_word(name: str) -> None:
    make_model()
    TrainingManifest.objects.all().delete()
    with pytest.raises(InvalidInputError, match="a store name"):
        state_store(ModelVersion.objects.get(status="serving"), name)


def test_a_store_belongs_to_one_model() -> None:
    folded_model()
    other = TrainedModel.objects.create(name="other", registry={"kind": "directory", "name": "other"}, alias="champion")
    base = ModelVersion.objects.create(
        model=other, number=1, kind="base", root_sha256="a" * 64, manifest_sha256="a" * 64
    )
    with pytest.raises(InvalidInputError, match="another model has this store"):
        state_store(base, "customers")
    assert state_store(base, "others").exact_store == "others"


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
    train_exact(ExactSpec(str(store), world.base, records, plan, settings, seed=11))
    write_serving_copy(store, world.base, directory / "served")
    return replace(world, before=model_ref(directory / "served"))


def named(store: Path) -> set[str]:
    return {record for part in read_manifest(store).plan.slices for record in part.records}


@pytest.mark.slow
def test_alice_and_then_bob_are_deleted_from_the_store_and_her_certificate_says_exact(
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
    store = tmp_path / "stores" / "customers"
    before = read_manifest(store)
    request: ErasureRequest = work_through(application(mailbox(world.world.alice)))
    failed = Job.objects.filter(state="failed").values_list("kind", "last_error", "last_error_detail")
    assert list(failed) == []
    target = request.targets.get()
    assert (report_of(UnlearningRun.objects.get())["method"], target.verdict) == (EXACT_METHOD, "PASS")
    assert read_manifest(store) == before

    release(request)
    hers = {record.record_id for record in world.world.records[world.world.alice.person]}
    assert hers <= {record for part in before.plan.slices for record in part.records}
    assert not hers & named(store)
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
    assert (method.name, method.guarantee, method.seeds) == (EXACT_METHOD, "exact_sharded", ("11",))

    # The released model is the store's own copy again, so Bob's deletion is exact too.
    serving = ModelVersion.objects.get(status="serving")
    assert exact_store(serving) == "customers"
    assert serving.manifest_sha256 in {copy.manifest_sha256 for copy in read_manifest(store).copies}
    work_through(application(mailbox(world.world.bob)))
    second = UnlearningRun.objects.order_by("created_at").last()
    assert second is not None
    assert report_of(second)["method"] == EXACT_METHOD
    assert AuditEvent.objects.filter(action="run.exact_refused").count() == 0
