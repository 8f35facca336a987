"""Options that every command which joins a network has, and how they are resolved."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from p2pgrid.cli.context import CliContext
from p2pgrid.config import Config

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
    return click.option("--network", metavar="NAME", help="The network to join. [default: main]")(command)


def network_choice(
    context: CliContext, network: str | None, bootstrap: tuple[str, ...], bootstrap_peers: Path | None
) -> Callable[[], tuple[str, tuple[str, ...]]]:
    """`resolve_bootstrap` for a command that joins the network only where it has to. What libp2p logs is kept still."""
    logging.basicConfig(level=logging.CRITICAL)
    return lambda: resolve_bootstrap(context.data.load_config(), network, bootstrap, bootstrap_peers)


def resolve_bootstrap(
    config: Config, network: str | None, bootstrap: tuple[str, ...], bootstrap_peers: Path | None
) -> tuple[str, tuple[str, ...]]:
    """The network's name and the peers to join through: flags over config.toml over the packaged list.

    Raises UsageError for a list that cannot be read, or that does not name the network.
    """
    from p2pgrid.net.bootstrap_peers import load_bootstrap_peers

    name = network or config.network
    if bootstrap:
        return name, bootstrap
    path = bootstrap_peers or (Path(config.bootstrap_peers).expanduser() if config.bootstrap_peers else None)
    return name, load_bootstrap_peers(name, path)
