"""The client's process in a history: the machines of `p2pgrid.proto`, and as little shell around them as will do.

It does what p2pgrid/client does, without sockets, tasks or clocks.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING

from p2pgrid.errors import InvalidRecord, LedgerError, ProtocolViolation, Refused
from p2pgrid.ledger.outbox import Outbox
from p2pgrid.proto.actions import Actions, Deliver, Dispute, EndStream, KeepEvidence, Persist, Send, Settled, Turn
from p2pgrid.proto.buyer import BuyerOrder, BuyerState, check_resumed, place_order
from p2pgrid.proto.channel import ChannelBooks, accept_channel
from p2pgrid.proto.messages import Channel, Receipt, Usage
from p2pgrid.proto.record import Record, Role, Signed, parse_message, parse_record
from p2pgrid.proto.request import parse_request
from p2pgrid.proto.wire import ChannelRequest, Kind, Refusal, Resumed, parse_frame
from tests.simulation.ledgers import SlowLedger
from tests.simulation.network import Link

if TYPE_CHECKING:
    from tests.simulation.world import Request, World


class BuyerPhase(Enum):
    """Where the client stands with the provider."""

    DOWN = auto()
    """No link."""
    SETTLING = auto()
    """A link; its channels are resumed."""
    READY = auto()
    """Orders may leave."""
    OPENING = auto()
    """A channel is being opened."""
    QUARANTINED = auto()
    """The provider broke a rule: no more dealings."""


class Buyer:
    """The client's process, from its start to its crash."""

    side = Role.CLIENT

    def __init__(self, world: World, ledger: SlowLedger) -> None:
        self.world = world
        self.ledger = ledger
        self.link: Link | None = None
        self.phase = BuyerPhase.DOWN
        self.books: ChannelBooks | None = None
        self.orders: dict[int, OrderTalk] = {}
        """By stream of the link."""
        self.talk: Talk | None = None
        self.seen_to_end: dict[tuple[bytes, int], Usage] = {}
        self.unsettled: list[Signed[Channel]] = []
        self.has_stored_offer = False

    @property
    def now_ms(self) -> int:
        return self.world.clock(self.side)

    @property
    def is_quarantined(self) -> bool:
        return self.phase is BuyerPhase.QUARANTINED

    # -- links --------------------------------------------------------------------------------------------------------

    def connected(self, link: Link) -> None:
        """A link stands: resume every channel on it before anything else."""
        self.link = link
        self.phase = BuyerPhase.SETTLING
        self.books = None
        barrier = Outbox(self.ledger, self.ledger_failed)  # type: ignore[arg-type]
        channels = self.ledger.channels()
        if channels:
            # A write that changes nothing: once it is durable, so are all that were queued before it.
            barrier.persist(channels[-1])
        barrier.run(lambda: self._settle(link))

    def _settle(self, link: Link) -> None:
        if link is not self.link:
            return
        self.unsettled = self.ledger.channels()
        self.next_channel()

    def next_channel(self) -> None:
        """Resume the next channel, or be ready."""
        assert self.link is not None
        if not self.unsettled:
            self.phase = BuyerPhase.READY
            self.talk = None
            return
        self.talk = ResumeTalk(self, self.link, self.unsettled.pop(0))

    def lose(self, link: Link) -> None:
        """The link is gone."""
        if link is not self.link:
            return
        self.world.drop(link, self.side)
        self.link, self.talk = None, None
        if not self.is_quarantined:
            self.phase = BuyerPhase.DOWN
        for order in list(self.orders.values()):
            order.lost()
        self.orders.clear()

    def quarantine(self, code: str, message: str) -> None:
        """The provider broke a rule."""
        self.world.disputed(Role.CLIENT, code, message)
        self.phase = BuyerPhase.QUARANTINED
        if self.link is not None:
            self.lose(self.link)

    def ledger_failed(self, error: LedgerError) -> None:
        self.world.note(f"client: {error.message}")
        self.has_stored_offer = False
        self.books = None
        if self.link is not None:
            self.lose(self.link)

    # -- the wire -------------------------------------------------------------------------------------------------------

    def receive(self, stream: int, kind: int, payload: bytes) -> None:
        order = self.orders.get(stream)
        if order is not None:
            order.receive(kind, payload)
        elif self.talk is not None and self.talk.stream == stream:
            try:
                self.talk.receive(kind, payload)
            except InvalidRecord as fault:
                if fault.code == "clock-skew" and self.link is not None:
                    self.lose(self.link)
                else:
                    self.quarantine(fault.code, fault.message)
            except ProtocolViolation as fault:
                self.quarantine("protocol-violation", fault.message)

    # -- orders ---------------------------------------------------------------------------------------------------------

    def open_channel(self) -> None:
        """Ask for a channel: there is none yet."""
        assert self.link is not None
        self.phase = BuyerPhase.OPENING
        self.talk = OpenTalk(self, self.link)

    def order(self, request: Request) -> bool:
        """Place an order if the channel lets us; False if it does not."""
        assert self.link is not None and self.books is not None
        world = self.world
        try:
            machine, actions = place_order(
                self.books,
                world.offer,
                parse_request(request.endpoint, request.body),
                request.endpoint,
                request.body,
                key=world.client_key,
                commitment_key=world.random.randbytes(32),
                now_ms=self.now_ms,
                first_token_timeout_ms=request.timeout_ms,
            )
        except Refused as refused:
            world.note(f"client: no order ({refused.code})")
            return False
        world.ordered(machine.order, request)
        talk = OrderTalk(self, self.link, machine)
        self.orders[talk.stream] = talk
        if not self.has_stored_offer:
            self.has_stored_offer = True
            talk.outbox.persist(world.offer)
        talk.act(actions)
        return True


