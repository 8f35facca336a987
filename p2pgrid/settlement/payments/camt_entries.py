"""From <Ntry> and <TxDtls> to booked entries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final

from p2pgrid.settlement.payments.camt_fields import (
    Fields,
    amount_of,
    date_of,
    flag_of,
    iban_of,
    sign_of,
    status_of,
    texts_of,
)
from p2pgrid.settlement.payments.cents import format_cents
from p2pgrid.settlement.payments.entries import BookedEntry
from p2pgrid.settlement.payments.statements import PendingEntry

_RETURNED: Final = "RRTN"
"""Sub-family "reversal due to payment return" of the ISO bank transaction codes."""


@dataclass(frozen=True, slots=True)
class Transaction:
    """One <TxDtls>, or none of an entry without them."""

    fields: Fields
    amount_cents: int | None
    """Signed, in `currency`; None if the bank does not say."""
    currency: str
    bank_reference: str
    end_to_end_id: str
    other_id: str
    """UETR or TxId."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One <Ntry> with its transactions."""

    fields: Fields
    amount_cents: int
    """Signed as CdtDbtInd says."""
    currency: str
    status: str
    booking_date: date | None
    value_date: date | None
    is_reversal: bool
    bank_reference: str
    transactions: tuple[Transaction, ...]


def read_transaction(fields: Fields, entry_sign: int) -> Transaction:
    """The details' own amount, if they give one in any of the places where versions 2 and 8 have it."""
    own = fields.one("Amt") or fields.one("AmtDtls", "TxAmt", "Amt")
    cents, currency = amount_of(own) if own else (None, "")
    sign = sign_of(fields) if fields.one("CdtDbtInd") else entry_sign
    return Transaction(
        fields,
        None if cents is None else sign * cents,
        currency,
        fields.reference("Refs", "AcctSvcrRef"),
        fields.reference("Refs", "EndToEndId"),
        fields.reference("Refs", "UETR") or fields.reference("Refs", "TxId"),
    )


def read_entry(fields: Fields, details: Sequence[Fields]) -> Entry:
    """Raises BankFileError for what an entry must have and has not, or has and cannot be."""
    cents, currency = amount_of(fields.needed("Amt"))
    sign = sign_of(fields)
    status = status_of(fields)
    booking_date, value_date = date_of(fields, "BookgDt"), date_of(fields, "ValDt")
    if status == "BOOK" and booking_date is None and value_date is None:
        raise fields.refused("this <Ntry> is booked and has no <BookgDt>, which tells on which day")
    entry = Entry(
        fields,
        sign * cents,
        currency,
        status,
        booking_date,
        value_date,
        flag_of(fields, "RvslInd"),
        fields.reference("AcctSvcrRef"),
        tuple(read_transaction(one, sign) for one in details),
    )
    _check_batch(entry)
    return entry


def booked_entries(
    entry: Entry, *, account_iban: str, source_kind: str, statement_id: str, is_flipped: bool
) -> list[BookedEntry]:
    """One for each transaction, or one for all where the bank does not tell their amounts.

    `is_flipped`: this bank's CdtDbtInd names the direction of the entry that a reversal undoes.
    """
    sign = -1 if is_flipped and entry.is_reversal else 1
    day = entry.booking_date or entry.value_date
    assert day is not None, "read_entry refuses a booked entry without a day"
    made: list[BookedEntry] = []
    parts = entry.transactions if _has_parts(entry) else ()
    for transaction in parts or (None,):
        details = [transaction] if transaction else list(entry.transactions)
        cents = transaction.amount_cents if transaction and len(parts) > 1 else entry.amount_cents
        assert cents is not None, "a batch with parts has their amounts"
        lone = details[0] if len(details) == 1 else None
        reason = _first(details, ("RtrInf", "Rsn", "Cd"), ("RtrInf", "Rsn", "Prtry"))
        name, iban = _counterparty(lone, is_credit=cents > 0, own_iban=account_iban) if lone else ("", "")
        made.append(
            BookedEntry(
                account_iban=account_iban,
                source_kind=source_kind,
                statement_id=statement_id,
                line=(lone.fields if lone else entry.fields).node.line,
                amount_cents=sign * cents,
                currency=entry.currency,
                booking_date=day,
                value_date=entry.value_date,
                end_to_end_id=lone.end_to_end_id if lone else "",
                bank_reference=_bank_reference(entry, lone, n_parts=len(parts)),
                instruction_id=lone.fields.reference("Refs", "InstrId") if lone else "",
                structured_reference="\n".join(_structured(details)),
                remittance_text="\n".join(_remittance(entry, details)),
                counterparty_name=name,
                counterparty_iban=iban,
                return_reason=reason,
                is_return=bool(reason) or entry.is_reversal or _is_coded_return(entry, details),
                is_collective=len(details) > 1,
            )
        )
    return made


