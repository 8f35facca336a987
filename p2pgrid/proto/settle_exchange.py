"""Two ledgers' records of settlement brought together (docs/spec/settlement.md, section 3).

Pure. Records of all kinds stand in one line: by kind, by what orders the kind, by id (`SettledPlace`). The client says
what it holds of a range, the provider what it lacks of that, and sends what the client lacks; the range ends where a
message would grow too long, and the next exchange begins there. What comes is checked by `settle_check`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from p2pgrid.errors import ProtocolViolation
from p2pgrid.proto.billing_details import BillingDetails
from p2pgrid.proto.cycle import Cycle, CycleVerdict, Leg
from p2pgrid.proto.cycle_rules import is_verdict_of
from p2pgrid.proto.dispute_rules import DAY_MS
from p2pgrid.proto.record import M, Message, Record, Role, Signed
from p2pgrid.proto.set_off import SetOff
from p2pgrid.proto.set_off_rules import is_in_force
from p2pgrid.proto.statement import Invoice, Payment, Statement
from p2pgrid.proto.wire import (
    MAX_COMPARED,
    MAX_NUMBER,
    MAX_SETTLED,
    HeldSettled,
    SettledPlace,
    SettlementCompared,
    SettlementHeld,
)

BEGIN: Final = SettledPlace(rank=0, place=0, id=b"")
END: Final = SettledPlace(rank=255, place=MAX_NUMBER, id=b"\xff" * 32)
MOST_RECORDS: Final = 8192
"""Of one channel: a statement, an invoice and a payment a day, for years."""
MOST_BYTES: Final = 16 * 1024 * 1024
"""Of payloads that a client takes of one channel at once."""
LAPSED_MS: Final = DAY_MS
"""How long after its last day a set-off of one signature still goes over."""
FORGOTTEN_MS: Final = 30 * DAY_MS
"""How long after its deadline a cycle that was not settled does."""
_BITS: Final = {Role.PROVIDER: 1, Role.CLIENT: 2}


@dataclass(frozen=True, slots=True)
class SettledKind:
    """A kind of record that is exchanged."""

    message_type: type[Message]
    rank: Callable[[Any], int]
    """What a record names comes before it: kinds are exchanged in this order, 1 to 254."""
    place: Callable[[Any], int]
    """What orders the records of the kind."""
    is_in_ledger: bool = True
    """False for billing details: they are kept elsewhere, the last ones of each party alone, and are no evidence."""


def _rank(number: int) -> Callable[[Any], int]:
    return lambda _: number


KINDS: Final = {
    kind.message_type.payload_type: kind
    for kind in (
        SettledKind(
            BillingDetails, lambda m: 1 if m.by is Role.PROVIDER else 2, lambda m: m.sequence, is_in_ledger=False
        ),
        SettledKind(Statement, _rank(3), lambda m: m.statement_number),
        SettledKind(Invoice, _rank(4), lambda m: m.issued_ms),
        SettledKind(Payment, _rank(5), lambda m: m.booked_ms),
        SettledKind(SetOff, _rank(6), lambda m: m.agreed_ms),
        SettledKind(Cycle, _rank(7), lambda m: m.proposed_ms),
        SettledKind(Leg, _rank(8), lambda m: 0),
        SettledKind(CycleVerdict, _rank(9), lambda m: m.judged_ms),
    )
}
"""What is exchanged, by payload type. A further kind is a row here, and a check in `settle_check.CHECKS`."""
_DETAILS: Final = (1, 2)


class SettlementLedger(Protocol):
    """What the exchange reads of a ledger. Raises LedgerError."""

    def settlement(self, message_type: type[M], channel: bytes) -> Sequence[Signed[M]]: ...


def settled_records(
    ledger: SettlementLedger, channel: bytes, details: Iterable[Signed[BillingDetails] | None], *, now_ms: int
) -> list[Signed[Any]]:
    """All that this side holds of a channel, by place. `details`: those of both parties, as far as they are known.

    What is over and came to nothing is left out: set-offs that nobody signed, cycles that were not settled.
    """
    held: list[Signed[Any]] = [one for one in details if one is not None]
    for kind in KINDS.values():
        if kind.is_in_ledger:
            held += ledger.settlement(kind.message_type, channel)
    cycles = _cycles_that_count(held, now_ms)
    return sorted((one for one in held if _counts(one, cycles, now_ms)), key=place_of)


def _cycles_that_count(held: Iterable[Signed[Any]], now_ms: int) -> set[bytes]:
    """Cycles that may be settled yet, or that are."""
    held = list(held)
    known = {one.id: one.message for one in held if isinstance(one.message, Cycle)}
    said = [one.message for one in held if isinstance(one.message, CycleVerdict) and one.message.is_complete]
    settled = {one.cycle for one in said if one.cycle in known and is_verdict_of(one, known[one.cycle], one.cycle)}
    return {i for i, cycle in known.items() if i in settled or now_ms <= cycle.deadline_ms + FORGOTTEN_MS}


def _counts(one: Signed[Any], cycles: set[bytes], now_ms: int) -> bool:
    match one.message:
        case SetOff(until_ms=until_ms):
            return is_in_force(one) or now_ms <= until_ms + LAPSED_MS
        case Cycle():
            return one.id in cycles
        case Leg(cycle=cycle) | CycleVerdict(cycle=cycle):
            return cycle in cycles
    return True


def place_of(signed: Signed[Any]) -> SettledPlace:
    """Where a record stands."""
    kind = KINDS[signed.record.payload_type]
    return SettledPlace(rank=kind.rank(signed.message), place=kind.place(signed.message), id=signed.id)


def signers_of(signed: Signed[Any]) -> int:
    """Whose signatures it has, as `HeldSettled` says it."""
    return sum(_BITS[role] for role in signed.signers if role in _BITS)


def page_of(records: Sequence[Signed[Any]], channel: bytes, after: SettledPlace) -> SettlementHeld:
    """What this side holds above `after`, as far as one message goes. `records`: by place."""
    rows = [one for one in records if place_of(one) > after]
    until = place_of(rows[MAX_COMPARED - 1]) if len(rows) > MAX_COMPARED else END
    held = tuple(HeldSettled(at=place_of(one), signers=signers_of(one)) for one in rows[:MAX_COMPARED])
    return SettlementHeld(channel=channel, after=after, until=until, held=held)


def compare(records: Sequence[Signed[Any]], theirs: SettlementHeld) -> tuple[SettlementCompared, list[Record]]:
    """The provider's reply to what the client holds, and the records that the client lacks. `records`: by place.

    Raises ProtocolViolation for a list that is out of order or of its range.
    """
    listed = [one.at for one in theirs.held]
    in_order = all(one < other for one, other in itertools.pairwise(listed))
    if not in_order or (listed and not theirs.after < listed[0] <= listed[-1] <= theirs.until):
        raise ProtocolViolation("records of settlement were listed out of their order or range.")
    if not theirs.after < theirs.until:
        raise ProtocolViolation("records of settlement were listed of an empty range.")
    ours = {place_of(one): one for one in records if theirs.after < place_of(one) <= theirs.until}
    known = {one.at: one.signers for one in theirs.held}
    lacks: list[SettledPlace] = []
    sends: list[SettledPlace] = []
    until = theirs.after
    for at in sorted({*ours, *known}):
        bits = signers_of(ours[at]) if at in ours else 0
        wants = known.get(at, 0) & ~bits and not _is_passed(at, ours)
        gives = bits & ~known.get(at, 0) and not _is_passed(at, known)
        if (wants and len(lacks) == MAX_SETTLED) or (gives and len(sends) == MAX_SETTLED):
            break
        lacks += [at] if wants else []
        sends += [at] if gives else []
        until = at
    else:
        until = theirs.until
    compared = SettlementCompared(until=until, lacks=tuple(at.id for at in lacks), records=len(sends))
    return compared, [ours[at].record for at in sends]


def check_compared(compared: SettlementCompared, held: SettlementHeld) -> None:
    """Raises ProtocolViolation for a reply that does not fit what the client sent."""
    listed = {one.at.id for one in held.held if one.at <= compared.until}
    if not held.after < compared.until <= held.until:
        raise ProtocolViolation("another range of records of settlement was compared than was listed.")
    if not set(compared.lacks) <= listed or len(set(compared.lacks)) < len(compared.lacks):
        raise ProtocolViolation("the provider asks for records of settlement that were not listed.")


def _is_passed(at: SettledPlace, others: Mapping[SettledPlace, object]) -> bool:
    """True for billing details of which the other side has later ones: the last alone count."""
    return at.rank in _DETAILS and any(one.rank == at.rank and one.place > at.place for one in others)
