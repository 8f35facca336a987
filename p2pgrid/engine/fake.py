"""A fake vLLM for tests: the same HTTP interface and the same bytes, with faults on demand.

    python -m p2pgrid.engine.fake --uds /tmp/e.sock --model fake      (prints {"url": ...} when it listens)

Chunks have the shape of vLLM 0.32's: `prompt_token_ids` first, `token_ids` and usage on every chunk,
`cached_tokens` in the last usage. A fault is chosen by the model's name after a plus sign (`fake+dies`) or by a
field of the request that vLLM would ignore:

    "fake": {"fault": "dies", "after": 3, "tokens": 40, "pace_ms": 10}

`"gather": 64` holds an answer back until so many requests are at the fake at once.

Faults: `slow` (50 ms a token unless told), `dies` (connection cut after `after` tokens), `error` (an SSE error inside
HTTP 200), `empty` (no token), `wrong-usage` (claims twice the output), `wrong-prompt` (claims a longer prompt),
`no-ids`, `no-usage`, `hang` (silent after `after` tokens), `hang-head` (silent before the head), `endless` (past
max_tokens, for ever), `garbage` (bytes that are no chunk), `busy` (HTTP 503), `huge` (an event without an end).

`GET /fake/state` tells {"running", "completed", "aborted", "request_ids"}.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click
import msgspec
from aiohttp import web

from p2pgrid.engine.base import CHAT_COMPLETIONS, COMPLETIONS

FAULTS: Final = frozenset(
    {"slow", "dies", "error", "empty", "wrong-usage", "wrong-prompt", "no-ids", "no-usage"}
    | {"hang", "hang-head", "endless", "garbage", "busy", "huge"}
)
_CACHE_BLOCK: Final = 16
_WORDS: Final = ("the", "grid", "counts", "every", "token", "it", "makes", "and", "bills", "no", "other")


class _Control(msgspec.Struct):
    """What a request asks of the fake, beside what it asks of vLLM."""

    fault: str = ""
    after: int = 3
    tokens: int | None = None
    pace_ms: float | None = None
    gather: int = 0


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class _Request(msgspec.Struct):
    """The fields of a request that the fake honours."""

    model: str
    messages: list[dict[str, Any]] = []
    prompt: str | list[str] = ""
    n: int = 1
    stream: bool = False
    stream_options: _StreamOptions | None = None
    return_token_ids: bool = False
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    fake: _Control = msgspec.field(default_factory=_Control)


@dataclass(slots=True)
class FakeState:
    """What the fake has been through; the same as `GET /fake/state`."""

    running: int = 0
    completed: int = 0
    aborted: int = 0
    request_ids: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class FakeVllm:
    """The server's application. Models are any names; each also answers as `name+fault`."""

    models: tuple[str, ...] = ("fake",)
    context_tokens: int = 4096
    pace_ms: float = 0.0
    state: FakeState = field(default_factory=FakeState)
    _arrived: asyncio.Condition = field(default_factory=asyncio.Condition)
    _most_at_once: int = 0
    _seen_prefixes: set[int] = field(default_factory=set)

    def application(self) -> web.Application:
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._list_models)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/fake/state", self._state)
        app.router.add_post(CHAT_COMPLETIONS, self._complete)
        app.router.add_post(COMPLETIONS, self._complete)
        return app

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _state(self, _: web.Request) -> web.Response:
        return _json(self.state)

    async def _list_models(self, _: web.Request) -> web.Response:
        return _json(
            {
                "object": "list",
                "data": [
                    {"id": name, "object": "model", "owned_by": "vllm", "max_model_len": self.context_tokens}
                    for name in self.models
                ],
            }
        )

    async def _metrics(self, _: web.Request) -> web.Response:
        label = f'{{engine="0",model_name="{self.models[0]}"}}'
        return web.Response(
            text=f"vllm:num_requests_running{label} {self.state.running}.0\n"
            f"vllm:num_requests_waiting{label} 0.0\nvllm:kv_cache_usage_perc{label} 0.0\n"
        )

    async def _complete(self, http: web.Request) -> web.StreamResponse:
        try:
            request = msgspec.json.decode(await http.read(), type=_Request)
        except msgspec.MsgspecError as error:
            return _error(400, f"1 validation error: {error}", "Bad Request")
        name, _, fault = request.model.partition("+")
        fault = request.fake.fault or fault
        if name not in self.models or (fault and fault not in FAULTS):
            return _error(404, f"The model `{request.model}` does not exist.", "NotFoundError")
        limit = request.max_completion_tokens or request.max_tokens or self.context_tokens
        if limit > self.context_tokens:
            return _error(
                400,
                f"max_tokens={limit} cannot be greater than max_model_len={self.context_tokens}.",
                "BadRequestError",
            )
        if fault == "busy":
            return _error(503, "the queue is full.", "ServiceUnavailableError")
        request_id = http.headers.get("X-Request-Id", f"{time.time_ns():x}")
        self.state.request_ids.append(request_id)
        answer = _Answer(self, request, fault, http.path == CHAT_COMPLETIONS, request_id, limit)
        self.state.running += 1
        try:
            await self._gather(request.fake.gather)
            response = await (answer.stream(http) if request.stream else answer.whole())
        except asyncio.CancelledError:
            self.state.aborted += 1
            raise
        except ConnectionError:  # the client left, or the connection was cut on demand: there is nobody to tell
            self.state.aborted += 1
            return answer.response
        finally:
            self.state.running -= 1
        self.state.completed += 1
        return response

    async def _gather(self, wanted: int) -> None:
        async with self._arrived:
            self._most_at_once = max(self._most_at_once, self.state.running)
            self._arrived.notify_all()
            await self._arrived.wait_for(lambda: self._most_at_once >= wanted)

    def cached_tokens(self, prompt_ids: list[int]) -> int:
        """Tokens in whole blocks that begin an earlier prompt too: vLLM's prefix cache (never the last token)."""
        ends = range(_CACHE_BLOCK, len(prompt_ids), _CACHE_BLOCK)
        known = max((end for end in ends if hash(tuple(prompt_ids[:end])) in self._seen_prefixes), default=0)
        self._seen_prefixes.update(hash(tuple(prompt_ids[:end])) for end in ends)
        return known


