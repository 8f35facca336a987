"""Channels: asked for, resumed, listed (docs/spec/session.md, sections 1 and 10)."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

from p2pgrid.proto.fields import Digest, Id
from p2pgrid.proto.wire.base import MAX_NUMBER, Frame

MAX_BATCH_RECORDS: Final = 1024
"""Records that one side sends in one exchange when a channel is resumed."""
MAX_OPEN_TICKS: Final = 1024
MAX_CHANNELS: Final = 15
"""Of one pair, in a Channels message: the last ones."""


class ChannelRequest(Frame, frozen=True, kw_only=True):
    """The client asks for a channel under the provider's offer. Its key is known from the link."""

    client_nonce: Id
    offer: Id
    now_ms: Annotated[int, Meta(ge=0)]
    continues: Digest = b""
    """After a change of the provider's key: the head of the channel under its former key; see `Channel.continues`."""


class OpenTick(Frame, frozen=True, kw_only=True):
    """An order without a receipt, and how far it is vouched for."""

    order_number: Annotated[int, Meta(ge=1, le=MAX_NUMBER)]
    tick: Annotated[int, Meta(ge=0, le=MAX_NUMBER)]
    """Of the last voucher; 0 if there is none."""


class Held(Frame, frozen=True, kw_only=True):
    """What a side's ledger holds of a channel."""

    last_order_number: Annotated[int, Meta(ge=0, le=MAX_NUMBER)]
    """Highest order number that was used. Orders above the provider's never arrived, or are lost to it."""
    last_receipt_number: Annotated[int, Meta(ge=0, le=MAX_NUMBER)]
    """Of its chain: proposals count on the provider's side, on the client's those that it has signed or disputed."""
    last_receipt: Id
    """That receipt's id; the channel's record id if there is none."""
    open_orders: Annotated[tuple[OpenTick, ...], Meta(max_length=MAX_OPEN_TICKS)]
    """By number; the lowest ones where there are more."""


class Resume(Frame, frozen=True, kw_only=True):
    """The client wants to go on with a channel."""

    channel: Annotated[bytes, Meta(max_length=4096)]
    """The Channel record with both signatures, in wire form."""
    held: Held


class Resumed(Frame, frozen=True, kw_only=True):
    """What the provider holds, and how many records follow that the client lacks."""

    held: Held
    records: Annotated[int, Meta(ge=0, le=MAX_BATCH_RECORDS)]


class Records(Frame, frozen=True, kw_only=True):
    """How many records follow that the provider lacks."""

    records: Annotated[int, Meta(ge=0, le=MAX_BATCH_RECORDS)]
    is_all: bool
    """False if the client holds more: the exchange is then repeated, and no receipt is made before."""


class Proposals(Frame, frozen=True, kw_only=True):
    """How many receipts follow that the client has neither signed nor disputed, in order of their numbers."""

    proposals: Annotated[int, Meta(ge=0, le=MAX_BATCH_RECORDS)]
    is_all: bool
    """False if anything is left: records or proposals. The exchange is then repeated."""


class Channels(Frame, frozen=True, kw_only=True):
    """The channels of the two, oldest first, in wire form and with both signatures."""

    channels: Annotated[tuple[Annotated[bytes, Meta(max_length=4096)], ...], Meta(max_length=MAX_CHANNELS)]
