"""What of a channel is booked: its statements, invoices, payments and set-offs, from a ledger or from a bundle."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Generic, Protocol, TypeVar

from p2pgrid.errors import InvalidRecord
from p2pgrid.ledger.base import Ledger
from p2pgrid.proto.messages import Channel, Offer, Receipt
from p2pgrid.proto.record import M, Message, Record, Role, Signed, parse_message, record_id
from p2pgrid.proto.statement import Invoice, Payment, Statement
from p2pgrid.settlement.clock import Days
from p2pgrid.settlement.statements.calendar import offset_of
from p2pgrid.settlement.statements.days import LocalDays

M_co = TypeVar("M_co", bound=Message, covariant=True)


@dataclass(frozen=True, slots=True)
class Kept(Generic[M_co]):
    """A record's id and what it says."""

    id: bytes
    message: M_co


@dataclass(frozen=True, kw_only=True, slots=True)
class SetOffLeg:
    """What a set-off takes off one invoice of a channel."""

    record: bytes
    """The id of the record that both parties signed."""
    channel: bytes
    statement: bytes
    """Of the invoice; empty if it names none."""
    invoice_number: str
    currency: str
    amount_cents: int
    """Above zero: so much of the invoice is settled. Below, of a credit note."""
    set_off_ms: int


class SetOffs(Protocol):
    """Where the set-offs of a channel come from."""

    def legs(self, channel: bytes) -> Iterable[SetOffLeg]:
        """Those that are signed by all who must, in any order."""


class NoSetOffs:
    """A ledger without any."""

    def legs(self, channel: bytes) -> Iterable[SetOffLeg]:
        """None."""
        return ()


@dataclass(frozen=True, kw_only=True)
class ChannelRecords:
    """All of one channel that has to do with money."""

    channel: Channel
    side: Role
    """As what we take part in it."""
    statements: tuple[Kept[Statement], ...]
    """By number."""
    invoices: tuple[Kept[Invoice], ...]
    payments: tuple[Kept[Payment], ...]
    set_offs: tuple[SetOffLeg, ...] = ()
    offsets: tuple[int, ...] = ()
    """Of each statement: minutes that the provider's clock was ahead of UTC when its last receipt was sold."""
    days: Days | None = None
    """The days of the provider's own clock, where we are the provider: they go over the offsets."""

    @property
    def id(self) -> bytes:
        """The channel's id."""
        return self.channel.channel

    @property
    def counterparty(self) -> bytes:
        """The other party's key."""
        return self.channel.client if self.side is Role.PROVIDER else self.channel.provider

    @property
    def own_key(self) -> bytes:
        """Ours."""
        return self.channel.provider if self.side is Role.PROVIDER else self.channel.client

    def statement(self, statement_id: bytes) -> Kept[Statement] | None:
        """One of its statements."""
        return next((one for one in self.statements if one.id == statement_id), None)

    def offset_at(self, time_ms: int, statement_id: bytes = b"") -> int:
        """The provider's clock for what belongs to that statement; without one, to the last that was there then."""
        for kept, offset in zip(self.statements, self.offsets, strict=True):
            if kept.id == statement_id:
                return offset
        before = [
            offset
            for kept, offset in zip(self.statements, self.offsets, strict=True)
            if kept.message.stated_ms <= time_ms
        ]
        return before[-1] if before else self.offsets[0] if self.offsets else 0

    def day(self, time_ms: int, statement_id: bytes = b"") -> date:
        """The provider's day of that time."""
        if self.days is not None:
            return self.days(time_ms)
        return LocalDays.at_offset(self.offset_at(time_ms, statement_id)).of(time_ms)


def side_in(channel: Channel, own_keys: Collection[bytes]) -> Role | None:
    """As what one of these keys takes part in the channel."""
    if channel.provider in own_keys:
        return Role.PROVIDER
    return Role.CLIENT if channel.client in own_keys else None


