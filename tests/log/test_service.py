"""What a node shows of its log: paths, who may ask what, caps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from p2pgrid.errors import InvalidRecord, Refused
from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.log.service import LogService
from p2pgrid.proto.checkpoint import cosign, cosignatures_of, verify_checkpoint
from p2pgrid.proto.inclusion import parse_log_proof
from p2pgrid.proto.merkle import leaf_hash
from p2pgrid.proto.tiles import parse_bundle
from p2pgrid.proto.witness import AddCheckpoint
from tests.factories import CLIENT, PROVIDER, Dealings, digest, secret_key
from tests.log.rig import make_service, make_witness, running_log
from tests.proto.trees import checkpoint_of, entries_of

STRANGER = secret_key("stranger")


class Shown:
    def __init__(self, service: LogService, dealings: Dealings) -> None:
        self.service = service
        self.dealings = dealings


@pytest.fixture
async def shown(tmp_path: Path) -> AsyncIterator[Shown]:
    ledger, dealings = MemoryLedger(), Dealings()
    await ledger.append(*dealings.chain(2))
    witness = make_witness(tmp_path, PROVIDER)
    async with running_log(tmp_path, ledger) as log:
        yield Shown(make_service(log, witness), dealings)
    witness.store.close()


async def refused(service: LogService, path: str, asker: object = None) -> str:
    with pytest.raises(Refused) as caught:
        await service.get(path, asker)  # type: ignore[arg-type]
    return caught.value.code


async def test_checkpoint_tiles_entries(shown: Shown) -> None:
    checkpoint = await shown.service.get("checkpoint")
    assert (checkpoint.content_type, checkpoint.cache_control) == ("text/plain; charset=utf-8", "public, max-age=2")
    assert verify_checkpoint(checkpoint.body, PROVIDER.public_key).size == 3
    tile = await shown.service.get("tile/0/000.p/3")
    assert tile.content_type == "application/octet-stream" and "immutable" in tile.cache_control
    entries = parse_bundle((await shown.service.get("tile/entries/000.p/3")).body)
    assert b"".join(map(leaf_hash, entries)) == tile.body


async def test_what_is_not_there(shown: Shown) -> None:
    codes = {
        "": "unknown-path",
        "../key": "unknown-path",
        "tile/9/000": "unknown-path",
        "tile/0/000": "not-there",
        "tile/0/000.p/4": "not-there",
        "tile/1/000.p/1": "not-there",
        "tile/0/x999/000": "not-there",
        "witness/nobody": "unknown-path",
        f"witness/{STRANGER.public_key.peer_id}": "not-there",
        "prove/zz": "unknown-path",
        f"prove/{digest('nothing').hex()}": "not-logged",
        f"prove/{digest('nothing').hex().upper()}": "unknown-path",
    }
    assert {path: await refused(shown.service, path) for path in codes} == codes


async def test_proofs_are_for_the_parties(shown: Shown) -> None:
    receipt = shown.dealings.receipts[0]
    path = f"prove/{receipt.id.hex()}"
    proof = parse_log_proof((await shown.service.get(path, CLIENT.public_key)).body)
    assert proof.verify(PROVIDER.public_key).size == 3 and proof.inclusion.record_id == receipt.id
    for asker in (None, STRANGER.public_key):
        assert await refused(shown.service, path, asker) == "not-logged"
    # Offers are for everybody.
    await shown.service.get(f"prove/{shown.dealings.offer.id.hex()}")
    await shown.service.log.erase(receipt.id)
    assert await refused(shown.service, path, CLIENT.public_key) == "erased"


async def test_witnessing_and_showing_it(shown: Shown) -> None:
    theirs = checkpoint_of(entries_of(4), STRANGER)
    answer = await shown.service.add_checkpoint(AddCheckpoint(0, (), theirs.note.to_bytes()).to_bytes())
    assert answer.status == 200
    note = await shown.service.get(f"witness/{STRANGER.public_key.peer_id}")
    kept = verify_checkpoint(note.body, STRANGER.public_key)
    assert kept.bare() == theirs
    assert [one.witness for one in cosignatures_of(kept)] == [PROVIDER.public_key]
    own = checkpoint_of(entries_of(4))
    assert (await shown.service.add_checkpoint(AddCheckpoint(0, (), own.note.to_bytes()).to_bytes())).status == 403


async def test_whose_cosignatures_are_taken(shown: Shown) -> None:
    service = shown.service
    checkpoint = service.log.checkpoint
    assert checkpoint is not None
    for key, taken in ((CLIENT, True), (STRANGER, False)):
        note = checkpoint.cosigned(cosign(checkpoint, key, 5)).note.to_bytes()
        if taken:
            await service.take_cosignature(note, key.public_key)
        else:
            with pytest.raises(Refused, match="channel"):
                await service.take_cosignature(note, key.public_key)
    assert len(cosignatures_of(service.log.checkpoint or checkpoint)) == 1
    with pytest.raises(InvalidRecord):
        await service.take_cosignature(checkpoint.note.to_bytes(), CLIENT.public_key)


async def test_too_many_at_once(shown: Shown) -> None:
    service = make_service(shown.service.log, shown.service.witness, max_waiting=20)
    asked = await asyncio.gather(*(service.get("tile/0/000.p/3") for _ in range(100)), return_exceptions=True)
    busy = [one for one in asked if isinstance(one, Refused)]
    assert 0 < len(busy) < 100 and {one.code for one in busy} == {"busy"}
    await shown.service.get("tile/0/000.p/3")
