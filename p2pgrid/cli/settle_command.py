"""`p2pgrid settle`: statements made and signed by both sides, looked ahead at, listed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from p2pgrid.cli.context import CliContext
from p2pgrid.cli.network import network_options, resolve_networks
from p2pgrid.clock import unix_ms
from p2pgrid.errors import P2pgridError, UsageError

if TYPE_CHECKING:
    from p2pgrid.config import NetworkEntry
    from p2pgrid.data_folder import DataFolder
    from p2pgrid.desk.statement_list import ListedStatement
    from p2pgrid.desk.statements import Settle, Settled

_TIMEOUT_S = 600.0
Networks = Callable[[], "tuple[NetworkEntry, ...]"]


@click.command()
@click.argument("peer", metavar="[PEER]", required=False)
@click.option("--until", metavar="DATE", help="Last day of the period, like 2027-01-31.  [default: up to now]")
@click.option("--channel", metavar="HEX", default="", help="One channel alone: the first digits of its id.")
@click.option("--dry-run", is_flag=True, help="Show what would be stated; sign nothing, ask nobody.")
@click.option(
    "--accept-due",
    is_flag=True,
    help="Sign also what the provider signed before and is due within a day, or overdue; the sums must be the same.",
)
@click.option("--list", "lists", is_flag=True, help="List the statements there are, their invoices, what is open.")
@network_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--verbose", is_flag=True, help="Log more.")
@click.pass_obj
def settle(
    context: CliContext,
    peer: str | None,
    until: str | None,
    channel: str,
    dry_run: bool,
    accept_due: bool,
    lists: bool,
    network: str | None,
    bootstrap: tuple[str, ...],
    bootstrap_peers: Path | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Make statements with the other side, and sign them.

    \b
    p2pgrid settle --dry-run 12D3KooW...      what would be stated
    p2pgrid settle 12D3KooW...                state it now
    p2pgrid settle --list                     all statements, with what is open

    Both sides compute the same statement from their own ledgers. Where they are the same, both sign, and the provider
    issues its invoice; where not, every difference is shown, and nothing is signed. A node does this by itself at the
    end of each period (the provider's settlement-days). On a provider's side the client has to come: it is told to.
    Days are those of the provider's calendar. Where nothing happened since the last statement, nothing is signed.

    Without PEER, all peers of this node's channels.

    Exit codes: 0 done; 1 the two sides differ; 2 wrong usage; 3 this machine; 4 the other side.
    """
    from p2pgrid.cli.account_changes import changes_json, changes_of, print_changes
    from p2pgrid.cli.asking import parse_peer
    from p2pgrid.cli.running import log_to_stderr
    from p2pgrid.cli.settle_text import print_listed, print_settled

    log_to_stderr(verbose=verbose, quiet=not verbose)
    if lists:
        if peer or until or dry_run or accept_due:
            raise UsageError("--list stands by itself.", hint="Leave out PEER, --until, --dry-run and --accept-due.")
        listed = [one for one in _listed(context.data) if one.statement.channel.startswith(channel.lower())]
        if as_json:
            click.echo(msgspec.json.encode({"statements": listed}))
        else:
            print_listed(listed)
        return

    def networks() -> tuple[NetworkEntry, ...]:
        """Resolved where something has to be dialled."""
        return resolve_networks(context.data, context.data.load_config(), network, bootstrap, bootstrap_peers)

    if accept_due and (peer is None or dry_run):
        raise UsageError("--accept-due is for one peer, and signs.", hint="Name the PEER, and leave out --dry-run.")
    peers = [parse_peer(peer)] if peer is not None else _peers(context.data)
    day = _day(until).toordinal() if until is not None else 0
    settled, errors = asyncio.run(_settle_all(context.data, peers, channel, day, dry_run, accept_due, networks))
    if len(peers) == 1 and errors:
        raise errors[0][1]
    changes = changes_of(context.data)
    if as_json:
        faults = [{"peer": peer, "message": error.message, "hint": error.hint} for peer, error in errors]
        shown = {"settled": settled, "errors": faults, "account_changes": changes_json(changes)}
        click.echo(msgspec.json.encode(shown))
    else:
        for done in settled:
            print_settled(done)
        for name, error in errors:
            click.echo(f"{name}: {error}", err=True)
        if not peers:
            click.echo("There is nobody to settle with: this node has no channel.")
        print_changes(changes)
    if errors:
        raise errors[0][1]
    if any(view.differences for done in settled for view in done.channels):
        click.get_current_context().exit(1)


