"""One channel that is open with a client: its books, and the orders that are live on it.

Receipts leave in the order of their numbers, whichever stream they leave on; where an accepted order's stream is lost,
the link goes too (`p2pgrid.provider.channels`).
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from p2pgrid.errors import LedgerError, Refused
from p2pgrid.net.connection import LinkConnection
from p2pgrid.proto.books import ChannelBooks


class LiveOrder(Protocol):
    """An order with a stream, as its channel sees it."""

    @property
    def connection(self) -> LinkConnection: ...

    def send_waiting(self) -> None:
        """Its receipt is the next that may leave."""

    @property
    def may_end(self) -> bool:
        """True once the client has signed or disputed its receipt."""

    def interrupt(self, reason: str) -> None:
        """Its link is given up: suspend it."""

    def fail(self) -> None:
        """End it as `failed`."""

    def stop(self) -> None:
        """End it as `interrupted`, by its last voucher."""

    def abandon(self, error: LedgerError) -> None:
        """The books it relied on are not durable: stop, and send nothing more."""


class Resuming(Protocol):
    """An exchange that resumes a channel."""

    def interrupt(self, reason: str) -> None:
        """The client has begun another."""


class OpenChannel:
    """One channel: its books, and its orders that have a stream."""

    def __init__(self, books: ChannelBooks, link: LinkConnection | None, away_since_ms: int) -> None:
        self.books = books
        self.link = link
        """The link on which the channel was opened or resumed last; None while it has to be resumed."""
        self.away_since_ms = away_since_ms
        """When an order was last left without a stream, or this process began."""
        self.live: set[LiveOrder] = set()
        """Orders accepted and not settled."""
        self.arriving: set[LiveOrder] = set()
        """Orders whose body is not there yet."""
        self.broken: LedgerError | None = None
        """Set while the books in memory are not those in the ledger."""
        self.resuming: Resuming | None = None
        """The exchange that resumes it now."""
        self.is_held = True
        """False while another of the node's processes holds it: what is here is then of no use."""
        self._unsent: deque[LiveOrder] = deque()

    def check_usable(self) -> None:
        """Raises Refused (`ledger-unavailable`) while the books cannot be relied on."""
        if self.broken is not None:
            raise Refused("ledger-unavailable", "the provider's ledger cannot be written to now.")

    def check_resumed_on(self, connection: LinkConnection) -> None:
        """Raises Refused (`not-resumed`) unless the channel was opened or resumed on that link."""
        if self.link is not connection:
            raise Refused("not-resumed", "the channel was not resumed on this link.", hint="Resume it first.")

    # -- receipts, in the order of their numbers --------------------------------------------------------------------

    def proposed(self, order: LiveOrder) -> None:
        """The order's receipt was made, as the chain's last."""
        self._unsent.append(order)

    def may_send_receipt(self, order: LiveOrder) -> bool:
        """False while an earlier receipt has yet to leave."""
        return self._unsent[0] is order

    def receipt_sent(self) -> None:
        """The receipt whose turn it was has left."""
        self._unsent.popleft()
        if self._unsent:
            self._unsent[0].send_waiting()

    def closed(self, order: LiveOrder) -> None:
        """The order's receipt carries both signatures, or is disputed: its stream has no more to say."""
        self.live.discard(order)

    def lost(self, order: LiveOrder, now_ms: int) -> None:
        """The order's stream is gone. What it leaves open is closed when the channel is resumed."""
        self.live.discard(order)
        self.away_since_ms = now_ms
        if order in self._unsent:
            self._unsent.remove(order)

    def interrupt_all_on(self, connection: LinkConnection) -> None:
        """An order's stream on `connection` is lost: a later receipt on the others would be a gap to the client."""
        for order in [one for one in self.live if one.connection is connection]:
            order.interrupt("another order's stream was lost")

    @property
    def is_idle(self) -> bool:
        """True if nothing runs on it and no link has it."""
        is_away = self.link is None or self.link.closed.done()
        return is_away and not (self.live or self.arriving or self.resuming or self.broken)

    def give_up(self, reason: str) -> None:
        """Another process takes over: end what runs here. What was to be recorded of it is with the ledger then."""
        self.link = None
        for order in [*self.live, *self.arriving]:
            order.interrupt(reason)
        if self.resuming is not None:
            self.resuming.interrupt(reason)
        self.broken = None

    def begin_resume(self, connection: LinkConnection) -> None:
        """The client resumes on `connection`: orders on its other links are over, and nothing new begins until it has.

        Raises Refused (`busy`) while orders of that very link are open.
        """
        orders = [*self.live, *self.arriving]
        if any(one.connection is connection and not one.may_end for one in orders):
            raise Refused(
                "busy", "orders on this link are open.", hint="Resume before ordering, or when they have ended."
            )
        self.link = None
        for order in [one for one in orders if one.connection is not connection]:
            order.interrupt("the client resumed the channel on another link")
