"""The ledger's interface. One implementation keeps SQLite on disk, one keeps memory; one suite tests both.

Durable before visible: `append` returns at once, and its future is done when the records would survive `kill -9` and
a power cut. Whoever sends a record to a peer awaits that future first. Records appended in one call are durable
together or not at all; futures are done in the order of the calls.

Never twice: a slot (a channel's order number, receipt number, an order's tick) holds one record. Appending the same
record again is no error and adds the signatures it brings; appending another one for a taken slot raises `SlotTaken`
from the future and changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from p2pgrid.errors import LedgerError
from p2pgrid.ledger.logged import Loggable
from p2pgrid.proto.channel import ChannelHead
from p2pgrid.proto.dispute import Answer, Dispute
from p2pgrid.proto.messages import Channel, Offer, Order, Receipt, Voucher
from p2pgrid.proto.record import M, Message, Record, Role, Signed


class SlotTaken(LedgerError):
    """Another record holds the slot already. The new one was not stored; keep it as evidence if a peer signed it."""


@dataclass(frozen=True, slots=True)
class OpenOrder:
    """An order on record without a receipt or a local outcome."""

    order: Signed[Order]
    voucher: Signed[Voucher] | None
    """The last voucher for it."""


@dataclass(frozen=True, slots=True)
class ReceiptRow:
    """A receipt for people: what `p2pgrid receipts list` shows."""

    record_id: bytes
    receipt: Receipt
    channel: Channel
    countersigned: bool


@dataclass(frozen=True, slots=True)
class KeptKey:
    """An order whose commitment key is kept, and what became of it."""

    channel: bytes
    order_number: int
    ordered_ms: int
    outcome: str | None
    """Why it gets no receipt; None if it has one, or is open."""
    receipt: bytes
    """The id of its receipt; empty if it has none."""
    receipt_number: int
    issued_ms: int
    countersigned: bool


@dataclass(frozen=True, slots=True)
class BilledReceipt:
    """A receipt for a statement, with what its price depends on."""

    record_id: bytes
    receipt: Receipt
    countersigned: bool
    ordered_ms: int
    """Of its order."""


@dataclass(frozen=True, slots=True)
class DisputeRow:
    """A dispute, and its answer once there is one."""

    dispute: Signed[Dispute]
    answer: Signed[Answer] | None


OnDurable = Callable[[Sequence[Signed[Message]]], None]
"""Called with the records of an `append` once they are durable."""


def both_told(first: OnDurable | None, second: OnDurable) -> OnDurable:
    """The watcher that tells both."""
    if first is None:
        return second

    def tell(signed: Sequence[Signed[Message]]) -> None:
        first(signed)
        second(signed)

    return tell


def tell_when_durable(
    future: asyncio.Future[None], signed: Sequence[Signed[Message]], on_durable: OnDurable | None
) -> asyncio.Future[None]:
    """The same future; `on_durable` is called once it is done well, and not where its owner cancelled it."""

    def done(written: asyncio.Future[None]) -> None:
        if on_durable is not None and not written.cancelled() and written.exception() is None:
            on_durable(signed)

    if on_durable is not None:
        future.add_done_callback(done)
    return future


class SettlementMark(NamedTuple):
    """That a record of settlement is there."""

    place: int
    """What orders those of its type: a statement's number, when an invoice was issued, when a payment was booked."""
    id: bytes
    signers: frozenset[Role]


