"""What matching is given, and what it decides."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from p2pgrid.settlement.payments.entries import BookedEntry


class Kind(StrEnum):
    """What an entry is to us."""

    EXACT = "exact"
    """It pays one invoice, all that was open."""
    PART = "part"
    """It pays one invoice in part."""
    OVER = "over"
    """It pays one invoice and more; what is over stands on the debtor's account."""
    COMBINED = "combined"
    """It pays several invoices."""
    PREPAYMENT = "prepayment"
    """Money ahead, by a channel's reference."""
    RETURNED = "returned"
    """It undoes an earlier entry."""
    REFUND = "refund"
    """We paid back: what a credit note says, or what stood on a debtor's account."""
    DUPLICATE = "duplicate"
    """It was booked already."""
    AMBIGUOUS = "ambiguous"
    """It has to do with us, and a person must say how."""
    FOREIGN_CURRENCY = "foreign-currency"
    """Not in the invoices' currency: refused."""
    UNRELATED = "unrelated"
    """Rent, fees, other customers: nothing of ours."""


BOOKED_KINDS: Final = frozenset(
    {Kind.EXACT, Kind.PART, Kind.OVER, Kind.COMBINED, Kind.PREPAYMENT, Kind.RETURNED, Kind.REFUND}
)


class Evidence(StrEnum):
    """What tells which invoice is meant, from the strongest to the weakest."""

    REFERENCE = "reference"
    CUT_REFERENCE = "cut-reference"
    MISTYPED_REFERENCE = "mistyped-reference"
    INVOICE_NUMBER = "invoice-number"
    AMOUNT_AND_DEBTOR = "amount-and-debtor"
    EARLIER_ENTRY = "earlier-entry"
    PERSON = "person"
    NONE = "none"


class Finding(StrEnum):
    """What an accountant should know besides."""

    REUSED_REFERENCE = "reused-reference"
    """The reference is that of an invoice which is paid already."""
    UNKNOWN_REFERENCE = "unknown-reference"
    """A well-formed reference of ours that belongs to none of the invoices."""
    OTHER_PAYER = "other-payer"
    """The money came from an account that is not the debtor's."""
    LOOKS_BOOKED = "looks-booked"
    """It may be an entry that was booked from another file which describes it otherwise."""
    NAMES_MORE = "names-more"
    """Reference and text name different invoices."""


@dataclass(frozen=True, kw_only=True)
class OpenInvoice:
    """An invoice or credit note, open or lately settled, with what was booked for it so far."""

    number: str
    reference: str
    """The end-to-end reference of its statement, in its one form. Several documents of one statement share it."""
    gross_cents: int
    """Above zero, owed to us; below, what we owe: our credit note, or an invoice that we got."""
    paid_cents: int = 0
    """Of the same sign, unless more was taken back than came."""
    currency: str = "EUR"
    debtor_name: str = ""
    """The other side's name."""
    debtor_ibans: tuple[str, ...] = ()
    """Accounts that the other side is known to use."""
    is_purchase: bool = False
    """An invoice that we got and pay."""

    @property
    def open_cents(self) -> int:
        return self.gross_cents - self.paid_cents


@dataclass(frozen=True, kw_only=True)
class PrepaidAccount:
    """A channel on which money may be paid ahead."""

    name: str
    """How it is called in decisions: the channel's id, or whatever the caller knows it by."""
    reference: str
    """`make_reference` of the channel's id."""
    debtor_name: str = ""
    debtor_ibans: tuple[str, ...] = ()


@dataclass(frozen=True)
class Booking:
    """So much of an entry for one invoice. Below zero, money that went out."""

    invoice_number: str
    amount_cents: int


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What one entry is, and why. A booked one accounts for every cent of its entry, or cannot be made."""

    entry: BookedEntry
    kind: Kind
    reason: str
    """One sentence, for the accountant."""
    evidence: Evidence = Evidence.NONE
    bookings: tuple[Booking, ...] = ()
    on_account_cents: int = 0
    """What belongs to no invoice: above zero, money that the other side has with us now."""
    on_account_of: str = ""
    """The invoice number or prepaid account by which that other side is known."""
    undoes: str = ""
    """The key of the earlier entry that a return undoes."""
    candidates: tuple[str, ...] = ()
    """Of an ambiguous one: the invoices it may be for."""
    findings: tuple[Finding, ...] = ()

    def __post_init__(self) -> None:
        told = sum(booking.amount_cents for booking in self.bookings) + self.on_account_cents
        expected = self.entry.amount_cents if self.is_booked else 0
        if told != expected:
            raise ValueError(f"a decision accounts for {told} of {expected} cents")

    @property
    def is_booked(self) -> bool:
        """True if it is to be booked. Keep these for ever: they are what keeps an entry from being booked twice."""
        return self.kind in BOOKED_KINDS

    @property
    def names(self) -> tuple[str, ...]:
        """The invoices it has to do with, and the account."""
        on_account = (self.on_account_of,) if self.on_account_of else ()
        return (*(booking.invoice_number for booking in self.bookings), *on_account, *self.candidates)
