"""Who is written on the invoices of a channel, and where money goes (docs/spec/messages.md, section 7).

Each party signs its own and gives it to the other over their link. It is no evidence: no bundle, log or audit has it,
so that an address and an account stay between the two.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from msgspec import Meta

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.fields import CountryCode, Key, Number, ShortText, TimeMs
from p2pgrid.proto.record import PARTIES, Message, Role

Line = Annotated[str, Meta(max_length=140)]
Code = Annotated[str, Meta(max_length=35)]


class BillingDetails(Message, frozen=True, kw_only=True):
    """One party of a channel as its invoices have it (EN 16931, BG-4, BG-7, BG-17). Signed by that party."""

    payload_type: ClassVar[str] = "/p2pgrid/billing-details/1"
    max_payload_bytes: ClassVar[int] = 8 * 1024

    party: Key
    by: Role
    """As what the party signs: provider or client."""
    sequence: Number
    """The highest counts."""
    stated_ms: TimeMs
    legal_name: Annotated[str, Meta(min_length=1, max_length=140)]
    street: Line
    street_more: Line = ""
    city: Line
    post_code: Code
    country: CountryCode
    subdivision: Line = ""
    """A province (BT-39, BT-54)."""
    vat_id: Code = ""
    tax_number: Code = ""
    registration_number: Code = ""
    registration_scheme: Code = ""
    """ISO 6523."""
    electronic_address: ShortText = ""
    """BT-34, BT-49: where e-invoices reach the party; empty: its VAT id's."""
    electronic_scheme: Code = ""
    contact_name: Line = ""
    contact_phone: Code = ""
    contact_email: ShortText = ""
    is_business: bool = True
    is_small: bool = False
    """Exempt from VAT as a small business (providers)."""
    iban: Annotated[str, Meta(max_length=34)] = ""
    """Without blanks. A provider is paid there; a client is paid back there."""
    bic: Annotated[str, Meta(max_length=11)] = ""
    account_holder: Line = ""
    buyer_reference: Line = ""
    """BT-10: what a client wants to read on its invoices."""
    profile: Annotated[str, Meta(max_length=32)] = "en16931"
    """The form of e-invoice that a client takes: en16931, xrechnung, peppol."""
    self_billing_agreed: bool = False
    """Both agreed that the client writes the invoices: so it is where both sides say so."""

    def check(self) -> None:
        if self.by not in PARTIES:
            raise InvalidRecord("out-of-range", "billing details are a provider's or a client's.")
