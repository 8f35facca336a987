"""What peers sign (docs/spec/messages.md): Offer, Channel, Order, Meter, Voucher, Receipt.

On the wire each is a MessagePack array of its fields in the order below. Every field has a range; every message has a
size cap. Amounts are pico-EUR, prices micro-EUR per million tokens, times Unix milliseconds.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Annotated, ClassVar, Final

import msgspec
from msgspec import Meta

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.keys import PUBLIC_KEY_BYTES
from p2pgrid.proto.record import Message
from p2pgrid.units import MAX_AMOUNT_PICO, MAX_PRICE_UPM, MAX_TOKENS, MAX_UNIX_MS

Key = Annotated[bytes, Meta(min_length=PUBLIC_KEY_BYTES, max_length=PUBLIC_KEY_BYTES)]
Id = Annotated[bytes, Meta(min_length=32, max_length=32)]
Digest = Annotated[bytes, Meta(max_length=32)]
"""SHA-256, or empty where the provider does not state it."""
Number = Annotated[int, Meta(ge=1, le=2**53)]
Tokens = Annotated[int, Meta(ge=0, le=MAX_TOKENS)]
Amount = Annotated[int, Meta(ge=0, le=MAX_AMOUNT_PICO)]
Price = Annotated[int, Meta(ge=0, le=MAX_PRICE_UPM)]
TimeMs = Annotated[int, Meta(ge=0, le=MAX_UNIX_MS)]
MAX_DURATION_MS: Final = 10**9
DurationMs = Annotated[int, Meta(ge=0, le=MAX_DURATION_MS)]
ShortText = Annotated[str, Meta(max_length=128)]
ModelName = Annotated[str, Meta(min_length=1, max_length=128)]
# Patterns end in \Z: Python's `$` also matches before a last line feed.
CurrencyCode = Annotated[str, Meta(pattern=r"\A[A-Z]{3}\Z")]
CountryCode = Annotated[str, Meta(pattern=r"\A[A-Z]{2}\Z")]

DEFAULT_WINDOW_TOKENS: Final = 256
FINISH_REASON_CHARS: Final = 32
COUNTING_RULE: Final = "delivered-ids/1"
REFUND_RULE: Final = "by-status/1"
ENDPOINTS: Final = ("/v1/chat/completions", "/v1/completions")


class Nested(msgspec.Struct, array_like=True, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of a message; an array inside the message's array."""


class Usage(Nested, frozen=True, kw_only=True):
    """Token counts of one order, cumulative."""

    prompt_tokens: Tokens = 0
    """Ids in the prompt as the engine tokenised it, cached ones among them."""
    cached_tokens: Tokens = 0
    """Of these, found in the engine's prefix cache. It can only lower the bill."""
    output_tokens: Tokens = 0
    """Ids delivered to the client, all choices together."""

    def covers(self, other: Usage) -> bool:
        """True if no count here is below `other`'s."""
        return (
            self.prompt_tokens >= other.prompt_tokens
            and self.cached_tokens >= other.cached_tokens
            and self.output_tokens >= other.output_tokens
        )


class Tariff(Nested, frozen=True, kw_only=True):
    """Prices in micro-EUR per million tokens, which is pico-EUR per token."""

    input_upm: Price
    cached_input_upm: Price
    output_upm: Price


class ModelOffer(Nested, frozen=True, kw_only=True):
    """One model on sale."""

    model: ModelName
    tariff: Tariff
    context_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
    concurrency: Annotated[int, Meta(ge=1, le=100_000)]
    """Orders the provider serves at once before it answers `busy`."""
    endpoints: Annotated[tuple[ShortText, ...], Meta(min_length=1, max_length=8)]
    engine: ShortText = ""
    quantization: ShortText = ""
    weights_sha256: Digest = b""
    tokenizer_sha256: Digest = b""
    template_sha256: Digest = b""


