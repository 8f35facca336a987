"""Ports: free, held by this node, or somebody else's."""

from __future__ import annotations

import functools
import os
import socket

import pytest

from p2pgrid.config import BootstrapConfig, ClientConfig, Config, ProviderConfig
from p2pgrid.doctor.check import State
from p2pgrid.doctor.examination import _whose
from p2pgrid.doctor.folder import Role
from p2pgrid.doctor.ports import Port, check_port, ports_of, ports_open, try_listening
from p2pgrid.net.direct import listen
from p2pgrid.net.network import Network
from p2pgrid.net.reach_wire import Outcome, RoadName
from p2pgrid.proto.keys import SecretKey
from tests.ports import reserved_port

LOOPBACK = "/ip4/127.0.0.1/tcp/0"


def new_key() -> SecretKey:
    return SecretKey(os.urandom(32))


def direct(port: int, host: str = "127.0.0.1") -> Port:
    return Port("direct road", host, port, "listen under [provider]", RoadName.DIRECT)


@pytest.mark.parametrize(
    ("role", "expected"),
    [
        (
            Role.PROVIDER,
            [
                ("direct road", "0.0.0.0:4801", RoadName.DIRECT),
                ("libp2p", "0.0.0.0:4802", RoadName.LIBP2P),
                ("libp2p", "[::]:4802", RoadName.LIBP2P),
                ("pages", "127.0.0.1:4880", None),
            ],
        ),
        (Role.CLIENT, [("gateway", "127.0.0.1:8480", None)]),
        (Role.BOOTSTRAP, [("libp2p", "0.0.0.0:4803", RoadName.LIBP2P)]),
    ],
)
def test_ports_of_the_configuration(role: Role, expected: list[tuple[str, str, RoadName | None]]) -> None:
    config = Config(
        provider=ProviderConfig(libp2p_listen=("/ip4/0.0.0.0/tcp/4802", "/ip6/::/tcp/4802"), pages="127.0.0.1:4880")
    )
    assert [(one.what, one.address, one.road) for one in ports_of(config, role)] == expected


def test_what_is_no_address_is_left_out() -> None:
    config = Config(
        provider=ProviderConfig(listen="x", libp2p_listen=("y",)),
        client=ClientConfig(listen="z"),
        bootstrap=BootstrapConfig(libp2p_listen=("/ip4/1.2.3.4/udp/1",)),
    )
    assert [ports_of(config, role) for role in Role] == [[], [], []]


async def test_a_free_port() -> None:
    with reserved_port() as free:
        for port in (0, free):
            found = await check_port(direct(port), None)
            assert found.state is State.OK
            assert try_listening(direct(port)) is None, "and it is free again"


@pytest.mark.parametrize("listens_at", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("wants", ["127.0.0.1", "0.0.0.0"])
async def test_another_program_has_the_port(listens_at: str, wants: str) -> None:
    async def somebody_else(host: str, port: int, road: RoadName) -> Outcome:
        assert host == "127.0.0.1"
        return Outcome.WRONG_PEER

    with socket.create_server((listens_at, 0)) as server:
        port = server.getsockname()[1]
        found = await check_port(direct(port, wants), somebody_else)
        assert found.state is State.FAULT
        assert found.fix == (
            f"See which: ss -ltnp 'sport = :{port}'. Stop it, or change listen under [provider] in config.toml."
        )


async def test_this_node_has_the_port() -> None:
    """Which its key proves, on either road, whether or not it takes commands; another node's does not."""
    key = new_key()
    listener = await listen("127.0.0.1", 0, key, on_stream=lambda _: None)  # type: ignore[arg-type,return-value]
    try:
        async with Network(key, "test", listen=[LOOPBACK]) as node, Network(new_key(), "test") as stranger:
            libp2p = int(node.listening[0].rsplit("/", 1)[1])
            ports = [
                direct(listener.addresses[0][1]),
                Port("libp2p", "127.0.0.1", libp2p, "libp2p-listen", RoadName.LIBP2P),
            ]
            for own, state in ((key, State.OK), (new_key(), State.FAULT)):
                whose = functools.partial(_whose, stranger, own)
                found = [await check_port(port, whose, "pid 7") for port in ports]
                assert [one.state for one in found] == [state, state]
                assert all(("held by this node (pid 7)" in one.text) is (state is State.OK) for one in found)
    finally:
        await listener.aclose(drain_s=0)


async def test_http_proves_no_key() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        pages = Port("pages", "127.0.0.1", server.getsockname()[1], "pages under [provider]")
        assert (await check_port(pages, None, "pid 7")).state is State.OK
        assert (await check_port(pages, None)).state is State.FAULT


async def test_an_address_of_another_machine() -> None:
    with reserved_port() as port:
        found = await check_port(direct(port, "203.0.113.9"), None)
    assert found.state is State.FAULT
    assert "listen on 0.0.0.0" in found.fix
    assert "listen under [provider]" in found.fix


async def test_a_port_that_the_running_node_has_lost() -> None:
    with reserved_port() as free:
        [port] = ports_open([f"/ip4/127.0.0.1/tcp/{free}/tls"])
        found = await check_port(port, None, "pid 7")
    assert (found.state, found.fix) == (State.FAULT, "Restart the node.")


async def test_where_nobody_can_be_asked_who_holds_it() -> None:
    async def unable(host: str, port: int, road: RoadName) -> Outcome:
        return Outcome.NOT_TRIED

    with socket.create_server(("127.0.0.1", 0)) as server:
        found = await check_port(direct(server.getsockname()[1]), unable)
        assert found.state is State.SKIPPED
