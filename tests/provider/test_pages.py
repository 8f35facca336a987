"""The pages: the same on a port and over libp2p, and what only the peer whom it concerns is shown."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from p2pgrid.data_folder import DataFolder, create_key
from p2pgrid.engine.fake import FakeVllm, serve_fake
from p2pgrid.http.response_reader import ResponseReader
from p2pgrid.net.network import Network
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.messages import Channel, Receipt
from p2pgrid.proto.peer_id_auth import PeerIdAuthClient
from p2pgrid.proto.record import parse_json_line
from p2pgrid.provider import pages as pages_module
from p2pgrid.provider.node import Provider
from p2pgrid.provider.pages import LIBP2P_LIMITS, serve_pages
from tests.factories import secret_key
from tests.provider.rig import CLIENT, TRUST_PICO, Buyer, Clock, Rig, until
from tests.provider.test_node import config, node

STRANGER = secret_key("a stranger")


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    folder = DataFolder(tmp_path / "node")
    folder.make()
    create_key(folder.key_file)
    return folder


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Site:
    """A node, its port's URL, and the hosts of two clients."""

    provider: Provider
    rig: Rig
    url: str
    hosts: dict[SecretKey, Network]

    async def buy(self, key: SecretKey = CLIENT) -> Buyer:
        buyer = await Buyer.connect(self.rig, key, provider=self.provider.key.public_key)
        buyer.cover(self.provider.channels, TRUST_PICO)
        await buyer.order(max_tokens=20).send().to_end()
        await until(lambda: self.provider.tally.earned_pico)
        return buyer

    async def over_libp2p(self, path: str, *, key: SecretKey = CLIENT, method: str = "GET", more: str = "") -> Answer:
        return await self.say(f"{method} {path} HTTP/1.1\r\nHost: {self.provider.peer_id}\r\n{more}\r\n".encode(), key)

    async def say(self, request: bytes, key: SecretKey = CLIENT) -> Answer:
        road = await self.hosts[key].dial_http(self.provider.key.public_key, self.provider.libp2p_addresses)
        reader = asyncio.StreamReader()
        road.start(asyncio.StreamReaderProtocol(reader))
        road.write(request)
        raw = b""
        async with asyncio.timeout(10):
            while data := await reader.read(65_536):
                raw += data
        road.close()
        if request.startswith(b"HEAD"):
            raw = raw.replace(b"Content-Length", b"X-Content-Length")
        parsed = ResponseReader(10**7)
        body = parsed.feed(raw)
        parsed.end()
        return Answer(parsed.status, parsed.headers, body)

    async def on_port(self, path: str, *, method: str = "GET", host: str = "", **headers: str) -> Answer:
        if host:
            headers["Host"] = host
        async with aiohttp.ClientSession() as session, session.request(method, self.url + path, headers=headers) as got:
            return Answer(got.status, {name.lower(): value for name, value in got.headers.items()}, await got.read())

    async def named(self, path: str, key: SecretKey = CLIENT) -> tuple[Answer, str, PeerIdAuthClient]:
        """A page for the peer with that key, and the token for more."""
        client = PeerIdAuthClient(key, "127.0.0.1", b"c" * 32)
        asked = await self.on_port(path, Authorization=client.opening())
        assert asked.status == 401
        got = await self.on_port(path, Authorization=client.reply(asked.headers["www-authenticate"]))
        return got, client.finish(got.headers.get("authentication-info")), client


@contextlib.asynccontextmanager
async def site(data: DataFolder, **fields: Any) -> AsyncIterator[Site]:
    fake = FakeVllm()
    async with (
        Network(secret_key("introducer"), "test", listen=["/ip4/127.0.0.1/tcp/0"], serve_dht=True) as introducer,
        serve_fake(fake) as url,
        node(data, config(url, **fields), join_network=True, bootstrap=introducer.addresses) as provider,
        serve_pages(provider, "127.0.0.1", 0) as pages,
        Network(CLIENT, "test") as one,
        Network(STRANGER, "test") as other,
    ):
        assert provider.offer is not None
        host, port = provider.addresses[0].split("/")[2:5:2]
        rig = Rig(None, provider.engines, fake.state, (host, int(port)), provider.offer, Clock())  # type: ignore[arg-type]
        yield Site(provider, rig, pages, {CLIENT: one, STRANGER: other})


