"""Who stands behind an offer, as far as this client knows: no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from p2pgrid.proto.card import Card
from p2pgrid.proto.keys import parse_public_key


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainCheck:
    """What a domain said of a peer."""

    domain: str
    names_peer: bool
    reason: str
    """Why it does not, in a sentence; empty if it does."""
    good_until_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """Who stands behind a provider's offer, as far as it is known now."""

    card: Card | None = None
    """The operator's last card; None where none could be had, and `fault` says why."""
    fault: str = ""
    """Why the card does not hold for this provider, in a sentence; empty if it does."""
    is_disowned: bool = False
    """True if the operator's own cards say that the key acts for it no more: it is not bought from."""
    domain_check: DomainCheck | None = None
    """What the domain says; None if it names none, or has not been asked."""

    @property
    def has_domain(self) -> bool:
        """True if the operator has shown that it controls the domain it names."""
        return not self.fault and self.domain_check is not None and self.domain_check.names_peer


def operator_object(operator: Operator) -> dict[str, Any]:
    """The operator, for programs. `domain_checked` is null where the domain was not asked."""
    card, check = operator.card, operator.domain_check
    return {
        "operator": parse_public_key(card.operator).peer_id if card else None,
        "legal_name": card.legal_name if card else None,
        "vat_id": card.vat_id if card else None,
        "country": card.country if card else None,
        "parent_country": card.parent_country if card else None,
        "domain": (card.domain or None) if card else None,
        "domain_checked": check.names_peer if check else None,
        "fault": operator.fault or (check.reason if check and check.reason else None),
    }
