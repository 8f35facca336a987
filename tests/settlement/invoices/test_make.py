"""Documents add up, whatever the statement; what makes none is refused with a reason."""

from __future__ import annotations

import dataclasses
import json
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.proto.invoice_sums import vat_of
from p2pgrid.proto.statement import InvoiceType, StatementLine
from p2pgrid.proto.statement_rules import statement_net
from p2pgrid.settlement.invoices.document import CLEARING, Attachment, Document
from p2pgrid.settlement.invoices.make import CREDITS, HELD, RELEASED, make_cancellation, make_document, treatment_of
from p2pgrid.settlement.invoices.parties import BankAccount, ElectronicAddress, Registration
from p2pgrid.settlement.invoices.profiles import Profile
from p2pgrid.settlement.invoices.refused import InvoiceRefused
from p2pgrid.settlement.invoices.vat import VatCategory
from tests.settlement.invoices.parties import EARLIER, SELLERS, head, line, party

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "invoices.json").read_text())
tokens = st.integers(0, 10**11)
statement_lines = st.lists(
    st.builds(
        lambda model, prompt, cached, output, price: line(model, prompt + cached, cached, output, price),
        st.text("abcdefgh-/ąčęüõж", min_size=1, max_size=40), tokens, tokens, tokens, st.integers(0, 10**6),
    ),
    max_size=5,
)  # fmt: skip


def refusal(**changes: Any) -> str:
    with pytest.raises(InvoiceRefused) as refused:
        make_document(head(**changes), [line()])
    assert refused.value.message
    return refused.value.code


def assert_adds_up(document: Document) -> None:
    """EN 16931's rules BR-CO-10 to -17, on integers."""
    totals = document.totals
    assert totals.lines_cents == sum(one.net_cents for one in document.lines)
    assert totals.allowances_cents == sum(one.net_cents for one in document.allowances)
    assert totals.net_cents == totals.lines_cents - totals.allowances_cents >= 0
    assert totals.gross_cents == totals.net_cents + totals.vat_cents
    assert totals.due_cents == totals.gross_cents - totals.paid_cents >= 0
    assert abs(2 * (totals.vat_cents * 10_000 - totals.net_cents * document.vat.rate_bp)) <= 10_000
    assert [one.number for one in document.lines] == list(range(1, len(document.lines) + 1))
    for one in document.lines:
        exact = one.quantity * one.price_micro  # micro-EUR times the base quantity
        assert abs(2 * (one.net_cents * 10_000 * one.base_quantity - exact)) <= 10_000 * one.base_quantity
        assert one.price_micro >= 0


amounts = st.integers(0, 10**15)


@given(statement_lines, amounts, amounts, amounts, st.sampled_from(SELLERS), st.sampled_from(SELLERS))
def test_documents_add_up_and_are_what_the_statement_said(
    lines: list, credits_pico: int, held_pico: int, held_before_pico: int, seller: str, buyer: str
) -> None:
    asked = head(seller, buyer, preceding=EARLIER)
    rate = treatment_of(asked).rate_bp
    taken = {"credits_pico": credits_pico, "held_pico": held_pico, "held_before_pico": held_before_pico}
    net = statement_net(lines, **taken)
    vat = vat_of(net, rate)
    try:
        document = make_document(asked, lines, **taken)
    except InvoiceRefused as refused:
        assert refused.code in ("nothing-to-invoice", "text")
        return
    assert_adds_up(document)
    assert document.is_credit_note == (net < 0)
    assert document.signed_cents == (net, vat, net + vat)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["case"])
def test_vectors(vector: dict[str, Any]) -> None:
    seller, buyer = {2100: ("LT", "LT"), 1900: ("DE", "DE"), 2400: ("EE", "EE"), 2550: ("FI", "FI")}.get(
        vector["rate_bp"], ("LT", "DE")
    )
    lines = [StatementLine(receipts=1, **one) for one in vector["lines"]]
    taken = {name: vector[name] for name in ("credits_pico", "held_pico", "held_before_pico")}
    document = make_document(head(seller, buyer, preceding=EARLIER), lines, **taken)
    assert [one.net_cents for one in document.lines] == vector["line_cents"]
    assert document.type == vector["type"]
    assert document.signed_cents[0] == vector["net_cents"]
    vat = vat_of(vector["net_cents"], vector["rate_bp"])
    assert (vat, vector["net_cents"] + vat) == (vector["vat_cents"], vector["gross_cents"])
    if document.vat.rate_bp == vector["rate_bp"]:
        assert document.signed_cents == (vector["net_cents"], vector["vat_cents"], vector["gross_cents"])


