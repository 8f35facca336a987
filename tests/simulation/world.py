"""Both processes, their disks and the network between them; one step of a history at a time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final

from p2pgrid.errors import LedgerError, P2pgridError
from p2pgrid.ledger.base import SlotTaken
from p2pgrid.proto.books import UNSIGNED_COUNTS_MS
from p2pgrid.proto.keys import parse_public_key
from p2pgrid.proto.message_types import MESSAGE_TYPES
from p2pgrid.proto.messages import Offer, Order
from p2pgrid.proto.record import Role, Signed, parse_message
from p2pgrid.proto.wire.kinds import Kind
from tests.proto.simulation import CLIENT, NOW_MS, PROVIDER, Engine
from tests.simulation import batch_seller  # noqa: F401 - sellers take BATCH from here on
from tests.simulation.answers import plain_answer
from tests.simulation.batch_buyer import BatchTalk, order_with_others
from tests.simulation.buyer import Buyer, BuyerPhase
from tests.simulation.ledgers import Cut, Disk, SlowLedger
from tests.simulation.lies import Lies
from tests.simulation.network import Link
from tests.simulation.observer import Broken, Observer
from tests.simulation.plans import Plan, Request
from tests.simulation.seller import OrderTalk, Seller

SIDES: Final = (Role.PROVIDER, Role.CLIENT)
_PATIENCE: Final = 6_000
"""Steps after which a history that does not come to rest is one that never will."""
_PATIENCE_WITH_LIARS: Final = 300


class World:
    """A history under way."""

    def __init__(
        self,
        plan: Plan,
        random: Random,
        disks: dict[Role, Disk],
        *,
        honest: frozenset[Role] = frozenset(SIDES),
        lies: Lies | None = None,
        trace: Callable[[str], None] | None = None,
        seller_type: type[Seller] = Seller,
        buyer_type: type[Buyer] = Buyer,
    ) -> None:
        self.plan: Final = plan
        self.random: Final = random
        self.disks: Final = disks
        self.offer: Final[Signed[Offer]] = plan.offer
        self.provider_key: Final = PROVIDER
        self.client_key: Final = CLIENT
        self.observer: Final = Observer(plan.window, honest)
        self.honest: Final = honest
        self.lies: Final = lies or Lies(Random(0), ())
        self._backups: dict[Role, Disk] = {}
        self.elapsed_ms = 0
        self.steps = 0
        self.requests = list(plan.requests)
        self.disputes: list[tuple[Role, str, str]] = []
        self.breaches: list[P2pgridError] = []
        """What the provider took for no honest client's doing."""
        self.clocks_ms = dict(plan.clocks_ms)
        self.happened: Counter[str] = Counter()
        self.found: Counter[str] = Counter()
        """What audits found against a liar."""
        self.links = 0
        self.live_links: list[Link] = []
        self._requests_by_body = {r.body: r for r in plan.requests}
        self._trace = trace
        self._types = (seller_type, buyer_type)
        self.seller: Seller | None = None
        self.buyer: Buyer | None = None
        self._raised: list[BaseException] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: self._raised.append(context.get("exception") or Broken(context["message"]))
        )
        self.start(Role.PROVIDER)
        self.start(Role.CLIENT)

    # -- what the processes ask -------------------------------------------------

    def clock(self, side: Role) -> int:
        """A side's own clock."""
        return NOW_MS + self.clocks_ms[side] + int(self.elapsed_ms * (1 + self.plan.drift[side]))

    def depart(self, side: Role, link: Link, stream: int, kind: int, payload: bytes) -> None:
        """A message leaves."""
        self.note(f"{side}: link {link.number} stream {stream}: {kind_name(kind)}, {len(payload)} bytes, leaves")
        self.observer.leaves(side, kind, payload, self.process(side).ledger.durable)
        if side is Role.CLIENT:
            link.send_to_provider(stream, kind, payload)
        else:
            link.send_to_client(stream, kind, payload)

    def drop(self, link: Link, side: Role) -> None:
        """A side gives a link up, or knows that it is gone."""
        link.notice(side)

    def note(self, text: str) -> None:
        """A line of the trace."""
        if self._trace is not None:
            self._trace(f"{self.steps:5} {self.elapsed_ms / 1000:9.3f} s  {text}")

    def disputed(self, side: Role, code: str, message: str) -> None:
        """A side says that the other broke a rule."""
        self.note(f"{side}: DISPUTE {code}: {message}")
        self.disputes.append((side, code, message))
        if len(self.honest) == 2:
            raise Broken(f"the honest {side} was told that the other broke a rule: {code}: {message}")

    def slot_taken(self, side: Role, error: SlotTaken) -> None:
        """A ledger was to hold a second record in one place: the rules should have kept it out."""
        if side in self.honest:
            raise Broken(f"the {side} was about to keep a second record for one slot: {error.message}")

    def client_broke(self, fault: P2pgridError) -> None:
        """The provider took a message for no honest client's doing."""
        self.note(f"provider: the client broke a rule: {fault.message}")
        self.breaches.append(fault)
        if len(self.honest) == 2:
            raise Broken(f"the honest client was taken for a liar: {fault.message}")

    def ordered(self, order: Signed[Order], *requests: Request) -> None:
        """The client signed an order, of one request or, without any, of those that it will ask under it."""
        entry = self.offer.message.models[0]
        tariff = self.offer.message.tariff_at(entry, order.message.ordered_ms)
        self.observer.ordered(order, tariff)
        for request in requests:
            self.asked(order, request)

    def asked(self, order: Signed[Order], request: Request) -> None:
        """The client asks one request under an order."""
        answer = request.answer
        self.observer.asked(order.id, n=answer.n, largest_event=answer.largest_event)
        self.note(f"client: order {order.message.order_number}, {answer.kind}")

    def engine_for(self, body: bytes) -> Engine:
        """The engine that answers this body: as scripted, from its beginning."""
        known = self._requests_by_body.get(body)
        script = (known.answer if known is not None else plain_answer(10, [1] * (4 * self.plan.window))).engine
        return Engine(type(script.pieces)(script.pieces), script.status, script.content_type, script.fails)

    def process(self, side: Role) -> Any:
        """A side's process; it must run."""
        process = self.seller if side is Role.PROVIDER else self.buyer
        assert process is not None
        return process

    def ledger(self, side: Role) -> SlowLedger:
        ledger: SlowLedger = self.process(side).ledger
        return ledger

    def runs(self, side: Role) -> bool:
        return (self.seller if side is Role.PROVIDER else self.buyer) is not None

    # -- steps -------------------------------------------------

    def start(self, side: Role) -> None:
        """A process starts, with nothing but its ledger."""
        self.note(f"{side}: starts")
        if side in self._backups and self.lies.tell("an old ledger"):
            self.disks[side].close()
            self.disks[side] = self._backups.pop(side)
        seller_type, buyer_type = self._types
        try:
            ledger = SlowLedger(self.disks[side].open())
            if side is Role.PROVIDER:
                self.seller = seller_type(self, ledger)
            else:
                self.buyer = buyer_type(self, ledger)
        except LedgerError:
            if side in self.honest:
                raise
            self.note(f"{side}: cannot read what it wrote, and starts with nothing")
            self.disks[side].wipe()

    async def crash(self, side: Role, durable: int | None = None) -> None:
        """A process ends without a word. Of what waits for the disk, `durable` writes were faster."""
        ledger = self.ledger(side)
        kept = self.random.randint(0, ledger.waiting) if durable is None else durable
        self.note(f"{side}: CRASH; of {ledger.waiting} writes {kept} reached the disk")
        await ledger.die(kept, lambda records: self._store(side, records))
        self._gone(side)
        self.disks[side].crash()

    async def tear(self, side: Role, cut: Cut) -> None:
        """The power fails while the oldest write is under way: of the files with it, `cut` is left."""
        self.note(f"{side}: POWER CUT in a write")
        await self.ledger(side).die(min(1, self.ledger(side).waiting), lambda records: None)
        self._gone(side)
        self.disks[side].crash(cut)

    def recount(self, side: Role) -> None:
        """Tell the observer what a ledger holds that a power cut has been at."""
        for record in self.ledger(side).real.records():
            signers = {one.role: parse_public_key(one.key) for one in record.signatures}
            message = parse_message(record, MESSAGE_TYPES[record.payload_type])
            self.observer.stored(side, Signed(message, record, record.id, signers))

    def _gone(self, side: Role) -> None:
        for link in self.live_links:
            link.cut(self.random)
            link.notice(side)
        if side is Role.PROVIDER:
            self.seller = None
        else:
            self.buyer = None
            self.observer.client_forgets()

    async def commit(self, side: Role, count: int) -> None:
        """The oldest writes of a side become durable."""
        ledger = self.ledger(side)
        self.note(f"{side}: {count} of {ledger.waiting} writes are durable")
        await ledger.commit(count, stored=lambda records: self._store(side, records))
        if side not in self.honest and "an old ledger" in self.lies.repertoire and self.random.random() < 0.05:
            self._keep_backup(side)
        self._look()

    def _keep_backup(self, side: Role) -> None:
        if side in self._backups:
            self._backups[side].close()
        self._backups[side] = self.disks[side].copy()

    async def fail(self, side: Role, *, persisted: bool) -> None:
        """All that a side waits to have written fails."""
        self.note(f"{side}: the ledger FAILS{' (and yet it is on disk)' if persisted else ''}")
        await self.ledger(side).fail(persisted=persisted)
        self._look()

    def _look(self) -> None:
        """Raise what was raised in a callback."""
        if self._raised:
            raise self._raised[0]

    def _store(self, side: Role, records: Sequence[Signed[Any]]) -> None:
        for signed in records:
            self.observer.stored(side, signed)

    def connect(self) -> None:
        """The client dials."""
        assert self.seller is not None and self.buyer is not None
        self.links += 1
        link = Link(self.links, self.buyer.key.public_key, self.plan.in_order)
        self.live_links = [x for x in self.live_links if len(x.noticed) < 2] + [link]
        self.note(f"link {link.number} stands")
        self.seller.accept(link)
        self.buyer.connected(link)

    def notice(self, side: Role, link: Link) -> None:
        """A side learns that the link is gone."""
        self.note(f"{side}: link {link.number} is gone")
        if not self.runs(side):
            link.notice(side)
            return
        self.process(side).lose(link)
        link.notice(side)

    def deliver(self, to: Role, link: Link, stream: int) -> None:
        """The oldest message of a stream arrives."""
        kind, payload = link.take(to, stream)
        self.note(f"{to}: link {link.number} stream {stream}: {kind_name(kind)} arrives")
        self.observer.arrives(to, kind, payload)
        if to is Role.PROVIDER:
            assert self.seller is not None
            self.seller.receive(link, stream, kind, payload)
        elif self.buyer is not None and link is self.buyer.link:
            self.buyer.receive(stream, kind, payload)

    def pass_time(self, ms: int) -> None:
        """Time passes; whatever is due happens."""
        self.elapsed_ms += ms
        self.note(f"{ms} ms pass")
        if self.seller is not None:
            for talk in self.seller.orders():
                talk.tick()
        if self.buyer is not None:
            self.buyer.tick()

    # -- what can happen -------------------------------------------------

    def deliveries(self) -> list[tuple[Role, Link, int]]:
        found = []
        for side in SIDES:
            if self.runs(side):
                for link in self.live_links:
                    found += [(side, link, stream) for stream in link.deliverable(side)]
        return found

    def engines(self) -> list[OrderTalk]:
        return [talk for talk in self.seller.orders() if talk.may_read] if self.seller is not None else []

    def writes(self) -> list[Role]:
        return [side for side in SIDES if self.runs(side) and self.ledger(side).waiting]

    def unnoticed(self) -> list[tuple[Role, Link]]:
        return [(s, x) for x in self.live_links if x.is_cut or x.noticed for s in SIDES if s not in x.noticed]

    @property
    def may_connect(self) -> bool:
        return (
            self.seller is not None
            and self.seller.is_up
            and self.buyer is not None
            and self.buyer.phase is BuyerPhase.DOWN
        )

    @property
    def may_allow(self) -> bool:
        """The owner may let a liar in again."""
        return len(self.honest) < 2 and self.buyer is not None and self.buyer.is_quarantined

    def open_batches(self) -> list[BatchTalk]:
        """Batch orders that requests may still join."""
        batches = self.buyer.batches() if self.buyer is not None else []
        return [one for one in batches if one.is_open and not one.machine.is_closed]

    @property
    def may_order(self) -> bool:
        if not self.requests or self.buyer is None or self.buyer.phase is not BuyerPhase.READY:
            return False
        busy = [one for one in self.buyer.orders.values() if one.is_open]
        return self.plan.parallel or all(one in self.buyer.batches() for one in busy)

    def order(self) -> None:
        """The program asks for its next answer. If the channel has no room, it comes back, or thinks better of it."""
        assert self.buyer is not None
        if self.buyer.books is None:
            self.buyer.open_channel()
        elif self.order_one(self.requests[0]) or self.random.random() < 0.02:
            self.requests.pop(0)
        elif not self.buyer.books.open_orders and self.random.random() < 0.2:
            # What was broken off counts against the client for an hour; its program comes back then.
            self.pass_time(UNSIGNED_COUNTS_MS)

    def order_one(self, request: Request) -> bool:
        """Under an order with others, where requests share theirs and it fits; else under one of its own."""
        assert self.buyer is not None
        is_shared = self.random.random() < self.plan.shared and order_with_others(self.buyer, request)
        return is_shared or self.buyer.order(request)

    async def step(self) -> bool:
        """One thing happens, whatever the dice say. False if nothing can."""
        self.steps += 1
        weather, random = self.plan.weather, self.random
        deliveries, engines, writes, unnoticed = self.deliveries(), self.engines(), self.writes(), self.unnoticed()
        running = [side for side in SIDES if self.runs(side)]
        dead = [side for side in SIDES if not self.runs(side)]
        cuttable = [x for x in self.live_links if not x.is_cut]
        orders = list(self.buyer.orders.values()) if self.buyer is not None else []
        choices: list[tuple[str, float]] = [
            ("deliver", 3.0 * len(deliveries) ** 0.5),
            ("engine", 2.0 * len(engines) ** 0.5),
            ("write", weather.writes * len(writes)),
            ("notice", 1.0 * len(unnoticed)),
            ("start", 1.0 * len(dead)),
            ("connect", 1.0 * self.may_connect),
            ("order", (4.0 if self.open_batches() else 2.0) * self.may_order),
            ("cut", weather.cut * bool(cuttable)),
            ("crash", weather.crash * bool(running)),
            ("fail", weather.fail * bool(writes)),
            ("cancel", weather.cancel * bool(orders)),
            ("close", 0.1 * len(self.open_batches())),
            ("stall", weather.stall * bool(engines)),
            ("time", weather.time),
            ("allow", 0.1 * self.may_allow),
        ]
        goes_on = any(weight for name, weight in choices if name not in ("cut", "crash", "time"))
        names, weights = zip(*choices, strict=True)
        name = random.choices(names, weights)[0]
        self.happened[name] += 1
        match name:
            case "deliver":
                self.deliver(*random.choice(deliveries))
            case "engine":
                random.choice(engines).read_engine()
            case "write":
                side = random.choice(writes)
                await self.commit(side, random.randint(1, self.ledger(side).waiting))
            case "notice":
                self.notice(*random.choice(unnoticed))
            case "start":
                self.start(random.choice(dead))
            case "connect":
                self.connect()
            case "allow":
                self.note("client: the provider is allowed again")
                self.buyer.phase = BuyerPhase.DOWN
            case "order":
                self.order()
            case "cut":
                link = random.choice(cuttable)
                self.note(f"link {link.number} is CUT")
                link.cut(random)
            case "crash":
                await self.crash(random.choice(running))
            case "fail":
                await self.fail(random.choice(writes), persisted=random.random() < 0.5)
            case "cancel":
                talk = random.choice(orders)
                self.note(f"client: order {talk.number} is cancelled")
                talk.cancel()
            case "close":
                random.choice(self.open_batches()).close()
            case "stall":
                talk = random.choice(engines)
                self.note("provider: the client takes no bytes of an order")
                talk.stall()
            case "time":
                self.pass_time(int(random.choice((1, 20, 20, 400, 16_000))))
        return goes_on

    # -- to the end -------------------------------------------------

    async def rest(self) -> None:
        """Let everything happen that can, without any more trouble, until nothing does. With a liar it may never."""
        random = self.random
        patience = _PATIENCE if len(self.honest) == 2 else _PATIENCE_WITH_LIARS
        for _ in range(patience):
            self.steps += 1
            writes, deliveries = self.writes(), self.deliveries()
            if writes:
                for side in writes:
                    await self.commit(side, self.ledger(side).waiting)
            elif unnoticed := self.unnoticed():
                self.notice(*unnoticed[0])
            elif dead := [side for side in SIDES if not self.runs(side)]:
                self.start(dead[0])
            elif deliveries:
                self.deliver(*random.choice(deliveries))
            elif engines := self.engines():
                random.choice(engines).read_engine()
            elif self.may_connect:
                self.connect()
            elif (due_ms := self._due_in_ms()) is not None:
                self.pass_time(due_ms)
            else:
                return
        if len(self.honest) == 2:
            raise Broken(f"the two did not come to rest in {_PATIENCE} steps.")

    def _due_in_ms(self) -> int | None:
        """When the next deadline of the provider's is."""
        if self.seller is None:
            return None
        now_ms = self.clock(Role.PROVIDER)
        due = [t.machine.deadline_ms() for t in self.seller.orders() if t.machine is not None and not t.is_over]
        return min((max(1, d - now_ms + 1) for d in due if d is not None), default=None)

    async def settle(self) -> None:
        """Come to rest, lose the link, and resume on a new one."""
        await self.rest()
        for link in [x for x in self.live_links if not x.is_cut]:
            link.cut(self.random)
        await self.rest()

    async def run(self) -> None:
        """The whole history."""
        for _ in range(self.plan.steps):
            if not await self.step():
                break
        self.clocks_ms = dict.fromkeys(SIDES, 0) if self.are_clocks_apart else self.clocks_ms
        self.lies.are_over = self.random.random() < 0.5
        await self.settle()

    @property
    def are_clocks_apart(self) -> bool:
        """True if the clocks differ by more than both bear."""
        return abs(self.clock(Role.PROVIDER) - self.clock(Role.CLIENT)) > 120_000

    async def close(self) -> None:
        """Let go of the disks."""
        for disk in (*self.disks.values(), *self._backups.values()):
            disk.close()


def kind_name(kind: int) -> str:
    return Kind(kind).name if kind in Kind._value2member_map_ else str(kind)
