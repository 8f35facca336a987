"""What the two session machines sign, whatever happens to their orders, is clean to an auditor."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from p2pgrid.proto.acceptance import accept_order, verify_order
from p2pgrid.proto.actions import Action, Actions, Persist, Send
from p2pgrid.proto.books import ChannelBooks
from p2pgrid.proto.buyer import BuyerOrder
from p2pgrid.proto.channel import ChannelHead
from p2pgrid.proto.messages import Status
from p2pgrid.proto.placement import place_order
from p2pgrid.proto.proposal import Ending, propose_receipt
from p2pgrid.proto.record import Role
from p2pgrid.proto.request import metered_body, parse_request
from p2pgrid.proto.seller import SellerOrder
from p2pgrid.proto.verdict import audit_records
from p2pgrid.proto.wire.kinds import Kind
from tests.proto.chains import Dealings, bundle_of, digest

ENDPOINT = "/v1/chat/completions"


class Pair:
    """A seller's and a buyer's machine over an ideal link, and the books they keep in a `Dealings`."""

    def __init__(self, *, vouchers_arrive: bool = True) -> None:
        self.grid = Dealings()
        head = ChannelHead(0, 0, self.grid.channel.id, 0, 0)
        self.seller_books = ChannelBooks(self.grid.channel, head)
        self.buyer_books = ChannelBooks(self.grid.channel, head)
        self.now_ms = self.grid.now_ms
        self.vouchers_arrive = vouchers_arrive
        self.countersignatures_arrive = True
        self.seller: SellerOrder | None = None
        self.buyer: BuyerOrder | None = None

    def order(self) -> None:
        body = metered_body({"model": "small", "messages": [], "max_tokens": 1500})
        self.buyer, actions = place_order(
            self.buyer_books,
            self.grid.offer,
            parse_request(ENDPOINT, body),
            ENDPOINT,
            body,
            key=self.grid.client,
            commitment_key=digest("key", self.now_ms),
            now_ms=self.now_ms,
            first_token_timeout_ms=30_000,
        )
        (opening,) = (a.payload for a in actions if isinstance(a, Send) and a.kind is Kind.ORDER)
        self.keep("client", actions)
        order, parsed = verify_order(opening, self.seller_books)
        self.seller, actions = accept_order(
            self.seller_books, order, parsed, body, self.grid.offer, key=self.grid.provider, now_ms=self.now_ms
        )
        self.sell(actions)

    def keep(self, side: str, actions: Actions) -> list[Send]:
        for action in actions:
            if isinstance(action, Persist):
                self.grid.keep(action.signed, by=side)
        return [action for action in actions if isinstance(action, Send)]

    def sell(self, actions: Actions | list[Action]) -> None:
        """Carry out the provider's actions: what it sends, the client answers."""
        assert self.buyer is not None
        assert self.seller is not None
        for sent in self.keep("provider", actions):
            for answer in self.keep("client", self.buyer.message(sent.kind, sent.payload, self.now_ms)):
                lost = (answer.kind is Kind.VOUCHER and not self.vouchers_arrive) or (
                    answer.kind is Kind.COUNTERSIGNATURE and not self.countersignatures_arrive
                )
                if not lost:
                    self.sell(self.seller.message(answer.kind, answer.payload, self.now_ms))

    def stream(self, tokens: int, *, end: bool = True, cached: int = 16) -> None:
        assert self.seller is not None
        self.sell(self.seller.engine_head(200, "text/event-stream"))
        for index in range(tokens):
            self.now_ms += 3
            choice = {"index": 0, "token_ids": [index], "finish_reason": None}
            chunk = {"id": "a", "choices": [choice], **({"prompt_token_ids": list(range(40))} if index == 0 else {})}
            self.sell(self.seller.engine_bytes(event(chunk), self.now_ms))
        if end:
            details = {"cached_tokens": cached}
            usage = {"prompt_tokens": 40, "completion_tokens": tokens, "prompt_tokens_details": details}
            last = event({"id": "a", "choices": [], "usage": usage}) + b"data: [DONE]\n\n"
            self.sell(self.seller.engine_bytes(last, self.now_ms))
            self.sell(self.seller.engine_end(self.now_ms))

    def lose_link(self) -> None:
        assert self.seller is not None
        assert self.buyer is not None
        self.keep("provider", self.seller.link_lost(self.now_ms))
        self.buyer.link_lost()
        receipt = propose_receipt(
            self.seller_books,
            self.seller.order,
            self.buyer.tariff,
            self.buyer.vouched,
            Ending(status=Status.INTERRUPTED),
            key=self.grid.provider,
            now_ms=self.now_ms,
        )
        self.grid.keep(receipt, by="provider")


def event(chunk: dict[str, object]) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def completed(pair: Pair) -> None:
    for tokens in (1, 127, 128, 900):
        pair.order()
        pair.stream(tokens)


def cancelled(pair: Pair) -> None:
    pair.order()
    pair.stream(300, end=False)
    assert pair.buyer is not None
    assert pair.seller is not None
    (cancel,) = pair.keep("client", pair.buyer.cancel())
    pair.sell(pair.seller.message(cancel.kind, cancel.payload, pair.now_ms))


def failed(pair: Pair) -> None:
    pair.order()
    pair.stream(200, end=False)
    assert pair.seller is not None
    pair.sell(pair.seller.engine_failed(pair.now_ms))


def empty(pair: Pair) -> None:
    pair.order()
    pair.stream(0)


def late(pair: Pair) -> None:
    pair.order()
    pair.now_ms += 31_000
    assert pair.seller is not None
    pair.sell(pair.seller.tick(pair.now_ms))


def interrupted(pair: Pair) -> None:
    pair.order()
    pair.stream(300, end=False)
    pair.lose_link()


def vouchers_lost(pair: Pair) -> None:
    pair.order()
    pair.stream(200, end=False)
    pair.vouchers_arrive = False
    pair.stream(100, end=False)
    pair.lose_link()


def never_acknowledged(pair: Pair) -> None:
    pair.vouchers_arrive = False
    pair.order()
    pair.stream(600, end=False)
    pair.now_ms += 16_000
    assert pair.seller is not None
    pair.sell(pair.seller.tick(pair.now_ms))


def countersignature_lost(pair: Pair) -> None:
    pair.order()
    pair.stream(300)
    pair.countersignatures_arrive = False
    pair.order()
    pair.stream(500)


@pytest.mark.parametrize(
    "happen",
    [
        completed,
        cancelled,
        failed,
        empty,
        late,
        interrupted,
        vouchers_lost,
        never_acknowledged,
        countersignature_lost,
    ],
)
@pytest.mark.parametrize("which", ["both", "provider", "client"])
def test_what_sessions_sign_is_clean(happen: Callable[[Pair], None], which: str) -> None:
    pair = Pair()
    happen(pair)
    provider, client = pair.grid.bundles()
    bundles = {
        "both": [bundle_of(provider, Role.PROVIDER), bundle_of(client, Role.CLIENT)],
        "provider": [bundle_of(provider, Role.PROVIDER)],
        "client": [bundle_of(client, Role.CLIENT)],
    }[which]
    verdict = audit_records(bundles)
    assert verdict.clean, verdict.findings
    assert pair.seller is not None
    if which != "client":
        assert verdict.channels[0].receipts == pair.seller_books.last_receipt_number
