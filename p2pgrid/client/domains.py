"""Does a domain name a peer as its own? The file under `/.well-known/` says so (docs/spec/card.md, section 4).

The domain comes from a stranger's card, and whoever writes it there chooses where this machine connects to. So: HTTPS
alone, port 443 alone, a DNS name and no address, no redirect, nothing sent but the request, a small answer, little
time, and no address that is not public.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import DefaultResolver

from p2pgrid.client.operator import DomainCheck
from p2pgrid.errors import InvalidRecord, P2pgridError, Refused, Unreachable
from p2pgrid.printable import printable
from p2pgrid.proto.card import is_domain
from p2pgrid.proto.card_chain import CardChain
from p2pgrid.proto.well_known import MAX_BYTES, PATH, WellKnown, parse_well_known

FETCH_TIMEOUT_S: Final = 6.0
GOOD_FOR_MS: Final = 3_600_000
"""How long an answer is believed."""
BAD_FOR_MS: Final = 60_000
"""How long until a domain that did not answer well is asked again."""
MAX_REMEMBERED: Final = 2_000
_EMBEDDING: Final = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")))
"""IPv6 addresses that stand for IPv4 ones, which may be private."""


@dataclass(frozen=True, slots=True)
class _Heard:
    peers: frozenset[str]
    reason: str
    good_until_ms: int
    cards: CardChain = ()


def is_public(address: str) -> bool:
    """True for an IP address that anybody on the Internet reaches at the same place."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address) and any(parsed in network for network in _EMBEDDING):
        return False
    return parsed.is_global and not parsed.is_multicast


class PublicResolver(AbstractResolver):
    """Resolves names to public addresses alone: the connection is made to what was checked, not to a second answer."""

    def __init__(self, inner: AbstractResolver | None = None) -> None:
        self._inner = inner or DefaultResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        public = [one for one in found if is_public(one["host"])]
        if not public:
            raise OSError(None, "it has no public address")
        return public

    async def close(self) -> None:
        await self._inner.close()


class DomainChecker:
    """Asks domains, and remembers what they said for a while. Use it with `async with`."""

    def __init__(
        self,
        now_ms: Callable[[], int],
        *,
        resolver: AbstractResolver | None = None,
        trusted: ssl.SSLContext | None = None,
        port: int = 443,
        timeout_s: float = FETCH_TIMEOUT_S,
    ) -> None:
        """What is left out is as it has to be; tests bring a `resolver` that finds their own server, its certificate
        and its port."""
        self._now_ms = now_ms
        self._resolver = resolver
        self._trusted = trusted or ssl.create_default_context()
        self._port = port
        self._timeout_s = timeout_s
        self._heard: dict[str, _Heard] = {}
        self._asking: dict[str, asyncio.Task[_Heard]] = {}

    async def aclose(self) -> None:
        """Give up what is under way."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def known(self, domain: str, peer_id: str) -> DomainCheck | None:
        """What the domain said, if that is still to be believed. Asks nobody."""
        heard = self._heard.get(domain)
        if heard is None or heard.good_until_ms <= self._now_ms():
            return None
        return _check_of(domain, heard, peer_id)

    async def check(self, domain: str, peer_id: str) -> DomainCheck:
        """Ask the domain, unless it has answered of late. Never raises for what a domain does."""
        known = self.known(domain, peer_id)
        if known is not None:
            return known
        task = self._asking.get(domain)
        if task is None:
            task = self._asking[domain] = asyncio.create_task(self._ask(domain), name=f"ask {domain}")
            task.add_done_callback(lambda _: self._asking.pop(domain, None))
        return _check_of(domain, await asyncio.shield(task), peer_id)

    def cards_of(self, domain: str) -> CardChain:
        """The cards in the domain's file, as it was last read."""
        heard = self._heard.get(domain)
        return heard.cards if heard is not None else ()

    async def fetch(self, domain: str) -> tuple[WellKnown, CardChain]:
        """The domain's file, and the cards in it, verified. Remembers nothing.

        Raises Refused (`no-domain`: not a DNS name, no such file), Unreachable, InvalidRecord.
        """
        if not is_domain(domain):
            raise Refused("no-domain", f"{printable(domain)!r} is no DNS name in lower case.")
        connector = aiohttp.TCPConnector(
            resolver=self._resolver or PublicResolver(), ssl=self._trusted, use_dns_cache=False, force_close=True
        )
        timeout = aiohttp.ClientTimeout(total=self._timeout_s)
        url = f"https://{domain}{'' if self._port == 443 else f':{self._port}'}{PATH}"
        headers = {"Accept": "application/json", "User-Agent": "p2pgrid"}
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session,
                session.get(url, allow_redirects=False) as response,
            ):
                if 300 <= response.status < 400:
                    raise Refused("no-domain", f"{url} redirects elsewhere; no redirect is followed.")
                if response.status != 200:
                    raise Refused("no-domain", f"{url} answered with status {response.status}.")
                return parse_well_known(await _read_capped(response))
        except TimeoutError:
            raise Unreachable(f"{url} did not answer within {self._timeout_s:g} s.") from None
        except aiohttp.ClientError as error:
            raise Unreachable(f"{url} cannot be read: {printable(str(error))}") from None

    async def _ask(self, domain: str) -> _Heard:
        try:
            known, cards = await self.fetch(domain)
        except P2pgridError as error:
            heard = _Heard(frozenset(), error.message, self._now_ms() + BAD_FOR_MS)
        else:
            heard = _Heard(frozenset(known.peers), "", self._now_ms() + GOOD_FOR_MS, cards)
        self._heard.pop(domain, None)
        while len(self._heard) >= MAX_REMEMBERED:
            del self._heard[next(iter(self._heard))]
        self._heard[domain] = heard
        return heard


async def _read_capped(response: aiohttp.ClientResponse) -> bytes:
    data = bytearray()
    async for piece in response.content.iter_any():
        data += piece
        if len(data) > MAX_BYTES:
            raise InvalidRecord("oversize", f"the domain's file has more than {MAX_BYTES} bytes.")
    return bytes(data)


def _check_of(domain: str, heard: _Heard, peer_id: str) -> DomainCheck:
    names_peer = peer_id in heard.peers
    reason = "" if names_peer else heard.reason or f"{domain} does not name {peer_id}."
    return DomainCheck(domain=domain, names_peer=names_peer, reason=reason, good_until_ms=heard.good_until_ms)
