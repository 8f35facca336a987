"""HTTP/1.1 to one engine: a pool of connections, and answers handed over by callback as their bytes come.

    client = HttpClient(Road(host="127.0.0.1", port=8000), EngineLimits(), where="http://127.0.0.1:8000")
    call = client.send(b"POST /v1/completions HTTP/1.1\r\nHost: ...", reader)

httptools reads the answers. No redirect is followed, nothing is unpacked, no cookie is kept, no proxy is asked. What
one read of the socket brought is handed over in one call. A reader that can take no more calls `pause`: the socket is
then not read, so that the engine's bytes wait in the kernel and nowhere else.

A connection is kept for the next request for a few seconds. One that the engine closed just as a request went out on
it is not the request's fault: where not a byte of an answer had come, it is sent once more, on a fresh connection.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from dataclasses import dataclass
from typing import Any, Final, cast

import httptools

from p2pgrid.engine.base import AnswerMetrics, AnswerReader
from p2pgrid.engine.read_rounds import ReadRounds
from p2pgrid.errors import EngineError

log = logging.getLogger(__name__)

IDLE_S: Final = 3.0
"""vLLM drops a connection after 5 s without a request."""
MAX_IDLE: Final = 256
AT_ONCE_READS: Final = 4
"""Of every answer: the head, what comes before the first token, and that."""
MAX_HEAD_BYTES: Final = 64 * 1024
"""Of an answer's head; and most that may come anywhere in an answer without a byte of its body."""


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


