"""What is open of each invoice of a channel, and may still be set off. From records alone.

What records name is taken off the invoice that they name. Money paid ahead, credit notes and legs of cycles cover what
is left, the oldest invoice first, as an audit counts it (docs/spec/audit.md, rule 43b).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from p2pgrid.proto.channel import CLOCK_TOLERANCE_MS
from p2pgrid.proto.cycle import Cycle, CycleVerdict, Leg
from p2pgrid.proto.cycle_rules import CycleState, state_of
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.record import Signed
from p2pgrid.proto.set_off import SetOff
from p2pgrid.proto.set_off_rules import TakenOff, is_in_force, taken_off
from p2pgrid.settlement.open_items import OpenItem, SetOffShare, SettlementRecords, items_by_channel

OPEN_CYCLE_MS: Final = 7 * 86_400_000
"""How long after its deadline a cycle of which the timekeeper says nothing holds up what its legs would take off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenClaim:
    """What is open of one invoice: the channel's client owes it to its provider."""

    channel: Channel
    statement: bytes
    """The statement's id."""
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


def shares_in_force(ledger: SettlementRecords, channel: bytes) -> list[SetOffShare]:
    """What is set off of each of a channel's invoices. Raises LedgerError.

    Legs of cycles are the oldest's; where they are more than is left of all, the rest is the last one's: on account.
    """
    taken = in_force(ledger, channel)
    named = [SetOffShare(channel, claim.invoice_number, claim.cents) for one in taken for claim in one.claims]
    legs = sum(one.cents for one in taken if one.is_cycle)
    return [*named, *_of_legs(ledger, channel, named, legs)] if legs else named


def open_claims(
    ledger: SettlementRecords,
    channel: Channel,
    *,
    at_ms: int,
    ours: Collection[bytes],
    besides: Collection[bytes] = (),
) -> list[OpenClaim]:
    """The channel's open invoices whose statement is on record, by statement number. Raises LedgerError.

    What one of our keys (`ours`) has proposed and the other side may still sign, and legs of open cycles that one has
    signed, are held to be in force: nothing is promised twice. What others propose holds up nothing. `besides`: ids of
    set-offs and cycles that are left out of that.
    """
    own = channel.channel
    shares = [
        SetOffShare(own, claim.invoice_number, claim.cents)
        for one in ledger.settlement(SetOff, own)
        if (side := one.message.side_of(own)) is not None and one.id not in besides
        for claim in side.claims
        if is_in_force(one) or (at_ms <= one.message.until_ms + CLOCK_TOLERANCE_MS and _is_signed(one, ours))
    ]
    legs = sum(taken.cents for taken in in_force(ledger, own) if taken.is_cycle)
    legs += _held_by_cycles(ledger, own, at_ms, ours, besides)
    found = []
    for item, left in _less(_items(ledger, own, shares), legs):
        if left > 0 and item.statement is not None:
            claim = OpenClaim(
                channel=channel,
                statement=item.statement.id,
                invoice_number=item.number,
                due_ms=item.due_ms,
                open_cents=left,
            )
            found.append(claim)
    return found


def _of_legs(
    ledger: SettlementRecords, channel: bytes, named: Sequence[SetOffShare], cents: int
) -> Iterable[SetOffShare]:
    items = [item for item in _items(ledger, channel, named) if item.gross_cents > 0]
    rest = cents
    for item, left in _less(items, cents):
        off = max(item.left_cents, 0) - max(left, 0)
        rest -= off
        if off:
            yield SetOffShare(channel, item.number, off)
    if rest and items:
        yield SetOffShare(channel, items[-1].number, rest)


def _items(ledger: SettlementRecords, channel: bytes, shares: Sequence[SetOffShare]) -> Sequence[OpenItem]:
    (found,) = items_by_channel(ledger, [channel], set_off=shares)
    return found.items


def _less(items: Iterable[OpenItem], cents: int) -> Iterable[tuple[OpenItem, int]]:
    """Each item with what is left of it once so much is taken off, the oldest first."""
    for item in items:
        off = min(max(item.left_cents, 0), cents)
        cents -= off
        yield item, item.left_cents - off


def _is_signed(signed: Signed[SetOff] | Signed[Leg], ours: Collection[bytes]) -> bool:
    return any(key.raw in ours for key in signed.signers.values())


def _held_by_cycles(
    ledger: SettlementRecords, channel: bytes, at_ms: int, ours: Collection[bytes], besides: Collection[bytes]
) -> int:
    """What legs that we have signed may come to take off."""
    cycles = {one.id: one.message for one in ledger.settlement(Cycle, channel) if one.id not in besides}
    legs = ledger.settlement(Leg, channel)
    both = [one.message for one in legs if is_in_force(one)]
    said = [one.message for one in ledger.settlement(CycleVerdict, channel)]
    held = 0
    for leg in legs:
        cycle = cycles.get(leg.message.cycle) if leg.message.channel == channel else None
        if cycle is None or at_ms > cycle.deadline_ms + OPEN_CYCLE_MS or not _is_signed(leg, ours):
            continue
        if state_of(cycle, leg.message.cycle, both, said) is CycleState.OPEN:
            held += leg.message.amount_cents
    return held
