"""A node destroys by itself, once a day, the keys to requests whose receipts nobody can dispute any more."""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import Final, Self

from p2pgrid.desk.asks import Erased, EraseExpired
from p2pgrid.desk.records_desk import RecordsDesk
from p2pgrid.errors import P2pgridError

log = logging.getLogger(__name__)

FIRST_S: Final = 60.0
"""After the start, when a node has other things to do; short enough for a gateway that runs for an hour a day."""
EVERY_S: Final = 86_400.0


class ErasesDaily:
    """`async with` it while the node runs. What fails is logged, and tried again the next day."""

    def __init__(
        self, records: RecordsDesk, *, is_on: bool, first_s: float = FIRST_S, every_s: float = EVERY_S
    ) -> None:
        """`is_on`: `[retention] erase-keys-after-disputes`."""
        self._records: Final = records
        self._is_on: Final = is_on
        self._first_s: Final = first_s
        self._every_s: Final = every_s
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._is_on:
            self._task = asyncio.create_task(self._run(), name="erase keys that nothing needs")
            self._task.add_done_callback(_report_end)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        await asyncio.sleep(self._first_s)
        while True:
            try:
                done = await self._records.perform(EraseExpired())
            except P2pgridError as error:
                log.error("keys to old requests were not destroyed: %s", error)
            else:
                if isinstance(done, Erased) and done.request_keys:
                    log.info("destroyed %d keys to requests that nobody can dispute any more", done.request_keys)
            await asyncio.sleep(self._every_s)


def _report_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("%r ended; restart the node", task.get_name(), exc_info=error)
