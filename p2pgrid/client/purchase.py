"""A program's request, made ready to be ordered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from p2pgrid.client.prompt_sizes import Shape, shape_of
from p2pgrid.errors import Refused
from p2pgrid.proto.request import RequestFields, decode_object, metered_body, parse_request
from p2pgrid.proto.wire.orders import MAX_BODY_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Purchase:
    """What is to be ordered, the same for every provider."""

    endpoint: str
    body: bytes
    """Made by `metered_body`."""
    fields: RequestFields
    max_amount_pico: int | None = None
    shape: Shape | None = None
    """Of its prompt, where sizes can be learned."""
    whole: bool = False
    """The program wants the answer whole: it may share an order with others."""


def purchase_of(endpoint: str, body: Mapping[str, Any] | bytes) -> Purchase:
    """What a program's request orders; `body` as it came, or read already.

    Raises Refused: `bad-request`, `unsupported`, `unknown-endpoint`, `oversize`.
    """
    program = decode_object(body) if isinstance(body, bytes) else dict(body)
    shape = shape_of(endpoint, program)
    metered = metered_body(program)
    fields = parse_request(endpoint, body if isinstance(body, bytes) else metered)
    if len(metered) > MAX_BODY_BYTES:
        raise Refused("oversize", f"the request has {len(metered)} bytes; at most {MAX_BODY_BYTES} are sent.")
    return Purchase(endpoint=endpoint, body=metered, fields=fields, shape=shape)
