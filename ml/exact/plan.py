"""Which records form a slice, which layers it trains, in which orders: all that decides what a deletion takes along.

Pure functions, standard library only. A record's slice must never depend on another record: else deleting that one
would have to move this one. Source: arXiv:2406.16257 (S3T).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from ml.digests import sha256_hex
from ml.errors import EmptySetError, SpecError, UnknownRecordError
from ml.specs import Record

Order = tuple[int, ...]
_NAME_DIGITS: Final = 16


@dataclass(frozen=True, slots=True)
class Slice:
    """Records that one adapter learns from, by sorted opaque id; empty once all of them were deleted."""

    name: str
    records: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """How one shard is trained.

    `orders` name slices by number, each in the sequence in which that order trains them. `groups[p]` are the blocks,
    counted from 0 at the input, that position p of every order trains. `stacked`: each slice is trained on top of
    those before it, and one order serves. `separate`: every slice has an order of its own, directly on the base, and
    serves its own person.
    """

    kind: Literal["stacked", "separate"]
    slices: tuple[Slice, ...]
    orders: tuple[Order, ...]
    groups: tuple[tuple[int, ...], ...]

    def check(self, layers: int) -> None:
        """Raise `SpecError` unless the plan holds together and fits a model of `layers` blocks."""
        self.check_structure()
        if any(layer >= layers for group in self.groups for layer in group):
            raise SpecError(f"plan: groups of layers must be within the model's {layers}")

    def check_structure(self) -> None:
        """Raise `SpecError` unless the plan holds together, whatever the model."""
        ids = [record for part in self.slices for record in part.records]
        if len(set(ids)) != len(ids):
            raise SpecError("plan: a record is in two slices; it could not be deleted with one of them")
        if len({part.name for part in self.slices}) != len(self.slices):
            raise SpecError("plan: two slices have one name")
        for order in self.orders:
            if len(set(order)) != len(order) or not set(order) <= set(range(len(self.slices))):
                raise SpecError("plan: an order names a slice twice, or one that does not exist")
            if len(order) > (1 if self.kind == "separate" else len(self.groups)):
                raise SpecError("plan: an order is longer than there are groups of layers")
        used = [layer for group in self.groups for layer in group]
        if not all(self.groups) or len(set(used)) != len(used) or min(used, default=0) < 0:
            raise SpecError("plan: groups of layers must be disjoint and not empty, counted from 0")

    def slice_at(self, order: int, position: int) -> Slice:
        """The slice that an order trains at a position."""
        return self.slices[self.orders[order][position]]

    def extends(self, earlier: Plan) -> bool:
        """True if nothing that `earlier` trains is trained otherwise: the same plan, or one with further persons."""
        if "stacked" in (self.kind, earlier.kind):
            return self == earlier
        pairs = zip(earlier.slices, self.slices, strict=False)
        same = all(old.name == new.name and old.records in ((), new.records) for old, new in pairs)
        return same and len(earlier.slices) <= len(self.slices) and earlier.groups == self.groups

    def slices_of(self, record_ids: Collection[str]) -> frozenset[int]:
        """Numbers of the slices that hold one of `record_ids`.

        Raises:
            UnknownRecordError: no slice holds one of them.
        """
        wanted = set(record_ids)
        if unknown := len(wanted - {record for part in self.slices for record in part.records}):
            raise UnknownRecordError(
                f"{unknown} of {len(wanted)} records are in no slice; check their ids, or that they were not "
                "deleted before"
            )
        return frozenset(number for number, part in enumerate(self.slices) if wanted & set(part.records))

    def without(self, record_ids: Collection[str]) -> Plan:
        """The plan without `record_ids`: slices keep their numbers, orders lose the slices that are now empty."""
        gone = frozenset(record_ids)
        slices = tuple(replace(s, records=tuple(r for r in s.records if r not in gone)) for s in self.slices)
        orders = tuple(tuple(number for number in order if slices[number].records) for order in self.orders)
        return replace(self, slices=slices, orders=orders)


def surviving_prefix(order: Order, dropped: Collection[int]) -> Order:
    """The slices of `order` before the first dropped one: whatever comes later was trained on top of it."""
    first = next((place for place, number in enumerate(order) if number in dropped), len(order))
    return order[:first]


def longest(prefixes: Sequence[Sequence[object]]) -> int:
    """Number of the longest prefix, the first of several."""
    return max(range(len(prefixes)), key=lambda number: len(prefixes[number]), default=0)


def layer_groups(layers: int, positions: int, *, per_position: int | None = None) -> tuple[tuple[int, ...], ...]:
    """Groups of blocks, counted from the top: position 0 trains the last blocks before the output layer.

    Args:
        layers: blocks of the model.
        per_position: blocks of each group; as many as fit if not given. Blocks left at the bottom are never trained.
    Raises:
        SpecError: the model has too few blocks.
    """
    size = layers // max(1, positions) if per_position is None else per_position
    if positions < 1 or size < 1 or size * positions > layers:
        raise SpecError(f"{positions} slices of {size} layers each do not fit a model of {layers}; use fewer slices")
    return tuple(tuple(range(layers - (p + 1) * size, layers - p * size)) for p in range(positions))


def slices_by_person(records: Iterable[Record], *, count: int, seed: int) -> tuple[Slice, ...]:
    """Split records into `count` slices, all records of a person into one: its number is a digest of person and seed.

    Raises:
        EmptySetError: a slice got nobody.
    """
    if count < 1:
        raise SpecError("a plan needs at least one slice")
    found: dict[int, list[str]] = defaultdict(list)
    for record in records:
        found[int(sha256_hex(f"{seed}:{record.person}".encode()), 16) % count].append(record.record_id)
    if missing := count - len(found):
        raise EmptySetError(f"{missing} of {count} slices got nobody; use fewer slices or another seed")
    return tuple(Slice(f"slice-{number}", tuple(sorted(found[number]))) for number in range(count))


def person_slice(person: str) -> str:
    """Name of the slice of one person, by a digest of their pseudonym: whoever guesses that can tell the name."""
    return f"person-{sha256_hex(person.encode())[:_NAME_DIGITS]}"


def separate_plan(records: Iterable[Record], *, layers: int, earlier: Plan | None = None) -> Plan:
    """One slice per person, each trained directly on the base on all layers: nobody's removal touches anybody else.

    Args:
        earlier: the plan so far, whose persons keep their numbers.
    Raises:
        EmptySetError: there is nobody.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for record in records:
        found[person_slice(record.person)].append(record.record_id)
    if not found:
        raise EmptySetError("there is nobody to make an adapter for")
    known = [] if earlier is None else [part.name for part in earlier.slices]
    names = [*known, *sorted(set(found) - set(known))]
    slices = tuple(Slice(name, tuple(sorted(found.get(name, ())))) for name in names)
    orders = tuple((number,) if part.records else () for number, part in enumerate(slices))
    return Plan("separate", slices, orders, (tuple(range(layers)),))