class Terms(Nested, frozen=True, kw_only=True):
    """Conditions that every channel under the offer starts from."""

    window_tokens: Annotated[int, Meta(ge=16, le=65_536)] = DEFAULT_WINDOW_TOKENS
    credit_limit_pico: Amount
    max_open_orders: Annotated[int, Meta(ge=1, le=1024)] = 64
    channel_days: Annotated[int, Meta(ge=1, le=366)] = 90
    dispute_days: Annotated[int, Meta(ge=1, le=366)] = 14
    settlement_days: Annotated[int, Meta(ge=1, le=366)] = 30
    counting_rule: ShortText = COUNTING_RULE
    refund_rule: ShortText = REFUND_RULE


class DataTerms(Nested, frozen=True, kw_only=True):
    """Where inference runs and what is kept."""

    country: CountryCode
    """ISO 3166-1 alpha-2: where the GPUs stand."""
    prompt_retention_days: Annotated[int, Meta(ge=0, le=3650)] = 0
    dpa_sha256: Digest = b""
    """Of the data processing agreement, if the operator publishes one."""


class Offer(Message, frozen=True, kw_only=True):
    """What a provider sells, at what tariff, on what terms. Signed by the provider."""

    payload_type: ClassVar[str] = "/p2pgrid/offer/1"
    max_payload_bytes: ClassVar[int] = 32 * 1024

    provider: Key
    sequence: Number
    """Grows with every offer the provider signs; the highest that is in force counts."""
    valid_from_ms: TimeMs
    valid_until_ms: TimeMs
    operator: ShortText
    currency: CurrencyCode
    addresses: Annotated[tuple[Annotated[str, Meta(max_length=256)], ...], Meta(max_length=16)]
    """Multiaddrs of the direct road, `/ip4/.../tcp/PORT/tls` or `/dns/...`."""
    data_terms: DataTerms
    models: Annotated[tuple[ModelOffer, ...], Meta(min_length=1, max_length=64)]
    gpus: Annotated[tuple[ShortText, ...], Meta(max_length=64)] = ()
    terms: Terms

    def check(self) -> None:
        if self.valid_until_ms <= self.valid_from_ms:
            raise InvalidRecord("out-of-range", "the offer ends before it begins.")
        names = [m.model for m in self.models]
        if len(set(names)) != len(names):
            raise InvalidRecord("out-of-range", "the offer names one model twice.")
        for entry in self.models:
            if entry.tariff.cached_input_upm > entry.tariff.input_upm:
                raise InvalidRecord("out-of-range", f"{entry.model}: cached input costs more than input.")

    def model_offer(self, model: str) -> ModelOffer | None:
        """The entry for a model, or None."""
        return next((m for m in self.models if m.model == model), None)


class Channel(Message, frozen=True, kw_only=True):
    """The frame of one client's dealings with one provider. Signed by both; its receipts form one chain."""

    payload_type: ClassVar[str] = "/p2pgrid/channel/1"

    channel: Id
    provider: Key
    client: Key
    provider_nonce: Id
    client_nonce: Id
    currency: CurrencyCode
    credit_limit_pico: Amount
    window_tokens: Annotated[int, Meta(ge=16, le=65_536)]
    max_open_orders: Annotated[int, Meta(ge=1, le=1024)]
    opened_ms: TimeMs
    expires_ms: TimeMs
    dispute_days: Annotated[int, Meta(ge=1, le=366)]

    def check(self) -> None:
        if self.expires_ms <= self.opened_ms:
            raise InvalidRecord("out-of-range", "the channel ends before it begins.")
        if self.channel != channel_id(self.provider, self.client, self.provider_nonce, self.client_nonce):
            raise InvalidRecord("channel-id", "the channel's id does not derive from its keys and nonces.")


