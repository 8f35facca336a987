"""A provider that lies: the honest process, and what it twists on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

import msgspec

from p2pgrid.errors import InvalidRecord, P2pgridError
from p2pgrid.ledger.outbox import Outbox
from p2pgrid.proto.actions import Action, Actions, Persist, Send
from p2pgrid.proto.books import ChannelBooks
from p2pgrid.proto.messages import Meter, Order, Receipt, Status, Usage
from p2pgrid.proto.pricing import amount_owed, price_of
from p2pgrid.proto.reconcile import Batch
from p2pgrid.proto.record import Role, Signed, sign_message
from p2pgrid.proto.restore import tariff_of
from p2pgrid.proto.wire.base import Refusal
from p2pgrid.proto.wire.channels import Held, OpenTick
from p2pgrid.proto.wire.kinds import Kind
from tests.simulation.lies import Frame, Lies, forged, with_bad_signature
from tests.simulation.network import Link
from tests.simulation.seller import ChannelTalk, OrderTalk, ResumeTalk, Seller, Talk

if TYPE_CHECKING:
    from tests.simulation.ledgers import SlowLedger
    from tests.simulation.world import World

METERS: Final = (
    "meter: more tokens",
    "meter: fewer tokens",
    "meter: more money",
    "meter: a longer prompt",
    "meter: wrong commitment",
    "meter: a tick left out",
    "meter: two for one tick",
    "meter: another order",
    "meter: tomorrow",
    "meter: withheld",
)
RECEIPTS: Final = (
    "receipt: one token more",
    "receipt: a window more",
    "receipt: more than a window more",
    "receipt: more money",
    "receipt: a longer prompt",
    "receipt: nothing cached",
    "receipt: completed",
    "receipt: cancelled",
    "receipt: interrupted",
    "receipt: failed, and billed",
    "receipt: wrong commitment",
    "receipt: another finish reason",
    "receipt: a number left out",
    "receipt: wrong link",
    "receipt: wrong total",
    "receipt: another order",
    "receipt: late, and billed",
    "receipt: mentions what nobody said",
    "receipt: yesterday",
    "receipt: two for one number",
    "receipt: bad signature",
    "receipt: withheld",
    "receipt: before the answer's end",
)
DELIVERY: Final = (
    "text left out",
    "text altered",
    "window overrun",
    "refused after all",
    "a second head",
)
RESUMES: Final = (
    "resume: refused",
    "resume: holds more",
    "resume: holds less",
    "resume: holds another receipt",
    "resume: knows more ticks",
    "resume: knows fewer ticks",
    "resume: records withheld",
    "resume: records twice",
    "resume: records forged",
    "resume: records of another order",
    "resume: billed again",
    "resume: a closed order billed",
    "resume: answered receipts again",
    "resume: answered receipts changed",
    "resume: more than the voucher",
    "resume: completed",
    "resume: no receipts",
    "resume: a receipt badly signed",
    "dispute ignored",
    "an old ledger",
)
BATCHES: Final = (
    "batch: a line more",
    "batch: a line of a request never asked",
    "batch: a line left out",
    "batch: lines in another order",
    "batch: a line's counts inflated",
    "batch: a window more in every line",
    "batch: what failed is billed",
    "batch: sums that do not fit",
    "batch: nothing asked for, and billed",
    "batch: a tick counts what failed",
    "batch: parts after the end",
    "batch: refused after its head",
    "batch: ended, and it was not",
    "batch: a part of what was never asked",
    "batch: a part under another's index",
    "batch: an end withheld",
)
LOST_THREAD: Final = (P2pgridError, AssertionError, LookupError)
"""What a liar's own machines raise: they do not know what it made of their words."""
PROVIDER_LIES: Final = (BATCHES, METERS, RECEIPTS, DELIVERY, RESUMES)


