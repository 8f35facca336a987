"""An engine for measurements: vLLM's bytes at a given pace, for next to no CPU, in a process of its own.

    python scripts/bench/paced_engine.py --uds /tmp/e.sock

It answers `/health`, `/v1/models`, `/metrics` and chat completions. A request says what it wants in a field that vLLM
would ignore: `"bench": {"tokens": 64, "period_ms": 20, "slot": 3}`. Without a period everything is written at once;
with one, the answers of a slot get their chunks in step, and slot k comes k/64 of a period after slot 0. A chunk has
about 250 bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import uvloop

SLOTS = 64
_HEAD = (
    b"HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\nserver: uvicorn\r\n"
    b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)


def sse_event(answer_id: str, choices: str, more: str) -> str:
    """One chunk of an answer."""
    return (
        f'data: {{"id":"chatcmpl-{answer_id}","object":"chat.completion.chunk","created":1,"model":"bench",'
        f'"choices":[{choices}]{more}}}\n\n'
    )


def usage(made: int) -> str:
    return f',"usage":{{"prompt_tokens":3,"total_tokens":{3 + made},"completion_tokens":{made}}}'


def sse_events(answer_id: str, tokens: int) -> Iterator[str]:
    """A whole answer: the head, `tokens` tokens, the last of them with what ends it."""
    choice = '{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}'
    yield sse_event(answer_id, choice, ',"prompt_token_ids":[1,2,3]' + usage(0))
    for made in range(1, tokens + 1):
        reason = '"length"' if made == tokens else "null"
        choice = (
            f'{{"index":0,"delta":{{"content":" word"}},"logprobs":null,"finish_reason":{reason},"token_ids":[1234]}}'
        )
        events = sse_event(answer_id, choice, usage(made))
        yield events + (sse_event(answer_id, "", usage(made)) + "data: [DONE]\n\n" if made == tokens else "")


class Answer:
    """One answer under way."""

    def __init__(self, transport: asyncio.Transport, answer_id: str, tokens: int) -> None:
        self.transport = transport
        self.events = sse_events(answer_id, tokens)
        self.left = tokens + 1

    def next(self) -> bytes:
        """The next piece, framed for HTTP event by event, as vLLM does."""
        self.left -= 1
        events = next(self.events).encode().split(b"\n\n")[:-1]
        pieces = [b"%x\r\n%s\n\n\r\n" % (len(one) + 2, one) for one in events]
        return b"".join(pieces) + (b"" if self.left else b"0\r\n\r\n")

    @property
    def is_over(self) -> bool:
        return not self.left or self.transport.is_closing()


class Pulse:
    """One timer a slot, for all answers in it."""

    def __init__(self) -> None:
        self.slots: dict[tuple[int, float], list[Answer]] = {}

    def add(self, slot: int, period_s: float, answer: Answer) -> None:
        key = slot, period_s
        if key not in self.slots:
            self.slots[key] = []
            loop = asyncio.get_running_loop()
            due_s = loop.time() + period_s - loop.time() % period_s + slot * period_s / SLOTS
            loop.call_at(due_s, self.beat, key, due_s)
        self.slots[key].append(answer)

    def beat(self, key: tuple[int, float], due_s: float) -> None:
        for answer in self.slots[key]:
            if not answer.is_over:
                answer.transport.write(answer.next())
        self.slots[key] = live = [one for one in self.slots[key] if not one.is_over]
        if live:
            asyncio.get_running_loop().call_at(due_s + key[1], self.beat, key, due_s + key[1])
        else:
            del self.slots[key]


class Server(asyncio.Protocol):
    """One connection. Requests come whole, with a Content-Length, one after the other."""

    def __init__(self, pulse: Pulse) -> None:
        self.pulse = pulse
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, rest = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        fields = dict(line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:])
        length = int(fields.get("content-length", 0))
        if len(rest) >= length:
            self.buffer = rest[length:]
            self.answer(head.split(b" ", 2)[1].decode(), fields, rest[:length])

    def answer(self, path: str, fields: dict[str, str], body: bytes) -> None:
        if path != "/v1/chat/completions":
            page = {"/v1/models": {"data": [{"id": "bench", "max_model_len": 100_000}]}}.get(path, {})
            data = json.dumps(page).encode()
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(data), data))
            return
        request = json.loads(body)
        wish = request.get("bench") or {"tokens": min(request.get("max_tokens", 16), 16)}
        answer = Answer(self.transport, fields["x-request-id"], wish["tokens"])
        if period_ms := wish.get("period_ms"):
            self.transport.write(_HEAD + answer.next())
            self.pulse.add(wish.get("slot", 0), period_ms / 1000, answer)
        else:
            self.transport.write(_HEAD + b"".join(answer.next() for _ in range(answer.left)))


async def serve(uds: Path) -> None:
    pulse = Pulse()
    server = await asyncio.get_running_loop().create_unix_server(lambda: Server(pulse), str(uds), backlog=2048)
    print("ready", flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--uds", type=Path, required=True)
    uvloop.run(serve(parser.parse_args().uds))


if __name__ == "__main__":
    main()
