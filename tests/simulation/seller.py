"""The provider's process in a history: the machines of `p2pgrid.proto`, and as little shell around them as will do.

It does what p2pgrid/provider does, without sockets, tasks or clocks: records before messages, one outbox an order,
the ledger's word after a restart.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Final

from p2pgrid.errors import InvalidRecord, LedgerError, P2pgridError, ProtocolViolation, Refused
from p2pgrid.ledger.base import SlotTaken
from p2pgrid.ledger.outbox import Outbox
from p2pgrid.proto.acceptance import accept_order, verify_order
from p2pgrid.proto.actions import (
    AbortEngine,
    Actions,
    AskEngine,
    Disputed,
    EndStream,
    KeepEvidence,
    Persist,
    Send,
    Settled,
)
from p2pgrid.proto.books import ChannelBooks
from p2pgrid.proto.channel import check_clock, propose_channel, verify_channel
from p2pgrid.proto.messages import Channel, Order, Receipt
from p2pgrid.proto.order_states import SellerState
from p2pgrid.proto.proposal import accept_countersignature, accept_dispute
from p2pgrid.proto.reconcile import (
    Batch,
    check_restored,
    check_same_chain,
    held_of,
    interrupt_open_orders,
    lacking,
    open_proposals,
)
from p2pgrid.proto.record import Role, Signed, parse_message, parse_record
from p2pgrid.proto.restore import restore_books
from p2pgrid.proto.seller import SellerOrder
from p2pgrid.proto.wire.base import Refusal, parse_frame
from p2pgrid.proto.wire.channels import ChannelRequest, Held, Proposals, Records, Resume, Resumed
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.proto.wire.orders import OrderOpening
from p2pgrid.provider.limits import ProviderLimits
from tests.proto.simulation import Engine
from tests.simulation.ledgers import SlowLedger
from tests.simulation.network import Link
from tests.simulation.script import DURABLE, Script, Steps, expect

if TYPE_CHECKING:
    from tests.simulation.world import World


CHANNELS_PER_CLIENT: Final = ProviderLimits().channels_per_client


class OpenChannel:
    """A channel's books, the link on which it was opened or resumed, and receipts that leave in their order."""

    def __init__(self, books: ChannelBooks, link: Link | None) -> None:
        self.books = books
        self.link = link
        self.unsent: deque[OrderTalk] = deque()

    def check_resumed_on(self, link: Link) -> None:
        if self.link is not link:
            raise Refused("not-resumed", "the channel was not resumed on this link.")

    def flush(self) -> None:
        """Let receipts go whose turn it is."""
        while self.unsent and self.unsent[0].ready:
            talk = self.unsent.popleft()
            talk.send(Kind.RECEIPT, talk.ready)


