"""`p2pgrid bootstrap`: an introducing peer."""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from p2pgrid.cli.context import CliContext
from p2pgrid.cli.network import names_of, network_options, resolve_networks

if TYPE_CHECKING:
    from p2pgrid.config import NetworkEntry
    from p2pgrid.desk.asks import Condition, Examine
    from p2pgrid.net.network import Network
    from p2pgrid.net.reach_watch import ReachWatch


@click.command()
@click.option(
    "--libp2p-listen", multiple=True, metavar="MULTIADDR", help="Where to listen. [default: /ip4/0.0.0.0/tcp/4803]"
)
@click.option(
    "--announce", multiple=True, metavar="MULTIADDR", help="What to tell others, where it is another address."
)
@click.option("--relay/--no-relay", default=None, help="Relay for peers that nobody can dial. [default: relay]")
@network_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object when ready.")
@click.option("--verbose", is_flag=True, help="Log more.")
@click.pass_obj
def bootstrap(
    context: CliContext,
    libp2p_listen: tuple[str, ...],
    announce: tuple[str, ...],
    relay: bool | None,
    network: str | None,
    bootstrap: tuple[str, ...],
    bootstrap_peers: Path | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Introduce: run a peer that others join through.

    It answers look-ups, and relays encrypted connections to peers that nobody can dial, within the limits of [relay] in
    config.toml. It is trusted with nothing else: it can read no offer, order or receipt. Its key, and so its address,
    is kept in the data folder.
    """
    from p2pgrid.cli.running import log_to_stderr, run

    log_to_stderr(verbose=verbose)
    config = context.data.load_config()
    networks = resolve_networks(context.data, config, network, bootstrap, bootstrap_peers)
    key = context.data.load_or_create_key()

    async def main(stop: asyncio.Event) -> None:
        from p2pgrid.net.network import Network
        from p2pgrid.net.reach_text import BOOTSTRAP_SETTINGS, listens_at
        from p2pgrid.net.reach_watch import ReachWatch
        from p2pgrid.networks.entries import own_networks
        from p2pgrid.provider.relaying import relay_limits_of

        listen = libp2p_listen or config.bootstrap.libp2p_listen
        relays = config.bootstrap.relay if relay is None else relay
        async with Network(
            key,
            own_networks(networks, key.public_key),
            listen=listen,
            announce=announce,
            serve_dht=True,
            relaying=relay_limits_of(config.relay) if relays else None,
        ) as net:
            # Nobody joins through a peer that strangers do not reach.
            watch = ReachWatch(
                net.reachability,
                addresses=lambda: net.addresses,
                listening=lambda: listens_at(net.listening),
                settings=BOOTSTRAP_SETTINGS,
                on_verdict=net.set_reachable,
            )
            async with watch, AsyncExitStack() as stack:
                await _take_commands(stack, context.data.path, net, watch, networks)
                if as_json:
                    ready = {
                        "ready": True,
                        "network": networks[0].name,
                        "networks": [one.name for one in networks],
                        "peer_id": net.peer_id,
                        "addresses": net.addresses,
                        "relays": relays,
                    }
                    click.echo(json.dumps(ready))
                else:
                    does = "It relays too" if relays else "It does not relay"
                    click.echo(f"Introducing peer of the network {names_of(networks)} is up. {does}. Others join with:")
                    for address in net.addresses:
                        click.echo(f"  --bootstrap {address}")
                await stop.wait()

    run(main)


async def _take_commands(
    stack: AsyncExitStack, data: Path, net: Network, watch: ReachWatch, networks: tuple[NetworkEntry, ...]
) -> None:
    """Let `p2pgrid doctor` ask how this peer is, unless another node has the data folder's socket."""
    from p2pgrid import __version__
    from p2pgrid.commands.address import socket_path
    from p2pgrid.commands.client import find_node
    from p2pgrid.commands.server import serve_commands
    from p2pgrid.commands.wire import About
    from p2pgrid.desk.asks import Examine
    from p2pgrid.errors import P2pgridError

    async def examine(ask: Examine) -> Condition:
        return await _condition_of(ask, net, watch, networks)

    try:
        if await find_node(data) is not None:
            return
    except P2pgridError:
        return
    about = About(version=__version__, peer_id=net.peer_id, role="bootstrap", pid=os.getpid())
    await stack.enter_async_context(serve_commands(socket_path(data), about, Examine, examine))


async def _condition_of(ask: Examine, net: Network, watch: ReachWatch, networks: tuple[NetworkEntry, ...]) -> Condition:
    from p2pgrid.desk.asks import Condition
    from p2pgrid.errors import P2pgridError
    from p2pgrid.net.reach_watch import shown

    if ask.ask_peers:
        try:
            await watch.ask_now()
        except P2pgridError:
            pass  # the network is down just now: the rest says so
    health = net.health()
    return Condition(
        health={
            "status": "ok" if health.running else "degraded",
            "peer_id": net.peer_id,
            "network": {
                "running": health.running,
                "connected_peers": health.connected_peers,
                "routing_table_size": health.routing_table_size,
                "networks": [asdict(one) for one in health.networks],
            },
            "reachability": shown(watch),
        },
        addresses=net.addresses,
        listening=net.listening,
        networks=networks,
    )
