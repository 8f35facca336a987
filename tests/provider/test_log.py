"""A provider's log over its three roads, and providers that witness one another."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from p2pgrid.data_folder import DataFolder, create_key
from p2pgrid.engine.fake import FakeVllm, serve_fake
from p2pgrid.errors import LedgerError, ProtocolViolation, Refused, Unreachable, UsageError
from p2pgrid.log.remote import Growth, RemoteLog
from p2pgrid.net.direct import dial
from p2pgrid.net.log_roads import (
    add_checkpoint_over_libp2p,
    add_checkpoint_over_link,
    ask_link,
    over_http,
    over_libp2p,
    over_link,
    send_cosignature,
)
from p2pgrid.net.network import Network
from p2pgrid.net.peer_address import PeerAddress
from p2pgrid.proto.checkpoint import cosign, cosignatures_of, verify_checkpoint
from p2pgrid.proto.inclusion import parse_log_proof
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.proto.witness import AddCheckpoint
from p2pgrid.provider.node import Provider
from p2pgrid.provider.pages import serve_pages
from p2pgrid.provider.witnessing import Witnessing, WitnessRoad, parse_witness
from tests.factories import CLIENT, PROVIDER, secret_key
from tests.log.rig import make_witness, new_entries, open_store, running_log
from tests.proto.trees import checkpoint_of, entries_of
from tests.provider.rig import until
from tests.provider.test_node import buyer_of, config, node, running


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    return folder(tmp_path / "node")


def folder(path: Path) -> DataFolder:
    made = DataFolder(path)
    made.make()
    create_key(made.key_file)
    return made


async def logged(provider: Provider, size: int) -> None:
    await until(lambda: provider.log.log.checkpoint is not None and provider.log.log.checkpoint.size >= size)


async def test_a_sale_is_in_the_log_within_seconds_and_its_client_gets_the_proof(data: DataFolder) -> None:
    async with running(data) as (provider, rig):
        buyer = await buyer_of(provider, rig)
        await buyer.order(max_tokens=20).send().to_end()
        await logged(provider, 2)  # the offer, and the receipt
        (row,) = provider._offers._ledger.receipts()
        get = over_link(buyer.link)
        proof = parse_log_proof(await get(f"prove/{row.record_id.hex()}"))
        assert proof.verify(provider.key.public_key).size == 2
        other = await dial(*rig.address, provider.key.public_key, secret_key("stranger"))
        with pytest.raises(Refused) as caught:
            await over_link(other)(f"prove/{row.record_id.hex()}")
        assert caught.value.code == "not-logged"
        await other.aclose("done")
        await buyer.link.aclose("done")


async def test_every_road_shows_the_same_log(data: DataFolder, tmp_path: Path) -> None:
    introducer = Network(secret_key("introducer"), "test", listen=["/ip4/127.0.0.1/tcp/0"], serve_dht=True)
    witness = make_witness(tmp_path)
    theirs = checkpoint_of(entries_of(4))
    body = AddCheckpoint(0, (), theirs.note.to_bytes()).to_bytes()
    async with (
        introducer,
        serve_fake(FakeVllm()) as url,
        node(data, config(url), join_network=True, bootstrap=introducer.addresses) as provider,
        serve_pages(provider, "127.0.0.1", 0) as pages,
        Network(secret_key("asker"), "test", bootstrap=introducer.addresses) as asker,
    ):
        key = provider.key.public_key
        await logged(provider, 1)
        host, port = provider.addresses[0].split("/")[2:5:2]
        link = await dial(host, int(port), key, CLIENT)
        peer = PeerAddress(provider.peer_id, provider.libp2p_addresses)
        gets = [over_link(link), over_libp2p(asker, peer), over_http(f"{pages}/log")]
        checked = [await RemoteLog(key, get).check(witness) for get in gets]
        assert [one.growth for one in checked] == [Growth.FIRST, Growth.SAME, Growth.SAME]
        for path in ("tile/0/001", f"witness/{PROVIDER.public_key.peer_id}"):
            for get in gets:
                with pytest.raises(Refused) as caught:
                    await get(path)
                assert caught.value.code == "not-there"

        # It witnesses another's log over each of them, and says so.
        answers = [await add_checkpoint_over_link(link, body), await add_checkpoint_over_libp2p(asker, peer, body)]
        async with aiohttp.ClientSession() as session:
            for sent, status in ((body, 409), (b"garbage", 400), (b"x" * 100_000, 413)):
                async with session.post(f"{pages}/add-checkpoint", data=sent) as response:
                    assert response.status == status
                    if status == 409:
                        assert (await response.read(), response.headers["Content-Type"]) == (b"4\n", "text/x.tlog.size")
            async with session.get(f"{pages}/log/checkpoint") as response:
                assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
                assert response.headers["Cache-Control"] == "public, max-age=2"
            async with session.get(f"{pages}/log/tile/0/000.p/1") as response:
                assert response.headers["Content-Type"] == "application/octet-stream"
                assert "immutable" in response.headers["Cache-Control"]
            async with session.get(f"{pages}/log/tile/../../key") as response:
                assert response.status == 404
        assert [answer.status for answer in answers] == [200, 409]
        for get in gets:
            kept = verify_checkpoint(await get(f"witness/{PROVIDER.public_key.peer_id}"), PROVIDER.public_key)
            assert [one.witness for one in cosignatures_of(kept)] == [key]
        await link.aclose("done")
    witness.store.close()


async def test_hostile_requests_cost_a_stream(data: DataFolder) -> None:
    async with running(data) as (provider, rig):
        await logged(provider, 1)
        link = await dial(*rig.address, provider.key.public_key, CLIENT)
        with pytest.raises(Refused):
            await over_link(link)("\xff" * 10)
        with pytest.raises(Refused):
            await over_link(link)("x" * 1000)
        with pytest.raises(Refused):
            await ask_link(link, Kind.COSIGNATURE, b"garbage", Kind.COSIGNATURE_TAKEN)
        assert (await add_checkpoint_over_link(link, b"garbage")).status == 400
        with pytest.raises(ProtocolViolation):
            await ask_link(link, Kind.LOG_REQUEST, b"checkpoint", Kind.WITNESS_RESPONSE)
        # A stranger's cosignature is not kept.
        checkpoint = provider.log.log.checkpoint
        assert checkpoint is not None
        with pytest.raises(Refused, match="channel"):
            await send_cosignature(link, checkpoint.cosigned(cosign(checkpoint, CLIENT, 1)).note.to_bytes())
        await link.aclose("done")


async def test_a_client_cosigns(data: DataFolder) -> None:
    async with running(data) as (provider, rig):
        buyer = await buyer_of(provider, rig)
        await logged(provider, 1)
        checkpoint = provider.log.log.checkpoint
        assert checkpoint is not None
        await send_cosignature(buyer.link, checkpoint.cosigned(cosign(checkpoint, CLIENT, 1)).note.to_bytes())
        shown = verify_checkpoint(await over_link(buyer.link)("checkpoint"))
        assert [one.witness for one in cosignatures_of(shown)] == [CLIENT.public_key]
        await buyer.link.aclose("done")


async def test_providers_witness_one_another(tmp_path: Path) -> None:
    first, second = folder(tmp_path / "first"), folder(tmp_path / "second")
    async with running(first) as (witness, rig), serve_fake(FakeVllm()) as url:
        host, port = rig.address
        address = f"/ip4/{host}/tcp/{port}/tls/p2p/{witness.peer_id}"
        async with node(second, config(url, witnesses=(address,))) as provider:
            own = provider.log.log
            await until(lambda: own.checkpoint is not None and len(cosignatures_of(own.checkpoint)) == 1, 15)
            assert own.checkpoint is not None
            assert cosignatures_of(own.checkpoint)[0].witness == witness.key.public_key


class Asked(WitnessRoad):
    """A witness in this process."""

    def __init__(self, data: Path, key: Any = CLIENT) -> None:
        self.witness = make_witness(data, key)
        self.away = False

    @property
    def key(self) -> Any:
        return self.witness.key

    async def add_checkpoint(self, body: bytes) -> Any:
        if self.away:
            raise Unreachable("away")
        return await self.witness.add_checkpoint(body)

    async def get(self, path: str) -> bytes:
        note = await self.witness.last_note(PROVIDER.public_key)
        assert note is not None and path == f"witness/{PROVIDER.public_key.peer_id}"
        return note


async def test_a_witness_that_knows_more_freezes_a_log_that_was_set_back(tmp_path: Path) -> None:
    road = Asked(tmp_path / "witness")
    for name, count in (("whole", 30), ("set back", 20)):
        (tmp_path / name).mkdir()
        store = open_store(tmp_path / name)
        store.append(new_entries(0, count), 0)
        store.close()
        async with running_log(tmp_path / name) as log:
            witnessing = Witnessing(log, [road])
            assert log.checkpoint is not None
            await witnessing.ask(road, log.checkpoint)
            assert bool(log.frozen) == (name == "set back")
            if name == "whole":
                assert witnessing.cosigned == {CLIENT.public_key.peer_id: 30}
                # Asked by another life of the node, which knows nothing of the first.
                await Witnessing(log, [road]).ask(road, log.checkpoint)
                assert not log.frozen
    road.witness.store.close()


async def test_a_witness_that_is_away_is_asked_again(tmp_path: Path) -> None:
    road = Asked(tmp_path / "witness")
    road.away = True
    (tmp_path / "log").mkdir()
    store = open_store(tmp_path / "log")
    store.append(new_entries(0, 3), 0)
    store.close()
    async with running_log(tmp_path / "log") as log:
        witnessing = Witnessing(log, [road], round_s=0.01, retry_s=0.01)
        task = asyncio.create_task(witnessing.run())
        await asyncio.sleep(0.03)
        road.away = False
        await until(lambda: witnessing.cosigned)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    road.witness.store.close()


async def test_a_node_whose_log_was_set_back_does_not_start(data: DataFolder) -> None:
    async with running(data) as (provider, _):
        await logged(provider, 1)
    data.log_file(provider.peer_id).unlink()
    with pytest.raises(LedgerError, match="set back"):
        async with running(data):
            pass


async def test_a_restart_goes_on_with_the_log(data: DataFolder) -> None:
    async with running(data) as (provider, _):
        await logged(provider, 1)
        before = provider.log.log.checkpoint
    async with running(data) as (provider, _):
        await logged(provider, 2)
        assert before is not None
        reader = provider.log.log.reader
        assert reader.root(before.size) == before.root


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/ip4/1.2.3.4/tcp/1",
        "/ip4/1.2.3.4/tcp/x/p2p/12D3KooW",
        "/ip4/1.2.3.4/udp/1/p2p/12D3KooW",
        "a/b/c/d/e/f/g",
    ],
)
def test_what_is_no_witness(text: str) -> None:
    with pytest.raises(UsageError, match="no address of a witness"):
        parse_witness(text, PROVIDER, lambda: None)


def test_witnesses_on_both_roads() -> None:
    peer_id = CLIENT.public_key.peer_id
    for text in (f"/ip4/1.2.3.4/tcp/1/tls/p2p/{peer_id}", f"/dns/example.org/tcp/1/p2p/{peer_id}"):
        assert parse_witness(text, PROVIDER, lambda: None).key == CLIENT.public_key
