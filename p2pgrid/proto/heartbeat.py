"""When to PING a silent peer, and when to hold it for dead. No clock in it."""

from __future__ import annotations

from p2pgrid.errors import ProtocolViolation


class Heartbeat:
    """Judges one link by when its peer was last heard.

    Nothing heard for `heartbeat_ms`: a PING is due. It had no answer, nor was anything else heard, for
    `dead_ms - heartbeat_ms` more: the peer is dead. Silence alone is no proof, because this process may have been
    the one asleep; after a sleep the peer still gets the time to answer.
    """

    __slots__ = ("_dead_ms", "_heartbeat_ms", "_last_ping", "_last_pong", "_pinged_ms", "heard_ms", "round_trip_ms")

    def __init__(self, heartbeat_ms: int, dead_ms: int, now_ms: int) -> None:
        self._heartbeat_ms = heartbeat_ms
        self._dead_ms = dead_ms
        self._pinged_ms = now_ms
        self._last_ping = self._last_pong = 0
        self.heard_ms = now_ms
        """Set by the owner whenever bytes come."""
        self.round_trip_ms: int | None = None

    @property
    def deadline_ms(self) -> int:
        """When something is due next."""
        if self._pinged_ms > self.heard_ms:
            return self._pinged_ms + self._dead_ms - self._heartbeat_ms
        return self.heard_ms + self._heartbeat_ms

    def is_dead(self, now_ms: int) -> bool:
        """True if a PING has been out too long with nothing heard since."""
        return self._pinged_ms > self.heard_ms and now_ms >= self.deadline_ms

    def is_due(self, now_ms: int) -> bool:
        """True if a PING should leave now."""
        return self._pinged_ms <= self.heard_ms and now_ms >= self.deadline_ms

    def ping(self, now_ms: int) -> int:
        """The number of the PING that leaves now."""
        self._pinged_ms = now_ms
        self._last_ping += 1
        return self._last_ping

    def answered(self, number: int, now_ms: int) -> None:
        """A PONG came. ProtocolViolation if it answers no PING of ours."""
        if not self._last_pong < number <= self._last_ping:
            raise ProtocolViolation(f"a PONG numbered {number} answers no PING of ours.")
        self._last_pong = number
        self.round_trip_ms = now_ms - self._pinged_ms
