"""The whole examination: on real networks of one machine, with one fault each; and where nobody answers."""

# ruff: noqa: ASYNC240 - a test may block its loop

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from p2pgrid.clock import unix_ms
from p2pgrid.config import Config, NetworkEntry
from p2pgrid.data_folder import DataFolder, create_key
from p2pgrid.doctor.check import Check, State, has_faults
from p2pgrid.doctor.examination import STEPS, Report, examine
from p2pgrid.engine.fake import FakeVllm, serve_fake
from p2pgrid.net.network import Network
from p2pgrid.proto.keys import SecretKey

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
CONFIG = """
[provider]
operator = "X"
listen = "127.0.0.1:0"
libp2p-listen = ["/ip4/127.0.0.1/tcp/0"]

[[provider.models]]
name = "a"
engine-url = "{url}"
price-input-eur = "0.10"
price-output-eur = "0.40"
"""


def new_key() -> SecretKey:
    return SecretKey(os.urandom(32))


def introducer(now_ms: Callable[[], int] = unix_ms) -> Network:
    return Network(new_key(), "main", listen=[LOOPBACK], serve_dht=True, now_ms=now_ms)


def through(*bootstrap: str) -> Callable[[Config], tuple[NetworkEntry, ...]]:
    return lambda _: (NetworkEntry(name="main", bootstrap=bootstrap),)


def provider(path: Path, url: str = "http://127.0.0.1:1") -> DataFolder:
    data = DataFolder(path / "data")
    data.make()
    data.config_file.write_text(CONFIG.format(url=url))
    create_key(data.key_file)
    return data


def by_name(report: Report) -> dict[str, Check]:
    return {one.name: one for one in report.checks}


def files(path: Path) -> dict[str, tuple[bytes, int]]:
    return {str(one): (one.read_bytes(), one.stat().st_mtime_ns) for one in path.rglob("*") if one.is_file()}


async def test_a_provider_that_does_not_run(tmp_path: Path) -> None:
    """Others dial its ports all the same: the doctor listens at them for a moment, under the node's key."""
    steps: list[tuple[str, int, int]] = []
    async with serve_fake(FakeVllm(models=("a",))) as url, introducer() as net:
        data = provider(tmp_path, url)
        before = files(tmp_path)
        report = await examine(data, choice=through(*net.addresses), progress=lambda *step: steps.append(step))
        assert files(tmp_path) == before
    found = by_name(report)
    assert not has_faults(report.checks), report.checks
    assert found["reachability"].state is State.WARNING
    assert "direct road: reached from here; libp2p: reached from here" in found["reachability"].text
    ok = {"version", "config", "keys", "engine", "bootstrap", "port", "routing table", "clock"}
    assert {name for name, one in found.items() if one.state is State.OK} >= ok
    assert {one.name for one in report.checks if one.state is State.SKIPPED} == {"node", "ledger", "look-up"}
    assert report.peer_id == data.load_key().public_key.peer_id
    assert steps == [(step, n, len(STEPS)) for n, step in enumerate(STEPS)]


async def test_a_client(tmp_path: Path) -> None:
    async with introducer() as net:
        report = await examine(DataFolder(tmp_path / "none"), choice=through(*net.addresses))
    assert report.role == "client"
    assert not has_faults(report.checks), report.checks
    assert "reachability" not in by_name(report), "nobody dials a client"
    assert by_name(report)["clock"].state is State.OK
    assert by_name(report)["folder"].state is State.SKIPPED
    assert not any(tmp_path.iterdir())


async def test_a_bootstrap_peer(tmp_path: Path) -> None:
    data = DataFolder(tmp_path)
    create_key(data.key_file)
    data.config_file.write_text('[bootstrap]\nlibp2p-listen = ["/ip4/127.0.0.1/tcp/0"]\n')
    own = f"/ip4/127.0.0.1/tcp/1/p2p/{data.load_key().public_key.peer_id}"
    async with introducer() as net:
        report = await examine(data, choice=through(*net.addresses, own))
    assert report.role == "bootstrap"
    assert not has_faults(report.checks), report.checks
    assert by_name(report)["bootstrap"].text == "the one that is known answers.", "its own address is left out"
    assert "libp2p: reached from here" in by_name(report)["reachability"].text
    assert not {"ledger", "engine", "look-up"} & by_name(report).keys()


