"""One connection: requests are answered in their order, one at a time; a program that leaves is noticed at once.

What is written within one turn of the loop leaves in one write: a head with the bytes that follow it, and bytes that
are ready together in one chunk.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

from p2pgrid.http.message import NOWHERE, Request, Response, Source, chunk, head, response_head
from p2pgrid.http.reader import BadRequest, RequestReader, Stage
from p2pgrid.http.reply import Reply

if TYPE_CHECKING:
    from p2pgrid.http.server import Server

log = logging.getLogger(__name__)

_HELD_BYTES: Final = 64 * 1024
"""Of requests that come while another is answered; with more, the connection is read no further meanwhile."""
_LARGE_BYTES: Final = 16 * 1024
"""An answer that is written at once, to learn whether the program takes it before the next is made."""
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_UNHANDLED: Final = "The request could not be handled; the server's log says why."
_NEVER: Final = math.inf


class Application(Protocol):
    """What a server serves. Nothing here may block."""

    def admit(self, request: Request) -> Response | None:
        """Look at a request's head before its body is read; what is returned is the answer to it."""

    def handle(self, request: Request, reply: Reply) -> Response | Coroutine[Any, Any, Response | None]:
        """Answer a whole request: at once, or in a coroutine that returns the answer, or None once `reply` is ended.

        The coroutine is cancelled when the program leaves. The next request waits until it returns.
        """

    def failure(self, status: int, message: str) -> Response:
        """The answer to a request that cannot be served, for a person to read."""


