"""The gateway as programs see it: the official `openai` package, and plain HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import openai
import pytest
from openai import AsyncOpenAI

from p2pgrid.client.gateway import SHUTDOWN_S, Gateway, check_exposure, serve
from p2pgrid.client.limits import SessionLimits
from p2pgrid.errors import LocalError, UsageError
from p2pgrid.proto.messages import Status
from p2pgrid.proto.wire.base import Refusal
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.proto.wire.offers import Capacity, ModelCapacity
from p2pgrid.proto.wire.orders import MAX_BODY_BYTES
from tests.client.seller import BODY, MODEL, Shop, TestSeller, chat_events, shop, sse, until

MESSAGES: Any = [{"role": "user", "content": "Hello"}]
QUICK = SessionLimits(link_timeout_s=0.5, queue_timeout_s=0.5)


@dataclass
class Front:
    """A gateway with both kinds of program."""

    shop: Shop
    url: str
    openai: AsyncOpenAI
    http: aiohttp.ClientSession

    async def post(self, body: object, path: str = "/v1/chat/completions", **headers: str) -> tuple[int, Any]:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {"content-type": "application/json"} | {name.replace("_", "-"): v for name, v in headers.items()}
        async with self.http.post(self.url + path, data=raw, headers=given) as response:
            return response.status, await response.json()


@contextlib.asynccontextmanager
async def front(*sellers: TestSeller, api_key: str | None = None) -> AsyncIterator[Front]:
    async with shop(*sellers, limits=QUICK) as s, aiohttp.ClientSession() as http:
        server = await serve(Gateway(s.purchaser, network="test", api_key=api_key), "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.addresses[0][1]}"
        program = AsyncOpenAI(base_url=f"{url}/v1", api_key=api_key or "unused", max_retries=0)
        try:
            yield Front(s, url, program, http)
        finally:
            await program.close()
            await server.aclose(SHUTDOWN_S)


async def test_an_unstreamed_chat_with_its_cost() -> None:
    seller = TestSeller()
    seller.events = chat_events(3, cached=2)
    async with front(seller) as f:
        raw = await f.openai.chat.completions.with_raw_response.create(model=MODEL, messages=MESSAGES, max_tokens=9)
        answer = raw.parse()
        assert answer.choices[0].message.content == "w0 w1 w2 " and answer.choices[0].finish_reason == "stop"
        assert answer.usage is not None and answer.usage.completion_tokens == 3
        assert raw.headers["x-p2pgrid-cost-eur"] == "0.0000034"
        assert raw.headers["x-p2pgrid-cost-pico"] == "3400000"
        assert raw.headers["x-p2pgrid-operator"] == "Operator seller"
        assert raw.headers["x-p2pgrid-price-eur"] == "0.20/0.80"
        assert raw.headers["x-p2pgrid-cached-tokens"] == "2"
        assert not (answer.model_extra or {}) and not (answer.choices[0].model_extra or {})
        row = f.shop.ledger.receipts()[0]
        assert raw.headers["x-p2pgrid-receipt"] == row.record_id.hex() and row.countersigned
        assert raw.headers["x-p2pgrid-order"] == f"{row.receipt.channel.hex()}:1"


async def test_a_streamed_chat_whose_program_asked_for_usage() -> None:
    seller = TestSeller()
    async with front(seller) as f:
        stream = await f.openai.chat.completions.create(
            model=MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "w0 w1 w2 "
        assert not chunks[-1].choices and chunks[-1].usage is not None
        cost = chunks[-1].usage.model_dump()["p2pgrid"]
        row = f.shop.ledger.receipts()[0]
        assert cost == {
            "cost_eur": "0.0000034",
            "cost_pico": 3_400_000,
            "provider": seller.peer_id,
            "operator": "Operator seller",
            "country": "LT",
            "channel": row.receipt.channel.hex(),
            "order_number": 1,
            "receipt_id": row.record_id.hex(),
            "tariff": {"input_eur": "0.20", "cached_input_eur": "0.20", "output_eur": "0.80"},
        }
        assert all("p2pgrid" not in (c.usage.model_dump() if c.usage else {}) for c in chunks[:-1])


async def test_a_stream_passes_byte_for_byte_without_the_usage_nobody_asked_for() -> None:
    seller = TestSeller()
    async with (
        front(seller) as f,
        f.http.post(f.url + "/v1/chat/completions", json=BODY | {"stream": True}) as response,
    ):
        assert response.headers["x-p2pgrid-provider"] == seller.peer_id
        assert response.content_type == "text/event-stream"
        assert await response.read() == b"".join(seller.events[:-2]) + seller.events[-1]
        await f.shop.settled(1)


async def test_completions() -> None:
    seller = TestSeller()
    head = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": MODEL}
    choice = {"index": 0, "text": "hi", "finish_reason": "stop", "token_ids": [7], "prompt_token_ids": [1, 2]}
    usage = {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}
    last = sse({**head, "choices": [], "usage": usage})
    seller.events = [sse({**head, "choices": [choice], "usage": usage}), last, b"data: [DONE]\n\n"]
    async with front(seller) as f:
        answer = await f.openai.completions.create(model=MODEL, prompt="x", max_tokens=4)
        assert answer.choices[0].text == "hi" and answer.object == "text_completion"


async def test_the_list_of_models_can_be_asked_for_what_is_wanted() -> None:
    cheap = TestSeller("cheap", output_upm=100_000, country="IT")
    async with front(TestSeller(), cheap) as f:
        await until(lambda: cheap.watchers)
        room = Capacity(sequence=cheap.offer.message.sequence, models=(ModelCapacity(model=MODEL, free=2),))
        cheap.watchers[-1].send(Kind.CAPACITY, room.to_bytes())
        await until(lambda: f.shop.purchaser.book.presence_of(cheap.peer_id).capacity)

        async def listed(query: str) -> list[dict[str, Any]]:
            async with f.http.get(f"{f.url}/v1/models{query}") as response:
                data = (await response.json())["data"]
                return [offer for model in data for offer in model["p2pgrid"]["offers"]]

        both = await listed("")
        assert [offer["operator"] for offer in both] == ["Operator cheap", "Operator seller"]
        assert [offer["free"] for offer in both] == [2, None]
        assert all(offer["live"] and abs(offer["confirmed_ms"] - cheap.now_ms()) < 10_000 for offer in both)
        assert [offer["operator"] for offer in await listed("?sort=context&country=LT")] == ["Operator seller"]
        assert [offer["operator"] for offer in await listed("?free=1")] == ["Operator cheap"]
        assert await listed("?min_context=100000") == []
        async with f.http.get(f"{f.url}/v1/models?sort=best") as response:
            assert response.status == 400 and "one of output" in (await response.json())["error"]["message"]
        async with f.http.get(f"{f.url}/health") as response:
            assert (await response.json())["refused"] == {}
        status, answer = await f.post(BODY, X_P2pgrid_Min_Context="100000")
        assert status == 503 and "100000 tokens" in answer["error"]["message"]
        status, answer = await f.post(BODY, X_P2pgrid_Max_Price_Output_EUR="0.1", X_P2pgrid_Free="1")
        assert status == 200 and len(cheap.bodies) == 1


async def test_a_provider_that_does_not_answer_is_not_listed() -> None:
    seller = TestSeller()
    seller.tamper = lambda kind, payload: None if kind == Kind.OFFER else payload  # it says nothing over the link
    async with front(seller) as f:
        f.shop.purchaser.book.note_dead(seller.peer_id)
        assert (await f.openai.models.list()).data == []
        async with f.http.get(f"{f.url}/health") as response:
            assert (await response.json())["offers"] == 0


async def test_the_models_and_their_offers() -> None:
    cheap, dear = TestSeller("cheap"), TestSeller("dear", country="IT", output_upm=900_000)
    async with front(dear, cheap) as f:
        (model,) = (await f.openai.models.list()).data
        assert model.id == MODEL and model.owned_by == "Operator cheap"
        offers = model.model_dump()["p2pgrid"]["offers"]
        assert [(o["provider"], o["country"], o["prices"]["output_eur"]) for o in offers] == [
            (cheap.peer_id, "LT", "0.80"),
            (dear.peer_id, "IT", "0.90"),
        ]
        assert (await f.openai.models.retrieve(MODEL)).id == MODEL
        with pytest.raises(openai.NotFoundError, match="On sale: tiny"):
            await f.openai.models.retrieve("other")
        async with f.http.get(f.url + "/health") as response:
            assert (await response.json())["offers"] == 2
        async with f.http.get(f.url + "/") as response:
            assert "OpenAI" in await response.text()


async def test_wishes_in_headers() -> None:
    cheap, dear = TestSeller("cheap"), TestSeller("dear", country="IT", output_upm=900_000)
    async with front(cheap, dear) as f:
        raw = await f.openai.chat.completions.with_raw_response.create(
            model=MODEL, messages=MESSAGES, extra_headers={"X-P2pgrid-Country": "it, fr"}
        )
        assert raw.headers["x-p2pgrid-country"] == "IT"
        raw = await f.openai.chat.completions.with_raw_response.create(
            model=MODEL, messages=MESSAGES, extra_headers={"X-P2pgrid-Provider": dear.peer_id}
        )
        assert raw.headers["x-p2pgrid-provider"] == dear.peer_id


@pytest.mark.parametrize(
    ("body", "headers", "status", "code", "words"),
    [
        (b"{", {}, 400, "bad-request", "JSON"),
        (b"[]", {}, 400, "bad-request", "JSON"),
        (BODY | {"model": 7}, {}, 400, "bad-request", "request"),
        (BODY | {"priority": 1}, {}, 400, "unsupported", "priority"),
        (BODY | {"model": "other"}, {}, 404, "model_not_found", "On sale: tiny"),
        (BODY, {"X_P2pgrid_Country": "IT"}, 503, "no-provider", "It is sold in: LT"),
        (BODY, {"X_P2pgrid_Country": "Italy"}, 400, "bad-request", "LT or IT"),
        (BODY, {"X_P2pgrid_Max_Cost_EUR": "0.000001"}, 402, "over-budget", "EUR are allowed"),
        (BODY, {"X_P2pgrid_Max_Cost_EUR": "cheap"}, 400, "bad-request", "amount"),
        (BODY | {"max_tokens": 5000}, {}, 400, "context_length_exceeded", "4096"),
        (BODY, {"content_type": "text/plain"}, 400, "bad-request", "application/json"),
        (BODY, {"Origin": "http://evil.example"}, 403, "forbidden", "web pages"),
        (BODY, {"Host": "evil.example:80"}, 403, "forbidden", "loopback"),
    ],
)
async def test_errors_have_openais_shape(
    body: Any, headers: dict[str, str], status: int, code: str, words: str
) -> None:
    seller = TestSeller()
    async with front(seller) as f:
        got, answer = await f.post(body, **headers)
        error = answer["error"]
        assert (got, error["code"]) == (status, code), answer
        assert set(error) == {"message", "type", "param", "code"} and words in error["message"]
        assert not seller.bodies


async def test_an_oversize_body_and_an_unknown_path() -> None:
    async with front(TestSeller()) as f:
        status, answer = await f.post(b" " * (MAX_BODY_BYTES + 1))
        assert status == 413 and "at most" in answer["error"]["message"]
        status, answer = await f.post({}, path="/v1/embeddings")
        assert status == 404 and "not served" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("HEAD", "/health", 200, None),
        ("HEAD", "/v1/models/tiny", 200, None),
        ("DELETE", "/v1/models", 405, "GET, HEAD, OPTIONS"),
        ("GET", "/v1/chat/completions", 405, "POST, OPTIONS"),
        ("OPTIONS", "/v1/chat/completions", 204, "POST, OPTIONS"),
        ("OPTIONS", "/v1/embeddings", 404, None),
    ],
)
async def test_methods(method: str, path: str, status: int, allow: str | None) -> None:
    async with front(TestSeller()) as f, f.http.request(method, f.url + path) as response:
        assert (response.status, response.headers.get("Allow")) == (status, allow)
        assert (await response.read() == b"") is (method == "HEAD" or status == 204)


async def test_who_may_not_spend_is_told_before_the_body() -> None:
    async with front(TestSeller(), api_key="a-key-of-many-characters") as f:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(f.url.rpartition(":")[2]))
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {MAX_BODY_BYTES}\r\nExpect: 100-continue\r\n\r\n".encode())
        async with asyncio.timeout(5):
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 401 ") and b"unauthorized" in answer
        writer.close()


@pytest.mark.parametrize(
    ("code", "status", "raised"),
    [
        ("busy", 429, openai.RateLimitError),
        ("too-many-open-orders", 429, openai.RateLimitError),
        ("credit-exhausted", 402, openai.APIStatusError),
        ("ledger-unavailable", 503, openai.InternalServerError),
        ("commitment", 502, openai.InternalServerError),
    ],
)
async def test_refusals_have_their_status(code: str, status: int, raised: type[openai.APIStatusError]) -> None:
    seller = TestSeller()
    seller.refusal = Refusal(code=code, message="no", retry_after_ms=1000)
    async with front(seller) as f:
        with pytest.raises(raised) as caught:
            await f.openai.chat.completions.create(model=MODEL, messages=MESSAGES)
        assert caught.value.status_code == status and caught.value.code == code


async def test_nobody_is_there_yet() -> None:
    async with front() as f:
        with pytest.raises(openai.InternalServerError, match="search goes on") as caught:
            await f.openai.chat.completions.create(model=MODEL, messages=MESSAGES)
        assert caught.value.status_code == 503


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_engines_own_refusal_is_passed_on(streamed: bool) -> None:
    seller = TestSeller()
    error = {"message": "max_tokens is too large", "type": "BadRequestError", "param": "max_tokens", "code": 400}
    seller.status, seller.events = 400, [json.dumps({"error": error}).encode()]
    async with front(seller) as f:
        with pytest.raises(openai.BadRequestError, match="too large") as caught:
            await f.openai.chat.completions.create(model=MODEL, messages=MESSAGES, stream=streamed)
        assert caught.value.param == "max_tokens"
        await f.shop.settled(1)
        assert f.shop.ledger.receipts()[0].receipt.status is Status.REFUSED


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_error_inside_the_engines_stream(streamed: bool) -> None:
    seller = TestSeller()
    error = {"message": "the queue is full", "type": "ServiceUnavailableError", "param": None, "code": 503}
    seller.events = [sse({"error": error}), b"data: [DONE]\n\n"]
    async with front(seller) as f:
        with pytest.raises(openai.InternalServerError, match="queue is full"):
            await f.openai.chat.completions.create(model=MODEL, messages=MESSAGES, stream=streamed)


async def test_a_stream_that_breaks_off_raises_in_the_program() -> None:
    seller = TestSeller()
    seller.hold_after = 3
    async with front(seller) as f:
        stream = await f.openai.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
        chunks = []
        with pytest.raises(openai.APIError, match="lost"):
            async for chunk in stream:
                chunks.append(chunk)
                if len(chunks) == 3:
                    seller.drop_links()
        assert len(chunks) == 3


async def test_a_whole_answer_that_breaks_off_is_asked_for_again() -> None:
    seller = TestSeller()
    seller.cut_after = 3
    async with front(seller) as f:
        asking = asyncio.create_task(f.openai.chat.completions.create(model=MODEL, messages=MESSAGES))
        await seller.until(lambda: seller.orders)
        seller.cut_after = None
        assert (await asking).choices[0].message.content == "w0 w1 w2 "


async def test_a_program_that_leaves_cancels_at_once() -> None:
    seller = TestSeller()
    seller.events, seller.hold_after = chat_events(30), 5
    async with front(seller) as f:
        body = BODY | {"stream": True}
        response = await f.http.post(f.url + "/v1/chat/completions", json=body)
        await response.content.readuntil(b"\n\n")
        response.close()
        # The seller says nothing more meanwhile, and nobody's patience is as short as this wait.
        await seller.until(lambda: seller.seen[Kind.CANCEL])
        await f.shop.settled(1)
        assert f.shop.ledger.receipts()[0].receipt.status is Status.CANCELLED


async def test_a_program_that_leaves_before_the_first_token_cancels_too() -> None:
    seller = TestSeller()
    seller.hold_after = 0
    async with front(seller) as f:
        asking = asyncio.create_task(f.post(BODY))
        await seller.until(lambda: seller.orders)
        asking.cancel()
        await seller.until(lambda: seller.seen[Kind.CANCEL])
        await f.shop.settled(1)
        assert f.shop.ledger.receipts()[0].receipt.amount_pico == 0


async def test_a_failing_ledger_is_503() -> None:
    seller = TestSeller()
    async with front(seller) as f:
        await f.openai.chat.completions.create(model=MODEL, messages=MESSAGES)
        orders = seller.seen[Kind.ORDER]
        f.shop.ledger.fail_append()
        status, answer = await f.post(BODY)
        assert (status, answer["error"]["code"]) == (503, "ledger-unavailable")
        assert seller.seen[Kind.ORDER] == orders


async def test_an_operators_name_cannot_forge_headers() -> None:
    seller = TestSeller()
    seller.offer = seller.make_offer(operator="Ünï\r\nSet-Cookie: x=1")
    async with front(seller) as f:
        raw = await f.openai.chat.completions.with_raw_response.create(model=MODEL, messages=MESSAGES)
        assert raw.headers["x-p2pgrid-operator"].startswith("%C3%9Cn%C3%AF%0D%0ASet-Cookie")
        assert "set-cookie" not in raw.headers


async def test_the_api_key() -> None:
    async with front(TestSeller(), api_key="a-key-of-many-characters") as f:
        await f.openai.chat.completions.create(model=MODEL, messages=MESSAGES)
        for shown in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic a-key-of-many-characters"}):
            status, answer = await f.post(BODY, **shown)
            assert status == 401 and answer["error"]["code"] == "unauthorized"
        wrong = f.openai.with_options(api_key="wrong")
        with pytest.raises(openai.AuthenticationError):
            await wrong.models.list()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_others_are_not_let_in_without_a_key(host: str) -> None:
    with pytest.raises(UsageError, match="spend your money"):
        check_exposure(host, None)
    check_exposure(host, "a-key-of-many-characters")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.0.1"])
def test_loopback_needs_no_key(host: str) -> None:
    check_exposure(host, None)


async def test_a_port_in_use() -> None:
    async with front() as f:
        port = int(f.url.rpartition(":")[2])
        with pytest.raises(LocalError, match="cannot listen"):
            await serve(Gateway(f.shop.purchaser, network="test"), "127.0.0.1", port)


async def test_many_at_once() -> None:
    seller = TestSeller(input_upm=0, output_upm=0)  # what is free needs no cover
    async with front(seller) as f:
        answers = await asyncio.gather(
            *(f.openai.chat.completions.create(model=MODEL, messages=MESSAGES) for _ in range(20))
        )
        assert {a.choices[0].message.content for a in answers} == {"w0 w1 w2 "}
        await f.shop.settled(20)