def test_credits_are_an_allowance() -> None:
    document = make_document(head("LT", "LT"), [line()], credits_pico=10**11)
    assert document.type is InvoiceType.INVOICE
    assert [(one.reason, one.net_cents) for one in document.allowances] == [(CREDITS, 10)]
    assert [one.net_cents for one in document.lines] == [227, 5, 459]
    assert (document.totals.net_cents, document.totals.vat_cents, document.totals.due_cents) == (681, 143, 824)


def test_more_credits_than_usage_are_a_credit_note() -> None:
    document = make_document(head("LT", "LT", preceding=EARLIER), [line()], credits_pico=10**13)
    assert document.type is InvoiceType.CREDIT_NOTE and not document.allowances and document.due_date is None
    assert [(one.quantity, one.net_cents) for one in document.lines] == [
        (1, 1000), (-11_345_678, -227), (-1_000_000, -5), (-7_654_321, -459),
    ]  # fmt: skip
    assert (document.totals.net_cents, document.totals.vat_cents, document.totals.gross_cents) == (309, 65, 374)
    assert document.preceding == EARLIER


def test_credits_alone_are_a_credit_note() -> None:
    document = make_document(head(preceding=EARLIER, account=None), [], credits_pico=10**12)
    assert [one.name for one in document.lines] == [CREDITS]
    assert document.payment.means_code == CLEARING and document.payment.account is None


def test_an_invoice_is_taken_back_whole() -> None:
    invoice = make_document(head("EE", "EE"), [line()], credits_pico=10**11, paid_cents=5)
    back = make_cancellation(invoice, number="CN-1", issue_date=date(2026, 12, 1))
    assert_adds_up(back)
    assert back.type is InvoiceType.CREDIT_NOTE and back.lines == invoice.lines
    assert back.totals.gross_cents == back.totals.due_cents == invoice.totals.gross_cents
    assert [(one.number, one.issue_date) for one in back.preceding] == [(invoice.number, invoice.issue_date)]
    for wrong in (lambda: make_cancellation(back, number="CN-2", issue_date=date(2026, 12, 1)),
                  lambda: make_cancellation(invoice, number="CN-2", issue_date=date(2026, 10, 1))):  # fmt: skip
        with pytest.raises(InvoiceRefused, match="cannot be taken back"):
            wrong()


def test_what_is_held_back_comes_back() -> None:
    held = make_document(head("LT", "LT"), [line()], held_pico=10**11)
    assert [(one.reason, one.net_cents) for one in held.allowances] == [(HELD, 10)]
    back = make_document(head("LT", "LT"), [line()], held_before_pico=10**11)
    assert (back.lines[-1].name, back.lines[-1].quantity, back.lines[-1].net_cents) == (RELEASED, 1, 10)
    assert make_document(head(), [line()], held_pico=5, held_before_pico=5).allowances == ()


def test_receipts_at_fault_show_as_a_line_of_their_own() -> None:
    wrong = msgspec.structs.replace(line(), amount_pico=line().amount_pico - 10**11)
    document = make_document(head("LT", "LT"), [wrong])
    last = document.lines[-1]
    assert (last.quantity, last.net_cents, last.group) == (-1, -10, "Qwen/Qwen3-32B")
    assert_adds_up(document)


def test_self_billing_is_agreed_or_refused() -> None:
    assert refusal(is_self_billed=True) == "self-billing"
    agreed = {"is_self_billed": True, "self_billing_agreed": True}
    document = make_document(head("DE", "DE", **agreed), [line()])
    assert document.type is InvoiceType.SELF_BILLED_INVOICE
    assert document.note == "Self-billing / Gutschrift"
    credit = make_document(head("DE", "DE", preceding=EARLIER, **agreed), [], credits_pico=10**12)
    assert credit.type is InvoiceType.SELF_BILLED_CREDIT_NOTE
    assert make_cancellation(document, number="S-2", issue_date=date(2026, 12, 1)).type is credit.type


def test_the_day_of_supply_sets_the_rate_not_the_day_of_issue() -> None:
    period = {"period_first": date(2025, 6, 1), "period_last": date(2025, 6, 30)}
    document = make_document(head("EE", "EE", **period), [line()])
    assert document.vat.rate_bp == 2200
    across = {"period_first": date(2025, 6, 15), "period_last": date(2025, 7, 14)}
    assert refusal(seller="EE", buyer="EE", **across) == "rate-changes"
    assert make_document(head("EE", "FI", **across), [line()]).vat.category is VatCategory.REVERSE_CHARGE


def test_tax_numbers_by_category() -> None:
    ids = make_document(head("LT", "DE"), [line()]).tax_ids
    assert (ids.seller_vat_id, ids.buyer_vat_id) == ("LT100001738313", "DE136695976")
    ids = make_document(head("LT", "US"), [line()]).tax_ids
    assert (ids.seller_vat_id, ids.seller_tax_number, ids.buyer_vat_id) == ("", "LT100001738313", "")


