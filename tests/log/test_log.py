"""A log over a ledger: what is entered, when, and after which crash."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path

import pytest

from p2pgrid.errors import InvalidRecord, LedgerError, Refused
from p2pgrid.ledger.base import Ledger
from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.log.log import TransparencyLog
from p2pgrid.log.reader import LogReader
from p2pgrid.proto.checkpoint import cosign, cosignatures_of, sign_checkpoint
from tests.factories import CLIENT, PROVIDER, Dealings, digest, make_offer, secret_key
from tests.log.rig import running_log


async def until_entered(log: TransparencyLog, size: int) -> None:
    async with asyncio.timeout(10):
        while log.checkpoint is None or log.checkpoint.size < size:
            await log.wait_for_change()


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_what_is_entered(tmp_path: Path, kind: str) -> None:
    ledger: Ledger = MemoryLedger() if kind == "memory" else SqliteLedger.open(tmp_path / "ledger.sqlite")
    dealings = Dealings()
    records = dealings.chain(3)
    proposal = dealings.proposal(dealings.order())
    async with running_log(tmp_path, ledger) as log:
        await ledger.append(*records)
        await ledger.append(make_offer(secret_key("another provider")))
        await ledger.append(proposal)
        await until_entered(log, 4)
        assert log.checkpoint is not None and log.checkpoint.size == 4
        for record in (dealings.offer, *dealings.receipts[:3]):
            proof = await log.prove(record.id)
            assert proof.verify(PROVIDER.public_key).size == 4
        for absent in (dealings.channel.id, proposal.id, digest("nothing")):
            with pytest.raises(Refused) as caught:
                await log.prove(absent)
            assert caught.value.code == "not-logged"
        # The countersignature comes later, on the same row.
        await ledger.append(dealings.countersign(proposal))
        await until_entered(log, 5)
        await log.prove(proposal.id)
        entry = await log.find(proposal.id)
        assert entry is not None and entry.channel == dealings.id
    await ledger.aclose()


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_what_a_crash_kept_from_the_log_is_found(tmp_path: Path, kind: str) -> None:
    ledger: Ledger = MemoryLedger() if kind == "memory" else SqliteLedger.open(tmp_path / "ledger.sqlite")
    dealings = Dealings()
    await ledger.append(*dealings.chain(2))
    async with running_log(tmp_path, ledger) as log:
        assert log.checkpoint is not None and log.checkpoint.size == 3
    # The next records are durable in the ledger, and the process is gone before the log hears of them.
    ledger.watch(lambda _: None)
    await ledger.append(*dealings.completed(), *dealings.completed())
    async with running_log(tmp_path, ledger) as log:
        assert log.checkpoint is not None and log.checkpoint.size == 5
        for receipt in dealings.receipts:
            await log.prove(receipt.id)
    await ledger.aclose()


async def test_more_than_one_batch_is_found(tmp_path: Path) -> None:
    ledger = MemoryLedger()
    dealings = Dealings()
    await ledger.append(*dealings.chain(600, ticks=0))
    async with running_log(tmp_path, ledger) as log:
        assert log.checkpoint is not None and log.checkpoint.size == 601
    async with running_log(tmp_path, ledger) as log:
        assert log.checkpoint is not None and log.checkpoint.size == 601


async def test_what_waits_is_entered_on_closing(tmp_path: Path) -> None:
    ledger = MemoryLedger()
    async with running_log(tmp_path, ledger, integrate_s=3600) as log:
        await ledger.append(*Dealings().chain(1))
        await asyncio.sleep(0)
        assert (log.waiting, log.checkpoint) == (2, None)
    with closing(LogReader.open_readonly(tmp_path / "log.sqlite")) as reader:
        assert reader.size == 2


async def test_a_log_that_cannot_be_written_tries_again(tmp_path: Path) -> None:
    ledger = MemoryLedger()
    async with running_log(tmp_path, ledger) as log:
        blocked = tmp_path / "log.checkpoint.part"
        blocked.mkdir()
        await ledger.append(*Dealings().chain(1))
        with pytest.raises(LedgerError):
            await log.flush()
        assert log.checkpoint is None, "nothing is shown that a set-back log could contradict"
        blocked.rmdir()
        await until_entered(log, 2)


async def test_erasing(tmp_path: Path) -> None:
    ledger = MemoryLedger()
    dealings = Dealings()
    async with running_log(tmp_path, ledger, integrate_s=3600) as log:
        await ledger.append(*dealings.chain(2))
        await asyncio.sleep(0)
        erased, other = dealings.receipts
        assert await log.erase(erased.id)
        with pytest.raises(Refused) as caught:
            await log.prove(erased.id)
        assert caught.value.code == "erased"
        assert (await log.prove(other.id)).verify().size == 3
        assert not await log.erase(digest("nothing"))
    # It is not entered anew, under another salt, by the next start.
    async with running_log(tmp_path, ledger) as log:
        assert log.checkpoint is not None and log.checkpoint.size == 3
        with pytest.raises(Refused, match="erased"):
            await log.prove(erased.id)


async def test_cosignatures(tmp_path: Path) -> None:
    ledger = MemoryLedger()
    dealings = Dealings()
    await ledger.append(*dealings.chain(2))
    async with running_log(tmp_path, ledger) as log:
        first = log.checkpoint
        assert first is not None
        await ledger.append(*dealings.completed())
        await until_entered(log, 4)
        witness = CLIENT.public_key
        line = cosign(first, CLIENT, 9)
        await log.add_cosignature(first.note.to_bytes(), line, witness)
        # What reaches no further than the cosigned checkpoint is proven by it.
        assert len(cosignatures_of((await log.prove(dealings.receipts[0].id)).verify())) == 1
        assert len(cosignatures_of((await log.prove(dealings.receipts[2].id)).verify())) == 0
        last = log.checkpoint
        assert last is not None
        await log.add_cosignature(last.note.to_bytes(), cosign(last, CLIENT, 9), witness)
        assert len(cosignatures_of(log.checkpoint or last)) == 1
        with pytest.raises(InvalidRecord):
            await log.add_cosignature(last.note.to_bytes(), line, witness)
        invented = sign_checkpoint(4, digest("another root"), PROVIDER)
        with pytest.raises(Refused, match="not one of the last"):
            await log.add_cosignature(invented.note.to_bytes(), cosign(invented, CLIENT, 9), witness)


async def test_a_frozen_log_signs_no_more(tmp_path: Path) -> None:
    ledger = MemoryLedger()
    dealings = Dealings()
    await ledger.append(*dealings.chain(1))
    async with running_log(tmp_path, ledger) as log:
        log.freeze("a witness holds a larger checkpoint of ours")
        await ledger.append(*dealings.completed())
        await log.flush()
        assert log.checkpoint is not None and log.checkpoint.size == 2
        assert log.waiting == 0
