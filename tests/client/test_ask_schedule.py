"""Whom a client asks next, in markets of thousands, by a clock that the tests move."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.client.ask_schedule import (
    ASKS_PER_S,
    FIRST_ASKS,
    MOST_PREFERRED,
    MOST_WISHES,
    OLDEST_SHARE,
    WANTED_MS,
    AskSchedule,
    Due,
    Wanted,
)
from p2pgrid.client.presence import ASK_INTERVAL_MS, LIVE_MS, UNSEEN, Presence
from tests.factories import NOW_MS

TICK_MS = 500
WARM_MS = ASK_INTERVAL_MS
"""By then everybody was asked who can be."""
OTHERS_PER_S = ASKS_PER_S * OLDEST_SHARE


@dataclass
class Simulated:
    """A market, and a client that asks as its schedule says. An answer, or that there is none, comes a tick later."""

    models: list[str]
    """By provider, what it sells."""
    schedule: AskSchedule = field(default_factory=AskSchedule)
    dead: set[str] = field(default_factory=set)
    now_ms: int = NOW_MS
    asked: Counter[str] = field(default_factory=Counter)
    presence: dict[str, Presence] = field(default_factory=dict)
    under_way: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.presence = {f"{n}": UNSEEN for n in range(len(self.models))}

    def due(self) -> Iterator[Due]:
        for peer_id, presence in self.presence.items():
            if presence.ask_ms() <= self.now_ms:
                models = (self.models[int(peer_id)],)
                yield Due(peer_id, presence.ask_ms(), presence.failures > 0, models, "LT")

    def run(self, for_ms: int, then: Callable[[], None] = lambda: None) -> None:
        """`then` is called after every tick."""
        for _ in range(for_ms // TICK_MS):
            self.now_ms += TICK_MS
            for peer_id in self.under_way:
                known = self.presence[peer_id]
                self.presence[peer_id] = (known.failed if peer_id in self.dead else known.confirmed)(self.now_ms)
            self.under_way = self.schedule.choose(self.due(), now_ms=self.now_ms, now_s=self.now_ms / 1000)
            self.asked.update(self.under_way)
            then()

    def sellers(self, model: str) -> list[str]:
        return [f"{n}" for n, sold in enumerate(self.models) if sold == model]

    def live(self) -> set[str]:
        return {peer_id for peer_id, presence in self.presence.items() if presence.is_live(self.now_ms)}


def test_in_a_small_market_everybody_is_asked_twice_a_minute_whether_wanted_or_not() -> None:
    market = Simulated(["tiny"] * 100)
    market.run(WARM_MS)
    market.asked.clear()

    def all_are_live() -> None:
        oldest_ms = min(presence.confirmed_ms for presence in market.presence.values())
        assert market.now_ms - oldest_ms <= ASK_INTERVAL_MS + 2 * TICK_MS

    market.run(300_000, all_are_live)
    assert set(market.asked.values()) <= {9, 10}


def test_what_is_bought_stays_live_in_a_market_of_thousands_and_the_others_take_turns() -> None:
    market = Simulated([*["bought"] * 300, *["other"] * 2_700])
    bought = set(market.sellers("bought"))

    def buy() -> None:
        market.schedule.wanted.note("bought", (), market.now_ms)

    market.run(WARM_MS, buy)
    market.asked.clear()

    def bought_is_live() -> None:
        buy()
        assert bought <= market.live()

    market.run(120_000, bought_is_live)
    assert market.asked.total() <= 120 * ASKS_PER_S + 2 * FIRST_ASKS
    others = [market.asked[peer_id] for peer_id in market.sellers("other")]
    assert max(others) <= 1 and sum(others) >= 0.9 * 120 * OTHERS_PER_S, "nobody twice before everybody was asked"


def test_where_nobody_wants_anything_a_large_market_costs_little() -> None:
    market = Simulated(["other"] * 3_000)
    market.run(120_000)
    assert 0.95 * 120 * OTHERS_PER_S <= market.asked.total() <= 120 * OTHERS_PER_S + FIRST_ASKS
    assert max(market.asked.values()) == 1


def test_who_looks_sees_hundreds_of_offers_confirmed_within_a_minute() -> None:
    """More than that is more than a client allows itself: the rest is shown with its age, and not as live."""
    market = Simulated(["any"] * 3_000)
    market.schedule.wanted.note(None, (), market.now_ms)
    market.run(60_000)
    assert len(market.live()) >= 60 * ASKS_PER_S


@pytest.mark.parametrize("is_wanted", [True, False])
def test_no_provider_that_is_gone_is_live_a_minute_later(is_wanted: bool) -> None:
    market = Simulated(["any"] * 2_000)

    def look() -> None:
        if is_wanted:
            market.schedule.wanted.note("any", (), market.now_ms)

    market.run(120_000, look)
    market.dead = {f"{n}" for n in range(0, 2_000, 3)}
    assert market.dead & market.live()
    market.run(LIVE_MS + TICK_MS, look)
    assert not market.dead & market.live()
    market.run(30_000, lambda: pytest.fail("one is back") if market.dead & market.live() else None)


def test_a_crowd_that_never_answers_takes_no_more_than_a_quarter_of_the_turns() -> None:
    market = Simulated(["tiny"] * 3_000)
    well = {f"{n}" for n in range(100)}
    market.dead = market.presence.keys() - well
    for peer_id in market.dead:
        market.presence[peer_id] = UNSEEN.failed(0)
    market.run(WARM_MS)
    market.asked.clear()

    def well_are_live() -> None:
        assert market.live() == well

    market.run(120_000, well_are_live)
    retried = sum(n for peer_id, n in market.asked.items() if peer_id in market.dead)
    assert 0.2 * market.asked.total() < retried, "and is asked all the same"


def test_those_that_a_request_would_go_to_come_first_of_all() -> None:
    wanted = Wanted()
    schedule = AskSchedule(first=2)
    schedule.wanted.note("m", (), NOW_MS)
    schedule.wanted.note(None, ("DE",), NOW_MS)
    schedule.wanted.prefer(["preferred"], NOW_MS)
    due = [
        Due("unwanted", 1, False, ("n",), "LT"),
        Due("looked at", 2, False, ("n",), "DE"),
        Due("later", 4, False, ("m",), "LT"),
        Due("sooner", 3, False, ("m",), "LT"),
        Due("preferred", 5, False, ("m",), "LT"),
    ]
    assert schedule.choose(due, now_ms=NOW_MS, now_s=0) == ["preferred", "sooner", "unwanted", "looked at"]
    assert schedule.choose(due, now_ms=NOW_MS, now_s=0) == [], "that was all for now"
    assert [wanted.rank(one) for one in due] == [3] * 5


@pytest.mark.parametrize(
    ("wish", "ranks"),
    [
        (("m", ()), [1, 1, 3, 3]),
        (("m", ("LT",)), [1, 3, 3, 3]),
        (("m", ("LT", "DE")), [1, 1, 3, 3]),
        ((None, ()), [2, 2, 2, 2]),
        ((None, ("DE",)), [3, 2, 3, 3]),
    ],
)
def test_who_is_wanted_and_for_how_long(wish: tuple[str | None, tuple[str, ...]], ranks: list[int]) -> None:
    wanted, (model, countries) = Wanted(), wish
    due = [
        Due("a", 0, False, ("k", "m"), "LT"),
        Due("b", 0, False, ("m",), "DE"),
        Due("c", 0, False, ("n",), "LT"),
        Due("of whom nothing is known", 0),
    ]
    wanted.note(model, countries, NOW_MS)
    wanted.expire(NOW_MS + WANTED_MS - 1)
    assert [wanted.rank(one) for one in due] == ranks
    wanted.expire(NOW_MS + WANTED_MS)
    assert [wanted.rank(one) for one in due] == [3] * 4


def test_programs_cannot_fill_memory_with_wishes() -> None:
    wanted = Wanted()
    wanted.note("first", (), NOW_MS)
    for n in range(MOST_WISHES):
        wanted.note(f"{n}", (), NOW_MS)
    wanted.prefer((f"{n}" for n in range(2 * MOST_PREFERRED)), NOW_MS)
    assert (len(wanted._wishes), len(wanted._preferred)) == (MOST_WISHES, MOST_PREFERRED)
    assert wanted.rank(Due("x", 0, False, ("first",))) == 3, "the oldest went"


providers = st.lists(
    st.builds(Due, st.uuids().map(str), st.integers(0, 9), st.booleans(), st.sampled_from([(), ("m",), ("n",)])),
    max_size=40,
    unique_by=lambda one: one.peer_id,
)


@given(st.lists(st.tuples(providers, st.floats(0, 3)), max_size=8), st.integers(1, 30), st.booleans())
def test_nobody_is_asked_twice_at_once_nor_more_than_the_rates_allow(
    turns: list[tuple[list[Due], float]], per_s: int, is_wanted: bool
) -> None:
    schedule, total, now_s = AskSchedule(per_s, first=5), 0, 0.0
    if is_wanted:
        schedule.wanted.note("m", (), NOW_MS)
    for due, pause_s in turns:
        now_s += pause_s
        chosen = schedule.choose(due, now_ms=NOW_MS, now_s=now_s)
        assert len(set(chosen)) == len(chosen) and set(chosen) <= {one.peer_id for one in due}
        total += len(chosen)
        assert total <= 10 + now_s * per_s + 1e-6
        by_age = {one.peer_id: one for one in due}
        well = [by_age[one].since_ms for one in chosen if not by_age[one].is_failing] if not is_wanted else []
        assert all(earlier <= later for earlier, later in itertools.pairwise(well)), "the most overdue first"
