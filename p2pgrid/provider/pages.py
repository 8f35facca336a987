"""The operator's pages over HTTP: /offer, /card, /health and /log/ for everybody, /receipts for who is named.

They are served on a port of their own where the operator wants one, and over libp2p (`/http/1.1`) in any case. They are
read-only, and take no orders. /metrics, and /add-checkpoint, which asks for a cosignature, are on the port alone.
/.well-known/p2pgrid.json is there for the operator's web server to pass on. See docs/spec/http.md.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from p2pgrid.clock import unix_ms
from p2pgrid.errors import LedgerError, LocalError, Refused
from p2pgrid.http.connection import Connection
from p2pgrid.http.limits import ServerLimits
from p2pgrid.http.message import JSON, Request, Response
from p2pgrid.http.reader import ReaderLimits
from p2pgrid.http.reply import Reply
from p2pgrid.http.server import OWN_ADDRESSES, Server
from p2pgrid.log.service import MAX_PATH_CHARS, NOT_KEPT, status_of
from p2pgrid.net.limits import Rates
from p2pgrid.net.listening import caller_of
from p2pgrid.proto import well_known
from p2pgrid.proto.witness import MAX_ADD_CHECKPOINT_BYTES
from p2pgrid.provider.health import health_of
from p2pgrid.provider.metrics import METRICS_TYPE, metrics_of
from p2pgrid.provider.named_pages import AUTH_PROTOCOL, NamedPages
from p2pgrid.provider.page_answers import answer_json, failure

if TYPE_CHECKING:
    from p2pgrid.provider.node import Provider

REQUESTS_BURST: Final = 200
REQUESTS_PER_S: Final = 20.0
"""Of one address, or of one peer over libp2p."""
PORT_LIMITS: Final = ServerLimits(
    reader=ReaderLimits(head_bytes=16 * 1024, body_bytes=MAX_ADD_CHECKPOINT_BYTES),
    connections=256,
    connections_per_address=32,
    head_s=10.0,
    body_s=10.0,
    idle_s=15.0,
    stalled_s=30.0,
)
LIBP2P_LIMITS: Final = ServerLimits(
    reader=ReaderLimits(head_bytes=16 * 1024, body_bytes=0),
    connections=128,
    requests_per_connection=1,
    is_half_open=True,
    head_s=10.0,
    idle_s=10.0,
    stalled_s=30.0,
)
"""The host has counted streams before, by peer and address: `net/doors.py`."""
WELL_KNOWN_PROTOCOLS: Final = "/.well-known/libp2p/protocols"
PAGES_PROTOCOL: Final = "/p2pgrid/pages/1"
_LOG: Final = "/log/"
_UNCACHED: Final = {"Cache-Control": NOT_KEPT}
_READ: Final = ("GET", "HEAD")
_INDEX: Final = """\
This is a p2pgrid provider: {peer_id}
  /offer                     what it sells, signed
  /card                      who stands behind it
  /health                    how it fares
  /log/checkpoint, /log/tile its transparency log
  /receipts                  your own channels and receipts: say who you are (libp2p-PeerID)
