"""One process with several real libp2p hosts, which does what it is told on its standard input, one JSON object a line.

`python -m dht_parts.real_node`. Every answer is one JSON object on its standard output.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any, Final

import trio
from libp2p.host.basic_host import BasicHost
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from p2pgrid.net.addresses import full_multiaddr, parse_peer_multiaddr
from p2pgrid.net.dht import Dht
from p2pgrid.net.host import open_host
from p2pgrid.net.kad_query import Contact, KadQuery
from p2pgrid.net.lookup_keys import record_key
from p2pgrid.proto.keys import SecretKey

NETWORK: Final = "bench"
AT_ONCE: Final = 1
TIME_LIMIT_S: Final = 30.0
LISTEN: Final = Multiaddr("/ip4/127.0.0.1/tcp/0")
_in_thread: Final[Any] = trio.to_thread.run_sync
"""As it is; the type stubs that mypy finds are of an older trio."""


class _CountedQuery(KadQuery):
    """Counts the requests that it makes."""

    made = 0

    async def _exchange(self, server: Contact, message: Any) -> bytes:
        self.made += 1
        return await super()._exchange(server, message)


class Hosts:
    """The hosts of this process."""

    def __init__(self, stack: AsyncExitStack, nursery: trio.Nursery) -> None:
        self._stack = stack
        self._nursery = nursery
        self.hosts: list[tuple[BasicHost, Dht]] = []
        self.seeds: list[Contact] = []

    async def open(self, count: int) -> dict[str, Any]:
        """Start serving hosts."""
        for _ in range(count):
            self.hosts.append(await self._open(self._stack, serve=True))
        return {"addresses": [full_multiaddr(host.get_addrs()[0], str(host.get_id())) for host, _ in self.hosts]}

    async def join(self, seeds: Sequence[str]) -> dict[str, Any]:
        """Have all of them join, one after the other."""
        peers = [parse_peer_multiaddr(seed) for seed in seeds]
        self.seeds = [Contact(ID.from_base58(peer_id), (address,)) for peer_id, address in peers]
        took: list[float] = []
        limiter = trio.CapacityLimiter(AT_ONCE)

        async def one(dht: Dht) -> None:
            async with limiter:
                began = time.perf_counter()
                await dht.join(self.seeds)
                took.append(time.perf_counter() - began)

        async with trio.open_nursery() as nursery:
            for _, dht in self.hosts:
                nursery.start_soon(one, dht)
        return {"took_s": took, "requests": self._requests()}

    async def announce(self, host: int, key: str) -> dict[str, Any]:
        """Have one announce itself."""
        began = time.perf_counter()
        held = await self.hosts[host][1].announce(record_key(NETWORK, key))
        return {"took_s": time.perf_counter() - began, "held": held}

    async def find(self, host: int, key: str) -> dict[str, Any]:
        """Look providers up: by one of the hosts, or for -1 by a client that joins for it."""
        async with AsyncExitStack() as stack:
            began = time.perf_counter()
            if host < 0:
                _, dht = await self._open(stack, serve=False)
                await dht.join(self.seeds)
            else:
                _, dht = self.hosts[host]
            before = _made(dht) if host >= 0 else 0
            found = await dht.find_providers(record_key(NETWORK, key), 50, TIME_LIMIT_S)
            took = time.perf_counter() - began
            return {"took_s": took, "found": [peer.peer_id for peer in found], "requests": _made(dht) - before}

    async def refresh(self) -> dict[str, Any]:
        """A round of maintenance for each."""
        for _, dht in self.hosts:
            await dht.refresh()
        return {}

    async def state(self) -> dict[str, Any]:
        """Tables and requests."""
        return {"tables": [dht.size for _, dht in self.hosts], "requests": self._requests()}

    def _requests(self) -> int:
        return sum(_made(dht) for _, dht in self.hosts)

    async def _open(self, stack: AsyncExitStack, *, serve: bool) -> tuple[BasicHost, Dht]:
        host = await stack.enter_async_context(open_host(SecretKey(os.urandom(32)), [LISTEN] if serve else []))
        dht = Dht(host, NETWORK, serve=serve)
        dht._query.__class__ = _CountedQuery  # as it is, and counting
        self._nursery.start_soon(dht.run)
        return host, dht


def _made(dht: Dht) -> int:
    return int(getattr(dht._query, "made", 0))


async def main() -> None:
    """Until the standard input ends."""
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        hosts = Hosts(stack, nursery)
        print(json.dumps({"pid": os.getpid()}), flush=True)
        while line := await _in_thread(sys.stdin.readline, abandon_on_cancel=True):
            order = json.loads(line)
            answer = await getattr(hosts, order.pop("do"))(**order)
            print(json.dumps(answer), flush=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
