"""One registry pattern for methods, attacks and metrics: lower-case name = file name, no second list."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from ml.errors import DuplicateMemberError, UnknownMemberError

Member = TypeVar("Member")


class Registry(Generic[Member]):
    """Named members of one family.

    >>> METHODS: Registry[type] = Registry("method")
    >>> @METHODS.register("npo")
    ... class Npo: ...
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._members: dict[str, Member] = {}

    def register(self, name: str) -> Callable[[Member], Member]:
        """Return a decorator that files its argument under `name`.

        Raises:
            DuplicateMemberError: `name` is taken.
        """
        if name in self._members:
            raise DuplicateMemberError(f"{self.kind} {name!r} is registered twice")
        return self._file(name)

    def replace(self, name: str) -> Callable[[Member], Member]:
        """Return a decorator that files its argument under `name` in place of the member there.

        Raises:
            UnknownMemberError: there is none.
        """
        self[name]
        return self._file(name)

    def _file(self, name: str) -> Callable[[Member], Member]:
        def file(member: Member) -> Member:
            self._members[name] = member
            return member

        return file

    def __getitem__(self, name: str) -> Member:
        """Return the member called `name`, or raise `UnknownMemberError` listing the known ones."""
        try:
            return self._members[name]
        except KeyError:
            known = ", ".join(sorted(self._members)) or "none"
            raise UnknownMemberError(f"there is no {self.kind} {name!r}; known: {known}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._members))

    def __len__(self) -> int:
        return len(self._members)
