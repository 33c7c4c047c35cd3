"""Verdict policies: read from their versioned files, recorded when first used, test policies kept out of production."""

from __future__ import annotations

from typing import Final

from django.conf import settings

from deletion_service.certificates.models import VerdictPolicy
from deletion_service.errors import EvidenceMissingError, TestOnlyError
from deletion_service.targets.batching import RunPlan
from ml import specs
from ml.errors import SpecError
from ml.policies import load_policy

# A method of this name does not unlearn: tests use it to bring a candidate of their own.
TEST_METHOD_PREFIX: Final = "test_"


def current_plan() -> RunPlan:
    """Return what a run that starts now is bound to: method, policy and, if the operator fixed one, the seed.

    Raises:
        TestOnlyError: the configured policy or method was made for tests.
    """
    policy = current_policy()
    refuse_test_candidate(settings.UNLEARNING_METHOD)
    return RunPlan(
        method=settings.UNLEARNING_METHOD,
        method_settings=settings.METHOD_SETTINGS,
        policy_name=policy.name,
        policy_sha256=policy.sha256,
        seed=settings.FIXED_SEED,
    )


def current_policy() -> specs.VerdictPolicy:
    """Return the policy that judges what starts now.

    Raises:
        TestOnlyError: it was made for tests, outside tests.
    """
    policy = load_policy(settings.VERDICT_POLICY)
    refuse_test_policy(policy)
    return policy


def policy_of_run(name: str, sha256: str) -> specs.VerdictPolicy:
    """Return the policy a run was bound to.

    Raises:
        EvidenceMissingError: the file, or what the meta-evaluation leaves of it, changed since the run was planned.
        TestOnlyError: a policy made for tests, outside tests.
    """
    try:
        policy = load_policy(name)
    except SpecError as exc:
        raise EvidenceMissingError(f"verdict policy {name} is gone since the run was planned; plan another") from exc
    if policy.sha256 != sha256:
        raise EvidenceMissingError(f"verdict policy {name} changed after the run was planned; plan another attempt")
    refuse_test_policy(policy)
    return policy


def record_policy(policy: specs.VerdictPolicy) -> VerdictPolicy:
    """Keep a policy document for ever, as it was when evidence was judged by it."""
    row, _ = VerdictPolicy.objects.get_or_create(
        sha256=policy.sha256,
        defaults={
            "name": policy.name,
            "version": policy.version,
            "purpose": policy.purpose,
            "document": policy.to_document(),
        },
    )
    return row


def refuse_test_candidate(method: str) -> None:
    """Raise `TestOnlyError` for a candidate that was made beforehand for a test, unless tests are running."""
    if method.startswith(TEST_METHOD_PREFIX) and not settings.TESTING:
        raise TestOnlyError(f"method {method} yields a candidate made for tests; it can be neither run nor released")


def refuse_test_policy(policy: specs.VerdictPolicy) -> None:
    """Raise `TestOnlyError` for a policy made for tests, unless tests are running."""
    if policy.purpose != "release" and not settings.TESTING:
        raise TestOnlyError(f"verdict policy {policy.name} was made for tests; choose one whose purpose is release")
