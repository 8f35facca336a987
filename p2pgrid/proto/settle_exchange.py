"""Two ledgers' records of settlement brought together (docs/spec/settlement.md, section 3).

Pure. Records of all kinds stand in one line: by kind, by what orders the kind, by id (`SettledPlace`). The client says
what it holds of a range, the provider what it lacks of that, and sends what the client lacks; the range ends where a
message would grow too long, and the next exchange begins there. What comes is checked by `settle_check`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from p2pgrid.errors import ProtocolViolation
from p2pgrid.proto.billing_details import BillingDetails
from p2pgrid.proto.cycle import Cycle, CycleVerdict, Leg
from p2pgrid.proto.record import Message, Role, Signed
from p2pgrid.proto.set_off import SetOff
from p2pgrid.proto.statement import Invoice, Payment, Statement
from p2pgrid.proto.wire.base import MAX_COMPARED, MAX_NUMBER
from p2pgrid.proto.wire.settlement import MAX_SETTLED, HeldSettled, SettledPlace, SettlementCompared, SettlementHeld

BEGIN: Final = SettledPlace(rank=0, place=0, id=b"")
END: Final = SettledPlace(rank=255, place=MAX_NUMBER, id=b"\xff" * 32)
MOST_RECORDS: Final = 8192
"""Of one channel: a statement, an invoice and a payment a day, for years."""
MOST_BYTES: Final = 16 * 1024 * 1024
"""Of payloads that a client takes of one channel at once."""
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


def place_of(signed: Signed[Any]) -> SettledPlace:
    """Where a record stands."""
    kind = KINDS[signed.record.payload_type]
    return SettledPlace(rank=kind.rank(signed.message), place=kind.place(signed.message), id=signed.id)


def signers_of(roles: Iterable[Role]) -> int:
    """Whose signatures it has, as `HeldSettled` says it."""
    return sum(_BITS[role] for role in roles if role in _BITS)


Places = Mapping[SettledPlace, int]
"""What a side holds: where each record stands, and whose signatures it has (`signers_of`), by place."""


def page_of(places: Places, channel: bytes, after: SettledPlace) -> SettlementHeld:
    """What this side holds above `after`, as far as one message goes."""
    rows = [at for at in places if at > after]
    until = rows[MAX_COMPARED - 1] if len(rows) > MAX_COMPARED else END
    held = tuple(HeldSettled(at=at, signers=places[at]) for at in rows[:MAX_COMPARED])
    return SettlementHeld(channel=channel, after=after, until=until, held=held)


def compare(places: Places, theirs: SettlementHeld) -> tuple[SettlementCompared, list[SettledPlace]]:
    """The provider's reply to what the client holds, and where the records stand that the client lacks.

    Raises ProtocolViolation for a list that is out of order or of its range.
    """
    listed = [one.at for one in theirs.held]
    in_order = all(one < other for one, other in itertools.pairwise(listed))
    if not in_order or (listed and not theirs.after < listed[0] <= listed[-1] <= theirs.until):
        raise ProtocolViolation("records of settlement were listed out of their order or range.")
    if not theirs.after < theirs.until:
        raise ProtocolViolation("records of settlement were listed of an empty range.")
    ours = {at: signers for at, signers in places.items() if theirs.after < at <= theirs.until}
    known = {one.at: one.signers for one in theirs.held}
    lacks: list[SettledPlace] = []
    sends: list[SettledPlace] = []
    until = theirs.after
    for at in sorted({*ours, *known}):
        bits = ours.get(at, 0)
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
    return compared, sends


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
