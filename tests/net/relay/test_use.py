from __future__ import annotations

import pytest

from p2pgrid.errors import UsageError
from p2pgrid.net.relay.use import NO_RELAY, Mode, RelayUse, parse_relay_use
from p2pgrid.proto.keys import SecretKey

PEER = SecretKey(b"r" * 32).public_key.peer_id
RELAY = f"/ip4/192.0.2.7/tcp/4803/p2p/{PEER}"


@pytest.mark.parametrize("words", [(), [], ("never",), ["never"]])
def test_no_relay(words: list[str]) -> None:
    assert parse_relay_use(words) == NO_RELAY


@pytest.mark.parametrize("words", [("auto",), ["auto"]])
def test_any_relay(words: list[str]) -> None:
    assert parse_relay_use(words) == RelayUse(Mode.AUTO)


def test_named_relays() -> None:
    use = parse_relay_use([RELAY])
    assert use.mode is Mode.LISTED
    assert [(peer, str(at)) for peer, at in use.relays] == [(PEER, "/ip4/192.0.2.7/tcp/4803")]


@pytest.mark.parametrize("words", [("auto", "never"), ("never", RELAY), ("sometimes",), ("/ip4/192.0.2.7/tcp/4803",)])
def test_what_is_no_such_setting_is_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        parse_relay_use(words)
