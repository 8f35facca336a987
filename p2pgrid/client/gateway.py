"""The gateway: an OpenAI endpoint on the buyer's machine. Whoever can reach it spends its owner's money.

So it listens on loopback unless an API key is set, and without one it turns away what a web page in a browser could
send: requests with a foreign `Origin` or `Host`, and bodies that are not declared as JSON. Prompts are never logged.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from aiohttp import web

from p2pgrid.client.answer import Answer
from p2pgrid.client.openai_api import (
    StreamEditor,
    answer_headers,
    cost_headers,
    cost_object,
    error_body,
    error_event,
    http_error_body,
    model_list,
    parse_wishes,
    status_of,
    without_token_ids,
)
from p2pgrid.client.purchaser import Purchaser, unix_ms
from p2pgrid.client.text import printable
from p2pgrid.errors import LocalError, P2pgridError, Refused, RemoteError, UsageError
from p2pgrid.proto.messages import ENDPOINTS
from p2pgrid.proto.wire import MAX_BODY_BYTES
from p2pgrid.units import format_amount_eur

log = logging.getLogger(__name__)

RECEIPT_WAIT_S: Final = 2.0
"""How long the end of an answer waits for its receipt. It follows the last token by milliseconds."""
SHUTDOWN_S: Final = 10.0
_LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1", "::1")
_JSON: Final = "application/json"

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Gateway:
    """The application. `serve` puts it on a port."""

    def __init__(self, purchaser: Purchaser, *, network: str, api_key: str | None = None) -> None:
        self._purchaser = purchaser
        self._network = network
        self._api_key = api_key

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[self._errors, self._guard])
        app.router.add_get("/", self._home)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{model:.+}", self._model)
        for endpoint in ENDPOINTS:
            app.router.add_post(endpoint, self._complete)
        return app

    # -- around every request ------------------------------------------------------------------------------------

    @web.middleware
    async def _errors(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Every error in OpenAI's shape."""
        try:
            return await handler(request)
        except web.HTTPException as error:
            text = error.reason
            if error.status == 413:
                text = f"The request is too large; at most {MAX_BODY_BYTES} bytes are taken."
            elif error.status == 404:
                text = f"{request.method} {request.path} is not served here."
            kept = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
            return _json(http_error_body(error.status, text), error.status, kept)
        except P2pgridError as error:
            status, body = status_of(error), error_body(error)
            headers = {"Retry-After": "1"} if status in (429, 503) else None
            log.info("%s %s: %d %s", request.method, request.path, status, body["error"]["code"])
            return _json(body, status, headers)

    @web.middleware
    async def _guard(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Let in who may spend."""
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
        return await handler(request)

    # -- pages ---------------------------------------------------------------------------------------------------

    async def _home(self, http: web.Request) -> web.Response:
        n_models = len({candidate.entry.model for candidate in self._purchaser.models()})
        return web.Response(
            text="p2pgrid gateway: an OpenAI API that buys each answer from a provider it dials itself.\n"
            "Every answer is paid for by the owner of this gateway, on a receipt that both sides sign.\n\n"
            f"base URL    http://{http.host}/v1\n"
            f"network     {self._network}\n"
            f"on sale     {n_models} models: GET /v1/models\n"
            "endpoints   POST /v1/chat/completions, POST /v1/completions\n"
            "wishes      headers X-P2pgrid-Country, X-P2pgrid-Max-Cost-EUR, X-P2pgrid-Provider\n"
        )

    async def _health(self, _: web.Request) -> web.Response:
        offers = len(self._purchaser.book.offers())
        return _json({"status": "ok", "network": self._network, "offers": offers, "links": self._purchaser.n_ready})

    async def _models(self, _: web.Request) -> web.Response:
        return _json({"object": "list", "data": model_list(self._purchaser.models(), unix_ms())})

    async def _model(self, http: web.Request) -> web.Response:
        name = http.match_info["model"]
        listed = model_list(self._purchaser.models(), unix_ms())
        for model in listed:
            if model["id"] == name:
                return _json(model)
        on_sale = ", ".join(model["id"] for model in listed) or "nothing yet"
        raise Refused("unknown-model", f"the model {name!r} is not on sale.", hint=f"On sale: {on_sale}.")

    # -- answers -------------------------------------------------------------------------------------------------

    async def _complete(self, http: web.Request) -> web.StreamResponse:
        body = await _read_body(http)
        wishes = parse_wishes(http.headers)
        streamed = body.get("stream") is True
        async with await self._purchaser.buy(http.path, body, wishes, whole=not streamed) as answer:
            if streamed:
                return await self._stream(http, answer, wants_usage=_wants_usage(body))
            return await self._whole(answer, wants_ids=body.get("return_token_ids") is True)

    async def _whole(self, answer: Answer, *, wants_ids: bool) -> web.Response:
        merged = await answer.assemble()
        if not wants_ids:
            merged = without_token_ids(merged)
        await answer.settled(RECEIPT_WAIT_S)
        _log_sale(answer)
        return _json(merged, headers={**answer_headers(answer), **cost_headers(answer)})

    async def _stream(self, http: web.Request, answer: Answer, *, wants_usage: bool) -> web.StreamResponse:
        headers = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
        response = web.StreamResponse(headers={**headers, **answer_headers(answer)})
        await response.prepare(http)
        editor = StreamEditor(wants_usage=wants_usage)
        try:
            async for data in answer:
                passed = editor.feed(data)
                if passed:
                    await response.write(passed)
            if wants_usage:
                await answer.settled(RECEIPT_WAIT_S)
            await response.write(editor.finish(cost_object(answer)))
        except ConnectionError:
            log.info("the program left in the middle of an answer")
            raise
        except (RemoteError, LocalError) as error:
            log.warning("an answer of %s broke off: %s", answer.provider, error.message)
            await response.write(error_event(error))
        await response.write_eof()
        _log_sale(answer)
        return response


async def serve(gateway: Gateway, host: str, port: int) -> web.AppRunner:
    """Put the gateway on `host`:`port` (0: any free one); `runner.addresses` tells where. Ends with `cleanup`.

    Raises LocalError where the address cannot be had.
    """
    # Handlers are cancelled when their program leaves, and that cancels the order within the same instant.
    runner = web.AppRunner(
        gateway.application(), handler_cancellation=True, access_log=None, shutdown_timeout=SHUTDOWN_S
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        raise LocalError(
            f"cannot listen on {host}:{port}: {error.strerror or error}.",
            hint="Stop the program that uses it, or choose another address with --listen.",
        ) from None
    return runner


def check_exposure(host: str, api_key: str | None) -> None:
    """Raise UsageError for an address that others can reach, unless an API key is set."""
    if api_key is None and not _is_loopback(host):
        raise UsageError(
            f"the gateway would listen on {host}, where others could spend your money.",
            hint="Listen on 127.0.0.1, or name a file with an API key: --api-key-file.",
        )


async def _read_body(http: web.Request) -> dict[str, Any]:
    if http.content_type != _JSON:
        raise Refused("bad-request", f"the body is declared as {http.content_type}; {_JSON} was expected.")
    raw = await http.read()
    try:
        body: dict[str, Any] = msgspec.json.decode(raw, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Refused("bad-request", f"the body is no JSON object: {error}.") from None
    return body


def _wants_usage(body: dict[str, Any]) -> bool:
    options = body.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


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


def _json(value: object, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type=_JSON, headers=headers)


def _log_sale(answer: Answer) -> None:
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
