"""From a statement's numbers to a document whose totals add up.

The sums are the statement's own (`p2pgrid.proto.invoice_sums`), so the document comes to what both sides signed. Where
they are below zero the document is a credit note: every sign is turned, what is credited stands first, and the usage
is taken off as lines with quantities below zero, for the norm knows no price and no credit note below zero.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final

from p2pgrid.proto.invoice_sums import Component, ComponentKind, allowance_of, cents_of, vat_of
from p2pgrid.proto.statement import InvoiceType, StatementLine
from p2pgrid.proto.statement_rules import components_of
from p2pgrid.settlement.invoices.checks import check_account, check_attachment, check_parties
from p2pgrid.settlement.invoices.document import (
    CLEARING,
    SEPA_CREDIT_TRANSFER,
    Allowance,
    Attachment,
    Document,
    InvoiceLine,
    PaymentInstructions,
    PrecedingInvoice,
    SupportingDocument,
    Totals,
)
from p2pgrid.settlement.invoices.parties import BankAccount, Party
from p2pgrid.settlement.invoices.profile_checks import check_profile
from p2pgrid.settlement.invoices.profiles import Profile
from p2pgrid.settlement.invoices.refused import InvoiceRefused
from p2pgrid.settlement.invoices.texts import check_text
from p2pgrid.settlement.invoices.vat import VatCategory, VatTreatment, vat_treatment
from p2pgrid.settlement.invoices.vat_rates import SELF_BILLING_WORDS, rate_changes

BASE_TOKENS: Final = 1_000_000
"""BT-149: prices are for a million tokens."""
CREDITS: Final = "Credit for accepted disputes"
HELD: Final = "Held back for open disputes"
RELEASED: Final = "No longer held back, of earlier periods"
NAMES: Final = {
    ComponentKind.UNCACHED_INPUT: "input tokens",
    ComponentKind.CACHED_INPUT: "cached input tokens",
    ComponentKind.OUTPUT: "output tokens",
    ComponentKind.DIFFERENCE: "difference between receipts and tokens",
}
CREDIT_TERMS: Final = "Set off against your invoices, or repaid on request."
PAID_TERMS: Final = "Nothing is left to pay."
STATEMENT: Final = "Statement of usage signed by both parties; the reference is its SHA-256"
_NUMBER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ./_-]{0,63}")
_REFERENCE: Final = re.compile(r"[A-Za-z0-9/?:().,'+ -]{1,35}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """What a document says beside its amounts."""

    number: str
    """BT-1, of the issuer's own sequence. Letters, digits and . / _ - or blanks, at most 64."""
    issue_date: date
    due_date: date | None = None
    """Needed where anything is to be paid."""
    period_first: date
    period_last: date
    seller: Party
    buyer: Party
    statement_sha256: bytes
    statement_file: Attachment | None = None
    """The statement itself, to be put into the document: PDF, PNG, JPEG, CSV, XLSX or ODS."""
    account: BankAccount | None = None
    """Where the payer sends money: the seller's, or on a credit note the buyer's if it is repaid at once."""
    reference: str = ""
    """BT-83: the end-to-end reference that the payer is to use; at most 35 characters that SEPA takes."""
    profile: Profile = Profile.EN16931
    is_self_billed: bool = False
    """The buyer issues the document in the seller's name; only where both have agreed to it."""
    self_billing_agreed: bool = False
    preceding: tuple[PrecedingInvoice, ...] = ()
    """Earlier invoices; a credit note names at least one."""
    note: str = ""


def make_document(
    head: Head,
    lines: Sequence[StatementLine],
    *,
    credits_pico: int = 0,
    held_pico: int = 0,
    held_before_pico: int = 0,
    paid_cents: int = 0,
) -> Document:
    """The invoice or credit note of a statement.

    `credits_pico` is what accepted disputes take off, `held_pico` what open ones hold back in all, `held_before_pico`
    that of the statement before; `paid_cents` what was paid ahead. Raises InvoiceRefused; its `code` says why.
    """
    vat = treatment_of(head)
    credited = cents_of(credits_pico)
    held = allowance_of(credits_pico=0, held_pico=held_pico, held_before_pico=held_before_pico)
    usage = _usage(lines)
    if min(credits_pico, held_pico, held_before_pico) < 0 or not (usage or credited or held):
        raise InvoiceRefused("nothing-to-invoice", "there are neither tokens nor credits to write a document about.")
    off = [(CREDITS, credited), (HELD, max(held, 0))]
    back = [_whole(RELEASED, -held)] if held < 0 else []
    if sum(line.net_cents for line in (*usage, *back)) >= credited + max(held, 0):
        allowances = tuple(Allowance(reason=reason, net_cents=cents) for reason, cents in off if cents)
        return _assembled(head, vat, (*usage, *back), allowances, is_credit_note=False, paid_cents=paid_cents)
    turned = [dataclasses.replace(line, quantity=-line.quantity, net_cents=-line.net_cents) for line in (*usage, *back)]
    credit = [_whole(reason, cents) for reason, cents in off if cents]
    return _assembled(head, vat, (*credit, *turned), (), is_credit_note=True, paid_cents=paid_cents)


