"""Verification of what nobody prepared for it: a typed error or INCONCLUSIVE with a reason, never a PASS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ml.data.records import read_records, write_records
from ml.decision import Result, Verdict, judge
from ml.errors import EmptySetError, UnknownMemberError
from ml.models.load import load_model, model_ref
from ml.models.save import save_model
from ml.policies import load_policy
from ml.reports import VerificationReport
from ml.specs import FactSpan, ModelRef, Record, VerificationSpec
from ml.verify import run_verification
from tests.ml import candidates
from tests.ml.specs import verification_spec
from tests.tiny import TinyWorld

pytestmark = pytest.mark.slow

POLICY = load_policy("unit-1")


def _spec(tiny: TinyWorld, folder: Path, records: Sequence[Record] | None = None) -> VerificationSpec:
    forget = tiny.forget if records is None else write_records(folder / "forget.jsonl", records)
    return verification_spec(tiny, tiny.gold, folder, forget=forget, neighbours=None)


def _verify(spec: VerificationSpec) -> tuple[VerificationReport, Verdict]:
    report = run_verification(spec, on_progress=lambda _: None, should_stop=lambda: False)
    return report, judge(report, POLICY)


def _alice(tiny: TinyWorld) -> list[Record]:
    return list(read_records(tiny.forget, what="forget set"))


def _reasons(verdict: Verdict) -> set[str]:
    return {finding.code for finding in verdict.findings}


def test_weights_that_are_no_numbers_have_no_verdict(tiny: TinyWorld, tmp_path: Path) -> None:
    broken = candidates.not_a_number(tiny.gold, tmp_path / "broken")
    report, verdict = _verify(replace(_spec(tiny, tmp_path), candidate=broken))
    assert verdict.result is Result.INCONCLUSIVE
    assert "error" in _reasons(verdict)
    assert {row.reason for row in report.attacks if row.artefact == "merged"} == {"NonFiniteError"}


def test_a_dossier_of_no_record_is_refused(tiny: TinyWorld, tmp_path: Path) -> None:
    with pytest.raises(EmptySetError, match="forget set"):
        _verify(_spec(tiny, tmp_path, []))


def test_one_record_proves_nothing(tiny: TinyWorld, tmp_path: Path) -> None:
    _, verdict = _verify(_spec(tiny, tmp_path, _alice(tiny)[:1]))
    assert verdict.result is Result.INCONCLUSIVE
    assert "insufficient_facts" in _reasons(verdict)


def test_a_person_without_values_proves_nothing(tiny: TinyWorld, tmp_path: Path) -> None:
    bare = [replace(record, facts=()) for record in _alice(tiny)]
    _, verdict = _verify(_spec(tiny, tmp_path, bare))
    assert verdict.result is Result.INCONCLUSIVE
    assert "insufficient_facts" in _reasons(verdict)


def test_a_value_of_an_unknown_kind_is_named_and_refused(tiny: TinyWorld, tmp_path: Path) -> None:
    strange = [
        replace(record, facts=tuple(FactSpan(f.attribute, "shoe_size", f.start, f.end) for f in record.facts))
        for record in _alice(tiny)
    ]
    with pytest.raises(UnknownMemberError, match="shoe_size.*known: "):
        _verify(_spec(tiny, tmp_path, strange))


def test_records_that_stand_twice_do_not_count_twice(tiny: TinyWorld, tmp_path: Path) -> None:
    once = _alice(tiny)
    twice = [*once, *(replace(record, record_id=f"{record.record_id}-again") for record in once)]
    report, verdict = _verify(_spec(tiny, tmp_path, twice))
    plain, _ = _verify(replace(_spec(tiny, tmp_path), parts_dir=str(tmp_path / "plain")))
    items = {(row.family, row.attack): row.items for row in plain.attacks if row.family in ("F1", "F2", "F3")}
    assert items == {(row.family, row.attack): row.items for row in report.attacks if row.family in ("F1", "F2", "F3")}
    assert verdict.result is Result.PASS


def test_a_tokenizer_without_a_pad_token_gives_the_same_scores(tiny: TinyWorld, tmp_path: Path) -> None:
    def without_pad(model: ModelRef, name: str) -> ModelRef:
        loaded = load_model(model)
        loaded.tokenizer.pad_token = None
        save_model(loaded.model, loaded.tokenizer, tmp_path / name)
        return model_ref(tmp_path / name)

    spec = _spec(tiny, tmp_path)
    bare = replace(
        spec,
        candidate=without_pad(tiny.gold, "gold"),
        before=without_pad(tiny.before, "before"),
        base=without_pad(tiny.base, "base"),
    )
    report, verdict = _verify(bare)
    plain, _ = _verify(replace(spec, parts_dir=str(tmp_path / "plain")))
    assert verdict.result is Result.PASS
    assert report.attacks == plain.attacks


def test_texts_longer_than_the_context_are_an_error_and_not_cut(tiny: TinyWorld, tmp_path: Path) -> None:
    once = _alice(tiny)
    padded = [_longer(record) for record in once]
    report, verdict = _verify(_spec(tiny, tmp_path, padded))
    assert verdict.result is Result.INCONCLUSIVE
    assert {row.reason for row in report.attacks if row.status == "error"} == {"ContextLengthError"}


def _longer(record: Record) -> Record:
    """The same record behind a preface that no model of this size can hold."""
    preface = "Please think about it for a while. " * 60
    shift = len(preface)
    return replace(
        record,
        text=preface + record.text,
        answer_start=record.answer_start + shift,
        name_spans=tuple((a + shift, b + shift) for a, b in record.name_spans),
        facts=tuple(FactSpan(f.attribute, f.type, f.start + shift, f.end + shift) for f in record.facts),
    )
