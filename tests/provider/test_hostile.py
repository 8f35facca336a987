"""One client's bytes, whatever they are, are no other client's matter."""

from __future__ import annotations

import asyncio
import random
from typing import cast

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pgrid.clock import unix_ms
from p2pgrid.errors import P2pgridError, Refused
from p2pgrid.log.service import LogService
from p2pgrid.net.direct import dial
from p2pgrid.net.stream_reader import StreamReader
from p2pgrid.proto.messages import Status
from p2pgrid.proto.wire.base import Refusal, parse_frame
from p2pgrid.proto.wire.channels import ChannelRequest
from p2pgrid.proto.wire.kinds import Kind
from tests.factories import PROVIDER, secret_key
from tests.provider.rig import Buyer, limits, provider, receive, until

ATTACKER = secret_key("attacker")
KINDS = [int(kind) for kind in Kind] + [16, 99, 255]


async def test_hostile_streams_do_not_disturb_an_order_of_another_client() -> None:
    rng = random.Random(1)
    async with provider() as rig:
        buyer = await Buyer.connect(rig)
        genuine = [buyer.order().actions[1].payload, buyer.channel.record.to_bytes(), rig.offer.record.to_bytes()]
        buyer.forget_orders()
        honest = buyer.order(max_tokens=200, fake={"tokens": 200, "pace_ms": 1}).send()
        while not honest.ended_by_provider:
            link = await dial(*rig.address, PROVIDER.public_key, ATTACKER)
            try:
                for _ in range(20):
                    stream = link.open_stream(StreamReader())
                    for _ in range(rng.randrange(1, 4)):
                        payload = bytearray(rng.choice([*genuine, rng.randbytes(rng.randrange(1, 300))]))
                        if rng.random() < 0.5:
                            payload[rng.randrange(len(payload))] ^= 1 << rng.randrange(8)
                        stream.send(rng.choice(KINDS), bytes(payload))
                    if rng.random() < 0.6:
                        stream.reset() if rng.random() < 0.5 else stream.end()
                await asyncio.sleep(0.01)
            except P2pgridError:
                pass  # it was thrown out
            link.abort()
        receipt = await honest.to_end()
        assert (receipt.status, receipt.usage.output_tokens) == (Status.COMPLETED, 200)
        assert rig.tally.faults > 0
        await until(lambda: rig.shop.links.n_clients == 1)
        assert rig.shop.admission._body_bytes == 0


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.sampled_from(KINDS), st.binary(min_size=1, max_size=200)), min_size=1, max_size=8))
def test_any_messages_on_a_stream_end_in_nothing_worse_than_a_reset(messages: list[tuple[int, bytes]]) -> None:
    async def run() -> None:
        async with provider() as rig:
            buyer = await Buyer.connect(rig)
            for first in (Kind.ORDER, Kind.RESUME, Kind.CHANNEL_REQUEST):
                stream, _ = buyer.stream()
                genuine = buyer.order().actions[1].payload if first is Kind.ORDER else buyer.resume_frame()
                stream.send(first, genuine)
                for kind, payload in messages:
                    stream.send(kind, payload)
                stream.end()
            await until(lambda: buyer.link.n_streams == 0 or buyer.link.closed.done())
            await buyer.reconnect()
            buyer.forget_orders()
            await buyer.resume()
            assert (await buyer.order(max_tokens=4).send().to_end()).status is Status.COMPLETED

    asyncio.run(run())


async def test_an_address_opens_so_many_channels_whatever_keys_it_makes() -> None:
    """Each would be on record for months; who has a channel goes on with it."""
    async with provider(limits=limits(channels_burst=2, channels_per_hour=1)) as rig:
        buyer = await Buyer.connect(rig)
        await Buyer.connect(rig, secret_key("a new key"))
        for n in range(3):
            link = await dial(*rig.address, PROVIDER.public_key, secret_key(f"another new key {n}"))
            reader = StreamReader()
            stream = link.open_stream(reader)
            request = ChannelRequest(client_nonce=bytes(32), offer=rig.offer.id, now_ms=unix_ms())
            stream.send(Kind.CHANNEL_REQUEST, request.to_bytes())
            kind, payload = await receive(reader)
            assert kind == Kind.REFUSAL
            assert parse_frame(payload, Refusal).code == "busy"
            await link.aclose()
        assert len(rig.shop.channels) == 2
        assert (await buyer.order(max_tokens=4).send().to_end()).status is Status.COMPLETED


async def test_an_address_asks_so_much_about_the_log() -> None:
    async with provider(limits=limits(log_burst=2, log_per_s=0.001), log=cast(LogService, _NoLog())) as rig:
        codes = []
        for n in range(4):
            link = await dial(*rig.address, PROVIDER.public_key, secret_key(f"asker {n}"))
            reader = StreamReader()
            link.open_stream(reader).send(Kind.LOG_REQUEST, b"checkpoint")
            _, payload = await receive(reader)
            codes.append(parse_frame(payload, Refusal).code)
            await link.aclose()
        assert codes == ["not-there", "not-there", "busy", "busy"]


class _NoLog:
    async def get(self, path: str, asker: object) -> None:
        raise Refused("not-there", "nothing is in this log yet.")