class Ledger(Protocol):
    """What both sides of a channel write to. One writer; any number of readers."""

    def append(self, *signed: Signed[Message]) -> asyncio.Future[None]:
        """Store checked records, all or none. The future raises LedgerError (disk full, closed) or SlotTaken."""

    def append_evidence(self, record: Record, reason: str) -> asyncio.Future[None]:
        """Keep an unacceptable record that a peer signed, with a reason in one sentence. Never part of a channel."""

    def note_outcome(self, order: Signed[Order], outcome: str) -> asyncio.Future[None]:
        """Close an order that will get no receipt, with a word of ours (`refused:busy`, `never-arrived`)."""

    def channels(self) -> list[Signed[Channel]]:
        """Every channel with both signatures on record, oldest first."""

    def head(self, channel: bytes) -> ChannelHead:
        """Where the channel (32-byte id) stands. Raises KeyError for a channel that is not on record."""

    def open_orders(self, channel: bytes) -> list[OpenOrder]:
        """Orders without a receipt and without an outcome, by number."""

    def proposals(self, channel: bytes) -> list[Signed[Receipt]]:
        """Receipts that the provider signed and the client has not, by number."""

    def order(self, channel: bytes, order_number: int) -> OpenOrder | None:
        """One order with its last voucher, whatever became of it."""

    def billed_by_voucher(self, channel: bytes) -> list[Signed[Receipt]]:
        """Receipts that bill what a voucher acknowledged, issued within the hour before the channel's latest."""

    def receipt(self, channel: bytes, receipt_number: int) -> Signed[Receipt] | None:
        """One receipt with the signatures it has (`signers` tells which), or None."""

    def offer(self, offer_id: bytes) -> Signed[Offer] | None:
        """One offer by its record id, or None."""

    def receipts(self, *, channel: bytes | None = None, limit: int | None = None) -> list[ReceiptRow]:
        """Receipts, newest first."""

    def billed_receipts(self, channel: bytes, *, after: int, limit: int) -> list[BilledReceipt]:
        """Receipts of the channel above number `after`, by number. Signatures are not checked again."""

    def find_receipts(self, prefix: str, *, limit: int = 2) -> list[ReceiptRow]:
        """Receipts whose id, as 64 lower-case hex digits, begins so; by id."""

    def order_records(self, channel: bytes, order_number: int) -> list[Record]:
        """The order, its meters, vouchers and receipt, in the order of arrival."""

    def disputes(self, *, channel: bytes | None = None, unanswered: bool = False) -> list[DisputeRow]:
        """Disputes with their answers, in the order of arrival; or those alone that have none."""

    def dispute(self, record_id: bytes) -> DisputeRow | None:
        """The dispute with that id, or that to which the answer of that id is; None if neither is on record."""

    def dispute_ids(self, channel: bytes, *, after: int = 0, limit: int | None = None) -> list[tuple[int, bytes]]:
        """Number of the receipt and id of each dispute and answer about receipts above number `after`, in the order of
        the numbers."""

    def settlement(self, message_type: type[M], channel: bytes) -> list[Signed[M]]:
        """All records of a type of settlement's in a channel, in the order of arrival. Raises LedgerError.

        Statements, invoices, payments; set-offs that take something off its debt; cycles that it is in, with all their
        legs, those of other channels too, and what their timekeepers say. What names the channel with other parties, or
        in another currency, than it has is left out: anybody may have signed that.
        """

    def settlement_marks(self, message_type: type[Message], channel: bytes) -> list[SettlementMark]:
        """Which statements, invoices or payments a channel has, in the order of arrival; no signature is checked.

        Raises LedgerError.
        """

    def settlement_records(self, message_type: type[M], channel: bytes, ids: Sequence[bytes]) -> Iterator[Signed[M]]:
        """Some of them, in this order, each one's signatures checked as it is taken; what is not on record is left out.

        Raises LedgerError.
        """

    def mentioned(self, channel: bytes, after: int) -> set[bytes]:
        """Ids that receipts of the channel above number `after` mention."""

    def keep_request_key(self, order: Signed[Order], key: bytes) -> None:
        """Keep an order's commitment key (32 bytes), so that what was asked and answered can be shown later.

        It is written with the next `append`, that of the order, and is lost where that fails.
        """

    def request_key(self, channel: bytes, order_number: int) -> bytes | None:
        """The commitment key of an order's request, or None: never kept, or erased."""

    def request_keys_before(self, time_ms: int) -> list[tuple[bytes, int]]:
        """Channel and number of the orders of before that time whose commitment key is kept."""

    def kept_keys(self, before_ms: int) -> Iterator[KeptKey]:
        """Those of the orders of before that time, in the order of arrival."""

    def receipts_before(self, time_ms: int) -> list[bytes]:
        """Ids of the receipts for orders of before that time, and of the disputes and answers about them."""

    def erase_request_keys(self, orders: Sequence[tuple[bytes, int]]) -> asyncio.Future[None]:
        """Destroy the commitment keys of orders, by channel and number. What is not kept is passed over."""

    def records(self, *, channel: bytes | None = None) -> Iterator[Record]:
        """Every record that an audit needs, in the order of arrival: offers and channels first to last, then the rest.

        With `channel`, only that channel's records and the offers that its orders name.
        """

    def watch(self, on_durable: OnDurable) -> None:
        """From now on, call with the records of each `append` as soon as they are durable, in the order of the calls.

        Each of several watchers is called; they run in the loop of whoever appended, and must not block.
        """

    def loggable(self, own_peer_id: str) -> Iterator[Loggable]:
        """Every record that the log of this peer should hold, in the order of arrival."""

    def counts(self) -> dict[str, int]:
        """Rows by payload type, and `evidence`."""

    async def aclose(self) -> None:
        """Finish what is queued, and close. Later appends raise LedgerError."""
