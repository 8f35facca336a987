"""The command socket: who may connect, what is said, and what is left behind."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from p2pgrid.commands.address import MOST_PATH_BYTES, socket_path
from p2pgrid.commands.client import find_node
from p2pgrid.commands.server import serve_commands
from p2pgrid.commands.wire import DO_PATH, MAX_COMMAND_BYTES, About, error_of, failure_of
from p2pgrid.errors import InvalidRecord, LedgerError, LocalError, P2pgridError, ProtocolViolation, Refused, UsageError

ABOUT = About(version="1", peer_id="12D3KooWtest", role="client", pid=os.getpid())


class Double(msgspec.Struct, tag="double"):
    number: int


class Fail(msgspec.Struct, tag="fail"):
    how: str


class Doubled(msgspec.Struct):
    number: int


async def perform(ask: Any) -> Any:
    match ask:
        case Double(number):
            return Doubled(2 * number)
        case Fail("refused"):
            raise Refused("busy", "too much.", hint="Later.")
        case Fail("bug"):
            raise ZeroDivisionError
    raise AssertionError


@asynccontextmanager
async def node(data: Path) -> AsyncIterator[Path]:
    path = socket_path(data)
    async with serve_commands(path, ABOUT, Double | Fail, perform) as served:
        assert served
        yield path


async def test_a_node_is_found_and_asked(tmp_path: Path) -> None:
    async with node(tmp_path) as path:
        assert path.parent == tmp_path
        found = await find_node(tmp_path)
        assert found is not None
        assert found.about == ABOUT
        assert await found.ask(Double(21), Doubled) == Doubled(42)
    assert not path.exists()
    assert await find_node(tmp_path) is None
    with pytest.raises(LocalError, match="stopped"):
        await found.ask(Double(21), Doubled)


async def test_the_socket_is_its_owners_alone(tmp_path: Path) -> None:
    async with node(tmp_path) as path:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_errors_arrive_as_they_were_raised(tmp_path: Path) -> None:
    async with node(tmp_path):
        found = await find_node(tmp_path)
        assert found is not None
        with pytest.raises(Refused) as refused:
            await found.ask(Fail("refused"), Doubled)
        assert (refused.value.code, refused.value.message, refused.value.hint) == ("busy", "too much.", "Later.")
        with pytest.raises(LocalError, match="failed"):
            await found.ask(Fail("bug"), Doubled)
        assert await found.ask(Double(1), Doubled) == Doubled(2)


@pytest.mark.parametrize(
    "error",
    [
        UsageError("a", hint="b"),
        LedgerError("a"),
        Refused("c", "a", hint="b"),
        InvalidRecord("c", "a"),
        ProtocolViolation("a"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_error_travels(error: P2pgridError) -> None:
    came = error_of(failure_of(error))
    assert type(came) is type(error)
    assert vars(came) == vars(error)


def test_a_failure_of_no_known_type() -> None:
    failure = failure_of(LocalError("x"))
    for name in ("annotations", "P2pgridErrors", "__name__"):
        assert type(error_of(msgspec.structs.replace(failure, type=name))) is LocalError


async def test_a_command_the_node_does_not_know(tmp_path: Path) -> None:
    class Halve(msgspec.Struct, tag="halve"):
        number: int

    async with node(tmp_path):
        found = await find_node(tmp_path)
        assert found is not None
        with pytest.raises(UsageError, match="does not know") as unknown:
            await found.ask(Halve(2), Doubled)
        assert "Restart" in unknown.value.hint
        with pytest.raises(LocalError, match="not understood"):
            await found.ask(Double(1), int)


async def test_a_socket_that_a_killed_node_left(tmp_path: Path) -> None:
    path = socket_path(tmp_path)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    assert await find_node(tmp_path) is None
    async with node(tmp_path):
        assert await find_node(tmp_path) is not None
    assert not path.exists()


async def test_a_file_in_its_place_is_not_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = socket_path(tmp_path)
    path.write_text("mine")
    async with serve_commands(path, ABOUT, Double | Fail, perform) as served:
        assert not served
        assert await find_node(tmp_path) is None
    assert path.read_text() == "mine"
    assert "no commands are taken" in caplog.text


async def test_a_later_nodes_socket_is_not_removed(tmp_path: Path) -> None:
    async with node(tmp_path) as path:
        path.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
    assert path.exists()


async def test_a_long_path_has_its_socket_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / ("x" * 120)
    data.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    path = socket_path(data)
    assert len(os.fsencode(path)) <= MOST_PATH_BYTES
    assert socket_path(tmp_path / ("y" * 120)) != path
    async with node(data):
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert await find_node(data) is not None
        (tmp_path / "link").symlink_to(data)
        assert await find_node(tmp_path / "link") is not None
    assert not path.exists()


async def test_a_runtime_folder_that_is_open_to_others_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = Path("/tmp") / f"p2pgrid-test-{os.getpid()}"
    (runtime / "p2pgrid").mkdir(parents=True)
    (runtime / "p2pgrid").chmod(0o777)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    try:
        path = socket_path(tmp_path / ("x" * 120))
        assert path.parent == runtime / "p2pgrid"
        async with serve_commands(path, ABOUT, Double | Fail, perform) as served:
            assert not served
        assert "open to others" in caplog.text
    finally:
        (runtime / "p2pgrid").rmdir()
        runtime.rmdir()


async def test_what_listens_there_and_is_no_node(tmp_path: Path) -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhm")
        writer.close()

    async with await asyncio.start_unix_server(babble, path=socket_path(tmp_path)):
        with pytest.raises(LocalError, match="not understood"):
            await find_node(tmp_path)


async def test_a_node_that_goes_away_in_the_middle(tmp_path: Path) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    async with await asyncio.start_unix_server(hang_up, path=socket_path(tmp_path)):
        with pytest.raises(LocalError, match="went away"):
            await find_node(tmp_path)


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="the platform does not say who connects")
async def test_another_user_is_turned_away(tmp_path: Path) -> None:
    path = socket_path(tmp_path)
    async with serve_commands(path, ABOUT, Double | Fail, perform, owner_uid=os.geteuid() + 1):
        connector = aiohttp.UnixConnector(path=str(path))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.post(f"http://node{DO_PATH}", data=msgspec.json.encode(Double(1))) as response,
        ):
            assert response.status == 403


async def test_a_command_that_is_too_long(tmp_path: Path) -> None:
    async with node(tmp_path) as path:
        connector = aiohttp.UnixConnector(path=str(path))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.post(f"http://node{DO_PATH}", data=b"x" * (MAX_COMMAND_BYTES + 1)) as response,
        ):
            assert response.status == 413
