"""A domain's file: read over HTTPS alone, from public addresses alone, and little of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

from p2pgrid.client.domains import BAD_FOR_MS, GOOD_FOR_MS, DomainChecker, PublicResolver, is_public
from p2pgrid.errors import P2pgridError
from p2pgrid.proto.well_known import MAX_BYTES, PATH, well_known_of
from tests.client.web import Everywhere, Page, Web, file, serving
from tests.factories import NOW_MS, PROVIDER, make_card, secret_key

DOMAIN = "compute.example"
PEER = PROVIDER.public_key.peer_id
STRANGER = secret_key("stranger").public_key.peer_id
GOOD = json.dumps(well_known_of([make_card()], NOW_MS))


class Clock:
    now_ms = NOW_MS

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
async def server() -> AsyncIterator[Web]:
    async with serving(DOMAIN, "www.example", page=file(GOOD)) as found:
        yield found


def checker(server: Web, clock: Clock | None = None, **options: Any) -> DomainChecker:
    given = {"resolver": Everywhere(), "trusted": server.trusted, "port": server.port, "timeout_s": 2.0, **options}
    return DomainChecker(clock or Clock(), **given)


async def test_a_domain_names_its_peers(server: Web) -> None:
    domains = checker(server)
    check = await domains.check(DOMAIN, PEER)
    assert (check.names_peer, check.reason) == (True, "")
    other = await domains.check(DOMAIN, STRANGER)
    assert not other.names_peer and STRANGER in other.reason
    assert server.asked == [DOMAIN + PATH], "the file is read once"
    assert [card.message.domain for card in domains.cards_of(DOMAIN)] == [DOMAIN]


async def test_many_who_ask_at_once_ask_once(server: Web) -> None:
    domains = checker(server)
    assert all(check.names_peer for check in await asyncio.gather(*(domains.check(DOMAIN, PEER) for _ in range(20))))
    assert len(server.asked) == 1


async def test_what_was_said_is_believed_for_a_while(server: Web) -> None:
    clock = Clock()
    domains = checker(server, clock)
    await domains.check(DOMAIN, PEER)
    server.page = file("gone")
    clock.now_ms += GOOD_FOR_MS - 1
    assert (await domains.check(DOMAIN, PEER)).names_peer
    clock.now_ms += 1
    assert domains.known(DOMAIN, PEER) is None
    assert not (await domains.check(DOMAIN, PEER)).names_peer
    server.page = file(GOOD)
    clock.now_ms += BAD_FOR_MS - 1
    assert not (await domains.check(DOMAIN, PEER)).names_peer
    clock.now_ms += 1
    assert (await domains.check(DOMAIN, PEER)).names_peer
    assert len(server.asked) == 3


async def redirect_elsewhere(request: web.Request) -> web.StreamResponse:
    if request.host.startswith("www"):
        return await file(GOOD)(request)
    raise web.HTTPFound(f"https://www.example:{request.url.port}{PATH}")


async def forbidden(_: web.Request) -> web.StreamResponse:
    raise web.HTTPForbidden


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(2 + MAX_BYTES // 65536):
        await response.write(b" " * 65536)
    await asyncio.sleep(30)
    return response


async def silent(_: web.Request) -> web.StreamResponse:
    await asyncio.sleep(30)
    return web.Response()


async def bomb(_: web.Request) -> web.StreamResponse:
    response = web.Response(text=GOOD + " " * 20_000_000)
    response.enable_compression(web.ContentCoding.gzip)
    return response


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (redirect_elsewhere, "redirects"),
        (forbidden, "status 403"),
        (endless, "more than"),
        (bomb, "more than"),
        (silent, "did not answer"),
        (file("<html>"), "no /.well-known"),
        (file('{"p2pgrid": 1, "operator": "me", "peers": []}'), "peer id"),
        (file(GOOD.replace(PEER, STRANGER)), "does not name"),
    ],
)
async def test_what_a_domain_may_do_wrong(server: Web, page: Page, words: str) -> None:
    server.page = page
    check = await checker(server, timeout_s=1.0).check(DOMAIN, PEER)
    assert not check.names_peer
    assert words in check.reason
    assert server.asked == [DOMAIN + PATH]


async def test_a_certificate_of_another_name_or_of_nobody(server: Web) -> None:
    assert "cannot be read" in (await checker(server).check("other.example", PEER)).reason
    assert "cannot be read" in (await checker(server, trusted=None).check(DOMAIN, PEER)).reason
    assert server.asked == []


async def test_nothing_is_asked_of_private_addresses(server: Web) -> None:
    check = await checker(server, resolver=PublicResolver(Everywhere())).check(DOMAIN, PEER)
    assert not check.names_peer and "no public address" in check.reason
    assert server.asked == []


@pytest.mark.parametrize(
    "name", ["127.0.0.1", "localhost", "[::1]", "Compute.example", "a.example:22", "a@b.example", ""]
)
async def test_what_is_no_domain_is_not_looked_up(server: Web, name: str) -> None:
    check = await checker(server).check(name, PEER)
    assert "no DNS name" in check.reason
    assert server.asked == []


class Mixed(Everywhere):
    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
        (here,) = await super().resolve(host, port, family)
        return [here, ResolveResult(**{**here, "host": "192.0.2.1"}), ResolveResult(**{**here, "host": "1.1.1.1"})]


async def test_of_several_addresses_the_public_ones_stay() -> None:
    resolver: AbstractResolver = PublicResolver(Mixed())
    assert [one["host"] for one in await resolver.resolve(DOMAIN, 443)] == ["1.1.1.1"]


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("1.1.1.1", True),
        ("2606:4700:4700::1111", True),
        *[
            (address, False)
            for address in (
                "127.0.0.1",
                "10.1.2.3",
                "172.16.0.1",
                "192.168.1.1",
                "169.254.169.254",
                "100.64.0.1",
                "0.0.0.0",
                "224.0.0.1",
                "255.255.255.255",
                "::1",
                "::",
                "fe80::1%eth0",
                "fd00::1",
                "::ffff:10.0.0.1",
                "::ffff:127.0.0.1",
                "64:ff9b::7f00:1",
                "2002:7f00:1::",
                "ff02::1",
                "no address",
            )
        ],
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(address) is public


async def test_fetch_says_why() -> None:
    async with serving(DOMAIN) as server:
        with pytest.raises(P2pgridError, match="status 404"):
            await checker(server).fetch(DOMAIN)
