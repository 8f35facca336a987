"""The node's own log and its witness of others' logs: opened at the start, and asked to erase salts."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

from p2pgrid.data_folder import DataFolder
from p2pgrid.errors import LocalError
from p2pgrid.ledger.base import Ledger
from p2pgrid.log.erasing import LogFiles, check_all_known, erase_salts
from p2pgrid.log.forks import keep_fork
from p2pgrid.log.log import TransparencyLog
from p2pgrid.log.service import LogService
from p2pgrid.log.witness import Witness, WitnessStore
from p2pgrid.proto.fork import ForkProof
from p2pgrid.proto.keys import PublicKey, SecretKey
from p2pgrid.provider.channels import Channels

log = logging.getLogger(__name__)


async def open_log(
    stack: AsyncExitStack,
    data: DataFolder,
    key: SecretKey,
    ledger: Ledger,
    channels: Channels,
    trusted: set[PublicKey],
    now_ms: Callable[[], int],
) -> LogService:
    """The log of `key` and what it serves; closed with `stack`. Raises P2pgridError.

    `trusted`: our own witnesses. Their logs are witnessed in turn, and those of clients.
    """
    started = time.monotonic()
    peer_id = key.public_key.peer_id
    path, guard = data.log_file(peer_id), data.log_checkpoint_file(peer_id)
    own = TransparencyLog(path, guard, key, ledger, now_ms=now_ms)
    await stack.enter_async_context(own)
    store = await asyncio.to_thread(WitnessStore, data.witness_file)
    stack.callback(store.close)
    witness = Witness(
        store,
        key,
        now_ms=now_ms,
        follows=lambda key: key in trusted or channels.has_client(key),
        on_fork=lambda proof: _fork_found(data, proof),
    )
    size = own.checkpoint.size if own.checkpoint is not None else 0
    log.info("log: %s, %d entries (%.1f s)", path, size, time.monotonic() - started)
    return LogService(own, witness, is_party=channels.is_party, deals_with=channels.has_client)


def _fork_found(data: DataFolder, proof: ForkProof) -> None:
    try:
        log.error("a proof of the fork is in %s", keep_fork(data.forks, proof))
    except LocalError as error:
        log.error("the proof of the fork could not be kept: %s\n%s", error, proof.to_json().decode())


async def erase_all_salts(data: DataFolder, own: TransparencyLog, key: SecretKey, record_ids: Sequence[bytes]) -> int:
    """Erase the salts of records in the log that runs, which is of `key`, and in those of the node's former keys.

    Returns how many were erased. Raises LocalError.
    """
    logs = [LogFiles(*one) for one in data.logs_of_own_keys()]
    check_all_known(logs, data.log_files)
    former = [one for one in logs if one.key.public_key != key.public_key]
    erased = await asyncio.to_thread(erase_salts, former, record_ids)
    return erased + await own.erase_all(record_ids)
