"""Buying over real links from the seller's real machine."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from p2pgrid.client.limits import SessionLimits
from p2pgrid.client.wishes import Wishes
from p2pgrid.clock import unix_ms
from p2pgrid.errors import LedgerError, ProtocolViolation, Refused, RemoteError, Unreachable
from p2pgrid.proto.bundles import Bundle
from p2pgrid.proto.codes import CODES, Party, Weight
from p2pgrid.proto.messages import Channel, Meter, Receipt, Status, Tariff, Voucher
from p2pgrid.proto.order_states import SellerState
from p2pgrid.proto.record import Role, parse_message, parse_record, sign_message
from p2pgrid.proto.verdict import audit_records
from p2pgrid.proto.wire.base import Refusal
from p2pgrid.proto.wire.kinds import Kind
from tests.client.seller import BODY, CHAT, MODEL, WINDOW, FakeNetwork, TestSeller, chat_events, shop, until

DEARER = {"input_upm": 300_000, "output_upm": 900_000}


async def test_an_answer_is_bought_and_signed_for() -> None:
    seller = TestSeller()
    seller.events = chat_events(3, cached=2)
    async with shop(seller) as s, await s.purchaser.buy(CHAT, BODY) as answer:
        assert b"".join([data async for data in answer]) == b"".join(seller.events)
        receipt = await answer.settled(5)
        assert receipt is not None and set(receipt.signers) == {Role.PROVIDER, Role.CLIENT}
        assert receipt.message.status is Status.COMPLETED
        assert answer.usage.prompt_tokens == 5 and answer.usage.output_tokens == 3
        assert answer.cost_pico == receipt.message.amount_pico == 5 * 200_000 + 3 * 800_000
        assert (answer.provider, answer.country, answer.operator) == (seller.peer_id, "LT", "Operator seller")
        await seller.until(lambda: seller.settled)
        assert s.ledger.counts()[Receipt.payload_type] == 1
        assert s.ledger.offer(answer.offer.id) is not None


async def test_the_order_is_durable_before_it_leaves() -> None:
    seller = TestSeller()
    async with shop(seller) as s:
        async with await s.purchaser.buy(CHAT, BODY, whole=True):
            pass
        s.ledger.hold()
        buying = asyncio.create_task(s.purchaser.buy(CHAT, BODY))
        before = seller.seen[Kind.ORDER]
        await asyncio.sleep(0.05)  # nothing may come in this time
        assert seller.seen[Kind.ORDER] == before
        s.ledger.release()
        (await buying).cancel()


async def test_long_answers_are_vouched_for() -> None:
    seller = TestSeller()
    seller.events = chat_events(100)
    async with shop(seller) as s, await s.purchaser.buy(CHAT, BODY | {"max_tokens": 200}, whole=True) as answer:
        merged = await answer.assemble()
        assert merged["choices"][0]["message"]["content"].split()[-1] == "w99"
        await s.settled(1)
        counts = s.ledger.counts()
        assert counts[Meter.payload_type] == counts[Voucher.payload_type] >= 100 // 16


async def test_a_large_body_goes_in_pieces() -> None:
    seller = TestSeller(context_tokens=1_000_000)
    body = BODY | {"messages": [{"role": "user", "content": "x" * 1_500_000}]}
    async with shop(seller) as s, await s.purchaser.buy(CHAT, body, whole=True):
        assert len(seller.bodies[0]) > 1_500_000


async def test_the_cheapest_is_asked_first_and_the_next_when_it_refuses() -> None:
    cheap, dear = TestSeller("cheap"), TestSeller("dear", **DEARER)
    async with shop(dear, cheap) as s:
        async with await s.purchaser.buy(CHAT, BODY, whole=True) as answer:
            assert answer.provider == cheap.peer_id
        await s.settled(1)
        cheap.refusal = Refusal(code="busy", message="full", retry_after_ms=1000)
        async with await s.purchaser.buy(CHAT, BODY, whole=True) as answer:
            assert answer.provider == dear.peer_id
        channel = next(c.message.channel for c in s.ledger.channels() if c.message.provider == cheap.key.public_key.raw)
        assert s.ledger.open_orders(channel) == []


async def test_what_every_provider_would_refuse_is_asked_once() -> None:
    cheap, dear = TestSeller("cheap"), TestSeller("dear", **DEARER)
    cheap.refusal = Refusal(code="bad-request", message="no")
    async with shop(cheap, dear) as s:
        with pytest.raises(Refused, match="no") as caught:
            await s.purchaser.buy(CHAT, BODY)
        assert caught.value.code == "bad-request" and not dear.bodies


async def test_a_link_lost_before_the_first_byte_leads_to_the_next_provider() -> None:
    cheap, dear = TestSeller("cheap"), TestSeller("dear", **DEARER)
    cheap.cut_after = 0
    async with shop(cheap, dear) as s, await s.purchaser.buy(CHAT, BODY) as answer:
        assert answer.provider == dear.peer_id
        assert len([data async for data in answer]) >= 1
        cheap.cut_after = None
        await s.settled(2)  # the dearer one's, and the interrupted one of the cheaper, after it was resumed
    assert {r.message.status for r in cheap.settled} == {Status.INTERRUPTED}
    assert cheap.settled[0].message.amount_pico == 0


async def test_a_whole_answer_that_breaks_off_is_bought_elsewhere() -> None:
    cheap, dear = TestSeller("cheap"), TestSeller("dear", **DEARER)
    cheap.events, cheap.cut_after = chat_events(60), 50
    async with shop(cheap, dear) as s, await s.purchaser.buy(CHAT, BODY, whole=True) as answer:
        assert answer.provider == dear.peer_id
        await s.settled(2)
    assert cheap.settled[0].message.status is Status.INTERRUPTED
    assert 0 < cheap.settled[0].message.usage.output_tokens <= 50


async def test_an_answer_that_breaks_off_is_never_silent() -> None:
    seller = TestSeller()
    seller.hold_after = 2
    async with shop(seller) as s, await s.purchaser.buy(CHAT, BODY) as answer:
        seller.drop_links()
        with pytest.raises(Unreachable, match="lost"):
            _ = [data async for data in answer]


async def test_a_receipt_kept_back_comes_when_the_link_is_new() -> None:
    seller = TestSeller()
    seller.keep_receipts = True
    async with shop(seller) as s, await s.purchaser.buy(CHAT, BODY, whole=True):
        await seller.until(lambda: seller.orders[0].receipt)
        seller.keep_receipts = False
        seller.drop_links()
        await s.settled(1)
        async with await s.purchaser.buy(CHAT, BODY, whole=True) as second:
            assert second.order_number == 2
        assert len({row.receipt.channel for row in s.ledger.receipts()}) == 1


async def test_a_gateway_that_crashed_goes_on_where_it_was() -> None:
    seller = TestSeller()
    seller.events, seller.hold_after = chat_events(60), 50
    await seller.start()
    network = FakeNetwork(seller)
    async with shop(network=network) as s:
        await s.purchaser.buy(CHAT, BODY)
        await seller.until(lambda: seller.seen[Kind.VOUCHER] == 6)
        ledger = s.ledger.crashed()
        seller.drop_links()
    await seller.until(lambda: seller.orders[0].state is SellerState.SUSPENDED)
    seller.hold_after = None
    try:
        async with shop(network=network, ledger=ledger) as s:
            assert ledger.open_orders(ledger.channels()[0].message.channel)
            await s.settled(1)
            async with await s.purchaser.buy(CHAT, BODY, whole=True) as second:
                assert second.order_number == 2
                await s.settled(2)
    finally:
        await seller.stop()


async def test_an_order_that_never_arrived_is_closed() -> None:
    seller = TestSeller()
    seller.refusal = Refusal(code="busy", message="full")
    seller.tamper = lambda kind, payload: None if kind == Kind.REFUSAL else payload
    async with shop(seller) as s:
        buying = asyncio.create_task(s.purchaser.buy(CHAT, BODY))
        await seller.until(lambda: seller.bodies)
        seller.refusal = seller.tamper = None
        channel = s.ledger.channels()[0].message.channel
        assert len(s.ledger.open_orders(channel)) == 1
        seller.drop_links()
        async with await buying as answer:
            assert answer.order_number == 2
        assert [one.order.message.order_number for one in s.ledger.open_orders(channel)] in ([], [2])


async def test_cancelling_stops_the_engine_and_pays_for_what_came() -> None:
    seller = TestSeller()
    seller.events, seller.hold_after = chat_events(30), 5
    async with shop(seller) as s:
        async with await s.purchaser.buy(CHAT, BODY) as answer:
            await anext(answer)
        await seller.until(lambda: seller.aborted)
        await s.settled(1)
        receipt = s.ledger.receipts()[0].receipt
        assert receipt.status is Status.CANCELLED and receipt.usage.output_tokens <= 4


async def test_a_wrong_tick_is_not_signed_and_ends_the_dealings() -> None:
    cheap, dear = TestSeller("cheap"), TestSeller("dear", **DEARER)
    cheap.events = chat_events(40)

    def inflate(kind: int, payload: bytes) -> bytes:
        if kind != Kind.METER:
            return payload
        meter = parse_message(parse_record(payload), Meter)
        more = msgspec.structs.replace(meter.usage, output_tokens=meter.usage.output_tokens + 1)
        amount = meter.amount_pico + 800_000
        wrong = msgspec.structs.replace(meter, usage=more, amount_pico=amount)
        return sign_message(wrong, Role.PROVIDER, cheap.key).record.to_bytes()

    async with shop(cheap, dear) as s:
        # Honest sales cover what is left unsigned by the next: the provider is bought from again below.
        for _ in range(8):
            async with await s.purchaser.buy(CHAT, BODY | {"max_tokens": 200}, whole=True) as answer:
                assert answer.provider == cheap.peer_id
        honest = s.ledger.counts()[Voucher.payload_type]
        cheap.tamper = inflate
        async with await s.purchaser.buy(CHAT, BODY) as answer:
            assert answer.provider == cheap.peer_id
            with pytest.raises(ProtocolViolation, match="were counted here"):
                _ = [data async for data in answer]
        assert cheap.seen[Kind.VOUCHER] == honest
        counts = s.ledger.counts()
        assert counts["evidence"] == 1 and counts[Voucher.payload_type] == honest
        async with await s.purchaser.buy(CHAT, BODY, whole=True) as answer:
            assert answer.provider == dear.peer_id
        with pytest.raises(Refused, match="counted here"):
            await s.purchaser.buy(CHAT, BODY, Wishes(provider=cheap.peer_id))
    # The next run remembers, until a person allows the provider again.
    cheap.tamper = None
    async with shop(cheap, dear, quarantine=s.purchaser.quarantine) as again:
        async with await again.purchaser.buy(CHAT, BODY, whole=True) as answer:
            assert answer.provider == dear.peer_id
        held = await again.purchaser.sessions.allow(cheap.peer_id)
        assert held is not None and held.reason.startswith("wrong-count")
        async with await again.purchaser.buy(CHAT, BODY, whole=True) as answer:
            assert answer.provider == cheap.peer_id
        assert await again.purchaser.sessions.allow(cheap.peer_id) is None


async def test_a_receipt_that_breaks_the_chain_is_evidence_and_ends_the_dealings() -> None:
    seller = TestSeller()
    seller.keep_receipts = True

    def elsewhere(kind: int, payload: bytes) -> bytes:
        if kind != Kind.RECEIPT:
            return payload
        receipt = parse_message(parse_record(payload), Receipt)
        wrong = msgspec.structs.replace(receipt, channel_total_pico=10**7)
        return sign_message(wrong, Role.PROVIDER, seller.key).record.to_bytes()

    seller.tamper = elsewhere
    async with shop(seller) as s, await s.purchaser.buy(CHAT, BODY, whole=True):
        await seller.until(lambda: seller.orders[0].receipt)
        seller.drop_links()
        await until(lambda: s.ledger.counts()["evidence"])
        assert not s.ledger.receipts() and not seller.settled
        with pytest.raises(RemoteError):
            await s.purchaser.buy(CHAT, BODY)


DEAR = Tariff(input_upm=900_000, cached_input_upm=900_000, output_upm=900_000)


@pytest.mark.parametrize("is_resumed", [False, True], ids=["at once", "on resuming"])
async def test_a_receipt_that_bills_too_much_is_disputed_and_the_chain_goes_on(is_resumed: bool) -> None:
    seller = TestSeller(max_open_orders=4)
    async with shop(seller) as s:
        seller.events = chat_events(60)
        async with await s.purchaser.buy(CHAT, BODY, whole=True):
            await s.settled(1)
        seller.events, seller.charges, seller.keep_receipts = chat_events(3), DEAR, is_resumed
        async with await s.purchaser.buy(CHAT, BODY, whole=True) as answer:
            assert "w2" in str(await answer.assemble())
            if is_resumed:
                await seller.until(lambda: seller.orders[1].receipt)
                seller.keep_receipts = False
                seller.drop_links()
        await seller.until(lambda: seller.disputed)
        seller.charges = None
        async with await s.purchaser.buy(CHAT, BODY, whole=True) as answer:
            assert answer.provider == seller.peer_id
        await s.settled(2)
        dispute = seller.disputed[0]
        assert dispute.message.reason == "wrong-amount"
        assert dispute.message.owed_pico == 5 * 200_000 + 3 * 800_000
        last, disputed, first = (row.receipt for row in s.ledger.receipts())
        assert [r.receipt_number for r in (first, disputed, last)] == [1, 2, 3]
        assert last.mentions == (dispute.id,)
        assert last.channel_total_pico == first.amount_pico + 8 * 900_000 + last.amount_pico
        channel = s.ledger.channels()[0].message.channel
        assert [r.message.receipt_number for r in s.ledger.proposals(channel)] == [2]
        sides = [
            Bundle("client", list(enumerate(s.ledger.records(), 1)), Role.CLIENT),
            Bundle("provider", list(enumerate(seller.ledger.records(), 1)), Role.PROVIDER),
        ]
        for bundles in ([sides[0]], [sides[1]], sides):
            findings = audit_records(bundles).findings
            found = {(f.code, f.party) for f in findings if CODES[f.code].weight is not Weight.NOTE}
            assert found == {("wrong-amount", Party.PROVIDER)}


async def test_a_client_that_lost_its_ledger_gets_it_back() -> None:
    seller = TestSeller()
    await seller.start()
    network = FakeNetwork(seller)
    try:
        async with shop(network=network) as s:
            for number in range(1, 4):
                async with await s.purchaser.buy(CHAT, BODY, whole=True):
                    await s.settled(number)
            before = list(s.ledger.records())
        async with shop(network=network) as s:
            async with await s.purchaser.buy(CHAT, BODY, whole=True) as answer:
                assert answer.order_number == 4
            await s.settled(4)
            assert {one.id for one in before} <= {one.id for one in s.ledger.records()}
            assert len(s.ledger.channels()) == 1
    finally:
        await seller.stop()


async def test_a_provider_that_lost_its_ledger_s_end_uses_no_number_twice() -> None:
    seller = TestSeller()
    async with shop(seller) as s:
        for number in range(1, 4):
            async with await s.purchaser.buy(CHAT, BODY, whole=True):
                await s.settled(number)
        await seller.until(lambda: len(seller.settled) == 3)
        seller.lose_end_of_ledger(kept=2)
        assert not seller.ledger.receipts()
        (change,), lifted = await s.purchaser.sessions.reconcile(seller.key.public_key)
        assert lifted is None and change.sent + len(change.restored) in (0, 3 * 2 + 1)
        async with await s.purchaser.buy(CHAT, BODY, whole=True) as answer:
            assert answer.order_number == 4
        await s.settled(4)
        sold = [row.receipt for row in seller.ledger.receipts()]
        assert [one.receipt_number for one in sold] == [4, 3, 2, 1]
        assert sold == [row.receipt for row in s.ledger.receipts()]


async def test_who_bills_too_much_again_and_again_is_dealt_with_no_more() -> None:
    seller = TestSeller()
    seller.charges = DEAR
    async with shop(seller, limits=SessionLimits(most_disputed=1)) as s:
        async with await s.purchaser.buy(CHAT, BODY, whole=True):
            pass
        await until(lambda: seller.peer_id in s.purchaser.quarantine)
        with pytest.raises(Refused, match="wrong-amount"):
            await s.purchaser.buy(CHAT, BODY, Wishes(provider=seller.peer_id))


async def test_another_peer_behind_the_address_gets_nothing() -> None:
    seller, other = TestSeller("seller"), TestSeller("other")
    await other.start()
    await seller.start()
    seller.listener, real = other.listener, seller.listener
    async with shop(network=FakeNetwork(seller), limits=SessionLimits(link_timeout_s=0.5)) as s:
        with pytest.raises(RemoteError, match="another peer"):
            await asyncio.wait_for(s.purchaser.buy(CHAT, BODY), 15)
        assert not other.seen
    assert real is not None
    await real.aclose(drain_s=0)
    await other.stop()


async def test_slow_start_is_respected() -> None:
    seller = TestSeller()
    async with shop(seller) as s:
        answers = await asyncio.gather(*(s.purchaser.buy(CHAT, BODY, whole=True) for _ in range(8)))
        assert sorted(answer.order_number for answer in answers) == list(range(1, 9))
        await s.settled(8)
    assert not any(order.receipt is None for order in seller.orders)


async def test_a_slot_that_never_comes_free_is_not_waited_for_forever() -> None:
    seller = TestSeller(max_open_orders=1)
    seller.hold_after = 2
    async with shop(seller, limits=SessionLimits(queue_timeout_s=0.2)) as s:
        first = await s.purchaser.buy(CHAT, BODY)
        with pytest.raises(Refused) as caught:
            await asyncio.wait_for(s.purchaser.buy(CHAT, BODY), 15)
        assert caught.value.code == "busy"
        first.cancel()


@pytest.mark.parametrize("was_stored", [False, True])
async def test_a_failing_ledger_lets_nothing_leave(was_stored: bool) -> None:
    seller = TestSeller()
    async with shop(seller) as s:
        async with await s.purchaser.buy(CHAT, BODY, whole=True):
            await s.settled(1)
        before = seller.seen[Kind.ORDER]
        s.ledger.fail_append(persisted=was_stored)
        with pytest.raises(LedgerError):
            await s.purchaser.buy(CHAT, BODY)
        assert seller.seen[Kind.ORDER] == before
        async with await s.purchaser.buy(CHAT, BODY, whole=True):
            await s.settled(2)


async def test_a_clock_ten_minutes_off_is_named() -> None:
    seller = TestSeller()
    seller.ahead_ms = 600_000
    async with shop(seller) as s:
        with pytest.raises(Refused, match="clock") as caught:
            await s.purchaser.buy(CHAT, BODY)
        assert caught.value.code == "clock-skew"


async def test_a_renewed_offer_is_fetched_over_the_link() -> None:
    seller = TestSeller()
    async with shop(seller) as s:
        async with await s.purchaser.buy(CHAT, BODY, whole=True):
            pass
        fetched = s.network.fetches[seller.peer_id]
        seller.offer = seller.make_offer(sequence=2)
        async with await s.purchaser.buy(CHAT, BODY, whole=True) as answer:
            assert answer.offer.message.sequence == 2
        assert s.network.fetches[seller.peer_id] == fetched and seller.seen[Kind.OFFER_REQUEST] == 1


@pytest.mark.parametrize(
    ("wishes", "code"),
    [
        (Wishes(countries=frozenset({"IT"})), "no-provider"),
        (Wishes(max_cost_pico=1), "over-budget"),
        (Wishes(provider="12D3KooWNobody"), "no-provider"),
    ],
)
async def test_wishes_that_nobody_meets(wishes: Wishes, code: str) -> None:
    seller = TestSeller()
    async with shop(seller) as s:
        with pytest.raises(Refused) as caught:
            await s.purchaser.buy(CHAT, BODY, wishes)
        assert caught.value.code == code and not seller.bodies


async def test_an_unknown_model_is_looked_for_once() -> None:
    seller = TestSeller()
    async with shop(seller) as s:
        for _ in range(2):
            with pytest.raises(Refused, match="On sale: tiny") as caught:
                await s.purchaser.buy(CHAT, BODY | {"model": "other"})
            assert caught.value.code == "unknown-model"
        assert s.network.searches.count("model/other") == 1


async def test_a_named_provider_is_looked_for_though_others_sell_the_model() -> None:
    """It may have moved, and been forgotten."""
    one, other = TestSeller("one"), TestSeller("other")
    async with shop(one, other) as s:
        s.purchaser.book.drop_offer(one.peer_id)
        s.purchaser.book.note_dead(one.peer_id)
        searches = s.network.searches.count(f"model/{MODEL}")
        async with await s.purchaser.buy(CHAT, BODY, Wishes(provider=one.peer_id), whole=True):
            pass
        assert s.network.searches.count(f"model/{MODEL}") == searches + 1
        assert one.bodies and not other.bodies


async def test_an_engine_that_fails_is_not_the_programs_concern() -> None:
    cheap, dear = TestSeller("cheap"), TestSeller("dear", **DEARER)
    cheap.status, cheap.events = 500, [b'{"error": {"message": "broken"}}']
    async with shop(cheap, dear) as s, await s.purchaser.buy(CHAT, BODY) as answer:
        assert answer.provider == dear.peer_id
        await s.settled(1)


async def test_expired_offers_are_not_used() -> None:
    seller = TestSeller()
    seller.offer = seller.make_offer(valid_until_ms=unix_ms() + 60_000)
    ahead_ms = 0
    async with shop(seller, now_ms=lambda: unix_ms() + ahead_ms) as s:
        async with await s.purchaser.buy(CHAT, BODY, whole=True):
            pass
        ahead_ms = 60_001
        with pytest.raises(Refused) as caught:
            await s.purchaser.buy(CHAT, BODY)
        assert caught.value.code == "no-provider"


async def test_closing_settles_what_is_open() -> None:
    seller = TestSeller()
    seller.events, seller.hold_after = chat_events(30), 5
    async with shop(seller) as s:
        await s.purchaser.buy(CHAT, BODY)
    assert [row.receipt.status for row in s.ledger.receipts() if row.countersigned] == [Status.CANCELLED]


async def test_a_complete_answer_is_not_cancelled() -> None:
    seller = TestSeller()
    async with shop(seller) as s:
        async with await s.purchaser.buy(CHAT, BODY, whole=True):
            pass
        await s.settled(1)
        assert not seller.seen[Kind.CANCEL]


async def test_a_ledger_that_stays_broken_is_said_at_once() -> None:
    seller = TestSeller()
    async with shop(seller, limits=SessionLimits(link_timeout_s=1.0)) as s:
        async with await s.purchaser.buy(CHAT, BODY, whole=True):
            await s.settled(1)
        for n in range(100):
            s.ledger.fail_append(n)
        before = seller.seen[Kind.ORDER]
        for _ in range(3):
            with pytest.raises(LedgerError):
                await s.purchaser.buy(CHAT, BODY)
        assert seller.seen[Kind.ORDER] == before


async def test_a_channel_on_other_terms_is_not_signed() -> None:
    seller = TestSeller()

    def wider(kind: int, payload: bytes) -> bytes:
        if kind != Kind.CHANNEL:
            return payload
        channel = parse_message(parse_record(payload), Channel)
        wrong = msgspec.structs.replace(channel, window_tokens=WINDOW * 100)
        return sign_message(wrong, Role.PROVIDER, seller.key).record.to_bytes()

    seller.tamper = wider
    async with shop(seller) as s:
        with pytest.raises(RemoteError, match="terms"):
            await s.purchaser.buy(CHAT, BODY)
        assert not s.ledger.channels() and s.ledger.counts()["evidence"] == 1


async def test_a_provider_that_forgot_the_channel_gets_a_new_one() -> None:
    seller = TestSeller()
    async with shop(seller) as s:
        async with await s.purchaser.buy(CHAT, BODY, whole=True):
            await s.settled(1)
        seller.forgets_channels = True
        seller.drop_links()
        async with await s.purchaser.buy(CHAT, BODY, whole=True) as answer:
            assert answer.order_number == 1
        assert len(s.ledger.channels()) == 2


async def test_an_expired_channel_is_followed_by_another() -> None:
    seller = TestSeller()
    clock = unix_ms
    ahead = 0
    async with shop(seller, now_ms=lambda: clock() + ahead) as s:
        async with await s.purchaser.buy(CHAT, BODY, whole=True):
            await s.settled(1)
        ahead = seller.ahead_ms = 91 * 86_400_000
        seller.offer = seller.make_offer(sequence=2, valid_until_ms=unix_ms() + 2 * ahead)
        await s.purchaser.book.search()
        async with await s.purchaser.buy(CHAT, BODY, whole=True):
            await s.settled(2)
        assert len(s.ledger.channels()) == 2


async def test_an_order_that_was_not_taken_is_closed_at_once() -> None:
    seller = TestSeller()
    async with shop(seller) as s:
        async with await s.purchaser.buy(CHAT, BODY, whole=True):
            await s.settled(1)
        seller.resets_orders = True
        with pytest.raises(RemoteError, match="cut the answer off"):
            await s.purchaser.buy(CHAT, BODY)
        assert s.ledger.open_orders(s.ledger.channels()[0].message.channel) == []
        seller.resets_orders = False
        async with await s.purchaser.buy(CHAT, BODY, whole=True):
            await s.settled(2)
