"""Who is who in a set-off: an operator may sell with one key and buy with another, which its card names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from p2pgrid.errors import UsageError
from p2pgrid.proto.card import Card
from p2pgrid.proto.keys import parse_public_key
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.record import Signed
from p2pgrid.settlement.open_items import SettlementRecords
from p2pgrid.settlement.set_off.claims import OpenClaim, open_claims

Chain = Sequence[Signed[Card]]
"""The cards of an operator, oldest first, each verified."""


class Books(SettlementRecords, Protocol):
    """What of a ledger is needed here: any reader has it. Its methods raise LedgerError."""

    def channels(self) -> list[Signed[Channel]]: ...


@dataclass(frozen=True, slots=True)
class Operator:
    """One of the two: its keys, and the cards that say so."""

    keys: frozenset[bytes]
    chains: tuple[Chain, ...] = field(default=())

    @classmethod
    def of(cls, keys: Iterable[bytes], chains: Iterable[Chain] = ()) -> Operator:
        """With the keys of every chain of cards that names one of `keys`."""
        own = frozenset(keys)
        named = [(chain, _named(chain)) for chain in chains]
        fitting = tuple(chain for chain, its in named if its & own)
        return cls(own.union(*(its for _, its in named if its & own)), fitting)

    def card_of(self, sells: bytes, buys: bytes) -> bytes:
        """What a set-off names as this operator's card: empty where it sells and buys with one key.

        Raises UsageError if no card names both keys.
        """
        if sells == buys:
            return b""
        for chain in self.chains:
            for card in reversed(chain):
                if {sells, buys} <= {peer.key for peer in card.message.peers}:
                    return card.id
        names = " and ".join(parse_public_key(key).peer_id for key in (sells, buys))
        raise UsageError(
            f"no card names both {names}, the keys with which this operator sells and buys.",
            hint="Name both in one: `p2pgrid card sign --peer KEY --peer KEY`. The other side's comes with its offers.",
        )


class AllBooks:
    """The ledgers of one operator, read together. A channel in several of them is taken from the first."""

    def __init__(self, ledgers: Sequence[Books]) -> None:
        self._ledgers: Final = tuple(ledgers)
        self.channels: Final[dict[bytes, tuple[Channel, Books]]] = {}
        for ledger in ledgers:
            for signed in ledger.channels():
                self.channels.setdefault(signed.message.channel, (signed.message, ledger))

    def __iter__(self) -> Iterator[Books]:
        return iter(self._ledgers)

    def claims_between(
        self, sells: frozenset[bytes], buys: frozenset[bytes], *, at_ms: int, ours: frozenset[bytes]
    ) -> list[OpenClaim]:
        """What is open in all channels in which one of `sells` sells to one of `buys`, the oldest channel first.

        `ours`: our keys, as for `claims.open_claims`. Raises LedgerError.
        """
        found: list[OpenClaim] = []
        for channel, ledger in self.channels.values():
            if channel.provider in sells and channel.client in buys:
                found += open_claims(ledger, channel, at_ms=at_ms, ours=ours)
        return found


def _named(chain: Chain) -> frozenset[bytes]:
    """Keys that some card of the chain names and none has revoked."""
    revoked = {one.key for card in chain for one in card.message.revoked}
    return frozenset(peer.key for card in chain for peer in card.message.peers if peer.key not in revoked)
