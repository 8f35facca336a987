"""Records of settlement that the other side sent, checked before they are kept (docs/spec/settlement.md, section 3).

Pure, over what this side holds. What is signed by nobody who may, or speaks of another channel, breaks the exchange;
what contradicts a record that is held is evidence; what fits nothing yet (an invoice whose statement is not here,
invoices that do not come to their statement) waits: it is not kept, and comes again with the next exchange.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from p2pgrid.errors import InvalidRecord, ProtocolViolation
from p2pgrid.proto.billing_details import BillingDetails
from p2pgrid.proto.billing_rules import Bookings, fault_of_payments, faults_of_invoices
from p2pgrid.proto.channel import CLOCK_TOLERANCE_MS
from p2pgrid.proto.cycle import Cycle, CycleVerdict, Leg
from p2pgrid.proto.cycle_rules import CycleState, state_of
from p2pgrid.proto.dispute_rules import DAY_MS
from p2pgrid.proto.keys import PublicKey, parse_public_key
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.record import PARTIES, Message, Record, Role, Signed, parse_message, verify_record
from p2pgrid.proto.rules import Fault
from p2pgrid.proto.set_off import SetOff
from p2pgrid.proto.set_off_rules import (
    NAMING_TYPES,
    channels_named,
    faults_of_leg,
    faults_of_parties,
    faults_of_verdict,
    is_in_force,
    verify_named,
)
from p2pgrid.proto.settle_exchange import KINDS, MOST_RECORDS, place_of
from p2pgrid.proto.settle_listing import LAPSED_MS
from p2pgrid.proto.statement import Invoice, Payment, PaymentKind, Statement

CONFLICT: Final = "two-records-one-slot: another record of settlement is on record in its place"
MOST_PROPOSED: Final = 64
"""Set-offs of a channel that one side alone has signed, and likewise cycles that are not settled, which are kept."""
MOST_OVER: Final = 256
"""The same, with those that are over and came to nothing: what is listed no more is on record yet, and is read."""
_Slot = TypeVar("_Slot")
BOOKED_TWICE: Final = "payment-mismatch: a movement of money that is on record was booked again"


@dataclass(slots=True)
class Taken:
    """What the other side sent, by what becomes of it."""

    keep: list[Signed[Any]] = field(default_factory=list)
    """For the ledger, in an order in which each names what stands before it."""
    details: list[Signed[BillingDetails]] = field(default_factory=list)
    """For the book of billing details."""
    to_judge: list[Signed[Statement]] = field(default_factory=list)
    """Signed by the provider alone, and not on record (client): it had signed when an earlier exchange was cut off."""
    conflicting: list[tuple[Record, str]] = field(default_factory=list)
    """Sound, and in the place of another: evidence, with the reason."""
    waiting: list[tuple[Signed[Any], str]] = field(default_factory=list)
    """Sound by themselves, and not kept: why, in a sentence."""
    left_out: Sequence[Signed[Any]] = ()
    """What this side has of the channel and lists no more (`Listing.left_out`)."""
    now_ms: int = 0
    """When they came."""


def check_taken(
    sent: Sequence[Record],
    held: Sequence[Signed[Any]],
    channel: Channel,
    own: Role,
    *,
    now_ms: int,
    left_out: Sequence[Signed[Any]] = (),
) -> Taken:
    """What the other side sent of a channel. `held`: what this side lists of it; `left_out`: what it lists no more.

    Raises InvalidRecord with the finding's code, and ProtocolViolation for what is no record of settlement of this
    channel, or too many.
    """
    if len(sent) + len(held) > MOST_RECORDS:
        raise ProtocolViolation(f"a channel has at most {MOST_RECORDS} records of settlement.")
    checked = [_checked(record, channel, now_ms) for record in sent]
    if len({one.id for one in checked}) < len(checked):
        raise ProtocolViolation("a record of settlement came twice at once.")
    taken = Taken(now_ms=now_ms, left_out=left_out)
    for kind, check in CHECKS.items():
        new = sorted((one for one in checked if isinstance(one.message, kind)), key=place_of)
        if new:
            check(new, held, taken, channel, own)
    return taken


def _checked(record: Record, channel: Channel, now_ms: int) -> Signed[Any]:
    kind = KINDS.get(record.payload_type)
    if kind is None:
        raise ProtocolViolation(f"a record of type {record.payload_type[:64]!r} came where settlement was exchanged.")
    message: Any = parse_message(record, kind.message_type)
    if isinstance(message, NAMING_TYPES):
        return _checked_named(record, message, channel)
    roles = _signers_of(message, record)
    signed: Signed[Any] = verify_record(record, kind.message_type, {role: _key_of(channel, role) for role in roles})
    if isinstance(message, BillingDetails):
        if message.party != _key_of(channel, message.by).raw:
            raise ProtocolViolation("billing details of another party came.")
    elif message.channel != channel.channel:
        raise ProtocolViolation("a record of settlement of another channel came.")
    said_ms, ahead_ms = _said(message)
    if said_ms > now_ms + ahead_ms:
        seconds = (said_ms - now_ms) // 1000
        raise InvalidRecord("clock-skew", f"the {record.payload_type} is dated {seconds} s in the future.")
    if getattr(message, "currency", channel.currency) != channel.currency:
        code = f"{record.payload_type.split('/')[2]}-mismatch"
        raise InvalidRecord(code, f"the record is in {message.currency}, its channel in {channel.currency}.")
    return signed


def _checked_named(record: Record, message: Message, channel: Channel) -> Signed[Any]:
    """Records that name their signers. Legs of other channels, and verdicts, are the channel's by their cycle."""
    signed = verify_named(record, type(message))
    if isinstance(message, SetOff | Cycle) and channel.channel not in channels_named(message):
        raise ProtocolViolation("a record of settlement of another channel came.")
    if isinstance(message, SetOff | Cycle | Leg):
        _raise_first(faults_of_parties(message, channel))
    return signed