class Talk:
    """One stream."""

    def __init__(self, buyer: Buyer, link: Link) -> None:
        self.buyer = buyer
        self.world = buyer.world
        self.link = link
        self.stream = link.open_stream()
        self.outbox = Outbox(buyer.ledger, buyer.ledger_failed)  # type: ignore[arg-type]

    def receive(self, kind: int, payload: bytes) -> None:
        raise NotImplementedError

    def send(self, kind: int, payload: bytes) -> None:
        self.world.depart(Role.CLIENT, self.link, self.stream, kind, payload)

    @property
    def is_live(self) -> bool:
        return self.buyer.link is self.link


class OpenTalk(Talk):
    """A channel is opened."""

    def __init__(self, buyer: Buyer, link: Link) -> None:
        super().__init__(buyer, link)
        self.nonce = self.world.random.randbytes(32)
        self.channel: Signed[Channel] | None = None
        request = ChannelRequest(client_nonce=self.nonce, offer=self.world.offer.id, now_ms=buyer.now_ms)
        self.send(Kind.CHANNEL_REQUEST, request.to_bytes())

    def receive(self, kind: int, payload: bytes) -> None:
        world, buyer = self.world, self.buyer
        if kind == Kind.REFUSAL:
            buyer.phase = BuyerPhase.READY
            buyer.talk = None
        elif kind == Kind.CHANNEL and self.channel is None:
            record = parse_record(payload)
            try:
                channel = accept_channel(
                    record, world.offer, key=world.client_key, client_nonce=self.nonce, now_ms=buyer.now_ms
                )
            except Refused:
                buyer.lose(self.link)
                return
            self.channel = channel
            self.outbox.persist(world.offer, channel)
            self.outbox.run(lambda: self.is_live and self.send(Kind.CHANNEL, channel.record.to_bytes()))  # type: ignore[arg-type,return-value]
        elif kind == Kind.CHANNEL_OPENED and self.channel is not None:
            buyer.books = ChannelBooks(self.channel, buyer.ledger.head(self.channel.message.channel))
            buyer.phase = BuyerPhase.READY
            buyer.talk = None
        else:
            raise ProtocolViolation(f"message kind {kind} came while a channel was opened.")


