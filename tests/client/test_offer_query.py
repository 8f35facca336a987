"""Which offers are listed, in what order, and how that is asked for: tables."""

from __future__ import annotations

from typing import Any

import pytest

from p2pgrid.client.choice import Candidate, candidate_of
from p2pgrid.client.offer_query import OfferQuery, Sort, parse_query
from p2pgrid.client.presence import UNSEEN
from p2pgrid.client.wishes import Wishes, parse_wishes
from p2pgrid.errors import Refused
from p2pgrid.proto.messages import ENDPOINTS, DataTerms, ModelOffer, Tariff
from p2pgrid.proto.wire.offers import Capacity, ModelCapacity
from tests.factories import NOW_MS, make_offer, secret_key


def listed(
    name: str, model: str, country: str, prices: tuple[int, int], context: int, free: int | None, seen_s: int
) -> Candidate:
    tariff = Tariff(input_upm=prices[0], cached_input_upm=0, output_upm=prices[1])
    entry = ModelOffer(model=model, tariff=tariff, context_tokens=context, concurrency=9, endpoints=ENDPOINTS)
    offer = make_offer(secret_key(name), models=(entry,), data_terms=DataTerms(country=country))
    presence = UNSEEN.confirmed(NOW_MS - seen_s * 1000)
    if free is not None:
        told = Capacity(sequence=1, models=(ModelCapacity(model=model, free=free),))
        presence = presence.told(told, NOW_MS - seen_s * 1000)
    return candidate_of(offer, entry, NOW_MS, presence=presence)


MARKET = {
    "a": listed("a", "big", "LT", (200_000, 800_000), 32_768, 3, 1),
    "b": listed("b", "big", "IT", (250_000, 700_000), 8_192, 0, 2),
    "c": listed("c", "big", "DE", (100_000, 900_000), 16_384, None, 3),
    "d": listed("d", "small", "LT", (10_000, 20_000), 2_048, 9, 40),
}
NAMES = {one.peer_id: name for name, one in MARKET.items()}


def found(query: OfferQuery) -> str:
    return "".join(NAMES[one.peer_id] for one in query.select(MARKET.values(), NOW_MS))


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/v1/models", "dbac"),
        ("/v1/models?", "dbac"),
        ("/v1/models?limit=20&after=x", "dbac"),
        ("/v1/models?model=big", "bac"),
        ("/v1/models?model=none", ""),
        ("/v1/models?country=lt,it", "dba"),
        ("/v1/models?country=LT&model=big", "a"),
        ("/v1/models?max_price_output=0.8", "dba"),
        ("/v1/models?max_price_output=0.799999", "db"),
        ("/v1/models?max_price_input=0.2&max_price_output=0.9", "dac"),
        ("/v1/models?min_context=16384", "ac"),
        ("/v1/models?min_context=16385", "a"),
        ("/v1/models?free=1", "a"),
        ("/v1/models?free=0", "dbac"),
        ("/v1/models?free=", "dbac"),
        ("/v1/models?sort=input", "dcab"),
        ("/v1/models?sort=context", "acbd"),
        ("/v1/models?sort=free", "abdc"),
        ("/v1/models?sort=seen", "abcd"),
        ("/v1/models?sort=country", "cbda"),
        ("/v1/models?model=big&sort=context&max_price_output=0.85&free=true", "a"),
    ],
)
def test_what_is_listed(target: str, expected: str) -> None:
    assert found(parse_query(target)) == expected


def test_one_provider() -> None:
    assert found(OfferQuery(wishes=Wishes(provider=MARKET["c"].peer_id))) == "c"
    assert found(OfferQuery(wishes=Wishes(parent_countries=frozenset({"LT"})))) == "", "nobody has shown a card"


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("country=LTU", "codes like LT"),
        ("max_price_output=cheap", "max_price_output"),
        ("max_price_output=-1", "out of range"),
        ("max_price_input=0.0000001", "finer than"),
        ("min_context=many", "number of tokens"),
        ("min_context=-1", "number of tokens"),
        ("min_context=99999999999999999999", "number of tokens"),
        ("min_context=\u0663", "number of tokens"),
        ("free=perhaps", "true or false"),
        ("sort=best", "one of output, input"),
        ("a=1&" * 65, "cannot be read"),
        ("x" * 4097, "at most 4096"),
    ],
)
def test_what_cannot_be_asked(query: str, words: str) -> None:
    with pytest.raises(Refused, match=words) as refused:
        parse_query(f"/v1/models?{query}")
    assert refused.value.code == "bad-request"


@pytest.mark.parametrize(
    ("headers", "wishes"),
    [
        ({}, Wishes()),
        ({"X-P2pgrid-Max-Price-Output-EUR": " 0.5 "}, Wishes(max_output_upm=500_000)),
        ({"X-P2pgrid-Max-Price-Input-EUR": "2"}, Wishes(max_input_upm=2_000_000)),
        ({"X-P2pgrid-Min-Context": "8192"}, Wishes(min_context_tokens=8192)),
        ({"X-P2pgrid-Free": "yes"}, Wishes(only_free=True)),
        ({"X-P2pgrid-Free": "false"}, Wishes()),
    ],
)
def test_wishes_in_headers(headers: dict[str, str], wishes: Wishes) -> None:
    assert parse_wishes(headers) == wishes


@pytest.mark.parametrize(
    "headers",
    [
        {"X-P2pgrid-Max-Price-Output-EUR": "x"},
        {"X-P2pgrid-Max-Price-Input-EUR": ""},
        {"X-P2pgrid-Min-Context": "1.5"},
        {"X-P2pgrid-Free": "2"},
    ],
)
def test_wishes_that_are_none(headers: dict[str, str]) -> None:
    with pytest.raises(Refused) as refused:
        parse_wishes(headers)
    assert refused.value.code == "bad-request" and next(iter(headers)) in str(refused.value)


@pytest.mark.parametrize(
    ("own", "owners", "both"),
    [
        ({}, {}, {}),
        ({"max_output_upm": 5}, {"max_output_upm": 3}, {"max_output_upm": 3}),
        ({"max_output_upm": 2}, {"max_output_upm": 3}, {"max_output_upm": 2}),
        ({"max_input_upm": 0}, {}, {"max_input_upm": 0}),
        ({}, {"max_input_upm": 7}, {"max_input_upm": 7}),
        ({"min_context_tokens": 10}, {"min_context_tokens": 20}, {"min_context_tokens": 20}),
        ({"only_free": True}, {}, {"only_free": True}),
        ({}, {"only_free": True}, {"only_free": True}),
    ],
)
def test_a_program_can_only_narrow_what_the_owner_allows(
    own: dict[str, Any], owners: dict[str, Any], both: dict[str, Any]
) -> None:
    assert Wishes(**own).within(Wishes(**owners)) == Wishes(**both)


def test_every_order_has_a_name() -> None:
    for sort in Sort:
        assert len(found(OfferQuery(sort=sort))) == len(MARKET)
