"""A batch order at the provider's process: several of the engine's answers at once, as provider/batch.py has them."""

from __future__ import annotations

from p2pgrid.errors import ProtocolViolation, Refused
from p2pgrid.proto.acceptance import accept_batch, parse_batch, verify_arrived
from p2pgrid.proto.actions import AbortEngine, AbortEngineFor, Actions, AskEngineFor
from p2pgrid.proto.batch_seller import SellerBatch
from p2pgrid.proto.wire.base import parse_frame
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.proto.wire.orders import RequestEnded, RequestHead
from tests.proto.simulation import Engine
from tests.simulation.seller import OrderTalk, Seller

BUSY = 0.03
"""How often the engine has no room for one more request."""


class BatchTalk(OrderTalk):
    """A batch order."""

    machine: SellerBatch | None

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.engines: dict[int, Engine] = {}
        """The answers that are under way, by request."""

    def take(self, kind: int, payload: bytes) -> None:
        machine, now_ms = self.machine, self.seller.now_ms
        if machine is None:
            if self.order is not None:
                raise ProtocolViolation(f"message kind {kind} came on a stream whose order was not taken.")
            self._open(payload)
        elif kind == Kind.REQUEST:
            self.act(machine.request(payload, now_ms, self._no_room()))
        else:
            self.act(machine.message(kind, payload, now_ms))

    def _no_room(self) -> Refused | None:
        is_busy = self.world.random.random() < BUSY * (self.world.plan.weather.fail > 0)
        return Refused("busy", "the engine has no room.") if is_busy else None

    def _open(self, payload: bytes) -> None:
        arrived = parse_batch(payload)
        channel = self.seller.channels.get(arrived.channel)
        if channel is None or channel.books.client != self.link.client:
            raise Refused("unknown-channel", "the client has no such channel here.")
        self.order = verify_arrived(arrived, channel.books)
        channel.check_resumed_on(self.link)
        self.channel = channel
        self.machine, actions = accept_batch(
            channel.books,
            self.order,
            arrived.opening.commitment_key,
            self.world.offer,
            key=self.world.provider_key,
            now_ms=self.seller.now_ms,
        )
        self.act(actions)

    # -- the engine -------------------------------------------------

    @property
    def may_read(self) -> bool:
        machine = self.machine
        if machine is None or self.is_over or not machine.is_running:
            return False
        return (machine.wants_engine and bool(self.engines)) or self._may_conclude(machine)

    def _may_conclude(self, machine: SellerBatch) -> bool:
        return machine.is_complete and self.outbox.is_idle  # All is sent before the receipt is made.

    def read_engine(self) -> None:
        """One of the answers goes on, or the receipt is made."""
        machine, now_ms = self.machine, self.seller.now_ms
        assert machine is not None
        if self._may_conclude(machine):
            self.act(machine.conclude(now_ms))
            return
        index = self.world.random.choice(list(self.engines))
        engine = self.engines[index]
        if not engine.headed:
            engine.headed = True
            self.act(machine.head_for(index, engine.status, engine.content_type))
        elif engine.pieces:
            self.act(machine.bytes_for(index, engine.pieces.popleft(), now_ms))
        else:
            del self.engines[index]
            self.act((machine.failed_for if engine.fails else machine.end_for)(index, now_ms))

    # -- what the machine wants -------------------------------------------------

    def act(self, actions: Actions) -> None:
        for action in actions:
            match action:
                case AskEngineFor(index, body):
                    assert self.order is not None
                    self.world.observer.takes(self.order.id, index)
                    self.engines[index] = self.world.engine_for(body)
                case AbortEngineFor(index):
                    self.engines.pop(index, None)
                case AbortEngine():
                    self.engines.clear()
                case _:
                    super().act((action,))

    def _let_go(self, kind: int, payload: bytes) -> None:
        if not self.is_over:
            self._observe(kind, payload)
        super()._let_go(kind, payload)

    def _observe(self, kind: int, payload: bytes) -> None:
        assert self.order is not None
        observer, order_id = self.world.observer, self.order.id
        match kind:
            case Kind.REQUEST_HEAD:
                head = parse_frame(payload, RequestHead)
                observer.heads_off(order_id, head.status, head.index)
            case Kind.PART:
                observer.sends(order_id, payload[1:], self.seller.now_ms, payload[0])
            case Kind.REQUEST_ENDED:
                ended = parse_frame(payload, RequestEnded)
                observer.ends(order_id, ended.status, ended.index)


Seller.talk_types[Kind.BATCH] = BatchTalk
