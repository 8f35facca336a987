"""Another peer's log, asked over whatever road: its checkpoint, and whether it still is the tree that it was.

Nothing that comes is believed: a checkpoint is signed, and tiles have to lead to its root. Where they lead to it and
not to the root that was signed before, the log has forked, and `LogForked` carries the proof.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from p2pgrid.errors import InvalidRecord, ProtocolViolation, Refused
from p2pgrid.log.forks import LogForked
from p2pgrid.log.witness import Witness
from p2pgrid.proto.checkpoint import SignedCheckpoint, verify_checkpoint
from p2pgrid.proto.fork import prove_fork, prove_fork_by_tree
from p2pgrid.proto.keys import PublicKey
from p2pgrid.proto.merkle import HashAt, Node, consistency_proof, prefix_proof, prefix_roots, root_at, subtrees
from p2pgrid.proto.tiles import Tile, hash_at_of, nodes_of, tiles_for
from p2pgrid.proto.witness import AddCheckpoint

Get = Callable[[str], Awaitable[bytes]]
"""A resource of the log by its path. Raises RemoteError; Refused where there is none."""

PARALLEL_TILES: Final = 8
MAX_ATTEMPTS: Final = 8
CHECKPOINT_PATH: Final = "checkpoint"
WITNESS_PATH: Final = "witness/"
"""Followed by a peer id: the last checkpoint of that peer's log that the peer asked has on record."""
PROVE_PATH: Final = "prove/"
"""Followed by a record id in hex: a proof, for the record's parties alone."""


class Growth(StrEnum):
    """How a log stands to what was seen of it before."""

    FIRST = "first"
    SAME = "same"
    GROWN = "grown"
    STALE = "stale"
    """It shows a smaller tree than before, and a true one."""


@dataclass(frozen=True, slots=True)
class CheckedLog:
    """A log that is what it was."""

    growth: Growth
    checkpoint: SignedCheckpoint
    """What it shows now, with the cosignatures that came with it."""
    before: SignedCheckpoint | None
    """What was on record."""


class RemoteLog:
    """The log of the peer with this key."""

    def __init__(self, key: PublicKey, get: Get) -> None:
        self.key: Final = key
        self._get = get
        self._fetched: dict[Tile, bytes] = {}

    async def checkpoint(self) -> SignedCheckpoint:
        """The checkpoint that it shows, signed. Raises RemoteError."""
        return self._verified(await self._get(CHECKPOINT_PATH))

    async def check(self, witness: Witness) -> CheckedLog:
        """Fetch the checkpoint, hold it against what is on record, and put it there if it is good.

        Raises LogForked, another RemoteError, or LedgerError.
        """
        self._fetched.clear()
        shown = await self.checkpoint()
        for _ in range(MAX_ATTEMPTS):
            seen = await asyncio.to_thread(witness.store.last, self.key)
            before = seen.checkpoint if seen is not None else None
            if before is not None and shown.size < before.size:
                await self._check_pair(witness, shown, before)
                return CheckedLog(Growth.STALE, shown, before)
            if before is not None and before.size:
                await self._check_pair(witness, before, shown)
            else:
                await self._check_root(shown)
            old_size = before.size if before is not None else 0
            proof = await self._consistency(old_size, shown.size)
            request = AddCheckpoint(old_size, proof, shown.note.to_bytes())
            judgement = await witness.judge(request, shown)
            if judgement.fork is not None:
                raise LogForked(judgement.fork)
            if judgement.advance is not None:
                growth = Growth.FIRST if before is None else Growth.SAME if shown.size == old_size else Growth.GROWN
                return CheckedLog(growth, shown, before)
            # Somebody else has put a later one on record meanwhile: look again.
            continue
        raise ProtocolViolation(f"the log of {self.key} cannot be put on record: others are always ahead.")

    async def compare(self, witness: Witness, theirs: SignedCheckpoint) -> None:
        """Hold a checkpoint of this log that another peer was shown against what is on record here.

        Raises LogForked; Refused or ProtocolViolation where the log does not show enough to tell.
        """
        self._fetched.clear()
        seen = await asyncio.to_thread(witness.store.last, self.key)
        if seen is not None:
            smaller, larger = sorted((seen.checkpoint, theirs), key=lambda one: one.size)
            await self._check_pair(witness, smaller, larger)

    async def hashes(self, nodes: Iterable[Node], size: int) -> HashAt:
        """These nodes of the tree of `size`, out of tiles that may have been fetched before. Raises RemoteError.

        Nothing says that they are right before they lead to a signed root.
        """
        return await self._fetch(nodes, size)

    # -- inside -----------------------------------------------------------------------------------------------------

    def _verified(self, note: bytes) -> SignedCheckpoint:
        try:
            return verify_checkpoint(note, self.key)
        except InvalidRecord as error:
            raise ProtocolViolation(f"{self.key} shows no checkpoint of its log: {error.message}") from error

    async def _check_pair(self, witness: Witness, smaller: SignedCheckpoint, larger: SignedCheckpoint) -> None:
        """Raise unless the larger tree begins with the smaller one."""
        fork = prove_fork(smaller, larger) if smaller.size == larger.size else None
        if fork is None and 0 < smaller.size < larger.size:
            nodes = nodes_of(lambda at: prefix_proof(at, smaller.size, larger.size))
            hash_at = await self._fetch(nodes, larger.size)
            proof = prefix_proof(hash_at, smaller.size, larger.size)
            if prefix_roots(smaller.size, larger.size, proof)[1] != larger.root:
                raise self._unfit(larger)
            fork = prove_fork_by_tree(smaller, larger, hash_at)
        if fork is not None:
            witness.report(fork)
            raise LogForked(fork)

    async def _check_root(self, checkpoint: SignedCheckpoint) -> None:
        hash_at = await self._fetch(subtrees(0, checkpoint.size), checkpoint.size)
        if root_at(hash_at, checkpoint.size) != checkpoint.root:
            raise self._unfit(checkpoint)

    async def _consistency(self, old_size: int, new_size: int) -> tuple[bytes, ...]:
        nodes = nodes_of(lambda at: consistency_proof(at, old_size, new_size))
        return consistency_proof(await self._fetch(nodes, new_size), old_size, new_size)

    async def _fetch(self, nodes: Iterable[Node], size: int) -> HashAt:
        """These nodes out of tiles fetched now. Raises RemoteError."""
        slots = asyncio.Semaphore(PARALLEL_TILES)

        async def one(tile: Tile) -> bytes:
            async with slots:
                return await self._tile(tile)

        missing = [tile for tile in tiles_for(nodes, size) if tile not in self._fetched]
        self._fetched.update(zip(missing, await asyncio.gather(*map(one, missing)), strict=True))
        return hash_at_of(self._fetched.__getitem__, size)

    async def _tile(self, tile: Tile) -> bytes:
        try:
            hashes = await self._get(tile.path)
        except Refused as refusal:
            raise Refused(refusal.code, f"{self.key} does not show {tile.path} of its log: {refusal.message}") from None
        if len(hashes) != tile.n_bytes:
            raise ProtocolViolation(
                f"{self.key} sent {len(hashes)} bytes as {tile.path}; {tile.n_bytes} were expected."
            )
        return hashes

    def _unfit(self, checkpoint: SignedCheckpoint) -> ProtocolViolation:
        return ProtocolViolation(
            f"{self.key} shows tiles that do not make the tree of {checkpoint.size} leaves that it signed."
        )
