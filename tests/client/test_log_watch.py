"""A gateway that watches the logs of real providers: cosigned checkpoints, forks found, providers barred."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from p2pgrid.client.log_watch import LogWatch
from p2pgrid.clock import unix_ms
from p2pgrid.errors import Refused
from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.log.log import TransparencyLog
from p2pgrid.log.service import LogService, Resource
from p2pgrid.log.witness import WitnessStore
from p2pgrid.net.connection import LinkConnection
from p2pgrid.net.direct import dial
from p2pgrid.proto.checkpoint import cosignatures_of
from p2pgrid.proto.fork import verify_fork
from p2pgrid.proto.keys import PublicKey
from p2pgrid.proto.witness import AddCheckpoint
from tests.client.test_with_provider import BODY, CHAT, buying
from tests.factories import CLIENT, PROVIDER
from tests.log.rig import ForkingLog, make_service, make_witness, running_log
from tests.provider.rig import provider, until

PEER = PROVIDER.public_key.peer_id


@contextlib.asynccontextmanager
async def watching(tmp_path: Path, sessions: Mapping[str, object]) -> AsyncIterator[LogWatch]:
    (tmp_path / "gateway").mkdir(exist_ok=True)
    store = WitnessStore(tmp_path / "gateway" / "witness.sqlite")
    watch = LogWatch(
        CLIENT,
        store,
        lambda: sessions,  # type: ignore[arg-type, return-value]
        forks=tmp_path / "gateway" / "forks",
        now_ms=unix_ms,
        interval_s=0.05,
        tick_s=0.01,
    )
    async with watch:
        yield watch
    store.close()


@contextlib.asynccontextmanager
async def serving(tmp_path: Path, ledger: MemoryLedger) -> AsyncIterator[LogService]:
    (tmp_path / "provider").mkdir(exist_ok=True)
    witness = make_witness(tmp_path / "provider", PROVIDER)
    async with running_log(tmp_path / "provider", ledger) as log:
        yield make_service(log, witness)
    witness.store.close()


async def test_sales_end_in_a_cosigned_log(tmp_path: Path) -> None:
    sold = MemoryLedger()
    async with (
        serving(tmp_path, sold) as log,
        provider(sold, log=log) as rig,
        buying(rig) as (purchaser, _),
        watching(tmp_path, purchaser.sessions) as watch,
    ):
        for _ in range(2):
            async with await purchaser.buy(CHAT, BODY, whole=True):
                pass
        await until(lambda: log.log.checkpoint is not None and log.log.checkpoint.size == 3)

        def cosigned() -> bool:
            checkpoint = log.log.checkpoint
            return checkpoint is not None and [one.witness for one in cosignatures_of(checkpoint)] == [
                CLIENT.public_key
            ]

        await until(cosigned)
        await until(lambda: watch.cosigned == {PEER: 3})
        seen = watch.witness.store.last(PROVIDER.public_key)
        assert seen is not None and seen.checkpoint.size == 3
        (receipt, _) = sold.receipts()
        assert cosignatures_of((await log.log.prove(receipt.record_id)).verify())
        assert not list((tmp_path / "gateway").glob("forks/*"))


class ForkingService(LogService):
    """A provider's log that shows another tree from some moment on."""

    def __init__(self, log: TransparencyLog, branches: ForkingLog, tmp_path: Path) -> None:
        super().__init__(log, make_witness(tmp_path, PROVIDER), is_party=lambda *_: True, deals_with=lambda _: True)
        self.branches = branches

    async def get(self, path: str, asker: PublicKey | None = None) -> Resource:
        return Resource(await self.branches.get(path), "", "")

    async def take_cosignature(self, note: bytes, witness: PublicKey) -> None:
        """Thrown away."""


async def test_a_provider_that_forks_is_proven_and_barred(tmp_path: Path) -> None:
    branches = ForkingLog(tmp_path / "branches", 10, (20, 30))
    async with running_log(tmp_path) as own:
        log = ForkingService(own, branches, tmp_path)
        async with (
            provider(log=log) as rig,
            buying(rig) as (purchaser, _),
            watching(tmp_path, purchaser.sessions) as watch,
        ):
            async with await purchaser.buy(CHAT, BODY, whole=True):
                pass
            await until(lambda: watch.cosigned == {PEER: 20})
            branches.shown = 1
            session = purchaser.sessions[PEER]
            await until(lambda: session.quarantine)
            assert session.quarantine.startswith("log-fork: the log p2pgrid/12D3KooW")
            (path,) = (tmp_path / "gateway" / "forks").glob("*.fork-proof")
            proof = verify_fork(path.read_bytes())
            assert (proof.smaller.size, proof.larger.size) == (20, 30)
            seen = watch.witness.store.last(PROVIDER.public_key)
            assert seen is not None and seen.checkpoint.size == 20
        branches.shown = 0
        # The next life of the gateway knows.
        async with provider(log=log) as rig, buying(rig) as (purchaser, _), watching(tmp_path, purchaser.sessions):
            await until(lambda: PEER in purchaser.sessions and purchaser.sessions[PEER].quarantine)
        log.witness.store.close()
    branches.close()


