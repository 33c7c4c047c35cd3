"""`manage.py rerun_evidence ID`: measure a target's evidence again while the person's records can still be opened.

Exit status as `lethe evidence rerun`: 0 reproduced (with --seed: the same verdict), 1 not, 2 it could not be run.
"""

from __future__ import annotations

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from deletion_service.certificates.models import Evidence
from deletion_service.certificates.rerun import rerun_lines
from deletion_service.errors import DomainError
from deletion_service.terminal import FAILED_CHECK, USAGE, visible
from ml.errors import MlError
from ml.specs import Progress
from workers.rerun import rerun_evidence


class Command(BaseCommand):
    help = (
        "Measure the evidence of a target again, with its recorded seed or your own, and compare. Possible from the "
        "verdict until the case is released or closed: then the person's records are destroyed."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("evidence", help="its id, evd_...")
        parser.add_argument("--seed", type=int, help="your own seed: compares verdicts instead of numbers")
        parser.add_argument("--json", action="store_true", help="print JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        evidence = Evidence.objects.filter(pk=options["evidence"]).first()
        if evidence is None:
            raise CommandError(f"there is no evidence {options['evidence']}", returncode=USAGE)
        try:
            result = rerun_evidence(evidence, seed=options["seed"], on_progress=self._say, actor="cli")
        except (DomainError, MlError) as exc:
            raise CommandError(f"{exc.code}: {exc}", returncode=USAGE) from exc
        if options["json"]:
            self.stdout.write(json.dumps(result.to_document(), indent=2, sort_keys=True))
        else:
            self.stdout.write("\n".join(visible(line) for line in rerun_lines(result)))
        if not result.holds:
            raise CommandError("the evidence was not reproduced", returncode=FAILED_CHECK)

    def _say(self, progress: Progress) -> None:
        if progress.done in (0, progress.total):
            self.stderr.write(f"{progress.phase}: {progress.done} of {progress.total}")
