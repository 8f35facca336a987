"""Salts destroyed in the logs of keys that no running node holds open."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from p2pgrid.errors import UsageError
from p2pgrid.log.store import LogStore
from p2pgrid.proto.keys import SecretKey


@dataclass(frozen=True, slots=True)
class LogFiles:
    """A log on disk, the checkpoint beside it, and the key that signs it."""

    log: Path
    checkpoint: Path
    key: SecretKey


def check_all_known(logs: Sequence[LogFiles], found: Sequence[Path]) -> None:
    """Raises UsageError if one of the log files found is of a key that is not there."""
    strange = {path.resolve() for path in found} - {one.log.resolve() for one in logs}
    if strange:
        raise UsageError(
            f"there is no key for the log {min(strange)}.",
            hint="Put its key back into the data folder, or delete the log if its proofs are needed no more.",
        )


def erase_salts(logs: Sequence[LogFiles], record_ids: Sequence[bytes]) -> int:
    """Destroy the salts of the records in these logs; how many entries there were. Blocks. Raises LedgerError."""
    erased = 0
    for one in logs:
        if one.log.exists():
            with closing(LogStore(one.log, one.checkpoint, one.key)) as store:
                erased += store.erase_all(record_ids)
    return erased