class ResumeTalk(Talk):
    """A channel is resumed."""

    def __init__(self, buyer: Buyer, link: Link, channel: Signed[Channel]) -> None:
        super().__init__(buyer, link)
        self.channel = channel
        channel_id = channel.message.channel
        self.books = ChannelBooks(channel, buyer.ledger.head(channel_id))
        open_orders = buyer.ledger.open_orders(channel_id)
        for one in open_orders:
            self.books.open_order(one.order.message)
        self.still_open = {one.order.message.order_number: one.order for one in open_orders}
        self.resumed: Resumed | None = None
        self.left = 0
        self.send(Kind.RESUME, channel.record.to_bytes())

    def receive(self, kind: int, payload: bytes) -> None:
        if kind == Kind.REFUSAL:
            raise ProtocolViolation("the provider refused to resume the channel.")
        if self.resumed is None:
            if kind != Kind.RESUMED:
                raise ProtocolViolation(f"message kind {kind} came; RESUMED was expected.")
            self.resumed = parse_frame(payload, Resumed)
            self.left = self.resumed.proposals
        elif kind == Kind.RECEIPT and self.left:
            self.left -= 1
            self._judge(parse_record(payload))
        else:
            raise ProtocolViolation(f"message kind {kind} came while a channel was resumed.")
        if not self.left:
            self.outbox.run(self._close)

    def _judge(self, record: Record) -> None:
        buyer, ledger = self.buyer, self.buyer.ledger
        message = parse_message(record, Receipt)
        signed = ledger.receipt(self.books.id, message.receipt_number)
        if signed is None or signed.id != record.id or Role.CLIENT not in signed.signers:
            placed = ledger.order(self.books.id, message.order_number)
            try:
                if placed is None:
                    raise InvalidRecord("wrong-order", f"order {message.order_number} was never placed.")
                signed = check_resumed(
                    self.books,
                    record,
                    placed.order,
                    self.world.offer.message.models[0],
                    vouched=placed.voucher.message.usage if placed.voucher is not None else Usage(),
                    delivered=buyer.seen_to_end.get((self.books.id, message.order_number)),
                    key=self.world.client_key,
                    now_ms=buyer.now_ms,
                )
            except InvalidRecord as fault:
                self.send(Kind.RECEIPT_REFUSAL, Refusal(code=fault.code, message=fault.message[:512]).to_bytes())
                ledger.append_evidence(record, fault.message)
                raise
        self.outbox.persist(signed)
        countersigned = signed.record.to_bytes()
        self.outbox.run(lambda: self.is_live and self.send(Kind.COUNTERSIGNATURE, countersigned))  # type: ignore[arg-type,return-value]
        self.still_open.pop(message.order_number, None)

    def _close(self) -> None:
        """Orders without a receipt never became the provider's business."""
        if not self.is_live:
            return
        for number, order in self.still_open.items():
            self.buyer.ledger.note_outcome(order, "never-arrived")
            self.books.close_order(number)
        for key in [key for key in self.buyer.seen_to_end if key[0] == self.books.id]:
            del self.buyer.seen_to_end[key]
        self.buyer.books = self.books
        self.buyer.next_channel()


class OrderTalk(Talk):
    """An order."""

    def __init__(self, buyer: Buyer, link: Link, machine: BuyerOrder) -> None:
        super().__init__(buyer, link)
        self.machine = machine
        self.number = machine.order.message.order_number
        self.order_id = machine.order.id

    def receive(self, kind: int, payload: bytes) -> None:
        if kind == Kind.HEAD and self.machine.is_open:
            self.world.observer.heads(self.order_id, payload)
        self.act(self.machine.message(kind, payload, self.buyer.now_ms))

    def cancel(self) -> None:
        self.act(self.machine.cancel())

    def lost(self) -> None:
        machine = self.machine
        if not machine.is_open:
            return
        machine.link_lost()
        if machine.counter.done:
            self.buyer.seen_to_end[machine.books.id, self.number] = machine.usage

    def act(self, actions: Actions) -> None:
        for action in actions:
            match action:
                case Persist(signed):
                    self.outbox.persist(signed)
                case Send(kind, payload):
                    self.outbox.run(lambda kind=kind, payload=payload: self._let_go(kind, payload))  # type: ignore[misc]
                case Deliver(data):
                    self.world.observer.delivers(self.order_id, data)
                case KeepEvidence(record, reason):
                    self.buyer.ledger.append_evidence(record, reason)
                case Dispute(code, message):
                    if code == "clock-skew" and self.buyer.link is not None:
                        self.world.note(f"client: {message}")
                        self.buyer.lose(self.buyer.link)
                    else:
                        self.buyer.quarantine(code, message)
                case Turn(number):
                    self._turn(number)
                case Settled() | EndStream():
                    pass
                case _:
                    raise AssertionError(f"a client's machine asked for {action}")
        if self.machine.state is BuyerState.REFUSED and self.stream in self.buyer.orders:
            assert self.machine.refusal is not None
            self.world.note(f"order {self.number} was refused: {self.machine.refusal.code}")
            self.buyer.ledger.note_outcome(self.machine.order, f"refused:{self.machine.refusal.code}")
            del self.buyer.orders[self.stream]

    def _turn(self, number: int) -> None:
        for other in list(self.buyer.orders.values()):
            if other.number == number and other.machine.books is self.machine.books:
                other.act(other.machine.proceed(self.buyer.now_ms))

    def _let_go(self, kind: int, payload: bytes) -> None:
        if not self.is_live:
            return
        if kind == Kind.CANCEL and self.world.random.random() < 0.5:
            self.link.overtake_body(self.stream, kind, payload)
        else:
            self.send(kind, payload)
