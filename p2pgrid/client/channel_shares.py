"""Which of a gateway's workers has which channel. A worker buys on channels of its own, and nobody else does.

With each provider the newest channels are dealt out one by one; older ones, which are only settled, go to the first
worker. What a worker opens is its own. A share holds for as long as the gateway runs, over a worker's restart too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from p2pgrid.proto.messages import Channel

FIRST = 1


class ChannelShares:
    """Workers are numbered from 1."""

    def __init__(self, channels: Iterable[Channel], n_workers: int) -> None:
        """`channels`: on record at the start, oldest first."""
        self._workers: dict[bytes, int] = {}
        dealt: Counter[bytes] = Counter()
        for channel in reversed(list(channels)):
            dealt[channel.provider] += 1
            turn = dealt[channel.provider]
            self._workers[channel.channel] = turn if turn <= n_workers else FIRST

    def of(self, worker: int) -> list[bytes]:
        """The worker's channels (32-byte ids)."""
        return [channel for channel, owner in self._workers.items() if owner == worker]

    def owner(self, channel: bytes) -> int:
        """Whose a channel is; the first worker's if nobody has heard of it."""
        return self._workers.get(channel, FIRST)

    def came_from(self, worker: int, channel: bytes) -> bool:
        """A worker records a channel. True if it is new, and so the worker's."""
        return self._workers.setdefault(channel, worker) == worker
