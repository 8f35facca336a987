"""Open items: what of each invoice is paid, set off and still open, and what was paid ahead. From records alone.

    invoice LT-2026-000001   gross 121.00   paid 100.00   set off 0.00   open 21.00   covered 5.00   left 16.00

*Open* is what the records that name the invoice leave of it. A channel may owe besides: money was paid ahead, or a
credit note is not paid back. That *covers* open invoices, those of its own statement first and then the oldest, as an
audit counts it (docs/spec/audit.md, rule 43b). *Left* is what is to be paid: open less covered.

A channel's records add up: what is open of all its items, less what is paid ahead, is its balance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, Protocol

from p2pgrid.proto.record import M, Signed
from p2pgrid.proto.statement import Invoice, InvoiceType, Payment, PaymentKind, Statement

AHEAD: Final = (b"", "")
"""The place of money that is paid ahead, beside invoices."""
Place = tuple[bytes, str]
"""Where a payment of a channel is booked: its statement's id and its invoice's number, both empty for `AHEAD`."""


class State(StrEnum):
    """How an item stands at a time."""

    OPEN = "open"
    """Nothing was paid, and it is not due yet. A credit note: nothing was paid back or set off."""
    PART_PAID = "part-paid"
    """Something was paid or set off, the rest is not due yet."""
    COVERED = "covered"
    """What is open is covered by money ahead or a credit note: nothing is to be paid."""
    PAID = "paid"
    """Nothing is open."""
    OVERPAID = "overpaid"
    """More was paid than it says; of a credit note, more was paid back."""
    OVERDUE = "overdue"
    """Something is left to be paid, and its day is over."""


@dataclass(frozen=True, slots=True)
class SetOffShare:
    """So much of an invoice was set off (docs/settlement/payments.md, section 5)."""

    channel: bytes
    invoice_number: str
    cents: int
    """Above zero of an invoice, below of a credit note."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenItem:
    """One invoice or credit note. Amounts are cents of the channel's currency; a credit note's gross is below zero."""

    channel: bytes
    invoice: Invoice
    invoice_id: bytes
    statement: Signed[Statement] | None
    """None if it is not on record."""
    paid_cents: int
    """Received for it, or booked on it from elsewhere; of a credit note, below zero, what was paid back or taken."""
    returned_cents: int
    """What banks took back of that, above zero. It is off `paid_cents` already."""
    reallocated_cents: int
    """What was booked on it from elsewhere, less what was taken from it. It is in `paid_cents` already."""
    set_off_cents: int
    covered_cents: int = 0
    """How much of what is open is covered; of a credit note, below zero, how much of it covers others."""

    @property
    def number(self) -> str:
        """The invoice's number."""
        return self.invoice.invoice_number

    @property
    def type_code(self) -> InvoiceType:
        return self.invoice.type_code

    @property
    def currency(self) -> str:
        return self.invoice.currency

    @property
    def place(self) -> Place:
        """Where payments for it are booked."""
        return self.invoice.statement, self.invoice.invoice_number

    @property
    def statement_number(self) -> int:
        """0 if the statement is not on record."""
        return self.statement.message.statement_number if self.statement is not None else 0

    @property
    def due_ms(self) -> int:
        """When it is to be paid by, Unix milliseconds; when it was issued, if its statement is not on record."""
        return self.statement.message.due_ms if self.statement is not None else self.invoice.issued_ms

    @property
    def gross_cents(self) -> int:
        return self.invoice.gross_cents

    @property
    def open_cents(self) -> int:
        """Above zero: owed to the provider. Below: owed to the client."""
        return self.gross_cents - self.paid_cents - self.set_off_cents

    @property
    def left_cents(self) -> int:
        """What is to be paid (below zero: paid back): what is open and not covered."""
        return self.open_cents - self.covered_cents

    def state(self, at_ms: int) -> State:
        """How it stands at a time."""
        sign = 1 if self.gross_cents >= 0 else -1
        is_open = sign * self.open_cents
        if not is_open:
            return State.PAID
        if is_open < 0:
            return State.OVERPAID
        if not self.left_cents:
            return State.COVERED
        if self.left_cents > 0 and at_ms > self.due_ms:
            return State.OVERDUE
        return State.PART_PAID if self.paid_cents or self.set_off_cents else State.OPEN


@dataclass(frozen=True, slots=True)
class Cover:
    """So many cents (above zero) of what the channel owes its client stand for what is open."""

    source: Place
    target: Place
    """`AHEAD` where more was taken back of it than is there."""
    cents: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelItems:
    """All of one channel."""

    channel: bytes
    items: tuple[OpenItem, ...]
    """By statement number, then by the time of issue."""
    ahead_cents: int
    """Paid ahead and not booked on an invoice; below zero if the bank took back what was."""
    unplaced_cents: int
    """Paid for invoices that are not on record."""
    covers: tuple[Cover, ...]

    @property
    def balance_cents(self) -> int:
        """What the client owes in all; below zero, what it has paid ahead."""
        return sum(item.open_cents for item in self.items) - self.ahead_cents - self.unplaced_cents

    @property
    def prepaid_cents(self) -> int:
        """Of what is paid ahead, what covers nothing: credit for what is bought next. Below zero, what the bank took
        back and nothing covers."""
        given = sum(cover.cents for cover in self.covers if cover.source == AHEAD)
        got = sum(cover.cents for cover in self.covers if cover.target == AHEAD)
        return self.ahead_cents - given + got


