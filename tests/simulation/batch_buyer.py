"""A batch order at the client's process, as client/batch.py has it: requests join while it is open."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2pgrid.errors import Refused
from p2pgrid.proto.asked_request import AskedRequest
from p2pgrid.proto.batch_buyer import BuyerBatch, Need
from p2pgrid.proto.placement import place_batch
from p2pgrid.proto.request import RequestFields, parse_request
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.proto.wire.orders import MAX_REQUEST_BYTES
from tests.simulation.buyer import Buyer, OrderTalk
from tests.simulation.network import Link

if TYPE_CHECKING:
    from tests.simulation.world import Request


class BatchTalk(OrderTalk):
    """A batch order."""

    machine: BuyerBatch

    def __init__(self, buyer: Buyer, link: Link, machine: BuyerBatch) -> None:
        super().__init__(buyer, link, machine)
        self.closes_ms = buyer.now_ms + self.world.offer.message.batch.batch_ms
        self.asked: list[Request] = []

    def ask(self, request: Request, fields: RequestFields, need: Need) -> bool:
        """One more request; False if it does not fit."""
        made = self.machine.ask(fields, request.endpoint, request.body, need)
        if made is None:
            return False
        self.asked.append(request)
        self.world.asked(self.machine.order, request)
        self.act(made[1])
        if len(self.asked) == self.machine.order.message.max_requests:
            self.close()
        return True

    def close(self) -> None:
        """No more requests come."""
        self.act(self.machine.close())

    def tick(self) -> None:
        """Time has passed."""
        if self.buyer.now_ms >= self.closes_ms:
            self.close()

    def cancel(self) -> None:
        """One program wants no more, or all of them."""
        random, asked = self.world.random, self.machine.asked
        if asked and random.random() < 0.8:
            self.cancel_request(random.choice(asked))
        else:
            self.act(self.machine.cancel())

    def cancel_request(self, asked: AskedRequest) -> None:
        """The program of one request wants no more."""
        self.act(self.machine.cancel_request(asked))

    def receive(self, kind: int, payload: bytes) -> None:
        observer = self.world.observer
        if kind == Kind.PART:
            refused = self.machine.part(payload)
            if refused is not None:
                self.act(refused)
            else:
                observer.delivers(self.order_id, payload[1:], payload[0])
            return
        if kind == Kind.REQUEST_HEAD and self.machine.is_open:
            observer.heads(self.order_id, kind, payload)
        super().receive(kind, payload)
        if kind == Kind.REQUEST_REFUSED:
            self._look_for_refusals()

    def _look_for_refusals(self) -> None:
        """By the provider's clock the order's time may be over."""
        refusals = [one.refusal for one in self.machine.asked if one.refusal is not None]
        if any(one.code == "batch-closed" for one in refusals):
            self.close()


def need_of(request: Request, fields: RequestFields, buyer: Buyer) -> Need | None:
    """What the request may take of an order's caps; None for one that is too long to share one."""
    entry = buyer.world.offer.message.model_offer(fields.model)
    if entry is None or len(request.body) > MAX_REQUEST_BYTES:
        return None
    return Need(fields.max_prompt_tokens(entry, len(request.body)), fields.max_output_tokens(entry))


def order_with_others(buyer: Buyer, request: Request) -> bool:
    """Put a request under the batch order that is open, or one that is opened; False if it needs one of its own."""
    assert buyer.books is not None and buyer.link is not None
    world, fields = buyer.world, parse_request(request.endpoint, request.body)
    need = need_of(request, fields, buyer)
    if need is None:
        return False
    for talk in buyer.batches():
        if talk.machine.books is buyer.books and not talk.machine.is_closed:
            if talk.ask(request, fields, need):
                return True
            talk.close()
    buyer.prepare()
    try:
        machine, actions = place_batch(
            buyer.books,
            world.offer,
            fields,
            request.endpoint,
            need,
            key=buyer.key,
            commitment_key=world.random.randbytes(32),
            now_ms=buyer.now_ms,
            first_token_timeout_ms=request.timeout_ms,
        )
    except Refused as refused:
        world.note(f"client: no batch order ({refused.code})")
        return False
    world.ordered(machine.order)
    talk = buyer.batch_type(buyer, buyer.link, machine)
    buyer.start(talk, actions)
    return talk.ask(request, fields, need)


Buyer.batch_type = BatchTalk
