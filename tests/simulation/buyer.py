"""The client's process in a history: the machines of `p2pgrid.proto`, and as little shell around them as will do.

It does what p2pgrid/client does, without sockets, tasks or clocks.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING

from p2pgrid.errors import InvalidRecord, LedgerError, P2pgridError, ProtocolViolation, Refused
from p2pgrid.ledger.base import SlotTaken
from p2pgrid.ledger.outbox import Outbox
from p2pgrid.proto.actions import (
    Actions,
    Breach,
    Deliver,
    Disputed,
    EndStream,
    KeepEvidence,
    Persist,
    Send,
    Settled,
    Turn,
)
from p2pgrid.proto.books import ChannelBooks
from p2pgrid.proto.buyer import BuyerOrder
from p2pgrid.proto.channel import accept_channel
from p2pgrid.proto.messages import Channel, Usage
from p2pgrid.proto.order_states import BuyerState
from p2pgrid.proto.placement import place_order
from p2pgrid.proto.reconcile import (
    MAX_SKIPPED_NUMBERS,
    Answered,
    Batch,
    answer_proposal,
    check_restored,
    check_same_chain,
    held_of,
    lacking,
)
from p2pgrid.proto.record import Message, Role, Signed, parse_record
from p2pgrid.proto.request import parse_request
from p2pgrid.proto.restore import restore_books
from p2pgrid.proto.wire.base import parse_frame
from p2pgrid.proto.wire.channels import ChannelRequest, Held, Proposals, Records, Resume, Resumed
from p2pgrid.proto.wire.kinds import Kind
from tests.simulation.ledgers import SlowLedger
from tests.simulation.network import Link
from tests.simulation.script import DURABLE, Script, Steps, expect

if TYPE_CHECKING:
    from tests.simulation.batch_buyer import BatchTalk
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
    resume_type: type[ResumeTalk]
    order_type: type[OrderTalk]
    batch_type: type[BatchTalk]
    """`batch_buyer` sets it."""
    open_type: type[OpenTalk]

    def __init__(self, world: World, ledger: SlowLedger) -> None:
        self.world = world
        self.ledger = ledger
        self.link: Link | None = None
        self.phase = BuyerPhase.DOWN
        self.books: ChannelBooks | None = None
        self.orders: dict[int, OrderTalk] = {}
        """By stream of the link."""
        self.talk: Talk | None = None
        self.counted: dict[tuple[bytes, int], Usage] = {}
        self.key = world.client_key
        self.unsettled: list[Signed[Channel]] = []
        self.has_stored_offer = False

    @property
    def now_ms(self) -> int:
        return self.world.clock(self.side)

    @property
    def is_quarantined(self) -> bool:
        return self.phase is BuyerPhase.QUARANTINED

    # -- links -------------------------------------------------

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
        self.unsettled = [one for one in self.ledger.channels() if one.message.client == self.key.public_key.raw]
        self.next_channel()

    def next_channel(self) -> None:
        """Resume the next channel, or be ready."""
        assert self.link is not None
        if not self.unsettled:
            self.phase = BuyerPhase.READY
            self.talk = None
            return
        self.talk = talk = self.resume_type(self, self.link, self.unsettled.pop(0))
        talk.begin()

    def lose(self, link: Link) -> None:
        """The link is gone."""
        if link is not self.link:
            return
        self.world.drop(link, self.side)
        if isinstance(self.talk, ResumeTalk):
            self.talk.script.stop()
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
        if isinstance(error, SlotTaken):
            if not (isinstance(self.talk, ResumeTalk) and self.talk.is_restoring):
                self.world.slot_taken(self.side, error)
            self.quarantine("slot-taken", error.message)
            return
        self.has_stored_offer = False
        self.books = None
        if self.link is not None:
            self.lose(self.link)

    # -- the wire -------------------------------------------------

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

    # -- orders -------------------------------------------------

    def open_channel(self) -> None:
        """Ask for a channel: there is none yet."""
        assert self.link is not None
        self.phase = BuyerPhase.OPENING
        self.talk = self.open_type(self, self.link)

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
                key=self.key,
                commitment_key=world.random.randbytes(32),
                now_ms=self.now_ms,
                first_token_timeout_ms=request.timeout_ms,
            )
        except Refused as refused:
            world.note(f"client: no order ({refused.code})")
            return False
        world.ordered(machine.order, request)
        self.start(self.order_type(self, self.link, machine), actions)
        return True

    def prepare(self) -> None:
        """A batch order is about to be placed."""

    def start(self, talk: OrderTalk, actions: Actions) -> None:
        """An order leaves, after the offer that it names."""
        self.orders[talk.stream] = talk
        if not self.has_stored_offer:
            self.has_stored_offer = True
            talk.outbox.persist(self.world.offer)
        talk.act(actions)

    def batches(self) -> list[BatchTalk]:
        """The batch orders that were placed on this link."""
        return [talk for talk in self.orders.values() if isinstance(talk, self.batch_type)]

    def tick(self) -> None:
        """Time has passed: no more requests join what was open long enough."""
        for talk in self.batches():
            talk.tick()


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
                    record, world.offer, key=buyer.key, client_nonce=self.nonce, now_ms=buyer.now_ms
                )
            except Refused:
                buyer.lose(self.link)
                return
            self.channel = channel
            self.outbox.persist(world.offer, channel)
            self.outbox.run(lambda: self.is_live and self.send(Kind.CHANNEL, channel.record.to_bytes()))  # type: ignore[arg-type,return-value]
        elif kind == Kind.CHANNEL_OPENED and self.channel is not None:
            buyer.books = restore_books(buyer.ledger, self.channel, Role.CLIENT)
            buyer.phase = BuyerPhase.READY
            buyer.talk = None
        else:
            raise ProtocolViolation(f"message kind {kind} came while a channel was opened.")


class ResumeTalk(Talk):
    """A channel is resumed, as client/resume.py does it."""

    is_restoring = False
    """True while what the provider sent is written."""

    def __init__(self, buyer: Buyer, link: Link, channel: Signed[Channel]) -> None:
        super().__init__(buyer, link)
        self.channel = channel
        self.script = Script(self._steps(), self.outbox.run, self._fault)
        # Begun once the buyer has taken note of this talk.

    def begin(self) -> None:
        self.script.begin()

    def receive(self, kind: int, payload: bytes) -> None:
        self.script.feed(kind, payload)

    def held(self, channel: bytes) -> Held:
        return held_of(self.buyer.ledger, channel)

    def batch(self, channel: bytes, theirs: Held) -> Batch:
        return lacking(self.buyer.ledger, channel, theirs, Role.CLIENT)

    def answer(self, answered: Answered) -> None:
        self.send(answered.kind, answered.payload)

    def _fault(self, fault: P2pgridError) -> None:
        if isinstance(fault, LedgerError):
            raise fault
        if isinstance(fault, Refused) or getattr(fault, "code", "") == "clock-skew":
            self.world.note(f"client: {fault.message}")
            self.buyer.lose(self.link)
            return
        self.buyer.quarantine(getattr(fault, "code", "protocol-violation"), fault.message)

    def _steps(self) -> Steps:
        buyer, ledger, channel = self.buyer, self.buyer.ledger, self.channel
        number = channel.message.channel
        held = self.held(number)
        self.send(Kind.RESUME, Resume(channel=channel.record.to_bytes(), held=held).to_bytes())
        kind, payload = yield from expect(Kind.RESUMED, Kind.REFUSAL)
        if kind == Kind.REFUSAL:
            raise Refused("refused", "the provider does not resume the channel.")
        resumed = parse_frame(payload, Resumed)
        sent = []
        for _ in range(resumed.records):
            _, payload = yield from expect(Kind.RECORD)
            sent.append(parse_record(payload))
        theirs = resumed.held
        if theirs.last_order_number > held.last_order_number + len(sent) + MAX_SKIPPED_NUMBERS:
            raise ProtocolViolation(f"the provider says that order {theirs.last_order_number} was placed.")
        check_same_chain(ledger, channel, theirs)
        restored = check_restored(sent, ledger, channel, Role.CLIENT)
        self.is_restoring = True
        if restored:
            self.outbox.persist(*restored)
        yield DURABLE
        self.is_restoring = False
        batch = self.batch(number, theirs)
        self.send(Kind.RECORDS, Records(records=len(batch.records), is_all=batch.is_all).to_bytes())
        for record in batch.records:
            self.send(Kind.RECORD, record.to_bytes())
        _, payload = yield from expect(Kind.PROPOSALS)
        frame = parse_frame(payload, Proposals)
        books = restore_books(ledger, channel, Role.CLIENT)
        books.last_order_number = max(books.last_order_number, theirs.last_order_number)
        delivered = {n: usage for (of, n), usage in buyer.counted.items() if of == number}
        for _ in range(frame.proposals):
            _, payload = yield from expect(Kind.RECEIPT)
            proposal = parse_record(payload)
            try:
                answered = answer_proposal(
                    proposal, ledger, books, key=buyer.key, delivered=delivered, now_ms=buyer.now_ms
                )
            except InvalidRecord as fault:
                ledger.append_evidence(proposal, fault.message)
                raise
            if answered.persist:
                self.outbox.persist(*answered.persist)
            yield DURABLE
            self.answer(answered)
            if answered.dispute is not None:
                self.world.disputed(Role.CLIENT, answered.dispute.message.reason, answered.dispute.message.statement)
        if not frame.is_all:
            if not (restored or batch.records or frame.proposals):
                raise ProtocolViolation("the provider says that it holds more of the channel, and sends nothing.")
            buyer.unsettled.insert(0, channel)
            buyer.next_channel()
            return
        for one in ledger.open_orders(number):
            placed = one.order.message.order_number
            ledger.note_outcome(one.order, "never-arrived" if placed > theirs.last_order_number else "not-taken")
            books.close_order(placed)
        for n in delivered:
            del buyer.counted[number, n]
        buyer.books = books
        buyer.next_channel()


class OrderTalk(Talk):
    """An order."""

    def __init__(self, buyer: Buyer, link: Link, machine: BuyerOrder) -> None:
        super().__init__(buyer, link)
        self.machine = machine
        self.number = machine.order.message.order_number
        self.order_id = machine.order.id

    def receive(self, kind: int, payload: bytes) -> None:
        if kind == Kind.HEAD and self.machine.is_open:
            self.world.observer.heads(self.order_id, kind, payload)
        self.act(self.machine.message(kind, payload, self.buyer.now_ms))

    @property
    def is_open(self) -> bool:
        return self.machine.is_open

    def cancel(self) -> None:
        self.act(self.machine.cancel())

    def lost(self) -> None:
        machine = self.machine
        machine.link_lost()
        self.world.observer.client_loses(self.order_id)
        if machine.state not in (BuyerState.LOST, BuyerState.BREACHED):
            return
        if machine.usage.prompt_tokens:
            self.buyer.counted[machine.books.id, self.number] = machine.usage

    def act(self, actions: Actions) -> None:
        records: list[Signed[Message]] = []
        for action in actions:
            if isinstance(action, Persist):
                records.append(action.signed)
                continue
            if records:  # What is persisted in one go is one write: a receipt and its dispute, a tick and its voucher.
                self.outbox.persist(*records)
                records = []
            match action:
                case Send(kind, payload):
                    self.outbox.run(lambda kind=kind, payload=payload: self._let_go(kind, payload))  # type: ignore[misc]
                case Deliver(data):
                    self.world.observer.delivers(self.order_id, data)
                case KeepEvidence(record, reason):
                    self.buyer.ledger.append_evidence(record, reason)
                case Disputed(_, dispute):
                    self.world.disputed(Role.CLIENT, dispute.message.reason, dispute.message.statement)
                case Breach(code, message):
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
        if records:
            self.outbox.persist(*records)
        if self.machine.state is BuyerState.REFUSED and self.stream in self.buyer.orders:
            assert self.machine.refusal is not None
            self.world.note(f"order {self.number} was refused: {self.machine.refusal.code}")
            self.buyer.ledger.note_outcome(self.machine.order, f"refused:{self.machine.refusal.code}")
            del self.buyer.orders[self.stream]
            if self.machine.refusal.code == "not-resumed":
                self.buyer.lose(self.link)

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


Buyer.resume_type, Buyer.order_type, Buyer.open_type = ResumeTalk, OrderTalk, OpenTalk
