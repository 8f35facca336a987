"""`p2pgrid card check`: what can be proven of a peer or a domain."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from p2pgrid.cli.context import CliContext
from p2pgrid.cli.network import network_options, own_for_once, resolve_networks
from p2pgrid.errors import InvalidRecord, Unreachable

if TYPE_CHECKING:
    from p2pgrid.client.card_check import CardReport
    from p2pgrid.net.network import Network
    from p2pgrid.net.own_networks import OwnNetworks
    from p2pgrid.net.peer_address import PeerAddress
    from p2pgrid.proto.keys import SecretKey


@click.command("check")
@click.argument("who", metavar="PEER|DOMAIN")
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=1), default=10.0, show_default=True, help="Seconds.")
@network_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def check(
    ctx: click.Context,
    who: str,
    timeout_s: float,
    network: str | None,
    bootstrap: tuple[str, ...],
    bootstrap_peers: Path | None,
    as_json: bool,
) -> None:
    """Say in plain words what a card proves, and what it does not.

    A peer id (12D3KooW..., or a multiaddr that ends in one) is found over the network and asked; a domain is read over
    HTTPS. Exit code 1 if something does not hold.
    """
    context: CliContext = ctx.obj
    if "12D3KooW" in who:
        networks = resolve_networks(context.data, context.data.load_config(), network, bootstrap, bootstrap_peers)
        report = asyncio.run(_check_peer(who, own_for_once(context.data, networks), timeout_s))
    else:
        report = asyncio.run(_check_domain(who))
    click.echo(json.dumps(report.to_object(), indent=2) if as_json else report_text(report))
    ctx.exit(0 if report.holds else 1)


def report_text(report: CardReport) -> str:
    """The report for people."""
    lines = [f"{report.subject}: {'the card holds' if report.holds else 'the card does NOT hold'}."]
    for title, sentences in (
        ("Does not hold", report.failed),
        ("Proven", report.proven),
        ("Not proven", report.unproven),
    ):
        lines += [title] if sentences else []
        lines += [f"  - {sentence}" for sentence in sentences]
    return "\n".join(lines)


async def _check_domain(domain: str) -> CardReport:
    from p2pgrid.client.card_check import CardReport, check_domain
    from p2pgrid.client.domains import DomainChecker
    from p2pgrid.clock import unix_ms
    from p2pgrid.errors import UsageError
    from p2pgrid.proto.card import is_domain

    name = domain.lower().removeprefix("https://").rstrip("/.")
    if not is_domain(name):
        raise UsageError(f"{domain[:80]!r} is no DNS name.", hint="Give a domain, a peer id or a multiaddr.")
    try:
        return await check_domain(DomainChecker(unix_ms), name, unix_ms())
    except InvalidRecord as error:
        return CardReport(name, failed=[error.message])


async def _check_peer(who: str, choosing: Awaitable[tuple[SecretKey, OwnNetworks]], timeout_s: float) -> CardReport:
    from p2pgrid.client.card_check import check_peer
    from p2pgrid.client.domains import DomainChecker
    from p2pgrid.clock import unix_ms
    from p2pgrid.net.network import Network

    key, networks = await choosing
    async with Network(key, networks) as finder:
        peer = await _find(finder, who, timeout_s)
        return await check_peer(finder, DomainChecker(unix_ms), peer, unix_ms)


async def _find(finder: Network, who: str, timeout_s: float) -> PeerAddress:
    """Where the peer is: in the multiaddr given, or as the network says. Raises Unreachable."""
    from p2pgrid.errors import UsageError
    from p2pgrid.net.lookup_keys import PROVIDER
    from p2pgrid.net.peer_address import PeerAddress
    from p2pgrid.proto.keys import parse_peer_id

    peer_id = who.rpartition("/")[2]
    try:
        parse_peer_id(peer_id)
    except InvalidRecord as error:
        raise UsageError(error.message, hint="Give a peer id, a multiaddr that ends in one, or a domain.") from None
    if "/" in who:
        return PeerAddress(peer_id, (who,))
    for found in await finder.find_providers(PROVIDER, limit=1000, timeout_s=timeout_s):
        if found.peer_id == peer_id:
            return found
    raise Unreachable(
        f"{peer_id} is not among the providers of this network.", hint="Give its multiaddr: /ip4/.../p2p/12D3KooW..."
    )
