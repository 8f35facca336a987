"""A listening socket, for whoever accepts by itself: the direct road, and a main process with workers."""

from __future__ import annotations

import os
import socket
from typing import Any, Final

BACKLOG: Final = 1024
"""Connections that the system keeps until they are accepted."""


def listening_socket(family: int, address: tuple[Any, ...]) -> socket.socket:
    """Bound, listening and not blocking; IPv6 is IPv6 alone. Raises OSError."""
    server = socket.socket(family, socket.SOCK_STREAM)
    try:
        server.setblocking(False)
        if os.name == "posix":
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        server.bind(address)
        server.listen(BACKLOG)
    except OSError:
        server.close()
        raise
    return server
