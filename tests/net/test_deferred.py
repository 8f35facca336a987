"""libp2p is imported in part, and what is left out is there when it is used. Each case is a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from typing import Any

import pytest

LEFT_OUT = (
    "aioquic",
    "dns",
    "fastecdsa",
    "httpx",
    "OpenSSL",
    "prometheus_client",
    "requests",
    "trio_websocket",
    "zeroconf",
)
CONSTANTS = {
    "multiaddr.resolvers.dns.DNSADDR_TXT_PREFIX",  # named by the package, read by the module itself alone
    "libp2p.security.tls.transport.PROTOCOL_ID",  # for `libp2p.new_host`, which a node does not call
}


def said_by(program: str) -> Any:
    """What a program prints as JSON."""
    command = [sys.executable, "-c", textwrap.dedent(program)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_a_node_does_not_import_what_it_does_not_use() -> None:
    modules = said_by("""
        import json, sys
        import p2pgrid.provider.node, p2pgrid.client.client
        print(json.dumps(sorted(sys.modules)))
    """)
    assert "p2pgrid.net.network" in modules
    assert [name for name in (*LEFT_OUT, "aiohttp", "sqlite_utils") if name in modules] == []


def test_only_classes_and_functions_are_deferred() -> None:
    """A constant would be compared, and an exception caught, without its module being loaded."""
    found = said_by("""
        import json
        from types import ModuleType
        import p2pgrid.net.network
        from p2pgrid.net.deferred import deferred_names, loaded
        kinds = {}
        for name in deferred_names():
            value = loaded(name)
            is_error = isinstance(value, type) and issubclass(value, BaseException)
            kinds[repr(name)[10:-1]] = not is_error and (callable(value) or isinstance(value, ModuleType))
        print(json.dumps(kinds))
    """)
    assert len(found) > 20
    assert {name for name, is_sound in found.items() if not is_sound} <= CONSTANTS


def test_what_is_deferred_is_loaded_when_it_is_used() -> None:
    found = said_by("""
        import json, sys
        import p2pgrid.net.network
        from libp2p.relay.circuit_v2.nat import is_private_ip
        from libp2p.relay.circuit_v2.protocol import CircuitV2Protocol
        from libp2p.bitswap.cid import parse_cid
        before = isinstance(3, CircuitV2Protocol), "libp2p.relay.circuit_v2.nat" in sys.modules, repr(parse_cid)
        private = is_private_ip("10.0.0.1"), is_private_ip("8.8.8.8")

        class Mine(CircuitV2Protocol):
            pass

        from libp2p.relay.circuit_v2.protocol import CircuitV2Protocol as real
        print(json.dumps([before, private, real in Mine.__mro__, issubclass(Mine, CircuitV2Protocol)]))
    """)
    before, private, is_subclass, is_seen = found
    assert before == [False, True, "<deferred libp2p.bitswap.cid.parse_cid>"]
    assert private == [True, False]
    assert is_subclass
    assert is_seen


def test_names_are_still_resolved() -> None:
    found = said_by("""
        import asyncio, json
        import p2pgrid.net.network
        import trio
        from multiaddr import Multiaddr
        from multiaddr.resolvers import DNSResolver

        async def resolve():
            resolver = DNSResolver()
            return [str(one) for one in await resolver.resolve(Multiaddr("/ip4/127.0.0.1/tcp/1"))], repr(type(resolver))

        print(json.dumps(trio.run(resolve)))
    """)
    assert found == [["/ip4/127.0.0.1/tcp/1"], "<class 'multiaddr.resolvers.dns.DNSResolver'>"]


@pytest.mark.parametrize("first", ["libp2p", "multiaddr"])
def test_a_program_that_has_imported_libp2p_keeps_it_as_it_is(first: str) -> None:
    found = said_by(f"""
        import {first}
        import json
        import p2pgrid.net.network
        from p2pgrid.net.deferred import deferred_names
        from libp2p.bitswap.cid import parse_cid
        print(json.dumps([len(deferred_names()), type(parse_cid).__name__]))
    """)
    assert found == [0, "function"]
