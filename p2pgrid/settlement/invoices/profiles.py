"""The usage specifications an invoice can be written to (BT-24), chosen for each buyer."""

from __future__ import annotations

from enum import Enum
from typing import Final

_BILLING: Final = "urn:fdc:peppol.eu:2017:poacc:billing:01:1.0"
_SELF_BILLING: Final = "urn:fdc:peppol.eu:2017:poacc:selfbilling:01:1.0"
_PEPPOL: Final = "urn:cen.eu:en16931:2017#compliant#urn:fdc:peppol.eu:2017:poacc:billing:3.0"
_PEPPOL_SELF: Final = "urn:cen.eu:en16931:2017#compliant#urn:fdc:peppol.eu:2017:poacc:selfbilling:3.0"


class Syntax(Enum):
    """How an invoice is written."""

    CII = "cii"
    """UN/CEFACT Cross Industry Invoice, D16B."""
    UBL = "ubl"
    """OASIS UBL 2.1, Invoice and CreditNote."""


class Profile(Enum):
    """A usage specification. The value is what a buyer's settings say."""

    EN16931 = "en16931"
    """The European norm as it is."""
    XRECHNUNG = "xrechnung"
    """Germany's, version 3.0: what public buyers there take."""
    PEPPOL = "peppol"
    """Peppol BIS Billing 3.0, and BIS Self-Billing 3.0 for self-billed documents."""

    def specification(self, *, is_self_billed: bool) -> str:
        """BT-24."""
        if self is Profile.PEPPOL:
            return _PEPPOL_SELF if is_self_billed else _PEPPOL
        if self is Profile.XRECHNUNG:
            return "urn:cen.eu:en16931:2017#compliant#urn:xeinkauf.de:kosit:xrechnung_3.0"
        return "urn:cen.eu:en16931:2017"

    def process(self, *, is_self_billed: bool) -> str:
        """BT-23; empty where the profile names none."""
        if self is Profile.EN16931:
            return ""
        return _SELF_BILLING if is_self_billed and self is Profile.PEPPOL else _BILLING

    @property
    def syntaxes(self) -> tuple[Syntax, ...]:
        """What the profile can be written in."""
        return (Syntax.UBL,) if self is Profile.PEPPOL else (Syntax.CII, Syntax.UBL)
