"""From <Ntry> and <TxDtls> to booked entries.

What is wanted of an element is taken as it ends, so that the elements themselves need not be kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Final

from p2pgrid.settlement.payments.camt_fields import (
    Fields,
    amount_of,
    count_of,
    date_of,
    flag_of,
    iban_of,
    sign_of,
    status_of,
    texts_of,
)
from p2pgrid.settlement.payments.entries import BookedEntry
from p2pgrid.settlement.payments.statements import PendingEntry
from p2pgrid.units import format_cents

_RETURNED: Final = "RRTN"
"""Sub-family "reversal due to payment return" of the ISO bank transaction codes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """One <TxDtls>."""

    line: int
    cents: int | None
    """None if the bank does not say. Above zero; `sign` tells the direction."""
    sign: int | None
    """None if it goes the entry's way."""
    currency: str
    bank_reference: str
    end_to_end_id: str
    instruction_id: str
    other_id: str
    """UETR or TxId."""
    has_uetr: bool
    debtor: tuple[str, str]
    """Name and IBAN, each empty if it is not told."""
    creditor: tuple[str, str]
    remittance: tuple[str, ...]
    structured: tuple[str, ...]
    return_reason: str
    is_coded_return: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One <Ntry>."""

    line: int
    amount_cents: int
    """Signed as CdtDbtInd says."""
    currency: str
    status: str
    booking_date: date | None
    value_date: date | None
    is_reversal: bool
    is_coded_return: bool
    bank_reference: str
    more_text: str
    transactions: tuple[Transaction, ...]
    is_batch: bool
    """The bank says that it is the sum of several transactions, whether it tells of them or not."""
    has_batch_reference: bool
    """The bank calls it a batch, if only of one: the reference is the batch's, not that of a transfer."""


def read_transaction(fields: Fields) -> Transaction:
    """Versions 2 and 8 have the amount in different places, and version 8 has parties one element deeper."""
    own = fields.one("Amt") or fields.one("AmtDtls", "TxAmt", "Amt")
    cents, currency = amount_of(own) if own else (None, "")
    uetr = fields.reference("Refs", "UETR")
    remittance = (
        *texts_of(fields, "RmtInf", "Ustrd"),
        *texts_of(fields, "RmtInf", "Strd", "AddtlRmtInf"),
        *texts_of(fields, "RmtInf", "Strd", "RfrdDocInf", "Nb"),
        *texts_of(fields, "AddtlTxInf"),
    )
    return Transaction(
        line=fields.node.line,
        cents=cents,
        sign=sign_of(fields) if fields.one("CdtDbtInd") else None,
        currency=currency,
        bank_reference=fields.reference("Refs", "AcctSvcrRef"),
        end_to_end_id=fields.reference("Refs", "EndToEndId"),
        instruction_id=fields.reference("Refs", "InstrId"),
        other_id=uetr or fields.reference("Refs", "TxId"),
        has_uetr=bool(uetr),
        debtor=_party(fields, "Dbtr"),
        creditor=_party(fields, "Cdtr"),
        remittance=remittance,
        structured=tuple(texts_of(fields, "RmtInf", "Strd", "CdtrRefInf", "Ref")),
        return_reason=fields.first_text(("RtrInf", "Rsn", "Cd"), ("RtrInf", "Rsn", "Prtry")),
        is_coded_return=_is_coded_return(fields),
    )


def read_entry(fields: Fields, transactions: Sequence[Transaction]) -> Entry:
    """Raises BankFileError for what an entry must have and has not, or has and cannot be."""
    cents, currency = amount_of(fields.needed("Amt"))
    sign = sign_of(fields)
    status = status_of(fields)
    booking_date, value_date = date_of(fields, "BookgDt"), date_of(fields, "ValDt")
    if status == "BOOK" and booking_date is None and value_date is None:
        raise fields.refused("this <Ntry> is booked and has no <BookgDt>, which tells on which day")
    entry = Entry(
        line=fields.node.line,
        amount_cents=sign * cents,
        currency=currency,
        status=status,
        booking_date=booking_date,
        value_date=value_date,
        is_reversal=flag_of(fields, "RvslInd"),
        is_coded_return=_is_coded_return(fields),
        bank_reference=fields.reference("AcctSvcrRef"),
        more_text=fields.text("AddtlNtryInf"),
        transactions=tuple(replace(one, sign=one.sign or sign) for one in transactions),
        is_batch=sum(map(count_of, fields.all("NtryDtls", "Btch", "NbOfTxs"))) > 1,
        has_batch_reference=bool(fields.all("NtryDtls", "Btch")),
    )
    if len(entry.transactions) > 1 and _has_parts(entry):
        total = sum(map(_signed, entry.transactions))
        if total != entry.amount_cents:
            raise fields.refused(
                f"the {len(transactions)} transactions of this <Ntry> come to {format_cents(total)}, and the entry "
                f"to {format_cents(entry.amount_cents)} {currency}"
            )
    return entry