def _raise_first(faults: Sequence[Fault]) -> None:
    for fault in faults:
        raise InvalidRecord(fault.code, fault.sentence)


def _signers_of(message: Message, record: Record) -> list[Role]:
    if isinstance(message, BillingDetails):
        return [message.by]
    if isinstance(message, Invoice | Payment):
        return [Role.PROVIDER]
    present = {one.role for one in record.signatures}
    return [role for role in PARTIES if role in present or role is Role.PROVIDER]


def _said(message: Message) -> tuple[int, int]:
    """When it was said, and how far ahead of our clock that may be: banks book by the day."""
    match message:
        case Statement():
            return message.stated_ms, CLOCK_TOLERANCE_MS
        case Invoice():
            return message.issued_ms, CLOCK_TOLERANCE_MS
        case Payment():
            return message.booked_ms, DAY_MS
        case BillingDetails():
            return message.stated_ms, CLOCK_TOLERANCE_MS
    return 0, 0


def _key_of(channel: Channel, role: Role) -> PublicKey:
    return parse_public_key(channel.provider if role is Role.PROVIDER else channel.client)


def _take_details(
    new: Sequence[Signed[Any]], held: Sequence[Signed[Any]], taken: Taken, channel: Channel, own: Role
) -> None:
    known = {(one.message.by, one.message.sequence): one.id for one in held if isinstance(one.message, BillingDetails)}
    for one in new:
        # Two with one sequence: what was there first stays. It is no evidence, for it names a person's address.
        if known.setdefault((one.message.by, one.message.sequence), one.id) == one.id:
            taken.details.append(one)
        else:
            taken.waiting.append((one, "other billing details with the same sequence are here."))


def _take_statements(
    new: Sequence[Signed[Any]], held: Sequence[Signed[Any]], taken: Taken, channel: Channel, own: Role
) -> None:
    known = {one.message.statement_number: one.id for one in held if isinstance(one.message, Statement)}
    for one in new:
        if known.setdefault(one.message.statement_number, one.id) != one.id:
            taken.conflicting.append((one.record, CONFLICT))
        elif own is Role.CLIENT and Role.CLIENT not in one.signers:
            taken.to_judge.append(one)
        else:
            taken.keep.append(one)


def _take_invoices(
    new: Sequence[Signed[Any]], held: Sequence[Signed[Any]], taken: Taken, channel: Channel, own: Role
) -> None:
    numbers = {one.message.invoice_number: one.id for one in held if isinstance(one.message, Invoice)}
    statements = _stated(held, taken)
    fresh: dict[bytes, list[Signed[Invoice]]] = defaultdict(list)
    for one in new:
        if numbers.setdefault(one.message.invoice_number, one.id) != one.id:
            taken.conflicting.append((one.record, CONFLICT))
        elif own is Role.CLIENT and one.message.statement not in statements:
            taken.waiting.append((one, f"the statement of invoice {one.message.invoice_number} is not on record."))
        else:
            fresh[one.message.statement].append(one)
    for statement, invoices in fresh.items():
        of_it = [h.message for h in held if isinstance(h.message, Invoice) and h.message.statement == statement]
        of_it += [one.message for one in invoices]
        # The provider gets back what it has signed itself, piece by piece.
        faults = faults_of_invoices(of_it, statement=statements[statement]) if own is Role.CLIENT else []
        if faults:
            taken.waiting += [(one, faults[0].sentence) for one in invoices]
        else:
            taken.keep += invoices


