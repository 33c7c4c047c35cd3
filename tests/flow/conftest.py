"""A case brought as far as a test needs it, by the same functions that the doors call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deletion_service.certificates.policies import current_plan
from deletion_service.certificates.promotion import decide_evidence
from deletion_service.requests.codes import Ground
from deletion_service.requests.identity import confirm_identity
from deletion_service.requests.intake import Application, open_request
from deletion_service.requests.models import ErasureRequest
from deletion_service.targets.batching import start_work
from deletion_service.targets.locate import fix_targets, start_search
from tests.cast import ALICE, Identifier, application, rhea, second_reviewer
from tests.flow.stand import Stand, database_of_its_own, deployed, until
from tests.ml import conftest as memorised
from tests.simulator import Simulator, install
from tests.tiny import TinyWorld
from tests.world import ALICE_SECRET, make_model
from workers.jobs import run_next_job
from workers.stages import STAGES

tiny = memorised.tiny


def run_all_jobs() -> None:
    """Be the worker until nothing is owed."""
    while run_next_job(["cpu"], stages=STAGES, owner="test"):
        pass


def search_owed(said: Application) -> ErasureRequest:
    """A case whose subject has confirmed and whose search Rhea has started."""
    request = open_request(said, actor="subject").request
    confirm_identity(request.identity_check)
    request.refresh_from_db()
    start_search(request, ground=Ground.CONSENT_WITHDRAWN, reviewer=rhea(), actor="staff:rhea")
    return request


def begin_work(request: ErasureRequest) -> None:
    """A second person starts what the search found."""
    fix_targets(request, actor="staff:rhea")
    start_work(request, starter=second_reviewer(), plan=current_plan(), actor="staff:reviewer-2")


def work_through(said: Application) -> ErasureRequest:
    """A case from what the subject said up to the evidence review, the worker being this process."""
    request = search_owed(said)
    run_all_jobs()
    begin_work(request)
    run_all_jobs()
    request.refresh_from_db()
    return request


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
        return work_through(application(who, statement=f"I lived at {ALICE_SECRET}"))

    return bring


@contextmanager
def twins_enough() -> Iterator[None]:
    """Let a second attempt be planned, although the short policy's few twins cannot carry one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deletion_service.targets.batching.unattainable", lambda policy, attempt: ())
        yield


def release(request: ErasureRequest, *, choice: str = "release", reason: str = "all_gates_passed") -> ErasureRequest:
    """Rhea decides on the evidence, and the worker does what follows."""
    decide_evidence(request, choice=choice, reason=reason, reviewer=rhea())
    run_all_jobs()
    request.refresh_from_db()
    return request


@dataclass(frozen=True, slots=True)
class Played:
    """A finished case on a deployment whose processes have ended: what is true of it, and a backup from before."""

    stand: Stand
    facts: dict[str, Any]
    backup: Path
    opened_then: list[list[object]]


def play(stand: Stand, world: TinyWorld, *die: str) -> Played:
    """Alice's case from her request to the last letter, with a runner that dies where it is told."""
    stand.begin_runner(world, *die)
    stand.ask(world)
    backup, opened = stand.back_up(), stand.people("opened")
    stand.people("finish")
    # What the runner was owed a death for after the last write, it has died of by now.
    until(lambda: not die or "notify:commit" in stand.deaths, what="the last death")
    facts = stand.people("facts")
    # Killed, not stopped: what a runner would tidy up at its end stays where it is, such as a journal.
    stand.kill("runner")
    return Played(stand, facts, backup, opened)


@pytest.fixture(scope="session")
def undisturbed(tiny: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    """Alice's case, in which nothing happened."""
    with deployed(tmp_path_factory.mktemp("undisturbed"), tiny) as stand:
        yield play(stand, tiny)


@pytest.fixture(scope="session", params=["sqlite", "postgres"])
def killed(
    request: pytest.FixtureRequest, tiny: TinyWorld, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Played]:
    """The same case with a runner that died at every write of every stage, on each database."""
    with (
        database_of_its_own(request.param) as url,
        deployed(tmp_path_factory.mktemp(f"killed-{request.param}"), tiny, database_url=url) as stand,
    ):
        yield play(stand, tiny, "everywhere")
