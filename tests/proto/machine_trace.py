"""One order played through both machines, step by step, each step written down: what stands in machines.json."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from p2pgrid.errors import InvalidRecord, ProtocolViolation, Refused
from p2pgrid.proto.acceptance import accept_order, verify_order
from p2pgrid.proto.actions import AbortEngine, Action, Actions, AskEngine, Breach, EndStream, Persist, Send
from p2pgrid.proto.buyer import BuyerOrder
from p2pgrid.proto.message_types import MESSAGE_TYPES
from p2pgrid.proto.messages import Offer, Order
from p2pgrid.proto.placement import place_order
from p2pgrid.proto.record import Message, Record, Role, Signed, parse_message, parse_record, sign_message
from p2pgrid.proto.request import metered_body, parse_request
from p2pgrid.proto.seller import SellerOrder
from p2pgrid.proto.wire.base import Refusal
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.proto.wire.orders import OrderOpening
from tests.proto.simulation import CHAT, CLIENT, MODEL, NOW_MS, PROVIDER, make_books, make_channel, make_offer
from tests.proto.squeezed import squeezed

COMMITMENT_KEY = bytes([7] * 32)


def chunk(*ids: int, finish: str | None = None, index: int = 0) -> str:
    """An event that brings tokens."""
    choice = {"index": index, "token_ids": list(ids), **({"finish_reason": finish} if finish else {})}
    return _event({"choices": [choice]})


def prompt(count: int) -> str:
    """An event that brings the prompt's ids."""
    return _event({"prompt_token_ids": [1] * count, "choices": []})


def last(prompt_tokens: int, output_tokens: int, cached: int = 0) -> str:
    """The final usage, and the end."""
    details = {"prompt_tokens_details": {"cached_tokens": cached}} if cached else {}
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": output_tokens, **details}
    return _event({"choices": [], "usage": usage}) + "data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, separators=(',', ':'))}\n\n"