class _Answer:
    """One answer: its tokens and the events that carry them."""

    def __init__(
        self, server: FakeVllm, request: _Request, fault: str, is_chat: bool, request_id: str, limit: int
    ) -> None:
        self._request, self._fault, self._is_chat = request, fault, is_chat
        text = " ".join(str(m.get("role", "")) + " : " + str(m.get("content", "")) for m in request.messages)
        prompts = [text + " assistant :"] if is_chat else _as_list(request.prompt)
        self._prompts = [[sum(word.encode()) % 1000 + 1000 for word in prompt.split()] for prompt in prompts]
        self._cached = server.cached_tokens(self._prompts[0]) if self._prompts[0] else 0
        wanted = request.fake.tokens if request.fake.tokens is not None else min(limit, 16)
        self._count = 0 if fault == "empty" else min(wanted, limit)
        self._finish = "length" if wanted >= limit and fault != "empty" else "stop"
        pace_ms = request.fake.pace_ms
        self._pace_s = (pace_ms if pace_ms is not None else (50 if fault == "slow" else server.pace_ms)) / 1000
        kind = "chat.completion" if is_chat else "text_completion"
        self._head = {
            "id": ("chatcmpl-" if is_chat else "cmpl-") + request_id,
            "object": kind + (".chunk" if is_chat and request.stream else ""),
            "created": int(time.time()),
            "model": request.model,
        }
        self._choices = range(max(1, request.n) * len(self._prompts))
        self._made = 0
        self.response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})

    async def whole(self) -> web.Response:
        """The unstreamed answer."""
        await asyncio.sleep(self._pace_s * self._count)
        if self._fault in ("hang", "hang-head", "endless"):
            await asyncio.Event().wait()
        if self._fault == "error":
            return _error(500, "Internal server error", "InternalServerError")
        text = "".join(_token(i)[1] for i in range(self._count))
        body = {"message": {"role": "assistant", "content": text}} if self._is_chat else {"text": text}
        ids = {"token_ids": [_token(i)[0] for i in range(self._count)]} if self._request.return_token_ids else {}
        choices = [{"index": i, **body, "logprobs": None, "finish_reason": self._finish, **ids} for i in self._choices]
        self._made = self._count * len(self._choices)
        return _json({**self._head, "choices": choices, "usage": self._final_usage()})

    async def stream(self, http: web.Request) -> web.StreamResponse:
        """The streamed answer, or its fault."""
        if self._fault == "hang-head":
            await asyncio.Event().wait()
        await self.response.prepare(http)
        async for event in self._events():
            if event is None:
                if http.transport is not None:
                    http.transport.abort()
                raise ConnectionResetError("cut on demand")
            await self.response.write(event)
        return self.response

    async def _events(self) -> AsyncIterator[bytes | None]:
        """The events; None where the connection is to be cut."""
        if self._is_chat:
            for index in self._choices:
                first: dict[str, Any] = {"index": index, "delta": {"role": "assistant", "content": ""}}
                yield self._event([first | {"logprobs": None, "finish_reason": None}], index, 0, with_prompt=True)
        steps = itertools.count() if self._fault == "endless" else range(self._count)
        for step in steps:
            if step == self._request.fake.after:
                if self._fault == "dies":
                    yield None
                if self._fault == "hang":
                    await asyncio.Event().wait()
                if self._fault in ("error", "garbage", "huge"):
                    yield self._broken()
                    break
            await asyncio.sleep(self._pace_s)
            for index in self._choices:
                yield self._step(index, step)
        else:
            if self._count == 0:
                for index in self._choices:
                    yield self._step(index, -1)
            if self._request.stream_options and self._request.stream_options.include_usage:
                yield _event({**self._head, "choices": [], "usage": self._final_usage()})
        yield b"data: [DONE]\n\n"

    def _step(self, index: int, step: int) -> bytes:
        """The chunk with one token of one choice; step -1 is the end of an empty answer."""
        token_id, text = _token(step) if step >= 0 else (0, "")
        is_last = step == self._count - 1 and self._fault != "endless"
        choice: dict[str, Any] = {"index": index, **({"delta": {"content": text}} if self._is_chat else {"text": text})}
        choice |= {"logprobs": None, "finish_reason": self._finish if is_last else None}
        if is_last or not self._is_chat:
            choice["stop_reason"] = None
        if self._request.return_token_ids and self._fault != "no-ids":
            choice["token_ids"] = [token_id] if step >= 0 else []
        self._made += step >= 0
        return self._event([choice], index, step + 1, with_prompt=not self._is_chat and step <= 0)

    def _event(self, choices: list[dict[str, Any]], index: int, made: int, *, with_prompt: bool) -> bytes:
        prompt = self._prompts[index // max(1, self._request.n)]
        chunk: dict[str, Any] = {**self._head, "choices": choices}
        options = self._request.stream_options
        if options and options.include_usage and options.continuous_usage_stats and self._fault != "no-usage":
            chunk["usage"] = self._usage(len(prompt), made)
        if with_prompt and self._request.return_token_ids and self._fault != "no-ids":
            (chunk if self._is_chat else choices[0])["prompt_token_ids"] = prompt
        return _event(chunk)

    def _usage(self, prompt: int, made: int) -> dict[str, Any]:
        prompt += 7 if self._fault == "wrong-prompt" else 0
        made *= 2 if self._fault == "wrong-usage" else 1
        return {"prompt_tokens": prompt, "total_tokens": prompt + made, "completion_tokens": made}

    def _final_usage(self) -> dict[str, Any] | None:
        if self._fault == "no-usage":
            return None
        details = {"cached_tokens": self._cached, "created_cache_tokens": 0}
        return self._usage(sum(map(len, self._prompts)), self._made) | {"prompt_tokens_details": details}

    def _broken(self) -> bytes:
        if self._fault == "garbage":
            return b'data: {"choices": [{"index": "x"\n\n'
        if self._fault == "huge":
            return b"data: " + b"x" * (16 * 2**20)
        error = {"message": "Internal server error", "type": "InternalServerError", "param": None, "code": 500}
        return _event({"error": error})


def _token(step: int) -> tuple[int, str]:
    """The id and text of the token at `step` of every answer."""
    word = step % len(_WORDS)
    return 100 + word, _WORDS[word] + " "


def _as_list(prompt: str | list[str]) -> list[str]:
    return [prompt] if isinstance(prompt, str) else prompt or [""]


def _event(value: object) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


def _error(status: int, message: str, kind: str) -> web.Response:
    return _json({"error": {"message": message, "type": kind, "param": None, "code": status}}, status)


@contextlib.asynccontextmanager
async def serve_fake(
    fake: FakeVllm, *, uds: Path | None = None, port: int = 0, drain_timeout_s: float = 0.0
) -> AsyncIterator[str]:
    """Serve `fake` on a unix socket or a port of 127.0.0.1 (0: any free one); gives the URL an engine attaches to.

    At the end, what runs has `drain_timeout_s` to finish.
    """
    # Without handler_cancellation a handler would write on to a client that has left, as vLLM never does.
    runner = web.AppRunner(
        fake.application(), handler_cancellation=True, access_log=None, shutdown_timeout=drain_timeout_s
    )
    await runner.setup()
    try:
        if uds is not None:
            await web.UnixSite(runner, str(uds)).start()
            yield f"unix:{uds}"
        else:
            await web.TCPSite(runner, "127.0.0.1", port).start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def _main(fake: FakeVllm, uds: Path | None, port: int, drain_timeout_s: float) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with serve_fake(fake, uds=uds, port=port, drain_timeout_s=drain_timeout_s) as url:
        sys.stdout.write(msgspec.json.encode({"url": url}).decode() + "\n")
        sys.stdout.flush()
        await stop.wait()


@click.command()
@click.option("--uds", type=click.Path(path_type=Path), help="Listen on this unix socket.")
@click.option("--port", type=int, default=0, help="Listen on this port of 127.0.0.1 (0: any free one).")
@click.option("--model", "models", multiple=True, default=("fake",), show_default=True, help="A model's name.")
@click.option("--context", "context_tokens", type=int, default=4096, show_default=True, help="Context in tokens.")
@click.option("--pace-ms", type=float, default=0.0, show_default=True, help="Time a token takes.")
@click.option("--drain-timeout-s", type=float, default=0.0, show_default=True, help="Time to finish at SIGTERM.")
def main(
    uds: Path | None, port: int, models: tuple[str, ...], context_tokens: int, pace_ms: float, drain_timeout_s: float
) -> None:
    """Serve a fake vLLM until told to stop (SIGTERM)."""
    fake = FakeVllm(models=models, context_tokens=context_tokens, pace_ms=pace_ms)
    asyncio.run(_main(fake, uds, port, drain_timeout_s))


if __name__ == "__main__":
    main()
