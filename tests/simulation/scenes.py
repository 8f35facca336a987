"""Histories that go the same way each time, to be broken at one write after another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

import msgspec

from p2pgrid.proto.books import UNSIGNED_COUNTS_MS
from p2pgrid.proto.messages import BatchTerms, Offer, Tariff
from p2pgrid.proto.record import Role, Signed
from tests.proto.simulation import make_offer
from tests.simulation.answers import Answer, plain_answer
from tests.simulation.buyer import Buyer
from tests.simulation.checks import check_agreement, check_audit, check_chain, check_honest
from tests.simulation.ledgers import Disk
from tests.simulation.lies import Lies
from tests.simulation.lying_batches import LyingSeller
from tests.simulation.observer import Broken
from tests.simulation.plans import CHAT, Plan, Weather, request
from tests.simulation.seller import Seller
from tests.simulation.world import SIDES, World

WINDOW: Final = 16
_PATIENCE: Final = 4_000

Event = tuple[Callable[[World], bool], Callable[[World], None]]
"""When, and what."""
Fault = Callable[[World, Role], Awaitable[None]]
"""What happens in place of a write of a side's."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A history by its name: what each answer has in tokens, and what happens meanwhile."""

    name: str
    answers: Sequence[int]
    events: Sequence[Event] = ()
    parallel: bool = False
    shared: bool = False
    """All requests go under one batch order; the second's answer breaks off."""
    lie: str = ""
    """What the provider says once that is not so."""


class _Once(Lies):
    """One lie, told at its second chance."""

    def __init__(self, name: str) -> None:
        super().__init__(Random(0), ())
        self._name = name
        self._chances = 0

    def tell(self, name: str) -> bool:
        self._chances += name == self._name
        told = name == self._name and self._chances == 2
        self.told[name] += told
        return told


def got(tokens: int) -> Callable[[World], bool]:
    """True once so many tokens have reached the client, of all answers."""
    return lambda world: sum(s.got.output_tokens for s in world.observer.sales.values()) >= tokens


def cancel(world: World) -> None:
    """The program wants no more."""
    assert world.buyer is not None
    for talk in list(world.buyer.orders.values()):
        talk.cancel()


def cut(world: World) -> None:
    """The link breaks."""
    for link in world.live_links:
        if not link.is_cut:
            link.cut(world.random)


SCENES: Final = (
    Scene("a stream of several windows", (70,)),
    Scene("two orders at once", (60, 40, 40), parallel=True),
    Scene("a cancelled order", (60, 60), ((got(70), cancel),)),
    Scene("a cut and a resume", (60, 60), ((got(75), cut),)),
    Scene("a batch order, in which one request fails, and a cut", (24, 16, 20, 10, 10), ((got(38), cut),), shared=True),
    Scene("a disputed receipt", (60, 20, 30), lie="receipt: more money"),
)


def cheap_prompts() -> Signed[Offer]:
    """An offer under which one short answer covers the risk of a few others."""
    entry = make_offer().message.models[0]
    tariff = Tariff(input_upm=1_000, cached_input_upm=1_000, output_upm=600_000)
    batch = BatchTerms(batch_requests=3, batch_ms=100)
    return make_offer(window=WINDOW, models=(msgspec.structs.replace(entry, tariff=tariff),), batch=batch)


def answers_of(scene: Scene) -> list[Answer]:
    """What the engine makes of each request."""
    answers = [plain_answer(12, [2] * (n // 2), max_tokens=200) for n in scene.answers]
    if scene.shared:
        answers[1].engine.fails = True
        for _ in range(3):
            answers[1].engine.pieces.pop()
    return answers


def make_world(scene: Scene, disks: dict[Role, Disk]) -> World:
    """The scene before anything has happened."""
    random = Random(scene.name)
    plan = Plan(
        offer=cheap_prompts(),
        requests=tuple(request(random, answer, endpoint=CHAT) for answer in answers_of(scene)),
        weather=Weather(),
        parallel=scene.parallel,
        shared=float(scene.shared),
    )
    return World(
        plan,
        random,
        disks,
        honest=frozenset({Role.CLIENT}) if scene.lie else frozenset(SIDES),
        lies=_Once(scene.lie) if scene.lie else None,
        seller_type=LyingSeller if scene.lie else Seller,
        buyer_type=Buyer,
    )


async def play(
    world: World, scene: Scene, broken: tuple[Role, int] | None = None, fault: Fault | None = None
) -> Counter[Role]:
    """The whole scene, one write after another, and the resume at its end. How many writes each side made.

    In place of the write `broken` (a side, and a number from 1) `fault` happens.
    """
    writes: Counter[Role] = Counter()
    events = list(scene.events)
    for _ in range(_PATIENCE):
        world.steps += 1
        if events and events[0][0](world):
            events.pop(0)[1](world)
        elif waiting := world.writes():
            side = waiting[-1]
            writes[side] += 1
            if fault is not None and (side, writes[side]) == broken:
                await fault(world, side)
            else:
                await world.commit(side, 1)
        elif not await _go_on(world):
            break
    else:
        raise Broken(f"the scene did not end in {_PATIENCE} steps.")
    await world.settle()
    return writes


async def _go_on(world: World) -> bool:
    """The next thing happens; False if nothing is left to happen."""
    dead = [side for side in SIDES if not world.runs(side)]
    if unnoticed := world.unnoticed():
        world.notice(*unnoticed[0])
    elif dead:
        world.start(dead[0])
        world.recount(dead[0])
    elif deliveries := world.deliveries():
        world.deliver(*deliveries[0])
    elif world.open_batches() and world.may_order and _order(world):
        pass
    elif engines := world.engines():
        engines[0].read_engine()
    elif world.may_connect:
        world.connect()
    elif world.may_order and _order(world):
        pass
    elif (due_ms := world._due_in_ms()) is not None:
        world.pass_time(due_ms)
    elif world.requests:
        world.pass_time(UNSIGNED_COUNTS_MS)
    else:
        return False
    return True


def _order(world: World) -> bool:
    assert world.buyer is not None
    before = len(world.requests), world.buyer.phase
    if world.buyer.books is None:
        world.buyer.open_channel()
    elif world.order_one(world.requests[0]):
        world.requests.pop(0)
    return (len(world.requests), world.buyer.phase) != before


def check_scene(world: World, scene: Scene) -> None:
    """Every promise held, whatever was broken."""
    if not scene.lie:
        check_agreement(world)
        check_audit(world, *SIDES)
        for side in SIDES:
            check_audit(world, side)
        return
    check_honest(world, Role.CLIENT)
    client, provider = world.ledger(Role.CLIENT).real, world.ledger(Role.PROVIDER).real
    for channel in client.channels():
        for side, ledger in ((Role.CLIENT, client), (Role.PROVIDER, provider)):
            check_chain(ledger, channel, side)
        ours, theirs = (
            (head.last_receipt_id, head.total_pico, head.countersigned)
            for head in (ledger.head(channel.message.channel) for ledger in (client, provider))
        )
        if ours != theirs:
            raise Broken(f"the chains differ: the client has {ours}, the provider {theirs}.")
        if client.open_orders(channel.message.channel) or provider.open_orders(channel.message.channel):
            raise Broken("an order is still open.")
