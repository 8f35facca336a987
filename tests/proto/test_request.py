"""Bodies: what the grid reads of them, adds to them, and refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.errors import Refused
from p2pgrid.proto.request import metered_body, parse_request, require_metered
from tests.proto.simulation import CHAT, make_offer

COMPLETIONS = "/v1/completions"
ENTRY = make_offer().message.models[0]


def code_of(body: bytes, endpoint: str = CHAT) -> str:
    with pytest.raises(Refused) as refused:
        parse_request(endpoint, body)
    return refused.value.code


BODIES: list[tuple[Any, str]] = [
    ({}, "bad-request"),
    ({"model": 1}, "bad-request"),
    ({"model": "m", "n": 0}, "bad-request"),
    ({"model": "m", "n": 129}, "bad-request"),
    ({"model": "m", "n": 2, "best_of": 200}, "bad-request"),
    ({"model": "m", "max_tokens": 0}, "bad-request"),
    ({"model": "m", "max_tokens": -1}, "bad-request"),
    ({"model": "m", "max_tokens": 10**30}, "bad-request"),
    ({"model": "m", "max_tokens": "10"}, "bad-request"),
    ({"model": "m", "stream": "true"}, "bad-request"),
    ({"model": "m", "prompt": ["a"] * 129}, "bad-request"),
    ({"model": "m", "prompt": [[1], [2]], "n": 65}, "bad-request"),
    ({"model": "m", "echo": True}, "unsupported"),
    ({"model": "m", "include_reasoning": False}, "unsupported"),
    ([], "bad-request"),
]
FORBIDDEN = (
    "kv_transfer_params",
    "vllm_xargs",
    "priority",
    "request_id",
    "use_beam_search",
    "prompt_embeds",
    "chat_template",
    "mm_processor_kwargs",
    "media_io_kwargs",
)


@pytest.mark.parametrize(("body", "code"), BODIES)
def test_refused_bodies(body: Any, code: str) -> None:
    assert code_of(json.dumps(body).encode()) == code


@pytest.mark.parametrize("name", FORBIDDEN)
@pytest.mark.parametrize("value", [None, {}, 1])
def test_fields_that_no_stranger_may_set(name: str, value: Any) -> None:
    assert code_of(json.dumps({"model": "m", name: value}).encode()) == "unsupported"


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"model": "\xff"}', b"[" * 100_000, b'{"a":' * 100_000])
def test_what_is_no_json(body: bytes) -> None:
    assert code_of(body) == "bad-request"


def test_endpoints() -> None:
    assert code_of(b'{"model": "m"}', "/v1/embeddings") == "unknown-endpoint"


@pytest.mark.parametrize(
    ("body", "choices", "most"),
    [
        ({}, 1, 8192),
        ({"max_tokens": 10}, 1, 10),
        ({"max_tokens": 10, "max_completion_tokens": 30}, 1, 30),
        ({"max_tokens": 30, "max_completion_tokens": 10}, 1, 30),
        ({"max_tokens": 100_000}, 1, 8192),
        ({"max_tokens": 10, "n": 3}, 3, 30),
        ({"max_tokens": 10, "n": 2, "best_of": 4}, 4, 40),
        ({"max_tokens": 10, "prompt": ["a", "b"], "n": 2}, 4, 40),
        ({"max_tokens": 10, "prompt": [1, 2, 3]}, 1, 10),
        ({"max_tokens": 10, "prompt": [[1, 2], [3]]}, 2, 20),
        ({"max_tokens": 10, "prompt": []}, 1, 10),
    ],
)
def test_caps(body: dict[str, Any], choices: int, most: int) -> None:
    fields = parse_request(COMPLETIONS, json.dumps({"model": "m", **body}).encode())
    assert (fields.choices, fields.max_output_tokens(ENTRY)) == (choices, most)


def test_a_body_bounds_its_prompt() -> None:
    fields = parse_request(CHAT, b'{"model": "m"}')
    assert fields.max_prompt_tokens(ENTRY, 100) == 1124
    assert fields.max_prompt_tokens(ENTRY, 10**6) == 8192
    two = parse_request(COMPLETIONS, b'{"model": "m", "prompt": ["a", "b"]}')
    assert two.max_prompt_tokens(ENTRY, 100) == 100 + 2048
    assert two.max_prompt_tokens(ENTRY, 10**6) == 2 * 8192


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"stream": True, "return_token_ids": True},
        {"stream": False, "return_token_ids": True, "stream_options": {"include_usage": True}},
        {"stream": True, "return_token_ids": None, "stream_options": {"include_usage": True}},
        {"stream": True, "return_token_ids": True, "stream_options": {"include_usage": False}},
    ],
)
def test_what_cannot_be_counted_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refused:
        require_metered(parse_request(CHAT, json.dumps({"model": "m", **body}).encode()))
    assert refused.value.code == "not-metered"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.text(max_size=8), json_values, max_size=4))
def test_a_metered_body_keeps_what_the_program_asked(extra: dict[str, Any]) -> None:
    program = {
        "model": "m",
        "messages": [{"role": "user", "content": "ė"}],
        "stream": False,
        **{f"x{k}": v for k, v in extra.items()},
    }
    body = metered_body(program)
    require_metered(parse_request(CHAT, body))
    asked = json.loads(body)
    assert {k: v for k, v in asked.items() if k in program and k != "stream"} == {
        k: v for k, v in program.items() if k != "stream"
    }


@pytest.mark.parametrize(
    ("wish", "is_honoured"),
    [
        ({}, False),
        ({"stream": True}, False),
        ({"stream": True, "stream_options": {"continuous_usage_stats": True}}, True),
        ({"stream": True, "stream_options": {"include_usage": False, "continuous_usage_stats": True}}, True),
        ({"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": False}}, False),
        ({"stream": True, "stream_options": None}, False),
        ({"stream_options": {"continuous_usage_stats": True}}, False),
    ],
)
def test_a_usage_in_every_chunk_is_the_programs_own_wish(wish: dict[str, Any], is_honoured: bool) -> None:
    asked = json.loads(metered_body({"model": "m", "messages": [], **wish}))
    every = {"continuous_usage_stats": True} if is_honoured else {}
    assert asked["stream_options"] == {"include_usage": True, **every}


@pytest.mark.parametrize("value", ["\ud800", {1, 2, object()}, object()])
def test_what_has_no_json_is_refused(value: Any) -> None:
    with pytest.raises(Refused) as refused:
        metered_body({"model": "m", "x": value})
    assert refused.value.code == "bad-request"


@given(st.binary(max_size=100))
def test_arbitrary_bodies_raise_nothing_but_refused(body: bytes) -> None:
    try:
        parse_request(CHAT, body)
    except Refused:
        pass
