"""The VAT of a statement, from both sides' billing details: the same function on both sides."""

from __future__ import annotations

from datetime import date

from p2pgrid.errors import LocalError
from p2pgrid.proto.billing_details import BillingDetails
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.record import Role
from p2pgrid.proto.statement_making import VatOf, vat_in
from p2pgrid.settlement.hooks import Details
from p2pgrid.settlement.invoices.refused import InvoiceRefused
from p2pgrid.settlement.invoices.vat import TaxParty, VatCategory, vat_treatment
from p2pgrid.settlement.invoices.vat_rates import rate_changes
from p2pgrid.settlement.statements.refused import NotStated

SET_DETAILS = "p2pgrid billing set"


def parties_of(details: Details, channel: Channel) -> tuple[BillingDetails, BillingDetails]:
    """The provider's and the client's details. Raises NotStated (`details-missing`) that names whose are not here."""
    seller = details.of(channel.provider, Role.PROVIDER)
    buyer = details.of(channel.client, Role.CLIENT)
    missing = [who for who, one in (("provider", seller), ("client", buyer)) if one is None]
    if seller is None or buyer is None:
        whose = " and ".join(f"the {who}'s" for who in missing)
        raise NotStated(
            "details-missing",
            f"{whose} billing details are not here, so nobody can say what VAT is due.",
            hint=f"On the {' and the '.join(missing)}'s side: {SET_DETAILS}",
        )
    return seller.message, buyer.message


def vat_of_period(details: Details, channel: Channel, first: date, last: date) -> VatOf:
    """How a net is taxed in a period of these local days, by the law of its last (docs/settlement/invoices.md).

    Raises NotStated: `details-missing`, `rate-changes`, `not-checked` (a library is missing), or a code of
    `InvoiceRefused`.
    """
    seller, buyer = parties_of(details, channel)
    try:
        treatment = vat_treatment(_taxed(seller), _taxed(buyer), last)
    except InvoiceRefused as error:
        raise NotStated(error.code, error.message, hint=error.hint) from None
    except LocalError as error:
        raise NotStated("not-checked", error.message, hint=error.hint) from None
    changes = rate_changes(seller.country, first, last)
    if treatment.category is VatCategory.STANDARD and changes:
        raise NotStated("rate-changes", f"the VAT rate of {seller.country} changes on {changes[0]}, inside the period.")
    return vat_in(treatment.category.value, treatment.rate_bp, treatment.exemption_code)


def _taxed(details: BillingDetails) -> TaxParty:
    return TaxParty(
        country=details.country,
        vat_id=details.vat_id,
        tax_number=details.tax_number,
        is_business=details.is_business,
        is_small=details.is_small,
    )
