"""What a set-off or a leg of a cycle may say, who signs it, and what it takes off a channel's debt
(docs/spec/messages.md, section 7; docs/spec/audit.md, section 8).

Pure, over messages whose form was checked. These records name their signers themselves: the same record belongs to two
channels, or to more, and a ledger may hold one of them alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.codes import Party
from p2pgrid.proto.cycle import Cycle, CycleVerdict, Leg
from p2pgrid.proto.cycle_rules import CycleState, legs_of, settled_ms, state_of
from p2pgrid.proto.keys import parse_public_key
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.record import PARTIES, M, Message, Record, Role, Signed, parse_message, verify_record
from p2pgrid.proto.rules import Fault
from p2pgrid.proto.set_off import Claim, SetOff

NAMING_TYPES: Final = (SetOff, Cycle, Leg, CycleVerdict)
"""Records that name their signers."""


def signer_keys(message: Message) -> dict[Role, bytes]:
    """Who signs it, by role, as the message itself says. For `NAMING_TYPES` alone."""
    match message:
        case SetOff():
            return {Role.PROVIDER: message.first.creditor, Role.CLIENT: message.second.creditor}
        case Leg():
            return {Role.PROVIDER: message.creditor, Role.CLIENT: message.debtor}
        case Cycle():
            return {Role.PROVIDER: message.proposer}
        case CycleVerdict():
            return {Role.PROVIDER: message.timekeeper}
    raise TypeError(f"{type(message).__name__} names no signer")


def channels_named(message: Message) -> tuple[bytes, ...]:
    """The channels that a record of `NAMING_TYPES` is about; none for a verdict, which names a cycle alone."""
    match message:
        case SetOff():
            return message.first.channel, message.second.channel
        case Leg():
            return (message.channel,)
        case Cycle():
            return tuple(debt.channel for debt in message.debts)
    return ()


def verify_named(record: Record, message_type: type[M]) -> Signed[M]:
    """A record of `NAMING_TYPES` with those of its signatures that its signers made; others are ignored.

    Raises InvalidRecord: what `parse_message` does, `signature-missing` where none of them signed, `wrong-key` where
    another key did in a signer's place, `key-not-admissible`, `bad-signature`.
    """
    keys = signer_keys(parse_message(record, message_type))
    present = {role: parse_public_key(key) for role, key in keys.items() if record.signature_of(role) is not None}
    if not present:
        names = " or ".join(sorted(keys))
        raise InvalidRecord("signature-missing", f"the {names} has not signed this {record.payload_type}.")
    return verify_record(record, message_type, present)


def is_in_force(signed: Signed[SetOff] | Signed[Leg]) -> bool:
    """Did both sides sign? (A leg is in force only if all of its cycle are: `cycle_rules.state_of`.)"""
    return set(PARTIES) <= set(signed.signers)


def faults_of_parties(message: SetOff | Cycle | Leg, channel: Channel) -> list[Fault]:
    """Is what it says of a channel so? `set-off-mismatch`, if its parties or its currency are not the channel's."""
    parties = _parties_in(message, channel.channel)
    if parties is None:
        return []
    # A channel that only one of two signers has signed is no word of the other.
    proven = not _has_cards(message)
    if parties != (channel.provider, channel.client):
        sentence = "creditor and debtor that it names are not the channel's provider and client."
        return [Fault("set-off-mismatch", sentence, Party.SIGNER, proven=False)]
    if message.currency != channel.currency:
        sentence = f"it is in {message.currency}, its channel in {channel.currency}."
        return [Fault("set-off-mismatch", sentence, Party.SIGNER, proven=proven)]
    return []


def is_of_channel(message: Message, channel: Channel) -> bool:
    """False if a record of `NAMING_TYPES` says of that channel what is not so: it is none of the channel's then."""
    return isinstance(message, CycleVerdict) or not (
        isinstance(message, SetOff | Cycle | Leg) and faults_of_parties(message, channel)
    )


def faults_of_leg(leg: Leg, cycle: Cycle) -> list[Fault]:
    """Is it one of the cycle's legs? `set-off-mismatch`."""
    if leg in legs_of(cycle, leg.cycle):
        return []
    return [Fault("set-off-mismatch", "it is no leg of the cycle that it names.", Party.SIGNER)]


