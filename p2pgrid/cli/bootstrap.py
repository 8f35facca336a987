"""`p2pgrid bootstrap`: an introducing peer."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import click

from p2pgrid.cli.context import CliContext
from p2pgrid.cli.network import network_options, resolve_bootstrap


@click.command()
@click.option(
    "--libp2p-listen", multiple=True, metavar="MULTIADDR", help="Where to listen. [default: /ip4/0.0.0.0/tcp/4803]"
)
@click.option(
    "--announce", multiple=True, metavar="MULTIADDR", help="What to tell others, where it is another address."
)
@network_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object when ready.")
@click.option("--verbose", is_flag=True, help="Log more.")
@click.pass_obj
def bootstrap(
    context: CliContext,
    libp2p_listen: tuple[str, ...],
    announce: tuple[str, ...],
    network: str | None,
    bootstrap: tuple[str, ...],
    bootstrap_peers: Path | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Introduce: run a peer that others join through.

    It answers look-ups and is trusted with nothing else: no offer, order or receipt passes through it. Its key, and so
    its address, is kept in the data folder.
    """
    from p2pgrid.cli.running import log_to_stderr, run

    log_to_stderr(verbose=verbose)
    config = context.data.load_config()
    name, others = resolve_bootstrap(config, network, bootstrap, bootstrap_peers)
    key = context.data.load_or_create_key()

    async def main(stop: asyncio.Event) -> None:
        from p2pgrid.net.network import Network
        from p2pgrid.net.reach_text import BOOTSTRAP_SETTINGS, listens_at
        from p2pgrid.net.reach_watch import ReachWatch

        listen = libp2p_listen or config.bootstrap.libp2p_listen
        async with Network(key, name, listen=listen, announce=announce, bootstrap=others, serve_dht=True) as net:
            if as_json:
                ready = {"ready": True, "network": name, "peer_id": net.peer_id, "addresses": net.addresses}
                click.echo(json.dumps(ready))
            else:
                click.echo(f"Introducing peer of the network {name!r} is up. Others join with:")
                for address in net.addresses:
                    click.echo(f"  --bootstrap {address}")
            # Nobody joins through a peer that strangers do not reach.
            async with ReachWatch(
                net.reachability,
                addresses=lambda: net.addresses,
                listening=lambda: listens_at(net.listening),
                settings=BOOTSTRAP_SETTINGS,
            ):
                await stop.wait()

    run(main)
