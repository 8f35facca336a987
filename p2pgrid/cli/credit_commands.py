"""`p2pgrid credit`: limits, what is used and overdue, claims of default, settled histories."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import msgspec

from p2pgrid.cli.context import CliContext
from p2pgrid.cli.output import echo_json
from p2pgrid.clock import unix_ms
from p2pgrid.errors import UsageError
from p2pgrid.units import format_amount_eur, format_cents

if TYPE_CHECKING:
    from p2pgrid.config import TermsConfig
    from p2pgrid.data_folder import DataFolder
    from p2pgrid.ledger.reader import SqliteReader
    from p2pgrid.proto.keys import PublicKey
    from p2pgrid.settlement.credit.book import ClaimTaken, CreditBook, HistoryTaken
    from p2pgrid.settlement.credit.view import PeerCredit

_DAY_MS: Final = 86_400_000


@click.group()
def credit() -> None:
    """See who is lent what, and act on clients that do not pay.

    \b
    p2pgrid credit show
    p2pgrid credit default 12D3KooW... -o unpaid.jsonl
    """


@credit.command()
@click.argument("peer", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def show(context: CliContext, peer: str | None, as_json: bool) -> None:
    """Show limits, what is used of them, what is unpaid and overdue, and what others say.

    With PEER (12D3KooW...), only that client or provider.

    \b
    p2pgrid credit show 12D3KooW...
    """
    from p2pgrid.settlement.credit.view import credit_of

    data, at_ms = context.data, unix_ms()
    key = _key_of(peer) if peer else None
    terms = _terms(data)
    grace_ms = terms.overdue_grace_days * _DAY_MS
    with _reader(data) as ledger:
        found = credit_of(ledger, data.own_public_keys(), now_ms=at_ms, grace_ms=grace_ms, peer=key)
    with _book(data) as book:
        claims = book.claims(at_ms, key.raw if key else None)
        histories = book.histories(at_ms, key.raw if key else None)
    if as_json:
        shown = {"peers": found, "defaults": claims, "histories": histories}
        echo_json(msgspec.to_builtins(shown))
        return
    if not (found or claims or histories):
        of_peer = f"Nothing was lent to {key.peer_id}, nor by it." if key else ""
        click.echo(of_peer or "Nobody was lent anything, and nobody lends here.")
    for one in found:
        _print_peer(one)
    for claim in claims:
        _print_claim(claim)
    for history in histories:
        _print_history(history)


@credit.command()
@click.argument("peer")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The file to write.")
@click.option(
    "--as-of",
    metavar="DATE",
    help="Up to which day (UTC) you have imported your bank's statements.  [default: three days ago]",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was written as a JSON object.")
@click.pass_obj
def default(context: CliContext, peer: str, out: Path, as_of: str | None, as_json: bool) -> None:
    """Sign that the client PEER has not paid, in a file that any provider can verify.

    The file has the statement that both signed, its invoice, the payments that you booked, and your claim. Import what
    your bank has first: a claim that leaves out a payment which you signed proves you wrong, not the client.

    \b
    p2pgrid credit default 12D3KooW... -o unpaid.jsonl
    """
    from p2pgrid.ledger.bundle import write_bundle
    from p2pgrid.settlement.credit.files import BANK_DAYS_MS, claims_against

    data, at_ms = context.data, unix_ms()
    client = _key_of(peer)
    as_of_ms = _as_of_ms(as_of, at_ms) if as_of else at_ms - BANK_DAYS_MS
    keys = [data.load_key(), *data.load_retired_keys()]
    grace_ms = _terms(data).overdue_grace_days * _DAY_MS
    with _reader(data) as ledger:
        found = claims_against(ledger, keys, client, as_of_ms=as_of_ms, grace_ms=grace_ms, now_ms=at_ms)
    records = [record for claim, proof in found for record in (claim.record, *proof)]
    write_bundle(out, records)
    claims = [
        {
            "claim": claim.id.hex(),
            "channel": claim.message.channel.hex(),
            "statement": claim.message.statement.hex(),
            "currency": claim.message.currency,
            "unpaid_cents": claim.message.unpaid_cents,
            "as_of_ms": claim.message.as_of_ms,
        }
        for claim, _ in found
    ]
    if as_json:
        echo_json({"file": str(out), "peer": client.peer_id, "claims": claims})
        return
    total = format_cents(sum(claim.message.unpaid_cents for claim, _ in found))
    click.echo(f"{out}: {client.peer_id} has not paid {total} EUR by {_day(as_of_ms)}. Give it to whom you like.")


@credit.command("import")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print what was found as a JSON object.")
@click.pass_obj
def import_file(context: CliContext, file: Path, as_json: bool) -> None:
    """Take a claim of default, an answer to one, or a client's settled history.

    Every signature is checked. A client against whom a claim stands opens no channel here, until it shows that it
    paid or you say `p2pgrid credit allow`. A history raises a client's limit as far as its providers are in `believe`.

    \b
    p2pgrid credit import unpaid.jsonl
    """
    from p2pgrid.settlement.credit.files import read_records

    records = read_records(file)
    with _book(context.data) as book:
        taken = book.take(records, unix_ms())
    if as_json:
        echo_json(msgspec.to_builtins(taken))
    else:
        click.echo(f"{taken.records} new records.")
        for claim in taken.claims:
            _print_claim(claim)
        for history in taken.histories:
            _print_history(history)
        for why in taken.refused:
            click.echo(f"Not taken, for it proves nothing: {why}")
    if taken.refused and not taken.claims:
        raise SystemExit(1)


@credit.command()
@click.argument("peer")
@click.option("--revoke", is_flag=True, help="Go by the claims again.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def allow(context: CliContext, peer: str, revoke: bool, as_json: bool) -> None:
    """Deal with the client PEER whatever others claim that it owes them.

    \b
    p2pgrid credit allow 12D3KooW...
    """
    client = _key_of(peer)
    with _book(context.data) as book:
        is_changed = book.allow(client.raw, unix_ms(), allowed=not revoke)
    if as_json:
        click.echo(json.dumps({"peer": client.peer_id, "allowed": not revoke, "changed": is_changed}))
    elif revoke:
        click.echo(f"Claims against {client.peer_id} count{' again' if is_changed else ', as before'}.")
    else:
        click.echo(f"Claims against {client.peer_id} do not count{' any more' if is_changed else ', as before'}.")


@credit.command()
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The file to write.")
@click.option("--provider", "peer", metavar="PEER", help="Only what was settled with that provider.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as a JSON object.")
@click.pass_obj
def history(context: CliContext, out: Path, peer: str | None, as_json: bool) -> None:
    """Write what this node bought and paid, for a provider that may lend more for it.

    The file has statements, invoices and payments, with their amounts and models; nothing of what was asked. It also
    answers a claim that you did not pay.

    \b
    p2pgrid credit history -o paid.jsonl
    """
    from p2pgrid.ledger.bundle import write_bundle
    from p2pgrid.settlement.credit.files import history_records

    data = context.data
    with _reader(data) as ledger:
        records = history_records(ledger, data.own_public_keys(), _key_of(peer) if peer else None)
    write_bundle(out, records)
    if as_json:
        click.echo(json.dumps({"file": str(out), "records": len(records)}))
    else:
        click.echo(f"{out}: {len(records)} records.")


def _print_peer(one: PeerCredit) -> None:
    lends = one.role == "provider"
    click.echo(f"{'client' if lends else 'provider'} {one.peer}")
    used, limit = _rounded(one.used_pico), _rounded(one.limit_pico)
    click.echo(f"  limit {limit} {one.currency} a channel; {used} used of {_in_force(one)}")
    if one.unpaid_cents < 0:
        click.echo(f"  paid ahead {format_cents(-one.unpaid_cents)}")
    else:
        click.echo(f"  unpaid {format_cents(one.unpaid_cents)}, of that overdue {format_cents(one.overdue_cents)}")
    click.echo(
        f"  paid in time {format_cents(one.on_time_cents)}, late {format_cents(one.late_cents)}, "
        f"in {one.statements} statement(s)"
    )
    for invoice in one.open_invoices:
        late = ", OVERDUE" if invoice.overdue else ""
        click.echo(
            f"  open: invoice {invoice.invoice_number} {format_cents(invoice.open_cents)}, "
            f"due {_day(invoice.due_ms)}{late}"
        )


def _in_force(one: PeerCredit) -> str:
    count = sum(not channel.expired for channel in one.channels)
    return f"{count} channel(s) in force"


def _print_claim(claim: ClaimTaken) -> None:
    click.echo(f"default {claim.claim[:16]}  {claim.state}{', and allowed' if claim.allowed else ''}")
    click.echo(f"  client {claim.client}, to {claim.provider}")
    click.echo(f"  {claim.sentence}")


def _print_history(history: HistoryTaken) -> None:
    believed = "" if history.believed else "  (not in `believe`: earns nothing)"
    click.echo(f"history of {history.client} with {history.provider}{believed}")
    click.echo(
        f"  {history.statements} statement(s), paid in time {format_cents(history.on_time_cents)}, late "
        f"{format_cents(history.late_cents)}, overdue {format_cents(history.overdue_cents)}"
    )


@contextmanager
def _reader(data: DataFolder) -> Iterator[SqliteReader]:
    from p2pgrid.ledger.sqlite import SqliteLedger

    with SqliteLedger.open_readonly(data.ledger_file) as ledger:
        yield ledger


@contextmanager
def _book(data: DataFolder) -> Iterator[CreditBook]:
    from p2pgrid.settlement.credit.book import CreditBook
    from p2pgrid.settlement.database import FILE_NAME, open_database

    data.make()
    terms = _terms(data)
    connection = open_database(data.path / FILE_NAME)
    try:
        yield CreditBook(
            connection,
            believed=terms.believe,
            own_keys=[key.raw for key in data.own_public_keys()],
            grace_ms=terms.overdue_grace_days * _DAY_MS,
        )
    finally:
        connection.close()


def _terms(data: DataFolder) -> TermsConfig:
    return data.load_config().provider.terms


def _key_of(peer: str) -> PublicKey:
    from p2pgrid.cli.asking import parse_peer
    from p2pgrid.proto.keys import parse_peer_id

    return parse_peer_id(parse_peer(peer))


def _rounded(pico: int) -> str:
    return format_amount_eur(pico // 10**10 * 10**10)


def _day(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).date().isoformat()


def _as_of_ms(day: str, now_ms: int) -> int:
    """The end of the day, or now."""
    try:
        begins = datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise UsageError(f"{day!r} is no day.", hint="Write it like 2027-01-31.") from None
    begins_ms = int(begins.timestamp() * 1000)
    if begins_ms > now_ms:
        raise UsageError(
            f"{day} is still to come; a day was expected up to which you have imported your bank's files.",
            hint="Name the last day that they cover.",
        )
    return min(begins_ms + _DAY_MS - 1, now_ms)
