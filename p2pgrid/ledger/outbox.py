"""Durable before visible: the one place where actions of a session meet the ledger and the link.

Each order has an outbox. It hands records to the ledger at once and holds back everything that is to be sent after
them until the ledger says they are durable. Messages leave in the order in which they were put in; while nothing is
being written, sending costs nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from p2pgrid.errors import LedgerError
from p2pgrid.ledger.base import Ledger
from p2pgrid.proto.record import Message, Signed


class Outbox:
    """An ordered queue of effects behind durable writes.

    `on_failure` is called once, with the ledger's error, if a record could not be made durable. Nothing that stood
    behind it is then sent, now or later: the order has to end.
    """

    def __init__(self, ledger: Ledger, on_failure: Callable[[LedgerError], None]) -> None:
        self._ledger = ledger
        self._on_failure = on_failure
        self._queue: list[Callable[[], None] | asyncio.Future[None]] = []
        self._failed = False

    def persist(self, *signed: Signed[Message]) -> None:
        """Write records; what is put in later waits for them."""
        if self._failed:
            return
        future = self._ledger.append(*signed)
        self._queue.append(future)
        future.add_done_callback(self._drain)

    def run(self, effect: Callable[[], None]) -> None:
        """Call `effect` when everything put in before it is durable; at once if nothing is pending."""
        if self._failed:
            return
        if self._queue:
            self._queue.append(effect)
        else:
            effect()

    @property
    def is_idle(self) -> bool:
        """True if nothing waits."""
        return not self._queue

    def _drain(self, written: asyncio.Future[None] | None = None) -> None:
        if written is not None and not written.cancelled():
            written.exception()  # Seen: after the first failure nobody asks the others.
        queue = self._queue
        while queue and not self._failed:
            item = queue[0]
            if isinstance(item, asyncio.Future):
                if not item.done():
                    return
                del queue[0]
                if item.cancelled() or item.exception() is not None:
                    self._fail(item)
            else:
                del queue[0]
                try:
                    item()
                except BaseException:
                    # The effect's fault goes to the loop's handler; what stands behind it must not wait for ever.
                    asyncio.get_running_loop().call_soon(self._drain)
                    raise

    def _fail(self, future: asyncio.Future[None]) -> None:
        self._failed = True
        self._queue.clear()
        error = None if future.cancelled() else future.exception()
        if isinstance(error, LedgerError):
            self._on_failure(error)
        else:
            self._on_failure(LedgerError(f"the ledger stopped before a record was durable: {error!r}."))
