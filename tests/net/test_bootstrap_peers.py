from __future__ import annotations

from pathlib import Path

import pytest

from p2pgrid.errors import UsageError
from p2pgrid.net.bootstrap_peers import load_bootstrap_peers

PEER = "/ip4/192.0.2.7/tcp/4001/p2p/12D3KooWBoD9TVbvc6xgBtLot7jMkmEgNCxWJZNcswfPeA2fUNsd"


def test_the_list_that_comes_along_names_the_main_network() -> None:
    assert isinstance(load_bootstrap_peers("main"), tuple)


def test_a_list_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "peers.toml"
    path.write_text(f'# ours\n[networks.test]\npeers = ["{PEER}"]\n[networks.empty]\n')
    assert load_bootstrap_peers("test", path) == (PEER,)
    assert load_bootstrap_peers("empty", path) == ()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("networks = 3", "networks"),
        ("[networks.test", "no list of bootstrap peers"),
        ("[networks.test]\npears = []", "pears"),
        ("[networks.test]\npeers = [3]", "peers"),
        ('[networks.test]\npeers = ["192.0.2.7:4001"]', "192.0.2.7:4001"),
        ('[networks.test]\npeers = ["/ip4/192.0.2.7/tcp/4001"]', "no address of a peer"),
        ("[networks.Test]\npeers = []", "no network name"),
        (f"[networks.test]\npeers = {[PEER] * 65}", "65 peers"),
        ("", "does not name the network 'test'"),
        ("#" * 32 * 1024 + "\n", "too large"),
        ("a." * 2049 + "b = 1", "too large"),
        ("networks = " + "[" * 10_000, "no list of bootstrap peers"),
        ("networks = " + "{a=" * 10_000, "no list of bootstrap peers"),
    ],
)
def test_a_bad_list_is_explained(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "peers.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_bootstrap_peers("test", path)
    assert says in caught.value.message
    assert caught.value.hint


def test_a_list_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "peers.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="no list of bootstrap peers"):
        load_bootstrap_peers("test", path)


def test_a_missing_list(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        load_bootstrap_peers("test", tmp_path / "none.toml")
