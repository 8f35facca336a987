"""proto.counting: ids delivered are the count, and what `usage` claims is held against them."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.errors import ProtocolViolation
from p2pgrid.proto.counting import TokenCounter
from p2pgrid.proto.sse import EventSplitter


def event(**chunk: Any) -> bytes:
    return b"data: " + json.dumps({"id": "chatcmpl-1", **chunk}).encode() + b"\n\n"


def usage(prompt: int, completion: int, cached: int | None = None) -> dict[str, Any]:
    told: dict[str, Any] = {"prompt_tokens": prompt, "total_tokens": prompt + completion}
    told["completion_tokens"] = completion
    return told | ({"prompt_tokens_details": {"cached_tokens": cached}} if cached is not None else {})


def choice(index: int = 0, ids: list[int] | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"index": index, "delta": {"content": "x"}, "finish_reason": finish, "token_ids": ids, **more}


DONE = b"data: [DONE]\n\n"


def count(stream: bytes, n: int = 1) -> TokenCounter:
    counter, splitter = TokenCounter(n), EventSplitter()
    for one in splitter.feed(stream):
        counter.feed(one)
    return counter


CHAT = (
    event(choices=[choice(ids=None)], prompt_token_ids=[1, 2, 3], usage=usage(3, 0))
    + event(choices=[choice(ids=[7])], usage=usage(3, 1))
    + event(choices=[choice(ids=[8, 9], finish="stop", stop_reason=None)], usage=usage(3, 3))
    + event(choices=[], usage=usage(3, 3, cached=2))
    + DONE
)
CHAT_TWO = (
    event(choices=[choice(0)], prompt_token_ids=[1, 2, 3], usage=usage(3, 0))
    + event(choices=[choice(1)], prompt_token_ids=[1, 2, 3], usage=usage(3, 0))
    + event(choices=[choice(0, [7])], usage=usage(3, 1))
    + event(choices=[choice(1, [7, 8], "stop")], usage=usage(3, 2))
    + event(choices=[choice(0, [9], "length")], usage=usage(3, 2))
    + event(choices=[], usage=usage(3, 4, cached=0))
    + DONE
)
PROMPTS_BY_TWO = (
    event(choices=[choice(0, [7], prompt_token_ids=[1, 2])], usage=usage(2, 1))
    + event(choices=[choice(1, [7], prompt_token_ids=[1, 2])], usage=usage(2, 1))
    + event(choices=[choice(2, [7], prompt_token_ids=[1, 2, 3])], usage=usage(3, 1))
    + event(choices=[choice(3, [7], prompt_token_ids=[1, 2, 3])], usage=usage(3, 1))
    + event(choices=[choice(3, [7], "length", prompt_token_ids=None)], usage=usage(3, 2))
    + event(choices=[], usage=usage(5, 5))
    + DONE
)
EMPTY = (
    event(choices=[choice()], prompt_token_ids=[1], usage=usage(1, 0))
    + event(choices=[choice(ids=[], finish="stop")], usage=usage(1, 0))
    + event(choices=[], usage=usage(1, 0, cached=0))
    + DONE
)
TOOLS = (
    event(choices=[choice()], prompt_token_ids=[1], usage=usage(1, 0))
    + event(choices=[{"index": 0, "delta": {}, "token_ids": [5]}], usage=usage(1, 1))
    + event(choices=[{"index": 0, "delta": {"tool_calls": [{"index": 0}]}, "token_ids": [6, 7]}], usage=usage(1, 3))
    + event(choices=[choice(ids=[2], finish="tool_calls")], usage=usage(1, 4))
    + event(choices=[], usage=usage(1, 4))
    + DONE
)


@pytest.mark.parametrize(
    ("stream", "n", "prompt", "cached", "output", "finish"),
    [
        (CHAT, 1, 3, 2, 3, "stop"),
        (CHAT_TWO, 2, 3, 0, 4, "length"),
        (PROMPTS_BY_TWO, 2, 5, 0, 5, "length"),
        (EMPTY, 1, 1, 0, 0, "stop"),
        (TOOLS, 1, 1, 0, 4, "tool_calls"),
    ],
    ids=["chat", "n=2", "two prompts, n=2", "empty", "tools"],
)
def test_counts(stream: bytes, n: int, prompt: int, cached: int, output: int, finish: str) -> None:
    counter = count(stream, n)
    assert (counter.prompt_tokens, counter.cached_tokens, counter.output_tokens) == (prompt, cached, output)
    assert (counter.finish_reason, counter.contradiction, counter.response_id) == (finish, "", "chatcmpl-1")
    assert counter.is_whole and counter.prompt_ids_seen


@given(st.sampled_from([(CHAT, 1), (CHAT_TWO, 2), (PROMPTS_BY_TWO, 2), (TOOLS, 1)]), st.lists(st.integers(0, 9999)))
def test_two_sides_count_alike_however_bytes_are_cut(case: tuple[bytes, int], places: list[int]) -> None:
    stream, n = case
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    counter, splitter = TokenCounter(n), EventSplitter()
    for start, end in itertools.pairwise(edges):
        for one in splitter.feed(stream[start:end]):
            counter.feed(one)
    whole = count(stream, n)
    for name in ("prompt_tokens", "cached_tokens", "output_tokens", "finish_reasons", "usage", "done", "is_whole"):
        assert getattr(counter, name) == getattr(whole, name)


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (CHAT.replace(b'"completion_tokens": 3', b'"completion_tokens": 4'), "4 output tokens for choice 0"),
        (CHAT.replace(b'"prompt_tokens": 3', b'"prompt_tokens": 9'), "9 prompt tokens"),
        (CHAT.replace(b'"cached_tokens": 2', b'"cached_tokens": 4'), "4 cached tokens in a prompt of 3"),
        (CHAT.replace(b"[7]", b"null"), "usage claims 1 output tokens for choice 0, its ids are 0"),
        (event(choices=[], usage=usage(0, 1)), "1 output tokens for the whole answer"),
        (CHAT[: -len(DONE)] + event(choices=[choice(ids=[1])]), "goes on after it finished"),
        (CHAT[: -len(DONE)] + event(choices=[], prompt_token_ids=[1]), "prompt 0 had 3 ids, and now has 1"),
        (CHAT[: -len(DONE)] + event(id="other", choices=[]), "the answer's id changed"),
    ],
)
def test_a_stream_that_contradicts_its_ids_is_flagged(broken: bytes, sentence: str) -> None:
    counter = count(broken)
    assert sentence in counter.contradiction
    assert not counter.is_whole


def test_a_repeated_prompt_counted_with_the_wrong_n_is_flagged() -> None:
    assert "prompt tokens" in count(PROMPTS_BY_TWO, 1).contradiction


def test_a_stream_cut_short_counts_what_came() -> None:
    counter = count(CHAT[: CHAT.index(b"[8, 9]")])
    assert (counter.output_tokens, counter.prompt_tokens, counter.done, counter.usage) == (1, 3, False, None)
    assert counter.finish_reason is None and not counter.contradiction and not counter.is_whole


def test_an_answer_that_the_engine_aborted_is_not_whole() -> None:
    stream = event(choices=[choice(ids=[], finish="abort")], prompt_token_ids=[1], usage=usage(1, 0))
    counter = count(stream + event(choices=[], usage=usage(1, 0)) + DONE)
    assert counter.done and not counter.contradiction and not counter.is_whole


def test_an_error_inside_the_stream() -> None:
    counter = count(event(choices=[choice(ids=[1])]))
    counter.feed(b'data: {"error": {"message": "Internal server error", "type": "E", "param": null, "code": 500}}\n\n')
    counter.feed(DONE)
    assert counter.error is not None and counter.error.message == "Internal server error" and counter.error.code == 500
    assert counter.output_tokens == 1 and counter.done and not counter.is_whole


def test_usage_alone_is_believed_only_where_no_ids_came() -> None:
    counter = count(event(choices=[], usage=usage(12, 0)) + DONE)
    assert counter.prompt_tokens == 12 and not counter.prompt_ids_seen


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"choices": 1}',
        b'{"choices": [{"index": -1}]}',
        b'{"choices": [{"index": 1024}]}',
        b'{"choices": [{"index": 0, "token_ids": ["a"]}]}',
        b'{"choices": [{"index": 0, "token_ids": [-1]}]}',
        b'{"choices": [{"index": 0, "finish_reason": "' + b"x" * 65 + b'"}]}',
        b'{"usage": {"prompt_tokens": -1}}',
        b'{"usage": {"prompt_tokens": 1e400}}',
        b'{"usage": {"prompt_tokens": 99999999999999999999999}}',
        b'{"error": "text"}',
        b"[" * 100_000,
        b'{"x":' * 100_000,
    ],
    ids=lambda data: data[:40].decode(errors="replace"),
)
def test_garbage_is_a_violation(data: bytes) -> None:
    with pytest.raises(ProtocolViolation, match="no chunk"):
        TokenCounter().feed(b"data: " + data + b"\n\n")


@given(st.binary(max_size=200))
def test_any_bytes_raise_nothing_but_violations(data: bytes) -> None:
    counter, splitter = TokenCounter(), EventSplitter()
    try:
        for one in splitter.feed(b"data: " + data + b"\n\n"):
            counter.feed(one)
    except ProtocolViolation:
        pass


def test_nothing_may_follow_the_end() -> None:
    counter = count(CHAT)
    counter.feed(b": a comment may\n\n")
    with pytest.raises(ProtocolViolation, match="after its end"):
        counter.feed(event(choices=[choice(ids=[1])]))


def test_more_tokens_than_any_order_may_have_is_a_violation() -> None:
    counter, many = TokenCounter(), event(choices=[choice(ids=[1] * 1_000_000)])
    with pytest.raises(ProtocolViolation, match="over 8000000 tokens"):
        for _ in range(9):
            counter.feed(many)


CHOICES = st.builds(
    choice,
    st.integers(0, 1),
    st.none() | st.lists(st.integers(0, 9), max_size=2),
    st.sampled_from([None, None, None, "stop"]),
)
CHUNKS = st.fixed_dictionaries(
    {"choices": st.lists(CHOICES, max_size=2)},
    optional={
        "id": st.sampled_from(["chatcmpl-1", "chatcmpl-1", "other"]),
        "prompt_token_ids": st.none() | st.just([1, 2, 3]),
        "usage": st.builds(usage, st.just(3), st.integers(0, 4)),
        "error": st.none() | st.just({"message": "no"}),
    },
)


class LongWay(TokenCounter):
    def _count_plain(self, chunk: object) -> bool:
        return False


def told(counter: TokenCounter) -> tuple[object, ...]:
    return (
        *(getattr(counter, name) for name in ("output_tokens", "prompt_tokens", "finish_reasons", "contradiction")),
        *(getattr(counter, name) for name in ("usage", "error", "response_id", "done")),
        counter._output_by_choice,
    )


@given(st.lists(CHUNKS, max_size=8), st.integers(1, 2))
def test_the_short_way_counts_as_the_long_way(chunks: list[dict[str, Any]], n: int) -> None:
    short, long = TokenCounter(n), LongWay(n)
    for chunk in chunks:
        before = told(short)
        is_plain = short.feed_data(event(**chunk)[6:-2])
        long.feed(event(**chunk))
        assert told(short) == told(long)
        if is_plain:  # nothing but ids were added
            assert told(short)[1:-1] == before[1:-1]


def test_what_an_engine_sends_goes_the_short_way() -> None:
    events = EventSplitter().feed(CHAT)
    counter = TokenCounter()
    assert [counter.feed_data(one[6:-2]) for one in events] == [False, True, False, False, False]
