"""Who a counterparty is, for exports: its name and VAT id, where it has told us."""

from __future__ import annotations

from typing import Final, Protocol

from p2pgrid.proto.billing_details import BillingDetails
from p2pgrid.proto.record import Role, Signed
from p2pgrid.settlement.books.personal import peer_id


class Parties(Protocol):
    """Billing details of others, and our own."""

    def of(self, party: bytes, by: Role) -> BillingDetails | None:
        """What a party last told of itself as provider or client."""


def name_of(parties: Parties, key: bytes, side: Role) -> str:
    """The counterparty's legal name; where it has not told any, its peer id. `side` is ours."""
    details = parties.of(key, other_side(side))
    return details.legal_name if details is not None else peer_id(key)


def vat_id_of(parties: Parties, key: bytes, side: Role) -> str:
    """The counterparty's VAT id, or nothing."""
    details = parties.of(key, other_side(side))
    return details.vat_id if details is not None else ""


def other_side(side: Role) -> Role:
    """The role of the other party."""
    return Role.CLIENT if side is Role.PROVIDER else Role.PROVIDER


class _Details(Protocol):
    def of(self, party: bytes, by: Role) -> Signed[BillingDetails] | None: ...


class StoredParties:
    """Out of the details that peers have signed and this node has kept."""

    def __init__(self, details: _Details) -> None:
        """`details`: a `p2pgrid.settlement.details.DetailsBook`."""
        self._details: Final = details

    def of(self, party: bytes, by: Role) -> BillingDetails | None:
        """What a party last told of itself as provider or client."""
        signed = self._details.of(party, by)
        return signed.message if signed is not None else None
