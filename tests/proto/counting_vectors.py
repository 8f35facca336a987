"""What stands in tests/vectors/counting.json: answers as engines stream them, and what both sides make of them."""

from __future__ import annotations

import json
from typing import Any

from p2pgrid.errors import ProtocolViolation
from p2pgrid.proto.counting import TokenCounter
from p2pgrid.proto.messages import FINISH_REASON_CHARS
from p2pgrid.proto.sse import EventSplitter
from tests.proto.squeezed import squeezed_text


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

_NULLS: dict[str, Any] = {
    "prompt_token_ids": None,
    "usage": None,
    "error": None,
    "choices": [{"index": 0, "token_ids": None, "prompt_token_ids": None, "finish_reason": None}],
}
_WRONG: tuple[tuple[str, dict[str, Any]], ...] = (
    ("choices null", {"choices": None}),
    ("choices an object", {"choices": {}}),
    ("a choice that is no object", {"choices": [1]}),
    ("index null", {"choices": [{"index": None}]}),
    ("index -1", {"choices": [{"index": -1}]}),
    ("index 1024", {"choices": [{"index": 1024}]}),
    ("index 1.5", {"choices": [{"index": 1.5}]}),
    ("index 0.0", {"choices": [{"index": 0.0}]}),
    ("index as text", {"choices": [{"index": "0"}]}),
    ("ids as text", {"choices": [{"token_ids": ["7"]}]}),
    ("id -1", {"choices": [{"token_ids": [-1]}]}),
    ("id 2^31", {"choices": [{"token_ids": [2**31]}]}),
    ("id true", {"choices": [{"token_ids": [True]}]}),
    ("prompt ids of another type", {"prompt_token_ids": "1"}),
    ("reason of 65 characters", {"choices": [{"finish_reason": "a" * 65}]}),
    ("reason a number", {"choices": [{"finish_reason": 1}]}),
    ("id of 257 characters", {"id": "a" * 257}),
    ("id null", {"id": None}),
    ("id a number", {"id": 1}),
    ("usage a number", {"usage": 1}),
    ("prompt_tokens null", {"usage": {"prompt_tokens": None}}),
    ("prompt_tokens -1", {"usage": {"prompt_tokens": -1}}),
    ("prompt_tokens 8000001", {"usage": {"prompt_tokens": 8_000_001}}),
    ("completion_tokens as text", {"usage": {"completion_tokens": "1"}}),
    ("cached_tokens -1", {"usage": {"prompt_tokens_details": {"cached_tokens": -1}}}),
    ("prompt_tokens_details a number", {"usage": {"prompt_tokens_details": 1}}),
    ("an error whose type is a number", {"error": {"type": 1}}),
    ("an error that is a text", {"error": "no"}),
)


def _stop(index: int, ids: int = 1, reason: str = "stop") -> dict[str, Any]:
    return _choice(index, ids, finish_reason=reason)


