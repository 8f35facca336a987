"""What an owner asks of a gateway: to agree with a provider, to deal with one again."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from p2pgrid.client.desk import ClientDesk
from p2pgrid.desk.asks import AllowPeer, Reconcile
from p2pgrid.desk.standing import Reconciled
from p2pgrid.errors import Refused, RemoteError, Unreachable, UsageError
from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.provider.desk import ProviderDesk
from tests.client.seller import CHAT, until
from tests.client.test_with_provider import BODY, buying, signed_receipts
from tests.factories import CLIENT, PROVIDER, secret_key
from tests.provider.rig import Rig, provider

SLOW = BODY | {"fake": {"tokens": 60, "pace_ms": 10}}
PEER = PROVIDER.public_key.peer_id


def desk(purchaser: object) -> ClientDesk:
    return ClientDesk(purchaser, CLIENT.public_key)  # type: ignore[arg-type]


async def reconcile(purchaser: object) -> Reconciled:
    done: Reconciled = await desk(purchaser).perform(Reconcile(peer=PEER))
    return done


async def test_nothing_changes_where_both_agree() -> None:
    async with provider() as rig, buying(rig) as (purchaser, ledger):
        async with await purchaser.buy(CHAT, BODY, whole=True):
            await until(lambda: signed_receipts(ledger))
        done = await reconcile(purchaser)
        assert (done.changed, done.role, done.quarantine_lifted) == (False, "client", "")
        (channel,) = done.channels
        assert channel.before == channel.after and channel.after.countersigned == 1
        # And the link goes on.
        async with await purchaser.buy(CHAT, BODY, whole=True):
            await until(lambda: len(signed_receipts(ledger)) == 2)


async def test_what_a_killed_client_left_open_is_closed() -> None:
    sold = MemoryLedger()
    async with provider(sold) as rig:
        async with buying(rig) as (purchaser, ledger):
            async with await purchaser.buy(CHAT, BODY, whole=True):
                await until(lambda: signed_receipts(ledger))
            answer = await purchaser.buy(CHAT, SLOW)
            await until(lambda: answer.usage.output_tokens > 20)
            assert isinstance(ledger, MemoryLedger)
            found = ledger.crashed()
            rig.live[0].connection.abort()
        async with buying(rig, found, keeps_links=False) as (purchaser, _):
            done = await reconcile(purchaser)
        (channel,) = done.channels
        assert done.changed
        assert (channel.before.open_orders, channel.after.open_orders) == (1, 0)
        (change,) = channel.receipts
        assert (change.receipt_number, change.order_number, change.is_new) == (2, 2, True)
        assert change.is_countersigned and change.status in ("interrupted", "cancelled")
        await until(lambda: len(signed_receipts(sold)) == 2)
        assert signed_receipts(sold) == signed_receipts(found)


async def test_what_came_by_itself_on_a_new_link_is_shown_with_its_time() -> None:
    sold = MemoryLedger()
    async with provider(sold) as rig, buying(rig) as (purchaser, ledger):
        async with await purchaser.buy(CHAT, BODY, whole=True):
            await until(lambda: signed_receipts(ledger))
        assert (await reconcile(purchaser)).earlier == ()
        answer = await purchaser.buy(CHAT, SLOW)
        await until(lambda: answer.usage.output_tokens > 20)
        rig.live[0].connection.abort()
        await until(lambda: len(signed_receipts(ledger)) == 2)
        await until(lambda: purchaser.sessions.earlier.of(PEER))

        for _ in range(2):
            done = await reconcile(purchaser)
            assert not done.changed and not done.channels[0].is_changed
            (earlier,) = done.earlier
            (channel,) = earlier.channels
            assert (channel.before.receipts, channel.after.receipts) == (1, 2)
            assert (channel.before.open_orders, channel.after.open_orders) == (1, 0)
            (change,) = channel.receipts
            assert (change.order_number, change.status, change.is_countersigned) == (2, "interrupted", True)
        assert earlier.at_ms >= signed_receipts(ledger)[-1].issued_ms
        with contextlib.suppress(RemoteError):
            answer.cancel()


async def test_what_a_new_link_brought_while_it_was_asked_for_is_counted_once() -> None:
    """The ledger's end is lost; the link that `reconcile` has to make brings it back before the exchange asked for."""
    async with provider() as rig:
        async with buying(rig) as (purchaser, ledger), await purchaser.buy(CHAT, BODY, whole=True):
            await until(lambda: signed_receipts(ledger))
        async with buying(rig, MemoryLedger(), keeps_links=False) as (purchaser, fresh):
            done = await reconcile(purchaser)
            (channel,) = done.channels
            assert done.changed and done.earlier == ()
            restored = [*fresh.channels(), *(record for record in fresh.records())]
            assert 0 < channel.restored <= len(restored)
            assert [one.is_new for one in channel.receipts] == [True]
            again = await reconcile(purchaser)
            assert not again.changed and again.channels[0].restored == 0


