"""The dated facts of VAT law: standard rates, small-business wording, member states.

Every row has its source and was looked at on `LOOKED_AT`; docs/settlement/invoices.md has the same table, and a test
compares the two. A rate that changes is a new row, never a changed one.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Final

from p2pgrid.settlement.invoices.refused import InvoiceRefused

LOOKED_AT: Final = date(2026, 11, 27)


@dataclass(frozen=True, slots=True)
class StandardRate:
    """A country's standard rate from a day on, until the next row's."""

    valid_from: date
    rate_bp: int
    source: str


STANDARD_RATES: Final[dict[str, tuple[StandardRate, ...]]] = {
    "LT": (StandardRate(date(2009, 9, 1), 2100, "PVM įstatymas IX-751, Art. 19(1)"),),
    "LV": (StandardRate(date(2012, 7, 1), 2100, "PVN likums, Sec. 41(1)"),),
    "EE": (
        StandardRate(date(2009, 7, 1), 2000, "KMS § 15(1)"),
        StandardRate(date(2024, 1, 1), 2200, "KMS § 15(1), act of June 2023"),
        StandardRate(date(2025, 7, 1), 2400, "KMS § 15(1), security tax act; permanent since the act of 2025"),
    ),
    "FI": (
        StandardRate(date(2013, 1, 1), 2400, "AVL 84 §"),
        StandardRate(date(2024, 9, 1), 2550, "AVL 84 §, act of 2024"),
    ),
    "DE": (
        StandardRate(date(2007, 1, 1), 1900, "UStG § 12(1)"),
        StandardRate(date(2020, 7, 1), 1600, "UStG § 28(1), second half of 2020"),
        StandardRate(date(2021, 1, 1), 1900, "UStG § 12(1)"),
    ),
    "IT": (StandardRate(date(2013, 10, 1), 2200, "DPR 633/1972, Art. 16"),),
}
"""The countries whose sellers this room invoices for."""

SMALL_BUSINESS_TEXTS: Final[dict[str, tuple[str, str]]] = {
    "LT": ("PVM neskaičiuojamas: smulkiojo verslo schema, PVM įstatymo 71 straipsnis", "PVM įstatymas IX-751, Art. 71"),
    "LV": ("PVN netiek piemērots: Pievienotās vērtības nodokļa likuma 59. pants", "PVN likums, Sec. 59"),
    "EE": ("Käibemaksu ei lisandu: käibemaksuseaduse § 19 lõige 1", "KMS § 19(1)"),
    "FI": ("Arvonlisäveroton: vähäinen liiketoiminta, arvonlisäverolain 3 §", "AVL 3 §"),
    "DE": ("Steuerfrei für Kleinunternehmer gemäß § 19 UStG", "UStG § 19(1), UStDV § 34a"),
    "IT": (
        "Operazione senza applicazione dell'IVA, regime forfettario: art. 1, commi 54-89, legge 190/2014",
        "Legge 190/2014, Art. 1(58)",
    ),
}
"""What a small business writes where VAT would stand, and the law it comes from."""

REVERSE_CHARGE_WORDS: Final[dict[str, str]] = {
    "LT": "Atvirkštinis apmokestinimas",
    "LV": "Nodokļa apgrieztā maksāšana",
    "EE": "Pöördmaksustamine",
    "FI": "Käännetty verovelvollisuus",
    "DE": "Steuerschuldnerschaft des Leistungsempfängers",
    "IT": "Inversione contabile",
}
"""How Article 226(11a) of Directive 2006/112/EC reads in the seller's language."""

SELF_BILLING_WORDS: Final[dict[str, str]] = {
    "LT": "Sąskaitų faktūrų išsirašymas",
    "LV": "Pašaprēķins",
    "EE": "Endale arve koostamine",
    "FI": "Itselaskutus",
    "DE": "Gutschrift",
    "IT": "Autofatturazione",
}
"""How Article 226(10a) of Directive 2006/112/EC reads in the seller's language."""

MEMBER_STATES: Final = frozenset({
    "AT", "BE", "BG", "CY", "CZ", "DE", "DK", "EE", "ES", "FI", "FR", "GR", "HR", "HU",
    "IE", "IT", "LT", "LU", "LV", "MT", "NL", "PL", "PT", "RO", "SE", "SI", "SK",
})  # fmt: skip
"""ISO 3166 codes; a VAT id of Greece begins with EL."""


def standard_rate(country: str, on: date) -> StandardRate:
    """The standard rate of a seller's country on a day.

    Raises InvoiceRefused: `seller-country` for a country that is not in the table, `no-rate` before its first row.
    """
    rows = STANDARD_RATES.get(country)
    if rows is None:
        raise InvoiceRefused(
            "seller-country",
            f"the VAT rates of a seller in {country!r} are not known here.",
            hint=f"Invoices can be issued for sellers in {', '.join(sorted(STANDARD_RATES))}.",
        )
    valid = [row for row in rows if row.valid_from <= on]
    if not valid:
        raise InvoiceRefused("no-rate", f"no VAT rate of {country} is known for {on}: the table begins later.")
    return valid[-1]


def rate_changes(country: str, first: date, last: date) -> tuple[date, ...]:
    """The days after `first`, up to `last`, on which the country's standard rate changes: where periods must end."""
    return tuple(row.valid_from for row in STANDARD_RATES.get(country, ()) if first < row.valid_from <= last)