class Order(Message, frozen=True, kw_only=True):
    """A request for one answer, before it is served. Signed by the client."""

    payload_type: ClassVar[str] = "/p2pgrid/order/1"

    channel: Id
    order_number: Number
    offer: Id
    model: ModelName
    endpoint: ShortText
    request_commitment: Id
    """HMAC-SHA256 over the request's body under a key made for this request (docs/spec/session.md)."""
    max_prompt_tokens: Tokens
    max_output_tokens: Tokens
    max_amount_pico: Amount
    ordered_ms: TimeMs
    first_token_deadline_ms: TimeMs
    """By the client's clock. Nothing is owed when the first token comes later: see `first_token_timeout_ms`."""
    prompt_tokens: Tokens = 0
    """The client's own count where it holds the tokenizer; 0 if it does not."""

    @property
    def first_token_timeout_ms(self) -> int:
        """How long after the order's arrival a first token counts. A duration: clocks may differ by two minutes."""
        return self.first_token_deadline_ms - self.ordered_ms


class Meter(Message, frozen=True, kw_only=True):
    """The provider's claim while an answer runs: so much was delivered. Signed by the provider."""

    payload_type: ClassVar[str] = "/p2pgrid/meter/1"

    channel: Id
    order_number: Number
    tick: Number
    usage: Usage
    amount_pico: Amount
    response_commitment: Id
    """HMAC-SHA256 over all bytes of the answer delivered so far, under the request's key."""
    metered_ms: TimeMs


class Voucher(Message, frozen=True, kw_only=True):
    """The client's consent to a meter tick: what the provider can enforce. Signed by the client."""

    payload_type: ClassVar[str] = "/p2pgrid/voucher/1"

    channel: Id
    order_number: Number
    tick: Number
    meter: Id
    usage: Usage
    amount_pico: Amount


class Status(StrEnum):
    """How an order ended. The refund rule goes by it (docs/spec/session.md, section 6)."""

    COMPLETED = "completed"
    """The engine ended the answer. Billed in full."""
    CANCELLED = "cancelled"
    """The client stopped it. Billed: prompt and what was delivered."""
    INTERRUPTED = "interrupted"
    """The link was lost, or the engine went past the order's caps. Billed: what a voucher acknowledged."""
    UNACKNOWLEDGED = "unacknowledged"
    """The window was full and no voucher came. Billed: what a voucher acknowledged."""
    FAILED = "failed"
    """The provider or its engine failed. Nothing is owed."""
    EMPTY = "empty"
    """An answer without a token. Nothing is owed."""
    REFUSED = "refused"
    """The engine refused the request. Nothing is owed."""
    LATE = "late"
    """No token before the deadline. Nothing is owed."""


class Receipt(Message, frozen=True, kw_only=True):
    """The final word on one order. Signed by the provider it is a proposal; signed by both it is a receipt."""

    payload_type: ClassVar[str] = "/p2pgrid/receipt/1"

    channel: Id
    receipt_number: Number
    previous: Id
    """The id of the receipt before it in the channel; the channel's record id for the first."""
    order_number: Number
    order: Id
    offer: Id
    model: ModelName
    usage: Usage
    amount_pico: Amount
    channel_total_pico: Amount
    """Sum of the channel's amounts up to and with this receipt."""
    status: Status
    finish_reason: Annotated[str, Meta(max_length=FINISH_REASON_CHARS)]
    """The engine's, in the bytes delivered; cut to 32 characters. Empty where a voucher decides."""
    request_commitment: Id
    response_commitment: Id
    first_token_ms: DurationMs
    """From the order's arrival to the first token's departure; 0 if there was none."""
    total_ms: DurationMs
    issued_ms: TimeMs

    def check(self) -> None:
        if self.usage.cached_tokens > self.usage.prompt_tokens:
            raise InvalidRecord("out-of-range", "more cached tokens than the prompt has.")


MESSAGE_TYPES: Final[dict[str, type[Message]]] = {
    m.payload_type: m for m in (Offer, Channel, Order, Meter, Voucher, Receipt)
}
"""Every message by its payload type."""


def channel_id(provider: bytes, client: bytes, provider_nonce: bytes, client_nonce: bytes) -> bytes:
    """A channel's id: SHA-256 over a fixed tag, both 33-byte keys and both 32-byte nonces."""
    return hashlib.sha256(b"p2pgrid/channel/1" + provider + client + provider_nonce + client_nonce).digest()