def test_a_missing_address_is_made_of_the_vat_id() -> None:
    document = make_document(head(party("EE", electronic_address=None), party("DE", electronic_address=None)), [line()])
    assert document.seller.electronic_address == ElectronicAddress(scheme="9931", address="EE100931558")
    assert document.buyer.electronic_address == ElectronicAddress(scheme="9930", address="DE136695976")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"number": ""}, "number"),
        ({"number": "A\n1"}, "number"),
        ({"number": "../../etc"}, "number"),
        ({"number": "1" * 65}, "number"),
        ({"reference": "x" * 36}, "reference"),
        ({"reference": "ąčę"}, "reference"),
        ({"account": None}, "account"),
        ({"account": BankAccount(iban="LT121000011101001001")}, "iban"),
        ({"account": BankAccount(iban="nonsense")}, "iban"),
        ({"account": BankAccount(iban="LT121000011101001000", bic="X")}, "iban"),
        ({"due_date": None}, "dates"),
        ({"due_date": date(2026, 10, 1)}, "dates"),
        ({"issue_date": date(2026, 10, 30)}, "dates"),
        ({"period_first": date(2026, 11, 1)}, "dates"),
        ({"statement_sha256": b"short"}, "statement"),
        ({"seller": party("LT", name="")}, None),
        ({"seller": party("LT", vat_id="LT100001738314")}, "vat-id-invalid"),
        ({"buyer": party("DE", vat_id="")}, "buyer-vat-id-missing"),
        ({"seller": party("DE", vat_id="", registration=None, is_small=True), "buyer": "DE"}, "BR-CO-26"),
        ({"seller": party("DE", vat_id="", tax_number="", is_small=True), "buyer": "DE"}, "BR-E-02"),
        ({"seller": party("LT", registration=None), "buyer": "US"}, "BR-CO-26"),
        ({"buyer": party("DE", name="x" * 201)}, "text"),
        ({"buyer": party("DE", name="Evil\u202egnp.exe")}, "text"),
        ({"buyer": party("DE", name="a\x00b")}, "text"),
        ({"buyer": party("DE", registration=Registration(number="1", scheme="no such"))}, "scheme"),
        ({"statement_file": Attachment(filename="a.exe", mime="application/x-msdownload", content=b"x")}, "attachment"),
        ({"statement_file": Attachment(filename="../a.csv", mime="text/csv", content=b"x")}, "attachment"),
        ({"statement_file": Attachment(filename="a.csv", mime="text/csv", content=b"")}, "attachment"),
        ({"profile": Profile.XRECHNUNG, "buyer": party("DE", buyer_reference="")}, "BR-DE-15"),
        ({"profile": Profile.XRECHNUNG, "seller": party("LT", contact=None)}, "BR-DE-2"),
        ({"profile": Profile.PEPPOL, "buyer": party("DE", buyer_reference="")}, "PEPPOL-EN16931-R003"),
        ({"profile": Profile.PEPPOL, "buyer": party("PL", electronic_address=None)}, "PEPPOL-EN16931-R010"),
        ({"profile": Profile.PEPPOL, "seller": party("DE", contact=None), "buyer": "DE"}, "DE-R-002"),
        ({"profile": Profile.PEPPOL, "seller": party("IT", tax_number="30/123")}, "IT-R-001"),
    ],
)  # fmt: skip
def test_what_makes_no_document(changes: dict[str, Any], code: str | None) -> None:
    if code is None:  # a name of blanks and a country is a name
        make_document(head(**changes), [line()])
        return
    assert refusal(**changes) == code


def test_amounts_that_make_no_document() -> None:
    for arguments, code in (
        ({"lines": []}, "nothing-to-invoice"),
        ({"lines": [line()], "credits_pico": -1}, "nothing-to-invoice"),
        ({"lines": [line()], "paid_cents": 10**6}, "paid"),
        ({"lines": [line()], "paid_cents": -1}, "paid"),
        ({"lines": [], "credits_pico": 10**12}, "preceding"),
        ({"lines": [line("a\u200bb")]}, "text"),
    ):
        with pytest.raises(InvoiceRefused) as refused:
            make_document(head(), **arguments)
        assert refused.value.code == code


def test_what_was_paid_ahead_is_not_due_again() -> None:
    whole = make_document(head("LT", "LT"), [line()]).totals.gross_cents
    document = make_document(head("LT", "LT", due_date=None), [line()], paid_cents=whole)
    assert document.totals.due_cents == 0 and document.totals.gross_cents == whole


def test_texts_are_cleaned() -> None:
    document = make_document(
        head(party("LT", vat_id="lt 1000.0173-8313"), dataclasses.replace(party("DE"), name=" A\u0308b ")), [line()]
    )
    assert document.seller.vat_id == "LT100001738313"
    assert document.buyer.name == "Äb"
