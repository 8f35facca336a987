"""Where the channels with a peer stand, and what changed between two looks at them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from p2pgrid.errors import UsageError
from p2pgrid.ledger.base import OpenOrder
from p2pgrid.proto.channel import ChannelHead
from p2pgrid.proto.keys import PublicKey
from p2pgrid.proto.messages import Channel, Offer, Receipt
from p2pgrid.proto.reconcile import Reconciliation
from p2pgrid.proto.record import PARTIES, Role, Signed

MOST_LISTED: Final = 1000
"""Of new receipts that are looked at one by one."""


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """One side's books of one channel."""

    orders: int
    """The highest order number."""
    open_orders: int
    receipts: int
    """The highest receipt number."""
    countersigned: int
    total_pico: int
    """The channel's total by the last receipt."""


@dataclass(frozen=True, slots=True)
class Standing:
    """One channel at one moment."""

    totals: Totals
    open_orders: frozenset[int]
    proposals: frozenset[int]
    """Receipts that the client has not signed."""


NOTHING: Final = Standing(
    Totals(orders=0, open_orders=0, receipts=0, countersigned=0, total_pico=0), frozenset(), frozenset()
)
"""Of a channel that was not on record."""


class Books(Protocol):
    """What of a ledger is needed here: any reader has it."""

    def channels(self) -> list[Signed[Channel]]: ...

    def head(self, channel: bytes) -> ChannelHead: ...

    def open_orders(self, channel: bytes) -> list[OpenOrder]: ...

    def proposals(self, channel: bytes) -> list[Signed[Receipt]]: ...

    def order(self, channel: bytes, order_number: int) -> OpenOrder | None: ...

    def receipt(self, channel: bytes, receipt_number: int) -> Signed[Receipt] | None: ...

    def offer(self, offer_id: bytes) -> Signed[Offer] | None: ...


class ChannelChanges(msgspec.Struct, frozen=True, kw_only=True):
    """What reconciling a channel changed on this side."""

    channel: str
    before: Totals
    after: Totals
    receipts: tuple[ReceiptChange, ...] = ()
    """New here, or signed by both since."""
    closed_orders: tuple[int, ...] = ()
    """Orders that are open no more and have no receipt: they never became the other side's business."""
    open_orders: tuple[int, ...] = ()
    """Orders that are still open."""
    restored: int = 0
    """Records that our ledger lacked and the other side had."""
    sent: int = 0
    """Records that the other side's ledger lacked and ours had."""

    @property
    def is_changed(self) -> bool:
        """False if both looks saw the same."""
        return self.before != self.after or bool(self.receipts or self.closed_orders or self.restored or self.sent)


class Reconciled(msgspec.Struct, frozen=True, kw_only=True):
    """What came of reconciling with a peer."""

    peer: str
    role: str
    """What we are in these channels: `client` or `provider`."""
    changed: bool
    channels: tuple[ChannelChanges, ...] = ()
    waits_for_client: bool = False
    """True on the provider's side: only the client can connect."""
    is_connected: bool = False
    """True on the provider's side while the client has a link."""
    earlier: tuple[EarlierExchange, ...] = ()
    """What the gateway's own exchanges changed before this one, oldest first."""
    quarantine_lifted: str = ""
    """What the provider had been held for, where it is dealt with again."""


class EarlierExchange(msgspec.Struct, frozen=True, kw_only=True):
    """What an exchange changed that nobody asked for: on a new link, or because a dispute was news."""

    at_ms: int
    """When it was over."""
    channels: tuple[ChannelChanges, ...]


class ReceiptChange(msgspec.Struct, frozen=True, kw_only=True):
    """A receipt that is new on this side, or whose signatures are."""

    receipt_number: int
    order_number: int
    status: str
    amount_pico: int
    is_new: bool
    is_countersigned: bool
    is_disputed: bool = False
    """True if this side disputes it."""


def channels_with(ledger: Books, ours: PublicKey, peer: PublicKey) -> list[Signed[Channel]]:
    """The channels of two keys, whichever of them sells; oldest first."""
    pair = {ours.raw, peer.raw}
    return [c for c in ledger.channels() if {c.message.provider, c.message.client} == pair]


