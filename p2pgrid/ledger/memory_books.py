"""What the ledger in memory holds, and how a record gets in: the rules of the tables on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from p2pgrid.errors import LedgerError
from p2pgrid.ledger.base import OpenOrder, SlotTaken
from p2pgrid.ledger.reading import read_signed
from p2pgrid.ledger.signatures import checked_record, merged_signatures
from p2pgrid.ledger.table import Table
from p2pgrid.proto.cycle import CycleVerdict, Leg
from p2pgrid.proto.messages import Channel, Order, Voucher
from p2pgrid.proto.record import M, Message, Record, Signed
from p2pgrid.proto.set_off_rules import NAMING_TYPES, channels_named

Slot = tuple[str, tuple[str, ...], tuple[int | str, ...]]
Change = Callable[["MemoryBooks"], None]


@dataclass(slots=True)
class Row:
    """A record, and where it is kept."""

    table: Table
    message: Message
    record: Record
    outcome: str | None = None


@dataclass(slots=True)
class MemoryBooks:
    """What is stored. A copy is cheap to make and shares no row with its original."""

    rows: dict[bytes, Row] = field(default_factory=dict)
    """By record id, in the order of arrival."""
    slots: dict[Slot, bytes] = field(default_factory=dict)
    evidence: list[tuple[Record, str]] = field(default_factory=list)
    request_keys: dict[tuple[bytes, int], bytes] = field(default_factory=dict)

    def copy(self) -> MemoryBooks:
        """The same records, in rows of their own."""
        rows = {key: Row(r.table, r.message, r.record, r.outcome) for key, r in self.rows.items()}
        return MemoryBooks(rows, dict(self.slots), list(self.evidence), dict(self.request_keys))

    def of(self, message_type: type[M], channel: bytes | None = None) -> list[tuple[M, Row]]:
        """All records of a type, or those in a channel, in the order of arrival."""
        found: list[tuple[M, Row]] = []
        for row in self.rows.values():
            message = row.message
            if isinstance(message, message_type) and channel in (None, getattr(message, "channel", None)):
                found.append((message, row))
        return found

    def open_order(self, channel: bytes, message: Order, row: Row) -> OpenOrder:
        """An order with its last voucher."""
        vouchers = [e for e in self.of(Voucher, channel) if e[0].order_number == message.order_number]
        last = max(vouchers, key=lambda entry: entry[0].tick, default=None)
        return OpenOrder(
            order=self.signed(row.record, Order, channel),
            voucher=self.signed(last[1].record, Voucher, channel) if last else None,
        )

    def channel(self, channel: bytes) -> Channel:
        """The channel of that id, which is on record."""
        return self.of(Channel, channel)[0][0]

    def is_of(self, message: Message, channel: bytes) -> bool:
        """Is a record one of the channel's? All legs and verdicts are of the channels of their cycle."""
        if isinstance(message, Leg | CycleVerdict):
            cycle = self.rows.get(message.cycle)
            if cycle is not None and channel in channels_named(cycle.message):
                return True
        if isinstance(message, NAMING_TYPES):
            return channel in channels_named(message)
        return getattr(message, "channel", None) == channel

    def signed(self, record: Record, message_type: type[M], channel: bytes) -> Signed[M]:
        """A record of that channel, every signature checked again. Raises LedgerError."""
        return read_signed(record, message_type, self.channel(channel))


def storing(table: Table, signed: Signed[Message]) -> Change:
    """The change that stores a record, or adds its signatures to one that stands. Raises LedgerError, SlotTaken."""
    message, record = signed.message, checked_record(signed)
    slots: Final[list[Slot]] = [
        (table.name, slot, values) for slot, values in zip(table.slots, table.slot_values(message), strict=True)
    ]

    def store(books: MemoryBooks) -> None:
        if table.references_channel and ("channels", ("channel",), (slots[0][2][0],)) not in books.slots:
            raise LedgerError("the record belongs to a channel that is not on record.", hint="Store the channel first.")
        standing = {books.slots[slot] for slot in slots if slot in books.slots}
        if not standing:
            books.rows[signed.id] = Row(table, message, record)
            books.slots.update(dict.fromkeys(slots, signed.id))
        elif standing == {signed.id}:
            row = books.rows[signed.id]
            merged = merged_signatures(row.record.signatures, record.signatures)
            row.record = Record(record.payload_type, record.payload, merged)
        else:
            raise SlotTaken(f"another record stands in {table.describe(message)}.")

    return store
