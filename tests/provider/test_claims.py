"""Which process holds a channel: never two, and nobody waits for ever."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis.strategies as st
from hypothesis import given
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from p2pgrid.provider.claims import MAIN, ClaimTable
from tests.factories import digest

ONE, TWO = digest("one"), digest("two")
PROCESSES = st.integers(0, 3)
CHANNELS = st.sampled_from([ONE, TWO])


class Rig:
    """A table whose main process gives up at once, and whose workers do when the test says so."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, bytes]] = []
        self.granted: list[str] = []
        self.table = ClaimTable(self._give_up)

    def _give_up(self, process: int, channel: bytes) -> None:
        if process == MAIN:
            self.table.released(channel, MAIN)
        else:
            self.asked.append((process, channel))

    def claim(self, channel: bytes, process: int, name: str) -> None:
        self.table.claim(channel, process, lambda: self.granted.append(name))


def test_what_nobody_claimed_is_granted_at_once() -> None:
    rig = Rig()
    rig.claim(ONE, 1, "first")
    assert rig.granted == ["first"] and rig.table.holder(ONE) == 1
    rig.claim(ONE, 1, "again")
    assert rig.granted == ["first", "again"] and rig.asked == []


def test_a_holder_is_asked_once_and_claims_are_served_in_turn() -> None:
    rig = Rig()
    rig.claim(ONE, 1, "1")
    rig.claim(ONE, 2, "2")
    rig.claim(ONE, 3, "3")
    assert rig.asked == [(1, ONE)] and rig.granted == ["1"]
    rig.table.released(ONE, 1)
    assert rig.granted == ["1", "2"] and rig.asked == [(1, ONE), (2, ONE)]
    rig.table.released(ONE, 2)
    assert rig.granted == ["1", "2", "3"] and rig.table.holder(ONE) == 3


def test_the_holders_own_claim_waits_behind_one_that_came_before() -> None:
    rig = Rig()
    rig.claim(ONE, 1, "1")
    rig.claim(ONE, 2, "2")
    rig.claim(ONE, 1, "1 again")
    assert rig.granted == ["1"]
    rig.table.released(ONE, 1)
    rig.table.released(ONE, 2)
    assert rig.granted == ["1", "2", "1 again"] and rig.table.holder(ONE) == 1


def test_news_of_one_that_holds_nothing_is_no_news() -> None:
    rig = Rig()
    rig.claim(ONE, 1, "1")
    rig.table.released(ONE, 2)
    assert rig.table.holder(ONE) == 1


def test_a_holder_that_is_gone_leaves_the_channel_to_who_waits() -> None:
    rig = Rig()
    rig.claim(ONE, 1, "1")
    rig.claim(TWO, 1, "1 too")
    rig.claim(ONE, 2, "2")
    rig.table.gone(1)
    assert rig.granted == ["1", "1 too", "2"]
    assert (rig.table.holder(ONE), rig.table.holder(TWO)) == (2, MAIN)


def test_one_who_waited_and_is_gone_is_not_served() -> None:
    rig = Rig()
    rig.claim(ONE, 1, "1")
    rig.claim(ONE, 2, "2")
    rig.table.gone(2)
    rig.table.released(ONE, 1)
    assert rig.granted == ["1"] and rig.table.holder(ONE) == MAIN
    rig.claim(ONE, 3, "3")
    assert rig.granted == ["1", "3"]


class Claims(RuleBasedStateMachine):
    """Claims, releases and ends in any order, with workers that answer as late as they like."""

    @initialize()
    def begin(self) -> None:
        self.asked: dict[tuple[int, bytes], int] = {}
        self.holds: dict[bytes, int] = {ONE: MAIN, TWO: MAIN}
        self.waiting: list[tuple[int, bytes, int]] = []
        self.number = 0
        self.table = ClaimTable(self.give_up)

    def give_up(self, process: int, channel: bytes) -> None:
        assert self.holds[channel] == process, "only the holder is asked"
        if process == MAIN:
            self.table.released(channel, MAIN)
        else:
            assert (process, channel) not in self.asked, "asked once"
            self.asked[process, channel] = 1

    def granted(self, process: int, channel: bytes, number: int) -> Callable[[], None]:
        def call() -> None:
            assert self.holds[channel] in (MAIN, process), "another process holds it still"
            first = next(one for one in self.waiting if one[1] == channel)
            assert first == (process, channel, number), "out of turn"
            self.waiting.remove(first)
            self.holds[channel] = process

        return call

    @rule(channel=CHANNELS, process=PROCESSES)
    def claim(self, channel: bytes, process: int) -> None:
        self.number += 1
        self.waiting.append((process, channel, self.number))
        self.table.claim(channel, process, self.granted(process, channel, self.number))

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def give_it_up(self, data: st.DataObject) -> None:
        process, channel = data.draw(st.sampled_from(sorted(self.asked)))
        del self.asked[process, channel]
        self.holds[channel] = MAIN
        self.table.released(channel, process)

    @rule(channel=CHANNELS)
    def give_back_unasked(self, channel: bytes) -> None:
        process = self.holds[channel]
        if process != MAIN and (process, channel) not in self.asked:
            self.holds[channel] = MAIN
            self.table.released(channel, process)

    @rule(process=st.integers(1, 3))
    def end(self, process: int) -> None:
        self.asked = {key: 1 for key in self.asked if key[0] != process}
        self.waiting = [one for one in self.waiting if one[0] != process]
        for channel, holder in self.holds.items():
            if holder == process:
                self.holds[channel] = MAIN
        self.table.gone(process)

    @invariant()
    def the_table_agrees(self) -> None:
        for channel in (ONE, TWO):
            assert self.table.holder(channel) == self.holds[channel]

    @invariant()
    def whoever_waits_waits_for_somebody(self) -> None:
        for _, channel, _ in self.waiting:
            assert (self.holds[channel], channel) in self.asked


TestClaims = Claims.TestCase


@given(st.lists(st.tuples(CHANNELS, PROCESSES), max_size=20))
def test_when_all_answer_everybody_is_served(claims: list[tuple[bytes, int]]) -> None:
    rig = Rig()
    for number, (channel, process) in enumerate(claims):
        rig.claim(channel, process, str(number))
    while rig.asked:
        process, channel = rig.asked.pop(0)
        rig.table.released(channel, process)
    assert sorted(rig.granted, key=int) == [str(number) for number in range(len(claims))]
