"""What an audit has judged, sorted so that money can be followed through it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any, Final

from p2pgrid.audit.trace_parts import PartyNames
from p2pgrid.proto.allotment import ChannelMoney, MoneyKind, MovementMoney, StatementMoney
from p2pgrid.proto.channel_book import Book
from p2pgrid.proto.evidence import Held
from p2pgrid.proto.findings import Finding
from p2pgrid.proto.judgement import shortened
from p2pgrid.proto.messages import Receipt
from p2pgrid.proto.settlement_summary import money_of
from p2pgrid.proto.statement import Invoice, Statement
from p2pgrid.proto.verdict import Judged, Verdict


@dataclass(slots=True)
class TracedChannel:
    """One channel: its records, and every cent of it."""

    book: Book
    money: ChannelMoney
    parties: PartyNames
    invoices: dict[bytes, list[Held[Invoice]]]
    """Of each statement, in time."""
    statements: dict[bytes, Held[Statement]]
    by_record: dict[bytes, MovementMoney]
    """Movements by their record: the first, where one tells of several."""
    naming: dict[bytes, list[MovementMoney]]
    """Movements by the statement that they name."""
    ranges: list[tuple[int, int, StatementMoney]]
    """Of statements: the first receipt, the highest last one up to here, by the first."""
    billed: dict[tuple[bytes, str], int]
    """What the invoices of a statement with one number come to."""
    numbers: list[int]
    """Of the receipts at hand, in order."""
    sums: list[int]
    """The pico of the first of these, of the first two, and so on; 0 before them."""

    @property
    def id(self) -> bytes:
        return self.book.id

    def before(self, statement: Statement) -> Statement | None:
        """The statement before."""
        held = self.book.statements.get(statement.statement_number - 1)
        return held.message if held is not None else None

    def pico_between(self, first: int, last: int) -> int:
        """What the receipts at hand of these numbers come to."""
        start, end = bisect_left(self.numbers, first), bisect_right(self.numbers, last)
        return self.sums[end] - self.sums[start] if end > start else 0

    def holding(self, number: int) -> list[StatementMoney]:
        """The statements whose range has this receipt: one, if all is right."""
        found = []
        at = bisect_right(self.ranges, number, key=lambda one: one[0])
        while at and self.ranges[at - 1][1] >= number:
            at -= 1
            if self.ranges[at][2].statement.last_receipt >= number:
                found.append(self.ranges[at][2])
        return sorted(found, key=lambda one: one.statement.statement_number)


@dataclass(slots=True)
class Transfer:
    """What is booked of one entry of the bank, in whichever channels; or one record without an entry."""

    movements: list[tuple[TracedChannel, MovementMoney]] = field(default_factory=list)
    ids: frozenset[bytes] = frozenset()
    """Its records."""

    @property
    def first(self) -> MovementMoney:
        """The one that moved money, where others reallocate it."""
        return next((m for _, m in self.movements if _is_moved(m)), self.movements[0][1])

    @property
    def amount_cents(self) -> int:
        """What the bank moved."""
        moved = [m.movement.amount_cents for _, m in self.movements if _is_moved(m)]
        return sum(moved) if moved else sum(m.movement.amount_cents for _, m in self.movements)


MOST_SAME: Final = 32
"""Transfers with one reference that are looked at."""

References = Callable[[bytes], Iterable[str]]
"""From a statement's id to the references that were made for it, in their one form: letters and digits, upper case."""


def no_references(_statement_id: bytes) -> Iterable[str]:
    """Nothing is known of references."""
    return ()


def compact(reference: str) -> str:
    """A reference in its one form."""
    return "".join(c for c in reference.upper() if c.isascii() and c.isalnum())


