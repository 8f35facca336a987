"""What an order sends on its stream: the request's body as fast as the provider gives credit, all else at once."""

from __future__ import annotations

from p2pgrid.net.stream import Stream
from p2pgrid.proto.frame import FIRST_CREDITED_KIND


class OrderSender:
    """Messages from an order to its provider. Without a stream they are dropped."""

    def __init__(self) -> None:
        self.stream: Stream | None = None
        self.unsent_pieces = 0
        """Of the body: those that were announced, and not sent yet."""
        self._body: list[tuple[int, bytes]] = []

    def send(self, kind: int, payload: bytes) -> None:
        """Send a message that needs no credit."""
        if self.stream is not None:
            self.stream.send(kind, payload)

    def send_body(self, kind: int, payload: bytes) -> None:
        """Send a message that needs credit, once there is enough."""
        self._body.append((kind, payload))
        self.writable()

    def writable(self) -> None:
        """There may be more credit."""
        stream = self.stream
        while self._body and stream is not None and stream.writable_bytes >= len(self._body[0][1]):
            stream.send(*self._body.pop(0))
            self.unsent_pieces -= 1

    def end(self) -> None:
        """No more will be sent."""
        if self.stream is not None:
            self.stream.end()

    def drop(self) -> None:
        """Forget what waits for credit: the stream is gone."""
        self._body.clear()


class OrderedSender(OrderSender):
    """All in the order it was given: nothing overtakes a body that waits for credit, for it may speak of it."""

    def send(self, kind: int, payload: bytes) -> None:
        if self._body:
            self._body.append((kind, payload))
        else:
            super().send(kind, payload)

    def writable(self) -> None:
        stream = self.stream
        while self._body and stream is not None:
            kind, payload = self._body[0]
            if kind >= FIRST_CREDITED_KIND and stream.writable_bytes < len(payload):
                return
            del self._body[0]
            stream.send(kind, payload)
