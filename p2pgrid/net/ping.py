"""`/ipfs/ping/1.0.0`: 32 bytes are sent back, again and again (https://github.com/libp2p/specs/blob/master/ping/ping.md).

libp2p 0.8.1's own answers as fast as it is asked, and remembers every peer that ever asked.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio
from libp2p.io.exceptions import IncompleteReadError
from libp2p.io.utils import read_exactly
from libp2p.network.stream.exceptions import StreamEOF

PING_BYTES: Final = 32
IDLE_TIMEOUT_S: Final = 60.0


def answer_pings(pace: Callable[[Any], Awaitable[None]], idle_timeout_s: float = IDLE_TIMEOUT_S) -> Any:
    """The handler of a ping's stream. `pace` waits until one more answer is due. Raises IOException."""

    async def answer(stream: Any) -> None:
        with trio.move_on_after(idle_timeout_s) as deadline:
            while True:
                try:
                    data = await read_exactly(stream, PING_BYTES)
                except (IncompleteReadError, StreamEOF):
                    await stream.close()
                    return
                await pace(stream)
                await stream.write(data)
                deadline.deadline = trio.current_time() + idle_timeout_s
        await stream.reset()

    return answer
