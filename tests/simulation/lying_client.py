"""A client that lies: the honest process, and what it twists on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from p2pgrid.errors import P2pgridError
from p2pgrid.proto.actions import Action, Actions, Send
from p2pgrid.proto.books import ChannelBooks
from p2pgrid.proto.dispute import Dispute
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.messages import Receipt, Voucher
from p2pgrid.proto.pricing import price_of
from p2pgrid.proto.reconcile import Answered, Batch
from p2pgrid.proto.record import Role, Signed, parse_message, parse_record, sign_message
from p2pgrid.proto.restore import restore_books
from p2pgrid.proto.wire.base import parse_frame
from p2pgrid.proto.wire.channels import Held, OpenTick
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.proto.wire.orders import OrderOpening
from tests.simulation.buyer import Buyer, BuyerPhase, OpenTalk, OrderTalk, ResumeTalk, Talk
from tests.simulation.lies import Frame, Lies, forged, with_bad_signature
from tests.simulation.network import Link

if TYPE_CHECKING:
    from tests.simulation.ledgers import SlowLedger
    from tests.simulation.plans import Request
    from tests.simulation.world import World

ORDERS: Final = (
    "order: fewer tokens allowed",
    "order: less money allowed",
    "order: a shorter prompt allowed",
    "order: an old number",
    "order: a number far ahead",
    "order: an offer that is none",
    "order: a model that is none",
    "order: yesterday",
    "order: no time to answer",
    "order: another channel",
    "order: another key for the body",
    "order: another body",
    "order: a body cut short",
    "order: a body too long",
    "order: two under one number",
    "order: once more, on a new stream",
)
BOUNDS: Final = (
    "orders beyond the bound",
    "orders without resuming",
    "another channel",
    "a new key",
    "an old ledger",
)
UNBOUNDED: Final = frozenset({"order: less money allowed", "batch: less money allowed"})
VOUCHERS: Final = (
    "voucher: withheld",
    "voucher: fewer tokens",
    "voucher: more tokens",
    "voucher: less money",
    "voucher: another tick",
    "voucher: another meter",
    "voucher: twice",
    "voucher: bad signature",
)
ENDINGS: Final = (
    "receipt: not countersigned",
    "receipt: bad signature",
    "receipt: another countersigned",
    "receipt: disputed falsely",
    "receipt: disputed for more than was billed",
    "receipt: disputed as the provider",
    "receipt: another disputed",
    "receipt: disputed tomorrow",
    "cut after a token",
    "cancelled at the end",
)
RESUMES: Final = (
    "resume: holds more",
    "resume: holds less",
    "resume: holds another receipt",
    "resume: knows more ticks",
    "resume: knows fewer ticks",
    "resume: hides orders",
    "resume: records withheld",
    "resume: records twice",
    "resume: records forged",
    "resume: records of own making",
    "resume: more is to come",
    "resume: answered wrongly",
    "resume: disputed falsely",
)
BATCHES: Final = (
    "batch: more requests than it allows",
    "batch: more requests than are offered",
    "batch: never closed",
    "batch: closed, and more sent",
    "batch: closed twice",
    "batch: cancels what was never asked",
    "batch: cancels what is over",
    "batch: an empty request",
    "batch: a request too long",
    "batch: longer answers than it allows",
    "batch: shorter prompts allowed",
    "batch: less money allowed",
    "batch: commits to a body",
    "batch: sent as an order of one",
    "batch: its number used again for an order of one",
    "batch: an order of one sent as a batch",
)
LOST_THREAD: Final = (P2pgridError, AssertionError, LookupError)
"""What a liar's own machines raise: they do not know what it made of their words."""
CLIENT_LIES: Final = (BATCHES, ORDERS, BOUNDS, VOUCHERS, ENDINGS, RESUMES)


