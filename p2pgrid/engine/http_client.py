"""HTTP/1.1 to one engine: a pool of connections, and answers handed over by callback as their bytes come.

    client = HttpClient(Road(host="127.0.0.1", port=8000), EngineLimits(), where="http://127.0.0.1:8000")
    call = client.send(b"POST /v1/completions HTTP/1.1\r\nHost: ...", reader)

`http_connection` reads the answers. No redirect is followed, nothing is unpacked, no cookie is kept, no proxy is asked.
What one read of the socket brought is handed over in one call. A reader that can take no more calls `pause`: the socket
is then not read, so that the engine's bytes wait in the kernel and nowhere else. Many answers at once are read in
rounds (`read_rounds`).

A connection is kept for the next request for a few seconds. One that the engine closed just as a request went out on
it is not the request's fault: where not a byte of an answer had come, it is sent once more, on a fresh connection.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from typing import Final

from p2pgrid.engine.base import AnswerMetrics, AnswerReader
from p2pgrid.engine.http_connection import HttpConnection
from p2pgrid.engine.read_rounds import ReadRounds
from p2pgrid.errors import EngineError

IDLE_S: Final = 3.0
"""vLLM drops a connection after 5 s without a request."""
MAX_IDLE: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """How long and how much. An order's own deadline comes on top, and is the provider's to hold."""

    connect_timeout_s: float = 5.0
    silence_timeout_s: float = 300.0
    """Longest wait for the next bytes, the first included: a full queue may hold a request back."""
    page_timeout_s: float = 5.0
    """For the engine's own small pages."""
    max_answer_bytes: int = 256 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Road:
    """How the engine is reached: a Unix socket, or a host and port, with TLS where there is a context."""

    host: str = ""
    port: int = 0
    socket_path: str = ""
    tls: ssl.SSLContext | None = None


class HttpClient:
    """The connections to one engine. Use it on one event loop, and `close` it."""

    def __init__(self, road: Road, limits: EngineLimits, where: str) -> None:
        self.limits: Final = limits
        self.where: Final = where
        """The engine's name in errors."""
        self._road = road
        self._idle: list[HttpConnection] = []
        self._open: set[HttpConnection] = set()
        self._dialling: dict[asyncio.Task[None], HttpCall] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._rounds: ReadRounds | None = None

    @property
    def idle_connections(self) -> int:
        """Connections that wait for the next request."""
        return len(self._idle)

    @property
    def n_answers(self) -> int:
        """Connections that carry an answer."""
        return len(self._open) - len(self._idle)

    def send(self, request: bytes, reader: AnswerReader) -> HttpCall:
        """Send a whole request. The reader hears of what comes of it, never before this has returned."""
        call = HttpCall(self, request, reader)
        connection = self._take()
        if connection is None:
            self._dial(call)
        else:
            connection.carry(call)
        return call

    def close(self) -> None:
        """Close every connection. Answers that are under way fail. Harmless twice."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for task, call in list(self._dialling.items()):
            task.cancel()
            call.fail(self.away("it was let go"))
        for connection in list(self._open):
            connection.lose("it was let go")
        if self._rounds is not None:
            self._rounds.close()
            self._rounds = None

    @property
    def rounds(self) -> ReadRounds | None:
        """Where answers under way are read together; None behind TLS, where a socket's bytes are not the answer's."""
        if self._rounds is None and self._road.tls is None:
            self._rounds = ReadRounds()
        return self._rounds

    def _take(self) -> HttpConnection | None:
        """The connection that was used last, if it is young enough."""
        oldest_s = asyncio.get_running_loop().time() - IDLE_S
        while self._idle:
            connection = self._idle.pop()
            if connection.idle_since_s >= oldest_s and not connection.is_closing:
                return connection
            connection.drop()
        return None

    def _dial(self, call: HttpCall) -> None:
        task = asyncio.get_running_loop().create_task(self._connect(call), name=f"dial {self.where}")
        call.dialling = task
        self._dialling[task] = call
        task.add_done_callback(self._dialling.pop)

    async def _connect(self, call: HttpCall) -> None:
        loop, road = asyncio.get_running_loop(), self._road
        try:
            async with asyncio.timeout(self.limits.connect_timeout_s):
                if road.socket_path:
                    _, connection = await loop.create_unix_connection(lambda: HttpConnection(self), road.socket_path)
                else:
                    _, connection = await loop.create_connection(
                        lambda: HttpConnection(self), road.host, road.port, ssl=road.tls
                    )
        except TimeoutError:
            call.fail(self.away(f"no connection within {self.limits.connect_timeout_s:g} s"))
        except OSError as error:  # ssl.SSLError among them
            call.fail(self.away(str(error) or type(error).__name__))
        else:
            call.dialling = None
            if call.is_over:
                connection.drop()
            else:
                connection.carry(call)

    def away(self, why: str) -> EngineError:
        """The error for an engine that answers nothing."""
        return EngineError(
            f"the engine at {self.where} cannot be reached: {why.rstrip('.')}.",
            hint="Start it, or mend the engine's URL in the configuration.",
        )

    # -- for connections --------------------------------------------------------------------------------------------

    def opened(self, connection: HttpConnection) -> None:
        """It is there."""
        self._open.add(connection)

    def gone(self, connection: HttpConnection) -> None:
        """It is not there any more."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def free(self, connection: HttpConnection) -> None:
        """Its answer has ended, and it may carry another."""
        if len(self._idle) >= MAX_IDLE:
            connection.drop()
            return
        loop = asyncio.get_running_loop()
        connection.idle_since_s = loop.time()
        self._idle.append(connection)
        if self._sweeper is None:
            self._sweeper = loop.call_later(IDLE_S, self._sweep)

    def retry(self, call: HttpCall) -> None:
        """The connection was closed under a request that was never read."""
        call.is_retried = True
        self._dial(call)

    def _sweep(self) -> None:
        """Close what waits for too long; the list begins with those that wait longest."""
        loop = asyncio.get_running_loop()
        oldest_s = loop.time() - IDLE_S
        while self._idle and self._idle[0].idle_since_s <= oldest_s:
            self._idle.pop(0).drop()
        self._sweeper = None
        if self._idle:
            self._sweeper = loop.call_at(self._idle[0].idle_since_s + IDLE_S, self._sweep)


