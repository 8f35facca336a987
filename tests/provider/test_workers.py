"""A provider of several processes: real workers, links over loopback, a fake vLLM."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from p2pgrid.config import TermsConfig
from p2pgrid.data_folder import DataFolder, create_key
from p2pgrid.engine.fake import FakeVllm, serve_fake
from p2pgrid.errors import P2pgridError, UsageError
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.proto.dispute import Decision
from p2pgrid.proto.disputing import sign_answer
from p2pgrid.proto.messages import Status
from p2pgrid.proto.record import Role, Signed, parse_record, sign_message
from p2pgrid.proto.statement import Invoice, Payment, Statement
from p2pgrid.proto.wire.base import Refusal, parse_frame
from p2pgrid.proto.wire.channels import Channels, Records
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.provider.node import Provider
from p2pgrid.provider.pages import serve_pages
from p2pgrid.provider.workers import ProviderWorkers
from tests.factories import make_invoice, make_prepayment, make_statement, secret_key
from tests.provider.rig import Buyer, Clock, Rig, receive, until
from tests.provider.test_disputes import begin as begin_disputes
from tests.provider.test_node import config, node
from tests.provider.test_resume import begun

pytestmark = pytest.mark.process


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    folder = DataFolder(tmp_path / "node")
    folder.make()
    create_key(folder.key_file)
    return folder


@contextlib.asynccontextmanager
async def running(data: DataFolder, *, processes: int = 2, **fields: Any) -> AsyncIterator[tuple[Provider, Rig]]:
    fake = FakeVllm()
    settings = config("", processes=processes, **fields)
    async with serve_fake(fake) as url:
        settings = config(url, processes=processes, **fields)
        async with node(data, settings) as provider:
            assert provider.offer is not None
            host, port = provider.offer.message.addresses[0].split("/")[2:5:2]
            address = (host, int(port))
            rig = Rig(None, provider.engines, fake.state, address, provider.offer, Clock())  # type: ignore[arg-type]
            yield provider, rig


def workers_of(provider: Provider) -> ProviderWorkers:
    assert provider._workers is not None
    return provider._workers


async def buyer_of(provider: Provider, rig: Rig, name: str = "client") -> Buyer:
    return await Buyer.connect(rig, secret_key(name), provider=provider.key.public_key)


async def trusted_buyer(provider: Provider, rig: Rig) -> Buyer:
    """A client that has signed for enough to cover an order that was broken off."""
    buyer = await buyer_of(provider, rig)
    receipt = await buyer.order(max_tokens=400, fake={"tokens": 400}).send().to_end()
    assert receipt.usage.output_tokens == 400
    return buyer


def holder(provider: Provider, buyer: Buyer) -> int:
    return workers_of(provider)._claims.holder(buyer.books.id)


async def test_two_clients_are_served_by_two_workers(data: DataFolder) -> None:
    async with running(data) as (provider, rig), serve_pages(provider, "127.0.0.1", 0) as url:
        one, two = await buyer_of(provider, rig), await buyer_of(provider, rig, "another")
        assert {holder(provider, one), holder(provider, two)} == {1, 2}
        for buyer in (one, two):
            for number in (1, 2, 3):
                receipt = await buyer.order(max_tokens=20).send().to_end()
                assert (receipt.status, receipt.receipt_number) == (Status.COMPLETED, number)
        earned = one.books.total_pico + two.books.total_pico
        await until(lambda: provider.tally.earned_pico == earned)
        async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as response:
            lines = (await response.text()).splitlines()
        assert 'p2pgrid_orders_settled_total{status="completed"} 6' in lines
        assert provider.links_by_road == {"direct": 2, "libp2p": 0, "punched": 0, "relayed": 0}
    with SqliteLedger.open_readonly(data.ledger_file) as ledger:
        assert [row.countersigned for row in ledger.receipts()] == [True] * 6
        assert all(ledger.request_key(row.channel.channel, row.receipt.order_number) for row in ledger.receipts())


async def test_what_is_no_order_is_answered_by_the_main_process(data: DataFolder) -> None:
    async with running(data) as (provider, rig):
        buyer = await buyer_of(provider, rig)
        kind, payload = await buyer.ask(Kind.OFFER_REQUEST, b"")
        assert (kind, parse_record(payload)) == (Kind.OFFER, rig.offer.record)
        kind, payload = await buyer.ask(Kind.CHANNELS_REQUEST, b"")
        assert kind == Kind.CHANNELS
        assert parse_frame(payload, Channels).channels == (buyer.channel.record.to_bytes(),)
        await buyer.order(max_tokens=4).send().to_end()
        await provider.log.log.flush()
        kind, payload = await buyer.ask(Kind.LOG_REQUEST, b"checkpoint")
        assert kind == Kind.LOG_RESPONSE and provider.peer_id.encode() in payload
        # What breaks a rule counts against the link, whoever dealt with it.
        for _ in range(provider.limits.faults_per_link):
            stream, reader = buyer.stream()
            stream.send(Kind.OFFER_REQUEST, b"x")
            with pytest.raises(P2pgridError):
                await receive(reader)
        await asyncio.wait_for(buyer.link.closed, 10)
        assert provider.tally.faults == provider.limits.faults_per_link


async def test_a_client_with_too_many_links_loses_its_oldest_wherever_they_are(data: DataFolder) -> None:
    async with running(data) as (provider, rig):
        buyer = await buyer_of(provider, rig)
        first = buyer.link
        for _ in range(provider.limits.links_per_client):
            await buyer.reconnect()
            await buyer.ask(Kind.OFFER_REQUEST, b"")
        await asyncio.wait_for(first.closed, 10)
        await until(lambda: provider.links_by_road["direct"] == provider.limits.links_per_client)


async def test_a_client_that_comes_back_at_another_worker_keeps_its_channel(data: DataFolder) -> None:
    async with running(data) as (provider, rig):
        buyer = await buyer_of(provider, rig)
        await buyer.order(max_tokens=20).send().to_end()
        for number in range(2, 6):
            before, held_at = buyer.link, holder(provider, buyer)
            # The new link is there while the old one is, so that it goes to the worker with the fewest.
            await buyer.reconnect()
            assert await buyer.resume() is not None
            assert holder(provider, buyer) == 3 - held_at
            assert (await buyer.order(max_tokens=20).send().to_end()).receipt_number == number
            before.abort()
            await until(lambda: workers_of(provider)._acceptor.n_connections == 1)


async def test_a_resume_at_another_worker_ends_what_runs_on_the_older_link(data: DataFolder) -> None:
    async with running(data) as (provider, rig):
        buyer = await trusted_buyer(provider, rig)
        placed = buyer.order(max_tokens=60, fake={"fault": "hang"}).send()
        await placed.until(lambda: placed.answer)
        held_at = holder(provider, buyer)
        await buyer.reconnect()
        _, (receipt,) = await buyer.resume()
        assert await placed.cut()
        assert (receipt.message.status, receipt.message.receipt_number) == (Status.INTERRUPTED, 2)
        assert holder(provider, buyer) != held_at
        buyer.forget_orders()
        assert (await buyer.order(max_tokens=4).send().to_end()).receipt_number == 3


async def test_an_order_is_refused_where_another_worker_holds_the_channel(data: DataFolder) -> None:
    async with running(data) as (provider, rig):
        buyer = await buyer_of(provider, rig)
        await buyer.reconnect()
        assert (await buyer.order(max_tokens=4).send().refused()).code == "not-resumed"


async def test_a_channel_goes_back_when_its_client_is_away(data: DataFolder) -> None:
    async with running(data) as (provider, rig):
        buyer = await trusted_buyer(provider, rig)
        placed = buyer.order(max_tokens=60, fake={"fault": "hang"}).send()
        await placed.until(lambda: placed.answer)
        buyer.link.abort()
        await until(lambda: holder(provider, buyer) == 0)
        channel = provider.channels.get(buyer.books.id)
        assert channel is not None and channel.is_held and channel.books.last_order_number == 2
        # The main process alone closes what such a client left open, and nobody makes a second receipt.
        channel.away_since_ms = 0
        assert await provider.channels.close_overdue() == 1
        await buyer.reconnect()
        _, (receipt,) = await buyer.resume()
        assert (receipt.message.status, receipt.message.receipt_number) == (Status.INTERRUPTED, 2)
        buyer.forget_orders()
        assert (await buyer.order(max_tokens=4).send().to_end()).receipt_number == 3


async def test_slots_are_counted_over_all_workers(data: DataFolder) -> None:
    model = config("").provider.models[0]
    async with running(data) as (provider, rig):
        assert provider.engines.models["fake"].concurrency == model.concurrency
        buyers = [await buyer_of(provider, rig, f"client {n}") for n in range(model.concurrency + 1)]
        placed = [buyer.order(max_tokens=60, fake={"fault": "hang"}).send() for buyer in buyers[:-1]]
        for one in placed:
            await one.until(lambda one=one: one.answer)
        assert {holder(provider, one.buyer) for one in placed} == {1, 2}
        assert provider.engines.models["fake"].running_in_all == model.concurrency
        refusal = await buyers[-1].order(max_tokens=4).send().refused()
        assert (refusal.code, refusal.retry_after_ms) == ("busy", 1000)
        placed[0].cancel()
        await placed[0].until_kind(Kind.RECEIPT)
        buyers[-1].forget_orders()
        assert (await buyers[-1].order(max_tokens=4).send().to_end()).receipt_number == 1


async def test_channels_of_a_key_are_counted_over_all_workers(data: DataFolder) -> None:
    async with running(data) as (provider, rig):
        buyer = await buyer_of(provider, rig)
        for _ in range(provider.limits.channels_per_client - 1):
            await buyer.reconnect()
            await buyer.open_channel()
        await buyer.reconnect()
        with pytest.raises(AssertionError) as refused:
            await buyer.open_channel()
        (refusal,) = refused.value.args
        assert isinstance(refusal, Refusal) and refusal.code == "too-many-channels"


async def test_a_killed_worker_is_replaced_and_its_orders_are_settled(data: DataFolder) -> None:
    async with running(data) as (provider, rig):
        buyer, other = await trusted_buyer(provider, rig), await buyer_of(provider, rig, "another")
        earned = provider.tally
        placed = buyer.order(max_tokens=60, fake={"fault": "hang"}).send()
        await placed.until(lambda: placed.answer)
        victim = holder(provider, buyer)
        pid = workers_of(provider).pids[victim]
        os.kill(pid, signal.SIGKILL)
        assert await placed.cut()
        # The other worker's client notices nothing.
        assert (await other.order(max_tokens=20).send().to_end()).status is Status.COMPLETED
        await buyer.reconnect()
        _, (receipt,) = await buyer.resume()
        assert (receipt.message.status, receipt.message.receipt_number) == (Status.INTERRUPTED, 2)
        buyer.forget_orders()
        assert (await buyer.order(max_tokens=4).send().to_end()).receipt_number == 3
        await until(lambda: workers_of(provider).pids.get(victim, pid) != pid and victim in workers_of(provider).buses)
        assert provider.worker_restarts == 1
        assert provider.tally.receipts["completed"] >= earned.receipts["completed"]
        assert provider.open_orders == 0


async def test_a_stopping_node_lets_orders_of_its_workers_finish_and_takes_no_new_ones(data: DataFolder) -> None:
    async with running(data) as (provider, rig):
        buyer = await buyer_of(provider, rig)
        placed = buyer.order(max_tokens=60, fake={"tokens": 60, "pace_ms": 20}).send()
        await placed.until(lambda: placed.answer)
        pids = provider.worker_pids
        stopping = asyncio.create_task(provider.__aexit__(None, None, None))
        await until(lambda: provider.is_draining)
        another = await buyer_of_draining(rig, provider)
        assert another == "withdrawn"
        assert (await placed.to_end()).status is Status.COMPLETED
        await stopping
        assert all(not _is_alive(pid) for pid in pids)


async def test_a_stopping_node_waits_no_longer_than_it_was_told(data: DataFolder) -> None:
    async with running(data, drain_s=0) as (provider, rig):
        buyer = await buyer_of(provider, rig)
        placed = buyer.order(max_tokens=60, fake={"fault": "hang"}).send()
        await placed.until(lambda: placed.answer)
        stopping = asyncio.create_task(provider.__aexit__(None, None, None))
        receipt = await placed.to_end()
        assert (receipt.status, receipt.amount_pico) == (Status.FAILED, 0)
        await stopping


async def test_a_dispute_at_a_worker_reaches_the_operators_book(
    data: DataFolder, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(data, terms=TermsConfig(window_tokens=16)) as (provider, rig):
        buyer = await trusted_buyer(provider, rig)
        placed = buyer.order(max_tokens=60, fake={"tokens": 60, "pace_ms": 50}).send()
        await placed.until_kind(Kind.METER)
        buyer.link.abort()
        await placed.cut()
        await buyer.reconnect()
        _, (receipt,) = await buyer.resume(sign=False)
        stream, reader = await begun(buyer)
        stream.send(Kind.RECORDS, Records(records=0, is_all=True).to_bytes())
        assert [(await receive(reader))[0] for _ in range(2)] == [Kind.PROPOSALS, Kind.RECEIPT]
        dispute = buyer.dispute(receipt)
        stream.send(Kind.DISPUTE, dispute.record.to_bytes())
        await until(lambda: provider.tally.disputes == 1)
    with SqliteLedger.open_readonly(data.ledger_file) as ledger:
        (row,) = ledger.disputes()
        assert row.dispute.id == dispute.id
    assert f"p2pgrid receipts answer {receipt.id.hex()[:16]}" in caplog.text


def test_several_processes_need_the_direct_road(data: DataFolder) -> None:
    with pytest.raises(UsageError, match="direct road"):
        node(data, config("http://127.0.0.1:1", processes=2, listen=""), join_network=True)


async def buyer_of_draining(rig: Rig, provider: Provider) -> str:
    """How a new client is refused."""
    try:
        await buyer_of(provider, rig, "late")
    except AssertionError as error:
        (refusal,) = error.args
        assert isinstance(refusal, Refusal)
        return refusal.code
    except P2pgridError:
        return "unreachable"
    return ""


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_disputes_of_a_channel_that_a_worker_holds_reach_its_books(data: DataFolder) -> None:
    async with running(data) as (provider, rig):
        buyer = await buyer_of(provider, rig)
        placed = buyer.order(max_tokens=20).send()
        await placed.to_end()
        watch, news = buyer.stream()
        watch.send(Kind.DISPUTES_WATCH, b"")
        assert placed.machine.receipt is not None
        made = buyer.dispute(placed.machine.receipt)
        # The client tells of it: both hold it from then on, and the worker's next receipt has to mention it.
        stream, reader, compared = await begin_disputes(buyer, made)
        assert (compared.lacks, compared.records) == ((made.id,), 0)
        stream.send(Kind.DISPUTES_TAKEN, b"")
        stream.send(Kind.RECORD, made.record.to_bytes())
        assert (await receive(reader))[0] == Kind.DISPUTES_TAKEN
        stream.end()
        assert (await receive(news))[0] == Kind.DISPUTES_NEWS
        buyer.books.note_held(made.id, made.message)
        receipt = await buyer.order(max_tokens=20).send().to_end()
        assert receipt.mentions == (made.id,)
        # The operator answers: the client hears of it.
        answer = sign_answer(
            made,
            placed.machine.receipt.message,
            decision=Decision.ACCEPTED,
            statement="",
            owed_pico=None,
            key=provider.key,
            now_ms=buyer.now_ms(),
        )
        await provider.disputes._ledger.append(answer)
        provider.disputes.said(answer)
        assert (await receive(news))[0] == Kind.DISPUTES_NEWS
        assert (await buyer.order(max_tokens=20).send().to_end()).receipt_number == 3


async def test_what_is_settled_reaches_the_books_of_the_worker_that_holds_the_channel(data: DataFolder) -> None:
    terms = TermsConfig(window_tokens=16, credit_limit_eur="0.0003", overdue_grace_days=0)
    async with running(data, terms=terms) as (provider, rig):
        buyer = await buyer_of(provider, rig)
        channel = buyer.channel.message.channel
        await buyer.order(max_tokens=20).send().to_end()
        buyer.books.credit.freed_pico = 10**12
        assert (await buyer.order().send().refused()).code == "credit-exhausted"
        await provider.ledger.append(make_prepaid(provider, channel, buyer.now_ms()))
        await told_of(buyer)
        assert (await buyer.order().send().to_end()).receipt_number == 2
        await provider.ledger.append(*make_overdue(provider, buyer))
        await told_of(buyer)
        refusal = await buyer.order().send().refused()
        assert refusal.code == "payment-overdue" and "12.39 EUR are open" in refusal.message
        # A channel that another worker takes over is told of it as well.
        for _ in range(4):
            await buyer.reconnect(rig)
            await buyer.resume()
            assert (await buyer.order().send().refused()).code == "payment-overdue"


async def told_of(buyer: Buyer) -> None:
    """Return once the worker has heard all that was said to it: it answers a stream that goes through the main process,
    behind it on the same bus."""
    await buyer.ask(Kind.OFFER_REQUEST, b"")


def make_prepaid(provider: Provider, channel: bytes, now_ms: int) -> Signed[Payment]:
    """A cent, for no invoice."""
    message = make_prepayment(channel, amount_cents=1, booked_ms=now_ms).message
    return sign_message(message, Role.PROVIDER, provider.key)


def make_overdue(provider: Provider, buyer: Buyer) -> tuple[Signed[Statement], Signed[Invoice]]:
    """A statement of 12.40 EUR that was due at once, and its invoice."""
    channel = buyer.channel.message
    now_ms = max(buyer.now_ms(), channel.opened_ms + 1)
    times = {"from_ms": channel.opened_ms, "until_ms": now_ms, "stated_ms": now_ms, "due_ms": now_ms}
    net = {"net_cents": 1240, "gross_cents": 1240}
    message = make_statement([], bytes(32), channel=channel.channel, **times, **net).message
    signed = sign_message(message, Role.PROVIDER, provider.key).countersigned(Role.CLIENT, buyer.key)
    return signed, sign_message(make_invoice(signed).message, Role.PROVIDER, provider.key)
