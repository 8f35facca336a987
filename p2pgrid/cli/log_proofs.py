"""Proofs of the log for an export: had from the log on disk, or from the providers, and put behind the records.

One checkpoint for each log reaches all that is proven, so that its bundle holds it once.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Final

import click

from p2pgrid.cli.log_roads import Roads, addresses_of
from p2pgrid.cli.network import NetworkChoice
from p2pgrid.cli.output import echo_json
from p2pgrid.cli.progress import Progress, progress
from p2pgrid.data_folder import DataFolder
from p2pgrid.errors import Refused, RemoteError, UsageError
from p2pgrid.ledger.bundle import write_bundle
from p2pgrid.ledger.reader import SqliteReader
from p2pgrid.log.proofs import AskedLog, Leaf, OwnLog, ProvingLog, best_checkpoint, n_witnesses
from p2pgrid.log.reader import LogReader
from p2pgrid.log.wanted import WantedProofs
from p2pgrid.proto.checkpoint import CHECKPOINT_TYPE, SignedCheckpoint
from p2pgrid.proto.inclusion import INCLUSION_PROOF_TYPE
from p2pgrid.proto.keys import PublicKey, parse_public_key
from p2pgrid.proto.record import Record

BATCH: Final = 256
ENTER_S: Final = 3.0
"""A record is in the log of a node that runs so soon after the sale."""
POLL_S: Final = 1.0
TIMEOUT_S: Final = 15.0


@dataclass(slots=True)
class ShownLog:
    """What came of one log."""

    log: PublicKey
    wanted: int
    proofs: int = 0
    checkpoint: SignedCheckpoint | None = None
    lacking: list[tuple[str, bytes, str]] = field(default_factory=list)
    """What it is, its record id, and why there is no proof: `not-logged`, `erased`, or another code of a refusal."""
    error: str = ""
    """Why there are no more proofs; empty where all were asked for."""
    too_few_witnesses: bool = False

    @property
    def is_complete(self) -> bool:
        """True if everything has its proof, and the checkpoint as many witnesses as were asked for."""
        return not (self.lacking or self.error or self.too_few_witnesses) and self.proofs == self.wanted

    @property
    def witnesses(self) -> int:
        """Of the checkpoint."""
        return n_witnesses(self.checkpoint) if self.checkpoint is not None else 0

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "log": self.log.peer_id,
            "size": self.checkpoint.size if self.checkpoint is not None else 0,
            "witnesses": self.witnesses,
            "wanted": self.wanted,
            "proofs": self.proofs,
            "lacking": [{"type": kind, "record": one.hex(), "why": why} for kind, one, why in self.lacking],
            "error": self.error,
        }


@dataclass(frozen=True, kw_only=True)
class ProofSearch:
    """Where proofs are looked for."""

    data: DataFolder
    ledger: SqliteReader
    network: NetworkChoice
    witnesses: int
    """So many should have cosigned the checkpoint."""
    wait_s: float
    """How long that is waited for."""

    def attach(self, wanted: WantedProofs, report: Progress, shown: list[ShownLog]) -> Iterator[Record]:
        """Checkpoints and proofs of everything in `wanted`; for each log one is added to `shown` that says what came.

        Raises LedgerError, UsageError. A provider that is away is no error: `shown` says so.
        """
        # One loop for all, so that a link stays while what came over it is written.
        with asyncio.Runner() as runner:
            for raw in wanted.logs:
                one = ShownLog(parse_public_key(raw), wanted.count(raw))
                shown.append(one)
                records = self._of_one(one, wanted, report)  # a few hundred at a time
                try:
                    while (some := runner.run(_next(records))) is not None:
                        yield from some
                finally:
                    runner.run(_close(records))

    async def _of_one(self, one: ShownLog, wanted: WantedProofs, report: Progress) -> AsyncIterator[list[Record]]:
        async with AsyncExitStack() as stack:
            try:
                log = await stack.enter_async_context(self._log(one.log))
                leaves = await self._leaves(log, one, wanted, report)
                if not leaves:
                    return
                checkpoint = one.checkpoint = await self._checkpoint(log, one, max(leaf.index for leaf in leaves) + 1)
                yield [Record(CHECKPOINT_TYPE, checkpoint.note.to_bytes(), ())]
                for at in range(0, len(leaves), BATCH):
                    proofs = await log.prove(leaves[at : at + BATCH], checkpoint)
                    yield [Record(INCLUSION_PROOF_TYPE, proof.to_bytes(), ()) for proof in proofs]
                    one.proofs += len(proofs)
                    report(f"proofs of {one.log}", one.proofs, len(leaves))
            except RemoteError as error:
                one.error = error.message

    async def _leaves(self, log: ProvingLog, one: ShownLog, wanted: WantedProofs, report: Progress) -> list[Leaf]:
        found: list[Leaf] = []
        late: list[tuple[str, bytes]] = []
        began_s = time.monotonic()

        async def look(kind: str, ids: list[bytes], *, again: bool) -> None:
            for record_id, leaf in zip(ids, await log.leaves(ids), strict=True):
                if isinstance(leaf, Leaf):
                    found.append(leaf)
                elif leaf.code in ("not-logged", "not-there") and again:
                    late.append((kind, record_id))
                else:
                    code = "not-logged" if leaf.code == "not-there" else leaf.code
                    one.lacking.append((kind, record_id, code))

        for kind, ids in wanted.batches(one.log.raw, BATCH):
            await look(kind, ids, again=True)
            report(f"leaves of {one.log}", len(found), one.wanted)
        if late:
            await asyncio.sleep(max(began_s + ENTER_S - time.monotonic(), 0))
            for kind, record_id in late:
                await look(kind, [record_id], again=False)
        return sorted(found, key=lambda leaf: leaf.index)

    async def _checkpoint(self, log: ProvingLog, one: ShownLog, least_size: int) -> SignedCheckpoint:
        """The one to prove by, once it has its witnesses or the time is over. Raises RemoteError, LedgerError."""
        until_s = time.monotonic() + self.wait_s
        while True:
            best = best_checkpoint(await log.checkpoints(), least_size, self.witnesses)
            if best is not None and n_witnesses(best) >= self.witnesses:
                return best
            if time.monotonic() >= until_s:
                if best is None:
                    raise Refused("not-logged", f"no checkpoint of {log.key} reaches leaf {least_size - 1} yet.")
                one.too_few_witnesses = True
                return best
            await asyncio.sleep(POLL_S)

    @asynccontextmanager
    async def _log(self, key: PublicKey) -> AsyncIterator[ProvingLog]:
        """Our own on disk, or the provider's. Raises RemoteError."""
        ours = self.data.own_public_keys()
        if key not in ours:
            addresses = addresses_of(self.ledger, ours, key)
            async with (
                Roads(self.network, TIMEOUT_S, self.data.load_key()) as roads,
                roads.provider_log(key, addresses) as get,
            ):
                yield AskedLog(key, get)
            return
        try:
            reader = LogReader.open_readonly(self.data.log_file(key.peer_id))
        except UsageError as missing:
            raise Refused("no-log", missing.message) from missing
        try:
            yield OwnLog(key, reader)
        finally:
            reader.close()


