"""Money followed down from transfers and up from receipts: both ways tell of the same cents, and none is left over."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from math import floor
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.audit.trace import receipt_trace, transfer_trace, whole_trace
from p2pgrid.audit.trace_book import TraceBook
from p2pgrid.audit.trace_names import Ambiguous
from p2pgrid.audit.trace_parts import StatementTrace
from p2pgrid.audit.trace_text import lines_of
from p2pgrid.cli.trace import references_of
from p2pgrid.proto.dispute import Decision
from p2pgrid.proto.invoice_sums import cents_of
from p2pgrid.proto.pricing import owes_nothing
from p2pgrid.proto.record import Role, Signed, sign_message
from p2pgrid.proto.statement import PaymentKind
from p2pgrid.units import format_amount_eur, format_cents
from tests.audit.months import Month, make_month, new_month
from tests.audit.tracing import followed, judged, statement, transfer, whole
from tests.proto import audit_stories_settlement as stories
from tests.proto.all_audit_cases import CASES, AuditCase
from tests.proto.audit_cases import both
from tests.proto.audit_cases_settlement import held_then, invoiced, paid, sold
from tests.proto.audit_cases_settlement import statement as stated
from tests.proto.chains import Dealings, LinesBundle

seeds = st.integers(0, 2**32)
MONEY_KINDS = ("paid", "paid_ahead", "paid_over")


def rounded(amount: Fraction) -> int:
    """Half up by magnitude, to whole cents."""
    cents = floor(abs(amount) + Fraction(1, 2))
    return cents if amount >= 0 else -cents


def gross_by_hand(month: Month, number: int) -> int:
    """The gross of a statement, from the receipts' tokens alone: fractions of cents, and school arithmetic."""
    statement = month.statements[number - 1].message
    held_before = month.statements[number - 2].message.held_pico if number > 1 else 0
    tokens: Counter[tuple[str, str]] = Counter()
    prices: dict[tuple[str, str], int] = {}
    for one in month.stated[statement.first_receipt - 1 : statement.last_receipt]:
        if owes_nothing(one.receipt.status):
            continue
        usage, tariff, model = one.receipt.usage, one.tariff, one.receipt.model
        for part, count, price in (
            ("fresh", usage.prompt_tokens - usage.cached_tokens, tariff.input_upm),
            ("cached", usage.cached_tokens, tariff.cached_input_upm),
            ("out", usage.output_tokens, tariff.output_upm),
        ):
            tokens[model, part] += count
            prices[model, part] = price
    # A price is micro-euros for a million tokens: 10^-12 euros, 10^-10 cents for one.
    net = sum(rounded(Fraction(count * prices[key], 10**10)) for key, count in tokens.items())
    net -= rounded(Fraction(statement.credits_pico, 10**10))
    net += rounded(Fraction(held_before, 10**10)) - rounded(Fraction(statement.held_pico, 10**10))
    return net + rounded(Fraction(net * statement.vat[0].rate_bp, 10_000))


