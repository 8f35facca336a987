"""What an all-seeing observer holds against a history while it runs: who has what, and who has signed for it.

It counts by itself, from the bytes that leave and arrive, and believes no machine. What breaks a promise of
docs/spec/session.md raises `Broken` at the step that broke it.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from p2pgrid.errors import P2pgridError, ProtocolViolation
from p2pgrid.proto.dispute import Dispute
from p2pgrid.proto.evidence import slot_of
from p2pgrid.proto.message_types import MESSAGE_TYPES
from p2pgrid.proto.messages import Channel, Meter, Order, Receipt, Status, Tariff, Voucher
from p2pgrid.proto.record import Message, Record, Role, Signed, parse_message, parse_record
from p2pgrid.proto.wire.base import parse_frame
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.proto.wire.orders import BatchOpening, Head, OrderOpening, RequestHead
from tests.simulation.sale import Delivery, Sale


class Broken(AssertionError):
    """A promise was broken."""


RECORD_KINDS: Final = frozenset(
    {Kind.CHANNEL, Kind.METER, Kind.VOUCHER, Kind.RECEIPT, Kind.COUNTERSIGNATURE, Kind.RECORD, Kind.DISPUTE}
)
"""Kinds whose payload is a signed record."""


class Observer:
    """Sees everything that leaves, arrives, and becomes durable."""

    def __init__(self, window: int, honest: frozenset[Role]) -> None:
        self.window: Final = window
        self.honest: Final = honest
        self.sales: Final[dict[bytes, Sale]] = {}
        """By the order record's id."""
        self._slots: dict[tuple[Any, ...], bytes] = {}
        self._orders: dict[tuple[bytes, int], Sale] = {}
        self._billed: dict[bytes, Sale] = {}
        """By the receipt record's id."""
        self._signed_pico: Counter[bytes] = Counter()
        """Of receipts with both signatures in the provider's ledger, by channel."""

    def ordered(self, order: Signed[Order], tariff: Tariff) -> None:
        """The client signed an order. Its requests are `asked`, if only one."""
        sale = Sale(order.message, tariff)
        self.sales[order.id] = sale
        self._orders.setdefault((order.message.channel, order.message.order_number), sale)

    def asked(self, order_id: bytes, *, n: int, largest_event: int) -> None:
        """One more request under an order."""
        sale = self.sales[order_id]
        sale.parts.append(Delivery(n))
        sale.largest_event = max(sale.largest_event, largest_event)

    # -- the wire -------------------------------------------------

    def leaves(self, side: Role, kind: int, payload: bytes, durable: dict[bytes, set[Role]]) -> None:
        """A message leaves a side: what it signed must be durable there."""
        if side not in self.honest:
            return
        record = record_in(kind, payload)
        if record is None or (kind == Kind.CHANNEL and side is Role.PROVIDER):
            return
        if record.signature_of(side) is not None and side not in durable.get(record.id, ()):
            raise Broken(f"the {side}'s {record.payload_type} left before it was durable.")
        if kind == Kind.METER:
            meter = parse_message(record, Meter)
            sale = self._orders.get((meter.channel, meter.order_number))
            if sale is not None:
                sale.meter(record.id)

    def arrives(self, to: Role, kind: int, payload: bytes) -> None:
        """A message arrives: whoever signed it, and is honest, has shown no other in its place."""
        try:
            record = record_in(kind, payload)
            if record is None:
                return
            if record.payload_type not in MESSAGE_TYPES:
                return
            message = parse_message(record, MESSAGE_TYPES[record.payload_type])
        except P2pgridError as nonsense:
            if len(self.honest) == 2:
                raise Broken(f"what reached the {to} is no record: {nonsense}") from None
            return
        for signature in record.signatures:
            if signature.role in self.honest and signature.role is not to:
                self._show(signature.role, message, record)

    def _show(self, role: Role, message: Message, record: Record) -> None:
        slot = (role, type(message), *slot_of(message))
        known = self._slots.setdefault(slot, record.id)
        if known != record.id:
            raise Broken(f"the {role} has signed two different records for {slot_name(message)}.")

    def heads_off(self, order_id: bytes, status: int, index: int = 0) -> None:
        """A HEAD leaves the provider."""
        self.sales[order_id].part(index).sent_status = status

    def sends(self, order_id: bytes, data: bytes, now_ms: int, index: int = 0) -> None:
        """A CHUNK, or a PART's bytes, leave the provider."""
        fault = self.sales[order_id].send(index, data, self.window)
        if fault and Role.PROVIDER in self.honest:
            raise Broken(f"order {self.sales[order_id].order.order_number}: {fault}")
        if Role.PROVIDER in self.honest:
            self.check_exposure(self.sales[order_id].order.channel, now_ms)

    def check_exposure(self, channel: bytes, now_ms: int) -> None:
        """What went out unsigned on all orders, the dearest apart, is no more than the client signed receipts for."""
        unpaid = [
            one.lacking_pico(self.window)
            for one in self.sales.values()
            if one.order.channel == channel and one.has_left and not one.is_borne and one.counts_until_ms > now_ms
        ]
        if len(unpaid) > 1 and sum(unpaid) - max(unpaid) > self._signed_pico[channel]:
            raise Broken(
                f"{sum(unpaid)} pico-EUR are out on {len(unpaid)} orders, the dearest {max(unpaid)}; "
                f"receipts over {self._signed_pico[channel]} are signed."
            )

    def ends(self, order_id: bytes, status: Status, index: int) -> None:
        """A REQUEST_ENDED leaves the provider."""
        self.sales[order_id].part(index).ended = status

    def takes(self, order_id: bytes, index: int) -> None:
        """The provider passes a request of a batch order to its engine."""
        self.sales[order_id].part(index).is_taken = True

    def heads(self, order_id: bytes, kind: int, payload: bytes) -> None:
        """A HEAD reaches the client."""
        try:
            said = parse_frame(payload, Head if kind == Kind.HEAD else RequestHead)
            index = said.index if isinstance(said, RequestHead) else 0
            self.sales[order_id].part(index).got_status = said.status
        except ProtocolViolation:
            if len(self.honest) == 2:
                raise

    def delivers(self, order_id: bytes, data: bytes, index: int = 0) -> None:
        """Bytes are handed to the client's program."""
        fault = self.sales[order_id].part(index).get(data)
        if fault and len(self.honest) == 2:
            raise Broken(f"order {self.sales[order_id].order.order_number}: {fault}")

    def client_forgets(self) -> None:
        """The client's process is gone, with what it counted."""
        for sale in self.sales.values():
            sale.knows_prompt = sale.knows_prompt and sale.signed_pico > 0
            sale.is_cut = True

    def client_loses(self, order_id: bytes) -> None:
        """The order's link is gone, by what the client knows."""
        self.sales[order_id].is_cut = True

    # -- the ledgers -------------------------------------------------

    def stored(self, side: Role, signed: Signed[Message]) -> None:
        """A record is durable in a side's ledger."""
        message = signed.message
        if isinstance(message, Order) and side is Role.PROVIDER and signed.id in self.sales:
            self._orders[message.channel, message.order_number] = self.sales[signed.id]
        if isinstance(message, Dispute) and side is Role.PROVIDER and message.receipt in self._billed:
            sale = self._billed[message.receipt]
            sale.answer()
            if message.by is Role.CLIENT:
                sale.admitted_pico = max(sale.admitted_pico, message.owed_pico)
        if not isinstance(message, Voucher | Receipt):
            return
        if isinstance(message, Receipt) and side is Role.PROVIDER and message.order in self.sales:
            self._billed[signed.id] = self.sales[message.order]
            self._billed[signed.id].proposed = message
        sale = self._orders.get((message.channel, message.order_number))
        if sale is None or Role.CLIENT not in signed.signers:
            return
        if side is Role.PROVIDER:
            if isinstance(message, Receipt):
                if sale.receipt is None:
                    self._signed_pico[message.channel] += message.amount_pico
                sale.receipt = message
                sale.answer()
            sale.secure(message)
        elif Role.CLIENT in self.honest:
            self._client_signs(sale, message, signed.id)

    def _client_signs(self, sale: Sale, message: Voucher | Receipt, record_id: bytes) -> None:
        """What the client signs for is what it got; on a receipt after a lost link one window and a prompt more."""
        number = message.order_number
        if isinstance(message, Receipt):
            if sale.signed_receipt not in (b"", record_id):
                raise Broken(f"the client signed two receipts for order {number}: it pays twice.")
            sale.signed_receipt = record_id
            if message.amount_pico == 0:
                return
        window = self.window if isinstance(message, Receipt) else 0
        if sale.order.is_batch and not sale.is_cut:
            window = 0  # Each of its lines was held against what came.
        beyond = message.usage.output_tokens - sale.got.output_tokens
        if beyond > window:
            raise Broken(f"the client signed for {beyond} tokens more than it got of order {number}.")
        most_pico = sale.most_signed_pico(window)
        if message.amount_pico > most_pico:
            raise Broken(
                f"the client signed for {message.amount_pico} pico-EUR on order {number}; at most {most_pico}."
            )
        sale.signed_pico = max(sale.signed_pico, message.amount_pico)


def record_in(kind: int, payload: bytes) -> Record | None:
    """The signed record in a message, if there is one."""
    if kind in (Kind.ORDER, Kind.BATCH):
        opening = parse_frame(payload, OrderOpening if kind == Kind.ORDER else BatchOpening)
        return parse_record(opening.order)
    return parse_record(payload) if kind in RECORD_KINDS else None


def slot_name(message: Message) -> str:
    """`order 3`, `receipt 7`: for people."""
    if isinstance(message, Channel):
        return "a channel"
    return f"{type(message).__name__} {slot_of(message)[1:]}"