class Books(Protocol):
    """What of a ledger is needed here: any reader has it."""

    def channels(self) -> list[Signed[Channel]]: ...

    def settlement(self, message_type: type[M], channel: bytes) -> list[Signed[M]]: ...

    def receipt(self, channel: bytes, receipt_number: int) -> Signed[Receipt] | None: ...

    def offer(self, offer_id: bytes) -> Signed[Offer] | None: ...


def records_of_ledger(
    ledger: Books | Ledger, own_keys: Collection[bytes], *, set_offs: SetOffs | None = None, days: Days | None = None
) -> list[ChannelRecords]:
    """Every channel of ours, oldest first. `days`: of our own clock, for our sales. Raises LedgerError."""
    found = []
    for signed in ledger.channels():
        channel = signed.message
        side = side_in(channel, own_keys)
        if side is None:
            continue
        statements = sorted(_kept(ledger, Statement, channel), key=lambda one: one.message.statement_number)
        found.append(
            ChannelRecords(
                channel=channel,
                side=side,
                statements=tuple(statements),
                invoices=tuple(_kept(ledger, Invoice, channel)),
                payments=tuple(_kept(ledger, Payment, channel)),
                set_offs=tuple((set_offs or NoSetOffs()).legs(channel.channel)),
                offsets=tuple(offset_of(ledger, one.message) or 0 for one in statements),
                days=days if side is Role.PROVIDER else None,
            )
        )
    return found


def _kept(ledger: Books | Ledger, message_type: type[M], channel: Channel) -> Iterator[Kept[M]]:
    for signed in ledger.settlement(message_type, channel.channel):
        yield Kept(signed.id, signed.message)


def records_of_bundle(
    records: Iterable[Record],
    channel_id: bytes,
    side: Role,
    *,
    set_offs: SetOffs | None = None,
    days: Days | None = None,
) -> ChannelRecords:
    """The channel's, from the records of a bundle. No signature is checked: the audit does that.

    Raises InvalidRecord for a record that cannot be read, or if the channel itself is not there.
    """
    found: dict[type[Any], list[Kept[Any]]] = {Statement: [], Invoice: [], Payment: []}
    channel: Channel | None = None
    offsets: dict[bytes, int] = {}
    offers: list[tuple[int, bytes]] = []
    by_type: dict[str, type[Any]] = {one.payload_type: one for one in found}
    for record in records:
        if record.payload_type == Receipt.payload_type:
            receipt = parse_message(record, Receipt)
            if receipt.channel == channel_id and (not offers or offers[-1][1] != receipt.offer):
                offers.append((receipt.receipt_number, receipt.offer))
        elif record.payload_type == Offer.payload_type:
            offer = parse_message(record, Offer)
            offsets[record_id(record.payload_type, record.payload)] = offer.utc_offset_minutes
        elif record.payload_type == Channel.payload_type:
            one = parse_message(record, Channel)
            channel = one if one.channel == channel_id else channel
        elif message_type := by_type.get(record.payload_type):
            message = parse_message(record, message_type)
            if message.channel == channel_id:
                found[message_type].append(Kept(record_id(record.payload_type, record.payload), message))
    if channel is None:
        raise InvalidRecord("record-missing", f"the bundle has no channel {channel_id.hex()[:16]}.")
    statements = sorted(found[Statement], key=lambda one: one.message.statement_number)
    return ChannelRecords(
        channel=channel,
        side=side,
        statements=tuple(statements),
        invoices=tuple(found[Invoice]),
        payments=tuple(found[Payment]),
        set_offs=tuple((set_offs or NoSetOffs()).legs(channel_id)),
        offsets=tuple(_offset_among(offers, offsets, one.message.last_receipt) for one in statements),
        days=days if side is Role.PROVIDER else None,
    )


def _offset_among(offers: Sequence[tuple[int, bytes]], offsets: dict[bytes, int], receipt_number: int) -> int:
    ordered = sorted(offers)
    at = bisect_right(ordered, receipt_number, key=lambda one: one[0])
    return offsets.get(ordered[at - 1][1], 0) if at and receipt_number else 0