def _usage(lines: Sequence[StatementLine]) -> list[InvoiceLine]:
    return [
        _line(line.model, component)
        for line in lines
        for component in components_of(line)
        if component.tokens or component.net_cents
    ]


def _line(model: str, component: Component) -> InvoiceLine:
    name = check_text("a line's name", f"{model}, {NAMES[component.kind]}")
    if component.kind is ComponentKind.DIFFERENCE:
        return dataclasses.replace(_whole(name, component.net_cents), group=model)
    return InvoiceLine(
        number=0,
        name=name,
        group=model,
        quantity=component.tokens,
        price_micro=component.price_upm,
        base_quantity=BASE_TOKENS,
        net_cents=component.net_cents,
    )


def _whole(name: str, cents: int) -> InvoiceLine:
    """An amount that is for no tokens: one, or less one, at its whole price."""
    return InvoiceLine(
        number=0,
        name=name,
        quantity=-1 if cents < 0 else 1,
        price_micro=abs(cents) * 10_000,
        base_quantity=1,
        net_cents=cents,
    )


def make_cancellation(
    invoice: Document, *, number: str, issue_date: date, account: BankAccount | None = None
) -> Document:
    """The credit note that takes back a whole invoice: its lines, its VAT, its total.

    Raises InvoiceRefused (`cancel`) for what is a credit note itself, or has a later date.
    """
    if invoice.is_credit_note or issue_date < invoice.issue_date:
        raise InvoiceRefused(
            "cancel", f"{invoice.number} cannot be taken back: it is a credit note, or of a later day."
        )
    kind = InvoiceType.SELF_BILLED_CREDIT_NOTE if invoice.is_self_billed else InvoiceType.CREDIT_NOTE
    made = dataclasses.replace(
        invoice,
        type=kind,
        number=_checked_number(number),
        issue_date=issue_date,
        due_date=None,
        totals=dataclasses.replace(invoice.totals, paid_cents=0, due_cents=invoice.totals.gross_cents),
        payment=_payment(account, "", CREDIT_TERMS, is_credit_note=True),
        preceding=(PrecedingInvoice(number=invoice.number, issue_date=invoice.issue_date),),
    )
    check_profile(made)
    return made


def treatment_of(head: Head) -> VatTreatment:
    """How the document will be taxed: at the law of the period's last day.

    Raises InvoiceRefused like `vat_treatment`, and `rate-changes` where the seller's rate changes inside the period:
    the statement has to be closed on the day before.
    """
    vat = vat_treatment(head.seller.taxed(), head.buyer.taxed(), head.period_last)
    if vat.category is VatCategory.STANDARD:
        changes = rate_changes(head.seller.address.country, head.period_first, head.period_last)
        if changes:
            raise InvoiceRefused(
                "rate-changes",
                f"the VAT rate of {head.seller.address.country} changes on {changes[0]}, inside the period.",
                hint="Close the statement on the day before, and begin a new one.",
            )
    return vat


