"""The gateway: an OpenAI endpoint on the buyer's machine. Whoever can reach it spends its owner's money.

So it listens on loopback unless an API key is set, and without one it turns away what a web page in a browser could
send: requests with a foreign `Origin` or `Host`, and bodies that are not declared as JSON. Prompts are never logged.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

import msgspec

from p2pgrid.client.answer import Answer
from p2pgrid.client.offer_query import OfferQuery, parse_query
from p2pgrid.client.openai_api import (
    StreamEditor,
    answer_headers,
    cost_headers,
    cost_object,
    error_body,
    error_event,
    http_error_body,
    model_list,
    status_of,
    without_token_ids,
)
from p2pgrid.client.purchase import purchase_of
from p2pgrid.client.purchaser import Purchaser
from p2pgrid.client.wishes import parse_wishes
from p2pgrid.clock import unix_ms
from p2pgrid.errors import LocalError, P2pgridError, Refused, RemoteError, UsageError
from p2pgrid.http.limits import ServerLimits
from p2pgrid.http.message import JSON, Request, Response
from p2pgrid.http.reader import ReaderLimits
from p2pgrid.http.reply import Reply
from p2pgrid.http.server import Server
from p2pgrid.http.server import serve as serve_http
from p2pgrid.net.peer_address import Health
from p2pgrid.printable import printable
from p2pgrid.proto.messages import ENDPOINTS
from p2pgrid.proto.wire.orders import MAX_BODY_BYTES
from p2pgrid.units import format_amount_eur

log = logging.getLogger(__name__)

RECEIPT_WAIT_S: Final = 2.0
"""How long the end of an answer waits for its receipt. It follows the last token by milliseconds."""
SHUTDOWN_S: Final = 10.0
"""How long answers under way may go on once the gateway is told to stop."""
SERVER_LIMITS: Final = ServerLimits(reader=ReaderLimits(body_bytes=MAX_BODY_BYTES))
_LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1", "::1")
_MODEL_PATH: Final = "/v1/models/"
_STREAM_HEADERS: Final = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}

_HEALTH_SHOWN: Final = ("running", "bootstrap_reached", "connected_peers", "restarts", "stalled_s")
_Handler = Callable[[Request, Reply], Response | Coroutine[Any, Any, Response | None]]


class Gateway:
    """The application (`p2pgrid.http.connection.Application`). `serve` puts it on a port."""

    def __init__(
        self,
        purchaser: Purchaser,
        *,
        network: str,
        api_key: str | None = None,
        n_links: Callable[[], int] | None = None,
        network_health: Callable[[], Health | None] = lambda: None,
    ) -> None:
        """`n_links`: links that are ready, where other processes have some too. `network_health`: in this process."""
        self._purchaser = purchaser
        self._n_links = n_links or (lambda: purchaser.sessions.n_ready)
        self._network = network
        self._network_health = network_health
        self._api_key = api_key
        self._routes: dict[str, dict[str, _Handler]] = {
            "/": _reading(self._home),
            "/health": _reading(self._health),
            "/v1/models": _reading(self._models),
            **{endpoint: {"POST": self._complete} for endpoint in ENDPOINTS},
        }
        self._model_route = _reading(self._model)

    # -- around every request ------------------------------------------------------------------------------------

    def admit(self, request: Request) -> Response | None:
        """Let in who may spend, for what is served. Every error has OpenAI's shape."""
        try:
            self._guard(request)
            route = self._route(request.path)
            if route is None:
                return self.failure(404, f"{request.method} {printable(request.path)} is not served here.")
            if request.method not in route:
                return _not_allowed(request.method, route)
            if request.method == "POST" and request.content_type != JSON:
                declared = printable(request.content_type)
                raise Refused("bad-request", f"the body is declared as {declared}; {JSON} was expected.")
        except P2pgridError as error:
            return _refusal(request, error)
        return None

    def handle(self, request: Request, reply: Reply) -> Response | Coroutine[Any, Any, Response | None]:
        """Answer what `admit` let in."""
        route = self._route(request.path)
        assert route is not None
        try:
            return route[request.method](request, reply)
        except P2pgridError as error:
            return _refusal(request, error)

    def failure(self, status: int, message: str) -> Response:
        """An error that comes of HTTP itself."""
        return _json(http_error_body(status, message), status)

    def _route(self, path: str) -> Mapping[str, _Handler] | None:
        """The handlers of a path, by method."""
        is_model = path.startswith(_MODEL_PATH) and len(path) > len(_MODEL_PATH)
        return self._model_route if is_model else self._routes.get(path)

    def _guard(self, request: Request) -> None:
        """Raises Refused for who may not spend."""
        if self._api_key is None:
            if not _is_loopback_url(f"http://{request.host}") or not _is_loopback_url(request.headers.get("Origin")):
                raise Refused(
                    "forbidden",
                    "this gateway takes requests for loopback addresses only, and none from web pages.",
                    hint="Use 127.0.0.1, or start it with --api-key-file.",
                )
        elif request.path.startswith("/v1/"):
            scheme, _, shown = request.headers.get("Authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(shown.encode(), self._api_key.encode()):
                raise Refused("unauthorized", "the API key is missing or wrong.", hint="Send it as a bearer token.")

    # -- pages ---------------------------------------------------------------------------------------------------

    def _home(self, request: Request) -> Response:
        n_models = len({candidate.entry.model for candidate in self._purchaser.market.models()})
        text = (
            "p2pgrid gateway: an OpenAI API that buys each answer from a provider it dials itself.\n"
            "Every answer is paid for by the owner of this gateway, on a receipt that both sides sign.\n\n"
            f"base URL    http://{request.host}/v1\n"
            f"network     {self._network}\n"
            f"on sale     {n_models} models: GET /v1/models\n"
            "endpoints   POST /v1/chat/completions, POST /v1/completions\n"
            "wishes      headers X-P2pgrid-Country, -Parent-Country, -Provider, -Max-Cost-EUR, -Max-Price-Input-EUR,\n"
            "            -Max-Price-Output-EUR, -Min-Context, -Free\n"
            "queries     GET /v1/models?country=LT&max_price_output=0.5&min_context=4096&free=1&sort=free\n"
        )
        return Response(body=text.encode(), content_type="text/plain; charset=utf-8")

    def _health(self, _: Request) -> Response:
        book = self._purchaser.book
        health = self._network_health()
        libp2p = None if health is None else {name: getattr(health, name) for name in _HEALTH_SHOWN}
        return _json(
            {
                "status": "ok",
                "network": self._network,
                "offers": len(book.offers()),
                "links": self._n_links(),
                "refused": dict(sorted(book.refused.items())),
                "libp2p": libp2p,
            }
        )

    def _models(self, request: Request) -> Response:
        query = parse_query(request.target)
        return _json({"object": "list", "data": model_list(self._purchaser.market.models(query), unix_ms())})

    def _model(self, request: Request) -> Response:
        name = request.path.removeprefix(_MODEL_PATH)
        market, now_ms = self._purchaser.market, unix_ms()
        for model in model_list(market.models(OfferQuery(model=name)), now_ms):
            return _json(model)
        on_sale = ", ".join(model["id"] for model in model_list(market.models(), now_ms)) or "nothing yet"
        raise Refused("unknown-model", f"the model {name!r} is not on sale.", hint=f"On sale: {on_sale}.")

    # -- answers -------------------------------------------------------------------------------------------------

    async def _complete(self, request: Request, reply: Reply) -> Response | None:
        try:
            purchase = purchase_of(request.path, request.body)
            wishes, fields = parse_wishes(request.headers), purchase.fields
            async with await self._purchaser.buy_prepared(purchase, wishes, whole=not fields.stream) as answer:
                if not fields.stream:
                    return await self._whole(answer, wants_ids=fields.return_token_ids is True)
                options = fields.stream_options
                await self._stream(reply, answer, wants_usage=options is not None and options.include_usage)
                return None
        except P2pgridError as error:
            if reply.is_begun:
                raise
            return _refusal(request, error)

    async def _whole(self, answer: Answer, *, wants_ids: bool) -> Response:
        merged = await answer.assemble()
        if not wants_ids:
            merged = without_token_ids(merged)
        await answer.settled(RECEIPT_WAIT_S)
        _log_sale(answer)
        return _json(merged, headers={**answer_headers(answer), **cost_headers(answer)})

    async def _stream(self, reply: Reply, answer: Answer, *, wants_usage: bool) -> None:
        reply.begin(200, {**_STREAM_HEADERS, **answer_headers(answer)})
        editor = StreamEditor(wants_usage=wants_usage)
        try:
            await answer.pour(lambda data: reply.send(editor.feed(data)), reply)
            if wants_usage:
                await answer.settled(RECEIPT_WAIT_S)
            reply.write(editor.finish(cost_object(answer)))
        except (RemoteError, LocalError) as error:
            log.warning("an answer of %s broke off: %s", answer.provider, error.message)
            reply.write(error_event(error))
        reply.end()
        _log_sale(answer)


async def serve(gateway: Gateway, host: str, port: int) -> Server:
    """Put the gateway on `host`:`port` (0: any free one); `addresses` tells where. Ends with `aclose(SHUTDOWN_S)`.

    Raises LocalError where the address cannot be had.
    """
    return await serve_http(gateway, host, port, SERVER_LIMITS)


def check_exposure(host: str, api_key: str | None) -> None:
    """Raise UsageError for an address that others can reach, unless an API key is set."""
    if api_key is None and not _is_loopback(host):
        raise UsageError(
            f"the gateway would listen on {host}, where others could spend your money.",
            hint="Listen on 127.0.0.1, or name a file with an API key: --api-key-file.",
        )


def _reading(page: Callable[[Request], Response]) -> dict[str, _Handler]:
    """A page for GET and HEAD."""

    def handler(request: Request, _: Reply) -> Response:
        return page(request)

    return {"GET": handler, "HEAD": handler}


def _not_allowed(method: str, route: Mapping[str, _Handler]) -> Response:
    """What may be done with a path, for a method that may not."""
    allow = {"Allow": ", ".join((*route, "OPTIONS"))}
    if method == "OPTIONS":
        return Response(status=204, headers=allow)
    return _json(http_error_body(405, "Method Not Allowed"), 405, allow)


def _refusal(request: Request, error: P2pgridError) -> Response:
    """The answer to a request that was refused."""
    status, body = status_of(error), error_body(error)
    log.info("%s %s: %d %s", request.method, printable(request.path), status, body["error"]["code"])
    return _json(body, status, {"Retry-After": "1"} if status in (429, 503) else None)


def _is_loopback(host: str) -> bool:
    if host in _LOOPBACK_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_loopback_url(url: str | None) -> bool:
    """True for no URL, and for one whose host is loopback."""
    if url is None:
        return True
    rest = url.partition("://")[2]
    host = rest[1:].partition("]")[0] if rest.startswith("[") else rest.partition("/")[0].partition(":")[0]
    return _is_loopback(host)


def _json(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(status=status, body=msgspec.json.encode(value), headers=headers or {})


def _log_sale(answer: Answer) -> None:
    if not log.isEnabledFor(logging.INFO):
        return
    usage = answer.usage
    log.info(
        "%s from %s (%s): %d in, %d cached, %d out, %s EUR",
        printable(answer.entry.model),
        printable(answer.operator) or answer.provider,
        answer.country,
        usage.prompt_tokens,
        usage.cached_tokens,
        usage.output_tokens,
        format_amount_eur(answer.cost_pico),
    )
