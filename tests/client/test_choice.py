"""Choosing is pure: tables."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from p2pgrid.client.choice import Choice, Standing, choose, expected_cost_pico
from p2pgrid.client.no_choice import refusal_of
from p2pgrid.client.openai_api import offer_object
from p2pgrid.client.presence import UNSEEN, Presence
from p2pgrid.client.wishes import Wishes
from p2pgrid.errors import Refused
from p2pgrid.proto.messages import ENDPOINTS, DataTerms, ModelOffer, Offer, Tariff, TariffPeriod
from p2pgrid.proto.record import Signed
from p2pgrid.proto.request import parse_request
from p2pgrid.proto.wire.offers import Capacity, ModelCapacity
from tests.factories import NOW_MS, make_offer, secret_key

CHAT = ENDPOINTS[0]


def peer(name: str) -> str:
    return secret_key(name).public_key.peer_id


def offer(
    name: str,
    *,
    price: int = 100,
    country: str = "LT",
    model: str = "m",
    context: int = 4096,
    endpoints: tuple[str, ...] = ENDPOINTS,
    currency: str = "EUR",
) -> Signed[Offer]:
    key = secret_key(name)
    tariff = Tariff(input_upm=price, cached_input_upm=price, output_upm=price)
    entry = ModelOffer(model=model, tariff=tariff, context_tokens=context, concurrency=1, endpoints=endpoints)
    return make_offer(key, models=(entry,), data_terms=DataTerms(country=country), currency=currency)


def pick(
    *offers: Signed[Offer],
    wishes: Wishes | None = None,
    standings: dict[str, Standing] | None = None,
    now_ms: int = NOW_MS,
    body: bytes = b'{"model": "m", "max_tokens": 100}',
    body_bytes: int | None = None,
    presences: dict[str, Presence] | None = None,
) -> Choice:
    return choose(
        offers,
        fields=parse_request(CHAT, body),
        endpoint=CHAT,
        body_bytes=body_bytes or len(body),
        wishes=wishes or Wishes(),
        standings={peer(name): standing for name, standing in (standings or {}).items()},
        now_ms=now_ms,
        presences={peer(name): presence for name, presence in (presences or {}).items()},
    )


def names(choice: Choice) -> list[str]:
    known = {peer(name): name for name in ("a", "b", "c")}
    return [known[one.peer_id] for one in choice.candidates]


LATE = Standing(first_token_ms=900.0)
QUICK = Standing(first_token_ms=20.0)
FAILED = Standing(failures=1, failed_ms=NOW_MS - 500)
LONG_AGO = Standing(failures=1, failed_ms=NOW_MS - 1_500)
OFTEN = Standing(failures=4, failed_ms=NOW_MS - 1_500)


@pytest.mark.parametrize(
    ("prices", "standings", "expected"),
    [
        ({"a": 3, "b": 2, "c": 1}, {}, ["c", "b", "a"]),
        ({"a": 1, "b": 1}, {"a": LATE, "b": QUICK}, ["b", "a"]),
        ({"a": 1, "b": 2}, {"a": LATE, "b": QUICK}, ["a", "b"]),
        ({"a": 1, "b": 1}, {"a": QUICK}, ["b", "a"]),
        ({"a": 1, "b": 2}, {"a": FAILED}, ["b", "a"]),
        ({"a": 1, "b": 2}, {"a": LONG_AGO}, ["a", "b"]),
        ({"a": 1, "b": 2, "c": 3}, {"a": OFTEN, "b": FAILED}, ["c", "b", "a"]),
        ({"a": 1, "b": 2}, {"a": Standing().quarantined("wrong-count")}, ["b"]),
    ],
)
def test_the_order(prices: dict[str, int], standings: dict[str, Standing], expected: list[str]) -> None:
    offers = [offer(name, price=price) for name, price in prices.items()]
    assert names(pick(*offers, standings=standings)) == expected
    assert names(pick(*reversed(offers), standings=standings)) == expected


def test_equal_offers_have_one_order() -> None:
    offers = [offer("a"), offer("b"), offer("c")]
    assert names(pick(*offers)) == names(pick(*reversed(offers)))


@pytest.mark.parametrize(
    ("changes", "wishes", "code", "words"),
    [
        ({"model": "x"}, Wishes(), "unknown-model", "On sale: x"),
        ({"currency": "USD"}, Wishes(), "no-provider", "pays in EUR"),
        ({"endpoints": ENDPOINTS[1:]}, Wishes(), "unknown-endpoint", ENDPOINTS[1]),
        ({}, Wishes(countries=frozenset({"IT"})), "no-provider", "It is sold in: LT"),
        ({}, Wishes(provider="12D3KooWx"), "no-provider", "12D3KooWx"),
        ({}, Wishes(min_context_tokens=4097), "no-provider", "There is: 4096 tokens"),
        ({"price": 101}, Wishes(max_output_upm=100), "no-provider", "in/out: 0.000101/0.000101"),
        ({"price": 101}, Wishes(max_input_upm=100), "no-provider", "at such prices"),
        ({}, Wishes(only_free=True), "busy", "it does not say"),
        ({"context": 64}, Wishes(), "context", "64 tokens"),
        ({"price": 10**6}, Wishes(max_cost_pico=10), "over-budget", "are allowed"),
    ],
)
def test_why_nobody_serves(changes: dict[str, Any], wishes: Wishes, code: str, words: str) -> None:
    choice = pick(offer("a", **changes), wishes=wishes)
    assert not choice.candidates
    refusal = refusal_of(choice, "m", CHAT, wishes)
    assert refusal.code == code and words in str(refusal)


def presence(*, free: int | None = None, failures: int = 0, age_ms: int = 0) -> Presence:
    """Of one that has confirmed its offer."""
    one = UNSEEN.confirmed(NOW_MS - age_ms)
    for _ in range(failures):
        one = one.failed(NOW_MS)
    models = (ModelCapacity(model="m", free=free or 0),)
    return one if free is None else one.told(Capacity(sequence=1, models=models), NOW_MS - age_ms)


@pytest.mark.parametrize(
    ("presences", "order"),
    [
        ({}, ["a", "b", "c"]),
        ({"b": presence()}, ["b", "a", "c"]),
        ({"a": presence(), "b": presence(failures=1), "c": presence()}, ["a", "c", "b"]),
        ({"a": presence(free=0), "b": presence(free=1), "c": presence()}, ["b", "c", "a"]),
        ({"a": presence(free=0), "b": presence(free=1), "c": presence(free=99)}, ["b", "c", "a"]),
        ({"a": presence(free=0, age_ms=40_000), "b": presence(), "c": presence()}, ["a", "b", "c"]),
    ],
)
def test_who_is_there_comes_first_and_who_says_that_it_is_full_last_of_equals(
    presences: dict[str, Presence], order: list[str]
) -> None:
    alike = sorted((offer(name) for name in "abc"), key=lambda one: peer_of(one))
    renamed = dict(zip("abc", alike, strict=True))  # by peer id, which decides last
    by_peer = {peer_of(renamed[name]): one for name, one in presences.items()}
    choice = choose(
        alike,
        fields=parse_request(CHAT, b'{"model": "m", "max_tokens": 100}'),
        endpoint=CHAT,
        body_bytes=40,
        wishes=Wishes(),
        standings={},
        now_ms=NOW_MS,
        presences=by_peer,
    )
    names_of = {peer_of(one): name for name, one in renamed.items()}
    assert [names_of[one.peer_id] for one in choice.candidates] == order


def peer_of(one: Signed[Offer]) -> str:
    return next(iter(one.signers.values())).peer_id


def test_a_word_on_what_is_free_buys_no_place_before_a_cheaper_one() -> None:
    everybody = {"a": presence(free=0), "b": presence(free=99)}
    assert names(pick(offer("a", price=100), offer("b", price=101), presences=everybody)) == ["a", "b"]


def test_wishes_that_are_met() -> None:
    wishes = Wishes(min_context_tokens=4096, max_input_upm=100, max_output_upm=100, only_free=True)
    everybody = {"a": presence(free=1), "b": presence(free=0), "c": presence()}
    assert names(pick(offer("a"), offer("b"), offer("c"), wishes=wishes, presences=everybody)) == ["a"]
    assert pick(offer("b"), wishes=wishes, presences=everybody).rejected == {"full": ("it is full",)}


def test_the_refusal_names_the_last_test_that_anyone_reached() -> None:
    wishes = Wishes(countries=frozenset({"LT"}), max_cost_pico=10)
    choice = pick(offer("a", country="IT"), offer("b", price=10**6), offer("c", model="x"), wishes=wishes)
    assert refusal_of(choice, "m", CHAT, wishes).code == "over-budget"
    assert choice.models == ("m", "x")


def test_nobody_at_all() -> None:
    assert refusal_of(pick(), "m", CHAT, Wishes()).code == "no-provider"


def test_a_body_that_fits_no_context() -> None:
    assert not pick(offer("a", context=100), body_bytes=100_000).candidates
    assert pick(offer("a", context=100), body_bytes=3_000, body=b'{"model": "m"}').candidates


def test_the_price_of_this_moment_counts() -> None:
    """`a` is dearer by day and cheaper by night; the night begins at NOW_MS."""
    minute = NOW_MS // 60_000 % 1440
    night = TariffPeriod(
        weekdays=127,
        from_minute=minute,
        until_minute=min(minute + 60, 1440),
        tariff=Tariff(input_upm=1, cached_input_upm=1, output_upm=1),
    )
    entry = msgspec.structs.replace(offer("a", price=300).message.models[0], schedule=(night,))
    by_the_hour, always = make_offer(secret_key("a"), models=(entry,)), offer("b", price=200)
    assert names(pick(by_the_hour, always)) == ["a", "b"]
    assert names(pick(by_the_hour, always, now_ms=NOW_MS - 60_000)) == ["b", "a"]
    budget = Wishes(max_cost_pico=10**5)
    assert names(pick(by_the_hour, always, wishes=budget)) == ["a"]
    refusal = refusal_of(pick(by_the_hour, always, wishes=budget, now_ms=NOW_MS - 60_000), "m", CHAT, budget)
    assert refusal.code == "over-budget"
    chosen = pick(by_the_hour).candidates[0]
    assert chosen.tariff == night.tariff
    shown = offer_object(chosen, NOW_MS)
    assert shown["prices"]["output_eur"] == "0.000001" and shown["next_prices"]["output_eur"] == "0.0003"
    assert shown["schedule"]["periods"][0]["days"] == ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
    assert shown["price_changes_ms"] == NOW_MS // 60_000 * 60_000 + (night.until_minute - minute) * 60_000


def test_a_price_beyond_all_amounts_spoils_no_other_offer() -> None:
    absurd = offer("a", price=10**12, context=8_000_000)
    body = b'{"model": "m", "max_tokens": 1000000, "n": 100}'
    choice = pick(absurd, offer("b", context=8_000_000), body=body, wishes=Wishes(max_cost_pico=10**18))
    assert names(choice) == ["b"]


def test_backoff_doubles_to_five_minutes() -> None:
    standing = Standing()
    pauses = []
    for _ in range(12):
        standing = standing.failed(0)
        pauses.append(standing.retry_ms())
    assert pauses[:4] == [1000, 2000, 4000, 8000] and pauses[-1] == 300_000
    assert standing.answered(50.0) == Standing(first_token_ms=50.0)


def test_latency_is_a_running_mean() -> None:
    standing = Standing().answered(100.0).answered(200.0)
    assert standing.first_token_ms == pytest.approx(130.0)


@pytest.mark.parametrize(
    ("own", "owner", "expected"),
    [
        (Wishes(), Wishes(), Wishes()),
        (Wishes(), Wishes(countries=frozenset({"LT"})), Wishes(countries=frozenset({"LT"}))),
        (
            Wishes(countries=frozenset({"LT", "IT"})),
            Wishes(countries=frozenset({"LT"})),
            Wishes(countries=frozenset({"LT"})),
        ),
        (Wishes(max_cost_pico=9), Wishes(max_cost_pico=5), Wishes(max_cost_pico=5)),
        (Wishes(max_cost_pico=0), Wishes(max_cost_pico=5), Wishes(max_cost_pico=0)),
    ],
)
def test_a_request_narrows_the_owners_wishes(own: Wishes, owner: Wishes, expected: Wishes) -> None:
    assert own.within(owner) == expected


def test_a_request_cannot_widen_them() -> None:
    with pytest.raises(Refused, match="buys only in LT"):
        Wishes(countries=frozenset({"IT"})).within(Wishes(countries=frozenset({"LT"})))


def test_the_expected_cost_goes_by_bytes_and_max_tokens() -> None:
    entry = offer("a", price=2).message.models[0]
    fields = parse_request(CHAT, b'{"model": "m", "max_tokens": 100, "n": 2}')
    assert expected_cost_pico(entry, entry.tariff, fields, 400) == 2 * (101 + 200)