class Seller:
    """The provider's process, from its start to its crash."""

    side = Role.PROVIDER
    talk_types: ClassVar[dict[int, type[Talk]]] = {}
    """What a stream begins, by its first message's kind."""

    def __init__(self, world: World, ledger: SlowLedger) -> None:
        self.world = world
        self.ledger = ledger
        self.links: list[Link] = []
        self.talks: dict[tuple[int, int], Talk] = {}
        self.channels: dict[bytes, OpenChannel] = {}
        self.is_up = False
        self._boot = Outbox(ledger, self.ledger_failed)
        self.restore()

    @property
    def now_ms(self) -> int:
        return self.world.clock(self.side)

    def orders(self) -> list[OrderTalk]:
        """Orders that were accepted and are not over."""
        return [t for t in self.talks.values() if isinstance(t, OrderTalk) and t.machine is not None]

    # -- the ledger -------------------------------------------------

    def restore(self) -> None:
        """Go by what the ledger has; orders that are open in it are suspended."""
        self._boot.persist(self.world.offer)
        for signed in self.ledger.channels():
            self.channels[signed.message.channel] = OpenChannel(restore_books(self.ledger, signed, Role.PROVIDER), None)
        self._boot.run(self._serve)

    def refresh(self, channel: OpenChannel) -> None:
        """Take the books from the ledger, with the order numbers that were used besides."""
        books = restore_books(self.ledger, channel.books.signed, Role.PROVIDER)
        books.last_order_number = max(books.last_order_number, channel.books.last_order_number)
        channel.books = books

    def _serve(self) -> None:
        self.is_up = True

    def ledger_failed(self, error: LedgerError) -> None:
        """Nothing in memory can be relied on: drop it all, and go back to what the ledger has once it can be written."""  # noqa: E501
        self.world.note(f"provider: {error.message}")
        if isinstance(error, SlotTaken):
            self.world.slot_taken(self.side, error)
        if not self.is_up and self._boot.is_idle and not self.talks:
            self._boot = Outbox(self.ledger, self.ledger_failed)
        self.is_up = False
        self.talks.clear()
        for link in self.links:
            self.world.drop(link, self.side)
        self.links.clear()
        self.channels.clear()
        boot = self._boot = Outbox(self.ledger, self.ledger_failed)
        # A write that changes nothing: all that was queued before it has then succeeded or failed.
        boot.persist(self.world.offer)
        boot.run(self.restore)

    # -- the wire -------------------------------------------------

    def accept(self, link: Link) -> None:
        self.links.append(link)

    def receive(self, link: Link, stream: int, kind: int, payload: bytes) -> None:
        key = (link.number, stream)
        talk = self.talks.get(key)
        try:
            if talk is None:
                talk = self._begin(link, stream, kind)
                self.talks[key] = talk
            if not talk.is_over:
                talk.take(kind, payload)
        except Refused as refused:
            assert talk is not None
            talk.refuse(refused)
        except (ProtocolViolation, InvalidRecord) as fault:
            self.world.client_broke(fault)
            self.lose(link)

    def check_room(self, link: Link) -> None:
        """A key has so many channels at most, as provider/limits.py says."""
        mine = [one for one in self.channels.values() if one.books.client == link.client]
        if len(mine) >= CHANNELS_PER_CLIENT:
            raise Refused("too-many-channels", f"the client has {len(mine)} channels here already.")

    def _begin(self, link: Link, stream: int, kind: int) -> Talk:
        talk_type = self.talk_types.get(kind)
        if talk_type is None:
            raise ProtocolViolation(f"a stream begins with message kind {kind}, which begins nothing.")
        return talk_type(self, link, stream)

    def end_orders(self, channel: OpenChannel, link: Link) -> None:
        """The client resumes on this link: what runs on its others is over. Raises Refused where orders run on it."""
        running = [one for one in self.orders() if one.channel is channel and not one.is_over and not one.is_answered]
        if any(one.link is link for one in running):
            raise Refused("busy", "orders on this link are open.")
        channel.link = None
        for other in [one for one in self.links if one is not link and one.client == link.client]:
            self.lose(other)

    def lose(self, link: Link) -> None:
        """The link is gone: what runs on it is over."""
        if link not in self.links:
            return
        self.links.remove(link)
        self.world.drop(link, self.side)
        for key in [k for k in self.talks if k[0] == link.number]:
            talk = self.talks.pop(key)
            if not talk.is_over:
                talk.is_over = True
                talk.lost()


class Talk:
    """One stream."""

    def __init__(self, seller: Seller, link: Link, stream: int) -> None:
        self.seller = seller
        self.world = seller.world
        self.link = link
        self.stream = stream
        self.is_over = False
        self.outbox = Outbox(seller.ledger, seller.ledger_failed)  # type: ignore[arg-type]

    def take(self, kind: int, payload: bytes) -> None:
        raise NotImplementedError

    def refuse(self, refused: Refused) -> None:
        self.send(Kind.REFUSAL, Refusal(code=refused.code, message=str(refused)[:512]).to_bytes())
        self.is_over = True

    def send(self, kind: int, payload: bytes) -> None:
        self.world.depart(Role.PROVIDER, self.link, self.stream, kind, payload)

    def later(self, effect: Callable[[], None]) -> None:
        """Call it once all that was written before is durable."""
        self.outbox.run(effect)

    def finish(self) -> None:
        self.is_over = True

    def lost(self) -> None:
        """The stream is gone."""


class ChannelTalk(Talk):
    """A channel is opened."""

    proposed: Signed[Channel] | None = None

    def take(self, kind: int, payload: bytes) -> None:
        world, seller = self.world, self.seller
        if self.proposed is None:
            request = parse_frame(payload, ChannelRequest)
            check_clock(request.now_ms, seller.now_ms, "the client")
            seller.check_room(self.link)
            self.proposed = propose_channel(
                world.offer,
                client=self.link.client,
                client_nonce=request.client_nonce,
                provider_nonce=world.random.randbytes(32),
                key=world.provider_key,
                now_ms=seller.now_ms,
            )
            self.send(Kind.CHANNEL, self.proposed.record.to_bytes())
            return
        record = parse_record(payload)
        if kind != Kind.CHANNEL or record.id != self.proposed.id:
            raise ProtocolViolation("the client signed another channel than the one proposed.")
        signed = verify_channel(record, provider=world.provider_key.public_key, client=self.link.client)
        self.seller.check_room(self.link)
        self.outbox.persist(signed)
        self.later(lambda: self.opened(signed))

    def opened(self, signed: Signed[Channel]) -> None:
        books = restore_books(self.seller.ledger, signed, Role.PROVIDER)
        self.seller.channels.setdefault(books.id, OpenChannel(books, self.link))
        self.send(Kind.CHANNEL_OPENED, b"")
        self.finish()


