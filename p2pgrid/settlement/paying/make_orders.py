"""From what is to be paid to orders that a bank takes, and to the rows that remember them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date
from typing import Final

import msgspec

from p2pgrid.errors import UsageError
from p2pgrid.proto.billing_details import BillingDetails
from p2pgrid.settlement.bank.stored import StoredBooking, Target
from p2pgrid.settlement.bank.view import Side
from p2pgrid.settlement.details import AccountChange
from p2pgrid.settlement.open_items import AHEAD
from p2pgrid.settlement.paying.orders_book import Ordered, Purpose
from p2pgrid.settlement.paying.plan import Due, arrivals
from p2pgrid.settlement.payments.latin import to_sepa_latin
from p2pgrid.settlement.payments.orders import (
    MAX_REMITTANCE_CHARS,
    Account,
    Address,
    PaymentBatch,
    PaymentOrder,
    make_batch,
)
from p2pgrid.settlement.payments.reference import creditor_reference_of, make_reference

_MOST_OF_A_NUMBER: Final = 64


def account_of(details: BillingDetails) -> Account:
    """As payer or payee. Raises UsageError (PaymentOrderError, NotAnAccount) for what no bank takes."""
    if not details.iban:
        raise UsageError(f"{details.legal_name!r} has given no IBAN.", hint="It belongs under [billing] of that node.")
    address = None
    if details.city:
        address = Address(street=details.street, postcode=details.post_code, town=details.city, country=details.country)
    name = details.account_holder or details.legal_name
    return Account(name=name, iban=details.iban, bic=details.bic, address=address)


def invoice_order(due: Due, payee: Account, before: Sequence[Ordered]) -> tuple[PaymentOrder, Ordered]:
    """The transfer for what is to be paid of one statement. `before`: every order that ever was."""
    shares = [StoredBooking.of(Target(due.side.id, item.place, is_purchase=True), cents) for item, cents in due.items]
    reference = make_reference(due.statement_id)
    return _order(Purpose.INVOICES, due.side, payee, reference, _text(due.numbers, reference), shares, before)


def ahead_order(side: Side, payee: Account, cents: int, before: Sequence[Ordered]) -> tuple[PaymentOrder, Ordered]:
    """The transfer of money ahead on a channel."""
    reference = make_reference(side.id)
    shares = [StoredBooking.of(Target(side.id, AHEAD, is_purchase=True), cents)]
    return _order(Purpose.AHEAD, side, payee, reference, _text(("Prepayment",), reference), shares, before)


def refund_order(
    side: Side, payee: Account, target: Target, cents: int, before: Sequence[Ordered]
) -> tuple[PaymentOrder, Ordered]:
    """The transfer that pays back a credit note, or what is paid ahead."""
    reference = make_reference(target.place[0] or side.id)
    text = _text(("Refund", target.number) if target.number else ("Refund",), reference)
    return _order(Purpose.REFUND, side, payee, reference, text, [StoredBooking.of(target, cents)], before)


def batch_of(
    payer: Account,
    made: Iterable[tuple[PaymentOrder, Ordered]],
    before: Iterable[Ordered],
    *,
    execution_date: date,
    instant: bool,
    is_sepa: bool,
    now_ms: int,
) -> tuple[PaymentBatch, list[Ordered]]:
    """The batch, and its rows with its message id. `is_sepa`: as of `make_batch`. Raises PaymentOrderError."""
    pairs = list(made)
    known = [one.key for one in before]
    batch = make_batch(
        payer,
        [order for order, _ in pairs],
        execution_date=execution_date,
        instant=instant,
        already_ordered=known,
        is_sepa=is_sepa,
    )
    rows = [msgspec.structs.replace(row, message_id=batch.message_id, ordered_ms=now_ms) for _, row in pairs]
    return batch, rows


def account_that_changed(
    payee: Account, known: str | None, change: AccountChange | None, confirmed: str | None, whose: str
) -> None:
    """Refuse to pay to another account than the last time, or than was named before the first time, unless a person
    has said that the new one is right (`change`), or names it now (`confirmed`). Raises UsageError."""
    if payee.iban in (known, confirmed):
        return
    if change is not None and change.iban_now == payee.iban:
        if change.is_confirmed:
            return
        before = f"was paid to {known}" if known is not None else f"named {change.iban_before}"
    elif known is not None:
        before = f"was paid to {known}"
    else:
        return
    raise UsageError(
        f"{payee.name} ({whose}) {before} before, and its billing details now say {payee.iban}.",
        hint=f"Ask them, by a number that you had before, then: --confirm-account {payee.iban}"
        + (f", or `p2pgrid billing confirm {whose} {payee.iban}`." if change is not None else ""),
    )


def _order(
    purpose: Purpose,
    side: Side,
    payee: Account,
    reference: str,
    text: str,
    shares: Sequence[StoredBooking],
    before: Sequence[Ordered],
) -> tuple[PaymentOrder, Ordered]:
    attempts = [one.attempt for one in before if one.end_to_end_id == reference]
    place = shares[0].target.place
    order = PaymentOrder(
        payee=payee,
        amount_cents=sum(share.cents for share in shares),
        end_to_end_id=reference,
        remittance_text=text,
        attempt=max(attempts, default=0) + 1,
    )
    row = Ordered(
        key=order.key,
        message_id="",
        purpose=purpose,
        peer=side.peer_id,
        payee=payee.name,
        iban=payee.iban,
        amount_cents=order.amount_cents,
        end_to_end_id=reference,
        attempt=order.attempt,
        shares=tuple(shares),
        arrived_before_cents=arrivals(side, (place[0],))[place[0]],
        ordered_ms=0,
    )
    return order, row


def _text(words: Sequence[str], reference: str) -> str:
    """What people and machines find the invoice by. Too many numbers, and the reference alone must do."""
    rf = creditor_reference_of(reference)
    text = " ".join((*words, rf))
    if len(to_sepa_latin(text)) <= MAX_REMITTANCE_CHARS:
        return text
    return f"{to_sepa_latin(words[0])[:_MOST_OF_A_NUMBER]} {rf}"
