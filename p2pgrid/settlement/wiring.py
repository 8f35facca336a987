"""Settlement's parts put together for a node, from its data folder: what provider and client are given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from p2pgrid.clock import unix_ms
from p2pgrid.data_folder import DataFolder
from p2pgrid.ledger.base import Ledger
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.record import Role
from p2pgrid.settlement.database import FILE_NAME, open_database
from p2pgrid.settlement.details import DetailsBook
from p2pgrid.settlement.document_hooks import IssuingHooks, ReceivingHooks, details_for
from p2pgrid.settlement.hooks import BuyerHooks, Details, NoDetails, NothingIssued, SellerHooks
from p2pgrid.settlement.issuing import Issuer
from p2pgrid.settlement.statements.agreed import Agreed, AgreedDrafts, AgreedInMemory
from p2pgrid.settlement.statements.drafting import PAYMENT_DAYS


@dataclass(frozen=True, slots=True, kw_only=True)
class Selling:
    """What a provider's node settles with."""

    details: Details = field(default_factory=NoDetails)
    hooks: SellerHooks = field(default_factory=NothingIssued)
    payment_days: int = PAYMENT_DAYS
    """From a statement to the day by which it is to be paid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Buying:
    """What a client's node settles with."""

    details: Details = field(default_factory=NoDetails)
    hooks: BuyerHooks = field(default_factory=NothingIssued)
    agreed: Agreed = field(default_factory=AgreedInMemory)


def kept_details(data: DataFolder) -> Details:
    """What is known of both sides of this node's channels, for looking ahead. Raises LedgerError."""
    return DetailsBook(open_database(data.path / FILE_NAME))


def agreed_drafts(data: DataFolder) -> AgreedDrafts:
    """What a client has agreed to. Raises LedgerError."""
    return AgreedDrafts(open_database(data.path / FILE_NAME))


def selling(
    data: DataFolder, keys: Sequence[SecretKey], issuer: Issuer, now_ms: Callable[[], int] = unix_ms
) -> Selling:
    """For a provider's node. `keys`: its present one first, then those it had. Raises LedgerError, UsageError."""
    return Selling(
        details=details_for(data, keys, Role.PROVIDER, now_ms),
        hooks=IssuingHooks(data, issuer, now_ms),
        payment_days=data.load_config().billing.payment_days,
    )


def buying(data: DataFolder, ledger: Ledger, keys: Sequence[SecretKey]) -> Buying:
    """For a client's node; each of its processes has its own. Raises LedgerError, UsageError."""
    return Buying(
        details=details_for(data, keys, Role.CLIENT),
        hooks=ReceivingHooks(data, ledger),
        agreed=agreed_drafts(data),
    )
