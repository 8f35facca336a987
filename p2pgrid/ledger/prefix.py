"""What the writer of a ledger remembers of each channel, so that reading where it stands does not grow with it.

Nearly all of a channel is settled for good, and stands below a number that only grows: no order below it is open, no
receipt below it lacks a signature. Reading starts there. A record that a peer brings back late, below that number,
moves it down again; a process that has just begun knows nothing, and reads a channel once as a whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from p2pgrid.proto.messages import Order, Receipt
from p2pgrid.proto.record import Message, Signed


@dataclass(slots=True)
class Prefix:
    """Of one channel, as of the last reading."""

    open_from: int = 0
    """No order with a lower number is open."""
    counted_until: int = 0
    """The number up to which receipts are counted."""
    counted: int = 0
    """Receipts up to it. All of them are countersigned."""
    is_certain: bool = True
    """False once nobody can tell any more when records of the channel are written: it is then read as a whole."""


class Prefixes:
    """Of all channels."""

    def __init__(self) -> None:
        self._by_channel: dict[bytes, Prefix] = {}

    def of(self, channel: bytes) -> Prefix:
        """What is known of a channel, to be read and changed."""
        return self._by_channel.setdefault(channel, Prefix())

    def forget(self, channel: bytes) -> None:
        """Know nothing of a channel any more."""
        self._by_channel.pop(channel, None)

    def written(self, signed: Iterable[Signed[Message]], written: asyncio.Future[None]) -> None:
        """Records are on record now, or were refused; of a future that was cancelled, who knows when."""
        for one in signed:
            message = one.message
            if not isinstance(message, Order | Receipt):
                continue
            prefix = self._by_channel.get(message.channel)
            if written.cancelled():
                self._by_channel[message.channel] = Prefix(is_certain=False)
            elif prefix is None:
                continue
            elif isinstance(message, Order):
                prefix.open_from = min(prefix.open_from, message.order_number)
            elif message.receipt_number <= prefix.counted_until:
                prefix.counted_until = prefix.counted = 0
