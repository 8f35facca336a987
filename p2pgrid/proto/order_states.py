"""Where an order stands on either side, and what moves it: both machines as tables (docs/spec/session.md, 9)."""

from __future__ import annotations

from enum import Enum, auto
from typing import Final


class SellerState(Enum):
    """Where an order stands on the provider's side."""

    __hash__ = object.__hash__  # members are single: no need to hash their names, at every event

    ASKED = auto()
    """The engine has the request; no token yet."""
    STREAMING = auto()
    """Tokens flow; the window has room."""
    HELD = auto()
    """The window is full; a voucher must come."""
    PROPOSED = auto()
    """The receipt is proposed; the countersignature must come."""
    SETTLED = auto()
    """The receipt carries both signatures."""
    DISPUTED = auto()
    """The client disputes the receipt."""
    SUSPENDED = auto()
    """The link is lost. The order has no receipt before the channel is resumed (`reconcile`)."""


class SellerEvent(Enum):
    """What can happen to an order on the provider's side."""

    __hash__ = object.__hash__  # members are single: no need to hash their names, at every event

    TOKENS = auto()
    WINDOW_FULL = auto()
    VOUCHER = auto()
    FINISHED = auto()
    CANCEL = auto()
    COUNTERSIGNED = auto()
    DISPUTED = auto()
    LINK_LOST = auto()


_S, _E = SellerState, SellerEvent
SELLER_TRANSITIONS: Final[dict[tuple[SellerState, SellerEvent], SellerState]] = {
    (_S.ASKED, _E.TOKENS): _S.STREAMING,
    (_S.ASKED, _E.FINISHED): _S.PROPOSED,
    (_S.ASKED, _E.CANCEL): _S.PROPOSED,
    (_S.ASKED, _E.LINK_LOST): _S.SUSPENDED,
    (_S.STREAMING, _E.TOKENS): _S.STREAMING,
    (_S.STREAMING, _E.WINDOW_FULL): _S.HELD,
    (_S.STREAMING, _E.VOUCHER): _S.STREAMING,
    (_S.STREAMING, _E.FINISHED): _S.PROPOSED,
    (_S.STREAMING, _E.CANCEL): _S.PROPOSED,
    (_S.STREAMING, _E.LINK_LOST): _S.SUSPENDED,
    (_S.HELD, _E.WINDOW_FULL): _S.HELD,
    (_S.HELD, _E.VOUCHER): _S.STREAMING,
    (_S.HELD, _E.FINISHED): _S.PROPOSED,
    (_S.HELD, _E.CANCEL): _S.PROPOSED,
    (_S.HELD, _E.LINK_LOST): _S.SUSPENDED,
    (_S.PROPOSED, _E.VOUCHER): _S.PROPOSED,
    (_S.PROPOSED, _E.CANCEL): _S.PROPOSED,
    (_S.PROPOSED, _E.LINK_LOST): _S.PROPOSED,
    (_S.PROPOSED, _E.COUNTERSIGNED): _S.SETTLED,
    (_S.PROPOSED, _E.DISPUTED): _S.DISPUTED,
}
"""The machine as a table; what is not in it is not allowed."""


class BuyerState(Enum):
    """Where an order stands on the client's side."""

    __hash__ = object.__hash__  # members are single: no need to hash their names, at every event

    ORDERED = auto()
    """The order is signed; nothing came back yet."""
    RECEIVING = auto()
    """The engine has answered."""
    WAITING = auto()
    """The receipt came before one that stands before it in the chain, whose stream is slower."""
    SETTLED = auto()
    """The receipt carries both signatures."""
    REFUSED = auto()
    """The provider refused the order. Nothing is owed."""
    DISPUTED = auto()
    """The receipt says what is not so. We signed that we dispute it; the chain goes on above it."""
    BREACHED = auto()
    """The provider broke the rules. Nothing more is signed."""
    LOST = auto()
    """The link is gone; the receipt comes when the channel is resumed."""


class BuyerEvent(Enum):
    """What can happen to an order on the client's side."""

    __hash__ = object.__hash__  # members are single: no need to hash their names, at every event

    HEAD = auto()
    CHUNK = auto()
    METER = auto()
    RECEIPT = auto()
    EARLY_RECEIPT = auto()
    WRONG_RECEIPT = auto()
    REFUSAL = auto()
    FAULT = auto()
    LINK_LOST = auto()


_B, _F = BuyerState, BuyerEvent
BUYER_TRANSITIONS: Final[dict[tuple[BuyerState, BuyerEvent], BuyerState]] = {
    (_B.ORDERED, _F.HEAD): _B.RECEIVING,
    (_B.ORDERED, _F.REFUSAL): _B.REFUSED,
    (_B.ORDERED, _F.RECEIPT): _B.SETTLED,
    (_B.ORDERED, _F.WRONG_RECEIPT): _B.DISPUTED,
    (_B.ORDERED, _F.EARLY_RECEIPT): _B.WAITING,
    (_B.ORDERED, _F.FAULT): _B.BREACHED,
    (_B.ORDERED, _F.LINK_LOST): _B.LOST,
    (_B.RECEIVING, _F.CHUNK): _B.RECEIVING,
    (_B.RECEIVING, _F.METER): _B.RECEIVING,
    (_B.RECEIVING, _F.RECEIPT): _B.SETTLED,
    (_B.RECEIVING, _F.WRONG_RECEIPT): _B.DISPUTED,
    (_B.RECEIVING, _F.EARLY_RECEIPT): _B.WAITING,
    (_B.RECEIVING, _F.FAULT): _B.BREACHED,
    (_B.RECEIVING, _F.LINK_LOST): _B.LOST,
    (_B.WAITING, _F.RECEIPT): _B.SETTLED,
    (_B.WAITING, _F.WRONG_RECEIPT): _B.DISPUTED,
    (_B.WAITING, _F.FAULT): _B.BREACHED,
    (_B.WAITING, _F.LINK_LOST): _B.LOST,
}
"""The machine as a table; what is not in it is not allowed."""
BATCH_BUYER_TRANSITIONS: Final = {**BUYER_TRANSITIONS, (BuyerState.RECEIVING, BuyerEvent.HEAD): BuyerState.RECEIVING}
"""As a single order's; several heads come. REQUEST_ENDED and REQUEST_REFUSED move no state."""