class ResumeTalk(Talk):
    """A channel is resumed, as provider/resume.py does it."""

    script: Script | None = None

    def take(self, kind: int, payload: bytes) -> None:
        if self.script is None:
            self.script = Script(self._steps(), self.later, self._fault)
            self.script.begin()
        self.script.feed(kind, payload)

    def lost(self) -> None:
        if self.script is not None:
            self.script.stop()

    def held(self, books: ChannelBooks) -> Held:
        return held_of(self.seller.ledger, books.id, last_order_number=books.last_order_number)

    def batch(self, books: ChannelBooks, theirs: Held) -> Batch:
        return lacking(self.seller.ledger, books.id, theirs, Role.PROVIDER)

    def proposals(self, books: ChannelBooks) -> list[Signed[Receipt]]:
        """Receipts that the client has yet to answer, those among them that are made now."""
        ledger, key = self.seller.ledger, self.world.provider_key
        waiting = open_proposals(ledger, books.id)
        made = interrupt_open_orders(ledger, books, key=key, now_ms=self.seller.now_ms)
        if made:
            self.outbox.persist(*made)
        return waiting + made

    def _fault(self, fault: P2pgridError) -> None:
        if isinstance(fault, Refused):
            self.world.note(f"provider: refuses to resume: {fault.code}")
            if len(self.world.honest) == 2:
                raise AssertionError(f"an honest client may not resume: {fault}")
            self.refuse(fault)
            return
        if isinstance(fault, LedgerError):
            raise fault
        self.world.client_broke(fault)
        self.seller.lose(self.link)

    def _steps(self) -> Steps:
        world, seller, ledger = self.world, self.seller, self.seller.ledger
        _, payload = yield from expect(Kind.RESUME)
        resume = parse_frame(payload, Resume)
        signed = verify_channel(
            parse_record(resume.channel), provider=world.provider_key.public_key, client=self.link.client
        )
        channel = seller.channels.get(signed.message.channel)
        if channel is None:
            # The client signed it, and a crash kept it from our ledger.
            seller.check_room(self.link)
            self.outbox.persist(signed)
            yield DURABLE
            channel = OpenChannel(restore_books(ledger, signed, Role.PROVIDER), None)
            seller.channels[channel.books.id] = channel
        elif channel.books.signed.id != signed.id:
            raise InvalidRecord("wrong-channel", "the client resumes a channel on other terms than were signed.")
        seller.end_orders(channel, self.link)
        # A write that changes nothing: once it is durable, so are all that were queued before it.
        self.outbox.persist(signed)
        yield DURABLE
        seller.refresh(channel)
        check_same_chain(ledger, signed, resume.held)
        held = self.held(channel.books)
        batch = self.batch(channel.books, resume.held)
        self.send(Kind.RESUMED, Resumed(held=held, records=len(batch.records)).to_bytes())
        for record in batch.records:
            self.send(Kind.RECORD, record.to_bytes())

        _, payload = yield from expect(Kind.RECORDS)
        frame = parse_frame(payload, Records)
        sent = []
        for _ in range(frame.records):
            _, payload = yield from expect(Kind.RECORD)
            sent.append(parse_record(payload))
        restored = check_restored(sent, ledger, signed, Role.PROVIDER)
        if restored:
            self.outbox.persist(*restored)
        yield DURABLE

        is_all, waiting = batch.is_all and frame.is_all, []
        if is_all:
            check_same_chain(ledger, signed, resume.held, is_caught_up=True)
            seller.refresh(channel)
            waiting = self.proposals(channel.books)
        yield DURABLE
        self.send(Kind.PROPOSALS, Proposals(proposals=len(waiting), is_all=is_all).to_bytes())
        for receipt in waiting:
            self.send(Kind.RECEIPT, receipt.record.to_bytes())
        for proposal in waiting:
            kind, payload = yield from expect(Kind.COUNTERSIGNATURE, Kind.DISPUTE)
            if kind == Kind.DISPUTE:
                dispute = accept_dispute(proposal, payload, channel.books, seller.now_ms)
                self.outbox.persist(dispute)
                world.disputed(Role.PROVIDER, dispute.message.reason, dispute.message.statement)
            else:
                self.outbox.persist(accept_countersignature(proposal, payload, channel.books))
        if is_all:
            channel.link = self.link
        self.later(self.finish)


