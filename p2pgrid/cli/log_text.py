"""How logs, their checkpoints and their forks are shown: to people, and as JSON."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from p2pgrid.log.remote import CheckedLog
    from p2pgrid.proto.checkpoint import SignedCheckpoint
    from p2pgrid.proto.fork import ForkProof


def witnesses(checkpoint: SignedCheckpoint) -> list[dict[str, Any]]:
    """Who has cosigned, when, and how long ago."""
    from p2pgrid.proto.checkpoint import cosignatures_of

    now_s = int(time.time())
    return [
        {"witness": one.witness.peer_id, "time_s": one.time_s, "age_s": max(now_s - one.time_s, 0)}
        for one in cosignatures_of(checkpoint)
    ]


def checkpoint_json(checkpoint: SignedCheckpoint) -> dict[str, Any]:
    """A checkpoint for programs."""
    return {
        "peer": checkpoint.log_key.peer_id,
        "origin": checkpoint.origin,
        "size": checkpoint.size,
        "root": checkpoint.root.hex(),
        "witnesses": witnesses(checkpoint),
    }


def checkpoint_text(checkpoint: SignedCheckpoint) -> str:
    """A checkpoint for people, a line each."""
    lines = [
        checkpoint.origin,
        f"  entries   {checkpoint.size}",
        f"  root      {checkpoint.root.hex()}",
        *(f"  witness   {one['witness']}, {one['age_s']} s ago" for one in witnesses(checkpoint)),
    ]
    return "\n".join(lines)


def checked_json(checked: CheckedLog) -> dict[str, Any]:
    """A log that was checked, for programs."""
    before = checked.before
    return checkpoint_json(checked.checkpoint) | {
        "forked": False,
        "growth": checked.growth.value,
        "size_before": before.size if before is not None else None,
    }


def checked_text(checked: CheckedLog) -> str:
    """A log that was checked, for people."""
    from p2pgrid.log.remote import Growth

    before = checked.before.size if checked.before is not None else 0
    verdict = {
        Growth.FIRST: "Seen for the first time, and remembered from now on.",
        Growth.SAME: "It is what it was.",
        Growth.GROWN: f"It has grown from {before} entries, and begins with what was seen before.",
        Growth.STALE: f"It shows an old state: {before} entries were seen before. What it shows is true.",
    }[checked.growth]
    return f"{checkpoint_text(checked.checkpoint)}\n{verdict}"


def fork_json(proof: ForkProof, path: Path | None) -> dict[str, Any]:
    """A fork for programs; `path` is where its proof lies."""
    return {
        "peer": proof.larger.log_key.peer_id,
        "origin": proof.origin,
        "forked": True,
        "sizes": [proof.smaller.size, proof.larger.size],
        "what": proof.describe(),
        "proof": str(path) if path else None,
    }


def fork_text(proof: ForkProof, path: Path | None) -> str:
    """A fork for people."""
    where = f"The proof is {path}: anyone can verify it with `p2pgrid log verify`." if path else "It could not be kept."
    return f"FORKED: {proof.describe()}\n{where}"
