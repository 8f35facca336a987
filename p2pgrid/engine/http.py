"""An engine at a URL: `http://host:port`, or `unix:/path` for one on this machine.

Requests and answers pass as the bytes they are. vLLM is asked for what is free to ask: `/health`, `/v1/models`
and `/metrics`; peers reach the two endpoints of `base.ENDPOINTS` and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import time
from dataclasses import dataclass
from typing import Annotated, Final
from urllib.parse import quote, urlsplit

import msgspec

from p2pgrid.engine.answer import ReadAnswer, read_answer
from p2pgrid.engine.base import ENDPOINTS, AnswerReader, EngineHealth, EngineModel, check_request
from p2pgrid.engine.http_client import EngineLimits, HttpCall, HttpClient, Road
from p2pgrid.errors import EngineError, UsageError

_MAX_PAGE_BYTES: Final = 4 * 2**20
_POLL_S: Final = 0.2
_HOST: Final = re.compile(r"[!-~]+")
_GAUGE: Final = re.compile(
    r"^vllm:(num_requests_running|num_requests_waiting|kv_cache_usage_perc)(?:\{[^\n]*\})? ([0-9.e+-]+)$", re.MULTILINE
)


class _ModelCard(msgspec.Struct):
    id: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    max_model_len: Annotated[int, msgspec.Meta(ge=0)] | None = None


class _ModelList(msgspec.Struct):
    data: Annotated[list[_ModelCard], msgspec.Meta(max_length=1024)]


class HttpEngine:
    """An engine that someone else runs (see `base.Engine`). Use it on one event loop, and `aclose` it.

    Raises UsageError at once for a URL that is none. `api_key` goes out as a bearer token. An engine behind TLS is
    believed if its certificate is one that this machine trusts.
    """

    def __init__(self, url: str, *, limits: EngineLimits | None = None, api_key: str | None = None) -> None:
        self.url: Final = url
        self.limits: Final = limits or EngineLimits()
        target = _parse_url(url)
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise UsageError("the engine's API key has characters that no key has.", hint="Copy it again.")
        key = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        self._head = f"Host: {target.host}\r\nAccept-Encoding: identity\r\n{key}".encode()
        self._path = target.path
        self._posts = {
            endpoint: f"POST {target.path}{endpoint} HTTP/1.1\r\n".encode()
            + self._head
            + b"Content-Type: application/json\r\nX-Request-Id: "
            for endpoint in ENDPOINTS
        }
        self._client = HttpClient(target.road, self.limits, url)
        self._models: tuple[EngineModel, ...] = ()

    def models(self) -> tuple[EngineModel, ...]:
        return self._models

    async def ready(self, timeout_s: float) -> None:
        """Wait until it answers `/health` and names its models."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                await self._page("/health")
                self._models = parse_models(await self._page("/v1/models"), self.url)
                return
            except EngineError as error:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise EngineError(
                        f"the engine at {self.url} was not ready within {timeout_s:.0f} s: {error.message}",
                        hint="Start it, or mend the engine's URL in the configuration.",
                    ) from None
                await asyncio.sleep(min(_POLL_S, left_s))

    def ask(self, endpoint: str, body: bytes, request_id: str, reader: AnswerReader) -> HttpCall:
        check_request(endpoint, request_id)
        head = b"%s%s\r\nContent-Length: %d\r\n\r\n" % (self._posts[endpoint], request_id.encode(), len(body))
        return self._client.send(head + body, reader)

    async def request(self, endpoint: str, body: bytes, request_id: str) -> ReadAnswer:
        return await read_answer(self, endpoint, body, request_id)

    async def health(self) -> EngineHealth:
        try:
            await self._page("/health")
            return parse_health(await self._page("/metrics"))
        except EngineError as error:
            return EngineHealth(is_healthy=False, detail=error.message)

    async def aclose(self) -> None:
        self._client.close()

    async def _page(self, path: str) -> bytes:
        """GET one of the engine's own small pages, or EngineError."""
        answer, page = ReadAnswer(), b""
        try:
            async with asyncio.timeout(self.limits.page_timeout_s):
                answer.call = self._client.send(
                    b"GET %s%s HTTP/1.1\r\n%s\r\n" % (self._path.encode(), path.encode(), self._head), answer
                )
                await answer.head()
                async with contextlib.aclosing(answer.__aiter__()) as pieces:
                    async for piece in pieces:
                        page += piece
                        if len(page) >= _MAX_PAGE_BYTES:
                            break
        except TimeoutError:
            raise EngineError(f"the engine at {self.url} did not answer {path} in time.") from None
        if answer.status != 200:
            raise EngineError(f"the engine at {self.url} answered {path} with HTTP {answer.status}.")
        return page


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """What a URL says: where to dial, what to call the host, and what stands before every path."""

    road: Road
    host: str
    path: str


def _parse_url(url: str) -> _Target:
    """What a person wrote, or UsageError."""
    if url.startswith("unix:"):
        path = url.removeprefix("unix:").replace("//", "/", 1) if url.startswith("unix://") else url[len("unix:") :]
        if not path.startswith("/"):
            raise UsageError(f"the engine's URL {url!r} names no absolute path.", hint="Write unix:/path/to/socket.")
        return _Target(road=Road(socket_path=path), host="engine", path="")
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").encode("idna").decode(), parts.port
        well_formed = (
            parts.scheme in ("http", "https") and bool(host) and (port or 1) > 0 and _HOST.fullmatch(host) is not None
        )
    except ValueError:
        well_formed = False
    if not well_formed or parts.query or parts.fragment or parts.username is not None:
        raise UsageError(f"{url!r} is no engine's URL.", hint="Write http://host:port or unix:/path/to/socket.")
    is_tls = parts.scheme == "https"
    road = Road(host=host, port=port or (443 if is_tls else 80), tls=_tls_context() if is_tls else None)
    name = f"[{host}]" if ":" in host else host
    path = quote(parts.path.rstrip("/").removesuffix("/v1"), safe="/%:@!$&'()*+,;=~")
    return _Target(road=road, host=f"{name}:{port}" if port else name, path=path)


def _tls_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def parse_health(metrics: bytes) -> EngineHealth:
    """What an engine's `/metrics` page says. Whatever the page is, an engine that serves one is up."""
    try:
        gauges = {name: float(value) for name, value in _GAUGE.findall(metrics.decode())}
        return EngineHealth(
            is_healthy=True,
            running=int(gauges.get("num_requests_running", -1)),
            waiting=int(gauges.get("num_requests_waiting", -1)),
            kv_cache_used=gauges.get("kv_cache_usage_perc", -1.0),
        )
    except (ValueError, OverflowError):
        return EngineHealth(is_healthy=True, detail="its /metrics page is not vLLM's")


def parse_models(page: bytes, url: str) -> tuple[EngineModel, ...]:
    """The models that an engine's `/v1/models` page lists. Raises EngineError."""
    try:
        cards = msgspec.json.decode(page, type=_ModelList).data
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise EngineError(
            f"{url}/v1/models is no list of models: {error}.", hint="Is this vLLM's OpenAI server?"
        ) from None
    return tuple(EngineModel(name=card.id, context_tokens=card.max_model_len or 0) for card in cards)
