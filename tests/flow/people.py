"""The people of a case, in a process of their own: each acts as soon as the workers have done their part.

    python -m tests.flow.people start --email ADDRESS --name NAME --statement TEXT
    python -m tests.flow.people finish | withdraw | decline | settled
    python -m tests.flow.people facts | opened | candidate | left

The last line printed is JSON. `facts` leaves ids and times out, so that two cases can be compared.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import django

django.setup()

from django.conf import settings  # noqa: E402 - models need the apps that setup() loads

from deletion_service.audit.models import AuditEvent  # noqa: E402
from deletion_service.audit.trail import verify_chain  # noqa: E402
from deletion_service.certificates.custody import issuer_document  # noqa: E402
from deletion_service.certificates.evidence import open_evidence  # noqa: E402
from deletion_service.certificates.issuing import issue_certificate  # noqa: E402
from deletion_service.certificates.models import Certificate, Evidence, LogEntry, Promotion, Sweep  # noqa: E402
from deletion_service.certificates.policies import current_plan  # noqa: E402
from deletion_service.certificates.promotion import decide_evidence  # noqa: E402
from deletion_service.certificates.verify import verify_certificate  # noqa: E402
from deletion_service.errors import PayloadDestroyedError  # noqa: E402
from deletion_service.requests.codes import DataClass, Ground  # noqa: E402
from deletion_service.requests.identity import confirm_identity  # noqa: E402
from deletion_service.requests.intake import open_request, withdraw_request  # noqa: E402
from deletion_service.requests.models import ErasureRequest, SealedItem  # noqa: E402
from deletion_service.requests.payload import open_sealed  # noqa: E402
from deletion_service.targets.batching import start_work  # noqa: E402
from deletion_service.targets.locate import fix_targets, start_search  # noqa: E402
from deletion_service.targets.models import Job, LedgerEntry, Sentinel, UnlearningRun  # noqa: E402
from deletion_service.targets.registries import open_registry  # noqa: E402
from ml.digests import canonical_json  # noqa: E402
from tests.cast import Identifier, application, rhea, second_reviewer  # noqa: E402

_PATIENCE_S = 240.0
# What a report says about the moment or the run it was made in, and not about the model.
_OF_THE_MOMENT = ("run_id", "cpu_seconds", "environment", "seeds")


def start(email: str, name: str, statement: str) -> ErasureRequest:
    """Alice asks and confirms, Rhea reviews, a second reviewer starts the work."""
    who = Identifier("email", email)
    said = application(who, also=(Identifier("name", name),), statement=statement)
    request = open_request(said, actor="subject").request
    confirm_identity(request.identity_check)
    request.refresh_from_db()
    start_search(request, ground=Ground.CONSENT_WITHDRAWN, reviewer=rhea(), actor="staff:rhea")
    wait(lambda: request.jobs.filter(kind="locate", state="done").exists(), "the search")
    fix_targets(request, actor="staff:rhea")
    start_work(request, starter=second_reviewer(), plan=current_plan(), actor="staff:reviewer-2")
    return request


def finish(request: ErasureRequest) -> None:
    """Rhea releases, the second reviewer issues; then the letters go out and the contact data are destroyed."""
    wait(lambda: status(request) == "evidence_review", "the verdict")
    request.refresh_from_db()
    decide_evidence(request, choice="release", reason="all_gates_passed", reviewer=rhea())
    wait(Certificate.objects.filter(target__request=request).exists, "the draft")
    issue_certificate(Certificate.objects.get(target__request=request), member=second_reviewer())
    settle(request)


def settle(request: ErasureRequest) -> None:
    """Wait until nothing is owed any more."""
    wait(lambda: is_settled(request), "letters and disposal")


def is_settled(request: ErasureRequest) -> bool:
    """Whether nothing is owed any more: letters, disposals, seals."""
    return (
        status(request) == "completed"
        and not request.sealed_items.exists()
        and not request.letters.filter(sent_at=None).exists()
        and not AuditEvent.objects.filter(seal_entry=None).exists()
    )


def status(request: ErasureRequest) -> str:
    """Where a request stands now."""
    return ErasureRequest.objects.values_list("status", flat=True).get(pk=request.pk)


def wait(claim: Callable[[], bool], what: str) -> None:
    """Wait for the workers."""
    deadline = time.monotonic() + _PATIENCE_S
    while not claim():
        failed = list(Job.objects.exclude(last_error="").values_list("kind", "last_error"))
        if failed or time.monotonic() > deadline:
            raise SystemExit(f"{what} did not come: {failed or list(Job.objects.values_list('kind', 'state'))}")
        time.sleep(0.1)


def facts() -> dict[str, Any]:
    """What is true of the only finished case, in a form in which two cases can be equal."""
    request = ErasureRequest.objects.get()
    target, certificate, evidence = request.targets.get(), Certificate.objects.get(), Evidence.objects.get()
    registry = open_registry(target.model.registry)
    serving = registry.resolve(target.model.alias)
    report = open_evidence(evidence).report.to_document()
    checked = verify_certificate(
        bytes(certificate.envelope),
        issuer=issuer_document(),
        log_proof=canonical_json(certificate.log_proof),
        evidence=bytes(certificate.evidence.document),
        model_dir=None if serving is None else registry.path(serving.number),
        accept_test_policy=True,
    )
    history = (settings.REGISTRY_ROOT / target.model.registry["name"] / "alias_history.jsonl").read_text()
    return {
        "outcome": [request.status, request.outcome, target.status, target.verdict, certificate.status],
        "moves": list(request.events.values_list("old_status", "new_status", "actor", "reason")),
        "target_moves": list(target.events.values_list("old_status", "new_status", "actor", "reason")),
        "jobs": sorted(request.jobs.values_list("kind", "round", "state")),
        "letters": sorted(request.letters.values_list("kind", flat=True)),
        "disposals": sorted(request.disposals.values_list("data_class", flat=True)),
        "sources": list(target.sources.values_list("name", "record_count", "action", "probe")),
        "contaminated": list(target.contaminated.values_list("version__number", "action", "probe")),
        "versions": [
            [v.number, v.kind, v.status, v.manifest_sha256, registry.probe_gone(v.number)]
            for v in target.model.versions.order_by("number")
        ],
        "promotions": list(Promotion.objects.values_list("epoch", "status", "to_version__number")),
        "alias": [[row["from"], row["to"]] for row in map(json.loads, history.splitlines())],
        "ledger": list(LedgerEntry.objects.values_list("number", flat=True)),
        "sentinels": list(Sentinel.objects.values_list("kind", "mark", "probes_sha256", "scores")),
        "sweeps": list(Sweep.objects.values_list("attempt", "result", "reason", "earlier")),
        "log": list(LogEntry.objects.values_list("index", "kind")),
        "audit": sorted(AuditEvent.objects.values_list("actor", "action", "object_type", "reason")),
        "chain": verify_chain(),
        "not_verified": list(checked.failed),
        "measured": {name: value for name, value in report.items() if name not in _OF_THE_MOMENT},
        "left": left_on_disk(),
    }


def left_on_disk() -> list[str]:
    """Every file below the work directory, the key store, the sources and the registry, by name."""
    roots = (settings.WORK_DIR, settings.KEY_STORE_DIR, settings.SOURCE_ROOT, settings.REGISTRY_ROOT)
    return sorted(
        str(path.relative_to(Path(root).parent)) for root in roots for path in Path(root).rglob("*") if path.is_file()
    )


def opened() -> list[list[object]]:
    """Which sealed items of this database open with the key store as it is now."""
    items = SealedItem.objects.select_related("request").order_by("data_class", "name")
    return [[item.data_class, _opens(item)] for item in items]


def _opens(item: SealedItem) -> bool:
    try:
        return bool(open_sealed(item.request, DataClass(item.data_class), item.name))
    except PayloadDestroyedError:
        return False


def candidate() -> dict[str, Any]:
    """Wait for the candidate of the only run; return its report."""
    wait(UnlearningRun.objects.filter(candidate__isnull=False).exists, "the candidate")
    return dict(UnlearningRun.objects.get().report or {})


def withdraw() -> None:
    """Alice takes her request back; the workers clear up."""
    request = ErasureRequest.objects.get()
    withdraw_request(request, actor="subject")
    wait(lambda: not request.sealed_items.exists() and not _is_at_work(request), "disposal and cancelling")


def _is_at_work(request: ErasureRequest) -> bool:
    return request.targets.exclude(status="cancelled").exists() or request.letters.filter(sent_at=None).exists()


def decline() -> None:
    """Rhea releases nothing, the second reviewer issues the report; the workers clear up."""
    request = ErasureRequest.objects.get()
    wait(lambda: status(request) == "evidence_review", "the verdict")
    request.refresh_from_db()
    decide_evidence(request, choice="decline", reason="evidence_failed", reviewer=rhea())
    wait(Certificate.objects.exists, "the report")
    issue_certificate(Certificate.objects.get(), member=second_reviewer())
    settle(request)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what")
    for name in ("--email", "--name", "--statement"):
        parser.add_argument(name, default="")
    options = parser.parse_args()
    acts: dict[str, Callable[[], object]] = {
        "start": lambda: start(options.email, options.name, options.statement).pk,
        "finish": lambda: finish(ErasureRequest.objects.get()),
        "settled": lambda: settle(ErasureRequest.objects.get()),
        "facts": facts,
        "opened": opened,
        "candidate": candidate,
        "withdraw": withdraw,
        "decline": decline,
        "left": left_on_disk,
    }
    sys.stdout.write(json.dumps(acts[options.what]()) + "\n")


if __name__ == "__main__":
    main()
