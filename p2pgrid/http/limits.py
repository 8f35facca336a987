"""What a server grants: how long, and how much."""

from __future__ import annotations

from dataclasses import dataclass, field

from p2pgrid.http.reader import ReaderLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """How long and how much. Times are kept as exactly as `tick_s` says."""

    reader: ReaderLimits = field(default_factory=ReaderLimits)
    connections: int = 4096
    connections_per_address: int = 1024
    """Of one IP address, save this machine's own: its programs, and a proxy in front."""
    requests_per_connection: int | None = None
    """None: as many as the program likes."""
    is_half_open: bool = False
    """True: a program that ends its side still gets the answer, as over libp2p's streams. False: it has left."""
    head_s: float = 15.0
    """From a request's first byte to its head's last."""
    body_s: float = 30.0
    """What any body may take, however slow."""
    body_bytes_per_s: int = 4 * 1024
    """And a second more for each so many bytes."""
    idle_s: float = 75.0
    """Between two requests."""
    stalled_s: float = 300.0
    """A program that takes no byte of an answer for so long is cut off."""
    linger_s: float = 2.0
    """After a last answer that came before the request's end. A program that still sends would not see it otherwise."""
    tick_s: float = 1.0
    """How often deadlines are looked at."""
