"""What one side holds of a channel's settlement, listed without checking a signature (docs/spec/settlement.md).

Hundreds of records are listed for each page of the exchange, and few of them go over: those alone are read.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Protocol

from p2pgrid.errors import LedgerError
from p2pgrid.proto.billing_details import BillingDetails
from p2pgrid.proto.cycle import Cycle, CycleVerdict, Leg
from p2pgrid.proto.cycle_rules import is_verdict_of
from p2pgrid.proto.dispute_rules import DAY_MS
from p2pgrid.proto.record import M, Message, Role, Signed
from p2pgrid.proto.set_off import SetOff
from p2pgrid.proto.set_off_rules import NAMING_TYPES, is_in_force
from p2pgrid.proto.settle_exchange import KINDS, Places, place_of, signers_of
from p2pgrid.proto.wire.settlement import SettledPlace

LAPSED_MS: Final = DAY_MS
"""How long after its last day a set-off of one signature still goes over."""
FORGOTTEN_MS: Final = 30 * DAY_MS
"""How long after its deadline a cycle that was not settled does."""
_LISTED: Final = {
    kind.rank(None): kind.message_type
    for kind in KINDS.values()
    if kind.is_in_ledger and not issubclass(kind.message_type, NAMING_TYPES)
}
"""Statements, invoices, payments, by rank: as many as a channel is old. The rest is read whole, for its parties and its
times say whether it counts."""


class Mark(Protocol):
    """That a record is there."""

    @property
    def place(self) -> int: ...

    @property
    def id(self) -> bytes: ...

    @property
    def signers(self) -> Iterable[Role]: ...


class SettlementLedger(Protocol):
    """What is read of a ledger. All raise LedgerError."""

    def settlement(self, message_type: type[M], channel: bytes) -> Sequence[Signed[M]]: ...

    def settlement_marks(self, message_type: type[Message], channel: bytes) -> Sequence[Mark]: ...

    def settlement_records(
        self, message_type: type[M], channel: bytes, ids: Sequence[bytes]
    ) -> Iterator[Signed[M]]: ...


class Listing:
    """All that a side holds of a channel.

    What is over and came to nothing is left out: set-offs that nobody signed, cycles that were not settled.
    """

    def __init__(
        self,
        ledger: SettlementLedger,
        channel: bytes,
        details: Iterable[Signed[BillingDetails] | None],
        *,
        now_ms: int,
    ) -> None:
        """`details`: those of both parties, as far as they are known. Raises LedgerError."""
        self._ledger = ledger
        self._channel = channel
        whole: list[Signed[Any]] = [one for one in details if one is not None]
        for named in NAMING_TYPES:
            whole += ledger.settlement(named, channel)
        cycles = _cycles_that_count(whole, now_ms)
        self._whole = {place_of(one): one for one in whole if _counts(one, cycles, now_ms)}
        self.left_out: Final = tuple(one for one in whole if not _counts(one, cycles, now_ms))
        """On record, and listed no more."""
        places = [(at, signers_of(one.signers)) for at, one in self._whole.items()]
        for rank, message_type in _LISTED.items():
            for mark in ledger.settlement_marks(message_type, channel):
                places.append((SettledPlace(rank=rank, place=mark.place, id=mark.id), signers_of(mark.signers)))
        self.places: Final[Places] = dict(sorted(places))

    def read(self, places: Iterable[SettledPlace]) -> Iterator[Signed[Any]]:
        """The records that stand there, by place, the signatures of each checked as it is taken. Raises LedgerError."""
        for rank, group in itertools.groupby(sorted(places), key=lambda at: at.rank):
            if rank not in _LISTED:
                yield from (self._whole[at] for at in group)
                continue
            ids = [at.id for at in group]
            n_found = 0
            for one in self._ledger.settlement_records(_LISTED[rank], self._channel, ids):
                n_found += 1
                yield one
            if n_found < len(ids):
                raise LedgerError("a record of settlement is in the ledger no more.", hint="Settle again.")


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
