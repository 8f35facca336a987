"""A request costs the same in a large market: what is kept, for how long, and that the best are never left out."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.client.choice import UNKNOWN, Listing, Preselection, Standing, rank
from p2pgrid.client.offers import OfferBook
from p2pgrid.client.shortlist import KEPT_MS, MIXTURES, PER_MIXTURE, Shortlists, shortened
from p2pgrid.client.wishes import Wishes
from p2pgrid.net.peer_address import PeerAddress
from p2pgrid.proto.messages import ENDPOINTS, ModelOffer, Tariff
from p2pgrid.proto.record import Signed
from p2pgrid.proto.request import parse_request
from tests.client.seller import FakeNetwork
from tests.factories import NOW_MS, make_offer, secret_key

CHAT = ENDPOINTS[0]
KEY = secret_key("seller")
OFFER = make_offer(KEY)


def listing(name: str, input_upm: int, output_upm: int, offer: Signed = OFFER) -> Listing:  # type: ignore[type-arg]
    tariff = Tariff(input_upm=input_upm, cached_input_upm=input_upm, output_upm=output_upm)
    entry = ModelOffer(model="m", tariff=tariff, context_tokens=4096, concurrency=1, endpoints=ENDPOINTS)
    return Listing(name, offer, entry, None)


def market(prices: list[tuple[int, int]]) -> list[Listing]:
    return [listing(f"{i:05d}", *price) for i, price in enumerate(prices)]


def best(listings: tuple[Listing, ...], body: bytes, body_bytes: int) -> int:
    choice = rank(
        Preselection(listings, {}),
        fields=parse_request(CHAT, body),
        body_bytes=body_bytes,
        wishes=Wishes(),
        standing_of=lambda _: UNKNOWN,
        now_ms=NOW_MS,
    )
    return choice.candidates[0].expected_pico


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 1000), st.integers(1, 1000)), min_size=1, max_size=200),
    st.integers(1, 4000),
    st.integers(4, 16_000),
)
def test_somebody_near_the_cheapest_is_on_it(prices: list[tuple[int, int]], max_tokens: int, body_bytes: int) -> None:
    """Whatever mixture a request is: between two neighbouring mixtures, four to one apart, four times is the bound."""
    everybody = tuple(market(prices))
    short = shortened(everybody, NOW_MS, lambda _: UNKNOWN)
    assert len(short) <= PER_MIXTURE * len(MIXTURES)
    body = b'{"model": "m", "max_tokens": %d}' % max_tokens
    assert best(short, body, body_bytes) <= 4 * best(everybody, body, body_bytes)


def test_the_cheapest_at_either_end_are_on_it() -> None:
    everybody = market([(1, 1000)] * 3 + [(500, 500)] * 300 + [(1000, 1)] * 3)
    names = {one.peer_id for one in shortened(everybody, NOW_MS, lambda _: UNKNOWN)}
    assert {"00000", "00001", "00002", "00303", "00304", "00305"} <= names


def test_those_that_fail_leave_room_and_the_untried_are_tried() -> None:
    standings = {f"{i:05d}": Standing(failures=1, failed_ms=NOW_MS) for i in range(50)}
    standings |= {f"{i:05d}": Standing(first_token_ms=50.0) for i in range(50, 100)}
    names = {one.peer_id for one in shortened(market([(7, 7)] * 120), NOW_MS, lambda p: standings.get(p, UNKNOWN))}
    assert names and min(names) >= "00100"


def test_it_is_kept_until_offers_change_or_a_moment_has_passed() -> None:
    made: Counter[str] = Counter()

    def preselect(model: str, endpoint: str, wishes: Wishes) -> Preselection:
        made[model] += 1
        return Preselection((listing("a", 1, 1),), {})

    lists = Shortlists(preselect)

    def of(model: str, version: int, now_ms: int, wishes: Wishes | None = None) -> Preselection:
        return lists.of(model, CHAT, wishes or Wishes(), version=version, now_ms=now_ms, standing_of=lambda _: UNKNOWN)

    for _ in range(3):
        assert of("m", 1, NOW_MS).listings
    assert made["m"] == 1
    of("m", 2, NOW_MS)
    assert made["m"] == 2
    of("m", 2, NOW_MS + KEPT_MS - 1)
    assert made["m"] == 2
    of("m", 2, NOW_MS + KEPT_MS)
    assert made["m"] == 3
    of("m", 2, NOW_MS + KEPT_MS, Wishes(provider="x"))
    assert made["m"] == 4
    for i in range(1000):
        of("n", 2, NOW_MS, Wishes(provider=str(i)))
    assert len(lists._kept) <= 256


def test_it_ends_with_the_offers_on_it() -> None:
    ends = make_offer(KEY, valid_until_ms=NOW_MS + 10)
    made: list[str] = []

    def preselect(model: str, endpoint: str, wishes: Wishes) -> Preselection:
        made.append(model)
        return Preselection((listing("a", 1, 1, ends),), {})

    lists = Shortlists(preselect)
    for now_ms in (NOW_MS, NOW_MS + 9, NOW_MS + 10):
        lists.of("m", CHAT, Wishes(), version=1, now_ms=now_ms, standing_of=lambda _: UNKNOWN)
    assert len(made) == 2


@pytest.mark.parametrize("gone", ["dead", "expired", "withdrawn models"])
def test_the_book_finds_offers_by_model(gone: str) -> None:
    now_ms = NOW_MS
    book = OfferBook(FakeNetwork(), now_ms=lambda: now_ms)
    peer = PeerAddress(KEY.public_key.peer_id, ())

    def entry(model: str) -> ModelOffer:
        return listing("x", 1, 1).entry.__class__(
            model=model,
            tariff=Tariff(input_upm=1, cached_input_upm=1, output_upm=1),
            context_tokens=4096,
            concurrency=1,
            endpoints=ENDPOINTS,
        )

    book.add(make_offer(KEY, models=(entry("a"), entry("b"))).record.to_bytes(), peer)
    assert book.models() == ("a", "b") and [p for p, _ in book.offers_of("b")] == [peer.peer_id]
    assert book.offers_of("c") == []
    version = book.version
    if gone == "dead":
        for _ in range(3):
            book.note_dead(peer.peer_id)
    elif gone == "expired":
        now_ms = book.offers()[0].message.valid_until_ms
    else:
        book.add(make_offer(KEY, models=(entry("c"),), sequence=9).record.to_bytes(), peer)
        assert book.models() == ("c",)
    assert book.offers_of("a") == book.offers_of("b") == []
    assert gone == "expired" or book.version > version
