"""A link between the two, as TCP would carry it: streams keep their order, and are late against one another."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from random import Random

from p2pgrid.proto.frame import FIRST_CREDITED_KIND
from p2pgrid.proto.keys import PublicKey
from p2pgrid.proto.record import Role

Message = tuple[int, bytes]
"""Kind and payload."""


@dataclass(slots=True)
class Link:
    """One connection, from dial to loss."""

    number: int
    client: PublicKey
    """The key that the client has proven."""
    in_order: bool
    """True if control messages to the provider arrive in the order in which they left, whatever their stream."""
    is_cut: bool = False
    noticed: set[Role] = field(default_factory=set)
    """Who knows that it is cut."""
    streams: int = 0
    to_provider: dict[int, deque[tuple[int, int, bytes]]] = field(default_factory=dict)
    """By stream: number in order of departure, kind, payload."""
    to_client: dict[int, deque[Message]] = field(default_factory=dict)
    _departed: int = 0

    def open_stream(self) -> int:
        self.streams += 1
        self.to_provider[self.streams] = deque()
        self.to_client[self.streams] = deque()
        return self.streams

    def send_to_provider(self, stream: int, kind: int, payload: bytes) -> None:
        if not self.is_cut:
            self._departed += 1
            self.to_provider[stream].append((self._departed, kind, payload))

    def send_to_client(self, stream: int, kind: int, payload: bytes) -> None:
        if not self.is_cut:
            self.to_client[stream].append((kind, payload))

    def deliverable(self, to: Role) -> list[int]:
        """Streams on which something may arrive now."""
        if to in self.noticed:
            return []
        if to is Role.CLIENT:
            return [stream for stream, queue in self.to_client.items() if queue]
        heads = [(stream, queue[0]) for stream, queue in self.to_provider.items() if queue]
        if self.in_order:
            first = min((n for _, (n, kind, _) in heads if kind < FIRST_CREDITED_KIND), default=0)
            heads = [(s, m) for s, m in heads if m[1] >= FIRST_CREDITED_KIND or m[0] == first]
        return [stream for stream, _ in heads]

    def take(self, to: Role, stream: int) -> Message:
        """The oldest message of a stream arrives."""
        if to is Role.CLIENT:
            return self.to_client[stream].popleft()
        _, kind, payload = self.to_provider[stream].popleft()
        return kind, payload

    def overtake_body(self, stream: int, kind: int, payload: bytes) -> None:
        """A control message leaves before the body's pieces that still wait for credit."""
        if self.is_cut:
            return
        queue = self.to_provider[stream]
        bodies = []
        while queue and queue[-1][1] >= FIRST_CREDITED_KIND:
            bodies.append(queue.pop())
        self._departed += 1
        queue.append((self._departed, kind, payload))
        queue.extend(reversed(bodies))

    def cut(self, random: Random) -> None:
        """Nothing leaves any more. Of what is under way on each stream a part may still arrive."""
        self.is_cut = True
        for queues in (self.to_provider, self.to_client):
            for queue in queues.values():
                for _ in range(random.randint(0, len(queue))):
                    queue.pop()

    def notice(self, side: Role) -> None:
        """The side knows that the link is gone; what had not arrived never will."""
        self.is_cut = True
        self.noticed.add(side)
        for queue in (self.to_provider if side is Role.PROVIDER else self.to_client).values():
            queue.clear()
