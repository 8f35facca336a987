"""proto.answer: a stream's chunks become the object of an unstreamed request."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.errors import ProtocolViolation
from p2pgrid.proto.answer import AnswerAssembler
from p2pgrid.proto.sse import EventSplitter

HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 5, "model": "m"}
TEXT_HEAD = {"id": "cmpl-1", "object": "text_completion", "created": 5, "model": "m"}
USAGE = {"prompt_tokens": 2, "total_tokens": 4, "completion_tokens": 2}


def stream(*chunks: dict[str, Any]) -> bytes:
    return b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"


def merged(data: bytes) -> dict[str, Any]:
    assembler = AnswerAssembler()
    for event in EventSplitter().feed(data):
        assembler.feed(event)
    answer: dict[str, Any] = json.loads(assembler.to_json())
    assert answer == assembler.answer()
    return answer


def delta(index: int, delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    return HEAD | {"choices": [{"index": index, "delta": delta, "logprobs": None, "finish_reason": finish, **more}]}


def test_a_chat_of_two_choices_with_log_probabilities() -> None:
    def logprobs(token: str) -> dict[str, Any]:
        return {"content": [{"token": token, "logprob": -0.5, "bytes": [1], "top_logprobs": []}]}

    answer = merged(
        stream(
            delta(0, {"role": "assistant", "content": ""}) | {"prompt_token_ids": [1, 2], "usage": {"x": 1}},
            delta(1, {"role": "assistant", "content": ""}) | {"prompt_token_ids": [1, 2]},
            delta(1, {"content": "b"}, logprobs=logprobs("b"), token_ids=[7]),
            delta(0, {"content": "a"}, logprobs=logprobs("a"), token_ids=[8]),
            delta(0, {"content": "c"}, "stop", stop_reason="!", logprobs=logprobs("c"), token_ids=[9, 2]),
            delta(1, {}, "length", token_ids=[]),
            HEAD | {"choices": [], "usage": USAGE, "system_fingerprint": "f"},
        )
    )
    first, second = answer.pop("choices")
    assert answer == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 5,
        "model": "m",
        "prompt_token_ids": [1, 2],
        "system_fingerprint": "f",
        "usage": USAGE,
    }
    assert first["message"] == {"role": "assistant", "content": "ac"}
    assert (first["finish_reason"], first["stop_reason"], first["token_ids"]) == ("stop", "!", [8, 9, 2])
    assert [one["token"] for one in first["logprobs"]["content"]] == ["a", "c"]
    assert second["message"]["content"] == "b" and second["finish_reason"] == "length"
    assert second["logprobs"] == logprobs("b")


def test_tool_calls_merge_by_their_index() -> None:
    def call(index: int, **more: Any) -> dict[str, Any]:
        return {"content": None, "tool_calls": [{"index": index, **more}]}

    answer = merged(
        stream(
            delta(0, {"role": "assistant", "content": ""}),
            delta(0, call(0, id="a", type="function", function={"name": "f", "arguments": ""})),
            delta(0, call(0, function={"arguments": '{"x":'})),
            delta(0, call(1, id="b", type="function", function={"name": "g"})),
            delta(0, call(0, id="a", type="function", function={"arguments": " 1}"})),
            delta(0, call(1, function={"arguments": "{}"})),
            delta(0, {}, "tool_calls"),
        )
    )
    assert answer["choices"][0]["message"] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}},
            {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
        ],
    }
    assert answer["choices"][0]["finish_reason"] == "tool_calls"


def test_a_text_completion_with_offsets_and_fields_nobody_knows() -> None:
    def text(text: str, offset: int, **more: Any) -> dict[str, Any]:
        logprobs = {"text_offset": [offset], "tokens": [text], "token_logprobs": [-1.0], "top_logprobs": [{text: -1.0}]}
        return TEXT_HEAD | {"choices": [{"index": 0, "text": text, "logprobs": logprobs, **more}]}

    answer = merged(
        stream(
            text("one ", 0, finish_reason=None, prompt_token_ids=[5], new_text="x", new_list=[1]),
            text("two", 4, finish_reason="length", prompt_token_ids=None, new_text="y", new_list=[2]),
            TEXT_HEAD | {"choices": [], "usage": USAGE},
        )
    )
    (choice,) = answer["choices"]
    assert answer["object"] == "text_completion" and answer["usage"] == USAGE
    assert choice["text"] == "one two" and choice["prompt_token_ids"] == [5] and choice["finish_reason"] == "length"
    assert choice["logprobs"]["text_offset"] == [0, 4] and choice["logprobs"]["tokens"] == ["one ", "two"]
    assert choice["logprobs"]["top_logprobs"] == [{"one ": -1.0}, {"two": -1.0}]
    assert (choice["new_text"], choice["new_list"]) == ("xy", [1, 2])


def test_reasoning_is_a_text_like_any_other() -> None:
    answer = merged(stream(delta(0, {"role": "assistant", "reasoning": "a"}), delta(0, {"reasoning": "b"}, "stop")))
    assert answer["choices"][0]["message"] == {"role": "assistant", "reasoning": "ab", "content": ""}


def test_an_empty_answer_has_all_that_an_answer_has() -> None:
    answer = merged(stream(delta(0, {"role": "assistant", "content": ""}), delta(0, {"content": ""}, "stop")))
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": ""} and choice["logprobs"] is None
    assert answer["usage"] is None


@given(st.text(max_size=60), st.lists(st.integers(0, 60), max_size=8))
def test_a_text_in_any_pieces_is_the_text(text: str, places: list[int]) -> None:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    answer = merged(stream(*(delta(0, {"content": piece}) for piece in pieces)))
    assert answer["choices"][0]["message"]["content"] == text


def test_an_error_event_adds_nothing() -> None:
    data = stream(delta(0, {"content": "a"}), {"error": {"message": "Internal server error"}})
    assert merged(data)["choices"][0]["message"]["content"] == "a"


@pytest.mark.parametrize(
    "data",
    [
        b"data: [1]\n\n",
        b"data: {\n\n",
        b'data: {"choices": [1]}\n\n',
        b'data: {"choices": 1}\n\n',
        b'data: {"choices": [{"index": "0"}]}\n\n',
        b'data: {"choices": [{"index": 0, "delta": ' + b'{"a":' * 30 + b"1" + b"}" * 30 + b"}]}\n\n",
        b"data: " + b"[" * 100_000 + b"\n\n",
        stream(
            *(
                delta(0, {"tool_calls": [{"index": start + i} for i in range(256)]}) | {"object": "x"}
                for start in range(0, 1281, 256)
            )
        ),
        stream(),
        stream(HEAD | {"choices": [{"index": 0, "delta": "text"}]}),
        stream(HEAD | {"choices": []} | {f"k{n}": n for n in range(257)}),
        stream(HEAD | {"choices": [{f"k{n}": n for n in range(257)}]}),
    ],
    ids=[
        *("list", "no json", "choice", "choices", "index", "deep", "nested", "many calls", "nothing", "delta"),
        *("a chunk of many keys", "a choice of many keys"),
    ],
)
def test_what_cannot_be_merged_is_a_violation(data: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        merged(data)


def test_an_answer_past_the_cap_is_a_violation() -> None:
    assembler = AnswerAssembler(max_bytes=1000)
    with pytest.raises(ProtocolViolation, match="larger"):
        for _ in range(100):
            assembler.feed(b"data: " + json.dumps(delta(0, {"content": "x"})).encode() + b"\n\n")


@pytest.mark.parametrize("depth", [100, 300, 600, 900, 980, 995, 1200])
@pytest.mark.parametrize("place", ['"x": %s', '"choices": [{"index": 0, "delta": {"a": [%s]}}]'])
def test_any_depth_is_merged_or_a_violation(depth: int, place: str) -> None:
    nested = place % ('{"b":' * depth + "1" + "}" * depth)
    assembler = AnswerAssembler()
    try:
        assembler.feed(b"data: {" + nested.encode() + b"}\n\n")
        assembler.to_json()
    except ProtocolViolation:
        pass


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["index", "a", "role", "content", "tool_calls"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(st.lists(anything, min_size=1, max_size=3))
def test_hostile_deltas_raise_nothing_but_violations(deltas: list[Any]) -> None:
    try:
        merged(stream(*(delta(0, value) for value in deltas)))
    except ProtocolViolation:
        pass


_TEXTS = st.sampled_from(["", "a", "ė"])
_PLAIN = st.fixed_dictionaries(
    {"index": st.integers(-1, 2)},
    optional={
        "delta": st.one_of(_TEXTS.map(lambda text: {"content": text}), st.just({})),
        "token_ids": st.one_of(st.none(), st.lists(st.integers(0, 9), max_size=2), st.just([1.0]), st.just([{"a": 1}])),
        "logprobs": st.one_of(st.none(), st.just({"content": [{"token": "a"}]})),
        "finish_reason": st.sampled_from([None, "stop"]),
        "stop_reason": st.sampled_from([None, 7]),
        "text": _TEXTS,
        "unheard": st.just("x"),
    },
)
_HEADS = st.fixed_dictionaries(
    {},
    optional={
        "id": st.sampled_from(["i", "i", "j"]),
        "object": st.sampled_from(["chat.completion.chunk", "text_completion", "", None]),
        "created": st.sampled_from([1, 1, 2]),
        "model": st.sampled_from(["m", "m", None]),
        "usage": st.sampled_from([None, {"prompt_tokens": 1}]),
        "error": st.just({"message": "x"}),
    },
)
_CHOICES = st.lists(_PLAIN, min_size=1, max_size=2) | st.lists(_PLAIN, max_size=1)


@st.composite
def _chunks(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Chunks of which about half are plain and like one another, and the others any."""
    usual: dict[str, Any] = {"id": "i", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    other: dict[str, Any] = {"id": "j", "object": "text_completion", "created": 2, "model": "n"}
    if draw(st.booleans()):
        usual, other = other, usual
    for name in draw(st.sets(st.sampled_from(sorted(usual)), max_size=2)):
        del usual[name]
    is_chat = draw(st.booleans())
    found = []
    for _ in range(draw(st.integers(0, 6))):
        if draw(st.booleans()):
            text = draw(_TEXTS)
            choice = {"index": 0, "token_ids": [1]} | ({"delta": {"content": text}} if is_chat else {"text": text})
            changed = draw(st.one_of(st.none(), st.sampled_from(sorted(other))))
            found.append(usual | ({changed: other[changed]} if changed else {}) | {"choices": [choice]})
        else:
            found.append(draw(_HEADS) | {"choices": draw(_CHOICES)})
    return found


@settings(max_examples=500)
@given(_chunks(), st.integers(1, 3))
def test_the_short_way_for_plain_chunks_leads_where_the_long_one_does(
    chunks: list[dict[str, Any]], repeated: int
) -> None:
    assert outcome(chunks, repeated, AnswerAssembler()) == outcome(chunks, repeated, _LongWay())


class _LongWay(AnswerAssembler):
    def _merge_plain(self, data: bytes) -> bool:
        return False


def outcome(chunks: list[dict[str, Any]], repeated: int, assembler: AnswerAssembler) -> bytes | str:
    try:
        for event in EventSplitter().feed(stream(*(chunk for chunk in chunks for _ in range(repeated)))):
            assembler.feed(event)
        return assembler.to_json()
    except ProtocolViolation as violation:
        return str(violation)
