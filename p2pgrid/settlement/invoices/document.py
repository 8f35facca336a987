"""An invoice or credit note: EN 16931's semantic model, as much of it as p2pgrid uses.

Field names are ours, the comments name the norm's business terms (BT) and groups (BG). Amounts are whole cents, rates
basis points, prices micro-EUR, dates the seller's calendar days. `make` makes these; nothing here computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Final

from p2pgrid.proto.statement import InvoiceType
from p2pgrid.settlement.invoices.parties import BankAccount, Party
from p2pgrid.settlement.invoices.profiles import Profile
from p2pgrid.settlement.invoices.vat import VatCategory, VatTreatment

UNIT: Final = "C62"
"""BT-130, BT-150: "one", of UN/ECE Recommendation 20. A token is a piece."""
SEPA_CREDIT_TRANSFER: Final = "58"
CLEARING: Final = "97"
"""Of UNTDID 4461: between partners, that is set off against other invoices or repaid on request."""


_SELF_BILLED: Final = frozenset({InvoiceType.SELF_BILLED_INVOICE, InvoiceType.SELF_BILLED_CREDIT_NOTE})


@dataclass(frozen=True, kw_only=True, slots=True)
class InvoiceLine:
    """BG-25."""

    number: int
    """BT-126, from 1."""
    name: str
    """BT-153."""
    group: str = ""
    """The model, where the line is for its tokens; lines of one model stand together on the page."""
    quantity: int
    """BT-129. Below zero on a credit note, for what the buyer owes all the same."""
    price_micro: int
    """BT-146, micro-EUR for `base_quantity`."""
    base_quantity: int
    """BT-149."""
    net_cents: int
    """BT-131."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Allowance:
    """BG-20: taken off the whole document."""

    reason: str
    """BT-97."""
    net_cents: int
    """BT-92."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """BG-22."""

    lines_cents: int
    """BT-106."""
    allowances_cents: int
    """BT-107."""
    net_cents: int
    """BT-109. It is also the taxable amount of the one VAT breakdown (BT-116)."""
    vat_cents: int
    """BT-110, BT-117."""
    gross_cents: int
    """BT-112."""
    paid_cents: int
    """BT-113."""
    due_cents: int
    """BT-115."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PaymentInstructions:
    """BG-16."""

    means_code: str
    """BT-81."""
    account: BankAccount | None = None
    reference: str = ""
    """BT-83: what the payer writes so that the payment is recognised."""
    terms: str
    """BT-20."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrecedingInvoice:
    """BG-3."""

    number: str
    issue_date: date


@dataclass(frozen=True, kw_only=True, slots=True)
class Attachment:
    """BT-125: a file inside the invoice."""

    filename: str
    mime: str
    content: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class SupportingDocument:
    """BG-24."""

    reference: str
    """BT-122."""
    description: str
    """BT-123."""
    attachment: Attachment | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TaxIds:
    """The tax numbers as a document may state them: BT-31, BT-32 and BT-48."""

    seller_vat_id: str
    seller_tax_number: str
    buyer_vat_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """An invoice or credit note."""

    profile: Profile
    type: InvoiceType
    """BT-3."""
    number: str
    """BT-1."""
    issue_date: date
    """BT-2."""
    due_date: date | None
    """BT-9. None on credit notes."""
    currency: str
    """BT-5."""
    buyer_reference: str
    """BT-10."""
    note: str
    """BT-22; empty where there is nothing to say."""
    period_first: date
    """BT-73."""
    period_last: date
    """BT-74. The day of supply: its rate holds."""
    seller: Party
    buyer: Party
    vat: VatTreatment
    lines: tuple[InvoiceLine, ...]
    allowances: tuple[Allowance, ...]
    totals: Totals
    payment: PaymentInstructions
    preceding: tuple[PrecedingInvoice, ...]
    supporting: tuple[SupportingDocument, ...]

    @property
    def is_credit_note(self) -> bool:
        return self.type.is_credit_note

    @property
    def is_self_billed(self) -> bool:
        """True where the buyer issues the document in the seller's name."""
        return self.type in _SELF_BILLED

    @property
    def signed_cents(self) -> tuple[int, int, int]:
        """Net, VAT and gross as the statement and the Invoice record have them: a credit note's below zero."""
        sign = -1 if self.is_credit_note else 1
        return sign * self.totals.net_cents, sign * self.totals.vat_cents, sign * self.totals.gross_cents

    @property
    def tax_ids(self) -> TaxIds:
        """What BT-31, BT-32 and BT-48 say.

        A document outside the scope of VAT may have none of the VAT identifiers (BR-O-02); what the law wants to read
        of the seller's stands as its tax registration then.
        """
        if self.vat.category is VatCategory.OUT_OF_SCOPE:
            return TaxIds(
                seller_vat_id="", seller_tax_number=self.seller.vat_id or self.seller.tax_number, buyer_vat_id=""
            )
        return TaxIds(
            seller_vat_id=self.seller.vat_id, seller_tax_number=self.seller.tax_number, buyer_vat_id=self.buyer.vat_id
        )

    @property
    def states_rate(self) -> bool:
        """True where lines and allowances carry a VAT rate: outside the scope of VAT they may not (BR-O-05, -06)."""
        return self.vat.category is not VatCategory.OUT_OF_SCOPE

    @property
    def sums_state_rate(self) -> bool:
        """True where the VAT breakdown carries a rate (BT-119); XRechnung wants it always (BR-DE-14)."""
        return self.states_rate or self.profile is Profile.XRECHNUNG

    @property
    def specification(self) -> str:
        """BT-24."""
        return self.profile.specification(is_self_billed=self.is_self_billed)

    @property
    def process(self) -> str:
        """BT-23."""
        return self.profile.process(is_self_billed=self.is_self_billed)
