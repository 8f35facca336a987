"""One writer a ledger: a lock file beside it, held for as long as the process lives, however it ends."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from p2pgrid.errors import LedgerError

if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


class LedgerInUse(LedgerError):
    """Another process, or this one, holds the lock."""


class WriterLock:
    """Held from construction until `release`. Raises LedgerInUse if another process, or this one, holds it; LedgerError
    where the lock file cannot be opened.

    The lock is the operating system's, on an open file: a file left over by a dead process locks nobody out.
    """

    def __init__(self, ledger_path: Path) -> None:
        path = ledger_path.with_name(ledger_path.name + ".lock")
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise LedgerError(
                f"the ledger {ledger_path} cannot be opened: {error.strerror} ({path}).",
                hint="Check that its folder exists and that you may write there.",
            ) from None
        try:
            _lock(self._descriptor)
        except OSError:
            holder = os.pread(self._descriptor, 20, 0).decode(errors="replace").strip() if os.name == "posix" else ""
            os.close(self._descriptor)
            raise LedgerInUse(
                f"the ledger {ledger_path} is open in another process{f' (pid {holder})' if holder else ''}.",
                hint="Stop that node first, or start this one with another --data.",
            ) from None
        self._note_holder()

    def release(self) -> None:
        """Let the next writer in. The file stays: removing it would let two writers lock two files of one name."""
        os.close(self._descriptor)

    def _note_holder(self) -> None:
        try:
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, f"{os.getpid()}\n".encode())
        except OSError:
            # The number is a courtesy for the message above; on a full disk the lock holds without it.
            pass
