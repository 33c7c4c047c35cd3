"""Sealed evidence of a real run comes out again, number by number, while the person's records can be opened.

Everything is real: a model that memorised Alice, the source it learned from, the seals, the attacks.
"""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.core.management import call_command

from deletion_service.certificates.evidence import open_evidence
from deletion_service.certificates.evidence_document import validate_evidence
from deletion_service.certificates.models import Evidence
from tests.flow.test_verdict_has_teeth import _deployment, judged  # noqa: F401 - a fixture, and Alice's case
from tests.ml.conftest import tiny  # noqa: F401 - a fixture
from tests.tiny import TinyWorld

pytestmark = [pytest.mark.slow, pytest.mark.django_db]


def test_what_the_service_measured_and_sealed_comes_out_again(
    tiny: TinyWorld,  # noqa: F811 - the fixture
    settings: Any,
) -> None:
    settings.UNLEARNING_METHOD = "none"
    judged(tiny)
    evidence, said, progress = Evidence.objects.get(), StringIO(), StringIO()
    validate_evidence(json.loads(bytes(evidence.document)))

    call_command("rerun_evidence", evidence.pk, "--json", stdout=said, stderr=progress)

    document = json.loads(said.getvalue())
    assert (document["reproduced"], document["recorded_verdict"]) == (True, "FAIL")
    assert {float(group["largest"]) for group in document["groups"]} == {0.0}
    assert sum(group["numbers"] for group in document["groups"]) > 500
    assert "tokens merged: 0 of 1" in progress.getvalue()  # measured, not taken up
    assert document["seed"] == open_evidence(evidence).report.seeds["verification"]
    left = [path for path in Path(django_settings.WORK_DIR).rglob("*.jsonl") if path.is_file()]
    assert left == []
    for secret in (*tiny.world.alice.values.values(), *tiny.world.alice.name.split()):
        assert secret not in said.getvalue() + progress.getvalue()
