"""Which of a node's processes holds which channel: one at a time, since what is open on a channel is in its memory.

Process 0 is the main one, and holds what nobody has claimed. There is no I/O here; the main process alone decides.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

MAIN: Final = 0

GiveUp = Callable[[int, bytes], None]
"""Tell a process to give up a channel (its 32-byte id). It answers with `released`, now or later."""
Granted = Callable[[], None]
"""The channel is the claimer's now."""


class ClaimTable:
    """Holders and those who wait, first come first served."""

    def __init__(self, give_up: GiveUp) -> None:
        self._give_up = give_up
        self._holders: dict[bytes, int] = {}
        self._waiting: dict[bytes, deque[tuple[int, Granted]]] = {}

    def holder(self, channel: bytes) -> int:
        """The process that holds the channel."""
        return self._holders.get(channel, MAIN)

    def held_by(self, process: int) -> list[bytes]:
        """The channels that a process other than the main one has claimed."""
        return [channel for channel, holder in self._holders.items() if holder == process]

    def claim(self, channel: bytes, process: int, granted: Granted) -> None:
        """`granted` is called once the channel is the process's: at once if it is already, and nobody waits for it."""
        holder = self.holder(channel)
        if channel in self._waiting:
            self._waiting[channel].append((process, granted))
        elif holder == process:
            granted()
        else:
            self._waiting[channel] = deque([(process, granted)])
            self._give_up(holder, channel)

    def released(self, channel: bytes, process: int) -> None:
        """A process has given up a channel, asked or of its own accord. Of one that does not hold it: no news."""
        if self.holder(channel) != process:
            return
        self._set(channel, MAIN)
        waiting = self._waiting.pop(channel, None)
        if not waiting:
            return
        following, granted = waiting.popleft()
        self._set(channel, following)
        if waiting:
            self._waiting[channel] = waiting
        granted()
        if waiting:
            self._give_up(following, channel)

    def gone(self, process: int) -> None:
        """A process has ended: what it waited for is off, what it held is free."""
        for channel, waiting in list(self._waiting.items()):
            left = deque(one for one in waiting if one[0] != process)
            if left:
                self._waiting[channel] = left
            elif self.holder(channel) == process:
                del self._waiting[channel]
            else:
                # Its holder is giving it up for nobody: the channel is the main process's then.
                self._waiting[channel] = left
        for channel in self.held_by(process):
            self.released(channel, process)

    def _set(self, channel: bytes, process: int) -> None:
        if process == MAIN:
            self._holders.pop(channel, None)
        else:
            self._holders[channel] = process