def last_offer(ledger: Books, ours: PublicKey, peer: PublicKey) -> Signed[Offer] | None:
    """The offer that the last order between the two was placed under, in force or not."""
    for channel in reversed(channels_with(ledger, ours, peer)):
        channel_id = channel.message.channel
        last = ledger.order(channel_id, ledger.head(channel_id).last_order_number)
        if last is not None:
            return ledger.offer(last.order.message.offer)
    return None


def standing_of(ledger: Books, channel: bytes) -> Standing:
    """How the channel stands now."""
    head = ledger.head(channel)
    open_orders = frozenset(one.order.message.order_number for one in ledger.open_orders(channel))
    totals = Totals(
        orders=head.last_order_number,
        open_orders=len(open_orders),
        receipts=head.last_receipt_number,
        countersigned=head.countersigned,
        total_pico=head.total_pico,
    )
    proposals = frozenset(one.message.receipt_number for one in ledger.proposals(channel))
    return Standing(totals, open_orders, proposals)


def changes_since(
    ledger: Books, channel: bytes, before: Standing, done: Sequence[Reconciliation] = ()
) -> ChannelChanges:
    """What became of the channel since `before`; `done` is what resuming it did, however often that was."""
    after = standing_of(ledger, channel)
    new = range(before.totals.receipts + 1, after.totals.receipts + 1)[:MOST_LISTED]
    looked_at = sorted({*(before.proposals - after.proposals), *new})
    receipts = [ledger.receipt(channel, number) for number in looked_at]
    disputed = {one.message.receipt_number for each in done for one in each.disputed}
    changes = [
        _change(one, is_new=number in new, is_disputed=number in disputed)
        for number, one in zip(looked_at, receipts, strict=True)
        if one is not None
    ]
    billed = {one.order_number for one in changes}
    return ChannelChanges(
        channel=channel.hex(),
        before=before.totals,
        after=after.totals,
        receipts=tuple(changes),
        closed_orders=tuple(sorted(before.open_orders - after.open_orders - billed)),
        open_orders=tuple(sorted(after.open_orders)),
        restored=sum(len(each.restored) for each in done),
        sent=sum(each.sent for each in done),
    )


def with_earlier(changes: ChannelChanges, earlier: Sequence[EarlierExchange]) -> ChannelChanges:
    """The same, with the records that these exchanges moved and what they disputed: they came between the looks."""
    of_it = [one for each in earlier for one in each.channels if one.channel == changes.channel]
    disputed = {one.receipt_number for each in of_it for one in each.receipts if one.is_disputed}
    receipts = tuple(
        msgspec.structs.replace(one, is_disputed=one.is_disputed or one.receipt_number in disputed)
        for one in changes.receipts
    )
    return msgspec.structs.replace(
        changes,
        receipts=receipts,
        restored=changes.restored + sum(one.restored for one in of_it),
        sent=changes.sent + sum(one.sent for one in of_it),
    )


def _change(receipt: Signed[Receipt], *, is_new: bool, is_disputed: bool) -> ReceiptChange:
    message = receipt.message
    return ReceiptChange(
        receipt_number=message.receipt_number,
        order_number=message.order_number,
        status=message.status.value,
        amount_pico=message.amount_pico,
        is_new=is_new,
        is_countersigned=set(PARTIES) <= set(receipt.signers),
        is_disputed=is_disputed,
    )


def require_channels(ledger: Books, ours: PublicKey, peer: PublicKey, role: Role) -> list[Signed[Channel]]:
    """The channels with a peer in which we have that role. Raises UsageError if there are none."""
    found = [c for c in channels_with(ledger, ours, peer) if is_provider_in(c, ours) is (role is Role.PROVIDER)]
    if not found:
        raise UsageError(
            f"there is no channel with {peer} in which this node is the {role}.",
            hint="`p2pgrid receipts list --json` shows who was dealt with.",
        )
    return found


def is_provider_in(channel: Signed[Channel], ours: PublicKey) -> bool:
    """True if we sell in the channel."""
    return channel.message.provider == ours.raw
