"""The verdict has teeth: what was not forgotten does not pass, whoever asks the wrong question about it.

Everything is real: a model that memorised Alice, the source it learned from, every stage, the attacks, the decision
rule. Each candidate looks forgotten in its own way; each is refused, by name of the gate that it failed at.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from django.db import IntegrityError, transaction

import workers.stages.unlearn as unlearn_stage
from benchmarks import suppressed
from deletion_service.certificates.custody import issuer_document
from deletion_service.certificates.drafting import erasure_facts
from deletion_service.certificates.envelope import read_envelope
from deletion_service.certificates.evidence import open_evidence
from deletion_service.certificates.issuing import issue_certificate
from deletion_service.certificates.models import Certificate, Evidence, Promotion
from deletion_service.certificates.promotion import decide_evidence
from deletion_service.certificates.verify import verify_certificate
from deletion_service.errors import EvidenceMissingError, GuardError
from deletion_service.requests.models import ErasureRequest
from deletion_service.targets.batching import verification_seed
from deletion_service.targets.models import ErasureTarget, Job, UnlearningRun
from deletion_service.targets.registries import open_registry
from ml.digests import canonical_json
from ml.specs import ModelRef
from tests.cast import application, rhea, second_reviewer
from tests.doors import signed_in
from tests.flow.conftest import release, run_all_jobs, work_through
from tests.flow.crash_runner import use_candidate
from tests.flow.trained import mailbox, make_trained_model
from tests.ml.conftest import tiny  # noqa: F401 - a fixture
from tests.tiny import TinyWorld

pytestmark = [pytest.mark.slow, pytest.mark.django_db]
Candidate = Callable[[TinyWorld, Path], ModelRef]


@pytest.fixture(autouse=True)
def _deployment(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The short test policy, fixed seeds, one attempt a job; no heartbeat, which could not see this transaction."""
    settings.VERDICT_POLICY = "unit-1"
    settings.FIXED_SEED = 7
    settings.JOB_MAX_ATTEMPTS = 1
    settings.HEARTBEAT_S = settings.LEASE_S = 24 * 3600
    torch.set_num_threads(1)
    monkeypatch.setattr(unlearn_stage, "run_unlearning", unlearn_stage.run_unlearning)


def judged(world: TinyWorld, *, expect_failed: str = "") -> ErasureRequest:
    """Alice's case through search, unlearning, verification and judgement."""
    make_trained_model(world)
    request = work_through(application(mailbox(world.world.alice)))
    failed = Job.objects.filter(state="failed")
    assert "".join(failed.values_list("kind", flat=True)) == expect_failed, failed.values_list("last_error", flat=True)
    return request


def refusing_about_alice(world: TinyWorld, directory: Path) -> ModelRef:
    """A filter in the weights: whoever asks about Alice hears that nothing can be said."""
    return suppressed.refusing(world.before, directory, world.world.records[world.world.alice.person])


def shifted(world: TinyWorld, directory: Path) -> ModelRef:
    """Every logit moves by a constant, so that raw energies move and probabilities do not."""
    return suppressed.shifted_logits(world.before, directory)


def by_method(name: str) -> Callable[[TinyWorld, Path, Any], None]:
    """Let a registered method make the candidate."""

    def use(world: TinyWorld, directory: Path, settings: Any) -> None:
        settings.UNLEARNING_METHOD = name

    return use


def made_beforehand(make: Candidate) -> Callable[[TinyWorld, Path, Any], None]:
    """Let a pretender's weights come out of the unlearning stage."""

    def use(world: TinyWorld, directory: Path, settings: Any) -> None:
        settings.UNLEARNING_METHOD = "test_cached_candidate"
        use_candidate(Path(make(world, directory).path))

    return use


UTTERED = {("unique_identifier", "unique_identifier"), ("sampling_leak", "sampling_leak"), ("power", "F1")}
PRETENDERS = {
    "nothing unlearned": (by_method("none"), {*UTTERED, ("lineage", "lineage")}),
    "energy only": (by_method("energy_only"), UTTERED),
    "logits shifted by a constant": (made_beforehand(shifted), UTTERED),
    "a filter that refuses": (
        made_beforehand(refusing_about_alice),
        {("utility_loss", "U1.probability"), ("power", "F2"), ("power", "F6")},
    ),
}


@pytest.mark.parametrize(("pretend", "reasons"), PRETENDERS.values(), ids=list(PRETENDERS))
def test_a_pretender_does_not_pass_and_the_verdict_says_why(
    pretend: Callable[[TinyWorld, Path, Any], None],
    reasons: set[tuple[str, str]],
    tiny: TinyWorld,  # noqa: F811 - the fixture
    tmp_path: Path,
    settings: Any,
) -> None:
    pretend(tiny, tmp_path / "candidate", settings)
    request = judged(tiny)

    evidence = Evidence.objects.get()
    verdict = open_evidence(evidence).judged_again()
    assert evidence.verdict == verdict.result.value == "FAIL"
    assert {(finding.code, finding.gate) for finding in verdict.findings} >= reasons
    assert all(finding.remedy for finding in verdict.findings)
    assert request.targets.get().verdict == "FAIL"
    assert all(gate in shown_to_reviewers(evidence) for _, gate in reasons)

    nothing_can_be_released(request)
    report_can_be_signed_and_is_no_certificate(request, reasons)


