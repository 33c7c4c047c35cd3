"""Who was to be forgotten and was not: known again by keyed digests when they come back.

Rows leave the training source whatever the evidence says, so that the next training cannot learn them. Where nothing
was released, the model that serves still learned from them, and no search finds that out any more. Must never hold an
identifier: without the key store a mark says nothing about anybody.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from django.conf import settings
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.utils import timezone

from deletion_service.requests.keystore import key_store
from deletion_service.requests.models import ErasureRequest
from deletion_service.requests.statuses import TERMINAL_STATUSES
from deletion_service.targets.models import ErasureTarget, SubjectMark, UnlearningRun
from deletion_service.targets.sources import Keys
from deletion_service.targets.statuses import TargetStatus, VersionStatus


def mark_subject(target: ErasureTarget, keys: Keys) -> None:
    """Mark a target with the identifiers that led to it."""
    marks = [SubjectMark(target=target, digest=digest) for digest in _digests(keys)]
    SubjectMark.objects.bulk_create(marks, ignore_conflicts=True)


def earlier_attempts(request: ErasureRequest) -> int:
    """How often the same person was unlearned from one of the request's models, judged, and not released.

    Asking again must not bring back the level of a first attempt: whoever tries until it passes would be believed.
    """
    counts = [0]
    for target in request.targets.all():
        others = (
            _same_person(target.marks.values_list("digest", flat=True))
            .filter(model=target.model)
            .exclude(request=request)
        )
        tried = UnlearningRun.objects.filter(batch__targets__in=others, status=UnlearningRun.Status.VERIFIED)
        counts.append(tried.distinct().count())
    return max(counts)


def still_learned(keys: Keys, *, model_names: list[str]) -> list[str]:
    """Names of models that learned from the person and serve as they were, after a deletion that was not released.

    Args:
        model_names: the models asked about; none means all.
    """
    targets = _same_person(_digests(keys)).filter(status=TargetStatus.NOT_RELEASED)
    targets = targets.exclude(batch__before__status=VersionStatus.RETIRED)
    if model_names:
        targets = targets.filter(model__name__in=model_names)
    return sorted(set(targets.values_list("model__name", flat=True)))


def forget_marks() -> int:
    """Delete marks with no further use: of people who were forgotten or never worked on, of models whose old weights
    are gone, and of requests withdrawn long ago."""
    long_ago = timezone.now() - timedelta(days=settings.MARK_DAYS)
    tried = UnlearningRun.objects.filter(batch__targets=OuterRef("target"), status=UnlearningRun.Status.VERIFIED)
    closed = SubjectMark.objects.filter(target__request__status__in=TERMINAL_STATUSES).annotate(tried=Exists(tried))
    gone = Q(target__status=TargetStatus.NOT_RELEASED, target__batch__before__status=VersionStatus.RETIRED)
    idle = Q(target__status=TargetStatus.CANCELLED) & (Q(tried=False) | Q(target__request__closed_at__lt=long_ago))
    over = closed.filter(gone | idle | Q(target__status=TargetStatus.RELEASED))
    deleted, _ = SubjectMark.objects.filter(pk__in=list(over.values_list("pk", flat=True))).delete()
    return deleted


def _same_person(digests: Iterable[str]) -> QuerySet[ErasureTarget]:
    """Targets that any of the digests led to, but for those that ended in a release."""
    return ErasureTarget.objects.filter(marks__digest__in=digests).exclude(status=TargetStatus.RELEASED).distinct()


def _digests(keys: Keys) -> list[str]:
    store = key_store()
    return sorted(store.digest("subject-mark", f"{kind}\0{value}".encode()) for kind, value in keys)
