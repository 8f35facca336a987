"""The engine and the load of the path's benchmark: the engine's bytes are vLLM's, and the load sees what is wrong."""

from __future__ import annotations

import asyncio
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import pytest
from path_parts import toolbox
from path_parts.cells import FULL, paced
from path_parts.process import Process, cpu_ns

from p2pgrid.engine.http import HttpEngine, parse_health
from p2pgrid.proto.counting import TokenCounter
from p2pgrid.proto.sse import EventSplitter

pytestmark = pytest.mark.skipif(not (shutil.which("gcc") or shutil.which("cc")), reason="there is no C compiler")

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("programs")
    return {name: toolbox.compiled(name, folder) for name in ("engine", "load")}


@pytest.fixture
async def engine(programs: dict[str, Path], tmp_path: Path) -> AsyncIterator[tuple[int, int]]:
    """Port and process id of an engine."""
    process = Process("engine", [str(programs["engine"])], log=tmp_path / "engine.log", core=None)
    try:
        yield process.ready_line(10)["port"], process.pid
    finally:
        process.stop()


async def load(programs: dict[str, Path], port: int, *arguments: str) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        str(programs["load"]), "--port", str(port), *arguments, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    result: dict[str, Any] = json.loads(output)
    return result


def body(*, stream: bool = True, tokens: int = 30, pace: str = "none", **more: Any) -> bytes:
    asked = {"model": "bench", "messages": [{"role": "user", "content": f"pace={pace} Hello"}], "max_tokens": tokens}
    if stream:
        asked |= {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps({**asked, "return_token_ids": True, **more}).encode()


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("endpoint", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("pace", ["none", "staggered:500", "step:500"])
async def test_the_engines_streams_are_what_the_provider_counts_and_signs(
    engine: tuple[int, int], endpoint: str, pace: str, *, continuous: bool
) -> None:
    client = HttpEngine(f"http://127.0.0.1:{engine[0]}")
    options = {"include_usage": True, "continuous_usage_stats": continuous}
    await client.ready(10)
    assert [model.name for model in client.models()] == ["bench"]
    answer = await client.request(endpoint, body(pace=pace, prompt="x", stream_options=options), "ab12")
    splitter, counter, usages = EventSplitter(), TokenCounter(), 0
    async for data in answer:
        for event in splitter.feed(data):
            counter.feed(event)
            usages += b'"usage"' in event
    await client.aclose()
    assert counter.is_whole, counter.contradiction
    assert (counter.prompt_tokens, counter.output_tokens, counter.prompt_ids_seen) == (42, 30, True)
    assert counter.finish_reason == "length"
    assert counter.response_id == ("chatcmpl-ab12" if "chat" in endpoint else "cmpl-ab12")
    assert usages == (31 + ("chat" in endpoint) if continuous else 1)


async def test_the_engines_whole_answers_and_pages(engine: tuple[int, int]) -> None:
    base = f"http://127.0.0.1:{engine[0]}"
    async with aiohttp.ClientSession() as session:
        for endpoint in ("/v1/chat/completions", "/v1/completions"):
            async with session.post(base + endpoint, data=body(stream=False, tokens=16)) as response:
                answer = await response.json()
            assert answer["usage"] == {"prompt_tokens": 42, "total_tokens": 58, "completion_tokens": 16}
            assert len(answer["choices"][0]["token_ids"]) == 16
        async with session.get(base + "/metrics") as response:
            assert parse_health(await response.read()).running == 0


async def test_a_chunk_has_the_size_of_vllms(engine: tuple[int, int], programs: dict[str, Path]) -> None:
    result = await load(programs, engine[0], "--stream", "--tokens", "200", "--requests", "2", "--window-s", "20")
    assert 230 <= result["all_bytes"] / result["all_chunks"] <= 270


async def test_streams_in_step_share_their_instants_and_staggered_ones_do_not(engine: tuple[int, int]) -> None:
    period_ns = 50_000_000

    async def stamps(pace: str, tokens: int = 20) -> list[int]:
        url = f"http://127.0.0.1:{engine[0]}/v1/chat/completions"
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, data=body(tokens=tokens, pace=pace)) as response,
        ):
            text = (await response.read()).decode()
        return [int(part[:19]) for part in text.split("@")[1:]]

    first, second = await asyncio.gather(stamps("step:50000"), stamps("step:50000"))
    assert len(first) == len(second) == 20
    assert len({stamp // period_ns for stamp in first} & {stamp // period_ns for stamp in second}) >= 10
    assert median(stamp % period_ns for stamp in first + second) < period_ns / 4, "just after the clock's multiples"
    asked_ns = time.monotonic_ns()
    [alone] = await stamps("staggered:60000000", tokens=1)
    assert alone - asked_ns < 60e9, "the first comes at once"
    own = await stamps("staggered:50000")
    assert own[-1] - own[0] >= 18 * period_ns


async def test_the_load_measures_a_window_of_whole_answers(engine: tuple[int, int], programs: dict[str, Path]) -> None:
    port, pid = engine
    before = cpu_ns([pid])
    words = ["--stream", "--connections", "8", "--tokens", "10", "--pace", "staggered:5000", "--warm-s", "0.1"]
    result = await load(programs, port, *words, "--window-s", "0.4", "--pids", str(pid))
    assert (result["errors"], result["cut"], result["most_open"]) == (0, 0, 8)
    assert result["begun"] == result["finished"] > 8
    assert result["all_chunks"] == 10 * result["finished"]
    assert 0 < result["chunks"] < result["all_chunks"], "what came before and after the window does not count in it"
    assert result["delay"]["count"] == result["chunks"]
    assert 0 < result["delay"]["p50_us"] <= result["delay"]["p99_us"]
    assert 0 < result["cpu_ns"][str(pid)] <= cpu_ns([pid]) - before


@pytest.mark.parametrize("cell", [FULL[0], paced("step", 3, tokens=5, window_s=0.2)], ids=lambda cell: cell.name)
async def test_the_load_takes_a_cells_arguments(engine: tuple[int, int], programs: dict[str, Path], cell: Any) -> None:
    arguments = cell.arguments()
    arguments[arguments.index("--window-s") + 1] = "0.2"
    result = await load(programs, engine[0], *arguments, "--pids", str(engine[1]))
    result |= {"engine_cpu_ns": result["cpu_ns"][str(engine[1])], "node_cpu_ns": {"engine": 1000}}
    figures = cell.metrics(result)
    assert figures["errors"] == 0
    assert figures["requests_per_s" if not cell.stream else "chunks_per_s"] > 0


async def whole_answer(engine: tuple[int, int], *, stream: bool) -> bytes:
    url = f"http://127.0.0.1:{engine[0]}/v1/chat/completions"
    async with aiohttp.ClientSession() as session, session.post(url, data=body(stream=stream)) as response:
        return await response.read()


def chunked(pieces: list[bytes], status: str = "200 OK") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    return head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


async def load_on(programs: dict[str, Path], answer: list[bytes], *, then_close: bool = False) -> dict[str, Any]:
    """The load against a server that always gives this answer, in these pieces."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                await reader.readexactly(int(head.lower().partition("content-length:")[2].split()[0]))
                for piece in answer:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                if then_close:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        return await load(programs, port, "--stream", "--tokens", "30", "--requests", "3", "--window-s", "10")


@pytest.mark.parametrize("size", [1, 7, 100, 5000])
async def test_answers_may_be_cut_anywhere(engine: tuple[int, int], programs: dict[str, Path], size: int) -> None:
    """Into other HTTP chunks, and into other reads."""
    text = await whole_answer(engine, stream=True)
    wire = chunked([text[at : at + size] for at in range(0, len(text), size)])
    result = await load_on(programs, [wire[at : at + 1000] for at in range(0, len(wire), 1000)])
    assert (result["errors"], result["finished"], result["all_chunks"]) == (0, 3, 90)


async def test_a_wrong_answer_is_an_error(engine: tuple[int, int], programs: dict[str, Path]) -> None:
    text = await whole_answer(engine, stream=True)
    events = text.split(b"\n\n")
    wrong = {
        "a token less": chunked([b"\n\n".join(events[:5] + events[6:])]),
        "a token more": chunked([b"\n\n".join([*events[:5], *events[4:]])]),
        "no [DONE]": chunked([text.replace(b"[DONE]", b"[DONT]")]),
        "an error's status": chunked([text], "503 Service Unavailable"),
        "nothing": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    }
    for what, wire in wrong.items():
        result = await load_on(programs, [wire])
        assert result["errors"] == 3, what
        assert result["error"], what
    result = await load_on(programs, [chunked([text])[:-700]], then_close=True)
    assert result["errors"] == 3, "cut off"


def test_calibration_is_a_fixed_piece_of_work(programs: dict[str, Path]) -> None:
    done = subprocess.run([programs["load"], "--calibrate"], capture_output=True, check=True)
    measured = json.loads(done.stdout)
    assert 0 < measured["cpu_us"] <= measured["wall_us"] * 1.01


_PARENT = """
import sys
from pathlib import Path
from path_parts.process import Process
child = Process("child", [sys.executable, "-c", "import time; print('{}', flush=True); time.sleep(600)"],
                log=Path(sys.argv[1]), core=None)
child.ready_line(30)
print(child.pid, flush=True)
import time; time.sleep(600)
"""


def test_a_benchmark_that_is_killed_leaves_nothing_behind(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(toolbox.ROOT / "scripts" / "bench")}
    command = [sys.executable, "-c", _PARENT, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        watched = os.pidfd_open(pid)
        parent.send_signal(signal.SIGKILL)
    assert select.select([watched], [], [], 30)[0], "the child outlived the benchmark"
    os.close(watched)
