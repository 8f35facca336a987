"""Which road led to each provider the last time, also in an earlier run: what saves a client the wait for a dead port.

A cache. Deleting it costs a quarter of a second for each road that is dialled in vain, once; whoever writes it has a
client dial other addresses of the provider's own offer than it would have, and nothing more.

JSON: `{"version": 1, "roads": [{"peer_id": "12D3KooW...", "road": "libp2p", "worked_ms": ...}]}`, the oldest first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

import msgspec

from p2pgrid.client.background import log_end
from p2pgrid.clock import unix_ms
from p2pgrid.net.road import Road

log = logging.getLogger(__name__)

MOST_REMEMBERED: Final = 4_000
KEPT_MS: Final = 30 * 24 * 3_600_000
RENEWED_MS: Final = 24 * 3_600_000
"""That a road works still is written down once a day, not with every dial."""
WRITE_PAUSE_S: Final = 5.0
"""What changes within so long is written at once: a large market is dialled in seconds."""
_MOST_BYTES: Final = 1024 * 1024
_MOST_PEER_ID_CHARS: Final = 64


class RememberedRoad(msgspec.Struct, frozen=True):
    """That a road led to a provider, at a time in Unix milliseconds."""

    peer_id: str
    road: Road
    worked_ms: int


class _File(msgspec.Struct, frozen=True):
    version: int = 1
    roads: tuple[RememberedRoad, ...] = ()


class RoadMemory:
    """The roads that worked, by peer id. Those to whom the direct one did take no place: it is tried in any case.

    With a path it is used with `async with`, and outlives the process; without one it need not be.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        now_ms: Callable[[], int] = unix_ms,
        writes: bool = True,
        write_pause_s: float = WRITE_PAUSE_S,
    ) -> None:
        """Without `writes` the file is read and left alone: another process keeps it."""
        self._path = path
        self._now_ms = now_ms
        self._writes = writes and path is not None
        self._write_pause_s = write_pause_s
        self._roads: dict[str, RememberedRoad] = {}
        """The one that worked longest ago first."""
        self._is_changed = False
        self._writing: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()

    async def __aenter__(self) -> Self:
        if self._path is not None:
            now_ms = self._now_ms()
            for one in await asyncio.to_thread(read_roads, self._path):
                worked_ms = min(one.worked_ms, now_ms)  # a clock that was set back
                if one.road is not Road.DIRECT and now_ms - worked_ms <= KEPT_MS:
                    self._put(RememberedRoad(one.peer_id, one.road, worked_ms))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing.set()
        if self._writing is not None:
            await self._writing
        await self._write()

    def road_to(self, peer_id: str) -> Road:
        """The road that worked the last time, if that was within 30 days; the direct one where nothing is known."""
        known = self._roads.get(peer_id)
        if known is None or self._now_ms() - known.worked_ms > KEPT_MS:
            return Road.DIRECT
        return known.road

    def worked(self, peer_id: str, road: Road) -> None:
        """A link over this road has just come up."""
        known, now_ms = self._roads.get(peer_id), self._now_ms()
        if road is Road.DIRECT:
            if known is None:
                return
            del self._roads[peer_id]
        elif known is not None and known.road is road and now_ms - known.worked_ms < RENEWED_MS:
            return
        else:
            self._put(RememberedRoad(peer_id, road, now_ms))
        self._is_changed = True
        if self._writes and (self._writing is None or self._writing.done()):
            self._writing = asyncio.get_running_loop().create_task(self._write_soon(), name="writing roads")
            self._writing.add_done_callback(log_end)

    def _put(self, one: RememberedRoad) -> None:
        self._roads.pop(one.peer_id, None)
        while len(self._roads) >= MOST_REMEMBERED:
            del self._roads[next(iter(self._roads))]
        self._roads[one.peer_id] = one

    async def _write_soon(self) -> None:
        while self._is_changed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._write_pause_s):
                    await self._closing.wait()
            await self._write()

    async def _write(self) -> None:
        """A file that cannot be written is logged: it is only a cache."""
        if not self._writes or not self._is_changed or self._path is None:
            return
        self._is_changed, now_ms = False, self._now_ms()
        kept = tuple(one for one in self._roads.values() if now_ms - one.worked_ms <= KEPT_MS)
        await asyncio.to_thread(_replace, self._path, msgspec.json.encode(_File(roads=kept)))


def read_roads(path: Path) -> tuple[RememberedRoad, ...]:
    """What a file says; nothing where it is missing, damaged or too large, which is logged."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            log.warning("%s is too large to be what roads are remembered in; it is not read", path)
            return ()
        roads = msgspec.json.decode(path.read_bytes(), type=_File).roads
    except FileNotFoundError:
        return ()
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        log.warning("the roads remembered in %s are not read: %s", path, error)
        return ()
    return tuple(one for one in roads if len(one.peer_id) <= _MOST_PEER_ID_CHARS)


def _replace(path: Path, content: bytes) -> None:
    """As a whole, mode 0600."""
    partial = path.with_suffix(".partial")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        partial.replace(path)
    except OSError as error:
        log.warning("the roads that worked cannot be remembered: %s", error)