class TraceBook:
    """Every channel that was judged."""

    def __init__(self, judged: Judged, references: References = no_references) -> None:
        """`references`: by which the money for a statement is found."""
        self._references: Final = references
        self.verdict: Final[Verdict] = judged.verdict
        self.offers: Final = judged.case.offers
        self.now_ms: Final = judged.case.now_ms
        named = {one.channel: one for one in judged.verdict.channels}
        self.channels: Final = [_traced(book, named[book.id.hex()]) for book in judged.books]

    @cached_property
    def transfers(self) -> list[Transfer]:
        """Every movement of money, those of one entry together; by time. What was set off is none."""
        found: dict[tuple[bytes, bytes], Transfer] = defaultdict(Transfer)
        for channel in self.channels:
            for one in channel.money.movements:
                movement = one.movement
                if movement.kind is not MoneyKind.SET_OFF:
                    provider = channel.book.channel.message.provider
                    key = (provider, movement.entry) if movement.entry else (b"", movement.record_id)
                    found[key].movements.append((channel, one))
        for transfer in found.values():
            transfer.movements.sort(key=lambda pair: (pair[1].movement.at_ms, pair[1].movement.record_id))
            transfer.ids = frozenset(m.movement.record_id for _, m in transfer.movements)
        return sorted(found.values(), key=lambda t: (t.first.movement.at_ms, t.first.movement.record_id))

    @cached_property
    def by_reference(self) -> dict[str, tuple[TracedChannel, StatementMoney]]:
        """The statement that each reference was made for."""
        return {
            reference: (channel, money)
            for channel in self.channels
            for money in channel.money.statements.values()
            for reference in self._references(money.statement_id)
        }

    @cached_property
    def _with_reference(self) -> dict[str, list[Transfer]]:
        found: dict[str, list[Transfer]] = defaultdict(list)
        for transfer in self.transfers:
            found[compact(transfer.first.movement.reference)].append(transfer)
        return found

    def having_reference(self, reference: str) -> list[Transfer]:
        """Transfers with this reference, which must not be empty."""
        return self._with_reference.get(compact(reference), []) if compact(reference) else []

    def about_reference(self, transfer: Transfer) -> tuple[str, tuple[str, ...]]:
        """`TransferTrace.reference_of` and `same_reference`."""
        reference = transfer.first.movement.reference
        undone = {i for _, m in transfer.movements for u in m.undone for i in (u.came, u.went)} - transfer.ids
        others = [
            other.first.movement.record_id.hex()
            for other in self.having_reference(reference)[:MOST_SAME]
            if undone.isdisjoint(other.ids) and other is not transfer
        ]
        made_for = self.by_reference.get(compact(reference))
        said = ""
        if made_for is not None:
            channel, money = made_for
            covered = {cover.statement for _, m in transfer.movements for cover in m.covers}
            named = {m.movement.statement for _, m in transfer.movements}
            if money.statement_id not in covered | named:
                numbers = [held.message.invoice_number for held in channel.invoices.get(money.statement_id, ())]
                of = f" (invoice {shortened(numbers)})" if numbers else ""
                said = f"statement {money.statement.statement_number} of channel {channel.id.hex()[:8]}{of}"
        return said, tuple(others)

    def touching(self, ids: Iterable[bytes], channels: Sequence[tuple[TracedChannel, int, int]]) -> list[Finding]:
        """Findings and notes about these records, or about receipts (and their orders) of these ranges of numbers."""
        wanted = {record_id.hex() for record_id in ids}
        found = []
        ranges: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for channel, first, last in channels:
            ranges[channel.id.hex()].append((first, last))
        for finding in (*self.verdict.findings, *self.verdict.notes):
            number = self.receipt_numbers.get(finding.record_id)
            in_range = number and any(a <= number <= b for a, b in ranges.get(finding.channel, ()))
            if in_range or finding.record_id in wanted or not wanted.isdisjoint(finding.other_record_ids):
                found.append(finding)
        return found

    @cached_property
    def receipt_numbers(self) -> dict[str, int]:
        """Of each record that a finding is about: the number of the receipt that it is, or that it led to."""
        about = {finding.record_id for finding in (*self.verdict.findings, *self.verdict.notes)} - {""}
        named = {finding.channel for finding in (*self.verdict.findings, *self.verdict.notes)}
        found: dict[str, int] = {}
        for channel in self.channels:
            if channel.id.hex() not in named:
                continue
            book = channel.book
            billed = {h.message.order_number: number for number, h in book.receipts.items()}
            records: list[Held[Any]] = [*book.receipts.values(), *book.disputes.values(), *book.answers.values()]
            records += [h for orders in book.orders.values() for h in orders.values()]
            records += [h for ticks in book.meters.values() for h in ticks.values()]
            records += [h for ticks in book.vouchers.values() for h in ticks.values()]
            for held in records:
                if held.record_id.hex() in about:
                    number = getattr(held.message, "receipt_number", 0)
                    found[held.record_id.hex()] = number or billed.get(held.message.order_number, 0)
        return found


def receipts_between(channel: TracedChannel, first: int, last: int) -> list[Held[Receipt]]:
    """Those at hand, by number."""
    receipts = channel.book.receipts
    if last - first > len(receipts):
        return [receipts[number] for number in sorted(receipts) if first <= number <= last]
    return [receipts[number] for number in range(first, last + 1) if number in receipts]


def ranges_of(numbers: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Unbroken ranges, first and last of each; the numbers are in order."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1] = found[-1][0], number
        else:
            found.append((number, number))
    return tuple(found)


def _is_moved(one: MovementMoney) -> bool:
    return one.movement.kind is not MoneyKind.REALLOCATED


def _traced(book: Book, summary: Any) -> TracedChannel:
    money = money_of(book)
    invoices: dict[bytes, list[Held[Invoice]]] = defaultdict(list)
    for held in sorted(book.invoices, key=lambda h: (h.message.issued_ms, h.record_id)):
        invoices[held.message.statement].append(held)
    by_record: dict[bytes, MovementMoney] = {}
    naming: dict[bytes, list[MovementMoney]] = defaultdict(list)
    for movement in money.movements:
        by_record.setdefault(movement.movement.record_id, movement)
        naming[movement.movement.statement].append(movement)
    parties = PartyNames(
        channel=book.id.hex(),
        provider=summary.provider,
        client=summary.client,
        operator=summary.operator,
        currency=book.channel.message.currency,
    )
    statements = {held.record_id: held for held in book.all_statements}
    ranges: list[tuple[int, int, StatementMoney]] = []
    standing = [one for h in book.statements.values() if (one := money.statements.get(h.record_id)) is not None]
    for one in sorted(standing, key=lambda one: (one.statement.first_receipt, one.statement.statement_number)):
        highest = max(one.statement.last_receipt, ranges[-1][1] if ranges else 0)
        ranges.append((one.statement.first_receipt, highest, one))
    billed: dict[tuple[bytes, str], int] = defaultdict(int)
    for held in book.invoices:
        billed[held.message.statement, held.message.invoice_number] += held.message.gross_cents
    numbers = sorted(book.receipts)
    return TracedChannel(
        book=book,
        money=money,
        parties=parties,
        invoices=dict(invoices),
        statements=statements,
        by_record=by_record,
        naming=dict(naming),
        ranges=ranges,
        billed=dict(billed),
        numbers=numbers,
        sums=list(accumulate((book.receipts[n].message.amount_pico for n in numbers), initial=0)),
    )
