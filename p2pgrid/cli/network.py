"""Options that every command which joins a network has, and how they are resolved."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from p2pgrid.cli.context import CliContext
from p2pgrid.config import Config, NetworkEntry
from p2pgrid.data_folder import DataFolder
from p2pgrid.errors import UsageError

if TYPE_CHECKING:
    from p2pgrid.net.own_networks import OwnNetworks
    from p2pgrid.proto.keys import SecretKey

F = TypeVar("F", bound=Callable[..., object])


def network_options(command: F) -> F:
    """Add `--network`, `--bootstrap` and `--bootstrap-peers`."""
    command = click.option(
        "--bootstrap-peers",
        type=click.Path(path_type=Path, dir_okay=False),
        help="A bootstrap_peers.toml to read instead of the packaged one.",
    )(command)
    command = click.option(
        "--bootstrap",
        multiple=True,
        metavar="MULTIADDR",
        help="An introducing peer, /ip4/.../tcp/.../p2p/12D3KooW...; may be repeated. Replaces bootstrap_peers.toml.",
    )(command)
    return click.option(
        "--network", metavar="NAME", help="The one network to join. [default: all that are configured, or main]"
    )(command)


NetworkChoice = Callable[["SecretKey | None"], Awaitable["tuple[SecretKey, OwnNetworks]"]]
"""The networks to join, and the key to do so with: the one given, or the one of `own_for_once`. Raises UsageError."""


def network_choice(
    context: CliContext, network: str | None, bootstrap: tuple[str, ...], bootstrap_peers: Path | None
) -> NetworkChoice:
    """For a command that joins a network only where it has to. What libp2p logs is kept still."""
    logging.basicConfig(level=logging.CRITICAL)

    async def choose(key: SecretKey | None) -> tuple[SecretKey, OwnNetworks]:
        from p2pgrid.networks.entries import own_networks

        networks = resolve_networks(context.data, context.data.load_config(), network, bootstrap, bootstrap_peers)
        if key is None:
            return await own_for_once(context.data, networks)
        return key, own_networks(networks, key.public_key)

    return choose


def resolve_networks(
    data: DataFolder,
    config: Config,
    network: str | None,
    bootstrap: tuple[str, ...],
    bootstrap_peers: Path | None,
) -> tuple[NetworkEntry, ...]:
    """The networks to join, with the peers to join them through: flags over config.toml over the packaged list.

    Raises UsageError for a list that cannot be read, or that does not name an open network.
    """
    from p2pgrid.networks.entries import choose_networks

    return choose_networks(data, config, network=network, bootstrap=bootstrap or None, bootstrap_peers=bootstrap_peers)


def names_of(networks: Sequence[NetworkEntry]) -> str:
    """For people: `'main'`, `'lab' and 'main'`."""
    return " and ".join(repr(network.name) for network in networks)


def bootstrap_of(networks: Sequence[NetworkEntry]) -> tuple[str, ...]:
    """The bootstrap peers of all, each once."""
    return tuple(dict.fromkeys(peer for network in networks for peer in network.bootstrap))


async def own_for_once(data: DataFolder, networks: Sequence[NetworkEntry]) -> tuple[SecretKey, OwnNetworks]:
    """A key with which to look around in the networks, and the networks.

    One for this once, where that will do: who only looks need not be known again. Where a network knows its members by
    their keys, it is this node's own. Raises UsageError: no key; or a node runs with it, which would lose connections.
    """
    import secrets

    from p2pgrid.commands.client import find_node
    from p2pgrid.networks.entries import knows_keys, own_networks
    from p2pgrid.proto.keys import SecretKey

    by_key = [one.name for one in networks if knows_keys(one)]
    key = data.load_key() if by_key else SecretKey(secrets.token_bytes(32))
    if by_key and (node := await find_node(data.path)) is not None:
        raise UsageError(
            f"a {node.about.role} runs with this data folder's key, by which {' and '.join(by_key)} knows its members.",
            hint="Stop it, or ask it: a gateway shows what is on sale at /v1/models. Or say --network.",
        )
    return key, own_networks(networks, key.public_key)
