"""IBAN and BIC, checked with schwifty; which countries SEPA and the EEA are."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

from p2pgrid.errors import UsageError
from p2pgrid.settlement.payments.refusals import MissingLibrary

if TYPE_CHECKING:
    from schwifty import IBAN

_LONGEST: Final = 60
_EEA: Final = "AT BE BG CY CZ DE DK EE ES FI FR GR HR HU IE IS IT LI LT LU LV MT NL NO PL PT RO SE SI SK"


class NotAnAccount(UsageError):
    """What came is no IBAN, or no BIC."""


@lru_cache(maxsize=1024)
def checked_iban(text: str) -> str:
    """An IBAN in its one form (no spaces, upper case). Raises NotAnAccount where length, form or check digits
    are wrong."""
    return _parsed_iban(text).compact


def checked_sepa_iban(text: str) -> str:
    """`checked_iban`, of an account that SEPA transfers reach."""
    iban = _parsed_iban(text)
    if not iban.in_sepa_zone:
        raise NotAnAccount(
            f"the account {iban.compact} is in {iban.country_code}, which SEPA transfers do not reach.",
            hint="Use the `manual` rail for it.",
        )
    return iban.compact


def checked_bic(text: str) -> str:
    """A BIC (8 or 11 characters) in its one form. Raises NotAnAccount if its form or country is wrong."""
    try:
        from schwifty import BIC
        from schwifty.exceptions import SchwiftyException
    except ImportError:
        raise MissingLibrary("schwifty") from None
    shown = repr(text[:_LONGEST])
    if not text.isascii() or len(text) > _LONGEST:
        raise NotAnAccount(f"{shown} is no BIC.")
    try:
        return str(BIC(text).compact)
    except SchwiftyException as error:
        raise NotAnAccount(f"{shown} is no BIC: {_lower_first(str(error))}.") from None


def is_in_eea(iban: str) -> bool:
    """True for an account in the European Economic Area, by its IBAN's country."""
    return iban[:2] in _EEA.split()


def _parsed_iban(text: str) -> IBAN:
    try:
        from schwifty import IBAN
        from schwifty.exceptions import SchwiftyException
    except ImportError:
        raise MissingLibrary("schwifty") from None
    shown = repr(text[:_LONGEST])
    if not text.isascii() or len(text) > _LONGEST:
        raise NotAnAccount(f"{shown} is no IBAN.")
    try:
        return IBAN(text)
    except SchwiftyException as error:
        raise NotAnAccount(
            f"{shown} is no IBAN: {_lower_first(str(error))}.", hint="Copy it again; one character is enough to fail."
        ) from None


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