async def test_the_pages_are_the_same_on_both_roads(data: DataFolder) -> None:
    async with site(data) as s:
        for path in ("/", "/offer", "/card", "/log/checkpoint", "/.well-known/libp2p/protocols", "/nothing", "/log/x"):
            far, near = await s.over_libp2p(path), await s.on_port(path)
            assert (far.status, far.body) == (near.status, near.body), path
            assert far.headers["content-type"] == near.headers["content-type"]
            assert far.headers["connection"] == "close"
        assert (await s.over_libp2p("/health")).json["status"] == "ok"
        assert (await s.over_libp2p("/offer", method="HEAD")).status == 200
        assert (await s.on_port("/metrics")).status == 200
        assert (await s.over_libp2p("/metrics")).status == 404
        assert (await s.over_libp2p("/add-checkpoint", method="POST", more="Content-Length: 0\r\n")).status == 404


@pytest.mark.parametrize("road", ["over_libp2p", "on_port"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_nothing_is_changed_by_a_request(data: DataFolder, road: str, method: str) -> None:
    async with site(data) as s:
        for path in ("/offer", "/receipts", "/log/checkpoint"):
            refused = await getattr(s, road)(path, method=method)
            assert refused.status == 405
            assert refused.headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /offer HTTP/1.1\r\nHost: x\r\n\r\nGET /card HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (b"GET /offer HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01 nonsense\r\n\r\n", 400),
        (b"GET /offer HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", 413),
        (b"GET /offer HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
    ],
)
async def test_a_stream_is_one_request_and_a_bad_one_is_told_so(
    data: DataFolder, request_bytes: bytes, status: int
) -> None:
    async with site(data) as s:
        assert (await s.say(request_bytes)).status == status
        assert (await s.over_libp2p("/offer")).status == 200


async def test_a_peer_sees_its_own_receipts_over_libp2p_and_nobody_elses(data: DataFolder) -> None:
    async with site(data) as s:
        buyer = await s.buy()
        [row] = (await s.over_libp2p("/receipts")).json["channels"]
        assert (row["channel"], row["receipts"], row["countersigned"]) == (buyer.books.id.hex(), 1, 1)
        answer = await s.over_libp2p(row["records"])
        assert answer.status == 200
        records = [parse_json_line(line + b"\n") for line in answer.body.splitlines()]
        kinds = [record.payload_type for record in records]
        assert (kinds.count(Channel.payload_type), kinds.count(Receipt.payload_type)) == (1, 1)
        assert records == list(s.provider.ledger.records(channel=buyer.books.id))
        head = await s.over_libp2p(row["records"], method="HEAD")
        assert (head.status, head.body) == (200, b"")

        theirs = await s.over_libp2p("/receipts", key=STRANGER)
        assert theirs.json == {"provider": s.provider.peer_id, "client": STRANGER.public_key.peer_id, "channels": []}
        hidden, none = [await s.over_libp2p(path, key=STRANGER) for path in (row["records"], f"/receipts/{'0' * 64}")]
        assert (hidden.status, hidden.body) == (none.status, none.body)
        assert hidden.status == 404


async def test_on_a_port_both_sides_prove_who_they_are(data: DataFolder) -> None:
    async with site(data) as s:
        buyer = await s.buy()
        asked = await s.on_port("/receipts")
        assert asked.status == 401
        assert asked.headers["www-authenticate"].startswith("libp2p-PeerID ")
        assert asked.headers["cache-control"] == "no-store"
        listed, token, client = await s.named("/receipts")
        assert client.server == s.provider.key.public_key
        assert [row["channel"] for row in listed.json["channels"]] == [buyer.books.id.hex()]
        records = await s.on_port(listed.json["channels"][0]["records"], Authorization=token)
        assert records.status == 200
        assert len(records.body.splitlines()) == len(list(s.provider.ledger.records(channel=buyer.books.id)))
        assert records.body == (await s.over_libp2p(listed.json["channels"][0]["records"])).body

        theirs, _, _ = await s.named("/receipts", STRANGER)
        assert theirs.json["channels"] == []
        hidden, _, _ = await s.named(listed.json["channels"][0]["records"], STRANGER)
        assert hidden.status == 404
        for header in ("Bearer x", 'libp2p-PeerID bearer="AAAA"', token[:-10] + 'AAAAAAAA="'):
            assert (await s.on_port("/receipts", Authorization=header)).status == 401


async def test_nothing_is_signed_for_a_name_that_is_not_ours(data: DataFolder) -> None:
    """Who has that name could pass what is signed for it on to us."""
    async with site(data, pages_names=("gpu.example.org",)) as s:
        client = PeerIdAuthClient(CLIENT, "evil.example", b"c" * 32)
        for host in ("evil.example", "192.0.2.1", "[::1]", "127.0.0.2", "x" * 300):
            refused = await s.on_port("/receipts", host=host, Authorization=client.opening())
            assert refused.status == 421, host
            assert "www-authenticate" not in refused.headers
        for host in ("gpu.example.org", "GPU.example.org:443", "localhost:1234", "127.0.0.1"):
            assert (await s.on_port("/receipts", host=host, Authorization=client.opening())).status == 401, host
        assert (await s.on_port("/offer", host="evil.example")).status == 200


async def test_a_proof_of_a_record_is_for_its_parties(data: DataFolder) -> None:
    async with site(data) as s:
        buyer = await s.buy()
        receipt = next(
            r for r in s.provider.ledger.records(channel=buyer.books.id) if r.payload_type == Receipt.payload_type
        )
        await until(lambda: s.provider.log.log.checkpoint is not None and not s.provider.log.log.waiting)
        path = f"/log/prove/{receipt.id.hex()}"
        unnamed = await s.on_port(path)
        assert unnamed.status == 404
        proof, _, _ = await s.named(path)
        assert proof.status == 200
        stranger, _, _ = await s.named(path, STRANGER)
        assert (stranger.status, stranger.body) == (404, unnamed.body)
        assert (await s.over_libp2p(path)).body == proof.body
        assert (await s.over_libp2p(path, key=STRANGER)).status == 404


async def test_who_asks_too_often_is_told_so(data: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages_module, "REQUESTS_BURST", 3)
    monkeypatch.setattr(pages_module, "REQUESTS_PER_S", 0.001)
    async with site(data) as s:
        assert [(await s.over_libp2p("/offer")).status for _ in range(4)] == [200, 200, 200, 429]
        connector = aiohttp.TCPConnector(local_addr=("127.0.0.9", 0))
        async with aiohttp.ClientSession(connector=connector) as elsewhere:
            statuses = []
            for _ in range(4):
                async with elsewhere.get(f"{s.url}/offer") as response:
                    statuses.append(response.status)
            assert statuses == [200, 200, 200, 429]
            assert response.headers["Retry-After"] == "1"
        assert [(await s.on_port("/offer")).status for _ in range(5)] == [200] * 5, "a proxy on this machine"


async def test_a_slow_reader_of_records_costs_little_and_is_cut_off(
    data: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages_module, "LIBP2P_LIMITS", replace(LIBP2P_LIMITS, stalled_s=1.5, tick_s=0.1))
    async with site(data) as s:
        buyer = await s.buy()
        made = 0

        def endless(*, channel: bytes) -> Any:
            nonlocal made
            record = next(iter(type(s.provider.ledger).records(s.provider.ledger, channel=channel)))
            while True:
                made += 1
                yield record

        path = f"/receipts/{buyer.books.id.hex()}"
        with monkeypatch.context() as patch:
            patch.setattr(s.provider.ledger, "records", endless)
            road = await s.hosts[CLIENT].dial_http(s.provider.key.public_key, s.provider.libp2p_addresses)
            reader = asyncio.StreamReader(limit=1024)
            road.start(asyncio.StreamReaderProtocol(reader))
            road.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
            busy = await s.over_libp2p(path)
            assert (busy.status, busy.headers["retry-after"]) == (503, "5"), "one at a time for a peer"
        async with asyncio.timeout(20):
            while (await s.over_libp2p(path)).status != 200:  # noqa: ASYNC110 (the node tells nobody)
                await asyncio.sleep(0.1)
        assert made < 20_000, "what is made is bounded by what is taken"
        road.abort()


async def test_a_peer_on_libp2p_as_it_comes_reads_the_pages_and_is_named(data: DataFolder) -> None:
    async with site(data) as s:
        peer_id = SecretKey(b"s" * 32).public_key.peer_id
        for path, expected in (("/offer", s.provider.offer.record.to_json_line()), ("/receipts", peer_id.encode())):  # type: ignore[union-attr]
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.net.stock_http", s.provider.libp2p_addresses[0], path),
                stdout=asyncio.subprocess.PIPE,
            )
            answer, _ = await asyncio.wait_for(process.communicate(), 60)
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK\r\n"), answer
            assert b"Connection: close" in head
            assert expected in body
