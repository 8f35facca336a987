"""What a link has to say, written to its road: one write a turn of the loop, and no more bulk than the road takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, cast

from p2pgrid.proto.link import Link

WRITE_BUFFER_BYTES: Final = 256 * 1024
"""When the road holds this much, bulk waits with its producers; `WRITE_STALL_S` later the link is given up."""
WRITE_STALL_S: Final = 30.0
LINGER_S: Final = 2.0
"""How long a closing link may take to hand over its last words."""


class LinkWriter:
    """One link's road, to write on. Without one, what is said waits in the link."""

    def __init__(
        self, link: Link, *, stall_s: float, on_room: Callable[[], None], on_stall: Callable[[], None]
    ) -> None:
        """`on_room` is called when bulk may be said again, `on_stall` when the road took too little for `stall_s`."""
        self.transport: asyncio.Transport | None = None
        """The road, until it is gone."""
        self.is_paused = False
        """True while the road is full."""
        self.is_scheduled = False
        """True if a write is due at the end of this turn of the loop."""
        self._loop = asyncio.get_running_loop()
        self._link = link
        self._stall_s = stall_s
        self._on_room = on_room
        self._on_stall = on_stall
        self._is_closed = False
        self._timer: asyncio.TimerHandle | None = None
        """While the road is full, or the link is closing."""

    @property
    def is_full(self) -> bool:
        """True while bulk has to wait."""
        return self.is_paused or self._link.queued_bytes >= self._link.limits.bulk_queue_bytes

    # -- roads -------------------------------------------------------------------------------------------------

    def begin(self, transport: asyncio.Transport) -> None:
        """Write there, from the first byte on."""
        self.transport = transport
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)

    def take(self, transport: asyncio.Transport) -> None:
        """Write there from now on, where another link has begun."""
        self.transport, self.is_paused = transport, False
        self._cancel_timer()
        self._on_room()

    def hand_over(self) -> asyncio.Transport:
        """Write no more: the road is another link's."""
        transport = cast(asyncio.Transport, self.transport)
        self.transport, self._is_closed = None, True
        self._cancel_timer()
        return transport

    def gone(self) -> None:
        """There is no road any more."""
        self.transport = None
        self._cancel_timer()

    # -- writing -----------------------------------------------------------------------------------------------

    def schedule(self) -> None:
        """Write what the link has to say at the end of this turn of the loop."""
        if not self.is_scheduled and not self._is_closed:
            self.is_scheduled = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write it now."""
        self.is_scheduled = False
        if self.is_paused or self._is_closed or self.transport is None:
            return
        was_full = self._link.queued_bytes >= self._link.limits.bulk_queue_bytes
        data = self._link.data_to_send()
        if data:
            self.transport.write(data)
        if was_full:
            self._on_room()

    def pause(self) -> None:
        """The road is full."""
        self.is_paused = True
        self._timer = self._loop.call_later(self._stall_s, self._on_stall)

    def resume(self) -> None:
        """It has room again."""
        self.is_paused = False
        self._cancel_timer()
        self.flush()
        self._on_room()

    def close(self, *, abort: bool) -> None:
        """Hand over the last words, unless they are not wanted or cannot be, and let go of the road."""
        self._is_closed = True
        self._cancel_timer()
        if self.transport is None:
            return
        if abort or self.is_paused:
            self.transport.abort()
            return
        if last_words := self._link.data_to_send():
            self.transport.write(last_words)
        self.transport.close()
        self._timer = self._loop.call_later(LINGER_S, self.transport.abort)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