def _take_payments(
    new: Sequence[Signed[Any]], held: Sequence[Signed[Any]], taken: Taken, channel: Channel, own: Role
) -> None:
    if own is Role.PROVIDER:
        taken.keep += new
        return
    invoices = [one.message for one in (*held, *taken.keep) if isinstance(one.message, Invoice)]
    known = {(one.statement, one.invoice_number) for one in invoices}
    on_record = [one for one in held if isinstance(one.message, Payment)]
    fresh_ids = {one.id for one in new}
    booked = {_entry(one.message) for one in on_record} - {None}
    bookings = Bookings(channel.currency)
    fit: dict[bytes, list[Signed[Payment]]] = defaultdict(list)
    for one in sorted((*on_record, *new), key=lambda one: (one.message.booked_ms, one.id)):
        fault = bookings.fault_of_next(one.message)
        if one.id not in fresh_ids:
            continue
        if fault is not None or _entry(one.message) in booked:
            taken.conflicting.append((one.record, BOOKED_TWICE))
        elif one.message.statement and (one.message.statement, one.message.invoice_number) not in known:
            sentence = f"the payment {one.message.reference!r} names invoice {one.message.invoice_number}, which is not"
            taken.waiting.append((one, f"{sentence} on record."))
        else:
            fit[one.message.statement].append(one)
    for statement, payments in fit.items():
        of_it = [one.message for one in on_record if one.message.statement == statement]
        of_it += [one.message for one in payments]
        billed = [one for one in invoices if one.statement == statement]
        fault_found = fault_of_payments(of_it, invoices=billed) if statement else None
        if fault_found is not None:
            taken.waiting += [(one, fault_found[1].sentence) for one in payments]
        else:
            taken.keep += payments


def _take_set_offs(
    new: Sequence[Signed[Any]], held: Sequence[Signed[Any]], taken: Taken, channel: Channel, own: Role
) -> None:
    on_record = [one for one in (*held, *taken.left_out) if isinstance(one.message, SetOff)]
    slots = {_nonce_of(one.message): one.id for one in on_record}
    known = set(slots.values())
    over = sum(isinstance(one.message, SetOff) for one in taken.left_out)
    room = _Room("a set-off", sum(not is_in_force(one) for one in on_record) - over, over)
    for one in new:
        message: SetOff = one.message
        if not _is_first_in_time(one, _nonce_of(message), message.agreed_ms, slots, taken):
            continue
        if is_in_force(one) or one.id in known:
            taken.keep.append(one)
        elif taken.now_ms > message.until_ms + LAPSED_MS:
            taken.waiting.append((one, "a set-off was proposed, and its last day is over."))
        else:
            room.take(one, taken)


def _take_cycles(
    new: Sequence[Signed[Any]], held: Sequence[Signed[Any]], taken: Taken, channel: Channel, own: Role
) -> None:
    on_record = [one for one in (*held, *taken.left_out) if isinstance(one.message, Cycle)]
    slots = {(one.message.proposer, one.message.nonce): one.id for one in on_record}
    known = set(slots.values())
    # By all its legs, and not by a timekeeper's word alone, which costs nobody anything.
    legs = [one.message for one in held if isinstance(one.message, Leg) and is_in_force(one)]
    said = [one.message for one in held if isinstance(one.message, CycleVerdict)]
    over = sum(isinstance(one.message, Cycle) for one in taken.left_out)
    unsettled = sum(state_of(one.message, one.id, legs, said) is not CycleState.SETTLED for one in on_record)
    room = _Room("a cycle", unsettled - over, over)
    for one in new:
        message: Cycle = one.message
        if not _is_first_in_time(one, (message.proposer, message.nonce), message.proposed_ms, slots, taken):
            continue
        if one.id in known:
            taken.keep.append(one)
        else:
            room.take(one, taken)


