"""All measurements of one verification, each a part that is measured once and then read from disk.

Roles are the models measured: "before", "base", "merged" (the candidate in full precision) and the other forms in which
it is served (`ml.models.served`). One model is in memory at a time, besides the candidate while a copy of it is made.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Final, Literal, TypeVar, cast

import torch
import transformers
from torch import Tensor

from ml.attacks.attack import ATTACKS
from ml.attacks.exposure import DEFAULT_ROWS as BATCH_ROWS
from ml.attacks.exposure import ValueContest, contests, same_context_difference, value_log_probs
from ml.attacks.extraction import greedy_match_length
from ml.attacks.fused import (
    DEFAULT_BUDGET,
    PLAIN,
    SamplingScheme,
    TokenStatistics,
    compressed_bytes,
    fused_pass,
    served_scheme,
)
from ml.attacks.generation import DEFAULT_ROWS as ANSWER_ROWS
from ml.attacks.generation import Prompt, answer_hits, greedy_answers, make_prompts, settled
from ml.attacks.mean_loss import mean_loss
from ml.attacks.relearning import PersonalAdapters, relearn, watched_epochs
from ml.data.choices import read_choices
from ml.data.collate import EncodedText, encode_records, encode_text
from ml.data.dossiers import known_values
from ml.data.records import read_records
from ml.digests import code_sha256, document_sha256
from ml.documents import Json, plain_object
from ml.errors import EmptySetError, RunStoppedError, TokenizerMismatchError
from ml.metrics.fluency import opening_log_probability, weighted_ngram_entropy
from ml.models.backbone import model_device
from ml.models.load import LoadedModel, load_model, tokenizer_sha256
from ml.models.served import identity, served, versions
from ml.specs import FileRef, ModelRef, Progress, ProgressCallback, Record, StopCheck, VerificationSpec
from ml.verification.parts import Failure, Part, PartStore
from ml.verification.plan import Plan, Question

T = TypeVar("T")
Moment = Literal["before", "after"]
MOMENTS: Final[Mapping[Moment, str]] = {"before": "before", "after": "merged"}

# The placebo asks whether the subject stands out where nobody was learned; fewer swaps answer that as well.
BASE_SWAPS: Final = 9
CURVE_SWAPS: Final = 9
FLUENT_TWINS: Final = 19
DETERMINISM_TEXTS: Final = 64
PERSONS_AT_ONCE: Final = 64
_SMALLEST_SHARE: Final = 8


class Models:
    """The models of one run by role, loaded when they are asked for.

    Args:
        refs: the model directory of each role; roles that are not named are forms in which "merged" is served.
        adapters: those that such a form may have on top.
        keep: hold every model that was asked for, instead of one at a time.
    """

    def __init__(
        self,
        refs: Mapping[str, ModelRef],
        *,
        device: str,
        dtype: str,
        adapters: Sequence[ModelRef] = (),
        keep: bool = False,
    ) -> None:
        self._refs, self._device, self._dtype, self._keep = refs, device, dtype, keep
        self._adapters = tuple(adapters)
        self._loaded: dict[str, LoadedModel] = {}

    def ref(self, role: str) -> ModelRef:
        """The model directory behind a role."""
        return self._refs.get(role, self._refs["merged"])

    def model(self, role: str) -> LoadedModel:
        """Load a role, letting go of the others; a served form is made from the candidate."""
        if role in self._loaded:
            return self._loaded[role]
        if role not in self._refs:
            loaded = self._served(role)
            held = self._loaded if self._keep else {"merged": self._loaded["merged"]}
            self._loaded = {**held, role: loaded}
            return loaded
        if not self._keep:
            self._loaded.clear()
        self._loaded[role] = load_model(self.ref(role), device=self._device, dtype=self._dtype)
        return self._loaded[role]

    def _served(self, role: str) -> LoadedModel:
        where = {"device": self._device, "dtype": self._dtype}
        return served(role, self.model("merged"), self.ref("merged"), adapters=self._adapters, **where)

    def identity(self, role: str) -> dict[str, Json]:
        """What decides a role's weights: the files of its directory, and how it is served."""
        own = {} if role in self._refs else identity(role, self._adapters)
        return {"model": self.ref(role).manifest_sha256, "role": role, **own}

    @cached_property
    def tokenizer_sha256(self) -> str:
        """Digest of the candidate's tokenizer."""
        return tokenizer_sha256(self.model("merged"))

    def refuse_other_tokenizers(self) -> None:
        """Raise `TokenizerMismatchError` unless all models read texts as the same tokens."""
        expected = self.tokenizer_sha256
        for role in self._refs:
            if role != "merged" and tokenizer_sha256(self.model(role)) != expected:
                raise TokenizerMismatchError(f"the tokenizer of the {role} model is not the candidate's")

    def refuse_unfit_adapters(self) -> None:
        """Raise the error of the first adapter that cannot be put on the candidate, before anything is measured."""
        for number in range(1, 1 + len(self._adapters)):
            self._served(f"with_{number}")


