"""Keeps one link to one peer alive, on whatever road its `dial` takes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum

from p2pgrid.errors import P2pgridError, ProtocolViolation, RemoteError, Unreachable
from p2pgrid.net.connection import LinkConnection

log = logging.getLogger(__name__)

Dial = Callable[[], Awaitable[LinkConnection]]
"""Makes a new link, or raises RemoteError. `functools.partial(direct.dial, host, port, provider, key)`, say."""


class KeeperState(Enum):
    """What the keeper is about."""

    DIALLING = "dialling"
    LIVE = "live"
    WAITING = "waiting"
    """The last dial failed, or the link was lost: the next dial comes after a pause."""
    BARRED = "barred"
    """The peer broke the protocol. It is not dialled again."""
    CLOSED = "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Pauses between dials: `first_s`, doubling up to `most_s`, each cut by a random part of up to a half.

    A link that lived `steady_s` starts the row anew.
    """

    first_s: float = 0.25
    most_s: float = 60.0
    steady_s: float = 10.0

    def pause_s(self, failures: int, rng: random.Random) -> float:
        """The pause after so many failures in a row (1 or more)."""
        longest = min(self.most_s, self.first_s * 2.0 ** min(failures - 1, 30))
        return longest * rng.uniform(0.5, 1.0)


class LinkKeeper:
    """One peer's link, dialled at once, and again whenever it is lost or retired.

    Dialled links that were retired (the peer said GOAWAY) live on until their streams are done. `aclose` closes all.
    """

    def __init__(self, dial: Dial, *, rng: random.Random, backoff: Backoff | None = None, name: str = "") -> None:
        self.state = KeeperState.DIALLING
        self.last_error: P2pgridError | None = None
        """Why there is, or last was, no link."""
        self.dials = 0
        """Dials so far."""
        self._dial = dial
        self._rng = rng
        self._backoff = backoff or Backoff()
        self._name = name
        self._link: LinkConnection | None = None
        self._links: set[LinkConnection] = set()
        self._changed = asyncio.Event()
        self._hurry = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._keep(), name=f"keeper {name}")
        self._task.add_done_callback(self._stopped)

    @property
    def live_link(self) -> LinkConnection | None:
        """The link, if there is one now that takes new streams."""
        return self._link if self.state is KeeperState.LIVE else None

    async def link(self, timeout_s: float) -> LinkConnection:
        """The live link; waits for one up to `timeout_s`, then raises Unreachable with the last failure.

        Raises the ProtocolViolation at once if the peer is barred.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    if (live := self.live_link) is not None:
                        return live
                    if self.state is KeeperState.BARRED and self.last_error is not None:
                        raise self.last_error
                    if self.state is KeeperState.CLOSED:
                        raise Unreachable(f"the link to {self._name} is no longer kept.")
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            why = self.last_error.message if self.last_error else "the dial is still under way."
            raise Unreachable(f"no link to {self._name} within {timeout_s:g} s: {why}") from self.last_error

    def dial_now(self) -> None:
        """If the next dial waits, wait no longer than after the first failure."""
        self._hurry.set()

    async def aclose(self) -> None:
        """Close the link and dial no more."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._set(KeeperState.CLOSED)
        await asyncio.gather(*(link.aclose() for link in list(self._links)))

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            self._hurry.clear()
            self._set(KeeperState.DIALLING)
            self.dials += 1
            try:
                link = await self._dial()
            except RemoteError as error:
                failures += 1
                self.last_error = error
            else:
                born_s = loop.time()
                self._hold(link)
                await asyncio.shield(link.retired)
                self.last_error = link.reason or Unreachable(f"{link.name} takes no new streams on this link.")
                failures = 1 if loop.time() - born_s >= self._backoff.steady_s else failures + 1
            self._link = None
            if isinstance(self.last_error, ProtocolViolation):
                log.warning("%s is not dialled again: %s", self._name, self.last_error)
                self._set(KeeperState.BARRED)
                return
            self._set(KeeperState.WAITING)
            pause_s = self._backoff.pause_s(failures, self._rng)
            log.info("%s: %s Next dial in %.1f s.", self._name, self.last_error.message, pause_s)
            await self._pause(pause_s)

    async def _pause(self, pause_s: float) -> None:
        shortest_s = min(pause_s, self._backoff.pause_s(1, self._rng))
        await asyncio.sleep(shortest_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s - shortest_s):
                await self._hurry.wait()

    def _hold(self, link: LinkConnection) -> None:
        self._links.add(link)
        link.closed.add_done_callback(lambda _closed: self._links.discard(link))
        self._link = link
        self._set(KeeperState.LIVE)

    def _stopped(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s is no longer dialled", self._name, exc_info=error)
            self._set(KeeperState.CLOSED)

    def _set(self, state: KeeperState) -> None:
        self.state = state
        self._changed.set()
