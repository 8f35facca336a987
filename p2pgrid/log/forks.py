"""Proofs that a log forked, one file each, for whoever is to be convinced."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import Final

from p2pgrid.errors import InvalidRecord, LocalError, ProtocolViolation
from p2pgrid.proto.fork import MAX_FORK_PROOF_BYTES, ForkProof, verify_fork
from p2pgrid.proto.keys import PublicKey

log = logging.getLogger(__name__)


MAX_KEPT_PROOFS: Final = 4
"""Against one log."""


class LogForked(ProtocolViolation):
    """A log has signed two trees. `proof` convinces anyone."""

    def __init__(self, proof: ForkProof) -> None:
        super().__init__(proof.describe(), hint="Deal with that operator no more, and keep the proof.")
        self.proof = proof


def keep_fork(folder: Path, proof: ForkProof) -> Path:
    """Write a proof into the folder, durably; the file's path. Raises LocalError.

    A few proofs against one log are enough: beyond them the path is that of an earlier one. Keys cost nothing, and
    whoever forks its own log must not fill our disk.
    """
    data = proof.to_json()
    name = f"{proof.larger.log_key.peer_id}-{proof.smaller.size}-{proof.larger.size}"
    path = folder / f"{name}-{hashlib.sha256(data).hexdigest()[:8]}.fork-proof"
    kept = sorted(folder.glob(f"{proof.larger.log_key.peer_id}-*.fork-proof"))
    if len(kept) >= MAX_KEPT_PROOFS and path not in kept:
        return kept[0]
    part = path.with_suffix(".part")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise LocalError(
            f"the fork proof {path} cannot be written: {error.strerror}.", hint="Free some space."
        ) from None
    return path


def kept_forks(folder: Path, key: PublicKey) -> list[ForkProof]:
    """The proofs against one log that lie in the folder and hold."""
    found: list[ForkProof] = []
    for path in sorted(folder.glob(f"{key.peer_id}-*.fork-proof")):
        try:
            with path.open("rb") as file:
                proof = verify_fork(file.read(MAX_FORK_PROOF_BYTES + 1))
        except (InvalidRecord, OSError) as error:
            log.warning("%s is no fork proof: %s", path, error)
            continue
        if proof.larger.log_key == key:
            found.append(proof)
    return found
