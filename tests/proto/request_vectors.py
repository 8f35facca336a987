"""What stands in tests/vectors/requests.json: bodies, and what is read of them or why they are refused."""

from __future__ import annotations

from typing import Any

from p2pgrid.errors import Refused
from p2pgrid.proto.messages import ENDPOINTS, ModelOffer
from p2pgrid.proto.request import parse_request, require_metered
from tests import factories

CHAT, COMPLETIONS = ENDPOINTS
_ENTRY = ModelOffer(model="m", tariff=factories.TARIFF, context_tokens=4096, concurrency=1, endpoints=ENDPOINTS)
_METERED = '"stream":true,"return_token_ids":true,"stream_options":{"include_usage":true}'


def request_vectors() -> dict[str, Any]:
    """Each body for an entry of the context stated."""
    return {
        "context_tokens": _ENTRY.context_tokens,
        "cases": [_case(endpoint, body) for endpoint, body in _bodies()],
    }


def _case(endpoint: str, body: str) -> dict[str, Any]:
    told = {"endpoint": endpoint, "body": body}
    try:
        fields = parse_request(endpoint, body.encode())
        require_metered(fields)
    except Refused as refused:
        return {**told, "code": refused.code}
    return {
        **told,
        "code": "",
        "n": fields.n or 1,
        "prompts": fields.prompts,
        "choices": fields.choices,
        "max_output_tokens": fields.max_output_tokens(_ENTRY),
        "max_prompt_tokens": fields.max_prompt_tokens(_ENTRY, len(body.encode())),
    }


def _bodies() -> list[tuple[str, str]]:
    def body(more: str = "", asked: str = _METERED) -> str:
        return "{" + ",".join(part for part in ('"model":"m"', asked, more) if part) + "}"

    prompts = ('"a"', "[]", "[[]]", '["a"]', '["a","b","c"]', "[1,2,3]", "[[1,2],[3]]", "null", '[1,"a"]', "[[1],2]")
    wrong_prompts = ("{}", "7", "[1.5]", "[[1.0]]", '[["a"]]', "true")
    numbers = ("1", "1000000", "1000001", "0", "-1", "2.0", "1e2", '"2"', "null", "true")
    many = ",".join(['"a"'] * 128)
    return [
        (CHAT, body()),
        *((COMPLETIONS, body(f'"prompt":{prompt}')) for prompt in (*prompts, *wrong_prompts)),
        *((CHAT, body(f'"{name}":{number}')) for name in ("max_tokens", "n") for number in numbers),
        (CHAT, body('"max_tokens":10,"max_completion_tokens":20')),
        (CHAT, body('"max_tokens":20,"max_completion_tokens":10,"n":3')),
        (CHAT, body('"max_tokens":4097')),
        (CHAT, body('"n":2,"best_of":5,"max_tokens":10')),
        (CHAT, body('"n":128')),
        (CHAT, body('"n":129')),
        (CHAT, body('"n":1,"best_of":129')),
        (COMPLETIONS, body(f'"prompt":[{many}],"n":1')),
        (COMPLETIONS, body(f'"prompt":[{many}],"n":2')),
        (COMPLETIONS, body(f'"prompt":[{many},"a"]')),
        *(
            (CHAT, body("", asked))
            for asked in (
                "",
                '"stream":true,"return_token_ids":true',
                '"stream":false,"return_token_ids":true,"stream_options":{"include_usage":true}',
                '"stream":true,"return_token_ids":null,"stream_options":{"include_usage":true}',
                '"stream":true,"return_token_ids":true,"stream_options":{"include_usage":false}',
                '"stream":true,"return_token_ids":true,"stream_options":null',
                '"stream":true,"return_token_ids":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true}',
                '"stream":1,"return_token_ids":true,"stream_options":{"include_usage":true}',
            )
        ),
        *((CHAT, body(f'"{name}":null')) for name in ("kv_transfer_params", "priority", "chat_template", "echo")),
        *((CHAT, body(more)) for more in ('"echo":true', '"echo":false', '"include_reasoning":false')),
        (CHAT, body('"include_reasoning":true,"priority":0')),
        (CHAT, body('"something":{"else":[1,2,{"deep":null}]}')),
        (CHAT, body('"n":1,"n":3')),
        (CHAT, "{" + _METERED + "}"),
        (CHAT, '{"model":null,' + _METERED + "}"),
        (CHAT, "[]"),
        (CHAT, body() + " "),
        (CHAT, body() + "x"),
        (CHAT, ""),
        ("/v1/embeddings", body()),
    ]
