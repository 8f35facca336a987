"""Cases of machines.json: orders that a provider refuses, and what is at risk (docs/spec/session.md, 4 and 8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from p2pgrid.errors import InvalidRecord, ProtocolViolation, Refused
from p2pgrid.proto.acceptance import accept_order, verify_order
from p2pgrid.proto.books import Arrears, ChannelBooks, risk_pico
from p2pgrid.proto.messages import Offer, Order, Tariff
from p2pgrid.proto.record import Role, Signed, parse_record, sign_message
from p2pgrid.proto.wire.base import parse_frame
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.proto.wire.orders import OrderOpening
from tests.proto.machine_trace import COMMITMENT_KEY, Trace
from tests.proto.simulation import CLIENT, NOW_MS, PROVIDER, TARIFF, make_books, make_channel, make_offer


def refused_orders() -> list[dict[str, Any]]:
    """ORDER and body, the time, and the provider's channel before; `code` is empty where the order is taken."""
    return [_case(name, **changes) for name, changes in _CASES]


def _case(
    name: str,
    *,
    order: Callable[[Order], Order] = lambda order: order,
    body: Callable[[bytes], bytes] = lambda body: body,
    offer: dict[str, Any] | None = None,
    known: bool = True,
    at_ms: int = 0,
    books: Callable[[ChannelBooks], None] = lambda books: None,
    **asked: Any,
) -> dict[str, Any]:
    trace = Trace().place(arrive=False, **asked)
    opening = parse_frame(trace.to_provider[0][1], OrderOpening)
    content = b"".join(payload for kind, payload in trace.to_provider if kind == Kind.BODY)
    message = order(msgspec.convert(msgspec.msgpack.decode(parse_record(opening.order).payload), Order))
    sent = _opening(sign_message(message, Role.CLIENT, CLIENT), len(body(content)))
    sold = make_books(trace.channel)
    books(sold)
    held = make_offer(window=16, **offer) if offer else trace.offer
    if offer:
        message = msgspec.structs.replace(message, offer=held.id)
        sent = _opening(sign_message(message, Role.CLIENT, CLIENT), len(body(content)))
    return {
        "case": name,
        "now_ms": NOW_MS + at_ms,
        "offer": held.record.to_bytes().hex() if known and offer else "16" if known else "",
        "channel": "16",
        "last_order_number": sold.last_order_number,
        "total_pico": sold.total_pico,
        "reserved_pico": sold.reserved_pico,
        "freed_pico": sold.credit.freed_pico,
        "overdue_from_ms": sold.arrears.from_ms if sold.arrears else 0,
        "countersigned_pico": sold.countersigned_pico,
        "open_risks_pico": sorted(sold._risks.values()),
        "order": sent.hex(),
        "body": body(content).decode(),
        "code": _code(sold, sent, body(content), held if known else None, NOW_MS + at_ms),
    }


def _opening(order: Signed[Order], size: int) -> bytes:
    return OrderOpening(order=order.record.to_bytes(), commitment_key=COMMITMENT_KEY, body_bytes=size).to_bytes()


def _code(books: ChannelBooks, sent: bytes, body: bytes, offer: Signed[Offer] | None, now_ms: int) -> str:
    try:
        order, opening = verify_order(sent, books)
        accept_order(books, order, opening, body, offer, key=PROVIDER, now_ms=now_ms)
    except (Refused, InvalidRecord) as refused:
        return refused.code
    except ProtocolViolation:
        return "violation"
    return ""


def _with(**fields: Any) -> Callable[[Order], Order]:
    return lambda order: msgspec.structs.replace(order, **fields)


def _less(name: str, by: int = 1) -> Callable[[Order], Order]:
    return lambda order: msgspec.structs.replace(order, **{name: getattr(order, name) - by})


def _used(number: int) -> Callable[[ChannelBooks], None]:
    return lambda books: books.claim_order_number(number)


def _owing(total: int) -> Callable[[ChannelBooks], None]:
    def owe(books: ChannelBooks) -> None:
        books.total_pico = total

    return owe


def _freed(pico: int, total: int, overdue_ms: int | None = None) -> Callable[[ChannelBooks], None]:
    def free(books: ChannelBooks) -> None:
        books.total_pico = total
        books.credit.freed_pico = pico
        if overdue_ms is not None:
            books.arrears = Arrears(NOW_MS + overdue_ms, "An invoice is overdue.")

    return free


def _with_open(count: int, countersigned_pico: int = 0) -> Callable[[ChannelBooks], None]:
    def opened(books: ChannelBooks) -> None:
        books.countersigned_pico = countersigned_pico
        for number in range(1, count + 1):
            books.open_order(_order(number), TARIFF)
        books.last_order_number = 0

    return opened


