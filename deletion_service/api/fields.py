"""Fields that take exactly their JSON type, and objects that take exactly their members."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rest_framework import serializers


class StrictSerializer(serializers.Serializer[Any]):
    """An object without unknown members."""

    default_error_messages = {"unknown_member": "this member is not known", "not_a_dict": "this member is an object"}

    def to_internal_value(self, data: Any) -> Any:
        """Refuse anything but an object of the known members."""
        if not isinstance(data, Mapping):
            raise self._refusal("not_a_dict")
        if set(data) - set(self.fields):
            # The place says which object; the name itself may carry anything.
            raise self._refusal("unknown_member")
        return super().to_internal_value(data)

    def _refusal(self, code: str) -> serializers.ValidationError:
        return serializers.ValidationError({"non_field_errors": [self.error_messages[code]]}, code=code)


class Text(serializers.CharField):
    """A JSON string; a number is not one."""

    default_error_messages = {"wrong_type": "this member is a string"}

    def __init__(self, **options: Any) -> None:
        super().__init__(trim_whitespace=False, **options)

    def to_internal_value(self, data: Any) -> str:
        """Refuse other types instead of converting them."""
        if not isinstance(data, str):
            self.fail("wrong_type")
        return super().to_internal_value(data)


class Whole(serializers.IntegerField):
    """A JSON integer; neither a string nor a boolean is one."""

    default_error_messages = {"wrong_type": "this member is a whole number"}

    def to_internal_value(self, data: Any) -> int:
        """Refuse other types instead of converting them."""
        if type(data) is not int:
            self.fail("wrong_type")
        return super().to_internal_value(data)


class Flag(serializers.BooleanField):
    """A JSON boolean; `"yes"` and 1 are not ones."""

    default_error_messages = {"wrong_type": "this member is true or false"}

    def to_internal_value(self, data: Any) -> bool:
        """Refuse other types instead of converting them."""
        if not isinstance(data, bool):
            self.fail("wrong_type")
        return data


class Day(serializers.DateField):
    """A date as `YYYY-MM-DD`."""

    default_error_messages = {"wrong_type": "this member is a string"}

    def __init__(self, **options: Any) -> None:
        super().__init__(input_formats=["%Y-%m-%d"], **options)

    def to_internal_value(self, value: Any) -> Any:
        """Refuse other types instead of converting them."""
        if not isinstance(value, str):
            self.fail("wrong_type")
        return super().to_internal_value(value)


class Code(serializers.ChoiceField):
    """One of a list of codes; an empty stored value is shown as null."""

    default_error_messages = {"wrong_type": "this member is a string"}

    def to_internal_value(self, data: Any) -> str:
        """Refuse other types instead of converting them."""
        if not isinstance(data, str):
            self.fail("wrong_type")
        return str(super().to_internal_value(data))

    def to_representation(self, value: Any) -> Any:
        """Show nothing as null."""
        return str(value) if value else None
