"""Payments to be made: what is ordered, from which account, on which day.

An order is checked when it is made, so that a file is never half written for want of a town. Its `key` names it for
good: the same invoice paid to the same account has the same key, on every machine and in every run, whatever is open
of it by then.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import date
from typing import Final

from p2pgrid.settlement.payments.accounts import checked_bic, checked_iban, checked_sepa_iban, is_in_eea
from p2pgrid.settlement.payments.latin import is_sepa_identifier, to_sepa_latin
from p2pgrid.settlement.payments.reference import is_creditor_reference
from p2pgrid.settlement.payments.refusals import PaymentOrderError
from p2pgrid.units import format_cents

MAX_NAME_CHARS: Final = 70
MAX_REMITTANCE_CHARS: Final = 140
MAX_ORDER_CENTS: Final = 99_999_999_999
"""999 999 999.99 EUR: SEPA's most for one transfer (EPC125-05, AT-T002)."""
MAX_ORDERS: Final = 10_000

_KEY_CHARS: Final = 26


@dataclass(frozen=True, kw_only=True)
class Address:
    """A structured postal address. Town and country are needed wherever there is an address at all."""

    street: str = ""
    building: str = ""
    postcode: str = ""
    town: str
    country: str
    """ISO 3166, two letters."""

    def __post_init__(self) -> None:
        _fits("street", self.street, MAX_NAME_CHARS, is_needed=False)
        _fits("building number", self.building, 16, is_needed=False)
        _fits("postcode", self.postcode, 16, is_needed=False)
        _fits("town", self.town, 35)
        if not (
            len(self.country) == 2 and self.country.isascii() and self.country.isalpha() and self.country.isupper()
        ):
            raise PaymentOrderError(
                f"the country {self.country!r} is no ISO 3166 code.", hint='Write two capital letters, like "LT".'
            )


@dataclass(frozen=True, kw_only=True)
class Account:
    """Who pays or is paid, and where."""

    name: str
    iban: str
    """In any form; kept in its one form."""
    bic: str = ""
    """Not needed within SEPA."""
    address: Address | None = None

    def __post_init__(self) -> None:
        _fits("name", self.name, MAX_NAME_CHARS)
        object.__setattr__(self, "iban", checked_iban(self.iban))
        if self.bic:
            object.__setattr__(self, "bic", checked_bic(self.bic))


@dataclass(frozen=True, kw_only=True)
class PaymentOrder:
    """One transfer in euros. Remittance text or a creditor reference is carried to the payee: one of the two.

    Raises PaymentOrderError or NotAnAccount for what no bank would take.
    """

    payee: Account
    amount_cents: int
    end_to_end_id: str
    """The invoice's end-to-end reference (`reference.make_reference`)."""
    remittance_text: str = ""
    """For people: the invoice's number, and its RF reference. At most 140 characters once written in Latin."""
    creditor_reference: str = ""
    """ISO 11649 (RF), as structured remittance. It leaves no room for the invoice's number: SEPA takes one or the
    other."""
    attempt: int = 1
    """Which payment for this reference this is: 2 after the first was returned, or for the second part of a sum."""

    def __post_init__(self) -> None:
        if not 0 < self.amount_cents <= MAX_ORDER_CENTS:
            raise PaymentOrderError(
                f"a payment of {format_cents(self.amount_cents)} EUR cannot be ordered.",
                hint=f"SEPA takes 0.01 to {format_cents(MAX_ORDER_CENTS)}.",
            )
        if not is_sepa_identifier(self.end_to_end_id):
            raise PaymentOrderError(f"{self.end_to_end_id!r} cannot be an end-to-end reference.")
        if bool(self.remittance_text) == bool(self.creditor_reference):
            raise PaymentOrderError("an order has a remittance text or a creditor reference: one of them, not both.")
        if self.remittance_text:
            _fits("remittance text", self.remittance_text, MAX_REMITTANCE_CHARS)
        elif not is_creditor_reference(self.creditor_reference):
            raise PaymentOrderError(f"{self.creditor_reference!r} is no RF reference with right check digits.")
        if self.attempt < 1:
            raise PaymentOrderError(f"attempt {self.attempt} is none; the first is 1.")

    @property
    def key(self) -> str:
        """26 characters that name this transfer: its InstrId, and what says that it was already ordered.

        The amount is not in it: an invoice of which a cent less is open by now is still paid once.
        """
        return short_hash("p2pgrid order", self.payee.iban, self.end_to_end_id, str(self.attempt))


