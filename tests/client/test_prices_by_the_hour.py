"""A sale under a schedule: the time that stands in the order decides, on both sides."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.proto.messages import Tariff, TariffPeriod
from p2pgrid.proto.pricing import price_of
from tests.client.seller import CHAT, until
from tests.client.test_with_provider import BODY, buying, signed_receipts
from tests.provider.rig import provider

CHEAP = Tariff(input_upm=7, cached_input_upm=7, output_upm=11)
ALWAYS = TariffPeriod(weekdays=127, from_minute=0, until_minute=1440, tariff=CHEAP)


async def test_the_period_in_force_is_billed_and_reserved() -> None:
    sold = MemoryLedger()
    async with provider(sold) as rig:
        entry = msgspec.structs.replace(rig.offer.message.models[0], schedule=(ALWAYS,))
        rig.offer = await rig.shop.offers.publish([entry], rig.offer.message.addresses)
        async with buying(rig) as (purchaser, bought):
            async with await purchaser.buy(CHAT, BODY, whole=True) as answer:
                cost = await _cost(answer)
            await until(lambda: signed_receipts(bought) and signed_receipts(sold))
    (receipt,) = signed_receipts(bought)
    assert signed_receipts(sold) == [receipt]
    assert receipt.amount_pico == cost == price_of(CHEAP, receipt.usage) > 0


async def _cost(answer: Any) -> int:
    async with asyncio.timeout(5):
        await answer.assemble()
        await answer.settled(2.0)
    assert answer.tariff == CHEAP
    cost: int = answer.cost_pico
    return cost
