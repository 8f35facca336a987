"""Where a channel's settlement stands, from one side's ledger: what was stated, what the next statement can count."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from p2pgrid.errors import LedgerError
from p2pgrid.ledger.base import BilledReceipt, DisputeRow
from p2pgrid.proto.contested import Contest, Taken, contest_of, taken_at
from p2pgrid.proto.messages import Channel, Offer, Receipt, Tariff
from p2pgrid.proto.record import M, Role, Signed
from p2pgrid.proto.set_off_rules import TakenOff, set_off_to_state
from p2pgrid.proto.statement import Payment, Statement
from p2pgrid.proto.statement_making import Stated
from p2pgrid.settlement.set_off.claims import in_force

MOST_RECEIPTS: Final = 100_000
"""Of one statement: those above go to the next."""
_CHUNK: Final = 250
"""Receipts that are read in one turn of the loop."""


class StatedLedger(Protocol):
    """What is read of a ledger; both ledgers and a reader have it. All raise LedgerError."""

    def settlement(self, message_type: type[M], channel: bytes) -> list[Signed[M]]: ...

    def disputes(self, *, channel: bytes | None = None, unanswered: bool = False) -> list[DisputeRow]: ...

    def receipt(self, channel: bytes, receipt_number: int) -> Signed[Receipt] | None: ...

    def billed_receipts(self, channel: bytes, *, after: int, limit: int) -> list[BilledReceipt]: ...

    def offer(self, offer_id: bytes) -> Signed[Offer] | None: ...


@dataclass(frozen=True, slots=True)
class Held:
    """A receipt that ends what can be stated: it is neither signed by both nor disputed by the client."""

    receipt_number: int
    reason: str


@dataclass(frozen=True, slots=True)
class Books:
    """All of a channel's settlement but its receipts."""

    channel: Channel
    statements: tuple[Signed[Statement], ...]
    """Of both signatures, by number."""
    pending: Signed[Statement] | None
    """Signed by the provider alone, and the next of them."""
    contests: tuple[Contest, ...]
    disputed: frozenset[int]
    """Receipts that the client disputes."""
    payments: tuple[Payment, ...]
    set_off: tuple[TakenOff, ...]
    """What set-offs and cycles in force take off its debt, by time."""

    @property
    def last(self) -> Signed[Statement] | None:
        """The last of both signatures."""
        return self.statements[-1] if self.statements else None

    @property
    def last_receipt(self) -> int:
        """The last receipt that was stated; 0 if none was."""
        return self.last.message.last_receipt if self.last is not None else 0

    @property
    def from_ms(self) -> int:
        """Where the next period begins."""
        return self.last.message.until_ms if self.last is not None else self.channel.opened_ms

    @property
    def credited_pico(self) -> int:
        """Of all statements."""
        return sum(one.message.credits_pico for one in self.statements)

    def payments_cents(self, at_ms: int) -> int:
        """Booked by that time and in no statement yet."""
        booked = sum(one.amount_cents for one in self.payments if one.booked_ms <= at_ms)
        return booked - sum(one.message.payments_cents for one in self.statements)

    def set_off_cents(self, at_ms: int) -> int:
        """Set off by that time and in no statement yet."""
        counted_cents = sum(one.message.set_off_cents for one in self.statements)
        return set_off_to_state(self.set_off, stated_ms=at_ms, counted_cents=counted_cents)

    def taken(self, last_receipt: int, at_ms: int) -> Taken:
        """What disputes come to."""
        return taken_at(self.contests, last_receipt=last_receipt, at_ms=at_ms)

    def moved_ms(self, now_ms: int) -> int | None:
        """When something else than a receipt happened that is in no statement; None if nothing did."""
        stated = self.last.message if self.last is not None else None
        stated_ms = stated.stated_ms if stated is not None else 0
        moments = [one.booked_ms for one in self.payments if one.booked_ms <= now_ms]
        moments += [one.at_ms for one in self.set_off if one.at_ms <= now_ms]
        found = []
        if self.payments_cents(now_ms) or self.set_off_cents(now_ms):
            found.append(min((one for one in moments if one > stated_ms), default=now_ms))
        taken = self.taken(self.last_receipt, now_ms)
        held_pico = stated.held_pico if stated is not None else 0
        if taken.credits_pico > self.credited_pico or taken.held_pico != held_pico:
            found.append(now_ms)
        return max(min(found), self.from_ms) if found else None


