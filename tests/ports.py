"""Ports at which nobody listens."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator


@contextlib.contextmanager
def reserved_port(port: int = 0, host: str = "127.0.0.1") -> Iterator[int]:
    """A port (0: any free one) that the system gives to no other process which asks for any. It refuses connections.

    Who names it may listen there all the same.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((host, port))
        yield int(held.getsockname()[1])
