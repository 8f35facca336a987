"""Requests to an engine, asked as the grid asks them, and what came back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from p2pgrid.engine.base import Engine
from p2pgrid.proto.answer import AnswerAssembler
from p2pgrid.proto.counting import TokenCounter
from p2pgrid.proto.sse import EventSplitter

METERED = {
    "stream": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    "return_token_ids": True,
}


@dataclass
class Told:
    status: int
    content_type: str
    body: bytes
    counter: TokenCounter

    def answer(self) -> dict[str, Any]:
        """The stream merged into one object."""
        assembler = AnswerAssembler()
        for event in EventSplitter().feed(self.body):
            assembler.feed(event)
        return assembler.answer()


def body(*, stream: bool = True, **fields: Any) -> bytes:
    """A request's body; streamed and metered unless told otherwise."""
    chat = {} if "prompt" in fields else {"messages": [{"role": "user", "content": "Say something"}]}
    return json.dumps(chat | (METERED if stream else {"return_token_ids": True}) | fields).encode()


async def ask(engine: Engine, request: bytes, *, request_id: str = "order-1") -> Told:
    """Send it to the endpoint it is for, and read the answer to its end."""
    asked = json.loads(request)
    endpoint = "/v1/completions" if "prompt" in asked else "/v1/chat/completions"
    answer = await engine.request(endpoint, request, request_id)
    counter, splitter, pieces = TokenCounter(asked.get("n") or 1), EventSplitter(), []
    async for piece in answer:
        pieces.append(piece)
        if answer.status == 200 and asked.get("stream"):
            for event in splitter.feed(piece):
                counter.feed(event)
    return Told(answer.status, answer.content_type, b"".join(pieces), counter)
