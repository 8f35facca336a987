"""A circuit at the relay: two streams, joined. What one end sends goes to the other, unread.

Each direction holds at most its window in memory, and grants it anew as the other end takes what came: an end that
takes nothing stops who sends to it, and nobody else.
"""

from __future__ import annotations

import logging
from typing import Final

import trio
from libp2p.io.exceptions import IOException
from libp2p.stream_muxer.exceptions import MuxedConnError, MuxedStreamError

from p2pgrid.net.relay.limits import RelayLimits
from p2pgrid.net.relay.pace import Bucket
from p2pgrid.net.session_stream import FRAME_BYTES, SessionStream
from p2pgrid.net.shielding import shielded_for

logger = logging.getLogger(__name__)

_RESET_S: Final = 1.0
_BROKEN: Final = (IOException, MuxedStreamError, MuxedConnError)


class Pump:
    """Joins two streams whose protocols are done."""

    def __init__(self, one: SessionStream, other: SessionStream, limits: RelayLimits, whole: Bucket) -> None:
        """`whole`: the pace of all circuits together."""
        self._ends = (one, other)
        self._limits = limits
        self._whole = whole
        self._own = Bucket(limits.circuit_bytes_per_s, trio.current_time())
        self._scope = trio.CancelScope()
        self._cut_because = ""
        self.carried_bytes = 0
        """So far, both directions together."""

    async def run(self) -> str:
        """Carry bytes until both ends have ended, one broke, or a limit is reached: which of it, in words.

        Raises nothing, save on cancellation. Both streams are done with then.
        """
        one, other = self._ends
        is_done = False
        if self._limits.circuit_s:
            self._scope.deadline = trio.current_time() + self._limits.circuit_s
        try:
            with self._scope:
                async with trio.open_nursery() as watching:
                    watching.start_soon(self._cut_when_idle)
                    async with trio.open_nursery() as carrying:
                        carrying.start_soon(self._carry_or_cut, one, other)
                        carrying.start_soon(self._carry_or_cut, other, one)
                    is_done = not self._cut_because
                    watching.cancel_scope.cancel()
        finally:
            for end in self._ends:
                if is_done:
                    end.close()
                else:
                    with shielded_for(_RESET_S):
                        await end.reset()
        return "both ends ended" if is_done else self._cut_because or "its time was over"

    def _cut(self, why: str) -> None:
        self._cut_because = self._cut_because or why
        self._scope.cancel()

    async def _carry_or_cut(self, source: SessionStream, sink: SessionStream) -> None:
        try:
            await self._carry(source, sink)
        except* _BROKEN as broken:
            logger.debug("a circuit broke: %r", broken)
            self._cut("an end broke")

    async def _carry(self, source: SessionStream, sink: SessionStream) -> None:
        """One direction, to its end."""
        inbox, arrived, is_ended = bytearray(), trio.Event(), False
        window, taken = self._limits.window_bytes, 0

        def hear(data: bytes) -> None:
            nonlocal inbox
            inbox += data
            arrived.set()

        async def hear_end() -> None:
            nonlocal is_ended
            await source.wait_end()
            is_ended = True
            arrived.set()

        async with trio.open_nursery() as nursery:
            await source.open(hear, window)
            nursery.start_soon(hear_end)
            while inbox or not is_ended:
                if not inbox:
                    await arrived.wait()
                    arrived = trio.Event()
                    continue
                chunk = bytes(memoryview(inbox)[:FRAME_BYTES])
                del inbox[: len(chunk)]
                await self._wait_turn(len(chunk))
                await sink.write(chunk)
                taken += len(chunk)
                if taken >= window // 2 and not is_ended:
                    await source.grant(taken)
                    taken = 0
        await sink.finish()

    async def _wait_turn(self, n_bytes: int) -> None:
        now_s = trio.current_time()
        pause_s = max(self._own.take(n_bytes, now_s), self._whole.take(n_bytes, now_s))
        self.carried_bytes += n_bytes
        if pause_s:
            await trio.sleep(pause_s)

    async def _cut_when_idle(self) -> None:
        while True:
            before = self.carried_bytes
            await trio.sleep(self._limits.idle_s)
            if self.carried_bytes - before < self._limits.idle_bytes:
                self._cut("it was idle")
