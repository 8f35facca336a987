"""Connections of both roads break by themselves when the peer is gone. tests/lab shows it with cables pulled."""

from __future__ import annotations

import socket
import sys
from typing import Any

import pytest

from p2pgrid.net.silence import GONE_AFTER_S, notice_silence
from tests.net.road_rigs import direct_road
from tests.net.trio_hosts import dialling_host, listening_host, run_trio

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="TCP_USER_TIMEOUT is Linux's")


def gives_up_after_ms(tcp: Any) -> int:
    assert tcp.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    value: int = tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    return value


async def test_a_link_on_the_direct_road_at_both_ends() -> None:
    async with direct_road() as road:
        link = await road.dial()
        [accepted] = road.listener.connections
        for end in (link, accepted):
            assert end.transport is not None
            assert gives_up_after_ms(end.transport.get_extra_info("socket")) == GONE_AFTER_S * 1000
        await link.aclose()


def test_a_connection_of_libp2p_at_both_ends() -> None:
    async def main() -> None:
        async with listening_host() as server, dialling_host() as client:
            dialled = await client.get_network().connect_to(server.get_id(), server.get_addrs())
            [accepted] = server.get_network().get_connections(client.get_id())
            for end in (dialled, accepted):
                tcp = end.muxed_conn.secured_conn.conn.read_writer.read_write_closer.stream
                assert gives_up_after_ms(tcp.stream.socket) == GONE_AFTER_S * 1000

    run_trio(main)


def test_other_sockets_are_left_alone() -> None:
    notice_silence(None)
    for one in socket.socketpair():
        with one:
            notice_silence(one)


def test_a_socket_that_has_ended_is_no_fault() -> None:
    tcp = socket.socket()
    tcp.close()
    notice_silence(tcp)
