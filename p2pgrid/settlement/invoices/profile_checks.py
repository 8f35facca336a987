"""What a profile wants beyond EN 16931, said before anything is written and with the rule's id.

The rule sets themselves run on every file (`validate`). This is for people: they learn what is missing, by name. For
Peppol there is no package that carries the official rule set, so here stand those of its rules that a document of
ours could break; the others cannot be broken by what `ubl` writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from p2pgrid.settlement.invoices.document import Document
from p2pgrid.settlement.invoices.profiles import Profile
from p2pgrid.settlement.invoices.refused import InvoiceRefused

_ITALIAN_NUMBER: Final = re.compile(r"[A-Z0-9]{11,16}")


def check_profile(document: Document) -> None:
    """Raises InvoiceRefused, its `code` the first rule that the document's profile has and the document breaks."""
    broken = {Profile.EN16931: _none, Profile.XRECHNUNG: _xrechnung, Profile.PEPPOL: _peppol}[document.profile]
    for rule, what in broken(document):
        raise InvoiceRefused(
            rule,
            f"the profile {document.profile.value!r} wants {what}.",
            hint="Change the party so, or choose the profile 'en16931' for this buyer.",
        )


def _none(document: Document) -> Iterator[tuple[str, str]]:
    yield from ()


def _xrechnung(document: Document) -> Iterator[tuple[str, str]]:
    if not document.buyer_reference:
        yield "BR-DE-15", "the buyer's reference (a Leitweg-ID, or any word that the buyer gave)"
    if document.seller.contact is None:
        yield "BR-DE-2", "a contact of the seller: name, telephone and e-mail address"
    yield from _addresses(document)


def _peppol(document: Document) -> Iterator[tuple[str, str]]:
    if not document.buyer_reference:
        yield "PEPPOL-EN16931-R003", "the buyer's reference"
    yield from _addresses(document)
    countries = {document.seller.address.country, document.buyer.address.country}
    if countries == {"DE"} and document.seller.contact is None:
        yield "DE-R-002", "a contact of the seller, between German parties"
    number = document.tax_ids.seller_tax_number
    if document.seller.address.country == "IT" and number and not _ITALIAN_NUMBER.fullmatch(number):
        yield "IT-R-001", "an Italian seller's tax number to have 11 to 16 capital letters and digits"


def _addresses(document: Document) -> Iterator[tuple[str, str]]:
    if document.buyer.electronic_address is None:
        yield "PEPPOL-EN16931-R010", "the buyer's electronic address"
    if document.seller.electronic_address is None:
        yield "PEPPOL-EN16931-R020", "the seller's electronic address"