class HttpCall:
    """One request and its answer (see `base.OpenAnswer`)."""

    __slots__ = (
        "_began_s",
        "_client",
        "_heard_s",
        "_loop",
        "_reader",
        "_timer",
        "connection",
        "dialling",
        "is_over",
        "is_paused",
        "is_retried",
        "metrics",
        "request",
    )

    def __init__(self, client: HttpClient, request: bytes, reader: AnswerReader) -> None:
        self.metrics: Final = AnswerMetrics()
        self.request = request
        """Kept until the first byte of an answer, for the case that it must be sent again."""
        self.connection: HttpConnection | None = None
        self.dialling: asyncio.Task[None] | None = None
        self.is_over = False
        """True once the reader hears no more."""
        self.is_paused = False
        self.is_retried = False
        self._client, self._reader = client, reader
        self._loop = asyncio.get_running_loop()
        self._began_s = self._heard_s = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    def pause(self) -> None:
        """Read no more of the answer for now. What was read already has been handed over."""
        if not self.is_paused and not self.is_over:
            self.is_paused = True
            if self.connection is not None:
                self.connection.pause()

    def resume(self) -> None:
        """Read on."""
        if self.is_paused and not self.is_over:
            self.is_paused = False
            self._heard_s = self._loop.time()
            if self.connection is not None:
                self.connection.resume()

    def abort(self) -> None:
        """Want no more of it: the connection is closed, upon which vLLM stops the work."""
        if self.is_over:
            return
        self._end()
        if self.dialling is not None:
            self.dialling.cancel()
        if self.connection is not None:
            self.connection.drop()

    # -- for the connection -----------------------------------------------------------------------------------------

    def carried_by(self, connection: HttpConnection) -> None:
        """The request leaves on `connection`."""
        self.connection = connection
        self._heard_s = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._client.limits.silence_timeout_s, self._look_at_clock)

    def heard(self, n_bytes: int) -> None:
        """So many bytes of the answer came, its head and framing included. Raises EngineError past the cap."""
        now_s, metrics, limits = self._loop.time(), self.metrics, self._client.limits
        self._heard_s = now_s
        metrics.last_byte_s = now_s - self._began_s
        if metrics.first_byte_s is None:
            metrics.first_byte_s = metrics.last_byte_s
            self.request = b""
        metrics.received_bytes += n_bytes
        if metrics.received_bytes > limits.max_answer_bytes:
            raise EngineError(
                f"the engine at {self._client.where} sent over {limits.max_answer_bytes} bytes in one answer.",
                hint="Lower max_tokens or logprobs in what is offered.",
            )

    def tell_head(self, status: int, content_type: str) -> None:
        """Hand the head over."""
        if not self.is_over:
            self._reader.answer_began(status, content_type)

    def tell_data(self, data: bytes) -> None:
        """Hand bytes of the body over."""
        if not self.is_over:
            self._reader.answer_received(data)

    def tell_end(self) -> None:
        """Say that the answer is whole."""
        if not self.is_over:
            self._end()
            self._reader.answer_ended()

    def fail(self, error: EngineError) -> None:
        """Say that there is no more to come, and why."""
        if not self.is_over:
            self._end()
            self._reader.answer_failed(error)

    def lost(self, why: str) -> None:
        """The connection is gone before the answer was whole."""
        connection, self.connection = self.connection, None
        if self.is_over:
            return
        is_unheard = self.metrics.first_byte_s is None
        if is_unheard and connection is not None and connection.is_used and not self.is_retried:
            self._client.retry(self)
            return
        what = "closed the connection in place of an answer" if is_unheard else "broke off an answer"
        self.fail(EngineError(f"the engine at {self._client.where} {what}: {why}.", hint="Look at its log."))

    def _end(self) -> None:
        self.is_over = True
        self.request = b""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_at_clock(self) -> None:
        """One timer an answer, however many pieces it comes in: it is set anew only when it fires."""
        limit_s, now_s = self._client.limits.silence_timeout_s, self._loop.time()
        due_s = (now_s if self.is_paused else self._heard_s) + limit_s
        if now_s < due_s:
            self._timer = self._loop.call_at(due_s, self._look_at_clock)
            return
        connection = self.connection
        if self.metrics.first_byte_s is None:
            error = EngineError(
                f"the engine at {self._client.where} did not begin to answer in {limit_s:.0f} s.",
                hint="It hangs or is overloaded: look at its log and at `vllm:num_requests_waiting`.",
            )
        else:
            error = EngineError(
                f"the engine at {self._client.where} fell silent for {limit_s:.0f} s in an answer.",
                hint="It hangs or is overloaded: look at its log.",
            )
        self.fail(error)
        if connection is not None:
            connection.drop()
