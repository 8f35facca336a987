"""How a client places an order, for one request or for several (docs/spec/session.md, sections 3, 4 and 11).

What it asks here of the offer, the channel's room and its credit is what the provider asks in `acceptance`.
"""

from __future__ import annotations

from p2pgrid.errors import Refused
from p2pgrid.proto.actions import Action, Actions, Persist, Send
from p2pgrid.proto.batch import NO_COMMITMENT
from p2pgrid.proto.batch_buyer import BuyerBatch, Need
from p2pgrid.proto.books import ChannelBooks, risk_pico
from p2pgrid.proto.buyer import BuyerOrder
from p2pgrid.proto.commitment import request_commitment
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.messages import ModelOffer, Offer, Order
from p2pgrid.proto.pricing import most_owed
from p2pgrid.proto.record import Role, Signed, sign_message
from p2pgrid.proto.request import RequestFields
from p2pgrid.proto.wire.base import CHUNK_BYTES
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.proto.wire.orders import BatchOpening, OrderOpening
from p2pgrid.units import MAX_TOKENS


def place_order(
    books: ChannelBooks,
    offer: Signed[Offer],
    fields: RequestFields,
    endpoint: str,
    body: bytes,
    *,
    key: SecretKey,
    commitment_key: bytes,
    now_ms: int,
    first_token_timeout_ms: int,
    max_amount_pico: int | None = None,
    most_prompt_tokens: int | None = None,
) -> tuple[BuyerOrder, Actions]:
    """Sign an order for a body made by `metered_body`. The shell sends the body's pieces and ends its direction.

    `max_amount_pico` is what the program allows; it must cover the order's caps. `most_prompt_tokens`: where more is
    known than the body's size, so many the prompt has at most. Raises Refused with the codes that the
    provider would use (`unknown-model`, `unknown-endpoint`, `offer-expired`, `unknown-offer`, `wrong-currency`,
    `channel-expired`, `too-many-open-orders`, `bad-request`, `credit-exhausted`), and `over-budget`.
    """
    entry = _entry_on_offer(books, offer, fields.model, endpoint, now_ms)
    max_prompt = fields.max_prompt_tokens(entry, len(body))
    if most_prompt_tokens is not None:
        max_prompt = min(max_prompt, most_prompt_tokens)
    max_output = fields.max_output_tokens(entry)
    if max(max_prompt, max_output) > MAX_TOKENS:
        raise Refused(
            "bad-request",
            f"the answers may come to {max_output} tokens; an order has at most {MAX_TOKENS} either way.",
            hint="Ask for fewer answers or set max_tokens.",
        )
    tariff = offer.message.tariff_at(entry, now_ms)
    most = most_owed(tariff, max_prompt_tokens=max_prompt, max_output_tokens=max_output)
    if max_amount_pico is not None and most > max_amount_pico:
        raise Refused(
            "over-budget",
            f"the answer may cost {most} pico-EUR; {max_amount_pico} are allowed.",
            hint="Lower max_tokens or raise the budget.",
        )
    books.check_credit(most, now_ms)
    message = Order(
        channel=books.id,
        order_number=books.last_order_number + 1,
        offer=offer.id,
        model=fields.model,
        endpoint=endpoint,
        request_commitment=request_commitment(commitment_key, body),
        max_prompt_tokens=max_prompt,
        max_output_tokens=max_output,
        max_amount_pico=most,
        ordered_ms=now_ms,
        first_token_deadline_ms=now_ms + first_token_timeout_ms,
    )
    books.check_may_open(risk_pico(message, tariff, books.terms.window_tokens), now_ms)
    order = sign_message(message, Role.CLIENT, key)
    opening = OrderOpening(order=order.record.to_bytes(), commitment_key=commitment_key, body_bytes=len(body))
    buyer = BuyerOrder(books, order, tariff, commitment_key, fields.n or 1, key)
    pieces = [Send(Kind.BODY, body[i : i + CHUNK_BYTES]) for i in range(0, len(body), CHUNK_BYTES)]
    return buyer, [Persist(order), Send(Kind.ORDER, opening.to_bytes()), *pieces]


def _entry_on_offer(books: ChannelBooks, offer: Signed[Offer], model: str, endpoint: str, now_ms: int) -> ModelOffer:
    """What the offer has of the model, if it can be ordered now. Raises Refused, as `place_order` does."""
    entry = offer.message.model_offer(model)
    if entry is None:
        raise Refused("unknown-model", f"the model {model!r} is not in the offer.")
    if endpoint not in entry.endpoints:
        raise Refused("unknown-endpoint", f"{endpoint!r} is not offered for {model!r}.")
    if offer.message.provider != books.provider.raw:
        raise Refused("unknown-offer", "the offer is another provider's than the channel's.")
    if offer.message.currency != books.terms.currency:
        raise Refused("wrong-currency", "the offer's currency is not the channel's.", hint="Open a new channel.")
    if now_ms > offer.message.valid_until_ms:
        raise Refused("offer-expired", "the offer is not in force any more.", hint="Fetch it again.")
    if books.is_expired(now_ms):
        raise Refused("channel-expired", "the channel has expired.", hint="Open a new one.")
    return entry


def place_batch(
    books: ChannelBooks,
    offer: Signed[Offer],
    fields: RequestFields,
    endpoint: str,
    need: Need,
    *,
    key: SecretKey,
    commitment_key: bytes,
    now_ms: int,
    first_token_timeout_ms: int,
) -> tuple[BuyerBatch, Actions]:
    """Sign a batch order with room for as many requests like this one as the offer, risk and credit allow.

    The request itself is then the first that is asked (`BuyerBatch.ask`). `need` is what each may take. Raises Refused
    with the codes of `place_order` where there is no room for two: it needs an order of its own.
    """
    entry = _entry_on_offer(books, offer, fields.model, endpoint, now_ms)
    tariff = offer.message.tariff_at(entry, now_ms)
    n, window = offer.message.batch.batch_requests, books.terms.window_tokens
    while n > 1:
        max_prompt, max_output = n * need.prompt_tokens, n * need.output_tokens
        if max(max_prompt, max_output) <= MAX_TOKENS:
            most = most_owed(tariff, max_prompt_tokens=max_prompt, max_output_tokens=max_output)
            message = Order(
                channel=books.id,
                order_number=books.last_order_number + 1,
                offer=offer.id,
                model=fields.model,
                endpoint=endpoint,
                request_commitment=NO_COMMITMENT,
                max_prompt_tokens=max_prompt,
                max_output_tokens=max_output,
                max_amount_pico=most,
                ordered_ms=now_ms,
                first_token_deadline_ms=now_ms + first_token_timeout_ms,
                max_requests=n,
            )
            if most <= books.credit_left_pico() and books.may_open(risk_pico(message, tariff, window), now_ms):
                break
        n //= 2
    else:
        raise Refused("too-many-open-orders", "there is no room for an order of several requests.")
    order = sign_message(message, Role.CLIENT, key)
    opening = BatchOpening(order=order.record.to_bytes(), commitment_key=commitment_key)
    buyer = BuyerBatch(books, order, entry, tariff, commitment_key, key)
    actions: list[Action] = [Persist(order), Send(Kind.BATCH, opening.to_bytes())]
    return buyer, actions
