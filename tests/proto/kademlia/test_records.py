"""Provider records as a server keeps them."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.proto.kademlia.records import (
    MAX_KEYS_PER_PROVIDER,
    MAX_PROVIDERS_PER_ANSWER,
    MAX_PROVIDERS_PER_KEY,
    RECORD_TTL_S,
    ProviderRecord,
    ProviderRecords,
)
from tests.proto.kademlia.nodes import draws


def record(peer: int, heard_s: float = 0.0, group: str = "") -> ProviderRecord:
    return ProviderRecord(b"%d" % peer, (b"at",), group, b"", heard_s)


def peers(records: ProviderRecords, key: bytes, now_s: float = 1.0) -> set[bytes]:
    return {one.peer for one in records.of(key, now_s, draws())}


def test_a_record_is_kept_for_an_hour() -> None:
    assert RECORD_TTL_S == 60 * 60, "docs/spec/discovery.md, rule 6"


def test_records_end_unless_renewed() -> None:
    records = ProviderRecords()
    records.add(b"k", record(1, 0.0))
    records.add(b"k", record(2, 0.0))
    records.add(b"k", record(2, 1200.0))
    assert peers(records, b"k", RECORD_TTL_S - 1) == {b"1", b"2"}
    assert peers(records, b"k", RECORD_TTL_S) == {b"2"}
    records.expire(RECORD_TTL_S)
    assert len(records) == 1
    records.expire(RECORD_TTL_S + 1200)
    assert len(records) == 0


def test_the_number_of_records_is_bounded_whoever_makes_them() -> None:
    records = ProviderRecords(max_records=100)
    kept = [records.add(b"%d" % n, record(n)) for n in range(300)]
    assert kept == [True] * 100 + [False] * 200
    assert records.add(b"5", record(5, 10.0)), "what is there can be renewed"
    records.withdraw(b"5")
    assert records.add(b"a place is free", record(301))
    assert not records.add(b"and now none is", record(302))
    records.expire(RECORD_TTL_S + 1)
    assert records.add(b"and now none is", record(302))


def test_so_many_keys_at_all_and_of_one_provider() -> None:
    records = ProviderRecords(max_keys=3)
    assert [records.add(b"%d" % n, record(n)) for n in range(4)] == [True] * 3 + [False]
    assert records.add(b"0", record(9)), "a known key takes more"
    records = ProviderRecords()
    kept = [records.add(b"%d" % n, record(1)) for n in range(MAX_KEYS_PER_PROVIDER + 1)]
    assert kept == [True] * MAX_KEYS_PER_PROVIDER + [False]
    assert records.add(b"0", record(2))


def test_a_key_that_is_full_keeps_who_renews() -> None:
    records = ProviderRecords()
    for n in range(MAX_PROVIDERS_PER_KEY):
        assert records.add(b"k", record(n))
    assert not records.add(b"k", record(10_000))
    assert records.add(b"k", record(3, 5.0))


def test_a_flood_from_one_prefix_gives_its_places_to_others() -> None:
    records = ProviderRecords()
    for n in range(MAX_PROVIDERS_PER_KEY):
        assert records.add(b"k", record(n, group="9.9.9.0/24"))
    assert not records.add(b"k", record(5000, group="9.9.9.0/24"))
    for n in range(1000, 1000 + MAX_PROVIDERS_PER_KEY // 2):
        assert records.add(b"k", record(n, group=f"8.8.{n}.0/24"))
    assert len(records) == MAX_PROVIDERS_PER_KEY
    assert b"0" in records._records[b"k"], "of the flood those that were there first stay"


def test_of_many_an_answer_draws_some_from_every_prefix() -> None:
    records = ProviderRecords()
    for n in range(400):
        records.add(b"k", record(n, group="9.9.9.0/24"))
    for n in range(400, 410):
        records.add(b"k", record(n, group=f"8.8.{n}.0/24"))
    answers = [records.of(b"k", 1.0, draws(seed)) for seed in range(20)]
    for answer in answers:
        assert len(answer) == len({one.peer for one in answer}) == MAX_PROVIDERS_PER_ANSWER
        assert {b"%d" % n for n in range(400, 410)} <= {one.peer for one in answer}
    assert len({one.peer for answer in answers for one in answer}) > 2 * MAX_PROVIDERS_PER_ANSWER, "others each time"


def test_providers_whose_prefix_does_not_count_are_drawn_evenly() -> None:
    records = ProviderRecords()
    for n in range(2 * MAX_PROVIDERS_PER_ANSWER):
        records.add(b"k", record(n))
    seen = Counter(one.peer for seed in range(60) for one in records.of(b"k", 1.0, draws(seed)))
    assert min(seen.values()) > 10 and len(seen) == 2 * MAX_PROVIDERS_PER_ANSWER


Step = tuple[str, int, int]


@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "withdraw", "expire"]), st.integers(0, 5), st.integers(0, 5)), max_size=60
    )
)
def test_as_a_plain_set_of_pairs_would_have_it(steps: list[Step]) -> None:
    records, model = ProviderRecords(), dict[tuple[bytes, bytes], float]()
    for number, (what, key, peer) in enumerate(steps):
        now_s = number * 600.0
        if what == "add":
            records.add(b"%d" % key, record(peer, now_s))
            model[b"%d" % key, b"%d" % peer] = now_s
        elif what == "withdraw":
            records.withdraw(b"%d" % peer)
            model = {pair: heard for pair, heard in model.items() if pair[1] != b"%d" % peer}
        else:
            records.expire(now_s)
            model = {pair: heard for pair, heard in model.items() if heard > now_s - RECORD_TTL_S}
        assert len(records) == len(model)
        for key_ in range(6):
            live = {pair[1] for pair, heard in model.items() if pair[0] == b"%d" % key_ and heard > now_s - 3600}
            assert peers(records, b"%d" % key_, now_s) == live


@pytest.mark.parametrize("peer", [b"nobody", b""])
def test_withdrawing_what_is_not_there(peer: bytes) -> None:
    records = ProviderRecords()
    records.withdraw(peer)
    assert len(records) == 0
