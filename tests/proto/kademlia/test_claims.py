"""Who is said to provide, and whom to ask first."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.proto.kademlia import PER_GROUP
from p2pgrid.proto.kademlia.claims import MAX_ADDRESSES, PER_HOST, Claim, Claims, Voice
from tests.proto.kademlia.nodes import claim, draws

OWN = b"own"


def chosen(claims: Claims, limit: int = 50, seed: int = 1) -> list[bytes]:
    return [one.peer for one in claims.chosen(limit, draws(seed))]


def test_a_provider_is_named_once_and_who_signed_comes_first() -> None:
    claims = Claims(OWN)
    claims.add([claim(b"a", signed_at=None), claim(b"b", signed_at=None)], Voice())
    claims.add([claim(b"b", signed_at=5), claim(b"b", signed_at=5), claim(OWN)], Voice(path=1))
    assert chosen(claims) == [b"b", b"a"]
    assert [one.is_signed for one in claims.chosen(9, draws())] == [True, False]
    assert chosen(claims, 1) == [b"b"]


def test_the_newest_signature_counts_and_a_replayed_record_does_not() -> None:
    claims = Claims(OWN)
    claims.add([claim(b"a", "10.0.0.2", signed_at=7)], Voice())
    claims.add([claim(b"a", "10.0.0.1", signed_at=6)], Voice(path=1))
    claims.add([claim(b"a", "10.0.0.9", signed_at=None)], Voice(path=2))
    [provider] = claims.chosen(5, draws())
    assert [address.host for address in provider.addresses] == ["10.0.0.2", "10.0.0.9"]


def test_hearsay_is_ranked_by_how_many_say_so_and_bounded() -> None:
    claims = Claims(OWN)
    claims.add([claim(b"a", "10.0.0.1", *(f"10.0.1.{n}" for n in range(20)), signed_at=None)], Voice())
    for path in range(3):
        claims.add([claim(b"a", "10.0.0.2", signed_at=None)], Voice(path=path))
    [provider] = claims.chosen(5, draws())
    assert provider.addresses[0].host == "10.0.0.2"
    assert len(provider.addresses) == MAX_ADDRESSES


def test_who_names_many_is_heard_no_more_than_who_names_few() -> None:
    """A liar on each of three paths of eight; each names sixty who do not exist."""
    claims = Claims(OWN)
    honest = [claim(b"honest %d" % n, f"10.0.{n}.1") for n in range(5)]
    for path in range(8):
        lies = [claim(b"lie %d %d" % (path, n), f"10.1.{path}.{n}") for n in range(60)]
        claims.add(lies if path < 3 else honest, Voice(path=path))
    assert {one.peer for one in honest} <= set(chosen(claims))


def test_whom_many_servers_name_comes_soon_and_whom_all_liars_name_takes_half_of_the_places() -> None:
    claims = Claims(OWN)
    honest = [claim(b"honest %d" % n, f"10.0.{n}.1") for n in range(5)]
    known = [claim(b"known lie %d" % n, f"10.2.{n}.1") for n in range(40)]
    for server in range(30):
        afresh = [claim(b"lie %d %d" % (server, n), f"10.1.{server}.{n}") for n in range(60)]
        claims.add([honest, afresh, known][server % 3], Voice(path=server % 8))
    first = chosen(claims)[:20]
    assert {one.peer for one in honest} <= set(first)
    assert sum(peer.startswith(b"lie") for peer in first) >= 2, "who is named once has a turn as well"


def test_of_one_path_they_are_drawn_by_weight() -> None:
    first = Counter[bytes]()
    for seed in range(300):
        claims = Claims(OWN)
        claims.add([claim(b"light")], Voice(weight=0.1))
        claims.add([claim(b"heavy")], Voice(weight=0.9))
        first[chosen(claims, 1, seed)[0]] += 1
    assert 230 < first[b"heavy"] < 295


def test_who_should_hold_no_record_is_heard_last() -> None:
    claims = Claims(OWN)
    claims.add([claim(b"lie %d" % n, f"10.1.1.{n}") for n in range(60)], Voice(path=0, is_holder=False))
    claims.add([claim(b"honest %d" % n, f"10.0.0.{n}") for n in range(40)], Voice(path=1))
    assert {b"honest %d" % n for n in range(40)} <= set(chosen(claims))


def test_few_of_a_prefix_come_first_and_few_of_an_address_at_all() -> None:
    claims = Claims(OWN)
    claims.add([claim(b"crowd %d" % n, f"9.9.9.{n}") for n in range(60)], Voice())
    claims.add([claim(b"far %d" % n, f"8.8.{n}.1") for n in range(20)], Voice(path=1))
    found = chosen(claims, 20 + PER_GROUP)
    assert sum(peer.startswith(b"crowd") for peer in found) == PER_GROUP
    claims = Claims(OWN)
    claims.add([claim(b"%d" % n, "9.9.9.9") for n in range(60)], Voice())
    assert len(chosen(claims)) == PER_HOST, "a victim is not dialled for each of a flood"
    claims = Claims(OWN)
    claims.add([claim(b"%d" % n, "10.0.0.9") for n in range(30)], Voice())
    assert len(chosen(claims)) == 30, "one machine of one's own may be many"


said = st.lists(
    st.tuples(
        st.lists(
            st.builds(
                claim,
                st.sampled_from([b"%d" % n for n in range(30)]),
                st.sampled_from(["9.9.9.9", "8.8.8.8", "10.0.0.1"]),
                signed_at=st.none() | st.integers(0, 5),
            ),
            max_size=20,
        ),
        st.builds(Voice, st.integers(-1, 2), st.integers(0, 3), st.floats(0, 1), st.booleans()),
    ),
    max_size=10,
)


@given(said, st.integers(0, 40), st.integers(0, 99))
def test_whatever_is_said(said: list[tuple[list[Claim], Voice]], limit: int, seed: int) -> None:
    claims = Claims(OWN)
    for heard, voice in said:
        claims.add(heard, voice)
    found = claims.chosen(limit, draws(seed))
    assert len(found) <= limit
    assert len({one.peer for one in found}) == len(found)
    assert {one.peer for one in found} <= {one.peer for heard, _ in said for one in heard}
    assert [one.is_signed for one in found] == sorted((one.is_signed for one in found), reverse=True)
