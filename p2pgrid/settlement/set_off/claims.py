"""What is open of each invoice of a channel, and may still be set off. From records alone.

What records name is taken off the invoice that they name. Money paid ahead, credit notes and settled legs of cycles
cover what is left, the oldest invoice first, as an audit counts it (docs/spec/audit.md, rule 43b).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from p2pgrid.proto.billing_rules import spread
from p2pgrid.proto.channel import CLOCK_TOLERANCE_MS
from p2pgrid.proto.cycle import Cycle, CycleVerdict, Leg
from p2pgrid.proto.cycle_rules import CycleState, state_of
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.record import M, Signed
from p2pgrid.proto.set_off import SetOff
from p2pgrid.proto.set_off_rules import TakenOff, is_in_force, taken_off
from p2pgrid.proto.statement import Invoice, Payment, Statement

OPEN_CYCLE_MS: Final = 7 * 86_400_000
"""How long after its deadline a cycle of which the timekeeper says nothing holds up what its legs would take off."""


class SettlementRecords(Protocol):
    """What of a ledger is needed here: any reader has it."""

    def settlement(self, message_type: type[M], channel: bytes) -> list[Signed[M]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenClaim:
    """What is open of one invoice: the channel's client owes it to its provider."""

    channel: Channel
    statement: bytes
    """The statement's id."""
    statement_number: int
    invoice_number: str
    due_ms: int
    open_cents: int
    """Above zero."""


def in_force(ledger: SettlementRecords, channel: bytes) -> list[TakenOff]:
    """What set-offs and cycles take off a channel's debt, by time. Raises LedgerError."""
    return taken_off(
        channel,
        ledger.settlement(SetOff, channel),
        ledger.settlement(Cycle, channel),
        ledger.settlement(Leg, channel),
        ledger.settlement(CycleVerdict, channel),
    )


def open_claims(
    ledger: SettlementRecords, channel: Channel, *, at_ms: int, besides: Iterable[bytes] = ()
) -> list[OpenClaim]:
    """The channel's open invoices whose statement is on record, by statement number. Raises LedgerError.

    What was proposed and may still be signed, and legs of cycles that are open, are held to be in force: nothing is
    promised twice. `besides`: ids of set-offs and cycles that are left out of that.
    """
    own = channel.channel
    left_out = set(besides)
    set_offs = [one for one in ledger.settlement(SetOff, own) if one.id not in left_out]
    off: Counter[tuple[bytes, str]] = Counter()
    for one in set_offs:
        side = one.message.side_of(own)
        if side is not None and (is_in_force(one) or at_ms <= one.message.until_ms + CLOCK_TOLERANCE_MS):
            for claim in side.claims:
                off[claim.statement, claim.invoice_number] += claim.cents
    ahead = sum(taken.cents for taken in in_force(ledger, own) if taken.is_cycle)
    ahead += _held_by_cycles(ledger, own, at_ms, left_out)
    for payment in ledger.settlement(Payment, own):
        message = payment.message
        if message.statement:
            off[message.statement, message.invoice_number] += message.amount_cents
        else:
            ahead += message.amount_cents
    statements = {one.id: one.message for one in ledger.settlement(Statement, own)}
    invoices = [one.message for one in ledger.settlement(Invoice, own) if one.message.statement in statements]
    invoices.sort(key=lambda one: (statements[one.statement].statement_number, one.issued_ms, one.invoice_number))
    return _covered(channel, statements, invoices, off, ahead)


def _covered(
    channel: Channel,
    statements: dict[bytes, Statement],
    invoices: Sequence[Invoice],
    off: Counter[tuple[bytes, str]],
    ahead_cents: int,
) -> list[OpenClaim]:
    rests = [one.gross_cents - off[one.statement, one.invoice_number] for one in invoices]
    found = []
    for invoice, cents in zip(invoices, spread(rests, ahead_cents), strict=True):
        stated = statements[invoice.statement]
        if cents:
            claim = OpenClaim(
                channel=channel,
                statement=invoice.statement,
                statement_number=stated.statement_number,
                invoice_number=invoice.invoice_number,
                due_ms=stated.due_ms,
                open_cents=cents,
            )
            found.append(claim)
    return found


def _held_by_cycles(ledger: SettlementRecords, channel: bytes, at_ms: int, left_out: set[bytes]) -> int:
    """What legs that somebody here has signed may come to take off."""
    cycles = {one.id: one.message for one in ledger.settlement(Cycle, channel) if one.id not in left_out}
    legs = ledger.settlement(Leg, channel)
    both = [one.message for one in legs if is_in_force(one)]
    said = [one.message for one in ledger.settlement(CycleVerdict, channel)]
    held = 0
    for leg in legs:
        cycle = cycles.get(leg.message.cycle) if leg.message.channel == channel else None
        if cycle is None or at_ms > cycle.deadline_ms + OPEN_CYCLE_MS:
            continue
        if state_of(cycle, leg.message.cycle, both, said) is CycleState.OPEN:
            held += leg.message.amount_cents
    return held