def _assembled(
    head: Head,
    vat: VatTreatment,
    lines: tuple[InvoiceLine, ...],
    allowances: tuple[Allowance, ...],
    *,
    is_credit_note: bool,
    paid_cents: int,
) -> Document:
    lines_cents = sum(line.net_cents for line in lines)
    allowances_cents = sum(allowance.net_cents for allowance in allowances)
    net_cents = lines_cents - allowances_cents
    vat_cents = vat_of(net_cents, vat.rate_bp)
    due_cents = net_cents + vat_cents - paid_cents
    _check_dates(head, has_to_be_paid=due_cents > 0 and not is_credit_note)
    if paid_cents < 0 or due_cents < 0 or (is_credit_note and paid_cents):
        raise InvoiceRefused(
            "paid", f"{paid_cents} cents paid ahead do not fit a document of {net_cents + vat_cents} cents."
        )
    if is_credit_note and not head.preceding:
        raise InvoiceRefused(
            "preceding",
            "a credit note names the invoices that it corrects (Directive 2006/112/EC, Article 219).",
            hint="Give at least one preceding invoice.",
        )
    seller, buyer = check_parties(head.seller, head.buyer, vat)
    document = Document(
        profile=head.profile,
        type=_type_of(head, is_credit_note=is_credit_note),
        number=_checked_number(head.number),
        issue_date=head.issue_date,
        due_date=None if is_credit_note else head.due_date,
        currency="EUR",
        buyer_reference=buyer.buyer_reference,
        note=_note(head, vat),
        period_first=head.period_first,
        period_last=head.period_last,
        seller=seller,
        buyer=buyer,
        vat=vat,
        lines=tuple(dataclasses.replace(line, number=number) for number, line in enumerate(lines, start=1)),
        allowances=allowances,
        totals=Totals(
            lines_cents=lines_cents,
            allowances_cents=allowances_cents,
            net_cents=net_cents,
            vat_cents=vat_cents,
            gross_cents=net_cents + vat_cents,
            paid_cents=paid_cents,
            due_cents=due_cents,
        ),
        payment=_payment(
            head.account,
            head.reference,
            _terms(head.due_date, is_credit_note=is_credit_note, due_cents=due_cents),
            is_credit_note=is_credit_note,
        ),
        preceding=tuple(
            dataclasses.replace(earlier, number=_checked_number(earlier.number)) for earlier in head.preceding
        ),
        supporting=(_statement(head),),
    )
    check_profile(document)
    return document


def _type_of(head: Head, *, is_credit_note: bool) -> InvoiceType:
    if head.is_self_billed and not head.self_billing_agreed:
        raise InvoiceRefused(
            "self-billing",
            "a buyer issues invoices in the seller's name only where both have agreed (Directive 2006/112/EC, "
            "Article 224).",
        )
    if is_credit_note:
        return InvoiceType.SELF_BILLED_CREDIT_NOTE if head.is_self_billed else InvoiceType.CREDIT_NOTE
    return InvoiceType.SELF_BILLED_INVOICE if head.is_self_billed else InvoiceType.INVOICE


def _note(head: Head, vat: VatTreatment) -> str:
    words = [vat.note]
    if head.is_self_billed:
        words.append(f"Self-billing / {SELF_BILLING_WORDS[head.seller.address.country]}")
    words.append(check_text("the note", head.note, most=500, is_required=False))
    return ". ".join(word for word in words if word)


def _terms(due_date: date | None, *, is_credit_note: bool, due_cents: int) -> str:
    if is_credit_note:
        return CREDIT_TERMS
    return f"Payable by {due_date} by SEPA credit transfer." if due_cents else PAID_TERMS


def _payment(account: BankAccount | None, reference: str, terms: str, *, is_credit_note: bool) -> PaymentInstructions:
    if reference and not _REFERENCE.fullmatch(reference):
        raise InvoiceRefused("reference", f"the reference {reference[:60]!r} is none that a SEPA transfer can carry.")
    if account is None and not is_credit_note:
        raise InvoiceRefused("account", "an invoice says where to pay: give the seller's IBAN.")
    return PaymentInstructions(
        means_code=CLEARING if account is None else SEPA_CREDIT_TRANSFER,
        account=None if account is None else check_account(account),
        reference=reference,
        terms=terms,
    )


def _statement(head: Head) -> SupportingDocument:
    if len(head.statement_sha256) != 32:
        raise InvoiceRefused("statement", "the statement's SHA-256 has 32 bytes.")
    if head.statement_file is not None:
        check_attachment(head.statement_file)
    return SupportingDocument(
        reference=head.statement_sha256.hex(), description=STATEMENT, attachment=head.statement_file
    )


def _checked_number(number: str) -> str:
    if not _NUMBER.fullmatch(number) or number != number.strip():
        raise InvoiceRefused(
            "number", f"{number[:70]!r} is no document number: letters, digits and . / _ - are allowed, at most 64."
        )
    return number


def _check_dates(head: Head, *, has_to_be_paid: bool) -> None:
    if head.period_first > head.period_last:
        raise InvoiceRefused("dates", f"the period ends ({head.period_last}) before it begins ({head.period_first}).")
    if head.issue_date < head.period_last:
        raise InvoiceRefused("dates", f"the document is dated {head.issue_date}, before the period's last day.")
    if head.due_date is None and has_to_be_paid:
        raise InvoiceRefused("dates", "an invoice that is to be paid needs a due date.")
    if head.due_date is not None and head.due_date < head.issue_date:
        raise InvoiceRefused("dates", f"the due date {head.due_date} lies before the document's, {head.issue_date}.")
