"""bootstrap_peers.toml: the peers that introduce a newcomer to a network, by the network's name.

    [networks.main]
    peers = ["/ip4/192.0.2.7/tcp/4001/p2p/12D3KooW..."]

Nobody depends on one of them: any peer that serves the DHT can be listed, and a client trusts none of them.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Final

import msgspec

from p2pgrid.errors import UsageError
from p2pgrid.net.lookup_keys import check_network_name

FILE_NAME: Final = "bootstrap_peers.toml"
MAX_PEERS: Final = 64
MAX_FILE_BYTES: Final = 32 * 1024
_MAX_DOTS: Final = 2048
"""The standard library's TOML parser takes time that grows with the square of a dotted key's parts."""


class _Network(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    peers: tuple[str, ...] = ()


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    networks: dict[str, _Network] = {}


def load_bootstrap_peers(network_name: str, path: Path | None = None) -> tuple[str, ...]:
    """The multiaddrs of the peers that introduce to `network_name`; may be empty.

    Reads `path`, or the list that came with p2pgrid. Raises UsageError for a file that cannot be read or is not of
    this form, and for a network that it does not name. The multiaddrs are checked in full by `Network`.
    """
    source, text = _read(path)
    return parse_bootstrap_peers(text, source, network_name)


def parse_bootstrap_peers(text: bytes, source: str, network_name: str) -> tuple[str, ...]:
    """As `load_bootstrap_peers`, from a file's bytes; `source` names it in messages."""
    if len(text) > MAX_FILE_BYTES or text.count(b".") > _MAX_DOTS:
        raise UsageError(
            f"{source} is too large to be a list of bootstrap peers: {len(text)} bytes, {text.count(b'.')} dots.",
            hint=f"Keep to {MAX_FILE_BYTES} bytes and {_MAX_DOTS} dots.",
        )
    try:
        file = msgspec.toml.decode(text, type=_File)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(
            f"{source} is no list of bootstrap peers: {error}.",
            hint='Expected tables like [networks.main] with peers = ["/ip4/.../tcp/.../p2p/12D3KooW..."].',
        ) from error
    for name, network in file.networks.items():
        check_network_name(name)
        _check_peers(source, name, network.peers)
    found = file.networks.get(network_name)
    if found is None:
        known = ", ".join(sorted(file.networks)) or "none"
        raise UsageError(
            f"{source} does not name the network {network_name!r}.",
            hint=f"It names: {known}. Add a table [networks.{network_name}], or give bootstrap peers yourself.",
        )
    return found.peers


def _check_peers(source: str, name: str, peers: tuple[str, ...]) -> None:
    if len(peers) > MAX_PEERS:
        raise UsageError(f"{source} lists {len(peers)} peers for {name}.", hint=f"List at most {MAX_PEERS}.")
    for peer in peers:
        if not peer.startswith("/") or "/p2p/" not in peer:
            raise UsageError(
                f"{source}, network {name}: {peer[:200]!r} is no address of a peer.",
                hint="Write it like /ip4/192.0.2.7/tcp/4001/p2p/12D3KooW...",
            )


def _read(path: Path | None) -> tuple[str, bytes]:
    try:
        if path is not None:
            return str(path), _head(path)
        packaged = resources.files("p2pgrid") / FILE_NAME
        if packaged.is_file():
            return FILE_NAME, packaged.read_bytes()
        checkout = Path(__file__).parents[2] / FILE_NAME
        return str(checkout), checkout.read_bytes()
    except OSError as error:
        raise UsageError(
            f"the list of bootstrap peers cannot be read: {error}.",
            hint=f"Give the path of a {FILE_NAME}, or give bootstrap peers yourself.",
        ) from error


def _head(path: Path) -> bytes:
    """All of a file that is not too large, and enough of one that is to see it."""
    with path.open("rb") as file:
        return file.read(MAX_FILE_BYTES + 1)