@dataclass(frozen=True, slots=True)
class Position:
    """What the next statement can say."""

    books: Books
    receipts: tuple[Stated, ...]
    """In no statement yet and fit for one: by number, without gaps."""
    ends: Held | None
    """What keeps those above from being stated."""
    offer: Offer | None
    """That of the last of them, else of the last that was stated."""


def read_books(ledger: StatedLedger, channel: Signed[Channel]) -> Books:
    """Raises LedgerError."""
    terms = channel.message
    statements = sorted(ledger.settlement(Statement, terms.channel), key=lambda one: one.message.statement_number)
    both = tuple(one for one in statements if {Role.CLIENT, Role.PROVIDER} <= set(one.signers))
    next_number = both[-1].message.statement_number + 1 if both else 1
    pending = next((one for one in statements if one.message.statement_number == next_number), None)
    rows = ledger.disputes(channel=terms.channel)
    return Books(
        channel=terms,
        statements=both,
        pending=pending,
        contests=tuple(_contests(ledger, terms, rows)),
        disputed=frozenset(row.dispute.message.receipt_number for row in rows if row.dispute.message.by is Role.CLIENT),
        payments=tuple(one.message for one in ledger.settlement(Payment, terms.channel)),
        set_off=tuple(in_force(ledger, terms.channel)),
    )


async def read_position(ledger: StatedLedger, books: Books, *, last_receipt: int | None = None) -> Position:
    """The receipts that are in no statement, up to number `last_receipt`, read some at a time. Raises LedgerError."""
    channel, after = books.channel.channel, books.last_receipt
    found: list[Stated] = []
    prices = _Prices(ledger)
    ends: Held | None = None
    while ends is None:
        limit = min(_CHUNK, (MOST_RECEIPTS if last_receipt is None else last_receipt - books.last_receipt) - len(found))
        if limit <= 0:
            break
        rows = ledger.billed_receipts(channel, after=after, limit=limit)
        for row in rows:
            number = row.receipt.receipt_number
            if number != after + 1:
                ends = Held(after + 1, "is not on record here")
                break
            if not row.countersigned and number not in books.disputed:
                ends = Held(number, "is neither signed by both nor disputed")
                break
            found.append(Stated(row.record_id, row.receipt, prices.tariff_of(row)))
            after = number
        if len(rows) < limit:
            break
        await asyncio.sleep(0)
    return Position(books, tuple(found), ends, _last_offer(ledger, books, found))


def _last_offer(ledger: StatedLedger, books: Books, found: Sequence[Stated]) -> Offer | None:
    receipt = found[-1].receipt if found else None
    if receipt is None and books.last_receipt:
        stated = ledger.receipt(books.channel.channel, books.last_receipt)
        receipt = stated.message if stated is not None else None
    offer = ledger.offer(receipt.offer) if receipt is not None else None
    return offer.message if offer is not None else None


def _contests(ledger: StatedLedger, terms: Channel, rows: Iterable[DisputeRow]) -> Iterable[Contest]:
    for row in rows:
        receipt = ledger.receipt(terms.channel, row.dispute.message.receipt_number)
        if receipt is None or receipt.id != row.dispute.message.receipt:
            continue
        contest = contest_of(
            row.dispute.message,
            row.answer.message if row.answer is not None else None,
            receipt=receipt.message,
            receipt_id=receipt.id,
            countersigned=Role.CLIENT in receipt.signers,
            days=terms.dispute_days,
        )
        if contest is not None:
            yield contest


class _Prices:
    """The tariffs of receipts, each offer read once."""

    def __init__(self, ledger: StatedLedger) -> None:
        self._ledger = ledger
        self._offers: dict[bytes, Offer] = {}

    def tariff_of(self, row: BilledReceipt) -> Tariff:
        """Raises LedgerError for a receipt whose offer is not on record."""
        offer = self._offers.get(row.receipt.offer)
        if offer is None:
            signed = self._ledger.offer(row.receipt.offer)
            if signed is None:
                raise _without_offer(row)
            offer = self._offers[row.receipt.offer] = signed.message
        entry = offer.model_offer(row.receipt.model)
        if entry is None:
            raise _without_offer(row)
        return offer.tariff_at(entry, row.ordered_ms)


def _without_offer(row: BilledReceipt) -> LedgerError:
    return LedgerError(
        f"the ledger holds receipt {row.receipt.receipt_number} of channel {row.receipt.channel.hex()[:16]} without "
        "its offer.",
        hint="Restore the ledger from a backup.",
    )