def by_receipts(book: TraceBook) -> dict[int, StatementTrace]:
    """The statements that receipts lead up to, and that they hold them."""
    found: dict[int, StatementTrace] = {}
    (channel,) = book.channels
    for number, held in sorted(channel.book.receipts.items()):
        traced = receipt_trace(book, channel, held).receipt
        assert traced is not None
        if traced.statement is None:
            assert traced.state in ("not_stated", "nothing_owed", "credited", "held")
            assert all(number > one.last_receipt for one in found.values())
            continue
        assert traced.in_statements == (traced.statement.statement_number,)
        assert traced.statement.first_receipt <= number <= traced.statement.last_receipt
        known = found.setdefault(traced.statement.statement_number, traced.statement)
        assert known == traced.statement
    return found


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(1, 30), st.integers(1, 5))
def test_down_from_all_transfers_and_up_from_all_receipts_agree(seed: int, receipts: int, statements: int) -> None:
    month = make_month(seed, receipts=receipts, statements=statements)
    book = judged(month.bundles())
    assert book.verdict.clean, book.verdict.findings
    up = by_receipts(book)
    down: Counter[tuple[int, str]] = Counter()
    for moved in book.transfers:
        traced = transfer_trace(book, moved).transfer
        assert traced is not None
        for share in traced.shares:
            down[share.statement.statement_number, share.kind] += share.cents
            # What stands under the share is what its receipts lead to.
            if share.statement.last_receipt >= share.statement.first_receipt:
                assert up[share.statement.statement_number] == share.statement
        shared = sum(share.cents for share in traced.shares)
        undone = sum(part.cents for part in traced.undone)
        sign = 1 if traced.amount_cents > 0 else -1
        assert traced.amount_cents == shared + sign * undone + traced.unused_cents
        assert not traced.astray_cents
    covered: Counter[tuple[int, str]] = Counter()
    for number, of in up.items():
        assert of.gross_cents == gross_by_hand(month, number)
        for part in of.money:
            if part.kind in MONEY_KINDS:
                covered[number, part.kind] += part.cents
        amount = sum(one.amount_pico for one in of.lines)
        assert of.receipts_pico == of.total_pico == amount
        assert of.components_cents * 10**10 == of.total_pico + of.rounding_pico
        assert abs(of.rounding_pico) * 2 <= 10**10 * sum(len(line.components) for line in of.lines)
    assert +covered == +Counter({key: cents for key, cents in down.items() if key[0] in up})


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(1, 30), st.integers(1, 5))
def test_every_cent_of_a_month_is_accounted_for(seed: int, receipts: int, statements: int) -> None:
    month = make_month(seed, receipts=receipts, statements=statements)
    book = judged(month.bundles())
    table = whole(book)
    assert table.left_over_cents == 0
    (settled,) = book.verdict.settlement
    for row in table.statements:
        made = row.paid_cents + row.paid_ahead_cents + row.set_off_cents + row.credit_cents + row.open_cents
        assert row.gross_cents == made - row.owed_back_cents + row.not_invoiced_cents
    came = sum(payment.message.amount_cents for payment in month.payments)
    assert came == sum(row.amount_cents for row in table.transfers) == settled.payments_cents
    covered = sum(row.covers_cents + row.unused_cents for row in table.transfers)
    assert covered == came
    # What is owed is what is open and not invoiced, less what the provider owes: the same as the balance carried.
    owed = settled.open_cents + settled.not_invoiced_cents - settled.owed_back_cents - settled.paid_ahead_cents
    assert settled.balance_cents == owed
    last = settled.statements[-1]
    assert last.closing_cents == settled.balance_cents + settled.uncounted_cents


# -- what is wrong shows where it is, and by how many cents ------------------------------------------------------------


def fault(seed: int = 3) -> Month:
    """Three statements of 40 receipts each, at 21 % of VAT, the first two paid."""
    month = new_month(Random(seed))
    for _ in range(3):
        month.sell(40)
        statement = month.state(rate_bp=2100)
        invoice = month.invoice(statement)
        if len(month.invoices) < 3:
            month.pay(invoice, invoice.message.gross_cents, reference=references_of(statement.id)[0])
    return month


def without(month: Month, *ids: bytes) -> list[LinesBundle]:
    for book in (month.grid.provider_has, month.grid.client_has):
        book[:] = [signed for signed in book if signed.id not in ids]
    return month.bundles()


def replaced(month: Month, old: Signed[Any], **changes: Any) -> Signed[Any]:
    """Another record in its place, signed by those who signed it."""
    message = msgspec.structs.replace(old.message, **changes)
    new = sign_message(message, Role.PROVIDER, month.grid.provider)
    if Role.CLIENT in old.signers:
        new = new.countersigned(Role.CLIENT, month.grid.client)
    for book in (month.grid.provider_has, month.grid.client_has):
        book[book.index(old)] = new
    return new


def test_a_missing_receipt() -> None:
    month = fault()
    receipt = month.grid.receipts[45]
    lacking = cents_of(receipt.message.amount_pico)
    book = judged(without(month, receipt.id))
    (found,) = book.verdict.findings
    assert (found.code, found.difference_cents) == ("receipt-gap", -lacking)
    assert "receipt 46" in found.sentence and format_amount_eur(receipt.message.amount_pico) in found.sentence
    traced = followed(book, "LT-2026-000002")
    assert traced.invoice is not None
    assert traced.invoice.statement.missing_receipts == ((46, 46),)
    assert traced.touched == (found,)
    assert followed(book, "LT-2026-000001").touched == ()
    assert followed(book, "LT-2026-000001").other_findings == 1
    rows = whole(book).statements
    assert [row.left_over_cents for row in rows] == [0, lacking, 0]
    assert [row.codes for row in rows] == [(), ("receipt-gap",), ()]


