"""Signed channels for tests: a provider and a client that deal honestly, and the hooks to make them cheat.

    grid = Dealings()
    grid.deal(Status.COMPLETED, output=600)      # order, ticks, vouchers, receipt with both signatures
    grid.deal(Status.INTERRUPTED, output=300, acknowledged=1)
    provider, client = grid.bundles()

Every step can be changed: `grid.order(max_output_tokens=5)`, `grid.receipt(order, amount_pico=7)`. What is signed is
signed with the real keys, so that a cheat differs from an honest dealing in nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.bundles import Bundle
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.messages import (
    ENDPOINTS,
    Channel,
    DataTerms,
    Meter,
    ModelOffer,
    Offer,
    Order,
    Receipt,
    Status,
    Tariff,
    Terms,
    Usage,
    Voucher,
    channel_id,
)
from p2pgrid.proto.pricing import amount_owed, owes_nothing, price_of
from p2pgrid.proto.record import Message, Record, Role, Signed, encode_payload, parse_json_line, sign_message

START_MS = 1_780_000_000_000
DAY_MS = 86_400_000
TARIFF = Tariff(input_upm=200_000, cached_input_upm=50_000, output_upm=900_000)
WINDOW = 256

BY_VOUCHER = (Status.INTERRUPTED, Status.UNACKNOWLEDGED)


def key(name: str) -> SecretKey:
    """A secret key made of a name."""
    return SecretKey(hashlib.sha256(name.encode()).digest())


def digest(*parts: object) -> bytes:
    """32 bytes that stand for whatever the parts say."""
    return hashlib.sha256(repr(parts).encode()).digest()


def make_offer(provider: SecretKey, **changes: Any) -> Offer:
    fields: dict[str, Any] = {
        "provider": provider.public_key.raw,
        "sequence": 1,
        "valid_from_ms": START_MS - DAY_MS,
        "valid_until_ms": START_MS + 30 * DAY_MS,
        "operator": "Rechenwerk Nord",
        "currency": "EUR",
        "addresses": ("/ip4/192.0.2.7/tcp/4001/tls",),
        "data_terms": DataTerms(country="DE"),
        "models": (
            ModelOffer(model="small", tariff=TARIFF, context_tokens=4096, concurrency=8, endpoints=ENDPOINTS),
            ModelOffer(model="chat-only", tariff=TARIFF, context_tokens=4096, concurrency=8, endpoints=ENDPOINTS[:1]),
        ),
        "terms": Terms(credit_limit_pico=10**12, window_tokens=WINDOW),
    }
    return Offer(**{**fields, **changes})


def make_channel(provider: SecretKey, client: SecretKey, nonce: str = "", **changes: Any) -> Channel:
    fields: dict[str, Any] = {
        "provider": provider.public_key.raw,
        "client": client.public_key.raw,
        "provider_nonce": digest("provider", nonce),
        "client_nonce": digest("client", nonce),
        "currency": "EUR",
        "credit_limit_pico": 10**12,
        "window_tokens": WINDOW,
        "max_open_orders": 64,
        "opened_ms": START_MS,
        "expires_ms": START_MS + 90 * DAY_MS,
        "dispute_days": 14,
    }
    fields.update(changes)
    derived = channel_id(*(fields[name] for name in ("provider", "client", "provider_nonce", "client_nonce")))
    return Channel(**{"channel": derived, **fields})


def sign_unchecked(message: Message, role: Role, secret: SecretKey) -> Signed[Any]:
    """As `sign_message`, for what no peer would accept: `Message.check` is left out."""
    payload = encode_payload(message)
    return sign_payload(type(message).payload_type, payload, {role: secret}, message)


def sign_payload(
    payload_type: str, payload: bytes, keys: dict[Role, SecretKey], message: Message | None = None
) -> Signed[Any]:
    """Sign any bytes at all."""
    signed: Signed[Any] = Signed(message, Record(payload_type, payload, ()), Record(payload_type, payload, ()).id, {})  # type: ignore[type-var]
    for role, secret in keys.items():
        signed = signed.countersigned(role, secret)
    return signed


@dataclass
class Dealings:
    """One provider, one client, one channel, and all that they signed."""

    provider: SecretKey = field(default_factory=lambda: key("provider"))
    client: SecretKey = field(default_factory=lambda: key("client"))
    nonce: str = ""
    provider_has: list[Signed[Any]] = field(default_factory=list)
    client_has: list[Signed[Any]] = field(default_factory=list)
    now_ms: int = START_MS + 1000
    offer: Signed[Offer] = field(init=False)
    channel: Signed[Channel] = field(init=False)
    orders: int = 0
    receipts: list[Signed[Receipt]] = field(default_factory=list)
    meters: dict[int, list[Signed[Meter]]] = field(default_factory=dict)
    vouchers: dict[int, list[Signed[Voucher]]] = field(default_factory=dict)
    offer_changes: dict[str, Any] = field(default_factory=dict)
    channel_changes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.offer = self.keep(
            sign_message(make_offer(self.provider, **self.offer_changes), Role.PROVIDER, self.provider)
        )
        message = make_channel(self.provider, self.client, self.nonce, **self.channel_changes)
        signed = sign_unchecked(message, Role.PROVIDER, self.provider)
        self.channel = self.keep(signed.countersigned(Role.CLIENT, self.client))

    # -- single steps ---------------------------------------------------------------------------------------------

    def keep(self, signed: Signed[Any], *, by: str = "both") -> Signed[Any]:
        """Put a record into the books of `provider`, `client` or both; a copy with fewer signatures is replaced."""
        for side, book in (("provider", self.provider_has), ("client", self.client_has)):
            if by in (side, "both"):
                book[:] = [s for s in book if s.id != signed.id]
                book.append(signed)
        return signed

    def order(self, *, by: str = "both", **changes: Any) -> Signed[Order]:
        """The client orders."""
        self.orders += 1
        self.now_ms += 50
        fields: dict[str, Any] = {
            "channel": self.channel.message.channel,
            "order_number": self.orders,
            "offer": self.offer.id,
            "model": "small",
            "endpoint": ENDPOINTS[0],
            "request_commitment": digest("request", self.orders),
            "max_prompt_tokens": 2000,
            "max_output_tokens": 2000,
            "max_amount_pico": 10**10,
            "ordered_ms": self.now_ms,
            "first_token_deadline_ms": changes.get("ordered_ms", self.now_ms) + 30_000,
        }
        return self.keep(sign_message(Order(**{**fields, **changes}), Role.CLIENT, self.client), by=by)

    def meter(self, order: Signed[Order], usage: Usage, /, *, by: str = "both", **changes: Any) -> Signed[Meter]:
        """The provider says what it delivered."""
        self.now_ms += 200
        ticks = self.meters.setdefault(order.message.order_number, [])
        fields: dict[str, Any] = {
            "channel": order.message.channel,
            "order_number": order.message.order_number,
            "tick": len(ticks) + 1,
            "usage": usage,
            "amount_pico": changes["amount_pico"] if "amount_pico" in changes else price_of(TARIFF, usage),
            "response_commitment": digest("response", order.id, usage.output_tokens),
            "metered_ms": self.now_ms,
        }
        signed: Signed[Meter] = sign_message(Meter(**{**fields, **changes}), Role.PROVIDER, self.provider)
        ticks.append(signed)
        self.keep(signed, by=by)
        return signed

    def voucher(self, meter: Signed[Meter], /, *, by: str = "both", **changes: Any) -> Signed[Voucher]:
        """The client accepts a tick."""
        message = meter.message
        fields: dict[str, Any] = {
            "channel": message.channel,
            "order_number": message.order_number,
            "tick": message.tick,
            "meter": meter.id,
            "usage": message.usage,
            "amount_pico": message.amount_pico,
        }
        signed: Signed[Voucher] = sign_message(Voucher(**{**fields, **changes}), Role.CLIENT, self.client)
        self.vouchers.setdefault(message.order_number, []).append(signed)
        self.keep(signed, by=by)
        return signed

    def receipt(
        self,
        order: Signed[Order],
        usage: Usage,
        status: Status = Status.COMPLETED,
        /,
        *,
        countersign: bool = True,
        by: str = "both",
        **changes: Any,
    ) -> Signed[Receipt]:
        """The provider's last word; with `countersign` the client's too."""
        self.now_ms += 100
        last = self.receipts[-1] if self.receipts else None
        amount = changes["amount_pico"] if "amount_pico" in changes else amount_owed(TARIFF, usage, status)
        fields: dict[str, Any] = {
            "channel": order.message.channel,
            "receipt_number": len(self.receipts) + 1,
            "previous": last.id if last else self.channel.id,
            "order_number": order.message.order_number,
            "order": order.id,
            "offer": order.message.offer,
            "model": order.message.model,
            "usage": usage,
            "amount_pico": amount,
            "channel_total_pico": (last.message.channel_total_pico if last else 0) + amount,
            "status": status,
            "finish_reason": "stop" if status is Status.COMPLETED else "",
            "request_commitment": order.message.request_commitment,
            "response_commitment": digest("response", order.id, usage.output_tokens),
            "first_token_ms": 40 if usage.output_tokens else 0,
            "total_ms": 900,
            "issued_ms": self.now_ms,
        }
        signed = sign_unchecked(Receipt(**{**fields, **changes}), Role.PROVIDER, self.provider)
        self.receipts.append(signed)
        return self.keep(signed.countersigned(Role.CLIENT, self.client) if countersign else signed, by=by)

    # -- whole dealings -------------------------------------------------------------------------------------------

    def serve(self, order: Signed[Order], usage: Usage, acknowledged: int | None = None) -> Usage:
        """Ticks of half a window and their vouchers, `acknowledged` of them or all; returns what they acknowledge."""
        ticks = usage.output_tokens // (WINDOW // 2)
        covered = Usage()
        for tick in range(1, ticks + 1):
            metered = msgspec.structs.replace(usage, output_tokens=tick * (WINDOW // 2))
            meter = self.meter(order, metered)
            if acknowledged is None or tick <= acknowledged:
                self.voucher(meter)
                covered = metered
        return covered

    def deal(
        self,
        status: Status = Status.COMPLETED,
        *,
        prompt: int = 100,
        cached: int = 30,
        output: int = 300,
        acknowledged: int | None = None,
        countersign: bool = True,
    ) -> Signed[Receipt]:
        """One order from beginning to end, by the rules."""
        order = self.order()
        return self.finish(order, status, prompt, cached, output, acknowledged, countersign=countersign)

    def finish(
        self,
        order: Signed[Order],
        status: Status = Status.COMPLETED,
        prompt: int = 100,
        cached: int = 30,
        output: int = 300,
        acknowledged: int | None = None,
        *,
        countersign: bool = True,
    ) -> Signed[Receipt]:
        """Serve and bill an order by the rules."""
        if status in (Status.EMPTY, Status.REFUSED, Status.LATE):
            output = 0
        usage = Usage(prompt_tokens=prompt, cached_tokens=cached, output_tokens=output)
        covered = self.serve(order, usage, acknowledged)
        billed = covered if status in BY_VOUCHER else usage
        assert not owes_nothing(status) or amount_owed(TARIFF, billed, status) == 0
        return self.receipt(order, billed, status, countersign=countersign)

    def bundles(self) -> tuple[list[bytes], list[bytes]]:
        """The provider's export and the client's, a record a line."""
        return lines_of(self.provider_has), lines_of(self.client_has)


def lines_of(signed: Iterable[Signed[Any]]) -> list[bytes]:
    """Records as the lines of a bundle."""
    return [s.record.to_json_line() for s in signed]


def entries_of(lines: Sequence[bytes]) -> Iterator[tuple[int, Record | InvalidRecord]]:
    """What a bundle reader makes of lines."""
    for number, line in enumerate(lines, start=1):
        try:
            yield number, parse_json_line(line)
        except InvalidRecord as invalid:
            yield number, invalid


@dataclass
class LinesBundle(Bundle):
    """A bundle that can also be written to a file."""

    lines: tuple[bytes, ...] = ()


def bundle_of(lines: Sequence[bytes], side: Role | None = None, source: str = "") -> LinesBundle:
    """A bundle under its side's usual name."""
    return LinesBundle(source or f"{side or 'bundle'}.jsonl", entries_of(lines), side, tuple(lines))


def everyday_dealings(nonce: str = "") -> Dealings:
    """Every ending, orders that run side by side, a refused order, and a proposal that still waits."""
    grid = Dealings(nonce=nonce)
    grid.deal(output=700)
    first, second, third = grid.order(), grid.order(), grid.order()
    grid.finish(second, Status.CANCELLED, output=140)
    grid.order(by="client")  # refused: no receipt, and its number is used up
    grid.finish(first, output=20, cached=0)
    grid.finish(third, Status.FAILED, output=150)
    grid.deal(Status.INTERRUPTED, output=600, acknowledged=3)
    grid.deal(Status.INTERRUPTED, output=100)
    grid.deal(Status.UNACKNOWLEDGED, output=300, acknowledged=0)
    grid.deal(Status.EMPTY)
    grid.deal(Status.REFUSED, prompt=0, cached=0)
    grid.deal(Status.LATE, prompt=0, cached=0)
    grid.deal(output=1)
    grid.deal(Status.CANCELLED, prompt=40, cached=40, output=0)
    grid.deal(output=200, countersign=False)
    return grid