_FOUR = "".join(_event(choices=[_choice(i, 1, prompt_token_ids=[1] * (1 + i // 2))]) for i in range(4))
_TWO_OF_THREE = _event(choices=[_stop(2, 1, "length")]) + _event(choices=[_stop(1)])
_TWO_THEN = _event(choices=[_choice(0, 2)])


def _second(**told: int) -> str:
    return _event(choices=[_choice(1, 3)], usage=told)


def _final(**told: Any) -> str:
    return _event(choices=[], usage=told)


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
    # Lines and events.
    ("one space after the colon is no data, the others are", 1, "data:  [DONE]\n\n"),
    ("white space about JSON", 1, "data:   " + _event(choices=[_choice(0, 2)])[6:-2] + "  \n\n" + _DONE),
    ("a line of another name, and one that begins like data", 1, "datax: {\nid: 7\n" + _FIRST + _DONE),
    ("data without a colon", 1, "data\n\n" + _FIRST),
    ("[DONE] before its blank line", 1, _FIRST + "data: [DONE]\n"),
    ("events without data after the end", 1, _FIRST + _DONE + ": ping\n\n\n\n"),
    ("1057 events of two blank lines: the first of them ends nothing", 1, "\n\n" * 1057),
    ("1058 events of two blank lines", 1, "\n\n" * 1058),
    ("1024 lines of data", 1, "data: {\n" + "data:\n" * 1022 + "data: }\n\n"),
    ("1025 lines of data", 1, "data: {\n" + "data:\n" * 1023 + "data: }\n\n"),
    ("an event of 8 MiB", 1, ": " + "x" * (2**23 - 4) + "\n\n"),
    ("an event of 8 MiB and a byte", 1, ": " + "x" * (2**23 - 3) + "\n\n"),
    ("1074 events of 3 bytes: 64 x 1074 - 3222 is not over 65536", 1, ":\n\n" * 1074),
    ("1075 events of 3 bytes: 64 x 1075 - 3225 is over it", 1, ":\n\n" * 1075),
    ("2000 events of 64 bytes", 1, (": " + "x" * 60 + "\n\n") * 2000),
    # Types.
    ("null in every place where it may be", 1, _event(**_NULLS)),
    ("nothing told of the cache", 1, _FIRST + _final(prompt_tokens=3, prompt_tokens_details=None)),
    ("an index left out is 0", 1, _event(choices=[{"token_ids": [1]}]) + _event(choices=[_choice(0, 1)])),
    *((f"no chunk: {name}", 1, _event(**chunk)) for name, chunk in _WRONG),
    ("no object", 1, "data: [1]\n\n"),
    ("null", 1, "data: null\n\n"),
    ("no UTF-8 in a text that is not read", 1, 'data: {"choices":[{"text":"\\ud800"}]}\n\n'),
    ("a name twice: the last counts", 1, 'data: {"choices":[{"index":0,"token_ids":[1,2]}],"choices":[]}\n\n'),
    ("an id of 256 characters", 1, _event(id="a" * 256, choices=[_choice(0, 1)])),
    ("a reason of 64 characters", 1, _event(choices=[_choice(0, 1, finish_reason="a" * 64)])),
    ("choice 1023", 1, _event(choices=[_choice(1023, 1)])),
    ("ids 0 and 2^31 - 1", 1, _event(choices=[{"index": 0, "token_ids": [0, 2**31 - 1]}])),
    # Counts.
    ("n 2, two prompts", 2, _FOUR),
    (
        "n 2, one prompt of two lengths",
        2,
        _event(choices=[_choice(1, 1, prompt_token_ids=[1])])
        + _event(choices=[_choice(0, 1, prompt_token_ids=[1, 2])]),
    ),
    ("usage beside two choices: not looked at", 2, _event(choices=[_choice(0, 2), _choice(1, 3)], usage=_usage(9, 9))),
    ("usage beside one of two choices: that choice's", 2, _TWO_THEN + _second(prompt_tokens=3, completion_tokens=3)),
    ("usage beside one of two choices: the total", 2, _TWO_THEN + _second(prompt_tokens=3, completion_tokens=5)),
    ("usage beside a choice, another prompt", 1, _FIRST + _event(choices=[_choice(0, 2)], usage=_usage(4, 2))),
    ("usage beside a choice, its prompt not known", 1, _event(choices=[_choice(0, 2)], usage=_usage(4, 2))),
    ("usage without completion_tokens", 1, _FIRST + _TWO_THEN + _final(prompt_tokens=3)),
    ("usage without prompt_tokens", 1, _FIRST + _TWO_THEN + _final(completion_tokens=2)),
    ("two final usages: the last counts", 1, _FIRST + _final(**_usage(3, 0, 1)) + _final(**_usage(3, 0, 2))),
    ("two final usages, the first of them wrong", 1, _FIRST + _final(**_usage(3, 1)) + _final(**_usage(3, 0))),
    (
        "the reason of the lowest choice that ended",
        3,
        _TWO_OF_THREE + _event(choices=[_choice(0, 1)]),
    ),
    ("a choice after its end, without ids", 1, _event(choices=[_stop(0)]) + _event(choices=[_choice(0, 0)])),
    ("two reasons: the first counts", 1, _event(choices=[_stop(0)]) + _event(choices=[_stop(0, 0, "length")])),
    ("abort", 1, _FIRST + _event(choices=[_choice(0, 1, finish_reason="abort")]) + _DONE),
    ("an error in an event", 1, _FIRST + _event(error={"message": "no", "type": "x", "code": 500}) + _DONE),
    ("an error that is null", 1, _FIRST + _event(error=None) + _DONE),
    ("an error that is empty", 1, _FIRST + _event(error={}) + _DONE),
    ("an id that is empty is not known", 1, _FIRST + _event(id="", choices=[_choice(0, 1)])),
    ("an id after events without one", 1, _TWO_THEN + _event(id="c1", choices=[_choice(0, 1)]) + _TWO_THEN),
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
        "stream": squeezed_text(stream),
        "is_stream": is_stream,
        "prompt_tokens": counter.prompt_tokens,
        "cached_tokens": min(counter.cached_tokens, counter.prompt_tokens),
        "output_tokens": counter.output_tokens,
        "finish_reason": counter.finish_reason[:FINISH_REASON_CHARS] if counter.finish_reason is not None else None,
        "contradicts_itself": bool(counter.contradiction),
        "failed": counter.has_failed,
        "done": counter.done,
    }
