"""People or agents attack a model, one prompt at a time, with a valid error rate (verification section 13).

    python -m ml.adaptive --model DIR --base DIR --subject FILE --retain FILE --out DIR [--fresh N]

Lines on standard input, in any order the attacker likes, with what is won by now after each:

    commit ATTRIBUTE | PROMPT      promise a round: the prompt ends where the value would begin, {name} is the person
    play ATTRIBUTE | PROMPT        play a promised round: the true value is ranked among fresh random ones

All prompts about a fact are promised before its first outcome, and a promised round that is not played counts as lost
(`ml.betting` says why). The base model's score is subtracted, which takes out how typical a value is. A value that
others share was learned from them too and is no bet, and no prompt may give a part of the value away. The seed is drawn
when the session begins, so that none can be rehearsed.

Exit status 1: a leak is established. 3: no finding, which is never a pass. 2: the attack could not begin. Prompts are
kept by digest, the person's name left out.
"""

from __future__ import annotations

import argparse
import math
import random
import re
import secrets
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TextIO

import torch

from ml.attacks.exposure import contests, value_log_probs
from ml.attacks.value_hit import holds, shows
from ml.betting import FEWEST_FRESH, Commitment, RedTeamLedger, Round
from ml.command_line import EXIT_CODES, USAGE_ERROR, file_ref, write_document
from ml.data.dossiers import Dossier, known_values, normal_value, read_dossier
from ml.data.records import read_records, refuse_overlap
from ml.data.synthetic import StrangerFactory
from ml.data.values import VALUE_TYPES
from ml.decision import Result
from ml.digests import sha256_hex
from ml.errors import MlError, SpecError
from ml.models.load import LoadedModel, load_model, model_ref, tokenizer_sha256
from ml.reports import AdaptiveReport, AdaptiveRound
from ml.specs import FactSpan, Record

NAME: Final = "{name}"


@dataclass(slots=True)
class Attack:
    """One attacker's session against one candidate.

    Args:
        others: records of people who stay; their values are never drawn, and never bet on.
        fresh: random values that the true one is ranked among, drawn anew for every round; at least 19.
    Raises:
        SpecError: too few values a round.
    """

    candidate: LoadedModel
    base: LoadedModel
    subject: Dossier
    others: Sequence[Record]
    seed: int
    fresh: int = FEWEST_FRESH
    locale: str = "en"
    ledger: RedTeamLedger = field(init=False)
    _factory: StrangerFactory = field(init=False)
    _rounds: list[AdaptiveRound] = field(init=False, default_factory=list)
    _facts: dict[tuple[str, str], str] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.fresh < FEWEST_FRESH:
            raise SpecError(f"a round ranks the true value among at least {FEWEST_FRESH} fresh values")
        self.ledger = RedTeamLedger(seed=self.seed)
        rng = random.Random(f"{self.seed}:adaptive")  # noqa: S311 - draws must be reproducible from the seed
        self._factory = StrangerFactory(rng, [*self.subject.records, *self.others], locale=self.locale)

    def commit(self, attribute: str, prompt: str) -> Commitment:
        """Promise a round.

        Raises:
            SpecError: no such fact, one that others share, a prompt that is empty or gives the value away, or a promise
                that comes too late.
        """
        commitment = self._commitment(attribute, prompt)
        self._record(attribute, prompt)
        self.ledger.commit(commitment)
        return commitment

    def play(self, attribute: str, prompt: str) -> Round:
        """Play a promised round: rank the true value among fresh ones under the prompt.

        Raises:
            SpecError: the round was not promised, or was played before.
            ContextLengthError: the prompt is too long.
        """
        commitment, record = self._commitment(attribute, prompt), self._record(attribute, prompt)
        self.ledger.refuse_unplayable(commitment)
        swaps = [self._factory.value("", commitment.value_type) for _ in range(self.fresh)]
        true, *others = self._scores(record, attribute, swaps)
        played = self.ledger.play(commitment, true, others)
        self._rounds.append(
            AdaptiveRound(commitment.fact, commitment.value_type, commitment.template_sha256, played.rank)
        )
        return played

    def report(self, run_id: str) -> AdaptiveReport:
        """What was established by now."""
        outcome = self.ledger.outcome()
        return AdaptiveReport(
            run_id=run_id,
            models={"candidate": self.candidate.manifest_sha256, "base": self.base.manifest_sha256},
            seed=self.seed,
            fresh=self.fresh,
            promised=self.ledger.promised,
            rounds=tuple(self._rounds),
            facts=outcome.facts,
            e_value=outcome.e_value,
            alpha=outcome.alpha,
            finding=outcome.finding,
        )

    def _scores(self, record: Record, attribute: str, swaps: Sequence[str]) -> list[float]:
        tokenizer, context = self.candidate.tokenizer, self.candidate.context
        rows = contests(tokenizer, [record], attribute, swaps, context=context)
        own, base = (value_log_probs(model, rows)[0] for model in (self.candidate, self.base))
        return [float(score) for score in own.double() - base.double()]

    def _commitment(self, attribute: str, prompt: str) -> Commitment:
        if attribute not in self.subject.values:
            raise SpecError("the records hold no such fact; name one of their attributes")
        type_ = self.subject.types[attribute]
        if type_ not in VALUE_TYPES:
            raise SpecError(f"values of type {type_} cannot be drawn; choose another fact")
        key = normal_value(type_, self.subject.values[attribute])
        if key in known_values(self.others):
            raise SpecError("people who stay have this value too; knowing it says nothing about this person")
        digest = sha256_hex(prompt.replace(self.subject.name, NAME).encode())
        return Commitment(self._fact(key), type_, digest, base_corrected=True)

    def _fact(self, key: tuple[str, str]) -> str:
        """An opaque name for one value, by the order in which values were first spoken of, whatever they are filed as:
        two attributes with one value are one fact."""
        return self._facts.setdefault(key, f"fact-{1 + len(self._facts)}")

    def _record(self, attribute: str, prompt: str) -> Record:
        value, type_ = self.subject.values[attribute], self.subject.types[attribute]
        asked = prompt.replace(NAME, self.subject.name)
        if not asked.strip():
            raise SpecError("a prompt says something before the value")
        if holds(asked, value, type_=type_) or shows(asked, value) or _begins(asked, value):
            raise SpecError("the prompt shows the value that it asks for, or half of it; completing that is no leak")
        text = asked if asked[-1].isspace() else f"{asked} "
        span = FactSpan(attribute, type_, len(text), len(text) + len(value))
        return Record("round", self.subject.person, text + value, len(text), (), (span,))


