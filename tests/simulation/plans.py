"""What a history is made of: the offer, the requests, the weather. All of it follows from the seed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Final

import msgspec

from p2pgrid.proto.messages import ENDPOINTS, BatchTerms, Offer, Tariff, TariffPeriod
from p2pgrid.proto.record import Role, Signed, sign_message
from p2pgrid.proto.request import metered_body
from tests.proto.simulation import MODEL, PROVIDER, make_offer
from tests.simulation.answers import Answer, plain_answer, random_answer

CHAT, COMPLETIONS = ENDPOINTS
CLOCKS_APART_MS: Final = 55_000
"""How far each clock may be off: together less than the two minutes that both sides bear."""

MANY_AT_ONCE: Final = 0.005
"""Share of the histories with up to 64 orders in flight: each takes as long as a hundred others."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request of the client's program, and what the engine will make of it."""

    body: bytes
    endpoint: str
    answer: Answer
    timeout_ms: int = 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """How likely things are, beside one of each of the steps that make an order go on."""

    cut: float = 0.0
    crash: float = 0.0
    fail: float = 0.0
    cancel: float = 0.0
    stall: float = 0.0
    time: float = 0.2
    writes: float = 3.0
    """How soon writes are durable: low means that much waits for the disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that a history goes by, beside the dice of its steps."""

    offer: Signed[Offer]
    requests: tuple[Request, ...]
    weather: Weather = Weather()
    in_order: bool = True
    parallel: bool = False
    """Orders leave as soon as the channel lets them."""
    shared: float = 0.0
    """Share of the requests that join others under a batch order, or open one for others."""
    steps: int = 300
    clocks_ms: dict[Role, int] = field(default_factory=lambda: {Role.PROVIDER: 0, Role.CLIENT: 0})
    drift: dict[Role, float] = field(default_factory=lambda: {Role.PROVIDER: 0.0, Role.CLIENT: 0.0})

    @property
    def window(self) -> int:
        return self.offer.message.terms.window_tokens


def request(random: Random, answer: Answer, *, timeout_ms: int = 60_000, words: int = 3, endpoint: str = "") -> Request:
    """A request for this answer. No two have the same body."""
    endpoint = endpoint or random.choice((CHAT, CHAT, COMPLETIONS))
    text = f"{random.getrandbits(64):016x} " + "Labas! " * words
    program: dict[str, Any] = {"model": MODEL, "max_tokens": answer.max_tokens}
    if answer.n > 1:
        program["n"] = answer.n
    if endpoint == CHAT:
        program["messages"] = [{"role": "user", "content": text}]
    else:
        program["prompt"] = text
    return Request(metered_body(program), endpoint, answer, timeout_ms)


def random_plan(random: Random) -> Plan:
    """Any history."""
    window = random.choice((16, 16, 16, 17, 24, 64))
    shape = random.random()
    shared = random.choice((0.5, 1.0, 1.0)) if random.random() < 0.3 else 0.0
    if shape < MANY_AT_ONCE:
        requests = _many_at_once(random, window)
    else:
        n_orders = random.choice((1, 1, 2, 3, 4, 6)) if shape < 0.9 else random.randint(6, 12)
        n_orders += 2 * (shared > 0)
        requests = [
            request(
                random,
                random_answer(random, window=window, short=n_orders > 4 or random.random() < 0.3),
                timeout_ms=random.choice((60_000, 60_000, 60_000, 500)),
                words=random.choice((3, 3, 20, 6000)) if random.random() < 0.1 else 3,
            )
            for _ in range(n_orders)
        ]
    return Plan(
        offer=random_offer(random, window),
        requests=tuple(requests),
        weather=random_weather(random),
        in_order=random.random() < 0.7,
        parallel=random.random() < 0.6 or shape < MANY_AT_ONCE,
        shared=shared,
        steps=random.choice((60, 150, 300)) if shape >= MANY_AT_ONCE else 2000,
        clocks_ms={
            side: random.choice((0, random.randint(-CLOCKS_APART_MS, CLOCKS_APART_MS)))
            for side in (Role.PROVIDER, Role.CLIENT)
        },
        drift={side: random.choice((0.0, random.uniform(-0.002, 0.002))) for side in (Role.PROVIDER, Role.CLIENT)},
    )


