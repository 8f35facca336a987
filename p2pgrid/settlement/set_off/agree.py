"""What is asked of a set-off that came before it is kept, and before it is signed.

Keeping asks that its signatures are its signers' and that it speaks of the channel as it is: a record may be held
that one would never sign. Signing asks, of one's own books alone, whether one gives up no more than one has, and is rid
of as much.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.channel import CLOCK_TOLERANCE_MS
from p2pgrid.proto.cycle import Cycle, CycleVerdict, Leg
from p2pgrid.proto.cycle_rules import is_verdict_of, legs_of
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.record import Record, Signed
from p2pgrid.proto.set_off import SetOff, SetOffSide
from p2pgrid.proto.set_off_rules import channels_named, faults_of_parties, verify_named
from p2pgrid.proto.statement import Statement
from p2pgrid.settlement.open_items import SettlementRecords
from p2pgrid.settlement.set_off.claims import OpenClaim, open_claims
from p2pgrid.settlement.set_off.parties import AllBooks, Operator
from p2pgrid.units import format_cents

MOST_STATEMENTS_SINCE: Final = 1
"""A statement may count a set-off one late; with two since its proposal, it has to be proposed again."""


def verify_set_off(record: Record, channels: Mapping[bytes, Channel]) -> Signed[SetOff]:
    """A set-off that may be kept, of a channel that is here. `channels`: by id, those that this side has.

    Raises InvalidRecord: what `verify_named` does, `set-off-mismatch`, `record-missing` (none of its channels is here).
    """
    signed = verify_named(record, SetOff)
    check_channels(signed.message, channels)
    return signed


def check_channels(message: SetOff | Leg | Cycle, channels: Mapping[bytes, Channel]) -> None:
    """Does it say of our channels what they are? Raises InvalidRecord: `set-off-mismatch`, `record-missing`."""
    own = [channels[channel] for channel in channels_named(message) if channel in channels]
    if not own:
        raise InvalidRecord("record-missing", "none of the channels that it names is on record here.")
    for channel in own:
        for fault in faults_of_parties(message, channel):
            raise InvalidRecord(fault.code, fault.sentence)


def verify_leg(record: Record, cycle: Signed[Cycle]) -> Signed[Leg]:
    """A leg of that cycle. Raises InvalidRecord: what `verify_named` does, `set-off-mismatch`."""
    signed = verify_named(record, Leg)
    if signed.message not in legs_of(cycle.message, cycle.id):
        raise InvalidRecord("set-off-mismatch", "it is no leg of the cycle.")
    return signed


def verify_verdict(record: Record, cycle: Signed[Cycle]) -> Signed[CycleVerdict]:
    """The word of that cycle's timekeeper. Raises InvalidRecord: what `verify_named` does, `set-off-mismatch`."""
    signed = verify_named(record, CycleVerdict)
    if not is_verdict_of(signed.message, cycle.message, cycle.id):
        raise InvalidRecord("set-off-mismatch", "it is no word of the cycle's timekeeper, or one that came too early.")
    return signed


def our_side(message: SetOff, us: Operator) -> tuple[SetOffSide, SetOffSide] | None:
    """The side on which we are creditor, and the other; None if we are neither creditor, or both."""
    ours = [side for side in message.sides if side.creditor in us.keys]
    if len(ours) != 1:
        return None
    return ours[0], next(side for side in message.sides if side is not ours[0])


def why_not_sign(
    signed: Signed[SetOff], books: AllBooks, us: Operator, *, now_ms: int, agreed: Collection[Statement] = ()
) -> list[str]:
    """Why we should not sign, in sentences; empty if we may. Raises LedgerError.

    Each of its two channels must be in one of `books`. `agreed`: drafts of statements that we have agreed to, as a
    client: the provider may have signed them, and they cannot count it any more.
    """
    message = signed.message
    sides = our_side(message, us)
    if sides is None:
        return ["We are creditor of neither of its sides."]
    ours, theirs = sides
    reasons = []
    if theirs.debtor not in us.keys:
        reasons.append("What the other side gives up is not owed by us: its debtor is none of our keys.")
    if now_ms > message.until_ms:
        reasons.append("It was to be signed earlier: have it proposed again.")
    if message.agreed_ms > now_ms + CLOCK_TOLERANCE_MS:
        reasons.append("It is dated in the future: check both clocks.")
    for side, whose in ((ours, "our"), (theirs, "their")):
        if side.channel not in books.channels:
            reasons.append(f"The channel of {whose} side, {side.channel.hex()[:16]}, is in none of our ledgers.")
            continue
        channel, ledger = books.channels[side.channel]
        reasons += [f"On {whose} side {fault.sentence}" for fault in faults_of_parties(message, channel)]
        claims = open_claims(ledger, channel, at_ms=now_ms, ours=us.keys, besides=(signed.id,))
        reasons += _beyond(side, claims)
        if _stated_since(ledger, channel, message.agreed_ms, agreed) > MOST_STATEMENTS_SINCE:
            reasons.append(f"Two statements were made of {whose} side's channel since: have it proposed again.")
    return reasons


def _beyond(side: SetOffSide, claims: Iterable[OpenClaim]) -> list[str]:
    left = {(claim.statement, claim.invoice_number): claim.open_cents for claim in claims}
    reasons = []
    for claim in side.claims:
        cents = left.get((claim.statement, claim.invoice_number), 0)
        if cents < claim.cents:
            what = f"{format_cents(claim.cents)} are to be taken off"
            reasons.append(f"Of invoice {claim.invoice_number} {format_cents(cents)} are open, and {what}.")
    return reasons


def _stated_since(ledger: SettlementRecords, channel: Channel, time_ms: int, agreed: Collection[Statement]) -> int:
    stated = {one.message.statement_number: one.message for one in ledger.settlement(Statement, channel.channel)}
    for draft in agreed:
        if draft.channel == channel.channel:
            stated.setdefault(draft.statement_number, draft)
    return sum(one.stated_ms > time_ms for one in stated.values())
