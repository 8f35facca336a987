"""The same month with faults in what was paid and set off: see test_faults.py."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
import pytest

from p2pgrid.ledger.base import SlotTaken
from p2pgrid.proto.statement import Payment
from p2pgrid.settlement.payments.decisions import Finding, Kind
from p2pgrid.settlement.payments.refusals import BankFileError
from p2pgrid.settlement.set_off.agree import why_not_sign
from tests.factories import digest, signed_by_names
from tests.month.bank import booked
from tests.month.faults import GROSS, NUMBER, faults, first, ledger_of, notes, said
from tests.month.scene import VILNIUS
from tests.month.settled import LATER_MS, PAID_ON, BankRoom, Deal, Mutual
from tests.proto.chains import DAY_MS
from tests.settlement.payments.bank import Bank, Movement

# -- payments --------------------------------------------------------------------------------------------------------

OPEN, PAID_TWICE = ("invoice-open", "client"), ("payment-mismatch", "provider")
BOOKED = [
    # What the client sends, what the bank room takes each for, what is open then, what is ahead.
    ("in full", (GROSS,), [(Kind.EXACT, ())], 0, 0),
    ("a euro short", (GROSS - 100,), [(Kind.PART, ())], 100, 0),
    ("a euro more", (GROSS + 100,), [(Kind.OVER, ())], 0, 100),
    ("the reference again", (GROSS, GROSS), [(Kind.EXACT, ()), (Kind.OVER, (Finding.REUSED_REFERENCE,))], 0, GROSS),
]


@pytest.mark.parametrize(("what", "sent", "kinds", "still_open", "ahead"), BOOKED, ids=[one[0] for one in BOOKED])
async def test_a_payment_is(
    deal: Deal, what: str, sent: tuple[int, ...], kinds: list[Any], still_open: int, ahead: int
) -> None:
    """The client's doing. The bank room books each cent once, where it belongs; the same file again books nothing."""
    room = BankRoom(deal)
    transfers = [deal.transfer(cents) for cents in sent]
    report = await room.read(*transfers, shape="batch")
    assert [(one.decision.kind, tuple(one.decision.findings)) for one in report.decided] == kinds
    assert not report.refused
    before = room.payments
    again = await room.read(*transfers, shape="batch")
    assert (again.booked, again.known, room.payments) == (0, len(sent), before)
    assert sum(one.amount_cents for one in room.payments) == sum(sent)
    assert ([item.open_cents for item in room.items.items], room.items.ahead_cents) == ([still_open], ahead)
    await deal.pass_on()
    verdict = deal.audit()
    assert faults(verdict) == []
    assert notes(verdict, "invoice-open") == ([(*OPEN, -still_open)] if still_open else [])
    if still_open:
        sentence = next(one.sentence for one in verdict.notes if one.code == "invoice-open")
        assert sentence == f"Of invoice {NUMBER} of statement 1, 5.88 EUR, 1.00 are open."


async def test_a_payment_comes_back(deal: Deal) -> None:
    """The bank returns it the day after (the account is closed): the invoice is open again, and once."""
    room = BankRoom(deal, now_ms=LATER_MS + 2 * DAY_MS)
    sent = deal.transfer()
    await room.read(sent)
    back = Movement(
        cents=-sent.cents,
        day=(PAID_ON + timedelta(days=1)).isoformat(),
        end_to_end_id=sent.end_to_end_id,
        name=sent.payer,
        iban=sent.payer_iban,
        reference="RETURN",
        reason="AC04",
    )
    data = Bank(iban=VILNIUS.iban, statement_id="NEXT").write([back])
    (decided,) = (await room.read_file(data)).decided
    assert decided.decision.kind == Kind.RETURNED
    assert decided.decision.reason.endswith(f"went back (AC04); {NUMBER} is open again by that much.")
    assert (await room.read_file(data)).booked == 0
    assert [one.amount_cents for one in room.payments] == [GROSS, -GROSS]
    await deal.pass_on(room.now_ms)
    verdict = deal.audit(now_ms=room.now_ms)
    assert faults(verdict) == [] and notes(verdict, "invoice-open") == [(*OPEN, -GROSS)]


