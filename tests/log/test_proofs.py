"""Proofs of many records under one checkpoint: from disk and by asking, while the log grows, and from one that lies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.errors import ProtocolViolation, Refused, Unreachable
from p2pgrid.log import proofs
from p2pgrid.log.proofs import AskedLog, Leaf, OwnLog, best_checkpoint, n_witnesses
from p2pgrid.log.service import LogService
from p2pgrid.log.store import LogStore
from p2pgrid.log.wanted import WantedProofs
from p2pgrid.proto.checkpoint import SignedCheckpoint, cosign, sign_checkpoint
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.messages import Receipt
from p2pgrid.proto.record import Record, Role
from tests.factories import CLIENT, NOW_MS, PROVIDER, Dealings, digest
from tests.log.rig import make_service, make_witness, new_entries, open_store, running_log

WITNESSES = [SecretKey(bytes([number]) * 32) for number in range(1, 5)]


def ids(first: int, count: int) -> list[bytes]:
    return [one.record_id for one in new_entries(first, count)]


def cosigned(store: LogStore, *keys: SecretKey) -> SignedCheckpoint:
    """The last checkpoint of a log, with these cosignatures."""
    checkpoint = store.checkpoint()
    assert checkpoint is not None
    for key in keys:
        store.add_cosignature(checkpoint.size, cosign(checkpoint, key, NOW_MS // 1000))
    last = store.checkpoint()
    assert last is not None
    return last


async def test_one_checkpoint_proves_all_from_disk_and_by_asking(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.append(new_entries(0, 300), NOW_MS)
    cosigned(store, WITNESSES[0], WITNESSES[1])
    store.append(new_entries(300, 7), NOW_MS)
    store.erase(new_entries(5, 1)[0].record_id)
    asked = AskedLog(PROVIDER.public_key, answering(store))
    for log in (OwnLog(PROVIDER.public_key, store), asked):
        found = await log.leaves([*ids(0, 20), *ids(290, 17), digest("nowhere")])
        leaves = [one for one in found if isinstance(one, Leaf)]
        assert [one.code for one in found if isinstance(one, Refused)] == ["erased", "not-logged"]
        assert [one.index for one in leaves] == [n for n in (*range(20), *range(290, 307)) if n != 5]
        checkpoints = await log.checkpoints()
        everything = best_checkpoint(checkpoints, 307, 0)
        assert everything is not None and (everything.size, n_witnesses(everything)) == (307, 0)
        earlier = best_checkpoint(checkpoints, 300, 0)
        assert earlier is not None
        # Whoever asks is shown the cosigned one for as long as it reaches what is asked for.
        for checkpoint in {everything, earlier}:
            reached = [one for one in leaves if one.index < checkpoint.size]
            for leaf, proof in zip(reached, await log.prove(reached, checkpoint), strict=True):
                proof.verify(checkpoint)
                assert (proof.leaf_index, proof.record_id, proof.tree_size) == (
                    leaf.index,
                    leaf.record_id,
                    checkpoint.size,
                )
    store.close()


def answering(store: LogStore, spoil: Callable[[str, bytes], bytes] = lambda _, data: data) -> proofs.Get:
    """What a node shows of this log to a party of everything; `spoil` lies about it."""
    from p2pgrid.log.log import prove_entry
    from p2pgrid.proto.tiles import parse_tile_path

    async def get(path: str) -> bytes:
        if path == "checkpoint":
            last = store.checkpoint()
            assert last is not None
            return spoil(path, last.note.to_bytes())
        if path.startswith("prove/"):
            record_id = bytes.fromhex(path.removeprefix("prove/"))
            return spoil(path, prove_entry(store, store.find(record_id), record_id).to_text().encode())
        return spoil(path, store.read(parse_tile_path(path)))

    return get


async def test_what_a_provider_tells_is_believed_when_it_leads_to_what_it_signed(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.append(new_entries(0, 40), NOW_MS)
    last = cosigned(store)

    def other_hash(path: str, data: bytes) -> bytes:
        return data[:-1] + bytes([data[-1] ^ 1]) if path.startswith("tile/") else data

    lying = AskedLog(PROVIDER.public_key, answering(store, other_hash))
    leaves = [one for one in await lying.leaves(ids(0, 3)) if isinstance(one, Leaf)]
    with pytest.raises(ProtocolViolation, match="do not make the tree of 40"):
        await lying.prove(leaves, last)

    def other_proof(path: str, data: bytes) -> bytes:
        return data.replace(b"index 0", b"index 1") if path.startswith("prove/") else data

    with pytest.raises(ProtocolViolation, match="does not hold"):
        await AskedLog(PROVIDER.public_key, answering(store, other_proof)).leaves(ids(0, 1))
    with pytest.raises(ProtocolViolation, match="does not hold"):
        await AskedLog(CLIENT.public_key, answering(store)).leaves(ids(0, 1))
    honest = answering(store)

    async def anothers(path: str) -> bytes:
        return await honest(f"prove/{ids(1, 1)[0].hex()}" if path.startswith("prove/") else path)

    with pytest.raises(ProtocolViolation, match="another record"):
        await AskedLog(PROVIDER.public_key, anothers).leaves(ids(0, 1))
    store.close()


async def test_a_busy_provider_is_asked_again_and_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proofs, "BUSY_PAUSE_S", 0.0)
    store = open_store(tmp_path)
    store.append(new_entries(0, 4), NOW_MS)
    honest, refusals = answering(store), 3

    async def get(path: str) -> bytes:
        nonlocal refusals
        if refusals > 0:
            refusals -= 1
            raise Refused("busy", "too many")
        return await honest(path)

    log = AskedLog(PROVIDER.public_key, get)
    assert [type(one) for one in await log.leaves(ids(0, 4))] == [Leaf] * 4
    refusals = 10**6
    with pytest.raises(Unreachable, match="is busy"):
        await log.leaves(ids(0, 4))
    assert refusals >= 10**6 - 4 * proofs.BUSY_TRIES
    store.close()


async def test_over_a_service_that_a_whole_export_asks_at_once(tmp_path: Path) -> None:
    """No more at once than the service lets wait, and nothing is refused."""
    async with running_log(tmp_path) as log:
        writer = log.reader
        assert isinstance(writer, LogStore)
        writer.append(new_entries(0, 600), NOW_MS)
        log.checkpoint = writer.checkpoint()
        witness = make_witness(tmp_path / "witness")
        service: LogService = make_service(log, witness, max_waiting=proofs.ASKED_AT_ONCE)

        async def get(path: str) -> bytes:
            return (await service.get(path, CLIENT.public_key)).body

        asked = AskedLog(PROVIDER.public_key, get)
        leaves = [one for one in await asked.leaves(ids(0, 600)) if isinstance(one, Leaf)]
        (last, _) = await asked.checkpoints()
        assert len(await asked.prove(leaves, last)) == 600
        witness.store.close()


@given(st.lists(st.tuples(st.integers(1, 6), st.sets(st.sampled_from(range(4)))), max_size=6), st.integers(0, 4))
def test_the_best_checkpoint_has_enough_witnesses_and_then_is_large(
    shown: list[tuple[int, set[int]]], wanted: int
) -> None:
    checkpoints = []
    for size, by in shown:
        one = sign_checkpoint(size, digest(f"root {size}"), PROVIDER)
        checkpoints.append(one.cosigned(*(cosign(one, WITNESSES[number], NOW_MS // 1000) for number in by)))
    best = best_checkpoint(checkpoints, 3, wanted)
    reaching = [one for one in checkpoints if one.size >= 3]
    if best is None:
        assert not reaching
        return
    assert best in reaching
    most = max(map(n_witnesses, reaching))
    enough = most if not wanted else min(most, wanted)
    assert n_witnesses(best) >= enough
    assert best.size == max(one.size for one in reaching if n_witnesses(one) >= enough)


def test_the_owner_of_a_log_is_no_witness_of_it() -> None:
    one = sign_checkpoint(3, digest("root"), PROVIDER)
    assert n_witnesses(one.cosigned(cosign(one, PROVIDER, NOW_MS // 1000))) == 0


def test_which_records_belong_into_which_log() -> None:
    dealings = Dealings()
    chain = [one.record for one in dealings.chain(3)]
    wanted = WantedProofs()
    for record in [*chain, Record("/p2pgrid/receipt/1", b"nonsense", ()), Record("/p2pgrid/checkpoint/1", b"", ())]:
        wanted.note(record)
    assert wanted.logs == [PROVIDER.public_key.raw]
    expected = {one.id: "receipt" for one in dealings.receipts} | {dealings.offer.id: "offer"}
    for size in (1, 2, 100):
        batches = list(wanted.batches(PROVIDER.public_key.raw, size))
        assert {one: kind for kind, some in batches for one in some} == expected
        assert all(len(some) <= size for _, some in batches)
    assert wanted.count(PROVIDER.public_key.raw) == 4
    # What the client has not signed is in no log.
    alone = WantedProofs()
    for record in chain:
        signatures = tuple(one for one in record.signatures if one.role is not Role.CLIENT)
        is_receipt = record.payload_type == Receipt.payload_type
        alone.note(Record(record.payload_type, record.payload, signatures) if is_receipt else record)
    assert [kind for kind, _ in alone.batches(PROVIDER.public_key.raw, 9)] == ["offer"]