class _Talks:
    """What every stream of a liar's does."""

    world: World
    buyer: Buyer
    link: Link
    stream: int

    @property
    def lies(self) -> Lies:
        return self.world.lies

    def _fault(self, fault: Exception) -> None:
        self.world.note(f"client: lost the thread: {fault!r}")
        self.buyer.lose(self.link)

    def send(self, kind: int, payload: bytes) -> None:
        assert isinstance(self.buyer, LyingBuyer)
        for frame in self.lies.frames((kind, payload), self.buyer.before):
            self.world.depart(Role.CLIENT, self.link, self.stream, *frame)


class LyingOpenTalk(_Talks, OpenTalk):
    """A channel opened by a liar."""


class RawTalk(_Talks, Talk):
    """A stream on which frames of before are sent once more. What comes back is taken."""

    def __init__(self, buyer: Buyer, link: Link, frames: Sequence[Frame]) -> None:
        super().__init__(buyer, link)
        self.machine = None
        for frame in frames:
            self.world.depart(Role.CLIENT, self.link, self.stream, *frame)

    number = 0
    is_open = False

    def receive(self, kind: int, payload: bytes) -> None:
        pass

    def cancel(self) -> None:
        self.send(Kind.CANCEL, b"")

    def lost(self) -> None:
        pass


