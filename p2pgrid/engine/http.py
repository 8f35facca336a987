"""An engine at a URL: `http://host:port`, or `unix:/path` for one on this machine.

Requests and answers pass as the bytes they are. vLLM is asked for what is free to ask: `/health`, `/v1/models`
and `/metrics`; peers reach the two endpoints of `base.ENDPOINTS` and nothing else.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Final
from urllib.parse import urlsplit

import aiohttp
import msgspec

from p2pgrid.engine.base import AnswerMetrics, EngineHealth, EngineModel, check_request
from p2pgrid.errors import EngineError, UsageError

_MAX_PAGE_BYTES: Final = 4 * 2**20
_POLL_S: Final = 0.2
_GAUGE: Final = re.compile(
    r"^vllm:(num_requests_running|num_requests_waiting|kv_cache_usage_perc)(?:\{[^\n]*\})? ([0-9.e+-]+)$", re.MULTILINE
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """How long and how much. An order's own deadline comes on top, and is the provider's to hold."""

    connect_timeout_s: float = 5.0
    silence_timeout_s: float = 300.0
    """Longest wait for the next bytes, the first included: a full queue may hold a request back."""
    page_timeout_s: float = 5.0
    """For the engine's own small pages."""
    max_answer_bytes: int = 256 * 2**20


class _ModelCard(msgspec.Struct):
    id: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    max_model_len: Annotated[int, msgspec.Meta(ge=0)] | None = None


class _ModelList(msgspec.Struct):
    data: Annotated[list[_ModelCard], msgspec.Meta(max_length=1024)]


class HttpAnswer:
    """One answer over HTTP (see `base.EngineAnswer`)."""

    def __init__(self, response: aiohttp.ClientResponse, limits: EngineLimits, where: str, started: float) -> None:
        self._response, self._limits, self._where, self._started = response, limits, where, started
        self.metrics: Final = AnswerMetrics()

    @property
    def status(self) -> int:
        return self._response.status

    @property
    def content_type(self) -> str:
        return self._response.headers.get("Content-Type", "")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        metrics = self.metrics
        try:
            async for data in self._response.content.iter_any():
                metrics.last_byte_s = time.monotonic() - self._started
                if metrics.first_byte_s is None:
                    metrics.first_byte_s = metrics.last_byte_s
                metrics.received_bytes += len(data)
                if metrics.received_bytes > self._limits.max_answer_bytes:
                    raise EngineError(
                        f"the engine at {self._where} sent over {self._limits.max_answer_bytes} bytes in one answer.",
                        hint="Lower max_tokens or logprobs in what is offered.",
                    )
                yield data
        except TimeoutError:
            raise EngineError(
                f"the engine at {self._where} fell silent for {self._limits.silence_timeout_s:.0f} s in an answer.",
                hint="It hangs or is overloaded: look at its log.",
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            raise EngineError(
                f"the engine at {self._where} broke off an answer: {_reason(error)}.", hint="Look at its log."
            ) from None
        finally:
            # Read to the end, this is a no-op; left early, it closes the connection, and vLLM aborts.
            self._response.close()

    async def abort(self) -> None:
        self._response.close()


class HttpEngine:
    """An engine that someone else runs (see `base.Engine`). Use it on one event loop, and `aclose` it.

    Raises UsageError at once for a URL that is none. `api_key` goes out as a bearer token.
    """

    def __init__(self, url: str, *, limits: EngineLimits | None = None, api_key: str | None = None) -> None:
        self.url: Final = url
        self.limits: Final = limits or EngineLimits()
        self._base, self._socket_path = _parse_url(url)
        self._api_key = api_key
        self._models: tuple[EngineModel, ...] = ()
        self._session: aiohttp.ClientSession | None = None

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

    async def request(self, endpoint: str, body: bytes, request_id: str) -> HttpAnswer:
        check_request(endpoint, request_id)
        started = time.monotonic()
        headers = {"Content-Type": "application/json", "X-Request-Id": request_id, "Accept-Encoding": "identity"}
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=self.limits.connect_timeout_s, sock_read=self.limits.silence_timeout_s
        )
        try:
            response = await self._open().post(
                self._base + endpoint, data=body, headers=headers, timeout=timeout, allow_redirects=False
            )
        except TimeoutError:
            raise EngineError(
                f"the engine at {self.url} did not begin to answer in {self.limits.silence_timeout_s:.0f} s.",
                hint="It hangs or is overloaded: look at its log and at `vllm:num_requests_waiting`.",
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            raise self._away(error) from None
        return HttpAnswer(response, self.limits, self.url, started)

    async def health(self) -> EngineHealth:
        try:
            await self._page("/health")
            return parse_health(await self._page("/metrics"))
        except EngineError as error:
            return EngineHealth(is_healthy=False, detail=error.message)

    async def aclose(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _page(self, path: str) -> bytes:
        """GET one of the engine's own small pages, or EngineError."""
        timeout = aiohttp.ClientTimeout(total=self.limits.page_timeout_s)
        try:
            async with self._open().get(self._base + path, timeout=timeout, allow_redirects=False) as response:
                page = await response.content.read(_MAX_PAGE_BYTES)
                while len(page) < _MAX_PAGE_BYTES and (more := await response.content.read(_MAX_PAGE_BYTES)):
                    page += more
                if response.status != 200:
                    raise EngineError(f"the engine at {self.url} answered {path} with HTTP {response.status}.")
                return page
        except TimeoutError:
            raise EngineError(f"the engine at {self.url} did not answer {path} in time.") from None
        except (aiohttp.ClientError, OSError) as error:
            raise self._away(error) from None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            # vLLM drops a connection after 5 s without a request: one that is used at that instant is lost.
            idle_s = 3.0
            connector: aiohttp.BaseConnector = (
                aiohttp.UnixConnector(self._socket_path, limit=0, keepalive_timeout=idle_s)
                if self._socket_path
                else aiohttp.TCPConnector(limit=0, keepalive_timeout=idle_s)
            )
            headers = {"Authorization": f"Bearer {self._api_key}"} if self._api_key else None
            # Bytes pass as they are: nothing is unpacked, no cookie is kept, no proxy of the environment is asked.
            self._session = aiohttp.ClientSession(
                connector=connector, headers=headers, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
            )
        return self._session

    def _away(self, error: Exception) -> EngineError:
        return EngineError(
            f"the engine at {self.url} cannot be reached: {_reason(error)}.",
            hint="Start it, or mend the engine's URL in the configuration.",
        )


def _parse_url(url: str) -> tuple[str, str]:
    """(base URL, socket path or "") of what a person wrote."""
    if url.startswith("unix:"):
        path = url.removeprefix("unix:").replace("//", "/", 1) if url.startswith("unix://") else url[len("unix:") :]
        if not path.startswith("/"):
            raise UsageError(f"the engine's URL {url!r} names no absolute path.", hint="Write unix:/path/to/socket.")
        return "http://engine", path
    try:
        parts = urlsplit(url)
        well_formed = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        well_formed = False
    if not well_formed or parts.query or parts.fragment:
        raise UsageError(f"{url!r} is no engine's URL.", hint="Write http://host:port or unix:/path/to/socket.")
    return url.rstrip("/").removesuffix("/v1"), ""


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


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
