"""The demo's chats: sent through the official `openai` package, as any program would send them."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import msgspec
from openai import AsyncOpenAI

from p2pgrid.errors import LocalError, RemoteError

_ANSWER_TIMEOUT_S: Final = 180.0


class ChatResult(msgspec.Struct, kw_only=True, frozen=True):
    """One row of the demo's table."""

    request: str
    streamed: bool
    operator: str
    country: str
    provider: str
    order: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    price_eur: str
    """EUR per million tokens, input/output."""
    cost_eur: str
    cost_pico: int
    first_token_ms: int | None
    """None for an unstreamed answer: its first token is not seen apart."""
    answer: str


class Chat(msgspec.Struct, kw_only=True, frozen=True):
    """What to send."""

    prompt: str
    streamed: bool
    max_tokens: int


_REPORT: Final = " ".join(
    f"On day {day} the plant at the river made {day * 7} megawatt hours, of which {day * 3} went to the data centre."
    for day in range(1, 13)
)
"""Long enough to fill whole blocks of the engine's prefix cache."""

FIRST_CHATS: Final = (
    Chat(prompt="What is a peer-to-peer network? Answer in one sentence.", streamed=True, max_tokens=48),
    Chat(prompt="What is a receipt? Answer in one sentence.", streamed=False, max_tokens=48),
    Chat(prompt=f"Read this report. {_REPORT} What made the power?", streamed=True, max_tokens=16),
    Chat(prompt=f"Read this report. {_REPORT} Who used the power?", streamed=True, max_tokens=16),
)
"""One after the other. The last repeats most of the prompt before it, which the engine has cached: it costs less."""
CONCURRENT_CHATS: Final = (
    Chat(prompt="Write a short story about a lighthouse in Estonia.", streamed=True, max_tokens=160),
    Chat(prompt="Name three rivers in Europe.", streamed=False, max_tokens=40),
    Chat(prompt="Why is the sky blue?", streamed=True, max_tokens=64),
)
"""All at once. The first is longer than the window: it is metered and vouched for while it runs."""
LAST_CHATS: Final = (
    Chat(prompt="What is electricity?", streamed=True, max_tokens=48),
    Chat(prompt="Name two cities in Italy.", streamed=False, max_tokens=32),
)
"""After the first operator was stopped."""


class Program:
    """A program that knows nothing of p2pgrid but a base URL."""

    def __init__(self, base_url: str, model: str) -> None:
        self._openai = AsyncOpenAI(base_url=base_url, api_key="unused", max_retries=0, timeout=_ANSWER_TIMEOUT_S)
        self._model = model

    async def models(self) -> list[dict[str, Any]]:
        """What `/v1/models` lists."""
        page = await self._openai.models.list()
        return [model.model_dump() for model in page.data]

    async def wait_for_offers(self, count: int, timeout_s: float) -> None:
        """Wait until `count` operators sell the model. Raises RemoteError."""
        deadline = time.monotonic() + timeout_s
        seen = 0
        while time.monotonic() < deadline:
            for model in await self.models():
                if model["id"] == self._model:
                    seen = len(model["p2pgrid"]["offers"])
                    if seen >= count:
                        return
            await asyncio.sleep(0.25)
        raise RemoteError(f"the gateway found {seen} of {count} operators in {timeout_s:.0f} s.")

    async def ask(self, chat: Chat) -> ChatResult:
        """Send one chat and read the answer to its end."""
        return await (self._ask_streamed(chat) if chat.streamed else self._ask_whole(chat))

    async def ask_together(self, chats: tuple[Chat, ...]) -> list[ChatResult]:
        """Send chats at once."""
        return list(await asyncio.gather(*(self.ask(chat) for chat in chats)))

    async def aclose(self) -> None:
        """Close connections."""
        await self._openai.close()

    async def _ask_streamed(self, chat: Chat) -> ChatResult:
        began = time.monotonic()
        first_token_ms: int | None = None
        text: list[str] = []
        usage: dict[str, Any] = {}
        async with self._openai.chat.completions.with_streaming_response.create(
            model=self._model,
            messages=[{"role": "user", "content": chat.prompt}],
            max_tokens=chat.max_tokens,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        ) as response:
            headers = response.headers
            async for chunk in await response.parse():
                if chunk.choices and chunk.choices[0].delta.content:
                    first_token_ms = first_token_ms or round((time.monotonic() - began) * 1000)
                    text.append(chunk.choices[0].delta.content)
                if chunk.usage is not None and not chunk.choices:
                    usage = chunk.usage.model_dump()
        if "p2pgrid" not in usage:
            raise LocalError("the answer's last chunk says nothing of its cost.")
        return _result(chat, dict(headers), usage, usage["p2pgrid"], first_token_ms, "".join(text))

    async def _ask_whole(self, chat: Chat) -> ChatResult:
        response = await self._openai.chat.completions.with_raw_response.create(
            model=self._model,
            messages=[{"role": "user", "content": chat.prompt}],
            max_tokens=chat.max_tokens,
            temperature=0,
        )
        completion = response.parse()
        headers = dict(response.headers)
        assert completion.usage is not None
        cost = {"cost_eur": headers["x-p2pgrid-cost-eur"], "cost_pico": int(headers["x-p2pgrid-cost-pico"])}
        text = completion.choices[0].message.content or ""
        return _result(chat, headers, completion.usage.model_dump(), cost, None, text)


def _result(
    chat: Chat,
    headers: dict[str, str],
    usage: dict[str, Any],
    cost: dict[str, Any],
    first_token_ms: int | None,
    text: str,
) -> ChatResult:
    details = usage.get("prompt_tokens_details") or {}
    return ChatResult(
        request=chat.prompt,
        streamed=chat.streamed,
        operator=headers["x-p2pgrid-operator"],
        country=headers["x-p2pgrid-country"],
        provider=headers["x-p2pgrid-provider"],
        order=headers["x-p2pgrid-order"],
        prompt_tokens=usage["prompt_tokens"],
        cached_tokens=details.get("cached_tokens") or 0,
        output_tokens=usage["completion_tokens"],
        price_eur=headers["x-p2pgrid-price-eur"],
        cost_eur=cost["cost_eur"],
        cost_pico=cost["cost_pico"],
        first_token_ms=first_token_ms,
        answer=text,
    )
