"""Chains of cards: who may sign the next one, and what a chain says of a key."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.errors import InvalidRecord, ProtocolViolation
from p2pgrid.proto.card import Card, PeerKey, Revocation, is_domain
from p2pgrid.proto.card_chain import (
    CardChain,
    KeyState,
    check_follows,
    join_chains,
    key_state,
    named_keys,
    pack_cards,
    unpack_cards,
    verify_card,
    verify_chain,
)
from p2pgrid.proto.record import Record, Role, Signature, Signed, signature_input
from p2pgrid.proto.well_known import parse_well_known, well_known_of
from p2pgrid.proto.wire.offers import MAX_CARDS_BYTES
from tests.factories import CLIENT, DAY_MS, NOW_MS, OPERATOR, PROVIDER, digest, make_card, resigned, secret_key

NODE = PROVIDER.public_key.raw
OTHER = secret_key("another node").public_key.raw
SUCCESSOR = secret_key("successor")


def term(key: bytes = NODE, begin_day: int = -1, end_day: int = 100) -> PeerKey:
    return PeerKey(key=key, valid_from_ms=NOW_MS + begin_day * DAY_MS, valid_until_ms=NOW_MS + end_day * DAY_MS)


def chain_of(*changes: dict[str, Any]) -> CardChain:
    """A chain: each with its changes, and all that was there before."""
    cards = [make_card(**changes[0])]
    for change in changes[1:]:
        key = change.pop("key", OPERATOR)
        follow = {"sequence": cards[-1].message.sequence + 1, "previous": cards[-1].id}
        cards.append(resigned(cards[-1], key, Role.OPERATOR, operator=key.public_key.raw, **{**follow, **change}))
    return verify_chain(card.record for card in cards)


def ids(chain: CardChain) -> list[bytes]:
    return [card.id for card in chain]


def code_of(*cards: Signed[Card]) -> str:
    with pytest.raises(InvalidRecord) as error:
        verify_chain(card.record for card in cards)
    return error.value.code


def test_a_chain_goes_on_with_the_same_key() -> None:
    chain = chain_of({}, {"legal_name": "New Name UAB"}, {})
    assert [card.message.sequence for card in chain] == [1, 2, 3]
    assert ids(verify_chain(card.record for card in chain[1:])) == ids(chain)[1:], "it need not be whole"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"sequence": 1}, "two-records-one-slot"),
        ({"sequence": 5, "previous": digest("another card")}, "broken-card-chain"),
        ({"sequence": 5, "previous": b""}, "broken-card-chain"),
        ({"key": SUCCESSOR}, "broken-card-chain"),
    ],
)
def test_what_does_not_follow(change: dict[str, Any], code: str) -> None:
    with pytest.raises(InvalidRecord) as error:
        chain_of({}, change)
    assert error.value.code == code


def test_a_lower_number_does_not_follow() -> None:
    first, second = chain_of({}, {})
    assert code_of(second, first) == "broken-card-chain"
    check_follows(first, second)


def test_a_successor_that_was_named_goes_on_and_another_does_not() -> None:
    chain = chain_of({"successor": SUCCESSOR.public_key.raw}, {"key": SUCCESSOR, "successor": b""}, {"key": SUCCESSOR})
    assert chain[-1].message.operator == SUCCESSOR.public_key.raw
    with pytest.raises(InvalidRecord, match="successor"):
        chain_of({"successor": SUCCESSOR.public_key.raw}, {"key": secret_key("thief")})


def test_a_card_is_signed_by_the_operator_it_names() -> None:
    card = make_card()
    signed_bytes = signature_input(Card.payload_type, card.record.payload)
    forged = Signature(Role.OPERATOR, CLIENT.public_key.raw, CLIENT.sign(signed_bytes))
    with pytest.raises(InvalidRecord) as error:
        verify_card(Record(Card.payload_type, card.record.payload, (forged,)))
    assert error.value.code == "wrong-key"


@pytest.mark.parametrize("field", ["peers", "revoked", "successor"])
def test_every_key_in_a_card_is_admissible(field: str) -> None:
    bad = b"\1" + bytes(32)
    value: Any = {"peers": (term(bad),), "revoked": (Revocation(key=bad, since_ms=1),), "successor": bad}[field]
    with pytest.raises(InvalidRecord) as error:
        verify_card(make_card(**{field: value}).record)
    assert error.value.code == "key-not-admissible"


@pytest.mark.parametrize(
    ("domain", "good"),
    [
        ("example.com", True),
        ("a.b-c.example", True),
        ("xn--e1afmkfd.xn--p1ai", True),
        ("localhost", False),
        ("127.0.0.1", False),
        ("Example.com", False),
        ("example.com.", False),
        ("example.com/x", False),
        ("user@example.com", False),
        ("example.com:8443", False),
        ("-a.example", False),
        ("example.com\n", False),
        (".".join(["a" * 60] * 5), False),
    ],
)
def test_domains(domain: str, good: bool) -> None:
    assert is_domain(domain) is good
    if not good:
        with pytest.raises(InvalidRecord, match=r"domain|253|254|30[0-9]"):
            make_card(domain=domain)


DAYS = [-2, -1, 0, 50, 99, 101, 300]


def states(chain: CardChain, key: bytes = NODE) -> str:
    """The first letters of the states on DAYS."""
    return "".join(key_state(chain, key, NOW_MS + day * DAY_MS).value[0] for day in DAYS)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (({"peers": (term(),)},), "ubbbbee"),
        (({"peers": (term(OTHER),)},), "uuuuuuu"),
        (({"peers": (term(end_day=3650),)},), "ubbbbbb"),
        (({"peers": (term(end_day=3650),), "valid_until_ms": NOW_MS + 60 * DAY_MS},), "ubbbeee"),
        (({"peers": (term(),)}, {"peers": (term(end_day=200),)}), "ubbbbbe"),
        # A rotation brings the old key's end forward; one that is left out keeps its term.
        (({"peers": (term(),)}, {"peers": (term(end_day=60), term(OTHER))}, {"peers": (term(OTHER),)}), "ubbbeee"),
        (({"peers": (term(),), "revoked": (Revocation(key=NODE, since_ms=NOW_MS),)},), "ubrrrrr"),
        # A later card does not take a revocation back.
        (({"revoked": (Revocation(key=NODE, since_ms=NOW_MS + 60 * DAY_MS),)}, {"revoked": ()}), "ubbbrrr"),
    ],
)
def test_the_state_of_a_key(changes: tuple[dict[str, Any], ...], expected: str) -> None:
    assert states(chain_of(*[dict(change) for change in changes])) == expected


def test_nothing_is_known_of_nobody() -> None:
    assert key_state((), NODE, NOW_MS) is KeyState.UNKNOWN
    assert named_keys(chain_of({"peers": (term(),)}, {"peers": (term(OTHER),)})) == {NODE, OTHER}


@given(st.integers(0, 5), st.integers(1, 6), st.integers(0, 5), st.integers(1, 6))
def test_parts_of_one_chain_join_where_they_touch(a: int, b: int, c: int, d: int) -> None:
    one, two = WHOLE[a : a + b], WHOLE[c : c + d]
    numbers = {card.message.sequence for card in (*one, *two)}
    if numbers == set(range(min(numbers), max(numbers) + 1)):
        assert join_chains(one, two) == WHOLE[min(a, c) : max(numbers)]
    else:
        with pytest.raises(InvalidRecord):
            join_chains(one, two)


WHOLE = chain_of(*({} for _ in range(6)))


def test_a_message_holds_the_last_cards_and_no_more_than_fit() -> None:
    assert ids(unpack_cards(pack_cards(WHOLE))) == ids(WHOLE)
    assert unpack_cards(pack_cards(())) == ()
    many = tuple(term(secret_key(f"peer {n}").public_key.raw) for n in range(64))
    long = chain_of(*({"peers": many} for _ in range(20)))
    packed = pack_cards(long)
    assert 40_000 < len(packed) <= MAX_CARDS_BYTES
    kept = unpack_cards(packed)
    assert ids(kept) == ids(long)[-len(kept) :] and len(kept) > 5


@given(st.binary(max_size=300))
def test_no_other_error_comes_of_a_peers_bytes(data: bytes) -> None:
    with contextlib.suppress(InvalidRecord, ProtocolViolation):
        assert unpack_cards(data) == ()


def test_a_fork_is_named() -> None:
    fork = chain_of({}, {"legal_name": "Somebody else"})
    assert fork[0].id == WHOLE[0].id
    for pair in ((WHOLE, fork), (fork, WHOLE), (WHOLE[1:], fork[1:])):
        with pytest.raises(InvalidRecord) as error:
            join_chains(*pair)
        assert error.value.code == "two-records-one-slot"


def test_a_well_known_file_names_the_peers_bound_now() -> None:
    chain = chain_of({}, {"peers": (term(end_day=-0), term(OTHER), term(CLIENT.public_key.raw, 10, 20))})

    content = well_known_of(chain, NOW_MS + DAY_MS)
    known, cards = parse_well_known(json.dumps({**content, "more": [1]}).encode())
    assert ids(cards) == ids(chain)
    assert known.peers == (secret_key("another node").public_key.peer_id,)
    assert known.operator == OPERATOR.public_key.peer_id


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"<html>",
        b'{"p2pgrid": 2, "operator": "x", "peers": []}',
        b'{"p2pgrid": 1, "operator": "x", "peers": []}',
        b'{"p2pgrid": 1, "operator": "12D3KooW", "peers": [1]}',
        b'{"a":' * 20_000,
        b" " * 300_000,
        b"\xff\xfe",
    ],
)
def test_what_is_no_well_known_file(data: bytes) -> None:
    with pytest.raises(InvalidRecord):
        parse_well_known(data)


@given(st.binary(max_size=200))
def test_no_other_error_comes_of_any_bytes(data: bytes) -> None:
    with pytest.raises(InvalidRecord):
        parse_well_known(data)