@dataclass(frozen=True, kw_only=True)
class PaymentBatch:
    """Orders that one file carries. Made by `make_batch`."""

    payer: Account
    orders: tuple[PaymentOrder, ...]
    """Sorted by their keys."""
    execution_date: date
    instant: bool = False
    """SEPA Instant (on the payee's account within ten seconds), where both banks offer it."""

    @property
    def message_id(self) -> str:
        """27 characters that the batch's content gives: the same orders written again have the same message id.

        The execution date is not in it: a file that was written again for another day is still the same payments.
        """
        content = (part for order in self.orders for part in (order.key, str(order.amount_cents)))
        return "P" + short_hash("p2pgrid batch", self.payer.iban, *content)

    @property
    def total_cents(self) -> int:
        return sum(order.amount_cents for order in self.orders)


def make_batch(
    payer: Account,
    orders: Iterable[PaymentOrder],
    *,
    execution_date: date,
    instant: bool = False,
    already_ordered: Collection[str] = (),
    is_sepa: bool = True,
) -> PaymentBatch:
    """Put orders together. `already_ordered` has the keys of all orders that were ever written to a file and were
    not returned; the caller keeps them, and adds this batch's before the file leaves its hands. `is_sepa`: a person who
    makes the transfers by hand (False) may reach accounts that SEPA does not.

    Raises PaymentOrderError for no orders or too many, for one that is there twice or was ordered before, for an
    account that SEPA does not reach, and where the payer's address or the payee's BIC is needed and missing.
    """
    chosen = sorted(orders, key=lambda order: order.key)
    if not 0 < len(chosen) <= MAX_ORDERS:
        raise PaymentOrderError(f"a batch of {len(chosen)} payments cannot be written.", hint=f"1 to {MAX_ORDERS}.")
    _refuse_repeats(chosen, already_ordered)
    if is_sepa:
        checked_sepa_iban(payer.iban)
    for order in chosen:
        if order.payee.iban == payer.iban:
            raise PaymentOrderError(f"{order.payee.name} is to be paid to the account that pays: {payer.iban}.")
        if is_sepa:
            checked_sepa_iban(order.payee.iban)
        if is_sepa and not (is_in_eea(order.payee.iban) and is_in_eea(payer.iban)):
            _refuse_bare(payer, order.payee)
    return PaymentBatch(payer=payer, orders=tuple(chosen), execution_date=execution_date, instant=instant)


def short_hash(*parts: str) -> str:
    """26 letters and digits (130 bits of SHA-256) for these parts, each with its length so that none runs into the
    next."""
    joined = b"".join(len(part.encode()).to_bytes(4) + part.encode() for part in parts)
    return base64.b32encode(hashlib.sha256(joined).digest()).decode()[:_KEY_CHARS]


def _refuse_repeats(orders: list[PaymentOrder], already_ordered: Collection[str]) -> None:
    known = set(already_ordered)
    for order in orders:
        if order.key in known:
            raise PaymentOrderError(
                f"{format_cents(order.amount_cents)} EUR to {order.payee.name} with reference {order.end_to_end_id}: "
                f"attempt {order.attempt} was ordered already, of this amount or another.",
                hint="If it was returned, or this is a further part, raise its `attempt`.",
            )
        known.add(order.key)


def _refuse_bare(payer: Account, payee: Account) -> None:
    """Beyond the EEA an IBAN alone is not enough (EPC153-22; Regulation (EU) 260/2012 holds within it)."""
    if payer.address is None:
        raise PaymentOrderError(
            f"the payment to {payee.name} leaves the EEA, and needs your address.",
            hint="Give your town and country at least.",
        )
    if not payee.bic and not is_in_eea(payee.iban):
        raise PaymentOrderError(
            f"the payment to {payee.name} leaves the EEA, and needs the BIC of the bank of {payee.iban}."
        )


def _fits(what: str, text: str, most: int, *, is_needed: bool = True) -> None:
    latin = to_sepa_latin(text)
    if is_needed and not latin:
        raise PaymentOrderError(f"the {what} {text!r} is empty in the letters that banks take.")
    if len(latin) > most:
        raise PaymentOrderError(
            f"the {what} {text[:40]!r}... has {len(latin)} characters in the letters that banks take.",
            hint=f"At most {most}; shorten it.",
        )
