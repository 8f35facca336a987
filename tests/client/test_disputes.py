"""Disputes between a purchaser and a provider: both ledgers come to hold the same, over real links."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from typing import Any

import pytest

from p2pgrid.client.desk import ClientDesk
from p2pgrid.client.exchanges import exchange
from p2pgrid.client.purchaser import Purchaser
from p2pgrid.clock import unix_ms
from p2pgrid.desk.asks import Reconcile
from p2pgrid.errors import LedgerError, Refused
from p2pgrid.ledger.base import Ledger
from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.net.direct import dial
from p2pgrid.proto.bundles import Bundle
from p2pgrid.proto.commitment import request_commitment
from p2pgrid.proto.dispute import Answer, Decision, Dispute
from p2pgrid.proto.dispute_exchange import page_of
from p2pgrid.proto.disputing import sign_answer, sign_dispute
from p2pgrid.proto.record import Role, Signed, sign_message
from p2pgrid.proto.verdict import audit_records
from p2pgrid.proto.wire.base import MAX_COMPARED
from p2pgrid.proto.wire.kinds import Kind
from tests.client.seller import CHAT, until
from tests.client.test_with_provider import BODY, buying, signed_receipts
from tests.factories import CLIENT, PROVIDER, secret_key
from tests.provider.rig import Rig, provider


async def buy(purchaser: Purchaser, *ledgers: Ledger, tokens: int = 20) -> None:
    """One answer, its receipt in both ledgers."""
    before = [len(signed_receipts(ledger)) for ledger in ledgers]
    async with await purchaser.buy(CHAT, BODY | {"fake": {"tokens": tokens}}, whole=True) as answer:
        await answer.assemble()
    await until(lambda: [len(signed_receipts(ledger)) for ledger in ledgers] == [n + 1 for n in before])


def dispute_of(ledger: Ledger, number: int, by: Role = Role.CLIENT, **changes: Any) -> Signed[Dispute]:
    (channel,) = ledger.channels()
    receipt = ledger.receipt(channel.message.channel, number)
    assert receipt is not None
    fields: dict[str, Any] = {"reason": "quality", "statement": "Poor.", "owed_pico": 0}
    key = CLIENT if by is Role.CLIENT else PROVIDER
    return sign_dispute(receipt, channel.message, key=key, now_ms=unix_ms(), **(fields | changes))


def answer_to(dispute: Signed[Dispute], ledger: Ledger, decision: Decision = Decision.ACCEPTED) -> Signed[Answer]:
    receipt = ledger.receipt(dispute.message.channel, dispute.message.receipt_number)
    assert receipt is not None
    key = PROVIDER if dispute.message.by is Role.CLIENT else CLIENT
    return sign_answer(
        dispute, receipt.message, decision=decision, statement="", owed_pico=None, key=key, now_ms=unix_ms()
    )


def held(ledger: Ledger) -> list[tuple[bytes, bytes]]:
    return sorted((one.dispute.id, one.answer.id if one.answer else b"") for one in ledger.disputes())


def session(purchaser: Purchaser) -> Any:
    return purchaser.sessions[PROVIDER.public_key.peer_id]


def clean(bought: Ledger, sold: Ledger) -> bool:
    sides = ((bought, Role.CLIENT), (sold, Role.PROVIDER))
    verdict = audit_records(Bundle(side, enumerate(ledger.records(), 1), side) for ledger, side in sides)
    assert verdict.clean, verdict.findings
    return True


@contextlib.asynccontextmanager
async def dealing(receipts: int = 1) -> AsyncIterator[tuple[Rig, Purchaser, MemoryLedger, MemoryLedger]]:
    """Rig, purchaser, the client's ledger and the provider's, with so many receipts in both."""
    sold, bought = MemoryLedger(), MemoryLedger()
    async with provider(sold) as rig, buying(rig, bought) as (purchaser, _):
        for _ in range(receipts):
            await buy(purchaser, bought, sold)
        yield rig, purchaser, bought, sold


async def test_a_dispute_and_its_answer_reach_the_other_side_at_once_and_the_chain() -> None:
    async with dealing() as (rig, purchaser, bought, sold):
        dispute = dispute_of(bought, 1)
        await bought.append(dispute)
        session(purchaser).disputes.said(dispute)
        await until(lambda: held(sold) == [(dispute.id, b"")])
        await until(lambda: rig.tally.disputes == 1)

        answer = answer_to(dispute, sold)
        await sold.append(answer)
        rig.shop.disputes.said(answer)
        await until(lambda: held(bought) == held(sold) == [(dispute.id, answer.id)])

        await buy(purchaser, bought, sold)
        assert set(signed_receipts(sold)[0].mentions) == {dispute.id, answer.id}
        # Mentioned once.
        await buy(purchaser, bought, sold)
        assert signed_receipts(sold)[0].mentions == ()
        assert clean(bought, sold)


async def test_a_providers_dispute_is_answered_by_the_client() -> None:
    async with dealing() as (rig, purchaser, bought, sold):
        dispute = dispute_of(sold, 1, Role.PROVIDER, reason="duplicate", owed_pico=5)
        await sold.append(dispute)
        rig.shop.disputes.said(dispute)
        await until(lambda: held(bought) == [(dispute.id, b"")])
        answer = answer_to(dispute, bought, Decision.REJECTED)
        await bought.append(answer)
        session(purchaser).disputes.said(answer)
        await until(lambda: held(sold) == [(dispute.id, answer.id)])
        await buy(purchaser, bought, sold)
        assert set(signed_receipts(sold)[0].mentions) == {dispute.id, answer.id}
        assert clean(bought, sold)


async def test_what_the_records_refute_is_rejected_at_once() -> None:
    async with dealing() as (_, purchaser, bought, sold):
        dispute = dispute_of(bought, 1, reason="wrong-amount")
        await bought.append(dispute)
        session(purchaser).disputes.said(dispute)
        await until(lambda: bought.disputes() and bought.disputes()[0].answer)
        (row,) = sold.disputes()
        assert row.answer is not None
        assert row.answer.message.decision is Decision.REJECTED
        assert row.answer.message.owed_pico == signed_receipts(sold)[0].amount_pico
        assert clean(bought, sold)


async def test_what_was_said_while_there_was_no_link_is_exchanged_on_the_next() -> None:
    sold, bought = MemoryLedger(), MemoryLedger()
    async with provider(sold) as rig, buying(rig, bought) as (purchaser, _):
        for _ in range(2):
            await buy(purchaser, bought, sold)
    ours, theirs = dispute_of(bought, 1), dispute_of(sold, 2, Role.PROVIDER)
    await bought.append(ours)
    await sold.append(theirs)
    async with provider(sold) as rig, buying(rig, bought, keeps_links=False) as (purchaser, _):
        desk = ClientDesk(purchaser, CLIENT.public_key)
        # They go with the new link, or with the command: whichever is first.
        await desk.perform(Reconcile(peer=PROVIDER.public_key.peer_id))
        assert held(bought) == held(sold) == sorted([(ours.id, b""), (theirs.id, b"")])


async def test_a_ledger_that_was_set_back_gets_its_disputes_again() -> None:
    sold = MemoryLedger()
    async with provider(sold) as rig, buying(rig) as (purchaser, bought):
        await buy(purchaser, bought, sold)
        assert isinstance(bought, MemoryLedger)
        before = bought.crashed()
        dispute = dispute_of(bought, 1)
        await bought.append(dispute)
        session(purchaser).disputes.said(dispute)
        await until(lambda: held(sold))
    async with provider(sold) as rig, buying(rig, before, keeps_links=False) as (purchaser, _):
        await purchaser.sessions.reconcile(PROVIDER.public_key)
        assert held(before) == held(sold) == [(dispute.id, b"")]


async def test_two_disputes_of_one_side_for_one_receipt_are_evidence_and_break_nothing() -> None:
    async with dealing() as (_, purchaser, bought, sold):
        first, second = dispute_of(bought, 1), dispute_of(bought, 1, statement="Another.")
        await bought.append(first)
        await sold.append(second)
        session(purchaser).disputes.said(first)
        await until(lambda: list(sold.evidence()) and list(bought.evidence()))
        assert [record.id for record, _ in sold.evidence()] == [first.id]
        assert [record.id for record, _ in bought.evidence()] == [second.id]
        await buy(purchaser, bought, sold)
        assert signed_receipts(sold)[0].mentions == ()


async def test_many_take_several_exchanges() -> None:
    many = MAX_COMPARED // 8
    async with dealing(many) as (_, purchaser, bought, sold):
        disputes = [dispute_of(bought, number) for number in range(1, many + 1)]
        theirs = [dispute_of(sold, number, Role.PROVIDER) for number in range(1, many + 1, 2)]
        await bought.append(*disputes)
        await sold.append(*theirs)
        session(purchaser).disputes.said(disputes[0])
        n = len(disputes) + len(theirs)
        await until(lambda: all(one.counts()["/p2pgrid/dispute/1"] == n for one in (bought, sold)), 60)
        assert held(bought) == held(sold) == sorted((one.id, b"") for one in (*disputes, *theirs))
        mentioned: list[bytes] = []
        for _ in range(4):
            await buy(purchaser, bought, sold)
            mentioned += signed_receipts(sold)[0].mentions
        assert sorted(mentioned) == sorted(one.id for one in (*disputes, *theirs))
        assert clean(bought, sold)


@pytest.mark.parametrize(
    "changes",
    [{"owed_pico": 10**15}, {"disputed_ms": 1}, {"disputed_ms": unix_ms() + 10**7}, {"receipt": bytes(32)}],
    ids=["owes more than was billed", "before the receipt", "in the future", "of another receipt"],
)
async def test_what_an_audit_would_fault_is_not_taken(changes: dict[str, Any]) -> None:
    async with dealing() as (rig, purchaser, bought, sold):
        sound = dispute_of(bought, 1).message
        fields = {name: getattr(sound, name) for name in sound.__struct_fields__}
        dispute = sign_message(Dispute(**(fields | changes)), Role.CLIENT, CLIENT)
        await bought.append(dispute)
        session(purchaser).disputes.said(dispute)
        await until(lambda: rig.tally.faults == 1)
        assert held(sold) == []


async def test_another_clients_channel_is_not_shown() -> None:
    async with dealing() as (rig, _, bought, _):
        link = await dial(*rig.address, PROVIDER.public_key, secret_key("a stranger"))
        with pytest.raises(Refused) as refused:
            async with exchange(link) as talk:
                talk.send(Kind.DISPUTES, page_of(bought, bought.channels()[0].message.channel, 0).to_bytes())
                await talk.expect(Kind.DISPUTES_COMPARED)
        assert refused.value.code == "unknown-channel"
        await link.aclose()


async def test_both_sides_keep_what_opens_the_commitments() -> None:
    async with dealing() as (_, _, bought, sold):
        (channel,) = bought.channels()
        placed = bought.order(channel.message.channel, 1)
        keys = [ledger.request_key(channel.message.channel, 1) for ledger in (bought, sold)]
        assert placed is not None and keys[0] is not None and keys[0] == keys[1]
        assert request_commitment(secrets.token_bytes(32), b"") != placed.order.message.request_commitment


async def test_news_of_channels_that_nobody_has_is_not_heaped_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with dealing() as (rig, purchaser, bought, _):
        disputes = session(purchaser).disputes
        await until(lambda: rig.shop.disputes._watchers.of(CLIENT.public_key))
        (watcher,) = rig.shop.disputes._watchers.of(CLIENT.public_key)
        (channel,) = bought.channels()
        is_busy, may_go_on = asyncio.Event(), asyncio.Event()

        async def take_long(*_: Any) -> None:
            is_busy.set()
            await may_go_on.wait()

        monkeypatch.setattr(disputes, "_try", take_long)
        watcher.tell(channel.message.channel)
        await is_busy.wait()
        for first in range(0, MAX_COMPARED, 64):  # so few at once that they are taken as they come
            for number in range(first, first + 64):
                watcher.tell(number.to_bytes(32, "big"))
            await until(lambda told=first + 64: len(disputes._wanted) == told)
        watcher.tell(b"\xff" * 32)
        await until(lambda: "more channels than anybody has" in caplog.text)
        assert len(disputes._wanted) == MAX_COMPARED
        may_go_on.set()


async def test_disputes_are_exchanged_again_once_the_ledger_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    async with dealing() as (rig, purchaser, bought, sold):
        channels, failed = bought.channels, list[int]()

        def fail() -> Any:
            failed.append(1)
            raise LedgerError("the disk does not answer.")

        first, second = dispute_of(sold, 1, Role.PROVIDER), dispute_of(bought, 1)
        await sold.append(first)
        monkeypatch.setattr(bought, "channels", fail)
        rig.shop.disputes.said(first)
        await until(lambda: failed)
        monkeypatch.setattr(bought, "channels", channels)
        await bought.append(second)
        session(purchaser).disputes.said(second)
        await until(lambda: held(bought) == held(sold) and len(held(sold)) == 2)


async def test_a_provider_that_was_too_busy_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pgrid.client.wanted.BUSY_PAUSE_S", 0.05)
    async with dealing() as (rig, purchaser, bought, sold):
        check, refused = rig.shop.links.check_settlement, list[int]()

        def refuse_twice(*asked: Any) -> None:
            if len(refused) < 2:
                refused.append(1)
                raise Refused("busy", "your address settles too often.")
            check(*asked)

        monkeypatch.setattr(rig.shop.links, "check_settlement", refuse_twice)
        dispute = dispute_of(bought, 1)
        await bought.append(dispute)
        session(purchaser).disputes.said(dispute)
        await until(lambda: held(sold) == [(dispute.id, b"")])
        assert len(refused) == 2
