"""engine.http against the fake: bytes pass untouched, faults become errors with advice, leaving aborts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from p2pgrid.engine.base import CHAT_COMPLETIONS, EngineModel
from p2pgrid.engine.fake import FakeVllm, serve_fake
from p2pgrid.engine.http import HttpEngine, parse_health
from p2pgrid.engine.http_client import EngineLimits
from p2pgrid.errors import EngineError, ProtocolViolation, Refused, UsageError
from tests.engine.asking import ask, body

PATIENT = EngineLimits(silence_timeout_s=30, page_timeout_s=30, connect_timeout_s=30)
IMPATIENT = EngineLimits(silence_timeout_s=0.5, page_timeout_s=30, connect_timeout_s=30)


@pytest.fixture
def fake() -> FakeVllm:
    return FakeVllm()


@pytest.fixture(params=["unix", "tcp"])
async def engine(fake: FakeVllm, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[HttpEngine]:
    uds = tmp_path / "e.sock" if request.param == "unix" else None
    async with serve_fake(fake, uds=uds) as url:
        engine = HttpEngine(url, limits=PATIENT)
        await engine.ready(5)
        yield engine
        await engine.aclose()


async def until_idle(fake: FakeVllm) -> None:
    async with asyncio.timeout(30):
        while fake.state.running:  # noqa: ASYNC110 - the fake tells nobody
            await asyncio.sleep(0.005)


async def test_models_and_health(engine: HttpEngine) -> None:
    assert engine.models() == (EngineModel(name="fake", context_tokens=4096),)
    health = await engine.health()
    assert health.is_healthy and (health.running, health.waiting, health.kv_cache_used) == (0, 0, 0.0)


@pytest.mark.parametrize("prompt", [{}, {"prompt": ["a b c", "d e"], "n": 2}])
async def test_an_answer_is_counted_whole(engine: HttpEngine, prompt: dict[str, object]) -> None:
    told = await ask(engine, body(model="fake", max_tokens=8, **prompt), request_id="ab-1")
    assert told.status == 200 and told.content_type.startswith("text/event-stream")
    assert told.counter.is_whole and told.counter.finish_reason == "length"
    assert told.counter.output_tokens == 8 * (4 if prompt else 1)
    assert told.counter.response_id.endswith("-ab-1")


async def test_a_repeated_prompt_is_cached(engine: HttpEngine) -> None:
    request = body(model="fake", prompt="word " * 50)
    assert [(await ask(engine, request)).counter.cached_tokens for _ in range(2)] == [0, 48]


async def test_an_unstreamed_answer_passes_as_it_is(engine: HttpEngine) -> None:
    told = await ask(engine, body(model="fake", stream=False, max_tokens=3))
    assert told.status == 200 and json.loads(told.body)["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize(
    ("fields", "status"),
    [({"model": "none"}, 404), ({"model": "fake", "max_tokens": 9999}, 400), ({"model": "fake+busy"}, 503)],
)
async def test_the_engines_refusals_pass_as_they_are(
    engine: HttpEngine, fields: dict[str, object], status: int
) -> None:
    told = await ask(engine, body(**fields))
    assert told.status == status and json.loads(told.body)["error"]["code"] == status


@pytest.mark.parametrize("fault", ["error", "empty", "wrong-usage", "wrong-prompt", "no-ids", "no-usage"])
async def test_faults_that_a_counter_sees(engine: HttpEngine, fault: str) -> None:
    counter = (await ask(engine, body(model=f"fake+{fault}", max_tokens=8))).counter
    assert counter.is_whole is (fault == "empty")
    assert (counter.error is not None) is (fault == "error")
    assert bool(counter.contradiction) is (fault in ("wrong-usage", "wrong-prompt", "no-ids"))


@pytest.mark.parametrize("fault", ["garbage", "huge"])
async def test_faults_that_a_counter_refuses(engine: HttpEngine, fault: str) -> None:
    with pytest.raises(ProtocolViolation):
        await ask(engine, body(model=f"fake+{fault}"))


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [("dies", "broke off"), ("hang", "fell silent"), ("hang-head", "did not begin to answer")],
)
async def test_faults_that_are_the_engines(fake: FakeVllm, fault: str, sentence: str) -> None:
    async with serve_fake(fake) as url:
        engine = HttpEngine(url, limits=IMPATIENT)
        with pytest.raises(EngineError, match=sentence):
            await ask(engine, body(model=f"fake+{fault}"))
        await until_idle(fake)
        assert fake.state.aborted == 1
        await engine.aclose()


async def test_abort_stops_the_work(engine: HttpEngine, fake: FakeVllm) -> None:
    answer = await engine.request(CHAT_COMPLETIONS, body(model="fake+endless", fake={"pace_ms": 1}), "order-2")
    pieces = aiter(answer)
    await anext(pieces)
    assert (await engine.health()).running == 1 and answer.metrics.first_byte_s is not None
    await answer.abort()
    await answer.abort()
    await until_idle(fake)
    assert (fake.state.aborted, fake.state.completed) == (1, 0)


async def test_abort_wakes_whoever_reads(engine: HttpEngine, fake: FakeVllm) -> None:
    answer = await engine.request(CHAT_COMPLETIONS, body(model="fake+endless"), "order-2")
    seen = asyncio.Event()

    async def read() -> None:
        async for _ in answer:
            seen.set()

    reader = asyncio.create_task(read())
    await seen.wait()
    await answer.abort()
    await asyncio.wait({reader}, timeout=30)
    assert reader.done()
    reader.exception()
    await until_idle(fake)


async def test_an_answer_without_end_is_cut(fake: FakeVllm) -> None:
    async with serve_fake(fake) as url:
        engine = HttpEngine(url, limits=EngineLimits(max_answer_bytes=20_000))
        with pytest.raises(EngineError, match="over 20000 bytes"):
            await ask(engine, body(model="fake+endless"))
        await until_idle(fake)
        await engine.aclose()


@pytest.mark.parametrize("endpoint", ["/metrics", "/tokenize", "/v1/chat/completions/", "/v1/chat/completions?x=1", ""])
async def test_other_endpoints_never_reach_the_engine(engine: HttpEngine, fake: FakeVllm, endpoint: str) -> None:
    with pytest.raises(Refused) as caught:
        await engine.request(endpoint, b"{}", "order-1")
    assert caught.value.code == "unknown-endpoint" and not fake.state.request_ids


@pytest.mark.parametrize("request_id", ["", "a b", "a\r\nX: y", "ü", "x" * 129])
async def test_an_id_that_is_no_header_is_refused(engine: HttpEngine, request_id: str) -> None:
    with pytest.raises(Refused):
        await engine.request(CHAT_COMPLETIONS, b"{}", request_id)


async def test_an_engine_that_is_away(tmp_path: Path) -> None:
    engine = HttpEngine(f"unix:{tmp_path}/none.sock", limits=PATIENT)
    with pytest.raises(EngineError, match=r"not ready within 0 s.*cannot be reached"):
        await engine.ready(0.3)
    with pytest.raises(EngineError, match="cannot be reached"):
        await ask(engine, body(model="fake"))
    health = await engine.health()
    assert not health.is_healthy and "cannot be reached" in health.detail
    await engine.aclose()
    await engine.aclose()


@pytest.mark.parametrize(
    "url", ["", "ftp://x", "http://", "unix:", "unix:relative", "http://x:99999", "http://x?y", "x:1"]
)
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(UsageError):
        HttpEngine(url)


def test_urls_as_people_write_them() -> None:
    for url in ("http://127.0.0.1:8000/", "http://[::1]:8000/v1", "https://engine.example", "unix:///run/e.sock"):
        HttpEngine(url)


@pytest.mark.parametrize("value", ["1e999", ".", "--", "1e", "+-.e"])
def test_a_metrics_page_of_nonsense_says_nothing_of_the_engine(value: str) -> None:
    health = parse_health(f"vllm:num_requests_running {value}\n".encode())
    assert (health.is_healthy, health.running, health.detail) == (True, -1, "its /metrics page is not vLLM's")