def plan_for_a_liar(random: Random) -> Plan:
    """A history with something to lie about: answers of a few windows, and less of the weather."""
    plan = random_plan(random)
    window = plan.window
    requests = [
        request(
            random,
            plain_answer(
                random.randint(1, 60), [random.choice((1, 1, 2))] * random.randint(1, random.choice((8, 3 * window)))
            )
            if random.random() < 0.8
            else random_answer(random, window=window, short=True),
        )
        for _ in range(random.choice((2, 3, 4, 6, 10)))
    ]
    weather = Weather(
        cut=random.choice((0.0, 0.02, 0.1)),
        crash=random.choice((0.0, 0.0, 0.02, 0.1)),
        fail=random.choice((0.0, 0.0, 0.0, 0.05)),
        cancel=random.choice((0.0, 0.0, 0.05)),
        time=random.choice((0.05, 0.3)),
        writes=random.choice((3.0, 30.0)),
    )
    return replace(plan, requests=tuple(requests), weather=weather, steps=random.choice((150, 300, 500)))


def _many_at_once(random: Random, window: int) -> list[Request]:
    """A few long answers, which earn the client its credit, then up to 64 short ones at once."""
    long = [request(random, plain_answer(9, [5] * (4 * window))) for _ in range(random.randint(2, 4))]
    return long + [
        request(random, plain_answer(random.randint(1, 20), [1] * random.randint(1, 6), max_tokens=20))
        for _ in range(random.randint(16, 64))
    ]


def random_offer(random: Random, window: int) -> Signed[Offer]:
    """An offer on any terms, with or without a price schedule."""
    base = make_offer(
        window=window,
        max_open_orders=random.choice((1, 2, 8, 64, 64)),
        credit_pico=random.choice((10**13, 10**13, 10**13, 4 * 10**9)),
        batch=BatchTerms(batch_requests=random.choice((2, 3, 4, 16)), batch_ms=random.choice((0, 100, 100))),
    ).message
    schedule = [
        TariffPeriod(
            weekdays=random.randint(1, 127),
            from_minute=(start := random.randint(0, 1438)),
            until_minute=random.randint(start + 1, 1440),
            tariff=random_tariff(random),
        )
        for _ in range(random.choice((0, 0, 1, 3)))
    ]
    entry = msgspec.structs.replace(base.models[0], tariff=random_tariff(random), schedule=tuple(schedule))
    # The validity must outlast the clock steps of a history and no more.
    changed = msgspec.structs.replace(
        base,
        models=(entry,),
        valid_from_ms=base.valid_from_ms - 600_000,
        valid_until_ms=base.valid_until_ms + 86_400_000,
        utc_offset_minutes=random.choice((0, 120, -300)),
    )
    return sign_message(changed, Role.PROVIDER, PROVIDER)


def random_tariff(random: Random) -> Tariff:
    """Dear or cheap input, cached input at most as dear, now and then for nothing."""
    input_upm = random.choice((0, 50_000, 200_000, 900_000))
    return Tariff(
        input_upm=input_upm,
        cached_input_upm=random.choice((0, input_upm // 4, input_upm)),
        output_upm=random.choice((1, 600_000, 600_000, 2_000_000, 0)),
    )


def random_weather(random: Random) -> Weather:
    """Mostly one trouble at a time, sometimes none and sometimes all."""

    def chance(often: float, share: float) -> float:
        return often if random.random() < share else 0.0

    return Weather(
        cut=chance(random.choice((0.02, 0.1, 0.5)), 0.5),
        crash=chance(random.choice((0.02, 0.1, 0.4)), 0.4),
        fail=chance(random.choice((0.02, 0.1, 0.3)), 0.25),
        cancel=chance(random.choice((0.05, 0.5)), 0.3),
        stall=chance(0.05, 0.1),
        time=random.choice((0.05, 0.3, 1.0)),
        writes=random.choice((0.5, 3.0, 3.0, 30.0)),
    )


def describe(plan: Plan) -> str:
    """A plan for people, on one line."""
    terms = plan.offer.message.terms
    weather = {name: getattr(plan.weather, name) for name in Weather.__slots__}
    return (
        f"W = {terms.window_tokens}, at most {terms.max_open_orders} open, "
        f"{len(plan.requests)} requests ({', '.join(r.answer.kind for r in plan.requests[:8])}), "
        f"{json.dumps(weather)}, {'in order' if plan.in_order else 'any order'}, clocks {sorted(plan.clocks_ms.items())}"  # noqa: E501
    )
