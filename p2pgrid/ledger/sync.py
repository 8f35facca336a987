"""Syncing a file beside the event loop: without a Python thread where the kernel can.

A thread costs more than the sync: it waits for the interpreter's lock at every turn, and the loop for it as often.
Linux syncs by itself (io_submit with IOCB_CMD_FDSYNC) and says so on an eventfd that the loop watches. Elsewhere, or
where a container forbids it, it is a thread.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

try:
    from caio import linux_aio
except ImportError:  # Another system, or an old kernel.
    linux_aio = None  # type: ignore[assignment]

OnSynced = Callable[[OSError | None], None]
"""Called in the loop with what went wrong, or None."""


class Syncer(Protocol):
    """One sync at a time."""

    def sync(self, descriptor: int, on_synced: OnSynced) -> None:
        """Make durable what was written to the file. `on_synced` is called later, not from within. Raises OSError."""

    def close(self) -> None:
        """Call nobody any more. In the loop's thread, or once the loop is closed."""


def make_syncer(loop: asyncio.AbstractEventLoop) -> Syncer:
    """The best that this machine has."""
    if linux_aio is not None:
        try:
            return KernelSyncer(loop)
        except OSError:
            pass  # A container forbids it, or all that this machine allows are in use.
    return ThreadSyncer(loop)


class KernelSyncer:
    """By the kernel's asynchronous I/O; by a thread after all where the file system has none. Raises OSError."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        assert linux_aio is not None
        self._loop = loop
        self._thread: ThreadSyncer | None = None
        try:
            self._context = linux_aio.Context(max_requests=1)
        except SystemError as error:
            raise OSError(errno.ENOSYS, str(error)) from None
        loop.add_reader(self._context.fileno, self._on_readable)

    def sync(self, descriptor: int, on_synced: OnSynced) -> None:
        """See `Syncer`."""
        assert linux_aio is not None
        if self._thread is not None:
            self._thread.sync(descriptor, on_synced)
            return
        operation = linux_aio.Operation.fdsync(descriptor)

        def done(_: int) -> None:
            try:
                operation.get_value()
            except SystemError as error:
                on_synced(OSError(errno.EIO, str(error)))
            else:
                on_synced(None)

        operation.set_callback(done)
        try:
            self._context.submit(operation)
        except (SystemError, ValueError, OSError):
            # Not for this file system, it seems. A thread will say what is wrong if it is something else.
            self._thread = ThreadSyncer(self._loop)
            self._thread.sync(descriptor, on_synced)

    def _on_readable(self) -> None:
        try:
            self._context.poll()
        except BlockingIOError:
            pass  # What the counter told of was processed with the last one.
        while self._context.process_events():
            pass

    def close(self) -> None:
        """See `Syncer`."""
        if not self._loop.is_closed():
            self._loop.remove_reader(self._context.fileno)
        if self._thread is not None:
            self._thread.close()


class ThreadSyncer:
    """By a thread of its own."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger sync")
        self._is_closed = False

    def sync(self, descriptor: int, on_synced: OnSynced) -> None:
        """See `Syncer`."""

        def told(done: Future[None]) -> None:
            error = done.exception()
            assert error is None or isinstance(error, OSError)
            try:
                self._loop.call_soon_threadsafe(self._tell, on_synced, error)
            except RuntimeError:
                pass  # The loop is closed: nobody waits.

        self._executor.submit(_sync, descriptor).add_done_callback(told)

    def _tell(self, on_synced: OnSynced, error: OSError | None) -> None:
        if not self._is_closed:
            on_synced(error)

    def close(self) -> None:
        """See `Syncer`."""
        self._is_closed = True
        self._executor.shutdown(wait=True)


def _sync(descriptor: int) -> None:
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        getattr(os, "fdatasync", os.fsync)(descriptor)
