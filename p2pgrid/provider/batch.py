"""One batch order on its stream: requests in, the engine's answers out side by side, one receipt (proto.batch_seller).

What a stream, a ledger and a slow client need is as for an order of one request; what is added here is several answers
of the engine at once.
"""

from __future__ import annotations

import logging
from typing import Final

from p2pgrid.engine.base import AnswerReader, OpenAnswer
from p2pgrid.errors import EngineError, P2pgridError, ProtocolViolation, Refused
from p2pgrid.net.stream import Stream
from p2pgrid.proto.acceptance import accept_batch, parse_batch, verify_arrived
from p2pgrid.proto.actions import AbortEngineFor, Action, AskEngineFor
from p2pgrid.proto.batch_seller import SellerBatch
from p2pgrid.proto.metered_order import MeteredOrder
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.provider.admission import RETRY_AFTER_MS, ServedModel
from p2pgrid.provider.exchange import Shop
from p2pgrid.provider.metered_exchange import MeteredExchange

log = logging.getLogger(__name__)

_LOOK_AGAIN_MS: Final = 100
"""How often the clock is looked at while requests run."""


class BatchExchange(MeteredExchange):
    """BATCH -> REFUSAL, or REQUEST* -> PART* each, METER* <-> VOUCHER*, BATCH_CLOSE -> RECEIPT -> COUNTERSIGNATURE."""

    _machine: SellerBatch | None

    def __init__(self, shop: Shop, stream: Stream) -> None:
        super().__init__(shop, stream)
        self._answers: dict[int, _Part] = {}
        """The engine's, while they are under way."""
        self._served: ServedModel | None = None
        """Of the request that was taken last."""
        self._is_paused = False

    # -- what the link says -----------------------------------------------------------------------------------------

    def take(self, kind: int, payload: bytes) -> None:
        machine = self._machine
        if machine is None:
            if kind != Kind.BATCH or self._order is not None:
                raise ProtocolViolation(f"message kind {kind} came where a batch order was expected.")
            self._accept_batch(payload)
        elif kind == Kind.REQUEST:
            self.stream.consume(len(payload))
            self._take_request(machine, payload)
        else:
            self._run(machine.message(kind, payload, self.shop.now_ms()))

    def _accept_batch(self, payload: bytes) -> None:
        shop = self.shop
        arrived = parse_batch(payload)
        channel = shop.channels.find_current(arrived.channel, self.stream.peer)
        self._order = order = verify_arrived(arrived, channel.books)
        channel.check_usable()
        channel.check_resumed_on(self.connection)
        shop.admission.check(arrived.model)
        key = arrived.opening.commitment_key
        offer = shop.offers.find(order.message.offer)
        machine, actions = accept_batch(channel.books, order, key, offer, key=shop.key, now_ms=shop.now_ms())
        self._channel, self._machine = channel, machine
        channel.live.add(self)
        shop.ledger.keep_request_key(order, key)
        self._run(actions)

    def _take_request(self, machine: SellerBatch, body: bytes) -> None:
        assert self._order is not None and self._channel is not None
        refusal = None
        try:
            self._channel.check_usable()
            self._served = self.shop.admission.check(self._order.message.model)
        except Refused as error:
            refusal = error
            self.shop.tally.refusals[error.code] += 1
        retry_after_ms = RETRY_AFTER_MS.get(refusal.code, 0) if refusal is not None else 0
        self._run(machine.request(body, self.shop.now_ms(), refusal, retry_after_ms))

    # -- the machine's actions --------------------------------------------------------------------------------------

    def _act(self, action: Action) -> None:
        match action:
            case AskEngineFor(index, body):
                self._ask(index, body)
            case AbortEngineFor(index):
                self._abort(index)
            case _:
                super()._act(action)

    def _go_on(self) -> None:
        machine = self._machine
        if self.is_over or machine is None:
            return
        if machine.is_running:
            self._pause(is_paused=not self._may_read(machine))
            if machine.is_complete and self._is_sent():
                self._run(machine.conclude(self.shop.now_ms()))
                return
        elif self._answers:
            self._abort_engine()
        self._wait(machine)

    def _wait(self, machine: SellerBatch) -> None:
        """Look again in time. A timer that is set already is early enough, but for a receipt that was just sent."""
        if self._timer is not None and machine.is_running:
            return
        now_ms = self.shop.now_ms()
        due_ms = self._due_ms(machine)
        if machine.is_running:
            due_ms = now_ms + _LOOK_AGAIN_MS if due_ms is None else min(due_ms, now_ms + _LOOK_AGAIN_MS)
        if due_ms is not None and due_ms != self._timer_due_ms:
            self._timer_due_ms = due_ms
            self.call_after(max(due_ms - now_ms, 0) / 1000, self.tick)

    def _due_ms(self, machine: MeteredOrder) -> int | None:
        self._is_engine_done = not self._answers
        return super()._due_ms(machine)

    # -- the engine -------------------------------------------------------------------------------------------------

    def _ask(self, index: int, body: bytes) -> None:
        order, served = self._order, self._served
        assert order is not None and served is not None
        part = _Part(self, index, served)
        served.running += 1
        self._answers[index] = part
        try:
            part.answer = served.engine.ask(order.message.endpoint, body, f"{order.id.hex()}-{index}", part)
        except (EngineError, Refused) as error:
            self.part_failed(index, error)
            return
        if self._is_paused:
            part.answer.pause()

    def _pause(self, *, is_paused: bool) -> None:
        if is_paused is self._is_paused:
            return
        self._is_paused = is_paused
        for part in self._answers.values():
            if part.answer is not None:
                (part.answer.pause if is_paused else part.answer.resume)()

    def _leave(self, index: int) -> _Part | None:
        """The engine works on that request no more."""
        part = self._answers.pop(index, None)
        if part is not None:
            part.served.running -= 1
        return part

    def _abort(self, index: int) -> None:
        part = self._leave(index)
        if part is not None and part.answer is not None:
            part.answer.abort()

    def _abort_engine(self) -> None:
        for index in list(self._answers):
            self._abort(index)

    def _engine_failed(self, error: P2pgridError) -> None:
        log.error("order %s: %s", self._name, error)
        self.fail()

    # what the engine says of one request

    def part_began(self, index: int, status: int, content_type: str) -> None:
        if (machine := self._machine) is not None:
            self._hear(machine.head_for, index, status, content_type)

    def part_received(self, index: int, data: bytes) -> None:
        if (machine := self._machine) is not None:
            self._hear(machine.bytes_for, index, data, self.shop.now_ms())

    def part_ended(self, index: int) -> None:
        self._leave(index)
        if (machine := self._machine) is not None:
            self._hear(machine.end_for, index, self.shop.now_ms())

    def part_failed(self, index: int, error: P2pgridError) -> None:
        log.error("order %s, request %d: the engine failed: %s", self._name, index, error)
        self.shop.tally.engine_failures += 1
        self._leave(index)
        if (machine := self._machine) is not None:
            self._hear(machine.failed_for, index, self.shop.now_ms())


class _Part(AnswerReader):
    """The engine's answer to one request."""

    def __init__(self, exchange: BatchExchange, index: int, served: ServedModel) -> None:
        self._exchange = exchange
        self._index = index
        self.served: Final = served
        self.answer: OpenAnswer | None = None

    def answer_began(self, status: int, content_type: str) -> None:
        self._exchange.part_began(self._index, status, content_type)

    def answer_received(self, data: bytes) -> None:
        self._exchange.part_received(self._index, data)

    def answer_ended(self) -> None:
        self._exchange.part_ended(self._index)

    def answer_failed(self, error: EngineError) -> None:
        self._exchange.part_failed(self._index, error)
