"""Settlement's parts put together for a node, from its data folder: what provider and client are given."""

from __future__ import annotations

from dataclasses import dataclass, field

from p2pgrid.settlement.hooks import BuyerHooks, Details, NoDetails, NothingIssued, SellerHooks
from p2pgrid.settlement.statements.agreed import Agreed, AgreedInMemory


@dataclass(frozen=True, slots=True, kw_only=True)
class Selling:
    """What a provider's node settles with."""

    details: Details = field(default_factory=NoDetails)
    hooks: SellerHooks = field(default_factory=NothingIssued)


@dataclass(frozen=True, slots=True, kw_only=True)
class Buying:
    """What a client's node settles with."""

    details: Details = field(default_factory=NoDetails)
    hooks: BuyerHooks = field(default_factory=NothingIssued)
    agreed: Agreed = field(default_factory=AgreedInMemory)
