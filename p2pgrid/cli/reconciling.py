"""What `p2pgrid receipts reconcile` does without a node, and how it shows what changed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from p2pgrid.units import format_amount_eur

if TYPE_CHECKING:
    from p2pgrid.config import NetworkEntry
    from p2pgrid.data_folder import DataFolder
    from p2pgrid.desk.asks import Reconcile
    from p2pgrid.desk.standing import ChannelChanges, Reconciled, Totals


async def reconcile_with(data: DataFolder, peer: str, networks: tuple[NetworkEntry, ...]) -> Reconciled:
    """Reconcile with a peer through the node that runs, or in this process. Raises P2pgridError."""
    from p2pgrid.cli.asking import ask_or_do
    from p2pgrid.desk.asks import Reconcile
    from p2pgrid.desk.standing import Reconciled

    ask = Reconcile(peer=peer)
    return await ask_or_do(data, ask, Reconciled, lambda: _here(data, ask, networks))


async def _here(data: DataFolder, ask: Reconcile, networks: tuple[NetworkEntry, ...]) -> Reconciled:
    """Dial, reconcile, close; or, where this node sold to the peer, say what is open."""
    from p2pgrid.desk.standing import channels_with, is_provider_in
    from p2pgrid.ledger.sqlite import SqliteLedger
    from p2pgrid.proto.keys import parse_peer_id

    ours, theirs = data.load_key().public_key, parse_peer_id(ask.peer)
    with SqliteLedger.open_readonly(data.ledger_file) as reader:
        channels = channels_with(reader, ours, theirs)
        if channels and all(is_provider_in(channel, ours) for channel in channels):
            from p2pgrid.provider.desk import ProviderDesk

            done: Reconciled = await ProviderDesk(reader, ours, lambda _: False).perform(ask)
            return done
    from p2pgrid.client.client import Client
    from p2pgrid.client.desk import ClientDesk

    async with Client(data, networks=networks, keeps_links=False) as client:
        reconciled: Reconciled = await ClientDesk(client.purchaser, ours).perform(ask)
        return reconciled


def print_reconciled(done: Reconciled) -> None:
    """What changed, for people: by itself on earlier links, and just now."""
    for exchange in done.earlier:
        when = datetime.fromtimestamp(exchange.at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        click.echo(f"Changed before, by itself, at {when}:")
        for channel in exchange.channels:
            _print_channel(channel)
    if done.waits_for_client:
        where = "has a link now" if done.is_connected else "is not connected"
        click.echo(f"The client {done.peer} {where}. It is the client who connects; all is settled when it does.")
    elif not done.changed:
        click.echo(f"Nothing changed just now: both sides agree on all dealings with {done.peer}.")
    elif done.earlier:
        click.echo("Changed just now:")
    for channel in done.channels:
        if channel.is_changed or done.waits_for_client or len(done.channels) == 1:
            _print_channel(channel)
    if done.quarantine_lifted:
        click.echo(f"The provider is bought from again. It was held for: {done.quarantine_lifted}")


def _print_channel(channel: ChannelChanges) -> None:
    click.echo(f"channel {channel.channel[:16]}")
    if channel.restored:
        click.echo(f"  {channel.restored} record(s) that this ledger lacked came")
    if channel.sent:
        click.echo(f"  {channel.sent} record(s) that the other ledger lacked went")
    for receipt in channel.receipts:
        what = "new" if receipt.is_new else "countersigned"
        signed = "signed by both" if receipt.is_countersigned else "signed by the provider alone"
        signed = "disputed by this side" if receipt.is_disputed else signed
        click.echo(
            f"  receipt {receipt.receipt_number:<6} {what}: order {receipt.order_number}, {receipt.status}, "
            f"{format_amount_eur(receipt.amount_pico)} EUR, {signed}"
        )
    for number in channel.closed_orders:
        click.echo(f"  order {number:<8} closed: it never became the provider's business, and nothing is owed")
    for number in channel.open_orders:
        click.echo(f"  order {number:<8} still open")
    before, after = channel.before, channel.after
    if before == after:
        click.echo(f"  {_totals(after)}")
    else:
        click.echo(f"  before: {_totals(before)}\n  after:  {_totals(after)}")


def _totals(totals: Totals) -> str:
    return (
        f"{totals.receipts} receipts, {totals.countersigned} signed by both, {totals.open_orders} orders open, "
        f"{format_amount_eur(totals.total_pico)} EUR"
    )
