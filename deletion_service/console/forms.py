"""Forms for reviewers' decisions. They collect codes; the rules stand in the domain."""

from __future__ import annotations

from typing import Any, Final

from django import forms

from deletion_service.certificates.models import EvidenceDecision
from deletion_service.requests.codes import (
    PROCESSOR_REFUSALS,
    Capacity,
    ExtensionReason,
    Ground,
    MatchReason,
    Refusal,
    Regime,
)
from deletion_service.requests.models import ErasureRequest
from deletion_service.requests.statuses import RequestStatus
from ml.digests import sha256_hex

_CHOOSE: Final = [("", "Choose one")]


class DecisionForm(forms.Form):
    """A decision about one case; `seen` is the state of the case when the page was opened."""

    error_css_class = "faulty"
    seen = forms.CharField(widget=forms.HiddenInput(attrs={"autocomplete": "off"}))

    def __init__(self, *args: Any, case: ErasureRequest, **kwargs: Any) -> None:
        kwargs.setdefault("initial", {})
        kwargs["initial"] = {"seen": state_of(case), **kwargs["initial"]}
        super().__init__(*args, **kwargs)
        self.case = case

    def clean_seen(self) -> str:
        """Refuse a decision on a state that is gone."""
        if self.cleaned_data["seen"] != state_of(self.case):
            raise forms.ValidationError("The case changed since you opened this page. Read it again, then decide.")
        return str(self.cleaned_data["seen"])

    def faults(self) -> list[tuple[str, str]]:
        """Return (id of the input, sentence) of every fault."""
        rows = []
        for name, faults in self.errors.items():
            target = self[name].id_for_label if name in self.fields and name != "seen" else "main"
            rows += [(str(target), str(fault)) for fault in faults]
        return rows


def state_of(case: ErasureRequest) -> str:
    """Return what changes whenever a case changes, a proposed refusal's words among it: who confirms has read them."""
    last = case.events.order_by("-id").values_list("id", flat=True).first()
    note = sha256_hex(case.refusal_note.encode())[:16]
    return f"{case.status}.{case.attempt}.{last}.{case.refusal}.{case.reviewer_id}.{note}"


class GroundForm(DecisionForm):
    """On which ground the data are erased."""

    ground = forms.ChoiceField(
        label="Legal ground", choices=_CHOOSE + [c for c in Ground.choices if c[0] != Ground.INSTRUCTION]
    )


class RefusalForm(DecisionForm):
    """Why a request is refused. The person will read the note."""

    refusal = forms.ChoiceField(label="Reason")
    note = forms.CharField(
        label="Balancing note",
        help_text="The person will read this, word for word, in our letter. Write no name and none of their data.",
        max_length=4000,
        widget=forms.Textarea(attrs={"rows": 6}),
    )

    def __init__(self, *args: Any, case: ErasureRequest, **kwargs: Any) -> None:
        super().__init__(*args, case=case, **kwargs)
        allowed = [c for c in Refusal.choices if case.capacity != Capacity.PROCESSOR or c[0] in PROCESSOR_REFUSALS]
        field = self.fields["refusal"]
        assert isinstance(field, forms.ChoiceField)  # noqa: S101 - narrows the type
        field.choices = [*_CHOOSE, *allowed]


class ExtensionForm(DecisionForm):
    """Why more time is needed."""

    reason = forms.ChoiceField(label="Reason", choices=_CHOOSE + ExtensionReason.choices)


class MatchForm(DecisionForm):
    """Why a match that nobody proved may count."""

    reason = forms.ChoiceField(
        label="Why do these records belong to the person?", choices=_CHOOSE + MatchReason.choices
    )


class EvidenceForm(DecisionForm):
    """What is decided on the evidence."""

    choice = forms.ChoiceField(label="Decision", choices=EvidenceDecision.Choice.choices, widget=forms.RadioSelect)
    reason = forms.ChoiceField(label="Reason", choices=_CHOOSE + EvidenceDecision.Reason.choices)
    retrain_on = forms.DateField(
        label="Date of the planned retraining",
        help_text="Only if you decline because retraining is planned.",
        required=False,
        widget=forms.DateInput(attrs={"type": "date"}),
    )


class QueueFilter(forms.Form):
    """Which cases the queue shows. Anything unknown shows the open ones."""

    FLAGS = [
        ("", "Any"),
        ("failed", "Job failed"),
        ("overdue", "Overdue or breached"),
        ("paused", "Clock paused"),
        ("sender", "From a sender"),
    ]

    status = forms.ChoiceField(
        label="Status",
        required=False,
        choices=[("", "Open"), ("all", "All"), *RequestStatus.choices],
    )
    regime = forms.ChoiceField(label="Regime", required=False, choices=[("", "Any"), *Regime.choices])
    flag = forms.ChoiceField(label="Flag", required=False, choices=FLAGS)
