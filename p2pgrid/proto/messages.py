"""What peers sign to sell and buy (docs/spec/messages.md): Offer, Channel, Order, Meter, Voucher, Receipt.

On the wire each is a MessagePack array of its fields in the order below. Every field has a range; every message has a
size cap. Amounts are pico-EUR, prices micro-EUR per million tokens, times Unix milliseconds.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Annotated, ClassVar, Final

from msgspec import Meta

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.fields import (
    Amount,
    CountryCode,
    CurrencyCode,
    Digest,
    DurationMs,
    Id,
    Key,
    ModelName,
    Nested,
    Number,
    Price,
    ShortText,
    TimeMs,
    Tokens,
)
from p2pgrid.proto.record import Message
from p2pgrid.units import MAX_TOKENS

DEFAULT_WINDOW_TOKENS: Final = 256
FINISH_REASON_CHARS: Final = 32
MAX_MENTIONS: Final = 16
MAX_BATCH_REQUESTS: Final = 16
MAX_BATCH_MS: Final = 100
COUNTING_RULE: Final = "delivered-ids/1"
REFUND_RULE: Final = "by-status/1"
_EPOCH_WEEKDAY: Final = 3
"""1 January 1970 was a Thursday."""
ENDPOINTS: Final = ("/v1/chat/completions", "/v1/completions")


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


class TariffPeriod(Nested, frozen=True, kw_only=True):
    """A tariff that holds at certain hours of certain weekdays, as electricity is often sold."""

    weekdays: Annotated[int, Meta(ge=1, le=127)]
    """Bits: Monday 1, Tuesday 2, Wednesday 4, Thursday 8, Friday 16, Saturday 32, Sunday 64."""
    from_minute: Annotated[int, Meta(ge=0, le=1439)]
    """Minutes since midnight by the offer's clock; the period includes it."""
    until_minute: Annotated[int, Meta(ge=1, le=1440)]
    """The period ends before it. Later than `from_minute`: a night is two periods."""
    tariff: Tariff


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
    schedule: Annotated[tuple[TariffPeriod, ...], Meta(max_length=64)] = ()
    """The first period that holds at an order's time gives its tariff; `tariff` holds at all other times."""
    most_tokens_per_s: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    """The fastest that one choice of an answer can come on the hardware offered; 0 if that is not stated."""

    @property
    def tariffs(self) -> tuple[Tariff, ...]:
        """Every tariff that can hold."""
        return (self.tariff, *(period.tariff for period in self.schedule))


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


class BatchTerms(Nested, frozen=True, kw_only=True):
    """How far one order, and its receipt, may go for several short requests (docs/spec/session.md, section 11)."""

    batch_requests: Annotated[int, Meta(ge=1, le=MAX_BATCH_REQUESTS)] = 1
    """Most requests of an order; 1 where every request has a receipt of its own."""
    batch_ms: Annotated[int, Meta(ge=0, le=MAX_BATCH_MS)] = 0
    """How long after the order a request may join it."""


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
    optional_field: ClassVar[str] = "batch"

    provider: Key
    sequence: Number
    """Grows with every offer the provider signs; the highest that is in force counts."""
    valid_from_ms: TimeMs
    valid_until_ms: TimeMs
    operator: ShortText
    currency: CurrencyCode
    addresses: Annotated[tuple[Annotated[str, Meta(max_length=256)], ...], Meta(max_length=16)]
    """Multiaddrs: `/ip4/.../tcp/PORT/tls` on the direct road, `/ip4/.../tcp/PORT/p2p/PEER` over libp2p."""
    data_terms: DataTerms
    models: Annotated[tuple[ModelOffer, ...], Meta(min_length=1, max_length=64)]
    gpus: Annotated[tuple[ShortText, ...], Meta(max_length=64)] = ()
    terms: Terms
    utc_offset_minutes: Annotated[int, Meta(ge=-840, le=840)] = 0
    """The clock of the price schedules: minutes ahead of UTC. It is fixed: summer time comes with another offer."""
    card: Digest = b""
    """The id of the operator's Card, if it has one."""
    batch: BatchTerms = BatchTerms()
    """Of every order under it, whenever its channel was opened."""

    def check(self) -> None:
        if self.valid_until_ms <= self.valid_from_ms:
            raise InvalidRecord("out-of-range", "the offer ends before it begins.")
        digests = [self.card, self.data_terms.dpa_sha256]
        for entry in self.models:
            digests += [entry.weights_sha256, entry.tokenizer_sha256, entry.template_sha256]
        if any(len(digest) not in (0, 32) for digest in digests):
            raise InvalidRecord("out-of-range", "a digest has 32 bytes, or none where there is none.")
        names = [m.model for m in self.models]
        if len(set(names)) != len(names):
            raise InvalidRecord("out-of-range", "the offer names one model twice.")
        for entry in self.models:
            if any(tariff.cached_input_upm > tariff.input_upm for tariff in entry.tariffs):
                raise InvalidRecord("out-of-range", f"{entry.model}: cached input costs more than input.")
            if any(period.until_minute <= period.from_minute for period in entry.schedule):
                raise InvalidRecord("out-of-range", f"{entry.model}: a price period ends before it begins.")

    def model_offer(self, model: str) -> ModelOffer | None:
        """The entry for a model, or None."""
        for entry in self.models:
            if entry.model == model:
                return entry
        return None

    def tariff_at(self, entry: ModelOffer, time_ms: int) -> Tariff:
        """What `entry` costs for an order of that time (`Order.ordered_ms`): the one place where a price is chosen."""
        if not entry.schedule:
            return entry.tariff
        minute = time_ms // 60_000 + self.utc_offset_minutes
        day, minute_of_day = divmod(minute, 1440)
        weekday = 1 << (day + _EPOCH_WEEKDAY) % 7
        for period in entry.schedule:
            if period.weekdays & weekday and period.from_minute <= minute_of_day < period.until_minute:
                return period.tariff
        return entry.tariff


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
    """How long a receipt may be disputed, and how long a dispute may wait for its answer."""
    continues: Digest = b""
    """After a change of keys: the id of the last receipt in the channel that this one goes on from (of the channel
    itself if it had none); empty for a channel that starts afresh."""

    def check(self) -> None:
        if self.expires_ms <= self.opened_ms:
            raise InvalidRecord("out-of-range", "the channel ends before it begins.")
        if len(self.continues) not in (0, 32):
            raise InvalidRecord("out-of-range", "an id has 32 bytes, or none where there is none.")
        if self.channel != channel_id(self.provider, self.client, self.provider_nonce, self.client_nonce):
            raise InvalidRecord("channel-id", "the channel's id does not derive from its keys and nonces.")


