"""Who holds what of a relay: reservations and circuits, counted. No I/O; time is seconds of any steady clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from p2pgrid.net.relay.limits import RelayLimits
from p2pgrid.net.relay.status import RelayRefusal, Status


@dataclass(slots=True)
class _Reservation:
    ip: str
    ends_s: float


class RelayBook:
    """What is given away. Whoever wants more than the limits allow gets a `RelayRefusal`."""

    def __init__(self, limits: RelayLimits) -> None:
        self._limits = limits
        self._reservations: dict[str, _Reservation] = {}
        self._circuits = 0
        self._circuits_to: Counter[str] = Counter()
        self._circuits_from: Counter[str] = Counter()

    @property
    def n_circuits(self) -> int:
        """Circuits that are open, or being made."""
        return self._circuits

    def reserved(self, now_s: float) -> list[str]:
        """The peers with a reservation in force."""
        return [peer for peer, one in self._reservations.items() if one.ends_s > now_s]

    def holds(self, peer: str, now_s: float) -> bool:
        """True while the peer's reservation is in force."""
        found = self._reservations.get(peer)
        return found is not None and found.ends_s > now_s

    def reserve(self, peer: str, ip: str, now_s: float) -> None:
        """Give the peer a reservation from now on, or renew the one it has. `ip`: where it calls from."""
        limits = self._limits
        others = [one for name, one in self._reservations.items() if name != peer and one.ends_s > now_s]
        if len(others) >= limits.reservations:
            raise RelayRefusal(Status.RESERVATION_REFUSED, f"{len(others)} peers hold reservations")
        from_there = sum(one.ip == ip for one in others)
        if from_there >= limits.reservations_per_ip:
            raise RelayRefusal(Status.RESERVATION_REFUSED, f"{from_there} peers at {ip} hold reservations")
        self._reservations[peer] = _Reservation(ip, now_s + limits.reservation_s)

    def release(self, peer: str) -> None:
        """The peer's reservation is over. Of one that has none: no news."""
        self._reservations.pop(peer, None)

    @contextmanager
    def circuit(self, ip: str, to: str, now_s: float) -> Iterator[None]:
        """Within it, a caller at `ip` has a circuit to the reserved peer `to`, or is getting one."""
        limits = self._limits
        if not self.holds(to, now_s):
            raise RelayRefusal(Status.NO_RESERVATION, f"{to} has no reservation")
        for count, most, what in (
            (self._circuits, limits.circuits, "open"),
            (self._circuits_to[to], limits.circuits_per_peer, f"open to {to}"),
            (self._circuits_from[ip], limits.circuits_per_ip, f"open from {ip}"),
        ):
            if count >= most:
                raise RelayRefusal(Status.RESOURCE_LIMIT_EXCEEDED, f"{count} circuits are {what}")
        self._count(ip, to, 1)
        try:
            yield
        finally:
            self._count(ip, to, -1)

    def _count(self, ip: str, to: str, change: int) -> None:
        self._circuits += change
        for counter, key in ((self._circuits_to, to), (self._circuits_from, ip)):
            counter[key] += change
            if not counter[key]:
                del counter[key]