def faults_of_verdict(verdict: CycleVerdict, cycle: Cycle) -> list[Fault]:
    """Could the cycle's timekeeper say so then? `set-off-mismatch`."""
    if verdict.timekeeper != cycle.timekeeper:
        sentence = "the cycle that it names has another timekeeper."
        return [Fault("set-off-mismatch", sentence, Party.SIGNER)]
    if not verdict.is_complete and verdict.judged_ms <= cycle.deadline_ms:
        sentence = "it says that the cycle was not complete, before the deadline."
        return [Fault("set-off-mismatch", sentence, Party.SIGNER)]
    return []


@dataclass(frozen=True, slots=True)
class TakenOff:
    """What a record in force takes off what a channel's client owes."""

    record_id: bytes
    """Of the SetOff or the Leg."""
    cents: int
    at_ms: int
    """By this time statements count it."""
    claims: tuple[Claim, ...]
    """What it takes off which invoice; none for a leg of a cycle, which covers the oldest, as money paid ahead does."""
    is_cycle: bool
    """A cycle that was settled is no sign that anybody can pay, and earns no credit: its parties may be one person."""


def taken_off(
    channel: bytes,
    set_offs: Iterable[Signed[SetOff]],
    cycles: Iterable[Signed[Cycle]] = (),
    legs: Iterable[Signed[Leg]] = (),
    verdicts: Iterable[Signed[CycleVerdict]] = (),
) -> list[TakenOff]:
    """All that is in force of a channel, by time and then id. What is not of the channel is passed over.

    A cycle counts where the timekeeper's word and all its legs are at hand, those of other channels too.
    """
    found = taken_off_by_channel(
        {one.id: one.message for one in set_offs if is_in_force(one)},
        {one.id: one.message for one in cycles},
        {one.id: one.message for one in legs if is_in_force(one)},
        [one.message for one in verdicts],
    )
    return found.get(channel, [])


def taken_off_by_channel(
    set_offs: Mapping[bytes, SetOff],
    cycles: Mapping[bytes, Cycle],
    legs: Mapping[bytes, Leg],
    verdicts: Iterable[CycleVerdict],
) -> dict[bytes, list[TakenOff]]:
    """As `taken_off`, of every channel, of messages by their ids: set-offs and legs that both their sides signed."""
    found: dict[bytes, list[TakenOff]] = defaultdict(list)
    for set_off_id, set_off in set_offs.items():
        for side in set_off.sides:
            taken = TakenOff(set_off_id, set_off.amount_cents, set_off.agreed_ms, side.claims, is_cycle=False)
            found[side.channel].append(taken)
    legs_by_cycle: dict[bytes, dict[Leg, bytes]] = defaultdict(dict)
    for leg_id, leg in legs.items():
        legs_by_cycle[leg.cycle][leg] = leg_id
    said: dict[bytes, list[CycleVerdict]] = defaultdict(list)
    for verdict in verdicts:
        said[verdict.cycle].append(verdict)
    for cycle_id, cycle in cycles.items():
        own = legs_by_cycle[cycle_id]
        if state_of(cycle, cycle_id, own, said[cycle_id]) is CycleState.SETTLED:
            at_ms = settled_ms(cycle, cycle_id, said[cycle_id])
            for leg in legs_of(cycle, cycle_id):
                found[leg.channel].append(TakenOff(own[leg], leg.amount_cents, at_ms, (), is_cycle=True))
    return {channel: sorted(taken, key=lambda one: (one.at_ms, one.record_id)) for channel, taken in found.items()}


def set_off_to_state(taken: Iterable[TakenOff], *, stated_ms: int, counted_cents: int) -> int:
    """The `set_off_cents` of a channel's next statement: all that is in force by its time, less what the statements
    before have counted. So what one of them could not know of yet is made up for."""
    return max(sum(one.cents for one in taken if one.at_ms <= stated_ms) - counted_cents, 0)


def _parties_in(message: SetOff | Cycle | Leg, channel: bytes) -> tuple[bytes, bytes] | None:
    """Creditor and debtor that it names in a channel."""
    if isinstance(message, SetOff):
        side = message.side_of(channel)
        return (side.creditor, side.debtor) if side is not None else None
    if isinstance(message, Cycle):
        return next(((debt.creditor, debt.debtor) for debt in message.debts if debt.channel == channel), None)
    return (message.creditor, message.debtor) if message.channel == channel else None


def _has_cards(message: SetOff | Cycle | Leg) -> bool:
    match message:
        case SetOff():
            return any(side.card for side in message.sides)
        case Cycle():
            return True
    return False
