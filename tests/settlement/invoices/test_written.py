"""What is written passes its schema and its rules, for every case of VAT, every kind of document, every profile."""

from __future__ import annotations

import dataclasses
from datetime import date
from typing import Any

import msgspec
import pytest
from lxml import etree

from p2pgrid.proto.statement import InvoiceType
from p2pgrid.settlement.invoices.cii import write_cii
from p2pgrid.settlement.invoices.document import Attachment, Document
from p2pgrid.settlement.invoices.make import Head, make_cancellation, make_document
from p2pgrid.settlement.invoices.profiles import Profile, Syntax
from p2pgrid.settlement.invoices.ubl import write_ubl
from p2pgrid.settlement.invoices.validate import Finding, Validator, Written
from tests.settlement.invoices.parties import EARLIER, SELLERS, head, line, party

WAYS = [(profile, syntax) for profile in Profile for syntax in profile.syntaxes]
SELF_BILLED = {"is_self_billed": True, "self_billing_agreed": True}


def small(country: str) -> Any:
    return party(country, vat_id="", is_small=True)


HEADS: dict[str, Head] = {
    **{f"{country} at home": head(country, country) for country in SELLERS},
    **{f"{country} across a border": head(country, "FR") for country in SELLERS},
    **{f"{country} small": head(small(country), country) for country in SELLERS},
    **{f"{country} out of the Union": head(country, "US") for country in SELLERS},
    "to Greece": head("LT", "GR"),
    "small across a border": head(party("DE", is_small=True), "LT"),
    "a consumer at home": head("LV", party("LV", vat_id="", registration=None, is_business=False)),
    "by tax number": head(party("DE", vat_id=""), "DE"),
    "self-billed": head("DE", "DE", **SELF_BILLED),
    "with the statement": head(statement_file=Attachment(filename="s.csv", mime="text/csv", content=b"a,b\n" * 50_000)),
    "a note and markup": head(buyer=party("DE", name="<A> & 'B' \"C\" ]]> «Ж» Ω"), note="Thank you & see you <soon>"),
}


def write(document: Document, syntax: Syntax) -> bytes:
    return write_cii(document) if syntax is Syntax.CII else write_ubl(document)


def check(validator: Validator, document: Document, syntax: Syntax) -> list[Finding]:
    """What forbids the document."""
    verdict = validator.check(
        Written(
            xml=write(document, syntax),
            profile=document.profile,
            syntax=syntax,
            is_credit_note=document.is_credit_note,
        )
    )
    broken = [finding for finding in verdict.findings if not finding.is_warning]
    assert verdict.is_valid == (not broken)
    return broken


@pytest.mark.parametrize(("profile", "syntax"), WAYS, ids=lambda way: way.value)
@pytest.mark.parametrize("name", HEADS)
def test_invoices(validator: Validator, name: str, profile: Profile, syntax: Syntax) -> None:
    document = make_document(
        dataclasses.replace(HEADS[name], profile=profile), [line(), line("мистраль/12Б")], credits_pico=123 * 10**9
    )
    assert check(validator, document, syntax) == []


@pytest.mark.parametrize(("profile", "syntax"), WAYS, ids=lambda way: way.value)
@pytest.mark.parametrize("name", ["LT at home", "EE across a border", "DE small", "IT out of the Union"])
def test_credit_notes(validator: Validator, name: str, profile: Profile, syntax: Syntax) -> None:
    asked = dataclasses.replace(HEADS[name], profile=profile, preceding=EARLIER)
    invoice = make_document(asked, [line()], credits_pico=10**10)
    for document in (
        make_document(asked, [line()], credits_pico=10**13),
        make_document(dataclasses.replace(asked, account=None), [], credits_pico=10**13),
        make_cancellation(invoice, number="CN-9", issue_date=date(2026, 12, 1)),
    ):
        assert document.type is InvoiceType.CREDIT_NOTE
        assert check(validator, document, syntax) == []


@pytest.mark.parametrize(("profile", "syntax"), WAYS, ids=lambda way: way.value)
def test_self_billed_credit_notes(validator: Validator, profile: Profile, syntax: Syntax) -> None:
    document = make_document(
        head("LV", "LV", profile=profile, preceding=EARLIER, **SELF_BILLED), [], credits_pico=10**12
    )
    assert document.type is InvoiceType.SELF_BILLED_CREDIT_NOTE
    assert check(validator, document, syntax) == []


