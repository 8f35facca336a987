"""What clients are lent: a provider and a client over real links, and settlement records that come in between."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2pgrid.clock import unix_ms
from p2pgrid.config import TermsConfig
from p2pgrid.errors import Refused, UsageError
from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.proto.bundles import Bundle
from p2pgrid.proto.messages import Receipt
from p2pgrid.proto.record import Role, Signed
from p2pgrid.proto.settled import PayingHistory
from p2pgrid.proto.statement import Payment, Statement
from p2pgrid.proto.verdict import audit_records
from p2pgrid.proto.wire.base import Refusal
from p2pgrid.provider.client_credit import CreditPolicy, policy_of
from p2pgrid.settlement.credit.book import CreditBook
from p2pgrid.settlement.database import open_database
from tests.client.seller import CHAT, until
from tests.client.test_with_provider import BODY, buying, signed_receipts
from tests.factories import (
    CLIENT,
    PROVIDER,
    digest,
    make_channel,
    make_claim,
    make_cycle,
    make_invoice,
    make_legs,
    make_payment,
    make_prepayment,
    make_set_off,
    make_verdict,
    secret_key,
    set_off_side,
)
from tests.factories import make_statement as stated_by_both
from tests.proto.trees import tree_hash
from tests.provider.rig import Buyer, provider

CENT = 10**10
DAY_MS = 86_400_000
STRICT = CreditPolicy(base_pico=CENT, most_pico=100 * CENT, growth_percent=50, grace_ms=0)
ONE_ORDER_PICO = 3 * 10**8
"""Enough for one order of these tests, and not for two."""


def statement_of(ledger: MemoryLedger, channel: bytes, cents: int, **changes: Any) -> Signed[Statement]:
    """What was sold on the channel so far, as if it came to so many cents, and due at once."""
    rows = sorted(ledger.receipts(channel=channel), key=lambda row: row.receipt.receipt_number)
    receipts: list[Signed[Receipt]] = []
    for row in rows:
        receipt = ledger.receipt(channel, row.receipt.receipt_number)
        assert receipt is not None
        receipts.append(receipt)
    opened_ms = next(c.message.opened_ms for c in ledger.channels() if c.message.channel == channel)
    now_ms = max(unix_ms(), opened_ms + 1)
    fields = {"from_ms": opened_ms, "until_ms": now_ms, "stated_ms": now_ms, "due_ms": now_ms}
    net = {"net_cents": cents, "gross_cents": cents}
    return stated_by_both(receipts, tree_hash([r.id for r in receipts]), **{**fields, **net, **changes})


def ahead(channel: bytes, cents: int) -> Signed[Payment]:
    """Money for no invoice, booked now."""
    return make_prepayment(channel, amount_cents=cents, booked_ms=unix_ms(), entry=digest(f"{channel!r} {cents}"))


async def test_the_limit_is_reached_a_payment_is_booked_and_it_goes_on() -> None:
    sold, bought = MemoryLedger(), MemoryLedger()
    limit = dataclasses.replace(STRICT, base_pico=ONE_ORDER_PICO)
    async with provider(sold, policy=limit) as rig, buying(rig, bought) as (purchaser, _):
        async with await purchaser.buy(CHAT, BODY, whole=True):
            await until(lambda: len(signed_receipts(sold)) == 1)
        with pytest.raises(Refused) as refused:
            for _ in range(30):
                await purchaser.buy(CHAT, BODY, whole=True)
        assert refused.value.code == "credit-exhausted"
        assert bought.channels()[0].message.credit_limit_pico == ONE_ORDER_PICO
        payment = ahead(bought.channels()[0].message.channel, 1)
        await sold.append(payment)
        with pytest.raises(Refused):  # the client does not know yet
            await purchaser.buy(CHAT, BODY, whole=True)
        await bought.append(payment)
        while sum(receipt.amount_pico for receipt in signed_receipts(sold)) <= ONE_ORDER_PICO:
            async with await purchaser.buy(CHAT, BODY, whole=True):
                pass
        await until(lambda: signed_receipts(bought) == signed_receipts(sold))
    sides = ((bought, Role.CLIENT), (sold, Role.PROVIDER))
    verdict = audit_records(Bundle(side, enumerate(ledger.records(), 1), side) for ledger, side in sides)
    assert verdict.clean, verdict.findings


async def test_a_client_that_does_not_count_is_refused_by_the_provider() -> None:
    async with provider(policy=dataclasses.replace(STRICT, base_pico=ONE_ORDER_PICO)) as rig:
        buyer = await Buyer.connect(rig)
        await buyer.order(max_tokens=20).send().to_end()
        buyer.books.credit.freed_pico = CENT
        refusal = await buyer.order().send().refused()
        assert refusal.code == "credit-exhausted"
        await rig.shop.ledger.append(ahead(buyer.channel.message.channel, 1))
        assert (await buyer.order().send().to_end()).receipt_number == 2


async def test_an_overdue_invoice_stops_all_credit_until_it_is_paid() -> None:
    sold = MemoryLedger()
    async with provider(sold, policy=STRICT) as rig:
        buyer = await Buyer.connect(rig)
        channel = buyer.channel.message.channel
        await buyer.order(max_tokens=20).send().to_end()
        statement = statement_of(sold, channel, 1240)
        invoice = make_invoice(statement)
        await sold.append(statement, invoice)
        buyer.books.note_settled(statement)
        refusal = await buyer.order().send().refused()
        assert refusal.code == "payment-overdue"
        assert f"invoice {invoice.message.invoice_number} 12.40 EUR are open" in refusal.message

        # A new channel is no way around it; what is paid ahead there is served.
        second = await Buyer.connect(rig)
        assert (await second.order().send().refused()).code == "payment-overdue"
        await sold.append(ahead(second.channel.message.channel, 1))
        assert (await second.order().send().to_end()).receipt_number == 1

        part = make_payment(invoice, channel, amount_cents=1239, booked_ms=unix_ms())
        await sold.append(part)
        assert "0.01 EUR are open" in (await buyer.order().send().refused()).message
        await sold.append(make_payment(invoice, channel, amount_cents=1, booked_ms=unix_ms(), reference="REST"))
        assert (await buyer.order().send().to_end()).receipt_number == 2


async def test_an_operator_may_lend_all_the_same() -> None:
    sold = MemoryLedger()
    async with provider(sold, policy=dataclasses.replace(STRICT, lends_when_overdue=True)) as rig:
        buyer = await Buyer.connect(rig)
        await buyer.order(max_tokens=20).send().to_end()
        statement = statement_of(sold, buyer.channel.message.channel, 1240)
        await sold.append(statement, make_invoice(statement))
        assert (await buyer.order().send().to_end()).receipt_number == 2


async def test_what_is_overdue_is_so_after_a_restart() -> None:
    sold = MemoryLedger()
    async with provider(sold, policy=STRICT) as rig:
        buyer = await Buyer.connect(rig)
        await buyer.order(max_tokens=20).send().to_end()
        statement = statement_of(sold, buyer.channel.message.channel, 1240)
        await sold.append(statement)
        assert (await buyer.order().send().to_end()).receipt_number == 2  # it is not invoiced yet
        await sold.append(make_invoice(statement))
    async with provider(sold, policy=STRICT) as rig:
        await buyer.reconnect(rig)
        await buyer.resume()
        assert (await buyer.order().send().refused()).code == "payment-overdue"


async def test_who_pays_in_time_is_lent_more_on_the_next_channel() -> None:
    sold = MemoryLedger()
    async with provider(sold, policy=dataclasses.replace(STRICT, grace_ms=DAY_MS)) as rig:
        buyer = await Buyer.connect(rig)
        channel = buyer.channel.message.channel
        assert buyer.channel.message.credit_limit_pico == CENT
        await buyer.order(max_tokens=20).send().to_end()
        statement = statement_of(sold, channel, 40)
        await sold.append(statement)
        await sold.append(make_payment(make_invoice(statement), channel, booked_ms=unix_ms()))
        assert (await buyer.open_channel()).message.credit_limit_pico == 21 * CENT


@pytest.mark.parametrize(
    ("history", "limit"),
    [
        (PayingHistory(), CENT),
        (PayingHistory(on_time_cents=2), 2 * CENT),
        (PayingHistory(on_time_cents=3), CENT * 5 // 2),
        (PayingHistory(on_time_cents=10_000), 100 * CENT),
        (PayingHistory(late_cents=10_000), CENT),
        (PayingHistory(on_time_cents=10_000, overdue_cents=1), CENT),
    ],
)
def test_the_limit_by_history(history: PayingHistory, limit: int) -> None:
    assert STRICT.limit_pico(history) == limit


def test_the_policy_of_the_configuration() -> None:
    found = policy_of(TermsConfig(credit_limit_eur="300", max_credit_limit_eur="250"))
    assert (found.base_pico, found.limit_pico(PayingHistory(on_time_cents=10**9))) == (300 * 10**12, 300 * 10**12)
    assert found.grace_ms == 7 * DAY_MS and not found.lends_when_overdue
    with pytest.raises(UsageError):
        policy_of(TermsConfig(max_credit_limit_eur="much"))


async def test_who_is_shown_to_owe_another_opens_no_channel(tmp_path: Path) -> None:
    debt = MemoryLedger()
    async with provider(debt) as rig:  # another provider would have another key: to the book it is all the same
        buyer = await Buyer.connect(rig)
        await buyer.order(max_tokens=20).send().to_end()
    channel = buyer.channel.message.channel
    day_ms = unix_ms() - 90 * DAY_MS
    times = {"from_ms": day_ms - 1, "until_ms": day_ms, "stated_ms": day_ms, "due_ms": day_ms}
    net = msgspec.structs.asdict(statement_of(debt, channel, 1240).message.vat[0]) | {"net_cents": 1240}
    vat = (type(statement_of(debt, channel, 1240).message.vat[0])(**net),)
    statement = statement_of(debt, channel, 1240, vat=vat, **times)
    invoice = make_invoice(statement)
    claim = make_claim(statement, as_of_ms=day_ms + 30 * DAY_MS)
    book = CreditBook(open_database(tmp_path / "settlement.db"))
    taken = book.take([one.record for one in (claim, buyer.channel, statement, invoice)], unix_ms())
    assert [one.state for one in taken.claims] == ["stands"]
    async with provider(policy=STRICT, standing=book) as rig:
        with pytest.raises(AssertionError) as refused:
            await Buyer.connect(rig)
        (refusal,) = refused.value.args
        assert isinstance(refusal, Refusal) and refusal.code == "client-in-default"
        assert PROVIDER.public_key.peer_id in refusal.message and "1240 cents" in refusal.message
        book.allow(CLIENT.public_key.raw, unix_ms())
        await Buyer.connect(rig)
        book.allow(CLIENT.public_key.raw, unix_ms(), allowed=False)
        with pytest.raises(AssertionError, match="client-in-default"):
            await Buyer.connect(rig)
        payment = make_payment(invoice, channel, booked_ms=unix_ms())
        book.take([buyer.channel.record, payment.record], unix_ms())
        await Buyer.connect(rig)


async def test_what_is_set_off_or_goes_round_a_cycle_frees_credit_as_soon_as_it_is_in_force() -> None:
    sold = MemoryLedger()
    third = secret_key("third")
    async with provider(sold, policy=dataclasses.replace(STRICT, base_pico=ONE_ORDER_PICO)) as rig:
        buyer = await Buyer.connect(rig)
        await buyer.order(max_tokens=20).send().to_end()
        statement = statement_of(sold, buyer.channel.message.channel, 40)
        invoice = make_invoice(statement)
        await sold.append(statement, invoice)
        buyer.books.credit.freed_pico = CENT
        assert (await buyer.order().send().refused()).code == "payment-overdue"
        back = make_channel(CLIENT, PROVIDER, name="back")
        sides = set_off_side(buyer.channel, (invoice, 30)), set_off_side(back, (invoice, 30))
        half = make_set_off(*sides, [PROVIDER])
        await sold.append(half)
        assert "0.40 EUR are open" in (await buyer.order().send().refused()).message
        (missing,) = {Role.PROVIDER, Role.CLIENT} - half.signers.keys()
        await sold.append(half.countersigned(missing, CLIENT))
        assert "0.10 EUR are open" in (await buyer.order().send().refused()).message
        others = make_channel(third, PROVIDER, name="second"), make_channel(CLIENT, third, name="third")
        cycle = make_cycle([buyer.channel, *others], PROVIDER, amount_cents=10)
        await sold.append(cycle, *make_legs(cycle, [PROVIDER, CLIENT, third]))
        assert "0.10 EUR are open" in (await buyer.order().send().refused()).message
        await sold.append(make_verdict(cycle))
        assert (await buyer.order().send().to_end()).receipt_number == 2


async def test_a_cycle_that_is_settled_after_a_restart_frees_credit() -> None:
    sold = MemoryLedger()
    third = secret_key("third")
    policy = dataclasses.replace(STRICT, base_pico=ONE_ORDER_PICO)
    async with provider(sold, policy=policy) as rig:
        buyer = await Buyer.connect(rig)
        await buyer.order(max_tokens=20).send().to_end()
        statement = statement_of(sold, buyer.channel.message.channel, 40)
        others = make_channel(third, PROVIDER, name="second"), make_channel(CLIENT, third, name="third")
        cycle = make_cycle([buyer.channel, *others], PROVIDER, amount_cents=40)
        await sold.append(statement, make_invoice(statement))
        await sold.append(cycle, *make_legs(cycle, [PROVIDER, CLIENT, third]))
    async with provider(sold, policy=policy) as rig:
        (channel,) = rig.shop.channels
        assert channel.books.arrears is not None
        await sold.append(make_verdict(cycle))
        assert channel.books.arrears is None
        assert channel.books.credit.unpaid_cents == 0
