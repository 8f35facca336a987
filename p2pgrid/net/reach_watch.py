"""Keeps asking whether strangers can reach this node, and tells its operator when that changes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from p2pgrid.errors import P2pgridError
from p2pgrid.net.reach_text import PROVIDER_SETTINGS, ListensAt, advice, verdict_text
from p2pgrid.net.reach_wire import RoadName
from p2pgrid.net.reachability import Reach, Reachability

log = logging.getLogger(__name__)

_UNKNOWN_SAID_AFTER: Final = 3
"""In a row, before it is said that nobody can be asked: the network has only just been joined at first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReachPauses:
    """When it is asked again, in seconds. Each pause is a little longer or shorter by chance."""

    steady_s: float = 30 * 60.0
    failed_s: float = 5 * 60.0
    """Where strangers do not reach the node: perhaps somebody mends it just now."""
    unknown_s: float = 1.0
    """Where nobody could be asked; doubled each time, up to a minute."""
    look_s: float = 5.0
    """How often the node's own addresses are looked at: a change is asked about at once."""


class ReachWatch:
    """Use it with `async with`. `current` is the last verdict, None before the first."""

    def __init__(
        self,
        ask: Callable[[], Awaitable[Reachability]],
        *,
        addresses: Callable[[], Sequence[str]],
        listening: Callable[[], Iterable[ListensAt]],
        settings: Mapping[RoadName, str] = PROVIDER_SETTINGS,
        pauses: ReachPauses | None = None,
        on_verdict: Callable[[bool | None], Awaitable[None]] | None = None,
    ) -> None:
        """`ask` asks several peers. `addresses`: what others are told; `listening`: the ports that are open; both now.

        `settings`: see `reach_text.advice`. `on_verdict` is told with every verdict whether strangers reach the libp2p
        port, None where nobody knows: `Network.set_reachable`. It may raise P2pgridError.
        """
        self._on_verdict = on_verdict
        self.current: Reachability | None = None
        self._ask = ask
        self._addresses = addresses
        self._listening = listening
        self._settings = settings
        self._pauses = pauses or ReachPauses()
        self._asking = asyncio.Lock()
        self._said: object = None
        self._unknown = 0
        """How often in a row nobody could be asked."""
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="ask whether strangers reach this node")
        self._task.add_done_callback(_report_end)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    @property
    def advice(self) -> list[str]:
        """What to do so that strangers reach the node; nothing where they do, or where that is not known."""
        if self.current is None:
            return []
        return advice(self.current, self._listening(), settings=self._settings)

    async def ask_now(self) -> Reachability:
        """Ask afresh; the verdict. Raises P2pgridError where the network is down."""
        async with self._asking:
            found = await self._ask()
            self._take(found)
            if self._on_verdict is not None and self.current is not None:
                await self._on_verdict(self.current.needs_no_relay)
        return found

    async def _run(self) -> None:
        while True:
            asked_about = tuple(self._addresses())
            try:
                await self.ask_now()
            except P2pgridError as error:
                log.debug("nobody was asked whether strangers reach this node: %s", error)
                self._unknown += 1
            await self._pause(asked_about)

    async def _pause(self, asked_about: tuple[str, ...]) -> None:
        """Until it is time, or the node has other addresses."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + self._pause_s() * random.uniform(0.85, 1.15)  # noqa: S311 (no secret)
        while (left_s := until_s - loop.time()) > 0:
            await asyncio.sleep(min(left_s, self._pauses.look_s))
            if tuple(self._addresses()) != asked_about:
                log.info("this node's addresses have changed: %s", ", ".join(self._addresses()) or "none")
                return

    def _pause_s(self) -> float:
        if self._unknown:
            return min(self._pauses.unknown_s * 2.0 ** min(self._unknown - 1, 10), 60.0)
        is_well = self.current is not None and all(
            reach == Reach.OUTSIDE.value for reach in self.current.roads().values()
        )
        return self._pauses.steady_s if is_well else self._pauses.failed_s

    def _take(self, found: Reachability) -> None:
        self._unknown = self._unknown + 1 if found.reach is Reach.UNKNOWN else 0
        if self._unknown and self._unknown < _UNKNOWN_SAID_AFTER and self.current is not None:
            return  # a moment without anybody to ask is no news, and what was known stays
        self.current = found
        if self._unknown and self._unknown < _UNKNOWN_SAID_AFTER:
            return
        key = (found.reach, found.roads(), tuple(self.advice))
        if key == self._said:
            return
        self._said = key
        is_bad = bool(self.advice)
        log.log(logging.WARNING if is_bad else logging.INFO, "%s", verdict_text(found))
        for line in self.advice:
            log.warning("to be reached: %s", line)


def shown(watch: ReachWatch | None) -> dict[str, Any] | None:
    """The verdict for programs; None where the network was not joined, or nothing is known yet."""
    if watch is None or (current := watch.current) is None:
        return None
    return {
        "reach": current.reach.value,
        "text": verdict_text(current),
        "roads": current.roads(),
        "addresses": [
            {
                "address": one.address,
                "road": one.road.value,
                "reach": one.reach.value,
                "announced": one.is_announced,
                "outcomes": one.outcomes,
                "disputed": one.is_disputed,
            }
            for one in current.addresses
        ],
        "seen": list(current.seen),
        "clock_ms": current.clock_ms,
        "newer": list(current.newer),
        "peers_asked": current.asked,
        "peers_silent": current.silent,
        "peers_answered": current.answered,
        "peers_outside": current.answered_outside,
        "checked_ms": current.checked_ms,
        "advice": watch.advice,
    }


def _report_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("%r ended", task.get_name(), exc_info=error)
