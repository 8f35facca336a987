"""Which invoices an entry may be about: by number in its text, and by who paid.

Invoice numbers are found as people and banks write them: `LT-2026-000123` also as `LT 2026/123`, `lt2026000123`, or
broken by the bank's line break.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable
from itertools import islice, takewhile
from typing import Final

from p2pgrid.settlement.payments.decisions import OpenInvoice, PrepaidAccount
from p2pgrid.settlement.payments.latin import to_sepa_latin
from p2pgrid.settlement.payments.reference import normalised

STANDS_ALONE_CHARS: Final = 8
"""A number this long, and no date, names its invoice without amount or payer agreeing."""
_SAME_NAME_CHARS: Final = 10
"""Banks cut names: one that begins the other and is this long is the same."""

_MAX_NAME_CHARS: Final = 200
"""ISO 20022 has 140."""

_RUN: Final = re.compile(r"[0-9]+|[A-Z]+")
_DATE: Final = re.compile(
    r"(19|20)[0-9]{2}(0[1-9]|1[0-2])([0-2][0-9]|3[01])|([0-2][0-9]|3[01])(0[1-9]|1[0-2])(19|20)[0-9]{2}"
)
_MAX_RUNS: Final = 12
_MAX_BREAKS: Final = 2
"""Line breaks within one number."""
_MAX_TEXT_CHARS: Final = 20_000


class InvoiceIndex:
    """Invoices by number and by debtor. What is open of them is not looked at here."""

    def __init__(self, invoices: Iterable[OpenInvoice], prepaid: Iterable[PrepaidAccount]) -> None:
        self._by_number: dict[tuple[str, ...] | str, list[str]] = {}
        self._by_iban: dict[str, list[str]] = {}
        self._by_name: dict[str, list[str]] = {}
        self._debtors: set[str] = set()
        self._longest = 0
        for invoice in invoices:
            runs = _runs(invoice.number)
            self._longest = max(self._longest, min(len(runs), _MAX_RUNS))
            for key in (runs, normalised(invoice.number)):
                if key:
                    self._by_number.setdefault(key, []).append(invoice.number)
            for iban in invoice.debtor_ibans:
                self._by_iban.setdefault(iban, []).append(invoice.number)
            self._by_name.setdefault(_plain(invoice.debtor_name), []).append(invoice.number)
        for account in prepaid:
            self._debtors.update(account.debtor_ibans)
        self._by_name.pop("", None)
        self._names = sorted(self._by_name)

    def by_number(self, text: str) -> list[str]:
        """The invoices whose numbers stand in the text, in order of appearance."""
        runs = _RUN.findall(text[:_MAX_TEXT_CHARS].upper())
        found: dict[str, None] = {}
        at = 0
        while at < len(runs):
            at += self._number_at(runs[at : at + self._longest + _MAX_BREAKS], found) or 1
        return list(found)

    def by_iban(self, iban: str) -> list[str]:
        """The invoices whose debtor is known to use this account."""
        return self._by_iban.get(iban, []) if iban else []

    def by_name(self, name: str) -> list[str]:
        """The invoices whose debtor has this name, or one that the bank cut."""
        plain = _plain(name)
        if not plain:
            return []
        if plain in self._by_name:
            return self._by_name[plain]
        alike = [plain[:end] for end in range(_SAME_NAME_CHARS, len(plain)) if plain[:end] in self._by_name]
        if len(plain) >= _SAME_NAME_CHARS:
            at = bisect_left(self._names, plain)
            alike += takewhile(lambda known: known.startswith(plain), islice(self._names, at, None))
        return [number for known in alike for number in self._by_name[known]]

    def is_known(self, iban: str) -> bool:
        """True for an account of a debtor, whether it owes anything or not."""
        return iban in self._by_iban or iban in self._debtors

    def _number_at(self, runs: list[str], found: dict[str, None]) -> int:
        """Add the invoices of the number with which these runs begin; how many of them it takes, 0 for none.

        As it is written comes before what would come of joining, so that "2026-17 8" is not 2026-178.
        """
        whole = tuple(_without_zeros(run) for run in runs)
        lengths = range(len(runs), 0, -1)
        keys: list[tuple[int, tuple[str, ...] | str]] = [(length, whole[:length]) for length in lengths]
        keys += [(length, "".join(runs[:length])) for length in lengths]
        for length, key in keys:
            if numbers := self._by_number.get(key):
                found.update(dict.fromkeys(numbers))
                return length
        return 0


def stands_alone(number: str) -> bool:
    """True if this invoice number in a text can hardly be anything else."""
    plain = normalised(number)
    return len(plain) >= STANDS_ALONE_CHARS and not _DATE.fullmatch(plain)


def _runs(text: str) -> tuple[str, ...]:
    """Letters and digits apart, leading zeros dropped."""
    return tuple(_without_zeros(run) for run in _RUN.findall(text.upper()))


def _without_zeros(run: str) -> str:
    return run.lstrip("0") or "0" if run[0].isdigit() else run


def _plain(name: str) -> str:
    return normalised(to_sepa_latin(name[:_MAX_NAME_CHARS]))
