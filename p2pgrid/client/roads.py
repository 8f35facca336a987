"""From an offer's addresses to a link on the direct road."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from p2pgrid.errors import RemoteError, Unreachable
from p2pgrid.net import direct
from p2pgrid.net.connection import LinkConnection
from p2pgrid.proto.keys import PublicKey, SecretKey

_HOSTS: Final = ("ip4", "ip6", "dns", "dns4", "dns6")
_MAX_DIALLED: Final = 4
DIAL_TIMEOUT_S: Final = 5.0

Dialler = Callable[[Sequence[tuple[str, int]], PublicKey, SecretKey], Awaitable[LinkConnection]]
"""A link to the provider at one of the addresses, or RemoteError."""


def direct_addresses(multiaddrs: Sequence[str]) -> list[tuple[str, int]]:
    """Host and port of each `/ip4|ip6|dns.../<host>/tcp/<port>/tls` (`/p2p/...` may follow); others are passed over."""
    found: list[tuple[str, int]] = []
    for text in multiaddrs:
        parts = text.split("/")
        if len(parts) in (6, 8) and parts[0] == "" and parts[1] in _HOSTS and parts[3] == "tcp" and parts[5] == "tls":
            host, port = parts[2], parts[4]
            if host and port.isascii() and port.isdigit() and 0 < int(port) < 65536 and (host, int(port)) not in found:
                found.append((host, int(port)))
    return found


async def dial_provider(
    addresses: Sequence[tuple[str, int]], provider: PublicKey, secret_key: SecretKey
) -> LinkConnection:
    """Dial the addresses one after the other, at most four. Raises the last RemoteError."""
    error: RemoteError = Unreachable(f"{provider} gives no address of the direct road.")
    for host, port in addresses[:_MAX_DIALLED]:
        try:
            return await direct.dial(host, port, provider, secret_key, timeout_s=DIAL_TIMEOUT_S)
        except Unreachable as unreachable:
            error = unreachable
    raise error
