"""`p2pgrid gateway` and `p2pgrid offers`: flags over file, refusals, and both as processes of their own."""

from __future__ import annotations

import asyncio
import json
import signal
import stat
import sys
from pathlib import Path

import aiohttp
import pytest

from p2pgrid.cli.gateway import read_api_key, with_flags
from p2pgrid.commands.address import socket_path
from p2pgrid.commands.client import find_node
from p2pgrid.config import ClientConfig
from p2pgrid.errors import UsageError
from tests.factories import PROVIDER

FILE = ClientConfig(listen="127.0.0.1:1", countries=("DE",), max_cost_eur="1")


def test_no_flag_changes_nothing() -> None:
    assert with_flags(FILE, None, (), None, None) == FILE


def test_flags_beat_the_file() -> None:
    config = with_flags(FILE, "[::1]:2", ("lt", "IT"), "0.5", Path("/key"))
    assert config == ClientConfig(
        listen="[::1]:2", countries=("LT", "IT"), max_cost_eur="0.5", api_key_file=str(Path("/key"))
    )


def test_the_number_of_processes_is_a_flag_and_a_key() -> None:
    assert with_flags(FILE, None, (), None, None).processes == 1
    assert with_flags(FILE, None, (), None, None, processes=4).processes == 4
    for wrong in (0, 5):
        with pytest.raises(UsageError, match="processes"):
            with_flags(FILE, None, (), None, None, processes=wrong)


def test_a_country_that_is_none() -> None:
    with pytest.raises(UsageError, match="LT or IT"):
        with_flags(FILE, None, ("Italy",), None, None)


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        ("x" * 48, 0o644, "chmod 600"),
        ("short", 0o600, "16 characters"),
        (None, 0, "umask 077"),
        ("é" * 48, 0o600, "read"),
    ],
)
def test_api_keys_that_are_not_used(tmp_path: Path, content: str | None, mode: int, words: str) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_text(content)
        path.chmod(mode)
    with pytest.raises(UsageError) as caught:
        read_api_key(path)
    assert words in str(caught.value)


def test_an_api_key(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("x" * 48 + "\n")
    path.chmod(0o600)
    assert read_api_key(path) == "x" * 48


async def start(data: Path, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "p2pgrid", "--data", str(data), *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


def no_peers(folder: Path) -> tuple[str, ...]:
    """Options for a network of nobody."""
    path = folder / "peers.toml"
    path.write_text("[networks.lonely]\npeers = []\n")
    return "--network", "lonely", "--bootstrap-peers", str(path)


@pytest.mark.process
async def test_a_gateway_that_finds_nobody_serves_and_stops_when_told(tmp_path: Path) -> None:
    data = tmp_path / "client"
    process = await start(data, "gateway", "--listen", "127.0.0.1:0", "--json", *no_peers(tmp_path))
    try:
        assert process.stdout is not None
        ready = json.loads(await process.stdout.readline())
        assert stat.S_IMODE((data / "key").stat().st_mode) == 0o600
        body = {"model": "m", "messages": []}
        async with aiohttp.ClientSession() as http:
            async with http.post(ready["base_url"] + "/chat/completions", json=body) as response:
                assert response.status == 503
                assert "search goes on" in (await response.json())["error"]["message"]
            async with http.get(ready["base_url"] + "/models") as response:
                assert (await response.json())["data"] == []
        node = await find_node(data)
        assert node is not None
        assert (node.about.role, node.about.peer_id, node.about.pid) == ("client", ready["peer_id"], process.pid)
        peer = PROVIDER.public_key.peer_id
        allowing = await start(data, "offers", "allow", peer, "--json")
        output, errors = await asyncio.wait_for(allowing.communicate(), 20)
        assert json.loads(output) == {"peer": peer, "was_held": False, "reason": "", "since_ms": 0}, errors
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) == 0
        assert not socket_path(data).exists()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.process
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("gateway", "--listen", "0.0.0.0:0"), 2, "--api-key-file"),
        (("gateway", "--listen", "nowhere"), 2, "host:port"),
        (("gateway", "--max-cost-eur", "cheap"), 2, "0.05"),
        (("offers", "--country", "Italy"), 2, "ISO 3166-1"),
        (("offers", "--timeout", "1"), 0, "Searched through: no bootstrap peer"),
        (("offers", "--timeout", "1", "--json"), 0, "[]"),
    ],
)
async def test_what_they_say_and_how_they_end(
    tmp_path: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    process = await start(tmp_path / "client", *arguments, *no_peers(tmp_path))
    output, errors = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == code, errors.decode()
    assert words in output.decode() + errors.decode()
    if arguments[0] == "offers":
        assert not (tmp_path / "client").exists()