"""

Answer = Response | Coroutine[Any, Any, Response | None]


class Pages:
    """The application (`p2pgrid.http.connection.Application`)."""

    def __init__(self, node: Provider, *, over_libp2p: bool, names: Callable[[], set[str]] = set) -> None:
        """`names`: host names that are the node's own, beside the addresses at which it is reached."""
        self._node = node
        self._over_libp2p = over_libp2p
        self._rates = Rates(REQUESTS_BURST, REQUESTS_PER_S)
        self._named = NamedPages(node, self._is_own_host)
        self._names = names
        self._pages: dict[str, Callable[[Request], Response]] = {
            "/": self._index,
            "/offer": self._offer,
            "/card": self._card,
            "/health": self._health,
            well_known.PATH: self._well_known,
            WELL_KNOWN_PROTOCOLS: self._protocols,
        }
        if not over_libp2p:
            self._pages["/metrics"] = self._metrics

    # -- Application ------------------------------------------------------------------------------------------------

    def admit(self, request: Request) -> Response | None:
        if not self._may_ask(request):
            return answer_json({"error": "too many requests"}, 429, {"Retry-After": "1"})
        methods = self._methods(request.path)
        if not methods:
            return failure(404, "there is nothing at this path")
        if request.method not in methods:
            return answer_json({"error": "the pages are read-only"}, 405, {"Allow": ", ".join(methods)})
        return None

    def handle(self, request: Request, reply: Reply) -> Answer:
        if (page := self._pages.get(request.path)) is not None:
            return page(request)
        if request.path == "/add-checkpoint":
            return self._add_checkpoint(request.body)
        if request.path.startswith(_LOG):
            return self._log(request)
        return self._named.answer(request, reply)

    def failure(self, status: int, message: str) -> Response:
        return failure(status, message)

    # -- around every request -----------------------------------------------------------------------------------------

    def _may_ask(self, request: Request) -> bool:
        source = request.source
        if not self._over_libp2p and source.address in OWN_ADDRESSES:
            return True  # a proxy in front, for all of its callers
        caller = caller_of(source.address) if source.address else source.peer_id
        return self._rates.take(caller, time.monotonic())

    def _methods(self, path: str) -> tuple[str, ...]:
        if path in self._pages or path.startswith(_LOG) or self._named.has(path):
            return _READ
        return ("POST",) if path == "/add-checkpoint" and not self._over_libp2p else ()

    def _is_own_host(self, name: str, request: Request) -> bool:
        """Whether the name by which the client calls us is one of ours. For others nothing is signed."""
        if self._over_libp2p:
            return name == self._node.peer_id
        own = request.source.own_address
        try:
            return ipaddress.ip_address(name.strip("[]")) == ipaddress.ip_address(own.partition("%")[0])
        except ValueError:
            pass  # a name, and no address
        if name.lower() == "localhost":
            return ipaddress.ip_address(own).is_loopback
        return name.lower() in self._names()

    # -- pages --------------------------------------------------------------------------------------------------------

    def _index(self, _: Request) -> Response:
        text = _INDEX.format(peer_id=self._node.peer_id)
        return Response(body=text.encode(), content_type="text/plain; charset=utf-8")

    def _offer(self, _: Request) -> Response:
        offer = self._node.offer
        if offer is None:
            return failure(404, "nothing is offered now")
        return Response(body=offer.record.to_json_line(), content_type=JSON)

    def _card(self, _: Request) -> Response:
        lines = [card.record.to_json_line() for card in self._node.cards.chain()]
        if not lines:
            return failure(404, "there is no card")
        return Response(body=b"\n".join(lines) + b"\n", content_type="application/jsonl")

    def _well_known(self, _: Request) -> Response:
        chain = self._node.cards.chain()
        return answer_json(well_known.well_known_of(chain, unix_ms())) if chain else failure(404, "there is no card")

    def _protocols(self, _: Request) -> Response:
        return answer_json({PAGES_PROTOCOL: {"path": "/"}, AUTH_PROTOCOL: {"path": "/receipts"}})

    def _health(self, _: Request) -> Response:
        health = health_of(self._node)
        return answer_json(health, 200 if health["status"] == "ok" else 503)

    def _metrics(self, _: Request) -> Response:
        return Response(body=metrics_of(self._node).encode(), content_type=METRICS_TYPE)

    async def _log(self, request: Request) -> Response:
        # A proof is for a record's parties alone: whoever says who it is may be one.
        asker = self._named.name(request)
        if isinstance(asker, Response):
            return asker
        path = request.path.removeprefix(_LOG)[: MAX_PATH_CHARS + 1]
        try:
            resource = await self._node.log.get(path, asker.key if asker is not None else None)
        except Refused as refusal:
            return _text(status_of(refusal), refusal.message, asker.headers if asker is not None else {})
        except LedgerError:
            return _text(503, "the log cannot be read now")
        headers = {"Cache-Control": resource.cache_control, **(asker.headers if asker is not None else {})}
        return Response(body=resource.body, content_type=resource.content_type, headers=headers)

    async def _add_checkpoint(self, body: bytes) -> Response:
        try:
            answer = await self._node.log.add_checkpoint(body)
        except Refused as refusal:
            return _text(status_of(refusal), refusal.message)
        except LedgerError:
            return _text(503, "nothing can be put on record now")
        return Response(status=answer.status, body=answer.body, content_type=answer.content_type, headers=_UNCACHED)


@asynccontextmanager
async def serve_pages(node: Provider, host: str, port: int) -> AsyncIterator[str]:
    """Serve the pages of a running node (port 0: any free one); gives their base URL. Raises LocalError."""
    server = Server(Pages(node, over_libp2p=False, names=node.page_names), PORT_LIMITS)
    try:
        await server.listen(host, port)
    except LocalError as error:
        raise LocalError(
            f"the pages {error.message}", hint="Choose another address with --pages, or leave it out."
        ) from None
    try:
        bound = server.addresses[0]
        yield f"http://{f'[{bound[0]}]' if ':' in bound[0] else bound[0]}:{bound[1]}"
    finally:
        await asyncio.shield(server.aclose(1.0))


def pages_over_libp2p(node: Provider) -> tuple[Server, Callable[[], Connection]]:
    """The same for streams of libp2p: a server without a port, and what makes a protocol for each stream."""
    server = Server(Pages(node, over_libp2p=True), LIBP2P_LIMITS)
    return server, lambda: Connection(server)


def _text(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return Response(
        status=status,
        body=f"{message}\n".encode(),
        content_type="text/plain; charset=utf-8",
        headers={**_UNCACHED, **(headers or {})},
    )