def booked_entries(
    entry: Entry, *, account_iban: str, source_kind: str, statement_id: str, is_flipped: bool
) -> list[BookedEntry]:
    """One for each transaction, or one for all where the bank does not tell their amounts.

    `is_flipped`: this bank's CdtDbtInd names the direction of the entry that a reversal undoes.
    """
    day = entry.booking_date or entry.value_date
    assert day is not None, "read_entry refuses a booked entry without a day"
    sign = -1 if is_flipped and entry.is_reversal else 1
    whole = BookedEntry(
        account_iban=account_iban,
        source_kind=source_kind,
        statement_id=statement_id,
        line=entry.line,
        amount_cents=sign * entry.amount_cents,
        currency=entry.currency,
        booking_date=day,
        value_date=entry.value_date,
        bank_reference=entry.bank_reference,
        bank_reference_of="entry",
        remittance_text=entry.more_text,
        is_return=entry.is_reversal or entry.is_coded_return,
    )
    is_alone = len(entry.transactions) == 1 and not entry.is_batch
    if is_alone or (len(entry.transactions) > 1 and _has_parts(entry)):
        return [_part(whole, entry, one, sign) for one in entry.transactions]
    if not entry.transactions:
        return [replace(whole, is_collective=entry.is_batch)]
    reason = next((one.return_reason for one in entry.transactions if one.return_reason), "")
    texts = [text for one in entry.transactions for text in (*one.remittance, one.end_to_end_id) if text]
    return [
        replace(
            whole,
            remittance_text="\n".join(texts) or entry.more_text,
            structured_reference="\n".join(text for one in entry.transactions for text in one.structured),
            return_reason=reason,
            is_return=whole.is_return or bool(reason) or any(one.is_coded_return for one in entry.transactions),
            is_collective=True,
        )
    ]


def pending_entry(entry: Entry) -> PendingEntry:
    """What is announced: for people to see, never to book."""
    first = entry.transactions[0] if entry.transactions else None
    name = (first.debtor if entry.amount_cents > 0 else first.creditor)[0] if first else ""
    return PendingEntry(
        line=entry.line,
        amount_cents=entry.amount_cents,
        currency=entry.currency,
        expected=entry.booking_date or entry.value_date,
        end_to_end_id=first.end_to_end_id if first else "",
        counterparty_name=name,
    )


def _part(whole: BookedEntry, entry: Entry, one: Transaction, sign: int) -> BookedEntry:
    """What of an entry one transaction is: all, if there is no other."""
    is_alone = len(entry.transactions) == 1
    cents = entry.amount_cents if is_alone else _signed(one)
    reference, reference_of = _bank_reference(entry, one, is_alone=is_alone)
    name, iban = _counterparty(one, is_credit=cents > 0, own_iban=whole.account_iban)
    return replace(
        whole,
        line=one.line,
        amount_cents=sign * cents,
        end_to_end_id=one.end_to_end_id,
        bank_reference=reference,
        bank_reference_of=reference_of,
        instruction_id=one.instruction_id,
        structured_reference="\n".join(one.structured),
        remittance_text="\n".join(one.remittance) or entry.more_text,
        counterparty_name=name,
        counterparty_iban=iban,
        return_reason=one.return_reason,
        is_return=whole.is_return or bool(one.return_reason) or one.is_coded_return,
    )


def _has_parts(entry: Entry) -> bool:
    """True if the bank tells the amount of each transaction."""
    return all(one.cents is not None and one.currency == entry.currency for one in entry.transactions)


def _signed(one: Transaction) -> int:
    return (one.sign or 1) * (one.cents or 0)


def _bank_reference(entry: Entry, one: Transaction, *, is_alone: bool) -> tuple[str, str]:
    """What identifies the movement at the bank (entries.py says in which order), and what it is a reference of."""
    if one.bank_reference and one.bank_reference != entry.bank_reference:
        return one.bank_reference, "transaction"
    if entry.bank_reference and is_alone:
        return entry.bank_reference, "batch" if entry.has_batch_reference else "entry"
    if entry.bank_reference and one.end_to_end_id:
        return f"{entry.bank_reference} {one.end_to_end_id}", "part"
    if entry.bank_reference:
        return entry.bank_reference, "batch"
    return one.other_id, "uetr" if one.has_uetr else "payer"


def _counterparty(one: Transaction, *, is_credit: bool, own_iban: str) -> tuple[str, str]:
    """Name and IBAN of the other side: who paid if money came in, who was paid if it went out.

    Of a return some banks name the parties as they stood in the transfer that is undone; then the side with our own
    account is not the other one.
    """
    other, self_ = (one.debtor, one.creditor) if is_credit else (one.creditor, one.debtor)
    return self_ if other[1] == own_iban else other


def _party(fields: Fields, role: str) -> tuple[str, str]:
    parties = fields.one("RltdPties")
    if parties is None:
        return "", ""
    return parties.first_text((role, "Pty", "Nm"), (role, "Nm")), iban_of(parties, f"{role}Acct")


def _is_coded_return(fields: Fields) -> bool:
    return fields.text("BkTxCd", "Domn", "Fmly", "SubFmlyCd") == _RETURNED
