"""What the handlers of a link's streams are told, and what becomes of those that fail."""

from __future__ import annotations

from p2pgrid.net.stream import Stream
from tests.net.memory_road import CONTROL, Listener, ready_connection, turn_of_the_loop


class Gathering(Listener):
    """Works on what came together once it has all come."""

    def __init__(self, *, fails: bool = False) -> None:
        super().__init__()
        self.fails = fails

    def message_received(self, stream: Stream, kind: int, payload: bytes) -> None:
        super().message_received(stream, kind, payload)
        if self.calls.count("message") - self.calls.count("gathered") == 1:
            stream.after_read(self._gather)

    def _gather(self) -> None:
        self.calls.append("gathered")
        if self.fails:
            raise ZeroDivisionError


async def test_what_came_in_one_read_is_worked_on_when_all_of_it_was_told() -> None:
    connection, road = await ready_connection()
    first, second, failing = Gathering(), Gathering(), Gathering(fails=True)
    streams = [connection.open_stream(handler) for handler in (first, second, failing)]
    await turn_of_the_loop()
    list(road.peer.receive(b"".join(road.writes), 0))
    for _ in range(2):
        for stream in streams:
            road.peer.send(stream.id, CONTROL, b"x")
    connection.data_received(road.peer.data_to_send())
    assert first.calls == second.calls == ["message", "message", "gathered"]
    assert failing.calls == ["message", "message", "gathered", "reset"]
    assert [stream.is_open for stream in streams] == [True, True, False]
    # What came before the peer's fault counts, and is worked on before the link is over.
    first.calls.clear()
    road.peer.send(streams[0].id, CONTROL, b"x")
    connection.data_received(road.peer.data_to_send() + bytes([255] * 9))
    assert first.calls == ["message", "gathered", "link_lost"]


async def test_what_is_to_be_worked_on_outside_of_a_read_has_its_turn() -> None:
    connection, _ = await ready_connection()
    handler = Gathering()
    stream = connection.open_stream(handler)
    handler.message_received(stream, CONTROL, b"x")
    assert handler.calls == ["message"]
    await turn_of_the_loop()
    assert handler.calls == ["message", "gathered"]
    await connection.aclose()