@pytest.mark.parametrize(
    ("ahead_ms", "state", "text"),
    [(60_000, State.WARNING, "60 s behind"), (-200_000, State.FAULT, "200 s ahead of"), (3_000, State.OK, "within")],
)
async def test_a_wrong_clock(tmp_path: Path, ahead_ms: int, state: State, text: str) -> None:
    async with introducer(lambda: unix_ms() + ahead_ms) as net:
        report = await examine(DataFolder(tmp_path), choice=through(*net.addresses))
    assert by_name(report)["clock"].state is state
    assert text in by_name(report)["clock"].text


async def test_a_port_of_another_program(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        data = provider(tmp_path)
        data.config_file.write_text(data.config_file.read_text().replace("127.0.0.1:0", f"127.0.0.1:{port}"))
        async with introducer() as net:
            report = await examine(data, choice=through(*net.addresses))
    assert by_name(report)[f"port {port}"].state is State.FAULT
    assert by_name(report)["reachability"].state is State.SKIPPED


async def test_a_bootstrap_peer_that_is_away_and_one_of_another_network(tmp_path: Path) -> None:
    away = f"/ip4/127.0.0.1/tcp/1/p2p/{new_key().public_key.peer_id}"
    async with Network(new_key(), "other", listen=[LOOPBACK], serve_dht=True) as other, introducer() as net:
        some = await examine(DataFolder(tmp_path), choice=through(away, *other.addresses, *net.addresses))
        none = await examine(DataFolder(tmp_path), choice=through(away, *other.addresses))
    assert by_name(some)["bootstrap"].state is State.WARNING
    assert by_name(none)["bootstrap"].state is State.FAULT
    for report in (some, none):
        assert f"{away.rpartition('/')[2]}: " in by_name(report)["bootstrap"].text
        assert "does not serve the network 'main'" in by_name(report)["bootstrap"].text
    assert by_name(none)["routing table"].state is State.FAULT
    assert by_name(none)["clock"].state is State.SKIPPED


async def test_of_two_networks_each_is_looked_at(tmp_path: Path) -> None:
    away = f"/ip4/127.0.0.1/tcp/1/p2p/{new_key().public_key.peer_id}"
    async with introducer() as net:
        networks = (
            NetworkEntry(name="main", bootstrap=net.addresses),
            NetworkEntry(name="dead", bootstrap=(away,)),
            NetworkEntry(name="empty"),
        )
        found = by_name(await examine(DataFolder(tmp_path), choice=lambda _: networks))
    states = [found[f"bootstrap {name}"].state for name in ("main", "dead", "empty")]
    assert states == [State.OK, State.FAULT, State.FAULT]
    assert found["clock"].state is State.OK


async def test_it_ends_in_time_where_nobody_answers(tmp_path: Path) -> None:
    """A bootstrap peer that takes connections and says nothing, and an engine that does the same."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        address = f"/ip4/127.0.0.1/tcp/{port}/p2p/{new_key().public_key.peer_id}"
        data = provider(tmp_path, f"http://127.0.0.1:{port}")
        began = time.monotonic()
        report = await examine(data, choice=through(address))
        assert time.monotonic() - began < 15
    found = by_name(report)
    assert found["bootstrap"].state is State.FAULT
    assert found["engine"].state is State.FAULT
    assert found["reachability"].state is State.SKIPPED


async def test_what_takes_too_long_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        data = provider(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}")
        report = await examine(data, choice=through(), most_s=0.5)
    assert report.checks[-1].name == "time"
    assert by_name(report)["keys"].state is State.OK, "what was found by then is there"


async def test_without_a_configuration_nothing_is_joined(tmp_path: Path) -> None:
    data = provider(tmp_path)
    data.config_file.write_text("[provider")
    report = await examine(data)
    assert by_name(report)["config"].state is State.FAULT
    assert by_name(report)["network"].state is State.SKIPPED


async def test_a_bad_bootstrap_address_is_the_users_to_mend(tmp_path: Path) -> None:
    report = await examine(DataFolder(tmp_path), choice=through("nonsense"))
    assert by_name(report)["network"].state is State.FAULT
    assert "/p2p/" in by_name(report)["network"].fix