class Connection(asyncio.Protocol):
    """The protocol. `server` knows the application, the limits, and all connections."""

    __slots__ = (
        "_application",
        "_body_began_s",
        "_deadline_s",
        "_has_peer_ended",
        "_held",
        "_is_flushing",
        "_is_last",
        "_limits",
        "_loop",
        "_n_requests",
        "_out",
        "_queue",
        "_reader",
        "_reply",
        "_server",
        "_stalled_s",
        "_task",
        "_transport",
        "_unsent_bytes",
        "is_writable",
        "source",
    )

    def __init__(self, server: Server) -> None:
        self.is_writable = True
        self.source = NOWHERE
        self._server = server
        self._n_requests = 0
        self._has_peer_ended = False
        self._limits = server.limits
        self._application = server.application
        self._loop = server.loop
        self._reader = RequestReader(self._limits.reader, self._admit)
        self._queue: list[Request | BadRequest] = []
        self._held: list[bytes] = []
        self._reply: Reply | None = None
        self._task: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        self._is_flushing = False
        self._is_last = False
        """True once the last answer is written: whatever comes is dropped."""
        self._deadline_s = _NEVER
        self._body_began_s = self._stalled_s = 0.0
        self._unsent_bytes = 0

    # -- asyncio.Protocol ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's is no asyncio.Transport by name
        self.source = _source_of(transport)
        self._deadline_s = self._loop.time() + self._limits.idle_s
        self._server.opened(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._leave()
        self._reader.close()
        self._server.closed(self)

    def eof_received(self) -> bool:
        # Over TCP it looks the same whether the program has left or has only said all it had to say; the first is what
        # happens.
        self.flush()
        if self._limits.is_half_open and (self._reply is not None or self._queue or self._held):
            self._has_peer_ended = True
            return True
        self._leave()
        return False

    def pause_writing(self) -> None:
        self.is_writable = False
        self._stalled_s = self._loop.time()

    def resume_writing(self) -> None:
        self.is_writable = True
        if self._reply is None:
            self._advance()
        elif self._reply.on_writable is not None:
            self._reply.on_writable()

    def data_received(self, data: bytes) -> None:
        if self._is_last:
            return
        if self._reply is None and self.is_writable:
            self._feed(data)
            self._advance()
            return
        # It waits unread, so that no more than this is kept for any connection; its end is noticed all the same.
        self._held.append(data)
        if sum(map(len, self._held)) > _HELD_BYTES and self._transport is not None:
            self._transport.pause_reading()

    # -- requests --------------------------------------------------------------------------------------------------

    def _admit(self, request: Request) -> Response | None:
        request.source = self.source
        return self._application.admit(request)

    def _feed(self, data: bytes) -> None:
        before = self._reader.stage
        self._queue += self._reader.feed(data)
        self._set_deadline(before)

    def _set_deadline(self, before: Stage) -> None:
        """The time by which the program must have sent more. `before` is where its request was a moment ago."""
        now_s, stage, limits = self._loop.time(), self._reader.stage, self._limits
        if stage is Stage.BODY:
            if before is not Stage.BODY:
                self._body_began_s = now_s
            allowed_s = limits.body_s + self._reader.body_bytes / limits.body_bytes_per_s
            self._deadline_s = self._body_began_s + allowed_s
        elif stage is not before or stage is Stage.BETWEEN:
            self._deadline_s = now_s + (limits.head_s if stage is Stage.HEAD else limits.idle_s)

    def _advance(self) -> None:
        """Answer what waits, until an answer takes its time or the program does not take it."""
        while self._reply is None and self.is_writable and not self._is_last:
            if self._queue:
                self._answer(self._queue.pop(0))
            elif self._held:
                data = b"".join(self._held)
                self._held.clear()
                if self._transport is not None:
                    self._transport.resume_reading()
                self._feed(data)
            else:
                break
        if self._has_peer_ended and self._reply is None and not self._is_last and not self._queue and not self._held:
            self._close()
        if self._reply is None and self._reader.wants_continue and not self._is_last:
            self._reader.wants_continue = False
            self._out.append(_CONTINUE)
        self.flush()

    def _answer(self, request: Request | BadRequest) -> None:
        if isinstance(request, BadRequest):
            self._refuse(request)
            return
        self._n_requests += 1
        if request.refusal is not None:
            self._send(request, request.refusal)
            return
        reply = Reply(self, request)
        try:
            answer = self._application.handle(request, reply)
        except Exception:
            log.exception("a request could not be handled")
            answer = self._application.failure(500, _UNHANDLED)
        if isinstance(answer, Response):
            self._send(request, answer)
        else:
            self._reply = reply
            self._task = self._loop.create_task(self._run(reply, answer))

    async def _run(self, reply: Reply, answer: Coroutine[Any, Any, Response | None]) -> None:
        """Carry a handler to its end."""
        try:
            response = await answer
        except Exception:
            log.exception("a request could not be handled")
            response = None
        if self._reply is not reply:
            return  # the program has left
        self.flush()
        self._reply = self._task = None
        self._set_deadline(Stage.BETWEEN)
        if not reply.is_begun:
            self._send(reply.request, response or self._application.failure(500, _UNHANDLED))
        elif not reply.is_ended:
            self.abort()  # half an answer must not look whole
        elif self._closes_after(reply.request) or reply.request.is_http10:
            self._close()
        self._advance()

    # -- answers ---------------------------------------------------------------------------------------------------

    @property
    def socket(self) -> Any:
        """For `Reply`."""
        return self._transport.get_extra_info("socket") if self._transport is not None else None

    def begin(self, request: Request, status: int, headers: Mapping[str, str]) -> None:
        """For `Reply`: send a head."""
        chunked = not request.is_http10
        connection = self._connection_header(request) if chunked else "close"
        self._out.append(head(status, headers.items(), now_s=time.time(), connection=connection, chunked=chunked))
        self.flush_soon()

    def send(self, request: Request, data: bytes) -> bool:
        """For `Reply`: write one chunk at once; False where something stands before it, or it is no chunk."""
        if self._out or request.is_http10 or request.method == "HEAD" or self._transport is None:
            return False
        self._transport.write(chunk(data))
        return True

    def flush_soon(self) -> None:
        """For `Reply`: there is something to write. It leaves at the end of this turn of the loop."""
        if not self._is_flushing:
            self._is_flushing = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """For `Reply`: write what there is."""
        self._is_flushing = False
        out = self._out
        if self._reply is not None and self._reply.is_begun:
            out.append(self._reply.take())
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        if data and self._transport is not None:
            self._transport.write(data)

    def _send(self, request: Request, response: Response) -> None:
        """Write a whole answer."""
        connection = self._connection_header(request)
        self._out.append(response_head(response, now_s=time.time(), connection=connection))
        if request.method != "HEAD":
            self._out.append(response.body)
        if len(response.body) > _LARGE_BYTES:
            self.flush()
        if connection == "close":
            self._close()

    def _refuse(self, error: BadRequest) -> None:
        """Answer what is no request that can be served, and hear no more."""
        response = error.response or self._application.failure(error.status, error.message)
        self._out += (response_head(response, now_s=time.time(), connection="close"), response.body)
        self.flush()
        self._is_last = True
        if self._transport is not None and not self._transport.can_write_eof():
            self._transport.close()  # a stream of libp2p: what was written arrives, whatever is unread
        elif self._transport is not None:
            # Were it closed with bytes unread, the answer would be lost on its way.
            self._transport.write_eof()
            self._transport.resume_reading()
            self._deadline_s = self._loop.time() + self._limits.linger_s

    def _closes_after(self, request: Request) -> bool:
        most = self._limits.requests_per_connection
        return not request.keeps_alive or self._server.is_closing or (most is not None and self._n_requests >= most)

    def _connection_header(self, request: Request) -> str:
        if self._closes_after(request):
            return "close"
        return "keep-alive" if request.is_http10 else ""

    # -- the end ---------------------------------------------------------------------------------------------------

    def tick(self, now_s: float) -> None:
        """For the server: see whether the program is late."""
        transport = self._transport
        if transport is None:
            return
        if self._is_last or not self.is_writable:
            unsent_bytes = transport.get_write_buffer_size()
            if unsent_bytes != self._unsent_bytes:
                self._unsent_bytes, self._stalled_s = unsent_bytes, now_s
            elif unsent_bytes and now_s > self._stalled_s + self._limits.stalled_s:
                self.abort()
                return
        if self._reply is not None or now_s < self._deadline_s:
            return
        if self._is_last:
            self.abort()
        elif self._reader.stage is Stage.BETWEEN:
            self._close()
        else:
            what = "head" if self._reader.stage is Stage.HEAD else "body"
            self._refuse(BadRequest(408, f"The request's {what} did not come in time."))

    def close_when_idle(self) -> None:
        """For the server, which takes no more requests: the answer under way is the last."""
        if self._reply is None and not self._is_last:
            self._close()

    def abort(self) -> None:
        """Cut the connection."""
        if self._transport is not None:
            self._transport.abort()

    def _close(self) -> None:
        """End the connection once all is written."""
        self.flush()
        self._is_last = True
        self._deadline_s = _NEVER
        if self._transport is not None:
            self._transport.close()

    def _leave(self) -> None:
        """The program has left: whoever works for it stops."""
        reply, task = self._reply, self._task
        self._reply = self._task = None
        self._is_last = True
        self._queue.clear()
        self._held.clear()
        if reply is not None:
            reply.is_ended = True
            reply.on_writable = None
        if task is not None:
            task.cancel()
            self._server.left(task)


def _source_of(transport: asyncio.BaseTransport) -> Source:
    peer, own = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
    return Source(
        address=str(peer[0]) if isinstance(peer, tuple) else "",
        own_address=str(own[0]) if isinstance(own, tuple) else "",
        peer_id=str(transport.get_extra_info("peer_id") or ""),
    )