@dataclass
class Dealings:
    """A session with a provider, as the watch sees it."""

    provider: PublicKey
    link: LinkConnection | None
    barred: list[str] = field(default_factory=list)

    def bar(self, reason: str) -> None:
        self.barred.append(reason)


async def test_what_other_providers_were_shown_is_compared(tmp_path: Path) -> None:
    branches = ForkingLog(tmp_path / "branches", 10, (20, 30))
    for name in ("forking", "honest"):
        (tmp_path / name).mkdir()
    async with running_log(tmp_path / "forking") as own, running_log(tmp_path / "honest", key=CLIENT) as other:
        forking = ForkingService(own, branches, tmp_path / "forking")
        honest = make_service(other, make_witness(tmp_path / "honest", CLIENT))
        # The honest provider has been shown the other branch.
        shown = branches.branches[1].checkpoint()
        assert shown is not None
        await honest.add_checkpoint(AddCheckpoint(0, (), shown.note.to_bytes()).to_bytes())
        async with provider(log=forking) as rig, provider(log=honest) as second:
            links = [await dial(*one.address, PROVIDER.public_key, CLIENT) for one in (rig, second)]
            sessions = {
                PEER: Dealings(PROVIDER.public_key, links[0]),
                "the honest one": Dealings(CLIENT.public_key, links[1]),
            }
            async with watching(tmp_path, sessions) as watch:
                await until(lambda: watch.cosigned.get(PEER) == 20)
                assert not sessions[PEER].barred, "the larger tree's tiles are not shown"
                branches.shown = 1
                await until(lambda: sessions[PEER].barred)
                assert not sessions["the honest one"].barred
            for link in links:
                await link.aclose("done")
        forking.witness.store.close()
        honest.witness.store.close()
    branches.close()


async def test_a_log_is_compared_though_its_provider_keeps_no_cosignature_of_ours(tmp_path: Path) -> None:
    """As one does with whom we have no channel: it is looked after all the same, and nothing is amiss."""
    branches = ForkingLog(tmp_path / "branches", 10, (20, 30))

    class Unwilling(ForkingService):
        async def take_cosignature(self, note: bytes, witness: PublicKey) -> None:
            raise Refused("not-a-party", "cosignatures are kept of peers that have a channel here.")

    for name in ("forking", "honest"):
        (tmp_path / name).mkdir()
    async with running_log(tmp_path / "forking") as own, running_log(tmp_path / "honest", key=CLIENT) as other:
        forking = Unwilling(own, branches, tmp_path / "forking")
        honest = make_service(other, make_witness(tmp_path / "honest", CLIENT))
        seen = branches.branches[0].checkpoint()
        assert seen is not None
        await honest.add_checkpoint(AddCheckpoint(0, (), seen.note.to_bytes()).to_bytes())
        branches.shown = 1
        async with provider(log=forking) as rig, provider(log=honest) as second:
            links = [await dial(*one.address, PROVIDER.public_key, CLIENT) for one in (rig, second)]
            sessions = {
                PEER: Dealings(PROVIDER.public_key, links[0]),
                "the honest one": Dealings(CLIENT.public_key, links[1]),
            }
            async with watching(tmp_path, sessions) as watch:
                await until(lambda: sessions[PEER].barred)
                assert PEER not in watch.cosigned and not sessions["the honest one"].barred
            for link in links:
                await link.aclose("done")
        forking.witness.store.close()
        honest.witness.store.close()
    branches.close()


async def test_a_provider_without_a_log(tmp_path: Path) -> None:
    async with provider() as rig, buying(rig) as (purchaser, _), watching(tmp_path, purchaser.sessions) as watch:
        async with await purchaser.buy(CHAT, BODY, whole=True):
            pass
        await watch.check(PEER)
        await watch.check("nobody")
        assert not watch.cosigned and not purchaser.sessions[PEER].quarantine
