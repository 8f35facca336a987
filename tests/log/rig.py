"""Logs for tests: a store in a folder, a log over a ledger, and a log that forks."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from p2pgrid.errors import Refused
from p2pgrid.ledger.base import Ledger
from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.log.log import TransparencyLog
from p2pgrid.log.service import LogService
from p2pgrid.log.store import LogStore, NewEntry
from p2pgrid.log.witness import Witness, WitnessStore
from p2pgrid.proto.fork import ForkProof
from p2pgrid.proto.keys import PublicKey, SecretKey
from p2pgrid.proto.tiles import parse_tile_path
from tests.factories import CLIENT, NOW_MS, PROVIDER, digest


def new_entries(first: int, count: int, name: str = "record") -> list[NewEntry]:
    """Entries with fixed ids and salts."""
    return [
        NewEntry(digest(f"{name} {number}"), digest(f"{name} salt {number}"), b"")
        for number in range(first, first + count)
    ]


def open_store(folder: Path, key: SecretKey = PROVIDER) -> LogStore:
    """The log in a folder."""
    return LogStore(folder / "log.sqlite", folder / "log.checkpoint", key)


class Salts:
    """Salts that are the same in every run."""

    def __init__(self) -> None:
        self.given = 0

    def __call__(self, size: int) -> bytes:
        self.given += 1
        return hashlib.sha256(f"salt {self.given}".encode()).digest()[:size]


@contextlib.asynccontextmanager
async def running_log(
    folder: Path, ledger: Ledger | None = None, key: SecretKey = PROVIDER, *, integrate_s: float = 0.02
) -> AsyncIterator[TransparencyLog]:
    """A log over a ledger (in memory unless given)."""
    log = TransparencyLog(
        folder / "log.sqlite",
        folder / "log.checkpoint",
        key,
        ledger if ledger is not None else MemoryLedger(),
        now_ms=lambda: NOW_MS,
        integrate_s=integrate_s,
        retry_s=0.01,
    )
    async with log:
        yield log


def make_witness(
    folder: Path, key: SecretKey = CLIENT, on_fork: Callable[[ForkProof], None] = lambda _: None
) -> Witness:
    """A witness with its store in a folder. Close `witness.store`."""
    folder.mkdir(parents=True, exist_ok=True)
    store = WitnessStore(folder / "witness.sqlite")
    return Witness(store, key, now_ms=lambda: NOW_MS, on_fork=on_fork)


def make_service(
    log: TransparencyLog, witness: Witness, party: PublicKey = CLIENT.public_key, *, max_waiting: int = 256
) -> LogService:
    """A service that deals with one party."""
    return LogService(
        log,
        witness,
        is_party=lambda _, peer: peer == party,
        deals_with=lambda peer: peer == party,
        max_waiting=max_waiting,
    )


class ForkingLog:
    """The resources of a log that shows one tree to some and another to others, both signed, both whole."""

    def __init__(self, folder: Path, common: int, sizes: tuple[int, int], key: SecretKey = PROVIDER) -> None:
        """Two branches that part after `common` entries."""
        self.branches: list[LogStore] = []
        for name, size in zip(("true", "forked"), sizes, strict=True):
            (folder / name).mkdir(parents=True)
            store = open_store(folder / name, key)
            store.append(new_entries(0, common), NOW_MS)
            store.append(new_entries(common, size - common, name), NOW_MS)
            self.branches.append(store)
        self.shown = 0

    async def get(self, path: str) -> bytes:
        """A resource of the branch that is shown now."""
        branch = self.branches[self.shown]
        if path == "checkpoint":
            checkpoint = branch.checkpoint()
            assert checkpoint is not None
            return checkpoint.note.to_bytes()
        try:
            return branch.read(parse_tile_path(path))
        except KeyError:
            raise Refused("not-there", path) from None

    def close(self) -> None:
        for branch in self.branches:
            branch.close()
