"""The gateway as a witness: it looks after the logs of the providers it has a link to (docs/spec/log.md, section 7).

Each log is fetched again and again, held against what was seen before, put on record, and cosigned; the cosignature
goes back to the provider. What other providers were shown of the same log is compared too. A fork is proven, the
proof kept as a file, and the provider is dealt with no more, also after a restart.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Protocol

from p2pgrid.client.background import log_end
from p2pgrid.errors import InvalidRecord, LedgerError, LocalError, Refused, RemoteError
from p2pgrid.log.forks import LogForked, keep_fork, kept_forks
from p2pgrid.log.remote import WITNESS_PATH, Growth, RemoteLog
from p2pgrid.log.witness import Witness, WitnessStore
from p2pgrid.net.connection import LinkConnection
from p2pgrid.net.log_roads import over_link, send_cosignature
from p2pgrid.proto.checkpoint import SignedCheckpoint, verify_checkpoint
from p2pgrid.proto.fork import ForkProof
from p2pgrid.proto.keys import PublicKey, SecretKey

log = logging.getLogger(__name__)

CHECK_INTERVAL_S: Final = 60.0
TICK_S: Final = 2.0
CHECK_TIMEOUT_S: Final = 30.0
COMPARED_PEERS: Final = 8
"""Other providers that are asked, each time, what they were shown of a log."""
_NO_LOG: Final = frozenset({"no-log", "not-there", "unknown-path"})


class Dealings(Protocol):
    """What is needed of the session with a provider."""

    @property
    def provider(self) -> PublicKey:
        """Who it is."""

    @property
    def link(self) -> LinkConnection | None:
        """The link while it is ready."""

    def bar(self, reason: str) -> None:
        """Deal with the provider no more."""


class LogWatch:
    """Looks after the logs of providers, in the background. Use it with `async with`."""

    def __init__(
        self,
        key: SecretKey,
        store: WitnessStore,
        sessions: Callable[[], Mapping[str, Dealings]],
        *,
        forks: Path,
        now_ms: Callable[[], int],
        interval_s: float = CHECK_INTERVAL_S,
        tick_s: float = TICK_S,
    ) -> None:
        self.witness: Final = Witness(store, key, now_ms=now_ms, on_fork=self._fork_found)
        self._sessions = sessions
        self._forks = forks
        self._interval_s = interval_s
        self._tick_s = tick_s
        self._due: dict[str, float] = {}
        self._looked_up: set[str] = set()
        self._task: asyncio.Task[None] | None = None
        self.cosigned: dict[str, int] = {}
        """By peer id: the size of the provider's log that we cosigned last."""

    async def __aenter__(self) -> LogWatch:
        self._task = asyncio.create_task(self._run(), name="log watch")
        self._task.add_done_callback(log_end)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def check(self, peer_id: str) -> None:
        """Look after one provider's log now, if there is a link to it. What is wrong is logged, and acted upon."""
        session = self._sessions().get(peer_id)
        link = session.link if session is not None else None
        if session is None or link is None:
            return
        remote = RemoteLog(session.provider, over_link(link))
        try:
            checked = await remote.check(self.witness)
            if checked.growth is Growth.STALE:
                log.warning("%s shows an old state of its log: %d entries", peer_id, checked.checkpoint.size)
            elif self.cosigned.get(peer_id) != checked.checkpoint.size:
                await self._send_cosignature(peer_id, link, checked.checkpoint)
            await self._compare(session, remote)
        except LogForked:
            pass  # told already, by the witness's `on_fork`
        except (RemoteError, InvalidRecord, LedgerError) as error:
            level = logging.DEBUG if isinstance(error, Refused) and error.code in _NO_LOG else logging.WARNING
            log.log(level, "the log of %s could not be checked: %s", peer_id, error)

    # -- inside -----------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            for peer_id, session in list(self._sessions().items()):
                if peer_id not in self._looked_up:
                    self._looked_up.add(peer_id)
                    for proof in await asyncio.to_thread(kept_forks, self._forks, session.provider):
                        session.bar(f"log-fork: {proof.describe()}")
                if session.link is not None and self._due.get(peer_id, 0.0) <= loop.time():
                    self._due[peer_id] = loop.time() + self._interval_s
                    try:
                        async with asyncio.timeout(CHECK_TIMEOUT_S):
                            await self.check(peer_id)
                    except TimeoutError:
                        log.warning("the log of %s could not be checked within %g s", peer_id, CHECK_TIMEOUT_S)
            gone = self._due.keys() - self._sessions().keys()
            for peer_id in gone:
                del self._due[peer_id]
                self._looked_up.discard(peer_id)
            await asyncio.sleep(self._tick_s)

    async def _send_cosignature(self, peer_id: str, link: LinkConnection, checkpoint: SignedCheckpoint) -> None:
        """Hand over our cosignature. A provider need not keep it: of whom it has no channel with, say."""
        try:
            await send_cosignature(link, self.witness.cosign(checkpoint))
        except Refused as refusal:
            log.debug("%s does not keep our cosignature: %s", peer_id, refusal.message)
        else:
            self.cosigned[peer_id] = checkpoint.size

    async def _compare(self, session: Dealings, remote: RemoteLog) -> None:
        """Ask other providers what they have on record of this log. What they say is signed by the log or nothing."""
        others = [one for one in self._sessions().values() if one is not session][:COMPARED_PEERS]
        for other in others:
            link = other.link
            if link is None:
                continue
            try:
                note = await over_link(link)(f"{WITNESS_PATH}{session.provider.peer_id}")
                await remote.compare(self.witness, verify_checkpoint(note, session.provider))
            except LogForked:
                raise
            except (RemoteError, InvalidRecord) as error:
                log.debug("%s could not be compared with: %s", other.provider, error)

    def _fork_found(self, proof: ForkProof) -> None:
        peer_id = proof.larger.log_key.peer_id
        try:
            log.error("the log of %s forked; the proof is %s", peer_id, keep_fork(self._forks, proof))
        except LocalError as error:
            log.error("the proof of the fork could not be kept: %s\n%s", error, proof.to_json().decode())
        session = self._sessions().get(peer_id)
        if session is not None:
            session.bar(f"log-fork: {proof.describe()}")
