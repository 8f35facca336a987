"""Cases of statements, invoices and payments; see `audit_cases`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from p2pgrid.proto.dispute import Decision
from p2pgrid.proto.messages import Receipt, Status, Usage
from p2pgrid.proto.record import Role, Signed, sign_message
from p2pgrid.proto.statement import Invoice, InvoiceType, Payment, PaymentKind, Statement
from tests.factories import (
    make_answer,
    make_dispute,
    make_invoice,
    make_payment,
    make_prepayment,
    make_statement,
    vat_line,
)
from tests.proto.audit_cases import BOTH, UNCLEAR, C, P, both, vector
from tests.proto.chains import DAY_MS, START_MS, TARIFF, Dealings, LinesBundle, digest
from tests.proto.trees import tree_hash

CENT = 10**10


def statement(
    grid: Dealings, first: int, last: int, before: Signed[Statement] | None = None, **changes: Any
) -> Signed[Statement]:
    """A right statement over receipts `first` to `last`, signed by both and kept by both."""
    return grid.keep(made(grid, grid.receipts[first - 1 : last], before, **changes))


def made(
    grid: Dealings, receipts: Sequence[Signed[Receipt]], before: Signed[Statement] | None = None, **changes: Any
) -> Signed[Statement]:
    """A right statement, which nobody has yet."""
    begin = {} if before else {"from_ms": grid.channel.message.opened_ms, "channel": grid.channel.message.channel}
    root = changes.pop("root", tree_hash([r.id for r in receipts]))
    return make_statement(receipts, root, before=before, tariff=TARIFF, **{**begin, **changes})


def replaced_statement(grid: Dealings, right: Signed[Statement], **changes: Any) -> Signed[Statement]:
    """The statement with some fields changed and nothing that follows from them, in place of the right one."""
    for book in (grid.provider_has, grid.client_has):
        book.remove(right)
    wrong = sign_message(msgspec.structs.replace(right.message, **changes), Role.PROVIDER, grid.provider)
    return grid.keep(wrong.countersigned(Role.CLIENT, grid.client))


def paid(grid: Dealings, invoice: Signed[Invoice], **changes: Any) -> Signed[Payment]:
    """A payment that both have."""
    return grid.keep(make_payment(invoice, grid.channel.message.channel, **changes))


def paid_ahead(grid: Dealings, **changes: Any) -> Signed[Payment]:
    """A payment for no invoice, of a day after the channel was opened."""
    booked = {"booked_ms": START_MS + DAY_MS, **changes}
    return grid.keep(make_prepayment(grid.channel.message.channel, **booked))


def sold(count: int = 5, **start: Any) -> Dealings:
    """So many receipts of 4.5 cents, the second of them of an order that failed."""
    grid = Dealings(**start)
    for number in range(count):
        order = grid.order(max_output_tokens=100_000, max_amount_pico=10**12)
        usage = Usage(prompt_tokens=100, cached_tokens=30, output_tokens=50_000 + number)
        grid.receipt(order, usage, Status.FAILED if number == 1 else Status.COMPLETED)
    return grid


def settled(rate_bp: int = 0) -> tuple[Dealings, Signed[Statement], Signed[Statement]]:
    """Two statements over five receipts, the first of them invoiced and paid, and counted as paid in the second."""
    grid = sold()
    first = statement(grid, 1, 3, rate_bp=rate_bp)
    payment = paid(grid, grid.keep(make_invoice(first)))
    counted = payment.message.amount_cents
    stated_ms = payment.message.booked_ms + DAY_MS
    return grid, first, statement(grid, 4, 5, first, payments_cents=counted, stated_ms=stated_ms, rate_bp=rate_bp)


@vector("receipt-in-two-statements", P)
def statements_overlap() -> list[LinesBundle]:
    grid = sold()
    statement(grid, 3, 5, statement(grid, 1, 3))
    return both(grid)


@vector("statement-omits-receipt", P)
def receipt_between_statements() -> list[LinesBundle]:
    grid = sold()
    statement(grid, 4, 5, statement(grid, 1, 2))
    return both(grid)


@vector("statement-omits-receipt", P)
def statements_begin_late() -> list[LinesBundle]:
    grid = sold()
    statement(grid, 2, 5)
    return both(grid)


@vector("statement-omits-receipt", P)
def receipt_left_out_of_the_range() -> list[LinesBundle]:
    grid = sold()
    right = made(grid, grid.receipts[:4]).message
    statement(grid, 1, 5, lines=right.lines, total_pico=right.total_pico)
    return both(grid)


@vector("statement-mismatch", P)
def another_root() -> list[LinesBundle]:
    grid = sold()
    statement(grid, 1, 5, root=digest("root"))
    return both(grid)


@vector("statement-mismatch", P)
def another_total() -> list[LinesBundle]:
    grid = sold()
    statement(grid, 1, 5, total_pico=1)
    return both(grid)


@vector("statement-mismatch", P)
def closes_with_more() -> list[LinesBundle]:
    grid = sold()
    statement(grid, 1, 5, closing_cents=100)
    return both(grid)


@vector("statement-mismatch", P)
def another_currency() -> list[LinesBundle]:
    grid = sold()
    statement(grid, 1, 5, currency="CHF")
    return both(grid)


@vector("statement-mismatch", P)
def another_tariff_stated() -> list[LinesBundle]:
    grid = sold()
    (line,) = made(grid, grid.receipts).message.lines
    statement(grid, 1, 5, lines=(msgspec.structs.replace(line, output_upm=5),))
    return both(grid)


@vector("statement-mismatch", P)
def another_statement_before() -> list[LinesBundle]:
    grid = sold()
    statement(grid, 4, 5, statement(grid, 1, 3), previous=digest("another"))
    return both(grid)


@vector("statement-mismatch", P)
def vat_of_a_statement_rounded_down() -> list[LinesBundle]:
    """19 % of 18 cents are 3.42, of 26 they are 4.94."""
    grid = sold(7)
    right = made(grid, grid.receipts, rate_bp=1900).message.vat[0]
    assert (right.net_cents, right.vat_cents) == (27, 5)  # 5.13
    statement(grid, 1, 7, vat=(msgspec.structs.replace(right, vat_cents=6),))
    return both(grid)


@vector("statement-mismatch", P)
def vat_not_of_the_whole_net() -> list[LinesBundle]:
    grid = sold()
    net = made(grid, grid.receipts).message.net_cents
    statement(grid, 1, 5, vat=(vat_line(net - 1, 1900),), gross_cents=net + 3)
    return both(grid)


@vector("statement-mismatch", P)
def gross_without_vat() -> list[LinesBundle]:
    grid = sold()
    net = made(grid, grid.receipts).message.net_cents
    statement(grid, 1, 5, rate_bp=1900, gross_cents=net)
    return both(grid)


@vector("statement-mismatch", P)
def net_a_cent_too_high() -> list[LinesBundle]:
    grid = sold()
    statement(grid, 1, 5, net_cents=made(grid, grid.receipts).message.net_cents + 1)
    return both(grid)


@vector("statement-mismatch", P)
def period_begins_after_the_channel() -> list[LinesBundle]:
    grid = sold()
    statement(grid, 1, 5, from_ms=START_MS + 1)
    return both(grid)


@vector("statement-mismatch", P)
def hour_between_two_periods() -> list[LinesBundle]:
    grid = sold()
    first = statement(grid, 1, 3)
    statement(grid, 4, 5, first, from_ms=first.message.until_ms + 3_600_000)
    return both(grid)


def sold_over_days() -> Dealings:
    """Two receipts, a day apart."""
    grid = Dealings()
    grid.deal()
    grid.now_ms += DAY_MS
    grid.deal()
    return grid


@vector("statement-mismatch", P)
def receipt_of_after_the_period() -> list[LinesBundle]:
    grid = sold_over_days()
    statement(grid, 1, 2, until_ms=grid.receipts[1].message.issued_ms - 120_001)
    return both(grid)


@vector("statement-mismatch", P)
def no_receipts_within_those_of_before() -> list[LinesBundle]:
    grid = sold()
    statement(grid, 4, 3, statement(grid, 1, 5), first_receipt=4, last_receipt=3)
    return both(grid)


@vector("time-backwards", P)
def stated_before_the_one_before() -> list[LinesBundle]:
    grid = sold()
    first = statement(grid, 1, 3)
    statement(grid, 4, 5, first, stated_ms=first.message.stated_ms - 120_001)
    return both(grid)


@vector("wrong-opening-balance", P)
def opens_with_more() -> list[LinesBundle]:
    grid = sold()
    statement(grid, 4, 5, statement(grid, 1, 3), opening_cents=100)
    return both(grid)


@vector("record-missing", BOTH)
def first_statement_not_there() -> list[LinesBundle]:
    grid, first, _ = settled()
    billing = [s.id for s in grid.client_has if isinstance(s.message, Invoice | Payment)]
    return without(grid, first.id, *billing)


def without(grid: Dealings, *ids: bytes) -> list[LinesBundle]:
    """Both bundles without some records."""
    for book in (grid.provider_has, grid.client_has):
        book[:] = [s for s in book if s.id not in ids]
    return both(grid)


@vector("awaiting-countersignature", C)
def statement_waits() -> list[LinesBundle]:
    grid = sold()
    message = made(grid, grid.receipts).message
    grid.keep(sign_message(message, Role.PROVIDER, grid.provider))
    return both(grid)


@vector("receipt-not-stated", P, now_ms=START_MS + 62 * DAY_MS)
def receipts_of_two_months_ago() -> list[LinesBundle]:
    grid = sold()
    paid(grid, grid.keep(make_invoice(statement(grid, 1, 3))))
    return both(grid)


# -- what disputes take off, and hold back -------------------------------------------------------------------------


def contested(
    grid: Dealings,
    number: int = 3,
    *,
    answered_ms: int | None = None,
    decision: Decision = Decision.ACCEPTED,
    by: str = "both",
    **changes: Any,
) -> int:
    """The client disputes all of a receipt of 4.5 cents; returns what that contests."""
    receipt = grid.receipts[number - 1]
    dispute = grid.keep(make_dispute(receipt.countersigned(Role.CLIENT, grid.client), **changes), by=by)
    if answered_ms is not None:
        owed = 0 if decision is Decision.ACCEPTED else receipt.message.amount_pico
        grid.keep(make_answer(dispute, answered_ms=answered_ms, decision=decision, owed_pico=owed))
    return receipt.message.amount_pico


def held_then(
    decision: Decision, *, credits_pico: int | None = None, held_pico: int = 0
) -> tuple[Dealings, Signed[Statement]]:
    """A statement holds back what is disputed; an answer comes, and the next statement goes by it."""
    grid = sold()
    stated_ms = grid.now_ms + DAY_MS
    amount = contested(grid, answered_ms=stated_ms + DAY_MS, decision=decision)
    first = statement(grid, 1, 3, held_pico=amount, stated_ms=stated_ms)
    if credits_pico is None:
        credits_pico = amount if decision is Decision.ACCEPTED else 0
    taken = {"credits_pico": credits_pico, "held_pico": held_pico}
    return grid, statement(grid, 4, 5, first, stated_ms=stated_ms + 2 * DAY_MS, **taken)


@vector("statement-mismatch", P)
def credit_left_out() -> list[LinesBundle]:
    grid = sold()
    contested(grid, answered_ms=grid.now_ms + 2000)
    statement(grid, 1, 5)
    return both(grid)


@vector("statement-mismatch", P, proven=False)
def open_dispute_not_held() -> list[LinesBundle]:
    grid = sold()
    contested(grid)
    statement(grid, 1, 5)
    return both(grid)


@vector("statement-mismatch", P, proven=False)
def more_held_than_is_contested() -> list[LinesBundle]:
    grid = sold()
    statement(grid, 1, 5, held_pico=contested(grid) + 1)
    return both(grid)


@vector("statement-mismatch", P, proven=False)
def rejected_and_still_held() -> list[LinesBundle]:
    grid = sold()
    amount = grid.receipts[2].message.amount_pico
    return both(held_then(Decision.REJECTED, held_pico=amount)[0])


@vector("statement-mismatch", P)
def held_and_then_not_credited() -> list[LinesBundle]:
    return both(held_then(Decision.ACCEPTED, credits_pico=0)[0])


@vector("statement-mismatch", P)
def released_and_not_invoiced() -> list[LinesBundle]:
    """The net of the second statement leaves out what comes back."""
    grid, second = held_then(Decision.REJECTED)
    net = second.message.net_cents - 5
    replaced_statement(
        grid,
        second,
        net_cents=net,
        vat=(vat_line(net),),
        gross_cents=net,
        closing_cents=second.message.closing_cents - 5,
    )
    return both(grid)


# -- invoices and payments ----------------------------------------------------------------------------------------


def invoiced(rate_bp: int = 0, **changes: Any) -> tuple[Dealings, Signed[Invoice]]:
    """A statement over receipts worth nine cents, and its invoice."""
    grid = sold(3)
    return grid, grid.keep(make_invoice(statement(grid, 1, 3, rate_bp=rate_bp), **changes))


@vector("invoice-mismatch", P, proven=False)
def invoice_for_more() -> list[LinesBundle]:
    grid, invoice = invoiced(net_cents=100)
    paid(grid, invoice)
    return both(grid)


@vector("invoice-mismatch", P, proven=False)
def vat_of_an_invoice_at_another_rate() -> list[LinesBundle]:
    grid, invoice = invoiced(2100, vat_cents=1)
    paid(grid, invoice)
    return both(grid)


@vector("invoice-mismatch", P)
def invoice_in_another_currency() -> list[LinesBundle]:
    grid, invoice = invoiced(currency="CHF")
    paid(grid, invoice)
    return both(grid)


@vector("invoice-mismatch", P, proven=False)
def statement_invoiced_twice() -> list[LinesBundle]:
    grid, invoice = invoiced()
    again = sign_message(
        msgspec.structs.replace(invoice.message, invoice_number="2027-0002"), Role.PROVIDER, grid.provider
    )
    for number, each in enumerate((invoice, grid.keep(again))):
        paid(grid, each, reference=f"P2PGRID-{number}")
    return both(grid)


@vector("invoice-mismatch", P)
def one_number_for_two_statements() -> list[LinesBundle]:
    grid = sold()
    first = statement(grid, 1, 3)
    for number, each in enumerate((first, statement(grid, 4, 5, first))):
        paid(grid, grid.keep(make_invoice(each, invoice_number="2027-0001")), reference=f"P2PGRID-{number}")
    return both(grid)


@vector("payment-mismatch", P)
def payment_in_another_currency() -> list[LinesBundle]:
    grid, invoice = invoiced()
    paid(grid, invoice, currency="CHF")
    return both(grid)


@vector("payment-mismatch", P)
def payment_typed_in_twice() -> list[LinesBundle]:
    grid, invoice = invoiced()
    half = invoice.message.gross_cents // 2
    for later_ms in (0, 1000):
        booked_ms = invoice.message.issued_ms + DAY_MS + later_ms
        paid(grid, invoice, amount_cents=half, booked_ms=booked_ms, entry=b"")
    paid(grid, invoice, reference="REST", amount_cents=invoice.message.gross_cents - 2 * half)
    return both(grid)


@vector("payment-mismatch", P)
def entry_of_the_bank_booked_twice() -> list[LinesBundle]:
    """With another reference and amount, a week later."""
    grid, invoice = invoiced()
    first = paid(grid, invoice, amount_cents=5)
    later_ms = first.message.booked_ms + 7 * DAY_MS
    paid(grid, invoice, amount_cents=4, reference="REST", entry=first.message.entry, booked_ms=later_ms)
    return both(grid)


@vector("payment-mismatch", P)
def typed_in_and_then_imported() -> list[LinesBundle]:
    grid, invoice = invoiced()
    for entry, later_ms in ((b"", 0), (digest("entry"), DAY_MS - 1)):
        booked_ms = invoice.message.issued_ms + DAY_MS + later_ms
        paid(grid, invoice, amount_cents=2, booked_ms=booked_ms, entry=entry)
    return both(grid)


@vector("payment-mismatch", P)
def prepayment_booked_twice() -> list[LinesBundle]:
    grid = sold()
    for later_ms in (0, 1000):
        paid_ahead(grid, booked_ms=grid.now_ms + later_ms)
    return both(grid)


@vector("invoice-mismatch", P)
def invoice_of_another_channel_s_statement() -> list[LinesBundle]:
    grid = sold(3)
    stated = statement(grid, 1, 3)
    paid(grid, grid.keep(make_invoice(stated)))
    other = Dealings(nonce="other")
    grid.keep(other.channel)
    grid.keep(make_invoice(stated, channel=other.channel.message.channel, invoice_number="2027-0099"))
    return both(grid)


@vector("payment-mismatch", P)
def payment_of_another_channel_s_statement() -> list[LinesBundle]:
    grid, invoice = invoiced()
    other = Dealings(nonce="other")
    grid.keep(other.channel)
    grid.keep(make_payment(invoice, other.channel.message.channel))
    return both(grid)


@vector("payment-mismatch", UNCLEAR)
def paid_too_much() -> list[LinesBundle]:
    grid, invoice = invoiced()
    paid(grid, invoice, amount_cents=invoice.message.gross_cents + 1)
    return both(grid)


@vector("payment-mismatch", UNCLEAR)
def more_returned_than_came() -> list[LinesBundle]:
    grid, invoice = invoiced()
    came = paid(grid, invoice)
    later_ms = came.message.booked_ms + DAY_MS
    paid(grid, invoice, amount_cents=-came.message.amount_cents - 1, kind=PaymentKind.RETURNED, booked_ms=later_ms)
    return both(grid)


@vector("payment-mismatch", UNCLEAR)
def more_refunded_than_credited() -> list[LinesBundle]:
    grid = sold()
    contested(grid, answered_ms=grid.now_ms + 20 * DAY_MS, disputed_ms=grid.now_ms + 10 * DAY_MS)
    first = statement(grid, 1, 5)
    paid(grid, grid.keep(make_invoice(first)))
    credit = grid.receipts[2].message.amount_pico
    stated_ms = grid.now_ms + 30 * DAY_MS
    empty = grid.keep(made(grid, [], first, credits_pico=credit, stated_ms=stated_ms, payments_cents=18))
    note = grid.keep(make_invoice(empty))
    assert note.message.type_code is InvoiceType.CREDIT_NOTE
    paid(grid, note, amount_cents=note.message.gross_cents - 1)
    return both(grid)


@vector("record-missing", BOTH)
def invoice_of_a_statement_that_is_not_there() -> list[LinesBundle]:
    grid = sold()
    first = statement(grid, 1, 5)
    grid.keep(make_invoice(first))
    return without(grid, first.id)


@vector("record-missing", BOTH)
def paid_invoice_not_there() -> list[LinesBundle]:
    grid, invoice = invoiced()
    paid(grid, invoice)
    return without(grid, invoice.id)


@vector("record-missing", BOTH)
def counted_payment_not_there() -> list[LinesBundle]:
    grid = sold()
    statement(grid, 1, 5, payments_cents=1)
    return both(grid)


@vector("record-missing", BOTH)
def counted_prepayment_not_there() -> list[LinesBundle]:
    grid = sold()
    ahead = paid_ahead(grid, booked_ms=grid.now_ms)
    statement(grid, 1, 5, payments_cents=ahead.message.amount_cents)
    return without(grid, ahead.id)


@vector("statement-mismatch", P, proven=False)
def payment_never_counted() -> list[LinesBundle]:
    grid = sold(6)
    first = statement(grid, 1, 3)
    payment = paid(grid, grid.keep(make_invoice(first)))
    second = statement(grid, 4, 5, first, stated_ms=payment.message.booked_ms + DAY_MS)
    statement(grid, 6, 6, second, stated_ms=payment.message.booked_ms + 9 * DAY_MS)
    return both(grid)


@vector("statement-mismatch", P, proven=False)
def prepayment_never_counted() -> list[LinesBundle]:
    grid = sold()
    paid_ahead(grid, booked_ms=grid.now_ms)
    first = statement(grid, 1, 3)
    statement(grid, 4, 5, first, stated_ms=first.message.stated_ms + DAY_MS)
    return both(grid)


@vector("invoice-open", C)
def half_paid() -> list[LinesBundle]:
    grid, invoice = invoiced()
    paid(grid, invoice, amount_cents=1)
    return both(grid)


@vector("invoice-open", C)
def paid_and_returned() -> list[LinesBundle]:
    grid, invoice = invoiced()
    came = paid(grid, invoice)
    later_ms = came.message.booked_ms + DAY_MS
    paid(grid, invoice, amount_cents=-came.message.amount_cents, kind=PaymentKind.RETURNED, booked_ms=later_ms)
    return both(grid)


@vector("invoice-open", C)
def prepayment_too_small() -> list[LinesBundle]:
    grid, _ = invoiced()
    paid_ahead(grid, amount_cents=8)
    return both(grid)
