"""Charts of accounts: what is booked where (docs/settlement/books.md, section 2).

A role is what a line of a booking means; a chart gives each a number. SKR03 and SKR04 are DATEV's standard charts for
Germany, as far as they are needed here; `plain` is a short one for everybody else. An operator's own numbers go over
them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

from p2pgrid.errors import UsageError

CHARTS: Final = ("plain", "skr03", "skr04")
VAT_CASES: Final = ("S", "AE", "E", "O", "other")
"""Standard rate, reverse charge, exempt as a small business, outside of VAT; all others (UNTDID 5305)."""


class AccountRole(StrEnum):
    """What a line of a booking means."""

    BANK = "bank"
    RECEIVABLES = "receivables"
    """The collective account of all clients; each has a personal one."""
    PAYABLES = "payables"
    """The collective account of all providers."""
    ADVANCES_RECEIVED = "advances-received"
    """What clients paid ahead."""
    ADVANCES_PAID = "advances-paid"
    """What we paid ahead."""
    REVENUE_S = "revenue-S"
    REVENUE_AE = "revenue-AE"
    REVENUE_E = "revenue-E"
    REVENUE_O = "revenue-O"
    REVENUE_OTHER = "revenue-other"
    VAT_OUTPUT = "vat-output"
    """VAT that we charged."""
    EXPENSE_S = "expense-S"
    EXPENSE_AE = "expense-AE"
    EXPENSE_E = "expense-E"
    EXPENSE_O = "expense-O"
    EXPENSE_OTHER = "expense-other"
    EXPENSE_FOREIGN_VAT = "expense-foreign-vat"
    """Gross: what a provider charged in VAT of another country is no input VAT here."""
    VAT_INPUT = "vat-input"
    """VAT that a provider charged us, to be deducted."""
    VAT_INPUT_REVERSE = "vat-input-reverse"
    """Reverse charge: VAT that we owe for a purchase, deducted at once."""
    VAT_OUTPUT_REVERSE = "vat-output-reverse"
    """Reverse charge: VAT that we owe for a purchase."""
    SET_OFF = "set-off"
    """Between a receivable and a payable that are set off: zero once both are booked."""
    REALLOCATION = "reallocation"
    """Between two invoices when a payment is booked for another than before: zero once both are booked."""
    EARLIER_RESULT = "earlier-result"
    """Revenue less expense of earlier fiscal years, in the opening of a trial balance alone."""
    UNCLEAR = "unclear"
    """VAT and net of an invoice of which nobody can say in which VAT case they are: an accountant has to look."""


def revenue_role(category: str) -> AccountRole:
    """Where a sale in this category of VAT goes."""
    return AccountRole(f"revenue-{category if category in VAT_CASES else 'other'}")


def expense_role(category: str) -> AccountRole:
    """Where a purchase in this category of VAT goes."""
    return AccountRole(f"expense-{category if category in VAT_CASES else 'other'}")


R = AccountRole
_NUMBERS: Final[dict[AccountRole, tuple[str, str, str]]] = {
    # role: plain, SKR03, SKR04
    R.BANK: ("1000", "1200", "1800"),
    R.RECEIVABLES: ("1100", "1400", "1200"),
    R.PAYABLES: ("2100", "1600", "3300"),
    R.ADVANCES_RECEIVED: ("2200", "1710", "3250"),
    R.ADVANCES_PAID: ("1200", "1500", "1300"),
    R.REVENUE_S: ("4100", "8400", "4400"),
    R.REVENUE_AE: ("4200", "8336", "4336"),
    R.REVENUE_E: ("4300", "8195", "4185"),
    R.REVENUE_O: ("4400", "8338", "4338"),
    R.REVENUE_OTHER: ("4900", "8200", "4200"),
    R.VAT_OUTPUT: ("2300", "1776", "3806"),
    R.EXPENSE_S: ("5100", "3100", "5900"),
    R.EXPENSE_AE: ("5200", "3123", "5923"),
    R.EXPENSE_E: ("5300", "3100", "5900"),
    R.EXPENSE_O: ("5400", "3100", "5900"),
    R.EXPENSE_OTHER: ("5900", "3100", "5900"),
    R.EXPENSE_FOREIGN_VAT: ("5500", "3100", "5900"),
    R.VAT_INPUT: ("1300", "1576", "1406"),
    R.VAT_INPUT_REVERSE: ("1310", "1577", "1407"),
    R.VAT_OUTPUT_REVERSE: ("2310", "1787", "3837"),
    R.SET_OFF: ("1900", "1590", "1370"),
    R.REALLOCATION: ("1910", "1360", "1460"),
    R.EARLIER_RESULT: ("3000", "0860", "2970"),
    R.UNCLEAR: ("1990", "1590", "1370"),
}
_NAMES: Final[dict[AccountRole, str]] = {
    R.BANK: "Bank",
    R.RECEIVABLES: "Receivables",
    R.PAYABLES: "Payables",
    R.ADVANCES_RECEIVED: "Payments received on account",
    R.ADVANCES_PAID: "Payments made on account",
    R.REVENUE_S: "Revenue, standard rate",
    R.REVENUE_AE: "Revenue, reverse charge",
    R.REVENUE_E: "Revenue, small business",
    R.REVENUE_O: "Revenue, outside of VAT",
    R.REVENUE_OTHER: "Revenue, other cases of VAT",
    R.VAT_OUTPUT: "VAT charged",
    R.EXPENSE_S: "Purchased inference, standard rate",
    R.EXPENSE_AE: "Purchased inference, reverse charge",
    R.EXPENSE_E: "Purchased inference, of a small business",
    R.EXPENSE_O: "Purchased inference, outside of VAT",
    R.EXPENSE_OTHER: "Purchased inference, other cases of VAT",
    R.EXPENSE_FOREIGN_VAT: "Purchased inference, with VAT of another country",
    R.VAT_INPUT: "Input VAT",
    R.VAT_INPUT_REVERSE: "Input VAT, reverse charge",
    R.VAT_OUTPUT_REVERSE: "VAT owed, reverse charge",
    R.SET_OFF: "Set-off",
    R.REALLOCATION: "Reallocated payments",
    R.EARLIER_RESULT: "Result of earlier years",
    R.UNCLEAR: "To be cleared up",
}
_GERMAN_RATE_BP: Final = 1900
_SKR_RATES: Final = {R.REVENUE_S: _GERMAN_RATE_BP, R.EXPENSE_S: _GERMAN_RATE_BP, R.EXPENSE_AE: _GERMAN_RATE_BP}
"""What DATEV computes for a row on the account with its tax key (8400 and 3123 are automatic accounts)."""
_SKR_KEYS: Final = {R.EXPENSE_S: "9"}
_NUMBER: Final = re.compile(r"[1-9][0-9]{3,7}|0[0-9]{3,7}")
_KEY: Final = re.compile(r"[0-9]{0,4}")


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Numbers for all roles, and how DATEV is to compute VAT on them."""

    name: str = "plain"
    numbers: Mapping[AccountRole, str] = field(default_factory=dict)
    tax_keys: Mapping[AccountRole, str] = field(default_factory=dict)
    """DATEV's BU-Schlüssel, up to four digits; none for automatic accounts."""
    tax_rates: Mapping[AccountRole, int] = field(default_factory=dict)
    """Basis points that DATEV computes on the account with that key. A row with another rate is refused."""
    account_length: int = 4
    """Digits of the numbers above; personal accounts have one more."""
    input_vat_deducted: bool = True
    """False for who may not deduct VAT: it is part of the expense."""
    reverse_charge_rate_bp: int | None = None
    """What we owe on purchases under reverse charge; None: our country's standard rate."""
    fiscal_year_begins: tuple[int, int] = (1, 1)
    """Month and day."""
    consultant: int = 1001
    """DATEV's Beraternummer."""
    client: int = 1
    """DATEV's Mandantennummer."""
    is_final: bool = False
    """Festschreibung: what was read into DATEV can be changed no more."""

    def number(self, role: AccountRole) -> str:
        """The account's number."""
        return self.numbers[role]

    @property
    def is_german(self) -> bool:
        """True for DATEV's own charts."""
        return self.name in ("skr03", "skr04")


