"""The life of the link to one provider: dialled, settled on, used, lost, and dialled again (docs/spec/session.md).

A link is used only once everything that an earlier one left open is settled on it. Who waits for the link, or for
anything else about the session, waits here and is woken by `tell`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final

from p2pgrid.errors import LedgerError, P2pgridError, ProtocolViolation, Unreachable
from p2pgrid.net.connection import LinkConnection
from p2pgrid.net.keeper import Backoff, Dial, KeeperState, LinkKeeper
from p2pgrid.proto.keys import PublicKey

log = logging.getLogger(__name__)

_LINK_WAIT_S: Final = 3600.0
_BACKOFF: Final = Backoff(most_s=15.0)

UseLink = Callable[[LinkConnection], Awaitable[None]]


class LinkLife:
    """Whether there is a link, what keeps it back, and whether the provider is dealt with at all."""

    def __init__(self, provider: PublicKey, dial: Dial, *, rng: random.Random) -> None:
        """Dials at once. `keep` has to run for a link to become ready."""
        self.quarantine: str = ""
        """Why the provider is dealt with no more; empty while it is."""
        self._provider = provider
        self._dial = dial
        self._keeper = LinkKeeper(self._dial_and_tell, rng=rng, backoff=_BACKOFF, name=provider.peer_id)
        self._link: LinkConnection | None = None
        """The link on which the channels are resumed."""
        self._error: P2pgridError | None = None
        self._ledger_failures = 0
        """In a row."""
        self._changed = asyncio.Event()
        self._closing: set[asyncio.Task[None]] = set()

    # -- how it stands -------------------------------------------------------------------------------------------

    @property
    def link(self) -> LinkConnection | None:
        """The link while it is ready: an order can leave at once, or wait for nothing but a slot."""
        link = self._link
        return link if link is not None and not link.retired.done() else None

    @property
    def is_ready(self) -> bool:
        """True while there is such a link."""
        return self._link is not None and not self._link.retired.done()

    @property
    def is_down(self) -> bool:
        """True while the last attempt to reach the provider failed and the next is not yet due."""
        return not self.is_ready and self._keeper.state in (KeeperState.WAITING, KeeperState.BARRED)

    def is_current(self, link: LinkConnection) -> bool:
        """True if no other link has come since, and this one was not given up."""
        return link is self._link

    async def ready(self, timeout_s: float, *, patient: bool = True) -> LinkConnection:
        """The link, everything settled on it. Raises RemoteError, or LedgerError where that is what keeps it back.

        Without patience, Unreachable comes as soon as a dial fails, and not only after the time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    if self.quarantine:
                        raise ProtocolViolation(f"{self._provider} is not dealt with any more: {self.quarantine}")
                    if self._link is not None and self.is_ready:
                        return self._link
                    if isinstance(self._error, LedgerError) and self._ledger_failures > 1:
                        raise self._error
                    if self.is_down and not patient:
                        raise TimeoutError
                    await self.changed()
        except TimeoutError:
            error = self._error or self._keeper.last_error
            if isinstance(error, LedgerError):
                raise error from None
            why = error.message if error else "no link could be made in time."
            raise Unreachable(f"{self._provider} is not there: {why}") from error

    async def changed(self) -> None:
        """Wait until anything about the session has changed."""
        await self._changed.wait()

    def tell(self) -> None:
        """Something has changed."""
        self._changed.set()  # who waits now is woken, whatever follows
        self._changed.clear()

    # -- its course ----------------------------------------------------------------------------------------------

    async def keep(self, settle: UseLink, use: UseLink) -> None:
        """Have everything settled on every new link, then used until no new stream can be opened on it.

        `settle` raises P2pgridError or TimeoutError where that cannot be done: the link is closed then, and another is
        dialled. Returns once the provider is dealt with no more.
        """
        while not self.quarantine:
            try:
                link = await self._keeper.link(_LINK_WAIT_S)
            except Unreachable:
                if self._keeper.state is KeeperState.CLOSED:
                    return
                continue
            except ProtocolViolation as violation:
                # Whoever answered there proved no key: nothing of it is held against the provider for long.
                self.bar(violation.message)
                return
            if link.retired.done():
                await asyncio.sleep(0)  # the keeper has yet to notice
                continue
            try:
                await settle(link)
            except (P2pgridError, TimeoutError) as error:
                self._error = error if isinstance(error, P2pgridError) else Unreachable("resuming took too long.")
                log.warning("the channel with %s cannot be resumed: %s", self._provider, self._error)
                await link.aclose("the channel could not be resumed")
            else:
                self._error, self._ledger_failures = None, 0
                self._link = link
                self.tell()
                await use(link)
                self._link = None
            self.tell()
        await self._keeper.aclose()

    def bar(self, reason: str) -> bool:
        """Deal with the provider no more, for the life of this session. False if that was so before."""
        if self.quarantine:
            return False
        log.error("%s is dealt with no more: %s", self._provider, reason)
        self.quarantine = reason
        self.close("a rule was broken")
        self.tell()
        return True

    def close(self, reason: str, error: P2pgridError | None = None) -> None:
        """Close the link, for a new one. With `error`, that is what keeps it back until then."""
        if error is not None:
            self._error = error
        if self._link is not None and not self._link.closed.done():
            task = asyncio.get_running_loop().create_task(self._link.aclose(reason))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def dial_now(self) -> None:
        """Something says that the provider can be reached: do not wait with the next dial."""
        self._keeper.dial_now()

    def ledger_failed(self, error: LedgerError) -> None:
        """Drop the link: what the ledger has is settled on the next."""
        log.error("the ledger failed: %s", error)
        self._error = error
        self._ledger_failures += 1
        if self._link is not None:
            self._link.abort()
        self.tell()

    async def aclose(self) -> None:
        """Close the link and dial no more. `keep` has ended before."""
        self._link = None
        await self._keeper.aclose()
        await asyncio.gather(*self._closing, return_exceptions=True)

    async def _dial_and_tell(self) -> LinkConnection:
        try:
            return await self._dial()
        finally:
            self.tell()
