"""Which roads are remembered, for how long, and what a file that is no such memory does: nothing."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2pgrid.client import road_memory
from p2pgrid.client.road_memory import KEPT_MS, MOST_REMEMBERED, RENEWED_MS, RoadMemory
from p2pgrid.net.road import Road
from tests.client.seller import until
from tests.client.test_offers import Clock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "roads.json"


def roads_in(path: Path) -> dict[str, str]:
    return {one["peer_id"]: one["road"] for one in msgspec.json.decode(path.read_bytes())["roads"]}


def put(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def content_of(path: Path) -> bytes:
    return path.read_bytes()


def written_at(path: Path) -> int:
    return path.stat().st_mtime_ns


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def written(*roads: tuple[str, str, int]) -> bytes:
    return msgspec.json.encode(
        {"version": 1, "roads": [{"peer_id": p, "road": road, "worked_ms": at} for p, road, at in roads]}
    )


async def test_what_worked_is_known_to_the_next_process(path: Path) -> None:
    async with RoadMemory(path, now_ms=Clock()) as memory:
        assert memory.road_to("a") is Road.DIRECT
        memory.worked("a", Road.LIBP2P)
        memory.worked("b", Road.RELAYED)
        memory.worked("c", Road.DIRECT)
        memory.worked("d", Road.RELAYED)
        memory.worked("d", Road.DIRECT)
        assert (memory.road_to("a"), memory.road_to("d")) == (Road.LIBP2P, Road.DIRECT)
    assert mode_of(path) == 0o600
    assert roads_in(path) == {"a": "libp2p", "b": "relayed"}
    async with RoadMemory(path, now_ms=Clock()) as memory:
        assert [memory.road_to(one) for one in "abcd"] == [Road.LIBP2P, Road.RELAYED, Road.DIRECT, Road.DIRECT]


async def test_it_is_written_while_the_process_runs_and_not_with_every_dial(path: Path) -> None:
    """A process that is killed does not get to write at its end."""
    clock = Clock()
    memory = await RoadMemory(path, now_ms=clock, write_pause_s=0.01).__aenter__()
    memory.worked("a", Road.LIBP2P)
    await until(path.exists, True)
    assert roads_in(path) == {"a": "libp2p"}
    first = written_at(path)
    clock.ms += RENEWED_MS - 1
    memory.worked("a", Road.LIBP2P)
    await memory.__aexit__()
    assert written_at(path) == first


async def test_a_road_that_did_not_work_for_thirty_days_is_forgotten(path: Path) -> None:
    clock = Clock()
    async with RoadMemory(path, now_ms=clock) as memory:
        memory.worked("left", Road.LIBP2P)
        memory.worked("used", Road.LIBP2P)
        clock.ms += RENEWED_MS
        memory.worked("used", Road.LIBP2P)
    clock.ms += KEPT_MS - RENEWED_MS + 1
    async with RoadMemory(path, now_ms=clock) as memory:
        assert (memory.road_to("left"), memory.road_to("used")) == (Road.DIRECT, Road.LIBP2P)
        clock.ms += RENEWED_MS
        assert memory.road_to("used") is Road.DIRECT
        memory.worked("new", Road.RELAYED)
    assert roads_in(path) == {"new": "relayed"}


async def test_it_is_bounded_and_loses_what_worked_longest_ago(path: Path) -> None:
    clock = Clock()
    async with RoadMemory(path, now_ms=clock) as memory:
        for n in range(MOST_REMEMBERED):
            memory.worked(f"{n}", Road.LIBP2P)
        clock.ms += RENEWED_MS
        memory.worked("0", Road.LIBP2P)
        memory.worked("one more", Road.RELAYED)
    kept = roads_in(path)
    assert len(kept) == MOST_REMEMBERED
    assert {"0", "2", "one more"} < kept.keys() and "1" not in kept
    put(path, written(*((f"{n}", "libp2p", clock.ms) for n in range(MOST_REMEMBERED + 1))))
    async with RoadMemory(path, now_ms=clock) as memory:
        assert len(memory._roads) == MOST_REMEMBERED


async def test_a_clock_that_was_set_back_keeps_nothing_for_ever(path: Path) -> None:
    clock = Clock()
    put(path, written(("a", "libp2p", clock.ms + 10 * KEPT_MS)))
    async with RoadMemory(path, now_ms=clock) as memory:
        assert memory.road_to("a") is Road.LIBP2P
        clock.ms += KEPT_MS + 1
        assert memory.road_to("a") is Road.DIRECT


async def test_one_that_does_not_write_leaves_the_file_alone(path: Path) -> None:
    content = written(("a", "libp2p", Clock().ms))
    put(path, content)
    async with RoadMemory(path, now_ms=Clock(), writes=False, write_pause_s=0) as memory:
        assert memory.road_to("a") is Road.LIBP2P
        memory.worked("b", Road.RELAYED)
        assert memory.road_to("b") is Road.RELAYED
    assert content_of(path) == content


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no JSON",
        b"[]",
        b'{"roads": 1}',
        written(("a", "by air", 1)),
        written(("a", "libp2p", 1)).replace(b":1}]", b':"soon"}]'),
        b"[" * 100_000,
        b"\xff" * 40,
    ],
)
async def test_a_damaged_file_is_no_memory(path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    put(path, content)
    async with RoadMemory(path, now_ms=Clock()) as memory:
        assert memory.road_to("a") is Road.DIRECT
        assert "are not read" in caplog.text
        memory.worked("a", Road.LIBP2P)
    assert roads_in(path) == {"a": "libp2p"}


async def test_a_file_that_is_too_large_is_not_read(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(path, written(("a", "libp2p", Clock().ms)))
    monkeypatch.setattr(road_memory, "_MOST_BYTES", 10)
    async with RoadMemory(path, now_ms=Clock()) as memory:
        assert memory.road_to("a") is Road.DIRECT
    assert "too large" in caplog.text


async def test_names_that_no_peer_has_take_no_place(path: Path) -> None:
    put(path, written(("a" * 65, "libp2p", Clock().ms)))
    async with RoadMemory(path, now_ms=Clock()) as memory:
        assert not memory._roads


async def test_what_cannot_be_written_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with RoadMemory(tmp_path / "nowhere" / "roads.json", now_ms=Clock()) as memory:
        memory.worked("a", Road.LIBP2P)
    assert "cannot be remembered" in caplog.text


async def test_without_a_file_it_ends_with_the_process() -> None:
    memory: Any = RoadMemory(now_ms=Clock())
    memory.worked("a", Road.LIBP2P)
    assert memory.road_to("a") is Road.LIBP2P
    assert memory._writing is None
