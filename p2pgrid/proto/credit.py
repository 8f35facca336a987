"""What settling does for a channel's credit (docs/spec/session.md, section 8a).

A channel's credit limit is held against what is signed and unpaid. Receipts are net, in pico; what is paid is gross,
in cents. Both sides work out alike, from the statements that both signed and the payments that the provider signed,
how much of the channel's total is off the limit again: what is *freed*. While nothing is paid, a statement frees
nothing and takes nothing: what it states stays owed at its net.

Pure, in integers; every rounding is against the client, whose next payment makes up for it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from p2pgrid.proto.invoice_sums import PICO_PER_CENT
from p2pgrid.proto.record import PARTIES, Signed
from p2pgrid.proto.set_off_rules import TakenOff
from p2pgrid.proto.statement import Payment, Statement

UNSTATED_RATE_BP: Final = 2700
"""VAT that is taken off what is paid ahead before any statement says which there is: the highest rate in the EU."""
_WHOLE_BP: Final = 10_000


class OpenStatement(NamedTuple):
    """What is left to pay of one statement, once all that was paid has covered the oldest."""

    statement: Statement
    cents: int


class Balances:
    """What a channel's statements come to, each after the one before, and what payments make of it.

    All sums are kept for every number of statements from the first on: an auditor cannot tell how many of them the
    provider had when it took an order.
    """

    def __init__(self) -> None:
        self.stated_pico: Final = [0]
        """Amounts of the receipts that the first n statements hold; so with all lists here."""
        self.held_pico: Final = [0]
        self.credits_pico: Final = [0]
        """What statements credit, in all."""
        self.set_off_cents: Final = [0]
        """What statements count as set off, in all."""
        self._gross: Final = [0]
        """All gross amounts and the opening balance, cents."""
        self._due: Final = [0]
        """Gross amounts above zero alone, cents."""
        self._billed: Final = [0]
        """The receipts that those are for, net of credits and of what is held back, in pico."""
        self._rates: Final = [UNSTATED_RATE_BP]
        """The VAT in what is paid ahead: the highest rate of the last statement."""
        self._statements: Final[list[Statement]] = []

    def __len__(self) -> int:
        """How many statements are counted."""
        return len(self.stated_pico) - 1

    def add(self, statement: Statement) -> None:
        """Count the next statement."""
        held, gross = self.held_pico[-1], statement.gross_cents
        billed = statement.total_pico - statement.credits_pico - (statement.held_pico - held)
        is_due = gross > 0
        self.stated_pico.append(self.stated_pico[-1] + statement.total_pico)
        self.held_pico.append(statement.held_pico)
        self.credits_pico.append(self.credits_pico[-1] + statement.credits_pico)
        self.set_off_cents.append(self.set_off_cents[-1] + statement.set_off_cents)
        opening = 0 if len(self._gross) > 1 else statement.opening_cents
        self._gross.append(self._gross[-1] + opening + gross)
        self._due.append(self._due[-1] + (gross if is_due else 0))
        self._billed.append(self._billed[-1] + (max(billed, 0) if is_due else 0))
        self._rates.append(max(line.rate_bp for line in statement.vat))
        self._statements.append(statement)

    def unpaid_cents(self, paid_cents: int, n: int | None = None) -> int:
        """What is owed by the first n statements (all, if left out) once so much is paid; below zero: paid ahead."""
        return self._gross[-1 if n is None else n] - paid_cents

    def freed_pico(self, paid_cents: int, credited_pico: int, n: int | None = None) -> int:
        """What is off the limit by the first n statements; below zero where a balance brought in from before is open.

        `paid_cents`: all payments of the channel and all that was set off, what went back taken off. `credited_pico`:
        all that accepted disputes take off.
        """
        n = len(self) if n is None else n
        credits_pico = max(credited_pico - self.credits_pico[n], 0)
        cents = self.unpaid_cents(paid_cents, n)
        return self.stated_pico[n] - self.held_pico[n] + credits_pico - self._net_of(cents, n)

    def open_statements(self, paid_cents: int) -> Iterator[OpenStatement]:
        """What is left to pay of each, the oldest first. A balance brought in from before is the first statement's."""
        left = self.unpaid_cents(paid_cents)
        if left <= 0:
            return
        first = self._due[-1] - left
        at = max(bisect_right(self._due, first) - 1, 0)
        for index in range(at, len(self)):
            brought = max(-first, 0) if index == 0 else 0
            cents = self._due[index + 1] - max(self._due[index], first) + brought
            if cents > 0:
                yield OpenStatement(self._statements[index], cents)

    def _net_of(self, cents: int, n: int) -> int:
        """A balance in net pico: what is open is of the newest statements; what is paid ahead has the last VAT."""
        if cents <= 0:
            return -(-cents * PICO_PER_CENT * _WHOLE_BP // (_WHOLE_BP + self._rates[n]))
        first = self._due[n] - cents
        if first < 0:  # more is open than statements came to: a balance from before
            return self._billed[n] - first * PICO_PER_CENT
        at = bisect_right(self._due, first, 0, n + 1) - 1  # the statement after the first `at` is the oldest open one
        gross, billed = self._due[at + 1] - self._due[at], self._billed[at + 1] - self._billed[at]
        part = self._due[at + 1] - first
        return self._billed[n] - self._billed[at + 1] + -(-billed * part // gross)


class ChannelCredit:
    """What is freed of one channel's total: the same on both sides once both hold the same records.

    Each record counts once, however often it is noted, and in whatever order they come: a statement counts when it has
    both signatures and all before it count.
    """

    def __init__(self) -> None:
        self.freed_pico = 0
        """Kept up to date: whoever takes an order reads it."""
        self._money_cents = self._set_off_cents = 0
        self.balances: Final = Balances()
        self._waiting: Final[dict[int, Statement]] = {}
        self._last_id = b""
        self._known: Final[set[bytes]] = set()
        self._credits: Final[dict[int, int]] = {}

    @property
    def paid_cents(self) -> int:
        """All that came less all that went back, and what was set off: by its records, or as statements count it."""
        return self._money_cents + max(self._set_off_cents, self.balances.set_off_cents[-1])

    @property
    def unpaid_cents(self) -> int:
        """The balance now; below zero: paid ahead."""
        return self.balances.unpaid_cents(self.paid_cents)

    def note_statement(self, signed: Signed[Statement]) -> None:
        """A statement is on record. One that has not both signatures is not counted."""
        message = signed.message
        if not set(PARTIES) <= set(signed.signers) or message.statement_number <= len(self.balances):
            return
        self._waiting[message.statement_number] = message
        while (following := self._waiting.pop(len(self.balances) + 1, None)) is not None:
            self.balances.add(following)
        self._work_out()

    def note_payment(self, signed: Signed[Payment]) -> None:
        """A payment is on record, which the provider signed."""
        if self._is_new(signed.id):
            self._money_cents += signed.message.amount_cents
            self._work_out()

    def note_set_off(self, taken: TakenOff) -> None:
        """A set-off or a cycle's leg is in force, and takes something off what the client owes in the channel."""
        if self._is_new(taken.record_id):
            self._set_off_cents += taken.cents
            self._work_out()

    def note_credit(self, receipt_number: int, pico: int) -> None:
        """A dispute with force was accepted, which takes so much off the receipt: the most of each receipt counts."""
        if pico > self._credits.get(receipt_number, 0):
            self._credits[receipt_number] = pico
            self._work_out()

    def _is_new(self, record_id: bytes) -> bool:
        is_new = record_id not in self._known
        self._known.add(record_id)
        return is_new

    def _work_out(self) -> None:
        self.freed_pico = self.balances.freed_pico(self.paid_cents, sum(self._credits.values()))


def balances_of(statements: Iterable[Statement]) -> Balances | None:
    """The balances of all statements, the n-th being number n; None if one of them is missing."""
    balances = Balances()
    for number, statement in enumerate(sorted(statements, key=lambda one: one.statement_number), 1):
        if statement.statement_number != number:
            return None
        balances.add(statement)
    return balances
