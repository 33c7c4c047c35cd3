"""Forms for data subjects. They collect and hand over; `check_application` is the rule.

Error messages never repeat what was typed, beyond the person's own form.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from django import forms
from django.conf import settings
from django.core.signing import BadSignature, Signer

from deletion_service.errors import InvalidInputError
from deletion_service.ids import request_id
from deletion_service.requests.codes import Capacity, Regime
from deletion_service.requests.intake import (
    MAX_IDENTIFIER_LENGTH,
    MAX_STATEMENT_LENGTH,
    Application,
    Identifier,
    check_application,
)
from deletion_service.targets.models import TrainedModel

_FORM_TOKEN: Final = Signer(salt="lethe.ask-form")
_IDENTIFIER_FIELDS: Final = ("email", "name", "phone", "account")


def new_form_token() -> str:
    """Return what makes a form sent twice open one request: its id, chosen beforehand and signed."""
    return _FORM_TOKEN.sign(request_id())


class AskForm(forms.Form):
    """What a data subject tells us. Only the mailbox is needed."""

    error_css_class = "faulty"

    email = forms.EmailField(
        label="Your email address",
        help_text="We send one link there, to see that the mailbox is yours. We search by this address.",
        max_length=MAX_IDENTIFIER_LENGTH,
        widget=forms.EmailInput(attrs={"autocomplete": "email", "spellcheck": "false"}),
        error_messages={
            "required": "Enter your email address.",
            "invalid": "Enter an email address such as name@example.org.",
            "max_length": "This address is too long.",
        },
    )
    name = forms.CharField(
        label="Your name (optional)",
        help_text="Helps us to find texts that name you. A person checks such finds before anything happens.",
        required=False,
        max_length=MAX_IDENTIFIER_LENGTH,
        widget=forms.TextInput(attrs={"autocomplete": "name"}),
    )
    phone = forms.CharField(
        label="A telephone number (optional)",
        required=False,
        max_length=MAX_IDENTIFIER_LENGTH,
        widget=forms.TextInput(attrs={"autocomplete": "tel", "inputmode": "tel"}),
    )
    account = forms.CharField(
        label="An account or customer number (optional)",
        required=False,
        max_length=MAX_IDENTIFIER_LENGTH,
        widget=forms.TextInput(attrs={"autocomplete": "off"}),
    )
    statement = forms.CharField(
        label="What should be forgotten? (optional)",
        help_text="In your own words. It is sealed at once, and destroyed at the end of your request.",
        required=False,
        max_length=MAX_STATEMENT_LENGTH,
        widget=forms.Textarea(attrs={"rows": 5}),
    )
    model = forms.ChoiceField(label="Which model? (optional)", required=False)
    website = forms.CharField(
        label="Leave this field empty",
        required=False,
        widget=forms.TextInput(attrs={"autocomplete": "off", "tabindex": "-1"}),
    )
    form_token = forms.CharField(widget=forms.HiddenInput(attrs={"autocomplete": "off"}), required=False)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        names = TrainedModel.objects.order_by("name").values_list("name", flat=True)
        field = self.fields["model"]
        assert isinstance(field, forms.ChoiceField)  # noqa: S101 - narrows the type
        field.choices = [("", "All models"), *((name, name) for name in names)]

    def clean_website(self) -> str:
        """Machines fill every field; people do not see this one."""
        if self.cleaned_data["website"]:
            raise forms.ValidationError("Leave this field empty; it only catches machines.")
        return ""

    def clean_form_token(self) -> str:
        """Return the id that was signed when the form was shown."""
        try:
            return _FORM_TOKEN.unsign(self.cleaned_data["form_token"])
        except BadSignature as exc:
            raise forms.ValidationError("The form was incomplete. Please send it again.") from exc

    def clean(self) -> dict[str, Any]:
        """Ask the one rule for applications, and put its complaint beside the field."""
        cleaned = super().clean() or {}
        if self.errors:
            return cleaned
        try:
            check_application(self.application(), sender=None)
        except InvalidInputError as exc:
            self.add_error(self._field_of(exc.pointer or ""), _sentence(exc.message))
        return cleaned

    def application(self) -> Application:
        """Return what was asked, as the domain takes it."""
        cleaned = self.cleaned_data
        return Application(
            capacity=Capacity.CONTROLLER,
            regime=Regime(settings.DEFAULT_REGIME),
            identifiers=tuple(Identifier(kind, value) for kind, value in self._identifiers()),
            contact_email=cleaned["email"],
            statement=cleaned.get("statement", "").replace("\r\n", "\n"),
            model_names=(cleaned["model"],) if cleaned.get("model") else (),
        )

    def faults(self) -> list[tuple[str, str]]:
        """Return (id of the input, sentence) of every fault, in the order of the page."""
        rows = []
        for name in (*self.fields, "__all__"):
            target = self["email"].id_for_label if name in {"__all__", "form_token"} else self[name].id_for_label
            rows += [(str(target), str(fault)) for fault in self.errors.get(name, [])]
        return rows

    def _identifiers(self) -> Iterator[tuple[str, str]]:
        for name in _IDENTIFIER_FIELDS:
            if value := self.cleaned_data.get(name, "").strip():
                yield name, value

    def _field_of(self, pointer: str) -> str | None:
        if pointer.startswith("/identifiers/"):
            given = [name for name, _ in self._identifiers()]
            return given[int(pointer.split("/")[2])]
        return {"/contact_email": "email", "/statement": "statement"}.get(pointer)


class CheckForm(forms.Form):
    """Files of a certificate. They are checked in memory and forgotten."""

    certificate = forms.FileField(
        label="Certificate",
        help_text="The file that ends in .dsse.json",
        error_messages={
            "required": "Choose the certificate file, at most 12 MB.",
            "empty": "This file is empty; choose the certificate file.",
        },
    )
    log_proof = forms.FileField(
        label="Log proof (optional)", help_text="The file that ends in .log.json", required=False
    )
    evidence = forms.FileField(
        label="Evidence (optional)",
        help_text="The file that ends in evidence.json. With it, the verdict is judged again.",
        required=False,
    )

    def content(self, name: str) -> bytes | None:
        """Return the bytes of an uploaded file."""
        upload = self.cleaned_data.get(name)
        return None if upload is None else bytes(upload.read())

    def faults(self) -> list[tuple[str, str]]:
        """Return (id of the input, sentence) of every fault."""
        return [(str(self[name].id_for_label), str(fault)) for name, faults in self.errors.items() for fault in faults]


def _sentence(message: str) -> str:
    return f"{message[:1].upper()}{message[1:]}."
