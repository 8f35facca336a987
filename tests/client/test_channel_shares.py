"""Whose a channel is among a gateway's workers, and what their work looks like as one."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from p2pgrid.client.channel_shares import FIRST, ChannelShares
from p2pgrid.client.workers import merge
from p2pgrid.desk.standing import ChannelChanges, Reconciled, Totals
from p2pgrid.proto.messages import Channel
from tests.factories import Dealings, digest, secret_key


def channel(name: str, provider: str = "provider") -> Channel:
    return Dealings(name=name, provider=secret_key(provider)).channel.message


def test_the_newest_channels_are_dealt_out_and_older_ones_are_the_first_workers() -> None:
    channels = [channel(str(n)) for n in range(4)]
    shares = ChannelShares(channels, 2)
    ids = [one.channel for one in channels]
    assert shares.owner(ids[3]) == 1
    assert shares.owner(ids[2]) == 2
    assert [shares.owner(one) for one in ids[:2]] == [FIRST, FIRST]


def test_every_provider_is_dealt_out_by_itself() -> None:
    channels = [channel("a", "one"), channel("b", "two")]
    shares = ChannelShares(channels, 2)
    assert {shares.owner(one.channel) for one in channels} == {1}


def test_what_a_worker_opens_is_its_own_and_stays_so() -> None:
    shares = ChannelShares([], 4)
    assert shares.came_from(3, digest("new"))
    assert not shares.came_from(2, digest("new"))
    assert shares.owner(digest("new")) == 3 and shares.of(3) == [digest("new")]


@given(st.lists(st.sampled_from("abc"), max_size=12), st.integers(1, 4))
def test_every_channel_has_one_owner_and_no_worker_has_two_current_ones(providers: list[str], n: int) -> None:
    channels = [channel(str(i), provider) for i, provider in enumerate(providers)]
    shares = ChannelShares(channels, n)
    owned = [one for worker in range(1, n + 1) for one in shares.of(worker)]
    assert sorted(owned) == sorted(one.channel for one in channels)
    for provider in set(providers):
        newest = [one for one, name in zip(channels, providers, strict=True) if name == provider][-n:]
        assert len({shares.owner(one.channel) for one in newest}) == len(newest)


def part(name: str, *, receipts: int) -> Reconciled:
    before = Totals(orders=0, open_orders=0, receipts=0, countersigned=0, total_pico=0)
    after = Totals(orders=0, open_orders=0, receipts=receipts, countersigned=receipts, total_pico=0)
    others = [ChannelChanges(channel=one, before=before, after=before) for one in ("a", "b") if one != name]
    own = ChannelChanges(channel=name, before=before, after=after)
    return Reconciled(peer="p", role="client", changed=receipts > 0, channels=(own, *others))


def test_each_workers_channels_come_from_that_worker() -> None:
    merged = merge([part("a", receipts=1), part("b", receipts=2)])
    assert merged.changed
    assert {one.channel: one.after.receipts for one in merged.channels} == {"a": 1, "b": 2}
    assert not merge([part("a", receipts=0), part("b", receipts=0)]).changed