def test_a_receipt_that_the_statement_leaves_out() -> None:
    """The second statement begins one receipt late, in lines, sums and all."""
    month = new_month(Random(3))
    month.sell(4)
    month.state()
    month.sell(4)
    left_out = month.stated.pop(4)
    wrong = month.state()
    replaced(month, wrong, first_receipt=6, last_receipt=8)
    book = judged(month.bundles())
    (found,) = book.verdict.findings
    lacking = cents_of(left_out.receipt.amount_pico)
    assert (found.code, found.difference_cents) == ("statement-omits-receipt", -lacking)
    assert found.other_record_ids == (month.statements[0].id.hex(),)
    traced = followed(book, "receipt:5")
    assert traced.receipt is not None and traced.receipt.state == "not_stated"


def test_a_double_invoice() -> None:
    month = fault()
    gross = month.statements[2].message.gross_cents
    again = month.invoice(month.statements[2])
    book = judged(month.bundles())
    (found,) = book.verdict.findings
    net = month.statements[2].message.net_cents
    assert (found.code, found.difference_cents, found.record_id) == ("invoice-mismatch", net, again.id.hex())
    assert set(found.other_record_ids) == {month.statements[2].id.hex(), month.invoices[2].id.hex()}
    for words in ("LT-2026-000003", "LT-2026-000004", "statement 3", format_cents(net), format_cents(2 * net)):
        assert words in found.sentence
    row = whole(book).statements[2]
    assert (row.left_over_cents, row.codes) == (-gross, ("invoice-mismatch",))


def test_wrong_vat_of_an_invoice() -> None:
    month = fault()
    right = month.invoices[2].message
    less = right.vat_cents - right.net_cents * 20 // 100
    vat = right.vat_cents - less
    new = replaced(month, month.invoices[2], vat_cents=vat, gross_cents=right.net_cents + vat)
    book = judged(month.bundles())
    (found,) = book.verdict.findings
    assert (found.code, found.difference_cents, found.record_id) == ("invoice-mismatch", -less, new.id.hex())
    row = whole(book).statements[2]
    assert (row.left_over_cents, row.codes) == (less, ("invoice-mismatch",))
    assert followed(book, "LT-2026-000003").touched == (found,)


def test_wrong_vat_of_a_statement() -> None:
    month = new_month(Random(3))
    month.sell(4)
    right = month.state(rate_bp=2100)
    (line,) = right.message.vat
    gross, closing = right.message.gross_cents, right.message.closing_cents
    wrong = (msgspec.structs.replace(line, vat_cents=line.vat_cents + 3),)
    new = replaced(month, right, vat=wrong, gross_cents=gross + 3, closing_cents=closing + 3)
    book = judged(month.bundles())
    (found,) = book.verdict.findings
    assert (found.code, found.difference_cents, found.record_id) == ("statement-mismatch", 3, new.id.hex())
    assert "21.00 %" in found.sentence
    (row,) = whole(book).statements
    assert (row.left_over_cents, row.codes) == (3, ("statement-mismatch",))


def test_a_short_payment() -> None:
    """Is no fault: it is open, and the note says how much."""
    month = fault()
    gross = month.invoices[2].message.gross_cents
    month.pay(month.invoices[2], gross - 7, reference="SHORT")
    book = judged(month.bundles())
    (note,) = book.verdict.notes
    assert (note.code, note.difference_cents, note.record_id) == ("invoice-open", -7, month.invoices[2].id.hex())
    for words in ("LT-2026-000003", "statement 3", format_cents(gross), "0.07"):
        assert words in note.sentence
    row = whole(book).statements[2]
    assert (row.open_cents, row.left_over_cents) == (7, 0)
    (share,) = transfer(book, "SHORT").shares
    assert (share.cents, share.of_cents, share.invoice_number) == (gross - 7, gross, "LT-2026-000003")
    traced = followed(book, "receipt:120").receipt
    assert traced is not None and traced.state == "part_paid"
    assert "0.07 are open" in traced.sentence


