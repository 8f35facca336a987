"""What the provider lets clients do to it, beyond the link's own limits."""

from __future__ import annotations

from dataclasses import dataclass

from p2pgrid.proto.wire.orders import MAX_BODY_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderLimits:
    """Caps and time limits of the session. Tests shorten the times."""

    links_per_client: int = 4
    """A further link costs the client its oldest: that one is most likely dead, and not yet known to be."""
    faults_per_link: int = 4
    """Streams that a client may break the rules on before it loses the link."""
    body_bytes: int = 256 * 1024 * 1024
    """Bodies that are arriving, all clients together, as their orders announce them."""
    body_bytes_per_client: int = 4 * MAX_BODY_BYTES
    body_timeout_s: float = 30.0
    control_timeout_s: float = 15.0
    """How long a stream may stay silent before its first message, and between the messages of an exchange."""
    linger_s: float = 10.0
    """How long a client may take to end a stream that the provider has ended."""
    countersignature_timeout_s: float = 30.0
    slow_reader_timeout_s: float = 15.0
    """How long an answer may wait for a client that grants no credit, while the engine works on it."""
    slow_end_timeout_s: float = 120.0
    """The same once the engine is done: it then holds no slot, and costs a window of memory."""
    unsent_bytes: int = 64 * 1024
    """The engine is not read while more than this waits to be sent on an order."""
    channels: int = 100_000
    channels_per_client: int = 4
    """In force at once. Each is credit given to a key that costs nothing."""
    channels_burst: int = 256
    channels_per_hour: float = 60.0
    """Opened from one address, after a burst: keys cost nothing, and each channel is on record for months."""
    log_burst: int = 200
    log_per_s: float = 20.0
    """Questions about the log, and checkpoints to witness, from one address: each reads or writes the disk."""
    settlement_burst: int = 240
    settlement_per_s: float = 1.0
    """Exchanges about settlement and disputes begun from one address: each reads a channel's records, a draft its
    receipts too."""
    away_s: float = 86_400.0
    """How long a client may be away before orders that it left open are closed without it."""
    ledger_retry_s: float = 5.0
    """Between attempts to go on after the ledger failed."""