def _take_legs(
    new: Sequence[Signed[Any]], held: Sequence[Signed[Any]], taken: Taken, channel: Channel, own: Role
) -> None:
    cycles = _cycles(held, taken)
    for one in new:
        cycle = cycles.get(one.message.cycle)
        if cycle is None:
            taken.waiting.append((one, "a leg came of a cycle that is not on record."))
            continue
        _raise_first(faults_of_leg(one.message, cycle))
        taken.keep.append(one)


def _take_verdicts(
    new: Sequence[Signed[Any]], held: Sequence[Signed[Any]], taken: Taken, channel: Channel, own: Role
) -> None:
    cycles = _cycles(held, taken)
    said = [one for one in (*held, *taken.left_out) if isinstance(one.message, CycleVerdict)]
    slots = {(one.message.timekeeper, one.message.cycle, one.message.is_complete): one.id for one in said}
    for one in new:
        message: CycleVerdict = one.message
        cycle = cycles.get(message.cycle)
        if cycle is None:
            taken.waiting.append((one, "a timekeeper's word came of a cycle that is not on record."))
            continue
        _raise_first(faults_of_verdict(message, cycle))
        # One that says both is caught by an audit; both words are kept, so that both sides come to the same state.
        slot = message.timekeeper, message.cycle, message.is_complete
        if _is_first_in_time(one, slot, message.judged_ms, slots, taken):
            taken.keep.append(one)


@dataclass(slots=True)
class _Room:
    """How many proposals of a kind there are, and whether one more is kept."""

    name: str
    waits: int
    over: int
    """Those that came to nothing."""

    def take(self, one: Signed[Any], taken: Taken) -> None:
        """Keep it, or let it wait."""
        if self.waits >= MOST_PROPOSED:
            taken.waiting.append((one, f"{self.name} was proposed, and {self.waits} of this channel wait already."))
        elif self.waits + self.over >= MOST_OVER:
            sentence = f"{self.name} was proposed, and {self.waits + self.over} of this channel came to nothing or wait"
            taken.waiting.append((one, f"{sentence} already."))
        else:
            self.waits += 1
            taken.keep.append(one)


def _is_first_in_time(one: Signed[Any], slot: _Slot, said_ms: int, slots: dict[_Slot, bytes], taken: Taken) -> bool:
    """Is it alone in its slot, and not dated ahead? What is not is evidence, or waits. `slots`: ids by slot."""
    if slots.setdefault(slot, one.id) != one.id:
        taken.conflicting.append((one.record, CONFLICT))
        return False
    return not _is_early(said_ms, one, taken)


def _nonce_of(message: SetOff) -> tuple[bytes, bytes, bytes]:
    return message.first.channel, message.second.channel, message.nonce


def _cycles(held: Sequence[Signed[Any]], taken: Taken) -> dict[bytes, Cycle]:
    """On record, or about to be."""
    everything = (*held, *taken.left_out, *taken.keep)
    return {one.id: one.message for one in everything if isinstance(one.message, Cycle)}


def _is_early(said_ms: int, one: Signed[Any], taken: Taken) -> bool:
    """Dated in the future: it waits, for whoever sends it need not be the one who dated it."""
    if said_ms <= taken.now_ms + CLOCK_TOLERANCE_MS:
        return False
    seconds = (said_ms - taken.now_ms) // 1000
    taken.waiting.append((one, f"a {one.record.payload_type} came that is dated {seconds} s in the future."))
    return True


def _entry(payment: Payment) -> tuple[bytes, str, bytes] | None:
    """What a movement of money is booked once for; None where that is told otherwise (docs/spec/audit.md, 43a)."""
    if not payment.entry or payment.kind is PaymentKind.REALLOCATED:
        return None
    return payment.statement, payment.invoice_number, payment.entry


def _stated(held: Sequence[Signed[Any]], taken: Taken) -> dict[bytes, Statement]:
    """Statements of both signatures, on record or about to be."""
    return {
        one.id: one.message
        for one in (*held, *taken.keep)
        if isinstance(one.message, Statement) and Role.CLIENT in one.signers
    }


Check = Callable[[Sequence[Signed[Any]], Sequence[Signed[Any]], Taken, Channel, Role], None]

CHECKS: Final[dict[type[Message], Check]] = {
    BillingDetails: _take_details,
    Statement: _take_statements,
    Invoice: _take_invoices,
    Payment: _take_payments,
    SetOff: _take_set_offs,
    Cycle: _take_cycles,
    Leg: _take_legs,
    CycleVerdict: _take_verdicts,
}
"""What a kind's records are held against, in the order of the kinds."""