class Trace:
    """One channel and its orders, from `place` on."""

    def __init__(self, *, window: int = 16, countersigned: int = 0) -> None:
        self.offer: Signed[Offer] = make_offer(window=window)
        self.channel = make_channel(self.offer)
        self.sold = make_books(self.channel, countersigned=countersigned)
        self.bought = make_books(self.channel, countersigned=countersigned)
        self.countersigned = countersigned
        self.now_ms = NOW_MS
        self.steps: list[dict[str, Any]] = []
        self.to_client: deque[tuple[Kind, bytes]] = deque()
        self.to_provider: deque[tuple[Kind, bytes]] = deque()
        self.buyer: BuyerOrder | None = None
        self.seller: SellerOrder | None = None
        self._order: Signed[Order] | None = None
        self._opening: OrderOpening | None = None
        self._body = b""

    # -- the client ------------------------------------------------------------------------------------------------

    def place(self, *, timeout_ms: int = 60_000, max_tokens: int = 100, arrive: bool = True, **fields: Any) -> Trace:
        """The client orders; with `arrive` the order reaches the provider, which takes it."""
        body = metered_body({"model": MODEL, "messages": [], "max_tokens": max_tokens, **fields})
        given = {
            "body": body.decode(),
            "endpoint": CHAT,
            "commitment_key": COMMITMENT_KEY.hex(),
            "first_token_timeout_ms": timeout_ms,
        }

        def placed() -> Actions:
            self.buyer, actions = place_order(
                self.bought,
                self.offer,
                parse_request(CHAT, body),
                CHAT,
                body,
                key=CLIENT,
                commitment_key=COMMITMENT_KEY,
                now_ms=self.now_ms,
                first_token_timeout_ms=timeout_ms,
            )
            return actions

        self._client("PLACE", given, placed)
        return self.provide() if arrive else self

    def hear(self, count: int = 99) -> Trace:
        """The next messages reach the client."""
        for _ in range(min(count, len(self.to_client))):
            self.tell(*self.to_client.popleft())
        return self

    def tell(self, kind: int, payload: bytes) -> Trace:
        """This message reaches the client."""
        buyer = self.buyer
        assert buyer is not None
        return self._client(_name(kind), squeezed(payload), lambda: buyer.message(kind, payload, self.now_ms))

    def cancel(self) -> Trace:
        """The client's program wants no more."""
        buyer = self.buyer
        assert buyer is not None
        return self._client("CANCELS", None, buyer.cancel)

    # -- the provider ------------------------------------------------------------------------------------------------

    def provide(self, count: int = 99) -> Trace:
        """The next messages reach the provider."""
        for _ in range(min(count, len(self.to_provider))):
            self.take(*self.to_provider.popleft())
        return self

    def take(self, kind: int, payload: bytes) -> Trace:
        """This message reaches the provider."""
        return self._provider(_name(kind), squeezed(payload), lambda: self._taken(kind, payload))

    def _taken(self, kind: int, payload: bytes) -> Actions:
        if kind == Kind.ORDER:
            self._order, self._opening = verify_order(payload, self.sold)
            return ()
        if kind == Kind.BODY:
            return self._body_came(payload)
        if self.seller is None and kind == Kind.CANCEL:
            raise Refused("cancelled", "")
        if self.seller is None:
            raise ProtocolViolation("the body is not whole")
        return self.seller.message(kind, payload, self.now_ms)

    def _body_came(self, payload: bytes) -> Actions:
        assert self._order is not None and self._opening is not None
        self._body += payload
        if len(self._body) < self._opening.body_bytes:
            return ()
        self.seller, actions = accept_order(
            self.sold, self._order, self._opening, self._body, self.offer, key=PROVIDER, now_ms=self.now_ms
        )
        return actions

    def engine(self, *events: str, status: int = 200) -> Trace:
        """The engine answers: a status first, then each of the events."""
        self._engine("HEAD", status, lambda seller: seller.engine_head(status, "text/event-stream"))
        return self.more(*events)

    def more(self, *events: str) -> Trace:
        """The engine sends more."""
        for event in events:
            self._engine("BYTES", event, lambda seller, e=event: seller.engine_bytes(e.encode(), self.now_ms))
        return self

    def ends(self, fails: bool = False) -> Trace:
        """The engine ends its answer, or breaks off."""
        name = "BREAKS_OFF" if fails else "ENDS"
        return self._engine(name, None, lambda s: (s.engine_failed if fails else s.engine_end)(self.now_ms))

    def clock(self, ms: int) -> Trace:
        """Time passes; the provider looks at its deadlines."""
        self.now_ms += ms
        return self._engine("CLOCK", None, lambda seller: seller.tick(self.now_ms))

    def _engine(self, event: str, data: Any, act: Callable[[SellerOrder], Actions]) -> Trace:
        seller = self.seller
        assert seller is not None
        return self._provider(event, data, lambda: act(seller))

    # -- both --------------------------------------------------------------------------------------------------------

    def lose(self) -> Trace:
        """The link is gone, with all that is under way."""
        self.to_client.clear()
        self.to_provider.clear()
        seller, buyer = self.seller, self.buyer
        assert buyer is not None

        def lost() -> Actions:
            buyer.link_lost()
            return ()

        self._client("LINK_LOST", None, lost)
        if seller is not None:
            self._provider("LINK_LOST", None, lambda: seller.link_lost(self.now_ms))
        return self

    def settle(self) -> Trace:
        """Messages pass until there are none."""
        while self.to_client or self.to_provider:
            self.hear().provide()
        return self

    def relayed(self, kind: Kind, change: Callable[[Message], Message], *, key: Any = None) -> Trace:
        """The next message to the client of that kind reaches it changed, and signed anew."""
        while self.to_client[0][0] != kind:
            self.hear(1)
        return self.tell(*_changed(*self.to_client.popleft(), change, Role.PROVIDER, key or PROVIDER))

    def answered(self, kind: Kind, change: Callable[[Message], Message]) -> Trace:
        """The next message to the provider, of that kind, reaches it changed, and signed anew."""
        assert self.to_provider[0][0] == kind
        return self.take(*_changed(*self.to_provider.popleft(), change, Role.CLIENT, CLIENT))

    def _client(self, event: str, data: Any, act: Callable[[], Actions]) -> Trace:
        told = self._step("client", event, data, act, self.to_provider)
        told["state"] = self.buyer.state.name if self.buyer is not None else ""
        return self

    def _provider(self, event: str, data: Any, act: Callable[[], Actions]) -> Trace:
        told = self._step("provider", event, data, act, self.to_client)
        told["state"] = self.seller.state.name if self.seller is not None else ""
        return self

    def _step(
        self, side: str, event: str, data: Any, act: Callable[[], Actions], queue: deque[tuple[Kind, bytes]]
    ) -> dict[str, Any]:
        fault, actions = "", list[Action]()
        try:
            actions += act()
        except Refused as refused:
            fault = refused.code
            if side == "provider":
                actions.append(Send(Kind.REFUSAL, Refusal(code=fault, message="").to_bytes()))
        except ProtocolViolation:
            fault = "violation"
        except InvalidRecord as invalid:
            fault = invalid.code
        fault = next((one.code for one in actions if isinstance(one, Breach)), fault)
        sent = [(one.kind, one.payload) for one in actions if isinstance(one, Send)]
        queue.extend(sent)
        told = {
            "side": side,
            "at_ms": self.now_ms - NOW_MS,
            "event": event,
            "data": data,
            "state": "",
            "out": [[_name(kind), squeezed(payload)] for kind, payload in sent],
            "records": [one.signed.record.id.hex() for one in actions if isinstance(one, Persist)],
            "engine": next((w for c, w in ((AskEngine, "ask"), (AbortEngine, "abort")) if _has(actions, c)), ""),
            "ends": _has(actions, EndStream),
            "fault": fault,
        }
        self.steps.append(told)
        return told


def _has(actions: Actions, kind: type[Action]) -> bool:
    return any(isinstance(one, kind) for one in actions)


def _name(kind: int) -> str:
    return Kind(kind).name


def _changed(kind: Kind, payload: bytes, change: Callable[[Any], Message], role: Role, key: Any) -> tuple[Kind, bytes]:
    record: Record = parse_record(payload)
    message = change(parse_message(record, MESSAGE_TYPES[record.payload_type]))
    return kind, sign_message(message, role, key).record.to_bytes()


def with_fields(**fields: Any) -> Callable[[Any], Message]:
    """The message with other fields."""
    return lambda message: msgspec.structs.replace(message, **fields)
