"""Every seller's country, every kind of buyer, the days on which rates change."""

from __future__ import annotations

from datetime import date, timedelta

import pytest

from p2pgrid.settlement.invoices.refused import InvoiceRefused
from p2pgrid.settlement.invoices.vat import TaxParty, VatCategory, check_vat_id, vat_treatment
from p2pgrid.settlement.invoices.vat_rates import (
    MEMBER_STATES,
    REVERSE_CHARGE_WORDS,
    SELF_BILLING_WORDS,
    SMALL_BUSINESS_TEXTS,
    STANDARD_RATES,
    rate_changes,
    standard_rate,
)
from tests.settlement.invoices.parties import SELLERS, VAT_IDS

TODAY = date(2026, 10, 31)
RATES = [
    ("LT", date(2009, 9, 1), 2100),
    ("LT", TODAY, 2100),
    ("LV", date(2012, 7, 1), 2100),
    ("LV", TODAY, 2100),
    ("EE", date(2023, 12, 31), 2000),
    ("EE", date(2024, 1, 1), 2200),
    ("EE", date(2025, 6, 30), 2200),
    ("EE", date(2025, 7, 1), 2400),
    ("EE", TODAY, 2400),
    ("FI", date(2024, 8, 31), 2400),
    ("FI", date(2024, 9, 1), 2550),
    ("FI", TODAY, 2550),
    ("DE", date(2020, 6, 30), 1900),
    ("DE", date(2020, 7, 1), 1600),
    ("DE", date(2020, 12, 31), 1600),
    ("DE", date(2021, 1, 1), 1900),
    ("DE", TODAY, 1900),
    ("IT", date(2013, 10, 1), 2200),
    ("IT", TODAY, 2200),
]


def business(country: str, *, is_small: bool = False) -> TaxParty:
    return TaxParty(country=country, vat_id=VAT_IDS.get(country, ""), is_small=is_small)


def code_of(seller: TaxParty, buyer: TaxParty, on: date = TODAY) -> str:
    with pytest.raises(InvoiceRefused) as refused:
        vat_treatment(seller, buyer, on)
    return refused.value.code


@pytest.mark.parametrize(("country", "on", "rate"), RATES)
def test_domestic_sales_bear_the_rate_of_the_day(country: str, on: date, rate: int) -> None:
    found = vat_treatment(business(country), business(country), on)
    assert (found.category, found.rate_bp, found.exemption_code, found.exemption_text) == (
        VatCategory.STANDARD,
        rate,
        "",
        "",
    )


@pytest.mark.parametrize("country", SELLERS)
def test_a_buyer_at_home_needs_no_vat_id_and_may_be_a_consumer(country: str) -> None:
    for buyer in (TaxParty(country=country), TaxParty(country=country, is_business=False)):
        assert vat_treatment(business(country), buyer, TODAY).category is VatCategory.STANDARD


@pytest.mark.parametrize("is_small", [False, True])
@pytest.mark.parametrize("buyer", sorted(VAT_IDS))
@pytest.mark.parametrize("seller", SELLERS)
def test_across_a_border_the_buyer_owes_the_vat(seller: str, buyer: str, is_small: bool) -> None:
    if seller == buyer:
        return
    found = vat_treatment(business(seller, is_small=is_small), business(buyer), TODAY)
    assert found.category is VatCategory.REVERSE_CHARGE
    assert (found.rate_bp, found.exemption_code, found.exemption_text) == (0, "VATEX-EU-AE", "Reverse charge")
    assert found.note.startswith("Reverse charge / ") and REVERSE_CHARGE_WORDS[seller] in found.note


@pytest.mark.parametrize("country", SELLERS)
def test_a_small_business_is_exempt_at_home(country: str) -> None:
    found = vat_treatment(TaxParty(country=country, is_small=True), business(country), TODAY)
    assert (found.category, found.rate_bp) == (VatCategory.EXEMPT, 0)
    assert found.exemption_text == SMALL_BUSINESS_TEXTS[country][0]


