"""Evidence is kept within limits, for each peer and for all."""

from __future__ import annotations

from p2pgrid.desk.evidence import ALL_REFILL_MS, MOST_AT_ONCE, MOST_OF_ALL, REFILL_MS, EvidenceKeeper
from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.proto.record import Record
from tests.factories import CLIENT, PROVIDER, secret_key


def record(number: int) -> Record:
    return Record("/p2pgrid/offer/1", number.to_bytes(4, "big"), ())


class Clock:
    ms = 1_000_000

    def __call__(self) -> int:
        return self.ms


async def test_one_peer_cannot_fill_the_disk() -> None:
    ledger, clock = MemoryLedger(), Clock()
    keeper = EvidenceKeeper(ledger, clock)
    taken = [keeper.keep(PROVIDER.public_key, record(number), "x") for number in range(3 * MOST_AT_ONCE)]
    assert taken.count(True) == MOST_AT_ONCE
    assert ledger.counts()["evidence"] == MOST_AT_ONCE
    assert keeper.dropped == 2 * MOST_AT_ONCE
    assert keeper.keep(CLIENT.public_key, record(1000), "x")
    clock.ms += REFILL_MS
    assert keeper.keep(PROVIDER.public_key, record(1001), "x")
    assert not keeper.keep(PROVIDER.public_key, record(1002), "x")


async def test_nor_can_many() -> None:
    ledger, clock = MemoryLedger(), Clock()
    keeper = EvidenceKeeper(ledger, clock)
    taken = [keeper.keep(secret_key(f"p{n}").public_key, record(n), "x") for n in range(MOST_OF_ALL + 10)]
    assert taken.count(True) == MOST_OF_ALL
    clock.ms += 3 * ALL_REFILL_MS
    assert [keeper.keep(secret_key(f"q{n}").public_key, record(5000 + n), "x") for n in range(5)].count(True) == 3


async def test_a_ledger_that_fails_ends_nothing() -> None:
    ledger, clock = MemoryLedger(), Clock()
    ledger.fail_append()
    assert EvidenceKeeper(ledger, clock).keep(PROVIDER.public_key, record(1), "x")
