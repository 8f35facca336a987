"""The ledger in memory, for tests and trials: the interface and the promises of the one on disk, and faults on demand.

`fail_append` breaks a write in either of the two ways in which a disk can; `hold` keeps records from becoming
durable until `release`; `crashed` is what the next process would find.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from p2pgrid.errors import LedgerError
from p2pgrid.ledger.base import (
    BilledReceipt,
    DisputeRow,
    KeptKey,
    OnDurable,
    OpenOrder,
    ReceiptRow,
    SettlementMark,
    both_told,
    tell_when_durable,
)
from p2pgrid.ledger.logged import LOGGED_TYPES, Loggable
from p2pgrid.ledger.memory_books import Change, MemoryBooks, Row, storing
from p2pgrid.ledger.reading import read_channel, read_named, read_offer
from p2pgrid.ledger.signatures import BOTH_ROLES, signed_by
from p2pgrid.ledger.tables import PLACED_BY, TABLES, table_of
from p2pgrid.ledger.writer import resolve
from p2pgrid.proto.books import UNSIGNED_COUNTS_MS
from p2pgrid.proto.channel import ChannelHead
from p2pgrid.proto.dispute import Answer, Dispute
from p2pgrid.proto.keys import parse_public_key
from p2pgrid.proto.messages import Channel, Meter, Offer, Order, Receipt, Voucher
from p2pgrid.proto.pricing import is_billed_by_voucher
from p2pgrid.proto.record import M, Message, Record, Signed
from p2pgrid.proto.set_off_rules import NAMING_TYPES, is_of_channel


@dataclass(slots=True)
class _Fault:
    appends_before: int
    persisted: bool


class MemoryLedger:
    """The ledger of `p2pgrid.ledger.base`, in memory."""

    def __init__(self) -> None:
        self._books = MemoryBooks()
        self._unsure: MemoryBooks | None = None
        self._faults: list[_Fault] = []
        self._held: list[tuple[list[Change], asyncio.Future[None]]] = []
        self._holding = False
        self._closed = False
        self._untold: LedgerError | None = None
        """A write has failed, and who waits for it does not know yet: what is written now fails with it."""
        self._with_next: list[Change] = []
        self._on_durable: OnDurable | None = None

    # Faults

    def fail_append(self, after: int = 0, *, persisted: bool = False) -> None:
        """Let one write fail with LedgerError: the next one, or that which comes `after` so many others.

        With `persisted` the records reached the disk although the write was reported as failed. As with SQLite's
        WAL, readers do not see them, and the next write that succeeds removes them; `crashed` shows them until then.
        """
        self._faults.append(_Fault(after, persisted))

    def hold(self) -> None:
        """Queue what is written from now on; nothing becomes durable, and no future is done."""
        self._holding = True

    def release(self) -> None:
        """Make durable what was held, in order."""
        self._holding = False
        held, self._held = self._held, []
        for changes, future in held:
            self._commit(changes, future)

    def crashed(self) -> MemoryLedger:
        """The ledger as it is found after `kill -9` now. What is held is lost; this one is of no more use."""
        found = MemoryLedger()
        found._books = (self._unsure or self._books).copy()
        return found

    # The interface

    def append(self, *signed: Signed[Message]) -> asyncio.Future[None]:
        """Store checked records, all or none. The future raises LedgerError or SlotTaken."""
        changes = [*self._with_next, *(storing(table_of(one), one) for one in signed)]
        self._with_next.clear()
        return tell_when_durable(self._put(changes), signed, self._on_durable)

    def append_evidence(self, record: Record, reason: str) -> asyncio.Future[None]:
        """Keep an unacceptable record that a peer signed; the same bytes once, with the first reason."""

        def keep(books: MemoryBooks) -> None:
            if all(kept != record for kept, _ in books.evidence):
                books.evidence.append((record, reason))

        return self._put([keep])

    def note_outcome(self, order: Signed[Order], outcome: str) -> asyncio.Future[None]:
        """Close an order that will get no receipt; store it too if it is not on record."""

        def note(books: MemoryBooks) -> None:
            books.rows[order.id].outcome = outcome

        return self._put([storing(table_of(order), order), note])

    def channels(self) -> list[Signed[Channel]]:
        """Every channel with both signatures on record, oldest first."""
        rows = self._books.of(Channel)
        return [read_channel(row.record) for _, row in rows if signed_by(row.record) == BOTH_ROLES]

    def head(self, channel: bytes) -> ChannelHead:
        """Where the channel stands. Raises KeyError for a channel that is not on record."""
        channel_row = next((row for _, row in self._books.of(Channel, channel)), None)
        if channel_row is None:
            raise KeyError(channel.hex())
        receipts = sorted(self._books.of(Receipt, channel), key=lambda entry: entry[0].receipt_number)
        last, last_row = receipts[-1] if receipts else (None, channel_row)
        return ChannelHead(
            last_order_number=max((m.order_number for m, _ in self._books.of(Order, channel)), default=0),
            last_receipt_number=last.receipt_number if last else 0,
            last_receipt_id=last_row.record.id,
            total_pico=last.channel_total_pico if last else 0,
            countersigned=sum(signed_by(row.record) == BOTH_ROLES for _, row in receipts),
            countersigned_pico=sum(m.amount_pico for m, row in receipts if signed_by(row.record) == BOTH_ROLES),
        )

    def open_orders(self, channel: bytes) -> list[OpenOrder]:
        """Orders without a receipt and without an outcome, by number."""
        ended = {m.order_number for m, _ in self._books.of(Receipt, channel)}
        orders = sorted(self._books.of(Order, channel), key=lambda entry: entry[0].order_number)
        return [
            self._books.open_order(channel, message, row)
            for message, row in orders
            if row.outcome is None and message.order_number not in ended
        ]

    def order(self, channel: bytes, order_number: int) -> OpenOrder | None:
        """One order with its last voucher, whatever became of it."""
        for message, row in self._books.of(Order, channel):
            if message.order_number == order_number:
                return self._books.open_order(channel, message, row)
        return None

    def proposals(self, channel: bytes) -> list[Signed[Receipt]]:
        """Receipts that the provider signed and the client has not, by number."""
        receipts = sorted(self._books.of(Receipt, channel), key=lambda entry: entry[0].receipt_number)
        return [
            self._books.signed(row.record, Receipt, channel)
            for _, row in receipts
            if signed_by(row.record) == "provider"
        ]

    def billed_by_voucher(self, channel: bytes) -> list[Signed[Receipt]]:
        """Receipts that bill what a voucher acknowledged, issued within the hour before the channel's latest."""
        receipts = sorted(self._books.of(Receipt, channel), key=lambda entry: entry[0].receipt_number)
        since_ms = receipts[-1][0].issued_ms - UNSIGNED_COUNTS_MS if receipts else 0
        return [
            self._books.signed(row.record, Receipt, channel)
            for message, row in receipts
            if is_billed_by_voucher(message.status) and message.issued_ms > since_ms
        ]

    def receipt(self, channel: bytes, receipt_number: int) -> Signed[Receipt] | None:
        """One receipt with the signatures it has, or None."""
        for message, row in self._books.of(Receipt, channel):
            if message.receipt_number == receipt_number:
                return self._books.signed(row.record, Receipt, channel)
        return None

    def offer(self, offer_id: bytes) -> Signed[Offer] | None:
        """One offer by its record id, or None."""
        row = self._books.rows.get(offer_id)
        return read_offer(row.record) if row is not None and isinstance(row.message, Offer) else None

    def receipts(self, *, channel: bytes | None = None, limit: int | None = None) -> list[ReceiptRow]:
        """Receipts, newest first."""
        newest_first = self._books.of(Receipt, channel)[::-1]
        if channel is not None:
            newest_first.sort(key=lambda entry: -entry[0].receipt_number)
        return self._receipt_rows(newest_first[:limit])

    def billed_receipts(self, channel: bytes, *, after: int, limit: int) -> list[BilledReceipt]:
        """Receipts of the channel above number `after`, by number. Signatures are not checked again."""
        ordered = {message.order_number: message.ordered_ms for message, _ in self._books.of(Order, channel)}
        found = sorted(
            (entry for entry in self._books.of(Receipt, channel) if entry[0].receipt_number > after),
            key=lambda entry: entry[0].receipt_number,
        )
        return [
            BilledReceipt(
                record_id=row.record.id,
                receipt=message,
                countersigned=signed_by(row.record) == BOTH_ROLES,
                ordered_ms=ordered[message.order_number],
            )
            for message, row in found
            if message.order_number in ordered
        ][:limit]

    def find_receipts(self, prefix: str, *, limit: int = 2) -> list[ReceiptRow]:
        """Receipts whose id, as 64 lower-case hex digits, begins so; by id."""
        found = [entry for entry in self._books.of(Receipt) if entry[1].record.id.hex().startswith(prefix)]
        return self._receipt_rows(sorted(found, key=lambda entry: entry[1].record.id)[:limit])

    def order_records(self, channel: bytes, order_number: int) -> list[Record]:
        """The order, its meters, vouchers and receipt, in the order of arrival."""
        return [
            row.record
            for row in self._books.rows.values()
            if isinstance(row.message, Order | Meter | Voucher | Receipt)
            and (row.message.channel, row.message.order_number) == (channel, order_number)
        ]

    def _receipt_rows(self, entries: Sequence[tuple[Receipt, Row]]) -> list[ReceiptRow]:
        return [
            ReceiptRow(
                record_id=row.record.id,
                receipt=message,
                channel=self._books.channel(message.channel),
                countersigned=signed_by(row.record) == BOTH_ROLES,
            )
            for message, row in entries
        ]

    def disputes(self, *, channel: bytes | None = None, unanswered: bool = False) -> list[DisputeRow]:
        """Disputes with their answers, in the order of arrival; or those alone that have none."""
        answers = {
            message.dispute: self._books.signed(row.record, Answer, message.channel)
            for message, row in self._books.of(Answer, channel)
        }
        return [
            DisputeRow(self._books.signed(row.record, Dispute, message.channel), answers.get(row.record.id))
            for message, row in self._books.of(Dispute, channel)
            if not unanswered or row.record.id not in answers
        ]

    def dispute(self, record_id: bytes) -> DisputeRow | None:
        """The dispute with that id, or that to which the answer of that id is; None if neither is on record."""
        row = self._books.rows.get(record_id)
        if row is not None and isinstance(row.message, Answer):
            row = self._books.rows.get(row.message.dispute)
        if row is None or not isinstance(row.message, Dispute):
            return None
        channel = row.message.channel
        answer_id = self._books.slots.get(("answers", ("channel", "dispute"), (channel.hex(), row.record.id.hex())))
        answer = self._books.rows[answer_id].record if answer_id is not None else None
        return DisputeRow(
            self._books.signed(row.record, Dispute, channel),
            self._books.signed(answer, Answer, channel) if answer is not None else None,
        )

    def dispute_ids(self, channel: bytes, *, after: int = 0, limit: int | None = None) -> list[tuple[int, bytes]]:
        """Number of the receipt and id of each dispute and answer about receipts above number `after`, by number."""
        found = [
            (row.message.receipt_number, record_id)
            for record_id, row in self._books.rows.items()
            if isinstance(row.message, Dispute | Answer)
            and row.message.channel == channel
            and row.message.receipt_number > after
        ]
        return sorted(found, key=lambda one: one[0])[:limit]

    def settlement(self, message_type: type[M], channel: bytes) -> list[Signed[M]]:
        """All records of a type of settlement's in a channel, in the order of arrival. Raises LedgerError."""
        if message_type in NAMING_TYPES:
            rows = [row for message, row in self._books.of(message_type) if self._books.is_of(message, channel)]
            named = [read_named(row.record, message_type) for row in rows]
            known = [of_it for of_it, _ in self._books.of(Channel, channel)]
            return [one for one in named if all(is_of_channel(one.message, of_it) for of_it in known)]
        return [
            self._books.signed(row.record, message_type, channel) for _, row in self._books.of(message_type, channel)
        ]

    def settlement_marks(self, message_type: type[Message], channel: bytes) -> list[SettlementMark]:
        """Which statements, invoices or payments a channel has; no signature is checked. Raises LedgerError."""
        column = PLACED_BY[message_type.payload_type]
        return [
            SettlementMark(
                getattr(message, column), row.record.id, frozenset(one.role for one in row.record.signatures)
            )
            for message, row in self._books.of(message_type, channel)
        ]

    def settlement_records(self, message_type: type[M], channel: bytes, ids: Sequence[bytes]) -> Iterator[Signed[M]]:
        """Some of them, in this order, each one's signatures checked as it is taken; what is not on record is left out.

        Raises LedgerError.
        """
        for record_id in ids:
            row = self._books.rows.get(record_id)
            if (
                row is not None
                and isinstance(row.message, message_type)
                and getattr(row.message, "channel", b"") == channel
            ):
                yield self._books.signed(row.record, message_type, channel)

    def mentioned(self, channel: bytes, after: int) -> set[bytes]:
        """Ids that receipts of the channel above number `after` mention."""
        receipts = [message for message, _ in self._books.of(Receipt, channel) if message.receipt_number > after]
        return {mention for receipt in receipts for mention in receipt.mentions}

    def keep_request_key(self, order: Signed[Order], key: bytes) -> None:
        """Keep an order's commitment key (32 bytes), with the next `append`."""
        place = (order.message.channel, order.message.order_number)

        def keep(books: MemoryBooks) -> None:
            books.request_keys.setdefault(place, key)

        self._with_next.append(keep)

    def request_key(self, channel: bytes, order_number: int) -> bytes | None:
        """The commitment key of an order's request, or None: never kept, or erased."""
        return self._books.request_keys.get((channel, order_number))

    def request_keys_before(self, time_ms: int) -> list[tuple[bytes, int]]:
        """Channel and number of the orders of before that time whose commitment key is kept."""
        early = [(m.channel, m.order_number) for m, _ in self._books.of(Order) if m.ordered_ms < time_ms]
        return [place for place in early if place in self._books.request_keys]

    def kept_keys(self, before_ms: int) -> Iterator[KeptKey]:
        """Those of the orders of before that time, in the order of arrival."""
        receipts = {(m.channel, m.order_number): (m, row) for m, row in self._books.of(Receipt)}
        for m, row in self._books.of(Order):
            place = m.channel, m.order_number
            if m.ordered_ms >= before_ms or place not in self._books.request_keys:
                continue
            receipt, receipt_row = receipts.get(place, (None, None))
            yield KeptKey(
                channel=m.channel,
                order_number=m.order_number,
                ordered_ms=m.ordered_ms,
                outcome=row.outcome,
                receipt=receipt_row.record.id if receipt_row is not None else b"",
                receipt_number=receipt.receipt_number if receipt is not None else 0,
                issued_ms=receipt.issued_ms if receipt is not None else 0,
                countersigned=receipt_row is not None and signed_by(receipt_row.record) == BOTH_ROLES,
            )

    def receipts_before(self, time_ms: int) -> list[bytes]:
        """Ids of the receipts for orders of before that time, and of the disputes and answers about them."""
        early = {(m.channel, m.order_number) for m, _ in self._books.of(Order) if m.ordered_ms < time_ms}
        receipts = {
            (m.channel, m.receipt_number) for m, _ in self._books.of(Receipt) if (m.channel, m.order_number) in early
        }
        return [
            record_id
            for record_id, row in self._books.rows.items()
            if isinstance(row.message, Receipt | Dispute | Answer)
            and (row.message.channel, row.message.receipt_number) in receipts
        ]

    def erase_request_keys(self, orders: Sequence[tuple[bytes, int]]) -> asyncio.Future[None]:
        """Destroy the commitment keys of orders, by channel and number. What is not kept is passed over."""

        def erase(books: MemoryBooks) -> None:
            for place in orders:
                books.request_keys.pop(place, None)

        return self._put([erase])

    def records(self, *, channel: bytes | None = None) -> Iterator[Record]:
        """Every record that an audit needs, in the order of arrival: offers and channels first, then the rest."""
        offers = {m.offer for m, _ in self._books.of(Order, channel)}
        frame: list[Record] = []
        dealings: list[Record] = []
        for record_id, row in self._books.rows.items():
            if isinstance(row.message, Offer):
                wanted = channel is None or record_id in offers
            else:
                wanted = channel is None or self._books.is_of(row.message, channel)
            if wanted:
                (frame if isinstance(row.message, Offer | Channel) else dealings).append(row.record)
        return iter([*frame, *dealings])

    def evidence(self) -> Iterator[tuple[Record, str]]:
        """Unacceptable records that peers signed, each with the reason, in the order of arrival."""
        return iter(list(self._books.evidence))

    def watch(self, on_durable: OnDurable) -> None:
        """From now on, call with the records of each `append` once they are durable, in the order of the calls."""
        self._on_durable = both_told(self._on_durable, on_durable)

    def loggable(self, own_peer_id: str) -> Iterator[Loggable]:
        """Every record that the log of this peer should hold, in the order of arrival."""
        for record_id, row in list(self._books.rows.items()):
            if row.record.payload_type not in LOGGED_TYPES:
                continue
            message = row.message
            if isinstance(message, Offer) and parse_public_key(message.provider).peer_id != own_peer_id:
                continue
            if isinstance(message, Receipt) and signed_by(row.record) != BOTH_ROLES:
                continue
            yield Loggable(record_id, getattr(message, "channel", b""))

    def counts(self) -> dict[str, int]:
        """Rows by payload type, and `evidence`."""
        by_type = {t: len(self._books.of(table.message_type)) for t, table in TABLES.items()}
        return {**by_type, "evidence": len(self._books.evidence)}

    async def aclose(self) -> None:
        """Finish what is queued, and close. Later appends raise LedgerError."""
        self.release()
        self._closed = True

    # Inside

    def _put(self, changes: list[Change]) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._closed:
            future.set_exception(LedgerError("the ledger is closed.", hint="The node is shutting down."))
        elif self._holding:
            self._held.append((changes, future))
        else:
            self._commit(changes, future)
        return future

    def _commit(self, changes: Sequence[Change], future: asyncio.Future[None]) -> None:
        """Apply all or none. The future is done in a later turn of its loop, as with a real disk."""
        if self._untold is not None:
            future.get_loop().call_soon(resolve, [(future, self._untold)])
            return
        fault = self._due_fault()
        # A lone change checks before it changes; several, or a fault, need a copy that can be dropped.
        changed = self._books.copy() if fault is not None or len(changes) > 1 else self._books
        failure: LedgerError | None = None
        try:
            for change in changes:
                change(changed)
        except LedgerError as error:
            failure = error
        if fault is not None and failure is None:
            failure = LedgerError(
                "the ledger could not be written (a fault of the test's).", hint="None: it is a test."
            )
            self._unsure = changed if fault.persisted else self._unsure
            self._untold = failure
            future.get_loop().call_soon(self._tell)
        elif failure is None:
            self._books, self._unsure = changed, None
        future.get_loop().call_soon(resolve, [(future, failure)])

    def _tell(self) -> None:
        asyncio.get_running_loop().call_soon(setattr, self, "_untold", None)

    def _due_fault(self) -> _Fault | None:
        due = next((fault for fault in self._faults if fault.appends_before == 0), None)
        for fault in self._faults:
            fault.appends_before -= 1
        if due is not None:
            self._faults.remove(due)
        return due
