"""The models that methods are compared on: one that learned everybody, and two that never learned the forgotten.

A base learns the world's base people; `before` is fine-tuned on customers too, `gold` on the same without the
forgotten, `second gold` is made as gold is from another seed: how far two retrained models lie apart is what no
method can be asked to beat. Everything is a function of sizes and seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Final

from benchmarks.pool import made_once, written_once
from benchmarks.populations import Population, Sizes
from ml.data.people import World
from ml.data.questions import write_bank
from ml.data.records import write_records
from ml.data.synthetic import Stranger
from ml.digests import document_sha256
from ml.documents import plain_object
from ml.errors import SpecError
from ml.loop import ignore_progress
from ml.models.load import load_model
from ml.models.save import publish_model
from ml.models.scratch import train_tokenizer, untrained_llama
from ml.reference import Stage, train_stage
from ml.specs import FileRef, ModelRef, Record

REFERENCES: Final = ("base", "before", "gold", "second gold")
"""The models no method made."""

_SECOND: Final = 1000
"""How far the seed of the second gold's fine-tuning lies from the first's."""


class MethodWorld:
    """People of one seed, of whom some customers are to be deleted, and the models below `root`.

    Args:
        forgotten: how many customers are to be deleted.
        earlier: how many were deleted before them, and are neither forgotten now nor kept.
        device: where models are trained, edited and asked.
    Raises:
        SpecError: nobody would be deleted, or nobody kept.
    """

    def __init__(
        self, root: Path, sizes: Sizes, *, seed: int, forgotten: int, earlier: int = 0, device: str = "cpu"
    ) -> None:
        if forgotten < 1 or earlier < 0 or earlier + forgotten >= sizes.customers:
            raise SpecError("a comparison deletes at least one customer and keeps at least one")
        self.root, self.sizes, self.seed, self.device = root, sizes, seed, device
        self.population: Population = sizes.population(seed)
        self.world: World = self.population.world
        gone = earlier + forgotten
        self.forgotten: tuple[Stranger, ...] = self.world.customers[earlier:gone]
        self.kept: tuple[Stranger, ...] = self.world.customers[gone:]
        self._name = f"{forgotten}-after-{earlier}"
        root.mkdir(parents=True, exist_ok=True)

    # --- models ---

    def model(self, name: str) -> ModelRef:
        """One of `REFERENCES`, made if it is not there."""
        everybody = (*self.world.base, *self.world.customers)
        retained = (*self.world.base, *self.kept)
        if name == "base":
            return self._trained("base", self.untrained, self.world.base, self.sizes.base, self.seed)
        if name == "before":
            return self._trained("before", self._base, everybody, self.sizes.fine_tune, self.seed)
        # Models that leave out different people share base and before, not gold.
        own = f"{name.replace(' ', '-')}-{self._name}"
        seed = self.seed if name == "gold" else self.seed + _SECOND
        return self._trained(own, self._base, retained, self.sizes.fine_tune, seed)

    def _base(self) -> ModelRef:
        return self.model("base")

    def untrained(self) -> ModelRef:
        """The model before anything was learned, with a tokenizer made from texts about nobody."""
        shape = self.sizes.shape

        def make(directory: Path) -> None:
            texts = self.population.tokenizer_texts()
            tokenizer = train_tokenizer(texts, vocabulary=shape.vocabulary, context=shape.context)
            publish_model(untrained_llama(shape, tokenizer, seed=self.seed), tokenizer, directory)

        return made_once(self.root / "models" / "untrained", make)

    def _trained(
        self, name: str, start: Callable[[], ModelRef], people: Sequence[Stranger], stage: Stage, seed: int
    ) -> ModelRef:
        def make(directory: Path) -> None:
            ref = start()
            loaded = load_model(ref, device=self.device)
            checkpoint = self.root / "work" / f"{name}.safetensors"
            train_stage(
                loaded.model,
                loaded.tokenizer,
                [*self.world.corpus(people), *(record for record, _ in self.population.besides)],
                stage,
                directory,
                context=loaded.context,
                seed=seed,
                phase=f"training {name}",
                config_sha256=document_sha256([plain_object(self.sizes), seed, name, ref.manifest_sha256]),
                checkpoint_path=checkpoint,
                on_progress=ignore_progress,
                device=self.device,
            )
            checkpoint.unlink(missing_ok=True)

        return made_once(self.root / "models" / name, make)

    # --- texts ---

    @cached_property
    def forget(self) -> FileRef:
        """What is on file about the forgotten."""
        return self._file(f"forget-{self._name}", self.world.corpus(self.forgotten))

    @cached_property
    def retain(self) -> FileRef:
        """What is on file about everybody else whom `before` learned."""
        return self._file(f"retain-{self._name}", self.world.corpus((*self.world.base, *self.kept)))

    @cached_property
    def neighbours(self) -> FileRef:
        """Records of retained people who share a value with one of the forgotten."""
        shared = [name for name, attribute in self.world.bank.attributes.items() if attribute.shared]
        taken = {(name, person.values[name]) for person in self.forgotten for name in shared}
        near = [p for p in (*self.world.base, *self.kept) if any((n, p.values[n]) in taken for n in shared)]
        return self._file(f"neighbours-{self._name}", self.world.corpus(near))

    @cached_property
    def bank(self) -> FileRef:
        """The question bank."""
        return written_once(self.root / "question_bank.json", lambda path: write_bank(path, self.world.bank))

    def _file(self, name: str, records: Sequence[Record]) -> FileRef:
        return written_once(self.root / f"{name}.jsonl", lambda path: write_records(path, records))
