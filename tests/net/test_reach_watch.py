"""When a node asks whether it is reached, and what it tells its operator."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from p2pgrid.errors import LocalError
from p2pgrid.net.network import Network
from p2pgrid.net.reach_text import ListensAt, listens_at
from p2pgrid.net.reach_watch import ReachPauses, ReachWatch
from p2pgrid.net.reach_wire import Outcome, RoadName
from p2pgrid.net.reachability import Reach, Reachability, addresses_to_ask, judge
from tests.net.test_network import LOOPBACK, new_key, until
from tests.net.test_reachability import LIBP2P, PUBLIC, view

PORTS = [ListensAt(RoadName.DIRECT, "203.0.113.9", 4801)]
NEVER = ReachPauses(steady_s=3600, failed_s=3600, unknown_s=3600, look_s=0.01)


def said(*outcomes: Outcome) -> Reachability:
    """What so many peers say of the direct road."""
    asked = addresses_to_ask([PUBLIC])
    return judge(asked, [PUBLIC], [view(dict.fromkeys(asked, o), asked) for o in outcomes], n_asked=len(outcomes))


class Peers:
    """Who is asked: answers in turn, the last one for ever."""

    def __init__(self, *answers: Reachability | LocalError) -> None:
        self.answers = list(answers)
        self.n_asked = 0
        self.addresses = [PUBLIC]

    async def ask(self) -> Reachability:
        self.n_asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, LocalError):
            raise answer
        return answer

    def watch(self, **pauses: Any) -> ReachWatch:
        return ReachWatch(
            self.ask,
            addresses=lambda: self.addresses,
            listening=lambda: PORTS,
            pauses=ReachPauses(**{"look_s": 0.01, **pauses}) if pauses else NEVER,
        )


OPEN, CLOSED, NOBODY = said(Outcome.REACHED), said(Outcome.TIMED_OUT), said()


async def test_a_change_is_told_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    peers = Peers(CLOSED, CLOSED, said(Outcome.REACHED, Outcome.REACHED), OPEN, CLOSED)
    with caplog.at_level(logging.INFO, logger="p2pgrid"):
        async with peers.watch(steady_s=0.01, failed_s=0.01):
            await until(lambda: peers.n_asked > 6, "it asks on")
    told = [(r.levelname, r.getMessage()) for r in caplog.records]
    closed = [
        ("WARNING", "strangers cannot reach this node (direct road: timed out; one peer answered)"),
        (
            "WARNING",
            "to be reached: direct road: let TCP port 4801 in to 203.0.113.9 in this machine's firewall (and your "
            "provider's); others see this machine at 203.0.113.9, which is not its own address: have the router "
            "forward TCP port 4801 to 203.0.113.9, and tell others: --announce 203.0.113.9:4801, or announce in "
            "config.toml. What tried heard nothing: a firewall drops it.",
        ),
    ]
    opened = ("INFO", "strangers can reach this node (direct road: reached; 2 peers answered)")
    assert told == [*closed, opened, *closed]


async def test_other_addresses_are_asked_about_at_once(caplog: pytest.LogCaptureFixture) -> None:
    peers = Peers(OPEN)
    with caplog.at_level(logging.INFO, logger="p2pgrid"):
        async with peers.watch() as watch:
            await until(lambda: watch.current, "the first verdict")
            peers.addresses = ["/ip4/198.51.100.4/tcp/4801/tls"]
            await until(lambda: peers.n_asked == 2, "the second question")
    assert "this node's addresses have changed: /ip4/198.51.100.4/tcp/4801/tls" in caplog.text


@pytest.mark.parametrize(
    ("answer", "pauses"),
    [
        (OPEN, {"steady_s": 0.02, "failed_s": 3600, "unknown_s": 3600}),
        (CLOSED, {"steady_s": 3600, "failed_s": 0.02, "unknown_s": 3600}),
        (NOBODY, {"steady_s": 3600, "failed_s": 3600, "unknown_s": 0.005}),
        (LocalError("the network is down."), {"steady_s": 3600, "failed_s": 3600, "unknown_s": 0.005}),
    ],
)
async def test_each_verdict_has_its_pause(answer: Reachability | LocalError, pauses: dict[str, float]) -> None:
    peers = Peers(answer)
    async with peers.watch(**pauses):
        await until(lambda: peers.n_asked >= 3, "it asks again")


async def test_that_nobody_can_be_asked_is_told_when_it_lasts(caplog: pytest.LogCaptureFixture) -> None:
    peers = Peers(NOBODY)
    with caplog.at_level(logging.INFO, logger="p2pgrid"):
        async with peers.watch(unknown_s=0.001) as watch:
            await until(lambda: peers.n_asked >= 2, "it asks")
            assert "nobody could be asked" not in caplog.text or peers.n_asked >= 3
            await until(lambda: "nobody could be asked" in caplog.text, "it is said")
            assert watch.advice == []
    assert caplog.text.count("nobody could be asked") == 1


async def test_a_moment_without_peers_takes_nothing_back() -> None:
    peers = Peers(OPEN, NOBODY, OPEN)
    async with peers.watch(steady_s=0.01, unknown_s=3600) as watch:
        await until(lambda: peers.n_asked == 2, "nobody answered")
        assert watch.current == OPEN


async def test_one_may_ask_at_once() -> None:
    peers = Peers(CLOSED, OPEN)
    async with peers.watch() as watch:
        await until(lambda: watch.current, "the first verdict")
        assert watch.advice
        assert await watch.ask_now() == OPEN
        assert watch.current == OPEN
        assert watch.advice == []


async def test_on_real_hosts() -> None:
    """A node joins, and learns from its introducer that its port is open on the local network; then it is closed."""
    direct: list[str] = []

    async def until_said(check: Callable[[Reachability], bool]) -> None:
        await until(lambda: watch.current and check(watch.current), "the verdict")

    async with (
        Network(new_key(), "test", listen=[LOOPBACK], serve_dht=True) as introducer,
        Network(new_key(), "test", listen=[LOOPBACK], serve_dht=True, bootstrap=introducer.addresses) as node,
    ):
        watch = ReachWatch(
            lambda: node.reachability(direct),
            addresses=lambda: [*node.addresses, *direct],
            listening=lambda: listens_at(node.listening),
            pauses=ReachPauses(unknown_s=0.05, look_s=0.05),
        )
        async with watch:
            await until_said(lambda r: r.roads() == {"libp2p": Reach.LOCAL.value})
            direct.append("/ip4/127.0.0.1/tcp/1/tls")
            await until_said(lambda r: r.roads() == {"direct": Reach.NOT.value, "libp2p": Reach.LOCAL.value})
            assert watch.current is not None
            assert watch.current.seen == ("127.0.0.1",)
            assert abs(watch.current.clock_ms or 0) < 5_000


def of_libp2p(*outcomes: Outcome) -> Reachability:
    """What so many peers say of the libp2p road."""
    asked = addresses_to_ask([LIBP2P])
    return judge(asked, [LIBP2P], [view(dict.fromkeys(asked, o), asked) for o in outcomes], n_asked=len(outcomes))


async def test_who_needs_a_relay_is_told_with_every_verdict() -> None:
    """The direct road alone does not find a node: offers are asked for over libp2p."""
    told: list[bool | None] = []

    async def hear(needs_none: bool | None) -> None:
        told.append(needs_none)

    answers = [of_libp2p(Outcome.TIMED_OUT), of_libp2p(Outcome.REACHED), OPEN, of_libp2p(Outcome.TIMED_OUT)]
    peers = Peers(*answers)
    watch = ReachWatch(
        peers.ask, addresses=lambda: peers.addresses, listening=lambda: PORTS, pauses=NEVER, on_verdict=hear
    )
    for _ in answers:
        await watch.ask_now()
    assert told == [False, True, None, False]


async def test_who_has_nobody_to_ask_keeps_to_what_was_known() -> None:
    told: list[bool | None] = []

    async def hear(needs_none: bool | None) -> None:
        told.append(needs_none)

    peers = Peers(of_libp2p(Outcome.TIMED_OUT), of_libp2p())
    watch = ReachWatch(
        peers.ask, addresses=lambda: peers.addresses, listening=lambda: PORTS, pauses=NEVER, on_verdict=hear
    )
    for _ in range(2):
        await watch.ask_now()
    assert told == [False, False]