async def test_running_orders_are_waited_for() -> None:
    async with provider() as rig, buying(rig) as (purchaser, _):
        answer = await purchaser.buy(CHAT, SLOW)
        asked = asyncio.create_task(reconcile(purchaser))
        async with answer:
            assert (await answer.assemble())["usage"]["completion_tokens"] == 60
        done = await asked
        assert done.channels[0].receipts[0].status == "completed"
        with pytest.raises(Refused, match="still running"):
            async with await purchaser.buy(CHAT, SLOW):
                await purchaser.sessions.reconcile(PROVIDER.public_key, 0.1)


async def test_a_provider_that_is_away() -> None:
    async with provider() as rig:
        async with buying(rig) as (purchaser, ledger), await purchaser.buy(CHAT, BODY, whole=True):
            await until(lambda: signed_receipts(ledger))
        address = rig.address
    async with buying(_At(address, rig), ledger, keeps_links=False) as (purchaser, _):  # type: ignore[arg-type]
        with pytest.raises(Unreachable, match="is not there"):
            await purchaser.sessions.reconcile(PROVIDER.public_key, 0.3)


class _At:
    """Where a provider was."""

    def __init__(self, address: tuple[str, int], rig: Rig) -> None:
        self.address, self.offer = address, rig.offer


async def test_strangers_and_other_sides() -> None:
    async with provider() as rig, buying(rig) as (purchaser, _):
        with pytest.raises(UsageError, match="no channel with"):
            await desk(purchaser).perform(Reconcile(peer=secret_key("stranger").public_key.peer_id))
        with pytest.raises(UsageError):
            await desk(purchaser).perform(None)
        assert not (await desk(purchaser).perform(AllowPeer(peer=PEER))).was_held


async def test_the_provider_says_what_is_open_and_who_must_come() -> None:
    sold = MemoryLedger()
    async with provider(sold) as rig, buying(rig) as (purchaser, _):
        mine = ProviderDesk(sold, PROVIDER.public_key, rig.shop.links.is_connected)
        answer = await purchaser.buy(CHAT, SLOW)
        await until(lambda: sold.channels() and sold.open_orders(sold.channels()[0].message.channel))
        done = await mine.perform(Reconcile(peer=CLIENT.public_key.peer_id))
        assert (done.waits_for_client, done.is_connected, done.changed) == (True, True, False)
        assert done.channels[0].open_orders == (1,)
        with contextlib.suppress(RemoteError):
            answer.cancel()
        with pytest.raises(UsageError):
            await mine.perform(AllowPeer(peer=PEER))


async def test_agreeing_lifts_a_quarantine() -> None:
    async with provider() as rig, buying(rig) as (purchaser, ledger):
        async with await purchaser.buy(CHAT, BODY, whole=True):
            await until(lambda: signed_receipts(ledger))
        purchaser.quarantine.add(PEER, "wrong-count: it was so", 1)
        with pytest.raises(Refused, match="it was so"):
            await purchaser.buy(CHAT, BODY)
        done = await reconcile(purchaser)
        assert done.changed and done.quarantine_lifted == "wrong-count: it was so"
        async with await purchaser.buy(CHAT, BODY, whole=True):
            pass
