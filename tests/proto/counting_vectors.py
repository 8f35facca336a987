"""What stands in tests/vectors/counting.json: answers as engines stream them, and what both sides make of them."""

from __future__ import annotations

import json
from typing import Any

from p2pgrid.errors import ProtocolViolation
from p2pgrid.proto.counting import TokenCounter
from p2pgrid.proto.sse import EventSplitter


def counting_vectors() -> list[dict[str, Any]]:
    """Each stream with its counts; `is_stream` is false for what a client refuses as a violation."""
    return [_counted(name, stream, n) for name, n, stream in _STREAMS]


def _event(**chunk: Any) -> str:
    return f"data: {json.dumps(chunk, separators=(',', ':'))}\n\n"


def _choice(index: int, ids: int, **more: Any) -> dict[str, Any]:
    return {"index": index, "token_ids": list(range(ids)), **more}


def _usage(prompt: int, completion: int, cached: int | None = None) -> dict[str, Any]:
    details = {} if cached is None else {"prompt_tokens_details": {"cached_tokens": cached}}
    return {"prompt_tokens": prompt, "completion_tokens": completion, **details}


_PROMPT = [11, 12, 13]
_FIRST = _event(id="c1", prompt_token_ids=_PROMPT, choices=[_choice(0, 0)])
_LAST = _event(id="c1", choices=[], usage=_usage(3, 5, 1))
_DONE = "data: [DONE]\n\n"
_WHOLE = (
    _FIRST + _event(id="c1", choices=[_choice(0, 3)]) + _event(id="c1", choices=[_choice(0, 2, finish_reason="stop")])
)
_PIECES = _WHOLE.replace('"choices":', '\ndata: "choices":\ndata:').replace("data: {", "event: x\ndata: {", 1)

_STREAMS: tuple[tuple[str, int, str], ...] = (
    ("a whole answer", 1, _WHOLE + _LAST + _DONE),
    ("broken off", 1, _WHOLE[: len(_WHOLE) // 2]),
    ("CRLF, comments, data in pieces", 1, ": ping\r\n\r\n" + _PIECES.replace("\n", "\r\n") + _DONE),
    ("no ids at all", 1, _event(id="c1", choices=[{"index": 0}]) + _event(choices=[], usage=_usage(7, 0, 9)) + _DONE),
    (
        "two choices of one prompt",
        2,
        _FIRST
        + _event(id="c1", prompt_token_ids=_PROMPT, choices=[_choice(1, 2, finish_reason="length")])
        + _event(id="c1", choices=[_choice(0, 3, finish_reason="stop")])
        + _LAST
        + _DONE,
    ),
    (
        "two prompts",
        1,
        _event(choices=[_choice(0, 1, prompt_token_ids=[1])])
        + _event(choices=[_choice(1, 4, prompt_token_ids=[1, 2])])
        + _LAST
        + _DONE,
    ),
    ("usage beside a choice", 1, _FIRST + _event(choices=[_choice(0, 2)], usage=_usage(3, 2))),
    ("usage beside a choice, wrong", 1, _FIRST + _event(choices=[_choice(0, 2)], usage=_usage(3, 3))),
    ("final usage, wrong", 1, _WHOLE + _event(id="c1", choices=[], usage=_usage(3, 6)) + _DONE),
    ("final prompt, wrong", 1, _WHOLE + _event(id="c1", choices=[], usage=_usage(4, 5)) + _DONE),
    ("more cached than the prompt", 1, _WHOLE + _event(id="c1", choices=[], usage=_usage(3, 5, 4)) + _DONE),
    ("another id", 1, _FIRST + _event(id="c2", choices=[_choice(0, 1)])),
    ("two prompts where there is one", 1, _FIRST + _event(prompt_token_ids=[1], choices=[_choice(0, 1)])),
    ("on after the end of a choice", 1, _WHOLE + _event(id="c1", choices=[_choice(0, 1)])),
    ("on after the end", 1, _WHOLE + _LAST + _DONE + _LAST),
    ("no chunk", 1, _FIRST + "data: {\n\n"),
)


def _counted(name: str, stream: str, n: int) -> dict[str, Any]:
    counter, splitter, is_stream = TokenCounter(n), EventSplitter(), True
    try:
        for event in splitter.feed(stream.encode()):
            counter.feed(event)
    except ProtocolViolation:
        is_stream = False
    return {
        "case": name,
        "n": n,
        "stream": stream,
        "is_stream": is_stream,
        "prompt_tokens": counter.prompt_tokens,
        "cached_tokens": min(counter.cached_tokens, counter.prompt_tokens),
        "output_tokens": counter.output_tokens,
        "finish_reason": counter.finish_reason,
        "contradicts_itself": bool(counter.contradiction),
        "done": counter.done,
    }
