"""How a supply of inference is taxed: seller, buyer and day in, VAT treatment out. No I/O.

Inference sold by the token is an electronically supplied service. Between businesses it is taxed where the buyer is
established (Directive 2006/112/EC, Article 44). So: in one country the seller's standard rate; to another member
state reverse charge (Article 196); to a buyer outside the EU outside the scope of EU VAT. Consumers abroad are
refused: they would need the One Stop Shop. What is assumed stands in docs/settlement/invoices.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from enum import Enum
from typing import Final

from p2pgrid.settlement.invoices.libraries import library
from p2pgrid.settlement.invoices.refused import InvoiceRefused
from p2pgrid.settlement.invoices.vat_rates import (
    MEMBER_STATES,
    REVERSE_CHARGE_WORDS,
    SMALL_BUSINESS_TEXTS,
    STANDARD_RATES,
    standard_rate,
)

REVERSE_CHARGE: Final = "Reverse charge"
_COUNTRY: Final = re.compile(r"[A-Z]{2}")
_VAT_PREFIX: Final = {"GR": "EL"}


class VatCategory(Enum):
    """The codes of UNTDID 5305 that are used here (BT-118, BT-151)."""

    STANDARD = "S"
    REVERSE_CHARGE = "AE"
    EXEMPT = "E"
    OUT_OF_SCOPE = "O"


@dataclass(frozen=True, kw_only=True, slots=True)
class TaxParty:
    """What VAT law asks about a party."""

    country: str
    """ISO 3166, two letters: where the business is established."""
    vat_id: str = ""
    """With its prefix ("LT100001738313"); spaces, dots and dashes do not count. Empty where there is none."""
    tax_number: str = ""
    """A seller's national tax number; in Germany an invoice may have it in place of the VAT id."""
    is_business: bool = True
    is_small: bool = False
    """A seller that uses its country's exemption for small businesses."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VatTreatment:
    """How every line of a document is taxed."""

    category: VatCategory
    rate_bp: int
    """Basis points: 2550 is 25.5 %. Zero without VAT."""
    exemption_code: str = ""
    """BT-121, of the VATEX list."""
    exemption_text: str = ""
    """BT-120."""
    legal_basis: str
    note: str = ""
    """What the seller's own law wants to read, in its language."""


def check_vat_id(vat_id: str, country: str) -> str:
    """The VAT id in its usual form, prefix and all, its check digits verified. It is not asked whether it is in use.

    Raises InvoiceRefused: `vat-id-invalid`, or `vat-id-country` where it belongs to another country than `country`.
    """
    stdnum_vat, errors = library("stdnum.eu.vat"), library("stdnum.exceptions")
    compact = re.sub(r"[ .\-/]", "", vat_id).upper()
    prefix = _VAT_PREFIX.get(country, country)
    if not compact.isascii() or not compact.isalnum():
        raise InvoiceRefused("vat-id-invalid", f"{vat_id[:40]!r} is no VAT id: it has characters that none has.")
    if compact[:2] != prefix:
        raise InvoiceRefused(
            "vat-id-country",
            f"the VAT id {compact[:40]!r} is not one of {country}: those begin with {prefix}.",
            hint="Give the VAT id of the country in which the party is established.",
        )
    try:
        stdnum_vat.validate(compact)
    except errors.ValidationError as error:
        raise InvoiceRefused(
            "vat-id-invalid", f"{compact[:40]!r} is no VAT id of {country}: {error}", hint="Look for a typing error."
        ) from error
    return compact


def vat_treatment(seller: TaxParty, buyer: TaxParty, tax_date: date) -> VatTreatment:
    """How a supply by the seller to the buyer is taxed on a day (for a statement: the last day of its period).

    Raises InvoiceRefused with one of the codes `country`, `seller-country`, `no-rate`, `seller-no-business`,
    `vat-id-invalid`, `vat-id-country`, `seller-vat-id-missing`, `buyer-vat-id-missing`, `consumer-abroad`.
    """
    _check_parties(seller, buyer)
    rate = standard_rate(seller.country, tax_date)
    if buyer.country == seller.country:
        if seller.is_small:
            text, law = SMALL_BUSINESS_TEXTS[seller.country]
            return VatTreatment(category=VatCategory.EXEMPT, rate_bp=0, exemption_text=text, legal_basis=law, note=text)
        if not seller.vat_id and not (seller.country == "DE" and seller.tax_number):
            raise InvoiceRefused(
                "seller-vat-id-missing",
                f"a seller in {seller.country} without VAT id may not charge VAT.",
                hint="Give the seller's VAT id, or say that it is exempt as a small business.",
            )
        return VatTreatment(category=VatCategory.STANDARD, rate_bp=rate.rate_bp, legal_basis=rate.source)
    if not buyer.is_business:
        raise InvoiceRefused(
            "consumer-abroad",
            f"a consumer in {buyer.country} cannot be invoiced by a seller in {seller.country}: VAT is due in the "
            "consumer's country, by the One Stop Shop, which is not supported.",
        )
    if buyer.country in MEMBER_STATES:
        return _across_a_border(seller, buyer)
    return VatTreatment(
        category=VatCategory.OUT_OF_SCOPE,
        rate_bp=0,
        exemption_code="VATEX-EU-O",
        exemption_text="Not subject to VAT: supplied to a business outside the EU",
        legal_basis="Directive 2006/112/EC, Art. 44",
        note="Place of supply outside the EU (Article 44 of Directive 2006/112/EC)",
    )


def _across_a_border(seller: TaxParty, buyer: TaxParty) -> VatTreatment:
    if not buyer.vat_id:
        raise InvoiceRefused(
            "buyer-vat-id-missing",
            f"a business in {buyer.country} is invoiced from {seller.country} only with its VAT id (reverse charge).",
            hint="Ask the buyer for its VAT id; without one it counts as a consumer.",
        )
    if not seller.vat_id:
        raise InvoiceRefused(
            "seller-vat-id-missing",
            f"a seller in {seller.country} needs a VAT id to sell services to a business in {buyer.country}, "
            "small businesses too (Directive 2006/112/EC, Article 214(1)(e)).",
            hint="Register for VAT, or for services to other member states alone, and give the VAT id.",
        )
    return VatTreatment(
        category=VatCategory.REVERSE_CHARGE,
        rate_bp=0,
        exemption_code="VATEX-EU-AE",
        exemption_text=REVERSE_CHARGE,
        legal_basis="Directive 2006/112/EC, Art. 44 and 196",
        note=f"{REVERSE_CHARGE} / {REVERSE_CHARGE_WORDS[seller.country]} "
        "(Articles 44 and 196 of Directive 2006/112/EC)",
    )


def _check_parties(seller: TaxParty, buyer: TaxParty) -> None:
    for who, party in (("seller", seller), ("buyer", buyer)):
        if not _COUNTRY.fullmatch(party.country):
            raise InvoiceRefused("country", f"the {who}'s country {party.country[:40]!r} is no ISO 3166 code like LT.")
    if seller.country not in STANDARD_RATES:
        standard_rate(seller.country, date.max)
    if not seller.is_business:
        raise InvoiceRefused("seller-no-business", "who sells inference is a business: a consumer issues no invoice.")
    if seller.vat_id:
        check_vat_id(seller.vat_id, seller.country)
    if buyer.vat_id and buyer.country in MEMBER_STATES:
        check_vat_id(buyer.vat_id, buyer.country)
