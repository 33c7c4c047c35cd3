"""`manage.py rerun_evidence`: possible while the records can be opened, never afterwards, and it leaves nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.core.management import call_command
from django.core.management.base import CommandError

from deletion_service.audit.models import AuditEvent
from deletion_service.certificates.models import Evidence
from deletion_service.errors import WorkspaceError
from deletion_service.requests.codes import DataClass
from deletion_service.requests.models import ErasureRequest
from deletion_service.requests.payload import destroy_class
from deletion_service.terminal import FAILED_CHECK, USAGE
from ml.reports import VerificationReport
from ml.specs import VerificationSpec
from tests.flow.conftest import case, simulator  # noqa: F401 - fixtures
from tests.ml.passing import edited
from tests.simulator import Simulator
from workers.workspace import check_wiped, rerun_scratch, wipe_orphans

pytestmark = pytest.mark.django_db
ENVIRONMENT = {"device": "cpu", "dtype": "float32", "threads": "1", "code_sha256": "e" * 64}


def on_record(report: VerificationReport) -> VerificationReport:
    return replace(report, environment=ENVIRONMENT)


@pytest.fixture
def evidence(case: Callable[..., ErasureRequest], simulator: Simulator) -> Evidence:  # noqa: F811
    """Alice's evidence, with all that a rerun needs on record."""
    simulator.alter = on_record
    case()
    return Evidence.objects.get()


@pytest.fixture
def again(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> list[VerificationSpec]:  # noqa: F811
    """What is measured again; the machine-learning side answers as before, until `alter` says otherwise."""
    asked: list[VerificationSpec] = []

    def verify(spec: VerificationSpec, **rest: Any) -> VerificationReport:
        assert b"person-" in Path(spec.forget.path).read_bytes()
        asked.append(spec)
        return simulator.verify(spec, **rest)

    monkeypatch.setattr("workers.rerun.run_verification", verify)
    return asked


def scratch() -> list[Path]:
    return list((Path(django_settings.WORK_DIR) / "scratch").glob("rerun-*"))


def rerun(evidence: Evidence, *more: str) -> str:
    said = StringIO()
    call_command("rerun_evidence", evidence.pk, *more, stdout=said, stderr=StringIO())
    return said.getvalue()


def test_evidence_comes_out_again_from_the_sealed_records_and_nothing_stays(
    evidence: Evidence, again: list[VerificationSpec]
) -> None:
    assert "Result: reproduced" in rerun(evidence)

    (spec,) = again
    assert spec.candidate.manifest_sha256 == evidence.run.candidate.manifest_sha256  # type: ignore[union-attr]
    assert "rerun-" in spec.parts_dir  # no part measured before is taken up
    assert scratch() == []
    event = AuditEvent.objects.get(action="evidence.rerun")
    assert (event.object_id, event.reason) == (evidence.pk, "reproduced")


def test_a_number_that_does_not_come_out_again_fails_and_is_named(
    evidence: Evidence,
    again: list[VerificationSpec],
    simulator: Simulator,  # noqa: F811
) -> None:
    simulator.alter = lambda report: edited(on_record(report), "attacks", 0, residual_upper=0.3)
    said = StringIO()
    with pytest.raises(CommandError) as failed:
        call_command("rerun_evidence", evidence.pk, stdout=said, stderr=StringIO())

    assert failed.value.returncode == FAILED_CHECK
    assert "residual_upper: 0.08 recorded, 0.3 now" in said.getvalue()
    assert AuditEvent.objects.get(action="evidence.rerun").reason == "not_reproduced"


def test_an_auditor_s_own_seed_compares_verdicts(evidence: Evidence, again: list[VerificationSpec]) -> None:
    document = json.loads(rerun(evidence, "--seed", "77", "--json"))
    assert (document["reproduced"], document["seed"], document["groups"]) == (True, "77", [])
    assert again[0].seed == 77


def test_after_the_payload_is_destroyed_nobody_can_rerun(evidence: Evidence, again: list[VerificationSpec]) -> None:
    destroy_class(evidence.target.request, DataClass.PAYLOAD, actor="worker", sign=lambda content: ("key", "00"))

    with pytest.raises(CommandError, match="payload_destroyed") as refused:
        rerun(evidence)
    assert refused.value.returncode == USAGE
    assert again == []
    assert scratch() == []


def test_evidence_of_an_attempt_that_measured_nothing_cannot_be_repeated(
    case: Callable[..., ErasureRequest],  # noqa: F811
    again: list[VerificationSpec],
) -> None:
    case()  # its report names no device
    with pytest.raises(CommandError, match="invalid_spec"):
        rerun(Evidence.objects.get())
    assert again == []


def test_evidence_that_does_not_exist_is_a_usage_error() -> None:
    with pytest.raises(CommandError) as refused:
        call_command("rerun_evidence", "evd_nobody")
    assert refused.value.returncode == USAGE


def test_the_folder_of_a_rerun_is_left_alone_while_it_runs_and_swept_when_it_is_dead(evidence: Evidence) -> None:
    dead = Path(django_settings.WORK_DIR) / "scratch" / f"rerun-{evidence.pk}-dead"
    dead.mkdir(parents=True)
    (dead / "forget.jsonl").write_text("Alice")
    with rerun_scratch(evidence.pk) as alive:
        assert alive != dead
        wipe_orphans()
        assert scratch() == [alive]
        with pytest.raises(WorkspaceError, match="rerun-"):
            check_wiped(evidence.target.request)
    assert scratch() == []
