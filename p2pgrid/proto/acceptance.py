"""Whether a provider takes an order on (docs/spec/session.md): nothing is recorded or owed for one that it refuses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from p2pgrid.errors import InvalidRecord, ProtocolViolation, Refused
from p2pgrid.proto.actions import Actions, AskEngine, Persist
from p2pgrid.proto.batch import NO_COMMITMENT
from p2pgrid.proto.batch_seller import SellerBatch
from p2pgrid.proto.books import ChannelBooks, risk_pico
from p2pgrid.proto.channel import check_clock
from p2pgrid.proto.commitment import request_commitment
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.messages import ModelOffer, Offer, Order, Tariff
from p2pgrid.proto.pricing import most_owed
from p2pgrid.proto.record import Record, Role, Signed, parse_message, parse_record, verify_record
from p2pgrid.proto.request import parse_ordered
from p2pgrid.proto.seller import SellerOrder
from p2pgrid.proto.wire.base import parse_frame
from p2pgrid.proto.wire.orders import BatchOpening, OrderOpening

OpeningT = TypeVar("OpeningT", OrderOpening, BatchOpening)


@dataclass(frozen=True, slots=True)
class ArrivedOrder(Generic[OpeningT]):
    """An order as it came; nothing of it is verified."""

    opening: OpeningT
    record: Record
    channel: bytes
    """The channel's id, to find its books by."""
    model: str


def parse_order(payload: bytes) -> ArrivedOrder[OrderOpening]:
    """What an OrderOpening holds. Raises ProtocolViolation, InvalidRecord."""
    opening = parse_frame(payload, OrderOpening)
    record = parse_record(opening.order)
    message = parse_message(record, Order)
    if message.is_batch:
        raise ProtocolViolation(f"an order of {message.max_requests} requests came with one body.")
    return ArrivedOrder(opening, record, message.channel, message.model)


def parse_batch(payload: bytes) -> ArrivedOrder[BatchOpening]:
    """What a BatchOpening holds. Raises ProtocolViolation, InvalidRecord."""
    opening = parse_frame(payload, BatchOpening)
    record = parse_record(opening.order)
    message = parse_message(record, Order)
    if not message.is_batch:
        raise ProtocolViolation("an order of one request came as a batch order.")
    return ArrivedOrder(opening, record, message.channel, message.model)


def verify_order(payload: bytes, books: ChannelBooks) -> tuple[Signed[Order], OrderOpening]:
    """`parse_order` and `verify_arrived`, for whoever knows the books already. Raises what they raise."""
    arrived = parse_order(payload)
    return verify_arrived(arrived, books), arrived.opening


def verify_arrived(arrived: ArrivedOrder[OpeningT], books: ChannelBooks) -> Signed[Order]:
    """The order, signed by the channel's client. It uses up the order's number.

    Call it when the message arrives, before the body: bodies of orders sent at once end in any order. Raises
    InvalidRecord, and Refused (`order-number`).
    """
    order = verify_record(arrived.record, Order, {Role.CLIENT: books.client})
    if order.message.channel != books.id:
        raise InvalidRecord("wrong-channel", "the order is for another channel.")
    books.claim_order_number(order.message.order_number)
    return order