class SettlementRecords(Protocol):
    """What of a ledger is needed here: any reader has it."""

    def settlement(self, message_type: type[M], channel: bytes) -> list[Signed[M]]: ...


def open_items(
    ledger: SettlementRecords, channels: Iterable[bytes], *, set_off: Iterable[SetOffShare] = ()
) -> list[OpenItem]:
    """The items of these channels (ids), channel by channel. Raises LedgerError."""
    return [item for one in items_by_channel(ledger, channels, set_off=set_off) for item in one.items]


def items_by_channel(
    ledger: SettlementRecords, channels: Iterable[bytes], *, set_off: Iterable[SetOffShare] = ()
) -> list[ChannelItems]:
    """`channel_items` of each of these channels (ids). Raises LedgerError."""
    shares = list(set_off)
    return [
        channel_items(
            channel,
            ledger.settlement(Statement, channel),
            ledger.settlement(Invoice, channel),
            (payment.message for payment in ledger.settlement(Payment, channel)),
            set_off=(share for share in shares if share.channel == channel),
        )
        for channel in dict.fromkeys(channels)
    ]


def channel_items(
    channel: bytes,
    statements: Iterable[Signed[Statement]],
    invoices: Iterable[Signed[Invoice]],
    payments: Iterable[Payment],
    *,
    set_off: Iterable[SetOffShare] = (),
) -> ChannelItems:
    """What one channel's records come to. Their order does not matter."""
    by_id = {statement.id: statement for statement in statements}
    paid: Counter[Place] = Counter()
    of_kind: Counter[tuple[PaymentKind, Place]] = Counter()
    for payment in payments:
        place = payment.statement, payment.invoice_number
        paid[place] += payment.amount_cents
        of_kind[payment.kind, place] += payment.amount_cents
    taken: Counter[str] = Counter()
    for share in set_off:
        taken[share.invoice_number] += share.cents
    items = []
    for one in invoices:
        place = one.message.statement, one.message.invoice_number
        item = OpenItem(
            channel=channel,
            invoice=one.message,
            invoice_id=one.id,
            statement=by_id.get(one.message.statement),
            paid_cents=paid.pop(place, 0),
            returned_cents=-of_kind[PaymentKind.RETURNED, place],
            reallocated_cents=of_kind[PaymentKind.REALLOCATED, place],
            set_off_cents=taken[one.message.invoice_number],
        )
        items.append(item)
    items.sort(key=lambda item: (item.statement_number, item.invoice.issued_ms, item.number))
    ahead = paid.pop(AHEAD, 0)
    covers = cover({item.place: item.open_cents for item in items}, ahead)
    moved: Counter[Place] = Counter()
    for each in covers:
        moved[each.target] += each.cents
        moved[each.source] -= each.cents
    return ChannelItems(
        channel=channel,
        items=tuple(replace(item, covered_cents=moved[item.place]) for item in items),
        ahead_cents=ahead,
        unplaced_cents=sum(paid.values()),
        covers=covers,
    )


def cover(open_cents: Mapping[Place, int], ahead_cents: int) -> tuple[Cover, ...]:
    """Which of what the channel owes its client stands for what of what is open.

    `open_cents` has the items in their order. What is below zero there is a source, as is what is paid ahead; what is
    above is a target, as is money ahead of which more was taken back than is there. Of one statement first: equal
    amounts (an invoice and the credit note that takes it back), then in order. Then what is left, in order.
    """
    left = {place: cents for place, cents in open_cents.items() if cents}
    covers: list[Cover] = []
    by_statement: dict[bytes, list[Place]] = {}
    for place in left:
        by_statement.setdefault(place[0], []).append(place)
    for places in by_statement.values():
        if len(places) > 1:
            _cover_equal(left, places, covers)
            _cover_in_order(left, places, covers)
    places = list(left)
    if ahead_cents:
        left[AHEAD] = -ahead_cents
        # The last source; or the first target, for money that is gone covers nothing.
        places = [*places, AHEAD] if ahead_cents > 0 else [AHEAD, *places]
    _cover_in_order(left, places, covers)
    return tuple(covers)


def _cover_equal(left: dict[Place, int], places: Sequence[Place], covers: list[Cover]) -> None:
    """Take an invoice and the credit note that takes it back together."""
    by_cents: dict[int, list[Place]] = {}
    for place in places:
        by_cents.setdefault(left[place], []).append(place)
    for cents, sources in by_cents.items():
        if cents < 0:
            for source, target in zip(sources, by_cents.get(-cents, ()), strict=False):
                _take(left, source, target, covers)


def _cover_in_order(left: dict[Place, int], places: Iterable[Place], covers: list[Cover]) -> None:
    ordered = list(places)
    targets = [place for place in ordered if left[place] > 0]
    at = 0
    for source in ordered:
        while left[source] < 0 and at < len(targets):
            _take(left, source, targets[at], covers)
            at += not left[targets[at]]


def _take(left: dict[Place, int], source: Place, target: Place, covers: list[Cover]) -> None:
    cents = min(-left[source], left[target])
    left[source] += cents
    left[target] -= cents
    covers.append(Cover(source, target, cents))