class LyingOrderTalk(_Talks, OrderTalk):
    """An order of a liar's."""

    def act(self, actions: Actions) -> None:
        super().act(self._twisted(actions))

    def receive(self, kind: int, payload: bytes) -> None:
        super().receive(kind, payload)
        if kind == Kind.CHUNK and not self.link.is_cut and self.lies.tell("cut after a token"):
            self.link.cut(self.world.random)
        if kind in (Kind.CHUNK, Kind.RECEIPT) and self.is_live and self.lies.tell("cancelled at the end"):
            self.send(Kind.CANCEL, b"")

    def _twisted(self, actions: Actions) -> list[Action]:
        out: list[Action] = []
        for action in actions:
            match action:
                case Send(Kind.ORDER, payload):
                    out += self._twisted_order(payload)
                case Send(Kind.BODY, payload):
                    out += self._twisted_body(payload)
                case Send(Kind.VOUCHER, payload):
                    out += self._twisted_voucher(action)
                case Send(Kind.COUNTERSIGNATURE, payload):
                    out += self._twisted_ending(action)
                case _:
                    out.append(action)
        return out

    # -- orders -------------------------------------------------

    def _twisted_order(self, payload: bytes) -> list[Action]:
        tell, random, buyer = self.lies.tell, self.world.random, self.buyer
        assert isinstance(buyer, LyingBuyer)
        opening, true = parse_frame(payload, OrderOpening), self.machine.order
        told, order = true, true.message
        for name, changes in (
            ("order: fewer tokens allowed", {"max_output_tokens": random.choice((1, 5))}),
            ("order: less money allowed", {"max_amount_pico": random.choice((0, 1, 10**6))}),
            ("order: a shorter prompt allowed", {"max_prompt_tokens": 1}),
            ("order: an old number", {"order_number": max(1, order.order_number - 1)}),
            ("order: a number far ahead", {"order_number": order.order_number + random.choice((2, 10**6))}),
            ("order: an offer that is none", {"offer": random.randbytes(32)}),
            ("order: a model that is none", {"model": "none"}),
            ("order: yesterday", {"ordered_ms": order.ordered_ms - 86_400_000}),
            ("order: no time to answer", {"first_token_deadline_ms": order.ordered_ms}),
            ("order: another channel", {"channel": random.randbytes(32)}),
        ):
            if tell(name):
                told = forged(told, Role.CLIENT, buyer.key, **changes)
        if told.id != true.id:
            self.world.ordered(told, self.request)
            self.machine.order, self.order_id = told, told.id  # type: ignore[misc]
            opening = msgspec.structs.replace(opening, order=told.record.to_bytes())
        if tell("order: another key for the body"):
            opening = msgspec.structs.replace(opening, commitment_key=random.randbytes(32))
        if tell("order: two under one number"):
            other = forged(told, Role.CLIENT, buyer.key, max_amount_pico=told.message.max_amount_pico + 1)
            self.world.ordered(other, self.request)
            twin = msgspec.structs.replace(opening, order=other.record.to_bytes())
            buyer.raw([(Kind.ORDER, twin.to_bytes()), (Kind.BODY, self.request.body)])
        buyer.openings.append([(Kind.ORDER, opening.to_bytes()), (Kind.BODY, self.request.body)])
        return [Send(Kind.ORDER, opening.to_bytes())]

    def _twisted_body(self, payload: bytes) -> list[Action]:
        tell = self.lies.tell
        if tell("order: another body"):
            payload = payload.replace(b"Labas", b"Sveik")
        if tell("order: a body cut short"):
            payload = payload[: len(payload) // 2]
        if tell("order: a body too long"):
            payload += b" "
        return [Send(Kind.BODY, payload)]

    @property
    def request(self) -> Request:
        assert isinstance(self.buyer, LyingBuyer) and self.buyer.request is not None
        return self.buyer.request

    # -- what is signed -------------------------------------------------

    def _twisted_voucher(self, action: Send) -> list[Action]:
        tell, random, key = self.lies.tell, self.world.random, self.buyer.key
        if tell("voucher: withheld"):
            return []
        record = parse_record(action.payload)
        true = Signed(parse_message(record, Voucher), record, record.id, {})
        told, voucher = true, true.message
        out = voucher.usage.output_tokens
        for name, tokens in (("voucher: fewer tokens", max(0, out - 3)), ("voucher: more tokens", out + 3)):
            if tell(name):
                usage = msgspec.structs.replace(voucher.usage, output_tokens=tokens)
                amount = price_of(self.machine.tariff, usage)
                told = forged(told, Role.CLIENT, key, usage=usage, amount_pico=amount)
        for name, changes in (
            ("voucher: less money", {"amount_pico": voucher.amount_pico // 2}),
            ("voucher: another tick", {"tick": voucher.tick + random.choice((1, 2))}),
            ("voucher: another meter", {"meter": random.randbytes(32)}),
        ):
            if tell(name):
                told = forged(told, Role.CLIENT, key, **changes)
        record = told.record
        if tell("voucher: bad signature"):
            record = with_bad_signature(record, Role.CLIENT)
        sent = Send(Kind.VOUCHER, record.to_bytes())
        return [sent, sent] if tell("voucher: twice") else [sent]

    def _twisted_ending(self, action: Send) -> list[Action]:
        tell, random, buyer = self.lies.tell, self.world.random, self.buyer
        assert isinstance(buyer, LyingBuyer)
        receipt = self.machine.receipt
        assert receipt is not None
        before = random.choice(buyer.receipts) if buyer.receipts else receipt
        buyer.receipts.append(receipt)
        if tell("receipt: not countersigned"):
            return []
        if tell("receipt: bad signature"):
            return [Send(action.kind, with_bad_signature(receipt.record, Role.CLIENT).to_bytes())]
        if tell("receipt: another countersigned"):
            return [Send(action.kind, before.record.to_bytes())]
        dispute = buyer.false_dispute(receipt, before, "receipt")
        return [action] if dispute is None else [Send(Kind.DISPUTE, dispute.record.to_bytes())]


class LyingResumeTalk(_Talks, ResumeTalk):
    """A channel resumed by a liar."""

    def held(self, channel: bytes) -> Held:
        held, tell, random = super().held(channel), self.lies.tell, self.world.random
        number = held.last_receipt_number
        changes: dict[str, Any] = {}
        if tell("resume: holds more"):
            changes["last_receipt_number"] = number + random.randint(1, 3)
            changes["last_order_number"] = held.last_order_number + random.choice((0, 1, 5))
        if tell("resume: holds less"):
            changes["last_receipt_number"] = random.randint(0, max(0, number - 1))
            changes["last_receipt"] = self._receipt_id(channel, changes["last_receipt_number"])
        if tell("resume: holds another receipt"):
            changes["last_receipt"] = random.randbytes(32)
        ticks = held.open_orders
        if tell("resume: knows more ticks"):
            ticks = tuple(OpenTick(order_number=t.order_number, tick=t.tick + random.randint(1, 5)) for t in ticks)
        if tell("resume: knows fewer ticks"):
            ticks = tuple(OpenTick(order_number=t.order_number, tick=0) for t in ticks)
        if tell("resume: hides orders"):
            ticks = ticks[1:]
        return msgspec.structs.replace(held, open_orders=ticks, **changes)

    def _receipt_id(self, channel: bytes, number: int) -> bytes:
        receipt = self.buyer.ledger.receipt(channel, number) if number else None
        return receipt.id if receipt is not None else self.channel.id

    def batch(self, channel: bytes, theirs: Held) -> Batch:
        batch, tell, random = super().batch(channel, theirs), self.lies.tell, self.world.random
        records = list(batch.records)
        if tell("resume: records withheld") and records:
            del records[random.randrange(len(records))]
        if tell("resume: records twice"):
            records += random.sample(records, min(2, len(records)))
        if tell("resume: records of own making"):
            all_of_it = list(self.buyer.ledger.records(channel=channel))
            records += random.sample(all_of_it, min(4, len(all_of_it)))
            records += [one.record for one in self._own_making(channel)]
        if tell("resume: records forged") and records:
            at = random.randrange(len(records))
            records[at] = with_bad_signature(records[at], random.choice((Role.PROVIDER, Role.CLIENT)))
        return Batch(tuple(records), is_all=batch.is_all and not tell("resume: more is to come"))

    def _own_making(self, channel: bytes) -> list[Signed[Any]]:
        """An order that was never placed, and a dispute of a receipt that may not be."""
        buyer, random = self.buyer, self.world.random
        assert isinstance(buyer, LyingBuyer)
        orders = [sale.order for sale in self.world.observer.sales.values() if sale.order.channel == channel]
        made: list[Signed[Any]] = []
        if orders:
            order = random.choice(orders)
            number = order.order_number + random.choice((0, 1, 7))
            changed = msgspec.structs.replace(order, order_number=number, max_amount_pico=order.max_amount_pico + 1)
            made.append(sign_message(changed, Role.CLIENT, buyer.key))
        if buyer.receipts:
            dispute = buyer.dispute(random.choice(buyer.receipts), by=random.choice((Role.CLIENT, Role.PROVIDER)))
            made.append(dispute)
        return made

    def answer(self, answered: Answered) -> None:
        tell, buyer, random = self.lies.tell, self.buyer, self.world.random
        assert isinstance(buyer, LyingBuyer)
        buyer.receipts.append(answered.receipt)
        if tell("resume: answered wrongly"):
            record = random.choice(buyer.receipts).record
            self.send(random.choice((Kind.COUNTERSIGNATURE, Kind.DISPUTE)), record.to_bytes())
            return
        dispute = buyer.false_dispute(answered.receipt, random.choice(buyer.receipts), "resume")
        if dispute is not None:
            self.send(Kind.DISPUTE, dispute.record.to_bytes())
            return
        super().answer(answered)


class LyingBuyer(Buyer):
    """A client's process that lies as the history's repertoire says."""

    resume_type = LyingResumeTalk
    order_type = LyingOrderTalk
    open_type = LyingOpenTalk

    def __init__(self, world: World, ledger: SlowLedger) -> None:
        super().__init__(world, ledger)
        self.before: list[Frame] = []
        self.openings: list[list[Frame]] = []
        """Orders with their bodies, as they were sent."""
        self.receipts: list[Signed[Receipt]] = []
        """All that it was shown."""
        self.request: Request | None = None
        """What is ordered now."""
        self.channels_here: list[ChannelBooks] = []
        """Of all channels opened on this link."""

    def receive(self, stream: int, kind: int, payload: bytes) -> None:
        try:
            super().receive(stream, kind, payload)
        except LOST_THREAD as error:
            self.world.note(f"client: lost the thread: {error!r}")
            if self.link is not None:
                self.lose(self.link)

    def quarantine(self, code: str, message: str) -> None:
        """A liar complains, and comes back."""
        super().quarantine(code, message)
        self.phase = BuyerPhase.DOWN

    def lose(self, link: Link) -> None:
        super().lose(link)
        self.channels_here.clear()
        if self.world.lies.tell("a new key"):
            self.key = SecretKey(self.world.random.randbytes(32))
            self.books = None

    def _settle(self, link: Link) -> None:
        super()._settle(link)
        if link is self.link and self.phase is BuyerPhase.SETTLING and self.world.lies.tell("orders without resuming"):
            channels = [one for one in self.ledger.channels() if one.message.client == self.key.public_key.raw]
            self.books = restore_books(self.ledger, channels[-1], Role.CLIENT) if channels else None
            self.phase, self.talk = BuyerPhase.READY, None

    def order(self, request: Request) -> bool:
        tell, random = self.world.lies.tell, self.world.random
        assert self.books is not None and self.link is not None
        if self.books not in self.channels_here:
            self.channels_here.append(self.books)
        if tell("another channel"):
            self.open_channel()
            return False
        self.books = random.choice(self.channels_here)
        self.prepare()
        if self.openings and tell("order: once more, on a new stream"):
            self.raw(random.choice(self.openings))
        self.request = request
        return super().order(request)

    def prepare(self) -> None:
        """Whoever means to allow too little is not held back by what it should allow."""
        lies, books = self.world.lies, self.books
        if books is not None and (lies.tell("orders beyond the bound") or UNBOUNDED & lies.repertoire):
            for at_risk in (books._risks, books._at_stake, books._unsigned, books._reserved):
                at_risk.clear()
            books.countersigned_pico = 10**15

    def raw(self, frames: Sequence[Frame]) -> None:
        """Send frames on a stream of their own."""
        assert self.link is not None
        talk = RawTalk(self, self.link, frames)
        self.orders[talk.stream] = talk  # type: ignore[assignment]

    # -- disputes -------------------------------------------------

    def false_dispute(self, receipt: Signed[Receipt], other: Signed[Receipt], where: str) -> Signed[Dispute] | None:
        """A dispute in place of a countersignature, or None."""
        tell, amount = self.world.lies.tell, receipt.message.amount_pico
        if tell(f"{where}: disputed falsely"):
            return self.dispute(receipt, owed=self.world.random.choice((0, amount // 2, amount)))
        if tell(f"{where}: disputed for more than was billed"):
            return self.dispute(receipt, owed=amount + 1)
        if tell(f"{where}: disputed as the provider"):
            return self.dispute(receipt, by=Role.PROVIDER)
        if tell(f"{where}: another disputed"):
            return self.dispute(other)
        if tell(f"{where}: disputed tomorrow"):
            return self.dispute(receipt, ahead_ms=86_400_000)
        return None

    def dispute(
        self, receipt: Signed[Receipt], *, owed: int = 0, by: Role = Role.CLIENT, ahead_ms: int = 0
    ) -> Signed[Dispute]:
        """A dispute of any receipt, with whatever in it."""
        message = Dispute(
            channel=receipt.message.channel,
            receipt_number=receipt.message.receipt_number,
            receipt=receipt.id,
            by=by,
            reason="wrong-count",
            statement="It is not so.",
            owed_pico=owed,
            disputed_ms=self.now_ms + ahead_ms,
        )
        return sign_message(message, Role.CLIENT, self.key)
