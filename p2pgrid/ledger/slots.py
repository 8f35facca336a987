"""Which slots of running orders are taken, in memory: whether a record fits is known before it is written anywhere.

The journal keeps only what is sure to fit (`Slots.take`): a new order, the next tick, the receipt of an order without
one, its countersignature. Whatever else comes (channels, disputes, what a peer brings back, the same record again) goes
to SQLite at once, which knows every slot.

What is not remembered is read from the SQLite file, and so only while that has all that was acknowledged about the
channel or order: it is forgotten no earlier than that (`settled`, `forget`), and an order that is over takes no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from p2pgrid.proto.messages import Meter, Order, Receipt, Voucher
from p2pgrid.proto.record import Message, Role, Signature, Signed


@dataclass(slots=True)
class OrderSlots:
    """What stands about one order."""

    order: bytes
    """Its id."""
    meter_tick: int = 0
    voucher_tick: int = 0
    """The highest ticks on record."""
    receipt: bytes | None = None
    """The id of its receipt."""
    signatures: tuple[Signature, ...] = ()
    """Those of the receipt."""
    is_over: bool = False
    """Nothing more is expected about it."""


@dataclass(slots=True)
class ChannelSlots:
    """The highest numbers on record in a channel, and its orders that run."""

    order_number: int
    receipt_number: int
    orders: dict[int, OrderSlots] = field(default_factory=dict)


ReadChannel = Callable[[bytes], ChannelSlots | None]
"""A channel's numbers from the SQLite file; None if it is not on record."""
ReadOrder = Callable[[bytes, int], OrderSlots | None]
"""What the SQLite file has about an order; None if it has not even the order, or has an outcome or a whole receipt."""


class Slots:
    """Of all channels. Not for several threads."""

    def __init__(self, read_channel: ReadChannel, read_order: ReadOrder) -> None:
        self._read_channel = read_channel
        self._read_order = read_order
        self._channels: dict[bytes, ChannelSlots] = {}
        self._over: list[tuple[bytes, int]] = []

    def take(self, signed: Signed[Message]) -> bool:
        """True if the record is sure to fit: its slots are taken now. False: nobody knows, nothing was changed."""
        message = signed.message
        if isinstance(message, Order):
            return self._take_order(message, signed.id)
        if isinstance(message, Receipt):
            return self._take_receipt(message, signed)
        if isinstance(message, Meter | Voucher):
            order = self._order(message.channel, message.order_number)
            if order is None or order.is_over:
                return False
            if isinstance(message, Meter):
                fits = message.tick > order.meter_tick
                order.meter_tick = max(order.meter_tick, message.tick)
            else:
                fits = message.tick > order.voucher_tick
                order.voucher_tick = max(order.voucher_tick, message.tick)
            return fits
        return False

    def close(self, order: Signed[Message]) -> bool:
        """True if the order stands or fits, and gets no receipt: an outcome may be noted."""
        message = order.message
        assert isinstance(message, Order)
        standing = self._order(message.channel, message.order_number)
        if standing is None:
            if not self.take(order):
                return False
            standing = self._channels[message.channel].orders[message.order_number]
        if standing.order != order.id or standing.receipt is not None or standing.is_over:
            return False
        self._end(message.channel, message.order_number, standing)
        return True

    def over(self) -> list[tuple[bytes, int]]:
        """Orders that are over and still remembered: to be given to `settled` once what was taken by now is settled."""
        over, self._over = self._over, []
        return over

    def settled(self, over: Iterable[tuple[bytes, int]]) -> None:
        """The SQLite file has all about these orders: they need not be remembered."""
        for channel, order_number in over:
            slots = self._channels.get(channel)
            if slots is not None:
                slots.orders.pop(order_number, None)

    def forget(self, channels: Iterable[bytes]) -> None:
        """Read these channels anew: something about them was written past `take`, or was taken and not written.

        Only while the SQLite file has all that was acknowledged.
        """
        self.settled(self.over())
        for channel in channels:
            self._channels.pop(channel, None)

    def _take_order(self, message: Order, record_id: bytes) -> bool:
        channel = self._channel(message.channel)
        if channel is None or message.order_number <= channel.order_number:
            return False
        channel.order_number = message.order_number
        channel.orders[message.order_number] = OrderSlots(record_id)
        return True

    def _take_receipt(self, message: Receipt, signed: Signed[Message]) -> bool:
        order = self._order(message.channel, message.order_number)
        if order is None or order.is_over:
            return False
        signatures = signed.record.signatures
        if len(signatures) != len(signed.signers) or not signatures or signatures[0].role is not Role.PROVIDER:
            return False
        channel = self._channels[message.channel]
        if order.receipt is None:
            if message.receipt_number <= channel.receipt_number:
                return False
            channel.receipt_number = message.receipt_number
            order.receipt = signed.id
        elif order.receipt != signed.id or signatures[:-1] != order.signatures:
            return False
        order.signatures = signatures
        if len(signatures) > 1:
            self._end(message.channel, message.order_number, order)
        return True

    def _end(self, channel: bytes, order_number: int, order: OrderSlots) -> None:
        if not order.is_over:
            order.is_over = True
            self._over.append((channel, order_number))

    def _channel(self, channel: bytes) -> ChannelSlots | None:
        slots = self._channels.get(channel)
        if slots is None and (slots := self._read_channel(channel)) is not None:
            self._channels[channel] = slots
        return slots

    def _order(self, channel: bytes, order_number: int) -> OrderSlots | None:
        slots = self._channel(channel)
        if slots is None:
            return None
        order = slots.orders.get(order_number)
        if order is None and (order := self._read_order(channel, order_number)) is not None:
            slots.orders[order_number] = order
        return order


def channels_of(signed: Sequence[Signed[Message]]) -> set[bytes]:
    """The channels that records are about."""
    return {channel for one in signed if (channel := getattr(one.message, "channel", None)) is not None}
