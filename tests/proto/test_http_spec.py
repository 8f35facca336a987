"""The example of docs/spec/http.md is what two sides say to one another."""

from __future__ import annotations

import re
from pathlib import Path

from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.peer_id_auth import Challenge, Named, PeerIdAuthClient, PeerIdAuthServer

SPEC = Path(__file__).parents[2] / "docs" / "spec" / "http.md"
PROVIDER, CLIENT, HOST = SecretKey(b"p" * 32), SecretKey(b"c" * 32), "gpu.example.org"


def headers() -> list[str]:
    """The headers of the example, each on one line."""
    block = re.sub(r",\n {5}", ", ", SPEC.read_text().split("```")[1])
    return re.findall(r"^ +[A-Z][A-Za-z-]+: (libp2p-PeerID .*)$", block, re.MULTILINE)


def without_sealed(header: str) -> str:
    return re.sub(r'(opaque|bearer)="[^"]*"', r'\1="(sealed)"', header)


def test_the_example_is_true() -> None:
    server = PeerIdAuthServer(PROVIDER, bytes(32))
    client = PeerIdAuthClient(CLIENT, HOST, bytes(range(32)))
    asked = server.judge(client.opening(), HOST, 0, bytes(range(32, 64)))
    assert isinstance(asked, Challenge)
    reply = client.reply(asked.header)
    named = server.judge(reply, HOST, 1, bytes(32))
    assert isinstance(named, Named)
    said = [client.opening(), asked.header, reply, named.header]
    assert [without_sealed(header) for header in said] == headers()
    for key in (PROVIDER, CLIENT):
        assert key.public_key.peer_id in SPEC.read_text()