@pytest.mark.parametrize("buyer", ["US", "CH", "NO", "GB", "UA"])
@pytest.mark.parametrize("seller", SELLERS)
def test_outside_the_union_there_is_no_vat(seller: str, buyer: str) -> None:
    found = vat_treatment(business(seller), TaxParty(country=buyer, vat_id="CHE-123.456.788 MWST"), TODAY)
    assert (found.category, found.rate_bp, found.exemption_code) == (VatCategory.OUT_OF_SCOPE, 0, "VATEX-EU-O")


@pytest.mark.parametrize("seller", SELLERS)
def test_who_cannot_be_invoiced(seller: str) -> None:
    abroad = next(country for country in SELLERS if country != seller)
    assert code_of(business(seller), TaxParty(country=abroad)) == "buyer-vat-id-missing"
    assert code_of(business(seller), TaxParty(country=abroad, is_business=False)) == "consumer-abroad"
    assert code_of(business(seller), TaxParty(country="US", is_business=False)) == "consumer-abroad"
    assert code_of(TaxParty(country=seller), business(abroad)) == "seller-vat-id-missing"
    assert code_of(TaxParty(country=seller, is_small=True), business(abroad)) == "seller-vat-id-missing"
    assert code_of(TaxParty(country=seller), business(seller)) == "seller-vat-id-missing"
    assert code_of(TaxParty(country=seller, is_business=False), business(seller)) == "seller-no-business"
    assert code_of(business(seller), TaxParty(country=abroad, vat_id=VAT_IDS[seller])) == "vat-id-country"
    first = STANDARD_RATES[seller][0].valid_from
    assert code_of(business(seller), business(seller), first - timedelta(days=1)) == "no-rate"


def test_a_german_seller_may_use_its_tax_number() -> None:
    seller = TaxParty(country="DE", tax_number="30/123/45678")
    assert vat_treatment(seller, business("DE"), TODAY).rate_bp == 1900


@pytest.mark.parametrize("country", ["", "de", "DEU", "D1", "XX ", "ЛТ"])
def test_a_country_is_a_code(country: str) -> None:
    assert code_of(business("LT"), TaxParty(country=country)) == "country"


def test_sellers_of_other_countries_are_not_invoiced_for() -> None:
    assert code_of(business("FR"), business("LT")) == "seller-country"


@pytest.mark.parametrize("country", sorted(VAT_IDS))
def test_vat_ids_are_checked_to_the_last_digit(country: str) -> None:
    vat_id = VAT_IDS[country]
    assert check_vat_id(f" {vat_id[:2].lower()} {vat_id[2:5]}.{vat_id[5:]}-", country) == vat_id
    wrong = vat_id[:6] + str((int(vat_id[6]) + 1) % 10) + vat_id[7:]
    for bad in (wrong, vat_id[:-1], vat_id + "0", vat_id[:2], vat_id[:4] + "\u0660" + vat_id[5:], vat_id + "\n;"):
        with pytest.raises(InvoiceRefused) as refused:
            check_vat_id(bad, country)
        assert refused.value.code == "vat-id-invalid"


def test_the_tables_are_of_one_piece() -> None:
    assert set(STANDARD_RATES) == set(SMALL_BUSINESS_TEXTS) == set(REVERSE_CHARGE_WORDS) == set(SELF_BILLING_WORDS)
    assert set(STANDARD_RATES) == set(SELLERS) <= MEMBER_STATES
    assert len(MEMBER_STATES) == 27
    for rows in STANDARD_RATES.values():
        days = [row.valid_from for row in rows]
        assert days == sorted(set(days)) and all(row.source for row in rows)


def test_where_a_period_must_end() -> None:
    assert rate_changes("EE", date(2025, 6, 1), date(2025, 6, 30)) == ()
    assert rate_changes("EE", date(2025, 6, 1), date(2025, 7, 31)) == (date(2025, 7, 1),)
    assert rate_changes("EE", date(2025, 7, 1), date(2025, 7, 31)) == ()
    assert rate_changes("DE", date(2020, 6, 1), date(2021, 1, 31)) == (date(2020, 7, 1), date(2021, 1, 1))
    assert standard_rate("EE", date(2025, 7, 1)).rate_bp == 2400