def test_a_reference_used_again() -> None:
    """The client pays its third invoice under the reference of the first; the money is kept as paid ahead."""
    month = fault()
    reference = references_of(month.statements[0].id)[0]
    used = month.pay(None, 500, reference=reference)
    book = judged(month.bundles())
    assert book.verdict.clean
    with pytest.raises(Ambiguous) as caught:
        followed(book, reference)
    assert {one.kind for one in caught.value.candidates} == {"transfer"}
    assert len(caught.value.candidates) == 2
    traced = transfer(book, f"payment:{used.id.hex()[:12]}")
    assert "LT-2026-000001" in traced.reference_of
    assert traced.same_reference == (month.payments[0].id.hex(),)
    row = whole(book).transfers[-1]
    assert (row.reference_of, row.same_reference) == (traced.reference_of, traced.same_reference)
    assert transfer(book, f"payment:{month.payments[0].id.hex()}").reference_of == ""


def test_a_payment_booked_twice_under_one_reference() -> None:
    month = fault()
    gross = month.invoices[2].message.gross_cents
    month.pay(month.invoices[2], gross, reference="TWICE", entry=b"")
    again = month.pay(month.invoices[2], gross, reference="TWICE")
    book = judged(month.bundles())
    (found,) = book.verdict.findings
    assert (found.code, found.record_id) == ("payment-mismatch", again.id.hex())
    assert found.difference_cents == gross
    assert found.other_record_ids == (month.payments[2].id.hex(),)
    assert format_cents(gross) in found.sentence and "LT-2026-000003" in found.sentence
    traced = followed(book, f"payment:{again.id.hex()}")
    assert traced.touched == (found,)


def returned_only() -> list[LinesBundle]:
    grid, invoice = invoiced()
    came = paid(grid, invoice)
    later_ms, cents = came.message.booked_ms + 1000, came.message.amount_cents
    paid(grid, invoice, amount_cents=-cents, kind=PaymentKind.RETURNED, booked_ms=later_ms)
    return both(grid)


def stated_only() -> list[LinesBundle]:
    grid = sold()
    stated(grid, 1, 5)
    return both(grid)


SETTLEMENT = [case for case in CASES if case.build.__module__.endswith(("settlement", "set_off"))]


@pytest.mark.parametrize("case", SETTLEMENT, ids=lambda case: f"{case.code}-{case.name}")
def test_what_is_left_over_has_a_finding(case: AuditCase) -> None:
    """And every record about settlement can be followed, whatever is wrong with it."""
    book = judged(case.build(), **case.options)
    table = whole(book)
    codes = {finding.code for finding in book.verdict.findings}
    for row in table.statements:
        assert set(row.codes) <= codes
        assert not row.left_over_cents or row.codes, row
    for transfer_row in table.transfers:
        assert transfer_row.left_over_cents == 0
        assert not transfer_row.astray_cents or codes & {"payment-mismatch", "record-missing"}
    for one in book.transfers:
        assert list(lines_of(transfer_trace(book, one)))
    for channel in book.channels:
        for held in channel.book.receipts.values():
            assert list(lines_of(receipt_trace(book, channel, held)))
    assert list(lines_of(whole_trace(book)))


def open_by_notes(book: TraceBook) -> int:
    return -sum(note.difference_cents or 0 for note in book.verdict.notes if note.code == "invoice-open")


@pytest.mark.parametrize("case", SETTLEMENT, ids=lambda case: f"{case.code}-{case.name}")
def test_what_is_open_is_what_the_audit_notes(case: AuditCase) -> None:
    book = judged(case.build(), **case.options)
    assert sum(one.open_cents for one in book.verdict.settlement) == open_by_notes(book)


SUMS = {"wrong-opening-balance", "invoice-mismatch", "payment-mismatch"}
"""Codes whose findings are always about a sum, and about two records at least."""


@pytest.mark.parametrize("case", [c for c in SETTLEMENT if c.code in SUMS], ids=lambda c: f"{c.code}-{c.name}")
def test_a_finding_about_money_names_both_records_and_the_euros(case: AuditCase) -> None:
    book = judged(case.build(), **case.options)
    (found,) = (one for one in book.verdict.findings if one.code == case.code)
    assert found.difference_cents
    assert re.search(r"-?[0-9]+\.[0-9]{2} (EUR|CHF)", found.sentence), found.sentence
    assert not re.search(r"[0-9] (cents|pico)", found.sentence)
    is_alone = case.name == "payment-in-another-currency"
    assert bool(found.other_record_ids) is not is_alone
    known = {one.record_id.hex() for channel in book.channels for one in channel.book.held()}
    assert set(found.other_record_ids) <= known