@pytest.mark.parametrize(("profile", "syntax"), WAYS, ids=lambda way: way.value)
def test_what_is_held_back_and_differs(validator: Validator, profile: Profile, syntax: Syntax) -> None:
    wrong = msgspec.structs.replace(line("b"), amount_pico=line("b").amount_pico - 10**10)
    for taken in (
        {"credits_pico": 10**10, "held_pico": 2 * 10**10},
        {"held_before_pico": 10**10},
        {"credits_pico": 10**14, "held_pico": 2 * 10**10},
        {"credits_pico": 10**14, "held_before_pico": 2 * 10**10},
    ):
        document = make_document(head("FI", "FI", profile=profile, preceding=EARLIER), [line(), wrong], **taken)
        assert check(validator, document, syntax) == []


@pytest.mark.parametrize(("profile", "syntax"), WAYS, ids=lambda way: way.value)
def test_amounts_at_their_ends(validator: Validator, profile: Profile, syntax: Syntax) -> None:
    """Nothing due, one token, prices with six decimals, amounts of millions, forty lines, all paid ahead."""
    for lines, credits_pico, paid in (
        ([line(prompt=1, cached=0, output=0, price_upm=1)], 0, 0),
        ([line(prompt=10**12, cached=0, output=0, price_upm=1_234_567)], 1, 0),
        (
            [
                line(f"model-{n}/{'x' * 100}", prompt=10**9 + n, cached=n, output=n, price_upm=200_001)
                for n in range(14)
            ],
            0,
            0,
        ),
        ([line(prompt=10**7, cached=0, output=0)], 2 * 10**12, 0),
        ([line(prompt=10**7, cached=0, output=0)], 0, 242),
    ):
        document = make_document(head("LT", "LT", profile=profile), lines, credits_pico=credits_pico, paid_cents=paid)
        assert check(validator, document, syntax) == []


def test_what_is_written_is_what_was_meant() -> None:
    """The same facts stand in both syntaxes, each in its own place."""
    document = make_document(
        head(preceding=EARLIER[:1], statement_file=Attachment(filename="s.csv", mime="text/csv", content=b"x,y\n")),
        [line()], credits_pico=10**11, paid_cents=100,
    )  # fmt: skip
    cii, ubl = etree.fromstring(write_cii(document)), etree.fromstring(write_ubl(document))

    def texts(root: Any, name: str) -> list[str]:
        return root.xpath(f"//*[local-name()='{name}']/text()")

    for value, in_cii, in_ubl in (
        ("2.27", "LineTotalAmount", "LineExtensionAmount"),
        ("6.91", "LineTotalAmount", "LineExtensionAmount"),
        ("0.10", "AllowanceTotalAmount", "AllowanceTotalAmount"),
        ("6.81", "TaxBasisTotalAmount", "TaxExclusiveAmount"),
        ("6.81", "GrandTotalAmount", "TaxInclusiveAmount"),
        ("1.00", "TotalPrepaidAmount", "PrepaidAmount"),
        ("5.81", "DuePayableAmount", "PayableAmount"),
        ("11345678", "BilledQuantity", "InvoicedQuantity"),
        ("1000000", "BasisQuantity", "BaseQuantity"),
        ("0.20", "ChargeAmount", "PriceAmount"),
        ("VATEX-EU-AE", "ExemptionReasonCode", "TaxExemptionReasonCode"),
        ("Reverse charge", "ExemptionReason", "TaxExemptionReason"),
        ("LT121000011101001000", "IBANID", "ID"),
        ("HABALT22", "BICID", "ID"),
        ("RF18539007547034", "PaymentReference", "PaymentID"),
        ("58", "TypeCode", "PaymentMeansCode"),
        (bytes(range(32)).hex(), "IssuerAssignedID", "ID"),
        ("eCx5Cg==", "AttachmentBinaryObject", "EmbeddedDocumentBinaryObject"),
        ("2026/0000", "IssuerAssignedID", "ID"),
        ("LT100001738313", "ID", "CompanyID"),
        ("DE136695976", "ID", "CompanyID"),
        ("K-77", "BuyerReference", "BuyerReference"),
    ):
        assert value in texts(cii, in_cii), f"{in_cii} of CII"
        assert value in texts(ubl, in_ubl), f"{in_ubl} of UBL"


def test_every_earlier_invoice_is_named_in_cii() -> None:
    document = make_document(head(preceding=EARLIER), [], credits_pico=10**12)
    root = etree.fromstring(write_cii(document))
    named = root.xpath("//*[local-name()='InvoiceReferencedDocument']//text()[normalize-space()]")
    assert named == ["2026/0000", "20261001", "2025/0917", "20260901"]


def test_writing_twice_gives_the_same_bytes() -> None:
    document = make_document(head(), [line()])
    assert write_cii(document) == write_cii(document) and write_ubl(document) == write_ubl(document)