def export_logged(search: ProofSearch, file: Path, records: Iterable[Record], *, as_json: bool) -> None:
    """Write records and their proofs, and say what came of it. Exits with 1 where something is lacking."""
    wanted, shown, written = WantedProofs(), list[ShownLog](), 0

    def noted() -> Iterator[Record]:
        nonlocal written
        for record in records:
            wanted.note(record)
            written += 1
            yield record

    with progress() as report:
        write_bundle(file, chain(noted(), search.attach(wanted, report, shown)))
    is_complete = all(one.is_complete for one in shown)
    if as_json:
        logs = [one.as_json() for one in shown]
        echo_json({"file": str(file), "records": written, "complete": is_complete, "logs": logs})
    else:
        for line in (line for one in shown for line in shown_text(one, search.witnesses)):
            click.echo(line)
        demands = f"--logged --witnesses {search.witnesses}" if search.witnesses else "--logged"
        click.echo(f"{written} records written to {file}. Audit them with: p2pgrid audit {file} {demands}")
    if not is_complete:
        sys.exit(1)


def shown_text(one: ShownLog, witnesses: int) -> Iterator[str]:
    """What came of one log, for people."""
    size = (
        f"under the checkpoint of {one.checkpoint.size} entries, cosigned by {one.witnesses}" if one.checkpoint else ""
    )
    yield f"{one.log}: {one.proofs} of {one.wanted} records proven {size}".rstrip()
    if one.error:
        yield f"  {one.error}"
    if one.too_few_witnesses:
        yield f"  {witnesses} witnesses were asked for; a longer --wait may bring them"
    by_reason: dict[str, list[str]] = {}
    for kind, record_id, why in one.lacking:
        by_reason.setdefault(why, []).append(f"{kind} {record_id.hex()[:16]}")
    for why, names in by_reason.items():
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        yield f"  {why}: {', '.join(names[:10])}{more}"


async def _next(records: AsyncIterator[list[Record]]) -> list[Record] | None:
    return await anext(records, None)


async def _close(records: Any) -> None:
    await records.aclose()
