"""What a bank booked: one money movement on one account, and what identifies it in every file that tells of it.

**The key.** The same movement comes again: the file is downloaded twice, the month's statement repeats the day's, a
notification (camt.054) comes before both. A key must be equal each time, and unequal for two movements that look
alike. Banks differ in what they give, so it is made of the best there is:

1. the bank's own reference (AcctSvcrRef) of the transaction, or of the entry where it has but one;
2. for one of a batch without its own: the batch's reference and the end-to-end id;
3. the payer's bank's ids (UETR, TxId);
4. nothing but the content: end-to-end id, counterparty's account and name, remittance text.

With it always go account, booking date, signed amount and currency, and a count where a statement has several entries
that agree in all of this. NtryRef is never used: banks number anew in each statement.

Where two files give different things of one movement (one has AcctSvcrRef, the other has none) the keys differ. Then
matching holds the second for a person instead of booking it (tellings.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import date
from typing import Final

from p2pgrid.settlement.payments.orders import short_hash
from p2pgrid.settlement.payments.reference import normalised

_PLACEHOLDERS: Final = frozenset({"", "NOTPROVIDED", "NONREF", "NOREF", "NONE", "NULL", "UNKNOWN", "NA"})


@dataclass(frozen=True, kw_only=True)
class BookedEntry:
    """One movement of money that the bank has booked."""

    account_iban: str
    """Our account."""
    source_kind: str
    """What told of it: `camt.053`, `camt.054`, `manual`, or a rail's own name."""
    statement_id: str
    """The bank's id of the statement that told of it."""
    line: int
    """Where it begins in its file."""
    amount_cents: int
    """Above zero, money that came in."""
    currency: str
    booking_date: date
    """The bank's local date."""
    value_date: date | None = None
    key: str = ""
    """26 characters, equal in every file that tells of this movement. Set by `with_keys`."""
    telling: str = ""
    """26 characters that all entries of one statement share, in every copy of it; a statement that was issued again
    with other content has others, whatever its id. Set by `with_keys`."""
    end_to_end_id: str = ""
    """Empty where the bank wrote NOTPROVIDED or the like."""
    bank_reference: str = ""
    """AcctSvcrRef, or what stands for it (see the module's text); empty if there is none."""
    bank_reference_of: str = ""
    """What the bank reference is: of the `transaction`, of the `entry`, of the `batch`, of a `part` (the batch's with
    the end-to-end id), the `uetr` or another of the `payer`'s bank; a rail may leave it empty. References of different
    sorts differ also where the movement is one."""
    instruction_id: str = ""
    """InstrId: of our own orders, their `PaymentOrder.key`."""
    structured_reference: str = ""
    """A creditor reference of structured remittance."""
    remittance_text: str = ""
    counterparty_name: str = ""
    counterparty_iban: str = ""
    """Empty if the other side's account is not known, or is no IBAN."""
    return_reason: str = ""
    """ISO external return reason (`AC04`) or the bank's own; empty if the bank gives none."""
    is_return: bool = False
    """The bank says that it undoes an earlier movement: a return, a recall, or a reversal of its own mistake."""
    is_collective: bool = False
    """A batch that the bank booked as one sum and whose parts it does not tell apart by amount."""

    @property
    def all_text(self) -> str:
        """Everything in which a reference or an invoice's number may stand."""
        return "\n".join((self.end_to_end_id, self.structured_reference, self.remittance_text))


def with_keys(entries: Iterable[BookedEntry]) -> tuple[BookedEntry, ...]:
    """The entries of one statement, each with its key and all with the statement's telling.

    Entries of one identity are counted in the order of their contents, not of the file: the parts of a batch stand in
    another order in another file.
    """
    given = list(entries)
    seen: Counter[tuple[str, ...]] = Counter()
    keyed = list(given)
    for at in sorted(range(len(given)), key=lambda at: _content(given[at])):
        identity = _identity(given[at])
        keyed[at] = replace(given[at], key=short_hash("entry", *identity, str(seen[identity])))
        seen[identity] += 1
    telling = short_hash("telling", *(entry.key for entry in keyed))
    return tuple(replace(entry, telling=telling) for entry in keyed)


def is_given(text: str) -> bool:
    """False for the words by which banks say that they have no reference."""
    plain = normalised(text)
    return plain not in _PLACEHOLDERS and bool(plain.strip("0")) and bool(plain.strip("X"))


def _identity(entry: BookedEntry) -> tuple[str, ...]:
    always = (entry.account_iban, entry.booking_date.isoformat(), str(entry.amount_cents), entry.currency)
    if entry.bank_reference:
        return ("reference", *always, normalised(entry.bank_reference))
    return ("content", *always, *_content(entry))


def _content(entry: BookedEntry) -> tuple[str, ...]:
    content = (entry.end_to_end_id, entry.counterparty_iban, entry.counterparty_name, entry.remittance_text)
    return tuple(_letters(text) for text in content)


def _letters(text: str) -> str:
    """Letters and digits of whatever script, their case aside."""
    return "".join(character for character in text.casefold() if character.isalnum())
