"""Proofs of many records under one checkpoint, out of a log on disk or by asking the log's node.

First each record's leaf and salt are had, then the checkpoint that reaches them all is chosen, then every proof is made
for it: a bundle needs that checkpoint once, and each proof holds no more hashes than the tree is high.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from p2pgrid.errors import InvalidRecord, ProtocolViolation, Refused, Unreachable
from p2pgrid.log.reader import LogEntry, LogReader
from p2pgrid.log.remote import PROVE_PATH, Get, RemoteLog
from p2pgrid.proto.checkpoint import SignedCheckpoint, cosignatures_of
from p2pgrid.proto.inclusion import InclusionProof, LogProof, parse_log_proof
from p2pgrid.proto.keys import PublicKey
from p2pgrid.proto.merkle import HashAt, inclusion_proof
from p2pgrid.proto.tiles import nodes_of

ASKED_AT_ONCE: Final = 8
"""As many as a node works on at once."""
BUSY: Final = "busy"
BUSY_TRIES: Final = 5
BUSY_PAUSE_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Leaf:
    """Where a record stands in a log, and what shows it."""

    index: int
    record_id: bytes
    salt: bytes


class ProvingLog(Protocol):
    """A log that proofs are had of."""

    key: PublicKey

    async def leaves(self, record_ids: Sequence[bytes]) -> list[Leaf | Refused]:
        """The leaf of each, or why there is none: `not-logged`, `erased`. Raises RemoteError, LedgerError."""
        ...

    async def checkpoints(self) -> list[SignedCheckpoint]:
        """Those that may be proven by, with the cosignatures that they have now. Raises RemoteError, LedgerError."""
        ...

    async def prove(self, leaves: Sequence[Leaf], checkpoint: SignedCheckpoint) -> list[InclusionProof]:
        """The proofs that these leaves are under that checkpoint, verified. Raises RemoteError, LedgerError."""
        ...


class OwnLog:
    """A log on disk."""

    def __init__(self, key: PublicKey, reader: LogReader) -> None:
        self.key = key
        self._reader = reader

    async def leaves(self, record_ids: Sequence[bytes]) -> list[Leaf | Refused]:
        """See `ProvingLog`."""
        return await asyncio.to_thread(lambda: [_leaf(self._reader.find(one), one) for one in record_ids])

    async def checkpoints(self) -> list[SignedCheckpoint]:
        """See `ProvingLog`."""
        return await asyncio.to_thread(self._reader.checkpoints)

    async def prove(self, leaves: Sequence[Leaf], checkpoint: SignedCheckpoint) -> list[InclusionProof]:
        """See `ProvingLog`."""
        return await asyncio.to_thread(lambda: _proofs(self._reader.hash_at(checkpoint.size), leaves, checkpoint))


class AskedLog:
    """The log of a provider, which shows the proofs of a channel's records to the channel's parties."""

    def __init__(self, key: PublicKey, get: Get) -> None:
        self.key = key
        self._get = get
        self._remote = RemoteLog(key, get)
        self._last: Leaf | None = None

    async def proof(self, record_id: bytes) -> LogProof:
        """One proof as the provider gives it, verified. Raises RemoteError; Refused where it has none."""
        text = await self._patiently(f"{PROVE_PATH}{record_id.hex()}")
        try:
            proof = parse_log_proof(text)
            proof.verify(self.key)
        except InvalidRecord as error:
            raise ProtocolViolation(f"{self.key} gave a proof that does not hold: {error.message}") from error
        if proof.inclusion.record_id != record_id:
            raise ProtocolViolation(f"{self.key} gave the proof of another record.")
        return proof

    async def leaves(self, record_ids: Sequence[bytes]) -> list[Leaf | Refused]:
        """See `ProvingLog`."""
        slots = asyncio.Semaphore(ASKED_AT_ONCE)

        async def one(record_id: bytes) -> Leaf | Refused:
            async with slots:
                try:
                    inclusion = (await self.proof(record_id)).inclusion
                except Refused as refusal:
                    if refusal.code == BUSY:  # the next would be refused like this one
                        raise Unreachable(f"{self.key} is busy: {refusal.message}") from refusal
                    return refusal
            self._last = Leaf(inclusion.leaf_index, record_id, inclusion.salt)
            return self._last

        # All are awaited, so that none goes on alone after the first that failed.
        found: list[Leaf | Refused] = []
        for result in await asyncio.gather(*map(one, record_ids), return_exceptions=True):
            if isinstance(result, BaseException) and not isinstance(result, Refused):
                raise result
            found.append(result)
        return found

    async def checkpoints(self) -> list[SignedCheckpoint]:
        """See `ProvingLog`. The last one, and the last that a witness has cosigned."""
        shown = [await self._remote.checkpoint()]
        if self._last is not None:
            shown.append((await self.proof(self._last.record_id)).verify(self.key))
        return shown

    async def prove(self, leaves: Sequence[Leaf], checkpoint: SignedCheckpoint) -> list[InclusionProof]:
        """See `ProvingLog`. Out of the tiles that the log shows to everybody."""
        size = checkpoint.size
        nodes = nodes_of(lambda at: [inclusion_proof(at, one.index, size) for one in leaves])
        return _proofs(await self._remote.hashes(nodes, size), leaves, checkpoint)

    async def _patiently(self, path: str) -> bytes:
        """What is at a path; asked again for a while where the provider is busy."""
        for _ in range(BUSY_TRIES - 1):
            try:
                return await self._get(path)
            except Refused as refusal:
                if refusal.code != BUSY:
                    raise
                await asyncio.sleep(BUSY_PAUSE_S)
        return await self._get(path)


def n_witnesses(checkpoint: SignedCheckpoint) -> int:
    """How many peers beside the log's owner have cosigned it."""
    return len({one.witness.raw for one in cosignatures_of(checkpoint)} - {checkpoint.log_key.raw})


def best_checkpoint(
    checkpoints: Sequence[SignedCheckpoint], least_size: int, witnesses: int
) -> SignedCheckpoint | None:
    """Of those that reach so far the one with enough witnesses, or else with most; of several the largest."""
    reaching = [one for one in checkpoints if one.size >= least_size]

    def rank(one: SignedCheckpoint) -> tuple[int, int]:
        n = n_witnesses(one)
        return (min(n, witnesses) if witnesses else n), one.size

    return max(reaching, key=rank, default=None)


def _proofs(hash_at: HashAt, leaves: Sequence[Leaf], checkpoint: SignedCheckpoint) -> list[InclusionProof]:
    """Raises ProtocolViolation where the hashes do not lead to the root that the log signed."""
    size = checkpoint.size
    hash_at = functools.cache(hash_at)  # neighbours share most of theirs
    proofs = [
        InclusionProof(
            record_id=one.record_id,
            salt=one.salt,
            leaf_index=one.index,
            tree_size=size,
            hashes=inclusion_proof(hash_at, one.index, size),
        )
        for one in leaves
    ]
    try:
        for proof in proofs:
            proof.verify(checkpoint)
    except InvalidRecord as error:
        raise ProtocolViolation(
            f"{checkpoint.log_key} shows hashes that do not make the tree of {size} leaves that it signed: "
            f"{error.message}"
        ) from error
    return proofs


def _leaf(entry: LogEntry | None, record_id: bytes) -> Leaf | Refused:
    if entry is None:
        return Refused("not-logged", f"the record {record_id.hex()[:16]} is not in the log.")
    if entry.salt is None:
        return Refused("erased", f"the salt of leaf {entry.index} was erased: nobody can show what it stands for.")
    return Leaf(entry.index, record_id, entry.salt)