class HttpConnection(asyncio.Protocol):
    """One connection. It carries one call at a time."""

    __slots__ = (
        "_call",
        "_client",
        "_content_type",
        "_has_head",
        "_is_framed",
        "_is_reusable",
        "_is_told",
        "_is_whole",
        "_mute_bytes",
        "_parser",
        "_parts",
        "_reads",
        "_round_fd",
        "_rounds",
        "_status",
        "_transport",
        "idle_since_s",
        "is_used",
    )

    def __init__(self, client: HttpClient) -> None:
        self.idle_since_s = 0.0
        self.is_used = False
        """True once it has carried an answer to its end."""
        self._client = client
        self._transport: asyncio.Transport | None = None
        self._call: HttpCall | None = None
        self._parser: Any = None
        self._parts: list[bytes] = []
        self._mute_bytes = self._status = self._reads = 0
        self._rounds = client.rounds
        self._round_fd = -1
        """The socket, while it is read in rounds and not by the loop."""
        self._content_type = ""
        self._is_framed = False
        """True if the head says where the body ends; otherwise the connection's end is the answer's."""
        self._has_head = self._is_told = self._is_whole = self._is_reusable = False

    @property
    def is_closing(self) -> bool:
        """True once it can carry nothing."""
        return self._transport is None or self._transport.is_closing()

    def carry(self, call: HttpCall) -> None:
        """Send a call's request, and read its answer."""
        self._call = call
        self._mute_bytes, self._reads, self._content_type = 0, 0, ""
        self._is_framed = self._has_head = self._is_told = self._is_whole = self._is_reusable = False
        self._parser = httptools.HttpResponseParser(self)
        call.carried_by(self)
        if self._transport is None:
            call.lost("the engine closed it")
            return
        self._transport.write(call.request)
        if call.is_paused:
            self.pause()

    def drop(self) -> None:
        """Close it at once, whatever is under way."""
        self._call = self._parser = None
        self._client.gone(self)
        self._quit_rounds()
        if self._transport is not None:
            self._transport.abort()

    def lose(self, why: str) -> None:
        """As `drop`, and its answer fails."""
        call = self._call
        self.drop()
        if call is not None:
            call.lost(why)

    def pause(self) -> None:
        """Leave what comes in the kernel."""
        self._quit_rounds()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    # -- RoundReader ------------------------------------------------------------------------------------------------

    def leave_rounds(self) -> None:
        if self._quit_rounds():
            self.resume()

    def _enter_rounds(self, rounds: ReadRounds) -> None:
        transport, call = self._transport, self._call
        if transport is None or transport.is_closing() or call is None or call.is_paused:
            return
        socket = transport.get_extra_info("socket")
        if socket is not None:
            transport.pause_reading()
            self._round_fd = socket.fileno()
            rounds.enter(self._round_fd, self)

    def _quit_rounds(self) -> bool:
        """True if it was read in rounds. Then nobody reads it until `resume`."""
        if self._round_fd < 0:
            return False
        if self._rounds is not None:
            self._rounds.leave(self._round_fd)
        self._round_fd = -1
        return True

    # -- asyncio.Protocol -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._client.opened(self)

    def data_received(self, data: bytes) -> None:
        self.round_received(data)
        rounds = self._rounds
        if rounds is not None:
            rounds.loop_read()
            self._reads += 1
            if rounds.is_busy and self._reads > AT_ONCE_READS and self._call is not None:
                self._enter_rounds(rounds)

    def round_received(self, data: bytes) -> None:
        """Bytes came, whoever read them."""
        call = self._call
        if call is None:
            self.drop()  # nothing was asked
            return
        try:
            call.heard(len(data))
            self._parser.feed_data(data)
            self._mute_bytes = 0 if self._parts else self._mute_bytes + len(data)
            if self._mute_bytes > MAX_HEAD_BYTES and not self._is_whole:
                raise EngineError(
                    f"the engine at {self._client.where} sent {self._mute_bytes} bytes of headers.",
                    hint="Is this vLLM's OpenAI server?",
                )
        except EngineError as error:
            self._give_up(call, error)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            broken = f"the engine at {self._client.where} broke off an answer: what it sent is no HTTP/1.1 ({error})."
            self._give_up(call, EngineError(broken, hint="Look at its log."))
        else:
            self._hand_over(call)

    def connection_lost(self, exc: Exception | None) -> None:
        self._quit_rounds()
        self._transport = None
        self._client.gone(self)
        call, self._call = self._call, None
        self._parser = None
        if call is None:
            return
        if exc is None and self._has_head and not self._is_framed:
            call.tell_end()
        else:
            call.lost(str(exc) if exc else "it closed the connection")

    def _give_up(self, call: HttpCall, error: EngineError) -> None:
        self._parts.clear()
        self.drop()
        call.fail(error)

    def _hand_over(self, call: HttpCall) -> None:
        """Tell the reader what one read of the socket brought."""
        parts = self._parts
        try:
            if self._is_told and not self._is_whole and len(parts) == 1:
                call.tell_data(parts.pop())  # what nearly all reads bring
                return
            if self._has_head and not self._is_told:
                self._is_told = True
                call.tell_head(self._status, self._content_type)
            if parts:
                data = parts[0] if len(parts) == 1 else b"".join(parts)
                parts.clear()
                call.tell_data(data)
            if self._is_whole and self._call is call:
                self._call = self._parser = None
                call.connection = None
                if self._quit_rounds() or call.is_paused:
                    self.resume()
                if self._is_reusable:
                    self.is_used = True
                    self._client.free(self)
                else:
                    self.drop()
                call.tell_end()
        except Exception:
            # The reader's fault, and its answer's end; the connection and whoever waits beside it go on.
            log.exception("whoever reads an answer of the engine at %s failed", self._client.where)
            self.drop()
            call.fail(EngineError("the answer's reader failed.", hint="This is a mistake of the program."))

    # -- httptools --------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Behind an answer that is whole nothing was asked for: what comes there makes the connection useless."""
        if self._is_whole:
            self._is_reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        lower = name.lower()
        if self._is_whole:
            return
        if lower == b"content-type":
            self._content_type = value.decode("latin-1")
        elif lower in (b"content-length", b"transfer-encoding"):
            self._is_framed = True

    def on_headers_complete(self) -> None:
        if self._is_whole:
            return
        self._status = self._parser.get_status_code()
        self._has_head = self._status >= 200
        self._is_framed |= self._status in (204, 304)

    def on_body(self, data: bytes) -> None:
        if not self._is_whole:
            self._parts.append(data)

    def on_message_complete(self) -> None:
        if not self._has_head or self._is_whole:
            return  # 100 Continue, 103 Early Hints: the answer is still to come
        self._is_whole = True
        self._is_reusable = self._parser.should_keep_alive()
