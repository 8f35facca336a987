"""Many answers under way, read in rounds: what came on all of them within a millisecond or two is read together.

An event loop wakes for each event of each answer, and so does everything behind it: the link, and the peer at its other
end. With many streams at once the waking costs more than the work. So while a client's answers bring many reads a
second, their sockets are watched apart from the loop's, and read once a round. The loop reads the first few times of
every answer itself, at once: a first token waits for no round, and neither does anything while little comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
from typing import Final, Protocol

ROUND_S: Final = 0.001
"""Between two rounds. Timers of an event loop are no finer, and may be late by as much."""
READS: Final = 64
"""After so many it is judged whether much comes or little."""
BUSY_READS_PER_S: Final = 1_500
"""From here on rounds pay."""
FEWEST_STREAMS: Final = 8
"""Fewer answers than these are read by the loop, however fast they come: a round has one read of each at most."""
LEAST_PER_ROUND: Final = 1.5
"""With fewer reads a round, on average, the loop does better by itself."""
_READ_BYTES: Final = 16 * 1024
"""Of one answer in one round."""


class RoundReader(Protocol):
    """A connection that can be read in rounds."""

    def round_received(self, data: bytes) -> None:
        """Bytes came."""

    def leave_rounds(self) -> None:
        """The loop reads it again: what comes next, an error or an end among it, is heard from there."""


class ReadRounds:
    """The rounds of one client's connections. `enter` and `leave` are for a socket that the loop does not read."""

    def __init__(self) -> None:
        self.is_busy = False
        """True while connections should `enter`."""
        self._loop = asyncio.get_running_loop()
        self._poll: select.epoll | None = None
        self._readers: dict[int, RoundReader] = {}
        self._reads = self._rounds = 0
        self._since_s = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._is_waiting = False

    def loop_read(self) -> None:
        """The loop has read once: see whether it does so all the time."""
        self._reads += 1
        if self._reads >= READS:
            now_s = self._loop.time()
            self.is_busy = hasattr(select, "epoll") and BUSY_READS_PER_S * (now_s - self._since_s) <= READS
            self._reads, self._since_s = 0, now_s

    def enter(self, fd: int, reader: RoundReader) -> None:
        """Read `fd` in rounds from now on."""
        if self._poll is None:
            self._poll = select.epoll()
        self._poll.register(fd, select.EPOLLIN)
        self._readers[fd] = reader
        if self._timer is None and not self._is_waiting:
            self._reads = self._rounds = 0
            self._timer = self._loop.call_later(ROUND_S, self._round)

    def leave(self, fd: int) -> None:
        """Read `fd` no more. A socket is to leave before it is closed."""
        if self._readers.pop(fd, None) is not None and self._poll is not None:
            with contextlib.suppress(OSError):  # closed already, and so forgotten by the kernel
                self._poll.unregister(fd)

    def close(self) -> None:
        """Let go of what the rounds need."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._poll is not None:
            self._wait_no_more(self._poll)
            self._poll.close()
            self._poll = None

    def _wait(self, poll: select.epoll) -> None:
        """Nothing came: hold no rounds before something does. What waits for many sockets is itself waited for."""
        self._is_waiting = True
        self._loop.add_reader(poll.fileno(), self._came, poll)

    def _wait_no_more(self, poll: select.epoll) -> None:
        if self._is_waiting:
            self._is_waiting = False
            self._loop.remove_reader(poll.fileno())

    def _came(self, poll: select.epoll) -> None:
        """Something came. More follows at once, or there would be no rounds: it is read together."""
        self._wait_no_more(poll)
        self._timer = self._loop.call_later(ROUND_S, self._round)

    def _round(self) -> None:
        self._timer = None
        readers, poll = self._readers, self._poll
        if poll is None or not readers:
            self.is_busy = False
            return
        ready = poll.poll(0)
        for fd, _ in ready:
            reader = readers.get(fd)
            if reader is None:
                continue  # what one brought has ended another
            try:
                data = os.read(fd, _READ_BYTES)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if data:
                reader.round_received(data)
            else:
                reader.leave_rounds()
        self._rounds += 1
        self._reads += len(ready)
        if self._rounds >= READS:
            self._judge()
        if not readers or self._poll is None:
            return
        if ready:
            self._timer = self._loop.call_later(ROUND_S, self._round)
        else:
            self._wait(poll)

    def _judge(self) -> None:
        """After some rounds: end them, where each brings so little that the loop does better by itself."""
        if self._reads < LEAST_PER_ROUND * self._rounds:
            self.is_busy = False
            for reader in list(self._readers.values()):
                reader.leave_rounds()
        self._reads = self._rounds = 0
        self._since_s = self._loop.time()