def accept_order(
    books: ChannelBooks,
    order: Signed[Order],
    opening: OrderOpening,
    body: bytes,
    offer: Signed[Offer] | None,
    *,
    key: SecretKey,
    now_ms: int,
) -> tuple[SellerOrder, Actions]:
    """Check an order against the channel, the offer it names and its body, and take it on.

    `order` and `opening` come from `verify_order`, and are used once. `offer` is the offer of that id if the provider
    signed it, else None. Raises Refused with a code of docs/spec/session.md, section 4; nothing is then recorded or
    owed.
    """
    message = order.message
    check_clock(message.ordered_ms, now_ms, "the client")
    if books.is_expired(now_ms):
        raise Refused("channel-expired", "the channel has expired.", hint="Open a new one.")
    entry, tariff = _price_in_force(offer, message, books, now_ms)
    if request_commitment(opening.commitment_key, body) != message.request_commitment:
        raise Refused("commitment", "the body is not the one that the order commits to.")
    fields = parse_ordered(message, body)
    if message.first_token_timeout_ms <= 0:
        raise Refused("order-caps", "the order's deadline for the first token is not after its own time.")
    most = most_owed(tariff, max_prompt_tokens=message.max_prompt_tokens, max_output_tokens=message.max_output_tokens)
    if message.max_output_tokens < fields.max_output_tokens(entry) or message.max_amount_pico < most:
        raise Refused("order-caps", "the order's caps do not cover what its body asks for.")
    _check_room(books, message, tariff, now_ms)
    seller = SellerOrder(books, order, tariff, opening.commitment_key, fields.n or 1, key, now_ms)
    return seller, (AskEngine(), Persist(order))


def accept_batch(
    books: ChannelBooks,
    order: Signed[Order],
    commitment_key: bytes,
    offer: Signed[Offer] | None,
    *,
    key: SecretKey,
    now_ms: int,
) -> tuple[SellerBatch, Actions]:
    """Check a batch order against the channel and the offer it names, and take it on: its requests come after it.

    As `accept_order`, which see.
    """
    message = order.message
    check_clock(message.ordered_ms, now_ms, "the client")
    if books.is_expired(now_ms):
        raise Refused("channel-expired", "the channel has expired.", hint="Open a new one.")
    entry, tariff = _price_in_force(offer, message, books, now_ms)
    assert offer is not None, "it was found in force"
    batch = offer.message.batch
    if message.request_commitment != NO_COMMITMENT:
        raise Refused("commitment", "a batch order commits to no request; it was expected to hold zeros there.")
    if message.max_requests > batch.batch_requests:
        raise Refused(
            "order-caps", f"the order is for {message.max_requests} requests; the offer has {batch.batch_requests}."
        )
    if message.first_token_timeout_ms <= 0:
        raise Refused("order-caps", "the order's deadline for the first token is not after its own time.")
    most = most_owed(tariff, max_prompt_tokens=message.max_prompt_tokens, max_output_tokens=message.max_output_tokens)
    if message.max_amount_pico < most:
        raise Refused("order-caps", "the order's amount does not cover its tokens.")
    _check_room(books, message, tariff, now_ms)
    return SellerBatch(books, order, entry, tariff, batch, commitment_key, key, now_ms), (Persist(order),)


def _check_room(books: ChannelBooks, order: Order, tariff: Tariff, now_ms: int) -> None:
    """Raises Refused: what is at risk, and the channel's credit."""
    books.check_may_open(risk_pico(order, tariff, books.terms.window_tokens), now_ms)
    books.check_credit(order.max_amount_pico, now_ms)


def _price_in_force(
    offer: Signed[Offer] | None, order: Order, books: ChannelBooks, now_ms: int
) -> tuple[ModelOffer, Tariff]:
    if offer is None or offer.id != order.offer:
        raise Refused("unknown-offer", "the order names an offer that is not ours.", hint="Fetch the offer again.")
    if not offer.message.valid_from_ms <= now_ms <= offer.message.valid_until_ms:
        raise Refused("offer-expired", "the offer that the order names is not in force.", hint="Fetch it again.")
    if offer.message.currency != books.terms.currency:
        raise Refused("wrong-currency", "the offer's currency is not the channel's.", hint="Open a new channel.")
    entry = offer.message.model_offer(order.model)
    if entry is None:
        raise Refused("unknown-model", f"the model {order.model!r} is not in the offer.")
    if order.endpoint not in entry.endpoints:
        raise Refused("unknown-endpoint", f"{order.endpoint!r} is not offered for {order.model!r}.")
    return entry, offer.message.tariff_at(entry, order.ordered_ms)
