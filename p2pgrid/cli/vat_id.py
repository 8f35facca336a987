"""VAT ids as the member states of the European Union write them. The form alone: whether one is in force says VIES."""

from __future__ import annotations

import re
from typing import Final

from p2pgrid.errors import UsageError

_FORMS: Final = {
    "AT": r"U\d{8}",
    "BE": r"[01]\d{9}",
    "BG": r"\d{9,10}",
    "CY": r"\d{8}[A-Z]",
    "CZ": r"\d{8,10}",
    "DE": r"\d{9}",
    "DK": r"\d{8}",
    "EE": r"\d{9}",
    "EL": r"\d{9}",
    "ES": r"[A-Z0-9]\d{7}[A-Z0-9]",
    "FI": r"\d{8}",
    "FR": r"[A-HJ-NP-Z0-9]{2}\d{9}",
    "HR": r"\d{11}",
    "HU": r"\d{8}",
    "IE": r"\d[A-Z0-9+*]\d{5}[A-Z]{1,2}",
    "IT": r"\d{11}",
    "LT": r"(\d{9}|\d{12})",
    "LU": r"\d{8}",
    "LV": r"\d{11}",
    "MT": r"\d{8}",
    "NL": r"[A-Z0-9+*]{10}\d{2}",
    "PL": r"\d{10}",
    "PT": r"\d{9}",
    "RO": r"\d{2,10}",
    "SE": r"\d{10}01",
    "SI": r"\d{8}",
    "SK": r"\d{10}",
    "XI": r"(\d{9}|\d{12}|(GD|HA)\d{3})",
}
_ELSEWHERE: Final = r"[A-Z0-9][A-Z0-9.+*/-]{1,31}"


def parse_vat_id(text: str, country: str) -> str:
    """The id without blanks, in capitals. Raises UsageError where it has not the form that `country` gives its ids."""
    compact = re.sub(r"[\s.]+", "", text.upper()) if text.strip() else ""
    if not compact:
        return ""
    prefix = "EL" if country == "GR" else country
    form = _FORMS.get(prefix)
    if form is not None and not re.fullmatch(prefix + form, compact, re.ASCII):
        raise UsageError(
            f"{text!r} is no VAT id of {country}.", hint=f"Write it with its country's letters: {prefix}..."
        )
    if not re.fullmatch(_ELSEWHERE, compact, re.ASCII):
        raise UsageError(f"{text!r} is no VAT id.", hint="At most 32 letters and digits were expected.")
    return compact