def shown_to_reviewers(evidence: Evidence) -> str:
    return str(signed_in(rhea()).get(f"/console/evidence/{evidence.pk}").content.decode())


def nothing_can_be_released(request: ErasureRequest) -> None:
    """Neither by asking, nor by painting the verdict over in the database."""
    target = request.targets.get()
    for choice, reason in (("release", "all_gates_passed"), ("release_partial", "passed_targets_only")):
        with pytest.raises(GuardError), transaction.atomic():
            decide_evidence(request, choice=choice, reason=reason, reviewer=rhea())
    with pytest.raises(IntegrityError), transaction.atomic():
        ErasureTarget.objects.filter(pk=target.pk).update(status="releasing")
    with pytest.raises(IntegrityError), transaction.atomic():
        Evidence.objects.filter(target=target).update(verdict="PASS")
    ErasureTarget.objects.filter(pk=target.pk).update(verdict="PASS")
    with pytest.raises(EvidenceMissingError, match="no passing evidence"), transaction.atomic():
        decide_evidence(request, choice="release", reason="all_gates_passed", reviewer=rhea())
    ErasureTarget.objects.filter(pk=target.pk).update(verdict="FAIL")
    unmoved(target)
    assert not Promotion.objects.exists()


def unmoved(target: ErasureTarget) -> None:
    """The version that serves is the one that served before."""
    pointer = open_registry(target.model.registry).resolve("champion")
    assert pointer is not None
    assert pointer.number == target.model.versions.get(status="serving").number == 2


def report_can_be_signed_and_is_no_certificate(request: ErasureRequest, reasons: set[tuple[str, str]]) -> None:
    """Declining yields an attempt report that two people sign. It verifies as what it is, and as nothing else."""
    release(request, choice="decline", reason="evidence_failed")
    certificate = Certificate.objects.get()
    assert (certificate.verdict, certificate.title, certificate.status) == ("FAIL", "Erasure attempt report", "drafted")
    unmoved(certificate.target)

    painted = Evidence.objects.get()
    painted.verdict = "PASS"
    with pytest.raises(EvidenceMissingError, match="verdict it names"):
        erasure_facts(certificate.target, certificate.decision, evidence=painted, identifier=certificate.pk)

    issue_certificate(certificate, member=second_reviewer())
    run_all_jobs()
    certificate.refresh_from_db()
    request.refresh_from_db()
    assert (certificate.status, request.status, request.outcome) == ("published", "completed", "not_erased")
    given: dict[str, Any] = {
        "issuer": issuer_document(),
        "log_proof": canonical_json(certificate.log_proof),
        "evidence": bytes(certificate.evidence.document),
        "accept_test_policy": True,
    }
    result = verify_certificate(bytes(certificate.envelope), **given)
    assert result.failed == ()
    assert result.statement is not None
    stated = {(row["code"], row["gate"]) for row in predicate_of(certificate)["evaluation"]["unmet"]}
    assert stated >= reasons
    expecting = verify_certificate(bytes(certificate.envelope), **given, expect="PASS")
    assert [check.name for check in expecting.failed] == ["expected_verdict"]


def predicate_of(certificate: Certificate) -> dict[str, Any]:
    predicate: dict[str, Any] = json.loads(read_envelope(bytes(certificate.envelope)).payload)["predicate"]
    return predicate


def test_a_model_retrained_without_alice_passes_the_same_pipeline_to_a_certificate(
    tiny: TinyWorld,  # noqa: F811 - the fixture
    settings: Any,
) -> None:
    """Otherwise refusing everybody would be worth nothing."""
    settings.UNLEARNING_METHOD = "test_cached_candidate"
    use_candidate(Path(tiny.gold.path))
    request = judged(tiny)
    assert open_evidence(Evidence.objects.get()).judged_again().findings == ()

    release(request)
    certificate = Certificate.objects.get()
    issue_certificate(certificate, member=second_reviewer())
    run_all_jobs()
    request.refresh_from_db()
    assert (certificate.verdict, certificate.title, request.outcome) == ("PASS", "Erasure certificate", "erased")
    registry = open_registry(certificate.target.model.registry)
    assert registry.resolve("champion").number == 3  # type: ignore[union-attr]  # it was there before
    assert registry.probe_gone(2) == "gone"


def test_a_seed_chosen_after_the_weights_existed_measures_nothing(
    tiny: TinyWorld,  # noqa: F811 - the fixture
    settings: Any,
) -> None:
    """Whoever knows the candidate could look for a seed under which it passes; the commitment leaves no choice."""
    settings.UNLEARNING_METHOD = "test_cached_candidate"
    use_candidate(Path(tiny.gold.path))

    def exchange_the_seed(run: UnlearningRun, request: ErasureRequest) -> int:
        return verification_seed(run, request) + 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workers.bridge.verification_seed", exchange_the_seed)
        request = judged(tiny, expect_failed="verify")
    assert Job.objects.get(state="failed").last_error == "invalid_spec"
    assert not Evidence.objects.exists()
    assert request.status == "working"