def _order(number: int, **changes: Any) -> Order:
    fields: dict[str, Any] = {
        "channel": make_channel(make_offer()).message.channel,
        "order_number": 1000 + number,
        "offer": bytes(32),
        "model": "m",
        "endpoint": "/v1/completions",
        "request_commitment": bytes(32),
        "max_prompt_tokens": 1000,
        "max_output_tokens": 4000,
        "max_amount_pico": 10**10,
        "ordered_ms": NOW_MS,
        "first_token_deadline_ms": NOW_MS + 1,
    }
    return Order(**{**fields, **changes})


def _most() -> int:
    buyer = Trace().place(arrive=False).buyer
    assert buyer is not None
    return buyer.order.message.max_amount_pico


def _dated(after_ms: int) -> Callable[[Order], Order]:
    return _with(ordered_ms=NOW_MS + after_ms, first_token_deadline_ms=NOW_MS + after_ms + 1)


_MOST = _most()
_RISK = 1000 * TARIFF.input_upm + 16 * TARIFF.output_upm
"""Of the orders above, with a window of 16."""
_DAY_MS = 86_400_000
_CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("as it should be", {}),
    ("a number that was used", {"books": _used(1)}),
    ("a number below one that was used", {"books": _used(5)}),
    ("numbers may have gaps", {"order": _with(order_number=9), "books": _used(5)}),
    ("another channel", {"order": _with(channel=bytes(32))}),
    ("120 s behind", {"at_ms": 120_000}),
    ("over 120 s behind", {"at_ms": 120_001}),
    ("over 120 s ahead", {"at_ms": -120_001}),
    ("at the channel's end", {"order": _dated(90 * _DAY_MS), "at_ms": 90 * _DAY_MS}),
    (
        "a millisecond before the channel's end, the offer over",
        {"order": _dated(90 * _DAY_MS - 1), "at_ms": 90 * _DAY_MS - 1},
    ),
    ("an offer that is not the provider's", {"known": False}),
    ("another offer than the order names", {"order": _with(offer=bytes(32))}),
    ("an offer that has ended", {"offer": {"valid_until_ms": NOW_MS - 1}}),
    ("an offer that has not begun", {"offer": {"valid_from_ms": NOW_MS + 1}}),
    ("another currency", {"offer": {"currency": "CHF"}}),
    ("a model that is not offered", {"order": _with(model="another")}),
    ("an endpoint that is not offered", {"order": _with(endpoint="/v1/embeddings")}),
    ("another body", {"body": lambda body: body + b" "}),
    ("no time for a token", {"order": _with(first_token_deadline_ms=NOW_MS)}),
    ("caps a token short", {"order": _less("max_output_tokens")}),
    ("caps a pico short", {"order": _less("max_amount_pico")}),
    ("a prompt cap of nothing: the engine will tell", {"order": _with(max_prompt_tokens=0)}),
    ("credit to the last pico", {"books": _owing(10**13 - _MOST)}),
    ("credit a pico short", {"books": _owing(10**13 - _MOST + 1)}),
    ("credit that was freed, to the last pico", {"books": _freed(2 * 10**13, 3 * 10**13 - _MOST)}),
    ("credit that was freed, a pico short", {"books": _freed(2 * 10**13 - 1, 3 * 10**13 - _MOST)}),
    ("an invoice overdue from now on", {"books": _freed(0, 0, 0)}),
    ("an invoice overdue in a millisecond", {"books": _freed(0, 0, 1)}),
    ("overdue, and enough paid ahead", {"books": _freed(10**13, 10**13 - _MOST, -1)}),
    ("overdue, and a pico too little paid ahead", {"books": _freed(10**13, 10**13 - _MOST + 1, -1)}),
    ("overdue, and no credit left either", {"books": _freed(0, 10**13, -1)}),
    ("one order open, nothing countersigned", {"books": _with_open(1)}),
    ("one order open, its risk or the new one's countersigned", {"books": _with_open(1, _RISK)}),
    ("two open, one risk countersigned", {"books": _with_open(2, _RISK)}),
    ("two open, enough countersigned", {"books": _with_open(2, 2 * _RISK)}),
)


def risks() -> list[dict[str, Any]]:
    """What an order puts at risk."""
    tariffs = (TARIFF, Tariff(input_upm=10**12, cached_input_upm=0, output_upm=10**12))
    caps = (
        (1000, 4000, 10**12),
        (1000, 8, 10**12),
        (0, 256, 10**12),
        (1000, 4000, 10**5),
        (8 * 10**6, 8 * 10**6, 2**62),
    )
    made = []
    for tariff in tariffs:
        for prompt_tokens, output_tokens, amount in caps:
            order = _order(1, max_prompt_tokens=prompt_tokens, max_output_tokens=output_tokens, max_amount_pico=amount)
            made.append(
                {
                    "tariff": msgspec.to_builtins(tariff),
                    "max_prompt_tokens": prompt_tokens,
                    "max_output_tokens": output_tokens,
                    "max_amount_pico": amount,
                    "window_tokens": 256,
                    "risk_pico": risk_pico(order, tariff, 256),
                }
            )
    return made