STORIES: list[Callable[[], Dealings | list[LinesBundle]]] = [
    stories.never_arrived,
    stories.idle_months,
    stories.two_rates,
    stories.ahead,
    stories.returned,
    stories.one_entry,
    stories.put_right,
    stories.set_off,
    stories.refunded,
    stories.netted,
    stories.overdue,
    stories.waived,
]


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_of_what_is_right_nothing_is_left_over(story: Callable[[], Dealings | list[LinesBundle]]) -> None:
    told = story()
    book = judged(both(told) if isinstance(told, Dealings) else told)
    table = whole(book)
    assert table.left_over_cents == 0
    assert not any(row.codes for row in table.statements)
    assert sum(one.open_cents for one in book.verdict.settlement) == open_by_notes(book)


def test_one_entry_of_the_bank_is_one_transfer_over_two_invoices() -> None:
    book = judged(both(stories.one_entry()))
    (one,) = book.transfers
    traced = transfer_trace(book, one).transfer
    assert traced is not None
    assert len(traced.payment_ids) == 2
    assert [share.invoice_number for share in traced.shares] == ["2027-0001", "2027-0002"]
    assert traced.amount_cents == sum(share.cents for share in traced.shares)


def test_what_was_booked_wrongly_pays_what_it_was_moved_to() -> None:
    book = judged(both(stories.put_right()))
    traced = transfer(book, "P2PGRID-2")
    assert [share.invoice_number for share in traced.shares] == ["2027-0002"]
    assert not traced.undone, "what moves within one entry of the bank neither came nor went"


def test_money_that_came_back_is_told_from_both_ends() -> None:
    book = judged(stories.returned())
    came, back, again = (transfer_trace(book, one).transfer for one in book.transfers)
    assert came is not None and back is not None and again is not None
    assert not came.shares and not back.shares
    assert [part.payment_id for part in came.undone] == list(back.payment_ids)
    assert [part.payment_id for part in back.undone] == list(came.payment_ids)
    assert [share.cents for share in again.shares] == [again.amount_cents]


@pytest.mark.parametrize(
    ("story", "number", "state", "words"),
    [
        (lambda: both(stories.refunded()), 3, "credited", "statement 2 credits it"),
        (lambda: both(stories.refunded()), 1, "paid", "are paid"),
        (stories.never_arrived, 3, "held", "A dispute about 0.0450173 EUR is open"),
        (
            lambda: both(stories.overdue()),
            1,
            "open",
            "Nothing of the 0.09 EUR of invoice 2027-0001 (statement 1) is paid",
        ),
        (lambda: both(stories.overdue()), 2, "nothing_owed", "It bills nothing (failed)."),
        (lambda: both(sold()), 1, "not_stated", "It is in no statement yet."),
        (lambda: both(stories.set_off()), 1, "paid", "are paid, or covered by other money"),
        (returned_only, 1, "open", "Of what had come, 0.09 were returned on"),
        (stated_only, 1, "not_invoiced", "has no invoice yet"),
    ],
)
def test_the_state_of_a_receipt_s_money(
    story: Callable[[], list[LinesBundle]], number: int, state: str, words: str
) -> None:
    book = judged(story())
    traced = followed(book, f"receipt:{number}").receipt
    assert traced is not None
    assert (traced.state, words in traced.sentence) == (state, True), traced.sentence


def test_what_is_overdue_is_said() -> None:
    late_ms = judged(both(stories.overdue())).channels[0].book.statements[1].message.due_ms + 1
    book = judged(both(stories.overdue()), now_ms=late_ms)
    traced = followed(book, "receipt:1").receipt
    assert traced is not None and traced.state == "overdue"
    (settled,) = book.verdict.settlement
    assert settled.overdue_cents == settled.open_cents == 9
    assert whole(book).statements[0].is_overdue


def test_a_held_receipt_and_its_release_show_in_the_arithmetic() -> None:
    grid, second = held_then(Decision.REJECTED)
    book = judged(both(grid))
    before, after = (statement(book, f"statement:{number}") for number in (1, 2))
    assert [part.receipt_number for part in before.held] == [3]
    assert before.held_cents == after.held_before_cents == 5
    assert after.held == ()
    assert after.net_cents == after.components_cents + 5 == second.message.net_cents
