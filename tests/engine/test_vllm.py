"""What the grid rests on, held against a real vLLM: counts, merged answers, request ids, aborts."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from p2pgrid.engine.base import CHAT_COMPLETIONS
from p2pgrid.engine.http import HttpEngine
from p2pgrid.proto.counting import TokenCounter
from p2pgrid.proto.sse import EventSplitter
from tests.engine.asking import ask, body

pytestmark = [pytest.mark.vllm, pytest.mark.xdist_group("vllm"), pytest.mark.timeout(400)]

TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "parameters": {"type": "object", "properties": {"a": {"enum": ["x"]}}, "required": ["a"]},
    },
}

CALLS = "".join(
    f'<tool_call>\n{{"name": "f", "arguments": {{"a": "{value}"}}}}\n</tool_call>\n' for value in ("x", "y")
)
"""What a random model would never say by itself; a grammar leaves it no choice."""


@pytest.fixture
async def engine(vllm_url: str) -> AsyncIterator[HttpEngine]:
    engine = HttpEngine(vllm_url)
    await engine.ready(30)
    yield engine
    await engine.aclose()


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


KINDS: dict[str, dict[str, Any]] = {
    "chat": {},
    "greedy": {"temperature": 0},
    "one token": {"max_tokens": 1},
    "two choices": {"n": 2},
    "log-probabilities": {"logprobs": True, "top_logprobs": 2},
    "stop": {"stop": ["a", "e"], "temperature": 0},
    "stop kept": {"stop": ["a"], "include_stop_str_in_output": True},
    "hot": {"temperature": 1.8, "seed": 2, "max_tokens": 60},
    "conversation": {"messages": [{"role": "system", "content": "S"}, *user("Hi"), *user("ü🎉")]},
    "parts": {"messages": user([{"type": "text", "text": "one"}, {"type": "text", "text": "two"}])},
    "long prompt": {"messages": user("word " * 300)},
    "tools, forced": {"tools": [TOOL], "tool_choice": "required", "max_tokens": 64, "temperature": 0},
    "tools, free": {"tools": [TOOL], "tool_choice": "auto"},
    "json": {"response_format": {"type": "json_object"}, "max_tokens": 30},
    "beams": {"use_beam_search": True, "n": 2, "temperature": 0},
    "completion": {"prompt": "once upon"},
    "completion of ids": {"prompt": [5, 6, 7]},
    "two prompts by two": {"prompt": ["once upon", "a time there"], "n": 2},
    "the same prompt twice": {"prompt": ["same", "same"]},
    "echo": {"prompt": "once upon", "echo": True},
    "completion, log-probabilities": {"prompt": "once", "logprobs": 1, "stop": ["o"]},
    "several and one long": {"prompt": ["once", "word " * 400]},
}


@pytest.mark.parametrize("kind", KINDS)
async def test_ids_are_what_usage_says(engine: HttpEngine, kind: str) -> None:
    told = await ask(engine, body(**({"model": "tiny", "max_tokens": 12} | KINDS[kind])))
    counter = told.counter
    assert told.status == 200, told.body
    assert counter.contradiction == "" and counter.is_whole and counter.prompt_ids_seen
    assert counter.usage is not None and counter.usage.prompt_tokens == counter.prompt_tokens > 0
    assert counter.usage.completion_tokens == counter.output_tokens > 0


def without_empty(value: Any) -> Any:
    """The object less what is null or merely names this one answer."""
    if isinstance(value, dict):
        names = ("id", "created", "created_cache_tokens", "cached_tokens")
        return {k: without_empty(v) for k, v in value.items() if v is not None and k not in names}
    return [without_empty(item) for item in value] if isinstance(value, list) else value


SEEDED: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "two choices with log-probabilities": {"n": 2, "seed": 4, "logprobs": True, "top_logprobs": 2},
    "stop": {"temperature": 0, "stop": ["a"], "max_tokens": 30},
    "tools": {
        "tools": [TOOL],
        "tool_choice": "auto",
        "structured_outputs": {"choice": [CALLS]},
        "temperature": 0,
        "max_tokens": 150,
    },
    "completion": {"prompt": "once upon", "seed": 3, "logprobs": 2},
    "two prompts by two": {"prompt": ["once upon", "a time"], "n": 2, "seed": 5, "logprobs": 0},
    "echo": {"prompt": "once upon", "echo": True, "temperature": 0},
}


@pytest.mark.parametrize("kind", SEEDED)
async def test_a_merged_stream_is_vllms_own_unstreamed_answer(engine: HttpEngine, kind: str) -> None:
    fields = {"model": "tiny", "max_tokens": 12} | SEEDED[kind]
    streamed = (await ask(engine, body(**fields))).answer()
    unstreamed = json.loads((await ask(engine, body(stream=False, **fields))).body)
    assert without_empty(streamed) == without_empty(unstreamed)
    if kind == "tools":
        assert [call["function"] for call in streamed["choices"][0]["message"]["tool_calls"]] == [
            {"name": "f", "arguments": '{"a": "x"}'},
            {"name": "f", "arguments": '{"a": "y"}'},
        ]
        assert streamed["choices"][0]["finish_reason"] == "tool_calls"


async def test_the_request_id_becomes_the_answers(engine: HttpEngine) -> None:
    told = await ask(engine, body(model="tiny", max_tokens=1), request_id="order-0a1b")
    assert told.counter.response_id == "chatcmpl-order-0a1b"
    told = await ask(engine, body(model="tiny", max_tokens=1, prompt="x"), request_id="order-0a1c")
    assert told.counter.response_id == "cmpl-order-0a1c"


async def test_a_repeated_prompt_is_cached(engine: HttpEngine) -> None:
    request = body(model="tiny", max_tokens=1, messages=user("a tale of caching " * 60))
    cached = [(await ask(engine, request)).counter.cached_tokens for _ in range(2)]
    assert cached[0] < cached[1] and cached[1] % 128 == 0


async def test_leaving_aborts_within_a_second(engine: HttpEngine) -> None:
    answer = await engine.request(CHAT_COMPLETIONS, body(model="tiny", max_tokens=1800, ignore_eos=True), "leaver")
    counter, splitter = TokenCounter(), EventSplitter()
    async for piece in answer:
        for event in splitter.feed(piece):
            counter.feed(event)
        if counter.output_tokens >= 10:
            break
    await answer.abort()
    started = time.monotonic()
    async with asyncio.timeout(1):
        while (await engine.health()).running:  # noqa: ASYNC110 - the engine tells nobody
            await asyncio.sleep(0.01)
    print(f"the engine was free after {time.monotonic() - started:.3f} s")
    assert counter.output_tokens >= 10 and not counter.contradiction and counter.usage is None


async def test_a_full_queue_answers_with_an_error(engine: HttpEngine) -> None:
    request = body(model="tiny", max_tokens=400, ignore_eos=True)
    told = await asyncio.gather(*(ask(engine, request, request_id=f"many-{i}") for i in range(24)))
    refused = [one for one in told if not one.counter.is_whole]
    assert refused and len(refused) < 24
    for one in refused:
        assert one.counter.output_tokens == 0
        assert one.counter.error is not None or one.status == 503
    print({(one.status, one.counter.error and one.counter.error.code) for one in refused})


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"model": "none"}, 404),
        ({"max_tokens": 5000}, 400),
        ({"temperature": "hot"}, 400),
        ({"n": 2, "temperature": 0}, 400),
    ],
)
async def test_what_it_refuses(engine: HttpEngine, fields: dict[str, Any], status: int) -> None:
    told = await ask(engine, body(**({"model": "tiny"} | fields)))
    assert told.status == status and json.loads(told.body)["error"]["message"]


async def test_a_request_that_hides_its_ids_is_flagged(engine: HttpEngine) -> None:
    told = await ask(engine, body(model="tiny", max_tokens=3, include_reasoning=False))
    assert "its ids are 0" in told.counter.contradiction