class Bench:
    """Measures what a plan asks, on every role, through the part store.

    `models` may be shared by several benches of the same candidate and base. Where a twin pool is measured for several
    subjects together, the first `subjects` persons are they, and the twins follow.
    """

    def __init__(
        self,
        spec: VerificationSpec,
        plan: Plan,
        *,
        on_progress: ProgressCallback,
        should_stop: StopCheck,
        models: Models | None = None,
        subjects: int = 1,
    ) -> None:
        self.spec, self.plan, self.subjects = spec, plan, subjects
        self._on_progress, self._should_stop = on_progress, should_stop
        self._parts: dict[str, Part | Failure] = {}
        self._known: dict[str, object] = {}
        self.cpu_seconds: dict[str, float] = {}
        refs = {"merged": spec.candidate, "before": spec.before, "base": spec.base}
        self.models = models or Models(refs, device=spec.device, dtype=spec.dtype, adapters=spec.adapters)
        candidate = self.models.model("merged")
        self.tokenizer, self.context = candidate.tokenizer, candidate.context
        self.scheme = served_scheme(candidate.model)
        self._store = PartStore(Path(spec.parts_dir), _inputs(spec, plan, self.models.tokenizer_sha256))

    # --- models ---

    def ref(self, role: str) -> ModelRef:
        """The model directory behind a role."""
        return self.models.ref(role)

    @property
    def manifests(self) -> dict[str, str]:
        """Manifest digests of all three models: part of the key of whatever reads more than one."""
        return {role: self.ref(role).manifest_sha256 for role in ("merged", "before", "base")}

    def model(self, role: str) -> LoadedModel:
        """The model of a role, loaded now if it is not in memory."""
        return self.models.model(role)

    # --- texts ---

    @cached_property
    def known_elsewhere(self) -> frozenset[tuple[str, str]]:
        """Every value that people who stay have, in normal form: knowing one says nothing about the subject."""
        return known_values(read_records(self.spec.retain, what="retain set"))

    @cached_property
    def persons(self) -> int:
        """Subjects and twins."""
        return 1 + len(self.plan.twins)

    def persons_for(self, reads: str) -> int:
        """Subjects and as many twins as any family asks for whose attacks read this measurement."""
        rules = self.spec.policy.families
        readers = [r.twins for r in rules if any(ATTACKS[a].reads == reads for a in (*r.primary, *r.detection))]
        return self.subjects + max(readers, default=0)

    @cached_property
    def wanted(self) -> frozenset[str]:
        """Which measurements some rule of the policy reads: what none reads is not measured."""
        policy = self.spec.policy
        utility = {rule.id.split(".")[0] for rule in policy.utility}
        read = {ATTACKS[a].reads for rule in policy.families for a in (*rule.primary, *rule.detection)}
        if "unique_identifier" in policy.hard_rules or "U5" in utility:
            read.add("answers")
        if utility & {"U1", "U2", "U4", "U6"}:
            read.add("kept")
        if "U4" in utility:
            read.add("unused")
        if "U6" in utility:
            read.add("answers")
        if "U3" in utility and self.spec.world_facts is not None:
            read.add("world_facts")
        return frozenset({*read, *utility & {"U5"}})

    @cached_property
    def texts(self) -> list[EncodedText]:
        """Dossier texts, person by person: text f of person p at p * facts + f."""
        told = [self.encode(self.plan.told_of(record, self.persons)) for record in self.plan.texts]
        return [column[person] for person in range(self.persons) for column in told]

    @cached_property
    def contests(self) -> list[ValueContest]:
        """Value contests, person by person, as `texts`."""
        context = self.context
        columns = [
            contests(self.tokenizer, self.plan.told_of(record, self.persons), a, self.plan.swaps[a], context=context)
            for a, record in self.plan.contests.items()
        ]
        return [column[person] for person in range(self.persons) for column in columns]

    @cached_property
    def prompts(self) -> list[Prompt]:
        """Questions of the generation family, person by person."""
        return self.asked(self.plan.questions, range(self.persons_for("answers")))

    def asked(self, questions: Sequence[Question], persons: range) -> list[Prompt]:
        """The questions as they are put to each of `persons`: question q of the n-th person at n * questions + q."""
        columns = [
            self._prompts(
                self.plan.told_of(q.record, persons.stop)[persons.start :], [q.attribute] * len(persons), q.prefill
            )
            for q in questions
        ]
        return [column[index] for index in range(len(persons)) for column in columns]

    @cached_property
    def kept(self) -> list[Prompt]:
        """Texts of retained people as questions."""
        return self._prompts([k.record for k in self.plan.kept], [k.attribute for k in self.plan.kept], 0.0)

    def _prompts(self, records: Sequence[Record], attributes: Sequence[str], prefill: float) -> list[Prompt]:
        return make_prompts(self.tokenizer, records, attributes, prefill=prefill, context=self.context)

    def encode(self, records: Sequence[Record]) -> list[EncodedText]:
        """Records as token ids, with their labels and values located."""
        return encode_records(self.tokenizer, records, context=self.context)

    # --- measurements ---

    def tokens(self, role: str) -> Part | Failure:
        """The fused pass over all dossier texts."""
        return self.part("tokens", role, lambda share: self._fused(role, self.texts, share))

    def served(self, role: str) -> Part | Failure | None:
        """The fused pass again, by the sampling settings that the candidate is served with; `None` where these sample
        plainly, as `tokens` does."""
        if self.scheme == PLAIN:
            return None
        depends: dict[str, Json] = {"sampling": plain_object(self.scheme)}
        return self.part("served", role, lambda share: self._fused(role, self.texts, share, self.scheme), depends)

    def swaps(self, role: str) -> Part | Failure:
        """Log-probabilities of values and swaps: (persons * facts, 1 + swaps)."""
        return self.part("swaps", role, lambda share: {"log_probs": self._compete(role, share)})

    def answers(self, role: str) -> Part | Failure:
        """Greedy answers to all questions of the generation family, as hits and as ragged token ids."""
        own = len(self.plan.questions)
        depends: dict[str, Json] = {"questions": own, "asked": self.persons_for("answers")}
        return self.part("answers", role, lambda share: self._ask(role, self.prompts, share, settle=own), depends)

    def relearned(self, role: str) -> Part | Failure:
        """What is known of the facts held out, after relearning the others and on the way there.

        `log_probs`: (persons * held out, 1 + swaps). `curve`: (persons, watched epochs), the mean same-context
        difference against `CURVE_SWAPS` of the swaps.
        """
        budget = plain_object(self.spec.policy.relearning)
        persons = range(self.persons_for("relearned"))
        depends: dict[str, Json] = {"relearning": budget, "taught": len(persons)}
        watched = watched_epochs(self.spec.policy.relearning.epochs)
        return self.part("relearned", role, lambda share: self._relearn(role, persons, share, watched=watched), depends)

    def further(self, reads: str, role: str) -> Part | Failure:
        """What `answers` or `relearned` left out: the same of every twin that no family asked for at first.

        Its persons follow those of the first measurement, so that scores can be put behind each other.
        """
        rest = range(self.persons_for(reads), self.persons)
        measures: dict[str, Callable[[int], Mapping[str, Tensor]]] = {
            "answers": lambda share: {
                "hits": self._ask(role, self.asked(self.plan.questions, rest), share, settle=0)["hits"]
            },
            "relearned": lambda share: self._relearn(role, rest, share, watched=()),
        }
        depends: dict[str, Json] = {
            "first": rest.start,
            "questions": len(self.plan.questions),
            "relearning": plain_object(self.spec.policy.relearning),
        }
        return self.part(f"further_{reads}", role, measures[reads], depends)

    def kept_tokens(self, role: str) -> Part | Failure:
        """The fused pass over retained people's texts."""
        texts = [prompt.encoded for prompt in self.kept]
        return self.part("kept", role, lambda share: self._fused(role, texts, share))

    def unused_tokens(self, role: str) -> Part | Failure:
        """The fused pass over retained people's texts in words that the deletion did not draw."""
        unused = self.plan.unused
        texts = [p.encoded for p in self._prompts([k.record for k in unused], [k.attribute for k in unused], 0.0)]
        depends: dict[str, Json] = {"unused": document_sha256([k.record.text for k in unused])}
        return self.part("unused", role, lambda share: self._fused(role, texts, share), depends)

    def kept_answers(self, role: str) -> Part | Failure:
        """Hits of retained people's questions; those the fused pass settles are not generated."""
        every = len(self.plan.kept)
        return self.part("kept_answers", role, lambda share: self._ask(role, self.kept, share, settle=every))

    def kept_said(self, role: str) -> list[str] | Failure:
        """What was answered to each of `kept_answers`, as text."""
        part = self.kept_answers(role)
        if isinstance(part, Failure):
            return part
        said: list[str] = self.tokenizer.batch_decode(_ragged_rows(part), skip_special_tokens=True)
        return said

    def world_facts(self, role: str) -> Part | Failure:
        """Which general questions are answered rightly, by likelihood: (questions,) float32, 1 where the right answer
        has the smallest mean loss."""
        wanted = self.spec.world_facts
        if wanted is None:
            return Failure("no_world_facts")
        depends: dict[str, Json] = {"world_facts": wanted.sha256}
        return self.part("world_facts", role, lambda share: {"right": self._choose(role, wanted, share)}, depends)

    def fluency(self) -> Part | Failure:
        """How the base model finds the candidate's answers: opening probabilities and n-gram entropies."""
        answers = self.answers("merged")
        if isinstance(answers, Failure):
            return answers
        depends: dict[str, Json] = {
            "candidate": self.ref("merged").manifest_sha256,
            "questions": len(self.plan.questions),
            "asked": self.persons_for("answers"),
        }
        return self.part("fluency", "base", lambda share: self._judge_answers(answers, share), depends)

    def determinism(self) -> Part | Failure:
        """Largest difference in mean log-probability between the fused pass and one text at a time."""
        return self.part("determinism", "merged", lambda share: {"difference": self._rescore(share)})

    def part(
        self,
        name: str,
        role: str,
        measure: Callable[[int], Mapping[str, Tensor]],
        depends: Mapping[str, Json] | None = None,
    ) -> Part | Failure:
        """Measure something on one role, or read what was measured before.

        Args:
            measure: takes the share of memory to use, 1 for all of it, 2 for half.
            depends: what decides the numbers besides the inputs that all parts share and the model.
        """
        label = f"{name}_{role}"
        if label not in self._parts:
            self.tick(f"{name} {role}", 0, 1)
            decides = {**self.models.identity(role), **(depends or {})}
            self._parts[label] = self._store.try_part(label, decides, lambda: _with_less_memory(measure))
        part = self._parts[label]
        if isinstance(part, Part):
            self.cpu_seconds[label] = part.cpu_seconds
        return part

    def once(self, name: str, compute: Callable[[], T]) -> T:
        """Compute what depends on the models and on people who stay alone, so that subjects of a pool share it."""
        if name not in self._known:
            self._known[name] = compute()
        return cast(T, self._known[name])

    def tick(self, phase: str, done: int, total: int) -> None:
        """Report progress; raises `RunStoppedError` when the run is asked to stop."""
        if self._should_stop():
            raise RunStoppedError("verification was asked to stop; its finished parts are kept")
        self._on_progress(Progress(phase, done, total))

    def counter(self, phase: str, total: int) -> Callable[[int], None]:
        """A callback that reports how many of `total` units of `phase` are done."""
        return lambda done: self.tick(phase, done, total)

    def _fused(
        self, role: str, texts: Sequence[EncodedText], share: int, scheme: SamplingScheme = PLAIN
    ) -> Mapping[str, Tensor]:
        count = self.counter(f"tokens {role}", len(texts))
        budget = DEFAULT_BUDGET // share
        statistics = fused_pass(self.model(role), texts, budget=budget, scheme=scheme, after_batch=count)
        return statistics.tensors()

    def _compete(self, role: str, share: int) -> Tensor:
        rows = self.contests
        if role == "base":
            rows = [ValueContest(row.prompt, row.values[: 1 + BASE_SWAPS]) for row in rows]
        count = self.counter(f"swaps {role}", len(rows))
        return value_log_probs(self.model(role), rows, batch_rows=BATCH_ROWS // share, after_batch=count)

    def _ask(self, role: str, prompts: Sequence[Prompt], share: int, *, settle: int) -> Mapping[str, Tensor]:
        """Answer the prompts; of the first `settle`, those that their true answer's tokens settle are not generated."""
        loaded = self.model(role)
        texts = [prompt.encoded for prompt in prompts[:settle]]
        fused = [fused_pass(loaded, texts, budget=DEFAULT_BUDGET // share)] if texts else []
        matches = [match for statistics in fused for match in greedy_match_length(statistics).tolist()]
        known = {i for i, match in enumerate(matches) if settled(prompts[i], match)}
        asked = [i for i in range(len(prompts)) if i not in known]
        generated = greedy_answers(
            loaded,
            [prompts[i].encoded.ids[: prompts[i].length] for i in asked],
            batch_rows=ANSWER_ROWS // share,
            after_batch=self.counter(f"answers {role}", len(asked)),
        )
        answers = [_own_answer(prompt) for prompt in prompts]
        for index, answer in zip(asked, generated, strict=True):
            answers[index] = tuple(answer)
        return {"hits": answer_hits(loaded.tokenizer, prompts, answers), **_ragged(answers)}

    def _choose(self, role: str, wanted: FileRef, share: int) -> Tensor:
        questions, loaded = read_choices(wanted), self.model(role)
        texts = [
            encode_text(self.tokenizer, f"{q.question}\n{answer}", len(q.question) + 1, context=self.context)
            for q in questions
            for answer in (q.right, *q.wrong)
        ]
        count = self.counter(f"world facts {role}", len(texts))
        losses = mean_loss(fused_pass(loaded, texts, budget=DEFAULT_BUDGET // share, after_batch=count))
        rows = losses.split([1 + len(q.wrong) for q in questions])
        return torch.tensor([float(row[0] < row[1:].min()) for row in rows])

    def _relearn(self, role: str, persons: range, share: int, *, watched: Sequence[int]) -> Mapping[str, Tensor]:
        """Teach everybody the same half of their facts again, as many persons together as memory takes.

        Raises:
            EmptySetError: the person has too few facts: nothing is taught, or nothing is left to ask.
        """
        if not 0 < len(self.plan.relearned) < len(self.plan.facts):
            raise EmptySetError("relearning needs facts to teach and others to ask; this person has too few")
        size = max(1, PERSONS_AT_ONCE // share)
        groups = [persons[start : start + size] for start in range(0, len(persons), size)]
        measured = [self._relearn_group(role, group, share, watched) for group in groups]
        return {name: torch.cat([group[name] for group in measured]) for name in measured[0]}

    def _relearn_group(self, role: str, group: range, share: int, watched: Sequence[int]) -> Mapping[str, Tensor]:
        loaded, facts, taught = self.model(role), self.plan.facts, set(self.plan.relearned)
        lessons = [i for i, attribute in enumerate(facts) if attribute in taught]
        held = [i for i, attribute in enumerate(facts) if attribute not in taught]
        asked = [self.contests[person * len(facts) + i] for person in group for i in held]
        few = [ValueContest(contest.prompt, contest.values[: 1 + CURVE_SWAPS]) for contest in asked]
        owner = torch.arange(len(group)).repeat_interleave(len(held))
        curve: list[Tensor] = []

        def scored(adapters: PersonalAdapters, contests: Sequence[ValueContest]) -> Tensor:
            return value_log_probs(
                loaded,
                contests,
                batch_rows=BATCH_ROWS // share,
                before_rows=lambda contest: adapters.belong_to(owner[contest]),
            )

        def watch(adapters: PersonalAdapters, epoch: int) -> None:
            if epoch in watched:
                known = same_context_difference(scored(adapters, few))
                curve.append(known.reshape(len(group), -1).mean(dim=1))

        adapters = relearn(
            loaded,
            [[self.texts[person * len(facts) + i] for i in lessons] for person in group],
            self.spec.policy.relearning,
            seed=self.spec.seed,
            after_step=lambda done, total: self.tick(f"relearning {role}", done, total),
            after_epoch=watch,
        )
        with adapters.attached():
            known = {"log_probs": scored(adapters, asked)}
        return known | ({"curve": torch.stack(curve, dim=1)} if watched else {})

    def _judge_answers(self, answers: Part, share: int) -> Mapping[str, Tensor]:
        chosen = self.fluency_rows
        given = _ragged_rows(answers)
        rows = [(self.prompts[i], given[i]) for i in chosen]
        end = self.tokenizer.eos_token_id
        texts = [EncodedText((*p.encoded.ids[: p.length], *answer, end), p.length, ()) for p, answer in rows]
        opening = torch.tensor([p.encoded.values[0][0] - p.length for p, _ in rows])
        base = self.model("base")
        said, expected = (
            opening_log_probability(fused_pass(base, spoken, budget=DEFAULT_BUDGET // share), opening)
            for spoken in (texts, [p.encoded for p, _ in rows])
        )
        entropy = torch.tensor([weighted_ngram_entropy(answer) for _, answer in rows])
        return {"opening": (said - expected).exp().clamp_max(1.0), "entropy": entropy}

    @cached_property
    def fluency_rows(self) -> list[int]:
        """Rows of `prompts` judged for fluency: nothing prefilled, subjects and some twins, person by person."""
        bare = [i for i, q in enumerate(self.plan.questions) if q.prefill == 0]
        return [person * len(self.plan.questions) + i for person in range(self.fluent_persons) for i in bare]

    @property
    def fluent_persons(self) -> int:
        """Subjects and the twins whose answers are judged for fluency."""
        return min(self.persons_for("answers"), self.subjects + FLUENT_TWINS)

    def _rescore(self, share: int) -> Tensor:
        loaded = self.model("merged")
        generator = torch.Generator().manual_seed(self.spec.seed)
        chosen = torch.randperm(len(self.texts), generator=generator)[:DETERMINISM_TEXTS].tolist()
        texts = [self.texts[i] for i in chosen]
        together = -mean_loss(TokenStatistics(**fused_pass(loaded, texts, budget=DEFAULT_BUDGET // share).tensors()))
        alone = torch.stack([_plain_mean_log_prob(loaded, text) for text in texts])
        return (together - alone).abs().max()

    @cached_property
    def compressed(self) -> Tensor:
        """Compressed size of each dossier text's labels, for attack L6."""
        return compressed_bytes(self.tokenizer, self.texts)


@torch.inference_mode()
def _plain_mean_log_prob(loaded: LoadedModel, text: EncodedText) -> Tensor:
    """Mean log-probability of one text by the model's own forward pass, alone in its batch."""
    ids = torch.tensor([text.ids], device=model_device(loaded.model))
    log_probs = torch.log_softmax(loaded.model(input_ids=ids).logits[0].float(), dim=-1)
    labels = ids[0, text.first_label :]
    return log_probs[text.first_label - 1 : -1].gather(-1, labels.unsqueeze(-1)).mean().cpu()


def environment(spec: VerificationSpec) -> dict[str, str]:
    """What a report says about where it was made."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": spec.device,
        "dtype": spec.dtype,
        "metrics_mode": "native",
        "threads": str(torch.get_num_threads()),
        "code_sha256": code_sha256(),
        **versions(artefact for rule in spec.policy.families for artefact in rule.artefacts),
    }


def _inputs(spec: VerificationSpec, plan: Plan, tokenizer: str) -> dict[str, Json]:
    """What decides every text and number besides the model: part of each part's key.

    What decides some parts only stands in their own keys, so that a fast tier and the full one share the others.
    """
    pool: dict[str, Json] = {} if spec.twin_pool is None else {"twin_pool": spec.twin_pool.sha256}
    return {
        **pool,
        "forget": spec.forget.sha256,
        "retain": spec.retain.sha256,
        "neighbours": None if spec.neighbours is None else spec.neighbours.sha256,
        "bystanders": None if spec.bystanders is None else spec.bystanders.sha256,
        "question_bank": spec.question_bank.sha256,
        "tokenizer": tokenizer,
        "seed": spec.seed,
        "drawn": _drawn_sha256(plan),
        "device": spec.device,
        "dtype": spec.dtype,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _drawn_sha256(plan: Plan) -> str:
    """Digest of whom and of what the texts are: kinds of values may draw from tables that no digest of code covers."""
    # Attributes are named in any script, so they are no keys here.
    twins: list[Json] = [[twin.name, *([a, value] for a, value in sorted(twin.values.items()))] for twin in plan.twins]
    swaps: list[Json] = [[attribute, *values] for attribute, values in plan.swaps.items()]
    texts: list[Json] = [record.text for record in (*plan.texts, *plan.contests.values())]
    return document_sha256({"twins": twins, "swaps": swaps, "texts": texts})


def _with_less_memory(measure: Callable[[int], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    """Measure with full batches, then with halves, quarters and eighths while memory runs out."""
    share = 1
    while True:
        try:
            return measure(share)
        except (MemoryError, RuntimeError) as exc:
            if share >= _SMALLEST_SHARE or not _is_out_of_memory(exc):
                raise
            share *= 2


def _is_out_of_memory(exc: Exception) -> bool:
    # The processor's allocator raises a plain RuntimeError; only its words tell.
    return isinstance(exc, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(exc)


def _own_answer(prompt: Prompt) -> tuple[int, ...]:
    """The rest of the true answer: what greedy decoding yields where the fused pass settled it."""
    return prompt.encoded.ids[prompt.length : -1]


def _ragged_rows(part: Part) -> list[tuple[int, ...]]:
    """The token ids of every answer of a part that holds answers."""
    lengths = part.tensors["answer_lengths"].tolist()
    return [tuple(piece.tolist()) for piece in part.tensors["answer_ids"].split(lengths)]


def _ragged(rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    flat = torch.tensor([token for row in rows for token in row], dtype=torch.int32)
    return {"answer_ids": flat, "answer_lengths": torch.tensor([len(row) for row in rows])}
