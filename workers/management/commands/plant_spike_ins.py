"""`manage.py plant_spike_ins SOURCE --seed N`: put synthetic people into a training source, before it is trained on."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from deletion_service.errors import DomainError
from deletion_service.targets.sources.jsonl_directory import JsonlDirectorySource
from ml.errors import MlError
from workers.spike_ins import plant_spike_ins


class Command(BaseCommand):
    help = (
        "Write synthetic people into a training source, marked as such. Train on the source afterwards: each deletion "
        "then takes one of them along, and later versions are tested for that deletion by them."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("source", help="name of the training source below LETHE_SOURCE_ROOT")
        parser.add_argument("--seed", type=int, required=True, help="decides who they are; one file a seed")
        parser.add_argument("--people", type=int, default=20, help="one is used up by each deletion (default 20)")
        parser.add_argument("--forms", type=int, default=3, help="records a fact, as people on file have (default 3)")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            source = JsonlDirectorySource.from_settings({"name": options["source"]})
            marks = plant_spike_ins(
                source, seed=options["seed"], people=options["people"], forms_per_fact=options["forms"]
            )
        except (DomainError, MlError) as exc:
            raise CommandError(str(exc)) from exc
        self.stdout.write(f"{len(marks)} spike-ins planted in {source.name}: {marks[0]} to {marks[-1]}")
