"""What an all-seeing observer holds against a history while it runs: who has what, and who has signed for it.

It counts by itself, from the bytes that leave and arrive, and believes no machine. What breaks a promise of
docs/spec/session.md raises `Broken` at the step that broke it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from p2pgrid.errors import P2pgridError, ProtocolViolation
from p2pgrid.proto.books import UNSIGNED_COUNTS_MS
from p2pgrid.proto.counting import TokenCounter
from p2pgrid.proto.dispute import Dispute
from p2pgrid.proto.evidence import slot_of
from p2pgrid.proto.message_types import MESSAGE_TYPES
from p2pgrid.proto.messages import Channel, Order, Receipt, Tariff, Usage, Voucher
from p2pgrid.proto.pricing import is_billed_by_voucher, owes_nothing, price_of, usage_of
from p2pgrid.proto.record import Message, Record, Role, Signed, parse_message, parse_record
from p2pgrid.proto.sse import EventSplitter
from p2pgrid.proto.wire import Head, Kind, OrderOpening, parse_frame

MAX_TIME_MS: Final = 2**53


class Broken(AssertionError):
    """A promise was broken."""


RECORD_KINDS: Final = frozenset(
    {Kind.CHANNEL, Kind.METER, Kind.VOUCHER, Kind.RECEIPT, Kind.COUNTERSIGNATURE, Kind.RECORD, Kind.DISPUTE}
)
"""Kinds whose payload is a signed record."""


@dataclass(slots=True)
class Sale:
    """One order, as it really went."""

    order: Order
    tariff: Tariff
    largest_event: int
    sent: TokenCounter
    """What left the provider."""
    got: TokenCounter
    """What reached the client's program."""
    secured: Usage = field(default_factory=Usage)
    """What the client has signed for, in the provider's ledger."""
    admitted_pico: int = 0
    """What the client says is owed, in a dispute of its own in the provider's ledger."""
    signed_pico: int = 0
    """The most that the client has signed for, in its own ledger."""
    signed_receipt: bytes = b""
    """The id of the receipt that the client has signed, in its own ledger."""
    sent_bytes: bytearray = field(default_factory=bytearray)
    got_bytes: bytearray = field(default_factory=bytearray)
    sent_status: int = 0
    got_status: int = 0
    counts_until_ms: int = MAX_TIME_MS
    """Until when what went out unsigned counts: an hour after its receipt, if that goes by a voucher."""
    is_answered: bool = False
    """True if the provider's ledger has the client's signature on the receipt, or its dispute."""
    knows_prompt: bool = True
    """False if the client's process is gone that counted the prompt, and no voucher tells it."""
    proposed: Receipt | None = None
    """In the provider's ledger, whoever signed it."""
    receipt: Receipt | None = None
    """With both signatures, in the provider's ledger."""
    _sent_events: EventSplitter = field(default_factory=EventSplitter)
    _got_events: EventSplitter = field(default_factory=EventSplitter)

    def send(self, data: bytes, window: int) -> str:
        """Bytes leave the provider; what is wrong with that, if anything."""
        self.sent_bytes += data
        if self.sent_status != 200:
            return ""
        for event in self._sent_events.feed(data):
            before = self.sent.output_tokens
            self.sent.feed(event)
            ahead = self.sent.output_tokens - self.secured.output_tokens
            if ahead > window and before > self.secured.output_tokens and self.sent.output_tokens > before:
                return f"{ahead} tokens ran ahead of the last voucher, in more than one event; W is {window}."
        return ""

    def get(self, data: bytes) -> str:
        """Bytes reach the program; what is wrong with that, if anything."""
        self.got_bytes += data
        if self.got_status == 200:
            for event in self._got_events.feed(data):
                self.got.feed(event)
        if not self.sent_bytes.startswith(self.got_bytes):
            return "the program got other bytes than were sent."
        return ""

    def lacking_pico(self, window: int) -> int:
        """What the provider has delivered and cannot prove, a single event larger than the window apart."""
        sent, secured = usage_of(self.sent), self.secured
        output = min(sent.output_tokens, secured.output_tokens + window)
        billed = msgspec.structs.replace(sent, output_tokens=output)
        return max(0, price_of(self.tariff, billed) - max(price_of(self.tariff, secured), self.admitted_pico))

    def answer(self) -> None:
        """The client signs or disputes its receipt."""
        self.is_answered = True
        if self.proposed is not None and is_billed_by_voucher(self.proposed.status):
            self.counts_until_ms = self.proposed.issued_ms + UNSIGNED_COUNTS_MS

    @property
    def is_borne(self) -> bool:
        """True if it ended in a way that the provider bears, by a receipt that the client has answered."""
        return self.is_answered and self.proposed is not None and owes_nothing(self.proposed.status)

    def most_signed_pico(self, window: int) -> int:
        """The most that the client may lose its signature for: what it got, one window more, and one prompt."""
        # That tokens were cached is known at the answer's end alone: what was signed before was right without.
        prompt = self.got.prompt_tokens if self.knows_prompt else 0
        prompt = prompt or self.order.max_prompt_tokens
        most = Usage(prompt_tokens=prompt, output_tokens=self.got.output_tokens + window)
        return price_of(self.tariff, most)


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

    def ordered(self, order: Signed[Order], tariff: Tariff, *, n: int, largest_event: int) -> None:
        sale = Sale(order.message, tariff, largest_event, TokenCounter(n), TokenCounter(n))
        self.sales[order.id] = sale
        self._orders.setdefault((order.message.channel, order.message.order_number), sale)

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

    def sends(self, order_id: bytes, data: bytes, now_ms: int) -> None:
        """A CHUNK leaves the provider."""
        fault = self.sales[order_id].send(data, self.window)
        if fault and Role.PROVIDER in self.honest:
            raise Broken(f"order {self.sales[order_id].order.order_number}: {fault}")
        if Role.PROVIDER in self.honest:
            self.check_exposure(self.sales[order_id].order.channel, now_ms)

    def check_exposure(self, channel: bytes, now_ms: int) -> None:
        """What went out unsigned on all orders, the dearest apart, is no more than the client signed receipts for."""
        unpaid = [
            one.lacking_pico(self.window)
            for one in self.sales.values()
            if one.order.channel == channel
            and one.sent.prompt_tokens
            and not one.is_borne
            and one.counts_until_ms > now_ms
        ]
        if len(unpaid) > 1 and sum(unpaid) - max(unpaid) > self._signed_pico[channel]:
            raise Broken(
                f"{sum(unpaid)} pico-EUR are out on {len(unpaid)} orders, the dearest {max(unpaid)}; "
                f"receipts over {self._signed_pico[channel]} are signed."
            )

    def heads(self, order_id: bytes, payload: bytes) -> None:
        """A HEAD reaches the client."""
        try:
            self.sales[order_id].got_status = parse_frame(payload, Head).status
        except ProtocolViolation:
            if len(self.honest) == 2:
                raise

    def delivers(self, order_id: bytes, data: bytes) -> None:
        """Bytes are handed to the client's program."""
        fault = self.sales[order_id].get(data)
        if fault and len(self.honest) == 2:
            raise Broken(f"order {self.sales[order_id].order.order_number}: {fault}")

    def client_forgets(self) -> None:
        """The client's process is gone, with what it counted."""
        for sale in self.sales.values():
            sale.knows_prompt = sale.knows_prompt and sale.signed_pico > 0

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
            if message.amount_pico >= price_of(sale.tariff, sale.secured):
                sale.secured = message.usage
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
        got, usage = usage_of(sale.got), message.usage
        beyond = usage.output_tokens - got.output_tokens
        if beyond > (self.window if isinstance(message, Receipt) else 0):
            raise Broken(f"the client signed for {beyond} tokens more than it got of order {number}.")
        most_pico = sale.most_signed_pico(self.window if isinstance(message, Receipt) else 0)
        if message.amount_pico > most_pico:
            raise Broken(
                f"the client signed for {message.amount_pico} pico-EUR on order {number}; at most {most_pico}."
            )
        sale.signed_pico = max(sale.signed_pico, message.amount_pico)


def record_in(kind: int, payload: bytes) -> Record | None:
    """The signed record in a message, if there is one."""
    if kind == Kind.ORDER:
        return parse_record(parse_frame(payload, OrderOpening).order)
    return parse_record(payload) if kind in RECORD_KINDS else None


def slot_name(message: Message) -> str:
    """`order 3`, `receipt 7`: for people."""
    if isinstance(message, Channel):
        return "a channel"
    return f"{type(message).__name__} {slot_of(message)[1:]}"
