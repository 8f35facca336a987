"""Whether an engine's answers can be counted by both sides. One that cannot is not sold."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec

from p2pgrid.engine.base import CHAT_COMPLETIONS, COMPLETIONS, Engine
from p2pgrid.errors import EngineError, ProtocolViolation
from p2pgrid.proto.counting import TokenCounter
from p2pgrid.proto.request import metered_body
from p2pgrid.proto.sse import EventSplitter

PROBE_TIMEOUT_S: Final = 120.0
_PROBES: Final[dict[str, dict[str, Any]]] = {
    CHAT_COMPLETIONS: {"messages": [{"role": "user", "content": "Say a few words."}]},
    COMPLETIONS: {"prompt": "Say a few words."},
}
_MAX_ERROR_BYTES: Final = 2000


async def metered_endpoints(engine: Engine, model: str) -> tuple[str, ...]:
    """The endpoints on which `engine` answers for `model` with token ids and usage, found by asking each.

    An endpoint that the model does not have (a base model has no chat template) is left out. Raises EngineError if
    none is left, or if an answer cannot be counted.
    """
    found, refusals = [], []
    for endpoint in _PROBES:
        refusal = await _probe(engine, endpoint, model)
        if refusal is None:
            found.append(endpoint)
        else:
            refusals.append(f"{endpoint}: {refusal}")
    if not found:
        raise EngineError(
            f"the engine answers no request for {model!r}: {'; '.join(refusals)}.",
            hint="Check the model's name against the engine's /v1/models.",
        )
    return tuple(found)


async def _probe(engine: Engine, endpoint: str, model: str) -> str | None:
    """None if it was answered and counted, else why the engine refused it."""
    body = metered_body({"model": model, "max_tokens": 4, **_PROBES[endpoint]})
    counter, splitter = TokenCounter(), EventSplitter()
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            answer = await engine.request(endpoint, body, "p2pgrid-check")
            try:
                if answer.status in (400, 404):
                    return _error_text(b"".join([data async for data in answer]), answer.status)
                if answer.status != 200:
                    raise EngineError(f"the engine answered HTTP {answer.status} to a first request for {model!r}.")
                async for data in answer:
                    for event in splitter.feed(data):
                        counter.feed(event)
            finally:
                await answer.abort()
    except TimeoutError:
        raise EngineError(
            f"the engine did not answer a first request for {model!r} in {PROBE_TIMEOUT_S:g} s."
        ) from None
    except ProtocolViolation as error:
        raise _unmetered(model, error.message) from None
    missing = _what_is_missing(counter)
    if missing:
        raise _unmetered(model, missing)
    return None


def _what_is_missing(counter: TokenCounter) -> str:
    if counter.error is not None:
        return f"it failed: {counter.error.message}"
    if not counter.prompt_ids_seen:
        return "its answers carry no prompt token ids (return_token_ids)."
    if counter.output_tokens == 0:
        return "its answers carry no token ids (return_token_ids)."
    if counter.usage is None:
        return "its answers carry no usage (stream_options.include_usage)."
    return counter.contradiction if not counter.is_whole else ""


def _unmetered(model: str, why: str) -> EngineError:
    return EngineError(
        f"the answers of the engine for {model!r} cannot be counted, so it is not offered: {why}",
        hint="Serve it with vLLM's OpenAI server (0.10 or newer), without a proxy that drops fields.",
    )


def _error_text(page: bytes, status: int) -> str:
    try:
        body = msgspec.json.decode(page[:_MAX_ERROR_BYTES])
        return str(body["error"]["message"])[:200]
    except (msgspec.MsgspecError, UnicodeDecodeError, LookupError, TypeError):
        return f"HTTP {status}"