class OrderTalk(Talk):
    """An order."""

    channel: OpenChannel | None = None
    order: Signed[Order] | None = None
    opening: OrderOpening | None = None
    machine: SellerOrder | None = None
    engine: Engine
    body: bytes = b""
    ready: bytes = b""
    """The receipt, once it is durable."""

    def take(self, kind: int, payload: bytes) -> None:
        if self.machine is not None:
            self.act(self.machine.message(kind, payload, self.seller.now_ms))
        elif self.opening is None:
            self._open(payload)
        elif kind == Kind.CANCEL:
            raise Refused("cancelled", "the client cancelled the order before it was accepted.")
        elif kind == Kind.BODY:
            self._take_body(payload)
        else:
            raise ProtocolViolation(f"message kind {kind} came where an order's body was expected.")

    def lost(self) -> None:
        machine, channel = self.machine, self.channel
        if machine is None or channel is None:
            return
        self.act(machine.link_lost(self.seller.now_ms))
        if self in channel.unsent:
            channel.unsent.remove(self)

    def _open(self, payload: bytes) -> None:
        named = parse_message(parse_record(parse_frame(payload, OrderOpening).order), Order)
        channel = self.seller.channels.get(named.channel)
        if channel is None or channel.books.client != self.link.client:
            raise Refused("unknown-channel", "the client has no such channel here.")
        self.order, self.opening = verify_order(payload, channel.books)
        channel.check_resumed_on(self.link)
        self.channel = channel

    def _take_body(self, piece: bytes) -> None:
        assert self.channel is not None and self.order is not None and self.opening is not None
        self.body += piece
        if len(self.body) > self.opening.body_bytes:
            raise ProtocolViolation("the body has more bytes than the order announced.")
        if len(self.body) < self.opening.body_bytes:
            return
        self.channel.check_resumed_on(self.link)
        self.machine, actions = accept_order(
            self.channel.books,
            self.order,
            self.opening,
            self.body,
            self.world.offer,
            key=self.world.provider_key,
            now_ms=self.seller.now_ms,
        )
        self.engine = self.world.engine_for(self.body)
        self.act(actions)

    # -- the engine and the clock -------------------------------------------------

    @property
    def is_answered(self) -> bool:
        """True once the receipt is signed or disputed."""
        return self.machine is not None and self.machine.state in (SellerState.SETTLED, SellerState.DISPUTED)

    @property
    def may_read(self) -> bool:
        machine = self.machine
        return (
            machine is not None
            and not self.is_over
            and machine.is_running
            and machine.wants_engine
            and self.engine.asked
            and not self.engine.over
            and (bool(self.engine.pieces) or self.outbox.is_idle)  # All is sent before the engine's end is told.
        )

    def read_engine(self) -> None:
        """The engine does one more thing."""
        machine, engine = self.machine, self.engine
        assert machine is not None
        if not engine.headed:
            engine.headed = True
            self.act(machine.engine_head(engine.status, engine.content_type))
        elif engine.pieces:
            self.act(machine.engine_bytes(engine.pieces.popleft(), self.seller.now_ms))
        else:
            engine.over = True
            self.act((machine.engine_failed if engine.fails else machine.engine_end)(self.seller.now_ms))

    def tick(self) -> None:
        if self.machine is not None and not self.is_over:
            self.act(self.machine.tick(self.seller.now_ms))

    def stall(self) -> None:
        """The client takes no bytes: end the order, and its stream lives on."""
        if self.machine is not None and self.machine.is_running:
            self.act(self.machine.interrupt(self.seller.now_ms))

    # -- what the machine wants -------------------------------------------------

    def act(self, actions: Actions) -> None:
        for action in actions:
            match action:
                case AskEngine():
                    self.engine.asked = True
                case AbortEngine():
                    self.engine.over = True
                case Persist(signed):
                    self.outbox.persist(signed)
                case Send(kind, payload):
                    if kind == Kind.RECEIPT and self.channel is not None:
                        self.channel.unsent.append(self)
                    self.later(lambda kind=kind, payload=payload: self._let_go(kind, payload))  # type: ignore[misc]
                case KeepEvidence(record, reason):
                    self.seller.ledger.append_evidence(record, reason)
                case EndStream():
                    self.later(self.finish)
                case Disputed(_, dispute):
                    self.world.disputed(Role.PROVIDER, dispute.message.reason, dispute.message.statement)
                case Settled():
                    pass
                case _:
                    raise AssertionError(f"a provider's machine asked for {action}")

    def _let_go(self, kind: int, payload: bytes) -> None:
        if self.is_over:
            return
        assert self.order is not None
        if kind == Kind.HEAD:
            self.world.observer.heads_off(self.order.id, self.engine.status)
        if kind == Kind.CHUNK:
            self.world.observer.sends(self.order.id, payload, self.seller.now_ms)
        if kind == Kind.RECEIPT and self.channel is not None:
            self.ready = payload
            self.channel.flush()
        else:
            self.send(kind, payload)


Seller.talk_types = {Kind.CHANNEL_REQUEST: ChannelTalk, Kind.RESUME: ResumeTalk, Kind.ORDER: OrderTalk}
"""`batch_seller` adds BATCH."""
