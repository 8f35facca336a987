"""libp2p's identify (py-libp2p 0.8.1), for a host that listens nowhere.

| fault | here |
|---|---|
| a host without an address waits 0.5 s for one, looking 100 times a second, before it answers | it answers at once |

A client makes a connection for nearly every question that it asks a stranger: the waiting was half of what that costs
(23 ms of CPU time with it, 11 ms without).
"""

from __future__ import annotations

from typing import Any

from libp2p.host.basic_host import BasicHost
from libp2p.identity.identify.identify import ID, identify_handler_for


def answer_without_addresses(host: BasicHost) -> None:
    """Answer identify at once; for a host that will never listen."""
    host.set_stream_handler(ID, identify_handler_for(_Addressless(host), use_varint_format=True))


class _Addressless:
    """The host as its identify should see it."""

    def __init__(self, host: BasicHost) -> None:
        self._host = host

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host, name)

    def get_addrs(self) -> list[Any]:
        return _Complete(self._host.get_addrs())


class _Complete(list[Any]):
    """A list that has all that it will ever have: true although it is empty."""

    def __bool__(self) -> bool:
        return True