def chart_of(name: str) -> Chart:
    """One of `CHARTS`, as it is. Raises UsageError."""
    if name not in CHARTS:
        raise UsageError(f"there is no chart of accounts {name!r}.", hint=f"Choose one of {', '.join(CHARTS)}.")
    column = CHARTS.index(name)
    is_german = name != "plain"
    return Chart(
        name=name,
        numbers={role: numbers[column] for role, numbers in _NUMBERS.items()},
        tax_keys=dict(_SKR_KEYS) if is_german else {},
        tax_rates=dict(_SKR_RATES) if is_german else {},
    )


def is_of_result(role: AccountRole) -> bool:
    """True for revenue and expense, which begin with nothing in every fiscal year."""
    return role.value.startswith(("revenue-", "expense-"))


def account_name(role: AccountRole) -> str:
    """What the account is called in exports."""
    return _NAMES[role]


def name_in(chart: Chart, role: AccountRole) -> str:
    """What the role's account is called: in some charts it is that of several, and has one name."""
    number = chart.number(role)
    sharing = [one for one in AccountRole if chart.numbers.get(one) == number]
    if len(sharing) < 2:
        return account_name(role)
    return " / ".join(dict.fromkeys(account_name(one).partition(",")[0] for one in sharing))


def with_own(
    chart: Chart,
    *,
    numbers: Mapping[str, str] | None = None,
    tax_keys: Mapping[str, str] | None = None,
    tax_rates: Mapping[str, int] | None = None,
    **others: Any,
) -> Chart:
    """The chart with an operator's own numbers, tax keys and rates by role. Raises UsageError for what is none.

    Where numbers have more digits than the chart's, zeros follow the chart's, as is usual.
    """
    length = others.get("account_length", chart.account_length)
    chosen = {_role(name): number for name, number in (numbers or {}).items()}
    for role, number in chosen.items():
        if not _NUMBER.fullmatch(number) or len(number) > length:
            raise UsageError(
                f"{number!r} for {role} is no account number: up to {length} digits were expected.",
                hint="Give it in quotes; `account-length` says how many digits your numbers have.",
            )
    keys = {_role(name): key for name, key in (tax_keys or {}).items()}
    for role, key in keys.items():
        if not _KEY.fullmatch(key):
            raise UsageError(f"{key!r} for {role} is no tax key: up to four digits were expected.")
    rates = {_role(name): rate for name, rate in (tax_rates or {}).items()}
    return replace(
        chart,
        numbers={**{role: number.ljust(length, "0") for role, number in chart.numbers.items()}, **chosen},
        tax_keys={**chart.tax_keys, **keys},
        tax_rates={**chart.tax_rates, **rates},
        **others,
    )


def _role(name: str) -> AccountRole:
    try:
        return AccountRole(name)
    except ValueError:
        raise UsageError(
            f"{name!r} is no role of an account.", hint=f"There are: {', '.join(role.value for role in AccountRole)}."
        ) from None
