"""What an offer says about where its provider listens."""

from __future__ import annotations

import pytest

from p2pgrid.config import parse_host_port
from p2pgrid.errors import UsageError
from p2pgrid.provider.addresses import offered_addresses


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:4801", ("127.0.0.1", 4801)),
        ("[::1]:0", ("::1", 0)),
        ("grid.example.org:65535", ("grid.example.org", 65535)),
    ],
)
def test_host_and_port(text: str, expected: tuple[str, int]) -> None:
    assert parse_host_port(text) == expected


@pytest.mark.parametrize(
    "text", ["", ":4801", "host", "host:", "host:x", "host:65536", "host:-1", "::1:4801", "host:¹"]
)
def test_what_is_no_host_and_port(text: str) -> None:
    with pytest.raises(UsageError, match="no address"):
        parse_host_port(text)


def test_bound_addresses_are_offered_as_they_are() -> None:
    assert offered_addresses([("127.0.0.1", 4801), ("::1", 4801)], ()) == (
        "/ip4/127.0.0.1/tcp/4801/tls",
        "/ip6/::1/tcp/4801/tls",
    )


def test_an_unspecified_address_becomes_one_that_can_be_dialled() -> None:
    (address,) = offered_addresses([("0.0.0.0", 4801)], ())
    assert address.startswith("/ip4/") and "0.0.0.0" not in address


def test_announced_addresses_replace_them() -> None:
    assert offered_addresses([("0.0.0.0", 4801)], ["203.0.113.7:4801", "grid.example.org:443"]) == (
        "/ip4/203.0.113.7/tcp/4801/tls",
        "/dns/grid.example.org/tcp/443/tls",
    )


@pytest.mark.parametrize("text", ["0.0.0.0:4801", "host:0", "a/b:1"])
def test_what_nobody_can_dial_is_not_announced(text: str) -> None:
    with pytest.raises(UsageError, match="nobody can dial"):
        offered_addresses([], [text])
