"""A table of records of one type: decoded columns, and what may stand there only once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from operator import attrgetter
from typing import Any

from p2pgrid.ledger.signatures import checked_record, encode_signatures, signed_by
from p2pgrid.proto.record import Message, Signed

Value = int | str | bytes | None
Decoded = int | str


@dataclass(frozen=True)
class Table:
    """Where records of one type are kept."""

    name: str
    message_type: type[Message]
    columns: Mapping[str, type]
    """The decoded columns, int or str, in order: fields of the message, but for those of `fields` and `made`."""
    slots: tuple[tuple[str, ...], ...]
    """Columns that together hold one record only."""
    references_channel: bool
    """True if the record's channel must be on record before it."""
    of_channel: str = "channel = :channel"
    """SQL: which rows are of a channel, given by its id in hex."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Columns that have another name than their field of the message, and its path."""
    made: Mapping[str, Callable[[Any], Decoded]] = field(default_factory=dict)
    """Columns that are no field, and how each is made of a message."""

    @cached_property
    def _read(self) -> Callable[[Message], tuple[Any, ...]]:
        return attrgetter(*(self.fields.get(name, name) for name in self.columns if name not in self.made))

    @cached_property
    def _made(self) -> Sequence[tuple[int, Callable[[Any], Decoded]]]:
        return [(at, self.made[name]) for at, name in enumerate(self.columns) if name in self.made]

    @property
    def stored_columns(self) -> tuple[str, ...]:
        """Every column that an insert fills, in the order of `row`."""
        return ("seq", "id", *self.columns, "signed_by", "payload", "signatures")

    def values(self, message: Message) -> tuple[Decoded, ...]:
        """Of `columns`: bytes are hex, an enum is its value."""
        values = [
            value if value.__class__ is int or value.__class__ is str else _decoded(value)
            for value in self._read(message)
        ]
        for at, make in self._made:
            values.insert(at, make(message))
        return tuple(values)

    def row(self, seq: int, signed: Signed[Message]) -> tuple[Value, ...]:
        """The row of a checked record. Signatures that nobody checked are not kept."""
        record = checked_record(signed)
        return (
            seq,
            signed.id.hex(),
            *self.values(signed.message),
            signed_by(record),
            record.payload,
            encode_signatures(record.signatures),
        )

    def slot_values(self, message: Message) -> list[tuple[Decoded, ...]]:
        """The values of each of `slots`."""
        named = dict(zip(self.columns, self.values(message), strict=True))
        return [tuple(named[column] for column in slot) for slot in self.slots]

    def describe(self, message: Message) -> str:
        """The record's place for people: `orders: channel 12ab..., order_number 3`."""
        named = dict(zip(self.columns, self.values(message), strict=True))
        return f"{self.name}: " + ", ".join(f"{column} {named[column]}" for column in self.slots[0])


def _decoded(value: Any) -> Decoded:
    if isinstance(value, bytes):
        return value.hex()
    return value.value if isinstance(value, Enum) else int(value)