async def _settle_all(
    data: DataFolder,
    peers: list[str],
    channel: str,
    until_day: int,
    dry_run: bool,
    accept_due: bool,
    networks: Networks,
) -> tuple[list[Settled], list[tuple[str, P2pgridError]]]:
    from p2pgrid.desk.statements import Settle

    settled, errors = [], []
    for peer in peers:
        ask = Settle(peer=peer, channel=channel, until_day=until_day, dry_run=dry_run, accept_due=accept_due)
        try:
            settled.append(await _settle(data, ask, networks))
        except P2pgridError as error:
            errors.append((peer, error))
    return settled, errors


async def _settle(data: DataFolder, ask: Settle, networks: Networks) -> Settled:
    """Through the node that runs, or in this process. Raises P2pgridError."""
    from p2pgrid.cli.asking import ask_or_do
    from p2pgrid.desk.statements import Settled

    return await ask_or_do(data, ask, Settled, lambda: _here(data, ask, networks), timeout_s=_TIMEOUT_S)


async def _here(data: DataFolder, ask: Settle, networks: Networks) -> Settled:
    """Dial, settle, close; or look ahead, where nothing is to be signed or this node sold to the peer."""
    from p2pgrid.desk.settling import look_ahead, only_clients_accept
    from p2pgrid.desk.standing import channels_with, is_provider_in
    from p2pgrid.ledger.sqlite import SqliteLedger
    from p2pgrid.proto.keys import parse_peer_id
    from p2pgrid.settlement.statements.drafting import NOTHING_HAPPENED
    from p2pgrid.settlement.wiring import kept_details

    ours, theirs = data.load_key().public_key, parse_peer_id(ask.peer)
    with SqliteLedger.open_readonly(data.ledger_file) as reader:
        channels = channels_with(reader, ours, theirs)
        sells = bool(channels) and all(is_provider_in(channel, ours) for channel in channels)
        if sells and ask.accept_due:
            raise only_clients_accept()
        if ask.dry_run or sells:
            done = await look_ahead(reader, ours, kept_details(data), ask)
            if ask.dry_run or all(view.nothing_code == NOTHING_HAPPENED for view in done.channels):
                return done
            note = "This provider does not run: the client finds a statement to sign when both do."
            return msgspec.structs.replace(done, waits_for_client=True, notes=(note,))
    from p2pgrid.client.client import Client
    from p2pgrid.client.desk import ClientDesk

    async with Client(data, networks=networks(), keeps_links=False) as client:
        settled: Settled = await ClientDesk(client.purchaser, ours).perform(ask)
        return settled


def _peers(data: DataFolder) -> list[str]:
    """The other sides of this node's channels, each once."""
    from p2pgrid.ledger.sqlite import SqliteLedger
    from p2pgrid.proto.keys import parse_public_key

    ours = data.load_key().public_key.raw
    with SqliteLedger.open_readonly(data.ledger_file) as reader:
        terms = [one.message for one in reader.channels()]
    others = [
        one.client if one.provider == ours else one.provider for one in terms if ours in (one.provider, one.client)
    ]
    return [parse_public_key(key).peer_id for key in dict.fromkeys(others)]


def _listed(data: DataFolder) -> list[ListedStatement]:
    from p2pgrid.desk.statement_list import list_statements
    from p2pgrid.ledger.sqlite import SqliteLedger
    from p2pgrid.settlement.wiring import agreed_drafts

    with SqliteLedger.open_readonly(data.ledger_file) as reader:
        return list_statements(reader, data.own_public_keys(), agreed_drafts(data).drafts())


def _day(text: str) -> date:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{text[:40]!r} is no day.", hint="Write it like 2027-01-31.") from None
    # Somewhere it is tomorrow already: the day is one of the provider's calendar.
    if day > datetime.fromtimestamp(unix_ms() / 1000, UTC).date() + timedelta(days=1):
        raise UsageError(f"{day} is not there yet.", hint="A period ends today at the latest: leave --until out.")
    return day
