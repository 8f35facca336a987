"""When TCP gives up on a peer from whom nothing comes any more, not even acknowledgements.

A machine that lost its power, a cable that was pulled, an address that was given to somebody else: none of them says
so. Left alone, Linux sends again for a quarter of an hour, and all that time the connection counts as live: nobody
dials the peer at the address where it is now.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any, Final

GONE_AFTER_S: Final = 20
"""What was sent and is not acknowledged for so long has not arrived (RFC 5482). Nor may a reader's window stay shut
longer."""
IDLE_S: Final = 20
"""A connection on which nothing is said is asked whether it is still there after so long, which also keeps routers from
forgetting it."""
PROBE_INTERVAL_S: Final = 10


def notice_silence(connection: Any) -> None:
    """Have a TCP socket, or what asyncio or trio has for one, break by itself when its peer is gone.

    Sockets of other kinds are left alone, and systems that cannot do it (TCP_USER_TIMEOUT is Linux's).
    """
    if connection is None or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    with contextlib.suppress(OSError):  # it has ended already
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE", IDLE_S),
            ("TCP_KEEPINTVL", PROBE_INTERVAL_S),
            ("TCP_USER_TIMEOUT", GONE_AFTER_S * 1000),
        ):
            if (option := getattr(socket, name, None)) is not None:
                connection.setsockopt(socket.IPPROTO_TCP, option, value)
