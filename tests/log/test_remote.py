"""Checking another's log: growth, staleness, forks with their proofs, and answers that are no tree."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pgrid.errors import ProtocolViolation, Refused
from p2pgrid.log.forks import LogForked, keep_fork, kept_forks
from p2pgrid.log.remote import Growth, RemoteLog
from p2pgrid.log.witness import Witness, WitnessStore
from p2pgrid.proto.fork import ForkProof, verify_fork
from p2pgrid.proto.witness import AddCheckpoint
from tests.factories import CLIENT, NOW_MS, PROVIDER
from tests.log.rig import ForkingLog, make_witness, new_entries, open_store

KEY = PROVIDER.public_key


@pytest.fixture
def found() -> list[ForkProof]:
    return []


@pytest.fixture
def witness(tmp_path: Path, found: list[ForkProof]) -> Iterator[Witness]:
    witness = make_witness(tmp_path / "witness", on_fork=found.append)
    yield witness
    witness.store.close()


def forking(tmp_path: Path, common: int = 300, sizes: tuple[int, int] = (400, 700)) -> ForkingLog:
    return ForkingLog(tmp_path / "logs", common, sizes)


async def test_a_log_that_grows(tmp_path: Path, witness: Witness, found: list[ForkProof]) -> None:
    log = forking(tmp_path)
    remote = RemoteLog(KEY, log.get)
    first = await remote.check(witness)
    assert (first.growth, first.before, first.checkpoint.size) == (Growth.FIRST, None, 400)
    assert (await remote.check(witness)).growth is Growth.SAME
    log.branches[0].append(new_entries(0, 900, "more"), NOW_MS)
    grown = await remote.check(witness)
    assert (grown.growth, grown.checkpoint.size) == (Growth.GROWN, 1300)
    assert grown.before is not None and grown.before.size == 400
    assert not found
    log.close()


async def test_a_true_but_old_view(tmp_path: Path, witness: Witness) -> None:
    log = forking(tmp_path, 300, (400, 300))
    await RemoteLog(KEY, log.get).check(witness)

    async def behind(path: str) -> bytes:
        branch = log.branches[1] if path == "checkpoint" else log.branches[0]
        log.shown = log.branches.index(branch)
        return await log.get(path)

    stale = await RemoteLog(KEY, behind).check(witness)
    assert (stale.growth, stale.checkpoint.size) == (Growth.STALE, 300)
    seen = witness.store.last(KEY)
    assert seen is not None and seen.checkpoint.size == 400
    log.close()


@pytest.mark.parametrize(
    ("common", "sizes"),
    [(300, (400, 700)), (300, (700, 400)), (300, (400, 400)), (255, (256, 512)), (0, (1, 2)), (0, (1, 1))],
)
async def test_a_fork_is_proven(
    tmp_path: Path, witness: Witness, found: list[ForkProof], common: int, sizes: tuple[int, int]
) -> None:
    log = forking(tmp_path, common, sizes)
    await RemoteLog(KEY, log.get).check(witness)
    log.shown = 1

    async def get(path: str) -> bytes:
        # The smaller tree's server has no tiles of the larger one: that is shown by the other branch.
        if path != "checkpoint" and sizes[1] < sizes[0]:
            log.shown = 0
        try:
            return await log.get(path)
        finally:
            log.shown = 1

    with pytest.raises(LogForked) as caught:
        await RemoteLog(KEY, get).check(witness)
    proof = caught.value.proof
    assert found == [proof] and verify_fork(proof.to_json()) == proof
    assert {proof.smaller.size, proof.larger.size} == set(sizes)
    seen = witness.store.last(KEY)
    assert seen is not None and seen.checkpoint.size == sizes[0], "what was seen first stays on record"
    log.close()


async def test_two_peers_that_compare(tmp_path: Path, witness: Witness) -> None:
    log = forking(tmp_path)
    await RemoteLog(KEY, log.get).check(witness)
    other = make_witness(tmp_path / "other", PROVIDER)
    log.shown = 1
    await RemoteLog(KEY, log.get).check(other)
    theirs = other.store.last(KEY)
    assert theirs is not None
    with pytest.raises(LogForked):
        await RemoteLog(KEY, log.get).compare(witness, theirs.checkpoint)
    log.shown = 0
    with pytest.raises(Refused, match="does not show"):
        await RemoteLog(KEY, log.get).compare(witness, theirs.checkpoint)
    other.store.close()
    log.close()


async def test_tiles_that_are_no_tree(tmp_path: Path, witness: Witness) -> None:
    log = forking(tmp_path)

    async def garbled(path: str) -> bytes:
        data = await log.get(path)
        return data if path == "checkpoint" else bytes(len(data))

    async def short(path: str) -> bytes:
        return (await log.get(path))[: None if path == "checkpoint" else -1]

    async def nothing(path: str) -> bytes:
        return b"" if path == "checkpoint" else await log.get(path)

    for get, match in ((garbled, "do not make the tree"), (short, "were expected"), (nothing, "shows no checkpoint")):
        with pytest.raises(ProtocolViolation, match=match):
            await RemoteLog(KEY, get).check(witness)
    await RemoteLog(KEY, log.get).check(witness)
    log.shown = 1
    with pytest.raises(ProtocolViolation, match="do not make the tree"):
        await RemoteLog(KEY, garbled).check(witness)
    log.close()


async def test_two_checks_at_once(tmp_path: Path, witness: Witness) -> None:
    log = forking(tmp_path)
    # As a gateway and a command beside it: two stores on one file.
    second = Witness(WitnessStore(witness.store.path), CLIENT, now_ms=lambda: NOW_MS)
    for extra in range(5):
        log.branches[0].append(new_entries(extra * 10, 10, "more"), NOW_MS)
        checks = (RemoteLog(KEY, log.get).check(one) for one in (witness, second, witness))
        assert {one.checkpoint.size for one in await asyncio.gather(*checks)} == {400 + 10 * (extra + 1)}
    second.store.close()
    log.close()


def test_the_record_is_durable_before_the_cosignature(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    checkpoint = store.append(new_entries(0, 5), NOW_MS)
    assert checkpoint is not None
    request = AddCheckpoint(0, (), checkpoint.note.to_bytes())
    first = WitnessStore(tmp_path / "witness.sqlite")
    assert first.judge(request, checkpoint, NOW_MS).advance is not None
    # The next process, without this one having closed anything.
    again = WitnessStore(tmp_path / "witness.sqlite")
    seen = again.last(KEY)
    assert seen is not None and seen.checkpoint == checkpoint.bare() and again.count() == 1
    assert again.judge(request, checkpoint, NOW_MS).advance is None
    assert [one.checkpoint.size for one in again.all()] == [5]
    for one in (first, again, store):
        one.close()


async def test_strangers_have_little_room(tmp_path: Path) -> None:
    log = forking(tmp_path)
    checkpoint = log.branches[0].checkpoint()
    assert checkpoint is not None
    body = AddCheckpoint(0, (), checkpoint.note.to_bytes()).to_bytes()
    store = WitnessStore(tmp_path / "witness.sqlite")
    follows = Witness(store, CLIENT, now_ms=lambda: NOW_MS, follows=lambda key: key == KEY, max_strangers=0)
    other = Witness(store, CLIENT, now_ms=lambda: NOW_MS, max_strangers=0)
    assert [(await one.add_checkpoint(body)).status for one in (other, follows, other)] == [404, 200, 409]
    assert (await other.add_checkpoint(b"garbage")).status == 400
    store.close()
    log.close()


def test_kept_proofs(tmp_path: Path, witness: Witness, found: list[ForkProof]) -> None:
    log = forking(tmp_path)
    asyncio.run(RemoteLog(KEY, log.get).check(witness))
    log.shown = 1
    with pytest.raises(LogForked):
        asyncio.run(RemoteLog(KEY, log.get).check(witness))
    path = keep_fork(tmp_path / "forks", found[0])
    assert keep_fork(tmp_path / "forks", found[0]) == path
    assert kept_forks(tmp_path / "forks", KEY) == found
    assert kept_forks(tmp_path / "forks", CLIENT.public_key) == []
    path.write_bytes(b"garbage")
    assert kept_forks(tmp_path / "forks", KEY) == []
    # Whoever forks again and again fills nobody's disk.
    for number in range(10):
        log.branches[1].append(new_entries(0, number + 1, "again"), NOW_MS)
        with pytest.raises(LogForked):
            asyncio.run(RemoteLog(KEY, log.get).check(witness))
        assert keep_fork(tmp_path / "forks", found[-1]).exists()
    assert len(found) == 11 and len(list((tmp_path / "forks").iterdir())) == 4
    log.close()
