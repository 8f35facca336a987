"""Who is on an invoice, and where money goes. EN 16931's business groups BG-4 to BG-9 and BG-17."""

from __future__ import annotations

from dataclasses import dataclass

from p2pgrid.settlement.invoices.vat import TaxParty


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """BG-5, BG-8. SEPA takes structured addresses only, so street, town and postal code stand apart."""

    line1: str
    line2: str = ""
    city: str
    post_code: str
    country: str
    """ISO 3166, two letters."""
    subdivision: str = ""
    """A province or county (BT-39, BT-54); Italian rules want it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contact:
    """BG-6, BG-9. XRechnung wants all three of the seller."""

    name: str
    phone: str
    email: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ElectronicAddress:
    """BT-34, BT-49: where e-invoices reach the party."""

    scheme: str
    """A code of the EAS list: "9937" (LT VAT), "0191" (EE registry code), "EM" (e-mail), ..."""
    address: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Registration:
    """BT-30, BT-47: the party in its commercial register."""

    number: str
    scheme: str = ""
    """A code of ISO 6523 ("0191", ...); empty where there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Party:
    """BG-4, BG-7."""

    name: str
    address: Address
    vat_id: str = ""
    tax_number: str = ""
    """BT-32: the national tax number. Small businesses without a VAT id need it."""
    registration: Registration | None = None
    electronic_address: ElectronicAddress | None = None
    contact: Contact | None = None
    is_business: bool = True
    is_small: bool = False
    """Exempt as a small business (sellers)."""
    buyer_reference: str = ""
    """BT-10: what a buyer wants to read on its invoices; a Leitweg-ID, a cost centre."""

    def taxed(self) -> TaxParty:
        """What VAT law asks about the party."""
        return TaxParty(
            country=self.address.country,
            vat_id=self.vat_id,
            tax_number=self.tax_number,
            is_business=self.is_business,
            is_small=self.is_small,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class BankAccount:
    """BG-17: the account a credit transfer goes to."""

    iban: str
    bic: str = ""
    holder: str = ""


_VAT_ADDRESS_SCHEMES = {"LT": "9937", "LV": "9939", "EE": "9931", "FI": "0213", "DE": "9930", "IT": "0211"}


def electronic_address_of(party: Party) -> ElectronicAddress | None:
    """The party's electronic address: the one it gave, else its VAT id where the EAS list has a code for those."""
    if party.electronic_address is not None:
        return party.electronic_address
    scheme = _VAT_ADDRESS_SCHEMES.get(party.address.country)
    if scheme and party.vat_id:
        return ElectronicAddress(scheme=scheme, address=party.vat_id)
    return None
