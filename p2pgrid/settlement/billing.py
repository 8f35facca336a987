"""What stands in `[billing]`, or in a peer's BillingDetails: checked, what is missing for what, and as invoices and
payments need it.

One set of rules for both: what a node would refuse of a peer it does not sign itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from p2pgrid.config import BillingConfig
from p2pgrid.errors import UsageError
from p2pgrid.proto.billing_details import BillingDetails
from p2pgrid.proto.card import Card
from p2pgrid.proto.keys import PublicKey
from p2pgrid.proto.record import Role
from p2pgrid.settlement.invoices import parties
from p2pgrid.settlement.invoices.profiles import Profile
from p2pgrid.settlement.invoices.refused import InvoiceRefused
from p2pgrid.settlement.invoices.texts import check_text
from p2pgrid.settlement.invoices.vat import check_vat_id
from p2pgrid.settlement.invoices.vat_rates import MEMBER_STATES, STANDARD_RATES
from p2pgrid.settlement.payments import orders
from p2pgrid.settlement.payments.accounts import checked_bic, checked_iban

_SCHEME: Final = re.compile(r"([A-Z0-9]{2,4})?")
_RENAMED: Final = {"is_business": "business", "is_small": "small-business", "self_billing_agreed": "self-billing"}
_TEXTS: Final = {
    "legal_name": 140, "street": 140, "street_more": 140, "city": 140, "post_code": 20, "subdivision": 140,
    "tax_number": 35, "registration_number": 35, "electronic_address": 128, "contact_name": 140, "contact_phone": 35,
    "contact_email": 100, "account_holder": 140, "buyer_reference": 140,
}  # fmt: skip
"""Fields that are plain text, and how long an invoice lets them be."""


class Purpose(StrEnum):
    """What billing details are wanted for."""

    ISSUE = "issue"
    """To issue invoices, as provider."""
    BE_INVOICED = "be-invoiced"
    """To be invoiced, as client."""
    PAY = "pay"
    """To write payment files, as client."""


@dataclass(frozen=True, slots=True)
class FieldFault:
    """What is wrong with one field."""

    field: str
    """As config.toml writes it."""
    value: str
    expected: str

    def __str__(self) -> str:
        return f"{self.field} is {self.value!r}; {self.expected}"


def draft_details(
    billing: BillingConfig, *, party: PublicKey, by: Role, sequence: int = 1, stated_ms: int = 0
) -> BillingDetails:
    """`[billing]` as a message, numbers in their usual form where they are right. Not checked: `faults_of` does."""
    return BillingDetails(
        party=party.raw,
        by=by,
        sequence=sequence,
        stated_ms=stated_ms,
        legal_name=billing.legal_name,
        street=billing.street,
        street_more=billing.street_more,
        city=billing.city,
        post_code=billing.post_code,
        country=billing.country,
        subdivision=billing.subdivision,
        vat_id=re.sub(r"[ .\-/]", "", billing.vat_id).upper(),
        tax_number=billing.tax_number,
        registration_number=billing.registration_number,
        registration_scheme=billing.registration_scheme,
        electronic_address=billing.electronic_address,
        electronic_scheme=billing.electronic_scheme,
        contact_name=billing.contact_name,
        contact_phone=billing.contact_phone,
        contact_email=billing.contact_email,
        is_business=billing.business,
        is_small=billing.small_business,
        iban=billing.iban.replace(" ", "").upper(),
        bic=billing.bic.replace(" ", "").upper(),
        account_holder=billing.account_holder,
        buyer_reference=billing.buyer_reference,
        profile=billing.profile,
        self_billing_agreed=billing.self_billing,
    )


def faults_of(details: BillingDetails) -> list[FieldFault]:
    """What is wrong with what is there; nothing about what is left out (`missing_for`).

    Raises LocalError where the libraries that know accounts and VAT ids are missing.
    """
    found = [fault for name, most in _TEXTS.items() if (fault := _text_fault(name, getattr(details, name), most))]
    found += _code_faults(details)
    if details.country and details.vat_id and details.country in MEMBER_STATES:
        found += _refusal("vat_id", details.vat_id, lambda: check_vat_id(details.vat_id, details.country))
    elif details.vat_id:
        found += [f for f in [_text_fault("vat_id", details.vat_id, 35)] if f]
    if details.iban:
        found += _refusal("iban", details.iban, lambda: checked_iban(details.iban))
    if details.bic:
        found += _refusal("bic", details.bic, lambda: checked_bic(details.bic))
    return found


def missing_for(details: BillingDetails, purpose: Purpose) -> list[str]:
    """The fields that have to be filled in, as config.toml writes them; several in one string are alternatives."""
    needed = ["legal_name", "street", "city", "post_code", "country"]
    if purpose is Purpose.ISSUE:
        needed.append("iban")
    if purpose is Purpose.PAY:
        needed = ["legal_name", "city", "country", "iban"]
    found = [field_name(name) for name in needed if not getattr(details, name)]
    if purpose is Purpose.ISSUE:
        if details.is_small:
            if not details.vat_id and not details.tax_number:
                found.append("vat-id or tax-number")
        elif not details.vat_id and not (details.country == "DE" and details.tax_number):
            found.append("vat-id")
        if not details.vat_id and not details.registration_number:
            found.append("registration-number")
    return found


def advice_for(details: BillingDetails, purpose: Purpose) -> list[str]:
    """What is not missing, and yet will stop an invoice in some cases, in sentences."""
    advice = []
    if purpose is Purpose.ISSUE:
        if details.country and details.country not in STANDARD_RATES:
            advice.append(
                f"invoices of a seller in {details.country} cannot be issued: the VAT rates of "
                f"{', '.join(sorted(STANDARD_RATES))} are known here."
            )
        if not details.is_business:
            advice.append("who sells is a business: business = true was expected.")
        if not (details.contact_name and details.contact_phone and details.contact_email):
            advice.append("clients that take XRechnung need contact-name, contact-phone and contact-email.")
        if not details.registration_number:
            advice.append("clients outside the EU can be invoiced only with your registration-number.")
        if not details.vat_id:
            advice.append("clients in other member states can be invoiced only with your vat-id (reverse charge).")
    if purpose is Purpose.BE_INVOICED:
        if details.is_business and not details.vat_id and details.country in MEMBER_STATES:
            advice.append("providers in other member states cannot invoice you without your vat-id (reverse charge).")
        if not details.is_business:
            advice.append("consumers are invoiced by providers of their own country alone.")
        if details.profile == Profile.XRECHNUNG.value and not details.buyer_reference:
            advice.append("XRechnung needs your buyer-reference, a Leitweg-ID.")
    return advice


def faults_against_card(details: BillingDetails, card: Card) -> list[FieldFault]:
    """Where the details name another company than the card that the operator signed."""
    return [
        FieldFault(field_name(name), said, f"the card says {carded!r}: they must agree.")
        for name, said, carded in (
            ("legal_name", details.legal_name, card.legal_name),
            ("vat_id", details.vat_id, card.vat_id),
            ("country", details.country, card.country),
        )
        if said and carded and said != carded
    ]


def require(details: BillingDetails, purpose: Purpose, whose: str = "") -> None:
    """Raises UsageError, with the fields, unless the details are right and whole for the purpose.

    `whose`: left out, they are our own and the hint says where to write them.
    """
    missing = missing_for(details, purpose)
    faults = faults_of(details)
    if not missing and not faults:
        return
    said = [str(fault) for fault in faults] + ([f"missing: {', '.join(missing)}."] if missing else [])
    raise UsageError(
        f"the billing details{whose and f' of {whose}'} do not do to {_WORDS[purpose]}: {' '.join(said)}",
        hint="`p2pgrid billing set` writes them." if not whose else "Ask the other side to mend them.",
    )


def field_name(name: str) -> str:
    """A field of BillingDetails as config.toml writes it."""
    return _RENAMED.get(name, name.replace("_", "-"))


def party_of(details: BillingDetails) -> parties.Party:
    """As seller or buyer of an invoice."""
    d = details
    has_contact = bool(d.contact_name and d.contact_phone and d.contact_email)
    has_address = bool(d.electronic_address and d.electronic_scheme)
    return parties.Party(
        name=d.legal_name,
        address=parties.Address(
            line1=d.street,
            line2=d.street_more,
            city=d.city,
            post_code=d.post_code,
            country=d.country,
            subdivision=d.subdivision,
        ),
        vat_id=d.vat_id,
        tax_number=d.tax_number,
        registration=parties.Registration(number=d.registration_number, scheme=d.registration_scheme)
        if d.registration_number
        else None,
        electronic_address=parties.ElectronicAddress(scheme=d.electronic_scheme, address=d.electronic_address)
        if has_address
        else None,
        contact=parties.Contact(name=d.contact_name, phone=d.contact_phone, email=d.contact_email)
        if has_contact
        else None,
        is_business=d.is_business,
        is_small=d.is_small,
        buyer_reference=d.buyer_reference if d.by is Role.CLIENT else "",
    )


def bank_account_of(details: BillingDetails) -> parties.BankAccount | None:
    """Where an invoice says to pay; None without an IBAN."""
    if not details.iban:
        return None
    return parties.BankAccount(iban=details.iban, bic=details.bic, holder=details.account_holder or details.legal_name)


def payment_account_of(details: BillingDetails) -> orders.Account:
    """As payer or payee of a transfer. Raises UsageError (PaymentOrderError, NotAnAccount) for what no bank takes."""
    if not details.iban:
        raise UsageError(f"{details.legal_name!r} has given no IBAN.", hint="Set iban under [billing] on that node.")
    address = orders.Address(
        street=details.street, postcode=details.post_code, town=details.city, country=details.country
    )
    return orders.Account(
        name=details.account_holder or details.legal_name,
        iban=details.iban,
        bic=details.bic,
        address=address if details.city else None,
    )


_WORDS: Final = {
    Purpose.ISSUE: "issue invoices",
    Purpose.BE_INVOICED: "be invoiced",
    Purpose.PAY: "pay",
}


def _text_fault(name: str, value: str, most: int) -> FieldFault | None:
    try:
        clean = check_text(name, value, most=most, is_required=False)
    except InvoiceRefused as refused:
        return FieldFault(field_name(name), value[:40], refused.message.removeprefix(f"{name} "))
    if clean != value:
        return FieldFault(field_name(name), value[:40], "no blanks around it were expected, and Unicode's form NFC.")
    return None


def _code_faults(details: BillingDetails) -> Iterator[FieldFault]:
    if not re.fullmatch(r"[A-Z]{2}", details.country) and details.country:
        yield FieldFault("country", details.country, "two letters of ISO 3166 were expected, like LT.")
    if details.profile not in {profile.value for profile in Profile}:
        known = ", ".join(profile.value for profile in Profile)
        yield FieldFault("profile", details.profile[:40], f"one of {known} was expected.")
    for name in ("registration_scheme", "electronic_scheme"):
        value = getattr(details, name)
        if not _SCHEME.fullmatch(value):
            yield FieldFault(field_name(name), value, "a code of its list was expected, like 0191 or EM.")
    if bool(details.electronic_address) is not bool(details.electronic_scheme):
        yield FieldFault(
            "electronic-address", details.electronic_address[:40], "address and scheme go together: give both, or none."
        )


def _refusal(name: str, value: str, check: Callable[[], str]) -> Sequence[FieldFault]:
    try:
        clean = check()
    except UsageError as refused:  # InvoiceRefused, NotAnAccount
        return [FieldFault(field_name(name), value[:40], refused.message)]
    if clean != value:
        return [FieldFault(field_name(name), value[:40], f"its one form was expected, {clean}.")]
    return []