class _Talks:
    """What every stream of a liar's does."""

    world: World
    seller: Seller
    link: Link
    stream: int
    outbox: Outbox

    @property
    def lies(self) -> Lies:
        return self.world.lies

    def later(self, effect: Callable[[], None]) -> None:
        def run() -> None:
            try:
                effect()
            except LOST_THREAD as error:
                self._fault(error)

        self.outbox.run(run)

    def _fault(self, fault: Exception) -> None:
        self.world.note(f"provider: lost the thread: {fault!r}")
        self.seller.lose(self.link)

    def send(self, kind: int, payload: bytes) -> None:
        seller = self.seller
        assert isinstance(seller, LyingSeller)
        for frame in self.lies.frames((kind, payload), seller.before):
            self.world.depart(Role.PROVIDER, self.link, self.stream, *frame)


class LyingChannelTalk(_Talks, ChannelTalk):
    """A channel opened by a liar."""


class LyingOrderTalk(_Talks, OrderTalk):
    """An order served by a liar."""

    def act(self, actions: Actions) -> None:
        super().act(self._twisted(actions))

    def read_engine(self) -> None:
        machine = self.machine
        if machine is not None and self.lies.tell("window overrun"):
            acknowledged, machine._acknowledged = machine._acknowledged, Usage(output_tokens=10**6)
            super().read_engine()
            machine._acknowledged = acknowledged
        else:
            super().read_engine()
        if machine is not None and machine.is_running and self.lies.tell("receipt: before the answer's end"):
            self.act(machine._finish(Status.COMPLETED, self.seller.now_ms))

    def take(self, kind: int, payload: bytes) -> None:
        if kind == Kind.DISPUTE and self.lies.tell("dispute ignored"):
            return
        super().take(kind, payload)

    def send(self, kind: int, payload: bytes) -> None:
        lies, random = self.lies, self.world.random
        if kind == Kind.CHUNK and lies.tell("text left out"):
            return
        if kind == Kind.CHUNK and lies.tell("text altered"):
            payload = payload.replace(b"0", b"0, 1") if random.random() < 0.5 else payload[: len(payload) // 2]
        if kind == Kind.HEAD and lies.tell("a second head"):
            super().send(kind, payload)
        if kind in (Kind.CHUNK, Kind.RECEIPT) and lies.tell("refused after all"):
            super().send(Kind.REFUSAL, Refusal(code="busy", message="").to_bytes())
            return
        super().send(kind, payload)

    # -- records -------------------------------------------------

    def _twisted(self, actions: Actions) -> list[Action]:
        out: list[Action] = []
        instead: dict[bytes, bytes | None] = {}
        for action in actions:
            is_own = isinstance(action, Persist) and Role.CLIENT not in action.signed.signers
            if is_own and isinstance(action.signed.message, Meter | Receipt):
                true = action.signed
                told = self._twisted_meter(true) if isinstance(true.message, Meter) else self._twisted_receipt(true)
                for one in told:
                    out.append(Persist(one))
                instead[true.record.to_bytes()] = told[-1].record.to_bytes() if told else None
            elif isinstance(action, Send) and action.payload in instead:
                payload = instead[action.payload]
                name = "meter: withheld" if action.kind == Kind.METER else "receipt: withheld"
                if payload is None or self.lies.tell(name):
                    continue
                if action.kind == Kind.RECEIPT and self.lies.tell("receipt: bad signature"):
                    assert self.machine is not None and self.machine.receipt is not None
                    payload = with_bad_signature(self.machine.receipt.record, Role.PROVIDER).to_bytes()
                out.append(Send(action.kind, payload))
            else:
                out.append(action)
        return out

    def _twisted_meter(self, true: Signed[Any]) -> list[Signed[Any]]:
        tell, key, meter, machine = self.lies.tell, self.world.provider_key, true.message, self.machine
        assert machine is not None
        price = machine._tariff
        told = true
        for name, extra in (
            ("meter: more tokens", {"output_tokens": meter.usage.output_tokens + 1}),
            ("meter: fewer tokens", {"output_tokens": max(0, meter.usage.output_tokens - 1)}),
            ("meter: a longer prompt", {"prompt_tokens": meter.usage.prompt_tokens + 5}),
        ):
            if tell(name):
                usage = msgspec.structs.replace(meter.usage, **extra)
                told = forged(told, Role.PROVIDER, key, usage=usage, amount_pico=price_of(price, usage))
        for name, changes in (
            ("meter: more money", {"amount_pico": meter.amount_pico + 1}),
            ("meter: wrong commitment", {"response_commitment": bytes(32)}),
            ("meter: a tick left out", {"tick": meter.tick + 1}),
            ("meter: another order", {"order_number": meter.order_number + 1}),
            ("meter: tomorrow", {"metered_ms": meter.metered_ms + 86_400_000}),
        ):
            if tell(name):
                told = forged(told, Role.PROVIDER, key, **changes)
        if told.id != true.id:
            machine._unanswered.pop(true.id, None)
            machine._unanswered[told.id] = told.message
        if told.id != true.id and tell("meter: two for one tick"):
            self.world.depart(Role.PROVIDER, self.link, self.stream, Kind.METER, true.record.to_bytes())
        return [told]

    def _twisted_receipt(self, true: Signed[Any]) -> list[Signed[Any]]:
        machine, tell = self.machine, self.lies.tell
        assert machine is not None and self.channel is not None
        told = self._told(true)
        books = self.channel.books
        if told.id == true.id:
            return [true]
        if tell("receipt: two for one number"):
            self.world.depart(Role.PROVIDER, self.link, self.stream, Kind.RECEIPT, told.record.to_bytes())
            return [true]
        machine.receipt = told
        _go_on_from(books, told)
        return [told]

    def _told(self, true: Signed[Any]) -> Signed[Any]:
        """What is said in place of a receipt."""
        assert self.machine is not None and isinstance(self.seller, LyingSeller)
        return self.seller.twisted(true, "receipt", self.machine.usage, self.machine._tariff)


class LyingResumeTalk(_Talks, ResumeTalk):
    """A channel resumed by a liar."""

    def take(self, kind: int, payload: bytes) -> None:
        if self.script is None and self.lies.tell("resume: refused"):
            self.send(Kind.REFUSAL, Refusal(code="busy", message="").to_bytes())
            self.is_over = True
            return
        super().take(kind, payload)

    def held(self, books: ChannelBooks) -> Held:
        held, tell, random = super().held(books), self.lies.tell, self.world.random
        number = held.last_receipt_number
        changes: dict[str, Any] = {}
        if tell("resume: holds more"):
            changes["last_receipt_number"] = number + random.randint(1, 3)
            changes["last_order_number"] = held.last_order_number + random.choice((0, 1, 5, 10**7))
        if tell("resume: holds less") and number:
            changes["last_receipt_number"] = random.randint(0, number - 1)
            changes["last_order_number"] = random.randint(0, held.last_order_number)
        if tell("resume: holds another receipt"):
            changes["last_receipt"] = random.randbytes(32)
        ticks = held.open_orders
        if tell("resume: knows more ticks"):
            ticks = tuple(OpenTick(order_number=t.order_number, tick=t.tick + random.randint(1, 5)) for t in ticks)
        if tell("resume: knows fewer ticks"):
            ticks = tuple(OpenTick(order_number=t.order_number, tick=0) for t in ticks)
        return msgspec.structs.replace(held, open_orders=ticks, **changes)

    def batch(self, books: ChannelBooks, theirs: Held) -> Batch:
        batch, tell, random = super().batch(books, theirs), self.lies.tell, self.world.random
        records = list(batch.records)
        if tell("resume: records withheld") and records:
            del records[random.randrange(len(records))]
        if tell("resume: records twice"):
            records += random.sample(records, min(2, len(records)))
        if tell("resume: records of another order"):
            records += _sample(random, list(self.seller.ledger.records(channel=books.id)), 4)
        if tell("resume: records forged") and records:
            at = random.randrange(len(records))
            records[at] = with_bad_signature(records[at], random.choice((Role.PROVIDER, Role.CLIENT)))
        return Batch(tuple(records), is_all=batch.is_all)

    def proposals(self, books: ChannelBooks) -> list[Signed[Receipt]]:
        seller, tell, random = self.seller, self.lies.tell, self.world.random
        assert isinstance(seller, LyingSeller)
        waiting = super().proposals(books)
        if tell("resume: no receipts"):
            return []
        waiting = [seller.twisted(one, "resume", None, None) for one in waiting]
        answered = [seller.ledger.receipt(books.id, n) for n in range(1, books.last_receipt_number + 1)]
        old = [one for one in answered if one is not None]
        if tell("resume: answered receipts again"):
            waiting = [*_sample(random, old, 2), *waiting]
        if tell("resume: answered receipts changed"):
            more = [_dearer(one, seller) for one in _sample(random, old, 1)]
            waiting = [*more, *waiting]
        if tell("resume: billed again"):
            waiting += seller.billed_anew(books, {r.message.order for r in old})
        if tell("resume: a closed order billed"):
            waiting += seller.billed_anew(books, None)
        if waiting and tell("resume: a receipt badly signed"):
            at = random.randrange(len(waiting))
            bad = with_bad_signature(waiting[at].record, Role.PROVIDER)
            waiting[at] = Signed(waiting[at].message, bad, waiting[at].id, waiting[at].signers)
        return waiting


class LyingSeller(Seller):
    """A provider's process that lies as the history's repertoire says."""

    talk_types: ClassVar[dict[int, type[Talk]]] = {
        Kind.CHANNEL_REQUEST: LyingChannelTalk,
        Kind.RESUME: LyingResumeTalk,
        Kind.ORDER: LyingOrderTalk,
    }

    def __init__(self, world: World, ledger: SlowLedger) -> None:
        self.before: list[Frame] = []
        super().__init__(world, ledger)

    def receive(self, link: Link, stream: int, kind: int, payload: bytes) -> None:
        try:
            super().receive(link, stream, kind, payload)
        except LOST_THREAD as error:
            self.world.note(f"provider: lost the thread: {error!r}")
            self.lose(link)

    def twisted(self, true: Signed[Receipt], where: str, usage: Usage | None, tariff: Any) -> Signed[Receipt]:
        """What is said in place of a receipt; `usage` is what was delivered, where it is known."""
        tell, key, random = self.world.lies.tell, self.world.provider_key, self.world.random
        told = true
        before = true.message.channel_total_pico - true.message.amount_pico
        for name, changes in self._changes(true.message, where, usage):
            if not tell(name):
                continue
            message = msgspec.structs.replace(told.message, **changes)
            if "usage" in changes or "status" in changes:
                price = tariff or self._tariff(message)
                amount = 0 if price is None else amount_owed(price, message.usage, message.status)
                changes = {**changes, "amount_pico": amount}
            if "amount_pico" in changes:
                # What was before it in the total stays: the lie is in the receipt alone.
                changes = {**changes, "channel_total_pico": before + changes["amount_pico"]}
            told = forged(told, Role.PROVIDER, key, **changes)
        if tell(f"{where}: wrong total"):
            total = told.message.channel_total_pico + random.choice((1, 10**6))
            told = forged(told, Role.PROVIDER, key, channel_total_pico=total)
        return told

    def _changes(self, receipt: Receipt, where: str, usage: Usage | None) -> list[tuple[str, dict[str, Any]]]:
        """Each lie, and what it changes of the receipt."""
        window, random = self.world.plan.window, self.world.random
        now = usage or receipt.usage

        def more(**changes: int) -> Usage:
            return msgspec.structs.replace(receipt.usage, **changes)

        out = receipt.usage.output_tokens
        if where == "resume":
            return [
                ("resume: more than the voucher", {"usage": more(output_tokens=out + random.choice((1, window)))}),
                (
                    "resume: completed",
                    {
                        "status": Status.COMPLETED,
                        "usage": more(
                            output_tokens=out + random.choice((window, window, window + 1)),
                            prompt_tokens=receipt.usage.prompt_tokens or random.choice((1, 500, 10**5)),
                        ),
                    },
                ),
            ]
        return [
            ("receipt: one token more", {"usage": more(output_tokens=out + 1)}),
            ("receipt: a window more", {"usage": more(output_tokens=out + window)}),
            ("receipt: more than a window more", {"usage": more(output_tokens=out + 3 * window)}),
            ("receipt: a longer prompt", {"usage": more(prompt_tokens=receipt.usage.prompt_tokens + 7)}),
            ("receipt: nothing cached", {"usage": more(cached_tokens=0)}),
            ("receipt: completed", {"status": Status.COMPLETED, "usage": now}),
            ("receipt: cancelled", {"status": Status.CANCELLED, "usage": now}),
            (
                "receipt: interrupted",
                {
                    "status": Status.INTERRUPTED,
                    "usage": more(output_tokens=now.output_tokens + random.choice((0, 1, 3 * window))),
                },
            ),
            ("receipt: more money", {"amount_pico": receipt.amount_pico + random.choice((1, 10**9))}),
            ("receipt: failed, and billed", {"status": Status.FAILED, "amount_pico": 10**6}),
            ("receipt: wrong commitment", {"response_commitment": random.randbytes(32)}),
            ("receipt: another finish reason", {"finish_reason": "length "}),
            ("receipt: a number left out", {"receipt_number": receipt.receipt_number + 1}),
            ("receipt: wrong link", {"previous": random.randbytes(32)}),
            ("receipt: another order", {"order_number": max(1, receipt.order_number - 1)}),
            ("receipt: late, and billed", {"first_token_ms": 10**8}),
            ("receipt: mentions what nobody said", {"mentions": (random.randbytes(32),)}),
            ("receipt: yesterday", {"issued_ms": receipt.issued_ms - 86_400_000}),
        ]

    def _tariff(self, receipt: Receipt) -> Any:
        placed = self.ledger.order(receipt.channel, receipt.order_number)
        return tariff_of(self.ledger, placed.order.message) if placed is not None else None

    def billed_anew(self, books: ChannelBooks, billed: set[bytes] | None) -> list[Signed[Receipt]]:
        """Receipts under new numbers for orders that have one; or, without `billed`, for any that was ever placed."""
        world, made = self.world, []
        sales = [
            (order_id, sale)
            for order_id, sale in world.observer.sales.items()
            if sale.order.channel == books.id and (billed is None or order_id in billed)
        ]
        for order_id, sale in _sample(world.random, sales, 2):
            out = min(world.plan.window, sale.order.max_output_tokens)
            usage = Usage(prompt_tokens=min(30, sale.order.max_prompt_tokens), output_tokens=out)
            status = world.random.choice((Status.COMPLETED, Status.COMPLETED, Status.INTERRUPTED))
            try:
                made.append(_bill(books, order_id, sale.order, usage, price_of(sale.tariff, usage), status, world))
            except InvalidRecord:
                continue
        return made


def _bill(
    books: ChannelBooks, order_id: bytes, order: Order, usage: Usage, amount: int, status: Status, world: World
) -> Signed[Receipt]:
    receipt = sign_message(
        Receipt(
            channel=books.id,
            receipt_number=books.last_receipt_number + 1,
            previous=books.last_receipt_id,
            order_number=order.order_number,
            order=order_id,
            offer=order.offer,
            model=order.model,
            usage=usage,
            amount_pico=amount,
            channel_total_pico=books.total_pico + amount,
            status=status,
            finish_reason="",
            request_commitment=order.request_commitment,
            response_commitment=bytes(32),
            first_token_ms=1,
            total_ms=1,
            issued_ms=world.clock(Role.PROVIDER),
            mentions=(),
        ),
        Role.PROVIDER,
        world.provider_key,
    )
    _go_on_from(books, receipt)
    return receipt


def _dearer(receipt: Signed[Receipt], seller: LyingSeller) -> Signed[Receipt]:
    amount, total = receipt.message.amount_pico + 1, receipt.message.channel_total_pico + 1
    return forged(receipt, Role.PROVIDER, seller.world.provider_key, amount_pico=amount, channel_total_pico=total)


def _go_on_from(books: ChannelBooks, receipt: Signed[Receipt]) -> None:
    books.last_receipt_number = receipt.message.receipt_number
    books.last_receipt_id = receipt.id
    books.total_pico = receipt.message.channel_total_pico


def _sample(random: Any, population: Sequence[Any], most: int) -> list[Any]:
    return random.sample(list(population), min(most, len(population)))
