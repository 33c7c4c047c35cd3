"""A case brought as far as a test needs it, by the same functions that the doors call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from deletion_service.certificates.policies import current_plan
from deletion_service.certificates.promotion import decide_evidence
from deletion_service.requests.codes import Ground
from deletion_service.requests.identity import confirm_identity
from deletion_service.requests.intake import open_request
from deletion_service.requests.models import ErasureRequest
from deletion_service.targets.batching import start_work
from deletion_service.targets.locate import fix_targets, start_search
from tests.cast import ALICE, Identifier, application, rhea, second_reviewer
from tests.simulator import Simulator, install
from tests.world import ALICE_SECRET, make_model
from workers.jobs import run_next_job
from workers.stages import STAGES


def run_all_jobs() -> None:
    """Be the worker until nothing is owed."""
    while run_next_job(["cpu"], stages=STAGES, owner="test"):
        pass


@pytest.fixture
def simulator(monkeypatch: pytest.MonkeyPatch, settings: Any) -> Simulator:
    """Machine learning that passes, unless a test alters its report."""
    return install(monkeypatch, settings)


@pytest.fixture
def case(simulator: Simulator) -> Callable[..., ErasureRequest]:
    """Alice's case, up to the evidence review."""

    def bring(who: Identifier = ALICE, *, model: bool = True) -> ErasureRequest:
        if model:
            make_model()
        request = open_request(application(who, statement=f"I lived at {ALICE_SECRET}"), actor="subject").request
        confirm_identity(request.identity_check)
        request.refresh_from_db()
        start_search(request, ground=Ground.CONSENT_WITHDRAWN, reviewer=rhea(), actor="staff:rhea")
        run_all_jobs()
        fix_targets(request, actor="staff:rhea")
        start_work(request, starter=second_reviewer(), plan=current_plan(), actor="staff:reviewer-2")
        run_all_jobs()
        request.refresh_from_db()
        return request

    return bring


def release(request: ErasureRequest, *, choice: str = "release", reason: str = "all_gates_passed") -> ErasureRequest:
    """Rhea decides on the evidence, and the worker does what follows."""
    decide_evidence(request, choice=choice, reason=reason, reviewer=rhea())
    run_all_jobs()
    request.refresh_from_db()
    return request
