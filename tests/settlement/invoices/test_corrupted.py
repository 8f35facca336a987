"""A document that was changed after it was made is refused, with the rule that it breaks."""

from __future__ import annotations

import pytest
from lxml import etree

from p2pgrid.settlement.invoices.cii import write_cii
from p2pgrid.settlement.invoices.make import make_document
from p2pgrid.settlement.invoices.profiles import Profile, Syntax
from p2pgrid.settlement.invoices.refused import InvoiceRefused
from p2pgrid.settlement.invoices.ubl import write_ubl
from p2pgrid.settlement.invoices.validate import NOT_CHECKED, Validator, Verdict, Written
from tests.settlement.invoices.parties import EARLIER, head, line, party

CII, UBL = Syntax.CII, Syntax.UBL
EN, XR, PP = Profile.EN16931, Profile.XRECHNUNG, Profile.PEPPOL
SELLER_CII = "SellerTradeParty']//*[local-name()='SpecifiedTaxRegistration']/*[@schemeID='VA"


def verdict_of(validator: Validator, profile: Profile, syntax: Syntax, name: str, text: str | None) -> Verdict:
    """The verdict about an invoice with one element changed, or taken away."""
    document = make_document(head("LT", "DE", profile=profile), [line()], credits_pico=10**11)
    root = etree.fromstring(write_cii(document) if syntax is CII else write_ubl(document))
    places = root.xpath(f"//*[local-name()='{name}']")
    assert places
    if text is None:
        places[0].getparent().remove(places[0])
    else:
        places[0].text = text
    xml = etree.tostring(root, encoding="UTF-8", xml_declaration=True)
    return validator.check(Written(xml=xml, profile=profile, syntax=syntax, is_credit_note=False))


@pytest.mark.parametrize(
    ("profile", "syntax", "name", "text", "rule"),
    [
        (EN, CII, "GrandTotalAmount", "6.82", "BR-CO-15"),
        (EN, CII, "DuePayableAmount", "6.82", "BR-CO-16"),
        (EN, CII, "TaxBasisTotalAmount", "6.82", "BR-CO-13"),
        (EN, CII, "LineTotalAmount", "99.99", "BR-CO-10"),
        (EN, CII, "AllowanceTotalAmount", "0.11", "BR-CO-11"),
        (EN, CII, "IssueDateTime", None, "XSD"),
        (EN, CII, "DueDateDateTime", None, None),
        (EN, CII, "DuePayableAmount", None, "XSD"),
        (EN, CII, "ExemptionReason", None, None),
        (EN, CII, "IssuerAssignedID", "", "BR-52"),
        (EN, CII, SELLER_CII, "100001738313", "BR-CO-09"),
        (EN, CII, "CountryID", "XX", "FX-SCH-A-000580"),
        (EN, CII, "CategoryCode", "S", "BR-S-05"),
        (EN, UBL, "TaxInclusiveAmount", "6.82", "BR-CO-15"),
        (EN, UBL, "PayableAmount", "6.82", "BR-CO-16"),
        (EN, UBL, "TaxExclusiveAmount", "6.82", "BR-CO-13"),
        (EN, UBL, "LineExtensionAmount", "99.99", "BR-CO-10"),
        (EN, UBL, "AllowanceTotalAmount", "0.11", "BR-CO-11"),
        (EN, UBL, "IssueDate", None, "XSD"),
        (EN, UBL, "InvoiceTypeCode", "999", "BR-CL-01"),
        (EN, UBL, "CompanyID", "100001738313", "BR-CO-09"),
        (EN, UBL, "TaxableAmount", "6.82", "BR-AE-08"),
        (EN, UBL, "RegistrationName", None, "BR-06"),
        (EN, UBL, "IdentificationCode", "XX", "BR-CL-14"),
        (EN, UBL, "InvoicedQuantity", "many", "XSD"),
        (XR, CII, "BuyerReference", None, "BR-DE-15"),
        (XR, CII, "DefinedTradeContact", None, "BR-DE-2"),
        (XR, CII, "GrandTotalAmount", "6.82", "BR-CO-15"),
        (XR, UBL, "BuyerReference", None, "BR-DE-15"),
        (XR, UBL, "Contact", None, "BR-DE-2"),
        (XR, UBL, "PostalZone", None, "BR-DE-4"),
        (PP, UBL, "EndpointID", None, "PEPPOL-EN16931-R020"),
        (PP, UBL, "PayableAmount", "6.82", "BR-CO-16"),
        (PP, UBL, "InvoicedQuantity", "99", "PEPPOL-EN16931-R120"),
    ],
)  # fmt: skip
def test_one_thing_wrong(
    validator: Validator, profile: Profile, syntax: Syntax, name: str, text: str | None, rule: str | None
) -> None:
    verdict = verdict_of(validator, profile, syntax, name, text)
    broken = [finding.rule for finding in verdict.findings if not finding.is_warning]
    if rule is None:  # another field says the same: still valid
        assert verdict.is_valid, broken
        return
    assert rule in broken and not verdict.is_valid
    with pytest.raises(InvoiceRefused) as refused:
        verdict.refuse("the invoice")
    assert refused.value.code == broken[0]


def test_reverse_charge_without_the_buyers_numbers(validator: Validator) -> None:
    document = make_document(head("LT", party("DE", registration=None)), [line()])
    root = etree.fromstring(write_ubl(document))
    for place in root.xpath("//*[local-name()='AccountingCustomerParty']//*[local-name()='PartyTaxScheme']"):
        place.getparent().remove(place)
    verdict = validator.check(Written(xml=etree.tostring(root), profile=EN, syntax=UBL, is_credit_note=False))
    assert "BR-AE-02" in [finding.rule for finding in verdict.findings]


def test_a_credit_note_is_no_invoice(validator: Validator) -> None:
    document = make_document(head(preceding=EARLIER), [], credits_pico=10**12)
    xml = write_ubl(document)
    assert validator.check(Written(xml=xml, profile=EN, syntax=UBL, is_credit_note=True)).is_valid
    assert not validator.check(Written(xml=xml, profile=EN, syntax=UBL, is_credit_note=False)).is_valid


TIMES = b"".join(b'<!ENTITY e%d "%s">' % (n, b"&e%d;" % (n - 1) * 10) for n in range(1, 12))
BOMB = b'<!DOCTYPE a [<!ENTITY e0 "lol">' + TIMES + b"]><a>&e11;</a>"


@pytest.mark.parametrize(
    "xml",
    [
        b"",
        b"no xml",
        b"<a>",
        b"<a/>",
        BOMB,
        b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>',
        b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>',
        b"<a>" * 2000 + b"</a>" * 2000,
    ],
    ids=range(8),
)
def test_what_is_no_invoice(validator: Validator, xml: bytes) -> None:
    verdict = validator.check(Written(xml=xml, profile=EN, syntax=CII, is_credit_note=False))
    assert not verdict.is_valid and "root:" not in str(verdict)


def test_a_whole_invoice_with_a_document_type_is_refused(validator: Validator) -> None:
    xml = write_cii(make_document(head(), [line()]))
    start = xml.index(b"<rsm:")
    wrapped = xml[:start] + b"<!DOCTYPE x []>" + xml[start:]
    assert validator.check(Written(xml=xml, profile=EN, syntax=CII, is_credit_note=False)).is_valid
    verdict = validator.check(Written(xml=wrapped, profile=EN, syntax=CII, is_credit_note=False))
    assert [finding.rule for finding in verdict.findings] == [NOT_CHECKED]
