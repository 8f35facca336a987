"""Receipts by name."""

from __future__ import annotations

import asyncio

import pytest

from p2pgrid.desk.find import find_receipt
from p2pgrid.errors import UsageError
from p2pgrid.ledger.memory import MemoryLedger
from tests.factories import Dealings


async def ledger_of(*dealings: Dealings) -> MemoryLedger:
    ledger = MemoryLedger()
    for one in dealings:
        await asyncio.gather(*(ledger.append(signed) for signed in one.chain(3)))
    return ledger


async def test_every_way_to_name_a_receipt() -> None:
    one, two = Dealings(), Dealings(name="another")
    ledger = await ledger_of(one, two)
    second = two.receipts[1]
    for name in (second.id.hex(), second.id.hex()[:8].upper(), f"{two.id.hex()}:2", f"{two.id.hex()[:6]}:2"):
        receipt, channel = find_receipt(ledger, name)
        assert (receipt.id, channel.id) == (second.id, two.channel.id)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "names no receipt"),
        ("xyz", "names no receipt"),
        ("ab", "too short"),
        ("0" * 64, "no receipt whose id"),
        ("0" * 65, "names no receipt"),
        ("{channel}:0", "names no receipt"),
        ("{channel}:4", "has no receipt 4"),
        ("{other}:1", "no channel"),
    ],
)
async def test_names_of_nothing(name: str, words: str) -> None:
    one = Dealings()
    ledger = await ledger_of(one)
    other = bytes(b ^ 255 for b in one.id)
    with pytest.raises(UsageError, match=words):
        find_receipt(ledger, name.format(channel=one.id.hex(), other=other.hex()))


async def test_a_name_of_two_channels() -> None:
    many = [Dealings(name=f"{n}") for n in range(17)]
    ledger = await ledger_of(*many)
    firsts = [one.id.hex()[0] for one in many]
    shared = next(c for c in firsts if firsts.count(c) > 1)
    with pytest.raises(UsageError, match="more than one channel"):
        find_receipt(ledger, f"{shared}:1")