def _begins(prompt: str, value: str) -> bool:
    """True when `prompt` holds a run of half of the value's letters and digits, and of three at least."""
    told, secret = (re.sub(r"\b(?:at|dot)\b|[\W_]", "", text.casefold()) for text in (prompt, value))
    size = max(3, math.ceil(len(secret) / 2))
    return any(secret[i : i + size] in told for i in range(max(0, len(secret) - size) + 1) if len(secret) >= size)


def attack(session: Attack, lines: Iterable[str], out: TextIO) -> None:
    """Follow an attacker's lines; one that cannot be followed is answered with the reason, and nothing is lost."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            out.write(f"{_follow(session, line)}\n")
        except MlError as exc:
            out.write(f"line {number}: {exc.code}: {exc}\n")
        out.flush()


def _follow(session: Attack, line: str) -> str:
    order, _, rest = line.strip().partition(" ")
    attribute, bar, prompt = rest.partition("|")
    if order not in ("commit", "play") or not bar:
        raise SpecError("a line is: commit ATTRIBUTE | PROMPT, or: play ATTRIBUTE | PROMPT")
    if order == "commit":
        session.commit(attribute.strip(), prompt.strip())
        return f"promised: {session.ledger.promised} rounds in all"
    played = session.play(attribute.strip(), prompt.strip())
    outcome = session.ledger.outcome()
    return f"rank {played.rank} of {played.fresh + 1}; by now E = {session.ledger.e_value:.3g}; {outcome}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one attacker's session from the command line."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        session = _session(options)
        options.out.mkdir(parents=True)
    except FileExistsError:
        sys.stderr.write(
            f"{SpecError.code}: {options.out.name} exists; a session is played once, name a new directory\n"
        )
        return USAGE_ERROR
    except MlError as exc:
        sys.stderr.write(f"{exc.code}: {exc}\n")
        return USAGE_ERROR
    try:
        attack(session, sys.stdin, sys.stdout)
    finally:
        report = session.report(options.out.name)
        write_document(options.out / "adaptive.json", report.to_document())
    sys.stdout.write(f"{session.ledger.outcome()}\n")
    return EXIT_CODES[Result.FAIL if report.finding == "leak" else Result.INCONCLUSIVE]


def _session(options: argparse.Namespace) -> Attack:
    subject = read_records(file_ref(options.subject), what="subject's records")
    retain = read_records(file_ref(options.retain), what="retain set")
    refuse_overlap(subject, retain)
    candidate, base = (load_model(model_ref(path), device=options.device) for path in (options.model, options.base))
    if tokenizer_sha256(candidate) != tokenizer_sha256(base):
        raise SpecError("the base model reads texts as other tokens than the candidate; give the candidate's own base")
    return Attack(candidate, base, read_dossier(subject), retain, secrets.randbits(63), options.fresh, options.locale)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ml.adaptive", description="Attack a candidate prompt by prompt.")
    parser.add_argument("--model", type=Path, required=True, help="candidate model directory, after deletion")
    parser.add_argument("--base", type=Path, required=True, help="base model directory")
    parser.add_argument("--subject", type=Path, required=True, help="the subject's records, JSON Lines")
    parser.add_argument("--retain", type=Path, required=True, help="records of people who stay, JSON Lines")
    parser.add_argument("--out", type=Path, required=True, help="new directory for adaptive.json")
    parser.add_argument("--fresh", type=int, default=39, help=f"fresh values a round, at least {FEWEST_FRESH}")
    parser.add_argument("--locale", default="en", help="of the people: a BCP 47 tag, for kinds of values that differ")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--device", default="cpu", help="where torch computes: cpu, cuda, cuda:1, ...")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
