"""One connection to an engine: a request out, an answer in, read by httptools, and told to the call that it carries."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final, cast

import httptools

from p2pgrid.engine.read_rounds import FEWEST_STREAMS, ReadRounds
from p2pgrid.errors import EngineError

if TYPE_CHECKING:
    from p2pgrid.engine.http_client import HttpCall, HttpClient

log = logging.getLogger(__name__)

AT_ONCE_READS: Final = 4
"""Of every answer: the head, what comes before the first token, and that."""
MAX_HEAD_BYTES: Final = 64 * 1024
"""Of an answer's head; and most that may come anywhere in an answer without a byte of its body."""


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
        if self._client.n_answers < FEWEST_STREAMS:
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