class Order(Message, frozen=True, kw_only=True):
    """A request for one answer, before it is served. Signed by the client."""

    payload_type: ClassVar[str] = "/p2pgrid/order/1"
    optional_field: ClassVar[str] = "max_requests"

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
    max_requests: Annotated[int, Meta(ge=1, le=MAX_BATCH_REQUESTS)] = 1
    """Above 1 it is a batch order: it commits to no request, and its caps are over all its requests together."""

    @property
    def is_batch(self) -> bool:
        """True for an order of several requests."""
        return self.max_requests > 1

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


class RequestLine(Nested, frozen=True, kw_only=True):
    """One request of a batch order, in its receipt. What is owed for it is its price, or 0 by its status."""

    status: Status
    finish_reason: Annotated[str, Meta(max_length=FINISH_REASON_CHARS)]
    usage: Usage
    """What was delivered."""
    request_commitment: Id
    response_commitment: Id
    first_token_ms: DurationMs
    """From the request's arrival to the first token's departure; 0 if there was none."""
    total_ms: DurationMs


class Receipt(Message, frozen=True, kw_only=True):
    """The final word on one order. Signed by the provider it is a proposal; signed by both it is a receipt."""

    payload_type: ClassVar[str] = "/p2pgrid/receipt/1"
    max_payload_bytes: ClassVar[int] = 6144
    optional_field: ClassVar[str] = "requests"

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
    mentions: Annotated[tuple[Id, ...], Meta(max_length=MAX_MENTIONS)] = ()
    """Disputes and answers, by their ids, that both sides hold and no receipt before this one mentions."""
    requests: Annotated[tuple[RequestLine, ...], Meta(max_length=MAX_BATCH_REQUESTS)] = ()
    """Of a batch order: each request that was taken. None where a voucher decides what is billed."""

    def check(self) -> None:
        if self.requests:
            self._check_requests()
        if self.mentions and len(set(self.mentions)) != len(self.mentions):
            raise InvalidRecord("out-of-range", "the receipt mentions one record twice.")
        if self.usage.cached_tokens > self.usage.prompt_tokens:
            raise InvalidRecord("out-of-range", "more cached tokens than the prompt has.")

    def _check_requests(self) -> None:
        if self.status is not Status.COMPLETED:
            raise InvalidRecord("out-of-range", f"the receipt lists requests under the status {self.status}.")
        if any(line.status in (Status.INTERRUPTED, Status.UNACKNOWLEDGED) for line in self.requests):
            raise InvalidRecord("out-of-range", "a voucher decides about an order, and not about one of its requests.")
        if any(line.usage.cached_tokens > line.usage.prompt_tokens for line in self.requests):
            raise InvalidRecord("out-of-range", "more cached tokens than the prompt of a request has.")


def channel_id(provider: bytes, client: bytes, provider_nonce: bytes, client_nonce: bytes) -> bytes:
    """A channel's id: SHA-256 over a fixed tag, both 33-byte keys and both 32-byte nonces."""
    return hashlib.sha256(b"p2pgrid/channel/1" + provider + client + provider_nonce + client_nonce).digest()
