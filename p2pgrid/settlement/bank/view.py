"""What a ledger says of every channel that one of our keys is a party of, read at one time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Protocol

from p2pgrid.errors import UsageError
from p2pgrid.ledger.base import OpenOrder
from p2pgrid.proto.billing_details import BillingDetails
from p2pgrid.proto.channel import ChannelHead
from p2pgrid.proto.keys import parse_public_key
from p2pgrid.proto.messages import Channel, Offer
from p2pgrid.proto.record import M, Role, Signed
from p2pgrid.proto.statement import Payment, Statement
from p2pgrid.settlement.bank.booking import OnRecord, earliest_ms
from p2pgrid.settlement.bank.names import CURRENCY
from p2pgrid.settlement.open_items import ChannelItems, SetOffShare, items_by_channel
from p2pgrid.settlement.statements.days import LocalDays


class Reader(Protocol):
    """What of a ledger is needed here: any reader has it."""

    def channels(self) -> list[Signed[Channel]]: ...

    def settlement(self, message_type: type[M], channel: bytes) -> list[Signed[M]]: ...

    def head(self, channel: bytes) -> ChannelHead: ...

    def order(self, channel: bytes, order_number: int) -> OpenOrder | None: ...

    def offer(self, offer_id: bytes) -> Signed[Offer] | None: ...


class Details(Protocol):
    """Who is on the invoices, and where money goes: `p2pgrid.settlement.details.DetailsBook`."""

    def of(self, party: bytes, by: Role) -> Signed[BillingDetails] | None:
        """Those with the highest sequence, or None."""


SetOffs = Callable[[Reader, Sequence[bytes]], Iterable[SetOffShare]]
"""What was set off in these channels, by the ledger's records."""


def no_set_offs(_: Reader, __: Sequence[bytes]) -> Iterable[SetOffShare]:
    """Where a ledger keeps none."""
    return ()


@dataclass(frozen=True, kw_only=True)
class Side:
    """One channel from our side."""

    channel: Channel
    is_purchase: bool
    """True if we are its client."""
    found: ChannelItems
    payments: tuple[Payment, ...]
    statements: tuple[Statement, ...]
    """By number."""
    details: BillingDetails | None
    """The other side's."""
    utc_offset_minutes: int
    """Of the provider's clock, by the last offer that was bought under."""

    @property
    def id(self) -> bytes:
        return self.channel.channel

    @property
    def other(self) -> bytes:
        """The other side's key."""
        return self.channel.provider if self.is_purchase else self.channel.client

    @property
    def peer_id(self) -> str:
        """The other side's."""
        return parse_public_key(self.other).peer_id

    @property
    def other_name(self) -> str:
        """As its account is called; empty where nobody told."""
        return (self.details.account_holder or self.details.legal_name) if self.details is not None else ""

    @property
    def is_in_euros(self) -> bool:
        return self.channel.currency == CURRENCY

    def require_euros(self) -> None:
        """Raises UsageError where the channel is in another currency: no transfer in euros is for it."""
        if not self.is_in_euros:
            raise UsageError(
                f"the channel with {self.peer_id} is in {self.channel.currency}.", hint="Only euros are paid here."
            )

    def day_of(self, time_ms: int) -> date:
        """The provider's calendar day at a time."""
        return LocalDays.at_offset(self.utc_offset_minutes).of(time_ms)

    @property
    def on_record(self) -> OnRecord:
        items = {item.place: item for item in self.found.items}
        return OnRecord(self.channel.currency, items, self.payments, earliest_ms(self.statements))


def look(
    ledger: Reader, ours: Collection[bytes], details: Details | None = None, set_offs: SetOffs = no_set_offs
) -> tuple[Side, ...]:
    """Every channel of our keys, the oldest first. Raises LedgerError."""
    channels = [one.message for one in ledger.channels() if {one.message.provider, one.message.client} & set(ours)]
    ids = [channel.channel for channel in channels]
    found = {one.channel: one for one in items_by_channel(ledger, ids, set_off=set_offs(ledger, ids))}
    sides = []
    for channel in channels:
        is_purchase = channel.provider not in ours
        other = (channel.provider, Role.PROVIDER) if is_purchase else (channel.client, Role.CLIENT)
        known = details.of(*other) if details is not None else None
        statements = (one.message for one in ledger.settlement(Statement, channel.channel))
        sides.append(
            Side(
                channel=channel,
                is_purchase=is_purchase,
                found=found[channel.channel],
                payments=tuple(one.message for one in ledger.settlement(Payment, channel.channel)),
                statements=tuple(sorted(statements, key=lambda one: one.statement_number)),
                details=known.message if known is not None else None,
                utc_offset_minutes=_offset(ledger, channel.channel),
            )
        )
    return tuple(sides)


def _offset(ledger: Reader, channel: bytes) -> int:
    number = ledger.head(channel).last_order_number
    last = ledger.order(channel, number) if number else None
    offer = ledger.offer(last.order.message.offer) if last is not None else None
    return offer.message.utc_offset_minutes if offer is not None else 0