async def test_a_bank_file_is_cut_in_half(deal: Deal) -> None:
    """Wherever it is cut, it is refused with the line, and nothing of it is booked; whole, it is booked once."""
    room = BankRoom(deal)
    data = booked([deal.transfer(100), deal.transfer(GROSS - 100)], VILNIUS.iban, PAID_ON)
    for cut in (len(data) // 2, data.index(b"</Ntry>") + 7, len(data) - 20):
        with pytest.raises(BankFileError, match=r"bank.xml, line \d+: the file is cut off"):
            await room.read_file(data[:cut])
        assert room.payments == []
    assert (await room.read_file(data)).booked == 2 and sum(one.amount_cents for one in room.payments) == GROSS


async def test_a_movement_of_money_is_booked_twice(deal: Deal) -> None:
    """By the provider, past its own node: so that the client's next payment seems one too many."""
    room = BankRoom(deal)
    await room.read(deal.transfer(200))
    await deal.pass_on()
    (payment,) = deal.provider.settlement(Payment, deal.id)
    again = deal.changed(payment, booked_ms=payment.message.booked_ms + 1000)
    assert [why for _, why in deal.taken(again).conflicting] == [
        "payment-mismatch: a movement of money that is on record was booked again"
    ]
    with pytest.raises(SlotTaken):
        await deal.provider.append(again)
    deal.provider = await ledger_of(*deal.past.provider_has, deal.statement, deal.invoice, again)
    verdict = deal.audit()
    (found,) = [one for one in verdict.findings if one.code == "payment-mismatch"]
    assert (found.party, found.difference_cents, found.convinces) == ("provider", 200, True)
    assert f"over 2.00 EUR was booked twice for invoice {NUMBER}" in found.sentence


async def test_a_reference_is_used_for_money_that_never_came(deal: Deal) -> None:
    """By the provider, or the client paid twice: the records do not tell, and the sum is named."""
    await BankRoom(deal).read(deal.transfer())
    await deal.pass_on()
    (payment,) = deal.provider.settlement(Payment, deal.id)
    more = deal.changed(payment, entry=digest("no such entry"), amount_cents=300)
    (_, why), *_ = deal.taken(more).waiting
    assert f"8.88 EUR are paid of invoice {NUMBER}, which comes to 5.88." in why
    await deal.provider.append(more)
    verdict = deal.audit()
    assert faults(verdict) == [("payment-mismatch", "unclear", 300)] and "8.88 EUR are paid" in first(verdict)


async def test_a_payment_is_not_told(deal: Deal) -> None:
    """By the provider, who got it: an export without what the client was told is found."""
    without = deal.copy()
    await BankRoom(deal).read(deal.transfer())
    await deal.pass_on()
    deal.provider = without.provider
    verdict = deal.audit()
    assert faults(verdict) == [("left-out", "provider", None)]


# -- set-offs --------------------------------------------------------------------------------------------------------


async def test_a_claim_is_set_off_twice(mutual: Mutual) -> None:
    """The second time neither node signs; if both are made to, an audit adds it up."""
    once, twice = mutual.propose("once"), mutual.propose("twice")
    cents = once.message.amount_cents
    assert cents == min(mutual.vilnius.gross_cents, mutual.tartu.gross_cents) == 497
    assert why_not_sign(once, mutual.books(1), mutual.operators[1], now_ms=LATER_MS) == []
    await mutual.put(signed_by_names(once.message, mutual.keys))
    assert faults(mutual.audit()) == []
    number = mutual.vilnius.invoice.message.invoice_number
    reasons = why_not_sign(twice, mutual.books(1), mutual.operators[1], now_ms=LATER_MS)
    assert f"Of invoice {number} 0.00 are open, and 4.97 are to be taken off." in reasons
    both = signed_by_names(twice.message, mutual.keys)
    await mutual.put(both)
    verdict = mutual.audit()
    assert faults(verdict) == [("set-off-mismatch", "unclear", 497), ("set-off-mismatch", "unclear", 481)]
    assert "9.94 EUR are paid or set off for a statement whose invoices come to 4.97 EUR" in first(verdict)


@pytest.mark.parametrize(("times", "cents"), [(1, 0), (2, 497), (0, 0)], ids=["once", "twice", "not"])
async def test_a_statement_counts_a_set_off(mutual: Mutual, times: int, cents: int) -> None:
    """A provider that errs, or one that its client has talked into it."""
    await mutual.put(signed_by_names(mutual.propose("once").message, mutual.keys))
    deal = mutual.vilnius
    made = await deal.draft(LATER_MS + 3_600_000)
    assert made.statement.set_off_cents == 497
    lies = {"set_off_cents": times * 497, "closing_cents": made.statement.opening_cents - times * 497}
    found = (await deal.judge(made, **lies)).differences
    assert said(found, "set_off_cents") == ([] if times == 1 else [("497", str(times * 497))])
    assert (not found) is (times == 1)
    both = deal.signed(msgspec.structs.replace(made.statement, **lies), by="both")
    for ledger in (deal.provider, deal.client):
        await ledger.append(both)
    verdict = mutual.audit(LATER_MS + DAY_MS)
    assert faults(verdict) == ([("statement-mismatch", "provider", cents)] if cents else [])
    if cents:
        assert first(verdict) == "4.97 EUR that statement 2 sets off stand in no set-off in force."
