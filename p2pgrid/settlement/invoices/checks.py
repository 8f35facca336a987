"""What is checked of parties, accounts and attachments before a document is made of them."""

from __future__ import annotations

import dataclasses
import re
from typing import Final

from p2pgrid.settlement.invoices.document import Attachment
from p2pgrid.settlement.invoices.libraries import library
from p2pgrid.settlement.invoices.parties import (
    Address,
    BankAccount,
    Contact,
    ElectronicAddress,
    Party,
    Registration,
    electronic_address_of,
)
from p2pgrid.settlement.invoices.refused import InvoiceRefused
from p2pgrid.settlement.invoices.texts import check_text
from p2pgrid.settlement.invoices.vat import VatCategory, VatTreatment, check_vat_id
from p2pgrid.settlement.invoices.vat_rates import MEMBER_STATES

ATTACHMENT_TYPES: Final = {
    "application/pdf": ".pdf",
    "image/png": ".png",
    "image/jpeg": ".jpg",
    "text/csv": ".csv",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": ".xlsx",
    "application/vnd.oasis.opendocument.spreadsheet": ".ods",
}
"""EN 16931 allows no others (BR-CL-24)."""
MAX_ATTACHMENT_BYTES: Final = 6 * 1024 * 1024
_FILENAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_BIC: Final = re.compile(r"[A-Z]{6}[A-Z0-9]{2}([A-Z0-9]{3})?")
_SCHEME: Final = re.compile(r"[A-Z0-9]{2,4}")


def check_parties(seller: Party, buyer: Party, vat: VatTreatment) -> tuple[Party, Party]:
    """Both parties, their texts cleaned and their VAT ids in the usual form.

    Raises InvoiceRefused: `text`, `scheme`, or the id of the rule of EN 16931 that would be broken.
    """
    if not seller.vat_id and seller.registration is None:
        raise InvoiceRefused(
            "BR-CO-26",
            "a seller is known by its VAT id or its number in a register: neither was given.",
            hint="Give the seller's registration number.",
        )
    if vat.category is VatCategory.OUT_OF_SCOPE and seller.registration is None:
        raise InvoiceRefused(
            "BR-CO-26",
            "an invoice outside the scope of VAT cannot carry the seller's VAT id: its registration number is needed.",
        )
    if vat.category is VatCategory.EXEMPT and not seller.vat_id and not seller.tax_number:
        raise InvoiceRefused(
            "BR-E-02",
            "an exempt seller states its VAT id or its tax number: neither was given.",
            hint="Give the number under which the tax office knows the seller.",
        )
    return _checked_party("the seller", seller), _checked_party("the buyer", buyer)


def check_account(account: BankAccount) -> BankAccount:
    """The account with its IBAN and BIC in electronic form, check digits verified. Raises InvoiceRefused (`iban`)."""
    stdnum_iban, errors = library("stdnum.iban"), library("stdnum.exceptions")
    try:
        iban = str(stdnum_iban.validate(account.iban))
    except errors.ValidationError as error:
        raise InvoiceRefused("iban", f"{account.iban[:40]!r} is no IBAN: {error}") from error
    bic = account.bic.replace(" ", "").upper()
    if bic and not _BIC.fullmatch(bic):
        raise InvoiceRefused("iban", f"{account.bic[:20]!r} is no BIC: those have 8 or 11 letters and digits.")
    holder = check_text("the account's holder", account.holder, is_required=False)
    return BankAccount(iban=iban, bic=bic, holder=holder)


def check_attachment(attachment: Attachment) -> None:
    """Raises InvoiceRefused (`attachment`) for a file that cannot be put into an invoice."""
    ending = ATTACHMENT_TYPES.get(attachment.mime)
    if ending is None:
        raise InvoiceRefused(
            "attachment",
            f"a file of the type {attachment.mime[:60]!r} cannot be put into an invoice.",
            hint=f"Allowed are {', '.join(ATTACHMENT_TYPES)}.",
        )
    if not _FILENAME.fullmatch(attachment.filename) or not attachment.filename.lower().endswith(ending):
        raise InvoiceRefused("attachment", f"{attachment.filename[:60]!r} is no plain file name that ends in {ending}.")
    if not 0 < len(attachment.content) <= MAX_ATTACHMENT_BYTES:
        raise InvoiceRefused(
            "attachment", f"the file has {len(attachment.content)} bytes: 1 to {MAX_ATTACHMENT_BYTES} are allowed."
        )


def _checked_party(who: str, party: Party) -> Party:
    name = check_text(f"{who}'s name", party.name)
    registration = party.registration and Registration(
        number=check_text(f"{who}'s registration number", party.registration.number, most=60),
        scheme=_checked_scheme(party.registration.scheme),
    )
    checked = dataclasses.replace(
        party,
        name=name,
        address=_checked_address(who, party.address),
        vat_id=_vat_id(party),
        tax_number=check_text(f"{who}'s tax number", party.tax_number, most=60, is_required=False),
        registration=registration,
        contact=party.contact and _checked_contact(who, party.contact),
        buyer_reference=check_text(f"{who}'s reference", party.buyer_reference, is_required=False),
    )
    address = electronic_address_of(checked)
    return dataclasses.replace(
        checked,
        electronic_address=address
        and ElectronicAddress(
            scheme=_checked_scheme(address.scheme, is_required=True),
            address=check_text(f"{who}'s electronic address", address.address),
        ),
    )


def _vat_id(party: Party) -> str:
    if party.vat_id and party.address.country in MEMBER_STATES:
        return check_vat_id(party.vat_id, party.address.country)
    return check_text("a VAT id", party.vat_id, most=40, is_required=False)


def _checked_address(who: str, address: Address) -> Address:
    return Address(
        line1=check_text(f"{who}'s street", address.line1),
        line2=check_text(f"{who}'s second address line", address.line2, is_required=False),
        city=check_text(f"{who}'s town", address.city),
        post_code=check_text(f"{who}'s postal code", address.post_code, most=20),
        country=address.country,
        subdivision=check_text(f"{who}'s province", address.subdivision, is_required=False),
    )


def _checked_contact(who: str, contact: Contact) -> Contact:
    return Contact(
        name=check_text(f"{who}'s contact", contact.name),
        phone=check_text(f"{who}'s telephone", contact.phone, most=40),
        email=check_text(f"{who}'s e-mail address", contact.email, most=100),
    )


def _checked_scheme(scheme: str, *, is_required: bool = False) -> str:
    if (scheme or is_required) and not _SCHEME.fullmatch(scheme):
        raise InvoiceRefused("scheme", f"{scheme[:20]!r} is no code of a list of identifiers, like 0191 or EM.")
    return scheme