def pending_entry(entry: Entry) -> PendingEntry:
    """What is announced: for people to see, never to book."""
    first = entry.transactions[0] if entry.transactions else None
    name = _counterparty(first, is_credit=entry.amount_cents > 0, own_iban="")[0] if first else ""
    return PendingEntry(
        line=entry.fields.node.line,
        amount_cents=entry.amount_cents,
        currency=entry.currency,
        expected=entry.booking_date or entry.value_date,
        end_to_end_id=first.end_to_end_id if first else "",
        counterparty_name=name,
    )


def _has_parts(entry: Entry) -> bool:
    """True if each transaction is an entry of its own: one alone, or several whose amounts are told."""
    return len(entry.transactions) == 1 or all(
        one.amount_cents is not None and one.currency == entry.currency for one in entry.transactions
    )


def _check_batch(entry: Entry) -> None:
    """The parts of a batch make the whole, or the file contradicts itself."""
    if len(entry.transactions) < 2 or not _has_parts(entry):
        return
    total = sum(one.amount_cents or 0 for one in entry.transactions)
    if total != entry.amount_cents:
        raise entry.fields.refused(
            f"the {len(entry.transactions)} transactions of this <Ntry> come to {format_cents(total)}, and the entry "
            f"to {format_cents(entry.amount_cents)} {entry.currency}"
        )


def _bank_reference(entry: Entry, lone: Transaction | None, *, n_parts: int) -> str:
    """What identifies the movement at the bank (entries.py says in which order)."""
    if lone and lone.bank_reference and lone.bank_reference != entry.bank_reference:
        return lone.bank_reference
    if entry.bank_reference:
        end_to_end = lone.end_to_end_id if lone and n_parts > 1 else ""
        return f"{entry.bank_reference} {end_to_end}".strip()
    return lone.other_id if lone else ""


def _counterparty(details: Transaction, *, is_credit: bool, own_iban: str) -> tuple[str, str]:
    """Name and IBAN of the other side: who paid if money came in, who was paid if it went out.

    Of a return some banks name the parties as they stood in the transfer that is undone; then the side with our own
    account is not the other one.
    """
    parties = details.fields.one("RltdPties")
    if parties is None:
        return "", ""
    sides = [("Dbtr", "DbtrAcct"), ("Cdtr", "CdtrAcct")]
    for party, account in sides if is_credit else sides[::-1]:
        iban = iban_of(parties, account)
        if iban and iban == own_iban:
            continue
        return parties.first_text((party, "Pty", "Nm"), (party, "Nm")), iban
    return "", ""


def _remittance(entry: Entry, details: Sequence[Transaction]) -> list[str]:
    texts: list[str] = []
    for one in details:
        texts += texts_of(one.fields, "RmtInf", "Ustrd")
        texts += texts_of(one.fields, "RmtInf", "Strd", "AddtlRmtInf")
        texts += texts_of(one.fields, "RmtInf", "Strd", "RfrdDocInf", "Nb")
        texts += texts_of(one.fields, "AddtlTxInf")
        if len(details) > 1:
            texts += texts_of(one.fields, "Refs", "EndToEndId")
    return texts or list(texts_of(entry.fields, "AddtlNtryInf"))


def _structured(details: Sequence[Transaction]) -> list[str]:
    return [text for one in details for text in texts_of(one.fields, "RmtInf", "Strd", "CdtrRefInf", "Ref")]


def _first(details: Sequence[Transaction], *paths: tuple[str, ...]) -> str:
    return next(filter(None, (one.fields.first_text(*paths) for one in details)), "")


def _is_coded_return(entry: Entry, details: Sequence[Transaction]) -> bool:
    path = ("BkTxCd", "Domn", "Fmly", "SubFmlyCd")
    return _RETURNED in (entry.fields.text(*path), *(one.fields.text(*path) for one in details))
